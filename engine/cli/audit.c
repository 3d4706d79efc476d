/* `scout audit`: how a run came to its choice, as its results tell it: every candidate with its origin and what dropped
 * or beat it, every move, every comparison, every surrogate's rank correlation. It reads what objects hold and computes
 * nothing. Datasets that share an axis are the columns of one table; `views` says which tables there are, by a dataset
 * that makes a result have one, and which columns a reader sees. --json has all of them. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "engine/cli/cli.h"

#define MOST_SHOWN 24

/* A column of a table as text. */
struct shown {
    const char *dataset, *header;
    const char *names; /* dataset of strings that the values are indices of; NULL: none */
    const char *word;  /* printed in the place of a value other than 0; NULL: the value is */
};

struct view {
    const char *event; /* of --json */
    const char *title;
    const char *group; /* is left out of names in --json */
    const char *key;   /* the dataset that a result with such a table has; all others of its axis and length belong */
    struct shown shown[MOST_SHOWN];
};

static const struct view views[] = {
    {"candidate", "candidates", "candidates/", "candidates/id", {
        {"candidates/id", "id", NULL, NULL},
        {"candidates/origin", "origin", NULL, NULL},
        {"candidates/parent", "from", NULL, NULL},
        {"candidates/bytes", "bytes", NULL, NULL},
        {"candidates/bpp", "bpp", NULL, NULL},
        {"candidates/kl_mean", "KL", NULL, NULL},
        {"interval/low", "low", NULL, NULL},
        {"interval/high", "high", NULL, NULL},
        {"candidates/kl_p99", "p99", NULL, NULL},
        {"candidates/top1", "top-1", NULL, NULL},
        {"candidates/n_windows", "windows", NULL, NULL},
        {"candidates/dropped_at", "dropped at", NULL, NULL},
        {"candidates/dropped_by", "dropped by", NULL, NULL},
        {"dominated_by", "beaten by", NULL, NULL},
        {"dominance/kl", "its KL above", NULL, NULL},
        {"dominance/low", "low", NULL, NULL},
        {"dominance/high", "high", NULL, NULL},
        {"lambda", "lambda", NULL, NULL},
        {"gap", "gap", NULL, NULL}}},
    {"step", "steps along the frontier", "step/", "step/kl", {
        {"frontier", "id", NULL, NULL},
        {"step/kl", "KL above the point before", NULL, NULL},
        {"step/low", "low", NULL, NULL},
        {"step/high", "high", NULL, NULL}}},
    {"tie", "ties with the lowest KL within the budget, nats above it", "ties/", "ties/id", {
        {"ties/id", "id", NULL, NULL},
        {"ties/measured", "measured", NULL, NULL},
        {"ties/measured_error", "+-", NULL, NULL},
        {"ties/predicted", "predicted", NULL, NULL},
        {"ties/predicted_error", "+-", NULL, NULL},
        {"ties/pooled", "both", NULL, NULL},
        {"ties/pooled_error", "+-", NULL, NULL}}},
    {"budget", "budgets", "budget/", "budget/candidate", {
        {"budget/bpp", "bpp", NULL, NULL},
        {"budget/bytes", "bytes", NULL, NULL},
        {"budget/candidate", "id", NULL, NULL},
        {"budget/cost", "cost", NULL, NULL}}},
    {"generation", "generations", "generations/", "generations/parent", {
        {"generations/parent", "parent", NULL, NULL},
        {"generations/tokens", "tokens", NULL, NULL}}},
    {"drop", "drops by racing", "race/", "race/candidate", {
        {"race/candidate", "id", NULL, NULL},
        {"race/by", "beaten by", NULL, NULL},
        {"race/look", "at look", NULL, NULL},
        {"race/difference", "KL above", NULL, NULL},
        {"race/low", "at least", NULL, NULL},
        {"race/error", "error spent", NULL, NULL}}},
    {"race_look", "looks of the race", "race/", "race/documents", {
        {"race/documents", "documents", NULL, NULL}}},
    {"race", "race", "race/", "race/level", {
        {"race/level", "error level", NULL, NULL}}},
    {"move", "moves", "moves/", "moves/candidate", {
        {"moves/kind", "kind", NULL, NULL},
        {"moves/base", "from", NULL, NULL},
        {"moves/candidate", "to", NULL, NULL},
        {"moves/unit", "unit", "units/name", NULL},
        {"moves/units", "units", NULL, NULL},
        {"moves/from", "was", "formats/name", NULL},
        {"moves/to", "is", "formats/name", NULL},
        {"moves/unit2", "unit", "units/name", NULL},
        {"moves/units2", "units", NULL, NULL},
        {"moves/from2", "was", "formats/name", NULL},
        {"moves/to2", "is", "formats/name", NULL},
        {"moves/gain", "predicted gain", NULL, NULL},
        {"moves/kl_before", "KL", NULL, NULL},
        {"moves/kl_after", "after", NULL, NULL},
        {"moves/pooled", "change by both", NULL, NULL},
        {"moves/bound", "gain at most", NULL, NULL},
        {"moves/look", "given up at look", NULL, NULL},
        {"moves/accepted", "", NULL, "accepted"}}},
    {"look", "looks before the whole set", "looks/", "looks/windows", {
        {"looks/windows", "windows", NULL, NULL}}},
    {"comparison", "comparisons at equal bytes", "compared/", "compared/name", {
        {"compared/name", "baseline", NULL, NULL},
        {"compared/candidate", "id", NULL, NULL},
        {"compared/difference", "KL above the choice's", NULL, NULL},
        {"compared/low", "low", NULL, NULL},
        {"compared/high", "high", NULL, NULL}}},
    {"correlation", "rank correlation with measured KL", "correlation/", "correlation/name", {
        {"correlation/name", "surrogate", NULL, NULL},
        {"correlation/kind", "of it", NULL, NULL},
        {"correlation/origin", "origin", NULL, NULL},
        {"correlation/spearman", "Spearman", NULL, NULL},
        {"correlation/n", "candidates", NULL, NULL}}},
    {"swaps", "signs of swaps of equal bytes", "swaps/", "swaps/name", {
        {"swaps/name", "surrogate", NULL, NULL},
        {"swaps/kind", "of it", NULL, NULL},
        {"swaps/n", "swaps", NULL, NULL},
        {"swaps/right", "right", NULL, NULL},
        {"swaps/n_apart", "told apart", NULL, NULL},
        {"swaps/right_apart", "right", NULL, NULL}}},
    {"pair", "what pairs add, by four measured KLs", "checks/", "checks/measured", {
        {"checks/name", "surrogate", NULL, NULL},
        {"checks/unit", "unit", "units/name", NULL},
        {"checks/format", "in", "formats/name", NULL},
        {"checks/unit2", "unit", "units/name", NULL},
        {"checks/format2", "in", "formats/name", NULL},
        {"checks/measured", "measured", NULL, NULL},
        {"checks/predicted", "predicted", NULL, NULL}}},
    {"leave_one_out", "the knee without a point of the frontier", "leave_one_out/", "leave_one_out/dropped", {
        {"leave_one_out/dropped", "without", NULL, NULL},
        {"leave_one_out/knee", "knee", NULL, NULL}}},
    {"choice", "choice", "", "chosen", {
        {"chosen", "chosen", NULL, NULL},
        {"knee/id", "knee", NULL, NULL},
        {"knee/mass", "its bootstrap mass", NULL, NULL},
        {"knee/found", "", NULL, "passes Kneedle's test"}}},
};
#define N_VIEWS (sizeof views / sizeof *views)

