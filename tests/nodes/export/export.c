/* The node type export over a real model, renderings and store: what its directory holds, and when it may replace one.
 * The directory is read back as a model. */
#include "tests/check.h"

#include <jansson.h>
#include <math.h>

#include "nodes/exported.h"
#include "nodes/search/candidates.h"
#include "tests/nodes/fake_node.h"

extern const struct node_class node_quantize, node_export;

/* Most tests have a small menu. */
static const char *const menu_names[] = {"nvfp4", "nvfp4_a16", "fp8", "bf16", NULL};
enum { FP8 = 2, BF16 = 3, MENU = 4 };
#define MOST_UNITS 64

struct world {
    char folder[256], source[512], target[512];
    struct store *store;
    struct model *model;
    struct object *info, *hessian, *renderings; /* results of a model, a hessian and a quantize node */
    struct menu menu;
};

/* What export reads of a model node's result. */
static struct object *make_info(struct world *w)
{
    struct err e = {0};
    struct writer *out = NULL;
    struct object *o = NULL;
    struct key key;
    const char *const names[] = {"model.norm.weight"}, *const digests[] = {"00ff"};
    assert_ok(key_of_bytes(w->source, strlen(w->source), &key, &e) && writer_new(&out, w->store, &key, "model", &e), e);
    assert_ok(writer_add_strings(out, "tensors/name", names, 1, "tensor", "names", &e), e);
    assert_ok(writer_add_strings(out, "tensors/digest", digests, 1, "tensor", "digests", &e), e);
    assert_ok(writer_commit(out, &e) && object_open(&o, w->store, &key, &e) && o, e);
    return o;
}

static void world_open_menu(struct world *w, const char *name, const char *const *menu)
{
    struct err e = {0};
    struct node n;
    char path[300];
    *w = (struct world){0};
    check_dir_make(w->folder);
    snprintf(path, sizeof path, "%s/store", w->folder);
    snprintf(w->source, sizeof w->source, "%s/data/models/%s", check_root(), name);
    snprintf(w->target, sizeof w->target, "%s/export", w->folder);
    assert_ok(store_open(&w->store, path, &e) && model_open(&w->model, w->source, &e), e);
    w->info = make_info(w);
    w->hessian = fake_hessian(w->store, w->model);
    fake_node_init(&n, &node_quantize, w->store, "quantize");
    fake_node_connect(&n, "model", "model", w->info, w->source);
    fake_node_connect(&n, "hessian", "hessian", w->hessian, NULL);
    for (; *menu; menu++)
        fake_node_set(&n, "formats", *menu);
    w->renderings = fake_node_run(&n, &e);
    if (!w->renderings)
        fail_msg("%s", e.text);
    fake_node_fini(&n);
    assert_ok(menu_read(&w->menu, w->renderings, &e), e);
    assert_in_range(w->menu.n_units, 1, MOST_UNITS);
}

static void world_open(struct world *w, const char *name) { world_open_menu(w, name, menu_names); }

static void world_close(struct world *w)
{
    menu_fini(&w->menu);
    object_close(w->renderings);
    object_close(w->hessian);
    object_close(w->info);
    model_close(w->model);
    store_close(w->store);
    check_dir_remove(w->folder);
}

/* All formats of the menu in turn, where a unit can have them, or all of `uniform` when >= 0. */
static void assign(const struct world *w, int uniform, uint8_t out[MOST_UNITS])
{
    const struct menu *m = &w->menu;
    if (uniform >= 0)
        menu_uniform(m, uniform, out);
    for (int u = 0; uniform < 0 && u < m->n_units; u++)
        out[u] = (uint8_t)m->fallback[u * m->n_formats + (u + u / m->n_formats) % m->n_formats];
}

/* What makes it a `confirm`: candidate 0 was the choice, and candidate 1 beat it. */
static void add_comparison(struct writer *out)
{
    static const char *const columns[] = {"compared/difference", "compared/low", "compared/high"};
    struct err e;
    struct dataset d = {.name = "compared/candidate", .dtype = DTYPE_U32, .rank = 1, .shape = {1}, .unit = "1",
                        .axes = "baseline", .description = "id"};
    assert_ok(writer_add_strings(out, "compared/name", (const char *const[]){"L1 knapsack"}, 1, "baseline", "name",
                                 &e) && writer_add(out, &d, &(uint32_t){1}, &e), e);
    d.dtype = DTYPE_F64;
    for (int i = 0; i < 3; i++) {
        d.name = columns[i];
        assert_ok(writer_add(out, &d, (const double[]){-0.5, -0.75, NAN} + i, &e), e);
    }
}

/* A selecting node's result whose chosen candidate is the second of two. */
static struct object *choose(struct world *w, int uniform)
{
    struct err e = {0};
    struct candidates c;
    struct writer *out = NULL;
    struct object *o = NULL;
    struct key key;
    uint8_t assignment[MOST_UNITS] = {0};
    char seed[32];
    snprintf(seed, sizeof seed, "select %d", uniform);
    assert_ok(candidates_init(&c, w->menu.n_units, 0, NULL, NULL, &e), e);
    menu_uniform(&w->menu, FP8, assignment);
    assert_non_null(candidates_add(&c, &w->menu, assignment, "uniform", -1, &e));
    assign(w, uniform, assignment);
    assert_non_null(candidates_add(&c, &w->menu, assignment, "flip", 0, &e));
    assert_ok(key_of_bytes(seed, strlen(seed), &key, &e) && writer_new(&out, w->store, &key, "select", &e), e);
    assert_ok(candidates_write(&c, &w->menu, out, &e), e);
    struct dataset d = {.name = "chosen", .dtype = DTYPE_U32, .rank = 1, .shape = {1}, .unit = "1", .axes = "choice",
                        .description = "id"};
    assert_ok(writer_add(out, &d, &(uint32_t){1}, &e), e);
    add_comparison(out);
    assert_ok(writer_commit(out, &e) && object_open(&o, w->store, &key, &e) && o, e);
    candidates_fini(&c);
    return o;
}

