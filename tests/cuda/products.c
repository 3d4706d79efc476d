/* Products on a device: errors within their bound, exact where the numbers allow, and rows whose bits depend on nothing
 * else; panels from every packed form; what a full or lost device does. */
#include "tests/cuda/pair.h"

#include "nodes/format/packed.h"

static struct tensor panels_of(const struct pair *p, const float *w, int64_t n, int64_t k, enum dtype mode)
{
    struct err e = {0};
    struct tensor panels = {0}, gw = there(p, w, DTYPE_F32, n, k);
    assert_ok(p->gpu->k->panels_new(p->gpu, &panels, n, k, mode, &e), e);
    assert_ok(p->gpu->k->pack(p->gpu, &gw, 0, &panels, &e), e);
    drop(p, &gw);
    return panels;
}

static float *multiply(const struct pair *p, const float *x, int64_t t, const struct tensor *w)
{
    struct err e = {0};
    struct tensor gx = there(p, x, DTYPE_F32, t, w->shape[1]), gy = blank(p, DTYPE_F32, t, w->shape[0]);
    assert_ok(p->gpu->k->matmul(p->gpu, &gx, w, &gy, &e), e);
    drop(p, &gx);
    return back(p, &gy);
}

static float in_mode(float x, enum dtype mode) { return mode == DTYPE_BF16 ? bf16_to_f32(bf16_from_f32(x)) : x; }

/* A sum of k products in any order, in f32: off by at most (k + 1) 2^-24 of the sum of their magnitudes. */
static void check_product(const float *x, const float *w, const float *y, int64_t t, int64_t n, int64_t k,
                          enum dtype mode, bool exact)
{
    for (int64_t r = 0; r < t; r++)
        for (int64_t c = 0; c < n; c++) {
            double sum = 0.0, size = 0.0;
            for (int64_t i = 0; i < k; i++) {
                double v = (double)in_mode(x[r * k + i], mode) * (double)in_mode(w[c * k + i], mode);
                sum += v;
                size += fabs(v);
            }
            double bound = exact ? 0.0 : (double)(k + 1) * 0x1p-24 * size + 0x1p-149 * (double)(k + 1);
            if (!(fabs((double)y[r * n + c] - sum) <= bound))
                fail_msg("%s %lld x %lld x %lld: [%lld, %lld] is %.9g, expected %.9g within %.3g",
                         dtype_info(mode)->name, (long long)t, (long long)n, (long long)k, (long long)r, (long long)c,
                         (double)y[r * n + c], sum, bound);
        }
}

static void products_are_within_their_bound(void **state)
{
    (void)state;
    struct pair p = pair_open();
    static const int64_t shapes[][3] = {{1, 1, 1},   {3, 5, 7},    {2, 16, 16},  {64, 40, 33}, {65, 17, 100},
                                        {130, 9, 172}, {7, 100, 352}, {1, 33, 576}};
    static const enum numbers kinds[] = {RANDOM, ZEROS, DENORMALS, MIXED, INTEGERS};
    for (size_t s = 0; s < COUNT(shapes); s++)
        for (size_t i = 0; i < COUNT(kinds); i++)
            for (int m = 0; m < 2; m++) {
                int64_t t = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
                enum dtype mode = m ? DTYPE_BF16 : DTYPE_F32;
                float *x = numbers(t * k, kinds[i], 1), *w = numbers(n * k, kinds[i], 2);
                struct tensor panels = panels_of(&p, w, n, k, mode);
                float *y = multiply(&p, x, t, &panels);
                check_product(x, w, y, t, n, k, mode, kinds[i] == INTEGERS);
                drop(&p, &panels);
                free(x), free(w), free(y);
            }
    pair_close(&p);
}

