/* Sums run over probes, then windows, in order. */
#include "nodes/search/probes.h"

#include <math.h>
#include <string.h>

#include "nodes/search/stats.h"

#define LEVEL 0.95

/* ------------------------------------------------------------------------------------------------------------ unary */

static const double *cell(const struct probes *p, int unit, int format)
{
    size_t samples = (size_t)p->n_probes * p->n_windows;
    return p->response + (size_t)(unit * p->menu->n_formats + format) * samples;
}

static bool is_available(const struct probes *p, int unit, int format)
{
    return p->menu->available[unit * p->menu->n_formats + format] != 0;
}

static double sum_tokens(const struct probes *p)
{
    double tokens = 0;
    for (uint32_t w = 0; w < p->n_windows; w++)
        tokens += p->tokens[w];
    return tokens;
}

/* value[w] = 1/2 the mean of a^2 over the probes: nats, of all of the window's positions. */
static void sum_probes(const struct probes *p, int unit, int format, double *value)
{
    const double *a = cell(p, unit, format);
    memset(value, 0, p->n_windows * sizeof *value);
    for (uint32_t k = 0; k < p->n_probes; k++)
        for (uint32_t w = 0; w < p->n_windows; w++)
            value[w] += 0.5 * a[k * p->n_windows + w] * a[k * p->n_windows + w] / p->n_probes;
}

/* Nats of a unit's windows, and what errors over documents are taken with. */
struct windows {
    double *value, *residual; /* [window]; the latter is scratch */
    uint32_t *group, n_groups;
};

static bool windows_init(struct windows *x, const struct probes *p, struct err *e)
{
    *x = (struct windows){0};
    if (!mem_new(&x->group, p->n_windows, e) || !mem_new(&x->value, p->n_windows, e) ||
        !mem_new(&x->residual, p->n_windows, e) ||
        !stats_documents(p->document, p->n_windows, x->group, &x->n_groups, e))
        return false;
    if (x->n_groups < 2) {
        x->n_groups = p->n_windows;
        for (uint32_t w = 0; w < p->n_windows; w++)
            x->group[w] = w;
    }
    return true;
}

static void windows_fini(struct windows *x)
{
    mem_free(x->group);
    mem_free(x->value);
    mem_free(x->residual);
}

/* Standard error of sum(value) / sum(tokens) over groups of windows. */
static double ratio_error(const struct probes *p, struct windows *x)
{
    double values = 0, tokens = 0, squares = 0;
    if (x->n_groups < 2)
        return NAN;
    memset(x->residual, 0, x->n_groups * sizeof *x->residual);
    for (uint32_t w = 0; w < p->n_windows; w++) {
        values += x->value[w];
        tokens += p->tokens[w];
    }
    for (uint32_t w = 0; w < p->n_windows; w++)
        x->residual[x->group[w]] += x->value[w] - values / tokens * p->tokens[w];
    for (uint32_t g = 0; g < x->n_groups; g++)
        squares += x->residual[g] * x->residual[g];
    return sqrt((double)x->n_groups / (x->n_groups - 1) * squares) / tokens;
}

bool probes_costs(const struct probes *p, double *cost, double *error, struct err *e)
{
    struct windows x;
    double tokens = sum_tokens(p);
    bool ok = windows_init(&x, p, e);
    for (int u = 0; ok && u < p->menu->n_units; u++)
        for (int f = 0; f < p->menu->n_formats; f++) {
            size_t at = (size_t)(u * p->menu->n_formats + f);
            double sum = 0;
            sum_probes(p, u, f, x.value);
            for (uint32_t w = 0; w < p->n_windows; w++)
                sum += x.value[w];
            cost[at] = is_available(p, u, f) ? sum / tokens : NAN;
            error[at] = is_available(p, u, f) ? ratio_error(p, &x) : NAN;
        }
    windows_fini(&x);
    return ok;
}

/* -------------------------------------------------------------------------------------------------------- shrinking */

