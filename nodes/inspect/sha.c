#include "nodes/inspect/sha.h"

#include <openssl/evp.h>
#include <stdio.h>

/* struct sha is OpenSSL's context by another name. */
static EVP_MD_CTX *context(struct sha *s) { return (EVP_MD_CTX *)s; }

struct sha *sha_new(void)
{
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    if (c && EVP_DigestInit_ex(c, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(c);
        c = NULL;
    }
    return (struct sha *)c;
}

bool sha_add(struct sha *s, const void *bytes, size_t n) { return EVP_DigestUpdate(context(s), bytes, n) == 1; }

void sha_end(struct sha *s, char out[SHA_TEXT])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    out[0] = '\0';
    if (s && EVP_DigestFinal_ex(context(s), digest, &n) == 1)
        for (unsigned i = 0; i < n; i++)
            snprintf(out + 2 * i, 3, "%02x", digest[i]);
    EVP_MD_CTX_free(context(s));
}
