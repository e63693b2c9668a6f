// float32 as 8-bit integers, whatever the vectors: a tier brings the loop over values.
#pragma once

#include <cstring>

#include "arithmetic.h"

namespace cs {

struct InputScaling {
    float inv_scale, lowest, largest;

    InputScaling(float factor, DType to)
        : inv_scale(factor), lowest(to == DType::u8 ? 0.0f : -128.0f), largest(to == DType::u8 ? 255.0f : 127.0f) {}
};

using Quantize = void (*)(const float* x, int64_t size, const InputScaling& scaling, std::byte* out);

template <Quantize quantize>
class LanesInput final : public Step {
  public:
    explicit LanesInput(const InputSpec& spec) : spec_(spec) {}

    void run(const Call& call) const noexcept override {
        const InputScaling scaling(spec_.inv_scale, spec_.output.dtype);
        for (int64_t n = 0; n < call.samples; ++n) {
            const std::byte* x = call.inputs[0] + n * call.caller_bytes;
            auto* out = sample<std::byte>(call.output, spec_.output, n);
            if (call.caller_bytes == spec_.output.bytes()) {
                std::memcpy(out, x, call.caller_bytes);
            } else {
                quantize(reinterpret_cast<const float*>(x), spec_.output.size(), scaling, out);
            }
        }
    }

  private:
    InputSpec spec_;
};

template <Quantize quantize>
class LanesQuantize final : public Step {
  public:
    explicit LanesQuantize(const QuantizeSpec& spec) : spec_(spec) {}

    void run(const Call& call) const noexcept override {
        const InputScaling scaling(spec_.inv_scale, spec_.output.dtype);
        for (int64_t n = 0; n < call.samples; ++n) {
            const float* x = sample<float>(call.inputs[0], spec_.input, n);
            quantize(x, spec_.input.size(), scaling, sample<std::byte>(call.output, spec_.output, n));
        }
    }

  private:
    QuantizeSpec spec_;
};

// Null for a network of float32.
template <Quantize quantize>
std::unique_ptr<Step> lanes_input(const InputSpec& spec) {
    return element_bytes(spec.output.dtype) == 1 ? std::make_unique<LanesInput<quantize>>(spec) : nullptr;
}

}  // namespace cs
