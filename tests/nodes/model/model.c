/* Model directories as they ship, cut into shards, changed, packed and broken. Broken ones are data: a recipe in
 * tests/rejects/models/NAME.recipe beside NAME.txt, the exact message ($MODEL stands for the directory). With
 * SCOUT_REWRITE set in the environment the texts are written instead of compared: read them before committing. */
#include "tests/nodes/model/recipe.h"

#include <dirent.h>

#define FEWEST_REJECTS 155

static void open_recipe(struct recipe *r, struct model **m, const char *commands)
{
    struct err e = {0};
    recipe_init(r);
    recipe_do(r, commands);
    assert_ok(model_open(m, r->path, &e), e);
}

static struct model *open_shipped(const char *name)
{
    char path[600];
    struct err e = {0};
    struct model *m;
    snprintf(path, sizeof path, "%s/data/models/%s", check_root(), name);
    assert_ok(model_open(&m, path, &e), e);
    return m;
}

static float *read_tensor(const struct model *m, const char *name, int64_t count)
{
    struct err e = {0};
    float *out;
    assert_ok(mem_raw(&out, (size_t)count, &e) && model_read_tensor(m, name, count, out, &e), e);
    return out;
}

static float *read_matrix(const struct model *m, int matrix)
{
    struct err e = {0};
    float *out;
    assert_ok(mem_raw(&out, (size_t)(m->matrices[matrix].n * m->matrices[matrix].k), &e), e);
    assert_ok(model_read_matrix(m, matrix, out, &e), e);
    return out;
}

static void assert_same_matrices(const struct model *a, const struct model *b)
{
    assert_int_equal(a->n_matrices, b->n_matrices);
    for (int i = 0; i < a->n_matrices; i++) {
        float *x = read_matrix(a, i), *y = read_matrix(b, i);
        assert_memory_equal(x, y, (size_t)(a->matrices[i].n * a->matrices[i].k) * sizeof *x);
        mem_free(x);
        mem_free(y);
    }
}

/* ---------------------------------------------------------------------------------------------------- what is there */

static void shipped_models_have_their_tables(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int hidden, intermediate, vocab;
        uint64_t parameters, in_units;
    } cases[] = {{"babyllama-1m", 128, 352, 361, 969216, 921600}, {"stories260k", 64, 172, 512, 260032, 226560}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct model *m = open_shipped(cases[i].name);
        int64_t h = cases[i].hidden, wide = cases[i].intermediate;
        assert_string_equal(m->config.model_type, "llama");
        assert_int_equal(m->config.vocab, cases[i].vocab);
        assert_true(m->config.tied);
        assert_int_equal(model_parameters(m), cases[i].parameters);
        assert_int_equal(model_unit_parameters(m), cases[i].in_units);
        assert_int_equal(m->n_units, 20);
        assert_int_equal(m->n_matrices, 35);
        const struct unit *qkv = &m->units[12], *down = &m->units[15];
        assert_string_equal(qkv->name, "model.layers.3.self_attn.qkv_proj");
        assert_int_equal(qkv->role, ROLE_QKV);
        assert_int_equal(qkv->layer, 3);
        assert_int_equal(qkv->first, 21);
        assert_int_equal(qkv->count, 3);
        assert_int_equal(qkv->n, 2 * h);
        assert_int_equal(qkv->k, h);
        assert_string_equal(m->units[13].name, "model.layers.3.self_attn.o_proj");
        assert_string_equal(m->units[14].name, "model.layers.3.mlp.gate_up_proj");
        assert_int_equal(m->units[14].n, 2 * wide);
        assert_string_equal(down->name, "model.layers.3.mlp.down_proj");
        assert_int_equal(down->role, ROLE_DOWN);
        assert_int_equal(down->n, h);
        assert_int_equal(down->k, wide);
        const struct matrix *v = &m->matrices[23];
        assert_string_equal(v->name, "model.layers.3.self_attn.v_proj");
        assert_int_equal(v->unit, 12);
        assert_int_equal(v->row, h + h / 2);
        assert_int_equal(v->n, h / 2);
        assert_int_equal(v->dtype, DTYPE_BF16);
        assert_ptr_equal(v->stored, &format_bf16);
        assert_false(v->has_bias);
        model_close(m);
    }
}

