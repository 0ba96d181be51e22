// Products and convolutions in bfloat16 on tensor cores (mma.sync, compute capability 8.0 on), sums in f32.
//
//   y[token][row] (=|+=) sum over k of w[row][k] x[token][k]
//
// As product_int8.cu, with weights that are unpacked to bfloat16: floats of 16 and 32 bits, and quantized ones, which are
// scaled in f32 and rounded once. A step is 128 elements. A convolution is the same product, whose activations are the
// windows of a feature map: they are gathered on their way to shared memory and never lie in memory themselves.
//
// Launch: grid (tokens / 64, rows / 128, 1), rounded up, 256 threads.

#include "codebooks.cuh"
#include "tile.cuh"
#include "weights.cuh"

#define STEP 128
#define PARTS (STEP / 32)
#define PIECE 8  // elements in 16 bytes
#define TOKENS 64
#define ROWS 128
typedef Split<TOKENS, ROWS, 2, 4> Threads;

struct Tile {
    unsigned char w[ROWS * STEP_BYTES];
    unsigned char x[TOKENS * STEP_BYTES];
};

template <class W>
__device__ __forceinline__ void load_weights(Tile& tile, const uint8_t* w, uint64_t row_bytes, int rows, int row0, int k0,
                                             int k) {
    #pragma unroll 1
    for (int unit = (int)threadIdx.x; unit < ROWS * PARTS; unit += Threads::THREADS) {
        const int row = unit / PARTS, part = unit % PARTS;
        uint32_t q[16] = {};
        if (k0 + 32 * part < k) W::read(w + (uint64_t)min(row0 + row, rows - 1) * row_bytes, k0 / 32 + part, k, q);
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            *(uint4*)(tile.w + piece_at(row, 4 * part + i)) = make_uint4(q[4 * i], q[4 * i + 1], q[4 * i + 2], q[4 * i + 3]);
        }
    }
}

// Activations: `piece(token, k, there)` is where eight elements from k on lie, or says that they are zeros.

/// x[n][stride]: rows of k elements, filled up to a stride of whole pieces with numbers that are finite.
struct Matrix {
    const uint16_t* x;
    int stride;
    __device__ __forceinline__ const uint16_t* piece(int token, int k, bool& there) const {
        there = k < stride;
        return x + (uint64_t)token * stride + (there ? k : 0);
    }
};

/// The windows of x[height][width][channels], [3][3][channels] each, around the positions of the output; channels are whole
/// pieces. `sampling` is 0 where the output is as large, with one zero around; 1 where it has every other position, with
/// zeros right and below; 2 where each position of x is first repeated twice each way (src/vq/conv.rs).
struct Windows {
    const uint16_t* x;
    int height, width, channels, out_width, sampling;

    /// The row or column of x that element `offset` (0..3) of the window at `at` reads; negative: zeros.
    __device__ __forceinline__ int source(int at, int offset, int side) const {
        const int place = sampling == 1 ? 2 * at + offset : at + offset - 1;
        const int source = sampling == 2 && place >= 0 ? place / 2 : place;
        return source < side ? source : -1;
    }
    __device__ __forceinline__ const uint16_t* piece(int token, int k, bool& there) const {
        const int cell = k / channels;
        const int y = source(token / out_width, cell / 3, height), x_ = source(token % out_width, cell % 3, width);
        there = cell < 9 && y >= 0 && x_ >= 0;
        return x + (there ? ((uint64_t)y * width + x_) * channels + k % channels : 0);
    }
};

template <class X>
__device__ __forceinline__ void load_activations(Tile& tile, const X& x, int n, int token0, int k0) {
    for (int unit = (int)threadIdx.x; unit < TOKENS * (STEP / PIECE); unit += Threads::THREADS) {
        const int row = unit / (STEP / PIECE), piece = unit % (STEP / PIECE);
        bool there;
        const uint16_t* from = x.piece(min(token0 + row, n - 1), k0 + PIECE * piece, there);
        cp_async_16(tile.x + piece_at(row, piece), from, there);
    }
    cp_async_commit();
}

