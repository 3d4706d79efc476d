#ifndef ENGINE_STORE_IO_H
#define ENGINE_STORE_IO_H
/* The one thread that calls libhdf5. It starts with the first call and lives as long as the process; libhdf5's own exit
 * handler, which may crash after a write error, is turned off. Not to be used in a fork()ed child of a process that has
 * used it. */
#include "engine/base/err.h"

/* Run fn(context, e) on the libhdf5 thread and wait for its result. Calls are served in the order in which they came.
 * ERR_RESOURCE when the thread cannot be started. */
bool io_call(bool (*fn)(void *context, struct err *e), void *context, struct err *e) ERR_CHECK;

#endif
