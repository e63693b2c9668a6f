// Local response normalization of float32, whatever normalizes: a tier brings the loop over the channels of a position.
#pragma once

#include <cstring>

#include "../aligned.h"
#include "arithmetic.h"

namespace cs {

constexpr int kSquares = 4;  // that may be read together

// squares [channels, to a multiple of kSquares, + size - 1]: those of the channels belong behind size / 2 zeros, and
// zeros lie behind them, so that every channel sums as many.
using NormalizePosition = void (*)(const LocalResponseNormSpec& spec, const float* x, double* squares, float* out);

template <NormalizePosition normalize>
class ResponseNormStep final : public Step {
  public:
    explicit ResponseNormStep(const LocalResponseNormSpec& spec) : spec_(spec) {}

    size_t scratch_bytes() const override {
        return sizeof(double) * (round_up(spec_.tensor.channels, kSquares) + spec_.size - 1);
    }

    void run(const Call& call) const noexcept override {
        const int channels = spec_.tensor.channels;
        auto* squares = reinterpret_cast<double*>(call.scratch);
        std::memset(squares, 0, scratch_bytes());
        for (int64_t n = 0; n < call.samples; ++n) {
            const float* x = sample<float>(call.inputs[0], spec_.tensor, n);
            float* out = sample<float>(call.output, spec_.tensor, n);
            for (int64_t p = 0; p < spec_.tensor.positions(); ++p, x += channels, out += channels)
                normalize(spec_, x, squares, out);
        }
    }

  private:
    LocalResponseNormSpec spec_;
};

}  // namespace cs
