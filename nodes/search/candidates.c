/* The menu read from a `quantize` result, and tables of candidates: in memory, read from objects, united over the
 * inputs of a port, and written. The columns on disk are those of nodes/README.md; what is proposed has no measured
 * ones. */
#include "nodes/search/candidates.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "nodes/search/stats.h"

#define MOST_FORMATS 255 /* an assignment holds a format in a byte */
#define LEVEL 0.95

/* --------------------------------------------------------------------------------------------------------- the menu */

static bool check_menu(struct menu *m, struct object *o, struct err *e)
{
    for (int u = 0; u < m->n_units; u++) {
        int choices = 0;
        for (int f = 0; f < m->n_formats; f++)
            choices += m->available[u * m->n_formats + f] != 0;
        if (choices == 0)
            return err_set(e, ERR_INPUT, "%s: unit '%s' can have none of the %d formats; add bf16 to the formats of "
                           "the quantize node", object_path(o), m->unit_names[u], m->n_formats);
        for (int f = 0; f < m->n_formats; f++) {
            int at = u * m->n_formats, other = m->fallback[at + f];
            if (other < 0 || other >= m->n_formats || !m->available[at + other] ||
                (m->available[at + f] && other != f))
                return err_set(e, ERR_INPUT, "%s: unit '%s' would have format %d where %d is meant; its tables "
                               "do not agree", object_path(o), m->unit_names[u], other, f);
        }
        m->total_parameters += m->parameters[u];
    }
    if (m->total_parameters == 0)
        return err_set(e, ERR_INPUT, "%s: its units have no parameters", object_path(o));
    return true;
}

static bool load_menu(struct menu *m, struct object *o, struct err *e)
{
    uint64_t units, formats, n_parameters, n_layers, n_bytes, n_available, n_fallback;
    const char *serving;
    if (!object_read_strings(o, "units/name", &m->unit_names, &units, e) ||
        !object_read_strings(o, "formats/name", &m->format_names, &formats, e) ||
        !object_load(o, "units/parameters", DTYPE_U64, &m->parameters, &n_parameters, e) ||
        !object_load(o, "units/layer", DTYPE_I32, &m->layers, &n_layers, e) ||
        !object_load(o, "bytes", DTYPE_U64, &m->bytes, &n_bytes, e) ||
        !object_load(o, "available", DTYPE_U8, &m->available, &n_available, e) ||
        !object_load(o, "fallback", DTYPE_I32, &m->fallback, &n_fallback, e))
        return false;
    if (units == 0 || units > INT32_MAX / MOST_FORMATS || formats == 0 || formats > MOST_FORMATS)
        return err_set(e, ERR_INPUT, "%s: %llu units in %llu formats; there must be a unit, and 1 to %d formats",
                       object_path(o), (unsigned long long)units, (unsigned long long)formats, MOST_FORMATS);
    if (n_parameters != units || n_layers != units || n_bytes != units * formats || n_available != units * formats ||
        n_fallback != units * formats)
        return err_set(e, ERR_INPUT, "%s: its tables do not agree on the number of units (%llu) and formats (%llu)",
                       object_path(o), (unsigned long long)units, (unsigned long long)formats);
    m->n_units = (int)units;
    m->n_formats = (int)formats;
    snprintf(m->serving, sizeof m->serving, "%s", object_text(o, "serving", &serving) ? serving : "");
    return check_menu(m, o, e);
}

bool menu_read(struct menu *out, struct object *quantize, struct err *e)
{
    struct menu m = {0};
    key_text(object_key(quantize), m.key);
    if (!load_menu(&m, quantize, e)) {
        menu_fini(&m);
        return false;
    }
    *out = m;
    return true;
}

void menu_fini(struct menu *m)
{
    mem_free(m->unit_names);
    mem_free(m->format_names);
    mem_free(m->parameters);
    mem_free(m->layers);
    mem_free(m->bytes);
    mem_free(m->available);
    mem_free(m->fallback);
    *m = (struct menu){0};
}

/* The strings of dataset `name` must be names[0..n). */
static bool check_names(struct object *o, const char *name, char *const *names, int n, const char *what, struct err *e)
{
    char **theirs;
    uint64_t count;
    if (!object_read_strings(o, name, &theirs, &count, e))
        return err_context(e, "%s", what);
    bool ok = count == (uint64_t)n ||
              err_set(e, ERR_INPUT, "%s: %s has %llu entries, %d were expected: it was made from other renderings",
                      what, name, (unsigned long long)count, n);
    for (int i = 0; ok && i < n; i++)
        if (strcmp(theirs[i], names[i]) != 0)
            ok = err_set(e, ERR_INPUT, "%s: %s[%d] is '%s', '%s' was expected: it was made from other renderings", what,
                         name, i, theirs[i], names[i]);
    mem_free(theirs);
    return ok;
}

