/* How far a measuring pass is from its floor. Floor: the matrix products alone (all linears, and the head for
 * teacher and candidate) through OpenBLAS sgemm on the same threads. Also bf16 against fp32, and restarts from layer
 * l against their share of the layers. Everything is interleaved in one run, and the figures are medians of ratios.
 * usage: bench_measure MODEL_DIR [ROUNDS]      exits with 77 when there is no such model */
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#include "nodes/model/pass.h"

#define WINDOWS 16
#define WINDOW 256
#define ROWS (WINDOWS * WINDOW)
#define MOST_ROUNDS 32

struct bench {
    struct model *model;
    struct token_set tokens;
    struct queue q;
    struct forward f;
    float *teacher;
    struct rendering *renderings; /* [matrix], nvfp4_a16: the candidate under test */
    uint32_t windows[WINDOWS];
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void must(bool ok, const struct err *e)
{
    if (!ok) {
        fprintf(stderr, "bench_measure: %s\n", e->text);
        exit(1);
    }
}

/* Format 0 is the original, 1 is nvfp4_a16. */
static bool load(void *context, int unit, int format, struct unit_weights *out, struct err *e)
{
    struct bench *b = context;
    if (format == 0)
        return weights_stored(b->f.q, b->model, unit, b->f.mode, out, e);
    *out = (struct unit_weights){.act = ACT_NONE};
    return weights_pack(b->f.q, b->model, unit, b->renderings + b->model->units[unit].first, b->f.mode, out, e);
}

static bool ignore(void *context, size_t candidate, size_t window, const struct pass_row *row, struct err *e)
{
    double *sum = context;
    (void)candidate, (void)window, (void)e;
    *sum += row->kl_sum;
    return true;
}

static void render(struct bench *b)
{
    struct err e;
    const struct format *f = format_find("nvfp4_a16");
    must(mem_new(&b->renderings, (size_t)b->model->n_matrices, &e), &e);
    for (int i = 0; i < b->model->n_matrices; i++) {
        const struct matrix *m = &b->model->matrices[i];
        float *w, amax = 0;
        must(mem_raw(&w, (size_t)(m->n * m->k), &e) && model_read_matrix(b->model, i, w, &e) &&
                 format_amax(w, m->n, m->k, &amax, &e) &&
                 format_rendering_new(&b->renderings[i], f, m->n, m->k, m->dtype, &e) &&
                 f->encode(w, amax, &b->renderings[i], &e), &e);
        mem_free(w);
    }
}

static void open_mode(struct bench *b, enum dtype mode)
{
    struct err e;
    uint8_t *original;
    must(forward_open(&b->f, b->model, &b->q, mode, WINDOW, &e), &e);
    must(mem_new(&original, (size_t)b->model->n_units, &e), &e);
    struct pass p = {.f = &b->f, .tokens = &b->tokens, .weights = {load, b, NULL}, .share = true};
    if (!b->teacher)
        must(mem_raw(&b->teacher, (size_t)ROWS * (size_t)b->model->config.hidden, &e), &e);
    must(pass_states(&p, original, b->windows, WINDOWS, b->teacher, &e), &e);
    mem_free(original);
}

/* Seconds of one full pass with KL of one candidate; `phase` gets where they went. */
static double full_pass(struct bench *b, double phase[5])
{
    struct err e;
    uint8_t *assignment;
    double sum = 0;
    must(mem_new(&assignment, (size_t)b->model->n_units, &e), &e);
    memset(assignment, 1, (size_t)b->model->n_units);
    struct pass p = {.f = &b->f, .tokens = &b->tokens, .teacher = b->teacher, .weights = {load, b, NULL},
                     .share = true};
    const uint8_t *list[1] = {assignment};
    double from = now();
    must(pass_run(&p, list, 1, b->windows, WINDOWS, ignore, &sum, &e), &e);
    double seconds = now() - from;
    memcpy(phase, p.seconds, sizeof p.seconds);
    mem_free(assignment);
    return seconds;
}

/* Seconds of the same products by OpenBLAS: M x N x K for every unit, and twice the head. */
static double blas_products(const struct bench *b)
{
    const struct model_config *c = &b->model->config;
    int64_t most = (int64_t)c->vocab * c->hidden, widest = 2 * (int64_t)c->intermediate;
    static float *x, *w, *y;
    if (!x) {
        int64_t k = c->intermediate > c->hidden ? c->intermediate : c->hidden;
        x = malloc((size_t)(ROWS * k) * sizeof *x);
        w = malloc((size_t)most * sizeof *w);
        y = malloc((size_t)ROWS * (size_t)(widest > 4096 ? widest : 4096) * sizeof *y);
        for (int64_t i = 0; i < ROWS * k; i++)
            x[i] = (float)(rand() % 2001 - 1000) * 1e-3f;
        for (int64_t i = 0; i < most; i++)
            w[i] = (float)(rand() % 2001 - 1000) * 1e-4f;
    }
    double from = now();
    for (int u = 0; u < b->model->n_units; u++) {
        const struct unit *t = &b->model->units[u];
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, ROWS, (int)t->n, (int)t->k, 1, x, (int)t->k, w, (int)t->k, 0,
                    y, (int)t->n);
    }
    for (int twice = 0; twice < 2; twice++)
        for (int first = 0; first < c->vocab; first += 4096) {
            int n = c->vocab - first < 4096 ? c->vocab - first : 4096;
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, ROWS, n, c->hidden, 1, x, c->hidden,
                        w + (int64_t)first * c->hidden, c->hidden, 0, y, n);
        }
    return now() - from;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, ascending);
    return n % 2 ? x[n / 2] : 0.5 * (x[n / 2 - 1] + x[n / 2]);
}

