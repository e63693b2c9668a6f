// Linear layers, dense, sparse-dense and sparse-sparse, int8 and float32: one body for the tiers without 8-bit dot
// products. A file that includes it includes the vocabulary of its tier first (avx2_lanes.h, avx512_lanes.h).
//
// Why it is fast: the lanes are kernels, and an input is broadcast once for all of them. Dense weights lie in chunks of
// kernels whose sums stay in registers: per unit of inputs one load of weights and one multiplication with addition,
// and inactive units are left out by a list. A packed row lies together as it is read, an active row costs one straight
// read: per vector of kernels its products are added between a load and a store of their sums, route by address. int8
// weights are widened as they are loaded (VPMOVSX, port 5), so that memory holds a byte each: where they exceed the
// cache their bytes are the bound, in it the instructions.
//
// The rows of a packed matrix need U = 1 or 4, and V a multiple of the lanes. Products of single weights (U = V = 1)
// have no neighbours to share a vector of sums with: they are multiplied in vectors and routed one by one.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "linear_step.h"

namespace cs {
namespace {

constexpr int kChunk = kTile / 3 * 2;  // vectors of sums in registers
constexpr int kPrefetch = 4;           // packed rows ahead

// Part of a dense matrix: the weights of up to kChunk vectors of kernels.
template <class P>
struct Chunk {
    const int32_t* x;
    const int32_t* active;  // units, or null for all
    int count;
    const typename P::Source* weight;  // [units, VECTORS, kLanes, kInputs]
    const int32_t* bias;               // [VECTORS, kLanes]
    int32_t* sums;                     // likewise
};

template <class P, int VECTORS, bool kSelect>
CS_TIER void sum_chunk(const Chunk<P>& c) {
    typename P::Vector sum[VECTORS];
    CS_UNROLL for (int v = 0; v < VECTORS; ++v) sum[v] = P::load(c.bias + v * kLanes);
    for (int n = 0; n < c.count; ++n) {
        const int unit = kSelect ? c.active[n] : n;
        const auto input = P::broadcast(c.x + unit);
        const auto* weight = c.weight + int64_t{unit} * VECTORS * kLanes * P::kInputs;
        CS_UNROLL for (int v = 0; v < VECTORS; ++v) {
            sum[v] = P::multiply_add(sum[v], input, P::load_weight(weight + v * kLanes * P::kInputs));
        }
    }
    CS_UNROLL for (int v = 0; v < VECTORS; ++v) P::store(c.sums + v * kLanes, sum[v]);
}

template <class P>
using SumChunk = void (*)(const Chunk<P>&);

template <class P, int... kCounts>
SumChunk<P> sum_chunk_of(int vectors, bool select, std::integer_sequence<int, kCounts...>) {
    static constexpr SumChunk<P> all[] = {sum_chunk<P, kCounts + 1, false>...};
    static constexpr SumChunk<P> selected[] = {sum_chunk<P, kCounts + 1, true>...};
    return (select ? selected : all)[vectors - 1];
}

template <class P>
class LinearDense final : public Linear<P> {
  public:
    LinearDense(const LayerSpec& s, bool select)
        : Linear<P>(s, select, 1, (s.rows + P::kInputs - 1) / P::kInputs), select_(select) {
        const auto* dense = static_cast<const typename P::Source*>(s.dense);
        for (int first = 0; first < this->padded(); first += kChunk * kLanes) {
            const int kernels = std::min(kChunk * kLanes, this->padded() - first);
            for (int row = 0; row < this->groups() * P::kInputs; row += P::kInputs) {
                for (int i = 0; i < kernels * P::kInputs; ++i) {
                    const int r = row + i % P::kInputs, o = first + i / P::kInputs;
                    const bool exists = r < s.rows && o < s.kernels;
                    weight_.push_back(exists ? dense[int64_t{r} * s.kernels + o] : 0);
                }
            }
        }
    }

  private:
    void accumulate(const int32_t* x, const int32_t* active, int count, int32_t* sums) const override {
        constexpr auto counts = std::make_integer_sequence<int, kChunk>();
        for (int first = 0; first < this->padded(); first += kChunk * kLanes) {
            const int vectors = std::min(kChunk, (this->padded() - first) / kLanes);
            const auto* weight = weight_.data() + int64_t{first} * this->groups() * P::kInputs;
            sum_chunk_of<P>(vectors, select_, counts)({x, active, count, weight, this->bias() + first, sums + first});
        }
    }

