// The avx512vnni tier: AVX-512 F, DQ, CD, BW, VL with VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ and GFNI (Ice Lake and
// later).
#pragma once

#include <memory>

#include "kernel.h"

namespace cs::avx512vnni {

std::unique_ptr<Step> conv_dense(const LayerSpec&);
std::unique_ptr<Step> conv_sparse_dense(const LayerSpec&);
std::unique_ptr<Step> depthwise(const LayerSpec&);
std::unique_ptr<Step> linear_dense(const LayerSpec&);
std::unique_ptr<Step> linear_dense_select(const LayerSpec&);
std::unique_ptr<Step> linear_sparse_dense(const LayerSpec&);
std::unique_ptr<Step> linear_sparse_sparse(const LayerSpec&);
std::unique_ptr<Step> linear_masks(const LayerSpec&);
std::unique_ptr<Step> kwta(const KwtaSpec&);

}  // namespace cs::avx512vnni
