// AVX-512 on processors that have AVX2 only, to test the kernels of the tiers above it (make test-emulated). SIMDe
// emulates most intrinsics; those that its version 0.7.4 lacks are here. Macros take the names of the compiler's own.
#pragma once

#include <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/gfni.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace cs::emulated {

template <class Lane, class Vector>
using Lanes = std::array<Lane, sizeof(Vector) / sizeof(Lane)>;

template <class Lane, class Vector>
Lanes<Lane, Vector> lanes(Vector x) {
    Lanes<Lane, Vector> result;
    std::memcpy(&result, &x, sizeof x);
    return result;
}

template <class Vector, class Values>
Vector vector(const Values& lanes) {
    static_assert(sizeof(Vector) == sizeof(Values));
    Vector result;
    std::memcpy(&result, &lanes, sizeof result);
    return result;
}

// Where the processor would raise an exception, this ends the process.
template <class Pointer>
Pointer aligned(Pointer place) {
    if (reinterpret_cast<uintptr_t>(place) % 64 != 0) std::abort();
    return place;
}

// Touches no memory beyond the mask.
template <class Vector, class Lane>
Vector load(uint64_t mask, const void* from) {
    Lanes<Lane, Vector> result{};
    for (size_t i = 0; i < result.size(); ++i) {
        if (mask >> i & 1) std::memcpy(&result[i], static_cast<const Lane*>(from) + i, sizeof(Lane));
    }
    return vector<Vector>(result);
}

template <class Lane, class Vector>
void store(void* to, uint64_t mask, Vector x) {
    const auto from = lanes<Lane>(x);
    for (size_t i = 0; i < from.size(); ++i) {
        if (mask >> i & 1) std::memcpy(static_cast<Lane*>(to) + i, &from[i], sizeof(Lane));
    }
}

// function(lane) of every lane.
template <class To, class ToLane, class FromLane, class From, class Function>
To map(From x, Function function) {
    const auto from = lanes<FromLane>(x);
    Lanes<ToLane, To> result;
    static_assert(from.size() == result.size());
    std::transform(from.begin(), from.end(), result.begin(), function);
    return vector<To>(result);
}

template <class To, class ToLane, class FromLane, class From>
To convert(From x) {
    return map<To, ToLane, FromLane>(x, [](FromLane lane) { return static_cast<ToLane>(lane); });
}

template <class To, class FromLane, class From>
To saturate_to_u8(From x) {
    return map<To, uint8_t, FromLane>(x, [](FromLane lane) { return std::min<FromLane>(lane, 255); });
}

// What does not fit becomes the most negative integer.
inline int32_t integer(float whole) {
    return whole >= -0x1p31f && whole < 0x1p31f ? static_cast<int32_t>(whole) : std::numeric_limits<int32_t>::min();
}

inline __m512i round_to_nearest(__m512 x) {
    return map<__m512i, int32_t, float>(x, [](float lane) { return integer(std::nearbyint(lane)); });
}

// The largest float that is not larger than sum + rest, where sum is that value rounded to the nearest double.
inline float round_down(double sum, double rest) {
    const float nearest = static_cast<float>(sum);
    const bool is_larger = nearest > sum || (nearest == sum && rest < 0);
    return is_larger ? std::nextafter(nearest, -std::numeric_limits<float>::infinity()) : nearest;
}

// A product of floats is exact in double, and so are the sum and what it leaves (Knuth's two-sum).
inline float fused_multiply_add_down(float a, float b, float c) {
    const double product = static_cast<double>(a) * b, sum = product + c, part = sum - product;
    return round_down(sum, (product - (sum - part)) + (c - part));
}

template <int ROUNDING>
struct Rounded {
    static_assert(ROUNDING == (_MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC), "only rounding down is emulated");

    static __m512 to_floats(__m512i x) {
        return map<__m512, float, int32_t>(x, [](int32_t lane) { return round_down(lane, 0); });
    }
    static __m512i to_integers(__m512 x) {
        return map<__m512i, int32_t, float>(x, [](float lane) { return integer(std::floor(lane)); });
    }
    static __m512 multiply_add(__m512 a, __m512 b, __m512 c) {
        const auto x = lanes<float>(a), y = lanes<float>(b), z = lanes<float>(c);
        std::array<float, 16> result;
        for (int i = 0; i < 16; ++i) result[i] = fused_multiply_add_down(x[i], y[i], z[i]);
        return vector<__m512>(result);
    }
};

inline __mmask8 less_u64(__m512i a, __m512i b) {
    const auto x = lanes<uint64_t>(a), y = lanes<uint64_t>(b);
    unsigned mask = 0;
    for (int i = 0; i < 8; ++i) mask |= static_cast<unsigned>(x[i] < y[i]) << i;
    return static_cast<__mmask8>(mask);
}

inline __mmask32 equal_u16(__m512i a, __m512i b) {
    const auto x = lanes<uint16_t>(a), y = lanes<uint16_t>(b);
    uint32_t mask = 0;
    for (int i = 0; i < 32; ++i) mask |= static_cast<uint32_t>(x[i] == y[i]) << i;
    return mask;
}

inline __m512i shift_right(__m512i x, __m128i count) {
    const auto bits = std::min<uint64_t>(lanes<uint64_t>(count)[0], 31);
    return map<__m512i, int32_t, int32_t>(x, [=](int32_t lane) { return lane >> bits; });
}

