/* Checks 9 and 10 beyond quantization_config: what scout.json claims, settings of config.json, and the files beside the
 * weights. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nodes/inspect/checks.h"
#include "nodes/inspect/sha.h"

#define PIECE ((size_t)1 << 20)

const json_t *subject_setting(const struct subject *s, const char *key)
{
    const json_t *value = json_object_get(s->config, key);
    if (!value || json_is_null(value))
        value = json_object_get(json_object_get(s->config, "text_config"), key);
    return json_is_null(value) ? NULL : value;
}

/* --------------------------------------------------------------------------------------------- what scout.json says */

/* Does a format of the program mean this scheme? int8_a16 leaves open how many columns share a scale. */
static bool is_format(const char *format, const struct scheme *s)
{
    char name[40];
    if (s->kind == SCHEME_PLAIN)
        return strcmp(format, "bf16") == 0;
    scheme_name(s, name);
    return strcmp(format, name) == 0 || (strncmp(name, format, strlen(format)) == 0 && strcmp(format, "int8_a16") == 0);
}

static const struct module_unit *find_unit(const struct subject *s, const char *name)
{
    for (size_t i = 0; i < s->modules.n_units; i++)
        if (strcmp(s->modules.units[i].name, name) == 0)
            return &s->modules.units[i];
    return NULL;
}

/* One unit of the assignment: its scheme; its bytes and weights are added. */
static void check_assigned(struct subject *s, const char *name, const char *format, uint64_t *bytes, uint64_t *weights)
{
    const struct module_unit *u = find_unit(s, name);
    char scheme[40];
    if (!u || !format) {
        report_error(s->report, 9, name, "units that are there, each with a format",
                     "scout.json assigns one that is %s", u ? "given none" : "not there");
        return;
    }
    for (size_t i = 0; i < u->n_modules; i++) {
        const struct module *x = &s->modules.list[u->modules[i]];
        if (!is_format(format, &x->stored))
            report_error(s->report, 9, x->name, format, "scout.json assigns this format, its tensors are %s",
                         scheme_name(&x->stored, scheme));
        *bytes += x->bytes;
        *weights += (uint64_t)x->n * (uint64_t)x->k;
    }
}

void check_budget(struct subject *s)
{
    const json_t *claimed = json_object_get(s->origin.recipe, "bytes"), *value;
    const json_t *bpp = json_object_get(s->origin.recipe, "bpp");
    const json_t *assignment = json_object_get(s->origin.recipe, "assignment");
    const char *name;
    uint64_t bytes = 0, weights = 0;
    if (!json_is_object(assignment) || !json_is_integer(claimed) || !json_is_number(bpp)) {
        report_partly(s->report, 9, "no scout.json claims a size");
        return;
    }
    json_object_foreach((json_t *)assignment, name, value)
    {
        check_assigned(s, name, json_string_value(value), &bytes, &weights);
    }
    if (json_integer_value(claimed) < 0 || bytes != (uint64_t)json_integer_value(claimed))
        report_error(s->report, 9, "scout.json", "the sum of the units' tensors", "`bytes` is %lld, they have %llu",
                     (long long)json_integer_value(claimed), (unsigned long long)bytes);
    double real = weights ? 8.0 * (double)bytes / (double)weights : 0;
    if (fabs(json_number_value(bpp) - real) > 1e-6)
        report_error(s->report, 9, "scout.json", "bits per weight of the units", "`bpp` is %.9g, they have %.9g",
                     json_number_value(bpp), real);
}

/* --------------------------------------------------------------------------------------------------------- settings */

static bool has_tensors(const struct subject *s, const char *prefix)
{
    for (size_t i = 0; i < s->files.n_tensors; i++)
        if (strncmp(s->files.tensors[i].name, prefix, strlen(prefix)) == 0)
            return true;
    return false;
}

