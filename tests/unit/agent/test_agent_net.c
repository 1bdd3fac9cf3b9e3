/*
 * Two real agents measure the link between them, asked by a coordinator's end of the wire: the figures they
 * give, what both saw, and what is refused without the right ticket.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "strata/v1/net.pb-c.h"
#include "tests/unit/agent/world.h"

struct asked {
    struct rpc_call *call;
    ProtobufCMessage *got;
    struct rpc_status st;
    bool done;
};

static void on_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct asked *a = arg;
    (void)call;
    uint8_t *p = malloc(protobuf_c_message_get_packed_size(msg));
    size_t n = protobuf_c_message_pack(msg, p);
    assert_null(a->got);
    a->got = protobuf_c_message_unpack(msg->descriptor, NULL, n, p);
    free(p);
}

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct asked *a = arg;
    (void)call, (void)digest;
    a->st = *st;
    a->done = true;
}

static const struct rpc_call_ops ops = {.on_message = on_message, .on_done = on_done};

static struct asked ask(struct world *w, unsigned node, const char *method, const ProtobufCMessage *rq)
{
    const struct rpc_call_opts o = {.timeout_ns = 50 * NS_PER_S};
    struct asked a = {0};
    struct err e;
    WAIT(w, w->node[node].session);
    assert_int_equal(rpc_call(&a.call, w->node[node].session, &strata__v1__net_agent__descriptor, method, 0,
                              rq, &o, &ops, &a, &e),
                     ST_OK);
    WAIT(w, a.done);
    return a;
}

static void drop(struct asked *a)
{
    if (a->got)
        protobuf_c_message_free_unpacked(a->got, NULL);
}

static void make_ticket(struct world *w, struct ticket *t, uint64_t id)
{
    *t = (struct ticket){.purpose = TICKET_BENCH, .limit_bytes = 64 << 20};
    memcpy(t->holder, w->node[1].spki, 32);
    strcpy(t->node, "n0");
    snprintf(t->resource, sizeof t->resource, "net/%016" PRIx64, id);
    t->issued_us = clock_wall_us(clock_system());
    t->expires_us = t->issued_us + 60000000;
    ticket_serial(rng_system(), t->serial);
}

/* n1 probes n0; stream_ms 0 = round trips alone. */
static struct asked probe(struct world *w, uint64_t id, const struct ticket *t, unsigned stream_ms,
                          const char *address)
{
    Strata__V1__ProbeRequest q = STRATA__V1__PROBE_REQUEST__INIT;
    uint8_t bytes[TICKET_MAX];
    size_t n = 0;
    struct err e;
    if (t)
        assert_int_equal(ticket_sign(w->key, t, bytes, &n, &e), ST_OK);
    q.id = id;
    q.peer_node = (char *)"n0";
    q.peer_address = (char *)(address ? address : w->node[0].peer_address);
    q.ticket = (ProtobufCBinaryData){n, bytes};
    q.count = 15;
    q.interval_ns = NS_PER_MS;
    q.timeout_ns = 5 * NS_PER_S;
    q.stream_ns = stream_ms * NS_PER_MS;
    q.stream_bytes = stream_ms ? 32 << 20 : 0;
    return ask(w, 1, "Probe", &q.base);
}

static void test_figures(void **st)
{
    struct world *w = *st;
    struct ticket t;
    make_ticket(w, &t, 77);
    struct asked a = probe(w, 77, &t, 300, NULL);
    if (a.st.code)
        fail_msg("%s: %s", a.st.reason, a.st.text);
    const Strata__V1__ProbeReply *r = (const Strata__V1__ProbeReply *)a.got;
    assert_int_equal(r->latency->sent, 15);
    assert_int_equal(r->latency->received, 15);
    assert_int_equal(r->latency->duplicates + r->latency->invalid, 0);
    assert_true(r->latency->min_ns > 0 && r->latency->min_ns <= r->latency->p50_ns);
    assert_string_equal(r->stream_reason, "");
    assert_true(r->forth->bytes > 0 && r->forth->bytes == r->forth_peer->bytes);
    assert_true(r->back->bytes > 0);
    assert_true(r->forth_peer->wire_bytes_per_s > r->forth_peer->bytes_per_s);
    /* The other end tells the coordinator the same. */
    Strata__V1__SeenRequest q = STRATA__V1__SEEN_REQUEST__INIT;
    q.id = 77;
    struct asked b = ask(w, 0, "Seen", &q.base);
    const Strata__V1__SeenReply *k = (const Strata__V1__SeenReply *)b.got;
    assert_int_equal(b.st.code, 0);
    assert_true(k->known);
    assert_int_equal(k->pings, 15);
    assert_int_equal(k->received->bytes, r->forth_peer->bytes);
    assert_int_equal(k->received->ns, r->forth_peer->ns);
    assert_int_equal(k->sent->bytes, r->back->bytes);
    drop(&b);
    q.id = 78;
    b = ask(w, 0, "Seen", &q.base);
    assert_false(((const Strata__V1__SeenReply *)b.got)->known);
    drop(&b);
    drop(&a);
}

