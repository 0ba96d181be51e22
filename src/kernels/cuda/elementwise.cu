// What lies between the products, a block of threads to a row: normalization, the SiLU gate, rotary positions, embedding,
// padding, and the quantization of activations to int8, fused with what comes before it.
//
// A lane has eight neighbours of a row, so a warp has 256: the elements that share a wide scale, while four lanes have
// the 32 that share a scale otherwise. Rows are multiples of 32 elements.
//
// Launch: grid (rows, 1, 1), 256 threads, but where it says otherwise.

#include "codebooks.cuh"

#define THREADS 256
#define EIGHT 8
#define WIDE_GROUP 256
#define SHORT_GROUP 32

__device__ __forceinline__ void load_eight(float (&v)[EIGHT], const float* from) {
    const float4 a = ((const float4*)from)[0], b = ((const float4*)from)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
__device__ __forceinline__ void store_eight(float* to, const float (&v)[EIGHT]) {
    ((float4*)to)[0] = make_float4(v[0], v[1], v[2], v[3]);
    ((float4*)to)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
__device__ __forceinline__ void store_eight_bf16(uint16_t* to, const float (&v)[EIGHT]) {
    *(uint4*)to = make_uint4(bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3]), bf16_pair(v[4], v[5]), bf16_pair(v[6], v[7]));
}
/// What the above leaves of the numbers.
__device__ __forceinline__ void store_eight_rest(uint16_t* to, const float (&v)[EIGHT]) {
    uint32_t rest[EIGHT / 2];
    #pragma unroll
    for (int i = 0; i < EIGHT / 2; i++) rest[i] = bf16_rest(bf16_pair(v[2 * i], v[2 * i + 1]), v[2 * i], v[2 * i + 1]);
    *(uint4*)to = make_uint4(rest[0], rest[1], rest[2], rest[3]);
}

// Where a row's numbers come from, eight from element `at` on.

struct Plain {
    const float* x;
    __device__ __forceinline__ void eight(float (&v)[EIGHT], int at) const { load_eight(v, x + at); }
};

/// RMSNorm (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + eps) * weight.
struct Normalized {
    const float* x;
    const float* weight;
    float scale;
    __device__ __forceinline__ void eight(float (&v)[EIGHT], int at) const {
        float w[EIGHT];
        load_eight(v, x + at);
        load_eight(w, weight + at);
        #pragma unroll
        for (int i = 0; i < EIGHT; i++) v[i] = v[i] * scale * w[i];
    }
};

/// silu(gate) * up, silu(x) = x / (1 + exp(-x)).
struct Gated {
    const float* gate;
    const float* up;
    __device__ __forceinline__ void eight(float (&v)[EIGHT], int at) const {
        float u[EIGHT];
        load_eight(v, gate + at);
        load_eight(u, up + at);
        #pragma unroll
        for (int i = 0; i < EIGHT; i++) v[i] = v[i] / (1.0f + expf(-v[i])) * u[i];
    }
};

__device__ __forceinline__ Normalized normalized(const float* x, const float* weight, float eps, int d) {
    SHARED(float, parts, THREADS / 32);
    float squares = 0.0f;
    for (int at = (int)threadIdx.x * EIGHT; at < d; at += THREADS * EIGHT) {
        float v[EIGHT];
        load_eight(v, x + at);
        #pragma unroll
        for (int i = 0; i < EIGHT; i++) squares = fmaf(v[i], v[i], squares);
    }
    const float mean = sum_over_block(squares, parts) / (float)d;
    return {x, weight, 1.0f / sqrtf(mean + eps)};
}

template <class From>
__device__ __forceinline__ void copy_row(const From& from, float* to, int d) {
    for (int at = (int)threadIdx.x * EIGHT; at < d; at += THREADS * EIGHT) {
        float v[EIGHT];
        from.eight(v, at);
        store_eight(to + at, v);
    }
}

template <class From>
__device__ __forceinline__ void round_row(const From& from, uint16_t* to, int d) {
    for (int at = (int)threadIdx.x * EIGHT; at < d; at += THREADS * EIGHT) {
        float v[EIGHT];
        from.eight(v, at);
        store_eight_bf16(to + at, v);
    }
}

/// A row to int8: q[d], scale[d / group rounded up], and with short groups sums[d / 16] of q over 16 elements. The same
/// bytes as src/kernels/activations.rs makes.
template <class From>
__device__ __forceinline__ void quantize_row(const From& from, int d, int group, int8_t* q, float* scale, int16_t* sums) {
    const int lanes = group / EIGHT;
    // all lanes of a warp come here together: the shuffles need them
    for (int first = (int)threadIdx.x / 32 * WIDE_GROUP; first < d; first += THREADS * EIGHT) {
        const int at = first + (int)threadIdx.x % 32 * EIGHT;
        const bool there = at < d;
        float v[EIGHT] = {};
        if (there) from.eight(v, at);
        float peak = 0.0f;
        #pragma unroll
        for (int i = 0; i < EIGHT; i++) peak = max_or_nan(peak, fabsf(v[i]));
        const Scale s = scale_of(peak_over(peak, lanes));
        uint32_t byte[EIGHT];
        #pragma unroll
        for (int i = 0; i < EIGHT; i++) byte[i] = rounded_byte(v[i] * s.inverse);
        const uint2 bytes = make_uint2(pack_bytes(byte[0], byte[1], byte[2], byte[3]),
                                       pack_bytes(byte[4], byte[5], byte[6], byte[7]));
        int sum = 0;
        #pragma unroll
        for (int i = 0; i < EIGHT; i++) sum += (int8_t)byte[i];
        sum += __shfl_xor_sync(FULL_WARP, sum, 1);
        if (!there) continue;
        *(uint2*)(q + at) = bytes;
        if (at % group == 0) scale[at / group] = s.scale;
        if (group == SHORT_GROUP && at % 16 == 0) sums[at / 16] = (int16_t)sum;
    }
}

