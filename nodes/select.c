/* Node type `select`: the measured frontier, its knee and how sure that is, and the candidate that is chosen. Only
 * complete rows take part: candidates that were measured on every window.
 *
 * How sure: the documents are drawn again with replacement, all candidates on the same draw; the mass of the knee is
 * the share of draws in which the same candidate is the knee. And each point of the frontier is left out in turn. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/str.h"
#include "nodes/nodes.h"
#include "nodes/search/candidates.h"
#include "nodes/search/column.h"
#include "nodes/search/knee.h"
#include "nodes/search/pareto.h"
#include "nodes/search/stats.h"

#define SURE 0.5 /* least mass of a knee that is not said to be unsure */

/* The frontier and knee of the candidates for one vector of KLs, with room for all of them. */
struct curve {
    double *y;               /* [candidate]: NaN takes no part */
    int32_t *dominated;      /* [candidate] */
    uint32_t *points;        /* [n]: ids, bytes ascending */
    size_t n;
    double *point_x, *point_y; /* [n] */
    struct knee knee;        /* .at is an index of points */
};

struct select {
    struct node *n;
    struct menu menu;
    struct candidates rows;
    double *x;               /* [candidate]: bpp */
    double *low, *high;      /* [candidate]: interval of the mean KL over documents; NaN where there is none */
    struct knee_options options;
    struct curve curve;      /* of what was measured */
    struct curve spare;      /* of a resample, or without a point */
    uint32_t *document;      /* [window], from 0 */
    uint32_t n_documents;
    double mass;
    uint32_t *dropped, *dropped_knee;
    size_t n_dropped;
    uint32_t chosen;
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

/* Fill the rest of the curve from c->y. With no point at all, n is 0 and there is no knee. */
static bool trace_curve(const struct select *s, struct curve *c, struct err *e)
{
    if (!pareto_filter(s->x, c->y, s->rows.n, c->dominated, c->points, &c->n, e))
        return false;
    for (size_t i = 0; i < c->n; i++) {
        c->point_x[i] = s->x[c->points[i]];
        c->point_y[i] = c->y[c->points[i]];
    }
    return c->n == 0 || knee_find(c->point_x, c->point_y, c->n, &s->options, &c->knee, e);
}

static uint32_t knee_id(const struct curve *c) { return c->points[c->knee.at]; }

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
    int64_t draws = node_int(s->n, "bootstrap"), same = 0;
    uint64_t state = (uint64_t)node_int(s->n, "seed");
    double *sums = NULL, *positions = NULL;
    uint32_t *counts = NULL;
    s->mass = NAN;
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
        same += ok && knee_id(&s->spare) == knee_id(&s->curve);
        if (ok && i % 100 == 0 && node_stopping(s->n))
            ok = node_stopped(e);
    }
    if (ok)
        s->mass = (double)same / (double)draws;
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
        s->dropped_knee[s->n_dropped++] = knee_id(&s->spare);
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

/* --------------------------------------------------------------------------------------------------------- choosing */

/* The most bytes that `budget` and `bpp` allow; UINT64_MAX without either. */
static uint64_t most_bytes(const struct select *s)
{
    uint64_t budget = node_size(s->n, "budget"), most = budget ? budget : UINT64_MAX;
    double bpp = node_float(s->n, "bpp");
    if (bpp > 0) {
        double bytes = floor(bpp * (double)s->menu.total_parameters / 8);
        if (bytes < (double)most)
            most = (uint64_t)bytes;
    }
    return most;
}

