// An image with its padding, for kernels that read whole windows without looking where the image ends.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernel.h"

namespace cs {

struct PaddedImage {
    int height, width, channels;  // with padding on all sides that the windows reach
    bool copied;                  // whether that differs from the image itself
    uint8_t zero;                 // what 0 becomes: 0x80 where int8 is shifted to uint8

    PaddedImage(const LayerSpec& s, bool shifted) : channels(s.input.channels), zero(shifted ? 0x80 : 0) {
        height = padded_height(s);
        width = padded_width(s);
        copied = shifted || height > s.input.height || width > s.input.width;
    }

    int64_t line_bytes() const { return int64_t{width} * channels; }
    size_t bytes() const { return copied ? round_up(line_bytes() * height + kSlack, kAlignment) : 0; }

    // The padded image: a copy in `to`, or the image itself where no copy is needed.
    const std::byte* fill(const Tensor& image, const Window& window, const std::byte* from, std::byte* to) const {
        if (!copied) return from;
        std::memset(to, zero, line_bytes() * height);
        const int64_t row_bytes = int64_t{image.width} * channels;
        for (int y = 0; y < image.height; ++y, from += row_bytes) {
            std::byte* line = to + (y + window.pad_top) * line_bytes() + window.pad_left * channels;
            for (int64_t i = 0; i < row_bytes; ++i) line[i] = from[i] ^ static_cast<std::byte>(zero);
        }
        return to;
    }
};

}  // namespace cs