/* Read from the files with another program. */
static void weights_have_known_values(void **state)
{
    (void)state;
    static const struct { const char *model, *tensor; int64_t count, index; float value; } cases[] = {
        {"babyllama-1m", "model.embed_tokens.weight", 46208, 5, 0.326171875f},
        {"babyllama-1m", "model.layers.0.self_attn.q_proj.weight", 16384, 0, 0.0252685546875f},
        {"babyllama-1m", "model.layers.2.mlp.down_proj.weight", 45056, 1000, -0.017333984375f},
        {"babyllama-1m", "model.layers.4.self_attn.v_proj.weight", 8192, 8191, 0.0213623046875f},
        {"babyllama-1m", "model.norm.weight", 128, 3, 1.5625f},
        {"stories260k", "model.embed_tokens.weight", 32768, 5, 0.2314453125f},
        {"stories260k", "model.layers.2.mlp.down_proj.weight", 11008, 1000, 0.349609375f},
        {"stories260k", "model.layers.4.self_attn.v_proj.weight", 2048, 2047, 0.08837890625f},
        {"stories260k", "model.norm.weight", 64, 3, 1.109375f},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct model *m = open_shipped(cases[i].model);
        float *x = read_tensor(m, cases[i].tensor, cases[i].count);
        if (x[cases[i].index] != cases[i].value)
            fail_msg("%s[%lld] is %.9g, expected %.9g", cases[i].tensor, (long long)cases[i].index,
                     (double)x[cases[i].index], (double)cases[i].value);
        mem_free(x);
        model_close(m);
    }
}

static void shards_are_the_model(void **state)
{
    (void)state;
    struct model *whole = open_shipped("babyllama-1m");
    for (int n = 1; n <= 3; n++) {
        struct recipe r;
        struct model *m;
        char commands[64];
        snprintf(commands, sizeof commands, "base babyllama-1m\nshard %d", n);
        open_recipe(&r, &m, commands);
        assert_int_equal(m->files->n_files, n);
        assert_int_equal(m->files->n_tensors, whole->files->n_tensors);
        assert_same_matrices(m, whole);
        model_close(m);
        recipe_fini(&r);
    }
    model_close(whole);
}

static void untied_heads_and_dtypes_are_taken_as_they_are_and_denied_biases_are_not(void **state)
{
    (void)state;
    struct recipe r;
    struct model *m;
    open_recipe(&r, &m,
                "base stories260k\nconfig tie_word_embeddings false\nadd lm_head.weight F16 [512, 64]\n"
                "add model.layers.1.mlp.up_proj.bias F32 [172]\n"
                "add model.layers.1.self_attn.rotary_emb.inv_freq F32 [4]\n"
                "add extra.counter I64 []\n"
                "remove model.layers.2.self_attn.o_proj.weight\n"
                "add model.layers.2.self_attn.o_proj.weight F32 [64, 64]\n"
                "poke model.layers.2.self_attn.o_proj.weight 4 0000c03f\n"
                "remove model.layers.2.self_attn.q_proj.weight\n"
                "add model.layers.2.self_attn.q_proj.weight F16 [64, 64]\n"
                "poke model.layers.2.self_attn.q_proj.weight 2 003e");
    assert_false(m->config.tied);
    assert_int_equal(model_parameters(m), 260032 + 512 * 64);
    assert_false(m->matrices[12].has_bias);
    assert_int_equal(m->n_unused_biases, 1);
    assert_int_equal(m->matrices[14].dtype, DTYPE_F16);
    assert_int_equal(m->matrices[17].dtype, DTYPE_F32);
    assert_non_null(safetensors_find(m->files, "extra.counter"));
    float *o = read_matrix(m, 17), *q = read_matrix(m, 14);
    assert_true(o[1] == 1.5f && o[0] == 0.0f && q[1] == 1.5f && q[2] == 0.0f);
    mem_free(o);
    mem_free(q);
    model_close(m);
    recipe_fini(&r);
}

#define UNTIED "base stories260k\nconfig tie_word_embeddings false\nadd lm_head.weight BF16 [512, 64]\n"
/* A head in fp8, in the third group of the packed model. */
#define PACKED_HEAD \
    "base packed\nconfig tie_word_embeddings false\nconfig quantization_config.ignore []\n" \
    "config quantization_config.config_groups.group_03 {\"format\": \"float-quantized\", \"targets\": [\"%s\"], " \
    "\"weights\": {\"type\": \"float\", \"strategy\": \"channel\"}}\n" \
    "add lm_head.weight F8_E4M3 [512, 64]\nadd lm_head.weight_scale F32 [512, 1]\n" \
    "poke lm_head.weight 65 38\npoke lm_head.weight_scale 4 00000040"

