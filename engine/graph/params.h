#ifndef ENGINE_GRAPH_PARAMS_H
#define ENGINE_GRAPH_PARAMS_H
/* Graph parameters: $(name) in a value is replaced by what `params` says. Private to engine/graph. */
#include "engine/graph/yaml.h"

/* Look at every graph parameter once, used or not: count, names that do not exist, circles. `params` may be NULL.
 * *ok is false when there are too many to go on. */
bool params_check(struct loading *l, struct tree *params, bool *ok) ERR_CHECK;
/* Report each graph parameter, of the graph and of its variants, that no text says: it is misspelt, or does nothing. A
 * text counts wherever it stands in the files, since what one graph overrides another may use. */
bool params_check_used(struct loading *l, struct tree *graph) ERR_CHECK;
/* *out is `t` with every $(name) replaced and every $$( turned into $(. A value that is nothing but $(name) becomes
 * that parameter's value, which may be a list, with the parameter's mark and origin; otherwise mark is the value's own,
 * and origin is that of the text's first piece. TREE_BAD when a problem was noted. `t` is a text or a list of texts. */
bool params_fill(struct loading *l, struct tree *params, struct tree *t, struct tree **out) ERR_CHECK;

#endif
