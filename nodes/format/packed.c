#include "nodes/format/packed.h"

#include <string.h>

/* The kernels' parts are the format's first ones: they need no weight_shape. */
static int tensors(const struct format *f, int64_t n, int64_t k, enum dtype source,
                   struct format_part parts[FORMAT_PARTS])
{
    return f->parts(n, k, source, parts) - f->stores_shape;
}

bool packed_new(struct queue *q, const struct format *f, int64_t n, int64_t k, enum dtype source,
                struct packed_matrix *out, struct err *e)
{
    struct format_part parts[FORMAT_PARTS];
    struct packed_matrix p = {.code = f->code, .n = n, .k = k};
    int count = tensors(f, n, k, source, parts);
    for (int i = 0; i < count; i++)
        if (!q->k->tensor_new(q, &p.part[i], parts[i].dtype, parts[i].rank, parts[i].shape, e)) {
            packed_free(q, &p);
            return false;
        }
    *out = p;
    return true;
}

struct packed_matrix packed_borrow(const struct rendering *r)
{
    struct format_part parts[FORMAT_PARTS];
    struct packed_matrix p = {.code = r->format->code, .n = r->n, .k = r->k};
    int count = tensors(r->format, r->n, r->k, r->source, parts);
    for (int i = 0; i < count; i++)
        p.part[i] = (struct tensor){.data = r->part[i], .dtype = parts[i].dtype, .device = TENSOR_HOST,
                                    .rank = parts[i].rank, .shape = {parts[i].shape[0], parts[i].shape[1]}};
    return p;
}

bool packed_open(struct queue *q, const struct rendering *r, struct packed_matrix *out, struct err *e)
{
    struct packed_matrix p = packed_borrow(r);
    if (q->k->on_device && !packed_new(q, r->format, r->n, r->k, r->source, &p, e))
        return false;
    if (q->k->on_device && !packed_upload(q, r, &p, e)) {
        packed_free(q, &p);
        return false;
    }
    *out = p;
    return true;
}

struct packed_matrix packed_rows(const struct packed_matrix *p, int64_t first, int64_t n)
{
    const struct grid *g = &weight_grid[p->code];
    struct packed_matrix rows = *p;
    rows.n = n;
    rows.part[0] = tensor_rows(&p->part[0], first, n);
    if (p->code != CODE_PLAIN)
        rows.part[1] = tensor_rows(&p->part[1], first / g->rows, grid_scale_rows(g, n));
    rows.part[2].owned = false;
    return rows;
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
