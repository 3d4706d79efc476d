/* Node type `frontier`: the whole predicted frontier in one pass of the archive DP, and the candidates to measure
 * next.
 *
 * Before anything is measured they are the uniform assignments and points spread evenly in bpp over the predicted
 * frontier. Once there are rows, the surrogate is first refitted to them (nodes/search/refit.h); pairs, where they
 * help, enter the DP as what they add to each unit's costs while the other units are as in the centre. The centre is
 * the measured knee, as `select` finds it in the same rows with the same `scale` and `sensitivity`, or what `select`
 * would choose by the same `budget`, `bpp` or `kl` without probes. Proposed are, one after the other, the points of
 * the predicted frontier with the largest expected gain in hypervolume over (bytes, log KL), in the stretch from two
 * points of the measured frontier before the centre to two after it, or, within a budget, of the log KL that is to be
 * had there; each counted as if it had been measured as predicted; then the flips and swaps of the centre that look
 * best when a byte has its price on the predicted frontier. What was measured is not proposed again, so in the end
 * there may be nothing to propose, which is a table without rows.
 *
 * Its result is a surrogate too: the refitted costs. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nodes/nodes.h"
#include "nodes/search/allocate.h"
#include "nodes/search/archive.h"
#include "nodes/search/candidates.h"
#include "nodes/search/column.h"
#include "nodes/search/hypervolume.h"
#include "nodes/search/knee.h"
#include "nodes/search/pareto.h"
#include "nodes/search/refit.h"
#include "nodes/search/surrogate.h"

#define STRETCH 2 /* points of the measured frontier on either side of the centre between which points are proposed */
#define CHOICES 16 /* predicted points that are looked at for each that is proposed */
#define LEAST_DEVIATION 0.02 /* of a predicted log KL: some of the gain is always luck */
#define LEAST_KL 1e-9
#define ONE_OF "says by itself where candidates are wanted"
#define SWAP_SIDES 64 /* best changes to more bytes, and to fewer, that are paired into swaps */

struct frontier {
    struct node *n;
    struct menu menu;
    struct surrogate surrogate;
    struct refit fit;  /* of the surrogate, whose costs are refitted in place; n_rows 0: nothing to learn from */
    double *cost;      /* [unit, format]: the DP's: the surrogate's, and the pairs' around the centre, less a constant a
                          unit */
    struct archive *archive;
    const struct archive_point *points;
    size_t n_points;
    bool has_rows;
    struct candidates rows;      /* measured; only with has_rows */
    long centre;                 /* id in rows; -1: none is complete */
    double centre_bpp, low, high;/* the stretch in bpp */
    uint64_t most_bytes;         /* the budget; 0: none */
    struct staircase measured;   /* the measured frontier: bytes, log KL; with room for `count` more */
    struct candidates proposals;
};

/* ---------------------------------------------------------------------------------------------------- what is known */

/* The knee of a measured frontier; or its last point of at most `budget` or `bpp`, or first of at most `kl`, and where
 * there is none the nearest. */
static bool find_centre(const struct frontier *f, const double *bpp, const double *kl, size_t n, size_t *at,
                        struct err *e)
{
    struct knee_options o = {.sensitivity = node_float(f->n, "sensitivity"),
                             .is_log = strcmp(node_string(f->n, "scale"), "log") == 0};
    struct knee knee;
    double most = menu_bpp(&f->menu, f->most_bytes), most_kl = node_float(f->n, "kl");
    *at = 0;
    if (most > 0 || most_kl > 0) {
        while (*at + 1 < n && (most > 0 ? bpp[*at + 1] <= most : kl[*at] > most_kl))
            ++*at;
        return true;
    }
    if (!knee_find(bpp, kl, n, &o, &knee, e))
        return false;
    *at = knee.at;
    return true;
}

/* The measured frontier, its centre and the stretch around it; x, y, dominated and on_frontier have room for all
 * rows. */
static bool place_centre(struct frontier *f, double *x, double *y, int32_t *dominated, uint32_t *on_frontier,
                         struct err *e)
{
    size_t n, at;
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
        const struct candidate *c = &f->rows.list[on_frontier[i]];
        x[i] = c->bpp;
        y[i] = c->kl_mean;
        hypervolume_insert(&f->measured, (double)c->bytes, log(fmax(c->kl_mean, LEAST_KL)));
    }
    if (!find_centre(f, x, y, n, &at, e))
        return false;
    f->centre = on_frontier[at];
    f->centre_bpp = x[at];
    f->low = x[at > STRETCH ? at - STRETCH : 0];
    f->high = f->most_bytes > 0 ? menu_bpp(&f->menu, f->most_bytes) : x[at + STRETCH < n ? at + STRETCH : n - 1];
    return true;
}

