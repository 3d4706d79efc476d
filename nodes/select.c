/* Node type `select`: the measured frontier, its knee and how sure that is, and the candidate that is chosen: the
 * knee, or the nearest to a budget of bytes or a ceiling of KL. Only complete rows take part: candidates that were
 * measured on every window.
 *
 * How sure: the documents are drawn again with replacement, all candidates on the same draw; the mass of the knee is
 * the share of draws in which the same candidate is the knee. And each point of the frontier is left out in turn. Who
 * beats whom is told with the paired difference over documents: where its interval includes 0, the two tie.
 *
 * Within a budget there are many candidates of nearly the same KL, and the lowest of a few documents owes that to luck
 * as much as to merit. So, with port `probe`, ties with it are decided by the measured and the predicted differences
 * together (nodes/search/pooled.h). */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/str.h"
#include "nodes/nodes.h"
#include "nodes/search/allocate.h"
#include "nodes/search/candidates.h"
#include "nodes/search/column.h"
#include "nodes/search/knee.h"
#include "nodes/search/pareto.h"
#include "nodes/search/pooled.h"
#include "nodes/search/probes.h"
#include "nodes/search/stats.h"

#define LEVEL 0.95
#define ONE_OF "says by itself what is chosen"
#define SURE 0.5 /* least mass of a knee that is not said to be unsure */

/* Kneedle is run on the KLs and on their logarithms; `scale` says which of the knees counts. */
enum { LINEAR, LOG, N_SCALES };
static const char *const scale_names[N_SCALES] = {"linear", "log"};

/* The frontier and knees of the candidates for one vector of KLs, with room for all of them. */
struct curve {
    double *y;               /* [candidate]: NaN takes no part */
    int32_t *dominated;      /* [candidate] */
    uint32_t *points;        /* [n]: ids, bytes ascending */
    size_t n;
    double *point_x, *point_y; /* [n] */
    struct knee knee[N_SCALES]; /* .at is an index of points */
};

struct select {
    struct node *n;
    struct menu menu;
    struct candidates rows;
    double *x;               /* [candidate]: bpp */
    double *low, *high;      /* [candidate]: interval of the mean KL over documents; NaN where there is none */
    int scale;               /* that counts */
    double sensitivity;
    struct curve curve;      /* of what was measured */
    struct curve spare;      /* of a resample, or without a point */
    uint32_t *document;      /* [window], from 0 */
    uint32_t n_documents;
    double mass[N_SCALES];
    uint32_t *dropped, *dropped_knee;
    size_t n_dropped;
    struct stats_difference *beaten; /* [candidate]: its KL minus that of the one that beats it; NaN: none does */
    struct stats_difference *step;   /* [point]: its KL minus that of the point before; NaN: the first */
    uint32_t lowest;         /* within a budget, by what was measured alone */
    struct tie *ties;        /* with it */
    size_t n_ties;
    double share;            /* of the measured differences in the means */
    uint32_t chosen;
    const char *chosen_by;   /* "knee", or the parameter */
};

struct tie {
    uint32_t id;
    struct pooled difference; /* its KL minus the lowest */
};

/* ------------------------------------------------------------------------------------------------ frontier and knee */

static bool new_curve(struct curve *c, size_t n, struct err *e)
{
    return mem_new(&c->y, n, e) && mem_new(&c->dominated, n, e) && mem_new(&c->points, n, e) &&
           mem_new(&c->point_x, n, e) && mem_new(&c->point_y, n, e);
}

static void free_curve(struct curve *c)
{
    mem_free(c->y);
    mem_free(c->dominated);
    mem_free(c->points);
    mem_free(c->point_x);
    mem_free(c->point_y);
}

