// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada

/*
#include "shim.h"
#include <stdlib.h>
*/
import "C"

import (
	"context"
	"fmt"
	"image"
	"io/fs"
	"os"
	"runtime"
	"runtime/cgo"
	"unsafe"
)

// Version is that of the C library that is running, such as "0.1.0".
func Version() string { return C.GoString(C.mmada_version()) }

// BuildInfo is what the C library was built as: version, platform, "release" or "debug", optional parts.
func BuildInfo() string { return C.GoString(C.mmada_build_info()) }

// Device is what the library can run on.
type Device struct {
	// Backend that runs it: "cpu" or "cuda".
	Backend string
	// Name is what its maker calls it.
	Name string
	// InstructionSets that there are kernels for, the slowest first, with spaces between.
	InstructionSets string
	// MemoryBytes that it works in, free or not; 0 where the system does not tell.
	MemoryBytes uint64
	// ID is what ContextOptions.Device takes: "cpu", "cuda:0".
	ID string
	// ComputeCapability of a graphics card, major and minor; zeros for a processor.
	ComputeCapability [2]int
	// Refusal says why models do not run on it; empty where they do.
	Refusal string
}

// Devices are those that the library finds on this machine.
func Devices() ([]Device, error) {
	var count C.size_t
	var object *C.mmada_error
	if err := failure(C.mmada_device_count(&count, &object), &object); err != nil {
		return nil, err
	}
	devices := make([]Device, count)
	for i := range devices {
		var info C.mmada_device_info
		C.mmada_device_info_init(&info, C.sizeof_mmada_device_info)
		if err := failure(C.mmada_device_get_info(C.size_t(i), &info, &object), &object); err != nil {
			return nil, err
		}
		devices[i] = Device{
			Backend:         C.GoString(&info.backend[0]),
			Name:            C.GoString(&info.name[0]),
			InstructionSets: C.GoString(&info.instruction_sets[0]),
			MemoryBytes:     uint64(info.memory_bytes),
			ID:              C.GoString(&info.id[0]),
			Refusal:         C.GoString(&info.refusal[0]),
			ComputeCapability: [2]int{
				int(info.compute_capability_major), int(info.compute_capability_minor),
			},
		}
	}
	return devices, nil
}

// Unavailable is why a backend ("cpu", "cuda") finds no devices on this machine; empty if it finds some. It fails with
// ErrNotFound for another name.
func Unavailable(backend string) (string, error) {
	var c converter
	defer c.done()
	name, length := c.text(backend)
	var reason *C.mmada_buffer
	var object *C.mmada_error
	if err := failure(C.mmada_backend_unavailable(name, length, &reason, &object), &object); err != nil {
		return "", err
	}
	return takeText(reason), nil
}

// Role is who says a message.
type Role uint32

// The roles of a chat.
const (
	RoleSystem    Role = C.MMADA_ROLE_SYSTEM
	RoleUser      Role = C.MMADA_ROLE_USER
	RoleAssistant Role = C.MMADA_ROLE_ASSISTANT
)

// String is the name: "system", "user", "assistant".
func (r Role) String() string { return name(uint32(r), "system", "user", "assistant") }

// Message is one turn of a chat.
type Message struct {
	// Role is who says it.
	Role Role
	// Content is UTF-8; white space at both ends is dropped. What looks like a special token is ordinary text.
	Content string
	// Image is nil, or the picture that the chat is about. Only one message of a chat may have one, and the model sees it
	// before the whole chat, whichever that message is. Alpha is dropped: the colors count that lie beneath.
	Image image.Image
}

// System is a message that says how to answer.
func System(content string) Message { return Message{Role: RoleSystem, Content: content} }

// User is a message to the model.
func User(content string) Message { return Message{Role: RoleUser, Content: content} }

// UserImage is a message to the model about a picture.
func UserImage(content string, picture image.Image) Message {
	return Message{Role: RoleUser, Content: content, Image: picture}
}

// Assistant is an earlier answer of the model.
func Assistant(content string) Message { return Message{Role: RoleAssistant, Content: content} }

