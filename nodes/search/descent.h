#ifndef NODES_SEARCH_DESCENT_H
#define NODES_SEARCH_DESCENT_H
/* Coordinate descent on a measured score: which moves are tried, in what order, when one is given up, and which one is
 * accepted. How a candidate is measured is the caller's business, so the decisions can be tested without a model.
 *
 * Moves. A change gives another format to one unit, or to a block: units of one role (one name but for the number of
 * the layer) that follow each other by layer and have one format now; blocks are of 2, 4 or 8 units at any place of
 * such a run, or the whole of it. A move is one change, or two of disjoint units, one to more bytes and one to fewer,
 * such that the result has at most `most_bytes`. Of changes to more and to fewer bytes the 256 best of a unit and the
 * 64 best of a block are paired.
 *
 * Order. A move's predicted gain is what the surrogate costs fall by. Bytes are a budget: of moves that add bytes
 * within the room that is left the steepest comes first, the most gain per byte, which is how a knapsack is filled
 * greedily; a move that adds none takes nothing away from any other and is as steep as can be, so those are ordered by
 * gain alone. There is no exchange rate between the two before the room is used up, so the lists take turns, that
 * without bytes first. Moves that are predicted to lose come last, the least loss first: predictions may be wrong.
 *
 * Measuring. One batch is measured together, of which the move with the lowest KL is accepted if that is strictly below
 * the base's, both on the whole set; then it is the base, and all others are left. Most moves are refused, so before
 * the whole set there are looks after equal shares of its documents, drawn by the seed (the schedule of
 * nodes/search/race.h). At each look a move is given up when its paired interval excludes a gain: the lower end of (its
 * KL - the base's) over the documents seen is above 0. What is asked is the difference on the whole set, of which the
 * documents seen are a sample without replacement, so the interval (stats_paired_interval) is narrowed by sqrt(1 -
 * share seen) (Cochran 1977, 2.6). Each look has the one-sided level give_up / looks: a move that does gain is lost
 * with probability at most give_up (Bonferroni). Nothing that was not measured in full and found lower is accepted; and
 * where the measured difference is a tie, what is predicted from other documents must not outweigh it (pooled.h), else
 * a descent of many moves follows the luck of its documents. On the shipped model (32 windows, six starts, 64 moves
 * each) 7 looks spare 46 to 67 % of the windows, with the same result (tests/benchmarks.md).
 *
 * It ends when no move is left that was not tried, or at a limit. Everything is a function of the table, the costs, the
 * seed and the measured numbers. */
#include "nodes/search/candidates.h"
#include "nodes/search/pooled.h"

struct descent_change {
    int32_t unit, units; /* the first unit, and how many of its role change: it, and those in the next layers */
    int32_t from, to;    /* formats */
};

struct descent_move {
    uint32_t base, candidate;            /* ids in the table */
    struct descent_change first, second; /* second.unit is -1 where there is one change */
    double gain;                         /* predicted fall of the cost */
    double kl_before, kl_after;          /* of base and candidate; kl_after is NaN for a move that was given up */
    double estimate;                     /* kl_after; for a move that was given up, kl_before + its mean difference on
                                            the windows that were measured */
    struct pooled difference;            /* of a move measured in full: candidate minus base */
    double bound;                        /* most that it gains, at the last look that was taken; NaN: none was */
    int32_t look;                        /* at which it was given up, from 0; -1: it was not */
    bool is_accepted;
};

#define DESCENT_LOOKS 7 /* looks before the whole set; fewer with few documents */

struct descent {
    /* Filled by the caller. */
    const struct menu *menu;
    struct candidates *table; /* entry 0 is the start, measured; every move tried is appended */
    double *cost;             /* [unit, format]: surrogate, NaN where not available */
    uint64_t most_bytes;
    int most_passes;          /* most bases whose moves are tried: one more than the most accepted moves */
    int most_moves;           /* most moves measured */
    int batch;                /* moves measured together, at least 1 */
    double give_up;           /* error level of giving up a move that does gain; 0: all are measured in full */
    uint64_t seed;            /* of the order of documents */
    void *context;
    /* Measure the table's entries from `first` on, but for those with dropped_at >= 0, on these n windows, and fill
     * what evaluator_measure_windows does. */
    bool (*measure)(void *context, struct candidates *table, size_t first, const uint32_t *windows, size_t n,
                    struct err *e);
    /* Before each batch, change `cost` by what was measured so far. May be NULL. */
    bool (*refit)(void *context, struct descent *d, struct err *e);
    /* KL of a minus that of b by predictions from other documents than the table's. May be NULL. */
    bool (*predict)(void *context, const struct candidate *a, const struct candidate *b, struct stats_difference *out,
                    struct err *e);
    /* After each accepted move. May be NULL. */
    void (*tell)(void *context, const struct descent_move *move);
    /* Results; descent_fini frees them. */
    struct descent_move *moves;
    size_t n_moves, capacity;
    uint32_t chosen;          /* id of the last base */
    int n_looks;
    uint32_t look_windows[DESCENT_LOOKS]; /* windows that are measured by each look */
    bool is_exhausted;        /* no move from the last base was left untried */
    bool is_cut;              /* all that were listed were tried, but there were too many to pair all of them; with
                                 neither, most_passes or most_moves ended it */
};

bool descent_run(struct descent *d, struct err *e) ERR_CHECK;
void descent_fini(struct descent *d);
/* Bytes that a run takes at most beside the table and the moves: the list of what can be tried. */
uint64_t descent_memory(int n_units, int n_formats);
/* "flip": one unit; "swap": two units, one each way; "block": some change is of a block. */
const char *descent_kind(const struct descent_move *m);

#endif
