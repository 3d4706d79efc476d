/* The part of a device's self-test that asks whether its products in low-precision formats are what the codes say. The
 * reference sums in f64 what fake_quantize makes of x and what the codes of w stand for, decoded here, on the host, by
 * the definitions of kernels/grid.h. */
#include <math.h>
#include <string.h>

#include "engine/base/mem.h"
#include "kernels/cuda/cuda.h"

/* Two matrices of one product, neither of whole tiles, and k as long as a layer's: what a device loses in a sum it
 * loses in each step. */
#define FIRST_N 140
#define N 150
#define K 4096
#define ROWS 20

struct test {
    struct queue *q;
    enum weight_code code;
    float scale;                       /* of the inputs */
    float *w /* [N, K] */, *x /* [ROWS, K] */;   /* as given, then as their codes have them */
    float *y /* [ROWS, N] */, *again /* [N] */;
    struct tensor in, kept, out;       /* x; fake-quantized; y */
    struct native_matrix native;
};

/* Near to normal, as weights and activations are: the sum of four numbers that are even over -1 to 1. */
static float draw(uint32_t *seed)
{
    float sum = 0.0f;
    for (int i = 0; i < 4; i++) {
        *seed = *seed * 1664525u + 1013904223u;
        sum += (float)(*seed >> 8) * 0x1p-23f - 1.0f;
    }
    return sum;
}

