/* The decisions of the evolution, with a made-up model in the place of measuring; and the node type. */
#include "tests/nodes/search/world.h"

#include "nodes/search/allocate.h"
#include "nodes/search/evolve.h"

struct trial {
    struct made made;
    struct candidates table;
    struct evolve v;
    double noise;            /* KL of a (candidate, window) is off by up to this factor, as a function of both */
    size_t calls, fail_at;   /* the call that fails; 0: none */
    size_t sizes[10000];     /* windows of each call */
    uint32_t last[MADE_WINDOWS];
    uint64_t tokens;         /* measured */
    int told;
};

static bool measure(void *context, struct candidates *table, const uint32_t *windows, size_t n, struct err *e)
{
    struct trial *t = context;
    assert_true(t->calls < COUNT(t->sizes));
    t->sizes[t->calls++] = n;
    if (t->fail_at && t->calls == t->fail_at)
        return err_set(e, ERR_STOPPED, "interrupted");
    for (size_t i = 0; i < table->n; i++) {
        struct candidate *c = &table->list[i];
        uint64_t hash = 1;
        double sum = 0, all = 0;
        for (int u = 0; u < table->n_units; u++)
            hash = hash * 1099511628211u + c->assignment[u];
        for (size_t k = 0; c->dropped_at < 0 && k < n; k++) {
            uint64_t own = hash + windows[k];
            if (!isnan(c->kl_window[windows[k]]))
                continue;
            c->kl_window[windows[k]] = made_kl(&t->made, c->assignment) * (0.5 + windows[k] % 3) *
                                       (1 + t->noise * (double)stats_random(&own) * 0x1p-64);
            c->n_windows++;
            c->tokens += table->window_tokens[windows[k]];
            t->tokens += table->window_tokens[windows[k]];
        }
        for (uint32_t w = 0; w < table->n_windows; w++) {
            sum += c->kl_window[w] * table->window_tokens[w];
            all += table->window_tokens[w];
        }
        c->kl_mean = c->n_windows == table->n_windows ? sum / all : NAN;
    }
    return true;
}

static void tell(void *context, const struct evolve *v)
{
    struct trial *t = context;
    t->told++;
    assert_int_equal(t->told, v->n_generations);
}

static void start(struct trial *t, int units, double bpp, uint64_t tokens, uint64_t seed)
{
    *t = (struct trial){0};
    made_init(&t->made, units, 3, 7);
    made_table(&t->made, &t->table);
    t->v = (struct evolve){.menu = &t->made.menu, .table = &t->table, .cost = t->made.cost,
                           .most_bytes = allocate_budget(&t->made.menu, bpp), .most_tokens = tokens, .offspring = 32,
                           .stages = 3, .keep = 4, .most_generations = 10000, .seed = seed, .context = t,
                           .measure = measure, .tell = tell};
}

static void finish(struct trial *t)
{
    evolve_fini(&t->v);
    candidates_fini(&t->table);
    made_fini(&t->made);
}

/* What must hold of any run that ended well. */
static void assert_sound(const struct trial *t)
{
    const struct evolve *v = &t->v;
    uint64_t tokens = 0;
    assert_int_equal(t->told, v->n_generations);
    for (size_t i = 0; i < t->table.n; i++) {
        const struct candidate *c = &t->table.list[i];
        assert_true(c->bytes <= v->most_bytes && c->bytes == menu_bytes(v->menu, c->assignment));
        for (int u = 0; u < t->table.n_units; u++)
            assert_true(v->menu->available[u * MADE_FORMATS + c->assignment[u]]);
        assert_int_equal(candidates_find(&t->table, c->assignment), i);
        assert_string_equal(c->origin, "evolve");
        /* Either measured in full, or dropped by one that was live then. */
        assert_int_equal(candidate_is_complete(&t->table, c), c->dropped_at < 0);
        assert_true(c->dropped_at < 0 || (c->dropped_at == (int32_t)c->n_windows && c->dropped_by >= 0));
        tokens += c->tokens;
    }
    assert_true(tokens == v->tokens && tokens == t->tokens && tokens <= v->most_tokens);
    for (int g = 0; g < v->n_generations; g++) {
        const struct candidate *c = &t->table.list[v->parent[g]];
        assert_true(candidate_is_complete(&t->table, c));
        if (g == 0)
            continue;
        assert_true(v->tokens_by[g] >= v->tokens_by[g - 1] && v->tokens_by[g] <= v->tokens);
        assert_true(v->parent[g] == v->parent[g - 1] || c->kl_mean < t->table.list[v->parent[g - 1]].kl_mean);
    }
    assert_int_equal(v->chosen, v->parent[v->n_generations - 1]);
    for (size_t i = 0; i < t->table.n; i++) /* nothing that was measured in full beats it */
        assert_false(t->table.list[i].kl_mean < t->table.list[v->chosen].kl_mean);
}

