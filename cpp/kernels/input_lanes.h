// The network's input as 8-bit integers, whatever the vectors: a tier brings the loop over values.
#pragma once

#include <cstring>

#include "arithmetic.h"

namespace cs {

struct InputScaling {
    float inv_scale, lowest, largest;
};

using Quantize = void (*)(const float* x, int64_t size, const InputScaling& scaling, std::byte* out);

template <Quantize quantize>
class LanesInput final : public Step {
  public:
    explicit LanesInput(const InputSpec& spec) : spec_(spec) {}

    void run(const Call& call) const noexcept override {
        const bool is_unsigned = spec_.output.dtype == DType::u8;
        const InputScaling scaling{spec_.inv_scale, is_unsigned ? 0.0f : -128.0f, is_unsigned ? 255.0f : 127.0f};
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

// Null for a network of float32.
template <Quantize quantize>
std::unique_ptr<Step> lanes_input(const InputSpec& spec) {
    return element_bytes(spec.output.dtype) == 1 ? std::make_unique<LanesInput<quantize>>(spec) : nullptr;
}

}  // namespace cs
