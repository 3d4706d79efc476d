/* Every kernel of a device but the products, against the plain CPU one: to the bit where both compute in one order, and
 * within a bound with its reason elsewhere. */
#include "tests/cuda/pair.h"

static const int64_t widths[] = {1, 2, 3, 4, 5, 16, 31, 32, 33, 64, 172, 352, 576, 1000, 1537};
static const enum numbers kinds[] = {RANDOM, ZEROS, DENORMALS, LARGE, MIXED};

/* ---------------------------------------------------------------------------------------------------- equal bits */

/* y = op(x, d) of one shape on both sides. */
enum op { ADD, BIAS, SWIGLU, ROUND };

static void same_bits(const struct pair *p, enum op op, int64_t rows, int64_t n, enum numbers kind)
{
    char name[96];
    struct err e = {0};
    int64_t in = op == SWIGLU ? 2 * n : n;
    float *x = numbers(rows * in, kind, 1), *want = numbers(rows * n, ZEROS, 1);
    float *d = numbers((rows > 0 ? rows : 1) * in, kind, 2); /* also a vector of n */
    struct tensor a = tensor_matrix(x, DTYPE_F32, rows, in), b = tensor_matrix(d, DTYPE_F32, rows, in);
    struct tensor v = tensor_vector(d, DTYPE_F32, n), y = tensor_matrix(want, DTYPE_F32, rows, n);
    struct tensor ga = there(p, x, DTYPE_F32, rows, in), gb = there(p, d, DTYPE_F32, rows, in);
    struct tensor gv = there(p, d, DTYPE_F32, n, 0), gy = blank(p, DTYPE_F32, rows, n);
    const struct kernels *k = p->cpu->k, *g = p->gpu->k;
    if (op == ADD) {
        assert_ok(k->add(p->cpu, &a, &b, &e) && g->add(p->gpu, &ga, &gb, &e), e);
    } else if (op == BIAS) {
        assert_ok(k->add_bias(p->cpu, &a, &v, &e) && g->add_bias(p->gpu, &ga, &gv, &e), e);
    } else if (op == SWIGLU) {
        assert_ok(k->swiglu(p->cpu, &a, &y, &e) && g->swiglu(p->gpu, &ga, &gy, &e), e);
    } else {
        assert_ok(k->fake_quantize(p->cpu, &a, ACT_NONE, 0.0f, DTYPE_BF16, &y, &e) &&
                      g->fake_quantize(p->gpu, &ga, ACT_NONE, 0.0f, DTYPE_BF16, &gy, &e), e);
    }
    bool in_place = op == ADD || op == BIAS;
    float *left = back(p, &ga), *got = back(p, &gy);
    CASE(name, "operation %d, %lld x %lld, numbers %d", (int)op, (long long)rows, (long long)n, (int)kind);
    assert_bits(in_place ? x : want, in_place ? left : got, rows * n, name);
    drop(p, &gb), drop(p, &gv);
    free(x), free(d), free(want), free(left), free(got);
}

static void elements_have_the_bits_of_the_cpu(void **state)
{
    (void)state;
    struct pair p = pair_open();
    for (size_t w = 0; w < COUNT(widths); w++)
        for (size_t i = 0; i < COUNT(kinds); i++)
            for (int op = ADD; op <= ROUND; op++)
                same_bits(&p, (enum op)op, 1 + (int64_t)(w + i) % 5, widths[w], kinds[i]);
    same_bits(&p, SWIGLU, 300, 1000, RANDOM);
    same_bits(&p, ADD, 0, 8, RANDOM);
    pair_close(&p);
}

static void embedding_widens_every_dtype(void **state)
{
    (void)state;
    struct pair p = pair_open();
    struct err e = {0};
    enum { V = 50, H = 37, T = 21 };
    static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    int32_t ids[T];
    for (int i = 0; i < T; i++)
        ids[i] = i * 7 % V;
    for (size_t t = 0; t < COUNT(types); t++) {
        /* Any bits: for the halves every exponent, with the denormals, infinities and NaN among them. */
        uint64_t seed = 5;
        unsigned char table[V * H * 4];
        for (size_t i = 0; i < sizeof table; i++)
            table[i] = (unsigned char)next_random(&seed);
        float want[T * H];
        struct tensor a = tensor_matrix(table, types[t], V, H), i = tensor_vector(ids, DTYPE_I32, T);
        struct tensor y = tensor_matrix(want, DTYPE_F32, T, H);
        struct tensor ga = there(&p, table, types[t], V, H), gi = there(&p, ids, DTYPE_I32, T, 0);
        struct tensor gy = blank(&p, DTYPE_F32, T, H);
        assert_ok(p.cpu->k->embed(p.cpu, &a, &i, &y, &e) && p.gpu->k->embed(p.gpu, &ga, &gi, &gy, &e), e);
        float *got = back(&p, &gy);
        assert_bits(want, got, T * H, dtype_info(types[t])->name);
        free(got);
        drop(&p, &ga), drop(&p, &gi);
    }
    pair_close(&p);
}

