#include "nodes/search/surrogate.h"

#include <math.h>

#include "nodes/search/l1.h"

static bool read_cost(struct surrogate *s, const struct menu *m, struct object *o, const char *what, struct err *e)
{
    uint64_t count, formats = (uint64_t)m->n_formats;
    if (!object_load(o, "cost", DTYPE_F64, &s->cost, &count, e))
        return false;
    if (count != (uint64_t)m->n_units * formats)
        return err_set(e, ERR_INPUT, "'%s' has %llu costs for %d units in %d formats", what,
                       (unsigned long long)count, m->n_units, m->n_formats);
    for (uint64_t i = 0; i < count; i++) {
        if (!m->available[i])
            s->cost[i] = NAN;
        else if (!(s->cost[i] >= 0 && s->cost[i] < INFINITY))
            return err_set(e, ERR_NUMERIC, "'%s': the cost of unit '%s' in format '%s' is %g", what,
                           m->unit_names[i / formats], m->format_names[i % formats], s->cost[i]);
    }
    return true;
}

static bool check_pairs(const struct surrogate *s, const struct menu *m, const char *what, struct err *e)
{
    for (size_t i = 0; i < s->n_pairs; i++) {
        const uint32_t *p = s->pairs[i];
        if (p[0] >= p[1] || p[1] >= (uint32_t)m->n_units)
            return err_set(e, ERR_INPUT, "'%s': pair %zu is of units %u and %u; the first must be the lower, and there "
                           "are %d", what, i, p[0], p[1], m->n_units);
        const uint32_t *q = i > 0 ? s->pairs[i - 1] : NULL;
        if (q && (q[0] > p[0] || (q[0] == p[0] && q[1] >= p[1])))
            return err_set(e, ERR_INPUT, "'%s': pair %zu, of units %u and %u, comes after that of units %u and %u; "
                           "they must be sorted, each once", what, i, p[0], p[1], q[0], q[1]);
    }
    return true;
}

static bool check_pair_cost(struct surrogate *s, const struct menu *m, const char *what, struct err *e)
{
    double *cost = s->pair_cost;
    for (size_t i = 0; i < s->n_pairs; i++) {
        int u = (int)s->pairs[i][0], v = (int)s->pairs[i][1], n = m->n_formats;
        for (int a = 0; a < n; a++)
            for (int b = 0; b < n; b++, cost++) {
                if (!m->available[u * n + a] || !m->available[v * n + b])
                    *cost = 0;
                else if (!isfinite(*cost))
                    return err_set(e, ERR_NUMERIC, "'%s': the cost of the pair of unit '%s' in format '%s' and unit "
                                   "'%s' in format '%s' is %g", what, m->unit_names[u], m->format_names[a],
                                   m->unit_names[v], m->format_names[b], *cost);
            }
    }
    return true;
}

static bool read_pairs(struct surrogate *s, const struct menu *m, struct object *o, const char *what, struct err *e)
{
    uint64_t units, costs, cells = (uint64_t)m->n_formats * (uint64_t)m->n_formats;
    bool has_units = object_dataset(o, "pairs/units"), has_cost = object_dataset(o, "pairs/cost");
    if (!has_units && !has_cost)
        return true;
    if (has_units != has_cost)
        return err_set(e, ERR_INPUT, "'%s' has pairs/%s without pairs/%s", what, has_units ? "units" : "cost",
                       has_units ? "cost" : "units");
    if (!object_load(o, "pairs/units", DTYPE_U32, &s->pairs, &units, e) ||
        !object_load(o, "pairs/cost", DTYPE_F64, &s->pair_cost, &costs, e))
        return false;
    if (units % 2 != 0 || costs != units / 2 * cells)
        return err_set(e, ERR_INPUT, "'%s' has %llu units of pairs and %llu costs of pairs; a pair has two and %llu",
                       what, (unsigned long long)units, (unsigned long long)costs, (unsigned long long)cells);
    s->n_pairs = units / 2;
    return check_pairs(s, m, what, e) && check_pair_cost(s, m, what, e);
}

bool surrogate_read(struct surrogate *out, const struct menu *m, struct object *o, const char *what, struct err *e)
{
    struct surrogate s = {0};
    if (!menu_check_renderings(m, o, what, e) || !read_cost(&s, m, o, what, e) || !read_pairs(&s, m, o, what, e)) {
        surrogate_fini(&s);
        return false;
    }
    *out = s;
    return true;
}

bool surrogate_or_l1(struct surrogate *out, const struct menu *m, struct node *n, struct err *e)
{
    if (node_inputs(n, "surrogate") == 0)
        return mem_new(&out->cost, (size_t)m->n_units * (size_t)m->n_formats, e) &&
               l1_costs(m, node_input(n, "renderings", 0)->object, out->cost, e);
    const struct input *in = node_input(n, "surrogate", 0);
    return surrogate_read(out, m, in->object, in->node, e);
}

void surrogate_fini(struct surrogate *s)
{
    mem_free(s->cost);
    mem_free(s->pairs);
    mem_free(s->pair_cost);
    *s = (struct surrogate){0};
}

double surrogate_energy(const struct menu *m, const struct surrogate *s, const uint8_t *assignment)
{
    size_t n = (size_t)m->n_formats;
    double sum = 0;
    for (size_t u = 0; u < (size_t)m->n_units; u++)
        sum += s->cost[u * n + assignment[u]];
    for (size_t i = 0; i < s->n_pairs; i++)
        sum += s->pair_cost[(i * n + assignment[s->pairs[i][0]]) * n + assignment[s->pairs[i][1]]];
    return sum;
}
