#include "nodes/format/packed.h"

#include <string.h>

bool packed_new(struct queue *q, const struct format *f, int64_t n, int64_t k, enum dtype source,
                struct packed_matrix *out, struct err *e)
{
    struct format_part parts[FORMAT_PARTS];
    struct packed_matrix p = {.code = f->code, .n = n, .k = k};
    int count = f->parts(n, k, source, parts) - f->stores_shape; /* kernels need no weight_shape */
    for (int i = 0; i < count; i++)
        if (!q->k->tensor_new(q, &p.part[i], parts[i].dtype, parts[i].rank, parts[i].shape, e)) {
            packed_free(q, &p);
            return false;
        }
    *out = p;
    return true;
}

void packed_free(struct queue *q, struct packed_matrix *p)
{
    for (size_t i = 0; i < sizeof p->part / sizeof *p->part; i++)
        q->k->tensor_free(q, &p->part[i]);
    memset(p, 0, sizeof *p);
}

uint64_t packed_bytes(const struct format *f, int64_t n, int64_t k, enum dtype source)
{
    struct format_part parts[FORMAT_PARTS];
    int count = f->parts(n, k, source, parts);
    uint64_t bytes = 0;
    for (int i = 0; i < count; i++)
        bytes += format_part_bytes(&parts[i]);
    return bytes;
}

static size_t part_bytes(const struct tensor *t) { return (size_t)tensor_count(t) * dtype_bytes(t->dtype); }

bool packed_upload(struct queue *q, const struct rendering *r, struct packed_matrix *p, struct err *e)
{
    for (int i = 0; i < FORMAT_PARTS && p->part[i].data; i++)
        if (!q->k->upload(q, &p->part[i], r->part[i], part_bytes(&p->part[i]), e))
            return false;
    return true;
}

bool packed_download(struct queue *q, const struct packed_matrix *p, struct rendering *r, struct err *e)
{
    for (int i = 0; i < FORMAT_PARTS && p->part[i].data; i++)
        if (!q->k->download(q, r->part[i], &p->part[i], part_bytes(&p->part[i]), e))
            return false;
    return true;
}
