/* Helpers on top of libhdf5, see h5.h. What an object, a ledger segment or run.h5 holds is decided elsewhere; here is
 * only how a type, an attribute, a dataset without data and a file without times are made. */
#include "engine/store/h5.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct deepest {
    char text[300];
    bool memory;
};

static herr_t keep_first(unsigned n, const H5E_error2_t *error, void *context)
{
    struct deepest *d = context;
    if (n == 0) {
        snprintf(d->text, sizeof d->text, "%s", error->desc ? error->desc : "unknown error");
        d->memory = error->maj_num == H5E_RESOURCE;
    }
    return 0;
}

/* libhdf5 says errno in words only; 0 when it does not. */
static int error_number(const char *text)
{
    int number = 0;
    const char *at = strstr(text, "errno = ");
    return at && sscanf(at, "errno = %d", &number) == 1 ? number : 0;
}

static bool disk_number(int number) { return number == ENOSPC || number == EDQUOT || number == EFBIG; }

bool h5_fail(struct err *e, const char *format, ...)
{
    char what[400];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    struct deepest d = {"no message", false};
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &d);
    H5Eclear2(H5E_DEFAULT);
    int number = error_number(d.text);
    char *details = strstr(d.text, ": time = "); /* libhdf5 goes on with clock, buffer address and the like */
    if (details && number)
        snprintf(details, sizeof d.text - (size_t)(details - d.text), ": %s (errno = %d)", strerror(number), number);
    bool resource = d.memory || disk_number(number) || number == EMFILE || number == ENFILE || number == ENOMEM;
    return err_set(e, resource ? ERR_RESOURCE : ERR_IO, "%s: HDF5 says: %s", what, d.text);
}

bool h5_disk_full(const struct err *e) { return e && e->code == ERR_RESOURCE && disk_number(error_number(e->text)); }

/* A float type of 16 bits: sign, `exponent` bits, `mantissa` bits. */
static hid_t half_type(size_t exponent, size_t mantissa, size_t bias)
{
    hid_t t = H5Tcopy(H5T_IEEE_F32LE);
    if (t < 0)
        return t;
    if (H5Tset_fields(t, 15, mantissa, exponent, 0, mantissa) < 0 || H5Tset_size(t, 2) < 0 ||
        H5Tset_ebias(t, bias) < 0) {
        H5Tclose(t);
        return -1;
    }
    return t;
}

static hid_t string_type(size_t bytes)
{
    hid_t t = H5Tcopy(H5T_C_S1);
    if (t < 0)
        return t;
    if (H5Tset_size(t, bytes) < 0 || H5Tset_strpad(t, bytes == H5T_VARIABLE ? H5T_STR_NULLTERM : H5T_STR_NULLPAD) < 0 ||
        H5Tset_cset(t, H5T_CSET_UTF8) < 0) {
        H5Tclose(t);
        return -1;
    }
    return t;
}

hid_t h5_type(enum dtype t, size_t string_bytes)
{
    if (string_bytes > 0)
        return string_type(string_bytes);
    switch (t) {
    case DTYPE_F32: return H5Tcopy(H5T_IEEE_F32LE);
    case DTYPE_F64: return H5Tcopy(H5T_IEEE_F64LE);
    case DTYPE_BF16: return half_type(8, 7, 127);
    case DTYPE_F16: return half_type(5, 10, 15);
    case DTYPE_U8:
    case DTYPE_BOOL:
    case DTYPE_F8_E4M3:
    case DTYPE_F8_E8M0: return H5Tcopy(H5T_STD_U8LE);
    case DTYPE_I8: return H5Tcopy(H5T_STD_I8LE);
    case DTYPE_U16: return H5Tcopy(H5T_STD_U16LE);
    case DTYPE_I16: return H5Tcopy(H5T_STD_I16LE);
    case DTYPE_U32: return H5Tcopy(H5T_STD_U32LE);
    case DTYPE_I32: return H5Tcopy(H5T_STD_I32LE);
    case DTYPE_U64: return H5Tcopy(H5T_STD_U64LE);
    case DTYPE_I64: return H5Tcopy(H5T_STD_I64LE);
    case DTYPE_COUNT: break;
    }
    return -1;
}

