#ifndef KERNELS_CPU_MATMUL_AVX512_H
#define KERNELS_CPU_MATMUL_AVX512_H
/* What the variants above avx512 take from it. */
#include <immintrin.h>

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/matmul.h"

/* The columns of one of a tile's two panels that exist, given those left from its first on. */
LANES_INLINE __mmask16 matmul_avx512_mask(int columns)
{
    int n = columns < 0 ? 0 : columns > 16 ? 16 : columns;
    return (__mmask16)((1u << n) - 1u);
}

/* Its fp32 micro-kernel. */
extern const struct matmul_kernel matmul_avx512_f32;

#endif
