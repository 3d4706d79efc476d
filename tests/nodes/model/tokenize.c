/* Not a test by itself: prints "SHA-256 COUNT FILE" of the ids of each text, for tools/check_tokens.py.
 * usage: tokenize TOKENIZER.json SPECIAL FILE...     (ids as little-endian i32; SPECIAL is 0 or 1) */
#include <stdio.h>
#include <string.h>

#include "engine/store/store.h"
#include "nodes/model/json.h"
#include "nodes/model/tokenizer.h"

static bool print_file(const struct tokenizer *t, bool special, const char *path, struct err *e)
{
    char *text, hex[KEY_TEXT];
    size_t n, count;
    int32_t *ids;
    struct key digest;
    if (!json_read_file(&text, &n, path, (size_t)1 << 30, e))
        return false;
    bool ok = tokenizer_encode(t, text, n, special, &ids, &count, e);
    mem_free(text);
    if (!ok)
        return err_context(e, "%s", path);
    ok = key_of_bytes(ids, count * sizeof *ids, &digest, e);
    mem_free(ids);
    if (ok)
        printf("%s %zu %s\n", key_text(&digest, hex), count, path);
    return ok;
}

int main(int argc, char **argv)
{
    struct tokenizer *t;
    struct err e;
    if (argc < 4) {
        fprintf(stderr, "usage: tokenize TOKENIZER.json SPECIAL FILE...\n");
        return 2;
    }
    bool ok = tokenizer_open(&t, argv[1], &e);
    for (int i = 3; ok && i < argc; i++)
        ok = print_file(t, strcmp(argv[2], "1") == 0, argv[i], &e);
    if (!ok) {
        fprintf(stderr, "tokenize: %s\n", e.text);
        return 1;
    }
    tokenizer_close(t);
    return 0;
}
