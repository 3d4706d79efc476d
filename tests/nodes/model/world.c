#include "tests/nodes/model/world.h"

extern const struct node_class node_quantize, node_teacher;

static struct object *run(struct world *w, const struct node_class *class, struct object *hessian)
{
    static const char *const names[] = {"nvfp4", "nvfp4_a16", "fp8", "bf16"};
    struct err e = {0};
    struct node n;
    fake_node_init(&n, class, w->store, class->name);
    n.numerics = WORLD_NUMERICS;
    model_world_connect(w, &n);
    if (hessian)
        fake_node_connect(&n, "hessian", "hessian", hessian, NULL);
    for (size_t i = 0; hessian && i < COUNT(names); i++)
        fake_node_set(&n, "formats", names[i]);
    struct object *o = fake_node_run(&n, &e);
    if (!o)
        fail_msg("%s: %s", class->name, e.text);
    fake_node_fini(&n);
    return o;
}

static void open_world(struct world *w, const char *name, bool with_head)
{
    struct err e;
    char path[600];
    *w = (struct world){0};
    check_dir_make(w->folder);
    snprintf(w->source, sizeof w->source, "%s/data/models/%s", check_root(), name);
    if (with_head) {
        snprintf(path, sizeof path, "%s/untied", w->folder);
        fake_untied(w->source, path);
        snprintf(w->source, sizeof w->source, "%.500s", path);
    }
    snprintf(path, sizeof path, "%s/store", w->folder);
    assert_ok(store_open(&w->store, path, &e), e);
    assert_ok(model_open_as(&w->model, w->source, with_head ? HEAD_UNIT : HEAD_AS_STORED, &e), e);
    fake_tokens(&w->tokens, WORLD_WINDOWS, WORLD_WINDOW, w->model->config.vocab);
    w->info = with_head ? fake_model_with_head(w->store) : fake_model(w->store, w->source);
    w->corpus = fake_corpus(w->store, "selection", &w->tokens);
    struct object *hessian = fake_hessian(w->store, w->model);
    w->renderings = run(w, &node_quantize, hessian);
    w->teacher = run(w, &node_teacher, NULL);
    object_close(hessian);
    assert_ok(menu_read(&w->menu, w->renderings, &e), e);
    assert_int_equal(w->menu.n_formats, WORLD_FORMATS);
}

void model_world_open(struct world *w, const char *name) { open_world(w, name, false); }
void model_world_open_with_head(struct world *w, const char *name) { open_world(w, name, true); }

void model_world_close(struct world *w)
{
    menu_fini(&w->menu);
    object_close(w->renderings);
    object_close(w->teacher);
    object_close(w->corpus);
    object_close(w->info);
    tokens_fini(&w->tokens);
    model_close(w->model);
    store_close(w->store);
    check_dir_remove(w->folder);
}

void model_world_connect(const struct world *w, struct node *n)
{
    for (const struct port *p = n->class->ports; p->name; p++) {
        if (strcmp(p->name, "model") == 0)
            fake_node_connect(n, p->name, "model", w->info, w->source);
        else if (strcmp(p->name, "renderings") == 0)
            fake_node_connect(n, p->name, "quantize", w->renderings, NULL);
        else if (strcmp(p->name, "teacher") == 0)
            fake_node_connect(n, p->name, "teacher", w->teacher, NULL);
        else if (strcmp(p->name, "tokens") == 0)
            fake_node_connect_output(n, p->name, "corpus", "selection", w->corpus);
    }
}

void model_world_assignment(const struct world *w, unsigned seed, uint8_t *assignment)
{
    uint32_t x = seed;
    for (int u = 0; u < w->menu.n_units; u++) {
        x = x * 1664525u + 1013904223u;
        int f = (int)(x >> 16) % WORLD_FORMATS;
        assignment[u] = (uint8_t)(w->menu.available[u * WORLD_FORMATS + f] ? f : WORLD_FP8);
    }
}
