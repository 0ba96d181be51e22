/* An allocator whose N-th request of 64 KiB or more fails, for every N through opening and two steps: failing MODEL.
 * The tokenizer is built of other people's code, which does not survive that: it is built while nothing fails.
 * The functions here take the place of the C library's for the whole process, the library's Rust included. */
#include "check.h"

#include <errno.h>
#include <malloc.h>

enum { LARGE = 64 << 10 };

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

/* Which large request fails, counted from 1 (0 for none); how many were made and how many failed; large blocks alive.
 * Only touched by the __sync functions: several threads allocate. */
static long failing, seen, failed, alive, paused;

static int refuse(size_t size) {
    if (size < LARGE || __sync_add_and_fetch(&paused, 0) ||
        __sync_add_and_fetch(&seen, 1) != __sync_add_and_fetch(&failing, 0)) {
        return 0;
    }
    __sync_add_and_fetch(&failed, 1);
    errno = ENOMEM;
    return 1;
}

static long is_large(void *at) {
    return at && malloc_usable_size(at) >= LARGE;
}

static void *made(void *at) {
    __sync_add_and_fetch(&alive, is_large(at));
    return at;
}

void *malloc(size_t size) {
    return refuse(size) ? NULL : made(__libc_malloc(size));
}

void *calloc(size_t count, size_t size) {
    if (size && count > SIZE_MAX / size) {
        return NULL;
    }
    return refuse(count * size) ? NULL : made(__libc_calloc(count, size));
}

void *realloc(void *at, size_t size) {
    long before = is_large(at);
    void *moved;
    if (refuse(size)) {
        return NULL;
    }
    moved = __libc_realloc(at, size);
    if (moved || !size) {
        __sync_sub_and_fetch(&alive, before);
        made(moved);
    }
    return moved;
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    void *at = refuse(size) ? NULL : made(__libc_memalign(alignment, size));
    if (!at) {
        return ENOMEM;
    }
    *out = at;
    return 0;
}

void *aligned_alloc(size_t alignment, size_t size) {
    return refuse(size) ? NULL : made(__libc_memalign(alignment, size));
}

void free(void *at) {
    __sync_sub_and_fetch(&alive, is_large(at));
    __libc_free(at);
}

/* What is asked for: an answer, a picture, and so many pictures that what a step changed is a large block, too. */
enum { ANSWER, PICTURE, PICTURES, KINDS, MANY = 50 };

static mmada_status begin_kind(const mmada_context *context, const mmada_model *model, int kind, mmada_generation **out) {
    mmada_message message = said("What is 17 + 25?");
    mmada_image_options options = image_options(model);
    if (kind == ANSWER) {
        return mmada_context_begin_text(context, NULL, &message, 1, out, NULL);
    }
    if (kind == PICTURES) {
        options.count = MANY;
        options.steps = 1;
    }
    return mmada_context_begin_image(context, &options, NULL, "a red circle", Z, out, NULL);
}

/* What two steps changed, as a number that depends on all of it. */
static uint32_t outcome;

/* Takes up to two steps. One that fails is tried again: a step that failed changed nothing, and loses nothing. */
static mmada_status two_steps(mmada_generation *generation) {
    mmada_status first = MMADA_OK;
    mmada_step step;
    size_t c;
    int i;
    CHECK(mmada_step_init(&step, sizeof step) == MMADA_OK);
    outcome = 2166136261u;
    for (i = 0; i < 2 && !step.done; i++) {
        mmada_status status = mmada_generation_step(generation, &step, NULL);
        if (status) {
            CHECK(!first && mmada_generation_step(generation, &step, NULL) == MMADA_OK);
            first = status;
        }
        CHECK(step.change_count > 0);
        for (c = 0; c < step.change_count; c++) {
            const mmada_change *change = &step.changes[c];
            outcome = (outcome ^ (uint32_t)(change->sequence * 64 + change->position)) * 16777619u;
            outcome = (outcome ^ change->id) * 16777619u;
        }
    }
    return first;
}

