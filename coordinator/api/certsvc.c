/* Service Certs: renewal and status for everybody; revocation and pins for admins. Tokens and rotation have
 * files of their own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/base/str.h"
#include "coordinator/api/pending.h"

#define RULES_MAX 20000u

/* ---- Renew, Announce, Rebind ---- */

static void renewed(struct trust_pending *p)
{
    Strata__V1__RenewReply r = STRATA__V1__RENEW_REPLY__INIT;
    const Strata__V1__Certificate *rec = map_get(p->t->certs, p->id, strlen(p->id));
    r.certificate = (ProtobufCBinaryData){p->pem.len, p->pem.data};
    r.ca = (ProtobufCBinaryData){p->t->bundle.len, p->t->bundle.data};
    r.expires_us = rec ? rec->not_after_us : 0;
    trust_pending_reply(p, &r.base);
}

static void api_certs_renew(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = ((struct coord *)arg)->trust;
    struct coord *c = t->c;
    const Strata__V1__RenewRequest *q = (const Strata__V1__RenewRequest *)req;
    const struct tls_identity *who = rpc_peer(call);
    struct tls_identity id;
    struct err e = {0};
    int64_t now = clock_wall_us(c->clock);
    struct trust_pending *p = trust_pending_new(t, call, renewed);
    if (!p)
        return;
    const struct tls_issue w = {.kind = who->kind,
                                .name = who->name,
                                .not_before_us = now - trust_backdate_us(c),
                                .not_after_us = now + c->cfg.leaf_ttl_us};
    int rc = !t->ca
                 ? err_reason(&e, ST_ECONFLICT, "NO_CA", "certificates of this cluster come from another CA")
             : who->kind == TLS_COORDINATOR
                 ? err_reason(&e, ST_EDENIED, "BAD_NAME", "the coordinator renews itself")
                 : tls_ca_sign(t->ca, &w, q->csr.data, q->csr.len, &p->pem, &id, &e);
    if (rc == ST_OK)
        rc = tls_rules_check(t->rules, &id, &e); /* a new key of a pinned peer has to be pinned first */
    struct store_txn *txn = rc == ST_OK ? store_txn_new() : NULL;
    if (rc == ST_OK && (!txn || !(p->record = &trust_certificate(t, &id, NULL)->base))) {
        store_txn_free(txn);
        rc = err_set(&e, ST_ENOMEM, "the coordinator is out of memory");
    }
    if (rc < 0) {
        trust_pending_fail(p, &e);
        return;
    }
    str_copy(p->id, sizeof p->id, who->principal);
    p->map = t->certs;
    trust_put(txn, "cert", p->id, p->record, now);
    struct event_meta m = {0};
    event_meta_str(&m, "serial", id.serial);
    event_meta_str(&m, "subject", id.principal);
    event_meta_i64(&m, "expires_us", id.not_after_us);
    trust_event(txn, c, EV_CERTIFICATE_RENEWED, EVENT_SUCCESS, who->principal,
                who->kind == TLS_NODE ? who->name : NULL, &m, NULL);
    trust_pending_submit(p, txn);
}

static void announced(struct trust_pending *p)
{
    Strata__V1__AnnounceReply r = STRATA__V1__ANNOUNCE_REPLY__INIT;
    trust_pending_reply(p, &r.base);
}

static void api_certs_announce(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = ((struct coord *)arg)->trust;
    const Strata__V1__AnnounceRequest *q = (const Strata__V1__AnnounceRequest *)req;
    struct tls_identity id = *rpc_peer(call);
    if (q->spki_sha256.len != 32 || id.kind != TLS_NODE) {
        rpc_finish(call, 3, "BAD_VALUE", "a node announces the SHA-256 of its next key");
        return;
    }
    struct trust_pending *p = trust_pending_new(t, call, announced);
    if (!p)
        return;
    memcpy(id.spki_sha256, q->spki_sha256.data, 32);
    struct store_txn *txn = store_txn_new();
    Strata__V1__Certificate *r = txn ? trust_certificate(t, &id, NULL) : NULL;
    if (!r) {
        store_txn_free(txn);
        trust_pending_fail(p, &(struct err){.code = ST_ENOMEM, .text = "the coordinator is out of memory"});
        return;
    }
    p->record = &r->base;
    p->map = t->certs;
    str_copy(p->id, sizeof p->id, id.principal);
    trust_put(txn, "cert", p->id, p->record, clock_wall_us(t->c->clock));
    trust_pending_submit(p, txn);
}