/* A head is there exactly when it is not the embedding's table. */
static void check_head(struct subject *s)
{
    const json_t *top = json_object_get(s->config, "tie_word_embeddings");
    const json_t *inner = json_object_get(json_object_get(s->config, "text_config"), "tie_word_embeddings");
    const json_t *tied = json_is_boolean(top) ? top : inner;
    const struct module *head = modules_find(&s->modules, "lm_head");
    const char *type = json_string_value(json_array_get(json_object_get(s->config, "architectures"), 0));
    bool generates = type && (strstr(type, "CausalLM") || strstr(type, "ConditionalGeneration") ||
                              strstr(type, "LMHead"));
    if (json_is_boolean(top) && json_is_boolean(inner) && json_is_true(top) != json_is_true(inner))
        report_error(s->report, 10, "config.json", "one `tie_word_embeddings`, in text_config as at the top",
                     "they differ");
    if (!json_is_boolean(tied) || !generates)
        return;
    if (json_is_true(tied) && head)
        report_add(s->report, 10, head->stored.kind == SCHEME_PLAIN ? FINDING_WARNING : FINDING_ERROR, "lm_head",
                   "no tensors of a head that is tied to the embedding", "it has some");
    if (json_is_false(tied) && !head)
        report_error(s->report, 10, "lm_head", "a head, since it is not tied to the embedding", "it has no tensors");
    if (json_is_true(tied) && s->matcher) {
        struct match m = matcher_ct(s->matcher, "lm_head", "Linear");
        if (m.kind == MATCH_GROUP)
            report_error(s->report, 10, "lm_head", "no target for a head that is tied to the embedding",
                         "target '%.100s' has it", m.target);
    }
}

static void check_drafter(struct subject *s)
{
    const json_t *layers = subject_setting(s, "mtp_num_hidden_layers");
    bool has = has_tensors(s, "mtp.");
    if (json_integer_value(layers) > 0 && !has)
        report_error(s->report, 10, "config.json", "tensors `mtp.*`", "`mtp_num_hidden_layers` is %lld, there are none",
                     (long long)json_integer_value(layers));
    if (has && json_integer_value(layers) <= 0)
        report_warning(s->report, 10, "config.json", "`mtp_num_hidden_layers`",
                       "there are tensors `mtp.*`, and it is %s", layers ? "0" : "missing");
}

/* Members of config.json that differ from the source's. */
static void check_kept(struct subject *s)
{
    const char *key;
    const json_t *value;
    json_object_foreach(s->origin.config, key, value)
    {
        const json_t *have = json_object_get(s->config, key);
        if (!have || !json_equal(value, have))
            report_warning(s->report, 10, "config.json", "every member as in the source", "`%.100s` %s", key,
                           have ? "differs" : "is missing");
    }
    json_object_foreach(s->config, key, value)
    {
        if (!json_object_get(s->origin.config, key) && strcmp(key, "quantization_config") != 0)
            report_warning(s->report, 10, "config.json", "every member as in the source", "`%.100s` is new", key);
    }
}

/* ------------------------------------------------------------------------------------------------------ other files */

static bool is_there(const char *dir, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return access(path, R_OK) == 0;
}

/* What is copied from a source where it is there (export-formats 7). */
static const char *const side_files[] = {
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "configuration.json"};
enum { N_SIDE_FILES = sizeof side_files / sizeof *side_files };

/* Are two files equal? Only regular ones are opened. */
static bool same_file(const char *a, const char *b)
{
    char p[4096], q[4096];
    struct stat s, t;
    bool same = stat(a, &s) == 0 && stat(b, &t) == 0 && S_ISREG(s.st_mode) && S_ISREG(t.st_mode);
    FILE *f = same ? fopen(a, "rbe") : NULL, *g = same ? fopen(b, "rbe") : NULL;
    same = f && g;
    for (size_t n = 1; same && n > 0;) {
        n = fread(p, 1, sizeof p, f);
        same = fread(q, 1, sizeof q, g) == n && memcmp(p, q, n) == 0;
    }
    if (f)
        fclose(f);
    if (g)
        fclose(g);
    return same;
}

