/* Ridge regression in its dual form: with few candidates and many units, the system has a row per candidate. Let y be
 * the measured KL with the link undone, A [candidate, unit] = cost / (y + floor), B [candidate, format] = its sums by
 * format, and P = the summed pair costs over the same, where pairs are used. Then with K = A A^T + B B^T + P P^T, r = y
 * / (y + floor) - the row sums of A - P, and alpha = (K + ridge I)^-1 r, the minimum is at t = A^T alpha, q = B^T
 * alpha, s = P^T alpha, and the error of candidate i when it is predicted from the others is alpha[i] / ((K + ridge
 * I)^-1)[i, i]. */
#include "nodes/search/refit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "nodes/search/spearman.h"

#define MOST_ROWS 256
#define LEAST_FLOOR 1e-7
#define FLOOR_SHARE 0.1 /* of the median KL */
#define LEAST_FACTOR 0.1
#define MOST_FACTOR 10.0
#define POWER_ROWS 8     /* least rows that a power is fitted to */
#define POWER_PRIOR 0.25 /* weight of power = 1, in squared logarithms of E */
#define LIMIT_GAIN 0.9   /* a lower limit must leave at most that share of the squares: it is one parameter more */
#define LEAST_POWER 0.5
#define MOST_POWER 2.0

/* Strongest prior first: of equal errors the first one is taken. */
static const double ridges[] = {100, 10, 1, 0.1, 0.01, 1e-3, 1e-4};
/* Of the link, in multiples of the largest KL; the same. */
static const double limits[] = {INFINITY, 16, 8, 4, 2, 1.3};

const char *const refit_score_names[REFIT_SCORES] = {"prior", "prior + pairs", "refitted", "refitted + pairs"};

struct row {
    const struct candidate *candidate;
    double sum, pairs, distance; /* summed costs, of units and of pairs; from the centre in bpp */
    size_t at;
};

struct fit {
    const struct menu *menu;
    const double *cost;
    struct row *rows;
    size_t n;
    bool use_pairs;
    double floor;      /* nats */
    struct refit_link link;
    double *y;         /* [row] */
    double *a, *b, *p; /* [row, unit], [row, format], [row] */
    double *kernel;    /* [row, row] */
    double *factor;    /* Cholesky factor, lower */
    double *residual, *alpha, *best, *column, *left_out;
    double *kl;        /* [row] */
};

/* ------------------------------------------------------------------------------------------------------------- link */

double refit_kl(const struct refit_link *l, double energy)
{
    if (l->power == 0)
        return energy;
    double x = energy > 0 ? pow(l->scale * energy, l->power) : 0;
    return x / (1 + x / l->limit);
}

double refit_energy(const struct refit_link *l, double kl)
{
    if (l->power == 0)
        return kl;
    double x = kl / (1 - kl / l->limit);
    return pow(x, 1 / l->power) / l->scale;
}

/* Energy of a row before it is refitted. */
static double energy_of(const struct fit *f, const struct row *r) { return r->sum + (f->use_pairs ? r->pairs : 0); }

/* log g and the power for one limit, and the weighted mean square of what is left. */
static double fit_link(const struct fit *f, double limit, struct refit_link *out)
{
    double weights = 0, mean_x = 0, mean_z = 0, xx = 0, xz = 0, zz = 0;
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < f->n; i++) {
            double kl = f->rows[i].candidate->kl_mean, share = kl / (kl + f->floor), weight = share * share;
            double x = log(energy_of(f, &f->rows[i])), z = log(kl / (1 - kl / limit));
            if (pass == 0) {
                weights += weight;
                mean_x += weight * x;
                mean_z += weight * z;
            } else {
                xx += weight * (x - mean_x / weights) * (x - mean_x / weights);
                xz += weight * (x - mean_x / weights) * (z - mean_z / weights);
                zz += weight * (z - mean_z / weights) * (z - mean_z / weights);
            }
        }
    double power = f->n >= POWER_ROWS ? (xz + POWER_PRIOR) / (xx + POWER_PRIOR) : 1;
    power = power < LEAST_POWER ? LEAST_POWER : power > MOST_POWER ? MOST_POWER : power;
    *out = (struct refit_link){exp((mean_z / weights) / power - mean_x / weights), power, limit};
    return (zz - 2 * power * xz + power * power * xx) / weights;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The floor and the link; f->kl has the rows' KL. */
