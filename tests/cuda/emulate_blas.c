/* The part of cuBLASLt that kernels/cuda/blas.c calls, as the manual defines it: column-major matrices, operations on
 * the operands, sums in f32 over ascending k. It takes the descriptors at their word, so a wrong leading dimension,
 * transposition or place of a scale in kernels/cuda gives wrong products here too. */
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
    int32_t a_mode, b_mode;
    const void *a_scales, *b_scales;
    int8_t fast;
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
    const struct {
        cublasLtMatmulDescAttributes_t what;
        void *to;
        size_t n;
    } known[] = {{CUBLASLT_MATMUL_DESC_TRANSA, &o->a, sizeof o->a},
                 {CUBLASLT_MATMUL_DESC_TRANSB, &o->b, sizeof o->b},
                 {CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &o->a_mode, sizeof o->a_mode},
                 {CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &o->b_mode, sizeof o->b_mode},
                 {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &o->a_scales, sizeof o->a_scales},
                 {CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &o->b_scales, sizeof o->b_scales},
                 {CUBLASLT_MATMUL_DESC_FAST_ACCUM, &o->fast, sizeof o->fast}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].what == what && known[i].n == n) {
            memcpy(known[i].to, value, n);
            return CUBLAS_STATUS_SUCCESS;
        }
    return CUBLAS_STATUS_INVALID_VALUE;
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

/* Which operands a device takes, and in which form (the manual's tables for cublasLtMatmul). */
static bool supported(const struct operation *o, const struct layout *a, const struct layout *b, const struct layout *y)
{
    int32_t mode = a->type == CUDA_R_4F_E2M1 ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3
                                             : CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
    bool narrow = a->type == CUDA_R_8F_E4M3 || a->type == CUDA_R_4F_E2M1;
    int least = a->type == CUDA_R_4F_E2M1 ? 100 : 89, per_row = a->type == CUDA_R_4F_E2M1 ? 32 : 16;
    if (a->type != b->type || y->type != CUDA_R_32F || o->a_mode != mode || o->b_mode != mode || o->fast != 0 ||
        (o->a_scales != NULL) != (mode != 0) || (o->b_scales != NULL) != (mode != 0))
        return false;
    return !narrow || (emulate_capability() >= least && o->a == CUBLAS_OP_T && o->b == CUBLAS_OP_N &&
                       a->ld % per_row == 0 && b->ld % per_row == 0 && y->ld % 4 == 0 && a->columns % 16 == 0);
}

