// Local response normalization with the usual power 0.75, float32, avx2 tier.
//
// Why it is fast: channels in lanes, four in double. The squares of a position lie between zeros, so that the sums of
// all windows are as many unaligned loads; two square roots and a division are what is left, and the bound.
#include <cstring>

#include "../aligned.h"
#include "arithmetic.h"
#include "avx2.h"
#include "avx2_lanes.h"

namespace cs::avx2 {
namespace {

constexpr int kDoubles = 4;

class ResponseNorm final : public Step {
  public:
    explicit ResponseNorm(const LocalResponseNormSpec& spec) : spec_(spec) {}

    size_t scratch_bytes() const override {
        return sizeof(double) * (round_up(spec_.tensor.channels, kDoubles) + spec_.size - 1);
    }

    void run(const Call& call) const noexcept override {
        const int channels = spec_.tensor.channels;
        auto* squares = reinterpret_cast<double*>(call.scratch);
        std::memset(squares, 0, scratch_bytes());
        for (int64_t n = 0; n < call.samples; ++n) {
            const float* x = sample<float>(call.inputs[0], spec_.tensor, n);
            float* out = sample<float>(call.output, spec_.tensor, n);
            for (int64_t p = 0; p < spec_.tensor.positions(); ++p, x += channels, out += channels) {
                square(x, squares + spec_.size / 2);
                normalize(x, squares, out);
            }
        }
    }

  private:
    // The first `count` lanes.
    CS_AVX2 static __m256d load(const float* x, int count) {
        const __m128i mask = _mm256_castsi256_si128(first_lanes(count));
        return _mm256_cvtps_pd(_mm_maskload_ps(x, mask));
    }

    CS_AVX2 void square(const float* x, double* squares) const {
        for (int c = 0; c < spec_.tensor.channels; c += kDoubles) {
            const int count = std::min(kDoubles, spec_.tensor.channels - c);
            const __m256d x_f64x4 = load(x + c, count);
            const __m256i mask = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(first_lanes(count)));
            _mm256_maskstore_pd(squares + c, mask, _mm256_mul_pd(x_f64x4, x_f64x4));
        }
    }

    CS_AVX2 void normalize(const float* x, const double* squares, float* out) const {
        const __m256d share = _mm256_set1_pd(spec_.alpha / spec_.size), bias = _mm256_set1_pd(spec_.bias);
        for (int c = 0; c < spec_.tensor.channels; c += kDoubles) {
            __m256d sum_f64x4 = _mm256_setzero_pd();
            for (int i = 0; i < spec_.size; ++i) {
                sum_f64x4 = _mm256_add_pd(sum_f64x4, _mm256_loadu_pd(squares + c + i));
            }
            const __m256d root_f64x4 = _mm256_sqrt_pd(_mm256_fmadd_pd(sum_f64x4, share, bias));
            const __m256d power_f64x4 = _mm256_mul_pd(root_f64x4, _mm256_sqrt_pd(root_f64x4));
            const int count = std::min(kDoubles, spec_.tensor.channels - c);
            const __m128 result_f32x4 = _mm256_cvtpd_ps(_mm256_div_pd(load(x + c, count), power_f64x4));
            _mm_maskstore_ps(out + c, _mm256_castsi256_si128(first_lanes(count)), result_f32x4);
        }
    }

    LocalResponseNormSpec spec_;
};

}  // namespace

std::unique_ptr<Step> local_response_norm(const LocalResponseNormSpec& spec) {
    return spec.beta == 0.75 ? std::make_unique<ResponseNorm>(spec) : nullptr;
}

}  // namespace cs::avx2
