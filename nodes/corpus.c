/* Node type `corpus`: a text cut into documents, documents into windows, and windows dealt to disjoint sets.
 *
 * Documents are put in the order of a seeded hash of their text. Selection takes whole documents from the front until
 * it has its windows, then report, then calibration, then the set for probes; what is left over of the last document of
 * a set is not used by the next one. So the sets are disjoint by document, which documents a set has does not depend on
 * the file's order, and more windows for a set leave those before it as they are. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/base/str.h"
#include "nodes/model/documents.h"
#include "nodes/model/model.h"
#include "nodes/model/tokenizer.h"
#include "nodes/nodes.h"

/* Of /documents/split; what is a set has its number. */
enum { CALIBRATION, SELECTION, REPORT, UNUSED, PROBE, SPLITS };
enum { SETS = 4 };
static const char *const set_names[SPLITS] = {
    [CALIBRATION] = "calibration", [SELECTION] = "selection", [REPORT] = "report", [PROBE] = "probe"};
static const int deal_order[SETS] = {SELECTION, REPORT, CALIBRATION, PROBE};

/* One set of windows. */
struct set {
    uint32_t n, wanted;
    int32_t *ids, *length;
    uint32_t *document;
    uint32_t n_documents;
    uint64_t tokens;
};

struct corpus {
    struct node *n;
    struct model *model;
    struct tokenizer *tokenizer;
    struct documents documents;
    uint32_t window, least, per_document;
    bool mask, special;
    struct set sets[SPLITS];
    uint8_t *split; /* [document] */
};

struct place {
    struct key hash;
    uint32_t document;
};

static int by_hash(const void *a, const void *b)
{
    return memcmp(((const struct place *)a)->hash.bytes, ((const struct place *)b)->hash.bytes, KEY_BYTES);
}

static bool shuffle(struct corpus *c, struct place **out, struct err *e)
{
    struct place *order;
    if (!mem_new(&order, c->documents.n, e))
        return false;
    for (size_t i = 0; i < c->documents.n; i++) {
        struct key_hash *h;
        order[i].document = (uint32_t)i;
        bool ok = key_hash_new(&h, e);
        if (ok) {
            key_hash_text(h, "split 1");
            key_hash_int(h, node_int(c->n, "seed"));
            key_hash_key(h, &c->documents.list[i].digest);
            ok = key_hash_end(h, &order[i].hash, e);
        }
        if (!ok) {
            mem_free(order);
            return false;
        }
    }
    qsort(order, c->documents.n, sizeof *order, by_hash);
    *out = order;
    return true;
}

#define LONG_DOCUMENT ((uint64_t)1 << 20)   /* bytes; longer ones are rare unless the whole text is one */
#define ENCODING_BYTES 64                   /* memory per byte of a document while it is encoded as one word */
#define VOCABULARY_BYTES 24                 /* memory per byte of tokenizer.json while it is read */

/* What the number of a document's place counts. */
static const char *place_word(const struct corpus *c)
{
    return strcmp(node_string(c->n, "documents"), "json") == 0 ? "document that is JSON item" : "document at byte";
}

/* A text that is one huge document by mistake (a forgotten separator) is told so instead of taking all memory. */
static bool fits_memory(const struct corpus *c, const struct document *d, struct err *e)
{
    char has[16], wants[16];
    uint64_t bytes = d->bytes * ENCODING_BYTES;
    if (d->bytes <= LONG_DOCUMENT || bytes <= node_memory(c->n))
        return true;
    return err_set(e, ERR_RESOURCE,
                   "the %s %llu has %llu bytes, and encoding it may take %s of memory "
                   "where the node was given %s: does `documents: %s` cut this text as it should? Otherwise give the "
                   "node more with `on: {memory: ..}`",
                   place_word(c), (unsigned long long)d->offset, (unsigned long long)d->bytes, str_size(bytes, wants),
                   str_size(node_memory(c->n), has), node_string(c->n, "documents"));
}

/* Windows of one document into a set, until it is full or the document has given its share: consecutive pieces of
 * `window` tokens; the tail is masked (kept with its length) or skipped. */
