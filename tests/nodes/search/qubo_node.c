/* The node type qubo: its chain from a surrogate without pairs, with them, and what it refuses. */
#include "tests/nodes/search/world.h"

#include "nodes/search/surrogate.h"

/* What a probe would have made: the made-up costs, and pairs of neighbouring units that cost a third of the geometric
 * mean of theirs, more or less by turns. */
static struct object *probe_object(const char *seed, double strength)
{
    enum { PAIRS = UNITS - 1, TABLE = MADE_FORMATS * MADE_FORMATS };
    struct err e;
    struct writer *w;
    struct key k = made_key(seed);
    const struct made *x = &world.made;
    uint32_t pairs[PAIRS][2];
    double cost[PAIRS * TABLE];
    for (uint32_t i = 0; i < PAIRS; i++) {
        pairs[i][0] = i, pairs[i][1] = i + 1;
        for (uint32_t c = 0; c < TABLE; c++) {
            double product = x->cost[i * MADE_FORMATS + c / MADE_FORMATS] *
                             x->cost[(i + 1) * MADE_FORMATS + c % MADE_FORMATS];
            cost[i * TABLE + c] = (i % 2 ? strength : -strength) * sqrt(product);
        }
    }
    assert_ok(writer_new(&w, world.store, &k, "probe/1", &e) &&
              writer_add_strings(w, "units/name", (const char *const *)x->menu.unit_names, UNITS, "unit", "", &e) &&
              writer_add_strings(w, "formats/name", (const char *const *)x->menu.format_names, MADE_FORMATS, "format",
                                 "", &e), e);
    made_add(w, "cost", DTYPE_F64, UNITS, MADE_FORMATS, x->cost);
    made_add(w, "pairs/units", DTYPE_U32, PAIRS, 2, pairs);
    made_add(w, "pairs/cost", DTYPE_F64, PAIRS, TABLE, cost);
    return made_commit(world.store, w, seed);
}

/* The result's columns, and its candidates. */
struct result {
    struct candidates c;
    double *lambda, *energy, *bound, *gap;
    uint8_t *exact;
};

static void read_result(struct result *r, struct object *o)
{
    struct err e;
    uint64_t n;
    assert_ok(candidates_read(&r->c, o, &e), e);
    r->lambda = load(o, "lambda", DTYPE_F64, &n);
    assert_int_equal(n, r->c.n);
    r->energy = load(o, "energy", DTYPE_F64, &n);
    assert_int_equal(n, r->c.n);
    r->bound = load(o, "bound", DTYPE_F64, &n);
    assert_int_equal(n, r->c.n);
    r->gap = load(o, "gap", DTYPE_F64, &n);
    assert_int_equal(n, r->c.n);
    r->exact = load(o, "exact", DTYPE_U8, &n);
    assert_int_equal(n, r->c.n);
}

static void free_result(struct result *r)
{
    candidates_fini(&r->c);
    mem_free(r->lambda);
    mem_free(r->energy);
    mem_free(r->bound);
    mem_free(r->gap);
    mem_free(r->exact);
}

/* Without pairs the chain is the lower hull of the frontier that the archive finds. */
static void without_pairs_the_chain_is_the_hull_of_the_predicted_frontier(void **state)
{
    (void)state;
    struct result r;
    uint64_t n;
    struct object *rank = rank_object();
    struct object *o = run_fine(&node_qubo, "qubo", (struct setting[]){{"surrogate", rank, NULL},
                                                                       {"count", NULL, "10000"}, {0}});
    struct object *f = run_fine(&node_frontier, "frontier", (struct setting[]){{"surrogate", rank, NULL}, {0}});
    uint64_t *bytes = load(f, "predicted/bytes", DTYPE_U64, &n);
    double *cost = load(f, "predicted/cost", DTYPE_F64, NULL);
    read_result(&r, o);
    assert_true(r.c.n > 20 && r.c.n < n);
    assert_true(r.c.list[0].bytes == bytes[0] && r.c.list[r.c.n - 1].bytes == bytes[n - 1]);
    for (size_t i = 0, k = 0; i < r.c.n; i++) {
        assert_string_equal(r.c.list[i].origin, "lambda");
        assert_true(r.exact[i] == 1 && r.gap[i] == 0 && r.bound[i] == r.energy[i]);
        assert_true(i == 0 || r.lambda[i] < r.lambda[i - 1]);
        while (bytes[k] != r.c.list[i].bytes)
            assert_true(++k < n);
        assert_true(fabs(cost[k] + r.lambda[i] * (double)bytes[k] - r.energy[i]) <= 1e-9 * r.energy[i]);
        for (uint64_t any = 0; any < n; any++)
            assert_true(cost[any] + r.lambda[i] * (double)bytes[any] >= r.energy[i] * (1 - 1e-9));
    }
    free_result(&r);
    mem_free(cost);
    mem_free(bytes);
    object_close(f);
    object_close(o);
    object_close(rank);
}

