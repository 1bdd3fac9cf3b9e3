/* Service Certs: renewal for everybody; revocation, pins, rotation and tokens for admins. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/sha.h>

#include "common/base/fs.h"
#include "common/base/map.h"
#include "common/base/str.h"
#include "common/enroll/enroll.h"
#include "common/ticket/ticket.h"
#include "coordinator/api/trust.h"

#define TOKEN_TTL_US (24ll * 3600 * 1000000)
#define TOKEN_TTL_MAX_US (30ll * 86400 * 1000000)
#define TOKENS_MAX 10000u
#define RULES_MAX 20000u
#define CA_DAYS 3650u

static struct trust *trust_of(void *arg)
{
    return ((struct coord *)arg)->trust;
}

/* ---- an answer that waits for the disk ---- */

struct pending {
    struct trust *t;
    struct rpc_call *call;
    void (*apply)(struct pending *p); /* once it is on disk; fills the answer in */
    ProtobufCMessage *record, *reply;
    struct map *map; /* where record goes, under id; record NULL: id is dropped from it */
    char id[160], text[ENROLL_TOKEN_TEXT];
    int revoked; /* kind of revocation, or -1 */
    bool remove;
    struct buf pem;
};

static void pending_free(struct pending *p)
{
    if (p->record)
        protobuf_c_message_free_unpacked(p->record, NULL);
    buf_fini(&p->pem);
    free(p);
}

static void cancelled(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct pending *)arg)->call = NULL;
}

static void stored(void *arg, int rc, const struct err *e)
{
    struct pending *p = arg;
    if (rc == ST_OK) {
        ProtobufCMessage *r = p->record;
        p->record = NULL;
        if (r && trust_keep(p->map, p->id, r) < 0)
            LOG_E(&p->t->c->log, "tls", "no memory for the record %s", p->id);
        else if (!r && p->remove)
            trust_drop(p->map, p->id);
        p->apply(p);
    } else if (p->call) {
        rpc_fail(p->call, e);
    }
    pending_free(p);
}

static struct pending *pending_new(struct trust *t, struct rpc_call *call, void (*apply)(struct pending *p))
{
    struct pending *p = calloc(1, sizeof *p);
    if (!p) {
        rpc_finish(call, 13, "NO_MEMORY", "the coordinator is out of memory");
        return NULL;
    }
    p->t = t;
    p->call = call;
    p->apply = apply;
    p->revoked = -1;
    rpc_on_cancel(call, cancelled, p);
    return p;
}

static void submit(struct pending *p, struct store_txn *txn)
{
    int rc = txn ? store_submit(p->t->c->store, txn, stored, p) : ST_ENOMEM;
    if (rc == ST_OK)
        return;
    rpc_on_cancel(p->call, NULL, NULL);
    rpc_finish(p->call, status_to_rpc(rc), "BUSY", "the coordinator cannot write this down now: try again");
    pending_free(p);
}

static void fail(struct pending *p, const struct err *e)
{
    rpc_on_cancel(p->call, NULL, NULL);
    rpc_fail(p->call, e);
    pending_free(p);
}

static void reply(struct pending *p, const ProtobufCMessage *m)
{
    if (p->call)
        rpc_reply(p->call, m);
}

/* ---- Renew, Announce, Rebind ---- */

static void renewed(struct pending *p)
{
    Strata__V1__RenewReply r = STRATA__V1__RENEW_REPLY__INIT;
    const Strata__V1__Certificate *rec = map_get(p->t->certs, p->id, strlen(p->id));
    r.certificate = (ProtobufCBinaryData){p->pem.len, p->pem.data};
    r.ca = (ProtobufCBinaryData){p->t->bundle.len, p->t->bundle.data};
    r.expires_us = rec ? rec->not_after_us : 0;
    reply(p, &r.base);
}

static void api_certs_renew(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = trust_of(arg);
    struct coord *c = t->c;
    const Strata__V1__RenewRequest *q = (const Strata__V1__RenewRequest *)req;
    const struct tls_identity *who = rpc_peer(call);
    struct tls_identity id;
    struct err e = {0};
    int64_t now = clock_wall_us(c->clock);
    struct pending *p = pending_new(t, call, renewed);
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
        fail(p, &e);
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
    submit(p, txn);
}

