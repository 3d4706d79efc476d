/* What rounding methods cost, and what they gain.
 *
 *     bench_rounding [THREADS [ROUNDS]]
 *         Seconds for a 2048 x 2048 matrix, medians over rounds, and their ratio to one product of the matrix with its
 *         moment (N K^2 multiply-adds by kernels->matmul), which all contenders take turns with in one process.
 *     bench_rounding losses MODEL RUN:NODE OTHER:NODE FORMAT,... LAYER,... [signround]
 *         Losses relative to round-to-nearest of every matrix of some layers, means over the matrices: on the rows that
 *         were fitted, on those that the gate judges by, and on the rows of another run, which no choice has seen. The
 *         runs are directories of `scout run`, the nodes of type hessian. */
#include <hdf5.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nodes/format/rounding.h"
#include "nodes/model/model.h"

#define SIZE 2048
#define MOST_ROUNDS 99
#define FEW_STEPS 10 /* of signround, where it is timed: its time is proportional to them */

static const struct rounding_options options = {.damping = {0.02, 0.2}, .n_dampings = 2, .by_activation = true,
                                                .full_moment = true, .signround_steps = 200};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void must(bool ok, const struct err *e)
{
    if (!ok) {
        fprintf(stderr, "bench_rounding: %s\n", e->text);
        exit(1);
    }
}

/* ------------------------------------------------------------------------------------------------------- speed */

struct speed {
    struct queue q;
    struct rounding r;
    float *w, *moment;
    struct blocks rtn, b;
    struct tensor product, rows; /* [SIZE, SIZE], and w as one */
};

static bool run_product(struct speed *s, struct err *e)
{
    return loss_product(s->r.fit, &s->q, &s->rows, &s->product, e);
}

static bool run_rtn(struct speed *s, struct err *e)
{
    double square, energy;
    return rounding_rtn.apply(&s->r, s->w, &s->b, e) &&
           rounding_loss(s->r.held_out, &s->q, s->w, &s->b, &square, &energy, e);
}

static bool run_diagonal(struct speed *s, struct err *e)
{
    s->r.options.full_moment = false;
    return rounding_scale_search.apply(&s->r, s->w, &s->b, e);
}

static bool run_full(struct speed *s, struct err *e)
{
    s->r.options.full_moment = true;
    return rounding_scale_search.apply(&s->r, s->w, &s->b, e);
}

/* With one damping; the factors are made anew. */
static bool run_gptq(struct speed *s, struct err *e)
{
    struct rounding r;
    struct rounding_options o = options;
    o.n_dampings = 1;
    if (!rounding_open(&r, &s->q, SIZE, s->moment, s->moment, &o, e))
        return false;
    bool ok = rounding_gptq.apply(&r, s->w, &s->b, e);
    rounding_close(&r);
    return ok;
}

static bool run_signround(struct speed *s, struct err *e)
{
    s->r.options.signround_steps = FEW_STEPS;
    return rounding_signround.apply(&s->r, s->w, &s->b, e);
}

static const struct {
    const char *name;
    bool (*run)(struct speed *s, struct err *e);
    double times; /* what its seconds are multiplied by */
} contenders[] = {
    {"product", run_product, 1.0},
    {"rtn and its loss", run_rtn, 1.0},
    {"scale_search, diagonal", run_diagonal, 1.0},
    {"scale_search, full", run_full, 1.0},
    {"gptq, one damping", run_gptq, 1.0},
    {"signround, 200 steps", run_signround, 200.0 / FEW_STEPS},
};
#define CONTENDERS ((int)(sizeof contenders / sizeof *contenders))

static float uniform(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(*state >> 40) * 0x1p-24f - 0.5f;
}

