/* Safetensors files: what is written has the bytes that the format prescribes and reads back equal; reads are ranges of
 * a tensor; failures of writing leave nothing behind. Broken files are in tests/rejects/models. */
#include "nodes/model/safetensors.h"

#include <sys/resource.h>
#include <signal.h>

#include "tests/check.h"

static bool fill(const struct st_source *self, void *out, struct err *e)
{
    if (!self->context)
        return err_set(e, ERR_NUMERIC, "made to fail");
    memcpy(out, self->context, self->bytes);
    return true;
}

static struct st_source source(const char *name, enum dtype t, int rank, int64_t rows, int64_t columns,
                               const void *data)
{
    struct st_source s = {
        .name = name, .dtype = t, .rank = rank, .shape = {rows, columns}, .fill = fill, .context = data};
    s.bytes = dtype_bytes(t);
    for (int d = 0; d < rank; d++)
        s.bytes *= (uint64_t)s.shape[d];
    return s;
}

static void a_small_file_has_known_bytes(void **state)
{
    (void)state;
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[2],"
        "\"data_offsets\":[0,4]},\"a\\\"\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[4,5]}}";
    const uint16_t b[] = {0x3f80, 0xc000};
    const uint8_t a = 7;
    char folder[256], path[300];
    struct err e = {0};
    size_t n = 0, padded = (sizeof header - 1 + 7) / 8 * 8;
    const struct st_source tensors[] = {source("b", DTYPE_BF16, 1, 2, 0, b), source("a\"", DTYPE_U8, 0, 0, 0, &a)};
    check_dir_make(folder);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    assert_ok(safetensors_write(path, tensors, 2, &e), e);
    unsigned char *file = (unsigned char *)check_read(path, &n);
    assert_non_null(file);
    assert_int_equal(n, 8 + padded + 5);
    assert_int_equal(file[0], padded);
    assert_int_equal(file[1], 0);
    assert_memory_equal(file + 8, header, sizeof header - 1);
    for (size_t i = sizeof header - 1; i < padded; i++)
        assert_int_equal(file[8 + i], ' ');
    assert_memory_equal(file + 8 + padded, "\x80\x3f\x00\xc0\x07", 5);
    free(file);
    check_dir_remove(folder);
}

static void what_is_written_is_read_back(void **state)
{
    (void)state;
    enum { MOST = DTYPE_COUNT + 3 };
    static const char *const names[MOST] = {"t0", "t1", "t2", "t3", "t4", "t5", "t6",    "t7",     "t8",
                                            "t9", "ta", "tb", "tc", "td", "te", "empty", "scalar", "\xce\xb1.weight"};
    static unsigned char data[8 * 15];
    struct st_source tensors[MOST];
    char folder[256], path[300];
    struct err e = {0};
    struct safetensors *s = NULL;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)(i * 37 + 11);
    for (int t = 0; t < DTYPE_COUNT; t++)
        tensors[t] = source(names[t], (enum dtype)t, 2, 3, 5, data);
    tensors[DTYPE_COUNT] = source(names[DTYPE_COUNT], DTYPE_F32, 2, 0, 4, data);
    tensors[DTYPE_COUNT + 1] = source(names[DTYPE_COUNT + 1], DTYPE_I64, 0, 0, 0, data);
    tensors[DTYPE_COUNT + 2] = source(names[DTYPE_COUNT + 2], DTYPE_F16, 1, 7, 0, data);
    check_dir_make(folder);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    assert_ok(safetensors_write(path, tensors, MOST, &e) && safetensors_open(&s, folder, &e), e);
    assert_int_equal(s->n_tensors, MOST);
    assert_int_equal(s->n_files, 1);
    for (int i = 0; i < MOST; i++) {
        const struct st_tensor *t = safetensors_find(s, names[i]);
        unsigned char got[sizeof data];
        assert_non_null(t);
        assert_int_equal(t->dtype, tensors[i].dtype);
        assert_int_equal(t->rank, tensors[i].rank);
        assert_int_equal(t->bytes, tensors[i].bytes);
        assert_memory_equal(t->shape, tensors[i].shape, sizeof t->shape);
        assert_ok(safetensors_read(s, t, 0, t->bytes, got, &e), e);
        assert_memory_equal(got, data, t->bytes);
        for (uint64_t first = 0; first <= t->bytes; first += 3) {
            uint64_t n = t->bytes - first < 4 ? t->bytes - first : 4;
            assert_ok(safetensors_read(s, t, first, n, got, &e), e);
            assert_memory_equal(got, data + first, n);
        }
        assert_err(safetensors_read(s, t, 1, t->bytes, got, &e), e, ERR_BUG, names[i]);
        assert_err(safetensors_read(s, t, UINT64_MAX, 2, got, &e), e, ERR_BUG, names[i]);
    }
    for (size_t i = 1; i < s->n_tensors; i++)
        assert_true(strcmp(s->tensors[i - 1].name, s->tensors[i].name) < 0);
    assert_null(safetensors_find(s, "t"));
    safetensors_close(s);
    safetensors_close(NULL);
    check_dir_remove(folder);
}

