/* Asks a question, about a picture if one is given: ask MODEL.gguf QUESTION [PICTURE] */
#include <mmada.h>
#include <stdio.h>

static int fail(const char *what, mmada_error *error) {
    fprintf(stderr, "ask: %s: %s\n", what, mmada_error_message(error));
    mmada_error_free(error);
    return 1;
}

/* Runs a generation to its end and prints the answer. */
static int answer(mmada_generation *generation) {
    mmada_error *error = NULL;
    mmada_buffer *text = NULL;
    mmada_step step;

    mmada_step_init(&step, sizeof step);
    while (!step.done) {
        if (mmada_generation_step(generation, &step, &error)) {
            return fail("step", error);
        }
    }
    if (mmada_generation_answer(generation, &text, &error)) {
        return fail("answer", error);
    }
    puts(mmada_buffer_text(text));
    mmada_buffer_free(text);
    return 0;
}

int main(int argc, char **argv) {
    mmada_error *error = NULL;
    mmada_model *model = NULL;
    mmada_context *context = NULL;
    mmada_generation *generation = NULL;
    mmada_image *picture = NULL;
    mmada_message question = {NULL, MMADA_NUL_TERMINATED, NULL, MMADA_ROLE_USER, 0};
    int failed = 1;

    if (argc < 3) {
        fprintf(stderr, "usage: ask MODEL.gguf QUESTION [PICTURE]\n");
        return 2;
    }
    if (mmada_model_open(argv[1], MMADA_NUL_TERMINATED, NULL, &model, &error)) {
        fail("open", error);
    } else if (mmada_context_new(model, NULL, &context, &error)) {
        fail("context", error);
    } else if (argc > 3 && mmada_image_load(argv[3], MMADA_NUL_TERMINATED, &picture, &error)) {
        fail("picture", error);
    } else {
        question.content = argv[2];
        question.image = picture;
        if (mmada_context_begin_text(context, NULL, &question, 1, &generation, &error)) {
            fail("begin", error);
        } else {
            failed = answer(generation);
        }
    }
    mmada_generation_free(generation);
    mmada_image_free(picture);
    mmada_context_free(context);
    mmada_model_free(model);
    return failed;
}
