/* Factors of symmetric matrices through cuSOLVER, which a queue starts when it is first asked for one. The library
 * counts in columns: our lower triangle by rows is its upper one, of which it makes U, a = U^T U, and U by its columns
 * is L by our rows. */
#include "engine/base/mem.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/library.h"
#include "kernels/shape.h"

struct solver {
    const struct cusolver *library;
    void *handle, *params;
};

static bool solver_ok(const struct queue *q, int status, const char *what, struct err *e)
{
    return status == 0 || err_set(e, ERR_DEVICE, "cuda:%d: cuSOLVER: %s: status %d", q->device, what, status);
}

void cuda_solver_free(struct solver *s)
{
    if (!s)
        return;
    if (s->params)
        (void)s->library->cusolverDnDestroyParams(s->params);
    if (s->handle)
        (void)s->library->cusolverDnDestroy(s->handle);
    mem_free(s);
}

static bool start(struct queue *q, struct err *e)
{
    struct cuda_queue *c = cuda_queue(q);
    struct solver *s;
    if (c->solver)
        return true;
    const struct cusolver *library = library_cusolver(e);
    if (!library)
        return err_context(e, "cuda:%d", q->device);
    if (!mem_new(&s, 1, e))
        return false;
    s->library = library;
    if (!solver_ok(q, library->cusolverDnCreate(&s->handle), "cannot start", e) ||
        !solver_ok(q, library->cusolverDnSetStream(s->handle, c->stream), "stream", e) ||
        !solver_ok(q, library->cusolverDnSetDeterministicMode(s->handle, CUSOLVER_DETERMINISTIC), "mode", e) ||
        !solver_ok(q, library->cusolverDnCreateParams(&s->params), "parameters", e)) {
        cuda_solver_free(s);
        return false;
    }
    c->solver = s;
    return true;
}

/* *info: 0, or the order of the first minor that is not positive. */
static bool factor(struct queue *q, double *a, int64_t k, struct cuda_room *work, void **host, int *info, struct err *e)
{
    struct cuda_queue *c = cuda_queue(q);
    const struct solver *s = c->solver;
    size_t device_bytes = 0, host_bytes = 0;
    int status = s->library->cusolverDnXpotrf_bufferSize(s->handle, s->params, CUBLAS_FILL_MODE_UPPER, k, CUDA_R_64F, a,
                                                         k, CUDA_R_64F, &device_bytes, &host_bytes);
    if (!solver_ok(q, status, "working memory", e) ||
        !cuda_room(q, work, device_bytes + 1, e) || !cuda_room(q, &c->small, sizeof *info, e) ||
        !mem_raw_bytes(host, host_bytes + 1, 1, e))
        return false;
    status = s->library->cusolverDnXpotrf(s->handle, s->params, CUBLAS_FILL_MODE_UPPER, k, CUDA_R_64F, a, k, CUDA_R_64F,
                                          work->data, device_bytes, *host, host_bytes, c->small.data);
    return solver_ok(q, status, "cholesky", e) &&
           cuda_ok(q, cudaMemcpyAsync(info, c->small.data, sizeof *info, cudaMemcpyDeviceToHost, c->stream), "cholesky",
                   e) &&
           cuda_finish(q, e);
}

bool cuda_cholesky(struct queue *q, struct tensor *a, struct err *e)
{
    struct cuda_room work = {0};
    void *host = NULL;
    int info = 0;
    int64_t k = a->shape[0];
    if (!shape_matrix(q, "cholesky", "a", a, DTYPE_F64, k, k, e))
        return false;
    if (k == 0)
        return true;
    bool ok = start(q, e) && factor(q, a->data, k, &work, &host, &info, e);
    cuda_room_free(q, &work);
    mem_free(host);
    if (ok && info > 0)
        return shape_not_positive(k, info, e);
    return ok && (info == 0 || err_set(e, ERR_BUG, "cuSOLVER refuses argument %d of its factorization", -info));
}
