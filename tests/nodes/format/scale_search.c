/* scale_search: against a search through all scales there are, never worse than the start by what it minimises, a start
 * that is good already kept, the same bytes for any number of threads, every format with shapes that have edges. */
#include "nodes/format/scale_search.h"

#include <math.h>

#include "tests/nodes/format/problem.h"

/* sum of h (w - q s)^2 over one block with codes to the nearest, by grid.h alone. */
static double block_error(const struct blocks *b, const float *w, const double *h, int64_t n, float step)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)w[i] - (double)(b->value[grid_code(b->grid.element, w[i] / step)] * step);
        sum += h[i] * d * d;
    }
    return sum;
}

static double error_as_coded(const struct blocks *b, const float *w, const double *h, int64_t row, int64_t first)
{
    double sum = 0.0;
    for (int64_t i = 0; i < b->columns; i++) {
        int64_t at = row * b->k + first + i;
        double d = (double)w[i] - (double)(b->value[b->code[at]] * b->step[blocks_at(b, row, first + i)]);
        sum += h[first + i] * d * d;
    }
    return sum;
}

/* By the diagonal: near the best of all E4M3 scales (or of all exponents), and never worse than round-to-nearest. */
static void the_diagonal_search_is_near_the_best_there_is(void **state)
{
    (void)state;
    struct queue q = queue_of(2);
    const struct format *const tried[] = {&format_nvfp4, &format_mxfp4, &format_mxfp8};
    for (size_t f = 0; f < COUNT(tried); f++) {
        struct problem p = problem_new(24, 128);
        struct rounding r = opened(&p, &q, (struct rounding_options){.n_dampings = 1, .damping = {0.01}});
        struct blocks rtn = rounded(&p, tried[f]), b = rounded(&p, tried[f]);
        struct err e = {0};
        double h[128], trace = 0.0, ours = 0.0, best = 0.0, nearest = 0.0;
        for (int64_t i = 0; i < p.k; i++)
            trace += (double)p.moment[i * p.k + i];
        for (int64_t i = 0; i < p.k; i++)
            h[i] = (double)p.moment[i * p.k + i] + 0.05 * trace / (double)p.k; /* as the method weighs */
        assert_ok(rounding_scale_search.apply(&r, p.w, &b, &e), e);
        for (int64_t row = 0; row < p.n; row++)
            for (int64_t first = 0; first < p.k; first += b.columns) {
                const float *w = p.w + row * p.k + first;
                double was = error_as_coded(&rtn, w, h, row, first), now = error_as_coded(&b, w, h, row, first);
                double least = INFINITY;
                bool codes = b.grid.scale == SCALE_E4M3;
                for (uint32_t s = codes ? 8 : 64; s <= (codes ? 0x7e : 160); s++) {
                    double error = block_error(&b, w, h + first, b.columns, grid_step(b.grid.scale, s, b.global));
                    least = error < least ? error : least;
                }
                assert_true(now <= was * (1.0 + 1e-5));
                assert_true(now >= least * (1.0 - 1e-5));
                ours += now, best += least, nearest += was;
            }
        print_message("%-8s rtn %.5g, scale_search %.5g, the best there is %.5g\n", tried[f]->name, nearest, ours,
                      best);
        assert_true(ours < 0.99 * nearest || tried[f] == &format_mxfp8);
        assert_true(ours < 1.005 * best);
        rounding_close(&r);
        blocks_free(&b);
        blocks_free(&rtn);
        problem_free(&p);
    }
}

/* Scales that are bf16 or f32 are searched among some thirty: near the best of all bf16 ones within a binade and a
 * half. Where codes are of eight bits that is a matter of luck among many near-equals. */
static void the_search_of_float_scales_is_near_the_best_there_is(void **state)
{
    (void)state;
    static const struct {
        const struct format *f;
        double of_best; /* at most so many times the error of the best */
    } tried[] = {{&format_int4_g32, 1.01}, {&format_int4_g128, 1.01}, {&format_int8_a16, 1.05}, {&format_fp8, 1.08}};
    struct queue q = queue_of(2);
    for (size_t f = 0; f < COUNT(tried); f++) {
        struct problem p = problem_new(24, 128);
        struct rounding r = opened(&p, &q, (struct rounding_options){.n_dampings = 1, .damping = {0.01}});
        struct blocks rtn = rounded(&p, tried[f].f), b = rounded(&p, tried[f].f);
        struct err e = {0};
        double h[128], trace = 0.0, ours = 0.0, best = 0.0, nearest = 0.0;
        for (int64_t i = 0; i < p.k; i++)
            trace += (double)p.moment[i * p.k + i];
        for (int64_t i = 0; i < p.k; i++)
            h[i] = (double)p.moment[i * p.k + i] + 0.05 * trace / (double)p.k;
        assert_ok(rounding_scale_search.apply(&r, p.w, &b, &e), e);
        for (int64_t row = 0; row < p.n; row++)
            for (int64_t first = 0; first < p.k; first += b.columns) {
                const float *w = p.w + row * p.k + first;
                double least = INFINITY;
                uint32_t fit = bf16_from_f32(rtn.step[blocks_at(&rtn, row, first)]);
                for (uint32_t s = fit - 96; s <= fit + 96; s++) { /* 128 to a binade */
                    double error = block_error(&b, w, h + first, b.columns, bf16_to_f32((uint16_t)s));
                    least = error < least ? error : least;
                }
                ours += error_as_coded(&b, w, h, row, first);
                nearest += error_as_coded(&rtn, w, h, row, first);
                best += least;
            }
        print_message("%-9s rtn %.5g, scale_search %.5g, the best there is %.5g\n", tried[f].f->name, nearest, ours,
                      best);
        assert_true(ours < 0.95 * nearest && ours < tried[f].of_best * best);
        rounding_close(&r);
        blocks_free(&b);
        blocks_free(&rtn);
        problem_free(&p);
    }
}

