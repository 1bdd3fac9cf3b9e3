/*
 * After a close: the connection's ids and its last packet stay for three probe timeouts, so that packets
 * still on their way neither count as unknown (and draw a stateless reset) nor go without the answer that
 * ends the peer's side.
 */
#include "common/quic/quic_priv.h"

static void stub_free(struct quic_ep *ep, struct quic_stub *s)
{
    for (size_t i = 0; i < s->ncids; i++)
        map_del(ep->stub_cids, s->cids[i].data, s->cids[i].datalen);
    heap_del(&ep->stub_timers, &s->timer);
    TAILQ_REMOVE(&ep->stubs, s, all);
    ep->nstubs--;
    free(s->cids);
    free(s);
}

void quic_stub_add(struct quic_conn *c, const uint8_t *pkt, size_t n)
{
    struct quic_ep *ep = c->ep;
    if (ep->nstubs >= QUIC_STUBS_MAX)
        return; /* late packets then meet a stateless reset, which ends the peer's side as well */
    struct quic_stub *s = calloc(1, sizeof *s + n);
    ngtcp2_cid *cids = calloc(QUIC_IDS_MAX, sizeof *cids);
    if (!s || !cids) {
        free(s);
        free(cids);
        return;
    }
    memcpy(cids, c->cids, c->ncids * sizeof *cids);
    s->local = c->local;
    s->remote = c->remote;
    s->cids = cids;
    s->answer_at = 1;
    s->n = n;
    if (n)
        memcpy(s->pkt, pkt, n);
    TAILQ_INSERT_TAIL(&ep->stubs, s, all);
    ep->nstubs++;
    for (; s->ncids < c->ncids; s->ncids++)
        if (map_put(ep->stub_cids, cids[s->ncids].data, cids[s->ncids].datalen, s, NULL) < 0)
            break;
    if (heap_set(&ep->stub_timers, &s->timer, ep->now_ns + 3 * ngtcp2_conn_get_pto(c->nc)) < 0)
        stub_free(ep, s);
}

void quic_stub_input(struct quic_ep *ep, struct quic_stub *s)
{
    s->seen++;
    if (s->n == 0 || s->seen < s->answer_at)
        return;
    s->answer_at *= 2;
    if (!ep->held.on)
        quic_ep_send(ep, &s->local, &s->remote, 0, s->pkt, s->n, s->n);
}

void quic_stub_expire(struct quic_ep *ep, uint64_t now_ns)
{
    for (struct heap_node *t; (t = heap_top(&ep->stub_timers)) && t->key <= now_ns;)
        stub_free(ep, QUIC_OWNER(t, struct quic_stub, timer));
}

void quic_stub_free_all(struct quic_ep *ep)
{
    for (struct quic_stub *s; (s = TAILQ_FIRST(&ep->stubs));)
        stub_free(ep, s);
}
