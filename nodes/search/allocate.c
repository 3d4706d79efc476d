#include "nodes/search/allocate.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "nodes/search/archive.h"

uint64_t allocate_budget(const struct menu *m, double bpp)
{
    uint64_t bytes = (uint64_t)floor(bpp * (double)m->total_parameters / 8);
    while (menu_bpp(m, bytes + 1) <= bpp)
        bytes++;
    while (bytes > 0 && menu_bpp(m, bytes) > bpp)
        bytes--;
    return bytes;
}

static bool too_small(const struct menu *m, uint64_t most, uint64_t least, const char *what, struct err *e)
{
    return err_set(e, ERR_INPUT, "a budget of %" PRIu64 " bytes (%.6g bpp) cannot be kept: %s takes at least %" PRIu64
                   " bytes (%.6g bpp)", most, menu_bpp(m, most), what, least, menu_bpp(m, least));
}

bool allocate_check_budget(const struct menu *m, uint64_t most, struct err *e)
{
    uint64_t least = 0;
    for (int u = 0; u < m->n_units; u++) {
        uint64_t fewest = UINT64_MAX;
        for (int f = 0; f < m->n_formats; f++)
            if (m->available[u * m->n_formats + f] && m->bytes[u * m->n_formats + f] < fewest)
                fewest = m->bytes[u * m->n_formats + f];
        least += fewest;
    }
    return least <= most || too_small(m, most, least, "any choice of formats", e);
}

/* --------------------------------------------------------------------------------------------------------- knapsack */

/* Costs fall as bytes rise, so the best of at most so many bytes is the last point that has no more. */
static bool place_budgets(const struct menu *m, const struct archive_point *points, size_t n_points,
                          const struct allocation *list, size_t n, size_t *at, struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        if (!allocate_check_budget(m, list[i].most_bytes, e))
            return false;
        size_t low = 0, high = n_points; /* points[low] fits; points[high] does not, or is behind the last */
        while (high - low > 1) {
            size_t middle = low + (high - low) / 2;
            if (points[middle].bytes <= list[i].most_bytes)
                low = middle;
            else
                high = middle;
        }
        at[i] = low;
    }
    return true;
}

bool allocate_knapsack(const struct menu *m, const double *cost, size_t limit, struct allocation *list, size_t n,
                       double *gap, struct err *e)
{
    struct archive *a = NULL;
    size_t n_points = 0, *at = NULL, units = (size_t)m->n_units;
    uint8_t *assignments = NULL;
    bool ok = archive_new(&a, &(struct archive_problem){m->n_units, m->n_formats, m->bytes, cost},
                          &(struct archive_options){.limit = limit}, e) &&
              mem_new(&at, n, e) && mem_new(&assignments, n * units, e);
    const struct archive_point *points = ok ? archive_points(a, &n_points) : NULL;
    ok = ok && place_budgets(m, points, n_points, list, n, at, e) && archive_assignments(a, at, n, assignments, e);
    for (size_t i = 0; ok && i < n; i++) {
        memcpy(list[i].assignment, assignments + i * units, units);
        list[i].cost = points[at[i]].cost;
    }
    if (ok)
        *gap = archive_quality(a)->gap;
    mem_free(assignments);
    mem_free(at);
    archive_free(a);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------------ rules */

static double sum_costs(const struct menu *m, const double *cost, const uint8_t *assignment)
{
    double sum = 0;
    for (int u = 0; u < m->n_units; u++)
        sum += cost[u * m->n_formats + assignment[u]];
    return sum;
}

/* Is a result of so much better than what `best` holds? most_bytes of `best` is its size; UINT64_MAX: nothing yet. */
static bool is_better(double cost, uint64_t bytes, const struct allocation *best)
{
    return best->most_bytes == UINT64_MAX || cost < best->cost || (cost == best->cost && bytes < best->most_bytes);
}

/* Fewest bytes that a uniform assignment has. */
static uint64_t least_uniform(const struct menu *m, uint8_t *scratch)
{
    uint64_t least = UINT64_MAX;
    for (int f = 0; f < m->n_formats; f++) {
        menu_uniform(m, f, scratch);
        uint64_t bytes = menu_bytes(m, scratch);
        least = bytes < least ? bytes : least;
    }
    return least;
}

bool allocate_uniform(const struct menu *m, const double *uniform_cost, struct allocation *list, size_t n,
                      struct err *e)
{
    uint8_t *tried;
    if (!mem_new(&tried, (size_t)m->n_units, e))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++) {
        struct allocation best = {.most_bytes = UINT64_MAX};
        for (int f = 0; f < m->n_formats; f++) {
            menu_uniform(m, f, tried);
            uint64_t bytes = menu_bytes(m, tried);
            if (bytes > list[i].most_bytes || !is_better(uniform_cost[f], bytes, &best))
                continue;
            best = (struct allocation){.most_bytes = bytes, .cost = uniform_cost[f]};
            memcpy(list[i].assignment, tried, (size_t)m->n_units);
        }
        list[i].cost = best.cost;
        ok = best.most_bytes < UINT64_MAX ||
             too_small(m, list[i].most_bytes, least_uniform(m, tried), "one format for all units", e);
    }
    mem_free(tried);
    return ok;
}

