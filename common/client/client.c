/* libstrata: a blocking face over one RPC session and an event loop of its own. */
#include "common/client/include/strata/client.h"

#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/client/client_priv.h"
#include "common/conf/conf.h"
#include "common/rpc/rpc.h"

#define CONNECT_NS (10 * NS_PER_S)

static const cyaml_schema_field_t fields[] = {
    CYAML_FIELD_STRING_PTR("coordinator", CYAML_FLAG_POINTER, struct settings, coordinator, 1, 256),
    CYAML_FIELD_STRING_PTR("trust_domain", CYAML_FLAG_POINTER, struct settings, trust_domain, 1, 127),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct settings, fields)};

static int read_settings(struct strata_client *c, const char *dir, struct err *e)
{
    char path[4096];
    void *settings;
    int rc = fs_join(path, sizeof path, dir, "client.yaml");
    if (rc < 0)
        return err_set(e, rc, "path too long: %s", dir);
    rc = conf_read(path, 64u << 10, &schema, &settings, e);
    if (rc < 0 && rc != ST_ECONFIG)
        err_prefix(e, "no identity in %s (give --dir or set STRATA_DIR)", dir);
    c->settings = settings;
    return rc;
}

/* ---- loop ---- */

static void on_wake(evutil_socket_t fd, short what, void *arg)
{
    struct strata_client *c = arg;
    uint64_t n;
    (void)what;
    ssize_t r = read(fd, &n, 8);
    (void)r;
    c->interrupted = true;
    event_base_loopbreak(c->base);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct strata_client *c = arg;
    (void)fd;
    (void)what;
    c->timed_out = true;
    event_base_loopbreak(c->base);
}

static void on_up(struct rpc_session *s, void *arg)
{
    struct strata_client *c = arg;
    (void)s;
    c->up = true;
    event_base_loopbreak(c->base);
}

void client_session_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    struct strata_client *c = arg;
    if (s != c->session)
        return;
    c->closed = true;
    c->up = false;
    c->session = NULL;
    c->why = *why;
    event_base_loopbreak(c->base);
}

static const struct rpc_session_ops session_ops = {on_up, client_session_closed};

static int closed_error(const struct strata_client *c, struct err *e)
{
    int code = c->why.status < 0 ? c->why.status : ST_EUNREACH;
    if (c->why.kind == QUIC_CLOSE_TRUST || code == ST_ETRUST)
        return err_reason(e, ST_ETRUST, "TRUST",
                          "the coordinator at %s and this identity do not trust each other: %s",
                          c->settings->coordinator, c->why.reason);
    if (code != ST_EDEADLINE)
        code = ST_EUNREACH;
    return err_reason(
        e, code == ST_EDEADLINE ? ST_EUNREACH : code, "UNREACHABLE",
        "cannot reach the coordinator at %s: %s. Is it running, and is the address in client.yaml right?",
        c->settings->coordinator, c->why.reason);
}

static int open_socket(struct strata_client *c, struct err *e)
{
    struct quic_ep_cfg cfg = {.clock = clock_system(), .rng = rng_system(), .log = &c->log, .tls = c->tls};
    int rc = quic_addr_parse(c->settings->coordinator, &c->to, e);
    if (rc < 0)
        return err_prefix(e, "client.yaml, coordinator");
    quic_limits_control(&cfg.limits);
    rng_system()->fill(NULL, cfg.reset_secret, sizeof cfg.reset_secret);
    const char *any = c->to.ss.ss_family == AF_INET6 ? "[::]:0" : "0.0.0.0:0";
    return quic_udp_new(&c->udp, &c->ep, c->base, 0, any, &cfg, e);
}

int client_wait_up(struct strata_client *c, const bool *up, const bool *closed, struct rpc_session *const *s,
                   uint64_t timeout_ns, struct err *e)
{
    const struct timeval tv = {(time_t)(timeout_ns / NS_PER_S), (suseconds_t)(timeout_ns % NS_PER_S / 1000)};
    c->timed_out = false;
    evtimer_add(c->timer, &tv);
    while (!*up && !*closed && !c->timed_out && !c->interrupted)
        if (event_base_dispatch(c->base) < 0)
            return err_set(e, ST_EINTERNAL, "the event loop failed");
    evtimer_del(c->timer);
    if (*up)
        return ST_OK;
    if (*s)
        rpc_session_close(*s, 0, "gave up");
    return c->interrupted ? err_reason(e, ST_ECANCELED, "INTERRUPTED", "interrupted") : ST_EUNREACH;
}

