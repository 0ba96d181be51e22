// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada

// Live counts the objects of C's that have not been freed.
func Live() int64 { return live.Load() }

// Cancelled says whether a context.Context has cancelled the generation.
func (g *Generation) Cancelled() bool {
	g.in.mu.Lock()
	defer g.in.mu.Unlock()
	return g.in.causes != nil
}
