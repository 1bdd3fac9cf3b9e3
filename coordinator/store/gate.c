/*
 * Whoever is answered often comes back with the next transaction at once. If the writer went on meanwhile,
 * those who wait would fall into two groups that take turns, with half the transactions a sync each. So it
 * waits for the loop, but only a part of what a commit takes: the loop may have other things to do. The gate
 * outlives the store, as completions may.
 */
#include <stdlib.h>
#include <time.h>

#include "coordinator/store/store_priv.h"

#define WAIT_MAX_NS 1000000u

struct store_gate {
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;
    unsigned unanswered;
    bool left;
};

struct store_gate *store_gate_new(void)
{
    struct store_gate *g = calloc(1, sizeof *g);
    if (!g)
        return NULL;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->wake, &attr);
    pthread_condattr_destroy(&attr);
    return g;
}

/* Unlocks, and frees it when nobody is left. */
static void unlock(struct store_gate *g)
{
    bool last = g->left && !g->unanswered;
    pthread_mutex_unlock(&g->lock);
    if (!last)
        return;
    pthread_cond_destroy(&g->wake);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

void store_gate_leave(struct store_gate *g)
{
    if (!g)
        return;
    pthread_mutex_lock(&g->lock);
    g->left = true;
    unlock(g);
}

void store_gate_expect(struct store_gate *g)
{
    pthread_mutex_lock(&g->lock);
    g->unanswered++;
    unlock(g);
}

void store_gate_answered(struct store_gate *g)
{
    pthread_mutex_lock(&g->lock);
    g->unanswered--;
    pthread_cond_signal(&g->wake);
    unlock(g);
}

void store_gate_await(struct store_gate *g, uint64_t ns)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    ns = (ns < WAIT_MAX_NS ? ns : WAIT_MAX_NS) + (uint64_t)until.tv_nsec;
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    pthread_mutex_lock(&g->lock);
    while (g->unanswered && pthread_cond_timedwait(&g->wake, &g->lock, &until) == 0)
        ;
    pthread_mutex_unlock(&g->lock);
}
