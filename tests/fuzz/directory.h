#ifndef TESTS_FUZZ_DIRECTORY_H
#define TESTS_FUZZ_DIRECTORY_H
/* A checkpoint's directory from the bytes of a fuzzer, and small valid ones to begin with. An input is
 *
 *     flags u8 | length of config.json u16 | length of scout.json u16 | length of the index u16     little-endian
 *     config.json | scout.json | model.safetensors.index.json | a safetensors file
 *
 * where the last three files are there only when their flags say so, and a flag has the safetensors file's first eight
 * bytes set to the length of a header that ends at the last '}', so that most inputs get to the header's text. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    INPUT_FIX_LENGTH = 1,  /* see above */
    INPUT_RECIPE = 2,      /* there is a scout.json */
    INPUT_INDEX = 4,       /* there is an index; the weights are in a.safetensors then */
    INPUT_SOURCE = 8,      /* the directory is given as its own source */
    INPUT_HEAD = 7         /* bytes before the files */
};

static inline void input_fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    abort();
}

static inline void input_write(const char *folder, const char *name, const uint8_t *data, size_t n)
{
    char path[400];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    if (!f || (n > 0 && fwrite(data, 1, n, f) != n) || fclose(f) != 0)
        input_fail("cannot write the input");
}

static const char *const input_files[] = {"config.json", "scout.json", "model.safetensors.index.json", "a.safetensors",
                                          "model.safetensors"};

/* Make the directory under $TMPDIR; false when the input is too short to say what is in it. */
static inline int input_open(char folder[256], const uint8_t *data, size_t size)
{
    const char *base = getenv("TMPDIR");
    if (size < INPUT_HEAD)
        return 0;
    snprintf(folder, 256, "%s/scout-fuzz-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(folder))
        input_fail(folder);
    const uint8_t flags = data[0], *at = data + INPUT_HEAD;
    size_t left = size - INPUT_HEAD;
    for (int i = 0; i < 3; i++) {
        size_t n = data[1 + 2 * i] | (size_t)data[2 + 2 * i] << 8;
        n = n < left ? n : left;
        if (i == 0 || flags & (i == 1 ? INPUT_RECIPE : INPUT_INDEX))
            input_write(folder, input_files[i], at, n);
        at += n;
        left -= n;
    }
    uint8_t *copy = malloc(left + 1);
    if (!copy)
        input_fail("out of memory");
    memcpy(copy, at, left);
    size_t end = left;
    while (end > 8 && copy[end - 1] != '}')
        end--;
    for (int i = 0; i < 8 && flags & INPUT_FIX_LENGTH && end > 8; i++)
        copy[i] = (uint8_t)((uint64_t)(end - 8) >> (8 * i));
    input_write(folder, input_files[flags & INPUT_INDEX ? 3 : 4], copy, left);
    free(copy);
    return 1;
}

static inline void input_close(const char *folder)
{
    char path[400];
    for (size_t i = 0; i < sizeof input_files / sizeof *input_files; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, input_files[i]);
        unlink(path);
    }
    rmdir(folder);
}

/* ------------------------------------------------------------------------------------------------------------ seeds */

#ifndef FUZZING
/* A tensor of a seed; its bytes are `fill`, repeated. */
struct seed_tensor {
    const char *name, *dtype, *shape;
    size_t bytes;
    const char *fill;
    size_t n_fill;
};

struct seed {
    const char *config, *recipe, *index;
    const struct seed_tensor *tensors;
    size_t n;
    uint8_t flags;
};

#define SEED_ROOM ((size_t)1 << 17)