static void announced(struct pending *p)
{
    Strata__V1__AnnounceReply r = STRATA__V1__ANNOUNCE_REPLY__INIT;
    reply(p, &r.base);
}

static void api_certs_announce(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = trust_of(arg);
    const Strata__V1__AnnounceRequest *q = (const Strata__V1__AnnounceRequest *)req;
    struct tls_identity id = *rpc_peer(call);
    if (q->spki_sha256.len != 32 || id.kind != TLS_NODE) {
        rpc_finish(call, 3, "BAD_VALUE", "a node announces the SHA-256 of its next key");
        return;
    }
    struct pending *p = pending_new(t, call, announced);
    if (!p)
        return;
    memcpy(id.spki_sha256, q->spki_sha256.data, 32);
    struct store_txn *txn = store_txn_new();
    Strata__V1__Certificate *r = txn ? trust_certificate(t, &id, NULL) : NULL;
    if (!r) {
        store_txn_free(txn);
        fail(p, &(struct err){.code = ST_ENOMEM, .text = "the coordinator is out of memory"});
        return;
    }
    p->record = &r->base;
    p->map = t->certs;
    str_copy(p->id, sizeof p->id, id.principal);
    trust_put(txn, "cert", p->id, p->record, clock_wall_us(t->c->clock));
    submit(p, txn);
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
    now->epoch = n->epoch;
    quic_addr_str(quic_conn_remote(rpc_session_conn(now->rpc)), n->address);
    LOG_I(&c->log, "tls", "node=%s moved to a new connection serial=%s", id->name, id->serial);
    Strata__V1__RebindReply r = STRATA__V1__REBIND_REPLY__INIT;
    r.epoch = n->epoch;
    rpc_reply(call, &r.base);
}

/* ---- Status ---- */

struct listing {
    void **v;
    size_t n;
    const char *only;
    struct coord *c;
};

static int list_one(const void *key, size_t n, void *value, void *arg)
{
    struct listing *l = arg;
    (void)key, (void)n;
    l->v[l->n++] = value;
    return 0;
}

static int list_cert(const void *key, size_t n, void *value, void *arg)
{
    struct listing *l = arg;
    Strata__V1__Certificate *r = value;
    (void)key, (void)n;
    if (l->only && strcmp(l->only, r->principal))
        return 0;
    r->connected = false;
    for (struct coord_session *s = l->c->sessions; s; s = s->next)
        if (s->rpc && !strcmp(rpc_session_peer(s->rpc)->principal, r->principal))
            r->connected = true;
    l->v[l->n++] = r;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const Strata__V1__Certificate *const *x = a, *const *y = b;
    return strcmp((*x)->principal, (*y)->principal);
}

static void api_certs_status(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    struct trust *t = c->trust;
    bool admin = api_is_admin(c, rpc_peer(call)->principal);
    Strata__V1__CertStatusReply r = STRATA__V1__CERT_STATUS_REPLY__INIT;
    struct listing certs = {.v = calloc(map_count(t->certs) + 1, sizeof(void *)),
                            .only = admin ? NULL : rpc_peer(call)->principal,
                            .c = c};
    struct listing gone = {.v = calloc(map_count(t->revoked) + 1, sizeof(void *))};
    struct listing pins = {.v = calloc(map_count(t->pins) + 1, sizeof(void *))};
    uint8_t spki[32];
    Strata__V1__Certificate *self = trust_certificate(t, tls_ctx_self(c->tls), "");
    (void)req;
    if (certs.v && gone.v && pins.v && self) {
        map_each(t->certs, list_cert, &certs);
        if (admin) {
            map_each(t->revoked, list_one, &gone);
            map_each(t->pins, list_one, &pins);
        }
        qsort(certs.v, certs.n, sizeof(void *), by_name);
        r.self = self;
        r.own_ca = t->ca != NULL;
        if (t->ca) {
            tls_ca_spki(t->ca, spki);
            r.ca_serial = (char *)tls_ca_serial(t->ca);
            r.ca_spki = (ProtobufCBinaryData){32, spki};
            r.ca_not_after_us = tls_ca_not_after_us(t->ca);
            r.rotating = tls_ca_rotating(c->cfg.ca_dir);
        }
        r.n_certificates = certs.n;
        r.certificates = (Strata__V1__Certificate **)certs.v;
        r.n_revoked = gone.n;
        r.revoked = (Strata__V1__Revocation **)gone.v;
        r.n_pins = pins.n;
        r.pins = (Strata__V1__Pin **)pins.v;
        rpc_reply(call, &r.base);
    } else {
        rpc_finish(call, 13, "NO_MEMORY", "the coordinator is out of memory");
    }
    if (self)
        protobuf_c_message_free_unpacked(&self->base, NULL);
    free(certs.v);
    free(gone.v);
    free(pins.v);
}

