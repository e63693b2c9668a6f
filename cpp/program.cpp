#include "program.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "guard.h"

namespace cs {
namespace {

constexpr size_t kChunkBytes = 256 * 1024;  // what a chunk may occupy, to stay in a second-level cache
constexpr int64_t kMaxChunk = 16;
constexpr size_t kMaxOperands = 64;

struct Placed {
    size_t begin, end;
};

// First gap of `bytes` between placed buffers.
size_t first_fit(std::vector<Placed> placed, size_t bytes) {
    std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) { return a.begin < b.begin; });
    size_t at = 0;
    for (const Placed& other : placed) {
        if (at + bytes <= other.begin) break;
        at = std::max(at, other.end);
    }
    return at;
}

}  // namespace

Program::Program(std::vector<ProgramTensor> tensors, std::vector<ProgramStep> steps, int output, int threads, bool keep)
    : tensors_(std::move(tensors)), steps_(std::move(steps)), output_(output) {
    size_t sample = 0;
    for (const ProgramTensor& tensor : tensors_) sample += tensor.type.stride();
    has_parts_ = std::any_of(steps_.begin(), steps_.end(), [](const ProgramStep& step) { return step.split; });
    chunk_ = std::clamp<int64_t>(kChunkBytes / std::max<size_t>(1, sample), 1, kMaxChunk);
    plan_memory(keep);
    arenas_ = std::make_unique<ArenaPool>(arena_bytes_);
    pool_ = std::make_unique<ThreadPool>(threads);
}

// Tensors whose lives do not overlap share memory. A tensor lives from the step that makes it to the last that reads
// it.
void Program::plan_memory(bool keep) {
    const int end = static_cast<int>(steps_.size());
    std::vector<int> last(tensors_.size(), keep ? end : -1);
    for (int i = 0; i < end; ++i) {
        for (int input : steps_[i].inputs) {
            int& home = last[tensors_[input].home];
            home = std::max(home, i);
        }
        last[steps_[i].output] = std::max(last[steps_[i].output], i);
    }
    last[tensors_[output_].home] = end;

    offsets_.assign(tensors_.size(), 0);
    std::vector<int> live;
    size_t scratch = 0;
    scratch_offset_ = 0;
    for (int i = 0; i < end; ++i) {
        live.erase(std::remove_if(live.begin(), live.end(), [&](int tensor) { return last[tensor] < i; }), live.end());
        std::vector<Placed> placed;
        for (int tensor : live) placed.push_back({offsets_[tensor], offsets_[tensor] + buffer_bytes(tensor)});
        const int output = steps_[i].output;
        offsets_[output] = first_fit(std::move(placed), buffer_bytes(output));
        live.push_back(output);
        scratch_offset_ = std::max(scratch_offset_, round_up(offsets_[output] + buffer_bytes(output), kAlignment));
        scratch = std::max(scratch, steps_[i].step->scratch_bytes());
    }
    for (size_t t = 0; t < tensors_.size(); ++t) offsets_[t] = offsets_[tensors_[t].home];
    arena_bytes_ = scratch_offset_ + round_up(scratch, kAlignment) + kSlack;
    for (const ProgramStep& step : steps_) {
        auto& operands = operands_.emplace_back();
        for (int input : step.inputs) operands.push_back(offsets_[input]);
    }
}

void Program::run_step(size_t index, std::byte* arena, const std::byte* x, size_t caller_bytes, int64_t samples,
                       ThreadPool::Turn* turn) const {
    const std::byte* inputs[kMaxOperands];  // few are used: zeros for all would take longer than the rest of this
    inputs[0] = x;
    const std::vector<size_t>& operands = operands_[index];
    for (size_t i = 0; i < operands.size(); ++i) inputs[i] = arena + operands[i];
    const ProgramStep& step = steps_[index];
    const Call call{inputs, arena + offsets_[step.output], arena + scratch_offset_, samples, caller_bytes};
    if (turn && step.split) {
        turn->run(step.split->parts(), [&](int64_t part) { step.split->run_part(call, part); });
    } else {
        step.step->run(call);
    }
}

void Program::run_chunk(std::byte* arena, const std::byte* x, size_t caller_bytes, int64_t samples,
                        ThreadPool::Turn* turn) const {
    for (size_t i = 0; i < steps_.size(); ++i) run_step(i, arena, x, caller_bytes, samples, turn);
}

void Program::copy_out(int tensor, const std::byte* arena, std::byte* y, int64_t samples) const {
    const Tensor& type = tensors_[tensor].type;
    for (int64_t n = 0; n < samples; ++n) {
        std::memcpy(y + n * type.bytes(), arena + offsets_[tensor] + n * type.stride(), type.bytes());
    }
}

