#include "tests/unit/rpc/rpcpeer.h"

#include <event2/event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHUNK 65536u

static void must(bool ok, const char *what, const struct err *e)
{
    if (ok)
        return;
    fprintf(stderr, "%s: %s\n", what, e ? e->text : "failed");
    abort();
}

uint8_t rpc_pattern(uint64_t i)
{
    return (uint8_t)(i * 31 + (i >> 8) * 7 + (i >> 16));
}

/* ---- the service ---- */

static void cancelled(struct rpc_call *call, void *arg)
{
    struct served *v = arg;
    v->cancels++;
    if (v->held == call)
        v->held = NULL;
}

static void hold(struct rpc_call *call, struct served *v)
{
    v->held = call;
    rpc_on_cancel(call, cancelled, v);
}

static void on_get(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__GetJobRequest *req = (const Strata__V1__GetJobRequest *)msg;
    struct served *v = arg;
    Strata__V1__Job job = STRATA__V1__JOB__INIT;
    v->calls++;
    snprintf(v->request_id, sizeof v->request_id, "%s", rpc_request_id(call));
    snprintf(v->principal, sizeof v->principal, "%s", rpc_peer(call)->principal);
    snprintf(v->name, sizeof v->name, "%s", rpc_call_name(call));
    v->deadline_ns = rpc_deadline_ns(call);
    job.id = req->id;
    if (!strcmp(req->id, "fail")) {
        rpc_finish(call, 5, "NO_JOB", "there is no job \"%s\": see strata jobs", req->id);
    } else if (!strcmp(req->id, "hold")) {
        hold(call, v);
    } else if (!strcmp(req->id, "close")) {
        hold(call, v);
        rpc_session_close(rpc_call_session(call), 9, "closing time");
    } else if (!strcmp(req->id, "huge")) {
        job.plan_json = malloc(RPC_MAX_MESSAGE + 1);
        must(job.plan_json, "memory", NULL);
        memset(job.plan_json, 'x', RPC_MAX_MESSAGE);
        job.plan_json[RPC_MAX_MESSAGE] = 0;
        rpc_reply(call, &job.base);
        free(job.plan_json);
    } else {
        rpc_reply(call, &job.base);
    }
}

static void watch_more(struct rpc_call *call, void *arg)
{
    struct served *v = arg;
    Strata__V1__Job job = STRATA__V1__JOB__INIT;
    char id[16], *pad = malloc(CHUNK);
    must(pad, "memory", NULL);
    memset(pad, 'p', CHUNK - 1);
    pad[CHUNK - 1] = 0;
    job.id = id;
    job.plan_json = pad;
    int rc = ST_OK;
    while (v->sent < v->total) {
        snprintf(id, sizeof id, "%u", v->sent);
        if ((rc = rpc_send(call, &job.base)) < 0)
            break;
        v->sent++;
    }
    free(pad);
    if (rc == ST_EAGAIN)
        v->again++;
    else
        rpc_finish(call, rc < 0 ? 13 : 0, "", "%s", rc < 0 ? status_name(rc) : "");
}

static void on_watch(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct served *v = arg;
    v->calls++;
    v->sent = 0;
    v->total = (unsigned)strtoul(((const Strata__V1__GetJobRequest *)msg)->id, NULL, 10);
    rpc_on_cancel(call, cancelled, v);
    rpc_on_writable(call, watch_more, v);
    watch_more(call, v);
}

static void on_other(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)msg;
    (void)arg;
    struct err e = {0};
    err_reason(&e, ST_EDENIED, "NO_POLICY", "nobody may do that");
    rpc_fail(call, &e);
}

static void chunk_acked(void *arg)
{
    ((struct served *)arg)->acked++;
}