/* A candidate that leaves the original at layer l, restarted from the cached states there: its time against the line
 * t_head + (L - l) / L * (t_full - t_head). */
static void bench_restarts(struct bench *b, double full, double head)
{
    struct err e;
    int layers = b->model->config.layers;
    size_t units = (size_t)b->model->n_units;
    uint8_t *base = NULL, *other = NULL;
    struct replay *replay = NULL;
    double sum = 0;
    must(replay_new(&replay, &b->q, (uint64_t)4 << 30, &e) && mem_new(&base, units, &e) && mem_new(&other, units, &e), &e);
    memset(base, 1, units);
    memset(other, 1, units);
    other[units - 1] = 0;
    struct pass p = {.f = &b->f, .tokens = &b->tokens, .teacher = b->teacher, .weights = {load, b, NULL}, .share = true,
        .replay = replay};
    const uint8_t *both[2] = {base, other};
    must(pass_run(&p, both, 2, b->windows, WINDOWS, ignore, &sum, &e), &e); /* fills the cache along `base` */
    for (int quarter = 0; quarter < 4; quarter++) {
        int layer = layers * quarter / 4;
        memset(other, 1, units);
        other[layer * LAYER_UNITS] = 0;
        const uint8_t *list[1] = {other};
        double seconds[3];
        for (int i = 0; i < 3; i++) {
            double from = now();
            must(pass_run(&p, list, 1, b->windows, WINDOWS, ignore, &sum, &e), &e);
            seconds[i] = now() - from;
        }
        double line = head + (full - head) * (layers - layer) / layers, got = median(seconds, 3);
        printf("restart at layer %2d of %d: %.2f s, its share of the layers is %.2f s: ratio %.2f\n", layer, layers, got,
               line, got / line);
    }
    replay_free(replay);
    mem_free(base);
    mem_free(other);
}

static void bench_mode(struct bench *b, int rounds, double *fp32_seconds)
{
    static const char *const name[] = {"rebuilding weights", "layers", "teacher's head", "candidate's head", "KL"};
    double ratio[MOST_ROUNDS], pass[MOST_ROUNDS], head[MOST_ROUNDS], phase[5] = {0}, one[5];
    for (int i = 0; i < rounds; i++) {
        double blas = blas_products(b);
        pass[i] = full_pass(b, one);
        ratio[i] = pass[i] / blas;
        head[i] = one[PASS_TEACHER_HEAD] + one[PASS_HEAD] + one[PASS_KL];
        for (int j = 0; j < 5; j++)
            phase[j] += one[j] / rounds;
        printf("  round %d: pass %.2f s, products by OpenBLAS %.2f s, ratio %.3f\n", i, pass[i], blas, ratio[i]);
    }
    double seconds = median(pass, rounds);
    printf("%s: full pass with KL of %d tokens %.2f s (%.0f tokens/s), %.3f x the products alone by OpenBLAS (fp32)\n",
           b->f.mode == DTYPE_BF16 ? b->q.k->numeric_bf16 : b->q.k->numeric_fp32, ROWS, seconds, ROWS / seconds,
           median(ratio, rounds));
    for (int j = 0; j < 5; j++)
        printf("  %-20s %6.2f s  %4.1f %%\n", name[j], phase[j], 100 * phase[j] / seconds);
    if (b->f.mode == DTYPE_F32)
        *fp32_seconds = seconds;
    else
        printf("bf16 is %.2f x as fast as fp32\n", *fp32_seconds / seconds);
    bench_restarts(b, seconds, median(head, rounds));
}

int main(int argc, char **argv)
{
    struct err e;
    struct stat st;
    int rounds = argc > 2 ? atoi(argv[2]) : 5;
    rounds = rounds < 1 ? 1 : rounds > MOST_ROUNDS ? MOST_ROUNDS : rounds;
    if (argc < 2 || stat(argv[1], &st) != 0) {
        printf("no model at %s: run tools/fetch_smollm2\n", argc < 2 ? "(none given)" : argv[1]);
        return 77;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct bench b = {.q = {.k = kernels_cpu(&e), .threads = 2, .device = TENSOR_HOST}};
    must(b.q.k && model_open(&b.model, argv[1], &e), &e);
    b.tokens = (struct token_set){.n = WINDOWS, .window = WINDOW};
    must(mem_new(&b.tokens.ids, ROWS, &e) && mem_new(&b.tokens.length, WINDOWS, &e), &e);
    for (int i = 0; i < ROWS; i++)
        b.tokens.ids[i] = rand() % b.model->config.vocab;
    for (uint32_t w = 0; w < WINDOWS; w++) {
        b.windows[w] = w;
        b.tokens.length[w] = WINDOW;
    }
    render(&b);
    double fp32_seconds = 0;
    for (int mode = 0; mode < 2; mode++) {
        open_mode(&b, mode ? DTYPE_BF16 : DTYPE_F32);
        bench_mode(&b, rounds, &fp32_seconds);
        forward_close(&b.f);
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("peak resident memory of this benchmark: %.0f MiB\n", (double)usage.ru_maxrss / 1024);
    return 0;
}
