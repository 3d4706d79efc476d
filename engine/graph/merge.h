#ifndef ENGINE_GRAPH_MERGE_H
#define ENGINE_GRAPH_MERGE_H
/* From the graph's path to one tree: what `extends` names lies lowest, then the file, the variant, and each --set. Maps
 * merge, lists and values replace, null deletes. Private to engine/graph. */
#include "engine/graph/yaml.h"

/* *out is the merged tree without `extends` and `variants`, or NULL when a file could not be read or is no graph.
 * *text is the graph file's text (NULL if unreadable). */
bool merge_graph(struct loading *l, struct tree **out, const char **text) ERR_CHECK;

#endif
