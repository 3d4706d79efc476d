#ifndef NODES_INSPECT_INSPECT_H
#define NODES_INSPECT_INSPECT_H
/* The validator of compressed-tensors checkpoints, any architecture's and any writer's: all checks of export-formats
 * 9, without the code that writes and decodes them elsewhere in this program. It holds headers and tables, and of
 * weights a few MiB per thread. */
#include "nodes/inspect/report.h"

struct inspect_options {
    const char *dir;
    const char *source;     /* the checkpoint that it was made from; NULL: unknown */
    const int *tp;          /* tensor-parallel sizes that it is to fit, beside 1 */
    size_t n_tp;
};

/* One line of the table: what servers keep as one matrix, or one layer's experts. */
struct inspect_unit {
    const char *name;       /* "model.layers.0.self_attn.qkv_proj" */
    const char *scheme;     /* "nvfp4", "int4_g128", "bf16"; "mixed" */
    int64_t n, k;           /* of the whole unit; k -1 where its matrices have no common width, 0 where it is unknown */
    size_t n_matrices;
    uint64_t parameters;    /* sum of n * k */
    uint64_t bytes;         /* of its tensors, biases aside */
    bool is_counted;        /* in unit_bytes and unit_parameters below */
    double error, most;     /* relative RMS error and largest error against the source; NaN: not compared */
};

struct inspection {
    struct arena arena;
    struct report report;
    struct inspect_unit *units; /* in the arena */
    size_t n_units, n_tensors, n_files;
    uint64_t bytes;             /* of all tensors */
    uint64_t unit_bytes, unit_parameters; /* of units, without plain heads, routers, vision and drafters */
    bool is_quantized;
};

/* A directory that cannot be read, or a source that is none, is ERR_INPUT; everything that is wrong with the checkpoint
 * is in the report. */
bool inspect_run(struct inspection **out, const struct inspect_options *o, struct err *e) ERR_CHECK;
void inspection_free(struct inspection *x); /* NULL is fine */

#endif
