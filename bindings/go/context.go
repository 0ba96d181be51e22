// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada

/*
#include "shim.h"
*/
import "C"

import (
	"context"
	"image"
	"log/slog"
	"math"
	"runtime"
	"time"
)

// Compute says how exact products are.
type Compute uint32

const (
	// ComputeFast takes 8- and 16-bit products wherever they do not change answers noticeably.
	ComputeFast Compute = C.MMADA_COMPUTE_FAST
	// ComputeExact has float weights meet float activations in 32-bit arithmetic.
	ComputeExact Compute = C.MMADA_COMPUTE_EXACT
)

// String is the name: "fast", "exact".
func (c Compute) String() string { return name(uint32(c), "fast", "exact") }

// ContextOptions say how a context runs its model. The zero value has the defaults.
type ContextOptions struct {
	// Threads of the context's own; 0 for one per core. Results do not depend on it.
	Threads int
	// MemoryLimit is the bytes of buffers that the context and its generations may have at a time; a request that needs
	// more fails with ErrOutOfMemory. The mapped model, the tokenizer, and small things are not counted. 0: no limit.
	MemoryLimit uint64
	// InstructionSet is empty for the best that the processor has, or one by name: "portable", "avx2", "avx512", "neon" and so on.
	InstructionSet string
	// Compute says how exact products are.
	Compute Compute
	// Pack keeps the weights unpacked in memory (PackedBytes of ContextInfo, which count against MemoryLimit): several
	// times as fast where few tokens run at a time, with the same answers. Making the context then takes the time to
	// read the whole file.
	Pack bool
	// Device is where the model runs: empty or "cpu" for the processor, "cuda" or "cuda:0" for the first graphics card of
	// NVIDIA's, "cuda:1" for the second, "auto" for the first card that can, or else the processor, which Logger is told.
	Device string
	// GPULayers is how many of the network's blocks run on the graphics card, the last ones and the output; nil for as
	// many as there is memory for.
	GPULayers *int
	// Progress, unless nil, is told how much of the weights has been copied to a graphics card, before NewContext returns
	// and never after. An error stops, and NewContext fails with an ErrCancelled that wraps it.
	Progress func(done, total uint64) error
	// Logger, unless nil, is told what happens, at its own level: warnings, a few lines of information about every
	// request, and for debugging what every step took. Its handler gets the context.Context of the call that it is about,
	// and must not use this context or its generations: those fail with ErrBusy. As with slog, the handler's errors are
	// dropped; a panic of it stops the call.
	Logger *slog.Logger
}

// Context is the threads and buffers that run a model. One call at a time uses the buffers: a second one meanwhile
// fails with ErrBusy. Generations of one context may take turns, step by step. Generations keep what they need of their
// context: it may be closed before them, and its threads end with the last of them.
type Context struct {
	handle  *handle[*C.mmada_context]
	info    ModelInfo
	log     *sink
	cleanup runtime.Cleanup
}

func newContext(made *C.mmada_context, info ModelInfo, log *sink, holds []*shared) *Context {
	free := func(p *C.mmada_context) { C.mmada_context_free(p) }
	c := &Context{handle: newHandle("context", made, free, holds...), info: info, log: log}
	c.cleanup = runtime.AddCleanup(c, func(h *handle[*C.mmada_context]) { h.close(nil) }, c.handle)
	return c
}

// Close closes the context. Its generations go on. It always returns nil.
func (c *Context) Close() error {
	c.cleanup.Stop()
	c.handle.close(nil)
	return nil
}

// acquire gives the context until c.handle.release is called; see Model.acquire.
func (c *Context) acquire() (*C.mmada_context, error) {
	defer runtime.KeepAlive(c)
	return c.handle.acquire()
}

