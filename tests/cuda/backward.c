/* Gradients, draws and sums over windows of a device against the plain CPU kernels, which are checked against
 * differences and f64 (tests/kernels): to the bit where both compute in one order, within a bound with its reason
 * elsewhere; and that bits depend on a row, or a sequence, alone. */
#include "tests/cuda/pair.h"

static const int64_t widths[] = {1, 2, 3, 4, 5, 16, 31, 32, 33, 64, 172, 352, 576, 1000, 1537};
static const enum numbers kinds[] = {RANDOM, ZEROS, DENORMALS, MIXED};

/* ------------------------------------------------------------------------------------------------------ equal bits */

static void subtract_case(const struct pair *p, int64_t rows, int64_t n, enum numbers kind)
{
    struct err e = {0};
    float *a = numbers(rows * n, kind, 1), *b = numbers(rows * n, kind, 2), *want = copy_of(a, rows * n);
    struct tensor ta = tensor_matrix(a, DTYPE_F32, rows, n), tb = tensor_matrix(b, DTYPE_F32, rows, n);
    struct tensor td = tensor_matrix(want, DTYPE_F32, rows, n);
    struct tensor ga = there(p, a, DTYPE_F32, rows, n), gb = there(p, b, DTYPE_F32, rows, n);
    struct tensor gd = blank(p, DTYPE_F32, rows, n);
    assert_ok(p->cpu->k->subtract(p->cpu, &ta, &tb, &td, &e) && p->gpu->k->subtract(p->gpu, &ga, &gb, &gd, &e) &&
                  p->gpu->k->subtract(p->gpu, &ga, &gb, &ga, &e), e); /* d may be a */
    float *got = back(p, &gd), *in_place = back(p, &ga);
    assert_bits(want, got, rows * n, "subtract");
    assert_bits(want, in_place, rows * n, "subtract, in place");
    drop(p, &gb);
    free(a), free(b), free(want), free(got), free(in_place);
}

static void swiglu_case(const struct pair *p, int64_t rows, int64_t n, enum numbers kind)
{
    struct err e = {0};
    float *gu = numbers(rows * 2 * n, kind, 1), *dy = numbers(rows * n, RANDOM, 2), *want = copy_of(gu, rows * 2 * n);
    for (int64_t i = 0; i < rows * 2 * n; i++)
        gu[i] *= 9.0f;
    struct tensor tg = tensor_matrix(gu, DTYPE_F32, rows, 2 * n), td = tensor_matrix(dy, DTYPE_F32, rows, n);
    struct tensor ty = tensor_matrix(want, DTYPE_F32, rows, 2 * n);
    struct tensor gg = there(p, gu, DTYPE_F32, rows, 2 * n), gd = there(p, dy, DTYPE_F32, rows, n);
    struct tensor gy = blank(p, DTYPE_F32, rows, 2 * n);
    assert_ok(p->cpu->k->swiglu_backward(p->cpu, &tg, &td, &ty, &e) &&
                  p->gpu->k->swiglu_backward(p->gpu, &gg, &gd, &gy, &e) &&
                  p->gpu->k->swiglu_backward(p->gpu, &gg, &gd, &gg, &e), e); /* dgu may be gu */
    float *got = back(p, &gy), *in_place = back(p, &gg);
    assert_bits(want, got, rows * 2 * n, "swiglu_backward");
    assert_bits(want, in_place, rows * 2 * n, "swiglu_backward, in place");
    drop(p, &gd);
    free(gu), free(dy), free(want), free(got), free(in_place);
}

static void elements_have_the_bits_of_the_cpu(void **state)
{
    (void)state;
    struct pair p = pair_open();
    for (size_t w = 0; w < COUNT(widths); w++)
        for (size_t i = 0; i < COUNT(kinds); i++) {
            subtract_case(&p, 1 + (int64_t)(w + i) % 5, widths[w], kinds[i]);
            swiglu_case(&p, 1 + (int64_t)(w + i) % 5, widths[w], kinds[i]);
        }
    subtract_case(&p, 300, 1000, RANDOM), swiglu_case(&p, 300, 300, RANDOM);
    subtract_case(&p, 0, 8, RANDOM), swiglu_case(&p, 0, 8, RANDOM);
    pair_close(&p);
}

/* The transpose has the bytes of packing the transposed matrix, with what pads it: it is turned back, and a product
 * with it is one with those panels. */
