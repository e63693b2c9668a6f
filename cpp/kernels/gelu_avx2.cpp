// GELU of float32, avx2 tier.
//
// Why it is fast: eight values at a time, an exponential of six multiplications with addition instead of a call. The
// complementary error function is a polynomial times an exponential, taken of |x|, so that nothing cancels where x is
// negative.
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
//
// erfc(z) * e**(z * z) / 2 is a polynomial in t = 1 / (1 + z / 2): a least-squares fit of relative errors over 0 <= z
// <= 12, beyond which the result is 0, none of them above 5e-8 before rounding.
CS_AVX2 inline __m256 by_erf(__m256 x) {
    constexpr float kShare[] = {
        -0.060028298f / 2, 0.289087613f / 2, -0.496162805f / 2, 0.287845047f / 2, -0.033005452f / 2,
        0.205224252f / 2,  0.242505840f / 2, 0.282451314f / 2,  0.282082439f / 2, 0};
    const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x), one = _mm256_set1_ps(1);
    const __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(size, _mm256_set1_ps(0.70710678f / 2), one));
    const __m256 density = exponential(_mm256_mul_ps(_mm256_mul_ps(size, size), _mm256_set1_ps(-0.5f)));
    const __m256 below = _mm256_mul_ps(polynomial(t, kShare), density);
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

constexpr float kLeast = -20;  // where GELU is 0 to 1e-87

// Reads whole vectors: there is slack behind every tensor.
template <bool kTanh>
CS_AVX2 void gelu_as(const float* x, int64_t size, float* out) {
    for (int64_t i = 0; i < size; i += kLanes) {
        const __m256 values = _mm256_max_ps(_mm256_set1_ps(kLeast), Floats::load(x + i));
        const __m256 result = kTanh ? by_tanh(values) : by_erf(values);
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
