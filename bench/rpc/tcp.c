/*
 * The peers: TLS 1.3 over TCP with the same OpenSSL, certificates and checks as ours, and plain TCP.
 *
 * A server greets with one byte once it knows who is there, so that a connection counts as up at the same
 * point as ours. Then 'E' and 64 bytes ask for the 64 bytes back, 'B' and a little-endian count for so many
 * bytes. Ciphertext passes through a BIO that reads straight from the receive buffer and appends to the send
 * queue.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench/rpc/peer.h"
#include "common/base/buf.h"

#define RX (256u << 10)
#define CHUNK (64u << 10)
#define SEND_QUEUE (512u << 10)
#define CALL_LEN (1 + PING_LEN)

struct side {
    struct event_base *base;
    struct tls_ctx *tls; /* NULL: plain */
    BIO_METHOD *wire;
    bool serves;
    int fd[PORTS]; /* listening */
    uint16_t to[PORTS];
    uint8_t *rx, *plain, *data;
};

struct conn {
    struct link l; /* the client's */
    struct side *s;
    int fd, port;
    bool shaken, greeted, closing, reading;
    SSL *ssl;
    struct event *rd, *wr, *bye;
    struct buf out;
    size_t out_at;     /* bytes of it that are sent */
    const uint8_t *in; /* bytes received that OpenSSL has not taken yet */
    size_t in_len;
    uint8_t part[CALL_LEN]; /* an incomplete request or answer */
    size_t part_len;
    uint64_t bulk_left; /* digest included */
    struct digest digest;
    struct slot *first, **last; /* calls under way, oldest first */
};

/* ---- the wire under OpenSSL ---- */

static int wire_write(BIO *b, const char *p, int n)
{
    struct conn *c = BIO_get_data(b);
    return n > 0 && buf_append(&c->out, p, (size_t)n) == ST_OK ? n : -1;
}

static int wire_read(BIO *b, char *p, int n)
{
    struct conn *c = BIO_get_data(b);
    BIO_clear_retry_flags(b);
    if (!c->in_len) {
        BIO_set_retry_read(b);
        return -1;
    }
    size_t k = c->in_len < (size_t)n ? c->in_len : (size_t)n;
    memcpy(p, c->in, k);
    c->in += k;
    c->in_len -= k;
    return (int)k;
}

static long wire_ctrl(BIO *b, int cmd, long num, void *p)
{
    (void)b, (void)num, (void)p;
    return cmd == BIO_CTRL_FLUSH;
}

/* ---- a connection ---- */

static void conn_free(struct conn *c)
{
    event_free(c->rd);
    event_free(c->wr);
    event_free(c->bye);
    SSL_free(c->ssl);
    buf_fini(&c->out);
    if (!c->s->serves) /* a benchmark must not run out of ports in TIME_WAIT */
        (void)setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    close(c->fd);
    digest_fini(&c->digest);
    free(c);
}

static void on_bye(evutil_socket_t fd, short what, void *arg)
{
    struct conn *c = arg;
    (void)fd, (void)what;
    for (struct slot *s; (s = c->first);) {
        c->first = s->next;
        s->done(s, false);
    }
    if (c->l.on_down)
        c->l.on_down(&c->l);
    conn_free(c);
}

/* The end comes from the loop, so that whoever called us still has his connection. */
static void drop(struct conn *c)
{
    if (c->closing)
        return;
    c->closing = true;
    event_del(c->rd);
    event_del(c->wr);
    event_active(c->bye, 0, 0);
}

static size_t unsent(const struct conn *c)
{
    return c->out.len - c->out_at;
}

static void flush(struct conn *c)
{
    while (unsent(c) && !c->closing) {
        ssize_t k = send(c->fd, c->out.data + c->out_at, unsent(c), MSG_NOSIGNAL);
        if (k > 0) {
            c->out_at += (size_t)k;
            continue;
        }
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            event_add(c->wr, NULL);
        else
            drop(c);
        break;
    }
    if (c->out_at >= unsent(c)) { /* moving less than was sent */
        buf_consume(&c->out, c->out_at);
        c->out_at = 0;
    }
}

static void put(struct conn *c, const void *p, size_t n)
{
    bool ok = c->ssl ? SSL_write(c->ssl, p, (int)n) == (int)n : buf_append(&c->out, p, n) == ST_OK;
    if (!ok)
        drop(c);
}

