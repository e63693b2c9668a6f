// Max-pooling, avx2 tier.
//
// Why it is fast: channels lie in lanes, 32 bytes at a time, and the window's pixels are combined in one register: a
// load and a VPMAXUB per pixel, whatever the strides. The last vector of a pixel begins early rather than end beyond
// it: taking a maximum twice changes nothing.
#include <cstring>
#include <limits>

#include "avx2.h"
#include "avx2_lanes.h"
#include "pool_lanes.h"

namespace cs::avx2 {
namespace {

constexpr int kBytes = 32;

template <DType kType>
CS_AVX2 inline __m256i larger(__m256i a, __m256i b) {
    if constexpr (kType == DType::u8) return _mm256_max_epu8(a, b);
    if constexpr (kType == DType::s8) return _mm256_max_epi8(a, b);
    if constexpr (kType == DType::s32) return _mm256_max_epi32(a, b);
    return _mm256_castps_si256(_mm256_max_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)));
}

template <DType kType>
CS_AVX2 inline __m256i lowest() {
    if constexpr (kType == DType::u8) return _mm256_setzero_si256();
    if constexpr (kType == DType::s8) return _mm256_set1_epi8(-128);
    if constexpr (kType == DType::s32) return _mm256_set1_epi32(std::numeric_limits<int32_t>::min());
    return _mm256_castps_si256(_mm256_set1_ps(-std::numeric_limits<float>::infinity()));
}

// A vector of the channels from byte `at` on. Reads a whole one: there is slack behind every tensor.
template <DType kType>
CS_AVX2 inline __m256i maximum_at(const Patch& p, int64_t at) {
    __m256i best = lowest<kType>();
    for (int y = 0; y < p.rows; ++y) {
        const std::byte* pixel = p.first + y * p.line_bytes + at;
        for (int x = 0; x < p.columns; ++x, pixel += p.pixel_bytes) {
            best = larger<kType>(best, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixel)));
        }
    }
    return best;
}

template <DType kType>
CS_AVX2 void maximum(const Patch& p, std::byte* out) {
    if (p.pixel_bytes < kBytes) {
        const __m256i best = maximum_at<kType>(p, 0);
        std::memcpy(out, &best, p.pixel_bytes);
        return;
    }
    for (int64_t next = kBytes; next < p.pixel_bytes + kBytes; next += kBytes) {
        const int64_t at = std::min(next, p.pixel_bytes) - kBytes;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at), maximum_at<kType>(p, at));
    }
}

class MaxPool final : public Step {
  public:
    explicit MaxPool(const PoolSpec& spec) : spec_(spec), maximum_(maximum_of(spec.input.dtype)) {}

    void run(const Call& call) const noexcept override { for_each_window(spec_, call, maximum_); }

  private:
    using Maximum = void (*)(const Patch&, std::byte*);

    static Maximum maximum_of(DType dtype) {
        if (dtype == DType::u8) return maximum<DType::u8>;
        if (dtype == DType::s8) return maximum<DType::s8>;
        return dtype == DType::s32 ? maximum<DType::s32> : maximum<DType::f32>;
    }

    PoolSpec spec_;
    Maximum maximum_;
};

}  // namespace

std::unique_ptr<Step> pool(const PoolSpec& spec) { return spec.average ? nullptr : std::make_unique<MaxPool>(spec); }

}  // namespace cs::avx2