/* The same row alone, in other company, in another place, and in a part of the weights. */
static void the_bits_of_a_row_depend_on_nothing_else(void **state)
{
    (void)state;
    struct pair p = pair_open();
    struct err e = {0};
    int64_t n = 96, k = 300, full = p.gpu->k->chunk_rows + 3;
    for (int m = 0; m < 2; m++) {
        float *x = numbers(full * k, RANDOM, 1), *w = numbers(n * k, RANDOM, 2);
        struct tensor panels = panels_of(&p, w, n, k, m ? DTYPE_BF16 : DTYPE_F32);
        float *all = multiply(&p, x, full, &panels);
        static const int64_t some[] = {1, 2, 63, 64, 65};
        for (size_t i = 0; i < COUNT(some); i++) {
            int64_t from = full - some[i];
            float *part = multiply(&p, x + from * k, some[i], &panels);
            assert_bits(all + from * n, part, some[i] * n, "rows from the end");
            free(part);
        }
        /* Parts of the weights have one number of rows of their own: the same bits wherever a row comes. */
        struct tensor gx = there(&p, x, DTYPE_F32, 70, k), gy = blank(&p, DTYPE_F32, 70, 32);
        struct tensor one = tensor_rows(&gx, 69, 1), y1 = blank(&p, DTYPE_F32, 1, 32);
        assert_ok(p.gpu->k->matmul_part(p.gpu, &gx, &panels, 64, &gy, &e), e);
        assert_ok(p.gpu->k->matmul_part(p.gpu, &one, &panels, 64, &y1, &e), e);
        drop(&p, &gx);
        float *a = back(&p, &gy), *b = back(&p, &y1);
        assert_bits(a + 69 * 32, b, 32, "a part");
        check_product(x, w + 64 * k, a, 3, 32, k, m ? DTYPE_BF16 : DTYPE_F32, false);
        drop(&p, &panels);
        free(x), free(w), free(all), free(a), free(b);
    }
    pair_close(&p);
}

/* Rows [row, row + n) of the panels, as the product with unit vectors reads them. */
static void check_panels(const struct pair *p, const struct tensor *panels, int64_t row, int64_t n, const float *want,
                         const char *name)
{
    int64_t k = panels->shape[1];
    float *x = calloc((size_t)(k * k), sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < k; i++)
        x[i * k + i] = 1.0f;
    float *y = multiply(p, x, k, panels);
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < k; c++)
            if (y[c * panels->shape[0] + row + r] != in_mode(want[r * k + c], panels->dtype))
                fail_msg("%s: weight [%lld, %lld] is %.9g, expected %.9g", name, (long long)r, (long long)c,
                         (double)y[c * panels->shape[0] + row + r], (double)in_mode(want[r * k + c], panels->dtype));
    free(x), free(y);
}

static void unpack_case(const struct pair *p, const struct format *f, enum dtype source, int64_t k, enum dtype mode)
{
    char name[64];
    enum { N = 21, BEFORE = 3 };
    struct err e = {0};
    struct rendering r;
    struct packed_matrix packed;
    struct tensor panels;
    float *w = numbers(N * k, RANDOM, (uint64_t)k), amax = 0.0f, *want = numbers(N * k, ZEROS, 1);
    float *before = numbers(BEFORE * k, RANDOM, 3);
    CASE(name, "%s of %s, k %lld, %s", f->name, dtype_info(source)->name, (long long)k, dtype_info(mode)->name);
    assert_ok(format_amax(w, N, k, &amax, &e), e);
    assert_ok(format_rendering_new(&r, f, N, k, source, &e), e);
    if (f->code == CODE_PLAIN) /* any bits that are finite in each dtype */
        for (int64_t i = 0; i < N * k; i++) {
            if (source == DTYPE_F32)
                memcpy((float *)r.part[0] + i, w + i, sizeof *w);
            else
                ((uint16_t *)r.part[0])[i] = (uint16_t)(i * 2654435761u >> 16 & 0xbbffu);
        }
    else
        assert_ok(f->encode(w, amax, &r, &e), e);
    f->decode(&r, 0, N, want);
    assert_ok(packed_new(p->gpu, f, N, k, source, &packed, &e), e);
    assert_ok(packed_upload(p->gpu, &r, &packed, &e), e);
    assert_ok(p->gpu->k->panels_new(p->gpu, &panels, N + BEFORE, k, mode, &e), e);
    struct tensor gb = there(p, before, DTYPE_F32, BEFORE, k);
    assert_ok(p->gpu->k->pack(p->gpu, &gb, 0, &panels, &e), e);
    assert_ok(p->gpu->k->unpack(p->gpu, &packed, BEFORE, &panels, &e), e);
    check_panels(p, &panels, BEFORE, N, want, name);
    check_panels(p, &panels, 0, BEFORE, before, name);
    for (int i = 0; i < FORMAT_PARTS; i++)
        mem_free(r.part[i]);
    packed_free(p->gpu, &packed);
    drop(p, &panels), drop(p, &gb);
    free(w), free(want), free(before);
}

