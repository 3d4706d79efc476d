/* The node type rotate alone: the written model's logits are the original's, whatever is rotated; what is written; what
 * is refused; and that neither threads nor earlier runs change a byte. */
#include <math.h>

#include "nodes/model/forward.h"
#include "tests/nodes/rotate/place.h"

extern const struct node_class node_rotate;

#define KL_F32 1e-9       /* nats; f32 gives some 1e-13 */
#define LOGIT_F32 2e-5    /* share of the logits' range */
#define MEASURED_F32 2e-7 /* nats: what the kernels' figure is good to */

/* ----------------------------------------------------------------------------------------------------- the function */

/* Logits of a window [WINDOW, vocab] in f32 (mem_free). */
static float *logits_of(const struct model *m, const int32_t *ids)
{
    struct err e;
    struct forward f;
    struct queue q = {.k = kernels_cpu(&e), .threads = 1, .device = TENSOR_HOST};
    struct tensor x = {0}, y = {0};
    int64_t states[2] = {WINDOW, m->config.hidden}, shape[2] = {WINDOW, m->config.vocab};
    float *out;
    size_t bytes = (size_t)(WINDOW * m->config.vocab) * sizeof *out;
    assert_ok(forward_open(&f, m, &q, DTYPE_F32, WINDOW, &e), e);
    assert_ok(q.k->tensor_new(&q, &x, DTYPE_F32, 2, states, &e) && q.k->tensor_new(&q, &y, DTYPE_F32, 2, shape, &e), e);
    assert_ok(forward_embed(&f, ids, &x, &e), e);
    for (int layer = 0; layer < m->config.layers; layer++) {
        struct unit_weights w[LAYER_UNITS] = {0};
        for (int u = 0; u < LAYER_UNITS; u++)
            assert_ok(weights_stored(&q, m, layer * LAYER_UNITS + u, DTYPE_F32, &w[u], &e), e);
        assert_ok(forward_layer(&f, layer, w, &x, NULL, NULL, &e), e);
        for (int u = 0; u < LAYER_UNITS; u++)
            unit_weights_free(&q, &w[u]);
    }
    assert_ok(forward_final(&f, &x, &x, &e) && q.k->matmul(&q, &x, &f.head, &y, &e), e);
    assert_ok(mem_raw(&out, bytes / sizeof *out, &e) && q.k->download(&q, out, &y, bytes, &e), e);
    q.k->tensor_free(&q, &x);
    q.k->tensor_free(&q, &y);
    forward_close(&f);
    return out;
}

static double log_sum_exp(const float *x, int n)
{
    double most = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++)
        most = x[i] > most ? (double)x[i] : most;
    for (int i = 0; i < n; i++)
        sum += exp((double)x[i] - most);
    return most + log(sum);
}

/* Mean KL over all positions of all windows, in f64; *worst = the largest difference of logits as a share of their
 * range. */
static double compare(const struct place *p, double *worst)
{
    struct model *a = place_model(p->source), *b = place_model(p->target);
    double sum = 0;
    int vocab = a->config.vocab;
    *worst = 0;
    for (int w = 0; w < WINDOWS; w++) {
        float *s = logits_of(a, p->tokens.ids + w * WINDOW), *c = logits_of(b, p->tokens.ids + w * WINDOW);
        for (int t = 0; t < WINDOW; t++) {
            const float *x = s + t * vocab, *y = c + t * vocab;
            double log_x = log_sum_exp(x, vocab), log_y = log_sum_exp(y, vocab), least = x[0], most = x[0], far = 0;
            for (int i = 0; i < vocab; i++) {
                sum += exp((double)x[i] - log_x) * ((double)x[i] - log_x - ((double)y[i] - log_y));
                least = fmin(least, (double)x[i]);
                most = fmax(most, (double)x[i]);
                far = fmax(far, fabs((double)x[i] - (double)y[i]));
            }
            *worst = fmax(*worst, far / (most - least));
        }
        mem_free(s);
        mem_free(c);
    }
    model_close(a);
    model_close(b);
    return sum / (WINDOWS * WINDOW);
}

