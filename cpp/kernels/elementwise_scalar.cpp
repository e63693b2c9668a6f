// The network's input and everything that works element by element, scalar tier.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "arithmetic.h"
#include "scalar.h"

namespace cs::scalar {
namespace {

// A step that maps every sample by one function of pointers to it.
template <class In, class Out, class Function>
class Map final : public Step {
  public:
    Map(Tensor input, Tensor output, Function function)
        : input_(input), output_(output), function_(std::move(function)) {}

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            function_(sample<In>(call.inputs[0], input_, n), sample<Out>(call.output, output_, n));
        }
    }

  private:
    Tensor input_, output_;
    Function function_;
};

template <class In, class Out, class Function>
std::unique_ptr<Step> map(const Tensor& input, const Tensor& output, Function function) {
    return std::make_unique<Map<In, Out, Function>>(input, output, std::move(function));
}

template <class T>
T quantized(float x, float inv_scale) {
    constexpr auto kLowest = static_cast<float>(std::numeric_limits<T>::lowest());
    constexpr auto kLargest = static_cast<float>(std::numeric_limits<T>::max());
    return static_cast<T>(std::min(std::max(kLowest, std::nearbyint(x * inv_scale)), kLargest));  // NaN: the least
}

// Reads the caller's array, whose samples are contiguous, not at the stride of a tensor.
template <class T>
class Input final : public Step {
  public:
    explicit Input(const InputSpec& spec) : spec_(spec) {}

    void run(const Call& call) const noexcept override {
        const int64_t size = spec_.output.size();
        const bool is_own_type = call.caller_bytes == spec_.output.bytes();
        for (int64_t n = 0; n < call.samples; ++n) {
            const std::byte* x = call.inputs[0] + n * call.caller_bytes;
            T* out = sample<T>(call.output, spec_.output, n);
            if (is_own_type) {
                std::memcpy(out, x, call.caller_bytes);
            } else {
                const auto* values = reinterpret_cast<const float*>(x);
                for (int64_t i = 0; i < size; ++i) out[i] = quantized<T>(values[i], spec_.inv_scale);
            }
        }
    }

  private:
    InputSpec spec_;
};

template <class A, class B, class Out>
class Add final : public Step {
  public:
    explicit Add(const AddSpec& spec) : spec_(spec) {}

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            const A* a = sample<A>(call.inputs[0], spec_.first, n);
            const B* b = sample<B>(call.inputs[1], spec_.second, n);
            Out* out = sample<Out>(call.output, spec_.output, n);
            for (int64_t i = 0; i < spec_.output.size(); ++i) out[i] = sum(a[i], b[i]);
        }
    }

  private:
    Out sum(A a, B b) const {
        if constexpr (std::is_floating_point_v<A>) {
            return a + b;
        } else {
            const auto& multiplier = spec_.requantization.multiplier;
            const int64_t product = int64_t{a} * multiplier[0] + int64_t{b} * multiplier[1];
            return round_shift<Out>(product, spec_.requantization.shift[0]);
        }
    }

    AddSpec spec_;
};

template <class A, class B, class Out>
class Product final : public Step {
  public:
    explicit Product(const ProductSpec& spec) : spec_(spec) {}

    void run(const Call& call) const noexcept override {
        const int channels = spec_.output.channels;
        const int step = spec_.second.positions() == 1 ? 0 : channels;
        for (int64_t n = 0; n < call.samples; ++n) {
            const A* a = sample<A>(call.inputs[0], spec_.first, n);
            const B* b = sample<B>(call.inputs[1], spec_.second, n);
            Out* out = sample<Out>(call.output, spec_.output, n);
            for (int64_t p = 0; p < spec_.output.positions(); ++p, a += channels, b += step, out += channels) {
                for (int c = 0; c < channels; ++c) out[c] = multiplied(a[c], b[c]);
            }
        }
    }

  private:
    Out multiplied(A a, B b) const {
        if constexpr (std::is_floating_point_v<A>) {
            return a * b;
        } else {
            const Requantization& q = spec_.requantization;
            return requantize<Out>(int64_t{a} * b, q.multiplier[0], q.shift[0]);
        }
    }

