// Concatenations, whatever the vectors: a tier brings the loop over the bytes of a pixel.
//
// Why it is fast: what has the common scale already is copied, the rest takes a few instructions between a load and a
// store.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "arithmetic.h"

namespace cs {

// Of 8-bit integers to the common scale: (x * multiplier + 2**(shift - 1)) >> shift.
struct ByteScaling {
    uint16_t multiplier;
    int shift;
    bool from_signed, to_signed;

    float scale() const { return std::ldexp(static_cast<float>(multiplier), -shift); }
};

using RequantizeBytes = void (*)(const std::byte* x, int64_t size, const ByteScaling& scaling, std::byte* out);

template <RequantizeBytes requantize_bytes>
class LanesConcat final : public Step {
  public:
    explicit LanesConcat(const ConcatSpec& spec) : inputs_(spec.inputs), output_(spec.output) {
        const Requantization& q = spec.requantization;
        for (size_t i = 0; i < inputs_.size(); ++i) {
            const bool from_signed = inputs_[i].dtype == DType::s8, to_signed = output_.dtype == DType::s8;
            if (!q.empty()) scaling_.push_back({q.multiplier[i], q.shift[i], from_signed, to_signed});
        }
    }

    void run(const Call& call) const noexcept override {
        int64_t offset = 0;
        for (size_t i = 0; i < inputs_.size(); ++i) {
            for (int64_t n = 0; n < call.samples; ++n) {
                join(i, sample<std::byte>(call.inputs[i], inputs_[i], n),
                     sample<std::byte>(call.output, output_, n) + offset);
            }
            offset += pixel_bytes(inputs_[i]);
        }
    }

  private:
    static int64_t pixel_bytes(const Tensor& t) { return t.channels * static_cast<int64_t>(element_bytes(t.dtype)); }

    void join(size_t i, const std::byte* x, std::byte* out) const {
        const Tensor& in = inputs_[i];
        const int64_t bytes = pixel_bytes(in);
        const bool is_copy = in.dtype == output_.dtype && (scaling_.empty() || scaling_[i].scale() == 1.0f);
        for (int64_t p = 0; p < in.positions(); ++p, x += bytes, out += pixel_bytes(output_)) {
            if (is_copy) {
                std::memcpy(out, x, bytes);
            } else {
                requantize_bytes(x, bytes, scaling_[i], out);
            }
        }
    }

    std::vector<Tensor> inputs_;
    Tensor output_;
    std::vector<ByteScaling> scaling_;  // per input; empty for float32
};

}  // namespace cs