static void refused(struct world *w, uint64_t id, const struct ticket *t, const char *reason)
{
    struct asked a = probe(w, id, t, 0, NULL);
    if (!a.st.code || strcmp(a.st.reason, reason))
        fail_msg("code %u %s (%s), not %s", a.st.code, a.st.reason, a.st.text, reason);
    drop(&a);
}

static void test_tickets(void **st)
{
    struct world *w = *st;
    struct ticket t;
    refused(w, 1, NULL, "TICKET_FORGED");
    make_ticket(w, &t, 2);
    t.holder[0] ^= 1;
    refused(w, 2, &t, "TICKET_WRONG_HOLDER");
    make_ticket(w, &t, 3);
    strcpy(t.node, "n1");
    refused(w, 3, &t, "TICKET_WRONG_NODE");
    make_ticket(w, &t, 4);
    t.purpose = TICKET_FETCH;
    refused(w, 4, &t, "TICKET_WRONG_PURPOSE");
    make_ticket(w, &t, 5);
    refused(w, 6, &t, "TICKET_WRONG_RESOURCE");
    make_ticket(w, &t, 7);
    t.issued_us -= 120000000;
    t.expires_us = t.issued_us + 60000000;
    refused(w, 7, &t, "TICKET_EXPIRED");
    /* One ticket, one probe. */
    make_ticket(w, &t, 8);
    struct asked a = probe(w, 8, &t, 0, NULL);
    assert_int_equal(a.st.code, 0);
    drop(&a);
    refused(w, 8, &t, "PROBE_REPEATED");
    /* Round trips are measured, but no more bytes move than the ticket allows. */
    make_ticket(w, &t, 9);
    t.limit_bytes = 1000;
    a = probe(w, 9, &t, 100, NULL);
    assert_int_equal(a.st.code, 0);
    const Strata__V1__ProbeReply *r = (const Strata__V1__ProbeReply *)a.got;
    assert_string_equal(r->stream_reason, "TICKET_LIMIT");
    assert_null(r->forth);
    assert_null(r->back);
    drop(&a);
}

static void test_nobody_there(void **st)
{
    struct world *w = *st;
    struct ticket t;
    make_ticket(w, &t, 20);
    struct asked a = probe(w, 20, &t, 100, "127.0.0.1:9");
    assert_int_equal(a.st.code, 14);
    assert_null(a.got); /* no figure of any kind */
    assert_non_null(strstr(a.st.text, "127.0.0.1:9"));
    drop(&a);
    Strata__V1__ProbeRequest q = STRATA__V1__PROBE_REQUEST__INIT;
    q.peer_node = (char *)"n0";
    q.peer_address = w->node[0].peer_address;
    q.size = 2000;
    a = ask(w, 1, "Probe", &q.base);
    assert_int_equal(a.st.code, 3);
    drop(&a);
    q.size = 0;
    q.count = 1000000;
    a = ask(w, 1, "Probe", &q.base);
    assert_int_equal(a.st.code, 3);
    drop(&a);
}

static void test_doctor(void **st)
{
    struct world *w = *st;
    Strata__V1__NetDoctorRequest q = STRATA__V1__NET_DOCTOR_REQUEST__INIT;
    struct asked a = ask(w, 0, "Doctor", &q.base);
    assert_int_equal(a.st.code, 0);
    const Strata__V1__NetDoctor *d = (const Strata__V1__NetDoctor *)a.got;
    assert_string_equal(d->node, "n0");
    assert_string_equal(d->advertised, w->node[0].peer_address);
    assert_true(d->n_interfaces > 0 && d->receive_buffer > 0);
    drop(&a);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_figures),
        cmocka_unit_test(test_tickets),
        cmocka_unit_test(test_nobody_there),
        cmocka_unit_test(test_doctor),
    };
    return cmocka_run_group_tests(t, world_setup, world_teardown);
}
