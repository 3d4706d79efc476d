/* The quantization_config that is put into a source's config.json. */
#include "nodes/format/compressed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

static const char source[] = "{\n  \"architectures\": [\n    \"LlamaForCausalLM\"\n  ],\n  \"rms_norm_eps\": 1e-05,\n"
                             "  \"model_type\": \"llama\"\n}\n";

/* The config made from `text`, parsed; its text stays in *out. */
static json_t *config_of(struct str *out, const char *text, const struct compressed_module *modules, size_t n)
{
    struct err e = {0};
    *out = (struct str){0};
    if (!compressed_config(out, text, strlen(text), "dir/config.json", modules, n, &e))
        fail_msg("%s", e.text);
    json_error_t why;
    json_t *root = json_loads(out->text, JSON_REJECT_DUPLICATES, &why);
    if (!root)
        fail_msg("line %d: %s in\n%s", why.line, why.text, out->text);
    return root;
}

static const char *text_at(const json_t *root, const char *a, const char *b, const char *c)
{
    const json_t *at = json_object_get(root, a);
    at = b ? json_object_get(at, b) : at;
    at = c ? json_object_get(at, c) : at;
    return json_string_value(at);
}

static void groups_follow_the_menu_and_name_exact_targets(void **state)
{
    (void)state;
    const struct compressed_module modules[] = {
        {"model.layers.0.self_attn.q_proj", &format_fp8},
        {"model.layers.0.mlp.up_proj", &format_nvfp4},
        {"model.layers.0.mlp.down_proj", &format_bf16},
        {"model.layers.0.mlp.gate_proj", &format_nvfp4},
        {"lm_head", &format_bf16},
    };
    struct str s;
    json_t *root = config_of(&s, source, modules, 5), *q = json_object_get(root, "quantization_config");
    assert_string_equal(text_at(q, "quant_method", NULL, NULL), "compressed-tensors");
    assert_string_equal(text_at(q, "format", NULL, NULL), "mixed-precision");
    assert_string_equal(text_at(q, "quantization_status", NULL, NULL), "compressed");
    assert_int_equal(json_object_size(json_object_get(q, "config_groups")), 2);
    assert_string_equal(text_at(q, "config_groups", "group_00", "format"), "nvfp4-pack-quantized");
    assert_string_equal(text_at(q, "config_groups", "group_01", "format"), "float-quantized");
    json_t *groups = json_object_get(q, "config_groups");
    json_t *targets = json_object_get(json_object_get(groups, "group_00"), "targets");
    assert_int_equal(json_array_size(targets), 2);
    assert_string_equal(json_string_value(json_array_get(targets, 0)), "model.layers.0.mlp.up_proj");
    assert_string_equal(json_string_value(json_array_get(targets, 1)), "model.layers.0.mlp.gate_proj");
    const json_t *input = json_object_get(json_object_get(groups, "group_00"), "input_activations");
    assert_string_equal(json_string_value(json_object_get(input, "dynamic")), "local");
    json_t *ignore = json_object_get(q, "ignore");
    assert_int_equal(json_array_size(ignore), 2);
    assert_string_equal(json_string_value(json_array_get(ignore, 0)), "model.layers.0.mlp.down_proj");
    assert_string_equal(json_string_value(json_array_get(ignore, 1)), "lm_head");
    json_decref(root);
    str_free(&s);
}

static void formats_that_share_a_layout_share_the_top_level_format(void **state)
{
    (void)state;
    const struct compressed_module modules[] = {{"a.b", &format_nvfp4}, {"a.c", &format_nvfp4_a16}};
    struct str s;
    json_t *root = config_of(&s, source, modules, 2), *q = json_object_get(root, "quantization_config");
    assert_string_equal(text_at(q, "format", NULL, NULL), "nvfp4-pack-quantized");
    json_t *groups = json_object_get(q, "config_groups");
    assert_true(json_is_null(json_object_get(json_object_get(groups, "group_00"), "input_activations")));
    assert_true(json_is_object(json_object_get(json_object_get(groups, "group_01"), "input_activations")));
    json_decref(root);
    str_free(&s);
}

