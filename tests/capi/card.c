/* A graphics card through the C interface, beside the processor: card PART MODEL */
#include "check.h"

/* What was told while weights were copied. */
struct copying {
    uint64_t done, total;
    int calls, answer;
};

static int copied(uint64_t done, uint64_t total, void *user_data) {
    struct copying *copying = user_data;
    CHECK(done >= copying->done && done <= total);
    copying->done = done;
    copying->total = total;
    copying->calls++;
    return copying->answer;
}

static mmada_context *on(const mmada_model *model, const char *device, size_t gpu_layers) {
    mmada_context *context = NULL;
    mmada_context_options options;
    CHECK(mmada_context_options_init(&options, sizeof options) == MMADA_OK);
    options.threads = 2;
    options.device = device;
    options.gpu_layers = gpu_layers;
    OK(mmada_context_new(model, &options, &context, &error));
    return context;
}

/* The ids of a short answer, to be freed. */
static mmada_buffer *answered(const mmada_model *model, const mmada_context *context) {
    mmada_generation *generation = NULL;
    mmada_buffer *ids = NULL;
    mmada_message message = said("What is 17 + 25?");
    mmada_text_options options = text_options(model);
    options.gen_length = options.block_length = 8;
    options.steps = 4;
    OK(mmada_context_begin_text(context, &options, &message, 1, &generation, &error));
    finish(generation);
    OK(mmada_generation_ids(generation, &ids, &error));
    mmada_generation_free(generation);
    return ids;
}

/* A drawing after its first step, which is decided by the same logits everywhere; later ones follow what it decided. */
static mmada_generation *drawn(const mmada_model *model, const mmada_context *context, uint64_t seed) {
    mmada_generation *generation = NULL;
    mmada_image_options options = image_options(model);
    mmada_step step;
    options.steps = 2;
    options.seed = seed;
    OK(mmada_context_begin_image(context, &options, NULL, "a red circle on a white background", Z, &generation, &error));
    CHECK(mmada_step_init(&step, sizeof step) == MMADA_OK);
    OK(mmada_generation_step(generation, &step, &error));
    CHECK(step.stage == MMADA_STAGE_IMAGE && !step.done && step.change_count > 0);
    return generation;
}

/* How many codes of two drawings are the same, in per cent. */
static size_t same_codes(const mmada_generation *one, const mmada_generation *other) {
    mmada_buffer *a = NULL, *b = NULL;
    size_t i, count, same = 0;
    OK(mmada_generation_codes(one, 0, &a, &error));
    OK(mmada_generation_codes(other, 0, &b, &error));
    count = mmada_buffer_length(a);
    CHECK(count > 0 && count == mmada_buffer_length(b));
    for (i = 0; i < count; i++) {
        same += mmada_buffer_ids(a)[i] == mmada_buffer_ids(b)[i];
    }
    mmada_buffer_free(a);
    mmada_buffer_free(b);
    return 100 * same / count;
}

/* What is listed, what a context says, and that the upload is told and can be stopped. */
static void said_of_it(const mmada_model *model) {
    mmada_context *context = NULL;
    mmada_context_options options;
    mmada_context_info info;
    mmada_device_info device;
    mmada_model_info facts;
    mmada_buffer *reason = NULL;
    struct copying copying = {0, 0, 0, 0};
    size_t count = 0;

    CHECK(mmada_model_info_init(&facts, sizeof facts) == MMADA_OK);
    OK(mmada_model_get_info(model, &facts, &error));
    OK(mmada_backend_unavailable("cuda", Z, &reason, &error));
    CHECK(reason == NULL);
    OK(mmada_device_count(&count, &error));
    CHECK(count == 2);
    CHECK(mmada_device_info_init(&device, sizeof device) == MMADA_OK);
    OK(mmada_device_get_info(1, &device, &error));
    CHECK(strcmp(device.id, "cuda:0") == 0 && strcmp(device.backend, "cuda") == 0);
    CHECK(strcmp(device.name, "Stand-in") == 0 && !device.refusal[0] && !device.instruction_sets[0]);
    CHECK(device.compute_capability_major == 8 && device.compute_capability_minor == 6);
    CHECK(device.memory_bytes == (uint64_t)8 << 30);

    CHECK(mmada_context_options_init(&options, sizeof options) == MMADA_OK);
    options.device = "cuda:0 and more";
    options.device_length = 6;
    options.progress = copied;
    options.progress_user_data = &copying;
    OK(mmada_context_new(model, &options, &context, &error));
    CHECK(copying.calls >= 2 && copying.done == copying.total && copying.total > (uint64_t)1 << 20);
    CHECK(mmada_context_info_init(&info, sizeof info) == MMADA_OK);
    OK(mmada_context_get_info(context, &info, &error));
    CHECK(strcmp(info.device, "cuda:0 (Stand-in)") == 0 && info.gpu_layers == facts.layers);
    mmada_context_free(context);
    context = NULL;

    copying.done = 0;
    copying.answer = 1;
    FAILS(MMADA_CANCELLED, "cancelled", mmada_context_new(model, &options, &context, &error));
    options.device_length = Z;
    options.device = "cuda:1";
    FAILS(MMADA_INVALID_ARGUMENT, "cuda:1 is not there", mmada_context_new(model, &options, &context, &error));
    options.device = "cuda";
    options.pack = 1;
    FAILS(MMADA_INVALID_ARGUMENT, "only the cpu has that", mmada_context_new(model, &options, &context, &error));
    CHECK(context == NULL);
}

