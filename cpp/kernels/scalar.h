// The scalar tier: plain C++ that runs anywhere, written so that compilers vectorize it.
#pragma once

#include <memory>

#include "kernel.h"

namespace cs::scalar {

std::unique_ptr<Step> input(const InputSpec&);
std::unique_ptr<Step> layer_dense(const LayerSpec&);
std::unique_ptr<Step> layer_dense_select(const LayerSpec&);
std::unique_ptr<Step> layer_sparse_dense(const LayerSpec&);
std::unique_ptr<Step> layer_sparse_sparse(const LayerSpec&);
std::unique_ptr<Step> layer_grouped(const LayerSpec&);
std::unique_ptr<Step> kwta(const KwtaSpec&);
std::unique_ptr<Step> relu(const ReluSpec&);
std::unique_ptr<Step> clip(const ClipSpec&);
std::unique_ptr<Step> lookup(const LookupSpec&);
std::unique_ptr<Step> activation(const ActivationSpec&);
std::unique_ptr<Step> affine(const AffineSpec&);
std::unique_ptr<Step> pool(const PoolSpec&);
std::unique_ptr<Step> add(const AddSpec&);
std::unique_ptr<Step> product(const ProductSpec&);
std::unique_ptr<Step> concat(const ConcatSpec&);
std::unique_ptr<Step> dequantize(const DequantizeSpec&);
std::unique_ptr<Step> quantize(const QuantizeSpec&);
std::unique_ptr<Step> softmax(const SoftmaxSpec&);
std::unique_ptr<Step> gelu(const GeluSpec&);
std::unique_ptr<Step> layer_norm(const LayerNormSpec&);
std::unique_ptr<Step> local_response_norm(const LocalResponseNormSpec&);
std::unique_ptr<Step> matmul(const MatMulSpec&);
std::unique_ptr<Step> transpose(const TransposeSpec&);

}  // namespace cs::scalar
