/* The order of the checks, and the table of units. */
#include "nodes/inspect/inspect.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "nodes/inspect/checks.h"
#include "nodes/inspect/decoding.h"
#include "nodes/model/json.h"

#define CONFIG_LIMIT (16u << 20)

/* config.json; a finding when it is none. False when memory is out. */
static bool read_config(struct subject *s, struct err *e)
{
    char path[4096];
    struct err why = {0};
    snprintf(path, sizeof path, "%s/config.json", s->options->dir);
    if (!json_load_file_strict(&s->config, path, CONFIG_LIMIT, &why)) {
        s->config = NULL;
        if (why.code == ERR_RESOURCE) {
            *e = why;
            return false;
        }
        report_error(s->report, 9, "config.json", "one JSON object", "%s", why.text);
    } else if (!json_is_object(s->config)) {
        report_error(s->report, 9, "config.json", "one JSON object", "it is another value");
    }
    return true;
}

static void check_examples(struct subject *s)
{
    const char *what = NULL;
    if (!decoding_examples(&what))
        report_error(s->report, 11, what, "the weights that are written there", "its bytes decode to others");
}

/* ------------------------------------------------------------------------------------------------------ the table */

static bool describe_unit(struct inspection *x, const struct subject *s, const struct module_unit *u,
                          struct inspect_unit *out, struct err *e)
{
    const struct module *first = &s->modules.list[u->modules[0]];
    char name[40];
    bool mixed = false;
    *out = (struct inspect_unit){.n_matrices = u->n_modules, .k = first->k, .error = NAN, .most = NAN};
    for (size_t i = 0; i < u->n_modules; i++) {
        const struct module *m = &s->modules.list[u->modules[i]];
        mixed = mixed || !scheme_equal(&m->stored, &first->stored);
        out->n = m->k == out->k && out->n >= 0 ? out->n + m->n : -1;
        out->parameters += (uint64_t)m->n * (uint64_t)m->k;
        out->bytes += m->bytes;
    }
    out->k = out->n < 0 ? -1 : out->k;
    const struct st_entry *weight = first->param[PARAM_WEIGHT];
    bool is_plain = first->stored.kind == SCHEME_PLAIN && weight && weight->dtype != DTYPE_COUNT;
    out->name = report_clean(&x->report, u->name);
    out->scheme = arena_strdup(&x->arena, mixed ? "mixed" : is_plain ? dtype_info(weight->dtype)->name
                                                                     : scheme_name(&first->stored, name), e);
    /* The graph's own units are known where scout.json assigns them formats. */
    const json_t *assignment = json_object_get(s->origin.recipe, "assignment");
    out->is_counted = json_object_size(assignment) > 0 ? json_object_get(assignment, u->name) != NULL
                                                       : module_unit_counts(&s->modules, u);
    if (out->is_counted) {
        x->unit_bytes += out->bytes;
        x->unit_parameters += out->parameters;
    }
    return out->scheme != NULL;
}

static bool describe(struct inspection *x, const struct subject *s, struct err *e)
{
    x->units = arena_new(&x->arena, (s->modules.n_units + 1) * sizeof *x->units, e);
    if (!x->units)
        return false;
    for (; x->n_units < s->modules.n_units; x->n_units++)
        if (!describe_unit(x, s, &s->modules.units[x->n_units], &x->units[x->n_units], e))
            return false;
    x->n_tensors = s->files.n_tensors;
    x->n_files = s->files.n_shards;
    x->bytes = s->files.bytes;
    x->is_quantized = s->quant.is_there;
    return true;
}

/* ------------------------------------------------------------------------------------------------------ the checks */

static bool run_checks(struct inspection *x, struct subject *s, struct err *e)
{
    check_examples(s);
    if (!read_config(s, e) || !quant_read(&s->quant, s->config, &s->arena, s->report, e) ||
        !modules_new(&s->modules, &s->files, e) || !check_claims(s, e))
        return false;
    for (size_t i = 0; i < s->modules.n; i++)
        module_classify(&s->modules.list[i], &s->files);
    if (!check_schemes(s, e))
        return false;
    check_accounts(s);
    check_structure(s);
    check_fused(s);
    if (!describe(x, s, e) || !check_values(s, x->units, e) || !check_copies(s, e))
        return false;
    check_budget(s);
    return check_surroundings(s, e);
}

static bool open_subject(struct subject *s, struct err *e)
{
    struct stat st;
    const char *dir = s->options->dir;
    if (strlen(dir) > 3000 || (s->options->source && strlen(s->options->source) > 3000))
        return err_set(e, ERR_INPUT, "a path of more than 3000 bytes is not read");
    if (stat(dir, &st) != 0)
        return err_errno(e, ERR_INPUT, "%s", dir);
    if (!S_ISDIR(st.st_mode))
        return err_set(e, ERR_INPUT, "%s: a checkpoint is a directory with config.json and safetensors files", dir);
    return origin_open(&s->origin, dir, s->options->source, s->report, e) && files_open(&s->files, dir, s->report, e);
}

static void close_subject(struct subject *s)
{
    matcher_free(s->matcher);
    modules_free(&s->modules);
    files_close(&s->files);
    origin_close(&s->origin);
    json_decref(s->config);
    arena_free(&s->arena);
}

bool inspect_run(struct inspection **out, const struct inspect_options *o, struct err *e)
{
    struct inspection *x;
    if (!mem_new(&x, 1, e))
        return false;
    struct subject s = {.options = o, .report = &x->report};
    bool ok = open_subject(&s, e) && run_checks(x, &s, e) && report_ok(&x->report, e);
    close_subject(&s);
    if (!ok) {
        inspection_free(x);
        return false;
    }
    report_sort(&x->report);
    *out = x;
    return true;
}

void inspection_free(struct inspection *x)
{
    if (!x)
        return;
    report_fini(&x->report);
    arena_free(&x->arena);
    mem_free(x);
}
