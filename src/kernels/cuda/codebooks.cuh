// The IQ types with codebooks, as blocks.cuh has the other types: levels of eight (IQ3: four) neighbours are a row of a
// table. They are for bfloat16 and embeddings, as TQ1_0 and others there. src/tensor/dequantize_iq.rs is the same for the
// processor; the tables are read by lanes that choose differently, so they are not in constant memory.
#pragma once

#include "blocks.cuh"
#include "grids.cuh"

/// 8 25 43
#define IQ2_LEVELS 0x002b1908u
/// 4 12 20 28 36 44 52 62
#define IQ3_XXS_LEVELS 0x1c140c04u, 0x3e342c24u
/// 1 3 5 7 9 11 13 15
#define IQ3_S_LEVELS 0x07050301u, 0x0f0d0b09u
/// Eight times -1 0 1, with 1 added or taken away.
#define IQ1_ABOVE 0x000901f9u
#define IQ1_BELOW 0x0007fff7u

/// A number of 16 bits at an even address.
__device__ __forceinline__ uint32_t load_u16(const uint8_t* at) { return *(const uint16_t*)at; }

/// The eight signs that seven bits say: the number of negative ones is even.
__device__ __forceinline__ uint32_t all_signs(uint32_t bits) { return (bits & 127) | (__popc(bits & 127) & 1) << 7; }

/// Four bytes, negative where the lowest four bits of `signs` say so. None is zero, so that nothing is carried.
__device__ __forceinline__ uint32_t negate_bytes(uint32_t bytes, uint32_t signs) {
    const uint32_t ones = spread_bits(signs);
    return (bytes ^ ones * 255) + ones;
}

/// The levels that the four lowest crumbs of `row` choose.
__device__ __forceinline__ uint32_t four_levels(uint32_t row, uint32_t levels) {
    const uint32_t pairs = (row & 15) | (row & 0xf0) << 4;
    return __byte_perm(levels, 0, (pairs & 0x0303) | (pairs & 0x0c0c) << 2);
}

/// Weights 8 j to 8 j + 7 of a group: levels of a row, with signs.
__device__ __forceinline__ void iq2_row(Group& g, int j, uint32_t row, uint32_t signs) {
    g.q[2 * j] = negate_bytes(four_levels(row, IQ2_LEVELS), signs);
    g.q[2 * j + 1] = negate_bytes(four_levels(row >> 8, IQ2_LEVELS), signs >> 4);
}
__device__ __forceinline__ void iq1_row(Group& g, int j, uint32_t row, uint32_t below) {
    const uint32_t levels = below ? IQ1_BELOW : IQ1_ABOVE;
    g.q[2 * j] = four_levels(row, levels);
    g.q[2 * j + 1] = four_levels(row >> 8, levels);
}

/// Scale `s` of two per byte.
__device__ __forceinline__ uint32_t nibble_at(const uint8_t* scales, int s) { return scales[s / 2] >> (s % 2 * 4) & 15; }
__device__ __forceinline__ float half_scale(float d, uint32_t scale, float unit) {
    return d * (0.5f + (float)scale) * unit;
}

struct IQ2_XXS {
    static constexpr int LENGTH = 256, BYTES = 66, GROUP = 32;
    static constexpr bool OFFSET = false;
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        const uint8_t* rows = block + 2 + 8 * p;
        const uint32_t signs = load_u32(rows + 4);
        same_scale(g, half_scale(load_half(block), signs >> 28, 0.25f), 0);
        #pragma unroll
        for (int j = 0; j < 4; j++) iq2_row(g, j, GRID_IQ2_XXS[rows[j]], all_signs(signs >> (7 * j)));
    }
};

struct IQ2_XS {
    static constexpr int LENGTH = 256, BYTES = 74, GROUP = 16;
    static constexpr bool OFFSET = false;
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        const float d = load_half(block);
        #pragma unroll
        for (int i = 0; i < 2; i++) g.scale[i] = half_scale(d, nibble_at(block + 66, 2 * p + i), 0.25f);
        #pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t q = load_u16(block + 2 + 8 * p + 2 * j);
            iq2_row(g, j, GRID_IQ2_XS[q & 511], all_signs(q >> 9));
        }
    }
};

struct IQ2_S {
    static constexpr int LENGTH = 256, BYTES = 82, GROUP = 16;
    static constexpr bool OFFSET = false;
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        const float d = load_half(block);
        const uint32_t high = block[66 + p];
        #pragma unroll
        for (int i = 0; i < 2; i++) g.scale[i] = half_scale(d, nibble_at(block + 74, 2 * p + i), 0.25f);
        #pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t row = block[2 + 4 * p + j] | (high >> (2 * j) & 3) << 8;
            iq2_row(g, j, GRID_IQ2_S[row], block[34 + 4 * p + j]);
        }
    }
};

struct IQ3_XXS {
    static constexpr int LENGTH = 256, BYTES = 98, GROUP = 32;
    static constexpr bool OFFSET = false;
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        const uint32_t signs = load_u32(block + 66 + 4 * p);
        same_scale(g, half_scale(load_half(block), signs >> 28, 0.5f), 0);
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t row = GRID_IQ3_XXS[block[2 + 8 * p + i]];
            g.q[i] = negate_bytes(__byte_perm(IQ3_XXS_LEVELS, row), all_signs(signs >> (i / 2 * 7)) >> (i % 2 * 4));
        }
    }
};

struct IQ3_S {
    static constexpr int LENGTH = 256, BYTES = 110, GROUP = 32;
    static constexpr bool OFFSET = false;
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        const uint32_t high = block[66 + p];
        same_scale(g, load_half(block) * (float)(1 + 2 * nibble_at(block + 106, p)), 0);
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t row = GRID_IQ3_S[block[2 + 8 * p + i] | (high >> i & 1) << 8];
            g.q[i] = negate_bytes(__byte_perm(IQ3_S_LEVELS, row), block[74 + 4 * p + i / 2] >> (i % 2 * 4));
        }
    }
};

struct IQ1_S {
    static constexpr int LENGTH = 256, BYTES = 50, GROUP = 32;
    static constexpr bool OFFSET = false;
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        const uint32_t high = load_u16(block + 34 + 2 * p);
        same_scale(g, load_half(block) * (float)(2 * (high >> 12 & 7) + 1) * 0.125f, 0);
        #pragma unroll
        for (int j = 0; j < 4; j++) {
            iq1_row(g, j, GRID_IQ1[block[2 + 4 * p + j] | (high >> (3 * j) & 7) << 8], high >> 15);
        }
    }
};

struct IQ1_M {
    static constexpr int LENGTH = 256, BYTES = 56, GROUP = 16;
    static constexpr bool OFFSET = false;
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        uint32_t bits = 0;
        #pragma unroll
        for (int i = 0; i < 4; i++) bits |= load_u16(block + 48 + 2 * i) >> 12 << (4 * i);
        const float d = float_from_half((uint16_t)bits);
        const uint32_t scales = load_u16(block + 48 + p / 2 * 2) >> (p % 2 * 6);
        #pragma unroll
        for (int i = 0; i < 2; i++) g.scale[i] = d * (float)(2 * (scales >> (3 * i) & 7) + 1) * 0.125f;
        #pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t high = block[32 + 2 * p + j / 2] >> (j % 2 * 4);
            iq1_row(g, j, GRID_IQ1[block[4 * p + j] | (high & 7) << 8], high & 8);
        }
    }
};
