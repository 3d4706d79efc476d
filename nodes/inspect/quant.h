#ifndef NODES_INSPECT_QUANT_H
#define NODES_INSPECT_QUANT_H
/* The quantization_config of config.json (export-formats 3), read leniently: what is wrong becomes a finding of
 * check 9, and what is left is used. */
#include <jansson.h>

#include "nodes/inspect/report.h"
#include "nodes/inspect/scheme.h"

enum quant_strategy {
    STRATEGY_TENSOR, STRATEGY_CHANNEL, STRATEGY_GROUP, STRATEGY_BLOCK, STRATEGY_TOKEN, STRATEGY_TENSOR_GROUP,
    STRATEGY_ATTN_HEAD
};
enum quant_dynamic { DYNAMIC_NO, DYNAMIC_YES, DYNAMIC_LOCAL };

/* `weights` or `input_activations`, with the defaults for what is left out. */
struct quant_args {
    bool is_there;
    int64_t bits, group;       /* group 0: null; -1: a row */
    int64_t block[2];
    bool is_float, is_symmetric, has_u8_scale, reorders;
    enum quant_strategy strategy;
    enum quant_dynamic dynamic;
};

struct quant_group {
    const char *name, *format; /* format: its own, else the overall one; NULL: none */
    const char **targets;
    size_t n_targets;
    struct quant_args weights, input;
    struct scheme scheme;      /* what servers make of it */
};

struct quant {
    bool is_there;             /* there is a quantization_config of compressed-tensors */
    bool is_complete;          /* and all that decides schemes could be read */
    bool has_cache_scales;     /* kv_cache_scheme is not null */
    struct quant_group *groups;
    size_t n_groups;
    const char **ignore;
    size_t n_ignore;
};

/* `config` is that of the directory, any JSON. Texts go to the arena. False when memory is out. */
bool quant_read(struct quant *q, const json_t *config, struct arena *arena, struct report *r, struct err *e) ERR_CHECK;
/* Which scheme servers take for a group (export-formats 4); `why` says what is missing when it is OTHER or NONE. */
struct scheme quant_scheme(const struct quant_group *g, const char **why);

#endif
