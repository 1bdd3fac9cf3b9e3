/*
 * The ledger in a small world: principals with quotas, nodes that are cut off and come back, tickets that end
 * by themselves, a coordinator that dies between a reservation and its disk, agents that die with memory
 * allocated. After every step each sum is compared with a recount from plain records, and what agents have
 * really allocated with what the ledger charges. The same world with a fault put into it has to be caught.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/access/quota.h"

enum { PRINCIPALS = 4, NODES = 3, DEVICES = 2, CLAIMS = 64, SKEW = 5 };
enum fault {
    NONE,
    LOST_RELEASE,          /* one release in a hundred is forgotten */
    LIMIT_IGNORED,         /* reservations are made without looking at the quota */
    COMMIT_TWICE_COUNTED,  /* a commit reserves again under another key */
    REBUILD_SHORT,         /* after a crash the last record is not taken */
    FREED_AT_PARTITION,    /* escrow of a node that is cut off is given back */
    FREED_AT_EXPIRY_EARLY, /* escrow is given back before the agent's clock can have ended the ticket */
    NODE_LIMIT_IGNORED,
    REPORT_DROPPED, /* what agents say is not taken into the sums */
};
enum state { VACANT, IN_FLIGHT, DURABLE };

struct record { /* the reference: what there is, in words */
    enum state state;
    bool is_job;
    char key[24];
    unsigned who, node;
    uint64_t bytes, job_bytes[NODES][DEVICES];
    bool on[DEVICES];
    long expires;
    bool granted;            /* the client has its ticket */
    uint64_t used, reported; /* on the agent now; as the coordinator last heard */
    bool refused;            /* the agent has been told not to take it any more */
};
struct world {
    struct quota *q;
    struct policy p[PRINCIPALS];
    struct record r[CLAIMS];
    bool cut[NODES];
    long now;
    uint64_t seed;
    unsigned long serial, releases;
    enum fault fault;
    const char *divergence;
};

static uint64_t rnd(struct world *w, uint64_t below)
{
    w->seed = w->seed * 6364136223846793005ull + 1442695040888963407ull;
    return (w->seed >> 33) % below;
}

static const char *const nodes[NODES] = {"dione", "rhea", "titan"};

static const char *device(unsigned node, unsigned dev)
{
    static const char *const ids[NODES][DEVICES] = {
        {"dione/cuda:0", "dione/cuda:1"}, {"rhea/cuda:0", "rhea/cuda:1"}, {"titan/cuda:0", "titan/cuda:1"}};
    return ids[node][dev];
}

/* ---- the claim of a record, as the coordinator would make it ---- */

struct claim {
    struct quota_claim c;
    struct quota_part parts[NODES * (1 + DEVICES)];
};

static void claim_of(const struct world *w, const struct record *r, struct claim *o)
{
    *o = (struct claim){.c = {.key = r->key, .principal = w->p[r->who].principal, .bytes = r->bytes}};
    for (unsigned n = 0; n < NODES; n++) {
        uint64_t on_node = r->is_job ? 0 : n == r->node ? r->bytes : 0;
        for (unsigned d = 0; r->is_job && d < DEVICES; d++)
            on_node += r->job_bytes[n][d];
        if (on_node)
            o->parts[o->c.nparts++] = (struct quota_part){nodes[n], on_node};
        for (unsigned d = 0; d < DEVICES; d++) {
            uint64_t b = r->is_job ? r->job_bytes[n][d] : n == r->node && r->on[d] ? r->bytes : 0;
            if (b)
                o->parts[o->c.nparts++] = (struct quota_part){device(n, d), b};
        }
    }
    o->c.parts = o->parts;
}

/* ---- the reference's sums, recounted ---- */

struct sums {
    uint64_t flight, durable, used;
};

static uint64_t charged(const struct record *r, bool known)
{
    return known && r->reported > r->bytes ? r->reported : r->bytes;
}

/* node, dev < 0: over all */
static struct sums recount(const struct world *w, unsigned who, int node, int dev)
{
    struct sums s = {0};
    for (unsigned i = 0; i < CLAIMS; i++) {
        const struct record *r = &w->r[i];
        if (r->state == VACANT || r->who != who)
            continue;
        uint64_t b = 0, u = 0;
        if (node < 0) {
            b = charged(r, true);
            u = r->reported;
        } else if (r->is_job) {
            for (int d = 0; d < DEVICES; d++)
                b += dev < 0 || d == dev ? r->job_bytes[node][d] : 0;
        } else if (r->node == (unsigned)node && (dev < 0 || r->on[dev])) {
            b = charged(r, dev < 0);
            u = dev < 0 ? r->reported : 0;
        }
        *(r->state == IN_FLIGHT ? &s.flight : &s.durable) += b;
        s.used += u;
    }
    return s;
}

