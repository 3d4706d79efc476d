/* SwiGLU of packed gate and up projections and its gradient, with the exp that all kernels share. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/shape.h"

/* silu(x) = x / (1 + e^-x). With u = e^-|x| it is x / (1 + u) for x >= 0 and x u / (1 + u) below, which neither
 * overflows nor loses the small end. */
static struct lanes silu(struct lanes x)
{
    struct lanes one = lanes_all(1.0f);
    struct lanes u = lanes_exp(lanes_sub(lanes_zero(), lanes_abs(x)));
    struct lanes top = lanes_if_less(x, lanes_zero(), lanes_mul(x, u), x);
    return lanes_div(top, lanes_add(one, u));
}

bool CPU(swiglu)(struct queue *q, const struct tensor *gu, struct tensor *y, struct err *e)
{
    if (!shape_queue(q, "swiglu", e) || !shape_matrix(q, "swiglu", "y", y, DTYPE_F32, -1, -1, e) ||
        !shape_matrix(q, "swiglu", "gu", gu, DTYPE_F32, y->shape[0], 2 * y->shape[1], e))
        return false;
    int64_t n = y->shape[1];
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(gu))) schedule(static)
    for (int64_t t = 0; t < y->shape[0]; t++) {
        const float *gate = (const float *)gu->data + t * 2 * n, *up = gate + n;
        float *out = (float *)y->data + t * n;
        for (int64_t i = 0; i < n; i += LANES) {
            struct lanes v = silu(lanes_load_upto(gate + i, n - i, 0.0f));
            lanes_store_upto(out + i, lanes_mul(v, lanes_load_upto(up + i, n - i, 0.0f)), n - i);
        }
    }
    return true;
}

/* With g the logistic function and h = 1 - g, neither of which the other cancels: silu = a g, silu' = g + a g h. */
static void backward_row(const float *gate, const float *up, const float *dy, float *dgate, float *dup, int64_t n)
{
    const struct lanes zero = lanes_zero(), one = lanes_all(1.0f);
    for (int64_t i = 0; i < n; i += LANES) {
        struct lanes a = lanes_load_upto(gate + i, n - i, 0.0f), b = lanes_load_upto(up + i, n - i, 0.0f);
        struct lanes d = lanes_load_upto(dy + i, n - i, 0.0f);
        struct lanes u = lanes_exp(lanes_sub(zero, lanes_abs(a)));
        struct lanes large = lanes_div(one, lanes_add(one, u)), small = lanes_mul(u, large);
        struct lanes g = lanes_if_less(a, zero, small, large), h = lanes_if_less(a, zero, large, small);
        struct lanes value = lanes_mul(a, g);
        lanes_store_upto(dgate + i, lanes_mul(lanes_mul(d, b), lanes_fma(value, h, g)), n - i);
        lanes_store_upto(dup + i, lanes_mul(d, value), n - i);
    }
}

bool CPU(swiglu_backward)(struct queue *q, const struct tensor *gu, const struct tensor *dy, struct tensor *dgu,
                          struct err *e)
{
    if (!shape_swiglu_backward(q, gu, dy, dgu, e))
        return false;
    int64_t n = dy->shape[1];
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(gu))) schedule(static)
    for (int64_t t = 0; t < dy->shape[0]; t++) {
        const float *gate = (const float *)gu->data + t * 2 * n;
        float *dgate = (float *)dgu->data + t * 2 * n;
        backward_row(gate, gate + n, (const float *)dy->data + t * n, dgate, dgate + n, n);
    }
    return true;
}

void CPU(exp)(const float *x, float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES)
        lanes_store_upto(y + i, lanes_exp(lanes_load_upto(x + i, n - i, 0.0f)), n - i);
}
