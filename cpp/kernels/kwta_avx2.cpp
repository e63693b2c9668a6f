// k winners take all in vectors of 256 bits, avx2 tier. See kwta_lanes.h.
#include <limits>
#include <type_traits>

#include "avx2.h"
#include "avx2_lanes.h"

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

// The bytes of a vector whose bits are set; zeros elsewhere. A byte of the mask goes to each of its eight lanes.
CS_AVX2 inline __m256i keep_bytes(__m256i value_x8x32, uint32_t mask) {
    const __m256i eighth_u8x32 = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const __m256i bit_u8x32 = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    const __m256i masks_u8x32 = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int32_t>(mask)), eighth_u8x32);
    const __m256i kept_u8x32 = _mm256_cmpeq_epi8(_mm256_and_si256(masks_u8x32, bit_u8x32), bit_u8x32);
    return _mm256_and_si256(kept_u8x32, value_x8x32);
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

    // A bit for every value that reaches the candidate, or equals it.
    CS_AVX2 uint64_t reaching(int candidate) const {
        const __m256i candidate_x8x32 = _mm256_set1_epi8(static_cast<char>(candidate));
        return join(_mm256_cmpeq_epi8(larger(low, candidate_x8x32), low),
                    _mm256_cmpeq_epi8(larger(high, candidate_x8x32), high));
    }
    CS_AVX2 uint64_t equal(int candidate) const {
        const __m256i candidate_x8x32 = _mm256_set1_epi8(static_cast<char>(candidate));
        return join(_mm256_cmpeq_epi8(low, candidate_x8x32), _mm256_cmpeq_epi8(high, candidate_x8x32));
    }

    // The first `count` values, zero unless their bit is set.
    CS_AVX2 void write(X* to, int64_t count, uint64_t mask) const {
        alignas(32) X values[64];
        X* whole = count < 64 ? values : to;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(whole), keep_bytes(low, static_cast<uint32_t>(mask)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(whole) + 1, keep_bytes(high, static_cast<uint32_t>(mask >> 32)));
        if (count < 64) std::memcpy(to, values, count);
    }
};

}  // namespace
}  // namespace cs

// The body needs the vocabulary above.
#include "kwta_lanes.h"

namespace cs::avx2 {

std::unique_ptr<Step> kwta(const KwtaSpec& spec) { return make_kwta(spec); }

}  // namespace cs::avx2