/* Variance of the logarithm of a cost by the draws, to first order. */
static double draw_variance(const struct probes *p, int unit, int format, double cost)
{
    const double *a = cell(p, unit, format);
    double variance = 0, tokens = sum_tokens(p), n = p->n_probes;
    for (uint32_t w = 0; w < p->n_windows; w++) {
        double sum = 0, squares = 0;
        for (uint32_t k = 0; k < p->n_probes; k++) {
            double x = 0.5 * a[k * p->n_windows + w] * a[k * p->n_windows + w];
            sum += x;
            squares += x * x;
        }
        variance += fmax(squares - sum * sum / n, 0) / (n - 1) / n;
    }
    return variance / (tokens * tokens) / (cost * cost);
}

static const double *local_of(const struct probes *p, int unit, int format)
{
    return p->local + (size_t)(unit * p->menu->n_formats + format) * p->n_windows;
}

static double sum_local(const struct probes *p, int unit, int format)
{
    const double *local = local_of(p, unit, format);
    double sum = 0;
    for (uint32_t w = 0; w < p->n_windows; w++)
        sum += local[w];
    return sum;
}

/* value[w]: nats, of all of the window's positions, the share `kept` of them as the responses say and the rest as the
 * local squares do; all windows together have `total`. */
static void mix_windows(const struct probes *p, int unit, int format, double kept, double total, double *value)
{
    const double *local = kept < 1 && total != 0 ? local_of(p, unit, format) : NULL;
    double sum = 0, rest = local ? (1 - kept) * total / sum_local(p, unit, format) : 0;
    sum_probes(p, unit, format, value);
    for (uint32_t w = 0; w < p->n_windows; w++)
        sum += value[w];
    for (uint32_t w = 0; w < p->n_windows; w++)
        value[w] = (sum != 0 ? kept * total / sum * value[w] : 0) + (local ? rest * local[w] : 0);
}

/* One format. ratio, variance: [unit] scratch. */
static void shrink_format(const struct probes *p, int format, struct windows *x, double *cost, double *error,
                          double *kept, double *ratio, double *variance)
{
    int units = p->menu->n_units, formats = p->menu->n_formats, n = 0;
    double mean = 0, spread = 0, noise = 0, tokens = sum_tokens(p);
    for (int u = 0; u < units; u++) {
        double c = cost[u * formats + format], local = sum_local(p, u, format);
        variance[u] = c > 0 && local > 0 ? draw_variance(p, u, format, c) : NAN;
        ratio[u] = isnan(variance[u]) ? NAN : log(c / local);
        if (isnan(ratio[u]))
            continue;
        mean += ratio[u];
        noise += variance[u];
        n++;
    }
    if (n < 3)
        return;
    mean /= n;
    noise /= n;
    for (int u = 0; u < units; u++)
        spread += isnan(ratio[u]) ? 0 : (ratio[u] - mean) * (ratio[u] - mean) / (n - 1);
    double own = fmax(spread - noise, 0);
    for (int u = 0; u < units; u++) {
        int at = u * formats + format;
        double v = variance[u], share = own + v > 0 ? own / (own + v) : 1;
        if (isnan(v) || share == 1)
            continue;
        kept[at] = share;
        cost[at] *= exp((share - 1) * (ratio[u] - mean));
        mix_windows(p, u, format, share, cost[at] * tokens, x->value);
        error[at] = hypot(ratio_error(p, x), sqrt(share * (1 - share) * v) * cost[at]);
    }
}

