// Convolution, sparse-sparse, int8 and float32: one body for several tiers. A file that includes it includes the
// vocabulary of its tier first (avx2_lanes.h, avx512_lanes.h) and says which of 64 bytes are not zero (nonzero_bytes).
//
// Why it is fast: the active inputs of an image are selected once, into a list in the order of memory. What a line of a
// window sees is then one stretch of the list, and since the rows of the weight matrix run in the same order, the row
// of an entry lies at its own offset plus a constant of the window: nothing is searched, padded or copied. The lanes
// are kernels, whose sums stay in registers over the stretch. Of int8, the weights of two active inputs are interleaved
// to pairs (a shuffle per vector of sums) for VPMADDWD, which costs less than two multiplications.
//
// The kernels go in chunks, and the lines of a chunk's windows one after the other through a band of results, whose
// sums lie in the first-level cache: the weights of a line stay there, too, or in the second. Taps in which a chunk has
// no weight are not visited: chunks are as narrow as pays for the weights at hand.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "../aligned.h"
#include "arithmetic.h"
#include "dot_layout.h"

namespace cs {
namespace {

constexpr int kChunk = kTile / 3 * 2;  // vectors of sums in registers

#define CS_UNROLL _Pragma("GCC unroll 32")

// As many inputs that are not zero as are multiplied at once, neighbours in memory; a zero may fill up the last.
template <class P>
struct Entry {
    int32_t offset[P::kInputs];  // where the row of weights of each begins, as if a window began with the line
    typename P::Input value[P::kInputs];
};

// Those of an image.
template <class P>
struct ActiveList {
    int32_t* begin;  // [height, padded width + 1]: where the entries of a position begin; those of padding have none
    Entry<P>* entry;
};

// A bit for every value that is not zero, of up to 64.
CS_TIER inline uint64_t active_bits(const uint8_t* x, int64_t count) {
    return nonzero_bytes(x) & (count < 64 ? (uint64_t{1} << count) - 1 : ~uint64_t{0});
}
CS_TIER inline uint64_t active_bits(const int8_t* x, int64_t count) {
    return active_bits(reinterpret_cast<const uint8_t*>(x), count);
}
CS_TIER inline uint64_t active_bits(const float* x, int64_t count) {
    uint64_t bits = 0;
    for (int64_t i = 0; i < std::min<int64_t>(count, 64); i += kLanes) {
        bits |= uint64_t{nonzero_lanes(reinterpret_cast<const int32_t*>(x + i))} << i;
    }
    return bits & (count < 64 ? (uint64_t{1} << count) - 1 : ~uint64_t{0});
}

// The entries of a position from `found` on; how many there are then.
template <class P, class X>
CS_TIER inline int32_t list_position(const X* x, int channels, int32_t row, int row_size, Entry<P>* list,
                                     int32_t found) {
    unsigned n = 0;
    for (int first = 0; first < channels; first += 64) {
        for (uint64_t bits = active_bits(x + first, channels - first); bits; bits &= bits - 1, ++n) {
            const int channel = first + __builtin_ctzll(bits);
            Entry<P>& entry = list[found + n / P::kInputs];
            entry.offset[n % P::kInputs] = (row + channel) * row_size;
            entry.value[n % P::kInputs] = static_cast<typename P::Input>(x[channel]);
        }
    }
    for (; n % P::kInputs; ++n) {
        list[found + n / P::kInputs].offset[n % P::kInputs] = row * row_size;
        list[found + n / P::kInputs].value[n % P::kInputs] = 0;
    }
    return found + n / P::kInputs;
}

// padded: width of a line with its padding, of which `left` positions lie before it.
template <class P, class X>
CS_TIER void list_active(const X* x, const Tensor& image, int left, int padded, int row_size,
                         const ActiveList<P>& list) {
    int32_t found = 0;
    int32_t* begin = list.begin;
    for (int y = 0; y < image.height; ++y) {
        for (int column = 0; column <= padded; ++column) {
            *begin++ = found;
            if (column < left || column >= left + image.width) continue;
            found = list_position<P>(x, image.channels, column * image.channels, row_size, list.entry, found);
            x += image.channels;
        }
    }
}

// Neighbouring taps of one line of the window in which a chunk of kernels has weights.
struct Run {
    int line, first, end;
};

// A run in a row of results.
template <class P>
struct RunRow {
    const int32_t* begin;  // of the position that the first tap sees for the first result
    int taps;              // of the run
    int stride;            // positions from one result to the next
    int results;
    const Entry<P>* entry;
    const typename P::Weight* weight;  // [positions of a line, VECTORS, kLanes], for the first result
    int64_t step;                      // weights from one result back to the next
    int32_t* sums;                     // [results, VECTORS, kLanes]
};

constexpr int kAhead = 4;  // entries whose weights are prefetched

template <size_t kBytes>
CS_TIER inline void prefetch(const void* row) {
    CS_UNROLL for (size_t i = 0; i < kBytes; i += 64) { _mm_prefetch(static_cast<const char*>(row) + i, _MM_HINT_T0); }
}

template <int VECTORS>
CS_TIER inline void add_products(const Entry<Floats>& entry, const float* weight, typename Floats::Vector* sum) {
    const auto value = Floats::broadcast(entry.value);
    weight += entry.offset[0];
    CS_UNROLL for (int v = 0; v < VECTORS; ++v) {
        sum[v] = Floats::multiply_add(sum[v], value, Floats::load(weight + v * kLanes));
    }
}

// The vectors of two rows hold two vectors of kernels each, in the order that interleaving undoes.
template <int VECTORS>
CS_TIER inline void add_products(const Entry<Pairs>& entry, const int16_t* weight, typename Pairs::Vector* sum) {
    const auto pair = Pairs::broadcast(entry.value);
    const int16_t *first = weight + entry.offset[0], *second = weight + entry.offset[1];
    if constexpr (VECTORS > 4) {  // narrower chunks lie in the first cache
        prefetch<VECTORS * kLanes * 2>(weight + (&entry)[kAhead].offset[0]);
        prefetch<VECTORS * kLanes * 2>(weight + (&entry)[kAhead].offset[1]);
    }
    CS_UNROLL for (int v = 0; v < VECTORS; v += 2) {
        const auto a = Pairs::load_once(first + v * kLanes), b = Pairs::load_once(second + v * kLanes);
        sum[v] = Pairs::multiply_add(sum[v], pair, Pairs::interleave_low(a, b));
        sum[v + 1] = Pairs::multiply_add(sum[v + 1], pair, Pairs::interleave_high(a, b));
    }
}

template <class P, int VECTORS>
CS_TIER void add_run(const RunRow<P>& of) {
    const RunRow<P> row = of;  // stores could change what it refers to, for all the compiler knows
    const int32_t* begin = row.begin;
    const auto* weight = row.weight;
    int32_t* sums = row.sums;
    for (int i = 0; i < row.results; ++i, begin += row.stride, weight -= row.step, sums += VECTORS * kLanes) {
        const Entry<P>*entry = row.entry + begin[0], *end = row.entry + begin[row.taps];
        if (entry == end) continue;
        typename P::Vector sum[VECTORS];
        CS_UNROLL for (int v = 0; v < VECTORS; ++v) sum[v] = P::load(sums + v * kLanes);
        do add_products<VECTORS>(*entry, weight, sum);
        while (++entry < end);
        CS_UNROLL for (int v = 0; v < VECTORS; ++v) P::store(sums + v * kLanes, sum[v]);
    }
}

template <class P>
using AddRun = void (*)(const RunRow<P>&);

// vectors: an even number.
template <class P, int... kPairs>
AddRun<P> add_run_of(int vectors, std::integer_sequence<int, kPairs...>) {
    static constexpr AddRun<P> all[] = {add_run<P, 2 * kPairs + 2>...};
    return all[vectors / 2 - 1];
}

constexpr int kGroup = 2 * kLanes;  // kernels; a chunk has whole groups

// Whether a group of kernels has a weight at a tap: [taps, groups].
struct UsedTaps {
    int groups;
    std::vector<char> used;

