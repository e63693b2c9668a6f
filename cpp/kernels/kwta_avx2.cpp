// k winners take all in vectors of 256 bits, avx2 tier. See kwta_lanes.h.
#include <limits>
#include <type_traits>

#include "avx2.h"
#include "avx2_lanes.h"
#include "kwta_turned_avx2.h"

namespace cs {
namespace {

constexpr int kInterleaved = 4;  // small scopes

// A bit for every key that reaches the candidate, or equals it.
CS_AVX2 inline uint32_t reaching_lanes(const int32_t* keys, int32_t candidate) {
    const __m256i key_s32x8 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys));
    const __m256i below_s32x8 = _mm256_cmpgt_epi32(_mm256_set1_epi32(candidate), key_s32x8);
    return ~static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(below_s32x8))) & 0xff;
}
CS_AVX2 inline uint32_t equal_lanes(const int32_t* keys, int32_t candidate) {
    const __m256i key_s32x8 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys));
    const __m256i equal_s32x8 = _mm256_cmpeq_epi32(key_s32x8, _mm256_set1_epi32(candidate));
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(equal_s32x8)));
}

// 64 values of X, uint8_t or int8_t.
template <class X>
struct Bytes {
    __m256i low, high;

    CS_AVX2 static Bytes load(const X* from) {
        const auto* vectors = reinterpret_cast<const __m256i*>(from);
        return {_mm256_loadu_si256(vectors), _mm256_loadu_si256(vectors + 1)};
    }

    CS_AVX2 static uint64_t join(__m256i low, __m256i high) {
        return static_cast<uint32_t>(_mm256_movemask_epi8(low)) |
               uint64_t{static_cast<uint32_t>(_mm256_movemask_epi8(high))} << 32;
    }

    CS_AVX2 static __m256i larger(__m256i a, __m256i b) {
        return std::is_signed_v<X> ? _mm256_max_epi8(a, b) : _mm256_max_epu8(a, b);
    }

    // -1 for every byte of a half that reaches the candidate, or equals it.
    CS_AVX2 static __m256i reaching_half(__m256i half_x8x32, int candidate) {
        return _mm256_cmpeq_epi8(larger(half_x8x32, _mm256_set1_epi8(static_cast<char>(candidate))), half_x8x32);
    }
    // A bit for every value that reaches the candidate, or equals it.
    CS_AVX2 uint64_t reaching(int candidate) const {
        return join(reaching_half(low, candidate), reaching_half(high, candidate));
    }
    CS_AVX2 uint64_t equal(int candidate) const {
        const __m256i candidate_x8x32 = _mm256_set1_epi8(static_cast<char>(candidate));
        return join(_mm256_cmpeq_epi8(low, candidate_x8x32), _mm256_cmpeq_epi8(high, candidate_x8x32));
    }

    // The first `count` values, zero unless they are beyond the threshold, or equal it before place `end`.
    CS_AVX2 void write(X* to, int64_t count, int threshold, int end) const {
        const __m256i threshold_s8x32 = in_order<X>(_mm256_set1_epi8(static_cast<char>(threshold)));
        const __m256i last_s8x32 = _mm256_set1_epi8(static_cast<char>(end - 1));
        alignas(32) X values[64];
        auto* whole = reinterpret_cast<__m256i*>(count < 64 ? values : to);
        const __m256i late_low_s8x32 = _mm256_cmpgt_epi8(bytes_from(0), last_s8x32);
        const __m256i late_high_s8x32 = _mm256_cmpgt_epi8(bytes_from(32), last_s8x32);
        _mm256_storeu_si256(whole, winners<X>(low, threshold_s8x32, late_low_s8x32));
        _mm256_storeu_si256(whole + 1, winners<X>(high, threshold_s8x32, late_high_s8x32));
        if (count < 64) std::memcpy(to, values, count);
    }
};

// The sum of 64 bytes.
CS_AVX2 inline int64_t sum_bytes(__m256i low_u8x32, __m256i high_u8x32) {
    const __m256i zero = _mm256_setzero_si256();
    const __m256i sums_s64x4 = _mm256_add_epi64(_mm256_sad_epu8(low_u8x32, zero), _mm256_sad_epu8(high_u8x32, zero));
    const __m128i half_s64x2 =
        _mm_add_epi64(_mm256_castsi256_si128(sums_s64x4), _mm256_extracti128_si256(sums_s64x4, 1));
    return _mm_cvtsi128_si64(half_s64x2) + _mm_extract_epi64(half_s64x2, 1);
}

// How many of n values, a multiple of 64, reach the candidate. Bytes count, as far as they can.
template <class X>
CS_AVX2 int64_t count_blocks(const X* x, int64_t n, int candidate) {
    int64_t count = 0;
    while (n > 0) {
        const int64_t part = std::min<int64_t>(n, 64 * 255);
        __m256i low_u8x32 = _mm256_setzero_si256(), high_u8x32 = low_u8x32;
        for (const X* end = x + part; x < end; x += 64) {
            const auto value = Bytes<X>::load(x);
            low_u8x32 = _mm256_sub_epi8(low_u8x32, Bytes<X>::reaching_half(value.low, candidate));
            high_u8x32 = _mm256_sub_epi8(high_u8x32, Bytes<X>::reaching_half(value.high, candidate));
        }
        count += sum_bytes(low_u8x32, high_u8x32);
        n -= part;
    }
    return count;
}

}  // namespace
}  // namespace cs

// The body needs the vocabulary above.
#include "kwta_lanes.h"

namespace cs::avx2 {

std::unique_ptr<Step> kwta(const KwtaSpec& spec) { return make_kwta(spec); }

}  // namespace cs::avx2
