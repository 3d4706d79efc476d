/* Node type `rotate`: the model in bases in which its numbers are spread more evenly, so that rounding costs less: the
 * residual stream and each head's values are multiplied by random Hadamard matrices, which are folded into the weights
 * (nodes/rotate/basis.h). What comes out is a model of the same architecture and function, in a directory of its own;
 * nothing is left to do at run time. A rotation that does not lower the losses of rounding is left out
 * (nodes/rotate/gate.h), and the node fails unless the written model's next-token distribution is the original's.
 *
 * A head that is tied to the embedding cannot take in the final norm's weights: it becomes a tensor of its own, if the
 * graph allows (`untie`), or the residual stream stays as it is. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/str.h"
#include "nodes/format/compressed.h"
#include "nodes/model/describe.h"
#include "nodes/model/directory.h"
#include "nodes/model/pass.h"
#include "nodes/nodes.h"
#include "nodes/recipe.h"
#include "nodes/rotate/write.h"
#include "nodes/search/stats.h"

#define RECORD "rotate.json"
/* Without text: windows of random tokens that the models are compared on. */
#define RANDOM_WINDOWS 4
#define RANDOM_WINDOW 128
/* Most KL of the written model, in nats, unless the graph says otherwise. In f32 the figure itself is only good to some
 * 1e-7. Rounding every weight to 8 bits, as bf16 has, costs what bf16 costs any model: 1e-5 to 1e-4 where 4 bits cost
 * 0.05 and more. */
#define TOLERANCE_F32 1e-6
#define TOLERANCE_16 1e-3

struct rotate {
    struct node *n;
    struct model *model;
    struct token_set tokens;
    bool has_text;
    uint32_t windows;         /* of them, from the first on */
    unsigned what;            /* bases that are asked for */
    bool keep_dtypes;
    enum dtype dtype;
    struct basis basis;
    struct gate gate;
    struct publish *place;
    struct directory files;
    double *kl_window, kl;    /* [windows]; their mean over positions, nats */
};

/* For rotations the head is a table beside the units, as the embedding is. */
static bool open_model(struct rotate *r, struct err *e)
{
    const char *path;
    return model_input_path(r->n, "model", &path, e) && model_open_original(&r->model, path, HEAD_AS_STORED, e);
}

/* --------------------------------------------------------------------------------------------------------- the text */

/* Windows of tokens drawn at random. */
static bool random_tokens(struct rotate *r, struct err *e)
{
    const struct model_config *c = &r->model->config;
    struct token_set t = {.n = RANDOM_WINDOWS,
                          .window = (uint32_t)(c->max_positions < RANDOM_WINDOW ? c->max_positions : RANDOM_WINDOW)};
    uint64_t state = (uint64_t)node_int(r->n, "seed");
    if (t.window < 2)
        return err_set(e, ERR_INPUT, "%s: a context of one position leaves nothing to compare", r->model->path);
    if (!mem_new(&t.ids, (size_t)t.n * t.window, e) || !mem_new(&t.length, t.n, e) || !mem_new(&t.document, t.n, e)) {
        tokens_fini(&t);
        return false;
    }
    for (uint32_t w = 0; w < t.n; w++) {
        t.length[w] = (int32_t)t.window;
        t.document[w] = w;
        for (uint32_t i = 0; i < t.window; i++)
            t.ids[w * t.window + i] = (int32_t)stats_below(&state, (uint64_t)c->vocab);
    }
    r->tokens = t;
    return true;
}

static bool read_tokens(struct rotate *r, struct err *e)
{
    r->has_text = node_inputs(r->n, "tokens") > 0;
    if (!(r->has_text ? tokens_read(&r->tokens, node_input(r->n, "tokens", 0), e) : random_tokens(r, e)))
        return false;
    int64_t wanted = node_int(r->n, "windows");
    r->windows = wanted == 0 || wanted > r->tokens.n ? r->tokens.n : (uint32_t)wanted;
    return true;
}

/* ----------------------------------------------------------------------------------------- is it the same function? */

