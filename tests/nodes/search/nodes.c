/* The node types rank, frontier, measure, select and polish, one after the other, on a made-up model over a real store.
 * Measuring is made up as well: the functions of nodes/model/evaluator.h are here. */
#include "tests/nodes/search/objects.h"

#include "nodes/model/evaluator.h"
#include "nodes/nodes.h"
#include "tests/nodes/fake_node.h"

#define UNITS 24

static struct world {
    char folder[256];
    struct store *store;
    struct made made;
    struct object *quantize;
    size_t measured; /* by the made-up evaluator */
    int n_runs;
} world;

/* ------------------------------------------------------------------------------------------------ made-up evaluator */

struct evaluator {
    struct menu menu;
};

bool evaluator_open(struct evaluator **out, struct node *n, struct err *e)
{
    return mem_new(out, 1, e) && menu_read(&(*out)->menu, node_input(n, "renderings", 0)->object, e);
}

void evaluator_close(struct evaluator *v)
{
    if (v)
        menu_fini(&v->menu);
    mem_free(v);
}

const struct menu *evaluator_menu(const struct evaluator *v) { return &v->menu; }

bool evaluator_table(const struct evaluator *v, struct candidates *out, struct err *e)
{
    (void)v, (void)e;
    made_table(&world.made, out);
    return true;
}

bool evaluator_measure(struct evaluator *v, struct candidates *table, size_t first, struct err *e)
{
    (void)v, (void)e;
    world.measured += table->n - first;
    made_measure(&world.made, table, first);
    return true;
}

bool evaluator_needs(struct node *n, struct needs *out, struct err *e)
{
    (void)n, (void)e;
    *out = (struct needs){0};
    return true;
}

bool evaluator_numerics(const struct node *n, const char **out, struct err *e)
{
    (void)n, (void)e;
    *out = "fp32 made";
    return true;
}

/* --------------------------------------------------------------------------------------------------- running a node */

static int set_up(void **state)
{
    struct err e;
    char path[300];
    (void)state;
    world = (struct world){0};
    check_dir_make(world.folder);
    snprintf(path, sizeof path, "%s/store", world.folder);
    assert_ok(store_open(&world.store, path, &e), e);
    made_init(&world.made, UNITS, 3, 12);
    world.quantize = made_quantize(&world.made, world.store, "quantize", true);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    object_close(world.quantize);
    made_fini(&world.made);
    store_close(world.store);
    check_dir_remove(world.folder);
    return 0;
}

/* A node with the renderings connected, and pairs of (port, object) and of (parameter, text), each ended by NULL. */
struct setting {
    const char *name;
    struct object *object;
    const char *text;
};

static bool run_node(const struct node_class *class, const char *seed, const struct setting *settings,
                     struct object **out, struct err *e)
{
    struct node n;
    char name[64]; /* a key of its own for each run: what is published under a key stays */
    snprintf(name, sizeof name, "%s %d", seed, world.n_runs++);
    fake_node_init(&n, class, world.store, name);
    fake_node_connect(&n, "renderings", "quantize", world.quantize, NULL);
    for (; settings->name; settings++) {
        if (settings->object)
            fake_node_connect(&n, settings->name, settings->name, settings->object, NULL);
        else
            fake_node_set(&n, settings->name, settings->text);
    }
    *out = fake_node_run(&n, e);
    fake_node_fini(&n);
    return *out != NULL;
}

static struct object *run_fine(const struct node_class *class, const char *seed, const struct setting *settings)
{
    struct err e;
    struct object *o = NULL;
    assert_ok(run_node(class, seed, settings, &o, &e), e);
    return o;
}

/* A table of proposals as `measure` would have made it. */
static struct object *measure_object(struct object *proposals, const char *seed)
{
    struct err e;
    struct candidates from, to;
    assert_ok(candidates_read(&from, proposals, &e), e);
    made_table(&world.made, &to);
    for (size_t i = 0; i < from.n; i++)
        assert_non_null(candidates_add(&to, &world.made.menu, from.list[i].assignment, from.list[i].origin, -1, &e));
    made_measure(&world.made, &to, 0);
    struct object *o = made_object(&world.made, &to, world.store, seed);
    candidates_fini(&from);
    candidates_fini(&to);
    return o;
}