static void transpose_case(const struct pair *p, int64_t n, int64_t k, enum dtype mode)
{
    enum { T = 3 };
    struct err e = {0};
    struct queue *q = p->gpu;
    float *w = numbers(n * k, RANDOM, 1), *turned = numbers(n * k, ZEROS, 2), *x = numbers(T * n, RANDOM, 3);
    for (int64_t i = 0; i < n * k; i++)
        turned[i % k * n + i / k] = w[i];
    struct tensor gw = there(p, w, DTYPE_F32, n, k), gt = there(p, turned, DTYPE_F32, k, n);
    struct tensor gx = there(p, x, DTYPE_F32, T, n), y = blank(p, DTYPE_F32, T, k), z = blank(p, DTYPE_F32, T, k);
    struct tensor from = {0}, to = {0}, want = {0};
    assert_ok(q->k->panels_new(q, &from, n, k, mode, &e) && q->k->pack(q, &gw, 0, &from, &e), e);
    assert_ok(q->k->panels_new(q, &want, k, n, mode, &e) && q->k->pack(q, &gt, 0, &want, &e), e);
    assert_ok(q->k->panels_new(q, &to, k, n, mode, &e) && q->k->transpose(q, &from, &to, &e), e);
    int64_t rows = (k + 3) / 4 * 4, stride = (n + 15) / 16 * 16; /* as product.c pads them */
    struct tensor a = want, b = to;
    a.layout = b.layout = TENSOR_ROWS;
    a.shape[0] = b.shape[0] = rows, a.shape[1] = b.shape[1] = stride;
    size_t bytes = (size_t)(rows * stride) * dtype_bytes(mode);
    void *packed = malloc(2 * bytes), *got = (char *)packed + bytes;
    assert_non_null(packed);
    assert_ok(q->k->download(q, packed, &a, bytes, &e) && q->k->download(q, got, &b, bytes, &e), e);
    if (memcmp(packed, got, bytes) != 0)
        fail_msg("{%lld, %lld} in %s has other bytes than packing the transpose", (long long)n, (long long)k,
                 dtype_info(mode)->name);
    assert_ok(q->k->matmul(q, &gx, &want, &y, &e) && q->k->matmul(q, &gx, &to, &z, &e), e);
    float *by_packed = back(p, &y), *by_turned = back(p, &z);
    assert_bits(by_packed, by_turned, T * k, "a product with the transpose");
    drop(p, &gw), drop(p, &gt), drop(p, &gx), drop(p, &from), drop(p, &to), drop(p, &want);
    free(w), free(turned), free(x), free(packed), free(by_packed), free(by_turned);
}

static void the_transpose_has_the_bytes_of_the_packed_one(void **state)
{
    (void)state;
    struct pair p = pair_open();
    static const int64_t shapes[][2] = {{1, 1}, {1, 40}, {40, 1}, {16, 16}, {17, 33}, {31, 64}, {64, 31}, {100, 70}};
    for (size_t s = 0; s < COUNT(shapes); s++) {
        transpose_case(&p, shapes[s][0], shapes[s][1], DTYPE_F32);
        transpose_case(&p, shapes[s][0], shapes[s][1], DTYPE_BF16);
    }
    pair_close(&p);
}

/* --------------------------------------------------------------------------------------------------- within a bound */

/* Both sums have h terms in chains of at most h / 16, so are off by 2^-24 (h / 16 + 8) of the sum of magnitudes; the
 * result by a few times that of the largest element. */
static void norm_case(const struct pair *p, int64_t rows, int64_t h, enum numbers kind)
{
    char name[96];
    struct err e = {0};
    float *x = numbers(rows * h, kind, 1), *dy = numbers(rows * h, RANDOM, 2), *w = numbers(h, RANDOM, 3);
    float *dx = numbers(rows * h, RANDOM, 4);
    struct tensor tx = tensor_matrix(x, DTYPE_F32, rows, h), td = tensor_matrix(dy, DTYPE_F32, rows, h);
    struct tensor tw = tensor_vector(w, DTYPE_F32, h), out = tensor_matrix(dx, DTYPE_F32, rows, h);
    struct tensor gx = there(p, x, DTYPE_F32, rows, h), gd = there(p, dy, DTYPE_F32, rows, h);
    struct tensor gw = there(p, w, DTYPE_F32, h, 0), got_all = there(p, dx, DTYPE_F32, rows, h);
    struct tensor one = there(p, dx + (rows - 1) * h, DTYPE_F32, 1, h);
    struct tensor last = tensor_rows(&gx, rows - 1, 1), last_d = tensor_rows(&gd, rows - 1, 1);
    assert_ok(p->cpu->k->rmsnorm_backward(p->cpu, &tx, &tw, 1e-3f, &td, &out, &e), e);
    assert_ok(p->gpu->k->rmsnorm_backward(p->gpu, &gx, &gw, 1e-3f, &gd, &got_all, &e) &&
                  p->gpu->k->rmsnorm_backward(p->gpu, &last, &gw, 1e-3f, &last_d, &one, &e), e);
    float *got = back(p, &got_all), *alone = back(p, &one), most = 0.0f;
    for (int64_t i = 0; i < rows * h; i++)
        most = fmaxf(most, fabsf(dx[i]));
    CASE(name, "rmsnorm_backward of %lld, numbers %d", (long long)h, (int)kind);
    assert_near(dx, got, rows * h, 0x1p-22 * ((double)h / 16 + 8), (double)most, name);
    assert_bits(got + (rows - 1) * h, alone, h, name);
    drop(p, &gx), drop(p, &gd), drop(p, &gw);
    free(x), free(dy), free(w), free(dx), free(got), free(alone);
}

