// The windows of a pooling, whatever the vectors: a tier brings what it does with each.
#pragma once

#include <algorithm>

#include "arithmetic.h"

namespace cs {

// The pixels of a window that lie in the image.
struct Patch {
    const std::byte* first;
    int64_t line_bytes, pixel_bytes;
    int rows, columns;

    int area() const { return rows * columns; }
};

inline Patch patch_of(const PoolSpec& spec, const std::byte* image, int y, int x) {
    const Tensor& in = spec.input;
    const Window& w = spec.window;
    const int top = y * w.stride_h - w.pad_top, left = x * w.stride_w - w.pad_left;
    const int first_row = std::max(0, top), first_column = std::max(0, left);
    const int64_t pixel = in.channels * static_cast<int64_t>(element_bytes(in.dtype)), line = in.width * pixel;
    return {image + first_row * line + first_column * pixel, line, pixel,
            std::min(in.height, top + w.kernel_h) - first_row, std::min(in.width, left + w.kernel_w) - first_column};
}

// Calls `reduce(patch, out)` for every result.
template <class Reduce>
void for_each_window(const PoolSpec& spec, const Call& call, const Reduce& reduce) {
    const int64_t step = spec.output.channels * static_cast<int64_t>(element_bytes(spec.output.dtype));
    for (int64_t n = 0; n < call.samples; ++n) {
        const auto* image = sample<std::byte>(call.inputs[0], spec.input, n);
        auto* out = sample<std::byte>(call.output, spec.output, n);
        for (int y = 0; y < spec.output.height; ++y) {
            for (int x = 0; x < spec.output.width; ++x, out += step) reduce(patch_of(spec, image, y, x), out);
        }
    }
}

}  // namespace cs
