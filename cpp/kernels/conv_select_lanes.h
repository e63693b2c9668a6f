// Convolution, sparse-sparse, int8 and float32: one body for several tiers. A file that includes it includes the
// vocabulary of its tier first (avx2_lanes.h, avx512_lanes.h) and says which of 64 bytes are not zero (nonzero_bytes).
//
// Why it is fast: the active inputs of an image are selected once, into a list in the order of memory. What a line of a
// window sees is then one stretch of the list, and since the rows of the weight matrix run in the same order, the row
// of an entry lies at its own offset plus a constant of the line: the stretches of a window are joined, eight entries
// per instruction, and nothing is searched or padded. The lanes are kernels, whose sums stay in registers over the
// whole window. Of int8, the weights of two active inputs are interleaved to pairs (a shuffle per vector of sums) for
// VPMADDWD, which costs less than two multiplications.
//
// The kernels go in chunks through the whole image, so that a chunk's weights stay in the cache from one position to
// the next. Taps in which a chunk has no weight are not visited: chunks are as narrow as pays for the weights at hand.
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

constexpr int kStep = 8;   // entries that are copied at a time
constexpr int kAhead = 8;  // entries whose weights are prefetched

// Inputs that are not zero.
template <class Input>
struct Entries {
    int32_t* offset;  // of each, where its row of weights begins
    Input* value;
};

