// A small pool of threads that share out the tasks of one call.
//
// Ours and not OpenMP's, because the workers must sleep when idle, survive a fork, and never oversubscribe: a call that
// finds the pool busy runs its tasks itself. To wake a thread takes tens of microseconds: no call waits for a worker
// that has not begun a task, and during a call, which may have tasks many times, workers stay awake.
#pragma once

#include <algorithm>
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

  private:
    // A callable, by reference: std::function might allocate.
    struct TaskRef {
        const void* object;
        void (*call)(const void*, int64_t);
    };
    static constexpr int64_t kMostTasks = (1 << 20) - 1;  // of a round

  public:
    // A call's time with the pool, or alone if the pool is busy.
    class Turn {
      public:
        explicit Turn(ThreadPool& pool);
        ~Turn();
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;

        // Calls task(0) ... task(count - 1), each once, and returns when all have. Tasks must not throw.
        template <class Task>
        void run(int64_t count, const Task& task) {
            const TaskRef by_reference{&task, [](const void* t, int64_t i) { (*static_cast<const Task*>(t))(i); }};
            for (int64_t first = 0; first < count; first += kMostTasks) {
                run(first, std::min(kMostTasks, count - first), by_reference);
            }
        }

      private:
        void run(int64_t first, int64_t count, const TaskRef& task);

        ThreadPool& pool_;
        std::unique_lock<std::mutex> lock_;
    };

  private:
    // What is to be done, in one word, so that whoever takes a task takes it of the round it has looked at.
    struct Round {
        uint64_t number : 24, count : 20, next : 20;
    };

    void work();
    void share();
    void wait_for_round(unsigned seen);
    void wait_for_tasks(int64_t count);

    std::vector<std::thread> workers_;
    std::mutex busy_;  // held by the call that the pool works for
    std::atomic<bool> in_turn_{false}, stop_{false};
    std::atomic<Round> round_{Round{}};
    std::atomic<const void*> object_{nullptr};  // of the round; they change when all its tasks are done
    std::atomic<void (*)(const void*, int64_t)> call_{nullptr};
    std::atomic<int64_t> first_{0}, finished_{0};
    std::mutex mutex_;  // of what sleeps
    std::condition_variable wake_, done_;
    std::atomic<int> sleeping_{0};
    pid_t owner_;
};

}  // namespace cs
