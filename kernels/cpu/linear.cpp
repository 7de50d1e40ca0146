// y = x W^T + bias, with W packed once into panels of 64 columns for `tile_product`:
//
//     weight   [num_columns, depth] elements
//     packed   [panels, depth words, 64] words: word (p, k, n) is word k of column 64 p + n
//
// Columns past the last and the odd half of a last pair are zeros. In a gated product, y =
// silu(gate) * up, each panel has 32 columns of the gate and then the same 32 of up. Rows of x are
// taken six at a time; threads share (block of rows, panel) pairs, so that a panel stays in the second-level
// cache while a block of rows passes over it.

#include <algorithm>

#include "threads.h"
#include "tile_product.h"

namespace trunkline {
namespace {

constexpr int64_t kBlockRows = 32 * kTileRows;

int64_t num_panels(int64_t num_columns) { return (num_columns + kTileWidth - 1) / kTileWidth; }

// depth is a whole number of words.
template <class Type>
void pack_weight(const typename Type::Element* weight, int64_t num_columns, int64_t depth,
                 int32_t* packed, int64_t num_threads) {
    const int64_t num_words = depth / Type::kPerWord;
    const auto* words = reinterpret_cast<const int32_t*>(weight);
    for_each_item(num_threads, num_panels(num_columns), [&](int64_t panel) {
        for (int64_t column = 0; column < kTileWidth; column++)
            for (int64_t k = 0; k < num_words; k++) {
                const int64_t n = panel * kTileWidth + column;
                packed[(panel * num_words + k) * kTileWidth + column] =
                    n < num_columns ? words[n * num_words + k] : 0;
            }
    });
}

template <class Type>
struct Product {
    using Element = typename Type::Element;
    const Element* x;       // [num_rows, depth]
    const int32_t* packed;  // see above
    const Element* bias;    // [num_columns] or null
    Element* y;             // [num_rows, num_columns]; of a gated product, half the columns
    int64_t num_rows, num_columns, num_words;
};

// A product's rows as they are stored.
struct Plain {
    template <class Type, int ROWS>
    static void store(const Product<Type>& product, int64_t row, int64_t panel,
                      const __m512 (&sum)[ROWS][kTileColumns]);
};

struct Gated {
    template <class Type, int ROWS>
    static void store(const Product<Type>& product, int64_t row, int64_t panel,
                      const __m512 (&sum)[ROWS][kTileColumns]);
};

// How many of the sixteen columns from `column` on there are.
__mmask16 present_columns(int64_t num_columns, int64_t column) {
    return first_lanes(static_cast<int>(std::clamp<int64_t>(num_columns - column, 0, kLanes)));
}

template <class Type, int ROWS>
inline __attribute__((always_inline)) void Plain::store(
    const Product<Type>& product, int64_t row, int64_t panel,
    const __m512 (&sum)[ROWS][kTileColumns]) {
#pragma GCC unroll 4
    for (int c = 0; c < kTileColumns; c++) {
        const int64_t column = panel * kTileWidth + c * kLanes;
        const __mmask16 lanes = present_columns(product.num_columns, column);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++)
            Type::store(product.y + (row + r) * product.num_columns + column, sum[r][c],
                        lanes);
    }
}

template <class Type, int ROWS>
inline __attribute__((always_inline)) void Gated::store(
    const Product<Type>& product, int64_t row, int64_t panel,
    const __m512 (&sum)[ROWS][kTileColumns]) {
    constexpr int kGateColumns = kTileColumns / 2;
    const int64_t size = product.num_columns / 2;
#pragma GCC unroll 2
    for (int c = 0; c < kGateColumns; c++) {
        const int64_t column = panel * kTileWidth / 2 + c * kLanes;
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            const __m512 gate = Type::round(silu(Type::round(sum[r][c])));
            const __m512 up = Type::round(sum[r][kGateColumns + c]);
            Type::store(product.y + (row + r) * size + column, _mm512_mul_ps(gate, up));
        }
    }
}

template <class Type, class Form, int ROWS>
void compute_tile(const Product<Type>& product, int64_t row, int64_t panel) {
    __m512 sum[ROWS][kTileColumns];
    const int64_t first = panel * kTileWidth;
#pragma GCC unroll 4
    for (int c = 0; c < kTileColumns; c++) {
        const int64_t column = first + c * kLanes;
        const __mmask16 lanes = present_columns(product.num_columns, column);
        const __m512 start = product.bias ? Type::load(product.bias + column, lanes)
                                          : _mm512_setzero_ps();
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) sum[r][c] = start;
    }
    const int64_t num_words = product.num_words;
    tile_product<Type, ROWS, kTileColumns>(
        reinterpret_cast<const int32_t*>(product.x) + row * num_words, num_words,
        product.packed + panel * num_words * kTileWidth, kTileWidth, num_words, sum);
    Form::template store<Type, ROWS>(product, row, panel, sum);
}

template <class Type, class Form>
void compute_block(const Product<Type>& product, int64_t row, int64_t row_end, int64_t panel) {
    for (; row + kTileRows <= row_end; row += kTileRows)
        compute_tile<Type, Form, kTileRows>(product, row, panel);
    switch (row_end - row) {
        case 1: compute_tile<Type, Form, 1>(product, row, panel); break;
        case 2: compute_tile<Type, Form, 2>(product, row, panel); break;
        case 3: compute_tile<Type, Form, 3>(product, row, panel); break;
        case 4: compute_tile<Type, Form, 4>(product, row, panel); break;
        case 5: compute_tile<Type, Form, 5>(product, row, panel); break;
        default: break;
    }
}

template <class Form, class Type>
void linear(const Product<Type>& product, int64_t num_threads) {
    const int64_t panels = num_panels(product.num_columns);
    const int64_t blocks = (product.num_rows + kBlockRows - 1) / kBlockRows;
    for_each_item(num_threads, blocks * panels, [&](int64_t item) {
        const int64_t row = item / panels * kBlockRows;
        compute_block<Type, Form>(product, row, std::min(product.num_rows, row + kBlockRows), item % panels);
    });
}

}  // namespace
}  // namespace trunkline

extern "C" {

void trunkline_pack_weight_bfloat16(const uint16_t* weight, int64_t num_columns, int64_t depth,
                                    int32_t* packed, int64_t num_threads) {
    trunkline::pack_weight<trunkline::BFloat16>(weight, num_columns, depth, packed, num_threads);
}

void trunkline_linear_bfloat16(const uint16_t* x, const int32_t* packed, const uint16_t* bias,
                               int64_t num_rows, int64_t num_columns, int64_t depth, uint16_t* y,
                               int64_t num_threads) {
    using trunkline::BFloat16;
    trunkline::linear<trunkline::Plain, BFloat16>(
        {x, packed, bias, y, num_rows, num_columns, depth / BFloat16::kPerWord}, num_threads);
}

// num_columns of gate and up together, divisible by 64.
void trunkline_gated_linear_bfloat16(const uint16_t* x, const int32_t* packed,
                                     const uint16_t* bias, int64_t num_rows, int64_t num_columns,
                                     int64_t depth, uint16_t* y, int64_t num_threads) {
    using trunkline::BFloat16;
    trunkline::linear<trunkline::Gated, BFloat16>(
        {x, packed, bias, y, num_rows, num_columns, depth / BFloat16::kPerWord}, num_threads);
}
}
