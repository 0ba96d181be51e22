// GGUF blocks as int8 with the scales that they have: 32 weights of a row at a time. The layouts are drawn in
// src/tensor/block.rs; src/kernels/unpack/blocks.rs is the same for the processor.
#pragma once

#include "device.cuh"

/// 32 weights: `scale * q + offset`, a scale and an offset for each half. Types with one scale for 32 have it twice, types
/// without an offset leave it alone.
struct Group {
    uint32_t q[8];  // four to a word, in order
    float scale[2];
    float offset[2];
};

#define LOW_NIBBLES 0x0f0f0f0fu
#define CRUMBS 0x03030303u
#define BITS 0x01010101u

/// `v - n` for four bytes of `v` and `n` below 128.
__device__ __forceinline__ uint32_t subtract_bytes(uint32_t v, uint32_t n) { return ((v | 0x80808080u) - n) ^ 0x80808080u; }

/// Four bits to the lowest bits of four bytes.
__device__ __forceinline__ uint32_t spread_bits(uint32_t four) { return (four & 15) * 0x00204081u & BITS; }

__device__ __forceinline__ void same_scale(Group& g, float scale, float offset) {
    g.scale[0] = g.scale[1] = scale;
    g.offset[0] = g.offset[1] = offset;
}

/// Sixteen bytes: low nibbles are the first 16 weights, high ones the others.
__device__ __forceinline__ void nibbles(Group& g, const uint8_t* qs) {
    #pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t w = load_u32(qs + 4 * i);
        g.q[i] = w & LOW_NIBBLES;
        g.q[4 + i] = w >> 4 & LOW_NIBBLES;
    }
}

/// The entries of a table of sixteen bytes that the low and the high nibbles of four bytes choose.
__device__ __forceinline__ void look_up(uint32_t bytes, const uint32_t (&table)[4], uint32_t& low, uint32_t& high) {
    // a nibble chooses among eight bytes; its highest bit, between the two eights
    const uint32_t among = bytes & 0x77777777u, between = (bytes & 0x88888888u) >> 1 | 0x32103210u;
    uint32_t four[2];
    #pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t first = __byte_perm(table[0], table[1], among >> (16 * i));
        const uint32_t second = __byte_perm(table[2], table[3], among >> (16 * i));
        four[i] = __byte_perm(first, second, between >> (16 * i));
    }
    low = __byte_perm(four[0], four[1], 0x6420);
    high = __byte_perm(four[0], four[1], 0x7531);
}

__device__ __forceinline__ void nibbles_in(Group& g, const uint8_t* qs, const uint32_t (&table)[4]) {
    #pragma unroll
    for (int i = 0; i < 4; i++) look_up(load_u32(qs + 4 * i), table, g.q[i], g.q[4 + i]);
}

/// -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
#define IQ4_TABLE {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u}
/// 0 1 2 3 4 6 8 12, then negative
#define FP4_TABLE {0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu}

/// Adds the fifth bits of 32 weights.
__device__ __forceinline__ void fifth_bits(Group& g, uint32_t high) {
    #pragma unroll
    for (int i = 0; i < 8; i++) g.q[i] |= spread_bits(high >> (4 * i)) << 4;
}

__device__ __forceinline__ void subtract(Group& g, uint32_t n) {
    #pragma unroll
    for (int i = 0; i < 8; i++) g.q[i] = subtract_bytes(g.q[i], n * BITS);
}

// Every type says how many weights (LENGTH) and bytes a block has, how many share a scale (GROUP), whether there is an
// offset (OFFSET), and reads part `p`, 32 weights, of a block. With a FEW values, at most sixteen from LEAST to GREATEST,
// wide scales fit these rather than those that occur.