/* Bulk in pieces, so that calls on other connections get their turn between them. */
static void pour(struct conn *c)
{
    while (c->bulk_left && !c->closing) {
        while (c->bulk_left && unsent(c) < SEND_QUEUE && !c->closing) {
            size_t n = c->bulk_left < CHUNK ? (size_t)c->bulk_left : CHUNK;
            put(c, c->s->data, n);
            digest_add(&c->digest, c->s->data, n);
            c->bulk_left -= n;
            if (!c->bulk_left && c->digest.md) {
                uint8_t d[DIGEST_LEN];
                digest_end(&c->digest, d);
                put(c, d, sizeof d);
            }
        }
        flush(c);
        if (unsent(c) || c->bulk_left)
            break;
    }
    if (c->bulk_left && !c->closing && !event_pending(c->wr, EV_WRITE, NULL))
        event_add(c->wr, NULL);
}

static void on_write(evutil_socket_t fd, short what, void *arg)
{
    struct conn *c = arg;
    (void)fd, (void)what;
    flush(c);
    if (!unsent(c) && c->s->serves)
        pour(c);
}

/* ---- what the bytes mean ---- */

static void request(struct conn *c)
{
    if (c->part[0] == 'E')
        put(c, c->part + 1, PING_LEN);
    else
        memcpy(&c->bulk_left, c->part + 1, sizeof c->bulk_left);
    if (c->part[0] == 'B' && c->port == PORT_DIGEST && !digest_start(&c->digest, c->bulk_left))
        drop(c);
}

static void serve_bytes(struct conn *c, const uint8_t *p, size_t n)
{
    while (n && !c->closing) {
        size_t want = (c->part_len ? c->part[0] : *p) == 'E' ? CALL_LEN : 1 + sizeof c->bulk_left;
        size_t k = want - c->part_len < n ? want - c->part_len : n;
        memcpy(c->part + c->part_len, p, k);
        c->part_len += k;
        p += k;
        n -= k;
        if (c->part_len == want) {
            c->part_len = 0;
            request(c);
        }
    }
}

static void answer(struct conn *c)
{
    struct slot *s = c->first;
    if (!s) {
        drop(c);
        return;
    }
    c->first = s->next;
    if (!c->first)
        c->last = &c->first;
    s->done(s, true);
}

static void client_bytes(struct conn *c, const uint8_t *p, size_t n)
{
    if (!c->greeted && n) {
        c->greeted = c->l.up = true;
        p++;
        n--;
        c->l.on_up(&c->l);
    }
    if (c->port != PORT_CALLS && n) {
        bool bad = false;
        c->l.bulk_got += digest_take(&c->digest, p, n, &bad);
        c->bulk_left -= n < c->bulk_left ? n : c->bulk_left;
        if (!c->bulk_left)
            c->l.on_bulk_end(&c->l, !bad);
        return;
    }
    while (n && !c->closing) {
        size_t k = PING_LEN - c->part_len < n ? PING_LEN - c->part_len : n;
        memcpy(c->part + c->part_len, p, k);
        c->part_len += k;
        p += k;
        n -= k;
        if (c->part_len == PING_LEN) {
            c->part_len = 0;
            answer(c);
        }
    }
}

static void take(struct conn *c, const uint8_t *p, size_t n)
{
    if (c->s->serves)
        serve_bytes(c, p, n);
    else
        client_bytes(c, p, n);
}

static void shaken(struct conn *c)
{
    struct tls_identity id;
    if (c->ssl && tls_peer_identity(c->s->tls, c->ssl, &id, NULL) < 0) {
        drop(c);
        return;
    }
    c->shaken = true;
    if (c->s->serves)
        put(c, "U", 1);
}

static void take_tls(struct conn *c)
{
    if (!c->shaken) {
        int rc = SSL_do_handshake(c->ssl);
        if (rc == 1) {
            shaken(c);
        } else if (SSL_get_error(c->ssl, rc) != SSL_ERROR_WANT_READ) {
            flush(c); /* the alert */
            drop(c);
        }
    }
    while (c->shaken && !c->closing) {
        int n = SSL_read(c->ssl, c->s->plain, (int)CHUNK);
        if (n <= 0) {
            if (SSL_get_error(c->ssl, n) != SSL_ERROR_WANT_READ)
                drop(c);
            break;
        }
        take(c, c->s->plain, (size_t)n);
    }
    ERR_clear_error();
}

