// From logits to tokens, where they are: of a row of 126,000 logits twelve bytes come back. Which token each masked position
// of an answer would take and how sure that is (src/sampler/choose.rs), and the codes of pictures (src/sampler/image.rs).
//
// Sums of exponentials are added as the processor adds them, lane by lane, so that they have the same bits.
//
// Launch: grid (rows, 1, 1), 256 threads, but where it says otherwise.

#include "sampling.cuh"

#define THREADS 256
#define LANES 16                         // sums that a part, or a row of codes, is added up in
#define PART 1024                        // ids that are added up together
#define PARTS_AT_ONCE (THREADS / LANES)  // by a block
#define NOTHING_LEFT (-1)
#define NOT_FINITE (-2)

/// What is known of a row's choice after some of the ids: 32 bytes, in this order, without padding.
struct ChoiceState {
    double sum;      // of exp(logit - top), where it is asked for
    double score;    // of the best: its logit with its noise
    float top;       // the largest logit, without noise
    float logit;     // of the best
    int32_t id;      // the best; NOTHING_LEFT where there is none so far, NOT_FINITE after NaN or infinity
    uint32_t unused;
};

/// Launch: grid (rows / 256 rounded up, 1, 1), 256 threads.
KERNEL __launch_bounds__(THREADS) choose_begin(ChoiceState* states, int rows) {
    const int row = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (row < rows) states[row] = {0.0, -(double)INFINITE, -INFINITE, 0.0f, NOTHING_LEFT, 0};
}
REGISTER(choose_begin)

/// A row of logits: guided away from the unconditional ones, where there are some (classifier-free guidance), without those
/// that must not be chosen.
struct Row {
    const float* logits;
    const float* unconditional;  // or null
    float factor;                // guidance scale + 1
    uint32_t first;              // the id of logits[0]
    const int32_t* forbidden;    // [ranges][2]: ids, sorted, apart
    int ranges;

    /// The first range that ends behind the place `at`.
    __device__ __forceinline__ int range_from(int at) const {
        int low = 0, high = ranges;
        while (low < high) {
            const int middle = (low + high) / 2;
            if (first + at >= (uint32_t)forbidden[2 * middle + 1]) low = middle + 1;
            else high = middle;
        }
        return low;
    }
    /// The logit at `at`; `range` is the caller's place among the ranges, for places that only grow.
    __device__ __forceinline__ float get(int at, int& range) const {
        const uint32_t id = first + at;
        while (range < ranges && id >= (uint32_t)forbidden[2 * range + 1]) range++;
        if (range < ranges && id >= (uint32_t)forbidden[2 * range]) return -INFINITE;
        const float v = logits[at];
        if (!unconditional) return v;
        const float u = unconditional[at];
        return u + factor * (v - u);
    }
};

struct Largest {
    float logit;
    int at;
};

/// The larger, of equals the first; NaN before all.
__device__ __forceinline__ Largest larger(Largest a, Largest b) {
    const bool first = a.logit > b.logit || a.logit != a.logit || (a.logit == b.logit && a.at < b.at);
    return first ? a : b;
}

