#include "tests/nodes/rotate/made.h"

#include "nodes/model/safetensors.h"
#include "nodes/search/stats.h"

struct maker {
    const struct made *m;
    struct st_source list[128];
    char names[128][96];
    size_t n;
    bool plain; /* no layer has weights of a kind of its own */
};

static double near_normal(uint64_t *state)
{
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += (double)(stats_random(state) >> 11) * 0x1p-53;
    return sum;
}

/* Element i of a tensor: `kind` 0 a weight, 1 a norm, 2 a bias or a table. */
static double value(const struct maker *k, uint64_t *state, int kind, enum made_weights w, int64_t i)
{
    static const double grid[] = {0.5, 1, 1.5, 2, 3, 4};
    double sign = stats_random(state) >> 63 ? -0.25 : 0.25; /* a power of two: block scales stay exact */
    if (kind == 1)
        return k->plain ? 1.0 + 0.3 * sign * near_normal(state) : 1.0;
    if (kind == 2)
        return near_normal(state);
    if (w == MADE_EXACT)
        return sign * (i % 16 == 3 ? 6 : grid[stats_below(state, COUNT(grid))]);
    if (w == MADE_BETWEEN)
        return sign * (i % 16 == 3 ? 6 : 5);
    return near_normal(state) * 1.5 / 4;
}

static bool fill(const struct st_source *self, void *out, struct err *e)
{
    const struct maker *k = self->context;
    uint64_t state = (uint64_t)self->index * 7919 + 11;
    bool is_other = strstr(self->name, "bias") || !strstr(self->name, "layers");
    int kind = strstr(self->name, "norm") ? 1 : is_other ? 2 : 0, layer;
    (void)e;
    enum made_weights w = sscanf(self->name, "model.layers.%d.", &layer) == 1 ? k->m->weights[layer] : MADE_RANDOM;
    if (w == MADE_VALUES)
        w = strstr(self->name, "v_proj") || strstr(self->name, "o_proj") ? MADE_BETWEEN : MADE_EXACT;
    double scale = kind == 2 ? 0.3 : w == MADE_RANDOM ? 1.0 : 0.25;
    int64_t n = (int64_t)(self->bytes / dtype_bytes(self->dtype));
    for (int64_t i = 0; i < n; i++) {
        float x = (float)(value(k, &state, kind, w, i) * (kind == 1 ? 1.0 : scale));
        uint16_t narrow = bf16_from_f32(x);
        if (self->dtype == DTYPE_F32)
            memcpy((float *)out + i, &x, sizeof x);
        else
            memcpy((uint16_t *)out + i, &narrow, sizeof narrow);
    }
    return true;
}

static void add(struct maker *k, const char *name, int64_t rows, int64_t columns)
{
    assert_true(k->n < COUNT(k->list));
    struct st_source *s = &k->list[k->n];
    snprintf(k->names[k->n], sizeof k->names[k->n], "%s", name);
    *s = (struct st_source){.name = k->names[k->n], .dtype = k->m->dtype, .rank = columns ? 2 : 1,
                            .shape = {rows, columns}, .fill = fill, .context = k, .index = (int64_t)k->n};
    s->bytes = (uint64_t)(rows * (columns ? columns : 1)) * dtype_bytes(k->m->dtype);
    k->n++;
}

static void add_linear(struct maker *k, int layer, const char *module, int64_t rows, int64_t columns)
{
    char name[96];
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, module);
    add(k, name, rows, columns);
    snprintf(name, sizeof name, "model.layers.%d.%s.bias", layer, module);
    if (k->m->biases)
        add(k, name, rows, 0);
}

static void add_all(struct maker *k)
{
    const struct made *m = k->m;
    int64_t q = (int64_t)m->heads * m->head_dim, kv = (int64_t)m->kv_heads * m->head_dim;
    char name[96];
    add(k, "model.embed_tokens.weight", m->vocab, m->hidden);
    for (int l = 0; l < m->layers; l++) {
        snprintf(name, sizeof name, "model.layers.%d.input_layernorm.weight", l);
        add(k, name, m->hidden, 0);
        add_linear(k, l, "self_attn.q_proj", q, m->hidden);
        add_linear(k, l, "self_attn.k_proj", kv, m->hidden);
        add_linear(k, l, "self_attn.v_proj", kv, m->hidden);
        add_linear(k, l, "self_attn.o_proj", m->hidden, q);
        snprintf(name, sizeof name, "model.layers.%d.post_attention_layernorm.weight", l);
        add(k, name, m->hidden, 0);
        add_linear(k, l, "mlp.gate_proj", m->intermediate, m->hidden);
        add_linear(k, l, "mlp.up_proj", m->intermediate, m->hidden);
        add_linear(k, l, "mlp.down_proj", m->hidden, m->intermediate);
    }
    add(k, "model.norm.weight", m->hidden, 0);
    add(k, "an.unknown.tensor", 3, 5); /* of no use to the model; a node keeps it */
    if (!m->tied)
        add(k, "lm_head.weight", m->vocab, m->hidden);
}

static void write_config(const struct made *m, const char *folder)
{
    char text[2000];
    int n = snprintf(text, sizeof text,
                     "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_act\": \"silu\", "
                     "\"hidden_size\": %d, \"intermediate_size\": %d, \"num_hidden_layers\": %d, "
                     "\"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"head_dim\": %d, \"vocab_size\": %d, "
                     "\"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-5, \"tie_word_embeddings\": %s, "
                     "\"attention_bias\": %s, \"mlp_bias\": %s, \"torch_dtype\": \"%s\"}\n",
                     m->hidden, m->intermediate, m->layers, m->heads, m->kv_heads, m->head_dim, m->vocab,
                     m->tied ? "true" : "false", m->biases ? "true" : "false", m->biases ? "true" : "false",
                     m->dtype == DTYPE_F32 ? "float32" : "bfloat16");
    check_write(folder, "config.json", text, (size_t)n);
}

static void write_shards(const struct maker *k, const char *folder)
{
    char path[600], *index = calloc(k->n, 200), *at = index;
    struct err e;
    assert_non_null(index);
    at += sprintf(at, "{\"weight_map\": {");
    for (int s = 0; s < k->m->shards; s++) {
        size_t first = k->n * (size_t)s / (size_t)k->m->shards, end = k->n * ((size_t)s + 1) / (size_t)k->m->shards;
        snprintf(path, sizeof path, "%s/part-%d.safetensors", folder, s);
        assert_ok(safetensors_write(path, k->list + first, end - first, &e), e);
        for (size_t i = first; i < end; i++)
            at += sprintf(at, "%s\"%s\": \"part-%d.safetensors\"", i ? ", " : "", k->list[i].name, s);
    }
    at += sprintf(at, "}}\n");
    check_write(folder, "model.safetensors.index.json", index, (size_t)(at - index));
    free(index);
}

void made_write(const struct made *m, const char *folder)
{
    struct maker k = {.m = m, .plain = true};
    struct err e;
    char path[600];
    for (int l = 0; l < m->layers; l++)
        k.plain = k.plain && m->weights[l] == MADE_RANDOM;
    assert_int_equal(mkdir(folder, 0777), 0);
    add_all(&k);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    if (m->shards > 1)
        write_shards(&k, folder);
    else
        assert_ok(safetensors_write(path, k.list, k.n, &e), e);
    write_config(m, folder);
    check_write(folder, "tokenizer.json", "{}", 2);
    check_write(folder, "notes.txt", "mine", 4);
}
