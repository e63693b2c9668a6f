// Memory of a run: one block that holds every tensor and every scratch, handed out without locks.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include "tensor.h"

namespace cs {

struct FreeDeleter {
    void operator()(std::byte* memory) const { std::free(memory); }
};
using Arena = std::unique_ptr<std::byte, FreeDeleter>;

// Null when there is no memory.
inline Arena make_arena(size_t bytes) {
    return Arena(static_cast<std::byte*>(std::aligned_alloc(kAlignment, round_up(bytes, kAlignment))));
}

// Arenas at rest. Taking one allocates only when more runs than ever before are under way at once.
class ArenaPool {
  public:
    explicit ArenaPool(size_t bytes) : bytes_(bytes) {
        Arena first = make_arena(bytes);
        if (!first) throw std::bad_alloc();
        give(std::move(first));
    }
    ~ArenaPool() {
        for (auto& slot : slots_) Arena(slot.load());
    }
    ArenaPool(const ArenaPool&) = delete;
    ArenaPool& operator=(const ArenaPool&) = delete;

    Arena take() {
        for (auto& slot : slots_) {
            if (std::byte* memory = slot.exchange(nullptr)) return Arena(memory);
        }
        return make_arena(bytes_);
    }

    void give(Arena arena) {
        for (auto& slot : slots_) {
            std::byte* empty = nullptr;
            if (slot.compare_exchange_strong(empty, arena.get())) {
                arena.release();
                return;
            }
        }
    }

  private:
    size_t bytes_;
    std::array<std::atomic<std::byte*>, 64> slots_{};
};

}  // namespace cs
