// Sparse-sparse convolution in vectors of 512 bits, avx512 tier. See conv_select_lanes.h and
// conv_winners_lanes.h.
#include "avx512.h"
#include "avx512_lanes.h"

namespace cs {
namespace {

// A bit for every one of 64 bytes that is not zero.
CS_AVX512 inline uint64_t nonzero_bytes(const uint8_t* x) {
    const __m512i x_u8x64 = _mm512_loadu_si512(x);
    return _mm512_test_epi8_mask(x_u8x64, x_u8x64);
}

}  // namespace
}  // namespace cs

// The bodies need the vocabulary above.
#include "conv_select_lanes.h"
#include "conv_winners_lanes.h"

namespace cs::avx512 {

std::unique_ptr<Step> conv_sparse_sparse(const LayerSpec& s) { return make_conv_select(s); }

std::unique_ptr<Step> conv_winners(const LayerSpec& s) { return make_conv_winners(s); }

}  // namespace cs::avx512