/// The places of row `blockIdx.x` in what `quantize_row` writes.
struct Int8Row {
    int8_t* q;
    float* scale;
    int16_t* sums;
    __device__ __forceinline__ Int8Row(int8_t* q_all, float* scale_all, int16_t* sums_all, int d, int group) {
        const uint64_t row = blockIdx.x;
        q = q_all + row * d;
        scale = scale_all + row * ((d + group - 1) / group);
        sums = sums_all + row * (d / 16);
    }
};

/// The start of row `blockIdx.x`.
template <class T>
__device__ __forceinline__ T* row_of(T* x, int d) {
    return x + (uint64_t)blockIdx.x * d;
}

// `group` is 32 or 256; `sums` is read with 32 alone.
KERNEL __launch_bounds__(THREADS)
    quantize(const float* x, int d, int group, int8_t* q, float* scale, int16_t* sums) {
    const Int8Row to(q, scale, sums, d, group);
    quantize_row(Plain{row_of(x, d)}, d, group, to.q, to.scale, to.sums);
}
REGISTER(quantize)

KERNEL __launch_bounds__(THREADS) round_to_bf16(const float* x, int d, uint16_t* out) {
    round_row(Plain{row_of(x, d)}, row_of(out, d), d);
}
REGISTER(round_to_bf16)

KERNEL __launch_bounds__(THREADS) rms_norm(const float* x, const float* weight, float eps, int d, float* out) {
    copy_row(normalized(row_of(x, d), weight, eps, d), row_of(out, d), d);
}
REGISTER(rms_norm)

KERNEL __launch_bounds__(THREADS) rms_norm_bf16(const float* x, const float* weight, float eps, int d, uint16_t* out) {
    round_row(normalized(row_of(x, d), weight, eps, d), row_of(out, d), d);
}
REGISTER(rms_norm_bf16)

KERNEL __launch_bounds__(THREADS) rms_norm_quantize(const float* x, const float* weight, float eps, int d, int group,
                                                    int8_t* q, float* scale, int16_t* sums) {
    const Int8Row to(q, scale, sums, d, group);
    quantize_row(normalized(row_of(x, d), weight, eps, d), d, group, to.q, to.scale, to.sums);
}
REGISTER(rms_norm_quantize)

KERNEL __launch_bounds__(THREADS) silu_mul(const float* gate, const float* up, int d, float* out) {
    copy_row(Gated{row_of(gate, d), row_of(up, d)}, row_of(out, d), d);
}
REGISTER(silu_mul)

KERNEL __launch_bounds__(THREADS) silu_mul_bf16(const float* gate, const float* up, int d, uint16_t* out) {
    round_row(Gated{row_of(gate, d), row_of(up, d)}, row_of(out, d), d);
}
REGISTER(silu_mul_bf16)

KERNEL __launch_bounds__(THREADS) silu_mul_quantize(const float* gate, const float* up, int d, int group, int8_t* q,
                                                    float* scale, int16_t* sums) {
    const Int8Row to(q, scale, sums, d, group);
    quantize_row(Gated{row_of(gate, d), row_of(up, d)}, d, group, to.q, to.scale, to.sums);
}
REGISTER(silu_mul_quantize)

/// Row `rows[blockIdx.x]` of x; d is a multiple of 4.
KERNEL __launch_bounds__(THREADS) gather_rows(const float* x, const int32_t* rows, int d, float* out) {
    const float4* from = (const float4*)(x + (uint64_t)rows[blockIdx.x] * d);
    float4* to = (float4*)row_of(out, d);
    for (int i = (int)threadIdx.x; i < d / 4; i += THREADS) to[i] = from[i];
}
REGISTER(gather_rows)

/// x[positions][channels] to out[positions][padded] in bfloat16, with zeros behind the channels, and unless it is null to
/// `rest` what that leaves of x (`bf16_rest`). `padded` is a multiple of 8, a thread has eight of its numbers. Launch: grid
/// (positions * padded / 2048 rounded up, 1, 1), 256 threads.
KERNEL __launch_bounds__(THREADS) pad_to_bf16(const float* x, int channels, int padded, uint64_t positions, uint16_t* out,
                                              uint16_t* rest) {
    const uint64_t at = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) * EIGHT, position = at / (uint64_t)padded;
    if (position >= positions) return;
    const int first = (int)(at % (uint64_t)padded);
    const float* from = x + position * channels;
    float v[EIGHT];
    #pragma unroll
    for (int i = 0; i < EIGHT; i++) v[i] = first + i < channels ? from[first + i] : 0.0f;
    store_eight_bf16(out + at, v);
    if (rest) store_eight_rest(rest + at, v);
}
REGISTER(pad_to_bf16)

