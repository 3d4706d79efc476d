/* config.json of the Llama family (model-architectures 1.1 and 2). What would change the arithmetic and is not
 * implemented is refused by name; what is only informational is passed over. */
#include "nodes/model/config.h"

#include <stdio.h>
#include <string.h>

#include "nodes/model/json.h"

#define CONFIG_LIMIT (16u << 20)

/* A key being read: `path` is for messages. */
struct reader {
    const json_t *root;
    const char *path;
    struct err *e;
    bool ok;
};

static void complain(struct reader *r, const char *key, const char *what)
{
    if (r->ok)
        r->ok = err_set(r->e, ERR_INPUT, "%s: `%s` %s", r->path, key, what);
}

/* An integer in [least, most]; `fallback` when absent or null, unless it is below `least`: then the key is required. */
static int integer(struct reader *r, const char *key, int fallback, int least, int most)
{
    const json_t *x = json_object_get(r->root, key);
    char text[96];
    if ((!x || json_is_null(x)) && fallback >= least)
        return fallback;
    if (!x || json_is_null(x)) {
        complain(r, key, "is missing");
        return least;
    }
    if (!json_is_integer(x) || json_integer_value(x) < least || json_integer_value(x) > most) {
        snprintf(text, sizeof text, "must be an integer from %d to %d", least, most);
        complain(r, key, text);
        return least;
    }
    return (int)json_integer_value(x);
}

static double number(struct reader *r, const json_t *object, const char *key, double fallback, double least, double most)
{
    const json_t *x = json_object_get(object, key);
    char text[96];
    if ((!x || json_is_null(x)) && fallback >= least)
        return fallback;
    if (!json_is_number(x) || !(json_number_value(x) >= least && json_number_value(x) <= most)) {
        snprintf(text, sizeof text, "must be a number from %g to %g", least, most);
        complain(r, key, x ? text : "is missing");
        return least;
    }
    return json_number_value(x);
}

static bool boolean(struct reader *r, const char *key)
{
    const json_t *x = json_object_get(r->root, key);
    if (!x || json_is_null(x))
        return false;
    if (!json_is_boolean(x))
        complain(r, key, "must be true or false");
    return json_is_true(x);
}

/* A token id, a list of them (the first counts), or nothing: -1. */
static int token(const struct reader *r, const char *key)
{
    const json_t *x = json_object_get(r->root, key);
    if (json_is_array(x))
        x = json_array_get(x, 0);
    return json_is_integer(x) && json_integer_value(x) >= 0 && json_integer_value(x) < 1 << 30
               ? (int)json_integer_value(x) : -1;
}

/* Newest spelling wins: `rope_parameters`, else `rope_theta` with `rope_scaling`. */
static void read_rope(struct reader *r, struct model_config *c)
{
    const json_t *parameters = json_object_get(r->root, "rope_parameters");
    const json_t *scaling = json_is_object(parameters) ? parameters : json_object_get(r->root, "rope_scaling");
    const json_t *theta = json_is_object(parameters) && json_object_get(parameters, "rope_theta") ? parameters : r->root;
    c->theta = number(r, theta, "rope_theta", 10000.0, 1.0, 1e12);
    if (number(r, json_is_object(parameters) ? parameters : r->root, "partial_rotary_factor", 1.0, 0.0, 1.0) != 1.0)
        complain(r, "partial_rotary_factor", "other than 1 is not supported");
    if (!json_is_object(scaling))
        return;
    const char *type = json_string_value(json_object_get(scaling, "rope_type"));
    type = type ? type : json_string_value(json_object_get(scaling, "type"));
    if (!type || strcmp(type, "default") == 0)
        return;
    if (strcmp(type, "linear") == 0) {
        c->rope = ROPE_LINEAR;
        c->rope_factor = number(r, scaling, "factor", -1, 1e-3, 1e6);
    } else if (strcmp(type, "llama3") == 0) {
        c->rope = ROPE_LLAMA3;
        c->rope_factor = number(r, scaling, "factor", -1, 1e-3, 1e6);
        c->rope_low = number(r, scaling, "low_freq_factor", -1, 1e-6, 1e6);
        c->rope_high = number(r, scaling, "high_freq_factor", -1, 1e-6, 1e6);
        c->rope_original = number(r, scaling, "original_max_position_embeddings", -1, 1, 1e9);
        if (c->rope_high <= c->rope_low)
            complain(r, "high_freq_factor", "must be larger than `low_freq_factor`");
    } else {
        char text[128];
        snprintf(text, sizeof text, "of type '%.40s' is not supported; default, linear and llama3 are", type);
        complain(r, "rope_scaling", text);
    }
}

