/* The node type `model` over a real store: its tables, its digests, and what it refuses. */
#include "nodes/nodes.h"
#include "tests/nodes/fake_node.h"
#include "tests/nodes/model/recipe.h"

struct world {
    struct recipe recipe;
    struct store *store;
    char store_path[300];
    const char *head; /* the parameter; NULL: its default */
};

#define UNTIED "base stories260k\nconfig tie_word_embeddings false\nadd lm_head.weight BF16 [512, 64]"

static void world_open(struct world *w, const char *commands)
{
    struct err e = {0};
    *w = (struct world){0};
    check_dir_make(w->store_path);
    assert_ok(store_open(&w->store, w->store_path, &e), e);
    recipe_init(&w->recipe);
    recipe_do(&w->recipe, commands);
}

static void world_close(struct world *w)
{
    store_close(w->store);
    check_dir_remove(w->store_path);
    recipe_fini(&w->recipe);
}

/* NULL with *e filled when it fails. `seed` gives the key. */
static struct object *run_node(struct world *w, const char *seed, struct err *e)
{
    struct node n;
    fake_node_init(&n, &node_model, w->store, seed);
    fake_node_set(&n, "path", w->recipe.path);
    if (w->head)
        fake_node_set(&n, "head", w->head);
    struct object *o = fake_node_run(&n, e);
    fake_node_fini(&n);
    return o;
}

static struct object *must_run(struct world *w, const char *seed)
{
    struct err e = {0};
    struct object *o = run_node(w, seed, &e);
    if (!o)
        fail_msg("%s", e.text);
    return o;
}

static int64_t attribute(const struct object *o, const char *name)
{
    int64_t x = -1;
    if (!object_int(o, name, &x))
        fail_msg("there is no attribute %s", name);
    return x;
}

static void its_tables_are_those_of_the_model(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    struct model *m;
    world_open(&w, "base stories260k");
    struct object *o = must_run(&w, "model");
    assert_ok(model_open(&m, w.recipe.path, &e), e);
    const char *type;
    assert_true(object_text(o, "model_type", &type));
    assert_string_equal(type, "llama");
    assert_int_equal(attribute(o, "hidden"), 64);
    assert_int_equal(attribute(o, "layers"), 5);
    assert_int_equal(attribute(o, "vocab"), 512);
    assert_int_equal(attribute(o, "n_parameters"), 260032);

    char **units, **matrices;
    uint64_t n, *parameters;
    int32_t *layers, *unit;
    int64_t *unit_rows, *unit_columns, *rows, *columns;
    assert_ok(object_read_strings(o, "units/name", &units, &n, &e), e);
    assert_int_equal(n, m->n_units);
    assert_ok(object_load(o, "units/layer", DTYPE_I32, &layers, NULL, &e), e);
    assert_ok(object_load(o, "units/parameters", DTYPE_U64, &parameters, NULL, &e), e);
    assert_ok(object_load(o, "units/rows", DTYPE_I64, &unit_rows, NULL, &e), e);
    assert_ok(object_load(o, "units/columns", DTYPE_I64, &unit_columns, NULL, &e), e);
    for (int u = 0; u < m->n_units; u++) {
        assert_string_equal(units[u], m->units[u].name);
        assert_int_equal(layers[u], m->units[u].layer);
        assert_int_equal(parameters[u], m->units[u].parameters);
        assert_int_equal(unit_rows[u], m->units[u].n);
        assert_int_equal(unit_columns[u], m->units[u].k);
    }
    assert_ok(object_read_strings(o, "matrices/name", &matrices, &n, &e), e);
    assert_int_equal(n, m->n_matrices);
    assert_ok(object_load(o, "matrices/unit", DTYPE_I32, &unit, NULL, &e), e);
    assert_ok(object_load(o, "matrices/rows", DTYPE_I64, &rows, NULL, &e), e);
    assert_ok(object_load(o, "matrices/columns", DTYPE_I64, &columns, NULL, &e), e);
    for (int i = 0; i < m->n_matrices; i++) {
        assert_string_equal(matrices[i], m->matrices[i].name);
        assert_int_equal(unit[i], m->matrices[i].unit);
        assert_int_equal(rows[i], m->matrices[i].n);
        assert_int_equal(columns[i], m->matrices[i].k);
    }
    void *const all[] = {units, layers, parameters, unit_rows, unit_columns, matrices, unit, rows, columns};
    for (size_t i = 0; i < COUNT(all); i++)
        mem_free(all[i]);
    model_close(m);
    object_close(o);
    world_close(&w);
}

