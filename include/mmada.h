/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * libmmada: MMaDA, the unified multimodal diffusion language model, as a library. One model file, opened once, answers
 * questions, looks at pictures and draws them. Generated from src/capi by cbindgen: edit there.
 *
 * A complete program, which asks a question and shows the answer as it comes about
 * (cc ask.c $(pkg-config --cflags --libs mmada)):
 *
 *     #include <mmada.h>
 *     #include <stdio.h>
 *
 *     static int failed(const char *what, mmada_error *error) {
 *         fprintf(stderr, "%s: %s\n", what, mmada_error_message(error));
 *         mmada_error_free(error);
 *         return 1;
 *     }
 *
 *     int main(int argc, char **argv) {
 *         mmada_error *error = NULL;
 *         mmada_model *model = NULL;
 *         mmada_context *context = NULL;
 *         mmada_generation *generation = NULL;
 *         mmada_message question = {"What is 17 + 25?", MMADA_NUL_TERMINATED, NULL, MMADA_ROLE_USER, 0};
 *         mmada_step step;
 *         int status = 1;
 *
 *         mmada_step_init(&step, sizeof step);
 *         if (argc < 2) {
 *             fprintf(stderr, "usage: ask MODEL.gguf\n");
 *         } else if (mmada_model_open(argv[1], MMADA_NUL_TERMINATED, NULL, &model, &error)) {
 *             failed("open", error);
 *         } else if (mmada_context_new(model, NULL, &context, &error)) {
 *             failed("context", error);
 *         } else if (mmada_context_begin_text(context, NULL, &question, 1, &generation, &error)) {
 *             failed("begin", error);
 *         } else {
 *             do {
 *                 mmada_buffer *text = NULL;
 *                 if (mmada_generation_step(generation, &step, &error) ||
 *                     mmada_generation_text(generation, &text, &error)) {
 *                     failed("step", error);
 *                     break;
 *                 }
 *                 printf("%zu/%zu %s\n", step.index, step.total, mmada_buffer_text(text));
 *                 mmada_buffer_free(text);
 *                 status = step.done ? 0 : 1;
 *             } while (!step.done);
 *         }
 *         mmada_generation_free(generation);
 *         mmada_context_free(context);
 *         mmada_model_free(model);
 *         return status;
 *     }
 *
 * The rules, which hold wherever a comment does not say otherwise:
 *
 * - Results. Functions that can fail return an mmada_status, 0 for success. Results come through pointers, which are
 *   written on success only. The last parameter `error` may be NULL; otherwise it receives an error object on failure,
 *   which the caller owns and frees, and is not written on success. There is no other place for errors.
 * - Ownership. An object that a function gives through a pointer to a pointer is the caller's, to be freed with the
 *   mmada_..._free of its type, in any order. Freeing NULL is harmless. A `const` pointer that a function returns, or
 *   that stands in a struct that a function filled, is borrowed from the object that it was asked of, and valid as long
 *   as the comment says. Nothing that is passed in changes hands: texts, arrays, pixels and options are copied before
 *   the call returns, and a failure leaves nothing to be freed but the error.
 * - Threads. Every function may be called by any thread. A `const` handle may be used by any number of threads at once;
 *   of one that is not const, one call at a time is served and others get MMADA_BUSY, at once and without harm. Only
 *   freeing asks for care: nothing else may be using the handle. Waiting, queues and callbacks are the caller's to
 *   choose: no call goes on in the background.
 * - Texts are UTF-8, given as a pointer and a length in bytes, or MMADA_NUL_TERMINATED for "up to the NUL".
 * - Structs that begin with `struct_size` may grow at their end in later versions. Initialize them with their
 *   mmada_..._init function (or, those that are only filled, by setting struct_size to their sizeof): that is what lets
 *   a program built with an older header run with a newer library, and a newer one say MMADA_STRUCT_SIZE when an option
 *   is set that an older library does not know. Fields called `reserved` must be 0.
 * - Enums in structs and arguments are uint32_t: their names are in the comments, other numbers are
 *   MMADA_INVALID_ARGUMENT. Numbers of enums and statuses never change; later versions may add some.
 * - Handles carry a mark, so that NULL, another type's handle and (where it can be told) a freed one give a status
 *   instead of a crash. Do not rely on it for freed ones.
 * - The library does not print, does not touch signals, the environment or the locale, has no threads but those of its
 *   contexts (and, within a call, one that renders a chat template which a model file brings), and does nothing when it
 *   is loaded. After fork, objects keep working in the parent; in the child contexts answer MMADA_FORKED, and new ones
 *   can be made. A call needs less than 256 KiB of its caller's stack.
 * - Allocations that are sized by a model or a request fail with MMADA_OUT_OF_MEMORY. Small ones, and those for building
 *   a model's tokenizer at its first use and for tokenizing a text, cannot be caught: where these fail, the process is
 *   ended. What reading and writing a picture file takes is asked for first, so that it fails before it begins.
 *
 * docs/EMBEDDING.md says why, and what lies beyond a header: memory, files, signals, linking, hostile files.
 */


#ifndef MMADA_H
#define MMADA_H

#include <stddef.h>
#include <stdint.h>

/* The version of this header; mmada_version() tells that of the library. */
#define MMADA_VERSION_MAJOR 0
#define MMADA_VERSION_MINOR 1
#define MMADA_VERSION_PATCH 0
#define MMADA_VERSION "0.1.0"

/* The length of a text that ends with NUL. */
#define MMADA_NUL_TERMINATED SIZE_MAX

/* As many of a network's blocks on a graphics card as there is memory for. */
#define MMADA_ALL_LAYERS SIZE_MAX

/* In a canvas: a position that has not been decided. */
#define MMADA_MASKED UINT32_MAX

// What a function returns. The numbers never change; later versions may add some, so treat an unknown one as a
// failure.
typedef enum {
  // Success. Every other status means that nothing was written but the error.
  MMADA_OK = 0,
  // The operating system refused to open, read or write a file.
  MMADA_IO_ERROR = 1,
  // A model file is damaged, cut off, or not what it claims to be.
  MMADA_BAD_FORMAT = 2,
  // A well-formed file or request that this version or this model cannot serve.
  MMADA_UNSUPPORTED = 3,
  // An option or argument that cannot be, or options that contradict each other.
  MMADA_INVALID_ARGUMENT = 4,
  // A sequence needs more positions than the model has.
  MMADA_CONTEXT_OVERFLOW = 5,
  // A picture is damaged, empty, or larger than the limits.
  MMADA_BAD_IMAGE = 6,
  // An allocation sized by a model or a request failed, or would exceed a context's memory limit.
  MMADA_OUT_OF_MEMORY = 7,
  // The caller cancelled.
  MMADA_CANCELLED = 8,
  // Another call is using the context or the generation. Try again later; nothing has changed.
  MMADA_BUSY = 9,
  // A defect of this library.
  MMADA_INTERNAL_ERROR = 10,
  // The context was made before a fork and is used in the child, where its threads do not exist.
  MMADA_FORKED = 11,
  // A graphics card failed: its driver reported an error. Contexts on it fail from then on; new ones on the CPU work.
  MMADA_DEVICE_ERROR = 12,
  // A pointer that must not be NULL is NULL.
  MMADA_NULL_POINTER = 101,
  // A struct_size that no version of the library has, or fields that are set but unknown to this version.
  MMADA_STRUCT_SIZE = 102,
  // A text is not UTF-8.
  MMADA_INVALID_UTF8 = 103,
  // Not a handle of the expected type, or one that has been freed.
  MMADA_INVALID_HANDLE = 104,
  // A step of a generation that is complete.
  MMADA_DONE = 105,
  // There is nothing by that name or index.
  MMADA_NOT_FOUND = 106,
  // A defect of this library, caught before it could harm the program.
  MMADA_PANIC = 107,
} mmada_status;

