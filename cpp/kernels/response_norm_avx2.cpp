// Local response normalization with the usual power 0.75, float32, avx2 tier.
//
// Why it is fast: channels in lanes, four in double. The squares of a position lie between zeros, so that the sums of
// all windows are as many unaligned loads; two square roots and a division are what is left, and the bound.
#include <algorithm>

#include "avx2.h"
#include "avx2_lanes.h"
#include "response_norm_steps.h"

namespace cs::avx2 {
namespace {

// The first `count` lanes.
CS_AVX2 inline __m256d load(const float* x, int count) {
    return _mm256_cvtps_pd(_mm_maskload_ps(x, _mm256_castsi256_si128(first_lanes(count))));
}

CS_AVX2 void square(const float* x, int channels, double* squares) {
    for (int c = 0; c < channels; c += kSquares) {
        const int count = std::min(kSquares, channels - c);
        const __m256d x_f64x4 = load(x + c, count);
        const __m256i mask = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(first_lanes(count)));
        _mm256_maskstore_pd(squares + c, mask, _mm256_mul_pd(x_f64x4, x_f64x4));
    }
}

CS_AVX2 void normalize(const LocalResponseNormSpec& spec, const float* x, double* squares, float* out) {
    const int channels = spec.tensor.channels;
    square(x, channels, squares + spec.size / 2);
    const __m256d share = _mm256_set1_pd(spec.alpha / spec.size), bias = _mm256_set1_pd(spec.bias);
    for (int c = 0; c < channels; c += kSquares) {
        __m256d sum_f64x4 = _mm256_setzero_pd();
        for (int i = 0; i < spec.size; ++i) sum_f64x4 = _mm256_add_pd(sum_f64x4, _mm256_loadu_pd(squares + c + i));
        const __m256d root_f64x4 = _mm256_sqrt_pd(_mm256_fmadd_pd(sum_f64x4, share, bias));
        const __m256d power_f64x4 = _mm256_mul_pd(root_f64x4, _mm256_sqrt_pd(root_f64x4));
        const int count = std::min(kSquares, channels - c);
        const __m128 result_f32x4 = _mm256_cvtpd_ps(_mm256_div_pd(load(x + c, count), power_f64x4));
        _mm_maskstore_ps(out + c, _mm256_castsi256_si128(first_lanes(count)), result_f32x4);
    }
}

}  // namespace

std::unique_ptr<Step> local_response_norm(const LocalResponseNormSpec& spec) {
    return spec.beta == 0.75 ? std::make_unique<ResponseNormStep<normalize>>(spec) : nullptr;
}

}  // namespace cs::avx2
