/* qubo against brute force, against itself where it may not use its exact solver, and its chain along lambda. */
#include "nodes/search/qubo_private.h"
#include "tests/nodes/search/instances.h"

#define LAMBDAS 3
#define TINY 1e-11 /* of the energies' size: what sums in another order may differ by */

/* ------------------------------------------------------------------------------------------------------ brute force */

struct brute {
    const struct qubo_problem *p;
    const double *lambda;       /* [LAMBDAS] */
    double best[LAMBDAS];
    uint8_t x[16];
    size_t first[17], pairs[256]; /* pairs[first[v]..first[v + 1]] of each unit as the second */
};

static void visit(struct brute *b, int unit, double cost, double bytes)
{
    const struct qubo_problem *p = b->p;
    size_t n = (size_t)p->n_formats;
    if (unit == p->n_units) {
        for (int i = 0; i < LAMBDAS; i++) {
            double energy = cost + b->lambda[i] * bytes;
            b->best[i] = energy < b->best[i] ? energy : b->best[i];
        }
        return;
    }
    for (size_t f = 0; f < n; f++) {
        double own = p->cost[(size_t)unit * n + f];
        if (isnan(own))
            continue;
        for (size_t i = b->first[unit]; i < b->first[unit + 1]; i++) {
            size_t pair = b->pairs[i];
            own += p->pair_cost[(pair * n + b->x[p->pairs[pair][0]]) * n + f];
        }
        b->x[unit] = (uint8_t)f;
        visit(b, unit + 1, cost + own, bytes + (double)p->bytes[(size_t)unit * n + f]);
    }
}

/* The lowest energy of all assignments, per lambda. */
static void brute_force(const struct qubo_problem *p, const double *lambda, double *best)
{
    struct brute b = {.p = p, .lambda = lambda};
    size_t n = 0;
    for (int v = 0; v < p->n_units; v++) {
        b.first[v] = n;
        for (size_t i = 0; i < p->n_pairs; i++)
            if (p->pairs[i][1] == (uint32_t)v)
                b.pairs[n++] = i;
    }
    b.first[p->n_units] = n;
    for (int i = 0; i < LAMBDAS; i++)
        b.best[i] = INFINITY;
    visit(&b, 0, 0, 0);
    memcpy(best, b.best, sizeof b.best);
}

/* The size that errors of rounding are measured by. */
static double size_of(const struct qubo_problem *p, double lambda)
{
    size_t n = (size_t)p->n_formats;
    double sum = 0;
    for (size_t i = 0; i < (size_t)p->n_units * n; i++)
        if (!isnan(p->cost[i]))
            sum += p->cost[i] + lambda * (double)p->bytes[i];
    for (size_t i = 0; i < p->n_pairs * n * n; i++)
        sum += fabs(p->pair_cost[i]);
    return sum;
}

static double energy_of(const struct qubo_problem *p, const struct qubo_point *x)
{
    size_t n = (size_t)p->n_formats;
    double sum = 0;
    for (size_t u = 0; u < (size_t)p->n_units; u++)
        sum += p->cost[u * n + x->assignment[u]] + x->lambda * (double)p->bytes[u * n + x->assignment[u]];
    for (size_t i = 0; i < p->n_pairs; i++)
        sum += p->pair_cost[(i * n + x->assignment[p->pairs[i][0]]) * n + x->assignment[p->pairs[i][1]]];
    return sum;
}

static void solve(const struct qubo_problem *p, double lambda, const struct qubo_options *o, struct qubo_point *out,
                  uint8_t *assignment)
{
    struct err e;
    *out = (struct qubo_point){.assignment = assignment};
    assert_ok(qubo_solve(p, lambda, o, NULL, 0, out, &e), e);
    if (!(fabs(energy_of(p, out) - out->energy) <= TINY * size_of(p, lambda)))
        fail_msg("energy %.17g, of its assignment %.17g", out->energy, energy_of(p, out));
    assert_true(out->bound <= out->energy && out->gap >= 0 && out->lambda == lambda);
    assert_true(!out->is_exact || (out->bound == out->energy && out->gap == 0));
}

