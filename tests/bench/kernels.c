/* How fast the CPU kernels are: rates of each, and of the products also the ratio to OpenBLAS sgemm of the same shape
 * with the same number of threads. All contenders take turns within one process, round after round; printed are medians
 * over the rounds (of the ratio: the median of the ratios within a round), because only ratios of one run mean anything
 * on a shared machine.
 *
 *     bench_kernels [threads [rounds]]         SCOUT_CPU chooses the variant */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/base/mem.h"
#include "kernels/kernels.h"

#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif

enum { MOST_ROUNDS = 99 };

struct bench {
    struct queue q;
    int rounds;
    struct err e;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* OpenMP's and OpenBLAS's threads go on spinning for a while after their work, which would be at the next one's cost. */
static void settle(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *x, int n)
{
    double sorted[MOST_ROUNDS];
    memcpy(sorted, x, (size_t)n * sizeof *x);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    return sorted[n / 2];
}

/* Numbers of a normal-like distribution; not zeros, which run faster than real data. */
static bool random_tensor(struct bench *b, struct tensor *t, int64_t rows, int64_t columns)
{
    int64_t shape[2] = {rows, columns};
    if (!b->q.k->tensor_new(&b->q, t, DTYPE_F32, 2, shape, &b->e))
        return false;
    uint32_t s = 12345;
    for (int64_t i = 0; i < rows * columns; i++) {
        float sum = 0.0f;
        for (int j = 0; j < 4; j++) {
            s = s * 1664525u + 1013904223u;
            sum += (float)(s >> 8) * 0x1p-24f - 0.5f;
        }
        ((float *)t->data)[i] = sum;
    }
    return true;
}

static void drop(struct bench *b, struct tensor *t) { b->q.k->tensor_free(&b->q, t); }

/* -- products ------------------------------------------------------------------------------------------------------- */

struct product {
    int64_t t, n, k;
};

static void peer_sgemm(const struct bench *b, const struct product *s, const struct tensor *x, const struct tensor *w,
                       struct tensor *y)
{
#ifdef HAVE_OPENBLAS
    openblas_set_num_threads(b->q.threads);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)s->t, (int)s->n, (int)s->k, 1.0f, x->data, (int)s->k,
                w->data, (int)s->k, 0.0f, y->data, (int)s->n);
#else
    (void)b, (void)s, (void)x, (void)w, (void)y;
#endif
}

static bool bench_product(struct bench *b, const struct product *s)
{
    struct tensor x = {0}, w = {0}, y = {0}, f32 = {0}, bf16 = {0};
    const struct kernels *k = b->q.k;
    double seconds[3][MOST_ROUNDS], ratio[2][MOST_ROUNDS];
    bool ok = false;
    if (!random_tensor(b, &x, s->t, s->k) || !random_tensor(b, &w, s->n, s->k) || !random_tensor(b, &y, s->t, s->n) ||
        !k->panels_new(&b->q, &f32, s->n, s->k, DTYPE_F32, &b->e) || !k->pack(&b->q, &w, 0, &f32, &b->e) ||
        !k->panels_new(&b->q, &bf16, s->n, s->k, DTYPE_BF16, &b->e) || !k->pack(&b->q, &w, 0, &bf16, &b->e))
        goto out;
    for (int round = -1; round < b->rounds; round++) { /* round -1 warms up */
        for (int turn = 0; turn < 3; turn++) {
            int who = (turn + round + 1) % 3;
            settle();
            double from = now();
            if (who == 0 && !k->matmul(&b->q, &x, &f32, &y, &b->e))
                goto out;
            if (who == 1 && !k->matmul(&b->q, &x, &bf16, &y, &b->e))
                goto out;
            if (who == 2)
                peer_sgemm(b, s, &x, &w, &y);
            if (round >= 0)
                seconds[who][round] = now() - from;
        }
        for (int who = 0; who < 2 && round >= 0; who++)
            ratio[who][round] = seconds[2][round] / seconds[who][round];
    }
    double flop = 2.0 * (double)s->t * (double)s->n * (double)s->k;
    printf("matmul T=%-5lld N=%-5lld K=%-5lld f32 %7.1f  bf16 %7.1f", (long long)s->t, (long long)s->n, (long long)s->k,
           flop / median(seconds[0], b->rounds) * 1e-9, flop / median(seconds[1], b->rounds) * 1e-9);
#ifdef HAVE_OPENBLAS
    printf("  OpenBLAS sgemm %7.1f GFLOP/s   f32/OpenBLAS %.2f  bf16/OpenBLAS %.2f",
           flop / median(seconds[2], b->rounds) * 1e-9, median(ratio[0], b->rounds), median(ratio[1], b->rounds));
#else
    (void)ratio;
    printf(" GFLOP/s");
#endif
    printf("\n");
    ok = true;
out:
    drop(b, &x), drop(b, &w), drop(b, &y), drop(b, &f32), drop(b, &bf16);
    return ok;
}

/* -- the rest, each against the product of a linear layer in the same rounds ---------------------------------------- */

/* Shapes of SmolLM2-135M: 9 heads over 3 of 64, hidden 576, intermediate 1536, windows of 256. */
enum { T = 4096, H = 576, FFN = 1536, QKV = 960, TILE_ROWS = 256, TILE = 1024, V = 49152 };

struct set {
    struct tensor x, y, d, w, qkv, gu, act, gram, cosine, sine, s_t, s_c, head;
    struct kl_state kl;
};