/* Fill the rest of the curve from c->y. With no point at all, n is 0 and there are no knees. */
static bool trace_curve(const struct select *s, struct curve *c, struct err *e)
{
    if (!pareto_filter(s->x, c->y, s->rows.n, c->dominated, c->points, &c->n, e))
        return false;
    for (size_t i = 0; i < c->n; i++) {
        c->point_x[i] = s->x[c->points[i]];
        c->point_y[i] = c->y[c->points[i]];
    }
    bool ok = true;
    for (int k = 0; ok && c->n > 0 && k < N_SCALES; k++) {
        struct knee_options o = {.sensitivity = s->sensitivity, .is_log = k == LOG};
        ok = knee_find(c->point_x, c->point_y, c->n, &o, &c->knee[k], e);
    }
    return ok;
}

static uint32_t knee_id(const struct curve *c, int scale) { return c->points[c->knee[scale].at]; }

/* --------------------------------------------------------------------------------------------------- how sure it is */

/* sums[candidate, document] of KL over positions, and positions[document]. */
static void sum_documents(const struct select *s, double *sums, double *positions)
{
    const struct candidates *rows = &s->rows;
    for (uint32_t w = 0; w < rows->n_windows; w++)
        positions[s->document[w]] += rows->window_tokens[w];
    for (size_t i = 0; i < rows->n; i++)
        for (uint32_t w = 0; w < rows->n_windows && !isnan(s->curve.y[i]); w++)
            sums[i * s->n_documents + s->document[w]] += rows->list[i].kl_window[w] * rows->window_tokens[w];
}

/* One resample's KLs into the spare curve. */
static void draw(struct select *s, const double *sums, const double *positions, const uint32_t *counts)
{
    double all = 0;
    for (uint32_t d = 0; d < s->n_documents; d++)
        all += counts[d] * positions[d];
    for (size_t i = 0; i < s->rows.n; i++) {
        double sum = 0;
        for (uint32_t d = 0; d < s->n_documents; d++)
            sum += counts[d] * sums[i * s->n_documents + d];
        s->spare.y[i] = isnan(s->curve.y[i]) ? NAN : sum / all;
    }
}

static bool bootstrap(struct select *s, struct err *e)
{
    int64_t draws = node_int(s->n, "bootstrap"), same[N_SCALES] = {0};
    uint64_t state = (uint64_t)node_int(s->n, "seed");
    double *sums = NULL, *positions = NULL;
    uint32_t *counts = NULL;
    s->mass[LINEAR] = s->mass[LOG] = NAN;
    if (draws == 0 || s->n_documents < 2)
        return true;
    bool ok = mem_new(&sums, s->rows.n * s->n_documents, e) && mem_new(&positions, s->n_documents, e) &&
              mem_new(&counts, s->n_documents, e);
    if (ok)
        sum_documents(s, sums, positions);
    for (int64_t i = 0; ok && i < draws; i++) {
        stats_resample(&state, counts, s->n_documents);
        draw(s, sums, positions, counts);
        ok = trace_curve(s, &s->spare, e);
        for (int k = 0; ok && k < N_SCALES; k++)
            same[k] += knee_id(&s->spare, k) == knee_id(&s->curve, k);
        if (ok && i % 100 == 0 && node_stopping(s->n))
            ok = node_stopped(e);
    }
    for (int k = 0; ok && k < N_SCALES; k++)
        s->mass[k] = (double)same[k] / (double)draws;
    mem_free(counts);
    mem_free(positions);
    mem_free(sums);
    return ok;
}

static bool leave_one_out(struct select *s, struct err *e)
{
    if (!mem_new(&s->dropped, s->curve.n, e) || !mem_new(&s->dropped_knee, s->curve.n, e))
        return false;
    for (size_t i = 0; i < s->curve.n; i++) {
        memcpy(s->spare.y, s->curve.y, s->rows.n * sizeof *s->spare.y);
        s->spare.y[s->curve.points[i]] = NAN;
        if (!trace_curve(s, &s->spare, e))
            return false;
        if (s->spare.n == 0) /* it was the only one */
            continue;
        s->dropped[s->n_dropped] = s->curve.points[i];
        s->dropped_knee[s->n_dropped++] = knee_id(&s->spare, s->scale);
    }
    return true;
}

