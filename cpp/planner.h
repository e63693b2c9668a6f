// Chooses the kernel of every step.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/kernel.h"

namespace cs {

// How long a kernel takes for one sample.
struct Timing {
    const Kernel<LayerSpec>* kernel;
    double seconds;
};

template <class Spec>
struct Choice {
    const Kernel<Spec>* kernel = nullptr;
    std::unique_ptr<Step> step;
    std::vector<Timing> measured;  // every kernel that was tried, the chosen one first, then the fastest; or none
};

// The best kernel up to `tier` for an operation without modes.
template <class Spec>
Choice<Spec> choose(const Spec& spec, Tier tier) {
    const auto& table = kernels<Spec>();
    for (auto row = table.rbegin(); row != table.rend(); ++row) {
        if (row->tier > tier) continue;
        if (auto step = row->prepare(spec)) return {&*row, std::move(step), {}};
    }
    throw std::logic_error("no kernel can run this operation");
}

// The kernel for a layer in a given mode: the one of the best tier. A mode that the layer does not have (a dense weight
// has no sparse-dense form) falls to the next denser one.
Choice<LayerSpec> choose_layer(const LayerSpec& spec, Tier tier, Mode mode);

// Puts other data into the caches, as the other layers of a network do between two runs of one.
class CacheSweep {
  public:
    explicit CacheSweep(size_t bytes);  // that a network's weights take
    void run(size_t but) const;         // reads that much, but for so many bytes

  private:
    std::vector<uint64_t> memory_;
};

// Of a layer's weights as they are stored.
size_t weight_bytes(const LayerSpec& spec);

// The fastest kernel for a layer that uses no more sparsity than `limit`, measured on random inputs of which a share
// `activity` is other than zero; before each run the weights of other layers pass through the caches. Tried are the
// kernels of the best tier that has any for the layer, and of the next; of lower ones only what uses sparsity that
// those do not, where it saves nearly everything.
Choice<LayerSpec> measure_layer(const LayerSpec& spec, Tier tier, Mode limit, double activity, const CacheSweep& sweep);

// The kernel of that name. Throws std::invalid_argument, which names those that can run the layer, if it cannot.
Choice<LayerSpec> named_layer(const LayerSpec& spec, Tier tier, const std::string& name);

// The cheapest mode by a cost model, the same on every machine.
Mode cheapest_mode(const LayerSpec& spec, double activity);

// Seconds for one sample, as measured, or else by the cost model; with few inputs active where the kernel selects them
// and nothing is promised of them: then the layer may be done before another thread has woken.
double expected_seconds(const LayerSpec& spec, const Choice<LayerSpec>& choice, double activity);

}  // namespace cs