static void read_type(struct reader *r, struct model_config *c)
{
    const char *type = json_string_value(json_object_get(r->root, "model_type"));
    const char *act = json_string_value(json_object_get(r->root, "hidden_act"));
    char text[128];
    if (!type) {
        complain(r, "model_type", "is missing");
        return;
    }
    snprintf(c->model_type, sizeof c->model_type, "%s", type);
    if (strcmp(type, "llama") != 0 && strcmp(type, "mistral") != 0) {
        snprintf(text, sizeof text, "is '%.40s'; llama and mistral are supported", type);
        complain(r, "model_type", text);
    }
    if (act && strcmp(act, "silu") != 0) {
        snprintf(text, sizeof text, "is '%.40s'; only silu is supported", act);
        complain(r, "hidden_act", text);
    }
}

static void read_shape(struct reader *r, struct model_config *c)
{
    c->vocab = integer(r, "vocab_size", 0, 1, 1 << 24);
    c->hidden = integer(r, "hidden_size", 0, 1, 1 << 20);
    c->intermediate = integer(r, "intermediate_size", 0, 1, 1 << 22);
    c->layers = integer(r, "num_hidden_layers", 0, 1, 4096);
    c->heads = integer(r, "num_attention_heads", 0, 1, 4096);
    c->kv_heads = integer(r, "num_key_value_heads", c->heads, 1, 4096);
    c->head_dim = integer(r, "head_dim", r->ok && c->hidden % c->heads == 0 ? c->hidden / c->heads : 0, 1, 1 << 14);
    c->max_positions = integer(r, "max_position_embeddings", 2048, 1, 1 << 28);
    c->eps = (float)number(r, r->root, "rms_norm_eps", 1e-6, 0, 1);
    if (r->ok && c->heads % c->kv_heads != 0)
        complain(r, "num_attention_heads", "must be a multiple of `num_key_value_heads`");
    if (r->ok && c->head_dim % 2 != 0)
        complain(r, "head_dim", "must be even, for rotary positions");
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
    const json_t *sliding = json_object_get(root, "sliding_window");
    if (r.ok && json_is_integer(sliding) && json_integer_value(sliding) < c.max_positions &&
        strcmp(c.model_type, "mistral") == 0)
        complain(&r, "sliding_window", "shorter than `max_position_embeddings` is not supported: attention here is full");
    c.tied = boolean(&r, "tie_word_embeddings");
    c.attention_bias = boolean(&r, "attention_bias");
    c.mlp_bias = boolean(&r, "mlp_bias");
    c.bos = token(&r, "bos_token_id");
    c.eos = token(&r, "eos_token_id");
    if (!r.ok) {
        json_decref(root);
        return false;
    }
    *out = c;
    *json = root;
    return true;
}

/* ----------------------------------------------------------------------------------------------- quantization_config */

/* Is every key of `want` in `have` with the same value, and does `have` say nothing else that changes the scheme? Keys
 * that only record how the numbers were found are passed over. */