static const struct {
    const char *name;
    struct made made;
} models[] = {
    {"untied", {.hidden = 64, .intermediate = 80, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 16, .vocab = 97}},
    {"tied", {.hidden = 64, .intermediate = 80, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 16, .vocab = 97,
              .tied = true}},
    {"biases", {.hidden = 64, .intermediate = 48, .layers = 3, .heads = 8, .kv_heads = 2, .head_dim = 8, .vocab = 61,
                .biases = true}},
    {"tied, with biases, in shards", {.hidden = 48, .intermediate = 64, .layers = 2, .heads = 6, .kv_heads = 3,
                                      .head_dim = 12, .vocab = 61, .tied = true, .biases = true, .shards = 3}},
    {"odd widths, heads wider than the stream", {.hidden = 26, .intermediate = 22, .layers = 2, .heads = 3,
                                                 .kv_heads = 1, .head_dim = 10, .vocab = 53}},
    {"a key-value head for each", {.hidden = 36, .intermediate = 20, .layers = 1, .heads = 3, .kv_heads = 3,
                                   .head_dim = 6, .vocab = 40, .biases = true}},
};

static void logits_are_those_of_the_original(void **state)
{
    static const char *const modes[][2] = {{"residual=true", "heads=false"}, {"residual=false", "heads=true"},
                                           {"residual=true", "heads=true"}};
    (void)state;
    for (size_t i = 0; i < COUNT(models); i++) {
        struct place p;
        struct made made = models[i].made;
        made.dtype = DTYPE_F32;
        place_open(&p, &made);
        for (size_t k = 0; k < COUNT(modes); k++) {
            double worst;
            struct object *o = place_run(&p, true, SETTINGS(modes[k][0], modes[k][1], "untie=true", "gate=false"));
            double kl = compare(&p, &worst), told = place_figure(o, "kl");
            if (!(kl < KL_F32 && worst < LOGIT_F32))
                fail_msg("%s, %s, %s: KL %g, logits %g of their range apart", models[i].name, modes[k][0], modes[k][1],
                         kl, worst);
            if (!(told >= 0 && told < MEASURED_F32))
                fail_msg("%s, %s, %s: the node tells KL %g", models[i].name, modes[k][0], modes[k][1], told);
            object_close(o);
        }
        place_close(&p);
    }
}

static void sixteen_bits_cost_what_is_told(void **state)
{
    static const char *const dtypes[] = {"dtype=source", "dtype=bf16"};
    (void)state;
    for (size_t i = 0; i < COUNT(dtypes); i++) {
        struct place p;
        struct made made = place_small;
        double worst;
        made.dtype = i == 0 ? DTYPE_BF16 : DTYPE_F32;
        place_open(&p, &made);
        struct object *o = place_run(&p, true, SETTINGS(dtypes[i], "gate=false"));
        double told = place_figure(o, "kl"), kl = compare(&p, &worst);
        /* The node leaves out padding and the last position of a window. */
        if (!(told > 1e-7 && told < 1e-3 && kl > 0.3 * told && kl < 3 * told))
            fail_msg("%s: KL %g is told, it is %g", dtypes[i], told, kl);
        object_close(o);
        place_fail(&p, true, SETTINGS(dtypes[i], "gate=false", "tolerance=1e-8"), ERR_NUMERIC,
                  "rounding its weights costs too much. Set `dtype: f32`");
        compare(&p, &worst); /* what was there before is there still */
        place_close(&p);
    }
}

/* -------------------------------------------------------------------------------------------------- what is written */

