/* Keys: SHA-256 over length-prefixed fields, their text form, and a set of keys. What goes into a node's key, and in
 * which order, is decided in engine/run. */
#include <inttypes.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#include "engine/store/store_private.h"

struct key_hash {
    EVP_MD_CTX *context;
    bool failed, nan;
};

const char *key_text(const struct key *k, char out[KEY_TEXT])
{
    for (int i = 0; i < KEY_BYTES; i++)
        snprintf(out + 2 * i, 3, "%02x", k->bytes[i]);
    return out;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool key_parse(const char *text, struct key *k)
{
    struct key parsed;
    for (int i = 0; i < KEY_BYTES; i++) {
        int high = hex_digit(text[2 * i]);
        int low = high < 0 ? -1 : hex_digit(text[2 * i + 1]);
        if (low < 0)
            return false;
        parsed.bytes[i] = (uint8_t)(high << 4 | low);
    }
    if (text[2 * KEY_BYTES])
        return false;
    *k = parsed;
    return true;
}

bool key_equal(const struct key *a, const struct key *b) { return memcmp(a->bytes, b->bytes, KEY_BYTES) == 0; }

bool key_hash_new_raw(struct key_hash **out, struct err *e)
{
    struct key_hash *h;
    if (!mem_new(&h, 1, e))
        return false;
    h->context = EVP_MD_CTX_new();
    if (!h->context || EVP_DigestInit_ex(h->context, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(h->context);
        mem_free(h);
        return err_set(e, ERR_RESOURCE, "cannot start a SHA-256: out of memory");
    }
    *out = h;
    return true;
}

void key_hash_raw(struct key_hash *h, const void *data, size_t n)
{
    if (n > 0 && EVP_DigestUpdate(h->context, data, n) != 1)
        h->failed = true;
}

bool key_hash_new(struct key_hash **out, struct err *e)
{
    if (!key_hash_new_raw(out, e))
        return false;
    key_hash_text(*out, "format 1");
    return true;
}

void key_hash_bytes(struct key_hash *h, const void *data, size_t n)
{
    uint8_t length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)((uint64_t)n >> (8 * i));
    key_hash_raw(h, length, sizeof length);
    key_hash_raw(h, data, n);
}

void key_hash_text(struct key_hash *h, const char *text) { key_hash_bytes(h, text, strlen(text)); }

void key_hash_int(struct key_hash *h, int64_t x)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, x);
    key_hash_text(h, text);
}

void key_hash_double(struct key_hash *h, double x)
{
    if (isnan(x))
        h->nan = true;
    union { double x; uint64_t bits; } v = {.x = x == 0 ? 0.0 : x};
    char text[17];
    snprintf(text, sizeof text, "%016" PRIx64, v.bits);
    key_hash_text(h, text);
}

void key_hash_key(struct key_hash *h, const struct key *k) { key_hash_bytes(h, k->bytes, KEY_BYTES); }

void key_hash_drop(struct key_hash *h)
{
    if (!h)
        return;
    EVP_MD_CTX_free(h->context);
    mem_free(h);
}

bool key_hash_end(struct key_hash *h, struct key *out, struct err *e)
{
    struct key digest;
    unsigned length = 0;
    bool ok = !h->failed && EVP_DigestFinal_ex(h->context, digest.bytes, &length) == 1 && length == KEY_BYTES;
    bool nan = h->nan;
    key_hash_drop(h);
    if (!ok)
        return err_set(e, ERR_RESOURCE, "cannot compute a SHA-256: out of memory");
    if (nan)
        return err_set(e, ERR_INPUT, "a parameter is NaN, which has no key; give a number");
    *out = digest;
    return true;
}

bool key_of_bytes(const void *data, size_t n, struct key *out, struct err *e)
{
    struct key_hash *h;
    if (!key_hash_new_raw(&h, e))
        return false;
    key_hash_raw(h, data, n);
    return key_hash_end(h, out, e);
}

/* ------------------------------------------------------------------------------------------------------ set of keys */

/* Keys are digests, so their first bytes are the hash. */
static size_t slot_of(const struct key_set *s, const struct key *k)
{
    size_t at;
    memcpy(&at, k->bytes, sizeof at);
    for (at &= s->capacity - 1; s->used[at] && !key_equal(&s->keys[at], k); at = (at + 1) & (s->capacity - 1))
        ;
    return at;
}

bool key_set_has(const struct key_set *s, const struct key *k) { return s->n > 0 && s->used[slot_of(s, k)]; }

bool key_set_reserve(struct key_set *s, size_t n, struct err *e)
{
    struct key_set bigger = {.capacity = s->capacity ? s->capacity : 64};
    while (bigger.capacity < 2 * (s->n + n))
        bigger.capacity *= 2;
    if (bigger.capacity == s->capacity)
        return true;
    if (!mem_new(&bigger.keys, bigger.capacity, e))
        return false;
    if (!mem_new(&bigger.used, bigger.capacity, e)) {
        mem_free(bigger.keys);
        return false;
    }
    for (size_t i = 0; i < s->capacity; i++)
        if (s->used[i]) {
            size_t at = slot_of(&bigger, &s->keys[i]);
            bigger.keys[at] = s->keys[i];
            bigger.used[at] = true;
        }
    bigger.n = s->n;
    key_set_free(s);
    *s = bigger;
    return true;
}

bool key_set_add(struct key_set *s, const struct key *k, struct err *e)
{
    if (!key_set_reserve(s, 1, e))
        return false;
    size_t at = slot_of(s, k);
    if (!s->used[at])
        s->n++;
    s->keys[at] = *k;
    s->used[at] = true;
    return true;
}

/* The place becomes free, so those behind it in the same chain are put in anew. */
void key_set_remove(struct key_set *s, const struct key *k)
{
    if (!key_set_has(s, k))
        return;
    size_t at = slot_of(s, k), last = s->capacity - 1;
    s->used[at] = false;
    s->n--;
    for (at = (at + 1) & last; s->used[at]; at = (at + 1) & last) {
        struct key moved = s->keys[at];
        s->used[at] = false;
        size_t to = slot_of(s, &moved);
        s->keys[to] = moved;
        s->used[to] = true;
    }
}

void key_set_free(struct key_set *s)
{
    mem_free(s->keys);
    mem_free(s->used);
    *s = (struct key_set){0};
}
