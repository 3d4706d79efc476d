/* Squares and energies of weight differences, in f64: sixteen sums over a row, of the columns that are equal modulo 16,
 * then their tree (lane j and j + 8, then j + 4, j + 2, j + 1), then the rows in order. */
#include "engine/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/wide.h"
#include "kernels/shape.h"

LANES_INLINE double row_sum(const float *a, const float *b, int64_t n)
{
    struct wide sum = wide_zero();
    for (int64_t i = 0; i < n; i += LANES)
        sum = wide_exact(wide_load_upto(a + i, n - i), wide_load_upto(b + i, n - i), sum);
    return wide_sum(sum);
}

bool CPU(energy)(struct queue *q, const struct tensor *d, const struct tensor *y, double *square, double *energy,
                 struct err *e)
{
    if (!shape_queue(q, "energy", e) || !shape_matrix(q, "energy", "d", d, DTYPE_F32, -1, -1, e) ||
        (y && !shape_matrix(q, "energy", "y", y, DTYPE_F32, d->shape[0], d->shape[1], e)))
        return false;
    int64_t n = d->shape[0], k = d->shape[1];
    double *rows;
    if (!mem_raw(&rows, (size_t)(2 * n), e))
        return false;
#pragma omp parallel for schedule(static) num_threads(cpu_threads(q, 2 * n * k))
    for (int64_t r = 0; r < n; r++) {
        const float *x = (const float *)d->data + r * k;
        rows[2 * r] = row_sum(x, x, k);
        rows[2 * r + 1] = y ? row_sum(x, (const float *)y->data + r * k, k) : 0.0;
    }
    for (int64_t r = 0; r < n; r++) {
        *square += rows[2 * r];
        if (y)
            *energy += rows[2 * r + 1];
    }
    mem_free(rows);
    return true;
}