/* Two modules in each format, in turn. */
static void every_format_has_a_group_of_its_own(void **state)
{
    (void)state;
    struct compressed_module modules[32];
    char names[32][32];
    size_t n = 0, n_groups = 0;
    for (int i = 0; i < 2; i++)
        for (const struct format *const *f = formats; *f; f++, n++) {
            snprintf(names[n], sizeof names[n], "model.layers.%d.m%zu", i, n);
            modules[n] = (struct compressed_module){names[n], *f};
        }
    struct str s;
    json_t *root = config_of(&s, source, modules, n), *q = json_object_get(root, "quantization_config");
    assert_string_equal(text_at(q, "format", NULL, NULL), "mixed-precision");
    for (const struct format *const *f = formats; *f; f++) {
        char name[24];
        if (!(*f)->group_format)
            continue;
        snprintf(name, sizeof name, "group_%02zu", n_groups++);
        const json_t *group = json_object_get(json_object_get(q, "config_groups"), name);
        json_t *weights = json_loads((*f)->weights_json, JSON_DECODE_ANY, NULL);
        json_t *input = json_loads((*f)->input_json, JSON_DECODE_ANY, NULL);
        const json_t *targets = json_object_get(group, "targets");
        assert_string_equal(json_string_value(json_object_get(group, "format")), (*f)->group_format);
        assert_true(weights && input && json_equal(json_object_get(group, "weights"), weights) &&
                    json_equal(json_object_get(group, "input_activations"), input));
        assert_int_equal(json_array_size(targets), 2);
        for (size_t t = 0; t < 2; t++)
            assert_string_equal(json_string_value(json_array_get(targets, t)), names[f - formats + (long)(t * n / 2)]);
        json_decref(weights);
        json_decref(input);
    }
    assert_int_equal(json_object_size(json_object_get(q, "config_groups")), n_groups);
    assert_int_equal(json_array_size(json_object_get(q, "ignore")), 2);
    json_decref(root);
    str_free(&s);
}

