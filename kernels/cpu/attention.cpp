// Attention over a list of work items, straight from the paged cache.
//
// An item is a rectangle of the attention matrix: some rows (query tokens), a range of the
// positions of one page table. The query heads that share a KV head are the *lines* of its tile:
// line i is head i % ratio of row i / ratio. Keys and values are packed a block at a time and stay
// in the first-level cache while all lines pass over them, six at a time:
//
//     for each block of 64 keys:       pack keys, pack values
//         for each six lines:          scores   = lines x keys             6 x 64 floats
//                                      weights  = exp2(scores - maximum)   6 x 64 elements
//                                      output   = output * shrink + weights x values
//
// The maximum and the sum of each line are kept in float32 and in base 2 (online softmax). A row
// covered by one item is written to the result at once; otherwise each item leaves a partial
// result and its log-sum-exp, and `merge_partials` weighs them.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "pack.h"
#include "threads.h"
#include "tile_product.h"

namespace trunkline {
namespace {

constexpr float kLog2E = 1.44269504f;
// Below every score, but finite, so that differences of maxima are numbers.
constexpr float kNoMaximum = -1e30f;
// An item of at most so many lines over all heads is one task, when there are so many items.
constexpr int64_t kShortLines = 64;
constexpr int64_t kManyItemsPerThread = 4;
constexpr int64_t kMergedRowsPerItem = 8;

// As the caller lays them out, all int64.
struct Item {
    int64_t row_start, row_end;
    int64_t entry;             // row of the page tables
    int64_t kv_start, kv_end;  // token positions
    int64_t causal;            // rows see the keys up to their own position
    int64_t first_partial;     // of row_start; -1: the rows have no other item
};

// One call. The caller fills in the same fields in the same order, each eight bytes wide.
template <class Type>
struct Step {
    using Element = typename Type::Element;
    const Element* query;        // [num_rows, num_heads, head_dim]
    const Element* key_cache;    // [num_pages, page_size, num_kv_heads, head_dim]
    const Element* value_cache;  // like key_cache
    Element* out;                // [num_rows, num_heads, head_dim]
    float* partial_out;          // [num_partials, num_heads, head_dim]
    float* partial_lse;          // [num_partials, num_heads], base 2
    const Item* items;           // [num_items]
    const int64_t* positions;    // [num_rows]
    const int64_t* page_tables;  // [num_entries, max_pages]
    // Rows with more than one item, and where each one's partial results begin in the list.
    const int64_t* merged_rows;      // [num_merged]
    const int64_t* merged_start;     // [num_merged + 1]
    const int64_t* merged_partials;  // partial result
    int64_t num_items, num_merged, max_pages, page_size, num_heads, num_kv_heads, head_dim;
    int64_t window;  // positions that a row sees, its own included
    int64_t num_threads;
    double scale;

    int64_t ratio() const { return num_heads / num_kv_heads; }
};

// An item's part for some KV heads. A short item is one task: its keys and values are read in the
// order of the memory. A long one has a task for each head, which shares it among threads.
struct Task {
    const Item* item;
    int64_t head_start, head_end;  // KV heads
};

// The lines of a task, head after head, and the memory to work on them; one per thread.
template <class Type>
struct Tile {
    using Element = typename Type::Element;
    std::vector<Element> query;         // [num_heads, num_lines, head_dim]
    std::vector<float> out;             // [num_heads, num_lines, head_dim] not yet divided by `sum`
    std::vector<float> maximum;         // [num_heads, num_lines] of the scores, base 2
    std::vector<float> sum;             // [num_heads, num_lines, 16] parts of the weights' sum
    std::vector<int32_t> keys, values;  // a packed block of one head
    int64_t num_lines = 0;              // of a head

