#include "nodes/inspect/modules.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nodes/inspect/files_private.h"

static const char *const param_names[N_PARAMS] = {
    [PARAM_WEIGHT] = "weight",
    [PARAM_PACKED] = "weight_packed",
    [PARAM_SCALE] = "weight_scale",
    [PARAM_GLOBAL_SCALE] = "weight_global_scale",
    [PARAM_INPUT_GLOBAL_SCALE] = "input_global_scale",
    [PARAM_SHAPE] = "weight_shape",
    [PARAM_BIAS] = "bias",
    [PARAM_ZERO_POINT] = "weight_zero_point",
    [PARAM_G_IDX] = "weight_g_idx",
    [PARAM_INPUT_SCALE] = "input_scale",
    [PARAM_INPUT_ZERO_POINT] = "input_zero_point",
    [PARAM_SCALE_INV] = "weight_scale_inv",
};

const char *param_name(enum param p) { return param_names[p]; }

/* What servers fuse: the last parts of the names, in the order of the shards (export-formats 5). */
static const struct fusion {
    const char *fused, *server_class;
    const char *shards[MOST_SHARDS];
    int n;
} fusions[] = {
    {"qkv_proj", "QKVParallelLinear", {"q_proj", "k_proj", "v_proj"}, 3},
    {"gate_up_proj", "MergedColumnParallelLinear", {"gate_proj", "up_proj"}, 2},
    {"in_proj_qkvz", "MergedColumnParallelLinear", {"in_proj_qkv", "in_proj_z"}, 2},
    {"in_proj_ba", "MergedColumnParallelLinear", {"in_proj_b", "in_proj_a"}, 2},
    {"fused_qkv_a_proj", "MergedColumnParallelLinear", {"q_a_proj", "kv_a_proj_with_mqa"}, 2},
    {"w13", "MergedColumnParallelLinear", {"w1", "w3"}, 2},
};
enum { N_FUSIONS = sizeof fusions / sizeof *fusions };

int natural_order(const char *a, const char *b)
{
    while (*a && *b) {
        if (isdigit((unsigned char)*a) && isdigit((unsigned char)*b)) {
            const char *x = a + strspn(a, "0"), *y = b + strspn(b, "0");
            size_t n = strspn(x, "0123456789"), m = strspn(y, "0123456789");
            int order = n != m ? (n < m ? -1 : 1) : strncmp(x, y, n);
            if (order)
                return order;
            a = x + n;
            b = y + m;
        } else if (*a != *b) {
            return (unsigned char)*a < (unsigned char)*b ? -1 : 1;
        } else {
            a++;
            b++;
        }
    }
    return (*a != '\0') - (*b != '\0');
}

const char *module_last(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

/* ---------------------------------------------------------------------------------------------------------- modules */

struct piece {
    const struct st_entry *tensor;
    const char *module; /* its name without the last part */
};

static int by_module(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    int order = natural_order(x->module, y->module);
    order = order ? order : strcmp(x->module, y->module);
    return order ? order : strcmp(x->tensor->name, y->tensor->name);
}

/* Tables of embeddings are matrices, too; names tell. */
static bool is_embedding(const char *name)
{
    static const char *const known[] = {"wte", "wpe", "shared", "relative_attention_bias"};
    const char *last = module_last(name);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(last, known[i]) == 0)
            return true;
    return strstr(last, "embed") != NULL;
}

/* ".experts.17." in a name: 17, and where its layer's name ends; -1 when there is none. */
static int64_t expert_of(const char *name, size_t *layer)
{
    static const char mark[] = ".experts.";
    const char *at = strstr(name, mark);
    if (!at)
        return -1;
    const char *number = at + strlen(mark);
    size_t n = strspn(number, "0123456789");
    if (n == 0 || n > 9 || number[n] != '.')
        return -1;
    *layer = (size_t)(at - name) + strlen(".experts");
    return strtoll(number, NULL, 10);
}

