/* The Pareto archive DP.
 *
 * A[0] = {(0, 0)}; A[i + 1] = the nondominated points of {a + o : a in A[i], o an option of unit i}. Both bytes and
 * cost add up, so a point that is dominated as a prefix stays dominated whatever follows, and A[n] is the exact
 * frontier; in floating point too, since rounding is monotone and every sum runs in the order of the units. A[i] is
 * sorted, so A[i] + o is sorted for each option o: the merge is one sweep over as many sorted lists as the unit has
 * options.
 *
 * epsilon. The sweep leaves out a point when the one kept before it (which has no more bytes) costs at most (1 + d)
 * times as much, with (1 + d)^n = 1 + epsilon. Claim: for every choice of options for the first i units, with sum (b,
 * c), A[i] has a point of at most b bytes and at most (1 + d)^i * c. For i = 0 it is plain. For i + 1: by the claim
 * A[i] has a point (b', c') for the prefix; with the option o it becomes (b' + o.b, c' + o.c), and since d >= 0 and
 * costs are not negative, c' + o.c <= (1 + d)^i * (c + o.c). Either that point is kept, or a kept one has no more bytes
 * and costs at most (1 + d) times as much. So A[n] is within (1 + d)^n = 1 + epsilon.
 *
 * The limit. When an archive outgrows it, this and all later archives are thinned to at most `kept` points (thin
 * below), and no factor is promised in advance. Instead the vertices of the convex hull of all sums, which the linear
 * relaxation gives exactly (sort the steps of all units' hulls by cost saved per byte; Sinha and Zoltners 1979), are
 * added to the result, and the distance of the result from that lower bound is reported. With many units a step is
 * small, and so is the distance. (With few units it is not, which is why the distance is at most epsilon where that
 * holds.)
 *
 * Memory. Who a point came from is not kept for all units: the archives before every s-th unit are, s = sqrt(n), and
 * archive_assignments computes the merges between two of them again, which gives the same points, being
 * deterministic. */
#include "nodes/search/archive.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/mem.h"

#define DEFAULT_LIMIT 200000
#define MOST_LIMIT 100000000
/* Thinned archives: points considered over all units (some seconds of work), and the least that is kept of one. */
#define THIN_WORK 300000000.0
#define THIN_LEAST 1024
#define MOST_FORMATS 255

struct option {
    uint64_t bytes;
    double cost;
    uint8_t format;
};

/* Units' hulls, step by step: what an assignment that starts with each unit's fewest bytes does next. */
struct step {
    double slope; /* cost saved per byte, falling along the hull of a unit */
    uint64_t bytes;
    double saved;
    int unit;
    uint8_t format;
};

/* A[i], and when `parent` is not NULL where each point came from. */
struct layer {
    struct archive_point *points;
    uint32_t *parent; /* index in A[i - 1] */
    uint8_t *option;  /* of unit i - 1 */
    size_t n;
};

struct archive {
    struct archive_problem problem;
    struct option *options;  /* nondominated, bytes ascending */
    size_t *first;           /* [unit + 1]: options of unit u are first[u] .. first[u + 1] */
    double factor;           /* 1 + d */
    size_t limit;
    int capped_from;         /* the unit whose merge met the limit; n_units: none */
    int stride, n_saved;
    struct layer *saved;     /* A[0], A[stride], A[2 stride], ... */
    size_t n_last;           /* points of A[n] */
    struct step *steps;      /* NULL when exact */
    size_t n_steps;
    struct archive_point *points;
    int64_t *source;         /* [point]: >= 0: index in A[n]; -1 - v: vertex v of the hull. NULL: the points are A[n] */
    size_t n_points;
    struct archive_quality quality;
};

/* ---------------------------------------------------------------------------------------------------------- options */

static int by_bytes(const void *a, const void *b)
{
    const struct option *x = a, *y = b;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    if (x->cost != y->cost)
        return x->cost < y->cost ? -1 : 1;
    return x->format - y->format;
}

/* The options of unit u that no other one beats, into out; returns their number. */
static size_t unit_options(const struct archive_problem *p, int u, struct option *out)
{
    size_t n = 0, kept = 0;
    for (int f = 0; f < p->n_formats; f++) {
        size_t at = (size_t)u * (size_t)p->n_formats + (size_t)f;
        if (!isnan(p->cost[at]))
            out[n++] = (struct option){p->bytes[at], p->cost[at], (uint8_t)f};
    }
    qsort(out, n, sizeof *out, by_bytes);
    for (size_t i = 0; i < n; i++)
        if (kept == 0 || out[i].cost < out[kept - 1].cost)
            out[kept++] = out[i];
    return kept;
}