    bool any(int tap, int first, int end) const {
        const auto line = used.begin() + int64_t{tap} * groups;
        return std::any_of(line + first, line + std::min(end, groups), [](char is_used) { return is_used; });
    }
};

template <class W>
UsedTaps find_used_taps(const LayerSpec& s) {
    const int taps = s.window.kernel_h * s.window.kernel_w, groups = (s.kernels + kGroup - 1) / kGroup;
    UsedTaps found{groups, std::vector<char>(int64_t{taps} * groups)};
    const auto* weight = static_cast<const W*>(s.dense);
    for (int64_t row = 0; row < s.rows; ++row, weight += s.kernels) {
        char* used = &found.used[row / s.input.channels * groups];
        for (int kernel = 0; kernel < s.kernels; ++kernel) used[kernel / kGroup] |= weight[kernel] != 0;
    }
    return found;
}

// For every chunk of so many groups of kernels, the runs that it visits.
std::vector<std::vector<Run>> find_runs(const Window& window, const UsedTaps& used, int groups) {
    std::vector<std::vector<Run>> chunks;
    for (int first = 0; first < used.groups; first += groups) {
        std::vector<Run> runs;
        for (int tap = 0; tap < window.kernel_h * window.kernel_w; ++tap) {
            if (!used.any(tap, first, first + groups)) continue;
            const int line = tap / window.kernel_w, column = tap % window.kernel_w;
            const bool follows = !runs.empty() && runs.back().line == line && runs.back().end == column;
            if (!follows) runs.push_back({line, column, column});
            ++runs.back().end;
        }
        chunks.push_back(std::move(runs));
    }
    return chunks;
}

// Vectors of kernels in a chunk: visiting an entry costs about as much as four vectors of its products.
int choose_vectors(const LayerSpec& s, const UsedTaps& used) {
    constexpr int kVisit = 4;
    const int all = static_cast<int>(round_up((s.kernels + kLanes - 1) / kLanes, 2));
    int best = 0;
    int64_t least = std::numeric_limits<int64_t>::max();
    for (int vectors = std::min(kChunk, all); vectors >= 2; vectors -= 2) {
        int64_t taps = 0;
        for (const auto& runs : find_runs(s.window, used, vectors / 2)) {
            for (const Run& run : runs) taps += run.end - run.first;
        }
        const int64_t cost = taps * (kVisit + vectors);
        if (cost >= least) continue;
        least = cost;
        best = vectors;
    }
    return best;
}

// Part of the results, the sums of which are computed together.
struct Band {
    int y, x, height, width;
};

constexpr size_t kBandBytes = 16 << 10;  // of sums; about so much of the first-level cache

template <class P>
class ConvSelect final : public Step {
  public:
    explicit ConvSelect(const LayerSpec& s) : ConvSelect(s, find_used_taps<typename P::Source>(s)) {}

