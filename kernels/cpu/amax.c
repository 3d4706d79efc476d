/* The largest magnitude of a matrix, and the search for what is not finite. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/shape.h"

/* max|x| of a row; infinity when any element is NaN or infinite. */
static float row_amax(const float *x, int64_t k)
{
    struct lanes most = lanes_zero(), infinity = lanes_all(INFINITY);
    for (int64_t i = 0; i < k; i += LANES) {
        struct lanes v = lanes_abs(lanes_load_upto(x + i, k - i, 0.0f));
        /* NaN is not less than infinity, so it too becomes infinity. */
        most = lanes_max(most, lanes_if_less(v, infinity, v, infinity));
    }
    return lanes_largest(most);
}

bool CPU(amax)(struct queue *q, const struct tensor *x, float *amax, struct err *e)
{
    if (!shape_queue(q, "amax", e) || !shape_matrix(q, "amax", "x", x, DTYPE_F32, -1, -1, e))
        return false;
    float most = 0.0f;
    /* A maximum is exact, so the order of the reduction cannot be seen. */
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(x))) schedule(static) reduction(max : most)
    for (int64_t t = 0; t < x->shape[0]; t++) {
        float row = row_amax((const float *)x->data + t * x->shape[1], x->shape[1]);
        most = row > most ? row : most;
    }
    if (isinf(most))
        return shape_not_finite(x->data, x->shape[0], x->shape[1], e);
    *amax = most > *amax ? most : *amax;
    return true;
}