/// Rotates every head of a row of x[rows][heads * 2 * half] and rounds it to bfloat16, as attention reads it: in the end
/// elements i and i + half are a pair. Before, they are that too, or with `neighbours` 2 i and 2 i + 1. `cos` and `sin`
/// are [positions][half], `positions` the position of each row.
KERNEL __launch_bounds__(THREADS) rope(const float* x, const int32_t* positions, const float* cos, const float* sin,
                                       int heads, int half, int neighbours, uint16_t* out) {
    const int d = heads * 2 * half;
    const float* row = row_of(x, d);
    uint16_t* to = row_of(out, d);
    const uint64_t angles = (uint64_t)positions[blockIdx.x] * half;
    for (int unit = (int)threadIdx.x; unit < heads * half; unit += THREADS) {
        const int head = unit / half * 2 * half, i = unit % half;
        const float a = row[head + (neighbours ? 2 * i : i)], b = row[head + (neighbours ? 2 * i + 1 : i + half)];
        const float c = cos[angles + i], s = sin[angles + i];
        to[head + i] = bf16_bits(a * c - b * s);
        to[head + i + half] = bf16_bits(b * c + a * s);
    }
}
REGISTER(rope)

// Row `ids[blockIdx.x]` of a table of embeddings as floats.

template <class W>
__device__ __forceinline__ void embed_blocks(const uint8_t* row, int d, float* out) {
    for (int part = (int)threadIdx.x; part < d / 32; part += THREADS) {
        Group g;
        read_group<W>(row, part, g);
        #pragma unroll
        for (int i = 0; i < 32; i += 4) {
            ((float4*)(out + 32 * part + i))[0] = make_float4(weight<W>(g, i / 4, 0), weight<W>(g, i / 4, 1),
                                                              weight<W>(g, i / 4, 2), weight<W>(g, i / 4, 3));
        }
    }
}

#define EMBEDDING(TYPE)                                                                                                     \
    KERNEL __launch_bounds__(THREADS)                                                                                       \
        embed_##TYPE(const uint8_t* table, uint64_t row_bytes, const int32_t* ids, int d, float* out) {                     \
        embed_blocks<TYPE>(table + (uint64_t)ids[blockIdx.x] * row_bytes, d, row_of(out, d));                               \
    }                                                                                                                       \
    REGISTER(embed_##TYPE)
EMBEDDING(Q8_0)
EMBEDDING(Q4_0)
EMBEDDING(Q4_1)
EMBEDDING(Q5_0)
EMBEDDING(Q5_1)
EMBEDDING(IQ4_NL)
EMBEDDING(IQ4_XS)
EMBEDDING(MXFP4)
EMBEDDING(Q4_K)
EMBEDDING(Q5_K)
EMBEDDING(Q6_K)
EMBEDDING(Q3_K)
EMBEDDING(Q2_K)
EMBEDDING(TQ1_0)
EMBEDDING(TQ2_0)
EMBEDDING(NVFP4)
EMBEDDING(IQ2_XXS)
EMBEDDING(IQ2_XS)
EMBEDDING(IQ2_S)
EMBEDDING(IQ3_XXS)
EMBEDDING(IQ3_S)
EMBEDDING(IQ1_S)
EMBEDDING(IQ1_M)

KERNEL __launch_bounds__(THREADS)
    embed_F32(const uint8_t* table, uint64_t row_bytes, const int32_t* ids, int d, float* out) {
    const float* row = (const float*)(table + (uint64_t)ids[blockIdx.x] * row_bytes);
    for (int i = (int)threadIdx.x; i < d; i += THREADS) row_of(out, d)[i] = row[i];
}
REGISTER(embed_F32)

KERNEL __launch_bounds__(THREADS)
    embed_F16(const uint8_t* table, uint64_t row_bytes, const int32_t* ids, int d, float* out) {
    const uint16_t* row = (const uint16_t*)(table + (uint64_t)ids[blockIdx.x] * row_bytes);
    for (int i = (int)threadIdx.x; i < d; i += THREADS) row_of(out, d)[i] = float_from_half(row[i]);
}
REGISTER(embed_F16)

KERNEL __launch_bounds__(THREADS)
    embed_BF16(const uint8_t* table, uint64_t row_bytes, const int32_t* ids, int d, float* out) {
    const uint16_t* row = (const uint16_t*)(table + (uint64_t)ids[blockIdx.x] * row_bytes);
    for (int i = (int)threadIdx.x; i < d; i += THREADS) row_of(out, d)[i] = float_from_bf16(row[i]);
}
REGISTER(embed_BF16)
