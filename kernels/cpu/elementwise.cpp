// The small operations between the products, each in one pass over memory.
//
// Arithmetic is float32. What the reference rounds to the element type before the next operation
// is rounded here where the rounding is part of its meaning: the sum that is the residual stream,
// and the normalised row before the weight is applied.

#include <cmath>
#include <cstring>

#include "threads.h"
#include "vector.h"

namespace trunkline {
namespace {

// Fewer elements than this are not worth another thread's while.
constexpr int64_t kElementsPerItem = 16384;
constexpr int64_t kMaxHeadDim = 512;

// Calls body(first, lanes) for each sixteen of `size` elements.
template <class Body>
inline void for_lanes(int64_t size, Body body) {
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) body(i, static_cast<__mmask16>(0xffff));
    if (i < size) body(i, first_lanes(static_cast<int>(size - i)));
}

// out = round(x / rms(x)) * weight, for a row of `size`; x and out may be the same.
template <class Type>
void norm_row(const typename Type::Element* x, const typename Type::Element* weight, float eps,
              int64_t size, typename Type::Element* out) {
    __m512 squares = _mm512_setzero_ps();
    for_lanes(size, [&](int64_t i, __mmask16 lanes) {
        const __m512 v = Type::load(x + i, lanes);
        squares = _mm512_fmadd_ps(v, v, squares);
    });
    const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(size);
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(mean + eps));
    for_lanes(size, [&](int64_t i, __mmask16 lanes) {
        const __m512 normed = Type::round(_mm512_mul_ps(Type::load(x + i, lanes), factor));
        Type::store(out + i, _mm512_mul_ps(normed, Type::load(weight + i, lanes)), lanes);
    });
}

// total = x + residual, normed = norm(total), rows of `size`.
template <class Type>
void add_rms_norm(const typename Type::Element* x, const typename Type::Element* residual,
                  const typename Type::Element* weight, double eps, int64_t num_rows, int64_t size,
                  typename Type::Element* normed, typename Type::Element* total,
                  int64_t num_threads) {
    for_each(num_threads, num_rows, kElementsPerItem / size, [&](int64_t row) {
        const int64_t at = row * size;
        for_lanes(size, [&](int64_t i, __mmask16 lanes) {
            const __m512 sum = _mm512_add_ps(Type::load(x + at + i, lanes),
                                             Type::load(residual + at + i, lanes));
            Type::store(total + at + i, sum, lanes);
        });
        norm_row<Type>(total + at, weight, static_cast<float>(eps), size, normed + at);
    });
}

// out = x * cos + swapped(x) * signed_sin, for one head.
template <class Type>
void rope_head(const typename Type::Element* x, const typename Type::Element* cos,
               const typename Type::Element* signed_sin, int64_t head_dim,
               typename Type::Element* out) {
    const int64_t half = head_dim / 2;
    for_lanes(half, [&](int64_t i, __mmask16 lanes) {
        const __m512 first = Type::load(x + i, lanes), second = Type::load(x + half + i, lanes);
        const __m512 low = _mm512_fmadd_ps(
            second, Type::load(signed_sin + i, lanes),
            _mm512_mul_ps(first, Type::load(cos + i, lanes)));
        const __m512 high = _mm512_fmadd_ps(
            first, Type::load(signed_sin + half + i, lanes),
            _mm512_mul_ps(second, Type::load(cos + half + i, lanes)));
        Type::store(out + i, low, lanes);
        Type::store(out + half + i, high, lanes);
    });
}