static void rope_has_the_bits_of_the_cpu(void **state)
{
    (void)state;
    struct pair p = pair_open();
    struct err e = {0};
    static const struct attention_shape shapes[] = {{3, 1, 64, 16}, {4, 4, 2, 5}, {6, 2, 96, 7}, {1, 1, 10, 1}};
    for (size_t s = 0; s < COUNT(shapes); s++) {
        const struct attention_shape *a = &shapes[s];
        int64_t rows = 3 * a->window, width = (int64_t)(a->heads + 2 * a->kv_heads) * a->head_dim;
        int64_t half = a->head_dim / 2;
        float *x = numbers(rows * width, RANDOM, s), *c = numbers(a->window * half, RANDOM, s + 1);
        float *si = numbers(a->window * half, RANDOM, s + 2);
        struct tensor tx = tensor_matrix(x, DTYPE_F32, rows, width), tc = tensor_matrix(c, DTYPE_F32, a->window, half);
        struct tensor ts = tensor_matrix(si, DTYPE_F32, a->window, half);
        struct tensor gx = there(&p, x, DTYPE_F32, rows, width), gc = there(&p, c, DTYPE_F32, a->window, half);
        struct tensor gs = there(&p, si, DTYPE_F32, a->window, half);
        assert_ok(p.cpu->k->rope(p.cpu, &tx, a, &tc, &ts, &e) && p.gpu->k->rope(p.gpu, &gx, a, &gc, &gs, &e), e);
        float *got = back(&p, &gx);
        assert_bits(x, got, rows * width, "rope");
        drop(&p, &gc), drop(&p, &gs);
        free(x), free(c), free(si), free(got);
    }
    pair_close(&p);
}

/* Numbers of which many lie half way between two codes: a group's largest is so many steps, and the others are a few
 * bits. */
#define TIES NUMBERS_COUNT

static float *inputs(int64_t n, int kind)
{
    static const float most[] = {6.0f, 127.0f, 448.0f};
    float *x = numbers(n, kind == TIES ? RANDOM : (enum numbers)kind, (uint64_t)n);
    uint64_t seed = 17;
    for (int64_t i = 0; kind == TIES && i < n; i++) {
        float limit = most[i / 128 % 3], some = ldexpf((float)(next_random(&seed) % 32), (int)(i * 5 % 9) - 4);
        x[i] = copysignf(i % 16 == 0 || some > limit ? limit : some, x[i]);
    }
    return x;
}

static void fake_quantize_case(const struct pair *p, int64_t rows, int64_t n, enum act_rule rule, float scale,
                               enum dtype mode, int kind)
{
    char name[96];
    struct err e = {0};
    float *x = inputs(rows * n, kind), *want = numbers(rows * n, ZEROS, 1);
    struct tensor a = tensor_matrix(x, DTYPE_F32, rows, n), y = tensor_matrix(want, DTYPE_F32, rows, n);
    struct tensor ga = there(p, x, DTYPE_F32, rows, n), gy = blank(p, DTYPE_F32, rows, n);
    struct tensor last = tensor_rows(&ga, rows - 1, 1), alone = blank(p, DTYPE_F32, 1, n);
    CASE(name, "rule %d, %lld x %lld, scale %g, %s, numbers %d", (int)rule, (long long)rows, (long long)n,
         (double)scale, dtype_info(mode)->name, kind);
    assert_ok(p->cpu->k->fake_quantize(p->cpu, &a, rule, scale, mode, &y, &e) &&
                  p->gpu->k->fake_quantize(p->gpu, &ga, rule, scale, mode, &gy, &e) &&
                  p->gpu->k->fake_quantize(p->gpu, &last, rule, scale, mode, &alone, &e), e);
    float *got = back(p, &gy), *one = back(p, &alone);
    assert_bits(want, got, rows * n, name);
    assert_bits(want + (rows - 1) * n, one, n, name);
    assert_ok(p->gpu->k->fake_quantize(p->gpu, &ga, rule, scale, mode, &ga, &e), e); /* y may be x */
    float *in_place = back(p, &ga);
    assert_bits(want, in_place, rows * n, name);
    free(x), free(want), free(got), free(one), free(in_place);
}

