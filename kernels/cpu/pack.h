// Keys and values of a block, read from the pages of the cache and laid out for `tile_product`.
//
//     cache    [page, offset, kv_head, head_dim] elements
//     keys     [head_dim words, kBlockKeys]      word (w, j): word w of key j        (transposed)
//     values   [kBlockKeys words, head_dim]      word (i, d): element d of value i,
//                                                or of the values 2i and 2i + 1 in a pair
//
// Rows past the last key are zeros: what the cache holds there is never read.
#pragma once

#include <cstring>

#include "vector.h"

namespace trunkline {

constexpr int kBlockKeys = 64;

// Transposes 16 x 16 words in registers.
inline void transpose_words(__m512i (&row)[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        row[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        row[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        row[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        row[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    // row[4 i + j]: in each of the four 128-bit parts p, word 4 p + j of the rows 4 i .. 4 i + 3.
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        t[j] = _mm512_shuffle_i32x4(row[j], row[4 + j], 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(row[8 + j], row[12 + j], 0x88);
        t[8 + j] = _mm512_shuffle_i32x4(row[j], row[4 + j], 0xdd);
        t[12 + j] = _mm512_shuffle_i32x4(row[8 + j], row[12 + j], 0xdd);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        row[j] = _mm512_shuffle_i32x4(t[j], t[4 + j], 0x88);
        row[8 + j] = _mm512_shuffle_i32x4(t[j], t[4 + j], 0xdd);
        row[4 + j] = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0x88);
        row[12 + j] = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0xdd);
    }
}

// Args:
//     key: [num_keys] where each key is.
//     num_words: words of a key.
//     packed: [num_words, kBlockKeys], written as far as the last started sixteen of keys.
inline void pack_keys(const int32_t* const* key, int num_keys, int num_words, int32_t* packed) {
    for (int first = 0; first < num_keys; first += kLanes) {
        const int count = num_keys - first < kLanes ? num_keys - first : kLanes;
        for (int word = 0; word < num_words; word += kLanes) {
            const int width = num_words - word < kLanes ? num_words - word : kLanes;
            __m512i row[kLanes];
            if (count == kLanes && width == kLanes) {
#pragma GCC unroll 16
                for (int j = 0; j < kLanes; j++)
                    row[j] = _mm512_loadu_si512(key[first + j] + word);
            } else {
                const __mmask16 words = first_lanes(width);
                for (int j = 0; j < kLanes; j++)
                    row[j] = j < count ? _mm512_maskz_loadu_epi32(words, key[first + j] + word)
                                       : _mm512_setzero_si512();
            }
            transpose_words(row);
            int32_t* target = packed + word * kBlockKeys + first;
            for (int j = 0; j < width; j++) _mm512_storeu_si512(target + j * kBlockKeys, row[j]);
        }
    }
}

// Args:
//     value: [num_keys] where each value is.
//     packed: [ceil(num_keys / elements per word), head_dim]
inline void pack_values(const float* const* value, int num_keys, int head_dim, int32_t* packed) {
    for (int j = 0; j < num_keys; j++)
        std::memcpy(packed + j * head_dim, value[j], head_dim * sizeof(float));
}

// Sixteen bfloat16 in the lower halves of sixteen words.
inline __m512i widened(const uint16_t* from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline void pack_values(const uint16_t* const* value, int num_keys, int head_dim,
                        int32_t* packed) {
    for (int j = 0; j < num_keys; j += 2) {
        const uint16_t* even = value[j];
        const uint16_t* odd = j + 1 < num_keys ? value[j + 1] : nullptr;
        int32_t* target = packed + j / 2 * head_dim;
        for (int d = 0; d < head_dim; d += kLanes) {
            const __m512i low = widened(even + d);
            const __m512i high = odd ? widened(odd + d) : _mm512_setzero_si512();
            _mm512_storeu_si512(target + d, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    }
}

}  // namespace trunkline
