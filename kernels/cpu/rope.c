/* Rotary positions, "rotate half" (model-architectures 1.3): channel i pairs with channel i + head_dim/2. Products and
 * the sum are rounded one by one, as the reference does. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/shape.h"

/* y[i] = x[i] c[i] - x[i + half] s[i];  y[i + half] = x[i + half] c[i] + x[i] s[i] */
static void rotate(float *x, const float *c, const float *s, int64_t half)
{
    for (int64_t i = 0; i < half; i += LANES) {
        int64_t n = half - i;
        struct lanes a = lanes_load_upto(x + i, n, 0.0f), b = lanes_load_upto(x + half + i, n, 0.0f);
        struct lanes ci = lanes_load_upto(c + i, n, 0.0f), si = lanes_load_upto(s + i, n, 0.0f);
        lanes_store_upto(x + i, lanes_sub(lanes_mul(a, ci), lanes_mul(b, si)), n);
        lanes_store_upto(x + half + i, lanes_add(lanes_mul(b, ci), lanes_mul(a, si)), n);
    }
}

bool CPU(rope)(struct queue *q, struct tensor *qkv, const struct attention_shape *s, const struct tensor *cosine,
               const struct tensor *sine, struct err *e)
{
    if (!shape_rope(q, qkv, s, cosine, sine, e))
        return false;
    int64_t d = s->head_dim, half = d / 2, rotated = (int64_t)s->heads + s->kv_heads, width = rotated + s->kv_heads;
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(qkv))) schedule(static)
    for (int64_t t = 0; t < qkv->shape[0]; t++) {
        const float *c = (const float *)cosine->data + t % s->window * half;
        const float *si = (const float *)sine->data + t % s->window * half;
        for (int64_t head = 0; head < rotated; head++)
            rotate((float *)qkv->data + (t * width + head) * d, c, si, half);
    }
    return true;
}
