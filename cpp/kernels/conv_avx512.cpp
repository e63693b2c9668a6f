// Convolution in vectors of 512 bits, avx512 tier. See conv_lanes.h.
#include "avx512.h"
#include "avx512_lanes.h"
// The body needs the vocabulary above.
#include "conv_lanes.h"

namespace cs::avx512 {

std::unique_ptr<Step> conv_dense(const LayerSpec& s) { return make_conv(s, true); }
std::unique_ptr<Step> conv_sparse_dense(const LayerSpec& s) { return s.packed ? make_conv(s, false) : nullptr; }

}  // namespace cs::avx512