inline __m512i shuffle_quarters(__m512i x, unsigned order) {
    const auto from = lanes<int32_t>(x);
    std::array<int32_t, 16> result;
    for (unsigned i = 0; i < 16; ++i) result[i] = from[i / 4 * 4 + (order >> i % 4 * 2 & 3)];
    return vector<__m512i>(result);
}

inline __m512i compress_bytes(__mmask64 mask, __m512i x) {
    const auto from = lanes<uint8_t>(x);
    std::array<uint8_t, 64> result{};
    for (int i = 0, count = 0; i < 64; ++i) {
        if (mask >> i & 1) result[count++] = from[i];
    }
    return vector<__m512i>(result);
}

inline __m512i gather(__m512i index, const void* from, int scale) {
    return map<__m512i, int32_t, int32_t>(index, [=](int32_t place) {
        int32_t lane;
        std::memcpy(&lane, static_cast<const char*>(from) + int64_t{place} * scale, sizeof lane);
        return lane;
    });
}

inline int64_t sum_s64(__m512i x) {
    uint64_t sum = 0;
    for (uint64_t lane : lanes<uint64_t>(x)) sum += lane;
    return static_cast<int64_t>(sum);
}

}  // namespace cs::emulated

#undef _mm512_load_si512
#undef _mm512_load_ps
#undef _mm512_store_si512
#define _mm512_load_si512(from) simde_mm512_load_si512(cs::emulated::aligned(from))
#define _mm512_load_ps(from) simde_mm512_load_ps(cs::emulated::aligned(from))
#define _mm512_store_si512(to, x) simde_mm512_store_si512(cs::emulated::aligned(to), x)

#define _mm_maskz_loadu_epi8(mask, from) cs::emulated::load<__m128i, int8_t>(mask, from)
#define _mm256_maskz_loadu_epi8(mask, from) cs::emulated::load<__m256i, int8_t>(mask, from)
#define _mm256_maskz_loadu_ps(mask, from) cs::emulated::load<__m256, float>(mask, from)
#define _mm512_maskz_loadu_epi8(mask, from) cs::emulated::load<__m512i, int8_t>(mask, from)
#define _mm512_maskz_loadu_epi32(mask, from) cs::emulated::load<__m512i, int32_t>(mask, from)
#define _mm512_maskz_loadu_ps(mask, from) cs::emulated::load<__m512, float>(mask, from)
#define _mm_mask_storeu_epi8(to, mask, x) cs::emulated::store<int8_t>(to, mask, x)
#define _mm256_mask_storeu_epi8(to, mask, x) cs::emulated::store<int8_t>(to, mask, x)
#define _mm256_mask_storeu_ps(to, mask, x) cs::emulated::store<float>(to, mask, x)
#define _mm512_mask_storeu_epi8(to, mask, x) cs::emulated::store<int8_t>(to, mask, x)
#define _mm512_mask_storeu_epi32(to, mask, x) cs::emulated::store<int32_t>(to, mask, x)
#define _mm512_mask_storeu_ps(to, mask, x) cs::emulated::store<float>(to, mask, x)

#define _mm512_cvtepi8_epi32(x) cs::emulated::convert<__m512i, int32_t, int8_t>(x)
#define _mm512_cvtepu8_epi16(x) cs::emulated::convert<__m512i, int16_t, uint8_t>(x)
#define _mm512_cvtepu8_epi32(x) cs::emulated::convert<__m512i, int32_t, uint8_t>(x)
#define _mm512_cvtepi32_epi8(x) cs::emulated::convert<__m128i, int8_t, int32_t>(x)
#define _mm512_cvtepi32_pd(x) cs::emulated::convert<__m512d, double, int32_t>(x)
#define _mm512_cvtps_pd(x) cs::emulated::convert<__m512d, double, float>(x)
#define _mm512_cvtpd_ps(x) cs::emulated::convert<__m256, float, double>(x)
#define _mm512_cvtps_epi32(x) cs::emulated::round_to_nearest(x)
#define _mm512_cvtusepi16_epi8(x) cs::emulated::saturate_to_u8<__m256i, uint16_t>(x)
#define _mm512_cvtusepi32_epi8(x) cs::emulated::saturate_to_u8<__m128i, uint32_t>(x)

#define _mm512_cvt_roundepi32_ps(x, rounding) cs::emulated::Rounded<rounding>::to_floats(x)
#define _mm512_cvt_roundps_epi32(x, rounding) cs::emulated::Rounded<rounding>::to_integers(x)
#define _mm512_fmadd_round_ps(a, b, c, rounding) cs::emulated::Rounded<rounding>::multiply_add(a, b, c)

#undef _mm512_madd_epi16  // SIMDe's has two parameters too many
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#define _mm512_cmplt_epu64_mask(a, b) cs::emulated::less_u64(a, b)
#define _mm512_cmpeq_epi16_mask(a, b) cs::emulated::equal_u16(a, b)
#define _mm512_sra_epi32(x, count) cs::emulated::shift_right(x, count)
#define _mm512_shuffle_epi32(x, order) cs::emulated::shuffle_quarters(x, order)
#define _mm512_shuffle_i64x2(a, b, order) simde_mm512_shuffle_i64x2(a, b, order)
#define _mm512_maskz_compress_epi8(mask, x) cs::emulated::compress_bytes(mask, x)
#define _mm512_i32gather_epi32(index, from, scale) cs::emulated::gather(index, from, scale)
#define _mm512_reduce_add_epi64(x) cs::emulated::sum_s64(x)
