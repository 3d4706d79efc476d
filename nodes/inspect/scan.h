#ifndef NODES_INSPECT_SCAN_H
#define NODES_INSPECT_SCAN_H
/* JSON read from left to right without building a tree, so that what a hostile text costs is bounded by its length: the
 * headers of safetensors files and their index may be large. Any value is either taken apart or skipped; the first
 * mistake ends the reading, with its byte in the message. */
#include <stdint.h>

#include "engine/base/str.h"

struct scan {
    const char *text, *name; /* `name` stands for the text in messages */
    size_t n, at;
    int depth;
    bool failed;
    struct err *e;
};

enum scan_type { SCAN_OBJECT, SCAN_ARRAY, SCAN_STRING, SCAN_NUMBER, SCAN_WORD, SCAN_NOTHING };

/* Texts are borrowed. Fails, as everything after it then does, when the text is not UTF-8. */
void scan_init(struct scan *s, const char *text, size_t n, const char *name, struct err *e);
/* What the next value is; SCAN_NOTHING at the end, and where no value can begin. */
enum scan_type scan_peek(struct scan *s);
/* Into the object or array that is next; false when there is none. Then scan_member or scan_element in a loop. */
bool scan_enter(struct scan *s);
/* Is there another member? Its key goes to `key`, its value is next. *count, 0 before the first, counts members. False
 * at the end of the object and after a mistake. */
bool scan_member(struct scan *s, size_t *count, struct str *key);
bool scan_element(struct scan *s, size_t *count);
/* The string that is next, replacing what is in `out`. */
bool scan_string(struct scan *s, struct str *out);
/* The number that is next; *fits says whether it is an integer of 64 bits. */
bool scan_integer(struct scan *s, int64_t *out, bool *fits);
/* Whatever is next. */
bool scan_skip(struct scan *s);
/* Only white space is left, and nothing failed; else *e says what was wrong. */
bool scan_end(struct scan *s) ERR_CHECK;

#endif
