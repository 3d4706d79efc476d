/* Fuzzes the validator: any directory gets a report, whatever its bytes (directory.h says how they are laid out). */
#include "nodes/inspect/inspect.h"
#include "tests/fuzz/directory.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds, const char *what)
{
    if (!holds)
        input_fail(what);
}

static void check_report(const struct inspection *x)
{
    uint64_t kept[2] = {0, 0};
    for (size_t i = 0; i < x->report.n; i++) {
        const struct finding *f = &x->report.list[i];
        require(f->check >= 1 && f->check <= N_CHECKS, "a finding of no check");
        require(f->place && f->found[0] && f->expected[0], "a finding that says nothing");
        for (const char *c = f->place; *c; c++)
            require((unsigned char)*c >= 0x20 && *c != 0x7f, "a control character in a place");
        kept[f->severity]++;
    }
    require(kept[FINDING_ERROR] <= report_count(&x->report, FINDING_ERROR), "more errors than were counted");
    for (int check = 1; check <= N_CHECKS; check++)
        require((x->report.checks[check].run == CHECK_RUN) == (x->report.checks[check].why == NULL),
                "a check that was not run without a reason");
    for (size_t i = 0; i < x->n_units; i++)
        require(x->units[i].name && x->units[i].scheme && x->units[i].n_matrices > 0, "an empty unit");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char folder[256];
    const int tp[] = {1, 2, 3};
    struct inspection *x;
    struct err e = {0};
    if (!input_open(folder, data, size))
        return 0;
    struct inspect_options o = {.dir = folder, .source = data[0] & INPUT_SOURCE ? folder : NULL, .tp = tp, .n_tp = 3};
    if (inspect_run(&x, &o, &e)) {
        check_report(x);
        inspection_free(x);
    } else {
        /* Only a source must be readable as a whole. */
        require(o.source && e.code == ERR_INPUT && e.text[0], e.text);
    }
    input_close(folder);
    return 0;
}

#ifndef FUZZING
#define GROUP(name, format, targets, weights, input) \
    "\"" name "\":{\"format\":\"" format "\",\"targets\":[" targets "],\"weights\":{" weights "}," \
    "\"input_activations\":" input "}"
#define CONFIG(groups, ignore, more) \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"dtype\":\"bfloat16\",\"tie_word_embeddings\":true" more \
    ",\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":\"mixed-precision\"," \
    "\"quantization_status\":\"compressed\",\"config_groups\":{" groups "},\"ignore\":[" ignore "]}}"
#define FLOAT(bits, strategy) "\"num_bits\":" bits ",\"type\":\"float\",\"strategy\":\"" strategy "\""
#define INT(bits, strategy) "\"num_bits\":" bits ",\"type\":\"int\",\"strategy\":\"" strategy "\""
#define NV FLOAT("4", "tensor_group") ",\"group_size\":16"
#define MX(bits) FLOAT(bits, "group") ",\"group_size\":32,\"scale_dtype\":\"torch.uint8\""

static const char all_schemes[] = CONFIG(
    GROUP("g0", "nvfp4-pack-quantized", "\"m.a.q_proj\",\"m.a.k_proj\",\"m.a.v_proj\"", NV,
          "{" NV ",\"dynamic\":\"local\"}") ","
    GROUP("g1", "mxfp4-pack-quantized", "\"re:m[.]e[.]experts[.]\\\\d+[.].*_proj$\"", MX("4"), "null") ","
    GROUP("g2", "float-quantized", "\"m.a.o_proj\"", FLOAT("8", "channel"),
          "{" FLOAT("8", "token") ",\"dynamic\":true}") ","
    GROUP("g3", "float-quantized", "\"m.b.gate_proj\",\"m.b.up_proj\"",
          FLOAT("8", "block") ",\"block_structure\":[128,128]", "{" FLOAT("8", "group") ",\"group_size\":128,"
          "\"dynamic\":true}") ","
    GROUP("g4", "mxfp8-quantized", "\"m.b.down_proj\"", MX("8"), "{" MX("8") ",\"dynamic\":true}") ","
    GROUP("g5", "int-quantized", "\"m.c.x\"", INT("8", "channel"), "{" INT("8", "token") ",\"dynamic\":true}") ","
    GROUP("g6", "pack-quantized", "\"m.c.y\"", INT("4", "group") ",\"group_size\":32", "null") ","
    GROUP("g7", "pack-quantized", "\"m.c.z\"", INT("8", "channel"), "null"),
    "\"lm_head\",\"m.c.plain\",\"re:.*visual.*\"", "");

#define NVFP4(name) \
    {name ".weight_packed", "U8", "[2,16]", 32, CODES}, {name ".weight_scale", "F8_E4M3", "[2,2]", 4, FILL("\x38")}, \
    {name ".weight_global_scale", "F32", "[1]", 4, ONE_F32}, {name ".input_global_scale", "F32", "[1]", 4, ONE_F32}