static void *load(struct object *o, const char *name, enum dtype t, uint64_t *n)
{
    struct err e;
    void *out = NULL;
    assert_ok(object_read_all(o, name, t, &out, n, &e), e);
    return out;
}

static uint32_t load_one(struct object *o, const char *name)
{
    struct err e;
    uint32_t x = 0;
    assert_ok(object_read(o, name, DTYPE_U32, 0, 1, &x, &e), e);
    return x;
}

static struct object *rank_object(void) { return run_fine(&node_rank, "rank", (struct setting[]){{0}}); }

/* -------------------------------------------------------------------------------------------------------- the tests */

static void rank_orders_formats_by_their_loss(void **state)
{
    (void)state;
    struct object *o = rank_object();
    uint64_t n;
    double *cost = load(o, "cost", DTYPE_F64, &n), *scale = load(o, "scale", DTYPE_F64, NULL);
    uint8_t *order = load(o, "order", DTYPE_U8, NULL);
    assert_int_equal(n, UNITS * MADE_FORMATS);
    for (int u = 0; u < UNITS; u++) {
        static const uint8_t expected[] = {3, 2, 1, 0};
        assert_true(scale[u] == 1);
        assert_memory_equal(order + u * MADE_FORMATS, expected, MADE_FORMATS);
        assert_int_equal(isnan(cost[u * MADE_FORMATS]), u % 5 == 4);
    }
    mem_free(order);
    mem_free(scale);
    mem_free(cost);
    object_close(o);
}

static void rank_takes_scales_from_units_that_were_measured_alone(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint8_t a[UNITS];
    made_table(&world.made, &c);
    menu_uniform(&world.made.menu, 3, a);
    assert_non_null(candidates_add(&c, &world.made.menu, a, "uniform", -1, &e));
    for (int u = 0; u < 3; u++) {
        a[u] = 1;
        assert_non_null(candidates_add(&c, &world.made.menu, a, "flip", 0, &e));
        a[u] = 3;
    }
    a[0] = a[1] = 2; /* two units: says nothing of either */
    assert_non_null(candidates_add(&c, &world.made.menu, a, "swap", 0, &e));
    made_measure(&world.made, &c, 0);
    struct object *rows = made_object(&world.made, &c, world.store, "alone");
    struct object *o = run_fine(&node_rank, "rank with rows", (struct setting[]){{"rows", rows, NULL}, {0}});
    double *scale = load(o, "scale", DTYPE_F64, NULL), product = 1;
    for (int u = 0; u < 3; u++) {
        double expected = c.list[1 + u].kl_mean / world.made.cost[u * MADE_FORMATS + 1];
        assert_true(fabs(scale[u] - expected) < 1e-9 * expected);
        product *= scale[u];
    }
    for (int u = 3; u < UNITS; u++)
        assert_true(fabs(scale[u] - cbrt(product)) < 1e-9 * scale[u]);
    mem_free(scale);
    object_close(o);
    object_close(rows);
    candidates_fini(&c);
}

static void frontier_proposes_uniforms_and_an_even_spread(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint64_t n;
    struct object *rank = rank_object();
    struct object *o = run_fine(&node_frontier, "frontier", (struct setting[]){{"surrogate", rank, NULL}, {0}});
    assert_ok(candidates_read(&c, o, &e), e);
    assert_in_range(c.n, MADE_FORMATS + 12, MADE_FORMATS + 15); /* all in full is an end of the frontier as well */
    size_t archived = 0;
    double last = 0, widest = 0;
    for (size_t i = 0; i < c.n; i++) {
        assert_int_equal(candidates_find(&c, c.list[i].assignment), i);
        if (strcmp(c.list[i].origin, "archive") == 0) {
            assert_true(c.list[i].bpp > last);
            widest = archived > 0 && c.list[i].bpp - last > widest ? c.list[i].bpp - last : widest;
            last = c.list[i].bpp;
            archived++;
        } else {
            assert_string_equal(c.list[i].origin, "uniform");
        }
    }
    assert_true(archived >= 12 && widest < 1.5);
    uint64_t *bytes = load(o, "predicted/bytes", DTYPE_U64, &n);
    double *cost = load(o, "predicted/cost", DTYPE_F64, NULL);
    for (uint64_t i = 1; i < n; i++)
        assert_true(bytes[i] > bytes[i - 1] && cost[i] < cost[i - 1]);
    mem_free(bytes);
    mem_free(cost);
    candidates_fini(&c);
    object_close(o);
    object_close(rank);
}

