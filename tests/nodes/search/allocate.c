/* Baselines within byte budgets, against trying everything and against assignments written down by hand; and the node
 * type on made-up results. */
#include "tests/nodes/search/world.h"

#include "nodes/search/allocate.h"
#include "nodes/search/l1.h"

#define SMALL 6 /* units of which everything can be tried */

static double sum_of(const struct menu *m, const double *cost, const uint8_t *a)
{
    double sum = 0;
    for (int u = 0; u < m->n_units; u++)
        sum += cost[u * m->n_formats + a[u]];
    return sum;
}

/* The next assignment of available formats in counting order; false after the last. */
static bool next(const struct menu *m, uint8_t *a)
{
    for (int u = 0; u < m->n_units; u++) {
        while (++a[u] < m->n_formats)
            if (m->available[u * m->n_formats + a[u]])
                return true;
        a[u] = 0;
        while (!m->available[u * m->n_formats + a[u]])
            a[u]++;
    }
    return false;
}

static void first(const struct menu *m, uint8_t *a)
{
    for (int u = 0; u < m->n_units; u++)
        for (a[u] = 0; !m->available[u * m->n_formats + a[u]]; a[u]++)
            continue;
}

/* Least sum within `most` bytes by trying everything; INFINITY if nothing fits. */
static double least_sum(const struct menu *m, const double *cost, uint64_t most)
{
    uint8_t a[SMALL];
    double least = INFINITY;
    first(m, a);
    do
        if (menu_bytes(m, a) <= most)
            least = fmin(least, sum_of(m, cost, a));
    while (next(m, a));
    return least;
}

static void a_budget_is_the_most_bytes_of_at_most_that_bpp(void **state)
{
    (void)state;
    struct menu m = {.n_units = 1};
    uint64_t seed = 3;
    for (int i = 0; i < 20000; i++) {
        m.total_parameters = 1 + stats_random(&seed) % (i % 2 ? 1000 : 40000000000u);
        double bpp = 0.01 + 16 * (double)stats_random(&seed) * 0x1p-64;
        uint64_t most = allocate_budget(&m, bpp);
        assert_true(menu_bpp(&m, most) <= bpp && menu_bpp(&m, most + 1) > bpp);
        /* What a candidate's column says is a budget that holds the candidate, to the byte. */
        uint64_t bytes = 1 + stats_random(&seed) % (2 * m.total_parameters);
        assert_int_equal(allocate_budget(&m, menu_bpp(&m, bytes)), bytes);
    }
}

static void knapsack_equals_trying_everything(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed < 40; seed++) {
        struct err e;
        struct made made;
        uint8_t a[5][SMALL];
        struct allocation list[5];
        uint64_t random = seed, least, most;
        double gap = NAN;
        made_init(&made, SMALL, 3, seed);
        const struct menu *m = &made.menu;
        for (int i = 0; i < SMALL * MADE_FORMATS; i++) /* costs that do not know which formats are larger */
            if (seed % 2 && m->available[i])
                made.cost[i] = (double)stats_below(&random, 50);
        first(m, a[0]);
        least = menu_bytes(m, a[0]); /* "tiny" has 4 bytes more than "small" */
        for (int u = 0; u < SMALL; u++)
            least -= a[0][u] == 0 ? 4 : 0;
        menu_uniform(m, 3, a[0]);
        most = menu_bytes(m, a[0]);
        for (int i = 0; i < 5; i++)
            list[i] = (struct allocation){.most_bytes = i == 0 ? least : i == 1 ? most + 1000 :
                                          least + stats_below(&random, most - least), .assignment = a[i]};
        assert_ok(allocate_knapsack(m, made.cost, 0, list, 5, &gap, &e), e);
        assert_true(gap == 0);
        for (int i = 0; i < 5; i++) {
            double expected = least_sum(m, made.cost, list[i].most_bytes);
            assert_true(menu_bytes(m, a[i]) <= list[i].most_bytes);
            assert_true(fabs(list[i].cost - expected) <= 1e-12 * expected);
            assert_true(fabs(sum_of(m, made.cost, a[i]) - expected) <= 1e-12 * expected);
        }
        list[0].most_bytes = least - 1;
        char text[100];
        snprintf(text, sizeof text, "any choice of formats takes at least %llu bytes", (unsigned long long)least);
        assert_err(allocate_knapsack(m, made.cost, 0, list, 5, &gap, &e), e, ERR_INPUT, text);
        made_fini(&made);
    }
}

