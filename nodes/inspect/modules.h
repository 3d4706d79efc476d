#ifndef NODES_INSPECT_MODULES_H
#define NODES_INSPECT_MODULES_H
/* The tensors of a checkpoint by the modules that they belong to, and the modules by what servers fuse. Nothing here
 * knows an architecture: names' endings tell (export-formats 5 and 6). */
#include "nodes/inspect/files.h"
#include "nodes/inspect/match.h"

/* Tensors of a module that are known by name; all others are only listed. */
enum param {
    PARAM_WEIGHT, PARAM_PACKED, PARAM_SCALE, PARAM_GLOBAL_SCALE, PARAM_INPUT_GLOBAL_SCALE, PARAM_SHAPE, PARAM_BIAS,
    PARAM_ZERO_POINT, PARAM_G_IDX, PARAM_INPUT_SCALE, PARAM_INPUT_ZERO_POINT, PARAM_SCALE_INV, N_PARAMS
};

struct module {
    const char *name;                        /* "model.layers.0.mlp.down_proj" */
    const struct st_entry *param[N_PARAMS];  /* NULL: it has none */
    const struct st_entry **tensors;         /* all of them, by name; in the arena */
    size_t n_tensors;
    bool is_linear;                          /* has a matrix, and is no table of embeddings */
    bool is_embedding;
    int64_t n, k;                            /* out_features, in_features; 0 when not linear or not known */
    struct scheme claimed;                   /* by quantization_config, as the server resolves it */
    struct scheme stored;                    /* by its tensors */
    bool is_whole;                           /* exactly the tensors of `stored`, with their types and shapes */
    size_t unit;                             /* index; only of linear modules */
    int64_t expert;                          /* its number among a layer's experts; -1: none */
    uint64_t bytes;                          /* of all its tensors but the bias */
};

enum unit_kind { UNIT_SINGLE, UNIT_FUSED, UNIT_EXPERTS };

/* Modules that servers keep as one. */
struct module_unit {
    const char *name;          /* "model.layers.0.self_attn.qkv_proj", ".....mlp.experts", or the module's own */
    const char *server_class;  /* "QKVParallelLinear" */
    enum unit_kind kind;
    size_t *modules;           /* indices; of a fused unit in the order of its shards, else by name; in the arena */
    size_t n_modules;
};

struct modules {
    struct arena arena;
    struct module *list;       /* by name, numbers in it by value; mem_* */
    size_t n;
    struct module_unit *units; /* in the order of their first module; mem_* */
    size_t n_units;
    bool is_vision;            /* names are those of a vision-language model: model.language_model. */
};

bool modules_new(struct modules *m, const struct files *f, struct err *e) ERR_CHECK;
void modules_free(struct modules *m);
/* NULL when there is none of that name. */
struct module *modules_find(const struct modules *m, const char *name);
/* The last part of a module's name. */
const char *module_last(const char *name);
/* What a module's tensors make of it, given what is claimed: stored, is_whole, n, k. Reads weight_shape. */
void module_classify(struct module *x, const struct files *f);
/* Is a unit, its modules being classified, in the bits per parameter? What every writer leaves as it is, is not: a
 * plain head or router, vision, audio and the drafter. */
bool module_unit_counts(const struct modules *m, const struct module_unit *u);
const char *param_name(enum param p);
/* Order of names in which numbers count by their value. */
int natural_order(const char *a, const char *b);

#endif