/* ---- Revoke, Pin ---- */

static void revoked(struct pending *p)
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
    reply(p, &r.base);
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
    struct trust *t = trust_of(arg);
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
    struct pending *p = rc == ST_OK ? pending_new(t, call, revoked) : NULL;
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
        fail(p, &(struct err){.code = ST_ENOENT, .reason = "NOT_REVOKED", .text = "that was not revoked"});
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
    submit(p, txn);
}

static void pinned(struct pending *p)
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
    reply(p, &r.base);
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
    struct trust *t = trust_of(arg);
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
    struct pending *p = rc == ST_OK ? pending_new(t, call, pinned) : NULL;
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
        fail(p, &(struct err){.code = ST_ENOENT, .reason = "NOT_PINNED", .text = "there is no such pin"});
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
    submit(p, txn);
}

/* ---- tokens ---- */

static void token_made(struct pending *p)
{
    Strata__V1__CreateTokenReply r = STRATA__V1__CREATE_TOKEN_REPLY__INIT;
    Strata__V1__Token *tok = map_get(p->t->tokens, p->id, strlen(p->id));
    if (!tok)
        return;
    Strata__V1__Token shown = *tok;
    shown.hash = (ProtobufCBinaryData){0};
    r.token = p->text;
    r.record = &shown;
    r.address = p->t->c->cfg.enroll_listen;
    reply(p, &r.base);
}

static int check_token(struct trust *t, const Strata__V1__CreateTokenRequest *q, struct err *e)
{
    bool user = !strcmp(q->kind, "user");
    if (!t->ca || !t->enroll_ep)
        return err_reason(
            e, ST_ECONFLICT, "NO_ENROLL",
            "this coordinator enrols nobody: set ca.dir and enroll.listen in its configuration");
    if (!user && strcmp(q->kind, "node"))
        return err_reason(e, ST_EINVAL, "BAD_VALUE", "a token is for a node or a user");
    if ((user || q->name[0]) && !str_ident_ok(q->name, 63))
        return err_reason(e, ST_EINVAL, "BAD_NAME",
                          "'%.63s' is no name: up to 63 letters, digits, '.', '_', '-'", q->name);
    if (q->pool[0] && (user || !str_ident_ok(q->pool, 63)))
        return err_reason(e, ST_EINVAL, "BAD_VALUE", "'%.63s' is no pool of nodes", q->pool);
    if (q->uses > 10000 || (q->uses > 1 && q->name[0]))
        return err_reason(e, ST_EINVAL, "BAD_VALUE",
                          "a token for one name has one use, others at most 10000");
    if (q->ttl_us > (uint64_t)TOKEN_TTL_MAX_US)
        return err_reason(e, ST_EINVAL, "BAD_VALUE", "a token lives at most 30 days");
    if (map_count(t->tokens) >= TOKENS_MAX)
        return err_reason(e, ST_ELIMIT, "TOO_MANY", "there are %u tokens already: revoke some", TOKENS_MAX);
    return ST_OK;
}

