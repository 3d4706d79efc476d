#ifndef NODES_MODEL_TOKENS_H
#define NODES_MODEL_TOKENS_H
/* A token set: the windows of one output of a corpus. Window w has `window` slots, of which length[w] are real; all
 * real positions but the last are scored (the last has no next token). */
#include "engine/node.h"

struct token_set {
    uint32_t n;           /* windows */
    uint32_t window;      /* slots per window */
    int32_t *ids;         /* [window, slot]; slots past the length hold 0 */
    int32_t *length;      /* [window], at least 2 */
    uint32_t *document;   /* [window] */
    char digest[KEY_TEXT];/* of ids and lengths: two equal sets have equal digests */
};
/* From an input that names an output of a corpus. */
bool tokens_read(struct token_set *out, const struct input *in, struct err *e) ERR_CHECK;
void tokens_fini(struct token_set *t);
static inline uint32_t tokens_scored(const struct token_set *t, uint32_t w) { return (uint32_t)t->length[w] - 1; }

#endif
