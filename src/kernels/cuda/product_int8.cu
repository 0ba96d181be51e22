// Products of quantized weights with int8 activations on the int8 tensor cores (mma.sync, compute capability 8.0 on).
//
//   y[token][row] (=|+=) sum over k of w[row][k] x[token][k]
//
// A block of threads has a tile of tokens x rows and goes along k in steps of 256: it unpacks the weights of its rows to
// int8 in shared memory, straight from their GGUF blocks, while the activations are copied there, and multiplies. int32 sums
// run over the elements that share a scale, in both operands, and leave through one conversion, one product of scales and
// one fused multiply-add: the same numbers in the same order as src/kernels/int8.rs, so results are equal to the bit.
//
//   Blocks   the scales of the weights' blocks, 16 or 32 weights each; activations have one for 32
//   Wide     one scale for 256 of both: weights are rounded once more on the way (src/kernels/unpack/wide.rs). Eight
//            products of tensor cores for each time that sums leave, rather than one.
//
// Launch: grid (tokens / TOKENS, rows / ROWS, 1), rounded up; tokens go first, so that blocks that run at a time share weights.

#include "tile.cuh"
#include "weights.cuh"

#define STEP 256
#define PARTS (STEP / 32)

/// `x[n][k]` in int8 (k a multiple of 32), `scale[n][groups]`, and `sums[n][k / 16]` of q over 16, for weights with an offset.
struct Activations {
    const int8_t* q;
    const float* scale;
    const int16_t* sums;
    int n, k;
};

template <class W, bool WIDE, int TOKENS, int ROWS>
struct Shared {
    // elements that share a scale of the weights, and how many such groups a step has; the same for activations
    static constexpr int GROUP = WIDE ? STEP : W::GROUP, GROUPS = STEP / GROUP, X_GROUPS = WIDE ? 1 : PARTS;
    static constexpr bool OFFSET = W::OFFSET && !WIDE;

    unsigned char w[ROWS * STEP_BYTES];
    unsigned char x[TOKENS * STEP_BYTES];
    float scale[GROUPS][ROWS];
    float offset[OFFSET ? GROUPS : 1][OFFSET ? ROWS : 1];
    float x_scale[X_GROUPS][TOKENS];
    float x_sum[OFFSET ? GROUPS : 1][OFFSET ? TOKENS : 1];  // times the scale
};

/// Unpacks step `k0` of the rows from `row0` on. Rows past the last are that one again: nobody looks at their results.
template <class W, bool WIDE, int TOKENS, int ROWS, int THREADS>
__device__ __forceinline__ void load_weights(Shared<W, WIDE, TOKENS, ROWS>& shared, const uint8_t* w, uint64_t row_bytes,
                                             int rows, int row0, int k0, int k) {
    static_assert(ROWS * PARTS % THREADS == 0, "the lanes of a warp go through this together");
    #pragma unroll 1
    for (int unit = (int)threadIdx.x; unit < ROWS * PARTS; unit += THREADS) {
        const int row = unit / PARTS, part = unit % PARTS;
        const bool there = k0 + 32 * part < k;
        Group g = {};
        if (there) read_group<W>(w + (uint64_t)min(row0 + row, rows - 1) * row_bytes, k0 / 32 + part, g);
        if (WIDE) {
            const float scale = widen<W>(g, there);
            if (part == 0) shared.scale[0][row] = scale;
        } else {
            #pragma unroll
            for (int half = 0; half < 32 / W::GROUP; half++) {
                shared.scale[part * (32 / W::GROUP) + half][row] = g.scale[half];
                if (W::OFFSET) shared.offset[part * (32 / W::GROUP) + half][row] = g.offset[half];
            }
        }
        *(uint4*)(shared.w + piece_at(row, 2 * part)) = make_uint4(g.q[0], g.q[1], g.q[2], g.q[3]);
        *(uint4*)(shared.w + piece_at(row, 2 * part + 1)) = make_uint4(g.q[4], g.q[5], g.q[6], g.q[7]);
    }
}

