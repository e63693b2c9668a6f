// The network's input as 8-bit integers, avx512 tier.
//
// Why it is fast: 16 values take a multiplication, a clamp and one conversion, which rounds half to even by itself.
// Clamping comes first, on integers that float32 holds exactly, because the conversion of a huge value is undefined.
#include <algorithm>
#include <cstring>

#include "arithmetic.h"
#include "avx512.h"
#include "avx512_math.h"

namespace cs::avx512 {
namespace {

CS_AVX512 void quantize(const float* x, int64_t size, float inv_scale, float lowest, float largest, std::byte* out) {
    const __m512 scale_f32x16 = _mm512_set1_ps(inv_scale);
    const __m512 lowest_f32x16 = _mm512_set1_ps(lowest), largest_f32x16 = _mm512_set1_ps(largest);
    for (int64_t i = 0; i < size; i += 16) {
        const __mmask16 mask = first16(size - i);
        const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), scale_f32x16);
        const __m512 clamped = _mm512_min_ps(_mm512_max_ps(scaled, lowest_f32x16), largest_f32x16);
        _mm_mask_storeu_epi8(out + i, mask, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(clamped)));
    }
}

class Input final : public Step {
  public:
    explicit Input(const InputSpec& spec) : spec_(spec) {}

    void run(const Call& call) const noexcept override {
        const bool is_unsigned = spec_.output.dtype == DType::u8;
        const float lowest = is_unsigned ? 0.0f : -128.0f, largest = is_unsigned ? 255.0f : 127.0f;
        for (int64_t n = 0; n < call.samples; ++n) {
            const std::byte* x = call.inputs[0] + n * call.caller_bytes;
            auto* out = sample<std::byte>(call.output, spec_.output, n);
            if (call.caller_bytes == spec_.output.bytes()) {
                std::memcpy(out, x, call.caller_bytes);
            } else {
                const auto* values = reinterpret_cast<const float*>(x);
                quantize(values, spec_.output.size(), spec_.inv_scale, lowest, largest, out);
            }
        }
    }

  private:
    InputSpec spec_;
};

}  // namespace

std::unique_ptr<Step> input(const InputSpec& spec) {
    return element_bytes(spec.output.dtype) == 1 ? std::make_unique<Input>(spec) : nullptr;
}

}  // namespace cs::avx512
