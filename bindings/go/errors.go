// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada

/*
#include "shim.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// Status says what kind of failure an [Error] is. It is an error itself, to be looked for with [errors.Is]:
//
//	if errors.Is(err, mmada.ErrBusy) { ... }
type Status int

// The statuses of the C library, by their numbers there; negative ones are this package's own.
const (
	// ErrIO: the operating system refused to open, read or write a file.
	ErrIO Status = C.MMADA_IO_ERROR
	// ErrBadFormat: a model file is damaged, cut off, or not what it claims to be.
	ErrBadFormat Status = C.MMADA_BAD_FORMAT
	// ErrUnsupported: a well-formed file or request that this version or this model cannot serve. It is also
	// [errors.ErrUnsupported].
	ErrUnsupported Status = C.MMADA_UNSUPPORTED
	// ErrInvalidArgument: an option or argument that cannot be, or options that contradict each other.
	ErrInvalidArgument Status = C.MMADA_INVALID_ARGUMENT
	// ErrContextOverflow: a sequence needs more positions than the model has.
	ErrContextOverflow Status = C.MMADA_CONTEXT_OVERFLOW
	// ErrBadImage: a picture is damaged, empty, or larger than the limits.
	ErrBadImage Status = C.MMADA_BAD_IMAGE
	// ErrOutOfMemory: an allocation sized by a model or a request failed, or would exceed a context's memory limit.
	ErrOutOfMemory Status = C.MMADA_OUT_OF_MEMORY
	// ErrCancelled: the caller cancelled. An error of a call whose context.Context ended is also that context's.
	ErrCancelled Status = C.MMADA_CANCELLED
	// ErrBusy: another call is using the context or the generation. Try again later; nothing has changed.
	ErrBusy Status = C.MMADA_BUSY
	// ErrInternal: a defect of the library.
	ErrInternal Status = C.MMADA_INTERNAL_ERROR
	// ErrForked: the context was made before a fork and is used in the child.
	ErrForked Status = C.MMADA_FORKED
	// ErrDevice: a graphics card failed. Contexts on it fail from then on; new ones on the CPU work.
	ErrDevice Status = C.MMADA_DEVICE_ERROR
	// ErrInvalidUTF8: a string is not UTF-8.
	ErrInvalidUTF8 Status = C.MMADA_INVALID_UTF8
	// ErrDone: a step of a generation that is complete.
	ErrDone Status = C.MMADA_DONE
	// ErrNotFound: there is nothing by that name or index.
	ErrNotFound Status = C.MMADA_NOT_FOUND
	// ErrPanic: a defect of the library, caught before it could harm the program.
	ErrPanic Status = C.MMADA_PANIC
	// ErrClosed: use of what has been closed. It is also [fs.ErrClosed].
	ErrClosed Status = -1
)

// Error says what the status means, in a few words without a "mmada: " in front.
func (s Status) Error() string {
	if s == ErrClosed {
		return "mmada: closed"
	}
	return "mmada: status " + C.GoString(C.mmada_status_name(C.int(s)))
}

// Is makes ErrUnsupported and ErrClosed equal to what the standard library has for them.
func (s Status) Is(target error) bool {
	return s == ErrUnsupported && target == errors.ErrUnsupported || s == ErrClosed && target == fs.ErrClosed
}

// Error is what every function of this package fails with. Look for its status with [errors.Is].
type Error struct {
	// Status says what kind of failure this is.
	Status Status
	// Message is one sentence for a person, in English: it names the file, tensor, option or size at fault.
	Message string

	causes []error
}

// Error is the message.
func (e *Error) Error() string { return "mmada: " + e.Message }

// Unwrap gives the status and what else lies behind the error: that of a context.Context, or a callback's.
func (e *Error) Unwrap() []error { return append([]error{e.Status}, e.causes...) }

// PanicError is what a call panics with that called a callback which panicked.
type PanicError struct {
	// Value is what the callback panicked with.
	Value any
	// Stack is the callback's, as of [runtime/debug.Stack].
	Stack []byte
}

// Error tells the value and the stack.
func (e *PanicError) Error() string { return fmt.Sprintf("%v\n\n%s", e.Value, e.Stack) }

// Unwrap gives the value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// failure is what a call of C has returned; the error object is freed. It takes a pointer to the variable, since Go does
// not say whether a variable among the arguments is read before or after the call of C beside it.
func failure(status C.mmada_status, object **C.mmada_error) error {
	if status == C.MMADA_OK {
		return nil
	}
	message := C.GoString(C.mmada_error_message(*object))
	C.mmada_error_free(*object)
	*object = nil
	if message == "" {
		message = C.GoString(C.mmada_status_name(C.int(status)))
	}
	return &Error{Status: Status(status), Message: message}
}

func invalid(format string, arguments ...any) error {
	return &Error{Status: ErrInvalidArgument, Message: fmt.Sprintf(format, arguments...)}
}

// because is the failure with what a context ended by, if cancelling is what it is.
func because(err error, causes []error) error {
	var e *Error
	if errors.As(err, &e) && e.Status == ErrCancelled && len(causes) > 0 {
		return &Error{Status: ErrCancelled, Message: e.Message + ": " + causes[len(causes)-1].Error(), causes: causes}
	}
	return err
}

// causes are the errors that a context has ended with; none while it lives.
func causes(ctx context.Context) []error {
	err, cause := ctx.Err(), context.Cause(ctx)
	switch {
	case err == nil:
		return nil
	case cause == nil || cause == err:
		return []error{err}
	default:
		return []error{err, cause}
	}
}

func checkContext(ctx context.Context) error {
	if ctx == nil {
		return invalid("the context.Context is nil")
	}
	return nil
}