// Who says a message.
typedef enum {
  MMADA_ROLE_SYSTEM = 0,
  MMADA_ROLE_USER = 1,
  MMADA_ROLE_ASSISTANT = 2,
} mmada_role;

// Which candidates of a step are kept.
typedef enum {
  // The most probable ones: positions of low confidence stay masked.
  MMADA_REMASKING_LOW_CONFIDENCE = 0,
  // Chance decides.
  MMADA_REMASKING_RANDOM = 1,
} mmada_remasking;

// How many positions of a picture stay masked after every step.
typedef enum {
  MMADA_SCHEDULE_COSINE = 0,
  MMADA_SCHEDULE_LINEAR = 1,
  // 1 - r to the power of `schedule_power`, r being the share of the steps that is done.
  MMADA_SCHEDULE_POWER = 2,
  MMADA_SCHEDULE_SIGMOID = 3,
} mmada_schedule;

// What makes a sampled image code worth keeping.
typedef enum {
  // Its probability.
  MMADA_CONFIDENCE_PROBABILITY = 0,
  // How far the position's best code is ahead of its second best.
  MMADA_CONFIDENCE_MARGIN = 1,
} mmada_confidence;

// How exact products are.
typedef enum {
  // 8- and 16-bit products wherever they do not change answers noticeably.
  MMADA_COMPUTE_FAST = 0,
  // Float weights meet float activations in 32-bit arithmetic.
  MMADA_COMPUTE_EXACT = 1,
} mmada_compute;

// How much a message of the log matters.
typedef enum {
  // Something failed that no call returns an error for.
  MMADA_LOG_ERROR = 0,
  // Something that a user should know of: a prompt that was cut.
  MMADA_LOG_WARN = 1,
  // What happens, in a few lines.
  MMADA_LOG_INFO = 2,
  // What it takes: buffers that are made, how long every step took.
  MMADA_LOG_DEBUG = 3,
} mmada_log_level;

// What a step is about.
typedef enum {
  // An answer, or the description that is thought out before a picture.
  MMADA_STAGE_TEXT = 0,
  // Pictures.
  MMADA_STAGE_IMAGE = 1,
} mmada_stage;

// Formats that pictures are encoded in.
typedef enum {
  MMADA_IMAGE_PNG = 0,
  // Quality 95 of 100.
  MMADA_IMAGE_JPEG = 1,
} mmada_image_format;

// A text, an array of ids, or bytes, owned by whoever received it. A function that has nothing to return gives NULL,
// which all functions here take for an empty buffer.
typedef struct mmada_buffer mmada_buffer;

// Stops a call that it is given to: a score, a forward. (A generation has `mmada_generation_cancel`.) Owned by whoever
// made it; free it with `mmada_canceller_free`.
typedef struct mmada_canceller mmada_canceller;

// The threads and buffers that run a model. One call at a time uses the buffers: a second one meanwhile gets MMADA_BUSY.
// Generations of one context may take turns, step by step. Generations keep what they need of their context: it may be
// freed before them, and its threads end with the last of them.
typedef struct mmada_context mmada_context;

// Why a call failed, owned by whoever received it.
typedef struct mmada_error mmada_error;

// An answer or pictures in the making. Owned by whoever began it; free it with `mmada_generation_free` at any time,
// complete or not.
typedef struct mmada_generation mmada_generation;

// A picture of 8-bit RGB pixels that does not change once it is made. Owned by whoever received it; free it with
// `mmada_image_free`. Any number of threads may use one at once.
typedef struct mmada_image mmada_image;

// An opened and checked model file. It never changes, so any number of threads and contexts may use it at once.
// Contexts and generations keep what they need of it: it may be freed before them.
typedef struct mmada_model mmada_model;

// A device that the library can run on. Set `struct_size`, or initialize with `mmada_device_info_init`.
typedef struct {
  // sizeof(mmada_device_info)
  size_t struct_size;
  // Bytes of memory that it works in, free or not; 0 where the system does not tell.
  uint64_t memory_bytes;
  // The backend that runs it: "cpu" or "cuda". These texts are NUL-terminated UTF-8, cut where they do not fit.
  char backend[16];
  // What its maker calls it.
  char name[128];
  // The instruction sets that there are kernels for, the slowest first, with spaces between: what
  // `mmada_context_options.instruction_set` takes. Empty for a graphics card.
  char instruction_sets[96];
  // What `mmada_context_options.device` takes: "cpu", "cuda:0".
  char id[16];
  // A graphics card's compute capability, such as 9 and 0; 0 and 0 for a processor.
  uint32_t compute_capability_major;
  uint32_t compute_capability_minor;
  // One sentence that says why models do not run on it; empty where they do.
  char refusal[256];
} mmada_device_info;

// Called while a model file is read into memory or its weights are copied to a graphics card, by the thread that opens
// the model or makes the context, before the function that does so returns and never after: `done` of `total` bytes
// have come over. 0 goes on; anything else stops, and that function fails with MMADA_CANCELLED. A mapped file is not
// read, so there is one call, when it is open.
typedef int (*mmada_progress_callback)(uint64_t done, uint64_t total, void *user_data);

// How a model file is brought into memory. Initialize with `mmada_open_options_init`.
typedef struct {
  // sizeof(mmada_open_options)
  size_t struct_size;
  // 1 (the default): map the file. Opening takes milliseconds, pages come in when they are used, and processes share
  // them; nobody may change or cut off the file meanwhile. 0: read all of it into memory.
  uint32_t use_mmap;
  // Must be 0.
  uint32_t reserved;
  // NULL, or told how far reading has come.
  mmada_progress_callback progress;
  // Given to `progress` as it is.
  void *progress_user_data;
} mmada_open_options;