bool menu_check(const struct menu *m, struct object *o, const char *what, struct err *e)
{
    return check_names(o, "units/name", m->unit_names, m->n_units, what, e) &&
           check_names(o, "formats/name", m->format_names, m->n_formats, what, e);
}

bool menu_check_renderings(const struct menu *m, struct object *o, const char *what, struct err *e)
{
    static const char port[] = "renderings = ";
    const char *line = NULL;
    if (!menu_check(m, o, what, e))
        return false;
    if (!object_text(o, "inputs", &line)) /* a line an input; without lines where there were hundreds */
        return true;
    while (line && strncmp(line, port, strlen(port)) != 0) {
        line = strchr(line, '\n');
        line += line != NULL;
    }
    if (line && strncmp(line + strlen(port), m->key, strlen(m->key)) != 0)
        return err_set(e, ERR_INPUT, "'%s' was made from other renderings (%.12s) than those that are connected here "
                       "(%.12s); connect both to one `quantize` node", what, line + strlen(port), m->key);
    return true;
}

uint64_t menu_bytes(const struct menu *m, const uint8_t *assignment)
{
    uint64_t sum = 0;
    for (int u = 0; u < m->n_units; u++)
        sum += m->bytes[u * m->n_formats + assignment[u]];
    return sum;
}

double menu_bpp(const struct menu *m, uint64_t bytes)
{
    return 8.0 * (double)bytes / (double)m->total_parameters;
}

void menu_uniform(const struct menu *m, int format, uint8_t *assignment)
{
    for (int u = 0; u < m->n_units; u++)
        assignment[u] = (uint8_t)m->fallback[u * m->n_formats + format];
}

/* ------------------------------------------------------------------------------------------------ a table in memory */

static bool copy_windows(struct candidates *c, const uint32_t *tokens, const uint32_t *document, struct err *e)
{
    if (c->n_windows == 0)
        return true;
    if (!(c->window_tokens = arena_new(&c->arena, c->n_windows * sizeof *c->window_tokens, e)) ||
        !(c->window_document = arena_new(&c->arena, c->n_windows * sizeof *c->window_document, e)))
        return false;
    memcpy(c->window_tokens, tokens, c->n_windows * sizeof *tokens);
    memcpy(c->window_document, document, c->n_windows * sizeof *document);
    return true;
}

bool candidates_init(struct candidates *c, int n_units, uint32_t n_windows, const uint32_t *window_tokens,
                     const uint32_t *window_document, struct err *e)
{
    struct candidates made = {.n_units = n_units, .n_windows = n_windows};
    if (!copy_windows(&made, window_tokens, window_document, e)) {
        candidates_fini(&made);
        return false;
    }
    *c = made;
    return true;
}

void candidates_fini(struct candidates *c)
{
    mem_free(c->list);
    arena_free(&c->arena);
    *c = (struct candidates){0};
}

bool candidate_is_complete(const struct candidates *c, const struct candidate *x)
{
    return c->n_windows > 0 && x->n_windows == c->n_windows && isfinite(x->kl_mean);
}

bool candidate_interval(const struct candidates *c, const struct candidate *x, double *low, double *high,
                        struct err *e)
{
    double *sums = NULL, *positions = NULL;
    *low = *high = NAN;
    if (!candidate_is_complete(c, x))
        return true;
    bool ok = mem_new(&sums, c->n_windows, e) && mem_new(&positions, c->n_windows, e);
    for (uint32_t w = 0; ok && w < c->n_windows; w++) {
        positions[w] = c->window_tokens[w];
        sums[w] = x->kl_window[w] * positions[w];
    }
    ok = ok && stats_positive_interval(sums, positions, c->window_document, c->n_windows, LEVEL, low, high, e);
    mem_free(positions);
    mem_free(sums);
    return ok;
}

long candidates_find(const struct candidates *c, const uint8_t *assignment)
{
    for (size_t i = 0; i < c->n; i++)
        if (memcmp(c->list[i].assignment, assignment, (size_t)c->n_units) == 0)
            return (long)i;
    return -1;
}