static void make_seeded_node(struct node *n, struct world *w, struct object *choice, const char *seed)
{
    fake_node_init(n, &node_export, w->store, seed);
    fake_node_connect(n, "model", "model", w->info, w->source);
    fake_node_connect(n, "renderings", "quantize", w->renderings, NULL);
    fake_node_connect(n, "assignment", "select", choice, NULL);
    fake_node_set(n, "directory", w->target);
}

static void make_node(struct node *n, struct world *w, struct object *choice)
{
    make_seeded_node(n, w, choice, "export");
}

static struct object *export(struct world *w, struct object *choice, const char *shard_size)
{
    struct err e = {0};
    struct node n;
    make_node(&n, w, choice);
    if (shard_size)
        fake_node_set(&n, "shard_size", shard_size);
    struct object *o = fake_node_run(&n, &e);
    if (!o)
        fail_msg("%s", e.text);
    fake_node_fini(&n);
    return o;
}

static char *read_text(const char *folder, const char *name, size_t *n)
{
    char path[800];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    char *text = check_read(path, n);
    if (!text)
        fail_msg("there is no %s", path);
    return text;
}

static void assert_same_file(const struct world *w, const char *name)
{
    size_t a, b;
    char *x = read_text(w->source, name, &a), *y = read_text(w->target, name, &b);
    assert_int_equal(a, b);
    assert_memory_equal(x, y, a);
    free(x);
    free(y);
}

/* Tensor `name` of the target has the bytes of the source's. */
static void assert_same_tensor(const struct world *w, const struct model *exported, const char *name)
{
    struct err e = {0};
    const struct st_tensor *a = safetensors_find(w->model->files, name), *b = safetensors_find(exported->files, name);
    if (!a || !b || a->bytes != b->bytes || a->dtype != b->dtype || a->rank != b->rank)
        fail_msg("%s is not as in the source", name);
    char *x = NULL, *y = NULL;
    assert_ok(mem_raw(&x, a->bytes, &e) && mem_raw(&y, a->bytes, &e), e);
    assert_ok(safetensors_read(w->model->files, a, 0, a->bytes, x, &e), e);
    assert_ok(safetensors_read(exported->files, b, 0, b->bytes, y, &e), e);
    assert_memory_equal(x, y, a->bytes);
    mem_free(x);
    mem_free(y);
}

/* Every matrix is stored in its format with the bytes of its rendering, and everything else is as in the source. */
static void assert_exported(struct world *w, int uniform)
{
    struct err e = {0};
    struct model *exported;
    struct renderings *r;
    uint8_t assignment[MOST_UNITS];
    assign(w, uniform, assignment);
    assert_ok(model_open(&exported, w->target, &e), e);
    assert_ok(renderings_open_object(&r, w->store, w->renderings, w->model, &e), e);
    assert_int_equal(exported->n_matrices, w->model->n_matrices);
    for (int i = 0; i < exported->n_matrices; i++) {
        const struct matrix *m = &exported->matrices[i];
        const char *format = w->menu.format_names[assignment[m->unit]];
        assert_string_equal(m->stored->name, format);
        struct rendering got, expected;
        struct format_part parts[FORMAT_PARTS];
        assert_ok(model_read_rendering(exported, i, &got, &e), e);
        assert_ok(renderings_read(r, i, format, &expected, &e), e);
        int count = got.format->parts(m->n, m->k, w->model->matrices[i].dtype, parts);
        for (int p = 0; p < count; p++)
            assert_memory_equal(got.part[p], expected.part[p], format_part_bytes(&parts[p]));
        rendering_free(&got);
        rendering_free(&expected);
        float scale = 0.0f;
        if (m->stored->static_input_scale) {
            assert_ok(model_input_scale(exported, m->unit, &scale, &e), e);
            assert_true(scale == 2688.0f / fake_amax(m->unit));
        }
    }
    for (size_t i = 0; i < w->model->files->n_tensors; i++)
        if (!strstr(w->model->files->tensors[i].name, "_proj.weight"))
            assert_same_tensor(w, exported, w->model->files->tensors[i].name);
    renderings_close(r);
    model_close(exported);
}

/* ------------------------------------------------------------------------------------------------------------ tests */

static void the_directory_holds_the_renderings_of_the_chosen_assignment(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, "stories260k");
    struct object *choice = choose(&w, -1), *o = export(&w, choice, NULL);
    assert_exported(&w, -1);
    assert_same_file(&w, "tokenizer.json");
    assert_same_file(&w, "tokenizer_config.json");
    assert_same_file(&w, "generation_config.json");
    object_close(o);
    object_close(choice);
    world_close(&w);
}

