/* How fast the CPU kernels are: rates of each, and of the products also the ratio to OpenBLAS sgemm of the same shape
 * with the same number of threads. Printed are medians over the rounds (of the ratio: the median of the ratios within a
 * round); the last column says how many rounds were kept of how many were tried.
 *
 *     bench_kernels [threads [rounds]]         SCOUT_CPU chooses the variant */
#include "tests/bench/rounds.h"

#include <math.h>

#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif

/* -- products ------------------------------------------------------------------------------------------------------ */

struct product {
    int64_t t, n, k;
};

struct operands {
    struct product s;
    struct tensor x, w, y, f32, bf16;
};

static bool run_f32(struct bench *b, const void *context)
{
    const struct operands *o = context;
    struct tensor y = o->y;
    return b->q.k->matmul(&b->q, &o->x, &o->f32, &y, &b->e);
}

static bool run_bf16(struct bench *b, const void *context)
{
    const struct operands *o = context;
    struct tensor y = o->y;
    return b->q.k->matmul(&b->q, &o->x, &o->bf16, &y, &b->e);
}

#ifdef HAVE_OPENBLAS
static bool run_openblas(struct bench *b, const void *context)
{
    const struct operands *o = context;
    openblas_set_num_threads(b->q.threads);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)o->s.t, (int)o->s.n, (int)o->s.k, 1.0f, o->x.data,
                (int)o->s.k, o->w.data, (int)o->s.k, 0.0f, o->y.data, (int)o->s.n);
    return true;
}
#endif

static contender *const product_runs[] = {
    run_f32,
    run_bf16,
#ifdef HAVE_OPENBLAS
    run_openblas,
#endif
};
enum { PRODUCT_RUNS = sizeof product_runs / sizeof *product_runs };

static void print_product(const struct product *s, const struct times *t)
{
    static const char *const names[] = {"f32", "bf16", "OpenBLAS sgemm"};
    double gflop = 2e-9 * (double)s->t * (double)s->n * (double)s->k;
    printf("matmul T=%-5lld N=%-5lld K=%-5lld", (long long)s->t, (long long)s->n, (long long)s->k);
    for (int who = 0; who < PRODUCT_RUNS; who++)
        printf(" %s %6.1f", names[who], gflop / median(t->s[who], t->kept));
    printf(" GFLOP/s");
    for (int who = 0; who < 2 && PRODUCT_RUNS == 3; who++) {
        double ratio[MOST_ROUNDS];
        for (int i = 0; i < t->kept; i++)
            ratio[i] = t->s[2][i] / t->s[who][i];
        printf("  %s/OpenBLAS %.2f", names[who], median(ratio, t->kept));
    }
    printf("  %d/%d\n", t->kept, t->tried);
}

static bool bench_product(struct bench *b, const struct product *s)
{
    static struct times t;
    struct operands o = {.s = *s};
    const struct kernels *k = b->q.k;
    bool ok = false;
    if (!random_tensor(b, &o.x, s->t, s->k) || !random_tensor(b, &o.w, s->n, s->k) ||
        !random_tensor(b, &o.y, s->t, s->n) || !k->panels_new(&b->q, &o.f32, s->n, s->k, DTYPE_F32, &b->e) ||
        !k->pack(&b->q, &o.w, 0, &o.f32, &b->e) || !k->panels_new(&b->q, &o.bf16, s->n, s->k, DTYPE_BF16, &b->e) ||
        !k->pack(&b->q, &o.w, 0, &o.bf16, &b->e) || !interleave(b, product_runs, PRODUCT_RUNS, &o, &t))
        goto out;
    print_product(s, &t);
    ok = true;
out:
    drop(b, &o.x), drop(b, &o.w), drop(b, &o.y), drop(b, &o.f32), drop(b, &o.bf16);
    return ok;
}

/* -- the rest ------------------------------------------------------------------------------------------------------ */