/* A new last entry with its arrays, unmeasured. */
static struct candidate *append(struct candidates *c, const uint8_t *assignment, const char *origin, int32_t parent,
                                struct err *e)
{
    if (c->n >= INT32_MAX) {
        err_set(e, ERR_RESOURCE, "a table holds at most %d candidates", INT32_MAX);
        return NULL;
    }
    if (c->n == c->capacity) {
        size_t capacity = c->capacity ? 2 * c->capacity : 16;
        if (!mem_grow(&c->list, c->capacity, capacity, e))
            return NULL;
        c->capacity = capacity;
    }
    struct candidate x = {.id = (uint32_t)c->n, .parent = parent, .origin = origin, .bpp = NAN, .kl_mean = NAN,
                          .kl_p95 = NAN, .kl_p99 = NAN, .kl_p999 = NAN, .kl_max = NAN, .nll_delta = NAN, .top1 = NAN,
                          .dropped_at = -1, .dropped_by = -1};
    if (!(x.assignment = arena_new(&c->arena, (size_t)c->n_units, e)))
        return NULL;
    memcpy(x.assignment, assignment, (size_t)c->n_units);
    if (c->n_windows > 0 && !(x.kl_window = arena_new(&c->arena, c->n_windows * sizeof *x.kl_window, e)))
        return NULL;
    for (uint32_t w = 0; w < c->n_windows; w++)
        x.kl_window[w] = NAN;
    c->list[c->n] = x;
    return &c->list[c->n++];
}

struct candidate *candidates_add(struct candidates *c, const struct menu *m, const uint8_t *assignment,
                                 const char *origin, int32_t parent, struct err *e)
{
    const char *kept = arena_strdup(&c->arena, origin, e); /* it may be in another table's arena */
    struct candidate *x = kept ? append(c, assignment, kept, parent, e) : NULL;
    if (!x)
        return NULL;
    x->bytes = menu_bytes(m, assignment);
    x->bpp = menu_bpp(m, x->bytes);
    return x;
}

/* --------------------------------------------------------------------------------------------------- from an object */

/* The columns of a table as they are on disk. NULL: not there. */
struct columns {
    uint64_t n;
    uint32_t *id, *n_windows, *window_tokens, *window_document;
    int32_t *parent, *dropped_at, *dropped_by;
    char **origin;
    double *bpp, *kl_mean, *kl_window, *kl_p95, *kl_p99, *kl_p999, *kl_max, *nll_delta, *top1;
    uint64_t *bytes, *tokens;
    uint8_t *assignment;
};

static void free_columns(struct columns *x)
{
    mem_free(x->id);
    mem_free(x->n_windows);
    mem_free(x->window_tokens);
    mem_free(x->window_document);
    mem_free(x->parent);
    mem_free(x->dropped_at);
    mem_free(x->dropped_by);
    mem_free(x->origin);
    mem_free(x->bpp);
    mem_free(x->kl_mean);
    mem_free(x->kl_window);
    mem_free(x->kl_p95);
    mem_free(x->kl_p99);
    mem_free(x->kl_p999);
    mem_free(x->kl_max);
    mem_free(x->nll_delta);
    mem_free(x->top1);
    mem_free(x->bytes);
    mem_free(x->tokens);
    mem_free(x->assignment);
}

/* One column of `n` elements. */
static bool load_column(struct object *o, const char *name, enum dtype t, uint64_t n, void **out, struct err *e)
{
    uint64_t count;
    if (!object_read_all(o, name, t, out, &count, e))
        return false;
    if (count != n)
        return err_set(e, ERR_INPUT, "%s: '%s' has %llu elements, the table's shape wants %llu", object_path(o), name,
                       (unsigned long long)count, (unsigned long long)n);
    return true;
}

static bool load_measured(struct columns *x, struct object *o, uint64_t windows, struct err *e)
{
    return load_column(o, "windows/tokens", DTYPE_U32, windows, (void **)&x->window_tokens, e) &&
           load_column(o, "windows/document", DTYPE_U32, windows, (void **)&x->window_document, e) &&
           load_column(o, "candidates/kl_mean", DTYPE_F64, x->n, (void **)&x->kl_mean, e) &&
           load_column(o, "candidates/kl_window", DTYPE_F64, x->n * windows, (void **)&x->kl_window, e) &&
           load_column(o, "candidates/kl_p95", DTYPE_F64, x->n, (void **)&x->kl_p95, e) &&
           load_column(o, "candidates/kl_p99", DTYPE_F64, x->n, (void **)&x->kl_p99, e) &&
           load_column(o, "candidates/kl_p999", DTYPE_F64, x->n, (void **)&x->kl_p999, e) &&
           load_column(o, "candidates/kl_max", DTYPE_F64, x->n, (void **)&x->kl_max, e) &&
           load_column(o, "candidates/nll_delta", DTYPE_F64, x->n, (void **)&x->nll_delta, e) &&
           load_column(o, "candidates/top1", DTYPE_F64, x->n, (void **)&x->top1, e) &&
           load_column(o, "candidates/n_windows", DTYPE_U32, x->n, (void **)&x->n_windows, e) &&
           load_column(o, "candidates/tokens", DTYPE_U64, x->n, (void **)&x->tokens, e) &&
           load_column(o, "candidates/dropped_at", DTYPE_I32, x->n, (void **)&x->dropped_at, e) &&
           load_column(o, "candidates/dropped_by", DTYPE_I32, x->n, (void **)&x->dropped_by, e);
}

