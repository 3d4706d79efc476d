/* The archive DP against brute force on random small instances, its promises when it leaves points out, and its
 * size. */
#include "tests/check.h"

#include <math.h>
#include <time.h>

#include "nodes/search/archive.h"
#include "nodes/search/stats.h"

#define INSTANCES 400
#define MOST_UNITS 7
#define MOST_FORMATS 5

struct instance {
    int n_units, n_formats;
    uint64_t *bytes;
    double *cost;
};

static struct instance new_instance(int n_units, int n_formats)
{
    struct err e;
    struct instance x = {n_units, n_formats, NULL, NULL};
    size_t cells = (size_t)n_units * (size_t)n_formats;
    assert_ok(mem_new(&x.bytes, cells, &e) && mem_new(&x.cost, cells, &e), e);
    return x;
}

static void free_instance(struct instance *x)
{
    mem_free(x->bytes);
    mem_free(x->cost);
}

static struct archive_problem problem_of(const struct instance *x)
{
    return (struct archive_problem){x->n_units, x->n_formats, x->bytes, x->cost};
}

/* Small numbers, so that equal sums are common; some formats are missing. */
static struct instance random_instance(uint64_t *state)
{
    int n_units = 1 + (int)stats_below(state, MOST_UNITS), n_formats = 1 + (int)stats_below(state, MOST_FORMATS);
    struct instance x = new_instance(n_units, n_formats);
    bool is_coarse = stats_below(state, 2);
    for (int u = 0; u < x.n_units; u++) {
        for (int f = 0; f < x.n_formats; f++) {
            int at = u * x.n_formats + f;
            x.bytes[at] = stats_below(state, is_coarse ? 6 : 1000000);
            x.cost[at] = is_coarse ? (double)stats_below(state, 6) : (double)stats_random(state) * 0x1p-64;
            if (stats_below(state, 5) == 0)
                x.cost[at] = NAN;
        }
        int keep = u * x.n_formats + (int)stats_below(state, (uint64_t)x.n_formats);
        x.cost[keep] = isnan(x.cost[keep]) ? 1.5 : x.cost[keep];
    }
    return x;
}

/* Costs that fall with bytes, as those of formats do. */
static struct instance model_instance(uint64_t *state, int n_units, int n_formats)
{
    struct instance x = new_instance(n_units, n_formats);
    for (int u = 0; u < n_units; u++) {
        uint64_t parameters = 1000 + stats_below(state, 4000000);
        double loss = 0.01 * (double)(1 + stats_below(state, 1000));
        for (int f = 0; f < n_formats; f++) {
            int at = u * n_formats + f;
            x.bytes[at] = parameters * (uint64_t)(9 + 4 * f) / 16 + stats_below(state, 64);
            x.cost[at] = f + 1 == n_formats ? 0 : loss * exp(-1.4 * f) * (0.5 + (double)stats_random(state) * 0x1p-64);
        }
    }
    return x;
}

static double sum_of(const struct instance *x, const uint8_t *assignment, uint64_t *bytes)
{
    double cost = 0;
    *bytes = 0;
    for (int u = 0; u < x->n_units; u++) {
        *bytes += x->bytes[u * x->n_formats + assignment[u]];
        cost += x->cost[u * x->n_formats + assignment[u]];
    }
    return cost;
}

/* The next assignment in counting order; false after the last. */
static bool next_assignment(const struct instance *x, uint8_t *assignment)
{
    for (int u = x->n_units; u-- > 0;) {
        if (++assignment[u] < x->n_formats)
            return true;
        assignment[u] = 0;
    }
    return false;
}

/* Is there an assignment of at most `bytes` and less than `cost`, or of fewer bytes and at most `cost`? */
static bool is_beaten(const struct instance *x, uint64_t bytes, double cost)
{
    uint8_t assignment[MOST_UNITS] = {0};
    do {
        uint64_t b;
        double c = sum_of(x, assignment, &b);
        if (!isnan(c) && b <= bytes && c <= cost && (b < bytes || c < cost))
            return true;
    } while (next_assignment(x, assignment));
    return false;
}