    ProductSpec spec_;
};

// The step of an operation on two tensors, for their types and that of the result.
template <template <class, class, class> class Operation, class Spec>
std::unique_ptr<Step> of_pairs(const Spec& spec) {
    if (spec.output.dtype == DType::f32) return std::make_unique<Operation<float, float, float>>(spec);
    const auto with_output = [&](auto a, auto b) -> std::unique_ptr<Step> {
        using A = decltype(a);
        using B = decltype(b);
        if (spec.output.dtype == DType::u8) return std::make_unique<Operation<A, B, uint8_t>>(spec);
        return std::make_unique<Operation<A, B, int8_t>>(spec);
    };
    const auto with_second = [&](auto a) {
        return spec.second.dtype == DType::u8 ? with_output(a, uint8_t{}) : with_output(a, int8_t{});
    };
    return spec.first.dtype == DType::u8 ? with_second(uint8_t{}) : with_second(int8_t{});
}

class Concat final : public Step {
  public:
    explicit Concat(const ConcatSpec& spec) : spec_(spec) {}

    void run(const Call& call) const noexcept override {
        int offset = 0;
        for (size_t i = 0; i < spec_.inputs.size(); offset += spec_.inputs[i++].channels) {
            with_type(spec_.inputs[i].dtype, [&](auto x) {
                using X = decltype(x);
                if constexpr (std::is_floating_point_v<X>) {
                    join<X, float>(call, i, offset);
                } else if (spec_.output.dtype == DType::u8) {
                    join<X, uint8_t>(call, i, offset);
                } else {
                    join<X, int8_t>(call, i, offset);
                }
            });
        }
    }

  private:
    template <class X, class Out>
    void join(const Call& call, size_t i, int offset) const {
        const Tensor& in = spec_.inputs[i];
        for (int64_t n = 0; n < call.samples; ++n) {
            const X* x = sample<X>(call.inputs[i], in, n);
            Out* out = sample<Out>(call.output, spec_.output, n) + offset;
            for (int64_t p = 0; p < in.positions(); ++p, x += in.channels, out += spec_.output.channels) {
                for (int c = 0; c < in.channels; ++c) {
                    if constexpr (std::is_floating_point_v<X>) {
                        out[c] = x[c];
                    } else {
                        const Requantization& q = spec_.requantization;
                        out[c] = requantize<Out>(x[c], q.multiplier[i], q.shift[i]);
                    }
                }
            }
        }
    }

    ConcatSpec spec_;
};

}  // namespace

std::unique_ptr<Step> input(const InputSpec& spec) {
    return with_type(spec.output.dtype, [&](auto type) -> std::unique_ptr<Step> {
        using T = decltype(type);
        if constexpr (std::is_same_v<T, int32_t>) {
            return nullptr;
        } else {
            return std::make_unique<Input<T>>(spec);
        }
    });
}

std::unique_ptr<Step> relu(const ReluSpec& spec) {
    return with_type(spec.tensor.dtype, [&](auto type) {
        using T = decltype(type);
        return map<T, T>(spec.tensor, spec.tensor, [size = spec.tensor.size()](const T* x, T* out) {
            for (int64_t i = 0; i < size; ++i) out[i] = std::max(x[i], T{});
        });
    });
}

std::unique_ptr<Step> clip(const ClipSpec& spec) {
    return with_type(spec.tensor.dtype, [&](auto type) {
        using T = decltype(type);
        using Limits = std::numeric_limits<T>;
        const T low = std::isinf(spec.low) ? Limits::lowest() : static_cast<T>(spec.low);
        const T high = std::isinf(spec.high) ? Limits::max() : static_cast<T>(spec.high);
        return map<T, T>(spec.tensor, spec.tensor, [size = spec.tensor.size(), low, high](const T* x, T* out) {
            for (int64_t i = 0; i < size; ++i) out[i] = std::min(std::max(x[i], low), high);
        });
    });
}

