// The Python module csengine._native: builds programs from a graph that Python has checked, and runs them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>

#include "cpu_features.h"
#include "kernels/arithmetic.h"
#include "planner.h"
#include "program.h"

namespace py = pybind11;

namespace cs {
namespace {

const char* numpy_name(DType dtype) {
    switch (dtype) {
        case DType::u8:
            return "uint8";
        case DType::s8:
            return "int8";
        case DType::s32:
            return "int32";
        default:
            return "float32";
    }
}

DType dtype_from_name(const std::string& name) {
    for (DType dtype : {DType::f32, DType::u8, DType::s8, DType::s32}) {
        if (name == numpy_name(dtype)) return dtype;
    }
    throw std::invalid_argument("unknown element type '" + name + "'");
}

Function function_from_name(const std::string& name) {
    static const std::map<std::string, Function> known = {{"sigmoid", Function::sigmoid},
                                                          {"tanh", Function::tanh},
                                                          {"silu", Function::silu},
                                                          {"hard_sigmoid", Function::hard_sigmoid},
                                                          {"hard_swish", Function::hard_swish},
                                                          {"elu", Function::elu},
                                                          {"leaky_relu", Function::leaky_relu}};
    const auto found = known.find(name);
    if (found == known.end()) throw std::invalid_argument("unknown function '" + name + "'");
    return found->second;
}

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
std::vector<T> to_vector(const Array<T>& array) {
    return {array.data(), array.data() + array.size()};
}

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

Requantization requantization(const std::optional<std::pair<Array<uint16_t>, Array<uint8_t>>>& arrays) {
    if (!arrays) return {};
    return {to_vector(arrays->first), to_vector(arrays->second)};
}

using Requantized = std::optional<std::pair<Array<uint16_t>, Array<uint8_t>>>;

// The three arrays of a packed weight, and how many kernels it has.
struct Packed {
    py::array weights;
    Array<uint8_t> kid;
    Array<int32_t> members;
};

PackedWeight packed_weight(const Packed& packed) {
    require(packed.weights.ndim() == 4 && packed.kid.ndim() == 2 && packed.members.ndim() == 2, "packed: wrong axes");
    constexpr uint8_t kNobody = 255;
    PackedWeight result{};
    result.weights = packed.weights.data();
    result.row_blocks = static_cast<int>(packed.weights.shape(0));
    result.sets = static_cast<int>(packed.weights.shape(1));
    result.v = static_cast<int>(packed.weights.shape(2));
    result.u = static_cast<int>(packed.weights.shape(3));
    const auto kid = packed.kid.unchecked<2>();
    const auto members = packed.members.unchecked<2>();
    require(kid.shape(0) == result.row_blocks && kid.shape(1) == result.sets, "packed: wrong kid");
    require(members.shape(0) == result.sets, "packed: wrong members");
    result.slots = static_cast<int>(members.shape(1));
    for (int r = 0; r < result.row_blocks; ++r) {
        for (int t = 0; t < result.sets; ++t) {
            require(kid(r, t) == kNobody || kid(r, t) < members.shape(1), "packed: kernel id out of range");
            const bool owned = kid(r, t) != kNobody;
            result.slot.push_back(owned ? kid(r, t) : -1);
            result.owner.push_back(owned ? members(t, kid(r, t)) : -1);
        }
    }
    return result;
}

constexpr int kMaxParts = 16;

class Builder {
  public:
    // measure: take the fastest kernels that use no more sparsity than `mode`. Otherwise kernels of exactly that mode
    // where a layer has it; "" lets the cost model choose the mode. split_above: seconds of a layer from which on
    // threads share it. weight_bytes: of all layers.
    Builder(const std::string& tier, const std::string& mode, bool measure, bool keep, int threads, double split_above,
            size_t weight_bytes)
        : tier_(tier_from_name(tier)),
          mode_(mode_from_name(mode)),
          measure_(measure),
          keep_(keep),
          threads_(threads),
          split_above_(split_above),
          sweep_(measure ? weight_bytes : 0) {
        require(is_available(tier_), "this machine cannot run that tier");
    }

    int tensor(const std::string& dtype, int height, int width, int channels) {
        const int index = static_cast<int>(tensors_.size());
        tensors_.push_back({{dtype_from_name(dtype), height, width, channels}, index});
        return index;
    }

    // The same memory in another shape.
    int view(int source, int height, int width, int channels) {
        const ProgramTensor& from = tensors_.at(source);
        tensors_.push_back({{from.type.dtype, height, width, channels}, from.home});
        return static_cast<int>(tensors_.size()) - 1;
    }

    void input(const std::string& node, int output, float inv_scale) {
        add(node, InputSpec{at(output), inv_scale}, {}, output);
    }

