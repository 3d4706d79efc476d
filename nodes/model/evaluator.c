/* The evaluator: which (candidate, window) rows the ledger lacks, in which passes they are made, and the columns that
 * come of them. What a row holds is decided in pass.c and never here. */
#include "nodes/model/evaluator.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nodes/model/pass.h"
#include "nodes/model/renderings.h"
#include "nodes/model/teacher.h"

/* Lanes that go together unless the graph says otherwise, and positions (lanes x windows x slots) in one pass: a pass
 * is what an interruption can cost, so it is kept to some seconds of work on a small machine. */
#define DEFAULT_LANES 32
#define PASS_POSITIONS 16384
/* Raise it when a row's numbers change for another reason than the numeric mode: older rows are then not found. */
#define CONTEXT_VERSION 1
#define REPLAY_BYTES ((uint64_t)512 << 20) /* at most, unless the graph gives the node more memory */

struct evaluator {
    struct node *n;
    struct model *model;
    struct renderings *renderings;
    struct menu menu;
    struct token_set tokens;
    float *teacher;
    struct forward f;
    struct replay *replay;
    struct pass pass;
    struct ledger *ledger;
    float *slots; /* [window - 1], to see that a row is whole */
    struct key context;         /* the ledger's */
    size_t lanes;
    uint64_t rows_measured, rows_reused, rows_wanted, rows_done; /* wanted and done: of the call in hand */
};

/* ---------------------------------------------------------------------------------------------------------- opening */

static bool load(void *context, int unit, int format, struct unit_weights *out, struct err *e)
{
    struct evaluator *v = context;
    const struct unit *u = &v->model->units[unit];
    const char *name = v->menu.format_names[format];
    const struct format *f = format_find(name);
    struct rendering r[4] = {0};
    bool ok = true;
    if (!f)
        return err_set(e, ERR_INPUT, "this build has no format '%s'", name);
    for (int i = 0; ok && i < u->count; i++)
        ok = renderings_read(v->renderings, u->first + i, name, &r[i], e);
    *out = (struct unit_weights){.act = f->act};
    if (f->static_input_scale)
        out->act_scale = renderings_input_scale(v->renderings, unit);
    ok = ok && weights_pack(v->f.q, v->model, unit, r, v->f.mode, &out->panels, e);
    for (int i = 0; i < u->count; i++)
        rendering_free(&r[i]);
    return ok || err_context(e, "format '%s'", name);
}

static bool is_stopping(void *waiter) { return node_stopping(waiter); }

static void tell_wait(void *waiter, const char *holder)
{
    node_log(waiter, "waits for the ledger of its rows: %s is measuring into it", holder);
}

static void tell_damage(const struct evaluator *v)
{
    uint64_t rows;
    size_t segments;
    ledger_damage(v->ledger, &rows, &segments);
    if (rows > 0 || segments > 0)
        node_log(v->n,
                 "the ledger has %llu damaged rows, and %zu of its files were set aside in quarantine/: what they "
                 "held is measured again",
                 (unsigned long long)rows, segments);
}

static bool open_ledger(struct evaluator *v, struct err *e)
{
    struct key_hash *h;
    struct ledger_spec spec = {.numeric = node_numerics(v->n), .assignment_bytes = (uint32_t)v->menu.n_units,
        .slots = v->tokens.window - 1, .formats = (const char *const *)v->menu.format_names,
        .n_formats = (uint32_t)v->menu.n_formats,
        .stopping = is_stopping, .waits = tell_wait, .waiter = v->n};
    if (!key_hash_new(&h, e))
        return false;
    key_hash_text(h, "measuring context");
    key_hash_int(h, CONTEXT_VERSION);
    key_hash_key(h, &node_input(v->n, "model", 0)->key);
    key_hash_key(h, &node_input(v->n, "renderings", 0)->key);
    key_hash_key(h, &node_input(v->n, "teacher", 0)->key);
    key_hash_text(h, v->tokens.digest);
    key_hash_text(h, node_numerics(v->n));
    if (!key_hash_end(h, &spec.context, e) || !ledger_open(&v->ledger, node_store(v->n), &spec, e))
        return false;
    tell_damage(v);
    v->context = spec.context;
    node_live(v->n, &spec.context, v->ledger);
    return true;
}

