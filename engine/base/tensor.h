#ifndef ENGINE_BASE_TENSOR_H
#define ENGINE_BASE_TENSOR_H
/* A tensor: shape, type, and where its data lies. The backend that made it frees it (kernels.h: tensor_new and
 * tensor_free); a view has `owned` false and borrows the data of another. Row-major unless `layout` says otherwise. */
#include <stdint.h>

#include "engine/base/dtype.h"

enum tensor_layout {
    TENSOR_ROWS = 0, /* row-major */
    TENSOR_PANELS,   /* a weight matrix as kernels->pack lays it out for kernels->matmul; opaque outside the backend */
};

#define TENSOR_HOST (-1)

struct tensor {
    void *data;
    enum dtype dtype;
    enum tensor_layout layout;
    int device;       /* TENSOR_HOST, or the index of an accelerator */
    int rank;         /* 1 to 4 */
    int64_t shape[4];
    bool owned;
};

static inline int64_t tensor_count(const struct tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->shape[i];
    return n;
}
/* A host view of `data` as a matrix [rows, cols]. */
static inline struct tensor tensor_matrix(void *data, enum dtype t, int64_t rows, int64_t cols)
{
    return (struct tensor){.data = data, .dtype = t, .device = TENSOR_HOST, .rank = 2, .shape = {rows, cols}};
}
static inline struct tensor tensor_vector(void *data, enum dtype t, int64_t n)
{
    return (struct tensor){.data = data, .dtype = t, .device = TENSOR_HOST, .rank = 1, .shape = {n}};
}
/* Rows [first, first + n) of a row-major matrix, as a view. */
static inline struct tensor tensor_rows(const struct tensor *t, int64_t first, int64_t n)
{
    struct tensor v = *t;
    v.data = (char *)t->data + (size_t)(first * t->shape[1]) * dtype_bytes(t->dtype);
    v.shape[0] = n;
    v.owned = false;
    return v;
}

#endif