    void layer(const std::string& node, int input, int output, std::array<int, 6> window, std::array<int, 2> places,
               std::array<int, 2> pool, int groups, const py::array& dense, const std::optional<Packed>& packed,
               const std::optional<py::array>& bias, const Requantized& scaling, double activity, int winners,
               const std::string& kernel) {
        LayerSpec spec{};
        spec.input = at(input);
        spec.output = at(output);
        spec.window = to_window(window);
        spec.conv_height = places[0];
        spec.conv_width = places[1];
        spec.pool_h = pool[0];
        spec.pool_w = pool[1];
        spec.groups = groups;
        spec.rows = static_cast<int>(dense.shape(0));
        spec.kernels = static_cast<int>(dense.shape(1));
        spec.winners = std::min(winners, spec.input.channels);
        spec.dense = dense.data();
        if (packed) {
            spec.packed = packed_weight(*packed);
            spec.packed->kernel_blocks = (spec.kernels + spec.packed->v - 1) / spec.packed->v;
        }
        if (bias) {
            require(bias->size() == spec.kernels, "layer: wrong bias");
            spec.bias = bias->data();
        }
        spec.requantization = requantization(scaling);
        auto choice = kernel.empty() ? choose(spec, activity) : named_layer(spec, tier_, kernel);
        std::unique_ptr<SplitStep> split;
        if (threads_ > 1 && expected_seconds(spec, choice, activity) > split_above_) {
            split = split_layer(spec, *choice.kernel, std::min(threads_, kMaxParts));
        }
        const SplitStep* parts = split.get();
        if (split) choice.step = std::move(split);
        push(node, std::move(choice), {input}, output);
        steps_.back().split = parts;
    }

    void kwta(const std::string& node, int input, int output, int64_t k, bool global, const Array<float>& factor) {
        add(node, KwtaSpec{at(input), k, global, to_vector(factor)}, {input}, output);
    }

    void relu(const std::string& node, int input, int output) { add(node, ReluSpec{at(input)}, {input}, output); }

    void clip(const std::string& node, int input, int output, float low, float high) {
        add(node, ClipSpec{at(input), low, high}, {input}, output);
    }

    void affine(const std::string& node, int input, int output, const Array<float>& scale, const Array<float>& shift) {
        add(node, AffineSpec{at(input), to_vector(scale), to_vector(shift)}, {input}, output);
    }

    void pool(const std::string& node, int input, int output, std::array<int, 6> window, bool average,
              bool count_padding, const Requantized& scaling) {
        add(node, PoolSpec{at(input), at(output), to_window(window), average, count_padding, requantization(scaling)},
            {input}, output);
    }

    void add_tensors(const std::string& node, int first, int second, int output, const Requantized& scaling) {
        add(node, AddSpec{at(first), at(second), at(output), requantization(scaling)}, {first, second}, output);
    }

    void product(const std::string& node, int first, int second, int output, const Requantized& scaling) {
        add(node, ProductSpec{at(first), at(second), at(output), requantization(scaling)}, {first, second}, output);
    }

    void concat(const std::string& node, const std::vector<int>& inputs, int output, const Requantized& scaling) {
        ConcatSpec spec{{}, at(output), requantization(scaling)};
        for (int input : inputs) spec.inputs.push_back(at(input));
        add(node, spec, inputs, output);
    }

    void dequantize(const std::string& node, int input, int output, const Array<double>& scale) {
        add(node, DequantizeSpec{at(input), at(output), to_vector(scale)}, {input}, output);
    }

    void quantize(const std::string& node, int input, int output, float inv_scale) {
        add(node, QuantizeSpec{at(input), at(output), inv_scale}, {input}, output);
    }

    void lookup(const std::string& node, int input, int output, const Array<uint8_t>& table) {
        require(table.size() == 256, "lookup: expected a table of 256 bytes");
        add(node, LookupSpec{at(input), at(output), to_vector(table)}, {input}, output);
    }

    void activation(const std::string& node, int input, int output, const std::string& function, double alpha) {
        add(node, ActivationSpec{at(input), function_from_name(function), alpha}, {input}, output);
    }

    void softmax(const std::string& node, int input, int output) { add(node, SoftmaxSpec{at(input)}, {input}, output); }

    void gelu(const std::string& node, int input, int output, bool tanh) {
        add(node, GeluSpec{at(input), tanh}, {input}, output);
    }

    void layer_norm(const std::string& node, int input, int output, const Array<float>& scale,
                    const Array<float>& shift, double epsilon) {
        add(node, LayerNormSpec{at(input), to_vector(scale), to_vector(shift), epsilon}, {input}, output);
    }

    void local_response_norm(const std::string& node, int input, int output, int size, double alpha, double beta,
                             double bias) {
        add(node, LocalResponseNormSpec{at(input), size, alpha, beta, bias}, {input}, output);
    }