static bool find_intervals(struct select *s, struct err *e)
{
    bool ok = true;
    for (size_t i = 0; ok && i < s->rows.n; i++)
        ok = candidate_interval(&s->rows, &s->rows.list[i], &s->low[i], &s->high[i], e);
    return ok;
}

/* KL of candidate a minus that of b, on the same tokens. */
static bool compare(const struct select *s, uint32_t a, uint32_t b, struct stats_difference *out, struct err *e)
{
    const struct candidates *c = &s->rows;
    return stats_paired_interval(c->list[a].kl_window, c->list[b].kl_window, c->window_tokens, c->window_document,
                                 c->n_windows, LEVEL, out, e);
}

static bool find_differences(struct select *s, struct err *e)
{
    const struct curve *c = &s->curve;
    bool ok = mem_new(&s->beaten, s->rows.n, e) && mem_new(&s->step, c->n, e);
    for (uint32_t i = 0; ok && i < s->rows.n; i++) {
        s->beaten[i] = stats_no_difference;
        if (c->dominated[i] >= 0)
            ok = compare(s, i, (uint32_t)c->dominated[i], &s->beaten[i], e);
    }
    for (size_t i = 0; ok && i < c->n; i++) {
        s->step[i] = stats_no_difference;
        if (i > 0)
            ok = compare(s, c->points[i], c->points[i - 1], &s->step[i], e);
    }
    return ok;
}

/* --------------------------------------------------------------------------------------------------------- choosing */

/* What is asked for instead of the knee. */
struct wanted {
    const char *by;   /* the parameter; NULL: none */
    uint64_t most;    /* bytes */
    double kl;        /* nats, of the mean on the selection set */
};

static struct wanted read_wanted(const struct select *s)
{
    uint64_t budget = node_size(s->n, "budget");
    double bpp = node_float(s->n, "bpp"), kl = node_float(s->n, "kl");
    if (budget > 0)
        return (struct wanted){"budget", budget, INFINITY};
    if (bpp > 0)
        return (struct wanted){"bpp", allocate_budget(&s->menu, bpp), INFINITY};
    if (kl > 0)
        return (struct wanted){"kl", UINT64_MAX, kl};
    return (struct wanted){NULL, UINT64_MAX, INFINITY};
}

static bool cannot_meet(const struct select *s, const struct wanted *wanted, struct err *e)
{
    const struct curve *c = &s->curve;
    const struct candidate *first = &s->rows.list[c->points[0]], *last = &s->rows.list[c->points[c->n - 1]];
    char limit[96];
    if (isinf(wanted->kl))
        snprintf(limit, sizeof limit, "at most %" PRIu64 " bytes (%.4f bpp)", wanted->most,
                 menu_bpp(&s->menu, wanted->most));
    else
        snprintf(limit, sizeof limit, "KL at most %.6g", wanted->kl);
    return err_set(e, ERR_INPUT, "no measured candidate has %s, as `%s` asks: the frontier goes from %" PRIu64
                   " bytes (%.4f bpp) at KL %.6g to %" PRIu64 " bytes (%.4f bpp) at KL %.6g", limit, wanted->by,
                   first->bytes, first->bpp, first->kl_mean, last->bytes, last->bpp, last->kl_mean);
}

/* Candidates of at most `most` bytes that tie with s->lowest. */
static bool find_ties(struct select *s, uint64_t most, struct err *e)
{
    if (!mem_new(&s->ties, s->rows.n, e))
        return false;
    for (uint32_t i = 0; i < s->rows.n; i++) {
        struct tie *t = &s->ties[s->n_ties];
        if (i == s->lowest || isnan(s->curve.y[i]) || s->rows.list[i].bytes > most)
            continue;
        if (!compare(s, i, s->lowest, &t->difference.measured, e))
            return false;
        t->id = i;
        s->n_ties += stats_is_tie(&t->difference.measured);
    }
    return true;
}

