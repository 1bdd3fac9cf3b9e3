/*
 * The rpc area: calls, handshakes, bulk, memory and calls beside bulk, over our transport and its two peers.
 * Ours and the peers take turns within every round, so that a busy minute of the machine hits all three; the
 * figures are medians over the rounds.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/rpc/peer.h"
#include "common/base/str.h"

enum { OURS, TLS, TCP, PEERS };
#define ROUNDS_MAX 7
#define SLOTS_MAX 64
#define IN_FLIGHT 8

struct world {
    struct event_base *base;
    struct event *tick;
    struct bench_pki pki;
    struct server work[PEERS], idle[PEERS];
    void *client[PEERS];
    bool quick;
    struct err *e;
};

static uint64_t now_ns(void)
{
    return clock_ns(clock_system());
}

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what, (void)arg; /* only so that a silent loop comes back */
}

/* ---- one connection, waited for ---- */

struct wait {
    struct link *l;
    bool down, bulk_end;
    char why[160];
};

static void wait_up(struct link *l)
{
    (void)l;
}

static void wait_down(struct link *l)
{
    struct wait *w = l->arg;
    str_copy(w->why, sizeof w->why, l->why);
    w->down = true;
    w->l = NULL;
}

static void wait_bulk(struct link *l, bool ok)
{
    ((struct wait *)l->arg)->bulk_end = ok;
}

static const struct transport *const transports[PEERS] = {&transport_ours, &transport_tls, &transport_tcp};

static int link_open(struct world *w, int k, int port, struct wait *wt)
{
    *wt = (struct wait){0};
    const struct link proto = {.on_up = wait_up, .on_down = wait_down, .on_bulk_end = wait_bulk, .arg = wt};
    int rc = transports[k]->dial(w->client[k], port, &proto, &wt->l, w->e);
    if (rc < 0)
        return rc;
    uint64_t end = now_ns() + 10 * NS_PER_S;
    while (wt->l && !wt->l->up && now_ns() < end)
        event_base_loop(w->base, EVLOOP_ONCE);
    if (wt->l && wt->l->up)
        return ST_OK;
    return err_set(w->e, ST_EUNREACH, "no connection to the server of %s: %s", transports[k]->name,
                   wt->down ? wt->why : "no answer in 10 s");
}

static void link_shut(struct world *w, int k, struct wait *wt)
{
    if (wt->l)
        transports[k]->hang_up(wt->l);
    while (wt->l && !wt->down)
        event_base_loop(w->base, EVLOOP_ONCE);
}

/* ---- calls ---- */

struct caller;
struct cslot {
    struct slot s;
    struct caller *c;
    uint64_t since_ns;
    bool busy;
};
struct caller {
    struct link *l;
    const struct transport *t;
    uint64_t start_ns, end_ns, last_ns, count;
    unsigned busy, want;
    bool failed;
    double *us; /* latencies, up to cap of them */
    size_t n, cap;
    struct cslot slot[SLOTS_MAX];
};

static void slot_start(struct cslot *x)
{
    x->since_ns = now_ns();
    x->busy = true;
    x->c->busy++;
    if (x->c->t->call(x->c->l, &x->s) < 0)
        x->c->failed = true;
}

static void slot_done(struct slot *s, bool ok)
{
    struct cslot *x = (struct cslot *)s;
    struct caller *c = x->c;
    uint64_t now = now_ns();
    x->busy = false;
    c->busy--;
    if (!ok) {
        c->failed = true;
        return;
    }
    if (now >= c->end_ns && c->count) /* a machine too busy for one call in time still gives one figure */
        return;
    c->count++;
    c->last_ns = now;
    if (c->n < c->cap)
        c->us[c->n++] = (double)(now - x->since_ns) / 1000.0;
    slot_start(x);
}

