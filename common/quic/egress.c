/* Filling packets: datagrams first, then streams taking turns; bursts for GSO; the last packet of a
 * connection. */
#include <stdio.h>

#include "common/quic/quic_priv.h"

/* The next stream that may put something into a packet. Without connection credit only a bare FIN may go. */
static struct quic_stream *next_sendable(struct quic_conn *c, bool no_credit)
{
    struct quic_stream *s = TAILQ_FIRST(&c->tx);
    if (!no_credit)
        return s;
    TAILQ_FOREACH(s, &c->tx, tx)
    if (s->sent == s->queued)
        return s;
    return NULL;
}

static void drop_dgram(struct quic_conn *c)
{
    struct quic_dgram *d = STAILQ_FIRST(&c->dtx);
    STAILQ_REMOVE_HEAD(&c->dtx, e);
    c->ndtx--;
    free(d);
}

/* DATAGRAM frames into the packet being built. 0 = go on with streams in the same packet, else fill_pkt's
 * result. */
static ngtcp2_ssize fill_dgrams(struct quic_conn *c, ngtcp2_path *path, ngtcp2_pkt_info *pi, uint8_t *dst,
                                size_t cap, ngtcp2_tstamp ts, bool *packet_done)
{
    for (struct quic_dgram *d; (d = STAILQ_FIRST(&c->dtx));) {
        int accepted = 0;
        ngtcp2_ssize rv = ngtcp2_conn_write_datagram(c->nc, path, pi, dst, cap, &accepted,
                                                     NGTCP2_WRITE_DATAGRAM_FLAG_MORE, c->id, d->p, d->n, ts);
        if (accepted)
            drop_dgram(c);
        if (rv == NGTCP2_ERR_WRITE_MORE)
            continue;
        if (rv == NGTCP2_ERR_INVALID_STATE ||
            rv == NGTCP2_ERR_INVALID_ARGUMENT) { /* the peer takes none so large */
            drop_dgram(c);
            continue;
        }
        if (rv == 0 &&
            !accepted) { /* congested: a late probe is worth nothing; merely paced: its time comes */
            while (!STAILQ_EMPTY(&c->dtx) && ngtcp2_conn_get_cwnd_left(c->nc) < STAILQ_FIRST(&c->dtx)->n)
                drop_dgram(c);
            break; /* nothing is pending in dst; the stream path finds out whether anything may go */
        }
        *packet_done = true;
        return rv;
    }
    return 0;
}

static ngtcp2_ssize fill_pkt(ngtcp2_conn *nc, ngtcp2_path *path, ngtcp2_pkt_info *pi, uint8_t *dst,
                             size_t cap, ngtcp2_tstamp ts, void *arg)
{
    struct quic_conn *c = arg;
    uint64_t credit =
        ngtcp2_conn_get_max_data_left(nc); /* asked once: not between calls that say WRITE_MORE */
    /* Equal packets for GSO, but only with a backlog: a lone call is not blown up to a full packet. */
    uint32_t base = NGTCP2_WRITE_STREAM_FLAG_MORE;
    bool packet_done = false;
    ngtcp2_ssize rv;
    if (c->tx_backlog > 4000 && credit > 4000)
        base |= NGTCP2_WRITE_STREAM_FLAG_PADDING;
    if (!STAILQ_EMPTY(&c->dtx)) {
        rv = fill_dgrams(c, path, pi, dst, cap, ts, &packet_done);
        if (packet_done)
            return rv;
    }
    for (;;) { /* same dst, pi and ts until a packet is complete */
        struct quic_stream *s = next_sendable(c, credit == 0);
        ngtcp2_vec v[8];
        bool fin = false;
        size_t n = s ? quic_stream_pending(s, v, 8, &fin) : 0;
        ngtcp2_ssize took = -1;
        rv = ngtcp2_conn_writev_stream(nc, path, pi, dst, cap, &took,
                                       base | (fin ? NGTCP2_WRITE_STREAM_FLAG_FIN : 0), s ? s->id : -1, v, n,
                                       ts);
        if (s && took >= 0) {
            credit -= (uint64_t)took < credit ? (uint64_t)took : credit;
            quic_stream_sent(s, (size_t)took, fin);
        }
        switch (rv) {
        case NGTCP2_ERR_WRITE_MORE:
            continue;
        case NGTCP2_ERR_STREAM_DATA_BLOCKED:
            s->tx_blocked = true;
            quic_stream_unready(s);
            continue;
        case NGTCP2_ERR_STREAM_SHUT_WR: /* the peer asked us to stop sending; its code shows at the close */
            quic_stream_event(s, QUIC_EV_RESET);
            quic_stream_shut_tx(s);
            continue;
        case NGTCP2_ERR_STREAM_NOT_FOUND:
            quic_stream_shut_tx(s);
            continue;
        default:
            return rv; /* a packet, 0 = nothing may go now, or fatal */
        }
    }
}