/* A tensor of more than one piece (8 MiB) is there, too. */
static void digests_are_those_of_the_bytes(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    struct safetensors *s = NULL;
    char **names, **dtypes, **digests;
    uint64_t n;
    world_open(&w, "base stories260k\nadd extra.large BF16 [5, 1048577]\npoke extra.large 9000000 803f\n"
                   "add extra.empty F32 [0, 3]\nadd extra.codes U8 [3]\npoke extra.codes 0 ffffff");
    struct object *o = must_run(&w, "model");
    assert_ok(safetensors_open(&s, w.recipe.path, &e), e);
    assert_ok(object_read_strings(o, "tensors/name", &names, &n, &e), e);
    assert_int_equal(n, s->n_tensors);
    assert_ok(object_read_strings(o, "tensors/dtype", &dtypes, &n, &e), e);
    assert_ok(object_read_strings(o, "tensors/digest", &digests, &n, &e), e);
    for (size_t i = 0; i < s->n_tensors; i++) {
        const struct st_tensor *t = &s->tensors[i];
        unsigned char *bytes;
        struct key k;
        char text[KEY_TEXT];
        assert_ok(mem_raw(&bytes, t->bytes, &e) && safetensors_read(s, t, 0, t->bytes, bytes, &e), e);
        assert_ok(key_of_bytes(bytes, t->bytes, &k, &e), e);
        assert_string_equal(names[i], t->name);
        assert_string_equal(dtypes[i], dtype_info(t->dtype)->name);
        assert_string_equal(digests[i], key_text(&k, text));
        mem_free(bytes);
    }
    mem_free(names);
    mem_free(dtypes);
    mem_free(digests);
    safetensors_close(s);
    object_close(o);
    world_close(&w);
}

/* The file of a result, for comparison by bytes. */
static char *object_bytes(const struct object *o, size_t *n)
{
    char *bytes = check_read(object_path(o), n);
    assert_non_null(bytes);
    return bytes;
}

static void how_it_is_cut_into_files_does_not_show(void **state)
{
    (void)state;
    struct world whole, cut;
    size_t a = 0, b = 0;
    world_open(&whole, "base babyllama-1m");
    world_open(&cut, "base babyllama-1m\nshard 3");
    struct object *x = must_run(&whole, "model"), *y = must_run(&cut, "model");
    char *p = object_bytes(x, &a), *q = object_bytes(y, &b);
    assert_int_equal(a, b);
    assert_memory_equal(p, q, a);
    free(p);
    free(q);
    object_close(x);
    object_close(y);
    world_close(&whole);
    world_close(&cut);
}

static void packed_models_are_taken(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, "base packed");
    struct object *o = must_run(&w, "model");
    assert_int_equal(attribute(o, "n_parameters"), 260032);
    object_close(o);
    world_close(&w);
}

static void the_object_says_whether_the_head_is_a_unit(void **state)
{
    (void)state;
    static const struct { const char *commands, *head; uint64_t units; } cases[] = {
        {"base stories260k", "plain", 20}, {UNTIED, "plain", 20}, {UNTIED, "unit", 21}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct world w;
        struct err e;
        const char *head;
        char **names;
        uint64_t n;
        world_open(&w, cases[i].commands);
        w.head = cases[i].head;
        struct object *o = must_run(&w, "model");
        assert_true(object_text(o, "head", &head));
        assert_string_equal(head, cases[i].head);
        assert_ok(object_read_strings(o, "units/name", &names, &n, &e), e);
        assert_int_equal(n, cases[i].units);
        assert_string_equal(names[n - 1], n == 21 ? "lm_head" : "model.layers.4.mlp.down_proj");
        mem_free(names);
        object_close(o);
        world_close(&w);
    }
}

static void a_tied_head_cannot_be_a_unit(void **state)
{
    (void)state;
    struct world w;
    struct err e;
    world_open(&w, "base stories260k");
    w.head = "unit";
    assert_err(run_node(&w, "model", &e), e, ERR_INPUT, "it cannot be a unit");
    world_close(&w);
}

