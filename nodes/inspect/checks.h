#ifndef NODES_INSPECT_CHECKS_H
#define NODES_INSPECT_CHECKS_H
/* The checks of export-formats 9, and what they share. Each adds its findings to subject->report; those that can
 * fail do so only for memory. */
#include "nodes/inspect/inspect.h"
#include "nodes/inspect/origin.h"

#define WORTH_THREADS ((uint64_t)1 << 20) /* bytes of tensors */

struct subject {
    const struct inspect_options *options;
    struct files files;
    json_t *config;            /* config.json; NULL: it cannot be read */
    struct quant quant;
    struct matcher *matcher;   /* NULL: not quantized */
    struct modules modules;
    struct origin origin;
    struct arena arena;
    struct report *report;
};

/* A member of config.json, or of its text_config where it is not at the top; NULL when absent or null. */
const json_t *subject_setting(const struct subject *s, const char *key);
/* 2: what is claimed of every module, then, behind module_classify, whether its tensors agree. */
bool check_claims(struct subject *s, struct err *e) ERR_CHECK;
bool check_schemes(struct subject *s, struct err *e) ERR_CHECK;
/* 1: every tensor of the source is there, and no other. */
void check_accounts(struct subject *s);
/* 1, 4, 5: the tensors of each module. */
void check_structure(struct subject *s);
/* 3: fused groups and layers of experts. */
void check_fused(struct subject *s);
/* 6, 7: codes, scales, decoded weights. The errors go to out[unit] when there is a source. */
bool check_values(struct subject *s, struct inspect_unit *out, struct err *e) ERR_CHECK;
/* 8: what is copied. */
bool check_copies(struct subject *s, struct err *e) ERR_CHECK;
/* 9: what scout.json claims. */
void check_budget(struct subject *s);
/* 10: the other files and settings. */
bool check_surroundings(struct subject *s, struct err *e) ERR_CHECK;

#endif