static void api_certs_rebind(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__RebindRequest *q = (const Strata__V1__RebindRequest *)req;
    const struct tls_identity *id = rpc_peer(call);
    struct topo_node *n = id->kind == TLS_NODE ? topo_node(c->topo, id->name) : NULL;
    struct coord_session *old = n ? n->user : NULL, *now = NULL;
    for (struct coord_session *s = c->sessions; s; s = s->next)
        if (s->rpc == rpc_call_session(call))
            now = s;
    if (!n || !old || !old->rpc || !now || old == now || n->epoch != q->epoch) {
        rpc_finish(call, 10, "STALE_EPOCH", "there is no such registration to take over: say hello again");
        return;
    }
    if (!trust_succeeds(c->trust, rpc_session_peer(old->rpc), id)) {
        rpc_finish(call, 10, "NAME_IN_USE", "node %s is connected with a key that this one does not follow",
                   id->name);
        return;
    }
    /* The old connection keeps the calls that run on it; the agent closes it when they are over. */
    old->node[0] = 0;
    n->user = now;
    str_copy(now->node, sizeof now->node, id->name);
    now->tell_ns = old->tell_ns;
    now->tell_renew = old->tell_renew;
    now->tell_fresh = old->tell_fresh;
    now->epoch = n->epoch;
    quic_addr_str(quic_conn_remote(rpc_session_conn(now->rpc)), n->address);
    LOG_I(&c->log, "tls", "node=%s moved to a new connection serial=%s", id->name, id->serial);
    Strata__V1__RebindReply r = STRATA__V1__REBIND_REPLY__INIT;
    r.epoch = n->epoch;
    rpc_reply(call, &r.base);
}

/* ---- Status ---- */

static int forget_connected(const void *key, size_t n, void *value, void *arg)
{
    (void)key, (void)n, (void)arg;
    ((Strata__V1__Certificate *)value)->connected = false;
    return 0;
}

static void mark_connected(struct trust *t)
{
    map_each(t->certs, forget_connected, NULL);
    for (struct coord_session *s = t->c->sessions; s; s = s->next) {
        const char *who = s->rpc ? rpc_session_peer(s->rpc)->principal : "";
        Strata__V1__Certificate *r = map_get(t->certs, who, strlen(who));
        if (r)
            r->connected = true;
    }
}

static int by_name(const void *a, const void *b)
{
    const Strata__V1__Certificate *const *x = a, *const *y = b;
    return strcmp((*x)->principal, (*y)->principal);
}

/* Everybody's for an admin, else the caller's own. */
static int gather_status(struct trust *t, const char *who, bool admin, Strata__V1__CertStatusReply *r)
{
    mark_connected(t);
    if (!admin) {
        Strata__V1__Certificate *own = map_get(t->certs, who, strlen(who));
        r->certificates = calloc(1, sizeof(void *));
        if (own && r->certificates)
            r->certificates[r->n_certificates++] = own;
        return r->certificates ? ST_OK : ST_ENOMEM;
    }
    r->certificates = (Strata__V1__Certificate **)trust_all(t->certs, &r->n_certificates);
    r->revoked = (Strata__V1__Revocation **)trust_all(t->revoked, &r->n_revoked);
    r->pins = (Strata__V1__Pin **)trust_all(t->pins, &r->n_pins);
    if (!r->certificates || !r->revoked || !r->pins)
        return ST_ENOMEM;
    qsort(r->certificates, r->n_certificates, sizeof(void *), by_name);
    return ST_OK;
}

static void api_certs_status(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    struct trust *t = c->trust;
    const char *who = rpc_peer(call)->principal;
    Strata__V1__CertStatusReply r = STRATA__V1__CERT_STATUS_REPLY__INIT;
    uint8_t spki[32];
    (void)req;
    r.self = trust_certificate(t, tls_ctx_self(c->tls), "");
    r.own_ca = t->ca != NULL;
    if (t->ca) {
        tls_ca_spki(t->ca, spki);
        r.ca_serial = (char *)tls_ca_serial(t->ca);
        r.ca_spki = (ProtobufCBinaryData){32, spki};
        r.ca_not_after_us = tls_ca_not_after_us(t->ca);
        r.rotating = tls_ca_rotating(c->cfg.ca_dir);
    }
    if (r.self && gather_status(t, who, api_is_admin(c, who), &r) == ST_OK)
        rpc_reply(call, &r.base);
    else
        api_no_memory(call);
    if (r.self)
        protobuf_c_message_free_unpacked(&r.self->base, NULL);
    free(r.certificates);
    free(r.revoked);
    free(r.pins);
}

