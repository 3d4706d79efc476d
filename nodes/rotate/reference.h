#ifndef NODES_ROTATE_REFERENCE_H
#define NODES_ROTATE_REFERENCE_H
/* The original's next-token distribution on some windows, and the KL of other forms of the model to it: as they are
 * written, or with every unit rounded to nearest in one format. Each has its own head. */
#include "nodes/model/pass.h"

struct reference {
    struct node *node;
    const struct model *model;      /* the original; borrowed */
    const struct token_set *tokens; /* borrowed */
    uint32_t n, *windows;           /* the first n of them */
    float *states;                  /* [n * slots, hidden]: after the final norm */
    struct forward f;               /* of the original, for its head */
};

bool reference_open(struct reference *out, struct node *node, const struct model *m, const struct token_set *tokens,
                    uint32_t n, struct err *e) ERR_CHECK;
void reference_close(struct reference *r); /* a zeroed one is fine */
/* KL of `m`, which has the original's shapes, in nats: kl_window [n] the means over each window's positions, *kl the
 * mean over all. `by`: the format of all units that can have it (the others stay as they are); NULL: none. amax [unit]:
 * the largest input of each unit, for formats with a static scale of inputs. */
bool reference_kl(struct reference *r, const struct model *m, const struct format *by, const float *amax,
                  double *kl_window, double *kl, struct err *e) ERR_CHECK;
/* Memory of it all, with two forward passes at once. */
uint64_t reference_memory(const struct kernels *k, const struct model *m, uint32_t n, uint32_t slots);

#endif