struct side {
    const struct model *model;
    struct forward f;
};

static bool load(void *context, int unit, int format, struct unit_weights *out, struct err *e)
{
    struct side *s = context;
    (void)format;
    return weights_stored(s->f.q, s->model, unit, DTYPE_F32, out, e);
}

static bool take_row(void *context, size_t candidate, size_t window, const struct pass_row *row, struct err *e)
{
    struct rotate *r = context;
    (void)candidate, (void)e;
    r->kl_window[window] = row->kl_sum / row->n_tokens;
    r->kl += row->kl_sum;
    return true;
}

/* r->kl: the KL of `written` to the original, each with its own head. */
static bool compare(struct rotate *r, const struct model *written, struct err *e)
{
    struct side a = {.model = r->model}, b = {.model = written};
    struct queue *q = node_queue(r->n);
    size_t row = (size_t)r->tokens.window * (size_t)r->model->config.hidden, n_units = (size_t)r->model->n_units;
    uint32_t *windows = NULL;
    uint8_t *assignment = NULL;
    float *states = NULL;
    bool ok = mem_new(&windows, r->windows, e) && mem_new(&assignment, n_units, e) &&
              mem_raw(&states, r->windows * row, e) && mem_new(&r->kl_window, r->windows, e) &&
              forward_open(&a.f, r->model, q, DTYPE_F32, (int)r->tokens.window, e) &&
              forward_open(&b.f, written, q, DTYPE_F32, (int)r->tokens.window, e);
    const uint8_t *list[1] = {assignment};
    double scored = 0;
    for (uint32_t w = 0; ok && w < r->windows; w++) {
        windows[w] = w;
        scored += tokens_scored(&r->tokens, w);
    }
    struct pass original = {.f = &a.f, .tokens = &r->tokens, .weights = {.load = load, .context = &a}, .share = true,
                            .node = r->n};
    struct pass rotated = {.f = &b.f, .tokens = &r->tokens, .teacher = states, .teacher_head = &a.f.head,
                           .weights = {.load = load, .context = &b}, .share = true, .node = r->n};
    ok = ok && pass_states(&original, assignment, windows, r->windows, states, e) &&
         pass_run(&rotated, list, 1, windows, r->windows, take_row, r, e);
    r->kl /= scored;
    forward_close(&a.f);
    forward_close(&b.f);
    mem_free(windows);
    mem_free(assignment);
    mem_free(states);
    return ok;
}

/* Is any weight that is written shorter than f32? */
static bool is_short(const struct rotate *r)
{
    for (int i = 0; i < r->model->n_matrices; i++)
        if ((r->keep_dtypes ? r->model->matrices[i].dtype : r->dtype) != DTYPE_F32)
            return true;
    return false;
}

static bool verify(struct rotate *r, const struct model *written, struct err *e)
{
    double most = node_float(r->n, "tolerance");
    if (!compare(r, written, e))
        return false;
    most = most > 0 ? most : is_short(r) ? TOLERANCE_16 : TOLERANCE_F32;
    node_stat(r->n, "kl", r->kl, "nat");
    node_log(r->n, "KL to the original %.3g nats over %u windows%s", r->kl, r->windows,
             r->has_text ? "" : " of random tokens");
    if (r->kl <= most)
        return true;
    return err_set(e, ERR_NUMERIC, "the rotated model has KL %.3g nats to the original, more than %g: rounding its "
                   "weights costs too much. Set `dtype: f32`, or allow it with `tolerance`", r->kl, most);
}

/* -------------------------------------------------------------------------------------------------------- decisions */

