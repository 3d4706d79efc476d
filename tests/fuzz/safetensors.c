/* Fuzzes the reading of safetensors files. The input is a file; it is read twice, as it is and with its first eight
 * bytes set to a header length that ends at its last '}', so that most inputs get to the header's text. A file that is
 * opened must be covered exactly by its tensors, and every one of them must be found and read. The plain main replays
 * files, or with "--mutate N" makes N inputs from a small valid file, always the same; under clang's fuzzer it is left
 * out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nodes/model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds, const char *what, const struct err *e)
{
    if (holds)
        return;
    fprintf(stderr, "%s: %s\n", what, e->text);
    abort();
}

/* What must hold of a file of that many bytes that was opened. */
static void check_tensors(const struct safetensors *s, size_t size)
{
    struct err e = {0};
    uint64_t sum = 0, first = size;
    for (size_t i = 0; i < s->n_tensors; i++) {
        const struct st_tensor *t = &s->tensors[i];
        uint64_t bytes = dtype_bytes(t->dtype);
        unsigned char *out;
        for (int d = 0; d < t->rank; d++)
            bytes *= (uint64_t)t->shape[d];
        require(safetensors_find(s, t->name) == t, "a tensor is not found by its name", &e);
        require(bytes == t->bytes && t->offset >= 8 && t->offset + bytes <= size, "a tensor leaves the file", &e);
        require(mem_raw(&out, t->bytes + 1, &e) && safetensors_read(s, t, 0, t->bytes, out, &e), t->name, &e);
        mem_free(out);
        sum += t->bytes;
        first = t->offset < first ? t->offset : first;
    }
    require(first + sum == size || s->n_tensors == 0, "tensors do not cover the file", &e);
}

static void read_file(const char *folder, const uint8_t *data, size_t size)
{
    struct safetensors *s;
    struct err e = {0};
    char path[300];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    FILE *f = fopen(path, "wb");
    require(f && fwrite(data, 1, size, f) == size && fclose(f) == 0, path, &e);
    if (safetensors_open(&s, folder, &e)) {
        check_tensors(s, size);
        safetensors_close(s);
    } else {
        require(e.code == ERR_INPUT && e.text[0], "a refusal without a reason", &e);
    }
    unlink(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char folder[256];
    struct err e = {0};
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/scout-fuzz-XXXXXX", base && *base ? base : "/tmp");
    require(mkdtemp(folder), folder, &e);
    read_file(folder, data, size);
    uint8_t *copy = malloc(size + 1);
    size_t end = size;
    while (end > 8 && data[end - 1] != '}')
        end--;
    if (copy && end > 8) {
        memcpy(copy, data, size);
        for (int i = 0; i < 8; i++)
            copy[i] = (uint8_t)((uint64_t)(end - 8) >> (8 * i));
        read_file(folder, copy, size);
    }
    free(copy);
    rmdir(folder);
    return 0;
}

#ifndef FUZZING
#define SEED_DATA 24
static const char seed_header[] =
    "{\"__metadata__\":{\"format\":\"pt\"},\"a.weight\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
    "\"b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[12,16]},"
    "\"c\":{\"dtype\":\"U8\",\"shape\":[2,2,2],\"data_offsets\":[16,24]},"
    "\"d\":{\"dtype\":\"I64\",\"shape\":[0,7],\"data_offsets\":[24,24]}}";

static uint64_t next(uint64_t *state)
{
    return (*state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u) >> 33;
}

/* One to three changes: a byte set, a piece moved over another, a digit or bracket put in, an end cut off. */
static size_t mutate(uint8_t *file, size_t n, uint64_t *state)
{
    static const char tokens[] = "0123456789-.eE{}[],:\"\\ \tnullBFUI";
    for (uint64_t changes = 1 + next(state) % 3; changes > 0; changes--) {
        size_t at = next(state) % n, from = next(state) % n, length = next(state) % 16;
        switch (next(state) % 5) {
        case 0: file[at] = (uint8_t)next(state); break;
        case 1: case 2: file[at] = (uint8_t)tokens[next(state) % (sizeof tokens - 1)]; break;
        case 3:
            length = length < n - at ? length : n - at;
            memmove(file + at, file + from, length < n - from ? length : n - from);
            break;
        default: n = n - at < 40 ? at + 1 : n; break;
        }
    }
    return n;
}

static int mutations(long n)
{
    const size_t length = sizeof seed_header - 1, size = 8 + length + SEED_DATA;
    uint8_t file[8 + sizeof seed_header + SEED_DATA];
    uint64_t state = 1;
    for (long i = 0; i < n; i++) {
        memset(file, 0, sizeof file);
        file[0] = (uint8_t)length;
        file[1] = (uint8_t)(length >> 8);
        memcpy(file + 8, seed_header, length);
        LLVMFuzzerTestOneInput(file, i == 0 ? size : mutate(file, size, &state));
    }
    printf("%ld mutations read\n", n);
    return 0;
}

static int replay(const char *path)
{
    FILE *f = fopen(path, "rb");
    uint8_t *bytes = malloc((size_t)8 << 20);
    int failed = !f || !bytes;
    if (!failed)
        LLVMFuzzerTestOneInput(bytes, fread(bytes, 1, (size_t)8 << 20, f));
    if (f)
        fclose(f);
    free(bytes);
    if (failed)
        fprintf(stderr, "cannot read %s\n", path);
    return failed;
}

int main(int argc, char **argv)
{
    int failed = 0;
    if (argc == 3 && strcmp(argv[1], "--mutate") == 0)
        return mutations(atol(argv[2]));
    for (int i = 1; i < argc; i++)
        failed += replay(argv[i]);
    printf("%d files replayed\n", argc - 1 - failed);
    return failed != 0;
}
#endif
