/* Input activations as the server would quantize them, rounded there and back (export-formats 1.1, 1.2 and 2). */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/round.h"
#include "kernels/shape.h"

#define BLOCK ACT_NVFP4_BLOCK
#define MX_BLOCK 32
#define GROUP 128

/* y, but NaN where x is not finite: rounding would hide that, and what comes of it must be seen as an error. */
static struct lanes nan_unless_finite(struct lanes x, struct lanes y) { return lanes_or(y, lanes_sub(x, x)); }

static struct lanes load_mode(const float *x, int64_t n, bool bf16)
{
    struct lanes v = lanes_load_upto(x, n, 0.0f);
    return bf16 ? nan_unless_finite(v, lanes_bf16(v)) : v;
}

static float row_amax(const float *x, int64_t k, bool bf16)
{
    struct lanes most = lanes_zero();
    for (int64_t i = 0; i < k; i += LANES)
        most = lanes_max(most, lanes_abs(load_mode(x + i, k - i, bf16)));
    return lanes_largest(most);
}

/* y = E4M3(x / s) * s */
static void e4m3_row(const float *x, int64_t k, float scale, bool bf16, float *y)
{
    struct lanes s = lanes_all(scale);
    for (int64_t i = 0; i < k; i += LANES) {
        struct lanes v = load_mode(x + i, k - i, bf16);
        lanes_store_upto(y + i, nan_unless_finite(v, lanes_mul(round_e4m3(lanes_div(v, s)), s)), k - i);
    }
}

/* s = max(max|x| / 448, 1 / (448 * 512)) */
static void fp8_row(const float *x, int64_t k, bool bf16, float *y)
{
    float scale = row_amax(x, k, bf16) / 448.0f, least = 1.0f / (448.0f * 512.0f);
    e4m3_row(x, k, scale > least ? scale : least, bf16, y);
}

/* s = max(max|x|, 1e-10) / 448 */
static void fp8_groups(const float *x, int64_t k, bool bf16, float *y)
{
    for (int64_t i = 0; i < k; i += GROUP) {
        int64_t n = k - i < GROUP ? k - i : GROUP;
        float most = row_amax(x + i, n, bf16), least = 1e-10f;
        e4m3_row(x + i, n, (most > least ? most : least) / 448.0f, bf16, y + i);
    }
}

/* y = code of (x * (127 / max|x|)) * (max|x| / 127). Where the first quotient is infinite, zeros stay zeros. */
static void int8_row(const float *x, int64_t k, bool bf16, float *y)
{
    float most = row_amax(x, k, bf16);
    struct lanes zero = lanes_zero(), inverse = lanes_all(127.0f / most), s = lanes_all(most / 127.0f);
    for (int64_t i = 0; i < k; i += LANES) {
        struct lanes v = load_mode(x + i, k - i, bf16);
        struct lanes scaled = lanes_if_less(zero, lanes_abs(v), lanes_mul(v, inverse), zero);
        struct lanes back = lanes_mul(round_integer(scaled, -128.0f, 127.0f), s);
        lanes_store_upto(y + i, nan_unless_finite(v, back), k - i);
    }
}

/* Per 32 values s = 2^ceil(log2(max|x| / 448 or 6)), the quotient's exponent and one more where there is a mantissa.
 * Scaling by a power of two is exact, or so small that the code is zero. */
static void mx_row(const float *x, int64_t k, bool is_e4m3, bool bf16, float *y)
{
    struct lanes zero = lanes_zero();
    for (int64_t i = 0; i < k; i += MX_BLOCK) {
        struct lanes a = load_mode(x + i, LANES, bf16), b = load_mode(x + i + LANES, LANES, bf16);
        float most = lanes_largest(lanes_max(lanes_abs(a), lanes_abs(b))) / (is_e4m3 ? 448.0f : 6.0f);
        float scale = f32_from_bits((f32_bits(most) + 0x7fffffu) & 0x7f800000u);
        struct lanes s = lanes_all(scale), inverse = lanes_all(1.0f / scale);
        struct lanes v[2] = {a, b};
        LANES_UNROLL
        for (int j = 0; j < 2; j++) {
            struct lanes scaled = lanes_mul(v[j], inverse);
            struct lanes code = is_e4m3 ? round_e4m3(scaled) : round_e2m1(scaled);
            /* 2^-127 is no scale: the server's kernels make it 1, and zeros of what it would have scaled */
            struct lanes back = most > 0x1p-127f ? lanes_mul(code, s) : zero;
            lanes_store(y + i + j * LANES, nan_unless_finite(v[j], back));
        }
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

static void row_by_rule(const float *x, int64_t k, enum act_rule rule, float scale, bool bf16, float *y)
{
    switch (rule) {
    case ACT_NVFP4:
        nvfp4_row(x, k, scale, bf16, y);
        break;
    case ACT_FP8_TOKEN:
        fp8_row(x, k, bf16, y);
        break;
    case ACT_FP8_GROUP:
        fp8_groups(x, k, bf16, y);
        break;
    case ACT_MXFP4:
        mx_row(x, k, false, bf16, y);
        break;
    case ACT_MXFP8:
        mx_row(x, k, true, bf16, y);
        break;
    case ACT_INT8_TOKEN:
        int8_row(x, k, bf16, y);
        break;
    default:
        none_row(x, k, bf16, y);
    }
}

bool CPU(fake_quantize)(struct queue *q, const struct tensor *x, enum act_rule rule, float scale, enum dtype mode,
                        struct tensor *y, struct err *e)
{
    if (!shape_fake_quantize(q, x, rule, scale, mode, y, e))
        return false;
    int64_t k = x->shape[1];
    bool bf16 = mode == DTYPE_BF16;
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(x))) schedule(static)
    for (int64_t t = 0; t < x->shape[0]; t++)
        row_by_rule((const float *)x->data + t * k, k, rule, scale, bf16, (float *)y->data + t * k);
    return true;
}