static void uniform_is_the_least_cost_that_fits(void **state)
{
    (void)state;
    struct err e;
    const struct menu *m = &world.made.menu;
    uint64_t bytes[MADE_FORMATS];
    uint8_t a[UNITS], expected[UNITS];
    struct allocation one = {.assignment = a};
    for (int f = 0; f < MADE_FORMATS; f++) {
        menu_uniform(m, f, a);
        bytes[f] = menu_bytes(m, a);
    }
    assert_true(bytes[1] < bytes[0] && bytes[0] < bytes[2] && bytes[2] < bytes[3]);
    static const struct {
        double cost[MADE_FORMATS];
        int within, extra; /* the bytes of that format, and so many more */
        int expected;
    } cases[] = {
        {{4, 3, 2, 1}, 3, 0, 3},  {{4, 3, 2, 1}, 3, -1, 2}, {{4, 3, 2, 1}, 2, 0, 2}, {{4, 3, 2, 1}, 1, 0, 1},
        {{3, 4, 9, 9}, 2, 5, 0},  {{3, 3, 3, 3}, 3, 0, 1},  {{1, 2, 3, 4}, 3, 0, 0}, {{3, 1, 2, 9}, 3, 0, 1},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        one.most_bytes = bytes[cases[i].within] + (uint64_t)(int64_t)cases[i].extra;
        assert_ok(allocate_uniform(m, cases[i].cost, &one, 1, &e), e);
        menu_uniform(m, cases[i].expected, expected);
        assert_memory_equal(a, expected, UNITS);
        assert_true(one.cost == cases[i].cost[cases[i].expected]);
    }
    one.most_bytes = bytes[1] - 1;
    assert_err(allocate_uniform(m, cases[0].cost, &one, 1, &e), e, ERR_INPUT,
               "one format for all units takes at least");
}

/* Layers 0 to 2 of four units each, where the last has two. From the outside in: 0, 2, 1. */
static void ends_go_from_the_outside_in(void **state)
{
    (void)state;
    struct err e;
    struct made made;
    made_init(&made, 10, 3, 2);
    struct menu *m = &made.menu;
    uint8_t a[10], low[10], high[10];
    static const int order[] = {0, 1, 2, 3, 8, 9, 4, 5, 6, 7};
    struct allocation one = {.assignment = a};
    /* Only small and full are worth having: every other one costs more than both. */
    for (int u = 0; u < 10; u++) {
        made.cost[u * MADE_FORMATS] = m->available[u * MADE_FORMATS] ? 100 : NAN;
        made.cost[u * MADE_FORMATS + 2] = 50;
        made.cost[u * MADE_FORMATS + 1] = 1;
        made.cost[u * MADE_FORMATS + 3] = 0;
    }
    menu_uniform(m, 1, low);
    menu_uniform(m, 3, high);
    uint64_t bytes = menu_bytes(m, low);
    for (int n = 0; n <= 10; n++) {
        uint64_t step = n < 10 ? m->bytes[order[n] * MADE_FORMATS + 3] - m->bytes[order[n] * MADE_FORMATS + 1] : 1000;
        for (int more = 0; more < 2; more++) { /* just enough for n units, and just not for another */
            one.most_bytes = bytes + (more ? step - 1 : 0);
            assert_ok(allocate_ends(m, made.cost, &one, 1, &e), e);
            for (int i = 0; i < 10; i++)
                assert_int_equal(a[order[i]], i < n ? 3 : 1);
            assert_true(one.cost == 10 - n);
        }
        bytes += n < 10 ? step : 0;
    }
    one.most_bytes = menu_bytes(m, low) - 1;
    assert_err(allocate_ends(m, made.cost, &one, 1, &e), e, ERR_INPUT, "takes at least");
    made_fini(&made);
}