/// Starts the copies of step `k0` of the tokens from `token0` on, and brings their scales.
template <class W, bool WIDE, int TOKENS, int ROWS, int THREADS>
__device__ __forceinline__ void load_activations(Shared<W, WIDE, TOKENS, ROWS>& shared, const Activations& x, int token0,
                                                 int k0) {
    typedef Shared<W, WIDE, TOKENS, ROWS> S;
    for (int unit = (int)threadIdx.x; unit < TOKENS * (STEP / 16); unit += THREADS) {
        const int row = unit / (STEP / 16), piece = unit % (STEP / 16);
        const bool there = k0 + 16 * piece < x.k;
        const int8_t* from = x.q + (uint64_t)min(token0 + row, x.n - 1) * x.k + (there ? k0 + 16 * piece : 0);
        cp_async_16(shared.x + piece_at(row, piece), from, there);
    }
    cp_async_commit();
    const int groups = (x.k + STEP / S::X_GROUPS - 1) / (STEP / S::X_GROUPS);
    for (int unit = (int)threadIdx.x; unit < TOKENS * S::X_GROUPS; unit += THREADS) {
        const int row = unit / S::X_GROUPS, part = unit % S::X_GROUPS;
        const uint64_t token = (uint64_t)min(token0 + row, x.n - 1);
        if (k0 + 32 * part >= x.k) continue;
        const float scale = x.scale[token * groups + k0 / (STEP / S::X_GROUPS) + part];
        shared.x_scale[part][row] = scale;
        if (S::OFFSET) {
            const int16_t* sums = x.sums + token * (x.k / 16) + k0 / 16 + 2 * part;
            if (W::GROUP == 32) {
                shared.x_sum[part][row] = scale * (float)(sums[0] + sums[1]);
            } else {
                shared.x_sum[2 * part % S::GROUPS][row] = scale * (float)sums[0];
                shared.x_sum[(2 * part + 1) % S::GROUPS][row] = scale * (float)sums[1];
            }
        }
    }
}

/// Sums of group `group` (of `x_group` of the activations) to floats.
template <class S, class P>
__device__ __forceinline__ void leave(const S& shared, const P& split, int i, int j, int group, int x_group,
                                      const int (&sum)[4], float (&acc)[4]) {
    #pragma unroll
    for (int q = 0; q < 4; q++) {
        const int token = split.token(i, q), row = split.row(j, q);
        const float scale = shared.scale[group][row] * shared.x_scale[x_group][token];
        acc[q] = fmaf((float)sum[q], scale, acc[q]);
        if (S::OFFSET) acc[q] = fmaf(shared.offset[group][row], shared.x_sum[group][token], acc[q]);
    }
}