static void on_read(evutil_socket_t fd, short what, void *arg)
{
    struct conn *c = arg;
    (void)what;
    ssize_t n = recv(fd, c->s->rx, RX, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        drop(c);
        return;
    }
    if (n < 0)
        return;
    c->reading = true;
    if (c->ssl) {
        c->in = c->s->rx;
        c->in_len = (size_t)n;
        take_tls(c);
    } else {
        take(c, c->s->rx, (size_t)n);
    }
    c->reading = false;
    if (!c->closing)
        flush(c);
    if (!c->closing && c->bulk_left && c->s->serves)
        pour(c);
}

static SSL *ssl_new(struct conn *c)
{
    SSL *ssl = SSL_new(c->s->serves ? tls_ctx_server(c->s->tls) : tls_ctx_client(c->s->tls));
    BIO *b = BIO_new(c->s->wire);
    if (!ssl || !b) {
        SSL_free(ssl);
        BIO_free(b);
        return NULL;
    }
    BIO_set_data(b, c);
    BIO_set_init(b, 1);
    SSL_set_bio(ssl, b, b);
    SSL_set_mode(ssl, SSL_MODE_RELEASE_BUFFERS);
    if (c->s->serves)
        SSL_set_accept_state(ssl);
    else
        SSL_set_connect_state(ssl);
    return ssl;
}

/* Takes fd. */
static struct conn *conn_new(struct side *s, int fd, int port)
{
    struct conn *c = calloc(1, sizeof *c);
    if (!c) {
        close(fd);
        return NULL;
    }
    int on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->s = s;
    c->fd = fd;
    c->port = port;
    c->last = &c->first;
    c->rd = event_new(s->base, fd, EV_READ | EV_PERSIST, on_read, c);
    c->wr = event_new(s->base, fd, EV_WRITE, on_write, c);
    c->bye = event_new(s->base, -1, 0, on_bye, c);
    struct event *ev[] = {c->rd, c->wr, c->bye};
    bool ok = ev[0] && ev[1] && ev[2];
    for (int i = 0; i < 3 && ok; i++)
        ok = event_priority_set(ev[i], port == PORT_CALLS ? 0 : 1) == 0;
    if (ok && s->tls)
        ok = (c->ssl = ssl_new(c)) != NULL;
    if (ok && event_add(c->rd, NULL) == 0)
        return c;
    for (int i = 0; i < 3; i++)
        if (ev[i])
            event_free(ev[i]);
    SSL_free(c->ssl);
    close(fd);
    free(c);
    return NULL;
}

/* ---- server ---- */

static void on_accept(evutil_socket_t fd, short what, void *arg)
{
    struct side *s = arg;
    (void)what;
    for (int k; (k = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        int port = PORT_CALLS;
        while (port + 1 < PORTS && s->fd[port] != fd)
            port++;
        struct conn *c = conn_new(s, k, port);
        if (c && !s->tls) {
            shaken(c);
            flush(c);
        }
    }
}

static struct side *side_new(struct event_base *base, struct tls_ctx *tls, bool serves)
{
    struct side *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->base = base;
    s->tls = tls;
    s->serves = serves;
    s->rx = malloc(RX);
    s->plain = malloc(CHUNK);
    s->data = calloc(1, CHUNK);
    s->wire = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "wire");
    if (s->rx && s->plain && s->data && s->wire && BIO_meth_set_write(s->wire, wire_write) &&
        BIO_meth_set_read(s->wire, wire_read) && BIO_meth_set_ctrl(s->wire, wire_ctrl))
        return s;
    BIO_meth_free(s->wire);
    free(s->rx);
    free(s->plain);
    free(s->data);
    free(s);
    return NULL;
}

static int listen_on(struct side *s, int port, uint16_t *bound, struct err *e)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    s->fd[port] = fd;
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, n) || listen(fd, 1024) ||
        getsockname(fd, (struct sockaddr *)&a, &n))
        return err_errno(e, errno, "cannot listen on a TCP port of 127.0.0.1");
    *bound = ntohs(a.sin_port);
    struct event *ev = event_new(s->base, fd, EV_READ | EV_PERSIST, on_accept, s);
    if (!ev || event_priority_set(ev, port == PORT_CALLS ? 0 : 1) || event_add(ev, NULL))
        return err_set(e, ST_ENOMEM, "no memory");
    return ST_OK; /* fd and event live as long as the process */
}

