// k winners of many scopes of up to 256 bytes, avx2 tier: 32 scopes are turned, so that each has a byte lane.
//
// Why it is fast: a step of the bisection compares and counts a value of 32 scopes in two instructions, and nothing
// leaves the vectors on the way. The place of the last winner is found likewise: equal values are counted down until
// none is left to win. By threshold and place the winners are then picked from the scopes as they lie.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "avx2_lanes.h"

namespace cs {
namespace {

#define CS_UNROLL _Pragma("GCC unroll 32")

constexpr int kTurned = 32;          // scopes at a time
constexpr int kFewestTurned = 12;    // fewer are quicker one by one
constexpr int kLongestTurned = 256;  // values of a scope: their places fit a byte
constexpr int kMostLosers = 254;     // of a scope: one more can be told from them in a byte
constexpr int kValuesAtOnce = 8;     // compared between two branches

// Bytes of X in the order of int8.
template <class X>
CS_AVX2 inline __m256i in_order(__m256i value_x8x32) {
    return std::is_signed_v<X> ? value_x8x32 : _mm256_xor_si256(value_x8x32, _mm256_set1_epi8(-128));
}

// first, first + 1, ... modulo 256
CS_AVX2 inline __m256i bytes_from(int first) {
    const __m256i byte_u8x32 = _mm256_set_epi64x(0x1f1e1d1c1b1a1918, 0x1716151413121110, 0x0f0e0d0c0b0a0908,  //
                                                 0x0706050403020100);
    return _mm256_add_epi8(byte_u8x32, _mm256_set1_epi8(static_cast<char>(first)));
}

// The values beyond the threshold, and those that equal it, unless they are late (-1); else 0. The threshold is
// in_order.
template <class X>
CS_AVX2 inline __m256i winners(__m256i value_x8x32, __m256i threshold_s8x32, __m256i late_s8x32) {
    const __m256i order_s8x32 = in_order<X>(value_x8x32);
    const __m256i beyond_s8x32 = _mm256_cmpgt_epi8(order_s8x32, threshold_s8x32);
    const __m256i equal_s8x32 = _mm256_cmpeq_epi8(order_s8x32, threshold_s8x32);
    const __m256i won_s8x32 = _mm256_or_si256(beyond_s8x32, _mm256_andnot_si256(late_s8x32, equal_s8x32));
    return _mm256_and_si256(value_x8x32, won_s8x32);
}

// 16 values of each of 32 scopes of n: vector i holds value i of all, in_order. Four times the halves of the rows are
// interleaved, by which bytes move from columns to rows.
template <class X>
CS_AVX2 void turn(const X* x, int n, __m256i* value_s8x32) {
    __m256i row_x8x32[16];
    CS_UNROLL for (int i = 0; i < 16; ++i) {
        const __m128i low_x8x16 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i * n));
        const __m128i high_x8x16 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + (i + 16) * n));
        row_x8x32[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(low_x8x16), high_x8x16, 1);
    }
    CS_UNROLL for (int step = 0; step < 4; ++step) {
        __m256i mixed_x8x32[16];
        CS_UNROLL for (int i = 0; i < 8; ++i) {
            mixed_x8x32[2 * i] = _mm256_unpacklo_epi8(row_x8x32[i], row_x8x32[i + 8]);
            mixed_x8x32[2 * i + 1] = _mm256_unpackhi_epi8(row_x8x32[i], row_x8x32[i + 8]);
        }
        CS_UNROLL for (int i = 0; i < 16; ++i) row_x8x32[i] = mixed_x8x32[i];
    }
    CS_UNROLL for (int i = 0; i < 16; ++i) value_s8x32[i] = in_order<X>(row_x8x32[i]);
}

// How many of up to 256 values, a multiple of kValuesAtOnce, are below the candidate of their lane: in two parts, whose
// sum may be too large for a byte.
struct Below {
    __m256i even_u8x32, odd_u8x32;
};

CS_AVX2 inline Below count_below(const __m256i* value_s8x32, int n, __m256i candidate_s8x32) {
    __m256i below_u8x32[4] = {};
    for (int i = 0; i < n; i += kValuesAtOnce) {
        CS_UNROLL for (int j = 0; j < kValuesAtOnce; ++j) {
            const __m256i is_below_s8x32 = _mm256_cmpgt_epi8(candidate_s8x32, value_s8x32[i + j]);
            below_u8x32[j % 4] = _mm256_sub_epi8(below_u8x32[j % 4], is_below_s8x32);
        }
    }
    return {_mm256_add_epi8(below_u8x32[0], below_u8x32[2]), _mm256_add_epi8(below_u8x32[1], below_u8x32[3])};
}

// Of every scope the value of its last winner, in_order, and the place of that winner, less 128.
struct Cuts {
    int8_t threshold[kTurned], last[kTurned];
};

