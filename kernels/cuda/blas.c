/* cuBLASLt counts in columns, so it is asked for y^T [n, rows] = (w^T)^T x^T: operand A is w as it lies, a column-major
 * [k, n], transposed; operand B is x, a column-major [k, rows]. It is the form that its fastest kernels take. */
#include "kernels/cuda/blas.h"

#include <stdio.h>
#include <string.h>

#include "engine/base/mem.h"
#include "kernels/cuda/library.h"

#define WORKSPACE ((size_t)32 << 20) /* what NVIDIA recommends for Hopper and later (performance 6) */
#define ALIGNMENT 16
#define CANDIDATES 8

/* One shape and the algorithm that it keeps. */
struct plan {
    enum blas_type type;
    int64_t rows, n, k;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algorithm;
};

struct blas {
    const struct cublaslt *lt;
    cublasLtHandle_t handle;
    cudaStream_t stream;
    void *workspace;
    struct plan *plans;
    size_t n_plans;
};

/* FP8 has one scale per operand here, which is 1 where none is given. A kernel of ours multiplies by its scales per row
 * and column instead: the library takes those (OUTER_VEC_32F) on Hopper only, and one way for
 * all is one thing to test. */
static const struct {
    const char *name;
    cudaDataType_t operand;
    cublasLtMatmulMatrixScale_t scale;
} types[] = {
    [BLAS_F32] = {"fp32", CUDA_R_32F, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F},
    [BLAS_BF16] = {"bf16", CUDA_R_16BF, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F},
    [BLAS_FP8] = {"fp8", CUDA_R_8F_E4M3, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F},
    [BLAS_NVFP4] = {"nvfp4", CUDA_R_4F_E2M1, CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3},
    [BLAS_MXFP8] = {"mxfp8", CUDA_R_8F_E4M3, CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0},
    [BLAS_FP8_GROUP] = {"fp8 in groups", CUDA_R_8F_E4M3, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F},
    [BLAS_INT8] = {"int8", CUDA_R_8I, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F},
};
static bool has_scales(enum blas_type t) { return types[t].scale != CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F; }

static bool failed(const struct blas *b, cublasStatus_t status, const char *what, struct err *e)
{
    return err_set(e, status == CUBLAS_STATUS_ALLOC_FAILED ? ERR_RESOURCE : ERR_DEVICE, "cuBLASLt: %s: %s", what,
                   b->lt->cublasLtGetStatusName(status));
}

bool blas_new(struct blas **out, cudaStream_t stream, struct err *e)
{
    struct blas *b;
    const struct cublaslt *lt = library_cublaslt(e);
    if (!lt || !mem_new(&b, 1, e))
        return false;
    b->lt = lt;
    b->stream = stream;
    cublasStatus_t status = lt->cublasLtCreate(&b->handle);
    if (status != CUBLAS_STATUS_SUCCESS) {
        failed(b, status, "cannot start", e);
        b->handle = NULL;
        blas_free(b);
        return false;
    }
    cudaError_t error = cudaMallocAsync(&b->workspace, WORKSPACE, stream);
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        b->workspace = NULL;
        blas_free(b);
        return err_set(e, error == cudaErrorMemoryAllocation ? ERR_RESOURCE : ERR_DEVICE,
                       "no device memory for the products' workspace: %s", cudaGetErrorString(error));
    }
    *out = b;
    return true;
}

static void free_plan(const struct blas *b, struct plan *p)
{
    if (p->operation)
        b->lt->cublasLtMatmulDescDestroy(p->operation);
    if (p->w)
        b->lt->cublasLtMatrixLayoutDestroy(p->w);
    if (p->x)
        b->lt->cublasLtMatrixLayoutDestroy(p->x);
    if (p->y)
        b->lt->cublasLtMatrixLayoutDestroy(p->y);
}

void blas_free(struct blas *b)
{
    if (!b)
        return;
    for (size_t i = 0; i < b->n_plans; i++)
        free_plan(b, &b->plans[i]);
    mem_free(b->plans);
    if (b->workspace)
        cudaFreeAsync(b->workspace, b->stream);
    if (b->handle)
        b->lt->cublasLtDestroy(b->handle);
    mem_free(b);
}

static cublasStatus_t set(const struct blas *b, struct plan *p, cublasLtMatmulDescAttributes_t what, const void *value,
                          size_t bytes)
{
    return b->lt->cublasLtMatmulDescSetAttribute(p->operation, what, value, bytes);
}

