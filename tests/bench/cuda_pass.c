/* A whole measuring pass of one candidate, by the code that measures (nodes/model/pass.c), on a model of a 27B model's
 * shapes with random weights and as few layers as its head leaves room for: a layer's time is multiplied to get that of
 * all. The model is made in memory and has no files, so this fills in struct forward itself. */
#include "tests/bench/cuda.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "nodes/model/pass.h"
#include "tests/bench/cuda_weights.h"

#define TARGET 0.60 /* of the FLOP/s of the large square: what the products alone come to in the time of a pass */
#define MOST_SWITCH 0.10 /* of a layer's forward: what it costs to have it in another format */
#define MOST_LAYERS 8
#define UNITS (MOST_LAYERS * LAYER_UNITS)
#define MATRICES (MOST_LAYERS * 7)
#define WEIGHT 0.02f /* standard deviation */

/* The format index of the panels that the teacher has; those below it are BENCH_*. */
#define ORIGINAL BENCH_FORMATS

struct net {
    struct bench *b;
    struct model model;
    struct matrix matrices[MATRICES];
    struct unit units[UNITS];
    struct forward f;
    struct token_set tokens;
    float *teacher;
    struct tensor panels[UNITS];   /* as the products read them */
    struct bench_weights weights;  /* the same, packed */
    struct tensor x;               /* [tokens, hidden] */
};

/* One format for all units. */
struct candidate {
    struct net *n;
    int format;
    double kl; /* of the last pass, summed */
};

/* ------------------------------------------------------------------------------------------------------------ model */

static void make_units(struct bench *b, struct net *n)
{
    static const char *const names[LAYER_UNITS] = {"qkv", "o", "gate_up", "down"};
    int64_t h = b->s.hidden, i = b->s.intermediate, q = (int64_t)b->s.heads * b->s.head_dim;
    int64_t kv = (int64_t)b->s.kv_heads * b->s.head_dim;
    const int64_t rows[LAYER_UNITS][3 /* matrices */] = {{q, kv, kv}, {h}, {i, i}, {h}};
    const int64_t columns[LAYER_UNITS] = {h, q, h, i};
    int matrices = 0;
    for (int u = 0; u < b->s.layers * LAYER_UNITS; u++) {
        int role = u % LAYER_UNITS;
        struct unit *unit = &n->units[u];
        *unit = (struct unit){.name = names[role], .role = (enum unit_role)role, .layer = u / LAYER_UNITS,
                              .first = matrices, .k = columns[role]};
        for (int j = 0; j < 3 && rows[role][j] > 0; j++) {
            n->matrices[matrices++] = (struct matrix){.name = names[role], .unit = u, .n = rows[role][j], .k = unit->k,
                                                      .row = unit->n, .dtype = DTYPE_BF16, .stored = &format_bf16};
            unit->n += rows[role][j];
            unit->count++;
        }
        n->panels[u] = bench_panels(b, unit->n, unit->k, WEIGHT);
    }
    n->model = (struct model){.config = {.vocab = (int)b->s.vocab, .hidden = (int)h, .intermediate = (int)i,
                                         .layers = b->s.layers, .heads = b->s.heads, .kv_heads = b->s.kv_heads,
                                         .head_dim = b->s.head_dim, .max_positions = b->s.window, .eps = 1e-6f},
                              .matrices = n->matrices, .units = n->units, .n_matrices = matrices,
                              .n_units = b->s.layers * LAYER_UNITS, .head_unit = -1};
}

/* A norm's weights: near 1. */
static struct tensor ones(struct bench *b)
{
    struct err e;
    float *host;
    bench_must(mem_raw(&host, (size_t)b->s.hidden, &e), &e);
    for (int64_t i = 0; i < b->s.hidden; i++)
        host[i] = 1.0f + 0.1f * b->numbers[i];
    struct tensor out = bench_upload(b, DTYPE_F32, b->s.hidden, 0, host);
    mem_free(host);
    return out;
}

