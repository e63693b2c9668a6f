// k winners take all in vectors of 512 bits, avx512 tier. See kwta_lanes.h.
#include <limits>
#include <type_traits>

#include "avx512.h"
#include "avx512_lanes.h"

namespace cs {
namespace {

constexpr int kInterleaved = 8;  // small scopes

// A bit for every key that reaches the candidate, or equals it.
CS_AVX512 inline uint32_t reaching_lanes(const int32_t* keys, int32_t candidate) {
    return _mm512_cmpge_epi32_mask(_mm512_loadu_si512(keys), _mm512_set1_epi32(candidate));
}
CS_AVX512 inline uint32_t equal_lanes(const int32_t* keys, int32_t candidate) {
    return _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(keys), _mm512_set1_epi32(candidate));
}

// 64 values of X, uint8_t or int8_t.
template <class X>
struct Bytes {
    __m512i value;

    CS_AVX512 static Bytes load(const X* from) { return {_mm512_loadu_si512(from)}; }

    // A bit for every value that reaches the candidate, or equals it.
    CS_AVX512 uint64_t reaching(int candidate) const {
        const __m512i candidate_x8x64 = _mm512_set1_epi8(static_cast<char>(candidate));
        return std::is_signed_v<X> ? _mm512_cmpge_epi8_mask(value, candidate_x8x64)
                                   : _mm512_cmpge_epu8_mask(value, candidate_x8x64);
    }
    CS_AVX512 uint64_t equal(int candidate) const {
        return _mm512_cmpeq_epi8_mask(value, _mm512_set1_epi8(static_cast<char>(candidate)));
    }

    // The first `count` values, zero unless they are beyond the threshold, or equal it before place `end`.
    CS_AVX512 void write(X* to, int64_t count, int threshold, int end) const {
        const uint64_t won = reaching(threshold) & (~equal(threshold) | first64(end));
        _mm512_mask_storeu_epi8(to, first64(count), _mm512_maskz_mov_epi8(won, value));
    }
};

// How many of n values, a multiple of 64, reach the candidate.
template <class X>
CS_AVX512 int64_t count_blocks(const X* x, int64_t n, int candidate) {
    int64_t count = 0;
    for (int64_t at = 0; at < n; at += 64) count += __builtin_popcountll(Bytes<X>::load(x + at).reaching(candidate));
    return count;
}

// A scope is one vector, whose mask a comparison makes at once: none is turned.
template <class X>
int64_t many_scopes(const X*, X*, int64_t, int64_t, int64_t) {
    return 0;
}

}  // namespace
}  // namespace cs

// The body needs the vocabulary above.
#include "kwta_lanes.h"

namespace cs::avx512 {

std::unique_ptr<Step> kwta(const KwtaSpec& spec) { return make_kwta(spec); }

}  // namespace cs::avx512
