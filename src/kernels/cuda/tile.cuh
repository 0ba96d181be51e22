// Tiles of a product in shared memory, and the fragments that tensor cores take from them.
//
// A step of the inner dimension is 256 bytes of every row: 256 weights in int8, or 128 in bfloat16. Rows lie one after the
// other, and a row's pieces of 16 bytes change places with the row's number, so that the eight rows that ldmatrix reads at
// once are in different banks. One product of tensor cores takes 32 bytes of rows: a slice.
#pragma once

#include "device.cuh"

#define STEP_BYTES 256
#define SLICES (STEP_BYTES / 32)

/// Where piece `piece` of 16 bytes of row `row` lies in a tile.
__device__ __forceinline__ int piece_at(int row, int piece) { return row * STEP_BYTES + ((piece ^ (row & 7)) << 4); }

/// A slice of 16 rows from `row` on, as the first operand.
__device__ __forceinline__ void load_rows(uint32_t (&a)[4], const unsigned char* tile, int row, int slice) {
    const int lane = (int)threadIdx.x % 32;
    ldmatrix_x4(a, tile + piece_at(row + lane % 16, 2 * slice + lane / 16));
}

/// A slice of 16 rows from `row` on as two second operands: `b[0], b[1]` of the first eight, `b[2], b[3]` of the others.
__device__ __forceinline__ void load_columns(uint32_t (&b)[4], const unsigned char* tile, int row, int slice) {
    const int lane = (int)threadIdx.x % 32;
    ldmatrix_x4(b, tile + piece_at(row + lane / 16 * 8 + lane % 8, 2 * slice + lane / 8 % 2));
}

/// How a block's threads share a tile of TOKENS x ROWS results: warps of 32 / 16 x 8 results and more. The result
/// `[i][j][q]` of a thread is that of token `token(i, q)` and row `row(j, q)`.
template <int TOKENS, int ROWS, int TOKEN_WARPS, int ROW_WARPS>
struct Split {
    static constexpr int THREADS = 32 * TOKEN_WARPS * ROW_WARPS;
    static constexpr int TOKEN_TILES = TOKENS / TOKEN_WARPS / 16, ROW_TILES = ROWS / ROW_WARPS / 8;
    static_assert(TOKEN_TILES * TOKEN_WARPS * 16 == TOKENS && ROW_TILES * ROW_WARPS * 8 == ROWS, "whole tiles");
    static_assert(ROW_TILES % 2 == 0, "second operands come in pairs");

    int first_token, first_row;  // of the warp, in the tile
    int lane;
    __device__ __forceinline__ Split() {
        const int warp = (int)threadIdx.x / 32;
        lane = (int)threadIdx.x % 32;
        first_token = warp % TOKEN_WARPS * (TOKENS / TOKEN_WARPS);
        first_row = warp / TOKEN_WARPS * (ROWS / ROW_WARPS);
    }
    __device__ __forceinline__ int token(int i, int q) const { return first_token + 16 * i + lane / 4 + q / 2 * 8; }
    __device__ __forceinline__ int row(int j, int q) const { return first_row + 8 * j + lane % 4 * 2 + q % 2; }
};

/// `y[token][row] (=|+=)` the results of a tile, those that the matrix has.
template <class S>
__device__ __forceinline__ void write_tile(const S& split, const float (&acc)[S::TOKEN_TILES][S::ROW_TILES][4], float* y,
                                           int y_stride, int add, int token0, int tokens, int row0, int rows) {
    #pragma unroll
    for (int i = 0; i < S::TOKEN_TILES; i++) {
        #pragma unroll
        for (int j = 0; j < S::ROW_TILES; j++) {
            #pragma unroll
            for (int q = 0; q < 4; q++) {
                const int token = token0 + split.token(i, q), row = row0 + split.row(j, q);
                if (token < tokens && row < rows) {
                    float* to = y + (uint64_t)token * y_stride + row;
                    *to = add ? *to + acc[i][j][q] : acc[i][j][q];
                }
            }
        }
    }
}
