#include "nodes/inspect/report.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LONGEST 400

static const char *const titles[N_CHECKS + 1] = {
    [1] = "tensors, headers, index",
    [2] = "schemes as servers resolve them",
    [3] = "fused groups",
    [4] = "types and shapes",
    [5] = "forbidden tensors",
    [6] = "scales and codes",
    [7] = "decoded weights",
    [8] = "copied tensors",
    [9] = "quantization_config",
    [10] = "other files and settings",
    [11] = "worked examples",
};

const char *report_title(int check) { return titles[check]; }

/* A cut is at the beginning of a character. */
const char *report_clean(struct report *r, const char *text)
{
    size_t n = strlen(text);
    bool cut = n > LONGEST;
    if (cut)
        for (n = LONGEST - 3; n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80;)
            n--;
    char *copy = arena_new(&r->arena, n + 4, NULL);
    if (!copy) {
        r->failed = true;
        return "";
    }
    memcpy(copy, text, n);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)copy[i] < 0x20 || copy[i] == 0x7f)
            copy[i] = '?';
    if (cut)
        memcpy(copy + n, "...", 3);
    return copy;
}

void report_add(struct report *r, int check, enum severity severity, const char *place, const char *expected,
                const char *found, ...)
{
    if (r->checks[check].count[severity]++ >= KEPT_FINDINGS)
        return;
    if (r->n == r->capacity) {
        size_t more = r->capacity ? 2 * r->capacity : 32;
        if (!mem_grow(&r->list, r->capacity, more, NULL)) {
            r->failed = true;
            return;
        }
        r->capacity = more;
    }
    char text[1024];
    va_list args;
    va_start(args, found);
    vsnprintf(text, sizeof text, found, args);
    va_end(args);
    r->list[r->n++] = (struct finding){check, severity, report_clean(r, place), report_clean(r, text),
                                       report_clean(r, expected)};
}

void report_partly(struct report *r, int check, const char *why)
{
    struct check_state *c = &r->checks[check];
    if (c->run == CHECK_RUN)
        *c = (struct check_state){CHECK_PARTLY, why, {c->count[0], c->count[1]}};
}

void report_not_run(struct report *r, int check, const char *why)
{
    struct check_state *c = &r->checks[check];
    if (c->run != CHECK_NOT_RUN)
        *c = (struct check_state){CHECK_NOT_RUN, why, {c->count[0], c->count[1]}};
}

uint64_t report_count(const struct report *r, enum severity severity)
{
    uint64_t sum = 0;
    for (int i = 1; i <= N_CHECKS; i++)
        sum += r->checks[i].count[severity];
    return sum;
}

void report_sort(struct report *r)
{
    struct finding *sorted;
    size_t n = 0;
    if (r->n == 0 || !mem_raw(&sorted, r->n, NULL))
        return; /* unsorted is still complete */
    for (int check = 1; check <= N_CHECKS; check++)
        for (int severity = FINDING_ERROR; severity <= FINDING_WARNING; severity++)
            for (size_t i = 0; i < r->n; i++)
                if (r->list[i].check == check && (int)r->list[i].severity == severity)
                    sorted[n++] = r->list[i];
    mem_free(r->list);
    r->list = sorted;
    r->capacity = r->n;
}

bool report_ok(const struct report *r, struct err *e)
{
    return !r->failed || err_set(e, ERR_RESOURCE, "out of memory for the list of findings");
}

void report_fini(struct report *r)
{
    mem_free(r->list);
    arena_free(&r->arena);
    *r = (struct report){0};
}
