#include "kernels/shape.h"

#include <stdio.h>

static const char *size_text(int64_t n, char out[24])
{
    if (n < 0)
        snprintf(out, 24, "any");
    else
        snprintf(out, 24, "%lld", (long long)n);
    return out;
}

static bool mismatch(const struct queue *q, const char *kernel, const char *name, const struct tensor *t,
                     const char *expected, struct err *e)
{
    return err_set(e, ERR_BUG, "%s: '%s' is %s of rank %d [%lld, %lld] in layout %d on device %d, expected %s on device %d",
                   kernel,
                   name, dtype_info(t->dtype)->name, t->rank, (long long)t->shape[0],
                   (long long)(t->rank > 1 ? t->shape[1] : 1), (int)t->layout, t->device, expected, q->device);
}

static bool is_size(int64_t size, int64_t expected)
{
    return size >= 0 && (expected < 0 || size == expected);
}

bool shape_matrix(const struct queue *q, const char *kernel, const char *name, const struct tensor *t,
                  enum dtype type, int64_t rows, int64_t columns, struct err *e)
{
    if (t->dtype == type && t->layout == TENSOR_ROWS && t->device == q->device && t->rank == 2 &&
        is_size(t->shape[0], rows) && is_size(t->shape[1], columns))
        return true;
    char expected[96], r[24], c[24];
    snprintf(expected, sizeof expected, "row-major %s [%s, %s]", dtype_info(type)->name, size_text(rows, r),
             size_text(columns, c));
    return mismatch(q, kernel, name, t, expected, e);
}

bool shape_vector(const struct queue *q, const char *kernel, const char *name, const struct tensor *t,
                  enum dtype type, int64_t n, struct err *e)
{
    if (t->dtype == type && t->layout == TENSOR_ROWS && t->device == q->device && t->rank == 1 &&
        is_size(t->shape[0], n))
        return true;
    char expected[96], r[24];
    snprintf(expected, sizeof expected, "%s [%s]", dtype_info(type)->name, size_text(n, r));
    return mismatch(q, kernel, name, t, expected, e);
}

bool shape_panels(const struct queue *q, const char *kernel, const char *name, const struct tensor *t,
                  int64_t n, int64_t k, struct err *e)
{
    if ((t->dtype == DTYPE_F32 || t->dtype == DTYPE_BF16) && t->layout == TENSOR_PANELS && t->device == q->device &&
        t->rank == 2 && is_size(t->shape[0], n) && is_size(t->shape[1], k))
        return true;
    char expected[96], r[24], c[24];
    snprintf(expected, sizeof expected, "panels f32 or bf16 {%s, %s}", size_text(n, r), size_text(k, c));
    return mismatch(q, kernel, name, t, expected, e);
}

bool shape_queue(const struct queue *q, const char *kernel, struct err *e)
{
    if (q->threads >= 1)
        return true;
    return err_set(e, ERR_BUG, "%s: the queue has %d threads, expected at least 1", kernel, q->threads);
}
