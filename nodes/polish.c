/* Node type `polish`: coordinate descent on the measured KL, from the chosen candidate. A move is kept only if the KL
 * strictly falls and the size stays within that of the start plus `growth`; nodes/search/descent.h has the rules. Moves
 * are tried in the order of what surrogate costs, refitted to everything measured so far, say that they gain; the prior
 * is what port `surrogate` says, else L1. A `probe` there has a say in ties, too: it has seen other documents. Rows
 * come from the ledger where they are there, so an interrupted polish takes the same steps again without measuring
 * anything twice. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "engine/base/str.h"
#include "nodes/model/evaluator.h"
#include "nodes/nodes.h"
#include "nodes/search/allocate.h"
#include "nodes/search/column.h"
#include "nodes/search/descent.h"
#include "nodes/search/probes.h"
#include "nodes/search/refit.h"
#include "nodes/search/surrogate.h"

#define ONE_OF "is a budget by itself"

struct polish {
    struct node *n;
    struct evaluator *evaluator;
    const struct menu *menu;       /* the evaluator's */
    struct candidates known, rows; /* what select had, and what port `rows` has */
    bool use_known, use_rows;      /* they were measured in the evaluator's context */
    struct candidates table;       /* the start, then every move tried */
    struct candidates learned;     /* of those, what was measured and is in neither of the above */
    size_t n_learned;              /* entries of `table` that were looked at */
    struct surrogate prior;
    bool has_probe;
    struct probe_windows probe;    /* with has_probe: the prior window by window */
    struct descent descent;
};

/* ---------------------------------------------------------------------------------------------- what a descent asks */

static bool measure(void *context, struct candidates *table, size_t first, const uint32_t *windows, size_t n,
                    struct err *e)
{
    struct polish *p = context;
    return evaluator_measure_windows(p->evaluator, table, first, windows, n, e);
}

/* Add to `learned` what the moves since the last batch have shown: of one that was given up the estimate, without which
 * the costs would not learn from most refusals. */
static bool learn(struct polish *p, const struct descent *d, struct err *e)
{
    for (; p->n_learned < d->table->n; p->n_learned++) {
        const struct candidate *c = &d->table->list[p->n_learned];
        double kl = p->n_learned == 0 ? c->kl_mean : d->moves[p->n_learned - 1].estimate;
        if ((p->use_known && candidates_find(&p->known, c->assignment) >= 0) ||
            (p->use_rows && candidates_find(&p->rows, c->assignment) >= 0))
            continue;
        struct candidate *to = candidates_add(&p->learned, p->menu, c->assignment, c->origin, -1, e);
        if (!to)
            return false;
        to->kl_mean = kl;
        to->n_windows = p->learned.n_windows;
    }
    return true;
}

static bool refit(void *context, struct descent *d, struct err *e)
{
    struct polish *p = context;
    struct refit fit;
    const struct candidates *tables[3] = {&p->learned};
    size_t n = 1;
    if (!learn(p, d, e))
        return false;
    if (p->use_known)
        tables[n++] = &p->known;
    if (p->use_rows)
        tables[n++] = &p->rows;
    return refit_costs(p->menu, p->prior.cost, tables, n, d->table->list[d->chosen].bpp, d->cost, &fit, e);
}

static bool predict(void *context, const struct candidate *a, const struct candidate *b, struct stats_difference *out,
                    struct err *e)
{
    struct polish *p = context;
    double cost = probe_windows_cost(&p->probe, b->assignment);
    return probe_windows_difference(&p->probe, a->assignment, b->assignment, cost > 0 ? b->kl_mean / cost : 1, out, e);
}

/* "model.layers.3.mlp.down_proj and 3 below it: nvfp4 to fp8" */
static void add_change(const struct polish *p, const struct descent_change *c, struct str *out)
{
    if (c->unit < 0)
        return;
    str_printf(out, "%s%s", out->text ? ", " : "", p->menu->unit_names[c->unit]);
    if (c->units > 1)
        str_printf(out, " and the next %d of its role", c->units - 1);
    str_printf(out, ": %s to %s", p->menu->format_names[c->from], p->menu->format_names[c->to]);
}

static void tell(void *context, const struct descent_move *m)
{
    struct polish *p = context;
    struct str text = {0};
    add_change(p, &m->first, &text);
    add_change(p, &m->second, &text);
    node_log(p->n, "%s; KL %.6g to %.6g at %.4f bpp [%s]", text.failed ? "a move" : text.text, m->kl_before,
             m->kl_after, p->table.list[m->candidate].bpp, p->table.numeric);
    str_free(&text);
}

