#ifndef NODES_MODEL_MODEL_H
#define NODES_MODEL_MODEL_H
/* A Hugging Face model directory, opened: configuration, tensors, and the tables of matrices and units. Opening reads
 * and checks headers only; weights are read with pread when asked for (never mapped, so a truncated file is an error
 * and not a signal). The same type opens a compressed-tensors directory that scout exported: then matrices have stored
 * formats. Immutable once open; every function may be called from any thread. */
#include <stdio.h>

#include "engine/node.h"
#include "nodes/format/format.h"
#include "nodes/model/safetensors.h"

enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 };

struct model_config {
    char model_type[32];                 /* "llama", "mistral" */
    int vocab, hidden, intermediate, layers, heads, kv_heads, head_dim, max_positions;
    float eps;
    double theta;
    enum rope_type rope;
    double rope_factor, rope_low, rope_high, rope_original; /* llama3 and linear */
    bool tied, attention_bias, mlp_bias;
};

/* What a unit's input activation is, in a layer. The forward pass knows where each comes from. */
enum unit_role { ROLE_QKV, ROLE_O, ROLE_GATE_UP, ROLE_DOWN, ROLE_HEAD, ROLE_COUNT };

struct matrix {
    const char *name;    /* module name: "model.layers.0.self_attn.q_proj" (the tensor is <name>.weight) */
    int unit;
    int64_t n, k;        /* out_features, in_features */
    int64_t row;         /* first row inside the unit's fused matrix */
    enum dtype dtype;    /* of the source */
    bool has_bias;       /* config.json says so */
    const struct format *stored; /* the format a compressed directory keeps it in; formats' bf16 for plain */
};

struct unit {
    const char *name;    /* "model.layers.0.self_attn.qkv_proj" */
    enum unit_role role;
    int layer;           /* ordinal from 0 */
    int first, count;    /* its matrices: model->matrices[first .. first + count) */
    int64_t n, k;        /* of the fused matrix: sum of n; common k */
    uint64_t parameters; /* n * k */
};

struct model {
    const char *path;
    struct model_config config;
    struct safetensors *files;   /* all tensors of all shards */
    struct matrix *matrices;     /* layer by layer: q k v o gate up down; and lm_head, if it is a unit */
    struct unit *units;          /* layer by layer: qkv, o, gate_up, down; and lm_head, in a layer of its own */
    int n_matrices, n_units;
    int head_unit;               /* its index; -1: the head is no unit */
    int n_unused_biases;         /* tensors that config.json denies */
    struct arena arena;
};

/* `dir` has config.json and model.safetensors or model.safetensors.index.json. Every mistake names the file and what
 * would be right. */
bool model_open(struct model **out, const char *dir, struct err *e) ERR_CHECK;
/* Is the head a unit? It is in any case where it is stored packed, as model_open sees it. HEAD_UNIT: it always is;
 * ERR_INPUT when it is the embedding, of which servers have only one copy. */
enum model_head { HEAD_AS_STORED, HEAD_UNIT };
bool model_open_as(struct model **out, const char *dir, enum model_head head, struct err *e) ERR_CHECK;
void model_close(struct model *m); /* NULL is fine */

/* Models in a graph. MODEL_TYPES, for a port's `types`: the nodes whose result is a model, `model` as it was given, or
 * a directory that `rotate` wrote. */
#define MODEL_TYPES (const char *const[]){"model", "rotate", NULL}
/* Where the model behind an input port lies. ERR_INPUT when its files are not what was hashed, or written, any more. */
bool model_input_path(const struct node *n, const char *port, const char **out, struct err *e) ERR_CHECK;
/* The model behind an input port of a running node, with its head a unit if its result says so. A quantized one is
 * refused. */
bool model_open_input(struct model **out, const struct node *n, const char *port, struct err *e) ERR_CHECK;
/* What the result behind the port says of the head. */
enum model_head model_input_head(const struct node *n, const char *port);
/* A directory that is not quantized. */
bool model_open_original(struct model **out, const char *path, enum model_head head, struct err *e) ERR_CHECK;
/* The model of the node of that key among those that `n` depends on, with a plain head. */
bool model_open_upstream(struct model **out, const struct node *n, const struct key *key, struct err *e) ERR_CHECK;
/* Was the model of key `model`, a node that `n` depends on, made by rotating the one of key `source`, in one step or
 * several? False when they are the same. */
bool model_is_rotated(const struct node *n, const struct key *model, const struct key *source, bool *out,
                      struct err *e) ERR_CHECK;

/* Weight of a matrix widened to f32, or decoded if it is stored packed: out [n,k]. NaN or infinity is ERR_NUMERIC
 * naming tensor, row and column. */
bool model_read_matrix(const struct model *m, int matrix, float *out, struct err *e) ERR_CHECK;
/* Any tensor of the source by name ("model.norm.weight") as f32; its element count must be `count`. */
bool model_read_tensor(const struct model *m, const char *name, int64_t count, float *out, struct err *e) ERR_CHECK;
/* The rendering of a matrix in a compressed directory, parts allocated with mem_* (model_rendering_free). */
bool model_read_rendering(const struct model *m, int matrix, struct rendering *out, struct err *e) ERR_CHECK;
void rendering_free(struct rendering *r);
/* input_global_scale of a unit in a compressed directory. */
bool model_input_scale(const struct model *m, int unit, float *out, struct err *e) ERR_CHECK;
/* What nodes call the part of their result that is about one layer. */
static inline void layer_part(int layer, char out[32]) { snprintf(out, 32, "layer.%03d", layer); }
/* Total elements of all matrices: the denominator of bpp. */
uint64_t model_unit_parameters(const struct model *m);
/* Elements of everything that the model computes with: units, embedding, head if it is not tied, norms, biases. */
uint64_t model_parameters(const struct model *m);

#endif
