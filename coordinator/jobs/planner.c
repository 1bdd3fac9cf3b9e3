/*
 * The planner's thread: takes immutable problems in order, solves them with the pure plan room, and answers
 * through the loop's port. On shutdown the problem in hand is cancelled and those behind it are dropped with
 * their callbacks told so.
 */
#include <pthread.h>
#include <stdlib.h>

#include "common/model/cluster.h"
#include "common/model/model.h"
#include "common/model/request.h"
#include "coordinator/jobs/jobs_priv.h"
#include "coordinator/plan/inputs.h"

struct problem {
    struct port_item item; /* first: the port hands it back */
    struct cluster *c;
    struct model *m;
    struct request *r;
    enum plan_goal goal;
    jobs_planned_fn fn;
    void *arg;
    int rc;
    struct err e;
    struct plan *plan;
    struct problem *next;
};
struct planner {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct problem *head, **tail;
    bool stop;
    atomic_bool cancel;
    struct port *port;
};

static void problem_free(struct problem *p)
{
    cluster_free(p->c);
    model_free(p->m);
    if (p->r)
        request_fini(p->r);
    free(p->r);
    free(p);
}

static void answer(struct port_item *it)
{
    struct problem *p = (struct problem *)it;
    p->fn(p->arg, p->rc, &p->e, p->plan);
    problem_free(p);
}

static void *run(void *arg)
{
    struct planner *pl = arg;
    pthread_mutex_lock(&pl->lock);
    for (;;) {
        while (!pl->head && !pl->stop)
            pthread_cond_wait(&pl->more, &pl->lock);
        struct problem *p = pl->head;
        if (!p)
            break;
        if (!(pl->head = p->next))
            pl->tail = &pl->head;
        pthread_mutex_unlock(&pl->lock);
        const struct plan_opts o = {
            .goal = p->goal, .time_limit_s = 10, .clock = clock_system(), .cancel = &pl->cancel};
        p->rc = plan_solve_kept(p->c, p->m, p->r, &o, &p->plan, &p->e);
        port_post(pl->port, &p->item);
        pthread_mutex_lock(&pl->lock);
    }
    pthread_mutex_unlock(&pl->lock);
    return NULL;
}

int planner_new(struct planner **out, struct port *port)
{
    struct planner *pl = calloc(1, sizeof *pl);
    if (!pl)
        return ST_ENOMEM;
    pl->tail = &pl->head;
    pl->port = port;
    pthread_mutex_init(&pl->lock, NULL);
    pthread_cond_init(&pl->more, NULL);
    if (pthread_create(&pl->thread, NULL, run, pl)) {
        pthread_cond_destroy(&pl->more);
        pthread_mutex_destroy(&pl->lock);
        free(pl);
        return ST_ERESOURCE;
    }
    *out = pl;
    return ST_OK;
}

void planner_free(struct planner *pl)
{
    if (!pl)
        return;
    atomic_store(&pl->cancel, true);
    pthread_mutex_lock(&pl->lock);
    pl->stop = true;
    pthread_cond_signal(&pl->more);
    pthread_mutex_unlock(&pl->lock);
    pthread_join(pl->thread, NULL);
    port_drain(pl->port);
    pthread_cond_destroy(&pl->more);
    pthread_mutex_destroy(&pl->lock);
    free(pl);
}

int planner_submit(struct planner *pl, struct cluster *c, struct model *m, struct request *r,
                   enum plan_goal goal, jobs_planned_fn fn, void *arg)
{
    struct problem *p = calloc(1, sizeof *p);
    if (!p) {
        cluster_free(c);
        model_free(m);
        if (r)
            request_fini(r);
        free(r);
        return ST_ENOMEM;
    }
    *p = (struct problem){.item.run = answer, .c = c, .m = m, .r = r, .goal = goal, .fn = fn, .arg = arg};
    pthread_mutex_lock(&pl->lock);
    *pl->tail = p;
    pl->tail = &p->next;
    pthread_cond_signal(&pl->more);
    pthread_mutex_unlock(&pl->lock);
    return ST_OK;
}

int jobs_plan(struct jobs *js, struct cluster *c, struct model *m, struct request *r, enum plan_goal goal,
              jobs_planned_fn fn, void *arg)
{
    return js->cfg.plan ? js->cfg.plan(js->cfg.plan_ctx, c, m, r, goal, fn, arg)
                        : planner_submit(js->planner, c, m, r, goal, fn, arg);
}