/* Shapes of SmolLM2-135M: 9 heads over 3 of 64, hidden 576, intermediate 1536, windows of 256. */
enum { T = 4096, H = 576, FFN = 1536, QKV = 960, TILE_ROWS = 256, TILE = 1024, V = 49152, DRAWS = 64, WINDOW = 256 };

struct set {
    struct tensor x, y, d, w, qkv, gu, act, gram, cosine, sine, s_t, s_c, head;
    struct tensor dqkv, dgu, turned, draws, dots, squares;
    uint64_t seeds[DRAWS];
    struct kl_state kl;
};

/* The kernels write through the tensors' data; the tensors themselves stay as they are. */
static bool run_gram(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->gram(&b->q, &s.x, &s.gram, &b->e);
}

static bool run_attention(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->attention(&b->q, &s.qkv, &(struct attention_shape){9, 3, 64, 256}, &s.y, &b->e);
}

static bool run_rope(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->rope(&b->q, &s.qkv, &(struct attention_shape){9, 3, 64, 256}, &s.cosine, &s.sine, &b->e);
}

static bool run_norm(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    struct tensor w = tensor_vector(s.w.data, DTYPE_F32, H);
    return b->q.k->add_rmsnorm(&b->q, &s.x, &s.d, &w, 1e-5f, &s.y, &b->e);
}

static bool run_swiglu(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->swiglu(&b->q, &s.gu, &s.act, &b->e);
}

static bool run_fp8(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->fake_quantize(&b->q, &s.act, ACT_FP8_TOKEN, 0.0f, DTYPE_F32, &s.act, &b->e);
}

static bool run_nvfp4(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->fake_quantize(&b->q, &s.act, ACT_NVFP4, 1000.0f, DTYPE_F32, &s.act, &b->e);
}

static bool run_amax(struct bench *b, const void *context)
{
    const struct set *s = context;
    float amax = 0.0f;
    return b->q.k->amax(&b->q, &s->act, &amax, &b->e);
}

static bool run_kl(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->kl_tile(&b->q, &s.s_t, &s.s_c, 0, &s.kl, &b->e);
}

static bool run_pack(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->pack(&b->q, &s.act, 0, &s.head, &b->e);
}

static bool run_attention_backward(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->attention_backward(&b->q, &s.qkv, &(struct attention_shape){9, 3, 64, WINDOW}, &s.y, &s.d, &s.dqkv,
                                      &b->e);
}

static bool run_norm_backward(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    struct tensor w = tensor_vector(s.w.data, DTYPE_F32, H);
    return b->q.k->rmsnorm_backward(&b->q, &s.x, &w, 1e-5f, &s.d, &s.y, &b->e);
}

static bool run_swiglu_backward(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->swiglu_backward(&b->q, &s.gu, &s.act, &s.dgu, &b->e);
}

static bool run_transpose(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->transpose(&b->q, &s.head, &s.turned, &b->e);
}

static bool run_label(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->fisher_draw(&b->q, &s.draws, FISHER_LABEL, s.seeds, &b->e);
}

static bool run_sign(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->fisher_draw(&b->q, &s.draws, FISHER_SIGN, s.seeds, &b->e);
}

static bool run_dots(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->window_dots(&b->q, &s.gu, &s.dgu, WINDOW, &s.dots, NULL, &b->e);
}

static bool run_dots_and_squares(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    return b->q.k->window_dots(&b->q, &s.gu, &s.dgu, WINDOW, &s.dots, &s.squares, &b->e);
}

/* 100 calls with one window of the narrowest linear, which stays in the caches: what a call costs. */
static bool run_dots_of_one(struct bench *b, const void *context)
{
    struct set s = *(const struct set *)context;
    struct tensor x = tensor_rows(&s.x, 0, WINDOW), d = tensor_rows(&s.d, 0, WINDOW), one = s.dots;
    bool ok = true;
    one.shape[0] = 1;
    for (int i = 0; i < 100 && ok; i++)
        ok = b->q.k->window_dots(&b->q, &x, &d, WINDOW, &one, NULL, &b->e);
    return ok;
}

