#include "engine/base/ahead.h"

#include <pthread.h>
#include <string.h>

#include "engine/base/mem.h"

enum ahead_state { IDLE, ASKED, DONE, ENDING };

struct ahead {
    bool (*work)(void *context, struct err *e);
    void *context;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum ahead_state state;
    bool ok;
    struct err error;
};

static void *run(void *context)
{
    struct ahead *a = context;
    pthread_mutex_lock(&a->lock);
    for (;;) {
        while (a->state != ASKED && a->state != ENDING)
            pthread_cond_wait(&a->changed, &a->lock);
        if (a->state == ENDING)
            break;
        pthread_mutex_unlock(&a->lock);
        struct err e = {0};
        bool ok = a->work(a->context, &e);
        pthread_mutex_lock(&a->lock);
        a->ok = ok;
        a->error = e;
        a->state = DONE;
        pthread_cond_broadcast(&a->changed);
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

bool ahead_new(struct ahead **out, bool (*work)(void *context, struct err *e), void *context, struct err *e)
{
    struct ahead *a;
    if (!mem_new(&a, 1, e))
        return false;
    a->work = work;
    a->context = context;
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->changed, NULL);
    int failed = pthread_create(&a->thread, NULL, run, a);
    if (failed) {
        pthread_cond_destroy(&a->changed);
        pthread_mutex_destroy(&a->lock);
        mem_free(a);
        return err_set(e, ERR_RESOURCE, "cannot start a thread for reading ahead: %s", strerror(failed));
    }
    *out = a;
    return true;
}

void ahead_free(struct ahead *a)
{
    if (!a)
        return;
    pthread_mutex_lock(&a->lock);
    while (a->state == ASKED)
        pthread_cond_wait(&a->changed, &a->lock);
    a->state = ENDING;
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->lock);
    pthread_join(a->thread, NULL);
    pthread_cond_destroy(&a->changed);
    pthread_mutex_destroy(&a->lock);
    mem_free(a);
}

void ahead_start(struct ahead *a)
{
    pthread_mutex_lock(&a->lock);
    a->state = ASKED;
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->lock);
}

bool ahead_wait(struct ahead *a, struct err *e)
{
    pthread_mutex_lock(&a->lock);
    while (a->state == ASKED)
        pthread_cond_wait(&a->changed, &a->lock);
    bool ok = a->state != DONE || a->ok;
    if (!ok)
        *e = a->error;
    a->state = IDLE;
    pthread_mutex_unlock(&a->lock);
    return ok;
}