static bool look_at_rows(struct frontier *f, struct err *e)
{
    double *x = NULL, *y = NULL;
    int32_t *dominated = NULL;
    uint32_t *on_frontier = NULL;
    size_t n = f->rows.n, room = n + (size_t)node_int(f->n, "count") + 1;
    bool ok = mem_new(&f->measured.x, room, e) && mem_new(&f->measured.y, room, e) && mem_new(&x, n, e) &&
              mem_new(&y, n, e) && mem_new(&dominated, n, e) && mem_new(&on_frontier, n, e) &&
              place_centre(f, x, y, dominated, on_frontier, e);
    mem_free(on_frontier);
    mem_free(dominated);
    mem_free(y);
    mem_free(x);
    return ok;
}

static bool read_rows(struct frontier *f, struct err *e)
{
    if (!candidates_read_rows(&f->rows, &f->menu, f->n, "rows", e))
        return false;
    f->has_rows = true;
    return look_at_rows(f, e);
}

static void tell_fit(const struct frontier *f)
{
    const struct refit *r = &f->fit;
    char limit[64] = "", order[96] = "no rank correlation";
    double before = r->correlation[REFIT_PRIOR];
    double after = r->correlation[r->has_pairs ? REFIT_FITTED_PAIRS : REFIT_FITTED];
    if (!isnan(before) && !isnan(after))
        snprintf(order, sizeof order, "rank correlation %.3f before, %.3f after", before, after);
    if (r->link.limit < INFINITY)
        snprintf(limit, sizeof limit, ", at most %.3g", r->link.limit);
    node_log(f->n,
             "surrogate refitted to %zu measured candidates: relative error %.3f before, %.3f after (each predicted "
             "from the others), %s; KL is (%.3g cost)^%.3f%s; pairs %s",
             r->n_rows, r->error_before, r->error_after, order, r->link.scale, r->link.power, limit,
             f->surrogate.n_pairs == 0 ? "are not known" : r->has_pairs ? "help" : "do not help and are left out");
}

static bool learn(struct frontier *f, struct err *e)
{
    const struct candidates *tables[] = {&f->rows};
    size_t cells = (size_t)f->menu.n_formats * (size_t)f->menu.n_formats;
    if (!refit_surrogate(&f->menu, &f->surrogate, tables, 1, f->centre < 0 ? NAN : f->centre_bpp, f->surrogate.cost,
                         &f->fit, e))
        return false;
    for (size_t i = 0; f->fit.n_rows > 0 && i < f->surrogate.n_pairs * cells; i++)
        f->surrogate.pair_cost[i] *= f->fit.pair_factor;
    if (f->fit.n_rows > 0)
        tell_fit(f);
    if (f->fit.n_rows > 0 && !f->fit.has_pairs)
        f->surrogate.n_pairs = 0;
    return true;
}

/* The DP's costs. What pairs add to a unit's format is what they add while the others are as in the centre; a unit's
 * least cost is taken off, for the DP wants none below zero. */
static bool linearise(struct frontier *f, struct err *e)
{
    const struct menu *m = &f->menu;
    size_t n_formats = (size_t)m->n_formats, per_pair = n_formats * n_formats;
    if (!mem_new(&f->cost, (size_t)m->n_units * n_formats, e))
        return false;
    memcpy(f->cost, f->surrogate.cost, (size_t)m->n_units * n_formats * sizeof *f->cost);
    if (f->centre < 0 || f->surrogate.n_pairs == 0)
        return true;
    const uint8_t *centre = f->rows.list[f->centre].assignment;
    for (size_t i = 0; i < f->surrogate.n_pairs; i++) {
        const uint32_t *u = f->surrogate.pairs[i];
        const double *table = f->surrogate.pair_cost + i * per_pair;
        for (size_t g = 0; g < n_formats; g++) {
            f->cost[u[0] * n_formats + g] += table[g * n_formats + centre[u[1]]];
            f->cost[u[1] * n_formats + g] += table[centre[u[0]] * n_formats + g];
        }
    }
    for (int u = 0; u < m->n_units; u++) {
        double least = INFINITY, *cost = f->cost + (size_t)u * n_formats;
        for (size_t g = 0; g < n_formats; g++)
            least = cost[g] < least ? cost[g] : least; /* NaN is not */
        for (size_t g = 0; g < n_formats; g++)
            cost[g] -= least;
    }
    return true;
}

