/* Node type `allocate`: assignments at given byte budgets by the rules and costs that others use, in the place of a
 * search. They are what the search is compared with, so each is as strong as it can be made without measuring whole
 * candidates: costs are solved exactly, and no budget is rounded. The methods, with nodes/search/allocate.h:
 *
 *     uniform   one format: of those that fit the one of the lowest measured KL if it is in `rows`, else of the lowest
 *               sum of L1 costs
 *     ends      first and last layers in more bytes than the others, from the outside in; formats by L1 costs
 *     l1        knapsack over relative output losses (nodes/search/l1.h)
 *     trace     knapsack over tr(F) / parameters * ||dW||^2, F the Fisher of KL in the unit's weights, whose trace
 *               `probe` estimates with as many draws as its `traces` says (the class of HAWQ)
 *     squared   knapsack over the squared gradient times the squared error of the output (the class of AutoQuantize)
 *     direct    knapsack over the KL of one unit at a time, measured (`rows`)
 *     probe     knapsack over the unary costs of adjoint probes alone: what this search starts from
 *     singles   no assignment within a budget, but what `direct` has to be measured on
 *
 * They stay as they are when the search gets better: a baseline that is tuned against it, or let fall behind, would say
 * nothing. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "nodes/model/renderings.h"
#include "nodes/nodes.h"
#include "nodes/search/allocate.h"
#include "nodes/search/archive.h"
#include "nodes/search/column.h"
#include "nodes/search/l1.h"
#include "nodes/search/surrogate.h"

struct allocate {
    struct node *n;
    const char *method;
    struct menu menu;
    double *l1, *cost;        /* [unit, format] */
    struct allocation *list;  /* [budget] */
    size_t n_budgets;
    double gap;               /* of the knapsack; 0: it is exact, or there is none */
    uint32_t *candidate;      /* [budget] */
    struct candidates proposals;
    struct arena arena;
};

static bool is_method(const struct allocate *a, const char *name) { return strcmp(a->method, name) == 0; }

static size_t cells(const struct allocate *a) { return (size_t)a->menu.n_units * (size_t)a->menu.n_formats; }

/* ------------------------------------------------------------------------------------------------------------ costs */

static bool want(const struct allocate *a, const char *port, const char *what, struct err *e)
{
    return node_inputs(a->n, port) > 0 ||
           err_set(e, ERR_INPUT, "`method: %s` needs %s: connect the port '%s'", a->method, what, port);
}

/* out[row] = sum of dataset [row, window] of the probe over windows, per scored position; rows of all-NaN stay NaN. */
static bool sum_windows(const struct allocate *a, const char *name, size_t rows, double *out, struct err *e)
{
    const struct input *in = node_input(a->n, "probe", 0);
    uint32_t *tokens = NULL;
    double *values = NULL, positions = 0;
    uint64_t windows = 0, n = 0;
    if (!menu_check_renderings(&a->menu, in->object, in->node, e))
        return false;
    bool ok = object_load(in->object, "windows/tokens", DTYPE_U32, &tokens, &windows, e) &&
              object_load(in->object, name, DTYPE_F64, &values, &n, e);
    if (ok && (windows == 0 || n != rows * windows))
        ok = err_set(e, ERR_INPUT, "%s: '%s' has %" PRIu64 " numbers for %zu rows of %" PRIu64 " windows",
                     object_path(in->object), name, n, rows, windows);
    for (uint64_t w = 0; ok && w < windows; w++)
        positions += tokens[w];
    for (size_t i = 0; ok && i < rows; i++) {
        out[i] = 0;
        for (uint64_t w = 0; w < windows; w++)
            out[i] += values[i * windows + w];
        out[i] /= positions;
    }
    mem_free(values);
    mem_free(tokens);
    return ok;
}

/* whole[matrix] = ||W||^2 of the model that was quantized. */
static bool square_weights(struct allocate *a, const struct model *m, double *whole, struct err *e)
{
    float *weights = NULL;
    int64_t most = 0;
    for (int i = 0; i < m->n_matrices; i++)
        most = m->matrices[i].n * m->matrices[i].k > most ? m->matrices[i].n * m->matrices[i].k : most;
    bool ok = mem_raw(&weights, (size_t)most, e);
    for (int i = 0; ok && i < m->n_matrices; i++) {
        node_progress(a->n, i, m->n_matrices, "matrix");
        ok = node_stopping(a->n) ? node_stopped(e) : model_read_matrix(m, i, weights, e);
        for (int64_t k = 0; ok && k < m->matrices[i].n * m->matrices[i].k; k++)
            whole[i] += (double)weights[k] * (double)weights[k];
    }
    mem_free(weights);
    return ok;
}

