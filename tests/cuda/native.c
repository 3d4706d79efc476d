/* Products in the hardware's own low-precision formats against sums in f64 of the numbers that the codes stand for,
 * on a device as it is and on emulated ones of several generations (emulate_control.h). */
#include "tests/cuda/pair.h"

#include "kernels/cuda/scales.h"
#include "nodes/format/packed.h"

/* Set for emulated devices whose product in that format is wrong. */
static const char *wrong(void)
{
    const char *text = getenv("EMULATE_WRONG");
    return text ? text : "";
}

static const struct native {
    const char *name;
    const struct format *format;
    enum weight_code code;
    enum act_rule rule;
    int least, before; /* compute capabilities times ten */
    float most;        /* an input whose scale is 1 */
    double bound;
} natives[] = {{"fp8", &format_fp8, CODE_FP8, ACT_FP8_TOKEN, 89, 1000, 448.0f, NATIVE_ERROR_FP8},
               {"nvfp4", &format_nvfp4, CODE_NVFP4, ACT_NVFP4, 100, 1000, 2688.0f, NATIVE_ERROR_NVFP4},
               {"fp8_block", &format_fp8_block, CODE_FP8_BLOCK, ACT_FP8_GROUP, 90, 100, 448.0f, NATIVE_ERROR_FP8_BLOCK},
               {"mxfp8", &format_mxfp8, CODE_MXFP8, ACT_MXFP8, 100, 1000, 448.0f, NATIVE_ERROR_MXFP8},
               {"int8", &format_int8, CODE_INT8, ACT_INT8_TOKEN, 80, 1000, 127.0f, NATIVE_ERROR_INT8}};

static bool fits(const struct pair *p, enum weight_code code, enum act_rule rule, int64_t n, int64_t k)
{
    bool yes;
    struct err e = {0};
    assert_ok(p->gpu->k->native_fits(p->gpu, code, rule, n, k, &yes, &e), e);
    return yes;
}

static bool usable(const struct pair *p, const struct native *f)
{
    return fits(p, f->code, f->rule, 64, 64);
}

/* ------------------------------------------------------------------------------------------------- order of scales */

/* Places of scales (row, column) in a matrix of 6 columns, so of two tiles side by side, from the manual's figure: the
 * first line of a tile is rows 0, 32, 64 and 96, four columns each, the next line rows 1, 33, 65 and 97. */
static void scales_lie_as_the_manual_says(void **state)
{
    (void)state;
    static const struct {
        int row, column, place;
    } table[] = {{0, 0, 0},      {0, 1, 1},      {0, 3, 3},     {32, 0, 4},    {64, 0, 8},     {96, 0, 12},
                 {96, 3, 15},    {1, 0, 16},     {33, 2, 22},   {2, 0, 32},    {31, 0, 496},   {127, 3, 511},
                 {0, 4, 512},    {0, 5, 513},    {32, 5, 517},  {127, 5, 1021}, {128, 0, 1024}, {129, 1, 1041},
                 {160, 3, 1031}, {128, 4, 1536}, {255, 5, 2045}};
    for (size_t i = 0; i < COUNT(table); i++)
        assert_int_equal(scale_offset(table[i].row, table[i].column, 6), table[i].place);
    assert_int_equal(scale_bytes(1, 1), 512);
    assert_int_equal(scale_bytes(128, 4), 512);
    assert_int_equal(scale_bytes(129, 4), 1024);
    assert_int_equal(scale_bytes(256, 6), 2048);
}

/* Blocks of 16 (E4M3) and of 32 (E8M0) differ in how many columns there are only: each place is taken once. */
static void every_scale_has_a_place_of_its_own(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = {{1, 16, 16}, {130, 80, 16}, {300, 4096, 16}, {130, 160, 32}, {257, 96, 32}};
    for (size_t s = 0; s < COUNT(shapes); s++) {
        int64_t rows = shapes[s][0], columns = shapes[s][1] / shapes[s][2], bytes = scale_bytes(rows, columns);
        unsigned char *seen = calloc((size_t)bytes, 1);
        assert_non_null(seen);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c++) {
                int64_t at = scale_offset(r, c, columns);
                assert_true(at >= 0 && at < bytes && seen[at] == 0);
                seen[at] = 1;
            }
        free(seen);
    }
}

