/* Carries out recipes. Files are read, changed and written whole: models here are small. */
#include "tests/nodes/model/recipe.h"

#include <fcntl.h>
#include <jansson.h>

#include "nodes/format/compressed.h"

/* ------------------------------------------------------------------------------------------------------------ files */

static void path_of(const struct recipe *r, const char *name, char out[600])
{
    snprintf(out, 600, "%s/%s", r->folder, name);
}

static char *read_file(const struct recipe *r, const char *name, size_t *n)
{
    char path[600];
    path_of(r, name, path);
    char *bytes = check_read(path, n);
    if (!bytes)
        fail_msg("recipe: there is no %s", path);
    return bytes;
}

static size_t from_hex(const char *hex, unsigned char out[4096])
{
    size_t n = 0;
    unsigned byte;
    while (n < 4096 && sscanf(hex + 2 * n, "%2x", &byte) == 1)
        out[n++] = (unsigned char)byte;
    assert_int_equal(strlen(hex), 2 * n);
    return n;
}

static void copy_file(const char *from, const char *folder, const char *name)
{
    size_t n = 0;
    char *bytes = check_read(from, &n);
    if (!bytes)
        fail_msg("recipe: there is no %s", from);
    check_write(folder, name, bytes, n);
    free(bytes);
}

static json_t *read_json(const struct recipe *r, const char *name)
{
    size_t n = 0;
    char *text = read_file(r, name, &n);
    json_t *json = json_loadb(text, n, 0, NULL);
    free(text);
    assert_non_null(json);
    return json;
}

static void write_json(const struct recipe *r, const char *name, json_t *json)
{
    char *text = json_dumps(json, JSON_INDENT(2));
    assert_non_null(text);
    check_write(r->folder, name, text, strlen(text));
    free(text);
    json_decref(json);
}

/* ----------------------------------------------------------------------------------------------- a safetensors file */

struct weights {
    char *header; /* text, NUL at the end */
    char *data;
    size_t bytes;
};

static struct weights weights_read(const struct recipe *r)
{
    size_t n = 0;
    uint64_t length;
    char *file = read_file(r, "model.safetensors", &n);
    memcpy(&length, file, 8);
    struct weights w = {.header = strndup(file + 8, length), .bytes = n - 8 - length};
    w.data = malloc(w.bytes + 1);
    assert_non_null(w.data);
    memcpy(w.data, file + 8 + length, w.bytes);
    free(file);
    return w;
}

/* Frees it, too. */
static void weights_write(const struct recipe *r, const char *name, struct weights *w)
{
    uint64_t length = strlen(w->header);
    char *file = malloc(8 + length + w->bytes);
    assert_non_null(file);
    memcpy(file, &length, 8);
    memcpy(file + 8, w->header, length);
    memcpy(file + 8 + length, w->data, w->bytes);
    check_write(r->folder, name, file, 8 + length + w->bytes);
    free(file);
    free(w->header);
    free(w->data);
}

static json_t *header_json(const struct weights *w)
{
    json_t *header = json_loads(w->header, 0, NULL);
    assert_non_null(header);
    return header;
}

static void set_header(struct weights *w, json_t *header)
{
    free(w->header);
    w->header = json_dumps(header, JSON_COMPACT);
    assert_non_null(w->header);
    json_decref(header);
}

static void range_of(const json_t *header, const char *name, size_t *begin, size_t *end)
{
    const json_t *offsets = json_object_get(json_object_get(header, name), "data_offsets");
    if (!offsets)
        fail_msg("recipe: there is no tensor '%s'", name);
    *begin = (size_t)json_integer_value(json_array_get(offsets, 0));
    *end = (size_t)json_integer_value(json_array_get(offsets, 1));
}

static void do_remove(struct weights *w, const char *name)
{
    json_t *header = header_json(w), *entry;
    const char *key;
    size_t begin, end;
    range_of(header, name, &begin, &end);
    json_object_del(header, name);
    memmove(w->data + begin, w->data + end, w->bytes - end);
    w->bytes -= end - begin;
    json_object_foreach(header, key, entry)
    {
        json_t *offsets = json_object_get(entry, "data_offsets");
        for (size_t i = 0; i < json_array_size(offsets); i++) {
            json_t *x = json_array_get(offsets, i);
            if (json_integer_value(x) >= (json_int_t)end)
                json_integer_set(x, json_integer_value(x) - (json_int_t)(end - begin));
        }
    }
    set_header(w, header);
}

