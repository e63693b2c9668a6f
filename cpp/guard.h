// For tests: memory between two pages that nobody may touch, where a stray read ends the process, too.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <new>

#include "tensor.h"

namespace cs {

// Ends where the second page begins, but for what `alignment` makes it begin earlier.
class GuardedMemory {
  public:
    GuardedMemory(size_t bytes, size_t alignment)
        : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))), bytes_(round_up(bytes, page_)) {
        void* mapped = mmap(nullptr, bytes_ + 2 * page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) throw std::bad_alloc();
        first_ = static_cast<std::byte*>(mapped);
        mprotect(first_, page_, PROT_NONE);
        mprotect(first_ + page_ + bytes_, page_, PROT_NONE);
        memory_ = first_ + page_ + bytes_ - round_up(bytes, alignment);
    }
    ~GuardedMemory() { munmap(first_, bytes_ + 2 * page_); }
    GuardedMemory(const GuardedMemory&) = delete;
    GuardedMemory& operator=(const GuardedMemory&) = delete;

    std::byte* get() const { return memory_; }

  private:
    size_t page_, bytes_;
    std::byte *first_, *memory_;
};

}  // namespace cs
