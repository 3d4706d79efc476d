/* Check 2: the scheme of every linear layer as vLLM resolves it, under each of the names that it may have there, and as
 * compressed-tensors does; and whether the tensors are those of it. */
#include <stdio.h>
#include <string.h>

#include "nodes/inspect/checks.h"

#define LONGEST_FORM 1100

struct forms {
    enum name_form list[N_FORMS];
    int n;
};

static struct scheme scheme_of(const struct subject *s, const struct match *m)
{
    return m->kind == MATCH_GROUP ? s->quant.groups[m->group].scheme : (struct scheme){.kind = SCHEME_PLAIN};
}

/* "nvfp4 (group_00, target 'x')" */
static const char *describe(const struct subject *s, const struct match *m, char *out, size_t size)
{
    char name[40];
    struct scheme scheme = scheme_of(s, m);
    if (m->kind == MATCH_GROUP)
        snprintf(out, size, "%s (%.60s, target '%.80s')", scheme_name(&scheme, name), s->quant.groups[m->group].name,
                 m->target);
    else if (m->kind == MATCH_IGNORED)
        snprintf(out, size, "plain (ignored by '%.80s')", m->target);
    else
        snprintf(out, size, "plain (no target)");
    return out;
}

/* vLLM's names. Its text-only classes exist where the reference says so. */
static struct forms forms_of(const struct subject *s)
{
    const char *type = json_string_value(json_object_get(s->config, "model_type"));
    struct forms f = {{FORM_CHECKPOINT}, 1};
    if (s->modules.is_vision) {
        f.list[0] = FORM_VISION;
        if (type && strncmp(type, "qwen3_5", 7) == 0)
            f.list[f.n++] = FORM_TEXT;
    }
    return f;
}

static const char *form_title(enum name_form form)
{
    return form == FORM_TEXT ? "vLLM, text only" : form == FORM_VISION ? "vLLM, vision" : "vLLM";
}

/* In the text-only class there is nothing but the language model. */
static bool exists_in(enum name_form form, const char *name)
{
    return form != FORM_TEXT || strncmp(name, "model.", 6) != 0 || strncmp(name, "model.language_model.", 21) == 0;
}

/* Of a layer of experts vLLM asks for those of expert 0 only. */
static const struct module *asked_for(const struct subject *s, const struct module *x)
{
    char name[LONGEST_NAME + 16];
    const char *mark = strstr(x->name, ".experts.");
    if (x->expert <= 0 || !mark)
        return x;
    const char *rest = mark + strlen(".experts.") + strspn(mark + strlen(".experts."), "0123456789");
    snprintf(name, sizeof name, "%.*s.experts.0%s", (int)(mark - x->name), x->name, rest);
    const struct module *zero = modules_find(&s->modules, name);
    return zero ? zero : x;
}

static struct match ask(const struct subject *s, const struct module_unit *u, const struct module *x,
                        enum name_form form)
{
    char names[1 + MOST_SHARDS][LONGEST_FORM];
    struct match_query q = {.name = names[0], .server_class = u->server_class, .class = "Linear"};
    form_name(form, u->kind == UNIT_FUSED ? u->name : asked_for(s, x)->name, names[0], LONGEST_FORM);
    for (size_t i = 0; u->kind == UNIT_FUSED && i < u->n_modules && i < MOST_SHARDS; i++) {
        form_name(form, s->modules.list[u->modules[i]].name, names[1 + i], LONGEST_FORM);
        q.shards[q.n_shards++] = names[1 + i];
    }
    return matcher_server(s->matcher, form, &q);
}

/* Where the orders and names disagree; the first of them is what is claimed. */
static void compare(struct subject *s, const struct module *x, const struct match *first, const struct match *other,
                    const char *first_title, const char *title)
{
    char a[300], b[300];
    struct scheme p = scheme_of(s, first), q = scheme_of(s, other);
    if (scheme_equal(&p, &q))
        return;
    report_error(s->report, 2, x->name, "one scheme, whoever reads the configuration", "%s: %s; %s: %s", first_title,
                 describe(s, first, a, sizeof a), title, describe(s, other, b, sizeof b));
}

static void claim_unit(struct subject *s, const struct module_unit *u, const struct forms *forms)
{
    struct match found[N_FORMS] = {{0}};
    for (size_t i = 0; i < u->n_modules; i++) {
        struct module *x = &s->modules.list[u->modules[i]];
        struct match ct = matcher_ct(s->matcher, x->name, "Linear");
        for (int f = 0; f < forms->n; f++) {
            if (!exists_in(forms->list[f], x->name))
                continue;
            if (i == 0 || u->kind != UNIT_FUSED) /* the same for all shards */
                found[f] = ask(s, u, x, forms->list[f]);
            if (found[f].kind == MATCH_SPLIT && i == 0)
                report_error(s->report, 2, u->name, "all shards of a fused layer in `ignore`, or none",
                             "%s: some of them are", form_title(forms->list[f]));
            if (f > 0)
                compare(s, x, &found[0], &found[f], form_title(forms->list[0]), form_title(forms->list[f]));
        }
        x->claimed = scheme_of(s, &found[0]);
        compare(s, x, &found[0], &ct, form_title(forms->list[0]), "compressed-tensors");
    }
}

