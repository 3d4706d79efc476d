/* AVX2 and FMA micro-kernels: tiles of 6 rows by 16 columns for f32 (12 accumulators of the 16 registers) and of 5 by
 * 16 for bf16 panels, whose halves need more registers. Equal to the plain version bit for bit. */
#include <immintrin.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/matmul.h"

#define ROWS 6
#define ROWS_BF16 5
#define STRIDE MATMUL_STRIDE_F32

/* The tile of y from and to memory; a narrow last panel goes through a buffer. */
LANES_INLINE void load_tile(const int rows, const struct matmul_tile *s, __m256 acc[ROWS][2])
{
    LANES_UNROLL
    for (int r = 0; r < rows; r++) {
        struct lanes y = s->first ? lanes_zero() : lanes_load_upto(s->y + r * s->ldy, s->columns, 0.0f);
        acc[r][0] = y.a;
        acc[r][1] = y.b;
    }
}

LANES_INLINE void store_tile(const int rows, const struct matmul_tile *s, __m256 acc[ROWS][2])
{
    LANES_UNROLL
    for (int r = 0; r < rows; r++)
        lanes_store_upto(s->y + r * s->ldy, (struct lanes){acc[r][0], acc[r][1]}, s->columns);
}

LANES_INLINE void step(const int rows, const float *a, __m256 w0, __m256 w1, __m256 acc[ROWS][2])
{
    LANES_UNROLL
    for (int r = 0; r < rows; r++) {
        __m256 x = _mm256_broadcast_ss(a + r * STRIDE);
        acc[r][0] = _mm256_fmadd_ps(x, w0, acc[r][0]);
        acc[r][1] = _mm256_fmadd_ps(x, w1, acc[r][1]);
    }
}

LANES_INLINE void tile_f32(const int rows, const struct matmul_tile *s)
{
    __m256 acc[ROWS][2];
    const float *a = s->a, *b = s->b;
    load_tile(rows, s, acc);
    for (int64_t k = 0; k < s->k; k++)
        step(rows, a + k, _mm256_loadu_ps(b + k * 16), _mm256_loadu_ps(b + k * 16 + 8), acc);
    store_tile(rows, s, acc);
}

/* A 32-bit word of a bf16 panel holds the weights of an even and an odd k. */
LANES_INLINE __m256 even(__m256i pair) { return _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16)); }
LANES_INLINE __m256 odd(__m256i pair)
{
    return _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32((int32_t)0xffff0000u)));
}

LANES_INLINE void tile_bf16(const int rows, const struct matmul_tile *s)
{
    __m256 acc[ROWS][2];
    const float *a = s->a;
    const uint16_t *b = s->b;
    load_tile(rows, s, acc);
    for (int64_t k = 0; k < s->k; k += 2) {
        __m256i p0 = _mm256_loadu_si256((const __m256i *)(const void *)(b + k * 16));
        __m256i p1 = _mm256_loadu_si256((const __m256i *)(const void *)(b + k * 16 + 16));
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
    default: tile_f32(6, s); break;
    }
}

static void micro_bf16(const struct matmul_tile *s)
{
    switch (s->rows) {
    case 1: tile_bf16(1, s); break;
    case 2: tile_bf16(2, s); break;
    case 3: tile_bf16(3, s); break;
    case 4: tile_bf16(4, s); break;
    default: tile_bf16(5, s); break;
    }
}

static const struct matmul_kernel kernel_f32 = {
    .copy = matmul_copy_f32, .block = MATMUL_BLOCK_F32, .rows = ROWS, .panels = 1, .align = 1,
    .micro = micro_f32};
static const struct matmul_kernel kernel_bf16 = {
    .copy = matmul_copy_bf16_as_f32, .block = MATMUL_BLOCK_F32, .rows = ROWS_BF16, .panels = 1, .align = 1,
    .micro = micro_bf16};

bool matmul_part_avx2(struct queue *q, const struct tensor *x, const struct tensor *w, int64_t first,
                      struct tensor *y, struct err *e)
{
    return matmul_run(q, &kernel_f32, &kernel_bf16, x, w, first, y, e);
}
