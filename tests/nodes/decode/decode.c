/* A packed checkpoint written out as a plain one. */
#include "nodes/decode.h"

#include <dirent.h>
#include <jansson.h>

#include "engine/base/str.h"
#include "tests/nodes/model/recipe.h"

struct world {
    struct recipe packed;
    char folder[256], out[300], source[1024];
};

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    recipe_init(&w->packed);
    recipe_do(&w->packed, "base packed\n");
    check_dir_make(w->folder);
    snprintf(w->out, sizeof w->out, "%s/deep/plain", w->folder);
    snprintf(w->source, sizeof w->source, "%s/data/models/stories260k", check_root());
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    recipe_fini(&w->packed);
    check_dir_remove(w->folder);
    free(w);
    return 0;
}

static char *read_of(const char *folder, const char *name, size_t *n)
{
    char path[1400];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return check_read(path, n);
}

/* Every matrix is what the packed one decodes to, rounded to bf16; everything else is the source's, byte for byte. */
static void assert_decoded(const struct world *w)
{
    struct model *packed, *plain;
    struct err e;
    assert_ok(model_open(&packed, w->packed.path, &e), e);
    assert_ok(model_open(&plain, w->out, &e), e);
    assert_int_equal(plain->n_matrices, packed->n_matrices);
    int n_decoded = 0;
    for (int i = 0; i < packed->n_matrices; i++) {
        const struct matrix *m = &packed->matrices[i];
        const size_t count = (size_t)(m->n * m->k);
        float *a = NULL, *b = NULL;
        assert_ok(mem_new(&a, count, &e) && mem_new(&b, count, &e), e);
        assert_ok(model_read_matrix(packed, i, a, &e), e);
        assert_ok(model_read_matrix(plain, i, b, &e), e);
        assert_ptr_equal(plain->matrices[i].stored, &format_bf16);
        if (m->stored->group_format) {
            assert_int_equal(plain->matrices[i].dtype, DTYPE_BF16);
            n_decoded++;
        }
        for (size_t k = 0; k < count; k++)
            assert_int_equal(bf16_from_f32(a[k]), bf16_from_f32(b[k]));
        mem_free(a);
        mem_free(b);
    }
    assert_in_range(n_decoded, 1, packed->n_matrices - 1);
    for (size_t i = 0; i < packed->files->n_tensors; i++) {
        const struct st_tensor *t = &packed->files->tensors[i], *other = safetensors_find(plain->files, t->name);
        unsigned char *a = NULL, *b = NULL;
        if (strstr(t->name, "_proj."))
            continue;
        assert_non_null(other);
        assert_int_equal(t->bytes, other->bytes);
        assert_int_equal(t->dtype, other->dtype);
        assert_ok(mem_new(&a, t->bytes + 1, &e) && mem_new(&b, t->bytes + 1, &e), e);
        assert_ok(safetensors_read(packed->files, t, 0, t->bytes, a, &e), e);
        assert_ok(safetensors_read(plain->files, other, 0, t->bytes, b, &e), e);
        assert_memory_equal(a, b, t->bytes);
        mem_free(a);
        mem_free(b);
    }
    model_close(packed);
    model_close(plain);
}

static void weights_are_decoded_and_the_rest_is_copied(void **state)
{
    struct world *w = *state;
    struct decode_options o = {.dir = w->packed.path, .out = w->out};
    struct decode_result r;
    struct err e;
    size_t n;
    recipe_do(&w->packed, "write LICENSE Free\nwrite scout.json {}\nwrite old.bin x\nwrite .hidden x\n");
    assert_ok(decode_run(&o, &r, &e), e);
    assert_int_equal(r.n_files, 1);
    assert_decoded(w);
    char *licence = read_of(w->out, "LICENSE", &n);
    assert_non_null(licence);
    assert_null(read_of(w->out, "scout.json", &n));
    assert_null(read_of(w->out, "old.bin", &n));
    assert_null(read_of(w->out, ".hidden", &n));
    free(licence);
}

