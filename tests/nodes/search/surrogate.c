/* Surrogates as they are read from objects: what counts, what is ignored, and what is refused. */
#include "tests/nodes/search/objects.h"

#include "nodes/search/surrogate.h"

enum { UNITS = 6, CELLS = UNITS * MADE_FORMATS, TABLE = MADE_FORMATS * MADE_FORMATS };

static struct made made;
static struct store *store;
static char folder[256];
static int n_objects;

static int set_up(void **state)
{
    struct err e;
    char path[300];
    (void)state;
    check_dir_make(folder);
    snprintf(path, sizeof path, "%s/store", folder);
    assert_ok(store_open(&store, path, &e), e);
    made_init(&made, UNITS, 3, 5);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    made_fini(&made);
    store_close(store);
    check_dir_remove(folder);
    return 0;
}

/* Tables that a test may spoil before they are written. */
struct tables {
    double cost[CELLS + 1];
    uint32_t units[4][2];
    double pair_cost[4 * TABLE + 1];
    uint64_t n_cost, n_units /* rows */, n_pair_cost; /* 0: no such dataset */
    bool is_flat; /* pairs/units without its second axis, and one short */
};

static struct tables good(void)
{
    struct tables t = {.units = {{0, 1}, {0, 4}, {1, 4}, {2, 5}}, .n_cost = CELLS, .n_units = 4,
                       .n_pair_cost = 4 * TABLE};
    memcpy(t.cost, made.cost, CELLS * sizeof *t.cost);
    for (int i = 0; i < 4 * TABLE; i++)
        t.pair_cost[i] = 1e-3 * sin(i);
    return t;
}

static struct object *object_of(const struct tables *t)
{
    struct err e;
    struct writer *w;
    char name[32];
    snprintf(name, sizeof name, "surrogate %d", n_objects++);
    struct key k = made_key(name);
    assert_ok(writer_new(&w, store, &k, "rank/1", &e) &&
              writer_add_strings(w, "units/name", (const char *const *)made.menu.unit_names, UNITS, "unit", "", &e) &&
              writer_add_strings(w, "formats/name", (const char *const *)made.menu.format_names, MADE_FORMATS, "format",
                                 "", &e), e);
    made_add(w, "cost", DTYPE_F64, t->n_cost, 0, t->cost);
    if (t->n_units)
        made_add(w, "pairs/units", DTYPE_U32, t->is_flat ? 2 * t->n_units - 1 : t->n_units, t->is_flat ? 0 : 2,
                 t->units);
    if (t->n_pair_cost)
        made_add(w, "pairs/cost", DTYPE_F64, t->n_pair_cost, 0, t->pair_cost);
    return made_commit(store, w, name);
}

static void costs_and_pairs_are_read(void **state)
{
    (void)state;
    struct err e;
    struct surrogate s;
    struct tables t = good();
    t.cost[4 * MADE_FORMATS] = 17;                    /* not available */
    t.pair_cost[TABLE + 2 * MADE_FORMATS + 0] = NAN;  /* of units 0 and 4, whose first format is not available */
    struct object *o = object_of(&t);
    assert_ok(surrogate_read(&s, &made.menu, o, "x", &e), e);
    assert_int_equal(s.n_pairs, 4);
    assert_memory_equal(s.pairs, t.units, sizeof t.units);
    for (int i = 0; i < CELLS; i++)
        assert_true(made.menu.available[i] ? s.cost[i] == t.cost[i] : isnan(s.cost[i]));
    for (int p = 0; p < 4; p++)
        for (int a = 0; a < MADE_FORMATS; a++)
            for (int b = 0; b < MADE_FORMATS; b++) {
                int at = (p * MADE_FORMATS + a) * MADE_FORMATS + b;
                bool counts = made.menu.available[t.units[p][0] * MADE_FORMATS + (uint32_t)a] &&
                              made.menu.available[t.units[p][1] * MADE_FORMATS + (uint32_t)b];
                assert_true(s.pair_cost[at] == (counts ? t.pair_cost[at] : 0));
            }
    static const uint8_t x[UNITS] = {3, 1, 0, 2, 1, 2};
    double energy = 0;
    for (int u = 0; u < UNITS; u++)
        energy += t.cost[u * MADE_FORMATS + x[u]];
    for (int p = 0; p < 4; p++)
        energy += t.pair_cost[p * TABLE + x[t.units[p][0]] * MADE_FORMATS + x[t.units[p][1]]];
    assert_true(fabs(surrogate_energy(&made.menu, &s, x) - energy) < 1e-15);
    surrogate_fini(&s);
    object_close(o);
}

