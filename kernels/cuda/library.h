#ifndef KERNELS_CUDA_LIBRARY_H
#define KERNELS_CUDA_LIBRARY_H
/* The functions of cuBLASLt that blas.c calls, found when the first device is opened: the libraries are large, and a
 * machine without a GPU need not have them. */
#include <cublasLt.h>

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

/* The library of this process, or NULL with ERR_DEVICE: it is not installed, or lacks a function. */
const struct cublaslt *library_cublaslt(struct err *e);

#endif
