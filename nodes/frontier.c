/* Node type `frontier`: the whole predicted frontier in one pass of the archive DP, and the candidates to measure next.
 *
 * Before anything is measured they are the uniform assignments and points spread evenly in bpp over the predicted
 * frontier. Once there are rows, the costs are first refitted to them (nodes/search/refit.h); then the points are
 * spread over the stretch around the measured knee, from two points of the measured frontier before it to two after it,
 * those nearest to the knee first; then come single-unit flips of the knee. The knee is the one that `select` finds in
 * the same rows with the same `scale` and `sensitivity`. What was measured is not proposed again, so in the end there
 * may be nothing to propose, which is a table without rows. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nodes/nodes.h"
#include "nodes/search/archive.h"
#include "nodes/search/candidates.h"
#include "nodes/search/knee.h"
#include "nodes/search/pareto.h"
#include "nodes/search/refit.h"
#include "nodes/search/surrogate.h"

#define STRETCH 2 /* points of the measured frontier on either side of the knee between which points are proposed */

struct frontier {
    struct node *n;
    struct menu menu;
    struct surrogate surrogate;
    double *cost; /* [unit, format]: the surrogate's, refitted in place */
    struct archive *archive;
    const struct archive_point *points;
    size_t n_points;
    bool has_rows;
    struct candidates rows;      /* measured; only with has_rows */
    long knee;                   /* id in rows; -1: none is complete */
    double knee_bpp, low, high;  /* of the stretch in bpp */
    struct candidates proposals;
};

/* ---------------------------------------------------------------------------------------------------- what is known */

static bool read_costs(struct frontier *f, struct err *e)
{
    const struct input *in = node_input(f->n, "surrogate", 0);
    if (!surrogate_read(&f->surrogate, &f->menu, in->object, in->node, e))
        return false;
    f->cost = f->surrogate.cost;
    return true;
}

/* The measured frontier's knee and the stretch around it; x, y, dominated and on_frontier have room for all rows. */
static bool place_knee(struct frontier *f, double *x, double *y, int32_t *dominated, uint32_t *on_frontier,
                       struct err *e)
{
    struct knee_options o = {.sensitivity = node_float(f->n, "sensitivity"),
                             .is_log = strcmp(node_string(f->n, "scale"), "log") == 0};
    struct knee knee;
    size_t n;
    for (size_t i = 0; i < f->rows.n; i++) {
        const struct candidate *c = &f->rows.list[i];
        x[i] = c->bpp;
        y[i] = candidate_is_complete(&f->rows, c) ? c->kl_mean : NAN;
    }
    if (!pareto_filter(x, y, f->rows.n, dominated, on_frontier, &n, e))
        return false;
    if (n == 0)
        return true;
    for (size_t i = 0; i < n; i++) {
        x[i] = f->rows.list[on_frontier[i]].bpp;
        y[i] = f->rows.list[on_frontier[i]].kl_mean;
    }
    if (!knee_find(x, y, n, &o, &knee, e))
        return false;
    f->knee = on_frontier[knee.at];
    f->knee_bpp = x[knee.at];
    f->low = x[knee.at > STRETCH ? knee.at - STRETCH : 0];
    f->high = x[knee.at + STRETCH < n ? knee.at + STRETCH : n - 1];
    return true;
}

static bool find_knee(struct frontier *f, struct err *e)
{
    double *x = NULL, *y = NULL;
    int32_t *dominated = NULL;
    uint32_t *on_frontier = NULL;
    size_t n = f->rows.n;
    bool ok = mem_new(&x, n, e) && mem_new(&y, n, e) && mem_new(&dominated, n, e) && mem_new(&on_frontier, n, e) &&
              place_knee(f, x, y, dominated, on_frontier, e);
    mem_free(on_frontier);
    mem_free(dominated);
    mem_free(y);
    mem_free(x);
    return ok;
}

static bool read_rows(struct frontier *f, struct err *e)
{
    if (!candidates_read_inputs(&f->rows, &f->menu, f->n, "rows", e))
        return false;
    f->has_rows = true;
    return find_knee(f, e);
}

static bool learn(struct frontier *f, struct err *e)
{
    struct refit fit;
    const struct candidates *tables[] = {&f->rows};
    if (!refit_costs(&f->menu, f->cost, tables, 1, f->knee < 0 ? NAN : f->knee_bpp, f->cost, &fit, e))
        return false;
    node_log(f->n, "costs refitted to %zu measured candidates: relative error %.3f before, %.3f after (each predicted "
             "from the others)", fit.n_rows, fit.error_before, fit.error_after);
    return true;
}

