/* Writes what the library computes to standard output, a line for each value, floats by their bits: values MODEL */
#include "check.h"

static void numbers(const char *name, const uint32_t *values, size_t count) {
    size_t i;
    printf("%s", name);
    for (i = 0; i < count; i++) {
        printf(" %u", values[i]);
    }
    printf("\n");
}

static void ids(const char *name, mmada_buffer *buffer) {
    CHECK(mmada_buffer_ids(buffer));
    numbers(name, mmada_buffer_ids(buffer), mmada_buffer_length(buffer));
    mmada_buffer_free(buffer);
}

static void text(const char *name, mmada_buffer *buffer) {
    printf("%s %s\n", name, buffer ? mmada_buffer_text(buffer) : "NULL");
    mmada_buffer_free(buffer);
}

static void pixels(const char *name, mmada_image *image) {
    const unsigned char *at = mmada_image_pixels(image);
    size_t i, count = mmada_image_width(image) * mmada_image_height(image) * 3;
    uint32_t sum = 2166136261u; /* FNV-1a */
    for (i = 0; i < count; i++) {
        sum = (sum ^ at[i]) * 16777619u;
    }
    printf("%s %zu %zu %u\n", name, mmada_image_width(image), mmada_image_height(image), sum);
}

static void tokens(mmada_model *model) {
    mmada_buffer *buffer = NULL;
    mmada_message messages[3] = {{"Be brief.", Z, NULL, MMADA_ROLE_SYSTEM, 0},
                                 {"What is 17 + 25?", Z, NULL, MMADA_ROLE_USER, 0},
                                 {"42 or so", 2, NULL, MMADA_ROLE_ASSISTANT, 0}};
    OK(mmada_model_tokenize(model, "a star <|eot_id|> left", Z, 0, &buffer, &error));
    ids("plain", buffer);
    OK(mmada_model_tokenize(model, "a star <|eot_id|> left", Z, 1, &buffer, &error));
    numbers("special", mmada_buffer_ids(buffer), mmada_buffer_length(buffer));
    {
        mmada_buffer *back = NULL;
        OK(mmada_model_detokenize(model, mmada_buffer_ids(buffer), mmada_buffer_length(buffer), 1, &back, &error));
        text("back", back);
    }
    mmada_buffer_free(buffer);
    OK(mmada_model_prompt_ids(model, messages, 3, 1, &buffer, &error));
    ids("chat", buffer);
}

static void scores(mmada_model *model, mmada_context *context) {
    mmada_buffer *prompt = NULL, *answer = NULL;
    mmada_message question = said("What is 17 + 25?");
    mmada_score_options options;
    mmada_score score;
    size_t rows[2] = {3, 0}, i;
    float logits[2 * 5];
    uint32_t bits;
    uint64_t wide;

    OK(mmada_model_prompt_ids(model, &question, 1, 0, &prompt, &error));
    OK(mmada_model_tokenize(model, "42", Z, 0, &answer, &error));
    CHECK(mmada_score_options_init(&options, sizeof options) == MMADA_OK && options.samples == 128);
    CHECK(mmada_score_init(&score, sizeof score) == MMADA_OK);
    options.samples = 5;
    options.seed = 7;
    OK(mmada_context_score(context, &options, mmada_buffer_ids(prompt), mmada_buffer_length(prompt),
                           mmada_buffer_ids(answer), mmada_buffer_length(answer), &score, &error));
    memcpy(&wide, &score.log_likelihood, sizeof wide);
    printf("score %llu %zu\n", (unsigned long long)wide, score.samples);
    OK(mmada_context_forward(context, mmada_buffer_ids(prompt), mmada_buffer_length(prompt), rows, 2, 10, 15, logits, 10,
                             NULL, &error));
    printf("logits");
    for (i = 0; i < 10; i++) {
        memcpy(&bits, &logits[i], sizeof bits);
        printf(" %u", bits);
    }
    printf("\n");
    {
        mmada_canceller *canceller = NULL;
        OK(mmada_canceller_new(&canceller, &error));
        CHECK(mmada_canceller_cancel(canceller) == MMADA_OK);
        options.canceller = canceller;
        FAILS(MMADA_CANCELLED, "cancelled",
              mmada_context_score(context, &options, mmada_buffer_ids(prompt), mmada_buffer_length(prompt),
                                  mmada_buffer_ids(answer), mmada_buffer_length(answer), &score, &error));
        FAILS(MMADA_CANCELLED, "cancelled",
              mmada_context_forward(context, mmada_buffer_ids(prompt), mmada_buffer_length(prompt), rows, 2, 10, 15,
                                    logits, 10, canceller, &error));
        mmada_canceller_free(canceller);
    }
    FAILS(MMADA_INVALID_ARGUMENT, "room for 9",
          mmada_context_forward(context, mmada_buffer_ids(prompt), mmada_buffer_length(prompt), rows, 2, 10, 15, logits, 9,
                                NULL, &error));
    mmada_buffer_free(prompt);
    mmada_buffer_free(answer);
}