    void load(const Step<Type>& step, const Task& task) {
        const Item& item = *task.item;
        const int64_t ratio = step.ratio(), row_size = ratio * step.head_dim;
        num_lines = (item.row_end - item.row_start) * ratio;
        const int64_t all_lines = num_lines * (task.head_end - task.head_start);
        query.resize(all_lines * step.head_dim);
        Element* target = query.data();
        for (int64_t head = task.head_start; head < task.head_end; head++)
            for (int64_t row = item.row_start; row < item.row_end; row++, target += row_size)
                std::memcpy(target, step.query + (row * step.num_kv_heads + head) * row_size,
                            row_size * sizeof(Element));
        out.assign(all_lines * step.head_dim, 0.0f);
        maximum.assign(all_lines, kNoMaximum);
        sum.assign(all_lines * kLanes, 0.0f);
        keys.resize(kBlockKeys * step.head_dim / Type::kPerWord);
        values.resize(kBlockKeys * step.head_dim / Type::kPerWord);
    }
};

// Keys [low, high) of the block are those that a line sees.
struct Visible {
    int low, high;

    __mmask16 lanes(int first) const {
        const int from = std::clamp(low - first, 0, kLanes);
        const int to = std::clamp(high - first, 0, kLanes);
        return first_lanes(to) & ~first_lanes(from);
    }
};

template <class Type>
Visible visible_keys(const Step<Type>& step, const Item& item, int64_t row, int64_t block_start,
                     int num_keys) {
    const int64_t position = step.positions[row];
    const int64_t limit = item.causal ? position + 1 - block_start : num_keys;
    const int64_t low = position + 1 - step.window - block_start;
    return {static_cast<int>(std::clamp<int64_t>(low, 0, num_keys)),
            static_cast<int>(std::clamp<int64_t>(limit, 0, num_keys))};
}

// Turns a line's scores into weights; returns what its earlier sums are to be multiplied by.
template <class Type, int COLUMNS>
inline __attribute__((always_inline)) float to_weights(const __m512 (&score)[COLUMNS],
                                                       Visible visible, float scale,
                                                       float& maximum, float* sum,
                                                       typename Type::Element* weights) {
    __mmask16 lanes[COLUMNS];
    __m512 highest = _mm512_set1_ps(kNoMaximum);
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; c++) {
        lanes[c] = visible.lanes(c * kLanes);
        highest = _mm512_mask_max_ps(highest, lanes[c], highest, score[c]);
    }
    const float factor = scale * kLog2E;
    const float old_maximum = maximum;
    maximum = std::max(old_maximum, _mm512_reduce_max_ps(highest) * factor);
    const float shrink = maximum == old_maximum ? 1.0f : exp2f(old_maximum - maximum);

    __m512 total = _mm512_mul_ps(_mm512_loadu_ps(sum), _mm512_set1_ps(shrink));
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; c++) {
        const __m512 exponent =
            _mm512_fmsub_ps(score[c], _mm512_set1_ps(factor), _mm512_set1_ps(maximum));
        const __m512 weight = _mm512_maskz_mov_ps(lanes[c], exp2<Type>(exponent));
        total = _mm512_add_ps(total, weight);
        Type::store(weights + c * kLanes, weight);
    }
    _mm512_storeu_ps(sum, total);
    return shrink;
}

// output[:, first .. first + COLUMNS * 16] = that * shrink + weights x values
// Not inlined, like score_lines: the register allocator then sees nothing but the inner loop.
template <class Type, int LINES, int COLUMNS>
__attribute__((noinline)) void accumulate(const typename Type::Element* weights,
                                          const int32_t* values, int64_t head_dim, int num_words,
                                          const float (&shrink)[LINES], float* out) {
    __m512 sum[LINES][COLUMNS];
#pragma GCC unroll 6
    for (int r = 0; r < LINES; r++)
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++)
            sum[r][c] = _mm512_mul_ps(_mm512_loadu_ps(out + r * head_dim + c * kLanes),
                                      _mm512_set1_ps(shrink[r]));
    tile_product<Type, LINES, COLUMNS>(reinterpret_cast<const int32_t*>(weights),
                                       kBlockKeys / Type::kPerWord, values, head_dim, num_words,
                                       sum);
#pragma GCC unroll 6
    for (int r = 0; r < LINES; r++)
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++)
            _mm512_storeu_ps(out + r * head_dim + c * kLanes, sum[r][c]);
}

