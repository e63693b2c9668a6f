// k winners take all over 8-bit values, avx512vnni tier.
//
// Why it is fast: for scopes of up to 64 values, a value becomes a column of eight bits and a scope eight words of 64
// bits, one per bit of its values: GF2P8AFFINEQB transposes 8 x 8 bits, VPERMB collects the bytes. Of eight scopes, the
// words of one bit are one vector, and a radix selection from the highest bit to the lowest takes six instructions a
// bit for all eight (AND, VPOPCNTQ, compare, and three masked), without a branch. Ties at the threshold are cut off by
// PDEP, which keeps the lowest set bits of a mask. About nine cycles a scope, bound by shuffles (port 5).
//
// Larger scopes are sets of 512 values to a vector: each of the eight steps passes over an eighth of the scope's bytes.
#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "arithmetic.h"
#include "avx512vnni.h"
#include "avx512vnni_math.h"

namespace cs::avx512vnni {
namespace {

constexpr int kScopes = 8;  // that are selected from together

// Byte i of qword q to byte q of qword i.
CS_AVX512VNNI inline __m512i collect_bytes(__m512i x) {
    alignas(64) static constexpr auto kIndex = [] {
        std::array<uint8_t, 64> index{};
        for (int i = 0; i < 64; ++i) index[i] = static_cast<uint8_t>(i % 8 * 8 + i / 8);
        return index;
    }();
    return _mm512_permutexvar_epi8(_mm512_load_si512(kIndex.data()), x);
}

// Bit b of 64 values as qword b; within each byte, the bits are in reverse order.
CS_AVX512VNNI inline __m512i bit_planes(__m512i value_u8x64) {
    const __m512i units_u8x64 = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201));
    return collect_bytes(_mm512_gf2p8affine_epi64_epi8(units_u8x64, value_u8x64, 0));
}

// Turns the order of the bits in each byte.
CS_AVX512VNNI inline __m512i reverse_bits(__m512i x) {
    return _mm512_gf2p8affine_epi64_epi8(x, _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201)), 0);
}

CS_AVX512VNNI inline void transpose_qwords(__m512i (&row)[8]) {
    __m512i pair[8], quad[8];
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm512_unpacklo_epi64(row[i], row[i + 1]);
        pair[i + 1] = _mm512_unpackhi_epi64(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int odd = 0; odd < 2; ++odd) {
            quad[i + odd] = _mm512_shuffle_i64x2(pair[i + odd], pair[i + 2 + odd], 0x88);
            quad[i + 2 + odd] = _mm512_shuffle_i64x2(pair[i + odd], pair[i + 2 + odd], 0xdd);
        }
    }
    for (int odd = 0; odd < 2; ++odd) {
        row[odd] = _mm512_shuffle_i64x2(quad[odd], quad[4 + odd], 0x88);
        row[4 + odd] = _mm512_shuffle_i64x2(quad[odd], quad[4 + odd], 0xdd);
        row[2 + odd] = _mm512_shuffle_i64x2(quad[2 + odd], quad[6 + odd], 0x88);
        row[6 + odd] = _mm512_shuffle_i64x2(quad[2 + odd], quad[6 + odd], 0xdd);
    }
}

// Eight scopes as sets of values, a bit for each value.
struct Selection {
    __m512i won_u64x8;        // the values above the threshold
    __m512i tied_u64x8;       // the values at it
    __m512i remaining_u64x8;  // how many of those win
};

// One step of a radix selection: by one bit, highest first, the ties fall into winners and losers, or stay ties.
CS_AVX512VNNI inline void halve(Selection& s, __m512i plane_u64x8) {
    const __m512i set = _mm512_and_si512(s.tied_u64x8, plane_u64x8), count = _mm512_popcnt_epi64(set);
    const __mmask8 too_few = _mm512_cmplt_epu64_mask(count, s.remaining_u64x8);
    s.won_u64x8 = _mm512_mask_or_epi64(s.won_u64x8, too_few, s.won_u64x8, set);
    s.remaining_u64x8 = _mm512_mask_sub_epi64(s.remaining_u64x8, too_few, s.remaining_u64x8, count);
    s.tied_u64x8 = _mm512_mask_xor_epi64(set, too_few, s.tied_u64x8, set);
}