static bool check_problem(const struct archive_problem *p, const struct archive_options *o, struct err *e)
{
    if (p->n_units < 1 || p->n_formats < 1 || p->n_formats > MOST_FORMATS)
        return err_set(e, ERR_INPUT, "%d units in %d formats; there must be a unit, and 1 to %d formats", p->n_units,
                       p->n_formats, MOST_FORMATS);
    if (!(o->epsilon >= 0 && o->epsilon < INFINITY) || o->limit > MOST_LIMIT)
        return err_set(e, ERR_INPUT, "epsilon %g, limit %zu; epsilon is at least 0, the limit at most %d points",
                       o->epsilon, o->limit, MOST_LIMIT);
    for (int u = 0; u < p->n_units; u++) {
        int choices = 0;
        for (int f = 0; f < p->n_formats; f++) {
            double cost = p->cost[(size_t)u * (size_t)p->n_formats + (size_t)f];
            if (cost < 0 || isinf(cost))
                return err_set(e, ERR_NUMERIC, "unit %d costs %g in format %d; costs must be finite and at least 0", u,
                               cost, f);
            choices += !isnan(cost);
        }
        if (choices == 0)
            return err_set(e, ERR_INPUT, "unit %d has no format", u);
    }
    return true;
}

static bool prepare(struct archive *a, struct err *e)
{
    const struct archive_problem *p = &a->problem;
    size_t cells = (size_t)p->n_units * (size_t)p->n_formats, n = 0;
    if (!mem_new(&a->options, cells, e) || !mem_new(&a->first, (size_t)p->n_units + 1, e))
        return false;
    for (int u = 0; u < p->n_units; u++) {
        n += unit_options(p, u, a->options + n);
        a->first[u + 1] = n;
    }
    return true;
}

/* ---------------------------------------------------------------------------------------------------------- merging */

static void free_layer(struct layer *l)
{
    mem_free(l->points);
    mem_free(l->parent);
    mem_free(l->option);
    *l = (struct layer){0};
}

static bool new_layer(struct layer *l, size_t n, bool with_parents, struct err *e)
{
    struct layer made = {0};
    if (!mem_raw(&made.points, n, e) ||
        (with_parents && (!mem_raw(&made.parent, n, e) || !mem_raw(&made.option, n, e)))) {
        free_layer(&made);
        return false;
    }
    *l = made;
    return true;
}

/* One list of the merge: A[i] + one option, from `at` on. */
struct head {
    uint64_t bytes;
    double cost;
    size_t at;
    bool is_done;
};

/* Move to the first point that costs less than `below`; the others can no longer be kept. */
static inline void advance(struct head *h, const struct layer *from, const struct option *o, double below)
{
    while (h->at < from->n) {
        h->cost = from->points[h->at].cost + o->cost;
        if (h->cost < below) {
            h->bytes = from->points[h->at].bytes + o->bytes;
            return;
        }
        h->at++;
    }
    h->is_done = true;
}

/* A[i] and the options of unit i to A[i + 1], in one sweep; `to` has room for all sums. */
static void merge(const struct layer *from, const struct option *options, size_t n_options, double factor,
                  struct layer *to)
{
    struct head heads[MOST_FORMATS];
    double below = INFINITY; /* a point is kept when factor * its cost is below that of the last one kept */
    size_t n = 0;
    for (size_t o = 0; o < n_options; o++) {
        heads[o] = (struct head){0};
        advance(&heads[o], from, &options[o], below);
    }
    for (;;) {
        struct head *least = NULL;
        for (size_t o = 0; o < n_options; o++) {
            struct head *h = &heads[o];
            if (h->is_done)
                continue;
            if (!least || h->bytes < least->bytes || (h->bytes == least->bytes && h->cost < least->cost))
                least = h;
        }
        if (!least)
            break;
        size_t option = (size_t)(least - heads);
        if (factor * least->cost < below) {
            below = least->cost;
            to->points[n] = (struct archive_point){least->bytes, least->cost};
            if (to->parent) {
                to->parent[n] = (uint32_t)least->at;
                to->option[n] = (uint8_t)option;
            }
            n++;
        }
        least->at++;
        advance(least, from, &options[option], below);
    }
    to->n = n;
}

/* Keep at most `kept` + 2 points: the first and the last, and one of each of `kept` cells of equal width in bytes: the
 * lowest one as seen along the line between the cell's ends, so that vertices of the lower hull survive. */
