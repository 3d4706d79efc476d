/* The measuring pass: 50 random assignments of a real model give the same bits with prefixes shared or not, with the
 * replay cache, alone or in a batch, on 1 or 2 threads; the teacher's own assignment gives exactly 0. */
#include <stdlib.h>
#include <string.h>

#include "nodes/model/pass.h"
#include "tests/check.h"

#define CANDIDATES 50
#define WINDOWS 3
#define WINDOW 96
static const char *const menu[] = {"nvfp4", "nvfp4_a16", "fp8", "bf16"};

struct fixture {
    struct model *model;
    struct token_set tokens;
    float *teacher;
    struct queue q;
    struct forward f;
    uint8_t *assignment[CANDIDATES];
};

/* Round-to-nearest renderings made on the spot; the static input scale is a made-up calibration maximum of 24. */
static bool load(void *context, int unit, int format, struct unit_weights *out, struct err *e)
{
    struct fixture *x = context;
    const struct unit *u = &x->model->units[unit];
    const struct format *f = format_find(menu[format]);
    struct rendering r[4] = {0};
    float amax = 0, *w[4] = {0};
    for (int i = 0; i < u->count; i++) {
        const struct matrix *m = &x->model->matrices[u->first + i];
        assert_ok(mem_raw(&w[i], (size_t)(m->n * m->k), e), *e);
        assert_ok(model_read_matrix(x->model, u->first + i, w[i], e), *e);
        for (int64_t j = 0; j < m->n * m->k; j++)
            amax = w[i][j] > amax ? w[i][j] : -w[i][j] > amax ? -w[i][j] : amax;
    }
    for (int i = 0; i < u->count; i++) {
        const struct matrix *m = &x->model->matrices[u->first + i];
        if (!f->group_format) {
            assert_ok(model_read_rendering(x->model, u->first + i, &r[i], e), *e);
            continue;
        }
        struct format_part parts[FORMAT_PARTS];
        int n = f->parts(m->n, m->k, m->dtype, parts);
        r[i] = (struct rendering){.format = f, .n = m->n, .k = m->k};
        for (int p = 0; p < n; p++)
            assert_ok(mem_new_bytes(&r[i].part[p], format_part_bytes(&parts[p]), 1, e), *e);
        assert_ok(f->encode(w[i], amax, &r[i], e), *e);
    }
    *out = (struct unit_weights){.act = f->act, .act_scale = f->static_input_scale ? 2688.0f / 24.0f : 0};
    bool ok = weights_pack(&x->q, x->model, unit, r, x->f.mode, out, e);
    for (int i = 0; i < u->count; i++) {
        rendering_free(&r[i]);
        mem_free(w[i]);
    }
    return ok;
}

static bool ignore_row(void *context, size_t candidate, size_t window, const struct pass_row *row, struct err *e)
{
    (void)context, (void)candidate, (void)window, (void)row, (void)e;
    return true;
}

/* In place: the parts point to each other. */
static void open_fixture(struct fixture *x, enum dtype mode, int threads)
{
    *x = (struct fixture){0};
    char path[1024];
    struct err e;
    snprintf(path, sizeof path, "%s/data/models/babyllama-1m", check_root());
    x->q = (struct queue){.k = kernels_cpu(&e), .threads = threads, .device = TENSOR_HOST};
    assert_non_null(x->q.k);
    assert_ok(model_open(&x->model, path, &e), e);
    assert_ok(forward_open(&x->f, x->model, &x->q, mode, WINDOW, &e), e);
    x->tokens = (struct token_set){.n = WINDOWS, .window = WINDOW};
    assert_ok(mem_new(&x->tokens.ids, WINDOWS * WINDOW, &e), e);
    assert_ok(mem_new(&x->tokens.length, WINDOWS, &e), e);
    srand(7);
    for (int w = 0; w < WINDOWS; w++) {
        x->tokens.length[w] = WINDOW - 5 * w; /* the later ones are short */
        for (int t = 0; t < x->tokens.length[w]; t++)
            x->tokens.ids[w * WINDOW + t] = rand() % x->model->config.vocab;
    }
    for (int c = 0; c < CANDIDATES; c++) {
        size_t units = (size_t)x->model->n_units;
        assert_ok(mem_new(&x->assignment[c], units, &e), e);
        if (c % 3 == 1) /* a near neighbour of the one before */
            memcpy(x->assignment[c], x->assignment[c - 1], units);
        else
            for (size_t u = 0; u < units; u++)
                x->assignment[c][u] = (uint8_t)(rand() % 4);
        x->assignment[c][(size_t)rand() % units] = (uint8_t)(rand() % 4);
    }
    memset(x->assignment[0], 3, (size_t)x->model->n_units); /* the original */
}

