/* Causal grouped-query attention over packed sequences (model-architectures 1.4), softmax in f32.
 *
 * A task is one sequence, one kv head, up to 256 queries and up to 8 of the query heads that share the kv head. It
 * walks the keys in blocks of 64 from the sequence's start. For 8 queries at a time: scores of the block as a register
 * tile (one chain of fused multiply-adds over head_dim, then times head_dim^-1/2), running maximum m and sum of
 * exp(s - m), and the unnormalised output in `out`, rescaled by exp(m_old - m_new) before the block's p v is added (one
 * chain over the keys). At the end the output is divided by the sum.
 *
 * Blocks are counted from the start of the sequence, and a masked key has p = 0 exactly, so a row's bits depend only on
 * the rows before it. (Inputs are finite: 0 times an infinite v of a later row would be NaN.) */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes.h"
#include "kernels/shape.h"

#define KEYS 64         /* per block */
#define QUERIES 8       /* per tile; divides KEYS */
#define TASK_QUERIES 256
#define TASK_HEADS 8
#define HEAD_DIM 1024   /* the largest */
#define KEY_PANELS (KEYS / LANES)
#define Q_STRIDE (HEAD_DIM + LANES) /* a fixed stride, not a power of two */
#define P_STRIDE (KEYS + LANES)
/* The register tile: LANES_TILE_ROWS by at most two vectors. */
#define VECTORS (LANES_TILE_VECTORS < 2 ? LANES_TILE_VECTORS : 2)

struct scratch {
    _Alignas(64) float keys[KEY_PANELS * HEAD_DIM * LANES]; /* [panel][channel][16 keys] */
    _Alignas(64) float q[QUERIES * Q_STRIDE];
    _Alignas(64) float p[QUERIES * P_STRIDE]; /* scores, then exp(s - m) */
    _Alignas(64) float spare[HEAD_DIM];       /* output of queries past the end of the sequence */
    float m[TASK_HEADS][TASK_QUERIES], sum[TASK_HEADS][TASK_QUERIES];
    _Alignas(64) float fade[LANES]; /* exp(m_old - m_new) of the tile's queries */
};

struct task {
    const float *qkv; /* the sequence's first row */
    float *out;
    int64_t width, out_width; /* floats per row */
    int64_t d;
    int64_t k_offset, v_offset; /* of the kv head in a row of qkv */
    int64_t head, heads;        /* query heads */
    int64_t first, end;         /* queries */
    float scale;
};

/* Keys [j0, j0 + n) as panels, the missing ones of the last panel zero. */
static void pack_keys(const struct task *t, int64_t j0, int64_t n, float *keys)
{
    for (int64_t c = 0; c < (n + LANES - 1) / LANES * LANES; c++) {
        const float *row = t->qkv + (j0 + c) * t->width + t->k_offset;
        float *out = keys + c / LANES * t->d * LANES + c % LANES;
        for (int64_t i = 0; i < t->d; i++)
            out[i * LANES] = c < n ? row[i] : 0.0f;
    }
}

/* p[r][c] = scale * q[r] . key[c] for rows [row, row + LANES_TILE_ROWS) and the panels of `n` keys. */
static void scores(const struct task *t, struct scratch *s, int64_t row, int64_t n)
{
    struct lanes scale = lanes_all(t->scale);
    for (int64_t panel = 0; panel * LANES < n; panel += VECTORS) {
        struct lanes acc[LANES_TILE_ROWS][LANES_TILE_VECTORS];
        LANES_UNROLL
        for (int r = 0; r < LANES_TILE_ROWS; r++) {
            LANES_UNROLL
            for (int v = 0; v < VECTORS; v++)
                acc[r][v] = lanes_zero();
        }
        lanes_tile(LANES_TILE_ROWS, VECTORS, t->d, s->q + row * Q_STRIDE, Q_STRIDE, 1,
                   s->keys + panel * t->d * LANES, LANES, t->d * LANES, LANES, acc);
        LANES_UNROLL
        for (int r = 0; r < LANES_TILE_ROWS; r++) {
            LANES_UNROLL
            for (int v = 0; v < VECTORS; v++)
                lanes_store(s->p + (row + r) * P_STRIDE + (panel + v) * LANES, lanes_mul(acc[r][v], scale));
        }
    }
}

