// A vector whose first element lies on a cache line, so that no aligned read of weights is split between two.
#pragma once

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
        return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{kAlignment}));
    }
    void deallocate(T* memory, size_t) { ::operator delete(memory, std::align_val_t{kAlignment}); }

    friend bool operator==(const AlignedAllocator&, const AlignedAllocator&) { return true; }
    friend bool operator!=(const AlignedAllocator&, const AlignedAllocator&) { return false; }
};

template <class T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

}  // namespace cs
