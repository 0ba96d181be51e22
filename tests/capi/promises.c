/* What the header promises, one part a name: promises NAME MODEL. Nothing may be written but what a check says. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *model_path;
static mmada_model *end_model;

/* Only debug builds have it. */
extern mmada_status mmada_debug_panic(const mmada_context *context, mmada_error **error) __attribute__((weak));

/* Statuses and sentences for what cannot be. */
static void bad_options(mmada_model *model, mmada_context *context) {
    mmada_generation *generation = NULL;
    mmada_message message = said("Hello");
    mmada_message two[2];
    mmada_text_options text = text_options(model), t = text;
    mmada_image_options image = image_options(model), i = image;
    mmada_context_options c;
    mmada_context *other = NULL;
    mmada_image *picture = NULL;
    mmada_string empty = {"", 0};
    uint32_t id = 1u << 31;
    const unsigned char pixels[12] = {9, 8, 7, 6, 5, 4, 3, 2, 1, 2, 3, 4};

#define TEXT(status, sentence) \
    FAILS(status, sentence, mmada_context_begin_text(context, &t, &message, 1, &generation, &error)); \
    t = text
    t.gen_length = 0;
    TEXT(MMADA_INVALID_ARGUMENT, "gen_length is 0");
    t.block_length = 7;
    TEXT(MMADA_INVALID_ARGUMENT, "not a multiple of block_length 7");
    t.temperature = -1;
    TEXT(MMADA_INVALID_ARGUMENT, "temperature is -1");
    t.gen_length = t.block_length = t.steps = 1 << 20;
    TEXT(MMADA_CONTEXT_OVERFLOW, "the model's context is");
    t.gen_length = t.block_length = t.steps = SIZE_MAX;
    TEXT(MMADA_CONTEXT_OVERFLOW, "the model's context is");
    t.remasking = 2;
    TEXT(MMADA_INVALID_ARGUMENT, "remasking is 2");
    t.thinking = 2;
    TEXT(MMADA_INVALID_ARGUMENT, "thinking is 2, it must be 0 or 1");
    t.reserved = 1;
    TEXT(MMADA_INVALID_ARGUMENT, "reserved");
    t.stop_count = 1;
    TEXT(MMADA_NULL_POINTER, "stop");
    t.stop = &empty;
    t.stop_count = 1;
    TEXT(MMADA_INVALID_ARGUMENT, "a stop text is empty");
    t.stop = &empty;
    t.stop_count = SIZE_MAX;
    TEXT(MMADA_INVALID_ARGUMENT, "larger than memory");
    t.forbid = &id;
    t.forbid_count = 1;
    TEXT(MMADA_INVALID_ARGUMENT, "forbid holds the id 2147483648");
    t.allow_only = &id;
    t.allow_only_count = 0;
    TEXT(MMADA_INVALID_ARGUMENT, "no token to choose");
    t.allow_only = (const uint32_t *)((const char *)&id + 1);
    t.allow_only_count = 1;
    TEXT(MMADA_INVALID_ARGUMENT, "not aligned");
    message.role = 3;
    TEXT(MMADA_INVALID_ARGUMENT, "the role of message 0 is 3");
    message = said("caf\xe9");
    TEXT(MMADA_INVALID_UTF8, "the content of message 0 is not UTF-8: byte 3");
    message = said("Hello");
    message.reserved = 1;
    TEXT(MMADA_INVALID_ARGUMENT, "reserved");
    message = said("Hello");
    FAILS(MMADA_INVALID_ARGUMENT, "at least one message",
          mmada_context_begin_text(context, NULL, NULL, 0, &generation, &error));
    t.thinking = 1;
    FAILS(MMADA_INVALID_ARGUMENT, "thinking is 1, but the prompt is ids",
          mmada_context_begin_text_ids(context, &t, &id, 1, &generation, &error));
    FAILS(MMADA_INVALID_ARGUMENT, "the prompt holds the id 2147483648",
          mmada_context_begin_text_ids(context, NULL, &id, 1, &generation, &error));

#define DRAW(status, sentence) \
    FAILS(status, sentence, mmada_context_begin_image(context, &i, NULL, "a star", Z, &generation, &error)); \
    i = image
    i.width = 0;
    DRAW(MMADA_INVALID_ARGUMENT, "must be multiples of");
    i.height += 1;
    DRAW(MMADA_INVALID_ARGUMENT, "must be multiples of");
    i.count = 0;
    DRAW(MMADA_INVALID_ARGUMENT, "count is 0");
    i.count = SIZE_MAX;
    DRAW(MMADA_OUT_OF_MEMORY, "");
    i.steps = 0;
    DRAW(MMADA_INVALID_ARGUMENT, "steps is 0");
    i.guidance = -0.5f;
    DRAW(MMADA_INVALID_ARGUMENT, "guidance is -0.5");
    i.schedule = 9;
    DRAW(MMADA_INVALID_ARGUMENT, "schedule is 9");
    i.schedule = MMADA_SCHEDULE_POWER;
    i.schedule_power = 0;
    DRAW(MMADA_INVALID_ARGUMENT, "power is 0");
    i.confidence = 2;
    DRAW(MMADA_INVALID_ARGUMENT, "confidence is 2");
    i.thinking = 5;
    DRAW(MMADA_INVALID_ARGUMENT, "thinking is 5");
    FAILS(MMADA_INVALID_ARGUMENT, "thinking is 0",
          mmada_context_begin_image(context, &i, &text, "a star", Z, &generation, &error));
    CHECK(generation == NULL);

    CHECK(mmada_context_options_init(&c, sizeof c) == MMADA_OK);
    c.threads = 1025;
    FAILS(MMADA_INVALID_ARGUMENT, "the limit is 1024", mmada_context_new(model, &c, &other, &error));
    c.threads = 1;
    c.compute = 2;
    FAILS(MMADA_INVALID_ARGUMENT, "compute is 2", mmada_context_new(model, &c, &other, &error));
    c.compute = MMADA_COMPUTE_EXACT;
    c.pack = 2;
    FAILS(MMADA_INVALID_ARGUMENT, "pack is 2", mmada_context_new(model, &c, &other, &error));
    c.pack = 0;
    c.reserved = 1;
    FAILS(MMADA_INVALID_ARGUMENT, "a reserved field is 1", mmada_context_new(model, &c, &other, &error));
    c.reserved = 0;
    c.log_level = 4;
    FAILS(MMADA_INVALID_ARGUMENT, "log_level is 4", mmada_context_new(model, &c, &other, &error));
    c.log_level = 3;
    c.instruction_set = "z80";
    FAILS(MMADA_INVALID_ARGUMENT, "`z80` is not one of", mmada_context_new(model, &c, &other, &error));
    c.instruction_set = "z80 and more";
    c.instruction_set_length = 3;
    FAILS(MMADA_INVALID_ARGUMENT, "`z80` is not one of", mmada_context_new(model, &c, &other, &error));
    CHECK(other == NULL);

    FAILS(MMADA_BAD_IMAGE, "0x2 pixels", mmada_image_from_rgb(pixels, 0, 2, 0, &picture, &error));
    FAILS(MMADA_BAD_IMAGE, "16385x1", mmada_image_from_rgb(pixels, 16385, 1, 0, &picture, &error));
    FAILS(MMADA_INVALID_ARGUMENT, "stride of 5", mmada_image_from_rgb(pixels, 2, 2, 5, &picture, &error));
    FAILS(MMADA_BAD_IMAGE, "is not a picture", mmada_image_decode(pixels, 12, &picture, &error));
    OK(mmada_image_from_rgb(pixels, 1, 2, 9, &picture, &error));
    CHECK(mmada_image_width(picture) == 1 && mmada_image_height(picture) == 2);
    CHECK(memcmp(mmada_image_pixels(picture), "\x09\x08\x07\x02\x03\x04", 6) == 0);
    FAILS(MMADA_INVALID_ARGUMENT, "not as .bmp", mmada_image_save(picture, "/tmp/a.bmp", Z, &error));
    two[0] = two[1] = message;
    two[0].image = two[1].image = picture;
    FAILS(MMADA_UNSUPPORTED, "one picture", mmada_context_begin_text(context, NULL, two, 2, &generation, &error));
    mmada_image_free(picture);
}

