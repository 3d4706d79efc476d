#ifndef ENGINE_BASE_AHEAD_H
#define ENGINE_BASE_AHEAD_H
/* A thread that does one piece of work while its owner does another: reading ahead. The owner starts a piece, and waits
 * for it before it touches what the work touches or starts the next. */
#include "engine/base/err.h"

struct ahead;

/* `work(context)` is run by the thread once for every ahead_start. The thread has the caller's cores. */
bool ahead_new(struct ahead **out, bool (*work)(void *context, struct err *e), void *context, struct err *e) ERR_CHECK;
void ahead_free(struct ahead *a); /* waits for what is at work; NULL is fine */
void ahead_start(struct ahead *a); /* nothing must be at work */
/* Until the work is done: what it returned. True at once when nothing was started since the last wait. */
bool ahead_wait(struct ahead *a, struct err *e) ERR_CHECK;

#endif
