/* Products with packed weights: equal bits where they are promised, rows that depend on nothing else, and errors within
 * bounds. The AMX kernel runs here with its tiles emulated (kernels/cpu/amx_tiles.h). */
#include "tests/kernels/variants.h"

#include "kernels/cpu/cpu.h"

CPU_DECLARE_MATMUL(amx_emulated);

/* The tables of this machine, and in bf16 one more: the best of them with the emulated AMX products. (Their fp32 is
 * avx512's, which is in its own table where it runs.) */
static size_t variants_and_emulated(const struct kernels *k[8], struct kernels *emulated, enum dtype mode)
{
    size_t n = variants(k);
    if (mode != DTYPE_BF16)
        return n;
    *emulated = *k[n - 1];
    emulated->name = "amx emulated";
    emulated->numeric_bf16 = "bf16 cpu amx";
    emulated->matmul_part = matmul_part_amx_emulated;
    k[n] = emulated;
    return n + 1;
}

static bool is_fma(const struct kernels *k) { return strcmp(k->numeric_bf16, "bf16 cpu fma") == 0; }

static struct tensor pack(const struct kernels *k, const float *w, int64_t n, int64_t kk, enum dtype mode)
{
    struct queue q = variant_queue(k, 2);
    struct err e = {0};
    struct tensor panels = {0}, source = tensor_matrix((void *)(uintptr_t)w, DTYPE_F32, n, kk);
    assert_ok(k->panels_new(&q, &panels, n, kk, mode, &e), e);
    assert_ok(k->pack(&q, &source, 0, &panels, &e), e);
    return panels;
}

static void multiply(const struct kernels *k, int threads, const float *x, int64_t t, const struct tensor *w, float *y)
{
    struct queue q = variant_queue(k, threads);
    struct err e = {0};
    struct tensor in = tensor_matrix((void *)(uintptr_t)x, DTYPE_F32, t, w->shape[1]);
    struct tensor out = tensor_matrix(y, DTYPE_F32, t, w->shape[0]);
    assert_ok(k->matmul(&q, &in, w, &out, &e), e);
}

/* Every variant against plain: all bits in fp32, and in bf16 where the mode says so, or where sums are exact. */
static void compare(int64_t t, int64_t n, int64_t kk, enum numbers kind, enum dtype mode)
{
    struct kernels emulated;
    const struct kernels *k[8];
    size_t n_variants = variants_and_emulated(k, &emulated, mode);
    float *x = numbers(t * kk, kind, 1), *w = numbers(n * kk, kind, 2);
    float *want = numbers(t * n, RANDOM, 3), *got = numbers(t * n, RANDOM, 4);
    struct tensor panels = pack(k[0], w, n, kk, mode);
    multiply(k[0], 1, x, t, &panels, want);
    for (size_t i = 1; i < n_variants; i++) {
        char name[128];
        if (mode == DTYPE_BF16 && !is_fma(k[i]) && kind != INTEGERS)
            continue;
        multiply(k[i], 2, x, t, &panels, got);
        assert_bits(want, got, t * n,
                    CASE(name, "%s, T=%lld N=%lld K=%lld, numbers %d, %s", k[i]->name, (long long)t, (long long)n,
                         (long long)kk, (int)kind, dtype_info(mode)->name));
    }
    mem_free(panels.data);
    free(x), free(w), free(want), free(got);
}

static void all_variants_have_the_bits_of_plain_at_every_small_size(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 33; n += 2)
        for (int64_t k = 1; k <= 33; k++)
            for (int mode = 0; mode < 2; mode++)
                compare(1 + (n + k) % 5, n, k, k % 2 ? RANDOM : INTEGERS, mode ? DTYPE_BF16 : DTYPE_F32);
}

static void all_variants_have_the_bits_of_plain_for_every_number_of_rows(void **state)
{
    (void)state;
    for (int64_t t = 0; t <= 70; t++)
        compare(t, 35, 40, t % 2 ? RANDOM : INTEGERS, t % 4 < 2 ? DTYPE_F32 : DTYPE_BF16);
}

static void all_variants_have_the_bits_of_plain_for_all_numbers(void **state)
{
    (void)state;
    for (int kind = 0; kind < NUMBERS_COUNT; kind++)
        for (int mode = 0; mode < 2; mode++)
            compare(17, 50, 77, (enum numbers)kind, mode ? DTYPE_BF16 : DTYPE_F32);
}

