#ifndef NODES_SEARCH_EVOLVE_H
#define NODES_SEARCH_EVOLVE_H
/* Evolution of one assignment on its measured KL within a byte budget, as EvoPress does it (Sieberling, Kuznedelev,
 * Kurtic, Alistarh 2024, arXiv 2410.14649): a baseline. How a candidate is measured is the caller's business, so the
 * decisions can be tested without a model.
 *
 * A unit's levels are its formats that no other beats in both bytes and the surrogate's cost, bytes ascending. An
 * offspring is the parent after min(a, b) raises, a and b drawn from 1..3: a random unit goes up a level; then random
 * others go down a level until the budget holds; then random ones go up as long as one fits. One that changed more than
 * 10 units before that last step is drawn again. A generation's offspring go through stages of selection: on random
 * windows, `keep` times as many in each stage, a `keep`-th of the candidates survives each; the last stage is on all
 * windows, where the best survivor becomes the parent if its KL is below the parent's. (The published setting is of
 * this kind: 128 offspring, of which 16, 4 and 1 survive stages of 2,048, 16,384 and 131,072 tokens.) A stage's windows
 * are among those of the next, so nothing is measured twice, and the parent costs nothing.
 *
 * The first generation has random assignments near the budget in the place of offspring, and among them the largest
 * level for all that fits. Everything is a function of the menu, the seed and the measured numbers. */
#include "nodes/search/candidates.h"

struct evolve {
    /* Filled by the caller. */
    const struct menu *menu;
    struct candidates *table;  /* empty, with windows; all that is tried is appended, each assignment once */
    const double *cost;        /* [unit, format]: tells which formats are levels; NaN where not available */
    uint64_t most_bytes;
    uint64_t most_tokens;      /* scored positions that may be measured, of different (candidate, window) pairs */
    int offspring;             /* a generation, at least 1; also of the first */
    int stages, keep;          /* at least 1 and 2 */
    int most_generations;
    uint64_t seed;
    void *context;
    /* Measure the table's entries that are not dropped on windows[0..n), what is measured already excepted
     * (evaluator_measure_windows from entry 0). */
    bool (*measure)(void *context, struct candidates *table, const uint32_t *windows, size_t n, struct err *e);
    /* After each generation. May be NULL. */
    void (*tell)(void *context, const struct evolve *v);
    /* Results; evolve_fini frees them. What did not survive has dropped_at and dropped_by in the table. */
    uint32_t chosen;           /* id of the last parent, measured on all windows */
    uint64_t tokens;           /* measured: the sum of the table's `tokens` */
    uint32_t *parent;          /* [generation]: who was the parent after it */
    uint64_t *tokens_by;       /* [generation]: tokens measured by its end */
    int n_generations;
    enum evolve_end { EVOLVE_TOKENS, EVOLVE_GENERATIONS, EVOLVE_EXHAUSTED /* no offspring is left to draw */ } end;
};

/* ERR_INPUT when the budget of bytes is below the fewest, or the tokens do not reach through the first generation. */
bool evolve_run(struct evolve *v, struct err *e);
void evolve_fini(struct evolve *v);

#endif