    void matmul(const std::string& node, int first, int second, int output, bool transposed) {
        add(node, MatMulSpec{at(first), at(second), at(output), transposed}, {first, second}, output);
    }

    void transpose(const std::string& node, int input, int output, std::array<int, 3> axes) {
        add(node, TransposeSpec{at(input), at(output), axes}, {input}, output);
    }

    std::unique_ptr<Program> build(int output) {
        at(output);
        return std::make_unique<Program>(std::move(tensors_), std::move(steps_), output, threads_, keep_);
    }

  private:
    static Window to_window(const std::array<int, 6>& w) { return {w[0], w[1], w[2], w[3], w[4], w[5]}; }

    const Tensor& at(int tensor) const { return tensors_.at(tensor).type; }

    Choice<LayerSpec> choose(const LayerSpec& spec, double activity) const {
        const Mode limit = mode_ == Mode::none ? Mode::sparse_sparse : mode_;
        if (measure_) return measure_layer(spec, tier_, limit, activity, sweep_);
        return choose_layer(spec, tier_, mode_ == Mode::none ? cheapest_mode(spec, activity) : mode_);
    }

    template <class Spec>
    void add(const std::string& node, const Spec& spec, std::vector<int> inputs, int output) {
        push(node, cs::choose(spec, tier_), std::move(inputs), output);
    }

    template <class Spec>
    void push(const std::string& node, Choice<Spec> choice, std::vector<int> inputs, int output) {
        const Kernel<Spec>& kernel = *choice.kernel;
        steps_.push_back({node, std::move(choice.step), kernel.name, kernel.tier, kernel.mode, std::move(inputs),
                          output, nullptr, std::move(choice.measured)});
    }

    Tier tier_;
    Mode mode_;
    bool measure_, keep_;
    int threads_;
    double split_above_;
    CacheSweep sweep_;
    std::vector<ProgramTensor> tensors_;
    std::vector<ProgramStep> steps_;
};

py::array make_result(const Tensor& type, int64_t batch) {
    return with_type(type.dtype, [&](auto x) -> py::array {
        return py::array_t<decltype(x)>(std::vector<py::ssize_t>{batch, type.size()});
    });
}

struct Batch {
    const std::byte* data;
    size_t bytes;  // of one sample
    int64_t size;