// OpenOptions say how a model file is brought into memory. The zero value maps it.
type OpenOptions struct {
	// NoMap reads all of the file into memory. Otherwise it is mapped: opening takes milliseconds, pages come in when
	// they are used, and processes share them; nobody may change or cut off the file meanwhile.
	NoMap bool
	// Progress, unless nil, is told how much of the file has been read, before the function that opens it returns and
	// never after. An error stops, and opening fails with an ErrCancelled that wraps it. A mapped file is not read, so
	// there is one call, when it is open.
	Progress func(done, total uint64) error
}

// Model is an opened and checked model file. It never changes, so any number of goroutines and contexts may use it at
// once. Contexts and generations keep what they need of it: it may be closed before them.
type Model struct {
	handle  *handle[*C.mmada_model]
	cleanup runtime.Cleanup
}

// Open opens a GGUF file and checks its metadata and the names, shapes and extents of its tensors. Of a split file any
// part may be named. options may be nil.
//
// It fails with ErrIO, ErrBadFormat (damaged or cut off), ErrUnsupported (another architecture), ErrOutOfMemory, or
// ErrCancelled (by the progress function).
func Open(path string, options *OpenOptions) (*Model, error) {
	var c converter
	defer c.done()
	name, length := c.text(path)
	return open(options, func(options *C.mmada_open_options, model **C.mmada_model, object **C.mmada_error) C.mmada_status {
		return C.mmada_model_open(name, length, options, model, object)
	})
}

// OpenFile opens the model file behind an open file, from its beginning, as [Open] does. The file stays the caller's,
// who may close it after the call. A split file cannot be opened this way.
func OpenFile(file *os.File, options *OpenOptions) (*Model, error) {
	connection, err := file.SyscallConn()
	if err != nil {
		return nil, &Error{Status: ErrIO, Message: "the file cannot be used: " + err.Error(), causes: []error{err}}
	}
	var c converter
	defer c.done()
	name, length := c.text(file.Name())
	var model *Model
	var failed error
	err = connection.Control(func(descriptor uintptr) {
		model, failed = open(options, func(options *C.mmada_open_options, model **C.mmada_model, object **C.mmada_error) C.mmada_status {
			return C.mmada_model_open_fd(C.int(descriptor), name, length, options, model, object)
		})
	})
	if err != nil { // the one reason for which no descriptor is given
		return nil, &Error{Status: ErrIO, Message: fmt.Sprintf("%s: %v", file.Name(), err), causes: []error{err, fs.ErrClosed}}
	}
	return model, failed
}

// OpenBytes opens a model file in memory, such as an embedded one. name stands for the path in messages. The bytes are
// copied: C cannot keep pointers into Go's memory. Otherwise as [Open].
func OpenBytes(name string, data []byte) (*Model, error) {
	memory := C.mmada_go_allocate(C.size_t(len(data)))
	if memory == nil {
		return nil, &Error{Status: ErrOutOfMemory, Message: fmt.Sprintf("%s: no memory for %d bytes", name, len(data))}
	}
	copy(unsafe.Slice((*byte)(memory), len(data)), data)
	copied := newShared(func() { C.free(memory) })
	defer copied.release()
	var c converter
	defer c.done()
	text, length := c.text(name)
	var model *C.mmada_model
	var object *C.mmada_error
	status := C.mmada_model_open_memory((*C.uint8_t)(memory), C.size_t(len(data)), text, length, &model, &object)
	if err := failure(status, &object); err != nil {
		return nil, err
	}
	return newModel(model, copied), nil
}

func open(from *OpenOptions, call func(*C.mmada_open_options, **C.mmada_model, **C.mmada_error) C.mmada_status) (*Model, error) {
	var options C.mmada_open_options
	C.mmada_open_options_init(&options, C.sizeof_mmada_open_options)
	reports := &progress{}
	if from != nil {
		options.use_mmap = flag(!from.NoMap)
		if reports.report = from.Progress; reports.report != nil {
			handle := cgo.NewHandle(reports)
			defer handle.Delete()
			C.mmada_go_set_progress(&options, C.uintptr_t(handle))
		}
	}
	var model *C.mmada_model
	var object *C.mmada_error
	err := failure(call(&options, &model, &object), &object)
	if reports.failed != nil {
		C.mmada_model_free(model)
		reports.raise()
	}
	if err != nil {
		if reports.err != nil {
			err = because(err, []error{reports.err})
		}
		return nil, err
	}
	return newModel(model), nil
}

