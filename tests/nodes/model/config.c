/* config.json: every spelling of the figures that is read, and what a quantization_config says of a module. What is
 * refused is in tests/rejects/models. */
#include "nodes/model/config.h"

#include <math.h>

#include "tests/check.h"

/* Reads a config.json of that text. */
static struct model_config read_text(const char *text, json_t **json)
{
    char folder[256];
    struct err e = {0};
    struct model_config c;
    check_dir_make(folder);
    check_write(folder, "config.json", text, strlen(text));
    assert_ok(config_read(&c, json, folder, &e), e);
    check_dir_remove(folder);
    return c;
}

#define LLAMA \
    "\"model_type\": \"llama\", \"hidden_size\": 4096, \"intermediate_size\": 14336, \"num_hidden_layers\": 32, " \
    "\"num_attention_heads\": 32, \"num_key_value_heads\": 8, \"vocab_size\": 128256, \"rms_norm_eps\": 1e-05"

/* As published for Llama 3.1 8B. */
static void llama3_is_read_with_its_rope(void **state)
{
    (void)state;
    json_t *json;
    const struct model_config c = read_text(
        "{" LLAMA ", \"hidden_act\": \"silu\", \"max_position_embeddings\": 131072, \"mlp_bias\": false, "
        "\"attention_bias\": false, \"rope_theta\": 500000.0, \"tie_word_embeddings\": false, "
        "\"bos_token_id\": 128000, \"eos_token_id\": [128001, 128008, 128009], "
        "\"rope_scaling\": {\"factor\": 8.0, \"low_freq_factor\": 1.0, "
        "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192, \"rope_type\": \"llama3\"}}",
        &json);
    assert_string_equal(c.model_type, "llama");
    assert_int_equal(c.hidden, 4096);
    assert_int_equal(c.intermediate, 14336);
    assert_int_equal(c.layers, 32);
    assert_int_equal(c.heads, 32);
    assert_int_equal(c.kv_heads, 8);
    assert_int_equal(c.head_dim, 128);
    assert_int_equal(c.vocab, 128256);
    assert_int_equal(c.max_positions, 131072);
    assert_true(c.eps == 1e-5f && c.theta == 500000.0);
    assert_int_equal(c.rope, ROPE_LLAMA3);
    assert_true(c.rope_factor == 8 && c.rope_low == 1 && c.rope_high == 4 && c.rope_original == 8192);
    assert_false(c.tied || c.attention_bias || c.mlp_bias);
    json_decref(json);
}

static void absent_keys_have_their_defaults(void **state)
{
    (void)state;
    json_t *json;
    const struct model_config c =
        read_text("{\"model_type\": \"llama\", \"hidden_size\": 64, \"intermediate_size\": 172, "
                  "\"num_hidden_layers\": 1, \"num_attention_heads\": 8, \"vocab_size\": 9, "
                  "\"num_key_value_heads\": null, \"rms_norm_eps\": 0.001, \"head_dim\": null, "
                  "\"rope_scaling\": null, \"hidden_act\": null}",
                  &json);
    assert_int_equal(c.kv_heads, 8);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(c.max_positions, 2048);
    assert_int_equal(c.rope, ROPE_DEFAULT);
    assert_true(c.theta == 10000.0);
    assert_false(c.tied || c.attention_bias || c.mlp_bias);
    json_decref(json);
}

