/* Node type `correlate`: how well surrogates order what was measured. Per surrogate and origin of the candidates: the
 * rank correlation of its sums with the measured KL, without and with its pairs. For swaps of equal bytes: how often it
 * says rightly which of two is better, of all swaps and of those that a paired interval tells apart. For pairs: what
 * four real KLs say of them, KL(both) - KL(one) - KL(other) + KL(base), beside what the surrogate says. */
#include <math.h>
#include <string.h>

#include "nodes/nodes.h"
#include "nodes/search/candidates.h"
#include "nodes/search/column.h"
#include "nodes/search/spearman.h"
#include "nodes/search/stats.h"
#include "nodes/search/surrogate.h"

#define LEVEL 0.95

struct line {
    const char *surrogate, *kind, *origin;
    double spearman;
    uint64_t n;
};

struct sign {
    const char *surrogate, *kind;
    uint64_t n, right, n_apart, right_apart;
};

struct check {
    const char *surrogate;
    uint32_t units[2];
    uint8_t formats[2];
    double measured, predicted;
};

struct correlate {
    struct node *n;
    struct menu menu;
    struct candidates rows;
    struct line *lines;
    size_t n_lines, lines_capacity;
    struct sign *signs;
    size_t n_signs, signs_capacity;
    struct check *checks;
    size_t n_checks, checks_capacity;
    double *score, *kl; /* [candidate] */
    struct arena names;
};

static const char *const kinds[] = {"units", "units + pairs"};

#define grow(list, n, capacity, e) \
    ((n) < (capacity) ||                                                                                               \
     (mem_grow(&(list), (capacity), 2 * (capacity) + 16, (e)) && ((capacity) = 2 * (capacity) + 16)))

/* ----------------------------------------------------------------------------------------------------- correlations */

static bool is_measured(const struct correlate *c, size_t i)
{
    return candidate_is_complete(&c->rows, &c->rows.list[i]);
}

/* `origin` NULL: all. */
static bool add_line(struct correlate *c, const char *name, const char *kind, const char *origin, const double *all,
                     struct err *e)
{
    size_t n = 0;
    for (size_t i = 0; i < c->rows.n; i++)
        if (is_measured(c, i) && (!origin || strcmp(c->rows.list[i].origin, origin) == 0)) {
            c->score[n] = all[i];
            c->kl[n++] = c->rows.list[i].kl_mean;
        }
    struct line l = {.surrogate = name, .kind = kind, .origin = origin ? origin : "all", .n = n};
    if (n < 3)
        return true;
    if (!spearman(c->score, c->kl, n, &l.spearman, e) || !grow(c->lines, c->n_lines, c->lines_capacity, e))
        return false;
    c->lines[c->n_lines++] = l;
    if (!origin)
        node_log(c->n, "%s, %s: rank correlation %.4f with the KL of %zu candidates", name, kind, l.spearman, n);
    return true;
}

static bool add_lines(struct correlate *c, const char *name, const char *kind, const double *all, struct err *e)
{
    bool ok = add_line(c, name, kind, NULL, all, e);
    for (size_t i = 0; ok && i < c->rows.n; i++) {
        bool is_first = true;
        for (size_t j = 0; j < i; j++)
            is_first = is_first && strcmp(c->rows.list[i].origin, c->rows.list[j].origin) != 0;
        if (is_first)
            ok = add_line(c, name, kind, c->rows.list[i].origin, all, e);
    }
    return ok;
}

/* ------------------------------------------------------------------------------------------------------------ signs */

/* Is the KL of two candidates told apart by its interval over documents, on the same tokens? */
static bool is_apart(const struct correlate *c, const struct candidate *a, const struct candidate *b, bool *out,
                     struct err *e)
{
    struct stats_difference d;
    if (!stats_paired_interval(a->kl_window, b->kl_window, c->rows.window_tokens, c->rows.window_document,
                               c->rows.n_windows, LEVEL, &d, e))
        return false;
    *out = d.low > 0 || d.high < 0;
    return true;
}

