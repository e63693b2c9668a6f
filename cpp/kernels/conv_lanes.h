// Convolution, dense and sparse-dense, int8 and float32: one body for the tiers without 8-bit dot products. A file that
// includes it includes the vocabulary of its tier first (avx2_lanes.h, avx512_lanes.h).
//
// Why it is fast: the lanes are kernels. A vector holds the weights of one unit of inputs for one block of kernels; the
// unit of one position, four bytes, is broadcast from memory, which costs a load and no vector port. A unit is one
// float32, multiplied and added by one instruction, or two int8 widened to 16 bits, which VPMADDWD multiplies and adds
// to 32 bits without ever saturating: 1.5 instructions in place of VPDPBUSD's half. A tile of up to 12 sums (28 with 32
// registers) stays in registers: 12 positions of one vector of kernels or, where it pays (kWide), six of two sums,
// which share what is broadcast: of two vectors of kernels or, in units of four int8, of the two halves of one. Units
// in which a block has no weight are not in its list, which holds offsets into the input: absent weights cost nothing,
// present ones no index.
//
// A block goes through the tiles of a span of results, whose sums are then requantized together, in whole vectors of
// bytes. The lines of the image that a span reads are padded and widened just before, and lie in the nearest caches.
//
// A unit begins at any input with a weight, but never straddles the lines of a window: the last one of a line may have
// a weight of zero.
#pragma once

#include <algorithm>
#include <array>
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

// A block of kernels and what its units multiply.
struct Block {
    const int32_t* offset;    // of each unit in the list, in bytes
    const std::byte* weight;  // [count, VECTORS, kLanes] units of four bytes
    int count;
    const int32_t* bias;    // [VECTORS, kLanes], the bits of what sums begin with
    int64_t row_stride;     // bytes to the next row of positions
    int64_t column_stride;  // bytes to the next position
    int64_t skipped;        // bytes of the image before those that are held
};

struct Tile {
    int64_t input;  // its first position, in bytes from the image
    int64_t first;  // of its results, among those of the span
};

// Writes the sums [COLUMNS, VECTORS] of a row of positions, or the largest of each 2 x 2 positions of two rows.
template <class P, int VECTORS, int ROWS, int COLUMNS>
CS_TIER inline void sum_tile(const Block& block, const std::byte* input, typename P::Vector* sums) {
    constexpr int kSums = VECTORS * P::kParts;
    typename P::Vector sum[ROWS][COLUMNS][kSums], weight[kSums];
    CS_UNROLL for (int v = 0; v < VECTORS; ++v) P::begin(block.bias + v * kLanes, weight + v * P::kParts);
    CS_UNROLL for (auto& row : sum) {
        CS_UNROLL for (auto& one : row) { CS_UNROLL for (int v = 0; v < kSums; ++v) one[v] = weight[v]; }
    }
    for (int n = 0; n < block.count; ++n) {
        const std::byte* from = block.weight + int64_t{n} * (kSums * kLanes * 4);
        CS_UNROLL for (int v = 0; v < kSums; ++v) weight[v] = P::load(from + v * kLanes * 4);
        const std::byte* unit = input + block.offset[n];
        CS_UNROLL for (int r = 0; r < ROWS; ++r, unit += block.row_stride) {
            CS_UNROLL for (int c = 0; c < COLUMNS; ++c) {
                const auto one = P::broadcast(unit + c * block.column_stride);
                CS_UNROLL for (int v = 0; v < kSums; ++v) {
                    sum[r][c][v] = P::multiply_add(sum[r][c][v], one, weight[v]);
                }
            }
        }
    }
    CS_UNROLL for (int c = 0; c < COLUMNS; c += ROWS) {
        CS_UNROLL for (int v = 0; v < VECTORS; ++v, ++sums) {
            const int first = v * P::kParts;
            auto value = P::join(sum[0][c] + first);
            if constexpr (ROWS == 2) {
                value = P::max(P::max(value, P::join(sum[0][c + 1] + first)),
                               P::max(P::join(sum[1][c] + first), P::join(sum[1][c + 1] + first)));
            }
            P::store(sums, value);
        }
    }
}