static bool rule_fits(enum act_rule rule, int64_t n)
{
    return rule == ACT_FP8_GROUP || act_block(rule) == 0 || n % act_block(rule) == 0;
}

static void fake_quantization_has_the_bits_of_the_cpu(void **state)
{
    (void)state;
    struct pair p = pair_open();
    static const float scales[] = {1e-3f, 1.0f, 2688.0f, 1e5f};
    static const int64_t groups[] = {48, 80, 96, 127, 128, 129, 160, 256, 416};
    static const int all[] = {RANDOM, ZEROS, DENORMALS, LARGE, MIXED, TIES};
    for (int rule = ACT_NVFP4; rule < ACT_COUNT; rule++)
        for (size_t i = 0; i < COUNT(all); i++)
            for (size_t w = 0; w < COUNT(widths) + COUNT(groups); w++) {
                int64_t n = w < COUNT(widths) ? widths[w] : groups[w - COUNT(widths)];
                size_t n_scales = !rule_fits((enum act_rule)rule, n) ? 0 : rule == ACT_NVFP4 ? COUNT(scales) : 1;
                for (size_t s = 0; s < n_scales; s++)
                    fake_quantize_case(&p, 4, n, (enum act_rule)rule, rule == ACT_NVFP4 ? scales[s] : 0.0f,
                                       (i + w + s) % 2 ? DTYPE_BF16 : DTYPE_F32, all[i]);
            }
    /* More than the blocks of an emulated device take at once. */
    for (int rule = ACT_NVFP4; rule < ACT_COUNT; rule++)
        fake_quantize_case(&p, 130, 1024, (enum act_rule)rule, rule == ACT_NVFP4 ? 100.0f : 0.0f, DTYPE_BF16, MIXED);
    fake_quantize_case(&p, 1, 60000, ACT_FP8_TOKEN, 0.0f, DTYPE_F32, MIXED);
    fake_quantize_case(&p, 1, 60001, ACT_INT8_TOKEN, 0.0f, DTYPE_F32, MIXED);
    fake_quantize_case(&p, 1, 60001, ACT_FP8_GROUP, 0.0f, DTYPE_F32, MIXED);
    pair_close(&p);
}

static void what_is_not_finite_is_not_hidden(void **state)
{
    (void)state;
    enum { K = 96 };
    struct pair p = pair_open();
    struct err e = {0};
    static const uint32_t bad[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0x7f800001u, 0xffffffffu};
    for (size_t b = 0; b < COUNT(bad); b++)
        for (int rule = ACT_NONE; rule < ACT_COUNT; rule++)
            for (int mode = 0; mode < 2; mode++) {
                float *x = numbers(K, RANDOM, 3);
                x[17] = f32_from_bits(bad[b]);
                struct tensor g = there(&p, x, DTYPE_F32, 1, K);
                assert_ok(p.gpu->k->fake_quantize(p.gpu, &g, (enum act_rule)rule, rule == ACT_NVFP4 ? 100.0f : 0.0f,
                                                  mode ? DTYPE_BF16 : DTYPE_F32, &g, &e), e);
                float *y = back(&p, &g);
                assert_false(isfinite(y[17]));
                free(x), free(y);
            }
    pair_close(&p);
}

static void amax_is_exact_and_names_what_is_not_finite(void **state)
{
    (void)state;
    struct pair p = pair_open();
    struct err e = {0};
    for (size_t w = 0; w < COUNT(widths); w++)
        for (size_t i = 0; i < COUNT(kinds); i++) {
            float *x = numbers(7 * widths[w], kinds[i], w), want = 0x1p-140f, got = 0x1p-140f;
            struct tensor a = tensor_matrix(x, DTYPE_F32, 7, widths[w]), g = there(&p, x, DTYPE_F32, 7, widths[w]);
            assert_ok(p.cpu->k->amax(p.cpu, &a, &want, &e) && p.gpu->k->amax(p.gpu, &g, &got, &e), e);
            assert_bits(&want, &got, 1, "amax");
            drop(&p, &g);
            free(x);
        }
    float *x = numbers(300, RANDOM, 1), amax = 0.0f;
    x[2 * 100 + 31] = NAN;
    struct tensor g = there(&p, x, DTYPE_F32, 3, 100);
    assert_err(p.gpu->k->amax(p.gpu, &g, &amax, &e), e, ERR_NUMERIC, "NaN at row 2, column 31");
    drop(&p, &g);
    free(x);
    pair_close(&p);
}

