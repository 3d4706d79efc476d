/* Not a test by itself: writes the logits of a model on given token ids, for tools/check_logits.py.
 * usage: logits MODEL_DIR IDS.i32 WINDOW fp32|bf16 OUT.f32     (ids are whole windows; OUT is [positions, vocab]) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nodes/model/forward.h"

static bool through_layers(struct forward *f, struct tensor *x, struct err *e)
{
    for (int layer = 0; layer < f->model->config.layers; layer++) {
        struct unit_weights w[LAYER_UNITS] = {0};
        bool ok = true;
        for (int u = 0; ok && u < LAYER_UNITS; u++)
            ok = weights_stored(f->q, f->model, layer * LAYER_UNITS + u, f->mode, &w[u], e);
        ok = ok && forward_layer(f, layer, w, x, NULL, NULL, e);
        for (int u = 0; u < LAYER_UNITS; u++)
            f->q->k->tensor_free(f->q, &w[u].panels);
        if (!ok)
            return false;
    }
    return true;
}

static bool write_logits(struct forward *f, const int32_t *ids, int64_t rows, FILE *out, struct err *e)
{
    const struct kernels *k = f->q->k;
    int64_t states[2] = {rows, f->model->config.hidden}, logits[2] = {rows, f->model->config.vocab};
    struct tensor x = {0}, y = {0};
    bool ok = k->tensor_new(f->q, &x, DTYPE_F32, 2, states, e) && k->tensor_new(f->q, &y, DTYPE_F32, 2, logits, e) &&
              forward_embed(f, ids, &x, e) && through_layers(f, &x, e) && forward_final(f, &x, &x, e) &&
              k->matmul(f->q, &x, &f->head, &y, e);
    if (ok && fwrite(y.data, sizeof(float), (size_t)tensor_count(&y), out) != (size_t)tensor_count(&y))
        ok = err_errno(e, ERR_IO, "writing logits");
    k->tensor_free(f->q, &x);
    k->tensor_free(f->q, &y);
    return ok;
}

static bool run(char **argv, struct err *e)
{
    struct model *m = NULL;
    struct forward f = {0};
    struct queue q = {.k = kernels_cpu(e), .threads = 2, .device = TENSOR_HOST};
    int window = atoi(argv[3]);
    FILE *in = fopen(argv[2], "rb"), *out = fopen(argv[5], "wb");
    int32_t *ids = malloc((size_t)window * sizeof *ids);
    bool ok = in && out && ids && q.k && model_open(&m, argv[1], e) &&
              forward_open(&f, m, &q, strcmp(argv[4], "bf16") == 0 ? DTYPE_BF16 : DTYPE_F32, window, e);
    while (ok && fread(ids, sizeof *ids, (size_t)window, in) == (size_t)window)
        ok = write_logits(&f, ids, window, out, e);
    if (out && fclose(out) != 0 && ok)
        ok = err_errno(e, ERR_IO, "%s", argv[5]);
    if (in)
        fclose(in);
    free(ids);
    forward_close(&f);
    model_close(m);
    return ok;
}

int main(int argc, char **argv)
{
    struct err e = {.text = "cannot open a file"};
    if (argc != 6) {
        fprintf(stderr, "usage: logits MODEL_DIR IDS.i32 WINDOW fp32|bf16 OUT.f32\n");
        return 2;
    }
    if (run(argv, &e))
        return 0;
    fprintf(stderr, "logits: %s\n", e.text);
    return 1;
}
