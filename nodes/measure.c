/* Node type `measure`: the real KL of every candidate of its lists, through the shared ledger. */
#include "nodes/model/evaluator.h"
#include "nodes/nodes.h"

static bool measure(struct node *n, struct evaluator *v, struct err *e)
{
    struct candidates proposed, table;
    if (!candidates_read_inputs(&proposed, n, "candidates", e))
        return false;
    bool ok = evaluator_table(v, &table, e);
    if (!ok) {
        candidates_fini(&proposed);
        return false;
    }
    for (size_t i = 0; ok && i < proposed.n; i++) {
        const struct candidate *c = &proposed.list[i];
        ok = candidates_add(&table, evaluator_menu(v), c->assignment, c->origin, c->parent, e) != NULL;
    }
    ok = ok && evaluator_measure(v, &table, 0, e) && candidates_write(&table, evaluator_menu(v), node_output(n), e);
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
    .version = 1,
    .ports = (const struct port[]){
        EVALUATOR_PORTS,
        {"candidates", (const char *const[]){"frontier", "measure", "select", "polish", NULL}, true, false,
         "tables of candidates; equal assignments are measured once"},
        {0}},
    .params = (const struct param[]){EVALUATOR_PARAMS, {0}},
    .numerics = evaluator_numerics,
    .needs = evaluator_needs,
    .run = run,
};
