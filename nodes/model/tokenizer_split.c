/* Pre-tokenizers: Sequence, Split, Digits, ByteLevel and Metaspace become a list of steps; each piece that a step makes
 * goes through the next one alone, so that a lookahead sees no further than its piece. */
#include "nodes/model/tokenizer_split.h"

#include <stdio.h>
#include <string.h>

#include "engine/base/str.h"
#include "nodes/model/tokenizer_json.h"
#include "nodes/model/utf8.h"

/* The words of GPT-2, which ByteLevel cuts when use_regex is true. */
static const char gpt2_words[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* ---------------------------------------------------------------------------------------------------------- loading */

static bool add_step(struct splitter *s, enum split_kind kind, struct split_step **out, struct err *e)
{
    if (s->byte_level)
        return err_set(e, ERR_INPUT, "nothing may follow ByteLevel, which turns text into bytes");
    if (s->n_steps == SPLIT_STEPS)
        return err_set(e, ERR_INPUT, "more than %d steps", SPLIT_STEPS);
    *out = &s->steps[s->n_steps++];
    (*out)->kind = kind;
    return true;
}

static bool load_split(struct splitter *s, const json_t *j, const char *where, struct err *e)
{
    struct split_step *step;
    const char *behavior, *regex, *text;
    const json_t *pattern = json_object_get(j, "pattern");
    bool invert;
    if (!tokenizer_json_text(j, "behavior", where, "", &behavior, e) ||
        !tokenizer_json_bool(j, "invert", where, false, &invert, e) ||
        !tokenizer_json_text(pattern, "Regex", where, NULL, &regex, e) ||
        !tokenizer_json_text(pattern, "String", where, NULL, &text, e))
        return false;
    if (strcmp(behavior, "Isolated") != 0 || invert)
        return err_set(e, ERR_INPUT, "Split with behavior '%s'%s is not supported; 'Isolated', not inverted, is",
                       behavior, invert ? ", inverted," : "");
    if (!regex == !text)
        return err_set(e, ERR_INPUT, "Split needs a pattern: {\"Regex\": ...} or {\"String\": ...}");
    if (!add_step(s, SPLIT_ISOLATE, &step, e))
        return false;
    return regex ? tokenizer_regex_compile(&step->regex, regex, e) : tokenizer_regex_literal(&step->regex, text, e);
}

static bool load_digits(struct splitter *s, const json_t *j, const char *where, struct err *e)
{
    struct split_step *step;
    bool individual;
    if (!tokenizer_json_bool(j, "individual_digits", where, false, &individual, e))
        return false;
    return add_step(s, SPLIT_ISOLATE, &step, e) && tokenizer_regex_digits(&step->regex, individual, e);
}

static bool load_byte_level(struct splitter *s, const json_t *j, const char *where, struct err *e)
{
    struct split_step *step;
    bool prefix_space, use_regex;
    if (!tokenizer_json_bool(j, "add_prefix_space", where, true, &prefix_space, e) ||
        !tokenizer_json_bool(j, "use_regex", where, true, &use_regex, e))
        return false;
    if (prefix_space && !add_step(s, SPLIT_PREFIX_SPACE, &step, e))
        return false;
    if (use_regex && (!add_step(s, SPLIT_ISOLATE, &step, e) || !tokenizer_regex_compile(&step->regex, gpt2_words, e)))
        return false;
    if (s->byte_level)
        return err_set(e, ERR_INPUT, "ByteLevel is there twice");
    s->byte_level = true;
    return true;
}

static bool load_metaspace(struct splitter *s, const json_t *j, const char *where, struct err *e)
{
    struct split_step *step;
    const char *mark, *scheme;
    bool prefix, cuts;
    if (!tokenizer_json_text(j, "replacement", where, "\xe2\x96\x81", &mark, e) ||
        !tokenizer_json_text(j, "prepend_scheme", where, "always", &scheme, e) ||
        !tokenizer_json_bool(j, "add_prefix_space", where, true, &prefix, e) ||
        !tokenizer_json_bool(j, "split", where, true, &cuts, e) || !add_step(s, SPLIT_METASPACE, &step, e))
        return false;
    size_t n = strlen(mark);
    if (n == 0 || n != utf8_length((unsigned char)mark[0]))
        return err_set(e, ERR_INPUT, "Metaspace with replacement '%s': it must be one character", mark);
    memcpy(step->mark, mark, n);
    step->cuts = cuts;
    step->scheme = strcmp(scheme, "always") == 0 ? MARK_ALWAYS : strcmp(scheme, "first") == 0 ? MARK_FIRST : MARK_NEVER;
    if (step->scheme == MARK_NEVER && strcmp(scheme, "never") != 0)
        return err_set(e, ERR_INPUT, "Metaspace with prepend_scheme '%s'; always, first and never are known", scheme);
    if (!prefix && step->scheme != MARK_NEVER)
        return err_set(e, ERR_INPUT, "Metaspace with add_prefix_space false and prepend_scheme '%s' contradicts itself",
                       scheme);
    return true;
}

static bool load(struct splitter *s, const json_t *j, const char *where, bool nested, struct err *e);

static bool load_sequence(struct splitter *s, const json_t *j, const char *where, struct err *e)
{
    const json_t *list;
    if (!tokenizer_json_list(j, "pretokenizers", where, &list, e))
        return false;
    for (size_t i = 0; i < json_array_size(list); i++) {
        char inner[80];
        snprintf(inner, sizeof inner, "pre_tokenizer.pretokenizers[%zu]", i);
        if (!load(s, json_array_get(list, i), inner, true, e))
            return false;
    }
    return true;
}

static bool load(struct splitter *s, const json_t *j, const char *where, bool nested, struct err *e)
{
    static const struct {
        const char *type;
        bool (*load)(struct splitter *s, const json_t *j, const char *where, struct err *e);
    } known[] = {
        {"Split", load_split}, {"Digits", load_digits}, {"ByteLevel", load_byte_level}, {"Metaspace", load_metaspace},
    };
    const char *type;
    if (!tokenizer_json_type(j, where, &type, e))
        return false;
    if (strcmp(type, "Sequence") == 0 && !nested)
        return load_sequence(s, j, where, e);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(type, known[i].type) == 0)
            return known[i].load(s, j, where, e) || err_context(e, "%s", where);
    return err_set(e, ERR_INPUT, "%s: '%s' is not supported; Split, Digits, ByteLevel, Metaspace, and one Sequence of "
                   "them are", where, type);
}

