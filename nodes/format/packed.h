#ifndef NODES_FORMAT_PACKED_H
#define NODES_FORMAT_PACKED_H
/* A rendering as kernels see it: its parts as tensors on their device, for kernels->unpack and kernels->encode. */
#include "nodes/format/format.h"

/* Tensors for an [n,k] matrix in format `f`, uninitialised. On failure nothing is left. */
bool packed_new(struct queue *q, const struct format *f, int64_t n, int64_t k, enum dtype source,
                struct packed_matrix *out, struct err *e) ERR_CHECK;
void packed_free(struct queue *q, struct packed_matrix *p); /* a zeroed one is fine */
/* A rendering for kernels to read: its own parts on the host, a copy on an accelerator. packed_free lets go of either;
 * the rendering must outlive it. */
bool packed_open(struct queue *q, const struct rendering *r, struct packed_matrix *out, struct err *e) ERR_CHECK;
/* Its own parts, on the host, which packed_free leaves alone. */
struct packed_matrix packed_borrow(const struct rendering *r);
/* Rows [first, first + n) of a matrix as one of their own, which borrows its parts; what belongs to the whole matrix is
 * shared. `first` is a multiple of the rows of the grid's blocks, and so is n unless it ends at the last row. */
struct packed_matrix packed_rows(const struct packed_matrix *p, int64_t first, int64_t n);
/* Bytes that packed_new takes. */
uint64_t packed_bytes(const struct format *f, int64_t n, int64_t k, enum dtype source);
/* Between the parts of a rendering in host memory and those of `p`, which was made for its format and shape. */
bool packed_upload(struct queue *q, const struct rendering *r, struct packed_matrix *p, struct err *e) ERR_CHECK;
bool packed_download(struct queue *q, const struct packed_matrix *p, struct rendering *r, struct err *e) ERR_CHECK;

#endif