bool probes_shrink(const struct probes *p, double *cost, double *error, double *kept, struct err *e)
{
    double *ratio = NULL, *variance = NULL;
    struct windows x;
    bool ok = windows_init(&x, p, e) && mem_new(&ratio, (size_t)p->menu->n_units, e) &&
              mem_new(&variance, (size_t)p->menu->n_units, e);
    for (int c = 0; c < p->menu->n_units * p->menu->n_formats; c++)
        kept[c] = 1;
    for (int f = 0; ok && p->local && p->n_probes > 1 && f < p->menu->n_formats; f++)
        shrink_format(p, f, &x, cost, error, kept, ratio, variance);
    mem_free(variance);
    mem_free(ratio);
    windows_fini(&x);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------------ pairs */

/* Responses divided by the root of their mean square, so that a mean of products is a correlation; a cell without any
 * response (bf16, or one that is not available) is all zeros. root [cell]. */
static void normalise(const struct probes *p, double *normal, double *root)
{
    size_t samples = (size_t)p->n_probes * p->n_windows;
    for (int u = 0; u < p->menu->n_units; u++)
        for (int f = 0; f < p->menu->n_formats; f++) {
            size_t at = (size_t)(u * p->menu->n_formats + f);
            const double *a = cell(p, u, f);
            double squares = 0;
            root[at] = 0;
            if (is_available(p, u, f)) {
                for (size_t s = 0; s < samples; s++)
                    squares += a[s] * a[s];
                root[at] = sqrt(squares / (double)samples);
            }
            for (size_t s = 0; s < samples; s++)
                normal[at * samples + s] = root[at] > 0 ? a[s] / root[at] : 0;
        }
}

/* Mean of x*y and the variance of that mean. */
static void correlate(const double *x, const double *y, size_t n, double *r, double *variance)
{
    double sum[4] = {0}, squares[4] = {0};
    for (size_t i = 0; i < n; i++) {
        double z = x[i] * y[i];
        sum[i % 4] += z;
        squares[i % 4] += z * z;
    }
    double total = (sum[0] + sum[1]) + (sum[2] + sum[3]), square =
        (squares[0] + squares[1]) + (squares[2] + squares[3]);
    double m = (double)n;
    *r = total / m;
    *variance = n > 1 ? fmax(square / m - *r * *r, 0) / (m - 1) : INFINITY;
}

struct pairing {
    const struct probes *p;
    const double *normal, *root;
    double noise, signal; /* sums over all cells of different units, of Var(r) and r^2 */
    size_t n;             /* cells */
};

/* All formats of two units: r into table [format, format], and the largest |r| over its standard error. */
static double pair_units(struct pairing *c, int first, int second, double *table)
{
    size_t samples = (size_t)c->p->n_probes * c->p->n_windows, formats = (size_t)c->p->menu->n_formats;
    double most = 0;
    for (size_t f = 0; f < formats; f++)
        for (size_t g = 0; g < formats; g++) {
            size_t i = (size_t)first * formats + f, j = (size_t)second * formats + g;
            double r = 0, variance = 0;
            if (c->root[i] > 0 && c->root[j] > 0) {
                correlate(c->normal + i * samples, c->normal + j * samples, samples, &r, &variance);
                c->noise += variance;
                c->signal += r * r;
                c->n++;
                double z = fabs(r) / sqrt(variance);
                most = z > most ? z : most;
            }
            table[f * formats + g] = r;
        }
    return most;
}

static bool keep(struct probe_pairs *out, size_t *capacity, size_t cells, int first, int second, const double *table,
                 double significance, struct err *e)
{
    if (out->n == *capacity) {
        size_t more = *capacity ? 2 * *capacity : 256;
        if (!mem_grow(&out->units, *capacity, more, e) || !mem_grow(&out->significance, *capacity, more, e) ||
            !mem_grow(&out->cost, *capacity * cells, more * cells, e))
            return false;
        *capacity = more;
    }
    out->units[out->n][0] = (uint32_t)first;
    out->units[out->n][1] = (uint32_t)second;
    out->significance[out->n] = significance;
    memcpy(out->cost + out->n * cells, table, cells * sizeof *table);
    out->n++;
    return true;
}

/* Correlations become shrunk nats per position. */
static void scale_pairs(const struct pairing *c, struct probe_pairs *out)
{
    size_t formats = (size_t)c->p->menu->n_formats, cells = formats * formats;
    double per_token = (double)c->p->n_windows / sum_tokens(c->p);
    out->kept = c->signal > 0 ? 1 - fmin(1, c->noise / c->signal) : 0;
    out->spread = c->n > 0 && out->kept > 0 ? sqrt(out->kept * c->signal / (double)c->n) : 0;
    for (size_t i = 0; i < out->n; i++)
        for (size_t at = 0; at < cells; at++)
            out->cost[i * cells + at] *= out->kept * per_token * c->root[out->units[i][0] * formats + at / formats] *
                                         c->root[out->units[i][1] * formats + at % formats];
}

bool probes_pairs(const struct probes *p, double significance, struct probe_pairs *out, struct err *e)
{
    size_t formats = (size_t)p->menu->n_formats, cells = (size_t)p->menu->n_units * formats, capacity = 0;
    size_t samples = (size_t)p->n_probes * p->n_windows;
    double *normal = NULL, *root = NULL, *table = NULL;
    *out = (struct probe_pairs){0};
    bool ok = mem_raw(&normal, cells * samples, e) && mem_raw(&root, cells, e) &&
              mem_raw(&table, formats * formats, e);
    if (ok)
        normalise(p, normal, root);
    struct pairing c = {.p = p, .normal = normal, .root = root};
    for (int u = 0; ok && u < p->menu->n_units; u++)
        for (int v = u + 1; ok && v < p->menu->n_units; v++) {
            double z = pair_units(&c, u, v, table);
            out->n_tested++;
            if (z >= significance && z > 0)
                ok = keep(out, &capacity, formats * formats, u, v, table, z, e);
        }
    if (ok)
        scale_pairs(&c, out);
    else
        probe_pairs_fini(out);
    mem_free(table);
    mem_free(root);
    mem_free(normal);
    return ok;
}

void probe_pairs_fini(struct probe_pairs *p)
{
    mem_free(p->units);
    mem_free(p->cost);
    mem_free(p->significance);
    *p = (struct probe_pairs){0};
}

/* ---------------------------------------------------------------------------------------------------------- windows */

static bool load_responses(struct probes *p, struct object *o, const char *what, double **response, uint32_t **tokens,
                           uint32_t **document, struct err *e)
{
    uint64_t count, windows, documents, cells = (uint64_t)p->menu->n_units * (uint64_t)p->menu->n_formats;
    if (!object_load(o, "response", DTYPE_F64, response, &count, e) ||
        !object_load(o, "windows/tokens", DTYPE_U32, tokens, &windows, e) ||
        !object_load(o, "windows/document", DTYPE_U32, document, &documents, e))
        return false;
    if (windows == 0 || windows != documents || count == 0 || count % (cells * windows) != 0)
        return err_set(e, ERR_INPUT, "'%s' has %llu responses for %llu pairs of unit and format in "
                       "%llu windows, of which %llu have a document", what, (unsigned long long)count,
                       (unsigned long long)cells, (unsigned long long)windows, (unsigned long long)documents);
    p->response = *response;
    p->tokens = *tokens;
    p->document = *document;
    p->n_windows = (uint32_t)windows;
    p->n_probes = (uint32_t)(count / (cells * windows));
    return true;
}

/* One number for each of `n` cells or windows of them. */
static bool load_cells(struct object *o, const char *name, const char *what, uint64_t n, double **out, struct err *e)
{
    uint64_t count;
    return object_load(o, name, DTYPE_F64, out, &count, e) &&
           (count == n || err_set(e, ERR_INPUT, "'%s' has %llu values in '%s', expected %llu", what,
                                  (unsigned long long)count, name, (unsigned long long)n));
}

bool probe_windows_read(struct probe_windows *out, const struct menu *m, struct object *o, const char *what,
                        struct err *e)
{
    struct probes p = {.menu = m};
    double *response = NULL, *local = NULL, *kept = NULL;
    uint64_t cells = (uint64_t)m->n_units * (uint64_t)m->n_formats;
    *out = (struct probe_windows){.menu = m};
    bool ok = menu_check_renderings(m, o, what, e) &&
              load_responses(&p, o, what, &response, &out->tokens, &out->document, e) &&
              load_cells(o, "local", what, cells * p.n_windows, &local, e) &&
              load_cells(o, "cost", what, cells, &out->mean, e) && load_cells(o, "cost_kept", what, cells, &kept, e) &&
              (object_double(o, "pairs_spread", &out->spread) ||
               err_set(e, ERR_INPUT, "'%s' has no attribute 'pairs_spread'", what)) &&
              mem_new(&out->cost, cells * p.n_windows, e) && mem_new(&out->sums, 2 * (size_t)p.n_windows, e);
    p.local = local;
    out->n = p.n_windows;
    for (int u = 0; ok && u < m->n_units; u++)
        for (int f = 0; f < m->n_formats; f++) {
            size_t at = (size_t)(u * m->n_formats + f);
            double *cost = out->cost + at * p.n_windows;
            mix_windows(&p, u, f, kept[at], out->mean[at] * sum_tokens(&p), cost);
            for (uint32_t w = 0; w < p.n_windows; w++)
                cost[w] /= p.tokens[w];
        }
    mem_free(kept);
    mem_free(local);
    mem_free(response);
    if (!ok)
        probe_windows_fini(out);
    return ok;
}

uint64_t probe_windows_memory(const struct object *o)
{
    const struct dataset *d = object_dataset(o, "response");
    uint64_t n = d ? 1 : 0;
    for (int i = 0; d && i < d->rank; i++)
        n *= d->shape[i];
    return 3 * n * sizeof(double); /* it, the local squares, and what they come to: as much each with one draw */
}

void probe_windows_fini(struct probe_windows *p)
{
    mem_free(p->cost);
    mem_free(p->mean);
    mem_free(p->sums);
    mem_free(p->tokens);
    mem_free(p->document);
    *p = (struct probe_windows){0};
}

/* sums[w] of the units in which a and b differ, b NULL: of all. */
static void add_units(const struct probe_windows *p, const uint8_t *a, const uint8_t *b, double *sums)
{
    memset(sums, 0, p->n * sizeof *sums);
    for (int u = 0; u < p->menu->n_units; u++) {
        const double *cost = p->cost + (size_t)(u * p->menu->n_formats + a[u]) * p->n;
        if (b && a[u] == b[u])
            continue;
        for (uint32_t w = 0; w < p->n; w++)
            sums[w] += cost[w];
    }
}

double probe_windows_cost(struct probe_windows *p, const uint8_t *assignment)
{
    double sum = 0, tokens = 0;
    add_units(p, assignment, NULL, p->sums);
    for (uint32_t w = 0; w < p->n; w++) {
        sum += p->sums[w] * p->tokens[w];
        tokens += p->tokens[w];
    }
    return sum / tokens;
}

/* Of an assignment: the sum over pairs with a unit at which it differs from `other` of c_u c_v. */
static double pairs_apart(const struct probe_windows *p, const uint8_t *assignment, const uint8_t *other)
{
    double all = 0, apart = 0, squares = 0;
    for (int u = 0; u < p->menu->n_units; u++) {
        double c = p->mean[u * p->menu->n_formats + assignment[u]];
        all += c;
        if (assignment[u] != other[u]) {
            apart += c;
            squares += c * c;
        }
    }
    return apart * all - (apart * apart + squares) / 2;
}

bool probe_windows_difference(struct probe_windows *p, const uint8_t *a, const uint8_t *b, double scale,
                              struct stats_difference *out, struct err *e)
{
    add_units(p, a, b, p->sums);
    add_units(p, b, a, p->sums + p->n);
    for (uint32_t w = 0; w < 2 * p->n; w++)
        p->sums[w] *= scale;
    if (!stats_paired_interval(p->sums, p->sums + p->n, p->tokens, p->document, p->n, LEVEL, out, e))
        return false;
    double pairs = 2 * p->spread * scale * sqrt(fmax(pairs_apart(p, a, b) + pairs_apart(p, b, a), 0));
    double error = hypot(out->error, pairs);
    double half = out->error > 0 ? (out->high - out->mean) * error / out->error : 2 * error;
    out->error = error;
    out->low = out->mean - half;
    out->high = out->mean + half;
    return true;
}
