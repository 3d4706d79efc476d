#include "nodes/model/tokens.h"

#include <stdio.h>
#include <string.h>

static bool check(const struct token_set *t, const struct input *in, struct err *e)
{
    for (uint32_t w = 0; w < t->n; w++)
        if (t->length[w] < 2 || t->length[w] > (int32_t)t->window)
            return err_set(e, ERR_INPUT, "%s.%s: window %u has length %d, expected 2 to %u", in->node, in->output, w,
                           t->length[w], t->window);
    return true;
}

static bool digest(struct token_set *t, struct err *e)
{
    struct key_hash *h;
    struct key k;
    if (!key_hash_new(&h, e))
        return false;
    key_hash_int(h, t->window);
    key_hash_bytes(h, t->ids, (size_t)t->n * t->window * sizeof *t->ids);
    key_hash_bytes(h, t->length, t->n * sizeof *t->length);
    if (!key_hash_end(h, &k, e))
        return false;
    key_text(&k, t->digest);
    return true;
}

bool tokens_read(struct token_set *out, const struct input *in, struct err *e)
{
    struct token_set t = {0};
    char name[128];
    uint64_t n_length, n_document;
    snprintf(name, sizeof name, "%s/tokens", in->output);
    const struct dataset *d = object_dataset(in->object, name);
    if (!d || d->rank != 2)
        return err_set(e, ERR_INPUT, "node '%s' has no token set '%s'%s", in->node, in->output,
                       strcmp(in->output, "probe") == 0 ? ": give it a parameter `probe` above 0" : "");
    t.n = (uint32_t)d->shape[0];
    t.window = (uint32_t)d->shape[1];
    if (!object_load(in->object, name, DTYPE_I32, &t.ids, NULL, e))
        return false;
    snprintf(name, sizeof name, "%s/length", in->output);
    if (!object_load(in->object, name, DTYPE_I32, &t.length, &n_length, e))
        goto fail;
    snprintf(name, sizeof name, "%s/document", in->output);
    if (!object_load(in->object, name, DTYPE_U32, &t.document, &n_document, e))
        goto fail;
    if (n_length != t.n || n_document != t.n) {
        err_set(e, ERR_INPUT, "node '%s', output '%s': lengths and documents do not match %u windows", in->node,
                in->output, t.n);
        goto fail;
    }
    if (!check(&t, in, e) || !digest(&t, e))
        goto fail;
    *out = t;
    return true;
fail:
    tokens_fini(&t);
    return false;
}

void tokens_fini(struct token_set *t)
{
    mem_free(t->ids);
    mem_free(t->length);
    mem_free(t->document);
    *t = (struct token_set){0};
}