/* The knee; or, with a ceiling on the size, the frontier's lowest KL within it; with one on KL, its fewest bytes. */
static bool choose(struct select *s, struct err *e)
{
    const struct curve *c = &s->curve;
    const struct candidate *list = s->rows.list, *first = &list[c->points[0]], *last = &list[c->points[c->n - 1]];
    double kl = node_float(s->n, "kl");
    uint64_t most = most_bytes(s);
    s->chosen = knee_id(c);
    if (most == UINT64_MAX && !(kl > 0))
        return true;
    bool is_found = false;
    for (size_t i = 0; i < c->n; i++) {
        const struct candidate *x = &list[c->points[i]];
        if (x->bytes > most || (kl > 0 && x->kl_mean > kl) || (kl > 0 && is_found))
            continue;
        s->chosen = x->id;
        is_found = true;
    }
    if (is_found)
        return true;
    char limit[64] = "", ceiling[64] = "";
    if (most < UINT64_MAX)
        snprintf(limit, sizeof limit, " at most %" PRIu64 " bytes (%.4f bpp)", most, menu_bpp(&s->menu, most));
    if (kl > 0)
        snprintf(ceiling, sizeof ceiling, "%s KL at most %.6g", *limit ? " and" : "", kl);
    return err_set(e, ERR_INPUT, "no measured candidate has%s%s: the frontier goes from %" PRIu64 " bytes (%.4f bpp) "
                   "at KL %.6g to %" PRIu64 " bytes (%.4f bpp) at KL %.6g", limit, ceiling, first->bytes, first->bpp,
                   first->kl_mean, last->bytes, last->bpp, last->kl_mean);
}

/* ---------------------------------------------------------------------------------------------------------- results */

static bool write_result(const struct select *s, struct err *e)
{
    struct writer *w = node_output(s->n);
    uint32_t knee = knee_id(&s->curve);
    uint8_t found = s->curve.knee.is_found;
    return candidates_write(&s->rows, &s->menu, w, e) &&
           column_write(w, "frontier", DTYPE_U32, s->curve.points, s->curve.n, "1", "point",
                        "ids of the candidates that no other one beats in both bpp and KL, bytes ascending", e) &&
           column_write(w, "dominated_by", DTYPE_I32, s->curve.dominated, s->rows.n, "1", "candidate",
                        "id of the frontier's candidate of lowest KL that beats it; -1: on the frontier, or incomplete",
                        e) &&
           column_write(w, "knee/id", DTYPE_U32, &knee, 1, "1", "value", "id of the knee", e) &&
           column_write(w, "knee/mass", DTYPE_F64, &s->mass, 1, "1", "value",
                        "share of resamples of documents with the same knee; NaN: not drawn, or one document", e) &&
           column_write(w, "knee/found", DTYPE_U8, &found, 1, "1", "value",
                        "1: it passes Kneedle's test; 0: the point farthest from the line between the ends", e) &&
           column_write(w, "leave_one_out/dropped", DTYPE_U32, s->dropped, s->n_dropped, "1", "drop",
                        "id of the frontier's candidate that is left out", e) &&
           column_write(w, "leave_one_out/knee", DTYPE_U32, s->dropped_knee, s->n_dropped, "1", "drop",
                        "id of the knee without it", e) &&
           column_write(w, "interval/low", DTYPE_F64, s->low, s->rows.n, "nat", "candidate",
                        "lower end of the 95 % interval of kl_mean over documents; NaN: one document, or incomplete",
                        e) &&
           column_write(w, "interval/high", DTYPE_F64, s->high, s->rows.n, "nat", "candidate", "upper end", e) &&
           column_write(w, "chosen", DTYPE_U32, &s->chosen, 1, "1", "value", "id of the candidate that is chosen", e);
}

