// Matrix products of llama.cpp's CPU backend, for scripts/compare-speed, which compiles this.
//
//   llama_products THREADS SECONDS ROWSxCOLUMNS,... N,... TYPE,...
//
// Prints a line "buffer type rows columns n threads GOP/s error" for every type in every kind of buffer that takes it:
// plain memory, and the "extra" buffers, which reorder weights when they are loaded (repack, AMX). The time is the best
// of as many runs as fit into SECONDS (five at least): processor time of this process with one thread, wall time with
// more. The error is that of a few results against the product of the decoded weights in double precision, relative to
// its root mean square.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

// Rows that are really quantized, which is slow; the others repeat them.
#define DISTINCT 512

static double now(int threads) {
    struct timespec t;
    clock_gettime(threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void *allocate(size_t bytes) {
    void *p = malloc(bytes);
    if (!p) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}

static unsigned long long state = 1;

static float uniform(void) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (float)(state >> 40) / 16777216.0f;
}

static float normal(void) {
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += uniform() - 0.5f;
    return sum * 1.7320508f;
}

static enum ggml_type type_called(const char *name) {
    for (int t = 0; t < GGML_TYPE_COUNT; t++) {
        const char *other = ggml_type_name((enum ggml_type)t);
        if (other && !strcasecmp(name, other)) return (enum ggml_type)t;
    }
    fprintf(stderr, "llama.cpp has no type %s\n", name);
    exit(1);
}

// Blocks of [rows, columns] random weights.
static void *weights(enum ggml_type type, int64_t rows, int64_t columns) {
    int64_t distinct = rows < DISTINCT ? rows : DISTINCT;
    size_t row = ggml_row_size(type, columns);
    float *x = allocate(distinct * columns * sizeof *x);
    for (int64_t i = 0; i < distinct * columns; i++) x[i] = 0.02f * normal();
    char *blocks = allocate(rows * row);
    if (type == GGML_TYPE_F32) memcpy(blocks, x, distinct * row);
    else ggml_quantize_chunk(type, x, blocks, 0, distinct, columns, NULL);
    for (int64_t r = distinct; r < rows; r++) memcpy(blocks + r * row, blocks + (r % distinct) * row, row);
    free(x);
    return blocks;
}

// The error of a few results, relative to the root mean square of the right ones.
static double error(enum ggml_type type, const char *blocks, int64_t rows, int64_t columns, const float *x, int64_t n,
                    const float *y) {
    size_t row = ggml_row_size(type, columns);
    float *w = allocate(columns * sizeof *w);
    double wrong = 0, all = 0;
    for (int64_t i = 0; i < rows; i += rows / 13) {
        if (type == GGML_TYPE_F32) memcpy(w, blocks + i * row, row);
        else ggml_get_type_traits(type)->to_float(blocks + i * row, w, columns);
        for (int64_t j = 0; j < n; j += n < 7 ? 1 : n / 7) {
            double right = 0;
            for (int64_t k = 0; k < columns; k++) right += (double)w[k] * x[j * columns + k];
            wrong += (y[j * rows + i] - right) * (y[j * rows + i] - right);
            all += right * right;
        }
    }
    free(w);
    return sqrt(wrong / all);
}

static void silent(enum ggml_log_level level, const char *text, void *data) {
    (void)level, (void)text, (void)data;
}

struct settings {
    ggml_backend_t backend;
    int threads;
    double seconds;
};

static void measure(const struct settings *s, ggml_backend_buffer_type_t buft, enum ggml_type type, const void *blocks,
                    int64_t rows, int64_t columns, int64_t n) {
    struct ggml_init_params params = { 1 << 20, NULL, true };
    struct ggml_context *wctx = ggml_init(params), *ctx = ggml_init(params);
    struct ggml_tensor *w = ggml_new_tensor_2d(wctx, type, columns, rows);
    struct ggml_tensor *x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, columns, n);
    struct ggml_tensor *y = ggml_mul_mat(ctx, w, x);
    struct ggml_cgraph *graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, y);

    // An empty buffer first, to ask whether this kind takes the product: what does not fit must not be loaded into it.
    ggml_backend_buffer_t empty = ggml_backend_buft_alloc_buffer(buft, 0);
    w->buffer = empty;
    bool takes = ggml_backend_supports_op(s->backend, y);
    w->buffer = NULL;
    ggml_backend_buffer_free(empty);
    ggml_backend_buffer_t wbuffer = takes ? ggml_backend_alloc_ctx_tensors_from_buft(wctx, buft) : NULL;
    ggml_backend_buffer_t buffer = wbuffer ? ggml_backend_alloc_ctx_tensors(ctx, s->backend) : NULL;
    if (buffer) {
        ggml_backend_buffer_set_usage(wbuffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        ggml_backend_tensor_set(w, blocks, 0, ggml_nbytes(w));
        float *values = allocate(n * columns * sizeof *values);
        for (int64_t i = 0; i < n * columns; i++) values[i] = normal();
        ggml_backend_tensor_set(x, values, 0, ggml_nbytes(x));
        double best = INFINITY, start = now(2);
        for (int run = 0; run < 5 || now(2) - start < s->seconds; run++) {
            double t = now(s->threads);
            if (ggml_backend_graph_compute(s->backend, graph) != GGML_STATUS_SUCCESS) {
                fprintf(stderr, "the product of %s failed\n", ggml_type_name(type));
                exit(1);
            }
            t = now(s->threads) - t;
            if (t < best) best = t;
        }
        float *got = allocate(ggml_nbytes(y));
        ggml_backend_tensor_get(y, got, 0, ggml_nbytes(y));
        printf("%s %s %lld %lld %lld %d %.1f %.5f\n", ggml_backend_buft_name(buft), ggml_type_name(type),
               (long long)rows, (long long)columns, (long long)n, s->threads, 2e-9 * rows * columns * n / best,
               error(type, blocks, rows, columns, values, n, got));
        fflush(stdout);
        free(got);
        free(values);
    }
    ggml_backend_buffer_free(buffer);
    ggml_backend_buffer_free(wbuffer);
    ggml_free(ctx);
    ggml_free(wctx);
}