    ConvSelect(const LayerSpec& s, const UsedTaps& used)
        : input_(s.input),
          output_(s.output),
          window_(s.window),
          kernels_(s.kernels),
          pool_h_(s.pool_h),
          pool_w_(s.pool_w),
          width_(std::max(input_.width + window_.pad_left, (s.conv_width - 1) * window_.stride_w + window_.kernel_w)),
          vectors_(choose_vectors(s, used)),
          runs_(find_runs(s.window, used, vectors_ / 2)),
          weight_(int64_t{chunks()} * s.rows * row_size()),
          bias_(int64_t{chunks()} * row_size()),
          scale_(padded_scale(s)),
          in_float_(requantizes_in_float(s)),
          add_run_(add_run_of<P>(vectors_, std::make_integer_sequence<int, kChunk / 2>())) {
        const auto bias = padded_bias(s);
        std::copy_n(bias.begin(), s.kernels, bias_.begin());
        lay_out(static_cast<const typename P::Source*>(s.dense), s.rows);
        const int results = std::max<int>(1, kBandBytes / (sizeof(int32_t) * pool_h_ * pool_w_ * row_size()));
        band_.width = std::min(output_.width, results);
        band_.height = std::min(output_.height, std::max(1, results / band_.width));
    }

    size_t scratch_bytes() const override { return layout().end; }