/* Turns the scores of a tile of queries (the first is q0) into exp(s - m), and updates m, sum and fade. */
static void softmax(struct scratch *s, int64_t q0, int64_t j0, float *m, float *sum)
{
    for (int64_t r = 0; r < QUERIES; r++) {
        float *p = s->p + r * P_STRIDE;
        for (int64_t c = q0 + r - j0 + 1; c < KEYS; c++) /* keys after the query */
            p[c] = -INFINITY;
        struct lanes a = lanes_max(lanes_load(p), lanes_load(p + LANES));
        struct lanes b = lanes_max(lanes_load(p + 2 * LANES), lanes_load(p + 3 * LANES));
        float most = lanes_largest(lanes_max(a, b));
        most = most > m[r] ? most : m[r];
        s->fade[r] = m[r] - most;
        m[r] = most;
    }
    lanes_store(s->fade, lanes_exp(lanes_load(s->fade)));
    for (int64_t r = 0; r < QUERIES; r++) {
        float *p = s->p + r * P_STRIDE;
        struct lanes v[KEY_PANELS], top = lanes_all(m[r]);
        LANES_UNROLL
        for (int c = 0; c < KEY_PANELS; c++) {
            v[c] = lanes_exp(lanes_sub(lanes_load(p + c * LANES), top));
            lanes_store(p + c * LANES, v[c]);
        }
        sum[r] = sum[r] * s->fade[r] + lanes_sum(lanes_add(lanes_add(v[0], v[1]), lanes_add(v[2], v[3])));
    }
}

/* out[r][c..] = out[r][c..] * fade[r] + sum over n keys p[r][j] * v[j][c..] for LANES_TILE_ROWS rows and `vectors`
 * vectors from channel c, of the last of which `last` lanes exist. `first`: out holds nothing yet. */
LANES_INLINE void values(const struct task *t, struct scratch *s, float *const *out, int64_t row, const float *v,
                         int64_t n, int64_t c, const int vectors, int64_t last, bool first)
{
    struct lanes acc[LANES_TILE_ROWS][LANES_TILE_VECTORS];
    LANES_UNROLL
    for (int r = 0; r < LANES_TILE_ROWS; r++) {
        struct lanes fade = lanes_all(s->fade[row + r]);
        LANES_UNROLL
        for (int i = 0; i < vectors; i++) {
            int64_t some = i + 1 < vectors ? LANES : last;
            acc[r][i] = first ? lanes_zero()
                              : lanes_mul(lanes_load_upto(out[row + r] + c + i * LANES, some, 0.0f), fade);
        }
    }
    lanes_tile(LANES_TILE_ROWS, vectors, n, s->p + row * P_STRIDE, P_STRIDE, 1, v + c, t->width, LANES, last, acc);
    LANES_UNROLL
    for (int r = 0; r < LANES_TILE_ROWS; r++) {
        LANES_UNROLL
        for (int i = 0; i < vectors; i++)
            lanes_store_upto(out[row + r] + c + i * LANES, acc[r][i], i + 1 < vectors ? LANES : last);
    }
}

/* One tile of queries, from q0, of query head `h` of the task against the packed keys [j0, j0 + KEYS). */
static void run_tile(const struct task *t, struct scratch *s, int64_t h, int64_t q0, int64_t j0)
{
    int64_t rows = t->end - q0 < QUERIES ? t->end - q0 : QUERIES, d = t->d;
    int64_t n = q0 + rows - j0 < KEYS ? q0 + rows - j0 : KEYS;
    float *out[QUERIES];
    for (int64_t r = 0; r < QUERIES; r++) {
        /* Queries past the end repeat the last one; what they give goes to the spare row. */
        int64_t i = q0 + (r < rows ? r : rows - 1);
        memcpy(s->q + r * Q_STRIDE, t->qkv + i * t->width + (t->head + h) * d, (size_t)d * sizeof *s->q);
        out[r] = r < rows ? t->out + i * t->out_width + (t->head + h) * d : s->spare;
    }
    for (int64_t row = 0; row < QUERIES; row += LANES_TILE_ROWS)
        scores(t, s, row, n);
    softmax(s, q0, j0, s->m[h] + (q0 - t->first), s->sum[h] + (q0 - t->first));
    const float *v = t->qkv + j0 * t->width + t->v_offset;
    for (int64_t row = 0; row < QUERIES; row += LANES_TILE_ROWS) {
        int64_t c = 0;
        for (; c + VECTORS * LANES <= d; c += VECTORS * LANES)
            values(t, s, out, row, v, n, c, VECTORS, LANES, j0 == 0);
        for (; c < d; c += LANES)
            values(t, s, out, row, v, n, c, 1, d - c < LANES ? d - c : LANES, j0 == 0);
    }
}