template <class Type, int LINES, int COLUMNS>
__attribute__((noinline)) void score_lines(const Step<Type>& step, const Tile<Type>& tile,
                                           int64_t line, const Visible (&visible)[LINES],
                                           float* maximum, float* sum,
                                           typename Type::Element* weights,
                                           float (&shrink)[LINES]) {
    __m512 score[LINES][COLUMNS];
#pragma GCC unroll 6
    for (int r = 0; r < LINES; r++)
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++) score[r][c] = _mm512_setzero_ps();
    const int64_t num_words = step.head_dim / Type::kPerWord;
    tile_product<Type, LINES, COLUMNS>(
        reinterpret_cast<const int32_t*>(tile.query.data() + line * step.head_dim), num_words,
        tile.keys.data(), kBlockKeys, num_words, score);
#pragma GCC unroll 6
    for (int r = 0; r < LINES; r++)
        shrink[r] = to_weights<Type>(score[r], visible[r], static_cast<float>(step.scale),
                                     maximum[r], sum + r * kLanes, weights + r * kBlockKeys);
}

// Passes LINES lines over the packed block.
template <class Type, int LINES>
void attend_lines(const Step<Type>& step, const Item& item, Tile<Type>& tile, int64_t line,
                  int64_t block_start, int num_keys) {
    Visible visible[LINES];
    bool sees_any = false;
    for (int r = 0; r < LINES; r++) {
        const int64_t row = item.row_start + (line + r) % tile.num_lines / step.ratio();
        visible[r] = visible_keys(step, item, row, block_start, num_keys);
        sees_any |= visible[r].low < visible[r].high;
    }
    if (!sees_any) return;

    alignas(64) typename Type::Element weights[LINES * kBlockKeys];
    float shrink[LINES];
    float* maximum = tile.maximum.data() + line;
    float* sum = tile.sum.data() + line * kLanes;
    switch ((num_keys + kLanes - 1) / kLanes) {
        case 1:
            score_lines<Type, LINES, 1>(step, tile, line, visible, maximum, sum, weights, shrink);
            break;
        case 2:
            score_lines<Type, LINES, 2>(step, tile, line, visible, maximum, sum, weights, shrink);
            break;
        case 3:
            score_lines<Type, LINES, 3>(step, tile, line, visible, maximum, sum, weights, shrink);
            break;
        default:
            score_lines<Type, LINES, 4>(step, tile, line, visible, maximum, sum, weights, shrink);
    }

    const int num_words = (num_keys + Type::kPerWord - 1) / Type::kPerWord;
    const int head_dim = static_cast<int>(step.head_dim);
    for (int d = 0; d < head_dim; d += kTileWidth) {
        const int32_t* values = tile.values.data() + d;
        float* out = tile.out.data() + line * head_dim + d;
        switch (std::min(head_dim - d, kTileWidth) / kLanes) {
            case 1:
                accumulate<Type, LINES, 1>(weights, values, head_dim, num_words, shrink, out);
                break;
            case 2:
                accumulate<Type, LINES, 2>(weights, values, head_dim, num_words, shrink, out);
                break;
            case 3:
                accumulate<Type, LINES, 3>(weights, values, head_dim, num_words, shrink, out);
                break;
            default:
                accumulate<Type, LINES, 4>(weights, values, head_dim, num_words, shrink, out);
        }
    }
}

// Where a block's keys and values are in the caches: the first element of each slot.
struct Block {
    int64_t start;  // token position
    int num_keys;
    int64_t slots[kBlockKeys];
};

// The block at `start`; empty at the end of the item.
template <class Type>
void locate_block(const Step<Type>& step, const Item& item, int64_t start, Block& block) {
    block.start = start;
    block.num_keys = static_cast<int>(std::clamp<int64_t>(item.kv_end - start, 0, kBlockKeys));
    const int64_t* pages = step.page_tables + item.entry * step.max_pages;
    int64_t page = start / step.page_size, offset = start % step.page_size;
    for (int j = 0; j < block.num_keys; j++) {
        block.slots[j] =
            (pages[page] * step.page_size + offset) * step.num_kv_heads * step.head_dim;
        if (++offset == step.page_size) {
            offset = 0;
            page++;
        }
    }
}

