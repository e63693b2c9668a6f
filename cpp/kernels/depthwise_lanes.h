// Depthwise convolution, int8 and float32: one body for the tiers without 8-bit dot products. A file that includes it
// includes the vocabulary of its tier first (avx2_lanes.h, avx512_lanes.h) and says how whole registers of bytes are
// loaded, interleaved, split and narrowed.
//
// Why it is fast: the lanes are channels. Of int8, four lines are interleaved to quads of bytes, once per row of
// results. A mask and a shift make two pairs of 16 bits of a quad: two taps of a column each, or, where the last line
// has no partner, two neighbouring taps of it, so that VPMADDWD does two taps and 3 x 3 take five. Along a row of
// 3 x 3 windows every column is loaded and split once, for the three windows that see it, and weights stay in
// registers. Interleaving leaves the channels in an order that packing with saturation undoes, for free.
// float32 needs no pairs: inputs are multiplied where they lie, and windows are cut where they leave the image.
#pragma once

#include <algorithm>

#include "../aligned.h"
#include "arithmetic.h"
#include "dot_layout.h"

namespace cs {
namespace {

#define CS_UNROLL _Pragma("GCC unroll 32")

constexpr int kVectors = 4;                // of sums in a block: a register of bytes
constexpr int kBlock = kVectors * kLanes;  // channels
constexpr int kVectorBytes = kLanes * 4;

// Blocks of few channels take only half of the vectors.
inline int vectors_of(int channels) { return channels <= kBlock / 2 ? kVectors / 2 : kVectors; }

// The channel of a block that lies in a lane of one of its vectors: bytes are interleaved within parts of 16 that hold
// four channels of every vector.
inline int channel_of(int vectors, int vector, int lane) { return (lane / 4 * vectors + vector) * 4 + lane % 4; }

// One vector of channels along a row of results.
struct DepthwiseRow {
    const std::byte* quads;  // of the first column
    int64_t column_bytes;    // to the next column's
    int quads_per_column, columns, stride;
    const int16_t* weight;  // [columns, quads, 2 halves, kLanes, 2] of the window
    const int32_t* bias;    // [kLanes]
    int32_t* sums;          // [kVectors, kLanes] from one position to the next
    int positions;
};

template <bool kSigned>
struct Halves {
    typename Pairs::Vector low, high;
    CS_TIER static Halves load(const std::byte* quad) {
        const auto bytes = Pairs::load(quad);
        return {low_pairs<kSigned>(bytes), high_pairs<kSigned>(bytes)};
    }
};

constexpr int kPositions = kTile / 2;  // summed at once

template <bool kSigned, int POSITIONS>
CS_TIER inline void sum_windows(const DepthwiseRow& r, int x) {
    const int64_t step = r.stride * r.column_bytes;
    const std::byte* from = r.quads + x * step;
    const int16_t* weight = r.weight;
    typename Pairs::Vector sum[POSITIONS];
    CS_UNROLL for (auto& one : sum) one = Pairs::load(r.bias);
    for (int column = 0; column < r.columns; ++column, from += r.column_bytes) {
        for (int quad = 0; quad < r.quads_per_column; ++quad, weight += 4 * kLanes) {
            const auto low = Pairs::load(weight), high = Pairs::load(weight + 2 * kLanes);
            CS_UNROLL for (int p = 0; p < POSITIONS; ++p) {
                const auto x_pairs = Halves<kSigned>::load(from + p * step + quad * kBlock * 4);
                sum[p] = Pairs::multiply_add(sum[p], x_pairs.low, low);
                sum[p] = Pairs::multiply_add(sum[p], x_pairs.high, high);
            }
        }
    }
    CS_UNROLL for (int p = 0; p < POSITIONS; ++p) Pairs::store(r.sums + int64_t{x + p} * kBlock, sum[p]);
}

// Windows of any size and stride.
template <bool kSigned>
CS_TIER void sum_row(const DepthwiseRow& r) {
    int x = 0;
    for (; x + kPositions <= r.positions; x += kPositions) sum_windows<kSigned, kPositions>(r, x);
    for (; x < r.positions; ++x) sum_windows<kSigned, 1>(r, x);
}

// The weights of a window of 3 x 3: five pairs of taps, of its three columns.
struct Weights3x3 {
    typename Pairs::Vector low0, high0, low1, low2, high2;
    CS_TIER explicit Weights3x3(const int16_t* weight)
        : low0(Pairs::load(weight)),
          high0(Pairs::load(weight + 2 * kLanes)),
          low1(Pairs::load(weight + 4 * kLanes)),
          low2(Pairs::load(weight + 8 * kLanes)),
          high2(Pairs::load(weight + 10 * kLanes)) {}
};

// Windows of 3 x 3, stride 1: a column ends one window, goes on with the next and begins the one after.
template <bool kSigned>
CS_TIER void sum_row_3x3(const DepthwiseRow& r) {
    const Weights3x3 w(r.weight);
    const auto bias = Pairs::load(r.bias);
    const auto begin = [&](const Halves<kSigned>& x) CS_TIER {
        return Pairs::multiply_add(Pairs::multiply_add(bias, x.low, w.low0), x.high, w.high0);
    };
    const int64_t column_bytes = r.column_bytes;  // stores could change what r refers to, for all the compiler knows
    const std::byte* from = r.quads + column_bytes;
    const auto second = Halves<kSigned>::load(from);
    auto last = Pairs::multiply_add(begin(Halves<kSigned>::load(r.quads)), second.low, w.low1), next = begin(second);
    int32_t *sums = r.sums, *end = sums + int64_t{r.positions} * kBlock;
    for (; sums < end; sums += kBlock) {
        from += column_bytes;
        const auto column = Halves<kSigned>::load(from);
        last = Pairs::multiply_add(last, column.low, w.low2);
        Pairs::store(sums, Pairs::multiply_add(last, column.high, w.high2));
        last = Pairs::multiply_add(next, column.low, w.low1);
        next = begin(column);
    }
}

// Windows of 3 x 3, stride 2: the last column of one is the first of the next.
template <bool kSigned>
CS_TIER void sum_row_3x3_stride_2(const DepthwiseRow& r) {
    const Weights3x3 w(r.weight);
    const auto bias = Pairs::load(r.bias);
    auto first = Halves<kSigned>::load(r.quads);
    const int64_t column_bytes = r.column_bytes;
    const std::byte* from = r.quads + column_bytes;
    int32_t *sums = r.sums, *end = sums + int64_t{r.positions} * kBlock;
    for (; sums < end; sums += kBlock, from += 2 * column_bytes) {
        const auto second = low_pairs<kSigned>(Pairs::load(from));
        const auto third = Halves<kSigned>::load(from + column_bytes);
        auto sum = Pairs::multiply_add(bias, first.low, w.low0);
        sum = Pairs::multiply_add(sum, first.high, w.high0);
        sum = Pairs::multiply_add(sum, second, w.low1);
        sum = Pairs::multiply_add(sum, third.low, w.low2);
        Pairs::store(sums, Pairs::multiply_add(sum, third.high, w.high2));
        first = third;
    }
}

using SumRow = void (*)(const DepthwiseRow&);

template <bool kSigned>
SumRow sum_row_of(const Window& w) {
    if (w.kernel_h != 3 || w.kernel_w != 3 || w.stride_w > 2) return sum_row<kSigned>;
    return w.stride_w == 1 ? sum_row_3x3<kSigned> : sum_row_3x3_stride_2<kSigned>;
}

class DepthwisePairs final : public Step {
  public:
    explicit DepthwisePairs(const LayerSpec& s)
        : input_(s.input),
          output_(s.output),
          window_(s.window),
          columns_((s.conv_width - 1) * s.window.stride_w + s.window.kernel_w),
          quads_((s.window.kernel_h + 3) / 4),
          blocks_((s.kernels + kBlock - 1) / kBlock),
          weight_(int64_t{blocks_} * kVectors * vector_weights()),
          bias_(int64_t{blocks_} * kBlock),
          scale_(int64_t{blocks_} * kBlock),
          sum_row_(s.input.dtype == DType::s8 ? sum_row_of<true>(s.window) : sum_row_of<false>(s.window)) {
        const auto bias = padded_bias(s);
        const auto scale = padded_scale(s);
        for (int i = 0; i < blocks_ * kBlock; ++i) {
            const int block = i / kBlock, vector = i % kBlock / kLanes, vectors = vectors_of(channels_of(block));
            const int channel = block * kBlock + channel_of(vectors, vector, i % kLanes);
            if (vector >= vectors || channel >= s.kernels) continue;
            bias_[i] = bias[channel];
            scale_[i] = scale[channel];
            lay_out(static_cast<const int8_t*>(s.dense) + channel, s.kernels, i);
        }
    }

