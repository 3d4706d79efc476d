/* The object of a node whose result is a model: every tensor's bytes are read once and hashed, and a NaN or an infinity
 * anywhere is found now and not after hours. */
#include "nodes/model/describe.h"

#include <inttypes.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#define PIECE ((uint64_t)8 << 20) /* bytes read at a time; a multiple of every dtype's size */

/* ----------------------------------------------------------------------------------------------------- every tensor */

/* Index of the first of n values that is NaN or infinite, or n. `mask` is the exponent's bits: all ones says so. */
#define FIRST_BROKEN(name, type)                                                                                       \
    static uint64_t name(const void *data, uint64_t n, type mask)                                                      \
    {                                                                                                                  \
        const type *x = data;                                                                                          \
        type any = 0;                                                                                                  \
        for (uint64_t i = 0; i < n; i++)                                                                               \
            any |= (type)((x[i] & mask) == mask);                                                                      \
        uint64_t at = any ? 0 : n;                                                                                     \
        while (at < n && (x[at] & mask) != mask)                                                                       \
            at++;                                                                                                      \
        return at;                                                                                                     \
    }
FIRST_BROKEN(first_broken_64, uint64_t)
FIRST_BROKEN(first_broken_32, uint32_t)
FIRST_BROKEN(first_broken_16, uint16_t)
FIRST_BROKEN(first_broken_8, uint8_t)

/* n values of any dtype; those that are no floats are never broken. `piece` is aligned to 64 bytes. */
static uint64_t first_broken(enum dtype t, const void *piece, uint64_t n)
{
    switch (t) {
    case DTYPE_F64: return first_broken_64(piece, n, UINT64_C(0x7ff0000000000000));
    case DTYPE_F32: return first_broken_32(piece, n, 0x7f800000u);
    case DTYPE_BF16: return first_broken_16(piece, n, 0x7f80u);
    case DTYPE_F16: return first_broken_16(piece, n, 0x7c00u);
    case DTYPE_F8_E4M3: return first_broken_8(piece, n, 0x7fu); /* has NaN but no infinity */
    case DTYPE_F8_E8M0: return first_broken_8(piece, n, 0xffu); /* likewise */
    default: return n;
    }
}

/* "NaN" or "infinity", for a value that is one of them. */
static const char *broken_kind(enum dtype t, const unsigned char *value)
{
    double d;
    float f;
    memcpy(&d, value, t == DTYPE_F64 ? sizeof d : 0);
    if (t == DTYPE_F64)
        return d != d ? "NaN" : "infinity";
    return !dtype_to_f32(t, value, 1, &f, NULL) || f != f ? "NaN" : "infinity";
}

static bool check_piece(const struct st_tensor *t, uint64_t first, const unsigned char *piece, uint64_t bytes,
                        struct err *e)
{
    uint64_t size = dtype_bytes(t->dtype), n = bytes / size, at = first_broken(t->dtype, piece, n);
    if (at == n)
        return true;
    uint64_t columns = t->rank > 0 ? (uint64_t)t->shape[t->rank - 1] : 1, index = first / size + at;
    return err_set(e, ERR_NUMERIC, "tensor '%s' holds %s at row %" PRIu64 ", column %" PRIu64
                   "; only finite weights can be quantized", t->name, broken_kind(t->dtype, piece + at * size),
                   index / columns, index % columns);
}

/* What a pass over all tensors carries. */
struct reading {
    struct node *node;
    const struct safetensors *files;
    EVP_MD_CTX *hash;
    unsigned char *piece; /* [PIECE] */
    uint64_t done, total; /* bytes */
};