// Those of an image; a row of weights belongs to every input of it.
template <class Input>
struct ActiveList {
    int32_t* begin;  // [positions + 1]: where the entries of a position begin
    Entries<Input> all;
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

template <class X, class Input>
CS_TIER void list_active(const X* x, const Tensor& image, int row_size, ActiveList<Input> list) {
    int32_t found = 0;
    const int64_t positions = image.positions();
    for (int64_t position = 0; position < positions; ++position, x += image.channels) {
        list.begin[position] = found;
        for (int first = 0; first < image.channels; first += 64) {
            for (uint64_t bits = active_bits(x + first, image.channels - first); bits; bits &= bits - 1, ++found) {
                const int channel = first + __builtin_ctzll(bits);
                list.all.offset[found] = static_cast<int32_t>(position * image.channels + channel) * row_size;
                list.all.value[found] = static_cast<Input>(x[channel]);
            }
        }
    }
    list.begin[positions] = found;
}

// Appends `count` entries, each offset moved by `move`, in whole steps: what is too much is overwritten.
template <class Input>
CS_TIER inline void append(const Entries<Input>& from, int count, int32_t move, const Entries<Input>& to) {
    typedef int32_t Offsets __attribute__((vector_size(sizeof(int32_t) * kStep)));
    int n = 0;
    do {  // also where there are none: most runs take one step, which is then no branch to guess
        Offsets offsets;
        std::memcpy(&offsets, from.offset + n, sizeof offsets);
        offsets += move;
        std::memcpy(to.offset + n, &offsets, sizeof offsets);
        std::memcpy(to.value + n, from.value + n, sizeof(Input) * kStep);
        n += kStep;
    } while (n < count);
}

// The entries of a window, and a chunk's rows of weights [VECTORS, kLanes].
template <class P>
struct Selected {
    Entries<typename P::Input> entries;
    int count;  // even where two entries are multiplied at once
    const typename P::Weight* weight;
    const int32_t* bias;  // [VECTORS, kLanes]
};

template <size_t kBytes>
CS_TIER inline void prefetch(const void* row) {
    CS_UNROLL for (size_t i = 0; i < kBytes; i += 64) { _mm_prefetch(static_cast<const char*>(row) + i, _MM_HINT_T0); }
}

template <int VECTORS>
CS_TIER inline void add_products(const Selected<Floats>& s, typename Floats::Vector* sum) {
    for (int n = 0; n < s.count; ++n) {
        const auto value = Floats::broadcast(s.entries.value + n);
        const float* weight = s.weight + s.entries.offset[n];
        CS_UNROLL for (int v = 0; v < VECTORS; ++v) {
            sum[v] = Floats::multiply_add(sum[v], value, Floats::load(weight + v * kLanes));
        }
    }
}

// The vectors of two rows hold two vectors of kernels each, in the order that interleaving undoes.
template <int VECTORS>
CS_TIER inline void add_products(const Selected<Pairs>& s, typename Pairs::Vector* sum) {
    for (int n = 0; n < s.count; n += 2) {
        const auto pair = Pairs::broadcast(s.entries.value + n);
        const int16_t *first = s.weight + s.entries.offset[n], *second = s.weight + s.entries.offset[n + 1];
        if constexpr (VECTORS > 4) {  // narrower chunks lie in the first cache
            prefetch<VECTORS * kLanes * 2>(s.weight + s.entries.offset[n + kAhead]);
            prefetch<VECTORS * kLanes * 2>(s.weight + s.entries.offset[n + kAhead + 1]);
        }
        CS_UNROLL for (int v = 0; v < VECTORS; v += 2) {
            const auto a = Pairs::load(first + v * kLanes), b = Pairs::load(second + v * kLanes);
            sum[v] = Pairs::multiply_add(sum[v], pair, Pairs::interleave_low(a, b));
            sum[v + 1] = Pairs::multiply_add(sum[v + 1], pair, Pairs::interleave_high(a, b));
        }
    }
}

// Sums of a chunk of kernels over a window.
template <class P, int VECTORS>
CS_TIER void sum_window(const Selected<P>& s, int32_t* sums) {
    typename P::Vector sum[VECTORS];
    CS_UNROLL for (int v = 0; v < VECTORS; ++v) sum[v] = P::load(s.bias + v * kLanes);
    add_products<VECTORS>(s, sum);
    CS_UNROLL for (int v = 0; v < VECTORS; ++v) P::store(sums + v * kLanes, sum[v]);
}

template <class P>
using SumWindow = void (*)(const Selected<P>&, int32_t*);

// vectors: an even number.
template <class P, int... kPairs>
SumWindow<P> sum_window_of(int vectors, std::integer_sequence<int, kPairs...>) {
    static constexpr SumWindow<P> all[] = {sum_window<P, 2 * kPairs + 2>...};
    return all[vectors / 2 - 1];
}

// Neighbouring taps of one line of the window in which a chunk of kernels has weights.
struct Run {
    int line, first, end;
    int move;  // from a position's place in the image, less that of the window, to its tap's in the window
};

// For every chunk of kernels, the runs that it visits.
struct Runs {
    std::vector<int> begin;  // [chunks + 1]
    std::vector<Run> run;
    int64_t taps = 0;  // in all runs
};

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

Runs find_runs(const LayerSpec& s, const UsedTaps& used, int groups) {
    Runs found;
    for (int first = 0; first < used.groups; first += groups) {
        found.begin.push_back(static_cast<int>(found.run.size()));
        for (int tap = 0; tap < s.window.kernel_h * s.window.kernel_w; ++tap) {
            if (!used.any(tap, first, first + groups)) continue;
            const int line = tap / s.window.kernel_w, column = tap % s.window.kernel_w;
            const bool follows = static_cast<int>(found.run.size()) > found.begin.back() &&
                                 found.run.back().line == line && found.run.back().end == column;
            if (!follows) found.run.push_back({line, column, column, line * (s.window.kernel_w - s.input.width)});
            ++found.run.back().end;
            ++found.taps;
        }
    }
    found.begin.push_back(static_cast<int>(found.run.size()));
    return found;
}

// Vectors of kernels in a chunk: visiting an entry costs about as much as four vectors of its products.
int choose_vectors(const LayerSpec& s, const UsedTaps& used) {
    constexpr int kVisit = 4;
    const int all = static_cast<int>(round_up((s.kernels + kLanes - 1) / kLanes, 2));
    int best = 0;
    int64_t least = std::numeric_limits<int64_t>::max();
    for (int vectors = std::min(kChunk, all); vectors >= 2; vectors -= 2) {
        const int64_t cost = find_runs(s, used, vectors / 2).taps * (kVisit + vectors);
        if (cost >= least) continue;
        least = cost;
        best = vectors;
    }
    return best;
}

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
          vectors_(choose_vectors(s, used)),
          chunks_((s.kernels + row_size() - 1) / row_size()),
          runs_(find_runs(s, used, vectors_ / 2)),
          weight_(int64_t{chunks_} * s.rows * row_size()),
          bias_(int64_t{chunks_} * row_size()),
          scale_(padded_scale(s)),
          in_float_(requantizes_in_float(s)),
          sum_window_(sum_window_of<P>(vectors_, std::make_integer_sequence<int, kChunk / 2>())) {
        const auto bias = padded_bias(s);
        std::copy_n(bias.begin(), s.kernels, bias_.begin());
        lay_out(static_cast<const typename P::Source*>(s.dense), s.rows);
    }