static void finish_module(struct module *x)
{
    static const enum param quantized[] = {PARAM_PACKED, PARAM_SCALE, PARAM_GLOBAL_SCALE, PARAM_SHAPE};
    size_t layer;
    bool has_codes = false;
    for (size_t i = 0; i < sizeof quantized / sizeof *quantized; i++)
        has_codes = has_codes || x->param[quantized[i]];
    bool is_matrix = x->param[PARAM_WEIGHT] && x->param[PARAM_WEIGHT]->rank == 2;
    x->is_embedding = is_matrix && !has_codes && is_embedding(x->name);
    x->is_linear = (is_matrix || has_codes) && !x->is_embedding;
    x->expert = x->is_linear ? expert_of(x->name, &layer) : -1;
    x->claimed.kind = SCHEME_PLAIN;
    for (size_t i = 0; i < x->n_tensors; i++)
        if (x->tensors[i] != x->param[PARAM_BIAS])
            x->bytes += x->tensors[i]->bytes;
}

static bool add_module(struct modules *m, const struct piece *pieces, size_t n, struct err *e)
{
    if (!mem_grow_by_one(&m->list, m->n, e))
        return false;
    struct module *x = &m->list[m->n];
    *x = (struct module){.name = pieces[0].module, .n_tensors = n};
    x->tensors = arena_new(&m->arena, n * sizeof *x->tensors, e);
    if (!x->tensors)
        return false;
    for (size_t i = 0; i < n; i++) {
        x->tensors[i] = pieces[i].tensor;
        for (int p = 0; p < N_PARAMS; p++)
            if (strcmp(module_last(pieces[i].tensor->name), param_names[p]) == 0)
                x->param[p] = pieces[i].tensor;
    }
    finish_module(x);
    m->n++;
    return true;
}

/* Neighbours mostly share their module's name. */
static bool split_names(struct modules *m, const struct files *f, struct piece *pieces, struct err *e)
{
    const char *last = "";
    for (size_t i = 0; i < f->n_tensors; i++) {
        const char *name = f->tensors[i].name, *dot = strrchr(name, '.');
        size_t n = dot ? (size_t)(dot - name) : 0;
        if (strlen(last) != n || strncmp(last, name, n) != 0)
            last = arena_strndup(&m->arena, name, n, e);
        if (!last)
            return false;
        pieces[i] = (struct piece){&f->tensors[i], last};
        m->is_vision = m->is_vision || strncmp(name, "model.language_model.", 21) == 0;
    }
    return true;
}

/* ------------------------------------------------------------------------------------------------------------ units */

struct member {
    const char *unit;
    size_t module;
    int fusion, shard; /* -1: none */
};

static int by_unit(const void *a, const void *b)
{
    const struct member *x = a, *y = b;
    int order = strcmp(x->unit, y->unit);
    if (order)
        return order;
    if (x->shard != y->shard)
        return x->shard < y->shard ? -1 : 1;
    return (x->module > y->module) - (x->module < y->module);
}

static int by_first(const void *a, const void *b)
{
    const struct module_unit *x = a, *y = b;
    return (x->modules[0] > y->modules[0]) - (x->modules[0] < y->modules[0]);
}

/* The unit that a module's name asks for. */
static bool name_unit(struct modules *m, size_t module, struct member *out, struct err *e)
{
    const char *name = m->list[module].name, *last = module_last(name);
    size_t layer = 0;
    *out = (struct member){.unit = name, .module = module, .fusion = -1, .shard = -1};
    if (m->list[module].expert >= 0) {
        expert_of(name, &layer);
        out->unit = arena_strndup(&m->arena, name, layer, e);
        return out->unit != NULL;
    }
    for (int i = 0; i < N_FUSIONS; i++)
        for (int s = 0; s < fusions[i].n; s++)
            if (strcmp(last, fusions[i].shards[s]) == 0) {
                out->fusion = i;
                out->shard = s;
                out->unit = arena_printf(&m->arena, e, "%.*s%s", (int)(last - name), name, fusions[i].fused);
                return out->unit != NULL;
            }
    return true;
}

static bool is_below(const char *name, const char *const *parts)
{
    for (; *parts; parts++)
        if (strstr(name, *parts))
            return true;
    return false;
}

bool module_unit_counts(const struct modules *m, const struct module_unit *u)
{
    static const char *const outside[] = {"visual.", "vision", "audio", NULL};
    static const char *const routers[] = {"gate", "router", "shared_expert_gate", NULL};
    const struct module *x = &m->list[u->modules[0]];
    const char *last = module_last(u->name);
    if (x->stored.kind != SCHEME_PLAIN)
        return true;
    for (const char *const *r = routers; *r; r++)
        if (strcmp(last, *r) == 0)
            return false;
    return strcmp(last, "lm_head") != 0 && strncmp(u->name, "mtp.", 4) != 0 && !is_below(u->name, outside);
}

