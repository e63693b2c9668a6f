// k winners take all over 8-bit values, avx512vnni tier.
//
// Why it is fast: the threshold is found by bisection over its eight bits. A step compares 64 values at once (VPCMPUB)
// and counts the mask (POPCNT), whatever k is; no value moves. Ties at the threshold are cut off by PDEP, which keeps
// the lowest set bits of a mask. For scopes of up to 64 values, eight positions are interleaved, because one bisection
// is a chain of latencies (compare, mask move, count, choose: 14 cycles a step) that leaves the ports idle.
#include <cstring>
#include <type_traits>

#include "arithmetic.h"
#include "avx512vnni.h"
#include "avx512vnni_math.h"

namespace cs::avx512vnni {
namespace {

constexpr int kInterleaved = 8;

// The winners of a scope of up to 64 values: those above the threshold, and the first of its ties.
CS_AVX512VNNI inline uint64_t winners(__m512i value_u8x64, __mmask64 exists, unsigned threshold, int k) {
    const __m512i threshold_u8x64 = _mm512_set1_epi8(static_cast<char>(threshold));
    const uint64_t above = _mm512_mask_cmpgt_epu8_mask(exists, value_u8x64, threshold_u8x64);
    const uint64_t equal = _mm512_mask_cmpeq_epu8_mask(exists, value_u8x64, threshold_u8x64);
    return above | _pdep_u64((uint64_t{1} << (k - _mm_popcnt_u64(above))) - 1, equal);
}

// COUNT scopes of n <= 64 values, one after the other. flip: 0x80 for int8, whose order is then unsigned.
template <int COUNT>
CS_AVX512VNNI inline __attribute__((always_inline)) void small_scopes(const uint8_t* x, uint8_t* out, int n, int k,
                                                                      char flip) {
    const __mmask64 exists = n == 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
    __m512i value_u8x64[COUNT];
    unsigned threshold[COUNT] = {};
    for (int i = 0; i < COUNT; ++i) {
        const __m512i loaded = _mm512_maskz_loadu_epi8(exists, x + i * n);
        value_u8x64[i] = _mm512_xor_si512(loaded, _mm512_set1_epi8(flip));
    }
    for (unsigned bit = 0x80; bit; bit >>= 1) {
        for (int i = 0; i < COUNT; ++i) {
            const unsigned candidate = threshold[i] | bit;
            const __m512i candidate_u8x64 = _mm512_set1_epi8(static_cast<char>(candidate));
            const __mmask64 reach = _mm512_mask_cmpge_epu8_mask(exists, value_u8x64[i], candidate_u8x64);
            threshold[i] = _mm_popcnt_u64(reach) >= k ? candidate : threshold[i];
        }
    }
    for (int i = 0; i < COUNT; ++i) {
        const __mmask64 won = winners(value_u8x64[i], exists, threshold[i], k);
        const __m512i original = _mm512_xor_si512(value_u8x64[i], _mm512_set1_epi8(flip));
        _mm512_mask_storeu_epi8(out + i * n, exists, _mm512_maskz_mov_epi8(won, original));
    }
}

CS_AVX512VNNI void many_small_scopes(const uint8_t* x, uint8_t* out, int64_t scopes, int n, int k, char flip) {
    int64_t i = 0;
    for (; i + kInterleaved <= scopes; i += kInterleaved)
        small_scopes<kInterleaved>(x + i * n, out + i * n, n, k, flip);
    for (; i < scopes; ++i) small_scopes<1>(x + i * n, out + i * n, n, k, flip);
}

// The values that lie `at` in a scope of n.
CS_AVX512VNNI inline __mmask64 part_exists(int64_t at, int64_t n) {
    return n - at >= 64 ? ~uint64_t{0} : (uint64_t{1} << (n - at)) - 1;
}

// How many of n values are at least the candidate.
CS_AVX512VNNI int64_t count_reaching(const uint8_t* x, int64_t n, unsigned candidate, char flip) {
    const __m512i candidate_u8x64 = _mm512_set1_epi8(static_cast<char>(candidate)), flip_u8x64 = _mm512_set1_epi8(flip);
    int64_t count = 0;
    for (int64_t at = 0; at < n; at += 64) {
        const __mmask64 exists = part_exists(at, n);
        const __m512i value_u8x64 = _mm512_xor_si512(_mm512_maskz_loadu_epi8(exists, x + at), flip_u8x64);
        count += _mm_popcnt_u64(_mm512_mask_cmpge_epu8_mask(exists, value_u8x64, candidate_u8x64));
    }
    return count;
}

CS_AVX512VNNI void large_scope(const uint8_t* x, uint8_t* out, int64_t n, int64_t k, char flip) {
    unsigned threshold = 0;
    for (unsigned bit = 0x80; bit; bit >>= 1) {
        if (count_reaching(x, n, threshold | bit, flip) >= k) threshold |= bit;
    }
    int64_t ties = k - (threshold == 255 ? 0 : count_reaching(x, n, threshold + 1, flip));
    const __m512i threshold_u8x64 = _mm512_set1_epi8(static_cast<char>(threshold));
    for (int64_t at = 0; at < n; at += 64) {
        const __mmask64 exists = part_exists(at, n);
        const __m512i loaded = _mm512_maskz_loadu_epi8(exists, x + at);
        const __m512i value_u8x64 = _mm512_xor_si512(loaded, _mm512_set1_epi8(flip));
        const uint64_t above = _mm512_mask_cmpgt_epu8_mask(exists, value_u8x64, threshold_u8x64);
        uint64_t equal = _mm512_mask_cmpeq_epu8_mask(exists, value_u8x64, threshold_u8x64);
        if (ties < 64) equal = _pdep_u64((uint64_t{1} << ties) - 1, equal);
        ties -= _mm_popcnt_u64(equal);
        _mm512_mask_storeu_epi8(out + at, exists, _mm512_maskz_mov_epi8(above | equal, loaded));
    }
}

class Kwta final : public Step {
  public:
    explicit Kwta(const KwtaSpec& spec)
        : tensor_(spec.tensor),
          k_(spec.k),
          scope_(spec.global ? spec.tensor.size() : spec.tensor.channels),
          scopes_(spec.global ? 1 : spec.tensor.positions()),
          flip_(static_cast<char>(spec.tensor.dtype == DType::s8 ? 0x80 : 0)) {}

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            const auto* x = sample<uint8_t>(call.inputs[0], tensor_, n);
            auto* out = sample<uint8_t>(call.output, tensor_, n);
            if (k_ >= scope_) {
                std::memcpy(out, x, tensor_.bytes());
            } else if (scope_ <= 64) {
                many_small_scopes(x, out, scopes_, static_cast<int>(scope_), static_cast<int>(k_), flip_);
            } else {
                for (int64_t i = 0; i < scopes_; ++i) large_scope(x + i * scope_, out + i * scope_, scope_, k_, flip_);
            }
        }
    }

  private:
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
