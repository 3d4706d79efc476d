#ifndef NODES_SEARCH_DESCENT_H
#define NODES_SEARCH_DESCENT_H
/* Coordinate descent on a measured score: which moves are tried, in what order, and which one is accepted. How a
 * candidate is measured is the caller's business, so the decisions can be tested without a model.
 *
 * A move from the base assignment is a flip (one unit changes its format) or a swap (two units do, one to more bytes
 * and one to fewer), such that the result has at most `most_bytes`. Moves are taken in the order of what the surrogate
 * costs say that they gain; one batch is measured together, and of the batch the one with the lowest KL is accepted if
 * that is strictly below the base's. Then it is the base. Only the 256 best changes to more bytes and the 256 best to
 * fewer are paired into swaps. It ends when no move is left that was not tried, or at a limit. Everything is a
 * function of the table, the costs and the measured numbers. */
#include "nodes/search/candidates.h"

struct descent_move {
    uint32_t base, candidate; /* ids in the table */
    int32_t unit, from, to;   /* formats */
    int32_t unit2, from2, to2;/* the second unit of a swap; -1: none */
    double kl_before, kl_after;
    bool is_accepted;
};

struct descent {
    /* Filled by the caller. */
    const struct menu *menu;
    struct candidates *table; /* entry 0 is the start, measured; every move tried is appended */
    double *cost;             /* [unit, format]: surrogate, NaN where not available */
    uint64_t most_bytes;
    int most_passes;          /* most bases whose moves are tried: one more than the most accepted moves */
    int most_moves;           /* most moves measured */
    int batch;                /* moves measured together, at least 1 */
    void *context;
    /* Fill the measured columns of the table's entries from `first` on. */
    bool (*measure)(void *context, struct candidates *table, size_t first, struct err *e);
    /* Before each batch, change `cost` by what was measured so far. May be NULL. */
    bool (*refit)(void *context, struct descent *d, struct err *e);
    /* After each accepted move. May be NULL. */
    void (*tell)(void *context, const struct descent_move *move);
    /* Results; descent_fini frees them. */
    struct descent_move *moves;
    size_t n_moves, capacity;
    uint32_t chosen;          /* id of the last base */
    bool is_exhausted;        /* no move from the last base was left untried */
    bool is_cut;              /* all that were listed were tried, but there were too many to pair all into swaps; with
                                 neither, most_passes or most_moves ended it */
};

bool descent_run(struct descent *d, struct err *e) ERR_CHECK;
void descent_fini(struct descent *d);

#endif
