// The avx512 tier: vectors of 512 bits with AVX-512 F, DQ, CD, BW and VL.
#pragma once

#include <memory>

#include "kernel.h"

namespace cs::avx512 {

std::unique_ptr<Step> input(const InputSpec&);
std::unique_ptr<Step> quantize(const QuantizeSpec&);
std::unique_ptr<Step> conv_dense(const LayerSpec&);
std::unique_ptr<Step> conv_sparse_dense(const LayerSpec&);
std::unique_ptr<Step> conv_positions(const LayerSpec&);
std::unique_ptr<Step> conv_sparse_sparse(const LayerSpec&);
std::unique_ptr<Step> conv_winners(const LayerSpec&);
std::unique_ptr<Step> depthwise(const LayerSpec&);
std::unique_ptr<Step> linear_dense(const LayerSpec&);
std::unique_ptr<Step> linear_dense_select(const LayerSpec&);
std::unique_ptr<Step> linear_sparse_dense(const LayerSpec&);
std::unique_ptr<Step> linear_sparse_sparse(const LayerSpec&);
std::unique_ptr<Step> linear_masks(const LayerSpec&);
std::unique_ptr<Step> kwta(const KwtaSpec&);
std::unique_ptr<Step> relu(const ReluSpec&);
std::unique_ptr<Step> clip(const ClipSpec&);
std::unique_ptr<Step> affine(const AffineSpec&);
std::unique_ptr<Step> pool(const PoolSpec&);
std::unique_ptr<Step> add(const AddSpec&);
std::unique_ptr<Step> concat(const ConcatSpec&);
std::unique_ptr<Step> dequantize(const DequantizeSpec&);

}  // namespace cs::avx512