/* Windows agree on what is better, so it must get to the best there is. */
static void a_small_additive_problem_is_solved(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct err e;
        struct trial t;
        uint8_t best[8];
        double truth[8 * MADE_FORMATS], gap;
        start(&t, 8, 5 + 0.7 * (double)seed, 300000, seed);
        assert_ok(evolve_run(&t.v, &e), e);
        assert_sound(&t);
        for (int i = 0; i < 8 * MADE_FORMATS; i++)
            truth[i] = t.made.menu.available[i] ? t.made.truth[i] : NAN;
        struct allocation one = {.most_bytes = t.v.most_bytes, .assignment = best};
        assert_ok(allocate_knapsack(&t.made.menu, truth, 0, &one, 1, &gap, &e), e);
        double found = made_kl(&t.made, t.table.list[t.v.chosen].assignment);
        if (fabs(found - one.cost) > 1e-12)
            fail_msg("seed %d: KL %g, the best is %g; %d generations, %zu candidates", (int)seed, found, one.cost,
                     t.v.n_generations, t.table.n);
        finish(&t);
    }
}

/* Larger, with windows that disagree: the bounds hold, and it gets far below where it started. */
static void budgets_of_bytes_and_tokens_are_kept(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct err e;
        struct trial t;
        start(&t, 40, 4.6 + 0.4 * (double)seed, 20000 + 13001 * seed, seed);
        t.noise = 0.5;
        t.v.offspring = 5 + 7 * (int)seed;
        assert_ok(evolve_run(&t.v, &e), e);
        assert_sound(&t);
        assert_int_equal(t.v.end, EVOLVE_TOKENS);
        assert_true(t.table.list[t.v.chosen].kl_mean < t.table.list[t.v.parent[0]].kl_mean);
        finish(&t);
    }
}

static void windows_grow_by_stage_and_generations_end_it(void **state)
{
    (void)state;
    static const struct {
        int stages, keep;
        size_t sizes[4];
    } cases[] = {{3, 4, {1, 3, 12}}, {1, 2, {12}}, {2, 3, {4, 12}}, {4, 2, {2, 3, 6, 12}}, {3, 1000, {1, 1, 12}}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct err e;
        struct trial t;
        start(&t, 24, 7, UINT64_MAX, 5);
        t.noise = 0.3;
        t.v.stages = cases[i].stages;
        t.v.keep = cases[i].keep;
        t.v.most_generations = 6;
        assert_ok(evolve_run(&t.v, &e), e);
        assert_sound(&t);
        assert_int_equal(t.v.end, EVOLVE_GENERATIONS);
        assert_int_equal(t.v.n_generations, 6);
        assert_int_equal(t.calls, 6 * (size_t)cases[i].stages);
        for (size_t k = 0; k < t.calls; k++)
            assert_int_equal(t.sizes[k], cases[i].sizes[k % (size_t)cases[i].stages]);
        finish(&t);
    }
}