static bool run_gram(struct bench *b, struct set *s) { return b->q.k->gram(&b->q, &s->x, &s->gram, &b->e); }
static bool run_attention(struct bench *b, struct set *s)
{
    return b->q.k->attention(&b->q, &s->qkv, &(struct attention_shape){9, 3, 64, 256}, &s->y, &b->e);
}
static bool run_rope(struct bench *b, struct set *s)
{
    return b->q.k->rope(&b->q, &s->qkv, &(struct attention_shape){9, 3, 64, 256}, &s->cosine, &s->sine, &b->e);
}
static bool run_norm(struct bench *b, struct set *s)
{
    struct tensor w = tensor_vector(s->w.data, DTYPE_F32, H);
    return b->q.k->add_rmsnorm(&b->q, &s->x, &s->d, &w, 1e-5f, &s->y, &b->e);
}
static bool run_swiglu(struct bench *b, struct set *s) { return b->q.k->swiglu(&b->q, &s->gu, &s->act, &b->e); }
static bool run_fp8(struct bench *b, struct set *s)
{
    return b->q.k->fake_quantize(&b->q, &s->act, ACT_FP8_TOKEN, 0.0f, DTYPE_F32, &s->act, &b->e);
}
static bool run_nvfp4(struct bench *b, struct set *s)
{
    return b->q.k->fake_quantize(&b->q, &s->act, ACT_NVFP4, 1000.0f, DTYPE_F32, &s->act, &b->e);
}
static bool run_amax(struct bench *b, struct set *s)
{
    float amax = 0.0f;
    return b->q.k->amax(&b->q, &s->act, &amax, &b->e);
}
static bool run_kl(struct bench *b, struct set *s)
{
    return b->q.k->kl_tile(&b->q, &s->s_t, &s->s_c, 0, &s->kl, &b->e);
}
static bool run_pack(struct bench *b, struct set *s) { return b->q.k->pack(&b->q, &s->act, 0, &s->head, &b->e); }

static const struct entry {
    const char *name;
    bool (*run)(struct bench *b, struct set *s);
    double work; /* per call */
    double unit;
    const char *unit_name;
} entries[] = {
    {"gram K=576 (lower triangle)", run_gram, (double)T * H * H, 1e9, "GFLOP/s"},
    {"attention 9/3 heads of 64, 256", run_attention, 4.0 * T * 9 * 64 * 128.5, 1e9, "GFLOP/s"},
    {"rope", run_rope, 2.0 * T * 768 * 4, 1e9, "GB/s"},
    {"add_rmsnorm", run_norm, 4.0 * T * H * 4, 1e9, "GB/s"},
    {"swiglu", run_swiglu, 3.0 * T * FFN * 4, 1e9, "GB/s"},
    {"fake_quantize fp8", run_fp8, 2.0 * T * FFN * 4, 1e9, "GB/s"},
    {"fake_quantize nvfp4", run_nvfp4, 2.0 * T * FFN * 4, 1e9, "GB/s"},
    {"amax", run_amax, 1.0 * T * FFN * 4, 1e9, "GB/s"},
    {"kl_tile 256 x 1024", run_kl, (double)TILE_ROWS * TILE / V, 1e3, "thousand tokens/s of V=49152"},
    {"pack f32", run_pack, 2.0 * T * FFN * 4, 1e9, "GB/s"},
};

static bool set_init(struct bench *b, struct set *s)
{
    static double f64[5][TILE_ROWS];
    static float f32[2][TILE_ROWS];
    static int32_t i32[2][TILE_ROWS];
    int64_t square[2] = {H, H};
    if (!random_tensor(b, &s->x, T, H) || !random_tensor(b, &s->y, T, H) || !random_tensor(b, &s->d, T, H) ||
        !random_tensor(b, &s->w, 1, H) || !random_tensor(b, &s->qkv, T, QKV) || !random_tensor(b, &s->gu, T, 2 * FFN) ||
        !random_tensor(b, &s->act, T, FFN) || !random_tensor(b, &s->cosine, 256, 32) ||
        !random_tensor(b, &s->sine, 256, 32) || !random_tensor(b, &s->s_t, TILE_ROWS, TILE) ||
        !random_tensor(b, &s->s_c, TILE_ROWS, TILE) ||
        !b->q.k->panels_new(&b->q, &s->head, T, FFN, DTYPE_F32, &b->e) ||
        !b->q.k->tensor_new(&b->q, &s->gram, DTYPE_F64, 2, square, &b->e))
        return false;
    memset(s->gram.data, 0, sizeof(double) * H * H);
    s->kl = (struct kl_state){.max_t = f64[0], .sum_t = f64[1], .max_c = f64[2], .sum_c = f64[3], .cross = f64[4],
                              .best_t = f32[0], .best_c = f32[1], .arg_t = i32[0], .arg_c = i32[1]};
    kl_state_init(&s->kl, TILE_ROWS);
    return true;
}

static void set_fini(struct bench *b, struct set *s)
{
    struct tensor *all[] = {&s->x, &s->y, &s->d, &s->w, &s->qkv, &s->gu, &s->act, &s->gram, &s->cosine, &s->sine,
                            &s->s_t, &s->s_c, &s->head};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        drop(b, all[i]);
}

static bool bench_rest(struct bench *b)
{
    enum { N = sizeof entries / sizeof *entries };
    static double seconds[N][MOST_ROUNDS];
    struct set s = {0};
    bool ok = false;
    if (!set_init(b, &s))
        goto out;
    for (int round = -1; round < b->rounds; round++) {
        for (int turn = 0; turn < N; turn++) {
            int who = (turn + round + 1) % N;
            settle();
            double from = now();
            if (!entries[who].run(b, &s))
                goto out;
            if (round >= 0)
                seconds[who][round] = now() - from;
        }
    }
    for (int i = 0; i < N; i++) {
        double m = median(seconds[i], b->rounds);
        printf("%-32s %9.3f ms  %9.1f %s\n", entries[i].name, m * 1e3, entries[i].work / m / entries[i].unit,
               entries[i].unit_name);
    }
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
