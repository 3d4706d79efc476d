#ifndef ENGINE_STORE_ROW_TABLE_H
#define ENGINE_STORE_ROW_TABLE_H
/* The rows of a ledger in memory, by (candidate, window). Zero-initialise it; the caller does the locking. */
#include "engine/store/store.h"

struct row_entry {
    struct ledger_row row; /* seq 0: dropped, and absent since */
    uint32_t segment;      /* where it lies; the caller's number */
};
struct row_table {
    struct row_entry *entries;
    size_t n_entries, room, n_alive; /* n_alive: those not dropped */
    uint32_t *places; /* 1 + index in entries, 0: free; open addressing */
    size_t n_places;  /* a power of two, at least twice `room` */
};

/* Make room for n more rows, so that adding them cannot fail. */
bool row_table_reserve(struct row_table *t, size_t n, struct err *e) ERR_CHECK;
/* There must be room. The same row again takes the place of the old one. */
void row_table_add(struct row_table *t, const struct ledger_row *r, uint32_t segment);
/* The row if it is there, or NULL; borrowed until the next reserve. */
const struct row_entry *row_table_find(const struct row_table *t, const uint8_t candidate[KEY_BYTES], uint32_t window);
/* Forget a row that is there. */
void row_table_drop(struct row_table *t, const uint8_t candidate[KEY_BYTES], uint32_t window);
void row_table_free(struct row_table *t);

#endif
