/* The node type verify behind the real quantize, teacher, evaluator and export: its figures against loops over whole
 * logits, its rows against the measured ones to the bit, and directories that are not what was exported any more. */
#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>

#include "nodes/model/evaluator.h"
#include "nodes/model/forward.h"
#include "tests/nodes/model/world.h"

extern const struct node_class node_export, node_verify;

#define KL_TOLERANCE 1e-6 /* nats: the kernel's partial sums are f32 */
#define TOLERANCE 1e-6    /* of the figure: likewise */

static const struct node_class measuring = {
    .name = "measure",
    .ports = (const struct port[]){EVALUATOR_PORTS, {0}},
    .params = (const struct param[]){EVALUATOR_PARAMS, {0}},
};

struct exported {
    struct world w;
    char target[512];
    struct candidates table; /* two measured candidates */
    struct object *choice;   /* a selecting node's result: `chosen` is the second */
    struct object *object;   /* the export node's */
    int n_runs;
    uint8_t head;            /* format of the head, where it is a unit */
};

static struct object *select_object(struct exported *x, const struct candidates *table, uint32_t chosen,
                                    const char *seed)
{
    struct err e;
    struct object *o = NULL;
    struct writer *out = NULL;
    struct key key;
    static const struct dataset d = {.name = "chosen", .dtype = DTYPE_U32, .rank = 1, .shape = {1}, .unit = "1",
                                     .axes = "choice", .description = "id"};
    assert_ok(key_of_bytes(seed, strlen(seed), &key, &e) && writer_new(&out, x->w.store, &key, "select", &e), e);
    assert_ok(candidates_write(table, &x->w.menu, out, &e) && writer_add(out, &d, &chosen, &e) &&
              writer_commit(out, &e) && object_open(&o, x->w.store, &key, &e) && o, e);
    return o;
}

static void measure_table(struct exported *x)
{
    struct err e;
    struct node n;
    struct evaluator *v;
    fake_node_init(&n, &measuring, x->w.store, "measuring");
    n.numerics = WORLD_NUMERICS;
    model_world_connect(&x->w, &n);
    assert_ok(evaluator_open(&v, &n, &e) && evaluator_table(v, &x->table, &e), e);
    for (unsigned seed = 21; seed < 23; seed++) {
        uint8_t assignment[64];
        assert_in_range(x->w.menu.n_units, 1, 64);
        model_world_assignment(&x->w, seed, assignment);
        if (x->w.model->head_unit >= 0)
            assignment[x->w.model->head_unit] = x->head;
        assert_non_null(candidates_add(&x->table, &x->w.menu, assignment, "made", -1, &e));
    }
    assert_ok(evaluator_measure(v, &x->table, 0, &e), e);
    evaluator_close(v);
    fake_node_fini(&n);
}

/* Export the choice to the one directory. */
static struct object *export(struct exported *x, struct object *choice, const char *seed)
{
    struct err e;
    struct node n;
    fake_node_init(&n, &node_export, x->w.store, seed);
    model_world_connect(&x->w, &n);
    fake_node_connect(&n, "assignment", "select", choice, NULL);
    fake_node_set(&n, "directory", x->target);
    struct object *o = fake_node_run(&n, &e);
    if (!o)
        fail_msg("%s", e.text);
    fake_node_fini(&n);
    return o;
}

static void open_exported(struct exported *x)
{
    snprintf(x->target, sizeof x->target, "%s/export", x->w.folder);
    measure_table(x);
    x->choice = select_object(x, &x->table, 1, "select");
    x->object = export(x, x->choice, "export");
}

static void close_exported(struct exported *x)
{
    object_close(x->object);
    object_close(x->choice);
    candidates_fini(&x->table);
    model_world_close(&x->w);
}

static int set_up(void **state)
{
    static struct exported x;
    x = (struct exported){0};
    model_world_open(&x.w, "stories260k");
    open_exported(&x);
    *state = &x;
    return 0;
}

static int tear_down(void **state)
{
    struct exported *x = *state;
    if (x) /* else setting up failed */
        close_exported(x);
    return 0;
}

