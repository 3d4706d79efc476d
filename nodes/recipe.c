#include "nodes/recipe.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "nodes/model/tokens.h"

/* The sets of a corpus, and what documents/split has for each; the last need not be there. */
static const char *const sets[] = {"calibration", "selection", "report", "probe"};
static const uint8_t set_splits[] = {0, 1, 2, 4};
#define N_SETS 4

static json_t *out_of_memory(struct err *e)
{
    err_set(e, ERR_RESOURCE, "out of memory for scout.json");
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------------- results */

/* The next line "name = value" of *text: a copy of the name, the value as a slice of the text; false at the end. */
static bool next_line(const char **text, char *name, size_t name_size, const char **value, size_t *n_value)
{
    const char *line = *text, *equals = strstr(line, " = ");
    size_t n = strcspn(line, "\n");
    if (!*line)
        return false;
    *text = line[n] ? line + n + 1 : line + n;
    if (!equals || equals > line + n) { /* a record that was too long, kept as its digest */
        *name = '\0';
        *value = line;
        *n_value = n;
        return true;
    }
    snprintf(name, name_size, "%.*s", (int)(equals - line), line);
    *value = equals + 3;
    *n_value = n - (size_t)(*value - line);
    return true;
}

static json_t *lines_object(const char *text)
{
    json_t *out = json_object();
    char name[128];
    const char *value;
    size_t n;
    while (next_line(&text, name, sizeof name, &value, &n))
        json_object_set_new(out, name, json_stringn(value, n));
    return out;
}

static json_t *inputs_array(const char *text)
{
    json_t *out = json_array();
    char port[128];
    const char *value;
    size_t n;
    while (next_line(&text, port, sizeof port, &value, &n)) {
        const char *dot = memchr(value, '.', n);
        json_t *one = json_pack("{s:s, s:s%}", "port", port, "key", value, dot ? (size_t)(dot - value) : n);
        if (dot)
            json_object_set_new(one, "output", json_stringn(dot + 1, n - (size_t)(dot + 1 - value)));
        json_array_append_new(out, one);
    }
    return out;
}

static bool add_result(void *context, const struct ancestor *a, struct err *e)
{
    char key[KEY_TEXT];
    json_t *one = json_pack("{s:s, s:s, s:i, s:s, s:o, s:o, s:o}", "type", a->type, "key", key_text(a->key, key),
                            "code_version", (int)a->version, "numerics", a->numerics, "parameters",
                            lines_object(a->parameters), "inputs", inputs_array(a->inputs), "sources",
                            lines_object(a->sources));
    return json_array_append_new(context, one) == 0 || out_of_memory(e);
}

json_t *recipe_results(const struct node *n, struct err *e)
{
    json_t *out = json_array();
    if (!out)
        return out_of_memory(e);
    if (node_each_ancestor(n, add_result, out, e))
        return out;
    json_decref(out);
    return NULL;
}

/* ----------------------------------------------------------------------------------------------------------- splits */

struct splits {
    const struct node *node;
    json_t *list;
};

static json_t *describe_set(struct object *corpus, size_t set, char *const *digests, const uint8_t *split,
                            uint64_t n_documents, struct err *e)
{
    const struct input in = {.object = corpus, .node = "corpus", .type = "corpus", .output = sets[set]};
    struct token_set t;
    if (!tokens_read(&t, &in, e))
        return NULL;
    json_t *documents = json_array();
    uint64_t positions = 0;
    for (uint32_t w = 0; w < t.n; w++)
        positions += tokens_scored(&t, w);
    for (uint64_t d = 0; d < n_documents; d++)
        if (split[d] == set_splits[set])
            json_array_append_new(documents, json_string(digests[d]));
    json_t *out = json_pack("{s:I, s:I, s:s, s:o}", "windows", (json_int_t)t.n, "positions", (json_int_t)positions,
                            "tokens_digest", t.digest, "documents", documents);
    tokens_fini(&t);
    return out ? out : out_of_memory(e);
}

static bool describe_corpus(json_t *out, struct object *corpus, struct err *e)
{
    char **digests = NULL;
    uint8_t *split = NULL;
    uint64_t n, n_split;
    bool ok = object_read_strings(corpus, "documents/digest", &digests, &n, e) &&
              object_load(corpus, "documents/split", DTYPE_U8, &split, &n_split, e);
    if (ok && n != n_split)
        ok = err_set(e, ERR_INPUT, "%s: %llu documents, but %llu of them are in a split", object_path(corpus),
                     (unsigned long long)n, (unsigned long long)n_split);
    for (size_t s = 0; ok && s < N_SETS; s++) {
        if (s + 1 == N_SETS && !object_dataset(corpus, "probe/tokens"))
            break;
        json_t *set = describe_set(corpus, s, digests, split, n, e);
        ok = set && (json_object_set_new(out, sets[s], set) == 0 || out_of_memory(e));
    }
    mem_free(split);
    mem_free(digests);
    return ok;
}

static bool add_splits(void *context, const struct ancestor *a, struct err *e)
{
    struct splits *s = context;
    struct object *corpus = NULL;
    char key[KEY_TEXT];
    if (strcmp(a->type, "corpus") != 0)
        return true;
    if (!object_open(&corpus, node_store(s->node), a->key, e))
        return false;
    if (!corpus)
        return err_set(e, ERR_INPUT, "the result of the corpus, %s, is gone from the store", key_text(a->key, key));
    json_t *one = json_pack("{s:s}", "corpus", key_text(a->key, key));
    bool ok = (json_array_append_new(s->list, one) == 0 || out_of_memory(e)) && describe_corpus(one, corpus, e);
    object_close(corpus);
    return ok;
}

json_t *recipe_splits(const struct node *n, struct err *e)
{
    struct splits s = {n, json_array()};
    if (!s.list)
        return out_of_memory(e);
    if (node_each_ancestor(n, add_splits, &s, e))
        return s.list;
    json_decref(s.list);
    return NULL;
}

/* --------------------------------------------------------------------------------------------------------- measured */

/* NaN, which JSON has no word for, becomes null. */
static json_t *number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

/* The name of the set with that digest, NULL if it is none of them. */
static const char *set_name(const json_t *splits, const char *digest)
{
    size_t i;
    const json_t *corpus;
    json_array_foreach(splits, i, corpus) {
        for (size_t s = 0; s < N_SETS; s++) {
            const char *of = json_string_value(json_object_get(json_object_get(corpus, sets[s]), "tokens_digest"));
            if (of && strcmp(of, digest) == 0)
                return sets[s];
        }
    }
    return NULL;
}

json_t *recipe_measured(const struct candidates *table, const struct candidate *c, const json_t *splits, struct err *e)
{
    double low, high;
    if (!candidate_interval(table, c, &low, &high, e))
        return NULL;
    json_t *out = json_pack("{s:s?, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I}", "set",
                            set_name(splits, table->tokens), "tokens_digest", table->tokens, "numeric", table->numeric,
                            "kl_mean", number(c->kl_mean), "kl_low", number(low), "kl_high", number(high), "kl_p95",
                            number(c->kl_p95), "kl_p99", number(c->kl_p99), "kl_p999", number(c->kl_p999), "kl_max",
                            number(c->kl_max), "nll_delta", number(c->nll_delta), "top1", number(c->top1), "windows",
                            (json_int_t)c->n_windows, "of_windows", (json_int_t)table->n_windows, "scored_tokens",
                            (json_int_t)c->tokens);
    return out ? out : out_of_memory(e);
}

/* ---------------------------------------------------------------------------------------------------------- compared */

struct compared {
    char **name;
    uint32_t *candidate;
    double *difference, *low, *high;
    uint64_t n;
};

static void free_compared(struct compared *c)
{
    mem_free(c->name);
    mem_free(c->candidate);
    mem_free(c->difference);
    mem_free(c->low);
    mem_free(c->high);
}

static bool load_compared(struct compared *c, struct object *o, const struct candidates *table, struct err *e)
{
    uint64_t n[4];
    if (!object_read_strings(o, "compared/name", &c->name, &c->n, e) ||
        !object_load(o, "compared/candidate", DTYPE_U32, &c->candidate, &n[0], e) ||
        !object_load(o, "compared/difference", DTYPE_F64, &c->difference, &n[1], e) ||
        !object_load(o, "compared/low", DTYPE_F64, &c->low, &n[2], e) ||
        !object_load(o, "compared/high", DTYPE_F64, &c->high, &n[3], e))
        return false;
    for (int i = 0; i < 4; i++)
        if (n[i] != c->n)
            return err_set(e, ERR_INPUT, "%s: its tables of comparisons do not agree on their length",
                           object_path(o));
    for (uint64_t i = 0; i < c->n; i++)
        if (c->candidate[i] >= table->n)
            return err_set(e, ERR_INPUT, "%s: the choice is compared with candidate %u of %zu", object_path(o),
                           c->candidate[i], table->n);
    return true;
}

json_t *recipe_compared(struct object *assignment, const struct candidates *table, struct err *e)
{
    struct compared c = {0};
    json_t *list, *out = NULL;
    uint32_t chosen;
    if (!object_dataset(assignment, "compared/name"))
        return json_null();
    bool ok = object_read(assignment, "chosen", DTYPE_U32, 0, 1, &chosen, e) &&
              load_compared(&c, assignment, table, e);
    if (ok) {
        list = json_array();
        for (uint64_t i = 0; i < c.n; i++) {
            const struct candidate *x = &table->list[c.candidate[i]];
            json_array_append_new(list, json_pack("{s:s, s:I, s:f, s:o, s:o, s:o, s:o}", "name", c.name[i], "bytes",
                                                  (json_int_t)x->bytes, "bpp", x->bpp, "kl_mean", number(x->kl_mean),
                                                  "difference", number(c.difference[i]), "low", number(c.low[i]),
                                                  "high", number(c.high[i])));
        }
        out = json_pack("{s:b, s:o}", "stands", chosen == 0, "compared", list);
        if (!out)
            out_of_memory(e);
    }
    free_compared(&c);
    return out;
}