    bool select_;
    AlignedVector<typename P::Source> weight_;  // chunks of [units, vectors, kLanes, kInputs]
};

// Weights of one row block, UNITS units of inputs, for VECTORS vectors of kernels whose sums follow each other.
template <class P, int UNITS, int VECTORS>
struct Entry {
    using Numbers = P;
    static constexpr int kUnits = UNITS, kKernels = VECTORS * kLanes, kWeights = UNITS * kKernels * P::kInputs;
    struct Input {
        typename P::Vector unit[UNITS];
    };

    // Where a weight lies: [VECTORS, UNITS, kLanes, kInputs].
    static int place(int kernel, int input) {
        const int unit = kernel / kLanes * UNITS + input / P::kInputs;
        return (unit * kLanes + kernel % kLanes) * P::kInputs + input % P::kInputs;
    }
    CS_TIER static Input broadcast(const int32_t* x) {
        Input input;
        CS_UNROLL for (int u = 0; u < UNITS; ++u) input.unit[u] = P::broadcast(x + u);
        return input;
    }
    CS_TIER static void multiply_sum(const typename P::Source* weight, const Input& input, int32_t* sums) {
        CS_UNROLL for (int v = 0; v < VECTORS; ++v) {
            auto sum = P::load(sums + v * kLanes);
            CS_UNROLL for (int u = 0; u < UNITS; ++u) {
                const auto* from = weight + (v * UNITS + u) * kLanes * P::kInputs;
                sum = P::multiply_add(sum, input.unit[u], P::load_weight(from));
            }
            P::store(sums + v * kLanes, sum);
        }
    }
};

// Of one int8 input for two vectors of kernels: a pair holds the weights of a kernel of each, so that one load widens
// both; the input is multiplied once as the first of a pair, once as the second.
struct TwinEntry {
    using Numbers = Ones;
    static constexpr int kUnits = 1, kKernels = 2 * kLanes, kWeights = kKernels;
    struct Input {
        Pairs::Vector first, second;
    };

    static int place(int kernel, int) { return kernel % kLanes * 2 + kernel / kLanes; }
    CS_TIER static Input broadcast(const int32_t* x) {
        const uint32_t second = static_cast<uint32_t>(*x) << 16;
        return {Pairs::broadcast(x), Pairs::broadcast(&second)};
    }
    CS_TIER static void multiply_sum(const int8_t* from, const Input& input, int32_t* sums) {
        const auto weight = Pairs::load_weight(from);
        const auto first = Pairs::multiply_add(Pairs::load(sums), input.first, weight);
        const auto second = Pairs::multiply_add(Pairs::load(sums + kLanes), input.second, weight);
        Pairs::store(sums, first);
        Pairs::store(sums + kLanes, second);
    }
};

// A packed matrix by rows, of each the entries that a kernel owns: in groups that fill a line.
template <class E>
class LinearPacked final : public Linear<typename E::Numbers> {
  public:
    LinearPacked(const LayerSpec& s, bool select)
        : Linear<typename E::Numbers>(s, select, E::kUnits, s.packed->row_blocks), parts_(s.packed->v / E::kKernels) {
        std::vector<int> groups;  // of every row
        for (int row = 0; row < s.packed->row_blocks; ++row) {
            int entries = 0;
            for (int e = 0; e < s.packed->sets * parts_; ++e) entries += first_kernel(s, row, e) >= 0;
            groups.push_back((entries + kGroup - 1) / kGroup);
        }
        usual_ = choose_usual(groups);
        begin_.push_back(0);
        for (const int count : groups) begin_.push_back(begin_.back() + std::max(count, usual_));
        weight_.resize(int64_t{begin_.back()} * kGroup * E::kWeights);
        target_.resize(int64_t{begin_.back()} * kGroup);
        for (int row = 0; row < s.packed->row_blocks; ++row) lay_out(s, row);
    }

    // Whether places of sums can be told in 16 bits.
    static bool reaches(const LayerSpec& s) { return s.kernels <= 65535 * kLanes - kSpare; }

  private:
    using Source = typename E::Numbers::Source;
    static constexpr int kGroup = std::max(1, 64 / static_cast<int>(E::kWeights * sizeof(Source)));  // entries at once
    static_assert(kGroup * E::kKernels <= kSpare);

    // How many groups rows are filled up to, so that loops over them end where they usually do: a longer row costs a
    // misprediction, which takes about as long as three groups.
    static int choose_usual(const std::vector<int>& groups) {
        int usual = 0;
        int64_t least = std::numeric_limits<int64_t>::max();
        for (int candidate = *std::max_element(groups.begin(), groups.end()); candidate >= 0; --candidate) {
            int64_t cost = 0;
            for (const int count : groups) cost += count > candidate ? count + 3 : candidate;
            if (cost >= least) continue;
            least = cost;
            usual = candidate;
        }
        return usual;
    }

