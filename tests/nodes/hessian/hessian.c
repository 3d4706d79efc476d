/* The node type hessian: its moments are sums over real tokens only, and a killed run goes on to the same bytes. The
 * sums are made again here, each window alone at its own length, so that there is no padding to leave out. */
#include <math.h>

#include "nodes/model/forward.h"
#include "tests/check.h"
#include "tests/nodes/fake_node.h"

extern const struct node_class node_hessian;

#define WINDOWS 3
#define WINDOW 24
/* Of the geometric mean of the two diagonals: 24 products in one chain of f32 are off by at most 24 * 2^-24. */
#define TOLERANCE 1.5e-6

struct world {
    char folder[256], source[512];
    struct store *store;
    struct model *model;
    struct token_set tokens;
    struct object *info, *corpus;
};

/* A pair of worlds shares nothing but its keys. With a head, that is a unit. */
static void open_world(struct world *w, bool with_head)
{
    struct err e;
    char path[600];
    *w = (struct world){0};
    check_dir_make(w->folder);
    snprintf(w->source, sizeof w->source, "%s/data/models/stories260k", check_root());
    if (with_head) {
        snprintf(path, sizeof path, "%s/untied", w->folder);
        fake_untied(w->source, path);
        snprintf(w->source, sizeof w->source, "%.500s", path);
    }
    snprintf(path, sizeof path, "%s/store", w->folder);
    assert_ok(store_open(&w->store, path, &e), e);
    assert_ok(model_open_as(&w->model, w->source, with_head ? HEAD_UNIT : HEAD_AS_STORED, &e), e);
    fake_tokens(&w->tokens, WINDOWS, WINDOW, w->model->config.vocab);
    w->info = with_head ? fake_model_with_head(w->store) : fake_model(w->store, w->source);
    w->corpus = fake_corpus(w->store, "calibration", &w->tokens);
}

static void world_open(struct world *w) { open_world(w, false); }

static void world_close(struct world *w)
{
    object_close(w->corpus);
    object_close(w->info);
    tokens_fini(&w->tokens);
    model_close(w->model);
    store_close(w->store);
    check_dir_remove(w->folder);
}

static void make_node(struct world *w, struct node *n)
{
    fake_node_init(n, &node_hessian, w->store, "hessian");
    fake_node_connect(n, "model", "model", w->info, w->source);
    fake_node_connect_output(n, "tokens", "corpus", "calibration", w->corpus);
}

static struct object *run(struct world *w, const char *held_out)
{
    struct err e;
    struct node n;
    make_node(w, &n);
    fake_node_set(&n, "held_out", held_out);
    struct object *o = fake_node_run(&n, &e);
    if (!o)
        fail_msg("%s", e.text);
    fake_node_fini(&n);
    return o;
}

/* The moment and the maximum of a unit, from its layer's part. */
static float *read_unit(struct world *w, struct object *o, int unit, const char *moment_name, float *amax)
{
    struct err e;
    struct object *part;
    char name[600];
    float *moment;
    uint64_t n;
    layer_part(w->model->units[unit].layer, name);
    assert_ok(object_part(w->store, o, name, &part, &e), e);
    snprintf(name, sizeof name, "%s/%s", w->model->units[unit].name, moment_name);
    assert_ok(object_load(part, name, DTYPE_F32, &moment, &n, &e), e);
    assert_int_equal(n, w->model->units[unit].k * w->model->units[unit].k);
    snprintf(name, sizeof name, "%s/amax", w->model->units[unit].name);
    assert_ok(object_read(part, name, DTYPE_F32, 0, 1, amax, &e), e);
    object_close(part);
    return moment;
}

/* --------------------------------------------------------------------------------------------------- by brute force */

struct sums {
    struct model *model;
    double **sum; /* [unit] [k, k] */
    float *amax;  /* [unit] */
    int layer;
};

static void add_row(double *sum, float *amax, const float *x, int64_t k)
{
    for (int64_t i = 0; i < k; i++) {
        *amax = fabsf(x[i]) > *amax ? fabsf(x[i]) : *amax;
        for (int64_t j = 0; j < k; j++)
            sum[i * k + j] += (double)x[i] * (double)x[j];
    }
}

static bool observe(void *context, enum unit_role role, const struct tensor *x, struct err *e)
{
    struct sums *s = context;
    int unit = s->layer * LAYER_UNITS + (int)role;
    int64_t k = s->model->units[unit].k;
    (void)e;
    assert_int_equal(x->shape[1], k);
    for (int64_t t = 0; t < x->shape[0]; t++)
        add_row(s->sum[unit], &s->amax[unit], (const float *)x->data + t * k, k);
    return true;
}

