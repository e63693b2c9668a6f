// Concatenation, avx2 tier; see concat_lanes.h.
//
// Bytes are brought to another scale in words of 16 bits: a byte in the upper half of one times the multiplier, of
// which VPMULHUW keeps the upper half, is the product shifted by 8. The bits that it drops cannot change a sum that is
// shifted further, for they are less than one; and the last bit but one rounds (VPAVGW). Nine instructions for 32
// bytes.
#include <algorithm>

#include "avx2.h"
#include "avx2_lanes.h"
#include "concat_lanes.h"

namespace cs::avx2 {
namespace {

constexpr int kBytes = 32;
constexpr int kLeastShift = 9;             // 8 by the multiplication, and one that rounds
constexpr int kLeastMultiplier = 1 << 15;  // so that it is negative as a signed word

// A loop's constants, in registers.
struct Constants {
    __m256i multiplier;
    __m128i shift;

    CS_AVX2 explicit Constants(const ByteScaling& s)
        : multiplier(_mm256_set1_epi16(static_cast<int16_t>(s.multiplier))),
          shift(_mm_cvtsi32_si128(s.shift - kLeastShift)) {}
};

// Sixteen results as words. The input: bytes in the upper halves of words.
template <bool kFromSigned>
CS_AVX2 inline __m256i requantize16(__m256i x, const Constants& c) {
    if constexpr (kFromSigned) {  // as a signed word the multiplier is 2**16 too small
        const __m256i product_s16x16 = _mm256_add_epi16(_mm256_mulhi_epi16(x, c.multiplier), x);
        const __m256i shifted_s16x16 = _mm256_sra_epi16(product_s16x16, c.shift);
        return _mm256_srai_epi16(_mm256_add_epi16(shifted_s16x16, _mm256_set1_epi16(1)), 1);
    }
    const __m256i shifted_u16x16 = _mm256_srl_epi16(_mm256_mulhi_epu16(x, c.multiplier), c.shift);
    return _mm256_avg_epu16(shifted_u16x16, _mm256_setzero_si256());
}

template <bool kFromSigned, bool kToSigned>
CS_AVX2 inline __m256i requantize32(const std::byte* x, const Constants& c) {
    const __m256i x_x8x32 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)), zero = _mm256_setzero_si256();
    const __m256i low = requantize16<kFromSigned>(_mm256_unpacklo_epi8(zero, x_x8x32), c);
    const __m256i high = requantize16<kFromSigned>(_mm256_unpackhi_epi8(zero, x_x8x32), c);
    return kToSigned ? _mm256_packs_epi16(low, high) : _mm256_packus_epi16(low, high);
}

// Reads whole vectors: there is slack behind every tensor.
template <bool kFromSigned, bool kToSigned>
CS_AVX2 void requantize_as(const std::byte* x, int64_t size, const ByteScaling& scaling, std::byte* out) {
    const Constants constants(scaling);
    int64_t i = 0;
    for (; i + kBytes <= size; i += kBytes) {
        const __m256i result_x8x32 = requantize32<kFromSigned, kToSigned>(x + i, constants);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), result_x8x32);
    }
    if (i == size) return;
    const __m256i last_x8x32 = requantize32<kFromSigned, kToSigned>(x + i, constants);
    std::memcpy(out + i, &last_x8x32, size - i);
}

void requantize_bytes(const std::byte* x, int64_t size, const ByteScaling& s, std::byte* out) {
    if (s.from_signed) {
        (s.to_signed ? requantize_as<true, true> : requantize_as<true, false>)(x, size, s, out);
    } else {
        (s.to_signed ? requantize_as<false, true> : requantize_as<false, false>)(x, size, s, out);
    }
}

}  // namespace

std::unique_ptr<Step> concat(const ConcatSpec& spec) {
    const Requantization& q = spec.requantization;
    const auto is_small = [](int shift) { return shift < kLeastShift; };
    const auto is_odd = [](int multiplier) { return multiplier < kLeastMultiplier; };
    if (std::any_of(q.shift.begin(), q.shift.end(), is_small)) return nullptr;
    if (std::any_of(q.multiplier.begin(), q.multiplier.end(), is_odd)) return nullptr;
    return std::make_unique<LanesConcat<requantize_bytes>>(spec);
}

}  // namespace cs::avx2