    // Of entry e, of part e % parts_ of a set; -1 if it is nobody's.
    int first_kernel(const LayerSpec& s, int row, int e) const {
        const int owner = s.packed->owner[int64_t{row} * s.packed->sets + e / parts_];
        const int first = owner * s.packed->v + e % parts_ * E::kKernels;
        return owner < 0 || first >= s.kernels ? -1 : first;
    }

    void lay_out(const LayerSpec& s, int row) {
        const PackedWeight& p = *s.packed;
        int64_t entry = int64_t{begin_[row]} * kGroup;
        for (int e = 0; e < p.sets * parts_; ++e) {
            const int first = first_kernel(s, row, e);
            if (first < 0) continue;
            const int64_t block = int64_t{row} * p.sets * parts_ + e;
            const auto* from = static_cast<const Source*>(p.weights) + block * E::kKernels * p.u;
            for (int w = 0; w < E::kKernels * p.u; ++w) {
                weight_[entry * E::kWeights + E::place(w / p.u, w % p.u)] = from[w];
            }
            target_[entry++] = static_cast<uint16_t>(first / kLanes);
        }
        // Zeros fill up the last group. Each adds to spare sums of its own: none has to wait for another.
        for (; entry < int64_t{begin_[row + 1]} * kGroup; ++entry) {
            const int first = this->padded() + static_cast<int>(entry % kGroup) * E::kKernels;
            target_[entry] = static_cast<uint16_t>(first / kLanes);
        }
    }

    CS_TIER void accumulate(const int32_t* x, const int32_t* active, int count, int32_t* sums) const override {
        std::memcpy(sums, this->bias(), sizeof(int32_t) * this->padded());
        for (int n = 0; n < count; ++n) {
            const int row = active ? active[n] : n;
            const int ahead = n + kPrefetch < count ? (active ? active[n + kPrefetch] : n + kPrefetch) : row;
            multiply_route_sum(E::broadcast(x + row * E::kUnits), row, ahead, sums);
        }
    }

    CS_TIER void multiply_route_sum(const typename E::Input& input, int row, int ahead, int32_t* sums) const {
        const int64_t first = begin_[row], next = begin_[ahead];
        const int rest = begin_[row + 1] - begin_[row] - usual_;
        _mm_prefetch(reinterpret_cast<const char*>(target_.data() + next * kGroup), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(target_.data() + next * kGroup) + 64, _MM_HINT_T0);
        multiply_groups(input, first, usual_, next - first, sums);
        if (rest != 0) multiply_groups(input, first + usual_, rest, next - first, sums);
    }

    // count groups from the first; those at a distance are prefetched.
    CS_TIER void multiply_groups(const typename E::Input& input, int64_t first, int count, int64_t distance,
                                 int32_t* sums) const {
        constexpr int64_t kWeights = kGroup * E::kWeights;
        constexpr int kAtOnce = std::min(kGroup, 4);  // targets read at once: loads are scarce
        const uint16_t* target = target_.data() + first * kGroup;
        const Source* weight = weight_.data() + first * kWeights;
        const Source* end = weight + count * kWeights;
        for (; weight != end; weight += kWeights, target += kGroup) {
            CS_UNROLL for (size_t line = 0; line < kWeights * sizeof(Source); line += 64) {
                _mm_prefetch(reinterpret_cast<const char*>(weight + distance * kWeights) + line, _MM_HINT_T0);
            }
            CS_UNROLL for (int i = 0; i < kGroup; i += kAtOnce) {
                uint64_t targets = 0;
                std::memcpy(&targets, target + i, sizeof(uint16_t) * kAtOnce);
                CS_UNROLL for (int k = 0; k < kAtOnce; ++k) {
                    const int64_t place = static_cast<uint16_t>(targets >> 16 * k);
                    E::multiply_sum(weight + (i + k) * E::kWeights, input, sums + place * kLanes);
                }
            }
        }
    }

    int parts_;                     // entries of a row block and set
    int usual_;                     // groups of a row, of most
    std::vector<int32_t> begin_;    // [row_blocks + 1], in groups
    AlignedVector<Source> weight_;  // [groups, kGroup, kWeights]
    std::vector<uint16_t> target_;  // [groups, kGroup]: first of kKernels sums, by kLanes
};

// A packed matrix of single weights, by rows. Target: of an index of a sum. Four or two are read at once: loads are
// what a product takes most of.
template <class P, class Target>
class LinearSingles final : public Linear<P> {
  public:
    LinearSingles(const LayerSpec& s, bool select)
        : Linear<P>(s, select, 1, s.packed->row_blocks),
          entries_(static_cast<int>(round_up(s.packed->sets, kLanes))),
          weight_(int64_t{s.packed->row_blocks} * entries_),
          target_(int64_t{s.packed->row_blocks} * entries_, static_cast<Target>(this->padded())) {
        const PackedWeight& p = *s.packed;
        const auto* from = static_cast<const typename P::Source*>(p.weights);
        for (int64_t i = 0; i < int64_t{p.row_blocks} * p.sets; ++i) {
            if (p.owner[i] < 0) continue;  // nobody's weights: zero, to the spare block
            const int64_t entry = i / p.sets * entries_ + i % p.sets;
            weight_[entry] = from[i];
            target_[entry] = static_cast<Target>(p.owner[i]);
        }
    }