/* Results that are not there, and a generation that is complete. */
static void bad_times(mmada_model *model, mmada_context *context) {
    mmada_buffer *buffer = NULL;
    mmada_image *picture = NULL;
    mmada_generation *generation = begin(context, "What is 17 + 25?"), *drawing = NULL;
    mmada_generation_info info;
    mmada_device_info device;
    mmada_model_info facts;
    size_t count = 0;

    FAILS(MMADA_INVALID_ARGUMENT, "there is no picture 0", mmada_generation_image(generation, 0, &picture, &error));
    FAILS(MMADA_NOT_FOUND, "no picture 0", mmada_generation_image_canvas(generation, 0, &buffer, &error));
    finish(generation);
    FAILS(MMADA_DONE, "complete", mmada_generation_step(generation, NULL, &error));
    CHECK(mmada_generation_info_init(&info, sizeof info) == MMADA_OK);
    OK(mmada_generation_get_info(generation, &info, &error));
    CHECK(info.done == 1 && info.has_text == 1 && info.image_count == 0 && info.total_steps == 12);
    mmada_generation_free(generation);

    OK(mmada_context_begin_image(context, NULL, NULL, "a star", Z, &drawing, &error));
    FAILS(MMADA_INVALID_ARGUMENT, "has no text", mmada_generation_text(drawing, &buffer, &error));
    FAILS(MMADA_INVALID_ARGUMENT, "no step", mmada_generation_codes(drawing, 0, &buffer, &error));
    buffer = (mmada_buffer *)&count;
    OK(mmada_generation_description(drawing, &buffer, &error));
    CHECK(buffer == NULL);
    OK(mmada_generation_get_info(drawing, &info, &error));
    CHECK(info.image_count == 1 && info.image_columns == 8 && info.image_rows == 8 && !info.has_text && !info.done);
    mmada_generation_free(drawing);

    FAILS(MMADA_NOT_FOUND, "there is no metadata key no.such", mmada_model_metadata(model, "no.such", Z, &buffer, &error));
    OK(mmada_model_metadata_count(model, &count, &error));
    FAILS(MMADA_NOT_FOUND, "there is no metadata entry", mmada_model_metadata_key(model, count, &buffer, &error));
    OK(mmada_model_metadata(model, "general.architecture and more", 20, &buffer, &error));
    CHECK(strcmp(mmada_buffer_text(buffer), "mmada") == 0 && mmada_buffer_length(buffer) == 5);
    CHECK(mmada_buffer_ids(buffer) == NULL && mmada_buffer_bytes(buffer) == NULL);
    mmada_buffer_free(buffer);
    CHECK(mmada_model_info_init(&facts, sizeof facts) == MMADA_OK);
    OK(mmada_model_get_info(model, &facts, &error));
    CHECK(facts.has_images && facts.image_size == 64 && facts.image_downsampling == 8 && facts.mask_id < facts.vocabulary);
    OK(mmada_model_metadata(model, "mmada.block_count", Z, &buffer, &error));
    CHECK(strtoull(mmada_buffer_text(buffer), NULL, 10) == facts.layers && facts.layers > 0);
    mmada_buffer_free(buffer);
    OK(mmada_model_metadata(model, "tokenizer.ggml.tokens", Z, &buffer, &error));
    CHECK(strncmp(mmada_buffer_text(buffer), "[\"", 2) == 0 && mmada_buffer_length(buffer) > 1000);
    mmada_buffer_free(buffer);
    OK(mmada_model_metadata_key(model, count - 1, &buffer, &error));
    CHECK(mmada_buffer_length(buffer) > 0);
    mmada_buffer_free(buffer);

    OK(mmada_device_count(&count, &error));
    CHECK(count >= 1);
    CHECK(mmada_device_info_init(&device, sizeof device) == MMADA_OK);
    OK(mmada_device_get_info(0, &device, &error));
    CHECK(strcmp(device.backend, "cpu") == 0 && device.name[0] && strstr(device.instruction_sets, "portable"));
    FAILS(MMADA_NOT_FOUND, "no device", mmada_device_get_info(count, &device, &error));
    CHECK(strcmp(mmada_version(), MMADA_VERSION) == 0 && strstr(mmada_build_info(), MMADA_VERSION));
    CHECK(strcmp(mmada_status_name(MMADA_BUSY), "MMADA_BUSY") == 0);
    CHECK(strcmp(mmada_status_name(999), "unknown status") == 0);
}

