#ifndef NODES_FORMAT_GPTQ_H
#define NODES_FORMAT_GPTQ_H
/* What gptq keeps of a unit between its matrices: the factors of its damped moments, a set per damping. */
#include <stdint.h>

struct queue;
struct factors;
struct rounding_options;

void factors_free(struct queue *q, struct factors *f); /* NULL is fine */
/* Most bytes that gptq has at a time for matrices of k columns, the factors among them. */
uint64_t gptq_bytes(const struct rounding_options *o, int64_t k, int threads);

#endif
