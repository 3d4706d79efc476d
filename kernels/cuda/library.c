/* dlopen, once per process, and never closed: the library keeps state of its own. It is looked for where the loader
 * looks, and beside the toolkit that this build was made with. */
#include "kernels/cuda/library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

/* The first part of a version names the file: CUBLAS_VER_MAJOR of the header. */
#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
#define FILE_NAME "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct cublaslt library;
static struct err failure;
static bool is_there;

static void open_library(void)
{
    void *file = dlopen(FILE_NAME, RTLD_NOW | RTLD_LOCAL);
    if (!file) {
        err_set(&failure, ERR_DEVICE, "cannot load %s (%s); install the CUDA %d libraries or point LD_LIBRARY_PATH at "
                "them", FILE_NAME, dlerror(), CUBLAS_VER_MAJOR);
        return;
    }
    const char *missing = NULL;
#define X(name)                                                                                                        \
    *(void **)&library.name = dlsym(file, #name);                                                                      \
    missing = library.name ? missing : #name;
    CUBLASLT_FUNCTIONS(X)
#undef X
    if (missing)
        err_set(&failure, ERR_DEVICE, "%s has no function %s; it is not the library of CUDA %d", FILE_NAME, missing,
                CUBLAS_VER_MAJOR);
    is_there = !missing;
}

const struct cublaslt *library_cublaslt(struct err *e)
{
    pthread_once(&once, open_library);
    if (!is_there)
        *e = failure;
    return is_there ? &library : NULL;
}
