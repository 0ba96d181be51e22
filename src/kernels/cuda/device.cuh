// What the kernels are written with: the few PTX instructions that CUDA C++ has no name for, numbers of other formats, and
// sums over a warp or a block.
//
// Kernels compile with NVRTC alone, which knows no header; and with a C++ compiler for the processor, for which the tests
// define MMADA_STANDIN (tests/cuda). So no file but this one, hopper.cuh and tma.cuh holds assembly, entry points are declared
// with KERNEL and REGISTER, and shared memory with SHARED and DYNAMIC_SHARED. Products and sums are not contracted
// (--fmad=false): where one rounding is meant, it says fmaf, and results in int8 are those of the processor's kernels to the
// bit.
#pragma once

#ifdef MMADA_STANDIN
#include "language.h"
#else

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;

#define KERNEL extern "C" __global__ void
#define REGISTER(name)
#define SHARED(type, name, count) __shared__ type name[count]
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

__device__ __forceinline__ uint32_t shared_address(const void* at) { return (uint32_t)__cvta_generic_to_shared(at); }

// c, of 16x8, += a b. a is 16 rows of K, b 8 columns of K (PTX ISA 7.8, 9.7.13.4).
__device__ __forceinline__ void mma_s8_k32(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_s8_k16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a0), "r"(a1), "r"(b));
}
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 rows of 16 bytes: lane 8 j + i brings the address of row i of matrix j.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts a copy of 16 bytes to shared memory; zeros where they are not `there`, and `global` is not read.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(there ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

// Two floats rounded to bfloat16, the first in the low half.
__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
__device__ __forceinline__ float float_from_half(uint16_t bits) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
    return v;
}
#endif

#define FULL_WARP 0xffffffffu
#define INFINITE __uint_as_float(0x7f800000u)

__device__ __forceinline__ float float_from_bf16(uint32_t bits) { return __uint_as_float(bits << 16); }
__device__ __forceinline__ uint16_t bf16_bits(float v) { return (uint16_t)bf16_pair(v, 0.0f); }

/// What two floats leave of themselves when they are rounded to the bfloat16 in `pair`, rounded in turn: the sum of both
/// keeps sixteen bits of each.
__device__ __forceinline__ uint32_t bf16_rest(uint32_t pair, float low, float high) {
    return bf16_pair(low - float_from_bf16(pair), high - __uint_as_float(pair & 0xffff0000u));
}

/// A little-endian number at any address. No word is read but those that hold a byte of it.
__device__ __forceinline__ uint32_t load_u32(const uint8_t* at) {
    const uint32_t odd = (uint32_t)(uint64_t)at & 3;
    const uint32_t* words = (const uint32_t*)(at - odd);
    const uint32_t low = words[0], high = words[odd ? 1 : 0];
    return __funnelshift_r(low, high, 8 * odd);
}
/// An f16 at an even address.
__device__ __forceinline__ float load_half(const uint8_t* at) { return float_from_half(*(const uint16_t*)at); }

/// The larger one; NaN if one is.
__device__ __forceinline__ float max_or_nan(float a, float b) { return a > b || a != a ? a : b; }

/// Over groups of `lanes` neighbours, a power of two; all lanes get it.
__device__ __forceinline__ float sum_over(float v, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) v += __shfl_xor_sync(FULL_WARP, v, step);
    return v;
}
__device__ __forceinline__ float peak_over(float v, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) v = max_or_nan(v, __shfl_xor_sync(FULL_WARP, v, step));
    return v;
}

/// The sum over a block, for all of its threads; `parts` is shared memory for one number of each warp. Always added in
/// the same order.
template <class T>
__device__ __forceinline__ T sum_over_block(T v, T* parts) {
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(FULL_WARP, v, step);
    const int warps = (int)blockDim.x / 32;
    __syncthreads();  // `parts` may still be read from the sum before
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    T sum = parts[0];
    for (int i = 1; i < warps; i++) sum += parts[i];
    return sum;
}

/// The largest over a block, NaN if one is, for all of its threads; `parts` as above.
__device__ __forceinline__ float peak_over_block(float v, float* parts) {
    v = peak_over(v, 32);
    const int warps = (int)blockDim.x / 32;
    __syncthreads();  // `parts` may still be read
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    float peak = parts[0];
    for (int i = 1; i < warps; i++) peak = max_or_nan(peak, parts[i]);
    return peak;
}

/// Whole numbers of [-128, 127] that floats are rounded to, ties to even: in the low byte of the float's bits.
__device__ __forceinline__ uint32_t rounded_byte(float v) { return __float_as_uint(v + 12582912.0f); }

/// The low bytes of four words.
__device__ __forceinline__ uint32_t pack_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}
__device__ __forceinline__ float float_of_byte(uint32_t word, int byte) { return (float)(int8_t)(word >> (8 * byte)); }

/// A scale that takes `peak` to 127, and what to multiply numbers with: a scale that would be subnormal counts as zero, an
/// infinite one or NaN is kept, and its numbers become zeros.
struct Scale {
    float scale, inverse;
};
__device__ __forceinline__ Scale scale_of(float peak) {
    const float d = peak / 127.0f;
    const bool normal = d >= 1.17549435e-38f && d < INFINITE;  // peaks are not negative
    const float inverse = normal ? 1.0f / d : 0.0f;
    return {d < 1.17549435e-38f ? 0.0f : d, inverse < INFINITE ? inverse : 0.0f};
}
