/* Check 1 against the source, and check 8: which tensors there are, and whether what is copied is copied to the bit. */
#include <stdio.h>
#include <string.h>

#include "nodes/inspect/checks.h"
#include "nodes/inspect/sha.h"

#define PIECE ((uint64_t)4 << 20)

/* ---------------------------------------------------------------------------------------------- every tensor, once */

/* Are the experts of a layer, of which the source has one tensor, here one by one? */
static bool has_experts(const struct subject *s, const char *name)
{
    char one[LONGEST_NAME + 64];
    const char *last = module_last(name);
    const int64_t prefix = last - name;
    int64_t experts = 1;
    bool halves = strcmp(last, "gate_up_proj") == 0;
    if (prefix < 9 || strncmp(last - 9, ".experts.", 9) != 0 || (!halves && strcmp(last, "down_proj") != 0))
        return false;
    if (s->origin.source) {
        const struct st_tensor *t = safetensors_find(s->origin.source, name);
        experts = t && t->rank == 3 ? t->shape[0] : 0;
    }
    for (int64_t e = 0; e < experts; e++)
        for (int half = 0; half < 1 + halves; half++) {
            snprintf(one, sizeof one, "%.*s%lld.%s", (int)prefix, name, (long long)e,
                     !halves ? "down_proj" : half ? "up_proj" : "gate_proj");
            if (!modules_find(&s->modules, one))
                return false;
        }
    return experts > 0;
}

static void account_source(struct subject *s, const char *name)
{
    char module[LONGEST_NAME + 1];
    size_t n = strlen(name);
    static const char end[] = ".weight";
    const json_t *tied = subject_setting(s, "tie_word_embeddings");
    if (files_find(&s->files, name) || n > LONGEST_NAME)
        return;
    if (strcmp(name, "lm_head.weight") == 0 && json_is_true(tied))
        return; /* loaders alias the embedding */
    if (n >= sizeof end && strcmp(name + n - (sizeof end - 1), end) == 0) {
        snprintf(module, sizeof module, "%.*s", (int)(n - (sizeof end - 1)), name);
        const struct module *x = modules_find(&s->modules, module);
        if (x && x->is_linear && x->stored.kind != SCHEME_PLAIN)
            return;
    }
    if (!has_experts(s, name))
        report_error(s->report, 1, name, "every tensor of the source, or what it is quantized to", "it is missing");
}

/* Where did a tensor of the checkpoint come from? */
static bool comes_from(const struct subject *s, const struct module *x, const struct st_entry *t)
{
    char name[LONGEST_NAME + 64];
    if (origin_has(&s->origin, t->name))
        return true;
    const char *last = module_last(t->name);
    if (s->quant.has_cache_scales && (strcmp(last, "k_scale") == 0 || strcmp(last, "v_scale") == 0))
        return true;
    if (!x->is_linear || t == x->param[PARAM_BIAS])
        return false;
    snprintf(name, sizeof name, "%s.weight", x->name);
    if (origin_has(&s->origin, name))
        return true; /* which tensors it may have is for the other checks */
    origin_fused_name(x, name, sizeof name);
    return name[0] && origin_has(&s->origin, name);
}

void check_accounts(struct subject *s)
{
    const char *name;
    const json_t *digest;
    if (!origin_knows(&s->origin)) {
        report_partly(s->report, 1, "without --source it is not known which tensors there should be");
        return;
    }
    for (size_t i = 0; s->origin.source && i < s->origin.source->n_tensors; i++)
        account_source(s, s->origin.source->tensors[i].name);
    json_object_foreach((json_t *)(s->origin.source ? NULL : s->origin.digests), name, digest)
    {
        account_source(s, name);
    }
    for (size_t i = 0; i < s->modules.n; i++) {
        const struct module *x = &s->modules.list[i];
        for (size_t k = 0; k < x->n_tensors; k++)
            if (!comes_from(s, x, x->tensors[k]))
                report_error(s->report, 1, x->tensors[k]->name, "tensors of the source, or of a scheme for one",
                             "the source has nothing that it stands for");
    }
}

/* -------------------------------------------------------------------------------------------------------- copies */

enum outcome { SAME, DIFFERS, DTYPE_DIFFERS, SHAPE_DIFFERS, DIGEST_DIFFERS, UNREADABLE, NO_MEMORY, NOT_COMPARED };

/* One tensor of the checkpoint that should be as in the source. */
struct copy {
    const struct st_entry *tensor;
    const struct st_tensor *source; /* NULL: not given */
    uint64_t first;                 /* byte in it */
    const char *digest;             /* NULL: not known */
    enum outcome outcome;
};

static bool same_shape(const struct copy *c)
{
    if (c->tensor->bytes != c->source->bytes) /* part of a tensor of all experts: its shape is checked elsewhere */
        return c->first + c->tensor->bytes <= c->source->bytes && c->tensor->rank == 2 && c->source->rank == 3;
    if (c->tensor->rank != c->source->rank)
        return false;
    for (int d = 0; d < c->tensor->rank; d++)
        if (c->tensor->shape[d] != c->source->shape[d])
            return false;
    return true;
}

