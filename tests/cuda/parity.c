/* The KL of whole assignments on a device against the CPU's, through the measuring pass, on a model that ships and the
 * text that it was trained on: how far the two are apart, whether they rank the assignments alike, and that the
 * device's own numbers have one set of bits however they are come by.
 *
 *     test_cuda_parity [--few] [--json]
 *
 * --few: what an emulated device computes in seconds. --json: each figure is a line of JSON, for tools/gpu_check. */
#include "tests/cuda/pair.h"

#include "nodes/model/documents.h"
#include "nodes/model/pass.h"
#include "nodes/model/tokenizer.h"
#include "nodes/search/stats.h"

enum { MOST_FORMATS = 32 };
static int n_formats, bf16_format; /* of formats[] */

/* Which formats the assignments of a test are drawn from: those that leave inputs alone, or all. */
enum menu { WEIGHT_ONLY, WITH_INPUTS };

static bool is_on(enum menu menu, int format, const struct unit *u)
{
    const struct format *f = formats[format];
    return format_fits(f, u->n, u->k) && (menu == WITH_INPUTS || f->act == ACT_NONE);
}

static const struct size {
    size_t candidates; /* candidate 0 is the original, the others are random */
    uint32_t windows, window;
} all = {51, 24, 96}, few = {4, 3, 16};

static bool json;
static struct size size;

/* What both sides read. */
static struct {
    struct model *model;
    struct token_set tokens;
    struct rendering *rendering[MOST_FORMATS]; /* [matrix]; where the format fits */
} world;

/* ---------------------------------------------------------------------------------------------------------- figures */

static void figure(const char *what, const char *name, double value, const char *unit, bool ok)
{
    char text[64];
    snprintf(text, sizeof text, isfinite(value) ? "%.6g" : "null", value);
    if (json)
        printf("{\"name\": \"%s: %s\", \"value\": %s, \"unit\": \"%s\", \"ok\": %s}\n", what, name, text, unit,
               ok ? "true" : "false");
    else
        printf("%s: %-64s %12s %s%s\n", what, name, text, unit, ok ? "" : "   NOT OK");
}

/* --------------------------------------------------------------------------------------------------- what both read */

/* The beginnings of the first stories that are long enough: a document a window. */
static void open_tokens(void)
{
    struct err e;
    struct documents d = {0};
    struct tokenizer *t = NULL;
    char path[1024];
    snprintf(path, sizeof path, "%s/data/text/tinystories/ascii.txt", check_root());
    assert_ok(documents_read(&d, path, DOCUMENTS_SEPARATOR, "<|endoftext|>", "", &e), e);
    snprintf(path, sizeof path, "%s/tokenizer.json", world.model->path);
    assert_ok(tokenizer_open(&t, path, &e), e);
    world.tokens = (struct token_set){.window = size.window};
    assert_ok(mem_new(&world.tokens.ids, size.windows * size.window, &e), e);
    assert_ok(mem_new(&world.tokens.length, size.windows, &e), e);
    for (size_t i = 0; i < d.n && world.tokens.n < size.windows; i++) {
        int32_t *ids;
        size_t n;
        assert_ok(tokenizer_encode(t, d.list[i].text, d.list[i].bytes, true, &ids, &n, &e), e);
        if (n >= size.window) {
            memcpy(world.tokens.ids + world.tokens.n * size.window, ids, size.window * sizeof *ids);
            world.tokens.length[world.tokens.n] = (int32_t)size.window - (int32_t)(world.tokens.n % 3); /* some short */
            world.tokens.n++;
        }
        mem_free(ids);
    }
    assert_int_equal(world.tokens.n, size.windows);
    tokenizer_close(t);
    documents_fini(&d);
}

/* Round-to-nearest renderings of a unit's matrices; those of one unit share the largest weight. */
static void render_unit(const struct unit *u, int format)
{
    struct err e;
    const struct format *f = formats[format];
    float amax = 0.0f, *w[4] = {0};
    if (!format_fits(f, u->n, u->k))
        return;
    for (int i = 0; i < u->count; i++) {
        const struct matrix *m = &world.model->matrices[u->first + i];
        assert_ok(mem_raw(&w[i], (size_t)(m->n * m->k), &e), e);
        assert_ok(model_read_matrix(world.model, u->first + i, w[i], &e), e);
        assert_ok(format_amax(w[i], m->n, m->k, &amax, &e), e);
    }
    for (int i = 0; i < u->count; i++) {
        const struct matrix *m = &world.model->matrices[u->first + i];
        struct rendering *r = &world.rendering[format][u->first + i];
        if (format == bf16_format) {
            assert_ok(model_read_rendering(world.model, u->first + i, r, &e), e);
        } else {
            assert_ok(format_rendering_new(r, f, m->n, m->k, m->dtype, &e), e);
            assert_ok(f->encode(w[i], amax, r, &e), e);
        }
        mem_free(w[i]);
    }
}

