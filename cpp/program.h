// A network compiled into steps over one arena, run by one call.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arena.h"
#include "kernels/kernel.h"
#include "planner.h"
#include "split.h"
#include "tensor.h"
#include "threads.h"

namespace cs {

// A tensor and the one whose memory it shares: itself, or the source of a reshape.
struct ProgramTensor {
    Tensor type;
    int home;
};

struct ProgramStep {
    std::string node;
    std::unique_ptr<Step> step;
    const char* kernel;
    Tier tier;
    Mode mode;
    std::vector<int> inputs;  // tensors; empty for the step that reads the caller's array
    int output;
    const SplitStep* split;        // the step, if it has parts that threads can share
    std::vector<Timing> measured;  // the kernels that were tried for a layer, the fastest first
};

class Program {
  public:
    // keep: give every tensor memory of its own, so that trace() finds them all.
    Program(std::vector<ProgramTensor> tensors, std::vector<ProgramStep> steps, int output, int threads, bool keep);

    const std::vector<ProgramTensor>& tensors() const { return tensors_; }
    const std::vector<ProgramStep>& steps() const { return steps_; }
    const Tensor& output() const { return tensors_[output_].type; }
    size_t arena_bytes() const { return arena_bytes_; }
    int64_t chunk() const { return chunk_; }

    // x and y are contiguous arrays of `batch` samples; caller_bytes is the size of one sample of x.
    void run(const std::byte* x, size_t caller_bytes, std::byte* y, int64_t batch) const;

    // As run(), on one thread; copies every tensor to `results[tensor]`, contiguous.
    void trace(const std::byte* x, size_t caller_bytes, const std::vector<std::byte*>& results, int64_t batch) const;

    // As run(), on one thread; seconds spent in each step.
    std::vector<double> profile(const std::byte* x, size_t caller_bytes, std::byte* y, int64_t batch) const;

    // For tests: runs at most one chunk step by step over guarded memory filled with `poison`, writes the results to y,
    // and returns the steps that wrote anywhere but to their output's samples and their own scratch.
    std::vector<std::string> audit(const std::byte* x, size_t caller_bytes, std::byte* y, int64_t batch,
                                   std::byte poison) const;

  private:
    void plan_memory(bool keep);
    bool may_write(size_t step, size_t offset, int64_t samples) const;
    size_t buffer_bytes(int tensor) const { return tensors_[tensor].type.stride() * chunk_ + kSlack; }
    // turn: threads share the steps that have parts.
    void run_chunk(std::byte* arena, const std::byte* x, size_t caller_bytes, int64_t samples,
                   ThreadPool::Turn* turn = nullptr) const;
    void run_step(size_t index, std::byte* arena, const std::byte* x, size_t caller_bytes, int64_t samples,
                  ThreadPool::Turn* turn = nullptr) const;
    void run_batch(const std::byte* x, size_t caller_bytes, std::byte* y, int64_t batch) const;
    void run_shared(const std::byte* x, size_t caller_bytes, std::byte* y, int64_t batch) const;
    void copy_out(int tensor, const std::byte* arena, std::byte* y, int64_t samples) const;

    std::vector<ProgramTensor> tensors_;
    std::vector<ProgramStep> steps_;
    std::vector<std::vector<size_t>> operands_;  // per step, offsets of its inputs in the arena
    std::vector<size_t> offsets_;                // per tensor
    int output_;
    bool has_parts_;
    int64_t chunk_;  // samples that pass through the steps together
    size_t scratch_offset_, arena_bytes_;
    mutable std::unique_ptr<ArenaPool> arenas_;
    mutable std::unique_ptr<ThreadPool> pool_;
};

}  // namespace cs
