// The one inner loop of attention and linear layers: a small tile of A times a packed B.
//
//     A   [ROWS, depth] words, row-major: a word is one float, or two neighbouring bfloat16
//     B   [depth, COLUMNS * 16] words: word (k, n) of column n meets word k of a row
//     sum [ROWS, COLUMNS] registers of 16 floats
//
// A word of A is broadcast and multiplied with 16 columns of B. With 6 x 4 registers of sums, four
// for B and one for A, 29 of the 32 registers are used and each load feeds several products.
#pragma once

#include "vector.h"

namespace trunkline {

constexpr int kTileRows = 6;
constexpr int kTileColumns = 4;                    // registers
constexpr int kTileWidth = kTileColumns * kLanes;  // columns of B

template <class Type, int ROWS, int COLUMNS>
inline __attribute__((always_inline)) void tile_product(
    const int32_t* a, int64_t a_stride, const int32_t* b, int64_t b_stride, int64_t depth,
    __m512 (&sum)[ROWS][COLUMNS]) {
    for (int64_t k = 0; k < depth; k++) {
        __m512i column[COLUMNS];
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++)
            column[c] = _mm512_loadu_si512(b + k * b_stride + c * kLanes);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            const __m512i word = _mm512_set1_epi32(a[r * a_stride + k]);
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; c++)
                sum[r][c] = Type::multiply_add(sum[r][c], word, column[c]);
        }
    }
}

}  // namespace trunkline
