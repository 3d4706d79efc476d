#ifndef NODES_FORMAT_SIGNROUND_H
#define NODES_FORMAT_SIGNROUND_H
/* What signround takes while it runs. */
#include "nodes/format/rounding.h"

/* Bytes for a matrix of k columns; what kernels->matmul needs aside. */
uint64_t signround_bytes(const struct format *f, int64_t k, int threads);

#endif