/* -------------------------------------------------------------------------------------------------------- proposals */

static bool is_known(const struct frontier *f, const uint8_t *assignment)
{
    return candidates_find(&f->proposals, assignment) >= 0 ||
           (f->has_rows && candidates_find(&f->rows, assignment) >= 0);
}

/* Propose an assignment that is not known yet. */
static bool propose(struct frontier *f, const uint8_t *assignment, const char *origin, struct err *e)
{
    return is_known(f, assignment) || candidates_add(&f->proposals, &f->menu, assignment, origin, -1, e) != NULL;
}

static bool propose_uniform(struct frontier *f, struct err *e)
{
    uint8_t *assignment;
    if (!mem_new(&assignment, (size_t)f->menu.n_units, e))
        return false;
    bool ok = true;
    for (int format = 0; ok && format < f->menu.n_formats; format++) {
        menu_uniform(&f->menu, format, assignment);
        ok = propose(f, assignment, "uniform", e);
    }
    mem_free(assignment);
    return ok;
}

/* Index of the predicted point that is nearest to `bpp`. */
static size_t nearest_point(const struct frontier *f, double bpp)
{
    size_t low = 0, high = f->n_points - 1;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (menu_bpp(&f->menu, f->points[middle].bytes) <= bpp)
            low = middle;
        else
            high = middle;
    }
    double below = fabs(bpp - menu_bpp(&f->menu, f->points[low].bytes));
    return below <= fabs(menu_bpp(&f->menu, f->points[high].bytes) - bpp) ? low : high;
}

struct target {
    double distance;
    size_t point;
};

static int by_distance(const void *a, const void *b)
{
    const struct target *x = a, *y = b;
    if (x->distance != y->distance)
        return x->distance < y->distance ? -1 : 1;
    return (x->point > y->point) - (x->point < y->point);
}

/* n targets evenly over low..high in bpp, as the predicted points nearest to them; nearest to `centre` first, or in
 * order of bpp if that is NaN. A point is listed once; returns how many. */
static size_t spread(const struct frontier *f, double low, double high, double centre, size_t n, struct target *out)
{
    size_t found = 0;
    for (size_t i = 0; i < n; i++) {
        double bpp = n > 1 ? low + (high - low) * (double)i / (double)(n - 1) : (low + high) / 2;
        size_t point = nearest_point(f, bpp);
        if (found > 0 && out[found - 1].point >= point)
            continue;
        double at = menu_bpp(&f->menu, f->points[point].bytes);
        out[found++] = (struct target){isnan(centre) ? at : fabs(at - centre), point};
    }
    qsort(out, found, sizeof *out, by_distance);
    return found;
}

/* Points of the predicted frontier. Around a knee, where neighbours may be known already, targets are made denser until
 * `count` of them are new. */
static bool propose_points(struct frontier *f, size_t count, struct err *e)
{
    size_t units = (size_t)f->menu.n_units, most = 4 * count, *indices = NULL, before = f->proposals.n;
    double low = menu_bpp(&f->menu, f->points[0].bytes), high = menu_bpp(&f->menu, f->points[f->n_points - 1].bytes);
    double centre = NAN;
    if (f->knee < 0) {
        most = count;
    } else {
        low = f->low;
        high = f->high;
        centre = f->knee_bpp;
    }
    struct target *targets = NULL;
    uint8_t *assignments = NULL;
    bool ok = mem_new(&targets, most, e) && mem_new(&indices, most, e) && mem_new(&assignments, most * units, e);
    for (size_t n = count; ok && n <= most && f->proposals.n - before < count; n *= 2) {
        size_t found = spread(f, low, high, centre, n, targets);
        for (size_t i = 0; i < found; i++)
            indices[i] = targets[i].point;
        ok = archive_assignments(f->archive, indices, found, assignments, e);
        for (size_t i = 0; ok && i < found && f->proposals.n - before < count; i++)
            ok = propose(f, assignments + i * units, "archive", e);
    }
    mem_free(assignments);
    mem_free(indices);
    mem_free(targets);
    return ok;
}

struct flip {
    double score;
    int unit, format;
};

