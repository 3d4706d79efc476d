/* Node type `probe`: L2, adjoint probes of KL. Random draws at the teacher's logits go backward through the original
 * model on the windows of port `tokens`; the response of every unit in every format to them gives unary costs and pair
 * interactions in nats (nodes/search/probes.h; nodes/model/adjoint.h). A window is a part that is durable on its own,
 * so a killed run goes on with the next. The windows must be of documents that no rendering was fitted to: on
 * SmolLM2-135M in nvfp4_a16, costs on those that GPTQ had fitted were 7 to 28 % too low, by the kind of unit
 * (tests/benchmarks.md).
 *
 * Its result is also a table of candidates, which a `measure` may take: the strongest pairs, each as the two single
 * changes of the base and both together, so that four real KLs can be held against the pair's term. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nodes/model/adjoint.h"
#include "nodes/model/renderings.h"
#include "nodes/nodes.h"
#include "nodes/search/candidates.h"
#include "nodes/search/column.h"
#include "nodes/search/probes.h"

#define BATCH_BYTES ((uint64_t)1 << 30) /* of states and gradients, unless the graph gives the node more memory */
#define BLOCK 8 /* most positions whose responses are added up before they are squared */
#define BATCH_WINDOWS 8 /* on a CPU, where more would save little and a kill cost more */

struct probe {
    struct node *n;
    struct model *model;
    struct renderings *renderings;
    struct menu menu;
    struct token_set tokens;
    struct forward f;
    struct adjoint_spec spec;
    uint8_t *skip;          /* [unit, format] */
    double *response;       /* [unit, format, probe, window] */
    double *local, *square; /* [unit, format, window] */
    double *trace;          /* [unit, window] */
    double *cost, *error;   /* [unit, format]: shrunk */
    double *own;            /* [unit, format]: the costs before that */
    double *kept;           /* [unit, format]: the share of their distance from the local squares that was kept */
    uint32_t *scored;       /* [window]: scored positions */
    uint32_t done, batch;   /* windows that are done, and in hand */
    struct probe_pairs pairs;
    struct candidates checks;
};

/* ------------------------------------------------------------------------------------------------------------ parts */

static void part_name(uint32_t window, char out[32]) { snprintf(out, 32, "window.%04u", window); }

static size_t cells(const struct probe *p) { return (size_t)p->menu.n_units * (size_t)p->menu.n_formats; }

/* The numbers of one window, taken into the arrays of all. */
static void gather(struct probe *p, uint32_t window, const struct adjoint_row *row)
{
    size_t probes = (size_t)p->spec.n_probes, windows = p->tokens.n;
    for (size_t c = 0; c < cells(p); c++) {
        bool is_there = p->menu.available[c] != 0;
        for (size_t k = 0; k < probes; k++)
            p->response[(c * probes + k) * windows + window] = is_there ? row->response[c * probes + k] : NAN;
        p->local[c * windows + window] = is_there ? row->local[c] : NAN;
        p->square[c * windows + window] = is_there ? row->square[c] : NAN;
    }
    for (int u = 0; p->spec.n_traces > 0 && u < p->menu.n_units; u++)
        p->trace[(size_t)u * windows + window] = row->trace[u];
}

static bool new_row(const struct probe *p, struct adjoint_row *row, struct err *e)
{
    *row = (struct adjoint_row){0};
    return mem_new(&row->response, cells(p) * (size_t)p->spec.n_probes, e) && mem_new(&row->local, cells(p), e) &&
           mem_new(&row->square, cells(p), e) && mem_new(&row->trace, (size_t)p->menu.n_units, e);
}

static void free_row(struct adjoint_row *row)
{
    mem_free(row->response);
    mem_free(row->local);
    mem_free(row->square);
    mem_free(row->trace);
}