// What a model is. Set `struct_size`, or initialize with `mmada_model_info_init`.
typedef struct {
  // sizeof(mmada_model_info)
  size_t struct_size;
  // Size of the file.
  size_t file_bytes;
  // Most positions of one sequence, prompt and answer together.
  size_t context_length;
  size_t layers;
  // Width of the residual stream.
  size_t d_model;
  // Ids are below this.
  size_t vocabulary;
  // Ids below this are text; the tokenizer knows these.
  size_t text_vocabulary;
  // The id of image code 0.
  size_t image_offset;
  // Size of the codebook; 0 for a model without pictures.
  size_t image_codes;
  // Pixels of a side of the pictures that the model was trained on; 0 without an image tokenizer.
  size_t image_size;
  // Pixels of a side of one image code: widths and heights are multiples of it. 0 without an image tokenizer.
  size_t image_downsampling;
  // 1 if the model can see and draw pictures.
  uint32_t has_images;
  // Begins a prompt.
  uint32_t bos_id;
  // Ends a text.
  uint32_t eos_id;
  // Ends a turn of a chat.
  uint32_t eot_id;
  // What is to be filled in.
  uint32_t mask_id;
  // 0.
  uint32_t reserved;
} mmada_model_info;

// One turn of a chat. This struct never grows. Everything that it points to is copied by the function it is given to.
typedef struct {
  // UTF-8; white space at both ends is dropped. What looks like a special token is ordinary text.
  const char *content;
  // In bytes, or MMADA_NUL_TERMINATED.
  size_t content_length;
  // NULL, or the picture that the chat is about. Only one message of a chat may have one, and the model sees it
  // before the whole chat, whichever that message is.
  const mmada_image *image;
  // An mmada_role.
  uint32_t role;
  // Must be 0.
  uint32_t reserved;
} mmada_message;

// What a request will take. Bounds: an answer may end early.
typedef struct {
  // sizeof(mmada_estimate)
  size_t struct_size;
  // Bytes of the model file: mapped, shared with other processes, given back under pressure.
  uint64_t weight_bytes;
  // Bytes of buffers that the context allocates for the request.
  uint64_t scratch_bytes;
  // Multiply-adds of all steps together.
  uint64_t multiply_adds;
  // Tokens that run through the network, over all steps.
  uint64_t tokens;
} mmada_estimate;

// A text in an array. This struct never grows.
typedef struct {
  // UTF-8.
  const char *data;
  // In bytes, or MMADA_NUL_TERMINATED.
  size_t length;
} mmada_string;

// A position of an answer that is given from the start. This struct never grows.
typedef struct {
  // Counted from 0 at the beginning of the answer.
  size_t position;
  // The token that stands there.
  uint32_t id;
  // Must be 0.
  uint32_t reserved;
} mmada_pin;

// How text is sampled. Initialize with `mmada_text_options_init`. Everything that it points to is copied by the
// function it is given to.
typedef struct {
  // sizeof(mmada_text_options)
  size_t struct_size;
  // Tokens of the answer: a multiple of `block_length`.
  size_t gen_length;
  // Denoising steps over the whole answer: a multiple of the number of blocks, gen_length / block_length.
  size_t steps;
  // Tokens that are unmasked together, block after block.
  size_t block_length;
  // 0 takes the most probable token; above, Gumbel noise of this scale is added to the logits.
  double temperature;
  // Classifier-free guidance against the answer to a masked prompt; 0 is none. It doubles the work.
  double cfg_scale;
  // Of the random numbers: the same seed gives the same answer, with any number of threads.
  uint64_t seed;
  // `stop_count` texts, none of them empty; the generation ends, and the answer is cut, before the first of them.
  const mmada_string *stop;
  size_t stop_count;
  // `forbid_count` ids that must not be chosen.
  const uint32_t *forbid;
  size_t forbid_count;
  // NULL, or the `allow_only_count` ids that alone may be chosen.
  const uint32_t *allow_only;
  size_t allow_only_count;
  // An mmada_remasking.
  uint32_t remasking;
  // 1: ask the model to think first; thinking and answer then come back apart.
  uint32_t thinking;
  // A picture that is no square is cropped to one (0) or resized to one (1: for diagrams and documents).
  uint32_t squash;
  // Must be 0.
  uint32_t reserved;
  // `pinned_count` positions of the answer that are given, such as the frame of a form that is to be filled in. They
  // are never masked or chosen, no step reports them, and `forbid` and `allow_only` do not look at them.
  const mmada_pin *pinned;
  size_t pinned_count;
} mmada_text_options;

// How pictures are sampled. Initialize with `mmada_image_options_init`.
typedef struct {
  // sizeof(mmada_image_options)
  size_t struct_size;
  // Size in pixels, each a multiple of the model's `image_downsampling`.
  size_t width;
  size_t height;
  // How many pictures, drawn together: picture i is the one that the seed plus i draws alone.
  size_t count;
  size_t steps;
  // A longer prompt is cut to this many tokens, two leading special tokens included. Not used with `thinking`.
  size_t max_text_length;
  // With `thinking`: tokens of prompt and description together.
  size_t text_length;
  // Of the first picture's random numbers.
  uint64_t seed;
  // Classifier-free guidance against an empty prompt; 0 is none and halves the work.
  float guidance;
  // Of the noise in the order in which positions become known; it falls to 0 with the steps.
  float temperature;
  // Above 0; used with MMADA_SCHEDULE_POWER only.
  float schedule_power;
  // An mmada_schedule.
  uint32_t schedule;
  // An mmada_confidence.
  uint32_t confidence;
  // 1: think out a detailed description first, then draw that.
  uint32_t thinking;
} mmada_image_options;

// Takes the messages of a context, each one line without its end: `level` is an mmada_log_level; `message` has `length`
// bytes and a NUL behind them and is valid during the call. It is called by the thread that called the context or one
// of its generations, before that call returns. It must not call that context or its generations, but for
// `mmada_generation_cancel` and `mmada_canceller_cancel`, nor unwind (no C++ exception, no longjmp). `user_data` must stay
// valid until the context and all its generations are freed.
typedef void (*mmada_log_callback)(uint32_t level, const char *message, size_t length, void *user_data);

