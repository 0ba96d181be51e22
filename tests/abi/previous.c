/* Built with the first header (v0) and run with the library of today: its structs are smaller. */
#include <mmada.h>
#include <stdio.h>
#include <string.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
            return 1; \
        } \
    } while (0)

/* A struct with what lies behind it, which the library must leave alone. */
static struct {
    mmada_text_options options;
    unsigned char behind[64];
} text;

int main(int argc, char **argv) {
    mmada_model *model = NULL;
    mmada_context *context = NULL;
    mmada_generation *generation = NULL;
    mmada_buffer *answer = NULL;
    mmada_message question = {"What is 17 + 25?", MMADA_NUL_TERMINATED, NULL, MMADA_ROLE_USER, 0};
    mmada_step step;
    size_t i;

    CHECK(argc == 2);
    CHECK(sizeof(mmada_text_options) == 120);
    CHECK(mmada_model_open(argv[1], MMADA_NUL_TERMINATED, NULL, &model, NULL) == MMADA_OK);
    CHECK(mmada_context_new(model, NULL, &context, NULL) == MMADA_OK);
    memset(&text, 0xa5, sizeof text);
    CHECK(mmada_text_options_init(&text.options, sizeof text.options, model, 1, 0, NULL) == MMADA_OK);
    CHECK(text.options.struct_size == sizeof text.options && text.options.reserved == 0);
    CHECK(mmada_context_begin_text(context, &text.options, &question, 1, &generation, NULL) == MMADA_OK);
    CHECK(mmada_step_init(&step, sizeof step) == MMADA_OK);
    while (!step.done) {
        CHECK(mmada_generation_step(generation, &step, NULL) == MMADA_OK);
    }
    CHECK(mmada_generation_answer(generation, &answer, NULL) == MMADA_OK);
    CHECK(strcmp(mmada_buffer_text(answer), "42") == 0);
    for (i = 0; i < sizeof text.behind; i++) {
        CHECK(text.behind[i] == 0xa5);
    }
    mmada_buffer_free(answer);
    mmada_generation_free(generation);
    mmada_context_free(context);
    mmada_model_free(model);
    return 0;
}
