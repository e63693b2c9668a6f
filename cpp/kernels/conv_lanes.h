// Convolution, dense and sparse-dense, int8 and float32: one body for the tiers without 8-bit dot products. A file that
// includes it includes the vocabulary of its tier first (avx2_lanes.h, avx512_lanes.h).
//
// Why it is fast: the lanes are kernels. A vector holds the weights of one unit of inputs for one block of kernels; the
// unit of one position, four bytes, is broadcast from memory, which costs a load and no vector port. A unit is one
// float32, multiplied and added by one instruction, or two int8 widened to 16 bits, which VPMADDWD multiplies and adds
// to 32 bits without ever saturating: 1.5 instructions in place of VPDPBUSD's half. A tile of up to 12 positions (28
// with 32 registers) stays in registers, so that a weight is loaded once per tile. Units in which a block has no weight
// are not in its list, which holds offsets into the input: absent weights cost nothing, present ones no index.
//
// Units never straddle the lines of a window: the last one of an odd line has a weight of zero.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../aligned.h"
#include "arithmetic.h"
#include "dot_layout.h"

namespace cs {
namespace {

// The sums of a tile are an array only in name: every loop over them is unrolled, or they would live in memory.
#define CS_UNROLL _Pragma("GCC unroll 32")

// Everything that the inner loop needs, plain.
struct Tile {
    const std::byte* input;   // the tile's first position
    int64_t row_stride;       // bytes to the next row of positions
    int64_t column_stride;    // bytes to the next position
    const int32_t* offset;    // of each unit in the list, in bytes
    const std::byte* weight;  // [count, kLanes] units of four bytes
    int count;
    const int32_t* bias;  // [kLanes], the bits of what sums begin with
};

// Writes the sums [ROWS][COLUMNS] of a tile.
template <class P, int ROWS, int COLUMNS>
CS_TIER void accumulate(const Tile& t, typename P::Vector* sums) {
    typename P::Vector sum[ROWS][COLUMNS];
    CS_UNROLL for (auto& row : sum) { CS_UNROLL for (auto& one : row) one = P::load(t.bias); }
    for (int n = 0; n < t.count; ++n) {
        const auto weight = P::load(t.weight + int64_t{n} * kLanes * 4);
        const std::byte* unit = t.input + t.offset[n];
        CS_UNROLL for (int r = 0; r < ROWS; ++r, unit += t.row_stride) {
            CS_UNROLL for (int c = 0; c < COLUMNS; ++c) {
                sum[r][c] = P::multiply_add(sum[r][c], P::broadcast(unit + c * t.column_stride), weight);
            }
        }
    }
    CS_UNROLL for (int r = 0; r < ROWS; ++r) {
        CS_UNROLL for (int c = 0; c < COLUMNS; ++c) P::store(sums + r * COLUMNS + c, sum[r][c]);
    }
}

template <class P>
using Accumulate = void (*)(const Tile&, typename P::Vector*);

// Pooled tiles are two rows of an even number of columns.
template <class P, int... kCounts>
Accumulate<P> accumulate_of(int rows, int columns, std::integer_sequence<int, kCounts...>) {
    static constexpr Accumulate<P> plain[] = {accumulate<P, 1, kCounts + 1>...};
    static constexpr Accumulate<P> pooled[] = {accumulate<P, 2, kCounts / 4 * 2 + 2>...};
    return rows == 1 ? plain[columns - 1] : pooled[(columns / 2 - 1) * 4];
}

// Where the results of a tile go.
struct Destination {
    std::byte* output;    // first position's block of kernels
    int64_t pixel_bytes;  // from one output position to the next
    int columns;          // positions across the tile
    int positions;        // output positions of the tile
    int kernels;          // kernels of the block that exist
    const float* scale;   // [kLanes], of 8-bit results
    DType dtype;
    bool in_float;  // how it is requantized
};

// The sums [ROWS][columns] of a tile on their way out, the largest of each 2 x 2 positions if there are two rows.
template <class P, int ROWS>
CS_TIER void finish(const typename P::Vector* sums, const Destination& d) {
    std::byte* to = d.output;
    for (int i = 0; i < d.positions; ++i, to += d.pixel_bytes, sums += ROWS) {
        auto value = P::load(sums);
        if constexpr (ROWS == 2) {
            value = P::max(value, P::load(sums + 1));
            value = P::max(value, P::max(P::load(sums + d.columns), P::load(sums + d.columns + 1)));
        }
        P::write(to, d.kernels, value, d.scale, d.dtype, d.in_float);
    }
}

// For every block of kernels, the units in which any of them has a weight.
template <class P>
struct UnitLists {
    int blocks;
    std::vector<int32_t> begin;                // [blocks + 1]
    std::vector<int32_t> offset;               // [n], bytes from a window's first input
    AlignedVector<typename P::Weight> weight;  // [n, kLanes, kInputs]
};

// line: inputs in a line of the image. all: list every unit, as a dense layer does.
template <class P>
UnitLists<P> unit_lists(const LayerSpec& s, int64_t line, bool all) {
    const auto* dense = static_cast<const typename P::Source*>(s.dense);
    const int width = s.window.kernel_w * s.input.channels;   // of a line of the window
    const int units = (width + P::kInputs - 1) / P::kInputs;  // likewise
    UnitLists<P> out{(s.kernels + kLanes - 1) / kLanes, {}, {}, {}};
    for (int block = 0; block < out.blocks; ++block) {
        out.begin.push_back(static_cast<int32_t>(out.offset.size()));
        for (int unit = 0; unit < s.window.kernel_h * units; ++unit) {
            const int ky = unit / units, first = unit % units * P::kInputs;
            const size_t start = out.weight.size();
            bool any = all;
            for (int i = 0; i < kLanes * P::kInputs; ++i) {
                const int kernel = block * kLanes + i / P::kInputs, x = first + i % P::kInputs;
                const bool exists = kernel < s.kernels && x < width;
                out.weight.push_back(exists ? dense[int64_t{ky * width + x} * s.kernels + kernel] : 0);
                any |= out.weight.back() != 0;
            }
            if (any) {
                out.offset.push_back(static_cast<int32_t>((ky * line + first) * sizeof(typename P::Input)));
            } else {
                out.weight.resize(start);
            }
        }
    }
    out.begin.push_back(static_cast<int32_t>(out.offset.size()));
    return out;
}

template <class P>
class Conv final : public Step {
  public:
    Conv(const LayerSpec& spec, bool all)
        : input_(spec.input),
          output_(spec.output),
          window_(spec.window),
          kernels_(spec.kernels),
          pool_(spec.pool_h),
          height_(
              std::max(input_.height + window_.pad_top, (spec.conv_height - 1) * window_.stride_h + window_.kernel_h)),
          width_(
              std::max(input_.width + window_.pad_left, (spec.conv_width - 1) * window_.stride_w + window_.kernel_w)),
          copied_(P::kInputs == 2 || height_ > input_.height || width_ > input_.width),
          lists_(unit_lists<P>(spec, int64_t{width_} * input_.channels, all)),
          bias_(padded_bias(spec)),
          scale_(padded_scale(spec)),
          in_float_(requantizes_in_float(spec)) {
        if (!is_pointwise()) {
            rows_ = output_.height;
            positions_ = output_.width;
        } else {  // lines follow upon one another: one row of all positions fills tiles best
            rows_ = 1;
            positions_ = static_cast<int>(output_.positions());
        }
        choose_tiles();
    }