// The sums [results, VECTORS] of a span.
template <class P, int VECTORS, int ROWS, int COLUMNS>
CS_TIER void sum_tiles(const Block& b, const std::byte* image, const Tile* tile, int count, typename P::Vector* sums) {
    const Block block = b;  // stores could change what it refers to, for all the compiler knows
    for (const Tile* end = tile + count; tile < end; ++tile) {
        sum_tile<P, VECTORS, ROWS, COLUMNS>(block, image + (tile->input - block.skipped), sums + tile->first * VECTORS);
    }
}

template <class P>
using SumTiles = void (*)(const Block&, const std::byte*, const Tile*, int, typename P::Vector*);

// Columns of the largest tile, of which there are as many as rows, or a multiple.
constexpr int most_columns(int sums, int rows) { return kTile / sums / rows / rows * rows; }

template <class P, int VECTORS, int ROWS, int... kSteps>
SumTiles<P> sum_tiles_of(int columns, std::integer_sequence<int, kSteps...>) {
    static constexpr SumTiles<P> all[] = {sum_tiles<P, VECTORS, ROWS, (kSteps + 1) * ROWS>...};
    return all[columns / ROWS - 1];
}

template <class P, int VECTORS, int ROWS>
SumTiles<P> sum_tiles_of(int columns) {
    constexpr int kSteps = most_columns(VECTORS * P::kParts, ROWS) / ROWS;
    return sum_tiles_of<P, VECTORS, ROWS>(columns, std::make_integer_sequence<int, kSteps>());
}

// Where the results of a block of kernels go.
struct Destination {
    std::byte* output;    // the first result
    int64_t pixel_bytes;  // from one to the next
    int kernels;          // kernels of the block that exist
    const float* scale;   // [VECTORS, kLanes], of 8-bit results
    DType dtype;
    bool in_float;  // how it is requantized
};

// Sums [count, VECTORS] on their way out.
template <class P, int VECTORS>
CS_TIER void finish(const typename P::Vector* sums, int count, const Destination& destination) {
    const Destination to = destination;  // as above
    std::byte* out = to.output;
    int i = 0;
    if constexpr (P::kInputs == 2) {
        constexpr int kStep = 4 / VECTORS;
        const bool is_whole = to.kernels == VECTORS * kLanes;
        for (; is_whole && to.in_float && i + kStep <= count; i += kStep, out += kStep * to.pixel_bytes) {
            P::template write_four<VECTORS>(out, to.pixel_bytes, sums + i * VECTORS, to.scale, to.dtype);
        }
    }
    for (; i < count; ++i, out += to.pixel_bytes) {
        for (int v = 0; v * kLanes < to.kernels; ++v) {
            const float* scale = to.scale ? to.scale + v * kLanes : nullptr;
            P::write(out + v * kLanes * element_bytes(to.dtype), to.kernels - v * kLanes,
                     P::load(sums + i * VECTORS + v), scale, to.dtype, to.in_float);
        }
    }
}

// How a layer is multiplied: kernels in a block, in vectors, and inputs in a unit.
struct Shape {
    int vectors, inputs;
};

// What it costs to begin and to end a sum, in halves of a multiplication; fitted to the layers that are measured in
// docs/kernels.md. It only tells shapes apart that multiply nearly as often.
constexpr int kEnds = 3;

// For every block of kernels, the units in which any of them has a weight.
struct UnitLists {
    Shape shape;
    int sums;                    // vectors that a position of a block is summed in
    std::vector<int32_t> begin;  // [blocks + 1]
    std::vector<int32_t> row;    // [n], first row of each unit in the matrix of weights

    int blocks() const { return static_cast<int>(begin.size()) - 1; }
    // In halves of a multiplication: to load an input, or a weight, costs one, to begin and to end a sum kEnds.
    int64_t cost() const {
        return static_cast<int64_t>(row.size()) * (2 * sums + 1) + int64_t{blocks()} * sums * kEnds;
    }
};