static void assert_head(const struct model *m, const struct format *stored, enum dtype dtype)
{
    const struct unit *u = &m->units[20];
    const struct matrix *x = &m->matrices[35];
    assert_int_equal(m->n_units, 21);
    assert_int_equal(m->n_matrices, 36);
    assert_int_equal(m->head_unit, 20);
    assert_string_equal(u->name, "lm_head");
    assert_string_equal(x->name, "lm_head");
    assert_true(u->role == ROLE_HEAD && u->layer == 5 && u->first == 35 && u->count == 1 && u->n == 512 && u->k == 64);
    assert_true(x->unit == 20 && x->n == 512 && x->k == 64 && x->row == 0 && x->stored == stored && x->dtype == dtype);
    assert_int_equal(model_unit_parameters(m), 226560 + 512 * 64);
    assert_int_equal(model_parameters(m), 260032 + 512 * 64);
}

static void a_head_of_its_own_is_a_unit_where_it_is_asked_for(void **state)
{
    (void)state;
    struct recipe r;
    struct model *m;
    struct err e;
    open_recipe(&r, &m, UNTIED);
    assert_int_equal(m->head_unit, -1);
    assert_int_equal(m->n_units, 20);
    model_close(m);
    assert_ok(model_open_as(&m, r.path, HEAD_UNIT, &e), e);
    assert_head(m, &format_bf16, DTYPE_BF16);
    model_close(m);
    recipe_fini(&r);
    recipe_init(&r);
    recipe_do(&r, "base stories260k\nadd lm_head.weight BF16 [512, 64]");
    assert_err(model_open_as(&m, r.path, HEAD_UNIT, &e), e, ERR_INPUT, "the head is the embedding "
               "(`tie_word_embeddings`), which servers keep once and unquantized: it cannot be a unit");
    recipe_fini(&r);
}

static void a_packed_head_is_a_unit_in_any_case(void **state)
{
    (void)state;
    static const char *const targets[] = {"lm_head", "re:.*lm_head$"};
    for (size_t i = 0; i < COUNT(targets); i++) {
        struct recipe r;
        struct model *m;
        char commands[1024];
        snprintf(commands, sizeof commands, PACKED_HEAD, targets[i]);
        open_recipe(&r, &m, commands);
        assert_head(m, &format_fp8_a16, DTYPE_BF16);
        float *w = read_matrix(m, 35);
        assert_true(w[64] == 0.0f && w[65] == 2.0f && w[66] == 0.0f);
        mem_free(w);
        model_close(m);
        recipe_fini(&r);
    }
}

static void a_stored_head_is_passed_over_when_tied(void **state)
{
    (void)state;
    struct recipe r;
    struct model *m;
    open_recipe(&r, &m, "base stories260k\nadd lm_head.weight BF16 [512, 64]");
    assert_true(m->config.tied);
    assert_int_equal(model_parameters(m), 260032);
    model_close(m);
    recipe_fini(&r);
}

static void reading_says_what_is_wrong(void **state)
{
    (void)state;
    struct model *m = open_shipped("stories260k");
    struct err e;
    float x[64];
    assert_err(model_read_tensor(m, "model.norm.weight", 63, x, &e), e, ERR_INPUT,
               "tensor 'model.norm.weight' has 64 values, expected 63");
    assert_err(model_read_tensor(m, "model.nothing", 64, x, &e), e, ERR_INPUT, "no tensor 'model.nothing'");
    assert_err(model_input_scale(m, 0, x, &e), e, ERR_INPUT, "q_proj.input_global_scale");
    model_close(m);
    model_close(NULL);
}

/* ----------------------------------------------------------------------------------------------------------- packed */

