// What sampling computes to the bit as the processor does: the exponential of src/sampler/mod.rs and the random numbers of
// src/sampler/noise.rs.
#pragma once

#include "device.cuh"

/// e^x for x <= 0, within 1e-15 of it; below -708 it is 0. x = n ln 2 + r, e^r is a polynomial, 2^n is made of bits.
__device__ __forceinline__ double exponential(double x) {
    const double round = 6755399441055744.0;  // 1.5 * 2^52
    const double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33, log2_e = 0x1.71547652b82fep+0;
    const double inverse_factorials[14] = {1.0,
                                           1.0,
                                           1.0 / 2.0,
                                           1.0 / 6.0,
                                           1.0 / 24.0,
                                           1.0 / 120.0,
                                           1.0 / 720.0,
                                           1.0 / 5040.0,
                                           1.0 / 40320.0,
                                           1.0 / 362880.0,
                                           1.0 / 3628800.0,
                                           1.0 / 39916800.0,
                                           1.0 / 479001600.0,
                                           1.0 / 6227020800.0};
    const double clamped = x < -708.0 ? -708.0 : x;
    const double rounded = clamped * log2_e + round;
    const double n = rounded - round;
    const double r = (clamped - n * ln2_high) - n * ln2_low;
    double p = inverse_factorials[13];
    #pragma unroll
    for (int i = 12; i >= 0; i--) p = p * r + inverse_factorials[i];
    const double scale = __longlong_as_double((long long)(((uint64_t)__double_as_longlong(rounded) + 1023) << 52));
    return x < -708.0 ? 0.0 : p * scale;
}

/// Philox 4x32-10 (Salmon and others 2011): the block of a counter under a key.
__device__ __forceinline__ uint4 philox(uint4 c, uint64_t key) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    #pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xd2511f53u * c.x, p1 = (uint64_t)0xcd9e8d57u * c.z;
        c = make_uint4((uint32_t)(p1 >> 32) ^ c.y ^ k0, (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c.w ^ k1, (uint32_t)p0);
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return c;
}

/// A multiple of 2^-53 below 1; 2^-54 stands for 0.
__device__ __forceinline__ double uniform(uint32_t high, uint32_t low) {
    const double bits = (double)(((uint64_t)high << 32 | low) >> 11);
    return (bits > 0.5 ? bits : 0.5) * 0x1p-53;
}

#define TOKEN 1               // of texts
#define CATEGORICAL (16 + 3)  // of pictures

/// Where a row of logits draws: the two words of the key, which is the seed of its sequence, the step and the position.
struct Place {
    uint64_t key;
    uint4 counter;  // of block 0

    __device__ __forceinline__ Place(const uint32_t* place, uint32_t purpose)
        : key((uint64_t)place[1] << 32 | place[0]), counter(make_uint4(0, place[3], place[2], purpose)) {}
    __device__ __forceinline__ uint4 block(uint32_t number) const {
        return philox(make_uint4(number, counter.y, counter.z, counter.w), key);
    }
};
