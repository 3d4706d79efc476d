/* One tile of teacher and candidate logits folded into the running KL of its rows. Columns go in chunks of 2048: the
 * largest logit first, then sums of exp(s - m) and of exp(s_t - m)(s_t - s_c) in sixteen f32 lanes (column mod 16),
 * joined by the tree of lanes_sum and added to the state in f64. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/shape.h"

#define CHUNK 2048
/* Fills the last vector: its exp is 0, and finite, so that its difference is 0 and not NaN. */
#define FILL (-1e30f)

/* e^x for x <= 0 in f64, to 1e-16 of its value; 0 below -700. Its own, so that the bits are those of no libm. */
static double exp_f64(double x)
{
    if (!(x >= -700.0))
        return x < -700.0 ? 0.0 : x; /* NaN stays */
    double n = (x * 0x1.71547652b82fep+0 + 0x1.8p52) - 0x1.8p52;
    double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
    double p = 1.0;
    for (int i = 14; i >= 1; i--) /* the series of e^r, innermost term first */
        p = 1.0 + p * r / i;
    union { uint64_t u; double f; } scale = {.u = (uint64_t)((int64_t)n + 1023) << 52};
    return p * scale.f;
}

struct peak {
    float value;
    int64_t column;
};

/* The largest of n logits and its first column. Columns are kept as floats: below 2048 they are exact. */
static struct peak find_peak(const float *s, int64_t n)
{
    struct lanes best = lanes_all(-INFINITY), at = lanes_zero(), here = lanes_zero();
    for (int64_t i = 0; i < n; i += LANES) {
        struct lanes v = lanes_load_upto(s + i, n - i, -INFINITY);
        at = lanes_if_less(best, v, here, at);
        best = lanes_if_less(best, v, v, best);
        here = lanes_add(here, lanes_all((float)LANES));
    }
    float value[LANES], first[LANES];
    lanes_store(value, best);
    lanes_store(first, at);
    struct peak p = {.value = value[0], .column = (int64_t)first[0]};
    for (int j = 1; j < LANES; j++) {
        int64_t column = (int64_t)first[j] + j;
        if (value[j] > p.value || (value[j] == p.value && column < p.column))
            p = (struct peak){value[j], column};
    }
    return p;
}

/* Moves a running maximum up to `value`; sums are rescaled. `cross` may be NULL. */
static float raise_max(double *max, double *sum, double *cross, float value)
{
    if ((double)value > *max) {
        double fade = exp_f64(*max - (double)value); /* 0 from the initial -infinity */
        *max = (double)value;
        *sum *= fade;
        if (cross)
            *cross *= fade;
    }
    return (float)*max;
}

static void keep_best(float *best, int32_t *arg, struct peak p, int64_t first)
{
    int64_t column = first + p.column;
    if (p.value > *best || (p.value == *best && column < *arg)) {
        *best = p.value;
        *arg = (int32_t)column;
    }
}

/* Row r of the state takes n (at most CHUNK) columns, the first of which is `first` of the vocabulary. */
static void fold(const float *t, const float *c, int64_t n, int64_t first, const struct kl_state *s, int64_t r)
{
    struct peak pt = find_peak(t, n), pc = find_peak(c, n);
    keep_best(&s->best_t[r], &s->arg_t[r], pt, first);
    keep_best(&s->best_c[r], &s->arg_c[r], pc, first);
    struct lanes max_t = lanes_all(raise_max(&s->max_t[r], &s->sum_t[r], &s->cross[r], pt.value));
    struct lanes max_c = lanes_all(raise_max(&s->max_c[r], &s->sum_c[r], NULL, pc.value));
    struct lanes sum_t = lanes_zero(), sum_c = lanes_zero(), cross = lanes_zero();
    for (int64_t i = 0; i < n; i += LANES) {
        struct lanes a = lanes_load_upto(t + i, n - i, FILL), b = lanes_load_upto(c + i, n - i, FILL);
        struct lanes p = lanes_exp(lanes_sub(a, max_t));
        sum_t = lanes_add(sum_t, p);
        sum_c = lanes_add(sum_c, lanes_exp(lanes_sub(b, max_c)));
        cross = lanes_fma(p, lanes_sub(a, b), cross);
    }
    s->sum_t[r] += (double)lanes_sum(sum_t);
    s->sum_c[r] += (double)lanes_sum(sum_c);
    s->cross[r] += (double)lanes_sum(cross);
}

/* The logits of the row's next token, if this tile of b columns holds it. */
static void note_target(const float *t, const float *c, int64_t b, int64_t first, const struct kl_state *s, int64_t r)
{
    int64_t at = s->target[r] - first;
    if (s->target[r] >= 0 && at >= 0 && at < b) {
        s->target_t[r] = t[at];
        s->target_c[r] = c[at];
    }
}

bool CPU(kl_tile)(struct queue *q, const struct tensor *s_t, const struct tensor *s_c, int64_t first,
                  struct kl_state *state, struct err *e)
{
    if (!shape_kl_tile(q, s_t, s_c, first, e))
        return false;
    int64_t b = s_t->shape[1];
#pragma omp parallel for num_threads(cpu_threads(q, 4 * tensor_count(s_t))) schedule(static)
    for (int64_t r = 0; r < s_t->shape[0]; r++) {
        const float *t = (const float *)s_t->data + r * b, *c = (const float *)s_c->data + r * b;
        for (int64_t i = 0; i < b; i += CHUNK)
            fold(t + i, c + i, b - i < CHUNK ? b - i : CHUNK, first + i, state, r);
        if (state->target)
            note_target(t, c, b, first, state, r);
    }
    return true;
}
