/* Each kernel alone, at a layer's shapes: those that memory bounds as a share of the copy, the others as FLOP/s. */
#include "tests/bench/cuda.h"

#include <math.h>
#include <stdio.h>

#include "engine/base/mem.h"
#include "nodes/format/packed.h"

#define TARGET 0.70 /* of the bytes per second of a copy */

/* What kernels need beside the blocks. */
struct set {
    struct tensor norm, ids, cosine, sine, gram, state;
    struct tensor plain, panels; /* bf16 panels of gate and up: a source and a target */
    struct packed_matrix fp8, nvfp4, wide_fp8, wide_nvfp4; /* of down to encode into, of gate and up to unpack */
    struct attention_shape shape;
    int64_t rows, qkv, up; /* tokens, columns of q, k and v, rows of gate and up */
};

/* Views of this turn: x and d are read, y is written. */
#define X(rows, columns) bench_view(b, BLOCK_X, turn, rows, columns)
#define D(rows, columns) bench_view(b, BLOCK_D, turn, rows, columns)
#define Y(rows, columns) bench_view(b, BLOCK_Y, turn, rows, columns)

static void run_rmsnorm(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(s->rows, b->s.hidden), y = Y(s->rows, b->s.hidden);
    bench_must(b->k->rmsnorm(b->q, &x, &s->norm, 1e-5f, &y, &e), &e);
}

static void run_add_rmsnorm(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(s->rows, b->s.hidden), d = D(s->rows, b->s.hidden), y = Y(s->rows, b->s.hidden);
    bench_must(b->k->add_rmsnorm(b->q, &x, &d, &s->norm, 1e-5f, &y, &e), &e);
}

static void run_add(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(s->rows, b->s.hidden), d = D(s->rows, b->s.hidden);
    bench_must(b->k->add(b->q, &x, &d, &e), &e);
}

static void run_rope(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(s->rows, s->qkv);
    bench_must(b->k->rope(b->q, &x, &s->shape, &s->cosine, &s->sine, &e), &e);
}

static void run_swiglu(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(s->rows, s->up), y = Y(s->rows, b->s.intermediate);
    bench_must(b->k->swiglu(b->q, &x, &y, &e), &e);
}

/* The table is read where the ids point: all over its rows. */
static void run_embed(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor table = s->plain, y = Y(s->rows, b->s.hidden);
    table.layout = TENSOR_ROWS; /* `hidden` is a multiple of 16, so panels have no padding */
    bench_must(b->k->embed(b->q, &table, &s->ids, &y, &e), &e);
}

static void quantize(struct bench *b, struct set *s, int turn, enum act_rule rule, float scale)
{
    struct err e;
    struct tensor x = X(s->rows, b->s.intermediate), y = Y(s->rows, b->s.intermediate);
    bench_must(b->k->fake_quantize(b->q, &x, rule, scale, DTYPE_BF16, &y, &e), &e);
}
static void run_round(struct bench *b, void *s, int turn) { quantize(b, s, turn, ACT_NONE, 0.0f); }
static void run_nvfp4_input(struct bench *b, void *s, int turn) { quantize(b, s, turn, ACT_NVFP4, 2688.0f / 4.0f); }
static void run_fp8_input(struct bench *b, void *s, int turn) { quantize(b, s, turn, ACT_FP8_TOKEN, 0.0f); }

static void unpack(struct bench *b, struct set *s, const struct packed_matrix *w)
{
    struct err e;
    bench_must(b->k->unpack(b->q, w, 0, &s->panels, &e), &e);
}

static void run_unpack_plain(struct bench *b, void *context, int turn)
{
    struct set *s = context;
    struct packed_matrix w = {.code = CODE_PLAIN, .n = s->up, .k = b->s.hidden, .part = {s->plain}};
    (void)turn;
    w.part[0].layout = TENSOR_ROWS;
    unpack(b, s, &w);
}
static void run_unpack_fp8(struct bench *b, void *context, int turn)
{
    struct set *s = context;
    (void)turn;
    unpack(b, s, &s->wide_fp8);
}
static void run_unpack_nvfp4(struct bench *b, void *context, int turn)
{
    struct set *s = context;
    (void)turn;
    unpack(b, s, &s->wide_nvfp4);
}