/* Whatever the costs, no pair of formats would have been better, and the rule is kept. */
static void ends_take_the_best_pair_of_formats(void **state)
{
    (void)state;
    struct err e;
    const struct menu *m = &world.made.menu;
    uint8_t a[UNITS], low[UNITS], high[UNITS], tried[UNITS];
    int order[UNITS], n = 0;
    for (int k = 0; k < UNITS / 4; k++) /* six layers of four units */
        for (int i = 0; i < 4; i++)
            order[n++] = 4 * (k % 2 ? UNITS / 4 - 1 - k / 2 : k / 2) + i;
    for (double bpp = 4.6; bpp < 17; bpp += 0.37) {
        struct allocation one = {.most_bytes = allocate_budget(m, bpp), .assignment = a};
        double least = INFINITY;
        assert_ok(allocate_ends(m, world.made.cost, &one, 1, &e), e);
        for (int f = 0; f < MADE_FORMATS; f++)
            for (int g = 0; g < MADE_FORMATS; g++) {
                menu_uniform(m, f, low);
                menu_uniform(m, g, high);
                if (menu_bytes(m, low) > menu_bytes(m, high) || menu_bytes(m, low) > one.most_bytes)
                    continue;
                for (int k = UNITS; k >= 0; k--) { /* the longest prefix that fits */
                    memcpy(tried, low, UNITS);
                    for (int i = 0; i < k; i++)
                        tried[order[i]] = high[order[i]];
                    if (menu_bytes(m, tried) <= one.most_bytes)
                        break;
                }
                least = fmin(least, sum_of(m, world.made.cost, tried));
            }
        assert_true(menu_bytes(m, a) <= one.most_bytes && one.cost == least && sum_of(m, world.made.cost, a) == least);
    }
}

static void trace_costs_are_curvature_times_error(void **state)
{
    (void)state;
    struct err e;
    const struct menu *m = &world.made.menu;
    double trace[UNITS], whole[2 * UNITS], square[UNITS * MADE_FORMATS], cost[UNITS * MADE_FORMATS];
    struct object *q = made_quantize(&world.made, world.store, "weights", false);
    for (int u = 0; u < UNITS; u++) {
        trace[u] = 3 + sin(u);
        whole[2 * u] = 7 + u;
        whole[2 * u + 1] = 100 - u;
    }
    assert_ok(l1_weight_squares(m, q, whole, 2 * UNITS, square, &e), e);
    allocate_trace_costs(m, trace, square, cost);
    for (int i = 0; i < UNITS * MADE_FORMATS; i++) {
        int u = i / MADE_FORMATS;
        double loss = world.made.cost[i]; /* of the two matrices, half of it and seven sixths: objects.h */
        double expected = loss * 0.5 * whole[2 * u] + loss * 7 / 6 * whole[2 * u + 1];
        assert_int_equal(isnan(square[i]), !m->available[i]);
        assert_int_equal(isnan(cost[i]), !m->available[i]);
        if (!m->available[i])
            continue;
        assert_true(fabs(square[i] - expected) <= 1e-12 * expected);
        expected *= trace[u] / (double)m->parameters[u];
        assert_true(fabs(cost[i] - expected) <= 1e-12 * expected);
    }
    assert_err(l1_weight_squares(m, q, whole, UNITS, square, &e), e, ERR_INPUT, "is of 48 matrices, the model has 24");
    object_close(q);
}

/* ------------------------------------------------------------------------------------------------------- the node */

/* The table that a node proposes, and what it says of budgets. */
struct answer {
    struct candidates table;
    uint64_t n, *bytes;
    uint32_t *candidate;
    double *bpp, *cost;
};

static void read_answer(struct object *o, struct answer *a)
{
    struct err e;
    double gap = -1;
    assert_ok(candidates_read(&a->table, o, &e), e);
    a->bytes = load(o, "budget/bytes", DTYPE_U64, &a->n);
    a->candidate = load(o, "budget/candidate", DTYPE_U32, NULL);
    a->bpp = load(o, "budget/bpp", DTYPE_F64, NULL);
    a->cost = load(o, "budget/cost", DTYPE_F64, NULL);
    assert_true(object_double(o, "gap", &gap) && gap == 0);
    for (uint64_t i = 0; i < a->n; i++) {
        const struct candidate *c = &a->table.list[a->candidate[i]];
        assert_true(a->candidate[i] < a->table.n && c->bytes <= a->bytes[i] && c->bpp <= a->bpp[i]);
        assert_int_equal(a->bytes[i], allocate_budget(&world.made.menu, a->bpp[i]));
        assert_int_equal(candidates_find(&a->table, c->assignment), a->candidate[i]);
    }
}

