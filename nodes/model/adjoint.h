#ifndef NODES_MODEL_ADJOINT_H
#define NODES_MODEL_ADJOINT_H
/* The adjoint of KL, applied to the error that ships: K random draws at the logits, one backward pass each, and the
 * response of every unit in every format to each of them (nodes/search/probes.h says what they are for). Windows are
 * gone through a batch at a time; a batch goes forward once, keeping the residual stream before every layer, and
 * backward once with all its draws, so that a layer's weights are read twice. A window's numbers do not depend on
 * what else is in its batch. */
#include "nodes/model/backward.h"
#include "nodes/model/tokens.h"

struct adjoint_spec {
    struct forward *f;
    const struct token_set *tokens;
    int n_formats, n_probes;
    int n_traces;               /* draws (the first of the probes) that the traces are taken of; 0: none */
    enum fisher_draw draw;
    uint64_t seed;
    uint32_t block;             /* positions of a block of row.local; divides the window */
    const uint8_t *skip;        /* [unit, format]: no response is wanted (it is 0, or the format not available) */
    bool (*load)(void *context, int unit, int format, struct unit_weights *out, struct err *e);
    void *context;
    const struct node *node;    /* asked for node_stopping; may be NULL */
    void (*progress)(void *context, double share); /* of the batch in hand; may be NULL */
};

/* Of one window; f64, the caller's. */
struct adjoint_row {
    double *response; /* [unit, format, probe]: sum over positions of <g, dY> */
    double *local;    /* [unit, format]: mean over probes of the sum over blocks of (sum over the block's positions of
                         <g, dY>)^2: the response squared, without what positions of different blocks share */
    double *square;   /* [unit, format]: mean over probes of the sum over positions and rows of (g dY)^2 */
    double *trace;    /* [unit]: mean over the draws of |sum over positions of g x^T|^2, whose expectation is the trace
                         of the Fisher of the window's KL with respect to the unit's weights; only with n_traces */
};

/* Windows that a batch may have so that it takes at most `bytes`: at least 1. */
uint32_t adjoint_batch(const struct adjoint_spec *s, uint64_t bytes);
/* Memory for batches of that many windows, and the panels of a layer in all formats, added to *out. */
void adjoint_needs(const struct kernels *k, const struct model *m, enum dtype mode, uint32_t window, int n_formats,
                   int n_probes, uint32_t block, uint32_t batch, struct needs *out);
/* rows[i] for windows[i], i < n: one batch. */
bool adjoint_run(const struct adjoint_spec *s, const uint32_t *windows, uint32_t n, const struct adjoint_row *rows,
                 struct err *e) ERR_CHECK;

/* The seed of the draw of `probe` at a position of a window (fisher_draw); never 0. */
uint64_t adjoint_seed(uint64_t seed, int probe, uint32_t window, uint32_t position);

#endif
