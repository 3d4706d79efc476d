#ifndef KERNELS_CPU_PACK_H
#define KERNELS_CPU_PACK_H
/* The packed form of a weight [N, K] for the matmul kernels. A panel holds sixteen output features; N is rounded up to
 * whole panels, and what lies past N (or past K) is zero.
 *
 *   f32    [panel][k][16]         feature 16p + j, input k   at  (p * K + k) * 16 + j
 *   bf16   [panel][k / 2][16][2]  feature 16p + j, input k   at  ((p * K2 + k / 2) * 16 + j) * 2 + k % 2
 *
 * where K2 = K / 2 rounded up. In bf16, sixteen pairs of k (32 inputs by 16 features, 1 KiB) are one AMX tile, one pair
 * is one 512-bit operand of vdpbf16ps, and as 32-bit words `word << 16` and `word & 0xffff0000` are the f32 values of
 * the even and the odd k: one layout serves every kernel. */
#include <stdint.h>

#define PACK_WIDTH 16

static inline int64_t pack_panels(int64_t n) { return (n + PACK_WIDTH - 1) / PACK_WIDTH; }
/* Elements from one panel to the next. */
static inline int64_t pack_stride_f32(int64_t k) { return k * PACK_WIDTH; }
static inline int64_t pack_stride_bf16(int64_t k) { return (k + 1) / 2 * 2 * PACK_WIDTH; }

#endif
