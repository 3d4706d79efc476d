/* Node type `evolve`: evolutionary search on the measured KL within a byte budget, in the class of EvoPress, with a
 * budget of tokens, so that it can be given what another search has used. nodes/search/evolve.h has the rules; rows
 * come from the ledger where they are there, so an interrupted evolution takes the same steps again without measuring
 * anything twice. What is in the ledger from others saves time, not tokens: the result is the same. */
#include <inttypes.h>
#include <math.h>

#include "nodes/model/evaluator.h"
#include "nodes/nodes.h"
#include "nodes/search/allocate.h"
#include "nodes/search/column.h"
#include "nodes/search/evolve.h"
#include "nodes/search/surrogate.h"

struct evolution {
    struct node *n;
    struct evaluator *evaluator;
    struct candidates table;
    struct surrogate costs; /* tell which formats are levels */
    struct evolve evolve;
};

static bool measure(void *context, struct candidates *table, const uint32_t *windows, size_t n, struct err *e)
{
    struct evolution *x = context;
    return evaluator_measure_windows(x->evaluator, table, 0, windows, n, e);
}

static void tell(void *context, const struct evolve *v)
{
    struct evolution *x = context;
    const struct candidate *c = &x->table.list[v->chosen];
    if (v->n_generations == 1 || v->parent[v->n_generations - 2] != v->chosen)
        node_log(x->n, "generation %d, %" PRIu64 " tokens: KL %.6g at %.4f bpp [%s]", v->n_generations, v->tokens,
                 c->kl_mean, c->bpp, x->table.numeric);
}

static bool write_result(const struct evolution *x, struct err *e)
{
    struct writer *w = node_output(x->n);
    const struct evolve *v = &x->evolve;
    size_t n = (size_t)v->n_generations;
    return candidates_write(&x->table, v->menu, w, e) &&
           column_write(w, "generations/parent", DTYPE_U32, v->parent, n, "1", "generation",
                        "id of the parent after the generation", e) &&
           column_write(w, "generations/tokens", DTYPE_U64, v->tokens_by, n, "token", "generation",
                        "scored positions measured by its end, of different (candidate, window) pairs", e) &&
           column_write(w, "budget/bytes", DTYPE_U64, &v->most_bytes, 1, "byte", "value", "the most that was allowed",
                        e) &&
           column_write(w, "budget/tokens", DTYPE_U64, &v->tokens, 1, "token", "value",
                        "scored positions measured, an unfinished generation's included", e) &&
           column_write(w, "chosen", DTYPE_U32, &v->chosen, 1, "1", "value", "id of the candidate that is chosen", e);
}

static bool evolve(struct evolution *x, struct err *e)
{
    static const char *const ends[] = {[EVOLVE_TOKENS] = "the tokens did not reach through another",
                                       [EVOLVE_GENERATIONS] = "stopped at its limit of generations",
                                       [EVOLVE_EXHAUSTED] = "there was no new offspring"};
    const struct menu *m = evaluator_menu(x->evaluator);
    if (!evaluator_table(x->evaluator, &x->table, e) || !surrogate_or_l1(&x->costs, m, x->n, e))
        return false;
    x->evolve = (struct evolve){
        .menu = m, .table = &x->table, .cost = x->costs.cost, .most_bytes = allocate_budget(m, node_float(x->n, "bpp")),
        .most_tokens = (uint64_t)node_int(x->n, "tokens"), .offspring = (int)node_int(x->n, "offspring"),
        .stages = (int)node_int(x->n, "stages"), .keep = (int)node_int(x->n, "keep"),
        .most_generations = (int)node_int(x->n, "generations"), .seed = (uint64_t)node_int(x->n, "seed"), .context = x,
        .measure = measure, .tell = tell};
    if (!evolve_run(&x->evolve, e))
        return false;
    const struct candidate *c = &x->table.list[x->evolve.chosen];
    node_log(x->n, "%d generations, %zu candidates, %" PRIu64 " of %" PRIu64 " tokens; KL %.6g at %.4f bpp; %s [%s]",
             x->evolve.n_generations, x->table.n, x->evolve.tokens, x->evolve.most_tokens, c->kl_mean, c->bpp,
             ends[x->evolve.end], x->table.numeric);
    node_stat(x->n, "generations", x->evolve.n_generations, "generation");
    node_stat(x->n, "tokens_spent", (double)x->evolve.tokens, "token");
    return write_result(x, e);
}

static bool run(struct node *n, struct err *e)
{
    struct evolution x = {.n = n};
    bool ok = evaluator_open(&x.evaluator, n, e) && evolve(&x, e);
    evolve_fini(&x.evolve);
    surrogate_fini(&x.costs);
    candidates_fini(&x.table);
    evaluator_close(x.evaluator);
    return ok;
}

const struct node_class node_evolve = {
    .name = "evolve",
    .summary = "baseline: evolution on the measured KL within a byte budget, with a budget of tokens",
    .version = 1,
    .ports = (const struct port[]){
        EVALUATOR_PORTS,
        {"surrogate", (const char *const[]){"rank", "probe", NULL}, false, true,
         "costs that tell which formats are worth their bytes; without it L1's, which do not see inputs"},
        {0}},
    .params = (const struct param[]){
        EVALUATOR_PARAMS,
        {.name = "bpp", .type = PARAM_FLOAT, .least = 0.01, .most = 64, .unit = "bit",
         .help = "candidates have at most so many bits per parameter"},
        {.name = "tokens", .type = PARAM_INT, .least = 1, .most = 9007199254740991.0, .unit = "token",
         .help = "scored positions that may be measured, over all candidates"},
        {.name = "offspring", .type = PARAM_INT, .fallback = "16", .least = 1, .most = 100000, .unit = "candidate",
         .help = "candidates of a generation, also of the first, which is random"},
        {.name = "stages", .type = PARAM_INT, .fallback = "3", .least = 1, .most = 16,
         .help = "of selection in a generation; the last is on all windows"},
        {.name = "keep", .type = PARAM_INT, .fallback = "4", .least = 2, .most = 1024,
         .help = "one in so many survives a stage, and the next has so many times the windows"},
        {.name = "generations", .type = PARAM_INT, .fallback = "1000000", .least = 1, .most = 100000000,
         .help = "most generations; as a rule the tokens end it"},
        {.name = "seed", .type = PARAM_INT, .fallback = "1", .least = 0, .most = 9007199254740991.0,
         .help = "of what is drawn"},
        {0}},
    .accelerator = true,
    .numerics = numeric_of_node,
    .needs = evaluator_needs,
    .run = run,
};