/* Each run under a key of its own. */
static bool verify(struct exported *x, struct object *expect, struct object **out, struct err *e)
{
    struct node n;
    char seed[32];
    snprintf(seed, sizeof seed, "verify %d", x->n_runs++);
    fake_node_init(&n, &node_verify, x->w.store, seed);
    n.numerics = WORLD_NUMERICS;
    model_world_connect(&x->w, &n);
    fake_node_connect(&n, "exported", "export", x->object, x->target);
    fake_node_depend(&n, "model", x->w.info, x->w.source);
    if (expect)
        fake_node_connect(&n, "expect", "select", expect, NULL);
    *out = fake_node_run(&n, e);
    fake_node_fini(&n);
    return *out != NULL;
}

static double read_one(struct object *o, const char *name)
{
    struct err e;
    char path[96];
    double x;
    snprintf(path, sizeof path, "sets/selection/%s", name);
    assert_ok(object_read(o, path, DTYPE_F64, 0, 1, &x, &e), e);
    return x;
}

/* --------------------------------------------------------------------------------------------------- by brute force */

/* The logits of a window at its own length [length, vocab], as `m` stores its weights; to be freed with mem_free. */
static float *logits_of(const struct world *w, const struct model *m, uint32_t window)
{
    struct err e;
    struct forward f;
    struct queue q = {.k = kernels_cpu(&e), .threads = 1, .device = TENSOR_HOST};
    struct tensor x = {0}, y = {0};
    int64_t rows = w->tokens.length[window], states[2] = {rows, m->config.hidden}, shape[2] = {rows, m->config.vocab};
    float *out;
    assert_ok(forward_open(&f, m, &q, DTYPE_F32, (int)rows, &e), e);
    assert_ok(q.k->tensor_new(&q, &x, DTYPE_F32, 2, states, &e) && q.k->tensor_new(&q, &y, DTYPE_F32, 2, shape, &e), e);
    assert_ok(forward_embed(&f, w->tokens.ids + window * WORLD_WINDOW, &x, &e), e);
    for (int layer = 0; layer < m->config.layers; layer++) {
        struct unit_weights weights[LAYER_UNITS] = {0};
        for (int u = 0; u < LAYER_UNITS; u++)
            assert_ok(weights_stored(&q, m, layer * LAYER_UNITS + u, DTYPE_F32, &weights[u], &e), e);
        assert_ok(forward_layer(&f, layer, weights, &x, NULL, NULL, &e), e);
        for (int u = 0; u < LAYER_UNITS; u++)
            q.k->tensor_free(&q, &weights[u].panels);
    }
    struct unit_weights head = {.act = ACT_NONE};
    assert_ok(forward_final(&f, &x, &x, &e), e);
    assert_ok(m->head_unit < 0 || weights_stored(&q, m, m->head_unit, DTYPE_F32, &head, &e), e);
    assert_ok(head.act == ACT_NONE || q.k->fake_quantize(&q, &x, head.act, head.act_scale, DTYPE_F32, &x, &e), e);
    assert_ok(q.k->matmul(&q, &x, m->head_unit < 0 ? &f.head : &head.panels, &y, &e), e);
    unit_weights_free(&q, &head);
    assert_ok(mem_raw(&out, (size_t)(rows * m->config.vocab), &e), e);
    memcpy(out, y.data, (size_t)(rows * m->config.vocab) * sizeof *out);
    q.k->tensor_free(&q, &x);
    q.k->tensor_free(&q, &y);
    forward_close(&f);
    return out;
}

static double log_sum_exp(const float *s, int n, int *top)
{
    double sum = 0;
    *top = 0;
    for (int i = 1; i < n; i++)
        *top = s[i] > s[*top] ? i : *top;
    for (int i = 0; i < n; i++)
        sum += exp((double)s[i] - s[*top]);
    return s[*top] + log(sum);
}

struct figures {
    double kl, nll_teacher, nll, top1, tokens;
};