static void free_answer(struct answer *a)
{
    candidates_fini(&a->table);
    mem_free(a->bytes);
    mem_free(a->candidate);
    mem_free(a->bpp);
    mem_free(a->cost);
}

/* The knapsack over these costs, for every budget of the answer. */
static void assert_optimal(const struct answer *a, const double *cost, const char *origin)
{
    struct err e;
    uint8_t assignment[UNITS];
    double gap;
    for (uint64_t i = 0; i < a->n; i++) {
        struct allocation one = {.most_bytes = a->bytes[i], .assignment = assignment};
        assert_ok(allocate_knapsack(&world.made.menu, cost, 0, &one, 1, &gap, &e), e);
        assert_true(fabs(one.cost - a->cost[i]) <= 1e-9 * one.cost);
        const struct candidate *c = &a->table.list[a->candidate[i]];
        assert_true(fabs(sum_of(&world.made.menu, cost, c->assignment) - one.cost) <= 1e-9 * one.cost);
        assert_string_equal(c->origin, origin);
    }
}

/* What a `probe` would have made, as far as it is read: squares and traces of three windows; costs. */
static struct object *probe_object(const double *square, const double *cost, bool has_trace, const char *seed)
{
    struct err e;
    struct writer *w;
    struct key k = made_key(seed);
    const struct menu *m = &world.made.menu;
    static const uint32_t tokens[] = {10, 30, 60};
    static const double shares[] = {0.5, 0.2, 0.3};
    double values[UNITS * MADE_FORMATS * 3];
    for (int i = 0; i < UNITS * MADE_FORMATS * 3; i++)
        values[i] = m->available[i / 3] ? square[i / 3] * shares[i % 3] * 100 : NAN;
    assert_ok(writer_new(&w, world.store, &k, "probe/1", &e) &&
              writer_add_strings(w, "units/name", (const char *const *)m->unit_names, UNITS, "unit", "", &e) &&
              writer_add_strings(w, "formats/name", (const char *const *)m->format_names, MADE_FORMATS, "format", "",
                                 &e) &&
              writer_add(w, &(struct dataset){.name = "square", .dtype = DTYPE_F64, .rank = 3,
                                              .shape = {UNITS, MADE_FORMATS, 3}, .unit = "nat", .axes = "",
                                              .description = ""}, values, &e), e);
    made_add(w, "windows/tokens", DTYPE_U32, 3, 0, tokens);
    made_add(w, "cost", DTYPE_F64, UNITS, MADE_FORMATS, cost);
    if (has_trace)
        made_add(w, "trace", DTYPE_F64, UNITS, 3, values);
    return made_commit(world.store, w, seed);
}

static void each_method_solves_its_own_costs(void **state)
{
    (void)state;
    const struct menu *m = &world.made.menu;
    double square[UNITS * MADE_FORMATS], cost[UNITS * MADE_FORMATS];
    struct answer a;
    for (int i = 0; i < UNITS * MADE_FORMATS; i++) {
        square[i] = m->available[i] ? world.made.truth[i] : NAN;
        cost[i] = m->available[i] ? world.made.truth[i] * (1 + 0.9 * sin(i)) : NAN;
    }
    struct object *probe = probe_object(square, cost, false, "probe");
    struct object *o = run_fine(&node_allocate, "l1", (struct setting[]){{"method", NULL, "l1"}, {0}});
    read_answer(o, &a);
    assert_int_equal(a.n, 5);
    assert_optimal(&a, world.made.cost, "l1");
    free_answer(&a);
    object_close(o);
    o = run_fine(&node_allocate, "squared", (struct setting[]){{"method", NULL, "squared"},
                                                                      {"probe", probe, NULL}, {0}});
    read_answer(o, &a);
    assert_optimal(&a, square, "squared"); /* 100 positions: the mean is what it was made from */
    free_answer(&a);
    object_close(o);
    o = run_fine(&node_allocate, "probe", (struct setting[]){{"method", NULL, "probe"}, {"probe", probe, NULL}, {0}});
    read_answer(o, &a);
    assert_optimal(&a, cost, "probe");
    free_answer(&a);
    object_close(o);
    object_close(probe);
}