/* The group of config.json that has the module as a target, by name; NULL and `ignored` when it is in `ignore`. */
static const char *group_of(const json_t *q, const char *module, bool *ignored)
{
    const char *name, *found = NULL;
    const json_t *group, *x;
    size_t i;
    *ignored = false;
    json_array_foreach(json_object_get(q, "ignore"), i, x)
        *ignored = *ignored || strcmp(json_string_value(x), module) == 0;
    json_object_foreach(json_object_get(q, "config_groups"), name, group)
        json_array_foreach(json_object_get(group, "targets"), i, x)
            if (strcmp(json_string_value(x), module) == 0) {
                if (found || *ignored)
                    fail_msg("'%s' is in two places", module);
                found = name;
            }
    if (!found && !*ignored)
        fail_msg("'%s' is nowhere", module);
    return found;
}

/* What config.json says: a group per format that occurs, in which each module is once, with that format's scheme. */
static void assert_config(struct world *w, int uniform)
{
    uint8_t assignment[MOST_UNITS];
    const char *overall = NULL, *groups[16] = {NULL};
    size_t n, n_groups = 0;
    bool ignored;
    char *text = read_text(w->target, "config.json", &n);
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL), *q = json_object_get(root, "quantization_config");
    assign(w, uniform, assignment);
    for (int i = 0; i < w->model->n_matrices; i++) {
        int at = assignment[w->model->matrices[i].unit];
        const struct format *f = format_find(w->menu.format_names[at]);
        const char *name = q ? group_of(q, w->model->matrices[i].name, &ignored) : NULL;
        if (!f->group_format) {
            assert_null(name);
            continue;
        }
        assert_non_null(name);
        if (groups[at]) {
            assert_string_equal(name, groups[at]);
            continue;
        }
        groups[at] = name;
        n_groups++;
        const json_t *group = json_object_get(json_object_get(q, "config_groups"), name);
        json_t *weights = json_loads(f->weights_json, JSON_DECODE_ANY, NULL);
        json_t *input = json_loads(f->input_json, JSON_DECODE_ANY, NULL);
        assert_string_equal(json_string_value(json_object_get(group, "format")), f->group_format);
        assert_true(json_equal(json_object_get(group, "weights"), weights));
        assert_true(json_equal(json_object_get(group, "input_activations"), input));
        overall = overall && strcmp(overall, f->group_format) != 0 ? "mixed-precision" : f->group_format;
        json_decref(weights);
        json_decref(input);
    }
    assert_int_equal(json_object_size(json_object_get(q, "config_groups")), n_groups);
    if (overall) {
        assert_string_equal(json_string_value(json_object_get(q, "format")), overall);
        assert_null(group_of(q, "lm_head", &ignored));
    }
    json_decref(root);
    free(text);
}

static void assert_all_exported(const char *model, int last)
{
    struct world w;
    world_open_menu(&w, model, format_names);
    for (int f = -1; f <= last && f < w.menu.n_formats; f++) {
        struct object *choice = choose(&w, f), *o = export(&w, choice, NULL);
        assert_exported(&w, f);
        assert_config(&w, f);
        object_close(o);
        object_close(choice);
    }
    world_close(&w);
}

/* Width 352 fits no groups of 64 and 128, and 172 no blocks at all, so that fallbacks make mixes of most. */
static void every_format_and_a_mix_of_all_is_exported(void **state)
{
    (void)state;
    assert_all_exported("babyllama-1m", MOST_UNITS);
    assert_all_exported("stories260k", 0);
}

/* --------------------------------------------------------------------------------------------- what is read again */

/* Change n <= 8 bytes of a tensor of the exported model.safetensors; the old ones go to `old` unless it is NULL. */
static void poke(const struct world *w, const char *tensor, uint64_t at, const void *bytes, size_t n, void *old)
{
    struct err e = {0};
    struct safetensors *s;
    char path[800], before[8];
    assert_ok(safetensors_open(&s, w->target, &e), e);
    const struct st_tensor *t = safetensors_find(s, tensor);
    if (!t || at + n > t->bytes || n > sizeof before)
        fail_msg("there is no byte %llu of '%s'", (unsigned long long)at, tensor);
    assert_ok(safetensors_read(s, t, at, n, before, &e), e);
    snprintf(path, sizeof path, "%s/%s", w->target, s->files[t->file]);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)(t->offset + at), SEEK_SET), 0);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    safetensors_close(s);
    assert_memory_not_equal(before, bytes, n);
    if (old)
        memcpy(old, before, n);
}

/* exported_check of the directory against the assignment: "" or its error. */
static void read_again(struct world *w, int uniform, struct err *e)
{
    struct renderings *r;
    const struct format *formats_of[MOST_UNITS];
    uint8_t assignment[MOST_UNITS];
    assign(w, uniform, assignment);
    for (int u = 0; u < w->menu.n_units; u++)
        formats_of[u] = format_find(w->menu.format_names[assignment[u]]);
    assert_ok(renderings_open_object(&r, w->store, w->renderings, w->model, e), *e);
    const struct exported x = {.source = w->model, .renderings = r, .formats = formats_of};
    *e = (struct err){0};
    (void)!exported_check(w->target, &x, e);
    renderings_close(r);
}

