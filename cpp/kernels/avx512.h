// The avx512 tier: vectors of 512 bits with AVX-512 F, DQ, CD, BW and VL.
#pragma once

#include <memory>

#include "kernel.h"

namespace cs::avx512 {

std::unique_ptr<Step> relu(const ReluSpec&);
std::unique_ptr<Step> affine(const AffineSpec&);
std::unique_ptr<Step> pool(const PoolSpec&);
std::unique_ptr<Step> add(const AddSpec&);
std::unique_ptr<Step> concat(const ConcatSpec&);
std::unique_ptr<Step> dequantize(const DequantizeSpec&);

}  // namespace cs::avx512