static int open_world(void **state)
{
    (void)state;
    struct err e;
    char path[1024];
    snprintf(path, sizeof path, "%s/data/models/babyllama-1m", check_root());
    assert_ok(model_open(&world.model, path, &e), e);
    open_tokens();
    for (n_formats = 0; formats[n_formats]; n_formats++)
        bf16_format = formats[n_formats] == &format_bf16 ? n_formats : bf16_format;
    assert_in_range(n_formats, 1, MOST_FORMATS);
    for (int f = 0; f < n_formats; f++) {
        assert_ok(mem_new(&world.rendering[f], (size_t)world.model->n_matrices, &e), e);
        for (int u = 0; u < world.model->n_units; u++)
            render_unit(&world.model->units[u], f);
    }
    return 0;
}

static int close_world(void **state)
{
    (void)state;
    for (int f = 0; f < n_formats; f++) {
        for (int i = 0; i < world.model->n_matrices; i++)
            rendering_free(&world.rendering[f][i]);
        mem_free(world.rendering[f]);
    }
    tokens_fini(&world.tokens);
    model_close(world.model);
    return 0;
}

static uint8_t draw_format(enum menu menu, size_t unit, uint64_t *seed)
{
    int f;
    do
        f = (int)(next_random(seed) % (unsigned)n_formats);
    while (!is_on(menu, f, &world.model->units[unit]));
    return (uint8_t)f;
}

/* A third are near neighbours of the one before, with another format in the second half: prefixes to share, and pairs
 * that are hard to tell apart. */
static uint8_t **draw(enum menu menu)
{
    struct err e;
    uint8_t **list;
    uint64_t seed = 11;
    size_t units = (size_t)world.model->n_units;
    assert_ok(mem_new(&list, size.candidates, &e), e);
    for (size_t c = 0; c < size.candidates; c++) {
        assert_ok(mem_new(&list[c], units, &e), e);
        if (c % 3 == 2)
            memcpy(list[c], list[c - 1], units);
        for (size_t u = 0; u < units && c % 3 != 2; u++)
            list[c][u] = draw_format(menu, u, &seed);
        size_t half = units / 2, other = half + next_random(&seed) % (units - half);
        list[c][other] = draw_format(menu, other, &seed);
    }
    memset(list[0], bf16_format, units);
    return list;
}

static void free_drawn(uint8_t **list)
{
    for (size_t c = 0; c < size.candidates; c++)
        mem_free(list[c]);
    mem_free(list);
}

/* ------------------------------------------------------------------------------------------------- one of two sides */

/* A processor in a numeric mode, with the teacher's states as it computes them. */
struct side {
    struct queue *q;
    struct forward f;
    float *teacher;
};

/* The static input scale is that of a made-up calibration maximum of 24. */
static bool load(void *context, int unit, int format, struct unit_weights *out, struct err *e)
{
    struct side *s = context;
    const struct format *f = formats[format];
    *out = (struct unit_weights){.act = f->act, .act_scale = f->static_input_scale ? 2688.0f / 24.0f : 0.0f};
    return weights_pack(s->q, world.model, unit, world.rendering[format] + world.model->units[unit].first, s->f.mode,
                        out, e);
}

static struct pass pass_of(struct side *s)
{
    return (struct pass){.f = &s->f, .tokens = &world.tokens, .teacher = s->teacher, .share = true,
                         .weights = {.load = load, .context = s}};
}