/* Targets are to be disjoint, and `ignore` apart from them: those who read them differ in what wins. */
static void check_disjoint(struct subject *s, const struct module *x)
{
    struct match found[2];
    bool ignored, exactly;
    int n = matcher_groups(s->matcher, x->name, found, &ignored, &exactly);
    if (n > 1)
        report_error(s->report, 2, x->name, "targets of one group", "target '%.100s' of %.60s and '%.100s' of %.60s",
                     found[0].target, s->quant.groups[found[0].group].name, found[1].target,
                     s->quant.groups[found[1].group].name);
    if (n > 0 && exactly && strcmp(found[0].target, x->name) == 0)
        report_error(s->report, 2, x->name, "a target or an entry of `ignore`", "it is both");
    else if (n > 0 && ignored)
        report_warning(s->report, 2, x->name, "a target or an entry of `ignore`",
                       "`ignore` has it, and target '%.100s'", found[0].target);
}

bool check_claims(struct subject *s, struct err *e)
{
    if (!s->quant.is_there) {
        report_not_run(s->report, 2, "there is no quantization_config of compressed-tensors");
        return true;
    }
    if (!matcher_new(&s->matcher, &s->quant, s->report, e))
        return false;
    struct forms forms = forms_of(s);
    for (size_t i = 0; i < s->modules.n_units; i++)
        claim_unit(s, &s->modules.units[i], &forms);
    for (size_t i = 0; i < s->modules.n; i++) {
        struct module *x = &s->modules.list[i];
        if (x->is_linear)
            check_disjoint(s, x);
        if (x->is_embedding)
            x->claimed = (struct scheme){.kind = SCHEME_PLAIN};
    }
    return true;
}

/* ------------------------------------------------------------------------------------------- against what is stored */

/* "weight F8_E4M3 [64, 32], weight_scale F32 [64, 1]" */
static void list_tensors(const struct module *x, char *out, size_t size)
{
    size_t at = 0;
    out[0] = '\0';
    for (size_t i = 0; i < x->n_tensors && at + 100 < size; i++) {
        const struct st_entry *t = x->tensors[i];
        int n = snprintf(out + at, size - at, "%s%.40s %s", i ? ", " : "", module_last(t->name), t->dtype_name);
        at += n > 0 ? (size_t)n : 0;
    }
}

/* What vLLM builds without looking at the configuration. */
static bool is_never_quantized(const char *name)
{
    static const char *const ends[] = {".conv1d", ".mlp.gate", ".block_sparse_moe.gate", ".shared_expert_gate"};
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        size_t m = strlen(ends[i]);
        if (n > m && strcmp(name + n - m, ends[i]) == 0)
            return true;
    }
    return false;
}

static void check_stored(struct subject *s, const struct module *x)
{
    char claimed[40], stored[40], tensors[500];
    bool is_plain = x->stored.kind == SCHEME_PLAIN, claims_plain = x->claimed.kind == SCHEME_PLAIN;
    if (x->stored.kind == SCHEME_NONE) {
        list_tensors(x, tensors, sizeof tensors);
        report_error(s->report, 2, x->name, claims_plain ? "a plain weight" : scheme_name(&x->claimed, claimed),
                     "its tensors are those of no scheme: %s", tensors);
    } else if (x->claimed.kind == SCHEME_NONE) {
        return; /* the group is told */
    } else if (!scheme_stores_alike(&x->claimed, &x->stored)) { /* NVFP4's scale of the input is for check 5 */
        report_error(s->report, 2, x->name, "tensors of the scheme that the configuration gives it",
                     "%s by the configuration, %s by its tensors", scheme_name(&x->claimed, claimed),
                     scheme_name(&x->stored, stored));
    }
    if (!is_plain && is_never_quantized(x->name))
        report_error(s->report, 2, x->name, "a plain weight: servers never quantize it", "it is %s",
                     scheme_name(&x->stored, stored));
}

/* Older servers refuse a layer that neither a target nor `ignore` has. */
static void check_listed(struct subject *s, const struct module *x)
{
    struct match ct = matcher_ct(s->matcher, x->name, "Linear");
    if (x->stored.kind == SCHEME_PLAIN && ct.kind == MATCH_NONE)
        report_warning(s->report, 2, x->name, "an entry of `ignore` for every linear layer that is not quantized",
                       "there is none");
}

bool check_schemes(struct subject *s, struct err *e)
{
    if (!s->matcher) {
        for (size_t i = 0; i < s->modules.n; i++)
            if (s->modules.list[i].is_linear && s->modules.list[i].stored.kind != SCHEME_PLAIN)
                report_error(s->report, 9, s->modules.list[i].name, "a quantization_config of compressed-tensors",
                             "there is none, and its tensors are no plain weight");
        return true;
    }
    for (size_t i = 0; i < s->modules.n; i++) {
        struct module *x = &s->modules.list[i];
        if (x->is_linear) {
            check_stored(s, x);
            if (s->quant.n_groups > 0)
                check_listed(s, x);
        } else if (x->is_embedding) {
            struct match ct = matcher_ct(s->matcher, x->name, "Embedding"), plain = {.kind = MATCH_NONE};
            compare(s, x, &plain, &ct, "its tensors", "compressed-tensors");
        }
    }
    return s->modules.n == 0 || matcher_finish(s->matcher, s->report, e);
}
