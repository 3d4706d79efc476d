/* block_match on a layer of a real model: scales that were put wrong by hand come back, a refit that does not help leaves
 * no trace, and formats without free scales stay as they are. */
#include "tests/check.h"

#include <math.h>

#include "nodes/model/block_match.h"
#include "tests/nodes/fake_node.h"

#define WINDOWS 6
#define WINDOW 48
#define MATRICES 7
#define LAYER 1

static const uint8_t held_out[WINDOWS] = {0, 0, 1, 0, 0, 1};

struct world {
    struct model *model;
    struct token_set tokens;
    struct queue q;
    struct block_match *match;
    struct rendering r[MATRICES];
};

/* Layer LAYER in one format, entered. A unit that cannot have it has no renderings. */
static void world_open(struct world *w, const struct format *f, int threads)
{
    struct err e = {0};
    char path[512];
    *w = (struct world){0};
    snprintf(path, sizeof path, "%s/data/models/stories260k", check_root());
    assert_ok(model_open(&w->model, path, &e), e);
    w->q = (struct queue){.k = kernels_cpu(&e), .threads = threads, .device = TENSOR_HOST};
    fake_tokens(&w->tokens, WINDOWS, WINDOW, w->model->config.vocab);
    assert_ok(block_match_open(&w->match, w->model, &w->q, &w->tokens, held_out, &e), e);
    for (int l = 0; l < LAYER; l++)
        assert_ok(block_match_enter(w->match, l, &e) && block_match_leave(w->match, &e), e);
    assert_ok(block_match_enter(w->match, LAYER, &e), e);
    for (int i = 0; i < MATRICES; i++) {
        const struct matrix *m = &w->model->matrices[LAYER * MATRICES + i];
        float *x, amax = 0.0f;
        if (!format_fits(f, m->n, m->k))
            continue;
        assert_ok(mem_raw(&x, (size_t)(m->n * m->k), &e), e);
        assert_ok(model_read_matrix(w->model, LAYER * MATRICES + i, x, &e), e);
        assert_ok(format_amax(x, m->n, m->k, &amax, &e), e);
        assert_ok(format_rendering_new(&w->r[i], f, m->n, m->k, m->dtype, &e), e);
        assert_ok(f->encode(x, amax, &w->r[i], &e), e);
        mem_free(x);
    }
}

static void world_close(struct world *w)
{
    for (int i = 0; i < MATRICES; i++)
        rendering_free(&w->r[i]);
    block_match_close(w->match);
    tokens_fini(&w->tokens);
    model_close(w->model);
}

/* The scales of matrix i, in fresh memory. */
static char *scales_of(const struct rendering *r, size_t *n)
{
    struct format_part parts[FORMAT_PARTS];
    int count = r->format->parts(r->n, r->k, r->source, parts);
    char *out = NULL;
    *n = 0;
    for (int p = 1; p < count; p++) {
        size_t bytes = format_part_bytes(&parts[p]);
        out = realloc(out, *n + bytes);
        memcpy(out + *n, r->part[p], bytes);
        *n += bytes;
    }
    return out;
}

/* Every row's scale off by up to a third, of each matrix a different pattern. */
static void scales_that_are_wrong_come_back(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    struct rounding_step steps[LAYER_UNITS], clean[LAYER_UNITS];
    world_open(&w, &format_fp8, 2);
    assert_ok(block_match_refit(w.match, w.r, clean, &e), e);
    world_close(&w);

    world_open(&w, &format_fp8, 2);
    for (int i = 0; i < MATRICES; i++)
        for (int64_t n = 0; n < w.r[i].n; n++)
            ((float *)w.r[i].part[1])[n] *= 1.0f + 0.33f * sinf((float)(7 * n + i));
    assert_ok(block_match_refit(w.match, w.r, steps, &e), e);
    for (int u = 0; u < LAYER_UNITS; u++) {
        assert_true(steps[u].kept && steps[u].after < steps[u].before);
        assert_true(u == 0 || steps[u].before == steps[u - 1].after);
    }
    print_message("scales wrong: %.3g of what the layer adds, refitted %.3g, never wrong %.3g\n", steps[0].before,
                  steps[3].after, clean[3].after);
    assert_true(steps[3].after < 0.05 * steps[0].before);
    assert_true(steps[3].after < 1.2 * clean[0].before);
    world_close(&w);
}

static void what_does_not_help_leaves_no_trace(void **state)
{
    (void)state;
    int kept = 0, undone = 0;
    for (const struct format *const *f = formats; (*f)->group_format; f++) {
        struct world w;
        struct err e = {0};
        struct rounding_step steps[LAYER_UNITS];
        size_t n[MATRICES], now_n;
        char *before[MATRICES];
        enum scale_type scale = weight_grid[(*f)->code].scale;
        world_open(&w, *f, 1);
        for (int i = 0; i < MATRICES; i++)
            before[i] = w.r[i].format ? scales_of(&w.r[i], &n[i]) : NULL;
        assert_ok(block_match_refit(w.match, w.r, steps, &e), e);
        for (int i = 0; i < MATRICES; i++) {
            int unit = w.model->matrices[LAYER * MATRICES + i].unit - LAYER * LAYER_UNITS;
            if (!before[i])
                continue;
            char *now = scales_of(&w.r[i], &now_n);
            assert_int_equal(now_n, n[i]);
            if (!steps[unit].kept)
                assert_memory_equal(now, before[i], now_n);
            free(now);
            free(before[i]);
        }
        for (int u = 0; u < LAYER_UNITS; u++) {
            assert_int_equal(steps[u].kept, steps[u].after < steps[u].before);
            assert_true(!steps[u].kept || scale != SCALE_E8M0);
            kept += steps[u].kept;
            undone += !steps[u].kept;
        }
        world_close(&w);
    }
    assert_true(kept > 0 && undone > 0);
}

static void threads_change_no_bit(void **state)
{
    (void)state;
    char *first[MATRICES] = {0};
    for (int threads = 1; threads <= 3; threads++) {
        struct world w;
        struct err e = {0};
        struct rounding_step steps[LAYER_UNITS];
        size_t n;
        world_open(&w, &format_int8, threads);
        assert_ok(block_match_refit(w.match, w.r, steps, &e), e);
        for (int i = 0; i < MATRICES; i++) {
            char *now = scales_of(&w.r[i], &n);
            if (first[i])
                assert_memory_equal(now, first[i], n);
            free(first[i]);
            first[i] = now;
        }
        world_close(&w);
    }
    for (int i = 0; i < MATRICES; i++)
        free(first[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scales_that_are_wrong_come_back),
        cmocka_unit_test(what_does_not_help_leaves_no_trace),
        cmocka_unit_test(threads_change_no_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
