// Weights of any type as operands of tensor cores: 32 of a row at a time, in bfloat16, or in int8 with one scale for 256.
#pragma once

#include "blocks.cuh"

// Weights: 32 elements from `part` on of a row of k elements as bfloat16, in order; zeros past the end.

template <class W>
struct Quantized {
    __device__ static __forceinline__ void read(const uint8_t* row, int part, int, uint32_t (&out)[16]) {
        Group g;
        read_group<W>(row, part, g);
        #pragma unroll
        for (int i = 0; i < 16; i++) {
            out[i] = bf16_pair(weight<W>(g, i / 2, i % 2 * 2), weight<W>(g, i / 2, i % 2 * 2 + 1));
        }
    }
};

struct F32 {
    __device__ static __forceinline__ float at(const uint8_t* row, int i) { return ((const float*)row)[i]; }
};
struct F16 {
    __device__ static __forceinline__ float at(const uint8_t* row, int i) {
        return float_from_half(((const uint16_t*)row)[i]);
    }
};
struct BF16 {
    __device__ static __forceinline__ float at(const uint8_t* row, int i) {
        return float_from_bf16(((const uint16_t*)row)[i]);
    }
};
template <class T>
struct Floats {
    __device__ static __forceinline__ void read(const uint8_t* row, int part, int k, uint32_t (&out)[16]) {
        #pragma unroll
        for (int i = 0; i < 16; i++) {
            const int at = 32 * part + 2 * i;
            out[i] = bf16_pair(at < k ? T::at(row, at) : 0.0f, at + 1 < k ? T::at(row, at + 1) : 0.0f);
        }
    }
};

/// 32 weights rounded to int8 with the scale of 256, which eight neighbouring lanes find together; returns the scale.
template <class W>
__device__ __forceinline__ float widen(Group& g, bool there) {
    float peak = 0.0f;
    if (there) {
        #pragma unroll
        for (int half = 0; half < 32 / W::GROUP; half++) {
            const float a = g.scale[half], b = W::OFFSET ? g.offset[half] : 0.0f;
            if (W::FEW) peak = max_or_nan(peak, max_or_nan(fabsf(a * W::LEAST + b), fabsf(a * W::GREATEST + b)));
        }
        if (!W::FEW) {
            #pragma unroll
            for (int i = 0; i < 32; i++) peak = max_or_nan(peak, fabsf(weight<W>(g, i / 4, i % 4)));
        }
    }
    const Scale wide = scale_of(peak_over(peak, 256 / 32));
    #pragma unroll
    for (int i = 0; i < 8; i++) {
        uint32_t byte[4];
        #pragma unroll
        for (int j = 0; j < 4; j++) byte[j] = rounded_byte(weight<W>(g, i, j) * wide.inverse);
        g.q[i] = pack_bytes(byte[0], byte[1], byte[2], byte[3]);
    }
    return wide.scale;
}