/* Is there no code of row `row` that another would serve better under the moment with this ridge, all others fixed? */
static bool is_settled(const struct problem *p, const struct blocks *b, int64_t row, double ridge)
{
    double mean = 0.0, error[64];
    for (int64_t i = 0; i < p->k; i++)
        mean += (double)p->moment[i * p->k + i] / (double)p->k;
    for (int64_t i = 0; i < p->k; i++)
        error[i] = (double)p->w[row * p->k + i] -
                   (double)(b->value[b->code[row * b->k + i]] * b->step[blocks_at(b, row, i)]);
    for (int64_t i = 0; i < p->k; i++) {
        double own = (double)p->moment[i * p->k + i], extra = ridge * (own + 0.05 * mean), slope = extra * error[i];
        for (int64_t j = 0; j < p->k; j++)
            slope += (double)p->moment[i * p->k + j] * error[j];
        for (int code = 0; code < 16; code++) {
            double step = (double)b->step[blocks_at(b, row, i)];
            double change = (double)(b->value[b->code[row * b->k + i]] - b->value[code]) * step;
            double gain = change * (change * (own + extra) + 2.0 * slope);
            if (gain < -1e-6 * (own + extra) * error[i] * error[i] - 1e-12)
                return false;
        }
    }
    return true;
}

static bool all_settled(const struct problem *p, const struct blocks *b, double ridge)
{
    for (int64_t row = 0; row < p->n; row++)
        if (!is_settled(p, b, row, ridge))
            return false;
    return true;
}

/* Applied until nothing changes any more, it has come to where no single code can be better. */
static void the_descent_ends_where_no_code_can_be_better(void **state)
{
    (void)state;
    const struct format *const tried[] = {&format_nvfp4, &format_mxfp4, &format_int4_g64};
    struct queue q = queue_of(1);
    for (size_t f = 0; f < COUNT(tried); f++) {
        struct problem p = problem_new(12, 64);
        struct rounding r = opened(&p, &q, (struct rounding_options){.n_dampings = 1, .damping = {0.01},
                                                                     .full_moment = true});
        struct blocks b = rounded(&p, tried[f]), last = rounded(&p, tried[f]), rtn = rounded(&p, tried[f]);
        struct err e = {0};
        bool changed = true;
        for (int i = 0; i < 50 && changed; i++) {
            blocks_copy(&last, &b);
            assert_ok(rounding_scale_search.apply(&r, p.w, &b, &e), e);
            changed = memcmp(last.code, b.code, (size_t)(p.n * p.k)) != 0;
        }
        assert_false(changed);
        bool settled = false; /* under one of the ridges that it chooses from */
        for (double ridge = 0.25; ridge <= 2.0; ridge *= 2.0) {
            settled = settled || all_settled(&p, &b, ridge);
            assert_false(all_settled(&p, &rtn, ridge));
        }
        assert_true(settled);
        rounding_close(&r);
        blocks_free(&b);
        blocks_free(&last);
        blocks_free(&rtn);
        problem_free(&p);
    }
}

/* Under the whole moment: in every format less loss than round-to-nearest and than the diagonal search, on the rows it
 * fits; shapes with edges. */
