/* Node type `measure`: the real KL of every candidate of its lists, through the shared ledger. A candidate that is
 * beaten beyond doubt on a part of the documents is measured no further (nodes/search/race.h). */
#include <string.h>

#include "nodes/model/evaluator.h"
#include "nodes/nodes.h"
#include "nodes/search/column.h"
#include "nodes/search/race.h"

/* The candidates that the nodes behind the port chose, equal ones once. */
static bool take_chosen(struct node *n, struct candidates *table, const struct menu *m, struct err *e)
{
    bool ok = true;
    for (size_t i = 0; ok && i < node_inputs(n, "candidates"); i++) {
        const struct input *in = node_input(n, "candidates", i);
        struct candidates known;
        uint32_t id;
        if (!object_dataset(in->object, "chosen"))
            return err_set(e, ERR_INPUT,
                           "`which: chosen`: '%s' chooses none; only select, polish, confirm and evolve do",
                           in->node);
        if (!candidates_read_chosen(&known, in, &id, e))
            return false;
        ok = candidates_find(table, known.list[id].assignment) >= 0 ||
             candidates_add(table, m, known.list[id].assignment, known.list[id].origin, -1, e);
        candidates_fini(&known);
    }
    return ok;
}

/* Take over the candidates that `which` asks for: all, those that the selecting node put on its frontier, or what each
 * input chose. */
static bool take(struct node *n, const struct candidates *proposed, struct candidates *table, const struct menu *m,
                 struct err *e)
{
    uint32_t *frontier = NULL;
    uint64_t count = proposed->n;
    if (strcmp(node_string(n, "which"), "chosen") == 0)
        return take_chosen(n, table, m, e);
    if (strcmp(node_string(n, "which"), "frontier") == 0) {
        const struct input *in = node_input(n, "candidates", 0);
        if (node_inputs(n, "candidates") != 1 || !object_dataset(in->object, "frontier"))
            return err_set(e, ERR_INPUT, "`which: frontier` wants one input on port 'candidates', of type select");
        if (!object_load(in->object, "frontier", DTYPE_U32, &frontier, &count, e))
            return false;
    }
    bool ok = true;
    for (uint64_t i = 0; ok && i < count; i++) {
        uint64_t id = frontier ? frontier[i] : i;
        ok = id < proposed->n || err_set(e, ERR_INPUT, "the frontier names candidate %llu of %zu",
                                         (unsigned long long)id, proposed->n);
        ok = ok && candidates_add(table, m, proposed->list[id].assignment, proposed->list[id].origin,
                                  frontier ? -1 : proposed->list[id].parent, e) != NULL;
    }
    mem_free(frontier);
    return ok;
}

/* Measure stage by stage, with a look after each but the last. */
static bool run_race(struct evaluator *v, struct race *r, struct candidates *table, struct err *e)
{
    for (uint32_t stage = 0; stage < r->n_stages; stage++) {
        uint32_t first = stage ? r->end[stage - 1] : 0;
        if (!evaluator_measure_windows(v, table, 0, r->windows + first, r->end[stage] - first, e) ||
            !race_look(r, table, stage, e))
            return false;
    }
    return true;
}

enum { CANDIDATE, BY, LOOK, N_IDS };
enum { DIFFERENCE, LOW, ERROR, N_FIGURES };

static bool write_race(const struct race *r, struct writer *w, struct err *e)
{
    static const char *const ids[N_IDS][2] = {
        {"race/candidate", "id of the candidate that was dropped"},
        {"race/by", "id of the one that beat it, at most its size"},
        {"race/look", "the look at which it was"}};
    static const char *const figures[N_FIGURES][3] = {
        {"race/difference", "nat", "its KL minus that of `by`, on the documents of the look"},
        {"race/low", "nat", "one-sided lower bound of the difference at `error`"},
        {"race/error", "1", "probability of error that the test could spend"}};
    size_t n = r->n_drops;
    uint32_t *id = NULL;
    double *x = NULL;
    bool ok = mem_new(&id, n, e) && mem_new(&x, n, e);
    for (int k = 0; ok && k < N_IDS; k++) {
        for (size_t i = 0; i < n; i++)
            id[i] = k == CANDIDATE ? r->drops[i].candidate : k == BY ? r->drops[i].by : r->drops[i].look;
        ok = column_write(w, ids[k][0], DTYPE_U32, id, n, "1", "drop", ids[k][1], e);
    }
    for (int k = 0; ok && k < N_FIGURES; k++) {
        for (size_t i = 0; i < n; i++)
            x[i] = k == DIFFERENCE ? r->drops[i].difference : k == LOW ? r->drops[i].low : r->drops[i].error;
        ok = column_write(w, figures[k][0], DTYPE_F64, x, n, figures[k][1], "drop", figures[k][2], e);
    }
    mem_free(x);
    mem_free(id);
    return ok && column_write(w, "race/documents", DTYPE_U32, r->documents, r->n_stages, "document", "look",
                              "documents measured at each look; the last is of all, where none is dropped", e) &&
           column_write(w, "race/level", DTYPE_F64, &r->options.level, 1, "1", "value",
                        "probability that any candidate is dropped by one that is no better; 0: no racing", e);
}