/* ---------------------------------------------------------------------------------------------------------- results */

/* A column of /moves: `field` is the offset in struct descent_move. */
struct column {
    const char *name;
    enum dtype dtype;
    size_t field;
    const char *unit, *description;
};

#define FIELD(f) offsetof(struct descent_move, f)
static const struct column columns[] = {
    {"moves/base", DTYPE_U32, FIELD(base), "1", "id of the candidate that is changed"},
    {"moves/candidate", DTYPE_U32, FIELD(candidate), "1", "id of the result"},
    {"moves/unit", DTYPE_I32, FIELD(first.unit), "1", "the unit that changes its format; of a block the first one"},
    {"moves/units", DTYPE_I32, FIELD(first.units), "1", "how many change: it, and so many less one of its role in the "
     "next layers"},
    {"moves/from", DTYPE_I32, FIELD(first.from), "1", "format before"},
    {"moves/to", DTYPE_I32, FIELD(first.to), "1", "format after"},
    {"moves/unit2", DTYPE_I32, FIELD(second.unit), "1", "unit of a second change, to fewer bytes; -1: there is none"},
    {"moves/units2", DTYPE_I32, FIELD(second.units), "1", "how many change by it"},
    {"moves/from2", DTYPE_I32, FIELD(second.from), "1", "format before"},
    {"moves/to2", DTYPE_I32, FIELD(second.to), "1", "format after"},
    {"moves/gain", DTYPE_F64, FIELD(gain), "nat", "predicted fall of KL"},
    {"moves/kl_before", DTYPE_F64, FIELD(kl_before), "nat", "mean KL of the base"},
    {"moves/kl_after", DTYPE_F64, FIELD(kl_after), "nat", "mean KL of the result; NaN: the move was given up"},
    {"moves/kl_estimate", DTYPE_F64, FIELD(estimate), "nat", "the same; of a move that was given up: kl_before plus "
     "the mean difference on the windows that were measured"},
    {"moves/measured_error", DTYPE_F64, FIELD(difference.measured.error), "nat", "standard error of kl_after - "
     "kl_before over documents; NaN: given up, or one document"},
    {"moves/predicted", DTYPE_F64, FIELD(difference.predicted.mean), "nat", "the same difference as the probes "
     "predict it from their documents; NaN: given up, or no probes"},
    {"moves/predicted_error", DTYPE_F64, FIELD(difference.predicted.error), "nat", "its standard error, with what "
     "pairs of units may add"},
    {"moves/pooled", DTYPE_F64, FIELD(difference.mean), "nat", "mean of both by their variances; a measured tie with a "
     "base that this does not favour is refused"},
    {"moves/bound", DTYPE_F64, FIELD(bound), "nat", "upper bound of the fall of KL at the last look; NaN: there was "
     "none"},
    {"moves/look", DTYPE_I32, FIELD(look), "1", "look at which the move was given up; -1: it was not"},
};

static bool write_kinds(const struct descent *d, struct writer *w, struct err *e)
{
    const char **kinds = NULL;
    uint8_t *accepted = NULL;
    bool ok = mem_new(&kinds, d->n_moves, e) && mem_new(&accepted, d->n_moves, e);
    for (size_t i = 0; ok && i < d->n_moves; i++) {
        kinds[i] = descent_kind(&d->moves[i]);
        accepted[i] = d->moves[i].is_accepted;
    }
    ok = ok && writer_add_strings(w, "moves/kind", kinds, d->n_moves, "move", "flip: one unit; swap: two, one to more "
                                  "bytes and one to fewer; block: several units of a role", e) &&
         column_write(w, "moves/accepted", DTYPE_U8, accepted, d->n_moves, "1", "move",
                      "1: the result became the base", e);
    mem_free(accepted);
    mem_free(kinds);
    return ok;
}

static bool write_moves(const struct descent *d, struct writer *w, struct err *e)
{
    char *data = NULL; /* the widest column */
    bool ok = mem_new(&data, d->n_moves * sizeof(double), e);
    for (size_t k = 0; ok && k < sizeof columns / sizeof *columns; k++) {
        size_t bytes = dtype_bytes(columns[k].dtype);
        for (size_t i = 0; i < d->n_moves; i++)
            memcpy(data + i * bytes, (const char *)&d->moves[i] + columns[k].field, bytes);
        ok = column_write(w, columns[k].name, columns[k].dtype, data, d->n_moves, columns[k].unit, "move",
                          columns[k].description, e);
    }
    mem_free(data);
    return ok && write_kinds(d, w, e) &&
           column_write(w, "looks/windows", DTYPE_U32, d->look_windows, (size_t)d->n_looks, "1", "look",
                        "windows that a move is measured on by then", e);
}