static bool same(const struct trial *a, const struct trial *b)
{
    if (a->table.n != b->table.n || a->v.tokens != b->v.tokens || a->v.chosen != b->v.chosen)
        return false;
    for (size_t i = 0; i < a->table.n; i++)
        if (memcmp(a->table.list[i].assignment, b->table.list[i].assignment, (size_t)a->table.n_units) != 0)
            return false;
    return true;
}

static void the_seed_decides(void **state)
{
    (void)state;
    struct err e;
    struct trial t[3];
    for (int i = 0; i < 3; i++) {
        start(&t[i], 24, 7, 100000, i < 2 ? 5 : 6);
        t[i].noise = 0.3;
        assert_ok(evolve_run(&t[i].v, &e), e);
    }
    assert_true(same(&t[0], &t[1]) && !same(&t[0], &t[2]));
    for (int i = 0; i < 3; i++)
        finish(&t[i]);
}

/* With room for the best of everything there is one assignment and no mutation of it. */
static void it_ends_when_there_is_no_offspring(void **state)
{
    (void)state;
    struct err e;
    struct trial t;
    start(&t, 12, 17, 100000, 1);
    assert_ok(evolve_run(&t.v, &e), e);
    assert_sound(&t);
    assert_int_equal(t.v.end, EVOLVE_EXHAUSTED);
    assert_int_equal(t.table.n, 1);
    for (int u = 0; u < 12; u++)
        assert_int_equal(t.table.list[0].assignment[u], MADE_FORMATS - 1);
    finish(&t);
}

static void what_cannot_be_is_refused(void **state)
{
    (void)state;
    struct err e;
    struct trial t;
    start(&t, 12, 4.4, 100000, 1);
    assert_err(evolve_run(&t.v, &e), e, ERR_INPUT, "any choice of formats takes at least");
    finish(&t);
    start(&t, 12, 6, 3000, 1);
    assert_err(evolve_run(&t.v, &e), e, ERR_INPUT, "3000 tokens do not reach through the first generation");
    finish(&t);
    start(&t, 12, 6, 100000, 1);
    t.fail_at = 5;
    assert_err(evolve_run(&t.v, &e), e, ERR_STOPPED, "interrupted");
    finish(&t);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    struct err e;
    bool ok = false;
    for (long n = 1; !ok; n++) {
        struct trial t;
        start(&t, 8, 6, 20000, 1);
        t.v.offspring = 6;
        t.v.most_generations = 2;
        mem_fail_after(n, false);
        e = (struct err){0};
        ok = evolve_run(&t.v, &e);
        mem_fail_after(0, false);
        assert_true(ok || e.code == ERR_RESOURCE);
        finish(&t);
        assert_true(n < 10000);
    }
}

/* ------------------------------------------------------------------------------------------------------- the node */

static bool has_format(struct object *o, int format)
{
    struct err e;
    struct candidates c;
    bool is_there = false;
    assert_ok(candidates_read(&c, o, &e), e);
    for (size_t i = 0; i < c.n; i++)
        is_there |= memchr(c.list[i].assignment, format, UNITS) != NULL;
    candidates_fini(&c);
    return is_there;
}

/* By L1 the first format costs more than the second in a few bytes more, so it is no level; by a surrogate it is. */
static void a_surrogate_tells_the_levels(void **state)
{
    (void)state;
    struct err e;
    struct writer *w;
    double costs[UNITS * MADE_FORMATS];
    for (int i = 0; i < UNITS * MADE_FORMATS; i++)
        costs[i] = world.made.cost[i] * (i % MADE_FORMATS == 0 ? 0.5 : 1);
    struct key k = made_key("levels");
    assert_ok(writer_new(&w, world.store, &k, "probe/1", &e) &&
              writer_add_strings(w, "units/name", (const char *const *)world.made.menu.unit_names, UNITS, "unit", "",
                                 &e) &&
              writer_add_strings(w, "formats/name", (const char *const *)world.made.menu.format_names, MADE_FORMATS,
                                 "format", "", &e), e);
    made_add(w, "cost", DTYPE_F64, UNITS, MADE_FORMATS, costs);
    struct object *surrogate = made_commit(world.store, w, "levels");
    for (int with = 0; with < 2; with++) {
        struct setting settings[] = {{"bpp", NULL, "6"}, {"tokens", NULL, "60000"}, {"surrogate", surrogate, NULL}, {0}};
        if (!with)
            settings[2] = (struct setting){0};
        struct object *o = run_fine(&node_evolve, "levels", settings);
        assert_int_equal(has_format(o, 0), with);
        object_close(o);
    }
    object_close(surrogate);
}

