#ifndef NODES_MODEL_FORWARD_H
#define NODES_MODEL_FORWARD_H
/* The forward pass of the Llama family, written once against the kernel table (model-architectures 1 and 2). It goes
 * one layer at a time over a residual stream x [rows, hidden], rows = windows * window, so that callers decide what
 * streams: a teacher, a calibration pass, or many lanes of candidates. Weights of a layer come as panels, made by
 * weights_pack. */
#include "engine/node.h"
#include "nodes/model/model.h"

#define LAYER_UNITS 4 /* ROLE_QKV, ROLE_O, ROLE_GATE_UP, ROLE_DOWN, in the order of the forward pass */

/* One unit as the forward pass wants it: panels, or its native form. The queue's; unit_weights_free. */
struct unit_weights {
    struct tensor panels;        /* [N, K] in the numeric mode */
    struct native_matrix native; /* where the queue's user wants it and the device has it; then there are no panels */
    enum act_rule act;    /* what happens to its input */
    float act_scale;      /* static global scale of ACT_NVFP4 */
};

/* What does not change from candidate to candidate. Open on one queue; use from one thread at a time. */
struct forward {
    const struct model *model;
    struct queue *q;
    enum dtype mode;               /* DTYPE_F32 or DTYPE_BF16: the numeric mode */
    struct attention_shape shape;
    struct tensor embedding;       /* [vocab, hidden], source dtype */
    struct tensor head;            /* panels [vocab, hidden], of a plain head or a unit that is stored plain */
    struct tensor final_norm;      /* [hidden] f32 */
    struct tensor *norms;          /* [layer * 2]: input, post attention */
    struct tensor *biases;         /* [unit]: zeroed when the unit has none */
    struct tensor cosine, sine;    /* [window, head_dim / 2] f32 */
    int64_t chunk;                 /* rows that go through a layer at a time: whole windows */
    struct tensor work[6];         /* h, qkv, attention, gate_up, product, delta: [chunk, ...] */
};
/* Reads embedding, norms, biases and head. `window` is the length of a sequence. */
bool forward_open(struct forward *f, const struct model *m, struct queue *q, enum dtype mode, int window,
                  struct err *e) ERR_CHECK;
void forward_close(struct forward *f);
/* The head of `m` alone, as panels [vocab, hidden] on the queue's device (tensor_free): for states that another model's
 * forward pass is compared with. And the memory that it takes, added to *out. */
bool forward_head(struct queue *q, const struct model *m, enum dtype mode, struct tensor *out, struct err *e) ERR_CHECK;
void forward_head_needs(const struct kernels *k, const struct model *m, enum dtype mode, struct needs *out);
/* Adds `bytes` of tensors, which lie where `k` keeps them. */
void needs_tensors(const struct kernels *k, struct needs *out, uint64_t bytes);
/* Rows that go through a layer at a time: whole windows. */
int64_t forward_chunk(const struct kernels *k, int window);
/* Adds the memory that forward_open takes, on the host and on the device of `k`. */
void forward_needs(const struct kernels *k, const struct model *m, enum dtype mode, int window, struct needs *out);

/* Called with the input of each unit before it is fake-quantized; may be NULL. x is [rows, K]. */
typedef bool (*forward_observer)(void *context, enum unit_role role, const struct tensor *x, struct err *e);

/* x [rows, hidden] = embedding of ids (host memory, rows of them, all below vocab). */
bool forward_embed(struct forward *f, const int32_t *ids, struct tensor *x, struct err *e) ERR_CHECK;
/* x through one layer, in place. */
bool forward_layer(struct forward *f, int layer, const struct unit_weights w[LAYER_UNITS], struct tensor *x,
                   forward_observer observe, void *context, struct err *e) ERR_CHECK;
/* y [rows, N] = x [rows, K] through one unit, as its format sees it, with its bias. x is fake-quantized in place where
 * the format asks for it. */
bool forward_linear(struct forward *f, int unit, const struct unit_weights *w, struct tensor *x, struct tensor *y,
                    struct err *e) ERR_CHECK;
/* states = final norm of x; states may be x. */
bool forward_final(struct forward *f, const struct tensor *x, struct tensor *states, struct err *e) ERR_CHECK;

/* The weights of a unit from the renderings of its matrices (r[0 .. unit->count), rows in order, one format). What the
 * format does to the input is left as it is in *out. */
bool weights_pack(struct queue *q, const struct model *m, int unit, const struct rendering *r, enum dtype mode,
                  struct unit_weights *out, struct err *e) ERR_CHECK;
/* The same from packed matrices that are on the queue's device already; `rule` is the format's. */
bool weights_unpack(struct queue *q, const struct model *m, int unit, const struct packed_matrix *packed,
                    enum act_rule rule, enum dtype mode, struct unit_weights *out, struct err *e) ERR_CHECK;
void unit_weights_free(struct queue *q, struct unit_weights *w); /* a zeroed one is fine; clears it */
static inline bool unit_weights_there(const struct unit_weights *w) { return w->panels.data || w->native.codes.data; }
/* The unit as the model directory stores it: plain weights with no activation rule, or packed ones with their
 * format's. */
bool weights_stored(struct queue *q, const struct model *m, int unit, enum dtype mode, struct unit_weights *out,
                    struct err *e) ERR_CHECK;
/* The parameter `numeric` of every node that computes with a model's weights. */
#define NUMERIC_PARAM \
    {.name = "numeric", .type = PARAM_ENUM, .fallback = "fp32", \
     .choices = (const char *const[]){"fp32", "bf16", "native", NULL}, \
     .help = "arithmetic of the matrix products, of teacher and candidate alike; native: bf16, and where an " \
             "accelerator has them products in the formats' own 8 and 4 bits"}
/* DTYPE_F32 for "fp32", DTYPE_BF16 for the others; numeric_begin also tells the queue whether to use native
 * products. */
enum dtype numeric_mode(const char *name);
enum dtype numeric_begin(struct queue *q, const char *name);
/* The text that goes into keys. ERR_INPUT when these kernels do not have the mode. */
bool numeric_text(const struct kernels *k, const char *name, const char **out, struct err *e) ERR_CHECK;
/* The `numerics` of every node with NUMERIC_PARAM. */
static inline bool numeric_of_node(const struct node *n, const char **out, struct err *e)
{
    return numeric_text(node_kernels(n), node_string(n, "numeric"), out, e);
}

#endif