/* Text attributes of a result that say how its tables came about. */
static const char *const attributes[] = {"numeric", "chosen_by", "scale", "method"};
#define N_ATTRIBUTES (sizeof attributes / sizeof *attributes)

/* One dataset in memory. */
struct column {
    const struct dataset *d; /* borrowed from the object */
    void *values;            /* strings: char ** */
    uint64_t n;
    char **names;            /* what the values are indices of; NULL: nothing */
    uint64_t n_names;
    const struct shown *shown; /* NULL: in --json alone */
};

struct audit {
    const struct args *args;
    struct store *store;
    bool as_json;
    size_t with_result, unreadable, rows;
};

/* ----------------------------------------------------------------------------------------------------------- values */

static double number_at(const struct column *c, uint64_t i)
{
    switch (c->d->dtype) {
    case DTYPE_F64:
        return ((const double *)c->values)[i];
    case DTYPE_F32:
        return ((const float *)c->values)[i];
    case DTYPE_U8:
    case DTYPE_BOOL:
        return ((const uint8_t *)c->values)[i];
    case DTYPE_I32:
        return ((const int32_t *)c->values)[i];
    case DTYPE_U32:
        return ((const uint32_t *)c->values)[i];
    case DTYPE_I64:
        return (double)((const int64_t *)c->values)[i];
    case DTYPE_U64:
        return (double)((const uint64_t *)c->values)[i];
    default:
        return NAN;
    }
}

