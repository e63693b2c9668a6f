// Vector arithmetic that kernels of the avx512 tier and of those above it share. Everything has internal linkage and
// carries its target, so that no other tier can end up calling it.
#pragma once

#include "intrinsics.h"
#include "kernel.h"

#define CS_AVX512 CS_TARGET("avx512f,avx512dq,avx512cd,avx512bw,avx512vl,bmi,bmi2,popcnt,lzcnt,fma,avx2")

namespace cs {
namespace {

// Exact requantization of 16 accumulators in float32.
//
// acc * M / 2**s + 1/2 is one fused multiply-add of exact numbers, rounded down. An integer is always representable, so
// rounding down never crosses one, and the floor that follows is the floor of the exact value: round half up, as
// defined. Holds while accumulators are exact in float32, or saturate (see requantizes_exactly).
CS_AVX512 inline __m512i requantize16(__m512i acc_s32x16, __m512 scale_f32x16) {
    constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    const __m512 exact_f32x16 = _mm512_cvt_roundepi32_ps(acc_s32x16, kDown);
    const __m512 scaled_f32x16 = _mm512_fmadd_round_ps(exact_f32x16, scale_f32x16, _mm512_set1_ps(0.5f), kDown);
    return _mm512_cvt_roundps_epi32(scaled_f32x16, kDown);
}

// The low bytes of 16 results, clamped to uint8 or int8.
CS_AVX512 inline __m128i narrow16(__m512i value_s32x16, bool to_unsigned) {
    if (!to_unsigned) return _mm512_cvtsepi32_epi8(value_s32x16);
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(value_s32x16, _mm512_setzero_si512()));
}

// The same for four times 16 results, which is cheaper, in the order of `interleave`: packing works within quarters of
// a register.
CS_AVX512 inline __m512i pack64(const __m512i (&value_s32x16)[4], bool to_unsigned) {
    const __m512i low_s16x32 = _mm512_packs_epi32(value_s32x16[0], value_s32x16[1]);
    const __m512i high_s16x32 = _mm512_packs_epi32(value_s32x16[2], value_s32x16[3]);
    return to_unsigned ? _mm512_packus_epi16(low_s16x32, high_s16x32) : _mm512_packs_epi16(low_s16x32, high_s16x32);
}

// The same in order.
CS_AVX512 inline __m512i narrow64(const __m512i (&value_s32x16)[4], bool to_unsigned) {
    const __m512i packed_x8x64 = pack64(value_s32x16, to_unsigned);
    const __m512i order_s32x16 = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    return _mm512_permutexvar_epi32(order_s32x16, packed_x8x64);
}

// Four lines of 64 bytes, interleaved: four vectors of quads, whose lanes `pack64` puts in order again.
CS_AVX512 inline void interleave(const __m512i (&line)[4], std::byte* quads) {
    const __m512i low01 = _mm512_unpacklo_epi8(line[0], line[1]), high01 = _mm512_unpackhi_epi8(line[0], line[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(line[2], line[3]), high23 = _mm512_unpackhi_epi8(line[2], line[3]);
    _mm512_store_si512(quads, _mm512_unpacklo_epi16(low01, low23));
    _mm512_store_si512(quads + 64, _mm512_unpackhi_epi16(low01, low23));
    _mm512_store_si512(quads + 128, _mm512_unpacklo_epi16(high01, high23));
    _mm512_store_si512(quads + 192, _mm512_unpackhi_epi16(high01, high23));
}

// The first `count` lanes, all of them where there are more.
CS_AVX512 inline __mmask16 first16(int64_t count) {
    return static_cast<__mmask16>(count < 16 ? (1u << count) - 1 : 0xffff);
}
CS_AVX512 inline __mmask32 first32(int64_t count) { return count < 32 ? (1u << count) - 1 : ~0u; }
CS_AVX512 inline __mmask64 first64(int64_t count) { return count < 64 ? (uint64_t{1} << count) - 1 : ~uint64_t{0}; }

// Up to 16 bytes as integers of 32 bits; zeros beyond the mask.
CS_AVX512 inline __m512i widen16(const void* from, __mmask16 mask, bool is_signed) {
    const __m128i bytes_x8x16 = _mm_maskz_loadu_epi8(mask, from);
    return is_signed ? _mm512_cvtepi8_epi32(bytes_x8x16) : _mm512_cvtepu8_epi32(bytes_x8x16);
}

}  // namespace
}  // namespace cs
