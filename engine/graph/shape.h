#ifndef ENGINE_GRAPH_SHAPE_H
#define ENGINE_GRAPH_SHAPE_H
/* Is a tree built like a graph: known keys, maps where maps belong, proper names? Each file is looked at on its own,
 * its variants included, before anything is merged; what is wrong becomes TREE_BAD, so that later stages pass over it.
 * Private to engine/graph. */
#include "engine/graph/yaml.h"

/* A whole file. */
bool shape_file(struct loading *l, struct tree *file) ERR_CHECK;
/* A part that lies over a graph: a variant, or what --set says. `where` is "variant 'x'" or "--set". */
bool shape_part(struct loading *l, struct tree *part, const char *where) ERR_CHECK;

#endif
