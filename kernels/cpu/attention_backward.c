/* The gradient of causal grouped-query attention (model-architectures 13.2): with the probabilities P, dP = dO V^T, D
 * the rows' dO . O and dS = P (dP - D) head_dim^-1/2,
 *
 *     dQ = dS K,    dK = dS^T Q,    dV = P^T dO,    dK and dV summed over the query heads that share them.
 *
 * A task is one sequence and one kv head. It goes through the query heads and, of each, the queries in blocks of
 * QUERIES. Of a block, tile by tile of queries: the scores of all keys up to the tile's last query, their softmax, dS,
 * and dQ, one chain over the keys. P and dS of the block stay, and are then added to dK and dV, tile by tile of keys:
 * one chain over the block's queries from the first that sees the tile, on top of what is there.
 *
 * Every product is a register tile of lanes_tile of rows and of panels (sixteen rows as lanes, channel by channel). A
 * masked key has P = 0 exactly, so what a wider tile adds cannot be seen, and bits are the same in all variants.
 * (Inputs are finite.) */
#include <math.h>
#include <omp.h>

#include "engine/base/mem.h"
#include "kernels/cpu/codes.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/shape.h"

#define QUERIES 32      /* per block; a multiple of LANES */
#define KEYS 64         /* P and dS are stored in blocks of so many keys */
#define HEAD_DIM 1024   /* the largest, as of attention */
#define P_STRIDE (KEYS + LANES)
#define P_BLOCK (QUERIES * P_STRIDE)
/* The register tile: LANES_TILE_ROWS by at most two vectors. */
#define VECTORS (LANES_TILE_VECTORS < 2 ? LANES_TILE_VECTORS : 2)

/* A thread's memory, some W (20 D + 320) bytes. W is the window rounded up to whole blocks of keys, D head_dim rounded
 * up to whole vectors; what is past their ends is zero. */
struct scratch {
    float *k, *dk, *dv;                    /* [W][D] */
    float *k_panels, *v_panels;            /* [W / LANES][D][LANES] */
    float *q, *g;                          /* [QUERIES][D]: the block's queries, and gradients at their outputs */
    float *q_panels, *g_panels;            /* [QUERIES / LANES][D][LANES] */
    float *p, *ds;                         /* [W / KEYS][QUERIES][P_STRIDE] */
    float dot[QUERIES], inverse[QUERIES];  /* D of the rows; 1 / sum of exp(s - m) */
};

struct task {
    const float *qkv, *out, *dout; /* the sequence's first rows */
    float *dqkv;
    int64_t width, out_width; /* floats per row */
    int64_t d, stride;        /* head_dim, and D of the scratch */
    int64_t window, k_offset, v_offset;
    int64_t head, heads; /* query heads */
    float scale;
};

