/* Fuzzes the reading of object files. The input is a file under a key: as it is, and again with a header that fits it,
 * so that the bytes get past the digest to libhdf5 and the table. Whatever the bytes, the object is opened or absent,
 * and all that is listed can be read. The plain main replays files; under clang's fuzzer it is left out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/store/store_private.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fail(const char *what, const struct err *e)
{
    fprintf(stderr, "%s: %s\n", what, e->text);
    abort();
}

/* Write the bytes as the object `k` of the store at `path`, with a header of ours in front if `sealed`. */
static void put(const char *path, const struct key *k, const uint8_t *data, size_t size, bool sealed)
{
    char text[KEY_TEXT], name[512];
    struct err e = {0};
    key_text(k, text);
    snprintf(name, sizeof name, "%s/objects/%.2s", path, text);
    mkdir(name, 0777);
    snprintf(name, sizeof name, "%s/objects/%.2s/%s.h5", path, text, text);
    unlink(name);
    FILE *f = fopen(name, "wb");
    struct key digest;
    struct header h = {0};
    if (!f)
        fail(name, &e);
    if (sealed) {
        size_t skip = size < HEADER_BYTES ? size : HEADER_BYTES;
        data += skip;
        size -= skip;
        if (!key_of_bytes(data, size, &digest, &e))
            fail("digest", &e);
        header_seal(&h, HEADER_OBJECT, k, size, &digest);
        fwrite(&h, sizeof h, 1, f);
    }
    if (fwrite(data, 1, size, f) != size || fclose(f))
        fail(name, &e);
}

static void read_all(struct object *o)
{
    struct err e = {0};
    for (size_t i = 0; i < object_datasets(o); i++) {
        const struct dataset *d = object_dataset_at(o, i);
        void *data;
        if (!object_read_all(o, d->name, d->dtype, &data, NULL, &e))
            fail(d->name, &e);
        mem_free(data);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[] = "/tmp/scout-fuzz-XXXXXX", command[64];
    struct err e = {0};
    struct key k = {{7}};
    if (!mkdtemp(path))
        fail("mkdtemp", &e);
    for (int sealed = 0; sealed < 2; sealed++) {
        struct store *s;
        struct object *o = NULL;
        if (!store_open(&s, path, &e))
            fail("store_open", &e);
        put(path, &k, data, size, sealed);
        if (object_open(&o, s, &k, &e) && o) {
            read_all(o);
            object_close(o);
        }
        store_close(s);
    }
    snprintf(command, sizeof command, "rm -rf %s", path);
    return system(command) != 0;
}

#ifndef FUZZING
int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        if (!f) {
            perror(argv[i]);
            return 1;
        }
        uint8_t *data = malloc(1 << 24);
        size_t n = data ? fread(data, 1, 1 << 24, f) : 0;
        fclose(f);
        LLVMFuzzerTestOneInput(data, n);
        free(data);
    }
    return 0;
}
#endif