static void api_certs_create_token(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = trust_of(arg);
    const Strata__V1__CreateTokenRequest *q = (const Strata__V1__CreateTokenRequest *)req;
    struct err e = {0};
    if (!api_allow(call, t->c, PERM_ADMIN))
        return;
    if (check_token(t, q, &e) < 0) {
        rpc_fail(call, &e);
        return;
    }
    struct pending *p = pending_new(t, call, token_made);
    if (!p)
        return;
    struct enroll_token tok = {.kind = !strcmp(q->kind, "user") ? ENROLL_USER : ENROLL_NODE};
    Strata__V1__Token r = STRATA__V1__TOKEN__INIT;
    uint8_t hash[32];
    t->c->rng->fill(t->c->rng->arg, tok.id, sizeof tok.id);
    t->c->rng->fill(t->c->rng->arg, tok.secret, sizeof tok.secret);
    tls_ca_spki(t->ca, tok.ca_spki);
    enroll_token_encode(&tok, p->text);
    SHA256(tok.secret, sizeof tok.secret, hash);
    explicit_bzero(&tok.secret, sizeof tok.secret);
    hex_encode(p->id, tok.id, sizeof tok.id);
    r.id = p->id;
    r.hash = (ProtobufCBinaryData){32, hash};
    r.kind = q->kind;
    r.name = q->name;
    r.pool = q->pool;
    r.uses = q->uses ? q->uses : 1;
    r.created_us = clock_wall_us(t->c->clock);
    r.expires_us = r.created_us + (q->ttl_us ? (int64_t)q->ttl_us : TOKEN_TTL_US);
    r.created_by = (char *)rpc_peer(call)->principal;
    p->record = trust_copy(&r.base);
    p->map = t->tokens;
    struct store_txn *txn = store_txn_new();
    struct event_meta m = {0};
    event_meta_str(&m, "token", p->id);
    event_meta_i64(&m, "expires_us", r.expires_us);
    event_meta_u64(&m, "uses", r.uses);
    if (txn) {
        trust_put(txn, "token", p->id, &r.base, r.created_us);
        trust_event(txn, t->c, EV_NODE_TOKEN_CREATED, EVENT_SUCCESS, r.created_by, NULL, &m, NULL);
    } else {
        event_meta_fini(&m);
    }
    submit(p, txn);
}

static void api_certs_list_tokens(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = trust_of(arg);
    (void)req;
    if (!api_allow(call, t->c, PERM_ADMIN))
        return;
    Strata__V1__ListTokensReply r = STRATA__V1__LIST_TOKENS_REPLY__INIT;
    struct listing l = {.v = calloc(map_count(t->tokens) + 1, sizeof(void *))};
    Strata__V1__Token *shown = calloc(map_count(t->tokens) + 1, sizeof *shown);
    if (l.v && shown) {
        map_each(t->tokens, list_one, &l);
        for (size_t i = 0; i < l.n; i++) {
            shown[i] = *(Strata__V1__Token *)l.v[i];
            shown[i].hash = (ProtobufCBinaryData){0};
            l.v[i] = &shown[i];
        }
        r.n_tokens = l.n;
        r.tokens = (Strata__V1__Token **)l.v;
        rpc_reply(call, &r.base);
    } else {
        rpc_finish(call, 13, "NO_MEMORY", "the coordinator is out of memory");
    }
    free(l.v);
    free(shown);
}

static void token_gone(struct pending *p)
{
    Strata__V1__RevokeTokenReply r = STRATA__V1__REVOKE_TOKEN_REPLY__INIT;
    reply(p, &r.base);
}

static void api_certs_revoke_token(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = trust_of(arg);
    const Strata__V1__RevokeTokenRequest *q = (const Strata__V1__RevokeTokenRequest *)req;
    if (!api_allow(call, t->c, PERM_ADMIN))
        return;
    if (!map_get(t->tokens, q->id, strlen(q->id))) {
        rpc_finish(call, 5, "TOKEN_UNKNOWN", "there is no token %.32s", q->id);
        return;
    }
    struct pending *p = pending_new(t, call, token_gone);
    if (!p)
        return;
    str_copy(p->id, sizeof p->id, q->id);
    p->map = t->tokens;
    p->remove = true;
    /* Nobody may use it while the disk works; should that fail it stays without uses. */
    ((Strata__V1__Token *)map_get(t->tokens, q->id, strlen(q->id)))->uses = 0;
    struct store_txn *txn = store_txn_new();
    struct event_meta m = {0};
    event_meta_str(&m, "token", q->id);
    if (txn) {
        store_txn_trust_delete(txn, "token", q->id);
        trust_event(txn, t->c, EV_NODE_TOKEN_REVOKED, EVENT_SUCCESS, rpc_peer(call)->principal, NULL, &m,
                    NULL);
    } else {
        event_meta_fini(&m);
    }
    submit(p, txn);
}

/* ---- Rotate ---- */