/* Weights, and a moment of inputs that share some directions. */
static void make(struct speed *s)
{
    struct err e = {0};
    uint64_t state = 1;
    size_t n = (size_t)SIZE * SIZE;
    must(mem_raw(&s->w, n, &e) && mem_raw(&s->moment, n, &e), &e);
    for (size_t i = 0; i < n; i++)
        s->w[i] = 0.1f * (uniform(&state) + uniform(&state) + uniform(&state) + uniform(&state));
    float *mix = s->moment; /* for a moment: [SIZE][8] */
    float rows[SIZE][8];
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < 8; j++)
            rows[i][j] = uniform(&state);
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j <= i; j++) {
            float sum = i == j ? 0.25f : 0.0f;
            for (int m = 0; m < 8; m++)
                sum += rows[i][m] * rows[j][m];
            mix[i * SIZE + j] = mix[j * SIZE + i] = sum;
        }
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

static void time_format(struct speed *s, const struct format *f, int rounds)
{
    static double seconds[CONTENDERS][MOST_ROUNDS], ratio[CONTENDERS][MOST_ROUNDS];
    struct err e = {0};
    float amax = 0.0f;
    must(format_amax(s->w, SIZE, SIZE, &amax, &e) && blocks_new(&s->rtn, f, SIZE, SIZE, amax, &e) &&
             blocks_new(&s->b, f, SIZE, SIZE, amax, &e), &e);
    must(rounding_rtn.apply(&s->r, s->w, &s->rtn, &e), &e);
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i < CONTENDERS; i++) {
            blocks_copy(&s->b, &s->rtn);
            double from = now();
            must(contenders[i].run(s, &e), &e);
            seconds[i][round] = (now() - from) * contenders[i].times;
            ratio[i][round] = seconds[i][round] / seconds[0][round];
        }
    for (int i = 0; i < CONTENDERS; i++)
        printf("%-10s %-24s %8.3f s %8.2f products\n", f->name, contenders[i].name, median(seconds[i], rounds),
               median(ratio[i], rounds));
    fflush(stdout);
    blocks_free(&s->rtn);
    blocks_free(&s->b);
}

static void time_all(int threads, int rounds)
{
    struct err e = {0};
    struct speed s = {.q = {.k = kernels_cpu(&e), .threads = threads, .device = TENSOR_HOST}};
    int64_t shape[2] = {SIZE, SIZE};
    must(s.q.k != NULL, &e);
    make(&s);
    s.rows = tensor_matrix(s.w, DTYPE_F32, SIZE, SIZE);
    must(rounding_open(&s.r, &s.q, SIZE, s.moment, s.moment, &options, &e) &&
             s.q.k->tensor_new(&s.q, &s.product, DTYPE_F32, 2, shape, &e), &e);
    printf("%s, %d threads, %d x %d, %d rounds\n", s.q.k->name, threads, SIZE, SIZE, rounds);
    const struct format *const tried[] = {&format_nvfp4, &format_mxfp4, &format_int4_g128, &format_fp8_block,
                                          &format_int8};
    for (size_t f = 0; f < sizeof tried / sizeof *tried; f++)
        time_format(&s, tried[f], rounds);
    s.q.k->tensor_free(&s.q, &s.product);
    rounding_close(&s.r);
    mem_free(s.w);
    mem_free(s.moment);
}

/* ------------------------------------------------------------------------------------------------------ losses */

#define MOST_METHODS 3

static const struct chain {
    const char *name;
    const struct rounding_method *methods[MOST_METHODS];
    bool diagonal;  /* scale_search: by the diagonal alone */
    bool signround; /* only when asked for */
} chains[] = {
    {"scale_search, diagonal", {&rounding_scale_search}, true, false},
    {"scale_search", {&rounding_scale_search}, false, false},
    {"gptq", {&rounding_gptq}, false, false},
    {"scale_search gptq", {&rounding_scale_search, &rounding_gptq}, false, false},
    {"scale_search gptq scale_search", {&rounding_scale_search, &rounding_gptq, &rounding_scale_search}, false, false},
    {"signround", {&rounding_signround}, false, true},
    {"scale_search signround", {&rounding_scale_search, &rounding_signround}, true, true},
    {"gptq signround", {&rounding_gptq, &rounding_signround}, false, true},
};
#define CHAINS ((int)(sizeof chains / sizeof *chains))