static void every_spelling_of_rope_is_read(void **state)
{
    (void)state;
    static const struct { const char *text; enum rope_type type; double theta, factor; } cases[] = {
        {"\"rope_theta\": 1e6", ROPE_DEFAULT, 1e6, 0},
        {"\"rope_theta\": 1000000", ROPE_DEFAULT, 1e6, 0},
        {"\"rope_scaling\": {\"type\": \"linear\", \"factor\": 4}", ROPE_LINEAR, 1e4, 4},
        {"\"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 2.5}, \"rope_theta\": 7.0", ROPE_LINEAR, 7, 2.5},
        {"\"rope_scaling\": {\"rope_type\": \"default\"}", ROPE_DEFAULT, 1e4, 0},
        {"\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 5e5}", ROPE_DEFAULT, 5e5, 0},
        {"\"rope_parameters\": {\"rope_theta\": 5e5}", ROPE_DEFAULT, 5e5, 0},
        {"\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 3.0}, \"rope_theta\": 9.0", ROPE_LINEAR, 9, 3},
        {"\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 3.0, \"rope_theta\": 11.0}, "
         "\"rope_theta\": 9.0, \"rope_scaling\": {\"type\": \"yarn\"}",
         ROPE_LINEAR, 11, 3},
        {"\"rope_parameters\": null, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 6.0}", ROPE_LINEAR, 1e4, 6},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char text[1024];
        json_t *json;
        snprintf(text, sizeof text, "{" LLAMA ", %s}", cases[i].text);
        const struct model_config c = read_text(text, &json);
        if (c.rope != cases[i].type || c.theta != cases[i].theta || c.rope_factor != cases[i].factor)
            fail_msg("%s: type %d, theta %g, factor %g", cases[i].text, (int)c.rope, c.theta, c.rope_factor);
        json_decref(json);
    }
}

static void head_dim_need_not_follow_from_hidden(void **state)
{
    (void)state;
    json_t *json;
    const struct model_config c = read_text("{" LLAMA ", \"head_dim\": 96}", &json);
    assert_int_equal(c.head_dim, 96);
    json_decref(json);
}

static void mistral_is_read_where_its_window_holds_everything(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "\"sliding_window\": null, \"max_position_embeddings\": 32768",
        "\"sliding_window\": 4096, \"max_position_embeddings\": 4096",
        "\"max_position_embeddings\": 4096",
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char text[1024];
        json_t *json;
        snprintf(
            text, sizeof text,
            "{\"model_type\": \"mistral\", \"hidden_size\": 5120, \"intermediate_size\": 14336, "
            "\"num_hidden_layers\": 40, \"num_attention_heads\": 32, \"num_key_value_heads\": 8, \"head_dim\": 128, "
            "\"vocab_size\": 131072, \"rms_norm_eps\": 1e-05, %s}",
            cases[i]);
        const struct model_config c = read_text(text, &json);
        assert_string_equal(c.model_type, "mistral");
        assert_int_equal(c.head_dim, 128);
        json_decref(json);
    }
}

/* ---------------------------------------------------------------------------------------------- quantization_config */

#define NVFP4 "{\"num_bits\": 4, \"type\": \"float\", \"symmetric\": true, \"strategy\": \"tensor_group\", " \
    "\"group_size\": 16, \"dynamic\": %s, \"scale_dtype\": \"torch.float8_e4m3fn\", \"observer\": \"minmax\"}"

static void modules_are_found_in_their_groups(void **state)
{
    (void)state;
    static const struct { const char *module, *format; } cases[] = {
        {"model.layers.0.mlp.up_proj", "nvfp4"},
        {"model.layers.0.mlp.down_proj", "nvfp4_a16"},
        {"model.layers.0.self_attn.o_proj", "fp8"},
        {"model.layers.0.self_attn.q_proj", "bf16"},
        {"model.layers.0.mlp.up", "bf16"},
    };
    char text[4096], weights[300], input[300];
    struct err e = {0};
    snprintf(weights, sizeof weights, NVFP4, "false");
    snprintf(input, sizeof input, NVFP4, "\"local\"");
    snprintf(text, sizeof text,
             "{\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\": \"mixed-precision\", "
             "\"config_groups\": {"
             "\"group_0\": {\"format\": \"nvfp4-pack-quantized\", \"targets\": [\"model.layers.0.mlp.up_proj\"], "
             "\"weights\": %s, \"input_activations\": %s},"
             "\"group_1\": {\"format\": \"nvfp4-pack-quantized\", \"targets\": [\"model.layers.0.mlp.down_proj\"], "
             "\"weights\": %s, \"input_activations\": null},"
             "\"group_2\": {\"format\": \"float-quantized\", \"targets\": [\"model.layers.0.self_attn.o_proj\"], "
             "\"weights\": {\"type\": \"float\", \"strategy\": \"channel\"}, "
             "\"input_activations\": {\"type\": \"float\", \"strategy\": \"token\", \"dynamic\": true}}}, "
             "\"ignore\": [\"lm_head\", \"model.layers.0.self_attn.q_proj\"]}}", weights, input, weights);
    json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    assert_ok(config_check_quantization(json, "dir", &e), e);
    for (size_t i = 0; i < COUNT(cases); i++) {
        const struct format *f;
        assert_ok(config_stored_format(json, "dir", cases[i].module, &f, &e), e);
        assert_string_equal(f->name, cases[i].format);
    }
    json_decref(json);
}