static int64_t whole(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

static size_t scratch_floats(int64_t window, int64_t stride)
{
    int64_t w = whole(window, KEYS);
    return (size_t)(5 * w * stride + 4 * QUERIES * stride + 2 * w / KEYS * P_BLOCK);
}

static struct scratch scratch_at(float *room, int64_t window, int64_t stride)
{
    int64_t keys = whole(window, KEYS) * stride, queries = QUERIES * stride, p = whole(window, KEYS) / KEYS * P_BLOCK;
    struct scratch s;
    s.k = room, s.dk = s.k + keys, s.dv = s.dk + keys, s.k_panels = s.dv + keys, s.v_panels = s.k_panels + keys;
    s.q = s.v_panels + keys, s.g = s.q + queries, s.q_panels = s.g + queries, s.g_panels = s.q_panels + queries;
    s.p = s.g_panels + queries, s.ds = s.p + p;
    return s;
}

/* ------------------------------------------------------------------------------------------------------- operands */

/* Rows [0, n) of d floats, `step` apart, as `total` rows of `stride`. */
static void copy_rows(const float *from, int64_t step, int64_t n, int64_t d, int64_t total, int64_t stride, float *to)
{
    for (int64_t r = 0; r < total; r++)
        for (int64_t c = 0; c < stride; c += LANES)
            lanes_store(to + r * stride + c, r < n && c < d ? lanes_load_upto(from + r * step + c, d - c, 0.0f)
                                                            : lanes_zero());
}

/* `total` rows of `stride` as panels. */
static void copy_panels(const float *rows, int64_t total, int64_t stride, float *panels)
{
    struct lanes v[LANES];
    for (int64_t r = 0; r < total; r += LANES)
        for (int64_t c = 0; c < stride; c += LANES) {
            LANES_UNROLL
            for (int i = 0; i < LANES; i++)
                v[i] = lanes_load(rows + (r + i) * stride + c);
            codes_transpose(v);
            LANES_UNROLL
            for (int i = 0; i < LANES; i++)
                lanes_store(panels + (r / LANES * stride + c + i) * LANES, v[i]);
        }
}

/* Keys and values of the task; v's rows are needed as panels only. */
static void load_keys(const struct task *t, struct scratch *s)
{
    int64_t w = whole(t->window, KEYS);
    copy_rows(t->qkv + t->v_offset, t->width, t->window, t->d, w, t->stride, s->k);
    copy_panels(s->k, w, t->stride, s->v_panels);
    copy_rows(t->qkv + t->k_offset, t->width, t->window, t->d, w, t->stride, s->k);
    copy_panels(s->k, w, t->stride, s->k_panels);
}

/* `rows` queries of head h from q0 on, their output gradients, and D. */
static void load_queries(const struct task *t, struct scratch *s, int64_t h, int64_t q0, int64_t rows)
{
    int64_t at = (t->head + h) * t->d;
    copy_rows(t->qkv + q0 * t->width + at, t->width, rows, t->d, QUERIES, t->stride, s->q);
    copy_panels(s->q, QUERIES, t->stride, s->q_panels);
    copy_rows(t->dout + q0 * t->out_width + at, t->out_width, rows, t->d, QUERIES, t->stride, s->g);
    copy_panels(s->g, QUERIES, t->stride, s->g_panels);
    memset(s->dot, 0, sizeof s->dot);
    for (int64_t r = 0; r < rows; r++) {
        const float *out = t->out + (q0 + r) * t->out_width + at;
        struct lanes sum = lanes_zero();
        for (int64_t c = 0; c < t->d; c += LANES)
            sum = lanes_fma(lanes_load_upto(out + c, t->d - c, 0.0f), lanes_load(s->g + r * t->stride + c), sum);
        s->dot[r] = lanes_sum(sum);
    }
}

/* -------------------------------------------------------------------------------------- a tile of queries, all keys */

LANES_INLINE void clear(struct lanes acc[LANES_TILE_ROWS][LANES_TILE_VECTORS], const int vectors)
{
    LANES_UNROLL
    for (int r = 0; r < LANES_TILE_ROWS; r++) {
        LANES_UNROLL
        for (int v = 0; v < vectors; v++)
            acc[r][v] = lanes_zero();
    }
}

/* acc[r][v] = rows [row, row + LANES_TILE_ROWS) of the block's panels times keys [key, key + VECTORS LANES). */
LANES_INLINE void multiply(const struct task *t, const float *queries, int64_t row, const float *keys, int64_t key,
                           struct lanes acc[LANES_TILE_ROWS][LANES_TILE_VECTORS])
{
    clear(acc, VECTORS);
    lanes_tile(LANES_TILE_ROWS, VECTORS, t->d, queries + row / LANES * t->stride * LANES + row % LANES, 1, LANES,
               keys + key / LANES * t->stride * LANES, LANES, t->stride * LANES, LANES, acc);
}

/* Where P or dS of the block has (row, key); a multiple of LANES. */
static float *place(float *p, int64_t row, int64_t key)
{
    return p + key / KEYS * P_BLOCK + row * P_STRIDE + key % KEYS;
}

/* p = scores of `n` keys */
static void scores(const struct task *t, struct scratch *s, int64_t row, int64_t n)
{
    struct lanes scale = lanes_all(t->scale), acc[LANES_TILE_ROWS][LANES_TILE_VECTORS];
    for (int64_t key = 0; key < n; key += VECTORS * LANES) {
        multiply(t, s->q_panels, row, s->k_panels, key, acc);
        LANES_UNROLL
        for (int r = 0; r < LANES_TILE_ROWS; r++) {
            LANES_UNROLL
            for (int v = 0; v < VECTORS; v++)
                lanes_store(place(s->p, row + r, key) + v * LANES, lanes_mul(acc[r][v], scale));
        }
    }
}

/* Of n keys p = exp(p - m) up to the key `last`, which is the query, and 0 after it; and 1 / their sum. */
static void softmax(struct scratch *s, int64_t row, int64_t last, int64_t n)
{
    const struct lanes none = lanes_all(-INFINITY);
    struct lanes most = none, sum = lanes_zero();
    for (int64_t key = 0; key <= last; key += LANES)
        most = lanes_max(most, lanes_load_upto(place(s->p, row, key), last + 1 - key, -INFINITY));
    most = lanes_all(lanes_largest(most));
    for (int64_t key = 0; key < n; key += LANES) {
        float *p = place(s->p, row, key);
        struct lanes x = key <= last ? lanes_load_upto(p, last + 1 - key, -INFINITY) : none;
        x = lanes_exp(lanes_sub(x, most));
        lanes_store(p, x);
        sum = lanes_add(sum, x);
    }
    s->inverse[row] = 1.0f / lanes_sum(sum);
}

/* p /= sum, and ds from it */
static void gradients(const struct task *t, struct scratch *s, int64_t row, int64_t n)
{
    struct lanes scale = lanes_all(t->scale), acc[LANES_TILE_ROWS][LANES_TILE_VECTORS];
    for (int64_t key = 0; key < n; key += VECTORS * LANES) {
        multiply(t, s->g_panels, row, s->v_panels, key, acc);
        LANES_UNROLL
        for (int r = 0; r < LANES_TILE_ROWS; r++) {
            struct lanes inverse = lanes_all(s->inverse[row + r]), dot = lanes_all(s->dot[row + r]);
            LANES_UNROLL
            for (int v = 0; v < VECTORS; v++) {
                float *at = place(s->p, row + r, key) + v * LANES;
                struct lanes p = lanes_mul(lanes_load(at), inverse);
                lanes_store(at, p);
                lanes_store(at - s->p + s->ds, lanes_mul(lanes_mul(p, lanes_sub(acc[r][v], dot)), scale));
            }
        }
    }
}

/* dQ of a tile for `vectors` vectors of channels from c on: dS K over n keys. `rows` of the tile are there. */
LANES_INLINE void query_gradient(const struct task *t, const struct scratch *s, int64_t row, int64_t n, int64_t rows,
                                 int64_t c, const int vectors, float *dq)
{
    struct lanes acc[LANES_TILE_ROWS][LANES_TILE_VECTORS];
    clear(acc, vectors);
    for (int64_t key = 0; key < n; key += KEYS)
        lanes_tile(LANES_TILE_ROWS, vectors, n - key < KEYS ? n - key : KEYS, place(s->ds, row, key), P_STRIDE, 1,
                   s->k + key * t->stride + c, t->stride, LANES, LANES, acc);
    LANES_UNROLL
    for (int r = 0; r < LANES_TILE_ROWS; r++) {
        LANES_UNROLL
        for (int v = 0; v < vectors; v++)
            if (r < rows)
                lanes_store_upto(dq + r * t->width + c + v * LANES, acc[r][v], t->d - c - v * LANES);
    }
}

static void run_queries(const struct task *t, struct scratch *s, int64_t h, int64_t q0, int64_t row)
{
    int64_t end = q0 + row + LANES_TILE_ROWS, n = end < t->window ? end : t->window, c = 0;
    float *dq = t->dqkv + (q0 + row) * t->width + (t->head + h) * t->d;
    scores(t, s, row, n);
    for (int64_t r = 0; r < LANES_TILE_ROWS; r++)
        softmax(s, row + r, q0 + row + r < n ? q0 + row + r : n - 1, whole(n, VECTORS * LANES));
    gradients(t, s, row, n);
    for (; c + VECTORS * LANES <= t->stride; c += VECTORS * LANES)
        query_gradient(t, s, row, n, n - q0 - row, c, VECTORS, dq);
    for (; c < t->stride; c += LANES)
        query_gradient(t, s, row, n, n - q0 - row, c, 1, dq);
}

/* -------------------------------------------------------------------------------------- a tile of keys, all queries */

/* sum[key + r] += weights^T rows over n queries from `first` on, for `vectors` vectors of channels from c on. */
LANES_INLINE void key_gradient(const struct task *t, float *weights, const float *rows, int64_t key, int64_t first,
                               int64_t n, int64_t c, const int vectors, float *sum)
{
    struct lanes acc[LANES_TILE_ROWS][LANES_TILE_VECTORS];
    float *to = sum + key * t->stride + c;
    LANES_UNROLL
    for (int r = 0; r < LANES_TILE_ROWS; r++) {
        LANES_UNROLL
        for (int v = 0; v < vectors; v++)
            acc[r][v] = lanes_load(to + r * t->stride + v * LANES);
    }
    lanes_tile(LANES_TILE_ROWS, vectors, n, place(weights, first, key), 1, P_STRIDE, rows + first * t->stride + c,
               t->stride, LANES, LANES, acc);
    LANES_UNROLL
    for (int r = 0; r < LANES_TILE_ROWS; r++) {
        LANES_UNROLL
        for (int v = 0; v < vectors; v++)
            lanes_store(to + r * t->stride + v * LANES, acc[r][v]);
    }
}

static void run_keys(const struct task *t, struct scratch *s, int64_t q0, int64_t key, int64_t rows)
{
    int64_t first = key > q0 ? key - q0 : 0, n = rows - first, c = 0;
    for (; c + VECTORS * LANES <= t->stride; c += VECTORS * LANES) {
        key_gradient(t, s->ds, s->q, key, first, n, c, VECTORS, s->dk);
        key_gradient(t, s->p, s->g, key, first, n, c, VECTORS, s->dv);
    }
    for (; c < t->stride; c += LANES) {
        key_gradient(t, s->ds, s->q, key, first, n, c, 1, s->dk);
        key_gradient(t, s->p, s->g, key, first, n, c, 1, s->dv);
    }
}

/* ------------------------------------------------------------------------------------------------------------ tasks */

static void run_task(const struct task *t, struct scratch *s)
{
    size_t bytes = (size_t)(whole(t->window, KEYS) * t->stride) * sizeof *s->dk;
    load_keys(t, s);
    memset(s->dk, 0, bytes);
    memset(s->dv, 0, bytes);
    for (int64_t h = 0; h < t->heads; h++)
        for (int64_t q0 = 0; q0 < t->window; q0 += QUERIES) {
            int64_t rows = t->window - q0 < QUERIES ? t->window - q0 : QUERIES;
            load_queries(t, s, h, q0, rows);
            for (int64_t row = 0; row < rows; row += LANES_TILE_ROWS)
                run_queries(t, s, h, q0, row);
            for (int64_t key = 0; key < q0 + rows; key += LANES_TILE_ROWS)
                run_keys(t, s, q0, key, rows);
        }
    for (int64_t i = 0; i < t->window; i++) {
        memcpy(t->dqkv + i * t->width + t->k_offset, s->dk + i * t->stride, (size_t)t->d * sizeof *s->dk);
        memcpy(t->dqkv + i * t->width + t->v_offset, s->dv + i * t->stride, (size_t)t->d * sizeof *s->dv);
    }
}

bool CPU(attention_backward)(struct queue *q, const struct tensor *qkv, const struct attention_shape *s,
                             const struct tensor *out, const struct tensor *dout, struct tensor *dqkv, struct err *e)
{
    if (!shape_attention_backward(q, qkv, s, out, dout, dqkv, HEAD_DIM, e))
        return false;
    const int64_t d = s->head_dim, group = s->heads / s->kv_heads, window = s->window, stride = whole(d, LANES);
    const int64_t width = qkv->shape[1], tasks = qkv->shape[0] / window * s->kv_heads;
    const size_t each = scratch_floats(window, stride);
    int threads = cpu_threads(q, tensor_count(qkv) * window);
    threads = 1 <= tasks && tasks < threads ? (int)tasks : threads;
    float *room;
    if (!mem_raw(&room, (size_t)threads * each, e))
        return false;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < tasks; i++) {
        int64_t first = i / s->kv_heads * window, kv = i % s->kv_heads;
        struct scratch own = scratch_at(room + (size_t)omp_get_thread_num() * each, window, stride);
        struct task t = {.width = width, .out_width = s->heads * d, .d = d, .stride = stride, .window = window,
                         .head = kv * group, .heads = group, .scale = 1.0f / sqrtf((float)d)};
        t.qkv = (const float *)qkv->data + first * width;
        t.dqkv = (float *)dqkv->data + first * width;
        t.out = (const float *)out->data + first * t.out_width;
        t.dout = (const float *)dout->data + first * t.out_width;
        t.k_offset = (s->heads + kv) * d;
        t.v_offset = (s->heads + s->kv_heads + kv) * d;
        run_task(&t, &own);
    }
    mem_free(room);
    return true;
}