/* Of swaps, against the candidate that they were made from. */
static bool add_signs(struct correlate *c, const char *name, const char *kind, const double *all, struct err *e)
{
    struct sign s = {.surrogate = name, .kind = kind};
    for (size_t i = 0; i < c->rows.n; i++) {
        const struct candidate *x = &c->rows.list[i];
        if (strcmp(x->origin, "swap") != 0 || x->parent < 0 || !is_measured(c, i) || !is_measured(c, (size_t)x->parent))
            continue;
        const struct candidate *from = &c->rows.list[x->parent];
        bool apart, right = (all[i] > all[x->parent]) == (x->kl_mean > from->kl_mean);
        if (!is_apart(c, x, from, &apart, e))
            return false;
        s.n++;
        s.right += right;
        s.n_apart += apart;
        s.right_apart += apart && right;
    }
    if (s.n == 0)
        return true;
    if (!grow(c->signs, c->n_signs, c->signs_capacity, e))
        return false;
    c->signs[c->n_signs++] = s;
    node_log(c->n, "%s, %s: right about %llu of %llu swaps; of those that are told apart, %llu of %llu", name, kind,
             (unsigned long long)s.right, (unsigned long long)s.n, (unsigned long long)s.right_apart,
             (unsigned long long)s.n_apart);
    return true;
}

/* ------------------------------------------------------------------------------------------------------------ pairs */

/* The row of the assignment `x` with the given units as in the base (from) or as in `x`; -1 if it is not measured. */
static long row_with(const struct correlate *c, uint8_t *scratch, const uint8_t *x, const uint8_t *base,
                     const uint32_t *units, int which)
{
    memcpy(scratch, x, (size_t)c->menu.n_units);
    for (int side = 0; side < 2; side++)
        if (!(which & (1 << side)))
            scratch[units[side]] = base[units[side]];
    long at = candidates_find(&c->rows, scratch);
    return at >= 0 && is_measured(c, (size_t)at) ? at : -1;
}

static const double *pair_table(const struct correlate *c, const struct surrogate *s, const uint32_t units[2])
{
    size_t cells = (size_t)c->menu.n_formats * (size_t)c->menu.n_formats;
    for (size_t i = 0; i < s->n_pairs; i++)
        if (s->pairs[i][0] == units[0] && s->pairs[i][1] == units[1])
            return s->pair_cost + i * cells;
    return NULL;
}

static bool add_check(struct correlate *c, const char *name, const struct surrogate *s, const struct candidate *base,
                      const struct candidate *x, uint8_t *scratch, struct err *e)
{
    struct check k = {.surrogate = name};
    int n = 0;
    double kl[4];
    for (int u = 0; u < c->menu.n_units; u++)
        if (x->assignment[u] != base->assignment[u]) {
            if (n == 2)
                return true;
            k.units[n] = (uint32_t)u;
            k.formats[n++] = x->assignment[u];
        }
    const double *table = n == 2 ? pair_table(c, s, k.units) : NULL;
    if (!table)
        return true;
    for (int which = 0; which < 4; which++) {
        long at = row_with(c, scratch, x->assignment, base->assignment, k.units, which);
        if (at < 0)
            return true;
        kl[which] = c->rows.list[at].kl_mean;
    }
    k.measured = kl[3] - kl[2] - kl[1] + kl[0];
    int formats_n = c->menu.n_formats, from[2] = {base->assignment[k.units[0]], base->assignment[k.units[1]]};
    k.predicted = table[k.formats[0] * formats_n + k.formats[1]] - table[k.formats[0] * formats_n + from[1]] -
                  table[from[0] * formats_n + k.formats[1]] + table[from[0] * formats_n + from[1]];
    if (!grow(c->checks, c->n_checks, c->checks_capacity, e))
        return false;
    c->checks[c->n_checks++] = k;
    node_log(c->n, "%s: %s in %s with %s in %s add %.3g nats beyond their sum; predicted %.3g", name,
             c->menu.unit_names[k.units[0]], c->menu.format_names[k.formats[0]], c->menu.unit_names[k.units[1]],
             c->menu.format_names[k.formats[1]], k.measured, k.predicted);
    return true;
}

/* Rows of origin "pair" against what they were made from (nodes/probe.c). */
static bool add_checks(struct correlate *c, const char *name, const struct surrogate *s, struct err *e)
{
    uint8_t *scratch;
    if (!mem_new(&scratch, (size_t)c->menu.n_units, e))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < c->rows.n; i++) {
        const struct candidate *x = &c->rows.list[i];
        if (strcmp(x->origin, "pair") == 0 && x->parent >= 0)
            ok = add_check(c, name, s, &c->rows.list[x->parent], x, scratch, e);
    }
    mem_free(scratch);
    return ok;
}

