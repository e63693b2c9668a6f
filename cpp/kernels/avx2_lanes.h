// The vocabulary of the kernels that several tiers share (conv_lanes.h and others), in vectors of 256 bits. Everything
// has internal linkage and carries its target, so that no other tier can end up calling it.
#pragma once

#include <array>
#include <cstring>

#include "intrinsics.h"
#include "kernel.h"

#define CS_AVX2 CS_TARGET("avx2,fma,bmi,bmi2,popcnt,lzcnt")
#define CS_TIER CS_AVX2

namespace cs {
namespace {

constexpr int kLanes = 8;        // of 32 bits
constexpr int kTile = 12;        // sums that stay in registers beside an input, a weight and a product
constexpr int kWide = 2;         // vectors of kernels that share an input, where that pays
constexpr bool kIsExact = true;  // whether requantization is exact whatever the accumulators

// Rounds down while it lives, if it is wanted: what makes requantizing in float32 as exact as the instructions of
// AVX-512 do, which carry their rounding (avx512_math.h). Arithmetic must not be inlined into its scope: the compiler
// could move it out.
class RoundDown {
  public:
    explicit RoundDown(bool wanted) : before_(_mm_getcsr()) {
        if (wanted) _mm_setcsr((before_ & ~_MM_ROUND_MASK) | _MM_ROUND_DOWN);
    }
    ~RoundDown() { _mm_setcsr(before_); }
    RoundDown(const RoundDown&) = delete;
    RoundDown& operator=(const RoundDown&) = delete;

  private:
    unsigned before_;
};

// Exact requantization of eight accumulators, while RoundDown lives and requantizes_exactly holds.
CS_AVX2 inline __m256i requantize8(__m256i acc_s32x8, const float* scale) {
    const __m256 scaled_f32x8 =
        _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc_s32x8), _mm256_loadu_ps(scale), _mm256_set1_ps(0.5f));
    return _mm256_cvtps_epi32(scaled_f32x8);
}

// Exact requantization of four accumulators in double, whatever they are: acc * M and half of 2**s are integers below
// 2**48, so that their sum, too, is exact at any power of two.
CS_AVX2 inline __m128i requantize4(__m128i acc_s32x4, __m128 scale_f32x4, double lowest, double largest) {
    const __m256d scale_f64x4 = _mm256_cvtps_pd(scale_f32x4);
    const __m256d rounded_f64x4 =
        _mm256_floor_pd(_mm256_fmadd_pd(_mm256_cvtepi32_pd(acc_s32x4), scale_f64x4, _mm256_set1_pd(0.5)));
    const __m256d above_f64x4 = _mm256_max_pd(rounded_f64x4, _mm256_set1_pd(lowest));
    return _mm256_cvttpd_epi32(_mm256_min_pd(above_f64x4, _mm256_set1_pd(largest)));
}

// The first `count` lanes.
CS_AVX2 inline __m256i first_lanes(int count) {
    const __m256i lane_s32x8 = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane_s32x8);
}

// Eight int8 as integers of 32 bits.
CS_AVX2 inline __m256i widen_lanes(const int8_t* from) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}

// A bit for every lane that is not zero.
CS_AVX2 inline uint32_t nonzero_lanes(const int32_t* from) {
    const __m256i x_s32x8 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i zero_s32x8 = _mm256_cmpeq_epi32(x_s32x8, _mm256_setzero_si256());
    return ~static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(zero_s32x8))) & 0xff;
}

// Stores `first` plus the places of the bits that are set, in ascending order. Writes a whole vector.
CS_AVX2 inline void store_places(uint32_t bits, int first, int32_t* to) {
    static constexpr auto kPlaces = [] {
        std::array<uint64_t, 256> places{};  // eight bytes each
        for (uint64_t byte = 0; byte < places.size(); ++byte) {
            for (uint64_t bit = 0, found = 0; bit < 8; ++bit) {
                if (byte >> bit & 1) places[byte] |= bit << 8 * found++;
            }
        }
        return places;
    }();
    const __m256i places_s32x8 =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kPlaces[bits])));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_add_epi32(places_s32x8, _mm256_set1_epi32(first)));
}

struct Quads;

// 8-bit integers: two inputs at a time, widened to 16 bits, times two weights of every lane, added up in 32 bits.
struct Pairs {
    using Vector = __m256i;
    using Input = int16_t;   // as it is multiplied
    using Source = int8_t;   // of the weights
    using Weight = int16_t;  // as it is multiplied
    static constexpr int kInputs = 2;
    static constexpr int kParts = 1;  // vectors that sum a vector of kernels
    using Quads = cs::Quads;

