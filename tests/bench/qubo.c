/* qubo: 2,000 units in 6 formats with 20,000 pairs, one lambda at a time.
 * usage: bench_qubo [THREADS]          time and gap, for kinds of random problems and several lambdas
 *        bench_qubo solve FILE LAMBDA  solve the problem of a text file (tools/qubo_oracle.py writes it):
 *                                      units formats pairs; bytes and costs per unit and format ("nan": not available);
 *                                      per pair its units and its costs */
#include <stdio.h>
#include <time.h>

#include "tests/nodes/search/instances.h"

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void bench_kind(enum instance_kind kind, int threads)
{
    static const char *const names[] = {"signed", "frustrated", "flat", "weak", "measured", "gram"};
    static const double shares[] = {0.1, 0.3, 0.5, 0.7, 0.9};
    struct instance x;
    struct err e;
    instance_init(&x, 2000, 6, 20000, 0, kind, 1 + kind);
    uint8_t *assignment;
    assert_ok(mem_new(&assignment, 2000, &e), e);
    for (size_t i = 0; i < COUNT(shares); i++) {
        struct qubo_options o = {.seed = 1, .threads = threads};
        struct qubo_point point = {.assignment = assignment};
        double begin = seconds(CLOCK_MONOTONIC), busy = seconds(CLOCK_PROCESS_CPUTIME_ID), parameters = 0;
        assert_ok(qubo_solve(&x.p, instance_lambda(&x, shares[i]), &o, NULL, 0, &point, &e), e);
        double end = seconds(CLOCK_MONOTONIC), idle = seconds(CLOCK_PROCESS_CPUTIME_ID);
        for (size_t u = 0; u < 2000; u++)
            parameters += (double)x.bytes[u * 6 + 5] / 2;
        printf("%-10s  lambda %.3e  %.2f bpp  energy %.6e (cost %.3e)  bound %.6e  gap %.4g %%  %s %.2f s (CPU %.2f)\n",
               names[kind], point.lambda, 8 * (double)point.bytes / parameters, point.energy, point.cost, point.bound,
               100 * point.gap, point.is_exact ? "exact" : "     ", end - begin, idle - busy);
    }
    mem_free(assignment);
    instance_fini(&x);
}

static void read_instance(struct instance *x, const char *path)
{
    struct err e;
    FILE *f = fopen(path, "r");
    size_t n;
    assert_non_null(f);
    *x = (struct instance){0};
    assert_int_equal(fscanf(f, "%d %d %zu", &x->p.n_units, &x->p.n_formats, &x->p.n_pairs), 3);
    n = (size_t)x->p.n_formats;
    assert_ok(mem_new(&x->bytes, (size_t)x->p.n_units * n, &e) && mem_new(&x->cost, (size_t)x->p.n_units * n, &e) &&
              mem_new(&x->pairs, x->p.n_pairs, &e) && mem_new(&x->pair_cost, x->p.n_pairs * n * n, &e), e);
    for (size_t i = 0; i < (size_t)x->p.n_units * n; i++)
        assert_int_equal(fscanf(f, "%lu %lf", &x->bytes[i], &x->cost[i]), 2);
    for (size_t i = 0; i < x->p.n_pairs; i++) {
        assert_int_equal(fscanf(f, "%u %u", &x->pairs[i][0], &x->pairs[i][1]), 2);
        for (size_t k = 0; k < n * n; k++)
            assert_int_equal(fscanf(f, "%lf", &x->pair_cost[i * n * n + k]), 1);
    }
    fclose(f);
    x->p.bytes = x->bytes;
    x->p.cost = x->cost;
    x->p.pairs = x->pairs;
    x->p.pair_cost = x->pair_cost;
}

static void solve_file(const char *path, double lambda)
{
    struct instance x;
    struct err e;
    read_instance(&x, path);
    uint8_t *assignment;
    assert_ok(mem_new(&assignment, (size_t)x.p.n_units, &e), e);
    static const size_t cells[] = {0, 1}; /* the exact solver where it fits, and never */
    for (size_t i = 0; i < COUNT(cells); i++) {
        struct qubo_options o = {.seed = 1, .cells = cells[i]};
        struct qubo_point point = {.assignment = assignment};
        double begin = seconds(CLOCK_MONOTONIC);
        assert_ok(qubo_solve(&x.p, lambda, &o, NULL, 0, &point, &e), e);
        printf("%.17g %.17g %d %.6f", point.energy, point.bound, point.is_exact, seconds(CLOCK_MONOTONIC) - begin);
        for (int u = 0; u < x.p.n_units; u++)
            printf(" %d", assignment[u]);
        printf("\n");
    }
    mem_free(assignment);
    instance_fini(&x);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "solve") == 0) {
        solve_file(argv[2], strtod(argv[3], NULL));
        return 0;
    }
    for (int kind = 0; kind <= GRAM; kind++)
        bench_kind((enum instance_kind)kind, argc > 1 ? atoi(argv[1]) : 2);
    return 0;
}
