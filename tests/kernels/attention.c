/* Rotary positions and causal attention: equal bits in all variants, close to a naive f64 version, and rows that see
 * their own sequence's past only. */
#include "tests/kernels/variants.h"

struct shape {
    int heads, kv_heads, head_dim, window, sequences;
};

static int64_t width_of(const struct shape *s) { return (int64_t)(s->heads + 2 * s->kv_heads) * s->head_dim; }
static int64_t rows_of(const struct shape *s) { return (int64_t)s->window * s->sequences; }
static struct attention_shape shape_of(const struct shape *s)
{
    return (struct attention_shape){s->heads, s->kv_heads, s->head_dim, s->window};
}

static void attend(const struct kernels *k, int threads, const struct shape *s, const float *qkv, float *out)
{
    struct queue q = variant_queue(k, threads);
    struct err e = {0};
    struct attention_shape a = shape_of(s);
    struct tensor in = tensor_matrix((void *)(uintptr_t)qkv, DTYPE_F32, rows_of(s), width_of(s));
    struct tensor y = tensor_matrix(out, DTYPE_F32, rows_of(s), (int64_t)s->heads * s->head_dim);
    assert_ok(k->attention(&q, &in, &a, &y, &e), e);
}

/* Naive, in f64: one row, one head. */
static void naive(const struct shape *s, const float *qkv, int64_t row, int head, double *out)
{
    int64_t width = width_of(s), first = row - row % s->window, d = s->head_dim, kv = head / (s->heads / s->kv_heads);
    const float *q = qkv + row * width + head * d;
    double *p = malloc((size_t)s->window * sizeof *p), most = -INFINITY, sum = 0;
    assert_non_null(p);
    for (int64_t j = first; j <= row; j++) {
        const float *k = qkv + j * width + (s->heads + kv) * d;
        double dot = 0;
        for (int64_t i = 0; i < d; i++)
            dot += (double)q[i] * (double)k[i];
        p[j - first] = dot / sqrt((double)d);
        most = p[j - first] > most ? p[j - first] : most;
    }
    memset(out, 0, (size_t)d * sizeof *out);
    for (int64_t j = first; j <= row; j++) {
        const float *v = qkv + j * width + (s->heads + s->kv_heads + kv) * d;
        double e = exp(p[j - first] - most);
        sum += e;
        for (int64_t i = 0; i < d; i++)
            out[i] += e * (double)v[i];
    }
    for (int64_t i = 0; i < d; i++)
        out[i] /= sum;
    free(p);
}

static void check_naive(const struct shape *s, const float *qkv, const float *out, const char *what)
{
    double *want = malloc((size_t)s->head_dim * sizeof *want);
    assert_non_null(want);
    for (int64_t row = 0; row < rows_of(s); row += 1 + rows_of(s) / 61) {
        for (int h = 0; h < s->heads; h++) {
            naive(s, qkv, row, h, want);
            for (int64_t i = 0; i < s->head_dim; i++) {
                double got = (double)out[(row * s->heads + h) * s->head_dim + i];
                if (!(fabs(got - want[i]) <= 4e-6)) /* values and their means are below 1 */
                    fail_msg("%s: row %lld, head %d, channel %lld is %.9g, expected %.9g", what, (long long)row, h,
                             (long long)i, got, want[i]);
            }
        }
    }
    free(want);
}

static void attention_case(const struct shape *s, enum numbers kind)
{
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    int64_t n = rows_of(s) * s->heads * s->head_dim;
    float *qkv = numbers(rows_of(s) * width_of(s), kind, 3);
    float *want = numbers(n, RANDOM, 4), *got = numbers(n, RANDOM, 5);
    char name[128];
    attend(k[0], 2, s, qkv, want);
    CASE(name, "heads %d over %d of %d, window %d", s->heads, s->kv_heads, s->head_dim, s->window);
    if (kind == RANDOM)
        check_naive(s, qkv, want, name);
    for (size_t v = 1; v < n_variants; v++) {
        attend(k[v], 1 + (int)v % 3, s, qkv, got);
        assert_bits(want, got, n, CASE(name, "%s: heads %d over %d of %d, window %d", k[v]->name, s->heads, s->kv_heads,
                                       s->head_dim, s->window));
    }
    free(qkv), free(want), free(got);
}