/* What turns predictions into KLs, for the lowest and what ties with it. */
static double scale_of(const struct select *s, struct probe_windows *probe)
{
    double kl = 0, cost = 0;
    for (size_t i = 0; i <= s->n_ties; i++) {
        const struct candidate *c = &s->rows.list[i < s->n_ties ? s->ties[i].id : s->lowest];
        kl += c->kl_mean;
        cost += probe_windows_cost(probe, c->assignment);
    }
    return kl > 0 && cost > 0 ? kl / cost : 1;
}

/* All of the ties' differences from the lowest; measured ones have one share in the means. */
static bool pool_ties(struct select *s, struct probe_windows *probe, struct err *e)
{
    double scale = scale_of(s, probe), measured = 0, predicted = 0;
    const struct candidate *list = s->rows.list;
    for (size_t i = 0; i < s->n_ties; i++) {
        struct pooled *p = &s->ties[i].difference;
        if (!probe_windows_difference(probe, list[s->ties[i].id].assignment, list[s->lowest].assignment, scale,
                                      &p->predicted, e))
            return false;
        measured += p->measured.error * p->measured.error;
        predicted += p->predicted.error * p->predicted.error;
    }
    s->share = pooled_share(measured, predicted);
    for (size_t i = 0; i < s->n_ties; i++)
        pooled_combine(&s->ties[i].difference, s->share);
    return true;
}

/* Of the lowest KL and what ties with it the best by all that is known; of equal ones the first. */
static bool break_ties(struct select *s, uint64_t most, struct err *e)
{
    const struct input *in = node_input(s->n, "probe", 0);
    struct probe_windows probe;
    if (!probe_windows_read(&probe, &s->menu, in->object, in->node, e))
        return false;
    bool ok = find_ties(s, most, e) && pool_ties(s, &probe, e);
    double least = 0;
    for (size_t i = 0; ok && i < s->n_ties; i++)
        if (s->ties[i].difference.mean < least) {
            least = s->ties[i].difference.mean;
            s->chosen = s->ties[i].id;
        }
    probe_windows_fini(&probe);
    return ok;
}

/* The knee; or, with a ceiling on the size, the frontier's lowest KL within it, or what ties with that; with one on KL,
 * its fewest bytes. */
static bool choose(struct select *s, struct err *e)
{
    const struct curve *c = &s->curve;
    struct wanted wanted = read_wanted(s);
    s->chosen = knee_id(c, s->scale);
    s->chosen_by = wanted.by ? wanted.by : "knee";
    if (!wanted.by)
        return true;
    bool is_found = false;
    for (size_t i = 0; i < c->n; i++) { /* bytes ascend, KL falls */
        const struct candidate *x = &s->rows.list[c->points[i]];
        if (x->bytes > wanted.most || x->kl_mean > wanted.kl || (is_found && isfinite(wanted.kl)))
            continue;
        s->lowest = s->chosen = x->id;
        is_found = true;
    }
    if (!is_found)
        return cannot_meet(s, &wanted, e);
    if (isfinite(wanted.kl) || node_inputs(s->n, "probe") == 0 || s->n_documents < 2)
        return true;
    return break_ties(s, wanted.most, e);
}

/* ---------------------------------------------------------------------------------------------------------- results */

static bool write_knees(const struct select *s, struct writer *w, struct err *e)
{
    bool ok = true;
    for (int k = -1; ok && k < N_SCALES; k++) { /* -1: the one that counts, without a name of its own */
        int scale = k < 0 ? s->scale : k;
        uint32_t knee = knee_id(&s->curve, scale);
        uint8_t found = s->curve.knee[scale].is_found;
        char group[32], name[48];
        snprintf(group, sizeof group, k < 0 ? "knee" : "knee/%s", k < 0 ? "" : scale_names[k]);
        snprintf(name, sizeof name, "%s/id", group);
        ok = column_write(w, name, DTYPE_U32, &knee, 1, "1", "value", "id of the knee", e);
        snprintf(name, sizeof name, "%s/mass", group);
        ok = ok && column_write(w, name, DTYPE_F64, &s->mass[scale], 1, "1", "value", "share of resamples of documents "
                                "with the same knee; NaN: not drawn, or one document", e);
        snprintf(name, sizeof name, "%s/found", group);
        ok = ok && column_write(w, name, DTYPE_U8, &found, 1, "1", "value", "1: it passes Kneedle's test; 0: the point "
                                "farthest from the line between the ends", e);
    }
    return ok;
}