static void a_file_without_tensors_is_read(void **state)
{
    (void)state;
    char folder[256];
    struct err e = {0};
    struct safetensors *s = NULL;
    check_dir_make(folder);
    check_write(folder, "model.safetensors", "\x02\0\0\0\0\0\0\0{}", 10);
    assert_ok(safetensors_open(&s, folder, &e), e);
    assert_int_equal(s->n_tensors, 0);
    assert_null(safetensors_find(s, "any"));
    safetensors_close(s);
    check_dir_remove(folder);
}

static void a_truncated_file_is_an_error_and_no_signal(void **state)
{
    (void)state;
    static unsigned char data[65536];
    char folder[256], path[300];
    struct err e = {0};
    struct safetensors *s = NULL;
    const struct st_source tensor = source("w", DTYPE_U8, 1, sizeof data, 0, data);
    check_dir_make(folder);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    assert_ok(safetensors_write(path, &tensor, 1, &e) && safetensors_open(&s, folder, &e), e);
    assert_int_equal(truncate(path, 4096), 0);
    safetensors_ahead(s, &s->tensors[0], 0, sizeof data);
    assert_err(safetensors_read(s, &s->tensors[0], 0, sizeof data, data, &e), e, ERR_INPUT,
               "tensor 'w': model.safetensors: truncated: 65536 bytes at offset ");
    safetensors_close(s);
    check_dir_remove(folder);
}

static void a_write_that_fails_leaves_no_file(void **state)
{
    (void)state;
    static unsigned char data[1 << 20];
    char folder[256], path[300];
    struct err e = {0};
    struct st_source tensors[] = {source("a", DTYPE_U8, 1, sizeof data, 0, data), source("b", DTYPE_U8, 1, 4, 0, NULL)};
    check_dir_make(folder);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    assert_err(safetensors_write(path, tensors, 2, &e), e, ERR_NUMERIC, "tensor 'b': made to fail");
    assert_int_equal(access(path, F_OK), -1);

    tensors[0].bytes--;
    assert_err(safetensors_write(path, tensors, 1, &e), e, ERR_BUG, "tensor 'a' of 1048576 bytes");
    assert_int_equal(access(path, F_OK), -1);
    tensors[0].bytes++;

    struct rlimit old, small;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = (struct rlimit){65536, old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    bool ok = safetensors_write(path, tensors, 1, &e);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_false(ok);
    check_err(&e, ERR_RESOURCE, "File too large", __FILE__, __LINE__);
    assert_int_equal(access(path, F_OK), -1);

    check_write(folder, "model.safetensors", "mine", 4);
    assert_err(safetensors_write(path, tensors, 1, &e), e, ERR_IO, "File exists");
    assert_int_equal(access(path, F_OK), 0);
    check_dir_remove(folder);
}

static void writing_survives_failing_allocations(void **state)
{
    (void)state;
    static const unsigned char data[16];
    char folder[256], path[300];
    const struct st_source tensor = source("a", DTYPE_U8, 1, sizeof data, 0, data);
    bool done = false;
    check_dir_make(folder);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    for (long n = 1; !done; n++) {
        struct err e = {0};
        mem_fail_after(n, false);
        done = safetensors_write(path, &tensor, 1, &e);
        mem_fail_after(0, false);
        if (!done && (e.code != ERR_RESOURCE || access(path, F_OK) == 0))
            fail_msg("allocation %ld: %s", n, e.text);
        assert_in_range(n, 1, 1000);
    }
    check_dir_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_small_file_has_known_bytes),
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(a_file_without_tensors_is_read),
        cmocka_unit_test(a_truncated_file_is_an_error_and_no_signal),
        cmocka_unit_test(a_write_that_fails_leaves_no_file),
        cmocka_unit_test(writing_survives_failing_allocations),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