static void plain_models_are_all_bf16(void **state)
{
    (void)state;
    static const char *const texts[] = {"{}", "{\"quantization_config\": null}"};
    for (size_t i = 0; i < COUNT(texts); i++) {
        json_t *json = json_loads(texts[i], 0, NULL);
        struct err e = {0};
        const struct format *f;
        assert_ok(config_check_quantization(json, "dir", &e), e);
        assert_ok(config_stored_format(json, "dir", "model.layers.0.mlp.up_proj", &f, &e), e);
        assert_ptr_equal(f, &format_bf16);
        json_decref(json);
    }
}

/* Every format's own description is recognised as that format, and a change of any key of it is not. */
static void schemes_are_told_apart_by_every_key(void **state)
{
    (void)state;
    struct err e = {0};
    for (int i = 0; formats[i]; i++) {
        if (!formats[i]->group_format)
            continue;
        json_t *weights = json_loads(formats[i]->weights_json, JSON_DECODE_ANY, NULL);
        json_t *q = json_pack("{s:{s:s, s:{s:{s:s, s:[s], s:O, s:o}}}}", "quantization_config", "quant_method",
                              "compressed-tensors", "config_groups", "g", "format", formats[i]->group_format, "targets",
                              "a.b", "weights", weights, "input_activations",
                              json_loads(formats[i]->input_json, JSON_DECODE_ANY, NULL));
        const struct format *f = NULL;
        assert_non_null(q);
        assert_ok(config_check_quantization(q, "dir", &e) && config_stored_format(q, "dir", "a.b", &f, &e), e);
        assert_ptr_equal(f, formats[i]);
        void *at = json_object_iter(weights);
        for (size_t n = json_object_size(weights); n > 0; n--, at = json_object_iter_next(weights, at)) {
            json_t *old = json_incref(json_object_iter_value(at));
            json_object_iter_set_new(weights, at, json_string("something else"));
            assert_err(config_check_quantization(q, "dir", &e), e, ERR_INPUT, "no format that is read has this scheme");
            json_object_iter_set_new(weights, at, old);
        }
        assert_ok(config_check_quantization(q, "dir", &e), e);
        json_decref(weights);
        json_decref(q);
    }
}

/* A configuration of one group, with weights and inputs as given. */
static json_t *one_group(const char *format, const char *weights, const char *input)
{
    return json_pack("{s:{s:s, s:{s:{s:s, s:[s], s:o, s:o}}}}", "quantization_config", "quant_method",
                     "compressed-tensors", "config_groups", "g", "format", format, "targets", "a.b", "weights",
                     json_loads(weights, JSON_DECODE_ANY, NULL), "input_activations",
                     json_loads(input, JSON_DECODE_ANY, NULL));
}