static bool read_parameters(struct rotate *r, struct err *e)
{
    const char *dtype = node_string(r->n, "dtype");
    r->what = (node_bool(r->n, "residual") ? BASIS_RESIDUAL : 0) | (node_bool(r->n, "heads") ? BASIS_HEADS : 0);
    r->keep_dtypes = strcmp(dtype, "source") == 0;
    r->dtype = strcmp(dtype, "bf16") == 0 ? DTYPE_BF16 : DTYPE_F32;
    if (!r->what)
        return err_set(e, ERR_INPUT, "neither `residual` nor `heads` is true: there is nothing to rotate");
    if (strcmp(node_string(r->n, "gate_format"), "bf16") == 0)
        return err_set(e, ERR_INPUT, "gate_format: bf16 rounds nothing, so no rotation could help; choose another");
    if ((r->what & BASIS_RESIDUAL) && r->model->config.tied && !node_bool(r->n, "untie"))
        return err_set(e, ERR_INPUT, "%s: the head is the embedding (`tie_word_embeddings`), which it cannot be once "
                       "the residual stream is rotated: set `untie: true` to write a head of its own (%lld more "
                       "weights), or `residual: false`", r->model->path,
                       (long long)r->model->config.vocab * r->model->config.hidden);
    return true;
}

static void tell_rotation(const struct rotate *r, const char *what, const struct rotation *q)
{
    bool is_hadamard;
    int64_t core = rotation_core(q, &is_hadamard), n = rotation_order(q);
    node_log(r->n, "%s: %s of order %lld = %lld x %lld", what, is_hadamard ? "Hadamard matrix" : "orthogonal matrix",
             (long long)n, (long long)(n / core), (long long)core);
}

static void tell_gate(const struct rotate *r)
{
    const struct gate *g = &r->gate;
    int kept = 0;
    double before = 0, after = 0;
    if (r->basis.residual)
        tell_rotation(r, "residual stream", r->basis.residual);
    if (r->basis.heads)
        tell_rotation(r, "heads", r->basis.heads[0]);
    if (!node_bool(r->n, "gate"))
        return;
    if (r->what & BASIS_RESIDUAL)
        node_log(r->n, "residual stream: loss %.5g without, %.5g with: %s", g->residual_before, g->residual_after,
                 g->residual ? "rotated" : "left as it is");
    for (int l = 0; l < g->layers; l++) {
        kept += g->heads[l];
        before += g->heads_before[l];
        after += g->heads[l] ? g->heads_after[l] : g->heads_before[l];
    }
    if (r->what & BASIS_HEADS)
        node_log(r->n, "heads: rotated in %d of %d layers, loss %.5g without, %.5g so", kept, g->layers, before, after);
}

static bool decide(struct rotate *r, struct err *e)
{
    const struct gate_spec spec = {.node = r->n, .basis = &r->basis, .what = r->what,
        .format = format_find(node_string(r->n, "gate_format")), .tokens = r->has_text ? &r->tokens : NULL,
        .windows = r->windows, .keep_dtypes = r->keep_dtypes, .dtype = r->dtype};
    if (!(node_bool(r->n, "gate") ? gate_measure(&r->gate, &spec, e) : gate_open(&r->gate, r->model, r->what, e)))
        return false;
    tell_gate(r);
    return true;
}

/* ------------------------------------------------------------------------------------------------------- the record */

/* rotate.json: how the directory came about, with the digests of all its other files. */
static bool write_record(struct rotate *r, struct err *e)
{
    json_t *files = json_array(), *heads = json_array(), *results = recipe_results(r->n, e), *root = NULL;
    for (size_t i = 0; i < r->files.n; i++)
        json_array_append_new(files, json_pack("{s:s, s:I, s:s}", "name", r->files.files[i].name, "bytes",
                                               (json_int_t)r->files.files[i].bytes, "sha256",
                                               r->files.files[i].digest));
    for (int l = 0; l < r->gate.layers; l++)
        if (r->gate.heads[l])
            json_array_append_new(heads, json_integer(l));
    if (results)
        root = json_pack("{s:s, s:i, s:b, s:O, s:I, s:f, s:O, s:O}", "tool", compressed_writer(), "version", 1,
                         "residual", r->gate.residual, "heads_of_layers", heads, "seed",
                         (json_int_t)node_int(r->n, "seed"), "kl", r->kl, "recipe", results, "files", files);
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) : NULL;
    bool ok = results && (text || err_set(e, ERR_RESOURCE, "out of memory for " RECORD)) &&
              publish_write(r->place, RECORD, text, strlen(text), e);
    free(text);
    json_decref(root);
    json_decref(results);
    json_decref(heads);
    json_decref(files);
    return ok;
}

