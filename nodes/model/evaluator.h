#ifndef NODES_MODEL_EVALUATOR_H
#define NODES_MODEL_EVALUATOR_H
/* Measures candidates: rebuilds the model with each unit in its assigned format and takes the KL of its next-token
 * distribution to the teacher's, on the windows of one token set. Candidates go through the model together, layer by
 * layer, as a trie of prefixes (every distinct prefix of formats is computed once), and rows that the ledger has are
 * not computed at all. The numbers of a (candidate, window) have the same bits however they were come by. */
#include "nodes/model/forward.h"
#include "nodes/model/model.h"
#include "nodes/search/candidates.h"

struct evaluator;

/* What of the ports and parameters a measuring node declares: put these in its tables.
 * ports: model (model), renderings (quantize), teacher (teacher), tokens (corpus: one output)
 * params: numeric (fp32|bf16|native), replay (on|off: outside the key), lanes (most candidates at once) */
#define EVALUATOR_PORTS \
    {"model", MODEL_TYPES, false, false, "the model that was quantized"}, \
    {"renderings", (const char *const[]){"quantize", NULL}, false, false, "packed weights in every format"}, \
    {"teacher", (const char *const[]){"teacher", NULL}, false, false, "the reference states on the same tokens"}, \
    {"tokens", (const char *const[]){"corpus", NULL}, false, false, "the windows to measure on"}
#define EVALUATOR_PARAMS \
    NUMERIC_PARAM, \
    {.name = "replay", .type = PARAM_BOOL, .fallback = "true", .outside_key = true, \
     .help = "share the computation of equal prefixes; off computes every candidate in full (same bits)"}, \
    {.name = "lanes", .type = PARAM_INT, .fallback = "0", .least = 0, .most = 65536, .outside_key = true, \
     .help = "most candidates that go through the model together; 0: 32, or what 16,384 positions hold"}

/* From the node's ports and parameters above; opens the ledger of the context and makes it live. */
bool evaluator_open(struct evaluator **out, struct node *n, struct err *e) ERR_CHECK;
void evaluator_close(struct evaluator *v); /* NULL is fine; tells the node's stats */
/* The menu of its renderings. Borrowed. */
const struct menu *evaluator_menu(const struct evaluator *v);
/* An empty table with the evaluator's windows, numeric mode and measuring context. */
bool evaluator_table(const struct evaluator *v, struct candidates *out, struct err *e) ERR_CHECK;
/* Measure the candidates with index [first, table->n) of a table made by evaluator_table, but for those that were
 * dropped (dropped_at >= 0), on windows[0..n): indices below the table's n_windows, each once, in any order. It adds to
 * what earlier calls on this table measured: kl_window of these windows, n_windows and tokens. The other columns are
 * filled once all windows are measured, and the row is then complete (candidate_is_complete); until then they are NaN.
 * Columns know of the windows that were asked for and of no others, whatever the ledger has: so a test that stops early
 * may read kl_window and depends on nothing but the calls made. A caller that gives a candidate up sets its dropped_at
 * (to n_windows) and dropped_by; its columns then stay as they are.
 * An assignment that uses a format its unit cannot have is ERR_INPUT. ERR_STOPPED when the run was interrupted; what was
 * measured by then is in the ledger. */
bool evaluator_measure_windows(struct evaluator *v, struct candidates *table, size_t first, const uint32_t *windows,
                               size_t n, struct err *e) ERR_CHECK;
/* The same on all windows. */
bool evaluator_measure(struct evaluator *v, struct candidates *table, size_t first, struct err *e) ERR_CHECK;
/* Memory wanted by a node that opens an evaluator, for its `needs`. */
bool evaluator_needs(struct node *n, struct needs *out, struct err *e);

#endif
