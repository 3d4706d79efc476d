#ifndef NODES_FORMAT_PACKED_H
#define NODES_FORMAT_PACKED_H
/* A rendering on an accelerator: its parts as tensors there, for kernels->unpack and kernels->encode. */
#include "nodes/format/format.h"

/* Tensors for an [n,k] matrix in format `f`, uninitialised. On failure nothing is left. */
bool packed_new(struct queue *q, const struct format *f, int64_t n, int64_t k, enum dtype source,
                struct packed_matrix *out, struct err *e) ERR_CHECK;
void packed_free(struct queue *q, struct packed_matrix *p); /* a zeroed one is fine */
/* Bytes that packed_new takes. */
uint64_t packed_bytes(const struct format *f, int64_t n, int64_t k, enum dtype source);
/* Between the parts of a rendering in host memory and those of `p`, which was made for its format and shape. */
bool packed_upload(struct queue *q, const struct rendering *r, struct packed_matrix *p, struct err *e) ERR_CHECK;
bool packed_download(struct queue *q, const struct packed_matrix *p, struct rendering *r, struct err *e) ERR_CHECK;

#endif
