/* AVX-512 micro-kernels: tiles of 14 rows by 32 columns for f32 (28 accumulators of the 32 registers) and of 12 by 32
 * for bf16 panels, whose halves need more registers. Equal to the plain version bit for bit. */
#include "kernels/cpu/matmul_avx512.h"

#include "kernels/cpu/cpu.h"

#define ROWS_F32 14
#define ROWS_BF16 12
#define STRIDE MATMUL_STRIDE_F32

LANES_INLINE void load_tile(const int rows, const struct matmul_tile *s, __m512 acc[ROWS_F32][2])
{
    int columns = s->first ? 0 : s->columns;
    __mmask16 m0 = matmul_avx512_mask(columns), m1 = matmul_avx512_mask(columns - 16);
    LANES_UNROLL
    for (int r = 0; r < rows; r++) {
        acc[r][0] = _mm512_maskz_loadu_ps(m0, s->y + r * s->ldy);
        acc[r][1] = _mm512_maskz_loadu_ps(m1, s->y + r * s->ldy + 16);
    }
}

LANES_INLINE void store_tile(const int rows, const struct matmul_tile *s, __m512 acc[ROWS_F32][2])
{
    __mmask16 m0 = matmul_avx512_mask(s->columns), m1 = matmul_avx512_mask(s->columns - 16);
    LANES_UNROLL
    for (int r = 0; r < rows; r++) {
        _mm512_mask_storeu_ps(s->y + r * s->ldy, m0, acc[r][0]);
        _mm512_mask_storeu_ps(s->y + r * s->ldy + 16, m1, acc[r][1]);
    }
}

LANES_INLINE void step(const int rows, const float *a, __m512 w0, __m512 w1, __m512 acc[ROWS_F32][2])
{
    LANES_UNROLL
    for (int r = 0; r < rows; r++) {
        __m512 x = _mm512_set1_ps(a[r * STRIDE]);
        acc[r][0] = _mm512_fmadd_ps(x, w0, acc[r][0]);
        acc[r][1] = _mm512_fmadd_ps(x, w1, acc[r][1]);
    }
}

LANES_INLINE void tile_f32(const int rows, const struct matmul_tile *s)
{
    __m512 acc[ROWS_F32][2];
    /* A lone last panel is multiplied twice and stored once. */
    const float *a = s->a, *b0 = s->b, *b1 = b0 + (s->columns > 16 ? s->b_stride : 0);
    load_tile(rows, s, acc);
    for (int64_t k = 0; k < s->k; k++)
        step(rows, a + k, _mm512_loadu_ps(b0 + k * 16), _mm512_loadu_ps(b1 + k * 16), acc);
    store_tile(rows, s, acc);
}

/* A 32-bit word of a bf16 panel holds the weights of an even and an odd k. */
LANES_INLINE __m512 even(__m512i pair) { return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)); }
LANES_INLINE __m512 odd(__m512i pair)
{
    return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int32_t)0xffff0000u)));
}

LANES_INLINE void tile_bf16(const int rows, const struct matmul_tile *s)
{
    __m512 acc[ROWS_F32][2];
    const float *a = s->a;
    const uint16_t *b0 = s->b, *b1 = b0 + (s->columns > 16 ? s->b_stride : 0);
    load_tile(rows, s, acc);
    for (int64_t k = 0; k < s->k; k += 2) {
        __m512i p0 = _mm512_loadu_si512(b0 + k * 16), p1 = _mm512_loadu_si512(b1 + k * 16);
        step(rows, a + k, even(p0), even(p1), acc);
        step(rows, a + k + 1, odd(p0), odd(p1), acc);
    }
    store_tile(rows, s, acc);
}

static void micro_f32(const struct matmul_tile *s)
{
    switch (s->rows) {
    case 1: tile_f32(1, s); break;
    case 2: tile_f32(2, s); break;
    case 3: tile_f32(3, s); break;
    case 4: tile_f32(4, s); break;
    case 5: tile_f32(5, s); break;
    case 6: tile_f32(6, s); break;
    case 7: tile_f32(7, s); break;
    case 8: tile_f32(8, s); break;
    case 9: tile_f32(9, s); break;
    case 10: tile_f32(10, s); break;
    case 11: tile_f32(11, s); break;
    case 12: tile_f32(12, s); break;
    case 13: tile_f32(13, s); break;
    default: tile_f32(14, s); break;
    }
}

static void micro_bf16(const struct matmul_tile *s)
{
    switch (s->rows) {
    case 1: tile_bf16(1, s); break;
    case 2: tile_bf16(2, s); break;
    case 3: tile_bf16(3, s); break;
    case 4: tile_bf16(4, s); break;
    case 5: tile_bf16(5, s); break;
    case 6: tile_bf16(6, s); break;
    case 7: tile_bf16(7, s); break;
    case 8: tile_bf16(8, s); break;
    case 9: tile_bf16(9, s); break;
    case 10: tile_bf16(10, s); break;
    case 11: tile_bf16(11, s); break;
    default: tile_bf16(12, s); break;
    }
}

const struct matmul_kernel matmul_avx512_f32 = {
    .copy = matmul_copy_f32, .block = MATMUL_BLOCK_F32, .rows = ROWS_F32, .panels = 2, .align = 1,
    .micro = micro_f32};
static const struct matmul_kernel kernel_bf16 = {
    .copy = matmul_copy_bf16_as_f32, .block = MATMUL_BLOCK_F32, .rows = ROWS_BF16, .panels = 2, .align = 1,
    .micro = micro_bf16};

bool matmul_part_avx512(struct queue *q, const struct tensor *x, const struct tensor *w, int64_t first,
                        struct tensor *y, struct err *e)
{
    return matmul_run(q, &matmul_avx512_f32, &kernel_bf16, x, w, first, y, e);
}