/* Where the blocks' scales are. */
static cublasStatus_t point(const struct blas *b, struct plan *p, const void *x_scales, const void *w_scales)
{
    cublasStatus_t s = set(b, p, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &w_scales, sizeof w_scales);
    return s != CUBLAS_STATUS_SUCCESS ? s : set(b, p, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &x_scales, sizeof x_scales);
}

/* What operands of FP8 and those with scales need beside. The workspace stands for the scales: no choice of an
 * algorithm reads them. */
static cublasStatus_t describe_narrow(const struct blas *b, struct plan *p)
{
    const int32_t mode = types[p->type].scale;
    const int8_t fast = 0;
    if (p->type == BLAS_FP8)
        return set(b, p, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast);
    cublasStatus_t s = set(b, p, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode, sizeof mode);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = set(b, p, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode, sizeof mode);
    return s == CUBLAS_STATUS_SUCCESS ? point(b, p, b->workspace, b->workspace) : s;
}

/* What is multiplied, without regard to how. */
static cublasStatus_t describe(const struct blas *b, struct plan *p)
{
    const struct cublaslt *lt = b->lt;
    bool is_whole = p->type == BLAS_INT8;
    cudaDataType_t operand = types[p->type].operand, result = is_whole ? CUDA_R_32I : CUDA_R_32F;
    cublasComputeType_t compute = is_whole ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F;
    cublasOperation_t transposed = CUBLAS_OP_T, plain = CUBLAS_OP_N;
    cublasStatus_t s = lt->cublasLtMatmulDescCreate(&p->operation, compute, result);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = set(b, p, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = set(b, p, CUBLASLT_MATMUL_DESC_TRANSB, &plain, sizeof plain);
    if (s == CUBLAS_STATUS_SUCCESS && (p->type == BLAS_FP8 || has_scales(p->type)))
        s = describe_narrow(b, p);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = lt->cublasLtMatrixLayoutCreate(&p->w, operand, (uint64_t)p->k, (uint64_t)p->n, p->k);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = lt->cublasLtMatrixLayoutCreate(&p->x, operand, (uint64_t)p->k, (uint64_t)p->rows, p->k);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = lt->cublasLtMatrixLayoutCreate(&p->y, result, (uint64_t)p->n, (uint64_t)p->rows, p->n);
    return s;
}

/* Only algorithms that keep the sum over k in one piece, and that fit the workspace and the alignment. */
static cublasStatus_t prefer(const struct cublaslt *lt, cublasLtMatmulPreference_t preference)
{
    const uint64_t workspace = WORKSPACE;
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE, alignment = ALIGNMENT;
    static const cublasLtMatmulPreferenceAttributes_t aligned[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    cublasStatus_t s = lt->cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                                &workspace, sizeof workspace);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = lt->cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction,
                                                     sizeof reduction);
    for (size_t i = 0; s == CUBLAS_STATUS_SUCCESS && i < sizeof aligned / sizeof *aligned; i++)
        s = lt->cublasLtMatmulPreferenceSetAttribute(preference, aligned[i], &alignment, sizeof alignment);
    return s;
}

static int32_t config(const struct blas *b, const struct plan *p, cublasLtMatmulAlgoConfigAttributes_t what)
{
    int32_t value = -1;
    size_t written;
    b->lt->cublasLtMatmulAlgoConfigGetAttribute(&p->algorithm, what, &value, sizeof value, &written);
    return value;
}

/* The first algorithm of the library's list, which is the best by its own estimate, that does not split the sum. */
static bool choose(const struct blas *b, struct plan *p, struct err *e)
{
    const struct cublaslt *lt = b->lt;
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    cublasLtMatmulPreference_t preference;
    int n = 0;
    cublasStatus_t s = lt->cublasLtMatmulPreferenceCreate(&preference);
    if (s != CUBLAS_STATUS_SUCCESS)
        return failed(b, s, "preference", e);
    s = prefer(lt, preference);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = lt->cublasLtMatmulAlgoGetHeuristic(b->handle, p->operation, p->w, p->x, p->y, p->y, preference, CANDIDATES,
                                               found, &n);
    lt->cublasLtMatmulPreferenceDestroy(preference);
    if (s != CUBLAS_STATUS_SUCCESS && s != CUBLAS_STATUS_NOT_SUPPORTED)
        return failed(b, s, "no algorithm", e);
    for (int i = 0; i < n; i++) {
        p->algorithm = found[i].algo;
        if (found[i].state == CUBLAS_STATUS_SUCCESS && config(b, p, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) <= 1)
            return true;
    }
    return err_set(e, ERR_INPUT, "cuBLASLt: no algorithm without a split sum for %s %lldx%lldx%lld",
                   types[p->type].name, (long long)p->rows, (long long)p->n, (long long)p->k);
}

