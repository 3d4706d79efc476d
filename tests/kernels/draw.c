/* Draws at the logits: what their formula says of each, equal bits in all variants, and the covariance that they are
 * made for. */
#include "tests/kernels/variants.h"

static void draw(const struct kernels *k, int threads, enum fisher_draw kind, const uint64_t *seeds, int64_t rows,
                 int64_t n, float *s)
{
    struct err e = {0};
    struct queue q = variant_queue(k, threads);
    struct tensor t = tensor_matrix(s, DTYPE_F32, rows, n);
    assert_ok(k->fisher_draw(&q, &t, kind, seeds, &e), e);
}

/* -------------------------------------------------------------------------------------------------- by the formula */

/* The row that seed and logits give, in f64; *near: the label is within 1e-6 of its neighbour. */
static void reference(enum fisher_draw kind, uint64_t seed, const float *s, int64_t n, double *v, bool *near)
{
    double most = -INFINITY, sum = 0.0, before = 0.0, roots = 0.0;
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, (double)s[i]);
    for (int64_t i = 0; i < n; i++)
        sum += v[i] = exp((double)s[i] - most);
    *near = false;
    if (kind == FISHER_LABEL) {
        double unit = (double)(fisher_random(seed, 0) >> 11) * 0x1p-53;
        for (int64_t i = 0; i < n; i++) {
            double p = v[i] / sum, after = before + p;
            *near = *near || fabs(after - unit) < 1e-6;
            v[i] = p - (before <= unit && unit < after ? 1.0 : 0.0);
            before = after;
        }
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        double z = fisher_random(seed, (uint64_t)i / 64) >> i % 64 & 1u ? -1.0 : 1.0;
        v[i] = z * sqrt(v[i] / sum);
        roots += v[i];
    }
    for (int64_t i = 0; i < n; i++)
        v[i] -= v[i] * v[i] * roots;
}

static void draw_case(int64_t rows, int64_t n, float spread, enum fisher_draw kind)
{
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    char name[96];
    float *s = numbers(rows * n, RANDOM, (uint64_t)n), *want = NULL;
    double *v = malloc((size_t)n * sizeof *v);
    uint64_t *seeds = malloc((size_t)rows * sizeof *seeds);
    assert_true(v && seeds);
    for (int64_t i = 0; i < rows * n; i++)
        s[i] *= spread;
    for (int64_t t = 0; t < rows; t++)
        seeds[t] = t % 5 == 3 ? 0 : fisher_random(7, (uint64_t)(t + n));
    CASE(name, "draw %d, %lld x %lld, spread %g", (int)kind, (long long)rows, (long long)n, (double)spread);
    for (size_t i = 0; i < n_variants; i++)
        for (int threads = 1; threads <= 3; threads++) {
            float *got = copy_of(s, rows * n);
            draw(k[i], threads, kind, seeds, rows, n, got);
            if (want)
                assert_bits(want, got, rows * n, name);
            else
                want = copy_of(got, rows * n);
            free(got);
        }
    for (int64_t t = 0; t < rows; t++) {
        bool near = false;
        memset(v, 0, (size_t)n * sizeof *v);
        if (seeds[t])
            reference(kind, seeds[t], s + t * n, n, v, &near);
        for (int64_t i = 0; i < n && !near; i++)
            if (!(fabs((double)want[t * n + i] - v[i]) <= 2e-6 * fabs(v[i]) + 3e-7))
                fail_msg("%s: [%lld][%lld] is %.9g, expected %.9g", name, (long long)t, (long long)i,
                         (double)want[t * n + i], v[i]);
        float *alone = copy_of(s + t * n, n); /* the same bits as among others */
        draw(k[n_variants - 1], 1, kind, seeds + t, 1, n, alone);
        assert_bits(want + t * n, alone, n, name);
        free(alone);
    }
    free(s), free(want), free(v), free(seeds);
}