static int caller_run(struct world *w, struct caller *c, double seconds)
{
    for (unsigned i = 0; i < c->want; i++)
        c->slot[i] = (struct cslot){.s.done = slot_done, .c = c};
    c->count = c->n = 0;
    c->start_ns = now_ns();
    c->end_ns = c->start_ns + (uint64_t)(seconds * 1e9);
    while (!c->failed && now_ns() < c->end_ns) {
        for (unsigned i = 0; i < c->want && c->busy < c->want; i++)
            if (!c->slot[i].busy)
                slot_start(&c->slot[i]);
        event_base_loop(w->base, EVLOOP_ONCE);
    }
    while (c->busy && !c->failed)
        event_base_loop(w->base, EVLOOP_ONCE);
    if (c->failed || !c->count)
        return err_set(w->e, ST_EUNREACH, "calls over %s failed", c->t->name);
    return ST_OK;
}

static int caller_init(struct caller *c, struct world *w, int k, unsigned want)
{
    *c = (struct caller){.t = transports[k], .want = want, .cap = 1u << 20};
    c->us = malloc(c->cap * sizeof *c->us);
    return c->us ? ST_OK : err_set(w->e, ST_ENOMEM, "no memory for the samples");
}

static int calls(struct world *w, int k, unsigned outstanding, double *rate, double *p50)
{
    struct caller c;
    struct wait wt;
    double s = w->quick ? 0.4 : 1.5;
    int rc = caller_init(&c, w, k, outstanding);
    if (rc == ST_OK && (rc = link_open(w, k, PORT_CALLS, &wt)) == ST_OK) {
        c.l = wt.l;
        if ((rc = caller_run(w, &c, 0.05)) == ST_OK) /* warm */
            rc = caller_run(w, &c, s);
        link_shut(w, k, &wt);
    }
    if (rc == ST_OK) {
        uint64_t end = c.last_ns > c.end_ns ? c.last_ns : c.end_ns;
        *rate = (double)c.count * 1e9 / (double)(end - c.start_ns);
        *p50 = bench_median(c.us, c.n);
    }
    free(c.us);
    return rc;
}

/* ---- handshakes ---- */

struct dials {
    unsigned live;
    uint64_t ups, fails;
    char why[160];
    const struct transport *t;
};

static void dial_up(struct link *l)
{
    struct dials *d = l->arg;
    d->ups++;
    d->t->hang_up(l);
}

static void dial_down(struct link *l)
{
    struct dials *d = l->arg;
    d->live--;
    if (!l->up && !d->fails++)
        str_copy(d->why, sizeof d->why, l->why);
}

static int handshakes(struct world *w, int k, double *wall, double *per_core)
{
    struct dials d = {.t = transports[k]};
    const struct link proto = {.on_up = dial_up, .on_down = dial_down, .on_bulk_end = wait_bulk, .arg = &d};
    struct link *l;
    uint64_t start = now_ns(), end = start + (w->quick ? 500 : 2000) * NS_PER_MS;
    double cpu = server_cpu_s(&w->work[k]);
    int rc = ST_OK;
    while (rc == ST_OK && !d.fails && now_ns() < end) {
        for (; rc == ST_OK && d.live < IN_FLIGHT; d.live += rc == ST_OK)
            rc = d.t->dial(w->client[k], PORT_CALLS, &proto, &l, w->e);
        event_base_loop(w->base, EVLOOP_ONCE);
    }
    double ups = (double)d.ups, took = (double)(now_ns() - start) / 1e9;
    cpu = server_cpu_s(&w->work[k]) - cpu;
    while (d.live)
        event_base_loop(w->base, EVLOOP_ONCE);
    if (rc == ST_OK && (d.fails || cpu <= 0))
        rc = err_set(w->e, ST_EUNREACH, "handshakes with %s failed: %s", d.t->name, d.why);
    *wall = ups / took;
    *per_core = ups / cpu;
    return rc;
}

/* ---- bulk ---- */