enum { FIT, GATE, OTHER, SETS };

/* Sums over matrices of losses relative to round-to-nearest. */
struct sums {
    double ratio[SETS], seconds;
    int n;
};

struct losses {
    struct queue q;
    struct model *model;
    hid_t file[2];
    const char *node[2];
    bool with_signround;
    const struct format *formats[16];
    int n_formats;
    struct sums sums[16][CHAINS];
};

/* RUN:NODE; the node's name stays in the argument. */
static void open_run(struct losses *l, int i, char *spec)
{
    char path[1024], *colon = strrchr(spec, ':');
    if (!colon) {
        fprintf(stderr, "bench_rounding: '%s' is not RUN:NODE\n", spec);
        exit(2);
    }
    *colon = '\0';
    snprintf(path, sizeof path, "%s/run.h5", spec);
    l->file[i] = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    l->node[i] = colon + 1;
    if (l->file[i] < 0) {
        fprintf(stderr, "bench_rounding: cannot open %s\n", path);
        exit(1);
    }
}

static float *read_moment(const struct losses *l, int run, const struct unit *u, const char *what)
{
    char part[32], path[1024];
    float *moment;
    struct err e = {0};
    layer_part(u->layer, part);
    snprintf(path, sizeof path, "nodes/%s/result/parts/%s/%s/%s", l->node[run], part, u->name, what);
    must(mem_raw(&moment, (size_t)(u->k * u->k), &e), &e);
    hid_t d = H5Dopen2(l->file[run], path, H5P_DEFAULT);
    if (d < 0 || H5Dread(d, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, moment) < 0) {
        fprintf(stderr, "bench_rounding: cannot read %s\n", path);
        exit(1);
    }
    H5Dclose(d);
    return moment;
}

static void take_losses(struct losses *l, struct rounding *r, struct loss *other, const float *w,
                        const struct blocks *b, double loss[SETS])
{
    struct err e = {0};
    double square;
    must(rounding_loss(r->fit, &l->q, w, b, &square, &loss[FIT], &e) &&
             rounding_loss(r->held_out, &l->q, w, b, &square, &loss[GATE], &e) &&
             rounding_loss(other, &l->q, w, b, &square, &loss[OTHER], &e), &e);
}

static void try_format(struct losses *l, struct rounding *r, struct loss *other, int f, const float *w, int64_t n,
                       int64_t k, float amax)
{
    struct err e = {0};
    struct blocks b;
    struct rounding_step steps[MOST_METHODS];
    double rtn[SETS], loss[SETS];
    must(blocks_new(&b, l->formats[f], n, k, amax, &e) && rounding_chain(r, NULL, 0, w, &b, steps, &e), &e);
    take_losses(l, r, other, w, &b, rtn);
    for (int c = 0; c < CHAINS; c++) {
        int methods = 0;
        if (chains[c].signround && !l->with_signround)
            continue;
        while (methods < MOST_METHODS && chains[c].methods[methods])
            methods++;
        r->options.full_moment = !chains[c].diagonal;
        double from = now();
        must(rounding_chain(r, chains[c].methods, methods, w, &b, steps, &e), &e);
        l->sums[f][c].seconds += now() - from;
        l->sums[f][c].n++;
        take_losses(l, r, other, w, &b, loss);
        for (int s = 0; s < SETS; s++)
            l->sums[f][c].ratio[s] += loss_ratio(loss[s], rtn[s]);
    }
    blocks_free(&b);
}