  private:
    using Sum = std::conditional_t<std::is_same_v<P, Floats>, float, int32_t>;

    CS_TIER void accumulate(const int32_t* x, const int32_t* active, int count, int32_t* sums) const override {
        std::memcpy(sums, this->bias(), sizeof(int32_t) * this->padded());
        std::memset(sums + this->padded(), 0, sizeof(int32_t) * kLanes);
        auto* sum = reinterpret_cast<Sum*>(sums);
        for (int n = 0; n < count; ++n) {
            const int64_t row = active ? active[n] : n;
            multiply_route_sum(P::broadcast(x + row), row, sum);
        }
    }

    CS_TIER void multiply_route_sum(typename P::Vector input, int64_t row, Sum* sum) const {
        constexpr int kAtOnce = sizeof(uint64_t) / sizeof(Target);
        const int entries = entries_;
        const auto* weight = weight_.data() + row * entries;
        const Target* target = target_.data() + row * entries;
        for (int t = 0; t < entries; t += kLanes) {
            Sum product[kLanes];
            P::store(product, P::multiply_add(typename P::Vector{}, input, P::load_weight(weight + t)));
            CS_UNROLL for (int i = 0; i < kLanes; i += kAtOnce) {
                uint64_t targets;
                std::memcpy(&targets, target + t + i, sizeof targets);
                CS_UNROLL for (int k = 0; k < kAtOnce; ++k) {
                    sum[static_cast<Target>(targets >> 8 * sizeof(Target) * k)] += product[i + k];
                }
            }
        }
    }

    int entries_;                               // per row, to whole vectors
    AlignedVector<typename P::Source> weight_;  // [rows, entries]
    std::vector<Target> target_;                // likewise: the sum that each belongs to
};

template <class P>
std::unique_ptr<Step> make_singles(const LayerSpec& s, bool select) {
    if (s.kernels <= 65536 - 2 * kLanes) return std::make_unique<LinearSingles<P, uint16_t>>(s, select);
    return std::make_unique<LinearSingles<P, uint32_t>>(s, select);
}

std::unique_ptr<Step> make_linear_dense(const LayerSpec& s, bool select) {
    if (!is_linear(s)) return nullptr;
    if (s.input.dtype == DType::f32) return std::make_unique<LinearDense<Floats>>(s, select);
    return kIsExact || requantizes_exactly(s) ? std::make_unique<LinearDense<Pairs>>(s, select) : nullptr;
}

// Packed rows whose kernels fill one vector, or two.
template <class One, class Two>
std::unique_ptr<Step> make_packed_rows(const LayerSpec& s, bool select) {
    if (!LinearPacked<One>::reaches(s)) return nullptr;
    if (s.packed->v % (2 * kLanes) == 0) return std::make_unique<LinearPacked<Two>>(s, select);
    return s.packed->v % kLanes == 0 ? std::make_unique<LinearPacked<One>>(s, select) : nullptr;
}

std::unique_ptr<Step> make_linear_packed(const LayerSpec& s, bool select) {
    if (!is_linear(s) || !s.packed) return nullptr;
    const int u = s.packed->u;
    const bool is_float = s.input.dtype == DType::f32, is_single = u == 1 && s.packed->v == 1;
    if (u != 1 && u != 4) return nullptr;
    if (!is_float && !kIsExact && !requantizes_exactly(s)) return nullptr;
    if (is_float) {
        if (is_single) return make_singles<Floats>(s, select);
        if (u == 1) return make_packed_rows<Entry<Floats, 1, 1>, Entry<Floats, 1, 2>>(s, select);
        return make_packed_rows<Entry<Floats, 4, 1>, Entry<Floats, 4, 2>>(s, select);
    }
    if (is_single) return make_singles<Ones>(s, select);
    if (u == 1) return make_packed_rows<Entry<Ones, 1, 1>, TwinEntry>(s, select);
    return make_packed_rows<Entry<Pairs, 2, 1>, Entry<Pairs, 2, 2>>(s, select);
}

}  // namespace
}  // namespace cs