/* What forward_open would have made; the embedding is the head, and no unit has a bias. */
static void make_forward(struct bench *b, struct net *n)
{
    struct err e;
    struct forward *f = &n->f;
    int64_t rows = bench_rows(b), window = b->s.window, chunk = rows < b->k->chunk_rows ? rows : b->k->chunk_rows;
    int64_t q = (int64_t)b->s.heads * b->s.head_dim, up = 2 * b->s.intermediate;
    const int64_t width[6] = {b->s.hidden, n->units[ROLE_QKV].n, q, up, b->s.intermediate, b->s.hidden};
    *f = (struct forward){.model = &n->model, .q = b->q, .mode = DTYPE_BF16, .chunk = chunk / window * window};
    f->shape = (struct attention_shape){b->s.heads, b->s.kv_heads, b->s.head_dim, b->s.window};
    f->head = bench_panels(b, b->s.vocab, b->s.hidden, WEIGHT);
    f->embedding = f->head;
    f->embedding.layout = TENSOR_ROWS; /* `hidden` is a multiple of 16, so panels have no padding */
    f->embedding.owned = false;
    f->final_norm = ones(b);
    bench_must(mem_new(&f->norms, 2 * (size_t)b->s.layers, &e) && mem_new(&f->biases, (size_t)n->model.n_units, &e),
               &e);
    for (int i = 0; i < 2 * b->s.layers; i++)
        f->norms[i] = ones(b);
    bench_rope(b, &f->cosine, &f->sine);
    for (int i = 0; i < 6; i++)
        f->work[i] = bench_new(b, DTYPE_F32, f->chunk, width[i]);
}

static bool load(void *context, int unit, int format, struct unit_weights *out, struct err *e)
{
    struct net *n = context;
    if (format != ORIGINAL)
        return bench_weights_load(n->weights.resident, unit, format, out, e);
    *out = (struct unit_weights){.panels = n->panels[unit]};
    out->panels.owned = false;
    return true;
}

static struct pass pass_of(struct net *n)
{
    return (struct pass){.f = &n->f, .tokens = &n->tokens, .teacher = n->teacher,
                         .weights = {.load = load, .context = n}, .share = true};
}

static void windows_of(const struct bench *b, uint32_t out[64])
{
    for (uint32_t w = 0; w < (uint32_t)b->s.windows; w++)
        out[w] = w;
}

static void open_net(struct bench *b, struct net *n)
{
    struct err e;
    uint32_t windows[64];
    uint8_t original[UNITS];
    int64_t rows = bench_rows(b);
    *n = (struct net){.b = b};
    make_units(b, n);
    make_forward(b, n);
    bench_weights_open(&n->weights, b, &n->model, WEIGHT);
    n->x = bench_new(b, DTYPE_F32, rows, b->s.hidden);
    bench_fill(b, &n->x, 1.0f);
    n->tokens = (struct token_set){.n = (uint32_t)b->s.windows, .window = (uint32_t)b->s.window};
    bench_must(mem_raw(&n->tokens.ids, (size_t)rows, &e) && mem_raw(&n->tokens.length, (size_t)b->s.windows, &e) &&
                   mem_raw(&n->teacher, (size_t)(rows * b->s.hidden), &e), &e);
    for (int64_t i = 0; i < rows; i++)
        n->tokens.ids[i] = (int32_t)(i * 7919 % b->s.vocab);
    for (int w = 0; w < b->s.windows; w++)
        n->tokens.length[w] = b->s.window;
    windows_of(b, windows);
    memset(original, ORIGINAL, sizeof original);
    struct pass p = pass_of(n);
    bench_must(pass_states(&p, original, windows, (size_t)b->s.windows, n->teacher, &e), &e);
}

static void close_net(struct bench *b, struct net *n)
{
    for (int u = 0; u < n->model.n_units; u++)
        bench_free(b, &n->panels[u]);
    bench_weights_close(&n->weights);
    bench_free(b, &n->x);
    forward_close(&n->f);
    tokens_fini(&n->tokens);
    mem_free(n->teacher);
}

