#ifndef NODES_SEARCH_RACE_H
#define NODES_SEARCH_RACE_H
/* Racing: candidates are measured on some documents first, and one that is beaten by then is measured no further.
 *
 * The documents are put into an order drawn from the seed, whole documents at a time. After 1/(L+1), 2/(L+1), ... of
 * them (L = `looks`) there is a look. At a look candidate c is dropped when another one b that was not dropped before,
 * with at most c's bytes, has a smaller KL beyond doubt: the one-sided test of (KL_c - KL_b > 0), Student's t over the
 * documents measured so far on differences on the same tokens (stats_ratio), rejects at the error that it may spend.
 *
 * The error level is of the whole race: the probability that any candidate at all is dropped by one that is in truth
 * no better - in the population that the documents are drawn from - is at most `level`. It is spent by Bonferroni:
 * with K looks that are held and m candidates that can be dropped, the test of c against the r-th of its rivals at a
 * look may err with
 *     level / (K * m * r * (r + 1)),
 * and sum 1 / (r (r + 1)) < 1. Rivals are numbered from the largest down, since what is nearest in size is what c must
 * beat to be worth its bytes; the numbering knows bytes alone, never KLs, so no selection is hidden in it. A test on
 * all documents is not held: what is left by then is complete.
 *
 * What is protected: candidates of origin "uniform". They are few, the choice is compared with them in the end, and
 * what learns from rows (rank, refitting) is anchored on them. They may drop others.
 *
 * How it holds: in simulations where all candidates are equal, from 8 to 64 documents, 1 to 3.5 % of the races at level
 * 5 % drop anybody (tests/benchmarks.md, "Coverage").
 *
 * Few documents: no look is held on fewer than RACE_LEAST_DOCUMENTS, where t tells nothing at such levels, so with few
 * documents nothing is ever dropped.
 *
 * Which (candidate, window) pairs are measured is a function of the candidates, the documents and these options; what
 * a ledger has, threads and interruptions have no part in it. */
#include "nodes/search/candidates.h"

#define RACE_LEAST_DOCUMENTS 4

struct race_options {
    double level;  /* error of the whole race; 0: no looks, all windows at once */
    int looks;     /* L */
    uint64_t seed; /* of the order of documents */
};

struct race_drop {
    uint32_t candidate, by; /* ids */
    uint32_t look;          /* from 0 */
    double difference;      /* KL of the candidate minus that of `by`, nats, on the documents of the look */
    double low;             /* its one-sided lower bound at `error`: above 0 */
    double error;           /* what the test could spend */
};

struct race {
    struct race_options options;
    uint32_t n_stages;      /* looks that are held, and the rest of the windows after them */
    uint32_t *windows;      /* [window]: the order of measuring; within a stage ascending */
    uint32_t *end;          /* [n_stages]: windows measured after each stage */
    uint32_t *documents;    /* [n_stages]: documents likewise */
    struct race_drop *drops; /* in the order of looks, then of candidates */
    size_t n_drops;
    uint32_t *index;        /* [window]: its document, from 0 in the order of their first windows */
    uint32_t n_documents;
};

/* The schedule for the table's windows. Owned by the caller until race_fini. */
bool race_init(struct race *r, const struct candidates *c, const struct race_options *o, struct err *e) ERR_CHECK;
void race_fini(struct race *r);
/* The look after `stage`, when all candidates of the table that are not dropped were measured on
 * windows[0..end[stage]): sets dropped_at (windows measured) and dropped_by in the table, and lists the drops. After
 * the last stage it does nothing. ERR_BUG when a row lacks a window that it should have. */
bool race_look(struct race *r, struct candidates *c, uint32_t stage, struct err *e) ERR_CHECK;

#endif
