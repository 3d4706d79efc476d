#include "nodes/inspect/match.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nodes/inspect/pattern.h"

#define LONGEST_FORM 1100

/* A target or an entry of `ignore`, once per different text. */
struct entry {
    const char *text;
    struct pattern *pattern;  /* NULL: a name or class, or a pattern that cannot be compiled */
    bool is_pattern, has_matched;
    size_t group;             /* the last one that has it, as a dictionary would say */
    size_t rank;              /* in compressed-tensors' order */
};

/* Exact names of one form, sorted, with their entries: the first entry of equal names counts. */
struct lookup {
    const char *name;
    size_t entry;
};

struct list {
    struct entry *entries;    /* in order of first occurrence; mem_* */
    size_t n, n_patterns;
    size_t *patterns;         /* entries that are patterns, in order; mem_* */
    struct lookup *exact[N_FORMS]; /* mem_* */
    size_t n_exact;
};

struct matcher {
    struct list targets, ignore;
    struct arena arena;
};

/* ------------------------------------------------------------------------------------------------------------ names */

static bool starts(const char *text, const char *with) { return strncmp(text, with, strlen(with)) == 0; }

/* In a vision-language checkpoint everything of the language model is below model.language_model. */
void form_name(enum name_form form, const char *name, char *out, size_t size)
{
    static const char inner[] = "model.language_model.";
    const size_t n = sizeof inner - 1;
    if (form == FORM_VISION && starts(name, inner))
        snprintf(out, size, "language_model.model.%s", name + n);
    else if (form == FORM_VISION && starts(name, "model."))
        snprintf(out, size, "%s", name + strlen("model."));
    else if (form == FORM_VISION && strcmp(name, "lm_head") == 0)
        snprintf(out, size, "language_model.lm_head");
    else if (form == FORM_TEXT && starts(name, inner))
        snprintf(out, size, "model.%s", name + n);
    else
        snprintf(out, size, "%s", name);
}

static int by_name(const void *a, const void *b)
{
    const struct lookup *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : (x->entry > y->entry) - (x->entry < y->entry);
}

/* vLLM rewrites exact names with a dot from the checkpoint's names to its own. */
static bool fill_lookup(struct matcher *m, struct list *l, enum name_form form, struct err *e)
{
    char name[LONGEST_FORM];
    size_t n = 0;
    if (!mem_new(&l->exact[form], l->n + 1, e))
        return false;
    for (size_t i = 0; i < l->n; i++) {
        const struct entry *x = &l->entries[i];
        if (x->is_pattern)
            continue;
        l->exact[form][n].name = x->text;
        l->exact[form][n].entry = i;
        if (form != FORM_CHECKPOINT && strchr(x->text, '.') && strlen(x->text) < LONGEST_FORM - 32) {
            form_name(form, x->text, name, sizeof name);
            l->exact[form][n].name = arena_strdup(&m->arena, name, e);
            if (!l->exact[form][n].name)
                return false;
        }
        n++;
    }
    if (n > 0)
        qsort(l->exact[form], n, sizeof *l->exact[form], by_name);
    l->n_exact = n;
    return true;
}