/* Units from the outside in: order[0..units). */
static void order_ends(const struct menu *m, int *order)
{
    int first = INT32_MAX, last = INT32_MIN, n = 0;
    for (int u = 0; u < m->n_units; u++) {
        first = m->layers[u] < first ? m->layers[u] : first;
        last = m->layers[u] > last ? m->layers[u] : last;
    }
    for (bool from_start = true; first <= last; from_start = !from_start) {
        int layer = from_start ? first++ : last--;
        for (int u = 0; u < m->n_units; u++)
            if (m->layers[u] == layer)
                order[n++] = u;
    }
}

/* All units in `low`, and those at the ends in `high` as far as they fit; both uniform assignments. False if not even
 * the first does. */
static bool raise_ends(const struct menu *m, const uint8_t *low, const uint8_t *high, const int *order, uint64_t most,
                       uint8_t *out)
{
    uint64_t bytes = menu_bytes(m, low);
    memcpy(out, low, (size_t)m->n_units);
    if (bytes > most)
        return false;
    for (int i = 0; i < m->n_units; i++) {
        int u = order[i], row = u * m->n_formats;
        bytes = bytes - m->bytes[row + low[u]] + m->bytes[row + high[u]];
        if (bytes > most)
            break;
        out[u] = high[u];
    }
    return true;
}