static void fetch_more(struct rpc_call *call, void *arg)
{
    struct served *v = arg;
    while (v->at < v->size) {
        size_t n = v->size - v->at < CHUNK ? (size_t)(v->size - v->at) : CHUNK;
        int rc = rpc_bulk_write(call, v->bytes + v->at, n, chunk_acked, v);
        if (rc == ST_EAGAIN) {
            v->again++;
            return;
        }
        must(rc == ST_OK, "bulk write", NULL);
        if (v->corrupt && v->at <= v->size / 2) /* after the digest saw it, before it leaves */
            v->bytes[v->at + n / 2] ^= 1;
        v->at += n;
    }
    rpc_bulk_end(call);
}

static void on_fetch(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__FetchRequest *req = (const Strata__V1__FetchRequest *)msg;
    struct served *v = arg;
    Strata__V1__FetchHead head = STRATA__V1__FETCH_HEAD__INIT;
    v->calls++;
    head.bytes = req->bytes;
    if (!strcmp(req->path, "deny")) {
        rpc_finish(call, 7, "NO_TICKET", "the ticket does not cover this layer");
        return;
    }
    must(rpc_bulk_write(call, "x", 1, NULL, NULL) == ST_ECONFLICT, "bytes before the head", NULL);
    must(rpc_send(call, &head.base) == ST_OK, "head", NULL);
    must(rpc_send(call, &head.base) == ST_ECONFLICT, "a frame after the head", NULL);
    rpc_on_cancel(call, cancelled, v);
    if (!strcmp(req->path, "break")) {
        rpc_finish(call, 9, "CHANGED", "the file changed while it was read");
        return;
    }
    v->corrupt = !strcmp(req->path, "corrupt");
    free(v->bytes);
    v->at = 0;
    v->size = req->bytes;
    v->bytes = malloc(v->size + 1);
    must(v->bytes, "memory", NULL);
    for (uint64_t i = 0; i < v->size; i++)
        v->bytes[i] = rpc_pattern(i);
    rpc_on_writable(call, fetch_more, v);
    fetch_more(call, v);
}

static struct rpc_table *make_table(struct served *v)
{
    static const ProtobufCServiceDescriptor *const svc[] = {&strata__v1__jobs__descriptor,
                                                            &strata__v1__layer_source__descriptor};
    static const struct rpc_method m[] = {
        {"strata.v1.Jobs", "Submit", 0, on_other}, {"strata.v1.Jobs", "List", 0, on_other},
        {"strata.v1.Jobs", "Get", 0, on_get},      {"strata.v1.Jobs", "Watch", RPC_SERVER_STREAM, on_watch},
        {"strata.v1.Jobs", "Cancel", 0, on_other}, {"strata.v1.Jobs", "Move", 0, on_other},
        {"strata.v1.Jobs", "Verify", 0, on_other}, {"strata.v1.LayerSource", "Fetch", RPC_BULK, on_fetch},
    };
    struct rpc_table *t;
    struct err e = {0};
    must(rpc_table_new(&t, svc, 2, m, sizeof m / sizeof *m, v, &e) == ST_OK, "table", &e);
    return t;
}

/* ---- a peer that speaks no RPC ---- */

static void raw_readable(struct quic_stream *s, void *arg)
{
    struct world *w = arg;
    const uint8_t *p;
    bool fin;
    for (size_t n; (n = quic_stream_peek(s, &p, &fin)) > 0;)
        quic_stream_consume(s, n);
    if (fin)
        (void)!quic_stream_write(s, w->raw, w->nraw, true);
}

static void raw_reset(struct quic_stream *s, uint64_t code, void *arg)
{
    (void)arg;
    quic_stream_reset(s, code);
}

static void raw_closed(struct quic_stream *s, void *arg)
{
    (void)s;
    (void)arg;
}

static const struct quic_stream_ops raw_ops = {raw_readable, NULL, raw_reset, raw_closed};

static void raw_stream(struct quic_conn *c, struct quic_stream *s, void *arg)
{
    (void)c;
    quic_stream_set(s, &raw_ops, arg);
}

