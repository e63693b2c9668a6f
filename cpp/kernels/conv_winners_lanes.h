// Convolution behind local k-winners, sparse-sparse, int8 and float32: one body for several tiers. A file that includes
// it includes the vocabulary of its tier first (avx2_lanes.h, avx512_lanes.h) and says which of 64 bytes are not zero
// (nonzero_bytes).
//
// Why it is fast: at most k inputs of a position are active, so that every position gets the same number of entries,
// fewer inputs being filled up with zeros, and the entries of a tap lie where its position lies: no list is searched,
// no length read, no branch mispredicted. The sums of a window, over all its taps, and of the windows of a maximum,
// stay in registers. Taps in which a chunk of kernels has no weight are not visited, and few pairs are unrolled.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "select_lanes.h"

namespace cs {
namespace {

// A tap of the window in which a chunk of kernels has weights.
struct WinnersTap {
    int64_t entry;   // its first one, in bytes from that of the window's first position
    int64_t weight;  // its first row, in bytes from the first of the chunk
};

// Windows of a row of results and what they are multiplied by.
template <class P>
struct WinnersRow {
    const std::byte* entry;              // the first of the row
    const int64_t *window, *window_end;  // where the entries of each begin, in bytes; a multiple of tiles
    const WinnersTap *tap, *tap_end;
    const std::byte* weight;
    const int32_t* bias;
    int entries;               // of a position
    bool pools_tile;           // whether only the largest sums of each tile of windows are wanted
    typename P::Vector* sums;  // [windows, or tiles, VECTORS]
};

// Windows that are summed at a time: their taps are visited together.
constexpr int winners_tile(int vectors) { return std::clamp(kChunk / vectors, 1, 4); }

// ENTRIES: of a position; 0 for any number.
template <class P, int VECTORS, int ENTRIES>
CS_TIER void sum_winners(const WinnersRow<P>& of) {
    constexpr int kWindows = winners_tile(VECTORS);
    const WinnersRow<P> row = of;  // stores could change what it refers to, for all the compiler knows
    auto* sums = row.sums;
    for (const int64_t* window = row.window; window < row.window_end; window += kWindows) {
        typename P::Vector sum[kWindows][VECTORS];
        CS_UNROLL for (int v = 0; v < VECTORS; ++v) {
            const auto bias = P::load(row.bias + v * kLanes);
            CS_UNROLL for (auto& one : sum) one[v] = bias;
        }
        const std::byte* first[kWindows];
        CS_UNROLL for (int w = 0; w < kWindows; ++w) first[w] = row.entry + window[w];
        for (const WinnersTap* tap = row.tap; tap < row.tap_end; ++tap) {
            const auto* weight = reinterpret_cast<const typename P::Weight*>(row.weight + tap->weight);
            CS_UNROLL for (int w = 0; w < kWindows; ++w) {
                const auto* entry = reinterpret_cast<const Entry<P>*>(first[w] + tap->entry);
                if constexpr (ENTRIES) {
                    CS_UNROLL for (int n = 0; n < ENTRIES; ++n) add_products<VECTORS>(entry[n], weight, sum[w]);
                } else {
                    for (int n = 0; n < row.entries; ++n) add_products<VECTORS>(entry[n], weight, sum[w]);
                }
            }
        }
        if (row.pools_tile) {
            CS_UNROLL for (int v = 0; v < VECTORS; ++v, ++sums) {
                CS_UNROLL for (int w = 1; w < kWindows; ++w) sum[0][v] = P::max(sum[0][v], sum[w][v]);
                P::store(sums, sum[0][v]);
            }
        } else {
            CS_UNROLL for (auto& one : sum) {
                CS_UNROLL for (int v = 0; v < VECTORS; ++v, ++sums) P::store(sums, one[v]);
            }
        }
    }
}

template <class P>
using SumWinners = void (*)(const WinnersRow<P>&);

// vectors: an even number.
template <class P, int... kPairs>
SumWinners<P> sum_winners_of(int vectors, int entries, std::integer_sequence<int, kPairs...>) {
    static constexpr SumWinners<P> few[] = {sum_winners<P, 2, 1>, sum_winners<P, 2, 2>, sum_winners<P, 2, 3>,
                                            sum_winners<P, 2, 4>};
    static constexpr SumWinners<P> any[] = {sum_winners<P, 2 * kPairs + 2, 0>...};
    return vectors == 2 && entries <= 4 ? few[entries - 1] : any[vectors / 2 - 1];
}

// Writes the entries of a position of up to 64 channels: without a branch that depends on what is active. Inputs beyond
// those that are active are zeros.
template <class P, class X>
CS_TIER inline void list_few(const X* x, int channels, int row_size, int entries, Entry<P>* list) {
    uint64_t bits = active_bits(x, channels);
    for (Entry<P>* entry = list; entry < list + entries; ++entry) {
        CS_UNROLL for (int i = 0; i < P::kInputs; ++i, bits &= bits - 1) {
            const auto channel = static_cast<int32_t>(_tzcnt_u64(bits) % 64);
            entry->offset[i] = channel * row_size;
            entry->value[i] = bits ? static_cast<typename P::Input>(x[channel]) : typename P::Input{};
        }
    }
}

// Of any number of channels.
template <class P, class X>
CS_TIER inline void list_many(const X* x, int channels, int row_size, int entries, Entry<P>* list) {
    int n = 0;
    const int most = entries * P::kInputs;
    for (int first = 0; first < channels; first += 64) {
        for (uint64_t bits = active_bits(x + first, channels - first); bits && n < most; bits &= bits - 1, ++n) {
            const int channel = first + __builtin_ctzll(bits);
            list[n / P::kInputs].offset[n % P::kInputs] = channel * row_size;
            list[n / P::kInputs].value[n % P::kInputs] = static_cast<typename P::Input>(x[channel]);
        }
    }
    for (; n < most; ++n) {
        list[n / P::kInputs].offset[n % P::kInputs] = 0;
        list[n / P::kInputs].value[n % P::kInputs] = 0;
    }
}

template <class P>
class ConvWinners final : public Step {
  public:
    explicit ConvWinners(const LayerSpec& s)
        : ConvWinners(s, find_used_sections<typename P::Source>(s, s.input.channels)) {}

