// Convolution and linear layers, scalar tier.
//
// Every mode gathers the inputs of one position into a contiguous vector. Dense mode multiplies it by whole rows of the
// weight matrix, unit stride over kernels. The sparse modes run the paper's steps over the packed rows: select the
// active row blocks (sparse-sparse only), multiply each by its packed weights, route each product to the kernel that
// owns it, sum. All entries of a packed row are contiguous, so an active input costs one straight read.
#include <cstring>
#include <type_traits>

#include "arithmetic.h"
#include "scalar.h"

namespace cs::scalar {
namespace {

// The inputs of one window in (ky, kx, channel) order; zeros outside the image.
template <class X>
void gather(const LayerSpec& s, const X* image, int y, int x, X* vector) {
    const Tensor& in = s.input;
    const int left = x * s.window.stride_w - s.window.pad_left;
    const int first = std::max(0, -left), last = std::min(s.window.kernel_w, in.width - left);
    for (int ky = 0; ky < s.window.kernel_h; ++ky, vector += s.window.kernel_w * in.channels) {
        const int row = y * s.window.stride_h - s.window.pad_top + ky;
        std::memset(vector, 0, sizeof(X) * s.window.kernel_w * in.channels);
        if (row < 0 || row >= in.height || first >= last) continue;
        const X* source = image + (int64_t{row} * in.width + left + first) * in.channels;
        std::memcpy(vector + first * in.channels, source, sizeof(X) * (last - first) * in.channels);
    }
}

// With kSelect, inputs that are zero cost nothing: sparse activations times dense weights.
template <class X, class W, bool kSelect>
struct Dense {
    std::vector<W> weight;  // [rows, kernels]
    int rows, kernels;

    explicit Dense(const LayerSpec& s)
        : weight(static_cast<const W*>(s.dense), static_cast<const W*>(s.dense) + int64_t{s.rows} * s.kernels),
          rows(s.rows),
          kernels(s.kernels) {}

    int64_t vector_size() const { return rows; }
    int64_t accumulators() const { return kernels; }
    int64_t indices() const { return 0; }

    void accumulate(const X* x, Accumulator<X>* __restrict acc, int32_t*) const {
        const W* w = weight.data();
        for (int r = 0; r < rows; ++r, w += kernels) {
            const auto value = static_cast<Accumulator<X>>(x[r]);
            if (kSelect && value == 0) continue;
            for (int o = 0; o < kernels; ++o) acc[o] += value * w[o];
        }
    }
};

// U and V are 0 where the block shape is known only at run time.
template <class X, class W, bool kSelect, int U, int V>
struct Packed {
    std::vector<W> weight;        // [row_blocks, sets, V, U]
    std::vector<int32_t> target;  // [row_blocks, sets]: first accumulator of the owner; nobody's go to a spare block
    int u, v, row_blocks, sets, rows, kernel_blocks;

    explicit Packed(const LayerSpec& s)
        : u(s.packed->u),
          v(s.packed->v),
          row_blocks(s.packed->row_blocks),
          sets(s.packed->sets),
          rows(s.rows),
          kernel_blocks(s.packed->kernel_blocks) {
        const auto* first = static_cast<const W*>(s.packed->weights);
        weight.assign(first, first + int64_t{row_blocks} * sets * u * v);
        for (int32_t owner : s.packed->owner) target.push_back((owner < 0 ? kernel_blocks : owner) * v);
    }

    int64_t vector_size() const { return int64_t{row_blocks} * u; }
    int64_t accumulators() const { return int64_t{kernel_blocks + 1} * v; }
    int64_t indices() const { return row_blocks; }

    void accumulate(X* x, Accumulator<X>* __restrict acc, int32_t* active) const {
        std::fill(x + rows, x + vector_size(), X{});  // the padding of the last row block
        const int count = kSelect ? select(x, active) : row_blocks;
        for (int n = 0; n < count; ++n) {
            const int row = kSelect ? active[n] : n;
            multiply_route_sum(x + int64_t{row} * u, row, acc);
        }
    }

