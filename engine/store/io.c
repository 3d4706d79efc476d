#include "engine/store/io.h"

#include <errno.h>
#include <hdf5.h>
#include <pthread.h>
#include <signal.h>

struct job {
    bool (*fn)(void *context, struct err *e);
    void *context;
    struct err *e;
    bool result, done;
    struct job *next;
};

/* libhdf5 is one library with one global state per process, so its thread is one per process too. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t posted, finished;
    struct job *first, *last;
    bool started;
} io = {.lock = PTHREAD_MUTEX_INITIALIZER, .posted = PTHREAD_COND_INITIALIZER, .finished = PTHREAD_COND_INITIALIZER};

static void *serve(void *unused)
{
    (void)unused;
    H5dont_atexit();
    H5open();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* errors come back as struct err, never as text on stderr */
    pthread_mutex_lock(&io.lock);
    for (;;) {
        while (!io.first)
            pthread_cond_wait(&io.posted, &io.lock);
        struct job *j = io.first;
        io.first = j->next;
        pthread_mutex_unlock(&io.lock);
        bool result = j->fn(j->context, j->e);
        H5Eclear2(H5E_DEFAULT);
        pthread_mutex_lock(&io.lock);
        j->result = result;
        j->done = true;
        pthread_cond_broadcast(&io.finished);
    }
    return NULL;
}

/* With the lock held. Signals stay with the threads that expect them. */
static bool start(struct err *e)
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, old;
    int error = pthread_attr_init(&attributes);
    if (error == 0) {
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        error = pthread_create(&thread, &attributes, serve, NULL);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        pthread_attr_destroy(&attributes);
    }
    errno = error;
    if (error)
        return err_errno(e, ERR_RESOURCE, "cannot start the HDF5 thread");
    io.started = true;
    return true;
}

bool io_call(bool (*fn)(void *context, struct err *e), void *context, struct err *e)
{
    struct job j = {.fn = fn, .context = context, .e = e};
    pthread_mutex_lock(&io.lock);
    if (!io.started && !start(e)) {
        pthread_mutex_unlock(&io.lock);
        return false;
    }
    if (io.first)
        io.last->next = &j;
    else
        io.first = &j;
    io.last = &j;
    pthread_cond_signal(&io.posted);
    while (!j.done)
        pthread_cond_wait(&io.finished, &io.lock);
    pthread_mutex_unlock(&io.lock);
    return j.result;
}
