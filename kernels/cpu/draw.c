/* Draws at the logits whose covariance is the Fisher matrix of the softmax (kernels.h; model-architectures 13.1). A row
 * is read for its largest logit m, overwritten with exp(s - m) or its signed square root, and scaled. Sums go over
 * chunks of CHUNK columns: sixteen f64 sums each, of the columns equal modulo 16, joined by the tree of wide_sum; the
 * chunks are added in order. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/wide.h"
#include "kernels/shape.h"

#define CHUNK 2048

static float largest(const float *s, int64_t n)
{
    struct lanes most = lanes_all(-INFINITY);
    for (int64_t i = 0; i < n; i += LANES)
        most = lanes_max(most, lanes_load_upto(s + i, n - i, -INFINITY)); /* NaN goes on, and into the sums */
    return lanes_largest(most);
}

static double chunk_sum(const float *x, int64_t n)
{
    struct wide sum = wide_zero();
    for (int64_t i = 0; i < n; i += LANES)
        sum = wide_add(sum, wide_load_upto(x + i, n - i));
    return wide_sum(sum);
}

/* -- one label ----------------------------------------------------------------------------------------------------- */

/* s = exp(s - top); their sum. n is at most CHUNK. */
static double exponentials(float *s, int64_t n, float top)
{
    const struct lanes most = lanes_all(top);
    for (int64_t i = 0; i < n; i += LANES)
        lanes_store_upto(s + i, lanes_exp(lanes_sub(lanes_load_upto(s + i, n - i, -INFINITY), most)), n - i);
    return chunk_sum(s, n);
}

/* The first column at which the sum of x exceeds `target`, which is below the whole sum; where rounding hides it, the
 * last that is not zero. */
static int64_t find_column(const float *x, int64_t n, double target)
{
    double before = 0.0;
    int64_t first = 0, end = n;
    for (; first < n; first += CHUNK) {
        int64_t some = n - first < CHUNK ? n - first : CHUNK;
        double sum = chunk_sum(x + first, some);
        if (before + sum > target) {
            end = first + some;
            break;
        }
        before += sum;
    }
    for (int64_t i = first; i < end; i++) {
        before += (double)x[i];
        if (before > target)
            return i;
    }
    while (end > 1 && !(x[end - 1] > 0.0f))
        end--;
    return end - 1;
}

/* p - onehot(y) */
static void draw_label(float *s, int64_t n, uint64_t seed)
{
    float top = largest(s, n);
    double total = 0.0, unit = (double)(fisher_random(seed, 0) >> 11) * 0x1p-53;
    for (int64_t i = 0; i < n; i += CHUNK)
        total += exponentials(s + i, n - i < CHUNK ? n - i : CHUNK, top);
    int64_t label = find_column(s, n, unit * total);
    struct lanes scale = lanes_all((float)(1.0 / total));
    for (int64_t i = 0; i < n; i += LANES)
        lanes_store_upto(s + i, lanes_mul(lanes_load_upto(s + i, n - i, 0.0f), scale), n - i);
    s[label] -= 1.0f;
}

/* -- a sign for every column --------------------------------------------------------------------------------------- */

/* s = z sqrt(exp(s - top)), z the signs of columns [first, first + n), first a multiple of 64. Adds up exp(s - top)
 * and the new s. */
static void signed_roots(float *s, int64_t first, int64_t n, float top, uint64_t seed, double *total, double *roots)
{
    const struct lanes most = lanes_all(top);
    struct wide sum = wide_zero(), root_sum = wide_zero();
    uint64_t bits = 0;
    for (int64_t i = 0; i < n; i += LANES) {
        bits = i % 64 == 0 ? fisher_random(seed, (uint64_t)(first + i) / 64) : bits >> LANES;
        struct lanes p = lanes_exp(lanes_sub(lanes_load_upto(s + i, n - i, -INFINITY), most));
        struct lanes r = lanes_negate(lanes_sqrt(p), (uint32_t)bits & 0xffffu);
        lanes_store_upto(s + i, r, n - i);
        sum = wide_add(sum, wide_of(p));
        root_sum = wide_add(root_sum, wide_of(r));
    }
    *total += wide_sum(sum);
    *roots += wide_sum(root_sum);
}

/* sqrt(p) z - p (sqrt(p) . z). With r = z sqrt(exp(s - m)) and t the sum of exp(s - m), sqrt(p) z = r t^-1/2 and
 * p = r^2 / t, so it is r (t^-1/2 - r t^-3/2 sum r). */
static void draw_signs(float *s, int64_t n, uint64_t seed)
{
    float top = largest(s, n);
    double total = 0.0, roots = 0.0;
    for (int64_t i = 0; i < n; i += CHUNK)
        signed_roots(s + i, i, n - i < CHUNK ? n - i : CHUNK, top, seed, &total, &roots);
    double scale = 1.0 / sqrt(total);
    struct lanes one = lanes_all((float)scale), all = lanes_all((float)(roots / total * scale));
    for (int64_t i = 0; i < n; i += LANES) {
        struct lanes r = lanes_load_upto(s + i, n - i, 0.0f);
        lanes_store_upto(s + i, lanes_mul(r, lanes_sub(one, lanes_mul(r, all))), n - i);
    }
}

bool CPU(fisher_draw)(struct queue *q, struct tensor *s, enum fisher_draw kind, const uint64_t *seeds, struct err *e)
{
    if (!shape_fisher_draw(q, s, kind, seeds, e))
        return false;
    int64_t n = s->shape[1];
#pragma omp parallel for num_threads(cpu_threads(q, 4 * tensor_count(s))) schedule(static)
    for (int64_t t = 0; t < s->shape[0]; t++) {
        float *row = (float *)s->data + t * n;
        if (seeds[t] == 0)
            memset(row, 0, (size_t)n * sizeof *row);
        else if (n > 0 && kind == FISHER_LABEL)
            draw_label(row, n, seeds[t]);
        else if (n > 0)
            draw_signs(row, n, seeds[t]);
    }
    return true;
}