static struct instance small_instance(uint64_t i, bool is_large)
{
    struct instance x;
    uint64_t seed = 1000 + i;
    int units = is_large ? 14 : 1 + (int)stats_below(&seed, 10), formats = 1 + (int)stats_below(&seed, 4);
    uint64_t most = (uint64_t)units * (uint64_t)(units - 1) / 2;
    size_t pairs = (size_t)stats_below(&seed, most + 1);
    if (is_large)
        formats = 4, pairs = most / (1 + i % 3);
    instance_init(&x, units, formats, pairs, 0, (enum instance_kind)(i % N_KINDS), seed);
    return x;
}

/* 320 problems at three prices each: both solvers find the optimum, and no bound is above it. */
static void both_solvers_equal_brute_force(void **state)
{
    (void)state;
    size_t with_pairs = 0, missing = 0, searched = 0, closed = 0;
    for (uint64_t i = 0; i < 320; i++) {
        struct instance x = small_instance(i, i == 167);
        double lambda[LAMBDAS] = {0, instance_lambda(&x, 0.2), instance_lambda(&x, 0.8)}, best[LAMBDAS];
        uint8_t assignment[16];
        struct qubo_point exact, found;
        with_pairs += x.p.n_pairs > 0;
        for (int k = 0; k < x.p.n_units * x.p.n_formats; k++)
            missing += isnan(x.cost[k]);
        brute_force(&x.p, lambda, best);
        for (int k = 0; k < LAMBDAS; k++) {
            double tiny = TINY * size_of(&x.p, lambda[k]);
            solve(&x.p, lambda[k], &(struct qubo_options){.cells = (size_t)1 << 32}, &exact, assignment);
            if (!exact.is_exact || !(fabs(exact.energy - best[k]) <= tiny))
                fail_msg("problem %d, lambda %g: exact energy %.17g, brute force %.17g", (int)i, lambda[k],
                         exact.energy, best[k]);
            solve(&x.p, lambda[k], &(struct qubo_options){.seed = i, .cells = 1, .steps = 2000}, &found, assignment);
            searched += !found.is_exact;
            closed += found.is_exact;
            if (!(fabs(found.energy - best[k]) <= tiny) || !(found.bound <= best[k] + (found.is_exact ? tiny : 0)))
                fail_msg("problem %d, lambda %g: found %.17g, bound %.17g, brute force %.17g", (int)i, lambda[k],
                         found.energy, found.bound, best[k]);
        }
        instance_fini(&x);
    }
    if (!(with_pairs > 200 && missing > 100 && searched > 20 && closed > 500)) /* else little was tested */
        fail_msg("%zu with pairs, %zu formats missing, %zu searched, %zu closed", with_pairs, missing, searched,
                 closed);
}

/* The parts by themselves, with nothing struck out: the bound is below the optimum, those of single labels below the
 * optimum with that label, and the search finds it from one of four random starts. */
static void bound_and_search_hold_by_themselves(void **state)
{
    (void)state;
    struct err e;
    for (uint64_t i = 0; i < 120; i++) {
        struct instance x;
        struct qubo_open open;
        struct qubo_model m;
        struct qubo_pool pool;
        struct qubo_dual d;
        uint64_t seed = i;
        instance_init(&x, 7, 4, (size_t)stats_below(&seed, 22), 0, (enum instance_kind)(i % N_KINDS), 900 + i);
        double lambda[LAMBDAS] = {instance_lambda(&x, 0.5), 0, 0}, best[LAMBDAS], bound[64], found = INFINITY;
        brute_force(&x.p, lambda, best);
        assert_ok(open_init(&open, &x.p, lambda[0], &e) && open_model(&open, &m, &e) && pool_init(&pool, &m, 3, &e) &&
                  dual_ascend(&d, &m, 50, &pool, &e), e);
        assert_true(d.bound <= best[0] && d.error < 1e-9 * fabs(best[0]));
        assert_true(pool.n > 0 && pool.energy[0] >= best[0] - d.error);
        dual_label_bounds(&d, bound);
        for (uint32_t u = 0; u < m.n; u++)
            for (uint32_t k = 0; k < model_labels(&m, u); k++) {
                double with[LAMBDAS], kept[4], *cost = x.cost + 4 * m.unit[u];
                memcpy(kept, cost, sizeof kept);
                for (int f = 0; f < 4; f++)
                    cost[f] = f == m.format[m.at[u] + k] ? kept[f] : NAN;
                brute_force(&x.p, lambda, with);
                memcpy(cost, kept, sizeof kept);
                assert_true(bound[m.at[u] + k] <= with[0] + d.error);
            }
        for (int start = 0; start < 4; start++) {
            uint8_t labels[7];
            double energy;
            for (uint32_t u = 0; u < m.n; u++)
                labels[u] = (uint8_t)stats_below(&seed, model_labels(&m, u));
            assert_ok(qubo_local(&m, seed, 200, labels, &energy, &e), e);
            assert_true(energy == model_energy(&m, labels));
            found = fmin(found, energy);
        }
        assert_true(fabs(found - best[0]) <= TINY * size_of(&x.p, lambda[0]));
        dual_fini(&d);
        pool_fini(&pool);
        arena_free(&m.arena);
        open_fini(&open);
        instance_fini(&x);
    }
}