/* Singles measured, their sum is the true KL here; so direct finds what trying everything on the true one finds. */
static void direct_is_the_knapsack_over_what_was_measured_alone(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct answer a;
    const struct menu *m = &world.made.menu;
    double truth[UNITS * MADE_FORMATS];
    size_t expected = 1;
    for (int i = 0; i < UNITS * MADE_FORMATS; i++) {
        truth[i] = m->available[i] ? world.made.truth[i] : NAN;
        expected += m->available[i] && i % MADE_FORMATS != MADE_FORMATS - 1;
    }
    struct object *singles = run_fine(&node_allocate, "singles", (struct setting[]){{"method", NULL, "singles"}, {0}});
    assert_ok(candidates_read(&c, singles, &e), e);
    assert_int_equal(c.n, expected);
    for (size_t i = 1; i < c.n; i++) {
        int changed = 0;
        for (int u = 0; u < UNITS; u++) {
            assert_int_equal(c.list[0].assignment[u], MADE_FORMATS - 1); /* the base: nothing lost */
            changed += c.list[i].assignment[u] != c.list[0].assignment[u];
            assert_true(m->available[u * MADE_FORMATS + c.list[i].assignment[u]]);
        }
        assert_int_equal(changed, 1);
        assert_int_equal(c.list[i].parent, 0);
        assert_int_equal(candidates_find(&c, c.list[i].assignment), i);
    }
    struct object *rows = measure_object(singles, "alone");
    struct object *o = run_fine(&node_allocate, "direct", (struct setting[]){{"method", NULL, "direct"},
                                                                             {"rows", rows, NULL}, {0}});
    read_answer(o, &a);
    double scale = a.cost[0]; /* windows weigh: measured KL is the true one times a factor of the made-up windows */
    uint8_t assignment[UNITS];
    double gap;
    struct allocation one = {.most_bytes = a.bytes[0], .assignment = assignment};
    assert_ok(allocate_knapsack(m, truth, 0, &one, 1, &gap, &e), e);
    scale /= one.cost;
    for (int i = 0; i < UNITS * MADE_FORMATS; i++)
        truth[i] *= scale;
    assert_optimal(&a, truth, "direct");
    free_answer(&a);
    object_close(o);
    object_close(rows);
    /* One that was given up, and one that is missing. */
    struct candidates some;
    made_table(&world.made, &some);
    for (size_t i = 0; i < c.n; i++)
        assert_non_null(candidates_add(&some, m, c.list[i].assignment, "singles", -1, &e));
    made_measure(&world.made, &some, 0);
    some.list[7].n_windows = 3;
    some.list[7].kl_mean = NAN;
    struct object *raced = made_object(&world.made, &some, world.store, "raced");
    some.n = 7;
    struct object *short_of = made_object(&world.made, &some, world.store, "short");
    struct setting settings[] = {{"method", NULL, "direct"}, {"rows", raced, NULL}, {0}};
    assert_err(run_node(&node_allocate, "raced", settings, &o, &e), e, ERR_INPUT, "was not measured on all windows");
    settings[1].object = short_of;
    assert_err(run_node(&node_allocate, "short", settings, &o, &e), e, ERR_INPUT,
               "is not among the 7 rows: connect what was measured");
    object_close(raced);
    object_close(short_of);
    candidates_fini(&some);
    candidates_fini(&c);
    object_close(singles);
}