static float largest(const float *x, int64_t n)
{
    float most = 0.0f;
    for (int64_t i = 0; i < n; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

/* Rows of different sizes, so that a scale from another row is a large error, and inputs with some columns that stand
 * out, as a model's do. */
static void fill(struct test *t)
{
    uint32_t seed = 7;
    for (int64_t i = 0; i < N * K; i++)
        t->w[i] = draw(&seed) * 0.02f * (float)(1 + i / K % 5);
    for (int64_t i = 0; i < ROWS * K; i++)
        t->x[i] = draw(&seed) * (i % K % 97 == 0 ? 20.0f : 1.0f) * (float)(1 + i / K % 3);
}

static uint32_t scale_at(enum scale_type t, const uint8_t *scales, int64_t i)
{
    uint32_t word = 0; /* little-endian */
    memcpy(&word, scales + i * grid_scale_bytes(t), (size_t)grid_scale_bytes(t));
    return word;
}

/* Rows of w become what the codes say, all parts on the host. */
static void decode(enum weight_code code, const uint8_t *codes, const uint8_t *scales, float global, int64_t n,
                   float *w)
{
    const struct grid *g = &weight_grid[code];
    int64_t columns = grid_columns(g, K), per_row = grid_scale_columns(g, K);
    for (int64_t i = 0; i < n * K; i++) {
        int one = grid_bits(g->element) == 8 ? codes[i] : codes[i / 2] >> (i % 2 ? 4 : 0) & 15;
        int64_t at = i / K / g->rows * per_row + i % K / columns;
        w[i] = grid_value(g->element, (uint8_t)one) * grid_step(g->scale, scale_at(g->scale, scales, at), global);
    }
}

static size_t part_bytes(const struct tensor *t) { return (size_t)tensor_count(t) * dtype_bytes(t->dtype); }

static bool new_parts(struct queue *q, enum weight_code code, int64_t n, struct packed_matrix *p, struct err *e)
{
    struct cuda_part part;
    *p = (struct packed_matrix){.code = code, .n = n, .k = K};
    for (int i = 0; cuda_part(code, n, K, i, &part); i++)
        if (!q->k->tensor_new(q, &p->part[i], part.dtype, part.rank, part.shape, e))
            return false;
    return true;
}

/* Encodes `n` rows of w on the device, packs them from row `first` on, and decodes them here. */
static bool pack_rows(struct test *t, int64_t first, int64_t n, float amax, struct err *e)
{
    const struct kernels *k = t->q->k;
    struct packed_matrix p;
    struct tensor w = {0}, d = {0};
    uint8_t *codes = NULL, *scales = NULL;
    float global = 1.0f, *rows = t->w + first * K;
    bool ok = new_parts(t->q, t->code, n, &p, e) && mem_new(&codes, part_bytes(&p.part[0]), e) &&
              mem_new(&scales, part_bytes(&p.part[1]), e) &&
              k->tensor_new(t->q, &w, DTYPE_F32, 2, (int64_t[]){n, K}, e) &&
              k->tensor_new(t->q, &d, DTYPE_F32, 2, (int64_t[]){n, K}, e) &&
              k->upload(t->q, &w, rows, (size_t)(n * K) * sizeof *rows, e) &&
              k->encode(t->q, &w, amax, &p, &d, e) && k->native_pack(t->q, &p, first, &t->native, e) &&
              k->download(t->q, codes, &p.part[0], part_bytes(&p.part[0]), e) &&
              k->download(t->q, scales, &p.part[1], part_bytes(&p.part[1]), e) &&
              (!p.part[2].data || k->download(t->q, &global, &p.part[2], sizeof global, e));
    if (ok)
        decode(t->code, codes, scales, global, n, rows);
    for (int i = 0; i < 3; i++)
        k->tensor_free(t->q, &p.part[i]);
    k->tensor_free(t->q, &w);
    k->tensor_free(t->q, &d);
    mem_free(codes);
    mem_free(scales);
    return ok;
}

/* w as a unit of two matrices with one scale, that of a largest weight of `amax`. */
static bool pack(struct test *t, float amax, struct err *e)
{
    t->q->k->native_free(t->q, &t->native);
    return t->q->k->native_new(t->q, t->code, N, K, &t->native, e) && pack_rows(t, 0, FIRST_N, amax, e) &&
           pack_rows(t, FIRST_N, N - FIRST_N, amax, e);
}

/* y of `rows` rows of x. */
static bool multiply(struct test *t, int64_t rows, float *y, struct err *e)
{
    const struct kernels *k = t->q->k;
    struct tensor in = tensor_rows(&t->in, 0, rows), out = tensor_rows(&t->out, 0, rows);
    return k->upload(t->q, &in, t->x, (size_t)(rows * K) * sizeof *t->x, e) &&
           k->native_matmul(t->q, &in, t->scale, DTYPE_F32, &t->native, &out, e) &&
           k->download(t->q, y, &out, (size_t)(rows * N) * sizeof *y, e);
}

/* Every element against its sum in f64, within `bound` of the sum of magnitudes. */
static bool compare(const struct test *t, double bound, struct err *e)
{
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t n = 0; n < N; n++) {
            double sum = 0.0, size = 0.0;
            for (int64_t k = 0; k < K; k++) {
                double v = (double)t->x[r * K + k] * (double)t->w[n * K + k];
                sum += v;
                size += fabs(v);
            }
            if (!(fabs((double)t->y[r * N + n] - sum) <= bound * size))
                return err_set(e, ERR_DEVICE, "the self-test's product is %.9g where %.9g is right within %.3g",
                               (double)t->y[r * N + n], sum, bound * size);
        }
    return true;
}

/* Ones, but for two numbers in each 16 that meet a zero on the other side and set the scales, to powers of two: the
 * products are equal, and 3584 of them fit in 12 bits, so that their sum is exact whatever a device keeps, and shows it
 * when a part of k is lost. In E4M3 they are 448 where one is 256, in E2M1 6 and 4, in whole numbers 127.5 (of weights,
 * as grid_most has it) or 127 and 64. */
static bool test_exact(struct test *t, struct err *e)
{
    bool is_nvfp4 = t->code == CODE_NVFP4, is_int8 = t->code == CODE_INT8;
    float of_w = is_int8 ? 127.5f / 64.0f : is_nvfp4 ? 1.5f : 1.75f, of_x = is_int8 ? 127.0f / 64.0f : of_w;
    for (int64_t i = 0; i < N * K; i++)
        t->w[i] = i % 16 == 0 ? 0.0f : i % 16 == 1 ? of_w : 1.0f;
    for (int64_t i = 0; i < ROWS * K; i++)
        t->x[i] = i % 16 == 0 ? of_x : i % 16 == 1 ? 0.0f : 1.0f;
    t->scale = is_nvfp4 ? 1024.0f : 0.0f;
    return pack(t, 2688.0f / 1024.0f, e) && multiply(t, ROWS, t->y, e) && compare(t, 0.0, e);
}

/* Numbers of mixed sign. Hopper aligns the products of a step to the largest of them and of the sum so far, and
 * keeps about 14 bits, so it loses up to 2^-13 of that in each product. Of random signs, 4096 such losses come to
 * some 1e-5 of the sum of magnitudes; NATIVE_ERROR_FP8 is a hundred times that, and a twentieth of what scales in
 * wrong places make. Where all products have one sign the losses add up, to 2^-8 of it at worst. With scales per 128
 * columns the sums of 128 are added in f32, and lose less. NATIVE_ERROR_NVFP4 and NATIVE_ERROR_MXFP8 suppose that
 * Blackwell sums in f32, or nearly. */
static bool test_random(struct test *t, struct err *e)
{
    const struct kernels *k = t->q->k;
    enum act_rule rule = cuda_native_rule(t->code);
    size_t last = (ROWS - 1) * K;
    fill(t);
    t->scale = rule == ACT_NVFP4 ? 2688.0f / largest(t->x, ROWS * K) : 0.0f;
    if (!pack(t, largest(t->w, N * K), e) || !multiply(t, ROWS, t->y, e) ||
        !k->fake_quantize(t->q, &t->in, rule, t->scale, DTYPE_F32, &t->kept, e))
        return false;
    memmove(t->x, t->x + last, K * sizeof *t->x);
    if (!multiply(t, 1, t->again, e))
        return false;
    if (memcmp(t->again, t->y + (ROWS - 1) * N, N * sizeof *t->again) != 0)
        return err_set(e, ERR_DEVICE, "the self-test found that a row's product depends on the rows beside it");
    return k->download(t->q, t->x, &t->kept, ROWS * K * sizeof *t->x, e) &&
           compare(t, cuda_native_error(t->code), e);
}

/* After test_random: what is not finite must show in its row. */
static bool test_not_finite(struct test *t, struct err *e)
{
    t->x[K / 2 + 3] = INFINITY;
    if (!multiply(t, 1, t->again, e))
        return false;
    for (int64_t n = 0; n < N; n++)
        if (isfinite(t->again[n]))
            return err_set(e, ERR_DEVICE, "the self-test's product of an infinite input is %g", (double)t->again[n]);
    return true;
}

bool cuda_native_test(struct queue *q, enum weight_code code, struct err *e)
{
    struct test t = {.q = q, .code = code};
    const struct kernels *k = q->k;
    bool ok = mem_new(&t.w, N * K, e) && mem_new(&t.x, ROWS * K, e) && mem_new(&t.y, ROWS * N, e) &&
              mem_new(&t.again, N, e) && k->tensor_new(q, &t.in, DTYPE_F32, 2, (int64_t[]){ROWS, K}, e) &&
              k->tensor_new(q, &t.kept, DTYPE_F32, 2, (int64_t[]){ROWS, K}, e) &&
              k->tensor_new(q, &t.out, DTYPE_F32, 2, (int64_t[]){ROWS, N}, e) && test_exact(&t, e) &&
              test_random(&t, e) && test_not_finite(&t, e);
    k->native_free(q, &t.native);
    k->tensor_free(q, &t.in);
    k->tensor_free(q, &t.kept);
    k->tensor_free(q, &t.out);
    mem_free(t.w);
    mem_free(t.x);
    mem_free(t.y);
    mem_free(t.again);
    return ok;
}