void Program::run(const std::byte* x, size_t caller_bytes, std::byte* y, int64_t batch) const {
    if (batch == 0) return;
    if (has_parts_ && batch < pool_->threads()) {
        run_shared(x, caller_bytes, y, batch);
    } else {
        run_batch(x, caller_bytes, y, batch);
    }
}

// Too few samples to give every thread one: they share the large layers of all.
void Program::run_shared(const std::byte* x, size_t caller_bytes, std::byte* y, int64_t batch) const {
    Arena arena = arenas_->take();
    if (!arena) throw std::bad_alloc();
    ThreadPool::Turn turn(*pool_);
    for (int64_t first = 0; first < batch; first += chunk_) {
        const int64_t samples = std::min(chunk_, batch - first);
        run_chunk(arena.get(), x + first * caller_bytes, caller_bytes, samples, &turn);
        copy_out(output_, arena.get(), y + first * output().bytes(), samples);
    }
    arenas_->give(std::move(arena));
}

// Threads share the samples.
void Program::run_batch(const std::byte* x, size_t caller_bytes, std::byte* y, int64_t batch) const {
    const int64_t share = (batch + pool_->threads() - 1) / pool_->threads();
    const int64_t chunk = std::min(chunk_, share);
    std::atomic<bool> out_of_memory{false};
    ThreadPool::Turn(*pool_).run((batch + chunk - 1) / chunk, [&](int64_t task) {
        const int64_t first = task * chunk, samples = std::min(chunk, batch - first);
        Arena arena = arenas_->take();
        if (!arena) {
            out_of_memory = true;
            return;
        }
        run_chunk(arena.get(), x + first * caller_bytes, caller_bytes, samples);
        copy_out(output_, arena.get(), y + first * output().bytes(), samples);
        arenas_->give(std::move(arena));
    });
    if (out_of_memory) throw std::bad_alloc();
}

void Program::trace(const std::byte* x, size_t caller_bytes, const std::vector<std::byte*>& results,
                    int64_t batch) const {
    Arena arena = arenas_->take();
    if (!arena) throw std::bad_alloc();
    for (int64_t first = 0; first < batch; first += chunk_) {
        const int64_t samples = std::min(chunk_, batch - first);
        run_chunk(arena.get(), x + first * caller_bytes, caller_bytes, samples);
        for (size_t t = 0; t < tensors_.size(); ++t) {
            copy_out(static_cast<int>(t), arena.get(), results[t] + first * tensors_[t].type.bytes(), samples);
        }
    }
    arenas_->give(std::move(arena));
}

bool Program::may_write(size_t step, size_t offset, int64_t samples) const {
    const size_t begin = offsets_[steps_[step].output];
    const Tensor& output = tensors_[steps_[step].output].type;
    const bool in_scratch = offset >= scratch_offset_ && offset < scratch_offset_ + steps_[step].step->scratch_bytes();
    const bool in_output = offset >= begin && offset < begin + samples * output.stride();
    return in_scratch || (in_output && (offset - begin) % output.stride() < output.bytes());
}

std::vector<std::string> Program::audit(const std::byte* x, size_t caller_bytes, std::byte* y, int64_t batch,
                                        std::byte poison) const {
    std::vector<std::string> guilty;
    const int64_t samples = std::min(batch, chunk_);
    const GuardedMemory arena(arena_bytes_, kAlignment), input(samples * caller_bytes, 1);
    std::memset(arena.get(), static_cast<int>(poison), arena_bytes_);
    if (samples) std::memcpy(input.get(), x, samples * caller_bytes);
    for (size_t i = 0; i < steps_.size(); ++i) {
        const std::vector<std::byte> before(arena.get(), arena.get() + arena_bytes_);
        run_step(i, arena.get(), input.get(), caller_bytes, samples);
        for (size_t at = 0; at < arena_bytes_; ++at) {
            if (before[at] == arena.get()[at] || may_write(i, at, samples)) continue;
            guilty.push_back(steps_[i].node + ": " + steps_[i].kernel);
            break;
        }
    }
    copy_out(output_, arena.get(), y, samples);
    return guilty;
}

std::vector<double> Program::profile(const std::byte* x, size_t caller_bytes, std::byte* y, int64_t batch) const {
    using Clock = std::chrono::steady_clock;
    std::vector<double> seconds(steps_.size());
    Arena arena = arenas_->take();
    if (!arena) throw std::bad_alloc();
    for (int64_t first = 0; first < batch; first += chunk_) {
        const int64_t samples = std::min(chunk_, batch - first);
        for (size_t i = 0; i < steps_.size(); ++i) {
            const auto start = Clock::now();
            run_step(i, arena.get(), x + first * caller_bytes, caller_bytes, samples);
            seconds[i] += std::chrono::duration<double>(Clock::now() - start).count();
        }
        copy_out(output_, arena.get(), y + first * output().bytes(), samples);
    }
    arenas_->give(std::move(arena));
    return seconds;
}

}  // namespace cs
