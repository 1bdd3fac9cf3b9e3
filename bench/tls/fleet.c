#include "bench/tls/fleet.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/control.h"
#include "agent/identity.h"
#include "agent/layers/files.h"
#include "bench/rpc/echo.pb-c.h"
#include "common/base/fs.h"
#include "common/base/str.h"

#define CALL_NS NS_PER_S
#define CHUNK (256u << 10)

static const struct log silent = {.fd = -1};

struct world;

struct member {
    struct world *w;
    struct agent_config cfg;
    char name[32], dir[200], ca[220], crt[220], key[220], state[220], from[40], port[24];
    struct identity *id;
    struct control *control;
    struct rpc_table *table;
    struct quic_udp *udp, *bulk_udp;
    struct quic_ep *ep, *bulk_ep;
    struct event *timer;
    bool registered, busy;
    uint64_t sent_ns;
};

struct world {
    struct event_base *base;
    struct files *files;
    const struct bench_cluster *c;
    const char *dir;
    struct member *m;
    unsigned n, registered;
    int in, out;
    bool calling, rotating, ending;
    struct fleet_tally t;
    /* the transfer: from m[0] to m[1] */
    bool transfer, taken;
    struct rpc_table *source;
    struct rpc_session *taker;
    struct rpc_call *pouring;
    uint8_t *chunk;
};

static void wrong(struct world *w, const char *what, const char *why)
{
    if (!w->t.why[0])
        snprintf(w->t.why, sizeof w->t.why, "%s: %.120s", what, why);
}

static void tell(struct world *w)
{
    if (write(w->out, &w->t, sizeof w->t) != (ssize_t)sizeof w->t)
        _exit(1);
}

static void finish_when_idle(struct world *w)
{
    if (!w->ending || (w->transfer && !w->taken))
        return;
    for (unsigned i = 0; i < w->n; i++)
        if (w->m[i].busy)
            return;
    tell(w);
    _exit(0);
}

/* ---- calls ---- */

static void call_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct member *m = arg;
    struct world *w = m->w;
    double ms = (double)(clock_ns(clock_system()) - m->sent_ns) / 1e6;
    (void)call, (void)digest;
    m->busy = false;
    w->t.calls++;
    if (st->code) {
        w->t.failed++;
        wrong(w, m->name, st->text);
    }
    double *worst = w->rotating ? &w->t.slowest_ms : &w->t.calm_ms;
    *worst = ms > *worst ? ms : *worst;
    finish_when_idle(w);
}

static void call_now(struct member *m)
{
    static const struct rpc_call_ops ops = {.on_done = call_done};
    Strata__V1__CertStatusRequest q = STRATA__V1__CERT_STATUS_REQUEST__INIT;
    struct rpc_session *s = control_session(m->control);
    struct rpc_call *call;
    struct err e = {0};
    if (m->busy)
        return; /* a slow one counts once, as slow as it is */
    m->sent_ns = clock_ns(clock_system());
    m->busy = true;
    if (!s || rpc_call(&call, s, &strata__v1__certs__descriptor, "Status", RPC_UNARY, &q.base, NULL, &ops, m,
                       &e) < 0) {
        m->busy = false;
        m->w->t.calls++;
        m->w->t.failed++;
        wrong(m->w, m->name, s ? e.text : "it has no connection to call over");
    }
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    const struct timeval tv = {CALL_NS / NS_PER_S, 0};
    struct member *m = arg;
    (void)fd, (void)what;
    if (m->w->ending)
        return;
    call_now(m);
    evtimer_add(m->timer, &tv);
}

/* ---- what an agent does ---- */

static void fill_hello(Strata__V1__HelloRequest *q, void *arg)
{
    q->peer_address = ((struct member *)arg)->from;
}

static void fill_heartbeat(Strata__V1__HeartbeatRequest *q, void *arg)
{
    (void)q, (void)arg;
}

static void on_registered(const Strata__V1__HelloReply *r, void *arg)
{
    struct member *m = arg;
    (void)r;
    identity_registered(m->id);
    if (m->registered)
        return;
    m->registered = true;
    if (++m->w->registered == m->w->n)
        tell(m->w);
}

static void on_heartbeat(const Strata__V1__HeartbeatReply *r, void *arg)
{
    (void)r, (void)arg;
}

static void on_lost(const char *why, void *arg)
{
    struct member *m = arg;
    m->w->t.lost++;
    wrong(m->w, m->name, why);
}

static void on_moved(bool ok, void *arg)
{
    struct member *m = arg;
    m->w->t.moves += ok;
    identity_registered(m->id);
}