/* Every matrix is in the format that it was packed in, with the parts that were packed, which it decodes to. */
static void assert_packed(const struct model *m, const struct model *source, const char *base)
{
    struct err e = {0};
    assert_int_equal(m->n_matrices, source->n_matrices);
    for (int i = 0; i < m->n_matrices; i++) {
        const struct matrix *x = &m->matrices[i];
        struct rendering expected, got;
        struct format_part parts[FORMAT_PARTS];
        recipe_render(base, source, i, &expected);
        assert_ptr_equal(x->stored, expected.format);
        assert_ok(model_read_rendering(m, i, &got, &e), e);
        int n = got.format->parts(x->n, x->k, x->dtype, parts);
        for (int p = 0; p < n; p++)
            assert_memory_equal(got.part[p], expected.part[p], format_part_bytes(&parts[p]));
        float *w = read_matrix(m, i), *decoded;
        assert_ok(mem_raw(&decoded, (size_t)(x->n * x->k), &e), e);
        expected.format->decode(&expected, 0, x->n, decoded);
        assert_memory_equal(w, decoded, (size_t)(x->n * x->k) * sizeof *w);
        mem_free(w);
        mem_free(decoded);
        rendering_free(&expected);
        rendering_free(&got);
    }
}

static void packed_directories_give_their_renderings(void **state)
{
    (void)state;
    static const struct { const char *base, *source; int scaled; uint64_t parameters; } cases[] = {
        {"packed", "stories260k", 0, 260032}, {"every_format", "babyllama-1m", 5, 969216}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct model *source = open_shipped(cases[i].source), *m;
        struct recipe r;
        struct err e = {0};
        char commands[64];
        float scale;
        snprintf(commands, sizeof commands, "base %s", cases[i].base);
        open_recipe(&r, &m, commands);
        assert_packed(m, source, cases[i].base);
        assert_ok(model_input_scale(m, cases[i].scaled, &scale, &e), e);
        assert_true(scale == RECIPE_INPUT_SCALE);
        assert_int_equal(model_parameters(m), cases[i].parameters);
        model_close(m);
        recipe_fini(&r);
        model_close(source);
    }
}

/* Other writers add keys that say how numbers were found, leave out defaults, and put one format above all groups. */
static void packed_directories_of_other_writers_are_read(void **state)
{
    (void)state;
    static const char *const changes[] = {
        "config quantization_config.config_groups.group_00.weights.observer \"memoryless_minmax\"",
        "config quantization_config.config_groups.group_00.weights.actorder \"static\"",
        "config quantization_config.config_groups.group_00.weights.block_structure null",
        "config-drop quantization_config.config_groups.group_00.weights.scale_dtype",
        "config-drop quantization_config.config_groups.group_02.weights.symmetric",
        "config-drop quantization_config.config_groups.group_02.weights.num_bits",
        "config-drop quantization_config.config_groups.group_00.output_activations",
        "config-drop quantization_config.config_groups.group_00.input_activations",
        "config-drop quantization_config.ignore",
        "config quantization_config.ignore [\"re:.*lm_head$\"]",
        ("config quantization_config.format \"float-quantized\"\n"
         "config quantization_config.config_groups.group_02.format null"),
    };
    for (size_t i = 0; i < COUNT(changes); i++) {
        struct recipe r;
        struct model *m;
        char commands[400];
        snprintf(commands, sizeof commands, "base packed\n%s", changes[i]);
        open_recipe(&r, &m, commands);
        for (int x = 0; x < m->n_matrices; x++)
            assert_ptr_equal(m->matrices[x].stored, recipe_packed_format("packed", m, m->matrices[x].unit));
        model_close(m);
        recipe_fini(&r);
    }
}

/* ---------------------------------------------------------------------------------------------------------- failure */

static void every_failed_allocation_is_reported_and_leaks_nothing(void **state)
{
    (void)state;
    static const char *const bases[] = {"base stories260k", "base stories260k\nshard 2", "base packed",
                                        "base every_format"};
    for (size_t i = 0; i < COUNT(bases); i++) {
        struct recipe r;
        recipe_init(&r);
        recipe_do(&r, bases[i]);
        bool done = false;
        for (long n = 1; !done; n++) {
            struct model *m = NULL;
            struct err e = {0};
            mem_fail_after(n, false);
            done = model_open(&m, r.path, &e);
            mem_fail_after(0, false);
            if (!done && (e.code != ERR_RESOURCE || m))
                fail_msg("allocation %ld of '%s': %s", n, bases[i], e.text);
            model_close(m);
            assert_in_range(n, 1, 10000);
        }
        recipe_fini(&r);
    }
}