// How a context runs its model. Initialize with `mmada_context_options_init`.
typedef struct {
  // sizeof(mmada_context_options)
  size_t struct_size;
  // Threads of the context's own; 0 (the default) for one per core. Results do not depend on it.
  size_t threads;
  // Bytes of buffers that the context and its generations may have at a time; a request that needs more fails with
  // MMADA_OUT_OF_MEMORY. The mapped model, the tokenizer, and small things are not counted. 0 (the default): no limit.
  uint64_t memory_limit;
  // NULL (the default) for the best that the processor has, or an instruction set by name: "portable", "avx2",
  // "avx2-vnni", "avx512", "amx", "neon", "neon-dotprod", "neon-i8mm" (mmada_device_info lists those that it has).
  // Copied.
  const char *instruction_set;
  // In bytes, or MMADA_NUL_TERMINATED.
  size_t instruction_set_length;
  // NULL (the default: silence), or who is told what happens.
  mmada_log_callback log;
  // Given to `log` as it is.
  void *log_user_data;
  // The mmada_log_level of the least important messages that `log` gets; MMADA_LOG_WARN by default.
  uint32_t log_level;
  // An mmada_compute; MMADA_COMPUTE_FAST by default.
  uint32_t compute;
  // 1 keeps the weights unpacked in memory, as the context's products want them: several times as fast where few
  // tokens run at a time (up to some 64), for 1 to 2 bytes a weight (`packed_bytes` of mmada_context_info), which
  // `memory_limit` counts. Making the context then takes the time to read the whole file. Answers are the same to the
  // last bit. Contexts of one model with the same arithmetic and instruction set share the copy. 0 by default.
  uint32_t pack;
  // Must be 0.
  uint32_t reserved;
  // Where the model runs: NULL (the default) or "cpu" for the processor; "cuda" or "cuda:0" for the first graphics card
  // of NVIDIA's, "cuda:1" for the second (mmada_device_info lists those that there are); "auto" for the first card that
  // can, or else for the processor, which `log` is told. With `instruction_set`, `pack` or MMADA_COMPUTE_EXACT, which
  // only the processor has, "auto" is that too. Copied.
  const char *device;
  // In bytes, or MMADA_NUL_TERMINATED.
  size_t device_length;
  // How many of the network's blocks run on the graphics card, the last ones and the output; the others run on the
  // processor, threads and all. MMADA_ALL_LAYERS (the default): as many as there is memory for.
  size_t gpu_layers;
  // NULL, or told how far copying the weights to a graphics card has come, after every 16 MiB or so.
  mmada_progress_callback progress;
  // Given to `progress` as it is.
  void *progress_user_data;
} mmada_context_options;

// What a context is. Set `struct_size`, or initialize with `mmada_context_info_init`.
typedef struct {
  // sizeof(mmada_context_info)
  size_t struct_size;
  // Threads that it has.
  size_t threads;
  // Bytes of buffers that it and its generations have now.
  uint64_t memory_used;
  // The instruction set in use. NUL-terminated.
  char instruction_set[16];
  // An mmada_compute.
  uint32_t compute;
  // 0.
  uint32_t reserved;
  // Bytes that its weights take when they are packed, whether or not they are.
  uint64_t packed_bytes;
  // How many of the network's blocks run on a graphics card; 0 on the processor.
  size_t gpu_layers;
  // What it runs on: "cpu", or a graphics card with its name, such as "cuda:0 (NVIDIA H100 80GB HBM3)". NUL-terminated,
  // cut where it does not fit.
  char device[160];
} mmada_context_info;

// How a score is estimated. Initialize with `mmada_score_options_init`.
typedef struct {
  // sizeof(mmada_score_options)
  size_t struct_size;
  // How many random maskings of the answer are averaged, each of which runs the network over prompt and answer; 128
  // by default. One is enough for an answer of one token.
  size_t samples;
  // Of the maskings: the same seed gives the same score.
  uint64_t seed;
  // Classifier-free guidance against the masked prompt; 0 (the default) is none. It doubles the work.
  double cfg_scale;
  // NULL, or what stops the call.
  const mmada_canceller *canceller;
} mmada_score_options;

// How likely an answer is. Set `struct_size`, or initialize with `mmada_score_init`.
typedef struct {
  // sizeof(mmada_score)
  size_t struct_size;
  // The estimate of a lower bound on ln p(answer | prompt), in nats; at most 0.
  double log_likelihood;
  // The same divided by the answer's tokens.
  double per_token;
  // How many maskings were averaged.
  size_t samples;
} mmada_score;

// A position that has been decided. This struct never grows.
typedef struct {
  // Which picture; 0 for text.
  size_t sequence;
  // The position in the answer, or the place in the picture, row by row.
  size_t position;
  // The token; of a picture the image code plus the model's `image_offset`.
  uint32_t id;
  // 0.
  uint32_t reserved;
} mmada_change;

// What a step did. Set `struct_size`, or initialize with `mmada_step_init`.
typedef struct {
  // sizeof(mmada_step)
  size_t struct_size;
  // Steps of this stage that are done, and how many there are at most.
  size_t index;
  size_t total;
  // Text: how many tokens of the answer stand before its first mask; these will not change. 0 for pictures.
  size_t prefix;
  // The positions that this step decided for good, `change_count` of them. Borrowed: valid until the generation's
  // next step or its end.
  const mmada_change *changes;
  size_t change_count;
  // An mmada_stage.
  uint32_t stage;
  // 1 if the generation is complete.
  uint32_t done;
} mmada_step;

// What a generation is. Set `struct_size`, or initialize with `mmada_generation_info_init`.
typedef struct {
  // sizeof(mmada_generation_info)
  size_t struct_size;
  // Steps of all stages together; an answer that ends early takes fewer.
  size_t total_steps;
  // How many pictures are drawn; 0 for an answer.
  size_t image_count;
  // Width and height of the pictures in image codes; 0 for an answer.
  size_t image_columns;
  size_t image_rows;
  // 1 if every stage is complete.
  uint32_t done;
  // 1 if there is text: an answer, or a description before a picture.
  uint32_t has_text;
} mmada_generation_info;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library that is running, such as "0.1.0" (MMADA_VERSION is that of the header). NUL-terminated,
// valid for as long as the library is loaded. Threads: any.
const char *mmada_version(void);

// What the library was built as: version, platform, "release" or "debug", optional parts. NUL-terminated, valid for as
// long as the library is loaded. Threads: any.
const char *mmada_build_info(void);

// Fills `*info`, which has `struct_size` bytes (pass sizeof), with zeros and its size.
//
// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
mmada_status mmada_device_info_init(mmada_device_info *info, size_t struct_size);

// How many devices this build of the library finds on this machine, over all backends: `*count`. Threads: any.
mmada_status mmada_device_count(size_t *count, mmada_error **error);

// Fills `*info` with what device `index` is, counted from 0. Threads: any.
// Fails with MMADA_NOT_FOUND beyond the last one.
mmada_status mmada_device_get_info(size_t index, mmada_device_info *info, mmada_error **error);

// Why a backend finds no devices on this machine: one sentence for a person, such as that there is no driver, or that
// the library was built without the backend; NULL if it finds some. `backend` is "cpu" or "cuda"; `backend_length` may be MMADA_NUL_TERMINATED.
//
// Owned by the caller on success: `*reason`, a text. Threads: any.
// Fails with MMADA_NOT_FOUND for another name.
mmada_status mmada_backend_unavailable(const char *backend,
                                       size_t backend_length,
                                       mmada_buffer **reason,
                                       mmada_error **error);