static void differ(struct world *w, const char *what)
{
    if (!w->divergence)
        w->divergence = what;
}

static void compare(struct world *w)
{
    for (unsigned p = 0; p < PRINCIPALS; p++)
        for (int n = -1; n < NODES; n++)
            for (int d = -1; d < (n < 0 ? 0 : DEVICES); d++) {
                const char *where = n < 0 ? "" : d < 0 ? nodes[n] : device((unsigned)n, (unsigned)d);
                struct quota_usage u = quota_usage(w->q, w->p[p].principal, where);
                struct sums s = recount(w, p, n, d);
                if (u.reserved != s.flight || u.committed != s.durable)
                    differ(w, "a sum is not that of its claims");
                if (d < 0 && u.allocated != s.used)
                    differ(w, "what agents said is not what is counted");
                if (d >= 0)
                    continue;
                uint64_t truth = 0;
                for (unsigned i = 0; i < CLAIMS; i++)
                    if (w->r[i].who == p && (n < 0 || w->r[i].node == (unsigned)n))
                        truth += w->r[i].used;
                if (truth > quota_charged(w->q, w->p[p].principal, where))
                    differ(w, "more is allocated than is charged");
            }
}

/* Would the words of the manual let it through? */
static bool allowed(const struct world *w, const struct record *r)
{
    const struct policy *p = &w->p[r->who];
    for (int n = -1; n < NODES; n++)
        for (int d = -1; d < (n < 0 ? 0 : DEVICES); d++) {
            struct world one = {.r = {*r}}; /* what it alone would add there */
            one.r[0].state = DURABLE;
            struct sums add = recount(&one, r->who, n, d), have = recount(w, r->who, n, d);
            bool has = n < 0 ? p->has_quota : d < 0 ? p->has_node_quota : p->has_device_quota;
            uint64_t limit = n < 0 ? p->quota_bytes : d < 0 ? p->node_quota_bytes : p->device_quota_bytes;
            if (has && add.durable && have.flight + have.durable + add.durable > limit)
                return false;
        }
    return true;
}

/* ---- steps ---- */

static void release(struct world *w, struct record *r)
{
    if (!(w->fault == LOST_RELEASE && ++w->releases % 100 == 0))
        quota_release(w->q, r->key);
    *r = (struct record){0};
}

static void ask(struct world *w, struct record *r)
{
    if (r->state != VACANT)
        return;
    *r = (struct record){.who = (unsigned)rnd(w, PRINCIPALS), .node = (unsigned)rnd(w, NODES)};
    snprintf(r->key, sizeof r->key, "k%lu", ++w->serial);
    r->is_job = rnd(w, 4) == 0;
    r->expires = w->now + 20 + (long)rnd(w, 200);
    for (unsigned n = 0; r->is_job && n < NODES; n++)
        for (unsigned d = 0; d < DEVICES; d++)
            r->bytes += r->job_bytes[n][d] = rnd(w, 3) ? 0 : rnd(w, 40);
    if (!r->is_job) {
        r->bytes = rnd(w, 5) ? rnd(w, 120) : 0;
        r->on[rnd(w, DEVICES)] = true;
        r->on[rnd(w, DEVICES)] = true;
    }
    struct claim c;
    struct quota_refusal why;
    struct policy p = w->p[r->who];
    if (w->fault == NODE_LIMIT_IGNORED)
        p.has_node_quota = false;
    claim_of(w, r, &c);
    int rc = quota_reserve(w->q, &c.c, w->fault == LIMIT_IGNORED ? NULL : &p, &why);
    if ((rc == ST_OK) != allowed(w, r))
        differ(w, "the ledger lets through what the quota does not, or the other way round");
    if (rc == ST_OK)
        r->state = IN_FLIGHT;
    else
        *r = (struct record){0};
}

static void disk_answers(struct world *w, struct record *r)
{
    if (r->state != IN_FLIGHT)
        return;
    if (rnd(w, 8) == 0) {
        release(w, r); /* the disk refused */
        return;
    }
    r->state = DURABLE;
    r->granted = true;
    quota_commit(w->q, r->key);
    if (w->fault == COMMIT_TWICE_COUNTED && rnd(w, 200) == 0) {
        struct claim c;
        claim_of(w, r, &c);
        c.c.key = "again";
        assert_int_equal(quota_hold(w->q, &c.c), ST_OK);
    }
}