static bool read_everything(const struct model *m, struct err *e)
{
    bool ok = true;
    for (int i = 0; ok && i < m->n_matrices; i++) {
        float *w;
        ok = mem_raw(&w, (size_t)(m->matrices[i].n * m->matrices[i].k), e);
        if (ok) {
            ok = model_read_matrix(m, i, w, e);
            mem_free(w);
        }
    }
    for (size_t i = 0; ok && i < m->files->n_tensors; i++) {
        const struct st_tensor *t = &m->files->tensors[i];
        int64_t count = (int64_t)(t->bytes / dtype_bytes(t->dtype));
        float *x;
        if (t->dtype != DTYPE_F32 && t->dtype != DTYPE_BF16 && t->dtype != DTYPE_F16)
            continue;
        ok = mem_raw(&x, (size_t)count, e);
        if (ok) {
            ok = model_read_tensor(m, t->name, count, x, e);
            mem_free(x);
        }
    }
    return ok;
}

/* "input: ...\n" with the directory's name taken out; "" when nothing was refused. */
static void refusal(const char *recipe_path, char out[2200])
{
    struct recipe r;
    struct err e = {0};
    struct model *m = NULL;
    char *commands = check_read(recipe_path, NULL), text[2048];
    assert_non_null(commands);
    recipe_init(&r);
    recipe_do(&r, commands);
    bool ok = model_open(&m, r.path, &e);
    if (ok) {
        recipe_do_later(&r);
        ok = read_everything(m, &e);
    }
    model_close(m);
    size_t n = 0, length = strlen(r.folder);
    for (const char *at = e.text; *at && n < sizeof text - 8;) {
        if (strncmp(at, r.folder, length) == 0) {
            n += (size_t)snprintf(text + n, sizeof text - n, "$MODEL");
            at += length;
        } else {
            text[n++] = *at++;
        }
    }
    text[n] = '\0';
    snprintf(out, 2200, "%s: %s\n", err_name(e.code), text);
    if (ok)
        out[0] = '\0';
    recipe_fini(&r);
    free(commands);
}

static int is_recipe(const struct dirent *d)
{
    const char *dot = strrchr(d->d_name, '.');
    return dot && strcmp(dot, ".recipe") == 0;
}

static bool check_reject(const char *folder, const char *name)
{
    char path[900], text_name[300], got[2200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(text_name, sizeof text_name, "%.*s.txt", (int)(strlen(name) - strlen(".recipe")), name);
    refusal(path, got);
    if (!got[0]) {
        print_error("%s: is read, but had to be refused\n", name);
        return false;
    }
    if (getenv("SCOUT_REWRITE"))
        check_write(folder, text_name, got, strlen(got));
    snprintf(path, sizeof path, "%s/%s", folder, text_name);
    char *expected = check_read(path, NULL);
    bool ok = expected && strcmp(expected, got) == 0;
    if (!ok)
        print_error("%s: expected\n%sgot\n%s", name, expected ? expected : "(no .txt)\n", got);
    free(expected);
    return ok;
}

static void broken_models_are_refused_with_their_message(void **state)
{
    (void)state;
    char folder[600];
    struct dirent **list;
    snprintf(folder, sizeof folder, "%s/tests/rejects/models", check_root());
    int n = scandir(folder, &list, is_recipe, alphasort), bad = 0;
    assert_true(n >= FEWEST_REJECTS);
    for (int i = 0; i < n; i++) {
        bad += !check_reject(folder, list[i]->d_name);
        free(list[i]);
    }
    free(list);
    assert_int_equal(bad, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shipped_models_have_their_tables),
        cmocka_unit_test(weights_have_known_values),
        cmocka_unit_test(shards_are_the_model),
        cmocka_unit_test(untied_heads_and_dtypes_are_taken_as_they_are_and_denied_biases_are_not),
        cmocka_unit_test(a_head_of_its_own_is_a_unit_where_it_is_asked_for),
        cmocka_unit_test(a_packed_head_is_a_unit_in_any_case),
        cmocka_unit_test(a_stored_head_is_passed_over_when_tied),
        cmocka_unit_test(reading_says_what_is_wrong),
        cmocka_unit_test(packed_directories_give_their_renderings),
        cmocka_unit_test(packed_directories_of_other_writers_are_read),
        cmocka_unit_test(every_failed_allocation_is_reported_and_leaks_nothing),
        cmocka_unit_test(broken_models_are_refused_with_their_message),
    };
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}
