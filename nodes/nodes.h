#ifndef NODES_NODES_H
#define NODES_NODES_H
/* The table of node types. A new type is one file in this folder and one line in nodes.c. */
#include "engine/node.h"

/* NULL-terminated, in the order of the pipeline. */
extern const struct node_class *const node_table[];

extern const struct node_class node_model, node_corpus, node_rotate, node_teacher, node_hessian, node_quantize,
    node_rank, node_probe, node_qubo, node_frontier, node_measure, node_select, node_polish, node_confirm, node_export,
    node_verify, node_allocate, node_evolve, node_sample, node_correlate;

#endif
