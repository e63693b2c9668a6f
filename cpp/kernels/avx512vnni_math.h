// Vector arithmetic that kernels of the avx512vnni tier share. Everything has internal linkage and carries its target,
// so that no other tier can end up calling it.
#pragma once

#include <immintrin.h>

#include "kernel.h"

#define CS_AVX512VNNI                                                                           \
    __attribute__((                                                                             \
        target("avx512f,avx512dq,avx512cd,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni," \
               "avx512bitalg,avx512vpopcntdq,bmi,bmi2,popcnt,lzcnt,fma")))

namespace cs {
namespace {

// Exact requantization of 16 accumulators in float32.
//
// acc * M / 2**s + 1/2 is one fused multiply-add of exact numbers, rounded down. An integer is always representable, so
// rounding down never crosses one, and the floor that follows is the floor of the exact value: round half up, as
// defined. Holds while accumulators are exact in float32, or saturate (see VectorRequantization::is_exact).
CS_AVX512VNNI inline __m512i requantize16(__m512i acc_s32x16, __m512 scale_f32x16) {
    constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    const __m512 exact_f32x16 = _mm512_cvt_roundepi32_ps(acc_s32x16, kDown);
    const __m512 scaled_f32x16 = _mm512_fmadd_round_ps(exact_f32x16, scale_f32x16, _mm512_set1_ps(0.5f), kDown);
    return _mm512_cvt_roundps_epi32(scaled_f32x16, kDown);
}

// The low bytes of 16 results, clamped to uint8 or int8.
CS_AVX512VNNI inline __m128i narrow16(__m512i value_s32x16, bool to_unsigned) {
    if (!to_unsigned) return _mm512_cvtsepi32_epi8(value_s32x16);
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(value_s32x16, _mm512_setzero_si512()));
}

}  // namespace
}  // namespace cs