static bool is_float(const struct column *c) { return c->d->dtype == DTYPE_F64 || c->d->dtype == DTYPE_F32; }

/* Nothing to say: not measured, none. */
static bool is_empty(const struct column *c, uint64_t i)
{
    if (c->d->string_bytes > 0)
        return ((char **)c->values)[i][0] == '\0';
    double x = number_at(c, i);
    return is_float(c) ? isnan(x) : x < 0 || (c->shown && c->shown->word && x == 0);
}

/* The text of a value that is a string or a name; NULL when it is a number. */
static const char *text_at(const struct column *c, uint64_t i)
{
    if (c->d->string_bytes > 0)
        return ((char **)c->values)[i];
    if (!c->names)
        return NULL;
    double x = number_at(c, i);
    return x >= 0 && x < (double)c->n_names ? c->names[(uint64_t)x] : NULL;
}

/* As a reader wants it, in `out` or borrowed. */
static const char *cell(const struct column *c, uint64_t i, char out[32])
{
    const char *text = text_at(c, i);
    if (is_empty(c, i))
        return "";
    if (text)
        return text;
    if (c->shown && c->shown->word)
        return c->shown->word;
    if (c->d->dtype == DTYPE_U64)
        snprintf(out, 32, "%llu", (unsigned long long)((const uint64_t *)c->values)[i]);
    else
        snprintf(out, 32, is_float(c) ? "%.6g" : "%.0f", number_at(c, i));
    return out;
}

static void add_json_value(struct str *s, const struct column *c, uint64_t i)
{
    const char *text = text_at(c, i);
    char number[32];
    if (text)
        str_add_json(s, text);
    else if (c->names) /* -1: none of them */
        str_add(s, "null");
    else if (is_float(c))
        str_add_json_double(s, number_at(c, i));
    else if (c->d->dtype == DTYPE_U64)
        str_printf(s, "%llu", (unsigned long long)((const uint64_t *)c->values)[i]);
    else
        str_add(s, (snprintf(number, sizeof number, "%.0f", number_at(c, i)), number));
}

/* ----------------------------------------------------------------------------------------------------------- tables */

static bool is_readable(const struct dataset *d)
{
    static const enum dtype numbers[] = {DTYPE_F64, DTYPE_F32, DTYPE_U8,  DTYPE_BOOL,
                                         DTYPE_I32, DTYPE_U32, DTYPE_I64, DTYPE_U64};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (d->dtype == numbers[i])
            return true;
    return false;
}

static const struct shown *find_shown(const struct view *v, const char *dataset)
{
    for (size_t i = 0; i < MOST_SHOWN && v->shown[i].dataset; i++)
        if (strcmp(v->shown[i].dataset, dataset) == 0)
            return &v->shown[i];
    return NULL;
}

static void free_column(struct column *c)
{
    mem_free(c->values);
    mem_free(c->names);
}

static bool load_column(struct object *o, const struct dataset *d, const struct view *v, struct column *out,
                        struct err *e)
{
    struct column c = {.d = d, .shown = find_shown(v, d->name)};
    bool ok = d->string_bytes > 0 ? object_read_strings(o, d->name, (char ***)&c.values, &c.n, e)
                                  : object_read_all(o, d->name, d->dtype, &c.values, &c.n, e);
    if (ok && c.shown && c.shown->names)
        ok = object_read_strings(o, c.shown->names, &c.names, &c.n_names, e);
    if (ok)
        *out = c;
    else
        free_column(&c);
    return ok;
}

/* The columns of the table: those that are shown in their order, then the others by name. */
static bool load_table(struct object *o, const struct view *v, const struct dataset *key, struct column **out,
                       size_t *n, struct err *e)
{
    struct column *columns;
    bool ok = true;
    *n = 0;
    if (!mem_new(&columns, object_datasets(o), e))
        return false;
    for (size_t k = 0; ok && k <= MOST_SHOWN; k++)
        for (size_t i = 0; ok && i < object_datasets(o); i++) {
            const struct dataset *d = object_dataset_at(o, i);
            const struct shown *shown = find_shown(v, d->name);
            bool belongs = d->rank == 1 && d->shape[0] == key->shape[0] && strcmp(d->axes, key->axes) == 0;
            bool is_turn = k < MOST_SHOWN ? shown == &v->shown[k] : !shown;
            if (belongs && is_turn && is_readable(d))
                ok = load_column(o, d, v, &columns[*n], e) && ++*n;
        }
    *out = columns;
    return ok;
}

