// The image tokenizer: group normalization (arXiv 1803.08494) of x[positions][channels] with the swish that follows it,
// and the softmax of its attention. The convolutions are in product_bf16.cu, and double a picture's sides on the way; the
// two products of the attention are there too.
//
// Results are in bfloat16, for a product. Where pictures must keep their codes that is too coarse: `rest`, unless it is
// null, gets what the rounding left (`bf16_rest`), for a product in two terms.
//
// Statistics are sums in f64, over blocks of positions first and then over those, in one order whatever runs when; what
// comes of them is a scale and a shift for each channel (src/vq/norm.rs).

#include "device.cuh"

#define THREADS 256
#define BLOCK_POSITIONS 1024

/// partial[blocks of 1024 positions][2][channels]: sums and sums of squares. Launch: grid (blocks, channels / 256 rounded
/// up, 1), 256 threads, one for each channel.
KERNEL __launch_bounds__(THREADS) group_norm_sums(const float* x, int positions, int channels, double* partial) {
    const int channel = (int)(blockIdx.y * THREADS + threadIdx.x);
    if (channel >= channels) return;
    const int first = (int)blockIdx.x * BLOCK_POSITIONS, end = min(positions, first + BLOCK_POSITIONS);
    double sum = 0.0, squares = 0.0;
    for (int position = first; position < end; position++) {
        const double v = (double)x[(uint64_t)position * channels + channel];
        sum += v;
        squares += v * v;
    }
    double* to = partial + (uint64_t)blockIdx.x * 2 * channels;
    to[channel] = sum;
    to[channels + channel] = squares;
}
REGISTER(group_norm_sums)

/// The scale and shift of every channel from `blocks` partial sums. Launch: grid (groups, 1, 1), 32 threads.
KERNEL __launch_bounds__(32)
    group_norm_scales(const double* partial, int blocks, int positions, int channels, int groups, const float* weight,
                      const float* bias, float epsilon, float* scale, float* shift) {
    SHARED(double, parts, 1);
    const int size = channels / groups, first = (int)blockIdx.x * size;
    double sum = 0.0, squares = 0.0;
    for (int i = (int)threadIdx.x; i < size * blocks; i += 32) {
        const double* from = partial + (uint64_t)(i / size) * 2 * channels + first + i % size;
        sum += from[0];
        squares += from[channels];
    }
    const double count = (double)size * (double)positions;
    const double mean = sum_over_block(sum, parts) / count;
    const double variance = sum_over_block(squares, parts) / count - mean * mean;
    const double inverse = 1.0 / sqrt((variance > 0.0 ? variance : 0.0) + (double)epsilon);
    for (int channel = first + (int)threadIdx.x; channel < first + size; channel += 32) {
        const double s = (double)weight[channel] * inverse;
        scale[channel] = (float)s;
        shift[channel] = (float)((double)bias[channel] - mean * s);
    }
}
REGISTER(group_norm_scales)

/// out = x * scale + shift, swish of that where asked for (v / (1 + exp(-v))). Launch: grid (count / 1024 rounded up, 1,
/// 1), 256 threads; channels and so `count`, all numbers, are multiples of 4.
KERNEL __launch_bounds__(THREADS) group_norm_apply(const float* x, const float* scale, const float* shift, int channels,
                                                   uint64_t count, int swish, uint16_t* out, uint16_t* rest) {
    const uint64_t at = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) * 4;
    if (at >= count) return;
    const float4 four = *(const float4*)(x + at);
    const int channel = (int)(at % (uint64_t)channels);
    float v[4] = {four.x, four.y, four.z, four.w};
    #pragma unroll
    for (int i = 0; i < 4; i++) {
        v[i] = v[i] * scale[channel + i] + shift[channel + i];
        if (swish) v[i] = v[i] / (1.0f + expf(-v[i]));
    }
    const uint2 pairs = make_uint2(bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3]));
    *(uint2*)(out + at) = pairs;
    if (rest) *(uint2*)(rest + at) = make_uint2(bf16_rest(pairs.x, v[0], v[1]), bf16_rest(pairs.y, v[2], v[3]));
}
REGISTER(group_norm_apply)

/// out[row][padded] = softmax(x[row] * scale), with zeros behind the `width` numbers that a row of x has; `scale` is not
/// negative, `padded` is even and not less than `width`. Launch: grid (rows, 1, 1), 256 threads.
KERNEL __launch_bounds__(THREADS)
    softmax_rows(const float* x, int width, float scale, int padded, uint16_t* out, uint16_t* rest) {
    SHARED(float, parts, THREADS / 32);
    const float* row = x + (uint64_t)blockIdx.x * width;
    float peak = -INFINITE;
    for (int at = (int)threadIdx.x; at < width; at += THREADS) peak = max_or_nan(peak, row[at]);
    const float top = peak_over_block(peak, parts) * scale;
    float sum = 0.0f;
    for (int at = (int)threadIdx.x; at < width; at += THREADS) sum += expf(row[at] * scale - top);
    sum = sum_over_block(sum, parts);
    const uint64_t start = (uint64_t)blockIdx.x * padded;
    for (int at = 2 * (int)threadIdx.x; at < padded; at += 2 * THREADS) {
        const float low = at < width ? expf(row[at] * scale - top) / sum : 0.0f;
        const float high = at + 1 < width ? expf(row[at + 1] * scale - top) / sum : 0.0f;
        const uint32_t pair = bf16_pair(low, high);
        *(uint32_t*)(out + start + at) = pair;
        if (rest) *(uint32_t*)(rest + start + at) = bf16_rest(pair, low, high);
    }
}
REGISTER(softmax_rows)