    size_t scratch_bytes() const override { return layout().end; }

    void run(const Call& call) const noexcept override {
        const RoundDown rounding(in_float_);
        const Layout at = layout();
        const Work work{{reinterpret_cast<int32_t*>(call.scratch),
                         {reinterpret_cast<int32_t*>(call.scratch + at.offsets),
                          reinterpret_cast<Input*>(call.scratch + at.values)}},
                        {reinterpret_cast<int32_t*>(call.scratch + at.window_offsets),
                         reinterpret_cast<Input*>(call.scratch + at.window_values)},
                        reinterpret_cast<int32_t*>(call.scratch + at.sums)};
        for (int64_t n = 0; n < call.samples; ++n) {
            select(sample<std::byte>(call.inputs[0], input_, n), work.list);
            auto* out = sample<std::byte>(call.output, output_, n);
            for (int chunk = 0; chunk < chunks_; ++chunk) run_chunk(work, chunk, out);
        }
    }

  private:
    using Input = typename P::Input;
    using Weight = typename P::Weight;

    int row_size() const { return vectors_ * kLanes; }  // weights of an input and a chunk
    int64_t chunk_size() const { return static_cast<int64_t>(weight_.size()) / chunks_; }

    struct Work {
        ActiveList<Input> list;
        Entries<Input> window;
        int32_t* sums;  // of the positions of a pool
    };

    // Where its parts lie in the scratch memory, behind the beginnings of the list.
    struct Layout {
        size_t offsets, values, window_offsets, window_values, sums, end;
    };

