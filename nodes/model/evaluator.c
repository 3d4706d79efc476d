/* The evaluator: which (candidate, window) rows the ledger lacks, in which passes they are made, and the columns that
 * come of them. What a row holds is decided in pass.c and never here. */
#include "nodes/model/evaluator.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/str.h"
#include "nodes/model/pass.h"
#include "nodes/model/renderings.h"
#include "nodes/model/replay.h"
#include "nodes/model/resident.h"
#include "nodes/model/teacher.h"

/* Lanes that go together unless the graph says otherwise, and positions (lanes x windows x slots) in one pass: a
 * pass is what an interruption can cost, so it is kept to some seconds of work, on a small machine as on an
 * accelerator, where every lane shall fill its products. */
#define DEFAULT_LANES 32
#define PASS_POSITIONS 16384
/* Raise it when a row's numbers change for another reason than the numeric mode: older rows are then not found. */
#define CONTEXT_VERSION 1
#define REPLAY_BYTES ((uint64_t)512 << 20) /* at most, unless the graph gives the node more memory */
/* On an accelerator: workspaces of the libraries and operands of products, beyond what is counted one by one. */
#define WORKING_BYTES ((uint64_t)1 << 30)
#define MOST_DEVICES 64 /* accelerators that one node measures on */

/* What computes: the CPU, or one of the node's accelerators, with all that lies there. */
struct worker {
    struct evaluator *v;
    int index;
    struct queue *q, *ahead;    /* ahead: an accelerator's second queue */
    struct forward f;
    struct replay *replay;
    struct resident *resident;  /* packed weights; NULL on the CPU, where they are read as they are needed */
    struct tensor teacher_head; /* panels, where the teacher is of another model */
    struct pass pass;
    float *slots;               /* [window - 1], to see that a row is whole */
    size_t positions;           /* of a pass at most: pass_positions until the device was found too small */
    bool ok;
    struct err error;
};

struct evaluator {
    struct node *n;
    struct model *model;
    struct model *teacher_model; /* whose head the teacher's states go through; NULL: model */
    struct renderings *renderings;
    struct menu menu;
    struct token_set tokens;
    float *teacher;
    struct worker *workers;
    int n_workers;
    size_t lanes;
    pthread_mutex_t lock;       /* of what is below, while the workers work */
    struct ledger *ledger;
    struct key context;         /* the ledger's */
    uint64_t rows_measured, rows_reused, rows_wanted, rows_done; /* wanted and done: of the call in hand */
    bool failed;                /* some worker did: the others stop */
};

/* ---------------------------------------------------------------------------------------------------------- opening */

static bool load(void *context, int unit, int format, struct unit_weights *out, struct err *e)
{
    struct worker *w = context;
    struct evaluator *v = w->v;
    const char *name = v->menu.format_names[format];
    if (!w->resident)
        return renderings_load(v->renderings, w->q, v->model, unit, name, w->f.mode, out, e);
    const struct format *f = format_find(name);
    if (!f)
        return err_set(e, ERR_INPUT, "this build has no format '%s'", name);
    *out = (struct unit_weights){.act = f->act};
    if (f->static_input_scale)
        out->act_scale = renderings_input_scale(v->renderings, unit);
    return resident_load(w->resident, unit, format, out, e) || err_context(e, "format '%s'", name);
}