static int by_score(const void *a, const void *b)
{
    const struct flip *x = a, *y = b;
    if (x->score != y->score)
        return x->score < y->score ? -1 : 1;
    if (x->unit != y->unit)
        return x->unit < y->unit ? -1 : 1;
    return x->format - y->format;
}

/* What a byte is worth on the predicted frontier at that place: cost saved per byte. */
static double slope_at(const struct frontier *f, double bpp)
{
    size_t at = nearest_point(f, bpp), reach = f->n_points / 50 + 1;
    size_t low = at > reach ? at - reach : 0, high = at + reach < f->n_points ? at + reach : f->n_points - 1;
    if (low == high)
        return 0;
    return (f->points[low].cost - f->points[high].cost) / (double)(f->points[high].bytes - f->points[low].bytes);
}

/* The single-unit flips of the knee that look best when a byte has its price on the predicted frontier. */
static bool propose_flips(struct frontier *f, size_t count, struct err *e)
{
    const struct menu *m = &f->menu;
    struct flip *flips;
    size_t n = 0, before = f->proposals.n;
    uint8_t *assignment; /* a copy: the rows are looked through for what is tried */
    double price = slope_at(f, f->knee_bpp);
    if (!mem_new(&assignment, (size_t)m->n_units, e))
        return false;
    memcpy(assignment, f->rows.list[f->knee].assignment, (size_t)m->n_units);
    if (!mem_new(&flips, (size_t)m->n_units * (size_t)m->n_formats, e)) {
        mem_free(assignment);
        return false;
    }
    for (int u = 0; u < m->n_units; u++) {
        int row = u * m->n_formats, from = assignment[u];
        for (int to = 0; to < m->n_formats; to++)
            if (to != from && m->available[row + to])
                flips[n++] = (struct flip){f->cost[row + to] - f->cost[row + from] +
                                           price * ((double)m->bytes[row + to] - (double)m->bytes[row + from]), u, to};
    }
    qsort(flips, n, sizeof *flips, by_score);
    bool ok = true;
    for (size_t i = 0; ok && i < n && f->proposals.n - before < count; i++) {
        uint8_t from = assignment[flips[i].unit];
        assignment[flips[i].unit] = (uint8_t)flips[i].format;
        ok = propose(f, assignment, "flip", e);
        assignment[flips[i].unit] = from;
    }
    mem_free(flips);
    mem_free(assignment);
    return ok;
}

/* ----------------------------------------------------------------------------------------------------------- result */

static bool write_predicted(const struct frontier *f, struct err *e)
{
    struct writer *w = node_output(f->n);
    const struct archive_quality *q = archive_quality(f->archive);
    struct dataset d = {.name = "predicted/bytes", .dtype = DTYPE_U64, .rank = 1, .shape = {f->n_points},
                        .unit = "byte", .axes = "point",
                        .description = "size of the predicted frontier's points, ascending"};
    uint64_t *bytes = NULL;
    double *cost = NULL;
    bool ok = mem_new(&bytes, f->n_points, e) && mem_new(&cost, f->n_points, e);
    for (size_t i = 0; ok && i < f->n_points; i++) {
        bytes[i] = f->points[i].bytes;
        cost[i] = f->points[i].cost;
    }
    ok = ok && writer_add(w, &d, bytes, e);
    d.name = "predicted/cost";
    d.dtype = DTYPE_F64;
    d.unit = "nat";
    d.description = "summed surrogate cost of the predicted frontier's points";
    ok = ok && writer_add(w, &d, cost, e) && writer_int(w, "predicted_exact", q->is_exact, e) &&
         writer_double(w, "predicted_gap", q->gap, e) && writer_double(w, "predicted_epsilon", q->epsilon, e) &&
         writer_int(w, "predicted_capped", q->is_capped, e);
    mem_free(cost);
    mem_free(bytes);
    return ok;
}