static bool write_part(struct probe *p, uint32_t window, const struct adjoint_row *row, struct err *e)
{
    struct writer *w;
    char part[32];
    uint64_t units = (uint64_t)p->menu.n_units, n_formats = (uint64_t)p->menu.n_formats;
    struct dataset response = {.name = "response", .dtype = DTYPE_F64, .rank = 3,
        .shape = {units, n_formats, (uint64_t)p->spec.n_probes}, .unit = "1", .axes = "unit, format, probe",
        .description = "sum over the window's positions of <gradient, change of the output>"};
    struct dataset local = {.name = "local", .dtype = DTYPE_F64, .rank = 2, .shape = {units, n_formats},
        .unit = "nat", .axes = "unit, format",
        .description = "mean over probes of the sum of squared responses of blocks of positions"};
    struct dataset square = {.name = "square", .dtype = DTYPE_F64, .rank = 2, .shape = {units, n_formats},
        .unit = "nat", .axes = "unit, format", .description = "mean over probes of the sum of (gradient * change)^2"};
    struct dataset trace = {.name = "trace", .dtype = DTYPE_F64, .rank = 1, .shape = {units}, .unit = "nat",
        .axes = "unit", .description = "mean over draws of |sum of gradient input^T|^2; 0 where none were wanted"};
    part_name(window, part);
    if (!node_part_new(p->n, part, &w, e))
        return false;
    if (!writer_add(w, &response, row->response, e) || !writer_add(w, &local, row->local, e) ||
        !writer_add(w, &square, row->square, e) || !writer_add(w, &trace, row->trace, e)) {
        writer_abort(w);
        return false;
    }
    return node_part_commit(p->n, w, e);
}

static bool find_part(struct probe *p, uint32_t window, bool *found, struct err *e)
{
    struct object *o;
    struct adjoint_row row;
    char part[32];
    part_name(window, part);
    if (!node_part_open(p->n, part, &o, e))
        return false;
    *found = o != NULL;
    if (!o)
        return true;
    bool ok = new_row(p, &row, e) &&
              object_read(o, "response", DTYPE_F64, 0, cells(p) * (size_t)p->spec.n_probes, row.response, e) &&
              object_read(o, "local", DTYPE_F64, 0, cells(p), row.local, e) &&
              object_read(o, "square", DTYPE_F64, 0, cells(p), row.square, e) &&
              object_read(o, "trace", DTYPE_F64, 0, (size_t)p->menu.n_units, row.trace, e);
    if (ok)
        gather(p, window, &row);
    free_row(&row);
    object_close(o);
    return ok;
}

/* ---------------------------------------------------------------------------------------------------------- probing */

static bool load(void *context, int unit, int format, struct unit_weights *out, struct err *e)
{
    struct probe *p = context;
    return renderings_load(p->renderings, p->f.q, p->model, unit, p->menu.format_names[format], p->f.mode, out, e);
}

static void progress(void *context, double share)
{
    struct probe *p = context;
    node_progress(p->n, p->done + share * p->batch, p->tokens.n, "window");
}

static bool run_batch(struct probe *p, const uint32_t *windows, uint32_t n, struct err *e)
{
    struct adjoint_row *rows;
    if (!mem_new(&rows, n, e))
        return false;
    bool ok = true;
    for (uint32_t i = 0; ok && i < n; i++)
        ok = new_row(p, &rows[i], e);
    ok = ok && adjoint_run(&p->spec, windows, n, rows, e);
    for (uint32_t i = 0; ok && i < n; i++) {
        gather(p, windows[i], &rows[i]);
        ok = write_part(p, windows[i], &rows[i], e);
    }
    for (uint32_t i = 0; i < n; i++)
        free_row(&rows[i]);
    mem_free(rows);
    return ok;
}

static uint32_t block_of(uint32_t window)
{
    uint32_t block = BLOCK;
    while (window % block != 0)
        block--;
    return block;
}

/* What a probe takes with a batch of one window. */
static struct needs base_needs(const struct node *n, const struct model *m, const struct token_set *t,
                               const struct menu *menu)
{
    const struct kernels *k = node_kernels(n);
    enum dtype mode = numeric_mode(node_string(n, "numeric"));
    uint64_t probes = (uint64_t)node_int(n, "draws"), windows = (uint64_t)(menu->n_units * menu->n_formats) * t->n;
    struct needs out = {.memory = (16 * probes + 16) * windows, .disk = (16 * probes + 32) * windows};
    forward_needs(k, m, mode, (int)t->window, &out);
    adjoint_needs(k, m, mode, t->window, menu->n_formats, (int)probes, block_of(t->window), 1, &out);
    return out;
}

/* Memory for the states and gradients of more: what the node has beyond that. */
static uint64_t batch_bytes(const struct probe *p)
{
    struct needs base = base_needs(p->n, p->model, &p->tokens, &p->menu);
    uint64_t wanted = node_on_device(p->n) ? base.device_memory : base.memory;
    uint64_t given = node_on_device(p->n) ? node_device_memory(p->n) : node_memory(p->n);
    return given > wanted + BATCH_BYTES ? given - wanted : BATCH_BYTES;
}