/* Opens, begins and takes two steps. Returns the first failure; everything is freed either way. */
static mmada_status attempt(const char *path, int kind) {
    mmada_open_options options;
    mmada_model *model = NULL;
    mmada_context *context = NULL;
    mmada_generation *generation = NULL;
    mmada_context_options two;
    mmada_status status;

    mmada_open_options_init(&options, sizeof options);
    mmada_context_options_init(&two, sizeof two);
    options.use_mmap = 0;
    two.threads = 2;
    status = mmada_model_open(path, Z, &options, &model, NULL);
    if (!status) {
        mmada_buffer *ids = NULL;
        paused = 1;
        CHECK(mmada_model_tokenize(model, "a", Z, 0, &ids, NULL) == MMADA_OK);
        paused = 0;
        mmada_buffer_free(ids);
    }
    status = status ? status : mmada_context_new(model, &two, &context, NULL);
    status = status ? status : begin_kind(context, model, kind, &generation);
    if (!status) {
        uint32_t expected = outcome;
        status = two_steps(generation);
        CHECK(!status || outcome == expected);
    }
    if (kind != ANSWER && !status) {
        mmada_image *image = NULL;
        status = mmada_generation_image(generation, kind == PICTURES ? MANY - 1 : 0, &image, NULL);
        mmada_image_free(image);
    }
    mmada_generation_free(generation);
    mmada_context_free(context);
    mmada_model_free(model);
    return status;
}

/* Pictures of files and texts of ids, whose size is the request's. The codecs do not survive being refused memory, so
 * all that they will take is asked for first: it is that request which fails here. */
static void codecs(const char *path) {
    enum { WIDTH = 320, HEIGHT = 300, IDS = 100000 };
    static unsigned char pixels[WIDTH * HEIGHT * 3];
    static uint32_t ids[IDS];
    mmada_model *model = open_model(path);
    mmada_image *image = NULL, *decoded = NULL;
    mmada_buffer *file = NULL, *encoded = NULL, *text = NULL;
    mmada_status status = MMADA_OUT_OF_MEMORY;
    size_t i;
    long n;

    for (i = 0; i < sizeof pixels; i++) {
        pixels[i] = (unsigned char)(i * 2654435761u >> 13);
    }
    OK(mmada_model_tokenize(model, "a", Z, 0, &text, &error));
    for (i = 0; i < IDS; i++) {
        ids[i] = mmada_buffer_ids(text)[0];
    }
    mmada_buffer_free(text);
    OK(mmada_image_from_rgb(pixels, WIDTH, HEIGHT, 0, &image, &error));
    OK(mmada_image_encode(image, MMADA_IMAGE_PNG, &file, &error));
#define REFUSED(call) \
    do { \
        seen = failed = 0; \
        failing = 1; \
        FAILS(MMADA_OUT_OF_MEMORY, "out of memory: ", call); \
        CHECK(failed == 1); \
        failing = 0; \
    } while (0)
    REFUSED(mmada_image_from_rgb(pixels, WIDTH, HEIGHT, 0, &decoded, &error));
    REFUSED(mmada_image_encode(image, MMADA_IMAGE_PNG, &encoded, &error));
    REFUSED(mmada_image_encode(image, MMADA_IMAGE_JPEG, &encoded, &error));
    REFUSED(mmada_image_save(image, "refused.png", Z, &error));
    REFUSED(mmada_image_decode(mmada_buffer_bytes(file), mmada_buffer_length(file), &decoded, &error));
    for (n = 1; status == MMADA_OUT_OF_MEMORY; n++) {
        seen = failed = 0;
        failing = n;
        text = NULL;
        status = mmada_model_detokenize(model, ids, IDS, 0, &text, NULL);
        failing = 0;
        CHECK(status == (failed ? MMADA_OUT_OF_MEMORY : MMADA_OK) && (n > 1 || failed));
    }
    CHECK(status == MMADA_OK && mmada_buffer_length(text) == IDS && !encoded && !decoded);
    mmada_buffer_free(text);
    mmada_buffer_free(file);
    mmada_image_free(image);
    mmada_model_free(model);
}

int main(int argc, char **argv) {
    int kind;
    CHECK(argc == 2);
    codecs(argv[1]);
    for (kind = 0; kind < KINDS; kind++) {
        long count, n, before;
        CHECK(attempt(argv[1], kind) == MMADA_OK); /* what is made once for the process is there now */
        before = alive;
        seen = 0;
        CHECK(attempt(argv[1], kind) == MMADA_OK);
        count = seen;
        CHECK(count >= 5);
        for (n = 1; n <= count; n++) {
            mmada_status status;
            int tries = 0;
            /* A thread asks for memory of its own once there is work for it. On a busy machine one may get none, and the
             * last requests are not made: then it is tried again. */
            do {
                seen = failed = 0;
                failing = n;
                status = attempt(argv[1], kind);
                failing = 0;
            } while (seen < n && status == MMADA_OK && alive == before && ++tries < 200);
            if (failed != 1 || status != MMADA_OUT_OF_MEMORY || alive != before) {
                fprintf(stderr, "large request %ld of %ld (kind %d): %s, %ld failed, %ld large blocks left\n", n,
                        count, kind, mmada_status_name(status), failed, alive - before);
                return 1;
            }
        }
        CHECK(attempt(argv[1], kind) == MMADA_OK);
    }
    return 0;
}