struct Q8_0 {
    static constexpr int LENGTH = 32, BYTES = 34, GROUP = 32;
    static constexpr bool OFFSET = false, FEW = false;
    static constexpr float LEAST = 0, GREATEST = 0;
    __device__ static __forceinline__ void read(const uint8_t* block, int, Group& g) {
        same_scale(g, load_half(block), 0);
        #pragma unroll
        for (int i = 0; i < 8; i++) g.q[i] = load_u32(block + 2 + 4 * i);
    }
};

struct Q4_0 {
    static constexpr int LENGTH = 32, BYTES = 18, GROUP = 32;
    static constexpr bool OFFSET = false, FEW = true;
    static constexpr float LEAST = -8, GREATEST = 7;
    __device__ static __forceinline__ void read(const uint8_t* block, int, Group& g) {
        same_scale(g, load_half(block), 0);
        nibbles(g, block + 2);
        subtract(g, 8);
    }
};

struct Q4_1 {
    static constexpr int LENGTH = 32, BYTES = 20, GROUP = 32;
    static constexpr bool OFFSET = true, FEW = true;
    static constexpr float LEAST = 0, GREATEST = 15;
    __device__ static __forceinline__ void read(const uint8_t* block, int, Group& g) {
        same_scale(g, load_half(block), load_half(block + 2));
        nibbles(g, block + 4);
    }
};

struct Q5_0 {
    static constexpr int LENGTH = 32, BYTES = 22, GROUP = 32;
    static constexpr bool OFFSET = false, FEW = false;
    static constexpr float LEAST = 0, GREATEST = 0;
    __device__ static __forceinline__ void read(const uint8_t* block, int, Group& g) {
        same_scale(g, load_half(block), 0);
        nibbles(g, block + 6);
        fifth_bits(g, load_u32(block + 2));
        subtract(g, 16);
    }
};

struct Q5_1 {
    static constexpr int LENGTH = 32, BYTES = 24, GROUP = 32;
    static constexpr bool OFFSET = true, FEW = false;
    static constexpr float LEAST = 0, GREATEST = 0;
    __device__ static __forceinline__ void read(const uint8_t* block, int, Group& g) {
        same_scale(g, load_half(block), load_half(block + 2));
        nibbles(g, block + 8);
        fifth_bits(g, load_u32(block + 4));
    }
};

struct IQ4_NL {
    static constexpr int LENGTH = 32, BYTES = 18, GROUP = 32;
    static constexpr bool OFFSET = false, FEW = true;
    static constexpr float LEAST = -127, GREATEST = 113;
    __device__ static __forceinline__ void read(const uint8_t* block, int, Group& g) {
        const uint32_t table[4] = IQ4_TABLE;
        same_scale(g, load_half(block), 0);
        nibbles_in(g, block + 2, table);
    }
};

struct IQ4_XS {
    static constexpr int LENGTH = 256, BYTES = 136, GROUP = 32;
    static constexpr bool OFFSET = false, FEW = true;
    static constexpr float LEAST = -127, GREATEST = 113;
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        const uint32_t table[4] = IQ4_TABLE;
        const uint32_t low = block[4 + p / 2] >> (p % 2 * 4) & 15, high = block[2 + p / 4] >> (p % 4 * 2) & 3;
        same_scale(g, load_half(block) * (float)((int)(low | high << 4) - 32), 0);
        nibbles_in(g, block + 8 + 16 * p, table);
    }
};

struct MXFP4 {
    static constexpr int LENGTH = 32, BYTES = 17, GROUP = 32;
    static constexpr bool OFFSET = false, FEW = true;
    static constexpr float LEAST = -12, GREATEST = 12;
    __device__ static __forceinline__ void read(const uint8_t* block, int, Group& g) {
        const uint32_t table[4] = FP4_TABLE;
        const uint32_t e = block[0];
        same_scale(g, __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23), 0);
        nibbles_in(g, block + 1, table);
    }
};