static int pull(struct world *w, int k, struct wait *wt, uint64_t bytes, double *gbps)
{
    wt->bulk_end = false;
    uint64_t start = now_ns(), limit = start + 60 * NS_PER_S;
    int rc = transports[k]->bulk(wt->l, bytes);
    while (rc == ST_OK && !wt->bulk_end && wt->l && now_ns() < limit)
        event_base_loop(w->base, EVLOOP_ONCE);
    if (rc == ST_OK && (!wt->bulk_end || !wt->l || wt->l->bulk_got != bytes))
        rc = ST_EPROTO;
    if (rc < 0)
        return err_set(w->e, rc, "the bulk transfer over %s broke off", transports[k]->name);
    *gbps = (double)bytes * 8 / (double)(now_ns() - start);
    return ST_OK;
}

static int bulk(struct world *w, int k, int port, double *gbps)
{
    struct wait wt;
    double warm;
    int rc = link_open(w, k, port, &wt);
    if (rc < 0)
        return rc;
    if ((rc = pull(w, k, &wt, 32u << 20, &warm)) == ST_OK) { /* window, path MTU */
        double bytes = warm / 8 * 1e9 * (w->quick ? 0.5 : 2.0);
        rc = pull(w, k, &wt, bytes > 32e6 ? (uint64_t)bytes : 32u << 20, gbps);
    }
    link_shut(w, k, &wt);
    return rc;
}

/* ---- calls while bulk runs ---- */

struct pump {
    const struct transport *t;
    bool stop, idle;
};

static void pump_again(struct link *l, bool ok)
{
    struct pump *p = l->arg;
    (void)ok;
    if (p->stop || p->t->bulk(l, 128u << 20) < 0)
        p->idle = true;
}

static void pump_down(struct link *l)
{
    ((struct pump *)l->arg)->idle = true;
}

static int calls_beside_bulk(struct world *w, int k, double *p99)
{
    struct caller c;
    struct wait wt = {0};
    struct pump p = {.t = transports[k]};
    const struct link proto = {.on_up = wait_up, .on_down = pump_down, .on_bulk_end = pump_again, .arg = &p};
    struct link *l = NULL;
    int rc = caller_init(&c, w, k, 1);
    if (rc == ST_OK && (rc = link_open(w, k, PORT_CALLS, &wt)) == ST_OK) {
        c.l = wt.l;
        rc = p.t->dial(w->client[k], PORT_BULK, &proto, &l, w->e);
        uint64_t limit = now_ns() + 10 * NS_PER_S;
        while (rc == ST_OK && !p.idle && !l->up && now_ns() < limit)
            event_base_loop(w->base, EVLOOP_ONCE);
        if (rc == ST_OK && (p.idle || !l->up || p.t->bulk(l, 128u << 20) < 0))
            rc = err_set(w->e, ST_EUNREACH, "no bulk connection over %s", p.t->name);
        if (rc == ST_OK && (rc = caller_run(w, &c, 0.2)) == ST_OK)
            rc = caller_run(w, &c, w->quick ? 0.8 : 3.0);
        if (rc == ST_OK && p.idle)
            rc =
                err_set(w->e, ST_EUNREACH, "the bulk transfer beside the calls over %s broke off", p.t->name);
        p.stop = true;
        bool was_idle = p.idle;
        p.idle = false;
        if (l && !was_idle)
            p.t->hang_up(l);
        while (l && !was_idle && !p.idle)
            event_base_loop(w->base, EVLOOP_ONCE);
        link_shut(w, k, &wt);
    }
    if (rc == ST_OK) {
        (void)bench_median(c.us, c.n); /* sorts */
        *p99 = c.us[(size_t)((double)(c.n - 1) * 0.99)];
    }
    free(c.us);
    return rc;
}

/* ---- idle connections ---- */

struct crowd {
    unsigned up, down;
    char why[160];
};

static void crowd_up(struct link *l)
{
    ((struct crowd *)l->arg)->up++;
}