/* ------------------------------------------------------------------------------------------------------------- runs */

static bool add_kl(void *context, size_t candidate, size_t window, const struct pass_row *row, struct err *e)
{
    (void)candidate, (void)window, (void)e;
    *(double *)context += row->kl_sum;
    return true;
}

static void run_pass(struct bench *b, void *context, int turn)
{
    struct err e;
    struct candidate *c = context;
    uint32_t windows[64];
    uint8_t assignment[UNITS];
    const uint8_t *list[1] = {assignment};
    struct pass p = pass_of(c->n);
    (void)turn;
    memset(assignment, c->format, sizeof assignment);
    windows_of(b, windows);
    c->kl = 0.0;
    bench_must(pass_run(&p, list, 1, windows, (size_t)b->s.windows, add_kl, &c->kl, &e), &e);
}

/* The residual stream of the last turn goes on: it grows by less than what it is made of. */
static void run_layers(struct bench *b, void *context, int turn)
{
    struct err e;
    struct net *n = context;
    (void)turn;
    for (int l = 0; l < b->s.layers; l++) {
        struct unit_weights w[LAYER_UNITS];
        for (int u = 0; u < LAYER_UNITS; u++)
            bench_must(load(n, l * LAYER_UNITS + u, ORIGINAL, &w[u], &e), &e);
        bench_must(forward_layer(&n->f, l, w, &n->x, NULL, NULL, &e), &e);
    }
}

/* A layer's products, as the pass has them: with the rounding of x to bf16, which is part of the entry. */
static void run_products(struct bench *b, void *context, int turn)
{
    struct err e;
    struct net *n = context;
    int64_t rows = bench_rows(b);
    for (int u = 0; u < LAYER_UNITS; u++) {
        const struct unit *unit = &n->units[u];
        struct tensor x = bench_view(b, BLOCK_X, turn, rows, unit->k), y = bench_view(b, BLOCK_Y, turn, rows, unit->n);
        bench_must(b->k->matmul(b->q, &x, &n->panels[turn % b->s.layers * LAYER_UNITS + u], &y, &e), &e);
    }
}

/* The tiles of both heads for all windows, as pass.c walks them: the products, or the KL of the logits. */
static void walk_head(struct bench *b, struct net *n, bool products, void *block)
{
    struct err e;
    int64_t scored = b->s.window - 1;
    for (int w = 0; w < b->s.windows; w++)
        for (int64_t at = 0; at < scored; at += b->k->head_rows)
            for (int64_t first = 0; first < b->s.vocab; first += b->k->head_columns) {
                int64_t rows = scored - at < b->k->head_rows ? scored - at : b->k->head_rows;
                int64_t left = b->s.vocab - first, columns = left < b->k->head_columns ? left : b->k->head_columns;
                struct tensor x = tensor_rows(&n->x, (int64_t)w * b->s.window + at, rows);
                struct tensor s_t = bench_view(b, BLOCK_Y, 0, rows, columns);
                struct tensor s_c = bench_view(b, BLOCK_Y, 1, rows, columns);
                struct kl_state state = kl_state_at(block, b->k->head_rows);
                if (products)
                    bench_must(b->k->matmul_part(b->q, &x, &n->f.head, first, &s_t, &e) &&
                                   b->k->matmul_part(b->q, &x, &n->f.head, first, &s_c, &e), &e);
                else
                    bench_must(b->k->kl_tile(b->q, &s_t, &s_c, first, &state, &e), &e);
            }
}

static void run_heads(struct bench *b, void *context, int turn)
{
    (void)turn;
    walk_head(b, context, true, NULL);
}

struct kl_run {
    struct net *n;
    struct tensor sums;
};

static void run_kl(struct bench *b, void *context, int turn)
{
    struct kl_run *k = context;
    (void)turn;
    walk_head(b, k->n, false, k->sums.data);
}

