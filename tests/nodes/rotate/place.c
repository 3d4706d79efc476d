#include "tests/nodes/rotate/place.h"

extern const struct node_class node_rotate;

const struct made place_small = {.hidden = 64, .intermediate = 80, .layers = 2, .heads = 4, .kv_heads = 2,
                                 .head_dim = 16, .vocab = 97, .dtype = DTYPE_F32};

void place_open(struct place *p, const struct made *m)
{
    struct err e;
    char path[300];
    *p = (struct place){0};
    check_dir_make(p->folder);
    snprintf(path, sizeof path, "%s/store", p->folder);
    snprintf(p->source, sizeof p->source, "%s/source", p->folder);
    snprintf(p->target, sizeof p->target, "%s/rotated", p->folder);
    made_write(m, p->source);
    assert_ok(store_open(&p->store, path, &e), e);
    p->info = fake_model(p->store, p->source);
    fake_tokens(&p->tokens, WINDOWS, WINDOW, m->vocab);
    p->corpus = fake_corpus(p->store, "calibration", &p->tokens);
}

void place_close(struct place *p)
{
    object_close(p->info);
    object_close(p->corpus);
    tokens_fini(&p->tokens);
    store_close(p->store);
    check_dir_remove(p->folder);
}

void place_node(struct place *p, struct node *n, bool text, const char *const *settings)
{
    char seed[32];
    snprintf(seed, sizeof seed, "rotate %d", p->n_runs++);
    fake_node_init(n, &node_rotate, p->store, seed);
    n->numerics = "fp32 here";
    fake_node_connect(n, "model", "model", p->info, p->source);
    if (text)
        fake_node_connect_output(n, "tokens", "corpus", "calibration", p->corpus);
    fake_node_set(n, "directory", p->target);
    for (size_t i = 0; settings[i]; i++) {
        const char *equals = strchr(settings[i], '=');
        struct err e;
        assert_non_null(equals);
        const char *name = arena_strndup(&n->arena, settings[i], (size_t)(equals - settings[i]), &e);
        assert_non_null(name);
        fake_node_set(n, name, equals + 1);
    }
}

struct object *place_run(struct place *p, bool text, const char *const *settings)
{
    struct node n;
    struct err e;
    place_node(p, &n, text, settings);
    struct object *o = fake_node_run(&n, &e);
    if (!o)
        fail_msg("%s", e.text);
    fake_node_fini(&n);
    return o;
}

void place_fail(struct place *p, bool text, const char *const *settings, enum err_code code, const char *message)
{
    struct node n;
    struct err e;
    place_node(p, &n, text, settings);
    assert_err(fake_node_run(&n, &e) != NULL, e, code, message);
    fake_node_fini(&n);
}

struct model *place_model(const char *path)
{
    struct model *m;
    struct err e;
    assert_ok(model_open(&m, path, &e), e);
    return m;
}

double place_figure(struct object *o, const char *name)
{
    double x;
    if (!object_double(o, name, &x))
        fail_msg("there is no attribute '%s'", name);
    return x;
}

void *place_column(struct object *o, const char *name, enum dtype t, uint64_t expected)
{
    void *data;
    uint64_t n;
    struct err e;
    if (t == DTYPE_U8)
        assert_ok(object_load(o, name, t, (uint8_t **)&data, &n, &e), e);
    else
        assert_ok(object_load(o, name, t, (double **)&data, &n, &e), e);
    assert_int_equal(n, expected);
    return data;
}

/* The bytes of a tensor (mem_free); NULL if there is none. */
static unsigned char *bytes_of(const struct model *m, const char *name, uint64_t *n, enum dtype *t)
{
    unsigned char *out;
    struct err e;
    const struct st_tensor *x = safetensors_find(m->files, name);
    if (!x)
        return NULL;
    assert_ok(mem_raw(&out, x->bytes, &e) && safetensors_read(m->files, x, 0, x->bytes, out, &e), e);
    *n = x->bytes;
    *t = x->dtype;
    return out;
}

bool place_same_tensor(const struct model *a, const struct model *b, const char *name)
{
    uint64_t n, m;
    enum dtype t, u;
    unsigned char *x = bytes_of(a, name, &n, &t), *y = bytes_of(b, name, &m, &u);
    bool same = x && y && n == m && t == u && memcmp(x, y, n) == 0;
    assert_true(x && y);
    mem_free(x);
    mem_free(y);
    return same;
}

char *place_text(const char *folder, const char *name)
{
    char path[700];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return check_read(path, NULL);
}

void place_same_file(const struct place *p, const char *name)
{
    char *a = place_text(p->source, name), *b = place_text(p->target, name);
    assert_non_null(a);
    assert_non_null(b);
    assert_string_equal(a, b);
    free(a);
    free(b);
}

