#ifndef ENGINE_STORE_SESSION_H
#define ENGINE_STORE_SESSION_H
/* A store's temporary files. Each opened store has a folder tmp/<session>/ and holds a lock on tmp/<session>.lock as
 * long as it lives; the kernel frees the lock when the process dies, so whoever gets the lock may remove the folder. */
#include "engine/store/store_private.h"

/* Make and lock our session. */
bool session_open(struct store *s, struct err *e) ERR_CHECK;
/* Remove it with all that is in it. */
void session_close(struct store *s);
/* Remove the sessions whose creators are gone. What cannot be removed is left for the next time. */
void session_clean(const struct store *s);

#endif