static bool add_document(struct corpus *c, struct set *s, uint32_t document, struct err *e)
{
    const struct document *d = &c->documents.list[document];
    int32_t *ids;
    size_t n;
    uint32_t before = s->n;
    if (!fits_memory(c, d, e))
        return false;
    if (!tokenizer_encode(c->tokenizer, d->text, d->bytes, c->special, &ids, &n, e))
        return err_context(e, "%s %llu", place_word(c), (unsigned long long)d->offset);
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++)
        if (ids[i] < 0 || ids[i] >= c->model->config.vocab)
            ok = err_set(e, ERR_INPUT, "token id %d of the %s %llu is outside the model's vocabulary of "
                         "%d: tokenizer.json and config.json do not belong together", ids[i], place_word(c),
                         (unsigned long long)d->offset, c->model->config.vocab);
    for (size_t at = 0; ok && at < n && s->n < s->wanted && s->n - before < c->per_document; at += c->window) {
        size_t length = n - at < c->window ? n - at : c->window;
        if (length < c->window && (!c->mask || length < c->least))
            break;
        memcpy(s->ids + (size_t)s->n * c->window, ids + at, length * sizeof *ids);
        s->length[s->n] = (int32_t)length;
        s->document[s->n] = document;
        s->tokens += length;
        s->n++;
    }
    s->n_documents += s->n > before;
    mem_free(ids);
    return ok;
}

static bool deal(struct corpus *c, struct err *e)
{
    struct place *order;
    size_t next = 0;
    if (!shuffle(c, &order, e))
        return false;
    bool ok = true;
    for (int i = 0; ok && i < SETS; i++) {
        struct set *s = &c->sets[deal_order[i]];
        for (; ok && s->n < s->wanted && next < c->documents.n; next++) {
            uint32_t before = s->n;
            ok = node_stopping(c->n) ? node_stopped(e) : add_document(c, s, order[next].document, e);
            if (s->n > before)
                c->split[order[next].document] = (uint8_t)deal_order[i];
        }
        if (ok && s->n < s->wanted)
            ok = err_set(e, ERR_INPUT, "%s: the text has too few documents for `%s`: %u windows of %u tokens were "
                         "wanted, %u could be had (%zu of %zu documents were looked at, by this set and those before "
                         "it); give more text, fewer or shorter windows%s", node_string(c->n, "text"),
                         set_names[deal_order[i]], s->wanted, c->window, s->n, next, c->documents.n,
                         c->mask ? "" : ", or `short: mask`");
    }
    mem_free(order);
    return ok;
}

static bool write_set(struct corpus *c, int which, struct err *e)
{
    struct writer *w = node_output(c->n);
    const struct set *s = &c->sets[which];
    char name[64];
    struct dataset d = {.name = name, .dtype = DTYPE_I32, .rank = 2, .shape = {s->n, c->window}, .unit = "1",
        .axes = "window, position", .description = "token ids; slots past a window's length hold 0"};
    snprintf(name, sizeof name, "%s/tokens", set_names[which]);
    if (!writer_add(w, &d, s->ids, e))
        return false;
    snprintf(name, sizeof name, "%s/length", set_names[which]);
    d = (struct dataset){.name = name, .dtype = DTYPE_I32, .rank = 1, .shape = {s->n}, .unit = "token",
        .axes = "window", .description = "real positions; all but the last are scored"};
    if (!writer_add(w, &d, s->length, e))
        return false;
    snprintf(name, sizeof name, "%s/document", set_names[which]);
    d = (struct dataset){.name = name, .dtype = DTYPE_U32, .rank = 1, .shape = {s->n}, .unit = "1", .axes = "window",
        .description = "index into /documents"};
    node_log(c->n, "%s: %u windows of %u tokens, %llu tokens from %u documents", set_names[which], s->n, c->window,
             (unsigned long long)s->tokens, s->n_documents);
    return writer_add(w, &d, s->document, e);
}

