// Products of two matrices of float32, avx2 tier.
//
// Why it is fast: columns in lanes; the sums of four rows and 16 columns stay in registers along the depth, where two
// loads of the second matrix and four broadcasts of the first feed eight multiplications with addition.
#include <algorithm>

#include "avx2.h"
#include "avx2_lanes.h"
#include "matmul_steps.h"

namespace cs::avx2 {
namespace {

constexpr int kRows = 4, kColumns = 2 * kLanes;
static_assert((kColumns - 1) * sizeof(float) <= kSlack);  // what the last row of b is read beyond its end

// Up to 16 columns of ROWS rows.
template <int ROWS>
CS_AVX2 void multiply_tile(const float* a, const float* b, const MatMulShape& shape, int columns, float* out) {
    __m256 first[ROWS], second[ROWS];
    for (int r = 0; r < ROWS; ++r) first[r] = second[r] = _mm256_setzero_ps();
    for (int64_t k = 0; k < shape.depth; ++k, b += shape.columns) {
        const __m256 left = Floats::load(b), right = Floats::load(b + kLanes);
        for (int r = 0; r < ROWS; ++r) {
            const __m256 x = Floats::broadcast(a + r * shape.depth + k);
            first[r] = Floats::multiply_add(first[r], x, left);
            second[r] = Floats::multiply_add(second[r], x, right);
        }
    }
    for (int r = 0; r < ROWS; ++r, out += shape.columns) {
        Floats::write(out, columns, first[r], nullptr, DType::f32, false);
        if (columns > kLanes) Floats::write(out + kLanes, columns - kLanes, second[r], nullptr, DType::f32, false);
    }
}

void multiply(const float* a, const float* b, const MatMulShape& shape, float* out) {
    const auto [rows, depth, columns] = shape;
    for (int64_t j = 0; j < columns; j += kColumns) {
        const int width = static_cast<int>(std::min<int64_t>(kColumns, columns - j));
        int64_t i = 0;
        for (; i + kRows <= rows; i += kRows) {
            multiply_tile<kRows>(a + i * depth, b + j, shape, width, out + i * columns + j);
        }
        for (; i < rows; ++i) multiply_tile<1>(a + i * depth, b + j, shape, width, out + i * columns + j);
    }
}

}  // namespace

std::unique_ptr<Step> matmul(const MatMulSpec& spec) { return std::make_unique<MatMulStep<multiply>>(spec); }

}  // namespace cs::avx2