/* KL that the surrogate predicts. */
static double predict(const struct frontier *f, const uint8_t *assignment)
{
    return refit_kl(&f->fit.link, surrogate_energy(&f->menu, &f->surrogate, assignment));
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

/* n targets evenly over low..high in bpp, as the predicted points nearest to them, in order of bpp. A point is listed
 * once; returns how many. */
static size_t spread(const struct frontier *f, double low, double high, size_t n, size_t *points)
{
    size_t found = 0;
    for (size_t i = 0; i < n; i++) {
        double bpp = n > 1 ? low + (high - low) * (double)i / (double)(n - 1) : (low + high) / 2;
        size_t point = nearest_point(f, bpp);
        if (found == 0 || points[found - 1] < point)
            points[found++] = point;
    }
    return found;
}

/* What a candidate of that size and predicted KL can be expected to gain: in hypervolume over the stretch, or, within a
 * budget, of the KL that is to be had there, whatever its own size. */
static double expected_gain(const struct frontier *f, uint64_t bytes, double kl)
{
    double deviation = fmax(log1p(f->fit.error_after), LEAST_DEVIATION), mean = log(fmax(kl, LEAST_KL));
    double high = f->high * (double)f->menu.total_parameters / 8, most = (double)f->most_bytes;
    if (f->most_bytes == 0)
        return hypervolume_gain(&f->measured, (double)bytes, mean, deviation, high);
    return bytes > f->most_bytes ? 0 : hypervolume_gain(&f->measured, most, mean, deviation, most + 1);
}

/* Of n assignments [n, unit], the one not yet known with the largest expected gain; n when there is none. */
static size_t best_gain(const struct frontier *f, const uint8_t *assignments, size_t n)
{
    size_t units = (size_t)f->menu.n_units, best = n;
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *x = assignments + i * units;
        double gain = expected_gain(f, menu_bytes(&f->menu, x), predict(f, x));
        if (gain > most && !is_known(f, x)) {
            most = gain;
            best = i;
        }
    }
    return best;
}

/* Points of the predicted frontier around the centre, by expected gain. */
static bool propose_gains(struct frontier *f, const uint8_t *assignments, size_t n, size_t count, struct err *e)
{
    size_t units = (size_t)f->menu.n_units;
    for (size_t k = 0; k < count; k++) {
        size_t best = best_gain(f, assignments, n);
        if (best == n)
            break;
        const uint8_t *x = assignments + best * units;
        if (!propose(f, x, "archive", e))
            return false;
        hypervolume_insert(&f->measured, (double)menu_bytes(&f->menu, x), log(fmax(predict(f, x), LEAST_KL)));
    }
    return true;
}

/* The last predicted point within the budget. */
static size_t last_within(const struct frontier *f)
{
    size_t at = 0;
    while (at + 1 < f->n_points && f->points[at + 1].bytes <= f->most_bytes)
        at++;
    return at;
}

/* Points of the predicted frontier. */
static bool propose_points(struct frontier *f, size_t count, struct err *e)
{
    bool has_centre = f->centre >= 0;
    size_t units = (size_t)f->menu.n_units, n = has_centre ? CHOICES * count : count, *points = NULL;
    double low = menu_bpp(&f->menu, f->points[0].bytes), high = menu_bpp(&f->menu, f->points[f->n_points - 1].bytes);
    uint8_t *assignments = NULL;
    bool ok = mem_new(&points, n + 1, e) && mem_new(&assignments, (n + 1) * units, e);
    size_t found = ok ? spread(f, has_centre ? f->low : low, has_centre ? f->high : high, n, points) : 0;
    if (ok && has_centre && f->most_bytes > 0)
        points[found++] = last_within(f);
    ok = ok && archive_assignments(f->archive, points, found, assignments, e);
    if (ok && has_centre)
        ok = propose_gains(f, assignments, found, count, e);
    for (size_t i = 0; ok && !has_centre && i < found; i++)
        ok = propose(f, assignments + i * units, "archive", e);
    mem_free(assignments);
    mem_free(points);
    return ok;
}

