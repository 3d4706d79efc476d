/* Node type `polish`: coordinate descent on the measured KL, from the chosen candidate. A move is kept only if the KL
 * strictly falls and the size stays within that of the start plus `growth`; nodes/search/descent.h has the rules. Moves
 * are tried in the order of what L1 costs, refitted to everything measured so far, say that they gain. Rows come from
 * the ledger where they are there, so an interrupted polish takes the same steps again without measuring anything
 * twice. */
#include <math.h>
#include <string.h>

#include "nodes/model/evaluator.h"
#include "nodes/nodes.h"
#include "nodes/search/column.h"
#include "nodes/search/descent.h"
#include "nodes/search/l1.h"
#include "nodes/search/refit.h"

struct polish {
    struct node *n;
    struct evaluator *evaluator;
    const struct menu *menu;       /* the evaluator's */
    struct candidates known;       /* what select had */
    bool is_comparable;            /* known was measured in the evaluator's context */
    struct candidates table;       /* the start, then every move tried */
    double *l1;                    /* [unit, format] */
    struct descent descent;
};

/* ---------------------------------------------------------------------------------------------- what a descent asks */

static bool measure(void *context, struct candidates *table, size_t first, struct err *e)
{
    struct polish *p = context;
    return evaluator_measure(p->evaluator, table, first, e);
}

static bool refit(void *context, struct descent *d, struct err *e)
{
    struct polish *p = context;
    struct refit fit;
    const struct candidates *tables[] = {d->table, &p->known};
    double centre = d->table->list[d->chosen].bpp;
    return refit_costs(p->menu, p->l1, tables, p->is_comparable ? 2 : 1, centre, d->cost, &fit, e);
}

static void tell(void *context, const struct descent_move *m)
{
    struct polish *p = context;
    const struct candidate *c = &p->table.list[m->candidate];
    char *const *unit = p->menu->unit_names, *const *format = p->menu->format_names;
    if (m->unit2 < 0)
        node_log(p->n, "%s: %s to %s; KL %.6g to %.6g at %.4f bpp [%s]", unit[m->unit], format[m->from],
                 format[m->to], m->kl_before, m->kl_after, c->bpp, p->table.numeric);
    else
        node_log(p->n, "%s: %s to %s, %s: %s to %s; KL %.6g to %.6g at %.4f bpp [%s]", unit[m->unit], format[m->from],
                 format[m->to], unit[m->unit2], format[m->from2], format[m->to2], m->kl_before, m->kl_after, c->bpp,
                 p->table.numeric);
}

/* ---------------------------------------------------------------------------------------------------------- results */

enum { UNIT, FROM, TO, UNIT2, FROM2, TO2, N_CHANGES };

static bool write_changes(const struct descent *d, struct writer *w, int32_t *column, struct err *e)
{
    static const struct {
        const char *name, *description;
    } columns[N_CHANGES] = {
        {"moves/unit", "the unit that changes its format"},
        {"moves/from", "its format before"},
        {"moves/to", "its format after"},
        {"moves/unit2", "the second unit of a swap; -1: none"},
        {"moves/from2", "its format before"},
        {"moves/to2", "its format after"}};
    for (int k = 0; k < N_CHANGES; k++) {
        for (size_t i = 0; i < d->n_moves; i++) {
            const struct descent_move *m = &d->moves[i];
            const int32_t values[N_CHANGES] = {m->unit, m->from, m->to, m->unit2, m->from2, m->to2};
            column[i] = values[k];
        }
        if (!column_write(w, columns[k].name, DTYPE_I32, column, d->n_moves, "1", "move", columns[k].description, e))
            return false;
    }
    return true;
}

static bool write_moves(const struct descent *d, struct writer *w, struct err *e)
{
    size_t n = d->n_moves;
    int32_t *changes = NULL;
    uint32_t *ids = NULL;
    double *kl = NULL;
    uint8_t *accepted = NULL;
    bool ok = mem_new(&changes, n, e) && mem_new(&ids, 2 * n, e) && mem_new(&kl, 2 * n, e) && mem_new(&accepted, n, e);
    for (size_t i = 0; ok && i < n; i++) {
        ids[i] = d->moves[i].base;
        ids[n + i] = d->moves[i].candidate;
        kl[i] = d->moves[i].kl_before;
        kl[n + i] = d->moves[i].kl_after;
        accepted[i] = d->moves[i].is_accepted;
    }
    ok = ok && write_changes(d, w, changes, e) &&
         column_write(w, "moves/base", DTYPE_U32, ids, n, "1", "move", "id of the candidate that is changed", e) &&
         column_write(w, "moves/candidate", DTYPE_U32, ids + n, n, "1", "move", "id of the result", e) &&
         column_write(w, "moves/kl_before", DTYPE_F64, kl, n, "nat", "move", "mean KL of the base", e) &&
         column_write(w, "moves/kl_after", DTYPE_F64, kl + n, n, "nat", "move", "mean KL of the result", e) &&
         column_write(w, "moves/accepted", DTYPE_U8, accepted, n, "1", "move", "1: the result became the base", e);
    mem_free(accepted);
    mem_free(kl);
    mem_free(ids);
    mem_free(changes);
    return ok;
}

