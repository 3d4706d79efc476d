#ifndef KERNELS_CPU_MATMUL_H
#define KERNELS_CPU_MATMUL_H
/* The frame that all fast matmuls share (matmul.c): it cuts the product into tasks, copies blocks of x into a small
 * buffer, and calls one micro-kernel per register tile. A variant brings the micro-kernels.
 *
 * The product is cut only along rows, panels and k; blocks of k follow each other in ascending order and carry their
 * sums through y, so that an element is one chain whatever the cut. */
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

/* How the frame copies x for the micro-kernel. */
enum matmul_input {
    MATMUL_F32,        /* as it is */
    MATMUL_BF16_AS_F32, /* rounded to bf16, kept in f32 */
    MATMUL_BF16,       /* rounded to bf16 */
};

struct matmul_kernel {
    enum matmul_input input;
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