static void try_unit(struct losses *l, const struct unit *u)
{
    struct err e = {0};
    float *fit = read_moment(l, 0, u, "second_moment"), *gate = read_moment(l, 0, u, "held_out_moment");
    float *third = read_moment(l, 1, u, "second_moment"), *w, amax = 0.0f;
    struct rounding r;
    struct loss *other;
    must(mem_raw(&w, (size_t)u->parameters, &e) && loss_new(&other, &l->q, third, u->k, &e) &&
             rounding_open(&r, &l->q, u->k, fit, gate, &options, &e), &e);
    for (int i = u->first; i < u->first + u->count; i++) {
        const struct matrix *m = &l->model->matrices[i];
        must(model_read_matrix(l->model, i, w + m->row * u->k, &e), &e);
    }
    must(format_amax(w, u->n, u->k, &amax, &e), &e);
    for (int i = u->first; i < u->first + u->count; i++) {
        const struct matrix *m = &l->model->matrices[i];
        for (int f = 0; f < l->n_formats; f++)
            if (format_fits(l->formats[f], m->n, m->k))
                try_format(l, &r, other, f, w + m->row * u->k, m->n, m->k, amax);
        fprintf(stderr, "%s\n", m->name);
    }
    rounding_close(&r);
    loss_free(other);
    mem_free(fit);
    mem_free(gate);
    mem_free(third);
    mem_free(w);
}

static bool is_listed(const char *list, int layer)
{
    for (const char *p = list; *p; p += strcspn(p, ","), p += *p == ',')
        if (atoi(p) == layer)
            return true;
    return false;
}

static void print_losses(const struct losses *l)
{
    printf("means over matrices of the loss relative to rtn's\n%-10s %-32s %8s %8s %8s %8s %10s\n", "format", "chain",
           "matrices", "fitted", "gate", "others", "seconds");
    for (int f = 0; f < l->n_formats; f++)
        for (int c = 0; c < CHAINS; c++) {
            const struct sums *s = &l->sums[f][c];
            if (s->n > 0)
                printf("%-10s %-32s %8d %8.4f %8.4f %8.4f %10.2f\n", l->formats[f]->name, chains[c].name, s->n,
                       s->ratio[FIT] / s->n, s->ratio[GATE] / s->n, s->ratio[OTHER] / s->n, s->seconds);
        }
}

static int measure_losses(char **argv, int argc)
{
    struct err e = {0};
    static struct losses l;
    l.q = (struct queue){.k = kernels_cpu(&e), .threads = 2, .device = TENSOR_HOST};
    l.with_signround = argc > 5 && strcmp(argv[5], "signround") == 0;
    must(l.q.k != NULL, &e);
    must(model_open(&l.model, argv[0], &e), &e);
    open_run(&l, 0, argv[1]);
    open_run(&l, 1, argv[2]);
    for (char *name = strtok(argv[3], ","); name && l.n_formats < 16; name = strtok(NULL, ",")) {
        l.formats[l.n_formats] = format_find(name);
        if (!l.formats[l.n_formats++]) {
            fprintf(stderr, "bench_rounding: there is no format '%s'\n", name);
            return 2;
        }
    }
    for (int u = 0; u < l.model->n_units; u++)
        if (is_listed(argv[4], l.model->units[u].layer))
            try_unit(&l, &l.model->units[u]);
    print_losses(&l);
    H5Fclose(l.file[0]);
    H5Fclose(l.file[1]);
    model_close(l.model);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "losses") == 0) {
        if (argc >= 7)
            return measure_losses(argv + 2, argc - 2);
        fprintf(stderr, "usage: bench_rounding losses MODEL RUN:NODE OTHER:NODE FORMAT,... LAYER,... [signround]\n");
        return 2;
    }
    int threads = argc > 1 ? atoi(argv[1]) : 2, rounds = argc > 2 ? atoi(argv[2]) : 5;
    time_all(threads < 1 ? 1 : threads, rounds < 1 ? 1 : rounds > MOST_ROUNDS ? MOST_ROUNDS : rounds);
    return 0;
}