static void the_node_measures_and_chooses(void **state)
{
    (void)state;
    struct err e;
    struct candidates c, report;
    uint64_t n, sum = 0;
    struct setting settings[] = {{"bpp", NULL, "6"}, {"tokens", NULL, "60000"}, {0}};
    struct object *o = run_fine(&node_evolve, "evolve", settings);
    assert_ok(candidates_read(&c, o, &e), e);
    uint32_t chosen = load_one(o, "chosen"), *parents = load(o, "generations/parent", DTYPE_U32, &n);
    uint64_t *bytes = load(o, "budget/bytes", DTYPE_U64, NULL), *spent = load(o, "budget/tokens", DTYPE_U64, NULL);
    uint64_t *by = load(o, "generations/tokens", DTYPE_U64, NULL);
    assert_int_equal(*bytes, allocate_budget(&world.made.menu, 6));
    assert_true(n > 2 && parents[n - 1] == chosen && by[n - 1] <= *spent && *spent <= 60000);
    for (size_t i = 0; i < c.n; i++) {
        assert_true(c.list[i].bytes <= *bytes);
        sum += c.list[i].tokens;
    }
    assert_int_equal(sum, *spent);
    assert_true(candidate_is_complete(&c, &c.list[chosen]));
    assert_non_null(strstr(world.log, "of 60000 tokens"));
    assert_non_null(strstr(world.log, "[fp32 made]"));
    /* `measure` takes what it chose alone; `select` takes all of its rows. */
    struct object *measured = run_fine(&node_measure, "report", (struct setting[]){{"candidates", o, NULL},
        {"candidates", o, NULL}, {"which", NULL, "chosen"}, {0}});
    assert_ok(candidates_read(&report, measured, &e), e);
    assert_int_equal(report.n, 1);
    assert_memory_equal(report.list[0].assignment, c.list[chosen].assignment, UNITS);
    assert_string_equal(report.list[0].origin, "evolve");
    candidates_fini(&report);
    struct object *select = run_fine(&node_select, "select", (struct setting[]){{"rows", o, NULL},
                                                                                {"bpp", NULL, "6"}, {0}});
    assert_int_equal(load_one(select, "chosen"), chosen);
    object_close(select);
    struct object *rows = measured_rows(), *none;
    assert_err(run_node(&node_measure, "none", (struct setting[]){{"candidates", rows, NULL}, {"which", NULL, "chosen"},
                        {0}}, &none, &e), e, ERR_INPUT,
               "'candidates' chooses none; only select, polish, confirm and evolve do");
    object_close(rows);
    object_close(measured);
    mem_free(by);
    mem_free(spent);
    mem_free(bytes);
    mem_free(parents);
    candidates_fini(&c);
    object_close(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_small_additive_problem_is_solved),
        cmocka_unit_test(budgets_of_bytes_and_tokens_are_kept),
        cmocka_unit_test(windows_grow_by_stage_and_generations_end_it),
        cmocka_unit_test(the_seed_decides),
        cmocka_unit_test(it_ends_when_there_is_no_offspring),
        cmocka_unit_test(what_cannot_be_is_refused),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(a_surrogate_tells_the_levels),
        cmocka_unit_test(the_node_measures_and_chooses),
    };
    return cmocka_run_group_tests(tests, world_set_up, world_tear_down);
}