static void close_fixture(struct fixture *x)
{
    for (int c = 0; c < CANDIDATES; c++)
        mem_free(x->assignment[c]);
    forward_close(&x->f);
    tokens_fini(&x->tokens);
    model_close(x->model);
    mem_free(x->teacher);
}

static struct pass pass_of(struct fixture *x)
{
    return (struct pass){.f = &x->f, .tokens = &x->tokens, .teacher = x->teacher, .weights = {load, x, NULL},
                         .share = true};
}

static void open_teacher(struct fixture *x)
{
    static const uint32_t windows[WINDOWS] = {0, 1, 2};
    struct err e;
    struct pass p = pass_of(x);
    assert_ok(mem_raw(&x->teacher, (size_t)(WINDOWS * WINDOW * x->model->config.hidden), &e), e);
    assert_ok(pass_states(&p, x->assignment[0], windows, WINDOWS, x->teacher, &e), e);
    struct pass self = pass_of(x);
    self.teacher = NULL;
    assert_ok(pass_score(&self, x->teacher, windows, WINDOWS, ignore_row, NULL, &e), e);
}

/* Every number of every (candidate, window), and every token's KL. */
struct results {
    struct pass_row row[CANDIDATES][WINDOWS];
    float kl[CANDIDATES][WINDOWS][WINDOW];
    size_t first_candidate, first_window;
};

static bool take(void *context, size_t candidate, size_t window, const struct pass_row *row, struct err *e)
{
    struct results *r = context;
    size_t c = r->first_candidate + candidate, w = r->first_window + window;
    (void)e;
    r->row[c][w] = *row;
    r->row[c][w].kl = NULL;
    memcpy(r->kl[c][w], row->kl, row->n_tokens * sizeof *row->kl);
    return true;
}

static struct results *new_results(void)
{
    struct results *r = calloc(1, sizeof *r);
    assert_non_null(r);
    return r;
}

static void run(struct pass *p, struct fixture *x, struct results *r, size_t first, size_t n, uint32_t window,
                uint32_t windows)
{
    static const uint32_t all[WINDOWS] = {0, 1, 2};
    struct err e;
    r->first_candidate = first;
    r->first_window = window;
    assert_ok(pass_run(p, (const uint8_t *const *)x->assignment + first, n, all + window, windows, take, r, &e), e);
}

static void assert_same(const struct results *a, const struct results *b, const char *what)
{
    for (int c = 0; c < CANDIDATES; c++)
        for (int w = 0; w < WINDOWS; w++)
            if (memcmp(&a->row[c][w], &b->row[c][w], sizeof a->row[c][w]) != 0 ||
                memcmp(a->kl[c][w], b->kl[c][w], sizeof a->kl[c][w]) != 0)
                fail_msg("%s: candidate %d, window %d: KL sum %.17g instead of %.17g", what, c, w, b->row[c][w].kl_sum,
                         a->row[c][w].kl_sum);
}

/* A base, then candidates that leave it at later and later layers: each starts from the state that the one before it
 * left there, and the last has only the last layer to do. */
static void check_chain(struct fixture *x)
{
    struct err e;
    int layers = x->model->config.layers;
    struct pass p = pass_of(x);
    size_t units = (size_t)x->model->n_units;
    uint8_t *chain[2] = {malloc(units), malloc(units)};
    assert_ok(replay_new(&p.replay, &x->q, 1 << 26, &e), e);
    for (int layer = 1; layer < layers; layer++) {
        memcpy(chain[0], x->assignment[0], units);
        memcpy(chain[1], x->assignment[0], units);
        chain[1][layer * LAYER_UNITS] = 1; /* the base and its flip share all before `layer` */
        struct results *replayed = new_results(), *whole = new_results();
        static const uint32_t all[WINDOWS] = {0, 1, 2};
        uint64_t before = p.layer_forwards;
        assert_ok(pass_run(&p, (const uint8_t *const *)chain, 2, all, WINDOWS, take, replayed, &e), e);
        uint64_t done = p.layer_forwards - before;
        struct pass q = pass_of(x);
        q.share = false;
        assert_ok(pass_run(&q, (const uint8_t *const *)chain, 2, all, WINDOWS, take, whole, &e), e);
        for (int c = 0; c < 2; c++)
            for (int w = 0; w < WINDOWS; w++)
                assert_memory_equal(&whole->row[c][w], &replayed->row[c][w], sizeof whole->row[c][w]);
        /* From the state before layer - 1 (kept by the round before): one layer together, the rest apart. */
        uint64_t most = (uint64_t)WINDOWS * (uint64_t)(layer == 1 ? 1 + 2 * (layers - 1) : 1 + 2 * (layers - layer));
        if (done > most)
            fail_msg("leaving at layer %d took %llu layer-forwards, at most %llu expected", layer,
                     (unsigned long long)done, (unsigned long long)most);
        free(replayed);
        free(whole);
    }
    replay_free(p.replay);
    free(chain[0]);
    free(chain[1]);
}

