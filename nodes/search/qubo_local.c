/* Tabu search (Glover 1989) over labellings: the best move of one unit that is not forbidden, also when it makes things
 * worse; a unit that has moved may not move again for some steps, unless that would give the best energy so far. After
 * long in vain it goes back to the best and moves some units at random. It starts from, and ends with, a descent in
 * which the two units of an edge may move together, too. */
#include <math.h>
#include <string.h>

#include "nodes/search/qubo_private.h"
#include "nodes/search/stats.h"

#define REST 8      /* steps that a unit rests after a move, and up to as many more */
#define IDLE 5      /* times the number of units: steps in vain before it goes back */
#define KICK 16     /* a unit in so many, and three, move at random then */
#define SMALL 1e-12 /* of the spread of a unit's costs, on average: gains below are rounding */

struct local {
    const struct qubo_model *m;
    uint8_t *x;     /* [unit] */
    double *field;  /* [label]: unary and pairs with the neighbours as they are */
    double *change; /* [unit]: of energy, by its best move */
    uint8_t *to;    /* [unit]: that move */
    double small;
};

static void refresh(struct local *s, uint32_t i)
{
    const double *field = s->field + s->m->at[i];
    double best = INFINITY;
    for (uint32_t k = 0; k < model_labels(s->m, i); k++)
        if (k != s->x[i] && field[k] < best) {
            best = field[k];
            s->to[i] = (uint8_t)k;
        }
    s->change[i] = best - field[s->x[i]];
}

static void start(struct local *s)
{
    const struct qubo_model *m = s->m;
    memcpy(s->field, m->unary, m->at[m->n] * sizeof *s->field);
    for (size_t i = 0; i < m->n_edges; i++) {
        uint32_t u = m->edge[i][0], v = m->edge[i][1], lower = model_labels(m, u), higher = model_labels(m, v);
        const double *table = m->pair + m->table[i];
        for (uint32_t a = 0; a < lower; a++)
            s->field[m->at[u] + a] += table[a * higher + s->x[v]];
        for (uint32_t b = 0; b < higher; b++)
            s->field[m->at[v] + b] += table[s->x[u] * higher + b];
    }
    for (uint32_t i = 0; i < m->n; i++)
        refresh(s, i);
}

static void move(struct local *s, uint32_t i, uint8_t to)
{
    const struct qubo_model *m = s->m;
    uint8_t from = s->x[i];
    s->x[i] = to;
    for (uint32_t l = m->first[i]; l < m->first[i + 1]; l++) {
        uint32_t edge = m->link[l], u = m->edge[edge][0], v = m->edge[edge][1], higher = model_labels(m, v);
        const double *table = m->pair + m->table[edge];
        if (u == i) {
            double *field = s->field + m->at[v];
            for (uint32_t b = 0; b < higher; b++)
                field[b] += table[to * higher + b] - table[from * higher + b];
            refresh(s, v);
        } else {
            double *field = s->field + m->at[u];
            for (uint32_t a = 0; a < model_labels(m, u); a++)
                field[a] += table[a * higher + to] - table[a * higher + from];
            refresh(s, u);
        }
    }
    refresh(s, i);
}

/* Make the best move of both ends of an edge if it gains. */
static bool move_pair(struct local *s, uint32_t edge)
{
    const struct qubo_model *m = s->m;
    uint32_t u = m->edge[edge][0], v = m->edge[edge][1], higher = model_labels(m, v), at[2] = {s->x[u], s->x[v]};
    const double *table = m->pair + m->table[edge], *fu = s->field + m->at[u], *fv = s->field + m->at[v];
    double here = table[at[0] * higher + at[1]], best = -s->small;
    uint32_t to[2] = {at[0], at[1]};
    for (uint32_t a = 0; a < model_labels(m, u); a++) {
        /* Both fields hold the pair with the other as it was: taken out, and put in as it will be. */
        double alone = fu[a] - table[a * higher + at[1]] - (fu[at[0]] - here);
        for (uint32_t b = 0; b < higher; b++) {
            double gain = alone + fv[b] - table[at[0] * higher + b] - (fv[at[1]] - here) + table[a * higher + b] - here;
            if (gain < best) {
                best = gain;
                to[0] = a, to[1] = b;
            }
        }
    }
    if (to[0] == at[0] && to[1] == at[1])
        return false;
    if (to[0] != at[0])
        move(s, u, (uint8_t)to[0]);
    if (to[1] != at[1])
        move(s, v, (uint8_t)to[1]);
    return true;
}