static void what_differs_from_what_was_written_is_found(void **state)
{
    (void)state;
    /* In the mix of four: q,k,v of layer 0 are nvfp4, o nvfp4_a16, gate and up fp8, down bf16. */
    static const struct {
        const char *tensor;
        uint64_t at;
        const char *bytes;
        size_t n;
        enum err_code code;
        const char *text;
    } cases[] = {
        {"model.layers.0.self_attn.k_proj.weight_packed", 17, "\x00\xff\x00", 3, ERR_NUMERIC,
         "tensor 'model.layers.0.self_attn.k_proj.weight_packed', read again, has 0x"},
        {"model.layers.0.self_attn.o_proj.weight_scale", 255, "\x01", 1, ERR_NUMERIC,
         "o_proj.weight_scale', read again, has 0x01 at byte 255 where 0x"},
        {"model.layers.0.self_attn.q_proj.weight_global_scale", 0, "\x00\x00\x80\x3f", 4, ERR_INPUT,
         "what was exported cannot be read again: "},
        {"model.layers.0.self_attn.q_proj.weight_global_scale", 0, "\x00\x00\x80\x3f", 4, ERR_INPUT,
         "the server fuses them and keeps one, so they must be equal"},
        {"model.layers.0.self_attn.v_proj.input_global_scale", 0, "\x00\x00\x80\x3f", 4, ERR_INPUT, "must be equal"},
        {"model.layers.0.mlp.up_proj.weight_scale", 8, "\x01\x02\x03\x04", 4, ERR_NUMERIC, "at byte 8 where 0x"},
        {"model.layers.0.mlp.down_proj.weight", 11000, "\x01\x02\x03\x04", 4, ERR_NUMERIC,
         "down_proj.weight', read again"},
        {"model.layers.3.input_layernorm.weight", 126, "\x12\x34", 2, ERR_NUMERIC, "has 0x12 at byte 126 where 0x"},
        {"model.embed_tokens.weight", 0, "\xff\xff", 2, ERR_NUMERIC,
         "embed_tokens.weight', read again, has 0xff at byte 0"},
        {"model.norm.weight", 3, "\xff", 1, ERR_NUMERIC, "at byte 3"},
    };
    struct world w;
    struct err e = {0};
    world_open(&w, "stories260k");
    struct object *choice = choose(&w, -1);
    object_close(export(&w, choice, NULL));
    for (size_t i = 0; i < COUNT(cases); i++) {
        char old[8];
        read_again(&w, -1, &e);
        assert_string_equal(e.text, "");
        poke(&w, cases[i].tensor, cases[i].at, cases[i].bytes, cases[i].n, old);
        read_again(&w, -1, &e);
        if (e.code != cases[i].code || !strstr(e.text, cases[i].text))
            fail_msg("%s, byte %llu: '%s', expected '%s'", cases[i].tensor, (unsigned long long)cases[i].at, e.text,
                     cases[i].text);
        poke(&w, cases[i].tensor, cases[i].at, old, cases[i].n, NULL);
    }
    object_close(choice);
    world_close(&w);
}

static void another_assignment_or_scale_than_was_written_is_found(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    world_open(&w, "stories260k");
    struct object *choice = choose(&w, -1);
    object_close(export(&w, choice, NULL));
    read_again(&w, FP8, &e);
    assert_int_equal(e.code, ERR_NUMERIC);
    assert_string_equal(e.text, "module 'model.layers.0.self_attn.q_proj', read again, is "
                                "'model.layers.0.self_attn.q_proj' in format nvfp4; it was given fp8");
    for (const char *const *m = (const char *const[]){"q_proj", "k_proj", "v_proj", NULL}; *m; m++) {
        char tensor[100];
        snprintf(tensor, sizeof tensor, "model.layers.0.self_attn.%s.input_global_scale", *m);
        poke(&w, tensor, 0, &(float){2.0f}, sizeof(float), NULL);
    }
    read_again(&w, -1, &e);
    assert_int_equal(e.code, ERR_NUMERIC);
    assert_non_null(strstr(e.text, "'model.layers.0.self_attn.qkv_proj': input_global_scale, read again, is 2 where"));
    object_close(choice);
    world_close(&w);
}

