// k winners take all, 8-bit and float32, local and global, with and without ranking factors: one body for the tiers
// without VBMI2. A file that includes it includes the vocabulary of its tier first (avx2_lanes.h, avx512_lanes.h) and
// says how 64 bytes are compared (Bytes) and many counted (count_blocks).
//
// Why it is fast: no value moves. The threshold is found by bisection; a step compares whole vectors with a candidate
// and counts, whatever k is. Bytes take eight steps. A tier may take many scopes of bytes at a time (many_scopes);
// where few are left and small, several are interleaved, because one bisection is a chain of latencies. float32 values
// and ranks become integers of the same order, once; their bisection ends as soon as exactly k values reach the
// candidate, which for n different values takes about log2 n steps more than it takes to find their exponent. Ties at
// the threshold are cut off by PDEP, which keeps the lowest set bits of a mask.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "arithmetic.h"

namespace cs {
namespace {

constexpr int64_t kBlock = 64;  // bytes compared at a time

CS_TIER inline uint64_t first_mask(int64_t count) { return count < 64 ? (uint64_t{1} << count) - 1 : ~uint64_t{0}; }

// The lowest `count` set bits.
CS_TIER inline uint64_t first_bits(uint64_t mask, int64_t count) { return _pdep_u64(first_mask(count), mask); }

// COUNT scopes of n <= 64 values, one after the other. `room` values may be written: scopes that follow overwrite what
// is too much.
template <class X, int COUNT>
CS_TIER void small_scopes(const X* x, X* out, int n, int k, int64_t room) {
    const uint64_t exists = first_mask(n);
    Bytes<X> value[COUNT];
    int threshold[COUNT];
    for (int i = 0; i < COUNT; ++i) {
        value[i] = Bytes<X>::load(x + i * n);
        threshold[i] = std::numeric_limits<X>::min();
    }
    for (int step = 0x80; step; step >>= 1) {
        for (int i = 0; i < COUNT; ++i) {
            const uint64_t reach = value[i].reaching(threshold[i] + step) & exists;
            threshold[i] += __builtin_popcountll(reach) >= k ? step : 0;
        }
    }
    for (int i = 0; i < COUNT; ++i) {
        const uint64_t equal = value[i].equal(threshold[i]) & exists;
        const uint64_t above = value[i].reaching(threshold[i]) & exists & ~equal;
        const uint64_t tied = first_bits(equal, k - __builtin_popcountll(above));
        value[i].write(out + i * n, std::min(kBlock, room - i * n), threshold[i], 64 - __builtin_clzll(tied));
    }
}

template <class X>
CS_TIER void few_small_scopes(const X* x, X* out, int64_t scopes, int n, int k) {
    int64_t i = 0;
    for (; i + kInterleaved <= scopes; i += kInterleaved) {
        small_scopes<X, kInterleaved>(x + i * n, out + i * n, n, k, (scopes - i) * n);
    }
    for (; i < scopes; ++i) small_scopes<X, 1>(x + i * n, out + i * n, n, k, (scopes - i) * n);
}

template <class X>
CS_TIER int64_t count_reaching(const X* x, int64_t n, int candidate) {
    const int64_t whole = n / kBlock * kBlock;
    const uint64_t rest = Bytes<X>::load(x + whole).reaching(candidate) & first_mask(n - whole);
    return count_blocks(x, whole, candidate) + __builtin_popcountll(rest);
}

// Before which place `ties` of the n values equal the threshold.
template <class X>
CS_TIER int64_t end_of_ties(const X* x, int64_t n, int threshold, int64_t ties) {
    for (int64_t at = 0;; at += kBlock) {
        const uint64_t equal = Bytes<X>::load(x + at).equal(threshold) & first_mask(n - at);
        const int64_t count = __builtin_popcountll(equal);
        if (count >= ties) return at + 64 - __builtin_clzll(first_bits(equal, ties));
        ties -= count;
    }
}

template <class X>
CS_TIER void large_scope(const X* x, X* out, int64_t n, int64_t k) {
    int threshold = std::numeric_limits<X>::min();
    int64_t above = 0;  // values beyond the threshold
    for (int step = 0x80; step; step >>= 1) {
        const int64_t count = count_reaching(x, n, threshold + step);
        threshold += count >= k ? step : 0;
        above = count >= k ? above : count;
    }
    const int64_t end = end_of_ties(x, n, threshold, k - above);
    for (int64_t at = 0; at < n; at += kBlock) {
        const auto place = static_cast<int>(std::clamp<int64_t>(end - at, 0, kBlock));
        Bytes<X>::load(x + at).write(out + at, std::min(kBlock, n - at), threshold, place);
    }
}

// Keys of n ranks, in the order of the ranks, and up to a whole vector keys that never reach anything.
template <class X>
CS_TIER void make_keys(const X* x, const float* factor, int64_t n, int32_t* keys) {
    for (int64_t i = 0; i < n; ++i) {
        float rank = static_cast<float>(x[i]);
        if (factor) rank *= factor[i];
        rank += 0.0f;  // -0 equals 0
        int32_t bits;
        std::memcpy(&bits, &rank, sizeof bits);
        keys[i] = bits ^ ((bits >> 31) & 0x7fffffff);
    }
    for (int64_t i = n; i % kLanes; ++i) keys[i] = std::numeric_limits<int32_t>::min();
}

struct Threshold {
    int32_t key;
    int64_t ties;  // winners among the keys equal to it
};

CS_TIER Threshold find_threshold(const int32_t* keys, int64_t n, int64_t k) {
    // At least k keys reach `low`; `above`, fewer, reach `high`.
    int64_t low = std::numeric_limits<int32_t>::min(), high = -low, above = 0;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        int64_t count = 0;
        for (int64_t i = 0; i < n; i += kLanes) {
            count += __builtin_popcount(reaching_lanes(keys + i, static_cast<int32_t>(middle)));
        }
        if (count == k) return {static_cast<int32_t>(middle), n};
        if (count > k) {
            low = middle;
        } else {
            high = middle;
            above = count;
        }
    }
    return {static_cast<int32_t>(low), k - above};
}

template <class X>
CS_TIER void by_key(const X* x, X* out, int64_t n, const int32_t* keys, Threshold threshold) {
    std::memset(out, 0, sizeof(X) * n);
    for (int64_t at = 0; at < n; at += kLanes) {
        const uint64_t exists = first_mask(n - at);
        const uint64_t equal = equal_lanes(keys + at, threshold.key) & exists;
        const uint64_t tied = first_bits(equal, threshold.ties);
        threshold.ties -= __builtin_popcountll(tied);
        uint64_t won = (reaching_lanes(keys + at, threshold.key) & exists & ~equal) | tied;
        for (; won; won &= won - 1) {
            const int64_t i = at + __builtin_ctzll(won);
            out[i] = x[i];
        }
    }
}

template <class X>
class Kwta final : public Step {
  public:
    explicit Kwta(const KwtaSpec& spec) : spec_(spec), scope_(spec.scope()), scopes_(spec.scopes()) {}