    CS_AVX2 static Vector load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
    // For a vector that two instructions use: the compiler would load it in both.
    CS_AVX2 static Vector load_once(const void* from) {
        Vector x = load(from);
        asm("" : "+x"(x));
        return x;
    }
    CS_AVX2 static void store(void* to, Vector x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }
    CS_AVX2 static Vector broadcast(const void* from) {
        int32_t pair;
        std::memcpy(&pair, from, sizeof pair);
        return _mm256_set1_epi32(pair);
    }
    CS_AVX2 static Vector load_weight(const int8_t* from) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    CS_AVX2 static Vector multiply_add(Vector sum_s32x8, Vector input_s16x16, Vector weight_s16x16) {
        return _mm256_add_epi32(sum_s32x8, _mm256_madd_epi16(input_s16x16, weight_s16x16));
    }
    CS_AVX2 static Vector max(Vector a, Vector b) { return _mm256_max_epi32(a, b); }
    CS_AVX2 static void begin(const void* bias, Vector* parts) { *parts = load(bias); }
    CS_AVX2 static Vector join(const Vector* parts) { return *parts; }

    // Pairs of 16-bit weights of two rows, for the first and the second vector of kernels, whose places in a row are
    // those that interleaving within halves of a vector leads from.
    CS_AVX2 static Vector interleave_low(Vector a, Vector b) { return _mm256_unpacklo_epi16(a, b); }
    CS_AVX2 static Vector interleave_high(Vector a, Vector b) { return _mm256_unpackhi_epi16(a, b); }
    static int place_in_row(int kernel) {
        const int quarter = kernel / 4 % 4;
        return kernel - quarter * 4 + (quarter % 2 * 2 + quarter / 2) * 4;
    }

    // Results of the first `count` lanes. in_float: requantizes_exactly, and RoundDown lives.
    CS_AVX2 static void write(void* to, int count, Vector sum_s32x8, const float* scale, DType out, bool in_float) {
        if (out == DType::s32) {
            _mm256_maskstore_epi32(static_cast<int*>(to), first_lanes(count), sum_s32x8);
            return;
        }
        const __m128i words_s16x8 = in_float ? halves(requantize8(sum_s32x8, scale)) : in_double(sum_s32x8, scale, out);
        const __m128i bytes_x8x8 = out == DType::u8 ? _mm_packus_epi16(words_s16x8, words_s16x8)  //
                                                    : _mm_packs_epi16(words_s16x8, words_s16x8);
        const int64_t bytes = _mm_cvtsi128_si64(bytes_x8x8);
        if (count >= kLanes) {
            std::memcpy(to, &bytes, kLanes);
        } else {
            std::memcpy(to, &bytes, count);
        }
    }

    // Four times eight results of 8 bits: at four positions, of two vectors of kernels each at two, or of four at one.
    template <int VECTORS>
    CS_AVX2 static void write_four(std::byte* to, int64_t pixel_bytes, const Vector* sum_s32x8, const float* scale,
                                   DType out) {
        Vector result_s32x8[4];
        for (int v = 0; v < 4; ++v) {
            result_s32x8[v] = requantize8(load(sum_s32x8 + v), scale + v % VECTORS * kLanes);
        }
        const __m256i ab_s16x16 = _mm256_packs_epi32(result_s32x8[0], result_s32x8[1]);
        const __m256i cd_s16x16 = _mm256_packs_epi32(result_s32x8[2], result_s32x8[3]);
        const __m256i mixed_x8x32 = out == DType::u8 ? _mm256_packus_epi16(ab_s16x16, cd_s16x16)  //
                                                     : _mm256_packs_epi16(ab_s16x16, cd_s16x16);
        const __m256i bytes_x8x32 = _mm256_permutevar8x32_epi32(mixed_x8x32, _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0));
        if constexpr (VECTORS == 4) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes_x8x32);
            return;
        }
        const __m128i half_x8x16[2] = {_mm256_castsi256_si128(bytes_x8x32), _mm256_extracti128_si256(bytes_x8x32, 1)};
        for (const __m128i half : half_x8x16) {
            if constexpr (VECTORS == 2) {
                _mm_storeu_si128(reinterpret_cast<__m128i*>(to), half);
                to += pixel_bytes;
            } else {
                _mm_storel_epi64(reinterpret_cast<__m128i*>(to), half);
                _mm_storeh_pi(reinterpret_cast<__m64*>(to + pixel_bytes), _mm_castsi128_ps(half));
                to += 2 * pixel_bytes;
            }
        }
    }

  private:
    CS_AVX2 static __m128i halves(Vector x_s32x8) {
        return _mm_packs_epi32(_mm256_castsi256_si128(x_s32x8), _mm256_extracti128_si256(x_s32x8, 1));
    }

    CS_AVX2 static __m128i in_double(Vector sum_s32x8, const float* scale, DType out) {
        const double lowest = out == DType::u8 ? 0 : -128, largest = out == DType::u8 ? 255 : 127;
        return _mm_packs_epi32(
            requantize4(_mm256_castsi256_si128(sum_s32x8), _mm_loadu_ps(scale), lowest, largest),
            requantize4(_mm256_extracti128_si256(sum_s32x8, 1), _mm_loadu_ps(scale + 4), lowest, largest));
    }
};

