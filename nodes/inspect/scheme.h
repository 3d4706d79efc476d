#ifndef NODES_INSPECT_SCHEME_H
#define NODES_INSPECT_SCHEME_H
/* What a linear layer may be stored as (export-formats 0 and 2), independently of nodes/format. */
#include <stdbool.h>
#include <stdint.h>

#include "engine/base/dtype.h"

enum scheme_kind {
    SCHEME_PLAIN,     /* not quantized */
    SCHEME_NVFP4, SCHEME_MXFP4, SCHEME_FP8, SCHEME_FP8_BLOCK, SCHEME_MXFP8, SCHEME_INT8,
    SCHEME_PACKED,    /* integers of 4 or 8 bits in words of 32 */
    SCHEME_OTHER,     /* servers know it, this validator does not */
    SCHEME_NONE       /* no server has it, or its tensors are those of none */
};

struct scheme {
    enum scheme_kind kind;
    bool weight_only;     /* inputs are not quantized; always so for PACKED, never for PLAIN, OTHER and NONE */
    int bits;             /* PACKED: 4 or 8 */
    int64_t group;        /* PACKED: columns that share a scale, -1: all of a row */
};

#define SCHEME_PARTS 4
#define DTYPES(t) (1u << (t))

/* One tensor that belongs to a layer in a scheme. */
struct scheme_part {
    const char *suffix;
    unsigned dtypes;      /* those allowed, as DTYPES() */
    int rank;
    int64_t shape[2];
};

/* "nvfp4_a16", "int4_g128", ...: as the program calls its formats where it has the same; in `out`. */
const char *scheme_name(const struct scheme *s, char out[40]);
bool scheme_equal(const struct scheme *a, const struct scheme *b);
/* Equal as far as the weight's tensors go: what is done to inputs left aside. */
bool scheme_stores_alike(const struct scheme *a, const struct scheme *b);
/* The tensors of an [n,k] layer, input_global_scale included; their number. None for PLAIN, OTHER and NONE. */
int scheme_parts(const struct scheme *s, int64_t n, int64_t k, struct scheme_part out[SCHEME_PARTS]);
/* Columns that share a scale: k for one scale a row. */
int64_t scheme_columns(const struct scheme *s, int64_t k);
/* Relative RMS error that rounding to nearest has on Gaussian weights (export-formats 9.7); a factor of 2 above it is
 * suspicious. */
double scheme_error(const struct scheme *s);
/* What a group's `format` must be. */
const char *scheme_format(const struct scheme *s);

#endif