static void tell_race(struct node *n, const struct race *r, const struct candidates *table)
{
    uint64_t all = 0, measured = 0, whole = 0;
    for (uint32_t w = 0; w < table->n_windows; w++)
        whole += table->window_tokens[w];
    for (size_t i = 0; i < table->n; i++) {
        all += whole;
        measured += table->list[i].tokens;
    }
    for (size_t i = 0; i < r->n_drops; i++) {
        const struct race_drop *d = &r->drops[i];
        node_log(n, "candidate %u is dropped after %u of %u documents: candidate %u has %.6g nats less (at least %.3g, "
                 "error %.2g) in %.4f bpp against %.4f", d->candidate, r->documents[d->look], r->n_documents, d->by,
                 d->difference, d->low, d->error, table->list[d->by].bpp, table->list[d->candidate].bpp);
    }
    if (r->options.level > 0 && r->n_stages == 1 && table->n > 1)
        node_log(n, "%u documents are too few to race on, or there are no looks: all candidates are measured in full",
                 r->n_documents);
    node_stat(n, "candidates_dropped", (double)r->n_drops, "candidate");
    node_stat(n, "tokens_measured", (double)measured, "token");
    node_stat(n, "tokens_saved", (double)(all - measured), "token");
}

/* Candidates of a frontier, and chosen ones, are chosen already and all their figures are wanted. */
static double race_level(const struct node *n)
{
    return strcmp(node_string(n, "which"), "all") == 0 ? node_float(n, "race") : 0;
}

static bool measure_table(struct node *n, struct evaluator *v, struct candidates *table, struct err *e)
{
    struct race r;
    struct race_options o = {.level = race_level(n), .looks = (int)node_int(n, "looks"),
                             .seed = (uint64_t)node_int(n, "seed")};
    if (!race_init(&r, table, &o, e))
        return false;
    bool ok = run_race(v, &r, table, e) && candidates_write(table, evaluator_menu(v), node_output(n), e) &&
              write_race(&r, node_output(n), e);
    if (ok)
        tell_race(n, &r, table);
    race_fini(&r);
    return ok;
}

static bool measure(struct node *n, struct evaluator *v, struct err *e)
{
    struct candidates proposed, table;
    if (!candidates_read_assignments(&proposed, evaluator_menu(v), n, "candidates", e))
        return false;
    bool ok = evaluator_table(v, &table, e);
    if (!ok) {
        candidates_fini(&proposed);
        return false;
    }
    ok = take(n, &proposed, &table, evaluator_menu(v), e) && measure_table(n, v, &table, e);
    candidates_fini(&proposed);
    candidates_fini(&table);
    return ok;
}

static bool run(struct node *n, struct err *e)
{
    struct evaluator *v;
    if (!evaluator_open(&v, n, e))
        return false;
    bool ok = measure(n, v, e);
    evaluator_close(v);
    return ok;
}

const struct node_class node_measure = {
    .name = "measure",
    .summary = "the KL divergence of rebuilt candidates from the teacher, on real text, with prefix replay",
    .version = 3,
    .ports = (const struct port[]){
        EVALUATOR_PORTS,
        {"candidates", (const char *const[]){"probe", "qubo", "frontier", "sample", "measure", "select", "polish",
                                              "confirm", "allocate", "evolve", NULL}, true, false,
         "tables of candidates; equal assignments are measured once"},
        {0}},
    .params = (const struct param[]){
        EVALUATOR_PARAMS,
        {.name = "which", .type = PARAM_ENUM, .fallback = "all",
         .choices = (const char *const[]){"all", "frontier", "chosen", NULL},
         .help = "all candidates of the tables, only those on the frontier of one `select`, or only what each chose"},
        {.name = "race", .type = PARAM_FLOAT, .fallback = "0.05", .least = 0, .most = 0.5, .unit = "1",
         .help = "most probability that any candidate is given up for one that is no better; 0, and with "
                 "`which: frontier` or `chosen`: all are measured in full"},
        {.name = "looks", .type = PARAM_INT, .fallback = "3", .least = 0, .most = 64,
         .help = "at which candidates are given up, after equal shares of the documents"},
        {.name = "seed", .type = PARAM_INT, .fallback = "1", .least = 0, .most = 9007199254740991.0,
         .help = "of the order of documents when racing"},
        {0}},
    .accelerator = true,
    .numerics = numeric_of_node,
    .needs = evaluator_needs,
    .run = run,
};
