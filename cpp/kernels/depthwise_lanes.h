// Depthwise convolution, int8 and float32: one body for the tiers without 8-bit dot products. A file that includes it
// includes the vocabulary of its tier first (avx2_lanes.h, avx512_lanes.h) and says how whole registers of bytes are
// loaded, paired and narrowed.
//
// Why it is fast: the lanes are channels. Of int8, the lines of a window are paired: a pair holds two taps of one
// column, or, where the last line has no partner, two neighbouring taps of it, so that VPMADDWD does two taps and 3 x 3
// take five. Four lines become two pairs by shuffles within halves of a register, a mask and a shift, once per column
// and row of results; all windows that overlap read them. Shuffling leaves the channels in an order that packing with
// saturation undoes, for free. A block's weights are loaded once per tile of positions, whose sums stay in registers.
// float32 needs no pairs: inputs are multiplied where they lie, and windows are cut where they leave the image.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "../aligned.h"
#include "arithmetic.h"
#include "dot_layout.h"

namespace cs {
namespace {

#define CS_UNROLL _Pragma("GCC unroll 32")

constexpr int kVectors = 4;                   // of sums in a block: a register of bytes
constexpr int kBlock = kVectors * kLanes;     // channels
constexpr int kPositions = kTile / kVectors;  // of a tile
constexpr int kEntryBytes = kBlock * 4;       // a pair of 16 bits for every channel

// The channel of a block that lies in a lane of one of its vectors: bytes are interleaved within quarters of 16.
inline int channel_of(int vector, int lane) { return lane / 4 * 16 + vector * 4 + lane % 4; }

// Everything that the inner loop needs, plain.
struct DepthwiseTile {
    const std::byte* pairs;  // of the first position's first column
    int64_t position_bytes;  // to the next position's
    const int32_t* offset;   // of the pairs of each term, in bytes
    const int16_t* weight;   // [count, kVectors, kLanes, 2]
    int count;
    const int32_t* bias;  // [kVectors, kLanes]
    const float* scale;   // likewise
    std::byte* output;    // first position's block of channels
    int64_t pixel_bytes;  // to the next output position
    int channels;         // of the block that exist
    bool to_unsigned;
};

template <int POSITIONS>
CS_TIER void sum_terms(const DepthwiseTile& t) {
    typename Pairs::Vector sum[POSITIONS][kVectors];
    CS_UNROLL for (auto& position : sum) {
        CS_UNROLL for (int v = 0; v < kVectors; ++v) position[v] = Pairs::load(t.bias + v * kLanes);
    }
    const int16_t* weight = t.weight;
    for (int n = 0; n < t.count; ++n, weight += 2 * kBlock) {
        const std::byte* pairs = t.pairs + t.offset[n];
        CS_UNROLL for (int v = 0; v < kVectors; ++v) {
            const auto w = Pairs::load(weight + v * 2 * kLanes);
            CS_UNROLL for (int p = 0; p < POSITIONS; ++p) {
                const auto x = Pairs::load(pairs + p * t.position_bytes + v * kLanes * 4);
                sum[p][v] = Pairs::multiply_add(sum[p][v], x, w);
            }
        }
    }
    CS_UNROLL for (int p = 0; p < POSITIONS; ++p) {
        store_bytes(t.output + p * t.pixel_bytes, narrow_block(sum[p], t.scale, t.to_unsigned), t.channels);
    }
}

using SumTerms = void (*)(const DepthwiseTile&);

template <int... kCounts>
SumTerms sum_terms_of(int positions, std::integer_sequence<int, kCounts...>) {
    static constexpr SumTerms all[] = {sum_terms<kCounts + 1>...};
    return all[positions - 1];
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
          bias_(int64_t{blocks_} * kBlock),
          scale_(int64_t{blocks_} * kBlock) {
        const auto bias = padded_bias(s);
        const auto scale = padded_scale(s);
        list_terms();
        weight_.resize(int64_t{blocks_} * terms_.size() * kBlock * 2);
        for (int i = 0; i < blocks_ * kBlock; ++i) {
            const int channel = i / kBlock * kBlock + channel_of(i % kBlock / kLanes, i % kLanes);
            if (channel >= s.kernels) continue;
            bias_[i] = bias[channel];
            scale_[i] = scale[channel];
            lay_out(static_cast<const int8_t*>(s.dense) + channel, s.kernels, i);
        }
    }

    size_t scratch_bytes() const override { return columns_ * column_bytes(); }

    void run(const Call& call) const noexcept override {
        const RoundDown rounding(true);
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* image = sample<std::byte>(call.inputs[0], input_, n);
            auto* out = sample<std::byte>(call.output, output_, n);
            for (int y = 0; y < output_.height; ++y) {
                for (int block = 0; block < blocks_; ++block) {
                    const int top = y * window_.stride_h - window_.pad_top;
                    input_.dtype == DType::s8 ? stage<true>(image, top, block, call.scratch)
                                              : stage<false>(image, top, block, call.scratch);
                    run_row(call.scratch, block, out + int64_t{y} * output_.width * output_.channels);
                }
            }
        }
    }

  private:
    // Two taps that are multiplied at once, the second of which may be missing (line or column beyond the window), and
    // where they are staged.
    struct Term {
        int line[2], column[2], offset;
    };