/* ------------------------------------------------------------------------------------------------------- products */

static void render(const struct native *f, const float *w, int64_t n, int64_t k, float amax, struct rendering *r)
{
    struct err e = {0};
    assert_ok(format_rendering_new(r, f->format, n, k, DTYPE_BF16, &e), e);
    assert_ok(f->format->encode(w, amax, r, &e), e);
}

static void release(struct rendering *r)
{
    for (int i = 0; i < FORMAT_PARTS; i++)
        mem_free(r->part[i]);
}

static void pack_rendering(const struct pair *p, const struct native *f, const struct rendering *r, int64_t first,
                           struct native_matrix *out)
{
    struct err e = {0};
    struct packed_matrix packed;
    assert_ok(packed_new(p->gpu, f->format, r->n, r->k, DTYPE_BF16, &packed, &e), e);
    assert_ok(packed_upload(p->gpu, r, &packed, &e), e);
    assert_ok(p->gpu->k->native_pack(p->gpu, &packed, first, out, &e), e);
    packed_free(p->gpu, &packed);
}

/* A native matrix of w [n,k], packed in two pieces, the second first; w becomes what the codes stand for. */
static struct native_matrix native_of(const struct pair *p, const struct native *f, float *w, int64_t n, int64_t k)
{
    struct err e = {0};
    struct native_matrix out;
    float amax = 0.0f;
    int64_t half = n / 3;
    assert_ok(format_amax(w, n, k, &amax, &e), e);
    assert_ok(p->gpu->k->native_new(p->gpu, f->code, n, k, &out, &e), e);
    for (int i = 0; i < 2; i++) {
        int64_t first = i ? 0 : half, rows = i ? half : n - half;
        struct rendering r;
        if (rows == 0)
            continue;
        render(f, w + first * k, rows, k, amax, &r);
        f->format->decode(&r, 0, rows, w + first * k);
        pack_rendering(p, f, &r, first, &out);
        release(&r);
    }
    return out;
}

static float *multiply(const struct pair *p, const float *x, int64_t t, float scale, enum dtype mode,
                       const struct native_matrix *w)
{
    struct err e = {0};
    struct tensor gx = there(p, x, DTYPE_F32, t, w->k), gy = blank(p, DTYPE_F32, t, w->n);
    assert_ok(p->gpu->k->native_matmul(p->gpu, &gx, scale, mode, w, &gy, &e), e);
    drop(p, &gx);
    return back(p, &gy);
}