/* A change of one unit of the centre, or of two. */
struct change {
    double score; /* what it adds to the cost, and to the bytes at their price; less is better */
    int64_t bytes;
    int unit[2], format[2]; /* unit[1] -1: one only */
};

static int by_score(const void *a, const void *b)
{
    const struct change *x = a, *y = b;
    if (x->score != y->score)
        return x->score < y->score ? -1 : 1;
    for (int i = 0; i < 2; i++) {
        if (x->unit[i] != y->unit[i])
            return x->unit[i] < y->unit[i] ? -1 : 1;
        if (x->format[i] != y->format[i])
            return x->format[i] - y->format[i];
    }
    return 0;
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

/* Flips that add at most `room` bytes. */
static size_t list_flips(const struct frontier *f, const uint8_t *centre, double price, int64_t room,
                         struct change *out)
{
    const struct menu *m = &f->menu;
    size_t n = 0;
    for (int u = 0; u < m->n_units; u++) {
        int row = u * m->n_formats, from = centre[u];
        for (int to = 0; to < m->n_formats; to++) {
            if (to == from || !m->available[row + to])
                continue;
            int64_t bytes = (int64_t)(m->bytes[row + to] - m->bytes[row + from]);
            if (bytes > room)
                continue;
            out[n++] = (struct change){f->cost[row + to] - f->cost[row + from] + price * (double)bytes, bytes, {u, -1},
                                       {to, 0}};
        }
    }
    qsort(out, n, sizeof *out, by_score);
    return n;
}

/* Of the best flips, one to more bytes and one to fewer, which together add at most `room`. */
static size_t list_swaps(const struct change *flips, size_t n_flips, int64_t room, struct change *out)
{
    const struct change *up[SWAP_SIDES], *down[SWAP_SIDES];
    size_t n_up = 0, n_down = 0, n = 0;
    for (size_t i = 0; i < n_flips; i++) {
        if (flips[i].bytes > 0 && n_up < SWAP_SIDES)
            up[n_up++] = &flips[i];
        else if (flips[i].bytes < 0 && n_down < SWAP_SIDES)
            down[n_down++] = &flips[i];
    }
    for (size_t i = 0; i < n_up; i++)
        for (size_t j = 0; j < n_down; j++)
            if (up[i]->unit[0] != down[j]->unit[0] && up[i]->bytes + down[j]->bytes <= room)
                out[n++] = (struct change){up[i]->score + down[j]->score, up[i]->bytes + down[j]->bytes,
                                           {up[i]->unit[0], down[j]->unit[0]}, {up[i]->format[0], down[j]->format[0]}};
    qsort(out, n, sizeof *out, by_score);
    return n;
}

static bool propose_changes(struct frontier *f, const struct change *list, size_t n, size_t count, const char *origin,
                            uint8_t *assignment, struct err *e)
{
    size_t before = f->proposals.n;
    bool ok = true;
    for (size_t i = 0; ok && i < n && f->proposals.n - before < count; i++) {
        uint8_t from[2] = {0};
        for (int k = 0; k < 2 && list[i].unit[k] >= 0; k++) {
            from[k] = assignment[list[i].unit[k]];
            assignment[list[i].unit[k]] = (uint8_t)list[i].format[k];
        }
        ok = propose(f, assignment, origin, e);
        for (int k = 0; k < 2 && list[i].unit[k] >= 0; k++)
            assignment[list[i].unit[k]] = from[k];
    }
    return ok;
}

/* Half of `count` flips, half swaps. */
static bool propose_neighbours(struct frontier *f, size_t count, struct err *e)
{
    const struct menu *m = &f->menu;
    struct change *flips = NULL, *swaps = NULL;
    uint8_t *assignment = NULL; /* a copy: the rows are looked through for what is tried */
    double price = slope_at(f, f->centre_bpp);
    bool ok = mem_new(&flips, (size_t)m->n_units * (size_t)m->n_formats, e) &&
              mem_new(&swaps, (size_t)SWAP_SIDES * SWAP_SIDES, e) && mem_new(&assignment, (size_t)m->n_units, e);
    if (ok) {
        const struct candidate *centre = &f->rows.list[f->centre];
        int64_t room = f->most_bytes > 0 ? (int64_t)(f->most_bytes - centre->bytes) : 0;
        memcpy(assignment, centre->assignment, (size_t)m->n_units);
        size_t n = list_flips(f, assignment, price, INT64_MAX, flips), n_swaps = list_swaps(flips, n, room, swaps);
        if (f->most_bytes > 0) /* the swaps' halves need not fit by themselves */
            n = list_flips(f, assignment, price, room, flips);
        ok = propose_changes(f, flips, n, (count + 1) / 2, "flip", assignment, e) &&
             propose_changes(f, swaps, n_swaps, count / 2, "swap", assignment, e);
    }
    mem_free(assignment);
    mem_free(swaps);
    mem_free(flips);
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

/* The surrogate as it is now, in the form in which surrogate_read takes it. */
static bool write_surrogate(const struct frontier *f, struct err *e)
{
    struct writer *w = node_output(f->n);
    uint64_t units = (uint64_t)f->menu.n_units, n_formats = (uint64_t)f->menu.n_formats, pairs = f->surrogate.n_pairs;
    const struct refit *r = &f->fit;
    struct dataset cost = {.name = "cost", .dtype = DTYPE_F64, .rank = 2, .shape = {units, n_formats}, .unit = "nat",
        .axes = "unit, format", .description =
            "refitted costs, whose sum the link makes a KL of; NaN where not available"};
    struct dataset pair_units = {.name = "pairs/units", .dtype = DTYPE_U32, .rank = 2, .shape = {pairs, 2}, .unit = "1",
        .axes = "pair, side", .description = "the two units, ascending"};
    struct dataset pair_cost = {.name = "pairs/cost", .dtype = DTYPE_F64, .rank = 3,
        .shape = {pairs, n_formats, n_formats},
        .unit = "nat", .axes = "pair, format, format", .description = "what both add to the sum of their costs"};
    return writer_add(w, &cost, f->surrogate.cost, e) &&
           (pairs == 0 || (writer_add(w, &pair_units, f->surrogate.pairs, e) &&
                           writer_add(w, &pair_cost, f->surrogate.pair_cost, e))) &&
           writer_int(w, "refit_rows", (int64_t)r->n_rows, e) && writer_int(w, "refit_pairs", r->has_pairs, e) &&
           writer_double(w, "refit_error_before", r->error_before, e) &&
           writer_double(w, "refit_error_after", r->error_after, e) && writer_double(w, "refit_ridge", r->ridge, e) &&
           writer_double(w, "link_scale", r->link.scale, e) && writer_double(w, "link_power", r->link.power, e) &&
           writer_double(w, "link_limit", r->link.limit, e);
}

/* What was known of each surrogate's order when this was proposed. */
static bool write_correlations(const struct frontier *f, struct err *e)
{
    struct writer *w = node_output(f->n);
    const char *names[REFIT_SCORES];
    double value[REFIT_SCORES];
    uint64_t rows[REFIT_SCORES];
    size_t n = 0;
    for (int i = 0; i < REFIT_SCORES; i++)
        if (f->fit.n_rows > 0 && !isnan(f->fit.correlation[i])) {
            names[n] = refit_score_names[i];
            value[n] = f->fit.correlation[i];
            rows[n++] = f->fit.n_rows;
        }
    return n == 0 ||
           (writer_add_strings(w, "correlation/name", names, n, "surrogate", "what was compared with the measured KL",
                               e) &&
            column_write(w, "correlation/spearman", DTYPE_F64, value, n, "1", "surrogate",
                         "rank correlation with the measured KL; of refitted ones, each predicted from the others",
                         e) &&
            column_write(w, "correlation/n", DTYPE_U64, rows, n, "1", "surrogate", "measured candidates", e));
}

static bool write_proposals(const struct frontier *f, struct err *e)
{
    double *kl;
    if (!mem_new(&kl, f->proposals.n, e))
        return false;
    for (size_t i = 0; i < f->proposals.n; i++)
        kl[i] = predict(f, f->proposals.list[i].assignment);
    bool ok = column_write(node_output(f->n), "predicted/kl", DTYPE_F64, kl, f->proposals.n, "nat", "candidate",
                           "KL that the surrogate predicts for each proposal", e) &&
              candidates_write(&f->proposals, &f->menu, node_output(f->n), e);
    mem_free(kl);
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
    struct archive_problem p = {f->menu.n_units, f->menu.n_formats, f->menu.bytes, NULL};
    struct archive_options o = {node_float(f->n, "epsilon"), (size_t)node_int(f->n, "limit")};
    size_t neighbours = (size_t)node_int(f->n, "neighbours"), count = (size_t)node_int(f->n, "count");
    if ((f->has_rows && !learn(f, e)) || !linearise(f, e))
        return false;
    p.cost = f->cost;
    if (!archive_new(&f->archive, &p, &o, e))
        return false;
    f->points = archive_points(f->archive, &f->n_points);
    if (!candidates_init(&f->proposals, f->menu.n_units, 0, NULL, NULL, e))
        return false;
    if ((node_bool(f->n, "uniform") && !propose_uniform(f, e)) || !propose_points(f, count, e) ||
        (f->centre >= 0 && neighbours > 0 && !propose_neighbours(f, neighbours, e)))
        return false;
    if (!write_predicted(f, e) || !write_surrogate(f, e) || !write_correlations(f, e) || !write_proposals(f, e))
        return false;
    tell(f);
    return true;
}

/* One that nothing can keep is refused here, before candidates are measured for it. */
static bool read_budget(struct frontier *f, struct err *e)
{
    double bpp = node_float(f->n, "bpp");
    f->most_bytes = bpp > 0 ? allocate_budget(&f->menu, bpp) : node_size(f->n, "budget");
    return (f->most_bytes == 0 && bpp == 0) || allocate_check_budget(&f->menu, f->most_bytes, e);
}

static bool run(struct node *n, struct err *e)
{
    struct frontier f = {.n = n, .centre = -1};
    const struct input *surrogate = node_input(n, "surrogate", 0);
    bool ok = menu_read(&f.menu, node_input(n, "renderings", 0)->object, e) &&
              surrogate_read(&f.surrogate, &f.menu, surrogate->object, surrogate->node, e) && read_budget(&f, e);
    ok = ok && (node_inputs(n, "rows") == 0 || read_rows(&f, e)) && search(&f, e);
    candidates_fini(&f.proposals);
    candidates_fini(&f.rows);
    archive_free(f.archive);
    surrogate_fini(&f.surrogate);
    mem_free(f.cost);
    mem_free(f.measured.x);
    mem_free(f.measured.y);
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
    .version = 3,
    .ports = (const struct port[]){
        {"renderings", (const char *const[]){"quantize", NULL}, false, false, "formats and bytes of every unit"},
        {"surrogate", (const char *const[]){"rank", "probe", "frontier", NULL}, false, false,
         "cost of every unit in every format, and what pairs add"},
        {"rows", (const char *const[]){"measure", "select", "polish", NULL}, true, true,
         "measured candidates: the surrogate is refitted to them, and they are not proposed again"},
        {0}},
    .params = (const struct param[]){
        {.name = "count", .type = PARAM_INT, .fallback = "16", .least = 0, .most = 100000, .unit = "candidate",
         .help = "points of the predicted frontier to propose"},
        {.name = "uniform", .type = PARAM_BOOL, .fallback = "true", .help = "propose every format for all units, too"},
        {.name = "neighbours", .type = PARAM_INT, .fallback = "0", .least = 0, .most = 100000, .unit = "candidate",
         .help = "single flips, and swaps of at most the same bytes, of the measured centre to propose"},
        {.name = "budget", .type = PARAM_SIZE, .fallback = "0", .one_of = ONE_OF, .unit = "byte",
         .help = "the centre, as in `select`: the best of at most so many bytes; 0, as the next two: the knee"},
        {.name = "bpp", .type = PARAM_FLOAT, .fallback = "0", .one_of = ONE_OF, .least = 0, .most = 64, .unit = "bit",
         .help = "the same in bits per parameter"},
        {.name = "kl", .type = PARAM_FLOAT, .fallback = "0", .one_of = ONE_OF, .least = 0, .most = 1000, .unit = "nat",
         .help = "the smallest of at most this KL"},
        KNEE_PARAMS,
        {.name = "epsilon", .type = PARAM_FLOAT, .fallback = "0", .least = 0, .most = 10, .unit = "1",
         .help = "predicted costs may be this share above the optimum; 0: exact; not kept beyond the limit"},
        {.name = "limit", .type = PARAM_INT, .fallback = "200000", .least = 1000, .most = 10000000, .unit = "point",
         .help = "most points of an archive; beyond, archives are thinned and only the distance is reported"},
        {0}},
    .needs = needs,
    .run = run,
};
