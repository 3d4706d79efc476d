/* From Python's syntax to PCRE2's, which reads most of it alike. What only one of them knows is refused by name. */
#include "nodes/inspect/pattern.h"

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>
#include <string.h>

#include "engine/base/mem.h"
#include "engine/base/str.h"

#define LONGEST 4096
#define MATCH_LIMIT 100000 /* steps of one match: a name has at most some hundred characters */
#define HEAP_LIMIT 4096    /* KiB */

struct pattern {
    pcre2_code *code;
    pcre2_match_data *data;
    pcre2_match_context *limits;
    enum pattern_state state;
};

/* ------------------------------------------------------------------------------------------------------ translation */

/* Behind a backslash; *at is at the character. */
static bool translate_escape(const char **at, struct str *out, bool in_class, struct err *e)
{
    char c = **at;
    *at += c != '\0';
    if (c == '\0')
        return err_set(e, ERR_INPUT, "it ends with a backslash");
    if ((c >= '0' && c <= '9') || strchr(in_class ? "abfnrtxdDsSwW" : "abfnrtxdDsSwWAB", c)) {
        if (c == 'x' && strspn(*at, "0123456789abcdefABCDEF") < 2)
            return err_set(e, ERR_INPUT, "\\x wants two hexadecimal digits");
        str_printf(out, "\\%c", c);
    } else if (c == 'Z' && !in_class) {
        str_add(out, "\\z");
    } else if (c == 'v') {
        str_add(out, "\\x0b");
    } else if (c == 'u' && strspn(*at, "0123456789abcdefABCDEF") >= 4) {
        str_printf(out, "\\x{%.4s}", *at);
        *at += 4;
    } else if ((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z')) {
        return err_set(e, ERR_INPUT, "the escape \\%c is not known", c);
    } else if ((unsigned char)c >= 0x80) {
        str_add_bytes(out, &c, 1);
    } else {
        str_printf(out, "\\%c", c);
    }
    return true;
}

/* A set, from behind its '['. A ']' at its start is a member of it. */
static bool translate_set(const char **at, struct str *out, struct err *e)
{
    str_add(out, "[");
    if (**at == '^')
        str_add_bytes(out, (*at)++, 1);
    for (bool first = true; **at != ']' || first; first = false) {
        if (**at == '\0')
            return err_set(e, ERR_INPUT, "a '[' is not closed");
        if (**at == '\\') {
            ++*at;
            if (!translate_escape(at, out, true, e))
                return false;
        } else if (strchr("[:.=", **at) || (**at == ']' && first)) {
            str_printf(out, "\\%c", *(*at)++); /* PCRE2 knows names such as [:alpha:], Python does not */
        } else {
            str_add_bytes(out, (*at)++, 1);
        }
    }
    ++*at;
    str_add(out, "]");
    return true;
}

/* Behind a '('; `first`: at the start of the pattern, where alone flags may stand for the whole of it. */
static bool translate_group(const char **at, bool first, struct str *out, struct err *e)
{
    static const char *const known[] = {"?:", "?=", "?!", "?<=", "?<!", "?>", "?P<", "?P=", "?i:", "?s:", "?m:", "?i)",
                                        "?s)", "?m)"};
    const size_t n_known = sizeof known / sizeof *known - (first ? 0 : 3);
    if (strncmp(*at, "?#", 2) == 0) {
        *at += strcspn(*at, ")");
        return *(*at)++ == ')' || err_set(e, ERR_INPUT, "a comment that does not end");
    }
    str_add(out, "(");
    if (**at != '?') {
        if (**at == '*')
            return err_set(e, ERR_INPUT, "'(*' repeats nothing");
        return true;
    }
    for (size_t i = 0; i < n_known; i++) {
        size_t n = strlen(known[i]);
        if (strncmp(*at, known[i], n) == 0) {
            str_add(out, known[i]);
            *at += n;
            return true;
        }
    }
    return err_set(e, ERR_INPUT, "the group '(%.3s' is not known", *at);
}

static bool translate(const char *at, struct str *out, struct err *e)
{
    const char *start = at;
    while (*at) {
        char c = *at++;
        bool ok = true;
        if (c == '\\')
            ok = translate_escape(&at, out, false, e);
        else if (c == '[')
            ok = translate_set(&at, out, e);
        else if (c == '(')
            ok = translate_group(&at, at - 1 == start, out, e);
        else if (c == '{' && *at == ',' && at[1 + strspn(at + 1, "0123456789")] == '}')
            str_add(out, "{0"); /* {,3} counts from 0 */
        else
            str_add_bytes(out, &c, 1);
        if (!ok)
            return false;
    }
    return str_ok(out, e);
}

/* ------------------------------------------------------------------------------------------------------------ PCRE2 */

static void *pcre2_memory(size_t n, void *context)
{
    void *p;
    (void)context;
    return mem_raw_bytes(&p, 1, n, NULL) ? p : NULL;
}

static void pcre2_memory_free(void *p, void *context)
{
    (void)context;
    mem_free(p);
}

static bool compile(struct pattern *p, const char *text, pcre2_general_context *memory, struct err *e)
{
    int error = 0;
    PCRE2_SIZE at = 0;
    char message[128] = "";
    pcre2_compile_context *context = pcre2_compile_context_create(memory);
    if (!context)
        return err_set(e, ERR_RESOURCE, "out of memory for a regular expression");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    p->code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED | PCRE2_NEVER_BACKSLASH_C, &error, &at, context);
    pcre2_compile_context_free(context);
    if (p->code)
        return true;
    pcre2_get_error_message(error, (PCRE2_UCHAR *)message, sizeof message);
    return err_set(e, error == PCRE2_ERROR_HEAP_FAILED ? ERR_RESOURCE : ERR_INPUT, "%s", message);
}