static void do_add(struct weights *w, const char *name, const char *dtype, const char *shape_text)
{
    json_t *header = header_json(w), *shape = json_loads(shape_text, 0, NULL), *x;
    enum dtype t = DTYPE_F32;
    size_t i;
    assert_true(shape && dtype_from_safetensors(dtype, &t));
    size_t bytes = dtype_bytes(t);
    json_array_foreach(shape, i, x) bytes *= (size_t)json_integer_value(x);
    json_object_set_new(header, name,
                        json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype, "shape", shape, "data_offsets",
                                  (json_int_t)w->bytes, (json_int_t)(w->bytes + bytes)));
    w->data = realloc(w->data, w->bytes + bytes + 1);
    assert_non_null(w->data);
    memset(w->data + w->bytes, 0, bytes);
    w->bytes += bytes;
    set_header(w, header);
}

static void do_rename(struct weights *w, const char *name, const char *new)
{
    json_t *header = header_json(w), *out = json_object(), *entry;
    const char *key;
    if (!json_object_get(header, name))
        fail_msg("recipe: there is no tensor '%s'", name);
    json_object_foreach(header, key, entry) json_object_set(out, strcmp(key, name) == 0 ? new : key, entry);
    json_decref(header);
    set_header(w, out);
}

static void do_header(struct weights *w, char *rest)
{
    char *arrow = strstr(rest, " => "), *out;
    assert_non_null(arrow);
    *arrow = '\0';
    const char *new = arrow + 4, *at = strstr(w->header, rest);
    if (!at)
        fail_msg("recipe: the header has no '%s'", rest);
    out = malloc(strlen(w->header) + strlen(new) + 1);
    assert_non_null(out);
    sprintf(out, "%.*s%s%s", (int)(at - w->header), w->header, new, at + strlen(rest));
    free(w->header);
    w->header = out;
}

/* Tensors in the order of the header dealt to n files in turn, with an index. */
static void do_shard(const struct recipe *r, struct weights *w, int n)
{
    json_t *header = header_json(w), *map = json_object(), *entry;
    char path[600], file[64];
    for (int s = 0; s < n; s++) {
        struct weights out = {.data = malloc(w->bytes + 1)};
        json_t *part = json_object();
        const char *key;
        int i = 0;
        snprintf(file, sizeof file, "model-%05d-of-%05d.safetensors", s + 1, n);
        json_object_foreach(header, key, entry)
        {
            if (strcmp(key, "__metadata__") == 0 || i++ % n != s)
                continue;
            size_t begin, end;
            range_of(header, key, &begin, &end);
            memcpy(out.data + out.bytes, w->data + begin, end - begin);
            json_t *copy = json_deep_copy(entry);
            json_object_set_new(copy, "data_offsets", json_pack("[I, I]", (json_int_t)out.bytes,
                                                                (json_int_t)(out.bytes + end - begin)));
            out.bytes += end - begin;
            json_object_set_new(part, key, copy);
            json_object_set_new(map, key, json_string(file));
        }
        set_header(&out, part);
        weights_write(r, file, &out);
    }
    write_json(r, "model.safetensors.index.json",
               json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)w->bytes, "weight_map", map));
    path_of(r, "model.safetensors", path);
    assert_int_equal(unlink(path), 0);
    json_decref(header);
    free(w->header);
    free(w->data);
}

/* ---------------------------------------------------------------------------------------------------- packed models */

#define FORMATS 15

const struct format *recipe_packed_format(const char *base, const struct model *m, int unit)
{
    const struct unit *u = &m->units[unit];
    if (strcmp(base, "every_format") == 0) {
        assert_null(formats[FORMATS]);
        const struct format *f = formats[unit % FORMATS];
        return format_fits(f, m->matrices[u->first].n, u->k) ? f : &format_int4_g32;
    }
    if (u->layer == m->config.layers - 1)
        return &format_bf16;
    switch (u->role) {
    case ROLE_QKV: return &format_nvfp4;
    case ROLE_O: return &format_nvfp4_a16;
    case ROLE_GATE_UP: return &format_fp8;
    default: return u->layer % 2 ? &format_fp8 : &format_bf16;
    }
}