/* <group>/kl, <group>/low and <group>/high. */
static bool write_differences(struct writer *w, const char *group, const struct stats_difference *d, size_t n,
                              const char *axes, const char *description, struct err *e)
{
    static const char *const names[] = {"kl", "low", "high"};
    double *x;
    bool ok = mem_new(&x, n, e);
    for (int k = 0; ok && k < 3; k++) {
        char name[48];
        snprintf(name, sizeof name, "%s/%s", group, names[k]);
        for (size_t i = 0; i < n; i++)
            x[i] = k == 0 ? d[i].mean : k == 1 ? d[i].low : d[i].high;
        ok = column_write(w, name, DTYPE_F64, x, n, "nat", axes, k == 0 ? description : k == 1 ?
                          "lower end of its paired 95 % interval over documents" : "upper end; a tie where 0 is within",
                          e);
    }
    mem_free(x);
    return ok;
}

static bool write_dominance(const struct select *s, struct writer *w, struct err *e)
{
    size_t n = s->rows.n;
    uint64_t *more;
    if (!mem_new(&more, n, e))
        return false;
    for (size_t i = 0; i < n; i++)
        if (s->curve.dominated[i] >= 0)
            more[i] = s->rows.list[i].bytes - s->rows.list[s->curve.dominated[i]].bytes;
    bool ok = column_write(w, "dominated_by", DTYPE_I32, s->curve.dominated, n, "1", "candidate",
                           "id of the frontier's candidate of lowest KL that beats it; -1: on the frontier, or "
                           "incomplete", e) &&
              column_write(w, "dominance/bytes", DTYPE_U64, more, n, "byte", "candidate",
                           "its bytes minus those of the one that beats it; 0 also where none does", e) &&
              write_differences(w, "dominance", s->beaten, n, "candidate",
                                "its KL minus that of the one that beats it; NaN where none does", e);
    mem_free(more);
    return ok;
}

/* A column of /ties: the field at `offset` of each. */
static bool write_tie_column(const struct select *s, const char *name, size_t offset, const char *description,
                             struct err *e)
{
    double *x;
    if (!mem_new(&x, s->n_ties, e))
        return false;
    for (size_t i = 0; i < s->n_ties; i++)
        memcpy(&x[i], (const char *)&s->ties[i].difference + offset, sizeof *x);
    bool ok = column_write(node_output(s->n), name, DTYPE_F64, x, s->n_ties, "nat", "tie", description, e);
    mem_free(x);
    return ok;
}

static bool write_ties(const struct select *s, struct err *e)
{
    uint32_t *ids;
    if (!s->ties)
        return true;
    if (!mem_new(&ids, s->n_ties, e))
        return false;
    for (size_t i = 0; i < s->n_ties; i++)
        ids[i] = s->ties[i].id;
    bool ok = column_write(node_output(s->n), "ties/id", DTYPE_U32, ids, s->n_ties, "1", "tie",
                           "ids of the candidates that tie with the lowest KL within the budget", e);
    mem_free(ids);
    return ok &&
           write_tie_column(s, "ties/measured", offsetof(struct pooled, measured.mean), "its KL minus the lowest", e) &&
           write_tie_column(s, "ties/measured_error", offsetof(struct pooled, measured.error),
                            "standard error over the documents", e) &&
           write_tie_column(s, "ties/predicted", offsetof(struct pooled, predicted.mean),
                            "the same difference as the probes predict it from their documents", e) &&
           write_tie_column(s, "ties/predicted_error", offsetof(struct pooled, predicted.error),
                            "standard error over those, and of what pairs of units may add", e) &&
           write_tie_column(s, "ties/pooled", offsetof(struct pooled, mean),
                            "mean of both; attribute `measured_share`: the weight of the measured ones", e) &&
           write_tie_column(s, "ties/pooled_error", offsetof(struct pooled, error), "its standard error", e) &&
           column_write(node_output(s->n), "lowest", DTYPE_U32, &s->lowest, 1, "1", "value",
                        "id of the lowest KL within the budget", e) &&
           writer_double(node_output(s->n), "measured_share", s->share, e);
}