/* In place: the pass points into it. */
static void open_side(struct side *s, struct queue *q, enum dtype mode)
{
    struct err e;
    uint8_t *original;
    uint32_t windows[64];
    *s = (struct side){.q = q};
    assert_in_range(size.windows, 1, COUNT(windows));
    for (uint32_t w = 0; w < size.windows; w++)
        windows[w] = w;
    assert_ok(forward_open(&s->f, world.model, q, mode, (int)size.window, &e), e);
    assert_ok(mem_raw(&s->teacher, (size_t)(size.windows * size.window) * (size_t)world.model->config.hidden, &e), e);
    assert_ok(mem_new(&original, (size_t)world.model->n_units, &e), e);
    memset(original, bf16_format, (size_t)world.model->n_units);
    struct pass p = pass_of(s);
    assert_ok(pass_states(&p, original, windows, size.windows, s->teacher, &e), e);
    mem_free(original);
}

static void close_side(struct side *s)
{
    forward_close(&s->f);
    mem_free(s->teacher);
}

/* Every number of every (candidate, window), and of every token. */
struct results {
    struct pass_row *row; /* [candidate, window], `kl` NULL */
    float *kl;            /* [candidate, window, slot] */
    size_t candidate, window; /* the first of the call in hand */
};

static void results_new(struct results *r)
{
    struct err e;
    *r = (struct results){0};
    assert_ok(mem_new(&r->row, size.candidates * size.windows, &e), e);
    assert_ok(mem_new(&r->kl, size.candidates * size.windows * size.window, &e), e);
}

static void results_free(struct results *r)
{
    mem_free(r->row);
    mem_free(r->kl);
}

static bool take(void *context, size_t candidate, size_t window, const struct pass_row *row, struct err *e)
{
    struct results *r = context;
    size_t at = (r->candidate + candidate) * size.windows + r->window + window;
    (void)e;
    r->row[at] = *row;
    r->row[at].kl = NULL;
    memcpy(r->kl + at * size.window, row->kl, row->n_tokens * sizeof *row->kl);
    return true;
}

static double mean_kl(const struct results *r, size_t candidate)
{
    double sum = 0.0, n = 0.0;
    for (size_t w = 0; w < size.windows; w++) {
        sum += r->row[candidate * size.windows + w].kl_sum;
        n += r->row[candidate * size.windows + w].n_tokens;
    }
    return sum / n;
}

/* Calls of `batch` candidates and `windows` windows, beginning at every `step`-th candidate. */
static void run(struct pass *p, uint8_t **list, size_t step, size_t batch, uint32_t windows, struct results *r)
{
    struct err e;
    uint32_t index[64];
    for (uint32_t w = 0; w < size.windows; w++)
        index[w] = w;
    for (size_t c = 0; c < size.candidates; c += step)
        for (uint32_t w = 0; w < size.windows; w += windows) {
            size_t n = size.candidates - c < batch ? size.candidates - c : batch;
            uint32_t n_windows = size.windows - w < windows ? size.windows - w : windows;
            r->candidate = c;
            r->window = w;
            assert_ok(pass_run(p, (const uint8_t *const *)list + c, n, index + w, n_windows, take, r, &e), e);
        }
}

/* All of them on the CPU. */
static void run_cpu(enum dtype mode, uint8_t **list, struct results *r)
{
    struct err e;
    struct side s;
    struct queue *q = NULL;
    const struct kernels *k = kernels_cpu(&e);
    assert_non_null(k);
    assert_ok(kernels_queue_new(&q, k, TENSOR_HOST, 2, &e), e);
    results_new(r);
    open_side(&s, q, mode);
    struct pass p = pass_of(&s);
    run(&p, list, size.candidates, size.candidates, size.windows, r);
    close_side(&s);
    kernels_queue_free(q);
}

/* -------------------------------------------------------------------------------------------------- one set of bits */

/* Rows of every `step`-th candidate of `got` are those of `want`. */
static bool same_rows(const struct results *want, const struct results *got, size_t step)
{
    for (size_t i = 0; i < size.candidates * size.windows; i++)
        if (i / size.windows % step == 0 &&
            (memcmp(&want->row[i], &got->row[i], sizeof *want->row) != 0 ||
             memcmp(want->kl + i * size.window, got->kl + i * size.window, size.window * sizeof *want->kl) != 0))
            return false;
    return true;
}

/* One more way to come by the rows of `want`. */
struct way {
    const char *name;
    bool share, replay;
    size_t step, batch; /* 0: all candidates */
    uint32_t windows;   /* a call; 0: all */
};

