// Max and average pooling, avx512 tier.
//
// Why it is fast: channels lie in lanes, 64 bytes at a time, and the window's pixels are combined in one register: a
// load and a VPMAXUB per pixel, whatever the strides. Means widen to 32 bits (or double for float32) on the way, so
// that sums are exact, and are requantized as sums. Where windows reach beyond the image they are clipped, once per
// window.
#include <cmath>
#include <limits>

#include "avx512.h"
#include "avx512_math.h"
#include "pool_lanes.h"

namespace cs::avx512 {
namespace {

template <DType kType>
CS_AVX512 inline __m512i larger(__m512i a, __m512i b) {
    if constexpr (kType == DType::u8) return _mm512_max_epu8(a, b);
    if constexpr (kType == DType::s8) return _mm512_max_epi8(a, b);
    if constexpr (kType == DType::s32) return _mm512_max_epi32(a, b);
    return _mm512_castps_si512(_mm512_max_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)));
}

template <DType kType>
CS_AVX512 inline __m512i lowest() {
    if constexpr (kType == DType::u8) return _mm512_setzero_si512();
    if constexpr (kType == DType::s8) return _mm512_set1_epi8(-128);
    if constexpr (kType == DType::s32) return _mm512_set1_epi32(std::numeric_limits<int32_t>::min());
    return _mm512_castps_si512(_mm512_set1_ps(-std::numeric_limits<float>::infinity()));
}

template <DType kType>
CS_AVX512 void maximum(const Patch& p, std::byte* out) {
    for (int64_t at = 0; at < p.pixel_bytes; at += 64) {
        const __mmask64 mask = first64(p.pixel_bytes - at);
        __m512i best = lowest<kType>();
        for (int y = 0; y < p.rows; ++y) {
            const std::byte* pixel = p.first + y * p.line_bytes + at;
            for (int x = 0; x < p.columns; ++x, pixel += p.pixel_bytes) {
                best = larger<kType>(best, _mm512_maskz_loadu_epi8(mask, pixel));
            }
        }
        _mm512_mask_storeu_epi8(out + at, mask, best);
    }
}

// The requantized sums of integers.
template <DType kType>
CS_AVX512 void mean_integers(const Patch& p, float scale, bool to_unsigned, std::byte* out) {
    for (int64_t c = 0; c < p.pixel_bytes; c += 16) {
        const __mmask16 mask = first16(p.pixel_bytes - c);
        __m512i sum_s32x16 = _mm512_setzero_si512();
        for (int y = 0; y < p.rows; ++y) {
            const std::byte* pixel = p.first + y * p.line_bytes + c;
            for (int x = 0; x < p.columns; ++x, pixel += p.pixel_bytes) {
                sum_s32x16 = _mm512_add_epi32(sum_s32x16, widen16(pixel, mask, kType == DType::s8));
            }
        }
        const __m512i result = requantize16(sum_s32x16, _mm512_set1_ps(scale));
        _mm_mask_storeu_epi8(out + c, mask, narrow16(result, to_unsigned));
    }
}

// Sums in double, as the scalar tier has them.
CS_AVX512 void mean_floats(const Patch& p, int area, float* out) {
    const int64_t channels = p.pixel_bytes / 4;
    for (int64_t c = 0; c < channels; c += 8) {
        const auto mask = static_cast<__mmask8>(first16(channels - c));
        __m512d sum_f64x8 = _mm512_setzero_pd();
        for (int y = 0; y < p.rows; ++y) {
            const std::byte* pixel = p.first + y * p.line_bytes + c * 4;
            for (int x = 0; x < p.columns; ++x, pixel += p.pixel_bytes) {
                sum_f64x8 = _mm512_add_pd(sum_f64x8, _mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, pixel)));
            }
        }
        _mm256_mask_storeu_ps(out + c, mask, _mm512_cvtpd_ps(_mm512_div_pd(sum_f64x8, _mm512_set1_pd(area))));
    }
}

class Pool final : public Step {
  public:
    explicit Pool(const PoolSpec& spec) : spec_(spec) {
        for (size_t i = 0; i < spec.requantization.multiplier.size(); ++i) {
            const auto multiplier = static_cast<float>(spec.requantization.multiplier[i]);
            scale_.push_back(std::ldexp(multiplier, -spec.requantization.shift[i]));
        }
    }

    void run(const Call& call) const noexcept override {
        for_each_window(spec_, call, [this](const Patch& patch, std::byte* out) { reduce(patch, out); });
    }

  private:
    void reduce(const Patch& p, std::byte* out) const {
        switch (spec_.input.dtype) {
            case DType::u8:
                return spec_.average ? mean<DType::u8>(p, out) : maximum<DType::u8>(p, out);
            case DType::s8:
                return spec_.average ? mean<DType::s8>(p, out) : maximum<DType::s8>(p, out);
            case DType::s32:
                return maximum<DType::s32>(p, out);
            case DType::f32:
                return spec_.average ? mean<DType::f32>(p, out) : maximum<DType::f32>(p, out);
        }
    }

    template <DType kType>
    void mean(const Patch& p, std::byte* out) const {
        if constexpr (kType == DType::f32) {
            const int area = spec_.count_padding ? spec_.window.kernel_h * spec_.window.kernel_w : p.area();
            mean_floats(p, area, reinterpret_cast<float*>(out));
        } else {
            const float scale = scale_[spec_.count_padding ? 0 : p.area() - 1];
            mean_integers<kType>(p, scale, spec_.output.dtype == DType::u8, out);
        }
    }

    PoolSpec spec_;
    std::vector<float> scale_;  // of the sum, one for every number of elements it divides by
};

// Sums must be exact in float32 and their results must fit 32 bits.
bool requantizes_exactly(const PoolSpec& spec) {
    if (!spec.average || spec.input.dtype == DType::f32) return true;
    const int64_t largest = int64_t{255} * spec.window.kernel_h * spec.window.kernel_w;
    if (element_bytes(spec.input.dtype) != 1 || largest >= (1 << 24)) return false;
    for (size_t i = 0; i < spec.requantization.multiplier.size(); ++i) {
        const double scale = std::ldexp(spec.requantization.multiplier[i], -spec.requantization.shift[i]);
        if (static_cast<double>(largest) * scale >= 1e9) return false;
    }
    return true;
}

}  // namespace

std::unique_ptr<Step> pool(const PoolSpec& spec) {
    return requantizes_exactly(spec) ? std::make_unique<Pool>(spec) : nullptr;
}

}  // namespace cs::avx512
