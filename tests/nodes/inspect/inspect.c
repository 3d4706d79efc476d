/* The validator on a checkpoint that this program wrote: sound, and memory may run out anywhere. */
#include "nodes/inspect/inspect.h"

#include "tests/nodes/model/recipe.h"

static void a_checkpoint_of_ours_is_sound(void **state)
{
    char source[1024];
    struct recipe r;
    struct inspection *x;
    struct err e;
    (void)state;
    recipe_init(&r);
    recipe_do(&r, "base packed\n");
    snprintf(source, sizeof source, "%s/data/models/stories260k", check_root());
    struct inspect_options o = {.dir = r.path, .source = source};
    assert_ok(inspect_run(&x, &o, &e), e);
    for (size_t i = 0; i < x->report.n; i++)
        if (x->report.list[i].check < 10) /* files beside the weights are not copied here */
            fail_msg("check %d: %s: %s; expected: %s", x->report.list[i].check, x->report.list[i].place,
                     x->report.list[i].found, x->report.list[i].expected);
    assert_true(x->is_quantized);
    assert_int_equal(x->n_units, 20);
    assert_string_equal(x->units[3].name, "model.layers.0.self_attn.qkv_proj");
    assert_string_equal(x->units[3].scheme, "nvfp4");
    inspection_free(x);
    recipe_fini(&r);
}

/* Whatever request fails, the answer is that memory was out, or, where it is not needed, the whole answer. */
static void memory_may_run_out_anywhere(void **state)
{
    char source[1024];
    struct recipe r;
    struct inspection *x;
    struct err e;
    uint64_t findings = 0;
    long failed = 0;
    (void)state;
    recipe_init(&r);
    recipe_do(&r, "base packed\n"
                  "config quantization_config.ignore [\"re:.*lm_head\", \"re:(\", \"model.layers.4.mlp.up_proj\"]\n");
    snprintf(source, sizeof source, "%s/data/models/stories260k", check_root());
    struct inspect_options o = {.dir = r.path, .source = source};
    assert_ok(inspect_run(&x, &o, &e), e);
    findings = x->report.n;
    inspection_free(x);
    for (long n = 1, fine = 0; fine < 20; n++) { /* so many in a row: there are no more requests */
        mem_fail_after(n, false);
        bool ok = inspect_run(&x, &o, &e);
        mem_fail_after(0, false);
        fine = ok ? fine + 1 : 0;
        if (ok) {
            assert_int_equal(x->report.n, findings);
            inspection_free(x);
        } else {
            assert_int_equal(e.code, ERR_RESOURCE);
            failed++;
        }
    }
    assert_in_range(failed, 100, 5000);
    recipe_fini(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_checkpoint_of_ours_is_sound),
        cmocka_unit_test(memory_may_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