// all: list every unit, as a dense layer does.
template <class P>
UnitLists list_units(const LayerSpec& s, Shape shape, bool all) {
    const auto* dense = static_cast<const typename P::Source*>(s.dense);
    const int width = s.window.kernel_w * s.input.channels;  // of a line of the window
    UnitLists lists{shape, shape.vectors * shape.inputs / P::kInputs, {}, {}};
    for (int first = 0; first < s.kernels; first += shape.vectors * kLanes) {
        lists.begin.push_back(static_cast<int32_t>(lists.row.size()));
        const int kernels = std::min(shape.vectors * kLanes, s.kernels - first);
        for (int row = 0; row < s.window.kernel_h * width;) {
            const auto* weight = dense + int64_t{row} * s.kernels + first;
            if (all || std::any_of(weight, weight + kernels, [](auto w) { return w != 0; })) {
                lists.row.push_back(row);
                row += std::min(shape.inputs, width - row % width);
            } else {
                ++row;
            }
        }
    }
    lists.begin.push_back(static_cast<int32_t>(lists.row.size()));
    return lists;
}

// In the shape that pays for the weights at hand.
template <class P>
UnitLists best_unit_lists(const LayerSpec& s, bool all) {
    UnitLists best = list_units<P>(s, {1, P::kInputs}, all);
    if constexpr (kWide == 2) {
        std::vector<Shape> shapes{{2, P::kInputs}};
        if constexpr (P::kInputs == 2) shapes.push_back({1, P::Quads::kInputs});
        for (const Shape shape : shapes) {
            UnitLists other = list_units<P>(s, shape, all);
            if (other.cost() < best.cost()) best = std::move(other);
        }
    }
    return best;
}

// Of a weight among those of a unit.
template <class P>
int place_in_unit(const UnitLists& lists, int kernel, int input) {
    if constexpr (kWide == 2 && P::kInputs == 2) {
        if (lists.shape.inputs == P::Quads::kInputs) return P::Quads::place_in_unit(kernel, input);
    }
    return kernel * P::kInputs + input;
}

// The weights of the units: [n, sums, kLanes, P::kInputs].
template <class P>
AlignedVector<typename P::Weight> unit_weights(const LayerSpec& s, const UnitLists& lists) {
    const auto* dense = static_cast<const typename P::Source*>(s.dense);
    const int width = s.window.kernel_w * s.input.channels, block = lists.shape.vectors * kLanes;
    const int size = block * lists.shape.inputs;
    AlignedVector<typename P::Weight> weight(lists.row.size() * size);
    auto* to = weight.data();
    for (int b = 0; b < lists.blocks(); ++b) {
        const int kernels = std::min(block, s.kernels - b * block);
        for (int n = lists.begin[b]; n < lists.begin[b + 1]; ++n, to += size) {
            const int row = lists.row[n], inputs = std::min(lists.shape.inputs, width - row % width);
            for (int i = 0; i < inputs; ++i) {
                const auto* from = dense + int64_t{row + i} * s.kernels + b * block;
                for (int kernel = 0; kernel < kernels; ++kernel) {
                    to[place_in_unit<P>(lists, kernel, i)] = from[kernel];
                }
            }
        }
    }
    return weight;
}

// Tiles of so many results, and the function for them.
template <class P>
struct Tiles {
    int results;
    SumTiles<P> sum;
    std::vector<Tile> tile;
};

// Results that follow upon one another in memory, and the tiles that give them, of either width.
struct Span {
    int64_t first;  // result
    int results;
    std::array<int, 2> begin, end;  // tiles
    int from, until;                // lines of the image that they read
};

// Lines of the image, with its padding, that are held as they are multiplied.
struct Lines {
    int begin = 0, end = 0;
};

// Results of a span: a block goes through all of them, so that its weights are read once from the second-level cache,
// and their sums stay in the first.
constexpr int kSpan = 64;

// Lines of an image that are held, in those that a span reads: the more, the fewer are moved.
constexpr int kHold = 2;

template <class P>
class Conv final : public Step {
  public:
    Conv(const LayerSpec& spec, bool all)
        : input_(spec.input),
          output_(spec.output),
          window_(spec.window),
          kernels_(spec.kernels),
          pool_(spec.pool_h),
          height_(padded_height(spec)),
          width_(padded_width(spec)),
          copied_(P::kInputs == 2 || height_ > input_.height || width_ > input_.width),
          lists_(best_unit_lists<P>(spec, all)),
          weight_(unit_weights<P>(spec, lists_)),
          bias_(padded_bias(spec)),
          scale_(padded_scale(spec)),
          in_float_(requantizes_in_float(spec)) {
        const int width = window_.kernel_w * input_.channels;  // of a line of the window
        for (const int row : lists_.row) {
            const int64_t input = int64_t{row} / width * width_ * input_.channels + row % width;
            offset_.push_back(static_cast<int32_t>(input * sizeof(Input)));
        }
        // Where lines follow upon one another, one row of all positions fills tiles best.
        if (is_pointwise()) {
            choose_tiles(1, static_cast<int>(output_.positions()));
        } else {
            choose_tiles(output_.height, output_.width);
        }
        for (const Span& span : spans_) held_ = std::max(held_, kHold * (span.until - span.from));
        held_ = std::min(held_, height_);
        choose_functions();
    }