static int connect_now(struct strata_client *c, uint64_t timeout_ns, struct err *e)
{
    const struct rpc_cfg cfg = {.base = c->base, .clock = clock_system(), .log = &c->log};
    c->closed = false;
    int rc = rpc_dial(&c->session, &cfg, c->ep, &c->to, TLS_COORDINATOR, NULL, &session_ops, c, e);
    if (rc < 0)
        return rc;
    rc = client_wait_up(c, &c->up, &c->closed, &c->session, timeout_ns, e);
    if (rc != ST_EUNREACH)
        return rc;
    if (c->closed)
        return closed_error(c, e);
    return err_reason(e, ST_EUNREACH, "UNREACHABLE",
                      "no answer from the coordinator at %s. Is it running, and does a firewall drop UDP?",
                      c->settings->coordinator);
}

void client_export_error(struct strata_error *out, const struct err *e)
{
    if (!out)
        return;
    out->code = e->code;
    str_copy(out->reason, sizeof out->reason, e->reason);
    str_copy(out->text, sizeof out->text, e->text);
}

int strata_error_exit(const struct strata_error *e)
{
    return status_exit_code(e->code);
}

int strata_client_open(struct strata_client **out, const char *dir, uint64_t timeout_ns,
                       struct strata_error *se)
{
    struct err e = {0};
    struct strata_client *c = calloc(1, sizeof *c);
    int rc = c ? ST_OK : err_set(&e, ST_ENOMEM, "no memory");
    if (c) {
        c->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        c->log = (struct log){.fd = -1, .program = "strata", .clock = clock_system()};
        c->base = event_base_new();
        if (c->base && c->wake_fd >= 0) {
            c->wake = event_new(c->base, c->wake_fd, EV_READ | EV_PERSIST, on_wake, c);
            c->timer = evtimer_new(c->base, on_timer, c);
        }
        if (!c->wake || !c->timer || event_add(c->wake, NULL))
            rc = err_set(&e, ST_ERESOURCE, "cannot make an event loop: out of memory or of file descriptors");
        if (rc == ST_OK && !(c->dir = strdup(dir)))
            rc = err_set(&e, ST_ENOMEM, "no memory");
        if (rc == ST_OK && (rc = read_settings(c, dir, &e)) == ST_OK &&
            (rc = client_load_tls(c, &c->tls, &e)) == ST_OK && (rc = open_socket(c, &e)) == ST_OK &&
            (rc = connect_now(c, timeout_ns ? timeout_ns : CONNECT_NS, &e)) == ST_OK &&
            (rc = client_renewal_init(c)) < 0)
            rc = err_set(&e, rc, "no memory");
    }
    if (rc < 0) {
        client_export_error(se, &e);
        strata_client_close(c);
        return rc;
    }
    client_renew_if_due(c);
    *out = c;
    return ST_OK;
}

void strata_client_close(struct strata_client *c)
{
    if (!c)
        return;
    if (c->udp)
        quic_udp_free(c->udp, 0, "bye");
    tls_ctx_unref(c->tls);
    if (c->look)
        event_free(c->look);
    if (c->timer)
        event_free(c->timer);
    if (c->wake)
        event_free(c->wake);
    if (c->base)
        event_base_free(c->base);
    if (c->wake_fd >= 0)
        close(c->wake_fd);
    conf_free(&schema, c->settings);
    free(c->dir);
    free(c);
}

void strata_client_interrupt(struct strata_client *c)
{
    ssize_t r = write(c->wake_fd, &(uint64_t){1}, 8);
    (void)r; /* a full eventfd is readable all the same */
}

/* ---- calls ---- */

/* The message is only lent: an answer is kept by packing and unpacking it, which no other API offers. */
ProtobufCMessage *client_duplicate(const ProtobufCMessage *m)
{
    size_t n = protobuf_c_message_get_packed_size(m);
    uint8_t *p = malloc(n ? n : 1);
    ProtobufCMessage *copy = NULL;
    if (p) {
        protobuf_c_message_pack(m, p);
        copy = protobuf_c_message_unpack(m->descriptor, NULL, n, p);
    }
    free(p);
    return copy;
}

