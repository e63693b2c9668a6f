// Matrices packed as in the paper (U = V = 1), laid out with sets in lanes: what kernels that route by comparing kernel
// ids prepare from a layer.
#pragma once

#include <cstdint>
#include <vector>

#include "../aligned.h"
#include "kernel.h"

namespace cs {

// A group is `lanes` consecutive sets. An entry is what one row has for one group: the weights, then the kernel ids,
// the slots of their owners; 255 is nobody. The sums of all kernels are [groups, slots, lanes].
struct SetLayout {
    // A further sum of a kernel that is a member of several sets.
    struct Extra {
        int32_t kernel, place;
    };

    int lanes, groups, slots;
    int64_t row_bytes;
    AlignedVector<int8_t> entry;  // [rows, row_bytes], of which the first are [groups, 2, lanes]; two more at the end
    std::vector<int32_t> place;   // [kernels, to a multiple of 16]: each one's sum, or sums() where no set has it
    std::vector<Extra> extras;

    int64_t sums() const { return int64_t{groups} * slots * lanes; }
};

// slots: sums of a set, at least those of the packed matrix. row_bytes: at least 2 * lanes for every group.
SetLayout set_layout(const LayerSpec& spec, int lanes, int slots, int64_t row_bytes);

// Whether a layer is linear and packed in single int8 weights.
inline bool has_single_weights(const LayerSpec& s) {
    return is_linear(s) && s.packed && s.packed->u == 1 && s.packed->v == 1 && s.packed->sets > 0 &&
           s.input.dtype != DType::f32;
}

inline int groups_of_sets(const LayerSpec& s, int lanes) { return (s.packed->sets + lanes - 1) / lanes; }

}  // namespace cs
