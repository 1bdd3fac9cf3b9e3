#include "agent/layers/files.h"

#include <event2/event.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#define MAX_THREADS 16

struct files {
    struct port *port;
    struct event *ev;
    pthread_mutex_t mu;
    pthread_cond_t more;
    struct files_job *head, **tail; /* under mu */
    bool stop;                      /* under mu */
    pthread_t thread[MAX_THREADS];
    unsigned nthreads;
};

static void on_loop(struct port_item *it)
{
    struct files_job *j = (struct files_job *)it; /* item is its first member */
    j->done(j);
}

static void *thread_main(void *arg)
{
    struct files *f = arg;
    pthread_mutex_lock(&f->mu);
    for (;;) {
        while (!f->head && !f->stop)
            pthread_cond_wait(&f->more, &f->mu);
        struct files_job *j = f->head;
        if (!j)
            break;
        f->head = j->next;
        if (!f->head)
            f->tail = &f->head;
        pthread_mutex_unlock(&f->mu);
        j->work(j);
        port_post(f->port, &j->item);
        pthread_mutex_lock(&f->mu);
    }
    pthread_mutex_unlock(&f->mu);
    return NULL;
}

static void on_port(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    struct files *f = arg;
    port_drain(f->port);
}

int files_new(struct files **out, struct event_base *base, unsigned nthreads, struct err *e)
{
    struct files *f = calloc(1, sizeof *f);
    if (!f)
        return err_set(e, ST_ENOMEM, "no memory for the file threads");
    f->tail = &f->head;
    pthread_mutex_init(&f->mu, NULL);
    pthread_cond_init(&f->more, NULL);
    int rc = port_new(&f->port);
    if (rc < 0) {
        files_free(f);
        return err_set(e, rc, "no event descriptor for the file threads; raise the limit of open files");
    }
    f->ev = event_new(base, port_fd(f->port), EV_READ | EV_PERSIST, on_port, f);
    if (!f->ev || event_add(f->ev, NULL) < 0) {
        files_free(f);
        return err_set(e, ST_ENOMEM, "no memory for the file threads");
    }
    if (nthreads > MAX_THREADS)
        nthreads = MAX_THREADS;
    for (; f->nthreads < nthreads; f->nthreads++) {
        int bad = pthread_create(&f->thread[f->nthreads], NULL, thread_main, f);
        if (bad) {
            files_free(f);
            return err_errno(e, bad, "cannot start a file thread");
        }
    }
    *out = f;
    return ST_OK;
}

void files_free(struct files *f)
{
    if (!f)
        return;
    pthread_mutex_lock(&f->mu);
    f->stop = true;
    pthread_cond_broadcast(&f->more);
    pthread_mutex_unlock(&f->mu);
    for (unsigned i = 0; i < f->nthreads; i++)
        pthread_join(f->thread[i], NULL);
    if (f->port)
        port_drain(f->port);
    if (f->ev)
        event_free(f->ev);
    port_free(f->port);
    pthread_cond_destroy(&f->more);
    pthread_mutex_destroy(&f->mu);
    free(f);
}

void files_submit(struct files *f, struct files_job *j)
{
    j->item.run = on_loop;
    j->next = NULL;
    j->owner = f;
    pthread_mutex_lock(&f->mu);
    *f->tail = j;
    f->tail = &j->next;
    pthread_cond_signal(&f->more);
    pthread_mutex_unlock(&f->mu);
}