/* What is written, with its head a unit if that of the original is one. */
static bool describe(struct rotate *r, struct err *e)
{
    struct model *m;
    if (!model_open_original(&m, publish_path(r->place), model_input_head(r->n, "model"), e))
        return false;
    bool ok = describe_model(r->n, m, e);
    model_close(m);
    return ok;
}

static bool write_result(struct rotate *r, struct err *e)
{
    struct writer *w = node_output(r->n);
    char key[KEY_TEXT];
    const struct dataset kl = {.name = "kl/window", .dtype = DTYPE_F64, .rank = 1, .shape = {r->windows}, .unit = "nat",
        .axes = "window", .description = "mean KL of the rotated model to the original over a window's positions"};
    key_text(&node_input(r->n, "model", 0)->key, key);
    return describe(r, e) && directory_write(&r->files, w, e) && gate_write(&r->gate, w, e) &&
           writer_add(w, &kl, r->kl_window, e) && writer_double(w, "kl", r->kl, e) &&
           writer_text(w, "rotated_from", key, e) && writer_text(w, "numeric", node_numerics(r->n), e) &&
           writer_text(w, "gate_format", node_bool(r->n, "gate") ? node_string(r->n, "gate_format") : "", e);
}

/* --------------------------------------------------------------------------------------------------------- the node */

/* Fill the half-made directory, see that it is the same model, and put it in place. */
static bool publish(struct rotate *r, const char *directory, struct err *e)
{
    const struct write_spec spec = {.node = r->n, .basis = &r->basis, .gate = &r->gate, .keep_dtypes = r->keep_dtypes,
                                    .dtype = r->dtype};
    struct model *written = NULL;
    const char *path;
    if (!publish_begin(&r->place, directory, e) || !write_model(&spec, r->place, e))
        return false;
    bool ok = model_open(&written, publish_path(r->place), e) && verify(r, written, e) &&
              directory_list(&r->files, node_store(r->n), publish_path(r->place), e) && write_record(r, e);
    if (ok) {
        directory_fini(&r->files);
        ok = directory_list(&r->files, node_store(r->n), publish_path(r->place), e) && write_result(r, e);
    }
    model_close(written);
    if (!ok || (node_stopping(r->n) && !node_stopped(e)) ||
        !model_input_path(r->n, "model", &path, e)) /* the source changed while it was read */
        return false;
    struct publish *place = r->place;
    r->place = NULL;
    return publish_commit(place, e);
}

static void close_rotate(struct rotate *r)
{
    publish_abort(r->place);
    directory_fini(&r->files);
    gate_close(&r->gate);
    basis_close(&r->basis);
    tokens_fini(&r->tokens);
    model_close(r->model);
    mem_free(r->kl_window);
}

static bool run(struct node *n, struct err *e)
{
    struct rotate r = {.n = n};
    const char *directory = node_string(n, "directory");
    bool ok = open_model(&r, e) && read_parameters(&r, e) && read_tokens(&r, e) &&
              directory_check_place(node_store(n), directory, r.model->path, RECORD, "rotated model",
                                    node_bool(n, "overwrite"), e) &&
              basis_open(&r.basis, r.model, r.what, (uint64_t)node_int(n, "seed"), node_threads(n), e) &&
              decide(&r, e) && (publish(&r, directory, e) || err_context(e, "rotated model in %s", directory));
    if (ok)
        node_log(n, "%s: %s%s", directory, r.gate.residual && r.model->config.tied ? "with a head of its own, " : "",
                 r.keep_dtypes ? "every tensor in its source's dtype" : dtype_info(r.dtype)->name);
    close_rotate(&r);
    return ok;
}

/* The losses depend on the kernels' fp32 products, and so may what is kept. */
static bool numerics(const struct node *n, const char **out, struct err *e)
{
    (void)e;
    *out = node_kernels(n)->numeric_fp32;
    return true;
}

