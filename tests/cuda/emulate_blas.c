/* The part of cuBLASLt that kernels/cuda/blas.c calls, as the manual defines it: column-major matrices, operations on
 * the operands, sums in f32 over ascending k. It takes the descriptors at their word, so a wrong leading dimension,
 * transposition or place of a scale in kernels/cuda gives wrong products here too. */
#include <math.h>
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
    if (!o || scale != (compute == CUBLAS_COMPUTE_32I ? CUDA_R_32I : CUDA_R_32F))
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

/* Which operands a device takes, and in which form (the manual's tables for cublasLtMatmul, its sections on scaling).
 * `least`, `before`: compute capabilities times ten; `per_row`: elements that leading dimensions are multiples of. */
static const struct form {
    const char *name; /* of EMULATE_WRONG */
    cudaDataType_t type;
    int32_t mode;
    int least, before, per_row;
} forms[] = {{"fp32", CUDA_R_32F, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F, 0, 1000, 1},
             {"bf16", CUDA_R_16BF, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F, 0, 1000, 1},
             {"fp8", CUDA_R_8F_E4M3, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F, 89, 1000, 16},
             {"fp8_block", CUDA_R_8F_E4M3, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F, 90, 100, 16},
             {"mxfp8", CUDA_R_8F_E4M3, CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0, 100, 1000, 16},
             {"nvfp4", CUDA_R_4F_E2M1, CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3, 100, 1000, 32},
             {"int8", CUDA_R_8I, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F, 0, 1000, 4}};

static const struct form *form_of(const struct operation *o, const struct layout *a)
{
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (forms[i].type == a->type && forms[i].mode == o->a_mode)
            return &forms[i];
    return NULL;
}