static void scout_json_and_the_result_say_the_same(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    size_t n;
    world_open(&w, "stories260k");
    struct object *choice = choose(&w, -1), *o = export(&w, choice, NULL);
    char *text = read_text(w.target, "scout.json", &n), **names, **digests;
    json_t *recipe = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(recipe);
    int64_t bytes;
    double bpp = 0.0;
    assert_true(object_int(o, "bytes", &bytes) && object_double(o, "bpp", &bpp));
    assert_int_equal(json_integer_value(json_object_get(recipe, "bytes")), bytes);
    assert_true(json_real_value(json_object_get(recipe, "bpp")) == bpp);
    assert_true(fabs(bpp - 8.0 * (double)bytes / (double)model_unit_parameters(w.model)) < 1e-12);
    const json_t *assignment = json_object_get(recipe, "assignment");
    uint8_t formats_of[MOST_UNITS];
    assign(&w, -1, formats_of);
    for (int u = 0; u < w.menu.n_units; u++)
        assert_string_equal(json_string_value(json_object_get(assignment, w.menu.unit_names[u])),
                            menu_names[formats_of[u]]);
    assert_string_equal(json_string_value(json_object_get(recipe, "serving")), "any");
    assert_true(json_is_null(json_object_get(json_object_get(recipe, "measured"), "kl_mean")));
    const json_t *compared = json_object_get(recipe, "compared");
    const json_t *baseline = json_array_get(json_object_get(compared, "compared"), 0);
    assert_true(json_is_false(json_object_get(compared, "stands")));
    assert_string_equal(json_string_value(json_object_get(baseline, "name")), "L1 knapsack");
    assert_int_equal(json_integer_value(json_object_get(baseline, "bytes")), bytes);
    assert_true(json_real_value(json_object_get(baseline, "difference")) == -0.5);
    assert_true(json_real_value(json_object_get(baseline, "low")) == -0.75);
    assert_true(json_is_null(json_object_get(baseline, "high")));
    uint64_t n_files, n_digests;
    assert_ok(object_read_strings(o, "files/name", &names, &n_files, &e), e);
    assert_ok(object_read_strings(o, "files/digest", &digests, &n_digests, &e), e);
    const json_t *files = json_object_get(recipe, "files");
    assert_int_equal(json_array_size(files) + 1, n_files); /* it cannot list itself */
    for (uint64_t i = 0, j = 0; i < n_files; i++) {
        if (strcmp(names[i], "scout.json") == 0)
            continue;
        const json_t *entry = json_array_get(files, j++);
        assert_string_equal(json_string_value(json_object_get(entry, "name")), names[i]);
        assert_string_equal(json_string_value(json_object_get(entry, "sha256")), digests[i]);
    }
    mem_free(names);
    mem_free(digests);
    json_decref(recipe);
    free(text);
    object_close(o);
    object_close(choice);
    world_close(&w);
}

/* ------------------------------------------------------------------------------------ what scout.json says was done */

#define WINDOWS 5
static const uint32_t window_tokens[WINDOWS] = {10, 20, 30, 10, 30}, window_document[WINDOWS] = {7, 7, 8, 9, 9};
static const double window_kl[WINDOWS] = {0.01, 0.03, 0.02, 0.07, 0.0123456789012345};
enum { SCORED = 100 };

/* What a corpus node would have made: three sets, the selection with the windows above, and the documents behind them;
 * the digest of the selection. */
static struct key make_corpus(struct world *w, char digest[KEY_TEXT])
{
    static const char *const sets[] = {"calibration", "selection", "report"};
    static const char *const documents[] = {"aa", "bb", "cc", "dd", "ee", "ff"};
    static const uint8_t split[] = {1, 0, 3, 1, 2, 1};
    struct err e = {0};
    struct writer *out = NULL;
    struct object *o = NULL;
    struct key key;
    assert_ok(key_of_bytes("corpus", 6, &key, &e) && writer_new(&out, w->store, &key, "corpus", &e), e);
    for (size_t s = 0; s < COUNT(sets); s++) {
        char name[64];
        int32_t ids[WINDOWS][31] = {{0}}, length[WINDOWS];
        uint64_t n = s == 1 ? WINDOWS : 1 + s;
        for (size_t i = 0; i < WINDOWS; i++) {
            length[i] = (int32_t)window_tokens[i] + 1;
            for (int32_t t = 0; t < length[i]; t++)
                ids[i][t] = (int32_t)(s + i) + t;
        }
        snprintf(name, sizeof name, "%s/tokens", sets[s]);
        struct dataset d = {.name = name, .dtype = DTYPE_I32, .rank = 2, .shape = {n, 31}, .unit = "1",
                            .axes = "window, position", .description = "ids"};
        assert_ok(writer_add(out, &d, ids, &e), e);
        snprintf(name, sizeof name, "%s/length", sets[s]);
        d.rank = 1;
        assert_ok(writer_add(out, &d, length, &e), e);
        snprintf(name, sizeof name, "%s/document", sets[s]);
        d.dtype = DTYPE_U32;
        assert_ok(writer_add(out, &d, window_document, &e), e);
    }
    const struct dataset d = {.name = "documents/split", .dtype = DTYPE_U8, .rank = 1, .shape = {COUNT(split)},
                              .unit = "1", .axes = "document", .description = "set"};
    assert_ok(writer_add_strings(out, "documents/digest", documents, COUNT(documents), "document", "texts", &e) &&
              writer_add(out, &d, split, &e) && writer_commit(out, &e) && object_open(&o, w->store, &key, &e) && o, e);
    struct input in = {.object = o, .node = "corpus", .type = "corpus", .output = "selection"};
    struct token_set t;
    assert_ok(tokens_read(&t, &in, &e), e);
    strcpy(digest, t.digest);
    tokens_fini(&t);
    object_close(o);
    return key;
}

