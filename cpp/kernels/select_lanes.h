// What sparse-sparse convolutions of several tiers share: active inputs are selected into entries, whose products with
// their rows of weights are added to sums in registers. A file that includes it includes the vocabulary of its tier
// first (avx2_lanes.h, avx512_lanes.h) and says which of 64 bytes are not zero (nonzero_bytes).
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "../aligned.h"
#include "arithmetic.h"
#include "dot_layout.h"

namespace cs {
namespace {

#define CS_UNROLL _Pragma("GCC unroll 32")

// As many inputs that are not zero as are multiplied at once, neighbours in memory; a zero may fill up the last.
template <class P>
struct Entry {
    int32_t offset[P::kInputs];  // where the row of weights of each begins
    typename P::Input value[P::kInputs];
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

constexpr int kChunk = kTile / 3 * 2;  // the most vectors of sums in registers
constexpr int kGroup = 2 * kLanes;     // kernels; a chunk has whole groups

// A tap's channels in sections of equal size, and whether a group of kernels has a weight there: [taps, sections,
// groups].
struct UsedSections {
    int channels, sections, groups;  // channels of a section; sections of a tap
    std::vector<char> used;

    bool any(int64_t section, int first, int end) const {
        const auto line = used.begin() + section * groups;
        return std::any_of(line + first, line + std::min(end, groups), [](char is_used) { return is_used; });
    }
    double share() const { return static_cast<double>(std::count(used.begin(), used.end(), 1)) / used.size(); }
};

template <class W>
UsedSections find_used_sections(const LayerSpec& s, int channels) {
    const int sections = (s.input.channels + channels - 1) / channels, groups = (s.kernels + kGroup - 1) / kGroup;
    const int64_t taps = int64_t{s.window.kernel_h} * s.window.kernel_w;
    UsedSections found{channels, sections, groups, std::vector<char>(taps * sections * groups)};
    const auto* weight = static_cast<const W*>(s.dense);
    for (int64_t row = 0; row < s.rows; ++row, weight += s.kernels) {
        const int64_t tap = row / s.input.channels, section = row % s.input.channels / channels;
        char* used = &found.used[(tap * sections + section) * groups];
        for (int kernel = 0; kernel < s.kernels; ++kernel) used[kernel / kGroup] |= weight[kernel] != 0;
    }
    return found;
}

// For every chunk of so many groups of kernels, the sections [tap, section] in which it has weights.
std::vector<std::vector<int>> chunk_sections(const UsedSections& used, int groups) {
    const auto sections = static_cast<int>(used.used.size() / used.groups);
    std::vector<std::vector<int>> chunks;
    for (int first = 0; first < used.groups; first += groups) {
        chunks.emplace_back();
        for (int section = 0; section < sections; ++section) {
            if (used.any(section, first, first + groups)) chunks.back().push_back(section);
        }
    }
    return chunks;
}

// Vectors of kernels in a chunk, an even number: visiting an entry costs about as much as four vectors of its products.
int choose_vectors(const LayerSpec& s, const UsedSections& used) {
    constexpr int kVisit = 4;
    const int all = static_cast<int>(round_up((s.kernels + kLanes - 1) / kLanes, 2));
    int best = 0;
    size_t least = std::numeric_limits<size_t>::max();
    for (int vectors = std::min(kChunk, all); vectors >= 2; vectors -= 2) {
        size_t sections = 0;
        for (const auto& chunk : chunk_sections(used, vectors / 2)) sections += chunk.size();
        const size_t cost = sections * (kVisit + vectors);
        if (cost >= least) continue;
        least = cost;
        best = vectors;
    }
    return best;
}

// The kernels of a layer in chunks, whose sums of one position fit into registers; and what follows the sums.
template <class P>
class Chunks {
  public:
    Chunks(const LayerSpec& s, int vectors)
        : kernels_(s.kernels),
          vectors_(vectors),
          count_((s.kernels + size() - 1) / size()),
          rows_(s.rows),
          weight_(int64_t{count_} * rows_ * size()),
          bias_(int64_t{count_} * size()),
          scale_(padded_scale(s)),
          dtype_(s.output.dtype),
          in_float_(requantizes_in_float(s)) {
        const auto bias = padded_bias(s);
        std::copy_n(bias.begin(), kernels_, bias_.begin());
        lay_out(static_cast<const typename P::Source*>(s.dense));
    }

    int count() const { return count_; }
    int vectors() const { return vectors_; }
    int size() const { return vectors_ * kLanes; }  // kernels of a chunk
    bool in_float() const { return in_float_; }
    const typename P::Weight* weight(int chunk) const { return &weight_[chunk * rows_ * size()]; }
    const int32_t* bias(int chunk) const {
        return &bias_[int64_t{chunk} * size()];
    }  // the bits of what sums begin with

    // Where the chunk's results of a position lie, in bytes.
    int64_t place(int chunk, int64_t position) const {
        return (position * kernels_ + chunk * size()) * static_cast<int64_t>(element_bytes(dtype_));
    }

    // Writes the results of positions that follow each other from their sums [count, vectors].
    CS_TIER void write_row(int chunk, const typename P::Vector* sums, int count, int64_t position,
                           std::byte* out) const {
        int i = 0;
        if constexpr (kWide == 2 && P::kInputs == 2) {
            const bool is_whole = vectors_ == 2 && in_float_ && (chunk + 1) * size() <= kernels_;
            for (; is_whole && i + 2 <= count; i += 2) {
                P::template write_four<2>(out + place(chunk, position + i), kernels_, sums + 2 * i,
                                          &scale_[chunk * size()], dtype_);
            }
        }
        for (; i < count; ++i) write(chunk, sums + i * vectors_, out + place(chunk, position + i));
    }

    // Writes the results of a position from its sums.
    CS_TIER void write(int chunk, const typename P::Vector* sums, std::byte* out) const {
        const int first = chunk * size(), kernels = std::min(size(), kernels_ - first);
        const auto bytes = static_cast<int64_t>(element_bytes(dtype_));
        for (int v = 0; v * kLanes < kernels; ++v, out += kLanes * bytes) {
            const float* scale = scale_.empty() ? nullptr : &scale_[first + v * kLanes];
            P::write(out, std::min(kLanes, kernels - v * kLanes), P::load(sums + v), scale, dtype_, in_float_);
        }
    }

  private:
    // Weights [rows, kernels] to [chunk, row, vector, lane].
    void lay_out(const typename P::Source* dense) {
        std::vector<int64_t> place;  // of each kernel, in the first row
        for (int kernel = 0; kernel < kernels_; ++kernel) {
            place.push_back(kernel / size() * rows_ * size() + P::place_in_row(kernel % size()));
        }
        for (int64_t row = 0; row < rows_; ++row, dense += kernels_) {
            typename P::Weight* to = weight_.data() + row * size();
            for (int kernel = 0; kernel < kernels_; ++kernel) to[place[kernel]] = dense[kernel];
        }
    }

    int kernels_, vectors_, count_;
    int64_t rows_;
    AlignedVector<typename P::Weight> weight_;  // [chunk, row, vector, lane]
    AlignedVector<int32_t> bias_;               // [chunk, vector, lane]
    AlignedVector<float> scale_;                // [kernel]
    DType dtype_;
    bool in_float_;
};

}  // namespace
}  // namespace cs