/* struct_size: too small, of a later version, garbage. */
static void struct_sizes(mmada_model *model, mmada_context *context) {
    struct {
        mmada_text_options options;
        uint64_t later[4];
    } text;
    mmada_generation *generation = NULL;
    mmada_message message = said("What is 17 + 25?");
    mmada_step step, untouched;

    memset(&text, 0xee, sizeof text);
    CHECK(mmada_text_options_init(&text.options, 7, model, 0, 0, NULL) == MMADA_STRUCT_SIZE);
    CHECK(mmada_text_options_init(&text.options, 0, model, 0, 0, NULL) == MMADA_STRUCT_SIZE);
    CHECK(mmada_text_options_init(&text.options, SIZE_MAX, model, 0, 0, NULL) == MMADA_STRUCT_SIZE);
    /* a program built with a later header: what this version does not know is zero */
    OK(mmada_text_options_init(&text.options, sizeof text, model, 0, 0, &error));
    CHECK(text.options.struct_size == sizeof text && text.later[0] == 0 && text.later[3] == 0);
    OK(mmada_context_begin_text(context, &text.options, &message, 1, &generation, &error));
    mmada_generation_free(generation);
    text.later[3] = 1;
    FAILS(MMADA_STRUCT_SIZE, "does not know",
          mmada_context_begin_text(context, &text.options, &message, 1, &generation, &error));
    text.options.struct_size = 119;
    FAILS(MMADA_STRUCT_SIZE, "struct_size is 119",
          mmada_context_begin_text(context, &text.options, &message, 1, &generation, &error));
    text.options.struct_size = (size_t)-8;
    FAILS(MMADA_STRUCT_SIZE, "was it initialized",
          mmada_context_begin_text(context, &text.options, &message, 1, &generation, &error));

    /* nothing is written on failure, and no step is lost */
    generation = begin(context, "What is 17 + 25?");
    memset(&step, 0xee, sizeof step);
    untouched = step;
    FAILS(MMADA_STRUCT_SIZE, "mmada_step", mmada_generation_step(generation, &step, &error));
    CHECK(memcmp(&step, &untouched, sizeof step) == 0);
    step.struct_size = sizeof step;
    OK(mmada_generation_step(generation, &step, &error));
    CHECK(step.index == 1 && step.total == 12 && step.change_count == 2 && step.changes && !step.done);
    mmada_generation_free(generation);
}