static void gram_has_the_bits_of_the_cpu(void **state)
{
    (void)state;
    struct pair p = pair_open();
    struct err e = {0};
    static const int64_t shapes[][2] = {{1, 1}, {5, 3}, {17, 64}, {255, 65}, {256, 100}, {257, 130}, {600, 33}};
    for (size_t s = 0; s < COUNT(shapes); s++)
        for (size_t i = 0; i < COUNT(kinds); i++) {
            int64_t t = shapes[s][0], k = shapes[s][1];
            float *x = numbers(t * k, kinds[i], s);
            double *h = malloc((size_t)(k * k) * sizeof *h);
            assert_non_null(h);
            for (int64_t j = 0; j < k * k; j++)
                h[j] = 0.1 * (double)j;
            struct tensor tx = tensor_matrix(x, DTYPE_F32, t, k), th = tensor_matrix(h, DTYPE_F64, k, k);
            struct tensor gx = there(&p, x, DTYPE_F32, t, k), gh = there(&p, h, DTYPE_F64, k, k);
            assert_ok(p.cpu->k->gram(p.cpu, &tx, &th, &e) && p.gpu->k->gram(p.gpu, &gx, &gh, &e), e);
            double *got = back(&p, &gh);
            assert_memory_equal(h, got, (size_t)(k * k) * sizeof *h);
            drop(&p, &gx);
            free(x), free(h), free(got);
        }
    pair_close(&p);
}

/* ---------------------------------------------------------------------------------------------------- factors */

/* Symmetric, with a diagonal that outweighs each row; what is above the diagonal must not be read. */
static double *dominant(int64_t n)
{
    float *g = numbers(n * n, RANDOM, (uint64_t)n);
    double *a = malloc((size_t)(n * n) * sizeof *a);
    assert_non_null(a);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            a[i * n + j] = j < i ? (double)g[i * n + j] : j == i ? (double)n : NAN;
    free(g);
    return a;
}

/* Two orders of the same sums: n roundings each, and the matrix is well conditioned. */
static void cholesky_agrees(void **state)
{
    (void)state;
    struct pair p = pair_open();
    static const int64_t sizes[] = {1, 2, 3, 17, 64, 65, 200};
    for (size_t s = 0; s < COUNT(sizes); s++) {
        int64_t n = sizes[s];
        struct err e = {0};
        double *a = dominant(n);
        struct tensor here = tensor_matrix(a, DTYPE_F64, n, n), it = there(&p, a, DTYPE_F64, n, n);
        struct tensor again = there(&p, a, DTYPE_F64, n, n);
        assert_ok(p.gpu->k->cholesky(p.gpu, &it, &e) && p.gpu->k->cholesky(p.gpu, &again, &e), e);
        assert_ok(p.cpu->k->cholesky(p.cpu, &here, &e), e);
        double *got = back(&p, &it), *twice = back(&p, &again);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j <= i; j++)
                if (!(fabs(got[i * n + j] - a[i * n + j]) <= (double)(n + 2) * 0x1p-52 * sqrt((double)n)) ||
                    got[i * n + j] != twice[i * n + j])
                    fail_msg("%lld: L[%lld][%lld] is %.17g, then %.17g, expected %.17g", (long long)n, (long long)i,
                             (long long)j, got[i * n + j], twice[i * n + j], a[i * n + j]);
        free(a), free(got), free(twice);
    }
    pair_close(&p);
}

static void what_is_not_positive_definite_is_told_with_the_minor(void **state)
{
    (void)state;
    enum { N = 100 };
    struct pair p = pair_open();
    static const int places[] = {0, 50, 99};
    for (size_t i = 0; i < COUNT(places); i++) {
        char text[64];
        struct err e = {0};
        double *a = dominant(N);
        a[places[i] * N + places[i]] = -1.0;
        struct tensor it = there(&p, a, DTYPE_F64, N, N);
        CASE(text, "its leading minor of order %d ", places[i] + 1);
        assert_err(p.gpu->k->cholesky(p.gpu, &it, &e), e, ERR_NUMERIC, text);
        drop(&p, &it);
        free(a);
    }
    struct err e = {0};
    struct tensor wide = blank(&p, DTYPE_F64, 3, 4);
    assert_err(p.gpu->k->cholesky(p.gpu, &wide, &e), e, ERR_BUG, "cholesky: 'a'");
    drop(&p, &wide);
    pair_close(&p);
}