func newModel(model *C.mmada_model, holds ...*shared) *Model {
	m := &Model{handle: newHandle("model", model, func(p *C.mmada_model) { C.mmada_model_free(p) }, holds...)}
	m.cleanup = runtime.AddCleanup(m, func(h *handle[*C.mmada_model]) { h.close(nil) }, m.handle)
	return m
}

// Close closes the model. Contexts and generations made with it go on. It always returns nil.
func (m *Model) Close() error {
	m.cleanup.Stop()
	m.handle.close(nil)
	return nil
}

// acquire gives the model until m.handle.release is called. m itself must live until it does: a model that nobody else
// keeps would be cleaned up between reading m.handle and using it.
func (m *Model) acquire() (*C.mmada_model, error) {
	defer runtime.KeepAlive(m)
	return m.handle.acquire()
}

// ModelInfo is what a model is.
type ModelInfo struct {
	// FileBytes is the size of the file.
	FileBytes int
	// ContextLength is the most positions of one sequence, prompt and answer together.
	ContextLength int
	// Layers of the network.
	Layers int
	// DModel is the width of the residual stream.
	DModel int
	// Vocabulary is what ids are below.
	Vocabulary int
	// TextVocabulary is what the ids of text are below; the tokenizer knows these.
	TextVocabulary int
	// ImageOffset is the id of image code 0.
	ImageOffset int
	// ImageCodes is the size of the codebook; 0 for a model without pictures.
	ImageCodes int
	// ImageSize is the pixels of a side of the pictures that the model was trained on; 0 without an image tokenizer.
	ImageSize int
	// ImageDownsampling is the pixels of a side of one image code: widths and heights are multiples of it. 0 without an
	// image tokenizer.
	ImageDownsampling int
	// HasImages says that the model can see and draw pictures.
	HasImages bool
	// BOS begins a prompt, EOS ends a text, EOT ends a turn of a chat, Mask is what is to be filled in.
	BOS, EOS, EOT, Mask uint32
}

// Info is what the model is.
func (m *Model) Info() (ModelInfo, error) {
	model, err := m.acquire()
	if err != nil {
		return ModelInfo{}, err
	}
	defer m.handle.release()
	return modelInfo(model)
}

func modelInfo(model *C.mmada_model) (ModelInfo, error) {
	var info C.mmada_model_info
	var object *C.mmada_error
	C.mmada_model_info_init(&info, C.sizeof_mmada_model_info)
	if err := failure(C.mmada_model_get_info(model, &info, &object), &object); err != nil {
		return ModelInfo{}, err
	}
	return ModelInfo{
		FileBytes:         int(info.file_bytes),
		ContextLength:     int(info.context_length),
		Layers:            int(info.layers),
		DModel:            int(info.d_model),
		Vocabulary:        int(info.vocabulary),
		TextVocabulary:    int(info.text_vocabulary),
		ImageOffset:       int(info.image_offset),
		ImageCodes:        int(info.image_codes),
		ImageSize:         int(info.image_size),
		ImageDownsampling: int(info.image_downsampling),
		HasImages:         info.has_images != 0,
		BOS:               uint32(info.bos_id),
		EOS:               uint32(info.eos_id),
		EOT:               uint32(info.eot_id),
		Mask:              uint32(info.mask_id),
	}, nil
}

// MetadataKeys are the keys of the file's metadata, such as "general.name", in the order of the file.
func (m *Model) MetadataKeys() ([]string, error) {
	model, err := m.acquire()
	if err != nil {
		return nil, err
	}
	defer m.handle.release()
	var count C.size_t
	var object *C.mmada_error
	if err := failure(C.mmada_model_metadata_count(model, &count, &object), &object); err != nil {
		return nil, err
	}
	keys := make([]string, count)
	for i := range keys {
		var key *C.mmada_buffer
		if err := failure(C.mmada_model_metadata_key(model, C.size_t(i), &key, &object), &object); err != nil {
			return nil, err
		}
		keys[i] = takeText(key)
	}
	return keys, nil
}

