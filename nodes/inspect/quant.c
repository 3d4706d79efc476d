/* Reading and judging quantization_config: the rules that compressed-tensors enforces when it parses one, and those
 * that servers add (export-formats 3). Which scheme follows from a group is in quant_scheme.c. */
#include "nodes/inspect/quant.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MOST_NAMES 4000000

struct reading {
    struct report *report;
    struct arena *arena;
    struct err *e;
    char place[300]; /* of what is being read */
    bool ok;         /* false: memory is out */
};

static bool is_absent(const json_t *x) { return !x || json_is_null(x); }

static const char *shown(const json_t *x, char out[64])
{
    char *text = json_dumps(x, JSON_ENCODE_ANY | JSON_COMPACT);
    snprintf(out, 64, "%.60s", text ? text : "missing");
    free(text);
    return out;
}

/* A value that cannot be; its member's name and the expected. */
static void wrong(struct reading *x, const char *key, const json_t *value, const char *expected)
{
    char text[64];
    report_error(x->report, 9, x->place, expected, "`%s` is %s", key, shown(value, text));
}

/* ------------------------------------------------------------------------------------------------- args of a scheme */

static const char *const arg_keys[] = {"num_bits", "type", "symmetric", "group_size", "strategy", "block_structure",
                                       "dynamic", "actorder", "scale_dtype", "zp_dtype", "observer",
                                       "observer_kwargs", NULL};

static void check_keys(struct reading *x, const json_t *object, const char *const *known, const char *expected)
{
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        size_t i = 0;
        while (known[i] && strcmp(known[i], key) != 0)
            i++;
        if (!known[i])
            report_error(x->report, 9, x->place, expected, "an unknown key `%s`", key);
    }
}

/* The index of a text in a list without regard to case; -1 when it is none of them. */
static int choice(const json_t *value, const char *const *names)
{
    const char *text = json_string_value(value);
    for (int i = 0; text && names[i]; i++)
        if (strcasecmp(text, names[i]) == 0)
            return i;
    return -1;
}

static void read_strategy(struct reading *x, const json_t *object, struct quant_args *a)
{
    static const char *const names[] = {"tensor", "channel", "group", "block", "token", "tensor_group", "attn_head",
                                        NULL};
    const json_t *value = json_object_get(object, "strategy");
    if (is_absent(value)) {
        a->strategy = a->group == 0 ? STRATEGY_TENSOR : a->group > 0 ? STRATEGY_GROUP : STRATEGY_CHANNEL;
        return;
    }
    int which = choice(value, names);
    if (which < 0)
        wrong(x, "strategy", value, "tensor, channel, group, block, token, tensor_group or attn_head");
    else
        a->strategy = (enum quant_strategy)which;
}

static void read_block(struct reading *x, const json_t *value, struct quant_args *a)
{
    const json_t *rows = json_array_get(value, 0), *columns = json_array_get(value, 1);
    const char *text = json_string_value(value);
    int r = 0, c = 0, end = 0;
    if (is_absent(value))
        return;
    if (json_array_size(value) == 2 && json_is_integer(rows) && json_is_integer(columns)) {
        a->block[0] = json_integer_value(rows);
        a->block[1] = json_integer_value(columns);
    } else if (text && strlen(text) < 24 && sscanf(text, "%9dx%9d%n", &r, &c, &end) == 2 && !text[end]) {
        a->block[0] = r;
        a->block[1] = c;
    }
    if (a->block[0] <= 0 || a->block[1] <= 0)
        wrong(x, "block_structure", value, "[rows, columns], both positive");
}

static void read_dynamic(struct reading *x, const json_t *value, struct quant_args *a)
{
    static const char *const names[] = {"local", NULL};
    if (json_is_boolean(value))
        a->dynamic = json_is_true(value) ? DYNAMIC_YES : DYNAMIC_NO;
    else if (choice(value, names) == 0)
        a->dynamic = DYNAMIC_LOCAL;
    else if (value)
        wrong(x, "dynamic", value, "true, false or \"local\"");
}

