// Additions of 8-bit integers, whatever the vectors: a tier brings the loop over values.
//
// Why it is fast: (a * Ma + b * Mb + 2**(s - 1)) >> s is brought to a shift by 16, which is the upper half of a word of
// 32 bits and needs no instruction. Bytes of a and b are interleaved; VPMADDUBSW multiplies a pair by the upper parts
// of the multipliers, VPMADDWD by the lower ones, signed as it wants them. Interleaving and packing undo each other's
// order.
#pragma once

#include <cstdlib>

#include "arithmetic.h"

namespace cs {

// Multipliers of a shift by 16, upper * 2**16 + lower. Signed bytes are shifted to unsigned; `rounding` makes up for
// it.
struct AddScaling {
    uint8_t flip_a, flip_b;    // 0x80 for int8
    int8_t upper_a, upper_b;   // 0 ... 64
    int16_t lower_a, lower_b;  // rounded, so that they have either sign
    int32_t rounding;
    int shift;  // of the results, beyond 16
    bool to_unsigned;
};

// Whether no sum leaves the words it is held in: the upper parts of a pair in 16 bits, the rest in 32.
inline bool adds_in_words(const AddSpec& spec) { return spec.requantization.shift[0] >= 10; }

inline AddScaling add_scaling(const AddSpec& spec) {
    const int given = spec.requantization.shift[0], raise = std::max(0, 16 - given);
    const int64_t a = int64_t{spec.requantization.multiplier[0]} << raise;
    const int64_t b = int64_t{spec.requantization.multiplier[1]} << raise;
    const auto upper = [](int64_t multiplier) { return static_cast<int8_t>((multiplier + 0x8000) >> 16); };
    const auto lower = [](int64_t multiplier) { return static_cast<int16_t>(multiplier & 0xffff); };
    const auto flip = [](DType dtype) { return static_cast<uint8_t>(dtype == DType::s8 ? 0x80 : 0); };
    AddScaling s{};
    s.flip_a = flip(spec.first.dtype);
    s.flip_b = flip(spec.second.dtype);
    s.upper_a = upper(a);
    s.upper_b = upper(b);
    s.lower_a = lower(a);
    s.lower_b = lower(b);
    // Products stay below 2**25: shifts beyond 31 round to 0, as a shift by 31 does.
    const int shift = std::min(given + raise, 31);
    s.rounding = static_cast<int32_t>((int64_t{1} << (shift - 1)) - s.flip_a * a - s.flip_b * b);
    s.shift = shift - 16;
    s.to_unsigned = spec.output.dtype == DType::u8;
    return s;
}

using AddBytes = void (*)(const std::byte* a, const std::byte* b, int64_t size, const AddScaling& scaling,
                          std::byte* out);

template <AddBytes add>
class LanesAdd final : public Step {
  public:
    explicit LanesAdd(const AddSpec& spec)
        : first_(spec.first), second_(spec.second), output_(spec.output), scaling_(add_scaling(spec)) {}

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            add(sample<std::byte>(call.inputs[0], first_, n), sample<std::byte>(call.inputs[1], second_, n),
                output_.size(), scaling_, sample<std::byte>(call.output, output_, n));
        }
    }

  private:
    Tensor first_, second_, output_;
    AddScaling scaling_;
};

// Null for float32.
template <AddBytes add>
std::unique_ptr<Step> lanes_add(const AddSpec& spec) {
    const bool is_integer = spec.output.dtype != DType::f32;
    return is_integer && adds_in_words(spec) ? std::make_unique<LanesAdd<add>>(spec) : nullptr;
}

}  // namespace cs