static bool load_squares(struct allocate *a, double *square, struct err *e)
{
    struct model *m;
    struct renderings *r = NULL;
    double *whole = NULL;
    if (!model_open_input(&m, a->n, "model", e))
        return false;
    bool ok = renderings_open(&r, a->n, "renderings", m, e) && /* they are of this model */
              mem_new(&whole, (size_t)m->n_matrices, e) && square_weights(a, m, whole, e) &&
              l1_weight_squares(&a->menu, node_input(a->n, "renderings", 0)->object, whole, (uint64_t)m->n_matrices,
                                square, e);
    mem_free(whole);
    renderings_close(r);
    model_close(m);
    return ok;
}

static bool trace_costs(struct allocate *a, struct err *e)
{
    double *trace = NULL, *square = NULL;
    int64_t draws = 0;
    if (!want(a, "probe", "the traces of a probe", e) || !want(a, "model", "the weights' squares", e))
        return false;
    const struct input *in = node_input(a->n, "probe", 0);
    if (!object_dataset(in->object, "trace"))
        return err_set(e, ERR_INPUT, "'%s' has estimated no traces: give it `traces`, 16 or more", in->node);
    bool ok = mem_new(&trace, (size_t)a->menu.n_units, e) && mem_new(&square, cells(a), e) &&
              sum_windows(a, "trace", (size_t)a->menu.n_units, trace, e) && load_squares(a, square, e);
    if (ok) {
        allocate_trace_costs(&a->menu, trace, square, a->cost);
        if (object_int(in->object, "trace_draws", &draws))
            node_log(a->n, "traces of the Fisher of KL by Hutchinson's estimator, %" PRId64 " draws a window", draws);
    }
    mem_free(square);
    mem_free(trace);
    return ok;
}

static bool probe_costs(struct allocate *a, struct err *e)
{
    struct surrogate s;
    if (!want(a, "probe", "the costs of a probe", e))
        return false;
    const struct input *in = node_input(a->n, "probe", 0);
    if (!surrogate_read(&s, &a->menu, in->object, in->node, e))
        return false;
    memcpy(a->cost, s.cost, cells(a) * sizeof *a->cost);
    surrogate_fini(&s);
    return true;
}

static bool direct_costs(struct allocate *a, struct err *e)
{
    struct candidates rows;
    uint8_t *base;
    if (!want(a, "rows", "every unit measured alone", e) ||
        !candidates_read_rows(&rows, &a->menu, a->n, "rows", e))
        return false;
    bool ok = mem_new(&base, (size_t)a->menu.n_units, e);
    if (ok)
        allocate_base(&a->menu, a->l1, base);
    ok = ok && allocate_direct_costs(&a->menu, base, &rows, a->cost, e);
    mem_free(base);
    candidates_fini(&rows);
    return ok;
}

/* The costs that the knapsack is over. */
static bool read_costs(struct allocate *a, struct err *e)
{
    if (is_method(a, "trace"))
        return trace_costs(a, e);
    if (is_method(a, "squared"))
        return want(a, "probe", "the squares of a probe", e) && sum_windows(a, "square", cells(a), a->cost, e);
    if (is_method(a, "probe"))
        return probe_costs(a, e);
    if (is_method(a, "direct"))
        return direct_costs(a, e);
    memcpy(a->cost, a->l1, cells(a) * sizeof *a->cost);
    return true;
}

static bool find_costs(struct allocate *a, struct err *e)
{
    if (!read_costs(a, e))
        return false;
    for (size_t i = 0; i < cells(a); i++) {
        size_t unit = i / (size_t)a->menu.n_formats, format = i % (size_t)a->menu.n_formats;
        if (a->menu.available[i] && !(a->cost[i] >= 0 && a->cost[i] < INFINITY))
            return err_set(e, ERR_NUMERIC, "by `method: %s`, unit '%s' costs %g in format '%s'", a->method,
                           a->menu.unit_names[unit], a->cost[i], a->menu.format_names[format]);
    }
    return true;
}

