/* The node type `model`: names the source of everything else. Its object holds the tables that others are numbered by,
 * and a digest of every tensor; nothing that depends on where the model lies or how it is cut into files. */
#include <inttypes.h>
#include <string.h>

#include "engine/base/str.h"
#include "engine/node.h"
#include "nodes/model/describe.h"
#include "nodes/nodes.h"

static const struct param params[] = {
    {.name = "path", .type = PARAM_SOURCE,
     .help = "a Hugging Face directory: config.json and model.safetensors, or its shards with their index"},
    {.name = "head", .type = PARAM_ENUM, .fallback = "plain", .choices = (const char *const[]){"plain", "unit", NULL},
     .help = "a head of its own: left as it is, or a unit that formats are chosen for, as for all others"},
    {0}};

static bool open_model(struct model **out, const struct node *n, struct err *e)
{
    return model_open_as(out, node_string(n, "path"),
                         strcmp(node_string(n, "head"), "unit") == 0 ? HEAD_UNIT : HEAD_AS_STORED, e);
}

/* "bf16", or "nvfp4_a16 + fp8 + bf16": how its matrices are stored, each once. */
static void describe_storage(const struct model *m, struct str *out)
{
    for (int i = 0; i < m->n_matrices; i++) {
        const struct matrix *x = &m->matrices[i], *y = m->matrices;
        while (y < x && (y->stored != x->stored || y->dtype != x->dtype))
            y++;
        if (y == x) {
            str_add(out, out->length ? " + " : "");
            str_add(out, x->stored->group_format ? x->stored->name : dtype_info(x->dtype)->name);
        }
    }
}

static void tell(struct node *n, const struct model *m)
{
    struct str storage = {0};
    describe_storage(m, &storage);
    node_log(n, "%s, %" PRIu64 " parameters, %d layers, %s", m->config.model_type, model_parameters(m),
             m->config.layers, storage.text ? storage.text : "");
    str_free(&storage);
    if (m->n_unused_biases > 0)
        node_log(n, "%d biases of linear layers are not used: config.json does not set `attention_bias` or `mlp_bias`, "
                 "and servers go by that", m->n_unused_biases);
}

static bool run(struct node *n, struct err *e)
{
    struct model *m;
    if (!open_model(&m, n, e))
        return false;
    bool ok = describe_model(n, m, e);
    if (ok)
        tell(n, m);
    model_close(m);
    return ok;
}

static bool needs(struct node *n, struct needs *out, struct err *e)
{
    struct model *m;
    if (!open_model(&m, n, e))
        return false;
    *out = (struct needs){.cores = 1};
    describe_needs(m, out);
    model_close(m);
    return true;
}

const struct node_class node_model = {
    .name = "model",
    .summary = "the original model: its matrices, its units, and a digest of every tensor",
    .version = 2,
    .params = params,
    .needs = needs,
    .run = run,
};
