// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada

/*
#include "shim.h"
*/
import "C"

import (
	"context"
	"errors"
	"image"
	"iter"
	"runtime"
	"strings"
	"sync"
	"unsafe"
)

// Stage is what a step is about.
type Stage uint32

const (
	// StageText is an answer, or the description that is thought out before a picture.
	StageText Stage = C.MMADA_STAGE_TEXT
	// StageImage is pictures.
	StageImage Stage = C.MMADA_STAGE_IMAGE
)

// String is the name: "text", "image".
func (s Stage) String() string { return name(uint32(s), "text", "image") }

// Masked stands in a canvas at a position that has not been decided.
const Masked uint32 = C.MMADA_MASKED

// Change is a position that has been decided.
type Change struct {
	// Sequence is which picture; 0 for text.
	Sequence int
	// Position in the answer, or the place in the picture, row by row.
	Position int
	// ID is the token; of a picture the image code plus the model's ImageOffset.
	ID uint32
}

// Step is what a step did.
type Step struct {
	// Stage is what it was about.
	Stage Stage
	// Index counts the steps of this stage that are done, Total how many there are at most.
	Index, Total int
	// Prefix of a text is how many tokens of the answer stand before its first mask; these will not change. 0 for
	// pictures.
	Prefix int
	// Changes are the positions that this step decided for good.
	Changes []Change
	// Done says that the generation is complete.
	Done bool
}

// Generation is an answer or pictures in the making.
//
// Its results may be asked for at any time, and give what there is so far; those fail with ErrBusy while a step runs.
type Generation struct {
	in      *generation
	cleanup runtime.Cleanup
}

// generation is what must not point to the Generation, so that one that is forgotten can be cleaned up.
type generation struct {
	handle *handle[*C.mmada_generation]
	log    *sink
	// held by whoever steps: C's changes are valid until the next step
	stepping sync.Mutex

	mu     sync.Mutex
	causes []error // what the context.Context that cancelled it has ended with
}

func newGeneration(made *C.mmada_generation, log *sink, holds []*shared) *Generation {
	free := func(p *C.mmada_generation) { C.mmada_generation_free(p) }
	g := &Generation{in: &generation{handle: newHandle("generation", made, free, holds...), log: log}}
	g.cleanup = runtime.AddCleanup(g, func(in *generation) { in.close() }, g.in)
	return g
}

// Close closes the generation, complete or not; a step that is running is cancelled. It always returns nil.
func (g *Generation) Close() error {
	g.cleanup.Stop()
	g.in.close()
	return nil
}

func (in *generation) close() {
	if in != nil {
		in.handle.close(func(p *C.mmada_generation) { C.mmada_generation_cancel(p) })
	}
}

// Cancel cancels the generation for good: the step that is running fails with ErrCancelled within one layer of the
// network, and so does every later one. Results so far can still be had, except pictures, which would have to be
// computed. The context and its other generations go on.
func (g *Generation) Cancel() {
	g.in.cancel(nil)
}

func (in *generation) cancel(causes []error) {
	if in == nil {
		return
	}
	in.mu.Lock()
	if in.causes == nil {
		in.causes = causes
	}
	in.mu.Unlock()
	if p, err := in.handle.acquire(); err == nil {
		C.mmada_generation_cancel(p)
		in.handle.release()
	}
}

