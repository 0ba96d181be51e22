/* What the test programs share: checks that say where they failed, and short ways to begin. */
#ifndef CHECK_H
#define CHECK_H

#include <mmada.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            exit(1); \
        } \
    } while (0)

/* A call that has to succeed; it has a parameter `error`. */
#define OK(call) \
    do { \
        mmada_error *error = NULL; \
        if ((call) != MMADA_OK) { \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, mmada_error_message(error)); \
            exit(1); \
        } \
        CHECK(error == NULL); \
    } while (0)

/* A call that has to fail with a status, and with a sentence that holds a text. */
#define FAILS(expected, text, call) \
    do { \
        mmada_error *error = NULL; \
        mmada_status got = (call); \
        if (got != (expected) || mmada_error_status(error) != got || !strstr(mmada_error_message(error), text)) { \
            fprintf(stderr, "%s:%d: %s: %s: %s\n", __FILE__, __LINE__, #call, mmada_status_name(got), \
                    mmada_error_message(error)); \
            exit(1); \
        } \
        mmada_error_free(error); \
    } while (0)

#define Z MMADA_NUL_TERMINATED

static inline mmada_message said(const char *text) {
    mmada_message message = {NULL, MMADA_NUL_TERMINATED, NULL, MMADA_ROLE_USER, 0};
    message.content = text;
    return message;
}

static inline mmada_model *open_model(const char *path) {
    mmada_model *model = NULL;
    OK(mmada_model_open(path, Z, NULL, &model, &error));
    return model;
}

static inline mmada_context *new_context(const mmada_model *model, size_t threads) {
    mmada_context *context = NULL;
    mmada_context_options options;
    CHECK(mmada_context_options_init(&options, sizeof options) == MMADA_OK);
    options.threads = threads;
    OK(mmada_context_new(model, &options, &context, &error));
    return context;
}

static inline mmada_text_options text_options(const mmada_model *model) {
    mmada_text_options options;
    OK(mmada_text_options_init(&options, sizeof options, model, 0, 0, &error));
    return options;
}

static inline mmada_image_options image_options(const mmada_model *model) {
    mmada_image_options options;
    OK(mmada_image_options_init(&options, sizeof options, model, 0, &error));
    return options;
}

static inline mmada_generation *begin(const mmada_context *context, const char *question) {
    mmada_generation *generation = NULL;
    mmada_message message = said(question);
    OK(mmada_context_begin_text(context, NULL, &message, 1, &generation, &error));
    return generation;
}

/* An answer that takes 512 steps over 512 tokens. */
static inline mmada_generation *begin_long(const mmada_model *model, const mmada_context *context) {
    mmada_generation *generation = NULL;
    mmada_message message = said("Tell me everything.");
    mmada_text_options options = text_options(model);
    mmada_model_info info;
    uint32_t never[2];
    CHECK(mmada_model_info_init(&info, sizeof info) == MMADA_OK);
    OK(mmada_model_get_info(model, &info, &error));
    never[0] = info.eos_id;
    never[1] = info.eot_id;
    options.forbid = never;
    options.forbid_count = 2;
    options.gen_length = options.block_length = options.steps = 512;
    OK(mmada_context_begin_text(context, &options, &message, 1, &generation, &error));
    return generation;
}

static inline void finish(mmada_generation *generation) {
    mmada_step step;
    CHECK(mmada_step_init(&step, sizeof step) == MMADA_OK);
    while (!step.done) {
        OK(mmada_generation_step(generation, &step, &error));
    }
}

/* Whether a question is answered as it should be. */
static inline int answers(const mmada_context *context, const char *question, const char *expected) {
    mmada_buffer *answer = NULL;
    mmada_generation *generation = begin(context, question);
    int right;
    finish(generation);
    OK(mmada_generation_answer(generation, &answer, &error));
    right = strcmp(mmada_buffer_text(answer), expected) == 0;
    mmada_buffer_free(answer);
    mmada_generation_free(generation);
    return right;
}

#endif
