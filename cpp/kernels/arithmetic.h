// The engine's arithmetic on single numbers, exactly as csengine/reference.py defines it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernel.h"

namespace cs {

// The 64-bit product of the requantization, rounded half up, shifted and clamped.
template <class Out>
inline Out round_shift(int64_t product, int shift) {
    const int64_t rounded = (product + (int64_t{1} << (shift - 1))) >> shift;
    return static_cast<Out>(std::clamp<int64_t>(rounded, std::numeric_limits<Out>::min(),  //
                                                std::numeric_limits<Out>::max()));
}

template <class Out>
inline Out requantize(int64_t acc, uint16_t multiplier, int shift) {
    return round_shift<Out>(acc * multiplier, shift);
}

// The type that sums of products of T are held in.
template <class T>
using Accumulator = std::conditional_t<std::is_floating_point_v<T>, float, int32_t>;

// Calls `visit(T{})` with the C++ type of a DType.
template <class Visit>
auto with_type(DType dtype, Visit&& visit) {
    switch (dtype) {
        case DType::u8:
            return visit(uint8_t{});
        case DType::s8:
            return visit(int8_t{});
        case DType::s32:
            return visit(int32_t{});
        default:
            return visit(float{});
    }
}

// Calls `visit` with inputs of bytes or float32 as what they are; P is what they are multiplied as.
template <class P, class Visit>
void with_elements(const std::byte* image, DType dtype, Visit&& visit) {
    if constexpr (std::is_same_v<typename P::Input, float>) {
        visit(reinterpret_cast<const float*>(image));
    } else if (dtype == DType::u8) {
        visit(reinterpret_cast<const uint8_t*>(image));
    } else {
        visit(reinterpret_cast<const int8_t*>(image));
    }
}

template <class T>
const T* sample(const std::byte* base, const Tensor& tensor, int64_t index) {
    return reinterpret_cast<const T*>(base + static_cast<size_t>(index) * tensor.stride());
}

template <class T>
T* sample(std::byte* base, const Tensor& tensor, int64_t index) {
    return reinterpret_cast<T*>(base + static_cast<size_t>(index) * tensor.stride());
}

}  // namespace cs