static uint32_t best_unit(const struct local *s)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < s->m->n; i++)
        if (s->change[i] < s->change[best])
            best = i;
    return best;
}

static void descend(struct local *s)
{
    for (bool moved = true; moved;) {
        for (uint32_t i; i = best_unit(s), s->change[i] < -s->small;)
            move(s, i, s->to[i]);
        moved = false;
        for (size_t edge = 0; edge < s->m->n_edges; edge++)
            moved |= move_pair(s, (uint32_t)edge);
    }
}

/* Back to the best, and some random moves from there; returns what they cost. */
static double kick(struct local *s, uint64_t *seed, const uint8_t *best)
{
    const struct qubo_model *m = s->m;
    double cost = 0;
    memcpy(s->x, best, m->n);
    start(s);
    for (uint32_t i = 0; i < m->n / KICK + 3; i++) {
        uint32_t unit = (uint32_t)stats_below(seed, m->n);
        uint8_t to = (uint8_t)stats_below(seed, model_labels(m, unit));
        cost += s->field[m->at[unit] + to] - s->field[m->at[unit] + s->x[unit]];
        move(s, unit, to);
    }
    return cost;
}

/* best [unit] gets the best labelling that is met. */
static void wander(struct local *s, uint64_t seed, size_t steps, uint8_t *best, uint64_t *free_at)
{
    const struct qubo_model *m = s->m;
    double energy = 0, lowest = 0; /* from where it starts */
    size_t found = 0;
    memcpy(best, s->x, m->n);
    for (size_t step = 1; step <= steps; step++) {
        if (step - found > IDLE * (size_t)m->n + REST) {
            energy = lowest + kick(s, &seed, best);
            found = step;
        }
        uint32_t chosen = UINT32_MAX;
        double least = INFINITY;
        for (uint32_t i = 0; i < m->n; i++)
            if (s->change[i] < least && (free_at[i] <= step || energy + s->change[i] < lowest - s->small)) {
                least = s->change[i];
                chosen = i;
            }
        if (chosen == UINT32_MAX)
            continue; /* all of them rest */
        energy += least;
        free_at[chosen] = step + REST + stats_below(&seed, REST + 1);
        move(s, chosen, s->to[chosen]);
        if (energy < lowest - s->small) {
            lowest = energy;
            found = step;
            memcpy(best, s->x, m->n);
        }
    }
}

static double smallness(const struct qubo_model *m)
{
    double sum = 0;
    for (uint32_t i = 0; i < m->n; i++) {
        double least = INFINITY, most = -INFINITY;
        for (uint32_t k = m->at[i]; k < m->at[i + 1]; k++) {
            least = fmin(least, m->unary[k]);
            most = fmax(most, m->unary[k]);
        }
        sum += most - least;
    }
    return SMALL * sum / (m->n > 0 ? m->n : 1);
}

bool qubo_local(const struct qubo_model *m, uint64_t seed, size_t steps, uint8_t *x, double *energy, struct err *e)
{
    struct local s = {.m = m, .x = x, .small = smallness(m)};
    uint8_t *best = NULL;
    uint64_t *free_at = NULL;
    bool ok = mem_new(&s.field, m->at[m->n], e) && mem_new(&s.change, m->n, e) && mem_new(&s.to, m->n, e) &&
              mem_new(&best, m->n, e) && mem_new(&free_at, m->n, e);
    if (ok) {
        start(&s);
        descend(&s);
        if (steps > 0) {
            wander(&s, seed, steps, best, free_at);
            memcpy(x, best, m->n);
            start(&s);
            descend(&s);
        }
        *energy = model_energy(m, x);
    }
    mem_free(free_at);
    mem_free(best);
    mem_free(s.to);
    mem_free(s.change);
    mem_free(s.field);
    return ok;
}
