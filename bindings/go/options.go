// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada

/*
#include "shim.h"
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// Remasking says which candidates of a step are kept.
type Remasking uint32

const (
	// RemaskLowConfidence keeps the most probable ones: positions of low confidence stay masked.
	RemaskLowConfidence Remasking = C.MMADA_REMASKING_LOW_CONFIDENCE
	// RemaskRandom lets chance decide.
	RemaskRandom Remasking = C.MMADA_REMASKING_RANDOM
)

// String is the name: "low confidence", "random".
func (r Remasking) String() string { return name(uint32(r), "low confidence", "random") }

// Schedule says how many positions of a picture stay masked after every step.
type Schedule uint32

// The schedules, as functions of the share r of the steps that is done.
const (
	ScheduleCosine Schedule = C.MMADA_SCHEDULE_COSINE
	ScheduleLinear Schedule = C.MMADA_SCHEDULE_LINEAR
	// SchedulePower is 1 - r to the power of ImageOptions.SchedulePower.
	SchedulePower   Schedule = C.MMADA_SCHEDULE_POWER
	ScheduleSigmoid Schedule = C.MMADA_SCHEDULE_SIGMOID
)

// String is the name: "cosine", "linear", "power", "sigmoid".
func (s Schedule) String() string { return name(uint32(s), "cosine", "linear", "power", "sigmoid") }

// Confidence says what makes a sampled image code worth keeping.
type Confidence uint32

const (
	// ConfidenceProbability is the code's probability.
	ConfidenceProbability Confidence = C.MMADA_CONFIDENCE_PROBABILITY
	// ConfidenceMargin is how far the position's best code is ahead of its second best.
	ConfidenceMargin Confidence = C.MMADA_CONFIDENCE_MARGIN
)

// String is the name: "probability", "margin".
func (c Confidence) String() string { return name(uint32(c), "probability", "margin") }

func name(value uint32, names ...string) string {
	if int64(value) < int64(len(names)) {
		return names[value]
	}
	return fmt.Sprintf("unknown (%d)", value)
}

// TextOptions says how text is sampled. Get them from [Model.TextOptions], which has what the model's file recommends,
// and change what you like: the zero value is no valid one. They can be used any number of times.
type TextOptions struct {
	// GenLength is the tokens of the answer: a multiple of BlockLength.
	GenLength int
	// Steps are the denoising steps over the whole answer: a multiple of the number of blocks, GenLength / BlockLength.
	Steps int
	// BlockLength is the tokens that are unmasked together, block after block.
	BlockLength int
	// Temperature 0 takes the most probable token; above, Gumbel noise of this scale is added to the logits.
	Temperature float64
	// CFGScale is classifier-free guidance against the answer to a masked prompt; 0 is none. It doubles the work.
	CFGScale float64
	// Seed of the random numbers: the same seed gives the same answer, with any number of threads.
	Seed uint64
	// Stop are texts, none of them empty; the generation ends, and the answer is cut, before the first of them.
	Stop []string
	// Forbid are ids that must not be chosen.
	Forbid []uint32
	// AllowOnly, unless nil, are the ids that alone may be chosen.
	AllowOnly []uint32
	// Remasking says which candidates of a step are kept.
	Remasking Remasking
	// Thinking asks the model to think first; thinking and answer then come back apart.
	Thinking bool
	// Squash resizes a picture that is no square to one, for diagrams and documents, instead of cropping it.
	Squash bool
	// Pinned are positions of the answer that are given, such as the frame of a form that is to be filled in. They are
	// never masked or chosen, no step reports them, and Forbid and AllowOnly do not look at them.
	Pinned []Pin
}

// Pin is a position of an answer that is given from the start.
type Pin struct {
	// Position counts from 0 at the beginning of the answer.
	Position int
	// ID is the token that stands there.
	ID uint32
}

// ImageOptions says how pictures are sampled. Get them from [Model.ImageOptions], which has what the model's file
// recommends, and change what you like: the zero value is no valid one. They can be used any number of times.
type ImageOptions struct {
	// Width and Height in pixels, each a multiple of ModelInfo.ImageDownsampling.
	Width, Height int
	// Count is how many pictures are drawn together: picture i is the one that Seed + i draws alone.
	Count int
	// Steps that drawing takes.
	Steps int
	// MaxTextLength is the tokens that a longer prompt is cut to, two leading special tokens included. Not used with
	// Thinking.
	MaxTextLength int
	// TextLength is, with Thinking, the tokens of prompt and description together.
	TextLength int
	// Seed of the first picture's random numbers.
	Seed uint64
	// Guidance is classifier-free guidance against an empty prompt; 0 is none and halves the work.
	Guidance float32
	// Temperature of the noise in the order in which positions become known; it falls to 0 with the steps.
	Temperature float32
	// SchedulePower is above 0, and used with the schedule SchedulePower only.
	SchedulePower float32
	// Schedule says how many positions stay masked after every step.
	Schedule Schedule
	// Confidence says what makes a sampled code worth keeping.
	Confidence Confidence
	// Thinking thinks out a detailed description first, then draws that.
	Thinking bool
	// Description says how that description is sampled: nil for what the model's file recommends
	// ([Model.DescriptionOptions]), and always nil without Thinking.
	Description *TextOptions
}

// TextOptions are what the model's file recommends for a text: with thinking or without, about a picture or not.
func (m *Model) TextOptions(thinking, aboutImage bool) (TextOptions, error) {
	model, err := m.acquire()
	if err != nil {
		return TextOptions{}, err
	}
	defer m.handle.release()
	var options C.mmada_text_options
	var object *C.mmada_error
	status := C.mmada_text_options_init(&options, C.sizeof_mmada_text_options, model, flag(thinking), flag(aboutImage), &object)
	if err := failure(status, &object); err != nil {
		return TextOptions{}, err
	}
	return textOptions(&options), nil
}

// DescriptionOptions are what the model's file recommends for the description that is thought out before a picture is
// drawn: see [ImageOptions].Description.
func (m *Model) DescriptionOptions() (TextOptions, error) {
	model, err := m.acquire()
	if err != nil {
		return TextOptions{}, err
	}
	defer m.handle.release()
	var options C.mmada_text_options
	var object *C.mmada_error
	status := C.mmada_description_options_init(&options, C.sizeof_mmada_text_options, model, &object)
	if err := failure(status, &object); err != nil {
		return TextOptions{}, err
	}
	return textOptions(&options), nil
}

// ImageOptions are what the model's file recommends for drawing: one picture of the size that the model was trained on,
// with thinking first or without.
func (m *Model) ImageOptions(thinking bool) (ImageOptions, error) {
	model, err := m.acquire()
	if err != nil {
		return ImageOptions{}, err
	}
	defer m.handle.release()
	var from C.mmada_image_options
	var object *C.mmada_error
	status := C.mmada_image_options_init(&from, C.sizeof_mmada_image_options, model, flag(thinking), &object)
	if err := failure(status, &object); err != nil {
		return ImageOptions{}, err
	}
	return ImageOptions{
		Width:         int(from.width),
		Height:        int(from.height),
		Count:         int(from.count),
		Steps:         int(from.steps),
		MaxTextLength: int(from.max_text_length),
		TextLength:    int(from.text_length),
		Seed:          uint64(from.seed),
		Guidance:      float32(from.guidance),
		Temperature:   float32(from.temperature),
		SchedulePower: float32(from.schedule_power),
		Schedule:      Schedule(from.schedule),
		Confidence:    Confidence(from.confidence),
		Thinking:      from.thinking != 0,
	}, nil
}

// textOptions are those that C recommends, which have no arrays.
func textOptions(from *C.mmada_text_options) TextOptions {
	return TextOptions{
		GenLength:   int(from.gen_length),
		Steps:       int(from.steps),
		BlockLength: int(from.block_length),
		Temperature: float64(from.temperature),
		CFGScale:    float64(from.cfg_scale),
		Seed:        uint64(from.seed),
		Remasking:   Remasking(from.remasking),
		Thinking:    from.thinking != 0,
		Squash:      from.squash != 0,
	}
}

// textOptions are the options in C; NULL for nil.
func (c *converter) textOptions(from *TextOptions) *C.mmada_text_options {
	if from == nil {
		return nil
	}
	to := new(C.mmada_text_options)
	C.mmada_text_options_init(to, C.sizeof_mmada_text_options, nil, 0, 0, nil)
	c.pinner.Pin(to)
	to.gen_length = c.size("GenLength", from.GenLength)
	to.steps = c.size("Steps", from.Steps)
	to.block_length = c.size("BlockLength", from.BlockLength)
	to.temperature = C.double(from.Temperature)
	to.cfg_scale = C.double(from.CFGScale)
	to.seed = C.uint64_t(from.Seed)
	to.remasking = C.uint32_t(from.Remasking)
	to.thinking = flag(from.Thinking)
	to.squash = flag(from.Squash)
	to.forbid, to.forbid_count = c.ids(from.Forbid)
	to.allow_only, to.allow_only_count = nil, 0
	if from.AllowOnly != nil {
		to.allow_only, to.allow_only_count = c.ids(from.AllowOnly)
	}
	stop := make([]C.mmada_string, len(from.Stop))
	for i, text := range from.Stop {
		stop[i].data, stop[i].length = c.text(text)
	}
	to.stop, to.stop_count = (*C.mmada_string)(pinned(c, stop)), C.size_t(len(stop))
	pins := make([]C.mmada_pin, len(from.Pinned))
	for i, pin := range from.Pinned {
		pins[i] = C.mmada_pin{position: c.size("the position of a pin", pin.Position), id: C.uint32_t(pin.ID)}
	}
	to.pinned, to.pinned_count = (*C.mmada_pin)(pinned(c, pins)), C.size_t(len(pins))
	return to
}

// imageOptions are the options in C; NULL for nil.
func (c *converter) imageOptions(from *ImageOptions) *C.mmada_image_options {
	if from == nil {
		return nil
	}
	to := new(C.mmada_image_options)
	C.mmada_image_options_init(to, C.sizeof_mmada_image_options, nil, 0, nil)
	to.width = c.size("Width", from.Width)
	to.height = c.size("Height", from.Height)
	to.count = c.size("Count", from.Count)
	to.steps = c.size("Steps", from.Steps)
	to.max_text_length = c.size("MaxTextLength", from.MaxTextLength)
	to.text_length = c.size("TextLength", from.TextLength)
	to.seed = C.uint64_t(from.Seed)
	to.guidance = C.float(from.Guidance)
	to.temperature = C.float(from.Temperature)
	to.schedule_power = C.float(from.SchedulePower)
	to.schedule = C.uint32_t(from.Schedule)
	to.confidence = C.uint32_t(from.Confidence)
	to.thinking = flag(from.Thinking)
	return to
}

// messages are those of a chat in C.
func (c *converter) messages(from []Message) (*C.mmada_message, C.size_t) {
	to := make([]C.mmada_message, len(from))
	for i, message := range from {
		to[i].content, to[i].content_length = c.text(message.Content)
		to[i].role = C.uint32_t(message.Role)
		if message.Image != nil {
			to[i].image = c.image(message.Image)
		}
	}
	return (*C.mmada_message)(unsafe.Pointer(pinned(c, to))), C.size_t(len(to))
}
