#ifndef NODES_INSPECT_MATCH_H
#define NODES_INSPECT_MATCH_H
/* Which group of a quantization_config a linear layer belongs to: in vLLM's order and under vLLM's names, and in
 * compressed-tensors' (export-formats 3.1 and 6). */
#include "nodes/inspect/quant.h"

/* Names of layers: as in the checkpoint, and as vLLM calls them in a vision-language model and in its text-only
 * class. */
enum name_form { FORM_CHECKPOINT, FORM_VISION, FORM_TEXT, N_FORMS };

struct matcher;

enum match_kind { MATCH_NONE, MATCH_IGNORED, MATCH_GROUP, MATCH_SPLIT /* `ignore` has some shards of a fused layer */ };

struct match {
    enum match_kind kind;
    size_t group;        /* index into quant.groups */
    const char *target;  /* that decided; borrowed */
};

#define MOST_SHARDS 4

/* What is to be looked up: a layer as the server has it. */
struct match_query {
    const char *name;                    /* of the server's layer: fused, where it is */
    const char *shards[MOST_SHARDS];     /* what is fused in it, as the checkpoint splits it; none for a single layer */
    int n_shards;
    const char *server_class, *class;    /* "QKVParallelLinear"; "Linear" */
};

/* Texts are borrowed from `q`. Patterns that cannot be compiled are findings of check 9 and match nothing. */
bool matcher_new(struct matcher **out, const struct quant *q, struct report *r, struct err *e) ERR_CHECK;
/* In vLLM's order; the names of the query are in that form already. */
struct match matcher_server(struct matcher *m, enum name_form form, const struct match_query *x);
/* In compressed-tensors' order, for a single layer by its name in the checkpoint. */
struct match matcher_ct(struct matcher *m, const char *name, const char *class);
/* The groups that have a target which is this name or matches it, classes left aside: the first two of them, and their
 * number. *ignored: `ignore` has the name, *exactly: in full. */
int matcher_groups(struct matcher *m, const char *name, struct match found[2], bool *ignored, bool *exactly);
/* Targets that nothing has matched so far, and patterns that gave up, as findings of checks 2 and 9. False when memory
 * was out for a match. */
bool matcher_finish(const struct matcher *m, struct report *r, struct err *e) ERR_CHECK;
void matcher_free(struct matcher *m);

/* The name under which vLLM has a checkpoint's layer, into `out`. */
void form_name(enum name_form form, const char *name, char *out, size_t size);

#endif
