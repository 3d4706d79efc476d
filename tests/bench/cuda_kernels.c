/* Each kernel alone, at a layer's shapes: those that memory bounds as a share of the copy, the others as FLOP/s. */
#include "tests/bench/cuda.h"

#include <math.h>
#include <stdio.h>

#include "engine/base/mem.h"
#include "nodes/format/packed.h"

#define TARGET 0.70 /* of the bytes per second of a copy */

/* What kernels need beside the blocks. */
struct set {
    struct tensor norm, ids, cosine, sine, gram, state, dots;
    struct tensor plain, panels; /* bf16 panels of gate and up: a source and a target */
    struct tensor turned;        /* the same, transposed */
    uint64_t *seeds;             /* [head_rows] */
    struct packed_matrix to[CODE_COUNT], from[CODE_COUNT]; /* of down to encode into, of gate and up to unpack */
    struct attention_shape shape;
    int64_t rows, qkv, up; /* tokens, columns of q, k and v, rows of gate and up */
    int which;             /* the code or rule of the kernel in hand */
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

static void run_input(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(s->rows, b->s.intermediate), y = Y(s->rows, b->s.intermediate);
    bench_must(b->k->fake_quantize(b->q, &x, (enum act_rule)s->which, s->which == ACT_NVFP4 ? 2688.0f / 4.0f : 0.0f,
                                   DTYPE_BF16, &y, &e), &e);
}

static void run_unpack(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct packed_matrix w = {.code = CODE_PLAIN, .n = s->up, .k = b->s.hidden, .part = {s->plain}};
    (void)turn;
    w.part[0].layout = TENSOR_ROWS;
    bench_must(b->k->unpack(b->q, s->which == CODE_PLAIN ? &w : &s->from[s->which], 0, &s->panels, &e), &e);
}

static void run_encode(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct packed_matrix *to = &s->to[s->which];
    struct tensor w = X(to->n, to->k), d = Y(to->n, to->k);
    bench_must(b->k->encode(b->q, &w, 4.0f, to, &d, &e), &e);
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

static void run_rmsnorm_backward(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(s->rows, b->s.hidden), d = D(s->rows, b->s.hidden), y = Y(s->rows, b->s.hidden);
    bench_must(b->k->rmsnorm_backward(b->q, &x, &s->norm, 1e-5f, &d, &y, &e), &e);
}

static void run_swiglu_backward(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(s->rows, s->up), d = D(s->rows, b->s.intermediate), y = Y(s->rows, s->up);
    bench_must(b->k->swiglu_backward(b->q, &x, &d, &y, &e), &e);
}

static void run_attention_backward(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(s->rows, s->qkv), d = D(s->rows, (int64_t)b->s.heads * b->s.head_dim), y = Y(s->rows, s->qkv);
    bench_must(b->k->attention_backward(b->q, &x, &s->shape, &d, &d, &y, &e), &e);
}

static void run_transpose(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    (void)turn;
    bench_must(b->k->transpose(b->q, &s->plain, &s->turned, &e), &e);
}

static void run_subtract(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(s->rows, b->s.hidden), d = D(s->rows, b->s.hidden), y = Y(s->rows, b->s.hidden);
    bench_must(b->k->subtract(b->q, &x, &d, &y, &e), &e);
}

static void run_dots(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor x = X(s->rows, b->s.intermediate), d = D(s->rows, b->s.intermediate);
    bench_must(b->k->window_dots(b->q, &x, &d, b->s.window, &s->dots, NULL, &e), &e);
}

static void run_draw(struct bench *b, void *context, int turn)
{
    struct err e;
    struct set *s = context;
    struct tensor y = Y(b->k->head_rows, b->k->head_columns);
    bench_must(b->k->fisher_draw(b->q, &y, (enum fisher_draw)s->which, s->seeds, &e), &e);
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
    s->dots = bench_new(b, DTYPE_F64, b->s.windows, 0);
    bench_must(mem_raw(&s->seeds, (size_t)rows, &e), &e);
    for (int64_t i = 0; i < rows; i++)
        s->seeds[i] = (uint64_t)i + 1;
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
    bench_must(b->k->panels_new(b->q, &s->turned, h, s->up, DTYPE_BF16, &e), &e);
    for (size_t f = 0; formats[f]; f++) {
        enum weight_code code = formats[f]->code;
        if (code == CODE_PLAIN || s->to[code].n > 0 || !format_fits(formats[f], i, h))
            continue;
        s->to[code] = bench_packed(b, formats[f], i, h, 0.02f);
        s->from[code] = bench_packed(b, formats[f], s->up, h, 0.02f);
    }
    set_small(b, s);
}

static void set_fini(struct bench *b, struct set *s)
{
    struct tensor *all[] = {&s->norm, &s->ids,   &s->cosine, &s->sine,  &s->gram,
                            &s->state, &s->dots, &s->plain,  &s->panels, &s->turned};
    mem_free(s->seeds);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        bench_free(b, all[i]);
    for (int code = 0; code < CODE_COUNT; code++) {
        packed_free(b->q, &s->to[code]);
        packed_free(b->q, &s->from[code]);
    }
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

static void tell_bound(struct bench *b, struct set *s, const struct bound *what)
{
    char name[128];
    double work = what->bytes * (double)(what->rows * what->columns);
    struct bench_time m = bench_time(b, what->run, s, work, &b->copy);
    snprintf(name, sizeof name, "%s, %lld x %lld, %g bytes each: share of the copy", what->name,
             (long long)what->rows, (long long)what->columns, what->bytes);
    bench_figure(b, name, m.share, "", TARGET);
}

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
        {"kl_tile", run_kl, b->k->head_rows, b->k->head_columns, 8},
        {"amax", run_amax, t, i, 4},
        {"energy", run_energy, i, h, 8},
        {"rmsnorm_backward", run_rmsnorm_backward, t, h, 16},
        {"swiglu_backward", run_swiglu_backward, t, i, 20},
        {"transpose of bf16", run_transpose, s->up, h, 4},
        {"subtract", run_subtract, t, h, 12},
        {"window_dots", run_dots, t, i, 8},
    };
    for (size_t n = 0; n < sizeof all / sizeof *all; n++)
        tell_bound(b, s, &all[n]);
    for (s->which = FISHER_LABEL; s->which <= FISHER_SIGN; s->which++)
        tell_bound(b, s, &(struct bound){s->which == FISHER_SIGN ? "fisher_draw of signs" : "fisher_draw of labels",
                                         run_draw, b->k->head_rows, b->k->head_columns, 8});
}

static void bench_inputs(struct bench *b, struct set *s)
{
    static const char *const names[ACT_COUNT] = {
        [ACT_NONE] = "rounding to bf16", [ACT_NVFP4] = "nvfp4", [ACT_FP8_TOKEN] = "fp8", [ACT_MXFP4] = "mxfp4",
        [ACT_FP8_GROUP] = "fp8 in groups", [ACT_MXFP8] = "mxfp8", [ACT_INT8_TOKEN] = "int8"};
    for (s->which = 0; s->which < ACT_COUNT; s->which++) {
        char name[64];
        snprintf(name, sizeof name, "fake_quantize, %s", names[s->which]);
        tell_bound(b, s, &(struct bound){name, run_input, s->rows, b->s.intermediate, 8});
    }
}

/* Codes and scales, and two bytes of panels, or four of w and of what is left of it. */
static void bench_codes(struct bench *b, struct set *s)
{
    int64_t h = b->s.hidden, i = b->s.intermediate;
    s->which = CODE_PLAIN;
    tell_bound(b, s, &(struct bound){"unpack of bf16 to bf16", run_unpack, s->up, h, 4});
    for (size_t f = 0; formats[f]; f++) {
        char name[64];
        s->which = formats[f]->code;
        if (s->to[s->which].n == 0 || (formats[f + 1] && formats[f + 1]->code == formats[f]->code))
            continue; /* of a code, the last format */
        double each = (double)packed_bytes(formats[f], s->up, h, DTYPE_BF16) / (double)(s->up * h);
        snprintf(name, sizeof name, "unpack of %s to bf16", formats[f]->name);
        tell_bound(b, s, &(struct bound){name, run_unpack, s->up, h, each + 2.0});
        snprintf(name, sizeof name, "encode to %s", formats[f]->name);
        tell_bound(b, s, &(struct bound){name, run_encode, i, h, each + 8.0});
    }
}

/* Of attention: two products over the keys that a query sees, and five of its gradient (which computes eight). Of gram:
 * the lower triangle. */
static void bench_computing(struct bench *b, struct set *s)
{
    char name[160];
    double t = (double)s->rows, h = (double)b->s.hidden, width = (double)b->s.heads * b->s.head_dim;
    struct bench_time m = bench_time(b, run_attention, s, 0.0, NULL);
    snprintf(name, sizeof name, "attention, %d heads over %d of %d, %d windows of %d, f32", b->s.heads, b->s.kv_heads,
             b->s.head_dim, b->s.windows, b->s.window);
    bench_figure(b, name, 4e-12 * t * width * 0.5 * (b->s.window + 1) / m.seconds, "TFLOP/s", NAN);
    m = bench_time(b, run_attention_backward, s, 0.0, NULL);
    snprintf(name, sizeof name, "attention_backward, %d heads over %d of %d, %d windows of %d, f32", b->s.heads,
             b->s.kv_heads, b->s.head_dim, b->s.windows, b->s.window);
    bench_figure(b, name, 10e-12 * t * width * 0.5 * (b->s.window + 1) / m.seconds, "TFLOP/s", NAN);
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
    bench_inputs(b, &s);
    bench_codes(b, &s);
    bench_computing(b, &s);
    set_fini(b, &s);
}