/// Adds the parts from place `at0` on, one for every LANES threads, to the softmax in `state`, and takes the largest logit.
/// All threads have the same state, before and after.
__device__ __forceinline__ void add_parts(ChoiceState& state, const Row& row, int at0, int width, bool sums) {
    SHARED(Largest, largest, PARTS_AT_ONCE);
    SHARED(double, part_sums, PARTS_AT_ONCE);
    const int lane = (int)threadIdx.x % LANES, part = (int)threadIdx.x / LANES;
    const int start = at0 + part * PART + lane, end = min(at0 + (part + 1) * PART, width);
    const int first_range = row.range_from(start);
    Largest mine = {-INFINITE, width};
    int range = first_range;
    for (int at = start; at < end; at += LANES) mine = larger(mine, {row.get(at, range), at});
    #pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) {
        mine = larger(mine, {__shfl_xor_sync(FULL_WARP, mine.logit, step), __shfl_xor_sync(FULL_WARP, mine.at, step)});
    }
    __syncthreads();  // the parts before have been read
    if (lane == 0) largest[part] = mine;
    __syncthreads();

    float top = state.top;  // up to this thread's part
    for (int i = 0; i < PARTS_AT_ONCE; i++) {
        const Largest of_part = largest[i];
        if (!(of_part.logit < INFINITE)) {
            state.id = NOT_FINITE;
            return;
        }
        if (i <= part && of_part.logit > top) top = of_part.logit;
        if ((double)of_part.logit > state.score) {
            state.score = (double)of_part.logit;
            state.logit = of_part.logit;
            state.id = (int32_t)(row.first + of_part.at);
        }
    }
    double sum = 0.0, part_sum = 0.0;
    range = first_range;
    if (sums && top > -INFINITE) {
        for (int at = start; at < end; at += LANES) sum += exponential((double)row.get(at, range) - (double)top);
    }
    for (int i = 0; i < LANES; i++) part_sum += __shfl_sync(FULL_WARP, sum, (int)threadIdx.x / LANES * LANES % 32 + i);
    if (lane == 0) part_sums[part] = part_sum;
    __syncthreads();
    for (int i = 0; i < PARTS_AT_ONCE; i++) {
        if (largest[i].logit > state.top) {
            state.sum *= exponential((double)state.top - (double)largest[i].logit);
            state.top = largest[i].logit;
        }
        state.sum += part_sums[i];
    }
}

struct Noisy {
    double score;
    float logit;
    int id;
};
__device__ __forceinline__ Noisy better(Noisy a, Noisy b) {
    return a.score > b.score || (a.score == b.score && a.id < b.id) ? a : b;
}

/// An upper bound of -ln(-ln u), as in src/sampler/choose.rs.
__device__ __forceinline__ double gumbel_bound(double u) {
    const uint64_t exponent = (uint64_t)__double_as_longlong(1.0 - u) >> 52 & 0x7ff;
    return (1023.0 - (double)exponent) * 0x1.62e42fefa39efp-1 + 1e-6;
}

/// The id with the largest logit - temperature ln(-ln u), of equals the first. Two ids have one block of random numbers.
__device__ __forceinline__ void take_noisy(ChoiceState& state, const Row& row, int width, double temperature, Place place) {
    SHARED(Noisy, of_warp, THREADS / 32);
    Noisy best = {state.score, state.logit, state.id};
    const uint32_t odd = row.first % 2;  // then the first block's first half is another's
    const int pairs = (int)(((uint32_t)width + odd + 1) / 2);
    int range = row.range_from(max(2 * (int)threadIdx.x - (int)odd, 0));
    for (int pair = (int)threadIdx.x; pair < pairs; pair += THREADS) {
        const uint4 words = place.block(row.first / 2 + pair);
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            const int at = 2 * pair + half - (int)odd;
            if (at < 0 || at >= width) continue;
            const float logit = row.get(at, range);
            const double u = half ? uniform(words.z, words.w) : uniform(words.x, words.y);
            // nearly all are spared the logarithms
            if ((double)logit + temperature * gumbel_bound(u) <= best.score) continue;
            const double score = (double)logit - temperature * log(-log(u));
            if (score > best.score) best = {score, logit, (int)(row.first + at)};
        }
    }
    #pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        best = better(best, {__shfl_xor_sync(FULL_WARP, best.score, step), __shfl_xor_sync(FULL_WARP, best.logit, step),
                             __shfl_xor_sync(FULL_WARP, best.id, step)});
    }
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    for (int i = 0; i < THREADS / 32; i++) best = better(best, of_warp[i]);
    state.score = best.score;
    state.logit = best.logit;
    state.id = best.id;
}