static bool add_plan(struct blas *b, const struct plan *shape, struct err *e)
{
    if (!mem_grow(&b->plans, b->n_plans, b->n_plans + 1, e))
        return false;
    struct plan *p = &b->plans[b->n_plans];
    *p = *shape;
    cublasStatus_t s = describe(b, p);
    if ((s != CUBLAS_STATUS_SUCCESS && !failed(b, s, "description", e)) || !choose(b, p, e)) {
        free_plan(b, p);
        return false;
    }
    b->n_plans++;
    return true;
}

/* The place of a shape's plan, n_plans when there is none. */
static size_t find_plan(const struct blas *b, enum blas_type type, int64_t rows, int64_t n, int64_t k)
{
    size_t i = 0;
    while (i < b->n_plans && !(b->plans[i].type == type && b->plans[i].rows == rows && b->plans[i].n == n &&
                               b->plans[i].k == k))
        i++;
    return i;
}

bool blas_is_new(const struct blas *b, enum blas_type type, int64_t rows, int64_t n, int64_t k)
{
    return find_plan(b, type, rows, n, k) == b->n_plans;
}

/* The plan of a shape, made where it is new; NULL when that fails. */
static struct plan *plan_of(struct blas *b, enum blas_type type, int64_t rows, int64_t n, int64_t k, struct err *e)
{
    size_t i = find_plan(b, type, rows, n, k);
    if (i == b->n_plans && !add_plan(b, &(struct plan){.type = type, .rows = rows, .n = n, .k = k}, e))
        return NULL;
    return &b->plans[i];
}

bool blas_fits(struct blas *b, enum blas_type type, int64_t rows, int64_t n, int64_t k, bool *fits, struct err *e)
{
    struct err why = {0};
    *fits = plan_of(b, type, rows, n, k, &why) != NULL;
    if (*fits || why.code == ERR_INPUT)
        return true;
    *e = why;
    return false;
}

bool blas_product(struct blas *b, const struct blas_call *c, struct err *e)
{
    const float alpha = c->alpha != 0.0f ? c->alpha : 1.0f, zero = 0.0f;
    const int32_t whole[2] = {1, 0};
    const void *factor = c->type == BLAS_INT8 ? (const void *)&whole[0] : &alpha;
    const void *keep = c->type == BLAS_INT8 ? (const void *)&whole[1] : &zero;
    struct plan *p = plan_of(b, c->type, c->rows, c->n, c->k, e);
    if (!p)
        return false;
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    if (has_scales(c->type))
        s = point(b, p, c->x_scales, c->w_scales);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = b->lt->cublasLtMatmul(b->handle, p->operation, factor, c->w, p->w, c->x, p->x, keep, c->y, p->y, c->y,
                                  p->y, &p->algorithm, b->workspace, WORKSPACE, b->stream);
    return s == CUBLAS_STATUS_SUCCESS || failed(b, s, "product", e);
}

const char *blas_text(const struct blas *b, char *out, size_t size)
{
    size_t at = 0;
    if (size > 0)
        out[0] = '\0';
    for (size_t i = 0; i < b->n_plans && at < size; i++) {
        const struct plan *p = &b->plans[i];
        int n = snprintf(out + at, size - at, "%s%s %lldx%lldx%lld: algorithm %d, tile %d, stages %d", i ? "\n" : "",
                         types[p->type].name, (long long)p->rows, (long long)p->n, (long long)p->k,
                         (int)config(b, p, CUBLASLT_ALGO_CONFIG_ID), (int)config(b, p, CUBLASLT_ALGO_CONFIG_TILE_ID),
                         (int)config(b, p, CUBLASLT_ALGO_CONFIG_STAGES_ID));
        at += n > 0 ? (size_t)n : 0;
    }
    return out;
}

size_t blas_version(void)
{
    struct err ignored;
    const struct cublaslt *lt = library_cublaslt(&ignored);
    return lt ? lt->cublasLtGetVersion() : 0;
}
