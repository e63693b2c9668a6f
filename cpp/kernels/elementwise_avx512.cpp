// What works element by element, avx512 tier: ReLU, clip, affine, addition, concatenation, dequantization.
//
// Why it is fast: every one is bound by its loads and stores once the arithmetic is a few instructions per vector.
// Additions: see add_lanes.h; concatenations: concat_lanes.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "add_lanes.h"
#include "arithmetic.h"
#include "avx512.h"
#include "avx512_math.h"
#include "concat_lanes.h"

namespace cs::avx512 {
namespace {

template <DType kType>
CS_AVX512 inline __m512i rectify(__m512i x) {
    const __m512i zero = _mm512_setzero_si512();
    if constexpr (kType == DType::s8) return _mm512_max_epi8(x, zero);
    if constexpr (kType == DType::s32) return _mm512_max_epi32(x, zero);
    if constexpr (kType == DType::f32) return _mm512_castps_si512(_mm512_max_ps(__m512{}, _mm512_castsi512_ps(x)));
    return x;
}

template <DType kType>
CS_AVX512 void rectify(const std::byte* x, int64_t bytes, std::byte* out) {
    for (int64_t at = 0; at < bytes; at += 64) {
        const __mmask64 mask = first64(bytes - at);
        _mm512_mask_storeu_epi8(out + at, mask, rectify<kType>(_mm512_maskz_loadu_epi8(mask, x + at)));
    }
}

class Relu final : public Step {
  public:
    explicit Relu(const ReluSpec& spec) : tensor_(spec.tensor) {}

    void run(const Call& call) const noexcept override {
        const auto bytes = static_cast<int64_t>(tensor_.bytes());
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* x = sample<std::byte>(call.inputs[0], tensor_, n);
            auto* out = sample<std::byte>(call.output, tensor_, n);
            if (tensor_.dtype == DType::u8) rectify<DType::u8>(x, bytes, out);
            if (tensor_.dtype == DType::s8) rectify<DType::s8>(x, bytes, out);
            if (tensor_.dtype == DType::s32) rectify<DType::s32>(x, bytes, out);
            if (tensor_.dtype == DType::f32) rectify<DType::f32>(x, bytes, out);
        }
    }

  private:
    Tensor tensor_;
};

// A bound in every lane, or the end of the type's range where there is none.
template <DType kType, class T>
CS_AVX512 __m512i everywhere(float bound) {
    using Limits = std::numeric_limits<T>;
    const T value = std::isinf(bound) ? (bound < 0 ? Limits::lowest() : Limits::max()) : static_cast<T>(bound);
    if constexpr (kType == DType::f32) return _mm512_castps_si512(_mm512_set1_ps(value));
    if constexpr (kType == DType::s32) return _mm512_set1_epi32(value);
    return _mm512_set1_epi8(static_cast<char>(value));
}

template <DType kType>
CS_AVX512 inline __m512i clamp(__m512i x, __m512i low, __m512i high) {
    if constexpr (kType == DType::u8) return _mm512_min_epu8(_mm512_max_epu8(x, low), high);
    if constexpr (kType == DType::s8) return _mm512_min_epi8(_mm512_max_epi8(x, low), high);
    if constexpr (kType == DType::s32) return _mm512_min_epi32(_mm512_max_epi32(x, low), high);
    const __m512 raised_f32x16 = _mm512_max_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(low));
    return _mm512_castps_si512(_mm512_min_ps(raised_f32x16, _mm512_castsi512_ps(high)));
}

class Clip final : public Step {
  public:
    explicit Clip(const ClipSpec& spec) : spec_(spec) {}

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* x = sample<std::byte>(call.inputs[0], spec_.tensor, n);
            auto* out = sample<std::byte>(call.output, spec_.tensor, n);
            if (spec_.tensor.dtype == DType::u8) clip<DType::u8, uint8_t>(x, out);
            if (spec_.tensor.dtype == DType::s8) clip<DType::s8, int8_t>(x, out);
            if (spec_.tensor.dtype == DType::s32) clip<DType::s32, int32_t>(x, out);
            if (spec_.tensor.dtype == DType::f32) clip<DType::f32, float>(x, out);
        }
    }

  private:
    template <DType kType, class T>
    CS_AVX512 void clip(const std::byte* x, std::byte* out) const {
        const __m512i low = everywhere<kType, T>(spec_.low), high = everywhere<kType, T>(spec_.high);
        const auto bytes = static_cast<int64_t>(spec_.tensor.bytes());
        for (int64_t at = 0; at < bytes; at += 64) {
            const __mmask64 mask = first64(bytes - at);
            _mm512_mask_storeu_epi8(out + at, mask, clamp<kType>(_mm512_maskz_loadu_epi8(mask, x + at), low, high));
        }
    }

    ClipSpec spec_;
};