/* A drawing with thinking, two pictures of it, and back through the image tokenizer. */
static void drawing(mmada_model *model, mmada_context *context) {
    mmada_generation *generation = NULL;
    mmada_image_options options = image_options(model);
    mmada_text_options description;
    mmada_buffer *buffer = NULL, *codes = NULL;
    mmada_image *image = NULL, *again = NULL;
    mmada_step step;
    size_t changes = 0;

    OK(mmada_image_options_init(&options, sizeof options, model, 1, &error));
    OK(mmada_description_options_init(&description, sizeof description, model, &error));
    CHECK(options.thinking == 1 && options.count == 1 && options.width == 64);
    options.count = 2;
    options.seed = description.seed = 11;
    OK(mmada_context_begin_image(context, &options, &description, "a circle and a star", Z, &generation, &error));
    CHECK(mmada_step_init(&step, sizeof step) == MMADA_OK);
    while (!step.done) {
        OK(mmada_generation_step(generation, &step, &error));
        changes += step.change_count * (step.stage == MMADA_STAGE_IMAGE);
    }
    printf("changes %zu\n", changes);
    OK(mmada_generation_description(generation, &buffer, &error));
    text("description", buffer);
    OK(mmada_generation_codes(generation, 1, &codes, &error));
    numbers("codes", mmada_buffer_ids(codes), mmada_buffer_length(codes));
    OK(mmada_generation_image(generation, 1, &image, &error));
    pixels("picture", image);
    OK(mmada_context_decode_image(context, mmada_buffer_ids(codes), mmada_buffer_length(codes), 8, 8, &again, &error));
    pixels("decoded", again);
    mmada_image_free(again);
    OK(mmada_context_encode_image(context, image, &buffer, &error));
    ids("encoded", buffer);
    OK(mmada_image_encode(image, MMADA_IMAGE_PNG, &buffer, &error));
    OK(mmada_image_decode(mmada_buffer_bytes(buffer), mmada_buffer_length(buffer), &again, &error));
    pixels("through PNG", again);
    mmada_buffer_free(buffer);
    mmada_image_free(again);
    mmada_image_free(image);
    mmada_buffer_free(codes);
    mmada_generation_free(generation);
}

/* An answer with a pinned token, a stop text and guidance, from ids. */
static void answer(mmada_model *model, mmada_context *context) {
    mmada_generation *generation = NULL;
    mmada_text_options options = text_options(model);
    mmada_message question = said("Count.");
    mmada_buffer *buffer = NULL;
    mmada_string stop = {"black hole", 5};
    mmada_pin pin = {2, 77, 0};

    options.gen_length = 24;
    options.steps = 12;
    options.block_length = 8;
    options.temperature = 0.5;
    options.cfg_scale = 0.5;
    options.seed = 5;
    options.remasking = MMADA_REMASKING_RANDOM;
    options.stop = &stop;
    options.stop_count = 1;
    options.pinned = &pin;
    options.pinned_count = 1;
    OK(mmada_model_prompt_ids(model, &question, 1, 0, &buffer, &error));
    OK(mmada_context_begin_text_ids(context, &options, mmada_buffer_ids(buffer), mmada_buffer_length(buffer), &generation,
                                    &error));
    mmada_buffer_free(buffer);
    OK(mmada_generation_canvas(generation, &buffer, &error));
    CHECK(mmada_buffer_ids(buffer)[0] == MMADA_MASKED && mmada_buffer_ids(buffer)[2] == 77);
    mmada_buffer_free(buffer);
    finish(generation);
    OK(mmada_generation_canvas(generation, &buffer, &error));
    ids("canvas", buffer);
    OK(mmada_generation_ids(generation, &buffer, &error));
    ids("answer", buffer);
    mmada_generation_free(generation);
}

static void thinking(mmada_model *model, mmada_context *context) {
    mmada_generation *generation = NULL;
    mmada_text_options options;
    mmada_message question = said("What is 17 + 25?");
    mmada_buffer *buffer = NULL;
    OK(mmada_text_options_init(&options, sizeof options, model, 1, 0, &error));
    OK(mmada_context_begin_text(context, &options, &question, 1, &generation, &error));
    finish(generation);
    OK(mmada_generation_text(generation, &buffer, &error));
    text("raw", buffer);
    OK(mmada_generation_thinking(generation, &buffer, &error));
    text("thinking", buffer);
    OK(mmada_generation_answer(generation, &buffer, &error));
    text("said", buffer);
    OK(mmada_generation_warnings(generation, &buffer, &error));
    text("warnings", buffer);
    mmada_generation_free(generation);
}

int main(int argc, char **argv) {
    mmada_model *model;
    mmada_context *context;
    CHECK(argc == 2);
    model = open_model(argv[1]);
    context = new_context(model, 2);
    tokens(model);
    scores(model, context);
    drawing(model, context);
    answer(model, context);
    thinking(model, context);
    mmada_context_free(context);
    mmada_model_free(model);
    return 0;
}