static bool write_result(const struct select *s, struct err *e)
{
    struct writer *w = node_output(s->n);
    return candidates_write(&s->rows, &s->menu, w, e) &&
           column_write(w, "frontier", DTYPE_U32, s->curve.points, s->curve.n, "1", "point",
                        "ids of the candidates that no other one beats in both bpp and KL, bytes ascending", e) &&
           write_differences(w, "step", s->step, s->curve.n, "point",
                             "KL of the frontier's point minus that of the point before; NaN at the first", e) &&
           write_dominance(s, w, e) && write_knees(s, w, e) && write_ties(s, e) &&
           column_write(w, "leave_one_out/dropped", DTYPE_U32, s->dropped, s->n_dropped, "1", "drop",
                        "id of the frontier's candidate that is left out", e) &&
           column_write(w, "leave_one_out/knee", DTYPE_U32, s->dropped_knee, s->n_dropped, "1", "drop",
                        "id of the knee without it", e) &&
           column_write(w, "interval/low", DTYPE_F64, s->low, s->rows.n, "nat", "candidate",
                        "lower end of the 95 % interval of kl_mean over documents; NaN: one document, or incomplete",
                        e) &&
           column_write(w, "interval/high", DTYPE_F64, s->high, s->rows.n, "nat", "candidate", "upper end", e) &&
           column_write(w, "chosen", DTYPE_U32, &s->chosen, 1, "1", "value", "id of the candidate that is chosen", e) &&
           writer_text(w, "chosen_by", s->chosen_by, e) && writer_text(w, "scale", scale_names[s->scale], e);
}

static void tell_row(const struct select *s, uint32_t id, const char *notes)
{
    const struct candidate *c = &s->rows.list[id];
    char size[16], interval[STATS_TEXT];
    node_log(s->n, "%5u  %-8s %9s %8.4f  %9.6f (%-22s)  %6.4f%s%s%s", id, c->origin, str_size(c->bytes, size), c->bpp,
             c->kl_mean, stats_interval_text(s->low[id], s->high[id], 4, interval), c->top1,
             id == knee_id(&s->curve, s->scale) ? "  knee" : "", id == s->chosen ? "  chosen" : "", notes);
}

static void tell_frontier(const struct select *s)
{
    const struct candidates *rows = &s->rows;
    size_t incomplete = 0, beaten = 0, ties = 0;
    for (size_t i = 0; i < rows->n; i++) {
        incomplete += isnan(s->curve.y[i]);
        beaten += s->curve.dominated[i] >= 0;
        ties += stats_is_tie(&s->beaten[i]);
    }
    node_log(s->n, "%zu candidates, %zu on the frontier; KL in nats on %u windows of %u documents [%s]", rows->n,
             s->curve.n, rows->n_windows, s->n_documents, rows->numeric);
    node_log(s->n, "   id  origin      bytes      bpp     KL (95 %% interval)               top-1");
    for (size_t i = 0; i < s->curve.n; i++)
        tell_row(s, s->curve.points[i], stats_is_tie(&s->step[i]) ? "  ties with the one above" : "");
    if (s->curve.dominated[s->chosen] >= 0)
        tell_row(s, s->chosen, "  not on the frontier");
    if (s->n_documents < 2)
        node_log(s->n, "%zu candidates are beaten in size and KL, as far as one document can tell", beaten);
    else
        node_log(s->n, "%zu candidates are beaten in size and KL; %zu of them tie with the one that beats them: the "
                 "paired 95 %% interval of the difference includes 0", beaten, ties);
    if (incomplete > 0)
        node_log(s->n, "%zu candidates were not measured on all windows and take no part", incomplete);
}

