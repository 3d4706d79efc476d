/* The transpose of panels (pack.h): sixteen features by sixteen inputs, which lie together in both, at a time. What is
 * past N or K is zero in the source's panels, and becomes so in the result's. */
#include "kernels/cpu/codes.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/pack.h"
#include "kernels/shape.h"

/* from: rows of sixteen features each, `rows` of them there; to: `columns` rows of sixteen inputs. */
static void block_f32(const float *from, int64_t rows, float *to, int64_t columns)
{
    struct lanes v[LANES];
    for (int64_t i = 0; i < LANES; i++)
        v[i] = i < rows ? lanes_load(from + i * LANES) : lanes_zero();
    codes_transpose(v);
    for (int64_t i = 0; i < LANES && i < columns; i++)
        lanes_store(to + i * LANES, v[i]);
}

/* The same of bf16, with two inputs, or two features, in a word, the even one low; `rows` and `columns` count pairs. */
static void block_bf16(const float *from, int64_t rows, float *to, int64_t columns)
{
    struct lanes v[LANES];
    for (int64_t i = 0; i < LANES / 2; i++) {
        struct lanes pair = i < rows ? lanes_load(from + i * LANES) : lanes_zero();
        v[2 * i] = codes_left(pair, 16);
        v[2 * i + 1] = lanes_and(pair, 0xffff0000u);
    }
    codes_transpose(v);
    for (int64_t i = 0; i < LANES / 2 && i < columns; i++)
        lanes_store(to + i * LANES, lanes_or(codes_right(v[2 * i], 16), v[2 * i + 1]));
}

bool CPU(transpose)(struct queue *q, const struct tensor *w, struct tensor *out, struct err *e)
{
    if (!shape_transpose(q, w, out, e))
        return false;
    const bool bf16 = w->dtype == DTYPE_BF16;
    const int64_t n = w->shape[0], k = w->shape[1];
    /* Rows of a panel, and of a block, in words of four bytes times sixteen. */
    const int64_t from_rows = bf16 ? (k + 1) / 2 : k, to_rows = bf16 ? (n + 1) / 2 : n;
    const int64_t block = bf16 ? LANES / 2 : LANES;
#pragma omp parallel for num_threads(cpu_threads(q, n * k)) schedule(static)
    for (int64_t j = 0; j < pack_panels(k); j++) {
        for (int64_t i = 0; i < pack_panels(n); i++) {
            const float *from = (const float *)w->data + (i * from_rows + j * block) * LANES;
            float *to = (float *)out->data + (j * to_rows + i * block) * LANES;
            if (bf16)
                block_bf16(from, from_rows - j * block, to, to_rows - i * block);
            else
                block_f32(from, from_rows - j * block, to, to_rows - i * block);
        }
    }
    return true;
}