static void every_head_dim_and_window(void **state)
{
    (void)state;
    for (int d = 1; d <= 33; d++)
        attention_case(&(struct shape){2, 1, d, 1 + d % 19, 2}, RANDOM);
    for (int window = 1; window <= 70; window++)
        attention_case(&(struct shape){3, 3, 1 + window % 20, window, 2}, RANDOM);
}

static void shapes_of_models_and_odd_ones(void **state)
{
    (void)state;
    static const struct shape shapes[] = {
        {9, 3, 64, 256, 1},  /* SmolLM2 */
        {8, 4, 8, 512, 1},   /* stories260K: two tasks of queries */
        {20, 1, 8, 70, 1},   /* more query heads than a task holds */
        {2, 2, 33, 300, 1},  /* odd everything */
        {1, 1, 130, 65, 2},
        {1, 1, 1024, 9, 1},  /* the widest head */
    };
    for (size_t i = 0; i < COUNT(shapes); i++)
        attention_case(&shapes[i], RANDOM);
}

static void all_kinds_of_numbers(void **state)
{
    (void)state;
    for (int kind = 0; kind < NUMBERS_COUNT; kind++)
        if (kind != LARGE) /* squares of 2^60 overflow */
            attention_case(&(struct shape){4, 2, 24, 75, 2}, (enum numbers)kind);
}

/* One score far above all others: exp of the rest is 0, and the output is that key's value. */
static void a_dominant_key_gives_its_value(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    const struct shape s = {1, 1, 4, 130, 1};
    float *qkv = numbers(130 * 12, RANDOM, 9), out[130 * 4];
    for (int t = 0; t < 130; t++) {
        qkv[t * 12] = 1000.0f;               /* q[0] */
        qkv[t * 12 + 4] = t == 70 ? 8.0f : 0.0f; /* k[0] */
    }
    for (size_t v = 0; v < n_variants; v++) {
        attend(k[v], 1, &s, qkv, out);
        for (int t = 70; t < 130; t++)
            assert_bits(qkv + 70 * 12 + 8, out + t * 4, 4, k[v]->name);
    }
    free(qkv);
}

/* Rows are the same alone or among other sequences, in a shorter window, with other rows after them, on any number of
 * threads. */
static void a_row_depends_on_its_past_only(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    const struct shape s = {4, 2, 20, 150, 3};
    int64_t width = width_of(&s), n = rows_of(&s) * 80;
    float *qkv = numbers(rows_of(&s) * width, RANDOM, 1), *want = numbers(n, RANDOM, 2), *got = numbers(n, RANDOM, 3);
    for (size_t v = 0; v < n_variants; v++) {
        attend(k[v], 1, &s, qkv, want);
        for (int threads = 2; threads <= 3; threads++) {
            attend(k[v], threads, &s, qkv, got);
            assert_bits(want, got, n, k[v]->name);
        }
        attend(k[v], 1, &(struct shape){4, 2, 20, 150, 1}, qkv + 150 * width, got);
        assert_bits(want + 150 * 80, got, 150 * 80, "alone");
        for (int window = 1; window < 150; window += 11) {
            attend(k[v], 1, &(struct shape){4, 2, 20, window, 1}, qkv + 150 * width, got);
            assert_bits(want + 150 * 80, got, window * 80, "shorter window");
        }
    }
    free(qkv), free(want), free(got);
}