/// Shows every choice the logits[rows][width] of the ids `first, first + 1, ...`, which come next; `width` is a multiple of
/// 1024 but for the last ids. `unconditional` may be null; `forbidden` are sorted [from, to) of ids that do not touch. At
/// temperature 0 the largest logit is taken. Without `sums` the confidence is not computed. `places[row]` is where the row
/// draws, see `Place`.
// At least four blocks to a multiprocessor: with no number here ptxas aims at more, and spills.
KERNEL __launch_bounds__(THREADS, 4)
    choose_update(const float* logits, const float* unconditional, double cfg_scale, int width, uint32_t first,
                  const int32_t* forbidden, int ranges, double temperature, int sums, const uint32_t* places,
                  ChoiceState* states) {
    const uint64_t start = (uint64_t)blockIdx.x * width;
    const Row row = {logits + start, unconditional ? unconditional + start : unconditional, (float)(cfg_scale + 1.0), first,
                     forbidden, ranges};
    const ChoiceState before = states[blockIdx.x];
    if (before.id == NOT_FINITE) return;
    ChoiceState state = before;
    for (int at0 = 0; at0 < width && state.id != NOT_FINITE; at0 += PARTS_AT_ONCE * PART) {
        add_parts(state, row, at0, width, sums);
    }
    if (temperature > 0.0 && state.id != NOT_FINITE) {
        state.score = before.score;
        state.logit = before.logit;
        state.id = before.id;
        take_noisy(state, row, width, temperature, Place(places + 4 * blockIdx.x, TOKEN));
    }
    if (threadIdx.x == 0) states[blockIdx.x] = state;
}
REGISTER(choose_update)

/// The choices, when all ids have been looked at, and their probabilities without noise (0 where they were not computed). A
/// row with nothing left, or with NaN or infinity, has a negative id. Launch: grid (rows / 256 rounded up, 1, 1), 256 threads.
KERNEL __launch_bounds__(THREADS) choose_end(const ChoiceState* states, int rows, int32_t* ids, double* confidence) {
    const int row = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (row >= rows) return;
    const ChoiceState state = states[row];
    ids[row] = state.id;
    const bool known = state.id >= 0 && state.sum > 0.0;
    confidence[row] = known ? exponential((double)state.logit - (double)state.top) / state.sum : 0.0;
}
REGISTER(choose_end)

#define STAGED 2048  // exponentials that are computed together, and then added up by the lanes

/// The largest of a row of logits, guided: (1 + scale) v - scale u; NaN if one is. They are left in `to`, which may be
/// where they come from, by the threads that have read them.
__device__ __forceinline__ float guide_codes(const float* logits, const float* unconditional, float scale, int codes,
                                             float* to) {
    SHARED(float, parts, THREADS / 32);
    const float factor = 1.0f + scale;
    float top = -INFINITE;
    for (int at = (int)threadIdx.x; at < codes; at += THREADS) {
        const float v = unconditional ? factor * logits[at] - scale * unconditional[at] : logits[at];
        top = max_or_nan(top, v);
        to[at] = v;
    }
    return peak_over_block(top, parts);
}

/// Replaces logits, each by the thread that has left it there, by exp(logit - top) in f32; their sum.
__device__ __forceinline__ float exponentials(float* row, int codes, double top) {
    SHARED(double, staged, STAGED);
    SHARED(double, lanes, LANES);
    double sum = 0.0;
    for (int first = 0; first < codes; first += STAGED) {
        const int end = min(codes, first + STAGED);
        __syncthreads();  // what was staged before has been added
        for (int at = first + (int)threadIdx.x; at < end; at += THREADS) {
            const double e = exponential((double)row[at] - top);
            staged[at - first] = e;
            row[at] = (float)e;
        }
        __syncthreads();
        if (threadIdx.x >= LANES) continue;
        for (int at = (int)threadIdx.x; at < end - first; at += LANES) sum += staged[at];
    }
    if (threadIdx.x < LANES) lanes[threadIdx.x] = sum;
    __syncthreads();
    sum = 0.0;
    for (int i = 0; i < LANES; i++) sum += lanes[i];
    return (float)sum;
}