    Layout layout() const {
        const size_t all = input_.size() + kStep;
        const size_t window = int64_t{window_.kernel_h} * window_.kernel_w * input_.channels + kStep + kAhead + 2;
        Layout at;
        at.offsets = round_up(sizeof(int32_t) * (input_.positions() + 1), kAlignment);
        at.values = at.offsets + round_up(sizeof(int32_t) * all, kAlignment);
        at.window_offsets = at.values + round_up(sizeof(Input) * all, kAlignment);
        at.window_values = at.window_offsets + round_up(sizeof(int32_t) * window, kAlignment);
        at.sums = at.window_values + round_up(sizeof(Input) * window, kAlignment);
        at.end = at.sums + sizeof(int32_t) * pool_h_ * pool_w_ * row_size();
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

    void select(const std::byte* image, const ActiveList<Input>& list) const {
        if constexpr (std::is_same_v<Input, float>) {
            list_active(reinterpret_cast<const float*>(image), input_, row_size(), list);
        } else if (input_.dtype == DType::u8) {
            list_active(reinterpret_cast<const uint8_t*>(image), input_, row_size(), list);
        } else {
            list_active(reinterpret_cast<const int8_t*>(image), input_, row_size(), list);
        }
    }

    void run_chunk(const Work& work, int chunk, std::byte* out) const {
        const auto element = static_cast<int64_t>(element_bytes(output_.dtype));
        const Weight* weight = weight_.data() + chunk * chunk_size();
        const int32_t* bias = bias_.data() + int64_t{chunk} * row_size();
        out += int64_t{chunk} * row_size() * element;
        for (int y = 0; y < output_.height; ++y) {
            for (int x = 0; x < output_.width; ++x, out += kernels_ * element) {
                for (int i = 0; i < pool_h_ * pool_w_; ++i) {
                    const int count = join_window(work, chunk, y * pool_h_ + i / pool_w_, x * pool_w_ + i % pool_w_);
                    sum_window_({work.window, count, weight, bias}, work.sums + i * row_size());
                }
                write_out(work.sums, chunk, out);
            }
        }
    }

    // The entries that a window sees; their number.
    CS_TIER int join_window(const Work& work, int chunk, int y, int x) const {
        const int top = y * window_.stride_h - window_.pad_top, left = x * window_.stride_w - window_.pad_left;
        const bool is_inside =
            top >= 0 && left >= 0 && top + window_.kernel_h <= input_.height && left + window_.kernel_w <= input_.width;
        int count = is_inside ? join_all(work, chunk, top, left) : join_clipped(work, chunk, top, left);
        if (P::kInputs == 2 && count % 2) {  // the last one's partner is a zero at any row
            work.window.offset[count] = 0;
            work.window.value[count++] = 0;
        }
        return count;
    }

    CS_TIER int join_all(const Work& work, int chunk, int top, int left) const {
        const int width = input_.width, window = top * width + left, row = input_.channels * row_size();
        const Work at = work;  // stores could change what it refers to, for all the compiler knows
        const Run* end = runs_.run.data() + runs_.begin[chunk + 1];
        int count = 0;
        for (const Run* run = runs_.run.data() + runs_.begin[chunk]; run < end; ++run) {
            const int first = window + run->line * width + run->first;
            count = join(at, first, first + run->end - run->first, (run->move - window) * row, count);
        }
        return count;
    }

    // Where windows reach beyond the image.
    CS_TIER int join_clipped(const Work& work, int chunk, int top, int left) const {
        const int window = top * input_.width + left, row = input_.channels * row_size();
        int count = 0;
        for (int i = runs_.begin[chunk]; i < runs_.begin[chunk + 1]; ++i) {
            const Run& run = runs_.run[i];
            const int line = (top + run.line) * input_.width;
            const int first = std::max(0, left + run.first), end = std::min(input_.width, left + run.end);
            if (line < 0 || line >= input_.height * input_.width || first >= end) continue;
            count = join(work, line + first, line + end, (run.move - window) * row, count);
        }
        return count;
    }

    // Appends the entries of some positions to those of the window, of which there are `count`; how many there are now.
    CS_TIER static int join(const Work& work, int first, int end, int32_t move, int count) {
        const int begin = work.list.begin[first], found = work.list.begin[end] - begin;
        append<Input>({work.list.all.offset + begin, work.list.all.value + begin}, found, move,
                      {work.window.offset + count, work.window.value + count});
        return count + found;
    }

    CS_TIER void write_out(const int32_t* sums, int chunk, std::byte* out) const {
        const auto element = static_cast<int64_t>(element_bytes(output_.dtype));
        const int first = chunk * row_size(), count = std::min(row_size(), kernels_ - first);
        for (int o = 0; o < count; o += kLanes) {
            auto value = P::load(sums + o);
            for (int i = 1; i < pool_h_ * pool_w_; ++i) value = P::max(value, P::load(sums + i * row_size() + o));
            const float* scale = scale_.empty() ? nullptr : scale_.data() + first + o;
            P::write(out + o * element, std::min(kLanes, count - o), value, scale, output_.dtype, in_float_);
        }
    }

    Tensor input_, output_;
    Window window_;
    int kernels_, pool_h_, pool_w_;
    int vectors_, chunks_;  // vectors of kernels in a chunk
    Runs runs_;
    AlignedVector<Weight> weight_;  // [chunk, row, vector, lane]
    AlignedVector<int32_t> bias_;   // [chunk, vector, lane]
    AlignedVector<float> scale_;    // [kernel]
    bool in_float_;
    SumWindow<P> sum_window_;
};

std::unique_ptr<Step> make_conv_select(const LayerSpec& s) {
    if (is_linear(s) || s.groups > 1) return nullptr;
    // Offsets of rows have 32 bits, for every input of the image and of the window.
    if ((s.input.size() + s.rows) * kChunk * kLanes > std::numeric_limits<int32_t>::max()) return nullptr;
    if (s.input.dtype == DType::f32) return std::make_unique<ConvSelect<Floats>>(s);
    return kIsExact || requantizes_exactly(s) ? std::make_unique<ConvSelect<Pairs>>(s) : nullptr;
}

}  // namespace
}  // namespace cs
