#include "set_layout.h"

#include <utility>

namespace cs {
namespace {

void lay_out_entries(const PackedWeight& p, int rows, SetLayout& to) {
    constexpr int8_t kNobody = -1;  // 255, no slot
    const auto* weight = static_cast<const int8_t*>(p.weights);
    for (int row = 0; row < rows; ++row) {
        for (int t = 0; t < to.groups * to.lanes; ++t) {
            int8_t* entry = to.entry.data() + row * to.row_bytes + t / to.lanes * 2 * to.lanes + t % to.lanes;
            const int64_t index = int64_t{row} * p.sets + t;
            const bool owned = t < p.sets && p.slot[index] >= 0;
            entry[0] = owned ? weight[index] : int8_t{0};
            entry[to.lanes] = owned ? static_cast<int8_t>(p.slot[index]) : kNobody;
        }
    }
}

void find_places(const PackedWeight& p, int rows, SetLayout& to) {
    const auto nowhere = static_cast<int32_t>(to.sums());
    std::vector<char> seen(to.sums());
    for (int64_t i = 0; i < int64_t{rows} * p.sets; ++i) {
        if (p.slot[i] < 0) continue;
        const int64_t set = i % p.sets;
        const auto place = static_cast<int32_t>((set / to.lanes * to.slots + p.slot[i]) * to.lanes + set % to.lanes);
        if (std::exchange(seen[place], 1)) continue;
        int32_t& first = to.place[p.owner[i]];
        if (first == nowhere) {
            first = place;
        } else {
            to.extras.push_back({p.owner[i], place});
        }
    }
}

}  // namespace

SetLayout set_layout(const LayerSpec& s, int lanes, int slots, int64_t row_bytes) {
    SetLayout layout{};
    layout.lanes = lanes;
    layout.groups = groups_of_sets(s, lanes);
    layout.slots = slots;
    layout.row_bytes = row_bytes;
    layout.entry.resize(row_bytes * s.rows + 4 * lanes);
    layout.place.assign(round_up(s.kernels, 16), static_cast<int32_t>(layout.sums()));
    lay_out_entries(*s.packed, s.rows, layout);
    find_places(*s.packed, s.rows, layout);
    return layout;
}

}  // namespace cs