// The scopes of a call: n <= 64 values each, one after the other. flip: 0x80 for int8, whose order is then unsigned.
struct SmallScopes {
    int64_t n, k;
    uint64_t exists;  // a bit for each value of a scope
    char flip;
};

// Bit b of `count` <= 8 scopes as vector b, a scope in each qword.
CS_AVX512VNNI inline void load_planes(const SmallScopes& s, const uint8_t* x, int64_t count,
                                      __m512i (&plane)[kScopes]) {
    for (int i = 0; i < kScopes; ++i, x += s.n) {
        const __m512i value_u8x64 = _mm512_maskz_loadu_epi8(i < count ? s.exists : 0, x);
        plane[i] = bit_planes(_mm512_xor_si512(value_u8x64, _mm512_set1_epi8(s.flip)));
    }
    transpose_qwords(plane);
}

CS_AVX512VNNI inline void write_winners(const SmallScopes& s, const uint8_t* x, uint8_t* out, int64_t count,
                                        const Selection& found) {
    alignas(64) uint64_t won[kScopes], tied[kScopes], remaining[kScopes];
    _mm512_store_si512(won, reverse_bits(found.won_u64x8));
    _mm512_store_si512(tied, reverse_bits(found.tied_u64x8));
    _mm512_store_si512(remaining, found.remaining_u64x8);
    for (int64_t i = 0; i < count; ++i, x += s.n, out += s.n) {
        const uint64_t ties = _bzhi_u64(~uint64_t{0}, static_cast<unsigned>(remaining[i]));
        const __m512i winners_u8x64 = _mm512_maskz_loadu_epi8(won[i] | _pdep_u64(ties, tied[i]), x);
        if (s.n == 64) {
            _mm512_storeu_si512(out, winners_u8x64);
        } else {
            _mm512_mask_storeu_epi8(out, s.exists, winners_u8x64);
        }
    }
}

// Two groups of scopes side by side: the steps of one are a chain of latencies that leaves the ports idle.
CS_AVX512VNNI void sixteen_scopes(const SmallScopes& s, const uint8_t* x, uint8_t* out, int64_t count) {
    __m512i plane[2][kScopes];
    const int64_t counts[2] = {std::min<int64_t>(count, kScopes), std::clamp<int64_t>(count - kScopes, 0, kScopes)};
    const __m512i all_u64x8 = reverse_bits(_mm512_set1_epi64(static_cast<int64_t>(s.exists)));
    Selection found[2];
    for (int g = 0; g < 2; ++g) {
        load_planes(s, x + g * kScopes * s.n, counts[g], plane[g]);
        found[g] = {_mm512_setzero_si512(), all_u64x8, _mm512_set1_epi64(s.k)};
    }
    for (int bit = 7; bit >= 0; --bit) {
        for (int g = 0; g < 2; ++g) halve(found[g], plane[g][bit]);
    }
    for (int g = 0; g < 2; ++g) {
        write_winners(s, x + g * kScopes * s.n, out + g * kScopes * s.n, counts[g], found[g]);
    }
}

CS_AVX512VNNI void small_scopes(const uint8_t* x, uint8_t* out, int64_t scopes, int64_t n, int64_t k, char flip) {
    const SmallScopes s{n, k, n == 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1, flip};
    for (int64_t i = 0; i < scopes; i += 2 * kScopes) sixteen_scopes(s, x + i * n, out + i * n, scopes - i);
}

// --- scopes of more than 64 values ---

constexpr int kValues = 64 * kScopes;  // in a part of a large scope, whose sets are one vector

// A large scope as sets: part i of plane b is plane[8 * i + b].
struct LargeScope {
    int64_t parts;
    __m512i *plane, *won, *tied;  // [parts * 8], [parts], [parts]
};

CS_AVX512VNNI inline void load_large(const LargeScope& s, const uint8_t* x, int64_t n, char flip) {
    for (int64_t part = 0; part < s.parts; ++part) {
        __m512i plane[kScopes];
        alignas(64) uint64_t exists[kScopes];
        for (int i = 0; i < kScopes; ++i) {
            const int64_t at = part * kValues + 64 * i;
            exists[i] = at < n ? first64(n - at) : 0;
            const __m512i value_u8x64 = _mm512_maskz_loadu_epi8(exists[i], x + at);
            plane[i] = bit_planes(_mm512_xor_si512(value_u8x64, _mm512_set1_epi8(flip)));
        }
        transpose_qwords(plane);
        for (int bit = 0; bit < 8; ++bit) s.plane[8 * part + bit] = plane[bit];
        s.tied[part] = reverse_bits(_mm512_load_si512(exists));
        s.won[part] = _mm512_setzero_si512();
    }
}

