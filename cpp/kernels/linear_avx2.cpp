// Linear layers in vectors of 256 bits, avx2 tier. See linear_lanes.h.
#include "avx2.h"
#include "avx2_lanes.h"
// The body needs the vocabulary above.
#include "linear_lanes.h"

namespace cs::avx2 {

std::unique_ptr<Step> linear_dense(const LayerSpec& s) { return make_linear_dense(s, false); }
std::unique_ptr<Step> linear_dense_select(const LayerSpec& s) {
    return s.packed ? nullptr : make_linear_dense(s, true);
}
std::unique_ptr<Step> linear_sparse_dense(const LayerSpec& s) { return make_linear_packed(s, false); }
std::unique_ptr<Step> linear_sparse_sparse(const LayerSpec& s) { return make_linear_packed(s, true); }

}  // namespace cs::avx2