/* All columns, and the shape of the table. */
static bool load_columns(struct columns *x, struct object *o, uint64_t *units, uint64_t *windows, struct err *e)
{
    const struct dataset *assignment = object_dataset(o, "candidates/assignment");
    const struct dataset *kl = object_dataset(o, "candidates/kl_window");
    if (!assignment || assignment->rank != 2 || assignment->shape[1] == 0 || assignment->shape[1] > INT32_MAX)
        return err_set(e, ERR_INPUT, "%s: holds no table of candidates ('candidates/assignment', a row a candidate)",
                       object_path(o));
    if (kl && (kl->rank != 2 || kl->shape[0] != assignment->shape[0] || kl->shape[1] > UINT32_MAX))
        return err_set(e, ERR_INPUT, "%s: 'candidates/kl_window' does not have a row a candidate", object_path(o));
    uint64_t origins;
    x->n = assignment->shape[0];
    *units = assignment->shape[1];
    *windows = kl ? kl->shape[1] : 0;
    if (!load_column(o, "candidates/id", DTYPE_U32, x->n, (void **)&x->id, e) ||
        !load_column(o, "candidates/parent", DTYPE_I32, x->n, (void **)&x->parent, e) ||
        !load_column(o, "candidates/bpp", DTYPE_F64, x->n, (void **)&x->bpp, e) ||
        !load_column(o, "candidates/bytes", DTYPE_U64, x->n, (void **)&x->bytes, e) ||
        !load_column(o, "candidates/assignment", DTYPE_U8, x->n * *units, (void **)&x->assignment, e) ||
        !object_read_strings(o, "candidates/origin", &x->origin, &origins, e))
        return false;
    if (origins != x->n)
        return err_set(e, ERR_INPUT, "%s: 'candidates/origin' has %llu entries for %llu candidates", object_path(o),
                       (unsigned long long)origins, (unsigned long long)x->n);
    return *windows == 0 || load_measured(x, o, *windows, e);
}

/* What the columns of row i point at must be there: other code takes ids and formats for indices. */
static bool check_row(const struct columns *x, size_t i, size_t units, uint64_t formats, struct object *o,
                      struct err *e)
{
    if (x->id[i] != i || x->parent[i] < -1 || x->parent[i] >= (int64_t)x->n)
        return err_set(e, ERR_INPUT, "%s: row %zu of its candidates has id %u and parent %d; ids count from 0 and "
                       "parents are among them", object_path(o), i, x->id[i], x->parent[i]);
    if (x->dropped_by && (x->dropped_by[i] < -1 || x->dropped_by[i] >= (int64_t)x->n))
        return err_set(e, ERR_INPUT, "%s: candidate %zu was dropped by candidate %d of %llu", object_path(o), i,
                       x->dropped_by[i], (unsigned long long)x->n);
    for (size_t u = 0; u < units; u++)
        if (x->assignment[i * units + u] >= formats)
            return err_set(e, ERR_INPUT, "%s: candidate %zu has unit %zu in format %u of %llu", object_path(o), i, u,
                           x->assignment[i * units + u], (unsigned long long)formats);
    return true;
}