// Radix selection as above, one count for all parts; how many of the ties win.
CS_AVX512VNNI inline int64_t select_large(const LargeScope& s, int64_t remaining) {
    for (int bit = 7; bit >= 0; --bit) {
        __m512i count_u64x8 = _mm512_setzero_si512();
        for (int64_t part = 0; part < s.parts; ++part) {
            const __m512i set = _mm512_and_si512(s.tied[part], s.plane[8 * part + bit]);
            count_u64x8 = _mm512_add_epi64(count_u64x8, _mm512_popcnt_epi64(set));
        }
        const int64_t count = _mm512_reduce_add_epi64(count_u64x8);
        const __mmask8 too_few = count < remaining ? 0xff : 0;
        remaining -= too_few ? count : 0;
        for (int64_t part = 0; part < s.parts; ++part) {
            const __m512i set = _mm512_and_si512(s.tied[part], s.plane[8 * part + bit]);
            s.won[part] = _mm512_mask_or_epi64(s.won[part], too_few, s.won[part], set);
            s.tied[part] = _mm512_mask_xor_epi64(set, too_few, s.tied[part], set);
        }
    }
    return remaining;
}

CS_AVX512VNNI void large_scope(const LargeScope& s, const uint8_t* x, uint8_t* out, int64_t n, int64_t k, char flip) {
    load_large(s, x, n, flip);
    int64_t ties = select_large(s, k);
    for (int64_t part = 0; part < s.parts; ++part) {
        alignas(64) uint64_t won[kScopes], tied[kScopes];
        _mm512_store_si512(won, reverse_bits(s.won[part]));
        _mm512_store_si512(tied, reverse_bits(s.tied[part]));
        for (int64_t i = 0, at = part * kValues; i < kScopes && at < n; ++i, at += 64) {
            const auto kept = static_cast<unsigned>(std::min<int64_t>(ties, 64));
            const uint64_t first_ties = _pdep_u64(_bzhi_u64(~uint64_t{0}, kept), tied[i]);
            ties -= _mm_popcnt_u64(first_ties);
            const __m512i winners_u8x64 = _mm512_maskz_loadu_epi8(won[i] | first_ties, x + at);
            _mm512_mask_storeu_epi8(out + at, first64(n - at), winners_u8x64);
        }
    }
}

class Kwta final : public Step {
  public:
    explicit Kwta(const KwtaSpec& spec)
        : tensor_(spec.tensor),
          k_(spec.k),
          scope_(spec.scope()),
          scopes_(spec.scopes()),
          flip_(static_cast<char>(spec.tensor.dtype == DType::s8 ? 0x80 : 0)) {}

    size_t scratch_bytes() const override { return scope_ <= 64 ? 0 : 10 * 64 * parts(); }

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* x = sample<uint8_t>(call.inputs[0], tensor_, n);
            auto* out = sample<uint8_t>(call.output, tensor_, n);
            if (k_ >= scope_) {
                std::memcpy(out, x, tensor_.bytes());
            } else if (scope_ <= 64) {
                small_scopes(x, out, scopes_, scope_, k_, flip_);
            } else {
                for (int64_t i = 0; i < scopes_; ++i) {
                    large_scope(sets(call.scratch), x + i * scope_, out + i * scope_, scope_, k_, flip_);
                }
            }
        }
    }

  private:
    int64_t parts() const { return (scope_ + kValues - 1) / kValues; }

    LargeScope sets(std::byte* scratch) const {
        auto* plane = reinterpret_cast<__m512i*>(scratch);
        return {parts(), plane, plane + 8 * parts(), plane + 9 * parts()};
    }

    Tensor tensor_;
    int64_t k_, scope_, scopes_;
    char flip_;
};

}  // namespace

std::unique_ptr<Step> kwta(const KwtaSpec& spec) {
    if (element_bytes(spec.tensor.dtype) != 1 || !spec.factor.empty()) return nullptr;
    return std::make_unique<Kwta>(spec);
}

}  // namespace cs::avx512vnni