/* A uniform format costs what was measured, where there are rows: each must be there. */
static bool uniform_costs(struct allocate *a, double *of, struct err *e)
{
    struct candidates rows = {0};
    uint8_t *tried = NULL;
    bool is_measured = node_inputs(a->n, "rows") > 0;
    if (is_measured && !candidates_read_rows(&rows, &a->menu, a->n, "rows", e))
        return false;
    bool ok = mem_new(&tried, (size_t)a->menu.n_units, e);
    for (int f = 0; ok && f < a->menu.n_formats; f++) {
        of[f] = 0;
        menu_uniform(&a->menu, f, tried);
        long at = is_measured ? candidates_find(&rows, tried) : -1;
        for (int u = 0; !is_measured && u < a->menu.n_units; u++)
            of[f] += a->l1[u * a->menu.n_formats + tried[u]];
        if (is_measured && (at < 0 || !candidate_is_complete(&rows, &rows.list[at])))
            ok = err_set(e, ERR_INPUT, "the uniform candidate in %s is not among the %zu rows, or not measured on all "
                         "windows: measure what a `frontier` with `uniform: true` proposes, with `race: 0`",
                         a->menu.format_names[f], rows.n);
        else if (is_measured)
            of[f] = rows.list[at].kl_mean;
    }
    mem_free(tried);
    candidates_fini(&rows);
    return ok;
}

/* --------------------------------------------------------------------------------------------------------- budgets */

static bool read_budgets(struct allocate *a, struct err *e)
{
    a->n_budgets = node_list(a->n, "bpp");
    if (a->n_budgets == 0)
        return err_set(e, ERR_INPUT, "bpp: give at least one budget");
    if (!mem_new(&a->list, a->n_budgets, e) || !mem_new(&a->candidate, a->n_budgets, e))
        return false;
    for (size_t i = 0; i < a->n_budgets; i++) {
        a->list[i].most_bytes = allocate_budget(&a->menu, node_list_float(a->n, "bpp", i));
        if (!(a->list[i].assignment = arena_new(&a->arena, (size_t)a->menu.n_units, e)))
            return false;
    }
    return true;
}

static bool fill_budgets(struct allocate *a, struct err *e)
{
    double *uniform = NULL;
    bool ok;
    if (is_method(a, "uniform"))
        ok = mem_new(&uniform, (size_t)a->menu.n_formats, e) && uniform_costs(a, uniform, e) &&
             allocate_uniform(&a->menu, uniform, a->list, a->n_budgets, e);
    else if (is_method(a, "ends"))
        ok = allocate_ends(&a->menu, a->l1, a->list, a->n_budgets, e);
    else
        ok = find_costs(a, e) && allocate_knapsack(&a->menu, a->cost, (size_t)node_int(a->n, "limit"), a->list,
                                                   a->n_budgets, &a->gap, e);
    mem_free(uniform);
    return ok;
}

/* An assignment that serves several budgets is one candidate. */
static bool propose(struct allocate *a, struct err *e)
{
    for (size_t i = 0; i < a->n_budgets; i++) {
        const struct allocation *x = &a->list[i];
        long at = candidates_find(&a->proposals, x->assignment);
        if (at < 0 && !candidates_add(&a->proposals, &a->menu, x->assignment, a->method, -1, e))
            return false;
        a->candidate[i] = at < 0 ? (uint32_t)a->proposals.n - 1 : (uint32_t)at;
        const struct candidate *c = &a->proposals.list[a->candidate[i]];
        node_log(a->n, "%s within %.6g bpp (%" PRIu64 " bytes): %" PRIu64 " bytes (%.4f bpp), cost %.6g", a->method,
                 node_list_float(a->n, "bpp", i), x->most_bytes, c->bytes, c->bpp, x->cost);
    }
    if (a->gap > 0)
        node_log(a->n, "the sums are at most %.3g of the largest above the optimum: there were more than `limit` "
                 "(%lld) points", a->gap, (long long)node_int(a->n, "limit"));
    return true;
}

static bool write_budgets(const struct allocate *a, struct err *e)
{
    struct writer *w = node_output(a->n);
    double *bpp = NULL, *cost = NULL;
    uint64_t *bytes = NULL;
    bool ok = mem_new(&bpp, a->n_budgets, e) && mem_new(&cost, a->n_budgets, e) && mem_new(&bytes, a->n_budgets, e);
    for (size_t i = 0; ok && i < a->n_budgets; i++) {
        bpp[i] = node_list_float(a->n, "bpp", i);
        cost[i] = a->list[i].cost;
        bytes[i] = a->list[i].most_bytes;
    }
    ok = ok && column_write(w, "budget/bpp", DTYPE_F64, bpp, a->n_budgets, "bit", "budget", "as it was asked for", e) &&
         column_write(w, "budget/bytes", DTYPE_U64, bytes, a->n_budgets, "byte", "budget", "the most it allows", e) &&
         column_write(w, "budget/candidate", DTYPE_U32, a->candidate, a->n_budgets, "1", "budget",
                      "id of the candidate within it", e) &&
         column_write(w, "budget/cost", DTYPE_F64, cost, a->n_budgets, "1", "budget",
                      "the candidate's cost by the method: nats, but of sums of L1 costs, which are shares", e) &&
         writer_double(w, "gap", a->gap, e);
    mem_free(bytes);
    mem_free(cost);
    mem_free(bpp);
    return ok;
}