/// What the threads, which have neighbouring codes each, find in a row of probabilities.
struct Found {
    int code;             // the first one that the draw may be, or `codes`
    int last;             // the last possible one, or -1
    float first, second;  // the largest probabilities
};
__device__ __forceinline__ Found both(Found a, Found b) {
    return {min(a.code, b.code), max(a.last, b.last), max(a.first, b.first),
            max(min(a.first, b.first), max(a.second, b.second))};
}

/// Divides a row by `sum` and draws from it: the first possible code whose cumulative probability exceeds u times the total.
/// Sums are in f64: first over the neighbouring codes of a thread, then over the threads in order, from which each thread
/// goes on through its codes. The processor adds all codes in order; so the last bits differ, and where u is as close to a
/// step of the distribution as that, which of 10^12 draws about one is, so does the code.
__device__ __forceinline__ Found draw_code(float* row, int codes, float sum, double u) {
    SHARED(double, sums, THREADS);
    SHARED(Found, of_warp, THREADS / 32);
    const int each = (codes + THREADS - 1) / THREADS;
    const int start = min((int)threadIdx.x * each, codes), end = min(start + each, codes);
    double of_thread = 0.0;
    for (int at = start; at < end; at++) {
        row[at] /= sum;
        of_thread += (double)row[at];
    }
    sums[threadIdx.x] = of_thread;
    __syncthreads();
    double total = 0.0, cumulative = 0.0;
    for (int i = 0; i < THREADS; i++) {
        if (i == (int)threadIdx.x) cumulative = total;
        total += sums[i];
    }
    const double target = u * total;
    Found found = {codes, -1, 0.0f, 0.0f};
    for (int at = start; at < end; at++) {
        const float p = row[at];
        cumulative += (double)p;
        const bool possible = p > 0.0f;
        found = both(found, {possible && cumulative > target ? at : codes, possible ? at : -1, p, 0.0f});
    }
    #pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        found = both(found, {__shfl_xor_sync(FULL_WARP, found.code, step), __shfl_xor_sync(FULL_WARP, found.last, step),
                             __shfl_xor_sync(FULL_WARP, found.first, step), __shfl_xor_sync(FULL_WARP, found.second, step)});
    }
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = found;
    __syncthreads();
    found = of_warp[0];
    for (int i = 1; i < THREADS / 32; i++) found = both(found, of_warp[i]);
    return found;
}

/// Samples a code for every row of logits[rows][codes]. Its confidence is its probability or, with `margin`, how far the most
/// probable code is ahead of the next. A row whose largest logit is not finite has the code 0xffffffff. `unconditional` may
/// be null. `probabilities`, of the size of `logits`, may be `logits`; it is overwritten. `places` as above.
KERNEL __launch_bounds__(THREADS)
    sample_codes(const float* logits, const float* unconditional, float guidance, int codes, int margin,
                 const uint32_t* places, float* probabilities, uint32_t* sampled, float* confidence) {
    const uint64_t start = (uint64_t)blockIdx.x * codes;
    float* row = probabilities + start;
    const float top =
        guide_codes(logits + start, unconditional ? unconditional + start : unconditional, guidance, codes, row);
    if (!(fabsf(top) < INFINITE)) {
        if (threadIdx.x == 0) sampled[blockIdx.x] = 0xffffffffu, confidence[blockIdx.x] = 0.0f;
        return;
    }
    const float sum = exponentials(row, codes, (double)top);
    const uint4 words = Place(places + 4 * blockIdx.x, CATEGORICAL).block(0);
    const Found found = draw_code(row, codes, sum, uniform(words.x, words.y));
    if (threadIdx.x != 0) return;
    const int code = found.code < codes ? found.code : max(found.last, 0);
    sampled[blockIdx.x] = (uint32_t)code;
    confidence[blockIdx.x] = margin ? found.first - found.second : row[code];
}
REGISTER(sample_codes)
