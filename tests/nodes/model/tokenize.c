/* tokenize TOKENIZER.json [--special] [--ids] FILE...: for each file, encoded as one text, a line
 *
 *     <SHA-256 of the ids as little-endian i32> <number of ids> <file>
 *
 * or with --ids the ids themselves, one line per file. tools/check_tokens.py compares the lines with the golden ones. */
#include <stdio.h>
#include <string.h>

#include "engine/store/store.h"
#include "nodes/model/json.h"
#include "nodes/model/tokenizer.h"

#define MOST_BYTES ((size_t)1 << 30)

static bool encode_file(const struct tokenizer *t, const char *path, bool special, bool ids, struct err *e)
{
    char *text = NULL, digest[KEY_TEXT];
    size_t n, count;
    int32_t *list = NULL;
    struct key k;
    bool ok = json_read_file(&text, &n, path, MOST_BYTES, e) && tokenizer_encode(t, text, n, special, &list, &count, e) &&
              key_of_bytes(list, count * sizeof *list, &k, e);
    if (ok && ids) {
        for (size_t i = 0; i < count; i++)
            printf(i ? " %d" : "%d", list[i]);
        printf("\n");
    } else if (ok) {
        printf("%s %zu %s\n", key_text(&k, digest), count, path);
    }
    mem_free(list);
    mem_free(text);
    return ok || err_context(e, "%s", path);
}

int main(int argc, char **argv)
{
    struct tokenizer *t = NULL;
    struct err e = {0};
    bool special = false, ids = false;
    if (argc < 3) {
        fprintf(stderr, "usage: tokenize TOKENIZER.json [--special] [--ids] FILE...\n");
        return 2;
    }
    bool ok = tokenizer_open(&t, argv[1], &e);
    for (int i = 2; ok && i < argc; i++) {
        if (strcmp(argv[i], "--special") == 0)
            special = true;
        else if (strcmp(argv[i], "--ids") == 0)
            ids = true;
        else
            ok = encode_file(t, argv[i], special, ids, &e);
    }
    tokenizer_close(t);
    if (!ok)
        fprintf(stderr, "tokenize: %s\n", e.text);
    return ok ? 0 : 1;
}