/* A scalar attribute; `type` is its type in the file and in memory, and is closed. */
static bool set_attribute(hid_t object, const char *name, hid_t type, const void *value, struct err *e)
{
    hid_t space = H5Screate(H5S_SCALAR), attribute = -1;
    bool ok = false;
    if (type >= 0 && space >= 0)
        attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (attribute >= 0)
        ok = H5Awrite(attribute, type, value) >= 0;
    if (attribute >= 0 && H5Aclose(attribute) < 0)
        ok = false;
    if (!ok)
        h5_fail(e, "cannot write attribute '%s'", name);
    if (space >= 0)
        H5Sclose(space);
    if (type >= 0)
        H5Tclose(type);
    return ok;
}

bool h5_set_text(hid_t object, const char *name, const char *text, struct err *e)
{
    size_t n = strlen(text);
    return set_attribute(object, name, string_type(n ? n : 1), text, e);
}

bool h5_set_string(hid_t object, const char *name, const char *text, struct err *e)
{
    return set_attribute(object, name, string_type(H5T_VARIABLE), &text, e);
}

bool h5_set_double(hid_t object, const char *name, double x, struct err *e)
{
    return set_attribute(object, name, H5Tcopy(H5T_IEEE_F64LE), &x, e);
}

bool h5_set_int(hid_t object, const char *name, int64_t x, struct err *e)
{
    return set_attribute(object, name, H5Tcopy(H5T_STD_I64LE), &x, e);
}

hid_t h5_create(const char *path, bool compact, struct err *e)
{
    hid_t creation = H5Pcreate(H5P_FILE_CREATE), access = H5Pcreate(H5P_FILE_ACCESS), file = -1;
    H5F_libver_t low = compact ? H5F_LIBVER_V18 : H5F_LIBVER_EARLIEST;
    if (creation >= 0 && access >= 0 && H5Pset_userblock(creation, H5_BLOCK) >= 0 &&
        H5Pset_obj_track_times(creation, false) >= 0 && H5Pset_libver_bounds(access, low, H5F_LIBVER_V18) >= 0 &&
        H5Pset_alignment(access, H5_BLOCK, H5_BLOCK) >= 0 && H5Pset_file_locking(access, false, true) >= 0)
        file = H5Fcreate(path, H5F_ACC_EXCL, creation, access);
    if (file < 0)
        h5_fail(e, "cannot create '%s'", path);
    if (creation >= 0)
        H5Pclose(creation);
    if (access >= 0)
        H5Pclose(access);
    return file;
}

hid_t h5_open(int fd, struct err *e)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd); /* the very file that was checked, whatever its name is now */
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), file = -1;
    if (access >= 0 && H5Pset_file_locking(access, false, true) >= 0)
        file = H5Fopen(path, H5F_ACC_RDONLY, access);
    if (file < 0)
        h5_fail(e, "cannot open the HDF5 part");
    if (access >= 0)
        H5Pclose(access);
    return file;
}

static bool set_description(hid_t dataset, const struct h5_dataset *d, struct err *e)
{
    return h5_set_text(dataset, "unit", d->unit, e) && h5_set_text(dataset, "axes", d->axes, e) &&
           h5_set_text(dataset, "description", d->description, e) && h5_set_text(dataset, "dtype", d->dtype, e);
}

bool h5_reserve(hid_t file, const struct h5_dataset *d, uint64_t *offset, struct err *e)
{
    bool ok = false;
    hid_t links = H5Pcreate(H5P_LINK_CREATE), creation = H5Pcreate(H5P_DATASET_CREATE), dataset = -1;
    hid_t space = d->rank ? H5Screate_simple(d->rank, d->shape, NULL) : H5Screate(H5S_SCALAR);
    if (links >= 0 && creation >= 0 && space >= 0 && H5Pset_create_intermediate_group(links, 1) >= 0 &&
        H5Pset_layout(creation, H5D_CONTIGUOUS) >= 0 && H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY) >= 0 &&
        H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER) >= 0 && H5Pset_obj_track_times(creation, false) >= 0)
        dataset = H5Dcreate2(file, d->name, d->type, space, links, creation, H5P_DEFAULT);
    if (dataset < 0) {
        h5_fail(e, "cannot create dataset '%s'", d->name);
        goto out;
    }
    if (!set_description(dataset, d, e))
        goto out;
    haddr_t at = H5Dget_offset(dataset);
    *offset = at == HADDR_UNDEF ? 0 : (uint64_t)at;
    ok = true;
out:
    if (dataset >= 0 && H5Dclose(dataset) < 0 && ok)
        ok = h5_fail(e, "cannot close dataset '%s'", d->name);
    if (space >= 0)
        H5Sclose(space);
    if (creation >= 0)
        H5Pclose(creation);
    if (links >= 0)
        H5Pclose(links);
    return ok;
}
