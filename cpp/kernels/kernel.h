// The kernel table: every way to compute every operation, by tier.
//
// A kernel is a row of a table: a name, the tier it needs, the mode it computes in, and a function that prepares it for
// one layer (re-lays weights, sizes scratch) or returns null if it cannot run that layer. Dispatch, tests and benches
// all read these tables, so none can forget a kernel.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "../tensor.h"

namespace cs {

// Instruction sets, each including those before it. The exact features of each are listed in cpu_features.cpp.
enum class Tier : uint8_t { scalar, avx2, avx512, avx512vnni, amx };
enum class Mode : uint8_t { none, dense, sparse_dense, sparse_sparse };

// What a step works on: one pointer per operand, each to `samples` samples at the stride of their tensor.
struct Call {
    const std::byte* const* inputs;
    std::byte* output;
    std::byte* scratch;  // kAlignment-aligned, scratch_bytes() long, the caller's alone
    int64_t samples;
    size_t caller_bytes;  // of one sample of the caller's array, for the step that reads it
};

// A kernel prepared for one node of one network. Immutable, so that many threads may run it at once.
class Step {
  public:
    virtual ~Step() = default;
    virtual void run(const Call& call) const noexcept = 0;
    virtual size_t scratch_bytes() const { return 0; }
};

struct Window {
    int kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, pad_top = 0, pad_left = 0;
};

// Exact scaling, clamp((acc * multiplier + 2**(shift - 1)) >> shift); empty for float32 and for int32 results.
struct Requantization {
    std::vector<uint16_t> multiplier;
    std::vector<uint8_t> shift;
    bool empty() const { return multiplier.empty(); }
};

// A weight matrix [rows, kernels] packed by complementary sparsity: weights [row_blocks, sets, V, U], and for every
// (row block, set) the slot that owns it and the kernel block in that slot, or -1 for nobody. See docs/format.md.
struct PackedWeight {
    const void* weights;
    std::vector<int32_t> slot, owner;  // [row_blocks, sets]
    int u, v, row_blocks, sets, slots, kernel_blocks;
};

// Convolution or linear layer (a linear layer is a 1x1 convolution of a 1x1 image), with what follows it and can be
// computed exactly in the same pass: bias, max-pool before requantization, requantization.
struct LayerSpec {
    Tensor input, output;
    Window window;
    int conv_height, conv_width;  // positions before pooling
    int pool_h = 1, pool_w = 1;   // max-pool window, stride equal to it, no padding; 1 x 1 for none
    int groups = 1, rows, kernels;
    int winners;        // the most inputs of a position that are not 0; all channels if that is unknown
    const void* dense;  // [rows, kernels], int8 or float32
    std::optional<PackedWeight> packed;  // the same matrix
    const void* bias;                    // [kernels], int32 or float32, or null
    Requantization requantization;
};

// Whether a layer is one vector of inputs to one vector of outputs (with padding, its window may lie beside the input).
inline bool is_linear(const LayerSpec& s) {
    return s.groups == 1 && s.rows == s.input.size() && s.input.positions() == 1 && s.conv_height * s.conv_width == 1 &&
           s.window.pad_top == 0 && s.window.pad_left == 0;
}

// Lines of the image, and their positions, with the padding that windows reach on any side.
inline int padded_height(const LayerSpec& s) {
    return std::max(s.input.height + s.window.pad_top, (s.conv_height - 1) * s.window.stride_h + s.window.kernel_h);
}
inline int padded_width(const LayerSpec& s) {
    return std::max(s.input.width + s.window.pad_left, (s.conv_width - 1) * s.window.stride_w + s.window.kernel_w);
}

// The caller's array: float32, which an integer network quantizes, or the network's own type.
struct InputSpec {
    Tensor output;
    float inv_scale;
};

struct KwtaSpec {
    Tensor tensor;
    int64_t k;
    bool global;
    std::vector<float> factor;  // empty, or one per element of a scope
    int64_t scope() const { return global ? tensor.size() : tensor.channels; }
    int64_t scopes() const { return global ? 1 : tensor.positions(); }
};

struct ReluSpec {
    Tensor tensor;
};

struct ClipSpec {
    Tensor tensor;
    float low, high;  // infinite for no bound
};

// table[x], the index the byte of an 8-bit integer.
struct LookupSpec {
    Tensor input, output;
    std::vector<uint8_t> table;  // 256 bytes, of the output's type
};

enum class Function : uint8_t { sigmoid, tanh, silu, hard_sigmoid, hard_swish, elu, leaky_relu };

struct ActivationSpec {
    Tensor tensor;  // float32
    Function function;
    double alpha;
};

struct AffineSpec {
    Tensor tensor;
    std::vector<float> scale, shift;
};

struct PoolSpec {
    Tensor input, output;
    Window window;
    bool average;
    bool count_padding;  // whether a mean divides by the whole window, or by what lies on the image
    Requantization
        requantization;  // of an integer average: one pair, or one for every number of elements it divides by
};

struct AddSpec {
    Tensor first, second, output;
    Requantization requantization;  // two multipliers, one shift
};

// first * second, of which the second may have one position only.
struct ProductSpec {
    Tensor first, second, output;
    Requantization requantization;  // one pair
};

struct ConcatSpec {
    std::vector<Tensor> inputs;
    Tensor output;
    Requantization requantization;  // one pair per input
};

struct DequantizeSpec {
    Tensor input, output;
    std::vector<double> scale;  // one, or one per channel
};

// float32 within the network to 8-bit integers, as the input.
struct QuantizeSpec {
    Tensor input, output;
    float inv_scale;
};

struct SoftmaxSpec {
    Tensor tensor;
};

struct GeluSpec {
    Tensor tensor;
    bool tanh;  // the approximation by tanh instead of erf
};

struct LayerNormSpec {
    Tensor tensor;
    std::vector<float> scale, shift;  // [channels]
    double epsilon;
};

// x / (bias + alpha / size * squares)**beta, squares summed over `size` channels around each.
struct LocalResponseNormSpec {
    Tensor tensor;
    int size;
    double alpha, beta, bias;
};

// Per row of the images: matrices [width, channels] times [channels, columns], or the transpose of [columns, channels].
struct MatMulSpec {
    Tensor first, second, output;
    bool transposed;
};

struct TransposeSpec {
    Tensor input, output;
    std::array<int, 3> axes;  // of the input, in the order of the output
};

template <class Spec>
struct Kernel {
    const char* name;
    Tier tier;
    Mode mode;
    std::unique_ptr<Step> (*prepare)(const Spec&);
};

// The table of an operation, best tiers last. Defined in kernels/table.cpp.
template <class Spec>
const std::vector<Kernel<Spec>>& kernels();

}  // namespace cs