template <class Element>
void prefetch(const Element* from, int64_t size) {
    constexpr int64_t kElementsPerLine = 64 / sizeof(Element);
    for (int64_t i = 0; i < size; i += kElementsPerLine)
        // Not _mm_prefetch: GCC drops a function whose only effect it is.
        asm volatile("prefetcht1 %0" ::"m"(from[i]));
}

// Asks for the task's share of the next block, a part of its keys for each head that is worked on:
// pages lie anywhere, the hardware does not foresee them.
template <class Type>
void prefetch_part(const Step<Type>& step, const Task& task, const Block& next, int64_t head) {
    const int64_t num_heads = task.head_end - task.head_start;
    const int64_t part = head - task.head_start;
    const int64_t first = task.head_start * step.head_dim, size = num_heads * step.head_dim;
    for (int64_t j = next.num_keys * part / num_heads; j < next.num_keys * (part + 1) / num_heads;
         j++) {
        prefetch(step.key_cache + next.slots[j] + first, size);
        prefetch(step.value_cache + next.slots[j] + first, size);
    }
}

template <class Type>
void pack_block(const Step<Type>& step, const Block& block, int64_t head, Tile<Type>& tile) {
    const typename Type::Element *keys[kBlockKeys], *values[kBlockKeys];
    for (int j = 0; j < block.num_keys; j++) {
        keys[j] = step.key_cache + block.slots[j] + head * step.head_dim;
        values[j] = step.value_cache + block.slots[j] + head * step.head_dim;
    }
    const int head_dim = static_cast<int>(step.head_dim);
    pack_keys(reinterpret_cast<const int32_t* const*>(keys), block.num_keys,
              head_dim / Type::kPerWord, tile.keys.data());
    pack_values(values, block.num_keys, head_dim, tile.values.data());
}

// Passes all lines of a head, from `line` on, over the packed block.
template <class Type>
void attend_block(const Step<Type>& step, const Item& item, Tile<Type>& tile, int64_t line,
                  int64_t start, int num_keys) {
    const int64_t line_end = line + tile.num_lines;
    for (; line + kTileRows <= line_end; line += kTileRows)
        attend_lines<Type, kTileRows>(step, item, tile, line, start, num_keys);
    switch (line_end - line) {
        case 1: attend_lines<Type, 1>(step, item, tile, line, start, num_keys); break;
        case 2: attend_lines<Type, 2>(step, item, tile, line, start, num_keys); break;
        case 3: attend_lines<Type, 3>(step, item, tile, line, start, num_keys); break;
        case 4: attend_lines<Type, 4>(step, item, tile, line, start, num_keys); break;
        case 5: attend_lines<Type, 5>(step, item, tile, line, start, num_keys); break;
        default: break;
    }
}

template <class Type>
void run_task(const Step<Type>& step, const Task& task, Tile<Type>& tile) {
    const Item& item = *task.item;
    tile.load(step, task);
    Block block, next;
    locate_block(step, item, item.kv_start, block);
    while (block.num_keys > 0) {
        locate_block(step, item, block.start + kBlockKeys, next);
        for (int64_t head = task.head_start; head < task.head_end; head++) {
            prefetch_part(step, task, next, head);
            pack_block(step, block, head, tile);
            attend_block(step, item, tile, (head - task.head_start) * tile.num_lines, block.start,
                         block.num_keys);
        }
        std::swap(block, next);
    }
}