int main(int argc, char **argv) {
    ggml_log_set(silent, NULL);
    if (argc != 6) {
        fprintf(stderr, "usage: llama_products THREADS SECONDS ROWSxCOLUMNS,... N,... TYPE,...\n");
        return 2;
    }
    struct settings s = { ggml_backend_cpu_init(), atoi(argv[1]), atof(argv[2]) };
    if (!s.backend || s.threads < 1) {
        fprintf(stderr, "no CPU backend with %s threads\n", argv[1]);
        return 1;
    }
    ggml_backend_cpu_set_n_threads(s.backend, s.threads);
    ggml_backend_dev_t device = ggml_backend_get_device(s.backend);
    ggml_backend_dev_get_extra_bufts_t extra = (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
    ggml_backend_buffer_type_t kinds[9] = { ggml_backend_cpu_buffer_type() };
    ggml_backend_buffer_type_t *more = extra ? extra(device) : NULL;
    for (int i = 1; more && *more && i < 8; i++) kinds[i] = *more++;

    char *types_end, *shapes_end, *ns_end;
    for (char *name = strtok_r(argv[5], ",", &types_end); name; name = strtok_r(NULL, ",", &types_end)) {
        enum ggml_type type = type_called(name);
        char *shapes = strdup(argv[3]);
        for (char *shape = strtok_r(shapes, ",", &shapes_end); shape; shape = strtok_r(NULL, ",", &shapes_end)) {
            long long rows = 0, columns = 0;
            if (sscanf(shape, "%lldx%lld", &rows, &columns) != 2 || rows < 13 || columns < 256 || columns % 256) {
                fprintf(stderr, "%s is no shape of a weight\n", shape);
                return 2;
            }
            void *blocks = weights(type, rows, columns);
            char *ns = strdup(argv[4]);
            for (char *n = strtok_r(ns, ",", &ns_end); n; n = strtok_r(NULL, ",", &ns_end))
                for (int i = 0; kinds[i]; i++) measure(&s, kinds[i], type, blocks, rows, columns, atoll(n));
            free(ns);
            free(blocks);
        }
        free(shapes);
    }
    ggml_backend_free(s.backend);
    return 0;
}