    size_t scratch_bytes() const override { return sums_offset() + sizeof(int32_t) * output_.width * kBlock; }

    void run(const Call& call) const noexcept override {
        const RoundDown rounding(true);
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* image = sample<std::byte>(call.inputs[0], input_, n);
            auto* out = sample<std::byte>(call.output, output_, n);
            for (int y = 0; y < output_.height; ++y) {
                for (int block = 0; block < blocks_; ++block) {
                    stage(image, y * window_.stride_h - window_.pad_top, block, call.scratch);
                    auto* sums = reinterpret_cast<int32_t*>(call.scratch + sums_offset());
                    sum_block(call.scratch, block, sums);
                    write_out(sums, block, out + int64_t{y} * output_.width * output_.channels);
                }
            }
        }
    }

  private:
    int64_t column_bytes() const { return int64_t{quads_} * kBlock * 4; }
    int64_t sums_offset() const { return columns_ * column_bytes(); }
    int64_t vector_weights() const { return int64_t{window_.kernel_w} * quads_ * 4 * kLanes; }

    // The weights of a channel, whose place is lane i of all channels. Pair e of a column holds lines 2e and 2e + 1 of
    // it, or line 2e, the last one, of it and of the next column.
    void lay_out(const int8_t* dense, int kernels, int i) {
        int16_t* to = weight_.data() + i / kLanes * vector_weights() + i % kLanes * 2;
        for (int column = 0; column < window_.kernel_w; ++column) {
            for (int line = 0; line < quads_ * 4; line += 2, to += 2 * kLanes) {
                const int tap = line * window_.kernel_w + column;
                const bool has_partner = line + 1 < window_.kernel_h;
                if (line >= window_.kernel_h || (!has_partner && column % 2)) continue;
                to[0] = dense[int64_t{tap} * kernels];
                if (has_partner) {
                    to[1] = dense[int64_t{tap + window_.kernel_w} * kernels];
                } else if (column + 1 < window_.kernel_w) {
                    to[1] = dense[int64_t{tap + 1} * kernels];
                }
            }
        }
    }

