#ifndef KERNELS_CPU_MATMUL_H
#define KERNELS_CPU_MATMUL_H
/* The frame that all fast matmuls share (matmul.c): it cuts the product into tasks, copies blocks of x into a small
 * buffer, and calls one micro-kernel per register tile. A variant brings the micro-kernels.
 *
 * The product is cut only along rows, panels and k; blocks of k follow each other in ascending order and carry their
 * sums through y, so that an element is one chain whatever the cut. */
#include <string.h>

#include "kernels/cpu/pack.h"
#include "kernels/kernels.h"

/* Inputs (k) per block, and how far apart the rows of a packed block are: a fixed stride makes every address in a
 * micro-kernel one register plus a constant, and 17 cache lines (1088 bytes) spread the rows over the L1's sets. */
#define MATMUL_BLOCK_F32 256
#define MATMUL_STRIDE_F32 272
#define MATMUL_BLOCK_BF16 512
#define MATMUL_STRIDE_BF16 544

/* One micro-kernel: y[r][0, columns) (+)= x block times panels, for `rows` packed rows.
 *   a        packed rows, MATMUL_STRIDE_F32 floats (or MATMUL_STRIDE_BF16 bf16) apart
 *   b        the first panel at this block's k; the next panel `b_stride` elements on (not read when columns <= 16)
 *   k        inputs in the block (for bf16 panels rounded up to even: the pad is zero in both operands)
 *   y        the output tile, rows ldy apart; columns is 1 to panels * 16
 *   first    this is the first block of k: start from zero instead of y */
struct matmul_tile {
    int rows, columns;
    int64_t k, b_stride, ldy;
    const void *a, *b;
    float *y;
    bool first;
};
typedef void matmul_micro(const struct matmul_tile *tile);

/* Copies k inputs of a row of x to a packed row. */
typedef void matmul_copy(const float *x, int64_t k, void *out);

/* The copies that there are. Here, so that each variant has them compiled for its own instructions. */
static inline void matmul_copy_f32(const float *x, int64_t k, void *out) { memcpy(out, x, (size_t)k * sizeof *x); }
/* Rounded to bf16, kept in f32. */
static inline void matmul_copy_bf16_as_f32(const float *x, int64_t k, void *out)
{
    float *f = out;
    for (int64_t i = 0; i < k; i++)
        f[i] = bf16_to_f32(bf16_from_f32(x[i]));
    f[k] = 0.0f; /* the pad of an odd k */
}
/* Rounded to bf16, and zeros up to the 32 inputs of an AMX tile. */
static inline void matmul_copy_bf16(const float *x, int64_t k, void *out)
{
    uint16_t *u = out;
    for (int64_t i = 0; i < k; i++)
        u[i] = bf16_from_f32(x[i]);
    memset(u + k, 0, (size_t)((k + 31) / 32 * 32 - k) * sizeof *u);
}

struct matmul_kernel {
    matmul_copy *copy;
    int block;         /* inputs per block of k at most */
    int rows, panels;  /* the largest register tile */
    int align;         /* tiles start at multiples of this many rows (and missing rows are copied as zeros) */
    matmul_micro *micro;
    void (*begin)(void), (*end)(void); /* around each task, on its thread; may be NULL */
};

/* y = x times columns [first, first + y->shape[1]) of panels w, with the kernel for the panels' dtype. */
bool matmul_run(struct queue *q, const struct matmul_kernel *f32, const struct matmul_kernel *bf16,
                const struct tensor *x, const struct tensor *w, int64_t first, struct tensor *y, struct err *e)
    ERR_CHECK;

#endif
