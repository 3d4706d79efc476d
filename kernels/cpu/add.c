/* Residual addition, the bias of a linear layer, and differences. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/shape.h"

static void add_row(float *x, const float *d, int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES)
        lanes_store_upto(x + i, lanes_add(lanes_load_upto(x + i, n - i, 0.0f), lanes_load_upto(d + i, n - i, 0.0f)),
                         n - i);
}

bool CPU(add)(struct queue *q, struct tensor *x, const struct tensor *d, struct err *e)
{
    if (!shape_queue(q, "add", e) || !shape_matrix(q, "add", "x", x, DTYPE_F32, -1, -1, e) ||
        !shape_matrix(q, "add", "d", d, DTYPE_F32, x->shape[0], x->shape[1], e))
        return false;
    int64_t n = x->shape[1];
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(x))) schedule(static)
    for (int64_t t = 0; t < x->shape[0]; t++)
        add_row((float *)x->data + t * n, (const float *)d->data + t * n, n);
    return true;
}

bool CPU(add_bias)(struct queue *q, struct tensor *y, const struct tensor *b, struct err *e)
{
    if (!shape_queue(q, "add_bias", e) || !shape_matrix(q, "add_bias", "y", y, DTYPE_F32, -1, -1, e) ||
        !shape_vector(q, "add_bias", "b", b, DTYPE_F32, y->shape[1], e))
        return false;
    int64_t n = y->shape[1];
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(y))) schedule(static)
    for (int64_t t = 0; t < y->shape[0]; t++)
        add_row((float *)y->data + t * n, b->data, n);
    return true;
}

static void subtract_row(const float *a, const float *b, float *d, int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES)
        lanes_store_upto(d + i, lanes_sub(lanes_load_upto(a + i, n - i, 0.0f), lanes_load_upto(b + i, n - i, 0.0f)),
                         n - i);
}

bool CPU(subtract)(struct queue *q, const struct tensor *a, const struct tensor *b, struct tensor *d, struct err *e)
{
    if (!shape_subtract(q, a, b, d, e))
        return false;
    int64_t n = a->shape[1];
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(a))) schedule(static)
    for (int64_t t = 0; t < a->shape[0]; t++)
        subtract_row((const float *)a->data + t * n, (const float *)b->data + t * n, (float *)d->data + t * n, n);
    return true;
}
