// Products on Hopper's tensor cores (wgmma, compute capability 9.0 alone), of weights that unpack.cu has unpacked.
//
//   y[token][row] (=|+=) sum over k of w[row][k] x[token][k]
//
//   kernel                           tokens  rows  threads  dynamic shared memory
//   product_bf16_256_sm90               256   128      384                 197712
//   product_bf16_128_sm90               128   128      384                 197744
//   product_wide_256_sm90               256   128      384                 203904
//   product_wide_128_sm90               128   128      384                 203968
//   product_blocks_sm90                 128   128      384                 148608
//   product_blocks_offset_sm90          128   128      384                 164928
//
// Launch: grid (any number of blocks, 1, 1), best the smaller of the number of tiles and of multiprocessors, since a block has
// one for itself. Blocks go through tiles in turn, tokens first, so that those that run at a time share weights.
//
// One warpgroup copies, two multiply: each has 64 rows of weights, wgmma's first operand, by all tokens of the tile, its
// second, which is as wide as wgmma has it, so that weights are read from shared memory least often. Weights are not unpacked
// on the way: rounding 128 x 256 of them to int8 would take the other units 1500 cycles (6 instructions a weight), while
// tensor cores are done with them and 256 tokens in 2048, in which sums have to leave too. Unpacked once for a model they cost
// memory alone, a byte a weight. So kernels are few, and know nothing of blocks.
//
// Tiles are copied by the Tensor Memory Accelerator, which one thread asks: the host makes a tensor map of each matrix, of its
// bytes in boxes of 128 by as many rows as a tile has, and what is past its end is filled with zeros. Scales are copied by
// cp.async, 4 bytes a thread, as their rows begin anywhere and are turned on the way. A stage is 128 bytes of each row of the
// tile. Four stages or six go round: copied (`full` waits for the bytes of tiles and for the threads that copy scales),
// multiplied, and handed back (`empty`) by each warp.
//
// Results in int8 are those of product_int8.cu to the bit: sums in int32 of what shares a scale, one conversion, one product
// of scales, one fused multiply-add, groups in order.

#include "tma.cuh"

#define ROWS 128
#define CONSUMER_WARPS 8
// of a row, that share a scale where there is one for 256
#define WIDE_BYTES 256
// of the warpgroup that copies: a warp, of which one thread works, and the others
#define TILE_COPIERS 32
#define SCALE_COPIERS (WARPGROUP - TILE_COPIERS)
// of all three warpgroups, 168 a thread at the start; what one has less, the others share
#define REGISTERS (3 * 168)

/// What is multiplied, along so many bytes of the rows: weights from a row on.
struct Operands {
    const TensorMap &w, &x;
    int first, row_bytes;
};

/// Tiles of the result, tokens first: found anew for each, since they are of no use in between.
template <int TOKENS>
struct Tiles {
    int rows, tokens;
    __device__ __forceinline__ int across() const { return (here(tokens) + TOKENS - 1) / TOKENS; }
    __device__ __forceinline__ int count() const { return across() * ((rows + ROWS - 1) / ROWS); }
    __device__ __forceinline__ int first_row(int tile) const { return tile / across() * ROWS; }
    __device__ __forceinline__ int first_token(int tile) const { return tile % across() * TOKENS; }
};

/// Scales of a stage, and how many threads copy them.
struct NoScales {
    static constexpr int COPIERS = 0;
};

template <int TOKENS_, int STAGES_, class S>
struct Memory {
    static constexpr int TOKENS = TOKENS_, STAGES = STAGES_;
    typedef S Scales;
    struct Tile {
        unsigned char w[ROWS * ROW_BYTES];
        unsigned char x[TOKENS * ROW_BYTES];
    };

    Tile tile[STAGES];
    S scales[STAGES];
    alignas(16) uint64_t full[STAGES];
    uint64_t empty[STAGES];
};

/// The memory of a block, with barriers that are ready.
template <class M>
__device__ __forceinline__ M& begin(unsigned char* dynamic) {
    M& memory = memory_in<M>(dynamic);
    if (threadIdx.x == 0) {
        init_ring(memory, 1 + M::Scales::COPIERS, CONSUMER_WARPS);
        fence_async_proxy();  // bulk copies arrive there
    }
    __syncthreads();
    return memory;
}

// The warpgroup that copies.

