/* One file of a ledger: its making, its records and their checks. Which rows go where is ledger.c's. */
#include "engine/store/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "engine/base/str.h"
#include "engine/store/h5.h"
#include "engine/store/io.h"
#include "engine/store/sys.h"

#define CAPACITY_FIRST 1024
#define CAPACITY_MOST 65536
#define BYTES_MOST ((uint64_t)256 << 20)
#define SCAN_RECORDS 1024

/* Meaning of header.extra in a segment. */
enum { EXTRA_NUMBER, EXTRA_CAPACITY, EXTRA_SLOTS, EXTRA_ASSIGNMENT, EXTRA_ROWS_AT, EXTRA_SLOTS_AT, EXTRA_CANDIDATES_AT,
       EXTRA_ASSIGNMENTS_AT };

uint64_t segment_capacity(const struct ledger_spec *spec, uint64_t last)
{
    uint64_t capacity = last ? 2 * last : CAPACITY_FIRST;
    uint64_t bytes = sizeof(struct ledger_row) + sizeof(struct segment_candidate) + spec->assignment_bytes +
                     (uint64_t)spec->slots * sizeof(float);
    if (capacity > CAPACITY_MOST)
        capacity = CAPACITY_MOST;
    if (capacity > BYTES_MOST / bytes)
        capacity = BYTES_MOST / bytes;
    return capacity ? capacity : 1;
}

/* ---------------------------------------------------------------------------------- the file, on the libhdf5 thread */

struct making {
    const struct ledger_spec *spec;
    const char *path;
    struct segment *g;
};

static bool insert_bytes(hid_t compound, const char *name, size_t offset, hsize_t n)
{
    hid_t array = H5Tarray_create2(H5T_STD_U8LE, 1, &n);
    bool ok = array >= 0 && H5Tinsert(compound, name, offset, array) >= 0;
    if (array >= 0)
        H5Tclose(array);
    return ok;
}

static hid_t row_type(void)
{
    hid_t t = H5Tcreate(H5T_COMPOUND, sizeof(struct ledger_row));
    if (t < 0)
        return t;
    if (H5Tinsert(t, "seq", offsetof(struct ledger_row, seq), H5T_STD_U64LE) < 0 ||
        !insert_bytes(t, "candidate", offsetof(struct ledger_row, candidate), KEY_BYTES) ||
        H5Tinsert(t, "window", offsetof(struct ledger_row, window), H5T_STD_U32LE) < 0 ||
        H5Tinsert(t, "n_tokens", offsetof(struct ledger_row, n_tokens), H5T_STD_U32LE) < 0 ||
        H5Tinsert(t, "kl_sum", offsetof(struct ledger_row, kl_sum), H5T_IEEE_F64LE) < 0 ||
        H5Tinsert(t, "kl_max", offsetof(struct ledger_row, kl_max), H5T_IEEE_F64LE) < 0 ||
        H5Tinsert(t, "nll_teacher", offsetof(struct ledger_row, nll_teacher), H5T_IEEE_F64LE) < 0 ||
        H5Tinsert(t, "nll_candidate", offsetof(struct ledger_row, nll_candidate), H5T_IEEE_F64LE) < 0 ||
        H5Tinsert(t, "top1", offsetof(struct ledger_row, top1), H5T_STD_U32LE) < 0 ||
        H5Tinsert(t, "slots_crc", offsetof(struct ledger_row, slots_crc), H5T_STD_U32LE) < 0 ||
        !insert_bytes(t, "reserved", offsetof(struct ledger_row, reserved), sizeof((struct ledger_row *)0)->reserved) ||
        H5Tinsert(t, "crc", offsetof(struct ledger_row, crc), H5T_STD_U32LE) < 0) {
        H5Tclose(t);
        return -1;
    }
    return t;
}