static void read_order(struct reading *x, const json_t *value, struct quant_args *a, bool is_input)
{
    static const char *const names[] = {"weight", "static", "group", "dynamic", NULL};
    if (is_absent(value) || json_is_false(value))
        return;
    int which = json_is_true(value) ? 2 : choice(value, names);
    if (which < 0)
        wrong(x, "actorder", value, "weight, static, group, dynamic or null");
    else if (is_input)
        wrong(x, "actorder", value, "null: inputs have no order");
    a->reorders = which >= 2;
}

/* scale_dtype and zp_dtype are "torch.uint8" or "uint8". */
static void read_dtype(struct reading *x, const json_t *object, const char *key, bool *is_u8)
{
    const json_t *value = json_object_get(object, key);
    const char *text = json_string_value(value);
    if (is_absent(value))
        return;
    if (!text) {
        wrong(x, key, value, "the name of a dtype, or null");
        return;
    }
    text += strncmp(text, "torch.", 6) == 0 ? 6 : 0;
    *is_u8 = strcmp(text, "uint8") == 0;
}

/* What the parts demand of each other. */
static void check_args(struct reading *x, const struct quant_args *a, const json_t *observer)
{
    bool grouped = a->strategy == STRATEGY_GROUP || a->strategy == STRATEGY_TENSOR_GROUP;
    if (a->bits < 1 || a->bits > 32)
        report_error(x->report, 9, x->place, "from 1 to 32", "`num_bits` is %lld", (long long)a->bits);
    if (grouped && a->group <= 0)
        report_error(x->report, 9, x->place, "a positive `group_size`", "a strategy by groups with group_size %lld",
                     (long long)a->group);
    if (!grouped && a->group > 0)
        report_error(x->report, 9, x->place, "strategy group or tensor_group", "`group_size` %lld with another one",
                     (long long)a->group);
    if ((a->strategy == STRATEGY_BLOCK) != (a->block[0] > 0 && a->block[1] > 0))
        report_error(x->report, 9, x->place, "`block_structure` with strategy block, and only then", "%s",
                     a->strategy == STRATEGY_BLOCK ? "strategy block without it" : "it stands with another strategy");
    if (a->strategy == STRATEGY_TOKEN && a->dynamic == DYNAMIC_NO)
        report_error(x->report, 9, x->place, "`dynamic` true", "strategy token without it");
    if (a->dynamic == DYNAMIC_LOCAL && a->strategy != STRATEGY_TENSOR_GROUP)
        report_error(x->report, 9, x->place, "strategy tensor_group", "`dynamic` is \"local\" with another one");
    if (a->dynamic == DYNAMIC_YES && (a->strategy == STRATEGY_CHANNEL || a->strategy == STRATEGY_BLOCK ||
                                      a->strategy == STRATEGY_ATTN_HEAD))
        report_error(x->report, 9, x->place, "strategy token, tensor, group or tensor_group",
                     "`dynamic` is true with another one");
    if (a->dynamic == DYNAMIC_YES && !is_absent(observer))
        report_warning(x->report, 9, x->place, "`observer` null where `dynamic` is true", "an observer is named");
}

