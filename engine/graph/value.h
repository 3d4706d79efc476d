#ifndef ENGINE_GRAPH_VALUE_H
#define ENGINE_GRAPH_VALUE_H
/* From text to the value of a declared type. Private to engine/graph. */
#include "engine/graph/yaml.h"

/* The value of parameter `p` from `t`, a text or a list of texts after $(...). `where` starts every message ("node 'x',
 * parameter 'window'"). *ok is false when a problem was noted; then *out is not to be used. */
bool value_make(struct loading *l, const char *where, const struct param *p, struct tree *t, struct value *out,
                bool *ok) ERR_CHECK;
/* The same from the parameter's own default, which is not NULL. */
bool value_default(struct loading *l, const char *where, const struct param *p, struct value *out, bool *ok) ERR_CHECK;
/* "an integer", "true or false", "one of a, b or c": what a parameter takes, in `out`; returns `out`. */
const char *value_expected(const struct param *p, char out[256]);
/* A decimal integer and nothing else; false also when it does not fit. */
bool value_integer(const char *text, long long *out) ERR_CHECK;
/* `m` without what stands for --set and defaults: the mark that a loaded graph keeps. */
struct mark value_mark(const struct mark *m);

#endif