/// Goes along all tiles: `start(stage, token0, row0, at)` starts copies of a stage that was handed back, from byte `at` of rows
/// on.
template <class M, class F>
__device__ __forceinline__ void for_stages(M& memory, const Tiles<M::TOKENS>& tiles, int row_bytes, const F& start) {
    Ring<M::STAGES> ring;
    for (int tile = (int)blockIdx.x; tile < tiles.count(); tile += (int)gridDim.x) {
        const int row0 = tiles.first_row(tile), token0 = tiles.first_token(tile);
        #pragma unroll 1
        for (int at = 0; at < row_bytes; at += ROW_BYTES) {
            mbarrier_wait(&memory.empty[ring.stage], ring.parity ^ 1);
            start(ring.stage, token0, row0, at);
            ring.next();
        }
    }
}

/// One thread copies all that wgmma reads.
template <class M>
__device__ __forceinline__ void copy_tiles(M& memory, const Operands& operands, const Tiles<M::TOKENS>& tiles) {
    prefetch_tensor_map(operands.w);
    prefetch_tensor_map(operands.x);
    for_stages(memory, tiles, operands.row_bytes, [&](int stage, int token0, int row0, int at) {
        typename M::Tile& to = memory.tile[stage];
        uint64_t* full = &memory.full[stage];
        mbarrier_arrive_expect_tx(full, (uint32_t)sizeof(to));
        cp_async_bulk_tensor_2d(to.w, operands.w, at, operands.first + row0, full);
        cp_async_bulk_tensor_2d(to.x, operands.x, at, token0, full);
    });
}

// The warpgroups that multiply.

/// The warpgroup's first row in the tile: from one lane, so that the compiler sees that it is the same in all, and keeps what
/// is computed from it (wgmma's descriptors) in registers that a warp shares.
__device__ __forceinline__ int warpgroup_row() { return (__shfl_sync(FULL_WARP, (int)threadIdx.x, 0) / WARPGROUP - 1) * 64; }

struct Output {
    float* y;
    int stride, add, tokens, rows;

    /// Writes a warpgroup's accumulator, whose registers are of rows 8 apart and of tokens side by side, then 8 further.
    template <int N>
    __device__ __forceinline__ void write(const float (&acc)[N], int token0, int row0) const {
        const int row = row0 + fragment_row(0);
        int token = token0 + fragment_column(0);
        float* at = y + (uint64_t)token * stride + row;
        #pragma unroll
        for (int i = 0; i < N; i += 4) {
            #pragma unroll
            for (int q = 0; q < 4; q++) {
                if (token + q % 2 < tokens && row + q / 2 * 8 < rows) {
                    float* to = at + (q % 2 ? stride : 0) + q / 2 * 8;
                    *to = add ? *to + acc[i + q] : acc[i + q];
                }
            }
            token += 8;
            at += 8 * (uint64_t)stride;
        }
    }
};

// bfloat16

template <class M>
__device__ __forceinline__ void multiply_bf16(M& memory, int row_bytes, const Tiles<M::TOKENS>& tiles, const float* bias,
                                              const Output& output) {
    const int own = warpgroup_row();
    Ring<M::STAGES> ring;
    for (int tile = (int)blockIdx.x; tile < tiles.count(); tile += (int)gridDim.x) {
        const int row0 = tiles.first_row(tile) + own;
        float start[2], acc[M::TOKENS / 2];  // registers are of two rows, in turn two by two
        #pragma unroll
        for (int i = 0; i < 2; i++) {
            const int row = row0 + fragment_row(2 * i);
            start[i] = bias && row < output.rows ? bias[row] : 0.0f;
        }
        #pragma unroll
        for (int i = 0; i < M::TOKENS / 2; i++) acc[i] = start[i / 2 % 2];
        int at = 0, before = -1;
        // at least once, or ptxas would not see that nothing but wgmma writes accumulators until the last wait
        do {
            const typename M::Tile& now = memory.tile[ring.stage];
            mbarrier_wait(&memory.full[ring.stage], ring.parity);
            const uint64_t w = operand(now.w, own), x = operand(now.x, 0);
            wgmma_fence();
            #pragma unroll
            for (int slice = 0; slice < ROW_SLICES; slice++) wgmma_bf16(acc, slice_of(w, slice), slice_of(x, slice));
            wgmma_commit();
            // tensor cores go on with this stage, and are done with the one before
            wgmma_wait<1>();
            if (before >= 0) release(memory, before);
            before = ring.stage;
            ring.next();
        } while ((at += ROW_BYTES) < row_bytes);
        wgmma_wait<0>(acc);
        release(memory, before);
        output.write(acc, tiles.first_token(tile), row0);
    }
}