/* The teacher's states of what is scored, from pageable memory, as pass.c brings them for a block of rows. */
static void run_uploads(struct bench *b, void *context, int turn)
{
    struct err e;
    const struct net *n = context;
    int64_t scored = b->s.window - 1, h = b->s.hidden;
    (void)turn;
    for (int64_t w = 0; w < b->s.windows; w++)
        for (int64_t at = 0; at < scored; at += b->k->head_rows) {
            int64_t rows = scored - at < b->k->head_rows ? scored - at : b->k->head_rows;
            struct tensor x = bench_view(b, BLOCK_Y, 0, rows, h);
            bench_must(b->k->upload(b->q, &x, n->teacher + (w * b->s.window + at) * h,
                                    (size_t)(rows * h) * sizeof(float), &e), &e);
        }
}

/* A layer's packed weights, which lie on the device, to what the products read: what it costs that the last candidate
 * had other formats there. */
static void run_switch(struct bench *b, void *context, int turn)
{
    struct err e;
    const struct candidate *c = context;
    struct unit_weights w[LAYER_UNITS];
    for (int u = 0; u < LAYER_UNITS; u++)
        bench_must(load(c->n, turn % b->s.layers * LAYER_UNITS + u, c->format, &w[u], &e), &e);
    for (int u = 0; u < LAYER_UNITS; u++)
        unit_weights_free(b->q, &w[u]);
}

/* ---------------------------------------------------------------------------------------------------------- figures */

static double layer_flop(const struct bench *b, const struct net *n)
{
    double weights = 0.0;
    for (int u = 0; u < LAYER_UNITS; u++)
        weights += (double)n->units[u].n * (double)n->units[u].k;
    return 2.0 * (double)bench_rows(b) * weights;
}

/* Teacher and candidate; the last position of a window is not scored. */
static double heads_flop(const struct bench *b)
{
    return 4.0 * (double)b->s.windows * (b->s.window - 1) * (double)b->s.vocab * (double)b->s.hidden;
}

static double time_kl(struct bench *b, struct net *n)
{
    struct err e;
    void *block;
    struct kl_run k = {.n = n};
    int64_t bytes = (int64_t)KL_STATE_BYTES(b->k->head_rows);
    bench_must(mem_new_bytes(&block, (size_t)bytes, 1, &e), &e);
    struct kl_state state = kl_state_at(block, b->k->head_rows);
    kl_state_init(&state, b->k->head_rows);
    k.sums = bench_upload(b, DTYPE_U8, bytes, 0, block);
    mem_free(block);
    double seconds = bench_time(b, run_kl, &k, 0.0, NULL).seconds;
    bench_free(b, &k.sums);
    return seconds;
}

static void tell_parts(struct bench *b, struct net *n, double pass, double layers)
{
    double heads = bench_time(b, run_heads, n, 0.0, NULL).seconds, kl = time_kl(b, n);
    double uploads = bench_time(b, run_uploads, n, 0.0, NULL).seconds;
    bench_figure(b, "  of it: layers", 100.0 * layers / pass, "%", NAN);
    bench_figure(b, "  of it: products of both heads", 100.0 * heads / pass, "%", NAN);
    bench_figure(b, "  of it: KL of the logits", 100.0 * kl / pass, "%", NAN);
    bench_figure(b, "  of it: the teacher's states uploaded from pageable memory", 100.0 * uploads / pass, "%", NAN);
    bench_figure(b, "  of it: the rest (embedding, sums to the host and back, waiting)",
                 100.0 * (pass - layers - heads - kl - uploads) / pass, "%", NAN);
}

/* The teacher itself has a KL of 0, and so have its weights in the format that keeps them; nothing else has. */
static void check_kl(const struct candidate *c)
{
    struct err e;
    bool right = c->format >= BENCH_BF16 ? c->kl == 0.0 : c->kl > 0.0 && isfinite(c->kl);
    bench_must(right || err_set(&e, ERR_NUMERIC, "the KL of a pass with weights of format %d is %g", c->format, c->kl),
               &e);
}