struct cut { /* who would be cut off */
    struct trust *t;
    const char *ca;
    Strata__V1__CutOff *v, **pv;
    size_t n;
};

static int cut_one(const void *key, size_t n, void *value, void *arg)
{
    struct cut *k = arg;
    const Strata__V1__Certificate *r = value;
    (void)key, (void)n;
    if (r->not_after_us < clock_wall_us(k->t->c->clock))
        return 0;
    const char *why = strcmp(r->issuer, k->ca) ? "its certificate is of the old CA"
                      : !r->trusts_new_ca      ? "it has not been told of the new CA"
                                               : NULL;
    if (!why)
        return 0;
    Strata__V1__CutOff *o = &k->v[k->n];
    strata__v1__cut_off__init(o);
    o->principal = r->principal;
    o->reason = (char *)why;
    k->pv[k->n++] = o;
    return 0;
}

static int copy_bundle(struct trust *t, struct err *e)
{
    char from[1024], to[1024];
    struct buf b = {0};
    if (fs_join(from, sizeof from, t->c->cfg.ca_dir, "ca.crt") < 0 ||
        fs_join(to, sizeof to, t->c->cfg.tls_dir, "ca.crt") < 0)
        return err_set(e, ST_ELIMIT, "path too long");
    int rc = fs_read(from, 256u << 10, &b, e);
    if (rc == ST_OK)
        rc = fs_write_atomic(to, b.data, b.len, 0644, e);
    buf_fini(&b);
    return rc;
}

static int forget_ca(const void *key, size_t n, void *value, void *arg)
{
    (void)key, (void)n, (void)arg;
    ((Strata__V1__Certificate *)value)->trusts_new_ca = false;
    return 0;
}

static int rotate_ca(struct trust *t, bool end, struct err *e)
{
    struct tls_ca *fresh = NULL;
    int rc = end ? tls_ca_rotate_end(t->c->cfg.ca_dir, e)
                 : tls_ca_rotate(t->c->cfg.ca_dir, CA_DAYS, t->c->clock, e);
    if (rc < 0 || (rc = tls_ca_load_for(&fresh, t->c->cfg.ca_dir, t->c->cfg.trust_domain, e)) < 0)
        return rc;
    tls_ca_free(t->ca);
    t->ca = fresh;
    if (!end)
        map_each(t->certs, forget_ca, NULL);
    if ((rc = copy_bundle(t, e)) < 0)
        return rc;
    return trust_renew_own(t, e);
}

static int rotate_ticket(struct trust *t, struct err *e)
{
    struct coord *c = t->c;
    char path[1024], fresh[1040];
    struct ticket_key *key = NULL;
    if (fs_join(path, sizeof path, c->cfg.state_dir, "ticket.key") < 0)
        return err_set(e, ST_ELIMIT, "path too long: %s", c->cfg.state_dir);
    snprintf(fresh, sizeof fresh, "%s.next", path);
    remove(fresh); /* of a rotation that did not get to its end */
    int rc;
    if ((rc = ticket_key_create(fresh, e)) < 0 || (rc = ticket_key_load(&key, fresh, e)) < 0)
        return rc;
    if (rename(fresh, path) < 0) {
        ticket_key_free(key);
        return err_set(e, ST_EIO, "cannot replace %s", path);
    }
    ticket_key_free(c->ticket_key);
    c->ticket_key = key;
    ticket_key_public(key, c->ticket_public);
    return ST_OK;
}

static void rotated_event(struct trust *t, const char *who, const char *what, const char *old)
{
    struct event_meta m = {0};
    bool ca = !strncmp(what, "ca", 2);
    event_meta_str(&m, "serial", ca ? tls_ca_serial(t->ca) : tls_ctx_self(t->c->tls)->serial);
    event_meta_str(&m, ca ? "old" : "subject", ca ? old : what);
    api_event(t->c, ca ? EV_CERTIFICATE_CA_ROTATED : EV_CERTIFICATE_ROTATED, EVENT_SUCCESS, who, NULL,
              event_meta_text(&m), NULL);
    event_meta_fini(&m);
}