/* Lowest KL of at most `bpp` among the candidates that are not flips, and how many there are. */
static double best_within(const struct candidates *c, double bpp, size_t *n)
{
    double best = INFINITY;
    *n = 0;
    for (size_t i = 0; i < c->n; i++) {
        if (strcmp(c->list[i].origin, "flip") == 0)
            continue;
        ++*n;
        if (c->list[i].bpp <= bpp && c->list[i].kl_mean < best)
            best = c->list[i].kl_mean;
    }
    return best;
}

/* The same from as many points of the surrogate as it was, all of them near `bpp`: more than a search that does not
 * learn could do, since it would have to find the place first. */
static double best_unlearned(struct object *rank, double bpp, size_t n)
{
    struct err e;
    struct candidates all, near;
    double best;
    struct object *o = run_fine(&node_frontier, "unlearned", (struct setting[]){{"surrogate", rank, NULL},
                                                                                {"count", NULL, "5000"}, {0}});
    struct object *rows = measure_object(o, "unlearned");
    assert_ok(candidates_read(&all, rows, &e), e);
    assert_true(all.n > 2 * n);
    made_table(&world.made, &near);
    for (size_t k = 0; k < n; k++) {
        struct candidate *nearest = NULL;
        for (size_t i = 0; i < all.n; i++)
            if (!isnan(all.list[i].bpp) &&
                (!nearest || fabs(all.list[i].bpp - bpp) < fabs(nearest->bpp - bpp)))
                nearest = &all.list[i];
        assert_non_null(candidates_add(&near, &world.made.menu, nearest->assignment, "near", -1, &e));
        nearest->bpp = NAN; /* taken */
    }
    made_measure(&world.made, &near, 0);
    best = best_within(&near, bpp, &n);
    candidates_fini(&near);
    candidates_fini(&all);
    object_close(rows);
    object_close(o);
    return best;
}

/* Three rounds: what is proposed is new, and at the size of the knee the rounds find what the surrogate as it was does
 * not. */
static void frontier_learns_and_never_repeats_itself(void **state)
{
    (void)state;
    struct err e;
    struct object *rank = rank_object(), *rows[3];
    struct candidates seen[3]; /* after each round */
    struct setting chosen_from[4] = {{0}};
    for (int round = 0; round < 3; round++) {
        struct setting settings[8] = {{"surrogate", rank, NULL}, {"neighbours", NULL, "6"}};
        char name[16];
        struct candidates c;
        made_table(&world.made, &seen[round]);
        for (int i = 0; i < round; i++)
            settings[2 + i] = (struct setting){"rows", rows[i], NULL};
        for (size_t i = 0; round > 0 && i < seen[round - 1].n; i++)
            assert_non_null(candidates_add(&seen[round], &world.made.menu, seen[round - 1].list[i].assignment,
                                           seen[round - 1].list[i].origin, -1, &e));
        snprintf(name, sizeof name, "frontier %d", round);
        struct object *o = run_fine(&node_frontier, name, settings);
        assert_ok(candidates_read(&c, o, &e), e);
        assert_true(c.n > 0);
        size_t flips = 0;
        for (size_t i = 0; i < c.n; i++) {
            assert_int_equal(candidates_find(&seen[round], c.list[i].assignment), -1);
            assert_non_null(candidates_add(&seen[round], &world.made.menu, c.list[i].assignment, c.list[i].origin, -1,
                                           &e));
            flips += strcmp(c.list[i].origin, "flip") == 0;
        }
        assert_int_equal(flips, round ? 6 : 0);
        candidates_fini(&c);
        made_measure(&world.made, &seen[round], 0);
        rows[round] = measure_object(o, name);
        chosen_from[round] = (struct setting){"rows", rows[round], NULL};
        object_close(o);
    }
    struct object *select = run_fine(&node_select, "after the rounds", chosen_from);
    double bpp = seen[2].list[load_one(select, "chosen")].bpp;
    size_t n;
    double first = best_within(&seen[0], bpp, &n), last = best_within(&seen[2], bpp, &n);
    double unlearned = best_unlearned(rank, bpp, n);
    if (!(last < 0.95 * first && last < 0.95 * unlearned))
        fail_msg("at %.4f bpp KL %g after one round, %g after three; %g without learning", bpp, first, last, unlearned);
    for (int i = 0; i < 3; i++) {
        object_close(rows[i]);
        candidates_fini(&seen[i]);
    }
    object_close(select);
    object_close(rank);
}

