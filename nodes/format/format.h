#ifndef NODES_FORMAT_FORMAT_H
#define NODES_FORMAT_FORMAT_H
/* Precision formats: how a matrix is stored and how its input is treated at run time. One file a format, one line in
 * the table. A rendering is the codes and scales of one matrix in one format; `decode` is the one documented f32
 * expression for its weights, used by measure, verify and scout decode alike. */
#include "engine/base/mem.h"
#include "kernels/kernels.h"

#define FORMAT_PARTS 4

struct format;

/* One stored tensor of a rendering. Its shape follows from N and K. */
struct format_part {
    const char *suffix; /* "weight_packed": the tensor is <matrix>.<suffix> */
    enum dtype dtype;
    int rank;
    int64_t shape[2];
};

struct rendering {
    const struct format *format;
    int64_t n, k;               /* out_features, in_features */
    enum dtype source;          /* dtype of the source tensor; only bf16, which keeps it, looks at it */
    void *part[FORMAT_PARTS];   /* parallel to format_parts(); borrowed or owned as the maker says */
};

struct format {
    const char *name;           /* "nvfp4" */
    const char *summary;        /* one line */
    enum act_rule act;
    enum weight_code code;      /* what kernels make of its parts */
    int k_multiple;             /* K must be a multiple; else no server has it (what one more wants: serving.h) */
    bool shared_amax;           /* encode wants the largest |w| over all matrices of the unit (NVFP4's global scale) */
    bool static_input_scale;    /* exports input_global_scale = 2688 / amax of the unit's input */
    bool stores_shape;          /* its last part, weight_shape, is N and K: format_rendering_new fills it in */
    const char *group_format;   /* config_groups' "format": "nvfp4-pack-quantized"; NULL: not quantized (bf16) */
    const char *weights_json;   /* config_groups' "weights" object, as JSON text */
    const char *input_json;     /* "input_activations", or "null" */
    /* The stored tensors for an [N,K] matrix whose source dtype is `source` (only bf16, which keeps it, looks at it);
     * returns their number, at most FORMAT_PARTS. A part of rank 2 has a row per row of the matrix; one of rank 1
     * belongs to the matrix. input_global_scale is not among them: it belongs to the unit. */
    int (*parts)(int64_t n, int64_t k, enum dtype source, struct format_part out[FORMAT_PARTS]);
    /* w [n,k] f32 into r->part[], which the caller has allocated. `amax` is that of the matrix, or of the unit when
     * shared_amax. NaN or infinity in w is ERR_NUMERIC with row and column. */
    bool (*encode)(const float *w, float amax, struct rendering *r, struct err *e);
    /* Rows [first, first + n) to out [n,k] f32. The formula is in the format's file. */
    void (*decode)(const struct rendering *r, int64_t first, int64_t n, float *out);
};

/* All formats, in the order of the menu (smallest first); NULL-terminated. */
extern const struct format *const formats[];
extern const struct format format_int4_g128, format_mxfp4_a16, format_mxfp4, format_int4_g64, format_nvfp4_a16,
    format_nvfp4, format_int4_g32, format_fp8_block, format_int8_a16, format_fp8_a16, format_fp8, format_int8,
    format_mxfp8_a16, format_mxfp8, format_bf16;
const struct format *format_find(const char *name);
/* Names of all formats, NULL-terminated, for parameter choices. */
extern const char *const format_names[];
/* May a matrix of this shape have this format? */
bool format_fits(const struct format *f, int64_t n, int64_t k);
/* Payload bytes of one matrix as exported: its parts, plus input_global_scale (4 bytes) when static_input_scale. For a
 * shape that the format does not fit, what it would take with the last block padded. */
uint64_t format_bytes(const struct format *f, int64_t n, int64_t k, enum dtype source);
/* Payload bytes of one part. */
uint64_t format_part_bytes(const struct format_part *p);
/* Fill *r for an [N,K] matrix and allocate its parts with mem_* (rendering_free of nodes/model frees them). On failure
 * nothing is left allocated and *r is unchanged. */
bool format_rendering_new(struct rendering *r, const struct format *f, int64_t n, int64_t k, enum dtype source,
                          struct err *e) ERR_CHECK;
/* *amax = max(*amax, max|w|) over w [n,k] f32. NaN or infinity is ERR_NUMERIC with row and column. */
bool format_amax(const float *w, int64_t n, int64_t k, float *amax, struct err *e) ERR_CHECK;

#endif