static bool check_menu(const struct evaluator *v, struct err *e)
{
    bool same = v->menu.n_units == v->model->n_units;
    if (v->menu.n_formats > PASS_FORMATS)
        return err_set(e, ERR_INPUT, "%d formats, at most %d can be measured together", v->menu.n_formats,
                       PASS_FORMATS);
    for (int u = 0; same && u < v->menu.n_units; u++)
        same = strcmp(v->menu.unit_names[u], v->model->units[u].name) == 0;
    if (!same)
        return err_set(e, ERR_INPUT, "renderings '%s' are of another model than '%s'",
                       node_input(v->n, "renderings", 0)->node, node_input(v->n, "model", 0)->node);
    return true;
}

/* States of one candidate before every layer, on all windows. */
static uint64_t chain_bytes(const struct model *m, const struct token_set *t)
{
    return (uint64_t)t->n * t->window * (uint64_t)m->config.hidden * sizeof(float) * (uint64_t)m->config.layers;
}

/* As many as the graph says, within what `needs` declares: PASS_POSITIONS positions in one pass. */
static size_t most_lanes(const struct node *n, const struct token_set *tokens)
{
    size_t lanes = node_int(n, "lanes") ? (size_t)node_int(n, "lanes") : DEFAULT_LANES;
    size_t most = PASS_POSITIONS / tokens->window ? PASS_POSITIONS / tokens->window : 1;
    return lanes < most ? lanes : most;
}

/* Memory without the cache: the model's tables, teacher states, two sets of lanes, a layer's panels in every format
 * that lanes can have at once, and the largest unit as it is read. */
static struct needs base_needs(const struct node *n, const struct model *m, const struct token_set *t,
                               uint64_t n_formats)
{
    enum dtype mode = numeric_mode(node_string(n, "numeric"));
    uint64_t row = (uint64_t)m->config.hidden * sizeof(float), layer = 0, most_unit = 0, lanes = most_lanes(n, t);
    for (int u = 0; u < LAYER_UNITS; u++) {
        layer += m->units[u].parameters * dtype_bytes(mode);
        most_unit = m->units[u].parameters > most_unit ? m->units[u].parameters : most_unit;
    }
    struct needs out = {.memory = (uint64_t)t->n * t->window * row + most_unit * sizeof(float), .disk = 1 << 20};
    forward_needs(node_kernels(n), m, mode, (int)t->window, &out);
    needs_tensors(node_kernels(n), &out,
                  2 * (PASS_POSITIONS + t->window) * row + (n_formats < lanes ? n_formats : lanes) * layer);
    return out;
}

/* Layers from one kept state to the next: so many that those of two candidates on all windows fit the cache. Windows
 * are gone through in a circle, and a cache that drops the oldest would otherwise keep nothing until it comes round. */
static int keep_every(const struct evaluator *v, uint64_t cache)
{
    uint64_t chains = 2 * chain_bytes(v->model, &v->tokens), layers = (uint64_t)v->model->config.layers;
    uint64_t every = cache ? (chains + cache - 1) / cache : layers;
    return (int)(every < 1 ? 1 : every < layers ? every : layers);
}

/* What is left of the memory, where the states lie, for the cache of prefixes. */
static uint64_t cache_bytes(const struct evaluator *v)
{
    struct needs base = base_needs(v->n, v->model, &v->tokens, (uint64_t)v->menu.n_formats);
    bool on_device = node_kernels(v->n)->on_device;
    uint64_t used = on_device ? base.device_memory : base.memory;
    uint64_t all = on_device ? node_device_memory(v->n) : node_memory(v->n);
    return all > used ? all - used : 0;
}

bool evaluator_open(struct evaluator **out, struct node *n, struct err *e)
{
    struct evaluator *v;
    if (!mem_new(&v, 1, e))
        return false;
    v->n = n;
    bool share = node_bool(n, "replay");
    bool ok = model_open_input(&v->model, n, "model", e) &&
              menu_read(&v->menu, node_input(n, "renderings", 0)->object, e) && check_menu(v, e) &&
              renderings_open(&v->renderings, n, "renderings", v->model, e) &&
              tokens_read(&v->tokens, node_input(n, "tokens", 0), e) &&
              mem_new(&v->slots, v->tokens.window, e) &&
              teacher_read(&v->teacher, node_input(n, "teacher", 0), &v->tokens, v->model->config.hidden,
                           node_numerics(n), &node_input(n, "model", 0)->key, e) &&
              forward_open(&v->f, v->model, node_queue(n), numeric_mode(node_string(n, "numeric")),
                           (int)v->tokens.window, e);
    uint64_t cache = ok ? cache_bytes(v) : 0;
    ok = ok && (!share || replay_new(&v->replay, v->f.q, cache, e)) && open_ledger(v, e);
    if (!ok) {
        evaluator_close(v);
        return false;
    }
    v->lanes = most_lanes(n, &v->tokens);
    v->pass = (struct pass){.f = &v->f, .tokens = &v->tokens, .teacher = v->teacher, .weights = {load, v},
        .replay = v->replay, .keep_every = keep_every(v, cache), .share = share, .node = n};
    *out = v;
    return true;
}