// ContextInfo is what a context is.
type ContextInfo struct {
	// Threads that it has.
	Threads int
	// MemoryUsed is the bytes of buffers that it and its generations have now.
	MemoryUsed uint64
	// InstructionSet in use.
	InstructionSet string
	// Compute says how exact products are.
	Compute Compute
	// PackedBytes is what its weights take when they are packed, whether or not they are.
	PackedBytes uint64
	// Device is what it runs on: "cpu", or a graphics card with its name, such as "cuda:0 (NVIDIA H100 80GB HBM3)".
	Device string
	// GPULayers is how many of the network's blocks run on a graphics card; 0 on the processor.
	GPULayers int
}

// Info is what the context is.
func (c *Context) Info() (ContextInfo, error) {
	p, err := c.acquire()
	if err != nil {
		return ContextInfo{}, err
	}
	defer c.handle.release()
	var info C.mmada_context_info
	var object *C.mmada_error
	C.mmada_context_info_init(&info, C.sizeof_mmada_context_info)
	if err := failure(C.mmada_context_get_info(p, &info, &object), &object); err != nil {
		return ContextInfo{}, err
	}
	return ContextInfo{
		Threads:        int(info.threads),
		MemoryUsed:     uint64(info.memory_used),
		InstructionSet: C.GoString(&info.instruction_set[0]),
		Compute:        Compute(info.compute),
		PackedBytes:    uint64(info.packed_bytes),
		Device:         C.GoString(&info.device[0]),
		GPULayers:      int(info.gpu_layers),
	}, nil
}

// Duration is about how long an estimate takes on the context's threads. It measures a product now, which takes
// milliseconds on a small model and up to a second on a large one.
func (c *Context) Duration(estimate Estimate) (time.Duration, error) {
	p, err := c.acquire()
	if err != nil {
		return 0, err
	}
	defer c.handle.release()
	var from C.mmada_estimate
	C.mmada_estimate_init(&from, C.sizeof_mmada_estimate)
	from.weight_bytes = C.uint64_t(estimate.WeightBytes)
	from.scratch_bytes = C.uint64_t(estimate.ScratchBytes)
	from.multiply_adds = C.uint64_t(estimate.MultiplyAdds)
	from.tokens = C.uint64_t(estimate.Tokens)
	var seconds C.double
	var object *C.mmada_error
	c.log.during(context.Background(), nil, func() {
		err = failure(C.mmada_context_estimate_seconds(p, &from, &seconds, &object), &object)
	})
	if nanoseconds := float64(seconds) * float64(time.Second); err != nil || nanoseconds < math.MaxInt64 {
		return time.Duration(nanoseconds), err
	}
	return math.MaxInt64, nil
}

// Ask answers a question, about a picture unless that is nil, as the model's file recommends. See [Context.BeginText]
// for conversations, options, and answers that are shown while they come about.
func (c *Context) Ask(ctx context.Context, question string, picture image.Image) (string, error) {
	generation, err := c.BeginText([]Message{UserImage(question, picture)}, nil)
	if err != nil {
		return "", err
	}
	defer generation.Close()
	if err := generation.Run(ctx, nil); err != nil {
		return "", err
	}
	return generation.Answer()
}

// Draw draws one picture of what the prompt says. options may be nil for what the model's file recommends. See
// [Context.BeginImage] for several pictures, and for those that are shown while they come about.
func (c *Context) Draw(ctx context.Context, prompt string, options *ImageOptions) (*image.RGBA, error) {
	if options != nil && options.Count != 1 {
		return nil, invalid("Count is %d, but Draw draws one picture (BeginImage draws several)", options.Count)
	}
	generation, err := c.BeginImage(prompt, options)
	if err != nil {
		return nil, err
	}
	defer generation.Close()
	if err := generation.Run(ctx, nil); err != nil {
		return nil, err
	}
	return generation.Image(ctx, 0)
}

