// What the linear layers of the tiers without 8-bit dot products share. A file that includes it includes the vocabulary
// of its tier first (avx2_lanes.h, avx512_lanes.h).
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "../aligned.h"
#include "arithmetic.h"
#include "dot_layout.h"

namespace cs {
namespace {

constexpr int kSpare = 64;  // sums after the last: of entries that nobody owns, of kernels beyond the last

#define CS_UNROLL _Pragma("GCC unroll 32")

// An int8 input alone in a 32-bit lane: a pair whose second half is zero.
struct Ones : Pairs {
    static constexpr int kInputs = 1;
    CS_TIER static Vector load_weight(const int8_t* from) { return widen_lanes(from); }
};

// Indices of the groups of DWORDS 32-bit units in which any is not zero; their number. x has zeros to a whole vector,
// the list has room for one more.
template <int DWORDS>
CS_TIER int select(const int32_t* x, int count, int32_t* active) {
    constexpr uint32_t kFirst = DWORDS == 2 ? 0x5555 : 0x1111;
    int found = 0;
    for (int i = 0; i < count; i += kLanes / DWORDS) {
        uint32_t any = nonzero_lanes(x + i * DWORDS);
        if constexpr (DWORDS > 1) any |= any >> 1;
        if constexpr (DWORDS > 2) any |= any >> 2;
        if constexpr (DWORDS > 1) any = _pext_u32(any, kFirst);
        store_places(any, i, active + found);
        found += __builtin_popcount(any);
    }
    return found;
}

// What all linear layers share: the inputs as they are multiplied, the selection, the sums and their way out.
template <class P>
class Linear : public Step {
  public:
    // units: groups of `dwords` units of 32 bits that are selected together.
    Linear(const LayerSpec& spec, bool select, int dwords, int groups)
        : input_(spec.input),
          output_(spec.output),
          select_(select),
          dwords_(dwords),
          groups_(groups),
          kernels_(spec.kernels),
          padded_(static_cast<int>(round_up(spec.kernels, kLanes))),
          bias_(padded_bias(spec)),
          scale_(padded_scale(spec)),
          in_float_(requantizes_in_float(spec)) {}

    size_t scratch_bytes() const override { return active_offset() + sizeof(int32_t) * (groups_ + kLanes); }

    void run(const Call& call) const noexcept override {
        const RoundDown rounding(in_float_);
        auto* sums = reinterpret_cast<int32_t*>(call.scratch);
        auto* x = reinterpret_cast<int32_t*>(call.scratch + input_offset());
        auto* active = reinterpret_cast<int32_t*>(call.scratch + active_offset());
        for (int64_t n = 0; n < call.samples; ++n) {
            prepare(sample<std::byte>(call.inputs[0], input_, n), x);
            const int count = select_ ? select_groups(x, active) : groups_;
            accumulate(x, select_ ? active : nullptr, count, sums);
            write_out(sums, sample<std::byte>(call.output, output_, n));
        }
    }

  protected:
    // sums[kernel] = bias + products of the groups listed, or of all.
    virtual void accumulate(const int32_t* x, const int32_t* active, int count, int32_t* sums) const = 0;

    int padded() const { return padded_; }
    int groups() const { return groups_; }
    const int32_t* bias() const { return bias_.data(); }

  private:
    // Inputs as they are multiplied: float32, pairs of int16, or single int16 in 32 bits.
    using Input = std::conditional_t<std::is_same_v<P, Ones>, int32_t, typename P::Input>;

    size_t input_offset() const { return sizeof(int32_t) * (padded_ + kSpare); }
    size_t input_dwords() const { return round_up(int64_t{groups_} * dwords_, kLanes); }
    size_t active_offset() const { return round_up(input_offset() + sizeof(int32_t) * input_dwords(), kAlignment); }

    void prepare(const std::byte* from, int32_t* x) const {
        with_elements<P>(from, input_.dtype, [&](const auto* inputs) { copy(inputs, x); });
    }

    template <class X>
    CS_TIER void copy(const X* x, int32_t* dwords) const {
        auto* to = reinterpret_cast<Input*>(dwords);
        const int64_t size = input_.size();
        for (int64_t i = 0; i < size; ++i) to[i] = static_cast<Input>(x[i]);
        std::memset(to + size, 0, sizeof(int32_t) * input_dwords() - sizeof(Input) * size);
        if constexpr (std::is_same_v<P, Ones> && std::is_signed_v<X>) {
            for (int64_t i = 0; i < size; ++i) to[i] &= 0xffff;
        }
    }

    int select_groups(const int32_t* x, int32_t* active) const {
        if (dwords_ == 1) return cs::select<1>(x, groups_, active);
        return dwords_ == 2 ? cs::select<2>(x, groups_, active) : cs::select<4>(x, groups_, active);
    }

    CS_TIER void write_out(const int32_t* sums, std::byte* out) const {
        const auto element = static_cast<int64_t>(element_bytes(output_.dtype));
        int o = 0;
        if constexpr (P::kInputs == 2 || std::is_same_v<P, Ones>) {
            const bool is_narrow = element == 1 && in_float_;
            for (; is_narrow && o + 4 * kLanes <= kernels_; o += 4 * kLanes) {
                const auto* four = reinterpret_cast<const typename P::Vector*>(sums + o);
                P::template write_four<4>(out + o, 0, four, scale_.data() + o, output_.dtype);
            }
        }
        for (; o < kernels_; o += kLanes) {
            const float* scale = scale_.empty() ? nullptr : scale_.data() + o;
            P::write(out + o * element, std::min(kLanes, kernels_ - o), P::load(sums + o), scale, output_.dtype,
                     in_float_);
        }
    }

    Tensor input_, output_;
    bool select_;
    int dwords_, groups_, kernels_, padded_;
    AlignedVector<int32_t> bias_;
    AlignedVector<float> scale_;
    bool in_float_;
};

}  // namespace
}  // namespace cs