static void tell_stats(const struct evaluator *v)
{
    static const char *const phase[] = {"seconds_weights", "seconds_layers", "seconds_teacher_head", "seconds_head",
                                        "seconds_kl"};
    const struct pass *p = &v->pass;
    node_stat(v->n, "rows_measured", (double)v->rows_measured, "row");
    node_stat(v->n, "rows_reused", (double)v->rows_reused, "row");
    node_stat(v->n, "layer_forwards", (double)p->layer_forwards, "layer");
    node_stat(v->n, "layer_forwards_saved", (double)(p->layer_forwards_naive - p->layer_forwards), "layer");
    for (int i = 0; i < 5; i++)
        node_stat(v->n, phase[i], p->seconds[i], "s");
    node_log(v->n, "%llu rows measured, %llu found in the ledger; %llu layer-forwards, %llu saved by shared prefixes "
             "(%.1f times fewer) [%s]", (unsigned long long)v->rows_measured, (unsigned long long)v->rows_reused,
             (unsigned long long)p->layer_forwards, (unsigned long long)(p->layer_forwards_naive - p->layer_forwards),
             p->layer_forwards ? (double)p->layer_forwards_naive / (double)p->layer_forwards : 1.0,
             node_numerics(v->n));
}

void evaluator_close(struct evaluator *v)
{
    if (!v)
        return;
    if (v->pass.f)
        tell_stats(v);
    ledger_close(v->ledger);
    replay_free(v->replay);
    forward_close(&v->f);
    renderings_close(v->renderings);
    menu_fini(&v->menu);
    tokens_fini(&v->tokens);
    mem_free(v->teacher);
    mem_free(v->slots);
    model_close(v->model);
    mem_free(v);
}

const struct menu *evaluator_menu(const struct evaluator *v) { return &v->menu; }

bool evaluator_table(const struct evaluator *v, struct candidates *out, struct err *e)
{
    uint32_t *scored;
    if (!mem_new(&scored, v->tokens.n, e))
        return false;
    for (uint32_t w = 0; w < v->tokens.n; w++)
        scored[w] = tokens_scored(&v->tokens, w);
    bool ok = candidates_init(out, v->menu.n_units, v->tokens.n, scored, v->tokens.document, e);
    mem_free(scored);
    if (ok) {
        snprintf(out->numeric, sizeof out->numeric, "%s", node_numerics(v->n));
        snprintf(out->tokens, sizeof out->tokens, "%s", v->tokens.digest);
        key_text(&v->context, out->context);
    }
    return ok;
}

/* -------------------------------------------------------------------------------------------------- measuring rows */

/* One assignment to be measured. */
struct job {
    const uint8_t *assignment;
    uint8_t digest[KEY_BYTES];
};

/* The rows of one window, gathered from the pass until its last candidate: one durable write for all. */
struct gather {
    struct evaluator *v;
    const struct job *const *jobs;
    const uint32_t *windows;
    size_t n;
    struct ledger_row *rows; /* [n] */
    float *slots;            /* [n, slots] */
    uint8_t *assignments;    /* [n, units] */
};

static bool take_row(void *context, size_t candidate, size_t window, const struct pass_row *row, struct err *e)
{
    struct gather *g = context;
    struct evaluator *v = g->v;
    const char *path;
    size_t slots = v->tokens.window - 1, units = (size_t)v->menu.n_units;
    struct ledger_row *out = &g->rows[candidate];
    *out = (struct ledger_row){.window = g->windows[window], .n_tokens = row->n_tokens, .kl_sum = row->kl_sum,
        .kl_max = row->kl_max, .nll_teacher = row->nll_teacher, .nll_candidate = row->nll_candidate,
        .top1 = row->top1};
    memcpy(out->candidate, g->jobs[candidate]->digest, KEY_BYTES);
    memset(g->slots + candidate * slots, 0, slots * sizeof *g->slots);
    memcpy(g->slots + candidate * slots, row->kl, row->n_tokens * sizeof *g->slots);
    memcpy(g->assignments + candidate * units, g->jobs[candidate]->assignment, units);
    if (candidate + 1 < g->n)
        return true;
    /* A model file that changed meanwhile must not leave rows under the old key. */
    if (!node_input_path(v->n, "model", 0, "path", &path, e) ||
        !ledger_append(v->ledger, g->rows, g->slots, g->assignments, g->n, e))
        return false;
    v->rows_measured += g->n;
    v->rows_done += g->n;
    node_progress(v->n, (double)v->rows_done, (double)v->rows_wanted, "row");
    return true;
}