/* Every assignment has a point of at most its bytes and at most `factor` times its cost. */
static void assert_covers(const struct instance *x, const struct archive_point *points, size_t n, double factor)
{
    uint8_t assignment[MOST_UNITS] = {0};
    do {
        uint64_t bytes;
        double cost = sum_of(x, assignment, &bytes);
        bool is_covered = isnan(cost);
        for (size_t i = 0; i < n && !is_covered; i++)
            is_covered = points[i].bytes <= bytes && points[i].cost <= factor * cost;
        if (!is_covered)
            fail_msg("no point covers %llu bytes, cost %.17g (factor %g)", (unsigned long long)bytes, cost, factor);
    } while (next_assignment(x, assignment));
}

/* The points are in order, and the assignments of all have their sums, exactly or to `tolerance`. */
static void assert_achieved(const struct instance *x, const struct archive *a, double tolerance)
{
    struct err e;
    size_t n, *indices;
    uint8_t *assignments;
    const struct archive_point *points = archive_points(a, &n);
    assert_true(n > 0);
    assert_ok(mem_new(&indices, n, &e) && mem_new(&assignments, n * (size_t)x->n_units, &e), e);
    for (size_t i = 0; i < n; i++)
        indices[i] = n - 1 - i;
    assert_ok(archive_assignments(a, indices, n, assignments, &e), e);
    for (size_t i = 0; i < n; i++) {
        const struct archive_point *p = &points[n - 1 - i];
        uint64_t bytes;
        double cost = sum_of(x, assignments + i * (size_t)x->n_units, &bytes);
        assert_int_equal(bytes, p->bytes);
        if (!(fabs(cost - p->cost) <= tolerance * cost))
            fail_msg("point %zu costs %.17g, its assignment %.17g", n - 1 - i, p->cost, cost);
        if (i > 0)
            assert_true(p->bytes < p[1].bytes && p->cost > p[1].cost);
    }
    mem_free(assignments);
    mem_free(indices);
}

/* For every budget, the best point that fits is within gap * (first cost) of the best assignment. */
static void assert_gap(const struct instance *x, const struct archive *a)
{
    size_t n;
    const struct archive_point *points = archive_points(a, &n);
    uint8_t assignment[MOST_UNITS] = {0};
    double allowed = archive_quality(a)->gap * points[0].cost * (1 + 1e-9) + 1e-12;
    do {
        uint64_t bytes;
        double cost = sum_of(x, assignment, &bytes), found = INFINITY;
        for (size_t i = 0; i < n; i++)
            if (points[i].bytes <= bytes)
                found = points[i].cost;
        if (!isnan(cost) && !(found <= cost + allowed))
            fail_msg("within %llu bytes cost %g is possible, %g was found, allowed is %g more",
                     (unsigned long long)bytes, cost, found, allowed);
    } while (next_assignment(x, assignment));
}

static void exact_archives_equal_brute_force(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (int i = 0; i < INSTANCES; i++) {
        struct err e;
        struct archive *a;
        size_t n;
        struct instance x = random_instance(&seed);
        struct archive_problem p = problem_of(&x);
        assert_ok(archive_new(&a, &p, &(struct archive_options){0}, &e), e);
        const struct archive_point *points = archive_points(a, &n);
        assert_true(archive_quality(a)->is_exact);
        assert_true(archive_quality(a)->gap == 0);
        assert_covers(&x, points, n, 1);
        for (size_t j = 0; j < n; j++)
            if (is_beaten(&x, points[j].bytes, points[j].cost))
                fail_msg("instance %d: point %zu is dominated", i, j);
        assert_achieved(&x, a, 0);
        archive_free(a);
        free_instance(&x);
    }
}