/* ---------------------------------------------------------------------------------------------------------- results */

static bool write_lines(struct correlate *c, struct writer *w, struct err *e)
{
    size_t n = c->n_lines;
    const char **text;
    double *value = NULL;
    uint64_t *count = NULL;
    if (!mem_new(&text, 3 * n, e))
        return false;
    bool ok = mem_new(&value, n, e) && mem_new(&count, n, e);
    for (size_t i = 0; ok && i < n; i++) {
        text[i] = c->lines[i].surrogate;
        text[n + i] = c->lines[i].kind;
        text[2 * n + i] = c->lines[i].origin;
        value[i] = c->lines[i].spearman;
        count[i] = c->lines[i].n;
    }
    ok = ok && writer_add_strings(w, "correlation/name", text, n, "line",
                                  "the surrogate: type of its node, and which of several", e) &&
         writer_add_strings(w, "correlation/kind", text + n, n, "line", "what of it was summed", e) &&
         writer_add_strings(w, "correlation/origin", text + 2 * n, n, "line", "which candidates", e) &&
         column_write(w, "correlation/spearman", DTYPE_F64, value, n, "1", "line",
                      "rank correlation of the sum and the measured KL", e) &&
         column_write(w, "correlation/n", DTYPE_U64, count, n, "1", "line", "measured candidates", e);
    mem_free(count);
    mem_free(value);
    mem_free(text);
    return ok;
}

static bool write_signs(struct correlate *c, struct writer *w, struct err *e)
{
    size_t n = c->n_signs;
    const char **text;
    uint64_t *count = NULL;
    if (!mem_new(&text, 2 * n, e))
        return false;
    bool ok = mem_new(&count, 4 * n, e);
    for (size_t i = 0; ok && i < n; i++) {
        const struct sign *s = &c->signs[i];
        text[i] = s->surrogate;
        text[n + i] = s->kind;
        count[i] = s->n;
        count[n + i] = s->right;
        count[2 * n + i] = s->n_apart;
        count[3 * n + i] = s->right_apart;
    }
    ok = ok && writer_add_strings(w, "swaps/name", text, n, "line",
                                  "the surrogate: type of its node, and which of several", e) &&
         writer_add_strings(w, "swaps/kind", text + n, n, "line", "what of it was summed", e) &&
         column_write(w, "swaps/n", DTYPE_U64, count, n, "1", "line", "swaps of equal bytes", e) &&
         column_write(w, "swaps/right", DTYPE_U64, count + n, n, "1", "line", "whose sign it predicts", e) &&
         column_write(w, "swaps/n_apart", DTYPE_U64, count + 2 * n, n, "1", "line",
                      "that the paired 95 % interval over documents tells apart", e) &&
         column_write(w, "swaps/right_apart", DTYPE_U64, count + 3 * n, n, "1", "line", "whose sign it predicts", e);
    mem_free(count);
    mem_free(text);
    return ok;
}

static bool write_checks(struct correlate *c, struct writer *w, struct err *e)
{
    size_t n = c->n_checks;
    const char **text;
    uint32_t *units = NULL;
    uint8_t *of = NULL;
    double *value = NULL;
    if (!mem_new(&text, n, e))
        return false;
    bool ok = mem_new(&units, 2 * n, e) && mem_new(&of, 2 * n, e) && mem_new(&value, 2 * n, e);
    for (size_t i = 0; ok && i < n; i++) {
        text[i] = c->checks[i].surrogate;
        for (int side = 0; side < 2; side++) {
            units[(size_t)side * n + i] = c->checks[i].units[side];
            of[(size_t)side * n + i] = c->checks[i].formats[side];
        }
        value[i] = c->checks[i].measured;
        value[n + i] = c->checks[i].predicted;
    }
    ok = ok && writer_add_strings(w, "checks/name", text, n, "check",
                                  "the surrogate: type of its node, and which of several", e) &&
         column_write(w, "checks/unit", DTYPE_U32, units, n, "1", "check", "a unit", e) &&
         column_write(w, "checks/unit2", DTYPE_U32, units + n, n, "1", "check", "another", e) &&
         column_write(w, "checks/format", DTYPE_U8, of, n, "1", "check", "the first's format", e) &&
         column_write(w, "checks/format2", DTYPE_U8, of + n, n, "1", "check", "the other's", e) &&
         column_write(w, "checks/measured", DTYPE_F64, value, n, "nat", "check",
                      "KL(both) - KL(one) - KL(other) + KL(base)", e) &&
         column_write(w, "checks/predicted", DTYPE_F64, value + n, n, "nat", "check", "the same of the pair's costs",
                      e);
    mem_free(value);
    mem_free(of);
    mem_free(units);
    mem_free(text);
    return ok;
}