/// Scale and offset of part `p` of Q4_K and Q5_K.
__device__ __forceinline__ void k4_scales(Group& g, const uint8_t* block, int p) {
    const uint8_t* scales = block + 4;
    uint32_t scale, least;
    if (p < 4) {
        scale = scales[p] & 63;
        least = scales[p + 4] & 63;
    } else {
        scale = (scales[p + 4] & 15) | scales[p - 4] >> 6 << 4;
        least = scales[p + 4] >> 4 | scales[p] >> 6 << 4;
    }
    same_scale(g, load_half(block) * (float)scale, -(load_half(block + 2) * (float)least));
}

__device__ __forceinline__ void k4_nibbles(Group& g, const uint8_t* qs, int p) {
    #pragma unroll
    for (int i = 0; i < 8; i++) g.q[i] = load_u32(qs + p / 2 * 32 + 4 * i) >> (p % 2 * 4) & LOW_NIBBLES;
}

struct Q4_K {
    static constexpr int LENGTH = 256, BYTES = 144, GROUP = 32;
    static constexpr bool OFFSET = true, FEW = true;
    static constexpr float LEAST = 0, GREATEST = 15;
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        k4_scales(g, block, p);
        k4_nibbles(g, block + 16, p);
    }
};

struct Q5_K {
    static constexpr int LENGTH = 256, BYTES = 176, GROUP = 32;
    static constexpr bool OFFSET = true, FEW = false;
    static constexpr float LEAST = 0, GREATEST = 0;
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        k4_scales(g, block, p);
        k4_nibbles(g, block + 48, p);
        #pragma unroll
        for (int i = 0; i < 8; i++) g.q[i] |= (load_u32(block + 16 + 4 * i) >> p & BITS) << 4;
    }
};

struct Q6_K {
    static constexpr int LENGTH = 256, BYTES = 210, GROUP = 16;
    static constexpr bool OFFSET = false, FEW = false;
    static constexpr float LEAST = 0, GREATEST = 0;
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        const int half = p / 4, quarter = p % 4;
        const uint8_t* low = block + 64 * half + quarter % 2 * 32;
        const uint8_t* high = block + 128 + 32 * half;
        const float d = load_half(block + 208);
        #pragma unroll
        for (int i = 0; i < 2; i++) g.scale[i] = d * (float)(int8_t)block[192 + 2 * p + i];
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t four = load_u32(low + 4 * i) >> (quarter / 2 * 4) & LOW_NIBBLES;
            const uint32_t two = load_u32(high + 4 * i) >> (2 * quarter) & CRUMBS;
            g.q[i] = four | two << 4;
        }
        subtract(g, 32);
    }
};

/// Part `p` of twice 32 bytes of four 2-bit planes: each plane is 32 weights.
__device__ __forceinline__ void crumbs(Group& g, const uint8_t* qs, int p) {
    #pragma unroll
    for (int i = 0; i < 8; i++) g.q[i] = load_u32(qs + p / 4 * 32 + 4 * i) >> (p % 4 * 2) & CRUMBS;
}

struct Q3_K {
    static constexpr int LENGTH = 256, BYTES = 110, GROUP = 16;
    static constexpr bool OFFSET = false, FEW = true;
    static constexpr float LEAST = -4, GREATEST = 3;
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        const uint8_t* scales = block + 96;
        const float d = load_half(block + 108);
        #pragma unroll
        for (int i = 0; i < 2; i++) {
            const int s = 2 * p + i;
            const uint32_t low = scales[s % 8] >> (s / 8 * 4) & 15, high = scales[8 + s % 4] >> (s / 4 * 2) & 3;
            g.scale[i] = d * (float)((int)(low | high << 4) - 32);
        }
        crumbs(g, block + 32, p);
        #pragma unroll
        for (int i = 0; i < 8; i++) g.q[i] |= (load_u32(block + 4 * i) >> p & BITS) << 2;
        subtract(g, 4);
    }
};

