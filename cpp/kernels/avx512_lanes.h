// The vocabulary of the kernels that several tiers share (conv_lanes.h and others), in vectors of 512 bits.
#pragma once

#include <cstring>

#include "avx512_math.h"
#include "intrinsics.h"
#include "kernel.h"

#define CS_TIER CS_AVX512

namespace cs {
namespace {

constexpr int kLanes = 16;        // of 32 bits
constexpr int kTile = 28;         // sums that stay in registers beside an input, a weight and a product
constexpr int kWide = 1;          // vectors of kernels that share an input, where that pays
constexpr bool kIsExact = false;  // whether requantization is exact whatever the accumulators

struct RoundDown {  // for tiers whose instructions do not carry their rounding
    explicit RoundDown(bool) {}
    ~RoundDown() {}
};

// Sixteen int8 as integers of 32 bits.
CS_AVX512 inline __m512i widen_lanes(const int8_t* from) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// A bit for every lane that is not zero.
CS_AVX512 inline uint32_t nonzero_lanes(const int32_t* from) {
    const __m512i x_s32x16 = _mm512_loadu_si512(from);
    return _mm512_test_epi32_mask(x_s32x16, x_s32x16);
}

// Stores `first` plus the places of the bits that are set, in ascending order. Writes a whole vector.
CS_AVX512 inline void store_places(uint32_t bits, int first, int32_t* to) {
    const __m512i lane_s32x16 = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i places_s32x16 = _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), lane_s32x16);
    _mm512_storeu_si512(to, _mm512_add_epi32(places_s32x16, _mm512_set1_epi32(first)));
}

// 8-bit integers: two inputs at a time, widened to 16 bits, times two weights of every lane, added up in 32 bits.
struct Pairs {
    using Vector = __m512i;
    using Input = int16_t;   // as it is multiplied
    using Source = int8_t;   // of the weights
    using Weight = int16_t;  // as it is multiplied
    static constexpr int kInputs = 2;
    static constexpr int kParts = 1;  // vectors that sum a vector of kernels

    CS_AVX512 static Vector load(const void* from) { return _mm512_loadu_si512(from); }
    CS_AVX512 static Vector load_once(const void* from) { return load(from); }
    CS_AVX512 static void store(void* to, Vector x) { _mm512_storeu_si512(to, x); }
    CS_AVX512 static Vector broadcast(const void* from) {
        int32_t pair;
        std::memcpy(&pair, from, sizeof pair);
        return _mm512_set1_epi32(pair);
    }
    CS_AVX512 static Vector load_weight(const int8_t* from) {
        return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    CS_AVX512 static Vector multiply_add(Vector sum_s32x16, Vector input_s16x32, Vector weight_s16x32) {
        return _mm512_add_epi32(sum_s32x16, _mm512_madd_epi16(input_s16x32, weight_s16x32));
    }
    CS_AVX512 static Vector max(Vector a, Vector b) { return _mm512_max_epi32(a, b); }
    CS_AVX512 static void begin(const void* bias, Vector* parts) { *parts = load(bias); }
    CS_AVX512 static Vector join(const Vector* parts) { return *parts; }

    // Pairs of 16-bit weights of two rows, for the first and the second vector of kernels, whose places in a row are
    // those that interleaving within quarters of a vector leads from.
    CS_AVX512 static Vector interleave_low(Vector a, Vector b) { return _mm512_unpacklo_epi16(a, b); }
    CS_AVX512 static Vector interleave_high(Vector a, Vector b) { return _mm512_unpackhi_epi16(a, b); }
    static int place_in_row(int kernel) {
        const int eighth = kernel / 4 % 8;
        return kernel - eighth * 4 + (eighth % 4 * 2 + eighth / 4) * 4;
    }

    // Results of the first `count` lanes.
    CS_AVX512 static void write(void* to, int count, Vector sum_s32x16, const float* scale, DType out, bool) {
        if (out == DType::s32) {
            _mm512_mask_storeu_epi32(to, first16(count), sum_s32x16);
            return;
        }
        const __m512i result_s32x16 = requantize16(sum_s32x16, _mm512_loadu_ps(scale));
        const __m128i bytes_x8x16 = narrow16(result_s32x16, out == DType::u8);
        if (count >= kLanes) {
            _mm_storeu_si128(static_cast<__m128i*>(to), bytes_x8x16);
        } else {
            _mm_mask_storeu_epi8(to, first16(count), bytes_x8x16);
        }
    }

    // Four times sixteen results of 8 bits: at four positions, or of four vectors of kernels at one.
    template <int VECTORS>
    CS_AVX512 static void write_four(std::byte* to, int64_t pixel_bytes, const Vector* sum_s32x16, const float* scale,
                                     DType out) {
        static_assert(VECTORS == 1 || VECTORS == 4);
        __m512i result_s32x16[4];
        for (int v = 0; v < 4; ++v) {
            result_s32x16[v] = requantize16(load(sum_s32x16 + v), _mm512_loadu_ps(scale + v % VECTORS * kLanes));
        }
        const __m512i bytes_x8x64 = narrow64(result_s32x16, out == DType::u8);
        if constexpr (VECTORS == 4) {
            _mm512_storeu_si512(to, bytes_x8x64);
            return;
        }
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_castsi512_si128(bytes_x8x64));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + pixel_bytes), _mm512_extracti32x4_epi32(bytes_x8x64, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * pixel_bytes), _mm512_extracti32x4_epi32(bytes_x8x64, 2));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * pixel_bytes), _mm512_extracti32x4_epi32(bytes_x8x64, 3));
    }
};

// float32: one input at a time.
struct Floats {
    using Vector = __m512;
    using Input = float;
    using Source = float;
    using Weight = float;
    static constexpr int kInputs = 1;
    static constexpr int kParts = 1;

    CS_AVX512 static Vector load(const void* from) { return _mm512_loadu_ps(from); }
    CS_AVX512 static void store(void* to, Vector x) { _mm512_storeu_ps(to, x); }
    CS_AVX512 static Vector broadcast(const void* from) { return _mm512_set1_ps(*static_cast<const float*>(from)); }
    CS_AVX512 static Vector load_weight(const float* from) { return load(from); }
    CS_AVX512 static Vector multiply_add(Vector sum, Vector input, Vector weight) {
        return _mm512_fmadd_ps(input, weight, sum);
    }
    CS_AVX512 static Vector max(Vector a, Vector b) { return _mm512_max_ps(a, b); }
    CS_AVX512 static void begin(const void* bias, Vector* parts) { *parts = load(bias); }
    CS_AVX512 static Vector join(const Vector* parts) { return *parts; }
    static int place_in_row(int kernel) { return kernel; }
    CS_AVX512 static void write(void* to, int count, Vector sum, const float*, DType, bool) {
        _mm512_mask_storeu_ps(to, first16(count), sum);
    }
};

}  // namespace
}  // namespace cs
