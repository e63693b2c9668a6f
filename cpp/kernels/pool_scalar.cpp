// Max and average pooling, scalar tier. Padding never wins a maximum and counts as zeros in a mean.
#include <type_traits>

#include "arithmetic.h"
#include "scalar.h"

namespace cs::scalar {
namespace {

template <class X, class Out, bool kAverage>
class Pool final : public Step {
  public:
    // Means of float32 are summed in double; sums of integers are exact.
    using Acc = std::conditional_t<!kAverage, X, std::conditional_t<std::is_floating_point_v<X>, double, int64_t>>;

    explicit Pool(const PoolSpec& spec) : spec_(spec) {}

    size_t scratch_bytes() const override { return sizeof(Acc) * spec_.input.channels; }

    void run(const Call& call) const noexcept override {
        auto* acc = reinterpret_cast<Acc*>(call.scratch);
        for (int64_t n = 0; n < call.samples; ++n) {
            const X* image = sample<X>(call.inputs[0], spec_.input, n);
            Out* out = sample<Out>(call.output, spec_.output, n);
            for (int y = 0; y < spec_.output.height; ++y) {
                for (int x = 0; x < spec_.output.width; ++x, out += spec_.output.channels) {
                    finish(acc, reduce(image, y, x, acc), out);
                }
            }
        }
    }

  private:
    // The number of elements of a window that lie on the image.
    int reduce(const X* image, int y, int x, Acc* acc) const {
        const Tensor& in = spec_.input;
        const Window& w = spec_.window;
        const int top = y * w.stride_h - w.pad_top, left = x * w.stride_w - w.pad_left;
        const Acc lowest = kAverage                      ? Acc{}
                           : std::is_floating_point_v<X> ? static_cast<Acc>(-std::numeric_limits<X>::infinity())
                                                         : static_cast<Acc>(std::numeric_limits<X>::lowest());
        std::fill(acc, acc + in.channels, lowest);
        const int bottom = std::min(in.height, top + w.kernel_h), right = std::min(in.width, left + w.kernel_w);
        for (int row = std::max(0, top); row < bottom; ++row) {
            for (int column = std::max(0, left); column < right; ++column) {
                const X* pixel = image + (int64_t{row} * in.width + column) * in.channels;
                for (int c = 0; c < in.channels; ++c) {
                    acc[c] =
                        kAverage ? acc[c] + static_cast<Acc>(pixel[c]) : std::max(acc[c], static_cast<Acc>(pixel[c]));
                }
            }
        }
        return (bottom - std::max(0, top)) * (right - std::max(0, left));
    }

    void finish(const Acc* acc, int inside, Out* out) const {
        const int area = spec_.count_padding ? spec_.window.kernel_h * spec_.window.kernel_w : inside;
        [[maybe_unused]] const int pair = spec_.count_padding ? 0 : inside - 1;
        for (int c = 0; c < spec_.output.channels; ++c) {
            if constexpr (!kAverage) {
                out[c] = acc[c];
            } else if constexpr (std::is_floating_point_v<X>) {
                out[c] = static_cast<Out>(acc[c] / area);
            } else {
                out[c] =
                    requantize<Out>(acc[c], spec_.requantization.multiplier[pair], spec_.requantization.shift[pair]);
            }
        }
    }

    PoolSpec spec_;
};

}  // namespace

std::unique_ptr<Step> pool(const PoolSpec& spec) {
    return with_type(spec.input.dtype, [&](auto x) -> std::unique_ptr<Step> {
        using X = decltype(x);
        if (!spec.average) return std::make_unique<Pool<X, X, false>>(spec);
        if constexpr (std::is_floating_point_v<X>) {
            return std::make_unique<Pool<X, X, true>>(spec);
        } else if (spec.output.dtype == DType::u8) {
            return std::make_unique<Pool<X, uint8_t, true>>(spec);
        } else {
            return std::make_unique<Pool<X, int8_t, true>>(spec);
        }
    });
}

}  // namespace cs::scalar
