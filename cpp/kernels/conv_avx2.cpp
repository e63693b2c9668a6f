// Convolution in vectors of 256 bits, avx2 tier. See conv_lanes.h and conv_positions_lanes.h.
#include "avx2.h"
#include "avx2_lanes.h"
// The bodies need the vocabulary above.
#include "conv_lanes.h"
#include "conv_positions_lanes.h"

namespace cs::avx2 {

std::unique_ptr<Step> conv_dense(const LayerSpec& s) { return make_conv(s, true); }
std::unique_ptr<Step> conv_sparse_dense(const LayerSpec& s) { return s.packed ? make_conv(s, false) : nullptr; }
std::unique_ptr<Step> conv_positions(const LayerSpec& s) { return make_conv_positions(s); }

}  // namespace cs::avx2
