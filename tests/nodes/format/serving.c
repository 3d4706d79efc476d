/* Serving profiles: which units can have which format where, and what stands in. Shapes are those of models at hand:
 * SmolLM2 (widths 576 and 1536, key and value 192), babyllama-1m (128, 352), stories260k (64, 172). */
#include "nodes/format/serving.h"

#include "tests/check.h"

/* Two matrices of n / 2 rows, or one. */
static struct serving_unit unit(int64_t n, int64_t k, int64_t seam)
{
    struct serving_unit u = {.name = "u", .n = n, .k = k};
    if (seam)
        serving_add_seam(&u, seam);
    return u;
}

static const struct serving_profile *profile(const char *name)
{
    const struct serving_profile *p = serving_find(name);
    assert_non_null(p);
    return p;
}

static void the_tables_agree(void **state)
{
    (void)state;
    char why[SERVING_TEXT];
    assert_null(serving_find("vllm"));
    for (int i = 0; serving_profiles[i] || serving_names[i]; i++) {
        assert_string_equal(serving_profiles[i]->name, serving_names[i]);
        assert_ptr_equal(serving_find(serving_names[i]), serving_profiles[i]);
        /* What is named instead is offered itself. */
        for (const struct serving_rule *r = serving_profiles[i]->rules; r->format; r++) {
            assert_true(!r->why == !r->instead && !(r->why && r->note));
            if (!r->why)
                continue;
            assert_true(serving_offers(serving_profiles[i], r->instead, why));
            assert_string_equal(why, "");
            assert_false(serving_offers(serving_profiles[i], r->format, why));
            assert_non_null(strstr(why, r->instead->name));
        }
    }
}

/* Every format that is not among the refused is offered. */
static void what_is_offered_is_what_runs_as_measured(void **state)
{
    (void)state;
    static const struct { const char *profile; const char *refused[8]; } cases[] = {
        {"any", {NULL}},
        {"vllm-blackwell", {"mxfp4_a16", "mxfp8_a16", "int8", NULL}},
        {"vllm-hopper", {"nvfp4", "mxfp4", "mxfp8", NULL}},
        {"vllm-ampere", {"nvfp4", "mxfp4", "mxfp8", "fp8", "fp8_block", NULL}},
    };
    for (size_t c = 0; c < COUNT(cases); c++)
        for (int f = 0; formats[f]; f++) {
            char why[SERVING_TEXT];
            bool refused = false;
            for (const char *const *name = cases[c].refused; *name; name++)
                refused = refused || strcmp(*name, formats[f]->name) == 0;
            if (serving_offers(profile(cases[c].profile), formats[f], why) == refused)
                fail_msg("%s under %s: %s", formats[f]->name, cases[c].profile, refused ? "is offered" : why);
        }
}