static void epsilon_keeps_every_assignment_within_its_factor(void **state)
{
    (void)state;
    static const double epsilons[] = {0.01, 0.1, 0.5, 2};
    uint64_t seed = 2;
    size_t exact = 0, kept = 0, at_epsilon = 0;
    for (int i = 0; i < INSTANCES; i++) {
        struct err e;
        struct archive *a;
        size_t n;
        struct instance x = random_instance(&seed);
        struct archive_problem p = problem_of(&x);
        double epsilon = epsilons[i % 4];
        assert_ok(archive_new(&a, &p, &(struct archive_options){0}, &e), e);
        archive_points(a, &n);
        exact += n;
        archive_free(a);
        assert_ok(archive_new(&a, &p, &(struct archive_options){.epsilon = epsilon}, &e), e);
        const struct archive_point *points = archive_points(a, &n);
        kept += n;
        const struct archive_quality *q = archive_quality(a);
        assert_false(q->is_exact || q->is_capped);
        assert_true(q->epsilon == epsilon && q->gap <= epsilon);
        at_epsilon += q->gap == epsilon;
        assert_covers(&x, points, n, (1 + epsilon) * (1 + 1e-12));
        assert_gap(&x, a);
        assert_achieved(&x, a, 1e-9);
        archive_free(a);
        free_instance(&x);
    }
    assert_true(kept < exact); /* something was left out, so that the test says something */
    assert_true(at_epsilon > 0); /* and sometimes epsilon says more than the linear relaxation */
}

static void a_thinned_archive_is_as_good_as_it_says(void **state)
{
    (void)state;
    uint64_t seed = 3;
    size_t capped = 0;
    for (int i = 0; i < INSTANCES; i++) {
        struct err e;
        struct archive *a;
        struct instance x = i % 2 ? random_instance(&seed) : model_instance(&seed, MOST_UNITS, 4);
        struct archive_problem p = problem_of(&x);
        assert_ok(archive_new(&a, &p, &(struct archive_options){.limit = 4}, &e), e);
        capped += archive_quality(a)->is_capped;
        assert_int_equal(isnan(archive_quality(a)->epsilon), archive_quality(a)->is_capped);
        assert_achieved(&x, a, 1e-9);
        assert_gap(&x, a);
        archive_free(a);
        free_instance(&x);
    }
    assert_true(capped > INSTANCES / 2);
}

static void equal_problems_give_equal_bits(void **state)
{
    (void)state;
    struct err e;
    uint64_t seed = 4;
    struct instance x = model_instance(&seed, 60, 4);
    struct archive_problem p = problem_of(&x);
    struct archive *a, *b;
    size_t n, m, last;
    assert_ok(archive_new(&a, &p, &(struct archive_options){.limit = 3000}, &e), e);
    assert_ok(archive_new(&b, &p, &(struct archive_options){.limit = 3000}, &e), e);
    const struct archive_point *one = archive_points(a, &n), *two = archive_points(b, &m);
    assert_int_equal(n, m);
    assert_memory_equal(one, two, n * sizeof *one);
    uint8_t first[60], second[60];
    last = n / 2;
    assert_ok(archive_assignments(a, &last, 1, first, &e) && archive_assignments(b, &last, 1, second, &e), e);
    assert_memory_equal(first, second, sizeof first);
    archive_free(a);
    archive_free(b);
    free_instance(&x);
}

#define MOST_SECONDS 60 /* for what takes 10 to 20 on two slow cores */