static uint64_t brought(const struct net *n)
{
    uint64_t all, from_store;
    resident_traffic(n->weights.resident, &all, &from_store);
    return all;
}

/* What another format costs a layer where the packed weights lie on the device: pointers change and no weights cross
 * the bus, but they are unpacked to bf16. */
static void tell_switch(struct bench *b, struct net *n, int format)
{
    char name[128];
    struct candidate c = {.n = n, .format = format};
    struct bench_ceiling layers = {.run = run_layers, .context = n, .work = b->s.layers, .repeat = 1};
    run_pass(b, &c, 0); /* all of it lies there now */
    check_kl(&c);
    uint64_t before = brought(n);
    struct bench_time t = bench_time(b, run_switch, &c, 1.0, &layers);
    snprintf(name, sizeof name, "candidate switch cost: a layer of %s unpacked to bf16", bench_formats[format]);
    bench_figure(b, name, t.seconds * 1e3, "ms", NAN);
    snprintf(name, sizeof name, "candidate switch cost: a layer of %s unpacked / its forward, %lld rows",
             bench_formats[format], (long long)bench_rows(b));
    bench_figure_most(b, name, 1.0 / t.share, "", MOST_SWITCH);
    snprintf(name, sizeof name, "candidate switch cost: %s brought to the device meanwhile", bench_formats[format]);
    bench_figure_most(b, name, (double)(brought(n) - before), "bytes", 0.0);
}

/* The whole pass with that and with inputs quantized, beside one in bf16. */
static void tell_format(struct bench *b, struct candidate *original, int format)
{
    char name[128];
    struct candidate c = {.n = original->n, .format = format};
    struct bench_ceiling other = {.run = run_pass, .context = original, .work = 1.0, .repeat = 1};
    snprintf(name, sizeof name, "the pass with all units in %s, unpacked each time / in bf16", bench_formats[format]);
    bench_figure(b, name, 1.0 / bench_time(b, run_pass, &c, 1.0, &other).share, "", NAN);
}

void bench_pass(struct bench *b)
{
    static struct net n;
    struct candidate original = {.n = &n, .format = ORIGINAL};
    char name[128];
    open_net(b, &n);
    int layers = b->s.layers, all = b->s.all_layers;
    double flop = layer_flop(b, &n), heads = heads_flop(b);
    double pass = bench_time(b, run_pass, &original, 0.0, NULL).seconds;
    check_kl(&original);
    struct bench_time of_layers = bench_time(b, run_layers, &n, layers * flop, &b->product);
    struct bench_time products = bench_time(b, run_products, &n, flop, &b->product);
    double ceiling = layers * flop / of_layers.seconds / of_layers.share; /* in the rounds of the layers */
    double whole = pass + (all - layers) * of_layers.seconds / layers;
    snprintf(name, sizeof name, "forward + KL of %d layers", layers); /* tools/gpu_check sets its peer beside it */
    bench_figure(b, name, pass, "s", NAN);
    tell_parts(b, &n, pass, of_layers.seconds);
    bench_figure(b, "a layer", of_layers.seconds / layers * 1e3, "ms", NAN);
    bench_figure(b, "a layer: FLOP/s of its products over the ceiling", of_layers.share, "", NAN);
    bench_figure(b, "a layer's products alone: FLOP/s over the ceiling", products.share, "", NAN);
    snprintf(name, sizeof name, "forward + KL of %d layers: that of %d and %d x a layer", all, layers, all - layers);
    bench_figure(b, name, whole, "s", NAN);
    snprintf(name, sizeof name, "forward + KL of %d layers: FLOP/s of its products over the ceiling", all);
    bench_figure(b, name, (all * flop + heads) / whole / ceiling, "", TARGET);
    for (int format = 0; format < BENCH_FORMATS; format++)
        tell_switch(b, &n, format);
    tell_format(b, &original, BENCH_NVFP4);
    tell_format(b, &original, BENCH_FP8);
    bench_weights_streamed(&n.weights, &n.f);
    close_net(b, &n);
}
