/* Opening a model directory: configuration and headers are read and checked whole, and the tables of matrices and units
 * are made. Weights come later, when they are asked for. */
#include "nodes/model/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "nodes/model/config.h"

/* What every layer of the Llama family has, in the order of the forward pass. */
static const struct { const char *unit; enum unit_role role; int count; } layer_units[] = {
    {"self_attn.qkv_proj", ROLE_QKV, 3}, {"self_attn.o_proj", ROLE_O, 1},
    {"mlp.gate_up_proj", ROLE_GATE_UP, 2}, {"mlp.down_proj", ROLE_DOWN, 1}};
static const char *const layer_matrices[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
    "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"};
#define MATRICES 7
#define UNITS 4

static bool is_float(enum dtype t) { return t == DTYPE_F32 || t == DTYPE_F16 || t == DTYPE_BF16; }

static const struct st_tensor *need(const struct model *m, const char *name, struct err *e)
{
    const struct st_tensor *t = safetensors_find(m->files, name);
    if (!t)
        err_set(e, ERR_INPUT, "%s: no tensor '%s', which a %s model of %d layers has", m->path, name,
                m->config.model_type, m->config.layers);
    return t;
}

static const char *shape_text(int rank, const int64_t *shape, char out[64])
{
    size_t n = 0;
    out[0] = '\0';
    for (int i = 0; i < rank && n < 48; i++)
        n += (size_t)snprintf(out + n, 64 - n, "%s%lld", i ? ", " : "", (long long)shape[i]);
    return out;
}

static bool check_tensor(const struct model *m, const struct st_tensor *t, int rank, const int64_t shape[2],
                         struct err *e)
{
    char have[64], want[64];
    bool same = t->rank == rank;
    for (int i = 0; same && i < rank; i++)
        same = t->shape[i] == shape[i];
    if (!same)
        return err_set(e, ERR_INPUT, "%s: tensor '%s' has shape [%s], config.json wants [%s]", m->path, t->name,
                       shape_text(t->rank, t->shape, have), shape_text(rank, shape, want));
    return true;
}

static bool check_float(const struct model *m, const char *name, int rank, int64_t rows, int64_t columns, struct err *e)
{
    const int64_t shape[2] = {rows, columns};
    const struct st_tensor *t = need(m, name, e);
    if (!t)
        return false;
    if (!is_float(t->dtype))
        return err_set(e, ERR_INPUT, "%s: tensor '%s' has dtype %s; F32, F16 and BF16 weights are read", m->path, name,
                       dtype_info(t->dtype)->safetensors);
    return check_tensor(m, t, rank, shape, e);
}

/* The weight itself, and what quantized layers store instead of it or beside it, in any scheme. */
static const char *const suffixes[] = {
    "weight", "weight_packed", "weight_scale", "weight_shape", "weight_global_scale", "input_global_scale",
    "weight_zero_point", "weight_g_idx", "input_scale", "input_zero_point", NULL};

/* Tensors of a packed matrix that its format has not: another one's, or the weight itself beside the codes. */
static bool check_no_others(const struct model *m, const struct matrix *x, const struct format_part *parts, int n,
                            struct err *e)
{
    char name[512];
    for (const char *const *suffix = suffixes; *suffix; suffix++) {
        bool belongs = false;
        for (int i = 0; i < n; i++)
            belongs = belongs || strcmp(parts[i].suffix, *suffix) == 0;
        snprintf(name, sizeof name, "%s.%s", x->name, *suffix);
        if (!belongs && safetensors_find(m->files, name))
            return err_set(e, ERR_INPUT,
                           "%s: tensor '%s' does not belong to format %s, in which config.json has the module", m->path,
                           name, x->stored->name);
    }
    return true;
}

/* weight_shape holds the shape that config.json implies. */
static bool check_stored_shape(const struct model *m, const struct matrix *x, struct err *e)
{
    char name[512];
    int64_t shape[2];
    snprintf(name, sizeof name, "%s.weight_shape", x->name);
    const struct st_tensor *t = need(m, name, e);
    if (!t)
        return false;
    if (!safetensors_read(m->files, t, 0, sizeof shape, shape, e))
        return err_context(e, "%s", m->path);
    if (shape[0] != x->n || shape[1] != x->k)
        return err_set(e, ERR_INPUT, "%s: tensor '%s' holds %lld, %lld; config.json makes the matrix [%lld, %lld]",
                       m->path, name, (long long)shape[0], (long long)shape[1], (long long)x->n, (long long)x->k);
    return true;
}

