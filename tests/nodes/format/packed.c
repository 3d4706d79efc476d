/* Renderings where kernels see them: encoding piece by piece into borrowed parts gives what the format's own encoding
 * gives, and a copy is the rendering again. */
#include "tests/nodes/format/rendered.h"

#include "nodes/format/loss.h"
#include "nodes/format/packed.h"

enum { N = 2 * LOSS_ROWS + 13, K = 128 };

static struct queue host(void)
{
    struct err e = {0};
    struct queue q = {.k = kernels_cpu(&e), .threads = 2, .device = TENSOR_HOST};
    assert_non_null(q.k);
    return q;
}

static void same_parts(const struct rendering *a, const struct rendering *b)
{
    struct format_part parts[FORMAT_PARTS];
    int count = a->format->parts(a->n, a->k, a->source, parts);
    for (int i = 0; i < count; i++)
        if (memcmp(a->part[i], b->part[i], part_bytes(a, i)) != 0)
            fail_msg("%s: %s differs", a->format->name, parts[i].suffix);
}

static void pieces_encoded_into_borrowed_parts_make_the_rendering(void **state)
{
    (void)state;
    struct queue q = host();
    struct err e = {0};
    float *w = gaussian(N * K, 0.02f), *left = gaussian(LOSS_ROWS * K, 1.0f), decoded[K];
    for (const struct format *const *f = formats; *f; f++) {
        if (!(*f)->group_format)
            continue;
        float amax = 0.0f;
        struct rendering want = encoded(*f, w, N, K), got = rendering_of(*f, N, K, DTYPE_BF16);
        struct packed_matrix packed = packed_borrow(&got);
        assert_ok(format_amax(w, N, K, &amax, &e), e);
        for (int64_t first = 0; first < N; first += LOSS_ROWS) {
            int64_t n = N - first < LOSS_ROWS ? N - first : LOSS_ROWS;
            struct packed_matrix rows = packed_rows(&packed, first, n);
            struct tensor in = tensor_matrix(w + first * K, DTYPE_F32, n, K);
            struct tensor d = tensor_matrix(left, DTYPE_F32, n, K);
            assert_ok(q.k->encode(&q, &in, amax, &rows, &d, &e), e);
            for (int64_t row = 0; row < n; row++) {
                (*f)->decode(&want, first + row, 1, decoded);
                for (int i = 0; i < K; i++)
                    assert_int_equal(f32_bits(left[row * K + i]), f32_bits(w[(first + row) * K + i] - decoded[i]));
            }
        }
        same_parts(&want, &got);
        packed_free(&q, &packed); /* lets go of them only */
        same_parts(&want, &got);
        release(&want);
        release(&got);
    }
    free(w);
    free(left);
}

static void a_copy_is_the_rendering_again(void **state)
{
    (void)state;
    struct queue q = host();
    struct err e = {0};
    float *w = gaussian(N * K, 0.02f);
    for (const struct format *const *f = formats; *f; f++) {
        struct rendering r = encoded(*f, w, N, K), again = rendering_of(*f, N, K, DTYPE_BF16);
        struct packed_matrix copy, open;
        assert_ok(packed_new(&q, *f, N, K, DTYPE_BF16, &copy, &e), e);
        assert_ok(packed_upload(&q, &r, &copy, &e) && packed_download(&q, &copy, &again, &e), e);
        same_parts(&r, &again);
        assert_ok(packed_open(&q, &r, &open, &e), e);
        for (int i = 0; i < FORMAT_PARTS; i++) {
            assert_ptr_equal(open.part[i].data, copy.part[i].data ? r.part[i] : NULL);
            assert_false(open.part[i].owned);
        }
        packed_free(&q, &open);
        packed_free(&q, &copy);
        release(&r);
        release(&again);
    }
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_encoded_into_borrowed_parts_make_the_rendering),
        cmocka_unit_test(a_copy_is_the_rendering_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