    size_t scratch_bytes() const override { return ranks_by_key() ? sizeof(int32_t) * round_up(scope_, kLanes) : 0; }

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            const X* x = sample<X>(call.inputs[0], spec_.tensor, n);
            X* out = sample<X>(call.output, spec_.tensor, n);
            if (spec_.k >= scope_) {
                std::memcpy(out, x, spec_.tensor.bytes());
            } else if (ranks_by_key()) {
                rank_by_key(x, out, reinterpret_cast<int32_t*>(call.scratch));
            } else if constexpr (sizeof(X) == 1) {
                rank_bytes(x, out);
            }
        }
    }

  private:
    bool ranks_by_key() const { return sizeof(X) > 1 || !spec_.factor.empty(); }

    void rank_bytes(const X* x, X* out) const {
        int64_t i = many_scopes(x, out, scopes_, scope_, spec_.k);
        if (scope_ <= kBlock) {
            const int64_t done = i * scope_;
            few_small_scopes(x + done, out + done, scopes_ - i, static_cast<int>(scope_), static_cast<int>(spec_.k));
        } else {
            for (; i < scopes_; ++i) large_scope(x + i * scope_, out + i * scope_, scope_, spec_.k);
        }
    }

    void rank_by_key(const X* x, X* out, int32_t* keys) const {
        const float* factor = spec_.factor.empty() ? nullptr : spec_.factor.data();
        for (int64_t i = 0; i < scopes_; ++i, x += scope_, out += scope_) {
            make_keys(x, factor, scope_, keys);
            by_key(x, out, scope_, keys, find_threshold(keys, scope_, spec_.k));
        }
    }

    KwtaSpec spec_;
    int64_t scope_, scopes_;
};

std::unique_ptr<Step> make_kwta(const KwtaSpec& spec) {
    return with_type(spec.tensor.dtype, [&](auto x) -> std::unique_ptr<Step> {
        if constexpr (std::is_same_v<decltype(x), int32_t>) {
            return nullptr;
        } else {
            return std::make_unique<Kwta<decltype(x)>>(spec);
        }
    });
}

}  // namespace
}  // namespace cs
