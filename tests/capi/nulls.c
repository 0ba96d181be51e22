/* What tests/capi/nulls.rs fills with variables and calls. */
#include <mmada.h>
#include <stdio.h>
#include <string.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s is not so\n", #condition); \
            failures++; \
        } \
    } while (0)

static int failures;

/* variables */

static int prepare(const char *path) {
    static const unsigned char pixel[3] = {1, 2, 3};
    static mmada_message message = {"Hello", MMADA_NUL_TERMINATED, NULL, MMADA_ROLE_USER, 0};
    a_mmada_message = message;
    return mmada_model_open(path, MMADA_NUL_TERMINATED, NULL, &a_mmada_model, NULL) ||
           mmada_context_new(a_mmada_model, NULL, &a_mmada_context, NULL) ||
           mmada_image_from_rgb(pixel, 1, 1, 0, &a_mmada_image, NULL) ||
           mmada_canceller_new(&a_mmada_canceller, NULL) ||
           mmada_model_tokenize(a_mmada_model, "one two", 7, 0, &a_mmada_buffer, NULL) ||
           mmada_context_begin_text(a_mmada_context, NULL, &message, 1, &a_mmada_generation, NULL) ||
           mmada_image_decode(pixel, 3, &a_mmada_image, &a_mmada_error) != MMADA_BAD_IMAGE || /* not written then */
           mmada_open_options_init(&a_mmada_open_options, sizeof a_mmada_open_options) ||
           mmada_model_info_init(&a_mmada_model_info, sizeof a_mmada_model_info) ||
           mmada_estimate_init(&a_mmada_estimate, sizeof a_mmada_estimate) ||
           mmada_device_info_init(&a_mmada_device_info, sizeof a_mmada_device_info) ||
           mmada_context_options_init(&a_mmada_context_options, sizeof a_mmada_context_options) ||
           mmada_context_info_init(&a_mmada_context_info, sizeof a_mmada_context_info) ||
           mmada_score_options_init(&a_mmada_score_options, sizeof a_mmada_score_options) ||
           mmada_score_init(&a_mmada_score, sizeof a_mmada_score) ||
           mmada_step_init(&a_mmada_step, sizeof a_mmada_step) ||
           mmada_generation_info_init(&a_mmada_generation_info, sizeof a_mmada_generation_info) ||
           mmada_text_options_init(&a_mmada_text_options, sizeof a_mmada_text_options, a_mmada_model, 0, 0, NULL) ||
           mmada_image_options_init(&a_mmada_image_options, sizeof a_mmada_image_options, a_mmada_model, 0, NULL);
}

int main(int argc, char **argv) {
    if (argc != 2 || prepare(argv[1])) {
        fprintf(stderr, "what the calls need could not be made\n");
        return 1;
    }
/* checks */
    return failures != 0;
}