/* One pass of the ascent, and next to no search: still a bound, and still an assignment. */
static void a_bound_holds_however_short_the_ascent(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 60; i++) {
        struct instance x;
        instance_init(&x, 9, 4, 30, 0, (enum instance_kind)(i % N_KINDS), 77 + i);
        double lambda[LAMBDAS] = {0, instance_lambda(&x, 0.3), instance_lambda(&x, 0.7)}, best[LAMBDAS];
        brute_force(&x.p, lambda, best);
        for (int k = 0; k < LAMBDAS; k++)
            for (int rounds = 1; rounds < 4; rounds++) {
                uint8_t assignment[16];
                struct qubo_point found;
                struct qubo_options o = {.seed = i, .cells = 1, .rounds = rounds, .starts = 1, .steps = 1};
                solve(&x.p, lambda[k], &o, &found, assignment);
                assert_true(found.bound <= best[k] + (found.is_exact ? TINY * size_of(&x.p, lambda[k]) : 0));
                assert_true(found.energy >= best[k] - TINY * size_of(&x.p, lambda[k]));
            }
        instance_fini(&x);
    }
}

/* -------------------------------------------------------------------------------------------------- larger problems */

/* A chain of 600 units against the Viterbi recursion. */
static void a_chain_is_solved_exactly(void **state)
{
    (void)state;
    struct instance x;
    struct qubo_point exact, found;
    uint8_t assignment[600];
    instance_init(&x, 600, 5, 0, 0, FRUSTRATED, 3);
    struct err e;
    uint64_t seed = 5;
    mem_free(x.pairs);
    mem_free(x.pair_cost);
    assert_ok(mem_new(&x.pairs, 599, &e) && mem_new(&x.pair_cost, 599 * 25, &e), e);
    x.p.n_pairs = 599;
    x.p.pairs = x.pairs;
    x.p.pair_cost = x.pair_cost;
    double lambda = instance_lambda(&x, 0.5), best[5] = {0};
    for (uint32_t i = 0; i < 599; i++) {
        x.pairs[i][0] = i, x.pairs[i][1] = i + 1;
        for (uint32_t k = 0; k < 25; k++) {
            double product = x.cost[i * 5 + k / 5] * x.cost[(i + 1) * 5 + k % 5];
            x.pair_cost[i * 25 + k] = isnan(product) ? 0 : uniform(&seed, -1, 1) * sqrt(product);
        }
    }
    for (size_t u = 0; u < 600; u++) {
        double next[5];
        for (size_t f = 0; f < 5; f++) {
            double least = u == 0 ? 0 : INFINITY;
            for (size_t g = 0; u > 0 && g < 5; g++)
                if (!isnan(x.cost[(u - 1) * 5 + g]))
                    least = fmin(least, best[g] + x.pair_cost[(u - 1) * 25 + g * 5 + f]);
            next[f] = isnan(x.cost[u * 5 + f]) ? INFINITY :
                      least + x.cost[u * 5 + f] + lambda * (double)x.bytes[u * 5 + f];
        }
        memcpy(best, next, sizeof best);
    }
    double optimum = INFINITY, tiny = TINY * size_of(&x.p, lambda);
    for (size_t f = 0; f < 5; f++)
        optimum = fmin(optimum, best[f]);
    solve(&x.p, lambda, &(struct qubo_options){0}, &exact, assignment);
    assert_true(exact.is_exact && fabs(exact.energy - optimum) <= tiny);
    solve(&x.p, lambda, &(struct qubo_options){.cells = 1}, &found, assignment); /* the dual is tight on trees */
    assert_true(found.bound <= optimum && found.energy >= optimum - tiny && found.gap < 1e-3);
    instance_fini(&x);
}

