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

/* Opens, begins and takes two steps. Returns the first failure; everything is freed either way. */
static mmada_status attempt(const char *path, int drawing) {
    mmada_open_options options;
    mmada_model *model = NULL;
    mmada_context *context = NULL;
    mmada_generation *generation = NULL;
    mmada_message message = said("What is 17 + 25?");
    mmada_context_options two;
    mmada_status status;
    int i;

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
    if (!status && drawing) {
        status = mmada_context_begin_image(context, NULL, NULL, "a red circle", Z, &generation, NULL);
    } else if (!status) {
        status = mmada_context_begin_text(context, NULL, &message, 1, &generation, NULL);
    }
    for (i = 0; i < 2 && !status; i++) {
        status = mmada_generation_step(generation, NULL, NULL);
    }
    if (drawing && !status) {
        mmada_image *image = NULL;
        status = mmada_generation_image(generation, 0, &image, NULL);
        mmada_image_free(image);
    }
    mmada_generation_free(generation);
    mmada_context_free(context);
    mmada_model_free(model);
    return status;
}

int main(int argc, char **argv) {
    int drawing;
    CHECK(argc == 2);
    for (drawing = 0; drawing < 2; drawing++) {
        long count, n, before;
        CHECK(attempt(argv[1], drawing) == MMADA_OK); /* what is made once for the process is there now */
        before = alive;
        seen = 0;
        CHECK(attempt(argv[1], drawing) == MMADA_OK);
        count = seen;
        CHECK(count >= 5);
        for (n = 1; n <= count; n++) {
            mmada_status status;
            seen = failed = 0;
            failing = n;
            status = attempt(argv[1], drawing);
            failing = 0;
            if (failed != 1 || status != MMADA_OUT_OF_MEMORY || alive != before) {
                fprintf(stderr, "large request %ld of %ld (drawing %d): %s, %ld failed, %ld large blocks left\n", n,
                        count, drawing, mmada_status_name(status), failed, alive - before);
                return 1;
            }
        }
        CHECK(attempt(argv[1], drawing) == MMADA_OK);
    }
    return 0;
}
