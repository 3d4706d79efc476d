/* From Oniguruma's syntax to PCRE2's. Most of what the tokenizers of language models write means the same in both:
 * literals, groups, alternatives, lookaround, greedy and possessive quantifiers. Two things do not:
 *   - \s: under PCRE2_UCP it also has U+180E, so White_Space is spelled out;
 *   - \p{L}, \p{M}, \p{N}: the library's Oniguruma knows Unicode 16, PCRE2 10.42 knows Unicode 14. The characters that
 *     came in between (they are few and rare, but ids are to be equal on all text) are spelled out too; where PCRE2 is
 *     newer this says the same twice.
 * Everything else that could differ is refused. */
#include "nodes/model/tokenizer_regex.h"

#include <ctype.h>
#include <string.h>

#include "engine/base/mem.h"
#include "engine/base/str.h"

#define SPACES "\\t-\\r\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

/* Assigned in Unicode 15, 15.1 and 16. */
#define LATER_DIGITS \
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}\\x{16130}-\\x{16139}" \
    "\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"
#define LATER_NUMBERS LATER_DIGITS "\\x{1d2c0}-\\x{1d2d3}"
#define LATER_LETTERS \
    "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{10d65}" \
    "\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}" \
    "\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}" \
    "\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}" \
    "\\x{16d40}-\\x{16d6c}\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}\\x{1e030}-\\x{1e06d}" \
    "\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"
#define LATER_MARKS \
    "\\x{897}\\x{cf3}\\x{ece}\\x{10d69}-\\x{10d6d}\\x{10efc}-\\x{10eff}\\x{11241}\\x{113b8}-\\x{113c0}\\x{113c2}" \
    "\\x{113c5}\\x{113c7}-\\x{113ca}\\x{113cc}-\\x{113d0}\\x{113d2}\\x{113e1}-\\x{113e2}\\x{11f00}-\\x{11f01}" \
    "\\x{11f03}\\x{11f34}-\\x{11f3a}\\x{11f3e}-\\x{11f42}\\x{11f5a}\\x{13440}\\x{13447}-\\x{13455}" \
    "\\x{1611e}-\\x{1612f}\\x{1e08f}\\x{1e4ec}-\\x{1e4ef}\\x{1e5ee}-\\x{1e5ef}"
/* In the numbers of Rust's Unicode 17, beyond those above. */
#define RUST_NUMBERS "\\x{11de0}-\\x{11de9}\\x{16ff4}-\\x{16ff6}"

struct translation {
    const char *at;      /* what of the pattern is left */
    bool in_class;       /* between [ and ] */
    struct str out;
};

/* Add the members of a class, inside brackets or with brackets of their own. */
static bool add_members(struct translation *t, const char *members, bool negated, struct err *e)
{
    if (negated && t->in_class)
        return err_set(e, ERR_INPUT, "a negated class such as \\S inside [...] is not supported");
    if (!t->in_class)
        str_add(&t->out, negated ? "[^" : "[");
    str_add(&t->out, members);
    if (!t->in_class)
        str_add(&t->out, "]");
    return true;
}

/* \p{L} and \P{L}; t->at is behind the p. */
static bool translate_property(struct translation *t, bool negated, struct err *e)
{
    static const struct {
        const char *spelled, *members;
    } known[] = {
        {"{L}", "\\p{L}" LATER_LETTERS},
        {"{M}", "\\p{M}" LATER_MARKS},
        {"{N}", "\\p{N}" LATER_NUMBERS},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strncmp(t->at, known[i].spelled, strlen(known[i].spelled)) == 0) {
            t->at += strlen(known[i].spelled);
            return add_members(t, known[i].members, negated, e);
        }
    return err_set(e, ERR_INPUT, "the property \\%c%.*s is not supported; {L}, {M} and {N} are", negated ? 'P' : 'p',
                   (int)strcspn(t->at, "}") + 1, t->at);
}

