#include "engine/cli/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

struct interrupt {
    pthread_t thread;
    pthread_mutex_t lock;
    sigset_t set;
    struct run *run;
    atomic_bool ending;
};

static void say(const char *text)
{
    (void)!write(STDERR_FILENO, text, strlen(text));
}

static void *watch(void *context)
{
    struct interrupt *i = context;
    bool asked = false;
    for (int got; sigwait(&i->set, &got) == 0 && !atomic_load(&i->ending);) {
        if (got == SIGUSR1)
            continue; /* from outside: Slurm can be told to send it, and to die of it would be no better */
        pthread_mutex_lock(&i->lock);
        bool graceful = !asked && i->run;
        if (graceful)
            run_stop(i->run);
        pthread_mutex_unlock(&i->lock);
        if (!graceful)
            _exit(130);
        asked = true;
        say("scout: stopping at the next row; once more ends at once\n");
    }
    return NULL;
}

bool interrupt_start(struct interrupt **out, struct err *e)
{
    struct interrupt *i;
    if (!mem_new(&i, 1, e))
        return false;
    sigemptyset(&i->set);
    sigaddset(&i->set, SIGINT);
    sigaddset(&i->set, SIGTERM);
    sigaddset(&i->set, SIGUSR1); /* wakes the thread for interrupt_stop */
    atomic_init(&i->ending, false);
    pthread_sigmask(SIG_BLOCK, &i->set, NULL);
    pthread_mutex_init(&i->lock, NULL);
    int failed = pthread_create(&i->thread, NULL, watch, i);
    if (failed) {
        pthread_mutex_destroy(&i->lock);
        mem_free(i);
        return err_set(e, ERR_RESOURCE, "cannot start a thread: %s", strerror(failed));
    }
    *out = i;
    return true;
}

void interrupt_attach(struct interrupt *i, struct run *r)
{
    pthread_mutex_lock(&i->lock);
    i->run = r;
    pthread_mutex_unlock(&i->lock);
}

void interrupt_stop(struct interrupt *i)
{
    if (!i)
        return;
    atomic_store(&i->ending, true);
    pthread_kill(i->thread, SIGUSR1);
    pthread_join(i->thread, NULL);
    pthread_mutex_destroy(&i->lock);
    mem_free(i);
}
