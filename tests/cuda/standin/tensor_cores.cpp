// What the PTX in device.cuh does, from the tables of the PTX manual (ISA 7.8, sections 9.7.13 and 9.7.8): which element of
// a matrix lies in which register of which lane.
#include <cmath>
#include <cstring>

#include "language.h"

namespace {

constexpr unsigned ALL = 0xffffffffu;

float from_bf16(unsigned bits) { return __uint_as_float(bits << 16); }

unsigned to_bf16(float v) {
    const unsigned bits = __float_as_uint(v);
    if (std::isnan(v)) return 0x7fff;  // as cvt does
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <class C>
struct Operands {
    C* c;
    uint32_t a[4], b[2];
};

/// `c[row][column] += sum over k of a[row][k] b[k][column]` of bytes; K is 16 or 32.
template <int K>
void multiply_bytes(void* const (&all)[32], unsigned) {
    int8_t a[16][K], b[8][K];
    for (int l = 0; l < 32; l++) {
        const auto& in = *static_cast<const Operands<int>*>(all[l]);
        const int group = l / 4, at = l % 4 * 4;
        for (int half = 0; half < K / 16; half++) {
            memcpy(&a[group][16 * half + at], &in.a[2 * half], 4);
            memcpy(&a[group + 8][16 * half + at], &in.a[2 * half + 1], 4);
            memcpy(&b[group][16 * half + at], &in.b[half], 4);
        }
    }
    for (int l = 0; l < 32; l++) {
        int* c = static_cast<const Operands<int>*>(all[l])->c;
        for (int i = 0; i < 4; i++) {
            const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
            int sum = 0;
            for (int k = 0; k < K; k++) sum += int(a[row][k]) * int(b[column][k]);
            c[i] = int(unsigned(c[i]) + unsigned(sum));
        }
    }
}

void multiply_bf16(void* const (&all)[32], unsigned) {
    float a[16][16], b[8][16];
    for (int l = 0; l < 32; l++) {
        const auto& in = *static_cast<const Operands<float>*>(all[l]);
        const int group = l / 4, at = l % 4 * 2;
        for (int i = 0; i < 2; i++) {
            for (int quarter = 0; quarter < 4; quarter++) {
                a[group + quarter % 2 * 8][quarter / 2 * 8 + at + i] = from_bf16(in.a[quarter] >> (16 * i) & 0xffff);
            }
            for (int half = 0; half < 2; half++) b[group][8 * half + at + i] = from_bf16(in.b[half] >> (16 * i) & 0xffff);
        }
    }
    for (int l = 0; l < 32; l++) {
        float* c = static_cast<const Operands<float>*>(all[l])->c;
        for (int i = 0; i < 4; i++) {
            const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
            float sum = c[i];
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[column][k];
            c[i] = sum;
        }
    }
}

struct Rows {
    const void* row;
    uint32_t* r;
};

/// Lane 8 j + i brings row i of matrix j.
template <bool TRANSPOSED>
void load_matrices(void* const (&all)[32], unsigned) {
    uint16_t m[4][8][8];
    for (int l = 0; l < 32; l++) memcpy(m[l / 8][l % 8], static_cast<const Rows*>(all[l])->row, 16);
    for (int l = 0; l < 32; l++) {
        for (int j = 0; j < 4; j++) {
            const int row = l / 4, column = l % 4 * 2;
            const unsigned low = TRANSPOSED ? m[j][column][row] : m[j][row][column];
            const unsigned high = TRANSPOSED ? m[j][column + 1][row] : m[j][row][column + 1];
            static_cast<const Rows*>(all[l])->r[j] = low | high << 16;
        }
    }
}

template <bool TRANSPOSED>
void load(uint32_t (&r)[4], const void* row, int operation) {
    if (uintptr_t(row) % 16) standin::fail("a row of ldmatrix does not begin at a multiple of 16 bytes");
    standin::reads_16(row);
    Rows in{row, r};
    standin::together(ALL, operation, &in, load_matrices<TRANSPOSED>);
}

}  // namespace

void mma_s8_k32(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    Operands<int> in{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    standin::together(ALL, 10, &in, multiply_bytes<32>);
}
void mma_s8_k16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    Operands<int> in{c, {a0, a1, 0, 0}, {b, 0}};
    standin::together(ALL, 11, &in, multiply_bytes<16>);
}
void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    Operands<float> in{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    standin::together(ALL, 12, &in, multiply_bf16);
}
void ldmatrix_x4(uint32_t (&r)[4], const void* row) { load<false>(r, row, 13); }
void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) { load<true>(r, row, 14); }

void cp_async_16(void* shared, const void* global, bool there) {
    if (uintptr_t(shared) % 16 || (there && uintptr_t(global) % 16)) {
        standin::fail("cp.async of 16 bytes from or to an address that is no multiple of 16");
    }
    standin::start_copy(shared, there ? global : nullptr, 16);
}
void cp_async_commit() { standin::commit_copies(); }
void cp_async_wait_all_but(int groups) { standin::finish_copies(groups); }

uint32_t bf16_pair(float low, float high) { return to_bf16(low) | to_bf16(high) << 16; }

float float_from_half(uint16_t bits) {
    const unsigned exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    float v = 0;
    if (exponent == 31) {
        v = __uint_as_float(0x7f800000u | fraction << 13);
    } else {
        v = exponent ? std::ldexp(float(1024 + fraction), int(exponent) - 25) : std::ldexp(float(fraction), -24);
    }
    return bits & 0x8000 ? -v : v;
}
