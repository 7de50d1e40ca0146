// Sixteen float lanes and the two element types they are loaded from.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace trunkline {

constexpr int kLanes = 16;

// Mask of the first `count` lanes, 0 <= count <= 16.
inline __mmask16 first_lanes(int count) {
    return static_cast<__mmask16>((1u << count) - 1u);
}

// What differs between element types: how 16 elements are loaded and stored as floats, and how one
// 32-bit word of each factor (one float, or a pair of bfloat16) is multiplied and accumulated.
struct Float32 {
    using Element = float;
    static constexpr int kPerWord = 1;
    static constexpr int kNumExp2Terms = 7;
    static constexpr float kExp2Terms[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f,
                                           5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f};

    static __m512 load(const Element* p, __mmask16 lanes = 0xffff) {
        return _mm512_maskz_loadu_ps(lanes, p);
    }
    static void store(Element* p, __m512 x, __mmask16 lanes = 0xffff) {
        _mm512_mask_storeu_ps(p, lanes, x);
    }
    static __m512 round(__m512 x) { return x; }
    static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
    }
};

struct BFloat16 {
    using Element = uint16_t;
    static constexpr int kPerWord = 2;
    static constexpr int kNumExp2Terms = 4;
    static constexpr float kExp2Terms[] = {5.517166e-2f, 2.4261112e-1f, 6.9326099e-1f,
                                           9.9992807e-1f};

    static __m512 load(const Element* p, __mmask16 lanes = 0xffff) {
        const __m256i bits = _mm256_maskz_loadu_epi16(lanes, p);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    static void store(Element* p, __m512 x, __mmask16 lanes = 0xffff) {
        _mm256_mask_storeu_epi16(p, lanes, (__m256i)_mm512_cvtneps_pbh(x));
    }
    // x as it is after a store and a load.
    static __m512 round(__m512 x) {
        const __m256i bits = (__m256i)_mm512_cvtneps_pbh(x);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }
};

// 2^x for x <= 0: a polynomial of the fraction times 2^n. Its relative error is below what the
// element type can hold: 2e-7 with seven terms, 1e-4 with four.
template <class Type>
inline __m512 exp2(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(Type::kExp2Terms[0]);
#pragma GCC unroll 6
    for (int i = 1; i < Type::kNumExp2Terms; i++)
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(Type::kExp2Terms[i]));
    return _mm512_scalef_ps(p, n);
}

inline __m512 silu(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), minus_log2e = _mm512_set1_ps(-1.44269504f);
    return _mm512_div_ps(x, _mm512_add_ps(one, exp2<Float32>(_mm512_mul_ps(x, minus_log2e))));
}

}  // namespace trunkline
