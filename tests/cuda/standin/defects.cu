// Kernels with a defect each, which the stand-in must find.
#include "device.cuh"

KERNEL defect_past_the_end(float* x, int n) { x[n + threadIdx.x] = 1.0f; }
REGISTER(defect_past_the_end)

KERNEL defect_barrier_for_some(float* x, int n) {
    if ((int)threadIdx.x < n) __syncthreads();
    x[threadIdx.x] = 1.0f;
}
REGISTER(defect_barrier_for_some)

KERNEL defect_divergent_shuffle(float* x, int n) {
    float v = (float)threadIdx.x;
    if ((int)threadIdx.x < n) v += __shfl_xor_sync(FULL_WARP, v, 1);
    x[threadIdx.x] = v;
}
REGISTER(defect_divergent_shuffle)

// Reads shared memory before the copy to it has been waited for: x becomes NaN.
KERNEL defect_early_read(float* x, int n) {
    SHARED(float4, tile, 32);
    cp_async_16(&tile[threadIdx.x], x + 4 * threadIdx.x, (int)threadIdx.x < n);
    cp_async_commit();
    const float early = tile[threadIdx.x].x;
    cp_async_wait<0>();
    x[4 * threadIdx.x] = early;
}
REGISTER(defect_early_read)

// Threads read what others write with no barrier in between.
KERNEL defect_race(float* x, int n) {
    SHARED(float, v, 64);
    v[threadIdx.x] = x[threadIdx.x];
    x[threadIdx.x] = v[(threadIdx.x + n) % 64];
}
REGISTER(defect_race)

// As `defect_race` within a warp, which a shuffle does not mend: it orders no memory.
KERNEL defect_race_in_warp(float* x, int n) {
    SHARED(float, v, 32);
    v[threadIdx.x] = x[threadIdx.x];
    const float zero = __shfl_xor_sync(FULL_WARP, 0.0f, 1);
    x[threadIdx.x] = v[(threadIdx.x + n) % 32] + zero;
}
REGISTER(defect_race_in_warp)

// The same with __syncwarp, which does.
KERNEL right_in_warp(float* x, int n) {
    SHARED(float, v, 32);
    v[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    x[threadIdx.x] = v[(threadIdx.x + n) % 32];
}
REGISTER(right_in_warp)