// BeginText begins an answer to a chat. options may be nil for what the model's file recommends, without thinking.
// Nothing is computed before the first step.
//
// It fails with ErrInvalidArgument for options that cannot be or no messages, ErrContextOverflow if prompt and answer do
// not fit, ErrUnsupported for a picture that the model cannot see or a second one, ErrBadImage, ErrInvalidUTF8,
// ErrBadFormat if the file's tokenizer or chat template is damaged, ErrOutOfMemory.
func (c *Context) BeginText(messages []Message, options *TextOptions) (*Generation, error) {
	return c.begin(func(to *converter) beginning {
		given := to.textOptions(options)
		chat, count := to.messages(messages)
		return func(p *C.mmada_context, made **C.mmada_generation, object **C.mmada_error) C.mmada_status {
			return C.mmada_context_begin_text(p, given, chat, count, made, object)
		}
	})
}

// BeginTextIDs begins an answer to a prompt of ids, each below the model's Vocabulary: for callers who build prompts
// themselves ([Model.PromptIDs], [Model.Tokenize]). The options' Thinking must be false: it would shape the prompt.
// Otherwise as BeginText.
func (c *Context) BeginTextIDs(prompt []uint32, options *TextOptions) (*Generation, error) {
	return c.begin(func(to *converter) beginning {
		given := to.textOptions(options)
		ids, count := to.ids(prompt)
		return func(p *C.mmada_context, made **C.mmada_generation, object **C.mmada_error) C.mmada_status {
			return C.mmada_context_begin_text_ids(p, given, ids, count, made, object)
		}
	})
}

// BeginImage begins a picture, or several, of what the prompt says. options may be nil for what the model's file
// recommends: one picture, without thinking. Nothing is computed before the first step.
//
// It fails with ErrInvalidArgument for options that cannot be, ErrContextOverflow if prompt and picture do not fit,
// ErrUnsupported for a model that cannot draw, ErrBadFormat if the file's tokenizer is damaged, ErrInvalidUTF8,
// ErrOutOfMemory.
func (c *Context) BeginImage(prompt string, options *ImageOptions) (*Generation, error) {
	return c.begin(func(to *converter) beginning {
		given := to.imageOptions(options)
		var description *C.mmada_text_options
		if options != nil {
			description = to.textOptions(options.Description)
		}
		text, length := to.text(prompt)
		return func(p *C.mmada_context, made **C.mmada_generation, object **C.mmada_error) C.mmada_status {
			return C.mmada_context_begin_image(p, given, description, text, length, made, object)
		}
	})
}

// BeginImageIDs begins a picture, or several, from prompts that are ids already: prompt is everything before the
// picture, unconditional the same of the empty prompt, which is not looked at without guidance. The options' Thinking
// must be false. Otherwise as BeginImage.
func (c *Context) BeginImageIDs(prompt, unconditional []uint32, options *ImageOptions) (*Generation, error) {
	return c.begin(func(to *converter) beginning {
		given := to.imageOptions(options)
		if options != nil && options.Description != nil && to.err == nil {
			to.err = invalid("Description says how a description is thought out, which a prompt of ids has no place for")
		}
		ids, count := to.ids(prompt)
		others, otherCount := to.ids(unconditional)
		return func(p *C.mmada_context, made **C.mmada_generation, object **C.mmada_error) C.mmada_status {
			return C.mmada_context_begin_image_ids(p, given, ids, count, others, otherCount, made, object)
		}
	})
}

// beginning is the call that begins a generation.
type beginning func(*C.mmada_context, **C.mmada_generation, **C.mmada_error) C.mmada_status

func (c *Context) begin(prepare func(*converter) beginning) (*Generation, error) {
	p, err := c.acquire()
	if err != nil {
		return nil, err
	}
	defer c.handle.release()
	var to converter
	defer to.done()
	call := prepare(&to)
	if to.err != nil {
		return nil, to.err
	}
	var made *C.mmada_generation
	var object *C.mmada_error
	kept := false
	defer func() {
		if !kept {
			C.mmada_generation_free(made)
		}
	}()
	c.log.during(context.Background(), nil, func() { err = failure(call(p, &made, &object), &object) })
	if err != nil {
		return nil, err
	}
	kept = true
	return newGeneration(made, c.log, c.handle.holds), nil
}

