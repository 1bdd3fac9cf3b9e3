#include "tests/unit/session/client.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/str.h"

void user_open(struct user *u, struct world *w, const char *name)
{
    struct err e;
    *u = (struct user){.w = w};
    str_copy(u->name, sizeof u->name, name);
    snprintf(u->principal, sizeof u->principal, "user/%s", name);
    u->tls = world_user(w, name);
    struct quic_ep_cfg cfg = {.clock = clock_system(), .rng = rng_system(), .log = &w->log, .tls = u->tls};
    quic_limits_bulk(&cfg.limits);
    assert_int_equal(quic_udp_new(&u->udp, &u->ep, w->base, 0, "127.0.0.1:0", &cfg, &e), ST_OK);
}

void user_close(struct user *u)
{
    quic_udp_free(u->udp, 0, "bye");
    tls_ctx_unref(u->tls);
}

struct ticket user_ticket(const struct user *u, unsigned node, uint64_t limit)
{
    struct ticket t = {.purpose = TICKET_DEVICE, .limit_bytes = limit};
    char name[SESSION_NAME_MAX + 1];
    memcpy(t.holder, tls_ctx_self(u->tls)->spki_sha256, 32);
    str_copy(t.node, sizeof t.node, u->w->node[node].name);
    t.issued_us = clock_wall_us(clock_system());
    t.expires_us = t.issued_us + 60000000;
    ticket_serial(rng_system(), t.serial);
    t.grant.permissions = PERM_ALL14;
    t.grant.generation = 1;
    t.grant.n_devices = 1;
    strcpy(t.grant.devices[0], "*");
    str_copy(t.grant.principal, sizeof t.grant.principal, u->principal);
    rng_system()->fill(NULL, t.grant.session, sizeof t.grant.session);
    ticket_session(&t, name);
    snprintf(t.resource, sizeof t.resource, "session/%s", name);
    return t;
}

size_t ticket_bytes(struct world *w, const struct ticket *t, uint8_t out[TICKET_MAX])
{
    size_t n = 0;
    struct err e;
    if (ticket_sign(w->key, t, out, &n, &e) != ST_OK)
        fail_msg("ticket: %s", e.text);
    return n;
}

void ticket_session(const struct ticket *t, char out[SESSION_NAME_MAX + 1])
{
    strcpy(out, "s-");
    hex_encode(out + 2, t->grant.session, TICKET_SESSION_LEN);
}

/* ---- connections ---- */

static void on_up(struct rpc_session *s, void *arg)
{
    (void)s;
    ((struct link *)arg)->up = true;
}

static void on_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    struct link *l = arg;
    (void)s;
    (void)why;
    l->rpc = NULL;
}

static const struct rpc_session_ops session_ops = {on_up, on_closed};

struct link *link_open(struct user *u, unsigned node)
{
    struct link *l = calloc(1, sizeof *l);
    struct quic_addr to;
    struct err e;
    const struct rpc_cfg cfg = {.base = u->w->base, .clock = clock_system(), .log = &u->w->log};
    assert_non_null(l);
    l->w = u->w;
    assert_int_equal(quic_addr_parse(u->w->node[node].peer_address, &to, &e), ST_OK);
    assert_int_equal(
        rpc_dial(&l->rpc, &cfg, u->ep, &to, TLS_NODE, u->w->node[node].name, &session_ops, l, &e), ST_OK);
    WAIT(u->w, l->up || !l->rpc);
    assert_non_null(l->rpc);
    return l;
}

void link_close(struct link *l)
{
    if (l->rpc)
        rpc_session_close(l->rpc, 0, "bye");
    WAIT(l->w, !l->rpc);
    free(l);
}

