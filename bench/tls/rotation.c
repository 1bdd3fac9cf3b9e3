/*
 * A rotation of every leaf and of the CA, from the first word of it to the end of the old CA, while agents
 * are connected and call, a client calls, and bytes flow between two agents. What is lost and how slow the
 * slowest call was is counted by those who call.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/tls/fleet.h"
#include "common/base/str.h"
#include "strata/client.h"
#include "strata/v1/certs.pb-c.h"

#define FLEETS 5
#define POURERS 2 /* agents of the first fleet, which has the transfer: it keeps one loop busy */
#define PATIENCE_NS (180 * NS_PER_S)

struct rotation {
    const struct bench_cluster *c;
    struct strata_client *admin;
    struct fleet fleet[FLEETS];
    char agents_dir[64];
    unsigned agents;
    double client_ms, command_ms; /* slowest call of a client, slowest rotation as such */
    int64_t since_us;             /* no certificate from before the rotation begins after it */
};

static void rest(unsigned ms)
{
    const struct timespec ts = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&ts, NULL);
}

static int ask(struct rotation *r, const char *method, const ProtobufCMessage *q, ProtobufCMessage **m,
               struct err *e)
{
    struct strata_error se = {0};
    uint64_t begin = clock_ns(clock_system());
    int rc = strata_client_call(r->admin, &strata__v1__certs__descriptor, method, q, 0, NULL, m, &se);
    double ms = (double)(clock_ns(clock_system()) - begin) / 1e6;
    bool command = q->descriptor == &strata__v1__rotate_request__descriptor &&
                   !((const Strata__V1__RotateRequest *)q)->dry_run;
    double *worst = command ? &r->command_ms : &r->client_ms;
    *worst = ms > *worst ? ms : *worst;
    return rc < 0 ? err_set(e, ST_EINTERNAL, "%s: %.400s", method, se.text) : ST_OK;
}

static int rotate(struct rotation *r, const char *what, bool dry, size_t *cut_off, struct err *e)
{
    ProtobufCMessage *m;
    Strata__V1__RotateRequest q = STRATA__V1__ROTATE_REQUEST__INIT;
    q.what = (char *)what;
    q.dry_run = dry;
    int rc = ask(r, "Rotate", &q.base, &m, e);
    if (rc < 0)
        return rc;
    if (cut_off)
        *cut_off = ((const Strata__V1__RotateReply *)m)->n_cut_off;
    protobuf_c_message_free_unpacked(m, NULL);
    return ST_OK;
}

/* Freed by who asked. */
static int status(struct rotation *r, Strata__V1__CertStatusReply **s, struct err *e)
{
    ProtobufCMessage *m = NULL;
    Strata__V1__CertStatusRequest q = STRATA__V1__CERT_STATUS_REQUEST__INIT;
    int rc = ask(r, "Status", &q.base, &m, e);
    *s = (Strata__V1__CertStatusReply *)m;
    return rc;
}

/* How many nodes' certificates are of the present CA and begin after `since_us`. */
static int renewed(struct rotation *r, int64_t since_us, unsigned *n, struct err *e)
{
    Strata__V1__CertStatusReply *s;
    int rc = status(r, &s, e);
    if (rc < 0)
        return rc;
    *n = 0;
    for (size_t i = 0; i < s->n_certificates; i++)
        *n += str_starts(s->certificates[i]->principal, "node/") &&
              s->certificates[i]->not_before_us >= since_us &&
              !strcmp(s->certificates[i]->issuer, s->ca_serial);
    protobuf_c_message_free_unpacked(&s->base, NULL);
    return ST_OK;
}

/* The status of a whole cluster is a large answer: asked for now and then, it must not be the load. */
static int until_renewed(struct rotation *r, int64_t since_us, struct err *e)
{
    uint64_t end = clock_ns(clock_system()) + PATIENCE_NS;
    unsigned n = 0;
    int rc;
    while ((rc = renewed(r, since_us, &n, e)) == ST_OK && n < r->agents) {
        if (clock_ns(clock_system()) > end)
            return err_set(e, ST_EDEADLINE, "%u of %u agents have renewed", n, r->agents);
        rest(500);
    }
    return rc;
}

