// One step of a whole model with llama.cpp, for scripts/compare-speed, which compiles this: the logits of N tokens, all
// in one batch. LLaDA's models have no cache, and every step computes all of them.
//
//   llama_prompt MODEL.gguf THREADS SECONDS N plain|repack|default
//
// Prints the seconds of the best of as many runs as fit into SECONDS (two at least, after one that warms up): processor
// time of this process with one thread, wall time with more. `plain` takes weights as they lie in the file; `default`
// lets llama.cpp reorder them when it loads, for AMX where the processor has it; `repack` the same without AMX.

#define _GNU_SOURCE
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "llama.h"

#if defined(__x86_64__) && defined(__linux__)
#include <dlfcn.h>
#include <errno.h>
#include <sys/syscall.h>

static bool without_amx;

// Stands before the C library's: llama.cpp asks the system for AMX with it, once, and goes without where that is
// refused.
long syscall(long number, ...) {
    if (number == SYS_arch_prctl && without_amx) {
        errno = ENOSYS;
        return -1;
    }
    __builtin_va_list list;
    __builtin_va_start(list, number);
    long a[6];
    for (int i = 0; i < 6; i++) a[i] = __builtin_va_arg(list, long);
    __builtin_va_end(list);
    long (*next)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
#endif

static double now(int threads) {
    struct timespec t;
    clock_gettime(threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: llama_prompt MODEL.gguf THREADS SECONDS N plain|repack|default\n");
        return 2;
    }
    int threads = atoi(argv[2]), n = atoi(argv[4]);
    double seconds = atof(argv[3]);
    if (threads < 1 || n < 1) return 2;
#if defined(__x86_64__) && defined(__linux__)
    without_amx = !strcmp(argv[5], "repack");
#endif
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model_params options = llama_model_default_params();
    options.use_extra_bufts = strcmp(argv[5], "plain") != 0;
    struct llama_model *model = llama_model_load_from_file(argv[1], options);
    if (!model) return 1;
    struct llama_context_params params = llama_context_default_params();
    params.n_threads = params.n_threads_batch = threads;
    params.n_ctx = params.n_batch = params.n_ubatch = n;
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context) return 1;
    llama_set_causal_attn(context, false);

    int32_t vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    llama_token *ids = malloc(n * sizeof *ids);
    if (!ids) return 1;
    for (int i = 0; i < n; i++) ids[i] = i * 7 % vocab;
    double best = INFINITY, start = now(2);
    for (int run = 0; run < 3 || now(2) - start < seconds; run++) {
        double t = now(threads);
        if (llama_decode(context, llama_batch_get_one(ids, n))) return 1;
        llama_synchronize(context);
        t = now(threads) - t;
        if (run && t < best) best = t;
    }
    const float *logits = llama_get_logits_ith(context, n - 1);
    for (int i = 0; i < vocab; i++) {
        if (!isfinite(logits[i])) {
            fprintf(stderr, "logit %d is %f\n", i, logits[i]);
            return 1;
        }
    }
    printf("%.6f\n", best);
    free(ids);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
