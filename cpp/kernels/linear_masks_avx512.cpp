// Routing by comparison of kernel ids in vectors of 512 bits, avx512 tier. See linear_masks_lanes.h.
#include "avx512.h"
#include "avx512_lanes.h"

namespace cs {
namespace {

// Pairs of 16 bits, of two rows, for each of sixteen sets.
struct RoutedPair {
    __m512i weight, kid;
};

CS_AVX512 inline __m512i every_word(int x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
CS_AVX512 inline __m512i multiply_words(__m512i a, __m512i b) { return _mm512_mullo_epi16(a, b); }

CS_AVX512 inline RoutedPair interleave(const int8_t* first, const int8_t* second) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second));
    // Eight sets each: weights in the lower half, kernel ids in the upper one.
    const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
    return {_mm512_cvtepi8_epi16(_mm256_permute2x128_si256(low, high, 0x20)),
            _mm512_cvtepu8_epi16(_mm256_permute2x128_si256(low, high, 0x31))};
}

CS_AVX512 inline __m512i add_owned(__m512i sum_s32x16, __m512i product_s16x32, __m512i kid_u16x32,
                                   __m512i slot_u16x32) {
    const __mmask32 owned = _mm512_cmpeq_epi16_mask(kid_u16x32, slot_u16x32);
    const __m512i own_s16x32 = _mm512_maskz_mov_epi16(owned, product_s16x32);
    return _mm512_add_epi32(sum_s32x16, _mm512_madd_epi16(own_s16x32, _mm512_set1_epi16(1)));
}

}  // namespace
}  // namespace cs

// The body needs the vocabulary above.
#include "linear_masks_lanes.h"

namespace cs::avx512 {

std::unique_ptr<Step> linear_masks(const LayerSpec& s) { return make_linear_masks(s); }

}  // namespace cs::avx512
