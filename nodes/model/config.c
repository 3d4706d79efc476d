/* config.json of the Llama family (model-architectures 1.1 and 2). What would change the arithmetic and is not
 * implemented is refused by name; what is only informational is passed over. */
#include "nodes/model/config.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/str.h"
#include "nodes/model/json.h"

#define CONFIG_LIMIT (16u << 20)
#define HEAD_PATTERN "re:.*lm_head$"

/* A file being read: `path` is for messages. Once a key was found wrong, `ok` is false and later ones say nothing. */
struct reader {
    const json_t *root;
    const char *path;
    struct err *e;
    bool ok;
};

#define REQUIRED (-1) /* as a fallback: there is none */

static void complain(struct reader *r, const char *key, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void complain(struct reader *r, const char *key, const char *format, ...)
{
    char what[400];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    if (r->ok)
        r->ok = err_set(r->e, ERR_INPUT, "%s: `%s` %s", r->path, key, what);
}

/* A value as it stands in the file, for messages; cut when it is long. */
static const char *shown(const json_t *x, char out[64])
{
    char *text = json_dumps(x, JSON_ENCODE_ANY | JSON_COMPACT);
    snprintf(out, 64, "%.60s", text ? text : "?");
    free(text);
    return out;
}

static bool is_absent(const json_t *x) { return !x || json_is_null(x); }

/* An integer in [least, most]; `fallback` when absent or null. */
static int integer(struct reader *r, const char *key, int fallback, int least, int most)
{
    const json_t *x = json_object_get(r->root, key);
    char text[64];
    if (is_absent(x) && fallback != REQUIRED)
        return fallback;
    if (json_is_integer(x) && json_integer_value(x) >= least && json_integer_value(x) <= most)
        return (int)json_integer_value(x);
    if (is_absent(x))
        complain(r, key, "is missing; it must be an integer from %d to %d", least, most);
    else
        complain(r, key, "is %s; it must be an integer from %d to %d", shown(x, text), least, most);
    return least;
}

/* Likewise, of any member of the file. */
static double number(struct reader *r, const json_t *object, const char *key, double fallback, double least,
                     double most)
{
    const json_t *x = json_object_get(object, key);
    char text[64];
    if (is_absent(x) && fallback != REQUIRED)
        return fallback;
    if (json_is_number(x) && json_number_value(x) >= least && json_number_value(x) <= most)
        return json_number_value(x);
    if (is_absent(x))
        complain(r, key, "is missing; it must be a number from %g to %g", least, most);
    else
        complain(r, key, "is %s; it must be a number from %g to %g", shown(x, text), least, most);
    return least;
}

static bool boolean(struct reader *r, const char *key)
{
    const json_t *x = json_object_get(r->root, key);
    char text[64];
    if (!is_absent(x) && !json_is_boolean(x))
        complain(r, key, "is %s; it must be true or false", shown(x, text));
    return json_is_true(x);
}

/* The keys of the scaling that `type` names. `key` is where they stand, for messages. */
static void read_scaling(struct reader *r, struct model_config *c, const char *key, const char *type,
                         const json_t *from)
{
    if (strcmp(type, "linear") == 0) {
        c->rope = ROPE_LINEAR;
        c->rope_factor = number(r, from, "factor", REQUIRED, 1e-3, 1e6);
    } else if (strcmp(type, "llama3") == 0) {
        c->rope = ROPE_LLAMA3;
        c->rope_factor = number(r, from, "factor", REQUIRED, 1e-3, 1e6);
        c->rope_low = number(r, from, "low_freq_factor", REQUIRED, 1e-6, 1e6);
        c->rope_high = number(r, from, "high_freq_factor", REQUIRED, 1e-6, 1e6);
        c->rope_original = number(r, from, "original_max_position_embeddings", REQUIRED, 1, 1e9);
        if (c->rope_high <= c->rope_low)
            complain(r, "high_freq_factor", "is %g; it must be larger than `low_freq_factor`, which is %g",
                     c->rope_high, c->rope_low);
    } else if (strcmp(type, "default") != 0) {
        complain(r, key, "is of type '%.40s', which is not supported; default, linear and llama3 are", type);
    }
}

/* Newest spelling wins: `rope_parameters`, else `rope_theta` with `rope_scaling`. */
static void read_rope(struct reader *r, struct model_config *c)
{
    const json_t *parameters = json_object_get(r->root, "rope_parameters");
    const char *key = is_absent(parameters) ? "rope_scaling" : "rope_parameters";
    const json_t *scaling = json_object_get(r->root, key);
    char text[64];
    if (!is_absent(scaling) && !json_is_object(scaling)) {
        complain(r, key, "is %s; it must be an object or null", shown(scaling, text));
        return;
    }
    bool is_new = json_is_object(parameters);
    c->theta = number(r, is_new && json_object_get(parameters, "rope_theta") ? parameters : r->root, "rope_theta",
                      10000.0, 1.0, 1e12);
    double partial = number(r, is_new ? parameters : r->root, "partial_rotary_factor", 1.0, 0.0, 1.0);
    if (partial != 1.0)
        complain(r, "partial_rotary_factor", "is %g; only 1, the whole head rotated, is supported", partial);
    if (is_absent(scaling))
        return;
    const json_t *type = json_object_get(scaling, "rope_type");
    type = type ? type : json_object_get(scaling, "type");
    if (json_is_string(type))
        read_scaling(r, c, key, json_string_value(type), scaling);
    else if (!is_new || type)
        complain(r, key, "has no text `rope_type`; default, linear and llama3 are supported");
}

static void read_type(struct reader *r, struct model_config *c)
{
    const json_t *act = json_object_get(r->root, "hidden_act");
    const char *type = json_string_value(json_object_get(r->root, "model_type"));
    char text[64];
    if (!type)
        complain(r, "model_type", "is missing; llama and mistral are supported");
    else if (strcmp(type, "llama") != 0 && strcmp(type, "mistral") != 0)
        complain(r, "model_type", "is '%.40s', which is not supported; llama and mistral are", type);
    else
        snprintf(c->model_type, sizeof c->model_type, "%s", type);
    if (!is_absent(act) && (!json_is_string(act) || strcmp(json_string_value(act), "silu") != 0))
        complain(r, "hidden_act", "is %s; only \"silu\" is supported", shown(act, text));
}

static void read_heads(struct reader *r, struct model_config *c)
{
    c->heads = integer(r, "num_attention_heads", REQUIRED, 1, 4096);
    c->kv_heads = integer(r, "num_key_value_heads", c->heads, 1, 4096);
    if (c->heads % c->kv_heads != 0)
        complain(r, "num_attention_heads", "is %d; it must be a multiple of `num_key_value_heads`, which is %d",
                 c->heads, c->kv_heads);
    if (is_absent(json_object_get(r->root, "head_dim")) && c->hidden % c->heads != 0)
        complain(r, "hidden_size",
                 "is %d; without `head_dim` it must be a multiple of `num_attention_heads`, which is %d", c->hidden,
                 c->heads);
    c->head_dim = integer(r, "head_dim", c->hidden / c->heads, 1, 1 << 14);
    if (c->head_dim % 2 != 0)
        complain(r, "head_dim", "is %d; it must be even, since rotary positions take channels in pairs", c->head_dim);
}

static void read_shape(struct reader *r, struct model_config *c)
{
    c->vocab = integer(r, "vocab_size", REQUIRED, 1, 1 << 24);
    c->hidden = integer(r, "hidden_size", REQUIRED, 1, 1 << 20);
    c->intermediate = integer(r, "intermediate_size", REQUIRED, 1, 1 << 22);
    c->layers = integer(r, "num_hidden_layers", REQUIRED, 1, 4096);
    read_heads(r, c);
    c->max_positions = integer(r, "max_position_embeddings", strcmp(c->model_type, "mistral") == 0 ? 131072 : 2048, 1,
                               1 << 28);
    c->eps = (float)number(r, r->root, "rms_norm_eps", REQUIRED, 0, 1);
}

/* A window as long as the model's context changes nothing. An absent key is not null: transformers takes 4096 then. */
static void check_sliding(struct reader *r, const struct model_config *c)
{
    const json_t *sliding = json_object_get(r->root, "sliding_window");
    if (strcmp(c->model_type, "mistral") != 0 || json_is_null(sliding))
        return;
    int window = integer(r, "sliding_window", 4096, 1, INT_MAX);
    if (window < c->max_positions)
        complain(r, "sliding_window",
                 "is %d%s and `max_position_embeddings` %d: attention within a sliding window is not "
                 "supported; set it to null if every layer attends to all positions",
                 window, sliding ? "" : " where the key is absent", c->max_positions);
}

bool config_read(struct model_config *out, json_t **json, const char *dir, struct err *e)
{
    char path[4096];
    json_t *root;
    struct model_config c = {0};
    snprintf(path, sizeof path, "%s/config.json", dir);
    if (!json_load_file_strict(&root, path, CONFIG_LIMIT, e))
        return false;
    struct reader r = {.root = root, .path = path, .e = e, .ok = true};
    if (!json_is_object(root))
        r.ok = err_set(e, ERR_INPUT, "%s: must be a JSON object", path);
    if (r.ok)
        read_type(&r, &c);
    if (r.ok)
        read_shape(&r, &c);
    if (r.ok)
        read_rope(&r, &c);
    if (r.ok)
        check_sliding(&r, &c);
    c.tied = boolean(&r, "tie_word_embeddings");
    /* Mistral never has any, whatever its configuration says. */
    bool may_have_bias = strcmp(c.model_type, "llama") == 0;
    c.attention_bias = boolean(&r, "attention_bias") && may_have_bias;
    c.mlp_bias = boolean(&r, "mlp_bias") && may_have_bias;
    if (!r.ok) {
        json_decref(root);
        return false;
    }
    *out = c;
    *json = root;
    return true;
}

/* ---------------------------------------------------------------------------------------------- quantization_config */

/* The keys that decide a scheme, with what compressed-tensors takes where one is absent. Others record how the numbers
 * were found. */
static const struct { const char *key, *fallback; } scheme_keys[] = {
    {"num_bits", "8"}, {"type", "\"int\""}, {"symmetric", "true"}, {"strategy", "null"}, {"group_size", "null"},
    {"dynamic", "false"}, {"block_structure", "null"}, {"scale_dtype", "null"}};

/* What `args` says of a key, in one spelling, as compressed-tensors' QuantizationArgs makes it: defaults filled in,
 * words in small letters, a strategy that follows from the group size, and the older forms of "not set" and of a pair.
 * A new reference; NULL when out of memory. */
static json_t *value_of(const json_t *args, const char *key, const char *fallback)
{
    const json_t *x = json_object_get(args, key), *size = json_object_get(args, "group_size");
    bool is_minus_one = json_is_integer(x) && json_integer_value(x) == -1;
    int rows, columns;
    char word[64], end;
    if (strcmp(key, "strategy") == 0 && is_absent(x))
        return json_string(is_absent(size) ? "tensor" : json_integer_value(size) > 0 ? "group" : "channel");
    if (is_absent(x) || (strcmp(key, "group_size") == 0 && is_minus_one))
        return json_loads(fallback, JSON_DECODE_ANY, NULL);
    const char *text = json_string_value(x);
    if (!text)
        return json_deep_copy(x);
    if (strcmp(key, "block_structure") == 0 && sscanf(text, "%8dx%8d%c", &rows, &columns, &end) == 2)
        return json_pack("[i, i]", rows, columns);
    if (strcmp(key, "scale_dtype") == 0 && strncmp(text, "torch.", 6) == 0)
        text += 6;
    snprintf(word, sizeof word, "%s", text);
    for (char *c = word; *c; c++)
        *c = *c >= 'A' && *c <= 'Z' ? (char)(*c + 'a' - 'A') : *c;
    return json_string(word);
}

/* Do both say the same of scheme_keys[i]? */
static bool same_key(const json_t *have, const json_t *want, size_t i)
{
    const char *key = scheme_keys[i].key;
    /* Writers of 4-bit floats once had no scale_dtype; the dtype of the stored scales is checked in any case. MXFP8 is
     * newer, and vLLM knows it by this key. */
    if (strcmp(key, "scale_dtype") == 0 && is_absent(json_object_get(have, key)) &&
        json_integer_value(json_object_get(want, "num_bits")) == 4)
        return true;
    json_t *x = value_of(have, key, scheme_keys[i].fallback), *y = value_of(want, key, scheme_keys[i].fallback);
    bool same = x && y && json_equal(x, y);
    json_decref(x);
    json_decref(y);
    return same;
}

static bool same_scheme(const json_t *have, const json_t *want)
{
    if (is_absent(want) || is_absent(have))
        return is_absent(want) && is_absent(have);
    for (size_t i = 0; i < sizeof scheme_keys / sizeof *scheme_keys; i++)
        if (!same_key(have, want, i))
            return false;
    return json_is_object(have);
}

/* The format of a group; NULL when there is none like it. `overall` is the configuration's own "format". */
static const struct format *group_format(const json_t *group, const json_t *overall)
{
    const json_t *own = json_object_get(group, "format");
    const char *name = json_string_value(is_absent(own) ? overall : own);
    for (int i = 0; name && formats[i]; i++) {
        if (!formats[i]->group_format || strcmp(name, formats[i]->group_format) != 0)
            continue;
        json_t *weights = json_loads(formats[i]->weights_json, JSON_DECODE_ANY, NULL);
        json_t *input = json_loads(formats[i]->input_json, JSON_DECODE_ANY, NULL);
        bool same = weights && input && same_scheme(json_object_get(group, "weights"), weights) &&
                    same_scheme(json_object_get(group, "input_activations"), input);
        json_decref(weights);
        json_decref(input);
        if (same)
            return formats[i];
    }
    return NULL;
}

/* The head's names: servers call it otherwise inside other models, so that it is written as a pattern. */
static bool is_head(const char *name) { return strcmp(name, "lm_head") == 0 || strcmp(name, HEAD_PATTERN) == 0; }

/* Targets must be module names: a class name or a pattern would mean what another program makes of it. */
static bool check_targets(const json_t *targets, const char *where, struct err *e)
{
    for (size_t i = 0; i < json_array_size(targets); i++) {
        const char *target = json_string_value(json_array_get(targets, i));
        if (!target)
            return err_set(e, ERR_INPUT, "%s: target %zu is no text", where, i);
        if (is_head(target))
            continue;
        if (strncmp(target, "re:", 3) == 0 || !strchr(target, '.'))
            return err_set(e, ERR_INPUT, "%s: target '%.200s' is a %s; only exact module names are supported, such as "
                           "'model.layers.0.mlp.down_proj'", where, target,
                           strncmp(target, "re:", 3) == 0 ? "pattern" : "class name");
    }
    return true;
}

/* The keys of an object that decide a scheme, as they stand in the file. */
static void show_scheme(struct str *out, const json_t *args)
{
    char text[64];
    const char *before = "";
    if (!json_is_object(args)) {
        str_add(out, is_absent(args) ? "null" : shown(args, text));
        return;
    }
    str_add(out, "{");
    for (size_t i = 0; i < sizeof scheme_keys / sizeof *scheme_keys; i++) {
        const json_t *x = json_object_get(args, scheme_keys[i].key);
        if (is_absent(x))
            continue;
        str_printf(out, "%s%s: %s", before, scheme_keys[i].key, shown(x, text));
        before = ", ";
    }
    str_add(out, "}");
}

static bool refuse_scheme(const json_t *group, const json_t *overall, const char *where, struct err *e)
{
    struct str found = {0}, known = {0};
    const json_t *own = json_object_get(group, "format");
    char text[64];
    const json_t *format = is_absent(own) ? overall : own;
    str_printf(&found, "format %s, weights ", is_absent(format) ? "null" : shown(format, text));
    show_scheme(&found, json_object_get(group, "weights"));
    str_add(&found, ", input_activations ");
    show_scheme(&found, json_object_get(group, "input_activations"));
    for (int i = 0; formats[i]; i++)
        if (formats[i]->group_format)
            str_printf(&known, "%s%s", known.length ? ", " : "", formats[i]->name);
    err_set(e, ERR_INPUT, "%s: %.500s: no format that is read has this scheme; known are %s", where,
            found.text ? found.text : "", known.text ? known.text : "");
    str_free(&found);
    str_free(&known);
    return false;
}

static bool check_group(const json_t *group, const json_t *overall, const char *where, struct err *e)
{
    const json_t *targets = json_object_get(group, "targets");
    const char *order = json_string_value(json_object_get(json_object_get(group, "weights"), "actorder"));
    if (!json_is_object(group) || !json_is_array(targets))
        return err_set(e, ERR_INPUT, "%s: has no array `targets`", where);
    if (!is_absent(json_object_get(group, "output_activations")))
        return err_set(e, ERR_INPUT, "%s: quantized `output_activations` are not supported", where);
    /* The other two say how codes were found; columns stay where they were. */
    if (order && strcmp(order, "static") != 0 && strcmp(order, "weight") != 0)
        return err_set(e, ERR_INPUT, "%s: `actorder` '%.40s' moves columns, which is not supported", where, order);
    if (!group_format(group, overall))
        return refuse_scheme(group, overall, where, e);
    return check_targets(targets, where, e);
}

/* What would change the arithmetic of the whole model. */
static bool check_scheme(const json_t *q, const char *where, struct err *e)
{
    const char *method = json_string_value(json_object_get(q, "quant_method"));
    const json_t *status = json_object_get(q, "quantization_status");
    if (!method || strcmp(method, "compressed-tensors") != 0)
        return err_set(e, ERR_INPUT, "%s: `quant_method` is %s%.60s%s; only compressed-tensors directories are read",
                       where, method ? "'" : "", method ? method : "missing", method ? "'" : "");
    if (!is_absent(status) && (!json_is_string(status) || strcmp(json_string_value(status), "compressed") != 0))
        return err_set(e, ERR_INPUT, "%s: `quantization_status` must be \"compressed\"", where);
    if (!is_absent(json_object_get(q, "kv_cache_scheme")))
        return err_set(e, ERR_INPUT, "%s: a quantized KV cache (`kv_cache_scheme`) is not supported", where);
    for (const char *const *key = (const char *const[]){"sparsity_config", "transform_config", NULL}; *key; key++)
        if (json_object_size(json_object_get(q, *key)) > 0)
            return err_set(e, ERR_INPUT, "%s: `%s` is not supported", where, *key);
    if (!json_is_object(json_object_get(q, "config_groups")))
        return err_set(e, ERR_INPUT, "%s: has no object `config_groups`", where);
    return true;
}

bool config_check_quantization(const json_t *config, const char *dir, struct err *e)
{
    const json_t *q = json_object_get(config, "quantization_config");
    char where[4500];
    if (!is_absent(json_object_get(config, "compression_config")))
        return err_set(e, ERR_INPUT,
                       "%s/config.json: `compression_config` is an older spelling that is not read; rename it "
                       "to `quantization_config`",
                       dir);
    if (is_absent(q))
        return true;
    snprintf(where, sizeof where, "%.4000s/config.json: `quantization_config`", dir);
    if (!check_scheme(q, where, e))
        return false;
    const char *name;
    const json_t *group;
    json_object_foreach(json_object_get(q, "config_groups"), name, group)
    {
        snprintf(where, sizeof where, "%.4000s/config.json: `quantization_config`, group '%.100s'", dir, name);
        if (!check_group(group, json_object_get(q, "format"), where, e))
            return false;
    }
    return true;
}

static bool lists(const json_t *names, const char *module)
{
    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *name = json_string_value(json_array_get(names, i));
        if (name && (strcmp(name, module) == 0 || (is_head(name) && is_head(module))))
            return true;
    }
    return false;
}

bool config_stored_format(const json_t *config, const char *dir, const char *module, const struct format **out,
                          struct err *e)
{
    const json_t *q = json_object_get(config, "quantization_config"), *group;
    const char *name, *first = NULL;
    const struct format *found = &format_bf16;
    bool is_ignored = lists(json_object_get(q, "ignore"), module);
    json_object_foreach(json_object_get(q, "config_groups"), name, group)
    {
        if (!lists(json_object_get(group, "targets"), module))
            continue;
        if (first || is_ignored)
            return err_set(e, ERR_INPUT,
                           "%s/config.json: `quantization_config`: module '%s' is a target of group '%s' and "
                           "%s%s%s; it must have one format",
                           dir, module, name, first ? "of group '" : "", first ? first : "in `ignore`",
                           first ? "'" : "");
        first = name;
        found = group_format(group, json_object_get(q, "format"));
    }
    if (!found)
        return err_set(e, ERR_RESOURCE, "out of memory for the quantization_config of %s", dir);
    *out = found;
    return true;
}