/* The input of a seed in `out` of SEED_ROOM bytes; its length. */
static inline size_t seed_input(const struct seed *s, uint8_t *out)
{
    const char *texts[3] = {s->config, s->recipe ? s->recipe : "", s->index ? s->index : ""};
    static char header[1 << 15];
    size_t at = INPUT_HEAD, h = 0, offset = 0;
    out[0] = s->flags;
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(texts[i]);
        out[1 + 2 * i] = (uint8_t)n;
        out[2 + 2 * i] = (uint8_t)(n >> 8);
        memcpy(out + at, texts[i], n);
        at += n;
    }
    h += (size_t)snprintf(header, sizeof header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < s->n; i++) {
        const struct seed_tensor *t = &s->tensors[i];
        h += (size_t)snprintf(header + h, sizeof header - h, ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":"
                              "[%zu,%zu]}", t->name, t->dtype, t->shape, offset, offset + t->bytes);
        offset += t->bytes;
    }
    h += (size_t)snprintf(header + h, sizeof header - h, "}");
    while (h % 8)
        header[h++] = ' ';
    for (int i = 0; i < 8; i++)
        out[at++] = (uint8_t)((uint64_t)h >> (8 * i));
    memcpy(out + at, header, h);
    at += h;
    for (size_t i = 0; i < s->n; i++)
        for (size_t k = 0; k < s->tensors[i].bytes; k++)
            out[at++] = (uint8_t)s->tensors[i].fill[k % s->tensors[i].n_fill];
    return at;
}

static inline uint64_t seed_next(uint64_t *state)
{
    return (*state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u) >> 33;
}

/* One to three changes: a byte set, a likely one put in, a piece moved over another, an end cut off. Most of them in
 * the texts. */
static inline size_t seed_mutate(uint8_t *in, size_t n, uint64_t *state)
{
    static const char tokens[] = "0123456789-.eE{}[],:\"\\ \tnullBFUI";
    for (uint64_t changes = 1 + seed_next(state) % 3; changes > 0; changes--) {
        size_t texts = n < 6000 ? n : 6000, at = seed_next(state) % (seed_next(state) % 4 ? texts : n);
        size_t from = seed_next(state) % n, length = seed_next(state) % 24;
        switch (seed_next(state) % 6) {
        case 0: in[at] = (uint8_t)seed_next(state); break;
        case 1: case 2: case 3: in[at] = (uint8_t)tokens[seed_next(state) % (sizeof tokens - 1)]; break;
        case 4:
            length = length < n - at ? length : n - at;
            memmove(in + at, in + from, length < n - from ? length : n - from);
            break;
        default: n = n - at < 200 ? at + 1 : n; break;
        }
    }
    return n;
}

/* The plain program: "--seeds DIR" writes the seeds, "--mutate N" reads so many changes of them, always the same; else
 * it replays files. */
static inline int seed_main(int argc, char **argv, const struct seed *seeds, size_t n_seeds,
                            int (*one)(const uint8_t *data, size_t size))
{
    uint8_t *bytes = malloc(SEED_ROOM);
    uint64_t state = 1;
    char name[64];
    if (!bytes)
        return 1;
    if (argc == 3 && strcmp(argv[1], "--mutate") == 0) {
        for (long i = 0; i < atol(argv[2]); i++) {
            size_t n = seed_input(&seeds[(size_t)i % n_seeds], bytes);
            one(bytes, (size_t)i < n_seeds ? n : seed_mutate(bytes, n, &state));
        }
        printf("%s mutations read\n", argv[2]);
    } else if (argc == 3 && strcmp(argv[1], "--seeds") == 0) {
        for (size_t i = 0; i < n_seeds; i++) {
            snprintf(name, sizeof name, "seed-%zu", i);
            input_write(argv[2], name, bytes, seed_input(&seeds[i], bytes));
        }
    } else {
        for (int i = 1; i < argc; i++) {
            FILE *f = fopen(argv[i], "rb");
            if (!f)
                input_fail(argv[i]);
            one(bytes, fread(bytes, 1, SEED_ROOM, f));
            fclose(f);
        }
    }
    free(bytes);
    return 0;
}

#define FILL(bytes) bytes, sizeof bytes - 1
#define ONE_F32 FILL("\0\0\x80\x3f")
#define ONE_BF16 FILL("\x80\x3f")
#define CODES FILL("\x38\xb1\x07\x5a\x19")
#endif

#endif