static void check_side_files(struct subject *s)
{
    const char *dir = s->options->dir, *source = s->origin.dir;
    char ours[4096], theirs[4096];
    bool has_tokenizer = is_there(dir, "tokenizer.json") || is_there(dir, "tokenizer.model") ||
                         is_there(dir, "tekken.json") || (is_there(dir, "vocab.json") && is_there(dir, "merges.txt")) ||
                         is_there(dir, "vocab.txt");
    if (!has_tokenizer)
        report_error(s->report, 10, ".", "a tokenizer: tokenizer.json, tokenizer.model, or vocab.json with merges.txt",
                     "there is none");
    if (has_tensors(s, "model.visual.") || has_tensors(s, "visual.") ||
        json_is_object(json_object_get(s->config, "vision_config")))
        if (!is_there(dir, "preprocessor_config.json") && !is_there(dir, "processor_config.json"))
            report_error(s->report, 10, ".", "preprocessor_config.json: servers want it even for text",
                         "a model that sees has none");
    for (size_t i = 0; source && i < N_SIDE_FILES; i++) {
        snprintf(ours, sizeof ours, "%s/%s", dir, side_files[i]);
        snprintf(theirs, sizeof theirs, "%s/%s", source, side_files[i]);
        if (!is_there(source, side_files[i]))
            continue;
        if (!is_there(dir, side_files[i]))
            report_error(s->report, 10, side_files[i], "a copy of the source's", "it is missing");
        else if (!same_file(ours, theirs))
            report_warning(s->report, 10, side_files[i], "a copy of the source's", "it differs");
    }
    if (!source)
        report_partly(s->report, 10, "without --source it is not known which files it had");
}

static void check_stale(struct subject *s)
{
    static const char *const foreign[] = {"hf_quant_config.json", "quantize_config.json", "quant_config.json"};
    for (size_t i = 0; i < s->files.n_stale; i++)
        report_error(s->report, 10, s->files.stale[i], "no weight files but those that the index names",
                     "it is there: some loaders take it");
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        if (is_there(s->options->dir, foreign[i]))
            report_warning(s->report, 10, foreign[i], "no configuration of another quantization", "it is there");
}

/* ---------------------------------------------------------------------------------- the files that scout.json lists */

struct listed {
    const char *name, *digest;
    uint64_t bytes;
    const char *wrong; /* NULL: it is as listed */
};

/* SHA-256 of a file as text, "" when it cannot be had. */
static void digest_file(int fd, char out[SHA_TEXT])
{
    unsigned char *piece = NULL;
    struct sha *hash = sha_new();
    bool ok = hash && mem_raw(&piece, PIECE, NULL);
    for (ssize_t got = 1; ok && got != 0;) {
        got = read(fd, piece, PIECE);
        ok = (got < 0 && errno == EINTR) || (got >= 0 && sha_add(hash, piece, (size_t)got));
    }
    sha_end(hash, out);
    if (!ok)
        out[0] = '\0';
    mem_free(piece);
}

static void check_file(const char *dir, struct listed *x)
{
    char path[4096], text[SHA_TEXT];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", dir, x->name);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        x->wrong = "it is missing, or cannot be read";
    } else if ((uint64_t)st.st_size != x->bytes) {
        x->wrong = "its size is another";
    } else {
        digest_file(fd, text);
        x->wrong = strcmp(text, x->digest) == 0 ? NULL : "its SHA-256 is another";
    }
    if (fd >= 0)
        close(fd);
}

/* False when memory is out. */
static bool check_listed(struct subject *s, struct err *e)
{
    const json_t *files = json_object_get(s->origin.recipe, "files"), *one;
    struct listed *list;
    int64_t n = 0;
    size_t i;
    if (!mem_new(&list, json_array_size(files) + 1, e))
        return false;
    json_array_foreach(files, i, one) {
        const char *name = json_string_value(json_object_get(one, "name"));
        const char *digest = json_string_value(json_object_get(one, "sha256"));
        const json_t *bytes = json_object_get(one, "bytes");
        if (!name || !digest || !json_is_integer(bytes) || json_integer_value(bytes) < 0 || strchr(name, '/'))
            report_error(s->report, 10, "scout.json", "files with name, bytes and sha256",
                         "entry %zu of `files` has not", i);
        else
            list[n++] = (struct listed){name, digest, (uint64_t)json_integer_value(bytes), NULL};
    }
#pragma omp parallel for schedule(dynamic, 1) if (s->files.bytes > WORTH_THREADS)
    for (int64_t k = 0; k < n; k++)
        check_file(s->options->dir, &list[k]);
    for (int64_t k = 0; k < n; k++)
        if (list[k].wrong)
            report_error(s->report, 10, list[k].name, "the file that scout.json lists", "%s", list[k].wrong);
    mem_free(list);
    return true;
}

bool check_surroundings(struct subject *s, struct err *e)
{
    if (s->config) {
        check_head(s);
        check_drafter(s);
        if (s->origin.config)
            check_kept(s);
    }
    check_side_files(s);
    check_stale(s);
    return check_listed(s, e);
}