static void the_whole_moment_loses_less_in_every_format(void **state)
{
    (void)state;
    struct queue q = queue_of(2);
    for (const struct format *const *f = formats; (*f)->group_format; f++) {
        struct problem p = problem_new(150, 384);
        struct rounding_options o = {.n_dampings = 1, .damping = {0.01}};
        struct rounding diagonal = opened(&p, &q, o);
        o.full_moment = true;
        struct rounding full = opened(&p, &q, o);
        struct blocks b = rounded(&p, *f);
        struct err e = {0};
        double rtn = loss_of(&full, full.fit, &p, &b);
        assert_ok(rounding_scale_search.apply(&diagonal, p.w, &b, &e), e);
        double by_diagonal = loss_of(&full, full.fit, &p, &b);
        blocks_free(&b);
        b = rounded(&p, *f);
        assert_ok(rounding_scale_search.apply(&full, p.w, &b, &e), e);
        double by_all = loss_of(&full, full.fit, &p, &b);
        print_message("%-10s rtn %.4g, diagonal %.4g, whole %.4g\n", (*f)->name, rtn, by_diagonal, by_all);
        assert_true(by_all < 0.7 * rtn && by_all < by_diagonal);
        rounding_close(&diagonal);
        rounding_close(&full);
        blocks_free(&b);
        problem_free(&p);
    }
}

/* After gptq it goes on from there, and does not fall back to the nearest. */
static void it_goes_on_from_what_is_there(void **state)
{
    (void)state;
    struct problem p = problem_new(64, 256);
    struct queue q = queue_of(2);
    struct rounding_options o = {.n_dampings = 1, .damping = {0.01}, .by_activation = true, .full_moment = true};
    struct rounding r = opened(&p, &q, o);
    struct blocks b = rounded(&p, &format_nvfp4_a16);
    struct err e = {0};
    assert_ok(rounding_gptq.apply(&r, p.w, &b, &e), e);
    double gptq = loss_of(&r, r.held_out, &p, &b);
    assert_ok(rounding_scale_search.apply(&r, p.w, &b, &e), e);
    double after = loss_of(&r, r.held_out, &p, &b);
    print_message("gptq %.4g, scale_search after it %.4g (held out)\n", gptq, after);
    assert_true(after < gptq);
    rounding_close(&r);
    blocks_free(&b);
    problem_free(&p);
}

static void the_bytes_do_not_depend_on_the_threads(void **state)
{
    (void)state;
    const struct format *const tried[] = {&format_nvfp4, &format_fp8_block, &format_int4_g32};
    for (size_t f = 0; f < COUNT(tried); f++)
        for (int full = 0; full < 2; full++) {
            struct problem p = problem_new(300, 128);
            struct blocks first = {0};
            for (int threads = 1; threads <= 3; threads++) {
                struct queue q = queue_of(threads);
                struct rounding r = opened(&p, &q, (struct rounding_options){.n_dampings = 1, .damping = {0.01},
                                                                             .full_moment = full});
                struct blocks b = rounded(&p, tried[f]);
                struct err e = {0};
                assert_ok(rounding_scale_search.apply(&r, p.w, &b, &e), e);
                rounding_close(&r);
                if (threads == 1) {
                    first = b;
                    continue;
                }
                assert_memory_equal(b.code, first.code, (size_t)(p.n * p.k));
                assert_memory_equal(b.scale, first.scale, (size_t)(b.scale_rows * b.scale_columns) * 4);
                blocks_free(&b);
            }
            blocks_free(&first);
            problem_free(&p);
        }
}

/* Rows of zeros, a moment of zeros, one of rank one, and few columns. */
static void poor_inputs_are_fine(void **state)
{
    (void)state;
    struct queue q = queue_of(2);
    for (int i = 0; i < 4; i++)
        for (const struct format *const *f = formats; (*f)->group_format; f++) {
            struct problem p = problem_new(5, 128);
            struct err e = {0};
            for (int64_t j = 0; j < p.k * p.k; j++)
                p.moment[j] = i < 2 ? p.moment[j] : i == 2 ? 0.0f : 1.0f;
            if (i == 1)
                memset(p.w + p.k, 0, (size_t)(2 * p.k) * sizeof *p.w);
            struct rounding r = opened(&p, &q, (struct rounding_options){.n_dampings = 1, .damping = {0.01},
                                                                         .full_moment = true});
            struct blocks b = rounded(&p, *f);
            float row[128];
            assert_ok(rounding_scale_search.apply(&r, p.w, &b, &e), e);
            for (int64_t n = 0; n < p.n; n++) {
                blocks_decode(&b, n, 1, row);
                for (int64_t j = 0; j < p.k; j++)
                    assert_true(isfinite(row[j]) && (i != 1 || n < 1 || n > 2 || row[j] == 0.0f));
            }
            rounding_close(&r);
            blocks_free(&b);
            problem_free(&p);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_diagonal_search_is_near_the_best_there_is),
        cmocka_unit_test(the_search_of_float_scales_is_near_the_best_there_is),
        cmocka_unit_test(the_descent_ends_where_no_code_can_be_better),
        cmocka_unit_test(the_whole_moment_loses_less_in_every_format),
        cmocka_unit_test(it_goes_on_from_what_is_there),
        cmocka_unit_test(the_bytes_do_not_depend_on_the_threads),
        cmocka_unit_test(poor_inputs_are_fine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
