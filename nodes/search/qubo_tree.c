/* The optimum by dynamic programming. Units are eliminated one after the other: what a unit's best label costs, given
 * the labels of its neighbours, becomes a table over these (bucket elimination, Dechter 1999), which is a tree
 * decomposition with one bag per unit. Next is always the unit whose table has the fewest entries. */
#include <math.h>
#include <string.h>

#include "nodes/search/qubo_private.h"

/* A sorted list of units. */
struct list {
    uint32_t *v;
    size_t n, capacity;
};

static bool list_set(struct list *l, const uint32_t *v, size_t n, struct err *e)
{
    if (n > l->capacity) {
        if (!mem_grow(&l->v, l->capacity, 2 * n, e))
            return false;
        l->capacity = 2 * n;
    }
    if (n > 0)
        memcpy(l->v, v, n * sizeof *v);
    l->n = n;
    return true;
}

/* A table over `scope`, row-major in the order of its units. */
struct factor {
    const uint32_t *scope;
    size_t n;
    const double *value;
    double *own;         /* to be freed once it was used: what value is, or NULL */
    struct factor *next; /* of those that go into the same bag */
};

/* The elimination of a unit. */
struct bag {
    uint32_t unit;
    uint32_t *scope;  /* neighbours that are still there, ascending */
    size_t n, cells;  /* cells: entries over the scope and the unit */
    struct factor *in;
    struct factor out; /* [scope]: what the unit costs */
    uint8_t *choice;  /* [scope]: the unit's best label */
};

struct tree {
    const struct qubo_model *m;
    struct arena arena;
    struct list *neighbours; /* [unit] */
    double *cells;           /* [unit]: of its table if it were eliminated next; INFINITY when it has been */
    uint32_t *rank;          /* [unit]: when it is eliminated */
    struct bag *bags;        /* in that order */
    double *work;            /* [largest table] */
};

/* ------------------------------------------------------------------------------------------------------------ order */

static void count_cells(struct tree *t, uint32_t i)
{
    const struct list *l = &t->neighbours[i];
    t->cells[i] = model_labels(t->m, i);
    for (size_t k = 0; k < l->n; k++)
        t->cells[i] *= model_labels(t->m, l->v[k]);
}

/* neighbours of j, which is one of i, become the union of both without i and j. */
static bool join(struct tree *t, uint32_t j, uint32_t i, uint32_t *scratch, struct err *e)
{
    const struct list *a = &t->neighbours[j], *b = &t->neighbours[i];
    size_t n = 0, x = 0, y = 0;
    while (x < a->n || y < b->n) {
        uint32_t next;
        if (y == b->n || (x < a->n && a->v[x] <= b->v[y])) {
            next = a->v[x];
            y += y < b->n && b->v[y] == next;
            x++;
        } else {
            next = b->v[y++];
        }
        if (next != i && next != j)
            scratch[n++] = next;
    }
    if (!list_set(&t->neighbours[j], scratch, n, e))
        return false;
    count_cells(t, j);
    return true;
}

static bool start_order(struct tree *t, uint32_t *scratch, struct err *e)
{
    const struct qubo_model *m = t->m;
    for (uint32_t i = 0; i < m->n; i++) {
        size_t n = 0;
        for (uint32_t k = m->first[i]; k < m->first[i + 1]; k++) {
            const uint32_t *ends = m->edge[m->link[k]];
            scratch[n++] = ends[ends[0] == i];
        }
        if (!list_set(&t->neighbours[i], scratch, n, e))
            return false;
        count_cells(t, i);
    }
    return true;
}

/* The bags, in order. *fits says whether they have at most `most` entries together. */
static bool find_order(struct tree *t, size_t most, uint32_t *scratch, bool *fits, struct err *e)
{
    const struct qubo_model *m = t->m;
    double sum = 0;
    *fits = false;
    if (!start_order(t, scratch, e))
        return false;
    for (uint32_t step = 0; step < m->n; step++) {
        uint32_t at = 0;
        for (uint32_t i = 1; i < m->n; i++)
            if (t->cells[i] < t->cells[at])
                at = i;
        struct bag *b = &t->bags[step];
        struct list *l = &t->neighbours[at];
        sum += t->cells[at];
        if (sum > (double)most)
            return true;
        *b = (struct bag){.unit = at, .n = l->n, .cells = (size_t)t->cells[at]};
        if (!(b->scope = arena_new(&t->arena, (l->n + 1) * sizeof *b->scope, e)))
            return false;
        if (l->n > 0)
            memcpy(b->scope, l->v, l->n * sizeof *b->scope);
        for (size_t k = 0; k < b->n; k++)
            if (!join(t, b->scope[k], at, scratch, e))
                return false;
        t->cells[at] = INFINITY;
        t->rank[at] = step;
    }
    *fits = true;
    return true;
}

/* ----------------------------------------------------------------------------------------------------------- tables */

/* Into the bag of the unit of its scope that is eliminated first. */
static void put(struct tree *t, struct factor *f)
{
    uint32_t first = t->rank[f->scope[0]];
    for (size_t k = 1; k < f->n; k++)
        if (t->rank[f->scope[k]] < first)
            first = t->rank[f->scope[k]];
    f->next = t->bags[first].in;
    t->bags[first].in = f;
}

