/*
 * Any bytes as what a client says inside its packets, and as datagrams from nowhere: correctly encrypted, so
 * that they reach the frame parser, the TLS handshake and the streams. The server survives, and ends with
 * nothing held.
 *
 * Input: pieces of [where][length, 2 bytes][bytes]. where 0 = frames of the client's next packet once it is
 * up, 1 = frames of its next packet of the handshake, 2 = a datagram, 3 = a datagram to the connection's id,
 * 4 = time.
 */
#include <stdlib.h>
#include <string.h>

#include "common/quic/quic_priv.h"
#include "tests/unit/quic/simnet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct {
    const uint8_t *p;
    size_t n;
    bool armed;
} next;

typedef int encrypt_fn(uint8_t *dest, const ngtcp2_crypto_aead *aead, const ngtcp2_crypto_aead_ctx *ctx,
                       const uint8_t *plain, size_t n, const uint8_t *nonce, size_t noncelen,
                       const uint8_t *aad, size_t aadlen);
encrypt_fn __real_ngtcp2_crypto_encrypt_cb, __wrap_ngtcp2_crypto_encrypt_cb;

int __wrap_ngtcp2_crypto_encrypt_cb(uint8_t *dest, const ngtcp2_crypto_aead *aead,
                                    const ngtcp2_crypto_aead_ctx *ctx, const uint8_t *plain, size_t n,
                                    const uint8_t *nonce, size_t noncelen, const uint8_t *aad, size_t aadlen)
{
    uint8_t b[65536];
    if (next.armed && n <= sizeof b) {
        size_t k = next.n < n ? next.n : n;
        memcpy(b, next.p, k);
        memset(b + k, 0, n - k);
        plain = b;
        next.armed = false;
    }
    return __real_ngtcp2_crypto_encrypt_cb(dest, aead, ctx, plain, n, nonce, noncelen, aad, aadlen);
}

static void swallow(struct quic_stream *s, void *arg)
{
    const uint8_t *p;
    bool fin;
    (void)arg;
    for (size_t n; (n = quic_stream_peek(s, &p, &fin)) > 0;)
        quic_stream_consume(s, n);
}

static void client_says(struct net *n, const uint8_t *p, size_t len)
{
    static const struct quic_stream_ops ops = {.on_readable = swallow};
    uint8_t data[1000] = {0};
    struct quic_stream *s;
    struct quic_conn *c = n->c.app.conn;
    if (!c || quic_stream_open(&s, c, &ops, NULL) < 0)
        return;
    next.p = p;
    next.n = len;
    next.armed = quic_stream_write(s, data, sizeof data, false) == ST_OK;
    quic_ep_turn(n->c.ep); /* the client alone: what is rewritten is its packet */
    next.armed = false;
    sim_run(n->sim, 5 * MS, NULL, NULL);
}

static void datagram(struct net *n, const uint8_t *p, size_t len, bool to_conn)
{
    uint8_t b[1500];
    struct quic_addr to;
    len = len < sizeof b ? len : sizeof b;
    if (len)
        memcpy(b, p, len);
    struct quic_conn *c = TAILQ_FIRST(&n->s.ep->conns);
    if (to_conn && c && c->ncids && len > 1 + QUIC_SCID_LEN) {
        b[0] &= 0x7f;
        memcpy(b + 1, c->cids[0].data, QUIC_SCID_LEN);
    }
    sim_addr(SRV, 7433, &to);
    sim_inject(n->c.port, &to, b, len);
    sim_run(n->sim, 3 * MS, NULL, NULL);
}

static void leave_nothing(void)
{
    simnet_teardown(NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool ready;
    struct net n;
    if (!ready) {
        ready = simnet_setup(NULL) == 0;
        atexit(leave_nothing);
    }
    if (size > 8192)
        return 0;
    net_prepare(&n, &calm);
    net_start(&n);
    bool dialled = false;
    for (size_t at = 0; at + 3 <= size;) {
        unsigned where = data[at] % 5;
        size_t len = (size_t)data[at + 1] << 8 | data[at + 2];
        at += 3;
        len = len < size - at ? len : size - at;
        const uint8_t *p = data + at;
        at += len;
        if (!dialled && where < 2) {
            if (dial_as(&n, TLS_COORDINATOR, NULL) < 0)
                abort();
            dialled = true;
            if (where == 1) {
                next.p = p;
                next.n = len;
                next.armed = true;
                quic_ep_turn(n.c.ep);
                next.armed = false;
            }
            sim_run(n.sim, 50 * MS, NULL, NULL);
            if (where == 1)
                continue;
        }
        if (where == 0)
            client_says(&n, p, len);
        else if (where == 2 || where == 3)
            datagram(&n, p, len, where == 3);
        else if (where == 4)
            sim_run(n.sim, len * MS, NULL, NULL);
    }
    if (n.s.ep->handshakes > n.s.cfg.limits.max_handshakes * 4)
        abort();
    net_stop(&n);
    return 0;
}
