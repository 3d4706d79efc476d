#include "nodes/nodes.h"

const struct node_class *const node_table[] = {
    &node_model, &node_corpus, &node_rotate, &node_teacher, &node_hessian, &node_quantize, &node_rank, &node_probe,
    &node_qubo, &node_frontier, &node_measure, &node_select, &node_polish, &node_confirm, &node_export, &node_verify,
    &node_allocate, &node_evolve, &node_sample, &node_correlate,
    NULL,
};