/* Where both fit, the search comes within 0.3 % of the optimum, and its bound stays below. */
static void the_search_is_close_to_the_exact_solver(void **state)
{
    (void)state;
    uint8_t assignment[120];
    struct qubo_point exact, found;
    for (uint64_t i = 0; i < 30; i++) {
        struct instance x;
        instance_init(&x, 60 + 2 * (int)i, 4, 200, 5, (enum instance_kind)(i % N_KINDS), i);
        double lambda = instance_lambda(&x, 0.1 + 0.025 * (double)i);
        solve(&x.p, lambda, &(struct qubo_options){0}, &exact, assignment);
        assert_true(exact.is_exact);
        solve(&x.p, lambda, &(struct qubo_options){.cells = 1}, &found, assignment);
        if (!(found.bound <= exact.energy) || !(found.energy <= exact.energy + 3e-3 * fabs(exact.energy)) ||
            !(found.energy >= exact.energy - TINY * size_of(&x.p, lambda)))
            fail_msg("problem %d: optimum %.17g, found %.17g, bound %.17g", (int)i, exact.energy, found.energy,
                     found.bound);
        instance_fini(&x);
    }
}

static void threads_change_nothing(void **state)
{
    (void)state;
    struct instance x;
    instance_init(&x, 150, 5, 900, 0, FRUSTRATED, 9);
    double lambda = instance_lambda(&x, 0.6);
    struct qubo_point first, point;
    uint8_t one[150], other[150];
    solve(&x.p, lambda, &(struct qubo_options){.seed = 3, .cells = 1000, .threads = 1}, &first, one);
    assert_false(first.is_exact);
    for (int threads = 2; threads <= 5; threads++) {
        solve(&x.p, lambda, &(struct qubo_options){.seed = 3, .cells = 1000, .threads = threads}, &point, other);
        assert_memory_equal(one, other, sizeof one);
        assert_true(point.energy == first.energy && point.bound == first.bound && point.gap == first.gap);
    }
    instance_fini(&x);
}

/* -------------------------------------------------------------------------------------------------------- the chain */

/* All assignments of a small problem, and of those the vertices of the lower hull. */
static size_t hull_by_brute_force(const struct qubo_problem *p, double (*out)[2], size_t most)
{
    size_t total = 1, n = 0;
    for (int u = 0; u < p->n_units; u++)
        total *= (size_t)p->n_formats;
    double (*all)[2] = calloc(total, sizeof *all);
    assert_non_null(all);
    for (size_t i = 0; i < total; i++) {
        uint8_t x[16];
        struct qubo_point point = {.assignment = x};
        uint64_t bytes = 0;
        size_t rest = i;
        for (int u = 0; u < p->n_units; u++, rest /= (size_t)p->n_formats) {
            x[u] = (uint8_t)(rest % (size_t)p->n_formats);
            bytes += p->bytes[(size_t)(u * p->n_formats) + x[u]];
        }
        all[n][0] = (double)bytes;
        all[n][1] = energy_of(p, &point);
        n += !isnan(all[n][1]);
    }
    size_t found = 0, at = 0;
    for (size_t i = 1; i < n; i++)
        if (all[i][0] < all[at][0] || (all[i][0] == all[at][0] && all[i][1] < all[at][1]))
            at = i;
    for (bool more = true; more && found < most;) {
        out[found][0] = all[at][0];
        out[found++][1] = all[at][1];
        double steepest = 0;
        more = false;
        for (size_t i = 0; i < n; i++) {
            double slope = all[i][0] > out[found - 1][0] ?
                           (out[found - 1][1] - all[i][1]) / (all[i][0] - out[found - 1][0]) : 0;
            if (slope > steepest * (1 + 1e-12) || (more && slope > steepest * (1 - 1e-12) && all[i][0] > all[at][0])) {
                steepest = fmax(slope, steepest);
                at = i;
                more = true;
            }
        }
    }
    free(all);
    return found;
}

