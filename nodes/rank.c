/* Node type `rank`: the L1 surrogate, what each format costs each unit, and which formats are best for it. The cost is
 * the relative output loss (nodes/search/l1.h) times a scale per unit. The scale is 1, or, where the unit was measured
 * alone, what a unit of loss there does to the KL of the whole model:
 *
 *     base    = the measured uniform candidate of lowest KL (all bf16, as a rule)
 *     scale_u = sum of (KL - KL of base) / sum of (cost - cost of base), over the measured candidates that differ from
 *               the base in unit u alone; only if both sums are positive
 *
 * and the geometric mean of the known scales for the other units. */
#include <math.h>
#include <stdlib.h>

#include "nodes/nodes.h"
#include "nodes/search/candidates.h"
#include "nodes/search/l1.h"

struct rank {
    struct node *n;
    struct menu menu;
    double *cost;  /* [unit, format] */
    double *scale; /* [unit] */
    int n_known;   /* units whose scale was measured */
};

/* ----------------------------------------------------------------------------------------------------------- scales */

/* The complete uniform candidate of lowest KL, or NULL. */
static const struct candidate *find_base(const struct rank *r, const struct candidates *rows, uint8_t *uniform)
{
    const struct candidate *base = NULL;
    for (int f = 0; f < r->menu.n_formats; f++) {
        menu_uniform(&r->menu, f, uniform);
        long at = candidates_find(rows, uniform);
        if (at >= 0 && candidate_is_complete(rows, &rows->list[at]) &&
            (!base || rows->list[at].kl_mean < base->kl_mean))
            base = &rows->list[at];
    }
    return base;
}

/* The unit in which two assignments differ, or -1 if it is none or several. */
static int single_difference(const uint8_t *a, const uint8_t *b, int n)
{
    int at = -1;
    for (int u = 0; u < n; u++) {
        if (a[u] == b[u])
            continue;
        if (at >= 0)
            return -1;
        at = u;
    }
    return at;
}

/* Sums over the candidates next to the base; rise and cost are [unit], zeroed. */
static void add_rows(const struct rank *r, const struct candidates *rows, const struct candidate *base, double *rise,
                     double *cost)
{
    for (size_t i = 0; i < rows->n; i++) {
        const struct candidate *c = &rows->list[i];
        int u = single_difference(base->assignment, c->assignment, r->menu.n_units);
        if (u < 0 || !candidate_is_complete(rows, c))
            continue;
        const double *of = r->cost + u * r->menu.n_formats;
        rise[u] += c->kl_mean - base->kl_mean;
        cost[u] += of[c->assignment[u]] - of[base->assignment[u]];
    }
}

static void set_scales(struct rank *r, const double *rise, const double *cost)
{
    double logs = 0;
    for (int u = 0; u < r->menu.n_units; u++)
        if (rise[u] > 0 && cost[u] > 0) {
            r->scale[u] = rise[u] / cost[u];
            logs += log(r->scale[u]);
            r->n_known++;
        }
    if (r->n_known == 0)
        return;
    double mean = exp(logs / r->n_known);
    for (int u = 0; u < r->menu.n_units; u++)
        if (!(rise[u] > 0 && cost[u] > 0))
            r->scale[u] = mean;
}

static bool learn_scales(struct rank *r, struct err *e)
{
    struct candidates rows;
    uint8_t *uniform = NULL;
    double *sums = NULL;
    size_t units = (size_t)r->menu.n_units;
    if (!candidates_read_rows(&rows, &r->menu, r->n, "rows", e))
        return false;
    bool ok = mem_new(&uniform, units, e) && mem_new(&sums, 2 * units, e);
    const struct candidate *base = ok ? find_base(r, &rows, uniform) : NULL;
    if (base) {
        add_rows(r, &rows, base, sums, sums + units);
        set_scales(r, sums, sums + units);
    }
    if (ok)
        node_log(r->n, base ? "%d of %d units have a measured scale" :
                 "no uniform candidate was measured, so %d of %d units have a measured scale", r->n_known,
                 r->menu.n_units);
    mem_free(sums);
    mem_free(uniform);
    candidates_fini(&rows);
    return ok;
}

/* ---------------------------------------------------------------------------------------------------------- results */

struct choice {
    double cost;
    uint64_t bytes;
    int format;
};