    // One of the four lines of a quad.
    struct Line {
        const std::byte* first;  // the block of the image's first column; null for a line of zeros
        int next;                // 1 for the column after the one that is staged
    };

    // Lines 0 and 2 make the first pair of a quad, 1 and 3 the second.
    Line line_of(const std::byte* image, int top, int quad, int i) const {
        const int tap = quad * 4 + i / 2 + i % 2 * 2;
        const int next = i / 2 == 1 && tap == window_.kernel_h, row = top + tap - next;
        if (tap - next >= window_.kernel_h || row < 0 || row >= input_.height) return {nullptr, 0};
        return {image + int64_t{row} * input_.width * input_.channels, next};
    }

    // The quads [column][quad] of one row of results, for windows whose first line of the image is `top`.
    CS_TIER void stage(const std::byte* image, int top, int block, std::byte* to) const {
        const int first = std::min(columns_, window_.pad_left);
        const int end = std::clamp(input_.width + window_.pad_left - 1, first, columns_);  // the next is in line, too
        for (int quad = 0; quad < quads_; ++quad, to += kBlock * 4) {
            Line line[4];
            for (int i = 0; i < 4; ++i) line[i] = line_of(image + block * kBlock, top, quad, i);
            stage_ends(line, 0, first, block, to);
            stage_columns(line, first, end, block, to);
            stage_ends(line, end, columns_, block, to);
        }
    }