static void tell_knees(const struct select *s)
{
    uint32_t knee = knee_id(&s->curve, s->scale);
    int other = !s->scale;
    double mass = s->mass[s->scale];
    size_t moved = 0;
    for (size_t i = 0; i < s->n_dropped; i++)
        moved += s->dropped[i] != knee && s->dropped_knee[i] != knee;
    if (isnan(mass))
        node_log(s->n, "the knee is candidate %u; how sure that is cannot be told: %s", knee,
                 s->n_documents < 2 ? "the windows are of one document" : "bootstrap is 0");
    else
        node_log(s->n, "the knee is candidate %u in %.1f %% of the resamples%s", knee, 100 * mass,
                 mass < SURE ? ": it is unsure; a `budget`, `bpp` or `kl` can choose instead" : "");
    if (!s->curve.knee[s->scale].is_found)
        node_log(s->n, "no point passes Kneedle's test at sensitivity %g: taken is the one farthest from the line "
                 "between the ends", s->sensitivity);
    if (knee_id(&s->curve, other) != knee) {
        char share[32] = "";
        if (!isnan(s->mass[other]))
            snprintf(share, sizeof share, " (%.1f %% of the resamples)", 100 * s->mass[other]);
        node_log(s->n, "on the %s scale the knee would be candidate %u at %.4f bpp%s", scale_names[other],
                 knee_id(&s->curve, other), s->rows.list[knee_id(&s->curve, other)].bpp, share);
    }
    node_log(s->n, "leaving out another point of the frontier moves the knee in %zu of %zu cases", moved,
             s->n_dropped > 0 ? s->n_dropped - 1 : 0);
    if (!isnan(mass))
        node_stat(s->n, "knee_mass", mass, "1");
    node_stat(s->n, "frontier_points", (double)s->curve.n, "point");
}

static void tell_ties(const struct select *s)
{
    const struct pooled *p = NULL;
    for (size_t i = 0; i < s->n_ties; i++)
        p = s->ties[i].id == s->chosen ? &s->ties[i].difference : p;
    node_log(s->n, "candidate %u has the lowest KL within `%s`, and %zu others tie with it", s->lowest, s->chosen_by,
             s->n_ties);
    if (p)
        node_log(s->n, "of these, candidate %u is the best by measured and predicted differences together: KL higher "
                 "by %.3g +- %.3g as measured, by %.3g +- %.3g as predicted from the probes' documents, by %.3g +- "
                 "%.3g in a mean with weights %.2f and %.2f", s->chosen, p->measured.mean, p->measured.error,
                 p->predicted.mean, p->predicted.error, p->mean, p->error, s->share, 1 - s->share);
}

static void tell(const struct select *s)
{
    double kl = node_float(s->n, "kl");
    tell_frontier(s);
    tell_knees(s);
    if (s->ties)
        tell_ties(s);
    if (strcmp(s->chosen_by, "knee") != 0)
        node_log(s->n, "candidate %u is chosen by `%s`", s->chosen, s->chosen_by);
    if (kl > 0 && s->high[s->chosen] > kl)
        node_log(s->n, "its mean KL on these windows is within `kl` %g, the upper end of its interval is not: %g", kl,
                 s->high[s->chosen]);
}

/* --------------------------------------------------------------------------------------------------------- the node */