// Metadata is the value of a metadata key: a string as it is, anything else as JSON (numbers, true and false, arrays).
// It fails with ErrNotFound for a missing key.
func (m *Model) Metadata(key string) (string, error) {
	model, err := m.acquire()
	if err != nil {
		return "", err
	}
	defer m.handle.release()
	var c converter
	defer c.done()
	text, length := c.text(key)
	var value *C.mmada_buffer
	var object *C.mmada_error
	if err := failure(C.mmada_model_metadata(model, text, length, &value, &object), &object); err != nil {
		return "", err
	}
	return takeText(value), nil
}

// Tokenize gives the ids of a text. Without parseSpecial, as for anything that a user supplies, text that looks like a
// special token is ordinary text; with it it becomes that token. No token is added at either end. The first call (or
// the first text that is begun) builds the tokenizer, which takes a moment for a large vocabulary.
//
// It fails with ErrInvalidArgument for a text above 1 MiB, and with ErrInvalidUTF8.
func (m *Model) Tokenize(text string, parseSpecial bool) ([]uint32, error) {
	model, err := m.acquire()
	if err != nil {
		return nil, err
	}
	defer m.handle.release()
	var c converter
	defer c.done()
	data, length := c.text(text)
	var ids *C.mmada_buffer
	var object *C.mmada_error
	status := C.mmada_model_tokenize(model, data, length, flag(parseSpecial), &ids, &object)
	if err := failure(status, &object); err != nil {
		return nil, err
	}
	return takeIDs(ids), nil
}

// Detokenize gives the text of ids. Ids that are no text (image codes, unused rows) are left out, and with skipSpecial
// so are special tokens. Bytes that are not UTF-8, such as a character cut in half, become U+FFFD.
func (m *Model) Detokenize(ids []uint32, skipSpecial bool) (string, error) {
	model, err := m.acquire()
	if err != nil {
		return "", err
	}
	defer m.handle.release()
	var c converter
	defer c.done()
	data, count := c.ids(ids)
	var text *C.mmada_buffer
	var object *C.mmada_error
	status := C.mmada_model_detokenize(model, data, count, flag(skipSpecial), &text, &object)
	if err := failure(status, &object); err != nil {
		return "", err
	}
	return takeText(text), nil
}

// PromptIDs gives the ids of a chat, up to where the answer begins: what [Context.BeginText] puts before the answer if
// there is no picture. With thinking the instruction to think first is part of it. For counting tokens, for
// [Context.Score], and for callers who change the prompt ([Context.BeginTextIDs]).
//
// It fails with ErrInvalidArgument for no messages or thinking without a message of the user, ErrUnsupported for a
// message with a picture, ErrBadFormat if the file's tokenizer or chat template is damaged.
func (m *Model) PromptIDs(messages []Message, thinking bool) ([]uint32, error) {
	model, err := m.acquire()
	if err != nil {
		return nil, err
	}
	defer m.handle.release()
	var c converter
	defer c.done()
	chat, count := c.messages(messages)
	if c.err != nil {
		return nil, c.err
	}
	var ids *C.mmada_buffer
	var object *C.mmada_error
	status := C.mmada_model_prompt_ids(model, chat, count, flag(thinking), &ids, &object)
	if err := failure(status, &object); err != nil {
		return nil, err
	}
	return takeIDs(ids), nil
}

// Estimate is what a request will take. Bounds: an answer may end early.
type Estimate struct {
	// WeightBytes of the model file: mapped, shared with other processes, given back under pressure.
	WeightBytes uint64
	// ScratchBytes of buffers that the context allocates for the request.
	ScratchBytes uint64
	// MultiplyAdds of all steps together.
	MultiplyAdds uint64
	// Tokens that run through the network, over all steps.
	Tokens uint64
}

// EstimateText tells what answering takes after a prompt of promptTokens tokens (a picture's among them), before
// anything is loaded: a mapped model costs nothing until it runs. options may be nil for what the file recommends.
func (m *Model) EstimateText(promptTokens int, options *TextOptions) (Estimate, error) {
	return m.estimate(func(c *converter, model *C.mmada_model, to *C.mmada_estimate, object **C.mmada_error) C.mmada_status {
		tokens, given := c.size("promptTokens", promptTokens), c.textOptions(options)
		if c.err != nil {
			return C.MMADA_OK
		}
		return C.mmada_model_estimate_text(model, tokens, given, to, object)
	})
}

