// The network's input, or float32 within it, as 8-bit integers, avx512 tier.
//
// Why it is fast: 16 values take a multiplication, a clamp and one conversion, which rounds half to even by itself.
// Clamping comes first, on integers that float32 holds exactly, because the conversion of a huge value is undefined.
#include <algorithm>
#include <cstring>

#include "avx512.h"
#include "avx512_math.h"
#include "input_lanes.h"

namespace cs::avx512 {
namespace {

CS_AVX512 void quantize_lanes(const float* x, int64_t size, const InputScaling& scaling, std::byte* out) {
    const __m512 scale_f32x16 = _mm512_set1_ps(scaling.inv_scale);
    const __m512 lowest_f32x16 = _mm512_set1_ps(scaling.lowest), largest_f32x16 = _mm512_set1_ps(scaling.largest);
    for (int64_t i = 0; i < size; i += 16) {
        const __mmask16 mask = first16(size - i);
        const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), scale_f32x16);
        const __m512 clamped = _mm512_min_ps(_mm512_max_ps(scaled, lowest_f32x16), largest_f32x16);
        _mm_mask_storeu_epi8(out + i, mask, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(clamped)));
    }
}

}  // namespace

std::unique_ptr<Step> input(const InputSpec& spec) { return lanes_input<quantize_lanes>(spec); }

std::unique_ptr<Step> quantize(const QuantizeSpec& spec) {
    return std::make_unique<LanesQuantize<quantize_lanes>>(spec);
}

}  // namespace cs::avx512