/* Sizes that cross blocks of k, tasks of rows and tasks of panels. */
static void all_variants_have_the_bits_of_plain_at_large_sizes(void **state)
{
    (void)state;
    static const int64_t cases[][3] = {{150, 36, 300}, {5, 1100, 257}, {130, 64, 515}, {3, 48, 1537}, {260, 17, 64}};
    for (size_t i = 0; i < COUNT(cases); i++)
        for (int mode = 0; mode < 2; mode++)
            compare(cases[i][0], cases[i][1], cases[i][2], mode ? INTEGERS : RANDOM, mode ? DTYPE_BF16 : DTYPE_F32);
}

/* Row r of 70 is the same in a product of any number of rows, at any place in it, with any number of threads. */
static void rows_do_not_depend_on_batch_place_or_threads(void **state)
{
    (void)state;
    enum { T = 70, N = 80, K = 600 };
    struct kernels emulated;
    const struct kernels *k[8];
    float *x = numbers(T * K, RANDOM, 1), *w = numbers(N * K, RANDOM, 2);
    float *want = numbers(T * N, RANDOM, 3), *got = numbers(T * N, RANDOM, 4);
    for (int mode = 0; mode < 2; mode++) {
        size_t n_variants = variants_and_emulated(k, &emulated, mode ? DTYPE_BF16 : DTYPE_F32);
        struct tensor panels = pack(k[0], w, N, K, mode ? DTYPE_BF16 : DTYPE_F32);
        for (size_t i = 0; i < n_variants; i++) {
            bool slow = k[i] == &emulated && mode == 1; /* the emulation: a few sizes around its tiles of 16 and 32 */
            multiply(k[i], 1, x, T, &panels, want);
            for (int64_t t = 1; t <= T; t += slow ? 15 + t % 2 : 1) {
                for (int threads = 1; threads <= 3; threads += slow ? 2 : 1) {
                    char name[128];
                    multiply(k[i], threads, x + (T - t) * K, t, &panels, got);
                    assert_bits(want + (T - t) * N, got, t * N,
                                CASE(name, "%s, T=%lld, %d threads, %s", k[i]->name, (long long)t, threads,
                                     mode ? "bf16" : "f32"));
                }
            }
        }
        mem_free(panels.data);
    }
    free(x), free(w), free(want), free(got);
}

static float rounded(float x, int mode) { return mode ? bf16_to_f32(bf16_from_f32(x)) : x; }

/* Against sums in f64: a chain of K roundings errs by at most K 2^-24 of the sum of magnitudes; the pairs of the bf16
 * instructions round more often, by at most twice that. */
static void errors_stay_within_the_bound_of_a_chain(void **state)
{
    (void)state;
    enum { T = 9, N = 33, K = 700 };
    struct kernels emulated;
    const struct kernels *k[8];
    float *x = numbers(T * K, RANDOM, 5), *w = numbers(N * K, RANDOM, 6), *y = numbers(T * N, RANDOM, 7);
    for (int mode = 0; mode < 2; mode++) {
        size_t n_variants = variants_and_emulated(k, &emulated, mode ? DTYPE_BF16 : DTYPE_F32);
        struct tensor panels = pack(k[0], w, N, K, mode ? DTYPE_BF16 : DTYPE_F32);
        for (size_t i = 0; i < n_variants; i++) {
            multiply(k[i], 2, x, T, &panels, y);
            for (int t = 0; t < T; t++) {
                for (int n = 0; n < N; n++) {
                    double sum = 0, size = 0;
                    for (int j = 0; j < K; j++) {
                        double p = (double)rounded(x[t * K + j], mode) * (double)rounded(w[n * K + j], mode);
                        sum += p;
                        size += fabs(p);
                    }
                    double error = fabs((double)y[t * N + n] - sum);
                    if (!(error <= 2 * K * 0x1p-24 * size))
                        fail_msg("%s %s: [%d][%d] is %g, expected %g", k[i]->name, mode ? "bf16" : "f32", t, n,
                                 (double)y[t * N + n], sum);
                }
            }
        }
        mem_free(panels.data);
    }
    free(x), free(w), free(y);
}