/* A selecting node's result whose chosen candidate was measured on the first `measured` windows of the set `tokens`. */
static struct object *choose_measured(struct world *w, uint32_t measured, const char *tokens, const char *seed)
{
    struct err e = {0};
    struct candidates c;
    struct writer *out = NULL;
    struct object *o = NULL;
    struct key key;
    uint8_t assignment[MOST_UNITS] = {0};
    assert_ok(candidates_init(&c, w->menu.n_units, WINDOWS, window_tokens, window_document, &e), e);
    snprintf(c.numeric, sizeof c.numeric, "fp32 here");
    snprintf(c.tokens, sizeof c.tokens, "%s", tokens);
    memset(c.context, 'a', KEY_TEXT - 1);
    menu_uniform(&w->menu, BF16, assignment);
    struct candidate *x = candidates_add(&c, &w->menu, assignment, "uniform", -1, &e);
    assert_non_null(x);
    x->n_windows = measured;
    double sum = 0;
    for (uint32_t i = 0; i < measured; i++) {
        x->kl_window[i] = window_kl[i];
        sum += window_kl[i] * window_tokens[i];
        x->tokens += window_tokens[i];
    }
    x->kl_p95 = 0.75;
    x->kl_p99 = 1.25;
    x->kl_p999 = 1.5;
    x->kl_max = 2.0 / 3.0;
    x->nll_delta = -0.25;
    x->top1 = 0.875;
    if (measured == WINDOWS)
        x->kl_mean = sum / SCORED;
    const struct dataset d = {.name = "chosen", .dtype = DTYPE_U32, .rank = 1, .shape = {1}, .unit = "1",
                              .axes = "choice", .description = "id"};
    assert_ok(key_of_bytes(seed, strlen(seed), &key, &e) && writer_new(&out, w->store, &key, "select", &e), e);
    assert_ok(candidates_write(&c, &w->menu, out, &e) && writer_add(out, &d, &(uint32_t){0}, &e) &&
              writer_commit(out, &e) && object_open(&o, w->store, &key, &e) && o, e);
    candidates_fini(&c);
    return o;
}

/* scout.json of an export with those ancestors. */
static json_t *export_recipe(struct world *w, struct object *choice, const struct ancestor *ancestors, size_t n)
{
    struct err e = {0};
    struct node node;
    make_seeded_node(&node, w, choice, "export with ancestors");
    node.ancestors = ancestors;
    node.n_ancestors = n;
    struct object *o = fake_node_run(&node, &e);
    if (!o)
        fail_msg("%s", e.text);
    object_close(o);
    fake_node_fini(&node);
    size_t size;
    char *text = read_text(w->target, "scout.json", &size);
    json_t *recipe = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(recipe);
    free(text);
    return recipe;
}

static double real(const json_t *object, const char *name)
{
    const json_t *x = json_object_get(object, name);
    if (!json_is_real(x))
        fail_msg("'%s' is no real number", name);
    return json_real_value(x);
}

static void assert_text(const json_t *object, const char *name, const char *expected)
{
    const char *text = json_string_value(json_object_get(object, name));
    if (!text || strcmp(text, expected) != 0)
        fail_msg("'%s' is '%s', expected '%s'", name, text ? text : "(no text)", expected);
}

/* The 95 % interval of the mean over documents, each end a formula's; Student's t at 2 degrees of freedom is known. */
static void expect_interval(double *mean, double *low, double *high)
{
    double sum = 0, squares = 0;
    for (size_t w = 0; w < WINDOWS; w++)
        sum += window_kl[w] * window_tokens[w];
    *mean = sum / SCORED;
    for (uint32_t document = 7; document <= 9; document++) {
        double off = 0;
        for (size_t w = 0; w < WINDOWS; w++)
            off += window_document[w] == document ? (window_kl[w] - *mean) * window_tokens[w] : 0;
        squares += off * off;
    }
    double half = 4.302652729911275 * sqrt(3.0 / 2.0 * squares) / SCORED;
    *low = *mean * exp(-half / *mean); /* on the scale of the logarithm */
    *high = *mean * exp(half / *mean);
}

static void scout_json_has_every_measured_figure(void **state)
{
    (void)state;
    struct world w;
    char tokens[KEY_TEXT];
    double mean, low, high;
    world_open(&w, "stories260k");
    const struct key corpus = make_corpus(&w, tokens);
    const struct ancestor ancestors[] = {{.type = "corpus", .version = 1, .key = &corpus, .numerics = "",
                                          .parameters = "", .inputs = "", .sources = ""}};
    struct object *choice = choose_measured(&w, WINDOWS, tokens, "measured");
    json_t *recipe = export_recipe(&w, choice, ancestors, 1);
    assert_true(json_is_null(json_object_get(recipe, "compared")));
    const json_t *m = json_object_get(recipe, "measured");
    expect_interval(&mean, &low, &high);
    assert_text(recipe, "numeric", "fp32 here");
    assert_text(m, "numeric", "fp32 here");
    assert_text(m, "set", "selection");
    assert_text(m, "tokens_digest", tokens);
    assert_true(real(m, "kl_mean") == mean && real(m, "kl_p99") == 1.25 && real(m, "kl_max") == 2.0 / 3.0 &&
                real(m, "top1") == 0.875 && real(m, "kl_p95") == 0.75 && real(m, "kl_p999") == 1.5 &&
                real(m, "nll_delta") == -0.25);
    if (!(fabs(real(m, "kl_low") - low) <= 1e-9 * high && fabs(real(m, "kl_high") - high) <= 1e-9 * high))
        fail_msg("the interval is %.12g to %.12g, expected %.12g to %.12g", real(m, "kl_low"), real(m, "kl_high"), low,
                 high);
    assert_int_equal(json_integer_value(json_object_get(m, "windows")), WINDOWS);
    assert_int_equal(json_integer_value(json_object_get(m, "of_windows")), WINDOWS);
    assert_int_equal(json_integer_value(json_object_get(m, "scored_tokens")), SCORED);
    json_decref(recipe);
    object_close(choice);
    world_close(&w);
}

