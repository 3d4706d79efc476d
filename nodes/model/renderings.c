/* Reading renderings. The parts of a quantize result (an object per layer) are opened when first needed and kept open;
 * a lock guards that table alone. */
#include "nodes/model/renderings.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct renderings {
    const struct model *model;
    struct store *store;
    struct object *object;
    char **format_names;
    uint64_t n_formats;
    uint8_t *available;     /* [unit, format] */
    float *input_scale;     /* [unit] */
    int n_layers;
    pthread_mutex_t lock;   /* of parts */
    struct object **parts;  /* [layer], NULL until used */
};

/* The matrices of the object are those of the model: names and shapes, in order. */
static bool check_matrices(const struct renderings *r, struct err *e)
{
    const struct model *m = r->model;
    char **names = NULL;
    int64_t *rows = NULL, *columns = NULL;
    uint64_t n_names = 0, n_rows = 0, n_columns = 0, n = (uint64_t)m->n_matrices;
    bool ok = object_read_strings(r->object, "matrices/name", &names, &n_names, e) &&
              object_load(r->object, "matrices/rows", DTYPE_I64, &rows, &n_rows, e) &&
              object_load(r->object, "matrices/columns", DTYPE_I64, &columns, &n_columns, e);
    if (ok && (n_names != n || n_rows != n || n_columns != n))
        ok = err_set(e, ERR_INPUT, "the renderings are of %llu matrices, the model %s has %d; quantize this model",
                     (unsigned long long)n_names, m->path, m->n_matrices);
    for (uint64_t i = 0; ok && i < n; i++) {
        const struct matrix *x = &m->matrices[i];
        if (strcmp(names[i], x->name) != 0 || rows[i] != x->n || columns[i] != x->k)
            ok = err_set(e, ERR_INPUT, "matrix %llu is '%s' [%lld, %lld] in the renderings and '%s' [%lld, %lld] in "
                         "the model %s; quantize this model", (unsigned long long)i, names[i], (long long)rows[i],
                         (long long)columns[i], x->name, (long long)x->n, (long long)x->k, m->path);
    }
    mem_free(names);
    mem_free(rows);
    mem_free(columns);
    return ok;
}

static bool load(struct renderings *r, struct err *e)
{
    uint64_t n_available, n_scales;
    uint64_t units = (uint64_t)r->model->n_units;
    if (!check_matrices(r, e) || !object_read_strings(r->object, "formats/name", &r->format_names, &r->n_formats, e) ||
        !object_load(r->object, "available", DTYPE_U8, &r->available, &n_available, e) ||
        !object_load(r->object, "input_scale", DTYPE_F32, &r->input_scale, &n_scales, e))
        return false;
    if (n_available != units * r->n_formats || n_scales != units)
        return err_set(e, ERR_INPUT, "%s: its tables are not of the model's %d units", object_path(r->object),
                       r->model->n_units);
    for (int u = 0; u < r->model->n_units; u++)
        if (r->model->units[u].layer >= r->n_layers)
            r->n_layers = r->model->units[u].layer + 1;
    return mem_new(&r->parts, (size_t)r->n_layers, e);
}

bool renderings_open_object(struct renderings **out, struct store *store, struct object *object, const struct model *m,
                            struct err *e)
{
    struct renderings *r;
    if (!mem_new(&r, 1, e))
        return false;
    pthread_mutex_init(&r->lock, NULL);
    r->model = m;
    r->store = store;
    r->object = object_ref(object);
    if (!load(r, e)) {
        renderings_close(r);
        return false;
    }
    *out = r;
    return true;
}

bool renderings_open(struct renderings **out, struct node *n, const char *port, const struct model *m, struct err *e)
{
    const struct input *in = node_input(n, port, 0);
    const char *of;
    char text[KEY_TEXT];
    if (node_inputs(n, "model") > 0 && object_text(in->object, "model_key", &of) &&
        strcmp(of, key_text(&node_input(n, "model", 0)->key, text)) != 0)
        return err_set(e, ERR_INPUT, "renderings '%s' are of another model than '%s', which is connected to port "
                       "'model'; connect the model that was quantized", in->node, node_input(n, "model", 0)->node);
    return renderings_open_object(out, node_store(n), in->object, m, e) || err_context(e, "renderings '%s'", in->node);
}