std::unique_ptr<Step> lookup(const LookupSpec& spec) {
    return map<uint8_t, uint8_t>(spec.input, spec.output, [spec](const uint8_t* x, uint8_t* out) {
        const uint8_t* table = spec.table.data();
        for (int64_t i = 0; i < spec.input.size(); ++i) out[i] = table[x[i]];
    });
}

std::unique_ptr<Step> activation(const ActivationSpec& spec) {
    const auto by = [&](auto function) {
        return map<float, float>(spec.tensor, spec.tensor,
                                 [size = spec.tensor.size(), function](const float* x, float* out) {
                                     for (int64_t i = 0; i < size; ++i)
                                         out[i] = static_cast<float>(function(double{x[i]}));
                                 });
    };
    switch (const double alpha = spec.alpha; spec.function) {
        case Function::sigmoid:
            return by([](double x) { return 1 / (1 + std::exp(-x)); });
        case Function::tanh:
            return by([](double x) { return std::tanh(x); });
        case Function::silu:
            return by([alpha](double x) { return x / (1 + std::exp(-alpha * x)); });
        case Function::hard_sigmoid:
            return by([alpha](double x) { return std::clamp(alpha * x + 0.5, 0.0, 1.0); });
        case Function::hard_swish:
            return by([](double x) { return x * std::clamp(x / 6 + 0.5, 0.0, 1.0); });
        case Function::elu:
            return by([alpha](double x) { return x > 0 ? x : alpha * std::expm1(x); });
        default:
            return by([alpha](double x) { return std::max(x, 0.0) + alpha * std::min(x, 0.0); });  // one of them is 0
    }
}

std::unique_ptr<Step> affine(const AffineSpec& spec) {
    return map<float, float>(spec.tensor, spec.tensor, [spec](const float* x, float* out) {
        const int channels = spec.tensor.channels;
        for (int64_t p = 0; p < spec.tensor.positions(); ++p, x += channels, out += channels) {
            for (int c = 0; c < channels; ++c) out[c] = x[c] * spec.scale[c] + spec.shift[c];
        }
    });
}

std::unique_ptr<Step> add(const AddSpec& spec) { return of_pairs<Add>(spec); }

std::unique_ptr<Step> product(const ProductSpec& spec) { return of_pairs<Product>(spec); }

std::unique_ptr<Step> concat(const ConcatSpec& spec) { return std::make_unique<Concat>(spec); }

std::unique_ptr<Step> dequantize(const DequantizeSpec& spec) {
    return with_type(spec.input.dtype, [&](auto type) {
        using T = decltype(type);
        std::vector<double> scale = spec.scale;
        if (scale.size() == 1) scale.assign(spec.input.channels, spec.scale[0]);
        return map<T, float>(spec.input, spec.output, [in = spec.input, scale](const T* x, float* out) {
            for (int64_t p = 0; p < in.positions(); ++p, x += in.channels, out += in.channels) {
                for (int c = 0; c < in.channels; ++c) out[c] = static_cast<float>(x[c] * scale[c]);
            }
        });
    });
}

std::unique_ptr<Step> quantize(const QuantizeSpec& spec) {
    return with_type(spec.output.dtype, [&](auto type) -> std::unique_ptr<Step> {
        using T = decltype(type);
        return map<float, T>(spec.input, spec.output, [spec](const float* x, T* out) {
            for (int64_t i = 0; i < spec.input.size(); ++i) out[i] = quantized<T>(x[i], spec.inv_scale);
        });
    });
}

std::unique_ptr<Step> softmax(const SoftmaxSpec& spec) {
    return map<float, float>(spec.tensor, spec.tensor, [in = spec.tensor](const float* x, float* out) {
        for (int64_t p = 0; p < in.positions(); ++p, x += in.channels, out += in.channels) {
            const float largest = *std::max_element(x, x + in.channels);
            double total = 0;  // of a row that may be long
            for (int c = 0; c < in.channels; ++c) total += out[c] = std::exp(x[c] - largest);
            for (int c = 0; c < in.channels; ++c) out[c] = static_cast<float>(out[c] / total);
        }
    });
}

}  // namespace cs::scalar
