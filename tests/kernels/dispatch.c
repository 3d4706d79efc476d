/* Which table kernels_cpu gives, and what it says of a name that it does not give. */
#include "tests/kernels/variants.h"

static void names_are_in_order_and_plain_always_runs(void **state)
{
    (void)state;
    static const char *const expected[] = {"plain", "avx2", "avx512", "avx512bf16", "amx"};
    size_t n;
    const char *const *names = kernels_names(&n);
    assert_int_equal(n, COUNT(expected));
    for (size_t i = 0; i < n; i++)
        assert_string_equal(names[i], expected[i]);
    assert_non_null(kernels_find("plain"));
    assert_null(kernels_find("cpu plain"));
    assert_null(kernels_find(""));
}

static void every_table_is_complete_and_says_its_numeric_mode(void **state)
{
    (void)state;
    const struct kernels *k[8];
    size_t n = variants(k);
    for (size_t i = 0; i < n; i++) {
        assert_true(k[i]->tensor_new && k[i]->tensor_free && k[i]->upload && k[i]->download && k[i]->copy);
        assert_true(k[i]->panels_new && k[i]->pack && k[i]->matmul && k[i]->matmul_part && k[i]->gram && k[i]->embed);
        assert_true(k[i]->rmsnorm && k[i]->add_rmsnorm && k[i]->add && k[i]->add_bias && k[i]->rope && k[i]->attention);
        assert_true(k[i]->swiglu && k[i]->fake_quantize && k[i]->amax && k[i]->kl_tile);
        assert_true(k[i]->unpack && k[i]->encode && k[i]->energy);
        assert_true(k[i]->rmsnorm_backward && k[i]->attention_backward && k[i]->swiglu_backward && k[i]->transpose);
        assert_true(k[i]->fisher_draw && k[i]->window_dots && k[i]->subtract);
        assert_string_equal(k[i]->numeric_fp32, "fp32 cpu");
        if (strcmp(k[i]->name, "cpu avx512bf16") == 0 || strcmp(k[i]->name, "cpu amx") == 0)
            assert_string_not_equal(k[i]->numeric_bf16, "bf16 cpu fma");
        else
            assert_string_equal(k[i]->numeric_bf16, "bf16 cpu fma");
    }
}

static void scout_cpu_chooses_any_table_that_runs(void **state)
{
    (void)state;
    size_t n;
    const char *const *names = kernels_names(&n);
    struct err e = {0};
    for (size_t i = 0; i < n; i++) {
        setenv("SCOUT_CPU", names[i], 1);
        if (kernels_find(names[i])) {
            char name[32];
            assert_ptr_equal(kernels_cpu(&e), kernels_find(names[i]));
            assert_string_equal(kernels_cpu(&e)->name, CASE(name, "cpu %s", names[i]));
        } else {
            assert_err(kernels_cpu(&e), e, ERR_USAGE, "this machine cannot run it; it can run plain");
            assert_non_null(strstr(e.text, names[i]));
        }
    }
    unsetenv("SCOUT_CPU");
}

static void the_best_table_is_the_default(void **state)
{
    (void)state;
    struct err e = {0};
    const struct kernels *k[8];
    size_t n = variants(k);
    unsetenv("SCOUT_CPU");
    assert_ptr_equal(kernels_cpu(&e), k[n - 1]);
    setenv("SCOUT_CPU", "", 1);
    assert_ptr_equal(kernels_cpu(&e), k[n - 1]);
    unsetenv("SCOUT_CPU");
}

static void an_unknown_name_is_refused_with_the_names_that_run(void **state)
{
    (void)state;
    struct err e;
    setenv("SCOUT_CPU", "neon512", 1);
    assert_err(kernels_cpu(&e), e, ERR_USAGE, "SCOUT_CPU=neon512: no such CPU variant; this machine can run plain");
    setenv("SCOUT_CPU", "plian", 1);
    assert_err(kernels_cpu(&e), e, ERR_USAGE, "(did you mean 'plain'?)");
    unsetenv("SCOUT_CPU");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_in_order_and_plain_always_runs),
        cmocka_unit_test(every_table_is_complete_and_says_its_numeric_mode),
        cmocka_unit_test(scout_cpu_chooses_any_table_that_runs),
        cmocka_unit_test(the_best_table_is_the_default),
        cmocka_unit_test(an_unknown_name_is_refused_with_the_names_that_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
