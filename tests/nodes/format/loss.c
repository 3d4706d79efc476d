/* Losses against sums in double, and their independence of the number of threads. */
#include "nodes/format/loss.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/base/mem.h"

/* An f32 chain of K <= 200 products: its relative error is far below this. */
#define TOLERANCE 1e-5

static double next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(*state >> 11) / 9007199254740992.0 - 0.5;
}

/* A random [n,k] matrix, and X^T X / 300 of random X as a second moment. */
static void make(int64_t n, int64_t k, float **w, float **moment)
{
    uint64_t state = 7;
    *w = malloc((size_t)(n * k) * sizeof **w);
    *moment = malloc((size_t)(k * k) * sizeof **moment);
    float *x = malloc((size_t)(300 * k) * sizeof *x);
    assert_true(*w && *moment && x);
    for (int64_t i = 0; i < n * k; i++)
        (*w)[i] = (float)next(&state);
    for (int64_t i = 0; i < 300 * k; i++)
        x[i] = (float)next(&state);
    for (int64_t i = 0; i < k; i++) {
        for (int64_t j = 0; j < k; j++) {
            double sum = 0.0;
            for (int64_t t = 0; t < 300; t++)
                sum += (double)x[t * k + i] * (double)x[t * k + j];
            (*moment)[i * k + j] = (float)(sum / 300.0);
        }
    }
    free(x);
}

static void add(const float *w, int64_t n, int64_t k, const float *moment, int threads, double *square, double *energy)
{
    struct err e = {0};
    const struct kernels *kernels = kernels_cpu(&e);
    struct queue q = {.k = kernels, .threads = threads, .device = TENSOR_HOST};
    struct loss *l = NULL;
    struct tensor d = tensor_matrix((void *)(uintptr_t)w, DTYPE_F32, n, k);
    *square = *energy = 0.0;
    if (!kernels || !loss_new(&l, &q, moment, k, &e) || !loss_add(l, &d, square, energy, &e))
        fail_msg("%s", e.text);
    loss_free(l);
}

static void squares_and_energies_are_those_of_the_formula(void **state)
{
    (void)state;
    static const struct {
        int64_t n, k;
    } cases[] = {{1, 1}, {3, 16}, {7, 50}, {256, 128}, {33, 200}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        int64_t n = cases[c].n, k = cases[c].k;
        float *w, *moment;
        double square, energy, expected_square = 0.0, expected_energy = 0.0;
        make(n, k, &w, &moment);
        add(w, n, k, moment, 2, &square, &energy);
        for (int64_t row = 0; row < n; row++) {
            for (int64_t i = 0; i < k; i++) {
                double wi = (double)w[row * k + i];
                expected_square += wi * wi;
                for (int64_t j = 0; j < k; j++)
                    expected_energy += wi * (double)moment[i * k + j] * (double)w[row * k + j];
            }
        }
        if (fabs(square / expected_square - 1.0) > TOLERANCE || fabs(energy / expected_energy - 1.0) > TOLERANCE)
            fail_msg("[%lld, %lld]: %.12g and %.12g, expected %.12g and %.12g", (long long)n, (long long)k, square,
                     energy, expected_square, expected_energy);
        free(w);
        free(moment);
    }
}

static void the_number_of_threads_changes_no_bit(void **state)
{
    (void)state;
    float *w, *moment;
    double square[2], energy[2];
    make(100, 96, &w, &moment);
    add(w, 100, 96, moment, 1, &square[0], &energy[0]);
    add(w, 100, 96, moment, 3, &square[1], &energy[1]);
    assert_memory_equal(&square[0], &square[1], sizeof *square);
    assert_memory_equal(&energy[0], &energy[1], sizeof *energy);
    free(w);
    free(moment);
}

static void without_a_second_moment_the_energy_is_unknown(void **state)
{
    (void)state;
    const float w[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    double square, energy;
    add(w, 2, 2, NULL, 1, &square, &energy);
    assert_true(square == 30.0);
    assert_true(isnan(energy));
}

static void ratios_of_nothing_are_zero_and_of_the_unknown_nan(void **state)
{
    (void)state;
    static const struct {
        double part, whole, ratio;
    } cases[] = {{1, 4, .25}, {0, 4, 0}, {0, 0, 0}, {-1e-20, 4, 0}, {1e-9, 0, 0}, {NAN, 4, NAN}, {1, NAN, NAN}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        double got = loss_ratio(cases[c].part, cases[c].whole);
        assert_true(got == cases[c].ratio || (isnan(got) && isnan(cases[c].ratio)));
    }
}

static void too_many_rows_are_our_mistake(void **state)
{
    (void)state;
    struct err e = {0};
    struct queue q = {.k = kernels_cpu(&e), .threads = 1, .device = TENSOR_HOST};
    struct loss *l = NULL;
    float w = 1.0f;
    struct tensor d = tensor_matrix(&w, DTYPE_F32, LOSS_ROWS + 1, 1);
    double square = 0.0, energy = 0.0;
    assert_true(loss_new(&l, &q, NULL, 1, &e));
    assert_false(loss_add(l, &d, &square, &energy, &e));
    assert_int_equal(e.code, ERR_BUG);
    loss_free(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(squares_and_energies_are_those_of_the_formula),
        cmocka_unit_test(the_number_of_threads_changes_no_bit),
        cmocka_unit_test(without_a_second_moment_the_energy_is_unknown),
        cmocka_unit_test(ratios_of_nothing_are_zero_and_of_the_unknown_nan),
        cmocka_unit_test(too_many_rows_are_our_mistake),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