// The status that came with the error; MMADA_INVALID_HANDLE for NULL or no error. Threads: any.
mmada_status mmada_error_status(const mmada_error *error);

// One sentence for a person, in English: it names the file, tensor, option or size at fault. One line of NUL-terminated
// UTF-8 without control characters, borrowed: valid until the error is freed. The empty text for NULL or no error.
// Threads: any.
const char *mmada_error_message(const mmada_error *error);

// Frees an error. NULL is harmless. Threads: any, once nothing reads its message.
void mmada_error_free(mmada_error *error);

// The name of a status, such as "MMADA_BUSY"; "unknown status" for a number that this version does not have.
// NUL-terminated, valid for as long as the library is loaded. Threads: any.
const char *mmada_status_name(int status);

// How many elements a buffer has: bytes of a text without its final NUL, ids, or bytes. 0 for NULL. Threads: any.
size_t mmada_buffer_length(const mmada_buffer *buffer);

// The text of a buffer: UTF-8, with a NUL after its `mmada_buffer_length` bytes (a model may write a NUL inside, too).
// Borrowed: valid until the buffer is freed. NULL for NULL and for a buffer that is no text. Threads: any.
const char *mmada_buffer_text(const mmada_buffer *buffer);

// The ids of a buffer, `mmada_buffer_length` of them. Borrowed: valid until the buffer is freed. NULL for NULL and for
// a buffer that holds no ids. Threads: any.
const uint32_t *mmada_buffer_ids(const mmada_buffer *buffer);

// The bytes of a buffer, `mmada_buffer_length` of them. Borrowed: valid until the buffer is freed. NULL for NULL and
// for a buffer that holds no bytes. Threads: any.
const uint8_t *mmada_buffer_bytes(const mmada_buffer *buffer);

// Frees a buffer. NULL is harmless. Threads: any, once nothing reads what it holds.
void mmada_buffer_free(mmada_buffer *buffer);

// A picture of the caller's pixels, which are copied: `height` rows of `width` times three bytes, red, green, blue,
// from the top left. `stride` is the distance of two rows in bytes; 0 for `3 * width`.
//
// Owned by the caller on success: `*image`. Threads: any.
// Fails with MMADA_BAD_IMAGE for a side of 0 or above 16384, MMADA_INVALID_ARGUMENT for a stride below `3 * width`,
// MMADA_OUT_OF_MEMORY.
mmada_status mmada_image_from_rgb(const uint8_t *pixels,
                                  size_t width,
                                  size_t height,
                                  size_t stride,
                                  mmada_image **image,
                                  mmada_error **error);

// Reads a PNG, JPEG or GIF (its first frame) file. `path_length` may be MMADA_NUL_TERMINATED.
//
// Owned by the caller on success: `*image`. Threads: any.
// Fails with MMADA_IO_ERROR, or MMADA_BAD_IMAGE for what is no such picture, damaged, or larger than 16384 pixels a
// side or 512 MiB decoded.
mmada_status mmada_image_load(const char *path, size_t path_length, mmada_image **image, mmada_error **error);

// Decodes the `size` bytes of a PNG, JPEG or GIF (its first frame) file in memory, which are read during the call only.
//
// Owned by the caller on success: `*image`. Threads: any. Fails as `mmada_image_load`.
mmada_status mmada_image_decode(const uint8_t *data, size_t size, mmada_image **image, mmada_error **error);

// Writes a picture to a file whose name ends in .png, .jpg or .jpeg. The file appears whole or not at all, in the
// place of an existing one. `path_length` may be MMADA_NUL_TERMINATED.
//
// Threads: any. Fails with MMADA_IO_ERROR, or MMADA_INVALID_ARGUMENT for another ending or a missing folder.
mmada_status mmada_image_save(const mmada_image *image, const char *path, size_t path_length, mmada_error **error);

// Encodes a picture as the bytes of a file, `format` being an mmada_image_format.
//
// Owned by the caller on success: `*file`, a buffer of bytes. Threads: any.
// Fails with MMADA_INVALID_ARGUMENT for another format.
mmada_status mmada_image_encode(const mmada_image *image, uint32_t format, mmada_buffer **file, mmada_error **error);

// Pixels in a row; 0 for NULL. Threads: any.
size_t mmada_image_width(const mmada_image *image);

// Rows of pixels; 0 for NULL. Threads: any.
size_t mmada_image_height(const mmada_image *image);

// The pixels, [height, width, 3] without gaps: red, green, blue from the top left. Borrowed: valid until the image is
// freed. NULL for NULL. Threads: any.
const uint8_t *mmada_image_pixels(const mmada_image *image);

// Frees a picture. NULL is harmless. A generation that was begun with it keeps a copy. Threads: any, once nothing uses
// the picture.
void mmada_image_free(mmada_image *image);

// Fills `*options`, which has `struct_size` bytes (pass sizeof), with the defaults.
//
// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
mmada_status mmada_open_options_init(mmada_open_options *options, size_t struct_size);

// Opens a GGUF file and checks its metadata and the names, shapes and extents of its tensors. Of a split file any part
// may be named. `path_length` may be MMADA_NUL_TERMINATED; on Unix the path may be any bytes. `options` may be NULL for
// the defaults.
//
// Owned by the caller on success: `*model`, to be freed with `mmada_model_free`. Threads: any.
// Fails with MMADA_IO_ERROR, MMADA_BAD_FORMAT (damaged or cut off), MMADA_UNSUPPORTED (another architecture),
// MMADA_OUT_OF_MEMORY, or MMADA_CANCELLED (by the progress callback).
mmada_status mmada_model_open(const char *path,
                              size_t path_length,
                              const mmada_open_options *options,
                              mmada_model **model,
                              mmada_error **error);

// Opens the model file behind a file descriptor, from its beginning. `name` stands for the path in messages.
// A split file cannot be opened this way. Unix only: elsewhere this fails with MMADA_UNSUPPORTED.
//
// The descriptor stays the caller's, who may close it after the call. Otherwise as `mmada_model_open`.
mmada_status mmada_model_open_fd(int fd,
                                 const char *name,
                                 size_t name_length,
                                 const mmada_open_options *options,
                                 mmada_model **model,
                                 mmada_error **error);

// Opens a model file whose `size` bytes are in memory, without copying them. `name` stands for the path in messages.
// `data` must be aligned to 32 bytes.
//
// The bytes stay the caller's, who must neither change nor release them before the model, all its contexts and all
// their generations are freed. Otherwise as `mmada_model_open`; fails with MMADA_INVALID_ARGUMENT for another
// alignment.
mmada_status mmada_model_open_memory(const uint8_t *data,
                                     size_t size,
                                     const char *name,
                                     size_t name_length,
                                     mmada_model **model,
                                     mmada_error **error);