static void only_what_is_rotated_changes(void **state)
{
    static const struct { const char *tensor; bool residual, heads; } cases[] = {
        {"model.embed_tokens.weight", true, false}, {"lm_head.weight", true, false}, {"model.norm.weight", true, false},
        {"model.layers.1.input_layernorm.weight", true, false},
        {"model.layers.1.post_attention_layernorm.weight", true, false},
        {"model.layers.1.self_attn.q_proj.weight", true, false},
        {"model.layers.1.self_attn.k_proj.weight", true, false},
        {"model.layers.1.self_attn.v_proj.weight", true, true}, {"model.layers.1.self_attn.o_proj.weight", true, true},
        {"model.layers.1.mlp.gate_proj.weight", true, false}, {"model.layers.1.mlp.up_proj.weight", true, false},
        {"model.layers.1.mlp.down_proj.weight", true, false},
        {"model.layers.1.self_attn.q_proj.bias", false, false}, {"model.layers.1.self_attn.v_proj.bias", false, true},
        {"model.layers.1.self_attn.o_proj.bias", true, false}, {"model.layers.1.mlp.gate_proj.bias", false, false},
        {"model.layers.1.mlp.down_proj.bias", true, false}, {"an.unknown.tensor", false, false}};
    struct place p;
    struct made made = place_small;
    (void)state;
    made.biases = true;
    place_open(&p, &made);
    for (int mode = 0; mode < 2; mode++) {
        struct object *o = place_run(&p, true, mode ? SETTINGS("residual=false", "gate=false")
                                                   : SETTINGS("heads=false", "gate=false"));
        struct model *a = place_model(p.source), *b = place_model(p.target);
        for (size_t i = 0; i < COUNT(cases); i++)
            if (place_same_tensor(a, b, cases[i].tensor) == (mode ? cases[i].heads : cases[i].residual))
                fail_msg("%s: %s is %s", mode ? "heads" : "residual", cases[i].tensor,
                         place_same_tensor(a, b, cases[i].tensor) ? "as it was" : "changed");
        float norm[64];
        struct err e;
        assert_ok(model_read_tensor(b, "model.layers.0.input_layernorm.weight", 64, norm, &e), e);
        for (int i = 0; i < 64; i++)
            assert_true((norm[i] == 1.0f) == (mode == 0));
        model_close(a);
        model_close(b);
        object_close(o);
    }
    place_close(&p);
}

static void assert_in_file(const char *folder, const char *name, const char *part)
{
    char *text = place_text(folder, name);
    assert_non_null(text);
    if (!strstr(text, part))
        fail_msg("%s/%s has no '%s': %s", folder, name, part, text);
    free(text);
}

static void a_tied_head_becomes_a_tensor_of_its_own(void **state)
{
    struct place p;
    struct made made = place_small;
    (void)state;
    made.tied = true;
    place_open(&p, &made);
    place_fail(&p, true, SETTINGS("gate=false"), ERR_INPUT,
              "set `untie: true` to write a head of its own (6208 more weights), or `residual: false`");
    object_close(place_run(&p, true, SETTINGS("gate=false", "untie=true")));
    struct model *b = place_model(p.target);
    assert_false(b->config.tied);
    assert_non_null(safetensors_find(b->files, "lm_head.weight"));
    model_close(b);
    assert_in_file(p.target, "config.json", "\"tie_word_embeddings\": false");
    assert_in_file(p.target, "config.json", "\"torch_dtype\": \"float32\"");
    place_same_file(&p, "tokenizer.json");
    assert_null(place_text(p.target, "notes.txt"));
    /* Without the residual stream it stays tied, and the configuration is copied. */
    object_close(place_run(&p, true, SETTINGS("gate=false", "residual=false")));
    b = place_model(p.target);
    assert_true(b->config.tied);
    assert_null(safetensors_find(b->files, "lm_head.weight"));
    model_close(b);
    place_same_file(&p, "config.json");
    place_close(&p);
}

static void one_dtype_is_for_all_weights(void **state)
{
    static const struct { enum dtype from, to; const char *setting, *config; } cases[] = {
        {DTYPE_BF16, DTYPE_F32, "dtype=f32", "\"torch_dtype\": \"float32\""},
        {DTYPE_F32, DTYPE_BF16, "dtype=bf16", "\"torch_dtype\": \"bfloat16\""}};
    (void)state;
    for (size_t c = 0; c < COUNT(cases); c++) {
        struct place p;
        struct made made = place_small;
        made.dtype = cases[c].from;
        place_open(&p, &made);
        object_close(place_run(&p, true, SETTINGS("gate=false", "residual=false", "tolerance=0.01", cases[c].setting)));
        struct model *b = place_model(p.target);
        for (size_t i = 0; i < b->files->n_tensors; i++) {
            const struct st_tensor *t = &b->files->tensors[i];
            enum dtype wanted = strcmp(t->name, "an.unknown.tensor") == 0 ? cases[c].from : cases[c].to;
            if (t->dtype != wanted)
                fail_msg("%s is %s", t->name, dtype_info(t->dtype)->name);
        }
        model_close(b);
        assert_in_file(p.target, "config.json", cases[c].config);
        place_close(&p);
    }
}