static float unit_amax(const struct model *m, int unit)
{
    const struct unit *u = &m->units[unit];
    struct err e = {0};
    float amax = 0, *w;
    for (int i = u->first; i < u->first + u->count; i++) {
        assert_ok(mem_raw(&w, (size_t)(m->matrices[i].n * m->matrices[i].k), &e), e);
        assert_ok(model_read_matrix(m, i, w, &e), e);
        assert_ok(format_amax(w, m->matrices[i].n, m->matrices[i].k, &amax, &e), e);
        mem_free(w);
    }
    return amax;
}

void recipe_render(const char *base, const struct model *m, int matrix, struct rendering *out)
{
    const struct matrix *x = &m->matrices[matrix];
    const struct format *f = recipe_packed_format(base, m, x->unit);
    struct err e = {0};
    float *w;
    assert_ok(mem_raw(&w, (size_t)(x->n * x->k), &e), e);
    assert_ok(model_read_matrix(m, matrix, w, &e), e);
    assert_ok(format_rendering_new(out, f, x->n, x->k, x->dtype, &e), e);
    assert_ok(f->encode(w, unit_amax(m, x->unit), out, &e), e);
    mem_free(w);
}

/* One tensor of the packed model: a part of a rendering, or a copy. */
struct piece {
    const struct model *m;
    const struct st_tensor *copy;
    struct rendering r;
    int part; /* -1: the input's scale */
};

static bool fill(const struct st_source *self, void *out, struct err *e)
{
    const struct piece *p = self->context;
    const float scale = RECIPE_INPUT_SCALE;
    if (p->copy)
        return safetensors_read(p->m->files, p->copy, 0, p->copy->bytes, out, e);
    memcpy(out, p->part < 0 ? (const void *)&scale : p->r.part[p->part], self->bytes);
    return true;
}

static size_t add_parts(const char *base, const struct model *m, int matrix, struct st_source *out,
                        struct piece *pieces, struct arena *a)
{
    const struct matrix *x = &m->matrices[matrix];
    struct format_part parts[FORMAT_PARTS + 1];
    struct rendering r;
    recipe_render(base, m, matrix, &r);
    int n = r.format->parts(x->n, x->k, x->dtype, parts), own = n;
    if (r.format->static_input_scale)
        parts[n++] = (struct format_part){"input_global_scale", DTYPE_F32, 1, {1}};
    for (int i = 0; i < n; i++) {
        pieces[i] = (struct piece){.m = m, .r = r, .part = i < own ? i : -1};
        out[i] = (struct st_source){.name = arena_printf(a, NULL, "%s.%s", x->name, parts[i].suffix),
                                    .dtype = parts[i].dtype, .rank = parts[i].rank, .fill = fill,
                                    .shape = {parts[i].shape[0], parts[i].shape[1]},
                                    .bytes = format_part_bytes(&parts[i]), .context = &pieces[i]};
    }
    return (size_t)n;
}

/* Renderings in `pieces` share their parts with neighbours; each is freed once. */
static void free_renderings(struct piece *pieces, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!pieces[i].copy && pieces[i].part == 0)
            rendering_free(&pieces[i].r);
}

static void write_packed_config(const struct recipe *r, const char *base, const struct model *m)
{
    struct compressed_module modules[256];
    struct str text = {0};
    struct err e = {0};
    char path[600];
    size_t n = 0;
    assert_in_range(m->n_matrices, 1, 255);
    for (int i = 0; i < m->n_matrices; i++)
        modules[i] = (struct compressed_module){m->matrices[i].name,
                                                recipe_packed_format(base, m, m->matrices[i].unit)};
    modules[m->n_matrices] = (struct compressed_module){"lm_head", &format_bf16};
    snprintf(path, sizeof path, "%s/config.json", m->path);
    char *config = check_read(path, &n);
    assert_ok(compressed_config(&text, config, n, path, modules, (size_t)m->n_matrices + 1, &e), e);
    check_write(r->folder, "config.json", text.text, text.length);
    str_free(&text);
    free(config);
}