static void tell_result(const struct polish *p)
{
    const struct descent *d = &p->descent;
    const struct candidate *start = &p->table.list[0], *end = &p->table.list[d->chosen];
    size_t accepted = 0, given_up = 0, windows = 0;
    for (size_t i = 0; i < d->n_moves; i++) {
        accepted += d->moves[i].is_accepted;
        given_up += d->moves[i].look >= 0;
        windows += p->table.list[d->moves[i].candidate].n_windows;
    }
    const char *why = d->is_exhausted ? "no move is left that was not tried" :
                      d->is_cut ? "no move is left but pairs of less promising changes" :
                      "stopped at its limit of moves or passes";
    node_log(p->n, "%zu of %zu moves accepted, %zu given up early; KL %.6g to %.6g, %.4f to %.4f bpp; %s [%s]",
             accepted, d->n_moves, given_up, start->kl_mean, end->kl_mean, start->bpp, end->bpp, why, p->table.numeric);
    node_stat(p->n, "moves_tried", (double)d->n_moves, "move");
    node_stat(p->n, "moves_accepted", (double)accepted, "move");
    node_stat(p->n, "moves_given_up", (double)given_up, "move");
    node_stat(p->n, "windows_spared", (double)(d->n_moves * p->table.n_windows - windows), "window");
}

/* --------------------------------------------------------------------------------------------------------- the node */

/* Rows of another context say nothing about this one's KL. */
static bool is_comparable(const struct polish *p, const struct candidates *c, const char *node)
{
    if (strcmp(c->context, p->table.context) == 0)
        return true;
    node_log(p->n, "'%s' was measured in another context (model, renderings, teacher, tokens or numeric mode): the "
             "costs are not refitted to it", node);
    return false;
}

/* The start, measured, in a table of its own. */
static bool read_start(struct polish *p, struct err *e)
{
    const struct input *in = node_input(p->n, "select", 0);
    uint32_t chosen;
    if (!menu_check(p->menu, in->object, in->node, e) || !candidates_read_chosen(&p->known, in, &chosen, e))
        return false;
    if (!evaluator_table(p->evaluator, &p->table, e) || !evaluator_table(p->evaluator, &p->learned, e))
        return false;
    p->use_known = is_comparable(p, &p->known, in->node);
    const struct candidate *start = &p->known.list[chosen];
    return candidates_add(&p->table, p->menu, start->assignment, start->origin, -1, e) &&
           evaluator_measure(p->evaluator, &p->table, 0, e);
}

/* The rows of port `rows`; what select has of them, too, is taken once. */
static bool read_rows(struct polish *p, struct err *e)
{
    if (node_inputs(p->n, "rows") == 0)
        return true;
    if (!candidates_read_rows(&p->rows, p->menu, p->n, "rows", e))
        return false;
    p->use_rows = is_comparable(p, &p->rows, node_input(p->n, "rows", 0)->node);
    for (size_t i = 0; p->use_rows && i < p->known.n; i++)
        if (candidates_find(&p->rows, p->known.list[i].assignment) >= 0)
            p->known.list[i].n_windows = 0; /* not complete, so not fitted */
    return true;
}

static bool read_prior(struct polish *p, struct err *e)
{
    if (!surrogate_or_l1(&p->prior, p->menu, p->n, e))
        return false;
    const struct input *in = node_inputs(p->n, "surrogate") ? node_input(p->n, "surrogate", 0) : NULL;
    p->has_probe = in && object_dataset(in->object, "response");
    return !p->has_probe || probe_windows_read(&p->probe, p->menu, in->object, in->node, e);
}

/* The start and what it may grow by, or the budget where that is more; sizes are compared as differences of 63 bits. */
static uint64_t most_bytes(const struct polish *p)
{
    uint64_t start = p->table.list[0].bytes, room = start < INT64_MAX ? INT64_MAX - start : 0;
    uint64_t growth = node_size(p->n, "growth"), budget = node_size(p->n, "budget");
    double bpp = node_float(p->n, "bpp");
    if (bpp > 0)
        budget = allocate_budget(p->menu, bpp);
    if (budget > 0 && start > budget)
        node_log(p->n, "the start has %" PRIu64 " bytes, more than the budget of %" PRIu64, start, budget);
    if (budget > start && budget - start > growth)
        growth = budget - start;
    return start + (growth < room ? growth : room);
}