static void thin(struct layer *l, size_t kept)
{
    struct archive_point *p = l->points;
    uint64_t start = p[0].bytes, width = (p[l->n - 1].bytes - start) / kept + 1;
    size_t n = 0;
    for (size_t i = 0, end; i < l->n; i = end) {
        uint64_t cell = (p[i].bytes - start) / width;
        for (end = i + 1; end < l->n && (p[end].bytes - start) / width == cell; end++)
            ;
        if (i == 0) /* the first and the last stay by themselves */
            end = 1;
        else if (end == l->n && end - i > 1)
            end--;
        double slope = end - i > 1 ? (p[i].cost - p[end - 1].cost) / (double)(p[end - 1].bytes - p[i].bytes) : 0;
        size_t best = i;
        double lowest = p[i].cost;
        for (size_t j = i + 1; j < end; j++) {
            double height = p[j].cost + slope * (double)(p[j].bytes - p[i].bytes);
            if (height < lowest) {
                lowest = height;
                best = j;
            }
        }
        p[n] = p[best];
        if (l->parent) {
            l->parent[n] = l->parent[best];
            l->option[n] = l->option[best];
        }
        n++;
    }
    l->n = n;
}

/* A[u] to A[u + 1] in fresh memory. `u` decides whether it is thinned: from capped_from on. */
static bool next_layer(const struct archive *a, int u, const struct layer *from, bool with_parents, struct layer *to,
                       struct err *e)
{
    size_t n_options = a->first[u + 1] - a->first[u];
    struct layer made;
    if (from->n > SIZE_MAX / n_options || !new_layer(&made, from->n * n_options, with_parents, e))
        return from->n <= SIZE_MAX / n_options ? false : err_set(e, ERR_RESOURCE, "an archive of %zu points", from->n);
    merge(from, a->options + a->first[u], n_options, a->factor, &made);
    if (u >= a->capped_from && made.n > a->quality.kept)
        thin(&made, a->quality.kept);
    *to = made;
    return true;
}

/* Give back what the merge did not need. */
static bool shrink(struct layer *l, struct err *e)
{
    return mem_grow(&l->points, l->n, l->n, e) && (!l->parent || (mem_grow(&l->parent, l->n, l->n, e) &&
                                                                  mem_grow(&l->option, l->n, l->n, e)));
}

/* All merges; keeps every stride-th archive and the last one's points. */
static bool sweep(struct archive *a, struct layer *last, struct err *e)
{
    int n = a->problem.n_units;
    struct layer now;
    if (!new_layer(&now, 1, false, e))
        return false;
    now.n = 1;
    now.points[0] = (struct archive_point){0};
    for (int u = 0; u < n; u++) {
        struct layer next;
        bool keep = u % a->stride == 0;
        if ((keep && !shrink(&now, e)) || !next_layer(a, u, &now, false, &next, e)) {
            free_layer(&now);
            return false;
        }
        if (a->capped_from == n && next.n > a->limit) {
            a->capped_from = u;
            if (next.n > a->quality.kept)
                thin(&next, a->quality.kept);
        }
        if (keep)
            a->saved[a->n_saved++] = now;
        else
            free_layer(&now);
        now = next;
    }
    *last = now;
    return true;
}

/* --------------------------------------------------------------------------------------------------------- the hull */

static int by_slope(const void *a, const void *b)
{
    const struct step *x = a, *y = b;
    if (x->slope != y->slope)
        return x->slope > y->slope ? -1 : 1;
    if (x->unit != y->unit)
        return x->unit < y->unit ? -1 : 1;
    return x->format - y->format;
}

/* The lower hull of a unit's options as steps with falling slopes; returns their number. hull has room for n
 * indices. */
static size_t unit_steps(const struct option *o, size_t n, int unit, size_t *hull, struct step *out)
{
    size_t h = 0, steps = 0;
    for (size_t i = 0; i < n; i++) {
        while (h >= 2) {
            const struct option *x = &o[hull[h - 2]], *y = &o[hull[h - 1]];
            double before = (x->cost - y->cost) / (double)(y->bytes - x->bytes);
            double after = (y->cost - o[i].cost) / (double)(o[i].bytes - y->bytes);
            if (before > after)
                break;
            h--;
        }
        hull[h++] = i;
    }
    for (size_t i = 1; i < h; i++) {
        const struct option *x = &o[hull[i - 1]], *y = &o[hull[i]];
        out[steps++] = (struct step){.slope = (x->cost - y->cost) / (double)(y->bytes - x->bytes),
                                     .bytes = y->bytes - x->bytes, .saved = x->cost - y->cost, .unit = unit,
                                     .format = y->format};
    }
    return steps;
}