static void set_link(struct fit *f)
{
    double *sorted = f->column, least = INFINITY;
    memcpy(sorted, f->kl, f->n * sizeof *sorted);
    qsort(sorted, f->n, sizeof *sorted, ascending);
    f->floor = fmax(FLOOR_SHARE * sorted[f->n / 2], LEAST_FLOOR);
    for (size_t k = 0; k < sizeof limits / sizeof *limits; k++) {
        struct refit_link link;
        double error = fit_link(f, limits[k] * sorted[f->n - 1], &link);
        if (error < (isinf(least) ? 1 : LIMIT_GAIN) * least) {
            least = error;
            f->link = link;
        }
        if (f->n < POWER_ROWS)
            break;
    }
}

/* ------------------------------------------------------------------------------------------------------------- rows */

static int by_distance(const void *a, const void *b)
{
    const struct row *x = a, *y = b;
    if (x->distance != y->distance)
        return x->distance < y->distance ? -1 : 1;
    return (x->at > y->at) - (x->at < y->at);
}

static bool choose_rows(struct fit *f, const struct surrogate *prior, const struct candidates *const *tables,
                        size_t n_tables, double centre, struct err *e)
{
    size_t most = 0;
    struct surrogate units = {.cost = prior->cost};
    for (size_t t = 0; t < n_tables; t++)
        most += tables[t]->n;
    if (!mem_new(&f->rows, most, e))
        return false;
    for (size_t t = 0; t < n_tables; t++)
        for (size_t i = 0; i < tables[t]->n; i++) {
            const struct candidate *c = &tables[t]->list[i];
            if (!candidate_is_complete(tables[t], c) || !(c->kl_mean > 0))
                continue;
            double sum = surrogate_energy(f->menu, &units, c->assignment);
            double pairs = prior->n_pairs > 0 ? surrogate_energy(f->menu, prior, c->assignment) - sum : 0;
            /* Shrunk pairs that undo a whole sum are no estimate of it. */
            if (!(sum > 0 && sum < INFINITY) || !(sum + pairs > 0.01 * sum))
                continue;
            double distance = isnan(centre) ? 0 : fabs(c->bpp - centre);
            f->rows[f->n] = (struct row){c, sum, pairs, distance, f->n};
            f->n++;
        }
    qsort(f->rows, f->n, sizeof *f->rows, by_distance);
    f->n = f->n < MOST_ROWS ? f->n : MOST_ROWS;
    return true;
}

static double dot(const double *x, const double *y, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

static bool new_system(struct fit *f, struct err *e)
{
    size_t n = f->n, units = (size_t)f->menu->n_units, formats = (size_t)f->menu->n_formats;
    if (!mem_new(&f->a, n * units, e) || !mem_new(&f->b, n * formats, e) || !mem_new(&f->p, n, e) ||
        !mem_new(&f->kernel, n * n, e) || !mem_new(&f->factor, n * n, e) || !mem_new(&f->residual, n, e) ||
        !mem_new(&f->alpha, n, e) || !mem_new(&f->best, n, e) || !mem_new(&f->column, n, e) ||
        !mem_new(&f->left_out, n, e) || !mem_new(&f->kl, n, e) || !mem_new(&f->y, n, e))
        return false;
    for (size_t i = 0; i < n; i++)
        f->kl[i] = f->rows[i].candidate->kl_mean;
    return true;
}

/* The link, A, B, P, K and r. */
static void build_system(struct fit *f)
{
    size_t n = f->n, units = (size_t)f->menu->n_units, formats = (size_t)f->menu->n_formats;
    set_link(f);
    double floor = refit_energy(&f->link, f->floor);
    memset(f->b, 0, n * formats * sizeof *f->b);
    for (size_t i = 0; i < n; i++) {
        const struct candidate *c = f->rows[i].candidate;
        f->y[i] = refit_energy(&f->link, c->kl_mean);
        double over = f->y[i] + floor;
        f->p[i] = f->use_pairs ? f->rows[i].pairs / over : 0;
        f->residual[i] = f->y[i] / over - f->p[i];
        for (size_t u = 0; u < units; u++) {
            double x = f->cost[u * formats + c->assignment[u]] / over;
            f->a[i * units + u] = x;
            f->b[i * formats + c->assignment[u]] += x;
            f->residual[i] -= x;
        }
    }
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i; j++)
            f->kernel[i * n + j] = f->kernel[j * n + i] = dot(f->a + i * units, f->a + j * units, units) +
                                                          dot(f->b + i * formats, f->b + j * formats, formats) +
                                                          f->p[i] * f->p[j];
}