/* Hash and check one tensor; its digest as hex. */
static bool read_tensor(struct reading *r, const struct st_tensor *t, char digest[KEY_TEXT], struct err *e)
{
    struct key key;
    unsigned length = 0;
    if (EVP_DigestInit_ex(r->hash, EVP_sha256(), NULL) != 1)
        return err_set(e, ERR_RESOURCE, "libcrypto cannot start a SHA-256");
    for (uint64_t first = 0; first < t->bytes; first += PIECE) {
        uint64_t n = t->bytes - first < PIECE ? t->bytes - first : PIECE;
        if (node_stopping(r->node))
            return node_stopped(e);
        safetensors_ahead(r->files, t, first + n, 4 * PIECE);
        if (!safetensors_read(r->files, t, first, n, r->piece, e) || !check_piece(t, first, r->piece, n, e))
            return false;
        if (EVP_DigestUpdate(r->hash, r->piece, n) != 1)
            return err_set(e, ERR_RESOURCE, "libcrypto cannot go on with a SHA-256");
        r->done += n;
        node_progress(r->node, (double)r->done, (double)r->total, "byte");
    }
    if (EVP_DigestFinal_ex(r->hash, key.bytes, &length) != 1 || length != KEY_BYTES)
        return err_set(e, ERR_RESOURCE, "libcrypto cannot finish a SHA-256");
    key_text(&key, digest);
    return true;
}