static void read_args(struct reading *x, const json_t *value, struct quant_args *a, bool is_input)
{
    static const char *const types[] = {"int", "float", NULL};
    const json_t *bits = json_object_get(value, "num_bits"), *type = json_object_get(value, "type");
    const json_t *symmetric = json_object_get(value, "symmetric"), *group = json_object_get(value, "group_size");
    const json_t *kwargs = json_object_get(value, "observer_kwargs"), *observer = json_object_get(value, "observer");
    bool ignored = false;
    *a = (struct quant_args){.bits = 8, .is_symmetric = true};
    if (is_absent(value))
        return;
    if (!json_is_object(value)) {
        report_error(x->report, 9, x->place, "an object or null", "it is neither");
        return;
    }
    a->is_there = true;
    check_keys(x, value, arg_keys, "the keys that compressed-tensors has: others are refused");
    if (bits && !json_is_integer(bits))
        wrong(x, "num_bits", bits, "an integer");
    a->bits = json_is_integer(bits) ? json_integer_value(bits) : 8;
    if (type && choice(type, types) < 0)
        wrong(x, "type", type, "\"int\" or \"float\"");
    a->is_float = choice(type, types) == 1;
    if (symmetric && !json_is_boolean(symmetric))
        wrong(x, "symmetric", symmetric, "true or false");
    a->is_symmetric = !symmetric || json_is_true(symmetric);
    if (!is_absent(group) && (!json_is_integer(group) || json_integer_value(group) < -1 ||
                              json_integer_value(group) == 0 || json_integer_value(group) > INT_MAX))
        wrong(x, "group_size", group, "a positive integer, -1 or null");
    else if (!is_absent(group))
        a->group = json_integer_value(group);
    if (!is_absent(observer) && !json_is_string(observer))
        wrong(x, "observer", observer, "a text or null");
    if (kwargs && !json_is_object(kwargs))
        wrong(x, "observer_kwargs", kwargs, "an object");
    read_block(x, json_object_get(value, "block_structure"), a);
    read_strategy(x, value, a);
    read_dynamic(x, json_object_get(value, "dynamic"), a);
    read_order(x, json_object_get(value, "actorder"), a, is_input);
    read_dtype(x, value, "scale_dtype", &a->has_u8_scale);
    read_dtype(x, value, "zp_dtype", &ignored);
    check_args(x, a, observer);
}

/* ------------------------------------------------------------------------------------------------------- the groups */

/* An array of texts into the arena; what is no text is told and left out. */
static void read_names(struct reading *x, const json_t *value, const char *key, const char ***out, size_t *n)
{
    size_t i, total = json_array_size(value);
    const json_t *one;
    *n = 0;
    if (!json_is_array(value) || total > MOST_NAMES) {
        wrong(x, key, json_is_array(value) ? NULL : value, "an array of at most 4,000,000 texts");
        return;
    }
    *out = arena_new(x->arena, (total + 1) * sizeof **out, x->e);
    if (!*out) {
        x->ok = false;
        return;
    }
    json_array_foreach(value, i, one) {
        if (!json_is_string(one)) {
            wrong(x, key, one, "texts only");
            continue;
        }
        (*out)[*n] = arena_strdup(x->arena, json_string_value(one), x->e);
        if (!(*out)[(*n)++])
            x->ok = false;
    }
}