static void pairs_change_the_chain_and_can_be_left_out(void **state)
{
    (void)state;
    struct err e;
    struct result with, without, plain;
    struct surrogate s;
    struct object *probe = probe_object("a probe", 0.33), *rank = rank_object();
    struct object *a = run_fine(&node_qubo, "with", (struct setting[]){{"surrogate", probe, NULL}, {0}});
    struct object *b = run_fine(&node_qubo, "without", (struct setting[]){{"surrogate", probe, NULL},
                                                                          {"pairs", NULL, "false"}, {0}});
    struct object *c = run_fine(&node_qubo, "plain", (struct setting[]){{"surrogate", rank, NULL}, {0}});
    assert_ok(surrogate_read(&s, &world.made.menu, probe, "probe", &e), e);
    read_result(&with, a);
    read_result(&without, b);
    read_result(&plain, c);
    size_t differ = 0;
    assert_int_equal(with.c.n, 32);
    assert_int_equal(without.c.n, 32);
    assert_int_equal(plain.c.n, 32);
    for (size_t i = 0; i < with.c.n; i++) {
        const struct candidate *x = &with.c.list[i];
        double energy = surrogate_energy(&world.made.menu, &s, x->assignment) + with.lambda[i] * (double)x->bytes;
        assert_true(with.exact[i] && fabs(with.energy[i] - energy) <= 1e-12 * fabs(energy));
        differ += candidates_find(&plain.c, x->assignment) < 0;
        assert_memory_equal(without.c.list[i].assignment, plain.c.list[i].assignment, UNITS);
    }
    assert_true(differ > 5);
    surrogate_fini(&s);
    free_result(&plain);
    free_result(&without);
    free_result(&with);
    object_close(c);
    object_close(b);
    object_close(a);
    object_close(rank);
    object_close(probe);
}

/* The search has a seed, and its result says what is left of the gap. */
static void a_search_gives_the_same_for_a_seed(void **state)
{
    (void)state;
    struct result first, second;
    struct object *probe = probe_object("a strong probe", 0.9);
    struct setting settings[] = {{"surrogate", probe, NULL}, {"cells", NULL, "1"}, {"seed", NULL, "7"},
                                 {"rounds", NULL, "5"}, {0}};
    struct object *a = run_fine(&node_qubo, "first", settings), *b = run_fine(&node_qubo, "second", settings);
    read_result(&first, a);
    read_result(&second, b);
    assert_int_equal(first.c.n, second.c.n);
    for (size_t i = 0; i < first.c.n; i++) {
        assert_memory_equal(first.c.list[i].assignment, second.c.list[i].assignment, UNITS);
        assert_true(first.energy[i] == second.energy[i] && first.bound[i] == second.bound[i]);
        assert_true(first.bound[i] <= first.energy[i] && first.gap[i] >= 0 && first.gap[i] < 0.05);
    }
    free_result(&second);
    free_result(&first);
    object_close(b);
    object_close(a);
    object_close(probe);
}

static void a_surrogate_that_is_not_finite_is_refused(void **state)
{
    (void)state;
    struct err e;
    struct object *o, *probe = probe_object("an infinite probe", INFINITY);
    assert_err(run_node(&node_qubo, "infinite", (struct setting[]){{"surrogate", probe, NULL}, {0}}, &o, &e), e,
               ERR_NUMERIC, "'surrogate': the cost of the pair of unit 'layer.0.unit.0' in format 'tiny' and unit "
               "'layer.0.unit.1' in format 'tiny' is -inf");
    object_close(probe);
}

static void its_table_can_be_measured(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct object *rank = rank_object();
    struct object *o = run_fine(&node_qubo, "few", (struct setting[]){{"surrogate", rank, NULL},
        {"count", NULL, "12"}, {"low", NULL, "4.8"}, {"high", NULL, "7"}, {0}});
    struct object *m = run_fine(&node_measure, "measured", (struct setting[]){{"candidates", o, NULL}, {0}});
    bool accepts = false;
    for (const struct port *p = node_measure.ports; p->name; p++)
        for (size_t i = 0; strcmp(p->name, "candidates") == 0 && p->types[i]; i++)
            accepts |= strcmp(p->types[i], "qubo") == 0;
    assert_true(accepts);
    assert_ok(candidates_read(&c, m, &e), e);
    assert_int_equal(c.n, 12);
    int inside = 0;
    for (size_t i = 1; i < c.n; i++) {
        assert_true(isfinite(c.list[i].kl_mean) && c.list[i].bpp > c.list[i - 1].bpp);
        inside += c.list[i].bpp >= 4.8 && c.list[i].bpp <= 7;
    }
    assert_true(inside >= 7); /* the ends are outside, and what the first looks between them found */
    candidates_fini(&c);
    object_close(m);
    object_close(o);
    object_close(rank);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_pairs_the_chain_is_the_hull_of_the_predicted_frontier),
        cmocka_unit_test(pairs_change_the_chain_and_can_be_left_out),
        cmocka_unit_test(a_search_gives_the_same_for_a_seed),
        cmocka_unit_test(a_surrogate_that_is_not_finite_is_refused),
        cmocka_unit_test(its_table_can_be_measured),
    };
    return cmocka_run_group_tests(tests, world_set_up, world_tear_down);
}
