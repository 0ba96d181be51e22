// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada

/*
#include "shim.h"
*/
import "C"

import (
	"context"
	"log/slog"
	"runtime"
	"runtime/cgo"
	"runtime/debug"
	"sync"
	"time"
)

// call is a call of C's that may call back. C knows it by a cgo.Handle.
type call struct {
	ctx  context.Context
	stop func() // stops the call, if that can be

	mu     sync.Mutex
	failed *outcome
}

// outcome is how a callback ended that did not return.
type outcome struct {
	panicked *PanicError // nil for runtime.Goexit
}

// guard runs a callback in a goroutine of its own, since neither a panic nor Goexit may unwind the frames of C, and
// says whether it returned.
func (c *call) guard(callback func()) bool {
	var bad *outcome
	done := make(chan struct{})
	go func() {
		returned := false
		defer close(done)
		defer func() {
			if returned {
				return
			}
			bad = &outcome{}
			if value := recover(); value != nil {
				bad.panicked = &PanicError{Value: value, Stack: debug.Stack()}
			}
		}()
		callback()
		returned = true
	}()
	<-done
	if bad == nil {
		return true
	}
	c.mu.Lock()
	if c.failed == nil {
		c.failed = bad
	}
	c.mu.Unlock()
	if c.stop != nil {
		c.stop()
	}
	return false
}

// raise goes on with what a callback did, where the caller can see it.
func (c *call) raise() {
	switch {
	case c.failed == nil:
	case c.failed.panicked != nil:
		panic(c.failed.panicked)
	default:
		runtime.Goexit()
	}
}

// progress is a progress function during the call that opens a model or makes a context.
type progress struct {
	call
	report func(done, total uint64) error
	err    error
}

//export mmadaGoProgress
func mmadaGoProgress(done, total C.uint64_t, user C.uintptr_t) C.int {
	p := cgo.Handle(user).Value().(*progress)
	if !p.guard(func() { p.err = p.report(uint64(done), uint64(total)) }) || p.err != nil {
		return 1
	}
	return 0
}

// sink is where the messages of a context and its generations go. C knows it by a cgo.Handle. A nil one is silent.
type sink struct {
	handler slog.Handler
}

//export mmadaGoLog
func mmadaGoLog(level C.uint32_t, message *C.char, length C.size_t, user, current C.uintptr_t) {
	s := cgo.Handle(user).Value().(*sink)
	c := &call{ctx: context.Background()}
	if current != 0 {
		c = cgo.Handle(current).Value().(*call)
	}
	text := C.GoStringN(message, C.int(length))
	c.guard(func() { s.log(c.ctx, logLevel(uint32(level)), text) })
}

func (s *sink) log(ctx context.Context, level slog.Level, text string) {
	if s.handler.Enabled(ctx, level) {
		// slog.Logger drops this error, too
		_ = s.handler.Handle(ctx, slog.NewRecord(time.Now(), level, text, 0))
	}
}

func logLevel(level uint32) slog.Level {
	switch level {
	case C.MMADA_LOG_ERROR:
		return slog.LevelError
	case C.MMADA_LOG_WARN:
		return slog.LevelWarn
	case C.MMADA_LOG_INFO:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}

// during runs calls of C's, in which stop (nil or not) stops what is computed, and goes on with the panic of a log
// handler that they called.
func (s *sink) during(ctx context.Context, stop func(), calls func()) {
	if s == nil {
		calls()
		return
	}
	c := &call{ctx: ctx, stop: stop}
	handle := cgo.NewHandle(c)
	runtime.LockOSThread()
	C.mmada_go_enter(C.uintptr_t(handle))
	calls()
	C.mmada_go_enter(0)
	runtime.UnlockOSThread()
	handle.Delete()
	c.raise()
}