static void load_ahead(void *context, int layer, const uint64_t wanted[LAYER_UNITS])
{
    struct worker *w = context;
    resident_ahead(w->resident, layer, wanted);
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

/* Which native products the accelerators have been found to have, a bit for each code: where one failed its self-test,
 * rows are of another kind. */
static bool find_natives(struct evaluator *v, int64_t *out, struct err *e)
{
    struct queue *q = v->workers[0].q;
    *out = 0;
    if (!q->native)
        return true;
    if (!q->k->enter(q, e))
        return false;
    for (size_t i = 0; formats[i]; i++) {
        bool fits;
        if (!q->k->native_fits(q, formats[i]->code, formats[i]->act, 256, 256, &fits, e))
            return false;
        if (fits)
            *out |= INT64_C(1) << (formats[i]->code - 1); /* CODE_PLAIN, the first, has no such product */
    }
    return true;
}

static bool open_ledger(struct evaluator *v, struct err *e)
{
    struct key_hash *h;
    struct ledger_spec spec = {.numeric = node_numerics(v->n), .assignment_bytes = (uint32_t)v->menu.n_units,
        .slots = v->tokens.window - 1, .formats = (const char *const *)v->menu.format_names,
        .n_formats = (uint32_t)v->menu.n_formats,
        .stopping = is_stopping, .waits = tell_wait, .waiter = v->n};
    int64_t natives;
    if (!find_natives(v, &natives, e) || !key_hash_new(&h, e))
        return false;
    key_hash_text(h, "measuring context");
    key_hash_int(h, CONTEXT_VERSION);
    key_hash_key(h, &node_input(v->n, "model", 0)->key);
    key_hash_key(h, &node_input(v->n, "renderings", 0)->key);
    key_hash_key(h, &node_input(v->n, "teacher", 0)->key);
    key_hash_text(h, v->tokens.digest);
    key_hash_text(h, node_numerics(v->n));
    if (v->workers[0].q->native)
        key_hash_int(h, natives);
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

static size_t pass_positions(const struct kernels *k)
{
    return k->on_device ? DEFAULT_LANES * (size_t)k->chunk_rows : PASS_POSITIONS;
}

/* As many as the graph says, within what `needs` declares: pass_positions in one pass. */
static size_t most_lanes(const struct node *n, const struct token_set *tokens)
{
    size_t lanes = node_int(n, "lanes") ? (size_t)node_int(n, "lanes") : DEFAULT_LANES;
    size_t most = pass_positions(node_kernels(n)) / tokens->window;
    most = most ? most : 1;
    return lanes < most ? lanes : most;
}

/* Is the teacher of another model than the candidates, so that its head is wanted too? */
static bool has_own_head(const struct node *n)
{
    const char *of;
    char text[KEY_TEXT];
    return object_text(node_input(n, "teacher", 0)->object, "model_key", &of) &&
           strcmp(of, key_text(&node_input(n, "model", 0)->key, text)) != 0;
}

/* Memory without what only saves work: the model's tables, teacher states, two sets of lanes, the panels of a layer (or
 * of the head) in every format that lanes can have at once, and the largest unit as it is read; on an accelerator the
 * packed forms of a layer in use and of the next. */
static struct needs base_needs(const struct node *n, const struct model *m, const struct token_set *t,
                               const struct menu *menu)
{
    uint64_t n_formats = (uint64_t)menu->n_formats, all, packed;
    enum dtype mode = numeric_mode(node_string(n, "numeric"));
    uint64_t row = (uint64_t)m->config.hidden * sizeof(float), layer = 0, most_unit = 0, lanes = most_lanes(n, t);
    for (int u = 0; u < LAYER_UNITS; u++) {
        layer += m->units[u].parameters * dtype_bytes(mode);
        most_unit = m->units[u].parameters > most_unit ? m->units[u].parameters : most_unit;
    }
    uint64_t head = m->head_unit >= 0 ? m->units[m->head_unit].parameters : 0; /* after the layers */
    layer = head * dtype_bytes(mode) > layer ? head * dtype_bytes(mode) : layer;
    most_unit = head > most_unit ? head : most_unit;
    struct needs out = {.memory = (uint64_t)t->n * t->window * row + most_unit * sizeof(float), .disk = 1 << 20};
    forward_needs(node_kernels(n), m, mode, (int)t->window, &out);
    if (has_own_head(n))
        forward_head_needs(node_kernels(n), m, mode, &out);
    needs_tensors(node_kernels(n), &out, 2 * (pass_positions(node_kernels(n)) + t->window) * row);
    needs_tensors(node_kernels(n), &out, (n_formats < lanes ? n_formats : lanes) * layer);
    resident_sizes(m, (const char *const *)menu->format_names, menu->n_formats, &all, &packed);
    out.device_memory += node_kernels(n)->on_device ? 2 * packed + WORKING_BYTES : 0;
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

/* What the memory beyond `needs` is used for. On an accelerator packed weights go first, for they are brought again at
 * every pass, but for a quarter that the cache of prefixes may have; host memory keeps copies of them. */
struct shares {
    uint64_t cache, device_weights, host_weights;
};

static struct shares share_memory(const struct evaluator *v)
{
    struct needs base = base_needs(v->n, v->model, &v->tokens, &v->menu);
    uint64_t host = node_memory(v->n) > base.memory ? node_memory(v->n) - base.memory : 0, all, layer;
    if (!node_kernels(v->n)->on_device)
        return (struct shares){.cache = host};
    uint64_t device = node_device_memory(v->n), chains = 2 * chain_bytes(v->model, &v->tokens);
    device = device > base.device_memory ? device - base.device_memory : 0;
    resident_sizes(v->model, (const char *const *)v->menu.format_names, v->menu.n_formats, &all, &layer);
    struct shares s = {.host_weights = host, .cache = chains < device / 4 ? chains : device / 4};
    s.device_weights = all < device - s.cache ? all : device - s.cache;
    s.cache = device - s.device_weights;
    return s;
}

static bool open_resident(struct worker *w, const struct shares *share, struct err *e)
{
    struct evaluator *v = w->v;
    if (!w->q->k->twin_new(w->q, &w->ahead, e))
        return false;
    struct resident_spec spec = {.q = w->q, .ahead = w->ahead, .model = v->model, .renderings = v->renderings,
        .format_names = (const char *const *)v->menu.format_names, .n_formats = v->menu.n_formats, .mode = w->f.mode,
        .device_bytes = share->device_weights, .host_bytes = share->host_weights / (uint64_t)v->n_workers};
    return resident_new(&w->resident, &spec, e);
}

static bool open_worker(struct worker *w, const struct shares *share, struct err *e)
{
    struct evaluator *v = w->v;
    bool reuse = node_bool(v->n, "replay");
    w->positions = pass_positions(w->q->k);
    if (!mem_new(&w->slots, v->tokens.window, e) || !w->q->k->enter(w->q, e) ||
        !forward_open(&w->f, v->model, w->q, numeric_begin(w->q, node_string(v->n, "numeric")), (int)v->tokens.window,
                      e) ||
        (v->teacher_model && !forward_head(w->q, v->teacher_model, w->f.mode, &w->teacher_head, e)) ||
        (reuse && !replay_new(&w->replay, w->q, share->cache, e)) ||
        (w->q->k->on_device && !open_resident(w, share, e)))
        return false;
    w->pass = (struct pass){.f = &w->f, .tokens = &v->tokens, .teacher = v->teacher,
        .teacher_head = v->teacher_model ? &w->teacher_head : NULL,
        .weights = {.load = load, .context = w, .ahead = w->resident ? load_ahead : NULL}, .replay = w->replay,
        .keep_every = keep_every(v, share->cache), .share = reuse, .node = v->n};
    return true;
}

static void close_worker(struct worker *w)
{
    struct err ignored;
    if (!w->q)
        return;
    (void)!w->q->k->enter(w->q, &ignored);
    replay_free(w->replay);
    resident_free(w->resident);
    w->q->k->tensor_free(w->q, &w->teacher_head);
    forward_close(&w->f);
    if (w->ahead)
        w->q->k->twin_free(w->ahead);
    mem_free(w->slots);
}

static bool open_workers(struct evaluator *v, struct err *e)
{
    int devices = node_devices(v->n);
    v->n_workers = devices > 0 ? devices : 1;
    if (!mem_new(&v->workers, (size_t)v->n_workers, e))
        return false;
    struct shares share = share_memory(v);
    for (int i = 0; i < v->n_workers; i++) {
        struct worker *w = &v->workers[i];
        *w = (struct worker){.v = v, .index = i, .q = devices > 0 ? node_device_queue(v->n, i) : node_queue(v->n)};
        if (!open_worker(w, &share, e))
            return false;
    }
    return true;
}

bool evaluator_open(struct evaluator **out, struct node *n, struct err *e)
{
    struct evaluator *v;
    if (!mem_new(&v, 1, e))
        return false;
    v->n = n;
    pthread_mutex_init(&v->lock, NULL);
    bool ok = model_open_input(&v->model, n, "model", e) &&
              menu_read(&v->menu, node_input(n, "renderings", 0)->object, e) && check_menu(v, e) &&
              renderings_open(&v->renderings, n, "renderings", v->model, e) &&
              tokens_read(&v->tokens, node_input(n, "tokens", 0), e) &&
              teacher_read(&v->teacher, node_input(n, "teacher", 0), &v->tokens, v->model->config.hidden,
                           node_numerics(n), e) &&
              teacher_model(&v->teacher_model, n, node_input(n, "teacher", 0), &node_input(n, "model", 0)->key, e) &&
              open_workers(v, e) && open_ledger(v, e);
    if (!ok) {
        evaluator_close(v);
        return false;
    }
    v->lanes = most_lanes(n, &v->tokens);
    *out = v;
    return true;
}

/* The algorithms that the products were pinned to: what a key says only by the library's version. */
static void tell_products(const struct evaluator *v)
{
    char text[8192], *rest;
    struct queue *q = v->workers[0].q;
    if (!q->k->products)
        return;
    q->k->products(q, text, sizeof text);
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        node_log(v->n, "product %s", line);
}

static void tell_weights(const struct evaluator *v)
{
    uint64_t brought = 0, read = 0;
    char a[16], b[16];
    for (int i = 0; i < v->n_workers; i++) {
        uint64_t all, some;
        if (!v->workers[i].resident)
            return;
        resident_traffic(v->workers[i].resident, &all, &some);
        brought += all;
        read += some;
    }
    node_stat(v->n, "weights_brought", (double)brought, "byte");
    node_log(v->n, "%s of packed weights went to the device, %s of them from the store", str_size(brought, a),
             str_size(read, b));
}

static void tell_stats(const struct evaluator *v)
{
    static const char *const phase[] = {"seconds_weights", "seconds_layers", "seconds_teacher_head", "seconds_head",
                                        "seconds_kl"};
    uint64_t forwards = 0, naive = 0;
    double seconds[5] = {0};
    for (int i = 0; i < v->n_workers; i++) {
        forwards += v->workers[i].pass.layer_forwards;
        naive += v->workers[i].pass.layer_forwards_naive;
        for (int p = 0; p < 5; p++)
            seconds[p] += v->workers[i].pass.seconds[p];
    }
    node_stat(v->n, "rows_measured", (double)v->rows_measured, "row");
    node_stat(v->n, "rows_reused", (double)v->rows_reused, "row");
    node_stat(v->n, "layer_forwards", (double)forwards, "layer");
    node_stat(v->n, "layer_forwards_saved", (double)(naive - forwards), "layer");
    for (int i = 0; i < 5; i++)
        node_stat(v->n, phase[i], seconds[i], "s");
    node_log(v->n, "%llu rows measured, %llu found in the ledger; %llu layer-forwards, %llu saved by shared prefixes "
             "(%.1f times fewer) [%s]", (unsigned long long)v->rows_measured, (unsigned long long)v->rows_reused,
             (unsigned long long)forwards, (unsigned long long)(naive - forwards),
             forwards ? (double)naive / (double)forwards : 1.0, node_numerics(v->n));
    tell_weights(v);
    tell_products(v);
}

void evaluator_close(struct evaluator *v)
{
    if (!v)
        return;
    if (v->ledger)
        tell_stats(v);
    ledger_close(v->ledger);
    for (int i = 0; v->workers && i < v->n_workers; i++)
        close_worker(&v->workers[i]);
    mem_free(v->workers);
    renderings_close(v->renderings);
    menu_fini(&v->menu);
    tokens_fini(&v->tokens);
    mem_free(v->teacher);
    model_close(v->teacher_model);
    model_close(v->model);
    pthread_mutex_destroy(&v->lock);
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
    struct worker *w;
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
    struct evaluator *v = g->w->v;
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
    pthread_mutex_lock(&v->lock);
    /* A model file that changed meanwhile must not leave rows under the old key. */
    bool ok = model_input_path(v->n, "model", &path, e) &&
              ledger_append(v->ledger, g->rows, g->slots, g->assignments, g->n, e);
    if (ok) {
        v->rows_measured += g->n;
        v->rows_done += g->n;
        node_progress(v->n, (double)v->rows_done, (double)v->rows_wanted, "row");
    }
    pthread_mutex_unlock(&v->lock);
    return ok;
}

/* One pass: all of `jobs` on all of `windows`. */
static bool measure_rows(struct worker *w, const struct job *const *jobs, size_t n, const uint32_t *windows,
                         size_t n_windows, struct err *e)
{
    struct evaluator *v = w->v;
    struct gather g = {.w = w, .jobs = jobs, .windows = windows, .n = n};
    const uint8_t **assignments = NULL;
    bool ok = mem_new(&g.rows, n, e) && mem_new(&g.slots, n * (v->tokens.window - 1), e) &&
              mem_new(&g.assignments, n * (size_t)v->menu.n_units, e) && mem_new(&assignments, n, e);
    for (size_t i = 0; ok && i < n; i++)
        assignments[i] = jobs[i]->assignment;
    ok = ok && pass_run(&w->pass, assignments, n, windows, n_windows, take_row, &g, e);
    mem_free(g.rows);
    mem_free(g.slots);
    mem_free(g.assignments);
    mem_free(assignments);
    return ok;
}

/* Is the row there, and whole? The ledger looks at the disk; one that it cannot read any more is measured again. */
static bool has_row(struct worker *w, const struct job *j, uint32_t window)
{
    struct ledger_row row;
    pthread_mutex_lock(&w->v->lock);
    bool found = ledger_find(w->v->ledger, j->digest, window, &row, w->slots);
    pthread_mutex_unlock(&w->v->lock);
    return found;
}

/* A batch of lanes over one group of windows: those that lack every window go in one pass; those that were interrupted
 * in the middle, window by window. So no row that is there is computed again. */
static bool measure_group(struct worker *w, const struct job *jobs, size_t n, const uint32_t *windows, size_t count,
                          const struct job **chosen, struct err *e)
{
    size_t whole = 0;
    for (size_t i = 0; i < n; i++) {
        size_t missing = 0;
        for (size_t k = 0; k < count; k++)
            missing += !has_row(w, &jobs[i], windows[k]);
        if (missing == count)
            chosen[whole++] = &jobs[i];
    }
    if (whole && !measure_rows(w, chosen, whole, windows, count, e))
        return false;
    for (size_t k = 0; k < count; k++) {
        size_t some = 0;
        for (size_t i = 0; i < n; i++)
            if (!has_row(w, &jobs[i], windows[k]))
                chosen[some++] = &jobs[i];
        if (some && !measure_rows(w, chosen, some, windows + k, 1, e))
            return false;
    }
    return true;
}

/* After a failure: was the device too small for a pass, and may a smaller one fit? Then what only saves work is let go
 * of, and passes are half as large from now on. */
static bool shrink(struct worker *w, const struct err *e)
{
    if (!w->resident || e->code != ERR_RESOURCE || w->positions <= w->v->tokens.window)
        return false;
    w->positions /= 2;
    node_log(w->v->n, "%s; goes on with %zu positions at a time", e->text, w->positions);
    if (w->replay)
        replay_drop(w->replay);
    resident_shrink(w->resident);
    return true;
}

static int by_assignment(const void *a, const void *b, void *units)
{
    return memcmp(((const struct job *)a)->assignment, ((const struct job *)b)->assignment, *(const size_t *)units);
}

static bool others_failed(struct evaluator *v)
{
    pthread_mutex_lock(&v->lock);
    bool failed = v->failed;
    pthread_mutex_unlock(&v->lock);
    return failed;
}

/* A batch of lanes on its windows, as many windows and lanes at a time as a pass may have. A pass that did not fit is
 * gone through again in smaller ones; rows that are there are not computed again. */
static bool measure_batch(struct worker *w, const struct job *jobs, size_t n, const uint32_t *windows,
                          size_t n_windows, const struct job **chosen, struct err *e)
{
    size_t lane = 0, first = 0, slots = w->v->tokens.window;
    while (first < n_windows) {
        size_t most = w->positions / slots ? w->positions / slots : 1, lanes = n - lane < most ? n - lane : most;
        size_t group = w->positions / ((n < most ? n : most) * slots), left = n_windows - first;
        size_t count = group < 1 ? 1 : group < left ? group : left;
        if (node_stopping(w->v->n))
            return node_stopped(e);
        if (others_failed(w->v))
            return false;
        if (!measure_group(w, jobs + lane, lanes, windows + first, count, chosen, e)) {
            if (!shrink(w, e))
                return false;
            continue;
        }
        lane += lanes;
        if (lane == n) {
            lane = 0;
            first += count;
        }
    }
    return true;
}

/* What a call of evaluator_measure_windows measures: jobs that are sorted, so that neighbours share prefixes and batches
 * of neighbours share most. */
struct work {
    const struct job *jobs;
    size_t n;
    const uint32_t *windows;
    size_t n_windows;
};

/* One worker's share. With several workers each has windows of its own, for which it alone keeps states; when windows
 * are few, the batches are dealt out instead. */
static bool measure_share(struct worker *w, const struct work *all, struct err *e)
{
    const struct evaluator *v = w->v;
    const struct job **chosen;
    size_t batch = 0, workers = (size_t)v->n_workers, index = (size_t)w->index;
    if (!mem_new(&chosen, v->lanes, e))
        return false;
    bool ok = true, by_windows = all->n_windows >= 2 * workers;
    size_t first = by_windows ? all->n_windows * index / workers : 0;
    size_t end = by_windows ? all->n_windows * (index + 1) / workers : all->n_windows;
    for (size_t at = 0; ok && at < all->n; at += v->lanes, batch++) {
        size_t lanes = all->n - at < v->lanes ? all->n - at : v->lanes;
        if (by_windows || batch % workers == index)
            ok = measure_batch(w, all->jobs + at, lanes, all->windows + first, end - first, chosen, e);
    }
    mem_free(chosen);
    return ok;
}

/* All workers at once. The first failure counts, by the workers' order. */
static bool measure_jobs(struct evaluator *v, const struct work *work, struct err *e)
{
    v->failed = false;
#pragma omp parallel for num_threads(v->n_workers) schedule(static, 1) if (v->n_workers > 1)
    for (int i = 0; i < v->n_workers; i++) {
        struct worker *w = &v->workers[i];
        w->error = (struct err){0};
        w->ok = w->q->k->enter(w->q, &w->error) && measure_share(w, work, &w->error);
        if (!w->ok) {
            pthread_mutex_lock(&v->lock);
            v->failed = true;
            pthread_mutex_unlock(&v->lock);
        }
    }
    for (int i = 0; i < v->n_workers; i++)
        if (!v->workers[i].ok && v->workers[i].error.code != ERR_NONE) {
            *e = v->workers[i].error;
            return false;
        }
    return true;
}

/* ----------------------------------------------------------------------------------------------- columns from rows */

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static float percentile(const float *sorted, size_t n, double share)
{
    return sorted[(size_t)ceil(share * (double)n) - 1]; /* nearest rank */
}

static bool find_row(struct evaluator *v, const struct job *j, uint32_t window, struct ledger_row *row, float *kl,
                     struct err *e)
{
    return ledger_find(v->ledger, j->digest, window, row, kl) ||
           err_set(e, ERR_BUG, "ledger: row of window %u is missing after it was measured", window);
}

/* The columns of a candidate that is measured on all windows, from its rows; kl has room for every scored token. */
static bool fill_complete(struct evaluator *v, const struct job *j, struct candidate *c, float *kl, struct err *e)
{
    double sum = 0, top1 = 0, nll = 0, most = 0;
    size_t tokens = 0;
    for (uint32_t w = 0; w < v->tokens.n; w++) {
        struct ledger_row row;
        if (!find_row(v, j, w, &row, kl + tokens, e))
            return false;
        most = row.kl_max > most ? row.kl_max : most;
        sum += row.kl_sum;
        top1 += row.top1;
        nll += row.nll_candidate - row.nll_teacher;
        tokens += row.n_tokens;
    }
    qsort(kl, tokens, sizeof *kl, ascending);
    c->kl_mean = sum / (double)tokens;
    c->kl_p95 = percentile(kl, tokens, 0.95);
    c->kl_p99 = percentile(kl, tokens, 0.99);
    c->kl_p999 = percentile(kl, tokens, 0.999);
    c->kl_max = most;
    c->nll_delta = nll / (double)tokens;
    c->top1 = top1 / (double)tokens;
    return true;
}

/* What the rows of these windows add to a candidate's columns. */
static bool fill_columns(struct evaluator *v, const struct job *j, struct candidate *c, const uint32_t *windows,
                         size_t n, float *kl, struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        struct ledger_row row;
        if (!find_row(v, j, windows[i], &row, kl, e))
            return false;
        double *to = &c->kl_window[windows[i]];
        c->n_windows += isnan(*to);
        c->tokens += isnan(*to) ? row.n_tokens : 0;
        *to = row.kl_sum / row.n_tokens;
    }
    return c->n_windows < v->tokens.n || fill_complete(v, j, c, kl, e);
}

static bool check_assignment(const struct evaluator *v, const struct candidate *c, struct err *e)
{
    for (int u = 0; u < v->menu.n_units; u++) {
        if (c->assignment[u] >= v->menu.n_formats)
            return err_set(e, ERR_INPUT, "candidate %u: unit '%s' has format index %u of %d", c->id,
                           v->menu.unit_names[u], c->assignment[u], v->menu.n_formats);
        if (!v->menu.available[u * v->menu.n_formats + c->assignment[u]])
            return err_set(e, ERR_INPUT,
                           "candidate %u: unit '%s' cannot have format '%s' where it is served", c->id,
                           v->menu.unit_names[u], v->menu.format_names[c->assignment[u]]);
    }
    return true;
}

static bool check_windows(const struct evaluator *v, const uint32_t *windows, size_t n, struct err *e)
{
    uint8_t *seen;
    if (!mem_new(&seen, v->tokens.n, e))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++)
        ok = (windows[i] < v->tokens.n && !seen[windows[i]]++) ||
             err_set(e, ERR_BUG, "window %u of %u is to be measured: there is none, or twice", windows[i], v->tokens.n);
    mem_free(seen);
    return ok;
}

/* The jobs of the candidates from `first` on that are not dropped, with the index of each in at[]; those that lack rows,
 * equal ones once, in wanted[]. All have room. */
static bool find_jobs(struct evaluator *v, const struct candidates *table, size_t first, struct job *jobs, size_t *at,
                      size_t *n, struct job *wanted, struct work *work, struct err *e)
{
    size_t units = (size_t)v->menu.n_units;
    *n = work->n = 0;
    v->rows_wanted = v->rows_done = 0;
    for (size_t i = first; i < table->n; i++) {
        const struct candidate *c = &table->list[i];
        struct job *job = &jobs[*n];
        struct key digest;
        if (c->dropped_at >= 0)
            continue;
        if (!check_assignment(v, c, e) || !key_of_bytes(c->assignment, units, &digest, e))
            return false;
        *job = (struct job){.assignment = c->assignment};
        memcpy(job->digest, digest.bytes, KEY_BYTES);
        at[(*n)++] = i;
        uint64_t lacks = 0;
        for (size_t w = 0; w < work->n_windows; w++)
            lacks += !has_row(&v->workers[0], job, work->windows[w]);
        for (size_t j = 0; j < work->n && lacks; j++) /* an equal one is on the list already */
            if (memcmp(wanted[j].digest, job->digest, KEY_BYTES) == 0)
                lacks = 0;
        if (lacks)
            wanted[work->n++] = *job;
        v->rows_wanted += lacks;
        v->rows_reused += work->n_windows - lacks;
    }
    qsort_r(wanted, work->n, sizeof *wanted, by_assignment, &units);
    return true;
}

bool evaluator_measure_windows(struct evaluator *v, struct candidates *table, size_t first, const uint32_t *windows,
                               size_t n, struct err *e)
{
    size_t most = table->n - first, n_jobs = 0, *at = NULL;
    struct job *jobs = NULL, *wanted = NULL;
    float *kl = NULL;
    bool ok = check_windows(v, windows, n, e) && mem_new(&jobs, most, e) && mem_new(&at, most, e) &&
              mem_new(&wanted, most, e) && mem_raw(&kl, (size_t)v->tokens.n * v->tokens.window, e);
    struct work work = {.jobs = wanted, .windows = windows, .n_windows = n};
    ledger_hold(v->ledger);
    ok = ok && find_jobs(v, table, first, jobs, at, &n_jobs, wanted, &work, e);
    ok = ok && (!work.n || measure_jobs(v, &work, e));
    ledger_release(v->ledger);
    for (size_t i = 0; ok && i < n_jobs; i++)
        ok = fill_columns(v, &jobs[i], &table->list[at[i]], windows, n, kl, e);
    mem_free(kl);
    mem_free(wanted);
    mem_free(at);
    mem_free(jobs);
    return ok;
}

bool evaluator_measure(struct evaluator *v, struct candidates *table, size_t first, struct err *e)
{
    uint32_t *all;
    if (!mem_new(&all, v->tokens.n, e))
        return false;
    for (uint32_t w = 0; w < v->tokens.n; w++)
        all[w] = w;
    bool ok = evaluator_measure_windows(v, table, first, all, v->tokens.n, e);
    mem_free(all);
    return ok;
}

/* -------------------------------------------------------------------------------------------- what a node declares */

bool evaluator_needs(struct node *n, struct needs *out, struct err *e)
{
    struct model *m;
    struct token_set tokens;
    if (!model_open_input(&m, n, "model", e))
        return false;
    bool ok = tokens_read(&tokens, node_input(n, "tokens", 0), e);
    if (ok) {
        struct menu menu = {0};
        uint64_t cache = 2 * chain_bytes(m, &tokens);
        cache = !node_bool(n, "replay") ? 0 : cache < REPLAY_BYTES ? cache : REPLAY_BYTES;
        ok = menu_read(&menu, node_input(n, "renderings", 0)->object, e);
        if (ok) {
            *out = base_needs(n, m, &tokens, &menu);
            needs_tensors(node_kernels(n), out, cache);
            out->devices = MOST_DEVICES;
        }
        menu_fini(&menu);
        tokens_fini(&tokens);
    }
    model_close(m);
    return ok;
}
