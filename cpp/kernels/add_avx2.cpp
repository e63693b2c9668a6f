// Additions of 8-bit integers, avx2 tier; see add_lanes.h.
#include <algorithm>
#include <cstring>

#include "add_lanes.h"
#include "avx2.h"
#include "avx2_lanes.h"

namespace cs::avx2 {
namespace {

constexpr int kBytes = 32;

// A loop's constants, in registers.
struct Constants {
    __m256i flip_a, flip_b, upper_x8x32, lower_s16x16, rounding_s32x8;
    __m128i shift;

    CS_AVX2 explicit Constants(const AddScaling& s)
        : flip_a(_mm256_set1_epi8(static_cast<char>(s.flip_a))),
          flip_b(_mm256_set1_epi8(static_cast<char>(s.flip_b))),
          upper_x8x32(_mm256_set1_epi16(static_cast<int16_t>(s.upper_b << 8 | s.upper_a))),
          lower_s16x16(_mm256_set1_epi32(static_cast<uint16_t>(s.lower_a) | int32_t{s.lower_b} * 0x10000)),
          rounding_s32x8(_mm256_set1_epi32(s.rounding)),
          shift(_mm_cvtsi32_si128(s.shift)) {}
};

// Sums of 16 pairs, as words: of each 32-bit product its upper half, that of odd pairs where it is.
CS_AVX2 inline __m256i add16(__m256i pairs_u8x32, const Constants& c) {
    const __m256i even_order =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));
    const __m256i odd_order =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1));
    const __m256i even_u16x16 = _mm256_shuffle_epi8(pairs_u8x32, even_order);
    const __m256i odd_u16x16 = _mm256_shuffle_epi8(pairs_u8x32, odd_order);
    const __m256i even_s32x8 = _mm256_add_epi32(_mm256_madd_epi16(even_u16x16, c.lower_s16x16), c.rounding_s32x8);
    const __m256i odd_s32x8 = _mm256_add_epi32(_mm256_madd_epi16(odd_u16x16, c.lower_s16x16), c.rounding_s32x8);
    const __m256i lower_s16x16 = _mm256_blend_epi16(_mm256_srli_epi32(even_s32x8, 16), odd_s32x8, 0xaa);
    const __m256i upper_s16x16 = _mm256_maddubs_epi16(pairs_u8x32, c.upper_x8x32);
    return _mm256_sra_epi16(_mm256_adds_epi16(lower_s16x16, upper_s16x16), c.shift);
}

template <bool kUnsigned>
CS_AVX2 inline __m256i add32(const std::byte* a, const std::byte* b, const Constants& c) {
    const __m256i a_u8x32 = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)), c.flip_a);
    const __m256i b_u8x32 = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)), c.flip_b);
    const __m256i low = add16(_mm256_unpacklo_epi8(a_u8x32, b_u8x32), c);
    const __m256i high = add16(_mm256_unpackhi_epi8(a_u8x32, b_u8x32), c);
    return kUnsigned ? _mm256_packus_epi16(low, high) : _mm256_packs_epi16(low, high);
}

// Reads whole vectors: there is slack behind every tensor.
template <bool kUnsigned>
CS_AVX2 void add_as(const std::byte* a, const std::byte* b, int64_t size, const AddScaling& scaling, std::byte* out) {
    const Constants constants(scaling);
    int64_t i = 0;
    for (; i + kBytes <= size; i += kBytes) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), add32<kUnsigned>(a + i, b + i, constants));
    }
    if (i == size) return;
    const __m256i last = add32<kUnsigned>(a + i, b + i, constants);
    std::memcpy(out + i, &last, size - i);
}

void add_bytes(const std::byte* a, const std::byte* b, int64_t size, const AddScaling& scaling, std::byte* out) {
    (scaling.to_unsigned ? add_as<true> : add_as<false>)(a, b, size, scaling, out);
}

}  // namespace

std::unique_ptr<Step> add(const AddSpec& spec) { return lanes_add<add_bytes>(spec); }

}  // namespace cs::avx2