// Logits runs the network once on a sequence of ids, masks included, and gives the logits of the positions rows, in this
// order, for the ids from begin up to and without end: a slice for each row.
//
// It fails with ErrInvalidArgument for an empty sequence, or ids, rows or a range outside the model,
// ErrContextOverflow, ErrBusy, ErrCancelled, ErrOutOfMemory.
func (c *Context) Logits(ctx context.Context, ids []uint32, rows []int, begin, end uint32) ([][]float32, error) {
	if begin > end || int64(end) > int64(c.info.Vocabulary) {
		return nil, invalid("the range %d..%d is none of the vocabulary of %d ids", begin, end, c.info.Vocabulary)
	}
	width := int(end - begin)
	if width > 0 && len(rows) > math.MaxInt/8/width {
		return nil, invalid("%d rows of %d logits are more than memory can be", len(rows), width)
	}
	logits := make([]float32, len(rows)*width)
	err := c.compute(ctx, func(to *converter, p *C.mmada_context, stop *C.mmada_canceller, object **C.mmada_error) C.mmada_status {
		positions := make([]C.size_t, len(rows))
		for i, row := range rows {
			positions[i] = to.size("a row", row)
		}
		sequence, count := to.ids(ids)
		if to.err != nil {
			return C.MMADA_OK
		}
		return C.mmada_context_forward(p, sequence, count, (*C.size_t)(pinned(to, positions)), C.size_t(len(positions)),
			C.uint32_t(begin), C.uint32_t(end), (*C.float)(pinned(to, logits)), C.size_t(len(logits)), stop, object)
	})
	if err != nil {
		return nil, err
	}
	split := make([][]float32, len(rows))
	for i := range split {
		split[i] = logits[i*width : (i+1)*width : (i+1)*width]
	}
	return split, nil
}

// ScoreOptions say how a score is estimated. The zero value has the defaults.
type ScoreOptions struct {
	// Samples is how many random maskings of the answer are averaged, each of which runs the network over prompt and
	// answer; 0 for the default, 128. One is enough for an answer of one token.
	Samples int
	// Seed of the maskings: the same seed gives the same score.
	Seed uint64
	// CFGScale is classifier-free guidance against the masked prompt; 0 is none. It doubles the work.
	CFGScale float64
}

// Score is how likely an answer is.
type Score struct {
	// LogLikelihood is the estimate of a lower bound on ln p(answer | prompt), in nats; at most 0.
	LogLikelihood float64
	// PerToken is the same divided by the answer's tokens.
	PerToken float64
	// Samples is how many maskings were averaged.
	Samples int
}

// Score tells how likely the ids of an answer are after those of a prompt ([Model.PromptIDs] makes them of a chat).
// options may be nil for the defaults.
//
// It fails with ErrInvalidArgument for an empty answer, a mask in it, or ids outside the vocabulary,
// ErrContextOverflow, ErrBusy, ErrCancelled, ErrOutOfMemory.
func (c *Context) Score(ctx context.Context, prompt, answer []uint32, options *ScoreOptions) (Score, error) {
	var score C.mmada_score
	C.mmada_score_init(&score, C.sizeof_mmada_score)
	err := c.compute(ctx, func(to *converter, p *C.mmada_context, stop *C.mmada_canceller, object **C.mmada_error) C.mmada_status {
		var given C.mmada_score_options
		C.mmada_score_options_init(&given, C.sizeof_mmada_score_options)
		given.canceller = stop
		if options != nil {
			given.seed, given.cfg_scale = C.uint64_t(options.Seed), C.double(options.CFGScale)
			if options.Samples != 0 {
				given.samples = to.size("Samples", options.Samples)
			}
		}
		before, beforeCount := to.ids(prompt)
		after, afterCount := to.ids(answer)
		if to.err != nil {
			return C.MMADA_OK
		}
		return C.mmada_context_score(p, &given, before, beforeCount, after, afterCount, &score, object)
	})
	if err != nil {
		return Score{}, err
	}
	return Score{float64(score.log_likelihood), float64(score.per_token), int(score.samples)}, nil
}