// `value` has room to a multiple of kValuesAtOnce.
CS_AVX2 inline Cuts find_cuts(__m256i* value_s8x32, int n, int k) {
    int padded = n;
    for (; padded % kValuesAtOnce; ++padded) value_s8x32[padded] = _mm256_set1_epi8(127);  // never below
    const __m256i losers_u8x32 = _mm256_set1_epi8(static_cast<char>(n - k)), lowest_s8x32 = _mm256_set1_epi8(-128);
    __m256i threshold_s8x32 = lowest_s8x32;
    __m256i up_to_u8x32 = _mm256_set1_epi8(static_cast<char>(n));  // values not beyond the threshold, modulo 256
    for (int step = 0x80; step; step >>= 1) {
        const __m256i step_u8x32 = _mm256_set1_epi8(static_cast<char>(step));
        const Below below = count_below(value_s8x32, padded, _mm256_add_epi8(threshold_s8x32, step_u8x32));
        const __m256i at_most_255_u8x32 = _mm256_adds_epu8(below.even_u8x32, below.odd_u8x32);
        const __m256i enough_s8x32 = _mm256_cmpeq_epi8(_mm256_max_epu8(at_most_255_u8x32, losers_u8x32), losers_u8x32);
        threshold_s8x32 = _mm256_add_epi8(threshold_s8x32, _mm256_and_si256(enough_s8x32, step_u8x32));
        const __m256i below_u8x32 = _mm256_add_epi8(below.even_u8x32, below.odd_u8x32);
        up_to_u8x32 = _mm256_blendv_epi8(below_u8x32, up_to_u8x32, enough_s8x32);
    }
    // Winners that equal the threshold, k - (n - up_to), less 128: there subtraction saturates.
    __m256i left_s8x32 = _mm256_add_epi8(up_to_u8x32, _mm256_set1_epi8(static_cast<char>(k - n - 128)));
    __m256i last_s8x32 = _mm256_set1_epi8(127);  // the place before the first
    for (int i = 0; i < n; ++i) {
        last_s8x32 = _mm256_sub_epi8(last_s8x32, _mm256_cmpgt_epi8(left_s8x32, lowest_s8x32));
        left_s8x32 = _mm256_adds_epi8(left_s8x32, _mm256_cmpeq_epi8(value_s8x32[i], threshold_s8x32));
    }
    Cuts cuts;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(cuts.threshold), threshold_s8x32);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(cuts.last), last_s8x32);
    return cuts;
}

// The winners among 32 values from place `at` on of `count` scopes of n values. `room` values may be written, and
// overwritten by who comes later.
template <class X>
CS_AVX2 void pass_winners(const X* x, X* out, int n, int count, int at, int64_t room, const Cuts& cuts) {
    const __m256i place_s8x32 = bytes_from(at - 128);
    const auto winners_of = [&](int scope, int first) CS_AVX2 {
        const __m256i value_x8x32 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + first));
        const __m256i late_s8x32 = _mm256_cmpgt_epi8(place_s8x32, _mm256_set1_epi8(cuts.last[scope]));
        return winners<X>(value_x8x32, _mm256_set1_epi8(cuts.threshold[scope]), late_s8x32);
    };
    int scope = 0, first = at;
    const auto whole =
        static_cast<int>(std::min<int64_t>(count * n, room - 31));  // what begins before ends in the room
    for (; first < whole; ++scope, first += n) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + first), winners_of(scope, first));
    }
    for (; scope < count; ++scope, first += n) {
        alignas(32) X won[32];
        _mm256_store_si256(reinterpret_cast<__m256i*>(won), winners_of(scope, first));
        std::memcpy(out + first, won, std::min(n - at, 32));
    }
}

// Up to 32 scopes of n values. Their ends come first, since what is too much of them belongs to the scope that follows.
template <class X>
CS_AVX2 void turned_scopes(const X* x, X* out, int count, int n, int k, int64_t room) {
    __m256i value_s8x32[kLongestTurned];
    X whole[kTurned * kLongestTurned + 16];  // in place of scopes that are not there
    const X* from = count == kTurned ? x : static_cast<const X*>(std::memcpy(whole, x, count * n));
    for (int at = 0; at < n; at += 16) turn(from + at, n, value_s8x32 + at);
    const Cuts cuts = find_cuts(value_s8x32, n, k);
    for (int at = (n - 1) / 32 * 32; at >= 0; at -= 32) pass_winners(x, out, n, count, at, room, cuts);
}

// As many of the scopes as it pays for; their number.
template <class X>
CS_AVX2 int64_t many_scopes(const X* x, X* out, int64_t scopes, int64_t n, int64_t k) {
    if (n > kLongestTurned || n - k > kMostLosers) return 0;
    int64_t i = 0;
    for (; scopes - i >= kFewestTurned; i += kTurned) {
        const auto count = static_cast<int>(std::min<int64_t>(scopes - i, kTurned));
        turned_scopes(x + i * n, out + i * n, count, static_cast<int>(n), static_cast<int>(k), (scopes - i) * n);
    }
    return std::min(i, scopes);
}

}  // namespace
}  // namespace cs
