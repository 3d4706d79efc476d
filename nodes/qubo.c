/* Node type `qubo`: the chain of assignments that minimise the surrogate's costs, those of pairs included, and a price
 * of bytes, from everything smallest to everything cheapest (nodes/search/qubo.h). */
#include <math.h>
#include <string.h>

#include "nodes/nodes.h"
#include "nodes/search/candidates.h"
#include "nodes/search/column.h"
#include "nodes/search/qubo.h"
#include "nodes/search/surrogate.h"

struct chain {
    struct node *n;
    struct menu menu;
    struct surrogate surrogate;
    struct qubo_point *points;
    size_t n_points;
    struct candidates proposals;
};

static bool stopping(void *context)
{
    const struct chain *c = context;
    return node_stopping(c->n);
}

static void tell(void *context, size_t points)
{
    struct chain *c = context;
    double most = (double)node_int(c->n, "count");
    node_progress(c->n, fmin((double)points, most), most, "point");
}

/* Bytes at `bpp`. */
static uint64_t bytes_at(const struct menu *m, double bpp)
{
    return (uint64_t)(bpp / 8 * (double)m->total_parameters);
}

static bool sweep(struct chain *c, struct err *e)
{
    const struct menu *m = &c->menu;
    struct node *n = c->n;
    struct qubo_problem p = {m->n_units, m->n_formats, m->bytes, c->surrogate.cost,
                             node_bool(n, "pairs") ? c->surrogate.n_pairs : 0, c->surrogate.pairs,
                             c->surrogate.pair_cost};
    struct qubo_sweep_options o = {
        .solve = {.seed = (uint64_t)node_int(n, "seed"), .starts = (int)node_int(n, "starts"),
                  .steps = (int)node_int(n, "steps"), .rounds = (int)node_int(n, "rounds"),
                  .cells = (size_t)node_int(n, "cells"), .threads = node_threads(n)},
        .count = (size_t)node_int(n, "count"), .low = bytes_at(m, node_float(n, "low")),
        .high = bytes_at(m, node_float(n, "high")), .resolution = bytes_at(m, node_float(n, "resolution")),
        .context = c, .stopping = stopping, .tell = tell};
    return qubo_sweep(&p, &o, &c->points, &c->n_points, e);
}

/* A column of the result beside the table of candidates: the double at `offset` of each point. */
static bool write_column(const struct chain *c, const char *name, size_t offset, const char *unit,
                         const char *description, struct err *e)
{
    double *column;
    if (!mem_new(&column, c->n_points, e))
        return false;
    for (size_t i = 0; i < c->n_points; i++)
        memcpy(&column[i], (const char *)&c->points[i] + offset, sizeof *column);
    bool ok = column_write(node_output(c->n), name, DTYPE_F64, column, c->n_points, unit, "candidate", description, e);
    mem_free(column);
    return ok;
}

static bool write_result(struct chain *c, struct err *e)
{
    uint8_t *exact;
    if (!mem_new(&exact, c->n_points, e))
        return false;
    for (size_t i = 0; i < c->n_points; i++)
        exact[i] = c->points[i].is_exact;
    bool ok = column_write(node_output(c->n), "exact", DTYPE_U8, exact, c->n_points, "1", "candidate",
                           "1: nothing has a lower energy at this lambda", e);
    mem_free(exact);
    return ok && write_column(c, "lambda", offsetof(struct qubo_point, lambda), "nat/byte",
                              "price of a byte at which the candidate was found", e) &&
           write_column(c, "energy", offsetof(struct qubo_point, energy), "nat",
                        "surrogate cost with pairs + lambda * bytes", e) &&
           write_column(c, "bound", offsetof(struct qubo_point, bound), "nat",
                        "no assignment has a lower energy at this lambda", e) &&
           write_column(c, "gap", offsetof(struct qubo_point, gap), "1", "(energy - bound) / |energy|", e) &&
           candidates_write(&c->proposals, &c->menu, node_output(c->n), e);
}

static void report(const struct chain *c)
{
    const struct qubo_point *points = c->points;
    size_t exact = 0;
    double worst = 0;
    for (size_t i = 0; i < c->n_points; i++) {
        exact += points[i].is_exact;
        worst = fmax(worst, points[i].gap);
    }
    node_log(c->n, "%zu assignments along lambda from %.4f to %.4f bpp with %zu pairs, %zu of them optimal; the widest "
             "gap is %.3g %%", c->n_points, menu_bpp(&c->menu, points[0].bytes),
             menu_bpp(&c->menu, points[c->n_points - 1].bytes), node_bool(c->n, "pairs") ? c->surrogate.n_pairs : 0,
             exact, 100 * worst);
    node_stat(c->n, "proposed", (double)c->n_points, "candidate");
    node_stat(c->n, "worst_gap", worst, "1");
}