static bool fill_table(struct candidates *c, const struct columns *x, struct object *o, struct err *e)
{
    size_t units = (size_t)c->n_units;
    const struct dataset *formats = object_dataset(o, "formats/name");
    if (!formats)
        return err_set(e, ERR_INPUT, "%s: has no 'formats/name' beside its candidates", object_path(o));
    for (size_t i = 0; i < x->n; i++) {
        if (!check_row(x, i, units, formats->shape[0], o, e))
            return false;
        const char *origin = arena_strdup(&c->arena, x->origin[i], e);
        struct candidate *to = origin ? append(c, x->assignment + i * units, origin, x->parent[i], e) : NULL;
        if (!to)
            return false;
        to->bytes = x->bytes[i];
        to->bpp = x->bpp[i];
        if (c->n_windows == 0)
            continue;
        to->kl_mean = x->kl_mean[i];
        to->kl_p95 = x->kl_p95[i];
        to->kl_p99 = x->kl_p99[i];
        to->kl_p999 = x->kl_p999[i];
        to->kl_max = x->kl_max[i];
        to->nll_delta = x->nll_delta[i];
        to->top1 = x->top1[i];
        to->n_windows = x->n_windows[i];
        to->tokens = x->tokens[i];
        to->dropped_at = x->dropped_at[i];
        to->dropped_by = x->dropped_by[i];
        memcpy(to->kl_window, x->kl_window + i * c->n_windows, c->n_windows * sizeof *to->kl_window);
    }
    return true;
}

/* A root attribute, or "". */
static void read_attribute(struct object *o, const char *name, char *out, size_t bytes)
{
    const char *text;
    snprintf(out, bytes, "%s", object_text(o, name, &text) ? text : "");
}

bool candidates_read(struct candidates *c, struct object *o, struct err *e)
{
    struct columns x = {0};
    struct candidates made = {0};
    uint64_t units = 0, windows = 0;
    bool ok = load_columns(&x, o, &units, &windows, e) &&
              candidates_init(&made, (int)units, (uint32_t)windows, x.window_tokens, x.window_document, e);
    if (ok && windows > 0) {
        read_attribute(o, "numeric", made.numeric, sizeof made.numeric);
        read_attribute(o, "tokens", made.tokens, sizeof made.tokens);
        read_attribute(o, "context", made.context, sizeof made.context);
    }
    ok = ok && fill_table(&made, &x, o, e);
    free_columns(&x);
    if (!ok) {
        candidates_fini(&made);
        return false;
    }
    *c = made;
    return true;
}

bool candidates_read_chosen(struct candidates *c, const struct input *in, uint32_t *chosen, struct err *e)
{
    if (!object_read(in->object, "chosen", DTYPE_U32, 0, 1, chosen, e) || !candidates_read(c, in->object, e))
        return false;
    if (*chosen < c->n)
        return true;
    err_set(e, ERR_INPUT, "'%s' chose candidate %u of %zu", in->node, *chosen, c->n);
    candidates_fini(c);
    return false;
}

/* -------------------------------------------------------------------------------------------------- union of tables */

/* The measured columns of `from` into `to`; both tables have the same windows. */
static void copy_measured(const struct candidates *c, struct candidate *to, const struct candidate *from)
{
    to->kl_mean = from->kl_mean;
    to->kl_p95 = from->kl_p95;
    to->kl_p99 = from->kl_p99;
    to->kl_p999 = from->kl_p999;
    to->kl_max = from->kl_max;
    to->nll_delta = from->nll_delta;
    to->top1 = from->top1;
    to->n_windows = from->n_windows;
    to->tokens = from->tokens;
    to->dropped_at = from->dropped_at;
    to->dropped_by = from->dropped_by;
    memcpy(to->kl_window, from->kl_window, c->n_windows * sizeof *to->kl_window);
}

/* Where a row of one table went in the union. */
struct place {
    int32_t at;
    bool is_new, is_copied; /* the row is of this table; its measured columns are */
};

/* One row into the union: a new one, or an equal one's measured columns where this table measured more. */
static bool unite_row(struct candidates *c, const struct candidate *x, struct place *to, struct err *e)
{
    long at = candidates_find(c, x->assignment);
    *to = (struct place){.is_new = at < 0};
    if (at < 0) {
        const char *origin = arena_strdup(&c->arena, x->origin, e);
        struct candidate *made = origin ? append(c, x->assignment, origin, -1, e) : NULL;
        if (!made)
            return false;
        made->bytes = x->bytes;
        made->bpp = x->bpp;
        at = (long)made->id;
    }
    to->at = (int32_t)at;
    to->is_copied = (to->is_new && x->kl_window) || x->n_windows > c->list[at].n_windows;
    if (to->is_copied)
        copy_measured(c, &c->list[at], x);
    return true;
}

/* Put the rows of `from` into `c`. Parents and droppers are indices of `from`, so they are renumbered by where each row
 * went. */
