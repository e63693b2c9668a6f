// What the engine moves: element types, shapes of one sample, and the buffers that hold a batch of them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cs {

enum class DType : uint8_t { f32, u8, s8, s32 };

constexpr size_t kAlignment = 64;  // of every buffer and of every sample in it
constexpr size_t kSlack = 64;      // bytes after every buffer that may be read, never written

constexpr size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

constexpr size_t element_bytes(DType dtype) { return dtype == DType::f32 || dtype == DType::s32 ? 4 : 1; }

// One sample of a tensor, NHWC; a vector has height = width = 1.
struct Tensor {
    DType dtype;
    int height, width, channels;

    int64_t size() const { return int64_t{height} * width * channels; }
    int64_t positions() const { return int64_t{height} * width; }
    size_t bytes() const { return static_cast<size_t>(size()) * element_bytes(dtype); }
    size_t stride() const { return round_up(bytes(), kAlignment); }  // from one sample to the next
};

}  // namespace cs
