/*
 * From a policy change to its being enforced: a user works with a session on an agent, an admin takes the
 * user's role away, and what counts is the time from before the admin's call to the first call of the user
 * that the agent refuses.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "bench/access/cluster.h"
#include "strata/devices.h"
#include "strata/v1/devices.pb-c.h"
#include "strata/v1/policies.pb-c.h"

static int take(const struct strata_error *se, struct err *e)
{
    return err_reason(e, se->code, se->reason, "%.500s", se->text);
}

static int apply(struct strata_client *admin, const char *role, struct err *e)
{
    Strata__V1__Policy p = STRATA__V1__POLICY__INIT, *pv = &p;
    Strata__V1__ApplyPoliciesRequest q = STRATA__V1__APPLY_POLICIES_REQUEST__INIT;
    ProtobufCMessage *m = NULL;
    struct strata_error se = {0};
    char *roles[] = {(char *)role};
    p.principal = (char *)"user/bench";
    p.roles = roles;
    p.n_roles = 1;
    q.policies = &pv;
    q.n_policies = 1;
    if (strata_client_call(admin, &strata__v1__policies__descriptor, "Apply", &q.base, 20 * NS_PER_S, NULL,
                           &m, &se) < 0)
        return take(&se, e);
    protobuf_c_message_free_unpacked(m, NULL);
    return ST_OK;
}

struct worker {
    struct strata_devices *d;
    atomic_uint calls;
    uint64_t refused_ns;
    struct strata_error why;
};

/* Asks what the session holds, over and over, until it is told that there is none. */
static void *work(void *arg)
{
    struct worker *w = arg;
    Strata__V1__SessionStateRequest q = STRATA__V1__SESSION_STATE_REQUEST__INIT;
    ProtobufCMessage *m = NULL;
    while (strata_devices_call(w->d, &strata__v1__devices__descriptor, "Session", &q.base, 20 * NS_PER_S, &m,
                               &w->why) == 0) {
        protobuf_c_message_free_unpacked(m, NULL);
        atomic_fetch_add(&w->calls, 1);
    }
    w->refused_ns = clock_ns(clock_system());
    return NULL;
}

static int open_session(struct strata_client *user, struct strata_devices **d, struct err *e)
{
    const struct strata_devices_opts o = {.limit_bytes = 1 << 20};
    struct strata_error se = {0};
    for (int i = 0; i < 300; i++) { /* until the agent has registered */
        if (strata_devices_open(d, user, "n1", &o, &se) == 0)
            return ST_OK;
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
    return take(&se, e);
}

static int one_round(struct strata_client *admin, struct strata_client *user, double *ms, struct err *e)
{
    struct worker w = {0};
    pthread_t t;
    int rc = apply(admin, "user", e);
    if (rc < 0 || (rc = open_session(user, &w.d, e)) < 0)
        return rc;
    if (pthread_create(&t, NULL, work, &w)) {
        strata_devices_leave(w.d);
        return err_set(e, ST_ERESOURCE, "cannot start a thread");
    }
    while (atomic_load(&w.calls) < 10) /* at work */
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    uint64_t began = clock_ns(clock_system());
    rc = apply(admin, "monitor", e);
    pthread_join(t, NULL);
    strata_devices_leave(w.d);
    if (rc == ST_OK && strcmp(w.why.reason, "MISSING_PERMISSION"))
        return err_set(e, ST_EINTERNAL, "the session ended with %s and not for the change of policy: %.300s",
                       w.why.reason, w.why.text);
    *ms = (double)(w.refused_ns - began) / 1e6;
    return rc;
}

int bench_enforced(struct bench_cluster *k, double *ms, unsigned rounds, struct err *e)
{
    struct strata_client *admin = NULL, *user = NULL;
    int rc = bench_cluster_client(k, "admin", &admin, e);
    if (rc == ST_OK)
        rc = bench_cluster_client(k, "bench", &user, e);
    for (unsigned i = 0; i < rounds && rc == ST_OK; i++)
        rc = one_round(admin, user, &ms[i], e);
    strata_client_close(user);
    strata_client_close(admin);
    return rc;
}
