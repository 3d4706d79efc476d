/* Apart from model.c, so that programs without an engine can link the rest. */
#include "nodes/model/model.h"

bool model_open_input(struct model **out, struct node *n, const char *port, struct err *e)
{
    const char *path;
    struct model *m;
    if (!node_input_path(n, port, 0, "path", &path, e) || !model_open(&m, path, e))
        return false;
    for (int i = 0; i < m->n_matrices; i++)
        if (m->matrices[i].stored->group_format) {
            err_set(e, ERR_INPUT, "%s: '%s' is stored as %s: this model is quantized already; give the original", path,
                    m->matrices[i].name, m->matrices[i].stored->name);
            model_close(m);
            return false;
        }
    *out = m;
    return true;
}
