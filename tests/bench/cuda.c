/* How fast the kernels of a CUDA device are, and a whole measuring pass of a 27B model's shapes, as shares of what the
 * device was seen to do in the same run: bf16 products of cuBLASLt on a large square, and a copy within its memory.
 *
 *     bench_cuda [--json] [--tiny]             exits with 77 when there is no device, or too little memory
 *
 * Memory of the host: about 5 GiB, 3 of them pinned.
 *
 * --json: a figure is one line of JSON, with `ok` null where there is no target. --tiny: shapes that an emulated device
 * computes in seconds, which proves that the benchmark runs and says nothing of speed.
 *
 * Data are random, since zeros run faster. Inputs and outputs rotate through blocks of memory larger than the caches. A
 * round is as many runs as take 10 ms by the host's clock, up to kernels->finish; each is followed by a round of the
 * ceiling, and the figures are medians over the rounds, of the shares those of the rounds' ratios. */
#include "tests/bench/cuda.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/base/mem.h"
#include "kernels/cuda/cuda.h"

#define ROUNDS 7
#define LEAST_MEMORY ((uint64_t)24 << 30) /* about 19 GiB are used at once, and the pool keeps what was freed */
#define LEAST_SECONDS 0.01 /* of a round: the clock and the wait at its end are then below a percent of it */

static const struct bench_shapes large = {
    .hidden = 5120, .intermediate = 17408, .vocab = 151936, .heads = 40, .kv_heads = 8, .head_dim = 128,
    .windows = 8, .window = 512, .layers = 4, .all_layers = 64, .square = 8192, .block = (int64_t)1 << 30};
static const struct bench_shapes tiny = {
    .hidden = 64, .intermediate = 96, .vocab = 600, .heads = 4, .kv_heads = 2, .head_dim = 16,
    .windows = 2, .window = 32, .layers = 2, .all_layers = 4, .square = 64, .block = 1 << 18};

void bench_must(bool ok, const struct err *e)
{
    if (!ok) {
        fprintf(stderr, "bench_cuda: %s\n", e->text);
        exit(1);
    }
}

/* ----------------------------------------------------------------------------------------------------------- memory */

struct tensor bench_new(struct bench *b, enum dtype t, int64_t rows, int64_t columns)
{
    struct err e;
    struct tensor out;
    int64_t shape[2] = {rows, columns};
    bench_must(b->k->tensor_new(b->q, &out, t, columns ? 2 : 1, shape, &e), &e);
    return out;
}

void bench_free(struct bench *b, struct tensor *t) { b->k->tensor_free(b->q, t); }

