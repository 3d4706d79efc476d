#ifndef TESTS_ROW_CHECK_H
#define TESTS_ROW_CHECK_H
/* Rows for the tests of ledgers: everything in row number i follows from i. Nothing of cmocka here, so that a child
 * process can use it too. */
#include "tests/engine/store/store_check.h"

#define UNITS 13
#define SLOTS 7

static const char *const row_formats[] = {"bf16", "fp8", "nvfp4"};

static inline struct ledger_spec spec_of(unsigned context)
{
    return (struct ledger_spec){.context = sample_key(context), .numeric = "fp32 cpu", .assignment_bytes = UNITS,
                                .slots = SLOTS, .formats = row_formats, .n_formats = COUNT(row_formats)};
}

/* Row number i: its candidate, window and values all follow from i. Five windows a candidate. */
static inline void make_row(unsigned i, struct ledger_row *r, float *slots, uint8_t *assignment)
{
    struct key k;
    unsigned candidate = i / 5;
    for (unsigned u = 0; u < UNITS; u++)
        assignment[u] = (uint8_t)(u < 4 ? candidate >> 8 * u & 0xff : (candidate * 7 + u) % 3);
    EVP_Digest(assignment, UNITS, k.bytes, NULL, EVP_sha256(), NULL);
    *r = (struct ledger_row){.window = i % 5, .n_tokens = SLOTS, .kl_sum = i * 0.5, .kl_max = i * 0.25,
                             .nll_teacher = i, .nll_candidate = i + 0.125, .top1 = i % SLOTS};
    memcpy(r->candidate, k.bytes, KEY_BYTES);
    for (unsigned t = 0; t < SLOTS; t++)
        slots[t] = (float)i + (float)t / 8;
}

static inline bool append_rows(struct ledger *l, unsigned first, unsigned n, struct err *e)
{
    struct ledger_row *rows = calloc(n, sizeof *rows);
    float *slots = calloc(n * SLOTS, sizeof *slots);
    uint8_t *assignments = calloc(n, UNITS);
    for (unsigned i = 0; i < n; i++)
        make_row(first + i, &rows[i], slots + i * SLOTS, assignments + i * UNITS);
    bool ok = ledger_append(l, rows, slots, assignments, n, e);
    free(rows);
    free(slots);
    free(assignments);
    return ok;
}

/* 1: there with the right values; 0: absent; -1: there and wrong. */
static inline int row_state(struct ledger *l, unsigned i)
{
    struct ledger_row wanted, got;
    float slots[SLOTS], found[SLOTS];
    uint8_t assignment[UNITS];
    make_row(i, &wanted, slots, assignment);
    if (!ledger_find(l, wanted.candidate, wanted.window, &got, found))
        return 0;
    return got.kl_sum == wanted.kl_sum && got.kl_max == wanted.kl_max && got.nll_teacher == wanted.nll_teacher &&
                   got.nll_candidate == wanted.nll_candidate && got.top1 == wanted.top1 &&
                   got.n_tokens == wanted.n_tokens && memcmp(found, slots, sizeof slots) == 0
               ? 1 : -1;
}

#endif
