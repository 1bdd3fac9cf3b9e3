/*
 * What ngtcp2 calls while it reads or writes packets. These only record facts: no upcalls, no packets, no
 * frees.
 */
#include "common/quic/quic_priv.h"

static int cb_handshake_completed(ngtcp2_conn *nc, void *user)
{
    struct quic_conn *c = user;
    (void)nc;
    if (c->server) { /* the client's certificate was verified with its last flight */
        c->secure = true;
        quic_ep_dirty(c);
    }
    return 0;
}

static int cb_handshake_confirmed(ngtcp2_conn *nc, void *user)
{
    struct quic_conn *c = user;
    (void)nc;
    c->secure = true; /* for a client only now: before this the server may still refuse our certificate */
    quic_ep_dirty(c);
    return 0;
}

static int cb_recv_stream_data(ngtcp2_conn *nc, uint32_t flags, int64_t id, uint64_t offset, const uint8_t *p,
                               size_t n, void *user, void *stream_user)
{
    struct quic_stream *s = stream_user;
    (void)nc, (void)id, (void)offset, (void)user;
    if (!s)
        return NGTCP2_ERR_CALLBACK_FAILURE;
    return quic_stream_rx(s, p, n, flags & NGTCP2_STREAM_DATA_FLAG_FIN) < 0 ? NGTCP2_ERR_CALLBACK_FAILURE : 0;
}

static int cb_acked(ngtcp2_conn *nc, int64_t id, uint64_t offset, uint64_t n, void *user, void *stream_user)
{
    struct quic_conn *c = user;
    (void)nc, (void)id;
    if (stream_user)
        quic_stream_acked(stream_user, offset + n);
    if (c->done_head)
        quic_ep_dirty(c);
    return 0;
}

static int cb_stream_open(ngtcp2_conn *nc, int64_t id, void *user)
{
    struct quic_conn *c = user;
    struct quic_stream *s = quic_stream_new(c, id, false);
    if (!s)
        return NGTCP2_ERR_CALLBACK_FAILURE;
    if (ngtcp2_conn_set_stream_user_data(nc, id, s) != 0)
        return NGTCP2_ERR_CALLBACK_FAILURE;
    quic_stream_event(s, QUIC_EV_OPEN);
    return 0;
}

static void record_reset(struct quic_stream *s, uint64_t code)
{
    s->reset_code = code;
    quic_stream_event(s, QUIC_EV_RESET);
}

static int cb_stream_close(ngtcp2_conn *nc, uint32_t flags, int64_t id, uint64_t code, void *user,
                           void *stream_user)
{
    struct quic_stream *s = stream_user;
    (void)nc, (void)id, (void)user;
    if (!s)
        return 0;
    quic_stream_shut_tx(s);
    s->gone = true;
    /* ngtcp2 answers STOP_SENDING by itself and tells nobody: the code shows here first. */
    if ((flags & NGTCP2_STREAM_CLOSE_FLAG_APP_ERROR_CODE_SET) && !s->reset_local && !s->reset_told)
        record_reset(s, code);
    quic_stream_event(s, QUIC_EV_CLOSED);
    return 0;
}

static int cb_stream_reset(ngtcp2_conn *nc, int64_t id, uint64_t final_size, uint64_t code, void *user,
                           void *stream_user)
{
    (void)nc, (void)id, (void)final_size, (void)user;
    if (stream_user)
        record_reset(stream_user, code);
    return 0;
}

static int cb_extend_stream(ngtcp2_conn *nc, int64_t id, uint64_t max, void *user, void *stream_user)
{
    struct quic_stream *s = stream_user;
    (void)nc, (void)id, (void)max, (void)user;
    if (s && s->tx_blocked) {
        s->tx_blocked = false;
        quic_stream_ready(s);
    }
    return 0;
}

static int cb_more_streams(ngtcp2_conn *nc, uint64_t max, void *user)
{
    struct quic_conn *c = user;
    (void)nc, (void)max;
    c->credit = true;
    quic_ep_dirty(c);
    return 0;
}

static int cb_datagram(ngtcp2_conn *nc, uint32_t flags, const uint8_t *p, size_t n, void *user)
{
    struct quic_conn *c = user;
    (void)nc, (void)flags;
    if (c->ndrx >= QUIC_DGRAM_QUEUE)
        return 0; /* unreliable by nature */
    struct quic_dgram *d = malloc(sizeof *d + n);
    if (!d)
        return 0;
    d->n = n;
    d->rx_ns = clock_ns(c->ep->clock);
    if (n) /* ngtcp2 gives an empty one no address */
        memcpy(d->p, p, n);
    STAILQ_INSERT_TAIL(&c->drx, d, e);
    c->ndrx++;
    quic_ep_dirty(c);
    return 0;
}