static bool run_windows(struct probe *p, struct err *e)
{
    uint32_t *missing, n = 0;
    if (!mem_new(&missing, p->tokens.n, e))
        return false;
    bool ok = true;
    for (uint32_t w = 0; ok && w < p->tokens.n; w++) {
        bool found;
        ok = find_part(p, w, &found, e);
        if (ok && !found)
            missing[n++] = w;
    }
    uint32_t batch = adjoint_batch(&p->spec, batch_bytes(p));
    uint32_t most = (uint32_t)node_int(p->n, "batch");
    if (most == 0 && !node_on_device(p->n))
        most = BATCH_WINDOWS;
    batch = most > 0 && most < batch ? most : batch;
    for (uint32_t at = 0; ok && at < n; at += batch) {
        p->done = p->tokens.n - n + at;
        p->batch = n - at < batch ? n - at : batch;
        ok = node_stopping(p->n) ? node_stopped(e) : run_batch(p, missing + at, p->batch, e);
    }
    mem_free(missing);
    return ok;
}

/* ----------------------------------------------------------------------------------------------------------- checks */

struct check {
    double strength;
    size_t pair, cell;
};

static int by_strength(const void *a, const void *b)
{
    const struct check *x = a, *y = b;
    if (x->strength != y->strength)
        return x->strength > y->strength ? -1 : 1;
    return (x->pair > y->pair) - (x->pair < y->pair);
}

/* The base comes first; the others are made from it. */
static bool add_check(struct probe *p, uint8_t *assignment, const char *origin, struct err *e)
{
    int32_t parent = p->checks.n > 0 ? 0 : -1;
    return candidates_find(&p->checks, assignment) >= 0 ||
           candidates_add(&p->checks, &p->menu, assignment, origin, parent, e) != NULL;
}

/* The pairs with the largest terms, at the formats where they are largest: base, one, other, both. The base has each
 * unit in its cheapest format, so that what is measured is small and the second order holds. */
static bool propose_checks(struct probe *p, struct err *e)
{
    size_t n_formats = (size_t)p->menu.n_formats, per_pair = n_formats * n_formats;
    size_t wanted = (size_t)node_int(p->n, "checks");
    struct check *checks = NULL;
    uint8_t *base = NULL;
    bool ok = candidates_init(&p->checks, p->menu.n_units, 0, NULL, NULL, e) && mem_new(&checks, p->pairs.n + 1, e) &&
              mem_new(&base, (size_t)p->menu.n_units, e);
    for (int u = 0; ok && u < p->menu.n_units; u++)
        for (size_t f = 0; f < n_formats; f++)
            if (p->menu.available[(size_t)u * n_formats + f] && (!p->menu.available[(size_t)u * n_formats + base[u]] ||
                p->cost[(size_t)u * n_formats + f] < p->cost[(size_t)u * n_formats + base[u]]))
                base[u] = (uint8_t)f;
    for (size_t i = 0; ok && i < p->pairs.n; i++) {
        checks[i] = (struct check){.pair = i};
        for (size_t c = 0; c < per_pair; c++) {
            double x = fabs(p->pairs.cost[i * per_pair + c]);
            if (x > checks[i].strength)
                checks[i] = (struct check){x, i, c};
        }
    }
    if (ok && p->pairs.n > 0 && wanted > 0) {
        qsort(checks, p->pairs.n, sizeof *checks, by_strength);
        ok = add_check(p, base, "base", e);
    }
    for (size_t i = 0; ok && i < p->pairs.n && i < wanted; i++) {
        const uint32_t *units = p->pairs.units[checks[i].pair];
        const uint8_t format[2] = {(uint8_t)(checks[i].cell / n_formats), (uint8_t)(checks[i].cell % n_formats)};
        for (int which = 1; ok && which < 4; which++) {
            uint8_t kept[2] = {base[units[0]], base[units[1]]};
            for (int side = 0; side < 2; side++)
                if (which & (1 << side))
                    base[units[side]] = format[side];
            ok = add_check(p, base, which == 3 ? "pair" : "single", e);
            base[units[0]] = kept[0];
            base[units[1]] = kept[1];
        }
    }
    mem_free(base);
    mem_free(checks);
    return ok;
}

/* ---------------------------------------------------------------------------------------------------------- results */