    ConvWinners(const LayerSpec& s, const UsedSections& used)
        : input_(s.input),
          output_(s.output),
          window_(s.window),
          pool_h_(s.pool_h),
          pool_w_(s.pool_w),
          height_(padded_height(s)),
          width_(padded_width(s)),
          entries_((s.winners + P::kInputs - 1) / P::kInputs),
          kernels_(s, choose_vectors(s, used)),
          sum_(sum_winners_of<P>(kernels_.vectors(), entries_, std::make_integer_sequence<int, kChunk / 2>())) {
        find_windows();
        for (const auto& taps : chunk_sections(used, kernels_.size() / kGroup)) {
            taps_.emplace_back();
            for (int tap : taps) {
                const int64_t row = int64_t{tap} * input_.channels * kernels_.size();
                taps_.back().push_back({entry_bytes(tap / window_.kernel_w, tap % window_.kernel_w),
                                        row * static_cast<int64_t>(sizeof(typename P::Weight))});
            }
        }
    }

    size_t scratch_bytes() const override {
        return list_bytes() + sizeof(typename P::Vector) * windows_.size() * kernels_.vectors();
    }

    void run(const Call& call) const noexcept override {
        const RoundDown rounding(kernels_.in_float());
        auto* list = reinterpret_cast<Entry<P>*>(call.scratch);
        auto* sums = reinterpret_cast<typename P::Vector*>(call.scratch + list_bytes());
        for (int64_t n = 0; n < call.samples; ++n) {
            with_elements<P>(sample<std::byte>(call.inputs[0], input_, n), input_.dtype,
                             [&](const auto* x) { select(x, list); });
            auto* out = sample<std::byte>(call.output, output_, n);
            for (int chunk = 0; chunk < kernels_.count(); ++chunk) {
                for (int y = 0; y < output_.height; ++y) run_row(list, chunk, y, sums, out);
            }
        }
    }