static void frontier_with_nothing_left_proposes_an_empty_table(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct object *rank = rank_object();
    struct object *first = run_fine(&node_frontier, "few", (struct setting[]){{"surrogate", rank, NULL},
                                                                              {"count", NULL, "0"}, {0}});
    struct object *rows = measure_object(first, "few rows");
    struct object *o = run_fine(&node_frontier, "none", (struct setting[]){{"surrogate", rank, NULL},
                                                                           {"rows", rows, NULL},
                                                                           {"count", NULL, "0"}, {0}});
    assert_ok(candidates_read(&c, o, &e), e);
    assert_int_equal(c.n, 0);
    struct object *measured = measure_object(o, "none measured"); /* and rows without a row are read */
    struct object *again = run_fine(&node_frontier, "again", (struct setting[]){{"surrogate", rank, NULL},
        {"rows", measured, NULL}, {"count", NULL, "2"}, {0}});
    candidates_fini(&c);
    object_close(again);
    object_close(measured);
    object_close(o);
    object_close(rows);
    object_close(first);
    object_close(rank);
}

static struct object *measured_rows(void)
{
    struct object *rank = rank_object();
    struct object *o = run_fine(&node_frontier, "frontier", (struct setting[]){{"surrogate", rank, NULL}, {0}});
    struct object *rows = measure_object(o, "measured");
    object_close(o);
    object_close(rank);
    return rows;
}

static void select_finds_frontier_and_knee(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint64_t n, n_dropped;
    struct object *rows = measured_rows();
    struct object *o = run_fine(&node_select, "select", (struct setting[]){{"rows", rows, NULL}, {0}});
    assert_ok(candidates_read(&c, o, &e), e);
    uint32_t *frontier = load(o, "frontier", DTYPE_U32, &n), knee = load_one(o, "knee/id");
    int32_t *by = load(o, "dominated_by", DTYPE_I32, NULL);
    uint32_t *dropped = load(o, "leave_one_out/dropped", DTYPE_U32, &n_dropped);
    double *mass = load(o, "knee/mass", DTYPE_F64, NULL), *low = load(o, "interval/low", DTYPE_F64, NULL),
           *high = load(o, "interval/high", DTYPE_F64, NULL);
    bool is_on = false;
    for (uint64_t i = 0; i < n; i++) {
        is_on |= frontier[i] == knee;
        assert_int_equal(by[frontier[i]], -1);
    }
    for (size_t i = 0; i < c.n; i++) {
        const struct candidate *x = &c.list[i];
        if (by[i] >= 0)
            assert_true(c.list[by[i]].bytes <= x->bytes && c.list[by[i]].kl_mean <= x->kl_mean);
        assert_true(low[i] <= x->kl_mean && x->kl_mean <= high[i]);
    }
    assert_true(is_on);
    assert_int_equal(load_one(o, "chosen"), knee);
    assert_int_equal(n_dropped, n);
    assert_memory_equal(dropped, frontier, n * sizeof *dropped);
    assert_true(*mass == 1); /* documents differ by a factor that all candidates share */
    mem_free(high);
    mem_free(low);
    mem_free(mass);
    mem_free(dropped);
    mem_free(by);
    mem_free(frontier);
    candidates_fini(&c);
    object_close(o);
    object_close(rows);
}

static void select_is_the_same_twice_and_other_with_another_seed_only_in_mass(void **state)
{
    (void)state;
    struct object *rows = measured_rows();
    struct setting settings[2][3] = {{{"rows", rows, NULL}, {"seed", NULL, "1"}},
                                     {{"rows", rows, NULL}, {"seed", NULL, "2"}}};
    struct object *a = run_fine(&node_select, "seed 1", settings[0]);
    struct object *b = run_fine(&node_select, "seed 2", settings[1]);
    assert_int_equal(load_one(a, "chosen"), load_one(b, "chosen"));
    assert_int_equal(load_one(a, "knee/id"), load_one(b, "knee/id"));
    object_close(a);
    object_close(b);
    object_close(rows);
}

