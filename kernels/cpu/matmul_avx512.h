#ifndef KERNELS_CPU_MATMUL_AVX512_H
#define KERNELS_CPU_MATMUL_AVX512_H
/* What the variants above avx512 take from it: its fp32 micro-kernel. */
#include "kernels/cpu/matmul.h"

extern const struct matmul_kernel matmul_avx512_f32;

#endif
