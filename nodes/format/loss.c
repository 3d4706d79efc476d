/* Squares and energies of weight differences, by the kernels of the queue's device. */
#include "nodes/format/loss.h"

#include <math.h>

#include "engine/base/mem.h"

struct loss {
    struct queue *q;
    int64_t k;
    bool has_moment;
    struct tensor panels;       /* H, for kernels->matmul */
    struct tensor product;      /* [loss_rows, k]: d H */
};

uint64_t loss_bytes(const struct kernels *kernels, int64_t k, bool with_moment)
{
    uint64_t columns = (uint64_t)k, padded = (columns + 63) / 64 * 64;
    return with_moment ? (padded + (uint64_t)loss_rows(kernels)) * columns * sizeof(float) : 0;
}

/* The moment lies in host memory; a device gets a copy of it for as long as it is packed. */
static bool pack_moment(struct loss *l, const float *moment, struct err *e)
{
    struct queue *q = l->q;
    struct tensor h = tensor_matrix((void *)moment, DTYPE_F32, l->k, l->k);
    if (!q->k->panels_new(q, &l->panels, l->k, l->k, DTYPE_F32, e))
        return false;
    if (!q->k->on_device)
        return q->k->pack(q, &h, 0, &l->panels, e);
    struct tensor copy = {0};
    bool ok = q->k->tensor_new(q, &copy, DTYPE_F32, 2, h.shape, e) &&
              q->k->upload(q, &copy, moment, (size_t)(l->k * l->k) * sizeof *moment, e) &&
              q->k->pack(q, &copy, 0, &l->panels, e);
    q->k->tensor_free(q, &copy);
    return ok;
}

bool loss_new(struct loss **out, struct queue *q, const float *moment, int64_t k, struct err *e)
{
    struct loss *l;
    if (!mem_new(&l, 1, e))
        return false;
    l->q = q;
    l->k = k;
    l->has_moment = moment != NULL;
    if (moment && (!pack_moment(l, moment, e) ||
                   !q->k->tensor_new(q, &l->product, DTYPE_F32, 2, (int64_t[]){loss_rows(q->k), k}, e))) {
        loss_free(l);
        return false;
    }
    *out = l;
    return true;
}

void loss_free(struct loss *l)
{
    if (!l)
        return;
    l->q->k->tensor_free(l->q, &l->panels);
    l->q->k->tensor_free(l->q, &l->product);
    mem_free(l);
}

bool loss_add(struct loss *l, const struct tensor *d, double *square, double *energy, struct err *e)
{
    const struct kernels *k = l->q->k;
    if (d->shape[0] > loss_rows(k))
        return err_set(e, ERR_BUG, "loss_add: %lld rows, at most %lld", (long long)d->shape[0],
                       (long long)loss_rows(k));
    if (!l->has_moment) {
        *energy = NAN;
        return k->energy(l->q, d, NULL, square, energy, e);
    }
    struct tensor product = tensor_rows(&l->product, 0, d->shape[0]);
    return loss_product(l, l->q, d, &product, e) && k->energy(l->q, d, &product, square, energy, e);
}

/* H is symmetric, so that the kernel's sum over k of d[t][k] * h[n][k] is d H. */
bool loss_product(const struct loss *l, struct queue *q, const struct tensor *d, struct tensor *y, struct err *e)
{
    return q->k->matmul(q, d, &l->panels, y, e);
}

bool loss_product_part(const struct loss *l, struct queue *q, const struct tensor *d, int64_t first, struct tensor *y,
                       struct err *e)
{
    return q->k->matmul_part(q, d, &l->panels, first, y, e);
}

double loss_ratio(double part, double whole)
{
    if (isnan(part) || isnan(whole))
        return NAN;
    return part > 0.0 && whole > 0.0 ? part / whole : 0.0;
}