bool tokenizer_split_init(struct splitter *s, const json_t *pre_tokenizer, struct err *e)
{
    *s = (struct splitter){0};
    if (!pre_tokenizer || json_is_null(pre_tokenizer) || load(s, pre_tokenizer, "pre_tokenizer", false, e))
        return true;
    tokenizer_split_fini(s);
    return false;
}

void tokenizer_split_fini(struct splitter *s)
{
    for (int i = 0; i < s->n_steps; i++)
        pcre2_code_free(s->steps[i].regex);
    *s = (struct splitter){0};
}

/* --------------------------------------------------------------------------------------------------------- cutting */

struct run {
    const struct splitter *splitter;
    pcre2_match_data *data;
    split_word each;
    void *context;
};

static bool run_step(const struct run *r, int i, const char *text, size_t n, bool at_start, struct err *e);

static bool isolate(const struct run *r, int i, const char *text, size_t n, bool at_start, struct err *e)
{
    const pcre2_code *regex = r->splitter->steps[i].regex;
    size_t done = 0;
    while (done < n) {
        bool found;
        size_t start, end;
        if (!tokenizer_regex_find(regex, r->data, text, n, done, &found, &start, &end, e))
            return false;
        if (!found)
            start = end = n;
        if (start > done && !run_step(r, i + 1, text + done, start - done, at_start && done == 0, e))
            return false;
        if (end > start && !run_step(r, i + 1, text + start, end - start, at_start && start == 0, e))
            return false;
        done = end;
    }
    return true;
}

static bool prefix_space(const struct run *r, int i, const char *text, size_t n, bool at_start, struct err *e)
{
    if (text[0] == ' ')
        return run_step(r, i + 1, text, n, at_start, e);
    struct str s = {0};
    str_add(&s, " ");
    str_add_bytes(&s, text, n);
    bool ok = str_ok(&s, e) && run_step(r, i + 1, s.text, s.length, at_start, e);
    str_free(&s);
    return ok;
}

/* Words of the marked text: each mark starts one, also right after another. */
static bool cut_at_marks(const struct run *r, int i, const char *mark, const struct str *s, bool at_start,
                         struct err *e)
{
    size_t n_mark = strlen(mark);
    for (size_t start = 0, end; start < s->length; start = end) {
        const char *next = memmem(s->text + start + 1, s->length - start - 1, mark, n_mark);
        end = next ? (size_t)(next - s->text) : s->length;
        if (!run_step(r, i + 1, s->text + start, end - start, at_start && start == 0, e))
            return false;
    }
    return true;
}

static bool metaspace(const struct run *r, int i, const char *text, size_t n, bool at_start, struct err *e)
{
    const struct split_step *step = &r->splitter->steps[i];
    size_t n_mark = strlen(step->mark);
    bool marked = text[0] == ' ' || (n >= n_mark && memcmp(text, step->mark, n_mark) == 0);
    struct str s = {0};
    if (!marked && (step->scheme == MARK_ALWAYS || (step->scheme == MARK_FIRST && at_start)))
        str_add(&s, step->mark);
    for (size_t at = 0; at < n;) {
        const char *space = memchr(text + at, ' ', n - at);
        size_t plain = space ? (size_t)(space - text) - at : n - at;
        str_add_bytes(&s, text + at, plain);
        at += plain;
        if (at < n) {
            str_add(&s, step->mark);
            at++;
        }
    }
    bool ok = str_ok(&s, e);
    if (ok && step->cuts)
        ok = cut_at_marks(r, i, step->mark, &s, at_start, e);
    else if (ok)
        ok = run_step(r, i + 1, s.text, s.length, at_start, e);
    str_free(&s);
    return ok;
}

static bool run_step(const struct run *r, int i, const char *text, size_t n, bool at_start, struct err *e)
{
    if (i == r->splitter->n_steps)
        return r->each(r->context, text, n, e);
    switch (r->splitter->steps[i].kind) {
    case SPLIT_ISOLATE: return isolate(r, i, text, n, at_start, e);
    case SPLIT_PREFIX_SPACE: return prefix_space(r, i, text, n, at_start, e);
    case SPLIT_METASPACE: return metaspace(r, i, text, n, at_start, e);
    }
    return err_set(e, ERR_BUG, "unknown pre-tokenizer step");
}

bool tokenizer_split_run(const struct splitter *s, pcre2_match_data *data, const char *text, size_t n, bool at_start,
                         split_word each, void *context, struct err *e)
{
    const struct run r = {s, data, each, context};
    return n == 0 || run_step(&r, 0, text, n, at_start, e);
}