/* --------------------------------------------------------------------------------------------------------- the node */

/* What a result calls a surrogate: its type and place among those of the type, not the node's name in the graph, which
 * is not in the key. */
static bool name_surrogate(struct correlate *c, size_t at, const char **out, struct err *e)
{
    const char *type = node_input(c->n, "surrogates", at)->type;
    size_t before = 0, all = 0;
    for (size_t i = 0; i < node_inputs(c->n, "surrogates"); i++)
        if (strcmp(node_input(c->n, "surrogates", i)->type, type) == 0) {
            all++;
            before += i < at;
        }
    *out = all > 1 ? arena_printf(&c->names, e, "%s %zu", type, before + 1) : arena_printf(&c->names, e, "%s", type);
    return *out != NULL;
}

static bool look_at(struct correlate *c, size_t at, double *all, struct err *e)
{
    const struct input *in = node_input(c->n, "surrogates", at);
    const char *name;
    struct surrogate s = {0};
    if (!name_surrogate(c, at, &name, e))
        return false;
    if (!surrogate_read(&s, &c->menu, in->object, in->node, e))
        return false;
    const size_t n_pairs = s.n_pairs;
    bool ok = true;
    for (int kind = 0; ok && kind < (n_pairs > 0 ? 2 : 1); kind++) {
        s.n_pairs = kind ? n_pairs : 0;
        for (size_t i = 0; i < c->rows.n; i++)
            all[i] = surrogate_energy(&c->menu, &s, c->rows.list[i].assignment);
        ok = add_lines(c, name, kinds[kind], all, e) && add_signs(c, name, kinds[kind], all, e);
    }
    ok = ok && add_checks(c, name, &s, e);
    surrogate_fini(&s);
    return ok;
}

static bool run(struct node *n, struct err *e)
{
    struct correlate c = {.n = n};
    double *all = NULL;
    bool ok = menu_read(&c.menu, node_input(n, "renderings", 0)->object, e) &&
              candidates_read_rows(&c.rows, &c.menu, n, "rows", e) && mem_new(&all, c.rows.n, e) &&
              mem_new(&c.score, c.rows.n, e) && mem_new(&c.kl, c.rows.n, e);
    for (size_t i = 0; ok && i < node_inputs(n, "surrogates"); i++)
        ok = look_at(&c, i, all, e);
    struct writer *w = node_output(n);
    ok = ok && write_lines(&c, w, e) && write_signs(&c, w, e) && write_checks(&c, w, e) &&
         writer_add_strings(w, "units/name", (const char *const *)c.menu.unit_names, (size_t)c.menu.n_units, "unit",
                            "unit names", e) &&
         writer_add_strings(w, "formats/name", (const char *const *)c.menu.format_names, (size_t)c.menu.n_formats,
                            "format", "format names", e);
    mem_free(all);
    mem_free(c.score);
    mem_free(c.kl);
    mem_free(c.lines);
    mem_free(c.signs);
    mem_free(c.checks);
    arena_free(&c.names);
    candidates_fini(&c.rows);
    menu_fini(&c.menu);
    return ok;
}

const struct node_class node_correlate = {
    .name = "correlate",
    .summary = "how well surrogates order what was measured: rank correlations, signs of swaps, terms of pairs",
    .version = 2,
    .ports = (const struct port[]){
        {"renderings", (const char *const[]){"quantize", NULL}, false, false, "formats and bytes of every unit"},
        {"surrogates", (const char *const[]){"rank", "probe", "frontier", NULL}, true, false, "what is looked at"},
        {"rows", (const char *const[]){"measure", "select", "polish", NULL}, true, false, "what was measured"},
        {0}},
    .run = run,
};