static void shards_stay_shards(void **state)
{
    struct place p;
    struct made made = place_small;
    (void)state;
    made.shards = 3;
    made.tied = true;
    place_open(&p, &made);
    object_close(place_run(&p, true, SETTINGS("gate=false", "untie=true")));
    struct model *b = place_model(p.target);
    assert_int_equal(b->files->n_files, 3);
    assert_int_equal(safetensors_find(b->files, "lm_head.weight")->file, 2);
    model_close(b);
    place_close(&p);
}

/* ----------------------------------------------------------------------------------------- the same again, refusals */

static void assert_same_digests(struct object *a, struct object *b, bool same)
{
    struct err e;
    char **x, **y;
    uint64_t n, m;
    bool equal = true;
    assert_ok(object_read_strings(a, "tensors/digest", &x, &n, &e), e);
    assert_ok(object_read_strings(b, "tensors/digest", &y, &m, &e), e);
    assert_int_equal(n, m);
    for (uint64_t i = 0; i < n; i++)
        equal = equal && strcmp(x[i], y[i]) == 0;
    mem_free(x);
    mem_free(y);
    assert_int_equal(equal, same);
}

static struct object *run_on(struct place *p, int threads, const char *seed)
{
    struct node n;
    struct err e;
    place_node(p, &n, true, SETTINGS(seed));
    n.threads = threads;
    struct object *o = fake_node_run(&n, &e);
    if (!o)
        fail_msg("%s", e.text);
    fake_node_fini(&n);
    return o;
}

static void threads_change_no_byte_and_seeds_do(void **state)
{
    static const char *const columns[] = {"gate/weight_loss", "gate/output_loss", "kl/window"};
    struct place p;
    struct made made = place_small;
    (void)state;
    made.weights[0] = made.weights[1] = MADE_BETWEEN;
    place_open(&p, &made);
    struct object *one = run_on(&p, 1, "seed=1"), *three = run_on(&p, 3, "seed=1"), *other = run_on(&p, 1, "seed=2");
    assert_same_digests(one, three, true);
    assert_same_digests(one, other, false);
    for (size_t c = 0; c < COUNT(columns); c++) {
        double *x = NULL, *y = NULL;
        uint64_t n = 0, m = 0;
        struct err e;
        assert_ok(object_load(one, columns[c], DTYPE_F64, &x, &n, &e) &&
                  object_load(three, columns[c], DTYPE_F64, &y, &m, &e), e);
        assert_true(n == m && memcmp(x, y, n * sizeof *x) == 0);
        mem_free(x);
        mem_free(y);
    }
    object_close(one);
    object_close(three);
    object_close(other);
    place_close(&p);
}

static void nothing_to_do_is_refused(void **state)
{
    struct place p;
    (void)state;
    place_open(&p, &place_small);
    place_fail(&p, true, SETTINGS("residual=false", "heads=false"), ERR_INPUT, "there is nothing to rotate");
    place_fail(&p, true, SETTINGS("gate_format=bf16"), ERR_INPUT, "bf16 rounds nothing");
    place_close(&p);
    struct made narrow = place_small;
    narrow.hidden = 40;
    narrow.head_dim = 10;
    narrow.intermediate = 24;
    place_open(&p, &narrow);
    place_fail(&p, true, SETTINGS("gate_format=nvfp4"), ERR_INPUT, "no matrix can have format nvfp4; choose another");
    place_close(&p);
}