/* Every scored position of a window. */
static struct figures figures_of(const struct world *w, const float *teacher, const float *other, uint32_t window)
{
    struct figures f = {0};
    int vocab = w->model->config.vocab, top, top_teacher;
    for (int32_t t = 0; t + 1 < w->tokens.length[window]; t++) {
        const float *p = teacher + (int64_t)t * vocab, *q = other + (int64_t)t * vocab;
        double log_p = log_sum_exp(p, vocab, &top_teacher), log_q = log_sum_exp(q, vocab, &top);
        int32_t next = w->tokens.ids[window * WORLD_WINDOW + (uint32_t)t + 1];
        for (int i = 0; i < vocab; i++)
            f.kl += exp(p[i] - log_p) * ((p[i] - log_p) - (q[i] - log_q));
        f.nll_teacher += log_p - p[next];
        f.nll += log_q - q[next];
        f.top1 += top == top_teacher;
        f.tokens++;
    }
    return f;
}

static void assert_near(const char *what, double got, double expected, double tolerance)
{
    if (!(fabs(got - expected) <= tolerance))
        fail_msg("%s: %.12g, expected %.12g", what, got, expected);
}

/* ------------------------------------------------------------------------------------------------------------ tests */

static void figures_are_those_of_whole_logits(void **state)
{
    struct exported *x = *state;
    struct err e;
    struct object *o;
    struct model *m;
    struct figures all = {0};
    double *kl_window;
    uint64_t n;
    assert_ok(verify(x, NULL, &o, &e), e);
    assert_ok(model_open(&m, x->target, &e), e);
    assert_ok(object_load(o, "sets/selection/kl_window", DTYPE_F64, &kl_window, &n, &e), e);
    assert_int_equal(n, WORLD_WINDOWS);
    for (uint32_t w = 0; w < WORLD_WINDOWS; w++) {
        float *teacher = logits_of(&x->w, x->w.model, w), *other = logits_of(&x->w, m, w);
        struct figures f = figures_of(&x->w, teacher, other, w);
        assert_near("a window's KL", kl_window[w], f.kl / f.tokens, KL_TOLERANCE);
        all = (struct figures){all.kl + f.kl, all.nll_teacher + f.nll_teacher, all.nll + f.nll, all.top1 + f.top1,
                               all.tokens + f.tokens};
        mem_free(teacher);
        mem_free(other);
    }
    double mean = read_one(o, "kl_mean"), of_teacher;
    assert_true(mean > 1e-4);
    double perplexity = exp(all.nll / all.tokens), perplexity_teacher = exp(all.nll_teacher / all.tokens);
    assert_near("KL", mean, all.kl / all.tokens, KL_TOLERANCE);
    assert_near("perplexity", read_one(o, "perplexity"), perplexity, TOLERANCE * perplexity);
    assert_near("teacher's perplexity", read_one(o, "perplexity_teacher"), perplexity_teacher,
                TOLERANCE * perplexity_teacher);
    assert_true(read_one(o, "top1") == all.top1 / all.tokens);
    assert_true(object_double(x->w.teacher, "perplexity", &of_teacher));
    assert_true(read_one(o, "perplexity_teacher") == of_teacher);
    assert_true(read_one(o, "kl_low") < mean && mean < read_one(o, "kl_high"));
    mem_free(kl_window);
    model_close(m);
    object_close(o);
}

static void rows_are_the_measured_ones_to_the_bit(void **state)
{
    struct exported *x = *state;
    struct err e;
    struct object *o;
    double *kl_window;
    const struct candidate *chosen = &x->table.list[1];
    assert_ok(verify(x, x->choice, &o, &e), e);
    assert_ok(object_load(o, "sets/selection/kl_window", DTYPE_F64, &kl_window, NULL, &e), e);
    assert_memory_equal(kl_window, chosen->kl_window, WORLD_WINDOWS * sizeof *kl_window);
    assert_true(read_one(o, "kl_mean") == chosen->kl_mean && read_one(o, "top1") == chosen->top1);
    mem_free(kl_window);
    object_close(o);
}

static void another_figure_than_the_measured_one_is_an_error(void **state)
{
    struct exported *x = *state;
    struct err e;
    struct object *o;
    double *kl = &x->table.list[1].kl_window[2], was = *kl;
    *kl = nextafter(was, 1.0);
    struct object *off = select_object(x, &x->table, 1, "off by one bit");
    *kl = was;
    assert_err(verify(x, off, &o, &e), e, ERR_NUMERIC, "selection, window 2: the exported directory has KL");
    object_close(off);
    struct object *other = select_object(x, &x->table, 0, "the other candidate");
    assert_err(verify(x, other, &o, &e), e, ERR_NUMERIC, "what is exported is not what was measured");
    object_close(other);
}

