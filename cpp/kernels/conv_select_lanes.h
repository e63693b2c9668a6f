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
// no weight, or of many channels sections of 64, are not visited: chunks are as narrow as pays for the weights at hand.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "select_lanes.h"

namespace cs {
namespace {

// The entries of an image.
template <class P>
struct ActiveList {
    int32_t* begin;  // [height, padded width * sections + 1]: of each section of a position; those of padding are empty
    Entry<P>* entry;
};

// The entries of a section from `found` on; how many there are then. row: of its first input, in the line.
template <class P, class X>
CS_TIER inline int32_t list_section(const X* x, int channels, int32_t row, int row_size, Entry<P>* list,
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

// padded: width of a line with its padding, of which `left` positions lie before it. section: its channels.
template <class P, class X>
CS_TIER void list_active(const X* x, const Tensor& image, int left, int padded, int section, int row_size,
                         const ActiveList<P>& list) {
    int32_t found = 0;
    int32_t* begin = list.begin;
    for (int y = 0; y < image.height; ++y) {
        for (int column = 0; column < padded; ++column) {
            const bool is_inside = column >= left && column < left + image.width;
            for (int first = 0; first < image.channels; first += section) {
                *begin++ = found;
                const int channels = std::min(section, image.channels - first), row = column * image.channels + first;
                if (is_inside) found = list_section<P>(x + first, channels, row, row_size, list.entry, found);
            }
            if (is_inside) x += image.channels;
        }
        *begin++ = found;
    }
}

// Neighbouring sections of one line of the window, [column, section], in which a chunk of kernels has weights.
struct Run {
    int line, first, end;
};

// A run in a row of results.
template <class P>
struct RunRow {
    const int32_t* begin;  // of the section that the run begins with for the first result
    int sections;          // of the run
    int stride;            // sections from one result to the next
    int results;
    const Entry<P>* entry;
    const typename P::Weight* weight;  // [positions of a line, VECTORS, kLanes], for the first result
    int64_t step;                      // weights from one result back to the next
    int32_t* sums;                     // [results, VECTORS, kLanes]
};

template <class P, int VECTORS>
CS_TIER void add_run(const RunRow<P>& of) {
    const RunRow<P> row = of;  // stores could change what it refers to, for all the compiler knows
    const int32_t* begin = row.begin;
    const auto* weight = row.weight;
    int32_t* sums = row.sums;
    for (int i = 0; i < row.results; ++i, begin += row.stride, weight -= row.step, sums += VECTORS * kLanes) {
        const Entry<P>*entry = row.entry + begin[0], *end = row.entry + begin[row.sections];
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

// For every chunk, the runs that it visits.
std::vector<std::vector<Run>> find_runs(int line_sections, const std::vector<std::vector<int>>& chunks) {
    std::vector<std::vector<Run>> found;
    for (const auto& sections : chunks) {
        std::vector<Run> runs;
        for (int section : sections) {
            const int line = section / line_sections, place = section % line_sections;
            const bool follows = !runs.empty() && runs.back().line == line && runs.back().end == place;
            if (!follows) runs.push_back({line, place, place});
            ++runs.back().end;
        }
        found.push_back(std::move(runs));
    }
    return found;
}

// Part of the results, the sums of which are computed together.
struct Band {
    int y, x, height, width;
};

// Sections of 64 channels where these leave out clearly more than whole taps: each may end in half a pair.
template <class W>
UsedSections choose_sections(const LayerSpec& s) {
    constexpr double kWorth = 0.75;
    UsedSections taps = find_used_sections<W>(s, s.input.channels), sections = find_used_sections<W>(s, 64);
    return sections.share() < kWorth * taps.share() ? sections : taps;
}

constexpr size_t kBandBytes = 16 << 10;  // of sums; about so much of the first-level cache

template <class P>
class ConvSelect final : public Step {
  public:
    explicit ConvSelect(const LayerSpec& s) : ConvSelect(s, choose_sections<typename P::Source>(s)) {}

    ConvSelect(const LayerSpec& s, const UsedSections& used)
        : input_(s.input),
          output_(s.output),
          window_(s.window),
          pool_h_(s.pool_h),
          pool_w_(s.pool_w),
          width_(padded_width(s)),
          section_(used.channels),
          sections_(used.sections),
          kernels_(s, choose_vectors(s, used)),
          runs_(find_runs(window_.kernel_w * sections_, chunk_sections(used, kernels_.size() / kGroup))),
          add_run_(add_run_of<P>(kernels_.vectors(), std::make_integer_sequence<int, kChunk / 2>())) {
        const int results = std::max<int>(1, kBandBytes / (sizeof(int32_t) * pool_h_ * pool_w_ * row_size()));
        band_.width = std::min(output_.width, results);
        band_.height = std::min(output_.height, std::max(1, results / band_.width));
    }

    size_t scratch_bytes() const override { return layout().end; }

    void run(const Call& call) const noexcept override {
        const RoundDown rounding(kernels_.in_float());
        const Layout at = layout();
        const ActiveList<P> list{reinterpret_cast<int32_t*>(call.scratch),
                                 reinterpret_cast<Entry<P>*>(call.scratch + at.entries)};
        auto* sums = reinterpret_cast<int32_t*>(call.scratch + at.sums);
        for (int64_t n = 0; n < call.samples; ++n) {
            select(sample<std::byte>(call.inputs[0], input_, n), list);
            auto* out = sample<std::byte>(call.output, output_, n);
            for (int chunk = 0; chunk < kernels_.count(); ++chunk) run_chunk(list, chunk, sums, out);
        }
    }

  private:
    int row_size() const { return kernels_.size(); }                           // weights of an input and a chunk
    int64_t line_sections() const { return int64_t{width_} * sections_ + 1; }  // and where the last one ends

    // Where its parts lie in the scratch memory, behind the beginnings of the list.
    struct Layout {
        size_t entries, sums, end;
    };

    Layout layout() const {
        const size_t entries = (section_ + P::kInputs - 1) / P::kInputs * sections_ * input_.positions() + kAhead;
        Layout at;
        at.entries = round_up(sizeof(int32_t) * input_.height * line_sections(), kAlignment);
        at.sums = at.entries + round_up(sizeof(Entry<P>) * entries, kAlignment);
        at.end = at.sums + sizeof(int32_t) * band_.height * pool_h_ * band_.width * pool_w_ * row_size();
        return at;
    }

    void select(const std::byte* image, const ActiveList<P>& list) const {
        with_elements<P>(image, input_.dtype, [&](const auto* x) {
            list_active<P>(x, input_, window_.pad_left, width_, section_, row_size(), list);
        });
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
        const int32_t* bias = kernels_.bias(chunk);
        for (int i = 0; i < count; ++i) {
            for (int o = 0; o < row_size(); o += kLanes, sums += kLanes) P::store(sums, P::load(bias + o));
        }
    }

    // Adds what a run sees of the lines of the image.
    void add_run(const ActiveList<P>& list, int chunk, const Run& run, const Band& band, int32_t* sums) const {
        const int64_t tap_size = int64_t{input_.channels} * row_size();
        const int width = band.width * pool_w_, left = band.x * pool_w_ * window_.stride_w;
        const auto* weight = kernels_.weight(chunk) + (int64_t{run.line} * window_.kernel_w - left) * tap_size;
        for (int i = 0; i < band.height * pool_h_; ++i, sums += width * row_size()) {
            const int y = (band.y * pool_h_ + i) * window_.stride_h - window_.pad_top + run.line;
            if (y < 0 || y >= input_.height) continue;
            add_run_({list.begin + y * line_sections() + left * sections_ + run.first, run.end - run.first,
                      window_.stride_w * sections_, width, list.entry, weight, window_.stride_w * tap_size, sums});
        }
    }

    CS_TIER void write_out(const int32_t* sums, int chunk, const Band& band, std::byte* out) const {
        const int width = band.width * pool_w_;
        for (int y = 0; y < band.height; ++y) {
            for (int x = 0; x < band.width; ++x) {
                typename P::Vector largest[kChunk];
                find_largest(sums + (int64_t{y} * pool_h_ * width + x * pool_w_) * row_size(), width, largest);
                const int64_t position = int64_t{band.y + y} * output_.width + band.x + x;
                kernels_.write(chunk, largest, out + kernels_.place(chunk, position));
            }
        }
    }

    // The largest sums of a pool's window, of a band so wide.
    CS_TIER void find_largest(const int32_t* sums, int width, typename P::Vector* largest) const {
        for (int v = 0; v < kernels_.vectors(); ++v) {
            auto value = P::load(sums + v * kLanes);
            const int32_t* line = sums + v * kLanes;
            for (int y = 0; y < pool_h_; ++y, line += width * row_size()) {
                for (int x = 0; x < pool_w_; ++x) value = P::max(value, P::load(line + x * row_size()));
            }
            P::store(largest + v, value);
        }
    }

    Tensor input_, output_;
    Window window_;
    int pool_h_, pool_w_;
    int width_;               // of a line with its padding
    int section_, sections_;  // channels of a section; sections of a position
    Chunks<P> kernels_;
    std::vector<std::vector<Run>> runs_;  // of each chunk
    AddRun<P> add_run_;
    Band band_;  // the largest
};

std::unique_ptr<Step> make_conv_select(const LayerSpec& s) {
    if (is_linear(s) || s.groups > 1) return nullptr;
    // Offsets of rows have 32 bits, and so have numbers of entries.
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    if (int64_t{s.input.width + s.window.pad_left} * s.input.channels * kChunk * kLanes > kMost) return nullptr;
    if (s.input.size() + s.input.positions() * (s.input.channels / 64 + 1) > kMost) return nullptr;
    if (s.input.dtype == DType::f32) return std::make_unique<ConvSelect<Floats>>(s);
    return kIsExact || requantizes_exactly(s) ? std::make_unique<ConvSelect<Pairs>>(s) : nullptr;
}

}  // namespace
}  // namespace cs
