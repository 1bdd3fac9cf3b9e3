/*
 * Decisions by handle and by name at three sizes of cluster, beside a scan of rules in the way of casbin,
 * which decides the same questions; and the check of a ticket beside the signature alone.
 */
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bench/access/cluster.h"
#include "bench/bench.h"
#include "common/base/clock.h"
#include "common/base/str.h"
#include "common/ticket/ticket.h"
#include "coordinator/access/set.h"

#define PICKS (1u << 16) /* questions, in random order, asked over and over */
#define DEVICES 64u
#define NAME 24

struct rule { /* sub, obj, act: one line of a casbin policy */
    char subject[NAME], object[32], action[32];
};
struct scene {
    size_t n;
    struct access_set *set;
    struct rule *rules;
    char (*names)[NAME]; /* of the picks, in their order */
    struct access_handle *handles;
    uint32_t devices[DEVICES];
    char device_ids[DEVICES][32];
    uint64_t seed;
};

static uint64_t rnd(struct scene *s, uint64_t below)
{
    s->seed = s->seed * 6364136223846793005ull + 1442695040888963407ull;
    return (s->seed >> 33) % below;
}

static void scene_free(struct scene *s)
{
    access_set_free(s->set);
    free(s->rules);
    free(s->names);
    free(s->handles);
}

static int scene_new(struct scene *s, size_t n, struct err *e)
{
    *s = (struct scene){.n = n, .seed = 7};
    s->rules = calloc(n, sizeof *s->rules);
    s->names = calloc(PICKS, sizeof(*s->names));
    s->handles = calloc(PICKS, sizeof *s->handles);
    int rc = s->rules && s->names && s->handles ? access_set_new(&s->set, rng_system()) : ST_ENOMEM;
    for (unsigned i = 0; i < DEVICES && rc == ST_OK; i++) {
        snprintf(s->device_ids[i], sizeof s->device_ids[0], "n%u/cuda:%u", i / 8, i % 8);
        s->devices[i] = access_set_device(s->set, s->device_ids[i]);
    }
    for (size_t i = 0; i < n && rc == ST_OK; i++) {
        struct policy p = {.roles = ROLE_BIT(ROLE_USER), .generation = 1, .n_devices = 1};
        struct rule *r = &s->rules[i];
        snprintf(p.principal, sizeof p.principal, "user/u%zu", i);
        snprintf(p.devices[0], sizeof p.devices[0], "n%zu/*", i % 8);
        rc = access_set_put(s->set, &p, e);
        snprintf(r->subject, sizeof r->subject, "user/u%zu", i);
        snprintf(r->object, sizeof r->object, "n%zu/*", i % 8);
        snprintf(r->action, sizeof r->action, "memory:*");
    }
    for (unsigned i = 0; i < PICKS && rc == ST_OK; i++) {
        snprintf(s->names[i], sizeof s->names[0], "user/u%llu", (unsigned long long)rnd(s, n));
        s->handles[i] = access_set_find(s->set, s->names[i], strlen(s->names[i]));
    }
    return rc < 0 && !*e->text ? err_set(e, rc, "no memory for %zu principals", n) : rc;
}

/* Time of this thread on a CPU: decisions are pure work, and a neighbour's is not ours. */
static uint64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* ---- one round each: nanoseconds a decision; what was allowed is counted, so that nothing is left out ----
 */

static double by_handle(struct scene *s, unsigned long count, unsigned long *allowed)
{
    uint64_t from = cpu_ns();
    for (unsigned long i = 0; i < count; i++)
        *allowed +=
            access_set_decide(s->set, s->handles[i % PICKS], PERM_MEMORY_ALLOCATE, s->devices[i % DEVICES], 1)
                .allowed;
    return (double)(cpu_ns() - from) / (double)count;
}

static double by_name(struct scene *s, unsigned long count, unsigned long *allowed)
{
    uint64_t from = cpu_ns();
    for (unsigned long i = 0; i < count; i++) {
        const char *name = s->names[i % PICKS];
        struct access_handle h = access_set_find(s->set, name, strlen(name));
        *allowed += access_set_decide(s->set, h, PERM_MEMORY_ALLOCATE, s->devices[i % DEVICES], 1).allowed;
    }
    return (double)(cpu_ns() - from) / (double)count;
}

/* Effect: some rule allows. Subjects are compared, objects and actions are patterns. */
static bool scan_rules(const struct scene *s, const char *subject, const char *object, const char *action)
{
    for (size_t i = 0; i < s->n; i++)
        if (!strcmp(s->rules[i].subject, subject) && str_glob(s->rules[i].object, object) &&
            str_glob(s->rules[i].action, action))
            return true;
    return false;
}

static double by_scan(struct scene *s, unsigned long count, unsigned long *allowed)
{
    uint64_t from = cpu_ns();
    for (unsigned long i = 0; i < count; i++)
        *allowed += scan_rules(s, s->names[i % PICKS], s->device_ids[i % DEVICES], "memory:allocate");
    return (double)(cpu_ns() - from) / (double)count;
}