static void ones_times_ones_is_k(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 2, 31, 32, 33, 255, 256, 257, 511, 512, 513, 1025, 1536, 2048};
    struct kernels emulated;
    const struct kernels *k[8];
    for (size_t s = 0; s < COUNT(sizes); s++) {
        enum { T = 5, N = 20 };
        int64_t kk = sizes[s];
        float *x = numbers(T * kk, ZEROS, 1), *w = numbers(N * kk, ZEROS, 2), y[T * N];
        for (int64_t i = 0; i < T * kk; i++)
            x[i] = 1.0f;
        for (int64_t i = 0; i < N * kk; i++)
            w[i] = 1.0f;
        for (int mode = 0; mode < 2; mode++) {
            size_t n_variants = variants_and_emulated(k, &emulated, mode ? DTYPE_BF16 : DTYPE_F32);
            struct tensor panels = pack(k[0], w, N, kk, mode ? DTYPE_BF16 : DTYPE_F32);
            for (size_t i = 0; i < n_variants; i++) {
                multiply(k[i], 1, x, T, &panels, y);
                for (int j = 0; j < T * N; j++)
                    if (y[j] != (float)kk)
                        fail_msg("%s %s: K=%lld gave %g", k[i]->name, mode ? "bf16" : "f32", (long long)kk,
                                 (double)y[j]);
            }
            mem_free(panels.data);
        }
        free(x), free(w);
    }
}

static void a_part_is_those_columns_of_the_whole(void **state)
{
    (void)state;
    enum { T = 21, N = 117, K = 70 };
    static const int64_t parts[][2] = {{0, 117}, {0, 1}, {16, 16}, {32, 50}, {96, 21}, {112, 5}, {112, 0}};
    struct kernels emulated;
    const struct kernels *k[8];
    float *x = numbers(T * K, RANDOM, 1), *w = numbers(N * K, RANDOM, 2), *whole = numbers(T * N, RANDOM, 3);
    for (int mode = 0; mode < 2; mode++) {
        size_t n_variants = variants_and_emulated(k, &emulated, mode ? DTYPE_BF16 : DTYPE_F32);
        struct tensor panels = pack(k[0], w, N, K, mode ? DTYPE_BF16 : DTYPE_F32);
        for (size_t i = 0; i < n_variants; i++) {
            struct queue q = variant_queue(k[i], 2);
            struct err e = {0};
            multiply(k[i], 1, x, T, &panels, whole);
            for (size_t p = 0; p < COUNT(parts); p++) {
                int64_t first = parts[p][0], n = parts[p][1];
                float *part = numbers(T * n, RANDOM, 4);
                struct tensor in = tensor_matrix(x, DTYPE_F32, T, K), out = tensor_matrix(part, DTYPE_F32, T, n);
                assert_ok(k[i]->matmul_part(&q, &in, &panels, first, &out, &e), e);
                for (int64_t t = 0; t < T; t++)
                    assert_bits(whole + t * N + first, part + t * n, n, k[i]->name);
                free(part);
            }
        }
        mem_free(panels.data);
    }
    free(x), free(w), free(whole);
}

/* The rows of one projection can be replaced in the panels of a fused weight, and rows never filled read as zero. */
static void weights_are_packed_by_parts(void **state)
{
    (void)state;
    enum { N = 40, K = 19 };
    const struct kernels *k = kernels_find("plain");
    struct queue q = variant_queue(k, 1);
    struct err e = {0};
    float *w = numbers(N * K, RANDOM, 1), *other = numbers(8 * K, RANDOM, 2), *x = numbers(K, RANDOM, 3);
    float want[N], got[N];
    for (int mode = 0; mode < 2; mode++) {
        struct tensor panels = {0}, whole = pack(k, w, N, K, mode ? DTYPE_BF16 : DTYPE_F32);
        struct tensor first = tensor_matrix(w, DTYPE_F32, 16, K);
        struct tensor second = tensor_matrix(w + 16 * K, DTYPE_F32, N - 16, K);
        struct tensor change = tensor_matrix(other, DTYPE_F32, 8, K);
        assert_ok(k->panels_new(&q, &panels, N, K, mode ? DTYPE_BF16 : DTYPE_F32, &e), e);
        assert_ok(k->pack(&q, &second, 16, &panels, &e), e);
        multiply(k, 1, x, 1, &whole, want);
        multiply(k, 1, x, 1, &panels, got);
        for (int i = 0; i < 16; i++)
            assert_true(got[i] == 0.0f);
        assert_bits(want + 16, got + 16, N - 16, "second part");
        assert_ok(k->pack(&q, &first, 0, &panels, &e), e);
        multiply(k, 1, x, 1, &panels, got);
        assert_bits(want, got, N, "both parts");
        assert_ok(k->pack(&q, &change, 16, &panels, &e), e);
        multiply(k, 1, x, 1, &panels, got);
        assert_bits(want, got, 16, "before the changed rows");
        assert_bits(want + 24, got + 24, N - 24, "after the changed rows");
        assert_true(got[16] != want[16]);
        mem_free(panels.data);
        mem_free(whole.data);
    }
    free(w), free(other), free(x);
}