static void norms_agree(void **state)
{
    (void)state;
    struct pair p = pair_open();
    for (size_t w = 0; w < COUNT(widths); w++)
        for (size_t i = 0; i < COUNT(kinds); i++)
            norm_case(&p, 3, widths[w], kinds[i]);
    norm_case(&p, 2, 20000, RANDOM);
    pair_close(&p);
}

/* As for the CPU against f64, whose own bound is 4e-6 of the largest. */
static void attention_case(const struct pair *p, const struct attention_shape *a, int sequences)
{
    char name[96];
    struct err e = {0};
    int64_t rows = (int64_t)sequences * a->window, width = (int64_t)(a->heads + 2 * a->kv_heads) * a->head_dim;
    int64_t n_out = (int64_t)a->heads * a->head_dim, last = rows - a->window;
    float *x = numbers(rows * width, RANDOM, 7), *g = numbers(rows * n_out, RANDOM, 8);
    float *o = numbers(rows * n_out, ZEROS, 1), *want = numbers(rows * width, ZEROS, 1);
    struct tensor tx = tensor_matrix(x, DTYPE_F32, rows, width), ty = tensor_matrix(o, DTYPE_F32, rows, n_out);
    struct tensor tg = tensor_matrix(g, DTYPE_F32, rows, n_out), td = tensor_matrix(want, DTYPE_F32, rows, width);
    assert_ok(p->cpu->k->attention(p->cpu, &tx, a, &ty, &e), e);
    assert_ok(p->cpu->k->attention_backward(p->cpu, &tx, a, &ty, &tg, &td, &e), e);
    struct tensor gx = there(p, x, DTYPE_F32, rows, width), gy = there(p, o, DTYPE_F32, rows, n_out);
    struct tensor gg = there(p, g, DTYPE_F32, rows, n_out), gd = blank(p, DTYPE_F32, rows, width);
    struct tensor one_x = tensor_rows(&gx, last, a->window), one_y = tensor_rows(&gy, last, a->window);
    struct tensor one_g = tensor_rows(&gg, last, a->window), one_d = blank(p, DTYPE_F32, a->window, width);
    assert_ok(p->gpu->k->attention_backward(p->gpu, &gx, a, &gy, &gg, &gd, &e) &&
                  p->gpu->k->attention_backward(p->gpu, &one_x, a, &one_y, &one_g, &one_d, &e), e);
    float *got = back(p, &gd), *alone = back(p, &one_d), most = 0.0f;
    for (int64_t i = 0; i < rows * width; i++)
        most = fmaxf(most, fabsf(want[i]));
    CASE(name, "attention_backward %d over %d of %d, window %d", a->heads, a->kv_heads, a->head_dim, a->window);
    assert_near(want, got, rows * width, 8e-6, (double)most, name);
    assert_bits(got + last * width, alone, a->window * width, name); /* the last sequence on its own */
    drop(p, &gx), drop(p, &gy), drop(p, &gg);
    free(x), free(g), free(o), free(want), free(got), free(alone);
}