template <class M, int COPYING>
__device__ __forceinline__ void product_bf16(const Operands& operands, const float* bias, const Output& output) {
    DYNAMIC_SHARED(dynamic);
    M& memory = begin<M>(dynamic);
    const Tiles<M::TOKENS> tiles{output.rows, output.tokens};
    if (threadIdx.x < WARPGROUP) {
        fewer_registers<COPYING>();
        if (threadIdx.x == 0) copy_tiles(memory, operands, tiles);
    } else {
        more_registers<(REGISTERS - COPYING) / 2>();
        multiply_bf16(memory, operands.row_bytes, tiles, bias, output);
    }
}

// int8

/// Scales of a stage: of `GROUPS` groups of k, for rows and for tokens; and offsets of rows, and sums of tokens, two int16 for
/// 16 elements each.
template <int GROUPS_, int TOKENS, bool OFFSET_>
struct Scales {
    static constexpr int COPIERS = SCALE_COPIERS, GROUPS = GROUPS_, BYTES = GROUPS_ == 1 ? WIDE_BYTES : ROW_BYTES;
    static constexpr bool OFFSET = OFFSET_;
    float w[GROUPS][ROWS];
    float x[GROUPS][TOKENS];
    float offset[OFFSET ? GROUPS : 1][OFFSET ? ROWS : 2];
    uint32_t sums[OFFSET ? GROUPS : 1][OFFSET ? TOKENS : 2];
};

/// Where scales come from: [rows or tokens][groups], the groups of all of k.
struct ScaleSource {
    const float *w, *x, *offset;
    const int16_t* sums;
    int rows, tokens, groups;
};

/// Starts the copies of numbers of 4 bytes of `GROUPS` groups from `group0` on.
template <int GROUPS, int COUNT>
__device__ __forceinline__ void copy_groups(void* to, const void* from, int first, int count, int group0, int groups) {
    #pragma unroll 1
    for (int unit = (int)threadIdx.x - TILE_COPIERS; unit < COUNT * GROUPS; unit += SCALE_COPIERS) {
        const int row = unit / GROUPS, group = unit % GROUPS;
        const uint64_t at = (uint64_t)(first + row) * groups + group0 + group;
        cp_async_4((uint32_t*)to + group * COUNT + row, (const uint32_t*)from + at,
                   first + row < count && group0 + group < groups);
    }
}

/// SCALE_COPIERS threads copy scales with every stage, or with the first of those that share one.
template <class M>
__device__ __forceinline__ void copy_scales(M& memory, const ScaleSource& from, const Tiles<M::TOKENS>& tiles, int row_bytes) {
    typedef typename M::Scales S;
    for_stages(memory, tiles, row_bytes, [&](int stage, int token0, int row0, int at) {
        S& to = memory.scales[stage];
        if (at % S::BYTES == 0) {
            const int group0 = at / S::BYTES * S::GROUPS;
            copy_groups<S::GROUPS, ROWS>(to.w, from.w, row0, from.rows, group0, from.groups);
            copy_groups<S::GROUPS, M::TOKENS>(to.x, from.x, token0, from.tokens, group0, from.groups);
            if (S::OFFSET) {
                copy_groups<S::GROUPS, ROWS>(to.offset, from.offset, row0, from.rows, group0, from.groups);
                copy_groups<S::GROUPS, M::TOKENS>(to.sums, from.sums, token0, from.tokens, group0, from.groups);
            }
        }
        cp_async_mbarrier_arrive(&memory.full[stage]);
    });
    // no thread ends before its copies
    cp_async_commit();
    cp_async_wait<0>();
}

/// A sum of products of int8 as a float: exact, and cheaper than a conversion. Sums over 256 are at most 2^22 in magnitude.
__device__ __forceinline__ float float_of_sum(int sum) { return __uint_as_float(0x4b400000u + (uint32_t)sum) - 12582912.0f; }

