// Which token each masked position would take and how sure that is, straight from its logits: of a row of 126,000 logits
// twelve bytes come back (src/sampler/text.rs without noise).
//
// Launch: grid (rows, 1, 1), 256 threads.

#include "device.cuh"

#define THREADS 256
#define NOTHING_LEFT (-1)
#define NOT_FINITE (-2)

/// A row of logits: guided away from the unconditional ones, where there are some (classifier-free
/// guidance), without those that must not be chosen.
struct Row {
    const float* logits;
    const float* unconditional;  // or null
    float factor;                // guidance scale + 1
    const int32_t* forbidden;    // [ranges][2]: sorted, apart, relative to the row's first id
    int ranges;

    /// The logit at `at`; `range` is the caller's place among the ranges, for places that only grow.
    __device__ __forceinline__ float get(int at, int& range) const {
        while (range < ranges && at >= forbidden[2 * range + 1]) range++;
        if (range < ranges && at >= forbidden[2 * range]) return -INFINITE;
        const float v = logits[at];
        if (!unconditional) return v;
        const float u = unconditional[at];
        return u + factor * (v - u);
    }
};

struct Best {
    float logit;
    int at;
};

/// The larger, of equals the first; NaN before all.
__device__ __forceinline__ Best better(Best a, Best b) {
    const bool first = a.logit > b.logit || a.logit != a.logit || (a.logit == b.logit && a.at < b.at);
    return first ? a : b;
}

__device__ __forceinline__ Best best_of_block(Best best) {
    SHARED(Best, of_warp, THREADS / 32);
    #pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const Best other = {__shfl_xor_sync(FULL_WARP, best.logit, step), __shfl_xor_sync(FULL_WARP, best.at, step)};
        best = better(best, other);
    }
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    best = of_warp[0];
    for (int i = 1; i < THREADS / 32; i++) best = better(best, of_warp[i]);
    return best;
}

/// Of every row of logits[rows][width]: the largest that is allowed (the first of equals; its place in the row) and its
/// probability. A row with nothing left, or with NaN or infinity, has a negative id.
KERNEL __launch_bounds__(THREADS)
    choose(const float* logits, const float* unconditional, float factor, int width, const int32_t* forbidden, int ranges,
           int32_t* ids, double* confidence) {
    SHARED(double, parts, THREADS / 32);
    const uint64_t start = (uint64_t)blockIdx.x * width;
    const Row row = {logits + start, unconditional ? unconditional + start : unconditional, factor, forbidden, ranges};
    Best best = {-INFINITE, width};
    int range = 0;
    for (int at = (int)threadIdx.x; at < width; at += THREADS) best = better(best, {row.get(at, range), at});
    best = best_of_block(best);
    const double top = (double)best.logit;
    double sum = 0.0;
    range = 0;
    for (int at = (int)threadIdx.x; at < width; at += THREADS) sum += exp((double)row.get(at, range) - top);
    sum = sum_over_block(sum, parts);
    if (threadIdx.x != 0) return;
    const bool finite = best.logit > -INFINITE && best.logit < INFINITE;
    ids[blockIdx.x] = finite ? best.at : best.logit == -INFINITE ? NOTHING_LEFT : NOT_FINITE;
    confidence[blockIdx.x] = finite ? 1.0 / sum : 0.0;
}
REGISTER(choose)