void link_attach(struct link *l, const struct ticket *t, uint64_t linger_ns)
{
    uint8_t b[TICKET_MAX];
    Strata__V1__OpenDevicesRequest q = STRATA__V1__OPEN_DEVICES_REQUEST__INIT;
    q.ticket = (ProtobufCBinaryData){ticket_bytes(l->w, t, b), b};
    q.linger_ns = linger_ns;
    expect_ask(l, "Devices.Open", &q.base, 0, "", NULL);
}

struct link *link_session(struct user *u, unsigned node, const struct ticket *t)
{
    struct link *l = link_open(u, node);
    link_attach(l, t, 0);
    return l;
}

/* ---- calls ---- */

static void on_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct reply *r = arg;
    (void)call;
    size_t n = protobuf_c_message_get_packed_size(msg);
    uint8_t *p = malloc(n + 1);
    protobuf_c_message_pack(msg, p);
    assert_null(r->msg);
    r->msg = protobuf_c_message_unpack(msg->descriptor, NULL, n, p);
    free(p);
}

static size_t on_bulk(struct rpc_call *call, const uint8_t *p, size_t n, void *arg)
{
    struct reply *r = arg;
    (void)call;
    if (r->stall)
        return 0;
    assert_true(r->got + n <= r->cap);
    memcpy(r->data + r->got, p, n);
    r->got += n;
    return n;
}

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct reply *r = arg;
    (void)call;
    (void)digest;
    r->done = true;
    r->call = NULL;
    r->code = st->code;
    strcpy(r->reason, st->reason);
    strcpy(r->text, st->text);
}

void upload_more(struct reply *r)
{
    int rc = ST_OK;
    size_t top = r->hold && r->hold < r->n ? r->hold : r->n;
    while (r->call && rc == ST_OK && r->at < top) {
        size_t n = top - r->at < 16384 ? top - r->at : 16384;
        rc = rpc_upload_write(r->call, r->src + r->at, n);
        if (rc == ST_OK)
            r->at += n;
    }
    if (r->call && r->at == r->n && !r->ended) {
        r->ended = true;
        rpc_upload_end(r->call);
    }
}

static void on_writable(struct rpc_call *call, void *arg)
{
    (void)call;
    upload_more(arg);
}

static const struct rpc_call_ops call_ops = {on_message, on_bulk, on_done, on_writable};

void ask_service(struct link *l, const ProtobufCServiceDescriptor *svc, const char *method, unsigned flags,
                 const ProtobufCMessage *rq, struct reply *r)
{
    const struct rpc_call_opts o = {.timeout_ns = 50 * NS_PER_S};
    struct err e = {0};
    r->w = l->w;
    assert_non_null(l->rpc);
    if (rpc_call(&r->call, l->rpc, svc, method, flags, rq, &o, &call_ops, r, &e) != ST_OK)
        fail_msg("%s: %s", method, e.text);
}

void ask(struct link *l, const char *name, unsigned flags, const ProtobufCMessage *rq, struct reply *r)
{
    static const ProtobufCServiceDescriptor *const services[] = {
        &strata__v1__devices__descriptor, &strata__v1__memory__descriptor, &strata__v1__compute__descriptor,
        &strata__v1__monitor__descriptor, &strata__v1__memory_source__descriptor};
    const char *dot = strchr(name, '.');
    for (size_t i = 0; i < sizeof services / sizeof *services; i++)
        if (strlen(services[i]->short_name) == (size_t)(dot - name) &&
            !strncmp(services[i]->short_name, name, (size_t)(dot - name))) {
            ask_service(l, services[i], dot + 1, flags, rq, r);
            return;
        }
    fail_msg("no service for %s", name);
}

void wait_reply(struct reply *r)
{
    WAIT(r->w, r->done);
}

void reply_free(struct reply *r)
{
    if (r->msg)
        protobuf_c_message_free_unpacked(r->msg, NULL);
    free(r->data);
    r->msg = NULL;
    r->data = NULL;
}