static void attention_agrees_and_sequences_depend_on_themselves_only(void **state)
{
    (void)state;
    struct pair p = pair_open();
    struct err e = {0};
    static const struct attention_shape shapes[] = {
        {1, 1, 1, 1},   {2, 1, 7, 3},    {3, 3, 16, 65},  {9, 3, 64, 130}, {4, 2, 96, 64},
        {2, 2, 48, 63}, {8, 1, 128, 70}, {2, 1, 200, 129}, {1, 1, 256, 80},
    };
    for (size_t s = 0; s < COUNT(shapes); s++)
        attention_case(&p, &shapes[s], 1 + (int)s % 3);
    struct attention_shape wide = {1, 1, 300, 4};
    struct tensor x = blank(&p, DTYPE_F32, 4, 900), y = blank(&p, DTYPE_F32, 4, 300);
    assert_err(p.gpu->k->attention_backward(p.gpu, &x, &wide, &y, &y, &x, &e), e, ERR_INPUT,
               "head_dim 300 is above 256");
    drop(&p, &x), drop(&p, &y);
    pair_close(&p);
}

/* Exponentials have equal bits, and sums in f64 another order: the same labels, and the rest within two roundings. */
static void draw_case(const struct pair *p, int64_t rows, int64_t n, float spread, enum fisher_draw kind)
{
    char name[96];
    struct err e = {0};
    float *s = numbers(rows * n, RANDOM, (uint64_t)n);
    uint64_t *seeds = malloc((size_t)rows * sizeof *seeds + 1);
    assert_non_null(seeds);
    for (int64_t i = 0; i < rows * n; i++)
        s[i] *= spread;
    for (int64_t t = 0; t < rows; t++)
        seeds[t] = t == 1 ? 0 : fisher_random(3, (uint64_t)(t + n));
    struct tensor ts = tensor_matrix(s, DTYPE_F32, rows, n), gs = there(p, s, DTYPE_F32, rows, n);
    struct tensor one = there(p, s + (rows - 1) * n, DTYPE_F32, 1, n);
    assert_ok(p->cpu->k->fisher_draw(p->cpu, &ts, kind, seeds, &e) &&
                  p->gpu->k->fisher_draw(p->gpu, &gs, kind, seeds, &e) &&
                  p->gpu->k->fisher_draw(p->gpu, &one, kind, seeds + rows - 1, &e), e);
    float *got = back(p, &gs), *alone = back(p, &one);
    CASE(name, "draw %d, %lld x %lld, spread %g", (int)kind, (long long)rows, (long long)n, (double)spread);
    for (int64_t i = 0; i < rows * n; i++)
        assert_near(s + i, got + i, 1, 0x1p-22, fabs((double)s[i]) + 0.01, name);
    for (int64_t i = 0; i < n && rows > 1; i++)
        assert_true(got[n + i] == 0.0f);
    assert_bits(got + (rows - 1) * n, alone, n, name);
    free(s), free(seeds), free(got), free(alone);
}

static void draws_agree(void **state)
{
    (void)state;
    struct pair p = pair_open();
    struct err e = {0};
    for (int kind = FISHER_LABEL; kind <= FISHER_SIGN; kind++) {
        for (size_t w = 0; w < COUNT(widths); w++)
            draw_case(&p, 4, widths[w], 1.0f + (float)(w % 9), (enum fisher_draw)kind);
        draw_case(&p, 3, 2048, 5.0f, (enum fisher_draw)kind);
        draw_case(&p, 3, 2049, 5.0f, (enum fisher_draw)kind);
        draw_case(&p, 5, 9000, 10.0f, (enum fisher_draw)kind);
        draw_case(&p, 3, 300, 200.0f, (enum fisher_draw)kind);
        float bad[70] = {[33] = NAN};
        const uint64_t seed = 9;
        struct tensor g = there(&p, bad, DTYPE_F32, 1, 70);
        assert_ok(p.gpu->k->fisher_draw(p.gpu, &g, (enum fisher_draw)kind, &seed, &e), e);
        float *got = back(&p, &g);
        for (int i = 0; i < 70; i++)
            assert_true(isnan(got[i]));
        free(got);
    }
    pair_close(&p);
}