static void print_rows_json(const struct view *v, const struct index_node *node, const struct object *o,
                            const struct column *columns, size_t n, uint64_t rows)
{
    size_t skip = strlen(v->group);
    const char *value;
    for (uint64_t i = 0; i < rows; i++) {
        struct str s = {0};
        str_printf(&s, "{\"event\":\"%s\",\"node\":", v->event);
        str_add_json(&s, node->name);
        str_printf(&s, ",\"type\":\"%s\"", node->type);
        for (size_t k = 0; k < N_ATTRIBUTES; k++)
            if (object_text(o, attributes[k], &value)) {
                str_printf(&s, ",\"%s\":", attributes[k]);
                str_add_json(&s, value);
            }
        for (size_t k = 0; k < n; k++) {
            const char *name = columns[k].d->name;
            name += strncmp(name, v->group, skip) == 0 ? skip : 0;
            str_add(&s, ",\"");
            for (; *name; name++)
                str_printf(&s, "%c", *name == '/' ? '_' : *name);
            str_add(&s, "\":");
            add_json_value(&s, &columns[k], i);
        }
        str_add(&s, "}");
        cli_print_json(&s, v->event);
    }
}

/* Width of the column; 0 when it has nothing to show. */
static int width_of(const struct column *c, uint64_t rows)
{
    size_t most = 0;
    char number[32];
    for (uint64_t i = 0; i < rows; i++) {
        size_t length = strlen(cell(c, i, number));
        most = length > most ? length : most;
    }
    size_t header = strlen(c->shown->header);
    return most == 0 ? 0 : (int)(most > header ? most : header);
}

/* Strings to the left, numbers to the right; columns without a value are left out. */
static bool print_rows(const struct view *v, const struct column *columns, size_t n, uint64_t rows, struct err *e)
{
    int *width;
    char number[32];
    if (!mem_new(&width, n, e))
        return false;
    printf("  %s: %llu\n", v->title, (unsigned long long)rows);
    for (size_t k = 0; k < n; k++)
        width[k] = columns[k].shown ? width_of(&columns[k], rows) : 0;
    for (uint64_t i = 0; i <= rows; i++) {
        struct str line = {0};
        for (size_t k = 0; k < n; k++) {
            const struct column *c = &columns[k];
            if (width[k] == 0)
                continue;
            bool is_text = c->d->string_bytes > 0 || c->names || c->shown->word;
            str_printf(&line, "  %*s", is_text ? -width[k] : width[k],
                       i == 0 ? c->shown->header : cell(c, i - 1, number));
        }
        size_t end = line.text && !line.failed ? line.length : 0;
        while (end > 0 && line.text[end - 1] == ' ')
            end--;
        printf("  %.*s\n", (int)end, end ? line.text : "");
        str_free(&line);
    }
    mem_free(width);
    return true;
}

static void print_header(const struct index_node *node, const struct object *o)
{
    const char *value;
    printf("%s (%s)", node->name, node->type);
    for (size_t k = 0; k < N_ATTRIBUTES; k++)
        if (object_text(o, attributes[k], &value))
            printf("; %s: %s", attributes[k], value);
    printf("\n");
}