/// Sums of a group for 64 rows and 128 tokens, from row `own` and token `first` of the tile on, to floats.
template <class S>
__device__ __forceinline__ void leave(const S& scales, int group, int own, int first, const int (&sum)[64], float (&acc)[64]) {
    const int row = own + fragment_row(0);
    const float w_scale[2] = {scales.w[group][row], scales.w[group][row + 8]};
    float w_offset[2] = {};
    if (S::OFFSET) {
        w_offset[0] = scales.offset[group][row];
        w_offset[1] = scales.offset[group][row + 8];
    }
    #pragma unroll
    for (int j = 0; j < 64; j += 4) {
        const int token = first + fragment_column(j);
        const float2 x_pair = *(const float2*)&scales.x[group][token];
        const float x_scale[2] = {x_pair.x, x_pair.y};
        float x_sum[2] = {};
        if (S::OFFSET) {
            #pragma unroll
            for (int t = 0; t < 2; t++) {
                const uint32_t sums = scales.sums[group][token + t];
                x_sum[t] = x_scale[t] * (float)((int16_t)sums + (int16_t)(sums >> 16));
            }
        }
        #pragma unroll
        for (int q = 0; q < 4; q++) {
            float& to = acc[j + q];
            to = fmaf(float_of_sum(sum[j + q]), w_scale[q / 2] * x_scale[q % 2], to);
            if (S::OFFSET) to = fmaf(w_offset[q / 2], x_sum[q % 2], to);
        }
    }
}

/// One scale for 256: two stages, of which the second may be zeros, multiplied for 128 tokens at a time, so that there are registers for
/// sums and results. While one warpgroup's sums leave, tensor cores have the other's.
template <class M>
__device__ __forceinline__ void multiply_wide(M& memory, int k, const Tiles<M::TOKENS>& tiles, const Output& output) {
    static_assert(M::STAGES % 2 == 0, "two stages are in the same phase");
    constexpr int HALVES = M::TOKENS / 128;
    const int own = warpgroup_row();
    Ring<M::STAGES> ring;
    int sum[64] = {};
    for (int tile = (int)blockIdx.x; tile < tiles.count(); tile += (int)gridDim.x) {
        float acc[HALVES][64] = {};
        #pragma unroll 1
        for (int at = 0; at < k; at += WIDE_BYTES) {
            #pragma unroll
            for (int i = 0; i < 2; i++) mbarrier_wait(&memory.full[ring.stage + i], ring.parity);
            #pragma unroll
            for (int half = 0; half < HALVES; half++) {
                wgmma_fence();
                #pragma unroll
                for (int i = 0; i < 2; i++) {
                    const typename M::Tile& now = memory.tile[ring.stage + i];
                    const uint64_t w = operand(now.w, own), x = operand(now.x, 128 * half);
                    #pragma unroll
                    for (int slice = 0; slice < ROW_SLICES; slice++) {
                        wgmma_s8(sum, slice_of(w, slice), slice_of(x, slice), i + slice > 0);
                    }
                }
                wgmma_commit();
                wgmma_wait<0>(sum);
                leave(memory.scales[ring.stage], 0, own, 128 * half, sum, acc[half]);
            }
            #pragma unroll
            for (int i = 0; i < 2; i++) {
                release(memory, ring.stage);
                ring.next();
            }
        }
        #pragma unroll
        for (int half = 0; half < HALVES; half++) {
            output.write(acc[half], tiles.first_token(tile) + 128 * half, tiles.first_row(tile) + own);
        }
    }
}

/// One scale for 32, a slice: while its sums leave, tensor cores have the next.
template <class M>
__device__ __forceinline__ void multiply_blocks(M& memory, int k, const Tiles<M::TOKENS>& tiles, const Output& output) {
    const int own = warpgroup_row();
    Ring<M::STAGES> ring;
    int sum[2][64] = {};
    for (int tile = (int)blockIdx.x; tile < tiles.count(); tile += (int)gridDim.x) {
        float acc[64] = {};
        #pragma unroll 1
        for (int at = 0; at < k; at += ROW_BYTES) {
            const typename M::Tile& now = memory.tile[ring.stage];
            const typename M::Scales& scales = memory.scales[ring.stage];
            mbarrier_wait(&memory.full[ring.stage], ring.parity);
            const uint64_t w = operand(now.w, own), x = operand(now.x, 0);
            // slices past the end are zeros, and are not added
            const int slices = min(ROW_SLICES, (k - at) / 32);
            #pragma unroll
            for (int slice = 0; slice <= ROW_SLICES; slice++) {
                if (slice < ROW_SLICES) {
                    wgmma_fence();
                    wgmma_s8(sum[slice % 2], slice_of(w, slice), slice_of(x, slice), false);
                    wgmma_commit();
                }
                if (slice == 0) continue;
                const int before = slice - 1;
                if (slice < ROW_SLICES) {
                    wgmma_wait<1>(sum[before % 2]);
                } else {
                    wgmma_wait<0>(sum[before % 2]);
                }
                if (before < slices) leave(scales, before, own, 0, sum[before % 2], acc);
            }
            release(memory, ring.stage);
            ring.next();
        }
        output.write(acc, tiles.first_token(tile), tiles.first_row(tile) + own);
    }
}

