/* Products with packed weights: the plain version, which is the specification of the fp32 and `fma` modes, and the
 * frame of the fast ones (matmul.h). */
#include "kernels/cpu/matmul.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/shape.h"

static bool check(struct queue *q, const struct tensor *x, const struct tensor *w, int64_t first,
                  const struct tensor *y, struct err *e)
{
    if (!shape_queue(q, "matmul", e) || !shape_panels(q, "matmul", "w", w, -1, -1, e))
        return false;
    if (!shape_matrix(q, "matmul", "x", x, DTYPE_F32, -1, w->shape[1], e) ||
        !shape_matrix(q, "matmul", "y", y, DTYPE_F32, x->shape[0], -1, e))
        return false;
    if (first < 0 || first % PACK_WIDTH != 0 || y->shape[1] > w->shape[0] - first)
        return err_set(e, ERR_BUG, "matmul: columns %lld to %lld of %lld, expected a first that is a multiple of %d",
                       (long long)first, (long long)(first + y->shape[1]), (long long)w->shape[0], PACK_WIDTH);
    return true;
}

bool matmul(struct queue *q, const struct tensor *x, const struct tensor *w, struct tensor *y, struct err *e)
{
    if (!shape_matrix(q, "matmul", "y", y, DTYPE_F32, -1, w->shape[0], e))
        return false;
    return q->k->matmul_part(q, x, w, 0, y, e);
}

/* -- plain: the specification -------------------------------------------------------------------------------------- */

/* sum_k x[k] * w[k] for feature j of a panel: one chain of fused multiply-adds over ascending k, from +0. */
static float dot_f32(const float *x, const float *panel, int64_t j, int64_t k)
{
    float sum = 0.0f;
    for (int64_t i = 0; i < k; i++)
        sum = fmaf(x[i], panel[i * PACK_WIDTH + j], sum);
    return sum;
}

/* The same with x rounded to bf16. An odd K has one more step, 0 * 0, which can only turn -0 into +0. */
static float dot_bf16(const float *x, const uint16_t *panel, int64_t j, int64_t k)
{
    float sum = 0.0f;
    for (int64_t i = 0; i < (k + 1) / 2 * 2; i++) {
        float xi = i < k ? bf16_to_f32(bf16_from_f32(x[i])) : 0.0f;
        sum = fmaf(xi, bf16_to_f32(panel[(i / 2 * PACK_WIDTH + j) * 2 + i % 2]), sum);
    }
    return sum;
}

bool matmul_part_plain(struct queue *q, const struct tensor *x, const struct tensor *w, int64_t first,
                       struct tensor *y, struct err *e)
{
    if (!check(q, x, w, first, y, e))
        return false;
    int64_t n = y->shape[1], k = w->shape[1];
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(y) * k)) schedule(dynamic)
    for (int64_t t = 0; t < y->shape[0]; t++) {
        const float *row = (const float *)x->data + t * k;
        for (int64_t c = 0; c < n; c++) {
            int64_t p = (first + c) / PACK_WIDTH, j = (first + c) % PACK_WIDTH;
            float *out = (float *)y->data + t * n + c;
            if (w->dtype == DTYPE_F32)
                *out = dot_f32(row, (const float *)w->data + p * pack_stride_f32(k), j, k);
            else
                *out = dot_bf16(row, (const uint16_t *)w->data + p * pack_stride_bf16(k), j, k);
        }
    }
    return true;
}

/* -- the frame of the fast versions -------------------------------------------------------------------------------- */

/* A task is at most TASK_ROWS rows by TASK_PANELS panels. Its block of x (136 KiB) and its block of the panels
 * (512 KiB) stay in the L2 while every tile of rows meets every panel. */
#define TASK_ROWS 128
#define TASK_PANELS 32

struct plan {
    const struct matmul_kernel *kernel;
    const float *x;
    const char *w;  /* the first panel */
    float *y;
    int64_t rows, k, n, ldy;
    int64_t block;         /* inputs per block */
    int64_t panel_bytes;   /* from a panel to the next */
    int64_t element;       /* bytes of one weight */
    int64_t task_rows, task_panels, row_tasks, panel_tasks;
};

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Equal tasks, and at least three per thread where the shape allows, so that a thread that lost its core to another
 * program costs a share and not the whole wait. */
