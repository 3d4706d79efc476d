/* The part of cuBLASLt that kernels/cuda/blas.c calls, as the manual defines it: column-major matrices, operations on
 * the operands, sums in f32 over ascending k. It takes the descriptors at their word, so a wrong leading dimension or
 * transposition in blas.c gives wrong products here too. */
#include <stdlib.h>
#include <string.h>

#include "engine/base/dtype.h"
#include "kernels/cuda/library.h"
#include "tests/cuda/emulate_control.h"

struct layout {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t ld;
};

struct operation {
    cublasComputeType_t compute;
    cublasOperation_t a, b;
};

struct preference {
    uint64_t workspace;
    uint32_t reduction;
};

static size_t version(void) { return 130000; }
static const char *status_name(cublasStatus_t s) { return s == CUBLAS_STATUS_SUCCESS ? "success" : "not success"; }

static cublasStatus_t create(cublasLtHandle_t *h)
{
    *h = malloc(1);
    return CUBLAS_STATUS_SUCCESS;
}
static cublasStatus_t destroy(cublasLtHandle_t h)
{
    free(h);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t desc_create(cublasLtMatmulDesc_t *d, cublasComputeType_t compute, cudaDataType_t scale)
{
    struct operation *o = calloc(1, sizeof *o);
    if (!o || scale != CUDA_R_32F)
        return CUBLAS_STATUS_INVALID_VALUE;
    o->compute = compute;
    *d = (void *)o;
    return CUBLAS_STATUS_SUCCESS;
}
static cublasStatus_t desc_destroy(cublasLtMatmulDesc_t d)
{
    free((void *)d);
    return CUBLAS_STATUS_SUCCESS;
}
static cublasStatus_t desc_set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t what, const void *value, size_t n)
{
    struct operation *o = (void *)d;
    cublasOperation_t *to = what == CUBLASLT_MATMUL_DESC_TRANSA ? &o->a : what == CUBLASLT_MATMUL_DESC_TRANSB ? &o->b
                                                                                                            : NULL;
    if (!to || n != sizeof *to)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, n);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t layout_create(cublasLtMatrixLayout_t *l, cudaDataType_t type, uint64_t rows, uint64_t columns,
                                    int64_t ld)
{
    struct layout *made = calloc(1, sizeof *made);
    if (!made || ld < (int64_t)rows)
        return CUBLAS_STATUS_INVALID_VALUE;
    *made = (struct layout){type, rows, columns, ld};
    *l = (void *)made;
    return CUBLAS_STATUS_SUCCESS;
}
static cublasStatus_t layout_destroy(cublasLtMatrixLayout_t l)
{
    free((void *)l);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t preference_create(cublasLtMatmulPreference_t *p)
{
    struct preference *made = calloc(1, sizeof *made);
    if (!made)
        return CUBLAS_STATUS_ALLOC_FAILED;
    made->reduction = UINT32_MAX;
    *p = (void *)made;
    return CUBLAS_STATUS_SUCCESS;
}
static cublasStatus_t preference_destroy(cublasLtMatmulPreference_t p)
{
    free((void *)p);
    return CUBLAS_STATUS_SUCCESS;
}
static cublasStatus_t preference_set(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t what,
                                     const void *value, size_t n)
{
    struct preference *to = (void *)p;
    if (what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && n == sizeof to->workspace)
        memcpy(&to->workspace, value, n);
    else if (what == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK && n == sizeof to->reduction)
        memcpy(&to->reduction, value, n);
    else if (n != sizeof(uint32_t))
        return CUBLAS_STATUS_INVALID_VALUE;
    return CUBLAS_STATUS_SUCCESS;
}

/* Two algorithms: the first splits the sum and must not be taken. */
static cublasStatus_t heuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t y,
                                cublasLtMatmulPreference_t p, int wanted, cublasLtMatmulHeuristicResult_t *out, int *n)
{
    (void)h, (void)d, (void)a, (void)b, (void)c, (void)y;
    const struct preference *preference = (void *)p;
    if (wanted < 2 || preference->reduction != 0)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    memset(out, 0, 2 * sizeof *out);
    out[0].algo.data[0] = 4;
    out[1].algo.data[0] = 1;
    *n = 2;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t config(const cublasLtMatmulAlgo_t *a, cublasLtMatmulAlgoConfigAttributes_t what, void *value,
                             size_t n, size_t *written)
{
    int32_t x = what == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? (int32_t)a->data[0] : 0;
    if (n != sizeof x)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(value, &x, n);
    *written = n;
    return CUBLAS_STATUS_SUCCESS;
}

/* Element (row, column) of op(matrix) in f32. */
static float value(const struct layout *l, cublasOperation_t op, const void *p, uint64_t row, uint64_t column)
{
    uint64_t i = op == CUBLAS_OP_T ? column : row, j = op == CUBLAS_OP_T ? row : column;
    uint64_t at = i + j * (uint64_t)l->ld;
    return l->type == CUDA_R_16BF ? bf16_to_f32(((const uint16_t *)p)[at]) : ((const float *)p)[at];
}

/* A column or row of an operand, as f32. */
static void gather(const struct layout *l, cublasOperation_t op, const void *p, bool row, uint64_t at, uint64_t k,
                   float *out)
{
    for (uint64_t i = 0; i < k; i++)
        out[i] = row ? value(l, op, p, at, i) : value(l, op, p, i, at);
}

static cublasStatus_t matmul(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha, const void *a,
                             cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb, const void *beta,
                             const void *c, cublasLtMatrixLayout_t lc, void *y, cublasLtMatrixLayout_t ly,
                             const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t bytes, cudaStream_t stream)
{
    (void)h, (void)c, (void)lc, (void)workspace, (void)bytes, (void)stream;
    const struct operation *o = (void *)d;
    const struct layout *A = (void *)la, *B = (void *)lb, *Y = (void *)ly;
    uint64_t m = Y->rows, n = Y->columns, k = o->a == CUBLAS_OP_T ? A->rows : A->columns;
    float scale, keep;
    memcpy(&scale, alpha, sizeof scale);
    memcpy(&keep, beta, sizeof keep);
    bool fits = (o->a == CUBLAS_OP_T ? A->columns : A->rows) == m && (o->b == CUBLAS_OP_T ? B->columns : B->rows) == k &&
                (o->b == CUBLAS_OP_T ? B->rows : B->columns) == n && o->compute == CUBLAS_COMPUTE_32F &&
                Y->type == CUDA_R_32F && scale == 1.0f && keep == 0.0f && algorithm->data[0] == 1 &&
                ((uintptr_t)a | (uintptr_t)b | (uintptr_t)y) % 16 == 0;
    if (!fits)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (emulate_tick())
        return CUBLAS_STATUS_EXECUTION_FAILED;
    float *rows = malloc(m * k * sizeof *rows);
    if (!rows)
        return CUBLAS_STATUS_ALLOC_FAILED;
#pragma omp parallel for
    for (uint64_t i = 0; i < m; i++)
        gather(A, o->a, a, true, i, k, rows + i * k);
#pragma omp parallel for
    for (uint64_t j = 0; j < n; j++) {
        float *column = malloc(k * sizeof *column);
        if (!column)
            abort();
        gather(B, o->b, b, false, j, k, column);
        for (uint64_t i = 0; i < m; i++) {
            float sums[8] = {0}, sum = 0.0f; /* k is a multiple of 16 */
            for (uint64_t t = 0; t < k; t += 8)
                for (int s = 0; s < 8; s++)
                    sums[s] += rows[i * k + t + (uint64_t)s] * column[t + (uint64_t)s];
            for (int s = 0; s < 8; s++)
                sum += sums[s];
            ((float *)y)[i + j * (uint64_t)Y->ld] = sum;
        }
        free(column);
    }
    free(rows);
    return CUBLAS_STATUS_SUCCESS;
}

const struct cublaslt *library_cublaslt(struct err *e)
{
    (void)e;
    static const struct cublaslt table = {
        .cublasLtGetVersion = version, .cublasLtGetStatusName = status_name, .cublasLtCreate = create,
        .cublasLtDestroy = destroy, .cublasLtMatmul = matmul, .cublasLtMatmulDescCreate = desc_create,
        .cublasLtMatmulDescDestroy = desc_destroy, .cublasLtMatmulDescSetAttribute = desc_set,
        .cublasLtMatrixLayoutCreate = layout_create, .cublasLtMatrixLayoutDestroy = layout_destroy,
        .cublasLtMatmulPreferenceCreate = preference_create, .cublasLtMatmulPreferenceDestroy = preference_destroy,
        .cublasLtMatmulPreferenceSetAttribute = preference_set, .cublasLtMatmulAlgoGetHeuristic = heuristic,
        .cublasLtMatmulAlgoConfigGetAttribute = config};
    return &table;
}