static int cb_stateless_reset(ngtcp2_conn *nc, const ngtcp2_pkt_stateless_reset2 *sr, void *user)
{
    struct quic_conn *c = user;
    (void)nc, (void)sr;
    c->got_reset = true;
    c->ep->stats.resets_received++;
    return 0;
}

static void cb_rand(uint8_t *dest, size_t n, const ngtcp2_rand_ctx *ctx)
{
    const struct rng *r = ctx->native_handle;
    r->fill(r->arg, dest, n);
}

static int cb_new_cid(ngtcp2_conn *nc, ngtcp2_cid *cid, ngtcp2_stateless_reset_token *token, size_t cidlen,
                      void *user)
{
    struct quic_conn *c = user;
    struct quic_ep *ep = c->ep;
    (void)nc;
    cid->datalen = cidlen;
    ep->rng->fill(ep->rng->arg, cid->data, cidlen);
    if (ngtcp2_crypto_generate_stateless_reset_token(token->data, ep->reset_secret, sizeof ep->reset_secret,
                                                     cid) != 0 ||
        quic_conn_cid_add(c, cid) < 0)
        return NGTCP2_ERR_CALLBACK_FAILURE;
    return 0;
}

static int cb_remove_cid(ngtcp2_conn *nc, const ngtcp2_cid *cid, void *user)
{
    struct quic_conn *c = user;
    (void)nc;
    quic_conn_cid_del(c, cid);
    return 0;
}

static int cb_dcid_status(ngtcp2_conn *nc, ngtcp2_connection_id_status_type type, uint64_t seq,
                          const ngtcp2_cid *cid, const ngtcp2_stateless_reset_token *token, void *user)
{
    struct quic_conn *c = user;
    (void)nc, (void)seq, (void)cid;
    if (!token)
        return 0;
    if (type == NGTCP2_CONNECTION_ID_STATUS_TYPE_ACTIVATE)
        return quic_conn_token_add(c, token) < 0 ? NGTCP2_ERR_CALLBACK_FAILURE : 0;
    quic_conn_token_del(c, token);
    return 0;
}

#define SHARED_CALLBACKS                                                                                     \
    .recv_crypto_data = ngtcp2_crypto_recv_crypto_data_cb, .handshake_completed = cb_handshake_completed,    \
    .encrypt = ngtcp2_crypto_encrypt_cb, .decrypt = ngtcp2_crypto_decrypt_cb,                                \
    .hp_mask = ngtcp2_crypto_hp_mask_cb, .recv_stream_data = cb_recv_stream_data,                            \
    .acked_stream_data_offset = cb_acked, .stream_open = cb_stream_open, .stream_close = cb_stream_close,    \
    .stream_reset = cb_stream_reset, .extend_max_stream_data = cb_extend_stream,                             \
    .extend_max_local_streams_bidi = cb_more_streams, .recv_datagram = cb_datagram,                          \
    .recv_stateless_reset2 = cb_stateless_reset, .rand = cb_rand, .get_new_connection_id2 = cb_new_cid,      \
    .dcid_status2 = cb_dcid_status, .remove_connection_id = cb_remove_cid,                                   \
    .update_key = ngtcp2_crypto_update_key_cb,                                                               \
    .delete_crypto_aead_ctx = ngtcp2_crypto_delete_crypto_aead_ctx_cb,                                       \
    .delete_crypto_cipher_ctx = ngtcp2_crypto_delete_crypto_cipher_ctx_cb,                                   \
    .get_path_challenge_data2 = ngtcp2_crypto_get_path_challenge_data2_cb,                                   \
    .version_negotiation = ngtcp2_crypto_version_negotiation_cb

const ngtcp2_callbacks quic_client_callbacks = {
    SHARED_CALLBACKS,
    .client_initial = ngtcp2_crypto_client_initial_cb,
    .recv_retry = ngtcp2_crypto_recv_retry_cb,
    .handshake_confirmed = cb_handshake_confirmed,
};

const ngtcp2_callbacks quic_server_callbacks = {
    SHARED_CALLBACKS,
    .recv_client_initial = ngtcp2_crypto_recv_client_initial_cb,
};
