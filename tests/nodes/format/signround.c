/* signround: never worse than the start by what it minimises, row by row; much better than round-to-nearest; a start
 * that is not the nearest is taken as it is; the same bytes for any number of threads; every format, shapes with
 * edges. */
#include "nodes/format/signround.h"

#include <math.h>

#include "tests/nodes/format/problem.h"

#define TOLERANCE 1e-5 /* losses are of products in f32 */

static const struct rounding_options options = {.n_dampings = 1, .damping = {0.01}, .by_activation = true,
                                                .signround_steps = 40};

/* e^T H e of rows [row, row + n), in f64. */
static double loss_of_rows(const struct problem *p, const struct blocks *b, int64_t row, int64_t n)
{
    float *x = malloc((size_t)p->k * sizeof *x);
    double sum = 0.0;
    assert_non_null(x);
    for (int64_t r = row; r < row + n; r++) {
        blocks_decode(b, r, 1, x);
        for (int64_t i = 0; i < p->k; i++)
            x[i] = p->w[r * p->k + i] - x[i];
        for (int64_t i = 0; i < p->k; i++)
            for (int64_t j = 0; j < p->k; j++)
                sum += (double)x[i] * (double)p->moment[i * p->k + j] * (double)x[j];
    }
    free(x);
    return sum;
}

static void it_loses_less_than_the_nearest_in_every_format(void **state)
{
    (void)state;
    struct queue q = queue_of(2);
    for (const struct format *const *f = formats; (*f)->group_format; f++) {
        struct problem p = problem_new(150, 256);
        struct rounding r = opened(&p, &q, options);
        struct blocks rtn = rounded(&p, *f), b = rounded(&p, *f);
        struct err e = {0};
        double before = loss_of(&r, r.fit, &p, &b), after;
        assert_ok(rounding_signround.apply(&r, p.w, &b, &e), e);
        after = loss_of(&r, r.fit, &p, &b);
        print_message("%-10s rtn %.4g, signround %.4g\n", (*f)->name, before, after);
        assert_true(after < 0.75 * before);
        for (int64_t row = 0; row < p.n; row += b.grid.rows) {
            int64_t n = p.n - row < b.grid.rows ? p.n - row : b.grid.rows;
            assert_true(loss_of_rows(&p, &b, row, n) <= loss_of_rows(&p, &rtn, row, n) * (1.0 + TOLERANCE));
        }
        rounding_close(&r);
        blocks_free(&b);
        blocks_free(&rtn);
        problem_free(&p);
    }
}

/* After gptq, whose codes are often not the nearest: never worse; and with no steps not a bit is another. */
static void it_starts_from_what_is_there(void **state)
{
    (void)state;
    struct queue q = queue_of(2);
    const struct format *const tried[] = {&format_nvfp4, &format_mxfp8, &format_int4_g128, &format_int8};
    for (size_t f = 0; f < COUNT(tried); f++) {
        struct problem p = problem_new(30, 256);
        struct rounding r = opened(&p, &q, options);
        struct blocks start = rounded(&p, tried[f]), b = rounded(&p, tried[f]);
        struct err e = {0};
        assert_ok(rounding_gptq.apply(&r, p.w, &start, &e), e);
        blocks_copy(&b, &start);
        r.options.signround_steps = 0;
        assert_ok(rounding_signround.apply(&r, p.w, &b, &e), e);
        assert_memory_equal(b.code, start.code, (size_t)(p.n * p.k));
        r.options.signround_steps = 40;
        assert_ok(rounding_signround.apply(&r, p.w, &b, &e), e);
        for (int64_t row = 0; row < p.n; row++)
            assert_true(loss_of_rows(&p, &b, row, 1) <= loss_of_rows(&p, &start, row, 1) * (1.0 + TOLERANCE));
        rounding_close(&r);
        blocks_free(&b);
        blocks_free(&start);
        problem_free(&p);
    }
}

static void the_bytes_do_not_depend_on_the_threads(void **state)
{
    (void)state;
    const struct format *const tried[] = {&format_nvfp4, &format_fp8_block, &format_int4_g32};
    for (size_t f = 0; f < COUNT(tried); f++) {
        struct problem p = problem_new(300, 128);
        struct blocks first = {0};
        for (int threads = 1; threads <= 3; threads++) {
            struct queue q = queue_of(threads);
            struct rounding r = opened(&p, &q, options);
            struct blocks b = rounded(&p, tried[f]);
            struct err e = {0};
            assert_ok(rounding_signround.apply(&r, p.w, &b, &e), e);
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

/* Rows of zeros, a moment of zeros, one of rank one; decoded weights are finite, and zeros stay. */
static void poor_inputs_are_fine(void **state)
{
    (void)state;
    struct queue q = queue_of(2);
    for (int i = 0; i < 3; i++)
        for (const struct format *const *f = formats; (*f)->group_format; f++) {
            struct problem p = problem_new(5, 128);
            struct err e = {0};
            for (int64_t j = 0; i > 0 && j < p.k * p.k; j++)
                p.moment[j] = i == 1 ? 0.0f : 1.0f;
            memset(p.w + p.k, 0, (size_t)(2 * p.k) * sizeof *p.w);
            struct rounding r = opened(&p, &q, options);
            struct blocks b = rounded(&p, *f);
            float row[128];
            assert_ok(rounding_signround.apply(&r, p.w, &b, &e), e);
            for (int64_t n = 0; n < p.n; n++) {
                blocks_decode(&b, n, 1, row);
                for (int64_t j = 0; j < p.k; j++)
                    assert_true(isfinite(row[j]) && (n < 1 || n > 2 || row[j] == 0.0f));
            }
            rounding_close(&r);
            blocks_free(&b);
            problem_free(&p);
        }
}

/* Out of memory at any request is an error, and nothing is left allocated (the sanitizers see to that). */
static void memory_that_is_out_is_told(void **state)
{
    (void)state;
    struct queue q = queue_of(1);
    struct problem p = problem_new(3, 32);
    struct rounding r = opened(&p, &q, options);
    struct err e = {0};
    long n = 1;
    for (bool ok = false; !ok; n++) {
        struct blocks b = rounded(&p, &format_nvfp4);
        mem_fail_after(n, true);
        ok = rounding_signround.apply(&r, p.w, &b, &e);
        mem_fail_after(0, false);
        assert_true(ok || e.code == ERR_RESOURCE);
        blocks_free(&b);
    }
    assert_true(n > 10);
    rounding_close(&r);
    problem_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_loses_less_than_the_nearest_in_every_format),
        cmocka_unit_test(it_starts_from_what_is_there),
        cmocka_unit_test(the_bytes_do_not_depend_on_the_threads),
        cmocka_unit_test(poor_inputs_are_fine),
        cmocka_unit_test(memory_that_is_out_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
