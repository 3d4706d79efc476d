#ifndef NODES_INSPECT_REPORT_H
#define NODES_INSPECT_REPORT_H
/* What the validator found. Checks have the numbers of export-formats section 9; a finding is an error when the
 * checkpoint breaks a rule that loaders or kernels depend on, and a warning when it may be meant. */
#include <stdint.h>

#include "engine/base/mem.h"

#define N_CHECKS 11
#define KEPT_FINDINGS 100 /* of each check and severity; the rest is only counted */

enum severity { FINDING_ERROR, FINDING_WARNING };

struct finding {
    int check; /* 1 to N_CHECKS */
    enum severity severity;
    const char *place, *found, *expected; /* one line each, without control characters */
};

enum check_run { CHECK_RUN, CHECK_PARTLY, CHECK_NOT_RUN };

struct check_state {
    enum check_run run;
    const char *why;    /* it was not run, or not in whole; NULL when it was. In the arena, or static */
    uint64_t count[2];  /* findings by severity, those that were not kept included */
};

struct report {
    struct arena arena;
    struct finding *list; /* kept, in the order found; mem_* */
    size_t n, capacity;
    struct check_state checks[N_CHECKS + 1]; /* [0] unused */
    bool failed;          /* memory was out: the list is incomplete */
};

/* One more finding, as printf says what was found. Not for parallel regions: the order is part of the output. */
void report_add(struct report *r, int check, enum severity severity, const char *place, const char *expected,
                const char *found, ...) __attribute__((format(printf, 6, 7)));
#define report_error(r, check, ...) report_add((r), (check), FINDING_ERROR, __VA_ARGS__)
#define report_warning(r, check, ...) report_add((r), (check), FINDING_WARNING, __VA_ARGS__)
/* `text` in the report's arena, without control characters, and cut where it is long: names come from files, and
 * what is printed must neither steer a terminal nor break a line. */
const char *report_clean(struct report *r, const char *text);
/* The check was run in part, or not at all; `why` is static. The first reason is kept, and a check once not run stays
 * so. */
void report_partly(struct report *r, int check, const char *why);
void report_not_run(struct report *r, int check, const char *why);
/* In a few words, what a check is about. */
const char *report_title(int check);
uint64_t report_count(const struct report *r, enum severity severity);
/* Findings by check, errors before warnings, otherwise in the order found. */
void report_sort(struct report *r);
bool report_ok(const struct report *r, struct err *e) ERR_CHECK; /* ERR_RESOURCE when a finding was lost */
void report_fini(struct report *r);

#endif