/* The same seed, on the processor, on the card, and on both. */
static void answers_alike(const mmada_model *model) {
    static const size_t layers[] = {MMADA_ALL_LAYERS, 2};
    mmada_context *cpu = on(model, "cpu", 0);
    mmada_buffer *expected = answered(model, cpu);
    mmada_generation *drawing = drawn(model, cpu, 7);
    size_t i;
    CHECK(mmada_buffer_length(expected) > 0);
    for (i = 0; i < sizeof layers / sizeof *layers; i++) {
        mmada_context *card = on(model, "cuda", layers[i]);
        mmada_buffer *ids = answered(model, card);
        mmada_generation *other = drawn(model, card, 7), *third = drawn(model, card, 8);
        mmada_context_info info;
        mmada_image *picture = NULL;
        CHECK(mmada_context_info_init(&info, sizeof info) == MMADA_OK);
        OK(mmada_context_get_info(card, &info, &error));
        CHECK(strncmp(info.device, "cuda:0 (", 8) == 0 && (i == 0 || info.gpu_layers == layers[i]));
        CHECK(mmada_buffer_length(ids) == mmada_buffer_length(expected));
        CHECK(memcmp(mmada_buffer_ids(ids), mmada_buffer_ids(expected), 4 * mmada_buffer_length(ids)) == 0);
        /* a code whose share of the sum ends within rounding of its random number may be its neighbour */
        CHECK(same_codes(drawing, other) >= 90);
        CHECK(same_codes(drawing, third) < same_codes(drawing, other));
        OK(mmada_generation_image(other, 0, &picture, &error));
        CHECK(mmada_image_width(picture) == 64 && mmada_image_height(picture) == 64);
        mmada_image_free(picture);
        mmada_generation_free(other);
        mmada_generation_free(third);
        mmada_buffer_free(ids);
        mmada_context_free(card);
    }
    mmada_generation_free(drawing);
    mmada_buffer_free(expected);
    mmada_context_free(cpu);
}

/* A card that fails after some work: its context goes on saying so, and the processor answers as before. */
static void lost(const mmada_model *model) {
    mmada_context *cpu = on(model, "cpu", 0), *card = on(model, "cuda", MMADA_ALL_LAYERS);
    mmada_buffer *before = answered(model, cpu), *after;
    mmada_generation *generation = begin(card, "What is 17 + 25?");
    int i;
    while (mmada_generation_step(generation, NULL, NULL) == MMADA_OK) {
    }
    for (i = 0; i < 2; i++) {
        FAILS(MMADA_DEVICE_ERROR, "cuda:0 (Stand-in): ", mmada_generation_step(generation, NULL, &error));
    }
    after = answered(model, cpu);
    CHECK(mmada_buffer_length(before) == mmada_buffer_length(after));
    CHECK(memcmp(mmada_buffer_ids(before), mmada_buffer_ids(after), 4 * mmada_buffer_length(after)) == 0);
    mmada_buffer_free(before);
    mmada_buffer_free(after);
    mmada_generation_free(generation);
    mmada_context_free(card);
    mmada_context_free(cpu);
}

int main(int argc, char **argv) {
    mmada_model *model;
    CHECK(argc == 3);
    model = open_model(argv[2]);
    if (strcmp(argv[1], "said_of_it") == 0) {
        said_of_it(model);
    } else if (strcmp(argv[1], "answers_alike") == 0) {
        answers_alike(model);
    } else {
        CHECK(strcmp(argv[1], "lost") == 0);
        lost(model);
    }
    mmada_model_free(model);
    return 0;
}
