#ifndef NODES_MODEL_TOKENIZER_SPLIT_H
#define NODES_MODEL_TOKENIZER_SPLIT_H
/* The pre-tokenizer of tokenizer.json: cuts a text into words. */
#include <jansson.h>

#include "nodes/model/tokenizer_regex.h"

#define SPLIT_STEPS 16

enum split_kind {
    SPLIT_ISOLATE,      /* every match of the regex is a piece, and so is what lies between two */
    SPLIT_PREFIX_SPACE, /* put a space in front of a piece that does not start with one */
    SPLIT_METASPACE,    /* spaces become `mark`; one goes in front; each mark starts a word */
};

struct split_step {
    enum split_kind kind;
    pcre2_code *regex;
    char mark[5];
    enum { MARK_ALWAYS, MARK_FIRST, MARK_NEVER } scheme; /* first: only at the start of the whole text */
    bool cuts;          /* at marks */
};

struct splitter {
    struct split_step steps[SPLIT_STEPS];
    int n_steps;
    bool byte_level;    /* words are to be mapped to the alphabet of bytes */
};

/* From the member "pre_tokenizer" (NULL or JSON null: one word). On failure *s needs no fini. */
bool tokenizer_split_init(struct splitter *s, const json_t *pre_tokenizer, struct err *e) ERR_CHECK;
void tokenizer_split_fini(struct splitter *s);

/* Called with each word, in order; the word is gone after the call. */
typedef bool (*split_word)(void *context, const char *word, size_t n, struct err *e);
/* Cut n bytes of valid UTF-8. `at_start`: the piece is the first of the text that the user gave. */
bool tokenizer_split_run(const struct splitter *s, pcre2_match_data *data, const char *text, size_t n, bool at_start,
                         split_word each, void *context, struct err *e) ERR_CHECK;

#endif
