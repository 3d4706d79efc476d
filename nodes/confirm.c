/* Node type `confirm`: the safety net. The choice of the search is measured against what needs no search at equal
 * bytes: every uniform format that takes at most its bytes, and the assignment of least L1 cost within them (an exact
 * knapsack, but for the archive's limit). All are measured in the ledger that the search measured in, on the same
 * windows, and the one of lowest KL is chosen; of equal KLs the choice. What was measured decides alone here, without
 * the probes' say in ties: so a surrogate or a round that went wrong cannot ship a result that one line would have
 * beaten, and the result says which way it went. */
#include <math.h>
#include <string.h>

#include "nodes/model/evaluator.h"
#include "nodes/nodes.h"
#include "nodes/search/archive.h"
#include "nodes/search/column.h"
#include "nodes/search/l1.h"
#include "nodes/search/stats.h"

#define LEVEL 0.95
#define KNAPSACK "L1 knapsack"

/* One baseline, and by how much the choice is better than it. */
struct comparison {
    const char *name;
    uint32_t candidate;           /* in the table; 0: its assignment is the choice itself */
    double difference, low, high; /* its mean KL minus the choice's, 95 % interval over documents; nats */
};

struct confirm {
    struct node *n;
    struct evaluator *evaluator;
    const struct menu *menu;       /* the evaluator's */
    struct candidates table;       /* the choice, then the baselines */
    struct comparison *compared;
    size_t n_compared;
    struct archive_quality quality; /* of the knapsack */
    uint32_t chosen;
    struct arena arena;
};

/* ---------------------------------------------------------------------------------------------------- the baselines */

static bool read_choice(struct confirm *c, struct err *e)
{
    const struct input *in = node_input(c->n, "choice", 0);
    struct candidates known;
    uint32_t chosen;
    if (!menu_check(c->menu, in->object, in->node, e) || !candidates_read_chosen(&known, in, &chosen, e))
        return false;
    bool ok = candidates_add(&c->table, c->menu, known.list[chosen].assignment, known.list[chosen].origin, -1, e);
    candidates_fini(&known);
    return ok;
}

/* Takes over `name`, which is NULL when memory was out. An assignment that is in the table is measured once. */
static bool add(struct confirm *c, const uint8_t *assignment, const char *origin, const char *name, struct err *e)
{
    long at = candidates_find(&c->table, assignment);
    if (!name || (at < 0 && !candidates_add(&c->table, c->menu, assignment, origin, -1, e)))
        return false;
    c->compared[c->n_compared++] = (struct comparison){
        .name = name, .candidate = at < 0 ? (uint32_t)c->table.n - 1 : (uint32_t)at};
    return true;
}

static bool add_uniform(struct confirm *c, uint64_t most, uint8_t *assignment, struct err *e)
{
    for (int f = 0; f < c->menu->n_formats; f++) {
        menu_uniform(c->menu, f, assignment);
        if (menu_bytes(c->menu, assignment) > most)
            continue;
        if (!add(c, assignment, "uniform", arena_printf(&c->arena, e, "uniform %s", c->menu->format_names[f]), e))
            return false;
    }
    return true;
}

/* Costs fall as bytes rise, so the best within `most` bytes is the last point that has no more; there is one, since the
 * first point has the fewest bytes of all assignments, the choice included. */
static bool add_knapsack(struct confirm *c, uint64_t most, uint8_t *assignment, struct err *e)
{
    struct archive *a = NULL;
    double *cost = NULL;
    size_t n = 0, at = 0;
    bool ok = mem_new(&cost, (size_t)c->menu->n_units * (size_t)c->menu->n_formats, e) &&
              l1_costs(c->menu, node_input(c->n, "renderings", 0)->object, cost, e) &&
              archive_new(&a, &(struct archive_problem){c->menu->n_units, c->menu->n_formats, c->menu->bytes, cost},
                          &(struct archive_options){.limit = (size_t)node_int(c->n, "limit")}, e);
    const struct archive_point *points = ok ? archive_points(a, &n) : NULL;
    while (at + 1 < n && points[at + 1].bytes <= most)
        at++;
    ok = ok && archive_assignments(a, &at, 1, assignment, e) &&
         add(c, assignment, "l1", arena_strdup(&c->arena, KNAPSACK, e), e);
    if (ok)
        c->quality = *archive_quality(a);
    archive_free(a);
    mem_free(cost);
    return ok;
}

