// Routing by comparison of kernel ids in vectors of 256 bits, avx2 tier. See linear_masks_lanes.h.
#include "avx2.h"
#include "avx2_lanes.h"

namespace cs {
namespace {

// Pairs of 16 bits, of two rows, for each of eight sets.
struct RoutedPair {
    __m256i weight, kid;
};

CS_AVX2 inline __m256i every_word(int x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); }
CS_AVX2 inline __m256i multiply_words(__m256i a, __m256i b) { return _mm256_mullo_epi16(a, b); }

CS_AVX2 inline RoutedPair interleave(const int8_t* first, const int8_t* second) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(second));
    return {_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)), _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b))};
}

// The mask is -1 where a product is the slot's own.
CS_AVX2 inline __m256i add_owned(__m256i sum_s32x8, __m256i product_s16x16, __m256i kid_u16x16, __m256i slot_u16x16) {
    const __m256i owned_s16x16 = _mm256_cmpeq_epi16(kid_u16x16, slot_u16x16);
    return _mm256_sub_epi32(sum_s32x8, _mm256_madd_epi16(product_s16x16, owned_s16x16));
}

}  // namespace
}  // namespace cs

// The body needs the vocabulary above.
#include "linear_masks_lanes.h"

namespace cs::avx2 {

std::unique_ptr<Step> linear_masks(const LayerSpec& s) { return make_linear_masks(s); }

}  // namespace cs::avx2