static void rows_are_what_seed_and_logits_say(void **state)
{
    (void)state;
    for (int kind = FISHER_LABEL; kind <= FISHER_SIGN; kind++) {
        for (int64_t n = 1; n <= 70; n++)
            draw_case(7, n, 1.0f + (float)(n % 9), (enum fisher_draw)kind);
        draw_case(9, 2048, 4.0f, (enum fisher_draw)kind);
        draw_case(9, 2049, 8.0f, (enum fisher_draw)kind);
        draw_case(6, 49152, 12.0f, (enum fisher_draw)kind);
        draw_case(3, 300, 200.0f, (enum fisher_draw)kind); /* all but one or two are 0 */
        draw_case(0, 8, 1.0f, (enum fisher_draw)kind);
    }
}

/* The stream is SplitMix64's: the first outputs from the seed 1234567, as its author's program prints them. */
static void random_numbers_are_those_of_splitmix64(void **state)
{
    (void)state;
    static const uint64_t known[] = {6457827717110365317u, 3203168211198807973u, 9817491932198370423u,
                                     4593380528125082431u, 16408922859458223821u};
    for (size_t i = 0; i < COUNT(known); i++)
        assert_true(fisher_random(1234567, i) == known[i]);
}

static void what_is_not_finite_is_not_hidden(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    const uint64_t seed = 5;
    for (size_t v = 0; v < n_variants; v++)
        for (int kind = FISHER_LABEL; kind <= FISHER_SIGN; kind++)
            for (int at = 0; at < 40; at += 13) {
                float *s = numbers(40, RANDOM, 1), *t = copy_of(s, 40);
                s[at] = at % 2 ? NAN : INFINITY;
                t[at] = -INFINITY;
                draw(k[v], 1, (enum fisher_draw)kind, &seed, 1, 40, s);
                draw(k[v], 1, (enum fisher_draw)kind, &seed, 1, 40, t);
                for (int i = 0; i < 40; i++)
                    assert_true(isnan(s[i]) && isfinite(t[i]));
                assert_true(t[at] == 0.0f);
                free(s), free(t);
            }
}

/* ---------------------------------------------------------------------------------------------------------- moments */

enum { V = 7, DRAWS = 200000 };

/* DRAWS draws from one row of logits, to be freed. */
static float *many(enum fisher_draw kind, const float *logits)
{
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    uint64_t *seeds = malloc(DRAWS * sizeof *seeds);
    float *s = numbers((int64_t)DRAWS * V, ZEROS, 1);
    assert_non_null(seeds);
    for (int64_t r = 0; r < DRAWS; r++) {
        seeds[r] = (uint64_t)r + 1;
        memcpy(s + r * V, logits, V * sizeof *s);
    }
    draw(k[n_variants - 1], 1, kind, seeds, DRAWS, V, s);
    free(seeds);
    return s;
}

/* Mean of `x` over the draws within five of its standard errors of `want`; the sample's variance. */
static double check_mean(const double *x, double want, const char *what)
{
    double sum = 0.0, squares = 0.0;
    for (int64_t r = 0; r < DRAWS; r++)
        sum += x[r];
    double mean = sum / DRAWS;
    for (int64_t r = 0; r < DRAWS; r++)
        squares += (x[r] - mean) * (x[r] - mean);
    double variance = squares / (DRAWS - 1), error = sqrt(variance / DRAWS);
    if (!(fabs(mean - want) <= 5.0 * error + 1e-6))
        fail_msg("%s: the mean is %.6g, expected %.6g +- 5 x %.2g", what, mean, want, error);
    return variance;
}

static void probabilities(const float *logits, double *p)
{
    double sum = 0.0;
    for (int i = 0; i < V; i++)
        sum += p[i] = exp((double)logits[i]);
    for (int i = 0; i < V; i++)
        p[i] /= sum;
}

/* The variance of (v . u)^2 over the square of its mean, u^T F u. With c = u - p . u: of labels it is the kurtosis of c
 * under p less 1, which rare labels make as large as they like; of signs v . u is the sum of z sqrt(p) c, and it is
 * 2 (1 - sum (p c^2)^2 / (sum p c^2)^2), never above 2. */