/* Elements [first, first + n) of an f32 tensor without gaps. */
static struct tensor flat(const struct tensor *t, int64_t first, int64_t n)
{
    struct tensor v = {.data = (float *)t->data + first, .dtype = DTYPE_F32, .device = t->device, .rank = 1,
                       .shape = {n}};
    return v;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

void bench_fill(struct bench *b, struct tensor *t, float size)
{
    struct err e;
    float *scaled;
    int64_t count = tensor_count(t), n = least(count, BENCH_NUMBERS);
    bench_must(mem_raw(&scaled, (size_t)n, &e), &e);
    for (int64_t i = 0; i < n; i++)
        scaled[i] = b->numbers[i] * size;
    struct tensor first = flat(t, 0, n);
    bench_must(b->k->upload(b->q, &first, scaled, (size_t)n * sizeof *scaled, &e), &e);
    for (int64_t at = n; at < count; at += n) {
        struct tensor from = flat(t, 0, least(n, count - at)), to = flat(t, at, least(n, count - at));
        bench_must(b->k->copy(b->q, &from, &to, &e), &e);
    }
    bench_must(b->k->finish(b->q, &e), &e);
    mem_free(scaled);
}

struct tensor bench_panels(struct bench *b, int64_t n, int64_t k, float size)
{
    struct err e;
    struct tensor panels, w = bench_new(b, DTYPE_F32, n, k);
    bench_fill(b, &w, size);
    bench_must(b->k->panels_new(b->q, &panels, n, k, DTYPE_BF16, &e) && b->k->pack(b->q, &w, 0, &panels, &e), &e);
    bench_free(b, &w);
    return panels;
}

struct packed_matrix bench_packed(struct bench *b, const struct format *f, int64_t n, int64_t k, float size)
{
    struct err e;
    struct packed_matrix p;
    struct tensor w = bench_new(b, DTYPE_F32, n, k), d = bench_new(b, DTYPE_F32, n, k);
    bench_fill(b, &w, size);
    bench_must(packed_new(b->q, f, n, k, DTYPE_BF16, &p, &e) && b->k->encode(b->q, &w, 4.0f * size, &p, &d, &e), &e);
    bench_free(b, &w);
    bench_free(b, &d);
    return p;
}

struct tensor bench_upload(struct bench *b, enum dtype t, int64_t rows, int64_t columns, const void *host)
{
    struct err e;
    struct tensor out = bench_new(b, t, rows, columns);
    bench_must(b->k->upload(b->q, &out, host, (size_t)tensor_count(&out) * dtype_bytes(t), &e), &e);
    return out;
}

void bench_rope(struct bench *b, struct tensor *cosine, struct tensor *sine)
{
    struct err e;
    float *table;
    int64_t half = b->s.head_dim / 2, n = b->s.window * half;
    bench_must(mem_raw(&table, (size_t)(2 * n), &e), &e);
    for (int64_t i = 0; i < n; i++) {
        double angle = (double)(i / half) * pow(1e6, -(double)(i % half) / (double)half);
        table[i] = (float)cos(angle);
        table[n + i] = (float)sin(angle);
    }
    *cosine = bench_upload(b, DTYPE_F32, b->s.window, half, table);
    *sine = bench_upload(b, DTYPE_F32, b->s.window, half, table + n);
    mem_free(table);
}

struct tensor bench_view(struct bench *b, int block, int turn, int64_t rows, int64_t columns)
{
    int64_t n = rows * columns, places = b->s.block / (int64_t)sizeof(float) / n;
    struct err e;
    bench_must(places > 0 || err_set(&e, ERR_BUG, "%lld x %lld do not fit a block", (long long)rows,
                                     (long long)columns), &e);
    struct tensor v = flat(&b->block[block], turn % places * n, n);
    v.rank = 2;
    v.shape[0] = rows;
    v.shape[1] = columns;
    return v;
}

/* The sum of four uniform numbers, with a standard deviation of 1. */
static void make_numbers(struct bench *b)
{
    struct err e;
    uint32_t s = 12345;
    bench_must(mem_raw(&b->numbers, BENCH_NUMBERS, &e), &e);
    for (int64_t i = 0; i < BENCH_NUMBERS; i++) {
        float sum = 0.0f;
        for (int j = 0; j < 4; j++) {
            s = s * 1664525u + 1013904223u;
            sum += (float)(s >> 8) * 0x1p-24f - 0.5f;
        }
        b->numbers[i] = sum * 1.7320508f;
    }
}

/* ------------------------------------------------------------------------------------------------------------- time */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return x[n / 2];
}

/* Seconds of one of `repeat` runs. */
static double round_of(struct bench *b, bench_run run, void *context, int *turn, int repeat)
{
    struct err e;
    double from = now();
    for (int i = 0; i < repeat; i++)
        run(b, context, (*turn)++);
    bench_must(b->k->finish(b->q, &e), &e);
    return (now() - from) / repeat;
}

/* Warms up, and finds how many runs fill a round. */
static int repeats(struct bench *b, bench_run run, void *context, int *turn)
{
    int n = 1;
    round_of(b, run, context, turn, 1);
    while (!b->tiny && n < 1 << 20) {
        double seconds = n * round_of(b, run, context, turn, n);
        if (seconds >= LEAST_SECONDS)
            break;
        n *= 2;
    }
    return n;
}

struct bench_time bench_time(struct bench *b, bench_run run, void *context, double work,
                             const struct bench_ceiling *against)
{
    int turn = 0, other = 0, n = repeats(b, run, context, &turn), rounds = b->tiny ? 1 : ROUNDS;
    double seconds[ROUNDS], share[ROUNDS];
    for (int i = 0; i < rounds; i++) {
        seconds[i] = round_of(b, run, context, &turn, n);
        share[i] = NAN;
        if (against) {
            double best = round_of(b, against->run, against->context, &other, against->repeat);
            share[i] = work / seconds[i] / (against->work / best);
        }
    }
    return (struct bench_time){.share = against ? median(share, rounds) : NAN, .seconds = median(seconds, rounds)};
}

/* ---------------------------------------------------------------------------------------------------------- figures */

static void tell(const struct bench *b, const char *name, double value, const char *unit, double target, bool most)
{
    bool judged = isfinite(target) && !b->tiny, good = most ? value <= target : value >= target;
    char number[32], limit[32];
    snprintf(number, sizeof number, isfinite(value) ? "%.6g" : "null", value);
    snprintf(limit, sizeof limit, isfinite(target) ? "%g" : "null", target);
    if (b->json)
        printf("{\"name\": \"%s\", \"value\": %s, \"unit\": \"%s\", \"target\": %s, \"ok\": %s}\n", name, number, unit,
               limit, !judged ? "null" : good ? "true" : "false");
    else
        printf("%-72s %12s %-10s %s%s%s\n", name, number, unit,
               !isfinite(target) ? "" : most ? "target <= " : "target >= ",
               isfinite(target) ? limit : "", !judged || good ? "" : "  MISSED");
    fflush(stdout);
}