static bool put_edges(struct tree *t, struct err *e)
{
    const struct qubo_model *m = t->m;
    struct factor *f = arena_new(&t->arena, (m->n_edges + 1) * sizeof *f, e);
    if (!f)
        return false;
    for (size_t i = 0; i < m->n_edges; i++) {
        f[i] = (struct factor){.scope = m->edge[i], .n = 2, .value = m->pair + m->table[i]};
        put(t, &f[i]);
    }
    return true;
}

/* work[scope, label of the unit] += f; stride and digit have room for the scope. */
static void add_factor(struct tree *t, const struct bag *b, const struct factor *f, size_t *stride, uint32_t *digit)
{
    size_t step = 1, own = 0, offset = 0;
    uint32_t labels = model_labels(t->m, b->unit);
    for (size_t k = 0; k < b->n; k++)
        stride[k] = digit[k] = 0;
    for (size_t k = f->n; k-- > 0;) {
        if (f->scope[k] == b->unit)
            own = step;
        for (size_t s = 0; s < b->n; s++)
            if (b->scope[s] == f->scope[k])
                stride[s] = step;
        step *= model_labels(t->m, f->scope[k]);
    }
    for (double *to = t->work, *end = to + b->cells; to < end; to += labels) {
        for (uint32_t x = 0; x < labels; x++)
            to[x] += f->value[offset + x * own];
        for (size_t k = b->n; k-- > 0;) {
            offset += stride[k];
            if (++digit[k] < model_labels(t->m, b->scope[k]))
                break;
            offset -= stride[k] * digit[k];
            digit[k] = 0;
        }
    }
}

static bool eliminate(struct tree *t, struct bag *b, size_t *stride, uint32_t *digit, struct err *e)
{
    uint32_t labels = model_labels(t->m, b->unit);
    size_t rows = b->cells / labels;
    if (!mem_raw(&b->choice, rows, e) || !mem_raw(&b->out.own, rows, e))
        return false;
    for (size_t i = 0; i < rows; i++)
        memcpy(t->work + i * labels, t->m->unary + t->m->at[b->unit], labels * sizeof *t->work);
    for (struct factor *f = b->in; f; f = f->next) {
        add_factor(t, b, f, stride, digit);
        mem_free(f->own);
        f->own = NULL;
    }
    for (size_t i = 0; i < rows; i++) {
        const double *row = t->work + i * labels;
        uint32_t best = 0;
        for (uint32_t x = 1; x < labels; x++)
            if (row[x] < row[best])
                best = x;
        b->choice[i] = (uint8_t)best;
        b->out.own[i] = row[best];
    }
    b->out.scope = b->scope;
    b->out.n = b->n;
    b->out.value = b->out.own;
    if (b->n > 0)
        put(t, &b->out);
    return true;
}

static bool solve(struct tree *t, uint8_t *x, struct err *e)
{
    const struct qubo_model *m = t->m;
    size_t most = 0, widest = 0;
    for (uint32_t i = 0; i < m->n; i++) {
        most = t->bags[i].cells > most ? t->bags[i].cells : most;
        widest = t->bags[i].n > widest ? t->bags[i].n : widest;
    }
    size_t *stride = NULL;
    uint32_t *digit = NULL;
    bool ok = mem_raw(&t->work, most, e) && mem_raw(&stride, widest, e) && mem_raw(&digit, widest, e) &&
              put_edges(t, e);
    for (uint32_t i = 0; ok && i < m->n; i++)
        ok = eliminate(t, &t->bags[i], stride, digit, e);
    for (uint32_t i = m->n; ok && i-- > 0;) {
        const struct bag *b = &t->bags[i];
        size_t at = 0;
        for (size_t k = 0; k < b->n; k++)
            at = at * model_labels(m, b->scope[k]) + x[b->scope[k]];
        x[b->unit] = b->choice[at];
    }
    mem_free(digit);
    mem_free(stride);
    return ok;
}

bool qubo_tree(const struct qubo_model *m, size_t most, uint8_t *x, bool *done, struct err *e)
{
    struct tree t = {.m = m};
    uint32_t *scratch = NULL;
    size_t n = m->n;
    bool fits = false;
    bool ok = mem_new(&t.neighbours, n, e) && mem_new(&t.cells, n, e) && mem_new(&t.rank, n, e) &&
              mem_new(&t.bags, n, e) && mem_raw(&scratch, n, e) && find_order(&t, most, scratch, &fits, e) &&
              (!fits || solve(&t, x, e));
    for (size_t i = 0; i < n; i++) {
        if (t.neighbours)
            mem_free(t.neighbours[i].v);
        if (t.bags) {
            mem_free(t.bags[i].choice);
            mem_free(t.bags[i].out.own);
        }
    }
    mem_free(scratch);
    mem_free(t.work);
    mem_free(t.bags);
    mem_free(t.rank);
    mem_free(t.cells);
    mem_free(t.neighbours);
    arena_free(&t.arena);
    if (ok)
        *done = fits;
    return ok;
}