static double relative_variance(enum fisher_draw kind, const float *logits, const double *u)
{
    double p[V], mean = 0.0, second = 0.0, fourth = 0.0;
    probabilities(logits, p);
    for (int i = 0; i < V; i++)
        mean += p[i] * u[i];
    for (int i = 0; i < V; i++) {
        double square = (u[i] - mean) * (u[i] - mean);
        second += p[i] * square;
        fourth += kind == FISHER_LABEL ? p[i] * square * square : p[i] * square * p[i] * square;
    }
    return kind == FISHER_LABEL ? fourth / (second * second) - 1.0 : 2.0 * (1.0 - fourth / (second * second));
}

/* All means and second moments; the variance of (v . u)^2 over the square of its mean. */
static double check_moments(enum fisher_draw kind, const float *logits, const double *u)
{
    char name[64];
    double p[V], form = 0.0, *x = malloc(DRAWS * sizeof *x);
    float *v = many(kind, logits);
    assert_non_null(x);
    probabilities(logits, p);
    for (int i = 0; i < V; i++) {
        for (int64_t r = 0; r < DRAWS; r++)
            x[r] = (double)v[r * V + i];
        check_mean(x, 0.0, CASE(name, "draw %d, v[%d]", (int)kind, i));
        for (int j = 0; j <= i; j++) {
            double want = (i == j ? p[i] : 0.0) - p[i] * p[j];
            for (int64_t r = 0; r < DRAWS; r++)
                x[r] = (double)v[r * V + i] * (double)v[r * V + j];
            check_mean(x, want, CASE(name, "draw %d, v[%d] v[%d]", (int)kind, i, j));
            form += (i == j ? 1.0 : 2.0) * u[i] * u[j] * want;
        }
    }
    for (int64_t r = 0; r < DRAWS; r++) {
        double dot = 0.0;
        for (int i = 0; i < V; i++)
            dot += (double)v[r * V + i] * u[i];
        x[r] = dot * dot;
    }
    double variance = check_mean(x, form, "(v . u)^2");
    free(v), free(x);
    return variance / (form * form);
}

static void covariance_is_the_fisher_matrix(void **state)
{
    (void)state;
    static const float logits[3][V] = {
        {0.3f, -0.2f, 0.1f, 0.0f, -0.4f, 0.2f, 0.25f},  /* nearly even */
        {2.0f, 1.0f, 0.0f, -1.0f, -2.0f, 0.5f, -0.5f},
        {6.0f, 0.0f, 1.0f, -1.0f, 2.0f, -3.0f, 0.5f},   /* nearly sure */
    };
    static const double u[V] = {0.5, -1.0, 0.7, 0.2, -0.3, 1.1, -0.8};
    for (size_t i = 0; i < COUNT(logits); i++) {
        for (int kind = FISHER_LABEL; kind <= FISHER_SIGN; kind++) {
            double got = check_moments((enum fisher_draw)kind, logits[i], u);
            double want = relative_variance((enum fisher_draw)kind, logits[i], u);
            print_message("logits %zu, draw %d: (v.u)^2 has the relative variance %.3f, expected %.3f\n", i, kind, got,
                          want);
            assert_true(fabs(got - want) <= 0.05 * want);
        }
    }
}

static void wrong_arguments_are_reported(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    float x[8] = {0};
    const uint64_t seeds[2] = {1, 2};
    struct err e;
    struct tensor s = tensor_matrix(x, DTYPE_F32, 2, 4), v = tensor_vector(x, DTYPE_F32, 8);
    assert_err(k->fisher_draw(&q, &v, FISHER_SIGN, seeds, &e), e, ERR_BUG, "fisher_draw: 's'");
    assert_err(k->fisher_draw(&q, &s, (enum fisher_draw)7, seeds, &e), e, ERR_BUG, "fisher_draw: there is no draw 7");
    assert_err(k->fisher_draw(&q, &s, FISHER_SIGN, NULL, &e), e, ERR_BUG, "fisher_draw: no seeds");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_what_seed_and_logits_say),
        cmocka_unit_test(random_numbers_are_those_of_splitmix64),
        cmocka_unit_test(what_is_not_finite_is_not_hidden),
        cmocka_unit_test(covariance_is_the_fisher_matrix),
        cmocka_unit_test(wrong_arguments_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