static void tell(const struct select *s)
{
    const struct candidates *rows = &s->rows;
    uint32_t knee = knee_id(&s->curve);
    node_log(s->n, "%zu candidates, %zu on the frontier; KL in nats on %u windows of %u documents [%s]", rows->n,
             s->curve.n, rows->n_windows, s->n_documents, rows->numeric);
    node_log(s->n, "   id  origin      bytes      bpp     KL (95 %% interval)               top-1");
    for (size_t i = 0; i < s->curve.n; i++) {
        const struct candidate *c = &rows->list[s->curve.points[i]];
        char size[16];
        node_log(s->n, "%5u  %-8s %9s %8.4f  %9.6f (%9.6f to %9.6f)  %6.4f%s%s", c->id, c->origin,
                 str_size(c->bytes, size), c->bpp, c->kl_mean, s->low[c->id], s->high[c->id], c->top1,
                 c->id == knee ? "  knee" : "", c->id == s->chosen ? "  chosen" : "");
    }
    size_t moved = 0;
    for (size_t i = 0; i < s->n_dropped; i++)
        moved += s->dropped[i] != knee && s->dropped_knee[i] != knee;
    if (isnan(s->mass))
        node_log(s->n, "the knee is candidate %u; how sure that is cannot be told: %s", knee,
                 s->n_documents < 2 ? "the windows are of one document" : "bootstrap is 0");
    else
        node_log(s->n, "the knee is candidate %u in %.1f %% of the resamples%s", knee, 100 * s->mass,
                 s->mass < SURE ? ": it is unsure; a `budget`, `bpp` or `kl` can choose instead" : "");
    if (!s->curve.knee.is_found)
        node_log(s->n, "no point passes Kneedle's test at sensitivity %g: taken is the one farthest from the line "
                 "between the ends", s->options.sensitivity);
    node_log(s->n, "leaving out another point of the frontier moves the knee in %zu of %zu cases", moved,
             s->n_dropped > 0 ? s->n_dropped - 1 : 0);
    if (!isnan(s->mass))
        node_stat(s->n, "knee_mass", s->mass, "1");
    node_stat(s->n, "frontier_points", (double)s->curve.n, "point");
}

/* --------------------------------------------------------------------------------------------------------- the node */

static bool read_rows(struct select *s, struct err *e)
{
    if (!candidates_read_inputs(&s->rows, &s->menu, s->n, "rows", e))
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
    s->options = (struct knee_options){.sensitivity = node_float(s->n, "sensitivity"),
                                       .is_log = strcmp(node_string(s->n, "scale"), "log") == 0};
    if (!menu_read(&s->menu, node_input(s->n, "renderings", 0)->object, e) || !read_rows(s, e) ||
        !trace_curve(s, &s->curve, e) || !find_intervals(s, e) || !bootstrap(s, e) || !leave_one_out(s, e) ||
        !choose(s, e) || !write_result(s, e))
        return false;
    tell(s);
    return true;
}

static bool run(struct node *n, struct err *e)
{
    struct select s = {.n = n};
    bool ok = select_candidate(&s, e);
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

const struct node_class node_select = {
    .name = "select",
    .summary = "the measured frontier, its knee and how sure that is, and the candidate that is chosen",
    .version = 3,
    .ports = (const struct port[]){
        {"rows", (const char *const[]){"measure", "polish", NULL}, true, false, "measured candidates"},
        {"renderings", (const char *const[]){"quantize", NULL}, false, false, "formats and bytes of every unit"},
        {0}},
    .params = (const struct param[]){
        KNEE_PARAMS,
        {.name = "bootstrap", .type = PARAM_INT, .fallback = "1000", .least = 0, .most = 1000000,
         .help = "resamples of the documents, to tell how sure the knee is; 0: none"},
        {.name = "seed", .type = PARAM_INT, .fallback = "1", .least = 0, .most = 9007199254740991.0,
         .help = "of the resamples"},
        {.name = "budget", .type = PARAM_SIZE, .fallback = "0", .unit = "byte",
         .help = "choose the lowest KL of at most so many bytes of units instead of the knee; 0: none"},
        {.name = "bpp", .type = PARAM_FLOAT, .fallback = "0", .least = 0, .most = 64, .unit = "bit",
         .help = "the same in bits per parameter; 0: none"},
        {.name = "kl", .type = PARAM_FLOAT, .fallback = "0", .least = 0, .most = 1000, .unit = "nat",
         .help = "choose the fewest bytes of at most this mean KL; 0: none"},
        {0}},
    .run = run,
};
