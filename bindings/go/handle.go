// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada

import (
	"sync"
	"sync/atomic"
)

// handle guards an object of C's, P being a pointer to it: it is freed once, when it has been closed and no call uses it
// any more.
type handle[P any] struct {
	what string // for messages: "model"
	free func(P)
	// what the object keeps pointers to, until it is freed
	holds []*shared

	mu     sync.Mutex
	object P
	users  int
	closed bool
}

// live counts the objects of C's that have not been freed; tests look at it.
var live atomic.Int64

func newHandle[P any](what string, object P, free func(P), holds ...*shared) *handle[P] {
	for _, s := range holds {
		s.refs.Add(1)
	}
	live.Add(1)
	return &handle[P]{what: what, object: object, free: free, holds: holds}
}

// acquire gives the object until release is called.
func (h *handle[P]) acquire() (P, error) {
	if h == nil {
		var none P
		return none, &Error{Status: ErrClosed, Message: "this was not made by the functions that make such objects"}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		var none P
		return none, h.closedError()
	}
	h.users++
	return h.object, nil
}

func (h *handle[P]) closedError() error {
	return &Error{Status: ErrClosed, Message: "the " + h.what + " has been closed"}
}

func (h *handle[P]) release() {
	h.mu.Lock()
	h.users--
	last := h.closed && h.users == 0
	h.mu.Unlock()
	if last {
		h.drop()
	}
}

// close ends the object as soon as nobody uses it. stop, which may be nil, is called where somebody does.
func (h *handle[P]) close(stop func(P)) {
	if h == nil {
		return
	}
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return
	}
	h.closed = true
	last := h.users == 0
	if !last && stop != nil {
		stop(h.object)
	}
	h.mu.Unlock()
	if last {
		h.drop()
	}
}

func (h *handle[P]) isClosed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}

func (h *handle[P]) drop() {
	h.free(h.object)
	for _, s := range h.holds {
		s.release()
	}
	live.Add(-1)
}

// shared is what several objects of C's keep pointers to. Whoever makes it has the first reference.
type shared struct {
	refs atomic.Int64
	drop func()
}

func newShared(drop func()) *shared {
	s := &shared{drop: drop}
	s.refs.Store(1)
	return s
}

func (s *shared) release() {
	if s.refs.Add(-1) == 0 {
		s.drop()
	}
}