/* Certificates begin a little before they were made, so that clocks may differ. */
static int newest_begin(struct rotation *r, int64_t *us, struct err *e)
{
    Strata__V1__CertStatusReply *s;
    int rc = status(r, &s, e);
    if (rc < 0)
        return rc;
    *us = 0;
    for (size_t i = 0; i < s->n_certificates; i++)
        if (s->certificates[i]->not_before_us > *us)
            *us = s->certificates[i]->not_before_us;
    protobuf_c_message_free_unpacked(&s->base, NULL);
    ++*us;
    return ST_OK;
}

static int until_nobody_is_cut_off(struct rotation *r, struct err *e)
{
    uint64_t end = clock_ns(clock_system()) + PATIENCE_NS;
    size_t n = 1;
    int rc;
    while ((rc = rotate(r, "ca-end", true, &n, e)) == ST_OK && n) {
        if (clock_ns(clock_system()) > end)
            return err_set(e, ST_EDEADLINE, "%zu would still be cut off", n);
        rest(500);
    }
    return rc;
}

static int all_rotations(struct rotation *r, struct err *e)
{
    int rc;
    if ((rc = rotate(r, "leaf", false, NULL, e)) < 0 || (rc = until_renewed(r, r->since_us, e)) < 0 ||
        (rc = rotate(r, "coordinator", false, NULL, e)) < 0 ||
        (rc = rotate(r, "ticket", false, NULL, e)) < 0 || (rc = rotate(r, "ca", false, NULL, e)) < 0 ||
        (rc = until_renewed(r, r->since_us, e)) < 0 || (rc = until_nobody_is_cut_off(r, e)) < 0)
        return rc;
    return rotate(r, "ca-end", false, NULL, e);
}

static int tell_all(struct rotation *r, char what, struct err *e)
{
    int rc = ST_OK;
    for (int i = 0; i < FLEETS && rc == ST_OK; i++)
        rc = fleet_tell(&r->fleet[i], what, e);
    return rc;
}

static int start_fleets(struct rotation *r, struct err *e)
{
    struct enroll_token t;
    unsigned first = 0;
    int rc = bench_cluster_token(r->c, r->agents, &t, e);
    for (unsigned i = 0; i < FLEETS && rc == ST_OK; i++) {
        unsigned rest = r->agents - POURERS, k = FLEETS - 1;
        unsigned n = i ? rest / k + (i <= rest % k) : POURERS;
        rc = fleet_start(&r->fleet[i], r->c, r->agents_dir, &t, first, n, i == 0, e);
        first += n;
    }
    for (unsigned i = 0; i < FLEETS && rc == ST_OK; i++) {
        struct fleet_tally up;
        rc = fleet_tally(&r->fleet[i], &up, e);
        if (rc == ST_OK && up.why[0])
            rc = err_set(e, ST_EINTERNAL, "%s", up.why);
    }
    return rc;
}

static void add(struct fleet_tally *sum, const struct fleet_tally *one)
{
    sum->calls += one->calls;
    sum->failed += one->failed;
    sum->lost += one->lost;
    sum->moves += one->moves;
    sum->bytes += one->bytes;
    sum->calm_ms = one->calm_ms > sum->calm_ms ? one->calm_ms : sum->calm_ms;
    sum->slowest_ms = one->slowest_ms > sum->slowest_ms ? one->slowest_ms : sum->slowest_ms;
    sum->whole &= one->whole;
    if (!sum->why[0])
        memcpy(sum->why, one->why, sizeof sum->why);
}

