#ifndef NODES_MODEL_PASS_H
#define NODES_MODEL_PASS_H
/* One pass of many candidates over a few windows: layer by layer together, as a trie of format prefixes, then the KL of
 * every candidate to the teacher with each tile of teacher logits formed once for all. This is the only place where a
 * KL is made; teacher, measure, polish and verify all come here, so their numbers agree to the bit.
 *
 * A candidate's path through layer l is decided by its formats in layers 0..l; candidates with equal prefixes share one
 * state ("lane"). Where the head is a unit, a candidate's states go through the head of its own format. Weights of a
 * (unit, format) are rebuilt once per pass and layer. States of shared prefixes are kept in a cache, per window, for
 * later passes (replay), as long as its budget lasts. */
#include "nodes/model/forward.h"
#include "nodes/model/tokens.h"

/* Where weights come from: the panels of `unit` in format index `format`. `ahead` may be NULL; it is told before a
 * layer is computed which formats of the next layer's units will be asked for, a bit each. */
struct pass_weights {
    bool (*load)(void *context, int unit, int format, struct unit_weights *out, struct err *e);
    void *context;
    void (*ahead)(void *context, int layer, const uint64_t wanted[LAYER_UNITS]);
};

/* The figures of one (candidate, window). */
struct pass_row {
    uint32_t n_tokens, top1;
    double kl_sum, kl_max, nll_teacher, nll_candidate;
    const float *kl; /* [n_tokens] */
};
/* Told of each row as soon as it is known; candidate and window index into the call's lists. Returning false ends the
 * pass with that error. */
typedef bool (*pass_tell)(void *context, size_t candidate, size_t window, const struct pass_row *row, struct err *e);

#define PASS_FORMATS 64 /* format indices are below it */

struct replay; /* the cache */

struct pass {
    struct forward *f;
    const struct token_set *tokens;
    const float *teacher;          /* [window, slot, hidden]: states of the whole token set; NULL: the candidate is its
                                      own teacher (kl 0) */
    const struct tensor *teacher_head; /* panels [vocab, hidden] that they go through; NULL: the model's plain head */
    struct pass_weights weights;
    struct replay *replay;         /* NULL: no cache */
    int keep_every;                /* layers from one state that the cache keeps to the next; 0: one */
    bool share;                    /* false: no prefix is shared (every candidate in full, same bits) */
    const struct node *node;       /* asked for node_stopping; may be NULL */
    uint64_t layer_forwards;       /* (lane, window, layer) computed so far */
    uint64_t layer_forwards_naive; /* what one full pass per candidate would have cost */
    double seconds[5];             /* enum pass_phase: where the time went; on an accelerator where it was handed over,
                                      and the waiting for it is in PASS_KL */
};
enum pass_phase { PASS_WEIGHTS, PASS_LAYERS, PASS_TEACHER_HEAD, PASS_HEAD, PASS_KL };

/* n assignments, each a format index per unit (equal ones are allowed), over `windows` (n_windows indices into the
 * token set). Rows are told window by window, within a window in the order of the list. */
bool pass_run(struct pass *p, const uint8_t *const *assignments, size_t n, const uint32_t *windows, size_t n_windows,
              pass_tell tell, void *context, struct err *e) ERR_CHECK;
/* States after the final norm of the one candidate `assignment`, [n_windows * slots, hidden] to host memory. */
bool pass_states(struct pass *p, const uint8_t *assignment, const uint32_t *windows, size_t n_windows, float *states,
                 struct err *e) ERR_CHECK;
/* The head alone: rows of one candidate whose states after the final norm are given, [n_windows * slots, hidden]. */
bool pass_score(struct pass *p, const float *states, const uint32_t *windows, size_t n_windows, pass_tell tell,
                void *context, struct err *e) ERR_CHECK;

/* A cache of at most `bytes` of prefix states. */
bool replay_new(struct replay **out, struct queue *q, uint64_t bytes, struct err *e) ERR_CHECK;
void replay_free(struct replay *r); /* NULL is fine */

#endif