void renderings_close(struct renderings *r)
{
    if (!r)
        return;
    for (int i = 0; r->parts && i < r->n_layers; i++)
        object_close(r->parts[i]);
    mem_free(r->parts);
    mem_free(r->input_scale);
    mem_free(r->available);
    mem_free(r->format_names);
    object_close(r->object);
    pthread_mutex_destroy(&r->lock);
    mem_free(r);
}

/* The part of a layer, open; borrowed from r. */
static bool open_part(struct renderings *r, int layer, struct object **out, struct err *e)
{
    char name[32];
    layer_part(layer, name);
    pthread_mutex_lock(&r->lock);
    bool ok = r->parts[layer] || object_part(r->store, r->object, name, &r->parts[layer], e);
    *out = r->parts[layer];
    pthread_mutex_unlock(&r->lock);
    return ok;
}

static bool read_source(const struct renderings *r, const struct matrix *m, struct rendering *out, struct err *e)
{
    char name[512];
    snprintf(name, sizeof name, "%s.weight", m->name);
    const struct st_tensor *t = safetensors_find(r->model->files, name);
    if (!t)
        return err_set(e, ERR_INPUT, "%s has no tensor '%s'", r->model->path, name);
    return safetensors_read(r->model->files, t, 0, t->bytes, out->part[0], e);
}

static bool read_parts(struct renderings *r, const struct matrix *m, struct rendering *out, struct err *e)
{
    struct object *part;
    if (!open_part(r, r->model->units[m->unit].layer, &part, e))
        return false;
    struct format_part parts[FORMAT_PARTS];
    int count = out->format->parts(m->n, m->k, m->dtype, parts);
    for (int i = 0; i < count; i++) {
        char name[640];
        snprintf(name, sizeof name, "%s/%s/%s", m->name, out->format->name, parts[i].suffix);
        uint64_t elements = format_part_bytes(&parts[i]) / dtype_bytes(parts[i].dtype);
        if (!object_read(part, name, parts[i].dtype, 0, elements, out->part[i], e))
            return false;
    }
    return true;
}

bool renderings_read(struct renderings *r, int matrix, const char *format_name, struct rendering *out, struct err *e)
{
    const struct matrix *m = &r->model->matrices[matrix];
    const struct format *f = format_find(format_name);
    int index = renderings_format(r, format_name);
    if (!f || index < 0)
        return err_set(e, ERR_INPUT, "%s was not quantized to '%s'; add it to the formats of the quantize node",
                       m->name, format_name);
    if (!r->available[(uint64_t)m->unit * r->n_formats + (uint64_t)index])
        return err_set(e, ERR_INPUT, "%s [%lld, %lld] cannot have format %s: its unit does not fit it where it is "
                       "served", m->name, (long long)m->n, (long long)m->k, f->name);
    struct rendering made;
    if (!format_rendering_new(&made, f, m->n, m->k, m->dtype, e))
        return false;
    if (!(f->group_format ? read_parts(r, m, &made, e) : read_source(r, m, &made, e))) {
        rendering_free(&made);
        return err_context(e, "%s in %s", m->name, f->name);
    }
    *out = made;
    return true;
}

float renderings_input_scale(const struct renderings *r, int unit)
{
    return r->input_scale[unit];
}

int renderings_format(const struct renderings *r, const char *name)
{
    for (uint64_t i = 0; i < r->n_formats; i++)
        if (strcmp(r->format_names[i], name) == 0)
            return (int)i;
    return -1;
}

bool renderings_load(struct renderings *from, struct queue *q, const struct model *m, int unit, const char *name,
                     enum dtype mode, struct unit_weights *out, struct err *e)
{
    const struct unit *u = &m->units[unit];
    const struct format *f = format_find(name);
    struct rendering r[4] = {0};
    if (!f)
        return err_set(e, ERR_INPUT, "this build has no format '%s'", name);
    *out = (struct unit_weights){.act = f->act};
    if (f->static_input_scale)
        out->act_scale = renderings_input_scale(from, unit);
    bool ok = true;
    for (int i = 0; ok && i < u->count; i++)
        ok = renderings_read(from, u->first + i, name, &r[i], e);
    ok = ok && weights_pack(q, m, unit, r, mode, out, e);
    for (int i = 0; i < u->count; i++)
        rendering_free(&r[i]);
    return ok || err_context(e, "format '%s'", name);
}