static void figures_that_are_unknown_are_null(void **state)
{
    (void)state;
    struct world w;
    char tokens[KEY_TEXT];
    world_open(&w, "stories260k");
    memset(tokens, 'b', KEY_TEXT - 1);
    tokens[KEY_TEXT - 1] = '\0';
    struct object *choice = choose_measured(&w, 3, tokens, "dropped");
    json_t *recipe = export_recipe(&w, choice, NULL, 0);
    const json_t *m = json_object_get(recipe, "measured");
    static const char *const unknown[] = {"kl_mean", "kl_low", "kl_high", "set"};
    for (size_t i = 0; i < COUNT(unknown); i++)
        if (!json_is_null(json_object_get(m, unknown[i])))
            fail_msg("'%s' of a candidate without all windows, on a set of no corpus, is not null", unknown[i]);
    assert_int_equal(json_integer_value(json_object_get(m, "windows")), 3);
    assert_int_equal(json_integer_value(json_object_get(m, "of_windows")), WINDOWS);
    assert_int_equal(json_array_size(json_object_get(recipe, "splits")), 0);
    assert_int_equal(json_array_size(json_object_get(recipe, "recipe")), 0);
    json_decref(recipe);
    object_close(choice);
    world_close(&w);
}

static void assert_split(const json_t *corpus, const char *set, int windows, int positions, const char *documents)
{
    const json_t *s = json_object_get(corpus, set);
    char text[64] = "";
    for (size_t i = 0; i < json_array_size(json_object_get(s, "documents")); i++)
        strcat(text, json_string_value(json_array_get(json_object_get(s, "documents"), i)));
    assert_string_equal(text, documents);
    assert_int_equal(json_integer_value(json_object_get(s, "windows")), windows);
    assert_int_equal(json_integer_value(json_object_get(s, "positions")), positions);
}

static void scout_json_has_the_splits_and_the_recipe(void **state)
{
    (void)state;
    struct world w;
    char tokens[KEY_TEXT], key[KEY_TEXT];
    world_open(&w, "stories260k");
    const struct key corpus = make_corpus(&w, tokens), *quantize = object_key(w.renderings);
    const struct ancestor ancestors[] = {
        {.type = "corpus", .version = 3, .key = &corpus, .numerics = "", .inputs = "",
         .parameters = "separator = a = b\nwindow = 31\n", .sources = "text = 00ff\n"},
        {.type = "quantize", .version = 2, .key = quantize, .numerics = "fp32 cpu", .sources = "",
         .parameters = "formats = nvfp4, bf16\n", .inputs = "model = 1234\nhessian = 5678.calibration\n"}};
    struct object *choice = choose_measured(&w, WINDOWS, tokens, "measured");
    json_t *recipe = export_recipe(&w, choice, ancestors, 2);

    const json_t *splits = json_array_get(json_object_get(recipe, "splits"), 0);
    assert_int_equal(json_array_size(json_object_get(recipe, "splits")), 1);
    assert_text(splits, "corpus", key_text(&corpus, key));
    assert_split(splits, "calibration", 1, 10, "bb");
    assert_split(splits, "selection", WINDOWS, SCORED, "aaddff");
    assert_split(splits, "report", 3, 60, "ee");
    assert_text(json_object_get(splits, "selection"), "tokens_digest", tokens);

    const json_t *results = json_object_get(recipe, "recipe");
    const json_t *first = json_array_get(results, 0), *second = json_array_get(results, 1);
    assert_int_equal(json_array_size(results), 2);
    assert_text(first, "type", "corpus");
    assert_text(first, "key", key_text(&corpus, key));
    assert_int_equal(json_integer_value(json_object_get(first, "code_version")), 3);
    assert_text(json_object_get(first, "parameters"), "separator", "a = b");
    assert_text(json_object_get(first, "parameters"), "window", "31");
    assert_text(json_object_get(first, "sources"), "text", "00ff");
    assert_text(second, "numerics", "fp32 cpu");
    assert_text(json_object_get(second, "parameters"), "formats", "nvfp4, bf16");
    const json_t *model = json_array_get(json_object_get(second, "inputs"), 0);
    const json_t *hessian = json_array_get(json_object_get(second, "inputs"), 1);
    assert_text(model, "port", "model");
    assert_text(model, "key", "1234");
    assert_null(json_object_get(model, "output"));
    assert_text(hessian, "key", "5678");
    assert_text(hessian, "output", "calibration");
    json_decref(recipe);
    object_close(choice);
    world_close(&w);
}

/* ------------------------------------------------------------------------------------------------ shards and places */

static void small_shards_make_several_files_and_an_index(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    size_t n;
    world_open(&w, "babyllama-1m");
    struct object *choice = choose(&w, BF16), *o = export(&w, choice, "1MiB");
    char *text = read_text(w.target, "model.safetensors.index.json", &n);
    json_t *index = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    const json_t *map = json_object_get(index, "weight_map");
    assert_int_equal(json_object_size(map), w.model->files->n_tensors);
    assert_string_equal(json_string_value(json_object_get(map, "model.embed_tokens.weight")),
                        "model-00001-of-00002.safetensors");
    assert_exported(&w, BF16);
    struct model *exported;
    assert_ok(model_open(&exported, w.target, &e), e);
    assert_int_equal(exported->files->n_files, 2);
    model_close(exported);
    json_decref(index);
    free(text);
    object_close(o);
    object_close(choice);
    world_close(&w);
}