static void a_changed_directory_no_longer_stands_and_is_not_replaced(void **state)
{
    struct place p;
    struct node n;
    struct err e;
    char path[400];
    const char *found;
    (void)state;
    place_open(&p, &place_small);
    struct object *o = place_run(&p, true, SETTINGS("gate=false"));
    place_node(&p, &n, true, SETTINGS("gate=false"));
    assert_true(node_rotate.stands(&n, o, true) && node_rotate.stands(&n, o, false));
    /* Who reads it sees that it is what was written. */
    struct node reader;
    fake_node_init(&reader, &node_rotate, p.store, "reader");
    fake_node_connect(&reader, "model", "rotate", o, p.target);
    assert_ok(model_input_path(&reader, "model", &found, &e), e);
    assert_string_equal(found, p.target);
    /* Another seed's goes to the same place. */
    object_close(place_run(&p, true, SETTINGS("gate=false", "seed=5")));
    assert_false(node_rotate.stands(&n, o, false));
    assert_err(model_input_path(&reader, "model", &found, &e), e, ERR_INPUT, "is not what node 'rotate' wrote");
    check_write(p.target, "mine.txt", "x", 1);
    place_fail(&p, true, SETTINGS("gate=false"), ERR_INPUT, "'mine.txt' is not of that rotated model");
    object_close(place_run(&p, true, SETTINGS("gate=false", "overwrite=true")));
    assert_true(node_rotate.stands(&n, o, false)); /* the same bytes again */
    snprintf(path, sizeof path, "%s/model.safetensors", p.target);
    assert_int_equal(unlink(path), 0);
    assert_false(node_rotate.stands(&n, o, true));
    assert_err(model_input_path(&reader, "model", &found, &e), e, ERR_INPUT, "is not what node 'rotate' wrote");
    place_fail(&p, true, SETTINGS("gate=false"), ERR_INPUT, "files of that rotated model are missing");
    fake_node_fini(&reader);
    fake_node_fini(&n);
    object_close(o);
    place_close(&p);
}

static void a_stopped_node_leaves_nothing(void **state)
{
    struct place p;
    (void)state;
    place_open(&p, &place_small);
    for (int asks = 0; asks < 40; asks += 3) {
        struct node n;
        struct err e;
        int left = asks;
        struct stat st;
        place_node(&p, &n, true, SETTINGS("seed=1"));
        n.asks = &left;
        assert_err(fake_node_run(&n, &e) != NULL, e, ERR_STOPPED, "interrupted");
        fake_node_fini(&n);
        assert_true(stat(p.target, &st) != 0);
    }
    place_close(&p);
}

static void the_object_says_what_a_model_says(void **state)
{
    struct place p;
    struct err e;
    char **names, key[KEY_TEXT];
    const char *from;
    uint64_t n;
    int64_t x;
    (void)state;
    place_open(&p, &place_small);
    struct object *o = place_run(&p, true, SETTINGS("gate=false"));
    assert_ok(object_read_strings(o, "tensors/name", &names, &n, &e), e);
    struct model *b = place_model(p.target);
    assert_int_equal(n, b->files->n_tensors);
    mem_free(names);
    assert_ok(object_read_strings(o, "units/name", &names, &n, &e), e);
    assert_int_equal(n, b->n_units);
    mem_free(names);
    assert_true(object_int(o, "hidden", &x) && x == 64 && object_int(o, "layers", &x) && x == 2);
    assert_true(object_text(o, "rotated_from", &from));
    assert_string_equal(from, key_text(object_key(p.info), key));
    model_close(b);
    object_close(o);
    place_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_those_of_the_original),
        cmocka_unit_test(sixteen_bits_cost_what_is_told),
        cmocka_unit_test(only_what_is_rotated_changes),
        cmocka_unit_test(a_tied_head_becomes_a_tensor_of_its_own),
        cmocka_unit_test(one_dtype_is_for_all_weights),
        cmocka_unit_test(shards_stay_shards),
        cmocka_unit_test(threads_change_no_byte_and_seeds_do),
        cmocka_unit_test(nothing_to_do_is_refused),
        cmocka_unit_test(a_changed_directory_no_longer_stands_and_is_not_replaced),
        cmocka_unit_test(a_stopped_node_leaves_nothing),
        cmocka_unit_test(the_object_says_what_a_model_says),
    };
    return cmocka_run_group_tests_name("rotate", tests, NULL, NULL);
}