static bool supported(const struct operation *o, const struct layout *a, const struct layout *b, const struct layout *y)
{
    const struct form *f = form_of(o, a);
    bool whole = a->type == CUDA_R_8I, narrow = whole || a->type == CUDA_R_8F_E4M3 || a->type == CUDA_R_4F_E2M1;
    if (!f || a->type != b->type || o->b_mode != f->mode || o->fast != 0 ||
        (o->a_scales != NULL) != (f->mode != 0) || (o->b_scales != NULL) != (f->mode != 0) ||
        o->compute != (whole ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F) || y->type != (whole ? CUDA_R_32I : CUDA_R_32F))
        return false;
    return !narrow || (emulate_capability() >= f->least && emulate_capability() < f->before && o->a == CUBLAS_OP_T &&
                       o->b == CUBLAS_OP_N && a->ld % f->per_row == 0 && b->ld % f->per_row == 0 && y->ld % 4 == 0 &&
                       a->columns % 16 == 0 && b->columns % 4 == 0);
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

/* Elements along k that share a scale, in the modes that have scales in tiles. */
static uint64_t tiled_block(int32_t mode)
{
    return mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3 ? 16
           : mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0 ? 32 : 0;
}

/* The factor of element i of vector `j` of `vectors` (rows of op(A), columns of op(B)) of length k. */
static float block_scale(int32_t mode, const void *scales, uint64_t j, uint64_t vectors, uint64_t i, uint64_t k)
{
    if (mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F)
        return ((const float *)scales)[i / 128 * vectors + j];
    uint64_t block = tiled_block(mode), column = i / block, across = (k + 4 * block - 1) / (4 * block);
    const struct scale_tile *tile = (const struct scale_tile *)scales + j / 128 * across + column / 4;
    uint8_t scale = tile->line[j % 32][j % 128 / 32][column % 4];
    return mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3 ? e4m3_to_f32(scale) : ldexpf(1.0f, scale - 127);
}

/* Is what fills the last tiles up zero, as the manual wants it? Of `rows` vectors of length k. */
static bool filled_up(int32_t mode, const void *scales, uint64_t rows, uint64_t k)
{
    uint64_t block = tiled_block(mode), across = block ? (k + 4 * block - 1) / (4 * block) : 0;
    uint64_t down = (rows + 127) / 128;
    for (uint64_t t = 0; t < down * across; t++)
        for (uint64_t i = 0; i < 512; i++) {
            uint64_t row = t / across * 128 + i / 4 % 4 * 32 + i / 16, column = t % across * 4 + i % 4;
            if ((row >= rows || column >= k / block) && ((const uint8_t *)scales)[t * 512 + i] != 0)
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
    case CUDA_R_8I: return ((const int8_t *)p)[at];
    default: return ((const float *)p)[at];
    }
}

/* A column or row of an operand, as f32. */
static void gather(const struct layout *l, cublasOperation_t op, const void *p, int32_t mode, const void *scales,
                   bool row, uint64_t at, uint64_t vectors, uint64_t k, float *out)
{
    for (uint64_t i = 0; i < k; i++) {
        out[i] = row ? value(l, op, p, at, i) : value(l, op, p, i, at);
        if (scales)
            out[i] *= block_scale(mode, scales, at, vectors, i, k);
    }
}

/* The part of k that a product loses on request (emulate_control.h). */
static uint64_t lost_tail(const struct form *f, uint64_t k)
{
    const char *wrong = getenv("EMULATE_WRONG");
    bool is_it = wrong && strcmp(wrong, f->name) == 0;
    return !is_it ? 0 : k < 64 ? k : 64;
}

/* Row `j` of `n` as a library sums it whose order depends on the place: from the middle on, in the other direction. */
static bool is_backward(uint64_t j, uint64_t n)
{
    const char *wrong = getenv("EMULATE_WRONG");
    return wrong && strcmp(wrong, "rows") == 0 && j >= n / 2;
}

/* Element (row, column) of the product; k is a multiple of 16. Whole numbers are exact in f32, but not their sums. */
static float sum_of(const float *row, const float *column, uint64_t end, bool backward)
{
    float sums[8] = {0}, sum = 0.0f;
    for (uint64_t t = 0; t < end; t += 8)
        for (int s = 0; s < 8; s++)
            sums[s] += row[t + (uint64_t)s] * column[t + (uint64_t)s];
    for (int s = 0; s < 8; s++)
        sum += sums[backward ? 7 - s : s];
    return sum;
}
static int32_t whole_sum_of(const float *row, const float *column, uint64_t end)
{
    int64_t sum = 0;
    for (uint64_t t = 0; t < end; t++)
        sum += (int64_t)row[t] * (int64_t)column[t];
    return (int32_t)sum;
}

/* The factors are 1 and 0 of whole numbers, and the second 0 of the others; `scale`: the first. */
static bool factors(const struct operation *o, const void *alpha, const void *beta, float *scale)
{
    float keep;
    int32_t whole[2];
    memcpy(scale, alpha, sizeof *scale);
    memcpy(&keep, beta, sizeof keep);
    memcpy(&whole[0], alpha, sizeof whole[0]);
    memcpy(&whole[1], beta, sizeof whole[1]);
    return o->compute == CUBLAS_COMPUTE_32I ? whole[0] == 1 && whole[1] == 0 : keep == 0.0f;
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
    float scale;
    uintptr_t places = (uintptr_t)a | (uintptr_t)b | (uintptr_t)y | (uintptr_t)o->a_scales | (uintptr_t)o->b_scales;
    bool fits = (o->a == CUBLAS_OP_T ? A->columns : A->rows) == m &&
                (o->b == CUBLAS_OP_T ? B->columns : B->rows) == k &&
                (o->b == CUBLAS_OP_T ? B->rows : B->columns) == n && factors(o, alpha, beta, &scale) &&
                supported(o, A, B, Y) && algorithm->data[0] == 1 &&
                places % 16 == 0 &&
                filled_up(o->a_mode, o->a_scales, m, k) && filled_up(o->b_mode, o->b_scales, n, k);
    if (!fits)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (emulate_tick())
        return CUBLAS_STATUS_EXECUTION_FAILED;
    float *rows = malloc(m * k * sizeof *rows);
    uint64_t end = k - lost_tail(form_of(o, A), k);
    if (!rows)
        return CUBLAS_STATUS_ALLOC_FAILED;
#pragma omp parallel for
    for (uint64_t i = 0; i < m; i++)
        gather(A, o->a, a, o->a_mode, o->a_scales, true, i, m, k, rows + i * k);
#pragma omp parallel for
    for (uint64_t j = 0; j < n; j++) {
        float *column = malloc(k * sizeof *column);
        if (!column)
            abort();
        gather(B, o->b, b, o->b_mode, o->b_scales, false, j, n, k, column);
        bool backward = is_backward(j, n);
        for (uint64_t i = 0; i < m; i++) {
            uint64_t at = i + j * (uint64_t)Y->ld;
            if (o->compute == CUBLAS_COMPUTE_32I)
                ((int32_t *)y)[at] = whole_sum_of(rows + i * k, column, end);
            else
                ((float *)y)[at] = scale * sum_of(rows + i * k, column, end, backward);
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