static void refusals_name_the_remedy(void **state)
{
    (void)state;
    static const struct { const char *profile, *format, *why; } cases[] = {
        {"vllm-hopper", "nvfp4", "vllm-hopper does not offer 'nvfp4': vLLM multiplies it with weights only on this GPU "
                                 "and leaves inputs alone, whatever config.json says; use 'nvfp4_a16'"},
        {"vllm-ampere", "fp8", "use 'fp8_a16'"},
        {"vllm-blackwell", "mxfp4_a16", "quantizes inputs on this GPU whatever config.json says of them; use 'mxfp4'"},
        {"vllm-blackwell", "int8", "no INT8 product in vLLM; use 'fp8'"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char why[SERVING_TEXT];
        assert_false(serving_offers(profile(cases[i].profile), format_find(cases[i].format), why));
        if (!strstr(why, cases[i].why))
            fail_msg("'%s' has no '%s'", why, cases[i].why);
        struct serving_unit u = unit(4096, 4096, 0);
        assert_false(serving_fits(profile(cases[i].profile), format_find(cases[i].format), &u, why));
        assert_non_null(strstr(why, cases[i].why));
    }
    assert_non_null(strstr(serving_rule(profile("vllm-blackwell"), &format_fp8_block)->note, "VLLM_USE_DEEP_GEMM=0"));
    assert_null(serving_rule(profile("vllm-blackwell"), &format_nvfp4)->note);
    assert_null(serving_rule(profile("any"), &format_fp8_block)->note);
}

/* `why` NULL: the unit can have it. */
static void shapes_decide(void **state)
{
    (void)state;
    static const struct { const char *profile, *format; int64_t n, k, seam; const char *why; } cases[] = {
        /* the formats' own */
        {"any", "int4_g128", 1536, 576, 0, "int4_g128 wants a multiple of 128 input features, unit 'u' has 576"},
        {"any", "int4_g64", 1536, 576, 0, NULL},
        {"any", "int4_g64", 128, 352, 0, "a multiple of 64 input features, unit 'u' has 352"},
        {"any", "int4_g32", 128, 352, 0, NULL},
        {"any", "int4_g32", 64, 172, 0, "a multiple of 32 input features, unit 'u' has 172"},
        {"any", "int8_a16", 64, 172, 0, NULL},
        {"any", "int8_a16", 64, 174, 0, "a multiple of 4 input features"},
        {"any", "nvfp4", 64, 172, 0, "a multiple of 16 input features"},
        {"any", "nvfp4", 128, 352, 0, NULL},
        {"any", "mxfp4", 128, 352, 0, NULL},
        {"any", "mxfp4", 128, 336, 0, "a multiple of 32"},
        {"any", "fp8", 64, 171, 0, NULL},
        {"any", "fp8_block", 344, 172, 172, NULL},
        {"any", "mxfp8", 32, 64, 0, NULL},
        /* every server pads N, and K beyond the blocks */
        {"vllm-blackwell", "nvfp4", 344, 48, 172, NULL},
        {"vllm-ampere", "int4_g32", 344, 96, 172, NULL},
        {"vllm-hopper", "int4_g64", 64, 64, 0, NULL},
        {"vllm-hopper", "int4_g64", 64, 172, 0, "int4_g64 wants a multiple of 64"},
        /* MXFP8 on Blackwell */
        {"vllm-blackwell", "mxfp8", 128, 128, 0, NULL},
        {"vllm-blackwell", "mxfp8", 256, 64, 0,
         "mxfp8 under vllm-blackwell wants at least 128 input features, unit 'u' has 64"},
        {"vllm-blackwell", "mxfp8", 96, 128, 0, "at least 128 output features, unit 'u' has 96"},
        {"vllm-blackwell", "mxfp8", 96, 128, 48, "at least 128 output features"},
        {"vllm-blackwell", "mxfp8", 128, 128, 64, NULL}, /* it is the fused module that counts */
        {"vllm-blackwell", "mxfp8", 344, 128, 172, "a multiple of 32 output features, unit 'u' has 344"},
        {"vllm-hopper", "mxfp8_a16", 32, 64, 0, NULL},
        /* tiles of 128 x 128 */
        {"vllm-hopper", "fp8_block", 576, 576, 0, "fp8_block under vllm-hopper wants a multiple of 128 input features"},
        {"vllm-hopper", "fp8_block", 576, 1536, 0, NULL}, /* the last tile may be cut off */
        {"vllm-hopper", "fp8_block", 3072, 1536, 1536, NULL},
        {"vllm-hopper", "fp8_block", 704, 128, 352,
         "its matrices fused at multiples of 128 output features, unit 'u' has 352"},
        {"vllm-blackwell", "fp8_block", 704, 128, 352, "fused at multiples of 128"},
        {"vllm-blackwell", "fp8_block", 640, 128, 512, NULL},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char why[SERVING_TEXT];
        struct serving_unit u = unit(cases[i].n, cases[i].k, cases[i].seam);
        bool fits = serving_fits(profile(cases[i].profile), format_find(cases[i].format), &u, why);
        if (fits != !cases[i].why || !strstr(why, cases[i].why ? cases[i].why : "") || (fits && why[0]))
            fail_msg("%s under %s, [%lld, %lld]: %s '%s', expected '%s'", cases[i].format, cases[i].profile,
                     (long long)u.n, (long long)u.k, fits ? "fits" : "does not fit", why,
                     cases[i].why ? cases[i].why : "(fits)");
    }
}

/* q, k and v of SmolLM2: 576, 192 and 192 rows. */
static void seams_are_those_of_all_matrices_but_the_last(void **state)
{
    (void)state;
    struct serving_unit u = {.name = "u", .n = 960, .k = 1536};
    char why[SERVING_TEXT];
    serving_add_seam(&u, 576);
    assert_int_equal(u.seam, 576);
    serving_add_seam(&u, 768);
    assert_int_equal(u.seam, 192);
    assert_false(serving_fits(profile("vllm-hopper"), &format_fp8_block, &u, why));
    u.seam = 0;
    serving_add_seam(&u, 1024);
    serving_add_seam(&u, 1280);
    assert_true(serving_fits(profile("vllm-hopper"), &format_fp8_block, &u, why));
}

static void heads_cannot_have_every_format(void **state)
{
    (void)state;
    struct serving_unit head = {.name = "lm_head", .n = 49152, .k = 1024, .is_head = true};
    char why[SERVING_TEXT];
    assert_false(serving_fits(profile("vllm-hopper"), &format_fp8_block, &head, why));
    assert_string_equal(why, "lm_head cannot have 'fp8_block' under vllm-hopper");
    assert_false(serving_fits(profile("vllm-ampere"), &format_fp8_a16, &head, why));
    assert_true(serving_fits(profile("vllm-hopper"), &format_fp8_a16, &head, why));
    assert_true(serving_fits(profile("vllm-blackwell"), &format_nvfp4, &head, why));
    assert_true(serving_fits(profile("any"), &format_fp8_block, &head, why));
    head.is_head = false;
    assert_true(serving_fits(profile("vllm-hopper"), &format_fp8_block, &head, why));
}

/* --------------------------------------------------------------------------------------------------------- fallback */

static void every_chain_ends_in_bf16_without_turning_back(void **state)
{
    (void)state;
    for (int i = 0; formats[i]; i++) {
        const struct format *const *chain = serving_chain(formats[i]);
        int n = 0;
        for (; chain[n]; n++) {
            assert_ptr_not_equal(chain[n], formats[i]);
            for (int j = 0; j < n; j++)
                assert_ptr_not_equal(chain[n], chain[j]);
            /* no wider blocks: what the format does not divide, they do not either */
            if (formats[i]->k_multiple > 1 && grid_bits(weight_grid[chain[n]->code].element) == 4)
                assert_true(chain[n]->k_multiple < formats[i]->k_multiple);
        }
        if (formats[i] == &format_bf16)
            assert_int_equal(n, 0);
        else
            assert_ptr_equal(chain[n - 1], &format_bf16);
    }
}

/* The format that a unit of that shape has under "any". */
static const char *stand_in(const char *const *names, const char *meant, int64_t n, int64_t k)
{
    const struct format *menu[16];
    uint8_t available[16];
    uint64_t bytes[16];
    int count = 0, at = -1;
    char why[SERVING_TEXT];
    struct serving_unit u = unit(n, k, 0);
    for (; names[count]; count++) {
        menu[count] = format_find(names[count]);
        available[count] = serving_fits(profile("any"), menu[count], &u, why);
        bytes[count] = format_bytes(menu[count], n, k, DTYPE_BF16);
        at = strcmp(names[count], meant) == 0 ? count : at;
    }
    assert_true(at >= 0);
    int f = serving_fallback(menu, count, available, bytes, at);
    return f < 0 ? "none" : names[f];
}

static void a_unit_that_does_not_fit_has_the_first_of_the_chain(void **state)
{
    (void)state;
    static const char *const int4[] = {"bf16", "int8_a16", "int4_g32", "int4_g64", "int4_g128", "fp8", NULL};
    static const char *const fp4[] = {"mxfp4", "nvfp4", "mxfp8", "int8", "fp8", "fp8_a16", "bf16", NULL};
    static const char *const few[] = {"int4_g128", "mxfp4", "nvfp4_a16", "bf16", NULL};
    static const char *const no_bf16[] = {"nvfp4", "fp8_block", "mxfp8", NULL};
    static const char *const odd[] = {"int4_g128", "mxfp4", NULL};
    static const struct { const char *const *menu; const char *meant; int64_t n, k; const char *expected; } cases[] = {
        {int4, "int4_g128", 1536, 1536, "int4_g128"},
        {int4, "int4_g128", 1536, 576, "int4_g64"},
        {int4, "int4_g128", 128, 352, "int4_g32"},
        {int4, "int4_g128", 64, 172, "int8_a16"},
        {int4, "int4_g128", 64, 173, "fp8"},
        {int4, "int4_g64", 128, 352, "int4_g32"},
        {int4, "int4_g32", 64, 172, "int8_a16"},
        {fp4, "mxfp4", 128, 352, "mxfp4"},
        {fp4, "mxfp4", 128, 336, "nvfp4"},
        {fp4, "mxfp4", 64, 172, "fp8"}, /* inputs quantized before inputs left alone */
        {fp4, "nvfp4", 64, 172, "fp8"},
        {few, "int4_g128", 128, 352, "nvfp4_a16"},
        {few, "mxfp4", 128, 336, "nvfp4_a16"},
        {few, "int4_g128", 64, 172, "bf16"},
        {fp4, "mxfp8", 128, 48, "fp8"}, /* the chain's order, not the menu's */
        {no_bf16, "nvfp4", 64, 172, "fp8_block"}, /* not in its chain: the fewest bytes among more */
        {odd, "int4_g128", 128, 352, "mxfp4"},
        {odd, "int4_g128", 64, 172, "none"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        const char *got = stand_in(cases[i].menu, cases[i].meant, cases[i].n, cases[i].k);
        if (strcmp(got, cases[i].expected) != 0)
            fail_msg("%s for [%lld, %lld]: %s, expected %s", cases[i].meant, (long long)cases[i].n,
                     (long long)cases[i].k, got, cases[i].expected);
    }
}

static void without_a_chain_it_is_the_largest_when_none_has_more_bytes(void **state)
{
    (void)state;
    const struct format *const menu[] = {&format_bf16, &format_int4_g32, &format_fp8_block};
    const uint8_t available[] = {0, 1, 1};
    const uint64_t bytes[] = {1600, 450, 800};
    assert_int_equal(serving_fallback(menu, 3, available, bytes, 0), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_tables_agree),
        cmocka_unit_test(what_is_offered_is_what_runs_as_measured),
        cmocka_unit_test(refusals_name_the_remedy),
        cmocka_unit_test(shapes_decide),
        cmocka_unit_test(seams_are_those_of_all_matrices_but_the_last),
        cmocka_unit_test(heads_cannot_have_every_format),
        cmocka_unit_test(every_chain_ends_in_bf16_without_turning_back),
        cmocka_unit_test(a_unit_that_does_not_fit_has_the_first_of_the_chain),
        cmocka_unit_test(without_a_chain_it_is_the_largest_when_none_has_more_bytes),
    };
    return cmocka_run_group_tests_name("serving", tests, NULL, NULL);
}
