#ifndef NODES_ROTATE_GATE_H
#define NODES_ROTATE_GATE_H
/* Does a rotation help? Every matrix is rounded to nearest in one format, in each of the bases that may be asked for,
 * and the loss is taken:
 *
 *     output loss   |x' W'^T - q(x') W^'^T|^2 / |x' W'^T|^2 over the rows x of some windows, where q is what the format
 *                   does to inputs (a static scale is that of these rows) and W^' the rounded weights
 *     weight loss   |W' - W^'|^2 / |W'|^2; it alone where there is no text
 *
 * What a rotation cannot change, |x W^T|, is in the denominator only, so losses compare across bases and add up over
 * matrices. The rotation of the residual stream, which is all or nothing, is kept if the sum over all matrices falls;
 * that of a layer's heads if the sum over the layer's attention falls, with the residual stream as it was decided.
 * Rounding to nearest fits nothing to the rows, so they are held out by nature. */
#include "nodes/model/tokens.h"
#include "nodes/rotate/basis.h"

struct gate_spec {
    struct node *node;
    const struct basis *basis;
    unsigned what;                  /* the bases that may be asked for */
    const struct format *format;    /* not bf16 */
    const struct token_set *tokens; /* NULL: no text */
    uint32_t windows;               /* of them, from the first on */
    bool keep_dtypes;               /* weights are written in the dtype that they have in the model .. */
    enum dtype dtype;               /* .. or in this one */
};

struct gate {
    int n_matrices, n_units, layers;
    double *weight_loss, *output_loss; /* [matrix, set of bases]; NaN where the format does not fit, or no text */
    float *input_amax;                 /* [unit, set of bases]: largest input, for formats with a static scale of it */
    double residual_before, residual_after; /* sums of what decides, NaN if not asked for */
    double *heads_before, *heads_after;     /* [layer], likewise */
    bool residual;                          /* kept */
    uint8_t *heads;                         /* [layer]: kept */
};

/* ERR_INPUT when no matrix can have the format. */
bool gate_measure(struct gate *out, const struct gate_spec *spec, struct err *e) ERR_CHECK;
/* All that may be asked for is kept, without a look. */
bool gate_open(struct gate *out, const struct model *m, unsigned what, struct err *e) ERR_CHECK;
void gate_close(struct gate *g); /* a zeroed one is fine */
/* The bases of a layer. */
unsigned gate_bases(const struct gate *g, int layer);
/* Is anything rotated? And: from now on nothing is. */
bool gate_is_open(const struct gate *g);
void gate_shut(struct gate *g);
/* /gate, /residual and /heads, as nodes/README.md says. */
bool gate_write(const struct gate *g, struct writer *w, struct err *e) ERR_CHECK;
/* Memory of gate_measure, on windows of `slots` positions. */
uint64_t gate_memory(const struct kernels *k, const struct model *m, uint32_t windows, uint32_t slots);

#endif