static int measure(struct rotation *r, unsigned calm_ms, struct fleet_tally *sum, double *seconds,
                   struct err *e)
{
    uint64_t begin = 0;
    int rc = tell_all(r, 'b', e);
    *sum = (struct fleet_tally){.whole = true};
    if (rc == ST_OK) {
        rest(calm_ms);
        rc = newest_begin(r, &r->since_us, e);
    }
    if (rc == ST_OK) {
        sum->calm_ms = r->client_ms;
        r->client_ms = 0;
        begin = clock_ns(clock_system());
        rc = tell_all(r, 'r', e);
    }
    if (rc == ST_OK)
        rc = all_rotations(r, e);
    if (rc == ST_OK) {
        *seconds = (double)(clock_ns(clock_system()) - begin) / 1e9;
        rest(2000); /* the last to move have their calls on the old connection answered */
        rc = tell_all(r, 'e', e);
    }
    for (int i = 0; i < FLEETS && rc == ST_OK; i++) {
        struct fleet_tally one;
        if ((rc = fleet_tally(&r->fleet[i], &one, e)) == ST_OK)
            add(sum, &one);
    }
    return rc;
}

/* Five hundred agents have five hundred disks; one disk would sync for all of them, which no agent sees.
 * Their files lie in memory, the coordinator's on the disk. */
static int make_agents_dir(char out[64], struct err *e)
{
    snprintf(out, 64, "/dev/shm/strata-bench-XXXXXX");
    return mkdtemp(out) ? ST_OK : err_errno(e, errno, "cannot make a directory in /dev/shm");
}

static void remove_agents_dir(const char *dir)
{
    char cmd[96];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    if (system(cmd))
        fprintf(stderr, "strata-bench: %s was left behind\n", dir);
}

int bench_rotation(struct bench_run *run, const struct bench_cluster *c, struct err *e)
{
    struct rotation r = {.c = c, .agents = run->o.quick ? 50 : 500};
    struct strata_error se = {0};
    struct fleet_tally t;
    char admin[200];
    double seconds = 0;
    for (int i = 0; i < FLEETS; i++)
        r.fleet[i].pid = -1;
    snprintf(admin, sizeof admin, "%s/admin", c->dir);
    int rc = make_agents_dir(r.agents_dir, e);
    if (rc < 0)
        return rc;
    if (strata_client_open(&r.admin, admin, 0, &se) < 0)
        rc = err_set(e, ST_EUNREACH, "%s", se.text);
    if (rc == ST_OK)
        rc = start_fleets(&r, e);
    if (rc == ST_OK)
        rc = measure(&r, run->o.quick ? 1500 : 5000, &t, &seconds, e);
    for (int i = 0; i < FLEETS; i++)
        fleet_end(&r.fleet[i]);
    strata_client_close(r.admin);
    remove_agents_dir(r.agents_dir);
    if (rc < 0)
        return rc;
    uint64_t dropped = t.failed + t.lost + !t.whole;
    double slowest = t.slowest_ms > r.client_ms ? t.slowest_ms : r.client_ms;
    if (t.moves < r.agents * 2ull)
        return err_set(e, ST_EINTERNAL, "only %llu moves of %u agents: nothing was rotated",
                       (unsigned long long)t.moves, r.agents);
    bench_put(run, "tls", "rotation-500-agents-dropped", (double)dropped, 0);
    bench_put(run, "tls", "rotation-500-agents-slowest-call", slowest, t.calm_ms);
    bench_put(run, "tls", "rotation-500-agents-bulk", (double)t.bytes * 8 / 1e9 / seconds, 0);
    fprintf(
        stderr,
        "rotation: %u agents, %.1f s, %llu calls, %llu failed, %llu connections lost, %llu moves, the "
        "transfer %s; slowest call of an agent %.1f ms (%.1f ms before), of a client %.1f ms; the slowest "
        "rotation command, which waits for its files, %.1f ms%s%s\n",
        r.agents, seconds, (unsigned long long)t.calls, (unsigned long long)t.failed,
        (unsigned long long)t.lost, (unsigned long long)t.moves, t.whole ? "whole" : "BROKEN", t.slowest_ms,
        t.calm_ms, r.client_ms, r.command_ms, t.why[0] ? "; first: " : "", t.why);
    return ST_OK;
}
