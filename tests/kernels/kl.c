/* The fused KL against f64 with libm, its exact properties, and equal bits in all variants. */
#include "tests/kernels/variants.h"

/* Error of a mean KL over the whole vocabulary, in nats. */
static const double kl_error = 1e-6;

struct result {
    int64_t t;
    struct kl_state s;
    double f64[5 * 64];
    float f32[4 * 64];
    int32_t i32[2 * 64], target[64];
};

static void result_init(struct result *r, int64_t t)
{
    assert_true(t <= 64);
    memset(r, 0, sizeof *r);
    r->t = t;
    r->s = (struct kl_state){.max_t = r->f64, .sum_t = r->f64 + 64, .max_c = r->f64 + 128, .sum_c = r->f64 + 192,
                             .cross = r->f64 + 256, .best_t = r->f32, .best_c = r->f32 + 64, .arg_t = r->i32,
                             .arg_c = r->i32 + 64, .target = r->target, .target_t = r->f32 + 128,
                             .target_c = r->f32 + 192};
    for (int64_t i = 0; i < t; i++)
        r->target[i] = (int32_t)(i * 37) - 1;
    kl_state_init(&r->s, t);
}

/* Folds [T, V] logits in tiles of `tile` columns, copied out as a pass would form them. */
static void fold(const struct kernels *k, int threads, const float *a, const float *b, int64_t v, int64_t tile,
                 struct result *r)
{
    struct queue q = variant_queue(k, threads);
    struct err e = {0};
    for (int64_t first = 0; first < v; first += tile) {
        int64_t n = v - first < tile ? v - first : tile;
        float *x = numbers(r->t * n, ZEROS, 1), *y = numbers(r->t * n, ZEROS, 1);
        for (int64_t t = 0; t < r->t; t++) {
            memcpy(x + t * n, a + t * v + first, (size_t)n * sizeof *x);
            memcpy(y + t * n, b + t * v + first, (size_t)n * sizeof *y);
        }
        struct tensor s_t = tensor_matrix(x, DTYPE_F32, r->t, n), s_c = tensor_matrix(y, DTYPE_F32, r->t, n);
        assert_ok(k->kl_tile(&q, &s_t, a == b ? &s_t : &s_c, first, &r->s, &e), e);
        free(x), free(y);
    }
}

static double log_sum(const float *x, int64_t v)
{
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < v; i++)
        most = (double)x[i] > most ? (double)x[i] : most;
    for (int64_t i = 0; i < v; i++)
        sum += exp((double)x[i] - most);
    return most + log(sum);
}

static double kl_row(const float *a, const float *b, int64_t v)
{
    double la = log_sum(a, v), lb = log_sum(b, v), sum = 0;
    for (int64_t i = 0; i < v; i++)
        sum += exp((double)a[i] - la) * (((double)a[i] - la) - ((double)b[i] - lb));
    return sum;
}

/* Logits like a model's: spread over some 25 nats, the candidate off by `noise`. */
static void logits(int64_t t, int64_t v, float noise, uint64_t seed, float **a, float **b)
{
    *a = numbers(t * v, RANDOM, seed);
    *b = numbers(t * v, RANDOM, seed + 1);
    for (int64_t i = 0; i < t * v; i++) {
        (*a)[i] = 12.0f * (*a)[i] * (*a)[i] * (*a)[i] + 5.0f;
        (*b)[i] = (*a)[i] + noise * (*b)[i];
    }
}

