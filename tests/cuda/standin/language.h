// The CUDA language as a C++ compiler for the processor sees it: types, indices, barriers, warp operations and the PTX that
// device.cuh wraps. One CUDA thread is one fiber; see runtime.h and README.md.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "runtime.h"

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static const
#define __grid_constant__

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#define threadIdx (standin::thread_index())
#define blockIdx (standin::block_index())
#define blockDim (standin::block_size())
#define gridDim (standin::grid_size())

#define KERNEL extern "C" void
#define REGISTER(name) static const standin::Registration registration_of_##name(#name, standin::Call<&name>::with);
// An array in the block's memory. Every place in the source that declares one has its own.
#define SHARED(type, name, count)                       \
    static const int slot_of_##name = standin::new_slot(); \
    type* name = static_cast<type*>(standin::shared_slot(slot_of_##name, sizeof(type) * (count)))
#define DYNAMIC_SHARED(name) unsigned char* name = standin::dynamic_shared()

inline void __syncthreads() { standin::barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { standin::sync_warp(mask); }

template <class T>
T shuffle(unsigned mask, T value, unsigned from) {
    static_assert(sizeof(T) <= 8, "one or two registers");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = standin::shuffle(mask, bits, from);
    memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
    return shuffle(mask, value, unsigned(lane) & 31);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
    return shuffle(mask, value, standin::lane() ^ unsigned(bits));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return standin::ballot(mask, predicate != 0); }

inline unsigned __float_as_uint(float v) {
    unsigned bits;
    memcpy(&bits, &v, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}
inline long long __double_as_longlong(double v) {
    long long bits;
    memcpy(&bits, &v, 8);
    return bits;
}
inline double __longlong_as_double(long long bits) {
    double v;
    memcpy(&v, &bits, 8);
    return v;
}
/// Four of the eight bytes of `y:x`, chosen by the low four nibbles of `s`; a nibble's high bit spreads the byte's sign.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    const uint64_t bytes = uint64_t(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned nibble = s >> (4 * i) & 15;
        unsigned byte = unsigned(bytes >> (8 * (nibble & 7))) & 0xff;
        if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= byte << (8 * i);
    }
    return result;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
    return a < b ? b : a;
}

// The PTX of device.cuh.
void mma_s8_k32(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_s8_k16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b);
void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void ldmatrix_x4(uint32_t (&r)[4], const void* row);
void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row);
void cp_async_16(void* shared, const void* global, bool there);
void cp_async_commit();
void cp_async_wait_all_but(int groups);
template <int GROUPS>
void cp_async_wait() {
    cp_async_wait_all_but(GROUPS);
}
uint32_t bf16_pair(float low, float high);
float float_from_half(uint16_t bits);