static void crowd_down(struct link *l)
{
    struct crowd *c = l->arg;
    if (!c->down++)
        str_copy(c->why, sizeof c->why, l->why);
}

/* Opens until n are up, a few at a time. */
static int crowd_grow(struct world *w, int k, void *client, struct crowd *c, struct link **l, unsigned *have,
                      unsigned n)
{
    const struct link proto = {.on_up = crowd_up, .on_down = crowd_down, .on_bulk_end = wait_bulk, .arg = c};
    uint64_t limit = now_ns() + 30 * NS_PER_S;
    int rc = ST_OK;
    while (rc == ST_OK && c->up < n && !c->down && now_ns() < limit) {
        for (; rc == ST_OK && *have < n && *have - c->up < IN_FLIGHT; *have += rc == ST_OK)
            rc = transports[k]->dial(client, PORT_CALLS, &proto, &l[*have], w->e);
        event_base_loop(w->base, EVLOOP_ONCE);
    }
    if (rc == ST_OK && (c->down || c->up < n))
        rc = err_set(w->e, ST_EUNREACH, "%u of %u connections of %s were lost: %s", n - c->up + c->down, n,
                     transports[k]->name, c->why);
    for (uint64_t end = now_ns() + 300 * NS_PER_MS; rc == ST_OK && now_ns() < end;) /* settle */
        event_base_loop(w->base, EVLOOP_ONCE);
    return rc;
}

/* The server's resident memory, after less than before; in a server that did nothing else. */
static int idle_memory(struct world *w, int k, double *kb)
{
    enum { WARM = 16, MANY = 400 };
    struct crowd c = {0};
    struct link *l[WARM + MANY];
    unsigned have = 0;
    void *client = NULL;
    int rc = transports[k]->client_new(&client, w->base, &w->pki, w->idle[k].ports, w->e);
    if (rc < 0)
        return rc;
    double before = 0, after = 0;
    if ((rc = crowd_grow(w, k, client, &c, l, &have, WARM)) == ST_OK) {
        before = server_rss_kb(&w->idle[k]);
        rc = crowd_grow(w, k, client, &c, l, &have, WARM + MANY);
        after = server_rss_kb(&w->idle[k]);
    }
    unsigned lost = c.down;
    for (unsigned i = 0; !lost && i < have; i++)
        transports[k]->hang_up(l[i]);
    while (!lost && c.down < have)
        event_base_loop(w->base, EVLOOP_ONCE);
    if (!lost) /* else links are left over, and the process is about to end anyway */
        transports[k]->client_free(client);
    *kb = (after - before) / MANY;
    return rc;
}

/* ---- all of it ---- */

struct series {
    double v[PEERS][ROUNDS_MAX];
};

static void put(struct bench_run *run, const char *name, struct series *s, size_t rounds, bool with_tcp)
{
    char tcp[64];
    double m[PEERS];
    for (int k = 0; k < PEERS; k++)
        m[k] = bench_median(s->v[k], rounds);
    bench_put(run, "rpc", name, m[OURS], m[TLS]);
    if (with_tcp) {
        snprintf(tcp, sizeof tcp, "%s-tcp", name);
        bench_put(run, "rpc", tcp, m[OURS], m[TCP]);
    }
}

static void say(const char *what)
{
    fprintf(stderr, "strata-bench rpc: %s\n", what);
}

