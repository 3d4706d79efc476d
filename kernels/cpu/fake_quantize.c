/* Input activations as the server would quantize them, rounded there and back (export-formats 1.1, 1.2, 2.1, 2.3).
 * Rounding is branch-free: adding and subtracting 1.5 * 2^23 units of the wanted last place rounds to nearest even. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/shape.h"

#define BLOCK ACT_NVFP4_BLOCK

/* x rounded to a multiple of 2^step times its power of two, which is at least `least`; the sign of x is kept, also on
 * zero. `factor` is 1.5 * 2^(23 + step). |x| is at most 448. */
static struct lanes round_float(struct lanes x, float least, float factor)
{
    struct lanes power = lanes_max(lanes_and(x, 0x7f800000u), lanes_all(least));
    struct lanes magic = lanes_mul(power, lanes_all(factor));
    struct lanes rounded = lanes_sub(lanes_add(x, magic), magic);
    return lanes_or(lanes_and(rounded, 0x7fffffffu), lanes_and(x, 0x80000000u));
}

static struct lanes clamp(struct lanes x, float most)
{
    return lanes_max(lanes_all(-most), lanes_min(lanes_all(most), x));
}

/* E4M3: three bits of mantissa, least exponent -6. E2M1: one bit, least exponent 0. */
static struct lanes round_e4m3(struct lanes x) { return round_float(clamp(x, 448.0f), 0x1p-6f, 0x1.8p20f); }
static struct lanes round_e2m1(struct lanes x) { return round_float(clamp(x, 6.0f), 1.0f, 0x1.8p22f); }

/* y, but NaN where x is not finite: rounding would hide that, and what comes of it must be seen as an error. */
static struct lanes nan_unless_finite(struct lanes x, struct lanes y) { return lanes_or(y, lanes_sub(x, x)); }

static struct lanes load_mode(const float *x, int64_t n, bool bf16)
{
    struct lanes v = lanes_load_upto(x, n, 0.0f);
    return bf16 ? nan_unless_finite(v, lanes_bf16(v)) : v;
}

/* s = max(max|x| / 448, 1 / (448 * 512)); y = E4M3(x / s) * s */
static void fp8_row(const float *x, int64_t k, bool bf16, float *y)
{
    struct lanes most = lanes_zero();
    for (int64_t i = 0; i < k; i += LANES)
        most = lanes_max(most, lanes_abs(load_mode(x + i, k - i, bf16)));
    float scale = lanes_largest(most) / 448.0f, least = 1.0f / (448.0f * 512.0f);
    struct lanes s = lanes_all(scale > least ? scale : least);
    for (int64_t i = 0; i < k; i += LANES) {
        struct lanes v = load_mode(x + i, k - i, bf16);
        lanes_store_upto(y + i, nan_unless_finite(v, lanes_mul(round_e4m3(lanes_div(v, s)), s)), k - i);
    }
}

/* Per 16 values: bs = E4M3((gs * max|x|) / 6), saturating; r = gs / bs; y = (E2M1(x * r) * bs) / gs. A block whose bs
 * rounds to zero is all zeros. Every operation is one in f32. */
static void nvfp4_row(const float *x, int64_t k, float gs, bool bf16, float *y)
{
    struct lanes zero = lanes_zero(), g = lanes_all(gs);
    for (int64_t i = 0; i < k; i += BLOCK) {
        struct lanes v = load_mode(x + i, BLOCK, bf16);
        struct lanes most = lanes_all(lanes_largest(lanes_abs(v)));
        struct lanes bs = round_e4m3(lanes_div(lanes_mul(g, most), lanes_all(6.0f)));
        struct lanes code = round_e2m1(lanes_mul(v, lanes_div(g, bs)));
        struct lanes back = lanes_div(lanes_mul(code, bs), g);
        lanes_store(y + i, nan_unless_finite(v, lanes_if_less(zero, bs, back, zero)));
    }
}

static void none_row(const float *x, int64_t k, bool bf16, float *y)
{
    for (int64_t i = 0; i < k; i += LANES)
        lanes_store_upto(y + i, load_mode(x + i, k - i, bf16), k - i);
}

bool CPU(fake_quantize)(struct queue *q, const struct tensor *x, enum act_rule rule, float scale, enum dtype mode,
                        struct tensor *y, struct err *e)
{
    if (!shape_fake_quantize(q, x, rule, scale, mode, y, e))
        return false;
    int64_t k = x->shape[1];
    bool bf16 = mode == DTYPE_BF16;
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(x))) schedule(static)
    for (int64_t t = 0; t < x->shape[0]; t++) {
        const float *in = (const float *)x->data + t * k;
        float *out = (float *)y->data + t * k;
        if (rule == ACT_NVFP4)
            nvfp4_row(in, k, scale, bf16, out);
        else if (rule == ACT_FP8_TOKEN)
            fp8_row(in, k, bf16, out);
        else
            none_row(in, k, bf16, out);
    }
    return true;
}