static void every_tensor_must_be_finite(void **state)
{
    (void)state;
    static const struct { const char *commands, *message; } cases[] = {
        {"base stories260k\npoke model.layers.2.self_attn.o_proj.weight 260 c07f",
         "tensor 'model.layers.2.self_attn.o_proj.weight' holds NaN at row 2, column 2"},
        {"base stories260k\npoke model.layers.2.self_attn.o_proj.weight 260 80ff",
         "tensor 'model.layers.2.self_attn.o_proj.weight' holds infinity at row 2, column 2"},
        {"base stories260k\npoke model.norm.weight 126 81ff",
         "tensor 'model.norm.weight' holds NaN at row 0, column 63"},
        {"base stories260k\nadd extra F32 [2, 3]\npoke extra 20 0000807f",
         "tensor 'extra' holds infinity at row 1, column 2"},
        {"base stories260k\nadd extra F16 [2, 3]\npoke extra 6 01fc", "tensor 'extra' holds NaN at row 1, column 0"},
        {"base stories260k\nadd extra F64 []\npoke extra 0 000000000000f07f",
         "tensor 'extra' holds infinity at row 0, column 0"},
        {"base stories260k\nadd extra F64 [2]\npoke extra 8 010000000000f0ff",
         "tensor 'extra' holds NaN at row 0, column 1"},
        {"base stories260k\nadd extra F8_E4M3 [2, 2]\npoke extra 1 ff", "tensor 'extra' holds NaN at row 0, column 1"},
        {"base stories260k\nadd extra F8_E8M0 [2, 2]\npoke extra 2 ff", "tensor 'extra' holds NaN at row 1, column 0"},
        {"base stories260k\nadd extra BF16 [5, 1048577]\npoke extra 9000000 807f",
         "tensor 'extra' holds infinity at row 4, column 305692"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct world w;
        struct err e;
        world_open(&w, cases[i].commands);
        assert_err(run_node(&w, "model", &e), e, ERR_NUMERIC, cases[i].message);
        world_close(&w);
    }
}

static void a_broken_directory_is_refused(void **state)
{
    (void)state;
    struct world w;
    struct err e;
    world_open(&w, "base stories260k\ntruncate model.safetensors 300000");
    assert_err(run_node(&w, "model", &e), e, ERR_INPUT, "the file is truncated");
    world_close(&w);
}

static void the_largest_finite_values_pass(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, "base stories260k\nadd a F32 [1]\npoke a 0 ffff7f7f\nadd b BF16 [1]\npoke b 0 7fff\nadd c F16 [1]\n"
                   "poke c 0 ffff\npoke c 0 ff7b\nadd d F8_E4M3 [2]\npoke d 0 7efe\nadd e F64 [1]\n"
                   "poke e 0 ffffffffffffefff");
    object_close(must_run(&w, "model"));
    world_close(&w);
}

static void what_it_needs_is_told_before_it_runs(void **state)
{
    (void)state;
    struct world w;
    struct node n;
    struct needs needs = {0};
    struct err e = {0};
    world_open(&w, "base stories260k");
    fake_node_init(&n, &node_model, w.store, "model");
    fake_node_set(&n, "path", w.recipe.path);
    assert_ok(node_model.needs(&n, &needs, &e), e);
    assert_int_equal(needs.cores, 1);
    assert_true(needs.memory >= (8 << 20) && needs.memory < (64 << 20));
    fake_node_fini(&n);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(its_tables_are_those_of_the_model),
        cmocka_unit_test(digests_are_those_of_the_bytes),
        cmocka_unit_test(how_it_is_cut_into_files_does_not_show),
        cmocka_unit_test(packed_models_are_taken),
        cmocka_unit_test(the_object_says_whether_the_head_is_a_unit),
        cmocka_unit_test(a_tied_head_cannot_be_a_unit),
        cmocka_unit_test(every_tensor_must_be_finite),
        cmocka_unit_test(a_broken_directory_is_refused),
        cmocka_unit_test(the_largest_finite_values_pass),
        cmocka_unit_test(what_it_needs_is_told_before_it_runs),
    };
    return cmocka_run_group_tests_name("node model", tests, NULL, NULL);
}