/* The formats that a group may name. */
static bool is_format(const char *name, bool in_group)
{
    static const char *const names[] = {"dense", "int-quantized", "float-quantized", "naive-quantized",
                                        "pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized",
                                        "mxfp8-quantized", "sparse-bitmask", "sparse-24-bitmask", "marlin-24"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return !in_group && strcmp(name, "mixed-precision") == 0;
}

static const char *read_format(struct reading *x, const json_t *group, const char *overall)
{
    const json_t *value = json_object_get(group, "format");
    const char *name = json_string_value(value);
    if (is_absent(value)) {
        if (!overall || strcmp(overall, "mixed-precision") == 0) {
            report_error(x->report, 9, x->place, "a `format`, since there is no common one", "there is none");
            return NULL;
        }
        name = overall;
    } else if (!name || !is_format(name, true)) {
        wrong(x, "format", value, "a format of compressed-tensors, not mixed-precision");
        return NULL;
    }
    const char *copy = arena_strdup(x->arena, name, x->e);
    x->ok = x->ok && copy;
    return copy;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* What servers make of it. */
static void judge_group(struct reading *x, struct quant_group *g)
{
    const char *why = NULL;
    char name[40];
    g->scheme = quant_scheme(g, &why);
    if (g->scheme.kind == SCHEME_NONE)
        report_error(x->report, 9, x->place, "a scheme that servers have", "%s", why);
    else if (g->scheme.kind == SCHEME_OTHER)
        report_warning(x->report, 9, x->place, "a scheme that is validated here", "%s: its tensors are not validated",
                       why);
    else if (g->format && strcmp(g->format, scheme_format(&g->scheme)) != 0)
        report_error(x->report, 9, x->place, scheme_format(&g->scheme), "format %s for scheme %s", g->format,
                     scheme_name(&g->scheme, name));
    if (g->scheme.kind == SCHEME_NVFP4 && g->input.is_there && g->input.dynamic != DYNAMIC_LOCAL)
        report_error(x->report, 9, x->place, "`dynamic`: \"local\" on input_activations",
                     "W4A4 inputs without it: their global scale is static, those of blocks are not");
}

static void read_group(struct reading *x, const char *name, const json_t *value, const char *overall,
                       struct quant_group *g)
{
    static const char *const keys[] = {"targets", "weights", "input_activations", "output_activations", "format",
                                       NULL};
    *g = (struct quant_group){.name = arena_strdup(x->arena, name, x->e), .scheme = {.kind = SCHEME_NONE}};
    x->ok = x->ok && g->name;
    snprintf(x->place, sizeof x->place, "config_groups.%.200s", name);
    if (!json_is_object(value)) {
        report_error(x->report, 9, x->place, "an object", "it is %s", json_is_array(value) ? "the name of a preset, "
                     "which servers do not read" : "none");
        return;
    }
    check_keys(x, value, keys, "targets, weights, input_activations, output_activations and format");
    read_names(x, json_object_get(value, "targets"), "targets", &g->targets, &g->n_targets);
    if (g->n_targets == 0 && json_is_array(json_object_get(value, "targets")))
        report_error(x->report, 9, x->place, "targets", "the group has none");
    g->format = read_format(x, value, overall);
    if (!is_absent(json_object_get(value, "output_activations")))
        report_warning(x->report, 9, x->place, "null", "`output_activations`: servers do not quantize outputs");
    snprintf(x->place, sizeof x->place, "config_groups.%.200s.weights", name);
    read_args(x, json_object_get(value, "weights"), &g->weights, false);
    snprintf(x->place, sizeof x->place, "config_groups.%.200s.input_activations", name);
    read_args(x, json_object_get(value, "input_activations"), &g->input, true);
    snprintf(x->place, sizeof x->place, "config_groups.%.200s", name);
    if (x->ok && g->n_targets == 1 && ends_with(g->targets[0], "Attention"))
        g->scheme.kind = SCHEME_OTHER; /* about attention, and passed over by servers */
    else if (x->ok)
        judge_group(x, g);
}

/* The overall `format` against those of the groups. */
static void check_format(struct reading *x, const struct quant *q, const json_t *value)
{
    const char *overall = json_string_value(value), *common = NULL;
    bool mixed = false;
    for (size_t i = 0; i < q->n_groups; i++) {
        const char *format = q->groups[i].format;
        mixed = mixed || (common && format && strcmp(common, format) != 0);
        common = format ? format : common;
    }
    if (!common)
        return;
    const char *expected = mixed ? "mixed-precision" : common;
    if (!overall || !is_format(overall, false))
        wrong(x, "format", value, expected);
    else if (strcmp(overall, expected) != 0)
        report_warning(x->report, 9, x->place, expected, "`format` is %s", overall);
}

static void read_groups(struct reading *x, struct quant *q, const json_t *config)
{
    const json_t *groups = json_object_get(config, "config_groups"), *value;
    const char *name, *overall = json_string_value(json_object_get(config, "format")), *last = NULL;
    if (!json_is_object(groups)) {
        wrong(x, "config_groups", groups, "an object");
        q->is_complete = false;
        return;
    }
    size_t n = json_object_size(groups);
    if (n == 0)
        report_warning(x->report, 9, x->place, "at least one group", "`config_groups` is empty");
    q->groups = arena_new(x->arena, (n + 1) * sizeof *q->groups, x->e);
    x->ok = q->groups != NULL;
    json_object_foreach((json_t *)groups, name, value)
    {
        if (!x->ok)
            return;
        if (last && strcmp(last, name) > 0)
            report_warning(x->report, 9, "config_groups", "names in the order of their groups, such as group_00: "
                           "compressed-tensors writes them sorted", "'%s' stands behind '%s'", name, last);
        last = name;
        read_group(x, name, value, overall, &q->groups[q->n_groups++]);
    }
}

/* --------------------------------------------------------------------------------------------------------- the rest */

/* Null, or 8-bit floats per tensor or attention head. */
static void check_cache(struct reading *x, struct quant *q, const json_t *value)
{
    struct quant_args a;
    if (is_absent(value))
        return;
    q->has_cache_scales = true;
    snprintf(x->place, sizeof x->place, "kv_cache_scheme");
    read_args(x, value, &a, false);
    if (a.is_there && (a.bits != 8 || !a.is_float || !a.is_symmetric || a.dynamic != DYNAMIC_NO ||
                       (a.strategy != STRATEGY_TENSOR && a.strategy != STRATEGY_ATTN_HEAD)))
        report_error(x->report, 9, x->place, "null, or static symmetric 8-bit floats per tensor", "another scheme");
}

static void check_overall(struct reading *x, const json_t *config)
{
    const json_t *status = json_object_get(config, "quantization_status");
    const json_t *sparsity = json_object_get(config, "sparsity_config");
    const json_t *transform = json_object_get(config, "transform_config");
    const char *text = json_string_value(status), *sparse = json_string_value(json_object_get(sparsity, "format"));
    if (is_absent(status))
        report_warning(x->report, 9, x->place, "\"compressed\"", "there is no `quantization_status`");
    else if (!text || strcmp(text, "compressed") != 0)
        wrong(x, "quantization_status", status, "\"compressed\": others are read as if they were not");
    if (json_object_size(sparsity) > 0 && !(sparse && strcmp(sparse, "dense") == 0))
        report_error(x->report, 9, x->place, "no `sparsity_config`: servers refuse it, or it is not validated here",
                     "there is one");
    if (!is_absent(transform) && json_object_size(transform) > 0)
        report_warning(x->report, 9, x->place, "no `transform_config`: what it does is not validated here",
                       "there is one");
}

/* The object, by where servers look for it; NULL when the model is not quantized. */
static const json_t *find_config(struct reading *x, const json_t *config)
{
    const json_t *top = json_object_get(config, "quantization_config");
    const json_t *inner = json_object_get(json_object_get(config, "text_config"), "quantization_config");
    const json_t *old = json_object_get(config, "compression_config");
    if (!is_absent(top))
        return top;
    if (!is_absent(inner)) {
        report_warning(x->report, 9, "config.json", "`quantization_config` at the top level",
                       "it stands in `text_config`");
        return inner;
    }
    if (!is_absent(old))
        report_warning(x->report, 9, "config.json", "`quantization_config`", "the older `compression_config`");
    return is_absent(old) ? NULL : old;
}

bool quant_read(struct quant *q, const json_t *config, struct arena *arena, struct report *r, struct err *e)
{
    struct reading x = {.report = r, .arena = arena, .e = e, .place = "quantization_config", .ok = true};
    *q = (struct quant){.is_complete = true};
    const json_t *value = find_config(&x, config);
    const json_t *method = json_object_get(value, "quant_method"), *ignore = json_object_get(value, "ignore");
    if (!value)
        return true;
    if (!json_is_object(value)) {
        wrong(&x, "quantization_config", value, "an object");
        return true;
    }
    if (!json_is_string(method) || strcmp(json_string_value(method), "compressed-tensors") != 0) {
        wrong(&x, "quant_method", method, "\"compressed-tensors\": only that is validated here");
        return true;
    }
    q->is_there = true;
    check_overall(&x, value);
    read_groups(&x, q, value);
    snprintf(x.place, sizeof x.place, "quantization_config");
    if (x.ok)
        check_format(&x, q, json_object_get(value, "format"));
    if (x.ok && !is_absent(ignore))
        read_names(&x, ignore, "ignore", &q->ignore, &q->n_ignore);
    if (x.ok)
        check_cache(&x, q, json_object_get(value, "kv_cache_scheme"));
    return x.ok;
}
