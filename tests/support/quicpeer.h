/*
 * What QUIC tests share: throw-away certificates, an application that echoes every stream, and a transfer
 * that sends a pattern and checks what comes back.
 */
#ifndef STRATA_TESTS_QUICPEER_H
#define STRATA_TESTS_QUICPEER_H

#include "common/quic/quic.h"

struct pki {
    char dir[64];
    const char *domain;
    struct tls_ca *ca;
};
void pki_open(struct pki *p); /* of the trust domain test.example; aborts on failure */
void pki_open_as(struct pki *p, const char *domain);
void pki_close(struct pki *p);
struct tls_ctx *pki_ctx(struct pki *p, enum tls_kind kind, const char *name);
/* The same, and certificates of `also` pass as well. */
struct tls_ctx *pki_ctx_trusting(struct pki *p, enum tls_kind kind, const char *name, const struct pki *also);

/* One side's application: counts what it is told. */
struct peer {
    struct quic_conn *conn; /* the last one that came up or was dialled; NULL after on_closed */
    unsigned ups, closes, streams, streams_closed, resets, dgrams;
    uint64_t reset_code;
    struct quic_close why;
    uint8_t dgram[1200];
    size_t dgram_len;
    bool ignore_streams; /* does not call quic_stream_set */
    bool echo_dgrams;
    bool close_on_up;
    bool hold;                /* the echo reads nothing */
    struct quic_stream *last; /* the last stream the other side opened */
};
extern const struct quic_conn_ops peer_ops;
void peer_resume(struct peer *p); /* lets go of `hold` on its last stream */

struct xfer {
    struct quic_stream *s; /* NULL after on_closed */
    uint64_t total, sent, got;
    bool bad, fin, closed, reset;
    bool hold; /* reads nothing */
    uint64_t reset_code;
    unsigned refs_done;
    bool by_ref;
};
/* Opens a stream and sends `total` pattern bytes and FIN as far as the queue takes them. */
int xfer_start(struct xfer *x, struct quic_conn *c, uint64_t total);
bool xfer_ok(const struct xfer *x); /* all came back, in order, closed */

#endif
