#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H
/* What the files of kernels/cpu show each other and kernels.c: the entries of the table, by variant. Their contracts
 * are in kernels.h. A file of an elementwise family is compiled three times (lanes.h), so its entries end in _plain,
 * _avx2 or _avx512. */
#include "kernels/kernels.h"

/* Threads for a loop over `work` elements (or multiply-adds, or the like): starting a team costs some microseconds,
 * which a small loop does not win back. Results do not depend on it. */
static inline int cpu_threads(const struct queue *q, int64_t work) { return work < 32768 ? 1 : q->threads; }

/* -- once: memory.c, pack.c, embed.c ------------------------------------------------------------------------- */
bool memory_new(struct queue *q, struct tensor *out, enum dtype t, int rank, const int64_t *shape, struct err *e)
    ERR_CHECK;
void memory_free(struct queue *q, struct tensor *t);
bool memory_upload(struct queue *q, struct tensor *dst, const void *src, size_t bytes, struct err *e) ERR_CHECK;
bool memory_download(struct queue *q, void *dst, const struct tensor *src, size_t bytes, struct err *e) ERR_CHECK;
bool memory_copy(struct queue *q, const struct tensor *src, struct tensor *dst, struct err *e) ERR_CHECK;
bool memory_finish(struct queue *q, struct err *e) ERR_CHECK;
bool memory_host_new(struct queue *q, void **out, size_t bytes, struct err *e) ERR_CHECK;
void memory_host_free(struct queue *q, void *p);
bool pack_panels_new(struct queue *q, struct tensor *out, int64_t n, int64_t k, enum dtype mode, struct err *e)
    ERR_CHECK;
bool pack_fill(struct queue *q, const struct tensor *w, int64_t first, struct tensor *panels, struct err *e) ERR_CHECK;
bool embed(struct queue *q, const struct tensor *table, const struct tensor *ids, struct tensor *y, struct err *e)
    ERR_CHECK;

/* -- products: matmul.c, matmul_avx2.c, matmul_avx512.c, matmul_avx512bf16.c, matmul_amx.c ------------------------- */
/* The whole width, for every variant: matmul_part of the queue's table. */
bool matmul(struct queue *q, const struct tensor *x, const struct tensor *w, struct tensor *y, struct err *e) ERR_CHECK;
#define CPU_DECLARE_MATMUL(variant)                                                                                    \
    bool matmul_part_##variant(struct queue *q, const struct tensor *x, const struct tensor *w, int64_t first,         \
                               struct tensor *y, struct err *e) ERR_CHECK
CPU_DECLARE_MATMUL(plain);
CPU_DECLARE_MATMUL(avx2);
CPU_DECLARE_MATMUL(avx512);
CPU_DECLARE_MATMUL(avx512bf16);
CPU_DECLARE_MATMUL(amx);

/* -- compiled once per variant ------------------------------------------------------------------------------------- */
#define CPU_DECLARE(variant)                                                                                           \
    bool gram_##variant(struct queue *q, const struct tensor *x, struct tensor *h, struct err *e) ERR_CHECK;           \
    bool cholesky_##variant(struct queue *q, struct tensor *a, struct err *e) ERR_CHECK;                               \
    bool energy_##variant(struct queue *q, const struct tensor *d, const struct tensor *y, double *square,             \
                          double *energy, struct err *e) ERR_CHECK;                                                    \
    bool norm_rms_##variant(struct queue *q, const struct tensor *x, const struct tensor *w, float eps,                \
                            struct tensor *y, struct err *e) ERR_CHECK;                                                \
    bool norm_add_rms_##variant(struct queue *q, struct tensor *x, const struct tensor *d, const struct tensor *w,     \
                                float eps, struct tensor *y, struct err *e) ERR_CHECK;                                 \
    bool add_##variant(struct queue *q, struct tensor *x, const struct tensor *d, struct err *e) ERR_CHECK;            \
    bool add_bias_##variant(struct queue *q, struct tensor *y, const struct tensor *b, struct err *e) ERR_CHECK;       \
    bool rope_##variant(struct queue *q, struct tensor *qkv, const struct attention_shape *s,                          \
                        const struct tensor *cosine, const struct tensor *sine, struct err *e) ERR_CHECK;              \
    bool attention_##variant(struct queue *q, const struct tensor *qkv, const struct attention_shape *s,               \
                             struct tensor *out, struct err *e) ERR_CHECK;                                             \
    bool swiglu_##variant(struct queue *q, const struct tensor *gu, struct tensor *y, struct err *e) ERR_CHECK;        \
    bool fake_quantize_##variant(struct queue *q, const struct tensor *x, enum act_rule rule, float scale,             \
                                 enum dtype mode, struct tensor *y, struct err *e) ERR_CHECK;                          \
    bool encode_##variant(struct queue *q, const struct tensor *w, float amax, struct packed_matrix *out,              \
                          struct tensor *d, struct err *e) ERR_CHECK;                                                  \
    bool unpack_##variant(struct queue *q, const struct packed_matrix *w, int64_t first, struct tensor *panels,        \
                          struct err *e) ERR_CHECK;                                                                    \
    bool amax_##variant(struct queue *q, const struct tensor *x, float *amax, struct err *e) ERR_CHECK;                \
    bool kl_tile_##variant(struct queue *q, const struct tensor *s_t, const struct tensor *s_c, int64_t first,         \
                           struct kl_state *state, struct err *e) ERR_CHECK;                                           \
    bool norm_backward_##variant(struct queue *q, const struct tensor *x, const struct tensor *w, float eps,           \
                                 const struct tensor *dy, struct tensor *dx, struct err *e) ERR_CHECK;                 \
    bool attention_backward_##variant(struct queue *q, const struct tensor *qkv, const struct attention_shape *s,      \
                                      const struct tensor *out, const struct tensor *dout, struct tensor *dqkv,        \
                                      struct err *e) ERR_CHECK;                                                        \
    bool swiglu_backward_##variant(struct queue *q, const struct tensor *gu, const struct tensor *dy,                  \
                                   struct tensor *dgu, struct err *e) ERR_CHECK;                                       \
    bool transpose_##variant(struct queue *q, const struct tensor *w, struct tensor *out, struct err *e) ERR_CHECK;    \
    bool fisher_draw_##variant(struct queue *q, struct tensor *s, enum fisher_draw kind, const uint64_t *seeds,        \
                               struct err *e) ERR_CHECK;                                                               \
    bool window_dots_##variant(struct queue *q, const struct tensor *a, const struct tensor *b, int64_t window,        \
                               struct tensor *dot, struct tensor *square, struct err *e) ERR_CHECK;                    \
    bool subtract_##variant(struct queue *q, const struct tensor *a, const struct tensor *b, struct tensor *d,         \
                            struct err *e) ERR_CHECK;                                                                  \
    /* For the tests: y[i] = e^x[i] by lanes_exp. */                                                                   \
    void exp_##variant(const float *x, float *y, int64_t n)
CPU_DECLARE(plain);
CPU_DECLARE(avx2);
CPU_DECLARE(avx512);

#endif