template <class Type>
void store_tile(const Step<Type>& step, const Task& task, const Tile<Type>& tile) {
    const Item& item = *task.item;
    const int64_t ratio = step.ratio(), num_kv_heads = task.head_end - task.head_start;
    for (int64_t line = 0; line < tile.num_lines * num_kv_heads; line++) {
        const int64_t row = line % tile.num_lines / ratio;
        const int64_t kv_head = task.head_start + line / tile.num_lines;
        const int64_t head = kv_head * ratio + line % ratio;
        const float sum = _mm512_reduce_add_ps(_mm512_loadu_ps(tile.sum.data() + line * kLanes));
        const __m512 factor = _mm512_set1_ps(sum > 0.0f ? 1.0f / sum : 0.0f);
        const float* from = tile.out.data() + line * step.head_dim;
        if (item.first_partial < 0) {
            auto* to = step.out + ((item.row_start + row) * step.num_heads + head) * step.head_dim;
            for (int64_t d = 0; d < step.head_dim; d += kLanes)
                Type::store(to + d, _mm512_mul_ps(_mm512_loadu_ps(from + d), factor));
            continue;
        }
        const int64_t at = (item.first_partial + row) * step.num_heads + head;
        for (int64_t d = 0; d < step.head_dim; d += kLanes)
            _mm512_storeu_ps(step.partial_out + at * step.head_dim + d,
                             _mm512_mul_ps(_mm512_loadu_ps(from + d), factor));
        step.partial_lse[at] = sum > 0.0f ? tile.maximum[line] + log2f(sum)
                                          : -std::numeric_limits<float>::infinity();
    }
}

template <class Type>
std::vector<Task> list_tasks(const Step<Type>& step) {
    std::vector<Task> tasks;
    for (const Item* item = step.items; item < step.items + step.num_items; item++) {
        const bool is_short = (item->row_end - item->row_start) * step.num_heads <= kShortLines &&
                              step.num_items >= kManyItemsPerThread * step.num_threads;
        const int64_t num_heads = is_short ? step.num_kv_heads : 1;
        for (int64_t head = 0; head < step.num_kv_heads; head += num_heads)
            tasks.push_back({item, head, head + num_heads});
    }
    return tasks;
}

template <class Type>
void run_items(const Step<Type>& step) {
    const std::vector<Task> tasks = list_tasks(step);
    for_each_item(step.num_threads, static_cast<int64_t>(tasks.size()), [&](int64_t i) {
        thread_local Tile<Type> tile;
        run_task(step, tasks[i], tile);
        store_tile(step, tasks[i], tile);
    });
}

// One head of one row: the mean of its partial results, weighed by 2^lse.
template <class Type>
void merge_partials(const Step<Type>& step, const int64_t* partials, int64_t num_partials,
                    int64_t row, int64_t head) {
    float highest = -std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < num_partials; i++)
        highest = std::max(highest, step.partial_lse[partials[i] * step.num_heads + head]);
    auto* out = step.out + (row * step.num_heads + head) * step.head_dim;
    if (std::isinf(highest)) {
        std::fill(out, out + step.head_dim, typename Type::Element(0));
        return;
    }
    float total = 0.0f;
    for (int64_t i = 0; i < num_partials; i++)
        total += exp2f(step.partial_lse[partials[i] * step.num_heads + head] - highest);
    for (int64_t d = 0; d < step.head_dim; d += kLanes) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < num_partials; i++) {
            const int64_t at = partials[i] * step.num_heads + head;
            const __m512 weight = _mm512_set1_ps(exp2f(step.partial_lse[at] - highest) / total);
            const float* part = step.partial_out + at * step.head_dim + d;
            sum = _mm512_fmadd_ps(weight, _mm512_loadu_ps(part), sum);
        }
        Type::store(out + d, sum);
    }
}

template <class Type>
void run(const Step<Type>& step) {
    run_items(step);
    for_each(step.num_threads, step.num_merged, kMergedRowsPerItem, [&](int64_t i) {
        for (int64_t head = 0; head < step.num_heads; head++)
            merge_partials(step, step.merged_partials + step.merged_start[i],
                           step.merged_start[i + 1] - step.merged_start[i], step.merged_rows[i],
                           head);
    });
}

}  // namespace
}  // namespace trunkline

extern "C" {
void trunkline_attention_float32(const trunkline::Step<trunkline::Float32>* step) {
    trunkline::run(*step);
}
void trunkline_attention_bfloat16(const trunkline::Step<trunkline::BFloat16>* step) {
    trunkline::run(*step);
}
}
