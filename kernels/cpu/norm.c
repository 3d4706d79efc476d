/* RMS norm, alone and after a residual addition, and its gradient. Sums over a row have sixteen partial sums (lane:
 * index mod 16), each a chain of fused multiply-adds, joined by the tree of lanes_sum. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/shape.h"

/* x += d where d is given; the sum of squares of the new x. */
static float add_squares(float *x, const float *d, int64_t h)
{
    struct lanes sum = lanes_zero();
    for (int64_t i = 0; i < h; i += LANES) {
        struct lanes v = lanes_load_upto(x + i, h - i, 0.0f);
        v = lanes_add(v, lanes_load_upto(d + i, h - i, 0.0f));
        lanes_store_upto(x + i, v, h - i);
        sum = lanes_fma(v, v, sum);
    }
    return lanes_sum(sum);
}

static float squares(const float *x, int64_t h)
{
    struct lanes sum = lanes_zero();
    for (int64_t i = 0; i < h; i += LANES) {
        struct lanes v = lanes_load_upto(x + i, h - i, 0.0f);
        sum = lanes_fma(v, v, sum);
    }
    return lanes_sum(sum);
}

/* y = w * (x * s), s = 1 / sqrt(sum / h + eps) */
static void scale_row(const float *x, const float *w, float sum, float eps, int64_t h, float *y)
{
    struct lanes s = lanes_all(1.0f / sqrtf(sum / (float)h + eps));
    for (int64_t i = 0; i < h; i += LANES) {
        struct lanes v = lanes_mul(lanes_load_upto(x + i, h - i, 0.0f), s);
        lanes_store_upto(y + i, lanes_mul(lanes_load_upto(w + i, h - i, 0.0f), v), h - i);
    }
}

static bool check(const char *name, struct queue *q, const struct tensor *x, const struct tensor *w,
                  const struct tensor *y, struct err *e)
{
    return shape_queue(q, name, e) && shape_matrix(q, name, "x", x, DTYPE_F32, -1, -1, e) &&
           shape_vector(q, name, "w", w, DTYPE_F32, x->shape[1], e) &&
           shape_matrix(q, name, "y", y, DTYPE_F32, x->shape[0], x->shape[1], e);
}

bool CPU(norm_rms)(struct queue *q, const struct tensor *x, const struct tensor *w, float eps, struct tensor *y,
                   struct err *e)
{
    if (!check("rmsnorm", q, x, w, y, e))
        return false;
    int64_t h = x->shape[1];
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(x))) schedule(static)
    for (int64_t t = 0; t < x->shape[0]; t++) {
        const float *row = (const float *)x->data + t * h;
        scale_row(row, w->data, squares(row, h), eps, h, (float *)y->data + t * h);
    }
    return true;
}

bool CPU(norm_add_rms)(struct queue *q, struct tensor *x, const struct tensor *d, const struct tensor *w, float eps,
                       struct tensor *y, struct err *e)
{
    if (!check("add_rmsnorm", q, x, w, y, e) ||
        !shape_matrix(q, "add_rmsnorm", "d", d, DTYPE_F32, x->shape[0], x->shape[1], e))
        return false;
    int64_t h = x->shape[1];
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(x))) schedule(static)
    for (int64_t t = 0; t < x->shape[0]; t++) {
        float *row = (float *)x->data + t * h;
        float sum = add_squares(row, (const float *)d->data + t * h, h);
        scale_row(row, w->data, sum, eps, h, (float *)y->data + t * h);
    }
    return true;
}

/* The sum of squares of x, and that of dy w x. */
static void backward_sums(const float *x, const float *w, const float *dy, int64_t h, float *square, float *dot)
{
    struct lanes squares_sum = lanes_zero(), dot_sum = lanes_zero();
    for (int64_t i = 0; i < h; i += LANES) {
        struct lanes v = lanes_load_upto(x + i, h - i, 0.0f);
        struct lanes u = lanes_mul(lanes_load_upto(dy + i, h - i, 0.0f), lanes_load_upto(w + i, h - i, 0.0f));
        squares_sum = lanes_fma(v, v, squares_sum);
        dot_sum = lanes_fma(u, v, dot_sum);
    }
    *square = lanes_sum(squares_sum);
    *dot = lanes_sum(dot_sum);
}

/* dx += s (u - x^ mean(u x^)), u = dy w and x^ = x s */
static void backward_row(const float *x, const float *w, const float *dy, float eps, int64_t h, float *dx)
{
    float square, dot;
    backward_sums(x, w, dy, h, &square, &dot);
    float s = 1.0f / sqrtf(square / (float)h + eps);
    struct lanes scale = lanes_all(s), mean = lanes_all(dot * s / (float)h);
    for (int64_t i = 0; i < h; i += LANES) {
        int64_t n = h - i;
        struct lanes u = lanes_mul(lanes_load_upto(dy + i, n, 0.0f), lanes_load_upto(w + i, n, 0.0f));
        struct lanes v = lanes_mul(lanes_load_upto(x + i, n, 0.0f), scale);
        struct lanes d = lanes_mul(scale, lanes_sub(u, lanes_mul(v, mean)));
        lanes_store_upto(dx + i, lanes_add(lanes_load_upto(dx + i, n, 0.0f), d), n);
    }
}

bool CPU(norm_backward)(struct queue *q, const struct tensor *x, const struct tensor *w, float eps,
                        const struct tensor *dy, struct tensor *dx, struct err *e)
{
    if (!shape_rmsnorm_backward(q, x, w, dy, dx, e))
        return false;
    int64_t h = x->shape[1];
#pragma omp parallel for num_threads(cpu_threads(q, 2 * tensor_count(x))) schedule(static)
    for (int64_t t = 0; t < x->shape[0]; t++)
        backward_row((const float *)x->data + t * h, w->data, (const float *)dy->data + t * h, eps, h,
                     (float *)dx->data + t * h);
    return true;
}