/* One pass: all of `jobs` on all of `windows`. */
static bool measure_rows(struct evaluator *v, const struct job *const *jobs, size_t n, const uint32_t *windows,
                         size_t n_windows, struct err *e)
{
    struct gather g = {.v = v, .jobs = jobs, .windows = windows, .n = n};
    const uint8_t **assignments = NULL;
    bool ok = mem_new(&g.rows, n, e) && mem_new(&g.slots, n * (v->tokens.window - 1), e) &&
              mem_new(&g.assignments, n * (size_t)v->menu.n_units, e) && mem_new(&assignments, n, e);
    for (size_t i = 0; ok && i < n; i++)
        assignments[i] = jobs[i]->assignment;
    ok = ok && pass_run(&v->pass, assignments, n, windows, n_windows, take_row, &g, e);
    mem_free(g.rows);
    mem_free(g.slots);
    mem_free(g.assignments);
    mem_free(assignments);
    return ok;
}

/* Is the row there, and whole? The ledger looks at the disk; one that it cannot read any more is measured again. */
static bool has_row(struct evaluator *v, const struct job *j, uint32_t window)
{
    struct ledger_row row;
    return ledger_find(v->ledger, j->digest, window, &row, v->slots);
}

/* A batch of lanes over one group of windows: those that lack every window go in one pass; those that were interrupted
 * in the middle, window by window. So no row that is there is computed again. */
static bool measure_group(struct evaluator *v, const struct job *jobs, size_t n, uint32_t first, uint32_t count,
                          const struct job **chosen, struct err *e)
{
    uint32_t windows[PASS_POSITIONS / 2];
    size_t whole = 0;
    for (uint32_t w = 0; w < count; w++)
        windows[w] = first + w;
    for (size_t i = 0; i < n; i++) {
        uint32_t missing = 0;
        for (uint32_t w = 0; w < count; w++)
            missing += !has_row(v, &jobs[i], first + w);
        if (missing == count)
            chosen[whole++] = &jobs[i];
    }
    if (whole && !measure_rows(v, chosen, whole, windows, count, e))
        return false;
    for (uint32_t w = 0; w < count; w++) {
        size_t some = 0;
        for (size_t i = 0; i < n; i++)
            if (!has_row(v, &jobs[i], first + w))
                chosen[some++] = &jobs[i];
        if (some && !measure_rows(v, chosen, some, windows + w, 1, e))
            return false;
    }
    return true;
}

static int by_assignment(const void *a, const void *b, void *units)
{
    return memcmp(((const struct job *)a)->assignment, ((const struct job *)b)->assignment, *(const size_t *)units);
}

/* All windows for jobs [0, n), which are sorted: neighbours share prefixes, so batches of neighbours share most. */
static bool measure_jobs(struct evaluator *v, const struct job *jobs, size_t n, struct err *e)
{
    const struct job **chosen;
    if (!mem_new(&chosen, v->lanes, e))
        return false;
    bool ok = true;
    for (size_t at = 0; ok && at < n; at += v->lanes) {
        size_t lanes = n - at < v->lanes ? n - at : v->lanes;
        uint32_t group = (uint32_t)(PASS_POSITIONS / (lanes * v->tokens.window));
        group = group ? group : 1;
        for (uint32_t first = 0; ok && first < v->tokens.n; first += group) {
            uint32_t count = v->tokens.n - first < group ? v->tokens.n - first : group;
            if (node_stopping(v->n))
                ok = node_stopped(e);
            ok = ok && measure_group(v, jobs + at, lanes, first, count, chosen, e);
        }
    }
    mem_free(chosen);
    return ok;
}