    // Row blocks that hold a value other than zero.
    int select(const X* x, int32_t* active) const {
        const int width = U ? U : u;
        int count = 0;
        for (int row = 0; row < row_blocks; ++row) {
            bool any = false;
            for (int i = 0; i < width; ++i) any |= x[row * width + i] != X{};
            active[count] = row;
            count += any;
        }
        return count;
    }

    void multiply_route_sum(const X* x, int row, Accumulator<X>* __restrict acc) const {
        const int width = U ? U : u, kernels = V ? V : v;
        const W* w = weight.data() + int64_t{row} * sets * kernels * width;
        const int32_t* route = target.data() + int64_t{row} * sets;
        for (int t = 0; t < sets; ++t, w += kernels * width) {
            Accumulator<X>* to = acc + route[t];
            for (int j = 0; j < kernels; ++j) {
                Accumulator<X> product{};
                for (int i = 0; i < width; ++i) product += static_cast<Accumulator<X>>(x[i]) * w[j * width + i];
                to[j] += product;
            }
        }
    }
};

// Depthwise and grouped convolution: every output channel reads the inputs of its group.
template <class X, class W>
struct Grouped {
    std::vector<W> weight;  // [taps * depth, kernels]
    int taps, channels, depth, kernels, kernels_per_group;

    explicit Grouped(const LayerSpec& s)
        : weight(static_cast<const W*>(s.dense), static_cast<const W*>(s.dense) + int64_t{s.rows} * s.kernels),
          taps(s.window.kernel_h * s.window.kernel_w),
          channels(s.input.channels),
          depth(s.input.channels / s.groups),
          kernels(s.kernels),
          kernels_per_group(s.kernels / s.groups) {}

    int64_t vector_size() const { return int64_t{taps} * channels; }
    int64_t accumulators() const { return kernels; }
    int64_t indices() const { return 0; }

    void accumulate(const X* x, Accumulator<X>* __restrict acc, int32_t*) const {
        const W* w = weight.data();
        for (int tap = 0; tap < taps; ++tap, x += channels) {
            for (int d = 0; d < depth; ++d, w += kernels) {
                for (int o = 0; o < kernels; ++o) {
                    acc[o] += static_cast<Accumulator<X>>(x[o / kernels_per_group * depth + d]) * w[o];
                }
            }
        }
    }
};

// One layer: for each output position the largest accumulator of its pooling window, then the way out.
template <class X, class Out, class Product>
class Layer final : public Step {
  public:
    using Acc = Accumulator<X>;

    explicit Layer(const LayerSpec& spec) : spec_(spec), product_(spec), bias_(product_.accumulators()) {
        if (spec.bias) std::memcpy(bias_.data(), spec.bias, sizeof(Acc) * spec.kernels);
        spec_.dense = spec_.bias = nullptr;  // the caller's; not ours to keep
        spec_.packed.reset();
    }

    size_t scratch_bytes() const override { return indices_offset() + sizeof(int32_t) * product_.indices(); }

    void run(const Call& call) const noexcept override {
        for (int64_t n = 0; n < call.samples; ++n) {
            const X* image = sample<X>(call.inputs[0], spec_.input, n);
            Out* out = sample<Out>(call.output, spec_.output, n);
            for (int y = 0; y < spec_.output.height; ++y) {
                for (int x = 0; x < spec_.output.width; ++x, out += spec_.kernels) {
                    finish(largest(image, y, x, call.scratch), out);
                }
            }
        }
    }

  private:
    size_t sum_offset() const { return round_up(sizeof(X) * product_.vector_size(), kAlignment); }
    size_t best_offset() const { return sum_offset() + round_up(sizeof(Acc) * product_.accumulators(), kAlignment); }
    size_t indices_offset() const {
        return best_offset() + round_up(sizeof(Acc) * product_.accumulators(), kAlignment);
    }

