// Choosing tokens from logits.

#include <cmath>

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
}
