// The amx tier: AMX-TILE and AMX-INT8, beside everything of avx512vnni.
#pragma once

#include <memory>

#include "kernel.h"

namespace cs::amx {

std::unique_ptr<Step> conv_dense(const LayerSpec&);
std::unique_ptr<Step> conv_sparse_dense(const LayerSpec&);
std::unique_ptr<Step> conv_strips(const LayerSpec&);

}  // namespace cs::amx