static void check_way(const char *mode, struct side *s, uint8_t **list, const struct way *way,
                      const struct results *want)
{
    struct err e;
    struct results got;
    struct pass p = pass_of(s);
    size_t batch = way->batch ? way->batch : size.candidates, step = way->step ? way->step : batch;
    uint32_t windows = way->windows ? way->windows : size.windows;
    results_new(&got);
    p.share = way->share;
    if (way->replay)
        assert_ok(replay_new(&p.replay, s->q, 1 << 26, &e), e);
    run(&p, list, step, batch, windows, &got);
    uint64_t first = p.layer_forwards;
    bool same = same_rows(want, &got, step > batch ? step : 1);
    if (way->replay) { /* a second time, from the states that the first left */
        results_free(&got);
        results_new(&got);
        run(&p, list, step, batch, windows, &got);
        same = same && same_rows(want, &got, 1);
        if (p.layer_forwards - first >= first)
            fail_msg("%s: the second time took %llu layer-forwards, the first %llu", way->name,
                     (unsigned long long)(p.layer_forwards - first), (unsigned long long)first);
    }
    replay_free(p.replay);
    results_free(&got);
    figure(mode, way->name, same, "(1: equal bits)", same);
    assert_true(same);
}

/* Rows must not depend on who else is in the call, on the windows of it, on what is replayed, or on the time:
 * candidates of different rounds are compared with each other, and a resumed run goes on with the rows of the one
 * before it. */
static void check_bits(const char *mode, struct side *s, uint8_t **list, const struct results *want)
{
    const struct way ways[] = {
        {"a second run", .share = true},
        {"every candidate on its own lane", .share = false},
        {"alone, window by window", .share = true, .step = 3, .batch = 1, .windows = 1},
        {"batches of 10 on 2 windows, replayed", .share = true, .replay = true, .batch = 10, .windows = 2},
    };
    for (size_t i = 0; i < COUNT(ways); i++)
        check_way(mode, s, list, &ways[i], want);
    for (size_t w = 0; w < size.windows; w++)
        assert_true(want->row[w].kl_sum == 0.0); /* the teacher itself */
}

/* -------------------------------------------------------------------------------------------------------- agreement */

/* Weights only, in fp32: the two sides multiply the same numbers and only add them in other orders. That is a relative
 * 1e-6 of a logit, far below a KL's own size; 1 % of it (and 1e-6 nats, what rounding leaves of a KL near 0) is what
 * still changes no decision. */
static void weight_only_in_fp32(void **state)
{
    (void)state;
    struct side gpu;
    struct results on_cpu, on_gpu;
    struct pair p = pair_open();
    uint8_t **list = draw(WEIGHT_ONLY);
    double worst = 0.0, apart = 0.0, least = INFINITY, most = 0.0;
    results_new(&on_gpu);
    open_side(&gpu, p.gpu, DTYPE_F32);
    struct pass pass = pass_of(&gpu);
    run(&pass, list, size.candidates, size.candidates, size.windows, &on_gpu);
    run_cpu(DTYPE_F32, list, &on_cpu);
    for (size_t c = 0; c < size.candidates; c++) {
        double want = mean_kl(&on_cpu, c), d = fabs(mean_kl(&on_gpu, c) - want), share = d / fmax(0.01 * want, 1e-6);
        apart = fmax(apart, d);
        worst = fmax(worst, share);
        least = c > 0 ? fmin(least, want) : least;
        most = fmax(most, want);
    }
    const char *what = "fp32, weight-only formats";
    figure(what, "assignments", (double)(size.candidates - 1), "", true);
    figure(what, "least KL on the CPU", least, "nats", true);
    figure(what, "largest KL on the CPU", most, "nats", true);
    figure(what, "largest |KL_gpu - KL_cpu|", apart, "nats", worst <= 1.0);
    figure(what, "the same over its bound, max(1 %, 1e-6)", worst, "", worst <= 1.0);
    assert_true(worst <= 1.0);
    check_bits("fp32", &gpu, list, &on_gpu);
    close_side(&gpu);
    results_free(&on_cpu), results_free(&on_gpu);
    free_drawn(list);
    pair_close(&p);
}

/* Pairs that the CPU tells apart by the paired 95 % interval over documents, and how many of them the device orders the
 * other way. */
