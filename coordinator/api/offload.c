/* One thread for blocking reads. */
#include "coordinator/api/offload.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

struct offload {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct offload_job *head, **tail;
    bool stop;
    struct port *port;
};

static void back(struct port_item *it)
{
    struct offload_job *j = (struct offload_job *)it;
    j->done(j);
}

static void *run(void *arg)
{
    struct offload *o = arg;
    pthread_mutex_lock(&o->lock);
    for (;;) {
        while (!o->head && !o->stop)
            pthread_cond_wait(&o->more, &o->lock);
        struct offload_job *j = o->head;
        if (!j)
            break;
        if (!(o->head = j->next))
            o->tail = &o->head;
        pthread_mutex_unlock(&o->lock);
        j->work(j);
        j->item.run = back;
        port_post(o->port, &j->item);
        pthread_mutex_lock(&o->lock);
    }
    pthread_mutex_unlock(&o->lock);
    return NULL;
}

int offload_new(struct offload **out, struct port *port)
{
    struct offload *o = calloc(1, sizeof *o);
    if (!o)
        return ST_ENOMEM;
    o->tail = &o->head;
    o->port = port;
    pthread_mutex_init(&o->lock, NULL);
    pthread_cond_init(&o->more, NULL);
    if (pthread_create(&o->thread, NULL, run, o)) {
        pthread_cond_destroy(&o->more);
        pthread_mutex_destroy(&o->lock);
        free(o);
        return ST_ERESOURCE;
    }
    *out = o;
    return ST_OK;
}

void offload_free(struct offload *o)
{
    if (!o)
        return;
    pthread_mutex_lock(&o->lock);
    o->stop = true;
    pthread_cond_signal(&o->more);
    pthread_mutex_unlock(&o->lock);
    pthread_join(o->thread, NULL);
    port_drain(o->port);
    pthread_cond_destroy(&o->more);
    pthread_mutex_destroy(&o->lock);
    free(o);
}

void offload_run(struct offload *o, struct offload_job *j)
{
    j->next = NULL;
    pthread_mutex_lock(&o->lock);
    *o->tail = j;
    o->tail = &j->next;
    pthread_cond_signal(&o->more);
    pthread_mutex_unlock(&o->lock);
}
