#ifndef NODES_INSPECT_ORIGIN_H
#define NODES_INSPECT_ORIGIN_H
/* Where a checkpoint came from: the source directory, when it is given, and what scout.json in the checkpoint says of
 * it. */
#include <jansson.h>

#include "nodes/inspect/modules.h"
#include "nodes/model/safetensors.h"

struct origin {
    const char *dir;            /* of the source; NULL: not given, or not what it was made from */
    struct safetensors *source; /* NULL: not given */
    json_t *config;             /* the source's config.json; NULL: not given, or none */
    json_t *recipe;             /* scout.json; NULL: there is none */
    const json_t *digests;      /* in it: {tensor of the source: SHA-256}; NULL: none */
    bool is_searched;           /* it records that scales were searched for, or fitted */
};

/* `source` may be NULL; else it must open as a checkpoint (ERR_INPUT). One whose tensors are not those that scout.json
 * lists is a finding of check 8, and is not used. */
bool origin_open(struct origin *o, const char *dir, const char *source, struct report *r, struct err *e) ERR_CHECK;
void origin_close(struct origin *o);
/* Is it known which tensors the source has? */
bool origin_knows(const struct origin *o);
/* Has the source a tensor of that name, as far as is known? */
bool origin_has(const struct origin *o, const char *name);

/* The weight of a linear layer in the source: a tensor of its own, or rows of one that holds all experts. */
struct origin_view {
    const struct st_tensor *tensor;
    uint64_t first;             /* its first element */
    int64_t n, k;
};
/* False when the source is not given or has no such weight in floats. */
bool origin_view(const struct origin *o, const struct module *x, struct origin_view *out);
/* The name of the tensor of all experts that a layer's weight may be part of, "" when it can be of none. */
void origin_fused_name(const struct module *x, char *out, size_t size);

#endif
