// The intrinsics of the kernels, and how a kernel says which instructions it may use.
#pragma once

#if defined(CS_EMULATE_AVX512)
#include "emulated_avx512.h"
#define CS_TARGET(features)  // nothing beyond the target of the whole build, which has no AVX-512
#else
#include <immintrin.h>
#define CS_TARGET(features) __attribute__((target(features)))
#endif