static void encode(struct bench *b, int turn, struct packed_matrix *to)
{
    struct err e;
    struct tensor w = X(to->n, to->k), d = Y(to->n, to->k);
    bench_must(b->k->encode(b->q, &w, 4.0f, to, &d, &e), &e);
}
static void run_encode_fp8(struct bench *b, void *context, int turn) { encode(b, turn, &((struct set *)context)->fp8); }
static void run_encode_nvfp4(struct bench *b, void *context, int turn)
{
    encode(b, turn, &((struct set *)context)->nvfp4);
}

/* Out of the caches, unlike in a pass, where the product has just left the logits there. */
static void run_kl(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(b->k->head_rows, b->k->head_columns), d = D(b->k->head_rows, b->k->head_columns);
    struct kl_state state = kl_state_at(s->state.data, b->k->head_rows);
    bench_must(b->k->kl_tile(b->q, &x, &d, 0, &state, &e), &e);
}

/* Each call of these two waits for its result. */
static void run_amax(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(s->rows, b->s.intermediate);
    float amax = 0.0f;
    bench_must(b->k->amax(b->q, &x, &amax, &e), &e);
}

static void run_energy(struct bench *b, void *context, int turn)
{
    struct err e;
    struct tensor x = X(b->s.intermediate, b->s.hidden), y = D(b->s.intermediate, b->s.hidden);
    double square = 0.0, energy = 0.0;
    (void)context;
    bench_must(b->k->energy(b->q, &x, &y, &square, &energy, &e), &e);
}

static void run_attention(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(s->rows, s->qkv), y = Y(s->rows, (int64_t)b->s.heads * b->s.head_dim);
    bench_must(b->k->attention(b->q, &x, &s->shape, &y, &e), &e);
}

static void run_gram(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(s->rows, b->s.hidden);
    bench_must(b->k->gram(b->q, &x, &s->gram, &e), &e);
}

/* -------------------------------------------------------------------------------------------------------------- set */

static void set_small(struct bench *b, struct set *s)
{
    struct err e;
    int32_t *ids;
    void *zeros, *block;
    int64_t rows = b->k->head_rows, h = b->s.hidden;
    bench_must(mem_raw(&ids, (size_t)s->rows, &e), &e);
    for (int64_t i = 0; i < s->rows; i++)
        ids[i] = (int32_t)(i * 7919 % s->up);
    s->ids = bench_upload(b, DTYPE_I32, s->rows, 0, ids);
    mem_free(ids);
    bench_must(mem_new_bytes(&zeros, (size_t)(h * h), sizeof(double), &e), &e);
    s->gram = bench_upload(b, DTYPE_F64, h, h, zeros);
    mem_free(zeros);
    bench_must(mem_new_bytes(&block, KL_STATE_BYTES(rows), 1, &e), &e);
    struct kl_state state = kl_state_at(block, rows);
    kl_state_init(&state, rows);
    for (int64_t i = 0; i < rows; i++)
        state.target[i] = (int32_t)(i % b->k->head_columns);
    s->state = bench_upload(b, DTYPE_U8, (int64_t)KL_STATE_BYTES(rows), 0, block);
    mem_free(block);
}

static void set_init(struct bench *b, struct set *s)
{
    struct err e;
    int64_t h = b->s.hidden, i = b->s.intermediate;
    *s = (struct set){.rows = bench_rows(b), .up = 2 * i};
    s->shape = (struct attention_shape){b->s.heads, b->s.kv_heads, b->s.head_dim, b->s.window};
    s->qkv = (int64_t)(b->s.heads + 2 * b->s.kv_heads) * b->s.head_dim;
    s->norm = bench_new(b, DTYPE_F32, h, 0);
    bench_fill(b, &s->norm, 1.0f);
    bench_rope(b, &s->cosine, &s->sine);
    s->plain = bench_panels(b, s->up, h, 0.02f);
    bench_must(b->k->panels_new(b->q, &s->panels, s->up, h, DTYPE_BF16, &e), &e);
    s->fp8 = bench_packed(b, &format_fp8, i, h, 0.02f);
    s->nvfp4 = bench_packed(b, &format_nvfp4, i, h, 0.02f);
    s->wide_fp8 = bench_packed(b, &format_fp8, s->up, h, 0.02f);
    s->wide_nvfp4 = bench_packed(b, &format_nvfp4, s->up, h, 0.02f);
    set_small(b, s);
}