  private:
    size_t list_bytes() const {
        return round_up(sizeof(Entry<P>) * (int64_t{height_} * width_ * entries_ + kAhead), kAlignment);
    }

    // The entries of the image; those of its padding are zeros.
    template <class X>
    CS_TIER void select(const X* x, Entry<P>* list) const {
        const auto list_one = input_.channels <= 64 ? list_few<P, X> : list_many<P, X>;
        if (height_ > input_.height || width_ > input_.width) std::memset(list, 0, list_bytes());
        list += (int64_t{window_.pad_top} * width_ + window_.pad_left) * entries_;
        for (int y = 0; y < input_.height; ++y, list += int64_t{width_} * entries_) {
            for (int column = 0; column < input_.width; ++column, x += input_.channels) {
                list_one(x, input_.channels, kernels_.size(), entries_, list + column * entries_);
            }
        }
    }

    // Bytes of entries from one position to that `lines` below and `columns` beside it.
    int64_t entry_bytes(int lines, int columns) const {
        return (int64_t{lines} * width_ + columns) * entries_ * static_cast<int64_t>(sizeof(Entry<P>));
    }

    // Where the entries of the windows of a row of results begin, one result after the other.
    void find_windows() {
        for (int x = 0; x < output_.width; ++x) {
            for (int i = 0; i < pool_h_ * pool_w_; ++i) {
                windows_.push_back(entry_bytes(i / pool_w_ * window_.stride_h,  //
                                               (x * pool_w_ + i % pool_w_) * window_.stride_w));
            }
        }
        while (windows_.size() % winners_tile(kernels_.vectors())) windows_.push_back(windows_.back());
    }

    CS_TIER void run_row(const Entry<P>* list, int chunk, int y, typename P::Vector* sums, std::byte* out) const {
        const auto& taps = taps_[chunk];
        sum_({reinterpret_cast<const std::byte*>(list) + entry_bytes(y * pool_h_ * window_.stride_h, 0),
              windows_.data(), windows_.data() + windows_.size(), taps.data(), taps.data() + taps.size(),
              reinterpret_cast<const std::byte*>(kernels_.weight(chunk)), kernels_.bias(chunk), entries_, pools_tile(),
              sums});
        find_largest(sums);
        kernels_.write_row(chunk, sums, output_.width, int64_t{y} * output_.width, out);
    }

    bool pools_tile() const { return pool_h_ * pool_w_ == winners_tile(kernels_.vectors()); }

    // Brings the sums of a result's windows to the largest of each, if tiles have not.
    CS_TIER void find_largest(typename P::Vector* sums) const {
        const int windows = pools_tile() ? 1 : pool_h_ * pool_w_, vectors = kernels_.vectors();
        if (windows == 1) return;
        const typename P::Vector* from = sums;
        for (int x = 0; x < output_.width; ++x, from += windows * vectors) {
            for (int v = 0; v < vectors; ++v, ++sums) {
                auto value = P::load(from + v);
                for (int i = 1; i < windows; ++i) value = P::max(value, P::load(from + i * vectors + v));
                P::store(sums, value);
            }
        }
    }

    Tensor input_, output_;
    Window window_;
    int pool_h_, pool_w_;
    int height_, width_;  // of the image with its padding
    int entries_;         // of a position
    Chunks<P> kernels_;
    std::vector<int64_t> windows_;               // of a row of results: where their entries begin
    std::vector<std::vector<WinnersTap>> taps_;  // of each chunk
    SumWinners<P> sum_;
};

std::unique_ptr<Step> make_conv_winners(const LayerSpec& s) {
    if (is_linear(s) || s.groups > 1 || s.winners >= s.input.channels) return nullptr;
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();  // of offsets of rows
    if (int64_t{s.input.channels} * kChunk * kLanes > kMost) return nullptr;
    if (s.input.dtype == DType::f32) return std::make_unique<ConvWinners<Floats>>(s);
    return kIsExact || requantizes_exactly(s) ? std::make_unique<ConvWinners<Pairs>>(s) : nullptr;
}

}  // namespace
}  // namespace cs