/* The first entry that is exactly this name; SIZE_MAX when there is none. */
static size_t find_exact(const struct list *l, enum name_form form, const char *name)
{
    const struct lookup *x = l->exact[form];
    size_t low = 0, high = l->n_exact;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(x[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < l->n_exact && strcmp(x[low].name, name) == 0 ? x[low].entry : SIZE_MAX;
}

/* The first pattern, in the order of the list, that matches; SIZE_MAX when none does or it comes behind `before`. */
static size_t find_pattern(struct list *l, const char *name, size_t before)
{
    for (size_t i = 0; i < l->n_patterns && l->patterns[i] < before; i++) {
        struct entry *x = &l->entries[l->patterns[i]];
        if (x->pattern && pattern_matches(x->pattern, name))
            return l->patterns[i];
    }
    return SIZE_MAX;
}

/* The first entry that is the name, or a pattern that matches it. */
static size_t find_name(struct list *l, enum name_form form, const char *name)
{
    size_t exact = find_exact(l, form, name), pattern = find_pattern(l, name, exact);
    size_t found = pattern < exact ? pattern : exact;
    if (found != SIZE_MAX)
        l->entries[found].has_matched = true;
    return found;
}

/* Is `part` somewhere in `text`, without regard to case? */
static bool contains(const char *text, const char *part)
{
    size_t n = strlen(part);
    for (; *text; text++) {
        size_t i = 0;
        while (i < n && tolower((unsigned char)text[i]) == tolower((unsigned char)part[i]))
            i++;
        if (i == n)
            return true;
    }
    return n == 0;
}

/* The first entry that a class's name contains, or a pattern that matches the class's name. */
static size_t find_class(struct list *l, const char *class)
{
    for (size_t i = 0; i < l->n; i++) {
        struct entry *x = &l->entries[i];
        bool hit = x->is_pattern ? x->pattern && pattern_matches(x->pattern, class) : contains(class, x->text);
        if (hit) {
            x->has_matched = true;
            return i;
        }
    }
    return SIZE_MAX;
}

/* ----------------------------------------------------------------------------------------------------- vLLM's order */

static struct match of_entry(const struct list *l, size_t i)
{
    return (struct match){MATCH_GROUP, l->entries[i].group, l->entries[i].text};
}

static struct match is_ignored(struct matcher *m, enum name_form form, const struct match_query *x)
{
    struct match none = {.kind = MATCH_NONE}, yes = {.kind = MATCH_IGNORED};
    int ignored = 0;
    if (x->n_shards == 0 || find_exact(&m->ignore, form, x->name) != SIZE_MAX) {
        size_t i = find_name(&m->ignore, form, x->name);
        yes.target = i != SIZE_MAX ? m->ignore.entries[i].text : NULL;
        return i != SIZE_MAX ? yes : none;
    }
    for (int s = 0; s < x->n_shards; s++) {
        size_t i = find_name(&m->ignore, form, x->shards[s]);
        ignored += i != SIZE_MAX;
        yes.target = i != SIZE_MAX ? m->ignore.entries[i].text : yes.target;
    }
    if (ignored > 0 && ignored < x->n_shards)
        yes.kind = MATCH_SPLIT;
    return ignored > 0 ? yes : none;
}

struct match matcher_server(struct matcher *m, enum name_form form, const struct match_query *x)
{
    struct match found = is_ignored(m, form, x);
    if (found.kind != MATCH_NONE)
        return found;
    size_t i = find_name(&m->targets, form, x->name);
    if (i != SIZE_MAX)
        return of_entry(&m->targets, i);
    size_t first = SIZE_MAX;
    bool all = x->n_shards > 0;
    for (int s = 0; s < x->n_shards; s++) {
        i = find_name(&m->targets, form, x->shards[s]);
        first = s == 0 ? i : first;
        all = all && i != SIZE_MAX;
    }
    if (all)
        return of_entry(&m->targets, first);
    i = find_class(&m->targets, x->server_class);
    return i != SIZE_MAX ? of_entry(&m->targets, i) : found;
}

/* ---------------------------------------------------------------------------------------- compressed-tensors' order */

struct match matcher_ct(struct matcher *m, const char *name, const char *class)
{
    struct list *l = &m->targets;
    struct match none = {.kind = MATCH_NONE};
    size_t ignored = find_name(&m->ignore, FORM_CHECKPOINT, name);
    if (ignored == SIZE_MAX)
        ignored = find_exact(&m->ignore, FORM_CHECKPOINT, class);
    if (ignored != SIZE_MAX)
        return (struct match){.kind = MATCH_IGNORED, .target = m->ignore.entries[ignored].text};
    size_t best = find_exact(l, FORM_CHECKPOINT, name);
    bool best_is_pattern = best == SIZE_MAX; /* names come first, then patterns in the order of their texts */
    for (size_t i = 0; best_is_pattern && i < l->n_patterns; i++) {
        struct entry *x = &l->entries[l->patterns[i]];
        bool better = best == SIZE_MAX || x->rank < l->entries[best].rank;
        if (better && x->pattern && pattern_matches(x->pattern, name))
            best = l->patterns[i];
    }
    if (best == SIZE_MAX)
        best = find_exact(l, FORM_CHECKPOINT, class);
    if (best == SIZE_MAX)
        return none;
    l->entries[best].has_matched = true;
    return of_entry(l, best);
}

int matcher_groups(struct matcher *m, const char *name, struct match found[2], bool *ignored, bool *exactly)
{
    struct list *l = &m->targets;
    size_t exact = find_exact(l, FORM_CHECKPOINT, name);
    int n = 0;
    *exactly = find_exact(&m->ignore, FORM_CHECKPOINT, name) != SIZE_MAX;
    *ignored = *exactly || find_pattern(&m->ignore, name, SIZE_MAX) != SIZE_MAX;
    if (exact != SIZE_MAX)
        found[n++] = of_entry(l, exact);
    for (size_t i = 0; i < l->n_patterns && n < 2; i++) {
        struct entry *x = &l->entries[l->patterns[i]];
        if ((n == 0 || x->group != found[0].group) && x->pattern && pattern_matches(x->pattern, name))
            found[n++] = of_entry(l, l->patterns[i]);
    }
    return n;
}

/* ----------------------------------------------------------------------------------------------------------- making */

struct text_at {
    const char *text;
    size_t at; /* order of occurrence */
    size_t group;
};

static int by_text(const void *a, const void *b)
{
    const struct text_at *x = a, *y = b;
    int order = strcmp(x->text, y->text);
    return order ? order : (x->at > y->at) - (x->at < y->at);
}

static int by_at(const void *a, const void *b)
{
    const struct text_at *x = a, *y = b;
    return (x->at > y->at) - (x->at < y->at);
}

/* Of equal texts the first gives the place and the last the group, as in a dictionary; sorts texts[] so that what is
 * left is in order of occurrence. Returns how many are left. */
static size_t unite(struct text_at *texts, size_t n)
{
    size_t kept = 0;
    if (n == 0)
        return 0;
    qsort(texts, n, sizeof *texts, by_text);
    for (size_t i = 0; i < n; i++) {
        if (kept > 0 && strcmp(texts[kept - 1].text, texts[i].text) == 0)
            texts[kept - 1].group = texts[i].group;
        else
            texts[kept++] = texts[i];
    }
    qsort(texts, kept, sizeof *texts, by_at);
    return kept;
}

static bool compile(struct entry *x, struct report *r, struct err *e)
{
    struct err why = {0};
    x->is_pattern = starts(x->text, "re:");
    if (!x->is_pattern || pattern_new(&x->pattern, x->text + 3, &why))
        return true;
    if (why.code == ERR_RESOURCE) {
        *e = why;
        return false;
    }
    report_error(r, 9, x->text, "a regular expression of Python", "%s", why.text);
    x->has_matched = true; /* what it would match is not known */
    return true;
}

/* Ranks in compressed-tensors' order: names sorted, then patterns sorted. */
static int by_rank(const void *a, const void *b)
{
    const struct entry *x = *(struct entry *const *)a, *y = *(struct entry *const *)b;
    bool p = strstr(x->text, "re:"), q = strstr(y->text, "re:");
    return p != q ? p - q : strcmp(x->text, y->text);
}

static bool rank(struct list *l, struct err *e)
{
    struct entry **sorted;
    if (!mem_new(&sorted, l->n + 1, e))
        return false;
    for (size_t i = 0; i < l->n; i++)
        sorted[i] = &l->entries[i];
    qsort(sorted, l->n, sizeof *sorted, by_rank);
    for (size_t i = 0; i < l->n; i++)
        sorted[i]->rank = i;
    mem_free(sorted);
    return true;
}

/* The list of `n` texts, which are sorted anew. */
static bool list_init(struct matcher *m, struct list *l, struct text_at *texts, size_t n, struct report *r,
                      struct err *e)
{
    n = unite(texts, n);
    if (!mem_new(&l->entries, n + 1, e) || !mem_new(&l->patterns, n + 1, e))
        return false;
    for (size_t i = 0; i < n; i++) {
        struct entry *x = &l->entries[l->n++];
        *x = (struct entry){.text = texts[i].text, .group = texts[i].group};
        if (!compile(x, r, e))
            return false;
        if (x->is_pattern)
            l->patterns[l->n_patterns++] = i;
    }
    for (int form = 0; form < N_FORMS; form++)
        if (!fill_lookup(m, l, (enum name_form)form, e))
            return false;
    return rank(l, e);
}

static bool fill(struct matcher *m, const struct quant *q, struct text_at *texts, struct report *r, struct err *e)
{
    size_t n = 0;
    for (size_t g = 0; g < q->n_groups; g++)
        for (size_t i = 0; i < q->groups[g].n_targets; i++, n++)
            texts[n] = (struct text_at){q->groups[g].targets[i], n, g};
    if (!list_init(m, &m->targets, texts, n, r, e))
        return false;
    for (n = 0; n < q->n_ignore; n++)
        texts[n] = (struct text_at){q->ignore[n], n, 0};
    return list_init(m, &m->ignore, texts, n, r, e);
}

bool matcher_new(struct matcher **out, const struct quant *q, struct report *r, struct err *e)
{
    struct matcher *m;
    struct text_at *texts;
    size_t n = q->n_ignore + 1;
    for (size_t g = 0; g < q->n_groups; g++)
        n += q->groups[g].n_targets;
    if (!mem_new(&m, 1, e))
        return false;
    bool ok = mem_new(&texts, n, e);
    if (ok) {
        ok = fill(m, q, texts, r, e);
        mem_free(texts);
    }
    if (!ok) {
        matcher_free(m);
        return false;
    }
    *out = m;
    return true;
}

static bool finish_list(const struct list *l, struct report *r, struct err *e)
{
    for (size_t i = 0; i < l->n; i++) {
        const struct entry *x = &l->entries[i];
        enum pattern_state state = x->pattern ? pattern_state(x->pattern) : PATTERN_FINE;
        if (state == PATTERN_NO_MEMORY)
            return err_set(e, ERR_RESOURCE, "out of memory for matching '%.200s'", x->text);
        if (state == PATTERN_GAVE_UP)
            report_error(r, 9, x->text, "a pattern that takes few steps on each name", "matching it was given up");
    }
    return true;
}

bool matcher_finish(const struct matcher *m, struct report *r, struct err *e)
{
    for (size_t i = 0; i < m->targets.n; i++) {
        const struct entry *x = &m->targets.entries[i];
        /* Names without a dot may be classes of modules that tensors do not tell. */
        if (!x->has_matched && !x->is_pattern && !strchr(x->text, '.'))
            report_warning(r, 2, x->text, "a target that matches a layer", "it matches none that tensors tell of");
        else if (!x->has_matched)
            report_error(r, 2, x->text, "a target that matches a layer", "it matches none");
    }
    return finish_list(&m->targets, r, e) && finish_list(&m->ignore, r, e);
}

static void list_fini(struct list *l)
{
    for (size_t i = 0; i < l->n; i++)
        pattern_free(l->entries[i].pattern);
    for (int form = 0; form < N_FORMS; form++)
        mem_free(l->exact[form]);
    mem_free(l->entries);
    mem_free(l->patterns);
}

void matcher_free(struct matcher *m)
{
    if (!m)
        return;
    list_fini(&m->targets);
    list_fini(&m->ignore);
    arena_free(&m->arena);
    mem_free(m);
}