static bool write_costs(struct probe *p, struct writer *w, struct err *e)
{
    uint64_t units = (uint64_t)p->menu.n_units, n_formats = (uint64_t)p->menu.n_formats, windows = p->tokens.n;
    struct dataset response = {.name = "response", .dtype = DTYPE_F64, .rank = 4,
        .shape = {units, n_formats, (uint64_t)p->spec.n_probes, windows}, .unit = "1",
        .axes = "unit, format, probe, window", .description = "sum over the window's positions of <gradient, change of "
        "the output>; the mean of its square is twice the KL; NaN where not available"};
    struct dataset local = {.name = "local", .dtype = DTYPE_F64, .rank = 3, .shape = {units, n_formats, windows},
        .unit = "nat", .axes = "unit, format, window", .description = "mean over probes of the sum over blocks of "
        "(sum over the block's positions of <gradient, change of the output>)^2; attribute `block`: their length"};
    struct dataset square = {.name = "square", .dtype = DTYPE_F64, .rank = 3, .shape = {units, n_formats, windows},
        .unit = "nat", .axes = "unit, format, window",
        .description = "mean over probes of the sum of (gradient * change)^2 over positions and rows"};
    struct dataset trace = {.name = "trace", .dtype = DTYPE_F64, .rank = 2, .shape = {units, windows}, .unit = "nat",
        .axes = "unit, window", .description =
            "estimated trace of the Fisher of the window's KL in the unit's weights"};
    struct dataset cost = {.name = "cost", .dtype = DTYPE_F64, .rank = 2, .shape = {units, n_formats}, .unit = "nat",
        .axes = "unit, format", .description = "predicted KL of the format alone, to second order, shrunk; NaN where "
        "not available"};
    struct dataset own = {.name = "cost_own", .dtype = DTYPE_F64, .rank = 2, .shape = {units, n_formats}, .unit = "nat",
        .axes = "unit, format", .description = "the same by the responses alone"};
    struct dataset kept = {.name = "cost_kept", .dtype = DTYPE_F64, .rank = 2, .shape = {units, n_formats}, .unit = "1",
        .axes = "unit, format", .description = "the share of cost_own's distance from the local squares that was kept"};
    struct dataset error = {.name = "cost_error", .dtype = DTYPE_F64, .rank = 2, .shape = {units, n_formats},
        .unit = "nat", .axes = "unit, format", .description = "its standard error, over documents"};
    return writer_add(w, &response, p->response, e) && writer_add(w, &local, p->local, e) &&
           writer_add(w, &square, p->square, e) && writer_int(w, "block", p->spec.block, e) &&
           (p->spec.n_traces == 0 || writer_add(w, &trace, p->trace, e)) && writer_add(w, &cost, p->cost, e) &&
           writer_add(w, &error, p->error, e) && writer_add(w, &own, p->own, e) && writer_add(w, &kept, p->kept, e) &&
           writer_int(w, "trace_draws", p->spec.n_traces, e) &&
           writer_text(w, "draw", node_string(p->n, "draw"), e);
}

static bool write_pairs(struct probe *p, struct writer *w, struct err *e)
{
    uint64_t n_formats = (uint64_t)p->menu.n_formats, n = p->pairs.n;
    struct dataset units = {.name = "pairs/units", .dtype = DTYPE_U32, .rank = 2, .shape = {n, 2}, .unit = "1",
        .axes = "pair, side", .description = "the two units, ascending"};
    struct dataset cost = {.name = "pairs/cost", .dtype = DTYPE_F64, .rank = 3, .shape = {n, n_formats, n_formats},
        .unit = "nat", .axes = "pair, format, format", .description =
            "what both add to the sum of their costs, shrunk"};
    return writer_add(w, &units, p->pairs.units, e) && writer_add(w, &cost, p->pairs.cost, e) &&
           column_write(w, "pairs/significance", DTYPE_F64, p->pairs.significance, n, "1", "pair",
                        "largest correlation of their responses, in standard errors", e) &&
           writer_double(w, "pairs_kept", p->pairs.kept, e) && writer_double(w, "pairs_spread", p->pairs.spread, e) &&
           writer_int(w, "pairs_tested", (int64_t)p->pairs.n_tested, e);
}