class Affine final : public Step {
  public:
    explicit Affine(const AffineSpec& spec) : spec_(spec) {}

    void run(const Call& call) const noexcept override {
        const int channels = spec_.tensor.channels;
        for (int64_t n = 0; n < call.samples; ++n) {
            const float* x = sample<float>(call.inputs[0], spec_.tensor, n);
            float* out = sample<float>(call.output, spec_.tensor, n);
            for (int64_t p = 0; p < spec_.tensor.positions(); ++p) scale(x + p * channels, out + p * channels);
        }
    }

  private:
    CS_AVX512 void scale(const float* x, float* out) const {
        for (int c = 0; c < spec_.tensor.channels; c += 16) {
            const __mmask16 mask = first16(spec_.tensor.channels - c);
            const __m512 scaled_f32x16 =
                _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + c), _mm512_maskz_loadu_ps(mask, spec_.scale.data() + c));
            const __m512 shift_f32x16 = _mm512_maskz_loadu_ps(mask, spec_.shift.data() + c);
            _mm512_mask_storeu_ps(out + c, mask, _mm512_add_ps(scaled_f32x16, shift_f32x16));
        }
    }

    AffineSpec spec_;
};

CS_AVX512 void add_floats(const float* a, const float* b, int64_t size, float* out) {
    for (int64_t i = 0; i < size; i += 16) {
        const __mmask16 mask = first16(size - i);
        const __m512 sum_f32x16 = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, a + i), _mm512_maskz_loadu_ps(mask, b + i));
        _mm512_mask_storeu_ps(out + i, mask, sum_f32x16);
    }
}

// A loop's constants, in registers.
struct AddConstants {
    __m512i flip_a, flip_b, upper_x8x64, lower_s16x32, rounding_s32x16;
    __m128i shift;

    CS_AVX512 explicit AddConstants(const AddScaling& s)
        : flip_a(_mm512_set1_epi8(static_cast<char>(s.flip_a))),
          flip_b(_mm512_set1_epi8(static_cast<char>(s.flip_b))),
          upper_x8x64(_mm512_set1_epi16(static_cast<int16_t>(s.upper_b << 8 | s.upper_a))),
          lower_s16x32(_mm512_set1_epi32(static_cast<uint16_t>(s.lower_a) | int32_t{s.lower_b} * 0x10000)),
          rounding_s32x16(_mm512_set1_epi32(s.rounding)),
          shift(_mm_cvtsi32_si128(s.shift)) {}
};

// Sums of 32 pairs, as words: of each 32-bit product its upper half, that of odd pairs where it is.
CS_AVX512 inline __m512i add32(__m512i pairs_u8x64, const AddConstants& c) {
    const __m512i even_order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));
    const __m512i odd_order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1));
    const __m512i even_u16x32 = _mm512_shuffle_epi8(pairs_u8x64, even_order);
    const __m512i odd_u16x32 = _mm512_shuffle_epi8(pairs_u8x64, odd_order);
    const __m512i even_s32x16 = _mm512_add_epi32(_mm512_madd_epi16(even_u16x32, c.lower_s16x32), c.rounding_s32x16);
    const __m512i odd_s32x16 = _mm512_add_epi32(_mm512_madd_epi16(odd_u16x32, c.lower_s16x32), c.rounding_s32x16);
    const __m512i lower_s16x32 = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(even_s32x16, 16), odd_s32x16);
    const __m512i upper_s16x32 = _mm512_maddubs_epi16(pairs_u8x64, c.upper_x8x64);
    return _mm512_sra_epi16(_mm512_adds_epi16(lower_s16x32, upper_s16x32), c.shift);
}

template <bool kUnsigned>
CS_AVX512 inline __m512i add64(__m512i a_x8x64, __m512i b_x8x64, const AddConstants& c) {
    const __m512i a_u8x64 = _mm512_xor_si512(a_x8x64, c.flip_a), b_u8x64 = _mm512_xor_si512(b_x8x64, c.flip_b);
    const __m512i low = add32(_mm512_unpacklo_epi8(a_u8x64, b_u8x64), c);
    const __m512i high = add32(_mm512_unpackhi_epi8(a_u8x64, b_u8x64), c);
    return kUnsigned ? _mm512_packus_epi16(low, high) : _mm512_packs_epi16(low, high);
}

template <bool kUnsigned>
CS_AVX512 void add_as(const std::byte* a, const std::byte* b, int64_t size, const AddScaling& scaling, std::byte* out) {
    const AddConstants constants(scaling);
    int64_t i = 0;
    for (; i + 64 <= size; i += 64) {
        const __m512i sum_x8x64 = add64<kUnsigned>(_mm512_loadu_si512(a + i), _mm512_loadu_si512(b + i), constants);
        _mm512_storeu_si512(out + i, sum_x8x64);
    }
    const __mmask64 mask = first64(size - i);
    const __m512i last_x8x64 =
        add64<kUnsigned>(_mm512_maskz_loadu_epi8(mask, a + i), _mm512_maskz_loadu_epi8(mask, b + i), constants);
    _mm512_mask_storeu_epi8(out + i, mask, last_x8x64);
}

