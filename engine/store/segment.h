#ifndef ENGINE_STORE_SEGMENT_H
#define ENGINE_STORE_SEGMENT_H
/* One file of a ledger: an HDF5 file whose four datasets have their space on the disk from the start and are filled by
 * plain writes. It never changes size, and none of its HDF5 metadata ever changes, so any reader may open it at any
 * time. Where the data lies stands in the header too: we never need libhdf5 to read it. */
#include "engine/store/store_private.h"

struct segment {
    uint32_t number;
    int fd;
    bool sealed; /* nothing is appended any more */
    uint64_t capacity; /* rows, and candidates */
    uint64_t n_rows, n_candidates; /* where the next ones go */
    uint64_t rows_at, slots_at, candidates_at, assignments_at; /* bytes in the file */
};

/* A line of the table of candidates, as on disk. */
struct segment_candidate {
    uint64_t seq; /* 1 + index; 0: not written */
    uint8_t digest[KEY_BYTES];
    uint32_t assignment_crc;
    uint8_t reserved[16];
    uint32_t crc; /* of the bytes before it, the context key and the segment number */
};
_Static_assert(sizeof(struct ledger_row) == 128 && sizeof(struct segment_candidate) == 64,
               "records must not straddle sectors");

/* Rows that a new segment gets when the last one had `last` (0: none). */
uint64_t segment_capacity(const struct ledger_spec *spec, uint64_t last);
/* Make and publish segment `number`. */
bool segment_new(struct segment *out, struct store *s, const struct ledger_spec *spec, uint32_t number,
                 uint64_t capacity,
                 struct err *e) ERR_CHECK;
/* Open an existing one. *found false: its header is damaged or speaks of another ledger, and it was set aside. */
bool segment_open(struct segment *out, bool *found, struct store *s, const struct ledger_spec *spec, uint32_t number,
                  struct err *e) ERR_CHECK;
void segment_close(struct segment *g);

/* Call `each` with every candidate, or row, of the segment that is whole: its own CRC and that of its assignment, or of
 * its slots. Sets n_candidates, n_rows to behind the last one, and adds the rows that were written and are not whole to
 * *damaged. A read that fails is an error. */
bool segment_scan_candidates(struct segment *g, const struct ledger_spec *spec,
                             bool (*each)(void *context, const struct segment_candidate *c, struct err *e),
                             void *context, struct err *e) ERR_CHECK;
bool segment_scan_rows(struct segment *g, const struct ledger_spec *spec,
                       bool (*each)(void *context, const struct ledger_row *r, struct err *e), void *context,
                       uint64_t *damaged, struct err *e) ERR_CHECK;

/* Put n rows and their slots behind the last, and first the m candidates (their digests set) with their assignments;
 * fills in seq and CRCs. There must be room. Durable when it returns true; else errno says why and the counts are as
 * before. */
bool segment_append(struct segment *g, const struct ledger_spec *spec, struct ledger_row *rows, const float *slots,
                    size_t n,
                    struct segment_candidate *candidates, const uint8_t *const *assignments, size_t m) ERR_CHECK;
/* Slots of the row with that seq; false when they cannot be read or do not match its CRC. */
bool segment_read_slots(const struct segment *g, const struct ledger_spec *spec, const struct ledger_row *r,
                        float *out) ERR_CHECK;

#endif
