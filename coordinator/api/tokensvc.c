/* Tokens of service Certs: made, listed and revoked by admins. What they are good for is in enrolsvc.c. */
#include <stdlib.h>
#include <string.h>

#include <openssl/sha.h>

#include "common/base/map.h"
#include "common/base/str.h"
#include "coordinator/api/pending.h"

#define TOKEN_TTL_US (24ll * 3600 * 1000000)
#define TOKEN_TTL_MAX_US (30ll * 86400 * 1000000)
#define TOKENS_MAX 10000u

static void token_made(struct trust_pending *p)
{
    Strata__V1__CreateTokenReply r = STRATA__V1__CREATE_TOKEN_REPLY__INIT;
    Strata__V1__Token *tok = map_get(p->t->tokens, p->id, strlen(p->id));
    if (!tok) { /* no memory for the record: its hash is on disk, and nobody has the secret */
        if (p->call)
            api_no_memory(p->call);
        return;
    }
    Strata__V1__Token shown = *tok;
    shown.hash = (ProtobufCBinaryData){0};
    r.token = p->text;
    r.record = &shown;
    r.address = p->t->c->cfg.enroll_listen;
    trust_pending_reply(p, &r.base);
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

void trust_create_token_handler(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = ((struct coord *)arg)->trust;
    const Strata__V1__CreateTokenRequest *q = (const Strata__V1__CreateTokenRequest *)req;
    struct err e = {0};
    if (!api_allow(call, t->c, PERM_ADMIN))
        return;
    if (check_token(t, q, &e) < 0) {
        rpc_fail(call, &e);
        return;
    }
    struct trust_pending *p = trust_pending_new(t, call, token_made);
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
    trust_pending_submit(p, txn);
}

void trust_list_tokens_handler(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = ((struct coord *)arg)->trust;
    (void)req;
    if (!api_allow(call, t->c, PERM_ADMIN))
        return;
    Strata__V1__ListTokensReply r = STRATA__V1__LIST_TOKENS_REPLY__INIT;
    Strata__V1__Token *shown = calloc(map_count(t->tokens) + 1, sizeof *shown);
    r.tokens = (Strata__V1__Token **)trust_all(t->tokens, &r.n_tokens);
    if (r.tokens && shown) {
        for (size_t i = 0; i < r.n_tokens; i++) {
            shown[i] = *r.tokens[i];
            shown[i].hash = (ProtobufCBinaryData){0};
            r.tokens[i] = &shown[i];
        }
        rpc_reply(call, &r.base);
    } else {
        api_no_memory(call);
    }
    free(r.tokens);
    free(shown);
}

static void token_gone(struct trust_pending *p)
{
    Strata__V1__RevokeTokenReply r = STRATA__V1__REVOKE_TOKEN_REPLY__INIT;
    trust_pending_reply(p, &r.base);
}

void trust_revoke_token_handler(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = ((struct coord *)arg)->trust;
    const Strata__V1__RevokeTokenRequest *q = (const Strata__V1__RevokeTokenRequest *)req;
    if (!api_allow(call, t->c, PERM_ADMIN))
        return;
    if (!map_get(t->tokens, q->id, strlen(q->id))) {
        rpc_finish(call, 5, "TOKEN_UNKNOWN", "there is no token %.32s", q->id);
        return;
    }
    struct trust_pending *p = trust_pending_new(t, call, token_gone);
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
    trust_pending_submit(p, txn);
}
