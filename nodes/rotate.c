/* Node type `rotate`: the model in bases in which its numbers are spread more evenly, so that rounding costs less: the
 * residual stream and each head's values are multiplied by random Hadamard matrices, which are folded into the weights
 * (nodes/rotate/basis.h). What comes out is a model of the same architecture and function, in a directory of its own;
 * nothing is left to do at run time. A rotation that does not lower the losses of rounding is left out
 * (nodes/rotate/gate.h), and all of them are if the rotated model, rounded to nearest, is no closer to the original
 * than the original so rounded. The node fails unless the written model's next-token distribution is the original's.
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
#include "nodes/nodes.h"
#include "nodes/recipe.h"
#include "nodes/rotate/reference.h"
#include "nodes/rotate/write.h"
#include "nodes/search/stats.h"

#define RECORD "rotate.json"
/* Without text: windows of random tokens that the models are compared on. */
#define RANDOM_WINDOWS 4
#define RANDOM_WINDOW 128
/* Most KL of the written model, in nats, unless the graph says otherwise. In f32 the figure itself is only good to some
 * 1e-7. Rounding every weight to the 8 bits of bf16 once more has cost 1e-5 to 3e-4, where formats of 4 bits cost 0.03
 * and more. */
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
    struct reference reference; /* the original on those windows */
    double *kl_window, kl;    /* [windows], and over all positions: KL of the written model, nats */
    double *rounded[2];       /* [windows]: the same of the original and of what is written, rounded to nearest */
    double before, after;     /* over all positions; NaN where it was not asked */
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
    if (!reference_kl(&r->reference, written, NULL, NULL, r->kl_window, &r->kl, e))
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

/* KL of `m`, whose layers have the gate's bases, or none if `original`, with every unit in the gate's format. */
static bool round_model(struct rotate *r, const struct model *m, bool original, double *kl_window, double *kl,
                        struct err *e)
{
    float *amax;
    if (!mem_new(&amax, (size_t)m->n_units, e))
        return false;
    for (int u = 0; u < m->n_units; u++)
        amax[u] = r->gate.input_amax[u * BASIS_SETS + (original ? 0 : gate_bases(&r->gate, m->units[u].layer))];
    bool ok = reference_kl(&r->reference, m, format_find(node_string(r->n, "gate_format")), amax, kl_window, kl, e);
    mem_free(amax);
    return ok;
}

/* Is what is written, rounded, closer to the original than the original rounded? Losses, which decided so far, are of
 * single matrices. */
static bool helps(struct rotate *r, const struct model *written, bool *out, struct err *e)
{
    *out = true;
    if (!node_bool(r->n, "gate") || !r->has_text || !gate_is_open(&r->gate))
        return true;
    if (!round_model(r, r->model, true, r->rounded[0], &r->before, e) ||
        !round_model(r, written, false, r->rounded[1], &r->after, e))
        return false;
    *out = r->after < r->before;
    node_log(r->n, "all units in %s, rounded to nearest: KL %.5g as they were, %.5g rotated%s",
             node_string(r->n, "gate_format"), r->before, r->after, *out ? "" : ": all is left as it was");
    return true;
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
    struct dataset before = kl, after = kl;
    before.name = "kl/rounded_before";
    before.description = "the same of the original, rounded to nearest in gate_format; NaN where it was not taken";
    after.name = "kl/rounded_after";
    after.description = "the same of the rotated model, before it was decided that it is kept";
    key_text(&node_input(r->n, "model", 0)->key, key);
    return describe(r, e) && directory_write(&r->files, w, e) && gate_write(&r->gate, w, e) &&
           writer_add(w, &kl, r->kl_window, e) && writer_add(w, &before, r->rounded[0], e) &&
           writer_add(w, &after, r->rounded[1], e) && writer_double(w, "kl", r->kl, e) &&
           writer_double(w, "kl_rounded_before", r->before, e) && writer_double(w, "kl_rounded_after", r->after, e) &&
           writer_text(w, "rotated_from", key, e) && writer_text(w, "numeric", node_numerics(r->n), e) &&
           writer_text(w, "gate_format", node_bool(r->n, "gate") ? node_string(r->n, "gate_format") : "", e);
}

