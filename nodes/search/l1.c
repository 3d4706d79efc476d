#include "nodes/search/l1.h"

#include <math.h>

/* The tables of matrices in a quantize result. */
struct losses {
    uint64_t n; /* matrices */
    int32_t *unit;
    int64_t *rows, *columns;
    double *weight, *output; /* [matrix, format] */
};

static void free_losses(struct losses *l)
{
    mem_free(l->unit);
    mem_free(l->rows);
    mem_free(l->columns);
    mem_free(l->weight);
    mem_free(l->output);
}

static bool load_losses(struct losses *l, const struct menu *m, struct object *o, struct err *e)
{
    uint64_t rows, columns, weight, output;
    if (!object_load(o, "matrices/unit", DTYPE_I32, &l->unit, &l->n, e) ||
        !object_load(o, "matrices/rows", DTYPE_I64, &l->rows, &rows, e) ||
        !object_load(o, "matrices/columns", DTYPE_I64, &l->columns, &columns, e) ||
        !object_load(o, "weight_loss", DTYPE_F64, &l->weight, &weight, e) ||
        !object_load(o, "output_loss", DTYPE_F64, &l->output, &output, e))
        return false;
    uint64_t cells = l->n * (uint64_t)m->n_formats;
    if (rows != l->n || columns != l->n || weight != cells || output != cells)
        return err_set(e, ERR_INPUT, "%s: its tables do not agree on the number of matrices (%llu)", object_path(o),
                       (unsigned long long)l->n);
    for (uint64_t i = 0; i < l->n; i++)
        if (l->unit[i] < 0 || l->unit[i] >= m->n_units || l->rows[i] < 1 || l->columns[i] < 1)
            return err_set(e, ERR_INPUT, "%s: matrix %llu is of unit %d (of %d) and has shape %lld x %lld",
                           object_path(o), (unsigned long long)i, l->unit[i], m->n_units, (long long)l->rows[i],
                           (long long)l->columns[i]);
    return true;
}

static bool check_loss(const struct menu *m, struct object *o, uint64_t matrix, int unit, int f, double loss,
                       struct err *e)
{
    return (loss >= 0 && loss < INFINITY) ||
           err_set(e, ERR_NUMERIC, "%s: matrix %llu of unit '%s' has loss %g in format '%s'", object_path(o),
                   (unsigned long long)matrix, m->unit_names[unit], loss, m->format_names[f]);
}

/* weight[unit] is zero at the start, and then the parameters of its matrices. */
static bool add_losses(const struct losses *l, const struct menu *m, struct object *o, double *cost, double *weight,
                       struct err *e)
{
    for (uint64_t i = 0; i < l->n; i++) {
        double parameters = (double)l->rows[i] * (double)l->columns[i];
        weight[l->unit[i]] += parameters;
        for (int f = 0; f < m->n_formats; f++) {
            uint64_t from = i * (uint64_t)m->n_formats + (uint64_t)f;
            int to = l->unit[i] * m->n_formats + f;
            double loss = isnan(l->output[from]) ? l->weight[from] : l->output[from];
            if (!m->available[to])
                continue;
            if (!check_loss(m, o, i, l->unit[i], f, loss, e))
                return false;
            cost[to] += parameters * loss;
        }
    }
    return true;
}

bool l1_costs(const struct menu *m, struct object *quantize, double *cost, struct err *e)
{
    struct losses l = {0};
    double *weight = NULL;
    for (int i = 0; i < m->n_units * m->n_formats; i++)
        cost[i] = m->available[i] ? 0 : NAN;
    bool ok = load_losses(&l, m, quantize, e) && mem_new(&weight, (size_t)m->n_units, e) &&
              add_losses(&l, m, quantize, cost, weight, e);
    for (int u = 0; ok && u < m->n_units; u++)
        for (int f = 0; f < m->n_formats; f++)
            cost[u * m->n_formats + f] /= weight[u] > 0 ? weight[u] : 1;
    mem_free(weight);
    free_losses(&l);
    return ok;
}

bool l1_weight_squares(const struct menu *m, struct object *quantize, const double *whole, uint64_t n, double *square,
                       struct err *e)
{
    struct losses l = {0};
    for (int i = 0; i < m->n_units * m->n_formats; i++)
        square[i] = m->available[i] ? 0 : NAN;
    bool ok = load_losses(&l, m, quantize, e);
    if (ok && l.n != n)
        ok = err_set(e, ERR_INPUT, "%s: is of %llu matrices, the model has %llu", object_path(quantize),
                     (unsigned long long)l.n, (unsigned long long)n);
    for (uint64_t i = 0; ok && i < n; i++)
        for (int f = 0; ok && f < m->n_formats; f++) {
            double loss = l.weight[i * (uint64_t)m->n_formats + (uint64_t)f];
            int to = l.unit[i] * m->n_formats + f;
            if (!m->available[to])
                continue;
            ok = check_loss(m, quantize, i, l.unit[i], f, loss, e);
            square[to] += loss * whole[i];
        }
    free_losses(&l);
    return ok;
}