// compute makes a call that ctx can stop.
func (c *Context) compute(ctx context.Context, call func(*converter, *C.mmada_context, *C.mmada_canceller, **C.mmada_error) C.mmada_status) error {
	if err := checkContext(ctx); err != nil {
		return err
	}
	p, err := c.acquire()
	if err != nil {
		return err
	}
	defer c.handle.release()
	if causes := causes(ctx); causes != nil {
		return because(&Error{Status: ErrCancelled, Message: "the call was cancelled"}, causes)
	}
	var stop *C.mmada_canceller
	var object *C.mmada_error
	if err := failure(C.mmada_canceller_new(&stop, &object), &object); err != nil {
		return err
	}
	canceller := newHandle("call", stop, func(p *C.mmada_canceller) { C.mmada_canceller_free(p) })
	defer canceller.close(nil)
	cancel := func() {
		if p, err := canceller.acquire(); err == nil {
			C.mmada_canceller_cancel(p)
			canceller.release()
		}
	}
	defer context.AfterFunc(ctx, cancel)()
	var to converter
	defer to.done()
	c.log.during(ctx, cancel, func() { err = failure(call(&to, p, stop, &object), &object) })
	if err != nil {
		return because(err, causes(ctx))
	}
	return to.err
}

// EncodeImage gives the codes of a picture, row by row, by the model's image tokenizer. Its sides must be multiples of
// the model's ImageDownsampling. A code plus the model's ImageOffset is an id.
//
// It fails with ErrInvalidArgument for other sides, ErrUnsupported for a model without an image tokenizer, ErrBadImage,
// ErrOutOfMemory.
func (c *Context) EncodeImage(picture image.Image) ([]uint32, error) {
	p, err := c.acquire()
	if err != nil {
		return nil, err
	}
	defer c.handle.release()
	var to converter
	defer to.done()
	pixels := to.image(picture)
	if to.err != nil {
		return nil, to.err
	}
	var codes *C.mmada_buffer
	var object *C.mmada_error
	defer func() { C.mmada_buffer_free(codes) }()
	c.log.during(context.Background(), nil, func() {
		err = failure(C.mmada_context_encode_image(p, pixels, &codes, &object), &object)
	})
	if err != nil {
		return nil, err
	}
	ids := takeIDs(codes)
	codes = nil
	return ids, nil
}

// DecodeImage gives the picture of columns times as many rows as there are codes for, given row by row; its sides in
// pixels are the model's ImageDownsampling times that.
//
// It fails with ErrInvalidArgument for codes that fill no rows or one outside the codebook, ErrUnsupported for a model
// without an image tokenizer, ErrOutOfMemory.
func (c *Context) DecodeImage(codes []uint32, columns int) (*image.RGBA, error) {
	p, err := c.acquire()
	if err != nil {
		return nil, err
	}
	defer c.handle.release()
	if columns <= 0 || len(codes) == 0 || len(codes)%columns != 0 {
		return nil, invalid("%d codes do not fill rows of %d", len(codes), columns)
	}
	var to converter
	defer to.done()
	ids, count := to.ids(codes)
	var made *C.mmada_image
	var object *C.mmada_error
	defer func() { C.mmada_image_free(made) }()
	c.log.during(context.Background(), nil, func() {
		status := C.mmada_context_decode_image(p, ids, count, C.size_t(columns), C.size_t(len(codes)/columns), &made, &object)
		err = failure(status, &object)
	})
	if err != nil {
		return nil, err
	}
	return copyImage(made), nil
}