// Four inputs at a time, which are broadcast at once: two vectors sum eight kernels, each four of them, whose first two
// inputs lie in even lanes and whose others in odd ones.
struct Quads : Pairs {
    static constexpr int kInputs = 4;
    static constexpr int kParts = 2;

    CS_AVX2 static Vector broadcast(const void* from) {
        int64_t quad;
        std::memcpy(&quad, from, sizeof quad);
        return _mm256_set1_epi64x(quad);
    }
    CS_AVX2 static void begin(const void* bias, Vector* parts) {
        const Vector bias_s32x8 = load_once(bias);
        parts[0] = _mm256_unpacklo_epi32(bias_s32x8, _mm256_setzero_si256());
        parts[1] = _mm256_unpackhi_epi32(bias_s32x8, _mm256_setzero_si256());
    }
    CS_AVX2 static Vector join(const Vector* parts) {
        Vector a = parts[0], b = parts[1];
        // Or the compiler takes what leaves a loop for other sums than those within, and keeps these in memory.
        asm("" : "+x"(a), "+x"(b));
        const __m256 a_f32x8 = _mm256_castsi256_ps(a), b_f32x8 = _mm256_castsi256_ps(b);
        const __m256 even_f32x8 = _mm256_shuffle_ps(a_f32x8, b_f32x8, _MM_SHUFFLE(2, 0, 2, 0));
        const __m256 odd_f32x8 = _mm256_shuffle_ps(a_f32x8, b_f32x8, _MM_SHUFFLE(3, 1, 3, 1));
        return _mm256_add_epi32(_mm256_castps_si256(even_f32x8), _mm256_castps_si256(odd_f32x8));
    }

    // Of a weight among the 32 of a unit, so that joining gives the kernels in order.
    static int place_in_unit(int kernel, int input) {
        const int part = kernel / 2 % 2, lane = kernel / 4 * 4 + kernel % 2 * 2 + input / 2;
        return (part * kLanes + lane) * 2 + input % 2;
    }
};

// float32: one input at a time.
struct Floats {
    using Vector = __m256;
    using Input = float;
    using Source = float;
    using Weight = float;
    static constexpr int kInputs = 1;
    static constexpr int kParts = 1;

    CS_AVX2 static Vector load(const void* from) { return _mm256_loadu_ps(static_cast<const float*>(from)); }
    CS_AVX2 static void store(void* to, Vector x) { _mm256_storeu_ps(static_cast<float*>(to), x); }
    CS_AVX2 static Vector broadcast(const void* from) { return _mm256_broadcast_ss(static_cast<const float*>(from)); }
    CS_AVX2 static Vector load_weight(const float* from) { return load(from); }
    CS_AVX2 static Vector multiply_add(Vector sum, Vector input, Vector weight) {
        return _mm256_fmadd_ps(input, weight, sum);
    }
    CS_AVX2 static Vector max(Vector a, Vector b) { return _mm256_max_ps(a, b); }
    CS_AVX2 static void begin(const void* bias, Vector* parts) { *parts = load(bias); }
    CS_AVX2 static Vector join(const Vector* parts) { return *parts; }
    static int place_in_row(int kernel) { return kernel; }
    CS_AVX2 static void write(void* to, int count, Vector sum, const float*, DType, bool) {
        if (count >= kLanes) {
            store(to, sum);
        } else {
            _mm256_maskstore_ps(static_cast<float*>(to), first_lanes(count), sum);
        }
    }
};

}  // namespace
}  // namespace cs
