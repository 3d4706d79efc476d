#ifndef NODES_MODEL_ROPE_H
#define NODES_MODEL_ROPE_H
/* Rotary position tables (model-architectures 1.3): default, linear and llama3 scaling, computed in f32 as the
 * reference implementation does. */
#include "nodes/model/model.h"

/* inv_freq[i], i < head_dim / 2, after scaling. */
float rope_frequency(const struct model_config *c, int i);
/* cosine and sine [window, head_dim / 2] for positions 0 .. window-1. */
void rope_tables(const struct model_config *c, int window, float *cosine, float *sine);

#endif
