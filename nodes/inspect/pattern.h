#ifndef NODES_INSPECT_PATTERN_H
#define NODES_INSPECT_PATTERN_H
/* Regular expressions of targets, with the meaning of Python's re.match: anchored at the start and not at the end.
 * What Python refuses is refused, and matching is limited, so that no pattern takes memory or time without bound. */
#include "engine/base/err.h"

struct pattern;

/* `text` is what stands behind "re:", UTF-8. ERR_INPUT says why it is none; ERR_RESOURCE: memory is out. */
bool pattern_new(struct pattern **out, const char *text, struct err *e) ERR_CHECK;
/* Does it match at the start of `name`? A pattern that exceeds its limits, or finds no memory, matches nothing from
 * then on, and pattern_state says so. */
bool pattern_matches(struct pattern *p, const char *name);
enum pattern_state { PATTERN_FINE, PATTERN_GAVE_UP, PATTERN_NO_MEMORY };
enum pattern_state pattern_state(const struct pattern *p);
void pattern_free(struct pattern *p);

#endif
