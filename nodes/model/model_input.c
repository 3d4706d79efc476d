/* Apart from model.c, so that programs without an engine can link the rest. */
#include "nodes/model/model.h"

bool model_open_input(struct model **out, struct node *n, const char *port, struct err *e)
{
    const char *path;
    return node_input_path(n, port, 0, "path", &path, e) && model_open(out, path, e);
}
