/* Any bytes as tokenizer.json, and any bytes as text: a file is refused or opened, and what is opened encodes or
 * refuses any text, without a fault or a leak. The first byte says which: below 128, the rest is tokenizer.json; else
 * it is text for one of the small tokenizers of tests/golden/tokens in $SCOUT_ROOT, that byte saying which.
 * Under libFuzzer (-DFUZZING) main is the fuzzer's; else this program replays files, or reads N mutations of the small
 * tokenizers and of odd text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nodes/model/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

static const char *const names[] = {"smollm2", "gpt2", "llama3", "qwen35", "pieces", "metaspace", "metaspace_whole"};
static const char odd_text[] =
    "<s> [A]  x[B] [C]\t[D]y whatever 12 \xc2\xbd \xe2\x96\x81\xe2\x96\x81 it's IT'LL \r\n\r\n  "
    "\xf0\x9f\x91\xa9\xe2\x80\x8d \xe0\xa4\x95\xe0\xa5\x8d \xc2\x85 <|endoftext|>\n";

static void golden_path(const char *name, char path[1024])
{
    const char *root = getenv("SCOUT_ROOT");
    snprintf(path, 1024, "%s/tests/golden/tokens/tokenizers/%s.json", root ? root : ".", name);
}

static void check(bool condition, const char *what)
{
    if (condition)
        return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static void encode(const struct tokenizer *t, const char *text, size_t n)
{
    struct err e = {0};
    int32_t *ids;
    size_t count;
    if (!tokenizer_encode(t, text, n, true, &ids, &count, &e)) {
        check(e.code == ERR_INPUT && e.text[0], "a text is refused without a message");
        return;
    }
    for (size_t i = 0; i < count; i++)
        check(ids[i] >= 0 && ids[i] < tokenizer_size(t), "an id lies outside the vocabulary");
    mem_free(ids);
}

static void as_file(const uint8_t *bytes, size_t n)
{
    char path[64];
    struct err e = {0};
    struct tokenizer *t;
    int fd = memfd_create("tokenizer", MFD_CLOEXEC);
    check(fd >= 0 && write(fd, bytes, n) == (ssize_t)n, "cannot write the input");
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (tokenizer_open(&t, path, &e)) {
        encode(t, odd_text, sizeof odd_text - 1);
        tokenizer_close(t);
    } else {
        check(e.code == ERR_INPUT && e.text[0], "a file is refused without a message");
    }
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    struct err e = {0};
    struct tokenizer *t;
    char path[1024];
    if (n == 0)
        return 0;
    if (bytes[0] < 128) {
        as_file(bytes + 1, n - 1);
        return 0;
    }
    golden_path(names[bytes[0] % (sizeof names / sizeof *names)], path);
    check(tokenizer_open(&t, path, &e), e.text);
    encode(t, (const char *)bytes + 1, n - 1);
    tokenizer_close(t);
    return 0;
}

#ifndef FUZZING
#define MOST_BYTES ((size_t)1 << 20)

static uint64_t next(uint64_t *state)
{
    return (*state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u) >> 33;
}

/* One to four changes: a byte set, a piece moved over another, the end cut off. */
static size_t mutate(uint8_t *bytes, size_t n, uint64_t *state)
{
    static const char likely[] = "0123456789-{}[],:\"\\ \t\n\0'ntfp(?|+*xe\xc2\xa0\xe2\x96\x81\xf0";
    for (uint64_t changes = 1 + next(state) % 4; changes > 0 && n > 1; changes--) {
        size_t at = next(state) % n, from = next(state) % n, length = next(state) % 24;
        switch (next(state) % 8) {
        case 0: bytes[at] = (uint8_t)next(state); break;
        case 1: case 2: case 3: bytes[at] = (uint8_t)likely[next(state) % (sizeof likely - 1)]; break;
        case 4: n = at < 8 && n > 8 ? n : n - at < 64 ? at + 1 : n; break;
        default:
            length = length < n - at ? length : n - at;
            memmove(bytes + at, bytes + from, length < n - from ? length : n - from);
        }
    }
    return n;
}

static size_t read_file(const char *path, uint8_t *bytes)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(1);
    }
    size_t n = fread(bytes, 1, MOST_BYTES, f);
    fclose(f);
    return n;
}

/* Half of the mutations change the head of a small tokenizer's file (which holds all but the vocabulary) or any part of
 * it, half a text. */
static void mutations(long n, uint8_t *bytes)
{
    uint64_t state = 1;
    for (long i = 0; i < n; i++) {
        char path[1024];
        size_t size = sizeof odd_text;
        if (i % 2) {
            golden_path(names[(size_t)i / 2 % (sizeof names / sizeof *names)], path);
            bytes[0] = 0;
            size = 1 + read_file(path, bytes + 1);
            if (next(&state) % 4)
                mutate(bytes + 1, size < 1200 ? size - 1 : 1200, &state);
            else
                size = 1 + mutate(bytes + 1, size - 1, &state);
        } else {
            bytes[0] = (uint8_t)(128 + next(&state) % 128);
            memcpy(bytes + 1, odd_text, sizeof odd_text - 1);
            size = 1 + mutate(bytes + 1, sizeof odd_text - 1, &state);
        }
        LLVMFuzzerTestOneInput(bytes, size);
    }
    printf("%ld mutations read\n", n);
}

int main(int argc, char **argv)
{
    uint8_t *bytes = malloc(1 + MOST_BYTES);
    check(bytes, "out of memory");
    if (argc == 3 && strcmp(argv[1], "--mutate") == 0)
        mutations(atol(argv[2]), bytes);
    else
        for (int i = 1; i < argc; i++)
            LLVMFuzzerTestOneInput(bytes, read_file(argv[i], bytes));
    free(bytes);
    return 0;
}
#endif