static const char *class_of(const struct modules *m, const struct module_unit *u, int fusion)
{
    static const char *const rows[] = {"o_proj", "down_proj", "out_proj", "w2", "c_proj", "dense_4h_to_h", NULL};
    const char *last = module_last(m->list[u->modules[0]].name);
    if (u->kind == UNIT_EXPERTS)
        return "FusedMoELinear"; /* servers look for "Linear" among the targets of a layer of experts, too */
    if (u->kind == UNIT_FUSED)
        return fusions[fusion].server_class;
    if (strcmp(last, "lm_head") == 0)
        return "ParallelLMHead";
    for (const char *const *r = rows; *r; r++)
        if (strcmp(last, *r) == 0)
            return "RowParallelLinear";
    return "ColumnParallelLinear";
}

static bool add_unit(struct modules *m, const struct member *members, size_t n, struct err *e)
{
    if (!mem_grow_by_one(&m->units, m->n_units, e))
        return false;
    struct module_unit *u = &m->units[m->n_units];
    const struct module *x = &m->list[members[0].module];
    bool is_fused = members[0].fusion >= 0 && n > 1;
    *u = (struct module_unit){.name = members[0].unit, .n_modules = n,
                              .kind = x->expert >= 0 ? UNIT_EXPERTS : is_fused ? UNIT_FUSED : UNIT_SINGLE};
    if (u->kind == UNIT_SINGLE)
        u->name = x->name;
    u->modules = arena_new(&m->arena, n * sizeof *u->modules, e);
    if (!u->modules)
        return false;
    for (size_t i = 0; i < n; i++)
        u->modules[i] = members[i].module;
    u->server_class = class_of(m, u, members[0].fusion);
    m->n_units++;
    return true;
}

static bool make_units(struct modules *m, struct err *e)
{
    struct member *members;
    size_t n = 0;
    if (!mem_new(&members, m->n + 1, e))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < m->n; i++)
        if (m->list[i].is_linear)
            ok = name_unit(m, i, &members[n++], e);
    if (ok && n > 0)
        qsort(members, n, sizeof *members, by_unit);
    for (size_t i = 0, end; ok && i < n; i = end) {
        for (end = i + 1; end < n && strcmp(members[end].unit, members[i].unit) == 0;)
            end++;
        /* A layer may be called as a group of others would be: then it is one for itself. */
        if (members[i].shard < 0 && end - i > 1 && m->list[members[i].module].expert < 0)
            end = i + 1;
        ok = add_unit(m, members + i, end - i, e);
    }
    mem_free(members);
    if (ok && m->n_units > 0)
        qsort(m->units, m->n_units, sizeof *m->units, by_first);
    for (size_t u = 0; ok && u < m->n_units; u++) {
        for (size_t i = 0; i < m->units[u].n_modules; i++)
            m->list[m->units[u].modules[i]].unit = u;
    }
    return ok;
}

bool modules_new(struct modules *m, const struct files *f, struct err *e)
{
    struct piece *pieces;
    *m = (struct modules){0};
    if (!mem_new(&pieces, f->n_tensors + 1, e))
        return false;
    bool ok = split_names(m, f, pieces, e);
    if (ok && f->n_tensors > 0)
        qsort(pieces, f->n_tensors, sizeof *pieces, by_module);
    for (size_t i = 0, end; ok && i < f->n_tensors; i = end) {
        for (end = i + 1; end < f->n_tensors && strcmp(pieces[end].module, pieces[i].module) == 0;)
            end++;
        ok = add_module(m, pieces + i, end - i, e);
    }
    mem_free(pieces);
    ok = ok && make_units(m, e);
    if (!ok)
        modules_free(m);
    return ok;
}

void modules_free(struct modules *m)
{
    mem_free(m->list);
    mem_free(m->units);
    arena_free(&m->arena);
    *m = (struct modules){0};
}

struct module *modules_find(const struct modules *m, const char *name)
{
    size_t low = 0, high = m->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = natural_order(m->list[middle].name, name);
        order = order ? order : strcmp(m->list[middle].name, name);
        if (order == 0)
            return &m->list[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}