/* The first point is the smallest assignment at its lowest cost, the last one the cheapest at its fewest bytes. */
static void assert_ends(const struct instance *x, const struct archive_point *points, size_t n)
{
    uint64_t least_bytes = 0, last_bytes = 0;
    double first_cost = 0, least_cost = 0;
    for (int u = 0; u < x->n_units; u++) {
        int small = u * x->n_formats, cheap = small;
        for (int at = small; at < (u + 1) * x->n_formats; at++) {
            if (x->bytes[at] < x->bytes[small] || (x->bytes[at] == x->bytes[small] && x->cost[at] < x->cost[small]))
                small = at;
            if (x->cost[at] < x->cost[cheap] || (x->cost[at] == x->cost[cheap] && x->bytes[at] < x->bytes[cheap]))
                cheap = at;
        }
        least_bytes += x->bytes[small];
        first_cost += x->cost[small];
        last_bytes += x->bytes[cheap];
        least_cost += x->cost[cheap];
    }
    assert_int_equal(points[0].bytes, least_bytes);
    assert_true(fabs(points[0].cost - first_cost) <= 1e-9 * first_cost);
    assert_int_equal(points[n - 1].bytes, last_bytes);
    assert_true(fabs(points[n - 1].cost - least_cost) <= 1e-9 * least_cost);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void ten_thousand_units_in_six_formats_are_solved(void **state)
{
    (void)state;
    struct err e;
    uint64_t seed = 5;
    struct instance x = model_instance(&seed, 10000, 6);
    struct archive_problem p = problem_of(&x);
    struct archive *a;
    size_t n, indices[16];
    uint8_t *assignments;
    double start = seconds();
    assert_ok(archive_new(&a, &p, &(struct archive_options){0}, &e), e);
    double solved = seconds();
    const struct archive_point *points = archive_points(a, &n);
    assert_ok(mem_new(&assignments, 16 * 10000, &e), e);
    for (size_t i = 0; i < 16; i++)
        indices[i] = i * (n - 1) / 15;
    assert_ok(archive_assignments(a, indices, 16, assignments, &e), e);
    double ended = seconds();
    printf("10,000 units x 6 formats: %zu points in %.2f s, 16 assignments in %.2f s; thinned to %zu, gap %.3g\n", n,
           solved - start, ended - solved, archive_quality(a)->kept, archive_quality(a)->gap);
    for (size_t i = 0; i < 16; i++) {
        uint64_t bytes;
        double cost = sum_of(&x, assignments + i * 10000, &bytes);
        assert_int_equal(bytes, points[indices[i]].bytes);
        assert_true(fabs(cost - points[indices[i]].cost) <= 1e-9 * cost);
    }
    assert_ends(&x, points, n);
    assert_true(ended - start < MOST_SECONDS);
    assert_true(n > 10000);
    assert_true(archive_quality(a)->gap < 1e-3);
    mem_free(assignments);
    archive_free(a);
    free_instance(&x);
}

static void a_wrong_problem_is_refused(void **state)
{
    (void)state;
    struct err e;
    struct archive *a;
    uint64_t bytes[2] = {1, 2};
    double negative[2] = {1, -1}, missing[2] = {NAN, NAN}, fine[2] = {1, 0};
    assert_err(archive_new(&a, &(struct archive_problem){1, 2, bytes, negative}, &(struct archive_options){0}, &e), e,
               ERR_NUMERIC, "unit 0 costs -1 in format 1");
    assert_err(archive_new(&a, &(struct archive_problem){1, 2, bytes, missing}, &(struct archive_options){0}, &e), e,
               ERR_INPUT, "unit 0 has no format");
    assert_err(archive_new(&a, &(struct archive_problem){0, 2, bytes, fine}, &(struct archive_options){0}, &e), e,
               ERR_INPUT, "there must be a unit");
    assert_err(archive_new(&a, &(struct archive_problem){1, 2, bytes, fine}, &(struct archive_options){.epsilon = -1},
                           &e), e, ERR_INPUT, "epsilon -1");
}

static void running_out_of_memory_is_reported_and_leaks_nothing(void **state)
{
    (void)state;
    struct err e;
    uint64_t seed = 6;
    struct instance x = model_instance(&seed, 20, 3);
    struct archive_problem p = problem_of(&x);
    bool is_done = false;
    for (long n = 1; !is_done; n++) {
        struct archive *a = NULL;
        size_t index = 0;
        uint8_t assignment[20];
        mem_fail_after(n, false);
        is_done = archive_new(&a, &p, &(struct archive_options){.limit = 100}, &e) &&
                  archive_assignments(a, &index, 1, assignment, &e);
        mem_fail_after(0, false);
        if (!is_done)
            assert_int_equal(e.code, ERR_RESOURCE);
        archive_free(a);
        assert_true(n < 10000);
    }
    free_instance(&x);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest large[] = {cmocka_unit_test(ten_thousand_units_in_six_formats_are_solved)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_archives_equal_brute_force),
        cmocka_unit_test(epsilon_keeps_every_assignment_within_its_factor),
        cmocka_unit_test(a_thinned_archive_is_as_good_as_it_says),
        cmocka_unit_test(equal_problems_give_equal_bits),
        cmocka_unit_test(a_wrong_problem_is_refused),
        cmocka_unit_test(running_out_of_memory_is_reported_and_leaks_nothing),
    };
    if (argc > 1 && strcmp(argv[1], "large") == 0)
        return cmocka_run_group_tests(large, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