static hid_t candidate_type(void)
{
    hid_t t = H5Tcreate(H5T_COMPOUND, sizeof(struct segment_candidate));
    if (t < 0)
        return t;
    if (H5Tinsert(t, "seq", offsetof(struct segment_candidate, seq), H5T_STD_U64LE) < 0 ||
        !insert_bytes(t, "digest", offsetof(struct segment_candidate, digest), KEY_BYTES) ||
        H5Tinsert(t, "assignment_crc", offsetof(struct segment_candidate, assignment_crc), H5T_STD_U32LE) < 0 ||
        !insert_bytes(t, "reserved", offsetof(struct segment_candidate, reserved),
                      sizeof((struct segment_candidate *)0)->reserved) ||
        H5Tinsert(t, "crc", offsetof(struct segment_candidate, crc), H5T_STD_U32LE) < 0) {
        H5Tclose(t);
        return -1;
    }
    return t;
}

/* Reserve one dataset and close its type. */
static bool reserve(hid_t file, const struct h5_dataset *d, uint64_t *at, struct err *e)
{
    if (d->type < 0)
        return h5_fail(e, "cannot make the type of '%s'", d->name);
    bool ok = h5_reserve(file, d, at, e);
    H5Tclose(d->type);
    return ok;
}

static bool reserve_tables(hid_t file, const struct making *m, struct err *e)
{
    struct segment *g = m->g;
    hsize_t rows[2] = {g->capacity, m->spec->slots}, assignments[2] = {g->capacity, m->spec->assignment_bytes};
    return reserve(file, &(struct h5_dataset){.name = "rows", .type = row_type(), .rank = 1, .shape = rows,
                       .unit = "kl_sum, kl_max, nll_teacher, nll_candidate: nat; n_tokens, top1: token", .axes = "row",
                       .description = "one (candidate, window) a row; valid where seq > 0", .dtype = "row"},
                   &g->rows_at, e) &&
           reserve(file, &(struct h5_dataset){.name = "kl", .type = h5_type(DTYPE_F32, 0), .rank = 2, .shape = rows,
                       .unit = "nat", .axes = "row, token", .description = "KL of every scored position of the row",
                       .dtype = "f32"}, &g->slots_at, e) &&
           reserve(file, &(struct h5_dataset){.name = "candidates", .type = candidate_type(), .rank = 1,
                       .shape = assignments, .unit = "1", .axes = "candidate",
                       .description = "digests of the assignments below; valid where seq > 0", .dtype = "candidate"},
                   &g->candidates_at, e) &&
           reserve(file, &(struct h5_dataset){.name = "assignment", .type = h5_type(DTYPE_U8, 0), .rank = 2,
                       .shape = assignments, .unit = "1", .axes = "candidate, unit",
                       .description = "index into the attribute formats, per unit", .dtype = "u8"},
                   &g->assignments_at, e);
}

static bool write_attributes(hid_t file, const struct making *m, struct err *e)
{
    struct str formats = {0};
    char text[KEY_TEXT];
    for (uint32_t i = 0; i < m->spec->n_formats; i++)
        str_printf(&formats, "%s%s", i ? ", " : "", m->spec->formats[i]);
    hid_t root = H5Gopen2(file, "/", H5P_DEFAULT);
    bool ok = root >= 0 ? str_ok(&formats, e) : h5_fail(e, "cannot open the root group");
    ok = ok && h5_set_text(root, "schema", "ledger/1", e) &&
         h5_set_text(root, "context", key_text(&m->spec->context, text), e) &&
         h5_set_text(root, "numeric", m->spec->numeric, e) &&
         h5_set_text(root, "formats", formats.text ? formats.text : "", e) &&
         h5_set_text(root, "row_valid", "seq > 0", e) && h5_set_int(root, "capacity", (int64_t)m->g->capacity, e) &&
         h5_set_int(root, "segment", m->g->number, e);
    if (root >= 0)
        H5Gclose(root);
    str_free(&formats);
    return ok;
}

static bool write_skeleton(void *context, struct err *e)
{
    const struct making *m = context;
    hid_t file = h5_create(m->path, false, e);
    if (file < 0)
        return false;
    bool ok = write_attributes(file, m, e) && reserve_tables(file, m, e);
    if (ok && H5Fflush(file, H5F_SCOPE_GLOBAL) < 0)
        ok = h5_fail(e, "cannot flush");
    if (H5Fclose(file) < 0 && ok)
        ok = h5_fail(e, "cannot close");
    return ok;
}

