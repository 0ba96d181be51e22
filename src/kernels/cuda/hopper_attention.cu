// Attention on Hopper's tensor cores (wgmma, compute capability 9.0 alone): what attention.cu computes, and its contract.
// Scores and values are multiplied as FlashAttention-3 does (Shah et al. 2024): by warpgroups that have others copy for them,
// and that multiply on while they take exponentials.
//
//   kernel               queries  threads  dynamic shared memory
//   attention_64_sm90        192      512                 189616
//   attention_128_sm90       128      384                 230512
//
// Launch: grid (any number of blocks, 1, 1), best the smaller of the number of tiles of queries, of all heads and sequences,
// and of multiprocessors, since a block has one for itself. Blocks go through tiles in turn, those of a head one after the
// other, so that what runs at a time shares keys and values.
//
// One warpgroup copies, the others have 64 queries each. Keys and values come 128 at a time, in the order in which they are
// read: K0 K1 V0 K2 V1 .. A tile of either is a stage of one ring, 64 elements of a head to a row of 128 bytes. Scores are
// Q K^T with both operands in shared memory; probabilities are the first operand of P V as they lie in registers, and values
// its second one as they lie in memory, in rows of columns.
//
// While tensor cores add the values of a tile, the exponentials of the next are taken: their scores were multiplied before.
// Those of another warpgroup fill what is left.

#include "hopper.cuh"

#define KEYS 128
/// Bytes of 64 elements of as many keys or values: `transposed_operand`'s leading direction.
#define HALF_BYTES (KEYS * ROW_BYTES)

/// All of a launch; rows are of `heads * DIM` or `kv_heads * DIM` elements.
struct Call {
    const uint16_t *q, *k, *v;
    const int32_t *query_starts, *starts;
    const uint8_t* mask;  // of each row whether it is a key; null: all are
    float* out;
    int heads, kv_heads, sequences;
    int tiles;  // of queries, of the sequence that has most
    __device__ __forceinline__ int count() const { return tiles * heads * sequences; }
};

/// Queries of a head of a sequence.
struct Tile {
    int head, kv_head;
    int first_query, query_end;  // among the rows of q
    int start, end;              // the sequence's rows of k and v
    int steps;                   // tiles of keys: at least one, so that there is an end to wait for
    __device__ __forceinline__ Tile(const Call& call, int number, int queries) {
        const int sequence = number / call.tiles / call.heads;
        head = number / call.tiles % call.heads;
        kv_head = head / (call.heads / call.kv_heads);
        first_query = call.query_starts[sequence] + number % call.tiles * queries;
        query_end = call.query_starts[sequence + 1];
        start = call.starts[sequence];
        end = call.starts[sequence + 1];
        steps = max(1, (end - start + KEYS - 1) / KEYS);
    }
    /// Of a sequence with fewer queries than another.
    __device__ __forceinline__ bool is_empty() const { return first_query >= query_end; }
};

template <int DIM_, int CONSUMERS_, int STAGES_>
struct Memory {
    static constexpr int DIM = DIM_, CONSUMERS = CONSUMERS_, STAGES = STAGES_;
    static constexpr int QUERIES = 64 * CONSUMERS, HALVES = DIM / 64;
    unsigned char q[HALVES][QUERIES * ROW_BYTES];
    unsigned char tile[STAGES][HALVES][HALF_BYTES];
    alignas(16) uint64_t full[STAGES];
    uint64_t empty[STAGES];
    uint64_t queries_empty;  // full with the first keys
};

/// The memory of a block, with barriers that are ready.
template <class M>
__device__ __forceinline__ M& begin(unsigned char* dynamic) {
    M& memory = memory_in<M>(dynamic);
    if (threadIdx.x == 0) {
        init_ring(memory, WARPGROUP, 4 * M::CONSUMERS);
        mbarrier_init(&memory.queries_empty, 4 * M::CONSUMERS);
    }
    __syncthreads();
    return memory;
}

// The warpgroup that copies.

/// Rows of a head, `row_bytes` apart; those from `end` on are zeros.
struct Rows {
    const unsigned char* at;
    uint64_t row_bytes;
    int end;
    __device__ __forceinline__ Rows(const uint16_t* all, int heads, int head, int dim, int end_)
        : at((const unsigned char*)(all + head * dim)), row_bytes(2 * (uint64_t)heads * dim), end(end_) {}
};