static bool search(struct chain *c, struct err *e)
{
    if (!sweep(c, e) || !candidates_init(&c->proposals, c->menu.n_units, 0, NULL, NULL, e))
        return false;
    for (size_t i = 0; i < c->n_points; i++)
        if (!candidates_add(&c->proposals, &c->menu, c->points[i].assignment, "lambda", -1, e))
            return false;
    if (!write_result(c, e))
        return false;
    report(c);
    return true;
}

static bool run(struct node *n, struct err *e)
{
    struct chain c = {.n = n};
    const struct input *in = node_input(n, "surrogate", 0);
    bool ok = menu_read(&c.menu, node_input(n, "renderings", 0)->object, e) &&
              surrogate_read(&c.surrogate, &c.menu, in->object, in->node, e) && search(&c, e);
    candidates_fini(&c.proposals);
    mem_free(c.points);
    surrogate_fini(&c.surrogate);
    menu_fini(&c.menu);
    return ok;
}

/* The tables of the exact solver (values, choices and a table at work), and some copies of the costs of pairs. */
static bool needs(struct node *n, struct needs *out, struct err *e)
{
    struct menu menu;
    struct object *surrogate = node_input(n, "surrogate", 0)->object;
    const struct dataset *pairs = object_dataset(surrogate, "pairs/cost");
    if (!menu_read(&menu, node_input(n, "renderings", 0)->object, e))
        return false;
    uint64_t entries = pairs ? pairs->shape[0] * (uint64_t)menu.n_formats * (uint64_t)menu.n_formats : 0;
    uint64_t table = (uint64_t)menu.n_units * (uint64_t)(menu.n_formats + 1) * (uint64_t)node_int(n, "count");
    *out = (struct needs){.memory = (uint64_t)node_int(n, "cells") * 17 + entries * 40 + table * 4 + (64u << 20),
                          .disk = 2 * table + (1u << 20)};
    menu_fini(&menu);
    return true;
}

const struct node_class node_qubo = {
    .name = "qubo",
    .summary = "L2: the best assignments at prices of a byte, interactions of pairs included, with their bounds",
    .version = 2,
    .ports = (const struct port[]){
        {"renderings", (const char *const[]){"quantize", NULL}, false, false, "formats and bytes of every unit"},
        {"surrogate", (const char *const[]){"rank", "probe", NULL}, false, false,
         "cost of every unit in every format, and of pairs of units"},
        {0}},
    .params = (const struct param[]){
        {.name = "count", .type = PARAM_INT, .fallback = "32", .least = 2, .most = 100000, .unit = "candidate",
         .help = "most assignments along lambda"},
        {.name = "low", .type = PARAM_FLOAT, .fallback = "0", .least = 0, .most = 64, .unit = "bit",
         .help = "bits per parameter from which on assignments are looked for, beside the smallest"},
        {.name = "high", .type = PARAM_FLOAT, .fallback = "64", .least = 0, .most = 64, .unit = "bit",
         .help = "and up to which, beside the one of lowest cost"},
        {.name = "resolution", .type = PARAM_FLOAT, .fallback = "0", .least = 0, .most = 64, .unit = "bit",
         .help = "assignments closer together are not looked between; 0: any are"},
        {.name = "pairs", .type = PARAM_BOOL, .fallback = "true", .help = "use the costs of pairs, if there are any"},
        {.name = "seed", .type = PARAM_INT, .fallback = "0", .least = 0, .most = 0x1p53, .help = "of random starts"},
        {.name = "starts", .type = PARAM_INT, .fallback = "4", .least = 1, .most = 10000,
         .help = "random starts of the local search, where the exact one does not fit"},
        {.name = "steps", .type = PARAM_INT, .fallback = "40000", .least = 1, .most = 1000000000,
         .help = "tabu steps of each start"},
        {.name = "rounds", .type = PARAM_INT, .fallback = "200", .least = 1, .most = 100000,
         .help = "most rounds of raising the bound"},
        {.name = "cells", .type = PARAM_INT, .fallback = "16777216", .least = 1, .most = 0x1p33,
         .help = "entries of tables, at 17 bytes, up to which an optimum is computed exactly"},
        {0}},
    .needs = needs,
    .run = run,
};