static float scale_of(const struct native *f, const float *x, int64_t count)
{
    float most = 0.0f;
    for (int64_t i = 0; i < count; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    if (f->rule != ACT_NVFP4)
        return 0.0f;
    return most > 1e-30f ? 2688.0f / most : 1.0f;
}

/* Elements below f32's normal numbers may be lost, each in its product. */
static void check(const struct native *f, const float *x, const float *w, const float *y, int64_t t, int64_t n,
                  int64_t k, const char *name)
{
    for (int64_t r = 0; r < t; r++)
        for (int64_t c = 0; c < n; c++) {
            double sum = 0.0, size = 0.0, largest = 1.0;
            for (int64_t i = 0; i < k; i++) {
                double v = (double)x[r * k + i] * (double)w[c * k + i];
                sum += v;
                size += fabs(v);
                largest = fmax(largest, fabs((double)x[r * k + i]));
            }
            double bound = f->bound * size + 0x1p-126 + (double)k * 0x1p-149 * largest;
            if (!(fabs((double)y[r * n + c] - sum) <= bound))
                fail_msg("%s: [%lld, %lld] is %.9g, expected %.9g within %.3g", name, (long long)r, (long long)c,
                         (double)y[r * n + c], sum, bound);
        }
}

static void product_case(const struct pair *p, const struct native *f, int64_t t, int64_t n, int64_t k,
                         enum numbers kind, enum dtype mode)
{
    char name[96];
    struct err e = {0};
    float *x = numbers(t * k, kind, 1), *w = numbers(n * k, kind, 2), *kept = numbers(t * k, ZEROS, 1);
    float scale = scale_of(f, x, t * k);
    CASE(name, "%s %lld x %lld x %lld, %s, numbers %d", f->name, (long long)t, (long long)n, (long long)k,
         dtype_info(mode)->name, (int)kind);
    struct tensor in = tensor_matrix(x, DTYPE_F32, t, k), out = tensor_matrix(kept, DTYPE_F32, t, k);
    assert_ok(p->cpu->k->fake_quantize(p->cpu, &in, f->rule, scale, mode, &out, &e), e);
    struct native_matrix native = native_of(p, f, w, n, k);
    assert_true(fits(p, f->code, f->rule, n, k));
    float *y = multiply(p, x, t, scale, mode, &native);
    check(f, kept, w, y, t, n, k, name);
    p->gpu->k->native_free(p->gpu, &native);
    assert_null(native.codes.data);
    free(x), free(w), free(kept), free(y);
}

static void products_are_within_their_bound(void **state)
{
    (void)state;
    struct pair p = pair_open();
    static const int64_t shapes[][3] = {{1, 1, 16},   {3, 5, 48},    {64, 16, 64}, {65, 33, 96},  {130, 129, 336},
                                        {7, 300, 1056}, {2, 64, 4096}, {1, 1, 1},    {5, 7, 33},    {66, 40, 172},
                                        {3, 130, 128}, {4, 260, 160}};
    static const enum numbers kinds[] = {RANDOM, ZEROS, DENORMALS, LARGE, MIXED};
    for (size_t f = 0; f < COUNT(natives); f++)
        for (size_t i = 0; usable(&p, &natives[f]) && i < COUNT(kinds); i++)
            for (size_t s = 0; s < COUNT(shapes); s++)
                if (format_fits(natives[f].format, shapes[s][1], shapes[s][2]))
                    product_case(&p, &natives[f], shapes[s][0], shapes[s][1], shapes[s][2], kinds[i],
                                 (s + i) % 2 ? DTYPE_F32 : DTYPE_BF16);
    pair_close(&p);
}

/* The product with unit vectors of the largest code is the weights themselves: every code and scale is in its place. */
static void every_weight_is_in_its_place(void **state)
{
    (void)state;
    enum { N = 300, K = 288 };
    struct pair p = pair_open();
    for (size_t f = 0; f < COUNT(natives); f++) {
        if (!usable(&p, &natives[f]))
            continue;
        float *w = numbers((int64_t)N * K, MIXED, 4), *x = calloc((size_t)K * K, sizeof *x);
        assert_non_null(x);
        for (int64_t i = 0; i < K; i++)
            x[i * K + i] = natives[f].most;
        struct native_matrix native = native_of(&p, &natives[f], w, N, K);
        float *y = multiply(&p, x, K, natives[f].rule == ACT_NVFP4 ? 1.0f : 0.0f, DTYPE_F32, &native);
        for (int64_t i = 0; i < K; i++)
            for (int64_t n = 0; n < N; n++) {
                double want = (double)w[n * K + i] * (double)x[i * K + i];
                if (fabs((double)y[i * N + n] - want) > 0x1p-20 * fabs(want))
                    fail_msg("%s: weight [%lld, %lld] times %g is %.9g, expected %.9g", natives[f].name, (long long)n,
                             (long long)i, (double)x[i * K + i], (double)y[i * N + n], want);
            }
        p.gpu->k->native_free(p.gpu, &native);
        free(w), free(x), free(y);
    }
    pair_close(&p);
}

static void the_bits_of_a_row_depend_on_nothing_else(void **state)
{
    (void)state;
    struct pair p = pair_open();
    int64_t n = 97, k = 320, full = p.gpu->k->chunk_rows + 3;
    for (size_t f = 0; f < COUNT(natives); f++) {
        if (!usable(&p, &natives[f]))
            continue;
        float *x = numbers(full * k, RANDOM, 1), *w = numbers(n * k, RANDOM, 2);
        float scale = scale_of(&natives[f], x, full * k);
        struct native_matrix native = native_of(&p, &natives[f], w, n, k);
        float *all = multiply(&p, x, full, scale, DTYPE_BF16, &native);
        static const int64_t some[] = {1, 2, 63, 64, 65};
        for (size_t i = 0; i < COUNT(some); i++) {
            int64_t from = full - some[i];
            float *part = multiply(&p, x + from * k, some[i], scale, DTYPE_BF16, &native);
            assert_bits(all + from * n, part, some[i] * n, natives[f].name);
            free(part);
        }
        p.gpu->k->native_free(p.gpu, &native);
        free(x), free(w), free(all);
    }
    pair_close(&p);
}

static void what_is_not_finite_fills_its_row_and_no_other(void **state)
{
    (void)state;
    enum { N = 20, K = 64, T = 3 };
    struct pair p = pair_open();
    static const uint32_t bad[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0x7f800001u, 0xffffffffu};
    for (size_t f = 0; f < COUNT(natives); f++)
        for (size_t b = 0; usable(&p, &natives[f]) && b < COUNT(bad); b++) {
            float *x = numbers(T * K, RANDOM, 1), *w = numbers(N * K, RANDOM, 2);
            x[K + 17] = f32_from_bits(bad[b]);
            struct native_matrix native = native_of(&p, &natives[f], w, N, K);
            float scale = natives[f].rule == ACT_NVFP4 ? 2000.0f : 0.0f;
            float *y = multiply(&p, x, T, scale, b % 2 ? DTYPE_F32 : DTYPE_BF16, &native);
            for (int i = 0; i < T * N; i++)
                assert_true(i / N == 1 ? isnan(y[i]) : isfinite(y[i]));
            p.gpu->k->native_free(p.gpu, &native);
            free(x), free(w), free(y);
        }
    pair_close(&p);
}

/* ----------------------------------------------------------------------------------------------- what is not done */

static void a_format_fits_by_generation_rule_shape_and_self_test(void **state)
{
    (void)state;
    struct pair p = pair_open();
    size_t n;
    const char *why;
    const struct device *d = kernels_devices(&n, &why);
    const struct kernels *k = p.gpu->k;
    for (size_t i = 0; i < COUNT(natives); i++) {
        const struct native *f = &natives[i];
        int capability = d->major * 10 + d->minor;
        bool has = capability >= f->least && capability < f->before, agrees = strcmp(wrong(), f->name) != 0;
        char note[64];
        assert_int_equal(usable(&p, f), has && agrees);
        for (int rule = ACT_NONE; rule < ACT_COUNT; rule++)
            assert_true((enum act_rule)rule == f->rule || !fits(&p, f->code, (enum act_rule)rule, 64, 64));
        assert_false(fits(&p, f->code, f->rule, 0, 64));
        CASE(note, "cuda:%d: no native %s products: the self-test's product is ", d->index, f->name);
        assert_int_equal(strstr(kernels_device_note(d->index), note) != NULL, has && !agrees);
    }
    assert_false(fits(&p, CODE_PLAIN, ACT_NONE, 64, 64));
    assert_false(fits(&p, CODE_NVFP4, ACT_NVFP4, 64, 63));
    assert_false(fits(&p, CODE_MXFP8, ACT_MXFP8, 64, 48));
    assert_false(fits(&p, CODE_INT8, ACT_INT8_TOKEN, 64, 131072)); /* sums that 32 bits do not hold */
    assert_false(fits(&p, CODE_MXFP4, ACT_MXFP4, 64, 64));
    assert_false(fits(&p, CODE_COUNT, ACT_NONE, 64, 64));
    assert_memory_equal(k->numeric_native, "native cuda sm_", 15);
    assert_true(p.cpu->k->native_fits == NULL && p.cpu->k->numeric_native == NULL);
    pair_close(&p);
}

static void matrices_of_different_global_scale_are_refused(void **state)
{
    (void)state;
    enum { N = 16, K = 32 };
    struct pair p = pair_open();
    struct err e = {0};
    const struct native *f = &natives[1];
    const struct kernels *k = p.gpu->k;
    float *w = numbers(N * K, RANDOM, 1);
    struct rendering r;
    struct packed_matrix packed;
    struct native_matrix native, fp8;
    assert_ok(k->native_new(p.gpu, CODE_NVFP4, 2 * N, K, &native, &e), e);
    render(f, w, N, K, 1.0f, &r);
    pack_rendering(&p, f, &r, 0, &native);
    release(&r);
    render(f, w, N, K, 1.25f, &r);
    assert_ok(packed_new(p.gpu, f->format, N, K, DTYPE_BF16, &packed, &e), e);
    assert_ok(packed_upload(p.gpu, &r, &packed, &e), e);
    assert_err(k->native_pack(p.gpu, &packed, N, &native, &e), e, ERR_INPUT, "must share it");
    assert_err(k->native_pack(p.gpu, &packed, N + 1, &native, &e), e, ERR_BUG, "rows 17 to 33 of 32");
    assert_ok(k->native_new(p.gpu, CODE_FP8, N, K, &fp8, &e), e);
    assert_err(k->native_pack(p.gpu, &packed, 0, &fp8, &e), e, ERR_BUG, "expected code 1");
    k->native_free(p.gpu, &native);
    k->native_free(p.gpu, &fp8);
    packed_free(p.gpu, &packed);
    release(&r);
    free(w);
    pair_close(&p);
}

static void wrong_arguments_are_reported(void **state)
{
    (void)state;
    struct pair p = pair_open();
    struct err e = {0};
    const struct kernels *k = p.gpu->k;
    struct native_matrix w;
    struct tensor x = blank(&p, DTYPE_F32, 3, 32), y = blank(&p, DTYPE_F32, 3, 4), narrow = blank(&p, DTYPE_F32, 3, 3);
    assert_err(k->native_new(p.gpu, CODE_PLAIN, 4, 32, &w, &e), e, ERR_BUG, "native_new: code 0");
    assert_err(k->native_new(p.gpu, CODE_NVFP4, 4, 30, &w, &e), e, ERR_BUG, "of {4, 30}");
    assert_ok(k->native_new(p.gpu, CODE_NVFP4, 4, 32, &w, &e), e);
    assert_err(k->native_matmul(p.gpu, &x, 1.0f, DTYPE_F32, &w, &narrow, &e), e, ERR_BUG, "native_matmul: 'y'");
    assert_err(k->native_matmul(p.gpu, &y, 1.0f, DTYPE_F32, &w, &y, &e), e, ERR_BUG, "native_matmul: 'x'");
    assert_err(k->native_matmul(p.gpu, &x, 0.0f, DTYPE_F32, &w, &y, &e), e, ERR_BUG, "global scale 0");
    assert_err(k->native_matmul(p.gpu, &x, 1.0f, DTYPE_F16, &w, &y, &e), e, ERR_BUG, "mode f16");
    assert_err(k->native_matmul(p.gpu, &x, 1.0f, DTYPE_F32, &w, &y, &e), e, ERR_BUG, "no row of the weights");
    w.global = 1e38f;
    assert_err(k->native_matmul(p.gpu, &x, 10.0f, DTYPE_F32, &w, &y, &e), e, ERR_NUMERIC, "global scales 10 of");
    k->native_free(p.gpu, &w);
    drop(&p, &x), drop(&p, &y), drop(&p, &narrow);
    pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scales_lie_as_the_manual_says),
        cmocka_unit_test(every_scale_has_a_place_of_its_own),
        cmocka_unit_test(products_are_within_their_bound),
        cmocka_unit_test(every_weight_is_in_its_place),
        cmocka_unit_test(the_bits_of_a_row_depend_on_nothing_else),
        cmocka_unit_test(what_is_not_finite_fills_its_row_and_no_other),
        cmocka_unit_test(a_format_fits_by_generation_rule_shape_and_self_test),
        cmocka_unit_test(matrices_of_different_global_scale_are_refused),
        cmocka_unit_test(wrong_arguments_are_reported),
    };
    return first_device() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIPPED;
}