static bool unite(struct candidates *c, const struct candidates *from, struct err *e)
{
    struct place *places;
    bool ok = true;
    if (!mem_new(&places, from->n, e))
        return false;
    for (size_t i = 0; ok && i < from->n; i++)
        ok = unite_row(c, &from->list[i], &places[i], e);
    for (size_t i = 0; ok && i < from->n; i++) {
        const struct candidate *x = &from->list[i];
        struct candidate *to = &c->list[places[i].at];
        if (places[i].is_new && x->parent >= 0)
            to->parent = places[x->parent].at;
        if (places[i].is_copied && x->dropped_by >= 0)
            to->dropped_by = places[x->dropped_by].at;
    }
    mem_free(places);
    return ok;
}

/* Two measured tables must be of one context. The windows and the arithmetic are part of it, but say more in a message;
 * what is left are models, teachers and renderings that differ although their units and formats have the same names. */
static bool check_comparable(const struct candidates *a, const char *a_node, const struct candidates *b,
                             const char *b_node, struct err *e)
{
    if (strcmp(a->numeric, b->numeric) != 0)
        return err_set(e, ERR_INPUT, "'%s' was measured in '%s' and '%s' in '%s'; only rows of one numeric mode can be "
                       "compared", a_node, a->numeric, b_node, b->numeric);
    if (a->n_windows != b->n_windows || strcmp(a->tokens, b->tokens) != 0)
        return err_set(e, ERR_INPUT, "'%s' was measured on other windows (%u of them) than '%s' (%u); connect nodes "
                       "that measure on the same token set", b_node, b->n_windows, a_node, a->n_windows);
    if (strcmp(a->context, b->context) != 0)
        return err_set(e, ERR_INPUT, "'%s' and '%s' were measured with different renderings, teachers or models "
                       "(contexts %.12s and %.12s), so their KLs cannot be compared; connect nodes that measure the "
                       "same `quantize` node with the same teacher", a_node, b_node, a->context, b->context);
    return true;
}

/* The tables of a port, each of which must pass `check`. */
static bool load_tables(struct candidates *tables, size_t n, const struct menu *m, struct node *node, const char *port,
                        bool (*check)(const struct menu *, struct object *, const char *, struct err *),
                        struct err *e)
{
    if (n == 0)
        return err_set(e, ERR_BUG, "port '%s' has no table to read", port);
    for (size_t i = 0; i < n; i++) {
        const struct input *in = node_input(node, port, i);
        if (!candidates_read(&tables[i], in->object, e))
            return err_context(e, "%s '%s'", port, in->node);
        if (!check(m, in->object, in->node, e))
            return false;
        if (tables[i].n_units != m->n_units)
            return err_set(e, ERR_INPUT, "%s '%s': assignments of %d units beside a list of %d", port, in->node,
                           tables[i].n_units, m->n_units);
    }
    return true;
}

/* The first of the tables that was measured, else the first. Those that were must be comparable. */
static bool first_measured(const struct candidates *tables, size_t n, struct node *node, const char *port, size_t *out,
                           struct err *e)
{
    size_t first = n;
    for (size_t i = 0; i < n; i++) {
        if (tables[i].n_windows == 0)
            continue;
        if (first == n)
            first = i;
        else if (!check_comparable(&tables[first], node_input(node, port, first)->node, &tables[i],
                                   node_input(node, port, i)->node, e))
            return false;
    }
    *out = first < n ? first : 0;
    return true;
}

static bool unite_rows(struct candidates *c, const struct candidates *tables, size_t n, struct node *node,
                       const char *port, struct err *e)
{
    size_t first;
    if (!first_measured(tables, n, node, port, &first, e))
        return false;
    const struct candidates *t = &tables[first];
    if (!candidates_init(c, t->n_units, t->n_windows, t->window_tokens, t->window_document, e))
        return false;
    memcpy(c->numeric, t->numeric, sizeof c->numeric);
    memcpy(c->tokens, t->tokens, sizeof c->tokens);
    memcpy(c->context, t->context, sizeof c->context);
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++)
        ok = unite(c, &tables[i], e);
    return ok;
}

static void free_tables(struct candidates *tables, size_t n)
{
    for (size_t i = 0; i < n; i++)
        candidates_fini(&tables[i]);
    mem_free(tables);
}

bool candidates_read_rows(struct candidates *c, const struct menu *m, struct node *n, const char *port, struct err *e)
{
    struct candidates *tables, made = {0};
    size_t count = node_inputs(n, port);
    if (!mem_new(&tables, count, e))
        return false;
    bool ok = load_tables(tables, count, m, n, port, menu_check_renderings, e) &&
              unite_rows(&made, tables, count, n, port, e);
    free_tables(tables, count);
    if (ok)
        *c = made;
    else
        candidates_fini(&made);
    return ok;
}

