/* Fuzzes the opening of a checkpoint: config.json, index and safetensors file together (directory.h says how). Whatever
 * the bytes, the directory is refused with a reason, or all of its matrices can be read or are refused with one. */
#include "nodes/model/model.h"
#include "tests/fuzz/directory.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds, const struct err *e, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "%s: %s\n", what, e->text);
    abort();
}

/* A refusal is about the input, and says something. */
static void check_refusal(const struct err *e, const char *what)
{
    require((e->code == ERR_INPUT || e->code == ERR_NUMERIC) && e->text[0], e, what);
}

static void read_all(const struct model *m)
{
    struct err e = {0};
    float scale, *w;
    for (int i = 0; i < m->n_matrices; i++) {
        const struct matrix *x = &m->matrices[i];
        require(x->n > 0 && x->k > 0 && x->unit >= 0 && x->unit < m->n_units, &e, "a matrix without a place");
        require(mem_raw(&w, (size_t)x->n * (size_t)x->k, &e), &e, x->name);
        if (!model_read_matrix(m, i, w, &e))
            check_refusal(&e, x->name);
        mem_free(w);
    }
    for (int u = 0; u < m->n_units; u++)
        if (m->matrices[m->units[u].first].stored->static_input_scale && !model_input_scale(m, u, &scale, &e))
            check_refusal(&e, m->units[u].name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char folder[256];
    struct model *m;
    struct err e = {0};
    if (!input_open(folder, data, size))
        return 0;
    if (model_open(&m, folder, &e)) {
        read_all(m);
        model_close(m);
    } else {
        check_refusal(&e, "model_open");
    }
    input_close(folder);
    return 0;
}

#ifndef FUZZING
#define LLAMA \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":32,\"intermediate_size\":32," \
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":16,\"num_hidden_layers\":1,\"vocab_size\":4," \
    "\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,\"tie_word_embeddings\":true"
#define LAYER "model.layers.0."
#define QUANTIZED \
    ",\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"quantization_status\":\"compressed\"," \
    "\"format\":\"mixed-precision\",\"config_groups\":{" \
    "\"a\":{\"format\":\"nvfp4-pack-quantized\",\"targets\":[\"" LAYER "self_attn.q_proj\",\"" LAYER \
    "self_attn.k_proj\",\"" LAYER "self_attn.v_proj\"],\"weights\":{\"num_bits\":4,\"type\":\"float\",\"symmetric\":" \
    "true,\"strategy\":\"tensor_group\",\"group_size\":16,\"dynamic\":false,\"scale_dtype\":\"torch.float8_e4m3fn\"}," \
    "\"input_activations\":{\"num_bits\":4,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"tensor_group\"," \
    "\"group_size\":16,\"dynamic\":\"local\",\"scale_dtype\":\"torch.float8_e4m3fn\"}}," \
    "\"b\":{\"format\":\"float-quantized\",\"targets\":[\"" LAYER "self_attn.o_proj\"],\"weights\":{\"num_bits\":8," \
    "\"type\":\"float\",\"symmetric\":true,\"strategy\":\"channel\",\"dynamic\":false},\"input_activations\":" \
    "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"token\",\"dynamic\":true}}," \
    "\"c\":{\"format\":\"pack-quantized\",\"targets\":[\"" LAYER "mlp.down_proj\"],\"weights\":{\"num_bits\":4," \
    "\"type\":\"int\",\"symmetric\":true,\"strategy\":\"group\",\"group_size\":32,\"dynamic\":false}," \
    "\"input_activations\":null}},\"ignore\":[\"lm_head\",\"" LAYER "mlp.gate_proj\",\"" LAYER "mlp.up_proj\"]}}"
#define NVFP4(name, n, rows) \
    {LAYER name ".weight_packed", "U8", "[" rows ",16]", n * 16, CODES}, \
    {LAYER name ".weight_scale", "F8_E4M3", "[" rows ",2]", n * 2, FILL("\x38")}, \
    {LAYER name ".weight_global_scale", "F32", "[1]", 4, ONE_F32}, \
    {LAYER name ".input_global_scale", "F32", "[1]", 4, ONE_F32}
#define PLAIN(name, n, rows) {LAYER name ".weight", "BF16", "[" rows ",32]", n * 64, ONE_BF16}
#define REST \
    {"model.embed_tokens.weight", "BF16", "[4,32]", 256, ONE_BF16}, \
    {"model.norm.weight", "F32", "[32]", 128, ONE_F32}, \
    {LAYER "input_layernorm.weight", "BF16", "[32]", 64, ONE_BF16}, \
    {LAYER "post_attention_layernorm.weight", "BF16", "[32]", 64, ONE_BF16}, \
    PLAIN("mlp.gate_proj", 32, "32"), PLAIN("mlp.up_proj", 32, "32")

static const struct seed_tensor plain[] = {
    REST, PLAIN("self_attn.q_proj", 32, "32"), PLAIN("self_attn.k_proj", 16, "16"), PLAIN("self_attn.v_proj", 16, "16"),
    PLAIN("self_attn.o_proj", 32, "32"), PLAIN("mlp.down_proj", 32, "32")};
static const struct seed_tensor packed[] = {
    REST, NVFP4("self_attn.q_proj", 32, "32"), NVFP4("self_attn.k_proj", 16, "16"), NVFP4("self_attn.v_proj", 16, "16"),
    {LAYER "self_attn.o_proj.weight", "F8_E4M3", "[32,32]", 1024, CODES},
    {LAYER "self_attn.o_proj.weight_scale", "F32", "[32,1]", 128, ONE_F32},
    {LAYER "mlp.down_proj.weight_packed", "I32", "[32,4]", 512, CODES},
    {LAYER "mlp.down_proj.weight_scale", "BF16", "[32,1]", 64, ONE_BF16},
    {LAYER "mlp.down_proj.weight_shape", "I64", "[2]", 16, FILL("\x20\0\0\0\0\0\0\0")}};
static const struct seed seeds[] = {
    {LLAMA "}", NULL, NULL, plain, sizeof plain / sizeof *plain, 0},
    {LLAMA QUANTIZED, NULL, NULL, packed, sizeof packed / sizeof *packed, INPUT_FIX_LENGTH},
    {LLAMA QUANTIZED, NULL, NULL, packed, sizeof packed / sizeof *packed, 0},
};

int main(int argc, char **argv)
{
    return seed_main(argc, argv, seeds, sizeof seeds / sizeof *seeds, LLVMFuzzerTestOneInput);
}
#endif
