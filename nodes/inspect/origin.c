#include "nodes/inspect/origin.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "nodes/inspect/sha.h"
#include "nodes/model/json.h"

#define RECIPE_LIMIT (256u << 20)
#define CONFIG_LIMIT (16u << 20)
#define SMALL ((uint64_t)1 << 20) /* bytes of a tensor that is hashed before anything else */
#define MOST_COMPARED 64

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
    o->is_searched = has_rounding(o->recipe, (const char *const[]){"scale_search", "signround", "block_match", "gptq",
                                                                   NULL});
    return true;
}

static bool has_result(const json_t *recipe, const char *wanted)
{
    size_t i;
    const json_t *result;
    json_array_foreach(json_object_get(recipe, "recipe"), i, result) {
        const char *type = json_string_value(json_object_get(result, "type"));
        if (type && strcmp(type, wanted) == 0)
            return true;
    }
    return false;
}

/* Does a tensor of the source have the digest that scout.json lists? True also when that cannot be told. */
static bool is_listed(const struct origin *o, const struct st_tensor *t)
{
    const char *digest = json_string_value(json_object_get(o->digests, t->name));
    unsigned char *bytes = NULL;
    char text[SHA_TEXT] = "";
    struct err e;
    if (!digest || t->bytes > SMALL || !mem_raw(&bytes, t->bytes + 1, NULL))
        return true;
    struct sha *hash = sha_new();
    bool read = hash && safetensors_read(o->source, t, 0, t->bytes, bytes, &e) && sha_add(hash, bytes, t->bytes);
    sha_end(hash, text);
    mem_free(bytes);
    return !read || strcmp(text, digest) == 0;
}

/* By the small tensors, since all of them would take long: is the source what scout.json says that it is? Most likely
 * not, where several differ; one may be a fault of scout.json. */
static void check_source(struct origin *o, struct report *r)
{
    const struct st_tensor *first = NULL;
    size_t n = 0, differ = 0;
    for (size_t i = 0; o->digests && i < o->source->n_tensors && n < MOST_COMPARED; i++) {
        const struct st_tensor *t = &o->source->tensors[i];
        if (t->bytes > SMALL || !json_object_get(o->digests, t->name))
            continue;
        n++;
        if (!is_listed(o, t)) {
            first = first ? first : t;
            differ++;
        }
    }
    if (differ < 2 && !(differ == 1 && n == 1))
        return;
    report_error(r, 8, first->name, "the SHA-256 that scout.json lists for the source's",
                 "--source is not what the checkpoint was made from%s",
                 has_result(o->recipe, "rotate") ? ": that was rotated first; give the rotated model" : "");
    safetensors_close(o->source);
    json_decref(o->config);
    o->source = NULL;
    o->config = NULL;
    o->dir = NULL;
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
    if (!json_load_file_strict(&o->config, path, CONFIG_LIMIT, &why)) {
        o->config = NULL; /* a source may have none: then nothing is compared with it */
        if (why.code == ERR_RESOURCE) {
            *e = why;
            origin_close(o);
            return false;
        }
    }
    check_source(o, r);
    return true;
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
