#include "threads.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

namespace trunkline {
namespace {

// A thread that has nothing to do looks for work so long before it sleeps: longer than the pauses
// between the operations of a step, shorter than what another process would miss.
constexpr std::chrono::microseconds kSpin(100);
constexpr int kPausesPerLook = 32;

// Waits until `value` is no longer `old`.
template <class T>
void wait_for_change(const std::atomic<T>& value, T old) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    while (std::chrono::steady_clock::now() < deadline)
        for (int i = 0; i < kPausesPerLook; i++) {
            if (value.load(std::memory_order_acquire) != old) return;
            _mm_pause();
        }
    value.wait(old, std::memory_order_acquire);
}

// Lets the calling thread run on any of the process's cores but `core`. A helper that is woken by
// the caller is often put on the caller's own core, and left there although another is idle.
void avoid_core(int core) {
    cpu_set_t cores;
    if (sched_getaffinity(getpid(), sizeof(cores), &cores) != 0) return;
    CPU_CLR(core, &cores);
    if (CPU_COUNT(&cores) > 0) sched_setaffinity(0, sizeof(cores), &cores);
}

// The helpers, and the one call that they help with.
class Pool {
public:
    void run(int64_t num_threads, int64_t num_items, Work work, const void* context) {
        std::unique_lock<std::mutex> lock(in_use_, std::defer_lock);
        // Another thread's call has the helpers: this one does without.
        if (num_threads <= 1 || num_items <= 1 || !lock.try_lock()) {
            for (int64_t item = 0; item < num_items; item++) work(context, item);
            return;
        }
        for (; num_helpers_ < num_threads - 1; num_helpers_++)
            std::thread(&Pool::help, this, num_helpers_).detach();
        work_.store(work, std::memory_order_relaxed);
        context_.store(context, std::memory_order_relaxed);
        num_items_.store(num_items, std::memory_order_relaxed);
        max_helpers_.store(num_threads - 1, std::memory_order_relaxed);
        caller_core_.store(sched_getcpu(), std::memory_order_relaxed);
        unfinished_.store(static_cast<int32_t>(num_items), std::memory_order_relaxed);
        const uint32_t call = call_.load(std::memory_order_relaxed) + 1;
        tickets_.store(uint64_t{call} << 32 | static_cast<uint64_t>(num_items),
                       std::memory_order_release);
        call_.store(call, std::memory_order_release);
        call_.notify_all();
        take_items();
        for (int32_t left; (left = unfinished_.load(std::memory_order_acquire)) != 0;)
            wait_for_change(unfinished_, left);
    }

private:
    void help(int64_t helper) {
        for (uint32_t seen = 0;;) {
            wait_for_change(call_, seen);
            seen = call_.load(std::memory_order_acquire);
            if (helper >= max_helpers_.load(std::memory_order_relaxed)) continue;
            const int core = caller_core_.load(std::memory_order_relaxed);
            if (sched_getcpu() == core) avoid_core(core);
            take_items();
        }
    }

    // Does items until none is left. A helper that comes late may read half of an old call and half
    // of a new one; its ticket is then of the old call, and is not given to it.
    void take_items() {
        for (;;) {
            uint64_t ticket = tickets_.load(std::memory_order_acquire);
            const auto left = static_cast<int64_t>(ticket & 0xffffffff);
            if (left == 0) return;
            const Work work = work_.load(std::memory_order_relaxed);
            const void* context = context_.load(std::memory_order_relaxed);
            const int64_t item = num_items_.load(std::memory_order_relaxed) - left;
            if (!tickets_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel))
                continue;
            work(context, item);
            if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_all();
        }
    }

    std::mutex in_use_;
    int64_t num_helpers_ = 0;
    // The call's number in the upper half, how many of its items nobody has taken in the lower.
    std::atomic<uint64_t> tickets_{0};
    std::atomic<uint32_t> call_{0};
    std::atomic<int32_t> unfinished_{0};  // items
    std::atomic<Work> work_{nullptr};
    std::atomic<const void*> context_{nullptr};
    std::atomic<int64_t> num_items_{0}, max_helpers_{0};
    std::atomic<int> caller_core_{-1};
};

// Never destroyed: its helpers run until the process ends.
Pool* pool = nullptr;

// A forked child has none of the helpers.
void make_pool() { pool = new Pool; }

}  // namespace

void run_shared(int64_t num_threads, int64_t num_items, Work work, const void* context) {
    static std::once_flag once;
    std::call_once(once, [] {
        make_pool();
        pthread_atfork(nullptr, nullptr, make_pool);
    });
    pool->run(num_threads, num_items, work, context);
}

}  // namespace trunkline
