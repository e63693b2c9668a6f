// k winners take all, scalar tier: exactly k survive per scope, by (value descending, index ascending).
//
// 8-bit values are ranked by a histogram: 256 counts give the threshold and how many of its ties win, in two passes.
// float32 values, and values ranked by a factor, are ranked as 64-bit keys that hold the value and the index, so that
// the order is total (NaN included) and one selection settles ties.
#include <array>
#include <cstring>
#include <functional>
#include <type_traits>

#include "arithmetic.h"
#include "scalar.h"

namespace cs::scalar {
namespace {

// float32 bits whose unsigned order is the order of the values; -0 equals +0.
uint32_t ordered(float value) {
    value += 0.0f;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

template <class T>
class Kwta final : public Step {
  public:
    explicit Kwta(const KwtaSpec& spec) : spec_(spec), scope_(spec.scope()), scopes_(spec.scopes()) {}

    size_t scratch_bytes() const override { return ranks_by_key() ? sizeof(uint64_t) * scope_ : 0; }

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            const T* x = sample<T>(call.inputs[0], spec_.tensor, n);
            T* out = sample<T>(call.output, spec_.tensor, n);
            if (spec_.k >= scope_) {
                std::memcpy(out, x, spec_.tensor.bytes());
                continue;
            }
            for (int64_t i = 0; i < scopes_; ++i, x += scope_, out += scope_) {
                if (ranks_by_key()) {
                    by_key(x, out, reinterpret_cast<uint64_t*>(call.scratch));
                } else if constexpr (!std::is_floating_point_v<T>) {
                    by_histogram(x, out);
                }
            }
        }
    }

  private:
    bool ranks_by_key() const { return std::is_floating_point_v<T> || !spec_.factor.empty(); }

    void by_histogram(const T* x, T* out) const {
        constexpr int kLowest = std::numeric_limits<T>::min();
        std::array<int64_t, 256> count{};
        for (int64_t i = 0; i < scope_; ++i) ++count[x[i] - kLowest];
        int64_t ties = spec_.k;  // winners among the values equal to the threshold
        int threshold = 255;
        while (count[threshold] < ties) ties -= count[threshold--];
        threshold += kLowest;
        for (int64_t i = 0; i < scope_; ++i) {
            const bool wins = x[i] > threshold || (x[i] == threshold && ties-- > 0);
            out[i] = wins ? x[i] : T{};
        }
    }

    void by_key(const T* x, T* out, uint64_t* keys) const {
        for (int64_t i = 0; i < scope_; ++i) {
            const float rank =
                spec_.factor.empty() ? static_cast<float>(x[i]) : static_cast<float>(x[i]) * spec_.factor[i];
            keys[i] = uint64_t{ordered(rank)} << 32 | static_cast<uint32_t>(~i);
        }
        std::nth_element(keys, keys + spec_.k - 1, keys + scope_, std::greater<>());
        std::fill(out, out + scope_, T{});
        for (int64_t j = 0; j < spec_.k; ++j) {
            const uint32_t i = ~static_cast<uint32_t>(keys[j]);
            out[i] = x[i];
        }
    }

    KwtaSpec spec_;
    int64_t scope_, scopes_;
};

}  // namespace

std::unique_ptr<Step> kwta(const KwtaSpec& spec) {
    return with_type(spec.tensor.dtype, [&](auto x) -> std::unique_ptr<Step> {
        if constexpr (std::is_same_v<decltype(x), int32_t>) {
            return nullptr;
        } else {
            return std::make_unique<Kwta<decltype(x)>>(spec);
        }
    });
}

}  // namespace cs::scalar
