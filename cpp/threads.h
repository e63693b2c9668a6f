// A small pool of threads that share out the tasks of one call.
//
// Ours and not OpenMP's, because the workers must sleep when idle, survive a fork, and never oversubscribe: a call that
// finds the pool busy runs its tasks itself.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include <sys/types.h>

namespace cs {

class ThreadPool {
  public:
    explicit ThreadPool(int threads);  // the calling thread counts as one
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls task(0) ... task(count - 1), each once, and returns when all have. Tasks must not throw.
    template <class Task>
    void run(int64_t count, const Task& task) {
        run(count, {&task, [](const void* object, int64_t i) { (*static_cast<const Task*>(object))(i); }});
    }

  private:
    // A callable, by reference: std::function might allocate.
    struct TaskRef {
        const void* object = nullptr;
        void (*call)(const void*, int64_t) = nullptr;
        void operator()(int64_t i) const { call(object, i); }
    };

    void run(int64_t count, TaskRef task);
    void work();
    void share();

    std::vector<std::thread> workers_;
    std::mutex busy_;  // held by the call that the pool works for
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    TaskRef task_;
    std::atomic<int64_t> next_{0};
    int64_t count_ = 0;
    uint64_t generation_ = 0;
    int working_ = 0;
    bool stop_ = false;
    pid_t owner_;
};

}  // namespace cs