static void add_window(struct world *w, struct queue *q, struct sums *s, uint32_t window)
{
    struct err e;
    struct forward f;
    struct tensor x = {0};
    int64_t shape[2] = {w->tokens.length[window], w->model->config.hidden};
    assert_ok(forward_open(&f, w->model, q, DTYPE_F32, w->tokens.length[window], &e), e);
    assert_ok(q->k->tensor_new(q, &x, DTYPE_F32, 2, shape, &e), e);
    assert_ok(forward_embed(&f, w->tokens.ids + window * WINDOW, &x, &e), e);
    for (s->layer = 0; s->layer < w->model->config.layers; s->layer++) {
        struct unit_weights weights[LAYER_UNITS] = {0};
        for (int u = 0; u < LAYER_UNITS; u++)
            assert_ok(weights_stored(q, w->model, s->layer * LAYER_UNITS + u, DTYPE_F32, &weights[u], &e), e);
        assert_ok(forward_layer(&f, s->layer, weights, &x, observe, s, &e), e);
        for (int u = 0; u < LAYER_UNITS; u++)
            q->k->tensor_free(q, &weights[u].panels);
    }
    if (w->model->head_unit >= 0) {
        int64_t k = w->model->config.hidden;
        assert_ok(forward_final(&f, &x, &x, &e), e);
        for (int64_t t = 0; t < x.shape[0]; t++)
            add_row(s->sum[w->model->head_unit], &s->amax[w->model->head_unit], (const float *)x.data + t * k, k);
    }
    q->k->tensor_free(q, &x);
    forward_close(&f);
}

static void assert_moment(const char *unit, const float *got, const double *sum, double tokens, int64_t k)
{
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) {
            double expected = sum[i * k + j] / tokens, scale = sqrt(sum[i * k + i] * sum[j * k + j]) / tokens;
            if (!(fabs(got[i * k + j] - expected) <= TOLERANCE * scale))
                fail_msg("%s, moment [%lld, %lld]: %.9g, expected %.9g", unit, (long long)i, (long long)j,
                         got[i * k + j], expected);
        }
}

/* ------------------------------------------------------------------------------------------------------------ tests */

/* The moment `name` of all units is the mean over the real tokens of windows [first, end), and the maximum, which is over
 * all windows, is `amax`. */
static void assert_share(struct world *w, struct object *o, const char *name, uint32_t first, uint32_t end,
                         int64_t said, float *amax)
{
    struct err e;
    struct queue q = {.k = kernels_cpu(&e), .threads = 1, .device = TENSOR_HOST};
    int units = w->model->n_units;
    struct sums s = {.model = w->model, .sum = calloc((size_t)units, sizeof *s.sum), .amax = amax};
    int64_t tokens = 0;
    float one;
    for (int u = 0; u < units; u++)
        s.sum[u] = calloc((size_t)(w->model->units[u].k * w->model->units[u].k), sizeof **s.sum);
    for (uint32_t window = first; window < end; window++) {
        add_window(w, &q, &s, window);
        tokens += w->tokens.length[window];
    }
    assert_true(tokens > 0 && tokens < (end - first) * WINDOW);
    assert_int_equal(said, tokens);
    for (int u = 0; u < units; u++) {
        float *moment = read_unit(w, o, u, name, &one);
        assert_moment(w->model->units[u].name, moment, s.sum[u], (double)tokens, w->model->units[u].k);
        mem_free(moment);
        free(s.sum[u]);
    }
    free(s.sum);
}

static void assert_maxima(struct world *w, struct object *o, const float *amax)
{
    struct err e;
    float *all, one;
    uint64_t n;
    assert_ok(object_load(o, "amax", DTYPE_F32, &all, &n, &e), e);
    assert_int_equal(n, w->model->n_units);
    for (int u = 0; u < w->model->n_units; u++) {
        mem_free(read_unit(w, o, u, "second_moment", &one));
        assert_true(one == amax[u] && all[u] == amax[u]);
    }
    mem_free(all);
}

/* Two documents, of two windows and of one: four in a hundred held out is one document, the last. */
static void moments_are_means_over_real_tokens_of_their_share(void **state)
{
    (void)state;
    struct world w;
    struct err e;
    for (int i = 0; i < 3; i++) {
        bool held = i > 0, with_head = i > 1;
        open_world(&w, with_head);
        assert_int_equal(w.model->n_units, w.model->config.layers * LAYER_UNITS + with_head);
        struct object *o = run(&w, held ? "0.04" : "0");
        float *amax = calloc((size_t)w.model->n_units, sizeof *amax);
        int64_t said[2];
        assert_ok(object_read(o, "tokens", DTYPE_I64, 0, 2, said, &e), e);
        assert_share(&w, o, "second_moment", 0, held ? 2 : 3, said[0], amax);
        if (held)
            assert_share(&w, o, "held_out_moment", 2, 3, said[1], amax);
        assert_maxima(&w, o, amax);
        free(amax);
        object_close(o);
        world_close(&w);
    }
}