template <class W, class X>
__device__ __forceinline__ void product(const uint8_t* w, uint64_t row_bytes, int rows, const X& x, int n, int k,
                                        const float* bias, float* y, int y_stride, int add) {
    DYNAMIC_SHARED(memory);
    Tile& tile = *(Tile*)memory;
    const Threads split;
    const int token0 = (int)blockIdx.x * TOKENS, row0 = (int)blockIdx.y * ROWS;
    float acc[Threads::TOKEN_TILES][Threads::ROW_TILES][4];
    #pragma unroll
    for (int j = 0; j < Threads::ROW_TILES; j++) {
        #pragma unroll
        for (int q = 0; q < 4; q++) {
            const int row = row0 + split.row(j, q);
            const float start = bias && row < rows ? bias[row] : 0.0f;
            #pragma unroll
            for (int i = 0; i < Threads::TOKEN_TILES; i++) acc[i][j][q] = start;
        }
    }
    #pragma unroll 1
    for (int k0 = 0; k0 < k; k0 += STEP) {
        __syncthreads();  // the step before has been read
        load_activations(tile, x, n, token0, k0);
        load_weights<W>(tile, w, row_bytes, rows, row0, k0, k);
        cp_async_wait<0>();
        __syncthreads();
        #pragma unroll 1
        for (int slice = 0; slice < SLICES; slice++) {
            uint32_t a[Threads::TOKEN_TILES][4], b[Threads::ROW_TILES / 2][4];
            #pragma unroll
            for (int i = 0; i < Threads::TOKEN_TILES; i++) load_rows(a[i], tile.x, split.first_token + 16 * i, slice);
            #pragma unroll
            for (int j = 0; j < Threads::ROW_TILES / 2; j++) load_columns(b[j], tile.w, split.first_row + 16 * j, slice);
            #pragma unroll
            for (int i = 0; i < Threads::TOKEN_TILES; i++) {
                #pragma unroll
                for (int j = 0; j < Threads::ROW_TILES; j++) {
                    mma_bf16(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
    }
    write_tile(split, acc, y, y_stride, add, token0, n, row0, rows);
}

// `bias` may be null. Activations are x[n][x_stride], see `Matrix`.
#define PRODUCT(NAME, W)                                                                                                    \
    KERNEL __launch_bounds__(256)                                                                                           \
        product_##NAME##_bf16(const uint8_t* w, uint64_t row_bytes, int rows, const uint16_t* x, int x_stride, int n, int k,  \
                              const float* bias, float* y, int y_stride, int add) {                                         \
        product<W>(w, row_bytes, rows, Matrix{x, x_stride}, n, k, bias, y, y_stride, add);                                  \
    }                                                                                                                       \
    REGISTER(product_##NAME##_bf16)

PRODUCT(F32, Floats<F32>)
PRODUCT(F16, Floats<F16>)
PRODUCT(BF16, Floats<BF16>)
PRODUCT(Q8_0, Quantized<Q8_0>)
PRODUCT(Q4_0, Quantized<Q4_0>)
PRODUCT(Q4_1, Quantized<Q4_1>)
PRODUCT(Q5_0, Quantized<Q5_0>)
PRODUCT(Q5_1, Quantized<Q5_1>)
PRODUCT(IQ4_NL, Quantized<IQ4_NL>)
PRODUCT(IQ4_XS, Quantized<IQ4_XS>)
PRODUCT(MXFP4, Quantized<MXFP4>)
PRODUCT(Q4_K, Quantized<Q4_K>)
PRODUCT(Q5_K, Quantized<Q5_K>)
PRODUCT(Q6_K, Quantized<Q6_K>)
PRODUCT(Q3_K, Quantized<Q3_K>)
PRODUCT(Q2_K, Quantized<Q2_K>)
PRODUCT(TQ1_0, Quantized<TQ1_0>)
PRODUCT(TQ2_0, Quantized<TQ2_0>)
PRODUCT(NVFP4, Quantized<NVFP4>)
PRODUCT(IQ2_XXS, Quantized<IQ2_XXS>)
PRODUCT(IQ2_XS, Quantized<IQ2_XS>)
PRODUCT(IQ2_S, Quantized<IQ2_S>)
PRODUCT(IQ3_XXS, Quantized<IQ3_XXS>)
PRODUCT(IQ3_S, Quantized<IQ3_S>)
PRODUCT(IQ1_S, Quantized<IQ1_S>)
PRODUCT(IQ1_M, Quantized<IQ1_M>)

// A 3x3 convolution of x[height][width][channels] to y[out_height * out_width = n][outputs], see `Windows`; w is
// [outputs][3][3][channels].
#define CONVOLUTION(NAME, W)                                                                                                \
    KERNEL __launch_bounds__(256)                                                                                           \
        convolve_##NAME(const uint8_t* w, uint64_t row_bytes, int outputs, const uint16_t* x, int height, int width,          \
                        int channels, int out_width, int sampling, int n, const float* bias, float* y, int add) {           \
        product<W>(w, row_bytes, outputs, Windows{x, height, width, channels, out_width, sampling}, n, 9 * channels, bias, y, \
                   outputs, add);                                                                                           \
    }                                                                                                                       \
    REGISTER(convolve_##NAME)

CONVOLUTION(F32, Floats<F32>)
CONVOLUTION(F16, Floats<F16>)
CONVOLUTION(BF16, Floats<BF16>)
CONVOLUTION(Q8_0, Quantized<Q8_0>)