/* A handle that was freed, where the allocator has not given its place away. */
static void freed_handles(mmada_model *model, mmada_context *context) {
    mmada_model_info info;
    mmada_generation *generation = begin(context, "Hello");
    mmada_canceller *canceller = NULL;
    OK(mmada_canceller_new(&canceller, &error));
    CHECK(mmada_model_info_init(&info, sizeof info) == MMADA_OK);
    mmada_model_free(model);
    CHECK(mmada_model_get_info(model, &info, NULL) == MMADA_INVALID_HANDLE);
    mmada_generation_free(generation);
    CHECK(mmada_generation_step(generation, NULL, NULL) == MMADA_INVALID_HANDLE);
    CHECK(mmada_generation_cancel(generation) == MMADA_INVALID_HANDLE);
    mmada_generation_free(generation);
    mmada_canceller_free(canceller);
    CHECK(mmada_canceller_cancel(canceller) == MMADA_INVALID_HANDLE);
    /* what was made of the model goes on without it */
    CHECK(answers(context, "What is 17 + 25?", "42"));
    mmada_context_free(context);
    exit(0);
}

/* A defect comes out as a status, from any thread, and nothing is written. */
static void panics(mmada_model *model, mmada_context *context) {
    mmada_error *error = NULL;
    FAILS(MMADA_PANIC, "on purpose, in the caller's thread (src/capi/hooks.rs:", mmada_debug_panic(NULL, &error));
    FAILS(MMADA_PANIC, "on purpose, in a thread of the context", mmada_debug_panic(context, &error));
    CHECK(mmada_debug_panic(NULL, NULL) == MMADA_PANIC);
    CHECK(error == NULL);
    CHECK(answers(context, "What is 17 + 25?", "42"));
    (void)model;
}

/* In a thread that is ending, whose variables are gone (a C++ host's destructors run there), everything can be freed, and
 * what needs such a variable is a status. */
static pthread_key_t at_the_end;
static int was_called;

static void in_the_end(void *value) {
    mmada_generation *generation = value;
    mmada_context *context = new_context(end_model, 1);
    mmada_status status;
    CHECK(mmada_generation_cancel(generation) == MMADA_OK);
    FAILS(MMADA_CANCELLED, "cancelled", mmada_generation_step(generation, NULL, &error));
    mmada_generation_free(generation);
    if (mmada_debug_panic) {
        FAILS(MMADA_PANIC, "on purpose, in the caller's thread", mmada_debug_panic(NULL, &error));
        FAILS(MMADA_PANIC, "on purpose, in a thread of the context", mmada_debug_panic(context, &error));
    }
    {
        mmada_message message = said("What is 17 + 25?");
        status = mmada_context_begin_text(context, NULL, &message, 1, &generation, NULL);
    }
    CHECK(status == MMADA_OK || status == MMADA_PANIC);
    if (!status) {
        mmada_generation_free(generation);
    }
    mmada_context_free(context);
    was_called = 1;
}

static void *end_soon(void *context) {
    mmada_generation *generation = begin(context, "What is 17 + 25?");
    OK(mmada_generation_step(generation, NULL, &error));
    if (mmada_debug_panic) {
        CHECK(mmada_debug_panic(NULL, NULL) == MMADA_PANIC);
    }
    CHECK(pthread_setspecific(at_the_end, generation) == 0);
    return NULL;
}

