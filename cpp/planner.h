// Chooses the kernel of every step.
#pragma once

#include <memory>
#include <stdexcept>

#include "kernels/kernel.h"

namespace cs {

template <class Spec>
struct Choice {
    const Kernel<Spec>* kernel;
    std::unique_ptr<Step> step;
};

// The best kernel up to `tier` for an operation without modes.
template <class Spec>
Choice<Spec> choose(const Spec& spec, Tier tier) {
    const auto& table = kernels<Spec>();
    for (auto row = table.rbegin(); row != table.rend(); ++row) {
        if (row->tier > tier) continue;
        if (auto step = row->prepare(spec)) return {&*row, std::move(step)};
    }
    throw std::logic_error("no kernel can run this operation");
}

// The best kernel up to `tier` for a layer. A mode that the layer does not have (a dense weight has no sparse-dense
// form) falls to the next denser one. Mode::none lets the cost model choose; activity is the expected share of inputs
// that are not zero.
Choice<LayerSpec> choose_layer(const LayerSpec& spec, Tier tier, Mode mode, double activity);

}  // namespace cs