static void make_packed(const struct recipe *r, const char *base, const char *source)
{
    char path[600], name[512];
    struct model *m;
    struct err e = {0};
    struct arena a = {0};
    struct st_source *sources;
    struct piece *pieces;
    snprintf(path, sizeof path, "%s/data/models/%s", check_root(), source);
    assert_ok(model_open(&m, path, &e), e);
    size_t most = m->files->n_tensors * (FORMAT_PARTS + 1), n = 0;
    assert_ok(mem_new(&sources, most, &e) && mem_new(&pieces, most, &e), e);
    for (int i = 0; i < m->n_matrices; i++)
        n += add_parts(base, m, i, sources + n, pieces + n, &a);
    for (size_t i = 0; i < m->files->n_tensors; i++) {
        const struct st_tensor *t = &m->files->tensors[i];
        int matrix = 0;
        while (matrix < m->n_matrices && (snprintf(name, sizeof name, "%s.weight", m->matrices[matrix].name) < 0 ||
                                          strcmp(name, t->name) != 0))
            matrix++;
        if (matrix < m->n_matrices)
            continue;
        pieces[n] = (struct piece){.m = m, .copy = t};
        sources[n] = (struct st_source){.name = t->name, .dtype = t->dtype, .rank = t->rank, .bytes = t->bytes,
                                        .shape = {t->shape[0], t->shape[1]}, .fill = fill, .context = &pieces[n]};
        n++;
    }
    path_of(r, "model.safetensors", path);
    assert_ok(safetensors_write(path, sources, n, &e), e);
    write_packed_config(r, base, m);
    free_renderings(pieces, n);
    mem_free(sources);
    mem_free(pieces);
    arena_free(&a);
    model_close(m);
}

/* --------------------------------------------------------------------------------------------------------- commands */

/* The object that the last part of a dotted key is in; *key becomes that part. */
static json_t *parent_of(json_t *root, char **key)
{
    char *dot;
    while ((dot = strchr(*key, '.'))) {
        *dot = '\0';
        root = json_object_get(root, *key);
        assert_non_null(root);
        *key = dot + 1;
    }
    return root;
}

static void do_base(const struct recipe *r, const char *name)
{
    char path[600];
    if (strcmp(name, "packed") == 0)
        make_packed(r, name, "stories260k");
    else if (strcmp(name, "every_format") == 0)
        make_packed(r, name, "babyllama-1m");
    else if (strcmp(name, "none") != 0)
        for (const char *const *file = (const char *const[]){"config.json", "model.safetensors", NULL}; *file; file++) {
            snprintf(path, sizeof path, "%s/data/models/%s/%s", check_root(), name, *file);
            copy_file(path, r->folder, *file);
        }
}

static void do_config(const struct recipe *r, char *key, const char *value)
{
    json_t *config = read_json(r, "config.json");
    json_t *x = value ? json_loads(value, JSON_DECODE_ANY, NULL) : NULL, *parent = parent_of(config, &key);
    assert_true(!value || x);
    assert_int_equal(x ? json_object_set_new(parent, key, x) : json_object_del(parent, key), 0);
    write_json(r, "config.json", config);
}

static void do_index(const struct recipe *r, const char *name, const char *value)
{
    json_t *index = read_json(r, "model.safetensors.index.json"), *map = json_object_get(index, "weight_map");
    json_t *x = json_loads(value, JSON_DECODE_ANY, NULL);
    assert_non_null(x);
    if (json_is_null(x)) {
        assert_int_equal(json_object_del(map, name), 0);
        json_decref(x);
    } else {
        assert_int_equal(json_object_set_new(map, name, x), 0);
    }
    write_json(r, "model.safetensors.index.json", index);
}

static void do_tensor(struct weights *w, const char *name, const char *value)
{
    json_t *header = header_json(w), *x = json_loads(value, JSON_DECODE_ANY, NULL);
    assert_non_null(x);
    if (json_is_null(x)) {
        assert_int_equal(json_object_del(header, name), 0);
        json_decref(x);
    } else {
        assert_int_equal(json_object_set_new(header, name, x), 0);
    }
    set_header(w, header);
}

static void do_poke(struct weights *w, const char *name, const char *offset, const char *hex)
{
    unsigned char bytes[4096];
    size_t n = from_hex(hex, bytes), begin, end, at = (size_t)atoll(offset);
    json_t *header = header_json(w);
    range_of(header, name, &begin, &end);
    assert_true(at + n <= end - begin);
    memcpy(w->data + begin + at, bytes, n);
    json_decref(header);
}

/* The next argument of a line, cut off it. */
static char *take(char **line)
{
    char *word = strsep(line, " ");
    assert_non_null(word);
    return word;
}

