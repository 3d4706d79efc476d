/* Rows of the embedding table, widened to f32. */
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/shape.h"

static void widen_row(enum dtype t, const void *table, int64_t row, int64_t h, float *y)
{
    const uint16_t *u = (const uint16_t *)table + row * h;
    if (t == DTYPE_F32) {
        memcpy(y, (const float *)table + row * h, (size_t)h * sizeof *y);
    } else if (t == DTYPE_BF16) {
        for (int64_t i = 0; i < h; i++)
            y[i] = bf16_to_f32(u[i]);
    } else {
        for (int64_t i = 0; i < h; i++)
            y[i] = f16_to_f32(u[i]);
    }
}

bool embed(struct queue *q, const struct tensor *table, const struct tensor *ids, struct tensor *y, struct err *e)
{
    enum dtype t = table->dtype == DTYPE_BF16 || table->dtype == DTYPE_F16 ? table->dtype : DTYPE_F32;
    if (!shape_queue(q, "embed", e) || !shape_matrix(q, "embed", "table", table, t, -1, -1, e) ||
        !shape_vector(q, "embed", "ids", ids, DTYPE_I32, -1, e) ||
        !shape_matrix(q, "embed", "y", y, DTYPE_F32, ids->shape[0], table->shape[1], e))
        return false;
    const int32_t *id = ids->data;
    int64_t h = table->shape[1];
    for (int64_t r = 0; r < ids->shape[0]; r++)
        if (id[r] < 0 || id[r] >= table->shape[0])
            return err_set(e, ERR_BUG, "embed: ids[%lld] is %d, expected 0 to %lld", (long long)r, id[r],
                           (long long)table->shape[0] - 1);
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(y))) schedule(static)
    for (int64_t r = 0; r < ids->shape[0]; r++)
        widen_row(t, table->data, id[r], h, (float *)y->data + r * h);
    return true;
}
