// What transformers and networks with normalizations need besides layers with weights, float32, scalar tier.
#include <cmath>
#include <cstring>

#include "arithmetic.h"
#include "matmul_steps.h"
#include "response_norm_steps.h"
#include "scalar.h"

namespace cs::scalar {
namespace {

class Gelu final : public Step {
  public:
    explicit Gelu(const GeluSpec& spec) : spec_(spec) {}

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            const float* x = sample<float>(call.inputs[0], spec_.tensor, n);
            float* out = sample<float>(call.output, spec_.tensor, n);
            for (int64_t i = 0; i < spec_.tensor.size(); ++i) out[i] = x[i] * share(x[i]);
        }
    }

  private:
    // Phi(x), without the cancellation of 1 + erf or 1 + tanh where x is negative.
    float share(float x) const {
        constexpr float kRootOfHalf = 0.70710678f, kTwoRootsOfTwoOverPi = 1.59576912f;
        if (!spec_.tanh) return 0.5f * std::erfc(-x * kRootOfHalf);
        return 1.0f / (1.0f + std::exp(-kTwoRootsOfTwoOverPi * (x + 0.044715f * x * x * x)));
    }

    GeluSpec spec_;
};

class LayerNorm final : public Step {
  public:
    explicit LayerNorm(const LayerNormSpec& spec) : spec_(spec) {}

    void run(const Call& call) const noexcept override {
        const int channels = spec_.tensor.channels;
        for (int64_t n = 0; n < call.samples; ++n) {
            const float* x = sample<float>(call.inputs[0], spec_.tensor, n);
            float* out = sample<float>(call.output, spec_.tensor, n);
            for (int64_t p = 0; p < spec_.tensor.positions(); ++p, x += channels, out += channels) normalize(x, out);
        }
    }

  private:
    void normalize(const float* x, float* out) const {
        const int channels = spec_.tensor.channels;
        double mean = 0, variance = 0;
        for (int c = 0; c < channels; ++c) mean += x[c];
        mean /= channels;
        for (int c = 0; c < channels; ++c) variance += (x[c] - mean) * (x[c] - mean);
        const double factor = 1.0 / std::sqrt(variance / channels + spec_.epsilon);
        for (int c = 0; c < channels; ++c) {
            out[c] = static_cast<float>((x[c] - mean) * factor * spec_.scale[c] + spec_.shift[c]);
        }
    }

    LayerNormSpec spec_;
};

// Two square roots make the usual power several times as fast as pow() would.
double power(double base, double beta) {
    const double root = std::sqrt(base);
    return beta == 0.75 ? root * std::sqrt(root) : std::pow(base, beta);
}

void normalize(const LocalResponseNormSpec& spec, const float* x, double* squares, float* out) {
    const int channels = spec.tensor.channels;
    double* mine = squares + spec.size / 2;
    for (int c = 0; c < channels; ++c) mine[c] = double{x[c]} * x[c];
    for (int c = 0; c < channels; ++c) {
        double sum = 0;
        for (int i = 0; i < spec.size; ++i) sum += squares[c + i];
        out[c] = static_cast<float>(x[c] / power(spec.bias + spec.alpha / spec.size * sum, spec.beta));
    }
}

// The inner loop runs along the columns, which lie in a row: compilers vectorize it.
void multiply(const float* a, const float* b, const MatMulShape& shape, float* out) {
    const auto [rows, depth, columns] = shape;
    for (int64_t i = 0; i < rows; ++i, out += columns) {
        std::memset(out, 0, sizeof(float) * columns);
        for (int64_t k = 0; k < depth; ++k) {
            const float x = a[i * depth + k];
            for (int64_t j = 0; j < columns; ++j) out[j] += x * b[k * columns + j];
        }
    }
}

template <class T>
class Transpose final : public Step {
  public:
    explicit Transpose(const TransposeSpec& spec) : spec_(spec) {
        const int64_t strides[] = {int64_t{spec.input.width} * spec.input.channels, spec.input.channels, 1};
        for (int i = 0; i < 3; ++i) step_[i] = strides[spec.axes[i]];
    }

    void run(const Call& call) const noexcept override {
        const Tensor& type = spec_.output;
        for (int64_t n = 0; n < call.samples; ++n) {
            const T* x = sample<T>(call.inputs[0], spec_.input, n);
            T* out = sample<T>(call.output, type, n);
            for (int i = 0; i < type.height; ++i) {
                for (int j = 0; j < type.width; ++j, out += type.channels) {
                    const T* line = x + i * step_[0] + j * step_[1];
                    for (int k = 0; k < type.channels; ++k) out[k] = line[k * step_[2]];
                }
            }
        }
    }

  private:
    TransposeSpec spec_;
    int64_t step_[3];  // elements between neighbours along each axis of the result
};

}  // namespace

std::unique_ptr<Step> gelu(const GeluSpec& spec) { return std::make_unique<Gelu>(spec); }

std::unique_ptr<Step> layer_norm(const LayerNormSpec& spec) { return std::make_unique<LayerNorm>(spec); }

std::unique_ptr<Step> local_response_norm(const LocalResponseNormSpec& spec) {
    return std::make_unique<ResponseNormStep<normalize>>(spec);
}

std::unique_ptr<Step> matmul(const MatMulSpec& spec) { return std::make_unique<MatMulStep<multiply>>(spec); }

std::unique_ptr<Step> transpose(const TransposeSpec& spec) {
    return with_type(spec.input.dtype, [&](auto type) -> std::unique_ptr<Step> {
        return std::make_unique<Transpose<decltype(type)>>(spec);
    });
}

}  // namespace cs::scalar
