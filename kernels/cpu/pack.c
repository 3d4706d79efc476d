/* Makes and fills the panels of pack.h. Padding (past N, past K) is zero from the start and never written. */
#include "kernels/cpu/pack.h"

#include "engine/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/shape.h"

bool pack_panels_new(struct queue *q, struct tensor *out, int64_t n, int64_t k, enum dtype mode, struct err *e)
{
    (void)q;
    if (n < 1 || k < 1)
        return err_set(e, ERR_BUG, "panels_new: {%lld, %lld}, expected at least {1, 1}", (long long)n, (long long)k);
    if (mode != DTYPE_F32 && mode != DTYPE_BF16)
        return err_set(e, ERR_BUG, "panels_new: mode %s, expected f32 or bf16", dtype_info(mode)->name);
    struct tensor made = {
        .dtype = mode, .layout = TENSOR_PANELS, .device = TENSOR_HOST, .rank = 2, .shape = {n, k}, .owned = true};
    int64_t stride = mode == DTYPE_F32 ? pack_stride_f32(k) : pack_stride_bf16(k);
    if (!mem_new_bytes(&made.data, (size_t)pack_panels(n), (size_t)stride * dtype_bytes(mode), e))
        return false;
    *out = made;
    return true;
}

/* `rows` (1 to 16) rows of w into one panel, sixteen inputs at a time so that the lines written stay in cache. */
static void fill_f32(const float *w, int64_t rows, int64_t k, float *panel)
{
    for (int64_t first = 0; first < k; first += PACK_WIDTH) {
        int64_t end = k - first < PACK_WIDTH ? k : first + PACK_WIDTH;
        for (int64_t j = 0; j < rows; j++)
            for (int64_t i = first; i < end; i++)
                panel[i * PACK_WIDTH + j] = w[j * k + i];
    }
}

static void fill_bf16(const float *w, int64_t rows, int64_t k, uint16_t *panel)
{
    for (int64_t first = 0; first < k; first += PACK_WIDTH) {
        int64_t end = k - first < PACK_WIDTH ? k : first + PACK_WIDTH;
        for (int64_t j = 0; j < rows; j++)
            for (int64_t i = first; i < end; i++)
                panel[(i / 2 * PACK_WIDTH + j) * 2 + i % 2] = bf16_from_f32(w[j * k + i]);
    }
}

bool pack_fill(struct queue *q, const struct tensor *w, int64_t first, struct tensor *panels, struct err *e)
{
    if (!shape_queue(q, "pack", e) || !shape_panels(q, "pack", "panels", panels, -1, -1, e))
        return false;
    int64_t k = panels->shape[1];
    if (!shape_matrix(q, "pack", "w", w, DTYPE_F32, -1, k, e))
        return false;
    int64_t n = w->shape[0];
    if (first < 0 || first % PACK_WIDTH != 0 || n > panels->shape[0] - first)
        return err_set(e, ERR_BUG, "pack: rows %lld to %lld of %lld, expected a first row that is a multiple of %d",
                       (long long)first, (long long)(first + n), (long long)panels->shape[0], PACK_WIDTH);
    const float *src = w->data;
#pragma omp parallel for num_threads(cpu_threads(q, n * k)) schedule(static)
    for (int64_t p = 0; p < pack_panels(n); p++) {
        int64_t rows = n - p * PACK_WIDTH < PACK_WIDTH ? n - p * PACK_WIDTH : PACK_WIDTH;
        int64_t panel = first / PACK_WIDTH + p;
        if (panels->dtype == DTYPE_F32)
            fill_f32(src + p * PACK_WIDTH * k, rows, k, (float *)panels->data + panel * pack_stride_f32(k));
        else
            fill_bf16(src + p * PACK_WIDTH * k, rows, k, (uint16_t *)panels->data + panel * pack_stride_bf16(k));
    }
    return true;
}