#define SCALED(name, dtype, n) \
    {name ".weight", dtype, "[2,32]", 64, CODES}, {name ".weight_scale", "F32", "[" #n ",1]", 4 * n, ONE_F32}
#define MXFP4(name) \
    {name ".weight_packed", "U8", "[2,16]", 32, CODES}, {name ".weight_scale", "U8", "[2,1]", 2, FILL("\x7f")}
#define SHAPE FILL("\x02\0\0\0\0\0\0\0\x20\0\0\0\0\0\0\0")
static const struct seed_tensor tensors[] = {
    NVFP4("m.a.q_proj"), NVFP4("m.a.k_proj"), NVFP4("m.a.v_proj"), SCALED("m.a.o_proj", "F8_E4M3", 2),
    SCALED("m.b.gate_proj", "F8_E4M3", 1), SCALED("m.b.up_proj", "F8_E4M3", 1),
    {"m.b.down_proj.weight", "F8_E4M3", "[2,32]", 64, CODES},
    {"m.b.down_proj.weight_scale", "U8", "[2,1]", 2, FILL("\x7f")},
    SCALED("m.c.x", "I8", 2), {"m.c.y.weight_packed", "I32", "[2,4]", 32, CODES},
    {"m.c.y.weight_scale", "BF16", "[2,1]", 4, ONE_BF16}, {"m.c.y.weight_shape", "I64", "[2]", 16, SHAPE},
    {"m.c.z.weight_packed", "I32", "[2,8]", 64, CODES}, {"m.c.z.weight_scale", "BF16", "[2,1]", 4, ONE_BF16},
    {"m.c.z.weight_shape", "I64", "[2]", 16, SHAPE}, MXFP4("m.e.experts.0.gate_proj"), MXFP4("m.e.experts.0.up_proj"),
    MXFP4("m.e.experts.1.gate_proj"), MXFP4("m.e.experts.1.up_proj"),
    {"m.c.plain.weight", "BF16", "[2,4]", 16, ONE_BF16}, {"m.embed_tokens.weight", "BF16", "[2,4]", 16, ONE_BF16},
    {"m.norm.weight", "F32", "[4]", 16, ONE_F32}};

static const struct seed_tensor vision[] = {
    SCALED("model.language_model.layers.0.linear_attn.in_proj_qkv", "F8_E4M3", 2),
    SCALED("model.language_model.layers.0.linear_attn.in_proj_z", "F8_E4M3", 2),
    SCALED("lm_head", "F8_E4M3", 2), {"model.visual.blocks.0.attn.qkv.weight", "BF16", "[2,2]", 8, ONE_BF16},
    {"model.language_model.layers.0.mlp.experts.gate_up_proj", "BF16", "[2,4,2]", 32, ONE_BF16},
    {"mtp.fc.weight", "BF16", "[2,2]", 8, ONE_BF16}};
static const char vision_config[] = CONFIG(
    GROUP("group_00", "float-quantized", "\"re:.*lm_head$\",\"re:(language_model[.])?model[.].*in_proj_(qkv|z)$\"",
          FLOAT("8", "channel"), "{" FLOAT("8", "token") ",\"dynamic\":true}"),
    "\"re:.*visual.*\",\"re:^mtp[.].*\"",
    ",\"model_type\":\"qwen3_5\",\"text_config\":{\"mtp_num_hidden_layers\":1},\"vision_config\":{}");
static const char recipe[] =
    "{\"bytes\":4,\"bpp\":8.0,\"assignment\":{\"m.a.qkv_proj\":\"nvfp4\",\"x\":\"fp8\"},\"recipe\":[{\"type\":"
    "\"quantize\",\"parameters\":{\"rounding\":\"rtn\"}}],\"source_tensors\":{\"m.norm.weight\":\"00\","
    "\"m.e.experts.gate_up_proj\":\"\"},\"files\":[{\"name\":\"config.json\",\"bytes\":3,\"sha256\":\"00\"}]}";
static const char weight_map[] =
    "{\"metadata\":{\"total_size\":16},\"weight_map\":{\"m.norm.weight\":\"a.safetensors\"}}";
static const struct seed_tensor norm[] = {{"m.norm.weight", "F32", "[4]", 16, ONE_F32}};

static const struct seed seeds[] = {
    {all_schemes, NULL, NULL, tensors, sizeof tensors / sizeof *tensors, INPUT_FIX_LENGTH},
    {all_schemes, NULL, NULL, tensors, sizeof tensors / sizeof *tensors, INPUT_SOURCE},
    {all_schemes, recipe, NULL, tensors, sizeof tensors / sizeof *tensors, INPUT_RECIPE},
    {vision_config, NULL, NULL, vision, sizeof vision / sizeof *vision, INPUT_FIX_LENGTH},
    {all_schemes, recipe, weight_map, norm, 1, INPUT_INDEX | INPUT_RECIPE | INPUT_FIX_LENGTH},
};

int main(int argc, char **argv)
{
    return seed_main(argc, argv, seeds, sizeof seeds / sizeof *seeds, LLVMFuzzerTestOneInput);
}
#endif