// Frees a model. NULL is harmless. Contexts and generations made with it go on. Threads: any, once no call uses it.
void mmada_model_free(mmada_model *model);

// Fills `*info`, which has `struct_size` bytes (pass sizeof), with zeros and its size.
//
// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
mmada_status mmada_model_info_init(mmada_model_info *info, size_t struct_size);

// Fills `*info` with what the model is. Threads: any.
mmada_status mmada_model_get_info(const mmada_model *model, mmada_model_info *info, mmada_error **error);

// How many entries the file's metadata has: `*count`. Threads: any.
mmada_status mmada_model_metadata_count(const mmada_model *model, size_t *count, mmada_error **error);

// The key of metadata entry `index`, in the order of the file, such as "general.name".
//
// Owned by the caller on success: `*key`, a text. Threads: any. Fails with MMADA_NOT_FOUND beyond the last one.
mmada_status mmada_model_metadata_key(const mmada_model *model, size_t index, mmada_buffer **key, mmada_error **error);

// The value of a metadata key: a string as it is, anything else as JSON (numbers, true and false, arrays).
// `key_length` may be MMADA_NUL_TERMINATED.
//
// Owned by the caller on success: `*value`, a text. Threads: any. Fails with MMADA_NOT_FOUND for a missing key.
mmada_status mmada_model_metadata(const mmada_model *model,
                                  const char *key,
                                  size_t key_length,
                                  mmada_buffer **value,
                                  mmada_error **error);

// The ids of a text. With `parse_special` 0, as for anything that a user supplies, text that looks like a special
// token is ordinary text; with 1 it becomes that token. No token is added at either end. The first call (or the first
// text that is begun) builds the tokenizer, which takes a moment for a large vocabulary.
//
// Owned by the caller on success: `*ids`, a buffer of ids. Threads: any.
// Fails with MMADA_INVALID_ARGUMENT for a text above 1 MiB.
mmada_status mmada_model_tokenize(const mmada_model *model,
                                  const char *text,
                                  size_t text_length,
                                  uint32_t parse_special,
                                  mmada_buffer **ids,
                                  mmada_error **error);

// The text of ids. Ids that are no text (image codes, unused rows) are left out, and with `skip_special` 1 so are
// special tokens. Bytes that are not UTF-8, such as a character cut in half, become U+FFFD.
//
// Owned by the caller on success: `*text`. Threads: any.
mmada_status mmada_model_detokenize(const mmada_model *model,
                                    const uint32_t *ids,
                                    size_t id_count,
                                    uint32_t skip_special,
                                    mmada_buffer **text,
                                    mmada_error **error);

// The ids of a chat, up to where the answer begins: what `mmada_context_begin_text` puts before the answer if there is
// no picture. With `thinking` 1 the instruction to think first is part of it. For counting tokens, for
// `mmada_context_score`, and for callers who change the prompt.
//
// Owned by the caller on success: `*ids`, a buffer of ids. Threads: any.
// Fails with MMADA_INVALID_ARGUMENT for no messages or thinking without a message of the user, MMADA_UNSUPPORTED for a
// message with a picture, MMADA_BAD_FORMAT if the file's tokenizer or chat template is damaged.
mmada_status mmada_model_prompt_ids(const mmada_model *model,
                                    const mmada_message *messages,
                                    size_t message_count,
                                    uint32_t thinking,
                                    mmada_buffer **ids,
                                    mmada_error **error);

// Fills `*estimate`, which has `struct_size` bytes (pass sizeof), with zeros and its size.
//
// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
mmada_status mmada_estimate_init(mmada_estimate *estimate, size_t struct_size);

// What answering takes after a prompt of `prompt_tokens` tokens (a picture's among them), before anything is loaded: a
// mapped model costs nothing until it runs. Threads: any.
mmada_status mmada_model_estimate_text(const mmada_model *model,
                                       size_t prompt_tokens,
                                       const mmada_text_options *options,
                                       mmada_estimate *estimate,
                                       mmada_error **error);

// What drawing takes after a prompt of `prompt_tokens` tokens, without the thinking that may come first (see
// `mmada_model_estimate_text`) and without decoding. Threads: any.
mmada_status mmada_model_estimate_image(const mmada_model *model,
                                        size_t prompt_tokens,
                                        const mmada_image_options *options,
                                        mmada_estimate *estimate,
                                        mmada_error **error);

// Fills `*options`, which has `struct_size` bytes (pass sizeof), with what the model's file recommends for a text:
// with thinking or without (0 or 1), about a picture or not (0 or 1). `options->thinking` is set to `thinking`.
// `model` may be NULL for the values of the published 8B checkpoints.
//
// Threads: any.
mmada_status mmada_text_options_init(mmada_text_options *options,
                                     size_t struct_size,
                                     const mmada_model *model,
                                     uint32_t thinking,
                                     uint32_t about_image,
                                     mmada_error **error);

// Fills `*options`, which has `struct_size` bytes (pass sizeof), with what the model's file recommends for drawing: one
// picture of the size that the model was trained on, with thinking first or without (0 or 1). `options->thinking` is
// set to `thinking`. `model` may be NULL for the values of the published 8B checkpoints, at 512x512 pixels.
//
// Threads: any.
mmada_status mmada_image_options_init(mmada_image_options *options,
                                      size_t struct_size,
                                      const mmada_model *model,
                                      uint32_t thinking,
                                      mmada_error **error);

// Fills `*options`, which has `struct_size` bytes (pass sizeof), with what the model's file recommends for the
// description that is thought out before a picture is drawn. `model` may be NULL as above.
//
// Threads: any.
mmada_status mmada_description_options_init(mmada_text_options *options,
                                            size_t struct_size,
                                            const mmada_model *model,
                                            mmada_error **error);

// Makes a canceller.
//
// Owned by the caller on success: `*canceller`. Threads: any.
mmada_status mmada_canceller_new(mmada_canceller **canceller, mmada_error **error);

// Stops the calls that have this canceller within one layer of the network, and every later one: they fail with
// MMADA_CANCELLED. Threads: any, and signal handlers: it stores to one atomic and does nothing else.
// Returns MMADA_NULL_POINTER or MMADA_INVALID_HANDLE for what is no canceller.
mmada_status mmada_canceller_cancel(const mmada_canceller *canceller);

// Frees a canceller. NULL is harmless. Threads: any, once no call uses it.
void mmada_canceller_free(mmada_canceller *canceller);

// Fills `*options`, which has `struct_size` bytes (pass sizeof), with the defaults.
//
// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
mmada_status mmada_context_options_init(mmada_context_options *options, size_t struct_size);