static bool write_documents(struct corpus *c, struct err *e)
{
    struct writer *w = node_output(c->n);
    size_t n = c->documents.n;
    char(*digests)[KEY_TEXT] = NULL;
    uint64_t *offsets = NULL, *bytes = NULL;
    bool ok = mem_new(&digests, n, e) && mem_new(&offsets, n, e) && mem_new(&bytes, n, e);
    for (size_t i = 0; ok && i < n; i++) {
        key_text(&c->documents.list[i].digest, digests[i]);
        offsets[i] = c->documents.list[i].offset;
        bytes[i] = c->documents.list[i].bytes;
    }
    const struct dataset columns[] = {
        {.name = "documents/digest", .dtype = DTYPE_U8, .rank = 1, .shape = {n}, .string_bytes = KEY_TEXT, .unit = "1",
         .axes = "document", .description = "SHA-256 of the document's text"},
        {.name = "documents/split", .dtype = DTYPE_U8, .rank = 1, .shape = {n}, .unit = "1", .axes = "document",
         .description = "0 calibration, 1 selection, 2 report, 3 unused, 4 probe"},
        {.name = "documents/offset", .dtype = DTYPE_U64, .rank = 1, .shape = {n}, .unit = "byte", .axes = "document",
         .description = "where it begins in the text (JSON: the item's ordinal)"},
        {.name = "documents/bytes", .dtype = DTYPE_U64, .rank = 1, .shape = {n}, .unit = "byte", .axes = "document",
         .description = "its length"}};
    ok = ok && writer_add(w, &columns[0], digests, e) && writer_add(w, &columns[1], c->split, e) &&
         writer_add(w, &columns[2], offsets, e) && writer_add(w, &columns[3], bytes, e) &&
         writer_int(w, "vocabulary", c->model->config.vocab, e);
    mem_free(digests);
    mem_free(offsets);
    mem_free(bytes);
    return ok;
}

static bool prepare(struct corpus *c, struct err *e)
{
    static const char *const rules[] = {"separator", "heading", "json", "lines", "whole"};
    struct node *n = c->n;
    int rule = 0;
    const char *dir;
    char path[4096];
    while (strcmp(rules[rule], node_string(n, "documents")) != 0)
        rule++;
    c->window = (uint32_t)node_int(n, "window");
    c->least = (uint32_t)node_int(n, "least");
    c->per_document = node_int(n, "per_document") ? (uint32_t)node_int(n, "per_document") : UINT32_MAX;
    c->mask = strcmp(node_string(n, "short"), "mask") == 0;
    c->special = node_bool(n, "special");
    if (!model_input_path(n, "tokenizer", &dir, e) || !model_open(&c->model, dir, e))
        return false;
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    if (!tokenizer_open(&c->tokenizer, path, e) ||
        !documents_read(&c->documents, node_string(n, "text"), (enum document_rule)rule, node_string(n, "separator"),
                        node_string(n, "json_key"), e) ||
        !mem_new(&c->split, c->documents.n, e))
        return false;
    memset(c->split, UNUSED, c->documents.n);
    if (c->documents.n_copies)
        node_log(n, "%zu documents are copies of others and are left out", c->documents.n_copies);
    for (int i = 0; i < SETS; i++) {
        struct set *s = &c->sets[deal_order[i]];
        s->wanted = (uint32_t)node_int(n, set_names[deal_order[i]]);
        if (!mem_new(&s->ids, (size_t)s->wanted * c->window, e) || !mem_new(&s->length, s->wanted, e) ||
            !mem_new(&s->document, s->wanted, e))
            return false;
    }
    return true;
}

static bool run(struct node *n, struct err *e)
{
    struct corpus c = {.n = n};
    bool ok = prepare(&c, e) && deal(&c, e);
    for (int i = 0; ok && i < SPLITS; i++)
        ok = c.sets[i].wanted == 0 || write_set(&c, i, e);
    ok = ok && write_documents(&c, e);
    for (int i = 0; i < SPLITS; i++) {
        mem_free(c.sets[i].ids);
        mem_free(c.sets[i].length);
        mem_free(c.sets[i].document);
    }
    mem_free(c.split);
    documents_fini(&c.documents);
    tokenizer_close(c.tokenizer);
    model_close(c.model);
    return ok;
}


/* The text twice (the file, and JSON items of it), the tokenizer, a long document while it is encoded, and the windows.
 * What is wrong with the files is told by the run, which reads them. */