static int rotate(struct trust *t, const Strata__V1__RotateRequest *q, const char *who, struct cut *cut,
                  Strata__V1__RotateReply *r, struct err *e)
{
    char old[48] = "";
    int rc = ST_OK;
    bool ca = !strcmp(q->what, "ca"), end = !strcmp(q->what, "ca-end");
    if ((ca || end) && !t->ca)
        return err_reason(e, ST_ECONFLICT, "NO_CA", "certificates of this cluster come from another CA");
    if (ca || end) {
        str_copy(old, sizeof old, tls_ca_serial(t->ca));
        /* Before a rotation begins nobody has the new CA: all are listed. */
        cut->ca = ca ? "" : tls_ca_serial(t->ca);
        map_each(t->certs, cut_one, cut);
        if (q->dry_run)
            return ST_OK;
        if (end && cut->n && !q->force)
            return err_reason(
                e, ST_ECONFLICT, "CUT_OFF",
                "%zu would be cut off (strata cert rotate-ca --end --dry-run lists them): let them renew "
                "first, or force it",
                cut->n);
        if ((rc = rotate_ca(t, end, e)) < 0)
            return rc;
        r->told = trust_tell_all(t, NULL, ca, false);
        cut->n = 0;
    } else if (q->dry_run) {
        return err_reason(e, ST_EINVAL, "BAD_VALUE", "only a rotation of the CA can be tried dry");
    } else if (!strcmp(q->what, "leaf")) {
        r->told = trust_tell_all(t, q->principal, true, q->fresh_key);
        if (!r->told && q->principal[0])
            return err_reason(e, ST_ENOENT, "NOT_CONNECTED", "%s is not connected", q->principal);
    } else if (!strcmp(q->what, "coordinator")) {
        rc = trust_renew_own(t, e);
    } else if (!strcmp(q->what, "ticket")) {
        if ((rc = rotate_ticket(t, e)) == ST_OK)
            r->told = trust_tell_all(t, NULL, false, false);
    } else {
        return err_reason(e, ST_EINVAL, "BAD_VALUE", "rotate what? leaf, coordinator, ticket, ca or ca-end");
    }
    if (rc == ST_OK)
        rotated_event(t, who, q->what, old);
    return rc;
}

static void api_certs_rotate(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = trust_of(arg);
    const Strata__V1__RotateRequest *q = (const Strata__V1__RotateRequest *)req;
    struct err e = {0};
    if (!api_allow(call, t->c, PERM_ADMIN))
        return;
    Strata__V1__RotateReply r = STRATA__V1__ROTATE_REPLY__INIT;
    size_t n = map_count(t->certs) + 1;
    struct cut cut = {.t = t, .v = calloc(n, sizeof *cut.v), .pv = calloc(n, sizeof(*cut.pv))};
    int rc = cut.v && cut.pv ? rotate(t, q, rpc_peer(call)->principal, &cut, &r, &e)
                             : err_set(&e, ST_ENOMEM, "the coordinator is out of memory");
    r.serial = (char *)(t->ca ? tls_ca_serial(t->ca) : "");
    r.n_cut_off = cut.n;
    r.cut_off = cut.pv;
    if (rc < 0)
        rpc_fail(call, &e);
    else
        rpc_reply(call, &r.base);
    free(cut.v);
    free(cut.pv);
}

const struct rpc_method trust_methods[] = {
    {"strata.v1.Certs", "Renew", RPC_UNARY, api_certs_renew},
    {"strata.v1.Certs", "Rebind", RPC_UNARY, api_certs_rebind},
    {"strata.v1.Certs", "Announce", RPC_UNARY, api_certs_announce},
    {"strata.v1.Certs", "Status", RPC_UNARY, api_certs_status},
    {"strata.v1.Certs", "Revoke", RPC_UNARY, api_certs_revoke},
    {"strata.v1.Certs", "Pin", RPC_UNARY, api_certs_pin},
    {"strata.v1.Certs", "Rotate", RPC_UNARY, api_certs_rotate},
    {"strata.v1.Certs", "CreateToken", RPC_UNARY, api_certs_create_token},
    {"strata.v1.Certs", "ListTokens", RPC_UNARY, api_certs_list_tokens},
    {"strata.v1.Certs", "RevokeToken", RPC_UNARY, api_certs_revoke_token},
};
const size_t trust_methods_n = sizeof trust_methods / sizeof *trust_methods;
