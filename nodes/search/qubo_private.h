#ifndef NODES_SEARCH_QUBO_PRIVATE_H
#define NODES_SEARCH_QUBO_PRIVATE_H
/* What the parts of qubo share: a problem at one lambda, of the units and formats that are still open. */
#include "engine/base/mem.h"
#include "nodes/search/qubo.h"

/* Units are renumbered 0..n-1 in their order, and the formats of each are labels 0.. in theirs. Units that are decided
 * are in `constant`, and in `unary` of their neighbours. */
struct qubo_model {
    struct arena arena;
    uint32_t n;
    double constant;
    double magnitude;    /* sum of the absolute values of all that went into `constant` and `unary`: what its rounding
                            is measured by */
    uint32_t *unit;      /* [n]: number in the problem */
    uint32_t *at;        /* [n + 1]: labels of unit i are at[i]..at[i + 1] */
    uint8_t *format;     /* [label] */
    double *unary;       /* [label] */
    size_t n_edges;
    uint32_t (*edge)[2]; /* [edge]: lower unit, higher unit; sorted */
    size_t *table;       /* [edge]: where its table is in `pair` */
    double *pair;        /* [label of lower, label of higher] of each edge */
    uint32_t *first;     /* [n + 1]: links of unit i are first[i]..first[i + 1]; those to lower units come first, and
                            both kinds in the order of the other unit */
    uint32_t *split;     /* [n]: the first link to a higher unit */
    uint32_t *link;      /* [link]: edge */
};

static inline uint32_t model_labels(const struct qubo_model *m, uint32_t i) { return m->at[i + 1] - m->at[i]; }
/* Energy of a labelling x [n], with the constant. */
double model_energy(const struct qubo_model *m, const uint8_t *x);

/* ------------------------------------------------------------------------------------------------------- reduction */

/* A problem at one lambda, and which formats are still open. */
struct qubo_open {
    const struct qubo_problem *p;
    double *unary;   /* [unit, format]: cost + lambda * bytes */
    uint8_t *open;   /* [unit, format] */
    uint32_t *first; /* [unit + 1] into link */
    uint32_t *link;  /* pairs of each unit */
};
bool open_init(struct qubo_open *r, const struct qubo_problem *p, double lambda, struct err *e) ERR_CHECK;
void open_fini(struct qubo_open *r);
/* Strike out formats that are worse than another whatever the neighbours have, until there are none. */
bool open_strike(struct qubo_open *r, struct err *e) ERR_CHECK;
/* What is still open as a model; arena_free of its arena. */
bool open_model(const struct qubo_open *r, struct qubo_model *m, struct err *e) ERR_CHECK;

/* --------------------------------------------------------------------------------------------------------- solvers */

/* The optimum by dynamic programming: x [n] is set when *done; it is not done if the tables would have more than
 * `most` entries together. */
bool qubo_tree(const struct qubo_model *m, size_t most, uint8_t *x, bool *done, struct err *e) ERR_CHECK;

/* The best labellings met, lowest energy first, each once. */
struct qubo_pool {
    size_t n, most;
    uint8_t *x;      /* [most, unit] */
    double *energy;  /* [most] */
};
bool pool_init(struct qubo_pool *pool, const struct qubo_model *m, size_t most, struct err *e) ERR_CHECK;
void pool_fini(struct qubo_pool *pool);
void pool_add(struct qubo_pool *pool, const struct qubo_model *m, const uint8_t *x, double energy);

/* The dual: per edge and end a message [label of that end], such that
 *     reduced unary = unary + sum of the messages of its edges,     reduced pair = pair - both messages
 * have the same sum for every labelling. The sum of all their minima is a lower bound. */
struct qubo_dual {
    const struct qubo_model *m;
    double bound;     /* with the constant; `error` subtracted */
    double error;     /* what rounding may have made of the bound, and of an energy, at most */
    size_t *offset;   /* [edge]: its messages, [label of lower] and then [label of higher] */
    double *message;
    double *reduced;  /* [label]: reduced unary */
};
/* Up to `rounds` passes there and back, fewer once they gain next to nothing or meet the pool's best; roundings go to
 * the pool. */
bool dual_ascend(struct qubo_dual *d, const struct qubo_model *m, int rounds, struct qubo_pool *pool,
                 struct err *e) ERR_CHECK;
void dual_fini(struct qubo_dual *d);
/* bound [label]: no labelling with that label is below, but for rounding in a sum of four, of `error` at most. */
void dual_label_bounds(const struct qubo_dual *d, double *bound);

/* Tabu search from x [n], which becomes the best labelling found, a minimum with respect to moves of one unit and of
 * the two of an edge. *energy is summed afresh. */
bool qubo_local(const struct qubo_model *m, uint64_t seed, size_t steps, uint8_t *x, double *energy,
                struct err *e) ERR_CHECK;

#endif