static void check_mode(enum dtype mode)
{
    struct fixture x;
    open_fixture(&x, mode, 1);
    struct results *full = new_results(), *other = new_results();
    struct err e;
    open_teacher(&x);

    struct pass p = pass_of(&x);
    p.share = false;
    run(&p, &x, full, 0, CANDIDATES, 0, WINDOWS);
    assert_int_equal(p.layer_forwards, p.layer_forwards_naive);
    for (int w = 0; w < WINDOWS; w++) {
        assert_true(full->row[0][w].kl_sum == 0); /* the teacher itself */
        assert_true(full->row[2][w].kl_sum > 0);
        assert_int_equal(full->row[2][w].n_tokens, x.tokens.length[w] - 1);
    }

    p = pass_of(&x);
    run(&p, &x, other, 0, CANDIDATES, 0, WINDOWS);
    assert_true(p.layer_forwards < p.layer_forwards_naive);
    assert_same(full, other, "prefixes shared");

    memset(other, 0, sizeof *other);
    p = pass_of(&x);
    for (size_t c = 0; c < CANDIDATES; c++)
        for (uint32_t w = 0; w < WINDOWS; w++)
            run(&p, &x, other, c, 1, w, 1);
    assert_same(full, other, "alone, window by window");

    /* Batch after batch: without a cache nothing is kept from one to the next; a large one saves most; a small one,
     * which must drop states, and one that keeps every second layer save less; all give the same bits. */
    static const struct {
        uint64_t bytes;
        int keep_every;
    } caches[] = {{0, 1}, {1 << 22, 1}, {1 << 26, 2}, {1 << 26, 1}};
    uint64_t forwards[COUNT(caches)];
    for (size_t i = 0; i < COUNT(caches); i++) {
        memset(other, 0, sizeof *other);
        p = pass_of(&x);
        p.keep_every = caches[i].keep_every;
        if (caches[i].bytes)
            assert_ok(replay_new(&p.replay, &x.q, caches[i].bytes, &e), e);
        for (int round = 0; round < 2; round++)
            for (size_t c = 0; c < CANDIDATES; c += 10)
                run(&p, &x, other, c, 10, 0, WINDOWS);
        assert_same(full, other, "replayed from the cache");
        forwards[i] = p.layer_forwards;
        replay_free(p.replay);
    }
    for (size_t i = 1; i < COUNT(caches); i++)
        if (forwards[i] >= forwards[0] || (i < COUNT(caches) - 1 && forwards[i] <= forwards[COUNT(caches) - 1]))
            fail_msg("a cache of %llu bytes, every %d layers, left %llu layer-forwards; the large one %llu, none %llu",
                     (unsigned long long)caches[i].bytes, caches[i].keep_every, (unsigned long long)forwards[i],
                     (unsigned long long)forwards[COUNT(caches) - 1], (unsigned long long)forwards[0]);

    check_chain(&x);

    memset(other, 0, sizeof *other);
    x.q.threads = 2;
    p = pass_of(&x);
    run(&p, &x, other, 0, CANDIDATES, 0, WINDOWS);
    assert_same(full, other, "two threads");

    free(full);
    free(other);
    close_fixture(&x);
}

static void rows_have_the_same_bits_in_fp32(void **state)
{
    (void)state;
    check_mode(DTYPE_F32);
}

static void rows_have_the_same_bits_in_bf16(void **state)
{
    (void)state;
    check_mode(DTYPE_BF16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_have_the_same_bits_in_fp32),
        cmocka_unit_test(rows_have_the_same_bits_in_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