static bool check_formats(const struct candidates *c, const struct menu *m, const char *node, struct err *e)
{
    for (size_t i = 0; i < c->n; i++)
        for (int u = 0; u < m->n_units; u++) {
            int f = c->list[i].assignment[u]; /* the menu's: menu_check */
            if (!m->available[u * m->n_formats + f])
                return err_set(e, ERR_INPUT, "'%s': candidate %zu gives unit '%s' format %s, which it cannot have",
                               node, i, m->unit_names[u], m->format_names[f]);
        }
    return true;
}

/* A table as if nothing in it had been measured, and of the menu's sizes. */
static void strip(struct candidates *c, const struct menu *m)
{
    c->n_windows = 0;
    for (size_t i = 0; i < c->n; i++) {
        struct candidate *x = &c->list[i];
        x->n_windows = 0;
        x->kl_window = NULL; /* the arena's */
        x->dropped_at = x->dropped_by = -1;
        x->bytes = menu_bytes(m, x->assignment);
        x->bpp = menu_bpp(m, x->bytes);
    }
}

bool candidates_read_assignments(struct candidates *c, const struct menu *m, struct node *n, const char *port,
                                 struct err *e)
{
    struct candidates *tables, made = {0};
    size_t count = node_inputs(n, port);
    if (!mem_new(&tables, count, e))
        return false;
    bool ok = load_tables(tables, count, m, n, port, menu_check, e) &&
              candidates_init(&made, m->n_units, 0, NULL, NULL, e);
    for (size_t i = 0; ok && i < count; i++) {
        ok = check_formats(&tables[i], m, node_input(n, port, i)->node, e);
        if (ok)
            strip(&tables[i], m);
        ok = ok && unite(&made, &tables[i], e);
    }
    free_tables(tables, count);
    if (ok)
        *c = made;
    else
        candidates_fini(&made);
    return ok;
}

/* ---------------------------------------------------------------------------------------------------------- writing */

/* A column of the group /candidates. `field` is the offset in struct candidate, `bytes` the size of an element. */
struct column {
    const char *name;
    enum dtype dtype;
    size_t field;
    const char *unit, *description;
};

#define FIELD(f) offsetof(struct candidate, f)
static const struct column always[] = {
    {"candidates/id", DTYPE_U32, FIELD(id), "1", "index of the row"},
    {"candidates/parent", DTYPE_I32, FIELD(parent), "1", "id of the candidate that it was made from; -1: none"},
    {"candidates/bpp", DTYPE_F64, FIELD(bpp), "bit", "8 * bytes / parameters of all units"},
    {"candidates/bytes", DTYPE_U64, FIELD(bytes), "byte", "payload of all units as exported"},
};
static const struct column when_measured[] = {
    {"candidates/kl_mean", DTYPE_F64, FIELD(kl_mean), "nat", "mean KL(teacher || candidate) over all scored positions; "
     "NaN where not every window was measured"},
    {"candidates/kl_p95", DTYPE_F64, FIELD(kl_p95), "nat", "95th percentile of KL over the scored positions, by "
     "nearest rank"},
    {"candidates/kl_p99", DTYPE_F64, FIELD(kl_p99), "nat", "99th percentile"},
    {"candidates/kl_p999", DTYPE_F64, FIELD(kl_p999), "nat", "99.9th percentile"},
    {"candidates/kl_max", DTYPE_F64, FIELD(kl_max), "nat", "largest KL of a scored position"},
    {"candidates/nll_delta", DTYPE_F64, FIELD(nll_delta), "nat", "mean negative log-likelihood of the text under the "
     "candidate minus that under the teacher, per scored position"},
    {"candidates/top1", DTYPE_F64, FIELD(top1), "1", "share of scored positions with the teacher's most likely token"},
    {"candidates/n_windows", DTYPE_U32, FIELD(n_windows), "1", "windows measured"},
    {"candidates/tokens", DTYPE_U64, FIELD(tokens), "token", "scored positions measured"},
    {"candidates/dropped_at", DTYPE_I32, FIELD(dropped_at), "1", "windows after which racing gave it up; -1: never"},
    {"candidates/dropped_by", DTYPE_I32, FIELD(dropped_by), "1", "id of the candidate that beat it then; -1: none"},
};