static void a_model_left_in_bf16_keeps_its_config(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, "stories260k");
    struct object *choice = choose(&w, BF16), *o = export(&w, choice, NULL);
    assert_same_file(&w, "config.json");
    assert_exported(&w, BF16);
    object_close(o);
    object_close(choice);
    world_close(&w);
}

static void an_untouched_export_is_replaced_and_a_changed_one_is_not(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    struct node n;
    world_open(&w, "stories260k");
    struct object *a = choose(&w, -1), *b = choose(&w, FP8), *o = export(&w, a, NULL);
    object_close(o);
    o = export(&w, b, NULL);
    assert_exported(&w, FP8);

    check_write(w.target, "notes.txt", "mine", 4);
    make_node(&n, &w, a);
    assert_err(fake_node_run(&n, &e), e, ERR_INPUT, "'notes.txt' is not of that export");
    fake_node_fini(&n);
    assert_exported(&w, FP8);

    char path[800];
    snprintf(path, sizeof path, "%s/notes.txt", w.target);
    assert_int_equal(unlink(path), 0);
    check_write(w.target, "generation_config.json", "{}", 2);
    make_node(&n, &w, a);
    assert_err(fake_node_run(&n, &e), e, ERR_INPUT, "'generation_config.json' is changed");
    fake_node_fini(&n);

    make_node(&n, &w, a);
    fake_node_set(&n, "overwrite", "true");
    struct object *replaced = fake_node_run(&n, &e);
    assert_non_null(replaced);
    fake_node_fini(&n);
    assert_exported(&w, -1);
    object_close(replaced);
    object_close(o);
    object_close(a);
    object_close(b);
    world_close(&w);
}

static void a_foreign_directory_and_the_source_are_refused(void **state)
{
    (void)state;
    struct world w;
    struct err e = {0};
    struct node n;
    world_open(&w, "stories260k");
    struct object *choice = choose(&w, -1);
    assert_int_equal(mkdir(w.target, 0777), 0);
    check_write(w.target, "thesis.txt", "years", 5);
    make_node(&n, &w, choice);
    assert_err(fake_node_run(&n, &e), e, ERR_INPUT, "it has no scout.json that lists its files");
    fake_node_fini(&n);

    strcpy(w.target, w.source);
    make_node(&n, &w, choice);
    fake_node_set(&n, "overwrite", "true");
    assert_err(fake_node_run(&n, &e), e, ERR_INPUT, "is the source model itself");
    fake_node_fini(&n);
    object_close(choice);
    world_close(&w);
}

static void a_result_stands_until_a_file_changes(void **state)
{
    (void)state;
    struct world w;
    struct node n;
    world_open(&w, "stories260k");
    struct object *choice = choose(&w, -1), *o = export(&w, choice, NULL);
    make_node(&n, &w, choice);
    assert_true(node_export.stands(&n, o, false));
    size_t size;
    char *text = read_text(w.target, "config.json", &size);
    text[0] = ' ';
    check_write(w.target, "config.json", text, size);
    assert_false(node_export.stands(&n, o, false));
    text[0] = '{';
    check_write(w.target, "config.json", text, size);
    assert_true(node_export.stands(&n, o, false));
    char path[800];
    snprintf(path, sizeof path, "%s/model.safetensors", w.target);
    assert_int_equal(unlink(path), 0);
    assert_false(node_export.stands(&n, o, false));
    free(text);
    fake_node_fini(&n);
    object_close(o);
    object_close(choice);
    world_close(&w);
}

static void an_assignment_of_another_menu_is_refused(void **state)
{
    (void)state;
    struct world w, other;
    struct err e = {0};
    struct node n;
    world_open(&w, "stories260k");
    world_open(&other, "babyllama-1m");
    struct object *choice = choose(&w, -1);
    other.menu.format_names[0][0] = 'm'; /* as if quantized to another first format */
    struct object *odd = choose(&other, -1);
    make_node(&n, &other, odd);
    assert_err(fake_node_run(&n, &e), e, ERR_INPUT, "it was made from other renderings");
    fake_node_fini(&n);
    make_node(&n, &other, choice);
    n.inputs[1].input.object = w.renderings; /* another model's renderings and assignment */
    assert_err(fake_node_run(&n, &e), e, ERR_INPUT, "are of another model");
    fake_node_fini(&n);
    object_close(odd);
    object_close(choice);
    world_close(&other);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_directory_holds_the_renderings_of_the_chosen_assignment),
        cmocka_unit_test(every_format_and_a_mix_of_all_is_exported),
        cmocka_unit_test(what_differs_from_what_was_written_is_found),
        cmocka_unit_test(another_assignment_or_scale_than_was_written_is_found),
        cmocka_unit_test(scout_json_and_the_result_say_the_same),
        cmocka_unit_test(scout_json_has_every_measured_figure),
        cmocka_unit_test(figures_that_are_unknown_are_null),
        cmocka_unit_test(scout_json_has_the_splits_and_the_recipe),
        cmocka_unit_test(small_shards_make_several_files_and_an_index),
        cmocka_unit_test(a_model_left_in_bf16_keeps_its_config),
        cmocka_unit_test(an_untouched_export_is_replaced_and_a_changed_one_is_not),
        cmocka_unit_test(a_foreign_directory_and_the_source_are_refused),
        cmocka_unit_test(a_result_stands_until_a_file_changes),
        cmocka_unit_test(an_assignment_of_another_menu_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
