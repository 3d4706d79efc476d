#include "nodes/inspect/origin.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "nodes/model/json.h"

#define RECIPE_LIMIT (256u << 20)
#define CONFIG_LIMIT (16u << 20)

/* ------------------------------------------------------------------------------------------------------- scout.json */

/* Does a result of type `quantize` in the recipe name one of these rounding methods? */
static bool has_rounding(const json_t *recipe, const char *const *methods)
{
    size_t i;
    const json_t *result;
    json_array_foreach(json_object_get(recipe, "recipe"), i, result) {
        const char *type = json_string_value(json_object_get(result, "type"));
        const char *rounding = json_string_value(json_object_get(json_object_get(result, "parameters"), "rounding"));
        for (const char *const *m = methods; type && rounding && strcmp(type, "quantize") == 0 && *m; m++)
            if (strstr(rounding, *m))
                return true;
    }
    return false;
}

static bool read_recipe(struct origin *o, const char *dir, struct report *r, struct err *e)
{
    char path[4096];
    struct err why = {0};
    snprintf(path, sizeof path, "%s/scout.json", dir);
    if (access(path, F_OK) != 0)
        return true;
    if (!json_load_file_strict(&o->recipe, path, RECIPE_LIMIT, &why)) {
        if (why.code == ERR_RESOURCE) {
            *e = why;
            return false;
        }
        report_error(r, 10, "scout.json", "one JSON object", "%s", why.text);
        return true;
    }
    o->digests = json_object_get(o->recipe, "source_tensors");
    if (!json_is_object(o->digests) || json_object_size(o->digests) == 0) {
        report_warning(r, 10, "scout.json", "an object `source_tensors`", "it has none to check copies by");
        o->digests = NULL;
    }
    o->is_rotated = has_rounding(o->recipe, (const char *const[]){"rotate", NULL});
    o->is_searched = o->is_rotated || has_rounding(o->recipe, (const char *const[]){"scale_search", "signround",
                                                                                     "block_match", "gptq", NULL});
    return true;
}

bool origin_open(struct origin *o, const char *dir, const char *source, struct report *r, struct err *e)
{
    char path[4096];
    struct err why = {0};
    *o = (struct origin){.dir = source};
    if (!read_recipe(o, dir, r, e))
        return false;
    if (!source)
        return true;
    if (!safetensors_open(&o->source, source, e)) {
        err_context(e, "--source");
        origin_close(o);
        return false;
    }
    snprintf(path, sizeof path, "%s/config.json", source);
    if (json_load_file_strict(&o->config, path, CONFIG_LIMIT, &why))
        return true;
    o->config = NULL;
    if (why.code != ERR_RESOURCE)
        return true; /* a source may have none: then nothing is compared with it */
    *e = why;
    origin_close(o);
    return false;
}

void origin_close(struct origin *o)
{
    safetensors_close(o->source);
    json_decref(o->config);
    json_decref(o->recipe);
    *o = (struct origin){0};
}

bool origin_knows(const struct origin *o) { return o->source || o->digests; }

bool origin_has(const struct origin *o, const char *name)
{
    return o->source ? safetensors_find(o->source, name) != NULL : json_object_get(o->digests, name) != NULL;
}

/* ------------------------------------------------------------------------------------------------------------ views */

/* "L.experts.7.gate_proj" is in "L.experts.gate_up_proj" [experts, 2 rows, columns], the gates' rows first;
 * down_proj in "L.experts.down_proj". */
void origin_fused_name(const struct module *x, char *out, size_t size)
{
    const char *last = module_last(x->name), *mark = strstr(x->name, ".experts.");
    bool is_gate = strcmp(last, "gate_proj") == 0 || strcmp(last, "up_proj") == 0;
    out[0] = '\0';
    if (x->expert >= 0 && mark && (is_gate || strcmp(last, "down_proj") == 0))
        snprintf(out, size, "%.*s.experts.%s", (int)(mark - x->name), x->name, is_gate ? "gate_up_proj" : "down_proj");
}

static bool is_float(const struct st_tensor *t)
{
    return t->dtype == DTYPE_BF16 || t->dtype == DTYPE_F16 || t->dtype == DTYPE_F32 || t->dtype == DTYPE_F64;
}

bool origin_view(const struct origin *o, const struct module *x, struct origin_view *out)
{
    char name[LONGEST_NAME + 64];
    if (!o->source)
        return false;
    snprintf(name, sizeof name, "%s.weight", x->name);
    const struct st_tensor *t = safetensors_find(o->source, name);
    if (t) {
        *out = (struct origin_view){t, 0, t->rank == 2 ? t->shape[0] : 0, t->rank == 2 ? t->shape[1] : 0};
        return t->rank == 2 && is_float(t);
    }
    origin_fused_name(x, name, sizeof name);
    t = name[0] ? safetensors_find(o->source, name) : NULL;
    if (!t || t->rank != 3 || !is_float(t) || x->expert >= t->shape[0])
        return false;
    bool halves = strcmp(module_last(name), "gate_up_proj") == 0, is_up = strcmp(module_last(x->name), "up_proj") == 0;
    int64_t rows = halves ? t->shape[1] / 2 : t->shape[1];
    *out = (struct origin_view){.tensor = t, .n = rows, .k = t->shape[2]};
    out->first = (uint64_t)(x->expert * t->shape[1] + (is_up ? rows : 0)) * (uint64_t)t->shape[2];
    return !halves || t->shape[1] % 2 == 0;
}