static bool needs(struct node *n, struct needs *out, struct err *e)
{
    struct stat text, vocabulary;
    const char *dir;
    char path[4096];
    uint64_t windows = 0;
    for (int i = 0; i < SETS; i++)
        windows += (uint64_t)node_int(n, set_names[deal_order[i]]);
    if (stat(node_string(n, "text"), &text) != 0)
        return err_errno(e, ERR_INPUT, "%s", node_string(n, "text"));
    if (!model_input_path(n, "tokenizer", &dir, e))
        return false;
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    uint64_t read = stat(path, &vocabulary) == 0 ? (uint64_t)vocabulary.st_size : 0;
    uint64_t size = (uint64_t)text.st_size, longest = size < LONG_DOCUMENT ? size : LONG_DOCUMENT;
    if (strcmp(node_string(n, "documents"), "whole") == 0)
        longest = size;
    *out = (struct needs){.cores = 1, .disk = 1 << 20,
        .memory = ((uint64_t)16 << 20) + 3 * size + ENCODING_BYTES * longest + VOCABULARY_BYTES * read +
                  windows * (uint64_t)node_int(n, "window") * 8};
    return true;
}

const struct node_class node_corpus = {
    .name = "corpus",
    .summary = "text cut into documents and windows: disjoint calibration, selection, report and probe sets",
    .version = 3,
    .ports = (const struct port[]){
        {"tokenizer", MODEL_TYPES, false, false, "the model whose tokenizer.json is used"},
        {0}},
    .params = (const struct param[]){
        {.name = "text", .type = PARAM_SOURCE, .help = "a text file in UTF-8, or JSON (see `documents`)"},
        {.name = "documents", .type = PARAM_ENUM, .fallback = "separator",
         .choices = (const char *const[]){"separator", "heading", "json", "lines", "whole", NULL},
         .help = "where documents end: at a separator line, before a ' = Title = ' heading, a JSON item, a line, "
                 "nowhere"},
        {.name = "separator", .type = PARAM_STRING, .fallback = "<|endoftext|>",
         .help = "the line between documents (documents: separator)"},
        {.name = "json_key", .type = PARAM_STRING, .fallback = "",
         .help = "member that holds the text when JSON items are objects (documents: json)"},
        {.name = "window", .type = PARAM_INT, .fallback = "256", .least = 8, .most = 131072, .unit = "token",
         .help = "length of a window"},
        {.name = "calibration", .type = PARAM_INT, .fallback = "16", .least = 1, .most = 1000000, .unit = "window",
         .help = "windows that renderings are fitted to"},
        {.name = "selection", .type = PARAM_INT, .fallback = "8", .least = 1, .most = 1000000, .unit = "window",
         .help = "windows that candidates are measured and chosen on"},
        {.name = "report", .type = PARAM_INT, .fallback = "16", .least = 1, .most = 1000000, .unit = "window",
         .help = "windows that no choice sees: the published figure"},
        {.name = "probe", .type = PARAM_INT, .fallback = "0", .least = 0, .most = 1000000, .unit = "window",
         .help = "windows that probes see, of other documents than those that renderings are fitted to; 0: none"},
        {.name = "per_document", .type = PARAM_INT, .fallback = "0", .least = 0, .most = 1000000, .unit = "window",
         .help = "most windows taken from one document (its first); 0: all. Fewer gives more documents, hence better "
                 "intervals"},
        {.name = "seed", .type = PARAM_INT, .fallback = "1", .least = 0, .most = 9007199254740991.0,
         .help = "of the hash that deals documents to the sets"},
        {.name = "short", .type = PARAM_ENUM, .fallback = "mask",
         .choices = (const char *const[]){"mask", "skip", NULL},
         .help = "what happens to a piece shorter than a window: kept with its length, or left out"},
        {.name = "least", .type = PARAM_INT, .fallback = "64", .least = 2, .most = 131072, .unit = "token",
         .help = "shortest piece that `short: mask` keeps"},
        {.name = "special", .type = PARAM_BOOL, .fallback = "true",
         .help = "begin each document with what the tokenizer's post-processor adds (a BOS)"},
        {0}},
    .outputs = (const struct output[]){
        {"calibration", "windows that renderings are fitted to"},
        {"selection", "windows that candidates are chosen on"},
        {"report", "windows of the published figure"},
        {"probe", "windows that probes see; there is none where the parameter `probe` is 0"},
        {0}},
    .needs = needs,
    .run = run,
};