/* As QuantizationArgs of compressed-tensors 0.17 fills in what is left out, and takes older forms. */
static void what_other_writers_leave_out_is_filled_in(void **state)
{
    (void)state;
    static const struct { const char *expected, *format, *weights, *input; } cases[] = {
        {"int4_g32", "pack-quantized", "{\"num_bits\": 4, \"group_size\": 32}", "null"},
        {"int4_g128", "pack-quantized", "{\"num_bits\": 4, \"group_size\": 128, \"strategy\": \"GROUP\", "
                      "\"zp_dtype\": null, \"observer\": \"mse\", \"observer_kwargs\": {\"grid\": 20}}", "null"},
        {"int8_a16", "pack-quantized", "{\"group_size\": -1}", "null"},
        {"int8_a16", "pack-quantized", "{\"group_size\": -1, \"strategy\": \"channel\", \"type\": \"INT\"}",
         "null"},
        {"int8", "int-quantized", "{\"strategy\": \"channel\"}", "{\"strategy\": \"token\", \"dynamic\": true}"},
        {"fp8_block", "float-quantized",
         "{\"type\": \"float\", \"strategy\": \"block\", \"block_structure\": \"128x128\"}",
         "{\"type\": \"float\", \"group_size\": 128, \"dynamic\": true}"},
        {"mxfp8", "mxfp8-quantized", "{\"type\": \"float\", \"group_size\": 32, \"scale_dtype\": \"uint8\"}",
         "{\"type\": \"float\", \"group_size\": 32, \"dynamic\": true, \"scale_dtype\": \"torch.uint8\"}"},
        {"mxfp4_a16", "mxfp4-pack-quantized", "{\"num_bits\": 4, \"type\": \"float\", \"group_size\": 32}", "null"},
        {"nvfp4", "nvfp4-pack-quantized",
         "{\"num_bits\": 4, \"type\": \"float\", \"strategy\": \"tensor_group\", \"group_size\": 16}",
         "{\"num_bits\": 4, \"type\": \"float\", \"strategy\": \"tensor_group\", \"group_size\": 16, "
         "\"dynamic\": \"LOCAL\"}"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct err e = {0};
        const struct format *f = NULL;
        json_t *q = one_group(cases[i].format, cases[i].weights, cases[i].input);
        assert_non_null(q);
        assert_ok(config_check_quantization(q, "dir", &e) && config_stored_format(q, "dir", "a.b", &f, &e), e);
        assert_string_equal(f->name, cases[i].expected);
        json_decref(q);
    }
}

/* What compressed-tensors would take them for is stored or decoded otherwise. */
static void schemes_that_look_alike_are_refused(void **state)
{
    (void)state;
    static const struct { const char *format, *weights, *input; } cases[] = {
        {"pack-quantized", "{\"num_bits\": 4}", "null"},                       /* a scale per tensor */
        {"pack-quantized", "{\"num_bits\": 4, \"group_size\": -1}", "null"}, /* per channel */
        {"pack-quantized", "{\"num_bits\": 4, \"group_size\": 16}", "null"},
        {"pack-quantized", "{\"num_bits\": 3, \"group_size\": 32}", "null"},
        {"pack-quantized", "{\"num_bits\": 4, \"group_size\": 32}", "{\"strategy\": \"token\", \"dynamic\": true}"},
        {"int-quantized", "{\"strategy\": \"channel\"}", "null"},
        {"float-quantized", "{\"type\": \"float\"}", "null"},
        {"float-quantized", "{\"type\": \"float\", \"strategy\": \"block\", \"block_structure\": [64, 128]}",
         "{\"type\": \"float\", \"group_size\": 128, \"dynamic\": true}"},
        {"mxfp8-quantized", "{\"type\": \"float\", \"group_size\": 32}", "null"}, /* vLLM finds no scheme */
        {"nvfp4-pack-quantized", "null", "null"},
        {"nvfp4-pack-quantized", "[]", "null"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct err e = {0};
        json_t *q = one_group(cases[i].format, cases[i].weights, cases[i].input);
        assert_non_null(q);
        assert_err(config_check_quantization(q, "dir", &e), e, ERR_INPUT, "no format that is read has this scheme");
        json_decref(q);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama3_is_read_with_its_rope),
        cmocka_unit_test(absent_keys_have_their_defaults),
        cmocka_unit_test(every_spelling_of_rope_is_read),
        cmocka_unit_test(head_dim_need_not_follow_from_hidden),
        cmocka_unit_test(mistral_is_read_where_its_window_holds_everything),
        cmocka_unit_test(modules_are_found_in_their_groups),
        cmocka_unit_test(plain_models_are_all_bf16),
        cmocka_unit_test(schemes_are_told_apart_by_every_key),
        cmocka_unit_test(what_other_writers_leave_out_is_filled_in),
        cmocka_unit_test(schemes_that_look_alike_are_refused),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
