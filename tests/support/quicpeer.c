#include "tests/support/quicpeer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/fs.h"

static void must(int rc, const char *what, const struct err *e)
{
    if (rc == ST_OK)
        return;
    fprintf(stderr, "%s: %s\n", what, e->text);
    abort();
}

static void path_of(char out[128], const struct pki *p, const char *name)
{
    snprintf(out, 128, "%s/%s", p->dir, name);
}

void pki_open(struct pki *p)
{
    pki_open_as(p, "test.example");
}

void pki_open_as(struct pki *p, const char *domain)
{
    struct err e = {0};
    p->domain = domain;
    strcpy(p->dir, "/tmp/strata-quic-test-XXXXXX");
    if (!mkdtemp(p->dir))
        abort();
    must(tls_ca_create(p->dir, domain, 2, clock_system(), &e), "CA", &e);
    must(tls_ca_load(&p->ca, p->dir, &e), "CA", &e);
}

void pki_close(struct pki *p)
{
    static const char *const names[] = {"ca.crt", "ca.key", "leaf.crt", "leaf.key", "trust.crt"};
    char path[128];
    tls_ca_free(p->ca);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        path_of(path, p, names[i]);
        unlink(path);
    }
    rmdir(p->dir);
}

static void append_file(FILE *to, const struct pki *p)
{
    char path[128];
    path_of(path, p, "ca.crt");
    FILE *f = fopen(path, "r");
    if (!f)
        abort();
    for (int ch; (ch = fgetc(f)) != EOF;)
        fputc(ch, to);
    fclose(f);
}

struct tls_ctx *pki_ctx(struct pki *p, enum tls_kind kind, const char *name)
{
    return pki_ctx_trusting(p, kind, name, p);
}

struct tls_ctx *pki_ctx_trusting(struct pki *p, enum tls_kind kind, const char *name, const struct pki *also)
{
    char ca[128], crt[128], key[128];
    struct err e = {0};
    struct tls_ctx *t = NULL;
    int64_t now = clock_wall_us(clock_system());
    struct tls_issue is = {
        .kind = kind, .name = name, .not_before_us = now - 60000000, .not_after_us = now + 3600000000ll};
    path_of(ca, p, "trust.crt");
    FILE *f = fopen(ca, "w");
    if (!f)
        abort();
    append_file(f, p);
    if (also != p)
        append_file(f, also);
    fclose(f);
    path_of(crt, p, "leaf.crt");
    path_of(key, p, "leaf.key");
    must(tls_ca_issue(p->ca, &is, crt, key, &e), "certificate", &e);
    struct tls_cfg cfg = {.ca_file = ca, .cert_file = crt, .key_file = key, .trust_domain = p->domain};
    must(tls_ctx_new(&t, &cfg, clock_system(), &e), "context", &e);
    return t;
}

/* ---- echo ---- */

static void echo_pump(struct quic_stream *s, void *arg)
{
    struct peer *p = arg;
    if (p->hold)
        return;
    for (;;) {
        const uint8_t *b;
        bool fin;
        size_t n = quic_stream_peek(s, &b, &fin), m = n < 16384 ? n : 16384;
        if (n == 0 && !fin)
            return;
        if (quic_stream_write(s, b, m, fin && m == n) < 0)
            return; /* full: on_writable; or finished already */
        quic_stream_consume(s, m);
    }
}

static void echo_closed(struct quic_stream *s, void *arg)
{
    struct peer *p = arg;
    p->streams_closed++;
    if (p->last == s)
        p->last = NULL;
}

static void echo_reset(struct quic_stream *s, uint64_t code, void *arg)
{
    struct peer *p = arg;
    p->resets++;
    p->reset_code = code;
    quic_stream_reset(s, code);
}

static const struct quic_stream_ops echo_ops = {
    .on_readable = echo_pump, .on_writable = echo_pump, .on_reset = echo_reset, .on_closed = echo_closed};

void peer_resume(struct peer *p)
{
    p->hold = false;
    if (p->last)
        echo_pump(p->last, p);
}

