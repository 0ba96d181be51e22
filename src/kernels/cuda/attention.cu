// Full (bidirectional) attention in one pass over the keys with a running softmax (Milakov and Gimelshein 2018; Dao et al.
// 2022), products in bfloat16 on tensor cores, sums and the softmax in f32: no score is ever written to memory.
//
//   out = softmax(q k^T / sqrt(DIM)) v       for every sequence, which attends to itself alone, and every head
//
// A sequence may have fewer queries than keys: `q` and `out` have rows of their own. A block of four warps has 64 queries of a
// head, 16 to a warp, in registers; it goes over the sequence's keys 64 at a time. While a tile is worked on, the next one's
// keys and values are on their way (cp.async).
//
// Launch: grid (tiles of 64 queries of the sequence that has most, heads, sequences), 128 threads, `Tiles<DIM>` bytes of shared
// memory.

#include "device.cuh"

#define QUERIES 64
#define KEYS 64
#define THREADS 128

/// Two tiles of keys and of values, [2][KEYS][DIM] bfloat16 each; pieces of 16 bytes of a row change places with the row's
/// number, so that the eight rows that ldmatrix reads at once are in different banks.
template <int DIM>
struct Tiles {
    unsigned char k[2][KEYS * DIM * 2];
    unsigned char v[2][KEYS * DIM * 2];
};

template <int DIM>
__device__ __forceinline__ int piece_at(int row, int piece) {
    return (row * (DIM / 8) + (piece ^ (row & 7))) * 16;
}

/// What the numbers of a call are; all rows are of `heads * DIM` or `kv_heads * DIM` elements.
struct Call {
    const uint16_t* q;
    const uint16_t* k;
    const uint16_t* v;
    const uint8_t* mask;  // of each row whether it is a key; null: all are
    float* out;
    int heads, kv_heads;
    int query_start, query_end;  // the sequence's rows of q
    int start, end;              // and of k and v
};

/// Starts the copies of the keys and values of rows `first ..`; those past the sequence become zeros.
template <int DIM>
__device__ __forceinline__ void load_tile(Tiles<DIM>& tiles, const Call& call, int kv_head, int first, int buffer) {
    constexpr int PIECES = DIM / 8;
    for (int unit = (int)threadIdx.x; unit < KEYS * PIECES; unit += THREADS) {
        const int row = unit / PIECES, piece = unit % PIECES;
        const bool there = first + row < call.end;
        const uint64_t at = ((uint64_t)(there ? first + row : call.start) * call.kv_heads + kv_head) * DIM + 8 * piece;
        cp_async_16(tiles.k[buffer] + piece_at<DIM>(row, piece), call.k + at, there);
        cp_async_16(tiles.v[buffer] + piece_at<DIM>(row, piece), call.v + at, there);
    }
    cp_async_commit();
}

/// Rows of queries as first operands: registers as mma_bf16 wants them, straight from memory. Queries past the sequence are
/// zeros; their results are not written.
template <int DIM>
__device__ __forceinline__ void load_queries(uint32_t (&a)[DIM / 16][4], const Call& call, int head, int first) {
    const int lane = (int)threadIdx.x % 32;
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = first + lane / 4 + 8 * r;
        const uint16_t* q = call.q + ((uint64_t)min(row, call.query_end - 1) * call.heads + head) * DIM + lane % 4 * 2;
        #pragma unroll
        for (int s = 0; s < DIM / 16; s++) {
            #pragma unroll
            for (int half = 0; half < 2; half++) {
                a[s][r + 2 * half] = row < call.query_end ? *(const uint32_t*)(q + 16 * s + 8 * half) : 0;
            }
        }
    }
}

/// Of a warp's 16 queries, of which a lane has parts of two rows: the largest score so far, the sum of exponentials, and the
/// weighted values.
template <int DIM>
struct Running {
    float peak[2], sum[2];
    float out[DIM / 8][4];
};

/// Scores of a tile of keys, masked and scaled to powers of two.
template <int DIM>
__device__ __forceinline__ void scores_of(float (&s)[KEYS / 8][4], const uint32_t (&q)[DIM / 16][4], const unsigned char* k,
                                          const Call& call, int first, float scale) {
    const int lane = (int)threadIdx.x % 32;
    #pragma unroll
    for (int j = 0; j < KEYS / 8; j++) {
        #pragma unroll
        for (int i = 0; i < 4; i++) s[j][i] = 0.0f;
    }
    #pragma unroll
    for (int step = 0; step < DIM / 16; step++) {
        #pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            uint32_t b[4];
            const int row = 16 * j + lane / 16 * 8 + lane % 8;
            ldmatrix_x4(b, k + piece_at<DIM>(row, 2 * step + lane / 8 % 2));
            mma_bf16(s[2 * j], q[step], b[0], b[1]);
            mma_bf16(s[2 * j + 1], q[step], b[2], b[3]);
        }
    }
    #pragma unroll
    for (int j = 0; j < KEYS / 8; j++) {
        #pragma unroll
        for (int i = 0; i < 2; i++) {
            const int key = first + 8 * j + lane % 4 * 2 + i;
            const bool live = key < call.end && (!call.mask || call.mask[key]);
            s[j][i] = live ? s[j][i] * scale : -INFINITE;
            s[j][2 + i] = live ? s[j][2 + i] * scale : -INFINITE;
        }
    }
}