static const struct control_ops control_ops = {.fill_hello = fill_hello,
                                               .fill_heartbeat = fill_heartbeat,
                                               .on_registered = on_registered,
                                               .on_heartbeat = on_heartbeat,
                                               .on_lost = on_lost,
                                               .on_moved = on_moved};

static void on_context(struct tls_ctx *fresh, void *arg)
{
    struct member *m = arg;
    quic_ep_set_tls(m->ep, fresh);
    if (m->bulk_ep)
        quic_ep_set_tls(m->bulk_ep, fresh);
}

static void on_check(void *arg)
{
    struct member *m = arg;
    (void)quic_ep_close_bad(m->ep);
    if (m->bulk_ep)
        (void)quic_ep_close_bad(m->bulk_ep);
}

static void on_ticket_key(const uint8_t pub[TICKET_PUB_LEN], void *arg)
{
    (void)pub, (void)arg;
}

static void on_trust(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct member *m = arg;
    struct err e = {0};
    uint8_t sha[32];
    if (identity_update(m->id, (const Strata__V1__TrustUpdate *)msg, sha, &e) < 0) {
        wrong(m->w, m->name, e.text);
        rpc_fail(call, &e);
        return;
    }
    Strata__V1__TrustReply r = STRATA__V1__TRUST_REPLY__INIT;
    r.ca_sha256 = (ProtobufCBinaryData){.len = 32, .data = sha};
    rpc_reply(call, &r.base);
}

/* ---- the transfer ---- */

static void nothing(void *arg)
{
    (void)arg;
}

static void pour(struct rpc_call *call, void *arg)
{
    struct world *w = arg;
    if (!w->pouring)
        return;
    while (!w->ending)
        if (rpc_bulk_write(call, w->chunk, CHUNK, nothing, NULL) < 0)
            return; /* on_writable comes back here */
    w->pouring = NULL;
    rpc_bulk_end(call);
}

static void pour_cancelled(struct rpc_call *call, void *arg)
{
    struct world *w = arg;
    (void)call;
    w->pouring = NULL;
}

static void on_pour(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct world *w = arg;
    if (rpc_send(call, req) < 0) {
        rpc_finish(call, 13, "NO_MEMORY", "no memory");
        return;
    }
    w->pouring = call;
    rpc_on_cancel(call, pour_cancelled, w);
    rpc_on_writable(call, pour, w);
    pour(call, w);
}

static void source_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    (void)s, (void)why, (void)arg;
}

static void source_up(struct quic_conn *conn, void *arg)
{
    static const struct rpc_session_ops ops = {.on_closed = source_closed};
    struct world *w = arg;
    struct rpc_session *s;
    const struct rpc_cfg rc = {
        .base = w->base, .clock = clock_system(), .log = &silent, .table = w->source, .max_inbound_calls = 4};
    if (rpc_accept(&s, &rc, conn, &ops, w) < 0)
        quic_conn_close(conn, 1, "no memory");
}

static void source_refused(struct quic_conn *conn, const struct quic_close *why, void *arg)
{
    (void)conn, (void)why, (void)arg;
}

static void taker_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)call, (void)msg, (void)arg;
}

static size_t taker_bulk(struct rpc_call *call, const uint8_t *p, size_t n, void *arg)
{
    struct world *w = arg;
    (void)call, (void)p;
    w->t.bytes += n;
    return n;
}

static void taker_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct world *w = arg;
    (void)call;
    w->taken = true;
    w->t.whole = st->code == 0 && digest && w->ending;
    if (!w->t.whole)
        wrong(w, "the transfer", st->code ? st->text : "it ended too early");
    finish_when_idle(w);
}

static void taker_up(struct rpc_session *s, void *arg)
{
    static const struct rpc_call_ops ops = {
        .on_message = taker_message, .on_bulk = taker_bulk, .on_done = taker_done};
    const struct rpc_call_opts o = {.timeout_ns = UINT64_MAX};
    struct world *w = arg;
    struct rpc_call *call;
    struct err e = {0};
    Strata__Bench__PingMessage q = STRATA__BENCH__PING_MESSAGE__INIT;
    if (rpc_call(&call, s, &strata__bench__source__descriptor, "Pour", RPC_BULK, &q.base, &o, &ops, w, &e) <
        0) {
        wrong(w, "the transfer", e.text);
        w->taken = true;
    }
}

static void taker_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    struct world *w = arg;
    (void)s;
    if (w->taken)
        return;
    w->taken = true; /* before it began: a call would have told */
    wrong(w, "the transfer", why->reason);
}