bool pattern_new(struct pattern **out, const char *text, struct err *e)
{
    struct str translated = {0};
    struct pattern *p = NULL;
    if (strlen(text) > LONGEST)
        return err_set(e, ERR_INPUT, "it has %zu bytes, at most %d are read", strlen(text), LONGEST);
    pcre2_general_context *memory = pcre2_general_context_create(pcre2_memory, pcre2_memory_free, NULL);
    bool ok = memory ? mem_new(&p, 1, e) : err_set(e, ERR_RESOURCE, "out of memory for a regular expression");
    str_add(&translated, "");
    ok = ok && translate(text, &translated, e) && compile(p, translated.text, memory, e);
    if (ok) {
        p->data = pcre2_match_data_create(1, memory);
        p->limits = pcre2_match_context_create(memory);
        ok = (p->data && p->limits) || err_set(e, ERR_RESOURCE, "out of memory for a regular expression");
    }
    if (ok) {
        pcre2_set_match_limit(p->limits, MATCH_LIMIT);
        pcre2_set_heap_limit(p->limits, HEAP_LIMIT);
    }
    str_free(&translated);
    pcre2_general_context_free(memory);
    if (!ok) {
        pattern_free(p);
        return false;
    }
    *out = p;
    return true;
}

bool pattern_matches(struct pattern *p, const char *name)
{
    if (p->state != PATTERN_FINE)
        return false;
    int rc = pcre2_match(p->code, (PCRE2_SPTR)name, PCRE2_ZERO_TERMINATED, 0, 0, p->data, p->limits);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
        p->state = rc == PCRE2_ERROR_NOMEMORY ? PATTERN_NO_MEMORY : PATTERN_GAVE_UP;
    return rc >= 0;
}

enum pattern_state pattern_state(const struct pattern *p) { return p->state; }

void pattern_free(struct pattern *p)
{
    if (!p)
        return;
    pcre2_match_context_free(p->limits);
    pcre2_match_data_free(p->data);
    pcre2_code_free(p->code);
    mem_free(p);
}
