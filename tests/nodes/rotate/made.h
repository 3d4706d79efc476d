#ifndef TESTS_NODES_ROTATE_MADE_H
#define TESTS_NODES_ROTATE_MADE_H
/* Small Llama models of made-up weights, written as Hugging Face directories. */
#include "engine/base/dtype.h"
#include "tests/check.h"

/* What the linear layers' weights are like. */
enum made_weights {
    MADE_RANDOM, /* near normal */
    MADE_EXACT,  /* numbers that nvfp4 holds exactly: every rotation makes them worse */
    MADE_BETWEEN, /* in every 16 one 6 and else 5, which e2m1 lacks: every rotation makes them better */
    MADE_VALUES  /* so are v and o, and the others exact */
};

struct made {
    int hidden, intermediate, layers, heads, kv_heads, head_dim, vocab;
    bool tied, biases;
    enum dtype dtype; /* f32 or bf16 */
    enum made_weights weights[8]; /* of each layer */
    int shards;       /* files; 0: one */
};

/* Make `folder`, with config.json, weights, tokenizer.json and a file that is none of the model's ("notes.txt"). Norms
 * are 1 in models that are not random throughout. */
void made_write(const struct made *m, const char *folder);

#endif