    size_t scratch_bytes() const override { return copied_ ? line_bytes() * held_ + kSlack : 0; }

    void run(const Call& call) const noexcept override {
        const RoundDown rounding(in_float_);
        // The padding beside the lines stays, whichever lines are held.
        const bool padded = height_ > input_.height || width_ > input_.width;
        if (padded) std::memset(call.scratch, 0, line_bytes() * held_ + sizeof(int64_t));
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* image = sample<std::byte>(call.inputs[0], input_, n);
            auto* out = sample<std::byte>(call.output, output_, n);
            Lines lines;
            for (const Span& span : spans_) {
                if (copied_) hold(span, image, call.scratch, &lines);
                const auto* held = copied_ ? call.scratch : image;
                for (int b = 0; b < lists_.blocks(); ++b) run_block(b, span, held, lines.begin * line_bytes(), out);
            }
        }
    }

  private:
    using Input = typename P::Input;
    using Finish = void (*)(const typename P::Vector*, int, const Destination&);

    bool is_pointwise() const {
        return window_.kernel_h * window_.kernel_w * window_.stride_h * window_.stride_w * pool_ == 1 &&
               height_ == input_.height && width_ == input_.width;
    }

    int64_t line_bytes() const { return int64_t{width_} * input_.channels * sizeof(Input); }
    int64_t row_stride() const { return window_.stride_h * line_bytes(); }
    int64_t column_stride() const { return int64_t{window_.stride_w} * input_.channels * sizeof(Input); }
    int64_t pixel_bytes() const { return kernels_ * static_cast<int64_t>(element_bytes(output_.dtype)); }

    // Tiles of two widths, which differ by one result.
    void choose_tiles(int rows, int positions) {
        const int limit = most_columns(lists_.sums, pool_) / pool_;
        const int tiles = (positions + limit - 1) / limit, most = (positions + tiles - 1) / tiles;
        const int narrow = tiles * most - positions;
        tiles_ = {Tiles<P>{most, nullptr, {}}, Tiles<P>{most - 1, nullptr, {}}};
        for (int y = 0; y < rows; ++y) {
            for (int tile = 0, x = 0; tile < tiles; ++tile) {
                const int width = tile < tiles - narrow ? 0 : 1;
                add_tile(width, y * pool_ * row_stride() + x * pool_ * column_stride(), int64_t{y} * positions + x);
                x += tiles_[width].results;
            }
        }
    }

    void add_tile(int width, int64_t input, int64_t result) {
        const int results = tiles_[width].results;
        if (spans_.empty() || result + results - spans_.back().first > kSpan) {
            const std::array<int, 2> next{static_cast<int>(tiles_[0].tile.size()),
                                          static_cast<int>(tiles_[1].tile.size())};
            spans_.push_back({result, 0, next, next, static_cast<int>(input / line_bytes()), 0});
        }
        const int64_t window = (window_.kernel_h - 1) * line_bytes() +
                               int64_t{window_.kernel_w} * input_.channels * static_cast<int64_t>(sizeof(Input));
        const int64_t last = (pool_ - 1) * row_stride() + (results * pool_ - 1) * column_stride();
        Span& span = spans_.back();
        span.until = static_cast<int>((input + last + window - 1) / line_bytes()) + 1;
        ++span.end[width];
        span.results += results;
        tiles_[width].tile.push_back({input, result - span.first});
    }

    void choose_functions() {
        if constexpr (kWide == 2) {
            if (lists_.shape.vectors == 2) return choose_functions<P, 2>();
            if constexpr (P::kInputs == 2) {
                if (lists_.shape.inputs == P::Quads::kInputs) return choose_functions<typename P::Quads, 1>();
            }
        }
        choose_functions<P, 1>();
    }

    template <class Units, int VECTORS>
    void choose_functions() {
        finish_ = finish<P, VECTORS>;
        for (Tiles<P>& tiles : tiles_) {
            if (tiles.results == 0) continue;
            tiles.sum = pool_ == 2 ? sum_tiles_of<Units, VECTORS, 2>(tiles.results * 2)  //
                                   : sum_tiles_of<Units, VECTORS, 1>(tiles.results);
        }
    }

    // Copies the lines that a span reads and that are not held yet; where there is no room left, over earlier ones.
    void hold(const Span& span, const std::byte* image, std::byte* to, Lines* lines) const {
        if (span.until - lines->begin > held_) {
            const int kept = std::max(lines->end - span.from, 0);
            std::memmove(to, to + (span.from - lines->begin) * line_bytes(), kept * line_bytes());
            *lines = {span.from, span.from + kept};
        }
        std::byte* next = to + (lines->end - lines->begin) * line_bytes();
        with_elements<P>(image, input_.dtype, [&](const auto* x) { copy_lines(lines->end, span.until, x, next); });
        lines->end = std::max(lines->end, span.until);
    }

    // Of the image with its padding, without what lies beside its lines.
    template <class X>
    CS_TIER void copy_lines(int begin, int end, const X* image, std::byte* to) const {
        const int64_t size = int64_t{input_.width} * input_.channels, bytes = line_bytes();
        for (int y = begin - window_.pad_top; y < end - window_.pad_top; ++y, to += bytes) {
            if (y < 0 || y >= input_.height) {
                std::memset(to, 0, bytes);
                continue;
            }
            const X* from = image + y * size;
            auto* line = reinterpret_cast<Input*>(to) + window_.pad_left * input_.channels;
            for (int64_t i = 0; i < size; ++i) line[i] = from[i];
            std::memset(line + size, 0, sizeof(int64_t));  // the last unit may reach beyond its line
        }
    }

    CS_TIER void run_block(int b, const Span& span, const std::byte* image, int64_t skipped, std::byte* out) const {
        const int kernel = b * lists_.shape.vectors * kLanes, begin = lists_.begin[b];
        const Block block{
            offset_.data() + begin,
            reinterpret_cast<const std::byte*>(weight_.data()) + int64_t{begin} * lists_.sums * kLanes * 4,
            lists_.begin[b + 1] - begin,
            bias_.data() + kernel,
            row_stride(),
            column_stride(),
            skipped};
        const Destination to{
            out + span.first * pixel_bytes() + kernel * static_cast<int64_t>(element_bytes(output_.dtype)),
            pixel_bytes(),
            std::min(lists_.shape.vectors * kLanes, kernels_ - kernel),
            scale_.empty() ? nullptr : scale_.data() + kernel,
            output_.dtype,
            in_float_};
        typename P::Vector sums[kSpan * kWide];
        for (size_t i = 0; i < tiles_.size(); ++i) {
            const int count = span.end[i] - span.begin[i];
            if (count) tiles_[i].sum(block, image, &tiles_[i].tile[span.begin[i]], count, sums);
        }
        finish_(sums, span.results, to);
    }

    Tensor input_, output_;
    Window window_;
    int kernels_, pool_;
    int height_, width_;  // of the image with its padding
    bool copied_;
    int held_ = 0;  // lines, if it is
    UnitLists lists_;
    std::vector<int32_t> offset_;  // of each unit from a window's first input, in bytes
    AlignedVector<typename P::Weight> weight_;
    AlignedVector<int32_t> bias_;
    AlignedVector<float> scale_;
    bool in_float_;
    std::array<Tiles<P>, 2> tiles_;
    std::vector<Span> spans_;
    Finish finish_;
};

std::unique_ptr<Step> make_conv(const LayerSpec& s, bool all) {
    if (is_linear(s) || s.groups > 1 || s.pool_h != s.pool_w || s.pool_h > 2) return nullptr;
    if (s.input.dtype == DType::f32) return std::make_unique<Conv<Floats>>(s, all);
    return kIsExact || requantizes_exactly(s) ? std::make_unique<Conv<Pairs>>(s, all) : nullptr;
}

}  // namespace
}  // namespace cs