// Makes a context, which starts its threads and packs the weights, or copies them to a graphics card, if that is asked
// for; buffers are made when the first request needs them. `options` may be NULL for the defaults.
//
// Owned by the caller on success: `*context`, to be freed with `mmada_context_free`. Threads: any.
// Fails with MMADA_INVALID_ARGUMENT for an instruction set that the processor does not have, more than 1024 threads, or
// a device that is not there or cannot be used; MMADA_INTERNAL_ERROR if the system starts no more threads;
// MMADA_OUT_OF_MEMORY if weights that are packed or on a card do not fit; MMADA_UNSUPPORTED for a model that a card
// cannot run; MMADA_DEVICE_ERROR; MMADA_CANCELLED (by the progress callback).
mmada_status mmada_context_new(const mmada_model *model,
                               const mmada_context_options *options,
                               mmada_context **context,
                               mmada_error **error);

// Frees a context. NULL is harmless. Its generations go on. Threads: any, once no call uses it. If it has no
// generations, its threads have ended when this returns.
void mmada_context_free(mmada_context *context);

// Fills `*info`, which has `struct_size` bytes (pass sizeof), with zeros and its size.
//
// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
mmada_status mmada_context_info_init(mmada_context_info *info, size_t struct_size);

// Fills `*info` with what the context is. Threads: any.
mmada_status mmada_context_get_info(const mmada_context *context, mmada_context_info *info, mmada_error **error);

// About how many seconds an estimate takes on the context's threads: `*seconds`. Measures a product now, which takes
// milliseconds on a small model and up to a second on a large one. Threads: any.
mmada_status mmada_context_estimate_seconds(const mmada_context *context,
                                            const mmada_estimate *estimate,
                                            double *seconds,
                                            mmada_error **error);

// Runs the network once on a sequence of `id_count` ids, masks included, and writes logits: of the `row_count` positions
// `rows`, in this order, for the ids from `vocab_begin` up to and without `vocab_end`. `logits` has room for
// `logit_count` floats, which must be row_count * (vocab_end - vocab_begin); they are [rows, ids] row by row. After a
// failure they hold anything. `canceller` may be NULL.
//
// Threads: any; uses the context's buffers.
// Fails with MMADA_INVALID_ARGUMENT for an empty sequence, or ids, rows or a range outside the model,
// MMADA_CONTEXT_OVERFLOW, MMADA_BUSY, MMADA_CANCELLED, MMADA_OUT_OF_MEMORY.
mmada_status mmada_context_forward(mmada_context *context,
                                   const uint32_t *ids,
                                   size_t id_count,
                                   const size_t *rows,
                                   size_t row_count,
                                   uint32_t vocab_begin,
                                   uint32_t vocab_end,
                                   float *logits,
                                   size_t logit_count,
                                   const mmada_canceller *canceller,
                                   mmada_error **error);

// Fills `*options`, which has `struct_size` bytes (pass sizeof), with the defaults.
//
// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
mmada_status mmada_score_options_init(mmada_score_options *options, size_t struct_size);

// Fills `*score`, which has `struct_size` bytes (pass sizeof), with zeros and its size.
//
// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
mmada_status mmada_score_init(mmada_score *score, size_t struct_size);

// How likely the ids of an answer are after those of a prompt (`mmada_model_prompt_ids` makes them of a chat): fills
// `*score`. `options` may be NULL for the defaults.
//
// Threads: any; uses the context's buffers.
// Fails with MMADA_INVALID_ARGUMENT for an empty answer, a mask in it, or ids outside the vocabulary,
// MMADA_CONTEXT_OVERFLOW, MMADA_BUSY, MMADA_CANCELLED, MMADA_OUT_OF_MEMORY.
mmada_status mmada_context_score(mmada_context *context,
                                 const mmada_score_options *options,
                                 const uint32_t *prompt,
                                 size_t prompt_count,
                                 const uint32_t *answer,
                                 size_t answer_count,
                                 mmada_score *score,
                                 mmada_error **error);

// The codes of a picture, row by row, by the model's image tokenizer. Its sides must be multiples of the model's
// `image_downsampling`. A code plus the model's `image_offset` is an id.
//
// Owned by the caller on success: `*codes`, a buffer of ids. Threads: any.
// Fails with MMADA_INVALID_ARGUMENT for other sides, MMADA_UNSUPPORTED for a model without an image tokenizer,
// MMADA_OUT_OF_MEMORY.
mmada_status mmada_context_encode_image(const mmada_context *context,
                                        const mmada_image *image,
                                        mmada_buffer **codes,
                                        mmada_error **error);

// The picture of `columns` times `rows` codes, given row by row; its sides in pixels are the model's
// `image_downsampling` times that.
//
// Owned by the caller on success: `*image`. Threads: any.
// Fails with MMADA_INVALID_ARGUMENT for another number of codes or one outside the codebook, MMADA_UNSUPPORTED for a
// model without an image tokenizer, MMADA_OUT_OF_MEMORY.
mmada_status mmada_context_decode_image(const mmada_context *context,
                                        const uint32_t *codes,
                                        size_t code_count,
                                        size_t columns,
                                        size_t rows,
                                        mmada_image **image,
                                        mmada_error **error);

// Fills `*step`, which has `struct_size` bytes (pass sizeof), with zeros and its size.
//
// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
mmada_status mmada_step_init(mmada_step *step, size_t struct_size);

// Begins an answer to a chat of `message_count` messages, which are copied, as is everything else here. `options` may be
// NULL for what the model's file recommends, without thinking. Nothing is computed before the first step.
//
// Owned by the caller on success: `*generation`, to be freed with `mmada_generation_free`. Threads: any.
// Fails with MMADA_INVALID_ARGUMENT for options that cannot be or no messages, MMADA_CONTEXT_OVERFLOW if prompt and
// answer do not fit, MMADA_UNSUPPORTED for a picture that the model cannot see or a second one, MMADA_BAD_FORMAT if the
// file's tokenizer or chat template is damaged, MMADA_OUT_OF_MEMORY, MMADA_FORKED.
mmada_status mmada_context_begin_text(const mmada_context *context,
                                      const mmada_text_options *options,
                                      const mmada_message *messages,
                                      size_t message_count,
                                      mmada_generation **generation,
                                      mmada_error **error);

// Begins an answer to a prompt of ids, each below the model's `vocabulary`: for callers who build prompts themselves
// (`mmada_model_prompt_ids`, `mmada_model_tokenize`). The options' `thinking` must be 0: it would shape the prompt.
//
// Otherwise as `mmada_context_begin_text`.
mmada_status mmada_context_begin_text_ids(const mmada_context *context,
                                          const mmada_text_options *options,
                                          const uint32_t *prompt,
                                          size_t prompt_count,
                                          mmada_generation **generation,
                                          mmada_error **error);