static bool same_scheme(const json_t *have, const json_t *want)
{
    static const char *const known[] = {"num_bits", "type", "symmetric", "strategy", "group_size", "dynamic",
                                        "block_structure", "scale_dtype"};
    if (json_is_null(want) || !want)
        return !have || json_is_null(have);
    if (!json_is_object(have))
        return false;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const json_t *a = json_object_get(have, known[i]), *b = json_object_get(want, known[i]);
        bool a_default = !a || json_is_null(a) || (strcmp(known[i], "dynamic") == 0 && json_is_false(a));
        bool b_default = !b || json_is_null(b) || (strcmp(known[i], "dynamic") == 0 && json_is_false(b));
        if (strcmp(known[i], "symmetric") == 0) {
            a_default = a_default || json_is_true(a);
            b_default = b_default || json_is_true(b);
        }
        /* scale_dtype is absent in what older writers made. */
        if (a_default && (b_default || strcmp(known[i], "scale_dtype") == 0))
            continue;
        if (a_default != b_default || !json_equal(a, b))
            return false;
    }
    return true;
}

static const struct format *group_format(const json_t *group)
{
    const char *name = json_string_value(json_object_get(group, "format"));
    for (int i = 0; formats[i]; i++) {
        if (!formats[i]->group_format || (name && strcmp(name, formats[i]->group_format) != 0))
            continue;
        json_t *weights = json_loads(formats[i]->weights_json, 0, NULL);
        json_t *input = json_loads(formats[i]->input_json, JSON_DECODE_ANY, NULL);
        bool same = weights && same_scheme(json_object_get(group, "weights"), weights) &&
                    same_scheme(json_object_get(group, "input_activations"), input);
        json_decref(weights);
        json_decref(input);
        if (same)
            return formats[i];
    }
    return NULL;
}

static bool check_group(const json_t *group, const char *name, const char *dir, struct err *e)
{
    const json_t *targets = json_object_get(group, "targets");
    if (!group_format(group))
        return err_set(e, ERR_INPUT, "%s/config.json: quantization_config, group '%s': a scheme that is not known here",
                       dir, name);
    if (!json_is_array(targets))
        return err_set(e, ERR_INPUT, "%s/config.json: quantization_config, group '%s' has no array `targets`", dir, name);
    for (size_t i = 0; i < json_array_size(targets); i++) {
        const char *target = json_string_value(json_array_get(targets, i));
        if (!target || strncmp(target, "re:", 3) == 0 || !strchr(target, '.'))
            return err_set(e, ERR_INPUT, "%s/config.json: quantization_config, group '%s': target '%s' is no exact module "
                           "name; patterns and class names are not read", dir, name, target ? target : "(no text)");
    }
    return true;
}

bool config_check_quantization(const json_t *config, const char *dir, struct err *e)
{
    const json_t *q = json_object_get(config, "quantization_config");
    const char *method = json_string_value(json_object_get(q, "quant_method"));
    const char *name;
    const json_t *group;
    if (!q || json_is_null(q))
        return true;
    if (!method || strcmp(method, "compressed-tensors") != 0)
        return err_set(e, ERR_INPUT, "%s/config.json: quantized by '%s'; only compressed-tensors directories are read", dir,
                       method ? method : "an unnamed method");
    const json_t *groups = json_object_get(q, "config_groups");
    if (!json_is_object(groups))
        return err_set(e, ERR_INPUT, "%s/config.json: quantization_config has no object `config_groups`", dir);
    json_object_foreach((json_t *)groups, name, group) if (!check_group(group, name, dir, e)) return false;
    return true;
}

static bool lists(const json_t *names, const char *module)
{
    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *name = json_string_value(json_array_get(names, i));
        if (name && strcmp(name, module) == 0)
            return true;
    }
    return false;
}

bool config_stored_format(const json_t *config, const char *dir, const char *module, const struct format **out,
                          struct err *e)
{
    const json_t *q = json_object_get(config, "quantization_config"), *group;
    const char *name;
    const struct format *found = NULL;
    if (!q || json_is_null(q) || lists(json_object_get(q, "ignore"), module)) {
        *out = format_find("bf16");
        return true;
    }
    json_object_foreach(json_object_get(q, "config_groups"), name, group)
    {
        if (!lists(json_object_get(group, "targets"), module))
            continue;
        if (found)
            return err_set(e, ERR_INPUT, "%s/config.json: quantization_config: module '%s' is a target of two groups", dir,
                           module);
        found = group_format(group);
    }
    *out = found ? found : format_find("bf16");
    return true;
}
