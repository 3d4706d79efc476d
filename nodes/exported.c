/* Reading an exported directory again: through the model's reader, which shares with the writer no more than the table
 * of formats. */
#include "nodes/exported.h"

#include <stdio.h>
#include <string.h>

#define PIECE (4u << 20) /* bytes of a copied tensor that are compared at a time */

static bool differ(const char *name, uint64_t first, const unsigned char *have, const unsigned char *want, uint64_t n,
                   struct err *e)
{
    uint64_t i = 0;
    while (i < n && have[i] == want[i])
        i++;
    return err_set(e, ERR_NUMERIC, "tensor '%s', read again, has 0x%02x at byte %llu where 0x%02x was written", name,
                   have[i], (unsigned long long)(first + i), want[i]);
}

static bool step(const struct exported *x, uint64_t bytes, struct err *e)
{
    return !x->step || x->step(x->context, bytes, e);
}

/* The parts of a packed matrix are those of its rendering. */
static bool check_rendering(const struct exported *x, const struct model *m, int matrix, struct err *e)
{
    const struct matrix *source = &x->source->matrices[matrix];
    const struct format *f = x->formats[source->unit];
    struct rendering have, want;
    struct format_part parts[FORMAT_PARTS];
    uint64_t total = 0;
    if (!model_read_rendering(m, matrix, &have, e))
        return false;
    if (!renderings_read(x->renderings, matrix, f->name, &want, e)) {
        rendering_free(&have);
        return false;
    }
    bool ok = true;
    int n = f->parts(source->n, source->k, source->dtype, parts);
    for (int i = 0; ok && i < n; i++) {
        char name[600];
        uint64_t bytes = format_part_bytes(&parts[i]);
        snprintf(name, sizeof name, "%s.%s", source->name, parts[i].suffix);
        ok = memcmp(have.part[i], want.part[i], bytes) == 0 || differ(name, 0, have.part[i], want.part[i], bytes, e);
        total += bytes;
    }
    rendering_free(&have);
    rendering_free(&want);
    return ok && step(x, total, e);
}

static bool check_input_scale(const struct exported *x, const struct model *m, int unit, struct err *e)
{
    float have, want = renderings_input_scale(x->renderings, unit);
    if (!model_input_scale(m, unit, &have, e))
        return false;
    if (have != want)
        return err_set(e, ERR_NUMERIC, "'%s': input_global_scale, read again, is %.9g where %.9g was written",
                       x->source->units[unit].name, (double)have, (double)want);
    return true;
}

/* Units have the formats that they were given, with the bytes of their renderings. *n_tensors += theirs. */
static bool check_units(const struct exported *x, const struct model *m, size_t *n_tensors, struct err *e)
{
    struct format_part parts[FORMAT_PARTS];
    for (int i = 0; i < m->n_matrices; i++) {
        const struct matrix *source = &x->source->matrices[i];
        const struct format *f = x->formats[source->unit];
        if (strcmp(m->matrices[i].name, source->name) != 0 || m->matrices[i].stored != f)
            return err_set(e, ERR_NUMERIC, "module '%s', read again, is '%s' in format %s; it was given %s",
                           source->name, m->matrices[i].name, m->matrices[i].stored->name, f->name);
        if (!f->group_format)
            continue;
        *n_tensors += (size_t)f->parts(source->n, source->k, source->dtype, parts) + f->static_input_scale;
        if (!check_rendering(x, m, i, e))
            return false;
    }
    for (int u = 0; u < m->n_units; u++)
        if (x->formats[u]->static_input_scale && !check_input_scale(x, m, u, e))
            return false;
    return true;
}

/* Is it the `.weight` of a matrix that is packed? */
static bool is_packed(const struct exported *x, const char *tensor)
{
    size_t n = strlen(tensor);
    static const char suffix[] = ".weight";
    if (n < sizeof suffix || strcmp(tensor + n - (sizeof suffix - 1), suffix) != 0)
        return false;
    n -= sizeof suffix - 1;
    for (int i = 0; i < x->source->n_matrices; i++) {
        const struct matrix *m = &x->source->matrices[i];
        if (x->formats[m->unit]->group_format && strncmp(m->name, tensor, n) == 0 && m->name[n] == '\0')
            return true;
    }
    return false;
}

/* A copied tensor, by pieces in `buffer` (two of them). */
static bool check_copy(const struct exported *x, const struct model *m, const struct st_tensor *source,
                       unsigned char *buffer, struct err *e)
{
    const struct st_tensor *t = safetensors_find(m->files, source->name);
    if (!t || t->dtype != source->dtype || t->rank != source->rank ||
        memcmp(t->shape, source->shape, (size_t)t->rank * sizeof *t->shape) != 0)
        return err_set(e, ERR_NUMERIC, "tensor '%s', read again, is %s", source->name,
                       t ? "of another type or shape than the source's" : "not there");
    for (uint64_t first = 0; first < source->bytes; first += PIECE) {
        uint64_t n = source->bytes - first < PIECE ? source->bytes - first : PIECE;
        if (!safetensors_read(m->files, t, first, n, buffer, e) ||
            !safetensors_read(x->source->files, source, first, n, buffer + PIECE, e))
            return false;
        if (memcmp(buffer, buffer + PIECE, n) != 0)
            return differ(source->name, first, buffer, buffer + PIECE, n, e);
        if (!step(x, n, e))
            return false;
    }
    return true;
}

static bool check_model(const struct exported *x, const struct model *m, struct err *e)
{
    const struct safetensors *files = x->source->files;
    unsigned char *buffer;
    size_t n_tensors = 0;
    if (m->n_matrices != x->source->n_matrices || m->n_units != x->source->n_units)
        return err_set(e, ERR_NUMERIC, "read again, it has %d matrices in %d units; the source has %d in %d",
                       m->n_matrices, m->n_units, x->source->n_matrices, x->source->n_units);
    if (!check_units(x, m, &n_tensors, e) || !mem_raw(&buffer, (size_t)2 * PIECE, e))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < files->n_tensors; i++) {
        const struct st_tensor *t = &files->tensors[i];
        /* A head that is tied is left out: loaders alias the embedding. */
        if (is_packed(x, t->name) || (x->source->config.tied && strcmp(t->name, "lm_head.weight") == 0))
            continue;
        ok = check_copy(x, m, t, buffer, e);
        n_tensors++;
    }
    mem_free(buffer);
    if (ok && m->files->n_tensors != n_tensors)
        ok = err_set(e, ERR_NUMERIC, "read again, it has %zu tensors; there should be %zu", m->files->n_tensors,
                     n_tensors);
    return ok;
}

bool exported_check(const char *directory, const struct exported *x, struct err *e)
{
    struct model *m;
    if (!model_open_as(&m, directory, x->source->head_unit >= 0 ? HEAD_UNIT : HEAD_AS_STORED, e))
        return err_context(e, "what was exported cannot be read again");
    bool ok = check_model(x, m, e);
    model_close(m);
    return ok;
}