    // A spare vector, so that the same pair of neighbouring columns lies in other banks of the cache.
    int64_t column_bytes() const { return int64_t{2} * quads_ * kEntryBytes + kLanes * 4; }

    // Entry e of a column holds lines 2e and 2e + 1 of it, or line 2e, the last one, of it and of the next column.
    void list_terms() {
        for (int column = 0; column < window_.kernel_w; ++column) {
            for (int line = 0; line < window_.kernel_h; line += 2) {
                const int offset = static_cast<int>(column * column_bytes()) + line / 2 * kEntryBytes;
                if (line + 1 < window_.kernel_h) {
                    terms_.push_back({{line, line + 1}, {column, column}, offset});
                } else if (column % 2 == 0) {
                    terms_.push_back({{line, line}, {column, column + 1}, offset});
                }
            }
        }
        for (const Term& term : terms_) offsets_.push_back(term.offset);
    }

    // The weights of a channel, whose place is lane i of all channels.
    void lay_out(const int8_t* dense, int kernels, int i) {
        int64_t to = (i / kBlock * static_cast<int64_t>(terms_.size()) * kBlock + i % kBlock) * 2;
        for (const Term& term : terms_) {
            for (int j = 0; j < 2; ++j) {
                if (term.column[j] >= window_.kernel_w) continue;
                weight_[to + j] = dense[int64_t{term.line[j] * window_.kernel_w + term.column[j]} * kernels];
            }
            to += kBlock * 2;
        }
    }

    // One of the four lines that make two pairs.
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

    // The pairs [column][entry] of one row of results, for windows whose first line of the image is `top`.
    template <bool kSigned>
    CS_TIER void stage(const std::byte* image, int top, int block, std::byte* to) const {
        const int first = std::min(columns_, window_.pad_left);
        const int end = std::clamp(input_.width + window_.pad_left - 1, first, columns_);  // the next is in line, too
        for (int quad = 0; quad < quads_; ++quad, to += 2 * kEntryBytes) {
            Line line[4];
            for (int i = 0; i < 4; ++i) line[i] = line_of(image + block * kBlock, top, quad, i);
            stage_ends<kSigned>(line, 0, first, block, to);
            stage_columns<kSigned>(line, first, end, block, to);
            stage_ends<kSigned>(line, end, columns_, block, to);
        }
    }

    int channels_of(int block) const { return std::min(kBlock, input_.channels - block * kBlock); }

    // Columns that lie on the image, with the next one.
    template <bool kSigned>
    CS_TIER void stage_columns(const Line (&line)[4], int first, int end, int block, std::byte* to) const {
        alignas(kAlignment) static constexpr std::byte kZeros[kBlock] = {};
        const std::byte* from[4];
        int64_t step[4];
        for (int i = 0; i < 4; ++i) {
            step[i] = line[i].first ? input_.channels : 0;
            from[i] = (line[i].first ? line[i].first : kZeros) + (first - window_.pad_left + line[i].next) * step[i];
        }
        const int channels = channels_of(block);
        std::byte* pairs = to + first * column_bytes();
        for (int x = first; x < end; ++x, pairs += column_bytes()) {
            Bytes bytes[4];
            CS_UNROLL for (int i = 0; i < 4; ++i) {
                bytes[i] = load_bytes(from[i], channels);
                from[i] += step[i];
            }
            pair_lines<kSigned>(bytes, pairs, pairs + kEntryBytes);
        }
    }

    // Columns that may lie beside it.
    template <bool kSigned>
    CS_TIER void stage_ends(const Line (&line)[4], int first, int end, int block, std::byte* to) const {
        for (int x = first; x < end; ++x) {
            Bytes bytes[4];
            for (int i = 0; i < 4; ++i) {
                const int column = x - window_.pad_left + line[i].next;
                const bool exists = line[i].first && column >= 0 && column < input_.width;
                const std::byte* from = line[i].first + int64_t{column} * input_.channels;
                bytes[i] = exists ? load_bytes(from, channels_of(block)) : Bytes{};
            }
            pair_lines<kSigned>(bytes, to + x * column_bytes(), to + x * column_bytes() + kEntryBytes);
        }
    }

    void run_row(const std::byte* staged, int block, std::byte* out) const {
        constexpr auto counts = std::make_integer_sequence<int, kPositions>();
        const auto terms = static_cast<int>(terms_.size());
        const int64_t position_bytes = window_.stride_w * column_bytes();
        for (int x = 0; x < output_.width; x += kPositions) {
            sum_terms_of(std::min(kPositions, output_.width - x), counts)(
                {staged + x * position_bytes, position_bytes, offsets_.data(),
                 weight_.data() + int64_t{block} * terms * kBlock * 2, terms, bias_.data() + block * kBlock,
                 scale_.data() + block * kBlock, out + int64_t{x} * output_.channels + block * kBlock, output_.channels,
                 std::min(kBlock, output_.channels - block * kBlock), output_.dtype == DType::u8});
        }
    }

    Tensor input_, output_;
    Window window_;
    int columns_, quads_, blocks_;
    std::vector<Term> terms_;
    std::vector<int32_t> offsets_;
    AlignedVector<int16_t> weight_;  // [block][term][vector][lane][2]
    AlignedVector<int32_t> bias_;    // [block][vector][lane]
    AlignedVector<float> scale_;     // likewise
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