// compute makes a call that ctx, a panic of the logger, Cancel and Close can stop.
func (g *Generation) compute(ctx context.Context, call func(*C.mmada_generation, **C.mmada_error) C.mmada_status) error {
	if err := checkContext(ctx); err != nil {
		return err
	}
	p, err := g.acquire()
	if err != nil {
		return err
	}
	in := g.in
	defer in.handle.release()
	// AfterFunc has a goroutine of its own, which may be late
	if causes := causes(ctx); causes != nil {
		in.cancel(causes)
		return because(&Error{Status: ErrCancelled, Message: "the generation was cancelled"}, causes)
	}
	defer context.AfterFunc(ctx, func() { in.cancel(causes(ctx)) })()
	var object *C.mmada_error
	in.log.during(ctx, func() { in.cancel(nil) }, func() { err = failure(call(p, &object), &object) })
	if errors.Is(err, ErrCancelled) && in.handle.isClosed() {
		return in.handle.closedError()
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	return because(err, in.causes)
}

// acquire gives the generation until g.in.handle.release is called; see Model.acquire.
func (g *Generation) acquire() (*C.mmada_generation, error) {
	defer runtime.KeepAlive(g)
	if g.in == nil {
		return (*handle[*C.mmada_generation])(nil).acquire()
	}
	return g.in.handle.acquire()
}

// Step runs one step. One that failed changed nothing and can be tried again, except after ErrCancelled and ErrPanic,
// which last. When ctx ends, the generation is cancelled for good.
//
// It fails with ErrDone if the generation is complete, ErrBusy if another goroutine is using it or its context,
// ErrCancelled, ErrOutOfMemory, ErrBadFormat for a mapped file that was cut off.
func (g *Generation) Step(ctx context.Context) (Step, error) {
	if g.in != nil {
		if !g.in.stepping.TryLock() {
			return Step{}, &Error{Status: ErrBusy, Message: "another goroutine runs a step of the generation"}
		}
		defer g.in.stepping.Unlock()
	}
	var from C.mmada_step
	C.mmada_step_init(&from, C.sizeof_mmada_step)
	var to Step
	err := g.compute(ctx, func(p *C.mmada_generation, object **C.mmada_error) C.mmada_status {
		status := C.mmada_generation_step(p, &from, object)
		if status == C.MMADA_OK {
			to = step(&from)
		}
		return status
	})
	if err != nil {
		return Step{}, err
	}
	return to, nil
}

func step(from *C.mmada_step) Step {
	to := Step{
		Stage:  Stage(from.stage),
		Index:  int(from.index),
		Total:  int(from.total),
		Prefix: int(from.prefix),
		Done:   from.done != 0,
	}
	if from.change_count > 0 {
		to.Changes = make([]Change, from.change_count)
		for i, change := range unsafe.Slice(from.changes, int(from.change_count)) {
			to.Changes[i] = Change{int(change.sequence), int(change.position), uint32(change.id)}
		}
	}
	return to
}

// Steps runs the steps that are left, one for each turn of the loop. An error ends the loop; leaving the loop leaves the
// generation where it is, and another loop goes on from there. Of a complete generation there are none.
//
//	for step, err := range generation.Steps(ctx) {
//		if err != nil {
//			return err
//		}
//		fmt.Printf("%d/%d\n", step.Index, step.Total)
//	}
func (g *Generation) Steps(ctx context.Context) iter.Seq2[Step, error] {
	return func(yield func(Step, error) bool) {
		for {
			step, err := g.Step(ctx)
			if errors.Is(err, ErrDone) || !yield(step, err) || err != nil || step.Done {
				return
			}
		}
	}
}

// Run runs the steps that are left. each, unless nil, is called after every one; its error stops, and is returned as it
// is. The generation can go on from there.
func (g *Generation) Run(ctx context.Context, each func(Step) error) error {
	for step, err := range g.Steps(ctx) {
		if err != nil {
			return err
		}
		if each != nil {
			if err := each(step); err != nil {
				return err
			}
		}
	}
	return nil
}

// GenerationInfo is what a generation is.
type GenerationInfo struct {
	// TotalSteps of all stages together; an answer that ends early takes fewer.
	TotalSteps int
	// ImageCount is how many pictures are drawn; 0 for an answer.
	ImageCount int
	// ImageColumns and ImageRows are the width and height of the pictures in image codes; 0 for an answer.
	ImageColumns, ImageRows int
	// Done says that every stage is complete.
	Done bool
	// HasText says that there is text: an answer, or a description before a picture.
	HasText bool
}

// Info is what the generation is and how far it has come.
func (g *Generation) Info() (GenerationInfo, error) {
	p, err := g.acquire()
	if err != nil {
		return GenerationInfo{}, err
	}
	defer g.in.handle.release()
	var info C.mmada_generation_info
	var object *C.mmada_error
	C.mmada_generation_info_init(&info, C.sizeof_mmada_generation_info)
	if err := failure(C.mmada_generation_get_info(p, &info, &object), &object); err != nil {
		return GenerationInfo{}, err
	}
	return GenerationInfo{
		TotalSteps:   int(info.total_steps),
		ImageCount:   int(info.image_count),
		ImageColumns: int(info.image_columns),
		ImageRows:    int(info.image_rows),
		Done:         info.done != 0,
		HasText:      info.has_text != 0,
	}, nil
}

// result asks for a buffer.
func (g *Generation) result(call func(*C.mmada_generation, **C.mmada_buffer, **C.mmada_error) C.mmada_status) (*C.mmada_buffer, error) {
	p, err := g.acquire()
	if err != nil {
		return nil, err
	}
	defer g.in.handle.release()
	var buffer *C.mmada_buffer
	var object *C.mmada_error
	if err := failure(call(p, &buffer, &object), &object); err != nil {
		return nil, err
	}
	return buffer, nil
}

func (g *Generation) text(call func(*C.mmada_generation, **C.mmada_buffer, **C.mmada_error) C.mmada_status) (string, error) {
	buffer, err := g.result(call)
	return takeText(buffer), err
}

func (g *Generation) ids(call func(*C.mmada_generation, **C.mmada_buffer, **C.mmada_error) C.mmada_status) ([]uint32, error) {
	buffer, err := g.result(call)
	return takeIDs(buffer), err
}

// Text is the answer as the model wrote it, without special tokens (with thinking: <think>...</think>answer), or a
// drawing's description. While it is being made, it is what stands before its first mask: that part will not change any
// more. It fails with ErrInvalidArgument for a drawing without thinking.
func (g *Generation) Text() (string, error) {
	return g.text(func(p *C.mmada_generation, text **C.mmada_buffer, object **C.mmada_error) C.mmada_status {
		return C.mmada_generation_text(p, text, object)
	})
}

// Thinking is what the model thought: the part between the tags, or nothing if it set none. Otherwise as Text.
func (g *Generation) Thinking() (string, error) {
	return g.text(func(p *C.mmada_generation, text **C.mmada_buffer, object **C.mmada_error) C.mmada_status {
		return C.mmada_generation_thinking(p, text, object)
	})
}

// Answer is the answer without the thinking. Otherwise as Text.
func (g *Generation) Answer() (string, error) {
	return g.text(func(p *C.mmada_generation, text **C.mmada_buffer, object **C.mmada_error) C.mmada_status {
		return C.mmada_generation_answer(p, text, object)
	})
}

// Description is what a picture with thinking is drawn from: what was thought, or all of the text if the model set no
// tags. It is empty for anything else.
func (g *Generation) Description() (string, error) {
	return g.text(func(p *C.mmada_generation, text **C.mmada_buffer, object **C.mmada_error) C.mmada_status {
		return C.mmada_generation_description(p, text, object)
	})
}

// Warnings are what a user should be told, a sentence each: a prompt that was cut.
func (g *Generation) Warnings() ([]string, error) {
	lines, err := g.text(func(p *C.mmada_generation, text **C.mmada_buffer, object **C.mmada_error) C.mmada_status {
		return C.mmada_generation_warnings(p, text, object)
	})
	if lines == "" {
		return nil, err
	}
	return strings.Split(lines, "\n"), nil
}

// IDs are those of the text, up to the token that ended it or to the first mask. Otherwise as Text.
func (g *Generation) IDs() ([]uint32, error) {
	return g.ids(func(p *C.mmada_generation, ids **C.mmada_buffer, object **C.mmada_error) C.mmada_status {
		return C.mmada_generation_ids(p, ids, object)
	})
}

// Canvas is the positions of the text (of the first picture where there is no text): their ids, Masked where nothing has
// been decided. For showing how an answer comes about.
func (g *Generation) Canvas() ([]uint32, error) {
	return g.ids(func(p *C.mmada_generation, ids **C.mmada_buffer, object **C.mmada_error) C.mmada_status {
		return C.mmada_generation_canvas(p, ids, object)
	})
}

// ImageCanvas is the positions of picture index, row by row: their ids, Masked where nothing has been decided. It fails
// with ErrNotFound if there is no such picture.
func (g *Generation) ImageCanvas(index int) ([]uint32, error) {
	if index < 0 {
		return nil, &Error{Status: ErrNotFound, Message: "there is no picture below 0"}
	}
	return g.ids(func(p *C.mmada_generation, ids **C.mmada_buffer, object **C.mmada_error) C.mmada_status {
		return C.mmada_generation_image_canvas(p, C.size_t(index), ids, object)
	})
}

// Codes are those that picture index has now, row by row; positions that are still masked have the code that was sampled
// last. A code plus the model's ImageOffset is an id. It fails with ErrInvalidArgument if there is no such picture, or no
// step of it has been taken.
func (g *Generation) Codes(index int) ([]uint32, error) {
	if index < 0 {
		return nil, invalid("there is no picture %d", index)
	}
	return g.ids(func(p *C.mmada_generation, ids **C.mmada_buffer, object **C.mmada_error) C.mmada_status {
		return C.mmada_generation_codes(p, C.size_t(index), ids, object)
	})
}

// Image is picture index in pixels: the result or, midway, a preview of it. Computed by every call. When ctx ends, the
// generation is cancelled for good.
//
// It fails with ErrInvalidArgument if there is no such picture, or no step of it has been taken, ErrBusy, ErrCancelled,
// ErrOutOfMemory.
func (g *Generation) Image(ctx context.Context, index int) (*image.RGBA, error) {
	if index < 0 {
		return nil, invalid("there is no picture %d", index)
	}
	var made *C.mmada_image
	defer func() { C.mmada_image_free(made) }()
	err := g.compute(ctx, func(p *C.mmada_generation, object **C.mmada_error) C.mmada_status {
		return C.mmada_generation_image(p, C.size_t(index), &made, object)
	})
	if err != nil {
		return nil, err
	}
	return copyImage(made), nil
}