/* The hull's steps in order, and its vertices [n_steps + 1] in fresh memory. Costs are summed from the low end, so that
 * only terms of one sign are added. */
static bool build_hull(struct archive *a, struct archive_point **vertices, struct err *e)
{
    int n_units = a->problem.n_units;
    size_t hull[MOST_FORMATS];
    struct archive_point *v;
    if (!mem_new(&a->steps, a->first[n_units], e) || !mem_new(&v, a->first[n_units] + 1, e))
        return false;
    double cost = 0;
    for (int u = 0; u < n_units; u++) {
        const struct option *o = a->options + a->first[u];
        size_t n = a->first[u + 1] - a->first[u];
        a->n_steps += unit_steps(o, n, u, hull, a->steps + a->n_steps);
        v[0].bytes += o[0].bytes;
        cost += o[n - 1].cost;
    }
    qsort(a->steps, a->n_steps, sizeof *a->steps, by_slope);
    for (size_t i = 0; i < a->n_steps; i++)
        v[i + 1].bytes = v[i].bytes + a->steps[i].bytes;
    v[a->n_steps].cost = cost;
    for (size_t i = a->n_steps; i-- > 0;)
        v[i].cost = v[i + 1].cost + a->steps[i].saved;
    *vertices = v;
    return true;
}

/* The nondominated points of A[n] and the hull's vertices together; A[n]'s point before an equal vertex. */
static bool unite(struct archive *a, const struct layer *last, const struct archive_point *vertices, struct err *e)
{
    size_t i = 0, v = 0, n = 0, n_vertices = a->n_steps + 1;
    if (!mem_new(&a->points, last->n + n_vertices, e) || !mem_new(&a->source, last->n + n_vertices, e))
        return false;
    while (i < last->n || v < n_vertices) {
        bool from_hull = i == last->n;
        if (!from_hull && v < n_vertices)
            from_hull = vertices[v].bytes < last->points[i].bytes ||
                        (vertices[v].bytes == last->points[i].bytes && vertices[v].cost < last->points[i].cost);
        const struct archive_point *p = from_hull ? &vertices[v] : &last->points[i];
        if (n == 0 || p->cost < a->points[n - 1].cost) {
            a->points[n] = *p;
            a->source[n++] = from_hull ? -1 - (int64_t)v : (int64_t)i;
        }
        if (from_hull)
            v++;
        else
            i++;
    }
    a->n_points = n;
    return true;
}

/* The largest distance of the staircase of points from the hull, over all budgets, as a share of the first point's
 * cost. A step of the staircase is farthest from the falling hull just before the next point. */
static double find_gap(const struct archive *a, const struct archive_point *vertices)
{
    double gap = 0;
    size_t v = 0;
    for (size_t i = 0; i < a->n_points; i++) {
        double bound = vertices[a->n_steps].cost;
        if (i + 1 < a->n_points) {
            uint64_t budget = a->points[i + 1].bytes - 1;
            while (v < a->n_steps && vertices[v + 1].bytes <= budget)
                v++;
            if (v < a->n_steps)
                bound = vertices[v].cost - a->steps[v].slope * (double)(budget - vertices[v].bytes);
        }
        double distance = a->points[i].cost - bound;
        gap = distance > gap ? distance : gap;
    }
    return a->points[0].cost > 0 ? gap / a->points[0].cost : 0;
}

/* What the caller sees: A[n] itself when exact, else with the hull. Takes over `last`. */
static bool finish(struct archive *a, struct layer *last, const struct archive_options *o, struct err *e)
{
    struct archive_point *vertices = NULL;
    a->n_last = last->n;
    a->quality.is_capped = a->capped_from < a->problem.n_units;
    a->quality.is_exact = !a->quality.is_capped && !(o->epsilon > 0);
    a->quality.epsilon = a->quality.is_capped ? NAN : o->epsilon;
    if (!a->quality.is_capped)
        a->quality.kept = 0;
    if (a->quality.is_exact) {
        bool ok = shrink(last, e);
        a->points = last->points;
        a->n_points = last->n;
        last->points = NULL;
        return ok;
    }
    bool ok = build_hull(a, &vertices, e) && unite(a, last, vertices, e);
    if (ok)
        a->quality.gap = fmin(find_gap(a, vertices), a->quality.epsilon); /* NaN is passed over */
    mem_free(vertices);
    return ok;
}