static void path_addrs(const struct quic_conn *c, const ngtcp2_path *p, struct quic_addr *local,
                       struct quic_addr *remote)
{
    *local = c->local;
    *remote = c->remote;
    if (c->server && p->local.addrlen)
        quic_addr_set(local, p->local.addr, p->local.addrlen);
    if (p->remote.addrlen)
        quic_addr_set(remote, p->remote.addr, p->remote.addrlen);
}

bool quic_conn_egress(struct quic_conn *c)
{
    struct quic_ep *ep = c->ep;
    for (int i = 0; i < QUIC_BURSTS; i++) {
        if (ep->held.on)
            return true; /* never build what cannot leave */
        ngtcp2_path_storage ps;
        ngtcp2_pkt_info pi = {0};
        size_t gso = 0;
        ngtcp2_path_storage_zero(&ps);
        ngtcp2_ssize n = ngtcp2_conn_write_aggregate_pkt(c->nc, &ps.path, &pi, ep->tx, QUIC_TX_MAX, &gso,
                                                         fill_pkt, quic_conn_ts(c));
        if (n < 0) {
            quic_conn_liberr(c, (int)n);
            return true;
        }
        if (n == 0)
            return false;
        struct quic_addr local, remote;
        path_addrs(c, &ps.path, &local, &remote);
        quic_ep_send(ep, &local, &remote, pi.ecn, ep->tx, (size_t)n, gso);
    }
    return true;
}

static void make_ccerr(const struct quic_conn *c, ngtcp2_ccerr *e, char text[256])
{
    const uint8_t *reason = (const uint8_t *)text;
    size_t n = (size_t)snprintf(text, 256, "%s%s%s", c->why.reason_code, c->why.reason_code[0] ? ": " : "",
                                c->why.reason);
    ngtcp2_ccerr_default(e);
    if (c->bye == QUIC_BYE_APP)
        ngtcp2_ccerr_set_application_error(e, c->why.code, reason, n);
    else if (c->bye == QUIC_BYE_ALERT)
        ngtcp2_ccerr_set_tls_alert(e, (uint8_t)c->bye_arg, reason, n);
    else
        ngtcp2_ccerr_set_liberr(e, c->bye_arg, NULL, 0);
}

void quic_conn_farewell(struct quic_conn *c)
{
    struct quic_ep *ep = c->ep;
    ngtcp2_ssize n = 0;
    if (c->bye <= QUIC_BYE_ALERT) {
        ngtcp2_path_storage ps;
        ngtcp2_pkt_info pi = {0};
        ngtcp2_ccerr e;
        char text[256]; /* e borrows it */
        ngtcp2_path_storage_zero(&ps);
        make_ccerr(c, &e, text);
        if (e.type != NGTCP2_CCERR_TYPE_IDLE_CLOSE && e.type != NGTCP2_CCERR_TYPE_DROP_CONN)
            n = ngtcp2_conn_write_connection_close(c->nc, &ps.path, &pi, ep->tx, QUIC_CLOSE_MAX, &e,
                                                   quic_conn_ts(c));
        if (n > 0 && !ep->held.on) {
            struct quic_addr local, remote;
            path_addrs(c, &ps.path, &local, &remote);
            quic_ep_send(ep, &local, &remote, pi.ecn, ep->tx, (size_t)n, (size_t)n);
        }
    }
    if (c->bye != QUIC_BYE_NOTHING && (n > 0 || c->bye == QUIC_BYE_SILENT))
        quic_stub_add(c, ep->tx, n > 0 ? (size_t)n : 0);
    quic_conn_unregister(c);
}
