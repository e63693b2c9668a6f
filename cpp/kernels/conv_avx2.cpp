// Convolution in vectors of 256 bits, avx2 tier. See conv_lanes.h and conv_positions_lanes.h.
#include "avx2.h"
#include "avx2_lanes.h"

namespace cs {
namespace {

// Eight lines of eight numbers, so many numbers apart, to lines of what were columns.
CS_AVX2 inline void transpose_lanes(const int32_t* from, int64_t from_row, int32_t* to, int64_t to_row) {
    __m256 half[8];  // of columns 0 to 3, and of 4 to 7: lines 0 and 4, 1 and 5, ...
    for (int i = 0; i < 4; ++i) {
        const __m256 upper = _mm256_loadu_ps(reinterpret_cast<const float*>(from + i * from_row));
        const __m256 lower = _mm256_loadu_ps(reinterpret_cast<const float*>(from + (i + 4) * from_row));
        half[i] = _mm256_permute2f128_ps(upper, lower, 0x20);
        half[i + 4] = _mm256_permute2f128_ps(upper, lower, 0x31);
    }
    for (int i = 0; i < 8; i += 4) {  // within halves: four lines of four numbers
        const __m256 low01 = _mm256_unpacklo_ps(half[i], half[i + 1]);
        const __m256 high01 = _mm256_unpackhi_ps(half[i], half[i + 1]);
        const __m256 low23 = _mm256_unpacklo_ps(half[i + 2], half[i + 3]);
        const __m256 high23 = _mm256_unpackhi_ps(half[i + 2], half[i + 3]);
        auto* column = reinterpret_cast<float*>(to + i * to_row);
        _mm256_storeu_ps(column, _mm256_shuffle_ps(low01, low23, _MM_SHUFFLE(1, 0, 1, 0)));
        _mm256_storeu_ps(column + to_row, _mm256_shuffle_ps(low01, low23, _MM_SHUFFLE(3, 2, 3, 2)));
        _mm256_storeu_ps(column + 2 * to_row, _mm256_shuffle_ps(high01, high23, _MM_SHUFFLE(1, 0, 1, 0)));
        _mm256_storeu_ps(column + 3 * to_row, _mm256_shuffle_ps(high01, high23, _MM_SHUFFLE(3, 2, 3, 2)));
    }
}

}  // namespace
}  // namespace cs

// The bodies need the vocabulary above.
#include "conv_lanes.h"
#include "conv_positions_lanes.h"

namespace cs::avx2 {

std::unique_ptr<Step> conv_dense(const LayerSpec& s) { return make_conv(s, true); }
std::unique_ptr<Step> conv_sparse_dense(const LayerSpec& s) { return s.packed ? make_conv(s, false) : nullptr; }
std::unique_ptr<Step> conv_positions(const LayerSpec& s) { return s.packed ? make_conv_positions(s) : nullptr; }

}  // namespace cs::avx2