static void divide(const struct task *t, const struct scratch *s)
{
    for (int64_t h = 0; h < t->heads; h++) {
        for (int64_t i = t->first; i < t->end; i++) {
            struct lanes sum = lanes_all(s->sum[h][i - t->first]);
            float *out = t->out + i * t->out_width + (t->head + h) * t->d;
            for (int64_t c = 0; c < t->d; c += LANES)
                lanes_store_upto(out + c, lanes_div(lanes_load_upto(out + c, t->d - c, 0.0f), sum), t->d - c);
        }
    }
}

static void run_task(const struct task *t)
{
    struct scratch s;
    memset(s.spare, 0, sizeof s.spare);
    memset(s.fade, 0, sizeof s.fade);
    memset(s.p, 0, sizeof s.p);
    memset(s.sum, 0, sizeof s.sum);
    for (int64_t h = 0; h < TASK_HEADS; h++)
        for (int64_t i = 0; i < TASK_QUERIES; i++)
            s.m[h][i] = -INFINITY;
    for (int64_t j0 = 0; j0 < t->end; j0 += KEYS) {
        pack_keys(t, j0, t->end - j0 < KEYS ? t->end - j0 : KEYS, s.keys);
        for (int64_t h = 0; h < t->heads; h++)
            for (int64_t q0 = j0 > t->first ? j0 : t->first; q0 < t->end; q0 += QUERIES)
                run_tile(t, &s, h, q0, j0);
    }
    divide(t, &s);
}

bool CPU(attention)(struct queue *q, const struct tensor *qkv, const struct attention_shape *s, struct tensor *out,
                    struct err *e)
{
    if (!shape_attention(q, qkv, s, out, HEAD_DIM, e))
        return false;
    const int64_t d = s->head_dim, group = s->heads / s->kv_heads, window = s->window;
    const int64_t chunks = (group + TASK_HEADS - 1) / TASK_HEADS, parts = (window + TASK_QUERIES - 1) / TASK_QUERIES;
    const int64_t sequences = qkv->shape[0] / window;
    const float scale = 1.0f / sqrtf((float)d);
#pragma omp parallel for num_threads(cpu_threads(q, tensor_count(qkv) * window)) schedule(dynamic)
    for (int64_t i = 0; i < sequences * s->kv_heads * chunks * parts; i++) {
        int64_t part = parts - 1 - i % parts; /* the longest first */
        int64_t chunk = i / parts % chunks, kv = i / parts / chunks % s->kv_heads;
        int64_t sequence = i / parts / chunks / s->kv_heads;
        struct task t = {.width = qkv->shape[1], .out_width = out->shape[1], .d = d, .scale = scale};
        t.qkv = (const float *)qkv->data + sequence * window * t.width;
        t.out = (float *)out->data + sequence * window * t.out_width;
        t.k_offset = (s->heads + kv) * d;
        t.v_offset = (s->heads + s->kv_heads + kv) * d;
        t.head = kv * group + chunk * TASK_HEADS;
        t.heads = group - chunk * TASK_HEADS < TASK_HEADS ? group - chunk * TASK_HEADS : TASK_HEADS;
        t.first = part * TASK_QUERIES;
        t.end = t.first + TASK_QUERIES < window ? t.first + TASK_QUERIES : window;
        run_task(&t);
    }
    return true;
}
