#include "threads.h"

#include <chrono>

#include <unistd.h>

namespace cs {
namespace {

constexpr std::chrono::microseconds kPatience{100};  // about what it takes to wake a thread
constexpr int kPauses = 64;                          // between two looks at the clock

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Whether it became true within a moment; a thread in need of the core may have it meanwhile.
template <class Condition>
bool spin_until(const Condition& is_true) {
    const auto start = std::chrono::steady_clock::now();
    while (true) {
        for (int i = 0; i < kPauses; ++i, pause()) {
            if (is_true()) return true;
        }
        if (std::chrono::steady_clock::now() - start > kPatience) return false;
        std::this_thread::yield();
    }
}

}  // namespace

ThreadPool::ThreadPool(int threads) : owner_(getpid()) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
    if (getpid() != owner_) {  // a forked child has the handles but not the threads
        for (std::thread& worker : workers_) worker.detach();
        return;
    }
    {
        std::lock_guard lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

ThreadPool::Turn::Turn(ThreadPool& pool) : pool_(pool), lock_(pool.busy_, std::defer_lock) {
    if (!pool.workers_.empty() && getpid() == pool.owner_ && lock_.try_lock()) pool.in_turn_ = true;
}

ThreadPool::Turn::~Turn() {
    if (lock_) pool_.in_turn_ = false;
}

void ThreadPool::Turn::run(int64_t first, int64_t count, const TaskRef& task) {
    if (!lock_ || count == 1) {
        for (int64_t i = first; i < first + count; ++i) task.call(task.object, i);
        return;
    }
    pool_.object_ = task.object;
    pool_.call_ = task.call;
    pool_.first_ = first;
    pool_.finished_ = 0;
    const Round before = pool_.round_;
    pool_.round_ = Round{before.number + 1u, static_cast<uint64_t>(count), 0};
    // Whoever falls asleep counts itself before it looks at the round, which was published before this looks at the
    // count: one of the two sees the other.
    if (pool_.sleeping_ > 0) {
        {
            std::lock_guard lock(pool_.mutex_);
        }
        pool_.wake_.notify_all();
    }
    pool_.share();
    pool_.wait_for_tasks(count);
}

void ThreadPool::work() {
    unsigned seen = 0;
    while (true) {
        wait_for_round(seen);
        if (stop_) return;
        seen = static_cast<Round>(round_).number;
        share();
    }
}

// Takes tasks while there are any. A round whose tasks are all taken, but not all done, stays the same: so what is read
// here before a task is taken belongs to it.
void ThreadPool::share() {
    Round round = round_;
    while (round.next < round.count) {
        const void* object = object_;
        const auto call = call_.load();
        const int64_t first = first_;
        const Round taken{round.number, round.count, round.next + 1u};
        if (!round_.compare_exchange_weak(round, taken)) continue;
        call(object, first + static_cast<int64_t>(round.next));
        if (finished_.fetch_add(1) + 1 == static_cast<int64_t>(round.count)) {
            {
                std::lock_guard lock(mutex_);
            }
            done_.notify_one();
        }
        round = round_;
    }
}

void ThreadPool::wait_for_round(unsigned seen) {
    const auto is_new = [&] { return stop_ || static_cast<Round>(round_).number != seen; };
    if (spin_until([&] { return is_new() || !in_turn_; }) && is_new()) return;
    std::unique_lock lock(mutex_);
    ++sleeping_;
    wake_.wait(lock, is_new);
    --sleeping_;
}

void ThreadPool::wait_for_tasks(int64_t count) {
    const auto are_done = [&] { return finished_ == count; };
    if (spin_until(are_done)) return;
    std::unique_lock lock(mutex_);
    done_.wait(lock, are_done);
}

}  // namespace cs