static void a_chain_has_all_vertices_of_the_lower_hull(void **state)
{
    (void)state;
    struct err e;
    for (uint64_t i = 0; i < 40; i++) {
        struct instance x;
        double hull[128][2];
        instance_init(&x, 4 + (int)(i % 4), 4, 8, 0, i % 2 ? SIGNED : FRUSTRATED, 300 + i);
        size_t n, expected = hull_by_brute_force(&x.p, hull, 128);
        struct qubo_point *points;
        struct qubo_sweep_options o = {.count = 1000, .solve = {.cells = i % 4 ? 0 : 1}};
        assert_ok(qubo_sweep(&x.p, &o, &points, &n, &e), e);
        assert_int_equal(n, expected);
        for (size_t k = 0; k < n; k++) {
            assert_true((double)points[k].bytes == hull[k][0]);
            assert_true(fabs(points[k].cost - hull[k][1]) <= TINY * size_of(&x.p, 0));
            assert_true(o.solve.cells == 1 || points[k].is_exact);
        }
        mem_free(points);
        instance_fini(&x);
    }
}

/* Exact solutions: a lower price never has fewer bytes. Points are at their lambdas, and the widest gap is halved. */
static void bytes_rise_as_their_price_falls(void **state)
{
    (void)state;
    struct err e;
    for (uint64_t i = 0; i < 4; i++) {
        struct instance x;
        struct qubo_point *points, *again;
        size_t n, m;
        instance_init(&x, 80, 5, 150, 4, (enum instance_kind)(i % 2), 40 + i);
        struct qubo_sweep_options o = {.count = 24, .solve = {.threads = 1}};
        assert_ok(qubo_sweep(&x.p, &o, &points, &n, &e), e);
        assert_int_equal(n, 24);
        for (size_t k = 0; k < n; k++) {
            assert_true(points[k].is_exact);
            double energy = energy_of(&x.p, &points[k]);
            assert_true(fabs(energy - points[k].energy) <= TINY * size_of(&x.p, points[k].lambda));
            assert_true(k == 0 || (points[k].bytes > points[k - 1].bytes && points[k].cost < points[k - 1].cost &&
                                   points[k].lambda < points[k - 1].lambda));
            for (size_t other = 0; other < n; other++) /* none is better where it was found to be the best */
                assert_true(points[other].cost + points[k].lambda * (double)points[other].bytes >=
                            points[k].energy * (1 - 1e-9));
        }
        assert_true(points[n - 1].lambda == 0);
        o.solve.threads = 3;
        assert_ok(qubo_sweep(&x.p, &o, &again, &m, &e), e);
        assert_int_equal(n, m);
        for (size_t k = 0; k < n; k++)
            assert_memory_equal(points[k].assignment, again[k].assignment, 80);
        mem_free(again);
        mem_free(points);
        instance_fini(&x);
    }
}