/* --------------------------------------------------------------------------------------------------------- the node */

static bool allocate(struct allocate *a, struct err *e)
{
    struct writer *w = node_output(a->n);
    a->method = node_string(a->n, "method");
    if (!menu_read(&a->menu, node_input(a->n, "renderings", 0)->object, e) ||
        !candidates_init(&a->proposals, a->menu.n_units, 0, NULL, NULL, e) || !mem_new(&a->l1, cells(a), e) ||
        !mem_new(&a->cost, cells(a), e) ||
        !l1_costs(&a->menu, node_input(a->n, "renderings", 0)->object, a->l1, e) ||
        !writer_text(w, "method", a->method, e))
        return false;
    if (!is_method(a, "singles"))
        return read_budgets(a, e) && fill_budgets(a, e) && propose(a, e) && write_budgets(a, e) &&
               candidates_write(&a->proposals, &a->menu, w, e);
    uint8_t *base;
    if (!mem_new(&base, (size_t)a->menu.n_units, e))
        return false;
    allocate_base(&a->menu, a->l1, base);
    bool ok = allocate_singles(&a->menu, base, &a->proposals, e) &&
              candidates_write(&a->proposals, &a->menu, w, e);
    mem_free(base);
    return ok;
}

static bool run(struct node *n, struct err *e)
{
    struct allocate a = {.n = n};
    bool ok = allocate(&a, e);
    candidates_fini(&a.proposals);
    mem_free(a.candidate);
    mem_free(a.list);
    mem_free(a.cost);
    mem_free(a.l1);
    menu_fini(&a.menu);
    arena_free(&a.arena);
    return ok;
}

/* The knapsack, and the largest matrix. */
static bool needs(struct node *n, struct needs *out, struct err *e)
{
    struct menu menu;
    uint64_t most = 0;
    if (!menu_read(&menu, node_input(n, "renderings", 0)->object, e))
        return false;
    for (int u = 0; u < menu.n_units; u++)
        most = menu.parameters[u] > most ? menu.parameters[u] : most;
    *out = (struct needs){.cores = 1, .disk = 1u << 20,
                          .memory = archive_memory(menu.n_units, menu.n_formats, (size_t)node_int(n, "limit")) +
                                    (node_inputs(n, "model") > 0 ? most * sizeof(float) : 0) + (32u << 20)};
    menu_fini(&menu);
    return true;
}

const struct node_class node_allocate = {
    .name = "allocate",
    .summary = "baselines: assignments at byte budgets by costs and rules that need no search",
    .version = 1,
    .ports = (const struct port[]){
        {"renderings", (const char *const[]){"quantize", NULL}, false, false,
         "formats, bytes and losses of every unit"},
        {"model", MODEL_TYPES, false, true, "trace: the model that was quantized"},
        {"probe", (const char *const[]){"probe", NULL}, false, true, "trace, squared, probe: what was probed"},
        {"rows", (const char *const[]){"measure", "select", "polish", NULL}, true, true,
         "direct: every unit measured alone; uniform: every uniform format measured"},
        {0}},
    .params = (const struct param[]){
        {.name = "method", .type = PARAM_ENUM,
         .choices = (const char *const[]){"uniform", "ends", "l1", "trace", "squared", "direct", "singles", "probe",
                                          NULL},
         .help = "which rule or costs"},
        {.name = "bpp", .type = PARAM_FLOAT, .many = true, .fallback = "4.6, 5, 5.5, 6, 6.5", .least = 0.01, .most = 64,
         .unit = "bit", .help = "budgets: of each candidate at most so many bits per parameter"},
        {.name = "limit", .type = PARAM_INT, .fallback = "200000", .least = 1000, .most = 10000000, .unit = "point",
         .help = "most points of the knapsack's archive; beyond, it is thinned and its distance is reported"},
        {0}},
    .needs = needs,
    .run = run,
};