/* config.json before and after: @M are the members that a model needs, @Q is what describes its quantization. */
static const struct {
    const char *before, *after;
} configs[] = {
    {"{\n  @M,\n  \"quantization_config\": @Q\n}\n", "{\n  @M\n}\n"},
    {"{\"quantization_config\":@Q , @M}", "{@M}"},
    {"{@M,\n\t\"quantization_config\" : @Q, \"z\": [1, \"]\\\"\"], \"n\": -1.5e3 }",
     "{@M, \"z\": [1, \"]\\\"\"], \"n\": -1.5e3 }"},
    {" {\"a\": {\"quantization_config\": \"}{\"}, \"t\": true, \"quantization_config\":@Q\n,@M}",
     " {\"a\": {\"quantization_config\": \"}{\"}, \"t\": true\n,@M}"},
};

static void expand(struct str *out, const char *text, const char *members, const char *quant)
{
    for (; *text; text++) {
        if (*text == '@')
            str_add(out, *++text == 'M' ? members : quant);
        else
            str_add_bytes(out, text, 1);
    }
}

static void config_is_kept_but_for_its_quantization(void **state)
{
    struct world *w = *state;
    struct decode_result r;
    struct err e;
    size_t n;
    char *text = read_of(w->packed.path, "config.json", &n), path[300];
    json_t *config = json_loadb(text, n, 0, NULL);
    free(text);
    assert_non_null(config);
    char *quant = json_dumps(json_object_get(config, "quantization_config"), JSON_INDENT(1));
    json_object_del(config, "quantization_config");
    char *members = json_dumps(config, JSON_COMPACT);
    members[strlen(members) - 1] = '\0'; /* without the braces */
    for (size_t i = 0; i < COUNT(configs); i++) {
        struct str before = {0}, after = {0};
        expand(&before, configs[i].before, members + 1, quant);
        expand(&after, configs[i].after, members + 1, quant);
        check_write(w->packed.path, "config.json", before.text, before.length);
        snprintf(path, sizeof path, "%.200s/%zu", w->folder, i);
        assert_ok(decode_run(&(struct decode_options){.dir = w->packed.path, .out = path}, &r, &e), e);
        text = read_of(path, "config.json", &n);
        assert_string_equal(text, after.text);
        free(text);
        str_free(&before);
        str_free(&after);
    }
    free(members);
    free(quant);
    json_decref(config);
}

static void large_checkpoints_have_shards(void **state)
{
    struct world *w = *state;
    struct decode_options o = {.dir = w->packed.path, .out = w->out, .shard_size = 100000};
    struct decode_result r;
    struct err e;
    assert_ok(decode_run(&o, &r, &e), e);
    assert_in_range(r.n_files, 4, 8);
    assert_decoded(w);
}

static size_t count_entries(const char *folder)
{
    DIR *d = opendir(folder);
    size_t n = 0;
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

static void what_cannot_be_decoded_leaves_nothing(void **state)
{
    struct world *w = *state;
    struct decode_result r;
    struct err e;
    char there[300];
    snprintf(there, sizeof there, "%s/there", w->folder);
    assert_int_equal(mkdir(there, 0777), 0);
    assert_err(decode_run(&(struct decode_options){.dir = w->packed.path, .out = there}, &r, &e), e, ERR_INPUT,
               "is there already");
    assert_err(decode_run(&(struct decode_options){.dir = w->source, .out = w->out}, &r, &e), e, ERR_INPUT,
               "nothing to decode");
    assert_err(decode_run(&(struct decode_options){.dir = w->folder, .out = w->out}, &r, &e), e, ERR_INPUT,
               "config.json");
    recipe_do(&w->packed, "poke model.layers.0.mlp.gate_proj.weight 0 7f\n");
    assert_err(decode_run(&(struct decode_options){.dir = w->packed.path, .out = w->out}, &r, &e), e, ERR_NUMERIC,
               "gate_proj");
    char parent[300];
    snprintf(parent, sizeof parent, "%s/deep", w->folder);
    assert_int_equal(count_entries(parent), 2); /* . and .. */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(weights_are_decoded_and_the_rest_is_copied, setup, teardown),
        cmocka_unit_test_setup_teardown(config_is_kept_but_for_its_quantization, setup, teardown),
        cmocka_unit_test_setup_teardown(large_checkpoints_have_shards, setup, teardown),
        cmocka_unit_test_setup_teardown(what_cannot_be_decoded_leaves_nothing, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