/* Without the forward pass: RMSNorm of the embeddings of the real tokens. */
static void the_first_moment_is_that_of_normed_embeddings(void **state)
{
    (void)state;
    struct world w;
    struct err e;
    world_open(&w);
    struct object *o = run(&w, "0");
    int64_t k = w.model->config.hidden, vocab = w.model->config.vocab;
    float *embedding = malloc((size_t)(vocab * k) * sizeof *embedding), *norm = malloc((size_t)k * sizeof *norm);
    float *x = malloc((size_t)k * sizeof *x), ours = 0, amax;
    double *sum = calloc((size_t)(k * k), sizeof *sum);
    assert_ok(model_read_tensor(w.model, "model.embed_tokens.weight", vocab * k, embedding, &e), e);
    assert_ok(model_read_tensor(w.model, "model.layers.0.input_layernorm.weight", k, norm, &e), e);
    for (uint32_t window = 0; window < WINDOWS; window++)
        for (int32_t t = 0; t < w.tokens.length[window]; t++) {
            const float *row = embedding + w.tokens.ids[window * WINDOW + (uint32_t)t] * k;
            double squares = 0;
            for (int64_t i = 0; i < k; i++)
                squares += (double)row[i] * (double)row[i];
            double scale = 1.0 / sqrt(squares / (double)k + (double)w.model->config.eps);
            for (int64_t i = 0; i < k; i++)
                x[i] = (float)(row[i] * scale * norm[i]);
            add_row(sum, &ours, x, k);
        }
    float *moment = read_unit(&w, o, 0, "second_moment", &amax);
    double tokens = 0;
    for (uint32_t window = 0; window < WINDOWS; window++)
        tokens += w.tokens.length[window];
    for (int64_t i = 0; i < k * k; i++) {
        double scale = sqrt(sum[i / k * (k + 1)] * sum[i % k * (k + 1)]) / tokens;
        if (!(fabs(moment[i] - sum[i] / tokens) <= 1e-6 * scale)) /* x itself is f32, rounded once or twice */
            fail_msg("moment [%lld, %lld]: %.9g, expected %.9g", (long long)(i / k), (long long)(i % k), moment[i],
                     sum[i] / tokens);
    }
    assert_true(fabsf(amax - ours) <= 1e-6f * ours);
    mem_free(moment);
    free(embedding);
    free(norm);
    free(x);
    free(sum);
    object_close(o);
    world_close(&w);
}

/* Stopped after `parts` of them. */
static void assert_resumes(bool with_head, int parts)
{
    struct world a, b;
    struct err e;
    struct node n;
    size_t n_units;
    open_world(&a, with_head);
    open_world(&b, with_head);
    struct object *whole = run(&a, "0.25");
    make_node(&b, &n);
    n.stop_after = parts;
    assert_err(fake_node_run(&n, &e), e, ERR_STOPPED, "interrupted");
    fake_node_fini(&n);
    make_node(&b, &n);
    struct object *resumed = fake_node_run(&n, &e);
    assert_non_null(resumed);
    assert_int_equal(n.parts_found, parts);
    assert_int_equal(n.parts_made, b.model->config.layers + with_head - parts);
    fake_node_fini(&n);
    n_units = (size_t)a.model->n_units;
    for (size_t u = 0; u < n_units; u++) {
        float x, y;
        float *before = read_unit(&a, whole, (int)u, "held_out_moment", &x);
        float *after = read_unit(&b, resumed, (int)u, "held_out_moment", &y);
        int64_t k = a.model->units[u].k;
        assert_memory_equal(before, after, (size_t)(k * k) * sizeof *before);
        assert_true(x == y);
        mem_free(before);
        mem_free(after);
    }
    size_t p, q;
    char *one = check_read(object_path(whole), &p), *other = check_read(object_path(resumed), &q);
    assert_int_equal(p, q);
    assert_memory_equal(one, other, p);
    free(one);
    free(other);
    object_close(whole);
    object_close(resumed);
    world_close(&b);
    world_close(&a);
}

static void a_killed_run_goes_on_to_the_same_bytes(void **state)
{
    (void)state;
    assert_resumes(false, 2);
    assert_resumes(true, 5); /* all but the head's */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(moments_are_means_over_real_tokens_of_their_share),
        cmocka_unit_test(the_first_moment_is_that_of_normed_embeddings),
        cmocka_unit_test(a_killed_run_goes_on_to_the_same_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
