#ifndef NODES_INSPECT_DECODING_H
#define NODES_INSPECT_DECODING_H
/* Weights from codes and scales, by the formulas of export-formats 2, in double and apart from nodes/format:
 *
 *     nvfp4       e2m1(code) * e4m3(scale) / global
 *     mxfp4       e2m1(code) * 2^(scale - 127)
 *     fp8         e4m3(code) * scale             per row, or per tile of 128 by 128
 *     mxfp8       e4m3(code) * 2^(scale - 127)
 *     int8        code * scale
 *     packed      (code - 2^(bits - 1)) * scale  codes from the low bits of little-endian words
 */
#include "nodes/inspect/scheme.h"

struct decoding {
    struct scheme scheme;
    enum dtype scale_dtype;
    int64_t columns;         /* that share a scale; 0: all of a row */
    double global;           /* NVFP4's divisor, else 1 */
    double code_value[256];  /* of a code: 16 of them for 4 bits */
    double scale_value[256]; /* of a scale of one byte */
};

/* For a layer of that scheme with k columns; `global` is what is stored. */
void decoding_init(struct decoding *d, const struct scheme *s, enum dtype scale_dtype, int64_t k, float global);
/* Bytes of the codes of `count` columns. */
int64_t decoding_code_bytes(const struct decoding *d, int64_t count);
/* `count` weights of one row from column `first`, a multiple of 128 (or count reaches the end of the row). `codes`
 * are at the byte of that column, `scales` at the scale of that column. */
void decoding_run(const struct decoding *d, const unsigned char *codes, const unsigned char *scales, int64_t first,
                  int64_t count, double *out);
/* One stored scale; NaN where the byte is that. */
double decoding_scale(const struct decoding *d, const unsigned char *scale);
size_t decoding_scale_bytes(const struct decoding *d);
/* Values of single codes. */
double decode_e2m1(unsigned code);
double decode_e4m3(unsigned byte);
/* The worked examples of export-formats 1 and 2. True when each decodes to what is written there; else *what names the
 * first that does not. */
bool decoding_examples(const char **what);

#endif