    size_t scratch_bytes() const override { return copied_ ? line_bytes() * height_ + kSlack : 0; }

    void run(const Call& call) const noexcept override {
        const RoundDown rounding(in_float_);
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* image = sample<std::byte>(call.inputs[0], input_, n);
            if (copied_) image = copy(image, call.scratch);
            auto* out = sample<std::byte>(call.output, output_, n);
            for (int y = 0; y < rows_; ++y) run_row(image, y, out);
        }
    }

  private:
    using Input = typename P::Input;

    bool is_pointwise() const {
        return window_.kernel_h * window_.kernel_w * window_.stride_h * window_.stride_w * pool_ == 1 &&
               height_ == input_.height && width_ == input_.width;
    }

    int64_t line_bytes() const { return int64_t{width_} * input_.channels * sizeof(Input); }

    // Tiles of nearly equal width. The last one begins early rather than end beyond the row.
    void choose_tiles() {
        const int limit = kTile / pool_, wanted = positions_ * pool_;
        const int tiles = (wanted + limit - 1) / limit;
        columns_ = static_cast<int>(round_up((wanted + tiles - 1) / tiles, pool_));
        accumulate_ = accumulate_of<P>(pool_, columns_, std::make_integer_sequence<int, kTile>());
    }

    // The image with its padding, as the units are multiplied.
    const std::byte* copy(const std::byte* image, std::byte* to) const {
        if constexpr (std::is_same_v<Input, float>) {
            copy_lines<float>(image, to);
        } else if (input_.dtype == DType::u8) {
            copy_lines<uint8_t>(image, to);
        } else {
            copy_lines<int8_t>(image, to);
        }
        return to;
    }

