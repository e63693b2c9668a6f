// The network's input, or float32 within it, as 8-bit integers, avx2 tier.
//
// Why it is fast: eight values take a multiplication, a clamp, one conversion, which rounds half to even by itself, and
// two packings. Clamping comes first, on integers that float32 holds exactly, because the conversion of a huge value is
// undefined.
#include <algorithm>
#include <cstring>

#include "avx2.h"
#include "avx2_lanes.h"
#include "input_lanes.h"

namespace cs::avx2 {
namespace {

// Eight values as eight bytes.
CS_AVX2 inline int64_t quantize8(__m256 x_f32x8, const InputScaling& s) {
    const __m256 scaled = _mm256_mul_ps(x_f32x8, _mm256_set1_ps(s.inv_scale));
    const __m256 clamped = _mm256_min_ps(_mm256_max_ps(scaled, _mm256_set1_ps(s.lowest)), _mm256_set1_ps(s.largest));
    const __m256i rounded_s32x8 = _mm256_cvtps_epi32(clamped);
    const __m128i words_s16x8 =
        _mm_packs_epi32(_mm256_castsi256_si128(rounded_s32x8), _mm256_extracti128_si256(rounded_s32x8, 1));
    return _mm_cvtsi128_si64(s.lowest < 0 ? _mm_packs_epi16(words_s16x8, words_s16x8)  //
                                          : _mm_packus_epi16(words_s16x8, words_s16x8));
}

CS_AVX2 void quantize_lanes(const float* x, int64_t size, const InputScaling& scaling, std::byte* out) {
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        const int64_t bytes = quantize8(_mm256_loadu_ps(x + i), scaling);
        std::memcpy(out + i, &bytes, kLanes);
    }
    const int count = static_cast<int>(size - i);
    const int64_t bytes = quantize8(_mm256_maskload_ps(x + i, first_lanes(count)), scaling);
    std::memcpy(out + i, &bytes, count);
}

}  // namespace

std::unique_ptr<Step> input(const InputSpec& spec) { return lanes_input<quantize_lanes>(spec); }

std::unique_ptr<Step> quantize(const QuantizeSpec& spec) {
    return std::make_unique<LanesQuantize<quantize_lanes>>(spec);
}

}  // namespace cs::avx2