/// Scores to probabilities, up to the sums that come to be known at the end; what there was before shrinks where a larger
/// score has come. A lane has a quarter of a row: its neighbours have the rest.
template <int DIM>
__device__ __forceinline__ void soften(float (&s)[KEYS / 8][4], Running<DIM>& run) {
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        float peak = run.peak[r];
        #pragma unroll
        for (int j = 0; j < KEYS / 8; j++) peak = max_or_nan(peak, max_or_nan(s[j][2 * r], s[j][2 * r + 1]));
        peak = peak_over(peak, 4);
        // no key yet: exp2(-inf - 0) rather than exp2(-inf + inf)
        const float base = peak == -INFINITE ? 0.0f : peak;
        const float shrink = exp2f(run.peak[r] - base);
        float sum = 0.0f;
        #pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
            #pragma unroll
            for (int i = 0; i < 2; i++) {
                s[j][2 * r + i] = exp2f(s[j][2 * r + i] - base);
                sum += s[j][2 * r + i];
            }
        }
        run.peak[r] = peak;
        run.sum[r] = fmaf(run.sum[r], shrink, sum);
        #pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
            run.out[n][2 * r] *= shrink;
            run.out[n][2 * r + 1] *= shrink;
        }
    }
}

/// Adds the values of a tile, weighted. The scores' registers are those of a first operand once they are rounded.
template <int DIM>
__device__ __forceinline__ void add_values(Running<DIM>& run, const float (&s)[KEYS / 8][4], const unsigned char* v) {
    const int lane = (int)threadIdx.x % 32;
    #pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        const uint32_t a[4] = {bf16_pair(s[2 * step][0], s[2 * step][1]), bf16_pair(s[2 * step][2], s[2 * step][3]),
                               bf16_pair(s[2 * step + 1][0], s[2 * step + 1][1]),
                               bf16_pair(s[2 * step + 1][2], s[2 * step + 1][3])};
        #pragma unroll
        for (int n = 0; n < DIM / 16; n++) {
            uint32_t b[4];
            const int row = 16 * step + lane % 16;
            ldmatrix_x4_transposed(b, v + piece_at<DIM>(row, 2 * n + lane / 16));
            mma_bf16(run.out[2 * n], a, b[0], b[1]);
            mma_bf16(run.out[2 * n + 1], a, b[2], b[3]);
        }
    }
}

template <int DIM>
__device__ __forceinline__ void attend(const Call& call) {
    DYNAMIC_SHARED(memory);
    Tiles<DIM>& tiles = *(Tiles<DIM>*)memory;
    const int head = (int)blockIdx.y, kv_head = head / (call.heads / call.kv_heads);
    const int first_query = call.query_start + (int)blockIdx.x * QUERIES;
    if (first_query >= call.query_end) return;  // fewer queries than another sequence has
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const float scale = 1.44269504f / sqrtf((float)DIM);  // exp(x) = exp2(x log2 e)
    uint32_t q[DIM / 16][4];
    load_queries<DIM>(q, call, head, first_query + 16 * warp);
    Running<DIM> run = {{-INFINITE, -INFINITE}, {}, {}};
    load_tile<DIM>(tiles, call, kv_head, call.start, 0);
    int buffer = 0;
    #pragma unroll 1
    for (int first = call.start; first < call.end; first += KEYS, buffer ^= 1) {
        if (first + KEYS < call.end) {
            load_tile<DIM>(tiles, call, kv_head, first + KEYS, buffer ^ 1);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncthreads();  // all threads' copies have come
        float s[KEYS / 8][4];
        scores_of<DIM>(s, q, tiles.k[buffer], call, first, scale);
        soften<DIM>(s, run);
        add_values<DIM>(run, s, tiles.v[buffer]);
        __syncthreads();  // nobody reads the tile any more
    }
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = first_query + 16 * warp + lane / 4 + 8 * r;
        const float sum = sum_over(run.sum[r], 4);
        const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;  // where the mask leaves no key, the output is 0
        if (row >= call.query_end) continue;
        float* to = call.out + ((uint64_t)row * call.heads + head) * DIM + lane % 4 * 2;
        #pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
            *(float2*)(to + 8 * n) = make_float2(run.out[n][2 * r] * inverse, run.out[n][2 * r + 1] * inverse);
        }
    }
}

// q[queries][heads * DIM], k and v[rows][kv_heads * DIM] in bfloat16; `starts[sequences + 1]` the first row of each sequence
// and the end of the last, `query_starts` the same among the queries; head h reads key/value head h / (heads / kv_heads).
// `mask` may be null.
#define ATTENTION(DIM)                                                                                                      \
    KERNEL __launch_bounds__(THREADS)                                                                                       \
        attention_##DIM(const uint16_t* q, const uint16_t* k, const uint16_t* v, const int32_t* query_starts,               \
                        const int32_t* starts, const uint8_t* mask, int heads, int kv_heads, float* out) {                  \
        const int sequence = (int)blockIdx.z;                                                                               \
        attend<DIM>({q, k, v, mask, out, heads, kv_heads, query_starts[sequence], query_starts[sequence + 1],               \
                     starts[sequence], starts[sequence + 1]});                                                              \
    }                                                                                                                       \
    REGISTER(attention_##DIM)
ATTENTION(64)
ATTENTION(128)
