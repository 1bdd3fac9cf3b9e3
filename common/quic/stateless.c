/* Answers to packets that belong to no connection. None is longer than what it answers allows (no
 * amplification). */
#include "common/quic/quic_priv.h"

enum { RESET_MIN = NGTCP2_MIN_STATELESS_RESET_RANDLEN + NGTCP2_STATELESS_RESET_TOKENLEN, RESET_MAX = 41 };

static void answer(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                   const uint8_t *p, ngtcp2_ssize n)
{
    if (n > 0 && !ep->held.on) /* a blocked socket loses these; the peer asks again */
        quic_ep_send(ep, local, remote, 0, p, (size_t)n, (size_t)n);
}

void quic_send_version_negotiation(struct quic_ep *ep, const struct quic_addr *local,
                                   const struct quic_addr *remote, const ngtcp2_version_cid *vc)
{
    uint8_t pkt[256], r;
    const uint32_t sv[] = {NGTCP2_PROTO_VER_V1};
    ep->rng->fill(ep->rng->arg, &r, 1);
    answer(ep, local, remote, pkt,
           ngtcp2_pkt_write_version_negotiation(pkt, sizeof pkt, r, vc->scid, vc->scidlen, vc->dcid,
                                                vc->dcidlen, sv, 1));
}

void quic_send_retry(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                     const ngtcp2_pkt_hd *hd, size_t in_len)
{
    uint8_t token[NGTCP2_CRYPTO_MAX_RETRY_TOKENLEN2], pkt[512];
    ngtcp2_cid scid = {.datalen = QUIC_SCID_LEN};
    if (in_len < sizeof pkt)
        return;
    ep->rng->fill(ep->rng->arg, scid.data, scid.datalen);
    ngtcp2_ssize n = ngtcp2_crypto_generate_retry_token2(token, ep->token_secret, sizeof ep->token_secret,
                                                         hd->version, (const struct sockaddr *)&remote->ss,
                                                         remote->len, &scid, &hd->dcid, quic_ep_now(ep));
    if (n < 0)
        return;
    ep->stats.retries++;
    answer(ep, local, remote, pkt,
           ngtcp2_crypto_write_retry(pkt, sizeof pkt, hd->version, &hd->scid, &scid, &hd->dcid, token,
                                     (size_t)n));
}

void quic_send_refusal(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                       const ngtcp2_pkt_hd *hd, uint64_t code, const char *reason)
{
    uint8_t pkt[512];
    ep->stats.refused++;
    answer(ep, local, remote, pkt,
           ngtcp2_crypto_write_connection_close(pkt, sizeof pkt, hd->version, &hd->scid, &hd->dcid, code,
                                                (const uint8_t *)reason, strlen(reason)));
}

void quic_send_reset(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                     const uint8_t *dcid, size_t dcidlen, size_t in_len)
{
    uint8_t rnd[RESET_MAX - NGTCP2_STATELESS_RESET_TOKENLEN], pkt[RESET_MAX];
    ngtcp2_stateless_reset_token token;
    ngtcp2_cid cid;
    /* Always shorter than the packet it answers, or two restarted endpoints would answer each other for ever.
     */
    size_t total = in_len > RESET_MAX ? RESET_MAX : in_len - 1;
    if (in_len <= RESET_MIN || dcidlen != QUIC_SCID_LEN)
        return;
    ngtcp2_cid_init(&cid, dcid, dcidlen);
    if (ngtcp2_crypto_generate_stateless_reset_token(token.data, ep->reset_secret, sizeof ep->reset_secret,
                                                     &cid) != 0)
        return;
    ep->rng->fill(ep->rng->arg, rnd, sizeof rnd);
    ep->stats.resets_sent++;
    answer(
        ep, local, remote, pkt,
        ngtcp2_pkt_write_stateless_reset2(pkt, total, &token, rnd, total - NGTCP2_STATELESS_RESET_TOKENLEN));
}