bool allocate_ends(const struct menu *m, const double *cost, struct allocation *list, size_t n, struct err *e)
{
    size_t units = (size_t)m->n_units;
    uint8_t *uniform = NULL, *tried = NULL;
    int *order = NULL;
    bool ok = mem_new(&uniform, units * (size_t)m->n_formats, e) && mem_new(&tried, units, e) &&
              mem_new(&order, units, e);
    for (int f = 0; ok && f < m->n_formats; f++)
        menu_uniform(m, f, uniform + (size_t)f * units);
    if (ok)
        order_ends(m, order);
    for (size_t i = 0; ok && i < n; i++) {
        struct allocation best = {.most_bytes = UINT64_MAX};
        for (int pair = 0; pair < m->n_formats * m->n_formats; pair++) {
            const uint8_t *low = uniform + (size_t)(pair / m->n_formats) * units;
            const uint8_t *high = uniform + (size_t)(pair % m->n_formats) * units;
            if ((low != high && menu_bytes(m, low) >= menu_bytes(m, high)) ||
                !raise_ends(m, low, high, order, list[i].most_bytes, tried))
                continue;
            double sum = sum_costs(m, cost, tried);
            uint64_t bytes = menu_bytes(m, tried);
            if (!is_better(sum, bytes, &best))
                continue;
            best = (struct allocation){.most_bytes = bytes, .cost = sum};
            memcpy(list[i].assignment, tried, units);
        }
        list[i].cost = best.cost;
        ok = best.most_bytes < UINT64_MAX ||
             too_small(m, list[i].most_bytes, least_uniform(m, tried), "one format for all units", e);
    }
    mem_free(order);
    mem_free(tried);
    mem_free(uniform);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------------ costs */

void allocate_trace_costs(const struct menu *m, const double *trace, const double *square, double *cost)
{
    for (int i = 0; i < m->n_units * m->n_formats; i++) {
        int u = i / m->n_formats;
        cost[i] = m->available[i] ? trace[u] / (double)m->parameters[u] * square[i] : NAN;
    }
}

void allocate_base(const struct menu *m, const double *cost, uint8_t *base)
{
    struct allocation best = {.most_bytes = UINT64_MAX};
    int format = 0;
    for (int f = 0; f < m->n_formats; f++) {
        menu_uniform(m, f, base);
        double sum = sum_costs(m, cost, base);
        uint64_t bytes = menu_bytes(m, base);
        if (!is_better(sum, bytes, &best))
            continue;
        best = (struct allocation){.most_bytes = bytes, .cost = sum};
        format = f;
    }
    menu_uniform(m, format, base);
}

bool allocate_singles(const struct menu *m, const uint8_t *base, struct candidates *out, struct err *e)
{
    uint8_t *tried;
    if (!mem_new(&tried, (size_t)m->n_units, e))
        return false;
    memcpy(tried, base, (size_t)m->n_units);
    bool ok = candidates_add(out, m, base, "uniform", -1, e);
    for (int i = 0; ok && i < m->n_units * m->n_formats; i++) {
        int u = i / m->n_formats;
        if (!m->available[i] || i % m->n_formats == base[u])
            continue;
        tried[u] = (uint8_t)(i % m->n_formats);
        ok = candidates_add(out, m, tried, "singles", 0, e);
        tried[u] = base[u];
    }
    mem_free(tried);
    return ok;
}

/* The measured KL of an assignment that has to be there. */
static bool find_kl(const struct menu *m, const struct candidates *rows, const uint8_t *assignment, int unit,
                    double *kl, struct err *e)
{
    long at = candidates_find(rows, assignment);
    const char *format = m->format_names[assignment[unit]], *name = m->unit_names[unit];
    if (at < 0)
        return err_set(e, ERR_INPUT, "the candidate that has '%s' alone in %s is not among the %zu rows: connect what "
                       "was measured of an allocate node with `method: singles`", name, format, rows->n);
    if (!candidate_is_complete(rows, &rows->list[at]))
        return err_set(e, ERR_INPUT, "the candidate that has '%s' alone in %s was not measured on all windows", name,
                       format);
    *kl = rows->list[at].kl_mean;
    return true;
}

bool allocate_direct_costs(const struct menu *m, const uint8_t *base, const struct candidates *rows, double *cost,
                           struct err *e)
{
    uint8_t *tried;
    if (!mem_new(&tried, (size_t)m->n_units, e))
        return false;
    memcpy(tried, base, (size_t)m->n_units);
    bool ok = true;
    for (int u = 0; ok && u < m->n_units; u++) {
        double *row = cost + (size_t)u * (size_t)m->n_formats, least = INFINITY;
        for (int f = 0; ok && f < m->n_formats; f++) {
            row[f] = NAN;
            if (!m->available[u * m->n_formats + f])
                continue;
            tried[u] = (uint8_t)f;
            ok = find_kl(m, rows, tried, u, &row[f], e);
            least = fmin(least, row[f]);
        }
        for (int f = 0; f < m->n_formats; f++)
            row[f] -= least;
        tried[u] = base[u];
    }
    mem_free(tried);
    return ok;
}