/* The stored tensors of a packed matrix: exactly those of its format. */
static bool check_packed(const struct model *m, const struct matrix *x, struct err *e)
{
    struct format_part parts[FORMAT_PARTS + 1];
    char name[512];
    if (!format_fits(x->stored, x->n, x->k))
        return err_set(e, ERR_INPUT, "%s: module '%s' is [%lld, %lld]; format %s wants a multiple of %d columns",
                       m->path, x->name, (long long)x->n, (long long)x->k, x->stored->name, x->stored->k_multiple);
    int n = x->stored->parts(x->n, x->k, x->dtype, parts);
    if (x->stored->static_input_scale)
        parts[n++] = (struct format_part){"input_global_scale", DTYPE_F32, 1, {1}};
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "%s.%s", x->name, parts[i].suffix);
        const struct st_tensor *t = safetensors_find(m->files, name);
        if (!t)
            return err_set(e, ERR_INPUT, "%s: no tensor '%s', which a module in format %s has", m->path, name,
                           x->stored->name);
        if (t->dtype != parts[i].dtype)
            return err_set(e, ERR_INPUT, "%s: tensor '%s' has dtype %s, format %s wants %s", m->path, name,
                           dtype_info(t->dtype)->safetensors, x->stored->name, dtype_info(parts[i].dtype)->safetensors);
        if (!check_tensor(m, t, parts[i].rank, parts[i].shape, e))
            return false;
    }
    return check_no_others(m, x, parts, n, e) && (!x->stored->stores_shape || check_stored_shape(m, x, e));
}

/* A plain matrix has no codes or scales; where it has, config.json was changed or exchanged. */
static bool check_not_packed(const struct model *m, const struct matrix *x, struct err *e)
{
    char name[512];
    for (const char *const *suffix = suffixes + 1; *suffix; suffix++) { /* all but the weight */
        snprintf(name, sizeof name, "%s.%s", x->name, *suffix);
        if (safetensors_find(m->files, name))
            return err_set(e, ERR_INPUT,
                           "%s: there is a tensor '%s', but no group of a `quantization_config` in config.json "
                           "has the module as a target",
                           m->path, name);
    }
    return true;
}

static void matrix_shape(const struct model_config *c, int which, int64_t *n, int64_t *k)
{
    int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    const int64_t rows[MATRICES] = {q, kv, kv, c->hidden, c->intermediate, c->intermediate, c->hidden};
    const int64_t columns[MATRICES] = {c->hidden, c->hidden, c->hidden, q, c->hidden, c->hidden, c->intermediate};
    *n = rows[which];
    *k = columns[which];
}

/* The stored tensors of the next matrix, whose name, shape and format are known; then it counts. */
static bool take_matrix(struct model *m, struct err *e)
{
    struct matrix *x = &m->matrices[m->n_matrices];
    char name[512];
    snprintf(name, sizeof name, "%s.weight", x->name);
    x->dtype = DTYPE_BF16;
    if (x->stored->group_format) {
        if (!check_packed(m, x, e))
            return false;
    } else {
        if (!check_not_packed(m, x, e) || !check_float(m, name, 2, x->n, x->k, e))
            return false;
        x->dtype = safetensors_find(m->files, name)->dtype;
    }
    m->n_matrices++;
    return true;
}

static bool add_matrix(struct model *m, const json_t *config, int layer, int which, int unit, int64_t row,
                       struct err *e)
{
    struct matrix *x = &m->matrices[m->n_matrices];
    char name[512];
    x->name = arena_printf(&m->arena, e, "model.layers.%d.%s", layer, layer_matrices[which]);
    if (!x->name || !config_stored_format(config, m->path, x->name, &x->stored, e))
        return false;
    matrix_shape(&m->config, which, &x->n, &x->k);
    x->unit = unit;
    x->row = row;
    snprintf(name, sizeof name, "%s.bias", x->name);
    /* As transformers and vLLM do: config.json decides, and a bias that it denies is not used. */
    bool is_there = safetensors_find(m->files, name) != NULL;
    x->has_bias = which < 4 ? m->config.attention_bias : m->config.mlp_bias;
    m->n_unused_biases += is_there && !x->has_bias;
    if (x->has_bias && !is_there)
        return err_set(e, ERR_INPUT, "%s: no tensor '%s', though `%s` is true in config.json", m->path, name,
                       which < 4 ? "attention_bias" : "mlp_bias");
    if (x->has_bias && !check_float(m, name, 1, x->n, 0, e))
        return false;
    return take_matrix(m, e);
}