/* ----------------------------------------------------------------------------------------------- columns from rows */

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The measured columns of a candidate, from its rows; kl has room for every scored token. */
static bool fill_columns(struct evaluator *v, const struct job *j, struct candidate *c, float *kl, struct err *e)
{
    double sum = 0, top1 = 0;
    size_t tokens = 0;
    c->kl_max = 0;
    for (uint32_t w = 0; w < v->tokens.n; w++) {
        struct ledger_row row;
        if (!ledger_find(v->ledger, j->digest, w, &row, kl + tokens))
            return err_set(e, ERR_BUG, "ledger: row of window %u is missing after it was measured", w);
        c->kl_window[w] = row.kl_sum / row.n_tokens;
        c->kl_max = row.kl_max > c->kl_max ? row.kl_max : c->kl_max;
        sum += row.kl_sum;
        top1 += row.top1;
        tokens += row.n_tokens;
    }
    qsort(kl, tokens, sizeof *kl, ascending);
    c->kl_mean = sum / (double)tokens;
    c->kl_p99 = kl[(size_t)ceil(0.99 * (double)tokens) - 1]; /* nearest rank */
    c->top1 = top1 / (double)tokens;
    c->n_windows = v->tokens.n;
    return true;
}

static bool check_assignment(const struct evaluator *v, const struct candidate *c, struct err *e)
{
    for (int u = 0; u < v->menu.n_units; u++) {
        if (c->assignment[u] >= v->menu.n_formats)
            return err_set(e, ERR_INPUT, "candidate %u: unit '%s' has format index %u of %d", c->id,
                           v->menu.unit_names[u], c->assignment[u], v->menu.n_formats);
        if (!v->menu.available[u * v->menu.n_formats + c->assignment[u]])
            return err_set(e, ERR_INPUT,
                           "candidate %u: unit '%s' cannot have format '%s' (its shape does not allow it)", c->id,
                           v->menu.unit_names[u], v->menu.format_names[c->assignment[u]]);
    }
    return true;
}

bool evaluator_measure(struct evaluator *v, struct candidates *table, size_t first, struct err *e)
{
    size_t n = table->n - first, units = (size_t)v->menu.n_units, missing = 0;
    struct job *jobs = NULL, *wanted = NULL;
    float *kl = NULL;
    bool ok = mem_new(&jobs, n, e) && mem_new(&wanted, n, e) &&
              mem_raw(&kl, (size_t)v->tokens.n * v->tokens.window, e);
    v->rows_wanted = v->rows_done = 0;
    ledger_hold(v->ledger);
    for (size_t i = 0; ok && i < n; i++) {
        struct key digest;
        jobs[i].assignment = table->list[first + i].assignment;
        ok = check_assignment(v, &table->list[first + i], e) &&
             key_of_bytes(jobs[i].assignment, units, &digest, e);
        memcpy(jobs[i].digest, digest.bytes, KEY_BYTES);
        uint64_t lacks = 0;
        for (uint32_t w = 0; ok && w < v->tokens.n; w++)
            lacks += !has_row(v, &jobs[i], w);
        for (size_t j = 0; j < missing && lacks; j++) /* an equal one is on the list already */
            if (memcmp(wanted[j].digest, jobs[i].digest, KEY_BYTES) == 0)
                lacks = 0;
        if (lacks)
            wanted[missing++] = jobs[i];
        v->rows_wanted += lacks;
        v->rows_reused += v->tokens.n - lacks;
    }
    if (ok)
        qsort_r(wanted, missing, sizeof *wanted, by_assignment, &units);
    ok = ok && (!missing || measure_jobs(v, wanted, missing, e));
    ledger_release(v->ledger);
    for (size_t i = 0; ok && i < n; i++)
        ok = fill_columns(v, &jobs[i], &table->list[first + i], kl, e);
    mem_free(jobs);
    mem_free(wanted);
    mem_free(kl);
    return ok;
}

/* -------------------------------------------------------------------------------------------- what a node declares */

bool evaluator_numerics(const struct node *n, const char **out, struct err *e)
{
    (void)e;
    *out = numeric_text(node_kernels(n), numeric_mode(node_string(n, "numeric")));
    return true;
}

bool evaluator_needs(struct node *n, struct needs *out, struct err *e)
{
    struct model *m;
    struct token_set tokens;
    if (!model_open_input(&m, n, "model", e))
        return false;
    bool ok = tokens_read(&tokens, node_input(n, "tokens", 0), e);
    if (ok) {
        const struct dataset *names = object_dataset(node_input(n, "renderings", 0)->object, "formats/name");
        uint64_t cache = 2 * chain_bytes(m, &tokens);
        cache = !node_bool(n, "replay") ? 0 : cache < REPLAY_BYTES ? cache : REPLAY_BYTES;
        *out = base_needs(n, m, &tokens, names ? names->shape[0] : 1);
        needs_tensors(node_kernels(n), out, cache);
        tokens_fini(&tokens);
    }
    model_close(m);
    return ok;
}
