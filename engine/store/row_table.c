#include "engine/store/row_table.h"

#include <inttypes.h>
#include <string.h>

/* The place of (candidate, window): of its entry, or where it would go. Candidates are digests, so their first bytes
 * are a hash already. */
static size_t place_of(const struct row_table *t, const uint8_t candidate[KEY_BYTES], uint32_t window)
{
    uint64_t hash;
    memcpy(&hash, candidate, sizeof hash);
    hash += (uint64_t)window * UINT64_C(0x9e3779b97f4a7c15);
    size_t at = (size_t)(hash ^ hash >> 32) & (t->n_places - 1);
    for (; t->places[at]; at = (at + 1) & (t->n_places - 1)) {
        const struct ledger_row *r = &t->entries[t->places[at] - 1].row;
        if (r->window == window && memcmp(r->candidate, candidate, KEY_BYTES) == 0)
            break;
    }
    return at;
}

bool row_table_reserve(struct row_table *t, size_t n, struct err *e)
{
    size_t room = t->room ? t->room : 256;
    uint32_t *places;
    while (room < t->n_entries + n)
        room *= 2;
    if (room == t->room)
        return true;
    if (room > UINT32_MAX / 4)
        return err_set(e, ERR_RESOURCE, "a ledger holds at most %" PRIu32 " rows in memory", UINT32_MAX / 4);
    if (!mem_new(&places, 2 * room, e))
        return false;
    if (!mem_grow(&t->entries, t->room, room, e)) {
        mem_free(places);
        return false;
    }
    mem_free(t->places);
    t->places = places;
    t->n_places = 2 * room;
    t->room = room;
    for (size_t i = 0; i < t->n_entries; i++)
        t->places[place_of(t, t->entries[i].row.candidate, t->entries[i].row.window)] = (uint32_t)i + 1;
    return true;
}

void row_table_add(struct row_table *t, const struct ledger_row *r, uint32_t segment)
{
    size_t at = place_of(t, r->candidate, r->window);
    if (!t->places[at])
        t->places[at] = (uint32_t)++t->n_entries;
    struct row_entry *x = &t->entries[t->places[at] - 1];
    t->n_alive += x->row.seq == 0;
    *x = (struct row_entry){*r, segment};
}

static struct row_entry *find(const struct row_table *t, const uint8_t candidate[KEY_BYTES], uint32_t window)
{
    if (!t->n_entries)
        return NULL;
    uint32_t i = t->places[place_of(t, candidate, window)];
    return i && t->entries[i - 1].row.seq ? &t->entries[i - 1] : NULL;
}

const struct row_entry *row_table_find(const struct row_table *t, const uint8_t candidate[KEY_BYTES], uint32_t window)
{
    return find(t, candidate, window);
}

void row_table_drop(struct row_table *t, const uint8_t candidate[KEY_BYTES], uint32_t window)
{
    struct row_entry *x = find(t, candidate, window);
    if (!x)
        return;
    x->row.seq = 0;
    t->n_alive--;
}

void row_table_free(struct row_table *t)
{
    mem_free(t->entries);
    mem_free(t->places);
    *t = (struct row_table){0};
}