static void kl_agrees_with_f64(void **state)
{
    (void)state;
    static const struct {
        int64_t t, v, tile;
        float noise;
    } cases[] = {{5, 512, 512, 0.1f},     {5, 4096, 1024, 0.01f},  {4, 49152, 1024, 0.1f}, {4, 49152, 2048, 0.001f},
                 {3, 49152, 5000, 1.0f},  {3, 151936, 2048, 0.1f}, {8, 1000, 100, 3.0f},   {3, 20000, 20000, 0.3f}};
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    for (size_t c = 0; c < COUNT(cases); c++) {
        float *a, *b;
        logits(cases[c].t, cases[c].v, cases[c].noise, c, &a, &b);
        struct result *want = malloc(sizeof *want), *got = malloc(sizeof *got);
        assert_true(want && got);
        for (size_t v = 0; v < n_variants; v++) {
            result_init(got, cases[c].t);
            fold(k[v], 1 + (int)v % 3, a, b, cases[c].v, cases[c].tile, got);
            double mean = 0, mean_f64 = 0;
            for (int64_t t = 0; t < cases[c].t; t++) {
                mean += kl_state_row(&got->s, t) / (double)cases[c].t;
                mean_f64 += kl_row(a + t * cases[c].v, b + t * cases[c].v, cases[c].v) / (double)cases[c].t;
            }
            if (!(fabs(mean - mean_f64) < kl_error))
                fail_msg("%s, V=%lld: mean KL %.9g, expected %.9g", k[v]->name, (long long)cases[c].v, mean, mean_f64);
            if (v > 0) { /* all bits of the state */
                assert_memory_equal(want->f64, got->f64, sizeof got->f64);
                assert_memory_equal(want->i32, got->i32, sizeof got->i32);
                assert_bits(want->f32, got->f32, 2 * 64, "best");
            }
            *want = *got;
        }
        free(want), free(got), free(a), free(b);
    }
}

static void every_number_of_columns(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    for (int64_t v = 1; v <= 35; v++) {
        float *a, *b;
        logits(3, v, 0.5f, (uint64_t)v, &a, &b);
        for (size_t i = 0; i < n_variants; i++) {
            struct result r;
            result_init(&r, 3);
            fold(k[i], 2, a, b, v, v, &r);
            for (int64_t t = 0; t < 3; t++) {
                double want = kl_row(a + t * v, b + t * v, v);
                if (!(fabs(kl_state_row(&r.s, t) - want) < 3e-6))
                    fail_msg("%s, V=%lld: %.9g, expected %.9g", k[i]->name, (long long)v, kl_state_row(&r.s, t), want);
            }
        }
        free(a), free(b);
    }
}

static void the_same_logits_have_exactly_no_kl(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    float *a, *b;
    logits(6, 5000, 0.0f, 4, &a, &b);
    for (size_t v = 0; v < n_variants; v++) {
        for (int copy = 0; copy < 2; copy++) {
            struct result r;
            result_init(&r, 6);
            fold(k[v], 1, a, copy ? b : a, 5000, 1024, &r);
            for (int64_t t = 0; t < 6; t++) {
                assert_true(r.s.cross[t] == 0.0 && kl_state_row(&r.s, t) == 0.0);
                assert_int_equal(r.s.arg_t[t], r.s.arg_c[t]);
            }
        }
    }
    free(a), free(b);
}

static void rows_do_not_depend_on_batch_or_threads(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    float *a, *b;
    logits(60, 700, 0.2f, 8, &a, &b);
    for (size_t v = 0; v < n_variants; v++) {
        struct result whole, part;
        result_init(&whole, 60);
        fold(k[v], 1, a, b, 700, 256, &whole);
        for (int threads = 1; threads <= 3; threads++) {
            for (int64_t t = 1; t <= 60; t += 7) {
                int64_t from = 60 - t;
                result_init(&part, t);
                fold(k[v], threads, a + from * 700, b + from * 700, 700, 256, &part);
                for (int64_t i = 0; i < t; i++)
                    assert_true(kl_state_row(&part.s, i) == kl_state_row(&whole.s, from + i));
            }
        }
    }
    free(a), free(b);
}

static void the_largest_logit_is_the_first_of_equals(void **state)
{
    (void)state;
    enum { V = 5000 };
    static const int64_t places[][2] = {
        {0, 1}, {3, 19}, {17, 3000}, {2047, 2048}, {4095, 4096}, {15, 16}, {4990, 4999},
    };
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    for (size_t v = 0; v < n_variants; v++) {
        for (size_t i = 0; i < COUNT(places); i++) {
            float *a, *b;
            struct result r;
            logits(1, V, 0.1f, i, &a, &b);
            a[places[i][0]] = a[places[i][1]] = 50.0f;
            b[places[i][1]] = b[places[i][0]] = b[4999] = 50.0f;
            for (int64_t tile = 1000; tile <= V; tile += 4000) {
                result_init(&r, 1);
                fold(k[v], 1, a, b, V, tile, &r);
                assert_int_equal(r.s.arg_t[0], places[i][0]);
                assert_int_equal(r.s.arg_c[0], places[i][0]);
                assert_true(r.s.best_t[0] == 50.0f && r.s.best_c[0] == 50.0f);
            }
            free(a), free(b);
        }
    }
}