/* The client allocates or frees; the agent asks nobody. */
static void use(struct world *w, struct record *r)
{
    if (r->state == DURABLE && r->granted && !r->is_job && !r->refused && w->now < r->expires)
        r->used = rnd(w, r->bytes + 1);
}

static void report(struct world *w, struct record *r)
{
    if (r->state != DURABLE || r->is_job || w->cut[r->node])
        return;
    r->reported = r->used;
    if (w->fault != REPORT_DROPPED || rnd(w, 50))
        quota_used(w->q, r->key, r->used);
}

/* Closed, killed or revoked: escrow comes back when the agent says that its memory is free. */
static void end(struct world *w, struct record *r)
{
    if (r->state != DURABLE)
        return;
    if (r->is_job || !w->cut[r->node]) {
        r->used = 0;
        release(w, r);
    }
}

static void tick(struct world *w)
{
    w->now += 1 + (long)rnd(w, 6);
    for (unsigned i = 0; i < CLAIMS; i++) {
        struct record *r = &w->r[i];
        if (r->state != DURABLE || r->is_job)
            continue;
        /* The agent's clock may run behind the coordinator's, by less than the skew. */
        if (w->now >= r->expires + SKEW - 1)
            r->used = 0;
        if (w->now >= r->expires + (w->fault == FREED_AT_EXPIRY_EARLY ? -10 : SKEW)) {
            if (w->fault == FREED_AT_EXPIRY_EARLY) { /* the ledger alone forgets it */
                quota_release(w->q, r->key);
                if (w->now < r->expires + SKEW)
                    continue;
            }
            release(w, r);
        }
    }
}

static void partition(struct world *w)
{
    unsigned n = (unsigned)rnd(w, NODES);
    w->cut[n] = !w->cut[n];
    for (unsigned i = 0; i < CLAIMS; i++) {
        struct record *r = &w->r[i];
        if (r->state == DURABLE && !r->is_job && r->node == n) {
            if (!w->cut[n])
                report(w, r);
            else if (w->fault == FREED_AT_PARTITION)
                quota_release(w->q, r->key);
        }
    }
}

static void agent_dies(struct world *w)
{
    unsigned n = (unsigned)rnd(w, NODES);
    for (unsigned i = 0; i < CLAIMS; i++) {
        struct record *r = &w->r[i];
        if (r->state == DURABLE && !r->is_job && r->node == n) {
            r->used = 0; /* the ticket is still good: its escrow stays */
            report(w, r);
        }
    }
}

static void coordinator_dies(struct world *w)
{
    quota_free(w->q);
    assert_int_equal(quota_new(&w->q, rng_system()), ST_OK);
    unsigned last = CLAIMS;
    for (unsigned i = 0; i < CLAIMS; i++) {
        struct record *r = &w->r[i];
        if (r->state == IN_FLIGHT && rnd(w, 2))
            *r = (struct record){0}; /* never reached the disk */
        else if (r->state == IN_FLIGHT)
            r->state = DURABLE; /* did, but nobody was told */
        r->reported = 0;
        if (r->state == DURABLE)
            last = i;
    }
    for (unsigned i = 0; i < CLAIMS; i++) {
        struct claim c;
        if (w->r[i].state != DURABLE || (i == last && w->fault == REBUILD_SHORT))
            continue;
        claim_of(w, &w->r[i], &c);
        assert_int_equal(quota_hold(w->q, &c.c), ST_OK);
        report(w, &w->r[i]);
    }
}

static void quota_changes(struct world *w)
{
    struct policy *p = &w->p[rnd(w, PRINCIPALS)];
    p->has_quota = rnd(w, 8) != 0;
    p->has_node_quota = rnd(w, 2);
    p->has_device_quota = rnd(w, 2);
    p->quota_bytes = rnd(w, 600);
    p->node_quota_bytes = rnd(w, 400);
    p->device_quota_bytes = rnd(w, 300);
}

/* Steps until the first divergence; 0 = none. */
static unsigned long run(uint64_t seed, unsigned long steps, enum fault fault, const char **what)
{
    struct world w = {.seed = seed, .fault = fault, .now = 1000};
    unsigned long at = 0, granted = 0;
    assert_int_equal(quota_new(&w.q, rng_system()), ST_OK);
    for (unsigned p = 0; p < PRINCIPALS; p++)
        snprintf(w.p[p].principal, sizeof w.p[p].principal, "user/%u", p);
    for (unsigned p = 0; p < 4 * PRINCIPALS; p++)
        quota_changes(&w);
    for (unsigned long i = 1; i <= steps && !w.divergence; i++) {
        struct record *r = &w.r[rnd(&w, CLAIMS)];
        uint64_t k = rnd(&w, 1000);
        if (k < 300)
            ask(&w, r);
        else if (k < 550)
            disk_answers(&w, r);
        else if (k < 750)
            use(&w, r);
        else if (k < 850)
            report(&w, r);
        else if (k < 910)
            end(&w, r);
        else if (k < 960)
            tick(&w);
        else if (k < 975)
            partition(&w);
        else if (k < 983)
            agent_dies(&w);
        else if (k < 990)
            coordinator_dies(&w);
        else
            quota_changes(&w);
        granted += r->granted;
        compare(&w);
        at = i;
    }
    *what = w.divergence;
    quota_free(w.q);
    assert_true(fault != NONE || granted > steps / 20);
    return w.divergence ? at : 0;
}