static bool read_rows(struct select *s, struct err *e)
{
    if (!candidates_read_rows(&s->rows, &s->menu, s->n, "rows", e))
        return false;
    size_t n = s->rows.n, complete = 0;
    if (!mem_new(&s->x, n, e) || !mem_new(&s->low, n, e) || !mem_new(&s->high, n, e) || !new_curve(&s->curve, n, e) ||
        !new_curve(&s->spare, n, e) || !mem_new(&s->document, s->rows.n_windows, e) ||
        !stats_documents(s->rows.window_document, s->rows.n_windows, s->document, &s->n_documents, e))
        return false;
    for (size_t i = 0; i < n; i++) {
        const struct candidate *c = &s->rows.list[i];
        bool is_complete = candidate_is_complete(&s->rows, c);
        s->x[i] = c->bpp;
        s->curve.y[i] = is_complete ? c->kl_mean : NAN;
        complete += is_complete;
    }
    if (complete == 0)
        return err_set(e, ERR_INPUT, "none of the %zu candidates was measured on all windows, so there is nothing to "
                       "choose from: give the nodes before it candidates to measure", n);
    return true;
}

static bool select_candidate(struct select *s, struct err *e)
{
    s->sensitivity = node_float(s->n, "sensitivity");
    s->scale = strcmp(node_string(s->n, "scale"), scale_names[LOG]) == 0 ? LOG : LINEAR;
    if (!menu_read(&s->menu, node_input(s->n, "renderings", 0)->object, e) || !read_rows(s, e) ||
        !trace_curve(s, &s->curve, e) || !find_intervals(s, e) || !find_differences(s, e) || !choose(s, e) ||
        !bootstrap(s, e) || !leave_one_out(s, e) || !write_result(s, e))
        return false;
    tell(s);
    return true;
}

static bool run(struct node *n, struct err *e)
{
    struct select s = {.n = n};
    bool ok = select_candidate(&s, e);
    mem_free(s.ties);
    mem_free(s.step);
    mem_free(s.beaten);
    mem_free(s.dropped);
    mem_free(s.dropped_knee);
    mem_free(s.document);
    free_curve(&s.spare);
    free_curve(&s.curve);
    mem_free(s.low);
    mem_free(s.high);
    mem_free(s.x);
    candidates_fini(&s.rows);
    menu_fini(&s.menu);
    return ok;
}

/* Rows are few; what a probe said is much, with many units. */
static bool needs(struct node *n, struct needs *out, struct err *e)
{
    (void)e;
    *out = (struct needs){.cores = 1, .memory = 64u << 20};
    if (node_inputs(n, "probe") > 0)
        out->memory += probe_windows_memory(node_input(n, "probe", 0)->object);
    return true;
}

const struct node_class node_select = {
    .name = "select",
    .summary = "the measured frontier, its knee and how sure that is, and the candidate that is chosen",
    .version = 9,
    .ports = (const struct port[]){
        {"rows", (const char *const[]){"measure", "polish", "evolve", NULL}, true, false, "measured candidates"},
        {"renderings", (const char *const[]){"quantize", NULL}, false, false, "formats and bytes of every unit"},
        {"probe", (const char *const[]){"probe", NULL}, false, true, "has a say in ties within a budget"},
        {0}},
    .params = (const struct param[]){
        KNEE_PARAMS,
        {.name = "bootstrap", .type = PARAM_INT, .fallback = "1000", .least = 0, .most = 1000000,
         .help = "resamples of the documents, to tell how sure the knee is; 0: none"},
        {.name = "seed", .type = PARAM_INT, .fallback = "1", .least = 0, .most = 9007199254740991.0,
         .help = "of the resamples"},
        {.name = "budget", .type = PARAM_SIZE, .fallback = "0", .one_of = ONE_OF, .unit = "byte",
         .help = "choose the lowest KL of at most so many bytes of units instead of the knee, or what ties with it "
                 "(port `probe`); 0: none. One at most of `budget`, `bpp` and `kl`"},
        {.name = "bpp", .type = PARAM_FLOAT, .fallback = "0", .one_of = ONE_OF, .least = 0, .most = 64, .unit = "bit",
         .help = "the same in bits per parameter; 0: none"},
        {.name = "kl", .type = PARAM_FLOAT, .fallback = "0", .one_of = ONE_OF, .least = 0, .most = 1000, .unit = "nat",
         .help = "choose the fewest bytes of at most this KL (the mean on the selection set); 0: none"},
        {0}},
    .needs = needs,
    .run = run,
};