static void targets_are_noted_by_the_tile_that_holds_them(void **state)
{
    (void)state;
    enum { V = 3000, T = 60 };
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    float *a, *b;
    logits(T, V, 0.1f, 1, &a, &b);
    for (size_t v = 0; v < n_variants; v++) {
        struct result r;
        result_init(&r, T);
        fold(k[v], 2, a, b, V, 512, &r);
        assert_true(isnan(r.s.target_t[0]) && isnan(r.s.target_c[0])); /* -1: none */
        for (int64_t t = 1; t < T; t++) {
            assert_true(r.s.target_t[t] == a[t * V + r.target[t]]);
            assert_true(r.s.target_c[t] == b[t * V + r.target[t]]);
        }
        result_init(&r, T);
        r.s.target = NULL;
        fold(k[v], 2, a, b, V, 512, &r);
        assert_true(isnan(r.s.target_t[5]));
    }
    free(a), free(b);
}

static void a_logit_that_is_not_finite_gives_nan(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY};
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    for (size_t v = 0; v < n_variants; v++) {
        for (size_t i = 0; i < COUNT(bad); i++) {
            for (int side = 0; side < 2; side++) {
                float *a, *b;
                struct result r;
                logits(1, 100, 0.1f, 1, &a, &b);
                (side ? b : a)[77] = bad[i];
                result_init(&r, 1);
                fold(k[v], 1, a, b, 100, 32, &r);
                assert_true(isnan(kl_state_row(&r.s, 0)));
                free(a), free(b);
            }
        }
    }
}

/* Maxima that rise by hundreds of nats from tile to tile, and extreme offsets between the two. */
static void rising_maxima_and_large_offsets(void **state)
{
    (void)state;
    enum { V = 4096 };
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    for (size_t v = 0; v < n_variants; v++) {
        float *a, *b;
        struct result r;
        logits(1, V, 0.1f, 3, &a, &b);
        for (int i = 0; i < V; i++) {
            a[i] += (float)(i / 1024) * 0.5f - 900.0f;
            b[i] += (float)(i / 1024) * 200.0f;
        }
        result_init(&r, 1);
        fold(k[v], 1, a, b, V, 1024, &r);
        double want = kl_row(a, b, V);
        assert_true(want > 100.0 && fabs(kl_state_row(&r.s, 0) - want) < 2e-6 * want);
        free(a), free(b);
    }
}

static void kl_log_is_the_logarithm(void **state)
{
    (void)state;
    assert_true(kl_log(1.0) == 0.0);
    for (double x = 1.0; x < 1e15; x *= 1.0007)
        if (!(fabs(kl_log(x) - log(x)) <= 1e-15 * fmax(1.0, log(x))))
            fail_msg("kl_log(%.17g) is %.17g, expected %.17g", x, kl_log(x), log(x));
    assert_true(isnan(kl_log(NAN)) && isnan(kl_log(INFINITY)) && isnan(kl_log(0.5)));
}

static void wrong_shapes_are_reported(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    float x[12];
    struct result r;
    struct err e;
    result_init(&r, 3);
    struct tensor a = tensor_matrix(x, DTYPE_F32, 3, 4), b = tensor_matrix(x, DTYPE_F32, 4, 3);
    assert_err(k->kl_tile(&q, &a, &b, 0, &r.s, &e), e, ERR_BUG, "kl_tile: 's_c'");
    assert_err(k->kl_tile(&q, &a, &a, -1, &r.s, &e), e, ERR_BUG, "columns from -1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kl_agrees_with_f64),
        cmocka_unit_test(every_number_of_columns),
        cmocka_unit_test(the_same_logits_have_exactly_no_kl),
        cmocka_unit_test(rows_do_not_depend_on_batch_or_threads),
        cmocka_unit_test(the_largest_logit_is_the_first_of_equals),
        cmocka_unit_test(targets_are_noted_by_the_tile_that_holds_them),
        cmocka_unit_test(a_logit_that_is_not_finite_gives_nan),
        cmocka_unit_test(rising_maxima_and_large_offsets),
        cmocka_unit_test(kl_log_is_the_logarithm),
        cmocka_unit_test(wrong_shapes_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