/* Cheapest first, then smallest; formats that are not available last. */
static int by_cost(const void *a, const void *b)
{
    const struct choice *x = a, *y = b;
    if (isnan(x->cost) || isnan(y->cost)) {
        if (isnan(x->cost) != isnan(y->cost))
            return isnan(x->cost) ? 1 : -1;
        return x->format - y->format;
    }
    if (x->cost != y->cost)
        return x->cost < y->cost ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return x->format - y->format;
}

static void order_formats(const struct rank *r, uint8_t *order)
{
    struct choice choices[256];
    int formats = r->menu.n_formats; /* at most 255: menu_read */
    for (int u = 0; u < r->menu.n_units; u++) {
        for (int f = 0; f < formats; f++)
            choices[f] = (struct choice){r->cost[u * formats + f], r->menu.bytes[u * formats + f], f};
        qsort(choices, (size_t)formats, sizeof *choices, by_cost);
        for (int f = 0; f < formats; f++)
            order[u * formats + f] = (uint8_t)choices[f].format;
    }
}

static bool write_result(const struct rank *r, struct err *e)
{
    struct writer *w = node_output(r->n);
    uint64_t units = (uint64_t)r->menu.n_units, formats = (uint64_t)r->menu.n_formats;
    struct dataset cost = {.name = "cost", .dtype = DTYPE_F64, .rank = 2, .shape = {units, formats}, .unit = "nat",
                           .axes = "unit, format", .description = "surrogate of what the format adds to KL (relative "
                           "output loss * scale); NaN where not available"};
    struct dataset order = {.name = "order", .dtype = DTYPE_U8, .rank = 2, .shape = {units, formats}, .unit = "1",
                            .axes = "unit, rank", .description = "formats from the lowest cost to the highest"};
    struct dataset scale = {.name = "scale", .dtype = DTYPE_F64, .rank = 1, .shape = {units}, .unit = "nat",
                            .axes = "unit", .description = "KL per relative loss; 1 where nothing was measured"};
    struct dataset parameters = {.name = "units/parameters", .dtype = DTYPE_U64, .rank = 1, .shape = {units},
                                 .unit = "1", .axes = "unit", .description = "weights of the unit"};
    struct dataset layer = {.name = "units/layer", .dtype = DTYPE_I32, .rank = 1, .shape = {units}, .unit = "1",
                            .axes = "unit", .description = "ordinal of the layer"};
    uint8_t *table;
    if (!mem_new(&table, units * formats, e))
        return false;
    order_formats(r, table);
    return writer_add_take(w, &order, table, e) && writer_add(w, &cost, r->cost, e) &&
           writer_add(w, &scale, r->scale, e) &&
           writer_add_strings(w, "units/name", (const char *const *)r->menu.unit_names, units, "unit", "unit names",
                              e) &&
           writer_add(w, &parameters, r->menu.parameters, e) && writer_add(w, &layer, r->menu.layers, e) &&
           writer_add_strings(w, "formats/name", (const char *const *)r->menu.format_names, formats, "format",
                              "format names", e);
}

static bool rank(struct rank *r, struct err *e)
{
    struct object *quantize = node_input(r->n, "renderings", 0)->object;
    size_t units = (size_t)r->menu.n_units, formats = (size_t)r->menu.n_formats;
    if (!mem_new(&r->cost, units * formats, e) || !mem_new(&r->scale, units, e) ||
        !l1_costs(&r->menu, quantize, r->cost, e))
        return false;
    for (size_t u = 0; u < units; u++)
        r->scale[u] = 1;
    if (node_inputs(r->n, "rows") > 0 && !learn_scales(r, e))
        return false;
    for (size_t u = 0; u < units; u++)
        for (size_t f = 0; f < formats; f++)
            r->cost[u * formats + f] *= r->scale[u];
    return write_result(r, e);
}

static bool run(struct node *n, struct err *e)
{
    struct rank r = {.n = n};
    bool ok = menu_read(&r.menu, node_input(n, "renderings", 0)->object, e) && rank(&r, e);
    mem_free(r.cost);
    mem_free(r.scale);
    menu_fini(&r.menu);
    return ok;
}

const struct node_class node_rank = {
    .name = "rank",
    .summary = "L1: what each format costs each unit, by relative output loss",
    .version = 1,
    .ports = (const struct port[]){
        {"renderings", (const char *const[]){"quantize", NULL}, false, false, "losses of every matrix in every format"},
        {"rows", (const char *const[]){"measure", "select", "polish", NULL}, true, true,
         "measured candidates; those that differ from a uniform one in one unit give that unit's scale"},
        {0}},
    .run = run,
};