static bool polish(struct polish *p, struct err *e)
{
    p->menu = evaluator_menu(p->evaluator);
    size_t cells = (size_t)p->menu->n_units * (size_t)p->menu->n_formats;
    double *cost = NULL;
    bool ok = read_start(p, e) && read_rows(p, e) && read_prior(p, e) && mem_new(&cost, cells, e);
    if (ok)
        p->descent = (struct descent){
            .menu = p->menu, .table = &p->table, .cost = cost,
            .most_bytes = most_bytes(p), .most_passes = (int)node_int(p->n, "passes"),
            .most_moves = (int)node_int(p->n, "moves"), .batch = (int)node_int(p->n, "batch"),
            .give_up = node_float(p->n, "give_up"), .seed = (uint64_t)node_int(p->n, "seed"), .context = p,
            .measure = measure, .refit = refit, .predict = p->has_probe ? predict : NULL, .tell = tell};
    ok = ok && descent_run(&p->descent, e);
    mem_free(cost);
    if (!ok)
        return false;
    tell_result(p);
    struct writer *w = node_output(p->n);
    return candidates_write(&p->table, p->menu, w, e) && write_moves(&p->descent, w, e) &&
           column_write(w, "chosen", DTYPE_U32, &p->descent.chosen, 1, "1", "value",
                        "id of the candidate that is chosen", e);
}

static bool run(struct node *n, struct err *e)
{
    struct polish p = {.n = n};
    bool ok = evaluator_open(&p.evaluator, n, e) && polish(&p, e);
    descent_fini(&p.descent);
    probe_windows_fini(&p.probe);
    surrogate_fini(&p.prior);
    candidates_fini(&p.learned);
    candidates_fini(&p.table);
    candidates_fini(&p.rows);
    candidates_fini(&p.known);
    evaluator_close(p.evaluator);
    return ok;
}

/* Measuring, and the list of moves. */
static bool needs(struct node *n, struct needs *out, struct err *e)
{
    struct menu menu;
    if (!evaluator_needs(n, out, e) || !menu_read(&menu, node_input(n, "renderings", 0)->object, e))
        return false;
    out->memory += descent_memory(menu.n_units, menu.n_formats);
    if (node_inputs(n, "surrogate") > 0)
        out->memory += probe_windows_memory(node_input(n, "surrogate", 0)->object);
    menu_fini(&menu);
    return true;
}

const struct node_class node_polish = {
    .name = "polish",
    .summary = "coordinate descent on the measured KL from the chosen candidate, never worse",
    .version = 10,
    .ports = (const struct port[]){
        EVALUATOR_PORTS,
        {"select", (const char *const[]){"select", NULL}, false, false, "where to start: its chosen candidate"},
        {"surrogate", (const char *const[]){"rank", "probe", NULL}, false, true,
         "costs that order the moves, before they are refitted; without it L1's"},
        {"rows", (const char *const[]){"measure", "polish", "select", NULL}, true, true,
         "more measured candidates to refit the costs to"},
        {0}},
    .params = (const struct param[]){
        EVALUATOR_PARAMS,
        {.name = "passes", .type = PARAM_INT, .fallback = "100", .least = 1, .most = 1000000,
         .help = "most candidates whose moves are tried; each accepted move makes a new one"},
        {.name = "moves", .type = PARAM_INT, .fallback = "64", .least = 0, .most = 1000000, .unit = "move",
         .help = "most moves measured"},
        {.name = "growth", .type = PARAM_SIZE, .fallback = "0", .unit = "byte",
         .help = "bytes that may be added to the start"},
        {.name = "budget", .type = PARAM_SIZE, .fallback = "0", .one_of = ONE_OF, .unit = "byte",
         .help = "and up to so many bytes in all, where the start was chosen within a budget; 0: none"},
        {.name = "bpp", .type = PARAM_FLOAT, .fallback = "0", .one_of = ONE_OF, .least = 0, .most = 64, .unit = "bit",
         .help = "the same in bits per parameter"},
        {.name = "batch", .type = PARAM_INT, .fallback = "8", .least = 1, .most = 4096, .unit = "move",
         .help = "moves measured together; the best of them is kept if it lowers KL, and in a tie if the probes agree"},
        {.name = "give_up", .type = PARAM_FLOAT, .fallback = "0.05", .least = 0, .most = 0.5, .unit = "1",
         .help = "error level of giving up a move that does gain before it is measured in full; 0: never give up"},
        {.name = "seed", .type = PARAM_INT, .fallback = "1", .least = 0, .most = 9007199254740991.0,
         .help = "of the order in which a move is measured on documents"},
        {0}},
    .accelerator = true,
    .numerics = numeric_of_node,
    .needs = needs,
    .run = run,
};