static int measure(struct world *w, struct bench_run *run)
{
    static const unsigned depth[] = {1, 8, 64};
    static const char *const depth_name[] = {"calls-1-outstanding", "calls-8-outstanding",
                                             "calls-64-outstanding"};
    size_t rounds = w->quick ? 3 : 5;
    struct series a = {0}, b = {0};
    int rc = ST_OK;
    say("memory of idle connections");
    for (int k = 0; k < PEERS; k++) {
        if ((rc = idle_memory(w, k, &a.v[k][0])) < 0)
            return rc;
        server_stop(&w->idle[k]);
    }
    put(run, "memory-per-idle-connection", &a, 1, true);
    say("calls");
    for (size_t d = 0; d < 3; d++) {
        for (size_t r = 0; r < rounds; r++)
            for (int k = 0; k < PEERS; k++)
                if ((rc = calls(w, k, depth[d], &a.v[k][r], &b.v[k][r])) < 0)
                    return rc;
        put(run, depth_name[d], &a, rounds, true);
        if (d == 0)
            put(run, "call-64B-rtt-p50", &b, rounds, true);
    }
    say("handshakes");
    for (size_t r = 0; r < rounds; r++)
        for (int k = 0; k < PEERS; k++)
            if ((rc = handshakes(w, k, &a.v[k][r], &b.v[k][r])) < 0)
                return rc;
    put(run, "handshakes-wall-8-in-flight", &a, rounds, false);
    put(run, "handshakes-per-server-core", &b, rounds, true);
    say("bulk");
    static const struct {
        int port;
        const char *name;
        bool with_tcp;
    } kinds[] = {{PORT_BULK, "bulk-goodput-one-stream", true},
                 {PORT_DIGEST, "bulk-goodput-with-digest", false},
                 {PORT_SMALL, "bulk-goodput-1452B-datagrams", false}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        for (size_t r = 0; r < rounds; r++)
            for (int k = 0; k < (kinds[i].with_tcp ? PEERS : TCP); k++)
                if ((rc = bulk(w, k, kinds[i].port, &a.v[k][r])) < 0)
                    return rc;
        put(run, kinds[i].name, &a, rounds, kinds[i].with_tcp);
    }
    say("calls beside bulk");
    for (size_t r = 0; r < rounds; r++)
        for (int k = 0; k < PEERS; k++)
            if ((rc = calls_beside_bulk(w, k, &a.v[k][r])) < 0)
                return rc;
    put(run, "call-p99-under-bulk", &a, rounds, true);
    return ST_OK;
}

static int world_open(struct world *w)
{
    int rc = bench_pki_open(&w->pki, w->e);
    for (int k = 0; k < PEERS; k++)
        w->work[k] = w->idle[k] = (struct server){.pid = -1, .ctl = -1};
    /* All servers before this process has a loop or a connection that they would inherit. */
    for (int k = 0; k < PEERS && rc == ST_OK; k++)
        if ((rc = server_start(&w->work[k], transports[k], &w->pki, w->e)) == ST_OK)
            rc = server_start(&w->idle[k], transports[k], &w->pki, w->e);
    if (rc < 0)
        return rc;
    pin_cpu(1);
    w->base = event_base_new();
    w->tick = w->base ? event_new(w->base, -1, EV_PERSIST, on_tick, NULL) : NULL;
    if (!w->tick || event_base_priority_init(w->base, 2) || event_add(w->tick, &(struct timeval){0, 50000}))
        return err_set(w->e, ST_ENOMEM, "no event loop");
    for (int k = 0; k < PEERS && rc == ST_OK; k++)
        rc = transports[k]->client_new(&w->client[k], w->base, &w->pki, w->work[k].ports, w->e);
    return rc;
}

int bench_rpc(struct bench_run *run, struct err *e)
{
    struct world w = {.quick = run->o.quick, .e = e};
    int rc = world_open(&w);
    if (rc == ST_OK)
        rc = measure(&w, run);
    /* After a failure links may still be open; the processes end with this one. */
    for (int k = 0; k < PEERS && rc == ST_OK; k++)
        transports[k]->client_free(w.client[k]);
    for (int k = 0; k < PEERS; k++) {
        server_stop(&w.work[k]);
        server_stop(&w.idle[k]);
    }
    if (w.tick)
        event_free(w.tick);
    if (rc == ST_OK)
        event_base_free(w.base);
    bench_pki_close(&w.pki);
    return rc;
}
