#include "split.h"

#include <algorithm>
#include <array>
#include <limits>

namespace cs {
namespace {

constexpr int kKernelStep = 64;  // parts of a linear layer begin at whole vectors of results

// Bounds of `parts` nearly equal pieces of 0 ... count; fewer if there is not enough.
std::vector<int> equal_parts(int count, int parts) {
    std::vector<int> bounds;
    for (int i = 0; i <= parts; ++i) {
        const int bound = static_cast<int>(int64_t{count} * i / parts);
        if (bounds.empty() || bound > bounds.back()) bounds.push_back(bound);
    }
    return bounds;
}

// --- convolutions: rows of results ---

// The layer that makes rows first ... end of the results, and the line of the image at which its input begins.
LayerSpec rows_of(const LayerSpec& s, int first, int end, int& first_line) {
    LayerSpec part = s;
    const Window& w = s.window;
    const int conv_first = first * s.pool_h, conv_end = std::min(end * s.pool_h, s.conv_height);
    const int begin = conv_first * w.stride_h - w.pad_top;
    first_line = std::max(0, begin);
    const int last_line = std::min(s.input.height, (conv_end - 1) * w.stride_h - w.pad_top + w.kernel_h);
    part.window.pad_top = first_line - begin;
    part.input.height = std::max(1, last_line - first_line);
    part.conv_height = conv_end - conv_first;
    part.output.height = end - first;
    return part;
}

std::vector<SplitStep::Part> split_rows(const LayerSpec& s, const Kernel<LayerSpec>& kernel, int parts) {
    std::vector<SplitStep::Part> result;
    std::vector<std::array<int, 4>> shapes;  // of the parts before
    const std::vector<int> bounds = equal_parts(s.output.height, parts);
    const size_t in_line = Tensor{s.input.dtype, 1, s.input.width, s.input.channels}.bytes();
    const size_t out_line = Tensor{s.output.dtype, 1, s.output.width, s.output.channels}.bytes();
    for (size_t i = 0; i + 1 < bounds.size(); ++i) {
        int line;
        const LayerSpec part = rows_of(s, bounds[i], bounds[i + 1], line);
        shapes.push_back({part.input.height, part.window.pad_top, part.conv_height, part.output.height});
        const auto same = std::find(shapes.begin(), shapes.end(), shapes.back()) - shapes.begin();
        std::shared_ptr<const Step> step =
            static_cast<size_t>(same) < i ? result[same].step : std::shared_ptr<const Step>(kernel.prepare(part));
        result.push_back({std::move(step), line * in_line, bounds[i] * out_line, 0});
    }
    return result;
}

// --- linear layers: kernels ---

// Where sets begin to own kernels, if every set owns kernel blocks that come after those of the set before; else empty.
std::vector<int> first_blocks(const PackedWeight& p) {
    std::vector<int> first(p.sets, std::numeric_limits<int>::max()), last(p.sets, -1);
    for (size_t i = 0; i < p.owner.size(); ++i) {
        if (p.owner[i] < 0) continue;
        const size_t set = i % p.sets;
        first[set] = std::min(first[set], p.owner[i]);
        last[set] = std::max(last[set], p.owner[i]);
    }
    for (int t = 0; t + 1 < p.sets; ++t) {
        if (last[t] < 0 || last[t + 1] < 0 || last[t] >= first[t + 1]) return {};
    }
    return first;
}

// Bounds of parts in kernels, and the sets they begin with if the weight is packed.
struct KernelBounds {
    std::vector<int> kernels, sets;
};

KernelBounds kernel_bounds(const LayerSpec& s, int parts) {
    KernelBounds found;
    if (!s.packed) {
        found.kernels = equal_parts((s.kernels + kKernelStep - 1) / kKernelStep, parts);
        for (int& bound : found.kernels) bound = std::min(bound * kKernelStep, s.kernels);
        return found;
    }
    const std::vector<int> first = first_blocks(*s.packed);
    if (first.empty()) return found;
    found.sets = equal_parts(s.packed->sets, parts);
    for (int set : found.sets) found.kernels.push_back(set < s.packed->sets ? first[set] * s.packed->v : s.kernels);
    found.kernels.front() = 0;
    return found;
}

// Columns first ... end of a matrix [rows, columns] of elements of so many bytes.
std::vector<std::byte> columns_of(const void* matrix, int64_t rows, int64_t columns, int64_t first, int64_t end,
                                  int64_t element) {
    std::vector<std::byte> result(rows * (end - first) * element);
    const auto* from = static_cast<const std::byte*>(matrix);
    for (int64_t row = 0; row < rows; ++row) {
        const std::byte* begin = from + (row * columns + first) * element;
        std::copy_n(begin, (end - first) * element, result.begin() + row * (end - first) * element);
    }
    return result;
}

// Columns first ... end of a matrix [rows, columns].
std::vector<int32_t> columns_of(const std::vector<int32_t>& matrix, int columns, int first, int end) {
    std::vector<int32_t> result;
    for (size_t i = 0; i < matrix.size(); ++i) {
        const int column = static_cast<int>(i % columns);
        if (column >= first && column < end) result.push_back(matrix[i]);
    }
    return result;
}

std::unique_ptr<Step> prepare_kernels(const LayerSpec& s, const Kernel<LayerSpec>& kernel, int first, int end,
                                      int first_set, int end_set) {
    LayerSpec part = s;
    const auto element = static_cast<int64_t>(element_bytes(s.input.dtype == DType::f32 ? DType::f32 : DType::s8));
    part.kernels = part.output.channels = end - first;
    const auto dense = columns_of(s.dense, s.rows, s.kernels, first, end, element);
    part.dense = dense.data();
    if (s.bias) part.bias = static_cast<const std::byte*>(s.bias) + 4 * int64_t{first};
    const Requantization& r = s.requantization;
    if (!r.empty()) {
        part.requantization.multiplier.assign(r.multiplier.begin() + first, r.multiplier.begin() + end);
        part.requantization.shift.assign(r.shift.begin() + first, r.shift.begin() + end);
    }
    std::vector<std::byte> weights;
    if (s.packed) {
        PackedWeight& p = *part.packed;
        const int64_t entry = int64_t{p.v} * p.u * element;
        weights = columns_of(p.weights, p.row_blocks, p.sets, first_set, end_set, entry);
        p.slot = columns_of(s.packed->slot, p.sets, first_set, end_set);
        p.owner = columns_of(s.packed->owner, p.sets, first_set, end_set);
        for (int32_t& owner : p.owner) owner = owner < 0 ? owner : owner - first / p.v;
        p.weights = weights.data();
        p.sets = end_set - first_set;
        p.kernel_blocks = (part.kernels + p.v - 1) / p.v;
    }
    return kernel.prepare(part);
}

std::vector<SplitStep::Part> split_kernels(const LayerSpec& s, const Kernel<LayerSpec>& kernel, int parts) {
    std::vector<SplitStep::Part> result;
    const KernelBounds bounds = kernel_bounds(s, parts);
    for (size_t i = 0; i + 1 < bounds.kernels.size(); ++i) {
        const int first = bounds.kernels[i], end = bounds.kernels[i + 1];
        const int first_set = s.packed ? bounds.sets[i] : 0, end_set = s.packed ? bounds.sets[i + 1] : 0;
        auto step = prepare_kernels(s, kernel, first, end, first_set, end_set);
        result.push_back({std::move(step), 0, first * element_bytes(s.output.dtype), 0});
    }
    return result;
}

}  // namespace

SplitStep::SplitStep(const Tensor& input, const Tensor& output, std::vector<Part> parts)
    : input_(input), output_(output), parts_(std::move(parts)) {
    for (Part& part : parts_) {
        part.scratch_offset = scratch_bytes_;
        scratch_bytes_ += round_up(part.step->scratch_bytes(), kAlignment);
    }
}

void SplitStep::run(const Call& call) const noexcept {
    for (int64_t part = 0; part < parts(); ++part) run_part(call, part);
}

void SplitStep::run_part(const Call& call, int64_t index) const noexcept {
    const Part& part = parts_[index];
    for (int64_t n = 0; n < call.samples; ++n) {
        const std::byte* inputs[] = {call.inputs[0] + n * input_.stride() + part.input_offset};
        std::byte* output = call.output + n * output_.stride() + part.output_offset;
        part.step->run({inputs, output, call.scratch + part.scratch_offset, 1, call.caller_bytes});
    }
}

std::unique_ptr<SplitStep> split_layer(const LayerSpec& s, const Kernel<LayerSpec>& kernel, int parts) {
    auto made = is_linear(s) ? split_kernels(s, kernel, parts) : split_rows(s, kernel, parts);
    const bool can_run = std::all_of(made.begin(), made.end(), [](const auto& part) { return part.step != nullptr; });
    if (made.size() < 2 || !can_run) return nullptr;
    return std::make_unique<SplitStep>(s.input, s.output, std::move(made));
}

}  // namespace cs