static void ledger_against_reference(void **state)
{
    (void)state;
    const char *what;
    unsigned long at = run(7, 100000, NONE, &what);
    if (at)
        fail_msg("step %lu: %s", at, what);
}

static void a_broken_ledger_is_caught(void **state)
{
    (void)state;
    for (enum fault f = LOST_RELEASE; f <= REPORT_DROPPED; f++) {
        const char *what;
        if (!run(7, 20000, f, &what))
            fail_msg("fault %d went unseen", (int)f);
    }
}

static void edges(void **state)
{
    (void)state;
    struct quota *q;
    struct quota_refusal why;
    assert_int_equal(quota_new(&q, rng_system()), ST_OK);
    struct policy p = {.principal = "user/a", .has_quota = true, .quota_bytes = 100};
    struct quota_part part = {"n/cuda:0", 60};
    struct quota_claim c = {.key = "s1", .principal = "user/a", .bytes = 60, .parts = &part, .nparts = 1};
    assert_int_equal(quota_reserve(q, &c, &p, &why), ST_OK);
    c.bytes = 100; /* the same claim again: what it held does not count against it */
    assert_int_equal(quota_reserve(q, &c, &p, &why), ST_OK);
    c.bytes = 101;
    assert_int_equal(quota_reserve(q, &c, &p, &why), ST_ERESOURCE);
    assert_int_equal(why.asked, 101);
    assert_int_equal(why.used, 0);
    assert_int_equal(why.limit, 100);
    assert_int_equal(quota_charged(q, "user/a", ""), 100); /* as it was */
    c.key = "s2";
    c.bytes = 1;
    assert_int_equal(quota_reserve(q, &c, &p, &why), ST_ERESOURCE);
    assert_int_equal(why.used, 100);
    c.bytes = UINT64_MAX;
    assert_int_equal(quota_reserve(q, &c, NULL, &why), ST_ELIMIT);
    c.bytes = INT64_MAX;
    assert_int_equal(quota_reserve(q, &c, NULL, &why), ST_ELIMIT);
    part.bytes = INT64_MAX;
    c.bytes = 5;
    assert_int_equal(quota_hold(q, &c), ST_ELIMIT);
    char longname[300];
    memset(longname, 'x', sizeof longname - 1);
    longname[299] = 0;
    c.principal = longname;
    assert_int_equal(quota_hold(q, &c), ST_ENOMEM);
    quota_used(q, "s1", UINT64_MAX); /* an agent that lies cannot run a sum over */
    assert_true(quota_charged(q, "user/a", "") >= 100 && quota_charged(q, "user/a", "") < 1ull << 47);
    quota_used(q, "s1", 5);
    assert_int_equal(quota_charged(q, "user/a", ""), 100);
    assert_int_equal(quota_usage(q, "user/a", "").allocated, 5);
    assert_true(quota_fits(q, NULL, "n/cuda:0", 1, &why));
    assert_false(quota_fits(q, &p, "n/cuda:0", 1, &why));
    p.quota_bytes = 1000;
    p.has_device_quota = true;
    p.device_quota_bytes = 70;
    assert_true(quota_fits(q, &p, "n/cuda:0", 10, &why));
    assert_false(quota_fits(q, &p, "n/cuda:0", 11, &why));
    assert_string_equal(why.where, "n/cuda:0");
    p.has_node_quota = true;
    p.node_quota_bytes = 5;
    assert_false(quota_fits(q, &p, "n/cuda:0", 6, &why));
    assert_string_equal(why.where, "n");
    assert_true(quota_has(q, "s1"));
    quota_release(q, "s1");
    quota_release(q, "s1");
    quota_commit(q, "s1");
    quota_used(q, "s1", 1);
    assert_int_equal(quota_charged(q, "user/a", ""), 0);
    quota_free(q);
    quota_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(edges), cmocka_unit_test(ledger_against_reference),
                                       cmocka_unit_test(a_broken_ledger_is_caught)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