static int serve(struct event_base *base, struct tls_ctx *tls, uint16_t ports[PORTS], struct err *e)
{
    struct side *s = side_new(base, tls, true);
    int rc = s ? ST_OK : err_set(e, ST_ENOMEM, "no memory");
    for (int i = 0; i < PORTS && rc == ST_OK; i++)
        rc = listen_on(s, i, &ports[i], e);
    return rc;
}

static int serve_tls(struct event_base *base, const struct bench_pki *pki, uint16_t ports[PORTS],
                     struct err *e)
{
    return serve(base, pki->server, ports, e);
}

static int serve_tcp(struct event_base *base, const struct bench_pki *pki, uint16_t ports[PORTS],
                     struct err *e)
{
    (void)pki;
    return serve(base, NULL, ports, e);
}

/* ---- client ---- */

static int client_new(void **out, struct event_base *base, struct tls_ctx *tls, const uint16_t ports[PORTS],
                      struct err *e)
{
    struct side *s = side_new(base, tls, false);
    if (!s)
        return err_set(e, ST_ENOMEM, "no memory");
    memcpy(s->to, ports, sizeof s->to);
    *out = s;
    return ST_OK;
}

static int client_tls(void **out, struct event_base *base, const struct bench_pki *pki,
                      const uint16_t ports[PORTS], struct err *e)
{
    return client_new(out, base, pki->client, ports, e);
}

static int client_tcp(void **out, struct event_base *base, const struct bench_pki *pki,
                      const uint16_t ports[PORTS], struct err *e)
{
    (void)pki;
    return client_new(out, base, NULL, ports, e);
}

static void client_free(void *client)
{
    struct side *s = client;
    if (!s)
        return;
    BIO_meth_free(s->wire);
    free(s->rx);
    free(s->plain);
    free(s->data);
    free(s);
}

static int dial(void *client, int port, const struct link *proto, struct link **out, struct err *e)
{
    struct side *s = client;
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(s->to[port])};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) || fcntl(fd, F_SETFL, O_NONBLOCK)) {
        int why = errno;
        if (fd >= 0)
            close(fd);
        return err_errno(e, why, "cannot connect to 127.0.0.1:%u", s->to[port]);
    }
    struct conn *c = conn_new(s, fd, port);
    if (!c)
        return err_set(e, ST_ENOMEM, "no memory for a connection");
    c->l = *proto;
    if (c->ssl)
        take_tls(c); /* the first flight */
    else
        c->shaken = true;
    flush(c);
    *out = &c->l;
    return ST_OK;
}

static void hang_up(struct link *l)
{
    drop((struct conn *)l);
}

static int call(struct link *l, struct slot *slot)
{
    struct conn *c = (struct conn *)l;
    uint8_t req[CALL_LEN] = {'E'};
    if (c->closing)
        return ST_ECLOSED;
    slot->next = NULL;
    *c->last = slot;
    c->last = &slot->next;
    put(c, req, sizeof req);
    if (!c->reading) /* else all at once when the reader is through */
        flush(c);
    return ST_OK;
}

static int bulk(struct link *l, uint64_t bytes)
{
    struct conn *c = (struct conn *)l;
    uint8_t req[1 + sizeof bytes] = {'B'};
    memcpy(req + 1, &bytes, sizeof bytes);
    l->bulk_got = 0;
    c->bulk_left = bytes;
    if (c->port == PORT_DIGEST) {
        c->bulk_left += DIGEST_LEN;
        if (!digest_start(&c->digest, bytes))
            return ST_ENOMEM;
    }
    put(c, req, sizeof req);
    flush(c);
    return c->closing ? ST_ECLOSED : ST_OK;
}

const struct transport transport_tls = {
    "TLS 1.3 over TCP", serve_tls, client_tls, client_free, dial, hang_up, call, bulk};
const struct transport transport_tcp = {"TCP, no TLS", serve_tcp, client_tcp, client_free,
                                        dial,          hang_up,   call,       bulk};
