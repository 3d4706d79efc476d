#ifndef NODES_MODEL_TOKENIZER_H
#define NODES_MODEL_TOKENIZER_H
/* tokenizer.json: byte-level BPE and SentencePiece-style BPE, giving exactly the ids that the `tokenizers` library
 * gives. What the file asks for and we do not do is refused by name. Immutable once open; encoding is thread safe. */
#include <stdint.h>

#include "engine/base/mem.h"

struct tokenizer;

bool tokenizer_open(struct tokenizer **out, const char *path, struct err *e) ERR_CHECK;
void tokenizer_close(struct tokenizer *t);
/* Number of ids: one more than the largest. */
int tokenizer_size(const struct tokenizer *t);
/* Encode n bytes of UTF-8. `special` adds what the post-processor adds (a BOS). *ids is fresh memory (mem_free), also
 * when empty. Invalid UTF-8 is ERR_INPUT with the byte offset. */
bool tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, bool special, int32_t **ids, size_t *count,
                      struct err *e) ERR_CHECK;

#endif