template <class W, bool WIDE, int TOKENS, int ROWS, int TOKEN_WARPS, int ROW_WARPS>
__device__ __forceinline__ void product(const uint8_t* w, uint64_t row_bytes, int rows, const Activations& x, float* y,
                                        int y_stride, int add) {
    typedef Shared<W, WIDE, TOKENS, ROWS> S;
    typedef Split<TOKENS, ROWS, TOKEN_WARPS, ROW_WARPS> P;
    DYNAMIC_SHARED(memory);
    S& shared = *(S*)memory;
    const P split;
    const int token0 = (int)blockIdx.x * TOKENS, row0 = (int)blockIdx.y * ROWS;
    float acc[P::TOKEN_TILES][P::ROW_TILES][4] = {};
    #pragma unroll 1
    for (int k0 = 0; k0 < x.k; k0 += STEP) {
        __syncthreads();  // the step before has been read
        load_activations<W, WIDE, TOKENS, ROWS, P::THREADS>(shared, x, token0, k0);
        load_weights<W, WIDE, TOKENS, ROWS, P::THREADS>(shared, w, row_bytes, rows, row0, k0, x.k);
        cp_async_wait<0>();
        __syncthreads();
        const int slices = min(SLICES, (x.k - k0) / 32);
        int wide[P::TOKEN_TILES][P::ROW_TILES][4] = {};
        #pragma unroll 1
        for (int slice = 0; slice < slices; slice++) {
            uint32_t a[P::TOKEN_TILES][4], b[P::ROW_TILES / 2][4];
            #pragma unroll
            for (int i = 0; i < P::TOKEN_TILES; i++) load_rows(a[i], shared.x, split.first_token + 16 * i, slice);
            #pragma unroll
            for (int j = 0; j < P::ROW_TILES / 2; j++) load_columns(b[j], shared.w, split.first_row + 16 * j, slice);
            #pragma unroll
            for (int i = 0; i < P::TOKEN_TILES; i++) {
                #pragma unroll
                for (int j = 0; j < P::ROW_TILES; j++) {
                    const uint32_t b0 = b[j / 2][j % 2 * 2], b1 = b[j / 2][j % 2 * 2 + 1];
                    if (WIDE) {
                        mma_s8_k32(wide[i][j], a[i], b0, b1);
                    } else if (S::GROUP == 32) {
                        int sum[4] = {};
                        mma_s8_k32(sum, a[i], b0, b1);
                        leave(shared, split, i, j, slice % S::GROUPS, slice % S::X_GROUPS, sum, acc[i][j]);
                    } else {
                        int first[4] = {}, second[4] = {};
                        mma_s8_k16(first, a[i][0], a[i][1], b0);
                        mma_s8_k16(second, a[i][2], a[i][3], b1);
                        leave(shared, split, i, j, 2 * slice % S::GROUPS, slice % S::X_GROUPS, first, acc[i][j]);
                        leave(shared, split, i, j, (2 * slice + 1) % S::GROUPS, slice % S::X_GROUPS, second, acc[i][j]);
                    }
                }
            }
        }
        if (WIDE) {
            #pragma unroll
            for (int i = 0; i < P::TOKEN_TILES; i++) {
                #pragma unroll
                for (int j = 0; j < P::ROW_TILES; j++) leave(shared, split, i, j, 0, 0, wide[i][j], acc[i][j]);
            }
        }
    }
    write_tile(split, acc, y, y_stride, add, token0, x.n, row0, rows);
}

// For each type: `_blocks` and `_wide`, a tile of 64 tokens x 128 rows by 256 threads, so that two blocks share a
// multiprocessor and one unpacks while the other multiplies; and `_few`, with wide scales, of 32 x 32 by 128 threads for
// so few tokens that larger tiles would leave multiprocessors idle.
#define PRODUCT(NAME, TYPE, WIDE, TOKENS, ROWS, TOKEN_WARPS, ROW_WARPS)                                                  \
    KERNEL __launch_bounds__(32 * TOKEN_WARPS * ROW_WARPS)                                                               \
        NAME(const uint8_t* w, uint64_t row_bytes, int rows, const int8_t* x, const float* x_scale, const int16_t* x_sums,  \
             int n, int k, float* y, int y_stride, int add) {                                                            \
        product<TYPE, WIDE, TOKENS, ROWS, TOKEN_WARPS, ROW_WARPS>(w, row_bytes, rows, Activations{x, x_scale, x_sums, n, k}, \
                                                                  y, y_stride, add);                                     \
    }                                                                                                                    \
    REGISTER(NAME)
#define PRODUCTS(TYPE)                                        \
    PRODUCT(product_##TYPE##_blocks, TYPE, false, 64, 128, 2, 4) \
    PRODUCT(product_##TYPE##_wide, TYPE, true, 64, 128, 2, 4)    \
    PRODUCT(product_##TYPE##_few, TYPE, true, 32, 32, 2, 2)

PRODUCTS(Q8_0)
PRODUCTS(Q4_0)
PRODUCTS(Q4_1)
PRODUCTS(Q5_0)
PRODUCTS(Q5_1)
PRODUCTS(IQ4_NL)
PRODUCTS(IQ4_XS)
PRODUCTS(MXFP4)
PRODUCTS(Q4_K)
PRODUCTS(Q5_K)
PRODUCTS(Q6_K)
PRODUCTS(Q3_K)
PRODUCTS(Q2_K)