static void uniform_goes_by_measured_kl_where_it_is_known(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct answer a;
    uint8_t uniform[UNITS];
    made_table(&world.made, &c);
    for (int f = 0; f < MADE_FORMATS; f++) {
        menu_uniform(&world.made.menu, f, uniform);
        assert_non_null(candidates_add(&c, &world.made.menu, uniform, "uniform", -1, &e));
    }
    made_measure(&world.made, &c, 0);
    c.list[1].kl_mean = 3; /* small is said to be worse than tiny */
    struct object *rows = made_object(&world.made, &c, world.store, "uniform rows");
    struct setting settings[] = {{"method", NULL, "uniform"}, {"bpp", NULL, "6"}, {"rows", rows, NULL}, {0}};
    for (int is_measured = 1; is_measured >= 0; is_measured--) {
        if (!is_measured)
            settings[2].name = NULL;
        struct object *o = run_fine(&node_allocate, "uniform", settings);
        read_answer(o, &a);
        menu_uniform(&world.made.menu, is_measured ? 0 : 1, uniform);
        assert_memory_equal(a.table.list[0].assignment, uniform, UNITS);
        free_answer(&a);
        object_close(o);
    }
    object_close(rows);
    candidates_fini(&c);
}

static void a_candidate_of_several_budgets_is_there_once(void **state)
{
    (void)state;
    struct answer a;
    struct object *o = run_fine(&node_allocate, "several", (struct setting[]){{"method", NULL, "uniform"},
        {"bpp", NULL, "7"}, {"bpp", NULL, "9"}, {"bpp", NULL, "9.5"}, {"bpp", NULL, "20"}, {0}});
    read_answer(o, &a);
    assert_int_equal(a.n, 4);
    assert_int_equal(a.table.n, 3);
    assert_int_equal(a.candidate[1], a.candidate[2]);
    free_answer(&a);
    object_close(o);
}

static void what_is_missing_is_said(void **state)
{
    (void)state;
    struct err e;
    struct object *o, *rows = measured_rows(), *probe;
    double cost[UNITS * MADE_FORMATS];
    memcpy(cost, world.made.cost, sizeof cost);
    cost[5] = -1;
    probe = probe_object(cost, world.made.cost, false, "negative");
    const struct {
        const char *method, *bpp;
        const char *port;
        struct object *input;
        enum err_code code;
        const char *text;
    } cases[] = {
        {"trace", "6", NULL, NULL, ERR_INPUT, "`method: trace` needs the traces of a probe: connect the port 'probe'"},
        {"trace", "6", "probe", probe, ERR_INPUT, "connect the port 'model'"},
        {"squared", "6", NULL, NULL, ERR_INPUT, "connect the port 'probe'"},
        {"squared", "6", "probe", probe, ERR_NUMERIC,
         "by `method: squared`, unit 'layer.0.unit.1' costs -1 in format 'small'"},
        {"probe", "6", NULL, NULL, ERR_INPUT, "connect the port 'probe'"},
        {"direct", "6", NULL, NULL, ERR_INPUT, "connect the port 'rows'"},
        {"direct", "6", "rows", rows, ERR_INPUT, "is not among the"},
        {"l1", "4", NULL, NULL, ERR_INPUT, "(4 bpp) cannot be kept: any choice of formats takes at least"},
        {"ends", "4", NULL, NULL, ERR_INPUT, "one format for all units takes at least"},
        {"uniform", "4", NULL, NULL, ERR_INPUT, "one format for all units takes at least"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct setting settings[] = {{"method", NULL, cases[i].method}, {"bpp", NULL, cases[i].bpp},
                                     {cases[i].port, cases[i].input, NULL}, {0}};
        assert_err(run_node(&node_allocate, "missing", settings, &o, &e), e, cases[i].code, cases[i].text);
    }
    object_close(probe);
    object_close(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_budget_is_the_most_bytes_of_at_most_that_bpp),
        cmocka_unit_test(knapsack_equals_trying_everything),
        cmocka_unit_test(uniform_is_the_least_cost_that_fits),
        cmocka_unit_test(ends_go_from_the_outside_in),
        cmocka_unit_test(ends_take_the_best_pair_of_formats),
        cmocka_unit_test(trace_costs_are_curvature_times_error),
        cmocka_unit_test(each_method_solves_its_own_costs),
        cmocka_unit_test(direct_is_the_knapsack_over_what_was_measured_alone),
        cmocka_unit_test(uniform_goes_by_measured_kl_where_it_is_known),
        cmocka_unit_test(a_candidate_of_several_budgets_is_there_once),
        cmocka_unit_test(what_is_missing_is_said),
    };
    return cmocka_run_group_tests(tests, world_set_up, world_tear_down);
}