void bench_figure(const struct bench *b, const char *name, double value, const char *unit, double target)
{
    tell(b, name, value, unit, target, false);
}

void bench_figure_most(const struct bench *b, const char *name, double value, const char *unit, double target)
{
    tell(b, name, value, unit, target, true);
}

/* --------------------------------------------------------------------------------------------------------- ceilings */

/* Straight to the library, as a product of the table would do it, but for the rounding of x to bf16: 2 n^3 FLOP, bf16
 * operands, sums and result in f32, no split of the sum. */
static void run_square(struct bench *b, void *context, int turn)
{
    struct err e;
    int64_t n = b->s.square;
    struct tensor y = bench_view(b, BLOCK_Y, turn, n, n);
    (void)context;
    const struct blas_call call = {.type = BLAS_BF16, .rows = n, .n = n, .k = n, .x = b->square[turn % 2].data,
                                   .w = b->square[(turn + 1) % 2].data, .y = y.data};
    bench_must(blas_product(cuda_queue(b->q)->blas, &call, &e), &e);
}

static void run_copy(struct bench *b, void *context, int turn)
{
    struct err e;
    (void)context, (void)turn;
    bench_must(b->k->copy(b->q, &b->block[BLOCK_X], &b->block[BLOCK_Y], &e), &e);
}

/* Work per second when it is alone. */
static double open_ceiling(struct bench *b, struct bench_ceiling *c, bench_run run, double work)
{
    int turn = 0;
    *c = (struct bench_ceiling){.run = run, .work = work, .repeat = repeats(b, run, NULL, &turn)};
    return work / bench_time(b, run, NULL, work, NULL).seconds;
}

static void open_bench(struct bench *b)
{
    char name[96];
    double n = (double)b->s.square;
    make_numbers(b);
    for (int i = 0; i < BLOCKS; i++) {
        b->block[i] = bench_new(b, DTYPE_F32, b->s.block / (int64_t)sizeof(float), 0);
        bench_fill(b, &b->block[i], 1.0f);
    }
    for (int i = 0; i < 2; i++)
        b->square[i] = bench_panels(b, b->s.square, b->s.square, 1.0f);
    double product = open_ceiling(b, &b->product, run_square, 2.0 * n * n * n);
    double copy = open_ceiling(b, &b->copy, run_copy, 2.0 * (double)b->s.block);
    snprintf(name, sizeof name, "ceiling: bf16 product %lld^3 by cuBLASLt, f32 result", (long long)b->s.square);
    bench_figure(b, name, product * 1e-12, "TFLOP/s", NAN);
    snprintf(name, sizeof name, "ceiling: copy of %g MiB on the device, read + write", (double)b->s.block * 0x1p-20);
    bench_figure(b, name, copy * 1e-9, "GB/s", NAN);
}

static void close_bench(struct bench *b)
{
    for (int i = 0; i < BLOCKS; i++)
        bench_free(b, &b->block[i]);
    for (int i = 0; i < 2; i++)
        bench_free(b, &b->square[i]);
    mem_free(b->numbers);
}

int main(int argc, char **argv)
{
    struct bench b = {.s = large};
    struct err e;
    const char *why;
    size_t n;
    uint64_t left;
    for (int i = 1; i < argc; i++) {
        b.json = b.json || strcmp(argv[i], "--json") == 0;
        b.tiny = b.tiny || strcmp(argv[i], "--tiny") == 0;
    }
    if (b.tiny)
        b.s = tiny;
    const struct device *d = kernels_devices(&n, &why);
    if (n == 0) {
        fprintf(stderr, "skipped: %s\n", why);
        return 77;
    }
    bench_must(kernels_device_open(d->index, &left, &e), &e);
    if (!b.tiny && left < LEAST_MEMORY) {
        fprintf(stderr, "skipped: %.1f GiB are free on %s, and this needs %.0f\n", (double)left * 0x1p-30, d->model,
                (double)LEAST_MEMORY * 0x1p-30);
        return 77;
    }
    bench_must(kernels_queue_new(&b.q, d->kernels, d->index, 1, &e), &e);
    b.k = d->kernels;
    fprintf(b.json ? stderr : stdout, "%s, %s\n", d->model, d->kernels->numeric_bf16);
    open_bench(&b);
    bench_kernels(&b);
    bench_pass(&b);
    close_bench(&b);
    kernels_queue_free(b.q);
    return 0;
}