static void pairs_may_be_missing(void **state)
{
    (void)state;
    struct err e;
    struct surrogate s;
    struct tables t = good();
    t.n_units = t.n_pair_cost = 0;
    struct object *o = object_of(&t);
    assert_ok(surrogate_read(&s, &made.menu, o, "x", &e), e);
    assert_true(s.n_pairs == 0 && !s.pairs && !s.pair_cost);
    static const uint8_t x[UNITS] = {0, 0, 0, 0, 1, 0};
    double energy = 0;
    for (int u = 0; u < UNITS; u++)
        energy += t.cost[u * MADE_FORMATS + x[u]];
    assert_true(fabs(surrogate_energy(&made.menu, &s, x) - energy) < 1e-15);
    surrogate_fini(&s);
    object_close(o);
}

static void is_refused(struct tables t, enum err_code code, const char *text)
{
    struct err e;
    struct surrogate s;
    struct object *o = object_of(&t);
    assert_err(surrogate_read(&s, &made.menu, o, "probe", &e), e, code, text);
    object_close(o);
}

static void bad_tables_are_refused(void **state)
{
    (void)state;
    struct tables t = good();
    t.n_cost--;
    is_refused(t, ERR_INPUT, "'probe' has 23 costs for 6 units in 4 formats");
    t = good();
    t.cost[7] = -1e-9;
    is_refused(t, ERR_NUMERIC, "'probe': the cost of unit 'layer.0.unit.1' in format 'full' is -1e-09");
    t.cost[7] = INFINITY;
    is_refused(t, ERR_NUMERIC, "'probe': the cost of unit 'layer.0.unit.1' in format 'full' is inf");
    t = good();
    t.n_pair_cost = 0;
    is_refused(t, ERR_INPUT, "'probe' has pairs/units without pairs/cost");
    t = good();
    t.n_units = 0;
    is_refused(t, ERR_INPUT, "'probe' has pairs/cost without pairs/units");
    t = good();
    t.n_pair_cost--;
    is_refused(t, ERR_INPUT, "'probe' has 8 units of pairs and 63 costs of pairs; a pair has two and 16");
    t = good();
    t.is_flat = true;
    is_refused(t, ERR_INPUT, "'probe' has 7 units of pairs and 64 costs of pairs; a pair has two and 16");
    t = good();
    t.units[2][0] = t.units[2][1];
    is_refused(t, ERR_INPUT, "'probe': pair 2 is of units 4 and 4; the first must be the lower, and there are 6");
    t = good();
    t.units[3][1] = UNITS;
    is_refused(t, ERR_INPUT, "'probe': pair 3 is of units 2 and 6; the first must be the lower, and there are 6");
    t = good();
    t.units[1][1] = 1;
    is_refused(t, ERR_INPUT, "'probe': pair 1, of units 0 and 1, comes after that of units 0 and 1; they must be "
               "sorted, each once");
    t = good();
    t.units[2][0] = 0, t.units[2][1] = 3;
    is_refused(t, ERR_INPUT, "'probe': pair 2, of units 0 and 3, comes after that of units 0 and 4; they must be "
               "sorted, each once");
    t = good();
    t.pair_cost[3 * TABLE + 5] = NAN;
    is_refused(t, ERR_NUMERIC, "'probe': the cost of the pair of unit 'layer.0.unit.2' in format 'small' and unit "
               "'layer.1.unit.1' in format 'small' is nan");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(costs_and_pairs_are_read),
        cmocka_unit_test(pairs_may_be_missing),
        cmocka_unit_test(bad_tables_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
