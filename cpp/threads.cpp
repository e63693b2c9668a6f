#include "threads.h"

#include <unistd.h>

namespace cs {

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

void ThreadPool::run(int64_t count, TaskRef task) {
    const bool alone = count == 1 || workers_.empty() || getpid() != owner_;
    std::unique_lock<std::mutex> turn(busy_, std::defer_lock);
    if (alone || !turn.try_lock()) {
        for (int64_t i = 0; i < count; ++i) task(i);
        return;
    }
    {
        std::lock_guard lock(mutex_);
        task_ = task;
        count_ = count;
        next_ = 0;
        working_ = static_cast<int>(workers_.size());
        ++generation_;
    }
    wake_.notify_all();
    share();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return working_ == 0; });
}

void ThreadPool::work() {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (true) {
        wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
        if (stop_) return;
        seen = generation_;
        lock.unlock();
        share();
        lock.lock();
        if (--working_ == 0) done_.notify_one();
    }
}

void ThreadPool::share() {
    for (int64_t i = next_++; i < count_; i = next_++) task_(i);
}

}  // namespace cs