/* --------------------------------------------------------------------------------------------------------- the node */

/* Fill a half-made directory, and see that it is the same model. */
static bool fill(struct rotate *r, const char *directory, struct model **written, struct err *e)
{
    const struct write_spec spec = {.node = r->n, .basis = &r->basis, .gate = &r->gate, .keep_dtypes = r->keep_dtypes,
                                    .dtype = r->dtype};
    return publish_begin(&r->place, directory, e) && write_model(&spec, r->place, e) &&
           model_open(written, publish_path(r->place), e) && verify(r, *written, e);
}

/* The directory with all that helps, or with the original's weights if that is nothing. */
static bool make(struct rotate *r, const char *directory, struct err *e)
{
    struct model *written = NULL;
    bool keep = false, ok = fill(r, directory, &written, e) && helps(r, written, &keep, e);
    model_close(written);
    if (!ok || keep)
        return ok;
    publish_abort(r->place);
    r->place = NULL;
    written = NULL;
    gate_shut(&r->gate);
    ok = fill(r, directory, &written, e);
    model_close(written);
    return ok;
}

static bool list_files(struct rotate *r, struct err *e)
{
    directory_fini(&r->files);
    return directory_list(&r->files, node_store(r->n), publish_path(r->place), e);
}

static bool publish(struct rotate *r, const char *directory, struct err *e)
{
    const char *path;
    if (!make(r, directory, e) || !list_files(r, e) || !write_record(r, e) || !list_files(r, e) || !write_result(r, e))
        return false;
    if (node_stopping(r->n))
        return node_stopped(e);
    if (!model_input_path(r->n, "model", &path, e)) /* the source changed while it was read */
        return false;
    struct publish *place = r->place;
    r->place = NULL;
    return publish_commit(place, e);
}

static bool open_reference(struct rotate *r, struct err *e)
{
    bool ok = mem_new(&r->kl_window, r->windows, e) && mem_raw(&r->rounded[0], r->windows, e) &&
              mem_raw(&r->rounded[1], r->windows, e);
    for (uint32_t w = 0; ok && w < r->windows; w++)
        r->rounded[0][w] = r->rounded[1][w] = NAN;
    r->before = r->after = NAN;
    return ok && reference_open(&r->reference, r->n, r->model, &r->tokens, r->windows, e);
}

static void close_rotate(struct rotate *r)
{
    publish_abort(r->place);
    directory_fini(&r->files);
    gate_close(&r->gate);
    basis_close(&r->basis);
    reference_close(&r->reference);
    tokens_fini(&r->tokens);
    model_close(r->model);
    mem_free(r->kl_window);
    mem_free(r->rounded[0]);
    mem_free(r->rounded[1]);
}

static bool run(struct node *n, struct err *e)
{
    struct rotate r = {.n = n};
    const char *directory = node_string(n, "directory");
    bool ok = open_model(&r, e) && read_parameters(&r, e) && read_tokens(&r, e) &&
              directory_check_place(node_store(n), directory, r.model->path, RECORD, "rotated model",
                                    node_bool(n, "overwrite"), e) &&
              basis_open(&r.basis, r.model, r.what, (uint64_t)node_int(n, "seed"), node_threads(n), e) &&
              decide(&r, e) && open_reference(&r, e) &&
              (publish(&r, directory, e) || err_context(e, "rotated model in %s", directory));
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

/* The gate's pass, or the comparison's two, or the largest tensor as it is written. */
static bool needs(struct node *n, struct needs *out, struct err *e)
{
    struct rotate r = {.n = n};
    if (!open_model(&r, e))
        return false;
    bool ok = read_parameters(&r, e) && read_tokens(&r, e);
    if (ok) {
        const struct model *m = r.model;
        uint64_t written = write_memory(m), gate = gate_memory(node_kernels(n), m, r.windows, r.tokens.window);
        uint64_t most = reference_memory(node_kernels(n), m, r.windows, r.tokens.window);
        most = gate > most ? gate : most;
        *out = (struct needs){.memory = (written > most ? written : most) + (32u << 20)};
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
    .version = 3,
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
         .help = "leave out rotations that do not help rounding to `gate_format`"},
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