    // Accumulators of one output position.
    const Acc* largest(const X* image, int y, int x, std::byte* scratch) const {
        auto* vector = reinterpret_cast<X*>(scratch);
        auto* sum = reinterpret_cast<Acc*>(scratch + sum_offset());
        auto* best = reinterpret_cast<Acc*>(scratch + best_offset());
        auto* indices = reinterpret_cast<int32_t*>(scratch + indices_offset());
        for (int i = 0; i < spec_.pool_h * spec_.pool_w; ++i) {
            gather(spec_, image, y * spec_.pool_h + i / spec_.pool_w, x * spec_.pool_w + i % spec_.pool_w, vector);
            std::memcpy(sum, bias_.data(), sizeof(Acc) * bias_.size());
            product_.accumulate(vector, sum, indices);
            if (spec_.pool_h * spec_.pool_w == 1) return sum;
            for (int o = 0; o < spec_.kernels; ++o) best[o] = i == 0 ? sum[o] : std::max(best[o], sum[o]);
        }
        return best;
    }

    void finish(const Acc* acc, Out* out) const {
        if constexpr (std::is_same_v<Acc, Out>) {
            std::memcpy(out, acc, sizeof(Out) * spec_.kernels);
        } else {
            const Requantization& q = spec_.requantization;
            for (int o = 0; o < spec_.kernels; ++o) out[o] = requantize<Out>(acc[o], q.multiplier[o], q.shift[o]);
        }
    }

    LayerSpec spec_;
    Product product_;
    std::vector<Acc> bias_;  // zeros where there is none, and for the spare block
};

// Calls `build(x, out)` with the types of a layer's input and output.
template <class Build>
std::unique_ptr<Step> with_types(const LayerSpec& s, Build&& build) {
    if (s.input.dtype == DType::f32) return build(float{}, float{});
    const auto with_input = [&](auto x) {
        return with_type(s.output.dtype, [&](auto out) -> std::unique_ptr<Step> {
            if constexpr (std::is_same_v<decltype(out), float>) {
                return nullptr;
            } else {
                return build(x, out);
            }
        });
    };
    return s.input.dtype == DType::u8 ? with_input(uint8_t{}) : with_input(int8_t{});
}

template <class X>
using WeightOf = std::conditional_t<std::is_floating_point_v<X>, float, int8_t>;

template <bool kSelect>
std::unique_ptr<Step> make_dense(const LayerSpec& s) {
    return with_types(s, [&](auto x, auto out) -> std::unique_ptr<Step> {
        using X = decltype(x);
        return std::make_unique<Layer<X, decltype(out), Dense<X, WeightOf<X>, kSelect>>>(s);
    });
}

template <bool kSelect, int U, int V>
std::unique_ptr<Step> make_packed(const LayerSpec& s) {
    return with_types(s, [&](auto x, auto out) -> std::unique_ptr<Step> {
        using X = decltype(x);
        return std::make_unique<Layer<X, decltype(out), Packed<X, WeightOf<X>, kSelect, U, V>>>(s);
    });
}

template <bool kSelect>
std::unique_ptr<Step> layer_packed(const LayerSpec& s) {
    if (!s.packed) return nullptr;
    const int u = s.packed->u, v = s.packed->v;
    if (u == 1 && v == 1) return make_packed<kSelect, 1, 1>(s);
    if (u == 4 && v == 1) return make_packed<kSelect, 4, 1>(s);
    if (u == 1 && v == 16) return make_packed<kSelect, 1, 16>(s);
    if (u == 4 && v == 16) return make_packed<kSelect, 4, 16>(s);
    return make_packed<kSelect, 0, 0>(s);
}

}  // namespace

std::unique_ptr<Step> layer_dense(const LayerSpec& s) { return s.groups == 1 ? make_dense<false>(s) : nullptr; }

std::unique_ptr<Step> layer_dense_select(const LayerSpec& s) {
    return s.groups == 1 && !s.packed ? make_dense<true>(s) : nullptr;
}

std::unique_ptr<Step> layer_grouped(const LayerSpec& s) {
    if (s.groups == 1) return nullptr;
    return with_types(s, [&](auto x, auto out) -> std::unique_ptr<Step> {
        using X = decltype(x);
        return std::make_unique<Layer<X, decltype(out), Grouped<X, WeightOf<X>>>>(s);
    });
}

std::unique_ptr<Step> layer_sparse_dense(const LayerSpec& s) { return layer_packed<false>(s); }
std::unique_ptr<Step> layer_sparse_sparse(const LayerSpec& s) { return layer_packed<true>(s); }

}  // namespace cs::scalar