/// Starts the copies of `COUNT` rows from `first` on, 64 elements of each.
template <int COUNT>
__device__ __forceinline__ void copy_rows(unsigned char* tile, const Rows& from, int first, int half) {
    constexpr int PIECES = ROW_BYTES / 16;
    const int piece = (int)threadIdx.x % PIECES, row = (int)threadIdx.x / PIECES;
    const unsigned char* at = from.at + (uint64_t)(first + row) * from.row_bytes + half * ROW_BYTES + piece * 16;
    // rows of a thread are 16 apart, so that their pieces change places alike
    unsigned char* to = tile + row * ROW_BYTES + ((piece ^ (row & 7)) << 4);
    #pragma unroll 4
    for (int i = 0; i < COUNT; i += WARPGROUP / PIECES) {
        cp_async_16(to + i * ROW_BYTES, at + (uint64_t)i * from.row_bytes, first + row + i < from.end);
    }
}

/// Copies of stages that are on their way. The first of a tile is announced as soon as the second has been begun, so that it
/// can be multiplied; the others when half a ring has been begun after them.
template <class M>
struct Copies {
    static constexpr int LAG = M::STAGES / 2;
    M& memory;
    Ring<M::STAGES> begun = {}, waited = {};
    int count = 0, announced = 0;  // of this tile of queries

    /// Where the next stage goes, once those that multiply are done with what was there.
    __device__ __forceinline__ auto& next() {
        mbarrier_wait(&memory.empty[begun.stage], begun.parity ^ 1);
        return memory.tile[begun.stage];
    }
    __device__ __forceinline__ void commit() {
        cp_async_commit();
        begun.next();
        count++;
        if (count == 2) {
            cp_async_wait<1>();
            announce();
        } else if (count - announced > LAG) {
            cp_async_wait<LAG>();
            announce();
        }
    }
    /// Announces all, and goes on to other queries.
    __device__ __forceinline__ void finish() {
        cp_async_wait<0>();
        while (announced < count) announce();
        count = announced = 0;
    }
    __device__ __forceinline__ void announce() {
        fence_async_proxy();
        mbarrier_arrive(&memory.full[waited.stage]);
        waited.next();
        announced++;
    }
};

template <class M>
__device__ __forceinline__ void copy_all(M& memory, const Call& call) {
    Copies<M> copies{memory};
    uint32_t parity = 1;
    for (int number = (int)blockIdx.x; number < call.count(); number += (int)gridDim.x) {
        const Tile tile(call, number, M::QUERIES);
        if (tile.is_empty()) continue;
        const Rows q(call.q, call.heads, tile.head, M::DIM, tile.query_end);
        const Rows k(call.k, call.kv_heads, tile.kv_head, M::DIM, tile.end);
        const Rows v(call.v, call.kv_heads, tile.kv_head, M::DIM, tile.end);
        mbarrier_wait(&memory.queries_empty, parity);
        parity ^= 1;
        for (int half = 0; half < M::HALVES; half++) copy_rows<M::QUERIES>(memory.q[half], q, tile.first_query, half);
        const auto copy = [&](const Rows& from, int step) {
            auto& to = copies.next();
            #pragma unroll 1
            for (int half = 0; half < M::HALVES; half++) copy_rows<KEYS>(to[half], from, tile.start + step * KEYS, half);
            copies.commit();
        };
        #pragma unroll 1
        for (int step = 0; step <= tile.steps; step++) {
            if (step < tile.steps) copy(k, step);
            if (step > 0) copy(v, step - 1);
        }
        copies.finish();
    }
}

// The warpgroups that multiply.

/// The warpgroup's first query of the tile: from one lane, so that the compiler sees that it is the same in all.
__device__ __forceinline__ int warpgroup_query() { return (__shfl_sync(FULL_WARP, (int)threadIdx.x, 0) / WARPGROUP - 1) * 64; }

/// Of a warpgroup's 64 queries, of which a thread has parts of two rows: the rows' largest scores so far, as powers of two, the
/// parts' sums of exponentials, and their weighted values.
template <int DIM>
struct Running {
    float peak[2] = {-INFINITE, -INFINITE};
    float sum[2] = {};
    float out[DIM / 2] = {};
};

/// Starts the products of queries and a tile of keys. Accumulators are of rows 8 apart and of keys side by side, then 8 further.
template <class M>
__device__ __forceinline__ void start_scores(float (&s)[KEYS / 2], const M& memory, int stage) {
    #pragma unroll
    for (int half = 0; half < M::HALVES; half++) {
        const uint64_t q = operand(memory.q[half], warpgroup_query()), k = operand(memory.tile[stage][half], 0);
        #pragma unroll
        for (int slice = 0; slice < ROW_SLICES; slice++) {
            if (half + slice == 0) {
                wgmma_bf16_new(s, q, k);
            } else {
                wgmma_bf16(s, slice_of(q, slice), slice_of(k, slice));
            }
        }
    }
    wgmma_commit();
}

