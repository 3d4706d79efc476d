/* Apart from model.c, so that programs without an engine can link the rest. */
#include <string.h>

#include "nodes/model/directory.h"
#include "nodes/model/model.h"

/* What a node of type `rotate` calls the place it writes to. */
static bool is_written(const char *type) { return strcmp(type, "rotate") == 0; }
static const char *place_param(const char *type) { return is_written(type) ? "directory" : "path"; }

bool model_input_path(const struct node *n, const char *port, const char **out, struct err *e)
{
    const struct input *in = node_input(n, port, 0);
    const char *path;
    if (!node_input_path(n, port, 0, place_param(in->type), &path, e) ||
        (is_written(in->type) && !directory_check(node_store(n), path, in->object, in->node, e)))
        return false;
    *out = path;
    return true;
}

bool model_open_original(struct model **out, const char *path, enum model_head head, struct err *e)
{
    struct model *m;
    if (!model_open_as(&m, path, head, e))
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

enum model_head model_input_head(const struct node *n, const char *port)
{
    struct object *result = node_input(n, port, 0)->object;
    const char *head;
    return result && object_text(result, "head", &head) && strcmp(head, "unit") == 0 ? HEAD_UNIT : HEAD_AS_STORED;
}

bool model_open_input(struct model **out, const struct node *n, const char *port, struct err *e)
{
    const char *path;
    return model_input_path(n, port, &path, e) && model_open_original(out, path, model_input_head(n, port), e);
}

/* The result of the node with that key; ERR_INPUT when it is gone. */
static bool open_result(struct object **out, const struct node *n, const struct key *key, struct err *e)
{
    char text[KEY_TEXT];
    if (!object_open(out, node_store(n), key, e))
        return false;
    return *out || err_set(e, ERR_INPUT, "the model %s is gone from the store; run again", key_text(key, text));
}

bool model_open_upstream(struct model **out, const struct node *n, const struct key *key, struct err *e)
{
    const char *type, *path;
    char text[KEY_TEXT];
    struct object *result = NULL;
    if (!node_upstream_type(n, key, &type, e))
        return false;
    if (!type)
        return err_set(e, ERR_INPUT, "the model %s is not in this graph", key_text(key, text));
    if (!node_upstream_path(n, key, place_param(type), &path, e))
        return false;
    bool ok = !is_written(type) || (open_result(&result, n, key, e) &&
                                    directory_check(node_store(n), path, result, type, e));
    object_close(result);
    return ok && model_open_original(out, path, HEAD_AS_STORED, e);
}

bool model_is_rotated(const struct node *n, const struct key *model, const struct key *source, bool *out,
                      struct err *e)
{
    struct key at = *model;
    for (;;) {
        struct object *result;
        const char *from;
        if (!open_result(&result, n, &at, e))
            return false;
        bool further = object_text(result, "rotated_from", &from) && key_parse(from, &at);
        object_close(result);
        if (!further || key_equal(&at, source)) {
            *out = further;
            return true;
        }
    }
}
