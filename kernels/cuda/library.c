/* dlopen, once per process, and never closed: the libraries keep state of their own. They are looked for where the
 * loader looks, and beside the toolkit that this build was made with. */
#include "kernels/cuda/library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

/* The first part of a version names the file: for cuBLASLt that of CUDA, for cuSOLVER one less. */
#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
#define CUBLASLT_FILE "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)
#if CUBLAS_VER_MAJOR >= 13
#define CUSOLVER_FILE "libcusolver.so.12"
#else
#define CUSOLVER_FILE "libcusolver.so.11"
#endif

/* Fills a struct of `n` pointers to the functions of that name. */
static bool open_library(const char *file, const char *const *names, size_t n, void *functions, struct err *e)
{
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return err_set(e, ERR_DEVICE, "cannot load %s (%s); install the CUDA %d libraries or point LD_LIBRARY_PATH at "
                       "them", file, dlerror(), CUBLAS_VER_MAJOR);
    for (size_t i = 0; i < n; i++) {
        void *found = dlsym(library, names[i]);
        if (!found)
            return err_set(e, ERR_DEVICE, "%s has no function %s; it is not the library of CUDA %d", file, names[i],
                           CUBLAS_VER_MAJOR);
        memcpy((char *)functions + i * sizeof found, &found, sizeof found);
    }
    return true;
}

#define COUNT(array) (sizeof(array) / sizeof *(array))

static struct cublaslt cublaslt;
static struct err no_cublaslt;
static bool has_cublaslt;

static void open_cublaslt(void)
{
#define X(name) #name,
    static const char *const names[] = {CUBLASLT_FUNCTIONS(X)};
#undef X
    _Static_assert(sizeof cublaslt == COUNT(names) * sizeof(void *), "pointers to functions only");
    has_cublaslt = open_library(CUBLASLT_FILE, names, COUNT(names), &cublaslt, &no_cublaslt);
}

const struct cublaslt *library_cublaslt(struct err *e)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, open_cublaslt);
    if (!has_cublaslt)
        *e = no_cublaslt;
    return has_cublaslt ? &cublaslt : NULL;
}

static struct cusolver cusolver;
static struct err no_cusolver;
static bool has_cusolver;

static void open_cusolver(void)
{
#define X(name, arguments) #name,
    static const char *const names[] = {CUSOLVER_FUNCTIONS(X)};
#undef X
    _Static_assert(sizeof cusolver == COUNT(names) * sizeof(void *), "pointers to functions only");
    has_cusolver = open_library(CUSOLVER_FILE, names, COUNT(names), &cusolver, &no_cusolver);
}

const struct cusolver *library_cusolver(struct err *e)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, open_cusolver);
    if (!has_cusolver)
        *e = no_cusolver;
    return has_cusolver ? &cusolver : NULL;
}
