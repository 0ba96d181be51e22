/* Draws a picture: draw MODEL.gguf PROMPT OUT.png [SEED] */
#include <mmada.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(const char *what, mmada_error *error) {
    fprintf(stderr, "draw: %s: %s\n", what, mmada_error_message(error));
    mmada_error_free(error);
    return 1;
}

int main(int argc, char **argv) {
    mmada_error *error = NULL;
    mmada_model *model = NULL;
    mmada_context *context = NULL;
    mmada_generation *generation = NULL;
    mmada_image *image = NULL;
    mmada_image_options options;
    mmada_status status = MMADA_OK;
    int failed = 1;

    if (argc < 4) {
        fprintf(stderr, "usage: draw MODEL.gguf PROMPT OUT.png [SEED]\n");
        return 2;
    }
    if (mmada_model_open(argv[1], MMADA_NUL_TERMINATED, NULL, &model, &error)) {
        fail("open", error);
    } else if (mmada_context_new(model, NULL, &context, &error)) {
        fail("context", error);
    } else if (mmada_image_options_init(&options, sizeof options, model, 0, &error)) {
        fail("options", error);
    } else {
        options.seed = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;
        if (mmada_context_begin_image(context, &options, NULL, argv[2], MMADA_NUL_TERMINATED, &generation, &error)) {
            fail("begin", error);
        } else {
            /* Where there is nothing to show, the end is a status. */
            while ((status = mmada_generation_step(generation, NULL, &error)) == MMADA_OK) {
            }
            if (status != MMADA_DONE) {
                fail("step", error);
            } else {
                mmada_error_free(error);
                error = NULL;
                if (mmada_generation_image(generation, 0, &image, &error)) {
                    fail("image", error);
                } else if (mmada_image_save(image, argv[3], MMADA_NUL_TERMINATED, &error)) {
                    fail("save", error);
                } else {
                    failed = 0;
                }
            }
        }
    }
    mmada_image_free(image);
    mmada_generation_free(generation);
    mmada_context_free(context);
    mmada_model_free(model);
    return failed;
}