static void cut(struct plan *p, int threads)
{
    const struct matmul_kernel *f = p->kernel;
    int64_t panels = pack_panels(p->n), most_rows = TASK_ROWS / f->rows * f->rows;
    p->row_tasks = divide_up(p->rows, most_rows);
    p->panel_tasks = divide_up(panels, TASK_PANELS);
    while (p->row_tasks * p->panel_tasks < 3 * threads && divide_up(panels, p->panel_tasks) > 4 * f->panels)
        p->panel_tasks++;
    p->task_rows = round_up(divide_up(p->rows, p->row_tasks), f->align);
    p->task_panels = round_up(divide_up(panels, p->panel_tasks), f->panels);
    p->row_tasks = divide_up(p->rows, p->task_rows);
    p->panel_tasks = divide_up(panels, p->task_panels);
}

/* Copies inputs [k, k + count) of rows [row, row + rows) and zeros the rows that `align` asks for beyond. */
static void copy_block(const struct plan *p, int64_t row, int64_t rows, int64_t k, int64_t count, char *out)
{
    const size_t stride = MATMUL_STRIDE_F32 * sizeof(float);
    for (int64_t r = 0; r < rows; r++)
        p->kernel->copy(p->x + (row + r) * p->k + k, count, out + (size_t)r * stride);
    for (int64_t r = rows; r < round_up(rows, p->kernel->align); r++)
        memset(out + (size_t)r * stride, 0, stride);
}

/* All tiles of one task and one block of k: tiles of rows outside, so that their copy of x stays in the L1 while the
 * panels stream past from the L2. */
static void block_tiles(const struct plan *p, int64_t row, int64_t rows, int64_t panel, int64_t panels, int64_t k,
                        int64_t count, const char *a)
{
    const struct matmul_kernel *f = p->kernel;
    int64_t strips = divide_up(rows, f->rows), height = round_up(divide_up(rows, strips), f->align);
    for (int64_t r = 0; r < rows; r += height) {
        for (int64_t c = panel; c < panel + panels; c += f->panels) {
            struct matmul_tile tile = {
                .rows = (int)least(height, rows - r),
                .columns = (int)least(f->panels * PACK_WIDTH, p->n - c * PACK_WIDTH),
                .k = p->element == 2 ? round_up(count, 2) : count,
                .b_stride = p->panel_bytes / p->element,
                .ldy = p->ldy,
                .a = a + (size_t)r * MATMUL_STRIDE_F32 * sizeof(float),
                .b = p->w + c * p->panel_bytes + k * PACK_WIDTH * p->element,
                .y = p->y + (row + r) * p->ldy + c * PACK_WIDTH,
                .first = k == 0,
            };
            f->micro(&tile);
        }
    }
}

static void run_task(const struct plan *p, int64_t task)
{
    _Alignas(64) char a[TASK_ROWS * MATMUL_STRIDE_F32 * sizeof(float)];
    /* Neighbouring tasks share panels, which then come from the cache. */
    int64_t row = task % p->row_tasks * p->task_rows, panel = task / p->row_tasks * p->task_panels;
    int64_t rows = least(p->task_rows, p->rows - row), panels = least(p->task_panels, pack_panels(p->n) - panel);
    if (p->kernel->begin)
        p->kernel->begin();
    for (int64_t k = 0; k < p->k; k += p->block) {
        int64_t count = least(p->block, p->k - k);
        copy_block(p, row, rows, k, count, a);
        block_tiles(p, row, rows, panel, panels, k, count, a);
    }
    if (p->kernel->end)
        p->kernel->end();
}

bool matmul_run(struct queue *q, const struct matmul_kernel *f32, const struct matmul_kernel *bf16,
                const struct tensor *x, const struct tensor *w, int64_t first, struct tensor *y, struct err *e)
{
    if (!check(q, x, w, first, y, e))
        return false;
    struct plan p = {.kernel = w->dtype == DTYPE_F32 ? f32 : bf16, .x = x->data, .y = y->data, .rows = x->shape[0],
                     .k = w->shape[1], .n = y->shape[1], .ldy = y->shape[1]};
    if (p.rows == 0 || p.n == 0)
        return true;
    p.element = (int64_t)dtype_bytes(w->dtype);
    p.panel_bytes = p.element * (w->dtype == DTYPE_F32 ? pack_stride_f32(p.k) : pack_stride_bf16(p.k));
    p.w = (const char *)w->data + first / PACK_WIDTH * p.panel_bytes;
    /* Equal blocks, a multiple of 32 inputs: the depth of an AMX tile. */
    p.block = round_up(divide_up(p.k, divide_up(p.k, p.kernel->block)), 32);
    const int threads = cpu_threads(q, tensor_count(y) * p.k / 16); /* sixteen multiply-adds at a time */
    cut(&p, threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < p.row_tasks * p.panel_tasks; task++)
        run_task(&p, task);
    return true;
}
