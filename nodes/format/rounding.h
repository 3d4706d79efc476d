#ifndef NODES_FORMAT_ROUNDING_H
#define NODES_FORMAT_ROUNDING_H
/* Rounding methods. A chain of them starts from round-to-nearest; each step takes a matrix' codes and scales (blocks.h)
 * and makes others, and is **gated**: its loss is tr(D H D^T), D the error of the weights and H the second moment of
 * the unit's input over calibration rows that no method has seen, before and after; a step that does not lower it is
 * undone. So nothing is worse than round-to-nearest on those rows. One file a method, one line in the table. */
#include "nodes/format/blocks.h"
#include "nodes/format/loss.h"

#define ROUNDING_DAMPINGS 8

struct rounding_options {
    double damping[ROUNDING_DAMPINGS]; /* gptq: shares of the moment's mean diagonal that are added to it; the one with
                                          the least loss is kept, matrix by matrix */
    int n_dampings;
    bool by_activation;  /* gptq: columns in descending order of the input's second moment; else as they come */
    bool full_moment;    /* scale_search: weigh errors by all of the moment, not by its diagonal alone */
    int signround_steps;
};

struct factors; /* gptq's Cholesky factors of a unit, made when first asked for (gptq.c) */

/* What a step may know of a unit, shared by all its matrices and formats. Everything is on the host. */
struct rounding {
    struct queue *q;       /* the CPU's; methods spread rows over its threads, with the same bits for any number */
    int64_t k;
    const float *moment;   /* [k,k] f32, symmetric: mean of x x^T over the rows that methods fit; borrowed */
    struct loss *fit;      /* under `moment` */
    struct loss *held_out; /* under the moment of the rows that only the gate sees */
    struct rounding_options options;
    struct factors *factors;
};

/* `moment` and `held_out` [k,k]; `moment` is borrowed until rounding_close. */
bool rounding_open(struct rounding *r, struct queue *q, int64_t k, const float *moment, const float *held_out,
                   const struct rounding_options *options, struct err *e) ERR_CHECK;
void rounding_close(struct rounding *r); /* a zeroed one is fine */

struct rounding_method {
    const char *name;
    const char *help; /* one line */
    /* Better codes and scales for w [b->n, k] in place of those in *b, by the rows of r->moment. After a failure *b is
     * undefined. */
    bool (*apply)(struct rounding *r, const float *w, struct blocks *b, struct err *e);
};
/* NULL-terminated. "rtn" is among them: it rounds to nearest anew. */
extern const struct rounding_method *const rounding_methods[];
extern const struct rounding_method rounding_rtn, rounding_scale_search, rounding_gptq, rounding_signround,
    rounding_refit;
const struct rounding_method *rounding_find(const char *name);
/* Their names, and block_match's (nodes/model/block_match.h), which comes last; NULL-terminated. */
extern const char *const rounding_names[];

/* What a step did to a matrix. */
struct rounding_step {
    double before, after; /* tr(D H D^T) on held-out rows */
    bool kept;
};
/* Round w [n,k] into *b, which is new: to nearest, then the methods in their order. steps[i] says what method i did. */
bool rounding_chain(struct rounding *r, const struct rounding_method *const *methods, int n_methods, const float *w,
                    struct blocks *b, struct rounding_step *steps, struct err *e) ERR_CHECK;
/* Square and energy of w - decoded under `l`, by LOSS_ROWS rows. */
bool rounding_loss(struct loss *l, struct queue *q, const float *w, const struct blocks *b, double *square,
                   double *energy, struct err *e) ERR_CHECK;

#endif
