#ifndef NODES_MODEL_TOKENIZER_ADDED_H
#define NODES_MODEL_TOKENIZER_ADDED_H
/* Added tokens: strings that are found in a text before anything else is done to it, and have an id of their own. */
#include "nodes/model/tokenizer_regex.h"

struct added_token {
    const char *text;    /* borrowed from the owner of the set */
    size_t length;
    int32_t id;
    bool single_word;    /* only where no word character is beside it */
    bool lstrip, rstrip; /* takes the white space before or after it along */
};

/* Sorted by first byte, then the longest first. */
struct added_set {
    struct added_token *list;
    size_t n, capacity;
    size_t first[257];   /* those that start with byte b are list[first[b] .. first[b + 1]) */
    pcre2_code *word;    /* a word character; NULL when no token asks */
};
/* Append; call tokenizer_added_sort after the last. */
bool tokenizer_added_add(struct added_set *s, const struct added_token *t, struct err *e) ERR_CHECK;
/* Two equal texts are ERR_INPUT. */
bool tokenizer_added_sort(struct added_set *s, struct err *e) ERR_CHECK;
void tokenizer_added_fini(struct added_set *s);

/* A stretch of text: an added token when id >= 0, else text that is still to be encoded. Spans may overlap when a token
 * that starts with white space follows one with rstrip; the library does the same. */
struct added_span {
    size_t start, end;
    int32_t id;
};
struct added_spans {
    struct added_span *list;
    size_t n, capacity;
};
/* Cut a text of n bytes at its added tokens: at each place the longest that is there. Spans are appended, in order. */
bool tokenizer_added_find(const struct added_set *s, pcre2_match_data *data, const char *text, size_t n,
                          struct added_spans *out, struct err *e) ERR_CHECK;

#endif