template <class M, int COPYING, bool WIDE>
__device__ __forceinline__ void product_int8(const Operands& operands, const ScaleSource& scales, int k,
                                             const Output& output) {
    DYNAMIC_SHARED(dynamic);
    M& memory = begin<M>(dynamic);
    const Tiles<M::TOKENS> tiles{output.rows, output.tokens};
    if (threadIdx.x < WARPGROUP) {
        fewer_registers<COPYING>();
        if (threadIdx.x == 0) copy_tiles(memory, operands, tiles);
        if (threadIdx.x >= TILE_COPIERS) copy_scales(memory, scales, tiles, operands.row_bytes);
    } else {
        more_registers<(REGISTERS - COPYING) / 2>();
        if constexpr (WIDE) {
            multiply_wide(memory, k, tiles, output);
        } else {
            multiply_blocks(memory, k, tiles, output);
        }
    }
}

// w and x are tensor maps of the bytes of matrices, in boxes of 128 by 128 rows of weights and by as many tokens as the tile
// has, with the swizzle of 128 bytes. `first` is the row of w that is the first of `rows`; those behind are not looked at, but
// may be copied.

// In bfloat16: rows of w, and of x with numbers that are finite, begin at multiples of 16 bytes; those of w are filled up with
// zeros. `bias` may be null.
#define PRODUCT_BF16(NAME, TOKENS, STAGES, BYTES)                                                                       \
    typedef Memory<TOKENS, STAGES, NoScales> NAME##_memory;                                                             \
    static_assert(SHARED_BYTES<NAME##_memory> == BYTES, "the table above");                                             \
    KERNEL __launch_bounds__(BLOCK_THREADS, 1)                                                                          \
        NAME(const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap x, int first, int rows, int n, int k,  \
             const float* bias, float* y, int y_stride, int add) {                                                      \
        const Operands operands{w, x, first, 2 * k};                                                                    \
        product_bf16<NAME##_memory, 40>(operands, bias, Output{y, y_stride, add, n, rows});                             \
    }                                                                                                                   \
    REGISTER(NAME)

// In int8: k is a multiple of 32. Scales are those of `rows` rows and of all tokens, as unpack.cu has them and as
// product_int8.cu does; w_offset and x_sums are not looked at where there are no offsets.
#define PRODUCT_INT8(NAME, WIDE, TOKENS, STAGES, OFFSET, COPYING, BYTES)                                                \
    typedef Memory<TOKENS, STAGES, Scales<WIDE ? 1 : ROW_SLICES, TOKENS, OFFSET>> NAME##_memory;                        \
    static_assert(SHARED_BYTES<NAME##_memory> == BYTES, "the table above");                                             \
    KERNEL __launch_bounds__(BLOCK_THREADS, 1)                                                                          \
        NAME(const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap x, int first, int rows, int n, int k,  \
             const float* w_scale, const float* w_offset, const float* x_scale, const int16_t* x_sums, float* y,           \
             int y_stride, int add) {                                                                                   \
        const ScaleSource scales{w_scale, x_scale, w_offset, x_sums, rows, n, WIDE ? (k + 255) / 256 : k / 32};         \
        const Operands operands{w, x, first, WIDE ? (k + 255) / 256 * 256 : k};                                         \
        product_int8<NAME##_memory, COPYING, WIDE>(operands, scales, k, Output{y, y_stride, add, n, rows});             \
    }                                                                                                                   \
    REGISTER(NAME)

PRODUCT_BF16(product_bf16_256_sm90, 256, 4, 197712)
PRODUCT_BF16(product_bf16_128_sm90, 128, 6, 197744)
PRODUCT_INT8(product_wide_256_sm90, true, 256, 4, false, 24, 203904)
PRODUCT_INT8(product_wide_128_sm90, true, 128, 6, false, 40, 203968)
PRODUCT_INT8(product_blocks_sm90, false, 128, 4, false, 40, 148608)
PRODUCT_INT8(product_blocks_offset_sm90, false, 128, 4, true, 40, 164928)
