// The avx2 tier: vectors of 256 bits with AVX2, FMA, BMI1, BMI2, POPCNT and LZCNT (Haswell and Zen, and later).
#pragma once

#include <memory>

#include "kernel.h"

namespace cs::avx2 {

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
std::unique_ptr<Step> pool(const PoolSpec&);
std::unique_ptr<Step> lookup(const LookupSpec&);
std::unique_ptr<Step> add(const AddSpec&);
std::unique_ptr<Step> product(const ProductSpec&);
std::unique_ptr<Step> concat(const ConcatSpec&);
std::unique_ptr<Step> local_response_norm(const LocalResponseNormSpec&);
std::unique_ptr<Step> gelu(const GeluSpec&);
std::unique_ptr<Step> matmul(const MatMulSpec&);
std::unique_ptr<Step> kwta(const KwtaSpec&);

}  // namespace cs::avx2