/* -------------------------------------------------------------------------------------------------- making, opening */

static uint64_t approximate_bytes(const struct ledger_spec *spec, uint64_t capacity)
{
    return HEADER_BYTES + capacity * (sizeof(struct ledger_row) + sizeof(struct segment_candidate) +
                                      spec->assignment_bytes + (uint64_t)spec->slots * sizeof(float));
}

/* Take the space on the disk, so that no later write can meet a full one, and seal the header. */
static bool fill_file(struct segment *g, struct store *s, const struct ledger_spec *spec, struct err *e)
{
    struct header h = {0};
    struct key none = {{0}};
    struct stat st;
    if (fstat(g->fd, &st) < 0)
        return err_errno(e, ERR_IO, "cannot look at the new segment");
    uint64_t bytes = (uint64_t)st.st_size;
    h.extra[EXTRA_NUMBER] = g->number;
    h.extra[EXTRA_CAPACITY] = g->capacity;
    h.extra[EXTRA_SLOTS] = spec->slots;
    h.extra[EXTRA_ASSIGNMENT] = spec->assignment_bytes;
    h.extra[EXTRA_ROWS_AT] = g->rows_at;
    h.extra[EXTRA_SLOTS_AT] = g->slots_at;
    h.extra[EXTRA_CANDIDATES_AT] = g->candidates_at;
    h.extra[EXTRA_ASSIGNMENTS_AT] = g->assignments_at;
    header_seal(&h, HEADER_LEDGER, &spec->context, bytes - HEADER_BYTES, &none);
    if (sys_fallocate(g->fd, bytes) < 0 || !sys_write_at(g->fd, &h, sizeof h, 0) || sys_fchmod(g->fd, 0644) < 0 ||
        sys_fsync(g->fd) < 0)
        return store_write_error(s, "new segment", bytes, e);
    return true;
}

bool segment_new(struct segment *out, struct store *s, const struct ledger_spec *spec, uint32_t number,
                 uint64_t capacity,
                 struct err *e)
{
    struct segment g = {.number = number, .fd = -1, .capacity = capacity};
    char *temporary = NULL, *final = NULL, *folder = NULL, text[KEY_TEXT];
    bool ok = false;
    key_text(&spec->context, text);
    if (!store_format(s, &folder, e, "ledger/%s", text) || !store_temporary(s, &temporary, e) ||
        !store_format(s, &final, e, "ledger/%s/%04" PRIu32 ".h5", text, number))
        goto out;
    if (!io_call(write_skeleton, &(struct making){spec, temporary, &g}, e)) {
        if (h5_disk_full(e))
            store_add_remedy(s, approximate_bytes(spec, capacity), e);
        goto out;
    }
    g.fd = sys_open(temporary, O_RDWR | O_NOFOLLOW, 0);
    if (g.fd < 0) {
        err_errno(e, ERR_IO, "cannot open the new segment");
        goto out;
    }
    if (!fill_file(&g, s, spec, e))
        goto out;
    (void)sys_flock(g.fd, LOCK_SH | LOCK_NB); /* keeps users' r+ away; not a matter of life and death */
    if (sys_rename_new(temporary, final) < 0) {
        store_write_error(s, final, 0, e);
        goto out;
    }
    ok = store_sync_directory(folder, e);
out:
    if (ok) {
        *out = g;
    } else {
        if (temporary)
            unlink(temporary);
        if (g.fd >= 0)
            sys_close(g.fd);
        err_context(e, "ledger %s, segment %" PRIu32, text, number);
    }
    mem_free(temporary);
    mem_free(final);
    mem_free(folder);
    return ok;
}