// Begins a picture, or several, of what `prompt` says. `options` may be NULL for what the model's file recommends: one
// picture, without thinking. `description` says how the description is sampled that is thought out first: NULL for what
// the file recommends, and always NULL without `options->thinking`. Nothing is computed before the first step.
//
// Owned by the caller on success: `*generation`, to be freed with `mmada_generation_free`. Threads: any.
// Fails with MMADA_INVALID_ARGUMENT for options that cannot be, MMADA_CONTEXT_OVERFLOW if prompt and picture do not fit,
// MMADA_UNSUPPORTED for a model that cannot draw, MMADA_BAD_FORMAT if the file's tokenizer is damaged,
// MMADA_OUT_OF_MEMORY, MMADA_FORKED.
mmada_status mmada_context_begin_image(const mmada_context *context,
                                       const mmada_image_options *options,
                                       const mmada_text_options *description,
                                       const char *prompt,
                                       size_t prompt_length,
                                       mmada_generation **generation,
                                       mmada_error **error);

// Begins a picture, or several, from prompts that are ids already: `prompt` is everything before the picture,
// `unconditional` the same of the empty prompt, which is not looked at without guidance. The options' `thinking` must
// be 0.
//
// Otherwise as `mmada_context_begin_image`.
mmada_status mmada_context_begin_image_ids(const mmada_context *context,
                                           const mmada_image_options *options,
                                           const uint32_t *prompt,
                                           size_t prompt_count,
                                           const uint32_t *unconditional,
                                           size_t unconditional_count,
                                           mmada_generation **generation,
                                           mmada_error **error);

// Runs one step, and fills `*step`, which may be NULL, with what it did. A step that failed changed nothing and can be
// tried again, except after MMADA_CANCELLED and MMADA_PANIC, which last.
//
// Threads: any; uses the context's buffers.
// Fails with MMADA_DONE if the generation is complete, MMADA_BUSY if another thread is using it or its context,
// MMADA_CANCELLED, MMADA_OUT_OF_MEMORY, MMADA_FORKED, MMADA_BAD_FORMAT for a mapped file that was cut off.
mmada_status mmada_generation_step(mmada_generation *generation, mmada_step *step, mmada_error **error);

// Cancels a generation: the step that is running fails with MMADA_CANCELLED within one layer of the network, and so does
// every later one. Results so far can still be had, except pictures, which would have to be computed. The context and
// its other generations go on.
// Threads: any, and signal handlers: it stores to one atomic and does nothing else. The generation must not be freed
// meanwhile. Returns MMADA_NULL_POINTER or MMADA_INVALID_HANDLE for what is no generation.
mmada_status mmada_generation_cancel(const mmada_generation *generation);

// Frees a generation, complete or not. NULL is harmless. Threads: any, once no call uses it: cancel it and wait for its
// step to return.
void mmada_generation_free(mmada_generation *generation);

// Fills `*info`, which has `struct_size` bytes (pass sizeof), with zeros and its size.
//
// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
mmada_status mmada_generation_info_init(mmada_generation_info *info, size_t struct_size);

// Fills `*info` with what the generation is and how far it has come.
// Threads: any; MMADA_BUSY while another thread runs a step of it.
mmada_status mmada_generation_get_info(const mmada_generation *generation,
                                       mmada_generation_info *info,
                                       mmada_error **error);

// The answer as the model wrote it, without special tokens (with thinking: <think>...</think>answer), or a drawing's
// description. While it is being made, what stands before its first mask: that part will not change any more.
//
// Owned by the caller on success: `*text`. Threads: any; MMADA_BUSY while another thread runs a step of it.
// Fails with MMADA_INVALID_ARGUMENT for a drawing without thinking.
mmada_status mmada_generation_text(const mmada_generation *generation, mmada_buffer **text, mmada_error **error);

// What the model thought: the part between the tags. NULL if it set none.
//
// Otherwise as `mmada_generation_text`.
mmada_status mmada_generation_thinking(const mmada_generation *generation,
                                       mmada_buffer **thinking,
                                       mmada_error **error);

// The answer without the thinking.
//
// Otherwise as `mmada_generation_text`.
mmada_status mmada_generation_answer(const mmada_generation *generation, mmada_buffer **answer, mmada_error **error);

// The ids of the text, up to the token that ended it or to the first mask.
//
// Owned by the caller on success: `*ids`, a buffer of ids. Otherwise as `mmada_generation_text`.
mmada_status mmada_generation_ids(const mmada_generation *generation, mmada_buffer **ids, mmada_error **error);

// The description that a picture with thinking is drawn from: what was thought, or all of the text if the model set no
// tags. NULL for anything else.
//
// Owned by the caller on success: `*description`. Threads: any; MMADA_BUSY while another thread runs a step of it.
mmada_status mmada_generation_description(const mmada_generation *generation,
                                          mmada_buffer **description,
                                          mmada_error **error);

// What a user should be told, a sentence a line: a prompt that was cut. NULL if there is nothing.
//
// Owned by the caller on success: `*warnings`. Threads: any; MMADA_BUSY while another thread runs a step of it.
mmada_status mmada_generation_warnings(const mmada_generation *generation,
                                       mmada_buffer **warnings,
                                       mmada_error **error);

// The codes that picture `index` has now, row by row; positions that are still masked have the code that was sampled
// last. A code plus the model's `image_offset` is an id.
//
// Owned by the caller on success: `*codes`, a buffer of ids. Threads: any; MMADA_BUSY while another thread runs a step.
// Fails with MMADA_INVALID_ARGUMENT if there is no such picture, or no step of it has been taken.
mmada_status mmada_generation_codes(const mmada_generation *generation,
                                    size_t index,
                                    mmada_buffer **codes,
                                    mmada_error **error);

// Picture `index` in pixels: the result or, midway, a preview of it. Computed by every call.
//
// Owned by the caller on success: `*image`. Threads: any; MMADA_BUSY while another thread runs a step.
// Fails with MMADA_INVALID_ARGUMENT if there is no such picture, or no step of it has been taken, MMADA_CANCELLED,
// MMADA_OUT_OF_MEMORY.
mmada_status mmada_generation_image(const mmada_generation *generation,
                                    size_t index,
                                    mmada_image **image,
                                    mmada_error **error);

// The positions of the text (of the first picture where there is no text): their ids, MMADA_MASKED where nothing has
// been decided. For showing how an answer comes about.
//
// Owned by the caller on success: `*ids`, a buffer of ids. Threads: any; MMADA_BUSY while another thread runs a step.
mmada_status mmada_generation_canvas(const mmada_generation *generation, mmada_buffer **ids, mmada_error **error);

// The positions of picture `index`, row by row: their ids, MMADA_MASKED where nothing has been decided.
//
// Owned by the caller on success: `*ids`, a buffer of ids. Threads: any; MMADA_BUSY while another thread runs a step.
// Fails with MMADA_NOT_FOUND if there is no such picture.
mmada_status mmada_generation_image_canvas(const mmada_generation *generation,
                                           size_t index,
                                           mmada_buffer **ids,
                                           mmada_error **error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MMADA_H */