static void check_ranking(const char *what, const struct results *cpu, const struct results *gpu)
{
    size_t separate = 0, reversed = 0, pairs = 0;
    double weight[64], difference[64], low, high;
    uint32_t document[64];
    struct err e;
    for (size_t a = 0; a < size.candidates; a++)
        for (size_t b = a + 1; b < size.candidates; b++) {
            for (uint32_t w = 0; w < size.windows; w++) {
                const struct pass_row *x = &cpu->row[a * size.windows + w], *y = &cpu->row[b * size.windows + w];
                difference[w] = x->kl_sum - y->kl_sum;
                weight[w] = x->n_tokens;
                document[w] = w;
            }
            assert_ok(stats_cluster_interval(difference, weight, document, size.windows, 0.95, &low, &high, &e), e);
            double there = mean_kl(gpu, a) - mean_kl(gpu, b);
            pairs++;
            separate += low > 0.0 || high < 0.0;
            reversed += (low > 0.0 && !(there > 0.0)) || (high < 0.0 && !(there < 0.0));
        }
    figure(what, "pairs of assignments", (double)pairs, "", true);
    figure(what, "of them apart on the CPU, by paired 95 % intervals", (double)separate, "", true);
    figure(what, "of those ordered the other way on the device", (double)reversed, "", reversed == 0);
    assert_int_equal(reversed, 0);
}

/* With inputs that are quantized, in bf16: a rounding that falls the other way moves an input by a whole step of its
 * format, so KL is only known to within a noise. Its size is measured here, on the CPU alone: the RMS over the
 * assignments of the difference between KL in its fp32 and in its bf16 mode. Three times that is what a device may
 * differ by from the CPU's bf16 mode; it may not change an order that the CPU is sure of. */
static void quantized_inputs_in_bf16(void **state)
{
    (void)state;
    struct side gpu;
    struct results fp32, bf16, on_gpu;
    struct pair p = pair_open();
    uint8_t **list = draw(WITH_INPUTS);
    double squares = 0.0, apart_squares = 0.0, apart = 0.0, least = INFINITY, most = 0.0;
    results_new(&on_gpu);
    open_side(&gpu, p.gpu, DTYPE_BF16);
    struct pass pass = pass_of(&gpu);
    run(&pass, list, size.candidates, size.candidates, size.windows, &on_gpu);
    run_cpu(DTYPE_F32, list, &fp32);
    run_cpu(DTYPE_BF16, list, &bf16);
    for (size_t c = 1; c < size.candidates; c++) {
        double noise = mean_kl(&bf16, c) - mean_kl(&fp32, c), d = mean_kl(&on_gpu, c) - mean_kl(&bf16, c);
        squares += noise * noise;
        apart_squares += d * d;
        apart = fmax(apart, fabs(d));
        least = fmin(least, mean_kl(&bf16, c));
        most = fmax(most, mean_kl(&bf16, c));
    }
    const char *what = "bf16, all formats";
    double n = (double)(size.candidates - 1), noise = sqrt(squares / n);
    figure(what, "assignments", n, "", true);
    figure(what, "least KL on the CPU", least, "nats", true);
    figure(what, "largest KL on the CPU", most, "nats", true);
    figure(what, "noise floor: RMS of KL_cpu_bf16 - KL_cpu_fp32", noise, "nats", noise > 0.0);
    figure(what, "RMS of KL_gpu - KL_cpu", sqrt(apart_squares / n), "nats", true);
    figure(what, "largest |KL_gpu - KL_cpu|", apart, "nats", apart <= 3.0 * noise);
    figure(what, "the same over its bound, 3 x the noise floor", apart / (3.0 * noise), "", apart <= 3.0 * noise);
    assert_true(noise > 0.0 && apart <= 3.0 * noise);
    check_ranking(what, &bf16, &on_gpu);
    check_bits("bf16", &gpu, list, &on_gpu);
    close_side(&gpu);
    results_free(&fp32), results_free(&bf16), results_free(&on_gpu);
    free_drawn(list);
    pair_close(&p);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weight_only_in_fp32),
        cmocka_unit_test(quantized_inputs_in_bf16),
    };
    size = all;
    for (int i = 1; i < argc; i++) {
        json = json || strcmp(argv[i], "--json") == 0;
        size = strcmp(argv[i], "--few") == 0 ? few : size;
    }
    return first_device() ? cmocka_run_group_tests(tests, open_world, close_world) : SKIPPED;
}