static void set_fini(struct bench *b, struct set *s)
{
    struct tensor *all[] = {&s->norm, &s->ids, &s->cosine, &s->sine, &s->gram, &s->state, &s->plain, &s->panels};
    struct packed_matrix *packed[] = {&s->fp8, &s->nvfp4, &s->wide_fp8, &s->wide_nvfp4};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        bench_free(b, all[i]);
    for (size_t i = 0; i < sizeof packed / sizeof *packed; i++)
        packed_free(b->q, packed[i]);
}

/* ----------------------------------------------------------------------------------------------------------- tables */

/* A kernel that reads and writes `bytes` for each of rows x columns elements. What it reads a second time is counted
 * once: it should come from a cache. */
struct bound {
    const char *name;
    bench_run run;
    int64_t rows, columns;
    double bytes;
};

static void bench_bound(struct bench *b, struct set *s)
{
    int64_t t = s->rows, h = b->s.hidden, i = b->s.intermediate, rotated = (int64_t)(b->s.heads + b->s.kv_heads);
    const struct bound all[] = {
        {"rmsnorm", run_rmsnorm, t, h, 8},
        {"add_rmsnorm", run_add_rmsnorm, t, h, 16},
        {"add", run_add, t, h, 12},
        {"rope", run_rope, t, rotated * b->s.head_dim, 8},
        {"swiglu", run_swiglu, t, i, 12},
        {"embed of bf16", run_embed, t, h, 6},
        {"fake_quantize, rounding to bf16", run_round, t, i, 8},
        {"fake_quantize, nvfp4", run_nvfp4_input, t, i, 8},
        {"fake_quantize, fp8", run_fp8_input, t, i, 8},
        {"unpack of bf16 to bf16", run_unpack_plain, s->up, h, 4},
        {"unpack of fp8 to bf16", run_unpack_fp8, s->up, h, 3},
        {"unpack of nvfp4 to bf16", run_unpack_nvfp4, s->up, h, 2.5625},
        {"encode to fp8", run_encode_fp8, i, h, 9},
        {"encode to nvfp4", run_encode_nvfp4, i, h, 8.5625},
        {"kl_tile", run_kl, b->k->head_rows, b->k->head_columns, 8},
        {"amax", run_amax, t, i, 4},
        {"energy", run_energy, i, h, 8},
    };
    for (size_t n = 0; n < sizeof all / sizeof *all; n++) {
        char name[128];
        double work = all[n].bytes * (double)(all[n].rows * all[n].columns);
        struct bench_time m = bench_time(b, all[n].run, s, work, &b->copy);
        snprintf(name, sizeof name, "%s, %lld x %lld, %g bytes each: share of the copy", all[n].name,
                 (long long)all[n].rows, (long long)all[n].columns, all[n].bytes);
        bench_figure(b, name, m.share, "", TARGET);
    }
}

/* Of attention: two products over the keys that a query sees. Of gram: the lower triangle. */
static void bench_computing(struct bench *b, struct set *s)
{
    char name[128];
    double t = (double)s->rows, h = (double)b->s.hidden, width = (double)b->s.heads * b->s.head_dim;
    struct bench_time m = bench_time(b, run_attention, s, 0.0, NULL);
    snprintf(name, sizeof name, "attention, %d heads over %d of %d, %d windows of %d, f32", b->s.heads, b->s.kv_heads,
             b->s.head_dim, b->s.windows, b->s.window);
    bench_figure(b, name, 4e-12 * t * width * 0.5 * (b->s.window + 1) / m.seconds, "TFLOP/s", NAN);
    m = bench_time(b, run_gram, s, 0.0, NULL);
    snprintf(name, sizeof name, "gram, %lld tokens, lower triangle of %lld, f32", (long long)s->rows,
             (long long)b->s.hidden);
    bench_figure(b, name, 1e-12 * t * h * (h + 1.0) / m.seconds, "TFLOP/s", NAN);
}

void bench_kernels(struct bench *b)
{
    struct set s;
    set_init(b, &s);
    bench_bound(b, &s);
    bench_computing(b, &s);
    set_fini(b, &s);
}
