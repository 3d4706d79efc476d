/* Squares and energies of weight differences. The K x K product is the kernel table's; what is here prepares its panels
 * and takes the sums. */
#include "nodes/format/loss.h"

#include <math.h>

#include "engine/base/mem.h"

struct loss {
    struct queue *q;
    int64_t k;
    bool has_moment;
    struct tensor panels;       /* H, for kernels->matmul */
    struct tensor x, y;         /* [LOSS_ROWS, k] on an accelerator; on the CPU x is not used */
    float *product;             /* [LOSS_ROWS, k] d H, on the host */
    double squares[LOSS_ROWS], energies[LOSS_ROWS];
};

uint64_t loss_bytes(int64_t k, bool with_moment)
{
    uint64_t columns = (uint64_t)k, padded = (columns + 63) / 64 * 64;
    return with_moment ? padded * columns * sizeof(float) + 2 * LOSS_ROWS * columns * sizeof(float) : 0;
}

static bool pack_moment(struct loss *l, const float *moment, struct err *e)
{
    struct queue *q = l->q;
    size_t bytes = (size_t)(l->k * l->k) * sizeof *moment;
    if (!q->k->panels_new(q, &l->panels, l->k, l->k, DTYPE_F32, e))
        return false;
    struct tensor h = tensor_matrix((void *)moment, DTYPE_F32, l->k, l->k);
    if (q->device == TENSOR_HOST)
        return q->k->pack(q, &h, 0, &l->panels, e);
    bool ok = q->k->tensor_new(q, &h, DTYPE_F32, 2, (int64_t[]){l->k, l->k}, e) &&
              q->k->upload(q, &h, moment, bytes, e) && q->k->pack(q, &h, 0, &l->panels, e);
    if (h.owned)
        q->k->tensor_free(q, &h);
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
    int64_t shape[2] = {LOSS_ROWS, k};
    if (moment && (!pack_moment(l, moment, e) || !mem_raw(&l->product, (size_t)(LOSS_ROWS * k), e)))
        goto fail;
    if (moment && q->device != TENSOR_HOST &&
        (!q->k->tensor_new(q, &l->x, DTYPE_F32, 2, shape, e) || !q->k->tensor_new(q, &l->y, DTYPE_F32, 2, shape, e)))
        goto fail;
    *out = l;
    return true;
fail:
    loss_free(l);
    return false;
}

void loss_free(struct loss *l)
{
    if (!l)
        return;
    if (l->panels.owned)
        l->q->k->tensor_free(l->q, &l->panels);
    if (l->x.owned)
        l->q->k->tensor_free(l->q, &l->x);
    if (l->y.owned)
        l->q->k->tensor_free(l->q, &l->y);
    mem_free(l->product);
    mem_free(l);
}

/* product = d H; H is symmetric, so that the kernel's sum over k of d[t][k] * h[n][k] is the same. */
static bool multiply(struct loss *l, const float *d, int64_t n, struct err *e)
{
    struct queue *q = l->q;
    if (q->device == TENSOR_HOST) {
        struct tensor x = tensor_matrix((void *)d, DTYPE_F32, n, l->k);
        struct tensor y = tensor_matrix(l->product, DTYPE_F32, n, l->k);
        return q->k->matmul(q, &x, &l->panels, &y, e);
    }
    struct tensor x = tensor_rows(&l->x, 0, n), y = tensor_rows(&l->y, 0, n);
    size_t bytes = (size_t)(n * l->k) * sizeof *d;
    return q->k->upload(q, &x, d, bytes, e) && q->k->matmul(q, &x, &l->panels, &y, e) &&
           q->k->download(q, l->product, &y, bytes, e);
}

bool loss_add(struct loss *l, const float *d, int64_t n, double *square, double *energy, struct err *e)
{
    if (n > LOSS_ROWS)
        return err_set(e, ERR_BUG, "loss_add: %lld rows, at most %d", (long long)n, LOSS_ROWS);
    if (l->has_moment && !multiply(l, d, n, e))
        return false;
    int64_t k = l->k;
#pragma omp parallel for schedule(static) num_threads(l->q->threads)
    for (int64_t row = 0; row < n; row++) {
        const float *x = d + row * k, *y = l->has_moment ? l->product + row * k : NULL;
        double sum = 0.0, weighted = 0.0;
        for (int64_t i = 0; i < k; i++)
            sum += (double)x[i] * (double)x[i];
        for (int64_t i = 0; y && i < k; i++)
            weighted += (double)x[i] * (double)y[i];
        l->squares[row] = sum;
        l->energies[row] = y ? weighted : NAN;
    }
    for (int64_t row = 0; row < n; row++) {
        *square += l->squares[row];
        *energy += l->energies[row];
    }
    return true;
}

double loss_ratio(double part, double whole)
{
    if (isnan(part) || isnan(whole))
        return NAN;
    return part > 0.0 && whole > 0.0 ? part / whole : 0.0;
}