/* The chain again on a model whose head is a unit, in each format: as measured, so exported. */
static void a_head_that_is_a_unit_is_verified_like_the_rest(void **state)
{
    (void)state;
    for (uint8_t head = 0; head < WORLD_FORMATS; head++) {
        struct exported x = {.head = head};
        struct err e;
        struct model *m;
        void *at = &x;
        model_world_open_with_head(&x.w, "stories260k");
        open_exported(&x);
        assert_ok(model_open(&m, x.target, &e), e);
        assert_int_equal(m->head_unit, head == WORLD_BF16 ? -1 : x.w.model->head_unit);
        if (head != WORLD_BF16)
            assert_string_equal(m->matrices[m->n_matrices - 1].stored->name, x.w.menu.format_names[head]);
        model_close(m);
        figures_are_those_of_whole_logits(&at);
        rows_are_the_measured_ones_to_the_bit(&at);
        close_exported(&x);
    }
}

/* Change the last byte of a file by one bit, and leave its size and times. */
static void flip(const char *folder, const char *name)
{
    char path[800];
    struct stat st = {0};
    uint8_t byte = 0;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int file = open(path, O_RDWR);
    assert_true(file >= 0 && fstat(file, &st) == 0 && pread(file, &byte, 1, st.st_size - 1) == 1);
    byte ^= 1;
    const struct timespec times[2] = {st.st_atim, st.st_mtim};
    assert_true(pwrite(file, &byte, 1, st.st_size - 1) == 1 && futimens(file, times) == 0);
    close(file);
}

static void a_changed_weight_is_refused(void **state)
{
    struct exported *x = *state;
    struct err e;
    struct object *o;
    flip(x->target, "model.safetensors");
    assert_err(verify(x, x->choice, &o, &e), e, ERR_INPUT, "export/model.safetensors is not what node 'export' wrote");
    assert_err(verify(x, NULL, &o, &e), e, ERR_INPUT, "export/model.safetensors is not what node 'export' wrote");
    flip(x->target, "model.safetensors");
    assert_ok(verify(x, x->choice, &o, &e), e);
    object_close(o);
}

static void a_missing_file_is_refused(void **state)
{
    struct exported *x = *state;
    struct err e;
    struct object *o;
    char path[800], aside[800];
    snprintf(path, sizeof path, "%s/tokenizer.json", x->target);
    snprintf(aside, sizeof aside, "%s/aside", x->w.folder);
    assert_int_equal(rename(path, aside), 0);
    assert_err(verify(x, NULL, &o, &e), e, ERR_INPUT, "export/tokenizer.json");
    assert_int_equal(rename(aside, path), 0);
}

/* Last: the directory is another one afterwards. */
static void a_directory_that_another_export_replaced_is_refused(void **state)
{
    struct exported *x = *state;
    struct err e;
    struct object *o, *choice = select_object(x, &x->table, 0, "select the other");
    struct object *second = export(x, choice, "second export");
    assert_err(verify(x, NULL, &o, &e), e, ERR_INPUT, "is not what node 'export' wrote");
    assert_err(verify(x, x->choice, &o, &e), e, ERR_INPUT, "is not what node 'export' wrote");
    object_close(x->object);
    x->object = second;
    assert_ok(verify(x, choice, &o, &e), e);
    object_close(o);
    object_close(choice);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(figures_are_those_of_whole_logits),
        cmocka_unit_test(rows_are_the_measured_ones_to_the_bit),
        cmocka_unit_test(another_figure_than_the_measured_one_is_an_error),
        cmocka_unit_test(a_head_that_is_a_unit_is_verified_like_the_rest),
        cmocka_unit_test(a_changed_weight_is_refused),
        cmocka_unit_test(a_missing_file_is_refused),
        cmocka_unit_test(a_directory_that_another_export_replaced_is_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