/* Rounding gives the reference itself a KL of 1e-10 or 1e-7: that must not decide what ships. */
static void the_knee_does_not_hang_on_the_noise_of_a_lossless_candidate(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint32_t knees[2][3];
    struct object *rows = measured_rows();
    uint8_t full[UNITS];
    assert_ok(candidates_read(&c, rows, &e), e);
    menu_uniform(&world.made.menu, MADE_FORMATS - 1, full);
    struct candidate *lossless = &c.list[candidates_find(&c, full)];
    assert_true(lossless->kl_mean == 0);
    static const double floors[] = {0, 5e-8, 1e-10};
    for (int i = 0; i < 3; i++) {
        char name[16];
        lossless->kl_mean = floors[i];
        for (uint32_t w = 0; w < c.n_windows; w++)
            lossless->kl_window[w] = floors[i];
        snprintf(name, sizeof name, "floor %d", i);
        struct object *noisy = made_object(&world.made, &c, world.store, name);
        for (int k = 0; k < 2; k++) {
            struct setting settings[] = {{"rows", noisy, NULL}, {"scale", NULL, "log"}, {0}};
            if (k == 0)
                settings[1] = (struct setting){0}; /* as it is by default */
            struct object *o = run_fine(&node_select, name, settings);
            knees[k][i] = load_one(o, "chosen");
            object_close(o);
        }
        object_close(noisy);
    }
    assert_true(knees[0][0] == knees[0][1] && knees[0][0] == knees[0][2]);
    assert_true(knees[1][0] != knees[1][1] || knees[1][0] != knees[1][2]); /* else the rows would prove nothing */
    candidates_fini(&c);
    object_close(rows);
}

/* What `frontier` flips is what `select` would choose, on either scale. */
static void frontier_searches_around_the_knee_that_select_finds(void **state)
{
    (void)state;
    struct err e;
    struct object *rows = measured_rows(), *rank = rank_object();
    static const char *const scales[] = {"linear", "log"};
    uint32_t knees[2];
    struct candidates known, proposed;
    assert_ok(candidates_read(&known, rows, &e), e);
    for (int i = 0; i < 2; i++) {
        struct object *select = run_fine(&node_select, "select", (struct setting[]){{"rows", rows, NULL},
            {"scale", NULL, scales[i]}, {0}});
        struct object *o = run_fine(&node_frontier, "frontier", (struct setting[]){{"rows", rows, NULL},
            {"surrogate", rank, NULL}, {"scale", NULL, scales[i]}, {"neighbours", NULL, "5"}, {"count", NULL, "0"},
            {0}});
        knees[i] = load_one(select, "chosen");
        assert_ok(candidates_read(&proposed, o, &e), e);
        assert_int_equal(proposed.n, 5);
        for (size_t k = 0; k < 5; k++) {
            int changed = 0;
            for (int u = 0; u < UNITS; u++)
                changed += proposed.list[k].assignment[u] != known.list[knees[i]].assignment[u];
            assert_int_equal(changed, 1);
        }
        candidates_fini(&proposed);
        object_close(o);
        object_close(select);
    }
    assert_int_not_equal(knees[0], knees[1]);
    candidates_fini(&known);
    object_close(rank);
    object_close(rows);
}

static void select_keeps_budgets_and_ceilings(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct object *rows = measured_rows(), *o;
    assert_ok(candidates_read(&c, rows, &e), e);
    static const char *const bpps[] = {"5", "7.5", "9", "16"};
    for (size_t i = 0; i < COUNT(bpps); i++) {
        o = run_fine(&node_select, bpps[i], (struct setting[]){{"rows", rows, NULL}, {"bpp", NULL, bpps[i]}, {0}});
        const struct candidate *chosen = &c.list[load_one(o, "chosen")];
        assert_true(chosen->bpp <= atof(bpps[i]));
        for (size_t j = 0; j < c.n; j++)
            if (c.list[j].bpp <= atof(bpps[i]))
                assert_true(c.list[j].kl_mean >= chosen->kl_mean);
        object_close(o);
    }
    static const char *const kls[] = {"0.15", "0.05", "0.01"};
    for (size_t i = 0; i < COUNT(kls); i++) {
        o = run_fine(&node_select, kls[i], (struct setting[]){{"rows", rows, NULL}, {"kl", NULL, kls[i]}, {0}});
        const struct candidate *chosen = &c.list[load_one(o, "chosen")];
        assert_true(chosen->kl_mean <= atof(kls[i]));
        for (size_t j = 0; j < c.n; j++)
            if (c.list[j].kl_mean <= atof(kls[i]))
                assert_true(c.list[j].bytes >= chosen->bytes);
        object_close(o);
    }
    assert_err(run_node(&node_select, "too small", (struct setting[]){{"rows", rows, NULL}, {"budget", NULL, "1000"},
                                                                     {0}}, &o, &e), e, ERR_INPUT,
               "no measured candidate has at most 1000 bytes");
    assert_err(run_node(&node_select, "both", (struct setting[]){{"rows", rows, NULL}, {"bpp", NULL, "5"},
                                                                {"kl", NULL, "0.001"}, {0}}, &o, &e), e, ERR_INPUT,
               "and KL at most 0.001: the frontier goes from");
    candidates_fini(&c);
    object_close(rows);
}

