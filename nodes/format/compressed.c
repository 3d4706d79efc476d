/* The quantization_config of an exported directory. The source's text is kept as it is, because a JSON writer would
 * respell its numbers; the new member is put before its closing brace. */
#include "nodes/format/compressed.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* The release of compressed-tensors whose rules we follow; informational for those who read it. */
#define CT_VERSION "0.17.0"

const char *compressed_writer(void)
{
    return "scout " SCOUT_VERSION;
}

/* How a module is named as a target. Servers rewrite exact names with a dot in them to their own; the head has none, and
 * is another module's part in some (export-formats 3.1). */
static const char *target(const char *name)
{
    return strcmp(name, "lm_head") == 0 ? "re:.*lm_head$" : name;
}

/* A new object for one group; NULL when out of memory. */
static json_t *group(const struct format *f, const struct compressed_module *modules, size_t n)
{
    json_t *targets = json_array();
    for (size_t i = 0; i < n; i++)
        if (modules[i].format == f)
            json_array_append_new(targets, json_string(target(modules[i].name)));
    return json_pack("{s:s, s:o, s:o, s:o, s:n}", "format", f->group_format, "targets", targets, "weights",
                     json_loads(f->weights_json, JSON_DECODE_ANY, NULL), "input_activations",
                     json_loads(f->input_json, JSON_DECODE_ANY, NULL), "output_activations");
}

static bool occurs(const struct format *f, const struct compressed_module *modules, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (modules[i].format == f)
            return true;
    return false;
}

/* The whole member's value; NULL when out of memory. *any says whether there is a group in it. */
static json_t *quantization_config(const struct compressed_module *modules, size_t n, bool *any)
{
    json_t *groups = json_object(), *ignore = json_array();
    const char *common = NULL;
    char name[24];
    int count = 0;
    for (const struct format *const *f = formats; *f; f++) {
        if (!(*f)->group_format || !occurs(*f, modules, n))
            continue;
        /* Two digits, because readers sort the names. */
        snprintf(name, sizeof name, "group_%02d", count);
        json_object_set_new(groups, name, group(*f, modules, n));
        common = count == 0 || strcmp(common, (*f)->group_format) == 0 ? (*f)->group_format : "mixed-precision";
        count++;
    }
    for (size_t i = 0; i < n; i++)
        if (!modules[i].format->group_format)
            json_array_append_new(ignore, json_string(modules[i].name));
    *any = count > 0;
    return json_pack("{s:s, s:s, s:s, s:s, s:n, s:n, s:{}, s:{}, s:o, s:o}", "quant_method", "compressed-tensors",
                     "format", count ? common : "dense", "quantization_status", "compressed", "version", CT_VERSION,
                     "global_compression_ratio", "kv_cache_scheme", "sparsity_config", "transform_config",
                     "config_groups", groups, "ignore", ignore);
}

/* The member names under which a model says that it is quantized. */
static bool check_source(const char *text, size_t n, const char *path, bool *is_empty, struct err *e)
{
    json_error_t why;
    json_t *source = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    if (!source)
        return err_set(e, ERR_INPUT, "%s:%d:%d: %s", path, why.line, why.column, why.text);
    const char *const names[] = {"quantization_config", "compression_config"};
    const json_t *inner = json_object_get(source, "text_config");
    const char *found = NULL;
    for (size_t i = 0; i < 2 && !found; i++)
        if (json_object_get(source, names[i]) || json_object_get(inner, names[i]))
            found = names[i];
    bool ok = json_is_object(source);
    *is_empty = json_object_size(source) == 0;
    json_decref(source);
    if (!ok)
        return err_set(e, ERR_INPUT, "%s: expected a JSON object", path);
    if (found)
        return err_set(e, ERR_INPUT, "%s has a %s: the model is quantized already; export wants the original one", path,
                       found);
    return true;
}

/* Append `json` (as json_dumps indents it) so that it reads as a member of an object indented by two. */
static void add_indented(struct str *out, const char *json)
{
    for (const char *line = json; *line;) {
        size_t n = strcspn(line, "\n");
        str_add_bytes(out, line, n);
        line += n;
        if (*line) {
            str_add(out, "\n  ");
            line++;
        }
    }
}

bool compressed_config(struct str *out, const char *text, size_t n, const char *path,
                       const struct compressed_module *modules, size_t n_modules, struct err *e)
{
    bool is_empty = false, any = false;
    if (!check_source(text, n, path, &is_empty, e))
        return false;
    json_t *value = quantization_config(modules, n_modules, &any);
    char *json = value ? json_dumps(value, JSON_INDENT(2)) : NULL;
    json_decref(value);
    if (!json)
        return err_set(e, ERR_RESOURCE, "out of memory for the quantization_config of %zu modules", n_modules);
    if (!any) {
        str_add_bytes(out, text, n);
    } else {
        while (text[n - 1] != '}')
            n--;
        n--; /* the closing brace of the outermost object */
        while (strchr(" \t\r\n", text[n - 1]))
            n--;
        str_add_bytes(out, text, n);
        str_add(out, is_empty ? "\n  \"quantization_config\": " : ",\n  \"quantization_config\": ");
        add_indented(out, json);
        str_add(out, "\n}\n");
    }
    free(json);
    return str_ok(out, e);
}
