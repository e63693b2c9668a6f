#include "planner.h"

namespace cs {
namespace {

// Expected time of one vector of inputs, in multiply-accumulates of the dense kernel. Rough by intent: it decides
// between modes whose times differ by factors.
double cost(const LayerSpec& spec, Mode mode, double activity) {
    constexpr double kRow = 6, kRoute = 4;  // overhead of visiting a packed row, and of routing one of its entries
    const double dense = static_cast<double>(spec.rows) * spec.kernels;
    if (mode == Mode::dense) return dense;
    if (!spec.packed) return activity * dense + spec.rows;  // select over dense rows
    const PackedWeight& p = *spec.packed;
    double active = 1;
    if (mode == Mode::sparse_sparse) {
        double idle = 1;  // chance that all U inputs of a row block are zero
        for (int i = 0; i < p.u; ++i) idle *= 1 - activity;
        active = 1 - idle;
    }
    const double row = kRow + p.sets * (kRoute + static_cast<double>(p.u) * p.v);
    return p.row_blocks * (active * row + (mode == Mode::sparse_sparse ? p.u : 0));
}

const Kernel<LayerSpec>* find(Tier tier, Mode mode, const LayerSpec& spec, std::unique_ptr<Step>& step) {
    const auto& table = kernels<LayerSpec>();
    for (auto row = table.rbegin(); row != table.rend(); ++row) {
        if (row->tier <= tier && row->mode == mode && (step = row->prepare(spec))) return &*row;
    }
    return nullptr;
}

Mode cheapest(const LayerSpec& spec, double activity) {
    Mode best = Mode::dense;
    for (Mode mode : {Mode::sparse_dense, Mode::sparse_sparse}) {
        if (spec.groups > 1 || (mode == Mode::sparse_dense && !spec.packed)) continue;
        if (cost(spec, mode, activity) < cost(spec, best, activity)) best = mode;
    }
    return best;
}

}  // namespace

Choice<LayerSpec> choose_layer(const LayerSpec& spec, Tier tier, Mode mode, double activity) {
    if (mode == Mode::none) mode = cheapest(spec, activity);
    for (Mode tried : {Mode::sparse_sparse, Mode::sparse_dense, Mode::dense}) {
        std::unique_ptr<Step> step;
        if (tried > mode) continue;
        if (const auto* kernel = find(tier, tried, spec, step)) return {kernel, std::move(step)};
    }
    throw std::logic_error("no kernel can run this layer");
}

}  // namespace cs
