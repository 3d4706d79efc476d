#ifndef NODES_MODEL_RENDER_H
#define NODES_MODEL_RENDER_H
/* Making the renderings of a layer: every matrix in every format of the menu, by round-to-nearest or by a chain of
 * rounding methods, with their losses. What the node `quantize` works with. */
#include "engine/node.h"
#include "nodes/format/rounding.h"
#include "nodes/format/serving.h"
#include "nodes/model/block_match.h"

#define MOST_FORMATS 32
#define MOST_METHODS 8

/* What a run works on. */
struct render {
    struct node *node;
    struct model *model;
    struct object *hessian;  /* borrowed; NULL if not connected */
    const struct format *formats[MOST_FORMATS];
    const char *names[MOST_FORMATS];
    const struct serving_profile *serving;
    const struct rounding_method *methods[MOST_METHODS]; /* beyond rtn */
    const char *method_names[MOST_METHODS + 1];
    struct rounding_options options;
    int n_formats, n_layers, n_methods;
    bool matches;            /* block_match comes last: in method_names, not in methods */
    struct token_set tokens; /* for it */
    uint8_t *held_out;       /* [window] */
    struct block_match *match;
    struct queue host;       /* where methods beyond rtn work, wherever the node was placed */
    struct queue *q;
    int first_unit, n_units, first_matrix, n_matrices; /* of the layer in hand */
    struct rendering *renderings;                      /* [matrix, format], until they are stored */
    struct results {
        double *weight_loss, *output_loss;             /* [matrix, format] */
        double *before, *after;                        /* [matrix, format, method], block_match among them */
        uint8_t *kept;
        float *input_amax, *input_scale;               /* [unit] */
    } of;                                              /* the layer in hand, and at the end all layers */
};

/* Methods of which results are told. */
static inline int render_steps(const struct render *w) { return w->n_methods + w->matches; }

/* Can the unit have the format? If not, `why` (which may be NULL) says what it lacks. */
bool render_fits(const struct render *w, const struct unit *u, const struct format *f, char why[SERVING_TEXT]);
/* The first format that has the codes of format f and that the unit can have, which is f or one before it. */
int render_first_of_code(const struct render *w, const struct unit *u, int f);
/* Does the hessian hold rows out? *tokens of them. */
bool render_held_out(struct object *hessian, int64_t *tokens, struct err *e) ERR_CHECK;
/* The moment `which` of a unit's input from the hessian's part of its layer, in fresh memory. */
bool render_moment(struct object *part, const struct unit *u, const char *which, float **moment, struct err *e)
    ERR_CHECK;
/* Square and energy of d [n,k], which lies on the queue's device. */
bool render_measure(const struct queue *q, struct loss *l, const struct tensor *d, double *square, double *energy,
                    struct err *e) ERR_CHECK;

/* All matrices of a unit of the layer in hand, into w->renderings and w->of; `hessian` is its layer's part, or NULL. */
bool render_unit(struct render *w, struct object *hessian, int unit, struct err *e) ERR_CHECK;
/* The step block_match on all that render_unit has made of the layer, which w->match has entered. */
bool render_match(struct render *w, struct object *hessian, struct err *e) ERR_CHECK;
/* The renderings of the layer that were not handed on. */
void render_free(struct render *w);

#endif