static bool publish(struct probe *p, struct err *e)
{
    struct writer *w = node_output(p->n);
    char part[32];
    for (uint32_t i = 0; i < p->tokens.n; i++) {
        part_name(i, part);
        if (!node_part_link(p->n, part, e))
            return false;
    }
    return column_write(w, "windows/tokens", DTYPE_U32, p->scored, p->tokens.n, "token", "window", "scored positions",
                        e) &&
           column_write(w, "windows/document", DTYPE_U32, p->tokens.document, p->tokens.n, "1", "window",
                        "index of the window's document", e) &&
           write_costs(p, w, e) && write_pairs(p, w, e) && propose_checks(p, e) &&
           candidates_write(&p->checks, &p->menu, w, e) && writer_text(w, "tokens", p->tokens.digest, e) &&
           writer_text(w, "numeric", node_numerics(p->n), e);
}

static void tell_kept(const struct probe *p)
{
    for (int f = 0; f < p->menu.n_formats; f++) {
        double sum = 0;
        int n = 0;
        for (int u = 0; u < p->menu.n_units; u++)
            if (p->cost[u * p->menu.n_formats + f] > 0) {
                sum += p->kept[u * p->menu.n_formats + f];
                n++;
            }
        if (n > 0 && sum < n)
            node_log(p->n, "%s: of what tells a unit's cost from its squares in blocks of %u positions, %.0f %% is "
                     "kept; the rest is taken to be the draws'", p->menu.format_names[f], p->spec.block,
                     100 * sum / n);
    }
}

static bool analyse(struct probe *p, struct err *e)
{
    struct probes all = {.menu = &p->menu, .n_probes = (uint32_t)p->spec.n_probes, .n_windows = p->tokens.n,
                         .response = p->response, .tokens = p->scored, .document = p->tokens.document,
                         .local = p->local};
    bool ok = mem_new(&p->cost, cells(p), e) && mem_new(&p->error, cells(p), e) && mem_new(&p->own, cells(p), e) &&
              mem_new(&p->kept, cells(p), e) && probes_costs(&all, p->cost, p->error, e);
    if (ok)
        memcpy(p->own, p->cost, cells(p) * sizeof *p->own);
    ok = ok && probes_shrink(&all, p->cost, p->error, p->kept, e) &&
              probes_pairs(&all, node_float(p->n, "significance"), &p->pairs, e);
    for (size_t c = 0; ok && c < cells(p); c++)
        if (p->menu.available[c] && !(p->cost[c] < INFINITY))
            ok = err_set(e, ERR_NUMERIC, "the response of unit '%s' in format '%s' is not finite",
                         p->menu.unit_names[c / (size_t)p->menu.n_formats],
                         p->menu.format_names[c % (size_t)p->menu.n_formats]);
    if (ok)
        tell_kept(p);
    if (ok)
        node_log(p->n, "%zu of %zu pairs of units interact significantly; correlations shrunk by %.3f", p->pairs.n,
                 p->pairs.n_tested, p->pairs.kept);
    return ok;
}

static bool prepare(struct probe *p, struct err *e)
{
    struct node *n = p->n;
    struct queue *q = node_queue(n);
    if (!model_open_input(&p->model, n, "model", e) || !tokens_read(&p->tokens, node_input(n, "tokens", 0), e) ||
        !menu_read(&p->menu, node_input(n, "renderings", 0)->object, e) ||
        !renderings_open(&p->renderings, n, "renderings", p->model, e) ||
        !forward_open(&p->f, p->model, q, numeric_begin(q, node_string(n, "numeric")), (int)p->tokens.window, e))
        return false;
    size_t probes = (size_t)node_int(n, "draws"), windows = p->tokens.n;
    int64_t traces = node_int(n, "traces");
    p->spec = (struct adjoint_spec){.f = &p->f, .tokens = &p->tokens, .n_formats = p->menu.n_formats,
        .n_probes = (int)probes, .n_traces = (int)(traces < (int64_t)probes ? traces : (int64_t)probes),
        .draw = strcmp(node_string(n, "draw"), "label") == 0 ? FISHER_LABEL : FISHER_SIGN,
        .seed = (uint64_t)node_int(n, "seed"), .load = load, .progress = progress,
        .context = p, .node = n,
        .block = block_of(p->tokens.window)};
    if (!mem_new(&p->scored, windows, e) || !mem_new(&p->skip, cells(p), e) ||
        !mem_new(&p->response, cells(p) * probes * windows, e) ||
        !mem_new(&p->local, cells(p) * windows, e) || !mem_new(&p->square, cells(p) * windows, e) ||
        !mem_new(&p->trace, (size_t)p->menu.n_units * windows, e))
        return false;
    for (uint32_t w = 0; w < p->tokens.n; w++)
        p->scored[w] = tokens_scored(&p->tokens, w);
    for (size_t c = 0; c < cells(p); c++) {
        const struct format *f = format_find(p->menu.format_names[c % (size_t)p->menu.n_formats]);
        if (!f)
            return err_set(e, ERR_INPUT, "this build has no format '%s'",
                           p->menu.format_names[c % (size_t)p->menu.n_formats]);
        p->skip[c] = !p->menu.available[c] || (f->code == CODE_PLAIN && f->act == ACT_NONE);
    }
    p->spec.skip = p->skip;
    return true;
}

