/* Squares and energies of weight differences, in f64: over a row by ascending column, then over the rows in order. */
#include "engine/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/shape.h"

bool energy(struct queue *q, const struct tensor *d, const struct tensor *y, double *square, double *energy,
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
        const float *x = (const float *)d->data + r * k, *w = y ? (const float *)y->data + r * k : NULL;
        double sum = 0.0, weighted = 0.0;
        for (int64_t i = 0; i < k; i++)
            sum += (double)x[i] * (double)x[i];
        for (int64_t i = 0; w && i < k; i++)
            weighted += (double)x[i] * (double)w[i];
        rows[2 * r] = sum;
        rows[2 * r + 1] = weighted;
    }
    for (int64_t r = 0; r < n; r++) {
        *square += rows[2 * r];
        if (y)
            *energy += rows[2 * r + 1];
    }
    mem_free(rows);
    return true;
}
