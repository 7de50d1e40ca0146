// Shares numbered items of work among threads that live as long as the process.
//
// Not OpenMP: at the end of a parallel region its barrier waits for every thread of the team. Where
// another process has one of the cores, all wait for that thread to get its turn, hundreds of times
// in a step. Here nobody waits for a thread that has taken no item, and the others do its share.
#pragma once

#include <algorithm>
#include <cstdint>

namespace trunkline {

using Work = void (*)(const void* context, int64_t item);

// Calls work(context, item) for each item in [0, num_items), beginning with the lowest; returns when
// all have been done. At most num_threads threads take part, the caller is one of them.
void run_shared(int64_t num_threads, int64_t num_items, Work work, const void* context);

// Calls body(item) for each item.
template <class Body>
void for_each_item(int64_t num_threads, int64_t num_items, const Body& body) {
    const Work work = [](const void* context, int64_t item) {
        (*static_cast<const Body*>(context))(item);
    };
    run_shared(num_threads, num_items, work, &body);
}

// Calls body(i) for each i in [0, size), in items of at least min_per_item neighbours: so many that
// they are worth another thread's while.
template <class Body>
void for_each(int64_t num_threads, int64_t size, int64_t min_per_item, const Body& body) {
    constexpr int64_t kItemsPerThread = 4;
    const int64_t num_items =
        std::clamp<int64_t>(size / std::max<int64_t>(min_per_item, 1), 1,
                            kItemsPerThread * std::max<int64_t>(num_threads, 1));
    for_each_item(num_threads, num_items, [&](int64_t item) {
        const int64_t end = size * (item + 1) / num_items;
        for (int64_t i = size * item / num_items; i < end; i++) body(i);
    });
}

}  // namespace trunkline
