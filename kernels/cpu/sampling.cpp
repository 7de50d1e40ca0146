// Choosing tokens from logits.

#include <cmath>
#include <cstring>

#include "threads.h"
#include "vector.h"

namespace trunkline {
namespace {

// Calls body(first, lanes) for each sixteen of `size` elements, until it returns true.
template <class Body>
inline void scan_lanes(int64_t size, Body body) {
    for (int64_t i = 0; i < size; i += kLanes) {
        const int64_t left = size - i;
        const __mmask16 lanes = left < kLanes ? first_lanes(static_cast<int>(left)) : 0xffff;
        if (body(i, lanes)) return;
    }
}

// The index of a row's largest element, the first among equals.
template <class Type>
int64_t largest(const typename Type::Element* row, int64_t size) {
    const __m512 lowest = _mm512_set1_ps(-INFINITY);
    __m512 highest = lowest;
    scan_lanes(size, [&](int64_t i, __mmask16 lanes) {
        highest = _mm512_mask_max_ps(highest, lanes, highest, Type::load(row + i, lanes));
        return false;
    });
    const __m512 maximum = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
    int64_t found = 0;
    scan_lanes(size, [&](int64_t i, __mmask16 lanes) {
        const __mmask16 equal =
            _mm512_mask_cmp_ps_mask(lanes, Type::load(row + i, lanes), maximum, _CMP_EQ_OQ);
        if (equal) found = i + __builtin_ctz(equal);
        return equal != 0;
    });
    return found;
}

// index [num_rows] of logits [num_rows, vocab_size].
template <class Type>
void largest_of_rows(const typename Type::Element* logits, int64_t num_rows, int64_t vocab_size,
                     int64_t* index, int64_t num_threads) {
    for_each(num_threads, num_rows, 1, [&](int64_t row) {
        index[row] = largest<Type>(logits + row * vocab_size, vocab_size);
    });
}

// The 32 tokens of one word of a mask. Of those that are not allowed only -inf is stored, their
// logits are not read.
inline void mask_word(const float* logits, uint32_t allowed, uint32_t lanes, float* masked) {
    const __m512 never = _mm512_set1_ps(-INFINITY);
    for (int half = 0; half < 2; half++) {
        const auto is_allowed = static_cast<__mmask16>((allowed & lanes) >> (16 * half));
        const auto is_token = static_cast<__mmask16>(lanes >> (16 * half));
        const int at = kLanes * half;
        _mm512_mask_storeu_ps(masked + at, is_token,
                              _mm512_mask_loadu_ps(never, is_allowed, logits + at));
    }
}
inline void mask_word(const uint16_t* logits, uint32_t allowed, uint32_t lanes, uint16_t* masked) {
    const __m512i never = _mm512_set1_epi16(static_cast<int16_t>(0xff80));
    _mm512_mask_storeu_epi16(masked, lanes,
                             _mm512_mask_loadu_epi16(never, allowed & lanes, logits));
}

// masked [num_rows, vocab_size] of logits [num_rows, vocab_size], masks [num_masks, num_words] and
// mask_of_row [num_rows].
template <class Element>
void apply_token_masks(const Element* logits, int64_t num_rows, int64_t vocab_size,
                       const uint32_t* masks, int64_t num_words, const int64_t* mask_of_row,
                       Element* masked, int64_t num_threads) {
    for_each(num_threads, num_rows, 1, [&](int64_t row) {
        const Element* from = logits + row * vocab_size;
        Element* to = masked + row * vocab_size;
        if (mask_of_row[row] < 0) {
            std::memcpy(to, from, static_cast<size_t>(vocab_size) * sizeof(Element));
            return;
        }
        const uint32_t* words = masks + mask_of_row[row] * num_words;
        for (int64_t i = 0; i < vocab_size; i += 32) {
            const int64_t left = vocab_size - i;
            const uint32_t lanes = left < 32 ? (1u << left) - 1u : 0xffffffffu;
            mask_word(from + i, words[i / 32], lanes, to + i);
        }
    });
}

}  // namespace
}  // namespace trunkline

extern "C" {
void trunkline_largest_float32(const float* logits, int64_t num_rows, int64_t vocab_size,
                               int64_t* index, int64_t num_threads) {
    trunkline::largest_of_rows<trunkline::Float32>(logits, num_rows, vocab_size, index,
                                                   num_threads);
}
void trunkline_largest_bfloat16(const uint16_t* logits, int64_t num_rows, int64_t vocab_size,
                                int64_t* index, int64_t num_threads) {
    trunkline::largest_of_rows<trunkline::BFloat16>(logits, num_rows, vocab_size, index,
                                                    num_threads);
}
void trunkline_apply_token_masks_float32(const float* logits, int64_t num_rows, int64_t vocab_size,
                                         const uint32_t* masks, int64_t num_words,
                                         const int64_t* mask_of_row, float* masked,
                                         int64_t num_threads) {
    trunkline::apply_token_masks(logits, num_rows, vocab_size, masks, num_words, mask_of_row,
                                 masked, num_threads);
}
void trunkline_apply_token_masks_bfloat16(const uint16_t* logits, int64_t num_rows,
                                          int64_t vocab_size, const uint32_t* masks,
                                          int64_t num_words, const int64_t* mask_of_row,
                                          uint16_t* masked, int64_t num_threads) {
    trunkline::apply_token_masks(logits, num_rows, vocab_size, masks, num_words, mask_of_row,
                                 masked, num_threads);
}
}
