#ifndef NODES_MODEL_BACKWARD_H
#define NODES_MODEL_BACKWARD_H
/* The backward pass of the Llama family: the adjoint of forward.h, layer by layer in reverse, written once against the
 * kernel table (model-architectures 13). Gradients are of activations only, at the plain weights. Nothing of the
 * forward pass is kept but the residual stream before each layer, which the caller has: a layer's activations are
 * computed again from it, so memory is that of one layer. */
#include "nodes/model/forward.h"

enum backward_work {
    BACKWARD_IN_QKV, BACKWARD_OUT_QKV, BACKWARD_ROTATED, /* after the norm; of the linear layer; after rope */
    BACKWARD_IN_O, BACKWARD_OUT_O, BACKWARD_MIDDLE,      /* the stream between attention and MLP */
    BACKWARD_IN_GATE_UP, BACKWARD_OUT_GATE_UP, BACKWARD_IN_DOWN, BACKWARD_OUT_DOWN,
    BACKWARD_D_HIDDEN, BACKWARD_D_QKV, BACKWARD_D_ATTENTION, BACKWARD_D_GATE_UP, BACKWARD_D_PRODUCT, /* gradients */
    BACKWARD_COUNT
};

/* Open on a forward pass (borrowed), which may be used in between. */
struct backward {
    struct forward *f;
    struct tensor minus_sine;             /* rope's inverse is the rotation by the negative angle */
    struct tensor work[BACKWARD_COUNT];   /* [f->chunk, ...] */
    int64_t rows;                         /* of the chunk that backward_recompute was given */
};
bool backward_open(struct backward *b, struct forward *f, struct err *e) ERR_CHECK;
void backward_close(struct backward *b);
/* Adds the memory that backward_open takes. */
void backward_needs(const struct kernels *k, const struct model *m, int window, struct needs *out);

/* The activations of a layer for x [rows, hidden], its input: whole windows, at most f->chunk rows. w: its plain
 * weights. x is left as it is. */
bool backward_recompute(struct backward *b, int layer, const struct unit_weights w[LAYER_UNITS],
                        const struct tensor *x, struct err *e) ERR_CHECK;
/* Input and output (with its bias, before rope) of a unit in that chunk; views that the next recompute changes. */
struct tensor backward_input(const struct backward *b, enum unit_role role);
struct tensor backward_output(const struct backward *b, enum unit_role role);
/* Told the gradient at the output of each unit, [rows, N]: of qkv before its rotation, as backward_output is. */
typedef bool (*backward_observer)(void *context, enum unit_role role, const struct tensor *g, struct err *e);
/* dx [rows, hidden], the gradient at the layer's output, becomes the one at its input. x as given to recompute;
 * transposed[role]: panels {K, N} of the transposed weights (kernels->transpose). */
bool backward_layer(struct backward *b, int layer, const struct tensor transposed[LAYER_UNITS], const struct tensor *x,
                    struct tensor *dx, backward_observer observe, void *context, struct err *e) ERR_CHECK;

#endif
