#include "planner.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <random>
#include <set>

#include "arena.h"

namespace cs {
namespace {

constexpr int kRuns = 9;           // measured runs of a candidate
constexpr double kBudget = 20e-3;  // seconds after which no further run begins
constexpr double kPlain = 32;      // products of the best kernels in the time of one of plain code
constexpr double kTie = 1.1;       // nearly the same time
constexpr double kHopeless = 2;    // a first run this much slower than the best candidate's best ends the matter

constexpr size_t kMostSwept = size_t{4} << 20;  // more than a second-level cache
constexpr size_t kLine = 64 / sizeof(uint64_t);

constexpr Mode kModes[] = {Mode::sparse_sparse, Mode::sparse_dense, Mode::dense};

// The kernel of the best tier that computes the layer in exactly this mode; none if there is none.
Choice<LayerSpec> find(const LayerSpec& spec, Tier tier, Mode mode) {
    const auto& table = kernels<LayerSpec>();
    for (auto row = table.rbegin(); row != table.rend(); ++row) {
        if (row->tier > tier || row->mode != mode) continue;
        if (auto step = row->prepare(spec)) return {&*row, std::move(step), {}};
    }
    return {};
}

Tier tier_below(Tier tier) { return static_cast<Tier>(static_cast<int>(tier) - 1); }

void store(const Tensor& tensor, int64_t index, int value, std::byte* to) {
    if (tensor.dtype == DType::f32) {
        reinterpret_cast<float*>(to)[index] = static_cast<float>(value);
    } else {
        to[index] = static_cast<std::byte>(value);
    }
}

// One random sample, of whose values a share is other than zero, at a position at most `winners`.
void fill_random(const Tensor& tensor, double activity, int winners, std::byte* to) {
    std::minstd_rand random(1);
    std::uniform_real_distribution<double> uniform;
    for (int64_t position = 0; position < tensor.positions(); ++position) {
        // Behind k-winners exactly so many are active, among the channels that are left each with the same chance.
        double left = winners;
        for (int channel = 0; channel < tensor.channels; ++channel) {
            const double chance = winners < tensor.channels ? left / (tensor.channels - channel) : activity;
            const bool active = uniform(random) < chance;
            left -= active;
            store(tensor, position * tensor.channels + channel, active ? 1 + random() % 127 : 0, to);
        }
    }
}

class Stopwatch {
  public:
    Stopwatch(const LayerSpec& spec, double activity, const CacheSweep& sweep)
        : sweep_(sweep),
          weight_bytes_(weight_bytes(spec)),
          input_(make(spec.input.stride() + kSlack)),
          output_(make(spec.output.stride() + kSlack)) {
        fill_random(spec.input, activity, spec.winners, input_.get());
    }