static bool list_candidates(struct confirm *c, struct err *e)
{
    uint8_t *assignment = NULL;
    bool ok = mem_new(&assignment, (size_t)c->menu->n_units, e) &&
              mem_new(&c->compared, (size_t)c->menu->n_formats + 1, e) && read_choice(c, e) &&
              add_uniform(c, c->table.list[0].bytes, assignment, e) &&
              add_knapsack(c, c->table.list[0].bytes, assignment, e);
    mem_free(assignment);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------- comparing */

static bool compare(const struct candidates *t, struct comparison *c, struct err *e)
{
    const struct candidate *choice = &t->list[0], *other = &t->list[c->candidate];
    struct stats_difference d;
    if (!stats_paired_interval(other->kl_window, choice->kl_window, t->window_tokens, t->window_document, t->n_windows,
                               LEVEL, &d, e))
        return false;
    c->difference = other->kl_mean - choice->kl_mean;
    c->low = d.low;
    c->high = d.high;
    return true;
}

/* The lowest KL; of equal ones the choice, then the fewest bytes, then the first. */
static void choose(struct confirm *c)
{
    for (uint32_t i = 1; i < c->table.n; i++) {
        const struct candidate *x = &c->table.list[i], *best = &c->table.list[c->chosen];
        if (!candidate_is_complete(&c->table, x))
            continue;
        if (!candidate_is_complete(&c->table, best) || x->kl_mean < best->kl_mean ||
            (x->kl_mean == best->kl_mean && c->chosen != 0 && x->bytes < best->bytes))
            c->chosen = i;
    }
}

/* ---------------------------------------------------------------------------------------------------------- results */

static bool write_compared(const struct confirm *c, struct writer *w, struct err *e)
{
    size_t n = c->n_compared;
    const char **names = NULL;
    uint32_t *ids = NULL;
    double *kl = NULL;
    bool ok = mem_new(&names, n, e) && mem_new(&ids, n, e) && mem_new(&kl, 3 * n, e);
    for (size_t i = 0; ok && i < n; i++) {
        names[i] = c->compared[i].name;
        ids[i] = c->compared[i].candidate;
        kl[i] = c->compared[i].difference;
        kl[n + i] = c->compared[i].low;
        kl[2 * n + i] = c->compared[i].high;
    }
    ok = ok && writer_add_strings(w, "compared/name", names, n, "baseline", "what the choice is compared with", e) &&
         column_write(w, "compared/candidate", DTYPE_U32, ids, n, "1", "baseline",
                      "its id; 0: its assignment is the choice's own", e) &&
         column_write(w, "compared/difference", DTYPE_F64, kl, n, "nat", "baseline",
                      "its mean KL minus the choice's: positive where the choice is better", e) &&
         column_write(w, "compared/low", DTYPE_F64, kl + n, n, "nat", "baseline",
                      "lower end of the difference's paired 95 % interval over documents; NaN: one document", e) &&
         column_write(w, "compared/high", DTYPE_F64, kl + 2 * n, n, "nat", "baseline", "upper end", e);
    mem_free(kl);
    mem_free(ids);
    mem_free(names);
    return ok;
}

/* The baseline that comes nearest to what is chosen, or that is it. */
static const struct comparison *strongest(const struct confirm *c)
{
    const struct comparison *best = &c->compared[0];
    for (size_t i = 1; i < c->n_compared; i++)
        if (c->compared[i].difference < best->difference || c->compared[i].candidate == c->chosen)
            best = &c->compared[i];
    return best;
}

static void tell(const struct confirm *c)
{
    const struct candidate *choice = &c->table.list[0];
    const struct comparison *s = strongest(c);
    char interval[STATS_TEXT];
    if (c->chosen == 0)
        node_log(c->n, "the choice stands: KL %.6g at %.4f bpp; the best of %zu baselines of at most its bytes, %s, is "
                 "%.3g higher (95 %% interval %s) [%s]", choice->kl_mean, choice->bpp, c->n_compared, s->name,
                 s->difference, stats_interval_text(s->low, s->high, 3, interval), c->table.numeric);
    else
        node_log(c->n, "the choice LOST: its KL is %.6g at %.4f bpp, that of %s %.6g at %.4f bpp: lower by %.3g (95 %% "
                 "interval %s), so that is what goes on [%s]", choice->kl_mean, choice->bpp, s->name,
                 c->table.list[c->chosen].kl_mean, c->table.list[c->chosen].bpp, -s->difference,
                 stats_interval_text(-s->high, -s->low, 3, interval), c->table.numeric);
    if (!c->quality.is_exact)
        node_log(c->n, "the %s is at most %.3g of its largest cost above the optimum: there were more than `limit` "
                 "(%lld) points", KNAPSACK, c->quality.gap, (long long)node_int(c->n, "limit"));
    node_stat(c->n, "choice_won", c->chosen == 0, "1");
}

static bool confirm(struct confirm *c, struct err *e)
{
    struct writer *w = node_output(c->n);
    c->menu = evaluator_menu(c->evaluator);
    bool ok = evaluator_table(c->evaluator, &c->table, e) && list_candidates(c, e) &&
              evaluator_measure(c->evaluator, &c->table, 0, e);
    for (size_t i = 0; ok && i < c->n_compared; i++)
        ok = compare(&c->table, &c->compared[i], e);
    if (!ok)
        return false;
    choose(c);
    tell(c);
    return candidates_write(&c->table, c->menu, w, e) && write_compared(c, w, e) &&
           column_write(w, "chosen", DTYPE_U32, &c->chosen, 1, "1", "value",
                        "id of the candidate that is chosen; 0: the choice stands", e) &&
           writer_double(w, "l1_gap", c->quality.gap, e);
}

static bool run(struct node *n, struct err *e)
{
    struct confirm c = {.n = n};
    bool ok = evaluator_open(&c.evaluator, n, e) && confirm(&c, e);
    mem_free(c.compared);
    candidates_fini(&c.table);
    arena_free(&c.arena);
    evaluator_close(c.evaluator);
    return ok;
}

/* Measuring, and before it the knapsack. */
static bool needs(struct node *n, struct needs *out, struct err *e)
{
    struct menu menu;
    if (!evaluator_needs(n, out, e) || !menu_read(&menu, node_input(n, "renderings", 0)->object, e))
        return false;
    out->memory += archive_memory(menu.n_units, menu.n_formats, (size_t)node_int(n, "limit"));
    menu_fini(&menu);
    return true;
}

const struct node_class node_confirm = {
    .name = "confirm",
    .summary = "the choice against uniform formats and the L1 knapsack at equal bytes; the best of them is chosen",
    .version = 2,
    .ports = (const struct port[]){
        EVALUATOR_PORTS,
        {"choice", (const char *const[]){"polish", "select", NULL}, false, false,
         "whose chosen candidate has to prove itself"},
        {0}},
    .params = (const struct param[]){
        EVALUATOR_PARAMS,
        {.name = "limit", .type = PARAM_INT, .fallback = "200000", .least = 1000, .most = 10000000, .unit = "point",
         .help = "most points of the knapsack's archive; beyond, it is thinned and its distance is reported"},
        {0}},
    .accelerator = true,
    .numerics = numeric_of_node,
    .needs = needs,
    .run = run,
};
