/* Node type `measure`: the real KL of every candidate of its lists, through the shared ledger. */
#include <string.h>

#include "nodes/model/evaluator.h"
#include "nodes/nodes.h"

/* Take over the candidates that `which` asks for: all, or those that the selecting node put on its frontier. */
static bool take(struct node *n, const struct candidates *proposed, struct candidates *table, const struct menu *m,
                 struct err *e)
{
    uint32_t *frontier = NULL;
    uint64_t count = proposed->n;
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

static bool measure(struct node *n, struct evaluator *v, struct err *e)
{
    struct candidates proposed, table;
    if (!candidates_read_inputs(&proposed, evaluator_menu(v), n, "candidates", e))
        return false;
    bool ok = evaluator_table(v, &table, e);
    if (!ok) {
        candidates_fini(&proposed);
        return false;
    }
    ok = take(n, &proposed, &table, evaluator_menu(v), e) && evaluator_measure(v, &table, 0, e) &&
         candidates_write(&table, evaluator_menu(v), node_output(n), e);
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
        {"candidates", (const char *const[]){"frontier", "measure", "select", "polish", NULL}, true, false,
         "tables of candidates; equal assignments are measured once"},
        {0}},
    .params = (const struct param[]){
        EVALUATOR_PARAMS,
        {.name = "which", .type = PARAM_ENUM, .fallback = "all",
         .choices = (const char *const[]){"all", "frontier", NULL},
         .help = "all candidates of the tables, or only those on the frontier of one `select`"},
        {0}},
    .accelerator = true,
    .numerics = evaluator_numerics,
    .needs = evaluator_needs,
    .run = run,
};