/* Emulated only: a machine with a device and without the library is rare, and nothing else may suffer from it. */
static void a_missing_solver_is_told_when_it_is_called(void **state)
{
    (void)state;
    struct err e = {0};
    double four = 4.0;
    size_t n;
    const char *why;
    if (strncmp(kernels_devices(&n, &why)->model, "emulated", 8) != 0)
        skip();
    setenv("EMULATE_NO_SOLVER", "1", 1);
    struct pair p = pair_open();
    struct tensor a = there(&p, &four, DTYPE_F64, 1, 1);
    assert_err(p.gpu->k->cholesky(p.gpu, &a, &e), e, ERR_DEVICE, "cuda:0: cannot load libcusolver");
    unsetenv("EMULATE_NO_SOLVER");
    assert_ok(p.gpu->k->cholesky(p.gpu, &a, &e), e); /* the queue goes on, and asks again */
    drop(&p, &a);
    pair_close(&p);
}

/* ------------------------------------------------------------------------------------------------- within a bound */

/* A sum of h squares in another order: each way is off by at most (depth + 2) roundings of 2^-24 of the sum, the depth
 * of the CPU's chains being h / 16 and of the device's less; the square root halves it, and three roundings follow. So
 * 2^-24 (h / 16 + 8) of the value is generous. */
static void norm_case(const struct pair *p, int64_t rows, int64_t h, enum numbers kind, bool add)
{
    char name[96];
    struct err e = {0};
    float *x = numbers(rows * h, kind, 1), *d = numbers(rows * h, kind, 2), *w = numbers(h, RANDOM, 3);
    float *want = numbers(rows * h, ZEROS, 1);
    struct tensor tx = tensor_matrix(x, DTYPE_F32, rows, h), td = tensor_matrix(d, DTYPE_F32, rows, h);
    struct tensor tw = tensor_vector(w, DTYPE_F32, h), ty = tensor_matrix(want, DTYPE_F32, rows, h);
    struct tensor gx = there(p, x, DTYPE_F32, rows, h), gd = there(p, d, DTYPE_F32, rows, h);
    struct tensor gw = there(p, w, DTYPE_F32, h, 0), gy = blank(p, DTYPE_F32, rows, h);
    const struct kernels *k = p->cpu->k, *g = p->gpu->k;
    if (add)
        assert_ok(k->add_rmsnorm(p->cpu, &tx, &td, &tw, 1e-5f, &ty, &e) &&
                      g->add_rmsnorm(p->gpu, &gx, &gd, &gw, 1e-5f, &gy, &e), e);
    else
        assert_ok(k->rmsnorm(p->cpu, &tx, &tw, 1e-5f, &ty, &e) && g->rmsnorm(p->gpu, &gx, &gw, 1e-5f, &gy, &e), e);
    float *sum = back(p, &gx), *got = back(p, &gy);
    CASE(name, "norm of %lld, numbers %d%s", (long long)h, (int)kind, add ? ", added" : "");
    assert_bits(x, sum, rows * h, name); /* the residual sum has one rounding */
    for (int64_t i = 0; i < rows * h; i++)
        assert_near(want + i, got + i, 1, 0x1p-24 * ((double)h / 16 + 8), fabs((double)want[i]) + 0x1p-140, name);
    drop(p, &gd), drop(p, &gw);
    free(x), free(d), free(w), free(want), free(sum), free(got);
}

static void norms_agree(void **state)
{
    (void)state;
    struct pair p = pair_open();
    for (size_t w = 0; w < COUNT(widths); w++)
        for (size_t i = 0; i < COUNT(kinds); i++)
            norm_case(&p, 3, widths[w], kinds[i], i % 2 == 0);
    norm_case(&p, 2, 20000, RANDOM, true);
    norm_case(&p, 0, 8, RANDOM, true);
    pair_close(&p);
}