/* Does the source's part equal these bytes? */
static enum outcome compare_piece(const struct subject *s, const struct copy *c, uint64_t at, uint64_t n,
                                  const unsigned char *have, unsigned char *other)
{
    struct err e;
    if (!safetensors_read(s->origin.source, c->source, c->first + at, n, other, &e))
        return UNREADABLE;
    return memcmp(have, other, n) == 0 ? SAME : DIFFERS;
}

/* `hash` is NULL when there is no digest to compare with; it is used up. */
static enum outcome compare(const struct subject *s, const struct copy *c, unsigned char *have, unsigned char *other,
                            struct sha **hash)
{
    char text[SHA_TEXT];
    struct err e;
    if (c->source && c->source->dtype != c->tensor->dtype)
        return DTYPE_DIFFERS;
    if (c->source && !same_shape(c))
        return SHAPE_DIFFERS;
    for (uint64_t at = 0; at < c->tensor->bytes; at += PIECE) {
        uint64_t n = c->tensor->bytes - at < PIECE ? c->tensor->bytes - at : PIECE;
        if (!files_read(&s->files, c->tensor, at, n, have, &e))
            return UNREADABLE;
        enum outcome o = c->source ? compare_piece(s, c, at, n, have, other) : SAME;
        if (o != SAME)
            return o;
        if (*hash && !sha_add(*hash, have, n))
            return NO_MEMORY;
    }
    if (!*hash)
        return SAME;
    sha_end(*hash, text);
    *hash = NULL;
    return strcmp(text, c->digest) == 0 ? SAME : DIGEST_DIFFERS;
}

static void compare_one(const struct subject *s, struct copy *c)
{
    unsigned char *have = NULL, *other = NULL;
    char ignored[SHA_TEXT];
    struct sha *hash = c->digest ? sha_new() : NULL;
    uint64_t n = c->tensor->bytes < PIECE ? c->tensor->bytes : PIECE;
    c->outcome = NO_MEMORY;
    if ((hash || !c->digest) && mem_raw(&have, n + 1, NULL) && mem_raw(&other, n + 1, NULL))
        c->outcome = compare(s, c, have, other, &hash);
    mem_free(have);
    mem_free(other);
    sha_end(hash, ignored);
}

/* Is this tensor a copy, and of what? */
static bool is_copy(const struct subject *s, const struct module *x, const struct st_entry *t, struct copy *c)
{
    struct origin_view view;
    *c = (struct copy){.tensor = t, .outcome = NOT_COMPARED};
    if (x->is_linear && x->stored.kind != SCHEME_PLAIN && t != x->param[PARAM_BIAS])
        return false;
    c->digest = json_string_value(json_object_get(s->origin.digests, t->name));
    if (s->origin.source)
        c->source = safetensors_find(s->origin.source, t->name);
    if (s->origin.source && !c->source && t == x->param[PARAM_WEIGHT] && origin_view(&s->origin, x, &view)) {
        c->source = view.tensor;
        c->first = view.first * dtype_bytes(view.tensor->dtype);
    }
    return t->usable && (c->source || c->digest);
}

static void tell(struct subject *s, const struct copy *c)
{
    static const char *const found[] = {
        [DIFFERS] = "its bytes differ from the source's",
        [DTYPE_DIFFERS] = "its dtype differs from the source's",
        [SHAPE_DIFFERS] = "its shape differs from the source's",
        [DIGEST_DIFFERS] = "its SHA-256 is not that of the source, which scout.json lists",
        [UNREADABLE] = "it cannot be read",
    };
    if (c->outcome != SAME && c->outcome < NO_MEMORY)
        report_error(s->report, 8, c->tensor->name, "a copy to the bit", "%s", found[c->outcome]);
}

bool check_copies(struct subject *s, struct err *e)
{
    struct copy *copies;
    int64_t n = 0;
    bool ok = true;
    if (!origin_knows(&s->origin)) {
        report_not_run(s->report, 8, "neither --source nor digests in scout.json");
        return true;
    }
    if (!mem_new(&copies, s->files.n_tensors + 1, e))
        return false;
    for (size_t i = 0; i < s->modules.n; i++)
        for (size_t k = 0; k < s->modules.list[i].n_tensors; k++)
            n += is_copy(s, &s->modules.list[i], s->modules.list[i].tensors[k], &copies[n]);
#pragma omp parallel for schedule(dynamic, 1) if (s->files.bytes > WORTH_THREADS)
    for (int64_t i = 0; i < n; i++)
        compare_one(s, &copies[i]);
    for (int64_t i = 0; i < n; i++) {
        tell(s, &copies[i]);
        ok = ok && copies[i].outcome != NO_MEMORY;
    }
    mem_free(copies);
    return ok || err_set(e, ERR_RESOURCE, "out of memory for comparing copied tensors");
}