static int by_place(const void *a, const void *b)
{
    const struct st_tensor *x = *(const struct st_tensor *const *)a, *y = *(const struct st_tensor *const *)b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

/* Digests in the order of files->tensors; read in the order of the files. */
static bool read_tensors(struct reading *r, const struct st_tensor **sorted, char (*digests)[KEY_TEXT], struct err *e)
{
    size_t n = r->files->n_tensors;
    for (size_t i = 0; i < n; i++) {
        sorted[i] = &r->files->tensors[i];
        r->total += sorted[i]->bytes;
    }
    qsort(sorted, n, sizeof *sorted, by_place);
    for (size_t i = 0; i < n; i++)
        if (!read_tensor(r, sorted[i], digests[sorted[i] - r->files->tensors], e))
            return false;
    return true;
}

/* ------------------------------------------------------------------------------------------------------- the object */

static bool add_column(struct writer *w, const char *name, enum dtype t, int n, const char *axes,
                       const char *description, const void *data, struct err *e)
{
    const struct dataset d = {.name = name, .dtype = t, .rank = 1, .shape = {(uint64_t)n}, .unit = "1", .axes = axes,
                              .description = description};
    return writer_add(w, &d, data, e);
}

/* Columns as wide as the longest table. */
struct columns {
    const char **names, **texts;
    int32_t *numbers;
    int64_t *rows, *widths;
    uint64_t *parameters;
};

static bool write_units(const struct model *m, const struct columns *c, struct writer *w, struct err *e)
{
    for (int u = 0; u < m->n_units; u++) {
        c->names[u] = m->units[u].name;
        c->numbers[u] = m->units[u].layer;
        c->parameters[u] = m->units[u].parameters;
        c->rows[u] = m->units[u].n;
        c->widths[u] = m->units[u].k;
    }
    return writer_add_strings(w, "units/name", c->names, (size_t)m->n_units, "unit", "unit names", e) &&
           add_column(w, "units/layer", DTYPE_I32, m->n_units, "unit", "ordinal of the layer", c->numbers, e) &&
           add_column(w, "units/parameters", DTYPE_U64, m->n_units, "unit", "weights of the unit", c->parameters, e) &&
           add_column(w, "units/rows", DTYPE_I64, m->n_units, "unit", "out features of its matrices together", c->rows,
                      e) &&
           add_column(w, "units/columns", DTYPE_I64, m->n_units, "unit", "in features", c->widths, e);
}

static bool write_matrices(const struct model *m, const struct columns *c, struct writer *w, struct err *e)
{
    for (int i = 0; i < m->n_matrices; i++) {
        c->names[i] = m->matrices[i].name;
        c->numbers[i] = m->matrices[i].unit;
        c->rows[i] = m->matrices[i].n;
        c->widths[i] = m->matrices[i].k;
    }
    return writer_add_strings(w, "matrices/name", c->names, (size_t)m->n_matrices, "matrix", "module names", e) &&
           add_column(w, "matrices/unit", DTYPE_I32, m->n_matrices, "matrix", "index of the unit", c->numbers, e) &&
           add_column(w, "matrices/rows", DTYPE_I64, m->n_matrices, "matrix", "out features", c->rows, e) &&
           add_column(w, "matrices/columns", DTYPE_I64, m->n_matrices, "matrix", "in features", c->widths, e);
}

static bool write_tensors(const struct model *m, const struct columns *c, char (*digests)[KEY_TEXT], struct writer *w,
                          struct err *e)
{
    size_t n = m->files->n_tensors;
    for (size_t i = 0; i < n; i++)
        c->names[i] = m->files->tensors[i].name;
    bool ok = writer_add_strings(w, "tensors/name", c->names, n, "tensor", "tensors of the source, by name", e);
    for (size_t i = 0; i < n; i++)
        c->texts[i] = dtype_info(m->files->tensors[i].dtype)->name;
    ok = ok && writer_add_strings(w, "tensors/dtype", c->texts, n, "tensor", "number format", e);
    for (size_t i = 0; i < n; i++)
        c->texts[i] = digests[i];
    return ok && writer_add_strings(w, "tensors/digest", c->texts, n, "tensor", "SHA-256 of the tensor's bytes", e);
}

static bool write_attributes(const struct model *m, struct writer *w, struct err *e)
{
    return writer_text(w, "model_type", m->config.model_type, e) && writer_int(w, "hidden", m->config.hidden, e) &&
           writer_int(w, "layers", m->config.layers, e) && writer_int(w, "vocab", m->config.vocab, e) &&
           writer_text(w, "head", m->head_unit >= 0 ? "unit" : "plain", e) &&
           writer_int(w, "n_parameters", (int64_t)model_parameters(m), e);
}

/* ----------------------------------------------------------------------------------------------------- entry points */

bool describe_model(struct node *n, const struct model *m, struct err *e)
{
    struct arena scratch = {0};
    struct reading r = {.node = n, .files = m->files};
    struct writer *w = node_output(n);
    size_t rows = m->files->n_tensors + (size_t)m->n_matrices;
    char (*digests)[KEY_TEXT] = arena_new(&scratch, rows * sizeof *digests, e);
    const struct st_tensor **sorted = digests ? arena_new(&scratch, rows * sizeof *sorted, e) : NULL;
    struct columns c = {0};
    c.names = sorted ? arena_new(&scratch, rows * sizeof *c.names, e) : NULL;
    c.texts = c.names ? arena_new(&scratch, rows * sizeof *c.texts, e) : NULL;
    c.numbers = c.texts ? arena_new(&scratch, rows * sizeof *c.numbers, e) : NULL;
    c.rows = c.numbers ? arena_new(&scratch, rows * sizeof *c.rows, e) : NULL;
    c.widths = c.rows ? arena_new(&scratch, rows * sizeof *c.widths, e) : NULL;
    c.parameters = c.widths ? arena_new(&scratch, rows * sizeof *c.parameters, e) : NULL;
    bool ok = c.parameters && mem_raw(&r.piece, PIECE, e);
    if (ok) {
        r.hash = EVP_MD_CTX_new();
        ok = r.hash || err_set(e, ERR_RESOURCE, "out of memory for a SHA-256");
    }
    ok = ok && read_tensors(&r, sorted, digests, e) && write_attributes(m, w, e) && write_units(m, &c, w, e) &&
         write_matrices(m, &c, w, e) && write_tensors(m, &c, digests, w, e);
    EVP_MD_CTX_free(r.hash);
    arena_free(&scratch);
    mem_free(r.piece);
    return ok;
}

void describe_needs(const struct model *m, struct needs *out)
{
    uint64_t rows = m->files->n_tensors + (uint64_t)m->n_matrices;
    out->memory += PIECE + (16 << 20) + rows * 1024;
    out->disk += (1 << 20) + rows * 256;
}
