/* The world of world.h: its store and objects, the made-up evaluator, and running a node. */
#include "tests/nodes/search/world.h"

#include "nodes/model/evaluator.h"

struct world world;

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

bool evaluator_measure_windows(struct evaluator *v, struct candidates *table, size_t first, const uint32_t *windows,
                               size_t n, struct err *e)
{
    (void)v, (void)e;
    for (size_t i = first; i < table->n; i++)
        world.measured += table->list[i].n_windows == 0;
    made_measure_windows(&world.made, table, first, windows, n);
    return true;
}

bool evaluator_needs(struct node *n, struct needs *out, struct err *e)
{
    (void)n, (void)e;
    *out = (struct needs){0};
    return true;
}

/* --------------------------------------------------------------------------------------------------- running a node */

void __wrap_node_log(struct node *n, const char *format, ...);

/* In the place of fake_node.c's, by the linker's --wrap. */
void __wrap_node_log(struct node *n, const char *format, ...)
{
    (void)n;
    size_t at = strlen(world.log);
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(world.log + at, sizeof world.log - at, format, arguments);
    va_end(arguments);
    assert_in_range(length, 0, sizeof world.log - at - 2);
    strcat(world.log, "\n");
}

int world_set_up(void **state)
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

int world_tear_down(void **state)
{
    (void)state;
    object_close(world.quantize);
    made_fini(&world.made);
    store_close(world.store);
    check_dir_remove(world.folder);
    return 0;
}

bool run_node(const struct node_class *class, const char *seed, const struct setting *settings, struct object **out,
              struct err *e)
{
    struct node n;
    char name[64]; /* a key of its own for each run: what is published under a key stays */
    snprintf(name, sizeof name, "%s %d", seed, world.n_runs++);
    world.log[0] = '\0';
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

struct object *run_fine(const struct node_class *class, const char *seed, const struct setting *settings)
{
    struct err e;
    struct object *o = NULL;
    assert_ok(run_node(class, seed, settings, &o, &e), e);
    return o;
}

struct object *measure_object(struct object *proposals, const char *seed)
{
    struct err e;
    struct candidates from, to;
    assert_ok(candidates_read(&from, proposals, &e), e);
    made_table(&world.made, &to);
    for (size_t i = 0; i < from.n; i++)
        assert_non_null(candidates_add(&to, &world.made.menu, from.list[i].assignment, from.list[i].origin,
                                       from.list[i].parent, &e));
    made_measure(&world.made, &to, 0);
    struct object *o = made_object(&world.made, &to, world.store, seed);
    candidates_fini(&from);
    candidates_fini(&to);
    return o;
}

void *load(struct object *o, const char *name, enum dtype t, uint64_t *n)
{
    struct err e;
    void *out = NULL;
    assert_ok(object_read_all(o, name, t, &out, n, &e), e);
    return out;
}

uint32_t load_one(struct object *o, const char *name)
{
    struct err e;
    uint32_t x = 0;
    assert_ok(object_read(o, name, DTYPE_U32, 0, 1, &x, &e), e);
    return x;
}

struct object *rank_object(void) { return run_fine(&node_rank, "rank", (struct setting[]){{0}}); }

struct object *measured_rows(void)
{
    struct object *rank = rank_object();
    struct object *o = run_fine(&node_frontier, "frontier", (struct setting[]){{"surrogate", rank, NULL}, {0}});
    struct object *rows = measure_object(o, "measured");
    object_close(o);
    object_close(rank);
    return rows;
}