static void tell_result(const struct polish *p)
{
    const struct descent *d = &p->descent;
    const struct candidate *start = &p->table.list[0], *end = &p->table.list[d->chosen];
    size_t accepted = 0;
    for (size_t i = 0; i < d->n_moves; i++)
        accepted += d->moves[i].is_accepted;
    const char *why = d->is_exhausted ? "no move is left that was not tried" :
                      d->is_cut ? "no move is left but swaps of less promising changes" :
                      "stopped at its limit of moves or passes";
    node_log(p->n, "%zu of %zu moves accepted; KL %.6g to %.6g, %.4f to %.4f bpp; %s [%s]", accepted, d->n_moves,
             start->kl_mean, end->kl_mean, start->bpp, end->bpp, why, p->table.numeric);
    node_stat(p->n, "moves_tried", (double)d->n_moves, "move");
    node_stat(p->n, "moves_accepted", (double)accepted, "move");
}

/* --------------------------------------------------------------------------------------------------------- the node */

/* The start, measured, in a table of its own. */
static bool read_start(struct polish *p, struct err *e)
{
    const struct input *in = node_input(p->n, "select", 0);
    uint32_t chosen;
    if (!menu_check(p->menu, in->object, in->node, e) ||
        !object_read(in->object, "chosen", DTYPE_U32, 0, 1, &chosen, e) || !candidates_read(&p->known, in->object, e))
        return false;
    if (chosen >= p->known.n)
        return err_set(e, ERR_INPUT, "'%s' chose candidate %u of %zu", in->node, chosen, p->known.n);
    if (!evaluator_table(p->evaluator, &p->table, e))
        return false;
    p->is_comparable = strcmp(p->known.context, p->table.context) == 0;
    if (!p->is_comparable)
        node_log(p->n, "'%s' was measured in another context (model, renderings, teacher, tokens or numeric mode): the "
                 "costs are refitted to what is measured here alone", in->node);
    const struct candidate *start = &p->known.list[chosen];
    return candidates_add(&p->table, p->menu, start->assignment, start->origin, -1, e) &&
           evaluator_measure(p->evaluator, &p->table, 0, e);
}

/* The start and what it may grow by; sizes are compared as differences of 63 bits. */
static uint64_t most_bytes(const struct polish *p)
{
    uint64_t start = p->table.list[0].bytes, room = start < INT64_MAX ? INT64_MAX - start : 0;
    uint64_t growth = node_size(p->n, "growth");
    return start + (growth < room ? growth : room);
}

static bool polish(struct polish *p, struct err *e)
{
    p->menu = evaluator_menu(p->evaluator);
    size_t cells = (size_t)p->menu->n_units * (size_t)p->menu->n_formats;
    double *cost = NULL;
    bool ok = read_start(p, e) && mem_new(&p->l1, cells, e) && mem_new(&cost, cells, e) &&
              l1_costs(p->menu, node_input(p->n, "renderings", 0)->object, p->l1, e);
    if (ok)
        p->descent = (struct descent){
            .menu = p->menu, .table = &p->table, .cost = cost,
            .most_bytes = most_bytes(p), .most_passes = (int)node_int(p->n, "passes"),
            .most_moves = (int)node_int(p->n, "moves"), .batch = (int)node_int(p->n, "batch"), .context = p,
            .measure = measure, .refit = refit, .tell = tell};
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
    mem_free(p.l1);
    candidates_fini(&p.table);
    candidates_fini(&p.known);
    evaluator_close(p.evaluator);
    return ok;
}

const struct node_class node_polish = {
    .name = "polish",
    .summary = "coordinate descent on the measured KL from the chosen candidate, never worse",
    .version = 2,
    .ports = (const struct port[]){
        EVALUATOR_PORTS,
        {"select", (const char *const[]){"select", NULL}, false, false, "where to start: its chosen candidate"},
        {0}},
    .params = (const struct param[]){
        EVALUATOR_PARAMS,
        {.name = "passes", .type = PARAM_INT, .fallback = "100", .least = 1, .most = 1000000,
         .help = "most candidates whose moves are tried; each accepted move makes a new one"},
        {.name = "moves", .type = PARAM_INT, .fallback = "64", .least = 0, .most = 1000000, .unit = "move",
         .help = "most moves measured"},
        {.name = "growth", .type = PARAM_SIZE, .fallback = "0", .unit = "byte",
         .help = "bytes that may be added to the start"},
        {.name = "batch", .type = PARAM_INT, .fallback = "8", .least = 1, .most = 4096, .unit = "move",
         .help = "moves measured together; the best of them is kept if it lowers KL"},
        {0}},
    .accelerator = true,
    .numerics = evaluator_numerics,
    .needs = evaluator_needs,
    .run = run,
};