static bool add_layer(struct model *m, const json_t *config, int layer, struct err *e)
{
    int which = 0;
    for (int i = 0; i < UNITS; i++) {
        struct unit *u = &m->units[m->n_units];
        u->name = arena_printf(&m->arena, e, "model.layers.%d.%s", layer, layer_units[i].unit);
        if (!u->name)
            return false;
        u->role = layer_units[i].role;
        u->layer = layer;
        u->first = m->n_matrices;
        u->count = layer_units[i].count;
        for (int j = 0; j < u->count; j++, which++) {
            if (!add_matrix(m, config, layer, which, m->n_units, u->n, e))
                return false;
            u->n += m->matrices[u->first + j].n;
            u->k = m->matrices[u->first + j].k;
            if (m->matrices[u->first + j].stored != m->matrices[u->first].stored)
                return err_set(e, ERR_INPUT,
                               "%s: '%s' is stored as %s and '%s' as %s: the server fuses them, so they must "
                               "have one format",
                               m->path, m->matrices[u->first].name, m->matrices[u->first].stored->name,
                               m->matrices[u->first + j].name, m->matrices[u->first + j].stored->name);
        }
        u->parameters = (uint64_t)u->n * (uint64_t)u->k;
        m->n_units++;
    }
    char name[512];
    snprintf(name, sizeof name, "model.layers.%d.input_layernorm.weight", layer);
    if (!check_float(m, name, 1, m->config.hidden, 0, e))
        return false;
    snprintf(name, sizeof name, "model.layers.%d.post_attention_layernorm.weight", layer);
    return check_float(m, name, 1, m->config.hidden, 0, e);
}

/* A scale of one f32 that the server keeps once for a whole unit, so that fused siblings must have the same. */
static bool read_unit_scale(const struct model *m, int unit, const char *suffix, float *out, struct err *e)
{
    const struct unit *u = &m->units[unit];
    char name[512];
    float first = 0, scale;
    for (int i = 0; i < u->count; i++) {
        snprintf(name, sizeof name, "%s.%s", m->matrices[u->first + i].name, suffix);
        const struct st_tensor *t = need(m, name, e);
        if (!t)
            return false;
        if (t->dtype != DTYPE_F32 || t->bytes != sizeof scale)
            return err_set(e, ERR_INPUT, "%s: tensor '%s' must be one F32", m->path, name);
        if (!safetensors_read(m->files, t, 0, sizeof scale, &scale, e))
            return false;
        if (!(scale > 0) || !isfinite(scale))
            return err_set(e, ERR_NUMERIC, "%s: tensor '%s' is %g; it must be positive and finite", m->path, name,
                           (double)scale);
        if (i > 0 && scale != first)
            return err_set(e, ERR_INPUT,
                           "%s: tensor '%s' is %.9g, that of '%s' %.9g: the server fuses them and keeps one, so "
                           "they must be equal",
                           m->path, name, (double)scale, m->matrices[u->first].name, (double)first);
        first = scale;
    }
    *out = first;
    return true;
}

static bool check_unit_scales(const struct model *m, struct err *e)
{
    float scale;
    for (int u = 0; u < m->n_units; u++) {
        const struct format *f = m->matrices[m->units[u].first].stored;
        if ((f->shared_amax && !read_unit_scale(m, u, "weight_global_scale", &scale, e)) ||
            (f->static_input_scale && !read_unit_scale(m, u, "input_global_scale", &scale, e)))
            return false;
    }
    return true;
}

