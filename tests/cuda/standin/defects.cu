// Kernels with a defect each, which the stand-in must find.
#include "tma.cuh"

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

// A product of a warpgroup, of x with itself, and what may go wrong around it. Tiles begin at a multiple of 1024.
#define TILE(name)                                   \
    SHARED(unsigned char, memory_of_##name, 9 * 1024); \
    unsigned char* name = memory_of_##name + (-shared_address(memory_of_##name) & 1023)

template <bool FENCE, bool EARLY, bool OVERWRITES, int SHIFT>
void square(float* x, int n) {
    TILE(tile);
    for (int i = 0; i < 16; i++) ((uint32_t*)tile)[threadIdx.x + WARPGROUP * i] = (uint32_t)n;
    fence_async_proxy();
    __syncthreads();
    float d[64];
    for (int i = 0; i < 64; i++) d[i] = 1.0f;
    if (FENCE) wgmma_fence();
    // what lies behind the 64 rows is as good: only the first columns are looked at
    const uint64_t rows = operand(tile + SHIFT, 0);
    wgmma_bf16(d, rows, rows & ~((uint64_t)0x3fff << 32));
    wgmma_commit();
    const float early = d[0];
    if (OVERWRITES) tile[threadIdx.x] = 1;
    wgmma_wait<0>(d);
    x[threadIdx.x] = EARLY ? early : d[0];
}
KERNEL right_wgmma(float* x, int n) { square<true, false, false, 0>(x, n); }
REGISTER(right_wgmma)
KERNEL defect_wgmma_early_read(float* x, int n) { square<true, true, false, 0>(x, n); }
REGISTER(defect_wgmma_early_read)
KERNEL defect_wgmma_unfenced(float* x, int n) { square<false, false, false, 0>(x, n); }
REGISTER(defect_wgmma_unfenced)
KERNEL defect_wgmma_overwritten(float* x, int n) { square<true, false, true, 0>(x, n); }
REGISTER(defect_wgmma_overwritten)
KERNEL defect_wgmma_shifted(float* x, int n) { square<true, false, false, 128>(x, n); }
REGISTER(defect_wgmma_shifted)

// Touches an accumulator before the product has been waited for.
KERNEL defect_wgmma_written(float* x, int) {
    TILE(tile);
    const uint64_t rows = operand(tile, 0) & ~((uint64_t)0x3fff << 32);
    float d[64] = {};
    wgmma_fence();
    wgmma_bf16(d, rows, rows);
    wgmma_commit();
    d[5] = 0.0f;
    wgmma_wait<0>(d);
    x[threadIdx.x] = d[5];
}
REGISTER(defect_wgmma_written)

// Waits where some warps do not.
KERNEL defect_wgmma_wait_of_some(float* x, int) {
    TILE(tile);
    const uint64_t rows = operand(tile, 0) & ~((uint64_t)0x3fff << 32);
    float d[64] = {};
    wgmma_fence();
    wgmma_bf16(d, rows, rows);
    wgmma_commit();
    if (threadIdx.x < 64) wgmma_wait<0>(d);
    wgmma_wait<0>(d);
    wgmma_fence();
    x[threadIdx.x] = d[0];
}
REGISTER(defect_wgmma_wait_of_some)

// A product of a first operand in registers and a second one in rows of columns, both of numbers that are all different:
// x[64][64] becomes the sums. `WRITES`: to the operand in registers before the product has been waited for.
template <bool WRITES, int SHIFT>
void multiply_transposed(float* x, int) {
    TILE(tile);
    for (int i = (int)threadIdx.x; i < 16 * 64; i += WARPGROUP) {
        const int k = i / 64, c = i % 64;
        *(uint16_t*)(tile + k * ROW_BYTES + (c / 8 ^ k % 8) * 16 + c % 8 * 2) = bf16_bits((float)(k * 3 - c % 13 + c / 8));
    }
    fence_async_proxy();
    __syncthreads();
    const int lane = (int)threadIdx.x % 32, row = (int)threadIdx.x / 32 * 16 + lane / 4, k = lane % 4 * 2;
    const auto a_at = [](int row, int k) { return (float)(row % 17 - k + row / 17); };
    uint32_t a[1][4];
    for (int i = 0; i < 4; i++) {
        const int r = row + i % 2 * 8, c = k + i / 2 * 8;
        a[0][i] = bf16_pair(a_at(r, c), a_at(r, c + 1));
    }
    float d[32] = {};
    wgmma_fence();
    wgmma_bf16_transposed(d, a[0], transposed_operand(tile + SHIFT, 0, 1024));
    wgmma_commit();
    if (WRITES) a[0][3] = 0;
    wgmma_wait<0>(d, a);
    for (int i = 0; i < 32; i++) x[fragment_row(i) * 64 + fragment_column(i)] = d[i];
}
KERNEL right_wgmma_transposed(float* x, int n) { multiply_transposed<false, 0>(x, n); }
REGISTER(right_wgmma_transposed)
KERNEL defect_wgmma_operand_written(float* x, int n) { multiply_transposed<true, 0>(x, n); }
REGISTER(defect_wgmma_operand_written)
KERNEL defect_wgmma_transposed_shifted(float* x, int n) { multiply_transposed<false, 128>(x, n); }
REGISTER(defect_wgmma_transposed_shifted)

// Hands copies over: a warp copies, another reads. `FENCE`: as wgmma has to be told; `ARRIVALS`: of the 32 that are expected.
template <bool FENCE, int ARRIVALS>
void hand_over(float* x, int) {
    SHARED(float4, copied, 32);
    SHARED(uint64_t, full, 1);
    if (threadIdx.x == 0) mbarrier_init(full, 32);
    __syncthreads();
    const int lane = (int)threadIdx.x % 32;
    if (threadIdx.x < 32) {
        cp_async_16(&copied[lane], x + 4 * lane, true);
        cp_async_commit();
        cp_async_wait<0>();
        if (FENCE) fence_async_proxy();
        if (lane < ARRIVALS) mbarrier_arrive(full);
    } else {
        mbarrier_wait(full, 0);
        x[lane] = copied[(lane + 1) % 32].x;
    }
}
KERNEL right_mbarrier(float* x, int n) { hand_over<true, 32>(x, n); }
REGISTER(right_mbarrier)
KERNEL defect_mbarrier_unfenced(float* x, int n) { hand_over<false, 32>(x, n); }
REGISTER(defect_mbarrier_unfenced)
KERNEL defect_mbarrier_too_few(float* x, int n) { hand_over<true, 31>(x, n); }
REGISTER(defect_mbarrier_too_few)

// Copies by the Tensor Memory Accelerator: thread 0 copies a box of 8 rows of 128 bytes of floats, another warp reads it. What
// is expected of it, in bytes; whether the barrier is fenced, the box waited for, written to meanwhile, and where it begins.
template <int BYTES, bool FENCE, bool WAIT, bool OVERWRITES, int SHIFT>
void copy_box(float* x, const TensorMap& map, int column, int row) {
    TILE(tile);
    SHARED(uint64_t, full, 1);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        if (FENCE) fence_async_proxy();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect_tx(full, BYTES);
        cp_async_bulk_tensor_2d(tile + SHIFT, map, column, row, full);
        if (OVERWRITES) tile[0] = 1;
    }
    if (threadIdx.x < 32) return;
    const int lane = (int)threadIdx.x % 32;
    if (WAIT) mbarrier_wait(full, 0);
    for (int r = 0; r < 8; r++) {
        const int piece = lane / 4 ^ r;  // the swizzle of 128 bytes
        x[32 * r + lane] = ((const float*)tile)[32 * r + 4 * piece + lane % 4];
    }
    __syncwarp();
    if (!WAIT) mbarrier_wait(full, 0);
}
#define COPY_BOX(NAME, ...)                                                                                               \
    KERNEL NAME(float* x, const __grid_constant__ TensorMap map, int column, int row) {                                     \
        copy_box<__VA_ARGS__>(x, map, column, row);                                                                         \
    }                                                                                                                       \
    REGISTER(NAME)