    int channels_of(int block) const { return std::min(kBlock, input_.channels - block * kBlock); }

    // Columns that lie on the image, with the next one.
    CS_TIER void stage_columns(const Line (&line)[4], int first, int end, int block, std::byte* to) const {
        alignas(kAlignment) static constexpr std::byte kZeros[kBlock] = {};
        const std::byte* from[4];
        int64_t step[4];
        for (int i = 0; i < 4; ++i) {
            step[i] = line[i].first ? input_.channels : 0;
            from[i] = (line[i].first ? line[i].first : kZeros) + (first - window_.pad_left + line[i].next) * step[i];
        }
        const int channels = channels_of(block);
        const int64_t quad_step = column_bytes();
        std::byte* quad = to + first * quad_step;
        for (int x = first; x < end; ++x, quad += quad_step) {
            Bytes bytes[4];
            CS_UNROLL for (int i = 0; i < 4; ++i) {
                bytes[i] = load_bytes(from[i], channels);
                from[i] += step[i];
            }
            interleave(bytes, quad);
        }
    }

    // Columns that may lie beside it.
    CS_TIER void stage_ends(const Line (&line)[4], int first, int end, int block, std::byte* to) const {
        for (int x = first; x < end; ++x) {
            Bytes bytes[4];
            for (int i = 0; i < 4; ++i) {
                const int column = x - window_.pad_left + line[i].next;
                const bool exists = line[i].first && column >= 0 && column < input_.width;
                bytes[i] = Bytes{};
                if (exists)
                    bytes[i] = load_bytes(line[i].first + int64_t{column} * input_.channels, channels_of(block));
            }
            interleave(bytes, to + x * column_bytes());
        }
    }

    void sum_block(const std::byte* quads, int block, int32_t* sums) const {
        const int vectors = vectors_of(channels_of(block));
        for (int v = 0; v < vectors; ++v) {
            const int64_t vector = int64_t{block} * kVectors + v;
            sum_row_({quads + v * kVectorBytes, column_bytes(), quads_, window_.kernel_w, window_.stride_w,
                      weight_.data() + vector * vector_weights(), bias_.data() + vector * kLanes, sums + v * kLanes,
                      output_.width});
        }
    }

    CS_TIER void write_out(const int32_t* sums, int block, std::byte* row) const {
        const float* scale = scale_.data() + block * kBlock;
        const int channels = channels_of(block), pixel = output_.channels;
        const bool to_unsigned = output_.dtype == DType::u8;
        std::byte* to = row + block * kBlock;
        for (const int32_t* end = sums + int64_t{output_.width} * kBlock; sums < end; sums += kBlock, to += pixel) {
            store_bytes(to, narrow_block(sums, scale, to_unsigned), channels);
        }
    }

