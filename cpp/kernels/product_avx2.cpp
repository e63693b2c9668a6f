// Products of 8-bit integers, of images by one position, too; avx2 tier.
//
// Why it is fast: bytes are widened to words by their load; VPMULLW and VPMULHW give the lower and the upper halves of
// 16 products, which interleaving makes integers of 32 bits, and packing brings back into order. With three
// instructions to requantize eight, 29 for 32 bytes.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "arithmetic.h"
#include "avx2.h"
#include "avx2_lanes.h"

namespace cs::avx2 {
namespace {

constexpr int kBytes = 32;

// Pixels of an image, all of which are multiplied by b.
struct Pixels {
    const std::byte *a, *b;
    int64_t count, bytes;  // of pixels, and of each
    float scale;
    std::byte* out;
};

template <bool kSigned>
CS_AVX2 inline __m256i widen(const std::byte* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return kSigned ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes);
}

// Sixteen results as words.
template <bool kSignedA, bool kSignedB>
CS_AVX2 inline __m256i multiply16(const std::byte* a, const std::byte* b, const float* scale) {
    const __m256i a_s16x16 = widen<kSignedA>(a), b_s16x16 = widen<kSignedB>(b);
    const __m256i lower_u16x16 = _mm256_mullo_epi16(a_s16x16, b_s16x16);
    const __m256i upper_s16x16 = _mm256_mulhi_epi16(a_s16x16, b_s16x16);
    return _mm256_packs_epi32(requantize8(_mm256_unpacklo_epi16(lower_u16x16, upper_s16x16), scale),
                              requantize8(_mm256_unpackhi_epi16(lower_u16x16, upper_s16x16), scale));
}

// Reads whole vectors: there is slack behind every tensor. Writes them, too, where the next pixel begins in them.
template <bool kSignedA, bool kSignedB, bool kSignedOut>
CS_AVX2 void multiply(const Pixels& pixels) {
    const Pixels p = pixels;  // stores could change what it refers to, for all the compiler knows
    alignas(32) float scale[8];
    std::fill_n(scale, 8, p.scale);
    std::byte* const end = p.out + p.count * p.bytes;
    for (int64_t pixel = 0; pixel < p.count; ++pixel) {
        const std::byte* a = p.a + pixel * p.bytes;
        std::byte* out = p.out + pixel * p.bytes;
        for (int64_t i = 0; i < p.bytes; i += kBytes) {
            const __m256i low = multiply16<kSignedA, kSignedB>(a + i, p.b + i, scale);
            const __m256i high = multiply16<kSignedA, kSignedB>(a + i + 16, p.b + i + 16, scale);
            const __m256i mixed_x8x32 = kSignedOut ? _mm256_packs_epi16(low, high) : _mm256_packus_epi16(low, high);
            const __m256i bytes_x8x32 = _mm256_permute4x64_epi64(mixed_x8x32, _MM_SHUFFLE(3, 1, 2, 0));
            if (out + i + kBytes <= end) {
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), bytes_x8x32);
            } else {
                std::memcpy(out + i, &bytes_x8x32, p.bytes - i);
            }
        }
    }
}

using Multiply = void (*)(const Pixels&);

template <bool kSignedA, bool kSignedB>
Multiply multiply_of(DType out) {
    return out == DType::s8 ? multiply<kSignedA, kSignedB, true> : multiply<kSignedA, kSignedB, false>;
}

Multiply multiply_of(const ProductSpec& s) {
    if (s.first.dtype == DType::s8) {
        return s.second.dtype == DType::s8 ? multiply_of<true, true>(s.output.dtype)
                                           : multiply_of<true, false>(s.output.dtype);
    }
    return s.second.dtype == DType::s8 ? multiply_of<false, true>(s.output.dtype)
                                       : multiply_of<false, false>(s.output.dtype);
}

class Product final : public Step {
  public:
    Product(const ProductSpec& spec, float scale) : spec_(spec), scale_(scale), multiply_(multiply_of(spec)) {}

    void run(const Call& call) const noexcept override {
        const RoundDown rounding(true);
        const int64_t bytes = spec_.second.size();  // a pixel, or the whole image
        for (int64_t n = 0; n < call.samples; ++n) {
            multiply_({sample<std::byte>(call.inputs[0], spec_.first, n),
                       sample<std::byte>(call.inputs[1], spec_.second, n), spec_.output.size() / bytes, bytes, scale_,
                       sample<std::byte>(call.output, spec_.output, n)});
        }
    }

  private:
    ProductSpec spec_;
    float scale_;
    Multiply multiply_;
};

}  // namespace

std::unique_ptr<Step> product(const ProductSpec& spec) {
    if (spec.requantization.empty()) return nullptr;
    const Requantization& q = spec.requantization;
    const float scale = std::ldexp(static_cast<float>(q.multiplier[0]), -q.shift[0]);
    constexpr float kLargest = 255 * 255;  // a product, which float32 holds exactly
    if (kLargest * scale >= 1e9f) return nullptr;
    return std::make_unique<Product>(spec, scale);
}

}  // namespace cs::avx2
