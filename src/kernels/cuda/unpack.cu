// Weights unpacked from their GGUF blocks to whole matrices, for products that read them as they are (hopper.cu): once for a
// model that has the memory, or once for a product, instead of once for every tile of it.
//
//   unpack_T_bf16     rows of bfloat16, `stride` elements apart: k filled up to a multiple of 8 with zeros
//   unpack_T_wide     rows of k int8, and one scale for 256: scale[rows][k / 256, rounded up]
//   unpack_T_blocks   rows of k int8 as they are, with scale[rows][k / 32], and offset[rows][k / 32] for types that have
//                     offsets (`offset` is not looked at for others); types with a scale for 16 have none of these
//
// The numbers are those that product_bf16.cu and product_int8.cu have in shared memory, to the bit.
//
// Launch: 256 threads, as many blocks (x) as it takes for one thread for 32 weights: rows * (k / 32, rounded up), for wide
// rows * (k / 256, rounded up) * 8.

#include "codebooks.cuh"
#include "weights.cuh"

#define WIDE 256

/// Which 32 weights are this thread's: part `part` of `parts` in row `row`.
struct Place {
    int row, part;
    __device__ __forceinline__ explicit Place(int parts) {
        const uint64_t unit = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
        row = (int)(unit / (uint32_t)parts);
        part = (int)(unit % (uint32_t)parts);
    }
};

__device__ __forceinline__ void store_group(int8_t* to, const Group& g) {
    ((uint4*)to)[0] = make_uint4(g.q[0], g.q[1], g.q[2], g.q[3]);
    ((uint4*)to)[1] = make_uint4(g.q[4], g.q[5], g.q[6], g.q[7]);
}

template <class W>
__device__ __forceinline__ void unpack_bf16(const uint8_t* w, uint64_t row_bytes, int rows, int k, uint16_t* out, int stride) {
    const Place place((k + 31) / 32);
    if (place.row >= rows) return;
    uint32_t pairs[16];
    W::read(w + (uint64_t)place.row * row_bytes, place.part, k, pairs);
    uint4* to = (uint4*)(out + (uint64_t)place.row * stride + 32 * place.part);
    #pragma unroll
    for (int i = 0; i < 4; i++) {
        if (32 * place.part + 8 * i < stride) {
            to[i] = make_uint4(pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]);
        }
    }
}

template <class W>
__device__ __forceinline__ void unpack_wide(const uint8_t* w, uint64_t row_bytes, int rows, int k, int8_t* out, float* scale) {
    const int groups = (k + WIDE - 1) / WIDE;
    const Place place(groups * (WIDE / 32));
    // lanes of a warp find scales together, so that none leaves
    const bool there = place.row < rows && 32 * place.part < k;
    Group g = {};
    if (there) read_group<W>(w + (uint64_t)place.row * row_bytes, place.part, g);
    const float wide = widen<W>(g, there);
    if (!there) return;
    if (place.part % (WIDE / 32) == 0) scale[(uint64_t)place.row * groups + place.part / (WIDE / 32)] = wide;
    store_group(out + (uint64_t)place.row * k + 32 * place.part, g);
}

template <class W>
__device__ __forceinline__ void unpack_blocks(const uint8_t* w, uint64_t row_bytes, int rows, int k, int8_t* out, float* scale,
                                              float* offset) {
    static_assert(W::GROUP == 32, "one scale for what a thread unpacks");
    const int parts = k / 32;
    const Place place(parts);
    if (place.row >= rows) return;
    Group g;
    read_group<W>(w + (uint64_t)place.row * row_bytes, place.part, g);
    const uint64_t at = (uint64_t)place.row * parts + place.part;
    scale[at] = g.scale[0];
    if (W::OFFSET) offset[at] = g.offset[0];
    store_group(out + (uint64_t)place.row * k + 32 * place.part, g);
}

#define UNPACK_BF16(NAME, W)                                                                                            \
    KERNEL __launch_bounds__(256)                                                                                       \
        unpack_##NAME##_bf16(const uint8_t* w, uint64_t row_bytes, int rows, int k, uint16_t* out, int stride) {           \
        unpack_bf16<W>(w, row_bytes, rows, k, out, stride);                                                             \
    }                                                                                                                   \
    REGISTER(unpack_##NAME##_bf16)
#define UNPACK_WIDE(TYPE)                                                                                               \
    KERNEL __launch_bounds__(256)                                                                                       \
        unpack_##TYPE##_wide(const uint8_t* w, uint64_t row_bytes, int rows, int k, int8_t* out, float* scale) {           \
        unpack_wide<TYPE>(w, row_bytes, rows, k, out, scale);                                                           \
    }                                                                                                                   \
    REGISTER(unpack_##TYPE##_wide)
#define UNPACK_BLOCKS(TYPE)                                                                                             \
    KERNEL __launch_bounds__(256)                                                                                       \
        unpack_##TYPE##_blocks(const uint8_t* w, uint64_t row_bytes, int rows, int k, int8_t* out, float* scale,           \
                               float* offset) {                                                                         \
        unpack_blocks<TYPE>(w, row_bytes, rows, k, out, scale, offset);                                                 \
    }                                                                                                                   \
    REGISTER(unpack_##TYPE##_blocks)

// Scales for 16 weights: no whole product of tensor cores shares one.
#define UNPACK_FINE(TYPE)                   \
    UNPACK_BF16(TYPE, Quantized<TYPE>)      \
    UNPACK_WIDE(TYPE)
#define UNPACK(TYPE)   \
    UNPACK_FINE(TYPE)  \
    UNPACK_BLOCKS(TYPE)

UNPACK_BF16(F32, Floats<F32>)
UNPACK_BF16(F16, Floats<F16>)
UNPACK_BF16(BF16, Floats<BF16>)
UNPACK(Q8_0)
UNPACK(Q4_0)
UNPACK(Q4_1)
UNPACK(Q5_0)
UNPACK(Q5_1)
UNPACK(IQ4_NL)
UNPACK(IQ4_XS)
UNPACK(MXFP4)
UNPACK(Q4_K)
UNPACK(Q5_K)
UNPACK_FINE(Q6_K)
UNPACK_FINE(Q3_K)
UNPACK_FINE(Q2_K)
UNPACK_BF16(TQ1_0, Quantized<TQ1_0>)
UNPACK_BF16(TQ2_0, Quantized<TQ2_0>)
UNPACK_BF16(NVFP4, Quantized<NVFP4>)
UNPACK_BF16(IQ2_XXS, Quantized<IQ2_XXS>)
UNPACK_BF16(IQ2_XS, Quantized<IQ2_XS>)
UNPACK_BF16(IQ2_S, Quantized<IQ2_S>)
UNPACK_BF16(IQ3_XXS, Quantized<IQ3_XXS>)
UNPACK_BF16(IQ3_S, Quantized<IQ3_S>)
UNPACK_BF16(IQ1_S, Quantized<IQ1_S>)
UNPACK_BF16(IQ1_M, Quantized<IQ1_M>)
