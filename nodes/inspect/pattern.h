#ifndef NODES_INSPECT_PATTERN_H
#define NODES_INSPECT_PATTERN_H
/* Regular expressions of targets, with the meaning of Python's re.match: anchored at the start and not at the end.
 * What Python refuses is refused, and matching is limited, so that no pattern takes memory or time without bound. */
#include "engine/base/err.h"

struct pattern;

/* `text` is what stands behind "re:", UTF-8. ERR_INPUT says why it is none; ERR_RESOURCE: memory is out. */
bool pattern_new(struct pattern **out, const char *text, struct err *e) ERR_CHECK;
/* Does it match at the start of `name`? A pattern that exceeds its limits matches nothing from then on, and
 * pattern_gave_up is true. */
bool pattern_matches(struct pattern *p, const char *name);
bool pattern_gave_up(const struct pattern *p);
void pattern_free(struct pattern *p);

#endif