void expect(const struct reply *r, unsigned code, const char *reason)
{
    assert_true(r->done);
    if (r->code != code || (reason[0] && strcmp(r->reason, reason) != 0))
        fail_msg("code %u %s (%s), not %u %s", r->code, r->reason, r->text, code, reason);
}

void expect_ask(struct link *l, const char *name, const ProtobufCMessage *rq, unsigned code,
                const char *reason, struct reply *out)
{
    struct reply r = {0}, *p = out ? out : &r;
    *p = (struct reply){0};
    ask(l, name, RPC_UNARY, rq, p);
    wait_reply(p);
    if (p->code != code || (reason[0] && strcmp(p->reason, reason) != 0))
        fail_msg("%s: code %u %s (%s), not %u %s", name, p->code, p->reason, p->text, code, reason);
    if (!out)
        reply_free(p);
}

ProtobufCBinaryData mem_alloc(struct link *l, uint64_t bytes, uint8_t handle[16])
{
    return mem_alloc_on(l, "cpu:0", bytes, handle);
}

ProtobufCBinaryData mem_alloc_on(struct link *l, const char *device, uint64_t bytes, uint8_t handle[16])
{
    Strata__V1__AllocateRequest q = STRATA__V1__ALLOCATE_REQUEST__INIT;
    struct reply r;
    q.device = (char *)device;
    q.bytes = bytes;
    expect_ask(l, "Memory.Allocate", &q.base, 0, "", &r);
    const Strata__V1__Buffer *b = (const Strata__V1__Buffer *)r.msg;
    assert_int_equal(b->handle.len, 16);
    memcpy(handle, b->handle.data, 16);
    reply_free(&r);
    return (ProtobufCBinaryData){16, handle};
}

void mem_put_start(struct link *l, ProtobufCBinaryData h, uint64_t off, const uint8_t *p, size_t n,
                   struct reply *r)
{
    Strata__V1__CopyToRequest q = STRATA__V1__COPY_TO_REQUEST__INIT;
    size_t hold = r->hold;
    q.handle = h;
    q.offset = off;
    q.bytes = n;
    *r = (struct reply){.src = p, .n = n, .hold = hold};
    ask(l, "Memory.CopyToDevice", RPC_UPLOAD, &q.base, r);
    upload_more(r);
}

void mem_put(struct link *l, ProtobufCBinaryData h, uint64_t off, const uint8_t *p, size_t n)
{
    struct reply r = {0};
    mem_put_start(l, h, off, p, n, &r);
    wait_reply(&r);
    expect(&r, 0, "");
    const Strata__V1__Copied *c = (const Strata__V1__Copied *)r.msg;
    assert_true(c->bytes == n && c->sha256.len == 32 && c->device_sha256.len == 32);
    assert_memory_equal(c->sha256.data, c->device_sha256.data, 32);
    reply_free(&r);
}

void mem_get_start(struct link *l, ProtobufCBinaryData h, uint64_t off, size_t n, struct reply *r)
{
    Strata__V1__CopyFromRequest q = STRATA__V1__COPY_FROM_REQUEST__INIT;
    bool stall = r->stall;
    q.handle = h;
    q.offset = off;
    q.bytes = n;
    *r = (struct reply){.data = malloc(n + 1), .cap = n, .stall = stall};
    ask(l, "Memory.CopyFromDevice", RPC_BULK, &q.base, r);
}

void mem_check(struct link *l, ProtobufCBinaryData h, uint64_t off, const uint8_t *p, size_t n)
{
    struct reply r = {0};
    mem_get_start(l, h, off, n, &r);
    wait_reply(&r);
    expect(&r, 0, "");
    assert_int_equal(r.got, n);
    assert_memory_equal(r.data, p, n);
    reply_free(&r);
}

uint8_t *pattern(size_t n, unsigned seed)
{
    uint8_t *p = malloc(n + 1);
    uint32_t x = seed * 2654435761u + 1;
    assert_non_null(p);
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        p[i] = (uint8_t)(x >> 24);
    }
    return p;
}