/* Commands on whole files; false if it is none of them. */
static bool do_files(struct recipe *r, const char *command, char *rest)
{
    char path[600], to[600];
    unsigned char bytes[4096];
    char *name = strcmp(command, "open") == 0 ? rest : take(&rest);
    path_of(r, name, path);
    if (strcmp(command, "write") == 0) {
        check_write(r->folder, name, rest ? rest : "", rest ? strlen(rest) : 0);
    } else if (strcmp(command, "hex") == 0) {
        check_write(r->folder, name, bytes, from_hex(rest ? rest : "", bytes));
    } else if (strcmp(command, "copy") == 0) {
        copy_file(path, r->folder, rest);
    } else if (strcmp(command, "move") == 0) {
        path_of(r, rest, to);
        assert_int_equal(rename(path, to), 0);
    } else if (strcmp(command, "delete") == 0) {
        assert_int_equal(unlink(path), 0);
    } else if (strcmp(command, "mkdir") == 0) {
        assert_int_equal(mkdir(path, 0777), 0);
    } else if (strcmp(command, "truncate") == 0) {
        assert_int_equal(truncate(path, atoll(rest)), 0);
    } else if (strcmp(command, "append") == 0) {
        FILE *f = fopen(path, "ab");
        size_t n = from_hex(rest, bytes);
        assert_non_null(f);
        assert_int_equal(fwrite(bytes, 1, n, f), n);
        assert_int_equal(fclose(f), 0);
    } else if (strcmp(command, "open") == 0) {
        memcpy(r->path, path, sizeof path);
    } else {
        return false;
    }
    return true;
}

static void do_length(const struct recipe *r, const char *text)
{
    char path[600];
    uint64_t n = strtoull(text, NULL, 10);
    path_of(r, "model.safetensors", path);
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, &n, 8, 0), 8);
    close(fd);
}

/* Commands on model.safetensors. */
static void do_weights(struct recipe *r, const char *command, char *rest)
{
    struct weights w = weights_read(r);
    char *name = strcmp(command, "header") == 0 ? NULL : take(&rest);
    if (strcmp(command, "header") == 0)
        do_header(&w, rest);
    else if (strcmp(command, "tensor") == 0)
        do_tensor(&w, name, rest);
    else if (strcmp(command, "rename") == 0)
        do_rename(&w, name, rest);
    else if (strcmp(command, "remove") == 0)
        do_remove(&w, name);
    else if (strcmp(command, "shard") == 0) {
        do_shard(r, &w, atoi(name));
        return;
    } else if (strcmp(command, "add") == 0) {
        const char *dtype = take(&rest);
        do_add(&w, name, dtype, rest);
    } else if (strcmp(command, "poke") == 0) {
        const char *offset = take(&rest);
        do_poke(&w, name, offset, rest);
    } else {
        fail_msg("recipe: there is no command '%s'", command);
    }
    weights_write(r, "model.safetensors", &w);
}

static void do_line(struct recipe *r, char *line)
{
    const char *command = take(&line);
    if (strcmp(command, "base") == 0) {
        do_base(r, line);
    } else if (strcmp(command, "config") == 0) {
        char *key = take(&line);
        do_config(r, key, line);
    } else if (strcmp(command, "config-drop") == 0) {
        do_config(r, line, NULL);
    } else if (strcmp(command, "index") == 0) {
        const char *name = take(&line);
        do_index(r, name, line);
    } else if (strcmp(command, "length") == 0) {
        do_length(r, line);
    } else if (strcmp(command, "then") == 0) {
        size_t n = r->later ? strlen(r->later) : 0;
        r->later = realloc(r->later, n + strlen(line) + 2);
        assert_non_null(r->later);
        sprintf(r->later + n, "%s\n", line);
    } else {
        char *rest = strdup(line ? line : "");
        assert_non_null(rest);
        if (!do_files(r, command, rest))
            do_weights(r, command, line);
        free(rest);
    }
}

void recipe_init(struct recipe *r)
{
    *r = (struct recipe){0};
    check_dir_make(r->own);
    r->folder = r->own;
    snprintf(r->path, sizeof r->path, "%s", r->own);
}

void recipe_fini(struct recipe *r)
{
    check_dir_remove(r->own);
    free(r->later);
}

void recipe_do(struct recipe *r, const char *commands)
{
    char *text = strdup(commands), *rest = text, *line;
    assert_non_null(text);
    while ((line = strsep(&rest, "\n")))
        if (line[0] && line[0] != '#')
            do_line(r, line);
    free(text);
}

void recipe_do_later(struct recipe *r)
{
    if (r->later)
        recipe_do(r, r->later);
}