/* f64 sums in another order. */
static void dots_case(const struct pair *p, int64_t sequences, int64_t window, int64_t n)
{
    struct err e = {0};
    int64_t rows = sequences * window, last = rows - window;
    float *a = numbers(rows * n, RANDOM, 1), *b = numbers(rows * n, MIXED, 2);
    double want[2][8];
    struct tensor ta = tensor_matrix(a, DTYPE_F32, rows, n), tb = tensor_matrix(b, DTYPE_F32, rows, n);
    struct tensor td = tensor_vector(want[0], DTYPE_F64, sequences), ts = tensor_vector(want[1], DTYPE_F64, sequences);
    struct tensor ga = there(p, a, DTYPE_F32, rows, n), gb = there(p, b, DTYPE_F32, rows, n);
    struct tensor dot = blank(p, DTYPE_F64, sequences, 0), square = blank(p, DTYPE_F64, sequences, 0);
    struct tensor only = blank(p, DTYPE_F64, sequences, 0), one = blank(p, DTYPE_F64, 1, 0);
    struct tensor la = tensor_rows(&ga, last, window), lb = tensor_rows(&gb, last, window);
    assert_in_range(sequences, 1, 8);
    assert_ok(p->cpu->k->window_dots(p->cpu, &ta, &tb, window, &td, &ts, &e), e);
    assert_ok(p->gpu->k->window_dots(p->gpu, &ga, &gb, window, &dot, &square, &e) &&
                  p->gpu->k->window_dots(p->gpu, &ga, &gb, window, &only, NULL, &e) &&
                  p->gpu->k->window_dots(p->gpu, &la, &lb, window, &one, NULL, &e), e);
    double *d = back(p, &dot), *s = back(p, &square), *o = back(p, &only), *alone = back(p, &one);
    for (int64_t i = 0; i < sequences; i++)
        if (!(fabs(d[i] - want[0][i]) <= 1e-12 * (double)(window * n) && fabs(s[i] - want[1][i]) <= 1e-12 * want[1][i]))
            fail_msg("sequence %lld of %lld x %lld: %.17g and %.17g, expected %.17g and %.17g", (long long)i,
                     (long long)window, (long long)n, d[i], s[i], want[0][i], want[1][i]);
    assert_memory_equal(d, o, (size_t)sequences * sizeof *d);
    assert_memory_equal(d + sequences - 1, alone, sizeof *d);
    drop(p, &ga), drop(p, &gb);
    free(a), free(b), free(d), free(s), free(o), free(alone);
}

static void sums_over_windows_agree(void **state)
{
    (void)state;
    struct pair p = pair_open();
    for (size_t w = 0; w < COUNT(widths); w++)
        dots_case(&p, 1 + (int64_t)w % 4, 1 + (int64_t)w * 3, widths[w]);
    dots_case(&p, 8, 8, 100), dots_case(&p, 3, 9, 100), dots_case(&p, 1, 256, 40);
    pair_close(&p);
}

static void wrong_shapes_are_reported(void **state)
{
    (void)state;
    struct pair p = pair_open();
    struct err e = {0};
    struct queue *q = p.gpu;
    const uint64_t seeds[4] = {1, 2, 3, 4};
    struct tensor a = blank(&p, DTYPE_F32, 4, 3), b = blank(&p, DTYPE_F32, 4, 4), v = blank(&p, DTYPE_F32, 4, 0);
    struct tensor panels = {0};
    assert_ok(q->k->panels_new(q, &panels, 3, 3, DTYPE_F32, &e), e);
    assert_err(q->k->rmsnorm_backward(q, &b, &v, 1e-5f, &a, &b, &e), e, ERR_BUG, "rmsnorm_backward: 'dy'");
    assert_err(q->k->attention_backward(q, &a, &(struct attention_shape){1, 1, 1, 4}, &b, &b, &a, &e), e, ERR_BUG,
               "'out'");
    assert_err(q->k->swiglu_backward(q, &b, &a, &b, &e), e, ERR_BUG, "swiglu_backward: 'gu'");
    assert_err(q->k->transpose(q, &b, &panels, &e), e, ERR_BUG, "transpose: 'w'");
    assert_err(q->k->fisher_draw(q, &v, FISHER_SIGN, seeds, &e), e, ERR_BUG, "fisher_draw: 's'");
    assert_err(q->k->window_dots(q, &a, &a, 3, &v, NULL, &e), e, ERR_BUG, "window_dots: 4 rows");
    assert_err(q->k->subtract(q, &a, &b, &a, &e), e, ERR_BUG, "subtract: 'b'");
    drop(&p, &a), drop(&p, &b), drop(&p, &v), drop(&p, &panels);
    pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(elements_have_the_bits_of_the_cpu),
        cmocka_unit_test(the_transpose_has_the_bytes_of_the_packed_one),
        cmocka_unit_test(norms_agree),
        cmocka_unit_test(attention_agrees_and_sequences_depend_on_themselves_only),
        cmocka_unit_test(draws_agree),
        cmocka_unit_test(sums_over_windows_agree),
        cmocka_unit_test(wrong_shapes_are_reported),
    };
    return first_device() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIPPED;
}