static bool translate_escape(struct translation *t, struct err *e)
{
    char c = t->at[1];
    t->at += 2;
    switch (c) {
    case 's':
    case 'S':
        return add_members(t, SPACES, c == 'S', e);
    case 'p':
    case 'P':
        return translate_property(t, c == 'P', e);
    case 'n':
    case 'r':
    case 't':
    case 'f':
        str_printf(&t->out, "\\%c", c);
        return true;
    case '\0':
        return err_set(e, ERR_INPUT, "it ends with a backslash");
    default:
        if ((unsigned char)c >= 0x80 || isalnum((unsigned char)c))
            return err_set(e, ERR_INPUT, "the escape \\%c is not supported", c);
        str_printf(&t->out, "\\%c", c);
        return true;
    }
}

static bool translate_class(struct translation *t, struct err *e)
{
    t->in_class = true;
    str_add(&t->out, "[");
    if (*++t->at == '^') {
        str_add(&t->out, "^");
        t->at++;
    }
    for (bool first = true; *t->at != ']' || first; first = false) {
        if (*t->at == '\0')
            return err_set(e, ERR_INPUT, "a [ is not closed");
        if (*t->at == '[' || *t->at == ']' || (t->at[0] == '&' && t->at[1] == '&'))
            return err_set(e, ERR_INPUT, "'%c' inside [...] is not supported; write \\%c", *t->at, *t->at);
        if (*t->at == '\\') {
            if (!translate_escape(t, e))
                return false;
        } else {
            str_add_bytes(&t->out, t->at++, 1);
        }
    }
    str_add(&t->out, "]");
    t->at++;
    t->in_class = false;
    return true;
}

static bool translate_group(struct translation *t, struct err *e)
{
    static const char *const openings[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?i:", "(?>"};
    for (size_t i = 0; i < sizeof openings / sizeof *openings; i++)
        if (strncmp(t->at, openings[i], strlen(openings[i])) == 0) {
            str_add(&t->out, openings[i]);
            t->at += strlen(openings[i]);
            return true;
        }
    if (t->at[1] == '?' || t->at[1] == '*')
        return err_set(e, ERR_INPUT, "the group '%.4s' is not supported; (?: (?= (?! (?<= (?<! (?> and (?i: are",
                       t->at);
    str_add(&t->out, "(");
    t->at++;
    return true;
}

/* {2}, {1,3}, {2,}: the same in both. {,3} is not, nor is what a + behind the interval means. */
static bool translate_interval(struct translation *t, struct err *e)
{
    size_t digits = strspn(t->at + 1, "0123456789");
    size_t n = 1 + digits + strspn(t->at + 1 + digits, ",0123456789");
    if (digits == 0 || t->at[n] != '}')
        return err_set(e, ERR_INPUT, "'{' must start an interval such as {1,3}; a brace itself is written \\{");
    if (t->at[n + 1] == '+')
        return err_set(e, ERR_INPUT, "a + behind an interval is not supported");
    str_add_bytes(&t->out, t->at, n + 1);
    t->at += n + 1;
    return true;
}

static bool translate(struct translation *t, struct err *e)
{
    while (*t->at) {
        bool ok = true;
        switch (*t->at) {
        case '\\': ok = translate_escape(t, e); break;
        case '[': ok = translate_class(t, e); break;
        case '(': ok = translate_group(t, e); break;
        case '{': ok = translate_interval(t, e); break;
        case '^':
        case '$':
        case '.':
            return err_set(e, ERR_INPUT, "'%c' is not supported: it depends on what ends a line", *t->at);
        default: str_add_bytes(&t->out, t->at++, 1);
        }
        if (!ok)
            return false;
    }
    return str_ok(&t->out, e);
}

/* --------------------------------------------------------------------------------------------------- PCRE2's memory */

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

static bool no_memory(struct err *e) { return err_set(e, ERR_RESOURCE, "out of memory for a regular expression"); }

static bool compile(pcre2_code **out, const char *pattern, uint32_t options, struct err *e)
{
    int error = 0;
    PCRE2_SIZE at = 0;
    uint32_t empty = 0;
    pcre2_general_context *memory = pcre2_general_context_create(pcre2_memory, pcre2_memory_free, NULL);
    pcre2_compile_context *context = memory ? pcre2_compile_context_create(memory) : NULL;
    pcre2_code *code = NULL;
    bool ok = false;
    if (!context) {
        no_memory(e);
        goto out;
    }
    code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, options | PCRE2_UTF, &error, &at, context);
    if (!code) {
        char text[128] = "";
        pcre2_get_error_message(error, (PCRE2_UCHAR *)text, sizeof text);
        if (error == PCRE2_ERROR_HEAP_FAILED)
            no_memory(e);
        else
            err_set(e, ERR_INPUT, "%s", text);
        goto out;
    }
    pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &empty);
    if (empty) {
        err_set(e, ERR_INPUT, "it can match an empty string, which splits nothing");
        goto out;
    }
    /* Only speed depends on this; without it the interpreter runs. */
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    *out = code;
    code = NULL;
    ok = true;
out:
    pcre2_code_free(code);
    pcre2_compile_context_free(context);
    pcre2_general_context_free(memory);
    return ok;
}

