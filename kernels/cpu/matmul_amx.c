/* bf16 panels with AMX tiles: 32 rows by 32 columns of y in four tiles, 32 inputs an instruction. Its bits belong to
 * this variant: an element adds up, in ascending order of k, the sums of 32 inputs that TDPBF16PS makes. fp32 panels
 * are those of avx512.
 *
 * On the machine this was written on there is no AMX; what its tests ran is the emulation of amx_tiles.h, for which
 * this file is compiled a second time with AMX_EMULATE (its entries then end in _amx_emulated). */
#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/matmul_avx512.h"

#define STRIDE (MATMUL_STRIDE_BF16 * 2) /* bytes from a packed row to the next */

/* The four tiles of y in memory: y itself where the whole tile exists, else a buffer. */
struct corner {
    float *p;
    int64_t ld;
};

static void buffer_in(const struct matmul_tile *s, float *buffer)
{
    for (int r = 0; r < s->rows; r++)
        memcpy(buffer + r * 32, s->y + r * s->ldy, (size_t)s->columns * sizeof *buffer);
}

static void buffer_out(const struct matmul_tile *s, const float *buffer)
{
    for (int r = 0; r < s->rows; r++)
        memcpy(s->y + r * s->ldy, buffer + r * 32, (size_t)s->columns * sizeof *buffer);
}

/* Tiles 0 to 3 hold y (two by two), 4 and 5 rows of x, 6 and 7 the panels. */
static void load_y(struct corner y, bool first)
{
    if (first) {
        amx_zero(0);
        amx_zero(1);
        amx_zero(2);
        amx_zero(3);
        return;
    }
    amx_load(0, y.p, y.ld * 4);
    amx_load(1, y.p + 16, y.ld * 4);
    amx_load(2, y.p + 16 * y.ld, y.ld * 4);
    amx_load(3, y.p + 16 * y.ld + 16, y.ld * 4);
}

static void store_y(struct corner y)
{
    amx_store(0, y.p, y.ld * 4);
    amx_store(1, y.p + 16, y.ld * 4);
    amx_store(2, y.p + 16 * y.ld, y.ld * 4);
    amx_store(3, y.p + 16 * y.ld + 16, y.ld * 4);
}

/* 32 inputs: rows of x at `a`, panels at b0 and b1. */
static void step(const char *a, const uint16_t *b0, const uint16_t *b1)
{
    amx_load(4, a, STRIDE);
    amx_load(5, a + 16 * STRIDE, STRIDE);
    amx_load(6, b0, 64);
    amx_load(7, b1, 64);
    amx_dp(0, 4, 6);
    amx_dp(1, 4, 7);
    amx_dp(2, 5, 6);
    amx_dp(3, 5, 7);
}

static void multiply(const struct matmul_tile *s, struct corner y)
{
    const char *a = s->a;
    const uint16_t *b0 = s->b, *b1 = b0 + (s->columns > 16 ? s->b_stride : 0);
    load_y(y, s->first);
    int64_t k = 0;
    for (; k + 32 <= s->k; k += 32)
        step(a + k * 2, b0 + k * 16, b1 + k * 16);
    if (k < s->k) { /* the last tile of the panels, completed with zeros (x is already) */
        _Alignas(64) uint16_t t0[512] = {0}, t1[512] = {0};
        memcpy(t0, b0 + k * 16, (size_t)(s->k - k) * 16 * sizeof *t0);
        memcpy(t1, b1 + k * 16, (size_t)(s->k - k) * 16 * sizeof *t1);
        step(a + k * 2, t0, t1);
    }
    store_y(y);
}

/* At the edge of y the tile goes through a buffer. On its own, since whole tiles need not pay for clearing it. */
static __attribute__((noinline)) void multiply_edge(const struct matmul_tile *s)
{
    _Alignas(64) float buffer[32 * 32] = {0};
    if (!s->first)
        buffer_in(s, buffer);
    multiply(s, (struct corner){buffer, 32});
    buffer_out(s, buffer);
}

static void micro(const struct matmul_tile *s)
{
    if (s->rows == 32 && s->columns == 32)
        multiply(s, (struct corner){s->y, s->ldy});
    else
        multiply_edge(s);
}

static const struct matmul_kernel kernel_bf16 = {
    .copy = matmul_copy_bf16, .block = MATMUL_BLOCK_BF16, .rows = 32, .panels = 2, .align = 32,
    .micro = micro, .begin = amx_begin, .end = amx_end};

#ifdef AMX_EMULATE
CPU_DECLARE_MATMUL(amx_emulated);
#define matmul_part_amx matmul_part_amx_emulated
#endif

bool matmul_part_amx(struct queue *q, const struct tensor *x, const struct tensor *w, int64_t first, struct tensor *y,
                     struct err *e)
{
    return matmul_run(q, &matmul_avx512_f32, &kernel_bf16, x, w, first, y, e);
}