/* ------------------------------------------------------------------------------------------------------- regression */

/* Cholesky of K + ridge I into f->factor; false when it is not positive definite in f64. */
static bool factorise(struct fit *f, double ridge)
{
    size_t n = f->n;
    double *l = f->factor;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i; j++) {
            double x = f->kernel[i * n + j] + (i == j ? ridge : 0) - dot(l + i * n, l + j * n, j);
            if (i == j && !(x > 0))
                return false;
            l[i * n + j] = i == j ? sqrt(x) : x / l[j * n + j];
        }
    return true;
}

/* x = (K + ridge I)^-1 x. */
static void solve(const struct fit *f, double *x)
{
    size_t n = f->n;
    const double *l = f->factor;
    for (size_t i = 0; i < n; i++)
        x[i] = (x[i] - dot(l + i * n, x, i)) / l[i * n + i];
    for (size_t i = n; i-- > 0;) {
        for (size_t j = i + 1; j < n; j++)
            x[i] -= l[j * n + i] * x[j];
        x[i] /= l[i * n + i];
    }
}

/* Diagonal element i of the inverse: the square of the i-th column of L^-1. */
static double inverse_diagonal(const struct fit *f, size_t i)
{
    size_t n = f->n;
    double *x = f->column;
    memset(x, 0, n * sizeof *x);
    for (size_t k = i; k < n; k++)
        x[k] = ((k == i ? 1.0 : 0.0) - dot(f->factor + k * n + i, x + i, k - i)) / f->factor[k * n + k];
    return dot(x + i, x + i, n - i);
}

/* Errors of candidates that are predicted from the others, for the ridge whose alpha is f->alpha, into `out`; INFINITY
 * for the prior alone. Returns the mean of their squares and its standard error. */
static double leave_out(const struct fit *f, double ridge, double *out, double *deviation)
{
    size_t n = f->n;
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) {
        out[i] = isinf(ridge) ? f->residual[i] : f->alpha[i] / inverse_diagonal(f, i);
        sum += out[i] * out[i];
        squares += out[i] * out[i] * out[i] * out[i];
    }
    double mean = sum / (double)n;
    *deviation = n > 1 ? sqrt(fmax(squares / (double)n - mean * mean, 0) / (double)(n - 1)) : INFINITY;
    return mean;
}

/* The strongest ridge whose error is within one standard error of the least (the rule of Breiman et al. 1984 for
 * choosing by cross-validation): its alpha into f->best, zeros when that is the prior alone, and its errors into
 * f->left_out. */
static void choose_ridge(struct fit *f, struct refit *result)
{
    enum { N = 1 + sizeof ridges / sizeof *ridges };
    double error[N], deviation[N];
    size_t n = f->n, least = 0, chosen = 0;
    for (size_t k = 0; k < N; k++) {
        double ridge = k == 0 ? INFINITY : ridges[k - 1];
        error[k] = INFINITY;
        if (k > 0 && !factorise(f, ridge))
            continue;
        memcpy(f->alpha, f->residual, n * sizeof *f->alpha);
        if (k > 0)
            solve(f, f->alpha);
        error[k] = leave_out(f, ridge, f->left_out, &deviation[k]);
        least = error[k] < error[least] ? k : least;
    }
    while (!(error[chosen] <= error[least] + deviation[least]))
        chosen++;
    result->ridge = chosen == 0 ? INFINITY : ridges[chosen - 1];
    memset(f->best, 0, n * sizeof *f->best);
    if (chosen > 0 && factorise(f, result->ridge)) {
        memcpy(f->best, f->residual, n * sizeof *f->best);
        solve(f, f->best);
    }
    memcpy(f->alpha, f->best, n * sizeof *f->alpha);
    result->error_before = sqrt(error[0]);
    result->error_after = sqrt(leave_out(f, result->ridge, f->left_out, &deviation[chosen]));
}

static double held(double factor)
{
    return factor < LEAST_FACTOR ? LEAST_FACTOR : factor > MOST_FACTOR ? MOST_FACTOR : factor;
}

