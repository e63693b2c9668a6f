// Sparse-sparse convolution in vectors of 256 bits, avx2 tier. See conv_select_lanes.h and
// conv_winners_lanes.h.
#include "avx2.h"
#include "avx2_lanes.h"

namespace cs {
namespace {

CS_AVX2 inline uint32_t nonzero_half(const uint8_t* x) {
    const __m256i x_u8x32 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return ~static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(x_u8x32, _mm256_setzero_si256())));
}

// A bit for every one of 64 bytes that is not zero.
CS_AVX2 inline uint64_t nonzero_bytes(const uint8_t* x) {
    return uint64_t{nonzero_half(x + 32)} << 32 | nonzero_half(x);
}

}  // namespace
}  // namespace cs

// The bodies need the vocabulary above.
#include "conv_select_lanes.h"
#include "conv_winners_lanes.h"

namespace cs::avx2 {

std::unique_ptr<Step> conv_sparse_sparse(const LayerSpec& s) { return make_conv_select(s); }

std::unique_ptr<Step> conv_winners(const LayerSpec& s) { return make_conv_winners(s); }

}  // namespace cs::avx2
