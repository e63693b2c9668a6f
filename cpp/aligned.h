// A vector whose first element lies on a cache line, so that no aligned read of weights is split between two. One of
// megabytes lies in huge pages: rows of weights read here and there, each from another page of 4 KB, take most of their
// time to find these.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <vector>

#include "tensor.h"

namespace cs {

template <class T>
struct AlignedAllocator {
    using value_type = T;

    AlignedAllocator() = default;
    template <class U>
    AlignedAllocator(const AlignedAllocator<U>&) {}

    T* allocate(size_t count) {
        const size_t bytes = count * sizeof(T);
        void* memory = ::operator new(bytes, alignment(bytes));
#ifdef MADV_HUGEPAGE
        // Whole pages only, and a wish: what the system says to it changes nothing but the speed.
        if (bytes >= kHugePage) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
        return static_cast<T*>(memory);
    }
    void deallocate(T* memory, size_t count) { ::operator delete(memory, alignment(count * sizeof(T))); }

    friend bool operator==(const AlignedAllocator&, const AlignedAllocator&) { return true; }
    friend bool operator!=(const AlignedAllocator&, const AlignedAllocator&) { return false; }

  private:
    static constexpr size_t kHugePage = size_t{2} << 20;

    static std::align_val_t alignment(size_t bytes) {
        return std::align_val_t{bytes >= kHugePage ? kHugePage : kAlignment};
    }
};

template <class T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

}  // namespace cs