/* ----------------------------------------------------------------------------------------------------------- public */

bool archive_new(struct archive **out, const struct archive_problem *p, const struct archive_options *o, struct err *e)
{
    struct archive *a;
    struct layer last = {0};
    if (!check_problem(p, o, e) || !mem_new(&a, 1, e))
        return false;
    a->problem = *p;
    a->factor = exp(log1p(o->epsilon) / p->n_units);
    a->limit = o->limit ? o->limit : DEFAULT_LIMIT;
    a->capped_from = p->n_units;
    double kept = floor(THIN_WORK / ((double)p->n_units * p->n_formats));
    kept = kept < THIN_LEAST ? THIN_LEAST : kept;
    a->quality.kept = kept < (double)a->limit ? (size_t)kept : a->limit;
    a->stride = (int)ceil(sqrt(p->n_units));
    bool ok = mem_new(&a->saved, (size_t)(p->n_units / a->stride + 1), e) && prepare(a, e) && sweep(a, &last, e) &&
              finish(a, &last, o, e);
    free_layer(&last);
    if (!ok) {
        archive_free(a);
        return false;
    }
    *out = a;
    return true;
}

void archive_free(struct archive *a)
{
    if (!a)
        return;
    for (int i = 0; i < a->n_saved; i++)
        free_layer(&a->saved[i]);
    mem_free(a->saved);
    mem_free(a->options);
    mem_free(a->first);
    mem_free(a->steps);
    mem_free(a->points);
    mem_free(a->source);
    mem_free(a);
}

const struct archive_point *archive_points(const struct archive *a, size_t *n)
{
    *n = a->n_points;
    return a->points;
}

const struct archive_quality *archive_quality(const struct archive *a) { return &a->quality; }

uint64_t archive_memory(int n_units, int n_formats, size_t limit)
{
    double units = n_units, formats = n_formats;
    return (uint64_t)((double)limit * (16 * (2 * formats + 2) + sqrt(units) * (16 + 21)) + units * formats * 128);
}

/* The assignment of vertex v of the hull: each unit's fewest bytes, and the first v steps. */
static void vertex_assignment(const struct archive *a, size_t v, uint8_t *out)
{
    for (int u = 0; u < a->problem.n_units; u++)
        out[u] = a->options[a->first[u]].format;
    for (size_t i = 0; i < v; i++)
        out[a->steps[i].unit] = a->steps[i].format;
}

/* Walk the points at[0..n), indices in the archive after unit `end`, back to before unit `start` (one that is saved),
 * writing the formats of the units between; at[i] < 0 is passed over. */
static bool walk_back(const struct archive *a, int start, int end, int64_t *at, size_t n, uint8_t *out, struct err *e)
{
    struct layer *layers;
    if (!mem_new(&layers, (size_t)(end - start), e))
        return false;
    bool ok = true;
    for (int u = start; ok && u < end; u++) {
        const struct layer *from = u == start ? &a->saved[start / a->stride] : &layers[u - 1 - start];
        ok = next_layer(a, u, from, true, &layers[u - start], e) && shrink(&layers[u - start], e);
    }
    for (int u = end; ok && u-- > start;) {
        const struct layer *l = &layers[u - start];
        for (size_t i = 0; i < n; i++) {
            if (at[i] < 0)
                continue;
            out[i * (size_t)a->problem.n_units + (size_t)u] = a->options[a->first[u] + l->option[at[i]]].format;
            at[i] = l->parent[at[i]];
        }
    }
    for (int u = start; u < end; u++)
        free_layer(&layers[u - start]);
    mem_free(layers);
    return ok;
}

bool archive_assignments(const struct archive *a, const size_t *points, size_t n, uint8_t *out, struct err *e)
{
    int64_t *at;
    size_t walking = 0;
    if (!mem_new(&at, n, e))
        return false;
    for (size_t i = 0; i < n; i++) {
        at[i] = a->source ? a->source[points[i]] : (int64_t)points[i];
        if (at[i] < 0)
            vertex_assignment(a, (size_t)(-1 - at[i]), out + i * (size_t)a->problem.n_units);
        else
            walking++;
    }
    bool ok = true;
    for (int s = a->n_saved; ok && walking > 0 && s-- > 0;) {
        int start = s * a->stride, end = start + a->stride;
        ok = walk_back(a, start, end < a->problem.n_units ? end : a->problem.n_units, at, n, out, e);
    }
    mem_free(at);
    return ok;
}
