#ifndef NODES_DECODE_H
#define NODES_DECODE_H
/* A compressed-tensors checkpoint written out as a plain one, with the weights that `measure` and `verify` compute
 * with, rounded to bf16. */
#include <stdint.h>

#include "engine/base/err.h"

struct decode_options {
    const char *dir;
    const char *out;        /* must not be there */
    uint64_t shard_size;    /* most bytes of tensors in one file; 0: 5 GiB */
};

struct decode_result {
    int n_decoded;          /* matrices */
    uint64_t bytes;         /* of all tensors */
    int n_files;            /* of weights */
};

/* Appears whole or not at all. ERR_INPUT when `dir` is no quantized checkpoint that can be opened, or `out` is
 * there. */
bool decode_run(const struct decode_options *o, struct decode_result *out, struct err *e) ERR_CHECK;

#endif