static int open_transfer(struct world *w, struct err *e)
{
    static const struct quic_conn_ops accept = {.on_up = source_up, .on_closed = source_refused};
    static const struct rpc_session_ops ops = {.on_up = taker_up, .on_closed = taker_closed};
    static const struct rpc_method methods[] = {{"strata.bench.Source", "Pour", RPC_BULK, on_pour}};
    static const ProtobufCServiceDescriptor *const services[] = {&strata__bench__source__descriptor};
    const struct rpc_cfg rc = {.base = w->base, .clock = clock_system(), .log = &silent};
    struct quic_addr to;
    char text[40];
    int rc_ = rpc_table_new(&w->source, services, 1, methods, 1, w, e);
    if (rc_ == ST_OK && !(w->chunk = calloc(1, CHUNK)))
        rc_ = err_set(e, ST_ENOMEM, "no memory");
    for (int i = 0; i < 2 && rc_ == ST_OK; i++) {
        struct member *m = &w->m[i];
        struct quic_ep_cfg cfg = {.clock = clock_system(),
                                  .rng = rng_system(),
                                  .log = &silent,
                                  .tls = identity_tls(m->id),
                                  .accept = i == 0,
                                  .accept_ops = &accept,
                                  .accept_arg = w};
        quic_limits_bulk(&cfg.limits);
        rng_system()->fill(rng_system()->arg, cfg.reset_secret, sizeof cfg.reset_secret);
        rc_ = quic_udp_new(&m->bulk_udp, &m->bulk_ep, w->base, 0, m->from, &cfg, e);
    }
    if (rc_ < 0)
        return rc_;
    snprintf(text, sizeof text, "%.*s:%u", (int)(strrchr(w->m[0].from, ':') - w->m[0].from), w->m[0].from,
             quic_udp_port(w->m[0].bulk_udp));
    rc_ = quic_addr_parse(text, &to, e);
    return rc_ < 0 ? rc_ : rpc_dial(&w->taker, &rc, w->m[1].bulk_ep, &to, TLS_NODE, w->m[0].name, &ops, w, e);
}

/* ---- life ---- */

static int enrol(struct member *m, const struct enroll_token *t, struct err *e)
{
    struct enroll_result r;
    int rc;
    if ((rc = fs_mkdirs(m->state, 0700, e)) < 0 || (rc = tls_key_make(m->key, true, e)) < 0 ||
        (rc = enroll_join(m->w->c->enroll, t, m->name, NULL, m->key, 30 * NS_PER_S, &r, e)) < 0)
        return rc;
    if ((rc = fs_write_atomic(m->crt, r.certificate.data, r.certificate.len, 0644, e)) == ST_OK)
        rc = fs_write_atomic(m->ca, r.ca.data, r.ca.len, 0644, e);
    enroll_result_fini(&r);
    return rc;
}

static int member_start(struct member *m, struct err *e)
{
    static const ProtobufCServiceDescriptor *const services[] = {&strata__v1__trust__descriptor};
    static const struct rpc_method methods[] = {{"strata.v1.Trust", "Update", RPC_UNARY, on_trust}};
    struct world *w = m->w;
    const struct identity_cfg id = {.base = w->base,
                                    .clock = clock_system(),
                                    .rng = rng_system(),
                                    .log = &silent,
                                    .config = &m->cfg,
                                    .on_context = on_context,
                                    .on_check = on_check,
                                    .on_ticket_key = on_ticket_key,
                                    .arg = m};
    int rc = identity_new(&m->id, &id, e);
    if (rc < 0 || (rc = rpc_table_new(&m->table, services, 1, methods, 1, m, e)) < 0)
        return rc;
    struct quic_ep_cfg cfg = {
        .clock = clock_system(), .rng = rng_system(), .log = &silent, .tls = identity_tls(m->id)};
    quic_limits_control(&cfg.limits);
    rng_system()->fill(rng_system()->arg, cfg.reset_secret, sizeof cfg.reset_secret);
    if ((rc = quic_udp_new(&m->udp, &m->ep, w->base, 0, m->from, &cfg, e)) < 0)
        return rc;
    const struct control_cfg ctl = {.base = w->base,
                                    .clock = clock_system(),
                                    .rng = rng_system(),
                                    .log = &silent,
                                    .ep = m->ep,
                                    .files = w->files,
                                    .table = m->table,
                                    .address = w->c->control};
    if ((rc = control_new(&m->control, &ctl, &control_ops, m, e)) < 0)
        return rc;
    identity_start(m->id, m->control);
    m->timer = evtimer_new(w->base, on_timer, m);
    return m->timer ? ST_OK : err_set(e, ST_ENOMEM, "no memory");
}