static void a_range_and_a_resolution_say_where_to_look(void **state)
{
    (void)state;
    struct err e;
    struct instance x;
    struct qubo_point *all, *some, *coarse;
    size_t n_all, n_some, n_coarse, inside = 0;
    instance_init(&x, 40, 4, 60, 4, SIGNED, 8);
    struct qubo_sweep_options o = {.count = 100000};
    assert_ok(qubo_sweep(&x.p, &o, &all, &n_all, &e), e);
    uint64_t width = all[n_all - 1].bytes - all[0].bytes;
    o.low = all[0].bytes + width / 4;
    o.high = all[0].bytes + width / 2;
    assert_ok(qubo_sweep(&x.p, &o, &some, &n_some, &e), e);
    for (size_t i = 0, k = 0; i < n_all; i++) {
        if (all[i].bytes < o.low || all[i].bytes > o.high)
            continue;
        inside++;
        while (k < n_some && some[k].bytes < all[i].bytes)
            k++;
        assert_true(k < n_some && some[k].bytes == all[i].bytes);
    }
    assert_true(inside > 3 && n_some < n_all && n_some >= inside);
    o = (struct qubo_sweep_options){.count = 100000, .resolution = width / 8};
    assert_ok(qubo_sweep(&x.p, &o, &coarse, &n_coarse, &e), e);
    assert_true(n_coarse > 4 && n_coarse < 40 && n_coarse < n_all);
    mem_free(coarse);
    mem_free(some);
    mem_free(all);
    instance_fini(&x);
}

static bool at_once(void *context)
{
    (void)context;
    return true;
}

static void a_sweep_stops_when_asked_to(void **state)
{
    (void)state;
    struct err e;
    struct instance x;
    struct qubo_point *points;
    size_t n;
    instance_init(&x, 20, 4, 20, 0, SIGNED, 8);
    struct qubo_sweep_options o = {.count = 10, .stopping = at_once};
    assert_err(qubo_sweep(&x.p, &o, &points, &n, &e), e, ERR_STOPPED, "interrupted");
    instance_fini(&x);
}

/* One choice only, and formats of equal size or cost, leave a single point, or those that differ. */
static void chains_may_be_short(void **state)
{
    (void)state;
    struct err e;
    static const uint64_t bytes[] = {5, 5, 9, 9};
    static const double cost[] = {2, 1, NAN, 3}, equal[] = {1, 1, 2, 2};
    struct qubo_point *points;
    size_t n;
    struct qubo_problem p = {.n_units = 2, .n_formats = 2, .bytes = bytes, .cost = cost};
    struct qubo_sweep_options o = {.count = 9};
    assert_ok(qubo_sweep(&p, &o, &points, &n, &e), e);
    assert_true(n == 1 && points[0].bytes == 14 && points[0].cost == 4 && points[0].is_exact);
    assert_true(points[0].assignment[0] == 1 && points[0].assignment[1] == 1);
    mem_free(points);
    p.cost = equal;
    assert_ok(qubo_sweep(&p, &o, &points, &n, &e), e);
    assert_true(n == 1 && points[0].cost == 3);
    mem_free(points);
}

static void no_allocation_is_taken_for_granted(void **state)
{
    (void)state;
    struct instance x;
    instance_init(&x, 12, 4, 40, 0, FRUSTRATED, 21);
    for (int cells = 0; cells < 2; cells++) {
        long failed = 0;
        for (bool done = false; !done; failed++) {
            struct err e = {0};
            struct qubo_point *points = NULL;
            size_t n;
            struct qubo_sweep_options o = {.count = 3, .solve = {.cells = (size_t)cells, .starts = 1, .rounds = 9,
                                                                 .steps = 50}};
            mem_fail_after(failed + 1, false);
            done = qubo_sweep(&x.p, &o, &points, &n, &e);
            mem_fail_after(0, false);
            assert_true(done || e.code == ERR_RESOURCE);
            mem_free(points);
        }
        assert_true(failed > 20);
    }
    instance_fini(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_solvers_equal_brute_force),
        cmocka_unit_test(bound_and_search_hold_by_themselves),
        cmocka_unit_test(a_bound_holds_however_short_the_ascent),
        cmocka_unit_test(a_chain_is_solved_exactly),
        cmocka_unit_test(the_search_is_close_to_the_exact_solver),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(a_chain_has_all_vertices_of_the_lower_hull),
        cmocka_unit_test(bytes_rise_as_their_price_falls),
        cmocka_unit_test(a_range_and_a_resolution_say_where_to_look),
        cmocka_unit_test(a_sweep_stops_when_asked_to),
        cmocka_unit_test(chains_may_be_short),
        cmocka_unit_test(no_allocation_is_taken_for_granted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
