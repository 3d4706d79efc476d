/* bf16 panels with vdpbf16ps: tiles of 14 rows by 32 columns, two inputs a step. The instruction adds a pair of
 * products to its sum in its own way (subnormals are zeros), so these bits belong to this variant; an element is still
 * one chain over ascending pairs of k. fp32 panels are those of avx512. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/matmul_avx512.h"

#define ROWS 14
#define STRIDE (MATMUL_STRIDE_BF16 / 2) /* in pairs */

LANES_INLINE void tile(const int rows, const struct matmul_tile *s)
{
    __m512 acc[ROWS][2];
    const int32_t *a = s->a; /* pairs */
    const uint16_t *b0 = s->b, *b1 = b0 + (s->columns > 16 ? s->b_stride : 0);
    __mmask16 m0 = matmul_avx512_mask(s->columns), m1 = matmul_avx512_mask(s->columns - 16);
    LANES_UNROLL
    for (int r = 0; r < rows; r++) {
        acc[r][0] = _mm512_maskz_loadu_ps(s->first ? (__mmask16)0 : m0, s->y + r * s->ldy);
        acc[r][1] = _mm512_maskz_loadu_ps(s->first ? (__mmask16)0 : m1, s->y + r * s->ldy + 16);
    }
    for (int64_t pair = 0; pair < s->k / 2; pair++) {
        __m512bh w0 = (__m512bh)_mm512_loadu_si512(b0 + pair * 32), w1 = (__m512bh)_mm512_loadu_si512(b1 + pair * 32);
        LANES_UNROLL
        for (int r = 0; r < rows; r++) {
            __m512bh x = (__m512bh)_mm512_set1_epi32(a[r * STRIDE + pair]);
            acc[r][0] = _mm512_dpbf16_ps(acc[r][0], x, w0);
            acc[r][1] = _mm512_dpbf16_ps(acc[r][1], x, w1);
        }
    }
    LANES_UNROLL
    for (int r = 0; r < rows; r++) {
        _mm512_mask_storeu_ps(s->y + r * s->ldy, m0, acc[r][0]);
        _mm512_mask_storeu_ps(s->y + r * s->ldy + 16, m1, acc[r][1]);
    }
}

static void micro(const struct matmul_tile *s)
{
    switch (s->rows) {
    case 1: tile(1, s); break;
    case 2: tile(2, s); break;
    case 3: tile(3, s); break;
    case 4: tile(4, s); break;
    case 5: tile(5, s); break;
    case 6: tile(6, s); break;
    case 7: tile(7, s); break;
    case 8: tile(8, s); break;
    case 9: tile(9, s); break;
    case 10: tile(10, s); break;
    case 11: tile(11, s); break;
    case 12: tile(12, s); break;
    case 13: tile(13, s); break;
    default: tile(14, s); break;
    }
}

static const struct matmul_kernel kernel_bf16 = {
    .copy = matmul_copy_bf16, .block = MATMUL_BLOCK_BF16, .rows = ROWS, .panels = 2, .align = 1,
    .micro = micro};

bool matmul_part_avx512bf16(struct queue *q, const struct tensor *x, const struct tensor *w, int64_t first,
                            struct tensor *y, struct err *e)
{
    return matmul_run(q, &matmul_avx512_f32, &kernel_bf16, x, w, first, y, e);
}