/* The format above all groups is theirs when they have one, however much they differ otherwise. */
static void the_overall_format_is_mixed_only_when_two_differ(void **state)
{
    (void)state;
    static const struct {
        const struct format *f[4];
        const char *overall;
        size_t groups;
    } cases[] = {
        {{&format_nvfp4, &format_nvfp4_a16, &format_bf16}, "nvfp4-pack-quantized", 2},
        {{&format_fp8, &format_fp8_a16, &format_fp8_block}, "float-quantized", 3},
        {{&format_int4_g32, &format_int4_g128, &format_int8_a16}, "pack-quantized", 3},
        {{&format_mxfp4, &format_mxfp4_a16}, "mxfp4-pack-quantized", 2},
        {{&format_mxfp8, &format_bf16, &format_mxfp8}, "mxfp8-quantized", 1},
        {{&format_int8, &format_int8_a16}, "mixed-precision", 2},
        {{&format_int8}, "int-quantized", 1},
        {{&format_nvfp4, &format_fp8, &format_nvfp4_a16}, "mixed-precision", 3},
        {{&format_fp8, &format_mxfp8, &format_fp8_block}, "mixed-precision", 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static const char *const names[] = {"a.b", "a.c", "a.d", "a.e"};
        struct compressed_module modules[4];
        size_t n = 0;
        for (; n < 4 && cases[i].f[n]; n++)
            modules[n] = (struct compressed_module){names[n], cases[i].f[n]};
        struct str s;
        json_t *root = config_of(&s, source, modules, n), *q = json_object_get(root, "quantization_config");
        assert_string_equal(text_at(q, "format", NULL, NULL), cases[i].overall);
        assert_int_equal(json_object_size(json_object_get(q, "config_groups")), cases[i].groups);
        json_decref(root);
        str_free(&s);
    }
}

/* The name differs from server to server, and is no exact one in any. */
static void a_quantized_head_is_a_pattern(void **state)
{
    (void)state;
    const struct compressed_module modules[] = {
        {"a.b", &format_fp8}, {"a.lm_head", &format_fp8}, {"lm_head", &format_fp8}};
    struct str s;
    json_t *root = config_of(&s, source, modules, 3), *q = json_object_get(root, "quantization_config");
    const json_t *group = json_object_get(json_object_get(q, "config_groups"), "group_00");
    const json_t *targets = json_object_get(group, "targets");
    assert_int_equal(json_array_size(targets), 3);
    assert_string_equal(json_string_value(json_array_get(targets, 1)), "a.lm_head");
    assert_string_equal(json_string_value(json_array_get(targets, 2)), "re:.*lm_head$");
    assert_int_equal(json_array_size(json_object_get(q, "ignore")), 0);
    json_decref(root);
    str_free(&s);
}

static void every_byte_of_the_source_before_the_new_member_stays(void **state)
{
    (void)state;
    const struct compressed_module modules[] = {{"a.b", &format_fp8}};
    struct str s;
    json_decref(config_of(&s, source, modules, 1));
    size_t kept = strlen(source) - strlen("\n}\n");
    assert_memory_equal(s.text, source, kept);
    assert_non_null(strstr(s.text, "\"rms_norm_eps\": 1e-05"));
    str_free(&s);
}

static void an_unquantized_model_keeps_its_config(void **state)
{
    (void)state;
    const struct compressed_module modules[] = {{"a.b", &format_bf16}, {"lm_head", &format_bf16}};
    struct str s;
    json_decref(config_of(&s, source, modules, 2));
    assert_string_equal(s.text, source);
    str_free(&s);
}

static void odd_layouts_of_the_source_stay_valid_json(void **state)
{
    (void)state;
    static const char *const texts[] = {"{}", "{ }", "{\"a\":1}", "  {\"a\":{\"b\":2}}  \n\n", "{\"a\":\"}\"\r\n}\r\n"};
    const struct compressed_module modules[] = {{"a.b", &format_fp8}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct str s;
        json_t *root = config_of(&s, texts[i], modules, 1);
        assert_non_null(json_object_get(root, "quantization_config"));
        json_decref(root);
        str_free(&s);
    }
}

static void bad_sources_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"{\"quantization_config\": {}}", "quantized already"},
        {"{\"compression_config\": {}}", "quantized already"},
        {"{\"text_config\": {\"quantization_config\": {}}}", "quantized already"},
        {"[1]", "expected a JSON object"},
        {"{\"a\": 1", "dir/config.json:1:"},
        {"{\"a\": 1, \"a\": 2}", "duplicate"},
        {"", "dir/config.json:"},
    };
    const struct compressed_module modules[] = {{"a.b", &format_fp8}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        struct str s = {0};
        assert_false(compressed_config(&s, cases[i].text, strlen(cases[i].text), "dir/config.json", modules, 1, &e));
        assert_int_equal(e.code, ERR_INPUT);
        if (!strstr(e.text, cases[i].message))
            fail_msg("'%s' gives '%s', expected '%s' in it", cases[i].text, e.text, cases[i].message);
        str_free(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_follow_the_menu_and_name_exact_targets),
        cmocka_unit_test(formats_that_share_a_layout_share_the_top_level_format),
        cmocka_unit_test(every_format_has_a_group_of_its_own),
        cmocka_unit_test(the_overall_format_is_mixed_only_when_two_differ),
        cmocka_unit_test(a_quantized_head_is_a_pattern),
        cmocka_unit_test(every_byte_of_the_source_before_the_new_member_stays),
        cmocka_unit_test(an_unquantized_model_keeps_its_config),
        cmocka_unit_test(odd_layouts_of_the_source_stay_valid_json),
        cmocka_unit_test(bad_sources_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
