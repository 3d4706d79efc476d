#ifndef NODES_ROTATE_WRITE_H
#define NODES_ROTATE_WRITE_H
/* A rotated model as a Hugging Face directory: the tensors of the original, in as many files, of the same names and in
 * the same order. What no rotation touches is copied byte for byte, unless all weights are to have one dtype. */
#include "nodes/publish.h"
#include "nodes/rotate/basis.h"
#include "nodes/rotate/gate.h"

struct write_spec {
    struct node *node;         /* told of the progress */
    const struct basis *basis;
    const struct gate *gate;   /* what is rotated */
    bool keep_dtypes;          /* every tensor keeps its own .. */
    enum dtype dtype;          /* .. or all that the model computes with have this one: f32 or bf16 */
};

/* Is the head, which is the embedding in the original, a tensor of its own in what is written? */
bool write_unties(const struct write_spec *s);
/* Write config.json, weights, index and side files. */
bool write_model(const struct write_spec *s, struct publish *place, struct err *e) ERR_CHECK;
/* Bytes of the weights written, at most. */
uint64_t write_bytes(const struct model *m, bool keep_dtypes, enum dtype dtype, bool untie);
/* Memory of write_model beside the bases. */
uint64_t write_memory(const struct model *m);

#endif