/* Two algorithms: the first splits the sum and must not be taken. */
static cublasStatus_t heuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t y,
                                cublasLtMatmulPreference_t p, int wanted, cublasLtMatmulHeuristicResult_t *out, int *n)
{
    (void)h, (void)c;
    const struct preference *preference = (void *)p;
    if (wanted < 2 || preference->reduction != 0 || !supported((void *)d, (void *)a, (void *)b, (void *)y))
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

/* A tile of scales as the manual draws it: 32 lines of four rows' scales. */
struct scale_tile {
    uint8_t line[32][4 /* row / 32 */][4 /* column */];
};

/* The factor of element i of vector `j` (a row of op(A), a column of op(B)) of length k. */
static float block_scale(const void *scales, uint64_t j, uint64_t i, uint64_t k)
{
    uint64_t column = i / 16, across = (k + 63) / 64;
    const struct scale_tile *tile = (const struct scale_tile *)scales + j / 128 * across + column / 4;
    return e4m3_to_f32(tile->line[j % 32][j % 128 / 32][column % 4]);
}

/* Is what fills the last tiles up zero, as the manual wants it? Of `rows` vectors of length k. */
static bool filled_up(const void *scales, uint64_t rows, uint64_t k)
{
    uint64_t across = (k + 63) / 64, down = (rows + 127) / 128;
    for (uint64_t t = 0; scales && t < down * across; t++)
        for (uint64_t i = 0; i < 512; i++) {
            uint64_t row = t / across * 128 + i / 4 % 4 * 32 + i / 16, column = t % across * 4 + i % 4;
            if ((row >= rows || column >= k / 16) && ((const uint8_t *)scales)[t * 512 + i] != 0)
                return false;
        }
    return true;
}

static float e2m1(const uint8_t *p, uint64_t at)
{
    static const float magnitude[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
    uint8_t code = at & 1 ? p[at >> 1] >> 4 : p[at >> 1] & 0xf;
    return code & 8 ? -magnitude[code & 7] : magnitude[code & 7];
}

/* Element (row, column) of op(matrix) in f32, without scales. */
static float value(const struct layout *l, cublasOperation_t op, const void *p, uint64_t row, uint64_t column)
{
    uint64_t i = op == CUBLAS_OP_T ? column : row, j = op == CUBLAS_OP_T ? row : column;
    uint64_t at = i + j * (uint64_t)l->ld;
    switch (l->type) {
    case CUDA_R_16BF: return bf16_to_f32(((const uint16_t *)p)[at]);
    case CUDA_R_8F_E4M3: return e4m3_to_f32(((const uint8_t *)p)[at]);
    case CUDA_R_4F_E2M1: return e2m1(p, at);
    default: return ((const float *)p)[at];
    }
}

/* A column or row of an operand, as f32. */
static void gather(const struct layout *l, cublasOperation_t op, const void *p, const void *scales, bool row,
                   uint64_t at, uint64_t k, float *out)
{
    for (uint64_t i = 0; i < k; i++) {
        out[i] = row ? value(l, op, p, at, i) : value(l, op, p, i, at);
        if (scales)
            out[i] *= block_scale(scales, at, i, k);
    }
}

/* The part of k that a product loses on request (emulate_control.h). */
static uint64_t lost_tail(cudaDataType_t type, uint64_t k)
{
    const char *wrong = getenv("EMULATE_WRONG");
    bool is_it = wrong && ((type == CUDA_R_8F_E4M3 && strcmp(wrong, "fp8") == 0) ||
                           (type == CUDA_R_4F_E2M1 && strcmp(wrong, "nvfp4") == 0));
    return !is_it ? 0 : k < 64 ? k : 64;
}

/* Row `j` of `n` as a library sums it whose order depends on the place: from the middle on, in the other direction. */
static bool is_backward(uint64_t j, uint64_t n)
{
    const char *wrong = getenv("EMULATE_WRONG");
    return wrong && strcmp(wrong, "rows") == 0 && j >= n / 2;
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
    bool fits = (o->a == CUBLAS_OP_T ? A->columns : A->rows) == m &&
                (o->b == CUBLAS_OP_T ? B->columns : B->rows) == k &&
                (o->b == CUBLAS_OP_T ? B->rows : B->columns) == n && o->compute == CUBLAS_COMPUTE_32F &&
                supported(o, A, B, Y) && keep == 0.0f && algorithm->data[0] == 1 &&
                ((uintptr_t)a | (uintptr_t)b | (uintptr_t)y) % 16 == 0 && filled_up(o->a_scales, m, k) &&
                filled_up(o->b_scales, n, k);
    if (!fits)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (emulate_tick())
        return CUBLAS_STATUS_EXECUTION_FAILED;
    float *rows = malloc(m * k * sizeof *rows);
    uint64_t end = k - lost_tail(A->type, k);
    if (!rows)
        return CUBLAS_STATUS_ALLOC_FAILED;
#pragma omp parallel for
    for (uint64_t i = 0; i < m; i++)
        gather(A, o->a, a, o->a_scales, true, i, k, rows + i * k);
#pragma omp parallel for
    for (uint64_t j = 0; j < n; j++) {
        float *column = malloc(k * sizeof *column);
        if (!column)
            abort();
        gather(B, o->b, b, o->b_scales, false, j, k, column);
        bool backward = is_backward(j, n);
        for (uint64_t i = 0; i < m; i++) {
            float sums[8] = {0}, sum = 0.0f; /* k is a multiple of 16 */
            for (uint64_t t = 0; t < end; t += 8)
                for (int s = 0; s < 8; s++)
                    sums[s] += rows[i * k + t + (uint64_t)s] * column[t + (uint64_t)s];
            for (int s = 0; s < 8; s++)
                sum += sums[backward ? 7 - s : s];
            ((float *)y)[i + j * (uint64_t)Y->ld] = scale * sum;
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