struct Q2_K {
    static constexpr int LENGTH = 256, BYTES = 84, GROUP = 16;
    static constexpr bool OFFSET = true, FEW = true;
    static constexpr float LEAST = 0, GREATEST = 3;
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        const float d = load_half(block + 80), least = load_half(block + 82);
        #pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t both = block[2 * p + i];
            g.scale[i] = d * (float)(both & 15);
            g.offset[i] = -(least * (float)(both >> 4));
        }
        crumbs(g, block + 16, p);
    }
};

// Types that have no int8 products on the processor either (`has_int8`): for bfloat16 and embeddings.

struct TQ2_0 {
    static constexpr int LENGTH = 256, BYTES = 66, GROUP = 32;
    static constexpr bool OFFSET = false;
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        same_scale(g, load_half(block + 64), 0);
        crumbs(g, block, p);
        subtract(g, 1);
    }
};

struct TQ1_0 {
    static constexpr int LENGTH = 256, BYTES = 54, GROUP = 32;
    static constexpr bool OFFSET = false;

    /// Digits `n` in base 3 of the fractions `byte / 256` of four bytes.
    __device__ static __forceinline__ uint32_t digits(uint32_t bytes, int n) {
        const uint32_t power = n == 0 ? 1 : n == 1 ? 3 : n == 2 ? 9 : n == 3 ? 27 : 81;
        const uint32_t even = (bytes & 0x00ff00ffu) * power & 0x00ff00ffu;
        const uint32_t odd = (bytes >> 8 & 0x00ff00ffu) * power & 0x00ff00ffu;
        return (even * 3 >> 8 & 0x00ff00ffu) | (odd * 3 & 0xff00ff00u);
    }
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        same_scale(g, load_half(block + 52), 0);
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            // 32 bytes of five digits, then 16 of five, then 4 of four
            const int at = p < 5 ? 4 * i : p == 7 && i >= 4 ? 48 : 32 + i % 4 * 4;
            const int n = p < 5 ? p : p < 7 ? 2 * (p - 5) + i / 4 : i < 4 ? 4 : i - 4;
            g.q[i] = digits(load_u32(block + at), n);
        }
        subtract(g, 1);
    }
};

struct NVFP4 {
    static constexpr int LENGTH = 64, BYTES = 36, GROUP = 16;
    static constexpr bool OFFSET = false;

    /// Half of a number of four exponent and three fraction bits; `scale_nvfp4` in src/tensor/block.rs.
    __device__ static __forceinline__ float scale(uint32_t d) {
        const uint32_t exponent = d >> 3 & 15;
        const float fraction = (float)(d & 7);
        if (d == 0x7f) return 0.0f;
        if (exponent == 0) return fraction / 1024.0f;
        return (1.0f + fraction / 8.0f) * __uint_as_float((exponent + 119) << 23);
    }
    __device__ static __forceinline__ void read(const uint8_t* block, int p, Group& g) {
        const uint32_t table[4] = FP4_TABLE;
        #pragma unroll
        for (int s = 0; s < 2; s++) {
            const uint8_t* qs = block + 4 + 8 * (2 * p + s);
            g.scale[s] = scale(block[2 * p + s]);
            look_up(load_u32(qs), table, g.q[4 * s], g.q[4 * s + 2]);
            look_up(load_u32(qs + 4), table, g.q[4 * s + 1], g.q[4 * s + 3]);
        }
    }
};

/// Reads part `p` (32 weights each) of a row.
template <class W>
__device__ __forceinline__ void read_group(const uint8_t* row, int p, Group& g) {
    constexpr int PARTS = W::LENGTH / 32;
    W::read(row + (uint64_t)(p / PARTS) * W::BYTES, p % PARTS, g);
}

/// Weight 4 i + byte as a float, as it is.
template <class W>
__device__ __forceinline__ float weight(const Group& g, int i, int byte) {
    const float v = float_of_byte(g.q[i], byte) * g.scale[i / 4];
    return W::OFFSET ? v + g.offset[i / 4] : v;
}