/* Tensors that nobody asks for are kept, but those of a layer that config.json has not would be a model cut short. */
static bool check_layers(const struct model *m, struct err *e)
{
    for (size_t i = 0; i < m->files->n_tensors; i++) {
        int layer;
        if (sscanf(m->files->tensors[i].name, "model.layers.%8d.", &layer) == 1 && layer >= m->config.layers)
            return err_set(e, ERR_INPUT,
                           "%s: tensor '%s' is of layer %d, counted from 0; `num_hidden_layers` in config.json "
                           "is %d",
                           m->path, m->files->tensors[i].name, layer, m->config.layers);
    }
    return true;
}

static bool check_tables(struct model *m, struct err *e)
{
    const struct model_config *c = &m->config;
    return check_float(m, "model.embed_tokens.weight", 2, c->vocab, c->hidden, e) &&
           check_float(m, "model.norm.weight", 1, c->hidden, 0, e);
}

/* A head of its own: plain, or a unit of one matrix behind the last layer's. */
static bool add_head(struct model *m, const json_t *config, enum model_head head, struct err *e)
{
    static const char name[] = "lm_head";
    const struct format *stored;
    if (!config_stored_format(config, m->path, name, &stored, e))
        return false;
    if (m->config.tied && stored->group_format)
        return err_set(e, ERR_INPUT, "%s/config.json: `quantization_config`: '%s' is a target, but "
                       "`tie_word_embeddings` is true: servers take the embedding for it, which is not quantized",
                       m->path, name);
    if (m->config.tied && head == HEAD_UNIT)
        return err_set(e, ERR_INPUT, "%s: the head is the embedding (`tie_word_embeddings`), which servers keep once "
                       "and unquantized: it cannot be a unit", m->path);
    if (m->config.tied)
        return true;
    if (head == HEAD_AS_STORED && !stored->group_format) {
        const struct matrix plain = {.name = name};
        if (!safetensors_find(m->files, "lm_head.weight"))
            return err_set(e, ERR_INPUT, "%s: no tensor 'lm_head.weight', and `tie_word_embeddings` is not true in "
                           "config.json", m->path);
        return check_not_packed(m, &plain, e) &&
               check_float(m, "lm_head.weight", 2, m->config.vocab, m->config.hidden, e);
    }
    struct unit *u = &m->units[m->n_units];
    m->matrices[m->n_matrices] = (struct matrix){.name = name, .unit = m->n_units, .n = m->config.vocab,
                                                 .k = m->config.hidden, .stored = stored};
    *u = (struct unit){.name = name, .role = ROLE_HEAD, .layer = m->config.layers, .first = m->n_matrices, .count = 1,
                       .n = m->config.vocab, .k = m->config.hidden};
    u->parameters = (uint64_t)u->n * (uint64_t)u->k;
    m->head_unit = m->n_units++;
    return take_matrix(m, e);
}

bool model_open_as(struct model **out, const char *dir, enum model_head head, struct err *e)
{
    struct model *m;
    struct stat st;
    json_t *config = NULL;
    if (stat(dir, &st) != 0)
        return err_errno(e, ERR_INPUT, "%s", dir);
    if (!S_ISDIR(st.st_mode))
        return err_set(e, ERR_INPUT, "%s: a model is a directory with config.json and safetensors files", dir);
    if (!mem_new(&m, 1, e))
        return false;
    m->head_unit = -1;
    m->path = arena_strdup(&m->arena, dir, e);
    bool ok = m->path && config_read(&m->config, &config, dir, e) && config_check_quantization(config, dir, e) &&
              safetensors_open(&m->files, dir, e) && check_tables(m, e);
    size_t layers = ok ? (size_t)m->config.layers : 0;
    ok = ok && mem_new(&m->matrices, layers * MATRICES + 1, e) && mem_new(&m->units, layers * UNITS + 1, e);
    for (size_t l = 0; ok && l < layers; l++)
        ok = add_layer(m, config, (int)l, e);
    ok = ok && add_head(m, config, head, e) && check_layers(m, e) && check_unit_scales(m, e);
    json_decref(config);
    if (!ok) {
        model_close(m);
        return false;
    }
    *out = m;
    return true;
}

bool model_open(struct model **out, const char *dir, struct err *e)
{
    return model_open_as(out, dir, HEAD_AS_STORED, e);
}

void model_close(struct model *m)
{
    if (!m)
        return;
    safetensors_close(m->files);
    mem_free(m->matrices);
    mem_free(m->units);
    arena_free(&m->arena);
    mem_free(m);
}