COPY_BOX(right_box, 1024, true, true, false, 0)
COPY_BOX(defect_box_early_read, 1024, true, false, false, 0)
COPY_BOX(defect_box_too_many_bytes, 1040, true, true, false, 0)
COPY_BOX(defect_box_too_few_bytes, 0, true, true, false, 0)
COPY_BOX(defect_box_unfenced_barrier, 1024, false, true, false, 0)
COPY_BOX(defect_box_overwritten, 1024, true, true, true, 0)
COPY_BOX(defect_box_shifted, 1024, true, true, false, 512)

// Waits for a phase that has only the bytes of the first of two copies.
KERNEL defect_box_half_waited(float* x, const __grid_constant__ TensorMap map) {
    TILE(tile);
    SHARED(uint64_t, full, 1);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        fence_async_proxy();
        mbarrier_arrive_expect_tx(full, 1024);
        for (int i = 0; i < 2; i++) cp_async_bulk_tensor_2d(tile + 1024 * i, map, 0, 0, full);
        mbarrier_wait(full, 0);
        x[0] = ((const float*)tile)[0];
    }
}
REGISTER(defect_box_half_waited)

// wgmma reads what cp.async has copied, announced by itself: a barrier, but no fence.
template <bool FENCE>
void multiply_copied(float* x, int) {
    TILE(tile);
    SHARED(uint64_t, full, 1);
    if (threadIdx.x == 0) mbarrier_init(full, WARPGROUP);
    __syncthreads();
    for (int i = 0; i < 4; i++) cp_async_16(tile + 16 * (threadIdx.x + WARPGROUP * i), x, true);
    cp_async_mbarrier_arrive(full);
    mbarrier_wait(full, 0);
    if (FENCE) fence_async_proxy();
    __syncthreads();
    float d[64] = {};
    wgmma_fence();
    const uint64_t rows = operand(tile, 0);
    wgmma_bf16(d, rows, rows & ~((uint64_t)0x3fff << 32));
    wgmma_commit();
    wgmma_wait<0>(d);
    cp_async_commit();
    cp_async_wait<0>();
    x[threadIdx.x] = d[0];
}
KERNEL right_copied_operand(float* x, int n) { multiply_copied<true>(x, n); }
REGISTER(right_copied_operand)
KERNEL defect_copied_operand_unfenced(float* x, int n) { multiply_copied<false>(x, n); }
REGISTER(defect_copied_operand_unfenced)