    template <class X>
    CS_TIER void copy_lines(const std::byte* image, std::byte* to) const {
        if (height_ > input_.height || width_ > input_.width) std::memset(to, 0, line_bytes() * height_);
        std::memset(to + line_bytes() * height_, 0, sizeof(int32_t));  // the last unit may reach beyond its line
        const auto* from = reinterpret_cast<const X*>(image);
        const int64_t size = int64_t{input_.width} * input_.channels;
        for (int y = 0; y < input_.height; ++y, from += size) {
            auto* line = reinterpret_cast<Input*>(to + (y + window_.pad_top) * line_bytes());
            line += window_.pad_left * input_.channels;
            for (int64_t i = 0; i < size; ++i) line[i] = from[i];
        }
    }

    void run_row(const std::byte* image, int y, std::byte* out) const {
        const int64_t position = window_.stride_w * input_.channels * static_cast<int64_t>(sizeof(Input));
        const int64_t row_stride = window_.stride_h * line_bytes();
        const int64_t pixel = kernels_ * static_cast<int64_t>(element_bytes(output_.dtype));
        const std::byte* from = image + int64_t{y} * pool_ * row_stride;
        for (int first = 0; first < positions_; first += columns_ / pool_) {
            const int x = std::min(first, positions_ - columns_ / pool_);
            run_blocks({from + int64_t{x} * pool_ * position, row_stride, position, nullptr, nullptr, 0, nullptr},
                       out + (int64_t{y} * positions_ + x) * pixel, pixel);
        }
    }

    CS_TIER void run_blocks(Tile tile, std::byte* to, int64_t pixel) const {
        const auto element = static_cast<int64_t>(element_bytes(output_.dtype));
        typename P::Vector sums[kTile];
        for (int b = 0; b < lists_.blocks; ++b) {
            const int begin = lists_.begin[b];
            tile.offset = lists_.offset.data() + begin;
            tile.weight = reinterpret_cast<const std::byte*>(lists_.weight.data()) + int64_t{begin} * kLanes * 4;
            tile.count = lists_.begin[b + 1] - begin;
            tile.bias = bias_.data() + b * kLanes;
            accumulate_(tile, sums);
            const Destination d{to + b * kLanes * element,
                                pixel,
                                columns_,
                                columns_ / pool_,
                                std::min(kLanes, kernels_ - b * kLanes),
                                scale_.empty() ? nullptr : scale_.data() + b * kLanes,
                                output_.dtype,
                                in_float_};
            pool_ == 2 ? finish<P, 2>(sums, d) : finish<P, 1>(sums, d);
        }
    }

    Tensor input_, output_;
    Window window_;
    int kernels_, pool_;
    int height_, width_;  // of the image with its padding
    bool copied_;
    int rows_, positions_;  // of results: as the output has them, or all in one row
    int columns_;           // positions across a tile, before pooling
    UnitLists<P> lists_;
    AlignedVector<int32_t> bias_;
    AlignedVector<float> scale_;
    bool in_float_;
    Accumulate<P> accumulate_;
};

std::unique_ptr<Step> make_conv(const LayerSpec& s, bool all) {
    if (is_linear(s) || s.groups > 1 || s.pool_h != s.pool_w || s.pool_h > 2) return nullptr;
    if (s.input.dtype == DType::f32) return std::make_unique<Conv<Floats>>(s, all);
    return kIsExact || requantizes_exactly(s) ? std::make_unique<Conv<Pairs>>(s, all) : nullptr;
}

}  // namespace
}  // namespace cs