static bool write_column(const struct candidates *c, const struct column *k, struct writer *w, struct err *e)
{
    size_t bytes = dtype_bytes(k->dtype);
    char *data;
    if (!mem_new_bytes((void **)&data, c->n, bytes, e))
        return false;
    for (size_t i = 0; i < c->n; i++)
        memcpy(data + i * bytes, (const char *)&c->list[i] + k->field, bytes);
    return writer_add_take(w, &(struct dataset){.name = k->name, .dtype = k->dtype, .rank = 1, .shape = {c->n},
                                                .unit = k->unit, .axes = "candidate", .description = k->description},
                           data, e);
}

static bool write_assignments(const struct candidates *c, struct writer *w, struct err *e)
{
    size_t units = (size_t)c->n_units;
    uint8_t *data;
    if (!mem_new(&data, c->n * units, e))
        return false;
    for (size_t i = 0; i < c->n; i++)
        memcpy(data + i * units, c->list[i].assignment, units);
    return writer_add_take(w, &(struct dataset){.name = "candidates/assignment", .dtype = DTYPE_U8, .rank = 2,
                                                .shape = {c->n, units}, .unit = "1", .axes = "candidate, unit",
                                                .description = "index into /formats/name"}, data, e);
}

static bool write_origins(const struct candidates *c, struct writer *w, struct err *e)
{
    const char **origins;
    if (!mem_new(&origins, c->n, e))
        return false;
    for (size_t i = 0; i < c->n; i++)
        origins[i] = c->list[i].origin;
    bool ok = writer_add_strings(w, "candidates/origin", origins, c->n, "candidate", "how it came to be proposed", e);
    mem_free(origins);
    return ok;
}

static bool write_windows(const struct candidates *c, struct writer *w, struct err *e)
{
    struct dataset tokens = {.name = "windows/tokens", .dtype = DTYPE_U32, .rank = 1, .shape = {c->n_windows},
                             .unit = "token", .axes = "window", .description = "scored positions"};
    struct dataset document = {.name = "windows/document", .dtype = DTYPE_U32, .rank = 1, .shape = {c->n_windows},
                               .unit = "1", .axes = "window", .description = "index of the document: intervals are "
                               "over documents"};
    struct dataset kl = {.name = "candidates/kl_window", .dtype = DTYPE_F64, .rank = 2, .shape = {c->n, c->n_windows},
                         .unit = "nat", .axes = "candidate, window", .description = "mean KL over the window's scored "
                         "positions; NaN where not measured"};
    double *data;
    if (!writer_add(w, &tokens, c->window_tokens, e) || !writer_add(w, &document, c->window_document, e) ||
        !mem_new(&data, c->n * c->n_windows, e))
        return false;
    for (size_t i = 0; i < c->n; i++)
        memcpy(data + i * c->n_windows, c->list[i].kl_window, c->n_windows * sizeof *data);
    return writer_add_take(w, &kl, data, e);
}

static bool write_menu(const struct menu *m, struct writer *w, struct err *e)
{
    struct dataset parameters = {.name = "units/parameters", .dtype = DTYPE_U64, .rank = 1,
                                 .shape = {(uint64_t)m->n_units}, .unit = "1", .axes = "unit",
                                 .description = "weights of the unit"};
    struct dataset layer = {.name = "units/layer", .dtype = DTYPE_I32, .rank = 1, .shape = {(uint64_t)m->n_units},
                            .unit = "1", .axes = "unit", .description = "ordinal of the layer"};
    return writer_add_strings(w, "units/name", (const char *const *)m->unit_names, (size_t)m->n_units, "unit",
                              "unit names", e) &&
           writer_add(w, &parameters, m->parameters, e) && writer_add(w, &layer, m->layers, e) &&
           writer_add_strings(w, "formats/name", (const char *const *)m->format_names, (size_t)m->n_formats, "format",
                              "what the bytes of an assignment mean", e);
}

bool candidates_write(const struct candidates *c, const struct menu *m, struct writer *w, struct err *e)
{
    if (c->n_units != m->n_units)
        return err_set(e, ERR_BUG, "a table of %d units is written with a menu of %d", c->n_units, m->n_units);
    bool ok = write_menu(m, w, e) && write_assignments(c, w, e) && write_origins(c, w, e);
    for (size_t i = 0; ok && i < sizeof always / sizeof *always; i++)
        ok = write_column(c, &always[i], w, e);
    if (!ok || c->n_windows == 0)
        return ok;
    for (size_t i = 0; ok && i < sizeof when_measured / sizeof *when_measured; i++)
        ok = write_column(c, &when_measured[i], w, e);
    return ok && write_windows(c, w, e) && writer_text(w, "numeric", c->numeric, e) &&
           writer_text(w, "tokens", c->tokens, e) && writer_text(w, "context", c->context, e);
}