static bool show_view(struct audit *a, const struct view *v, const struct index_node *node, struct object *o,
                      bool *is_first, struct err *e)
{
    const struct dataset *key = object_dataset(o, v->key);
    struct column *columns = NULL;
    size_t n = 0;
    if (!key || key->rank != 1 || key->shape[0] == 0)
        return true;
    bool ok = load_table(o, v, key, &columns, &n, e);
    if (ok && a->as_json) {
        print_rows_json(v, node, o, columns, n, key->shape[0]);
    } else if (ok) {
        if (*is_first)
            print_header(node, o);
        *is_first = false;
        ok = print_rows(v, columns, n, key->shape[0], e);
    }
    a->rows += ok ? key->shape[0] : 0;
    for (size_t k = 0; columns && k < n; k++)
        free_column(&columns[k]);
    mem_free(columns);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------------ nodes */

/* What was said of a node is lost when its object is: others may still be told. */
static void tell_unreadable(struct audit *a, const struct index_node *node, const char *why)
{
    struct err e = {0};
    a->unreadable++;
    err_set(&e, ERR_INPUT, "node '%s': %s", node->name, why);
    cli_error(a->args, &e);
}

static bool show_node(struct audit *a, const struct index_node *node, struct err *e)
{
    struct object *o = NULL;
    bool is_first = true;
    if (!node->has_result || !node->has_key)
        return true;
    a->with_result++;
    if (!object_open(&o, a->store, &node->key, e))
        return false;
    if (!o) {
        char why[256]; /* a plain run makes only what something that is missing needs */
        snprintf(why, sizeof why, "its result is damaged or gone from the store; 'scout check RUN' says more, and the "
                 "same run with --target %s makes it again", node->name);
        tell_unreadable(a, node, why);
        return true;
    }
    bool ok = true;
    for (size_t i = 0; ok && i < N_VIEWS; i++)
        ok = show_view(a, &views[i], node, o, &is_first, e);
    if (!ok && e->code == ERR_INPUT) { /* its tables do not fit together */
        tell_unreadable(a, node, e->text);
        ok = true;
    }
    object_close(o);
    return ok;
}

/* Is the node one of those that --node names, if it names any? */
static bool is_wanted(const struct args *a, const char *name)
{
    size_t n;
    const char *const *wanted = args_values(a, "--node", &n);
    for (size_t i = 0; i < n; i++)
        if (strcmp(wanted[i], name) == 0)
            return true;
    return n == 0;
}

static bool check_wanted(const struct args *a, const struct index_node *nodes, size_t n, struct arena *arena,
                         struct err *e)
{
    size_t n_wanted;
    const char *const *wanted = args_values(a, "--node", &n_wanted), **names = arena_new(arena, n * sizeof *names, e);
    if (!names)
        return false;
    for (size_t i = 0; i < n; i++)
        names[i] = nodes[i].name;
    for (size_t k = 0; k < n_wanted; k++) {
        bool is_there = false;
        for (size_t i = 0; i < n; i++)
            is_there = is_there || strcmp(wanted[k], names[i]) == 0;
        if (!is_there) {
            err_set(e, ERR_USAGE, "the run has no node '%s'", wanted[k]);
            return err_suggest(e, str_nearest(wanted[k], names, n));
        }
    }
    return true;
}

static bool show(struct audit *a, const char *dir, struct err *e)
{
    struct arena arena = {0};
    struct index_run run = {0};
    struct index_node *nodes = NULL;
    size_t n = 0, wanted = 0;
    bool ok = index_read(dir, &run, &nodes, &n, &arena, e) && check_wanted(a->args, nodes, n, &arena, e);
    for (size_t i = 0; ok && i < n; i++) {
        if (!is_wanted(a->args, nodes[i].name))
            continue;
        wanted++;
        ok = show_node(a, &nodes[i], e);
    }
    if (ok && a->as_json)
        printf("{\"event\":\"result\",\"nodes\":%zu,\"with_result\":%zu,\"unreadable\":%zu,\"rows\":%zu}\n", wanted,
               a->with_result, a->unreadable, a->rows);
    else if (ok)
        printf("graph %s: %zu of %zu nodes have a result\n", run.graph_name, a->with_result, wanted);
    arena_free(&arena);
    return ok;
}

static int audit_main(const struct args *args)
{
    struct audit a = {.args = args, .as_json = args_flag(args, "--json")};
    const char *dir = args_operand(args, 0);
    char path[PATH_MAX];
    struct err e = {0};
    if (!cli_check_run(dir, &e) || !run_find_store(dir, path, sizeof path, &e) ||
        !store_open_readonly(&a.store, path, &e))
        return cli_fail(args, &e);
    bool ok = show(&a, dir, &e);
    store_close(a.store);
    if (!ok)
        return cli_fail(args, &e);
    return a.unreadable > 0 ? CLI_FAILED : CLI_DONE;
}

const struct command command_audit = {
    "audit", "Tell how a run came to its choice: candidates, drops, moves, comparisons.",
    (const char *const[]){"RUN", NULL},
    (const struct option[]){{"--node", "NODE", true, "what this node's result says (default: all nodes)"}, {0}},
    audit_main};