/* ---- Revoke, Pin ---- */

static void revoked(struct trust_pending *p)
{
    struct trust *t = p->t;
    Strata__V1__RevokeReply r = STRATA__V1__REVOKE_REPLY__INIT;
    const char *value = strchr(p->id, ':') + 1;
    if (p->remove)
        tls_rules_restore(t->rules, (enum tls_revoked)p->revoked, value);
    else if (tls_rules_revoke(t->rules, (enum tls_revoked)p->revoked, value) < 0)
        LOG_E(&t->c->log, "tls", "no memory to apply a revocation; it counts from the next start");
    r.closed = trust_close_bad(t);
    r.told = trust_tell_all(t, NULL, false, false);
    trust_pending_reply(p, &r.base);
}

static int revoked_kind(const char *word)
{
    for (int k = TLS_REVOKED_SERIAL; k <= TLS_REVOKED_KEY; k++)
        if (!strcmp(word, tls_revoked_name((enum tls_revoked)k)))
            return k;
    return -1;
}

static void api_certs_revoke(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = ((struct coord *)arg)->trust;
    const Strata__V1__RevokeRequest *q = (const Strata__V1__RevokeRequest *)req;
    const char *who = rpc_peer(call)->principal;
    int kind = revoked_kind(q->kind);
    char value[80];
    struct err e = {0};
    if (!api_allow(call, t->c, PERM_ADMIN))
        return;
    int rc = kind < 0 ? err_reason(&e, ST_EINVAL, "BAD_VALUE", "revoke by serial, identity or key")
                      : tls_revoked_parse((enum tls_revoked)kind, q->value, value, &e);
    if (rc == ST_OK && kind == TLS_REVOKED_IDENTITY && !strcmp(value, who) && !q->restore)
        rc = err_reason(&e, ST_EINVAL, "OWN_IDENTITY", "that is you: have another admin do it");
    if (rc == ST_OK && !q->restore && map_count(t->revoked) >= RULES_MAX)
        rc = err_reason(&e, ST_ELIMIT, "TOO_MANY", "the list of revocations is full: rotate the CA instead");
    struct trust_pending *p = rc == ST_OK ? trust_pending_new(t, call, revoked) : NULL;
    if (rc < 0)
        rpc_fail(call, &e);
    if (!p)
        return;
    Strata__V1__Revocation r = STRATA__V1__REVOCATION__INIT;
    r.kind = q->kind;
    r.value = value;
    r.reason = q->reason;
    r.by = (char *)who;
    r.at_us = clock_wall_us(t->c->clock);
    snprintf(p->id, sizeof p->id, "%s:%s", q->kind, value);
    p->map = t->revoked;
    p->revoked = kind;
    p->remove = q->restore;
    if (q->restore && !map_get(t->revoked, p->id, strlen(p->id))) {
        trust_pending_fail(
            p, &(struct err){.code = ST_ENOENT, .reason = "NOT_REVOKED", .text = "that was not revoked"});
        return;
    }
    p->record = q->restore ? NULL : trust_copy(&r.base);
    struct store_txn *txn = store_txn_new();
    if (txn && q->restore)
        store_txn_trust_delete(txn, "revoked", p->id);
    else if (txn)
        trust_put(txn, "revoked", p->id, &r.base, r.at_us);
    struct event_meta m = {0};
    event_meta_str(&m, kind == TLS_REVOKED_IDENTITY ? "subject" : "serial", value);
    event_meta_str(&m, "reason", q->restore ? "RESTORED" : q->reason[0] ? q->reason : "none given");
    if (txn)
        trust_event(txn, t->c, q->restore ? EV_CERTIFICATE_RESTORED : EV_CERTIFICATE_REVOKED, EVENT_SUCCESS,
                    who, NULL, &m, NULL);
    else
        event_meta_fini(&m);
    trust_pending_submit(p, txn);
}