static bool run(struct node *n, struct err *e)
{
    struct probe p = {.n = n};
    bool ok = prepare(&p, e) && run_windows(&p, e) && analyse(&p, e) && publish(&p, e);
    forward_close(&p.f);
    renderings_close(p.renderings);
    tokens_fini(&p.tokens);
    menu_fini(&p.menu);
    model_close(p.model);
    probe_pairs_fini(&p.pairs);
    candidates_fini(&p.checks);
    mem_free(p.scored);
    mem_free(p.skip);
    mem_free(p.response);
    mem_free(p.local);
    mem_free(p.square);
    mem_free(p.trace);
    mem_free(p.cost);
    mem_free(p.error);
    mem_free(p.own);
    mem_free(p.kept);
    return ok;
}

static bool needs(struct node *n, struct needs *out, struct err *e)
{
    struct model *m;
    struct token_set tokens;
    struct menu menu = {0};
    if (!model_open_input(&m, n, "model", e))
        return false;
    bool ok = tokens_read(&tokens, node_input(n, "tokens", 0), e);
    if (ok) {
        ok = menu_read(&menu, node_input(n, "renderings", 0)->object, e);
        if (ok) {
            *out = base_needs(n, m, &tokens, &menu);
            needs_tensors(node_kernels(n), out, BATCH_BYTES);
        }
        menu_fini(&menu);
        tokens_fini(&tokens);
    }
    model_close(m);
    return ok;
}

const struct node_class node_probe = {
    .name = "probe",
    .summary = "L2: adjoint probes of KL: what each format costs each unit, and what pairs of them add, in nats",
    .version = 5,
    .ports = (const struct port[]){
        {"model", MODEL_TYPES, false, false, "the model that was quantized"},
        {"renderings", (const char *const[]){"quantize", NULL}, false, false, "packed weights in every format"},
        {"tokens", (const char *const[]){"corpus", NULL}, false, false,
         "windows of documents that no rendering was fitted to, or costs are flattered"},
        {0}},
    .params = (const struct param[]){
        NUMERIC_PARAM,
        {.name = "draws", .type = PARAM_INT, .fallback = "8", .least = 1, .most = 1024,
         .help = "random draws at the logits of each window, each one backward pass; they leave a cost a relative "
                 "error of about sqrt(2 / (draws * windows)), of which shrinking takes most away"},
        {.name = "draw", .type = PARAM_ENUM, .fallback = "sign", .choices = (const char *const[]){"sign", "label",
                                                                                                  NULL},
         .help = "sign: sqrt(p) times random signs, centred; label: p minus a label drawn from it. Both have the "
                 "Fisher's covariance"},
        {.name = "traces", .type = PARAM_INT, .fallback = "0", .least = 0, .most = 1024,
         .help = "draws that the trace of the Fisher in each unit's weights is estimated from; 0: none"},
        {.name = "significance", .type = PARAM_FLOAT, .fallback = "3", .least = 0, .most = 1000,
         .help = "standard errors that a pair's correlation must reach for the pair to be kept; 0: all pairs"},
        {.name = "checks", .type = PARAM_INT, .fallback = "8", .least = 0, .most = 100000,
         .help = "strongest pairs that are proposed as candidates: both changes alone, and together"},
        {.name = "batch", .type = PARAM_INT, .fallback = "0", .least = 0, .most = 1e6, .outside_key = true,
         .unit = "window", .help = "most windows that go through the model together, which is what a kill can cost; 0: "
                                   "8 on a CPU, what the memory holds on an accelerator"},
        {.name = "seed", .type = PARAM_INT, .fallback = "1", .least = 0, .most = 1e15, .help = "of the draws"},
        {0}},
    .accelerator = true,
    .numerics = numeric_of_node,
    .needs = needs,
    .run = run,
};
