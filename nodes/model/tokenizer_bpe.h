#ifndef NODES_MODEL_TOKENIZER_BPE_H
#define NODES_MODEL_TOKENIZER_BPE_H
/* The model of tokenizer.json: byte pair encoding of one word. A word is UTF-8 in the alphabet of the vocabulary: text,
 * or, for byte-level tokenizers, the 256 characters that stand for bytes. */
#include <jansson.h>
#include <stdint.h>

#include "engine/base/mem.h"

/* A growing list of ids. Zero-initialise; mem_free(list) when done. */
struct ids {
    int32_t *list;
    size_t n, capacity;
};
/* Room for `more` further ids. */
bool tokenizer_ids_reserve(struct ids *ids, size_t more, struct err *e) ERR_CHECK;
bool tokenizer_ids_add(struct ids *ids, const int32_t *list, size_t n, struct err *e) ERR_CHECK;

#define BPE_DIRECT 0x200

/* Both tables are open-addressing hash tables of a power of two of slots. */
struct bpe {
    struct piece {
        const char *text;          /* NULL: an empty slot */
        uint32_t length;
        int32_t id;
    } *pieces;
    struct merge {
        int32_t left, right;       /* ids; left -1: an empty slot */
        int32_t rank, id;          /* lower ranks go first; the id of both together */
    } *merges;
    size_t piece_slots, merge_slots;
    size_t n_pieces;               /* strings in the vocabulary */
    int32_t largest;               /* id */
    int32_t direct[BPE_DIRECT];    /* ids of single characters below U+0200, -1: none */
    int32_t bytes[256];            /* ids of "<0x00>" ..., -1: none; only with byte_fallback */
    int32_t unknown;               /* -1: characters that are not in the vocabulary are left out */
    bool byte_fallback, fuse_unknown, ignore_merges;
    struct arena arena;
};
/* From the object "model" of the file. The strings are copied. On failure *b needs no fini. */
bool tokenizer_bpe_init(struct bpe *b, const json_t *model, struct err *e) ERR_CHECK;
void tokenizer_bpe_fini(struct bpe *b);
/* The id of a string of the vocabulary, or -1. */
int32_t tokenizer_bpe_find(const struct bpe *b, const char *text, size_t n);

/* Scratch memory that is kept from word to word. Zero-initialise. */
struct bpe_work {
    struct symbol *symbols;
    struct candidate_merge *heap;
    size_t n_symbols, symbol_capacity, n_heap, heap_capacity;
};
void tokenizer_bpe_work_fini(struct bpe_work *w);
/* Append the ids of a word of n bytes (n may be 0) to *out. */
bool tokenizer_bpe_word(const struct bpe *b, struct bpe_work *w, const char *word, size_t n, struct ids *out,
                        struct err *e) ERR_CHECK;

#endif