static void select_needs_a_complete_row(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    struct object *o;
    uint64_t seed = 1;
    made_table(&world.made, &c);
    made_random(&world.made, &c, &seed);
    struct object *rows = made_object(&world.made, &c, world.store, "unmeasured");
    assert_err(run_node(&node_select, "select", (struct setting[]){{"rows", rows, NULL}, {0}}, &o, &e), e, ERR_INPUT,
               "none of the 1 candidates was measured on all windows");
    object_close(rows);
    candidates_fini(&c);
}

/* A format index means nothing under another list of formats, so such a table is refused wherever it is connected. */
static void every_node_refuses_candidates_of_other_renderings(void **state)
{
    (void)state;
    struct made other = world.made;
    struct candidates c;
    struct err e;
    char *names[MADE_FORMATS];
    uint64_t seed = 4;
    for (int f = 0; f < MADE_FORMATS; f++)
        names[f] = world.made.menu.format_names[(f + 1) % MADE_FORMATS];
    other.menu.format_names = names;
    made_table(&world.made, &c);
    made_random(&world.made, &c, &seed);
    made_measure(&world.made, &c, 0);
    struct object *wrong = made_object(&other, &c, world.store, "other formats"), *rank = rank_object(), *o;
    static const struct {
        const struct node_class *class;
        const char *port;
    } nodes[] = {{&node_rank, "rows"}, {&node_frontier, "rows"}, {&node_measure, "candidates"}, {&node_select, "rows"}};
    for (size_t i = 0; i < COUNT(nodes); i++) {
        struct setting settings[] = {{nodes[i].port, wrong, NULL}, {"surrogate", rank, NULL}, {0}};
        assert_err(run_node(nodes[i].class, "other", settings, &o, &e), e, ERR_INPUT,
                   "formats/name[0] is 'small', 'tiny' was expected: it was made from other renderings");
    }
    object_close(rank);
    object_close(wrong);
    candidates_fini(&c);
}

static void polish_lowers_kl_within_the_size(void **state)
{
    (void)state;
    struct err e;
    struct candidates c;
    uint64_t n;
    struct object *rows = measured_rows();
    struct object *select = run_fine(&node_select, "select", (struct setting[]){{"rows", rows, NULL},
                                                                                {"bpp", NULL, "8"}, {0}});
    world.measured = 0;
    struct object *o = run_fine(&node_polish, "polish", (struct setting[]){{"select", select, NULL},
                                                                           {"moves", NULL, "100"}, {0}});
    assert_ok(candidates_read(&c, o, &e), e);
    uint32_t chosen = load_one(o, "chosen");
    uint8_t *accepted = load(o, "moves/accepted", DTYPE_U8, &n);
    double *before = load(o, "moves/kl_before", DTYPE_F64, NULL), *after = load(o, "moves/kl_after", DTYPE_F64, NULL);
    assert_true(n <= 100 && world.measured == n + 1 && c.n == n + 1);
    size_t taken = 0;
    for (uint64_t i = 0; i < n; i++) {
        taken += accepted[i];
        assert_true(!accepted[i] || after[i] < before[i]);
    }
    assert_true(taken > 0);
    assert_true(c.list[chosen].kl_mean < c.list[0].kl_mean && c.list[chosen].bytes <= c.list[0].bytes);
    for (size_t i = 0; i < c.n; i++)
        assert_true(c.list[i].kl_mean >= c.list[chosen].kl_mean);
    mem_free(after);
    mem_free(before);
    mem_free(accepted);
    /* Its rows go back into select, which cannot choose worse. */
    struct object *again = run_fine(&node_select, "again", (struct setting[]){{"rows", rows, NULL}, {"rows", o, NULL},
                                                                              {"bpp", NULL, "8"}, {0}});
    struct candidates all;
    assert_ok(candidates_read(&all, again, &e), e);
    assert_true(all.list[load_one(again, "chosen")].kl_mean <= c.list[chosen].kl_mean);
    candidates_fini(&all);
    object_close(again);
    object_close(o);
    /* Without moves it is the start. */
    o = run_fine(&node_polish, "still", (struct setting[]){{"select", select, NULL}, {"moves", NULL, "0"}, {0}});
    assert_int_equal(load_one(o, "chosen"), 0);
    object_close(o);
    candidates_fini(&c);
    object_close(select);
    object_close(rows);
}