static contender *const runs[] = {run_gram, run_attention, run_rope, run_norm, run_swiglu, run_fp8, run_nvfp4, run_amax,
                                  run_kl, run_pack, run_attention_backward, run_norm_backward, run_swiglu_backward,
                                  run_transpose, run_label, run_sign, run_dots, run_dots_and_squares,
                                  run_dots_of_one};
enum { RUNS = sizeof runs / sizeof *runs };

static const struct entry {
    const char *name;
    double work; /* per call, in units */
    const char *unit;
} entries[RUNS] = {
    {"gram K=576 (lower triangle)", 1e-9 * T * H * H, "GFLOP/s"},
    {"attention 9/3 heads of 64, 256", 4e-9 * T * 9 * 64 * 128.5, "GFLOP/s"},
    {"rope", 8e-9 * T * 768, "GB/s"},
    {"add_rmsnorm", 16e-9 * T * H, "GB/s"},
    {"swiglu", 12e-9 * T * FFN, "GB/s"},
    {"fake_quantize fp8", 8e-9 * T * FFN, "GB/s"},
    {"fake_quantize nvfp4", 8e-9 * T * FFN, "GB/s"},
    {"amax", 4e-9 * T * FFN, "GB/s"},
    {"kl_tile 256 x 1024", 1e-3 * TILE_ROWS * TILE / V, "thousand tokens/s of V=49152"},
    {"pack f32", 8e-9 * T * FFN, "GB/s"},
    {"attention_backward, the same", 10e-9 * T * 9 * 64 * 128.5, "GFLOP/s"},
    {"rmsnorm_backward", 16e-9 * T * H, "GB/s"},
    {"swiglu_backward", 20e-9 * T * FFN, "GB/s"},
    {"transpose f32", 8e-9 * T * FFN, "GB/s"},
    {"fisher_draw, labels", 1e-3 * DRAWS, "thousand tokens/s of V=49152"},
    {"fisher_draw, signs", 1e-3 * DRAWS, "thousand tokens/s of V=49152"},
    {"window_dots", 16e-9 * T * FFN, "GB/s"},
    {"window_dots with squares", 16e-9 * T * FFN, "GB/s"},
    {"window_dots, 100 of 256 x 576", 800e-9 * WINDOW * H, "GB/s"},
};

static bool set_init(struct bench *b, struct set *s)
{
    static double f64[5][TILE_ROWS];
    static float f32[2][TILE_ROWS];
    static int32_t i32[2][TILE_ROWS];
    int64_t square[2] = {H, H}, windows[1] = {T / WINDOW};
    if (!random_tensor(b, &s->x, T, H) || !random_tensor(b, &s->y, T, H) || !random_tensor(b, &s->d, T, H) ||
        !random_tensor(b, &s->w, 1, H) || !random_tensor(b, &s->qkv, T, QKV) || !random_tensor(b, &s->gu, T, 2 * FFN) ||
        !random_tensor(b, &s->act, T, FFN) || !random_tensor(b, &s->cosine, 256, 32) ||
        !random_tensor(b, &s->sine, 256, 32) || !random_tensor(b, &s->s_t, TILE_ROWS, TILE) ||
        !random_tensor(b, &s->s_c, TILE_ROWS, TILE) ||
        !random_tensor(b, &s->dqkv, T, QKV) || !random_tensor(b, &s->dgu, T, 2 * FFN) ||
        !random_tensor(b, &s->draws, DRAWS, V) || !b->q.k->panels_new(&b->q, &s->head, T, FFN, DTYPE_F32, &b->e) ||
        !b->q.k->panels_new(&b->q, &s->turned, FFN, T, DTYPE_F32, &b->e) ||
        !b->q.k->tensor_new(&b->q, &s->dots, DTYPE_F64, 1, windows, &b->e) ||
        !b->q.k->tensor_new(&b->q, &s->squares, DTYPE_F64, 1, windows, &b->e) ||
        !b->q.k->tensor_new(&b->q, &s->gram, DTYPE_F64, 2, square, &b->e))
        return false;
    memset(s->gram.data, 0, sizeof(double) * H * H);
    for (uint64_t i = 0; i < DRAWS; i++)
        s->seeds[i] = i + 1;
    s->kl = (struct kl_state){.max_t = f64[0], .sum_t = f64[1], .max_c = f64[2], .sum_c = f64[3], .cross = f64[4],
                              .best_t = f32[0], .best_c = f32[1], .arg_t = i32[0], .arg_c = i32[1]};
    kl_state_init(&s->kl, TILE_ROWS);
    return true;
}

