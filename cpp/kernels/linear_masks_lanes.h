// Sparse-sparse linear layers packed as in the paper (U = V = 1), int8: route by comparing kernel ids. One body for the
// tiers without 8-bit dot products; a file that includes it includes the vocabulary of its tier first.
//
// Why it is fast: a single weight has no neighbours that go where it goes, and route by address is a load, an addition
// and a store for each. Here the lanes are sets, and the sums of slot s of all of them are one register. Two active
// rows are interleaved to pairs of 16 bits and multiplied by their inputs once; for each slot a comparison of the
// kernel ids with s leaves the products that are its own, and VPMADDWD adds each pair up as it widens it: three
// instructions for 16 products (AVX2) and one slot, no memory. A row is read a cache line at a time, of the next active
// rows before the next line; rows in stretches whose lines stay in the first-level cache while the groups of sets in
// them take turns.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>

#include "linear_step.h"
#include "set_layout.h"

namespace cs {
namespace {

constexpr int kMostSlots = kTile + 1;          // sums in registers, beside products, kernel ids and a mask
constexpr int kMostPasses = 2;                 // over the slots; with more, routing by address is faster
constexpr int kEntryBytes = 2 * kLanes;        // of one row and group of sets
constexpr int kPerLine = 64 / kEntryBytes;     // groups that share a cache line
constexpr int kStretch = 128;                  // pairs of rows
static_assert(kStretch * 2 * 64 <= 16 << 10);  // of lines: half of a first-level cache

// Two active rows, from the first group on, and their inputs.
struct RowPair {
    const int8_t *first, *second;
    int32_t inputs;
};

// Adds the products of one group of sets to its sums [SLOTS, kLanes] of the slots from first_slot on.
template <int SLOTS>
CS_TIER void sum_slots(const RowPair* pairs, int count, int64_t group, int first_slot, int32_t* sums) {
    Pairs::Vector sum[SLOTS], slot[SLOTS];
    CS_UNROLL for (int s = 0; s < SLOTS; ++s) sum[s] = Pairs::load(sums + s * kLanes);
    CS_UNROLL for (int s = 0; s < SLOTS; ++s) slot[s] = every_word(first_slot + s);
    for (int n = 0; n < count; ++n) {
        const int64_t at = group * kEntryBytes;
        _mm_prefetch(reinterpret_cast<const char*>(pairs[n].first + at + 64), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(pairs[n].second + at + 64), _MM_HINT_T0);
        const RoutedPair routed = interleave(pairs[n].first + at, pairs[n].second + at);
        const auto product = multiply_words(routed.weight, Pairs::broadcast(&pairs[n].inputs));
        CS_UNROLL for (int s = 0; s < SLOTS; ++s) sum[s] = add_owned(sum[s], product, routed.kid, slot[s]);
    }
    CS_UNROLL for (int s = 0; s < SLOTS; ++s) Pairs::store(sums + s * kLanes, sum[s]);
}

using SumSlots = void (*)(const RowPair*, int, int64_t, int, int32_t*);

template <int... kCounts>
SumSlots sum_slots_of(int slots, std::integer_sequence<int, kCounts...>) {
    static constexpr SumSlots table[] = {sum_slots<kCounts + 1>...};
    return table[slots - 1];
}

class LinearMasks final : public Linear<Ones> {
  public:
    explicit LinearMasks(const LayerSpec& s)
        : Linear(s, true, 1, s.rows),
          kernels_(s.kernels),
          passes_((s.packed->slots + kMostSlots - 1) / kMostSlots),
          slots_((s.packed->slots + passes_ - 1) / passes_),
          sum_slots_(sum_slots_of(slots_, std::make_integer_sequence<int, kMostSlots>())),
          sets_(set_layout(s, kLanes, passes_ * slots_, row_bytes(s))) {}

    size_t scratch_bytes() const override { return pairs_offset() + sizeof(RowPair) * (groups() / 2 + 1); }

  private:
    // An odd number of cache lines, so that rows do not compete for the same places of a cache.
    static int64_t row_bytes(const LayerSpec& s) {
        return static_cast<int64_t>((round_up(groups_of_sets(s, kLanes), kPerLine) / kPerLine | 1) * 64);
    }

    size_t found_offset() const { return round_up(Linear::scratch_bytes(), kAlignment); }
    size_t pairs_offset() const { return round_up(found_offset() + sizeof(int32_t) * (sets_.sums() + 1), kAlignment); }

    void accumulate(const int32_t* x, const int32_t* active, int count, int32_t* sums) const override {
        auto* scratch = reinterpret_cast<std::byte*>(sums);
        auto* found = reinterpret_cast<int32_t*>(scratch + found_offset());
        auto* pairs = reinterpret_cast<RowPair*>(scratch + pairs_offset());
        std::memset(found, 0, sizeof(int32_t) * (sets_.sums() + 1));  // one is the place of kernels that no set has
        const int number = pair_up(x, active, count, pairs);
        for (int group = 0; group < sets_.groups; group += kPerLine) {
            const int end = std::min(group + kPerLine, sets_.groups);
            for (int n = 0; n < number; n += kStretch) {
                sum_line(pairs + n, std::min(kStretch, number - n), group, end, found);
            }
        }
        for (int o = 0; o < kernels_; ++o) sums[o] = bias()[o] + found[sets_.place[o]];
        for (const SetLayout::Extra& extra : sets_.extras) sums[extra.kernel] += found[extra.place];
    }

    // The active rows two by two; their number. The last may be alone: its partner's input is 0.
    int pair_up(const int32_t* x, const int32_t* active, int count, RowPair* pairs) const {
        const int8_t* entry = sets_.entry.data();
        for (int n = 0; n < count; n += 2) {
            const int first = active[n], second = n + 1 < count ? active[n + 1] : first;
            const int32_t partner = n + 1 < count ? x[second] : 0;
            const auto inputs = static_cast<uint32_t>(x[first]) | static_cast<uint32_t>(partner) << 16;
            pairs[n / 2] = {entry + first * sets_.row_bytes, entry + second * sets_.row_bytes,
                            static_cast<int32_t>(inputs)};
        }
        return (count + 1) / 2;
    }

    // Sums of the groups of sets whose entries share cache lines.
    void sum_line(const RowPair* pairs, int count, int group, int end, int32_t* found) const {
        for (int g = group; g < end; ++g) {
            for (int p = 0; p < passes_; ++p) {
                int32_t* to = found + (int64_t{g} * passes_ + p) * slots_ * kLanes;
                sum_slots_(pairs, count, g, p * slots_, to);
            }
        }
    }

    int kernels_, passes_, slots_;
    SumSlots sum_slots_;
    SetLayout sets_;
};

std::unique_ptr<Step> make_linear_masks(const LayerSpec& s) {
    if (!has_single_weights(s) || s.packed->slots > kMostPasses * kMostSlots) return nullptr;
    return kIsExact || requantizes_exactly(s) ? std::make_unique<LinearMasks>(s) : nullptr;
}

}  // namespace
}  // namespace cs
