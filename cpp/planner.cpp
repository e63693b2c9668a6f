#include "planner.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <random>

#include "arena.h"

namespace cs {
namespace {

constexpr int kRuns = 9;         // measured runs of a candidate
constexpr double kHopeless = 2;  // a first run this much slower than the best candidate's best ends the matter

constexpr Mode kModes[] = {Mode::sparse_sparse, Mode::sparse_dense, Mode::dense};

// The kernel of the best tier that computes the layer in exactly this mode; none if there is none.
Choice<LayerSpec> find(const LayerSpec& spec, Tier tier, Mode mode) {
    const auto& table = kernels<LayerSpec>();
    for (auto row = table.rbegin(); row != table.rend(); ++row) {
        if (row->tier > tier || row->mode != mode) continue;
        if (auto step = row->prepare(spec)) return {&*row, std::move(step)};
    }
    return {};
}

// One random sample, of whose values a share is other than zero.
void fill_random(const Tensor& tensor, double activity, std::byte* to) {
    std::minstd_rand random(1);
    std::bernoulli_distribution active(activity);
    for (int64_t i = 0; i < tensor.size(); ++i) {
        const auto value = active(random) ? 1 + random() % 127 : 0;
        if (tensor.dtype == DType::f32) {
            reinterpret_cast<float*>(to)[i] = static_cast<float>(value);
        } else {
            to[i] = static_cast<std::byte>(value);
        }
    }
}

class Stopwatch {
  public:
    explicit Stopwatch(const LayerSpec& spec, double activity)
        : input_(make(spec.input.stride() + kSlack)), output_(make(spec.output.stride() + kSlack)) {
        fill_random(spec.input, activity, input_.get());
    }

    // Seconds of the fastest run; gives up early on a step that cannot reach `best`.
    double time(const Step& step, double best) const {
        const Arena scratch = make(step.scratch_bytes() + kSlack);
        const std::byte* inputs[] = {input_.get()};
        double fastest = std::numeric_limits<double>::infinity();
        for (int i = 0; i < kRuns; ++i) {
            const auto start = std::chrono::steady_clock::now();
            step.run({inputs, output_.get(), scratch.get(), 1, 0});
            const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
            fastest = std::min(fastest, elapsed.count());
            if (i == 1 && fastest > kHopeless * best) break;
        }
        return fastest;
    }

  private:
    static Arena make(size_t bytes) {
        Arena memory = make_arena(bytes);
        if (!memory) throw std::bad_alloc();
        std::memset(memory.get(), 0, bytes);
        return memory;
    }

    Arena input_, output_;
};

// Expected time of one vector of inputs, in multiply-accumulates of the scalar dense kernel. Rough by intent: it
// decides between modes whose times differ by factors.
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

}  // namespace

Choice<LayerSpec> choose_layer(const LayerSpec& spec, Tier tier, Mode mode) {
    for (Mode tried : kModes) {
        if (tried > mode) continue;
        if (auto choice = find(spec, tier, tried); choice.kernel) return choice;
    }
    throw std::logic_error("no kernel can run this layer");
}

Choice<LayerSpec> measure_layer(const LayerSpec& spec, Tier tier, Mode limit, double activity) {
    const Stopwatch stopwatch(spec, activity);
    Choice<LayerSpec> fastest;
    double best = std::numeric_limits<double>::infinity();
    // The best tiers first, so that slower ones are given up early.
    const auto& table = kernels<LayerSpec>();
    for (auto row = table.rbegin(); row != table.rend(); ++row) {
        if (row->tier > tier || row->mode > limit) continue;
        auto step = row->prepare(spec);
        if (!step) continue;
        const double seconds = stopwatch.time(*step, best);
        if (seconds >= best) continue;
        best = seconds;
        fastest = {&*row, std::move(step)};
    }
    if (!fastest.kernel) throw std::logic_error("no kernel can run this layer");
    return fastest;
}

Mode cheapest_mode(const LayerSpec& spec, double activity) {
    Mode best = Mode::dense;
    for (Mode mode : {Mode::sparse_dense, Mode::sparse_sparse}) {
        if (spec.groups > 1 || (mode == Mode::sparse_dense && !spec.packed)) continue;
        if (cost(spec, mode, activity) < cost(spec, best, activity)) best = mode;
    }
    return best;
}

}  // namespace cs
