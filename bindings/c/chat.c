/* A conversation: chat MODEL.gguf, then a line for every message. The answer is written as far as it is settled. */
#include <mmada.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_MESSAGES = 64, LONGEST_LINE = 4096 };

static int fail(const char *what, mmada_error *error) {
    fprintf(stderr, "chat: %s: %s\n", what, mmada_error_message(error));
    mmada_error_free(error);
    return 1;
}

/* Writes the answer while it comes about: what stands before its first mask does not change any more. */
static int stream(mmada_generation *generation, mmada_buffer **answer) {
    mmada_error *error = NULL;
    mmada_step step;
    size_t written = 0;

    mmada_step_init(&step, sizeof step);
    while (!step.done) {
        mmada_buffer *text = NULL;
        if (mmada_generation_step(generation, &step, &error) || mmada_generation_text(generation, &text, &error)) {
            return fail("step", error);
        }
        if (mmada_buffer_length(text) > written) {
            fputs(mmada_buffer_text(text) + written, stdout);
            fflush(stdout);
            written = mmada_buffer_length(text);
        }
        mmada_buffer_free(text);
    }
    putchar('\n');
    return mmada_generation_answer(generation, answer, &error) ? fail("answer", error) : 0;
}

static int turn(mmada_context *context, const mmada_message *messages, size_t count, mmada_buffer **answer) {
    mmada_error *error = NULL;
    mmada_generation *generation = NULL;
    int failed;

    if (mmada_context_begin_text(context, NULL, messages, count, &generation, &error)) {
        return fail("begin", error);
    }
    failed = stream(generation, answer);
    mmada_generation_free(generation);
    return failed;
}

/* Reads lines and answers them. The conversation's texts are ours: the library copies what it is given. */
static int converse(mmada_context *context) {
    static char lines[MOST_MESSAGES / 2][LONGEST_LINE];
    mmada_buffer *answers[MOST_MESSAGES / 2] = {NULL};
    mmada_message messages[MOST_MESSAGES];
    size_t count = 0, i;
    int failed = 0;

    while (!failed && count + 2 <= MOST_MESSAGES && fgets(lines[count / 2], LONGEST_LINE, stdin)) {
        char *line = lines[count / 2];
        mmada_message said = {line, MMADA_NUL_TERMINATED, NULL, MMADA_ROLE_USER, 0};
        line[strcspn(line, "\n")] = 0;
        messages[count] = said;
        failed = turn(context, messages, count + 1, &answers[count / 2]);
        if (!failed) {
            mmada_message answered = {NULL, 0, NULL, MMADA_ROLE_ASSISTANT, 0};
            answered.content = mmada_buffer_text(answers[count / 2]);
            answered.content_length = mmada_buffer_length(answers[count / 2]);
            messages[count + 1] = answered;
            count += 2;
        }
    }
    for (i = 0; i < MOST_MESSAGES / 2; i++) {
        mmada_buffer_free(answers[i]);
    }
    return failed;
}

int main(int argc, char **argv) {
    mmada_error *error = NULL;
    mmada_model *model = NULL;
    mmada_context *context = NULL;
    int failed = 1;

    if (argc < 2) {
        fprintf(stderr, "usage: chat MODEL.gguf\n");
        return 2;
    }
    if (mmada_model_open(argv[1], MMADA_NUL_TERMINATED, NULL, &model, &error)) {
        fail("open", error);
    } else if (mmada_context_new(model, NULL, &context, &error)) {
        fail("context", error);
    } else {
        failed = converse(context);
    }
    mmada_context_free(context);
    mmada_model_free(model);
    return failed;
}
