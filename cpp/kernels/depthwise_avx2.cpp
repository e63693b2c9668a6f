// Depthwise convolution in vectors of 256 bits, avx2 tier. See depthwise_lanes.h.
#include <type_traits>

#include "avx2.h"
#include "avx2_lanes.h"

namespace cs {
namespace {

using Bytes = __m256i;

// At least the first `count` bytes, up to half of them in the lower halves of both parts of the register. Up to a whole
// register may be read.
CS_AVX2 inline Bytes load_bytes(const std::byte* from, int count) {
    if (count > 16) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_permute4x64_epi64(_mm256_castsi128_si256(half), _MM_SHUFFLE(1, 1, 0, 0));
}

// The first `count` bytes, up to half of them from the lower halves of both parts of the register.
CS_AVX2 inline void store_bytes(std::byte* to, Bytes x, int count) {
    if (count >= 32) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x);
    if (count <= 16) x = _mm256_permute4x64_epi64(x, _MM_SHUFFLE(3, 1, 2, 0));
    if (count == 16) return _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(x));
    alignas(32) std::byte bytes[32];
    _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), x);
    int done = 0;
    const auto move = [&](auto size) {  // sizes that compilers know
        if (!(count & size)) return;
        std::memcpy(to + done, bytes + done, size);
        done += size;
    };
    move(std::integral_constant<int, 16>{});
    move(std::integral_constant<int, 8>{});
    move(std::integral_constant<int, 4>{});
    move(std::integral_constant<int, 2>{});
    move(std::integral_constant<int, 1>{});
}

// Four lines, interleaved by bytes: four vectors of quads.
CS_AVX2 inline void interleave(const Bytes (&line)[4], std::byte* to) {
    const __m256i low01 = _mm256_unpacklo_epi8(line[0], line[1]), high01 = _mm256_unpackhi_epi8(line[0], line[1]);
    const __m256i low23 = _mm256_unpacklo_epi8(line[2], line[3]), high23 = _mm256_unpackhi_epi8(line[2], line[3]);
    auto* quad = reinterpret_cast<__m256i*>(to);
    _mm256_store_si256(quad, _mm256_unpacklo_epi16(low01, low23));
    _mm256_store_si256(quad + 1, _mm256_unpackhi_epi16(low01, low23));
    _mm256_store_si256(quad + 2, _mm256_unpacklo_epi16(high01, high23));
    _mm256_store_si256(quad + 3, _mm256_unpackhi_epi16(high01, high23));
}

// Bytes 0 and 2 of quads as integers of 16 bits.
template <bool kSigned>
CS_AVX2 inline __m256i low_pairs(__m256i quad) {
    return kSigned ? _mm256_srai_epi16(_mm256_slli_epi16(quad, 8), 8) : _mm256_and_si256(quad, _mm256_set1_epi16(0xff));
}

// Bytes 1 and 3.
template <bool kSigned>
CS_AVX2 inline __m256i high_pairs(__m256i quad) {
    return kSigned ? _mm256_srai_epi16(quad, 8) : _mm256_srli_epi16(quad, 8);
}

// The results of a block, its channels in order again.
CS_AVX2 inline Bytes narrow_block(const int32_t* sums, const float* scale, bool to_unsigned) {
    __m256i result_s32x8[4];
    for (int v = 0; v < 4; ++v) result_s32x8[v] = requantize8(Pairs::load(sums + v * 8), scale + v * 8);
    const __m256i low_s16x16 = _mm256_packs_epi32(result_s32x8[0], result_s32x8[1]);
    const __m256i high_s16x16 = _mm256_packs_epi32(result_s32x8[2], result_s32x8[3]);
    return to_unsigned ? _mm256_packus_epi16(low_s16x16, high_s16x16) : _mm256_packs_epi16(low_s16x16, high_s16x16);
}

}  // namespace
}  // namespace cs

// The body needs the vocabulary above.
#include "depthwise_lanes.h"

namespace cs::avx2 {

std::unique_ptr<Step> depthwise(const LayerSpec& s) { return make_depthwise(s); }

}  // namespace cs::avx2