/* The median over the rounds of one's time over the other's; runs are named by their functions. */
static double ratio(const struct times *t, contender *one, contender *other)
{
    int a = 0, b = 0;
    double ratios[MOST_ROUNDS];
    while (runs[a] != one)
        a++;
    while (runs[b] != other)
        b++;
    for (int i = 0; i < t->kept; i++)
        ratios[i] = t->s[a][i] / t->s[b][i];
    return median(ratios, t->kept);
}

static void set_fini(struct bench *b, struct set *s)
{
    struct tensor *all[] = {&s->x, &s->y, &s->d, &s->w, &s->qkv, &s->gu, &s->act, &s->gram, &s->cosine, &s->sine,
                            &s->s_t, &s->s_c, &s->head, &s->dqkv, &s->dgu, &s->turned, &s->draws, &s->dots,
                            &s->squares};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        drop(b, all[i]);
}

static bool bench_rest(struct bench *b)
{
    static struct times t;
    struct set s = {0};
    bool ok = false;
    if (!set_init(b, &s) || !interleave(b, runs, RUNS, &s, &t))
        goto out;
    for (int i = 0; i < RUNS; i++) {
        double m = median(t.s[i], t.kept);
        printf("%-32s %9.3f ms  %9.1f %s\n", entries[i].name, m * 1e3, entries[i].work / m, entries[i].unit);
    }
    /* amax reads a quarter of what window_dots reads. */
    printf("attention_backward / attention %.2f  bytes a second, window_dots / amax %.2f  %d/%d\n",
           ratio(&t, run_attention_backward, run_attention), 4.0 / ratio(&t, run_dots, run_amax), t.kept, t.tried);
    ok = true;
out:
    set_fini(b, &s);
    return ok;
}

int main(int argc, char **argv)
{
    static const struct product products[] = {
        {256, 576, 576},   {256, 960, 576},   {256, 3072, 576}, {256, 576, 1536},  {256, 1024, 576},
        {512, 576, 576},   {512, 3072, 576},  {1024, 576, 576}, {1024, 960, 576},  {1024, 3072, 576},
        {1024, 576, 1536}, {1024, 2048, 576}, {2048, 576, 576}, {2048, 3072, 576}, {2048, 576, 1536},
    };
    struct bench b = {.q = {.threads = argc > 1 ? atoi(argv[1]) : 2, .device = TENSOR_HOST},
                      .rounds = argc > 2 ? atoi(argv[2]) : 9};
    b.q.k = kernels_cpu(&b.e);
    if (!b.q.k || b.q.threads < 1 || b.rounds < 1 || b.rounds > MOST_ROUNDS) {
        fprintf(stderr, "bench_kernels: %s\n", b.q.k ? "threads and rounds must be 1 to 99" : b.e.text);
        return 2;
    }
    printf("%s, %d threads, medians of %d rounds\n", b.q.k->name, b.q.threads, b.rounds);
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        if (!bench_product(&b, &products[i])) {
            fprintf(stderr, "bench_kernels: %s\n", b.e.text);
            return 1;
        }
    }
    if (!bench_rest(&b)) {
        fprintf(stderr, "bench_kernels: %s\n", b.e.text);
        return 1;
    }
    return 0;
}