static void wrong_shapes_are_reported(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n_variants = variants(k);
    float *w = numbers(20 * 8, RANDOM, 1), x[3 * 9], y[3 * 20];
    struct tensor panels = pack(k[0], w, 20, 8, DTYPE_F32), narrow = tensor_matrix(x, DTYPE_F32, 3, 9);
    struct tensor in = tensor_matrix(x, DTYPE_F32, 3, 8), out = tensor_matrix(y, DTYPE_F32, 3, 20);
    struct tensor few = tensor_matrix(y, DTYPE_F32, 2, 20), plain = tensor_matrix(w, DTYPE_F32, 20, 8);
    struct tensor wide = tensor_matrix(w, DTYPE_F32, 16, 8);
    struct err e;
    for (size_t i = 0; i < n_variants; i++) {
        struct queue q = variant_queue(k[i], 1), none = variant_queue(k[i], 0);
        assert_err(k[i]->matmul(&q, &narrow, &panels, &out, &e), e, ERR_BUG,
                   "matmul: 'x' is f32 of rank 2 [3, 9] in layout 0 on device -1, "
                   "expected row-major f32 [any, 8]");
        assert_err(k[i]->matmul(&q, &in, &panels, &few, &e), e, ERR_BUG, "'y'");
        assert_err(k[i]->matmul(&q, &in, &plain, &out, &e), e, ERR_BUG, "panels");
        assert_err(k[i]->matmul(&none, &in, &panels, &out, &e), e, ERR_BUG, "0 threads");
        assert_err(k[i]->matmul_part(&q, &in, &panels, 8, &out, &e), e, ERR_BUG, "multiple of 16");
        assert_err(k[i]->matmul_part(&q, &in, &panels, 16, &out, &e), e, ERR_BUG, "columns 16 to 36 of 20");
        assert_err(k[i]->pack(&q, &wide, 16, &panels, &e), e, ERR_BUG, "rows 16 to 32 of 20");
        assert_err(k[i]->panels_new(&q, &panels, 0, 8, DTYPE_F32, &e), e, ERR_BUG, "{0, 8}");
        assert_err(k[i]->panels_new(&q, &panels, 8, 8, DTYPE_F16, &e), e, ERR_BUG, "f16");
    }
    mem_free(panels.data);
    free(w);
}

/* A green run on a machine without AVX-512 or AMX has not run those: say so. */
static void print_what_is_not_run(void)
{
    size_t n;
    const char *const *names = kernels_names(&n);
    for (size_t i = 0; i < n; i++)
        if (!kernels_find(names[i]))
            printf("not run on this machine: %s\n", names[i]);
}

int main(void)
{
    print_what_is_not_run();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_variants_have_the_bits_of_plain_at_every_small_size),
        cmocka_unit_test(all_variants_have_the_bits_of_plain_for_every_number_of_rows),
        cmocka_unit_test(all_variants_have_the_bits_of_plain_for_all_numbers),
        cmocka_unit_test(all_variants_have_the_bits_of_plain_at_large_sizes),
        cmocka_unit_test(rows_do_not_depend_on_batch_place_or_threads),
        cmocka_unit_test(errors_stay_within_the_bound_of_a_chain),
        cmocka_unit_test(ones_times_ones_is_k),
        cmocka_unit_test(a_part_is_those_columns_of_the_whole),
        cmocka_unit_test(weights_are_packed_by_parts),
        cmocka_unit_test(wrong_shapes_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