static void pinned(struct trust_pending *p)
{
    struct trust *t = p->t;
    Strata__V1__PinReply r = STRATA__V1__PIN_REPLY__INIT;
    uint8_t sha[32];
    size_t n;
    char hex[65];
    snprintf(hex, sizeof hex, "%.64s", p->id);
    if (hex_decode(sha, 32, hex, &n) == ST_OK && p->remove)
        tls_rules_unpin(t->rules, p->id + 65, sha);
    else if (tls_rules_pin(t->rules, p->id + 65, sha) < 0)
        LOG_E(&t->c->log, "tls", "no memory to apply a pin; it counts from the next start");
    r.closed = trust_close_bad(t);
    (void)trust_tell_all(t, NULL, false, false);
    trust_pending_reply(p, &r.base);
}

static bool subject_ok(const char *s)
{
    if (!strcmp(s, "coordinator"))
        return true;
    if (!str_starts(s, "node/") && !str_starts(s, "user/") && !str_starts(s, "pool/"))
        return false;
    return strlen(s) < 80 && s[5] &&
           !s[5 + strspn(s + 5, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                "0123456789._-*")];
}

static void api_certs_pin(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = ((struct coord *)arg)->trust;
    const Strata__V1__PinRequest *q = (const Strata__V1__PinRequest *)req;
    uint8_t sha[32];
    struct err e = {0};
    if (!api_allow(call, t->c, PERM_ADMIN))
        return;
    int rc = subject_ok(q->subject)
                 ? tls_pin_parse(q->sha256, sha, &e)
                 : err_reason(&e, ST_EINVAL, "BAD_VALUE",
                              "'%.80s' cannot be pinned: coordinator, node/NAME, user/NAME or pool/NAME",
                              q->subject);
    if (rc == ST_OK && !q->remove && map_count(t->pins) >= RULES_MAX)
        rc = err_reason(&e, ST_ELIMIT, "TOO_MANY", "the list of pins is full");
    struct trust_pending *p = rc == ST_OK ? trust_pending_new(t, call, pinned) : NULL;
    if (rc < 0)
        rpc_fail(call, &e);
    if (!p)
        return;
    Strata__V1__Pin r = STRATA__V1__PIN__INIT;
    r.subject = q->subject;
    r.sha256 = (ProtobufCBinaryData){32, sha};
    r.by = (char *)rpc_peer(call)->principal;
    r.at_us = clock_wall_us(t->c->clock);
    trust_pin_id(q->subject, sha, p->id);
    p->map = t->pins;
    p->remove = q->remove;
    if (q->remove && !map_get(t->pins, p->id, strlen(p->id))) {
        trust_pending_fail(
            p, &(struct err){.code = ST_ENOENT, .reason = "NOT_PINNED", .text = "there is no such pin"});
        return;
    }
    p->record = q->remove ? NULL : trust_copy(&r.base);
    struct store_txn *txn = store_txn_new();
    if (txn && q->remove)
        store_txn_trust_delete(txn, "pin", p->id);
    else if (txn)
        trust_put(txn, "pin", p->id, &r.base, r.at_us);
    char hex[65];
    hex_encode(hex, sha, 32);
    struct event_meta m = {0};
    event_meta_str(&m, "spki", hex);
    event_meta_str(&m, "subject", q->subject);
    if (txn)
        trust_event(txn, t->c, q->remove ? EV_CERTIFICATE_UNPINNED : EV_CERTIFICATE_PINNED, EVENT_SUCCESS,
                    r.by, NULL, &m, NULL);
    else
        event_meta_fini(&m);
    trust_pending_submit(p, txn);
}

const struct rpc_method trust_methods[] = {
    {"strata.v1.Certs", "Renew", RPC_UNARY, api_certs_renew},
    {"strata.v1.Certs", "Rebind", RPC_UNARY, api_certs_rebind},
    {"strata.v1.Certs", "Announce", RPC_UNARY, api_certs_announce},
    {"strata.v1.Certs", "Status", RPC_UNARY, api_certs_status},
    {"strata.v1.Certs", "Revoke", RPC_UNARY, api_certs_revoke},
    {"strata.v1.Certs", "Pin", RPC_UNARY, api_certs_pin},
    {"strata.v1.Certs", "Rotate", RPC_UNARY, trust_rotate_handler},
    {"strata.v1.Certs", "CreateToken", RPC_UNARY, trust_create_token_handler},
    {"strata.v1.Certs", "ListTokens", RPC_UNARY, trust_list_tokens_handler},
    {"strata.v1.Certs", "RevokeToken", RPC_UNARY, trust_revoke_token_handler},
};
const size_t trust_methods_n = sizeof trust_methods / sizeof *trust_methods;