static void tell(const struct frontier *f)
{
    const struct archive_quality *q = archive_quality(f->archive);
    double epsilon = node_float(f->n, "epsilon");
    char quality[80] = "exact";
    if (!q->is_exact)
        snprintf(quality, sizeof quality, "at most %.3g of its largest cost above the optimum", q->gap);
    node_log(f->n, "predicted frontier of %zu points from %.4f to %.4f bpp, %s; %zu candidates proposed", f->n_points,
             menu_bpp(&f->menu, f->points[0].bytes), menu_bpp(&f->menu, f->points[f->n_points - 1].bytes), quality,
             f->proposals.n);
    if (q->is_capped)
        node_log(f->n, "`epsilon` %g could not be kept: there were more than `limit` (%lld) points, so archives were "
                 "thinned to %zu; a larger `limit` keeps it, in more memory and time", epsilon,
                 (long long)node_int(f->n, "limit"), q->kept);
    node_stat(f->n, "predicted_points", (double)f->n_points, "point");
    node_stat(f->n, "proposed", (double)f->proposals.n, "candidate");
}

static bool search(struct frontier *f, struct err *e)
{
    struct archive_problem p = {f->menu.n_units, f->menu.n_formats, f->menu.bytes, f->cost};
    struct archive_options o = {node_float(f->n, "epsilon"), (size_t)node_int(f->n, "limit")};
    size_t flips = (size_t)node_int(f->n, "neighbours"), count = (size_t)node_int(f->n, "count");
    if (f->has_rows && !learn(f, e))
        return false;
    if (!archive_new(&f->archive, &p, &o, e))
        return false;
    f->points = archive_points(f->archive, &f->n_points);
    if (!candidates_init(&f->proposals, f->menu.n_units, 0, NULL, NULL, e))
        return false;
    if ((node_bool(f->n, "uniform") && !propose_uniform(f, e)) || !propose_points(f, count, e) ||
        (f->knee >= 0 && flips > 0 && !propose_flips(f, flips, e)))
        return false;
    if (!write_predicted(f, e) || !candidates_write(&f->proposals, &f->menu, node_output(f->n), e))
        return false;
    tell(f);
    return true;
}

static bool run(struct node *n, struct err *e)
{
    struct frontier f = {.n = n, .knee = -1};
    bool ok = menu_read(&f.menu, node_input(n, "renderings", 0)->object, e) && read_costs(&f, e) &&
              (node_inputs(n, "rows") == 0 || read_rows(&f, e)) && search(&f, e);
    candidates_fini(&f.proposals);
    candidates_fini(&f.rows);
    archive_free(f.archive);
    surrogate_fini(&f.surrogate);
    menu_fini(&f.menu);
    return ok;
}

static bool needs(struct node *n, struct needs *out, struct err *e)
{
    struct menu menu;
    if (!menu_read(&menu, node_input(n, "renderings", 0)->object, e))
        return false;
    size_t limit = (size_t)node_int(n, "limit");
    *out = (struct needs){.cores = 1, .memory = archive_memory(menu.n_units, menu.n_formats, limit) + (32u << 20),
                          .disk = (uint64_t)limit * 16 + (1u << 20)};
    menu_fini(&menu);
    return true;
}

const struct node_class node_frontier = {
    .name = "frontier",
    .summary = "the predicted Pareto frontier in one pass, and the next candidates to measure",
    .version = 2,
    .ports = (const struct port[]){
        {"renderings", (const char *const[]){"quantize", NULL}, false, false, "formats and bytes of every unit"},
        {"surrogate", (const char *const[]){"rank", NULL}, false, false, "cost of every unit in every format"},
        {"rows", (const char *const[]){"measure", "select", "polish", NULL}, true, true,
         "measured candidates: the costs are refitted to them, and they are not proposed again"},
        {0}},
    .params = (const struct param[]){
        {.name = "count", .type = PARAM_INT, .fallback = "16", .least = 0, .most = 100000, .unit = "candidate",
         .help = "points of the predicted frontier to propose"},
        {.name = "uniform", .type = PARAM_BOOL, .fallback = "true", .help = "propose every format for all units, too"},
        {.name = "neighbours", .type = PARAM_INT, .fallback = "0", .least = 0, .most = 100000, .unit = "candidate",
         .help = "single-unit flips of the measured knee to propose"},
        KNEE_PARAMS,
        {.name = "epsilon", .type = PARAM_FLOAT, .fallback = "0", .least = 0, .most = 10, .unit = "1",
         .help = "predicted costs may be this share above the optimum; 0: exact; not kept beyond the limit"},
        {.name = "limit", .type = PARAM_INT, .fallback = "200000", .least = 1000, .most = 10000000, .unit = "point",
         .help = "most points of an archive; beyond, archives are thinned and only the distance is reported"},
        {0}},
    .needs = needs,
    .run = run,
};