    // Seconds of the fastest run; gives up early on a step that cannot reach `best`.
    double time(const Step& step, double best) const {
        const Arena scratch = make(step.scratch_bytes() + kSlack);
        const std::byte* inputs[] = {input_.get()};
        double fastest = std::numeric_limits<double>::infinity(), spent = 0;
        for (int i = 0; i < kRuns && spent < kBudget; ++i) {
            sweep_.run(weight_bytes_);
            const auto start = std::chrono::steady_clock::now();
            step.run({inputs, output_.get(), scratch.get(), 1, 0});
            const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
            fastest = std::min(fastest, elapsed.count());
            spent += elapsed.count();
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

    const CacheSweep& sweep_;
    size_t weight_bytes_;
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

// Whether a mode leaves out so much that even plain code may win with it.
bool saves_much(const LayerSpec& spec, Mode mode, double activity) {
    return kPlain * cost(spec, mode, activity) < cost(spec, Mode::dense, activity);
}

// Where nothing is promised of the inputs, a tie goes to what selects the active ones: there may be few.
bool is_better(Mode mode, double seconds, Mode other, double others_seconds, double activity) {
    if (activity < 1 || (mode == Mode::sparse_sparse) == (other == Mode::sparse_sparse))
        return seconds < others_seconds;
    return mode == Mode::sparse_sparse ? seconds < others_seconds * kTie : seconds * kTie < others_seconds;
}

}  // namespace

CacheSweep::CacheSweep(size_t bytes) : memory_(std::min(bytes, kMostSwept) / sizeof(uint64_t), 1) {}

void CacheSweep::run(size_t but) const {
    const size_t end = memory_.size() - std::min(memory_.size(), but / sizeof(uint64_t));
    uint64_t sum = 0;
    for (size_t i = 0; i < end; i += kLine) sum += memory_[i];
    volatile uint64_t kept = sum;  // so that the reads are made
    (void)kept;
}

size_t weight_bytes(const LayerSpec& spec) {
    const size_t element = spec.input.dtype == DType::f32 ? sizeof(float) : sizeof(int8_t);
    if (!spec.packed) return element * spec.rows * spec.kernels;
    const PackedWeight& p = *spec.packed;
    return element * p.row_blocks * p.sets * p.u * p.v;
}

Choice<LayerSpec> choose_layer(const LayerSpec& spec, Tier tier, Mode mode) {
    for (Mode tried : kModes) {
        if (tried > mode) continue;
        if (auto choice = find(spec, tier, tried); choice.kernel) return choice;
    }
    throw std::logic_error("no kernel can run this layer");
}

Choice<LayerSpec> measure_layer(const LayerSpec& spec, Tier tier, Mode limit, double activity,
                                const CacheSweep& sweep) {
    const Stopwatch stopwatch(spec, activity, sweep);
    Choice<LayerSpec> best;
    double best_seconds = std::numeric_limits<double>::infinity();
    Tier least = Tier::scalar;
    std::set<Mode> tried;
    const auto& table = kernels<LayerSpec>();
    for (auto row = table.rbegin(); row != table.rend(); ++row) {
        if (row->tier > tier || row->mode > limit) continue;
        if (row->tier < least && (tried.count(row->mode) || !saves_much(spec, row->mode, activity))) continue;
        auto step = row->prepare(spec);
        if (!step) continue;
        tried.insert(row->mode);
        if (best.measured.empty() && row->tier > Tier::scalar) least = tier_below(row->tier);
        const double seconds = stopwatch.time(*step, best_seconds);
        best.measured.push_back({&*row, seconds});
        if (best.kernel && !is_better(row->mode, seconds, best.kernel->mode, best_seconds, activity)) continue;
        best_seconds = seconds;
        best.kernel = &*row;
        best.step = std::move(step);
    }
    if (!best.kernel) throw std::logic_error("no kernel can run this layer");
    std::sort(best.measured.begin(), best.measured.end(), [&](const Timing& a, const Timing& b) {
        return std::make_pair(a.kernel != best.kernel, a.seconds) < std::make_pair(b.kernel != best.kernel, b.seconds);
    });
    return best;
}

Choice<LayerSpec> named_layer(const LayerSpec& spec, Tier tier, const std::string& name) {
    std::string able;
    for (const auto& row : kernels<LayerSpec>()) {
        if (row.tier > tier) continue;
        auto step = row.prepare(spec);
        if (!step) continue;
        if (name == row.name) return {&row, std::move(step), {}};
        able += (able.empty() ? "" : ", ") + std::string(row.name);
    }
    throw std::invalid_argument("kernel '" + name + "' cannot run this layer here; expected one of " + able);
}

Mode cheapest_mode(const LayerSpec& spec, double activity) {
    Mode best = Mode::dense;
    for (Mode mode : {Mode::sparse_dense, Mode::sparse_sparse}) {
        if (spec.groups > 1 || (mode == Mode::sparse_dense && !spec.packed)) continue;
        if (cost(spec, mode, activity) < cost(spec, best, activity)) best = mode;
    }
    return best;
}

double expected_seconds(const LayerSpec& spec, const Choice<LayerSpec>& choice, double activity) {
    constexpr double kRate = 1e11;    // multiply-accumulates a second
    constexpr double kFew = 1.0 / 8;  // of the time with all inputs active
    const bool may_be_few = activity >= 1 && choice.kernel->mode == Mode::sparse_sparse;
    const double seconds = choice.measured.empty()
                               ? cost(spec, choice.kernel->mode, activity) * spec.conv_height * spec.conv_width / kRate
                               : choice.measured.front().seconds;
    return may_be_few ? kFew * seconds : seconds;
}

}  // namespace cs
