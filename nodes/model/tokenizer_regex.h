#ifndef NODES_MODEL_TOKENIZER_REGEX_H
#define NODES_MODEL_TOKENIZER_REGEX_H
/* The regular expressions of pre-tokenizers. They are written for Oniguruma and its Unicode 16; here they are
 * translated for PCRE2, so that both find the same matches. What we cannot promise that of is refused by name. */
#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

#include "engine/base/err.h"

/* Compile a pattern of UTF-8 text. The result is immutable and may be used by any number of threads; pcre2_code_free
 * it. A pattern that can match nothing at all (an empty string) is ERR_INPUT. */
bool tokenizer_regex_compile(pcre2_code **out, const char *pattern, struct err *e) ERR_CHECK;
/* The same of a text that is to be found as it is. */
bool tokenizer_regex_literal(pcre2_code **out, const char *text, struct err *e) ERR_CHECK;
/* The characters that Rust's char::is_numeric accepts: one, or a run of them. */
bool tokenizer_regex_digits(pcre2_code **out, bool individual, struct err *e) ERR_CHECK;
/* The character that Rust's regex calls a word character (\w). */
bool tokenizer_regex_word(pcre2_code **out, struct err *e) ERR_CHECK;

/* Match data for one thread, from pcre2_match_data_create. */
bool tokenizer_regex_data(pcre2_match_data **out, struct err *e) ERR_CHECK;
/* The first match in text[at..n): *found, and [*start, *end). */
bool tokenizer_regex_find(const pcre2_code *code, pcre2_match_data *data, const char *text, size_t n, size_t at,
                          bool *found, size_t *start, size_t *end, struct err *e) ERR_CHECK;

#endif