static int decisions(struct bench_run *run, size_t n, const char *size, struct err *e)
{
    struct scene s;
    char name[64];
    double h[7], c[7], p[7];
    unsigned rounds = run->o.quick ? 3 : 7;
    unsigned long count = run->o.quick ? 4 * PICKS : 32 * PICKS, scans = 20000000ul / (n * 10) + 64;
    int rc = scene_new(&s, n, e);
    for (unsigned i = 0; rc == ST_OK && i < rounds; i++) {
        unsigned long a = 0, b = 0, d = 0, x = 0;
        by_handle(&s, PICKS, &d); /* warm */
        h[i] = by_handle(&s, count, &a);
        c[i] = by_name(&s, count, &b);
        p[i] = by_scan(&s, scans, &x);
        /* All three answer the same questions, and the first ones alike. */
        unsigned long same = 0;
        by_name(&s, scans, &same);
        if (a != b || same != x || !a)
            rc = err_set(e, ST_EINTERNAL,
                         "the decisions differ: %lu by handle, %lu by name, %lu and %lu by rules", a, b, same,
                         x);
    }
    if (rc == ST_OK) {
        double peer = bench_median(p, rounds);
        snprintf(name, sizeof name, "decision-by-handle-%s", size);
        bench_put(run, "access", name, bench_median(h, rounds), peer);
        snprintf(name, sizeof name, "decision-by-name-%s", size);
        bench_put(run, "access", name, bench_median(c, rounds), peer);
    }
    scene_free(&s);
    return rc;
}

/* ---- tickets ---- */

static double signature_alone(unsigned count, struct err *e)
{
    EVP_PKEY *k = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    uint8_t msg[300] = {1}, sig[64];
    size_t n = sizeof sig;
    bool ok = k && md && EVP_DigestSignInit(md, NULL, NULL, NULL, k) == 1 &&
              EVP_DigestSign(md, sig, &n, msg, sizeof msg) == 1;
    uint64_t from = cpu_ns();
    for (unsigned i = 0; i < count && ok; i++) {
        EVP_MD_CTX *v = EVP_MD_CTX_new();
        ok = v && EVP_DigestVerifyInit(v, NULL, NULL, NULL, k) == 1 &&
             EVP_DigestVerify(v, sig, n, msg, sizeof msg) == 1;
        EVP_MD_CTX_free(v);
    }
    double us = (double)(cpu_ns() - from) / 1e3 / count;
    EVP_MD_CTX_free(md);
    EVP_PKEY_free(k);
    if (!ok)
        err_set(e, ST_EINTERNAL, "OpenSSL does not verify what it signed");
    return ok ? us : -1;
}

static int tickets(struct bench_run *run, struct err *e)
{
    char path[] = "/tmp/strata-bench-key-XXXXXX";
    struct ticket_key *key = NULL;
    struct ticket out,
        t = {.purpose = TICKET_DEVICE, .limit_bytes = 1 << 30, .issued_us = 1, .expires_us = 1000000};
    uint8_t wire[TICKET_MAX], pub[TICKET_PUB_LEN];
    size_t n = 0;
    unsigned count = run->o.quick ? 500 : 4000;
    double ours[5], peer[5];
    strcpy(t.node, "n1");
    strcpy(t.resource, "session/s-1");
    t.grant.permissions = PERM_ALL14;
    t.grant.session[0] = 1;
    strcpy(t.grant.principal, "user/alice");
    t.grant.n_devices = 1;
    strcpy(t.grant.devices[0], "cuda:0");
    int fd = mkstemp(path), rc = fd < 0 ? err_set(e, ST_EIO, "cannot make a file in /tmp") : ST_OK;
    if (fd >= 0) {
        close(fd);
        unlink(path);
    }
    if (rc == ST_OK && (rc = ticket_key_create(path, e)) == ST_OK)
        rc = ticket_key_load(&key, path, e);
    unlink(path);
    if (rc == ST_OK) {
        ticket_key_public(key, pub);
        rc = ticket_sign(key, &t, wire, &n, e);
    }
    for (unsigned r = 0; r < 5 && rc == ST_OK; r++) {
        uint64_t from = cpu_ns();
        for (unsigned i = 0; i < count && rc == ST_OK; i++)
            rc = ticket_verify(pub, wire, n, 2, "n1", t.holder, &out, e);
        ours[r] = (double)(cpu_ns() - from) / 1e3 / count;
        if (rc == ST_OK && (peer[r] = signature_alone(count, e)) < 0)
            rc = ST_EINTERNAL;
    }
    if (rc == ST_OK)
        bench_put(run, "access", "ticket-check", bench_median(ours, 5), bench_median(peer, 5));
    ticket_key_free(key);
    return rc;
}

static int enforced(struct bench_run *run, struct err *e)
{
    struct bench_cluster k;
    double ms[40];
    unsigned rounds = run->o.quick ? 5 : 40;
    int rc = bench_cluster_start(&k, e);
    if (rc == ST_OK)
        rc = bench_enforced(&k, ms, rounds, e);
    bench_cluster_stop(&k);
    if (rc < 0 && !strcmp(e->reason, "NO_PROGRAMS")) {
        bench_skip(run, "access", "policy-change-to-enforced", e->text);
        return ST_OK;
    }
    if (rc == ST_OK)
        bench_put_series(run, "access", "policy-change-to-enforced", ms, rounds, 0);
    return rc;
}

int bench_access(struct bench_run *run, struct err *e)
{
    int rc;
    if ((rc = decisions(run, 100, "100", e)) < 0 || (rc = decisions(run, 1000, "1k", e)) < 0 ||
        (rc = decisions(run, 100000, "100k", e)) < 0)
        return rc;
    if ((rc = tickets(run, e)) < 0)
        return rc;
    return enforced(run, e);
}
