#include "engine/base/mem.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64

/* The test hook: requests left before one fails (0: off). The only mutable global of the tree, since memory itself
 * is. */
static atomic_long fail_countdown;
static atomic_bool fail_sticky;

void mem_fail_after(long n, bool sticky)
{
    atomic_store(&fail_sticky, sticky);
    atomic_store(&fail_countdown, n);
}

static bool must_fail(void)
{
    long left = atomic_load(&fail_countdown);
    if (left == 0)
        return false;
    if (left == 1)
        return atomic_load(&fail_sticky) || atomic_exchange(&fail_countdown, 0) == 1;
    return atomic_fetch_sub(&fail_countdown, 1) == 1;
}

bool mem_raw_bytes(void **out, size_t count, size_t size, struct err *e)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX / 2)
        return err_set(e, ERR_RESOURCE, "cannot allocate %zu elements of %zu bytes: the product overflows", count,
                       size);
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    void *p = must_fail() ? NULL : aligned_alloc(ALIGNMENT, bytes ? bytes : ALIGNMENT);
    if (!p)
        return err_set(e, ERR_RESOURCE, "out of memory: %zu bytes were wanted", bytes);
    *out = p;
    return true;
}

bool mem_new_bytes(void **out, size_t count, size_t size, struct err *e)
{
    void *p = NULL;
    if (!mem_raw_bytes(&p, count, size, e))
        return false;
    memset(p, 0, count * size);
    *out = p;
    return true;
}

bool mem_grow_bytes(void **p, size_t old_count, size_t count, size_t size, struct err *e)
{
    void *new = NULL;
    if (!mem_raw_bytes(&new, count, size, e))
        return false;
    size_t kept = old_count < count ? old_count : count;
    if (kept)
        memcpy(new, *p, kept * size);
    memset((char *)new + kept * size, 0, (count - kept) * size);
    mem_free(*p);
    *p = new;
    return true;
}

void mem_free(void *p) { free(p); }

/* ------------------------------------------------------------------------------------------------------------ arena */

#define BLOCK_BYTES 16384

struct arena_block {
    struct arena_block *older;
    size_t used, size;
    _Alignas(16) unsigned char data[];
};

void *arena_new(struct arena *a, size_t bytes, struct err *e)
{
    struct arena_block *b = a->blocks;
    if (bytes > SIZE_MAX / 4) {
        err_set(e, ERR_RESOURCE, "out of memory: %zu bytes were wanted", bytes);
        return NULL;
    }
    bytes = (bytes + 15) / 16 * 16;
    if (!b || b->size - b->used < bytes) {
        size_t size = bytes > BLOCK_BYTES / 4 ? bytes : BLOCK_BYTES;
        if (!mem_raw_bytes((void **)&b, 1, sizeof *b + size, e))
            return NULL;
        b->used = 0;
        b->size = size;
        b->older = a->blocks;
        a->blocks = b;
    }
    void *p = b->data + b->used;
    b->used += bytes;
    return memset(p, 0, bytes);
}

char *arena_strndup(struct arena *a, const char *s, size_t n, struct err *e)
{
    char *copy = arena_new(a, n + 1, e);
    return copy ? memcpy(copy, s, n) : NULL;
}

char *arena_strdup(struct arena *a, const char *s, struct err *e) { return arena_strndup(a, s, strlen(s), e); }

char *arena_printf(struct arena *a, struct err *e, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = n < 0 ? NULL : arena_new(a, (size_t)n + 1, e);
    if (text)
        vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    return text;
}

void arena_free(struct arena *a)
{
    while (a->blocks) {
        struct arena_block *older = a->blocks->older;
        mem_free(a->blocks);
        a->blocks = older;
    }
}