/// Starts to add the values of a tile, weighted.
template <class M>
__device__ __forceinline__ void start_values(float (&out)[M::DIM / 2], const uint32_t (&p)[KEYS / 16][4], const M& memory,
                                             int stage) {
    #pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        wgmma_bf16_transposed(out, p[step], transposed_operand(memory.tile[stage][0], 16 * step, HALF_BYTES));
    }
    wgmma_commit();
}

/// Takes out keys from row `first` on that the mask leaves out, or that are past the end.
__device__ __forceinline__ void take_out(float (&s)[KEYS / 2], const uint8_t* mask, int first, int end) {
    if (!mask && first + KEYS <= end) return;
    // the thread's 32 keys are two side by side, then two that are 8 further
    const int left = min(max(end - first - fragment_column(0), 0), KEYS), count = left / 8 * 2 + min(left % 8, 2);
    uint32_t live = count < 32 ? (1u << count) - 1 : 0xffffffffu;
    if (mask) {
        #pragma unroll 1
        for (int i = 0; i < count; i++) {
            if (!mask[first + fragment_column(i / 2 * 4 + i % 2)]) live &= ~(1u << i);
        }
    }
    #pragma unroll
    for (int i = 0; i < KEYS / 2; i++) s[i] = live >> (i / 4 * 2 + i % 2) & 1 ? s[i] : -INFINITE;
}

/// Scores to probabilities, up to the sums that come to be known at the end. Whether a row of the warp's has a larger score than
/// before: then the values that were added have to shrink by `shrink`, as sums have.
template <int DIM>
__device__ __forceinline__ bool soften(float (&s)[KEYS / 2], Running<DIM>& run, float (&shrink)[2]) {
    const float scale = 1.44269504f / (DIM == 64 ? 8.0f : 11.3137085f);  // exp(x) = exp2(x log2 e)
    float peak[2][2], sum[2][2] = {};  // two of each row, so that fewer instructions wait for each other
    #pragma unroll
    for (int i = 0; i < 4; i++) peak[i / 2][i % 2] = s[i];
    // NaN among the scores is not seen here, but makes the sum NaN
    #pragma unroll
    for (int i = 4; i < KEYS / 2; i++) peak[i / 2 % 2][i % 2] = fmaxf(peak[i / 2 % 2][i % 2], s[i]);
    bool rose = false;
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        peak[r][0] = fmaxf(peak[r][0], peak[r][1]) * scale;
        rose |= peak[r][0] > run.peak[r];
    }
    rose = __ballot_sync(FULL_WARP, rose) != 0;
    if (rose) {
        #pragma unroll
        for (int r = 0; r < 2; r++) {
            const float now = fmaxf(run.peak[r], peak_over(peak[r][0], 4));
            // no key yet: exp2(-inf - 0) rather than exp2(-inf + inf)
            shrink[r] = exp2_approximate(run.peak[r] - (now == -INFINITE ? 0.0f : now));
            run.sum[r] *= shrink[r];
            run.peak[r] = now;
        }
    }
    float down[2];
    #pragma unroll
    for (int r = 0; r < 2; r++) down[r] = run.peak[r] == -INFINITE ? 0.0f : -run.peak[r];
    #pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        s[i] = exp2_approximate(fmaf(s[i], scale, down[i / 2 % 2]));
        sum[i / 2 % 2][i % 2] += s[i];
    }
    #pragma unroll
    for (int r = 0; r < 2; r++) run.sum[r] += sum[r][0] + sum[r][1];
    return rose;
}

/// Accumulators of scores lie as a first operand does once they are rounded.
__device__ __forceinline__ void round_all(uint32_t (&p)[KEYS / 16][4], const float (&s)[KEYS / 2]) {
    #pragma unroll
    for (int i = 0; i < KEYS / 4; i++) p[i / 4][i % 4] = bf16_pair(s[2 * i], s[2 * i + 1]);
}

template <int DIM>
__device__ __forceinline__ void write(const Running<DIM>& run, const Call& call, const Tile& tile) {
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = tile.first_query + warpgroup_query() + fragment_row(2 * r);
        const float sum = sum_over(run.sum[r], 4);
        const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;  // where the mask leaves no key, the output is 0
        if (row >= tile.query_end) continue;
        float* to = call.out + ((uint64_t)row * call.heads + tile.head) * DIM + fragment_column(0);
        #pragma unroll
        for (int i = 0; i < DIM / 2; i += 4) {
            *(float2*)(to + 2 * i) = make_float2(run.out[i + 2 * r] * inverse, run.out[i + 2 * r + 1] * inverse);
        }
    }
}