    Tensor input_, output_;
    Window window_;
    int columns_, quads_, blocks_;
    AlignedVector<int16_t> weight_;  // [block][vector][column][quad][half][lane][2]
    AlignedVector<int32_t> bias_;    // [block][vector][lane]
    AlignedVector<float> scale_;     // likewise
    SumRow sum_row_;
};

constexpr int kFloatPositions = kTile / 2;  // of a tile

class DepthwiseFloats final : public Step {
  public:
    explicit DepthwiseFloats(const LayerSpec& s)
        : input_(s.input),
          output_(s.output),
          window_(s.window),
          padded_(static_cast<int>(round_up(s.kernels, kLanes))),
          weight_(int64_t{s.rows} * padded_),
          bias_(padded_) {
        const auto* dense = static_cast<const float*>(s.dense);
        for (int tap = 0; tap < s.rows; ++tap, dense += s.kernels) {
            std::copy_n(dense, s.kernels, weight_.data() + int64_t{tap} * padded_);
        }
        if (s.bias) std::copy_n(static_cast<const float*>(s.bias), s.kernels, bias_.data());
    }

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* image = sample<float>(call.inputs[0], input_, n);
            auto* out = sample<float>(call.output, output_, n);
            for (int y = 0; y < output_.height; ++y)
                run_row(image, y, out + int64_t{y} * output_.width * output_.channels);
        }
    }

  private:
    // Tiles of positions whose windows lie within the lines, single positions at their ends.
    void run_row(const float* image, int y, float* out) const {
        for (int x = 0; x < output_.width;) {
            const int last = x + kFloatPositions - 1;
            const bool is_tile = x * window_.stride_w >= window_.pad_left && last < output_.width &&
                                 last * window_.stride_w - window_.pad_left + window_.kernel_w <= input_.width;
            is_tile ? sum_windows<kFloatPositions>(image, y, x, out) : sum_windows<1>(image, y, x, out);
            x += is_tile ? kFloatPositions : 1;
        }
    }

    template <int POSITIONS>
    CS_TIER void sum_windows(const float* image, int y, int x, float* out) const {
        const int top = y * window_.stride_h - window_.pad_top, left = x * window_.stride_w - window_.pad_left;
        const int line = std::max(0, -top), end_line = std::min(window_.kernel_h, input_.height - top);
        const int column = std::max(0, -left), end_column = std::min(window_.kernel_w, input_.width - left);
        const int64_t step = int64_t{window_.stride_w} * input_.channels;
        for (int channel = 0; channel < input_.channels; channel += kLanes) {
            typename Floats::Vector sum[POSITIONS];
            CS_UNROLL for (auto& one : sum) one = Floats::load(bias_.data() + channel);
            for (int ky = line; ky < end_line; ++ky) {
                const int64_t pixel = int64_t{top + ky} * input_.width + left;
                for (int kx = column; kx < end_column; ++kx) {
                    const float* from = image + (pixel + kx) * input_.channels + channel;
                    const auto w =
                        Floats::load(weight_.data() + int64_t{ky * window_.kernel_w + kx} * padded_ + channel);
                    CS_UNROLL for (int p = 0; p < POSITIONS; ++p) {
                        sum[p] = Floats::multiply_add(sum[p], Floats::load(from + p * step), w);
                    }
                }
            }
            CS_UNROLL for (int p = 0; p < POSITIONS; ++p) {
                Floats::write(out + int64_t{x + p} * output_.channels + channel,
                              std::min(kLanes, output_.channels - channel), sum[p], nullptr, DType::f32, false);
            }
        }
    }

    Tensor input_, output_;
    Window window_;
    int padded_;                   // channels, to whole vectors
    AlignedVector<float> weight_;  // [tap, channel]
    AlignedVector<float> bias_;
};

std::unique_ptr<Step> make_depthwise(const LayerSpec& s) {
    const bool fits = s.groups > 1 && s.groups == s.input.channels && s.kernels == s.groups && s.pool_h * s.pool_w == 1;
    if (!fits) return nullptr;
    if (s.input.dtype == DType::f32) return std::make_unique<DepthwiseFloats>(s);
    if (s.requantization.empty() || !requantizes_exactly(s)) return nullptr;
    return std::make_unique<DepthwisePairs>(s);
}

}  // namespace
}  // namespace cs