static void raw_conn_closed(struct quic_conn *c, const struct quic_close *why, void *arg)
{
    (void)c;
    (void)why;
    (void)arg;
}

static const struct quic_conn_ops raw_conn = {.on_stream = raw_stream, .on_closed = raw_conn_closed};

/* ---- both ends ---- */

static void session_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    struct world *w = arg;
    if (s == w->s)
        w->s = NULL;
    if (s == w->c) {
        w->c = NULL;
        w->why = *why;
    }
}

static const struct rpc_session_ops session_ops = {.on_closed = session_closed};

static void accepted(struct quic_conn *c, void *arg)
{
    struct world *w = arg;
    const struct rpc_cfg cfg = {w->base, clock_system(), &w->log, w->table_s, w->max_inbound};
    if (w->raw)
        quic_conn_set(c, &raw_conn, w);
    else
        must(rpc_accept(&w->s, &cfg, c, &session_ops, w) == ST_OK, "accept", NULL);
}

static const struct quic_conn_ops accept_ops = {.on_up = accepted};

static void too_late(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    ((struct world *)arg)->late = true;
}

static void open_server(struct world *w, const struct quic_limits *lim)
{
    struct err e = {0};
    struct quic_ep_cfg cfg = {.clock = clock_system(),
                              .rng = rng_system(),
                              .log = &w->log,
                              .tls = w->tls_s,
                              .limits = *lim,
                              .accept = true,
                              .accept_ops = &accept_ops,
                              .accept_arg = w,
                              .reset_secret = {1}};
    w->table_s = make_table(&w->by_s);
    must(quic_udp_new(&w->us, &w->es, w->base, 0, "127.0.0.1:0", &cfg, &e) == ST_OK, "server", &e);
}

static void open_client(struct world *w, const struct quic_limits *lim)
{
    struct err e = {0};
    char text[64];
    struct quic_addr to;
    struct quic_ep_cfg cfg = {.clock = clock_system(),
                              .rng = rng_system(),
                              .log = &w->log,
                              .tls = w->tls_c,
                              .limits = *lim,
                              .reset_secret = {2}};
    const struct rpc_cfg rc = {w->base, clock_system(), &w->log, w->table_c, w->max_inbound};
    must(quic_udp_new(&w->uc, &w->ec, w->base, 0, "127.0.0.1:0", &cfg, &e) == ST_OK, "client", &e);
    snprintf(text, sizeof text, "127.0.0.1:%u", quic_udp_port(w->us));
    must(quic_addr_parse(text, &to, &e) == ST_OK &&
             rpc_dial(&w->c, &rc, w->ec, &to, TLS_COORDINATOR, NULL, &session_ops, w, &e) == ST_OK,
         "dial", &e);
}

void world_start(struct world *w, bool bulk)
{
    struct quic_limits lim;
    w->log = (struct log){.fd = -1, .clock = clock_system()};
    w->max_inbound = w->max_inbound ? w->max_inbound : 16;
    w->base = event_base_new();
    w->deadline = evtimer_new(w->base, too_late, w);
    evtimer_add(w->deadline, &(struct timeval){.tv_sec = 90});
    pki_open(&w->pki);
    w->tls_s = pki_ctx(&w->pki, TLS_COORDINATOR, NULL);
    w->tls_c = pki_ctx(&w->pki, TLS_NODE, "dione");
    if (bulk)
        quic_limits_bulk(&lim);
    else
        quic_limits_control(&lim);
    w->table_c = make_table(&w->by_c);
    open_server(w, &lim);
    open_client(w, &lim);
    while (w->c && !w->late && (!rpc_session_peer(w->c)->principal[0] || (!w->raw && !w->s)))
        event_base_loop(w->base, EVLOOP_ONCE);
    must(w->c && !w->late, w->why.reason, NULL);
}