template <class M>
__device__ __forceinline__ void attend(M& memory, Ring<M::STAGES>& ring, const Call& call, const Tile& tile) {
    Running<M::DIM> run;
    float s[KEYS / 2], shrink[2];
    uint32_t p[KEYS / 16][4];
    mbarrier_wait(&memory.full[ring.stage], ring.parity);
    wgmma_fence();
    start_scores(s, memory, ring.stage);
    wgmma_wait<0>(s);
    release(memory, ring.stage);
    ring.next();
    take_out(s, call.mask, tile.start, tile.end);
    soften(s, run, shrink);
    round_all(p, s);
    #pragma unroll 1
    for (int step = 1; step < tile.steps; step++) {
        mbarrier_wait(&memory.full[ring.stage], ring.parity);
        wgmma_fence();
        start_scores(s, memory, ring.stage);
        const int keys = ring.stage;
        ring.next();
        mbarrier_wait(&memory.full[ring.stage], ring.parity);
        wgmma_fence();
        start_values(run.out, p, memory, ring.stage);
        wgmma_wait<1>(s);
        release(memory, keys);
        take_out(s, call.mask, tile.start + step * KEYS, tile.end);
        const bool rose = soften(s, run, shrink);
        // Sums are never negative: this keeps ptxas from waiting before it takes the exponentials, which the products of values
        // leave time for. The wait is the whole warpgroup's, and so outside of what a warp decides.
        trap_if(run.sum[0] + run.sum[1] < 0.0f);
        wgmma_wait<0>(run.out, p);
        release(memory, ring.stage);
        if (rose) {
            #pragma unroll
            for (int i = 0; i < M::DIM / 2; i++) run.out[i] *= shrink[i / 2 % 2];
        }
        ring.next();
        round_all(p, s);
    }
    release(&memory.queries_empty);
    mbarrier_wait(&memory.full[ring.stage], ring.parity);
    wgmma_fence();
    start_values(run.out, p, memory, ring.stage);
    wgmma_wait<0>(run.out, p);
    release(memory, ring.stage);
    ring.next();
    write(run, call, tile);
}

/// `REGISTERS`: of all warpgroups, what a thread of each has at the start; those that multiply share what one has less.
template <class M, int REGISTERS, int COPYING>
__device__ __forceinline__ void attention(const Call& call) {
    DYNAMIC_SHARED(dynamic);
    M& memory = begin<M>(dynamic);
    if (threadIdx.x < WARPGROUP) {
        fewer_registers<COPYING>();
        copy_all(memory, call);
    } else {
        more_registers<(REGISTERS - COPYING) / M::CONSUMERS>();
        Ring<M::STAGES> ring;
        for (int number = (int)blockIdx.x; number < call.count(); number += (int)gridDim.x) {
            const Tile tile(call, number, M::QUERIES);
            if (!tile.is_empty()) attend(memory, ring, call, tile);
        }
    }
}

// The arguments of attention.cu, then the number of sequences, and how many queries one has at most.
#define ATTENTION(DIM, CONSUMERS, STAGES, REGISTERS, COPYING, BYTES)                                                       \
    typedef Memory<DIM, CONSUMERS, STAGES> memory_##DIM;                                                                   \
    static_assert(SHARED_BYTES<memory_##DIM> == BYTES, "the table above");                                                 \
    KERNEL __launch_bounds__(WARPGROUP*(CONSUMERS + 1), 1)                                                                 \
        attention_##DIM##_sm90(const uint16_t* q, const uint16_t* k, const uint16_t* v, const int32_t* query_starts,       \
                               const int32_t* starts, const uint8_t* mask, int heads, int kv_heads, float* out,            \
                               int sequences, int longest) {                                                               \
        const int tiles = (longest + memory_##DIM::QUERIES - 1) / memory_##DIM::QUERIES;                                   \
        attention<memory_##DIM, REGISTERS, COPYING>(                                                                       \
            {q, k, v, query_starts, starts, mask, out, heads, kv_heads, sequences, tiles});                                \
    }                                                                                                                      \
    REGISTER(attention_##DIM##_sm90)
ATTENTION(64, 3, 10, 4 * 128, 32, 189616)
ATTENTION(128, 2, 6, 3 * 168, 40, 230512)