/* Both softmaxes sum up to `window` terms in f32 and average values below 1: 4e-6, as for the CPU against f64. */
static void attention_case(const struct pair *p, const struct attention_shape *a, int sequences, enum numbers kind)
{
    char name[96];
    struct err e = {0};
    int64_t rows = (int64_t)sequences * a->window, width = (int64_t)(a->heads + 2 * a->kv_heads) * a->head_dim;
    int64_t out = (int64_t)a->heads * a->head_dim;
    float *x = numbers(rows * width, kind, 7), *want = numbers(rows * out, ZEROS, 1);
    struct tensor tx = tensor_matrix(x, DTYPE_F32, rows, width), ty = tensor_matrix(want, DTYPE_F32, rows, out);
    struct tensor gx = there(p, x, DTYPE_F32, rows, width), gy = blank(p, DTYPE_F32, rows, out);
    assert_ok(p->cpu->k->attention(p->cpu, &tx, a, &ty, &e) && p->gpu->k->attention(p->gpu, &gx, a, &gy, &e), e);
    float *got = back(p, &gy), most = 0x1p-140f;
    for (int64_t i = 0; i < rows * width; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    CASE(name, "attention %d over %d of %d, window %d, numbers %d", a->heads, a->kv_heads, a->head_dim, a->window,
         (int)kind);
    assert_near(want, got, rows * out, 4e-6, (double)most, name);
    if (a->window >= 4) { /* a row's bits depend on its own past only: a shorter window of the same rows */
        struct attention_shape less = *a;
        less.window = a->window - a->window / 4;
        struct tensor part = tensor_rows(&gx, 0, less.window), y = blank(p, DTYPE_F32, less.window, out);
        assert_ok(p->gpu->k->attention(p->gpu, &part, &less, &y, &e), e);
        float *again = back(p, &y);
        assert_bits(got, again, less.window * out, name);
        free(again);
    }
    drop(p, &gx);
    free(x), free(want), free(got);
}

static void attention_agrees_and_rows_depend_on_their_past_only(void **state)
{
    (void)state;
    struct pair p = pair_open();
    static const struct attention_shape shapes[] = {
        {1, 1, 1, 1},   {2, 1, 7, 3},   {3, 3, 16, 65},  {9, 3, 64, 130}, {4, 2, 96, 64},
        {2, 2, 48, 63}, {8, 1, 128, 70}, {2, 1, 200, 129}, {1, 1, 256, 80},
    };
    for (size_t s = 0; s < COUNT(shapes); s++)
        for (size_t i = 0; i < 3; i++)
            attention_case(&p, &shapes[s], 1 + (int)s % 3, kinds[i]);
    struct attention_shape wide = {1, 1, 300, 4};
    struct err e = {0};
    struct tensor x = blank(&p, DTYPE_F32, 4, 900), y = blank(&p, DTYPE_F32, 4, 300);
    assert_err(p.gpu->k->attention(p.gpu, &x, &wide, &y, &e), e, ERR_INPUT, "head_dim 300 is above 256");
    drop(&p, &x), drop(&p, &y);
    pair_close(&p);
}

/* f64 sums in another order. */
static void energies_agree(void **state)
{
    (void)state;
    struct pair p = pair_open();
    struct err e = {0};
    for (size_t w = 0; w < COUNT(widths); w++) {
        int64_t n = 9, k = widths[w];
        float *d = numbers(n * k, MIXED, w), *y = numbers(n * k, RANDOM, w + 1);
        double want[2] = {1.0, 2.0}, got[2] = {1.0, 2.0}, alone[2] = {0.0, 5.0};
        struct tensor td = tensor_matrix(d, DTYPE_F32, n, k), ty = tensor_matrix(y, DTYPE_F32, n, k);
        struct tensor gd = there(&p, d, DTYPE_F32, n, k), gy = there(&p, y, DTYPE_F32, n, k);
        assert_ok(p.cpu->k->energy(p.cpu, &td, &ty, &want[0], &want[1], &e), e);
        assert_ok(p.gpu->k->energy(p.gpu, &gd, &gy, &got[0], &got[1], &e), e);
        assert_ok(p.gpu->k->energy(p.gpu, &gd, NULL, &alone[0], &alone[1], &e), e);
        for (int i = 0; i < 2; i++)
            assert_true(fabs(want[i] - got[i]) <= 1e-12 * (double)(n * k) * 256.0);
        assert_true(fabs(alone[0] - (got[0] - 1.0)) <= 1e-9 * got[0] && alone[1] == 5.0);
        drop(&p, &gd), drop(&p, &gy);
        free(d), free(y);
    }
    pair_close(&p);
}

/* ------------------------------------------------------------------------------------------------------------ KL */

/* The state of `t` rows after tiles of `tile` columns, in a block of memory on the host. */
static void fold(const struct queue *q, const float *a, const float *b, int64_t t, int64_t v, int64_t tile, void *block)
{
    struct err e = {0};
    const struct kernels *k = q->k;
    struct queue queue = *q;
    struct kl_state s = kl_state_at(block, t);
    int64_t bytes = (int64_t)KL_STATE_BYTES(t);
    struct tensor sums = {0}, x = {0}, y = {0};
    for (int64_t i = 0; i < t; i++)
        s.target[i] = (int32_t)(i * 37 % v) - (i == 0);
    kl_state_init(&s, t);
    assert_ok(k->tensor_new(&queue, &sums, DTYPE_U8, 1, &bytes, &e), e);
    assert_ok(k->upload(&queue, &sums, block, (size_t)bytes, &e), e);
    for (int64_t first = 0; first < v; first += tile) {
        int64_t n = v - first < tile ? v - first : tile, shape[2] = {t, n};
        float *part = malloc((size_t)(2 * t * n) * sizeof *part);
        assert_non_null(part);
        for (int64_t r = 0; r < t; r++) {
            memcpy(part + r * n, a + r * v + first, (size_t)n * sizeof *part);
            memcpy(part + (t + r) * n, b + r * v + first, (size_t)n * sizeof *part);
        }
        assert_ok(k->tensor_new(&queue, &x, DTYPE_F32, 2, shape, &e), e);
        assert_ok(k->tensor_new(&queue, &y, DTYPE_F32, 2, shape, &e), e);
        assert_ok(k->upload(&queue, &x, part, (size_t)(t * n) * sizeof *part, &e), e);
        assert_ok(k->upload(&queue, &y, part + t * n, (size_t)(t * n) * sizeof *part, &e), e);
        struct kl_state on = kl_state_at(sums.data, t);
        assert_ok(k->kl_tile(&queue, &x, a == b ? &x : &y, first, &on, &e), e);
        assert_ok(k->finish(&queue, &e), e);
        k->tensor_free(&queue, &x);
        k->tensor_free(&queue, &y);
        free(part);
    }
    assert_ok(k->download(&queue, block, &sums, (size_t)bytes, &e), e);
    k->tensor_free(&queue, &sums);
}

static void make_logits(int64_t t, int64_t v, float noise, float **a, float **b)
{
    *a = numbers(t * v, RANDOM, 11);
    *b = numbers(t * v, RANDOM, 12);
    for (int64_t i = 0; i < t * v; i++) {
        (*a)[i] = 12.0f * (*a)[i] * (*a)[i] * (*a)[i] + 5.0f;
        (*b)[i] = (*a)[i] + noise * (*b)[i];
    }
}

/* Each side is within 1e-6 nats of f64 for a mean over rows (tests/kernels/kl.c), 3e-6 for one. */
static void kl_agrees(void **state)
{
    (void)state;
    struct pair p = pair_open();
    static const struct {
        int64_t t, v, tile;
        float noise;
    } cases[] = {{3, 1, 1, 0.5f},      {3, 35, 35, 0.5f},     {5, 4096, 1000, 0.1f}, {4, 20000, 2048, 0.01f},
                 {2, 5000, 5000, 3.0f}, {6, 3000, 512, 0.1f}, {3, 9000, 8192, 1.0f}};
    for (size_t c = 0; c < COUNT(cases); c++) {
        int64_t t = cases[c].t, v = cases[c].v;
        float *a, *b;
        make_logits(t, v, cases[c].noise, &a, &b);
        double *want = malloc(KL_STATE_BYTES(t)), *got = malloc(KL_STATE_BYTES(t)), *one = malloc(KL_STATE_BYTES(1));
        assert_true(want && got && one);
        fold(p.cpu, a, b, t, v, cases[c].tile, want);
        fold(p.gpu, a, b, t, v, cases[c].tile, got);
        struct kl_state w = kl_state_at(want, t), g = kl_state_at(got, t), o = kl_state_at(one, 1);
        for (int64_t r = 0; r < t; r++) {
            assert_true(fabs(kl_state_row(&w, r) - kl_state_row(&g, r)) < 6e-6);
            assert_true(w.max_t[r] == g.max_t[r] && w.max_c[r] == g.max_c[r]);
            assert_true(w.best_t[r] == g.best_t[r] && w.best_c[r] == g.best_c[r]);
            assert_int_equal(w.arg_t[r], g.arg_t[r]);
            assert_int_equal(w.arg_c[r], g.arg_c[r]);
            assert_true(w.target[r] < 0 ? isnan(g.target_t[r]) : g.target_t[r] == a[r * v + w.target[r]]);
            assert_true(w.target[r] < 0 ? isnan(g.target_c[r]) : g.target_c[r] == b[r * v + w.target[r]]);
        }
        fold(p.gpu, a + (t - 1) * v, b + (t - 1) * v, 1, v, cases[c].tile, one); /* a row alone has the same bits */
        assert_true(o.cross[0] == g.cross[t - 1] && o.sum_t[0] == g.sum_t[t - 1] && o.sum_c[0] == g.sum_c[t - 1]);
        fold(p.gpu, a, a, t, v, cases[c].tile, got);
        for (int64_t r = 0; r < t; r++)
            assert_true(g.cross[r] == 0.0 && kl_state_row(&g, r) == 0.0);
        free(a), free(b), free(want), free(got), free(one);
    }
    pair_close(&p);
}

static void a_logit_that_is_not_finite_gives_nan(void **state)
{
    (void)state;
    struct pair p = pair_open();
    static const float bad[] = {NAN, INFINITY};
    for (size_t i = 0; i < COUNT(bad); i++)
        for (int side = 0; side < 2; side++) {
            float *a, *b;
            double block[16];
            make_logits(1, 100, 0.1f, &a, &b);
            (side ? b : a)[77] = bad[i];
            fold(p.gpu, a, b, 1, 100, 32, block);
            struct kl_state s = kl_state_at(block, 1);
            assert_true(isnan(kl_state_row(&s, 0)));
            free(a), free(b);
        }
    pair_close(&p);
}

/* Of equal logits the first is the largest, wherever the tiles and chunks end. */
static void the_largest_logit_is_the_first_of_equals(void **state)
{
    (void)state;
    enum { V = 5000 };
    struct pair p = pair_open();
    static const int64_t places[][2] = {{0, 1},       {3, 19},      {255, 256}, {31, 2047},
                                        {2047, 2048}, {4095, 4096}, {17, 4999}};
    for (size_t i = 0; i < COUNT(places); i++)
        for (int64_t tile = 1000; tile <= V; tile += 4000) {
            float *a, *b;
            double block[16];
            make_logits(1, V, 0.1f, &a, &b);
            a[places[i][0]] = a[places[i][1]] = 50.0f;
            b[places[i][1]] = b[places[i][0]] = b[4999] = 50.0f;
            fold(p.gpu, a, b, 1, V, tile, block);
            struct kl_state s = kl_state_at(block, 1);
            assert_int_equal(s.arg_t[0], places[i][0]);
            assert_int_equal(s.arg_c[0], places[i][0]);
            free(a), free(b);
        }
    pair_close(&p);
}

static void wrong_shapes_are_reported(void **state)
{
    (void)state;
    struct pair p = pair_open();
    struct err e = {0};
    struct tensor a = blank(&p, DTYPE_F32, 3, 4), b = blank(&p, DTYPE_F32, 4, 3);
    float host[12] = {0};
    struct tensor here = tensor_matrix(host, DTYPE_F32, 3, 4);
    assert_err(p.gpu->k->add(p.gpu, &a, &b, &e), e, ERR_BUG, "add: 'd'");
    assert_err(p.gpu->k->add(p.gpu, &a, &here, &e), e, ERR_BUG, "on device -1, expected row-major f32");
    assert_err(p.gpu->k->upload(p.gpu, &a, host, 4, &e), e, ERR_BUG, "upload: 4 bytes");
    drop(&p, &a), drop(&p, &b);
    pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(elements_have_the_bits_of_the_cpu),
        cmocka_unit_test(embedding_widens_every_dtype),
        cmocka_unit_test(rope_has_the_bits_of_the_cpu),
        cmocka_unit_test(fake_quantization_has_the_bits_of_the_cpu),
        cmocka_unit_test(what_is_not_finite_is_not_hidden),
        cmocka_unit_test(amax_is_exact_and_names_what_is_not_finite),
        cmocka_unit_test(gram_has_the_bits_of_the_cpu),
        cmocka_unit_test(cholesky_agrees),
        cmocka_unit_test(what_is_not_positive_definite_is_told_with_the_minor),
        cmocka_unit_test(a_missing_solver_is_told_when_it_is_called),
        cmocka_unit_test(norms_agree),
        cmocka_unit_test(attention_agrees_and_rows_depend_on_their_past_only),
        cmocka_unit_test(energies_agree),
        cmocka_unit_test(kl_agrees),
        cmocka_unit_test(a_logit_that_is_not_finite_gives_nan),
        cmocka_unit_test(the_largest_logit_is_the_first_of_equals),
        cmocka_unit_test(wrong_shapes_are_reported),
    };
    return first_device() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIPPED;
}