// Of each row of qkv [num_rows, num_heads + 2 * num_kv_heads, head_dim]: normalises q and k (if
// there is a weight, [num_heads + num_kv_heads, head_dim]), rotates them, and puts q into `query`,
// k and v into their slot of the caches.
template <class Type>
void rope_and_cache(const typename Type::Element* qkv, const typename Type::Element* norm_weight,
                    double eps, const typename Type::Element* cos,
                    const typename Type::Element* signed_sin, const int64_t* slots,
                    int64_t num_rows, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                    typename Type::Element* query, typename Type::Element* key_cache,
                    typename Type::Element* value_cache, int64_t num_threads) {
    using Element = typename Type::Element;
    const int64_t row_size = (num_heads + 2 * num_kv_heads) * head_dim;
    const int64_t kv_size = num_kv_heads * head_dim;
    for_each(num_threads, num_rows, kElementsPerItem / row_size, [&](int64_t row) {
        const Element* from = qkv + row * row_size;
        Element* keys = key_cache + slots[row] * kv_size;
        Element normed[kMaxHeadDim];
        for (int64_t head = 0; head < num_heads + num_kv_heads; head++, from += head_dim) {
            const Element* x = from;
            if (norm_weight) {
                norm_row<Type>(x, norm_weight + head * head_dim, static_cast<float>(eps), head_dim,
                               normed);
                x = normed;
            }
            Element* to = head < num_heads ? query + (row * num_heads + head) * head_dim
                                           : keys + (head - num_heads) * head_dim;
            rope_head<Type>(x, cos + row * head_dim, signed_sin + row * head_dim, head_dim, to);
        }
        std::memcpy(value_cache + slots[row] * kv_size, from, kv_size * sizeof(Element));
    });
}

// out [num_rows, size] = silu(gate) * up, of gate_up [num_rows, 2 * size].
template <class Type>
void silu_mul(const typename Type::Element* gate_up, int64_t num_rows, int64_t size,
              typename Type::Element* out, int64_t num_threads) {
    for_each(num_threads, num_rows, kElementsPerItem / size, [&](int64_t row) {
        const auto *gate = gate_up + row * 2 * size, *up = gate + size;
        for_lanes(size, [&](int64_t i, __mmask16 lanes) {
            const __m512 factor = Type::round(silu(Type::load(gate + i, lanes)));
            Type::store(out + row * size + i, _mm512_mul_ps(factor, Type::load(up + i, lanes)),
                        lanes);
        });
    });
}

}  // namespace
}  // namespace trunkline

using trunkline::BFloat16;
using trunkline::Float32;

extern "C" {

void trunkline_add_rms_norm_float32(const float* x, const float* residual, const float* weight,
                                    double eps, int64_t num_rows, int64_t size, float* normed,
                                    float* total, int64_t num_threads) {
    trunkline::add_rms_norm<Float32>(x, residual, weight, eps, num_rows, size, normed, total,
                                     num_threads);
}
void trunkline_add_rms_norm_bfloat16(const uint16_t* x, const uint16_t* residual,
                                     const uint16_t* weight, double eps, int64_t num_rows,
                                     int64_t size, uint16_t* normed, uint16_t* total,
                                     int64_t num_threads) {
    trunkline::add_rms_norm<BFloat16>(x, residual, weight, eps, num_rows, size, normed, total,
                                      num_threads);
}

void trunkline_rope_and_cache_float32(const float* qkv, const float* norm_weight, double eps,
                                      const float* cos, const float* signed_sin,
                                      const int64_t* slots, int64_t num_rows, int64_t num_heads,
                                      int64_t num_kv_heads, int64_t head_dim, float* query,
                                      float* key_cache, float* value_cache, int64_t num_threads) {
    trunkline::rope_and_cache<Float32>(qkv, norm_weight, eps, cos, signed_sin, slots, num_rows,
                                       num_heads, num_kv_heads, head_dim, query, key_cache,
                                       value_cache, num_threads);
}
void trunkline_rope_and_cache_bfloat16(const uint16_t* qkv, const uint16_t* norm_weight,
                                       double eps, const uint16_t* cos,
                                       const uint16_t* signed_sin, const int64_t* slots,
                                       int64_t num_rows, int64_t num_heads, int64_t num_kv_heads,
                                       int64_t head_dim, uint16_t* query, uint16_t* key_cache,
                                       uint16_t* value_cache, int64_t num_threads) {
    trunkline::rope_and_cache<BFloat16>(qkv, norm_weight, eps, cos, signed_sin, slots, num_rows,
                                        num_heads, num_kv_heads, head_dim, query, key_cache,
                                        value_cache, num_threads);
}

void trunkline_silu_mul_float32(const float* gate_up, int64_t num_rows, int64_t size, float* out,
                                int64_t num_threads) {
    trunkline::silu_mul<Float32>(gate_up, num_rows, size, out, num_threads);
}
void trunkline_silu_mul_bfloat16(const uint16_t* gate_up, int64_t num_rows, int64_t size,
                                 uint16_t* out, int64_t num_threads) {
    trunkline::silu_mul<BFloat16>(gate_up, num_rows, size, out, num_threads);
}
}