// EstimateImage tells what drawing takes after a prompt of promptTokens tokens, without the thinking that may come first
// (see EstimateText) and without decoding. options may be nil for what the file recommends.
func (m *Model) EstimateImage(promptTokens int, options *ImageOptions) (Estimate, error) {
	return m.estimate(func(c *converter, model *C.mmada_model, to *C.mmada_estimate, object **C.mmada_error) C.mmada_status {
		tokens, given := c.size("promptTokens", promptTokens), c.imageOptions(options)
		if c.err != nil {
			return C.MMADA_OK
		}
		return C.mmada_model_estimate_image(model, tokens, given, to, object)
	})
}

func (m *Model) estimate(call func(*converter, *C.mmada_model, *C.mmada_estimate, **C.mmada_error) C.mmada_status) (Estimate, error) {
	model, err := m.acquire()
	if err != nil {
		return Estimate{}, err
	}
	defer m.handle.release()
	var c converter
	defer c.done()
	var estimate C.mmada_estimate
	var object *C.mmada_error
	C.mmada_estimate_init(&estimate, C.sizeof_mmada_estimate)
	if err := failure(call(&c, model, &estimate, &object), &object); err != nil {
		return Estimate{}, err
	}
	return Estimate{
		WeightBytes:  uint64(estimate.weight_bytes),
		ScratchBytes: uint64(estimate.scratch_bytes),
		MultiplyAdds: uint64(estimate.multiply_adds),
		Tokens:       uint64(estimate.tokens),
	}, c.err
}

// NewContext makes a context, which starts its threads; buffers are made when the first request needs them. options may
// be nil for the defaults.
//
// It fails with ErrInvalidArgument for an instruction set that the processor does not have, more than 1024 threads, or a
// device that is not there or cannot be used; ErrInternal if the system starts no more threads; ErrDevice; ErrCancelled
// (by the progress function).
func (m *Model) NewContext(options *ContextOptions) (*Context, error) {
	model, err := m.acquire()
	if err != nil {
		return nil, err
	}
	defer m.handle.release()
	info, err := modelInfo(model)
	if err != nil {
		return nil, err
	}
	if options == nil {
		options = &ContextOptions{}
	}
	var c converter
	defer c.done()
	var given C.mmada_context_options
	C.mmada_context_options_init(&given, C.sizeof_mmada_context_options)
	given.threads = c.size("Threads", options.Threads)
	given.memory_limit = C.uint64_t(options.MemoryLimit)
	given.compute = C.uint32_t(options.Compute)
	if options.Pack {
		given.pack = 1
	}
	if options.InstructionSet != "" {
		given.instruction_set, given.instruction_set_length = c.text(options.InstructionSet)
	}
	if options.Device != "" {
		given.device, given.device_length = c.text(options.Device)
	}
	if options.GPULayers != nil {
		given.gpu_layers = c.size("GPULayers", *options.GPULayers)
	}
	if c.err != nil {
		return nil, c.err
	}
	holds := append([]*shared(nil), m.handle.holds...)
	var log *sink
	if options.Logger != nil {
		log = &sink{handler: options.Logger.Handler()}
		handle := cgo.NewHandle(log)
		kept := newShared(handle.Delete)
		defer kept.release()
		holds = append(holds, kept)
		C.mmada_go_set_log(&given, C.uintptr_t(handle))
	}
	reports := &progress{report: options.Progress}
	if reports.report != nil {
		handle := cgo.NewHandle(reports)
		defer handle.Delete()
		C.mmada_go_set_upload_progress(&given, C.uintptr_t(handle))
	}
	var made *C.mmada_context
	var object *C.mmada_error
	kept := false
	defer func() {
		if !kept {
			C.mmada_context_free(made)
		}
	}()
	log.during(context.Background(), nil, func() {
		err = failure(C.mmada_context_new(model, &given, &made, &object), &object)
	})
	reports.raise()
	if err != nil {
		if reports.err != nil {
			err = because(err, []error{reports.err})
		}
		return nil, err
	}
	kept = true
	return newContext(made, info, log, holds), nil
}