static void on_msg(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct strata_client *c = arg;
    if (c->on_message) {
        if (!c->stopped && c->on_message(msg, c->arg)) {
            c->stopped = true;
            rpc_cancel(call);
        }
    } else if (!c->reply) {
        c->reply = client_duplicate(msg);
    }
}

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct strata_client *c = arg;
    (void)call;
    (void)digest;
    c->done = true;
    c->call = NULL;
    c->st = *st;
    event_base_loopbreak(c->base);
}

static const struct rpc_call_ops call_ops = {.on_message = on_msg, .on_done = on_done};

static int run_call(struct strata_client *c, const ProtobufCServiceDescriptor *svc, const char *method,
                    unsigned flags, const ProtobufCMessage *req, uint64_t timeout_ns, const char *request_id,
                    struct err *e)
{
    const struct rpc_call_opts o = {timeout_ns, request_id};
    c->done = c->stopped = false;
    c->reply = NULL;
    /* Between calls nobody runs the loop: what happened since shows only now, a connection idle for too long
     * included. Nothing of this call was sent yet, so it may as well go over a new one. */
    int rc = event_base_loop(c->base, EVLOOP_NONBLOCK) < 0 ? err_set(e, ST_EINTERNAL, "the event loop failed")
                                                           : ST_OK;
    if (rc == ST_OK && c->interrupted)
        rc = err_reason(e, ST_ECANCELED, "INTERRUPTED", "interrupted");
    if (rc == ST_OK && !c->session)
        rc = connect_now(c, CONNECT_NS, e);
    if (rc < 0)
        return rc;
    rc = rpc_call(&c->call, c->session, svc, method, flags, req, &o, &call_ops, c, e);
    if (rc < 0)
        return rc;
    while (!c->done) {
        if (event_base_dispatch(c->base) < 0)
            return err_set(e, ST_EINTERNAL, "the event loop failed");
        if (c->interrupted && c->call)
            rpc_cancel(c->call); /* on_done follows */
    }
    if (c->interrupted)
        return err_reason(e, ST_ECANCELED, "INTERRUPTED", "interrupted");
    if (c->st.code == 0 || c->stopped)
        return ST_OK;
    return err_reason(e, status_from_rpc(c->st.code), c->st.reason, "%s", c->st.text);
}

int strata_client_call(struct strata_client *c, const ProtobufCServiceDescriptor *svc, const char *method,
                       const ProtobufCMessage *req, uint64_t timeout_ns, const char *request_id,
                       ProtobufCMessage **resp, struct strata_error *se)
{
    struct err e = {0};
    c->on_message = NULL;
    int rc = run_call(c, svc, method, RPC_UNARY, req, timeout_ns, request_id, &e);
    if (rc == ST_OK && !c->reply)
        rc = err_set(&e, ST_EPROTO, "the coordinator answered %s.%s without a message", svc->short_name,
                     method);
    if (rc < 0) {
        if (c->reply)
            protobuf_c_message_free_unpacked(c->reply, NULL);
        client_export_error(se, &e);
        return rc;
    }
    *resp = c->reply;
    return ST_OK;
}

int strata_client_stream(struct strata_client *c, const ProtobufCServiceDescriptor *svc, const char *method,
                         const ProtobufCMessage *req, uint64_t timeout_ns,
                         int (*on_message)(const ProtobufCMessage *, void *), void *arg,
                         struct strata_error *se)
{
    struct err e = {0};
    c->on_message = on_message;
    c->arg = arg;
    int rc = run_call(c, svc, method, RPC_SERVER_STREAM, req, timeout_ns, NULL, &e);
    if (rc < 0)
        client_export_error(se, &e);
    return rc;
}

const char *strata_client_coordinator(const struct strata_client *c)
{
    return c->settings->coordinator;
}

const char *strata_client_principal(const struct strata_client *c)
{
    return tls_ctx_self(c->tls)->principal;
}

const char *strata_client_identity(const struct strata_client *c)
{
    return tls_ctx_self(c->tls)->spiffe;
}