/* Two forward passes side by side with the states of all windows, or one with the trials of the gate. */
static bool needs(struct node *n, struct needs *out, struct err *e)
{
    struct rotate r = {.n = n};
    if (!open_model(&r, e))
        return false;
    bool ok = read_parameters(&r, e) && read_tokens(&r, e);
    if (ok) {
        const struct model *m = r.model;
        uint64_t layer = 0, rows = (uint64_t)r.windows * r.tokens.window;
        for (int u = 0; u < LAYER_UNITS; u++)
            layer += m->units[u].parameters * 4;
        struct needs pass = {0};
        forward_needs(node_kernels(n), m, DTYPE_F32, (int)r.tokens.window, &pass);
        uint64_t states = rows * (uint64_t)m->config.hidden * 4, both = 2 * pass.memory + 2 * layer + 4 * states;
        uint64_t gate = pass.memory + layer + states + gate_memory(m, rows), written = write_memory(m);
        both = both > gate ? both : gate;
        *out = (struct needs){.memory = (both > written ? both : written) + (32u << 20)};
        out->disk = write_bytes(m, r.keep_dtypes, r.dtype, m->config.tied);
        describe_needs(m, out);
    }
    tokens_fini(&r.tokens);
    model_close(r.model);
    return ok;
}

static bool stands(struct node *n, struct object *result, bool quick)
{
    return directory_stands(node_store(n), node_string(n, "directory"), result, quick);
}

const struct node_class node_rotate = {
    .name = "rotate",
    .summary = "the same function in bases that round better: random Hadamard rotations folded into the weights",
    .version = 2,
    .ports = (const struct port[]){
        {"model", MODEL_TYPES, false, false, "the model to rotate"},
        {"tokens", (const char *const[]){"corpus", NULL}, false, true,
         "calibration windows: losses are of outputs on them, and the models are compared on them; without: losses of "
         "weights, and random tokens"},
        {0}},
    .params = (const struct param[]){
        {.name = "residual", .type = PARAM_BOOL, .fallback = "true",
         .help = "rotate the residual stream, with the norms' weights moved into the matrices behind them"},
        {.name = "heads", .type = PARAM_BOOL, .fallback = "true",
         .help = "rotate the values of each key-value head, and what reads them"},
        {.name = "untie", .type = PARAM_BOOL, .fallback = "false",
         .help = "where the head is the embedding: write a head of its own, which `residual` needs"},
        {.name = "seed", .type = PARAM_INT, .fallback = "1", .least = 0, .most = 9007199254740991.0,
         .help = "of the rotations' signs"},
        {.name = "dtype", .type = PARAM_ENUM, .fallback = "source",
         .choices = (const char *const[]){"source", "f32", "bf16", NULL},
         .help = "number format of the weights that are written: each one's own, or one for all"},
        {.name = "gate", .type = PARAM_BOOL, .fallback = "true",
         .help = "leave out rotations that do not lower the losses of rounding to `gate_format`"},
        {.name = "gate_format", .type = PARAM_ENUM, .fallback = "nvfp4_a16", .choices = format_names,
         .help = "the format that rotations must help, rounded to nearest"},
        {.name = "windows", .type = PARAM_INT, .fallback = "8", .least = 0, .most = 1000000, .unit = "window",
         .help = "of `tokens`, for losses and comparison: the first so many; 0: all"},
        {.name = "tolerance", .type = PARAM_FLOAT, .fallback = "0", .least = 0, .most = 100, .unit = "nat",
         .help = "most KL of the rotated model to the original; 0: 1e-6 in f32, 1e-3 in 16 bits"},
        {.name = "directory", .type = PARAM_PATH, .fallback = "rotated", .help = "where to put the model"},
        {.name = "overwrite", .type = PARAM_BOOL, .fallback = "false", .outside_key = true,
         .help = "replace a directory even if it is not an untouched rotated model of ours"},
        {0}},
    .numerics = numerics,
    .needs = needs,
    .stands = stands,
    .run = run,
};
