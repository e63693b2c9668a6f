// What kernels of the avx512vnni tier share: their target, and the arithmetic of the tier below.
#pragma once

#include "avx512_math.h"
#include "intrinsics.h"
#include "kernel.h"

#define CS_AVX512VNNI                                                                                 \
    CS_TARGET(                                                                                        \
        "avx512f,avx512dq,avx512cd,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,avx512bitalg," \
        "avx512vpopcntdq,gfni,bmi,bmi2,popcnt,lzcnt,fma")
