// Products of two matrices of float32 per row of the images, whatever multiplies them: a tier brings the loop over one
// pair of matrices.
#pragma once

#include "arithmetic.h"

namespace cs {

struct MatMulShape {
    int64_t rows, depth, columns;
};

// a [rows, depth] times b [depth, columns], whose last row may be read up to kSlack bytes beyond.
using MultiplyMatrices = void (*)(const float* a, const float* b, const MatMulShape& shape, float* out);

// A transposed second operand is turned first.
template <MultiplyMatrices multiply>
class MatMulStep final : public Step {
  public:
    explicit MatMulStep(const MatMulSpec& spec)
        : spec_(spec), shape_{spec.first.width, spec.first.channels, spec.output.channels} {}

    size_t scratch_bytes() const override {
        return spec_.transposed ? sizeof(float) * shape_.depth * shape_.columns + kSlack : 0;
    }

    void run(const Call& call) const noexcept override {
        const auto [rows, depth, columns] = shape_;
        for (int64_t n = 0; n < call.samples; ++n) {
            const float* a = sample<float>(call.inputs[0], spec_.first, n);
            const float* b = sample<float>(call.inputs[1], spec_.second, n);
            float* out = sample<float>(call.output, spec_.output, n);
            for (int y = 0; y < spec_.first.height; ++y, a += rows * depth, b += depth * columns, out += rows * columns)
                multiply(a, spec_.transposed ? turned(b, reinterpret_cast<float*>(call.scratch)) : b, shape_, out);
        }
    }

  private:
    const float* turned(const float* b, float* out) const {
        for (int64_t j = 0; j < shape_.columns; ++j) {
            for (int64_t k = 0; k < shape_.depth; ++k) out[k * shape_.columns + j] = b[j * shape_.depth + k];
        }
        return out;
    }

    MatMulSpec spec_;
    MatMulShape shape_;
};

}  // namespace cs
