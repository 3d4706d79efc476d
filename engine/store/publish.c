/* Publishing: a finished file in tmp/ becomes the object of its key, and stays it through a power cut. */
#include <errno.h>
#include <unistd.h>

#include "engine/store/store_private.h"
#include "engine/store/sys.h"

/* Make objects/ab, and see to it that it survives a power cut, once per opened store. */
static bool make_fanout(struct store *s, const struct key *k, char **folder, struct err *e)
{
    char *objects = NULL;
    char text[KEY_TEXT];
    pthread_mutex_lock(&s->lock);
    bool synced = s->fanout_synced[k->bytes[0]];
    pthread_mutex_unlock(&s->lock);
    *folder = NULL;
    bool ok = store_format(s, folder, e, "objects/%.2s", key_text(k, text)) && store_make_directory(*folder, e);
    if (ok && !synced) {
        ok = store_format(s, &objects, e, "objects") && store_sync_directory(objects, e);
        pthread_mutex_lock(&s->lock);
        s->fanout_synced[k->bytes[0]] = ok;
        pthread_mutex_unlock(&s->lock);
    }
    mem_free(objects);
    if (!ok) {
        mem_free(*folder);
        *folder = NULL;
    }
    return ok;
}

bool publish_object(struct store *s, const struct key *key, const char *temporary, uint64_t bytes, struct err *e)
{
    char *folder = NULL, *final = NULL;
    bool ok = false, done = false;
    if (!make_fanout(s, key, &folder, e) || !store_object_path(s, key, &final, e))
        goto out;
    for (int attempt = 0; !done; attempt++) {
        if (sys_rename_new(temporary, final) == 0)
            break;
        if (errno != EEXIST || attempt == 3) {
            store_write_error(s, final, bytes, e);
            goto out;
        }
        int fd;
        if (!object_file_open(s, key, &fd, e))
            goto out;
        done = fd >= 0;
        if (fd >= 0)
            sys_close(fd);
    }
    if (done)
        unlink(temporary);
    ok = store_sync_directory(folder, e) && store_mark_verified(s, key, e);
out:
    mem_free(folder);
    mem_free(final);
    return ok;
}