static void panels_hold_what_the_formats_decode(void **state)
{
    (void)state;
    struct pair p = pair_open();
    for (int m = 0; m < 2; m++) {
        enum dtype mode = m ? DTYPE_BF16 : DTYPE_F32;
        unpack_case(&p, &format_bf16, DTYPE_BF16, 33, mode);
        unpack_case(&p, &format_bf16, DTYPE_F16, 40, mode);
        unpack_case(&p, &format_bf16, DTYPE_F32, 17, mode);
        unpack_case(&p, &format_fp8, DTYPE_BF16, 50, mode);
        unpack_case(&p, &format_nvfp4_a16, DTYPE_BF16, 16, mode);
        for (size_t f = 0; formats[f]; f++)
            if (formats[f]->code != CODE_PLAIN)
                unpack_case(&p, formats[f], DTYPE_BF16, 128, mode);
    }
    pair_close(&p);
}

static void wrong_arguments_are_reported(void **state)
{
    (void)state;
    struct pair p = pair_open();
    struct err e = {0};
    const struct kernels *k = p.gpu->k;
    float *w = numbers(4 * 8, RANDOM, 1);
    struct tensor panels = panels_of(&p, w, 4, 8, DTYPE_F32), x = blank(&p, DTYPE_F32, 3, 9), none;
    struct tensor y = blank(&p, DTYPE_F32, 3, 4), gw = there(&p, w, DTYPE_F32, 4, 8);
    assert_err(k->matmul(p.gpu, &x, &panels, &y, &e), e, ERR_BUG, "matmul: 'x'");
    assert_err(k->matmul_part(p.gpu, &x, &panels, 1, &y, &e), e, ERR_BUG, "matmul_part");
    assert_err(k->pack(p.gpu, &gw, 1, &panels, &e), e, ERR_BUG, "rows 1 to 5 of 4");
    assert_err(k->panels_new(p.gpu, &none, 0, 8, DTYPE_F32, &e), e, ERR_BUG, "panels_new: {0, 8}");
    assert_err(k->panels_new(p.gpu, &none, 1, 8, DTYPE_F16, &e), e, ERR_BUG, "mode f16");
    drop(&p, &panels), drop(&p, &x), drop(&p, &y), drop(&p, &gw);
    free(w);
    pair_close(&p);
}

/* More than any device has: one error that says how much, and the queue goes on working. */
static void a_full_device_is_told_and_survived(void **state)
{
    (void)state;
    struct pair p = pair_open();
    struct err e = {0};
    struct tensor t = {0};
    int64_t shape[2] = {1 << 25, 1 << 20}; /* 2^47 bytes */
    assert_err(p.gpu->k->tensor_new(p.gpu, &t, DTYPE_F32, 2, shape, &e), e, ERR_RESOURCE, "140737488355328 bytes");
    assert_null(t.data);
    float *x = numbers(8, INTEGERS, 1), *y;
    struct tensor panels = panels_of(&p, x, 2, 4, DTYPE_F32);
    y = multiply(&p, x, 2, &panels);
    check_product(x, x, y, 2, 2, 4, DTYPE_F32, true);
    drop(&p, &panels);
    free(x), free(y);
    pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_within_their_bound),
        cmocka_unit_test(the_bits_of_a_row_depend_on_nothing_else),
        cmocka_unit_test(panels_hold_what_the_formats_decode),
        cmocka_unit_test(wrong_arguments_are_reported),
        cmocka_unit_test(a_full_device_is_told_and_survived),
    };
    return first_device() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIPPED;
}
