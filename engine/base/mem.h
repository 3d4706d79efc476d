#ifndef ENGINE_BASE_MEM_H
#define ENGINE_BASE_MEM_H
/* All memory of the program comes from here, so that a test can make the n-th request fail, and so that count times
 * size is checked for overflow in one place. Blocks are aligned to 64 bytes. */
#include <stddef.h>

#include "engine/base/err.h"

/* `count * size` bytes, zeroed, in *out; on failure *out is untouched and the error is ERR_RESOURCE with the figure. */
bool mem_new_bytes(void **out, size_t count, size_t size, struct err *e) ERR_CHECK;
/* Uninitialised, for large buffers that are filled at once. */
bool mem_raw_bytes(void **out, size_t count, size_t size, struct err *e) ERR_CHECK;
/* Grow *p from `old_count` to `count` elements; the new part is zeroed. *p may be NULL when old_count is 0. */
bool mem_grow_bytes(void **p, size_t old_count, size_t count, size_t size, struct err *e) ERR_CHECK;
/* NULL is fine. */
void mem_free(void *p);

/* Typed forms: `float *x; if (!mem_new(&x, n, e)) ...` */
#define mem_new(out, count, e) mem_new_bytes((void **)(out), (count), sizeof **(out), (e))
#define mem_raw(out, count, e) mem_raw_bytes((void **)(out), (count), sizeof **(out), (e))
#define mem_grow(p, old_count, count, e) mem_grow_bytes((void **)(p), (old_count), (count), sizeof **(p), (e))

/* For tests: the n-th request from now fails, and all after it when `sticky`. 0 turns it off. */
void mem_fail_after(long n, bool sticky);

/* An arena: many small pieces with one lifetime. Zero-initialise it; nothing is freed one by one. */
struct arena {
    struct arena_block *blocks;
};
/* `bytes` zeroed and aligned to 16; NULL when memory is out, with *e filled. */
void *arena_new(struct arena *a, size_t bytes, struct err *e);
char *arena_strdup(struct arena *a, const char *s, struct err *e);
char *arena_strndup(struct arena *a, const char *s, size_t n, struct err *e);
char *arena_printf(struct arena *a, struct err *e, const char *format, ...) __attribute__((format(printf, 3, 4)));
void arena_free(struct arena *a);

#endif
