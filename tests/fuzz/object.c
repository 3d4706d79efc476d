/* Fuzzes the reading of object files: the header and the digest as they are, and then, with a header that fits, what
 * libhdf5 and the table of contents make of the body. Whatever the bytes, the file is refused, or all that is listed
 * lies inside it. The file lives in memory. The plain main replays files; under clang's fuzzer it is left out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/store/store_private.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    abort();
}

static void put(int fd, const void *data, size_t n, off_t at)
{
    if (pwrite(fd, data, n, at) != (ssize_t)n)
        fail("cannot write the input");
}

/* The checks of an object file of any key; the bytes pass only with a digest that fits. */
static void check_as_it_is(int fd)
{
    struct header h;
    struct err e;
    const char *why;
    if (!header_read(fd, HEADER_OBJECT, NULL, &h, &why, &e) || (!why && !header_check_length(fd, &h, &why, &e)) ||
        (!why && !header_check_body(fd, &h, &why, &e)))
        fail(e.text);
}

static void check_table(int fd, uint64_t bytes)
{
    struct object_table t;
    struct err e;
    if (!object_table_read(&t, fd, bytes, &e))
        return;
    for (size_t i = 0; i < t.n_entries; i++) {
        const struct object_entry *x = &t.entries[i];
        if (x->bytes && (x->offset < HEADER_BYTES || x->offset > bytes || x->bytes > bytes - x->offset))
            fail("a dataset lies outside the file");
        if (i && strcmp(t.entries[i - 1].d.name, x->d.name) > 0)
            fail("the datasets are not in order");
    }
    object_table_free(&t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct header h = {0};
    struct key k = {{7}}, digest;
    struct err e;
    int fd = memfd_create("object", MFD_CLOEXEC);
    if (fd < 0)
        fail("cannot make a file in memory");
    put(fd, data, size, 0);
    check_as_it_is(fd);
    if (size >= HEADER_BYTES) {
        if (!key_of_bytes(data + HEADER_BYTES, size - HEADER_BYTES, &digest, &e))
            fail(e.text);
        header_seal(&h, HEADER_OBJECT, &k, size - HEADER_BYTES, &digest);
        put(fd, &h, sizeof h, 0);
        check_as_it_is(fd);
        check_table(fd, size);
    }
    close(fd);
    return 0;
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