static void ending_threads(mmada_model *model, mmada_context *context) {
    pthread_t thread;
    end_model = model;
    CHECK(pthread_key_create(&at_the_end, in_the_end) == 0);
    CHECK(pthread_create(&thread, NULL, end_soon, context) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(was_called && answers(context, "What is 17 + 25?", "42"));
}

/* Threads with small stacks may call: opening, asking, drawing, asking about the drawing, picture files. */
static void *with_a_small_stack(void *path) {
    mmada_model *model = open_model(path);
    mmada_context *context = new_context(model, 2);
    mmada_generation *generation = NULL;
    mmada_image *image = NULL, *again = NULL;
    mmada_message message = said("What color is the background?");
    uint32_t format;
    CHECK(answers(context, "What is 17 + 25?", "42"));
    OK(mmada_context_begin_image(context, NULL, NULL, "a red circle", Z, &generation, &error));
    finish(generation);
    OK(mmada_generation_image(generation, 0, &image, &error));
    mmada_generation_free(generation);
    for (format = MMADA_IMAGE_PNG; format <= MMADA_IMAGE_JPEG; format++) {
        mmada_buffer *file = NULL;
        OK(mmada_image_encode(image, format, &file, &error));
        OK(mmada_image_decode(mmada_buffer_bytes(file), mmada_buffer_length(file), &again, &error));
        mmada_buffer_free(file);
        mmada_image_free(again);
    }
    message.image = image;
    OK(mmada_context_begin_text(context, NULL, &message, 1, &generation, &error));
    finish(generation);
    mmada_generation_free(generation);
    mmada_image_free(image);
    mmada_context_free(context);
    mmada_model_free(model);
    return NULL;
}

static void small_stacks(mmada_model *model, mmada_context *context) {
    pthread_attr_t attributes;
    pthread_t thread;
    (void)model, (void)context;
    CHECK(pthread_attr_init(&attributes) == 0 && pthread_attr_setstacksize(&attributes, 256 << 10) == 0);
    CHECK(pthread_create(&thread, &attributes, with_a_small_stack, (void *)(size_t)model_path) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

/* Each context tells its own logger, at the level asked for. */
struct log {
    char text[1 << 16];
    size_t length;
    unsigned levels;
};

static void note(uint32_t level, const char *message, size_t length, void *user_data) {
    struct log *log = user_data;
    CHECK(level <= MMADA_LOG_DEBUG && message[length] == 0 && strlen(message) == length && !strchr(message, '\n'));
    CHECK(log->length + length + 2 < sizeof log->text);
    memcpy(log->text + log->length, message, length);
    log->length += length;
    log->text[log->length++] = '\n';
    log->levels |= 1u << level;
}

static int never_called(uint64_t done, uint64_t total, void *user_data) {
    (void)done;
    (void)total;
    (void)user_data;
    CHECK(!"told of progress");
    return 1;
}

/* Devices: names that are none, and what happens to the others where there is no driver. */
static void devices(mmada_model *model, mmada_context *context) {
    static const char *const wrong[] = {"", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999999999999999999"};
    static struct log log;
    mmada_context *other = NULL;
    mmada_context_options options;
    mmada_context_info info;
    mmada_device_info device;
    mmada_buffer *reason = NULL;
    size_t count = 0, i;

    CHECK(mmada_context_info_init(&info, sizeof info) == MMADA_OK);
    OK(mmada_context_get_info(context, &info, &error));
    CHECK(strcmp(info.device, "cpu") == 0 && info.gpu_layers == 0);
    CHECK(mmada_device_info_init(&device, sizeof device) == MMADA_OK);
    OK(mmada_device_get_info(0, &device, &error));
    CHECK(strcmp(device.id, "cpu") == 0 && !device.refusal[0]);
    CHECK(device.compute_capability_major == 0 && device.compute_capability_minor == 0);
    OK(mmada_device_count(&count, &error));
    for (i = 1; i < count; i++) {
        OK(mmada_device_get_info(i, &device, &error));
        CHECK(strncmp(device.id, "cuda:", 5) == 0 && strcmp(device.backend, "cuda") == 0);
        CHECK(device.name[0] && device.compute_capability_major > 0 && !device.instruction_sets[0]);
    }

    CHECK(mmada_context_options_init(&options, sizeof options) == MMADA_OK);
    CHECK(options.device == NULL && options.gpu_layers == MMADA_ALL_LAYERS && options.progress == NULL);
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        options.device = wrong[i];
        FAILS(MMADA_INVALID_ARGUMENT, "is not one of auto, cpu, cuda or cuda:N",
              mmada_context_new(model, &options, &other, &error));
    }
    options.device = "\xff";
    FAILS(MMADA_INVALID_UTF8, "the device", mmada_context_new(model, &options, &other, &error));
    options.device = "cpu and more";
    options.device_length = 3;
    options.gpu_layers = 2; /* of a card, of which there is none */
    options.progress = never_called;
    OK(mmada_context_new(model, &options, &other, &error));
    OK(mmada_context_get_info(other, &info, &error));
    CHECK(strcmp(info.device, "cpu") == 0 && info.gpu_layers == 0);
    mmada_context_free(other);
    other = NULL;
    options.gpu_layers = MMADA_ALL_LAYERS;
    options.device_length = Z;

    OK(mmada_backend_unavailable("cpu", Z, &reason, &error));
    CHECK(reason == NULL);
    FAILS(MMADA_NOT_FOUND, "no backend `vulkan`", mmada_backend_unavailable("vulkan", Z, &reason, &error));
    OK(mmada_backend_unavailable("cuda and more", 4, &reason, &error));
    CHECK((reason == NULL) == (count > 1));
    if (reason == NULL) {
        return; /* this machine has a card */
    }
    CHECK(mmada_buffer_length(reason) > 10 && !strchr(mmada_buffer_text(reason), '\n'));
    options.device = "cuda:7";
    FAILS(MMADA_INVALID_ARGUMENT, "cuda:7", mmada_context_new(model, &options, &other, &error));
    FAILS(MMADA_INVALID_ARGUMENT, mmada_buffer_text(reason), mmada_context_new(model, &options, &other, &error));
    CHECK(other == NULL);
    options.device = "auto";
    options.log = note;
    options.log_user_data = &log;
    OK(mmada_context_new(model, &options, &other, &error));
    CHECK(strstr(log.text, "running on the cpu") && strstr(log.text, mmada_buffer_text(reason)));
    CHECK(log.levels == 1u << MMADA_LOG_WARN);
    OK(mmada_context_get_info(other, &info, &error));
    CHECK(strcmp(info.device, "cpu") == 0 && answers(other, "What is 17 + 25?", "42"));
    mmada_context_free(other);
    mmada_buffer_free(reason);
}

static void loggers(mmada_model *model, mmada_context *silent) {
    static struct log one, two;
    mmada_context *first = NULL, *second = NULL;
    mmada_context_options options;
    CHECK(mmada_context_options_init(&options, sizeof options) == MMADA_OK);
    options.log = note;
    options.log_user_data = &one;
    options.log_level = MMADA_LOG_DEBUG;
    options.threads = 1;
    OK(mmada_context_new(model, &options, &first, &error));
    options.log_user_data = &two;
    options.log_level = MMADA_LOG_INFO;
    options.threads = 2;
    OK(mmada_context_new(model, &options, &second, &error));
    CHECK(strstr(one.text, "1 threads") && strstr(two.text, "2 threads"));
    CHECK(!strstr(one.text, "2 threads") && !strstr(two.text, "1 threads"));
    two.length = 0;
    memset(two.text, 0, sizeof two.text);
    CHECK(answers(first, "What is 17 + 25?", "42") && answers(silent, "What is 17 + 25?", "42"));
    CHECK(one.levels & 1u << MMADA_LOG_DEBUG && one.levels & 1u << MMADA_LOG_INFO);
    CHECK(two.length == 0 && !(two.levels & 1u << MMADA_LOG_DEBUG));
    CHECK(answers(second, "What is 17 + 25?", "42"));
    mmada_context_free(first);
    mmada_context_free(second);
}

/* Cancelling, from another thread and from a signal handler, while a step runs. */
static mmada_generation *volatile running;

static void on_alarm(int number) {
    (void)number;
    mmada_generation_cancel(running);
}

static void *cancel_soon(void *generation) {
    usleep(30000);
    CHECK(mmada_generation_cancel(generation) == MMADA_OK);
    return NULL;
}

static void cancelling(mmada_model *model, mmada_context *context) {
    int way;
    for (way = 0; way < 2; way++) {
        mmada_generation *generation = begin_long(model, context), *fresh = NULL;
        mmada_status status = MMADA_OK;
        mmada_buffer *text = NULL;
        pthread_t thread;
        running = generation;
        OK(mmada_generation_step(generation, NULL, &error));
        if (way == 0) {
            CHECK(pthread_create(&thread, NULL, cancel_soon, generation) == 0);
        } else {
            struct itimerval soon = {{0, 0}, {0, 30000}};
            signal(SIGALRM, on_alarm);
            CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
        }
        while (status == MMADA_OK) {
            status = mmada_generation_step(generation, NULL, NULL);
        }
        CHECK(status == MMADA_CANCELLED);
        if (way == 0) {
            pthread_join(thread, NULL);
        }
        FAILS(MMADA_CANCELLED, "cancelled", mmada_generation_step(generation, NULL, &error));
        OK(mmada_generation_text(generation, &text, &error));
        mmada_buffer_free(text);
        fresh = begin(context, "What is 17 + 25?");
        finish(fresh);
        mmada_generation_free(fresh);
        mmada_generation_free(generation);
    }
    CHECK(answers(context, "What is 17 + 25?", "42"));
}

/* Calls of several threads on one generation and one context: each is served or told to come later. */
struct meeting {
    mmada_generation *generation;
    const mmada_context *context;
    int busy, served;
};

static void *meet(void *argument) {
    struct meeting *m = argument;
    mmada_status status;
    while ((status = mmada_generation_step(m->generation, NULL, NULL)) != MMADA_DONE) {
        mmada_buffer *text = NULL;
        m->busy += status == MMADA_BUSY;
        m->served += status == MMADA_OK;
        CHECK(status == MMADA_BUSY || status == MMADA_OK);
        status = mmada_generation_text(m->generation, &text, NULL);
        CHECK(status == MMADA_BUSY || status == MMADA_OK);
        mmada_buffer_free(text);
    }
    return NULL;
}

static void busy(mmada_model *model, mmada_context *context) {
    enum { THREADS = 4 };
    struct meeting meetings[THREADS];
    pthread_t threads[THREADS];
    mmada_generation *shared = NULL;
    mmada_buffer *together = NULL, *alone = NULL;
    mmada_text_options options = text_options(model);
    mmada_message message = said("Count.");
    int i, all_busy = 0, served = 0;

    options.gen_length = options.block_length = options.steps = 128;
    options.temperature = 0.7;
    OK(mmada_context_begin_text(context, &options, &message, 1, &shared, &error));
    for (i = 0; i < THREADS; i++) {
        struct meeting m = {NULL, NULL, 0, 0};
        m.generation = shared;
        m.context = context;
        meetings[i] = m;
        CHECK(pthread_create(&threads[i], NULL, meet, &meetings[i]) == 0);
    }
    for (i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        all_busy += meetings[i].busy;
        served += meetings[i].served;
    }
    CHECK(all_busy > 0 && served > 0 && served <= 128);
    OK(mmada_generation_canvas(shared, &together, &error));
    mmada_generation_free(shared);
    OK(mmada_context_begin_text(context, &options, &message, 1, &shared, &error));
    finish(shared);
    OK(mmada_generation_canvas(shared, &alone, &error));
    CHECK(mmada_buffer_length(together) == 128 && mmada_buffer_length(alone) == 128);
    CHECK(memcmp(mmada_buffer_ids(together), mmada_buffer_ids(alone), 128 * sizeof(uint32_t)) == 0);
    mmada_buffer_free(together);
    mmada_buffer_free(alone);
    mmada_generation_free(shared);
}

/* 8 threads with 4 contexts on one model: the same bytes as one. */
static mmada_model *stress_model;
static mmada_context *stress_contexts[4];

static mmada_image *drawn(mmada_context *context, uint64_t seed) {
    mmada_generation *generation = NULL;
    mmada_image_options options = image_options(stress_model);
    mmada_image *image = NULL;
    mmada_status status;
    options.seed = seed;
    OK(mmada_context_begin_image(context, &options, NULL, "a red circle", Z, &generation, &error));
    while ((status = mmada_generation_step(generation, NULL, NULL)) != MMADA_DONE) {
        CHECK(status == MMADA_OK || status == MMADA_BUSY);
    }
    OK(mmada_generation_image(generation, 0, &image, &error));
    mmada_generation_free(generation);
    return image;
}

static void *draw_in_thread(void *argument) {
    size_t number = (size_t)argument;
    return drawn(stress_contexts[number % 4], number / 2);
}

static void stress(mmada_model *model, mmada_context *context) {
    pthread_t threads[8];
    size_t i;
    stress_model = model;
    for (i = 0; i < 4; i++) {
        stress_contexts[i] = new_context(model, i % 2 + 1);
    }
    for (i = 0; i < 8; i++) {
        CHECK(pthread_create(&threads[i], NULL, draw_in_thread, (void *)i) == 0);
    }
    for (i = 0; i < 8; i++) {
        void *image;
        mmada_image *alone = drawn(context, i / 2);
        pthread_join(threads[i], &image);
        CHECK(memcmp(mmada_image_pixels(image), mmada_image_pixels(alone), 64 * 64 * 3) == 0);
        mmada_image_free(alone);
        mmada_image_free(image);
    }
    for (i = 0; i < 4; i++) {
        mmada_context_free(stress_contexts[i]);
    }
}

/* Parent and child of a fork. */
static void forking(mmada_model *model, mmada_context *context) {
    mmada_generation *generation = begin(context, "What is 17 + 25?");
    int status = 0;
    pid_t child;
    OK(mmada_generation_step(generation, NULL, &error));
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        mmada_context *own;
        alarm(60);
        FAILS(MMADA_FORKED, "forked", mmada_generation_step(generation, NULL, &error));
        mmada_generation_free(generation);
        mmada_context_free(context);
        own = new_context(model, 2);
        CHECK(answers(own, "What is 17 + 25?", "42"));
        mmada_context_free(own);
        mmada_model_free(model);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    finish(generation);
    CHECK(answers(context, "What is 17 + 25?", "42"));
    mmada_generation_free(generation);
}

/* The ways to open a model. */
static int progress_calls, progress_answer;
static uint64_t progress_done, progress_total;

static int progress(uint64_t done, uint64_t total, void *user_data) {
    CHECK(user_data == &progress_calls && done <= total && done >= progress_done);
    progress_calls++;
    progress_done = done;
    progress_total = total;
    return progress_answer;
}

static void opening(mmada_model *mapped, mmada_context *context) {
    mmada_model *model = NULL;
    mmada_open_options options;
    struct stat facts;
    unsigned char *memory;
    int fd = open(model_path, O_RDONLY);
    (void)mapped, (void)context;
    CHECK(fd >= 0 && fstat(fd, &facts) == 0);
    CHECK(posix_memalign((void **)&memory, 64, (size_t)facts.st_size + 64) == 0);
    CHECK(read(fd, memory, (size_t)facts.st_size) == facts.st_size);

    OK(mmada_model_open_fd(fd, "by descriptor", Z, NULL, &model, &error));
    CHECK(lseek(fd, 0, SEEK_CUR) == facts.st_size);
    CHECK(close(fd) == 0);
    context = new_context(model, 1);
    CHECK(answers(context, "What is 17 + 25?", "42"));
    mmada_context_free(context);
    mmada_model_free(model);
    model = NULL;

    OK(mmada_model_open_memory(memory, (size_t)facts.st_size, "in memory", Z, &model, &error));
    context = new_context(model, 1);
    mmada_model_free(model);
    CHECK(answers(context, "What is 17 + 25?", "42"));
    mmada_context_free(context);
    model = NULL;
    FAILS(MMADA_INVALID_ARGUMENT, "in memory: ", mmada_model_open_memory(memory + 1, 99, "in memory", Z, &model, &error));
    FAILS(MMADA_BAD_FORMAT, "in memory: ",
          mmada_model_open_memory(memory, (size_t)facts.st_size / 2, "in memory", Z, &model, &error));
    free(memory);

    CHECK(mmada_open_options_init(&options, sizeof options) == MMADA_OK && options.use_mmap == 1);
    options.use_mmap = 0;
    options.progress = progress;
    options.progress_user_data = &progress_calls;
    OK(mmada_model_open(model_path, Z, &options, &model, &error));
    CHECK(progress_calls >= 2 && progress_done == progress_total && progress_total == (uint64_t)facts.st_size);
    mmada_model_free(model);
    model = NULL;
    progress_answer = 1;
    progress_done = 0;
    FAILS(MMADA_CANCELLED, "cancelled", mmada_model_open(model_path, Z, &options, &model, &error));

    options.use_mmap = 2;
    FAILS(MMADA_INVALID_ARGUMENT, "use_mmap is 2", mmada_model_open(model_path, Z, &options, &model, &error));
    FAILS(MMADA_IO_ERROR, "/no/such/file: ", mmada_model_open("/no/such/file/at all", 13, NULL, &model, &error));
    FAILS(MMADA_IO_ERROR, "", mmada_model_open("a\0b", 3, NULL, &model, &error));
    FAILS(MMADA_IO_ERROR, "/no/such file\xef\xbf\xbd[2J\xef\xbf\xbd: ",
          mmada_model_open("/no/such\nfile\033[2J\0", 18, NULL, &model, &error));
    FAILS(MMADA_INVALID_ARGUMENT, "-1 is no file descriptor", mmada_model_open_fd(-1, "d", 1, NULL, &model, &error));
    FAILS(MMADA_IO_ERROR, "closed: ", mmada_model_open_fd(fd, "closed", Z, NULL, &model, &error));
    CHECK(model == NULL);
}

/* A context's limit, and what it says that it has. */
static void memory_limits(mmada_model *model, mmada_context *context) {
    mmada_context_options options;
    mmada_context_info info;
    mmada_context *small = NULL;
    mmada_generation *generation = NULL;
    mmada_estimate estimate;
    mmada_text_options text = text_options(model);
    mmada_message message = said("Hello");
    mmada_status status = MMADA_OK;
    double seconds = -1;

    CHECK(mmada_estimate_init(&estimate, sizeof estimate) == MMADA_OK);
    OK(mmada_model_estimate_text(model, 20, &text, &estimate, &error));
    CHECK(estimate.weight_bytes > 1000000 && estimate.scratch_bytes > 0 && estimate.tokens > 0);
    OK(mmada_context_estimate_seconds(context, &estimate, &seconds, &error));
    CHECK(seconds > 0 && seconds < 1000);
    CHECK(mmada_context_options_init(&options, sizeof options) == MMADA_OK);
    options.threads = 1;
    options.memory_limit = 100000;
    OK(mmada_context_new(model, &options, &small, &error));
    text.gen_length = text.block_length = text.steps = 256;
    status = mmada_context_begin_text(small, &text, &message, 1, &generation, NULL);
    if (status == MMADA_OK) {
        status = mmada_generation_step(generation, NULL, NULL);
    }
    CHECK(status == MMADA_OUT_OF_MEMORY);
    mmada_generation_free(generation);
    CHECK(mmada_context_info_init(&info, sizeof info) == MMADA_OK);
    OK(mmada_context_get_info(small, &info, &error));
    CHECK(info.threads == 1 && info.memory_used <= 100000 && info.instruction_set[0]);
    CHECK(info.packed_bytes > 100000);
    mmada_context_free(small);
    small = NULL;
    options.pack = 1;
    FAILS(MMADA_OUT_OF_MEMORY, "a packed copy of the model's weights", mmada_context_new(model, &options, &small, &error));
    options.memory_limit = info.packed_bytes;
    OK(mmada_context_new(model, &options, &small, &error));
    OK(mmada_context_get_info(small, &info, &error));
    CHECK(info.memory_used == info.packed_bytes && info.memory_used == options.memory_limit);
    mmada_context_free(small);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(mmada_model *, mmada_context *);
    } parts[] = {
        {"bad_options", bad_options}, {"bad_times", bad_times},     {"struct_sizes", struct_sizes},
        {"ending_threads", ending_threads}, {"small_stacks", small_stacks},
        {"panics", panics},           {"loggers", loggers},         {"cancelling", cancelling},
        {"busy", busy},               {"stress", stress},           {"forking", forking},
        {"devices", devices},         {"opening", opening},         {"memory_limits", memory_limits}, {"freed_handles", freed_handles},
    };
    size_t i;
    CHECK(argc == 3);
    model_path = argv[2];
    for (i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (strcmp(parts[i].name, argv[1]) == 0) {
            mmada_model *model = open_model(argv[2]);
            mmada_context *context = new_context(model, 2);
            parts[i].run(model, context);
            mmada_context_free(context);
            mmada_model_free(model);
            return 0;
        }
    }
    fprintf(stderr, "there is no part %s\n", argv[1]);
    return 1;
}