    // Python has checked the type and the shape; the last axes are one sample.
    explicit Batch(const py::array& x) : data(static_cast<const std::byte*>(x.data())), bytes(0), size(x.shape(0)) {
        require(x.flags() & py::array::c_style, "input: expected a contiguous array");
        if (size > 0) bytes = x.nbytes() / size;
    }
};

// Whether every value is finite; float32 only.
bool is_finite(const Batch& x) {
    const auto* bits = reinterpret_cast<const uint32_t*>(x.data);
    const size_t count = x.bytes / sizeof(uint32_t) * x.size;
    uint32_t found = 0;
    for (size_t i = 0; i < count; ++i) found |= (bits[i] & 0x7fffffffu) >= 0x7f800000u;
    return found == 0;
}

py::object run(const Program& program, const py::array& x) {
    const Batch batch(x);
    py::array y = make_result(program.output(), batch.size);
    auto* result = static_cast<std::byte*>(y.mutable_data());
    const bool is_float = x.dtype().kind() == 'f';
    bool finite = true;
    {
        py::gil_scoped_release release;
        finite = !is_float || is_finite(batch);
        if (finite) program.run(batch.data, batch.bytes, result, batch.size);
    }
    if (!finite) return py::none();
    return std::move(y);
}

std::vector<py::array> trace(const Program& program, const py::array& x) {
    const Batch batch(x);
    std::vector<py::array> arrays;
    std::vector<std::byte*> results;
    for (const ProgramTensor& tensor : program.tensors()) {
        arrays.push_back(make_result(tensor.type, batch.size));
        results.push_back(static_cast<std::byte*>(arrays.back().mutable_data()));
    }
    program.trace(batch.data, batch.bytes, results, batch.size);
    return arrays;
}

// The result [B, n] of at most one chunk over poisoned memory, and the steps that wrote where they must not.
std::pair<py::array, std::vector<std::string>> audit(const Program& program, const py::array& x, uint8_t poison) {
    const Batch batch(x);
    py::array y = make_result(program.output(), std::min(batch.size, program.chunk()));
    auto* result = static_cast<std::byte*>(y.mutable_data());
    auto guilty = program.audit(batch.data, batch.bytes, result, batch.size, static_cast<std::byte>(poison));
    return {std::move(y), std::move(guilty)};
}

std::vector<double> profile(const Program& program, const py::array& x) {
    const Batch batch(x);
    py::array y = make_result(program.output(), batch.size);
    return program.profile(batch.data, batch.bytes, static_cast<std::byte*>(y.mutable_data()), batch.size);
}

using Tried = std::tuple<std::string, std::string, std::string, double>;

// Node, kernel, tier and mode of every step, and the kernels that were tried for it: kernel, tier, mode, seconds.
std::vector<std::tuple<std::string, std::string, std::string, std::string, std::vector<Tried>>> choices(
    const Program& program) {
    std::vector<std::tuple<std::string, std::string, std::string, std::string, std::vector<Tried>>> rows;
    for (const ProgramStep& step : program.steps()) {
        std::vector<Tried> tried;
        for (const Timing& t : step.measured) {
            tried.emplace_back(t.kernel->name, name(t.kernel->tier), name(t.kernel->mode), t.seconds);
        }
        rows.emplace_back(step.node, step.kernel, name(step.tier), name(step.mode), std::move(tried));
    }
    return rows;
}

using KernelRow = std::tuple<std::string, std::string, std::string, std::string>;

template <class Spec>
void list_kernels(const char* operation, std::vector<KernelRow>& rows) {
    for (const auto& kernel : kernels<Spec>()) {
        rows.emplace_back(operation, kernel.name, name(kernel.tier), name(kernel.mode));
    }
}

// Operation, kernel, tier and mode of every kernel there is.
std::vector<KernelRow> kernel_table() {
    std::vector<KernelRow> rows;
    list_kernels<InputSpec>("input", rows);
    list_kernels<LayerSpec>("layer", rows);
    list_kernels<KwtaSpec>("kwta", rows);
    list_kernels<ReluSpec>("relu", rows);
    list_kernels<ClipSpec>("clip", rows);
    list_kernels<LookupSpec>("lookup", rows);
    list_kernels<ActivationSpec>("activation", rows);
    list_kernels<AffineSpec>("affine", rows);
    list_kernels<PoolSpec>("pool", rows);
    list_kernels<AddSpec>("add", rows);
    list_kernels<ProductSpec>("product", rows);
    list_kernels<ConcatSpec>("concat", rows);
    list_kernels<DequantizeSpec>("dequantize", rows);
    list_kernels<QuantizeSpec>("quantize", rows);
    list_kernels<SoftmaxSpec>("softmax", rows);
    list_kernels<GeluSpec>("gelu", rows);
    list_kernels<LayerNormSpec>("layer_norm", rows);
    list_kernels<LocalResponseNormSpec>("local_response_norm", rows);
    list_kernels<MatMulSpec>("matmul", rows);
    list_kernels<TransposeSpec>("transpose", rows);
    return rows;
}

std::vector<std::pair<std::string, bool>> tiers() {
    std::vector<std::pair<std::string, bool>> result;
    for (Tier tier : {Tier::scalar, Tier::avx2, Tier::avx512, Tier::avx512vnni, Tier::amx}) {
        result.emplace_back(name(tier), is_available(tier));
    }
    return result;
}

}  // namespace
}  // namespace cs

PYBIND11_MODULE(_native, m) {
    using namespace cs;
    m.def("tiers", &tiers, "Every tier, and whether this machine can run it.");
    m.def("kernel_table", &kernel_table, "Operation, kernel, tier and mode of every kernel.");

    py::class_<Packed>(m, "Packed").def(py::init<py::array, Array<uint8_t>, Array<int32_t>>());

    py::class_<Program>(m, "Program")
        .def_property_readonly("arena_bytes", &Program::arena_bytes)
        .def("run", &run, "The result [B, n], or None if the input is not finite.")
        .def("trace", &trace, "Every tensor [B, n].")
        .def("profile", &profile, "Seconds of every step.")
        .def("audit", &audit, "For tests: the result over poisoned memory, and steps that wrote where they must not.")
        .def("choices", &choices, "Node, kernel, tier, mode and the kernels tried of every step.");

    py::class_<Builder>(m, "Builder")
        .def(py::init<const std::string&, const std::string&, bool, bool, int, double, size_t>())
        .def("tensor", &Builder::tensor)
        .def("view", &Builder::view)
        .def("input", &Builder::input)
        .def("layer", &Builder::layer)
        .def("kwta", &Builder::kwta)
        .def("relu", &Builder::relu)
        .def("clip", &Builder::clip)
        .def("lookup", &Builder::lookup)
        .def("activation", &Builder::activation)
        .def("affine", &Builder::affine)
        .def("pool", &Builder::pool)
        .def("add", &Builder::add_tensors)
        .def("product", &Builder::product)
        .def("concat", &Builder::concat)
        .def("dequantize", &Builder::dequantize)
        .def("quantize", &Builder::quantize)
        .def("softmax", &Builder::softmax)
        .def("gelu", &Builder::gelu)
        .def("layer_norm", &Builder::layer_norm)
        .def("local_response_norm", &Builder::local_response_norm)
        .def("matmul", &Builder::matmul)
        .def("transpose", &Builder::transpose)
        .def("build", &Builder::build);
}