/* -------------------------------------------------------------------------------------------------- reading weights */

static bool check_finite(const char *name, const float *x, int64_t rows, int64_t columns, struct err *e)
{
    for (int64_t i = 0; i < rows * columns; i++)
        if (!isfinite(x[i]))
            return err_set(e, ERR_NUMERIC, "tensor '%s' holds %s at row %lld, column %lld", name,
                           isnan(x[i]) ? "NaN" : "infinity", (long long)(i / columns), (long long)(i % columns));
    return true;
}

static bool read_floats(const struct model *m, const struct st_tensor *t, float *out, struct err *e)
{
    unsigned char *raw;
    if (!mem_raw(&raw, t->bytes, e))
        return false;
    bool ok = (safetensors_read(m->files, t, 0, t->bytes, raw, e) || err_context(e, "%s", m->path)) &&
              dtype_to_f32(t->dtype, raw, t->bytes / dtype_bytes(t->dtype), out, e);
    mem_free(raw);
    return ok;
}

bool model_read_tensor(const struct model *m, const char *name, int64_t count, float *out, struct err *e)
{
    const struct st_tensor *t = need(m, name, e);
    if (!t)
        return false;
    if (t->bytes / dtype_bytes(t->dtype) != (uint64_t)count)
        return err_set(e, ERR_INPUT, "%s: tensor '%s' has %llu values, expected %lld", m->path, name,
                       (unsigned long long)(t->bytes / dtype_bytes(t->dtype)), (long long)count);
    int64_t columns = t->rank > 1 ? t->shape[t->rank - 1] : count;
    return read_floats(m, t, out, e) &&
           (count == 0 || columns == 0 || check_finite(name, out, count / columns, columns, e));
}

bool model_read_matrix(const struct model *m, int matrix, float *out, struct err *e)
{
    const struct matrix *x = &m->matrices[matrix];
    char name[512];
    if (!x->stored->group_format) {
        snprintf(name, sizeof name, "%s.weight", x->name);
        return model_read_tensor(m, name, x->n * x->k, out, e);
    }
    struct rendering r;
    if (!model_read_rendering(m, matrix, &r, e))
        return false;
    x->stored->decode(&r, 0, x->n, out);
    rendering_free(&r);
    return check_finite(x->name, out, x->n, x->k, e);
}

bool model_read_rendering(const struct model *m, int matrix, struct rendering *out, struct err *e)
{
    const struct matrix *x = &m->matrices[matrix];
    struct format_part parts[FORMAT_PARTS];
    struct rendering r;
    char name[512];
    int n = x->stored->parts(x->n, x->k, x->dtype, parts);
    if (!format_rendering_new(&r, x->stored, x->n, x->k, x->dtype, e))
        return false;
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "%s.%s", x->name, parts[i].suffix);
        const struct st_tensor *t = need(m, name, e);
        if (!t || !safetensors_read(m->files, t, 0, format_part_bytes(&parts[i]), r.part[i], e)) {
            rendering_free(&r);
            return false;
        }
    }
    *out = r;
    return true;
}

void rendering_free(struct rendering *r)
{
    for (int i = 0; i < FORMAT_PARTS; i++) {
        mem_free(r->part[i]);
        r->part[i] = NULL;
    }
}

bool model_input_scale(const struct model *m, int unit, float *out, struct err *e)
{
    return read_unit_scale(m, unit, "input_global_scale", out, e);
}

uint64_t model_parameters(const struct model *m)
{
    uint64_t table = (uint64_t)m->config.vocab * (uint64_t)m->config.hidden;
    uint64_t sum = model_unit_parameters(m) + (m->config.tied || m->head_unit >= 0 ? table : 2 * table) +
                   (2 * (uint64_t)m->config.layers + 1) * (uint64_t)m->config.hidden;
    for (int i = 0; i < m->n_matrices; i++)
        sum += m->matrices[i].has_bias ? (uint64_t)m->matrices[i].n : 0;
    return sum;
}

uint64_t model_unit_parameters(const struct model *m)
{
    uint64_t sum = 0;
    for (int u = 0; u < m->n_units; u++)
        sum += m->units[u].parameters;
    return sum;
}
