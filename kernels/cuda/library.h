#ifndef KERNELS_CUDA_LIBRARY_H
#define KERNELS_CUDA_LIBRARY_H
/* NVIDIA's libraries as far as this back end calls them, each found at its first use: cuBLASLt when the first device is
 * looked for, cuSOLVER when a factor is asked for. They are large, and a machine without a GPU need not have them. */
#include <cublasLt.h>
#include <stdint.h>

#include "engine/base/err.h"

struct cublaslt {
#define CUBLASLT_FUNCTIONS(X)                                                                                          \
    X(cublasLtGetVersion) X(cublasLtGetStatusName) X(cublasLtCreate) X(cublasLtDestroy) X(cublasLtMatmul)              \
    X(cublasLtMatmulDescCreate) X(cublasLtMatmulDescDestroy) X(cublasLtMatmulDescSetAttribute)                         \
    X(cublasLtMatrixLayoutCreate) X(cublasLtMatrixLayoutDestroy)                                                       \
    X(cublasLtMatmulPreferenceCreate) X(cublasLtMatmulPreferenceDestroy) X(cublasLtMatmulPreferenceSetAttribute)       \
    X(cublasLtMatmulAlgoGetHeuristic) X(cublasLtMatmulAlgoConfigGetAttribute)
#define X(name) __typeof__(name) *name;
    CUBLASLT_FUNCTIONS(X)
#undef X
};

/* cuSOLVER's functions return 0 when all is well. They are declared here, for a toolkit that has cuBLAS's headers may
 * lack this one; the tests compare them with it where it is there. Handles and parameters are pointers of its own. */
struct cusolver {
#define CUSOLVER_FUNCTIONS(X)                                                                                          \
    X(cusolverDnCreate, (void **handle))                                                                               \
    X(cusolverDnDestroy, (void *handle))                                                                               \
    X(cusolverDnSetStream, (void *handle, cudaStream_t stream))                                                        \
    X(cusolverDnSetDeterministicMode, (void *handle, int mode))                                                        \
    X(cusolverDnCreateParams, (void **params))                                                                         \
    X(cusolverDnDestroyParams, (void *params))                                                                         \
    X(cusolverDnXpotrf_bufferSize, (void *handle, void *params, cublasFillMode_t part, int64_t n, cudaDataType type,   \
                                    const void *a, int64_t ld, cudaDataType compute, size_t *device, size_t *host))    \
    X(cusolverDnXpotrf, (void *handle, void *params, cublasFillMode_t part, int64_t n, cudaDataType type, void *a,     \
                         int64_t ld, cudaDataType compute, void *device, size_t device_bytes, void *host,              \
                         size_t host_bytes, int *info))
#define X(name, arguments) int (*name) arguments;
    CUSOLVER_FUNCTIONS(X)
#undef X
};
#define CUSOLVER_DETERMINISTIC 1 /* CUSOLVER_DETERMINISTIC_RESULTS */

/* The library of this process, or NULL with ERR_DEVICE: it is not installed, or lacks a function. */
const struct cublaslt *library_cublaslt(struct err *e);
const struct cusolver *library_cusolver(struct err *e);

#endif
