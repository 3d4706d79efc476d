/* The part of cuSOLVER that kernels/cuda/solver.c calls, as the manual defines it: column-major, so a wrong triangle in
 * solver.c gives a wrong factor here too. */
#include <math.h>
#include <stdlib.h>

#include "kernels/cuda/library.h"
#include "tests/cuda/emulate_control.h"

#if __has_include(<cusolverDn.h>)
#include <cusolverDn.h>
_Static_assert(CUSOLVER_DETERMINISTIC == (int)CUSOLVER_DETERMINISTIC_RESULTS, "as the header has it");
_Static_assert(sizeof(cusolverStatus_t) == sizeof(int) && CUSOLVER_STATUS_SUCCESS == 0, "as the header has it");
_Static_assert(sizeof(cusolverDnHandle_t) == sizeof(void *) && sizeof(cusolverDnParams_t) == sizeof(void *),
               "pointers");
/* The header's functions with its names for the types that we call int and void *. */
_Static_assert(
    __builtin_types_compatible_p(
        __typeof__(cusolverDnXpotrf),
        cusolverStatus_t(cusolverDnHandle_t, cusolverDnParams_t, cublasFillMode_t, int64_t, cudaDataType, void *,
                         int64_t, cudaDataType, void *, size_t, void *, size_t, int *)),
    "arguments of cusolverDnXpotrf");
_Static_assert(
    __builtin_types_compatible_p(
        __typeof__(cusolverDnXpotrf_bufferSize),
        cusolverStatus_t(cusolverDnHandle_t, cusolverDnParams_t, cublasFillMode_t, int64_t, cudaDataType, const void *,
                         int64_t, cudaDataType, size_t *, size_t *)),
    "arguments of cusolverDnXpotrf_bufferSize");
#endif

#define INVALID 3 /* CUSOLVER_STATUS_INVALID_VALUE */
#define DEVICE_BYTES 1000
#define HOST_BYTES 100

struct handle {
    cudaStream_t stream;
    int mode;
};

static int create(void **handle)
{
    *handle = calloc(1, sizeof(struct handle));
    return *handle ? 0 : INVALID;
}
static int destroy(void *handle)
{
    free(handle);
    return 0;
}
static int set_stream(void *handle, cudaStream_t stream)
{
    ((struct handle *)handle)->stream = stream;
    return 0;
}
static int set_mode(void *handle, int mode)
{
    ((struct handle *)handle)->mode = mode;
    return 0;
}
static int create_params(void **params)
{
    *params = malloc(1);
    return *params ? 0 : INVALID;
}

static int buffer_size(void *handle, void *params, cublasFillMode_t part, int64_t n, cudaDataType type, const void *a,
                       int64_t ld, cudaDataType compute, size_t *device, size_t *host)
{
    if (!handle || !params || !a || part != CUBLAS_FILL_MODE_UPPER || n < 1 || ld < n || type != CUDA_R_64F ||
        compute != CUDA_R_64F)
        return INVALID;
    *device = DEVICE_BYTES;
    *host = HOST_BYTES;
    return 0;
}

/* a = U^T U of the upper triangle, column-major. The rest is neither read nor written. */
static int factor(double *a, int64_t n, int64_t ld)
{
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i <= j; i++) {
            double sum = a[i + j * ld];
            for (int64_t k = 0; k < i; k++)
                sum -= a[k + i * ld] * a[k + j * ld];
            if (i == j && !(sum > 0.0))
                return (int)j + 1;
            a[i + j * ld] = i == j ? sqrt(sum) : sum / a[i + i * ld];
        }
    return 0;
}

static int potrf(void *handle, void *params, cublasFillMode_t part, int64_t n, cudaDataType type, void *a, int64_t ld,
                 cudaDataType compute, void *device, size_t device_bytes, void *host, size_t host_bytes, int *info)
{
    size_t wanted, wanted_host;
    const struct handle *h = handle;
    if (buffer_size(handle, params, part, n, type, a, ld, compute, &wanted, &wanted_host) != 0 || !h->stream ||
        h->mode != CUSOLVER_DETERMINISTIC || !device || !host || device_bytes < wanted || host_bytes < wanted_host)
        return INVALID;
    if (!emulate_tick())
        *info = factor(a, n, ld);
    return 0;
}

const struct cusolver *library_cusolver(struct err *e)
{
    static const struct cusolver table = {
        .cusolverDnCreate = create, .cusolverDnDestroy = destroy, .cusolverDnSetStream = set_stream,
        .cusolverDnSetDeterministicMode = set_mode, .cusolverDnCreateParams = create_params,
        .cusolverDnDestroyParams = destroy, .cusolverDnXpotrf_bufferSize = buffer_size, .cusolverDnXpotrf = potrf};
    if (getenv("EMULATE_NO_SOLVER")) {
        err_set(e, ERR_DEVICE, "cannot load libcusolver (emulated); install it");
        return NULL;
    }
    return &table;
}
