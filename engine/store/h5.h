#ifndef ENGINE_STORE_H5_H
#define ENGINE_STORE_H5_H
/* Small helpers on top of libhdf5: types, attributes, property lists, errors. Only for functions that io_call runs. */
#include <hdf5.h>

#include "engine/base/dtype.h"

#define H5_BLOCK 4096 /* the user block, and the alignment of data */

/* Fill *e with the text and the deepest message of libhdf5's error stack. ERR_RESOURCE when that says that the disk,
 * the quota, the file-size limit, memory or the table of open files is full, else ERR_IO. Returns false. */
bool h5_fail(struct err *e, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Was it the disk, the quota or the file-size limit? Of an error that h5_fail made; may be asked on any thread. */
bool h5_disk_full(const struct err *e);

/* The file type of an element: bf16 and f16 as 16-bit floats, one-byte floats and bool as u8, and with string_bytes > 0
 * fixed NUL-padded strings. The caller closes it. Negative on failure. */
hid_t h5_type(enum dtype t, size_t string_bytes);

/* Attributes of an open object. Text is fixed-size, UTF-8, NUL-padded. */
bool h5_set_text(hid_t object, const char *name, const char *text, struct err *e) ERR_CHECK;
bool h5_set_double(hid_t object, const char *name, double x, struct err *e) ERR_CHECK;
bool h5_set_int(hid_t object, const char *name, int64_t x, struct err *e) ERR_CHECK;
/* As text of variable length, which Python sees as str; for run.h5 only. */
bool h5_set_string(hid_t object, const char *name, const char *text, struct err *e) ERR_CHECK;

/* A new file at `path`, which must not exist, with a user block of H5_BLOCK zero bytes; nothing in it depends on the
 * time. `compact`: the object headers of HDF5 1.8, which take texts of any length. Negative on failure, *e filled. */
hid_t h5_create(const char *path, bool compact, struct err *e);
/* The file behind descriptor fd, read-only and without locks. */
hid_t h5_open(int fd, struct err *e);

/* A contiguous dataset whose space is reserved, never filled, and its four attributes. *offset = where its data lies in
 * the file, 0 when it has none. Intermediate groups are made. */
struct h5_dataset {
    const char *name;
    hid_t type; /* borrowed */
    int rank;
    const hsize_t *shape;
    const char *unit, *axes, *description, *dtype;
};
bool h5_reserve(hid_t file, const struct h5_dataset *d, uint64_t *offset, struct err *e) ERR_CHECK;

#endif
