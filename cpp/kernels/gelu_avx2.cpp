// GELU of float32, avx2 tier.
//
// Why it is fast: eight values at a time, an exponential of six multiplications with addition instead of a call. The
// complementary error function is the approximation 7.1.26 of Abramowitz and Stegun, whose error is below 1.5e-7; it is
// taken of |x|, so that nothing cancels where x is negative.
#include <algorithm>

#include "arithmetic.h"
#include "avx2.h"
#include "avx2_lanes.h"

namespace cs::avx2 {
namespace {

template <int COUNT>
CS_AVX2 inline __m256 polynomial(__m256 x, const float (&coefficients)[COUNT]) {  // the highest power first
    __m256 sum = _mm256_set1_ps(coefficients[0]);
    for (int i = 1; i < COUNT; ++i) sum = _mm256_fmadd_ps(sum, x, _mm256_set1_ps(coefficients[i]));
    return sum;
}

// e**x from -87 to 88, beyond that of these; to a relative error of 2e-7.
CS_AVX2 inline __m256 exponential(__m256 x) {
    constexpr float kLogTwoUpper = 0.693359375f, kLogTwoLower = -2.12194440e-4f;
    constexpr float kTaylor[] = {1 / 720.f, 1 / 120.f, 1 / 24.f, 1 / 6.f, 0.5f, 1, 1};
    x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87)), _mm256_set1_ps(88));
    const __m256 power =
        _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 upper = _mm256_fnmadd_ps(power, _mm256_set1_ps(kLogTwoUpper), x);
    const __m256 rest = _mm256_fnmadd_ps(power, _mm256_set1_ps(kLogTwoLower), upper);
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(power), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(polynomial(rest, kTaylor)), exponent));
}

// x * (1 + erf(x / sqrt(2))) / 2
CS_AVX2 inline __m256 by_erf(__m256 x) {
    constexpr float kErfc[] = {1.061405429f, -1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f, 0};
    const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x), one = _mm256_set1_ps(1);
    const __m256 scaled = _mm256_mul_ps(size, _mm256_set1_ps(0.70710678f));
    const __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(scaled, _mm256_set1_ps(0.3275911f), one));
    const __m256 density = exponential(_mm256_mul_ps(_mm256_mul_ps(size, size), _mm256_set1_ps(-0.5f)));
    const __m256 below = _mm256_mul_ps(_mm256_mul_ps(polynomial(t, kErfc), density), _mm256_set1_ps(0.5f));
    return _mm256_mul_ps(x, _mm256_blendv_ps(_mm256_sub_ps(one, below), below, x));  // by the sign of x
}

// x * (1 + tanh(y)) / 2 is x / (1 + e**(-2 y)).
CS_AVX2 inline __m256 by_tanh(__m256 x) {
    constexpr float kTwoRootsOfTwoOverPi = 1.59576912f;
    const __m256 cubed = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
    const __m256 y = _mm256_fmadd_ps(cubed, _mm256_set1_ps(0.044715f), x);
    const __m256 odds = exponential(_mm256_mul_ps(y, _mm256_set1_ps(-kTwoRootsOfTwoOverPi)));
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1), odds));
}

// Reads whole vectors: there is slack behind every tensor.
template <bool kTanh>
CS_AVX2 void gelu_as(const float* x, int64_t size, float* out) {
    for (int64_t i = 0; i < size; i += kLanes) {
        const __m256 values = Floats::load(x + i), result = kTanh ? by_tanh(values) : by_erf(values);
        const int count = static_cast<int>(std::min<int64_t>(kLanes, size - i));
        Floats::write(out + i, count, result, nullptr, DType::f32, false);
    }
}

class Gelu final : public Step {
  public:
    explicit Gelu(const GeluSpec& spec) : spec_(spec) {}

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            (spec_.tanh ? gelu_as<true> : gelu_as<false>)(sample<float>(call.inputs[0], spec_.tensor, n),
                                                          spec_.tensor.size(),
                                                          sample<float>(call.output, spec_.tensor, n));
        }
    }

  private:
    GeluSpec spec_;
};

}  // namespace

std::unique_ptr<Step> gelu(const GeluSpec& spec) { return std::make_unique<Gelu>(spec); }

}  // namespace cs::avx2
