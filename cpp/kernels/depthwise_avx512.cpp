// Depthwise convolution in vectors of 512 bits, avx512 tier. See depthwise_lanes.h.
#include "avx512.h"
#include "avx512_lanes.h"

namespace cs {
namespace {

using Bytes = __m512i;

// The first `count` bytes, up to half of them in the lower halves of the register's quarters.
CS_AVX512 inline Bytes load_bytes(const std::byte* from, int count) {
    const Bytes x = _mm512_maskz_loadu_epi8(first64(count), from);
    return count > 32 ? x : _mm512_permutexvar_epi64(_mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0), x);
}

// Likewise.
CS_AVX512 inline void store_bytes(std::byte* to, Bytes x, int count) {
    if (count <= 32) x = _mm512_permutexvar_epi64(_mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0), x);
    _mm512_mask_storeu_epi8(to, first64(count), x);
}

// Bytes 0 and 2 of quads as integers of 16 bits.
template <bool kSigned>
CS_AVX512 inline __m512i low_pairs(__m512i quad) {
    return kSigned ? _mm512_srai_epi16(_mm512_slli_epi16(quad, 8), 8) : _mm512_and_si512(quad, _mm512_set1_epi16(0xff));
}

// Bytes 1 and 3.
template <bool kSigned>
CS_AVX512 inline __m512i high_pairs(__m512i quad) {
    return kSigned ? _mm512_srai_epi16(quad, 8) : _mm512_srli_epi16(quad, 8);
}

// The results of a block, its channels in order again.
CS_AVX512 inline Bytes narrow_block(const int32_t* sums, const float* scale, bool to_unsigned) {
    __m512i result_s32x16[4];
    for (int v = 0; v < 4; ++v) {
        result_s32x16[v] = requantize16(_mm512_loadu_si512(sums + v * 16), _mm512_loadu_ps(scale + v * 16));
    }
    return pack64(result_s32x16, to_unsigned);
}

}  // namespace
}  // namespace cs

// The body needs the vocabulary above.
#include "depthwise_lanes.h"

namespace cs::avx512 {

std::unique_ptr<Step> depthwise(const LayerSpec& s) { return make_depthwise(s); }

}  // namespace cs::avx512