void world_stop(struct world *w)
{
    quic_udp_free(w->uc, 0, "done");
    quic_udp_free(w->us, 0, "done");
    must(!w->c && !w->s, "sessions closed with their endpoints", NULL);
    rpc_table_free(w->table_s);
    rpc_table_free(w->table_c);
    tls_ctx_unref(w->tls_s);
    tls_ctx_unref(w->tls_c);
    pki_close(&w->pki);
    event_free(w->deadline);
    event_base_free(w->base);
    free(w->by_s.bytes);
    free(w->by_c.bytes);
}

/* ---- the caller ---- */

static void on_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct asked *a = arg;
    if (msg->descriptor == &strata__v1__job__descriptor) {
        const char *id = ((const Strata__V1__Job *)msg)->id;
        snprintf(a->id, sizeof a->id, "%s", id);
        if (((const Strata__V1__Job *)msg)->plan_json[0] && strtoul(id, NULL, 10) != a->messages)
            a->bad = true;
    }
    a->messages++;
    if (a->cancel_on_message)
        rpc_cancel(call);
}

static size_t on_bulk(struct rpc_call *call, const uint8_t *p, size_t n, void *arg)
{
    struct asked *a = arg;
    size_t take = a->take_at_most && n > a->take_at_most ? a->take_at_most : n;
    for (size_t i = 0; i < take; i++)
        a->bad |= p[i] != rpc_pattern(a->got + i);
    a->got += take;
    a->pauses += take < n;
    if (a->cancel_on_message)
        rpc_cancel(call);
    return take;
}

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct asked *a = arg;
    must(call == a->call && !a->done, "one on_done a call", NULL);
    a->done = true;
    a->call = NULL;
    a->st = *st;
    a->has_digest = digest != NULL;
    if (digest)
        memcpy(a->digest, digest, 32);
}

const struct rpc_call_ops asked_ops = {on_message, on_bulk, on_done, NULL};

void ask(struct asked *a, struct rpc_session *s, const char *method, const char *id, uint64_t timeout_ns)
{
    Strata__V1__GetJobRequest req = STRATA__V1__GET_JOB_REQUEST__INIT;
    struct err e = {0};
    req.id = (char *)id;
    must(rpc_call(&a->call, s, &strata__v1__jobs__descriptor, method, 0, &req.base,
                  &(struct rpc_call_opts){timeout_ns, "request-1"}, &asked_ops, a, &e) == ST_OK,
         "call", &e);
    must(!a->done, "no call completes inline", NULL);
}

void fetch(struct asked *a, struct rpc_session *s, const char *path, uint64_t bytes, uint64_t timeout_ns)
{
    Strata__V1__FetchRequest req = STRATA__V1__FETCH_REQUEST__INIT;
    struct err e = {0};
    req.path = (char *)path;
    req.bytes = bytes;
    must(rpc_call(&a->call, s, &strata__v1__layer_source__descriptor, "Fetch", RPC_BULK, &req.base,
                  &(struct rpc_call_opts){.timeout_ns = timeout_ns}, &asked_ops, a, &e) == ST_OK,
         "call", &e);
}

/* ---- a process of its own ---- */

pid_t server_fork(struct pki *p, uint16_t *port)
{
    int fd[2];
    must(pipe(fd) == 0, "pipe", NULL);
    pid_t pid = fork();
    must(pid >= 0, "fork", NULL);
    if (pid == 0) {
        struct world w = {.max_inbound = 16};
        struct quic_limits lim;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        w.log = (struct log){.fd = -1, .clock = clock_system()};
        w.base = event_base_new();
        w.tls_s = pki_ctx(p, TLS_COORDINATOR, NULL);
        quic_limits_control(&lim);
        open_server(&w, &lim);
        *port = quic_udp_port(w.us);
        must(write(fd[1], port, sizeof *port) == sizeof *port, "pipe", NULL);
        event_base_dispatch(w.base);
        _exit(1);
    }
    close(fd[1]);
    must(read(fd[0], port, sizeof *port) == sizeof *port, "the server's port", NULL);
    close(fd[0]);
    return pid;
}

void server_kill(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}