    void run(const Call& call) const noexcept override {
        const RoundDown rounding(in_float_);
        const Layout at = layout();
        const ActiveList<P> list{reinterpret_cast<int32_t*>(call.scratch),
                                 reinterpret_cast<Entry<P>*>(call.scratch + at.entries)};
        auto* sums = reinterpret_cast<int32_t*>(call.scratch + at.sums);
        for (int64_t n = 0; n < call.samples; ++n) {
            select(sample<std::byte>(call.inputs[0], input_, n), list);
            auto* out = sample<std::byte>(call.output, output_, n);
            for (int chunk = 0; chunk < chunks(); ++chunk) run_chunk(list, chunk, sums, out);
        }
    }

  private:
    using Input = typename P::Input;
    using Weight = typename P::Weight;

    int chunks() const { return static_cast<int>(runs_.size()); }
    int row_size() const { return vectors_ * kLanes; }  // weights of an input and a chunk
    int64_t chunk_size() const { return static_cast<int64_t>(weight_.size()) / chunks(); }

    // Where its parts lie in the scratch memory, behind the beginnings of the list.
    struct Layout {
        size_t entries, sums, end;
    };

    Layout layout() const {
        const size_t entries = input_.positions() * ((input_.channels + P::kInputs - 1) / P::kInputs) + kAhead;
        Layout at;
        at.entries = round_up(sizeof(int32_t) * input_.height * (width_ + 1), kAlignment);
        at.sums = at.entries + round_up(sizeof(Entry<P>) * entries, kAlignment);
        at.end = at.sums + sizeof(int32_t) * band_.height * pool_h_ * band_.width * pool_w_ * row_size();
        return at;
    }

    // Weights [rows, kernels] to [chunk, row, vector, lane].
    void lay_out(const typename P::Source* dense, int rows) {
        std::vector<int64_t> place;  // of each kernel, in the first row
        for (int kernel = 0; kernel < kernels_; ++kernel) {
            place.push_back(kernel / row_size() * chunk_size() + P::place_in_row(kernel % row_size()));
        }
        for (int64_t row = 0; row < rows; ++row, dense += kernels_) {
            Weight* to = weight_.data() + row * row_size();
            for (int kernel = 0; kernel < kernels_; ++kernel) to[place[kernel]] = dense[kernel];
        }
    }

    void select(const std::byte* image, const ActiveList<P>& list) const {
        if constexpr (std::is_same_v<Input, float>) {
            list_active<P>(reinterpret_cast<const float*>(image), input_, window_.pad_left, width_, row_size(), list);
        } else if (input_.dtype == DType::u8) {
            list_active<P>(reinterpret_cast<const uint8_t*>(image), input_, window_.pad_left, width_, row_size(), list);
        } else {
            list_active<P>(reinterpret_cast<const int8_t*>(image), input_, window_.pad_left, width_, row_size(), list);
        }
    }

    void run_chunk(const ActiveList<P>& list, int chunk, int32_t* sums, std::byte* out) const {
        for (int y = 0; y < output_.height; y += band_.height) {
            for (int x = 0; x < output_.width; x += band_.width) {
                const Band band{y, x, std::min(band_.height, output_.height - y),
                                std::min(band_.width, output_.width - x)};
                begin_sums(chunk, band.height * pool_h_ * band.width * pool_w_, sums);
                for (const Run& run : runs_[chunk]) add_run(list, chunk, run, band, sums);
                write_out(sums, chunk, band, out);
            }
        }
    }

