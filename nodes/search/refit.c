/* Ridge regression in its dual form: with few candidates and many units, the system has a row per candidate. Let A
 * [candidate, unit] = g * cost / (KL + floor) and B [candidate, format] = its sums by format. Then with K = A A^T +
 * B B^T, r = KL / (KL + floor) - the row sums of A, and alpha = (K + ridge I)^-1 r, the minimum is at t = A^T alpha,
 * q = B^T alpha, and the error of candidate i when it is predicted from the others is alpha[i] /
 * ((K + ridge I)^-1)[i, i]. */
#include "nodes/search/refit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST_ROWS 256
#define LEAST_FLOOR 1e-7
#define FLOOR_SHARE 0.1 /* of the median KL */
#define LEAST_FACTOR 0.1
#define MOST_FACTOR 10.0

/* Strongest prior first: of equal errors the first one is taken. */
static const double ridges[] = {100, 10, 1, 0.1, 0.01, 1e-3, 1e-4};

struct row {
    const struct candidate *candidate;
    double sum, distance; /* summed cost; from the centre in bpp */
    size_t at;
};

struct fit {
    const struct menu *menu;
    const double *cost;
    struct row *rows;
    size_t n;
    double floor, scale;
    double *a, *b;     /* [row, unit], [row, format] */
    double *kernel;    /* [row, row] */
    double *factor;    /* Cholesky factor, lower */
    double *residual, *alpha, *best, *column;
};

/* Sum over units of cost[unit, assignment[unit]]. */
static double sum_costs(const struct menu *m, const double *cost, const uint8_t *assignment)
{
    double sum = 0;
    for (int u = 0; u < m->n_units; u++)
        sum += cost[u * m->n_formats + assignment[u]];
    return sum;
}

static int by_distance(const void *a, const void *b)
{
    const struct row *x = a, *y = b;
    if (x->distance != y->distance)
        return x->distance < y->distance ? -1 : 1;
    return (x->at > y->at) - (x->at < y->at);
}

static bool choose_rows(struct fit *f, const struct candidates *const *tables, size_t n_tables, double centre,
                        struct err *e)
{
    size_t most = 0;
    for (size_t t = 0; t < n_tables; t++)
        most += tables[t]->n;
    if (!mem_new(&f->rows, most, e))
        return false;
    for (size_t t = 0; t < n_tables; t++)
        for (size_t i = 0; i < tables[t]->n; i++) {
            const struct candidate *c = &tables[t]->list[i];
            if (!candidate_is_complete(tables[t], c) || !(c->kl_mean > 0))
                continue;
            double sum = sum_costs(f->menu, f->cost, c->assignment);
            if (!(sum > 0 && sum < INFINITY))
                continue;
            double distance = isnan(centre) ? 0 : fabs(c->bpp - centre);
            f->rows[f->n] = (struct row){c, sum, distance, f->n};
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

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The floor and g; `kl` has room for the rows. */
static void set_scale(struct fit *f, double *kl)
{
    double logs = 0, weights = 0;
    for (size_t i = 0; i < f->n; i++)
        kl[i] = f->rows[i].candidate->kl_mean;
    qsort(kl, f->n, sizeof *kl, ascending);
    f->floor = fmax(FLOOR_SHARE * kl[f->n / 2], LEAST_FLOOR);
    for (size_t i = 0; i < f->n; i++) {
        double x = f->rows[i].candidate->kl_mean, share = x / (x + f->floor);
        logs += share * share * log(x / f->rows[i].sum);
        weights += share * share;
    }
    f->scale = exp(logs / weights);
}

/* The floor, g, A, B, K and r. */
static bool build_system(struct fit *f, struct err *e)
{
    size_t n = f->n, units = (size_t)f->menu->n_units, formats = (size_t)f->menu->n_formats;
    if (!mem_new(&f->a, n * units, e) || !mem_new(&f->b, n * formats, e) || !mem_new(&f->kernel, n * n, e) ||
        !mem_new(&f->factor, n * n, e) || !mem_new(&f->residual, n, e) || !mem_new(&f->alpha, n, e) ||
        !mem_new(&f->best, n, e) || !mem_new(&f->column, n, e))
        return false;
    set_scale(f, f->column);
    for (size_t i = 0; i < n; i++) {
        const struct candidate *c = f->rows[i].candidate;
        double over = c->kl_mean + f->floor;
        f->residual[i] = c->kl_mean / over;
        for (size_t u = 0; u < units; u++) {
            double x = f->scale * f->cost[u * formats + c->assignment[u]] / over;
            f->a[i * units + u] = x;
            f->b[i * formats + c->assignment[u]] += x;
            f->residual[i] -= x;
        }
    }
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i; j++)
            f->kernel[i * n + j] = f->kernel[j * n + i] = dot(f->a + i * units, f->a + j * units, units) +
                                                          dot(f->b + i * formats, f->b + j * formats, formats);
    return true;
}

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

/* alpha of the best ridge into f->best, zeros when the prior alone is best. */
static void choose_ridge(struct fit *f, struct refit *result)
{
    size_t n = f->n;
    double least = dot(f->residual, f->residual, n);
    result->ridge = INFINITY;
    result->error_before = sqrt(least / (double)n);
    for (size_t k = 0; k < sizeof ridges / sizeof *ridges; k++) {
        if (!factorise(f, ridges[k]))
            continue;
        memcpy(f->alpha, f->residual, n * sizeof *f->alpha);
        solve(f, f->alpha);
        double error = 0;
        for (size_t i = 0; i < n; i++) {
            double left_out = f->alpha[i] / inverse_diagonal(f, i);
            error += left_out * left_out;
        }
        if (error < least) {
            least = error;
            result->ridge = ridges[k];
            memcpy(f->best, f->alpha, n * sizeof *f->best);
        }
    }
    result->error_after = sqrt(least / (double)n);
}

static void scale_costs(const struct fit *f, double *out)
{
    int units = f->menu->n_units, formats = f->menu->n_formats;
    for (int u = 0; u < units; u++)
        for (int g = 0; g < formats; g++) {
            double factor = 1;
            for (size_t i = 0; i < f->n; i++)
                factor += f->best[i] * (f->a[i * (size_t)units + (size_t)u] + f->b[i * (size_t)formats + (size_t)g]);
            factor = factor < LEAST_FACTOR ? LEAST_FACTOR : factor > MOST_FACTOR ? MOST_FACTOR : factor;
            out[u * formats + g] = f->scale * factor * f->cost[u * formats + g];
        }
}

static void free_fit(struct fit *f)
{
    mem_free(f->rows);
    mem_free(f->a);
    mem_free(f->b);
    mem_free(f->kernel);
    mem_free(f->factor);
    mem_free(f->residual);
    mem_free(f->alpha);
    mem_free(f->best);
    mem_free(f->column);
}

bool refit_costs(const struct menu *m, const double *cost, const struct candidates *const *tables, size_t n_tables,
                 double centre, double *out, struct refit *result, struct err *e)
{
    struct fit f = {.menu = m, .cost = cost, .scale = 1};
    *result = (struct refit){.scale = 1, .ridge = INFINITY};
    bool ok = choose_rows(&f, tables, n_tables, centre, e);
    if (ok && f.n == 0) {
        memmove(out, cost, (size_t)m->n_units * (size_t)m->n_formats * sizeof *out);
    } else if (ok && (ok = build_system(&f, e))) {
        choose_ridge(&f, result);
        scale_costs(&f, out);
        result->n_rows = f.n;
        result->floor = f.floor;
        result->scale = f.scale;
    }
    free_fit(&f);
    return ok;
}
