// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada

// Live counts the objects of C's that have not been freed.
func Live() int64 { return live.Load() }