    CS_TIER void begin_sums(int chunk, int count, int32_t* sums) const {
        const int32_t* bias = bias_.data() + int64_t{chunk} * row_size();
        for (int i = 0; i < count; ++i) {
            for (int o = 0; o < row_size(); o += kLanes, sums += kLanes) P::store(sums, P::load(bias + o));
        }
    }

    // Adds what a run sees of the lines of the image.
    void add_run(const ActiveList<P>& list, int chunk, const Run& run, const Band& band, int32_t* sums) const {
        const int64_t tap_size = int64_t{input_.channels} * row_size();
        const int width = band.width * pool_w_, left = band.x * pool_w_ * window_.stride_w + run.first;
        const int64_t row = int64_t{run.line} * window_.kernel_w + run.first - left;
        const Weight* weight = weight_.data() + chunk * chunk_size() + row * tap_size;
        for (int i = 0; i < band.height * pool_h_; ++i, sums += width * row_size()) {
            const int y = (band.y * pool_h_ + i) * window_.stride_h - window_.pad_top + run.line;
            if (y < 0 || y >= input_.height) continue;
            add_run_({list.begin + int64_t{y} * (width_ + 1) + left, run.end - run.first, window_.stride_w, width,
                      list.entry, weight, window_.stride_w * tap_size, sums});
        }
    }

    CS_TIER void write_out(const int32_t* sums, int chunk, const Band& band, std::byte* out) const {
        const auto element = static_cast<int64_t>(element_bytes(output_.dtype));
        const int width = band.width * pool_w_, first = chunk * row_size();
        for (int y = 0; y < band.height; ++y) {
            for (int x = 0; x < band.width; ++x) {
                const int64_t position = int64_t{band.y + y} * output_.width + band.x + x;
                write_result(sums + (int64_t{y} * pool_h_ * width + x * pool_w_) * row_size(), width, first,
                             out + (position * kernels_ + first) * element);
            }
        }
    }

    // The largest sums of a pool's window, of a band so wide.
    CS_TIER void write_result(const int32_t* sums, int width, int first, std::byte* out) const {
        const auto element = static_cast<int64_t>(element_bytes(output_.dtype));
        const int count = std::min(row_size(), kernels_ - first);
        for (int o = 0; o < count; o += kLanes) {
            auto value = P::load(sums + o);
            const int32_t* line = sums + o;
            for (int y = 0; y < pool_h_; ++y, line += width * row_size()) {
                for (int x = 0; x < pool_w_; ++x) value = P::max(value, P::load(line + x * row_size()));
            }
            const float* scale = scale_.empty() ? nullptr : scale_.data() + first + o;
            P::write(out + o * element, std::min(kLanes, count - o), value, scale, output_.dtype, in_float_);
        }
    }

    Tensor input_, output_;
    Window window_;
    int kernels_, pool_h_, pool_w_;
    int width_;                           // of a line with its padding
    int vectors_;                         // of kernels in a chunk
    std::vector<std::vector<Run>> runs_;  // of each chunk
    AlignedVector<Weight> weight_;        // [chunk, row, vector, lane]
    AlignedVector<int32_t> bias_;         // [chunk, vector, lane]
    AlignedVector<float> scale_;          // [kernel]
    bool in_float_;
    AddRun<P> add_run_;
    Band band_;  // the largest
};

std::unique_ptr<Step> make_conv_select(const LayerSpec& s) {
    if (is_linear(s) || s.groups > 1) return nullptr;
    // Offsets of rows have 32 bits, and so have numbers of entries.
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    if (int64_t{s.input.width + s.window.pad_left} * s.input.channels * kChunk * kLanes > kMost) return nullptr;
    if (s.input.size() + s.input.positions() > kMost) return nullptr;
    if (s.input.dtype == DType::f32) return std::make_unique<ConvSelect<Floats>>(s);
    return kIsExact || requantizes_exactly(s) ? std::make_unique<ConvSelect<Pairs>>(s) : nullptr;
}

}  // namespace
}  // namespace cs
