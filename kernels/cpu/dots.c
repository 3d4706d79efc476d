/* Products of two activations summed over each sequence, in f64. A sequence is cut into blocks of ROWS rows. Within a
 * block there are sixteen sums, of the elements that are equal modulo 16 from the block's first on, joined by the tree
 * of wide_sum; the blocks are added in order. */
#include "engine/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/wide.h"
#include "kernels/shape.h"

#define ROWS 16

struct sums {
    double dot, square;
};

/* `squares`, a constant where this is called: whether sum.square is asked for. */
LANES_INLINE struct sums block_sums(const float *a, const float *b, int64_t n, const bool squares)
{
    struct wide dot = wide_zero(), square = wide_zero();
    for (int64_t i = 0; i < n; i += LANES) {
        struct wide x = wide_load_upto(a + i, n - i), y = wide_load_upto(b + i, n - i);
        dot = wide_exact(x, y, dot);
        if (squares) {
            struct wide p = wide_mul(x, y);
            square = wide_add(square, wide_mul(p, p));
        }
    }
    return (struct sums){wide_sum(dot), squares ? wide_sum(square) : 0.0};
}

bool CPU(window_dots)(struct queue *q, const struct tensor *a, const struct tensor *b, int64_t window,
                      struct tensor *dot, struct tensor *square, struct err *e)
{
    if (!shape_window_dots(q, a, b, window, dot, square, e))
        return false;
    const int64_t n = a->shape[1], blocks = (window + ROWS - 1) / ROWS, sequences = a->shape[0] / window;
    struct sums *part;
    if (!mem_raw(&part, (size_t)(blocks * sequences), e))
        return false;
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(a))) schedule(static)
    for (int64_t i = 0; i < blocks * sequences; i++) {
        int64_t first = i % blocks * ROWS, rows = window - first < ROWS ? window - first : ROWS;
        int64_t at = (i / blocks * window + first) * n;
        const float *x = (const float *)a->data + at, *y = (const float *)b->data + at;
        part[i] = square ? block_sums(x, y, rows * n, true) : block_sums(x, y, rows * n, false);
    }
    for (int64_t i = 0; i < sequences; i++) {
        struct sums sum = part[i * blocks];
        for (int64_t j = 1; j < blocks; j++) {
            sum.dot += part[i * blocks + j].dot;
            sum.square += part[i * blocks + j].square;
        }
        ((double *)dot->data)[i] = sum.dot;
        if (square)
            ((double *)square->data)[i] = sum.square;
    }
    mem_free(part);
    return true;
}