static void on_up(struct quic_conn *c, void *arg)
{
    struct peer *p = arg;
    p->ups++;
    p->conn = c;
    if (p->close_on_up)
        quic_conn_close(c, 7, "not today");
}

static void on_stream(struct quic_conn *c, struct quic_stream *s, void *arg)
{
    struct peer *p = arg;
    (void)c;
    p->streams++;
    if (p->ignore_streams)
        return;
    p->last = s;
    quic_stream_set(s, &echo_ops, p);
}

static void on_datagram(struct quic_conn *c, const uint8_t *b, size_t n, uint64_t rx_ns, void *arg)
{
    struct peer *p = arg;
    (void)rx_ns;
    p->dgrams++;
    p->dgram_len = n;
    memcpy(p->dgram, b, n);
    if (p->echo_dgrams)
        (void)!quic_conn_send_datagram(c, b, n);
}

static void on_closed(struct quic_conn *c, const struct quic_close *why, void *arg)
{
    struct peer *p = arg;
    p->closes++;
    p->why = *why;
    if (p->conn == c)
        p->conn = NULL;
}

const struct quic_conn_ops peer_ops = {
    .on_up = on_up, .on_stream = on_stream, .on_datagram = on_datagram, .on_closed = on_closed};

/* ---- transfers ---- */

static uint8_t pattern(uint64_t i)
{
    return (uint8_t)(i * 31 + (i >> 8) * 7 + (i >> 16));
}

static void ref_done(void *arg)
{
    free(*(void **)arg);
    free(arg);
}

struct ref {
    uint8_t *bytes;
    struct xfer *x;
};

static void ref_acked(void *arg)
{
    struct ref *r = arg;
    r->x->refs_done++;
    ref_done(r);
}

static int put(struct xfer *x, const uint8_t *b, size_t n, bool fin)
{
    if (!x->by_ref)
        return quic_stream_write(x->s, b, n, fin);
    struct ref *r = malloc(sizeof *r);
    r->bytes = malloc(n ? n : 1);
    r->x = x;
    memcpy(r->bytes, b, n);
    int rc = quic_stream_write_ref(x->s, r->bytes, n, fin, ref_acked, r);
    if (rc < 0)
        ref_done(r);
    return rc;
}

static void feed(struct quic_stream *s, void *arg)
{
    struct xfer *x = arg;
    uint8_t b[8192];
    (void)s;
    if (x->sent == x->total && x->total > 0)
        return;
    do {
        size_t n = x->total - x->sent < sizeof b ? (size_t)(x->total - x->sent) : sizeof b;
        for (size_t i = 0; i < n; i++)
            b[i] = pattern(x->sent + i);
        if (put(x, b, n, x->sent + n == x->total) < 0)
            return;
        x->sent += n;
    } while (x->sent < x->total);
}

static void drain(struct quic_stream *s, void *arg)
{
    struct xfer *x = arg;
    const uint8_t *b;
    bool fin;
    if (x->hold)
        return;
    for (size_t n; (n = quic_stream_peek(s, &b, &fin)) > 0; quic_stream_consume(s, n)) {
        for (size_t i = 0; i < n; i++)
            x->bad |= b[i] != pattern(x->got + i);
        x->got += n;
    }
    x->fin = fin;
}

static void on_xfer_reset(struct quic_stream *s, uint64_t code, void *arg)
{
    struct xfer *x = arg;
    x->reset = true;
    x->reset_code = code;
    quic_stream_reset(s, code);
}

static void on_xfer_closed(struct quic_stream *s, void *arg)
{
    struct xfer *x = arg;
    (void)s;
    x->closed = true;
    x->s = NULL;
}

static const struct quic_stream_ops xfer_ops = {
    .on_readable = drain, .on_writable = feed, .on_reset = on_xfer_reset, .on_closed = on_xfer_closed};

int xfer_start(struct xfer *x, struct quic_conn *c, uint64_t total)
{
    x->total = total;
    int rc = quic_stream_open(&x->s, c, &xfer_ops, x);
    if (rc == ST_OK)
        feed(x->s, x);
    return rc;
}

bool xfer_ok(const struct xfer *x)
{
    return x->closed && x->fin && !x->bad && !x->reset && x->got == x->total;
}