static void scale_costs(const struct fit *f, double *out)
{
    int units = f->menu->n_units, formats = f->menu->n_formats;
    for (int u = 0; u < units; u++)
        for (int g = 0; g < formats; g++) {
            double factor = 1;
            for (size_t i = 0; i < f->n; i++)
                factor += f->best[i] * (f->a[i * (size_t)units + (size_t)u] + f->b[i * (size_t)formats + (size_t)g]);
            out[u * formats + g] = held(factor) * f->cost[u * formats + g];
        }
}

/* Fit with or without pairs; the rank correlations of the prior and of what is predicted from the others. */
static bool fit_once(struct fit *f, bool use_pairs, struct refit *result, struct err *e)
{
    f->use_pairs = use_pairs;
    build_system(f);
    choose_ridge(f, result);
    double floor = refit_energy(&f->link, f->floor), factor = use_pairs ? 1 + dot(f->best, f->p, f->n) : 0;
    result->n_rows = f->n;
    result->floor = f->floor;
    result->link = f->link;
    result->has_pairs = use_pairs;
    result->pair_factor = use_pairs ? held(factor) : 0;
    double *score = f->column;
    for (size_t i = 0; i < f->n; i++)
        score[i] = energy_of(f, &f->rows[i]);
    if (!spearman(score, f->kl, f->n, &result->correlation[use_pairs ? REFIT_PRIOR_PAIRS : REFIT_PRIOR], e))
        return false;
    for (size_t i = 0; i < f->n; i++)
        score[i] = f->y[i] - f->left_out[i] * (f->y[i] + floor);
    return spearman(score, f->kl, f->n, &result->correlation[use_pairs ? REFIT_FITTED_PAIRS : REFIT_FITTED], e);
}

static void free_fit(struct fit *f)
{
    double *all[] = {f->a, f->b, f->p, f->kernel, f->factor, f->residual, f->alpha, f->best, f->column, f->left_out,
                     f->kl, f->y};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        mem_free(all[i]);
    mem_free(f->rows);
}

/* Without pairs, and with them if there are any; what is better is kept. */
static bool fit_both(struct fit *f, const struct surrogate *prior, double *out, struct refit *result, struct err *e)
{
    if (!new_system(f, e) || !fit_once(f, false, result, e))
        return false;
    if (prior->n_pairs > 0) {
        struct refit with = *result;
        if (!fit_once(f, true, &with, e))
            return false;
        result->correlation[REFIT_PRIOR_PAIRS] = with.correlation[REFIT_PRIOR_PAIRS];
        result->correlation[REFIT_FITTED_PAIRS] = with.correlation[REFIT_FITTED_PAIRS];
        if (with.correlation[REFIT_FITTED_PAIRS] > result->correlation[REFIT_FITTED])
            *result = with;
        else if (!fit_once(f, false, result, e))
            return false;
    }
    scale_costs(f, out);
    return true;
}

bool refit_surrogate(const struct menu *m, const struct surrogate *prior, const struct candidates *const *tables,
                     size_t n_tables, double centre, double *out, struct refit *result, struct err *e)
{
    struct fit f = {.menu = m, .cost = prior->cost};
    *result = (struct refit){.ridge = INFINITY};
    for (int i = 0; i < REFIT_SCORES; i++)
        result->correlation[i] = NAN;
    bool ok = choose_rows(&f, prior, tables, n_tables, centre, e);
    if (ok && f.n == 0)
        memmove(out, prior->cost, (size_t)m->n_units * (size_t)m->n_formats * sizeof *out);
    else if (ok)
        ok = fit_both(&f, prior, out, result, e);
    free_fit(&f);
    return ok;
}

double refit_slope(const struct refit_link *l, double kl)
{
    if (l->power == 0)
        return 1;
    double y = refit_energy(l, kl), step = 1e-4 * y;
    return (refit_kl(l, y + step) - refit_kl(l, y - step)) / (2 * step);
}

bool refit_costs(const struct menu *m, const double *cost, const struct candidates *const *tables, size_t n_tables,
                 double centre, double *out, struct refit *result, struct err *e)
{
    const struct surrogate prior = {.cost = (double *)cost}; /* read only */
    if (!refit_surrogate(m, &prior, tables, n_tables, centre, out, result, e))
        return false;
    result->scale = result->n_rows > 0 ? refit_slope(&result->link, result->floor / FLOOR_SHARE) : 1;
    for (int i = 0; i < m->n_units * m->n_formats; i++)
        out[i] *= result->scale;
    return true;
}