/* Why a header that matches its CRC still does not describe a segment of this ledger; NULL when it does. */
static const char *check_layout(const struct header *h, const struct ledger_spec *spec, uint32_t number)
{
    const uint64_t *x = h->extra;
    uint64_t end = HEADER_BYTES + h->body_bytes, capacity = x[EXTRA_CAPACITY];
    if (x[EXTRA_NUMBER] != number)
        return "is another segment";
    if (x[EXTRA_SLOTS] != spec->slots || x[EXTRA_ASSIGNMENT] != spec->assignment_bytes)
        return "has rows of another shape";
    const uint64_t at[4] = {x[EXTRA_ROWS_AT], x[EXTRA_SLOTS_AT], x[EXTRA_CANDIDATES_AT], x[EXTRA_ASSIGNMENTS_AT]};
    const uint64_t width[4] = {sizeof(struct ledger_row), (uint64_t)spec->slots * sizeof(float),
                               sizeof(struct segment_candidate), spec->assignment_bytes};
    for (int i = 0; i < 4; i++)
        if (capacity > BYTES_MOST || capacity * width[i] > end || at[i] > end - capacity * width[i])
            return "has tables outside the file";
    return NULL;
}

bool segment_open(struct segment *out, bool *found, struct store *s, const struct ledger_spec *spec, uint32_t number,
                  struct err *e)
{
    struct header h;
    const char *why = NULL, *shorter = NULL;
    struct stat st = {0};
    char path[32 + KEY_TEXT], name[32 + KEY_TEXT], text[KEY_TEXT], *full;
    key_text(&spec->context, text);
    snprintf(path, sizeof path, "ledger/%s/%04" PRIu32 ".h5", text, number);
    snprintf(name, sizeof name, "ledger-%s-%04" PRIu32, text, number);
    if (!store_format(s, &full, e, "%s", path))
        return false;
    int fd = sys_open(full, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
    bool ok = true;
    *found = false;
    if (fd < 0 && errno != ELOOP && errno != EISDIR && errno != ENXIO)
        ok = err_errno(e, ERR_IO, "%s: cannot open", full);
    else if (fd < 0)
        why = "is no file";
    else if (fstat(fd, &st) < 0)
        ok = err_errno(e, ERR_IO, "%s: cannot look at it", full);
    else
        ok = header_read(fd, HEADER_LEDGER, &spec->context, &h, &why, e) &&
             (why || header_check_length(fd, &h, &shorter, e));
    mem_free(full);
    if (ok && !why)
        why = check_layout(&h, spec, number);
    if (!ok || why) {
        if (fd >= 0)
            sys_close(fd);
        return ok && store_quarantine(s, path, name, st.st_ino, why, e);
    }
    (void)sys_flock(fd, LOCK_SH | LOCK_NB);
    *out = (struct segment){.number = number, .fd = fd, .capacity = h.extra[EXTRA_CAPACITY],
                            .rows_at = h.extra[EXTRA_ROWS_AT], .slots_at = h.extra[EXTRA_SLOTS_AT],
                            .candidates_at = h.extra[EXTRA_CANDIDATES_AT],
                            .assignments_at = h.extra[EXTRA_ASSIGNMENTS_AT],
                            /* what is left of a cut file is read, but it is not written on */
                            .sealed = shorter != NULL};
    *found = true;
    return true;
}

void segment_close(struct segment *g)
{
    if (g->fd >= 0)
        sys_close(g->fd);
    g->fd = -1;
}

/* ------------------------------------------------------------------------------------------------- records and CRCs */

static uint32_t crc_of(const void *data, size_t n) { return (uint32_t)crc32(0, data, (uInt)n); }

/* A record's CRC is bound to its ledger and segment, so that a foreign one is not taken for ours. */
static uint32_t record_crc(const void *record, size_t n, const struct ledger_spec *spec, uint32_t number)
{
    uLong crc = crc32(0, record, (uInt)n);
    crc = crc32(crc, spec->context.bytes, KEY_BYTES);
    return (uint32_t)crc32(crc, (const Bytef *)&number, sizeof number);
}

static uint32_t row_crc(const struct ledger_row *r, const struct ledger_spec *spec, uint32_t number)
{
    return record_crc(r, offsetof(struct ledger_row, crc), spec, number);
}

static uint32_t candidate_crc(const struct segment_candidate *c, const struct ledger_spec *spec, uint32_t number)
{
    return record_crc(c, offsetof(struct segment_candidate, crc), spec, number);
}

/* Read n bytes; past the end of a cut file there are zeros, which no check passes. A read that failed says nothing
 * about what is there, so it must not look like a free place: the next append would go over it. */
static bool read_or_zero(const struct segment *g, void *out, size_t n, uint64_t offset, struct err *e)
{
    size_t got;
    if (!sys_read_at(g->fd, out, n, offset, &got))
        return err_errno(e, ERR_IO, "segment %04" PRIu32 " cannot be read (it is as it was; if the disk has lost it, "
                                    "move its file away, and its rows are measured again)", g->number);
    memset((char *)out + got, 0, n - got);
    return true;
}

bool segment_scan_candidates(struct segment *g, const struct ledger_spec *spec,
                             bool (*each)(void *context, const struct segment_candidate *c, struct err *e),
                                 void *context,
                             struct err *e)
{
    struct segment_candidate *block = NULL;
    uint8_t *assignment = NULL;
    bool ok = mem_new(&block, SCAN_RECORDS, e) && mem_new(&assignment, spec->assignment_bytes + 1, e);
    g->n_candidates = 0;
    for (uint64_t first = 0; ok && first < g->capacity; first += SCAN_RECORDS) {
        uint64_t n = g->capacity - first < SCAN_RECORDS ? g->capacity - first : SCAN_RECORDS;
        ok = read_or_zero(g, block, n * sizeof *block, g->candidates_at + first * sizeof *block, e);
        for (uint64_t i = 0; ok && i < n; i++) {
            const struct segment_candidate *c = &block[i];
            if (c->seq != first + i + 1 || c->crc != candidate_crc(c, spec, g->number))
                continue;
            g->n_candidates = c->seq;
            ok = read_or_zero(g, assignment, spec->assignment_bytes,
                              g->assignments_at + (c->seq - 1) * spec->assignment_bytes, e);
            if (ok && c->assignment_crc == crc_of(assignment, spec->assignment_bytes))
                ok = each(context, c, e);
        }
    }
    mem_free(assignment);
    mem_free(block);
    return ok;
}

bool segment_scan_rows(struct segment *g, const struct ledger_spec *spec,
                       bool (*each)(void *context, const struct ledger_row *r, struct err *e), void *context,
                       uint64_t *damaged, struct err *e)
{
    struct ledger_row *block = NULL;
    float *slots = NULL;
    size_t slot_bytes = (size_t)spec->slots * sizeof *slots;
    bool ok = mem_new(&block, SCAN_RECORDS, e) && mem_new(&slots, (size_t)spec->slots + 1, e);
    g->n_rows = 0;
    for (uint64_t first = 0; ok && first < g->capacity; first += SCAN_RECORDS) {
        uint64_t n = g->capacity - first < SCAN_RECORDS ? g->capacity - first : SCAN_RECORDS;
        ok = read_or_zero(g, block, n * sizeof *block, g->rows_at + first * sizeof *block, e);
        for (uint64_t i = 0; ok && i < n; i++) {
            const struct ledger_row *r = &block[i];
            if (r->seq != first + i + 1 || r->crc != row_crc(r, spec, g->number)) {
                *damaged += r->seq != 0;
                continue;
            }
            g->n_rows = r->seq;
            ok = read_or_zero(g, slots, slot_bytes, g->slots_at + (r->seq - 1) * slot_bytes, e);
            if (ok && r->slots_crc == crc_of(slots, slot_bytes))
                ok = each(context, r, e);
            else
                *damaged += ok;
        }
    }
    mem_free(slots);
    mem_free(block);
    return ok;
}

bool segment_read_slots(const struct segment *g, const struct ledger_spec *spec, const struct ledger_row *r, float *out)
{
    size_t bytes = (size_t)spec->slots * sizeof *out, got;
    return sys_read_at(g->fd, out, bytes, g->slots_at + (r->seq - 1) * bytes, &got) && got == bytes &&
           crc_of(out, bytes) == r->slots_crc;
}

bool segment_append(struct segment *g, const struct ledger_spec *spec, struct ledger_row *rows, const float *slots,
                    size_t n,
                    struct segment_candidate *candidates, const uint8_t *const *assignments, size_t m)
{
    size_t slot_bytes = (size_t)spec->slots * sizeof *slots;
    for (size_t i = 0; i < n; i++) {
        rows[i].seq = g->n_rows + i + 1;
        memset(rows[i].reserved, 0, sizeof rows[i].reserved);
        rows[i].slots_crc = crc_of(slot_bytes ? (const char *)slots + i * slot_bytes : NULL, slot_bytes);
        rows[i].crc = row_crc(&rows[i], spec, g->number);
    }
    if (!sys_write_at(g->fd, slots, n * slot_bytes, g->slots_at + g->n_rows * slot_bytes))
        return false;
    for (size_t i = 0; i < m; i++) {
        struct segment_candidate *c = &candidates[i];
        c->seq = g->n_candidates + i + 1;
        c->assignment_crc = crc_of(assignments[i], spec->assignment_bytes);
        c->crc = candidate_crc(c, spec, g->number);
        if (!sys_write_at(g->fd, assignments[i], spec->assignment_bytes,
                          g->assignments_at + (c->seq - 1) * spec->assignment_bytes))
            return false;
    }
    if (m > 0 && !sys_write_at(g->fd, candidates, m * sizeof *candidates,
                               g->candidates_at + g->n_candidates * sizeof *candidates))
        return false;
    if (!sys_write_at(g->fd, rows, n * sizeof *rows, g->rows_at + g->n_rows * sizeof *rows) || sys_fdatasync(g->fd) < 0)
        return false;
    g->n_rows += n;
    g->n_candidates += m;
    return true;
}

/* -------------------------------------------------------------------------------------------------------- verifying */

static bool count_row(void *context, const struct ledger_row *r, struct err *e)
{
    (void)r, (void)e;
    ++*(uint64_t *)context;
    return true;
}

bool ledger_verify(struct store *s, const char *segment, uint64_t *rows, uint64_t *damaged, struct err *e)
{
    struct header h;
    const char *why = NULL;
    char *full;
    if (!store_format(s, &full, e, "%s", segment))
        return false;
    int fd = sys_open(full, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
    bool ok = fd >= 0 || err_errno(e, ERR_IO, "%s: cannot open", full);
    ok = ok && header_read(fd, HEADER_LEDGER, NULL, &h, &why, e) && (why || header_check_length(fd, &h, &why, e));
    struct ledger_spec spec = {0};
    if (ok && !why) {
        spec.context = h.key;
        spec.slots = (uint32_t)h.extra[EXTRA_SLOTS];
        spec.assignment_bytes = (uint32_t)h.extra[EXTRA_ASSIGNMENT];
        if (h.extra[EXTRA_SLOTS] > UINT32_MAX / sizeof(float) || h.extra[EXTRA_ASSIGNMENT] > UINT32_MAX)
            why = "has rows of another shape";
    }
    if (ok && !why)
        why = check_layout(&h, &spec, (uint32_t)h.extra[EXTRA_NUMBER]);
    if (ok && why)
        ok = err_set(e, ERR_INPUT, "%s: %s", full, why);
    if (ok) {
        struct segment g = {.number = (uint32_t)h.extra[EXTRA_NUMBER], .fd = fd, .capacity = h.extra[EXTRA_CAPACITY],
                            .rows_at = h.extra[EXTRA_ROWS_AT], .slots_at = h.extra[EXTRA_SLOTS_AT]};
        *rows = *damaged = 0;
        ok = segment_scan_rows(&g, &spec, count_row, rows, damaged, e);
    }
    if (fd >= 0)
        sys_close(fd);
    mem_free(full);
    return ok;
}
