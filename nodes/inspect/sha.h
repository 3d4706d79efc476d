#ifndef NODES_INSPECT_SHA_H
#define NODES_INSPECT_SHA_H
/* SHA-256 as text, of bytes that come in pieces. */
#include <stdbool.h>
#include <stddef.h>

#define SHA_TEXT 65

struct sha;

/* NULL when memory is out. */
struct sha *sha_new(void);
/* False, with nothing freed, when it cannot be computed. */
bool sha_add(struct sha *s, const void *bytes, size_t n);
/* 64 digits, in `out`; "" when it cannot be computed. Frees `s`, which may be NULL. */
void sha_end(struct sha *s, char out[SHA_TEXT]);

#endif