static void member_init(struct member *m, struct world *w, unsigned number)
{
    m->w = w;
    snprintf(m->name, sizeof m->name, "n%u", number);
    snprintf(m->dir, sizeof m->dir, "%.100s/%s", w->dir, m->name);
    snprintf(m->ca, sizeof m->ca, "%s/ca.crt", m->dir);
    snprintf(m->crt, sizeof m->crt, "%s/node.crt", m->dir);
    snprintf(m->key, sizeof m->key, "%s/node.key", m->dir);
    snprintf(m->state, sizeof m->state, "%s/state", m->dir);
    /* As many addresses as machines: what the coordinator allows one address is not what is measured. */
    snprintf(m->from, sizeof m->from, "127.0.%u.%u:0", 1 + number / 200, 1 + number % 200);
    m->cfg = (struct agent_config){.node = m->name,
                                   .coordinator = (char *)w->c->control,
                                   .ca_file = m->ca,
                                   .cert_file = m->crt,
                                   .key_file = m->key,
                                   .trust_domain = (char *)"strata.local",
                                   .state_dir = m->state};
}

static void on_command(evutil_socket_t fd, short what, void *arg)
{
    struct world *w = arg;
    char c;
    (void)what;
    if (read(fd, &c, 1) != 1)
        _exit(1); /* whoever began this is gone */
    struct err e = {0};
    if (c == 'b') {
        if (w->transfer && open_transfer(w, &e) < 0) {
            wrong(w, "the transfer", e.text);
            w->taken = true;
        }
        for (unsigned i = 0; i < w->n; i++) {
            uint64_t us = rng_below(rng_system(), CALL_NS / 1000);
            const struct timeval tv = {(time_t)(us / 1000000), (suseconds_t)(us % 1000000)};
            evtimer_add(w->m[i].timer, &tv);
        }
    }
    w->rotating |= c == 'r';
    if (c == 'e') {
        w->ending = true;
        if (w->pouring)
            pour(w->pouring, w);
        finish_when_idle(w);
    }
}

static void run(struct world *w, const struct enroll_token *t, unsigned first)
{
    struct err e = {0};
    int rc = ST_OK;
    w->m = calloc(w->n, sizeof *w->m);
    w->base = event_base_new();
    struct event *ev = w->base ? event_new(w->base, w->in, EV_READ | EV_PERSIST, on_command, w) : NULL;
    w->t.whole = !w->transfer;
    if (!w->m || !ev || event_add(ev, NULL) < 0)
        rc = err_set(&e, ST_ENOMEM, "no memory");
    for (unsigned i = 0; i < w->n && rc == ST_OK; i++) {
        member_init(&w->m[i], w, first + i);
        rc = enrol(&w->m[i], t, &e);
    }
    if (rc == ST_OK)
        rc = files_new(&w->files, w->base, 1, &e);
    for (unsigned i = 0; i < w->n && rc == ST_OK; i++)
        rc = member_start(&w->m[i], &e);
    if (rc < 0) {
        wrong(w, "a fleet did not start", e.text);
        tell(w);
        _exit(1);
    }
    event_base_dispatch(w->base);
    _exit(1);
}

int fleet_start(struct fleet *f, const struct bench_cluster *c, const char *dir, const struct enroll_token *t,
                unsigned first, unsigned n, bool transfer, struct err *e)
{
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC))
        return err_errno(e, errno, "cannot make a pipe");
    fflush(NULL);
    f->pid = fork();
    if (f->pid == 0) {
        struct world w = {.c = c, .dir = dir, .n = n, .in = in[0], .out = out[1], .transfer = transfer};
        close(in[1]);
        close(out[0]);
        /* On machines of their own the two would not take this one's processors from the others. */
        if (transfer && nice(10) < -20)
            _exit(1);
        run(&w, t, first);
    }
    close(in[0]);
    close(out[1]);
    f->in = in[1];
    f->out = out[0];
    return f->pid < 0 ? err_errno(e, errno, "cannot start a fleet") : ST_OK;
}

int fleet_tell(struct fleet *f, char what, struct err *e)
{
    return write(f->in, &what, 1) == 1 ? ST_OK : err_errno(e, errno, "a fleet of agents is gone");
}

int fleet_tally(struct fleet *f, struct fleet_tally *t, struct err *e)
{
    if (read(f->out, t, sizeof *t) != (ssize_t)sizeof *t)
        return err_set(e, ST_EINTERNAL, "a fleet of agents died");
    return ST_OK;
}

void fleet_end(struct fleet *f)
{
    int st;
    if (f->pid <= 0)
        return;
    kill(f->pid, SIGKILL);
    waitpid(f->pid, &st, 0);
    close(f->in);
    close(f->out);
    f->pid = -1;
}