void add_bytes(const std::byte* a, const std::byte* b, int64_t size, const AddScaling& scaling, std::byte* out) {
    (scaling.to_unsigned ? add_as<true> : add_as<false>)(a, b, size, scaling, out);
}

class AddFloats final : public Step {
  public:
    explicit AddFloats(const AddSpec& spec) : tensor_(spec.output) {}

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            add_floats(sample<float>(call.inputs[0], tensor_, n), sample<float>(call.inputs[1], tensor_, n),
                       tensor_.size(), sample<float>(call.output, tensor_, n));
        }
    }

  private:
    Tensor tensor_;
};

CS_AVX512 void requantize_bytes(const std::byte* x, int64_t size, const ByteScaling& scaling, std::byte* out) {
    const __m512 scale_f32x16 = _mm512_set1_ps(scaling.scale());
    for (int64_t i = 0; i < size; i += 16) {
        const __mmask16 mask = first16(size - i);
        const __m512i result = requantize16(widen16(x + i, mask, scaling.from_signed), scale_f32x16);
        _mm_mask_storeu_epi8(out + i, mask, narrow16(result, !scaling.to_signed));
    }
}

class Dequantize final : public Step {
  public:
    explicit Dequantize(const DequantizeSpec& spec)
        : spec_(spec),
          per_channel_(spec.scale.size() > 1),
          run_(per_channel_ ? spec.input.channels : spec.input.size()),
          scale_(spec.scale) {
        if (!per_channel_) scale_.assign(16, spec.scale[0]);
        scale_.resize(round_up(scale_.size(), 16));
    }

    void run(const Call& call) const noexcept override {
        const auto element = static_cast<int64_t>(element_bytes(spec_.input.dtype));
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* x = sample<std::byte>(call.inputs[0], spec_.input, n);
            auto* out = sample<float>(call.output, spec_.output, n);
            for (int64_t i = 0; i < spec_.input.size(); i += run_) multiply(x + i * element, out + i);
        }
    }

  private:
    CS_AVX512 __m512i load(const std::byte* x, int64_t i, __mmask16 mask) const {
        if (spec_.input.dtype == DType::s32) return _mm512_maskz_loadu_epi32(mask, x + 4 * i);
        return widen16(x + i, mask, spec_.input.dtype == DType::s8);
    }

    // In double, rounded once.
    CS_AVX512 void multiply(const std::byte* x, float* out) const {
        for (int64_t i = 0; i < run_; i += 16) {
            const __mmask16 mask = first16(run_ - i);
            const double* scale = scale_.data() + (per_channel_ ? i : 0);
            const __m512i value_s32x16 = load(x, i, mask);
            const __m512d low = _mm512_cvtepi32_pd(_mm512_castsi512_si256(value_s32x16));
            const __m512d high = _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(value_s32x16, 1));
            const __m256 low_f32x8 = _mm512_cvtpd_ps(_mm512_mul_pd(low, _mm512_loadu_pd(scale)));
            const __m256 high_f32x8 = _mm512_cvtpd_ps(_mm512_mul_pd(high, _mm512_loadu_pd(scale + 8)));
            _mm512_mask_storeu_ps(out + i, mask, _mm512_insertf32x8(_mm512_castps256_ps512(low_f32x8), high_f32x8, 1));
        }
    }

    DequantizeSpec spec_;
    bool per_channel_;
    int64_t run_;  // elements after which the scales begin again
    std::vector<double> scale_;
};

}  // namespace

std::unique_ptr<Step> relu(const ReluSpec& spec) { return std::make_unique<Relu>(spec); }

std::unique_ptr<Step> clip(const ClipSpec& spec) { return std::make_unique<Clip>(spec); }
std::unique_ptr<Step> affine(const AffineSpec& spec) { return std::make_unique<Affine>(spec); }

std::unique_ptr<Step> add(const AddSpec& spec) {
    if (spec.output.dtype == DType::f32) return std::make_unique<AddFloats>(spec);
    return lanes_add<add_bytes>(spec);
}

std::unique_ptr<Step> concat(const ConcatSpec& spec) { return std::make_unique<LanesConcat<requantize_bytes>>(spec); }

std::unique_ptr<Step> dequantize(const DequantizeSpec& spec) {
    return spec.input.dtype == DType::f32 ? nullptr : std::make_unique<Dequantize>(spec);
}

}  // namespace cs::avx512