static void rope_case(const struct shape *s)
{
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    int64_t half = s->head_dim / 2, width = width_of(s), n = rows_of(s) * width, table = s->window * half;
    float *qkv = numbers(n, RANDOM, 1), *c = numbers(table, RANDOM, 2), *si = numbers(table, RANDOM, 3);
    struct attention_shape a = shape_of(s);
    struct err e = {0};
    for (size_t v = 0; v < n_variants; v++) {
        float *got = copy_of(qkv, n);
        struct queue q = variant_queue(k[v], 1 + (int)v % 3);
        struct tensor x = tensor_matrix(got, DTYPE_F32, rows_of(s), width);
        struct tensor tc = tensor_matrix(c, DTYPE_F32, s->window, half);
        struct tensor ts = tensor_matrix(si, DTYPE_F32, s->window, half);
        assert_ok(k[v]->rope(&q, &x, &a, &tc, &ts, &e), e);
        for (int64_t i = 0; i < n; i++) {
            int64_t t = i / width, head = i % width / s->head_dim, channel = i % s->head_dim, p = t % s->window;
            float cosine = c[p * half + channel % half], sine = si[p * half + channel % half], want;
            float direct = qkv[i] * cosine, other = qkv[channel < half ? i + half : i - half] * sine;
            want = channel < half ? direct - other : direct + other;
            want = head < s->heads + s->kv_heads ? want : qkv[i]; /* v is left alone */
            if (f32_bits(want) != f32_bits(got[i]))
                fail_msg("%s, head_dim %d: row %lld, head %lld, channel %lld is %.9g, expected %.9g", k[v]->name,
                         s->head_dim, (long long)t, (long long)head, (long long)channel, (double)got[i], (double)want);
        }
        free(got);
    }
    free(qkv), free(c), free(si);
}

static void rope_rotates_q_and_k_by_the_position_in_the_window(void **state)
{
    (void)state;
    for (int d = 2; d <= 68; d += 2)
        rope_case(&(struct shape){3, 1, d, 1 + d % 7, 2});
    rope_case(&(struct shape){3, 1, 64, 200, 2}); /* large enough for several threads */
}

static void wrong_shapes_are_reported(void **state)
{
    (void)state;
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    float x[64], y[64];
    struct err e;
    struct tensor qkv = tensor_matrix(x, DTYPE_F32, 4, 12), out = tensor_matrix(y, DTYPE_F32, 4, 4);
    struct tensor table = tensor_matrix(y, DTYPE_F32, 4, 2);
    assert_err(k->attention(&q, &qkv, &(struct attention_shape){1, 1, 4, 3}, &out, &e), e, ERR_BUG,
               "4 rows, expected a multiple of the window 3");
    assert_err(k->attention(&q, &qkv, &(struct attention_shape){3, 2, 4, 4}, &out, &e), e, ERR_BUG, "kv_heads");
    assert_err(k->attention(&q, &qkv, &(struct attention_shape){2, 1, 4, 4}, &out, &e), e, ERR_BUG, "'qkv'");
    assert_err(k->attention(&q, &qkv, &(struct attention_shape){1, 1, 1025, 4}, &out, &e), e, ERR_INPUT,
               "head_dim 1025 is above 1024");
    assert_err(k->rope(&q, &qkv, &(struct attention_shape){1, 1, 3, 4}, &table, &table, &e), e, ERR_BUG, "even");
    assert_err(k->rope(&q, &qkv, &(struct attention_shape){1, 1, 4, 3}, &table, &table, &e), e, ERR_BUG, "'cosine'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_head_dim_and_window),
        cmocka_unit_test(shapes_of_models_and_odd_ones),
        cmocka_unit_test(all_kinds_of_numbers),
        cmocka_unit_test(a_dominant_key_gives_its_value),
        cmocka_unit_test(a_row_depends_on_its_past_only),
        cmocka_unit_test(rope_rotates_q_and_k_by_the_position_in_the_window),
        cmocka_unit_test(wrong_shapes_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
