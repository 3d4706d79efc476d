/* Write the decoded f32 weights of every matrix of a model directory (compressed or not) as OUT/<matrix>.f32, raw and
 * row-major, for tools/check_export.py. usage: decode_export DIR OUT */
#include <stdio.h>
#include <stdlib.h>

#include "nodes/model/model.h"

static bool write_matrix(const struct model *m, int i, const char *folder, struct err *e)
{
    const struct matrix *x = &m->matrices[i];
    size_t count = (size_t)(x->n * x->k);
    char path[4096];
    float *w;
    if (!mem_raw(&w, count, e))
        return false;
    struct rendering r = {0};
    bool ok = model_read_rendering(m, i, &r, e);
    if (ok) {
        r.format->decode(&r, 0, x->n, w);
        rendering_free(&r);
        snprintf(path, sizeof path, "%s/%s.f32", folder, x->name);
        FILE *f = fopen(path, "wb");
        ok = (f && fwrite(w, sizeof *w, count, f) == count) || err_errno(e, ERR_IO, "cannot write %s", path);
        if (f && fclose(f) != 0 && ok)
            ok = err_errno(e, ERR_IO, "cannot write %s", path);
    }
    mem_free(w);
    return ok;
}

int main(int argc, char **argv)
{
    struct err e = {0};
    struct model *m = NULL;
    if (argc != 3) {
        fprintf(stderr, "usage: decode_export DIR OUT\n");
        return 2;
    }
    bool ok = model_open(&m, argv[1], &e);
    for (int i = 0; ok && i < m->n_matrices; i++) {
        ok = write_matrix(m, i, argv[2], &e);
        printf("%s %s\n", m->matrices[i].name, m->matrices[i].stored ? m->matrices[i].stored->name : "?");
    }
    if (!ok)
        fprintf(stderr, "decode_export: %s\n", e.text);
    model_close(m);
    return ok ? 0 : 1;
}
