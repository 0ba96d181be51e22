// SPDX-License-Identifier: MIT OR Apache-2.0

// Package mmada runs MMaDA, the unified multimodal diffusion language model: one model file, opened once, answers
// questions, looks at pictures and draws them. It binds the C library libmmada, which pkg-config must find (module
// "mmada").
//
// A [Model] is an opened file, a [Context] the threads and buffers that run it, and a [Generation] an answer or
// pictures in the making, which is made step by step:
//
//	model, err := mmada.Open("mmada.gguf", nil)
//	...
//	defer model.Close()
//	c, err := model.NewContext(nil)
//	...
//	defer c.Close()
//	generation, err := c.BeginText([]mmada.Message{mmada.User("What is 17 + 25?")}, nil)
//	...
//	defer generation.Close()
//	for step, err := range generation.Steps(ctx) {
//		...
//	}
//	answer, err := generation.Answer()
//
// [Context.Ask] and [Context.Draw] do that in one call.
//
// # Closing
//
// Everything with a Close method holds memory that Go does not see; close it. What is forgotten is closed some time
// after it has become unreachable. Objects may be closed in any order, more than once, and by any goroutine while
// others use them: the calls that are running end first, and every later one fails with [ErrClosed]. Closing never
// waits.
//
// # Goroutines
//
// Everything may be used by any number of goroutines. A Model serves them all at once. A Context runs one call that
// computes at a time, and a Generation one call: a second one meanwhile fails with [ErrBusy], at once and without harm.
// Generations of one Context may take turns step by step.
//
// # Cancelling
//
// Calls that compute take a context.Context. When it ends, they return within one layer of the network, with an error
// that is both [ErrCancelled] and the context's. A Generation whose context has ended is cancelled for good; its Context
// goes on.
//
// # Callbacks
//
// A callback (a progress function, a log handler) that panics, or calls [runtime.Goexit], stops the call that it was
// called by, and the panic goes on in the goroutine of that call, as a [*PanicError]. Callbacks run in goroutines of
// their own, while the call waits.
package mmada