bool tokenizer_regex_compile(pcre2_code **out, const char *pattern, struct err *e)
{
    struct translation t = {.at = pattern};
    bool ok = translate(&t, e) && compile(out, t.out.text ? t.out.text : "", PCRE2_UCP, e);
    str_free(&t.out);
    return ok || err_context(e, "the regular expression '%.200s'", pattern);
}

bool tokenizer_regex_literal(pcre2_code **out, const char *text, struct err *e)
{
    return compile(out, text, PCRE2_LITERAL, e) || err_context(e, "the text '%.200s'", text);
}

bool tokenizer_regex_digits(pcre2_code **out, bool individual, struct err *e)
{
    static const char one[] = "[\\p{N}" LATER_NUMBERS RUST_NUMBERS "]";
    static const char run[] = "[\\p{N}" LATER_NUMBERS RUST_NUMBERS "]+";
    return compile(out, individual ? one : run, PCRE2_UCP, e);
}

bool tokenizer_regex_word(pcre2_code **out, struct err *e)
{
    return compile(out, "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}" LATER_LETTERS LATER_MARKS LATER_DIGITS
                   "]", PCRE2_UCP, e);
}

bool tokenizer_regex_data(pcre2_match_data **out, struct err *e)
{
    pcre2_general_context *memory = pcre2_general_context_create(pcre2_memory, pcre2_memory_free, NULL);
    pcre2_match_data *data = memory ? pcre2_match_data_create(1, memory) : NULL;
    pcre2_general_context_free(memory);
    if (!data)
        return no_memory(e);
    *out = data;
    return true;
}

/* The text was checked to be UTF-8 once, as a whole. The just-in-time code has a small stack; what it cannot hold goes
 * to the interpreter, whose stack is the heap. */
bool tokenizer_regex_find(const pcre2_code *code, pcre2_match_data *data, const char *text, size_t n, size_t at,
                          bool *found, size_t *start, size_t *end, struct err *e)
{
    int rc = pcre2_match(code, (PCRE2_SPTR)text, n, at, PCRE2_NO_UTF_CHECK, data, NULL);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(code, (PCRE2_SPTR)text, n, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, NULL);
    if (rc == PCRE2_ERROR_NOMEMORY || rc == PCRE2_ERROR_HEAPLIMIT)
        return no_memory(e);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
        char message[128] = "";
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)message, sizeof message);
        return err_set(e, ERR_INPUT, "the pre-tokenizer's regular expression gave up at byte %zu of a piece of %zu: %s",
                       at, n, message);
    }
    *found = rc >= 0;
    if (rc >= 0) {
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(data);
        *start = span[0];
        *end = span[1];
    }
    return true;
}