/* The units that a descent from `select` changes, move by move. */
static int32_t *polish_moves(struct object *select, uint64_t *n)
{
    struct object *o = run_fine(&node_polish, "polish", (struct setting[]){{"select", select, NULL},
                                                                           {"moves", NULL, "24"}, {0}});
    int32_t *moves = load(o, "moves/unit", DTYPE_I32, n);
    object_close(o);
    return moves;
}

/* Rows of another context say nothing of this one's KL: they must not change which moves are tried. */
static void polish_learns_only_from_rows_of_its_context(void **state)
{
    (void)state;
    struct err e;
    struct candidates c, start;
    uint64_t n[3];
    int32_t *moves[3];
    struct object *rows = measured_rows(), *select[3];
    assert_ok(candidates_read(&c, rows, &e), e);
    struct setting settings[] = {{"rows", rows, NULL}, {"bpp", NULL, "8"}, {0}};
    select[0] = run_fine(&node_select, "same context", settings);
    strcpy(c.context, "another context");
    settings[0].object = made_object(&world.made, &c, world.store, "another context");
    select[1] = run_fine(&node_select, "another context", settings);
    object_close(settings[0].object);
    made_table(&world.made, &start);
    assert_non_null(candidates_add(&start, &world.made.menu, c.list[load_one(select[0], "chosen")].assignment, "start",
                                   -1, &e));
    made_measure(&world.made, &start, 0);
    settings[0].object = made_object(&world.made, &start, world.store, "start alone");
    select[2] = run_fine(&node_select, "start alone", settings);
    object_close(settings[0].object);
    for (int i = 0; i < 3; i++) {
        moves[i] = polish_moves(select[i], &n[i]);
        assert_int_equal(n[i], 24);
    }
    assert_memory_not_equal(moves[0], moves[1], 24 * sizeof **moves); /* the rows do matter where they may */
    assert_memory_equal(moves[1], moves[2], 24 * sizeof **moves);
    for (int i = 0; i < 3; i++) {
        mem_free(moves[i]);
        object_close(select[i]);
    }
    candidates_fini(&start);
    candidates_fini(&c);
    object_close(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rank_orders_formats_by_their_loss),
        cmocka_unit_test(rank_takes_scales_from_units_that_were_measured_alone),
        cmocka_unit_test(frontier_proposes_uniforms_and_an_even_spread),
        cmocka_unit_test(frontier_learns_and_never_repeats_itself),
        cmocka_unit_test(frontier_with_nothing_left_proposes_an_empty_table),
        cmocka_unit_test(select_finds_frontier_and_knee),
        cmocka_unit_test(select_is_the_same_twice_and_other_with_another_seed_only_in_mass),
        cmocka_unit_test(the_knee_does_not_hang_on_the_noise_of_a_lossless_candidate),
        cmocka_unit_test(frontier_searches_around_the_knee_that_select_finds),
        cmocka_unit_test(select_keeps_budgets_and_ceilings),
        cmocka_unit_test(select_needs_a_complete_row),
        cmocka_unit_test(every_node_refuses_candidates_of_other_renderings),
        cmocka_unit_test(polish_lowers_kl_within_the_size),
        cmocka_unit_test(polish_learns_only_from_rows_of_its_context),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
