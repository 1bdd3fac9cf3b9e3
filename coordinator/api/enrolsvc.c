/* Service Enroll: a token and a signing request become a certificate. All that an anonymous peer can reach.
 */
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/base/str.h"
#include "common/enroll/enroll.h"
#include "coordinator/api/trust.h"
#include "strata/v1/enroll.pb-c.h"

#define FAILURES_MAX 10u
#define FAILURES_NS (60 * NS_PER_S)
#define SOURCES_MAX 4096u

struct joining { /* one answer that waits for the disk */
    struct trust *t;
    struct rpc_call *call; /* NULL: cancelled */
    struct buf pem;
    struct tls_identity id;
    Strata__V1__Certificate *record;
    char pool[64];
};

/* The address without its port: a new source port is no new source. */
static size_t source_key(struct rpc_call *call, char out[64])
{
    quic_addr_str(quic_conn_remote(rpc_session_conn(rpc_call_session(call))), out);
    char *colon = strrchr(out, ':');
    if (colon)
        *colon = 0;
    return strlen(out);
}

static int free_source(const void *key, size_t n, void *value, void *arg)
{
    (void)key, (void)n, (void)arg;
    free(value);
    return 0;
}

static struct trust_source *source(struct trust *t, struct rpc_call *call)
{
    char key[64];
    size_t n = source_key(call, key);
    struct trust_source *s = map_get(t->sources, key, n);
    uint64_t now = clock_ns(t->c->clock);
    if (!s) {
        if (map_count(t->sources) >= SOURCES_MAX) { /* a flood of addresses: begin again rather than grow */
            struct map *fresh;
            if (map_new(&fresh, t->c->rng) < 0)
                return NULL;
            map_each(t->sources, free_source, NULL);
            map_free(t->sources);
            t->sources = fresh;
        }
        s = calloc(1, sizeof *s);
        if (!s || map_put(t->sources, key, n, s, NULL) < 0) {
            free(s);
            return NULL;
        }
        s->since_ns = now;
    }
    if (now - s->since_ns > FAILURES_NS)
        *s = (struct trust_source){.since_ns = now};
    return s;
}

static void refuse(struct rpc_call *call, struct trust *t, const char *token, const struct err *why)
{
    char addr[64];
    struct trust_source *s = source(t, call);
    if (s)
        s->failures++;
    quic_addr_str(quic_conn_remote(rpc_session_conn(rpc_call_session(call))), addr);
    struct event_meta m = {0};
    event_meta_str(&m, "reason", why->reason);
    event_meta_str(&m, "peer", addr);
    event_meta_str(&m, "token", token);
    api_event(t->c, EV_NODE_ENROLL_REFUSED, EVENT_DENIED, "anonymous", NULL, event_meta_text(&m), why->text);
    event_meta_fini(&m);
    rpc_fail(call, why);
}

/* Ten a second, forty at once, over all addresses; ten failures a minute from any of them. */
static int admit(struct trust *t, struct rpc_call *call, struct err *e)
{
    uint64_t now = clock_ns(t->c->clock);
    struct trust_source *s = source(t, call);
    t->bucket += (double)(now - t->bucket_ns) / 1e9 * t->c->cfg.enroll_rate;
    if (t->bucket > 4.0 * t->c->cfg.enroll_rate)
        t->bucket = 4.0 * t->c->cfg.enroll_rate;
    t->bucket_ns = now;
    if (s && s->failures >= FAILURES_MAX)
        return err_reason(e, ST_ERESOURCE, "TOO_MANY_ATTEMPTS",
                          "too many refused attempts from this address: wait a minute and check the token");
    if (t->bucket < 1)
        return err_reason(e, ST_ERESOURCE, "ENROLL_BUSY",
                          "too many enrolments at once: try again in a second");
    t->bucket -= 1;
    return ST_OK;
}

static int check_token(struct trust *t, const Strata__V1__JoinRequest *q, const char *id,
                       Strata__V1__Token **out, struct err *e)
{
    uint8_t hash[32];
    Strata__V1__Token *tok = map_get(t->tokens, id, strlen(id));
    SHA256(q->secret.data ? q->secret.data : (const uint8_t *)"", q->secret.len, hash);
    /* An unknown id and a wrong secret are one answer, or ids could be found out. */
    if (!tok || tok->hash.len != 32 || CRYPTO_memcmp(hash, tok->hash.data, 32))
        return err_reason(e, ST_EDENIED, "TOKEN_UNKNOWN",
                          "no such token: it was mistyped, revoked or never made");
    if (clock_wall_us(t->c->clock) > tok->expires_us)
        return err_reason(e, ST_EDENIED, "TOKEN_EXPIRED", "the token has expired: make a new one");
    if (!tok->uses)
        return err_reason(e, ST_EDENIED, "TOKEN_USED", "the token has been used already: make a new one");
    *out = tok;
    return ST_OK;
}

static int check_name(const Strata__V1__JoinRequest *q, const Strata__V1__Token *tok, const char **name,
                      struct err *e)
{
    *name = tok->name[0] ? tok->name : q->name[0] ? q->name : q->hostname;
    if (tok->name[0] && q->name[0] && strcmp(tok->name, q->name))
        return err_reason(e, ST_EDENIED, "BAD_NAME", "the token is for another name than '%.63s'", q->name);
    if (!str_ident_ok(*name, 63))
        return err_reason(e, ST_EINVAL, "BAD_NAME",
                          "'%.63s' is no name: up to 63 letters, digits, '.', '_', '-'", *name);
    return ST_OK;
}

/* A name that is in use, or whose certificate still lives, is not given away by a token that does not name
 * it.
 */
static int check_free(struct trust *t, const Strata__V1__Token *tok, const char *principal, struct err *e)
{
    const Strata__V1__Certificate *was = map_get(t->certs, principal, strlen(principal));
    if (tok->name[0] || !was || was->not_after_us < clock_wall_us(t->c->clock))
        return ST_OK;
    return err_reason(e, ST_ECONFLICT, "NAME_TAKEN",
                      "%s is enrolled already: choose another name, or make a token for that name",
                      principal);
}

static void join_cancelled(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct joining *)arg)->call = NULL;
}

static void joining_free(struct joining *j)
{
    buf_fini(&j->pem);
    if (j->record)
        protobuf_c_message_free_unpacked(&j->record->base, NULL);
    free(j);
}

static void answer(struct joining *j)
{
    struct trust *t = j->t;
    Strata__V1__JoinReply r = STRATA__V1__JOIN_REPLY__INIT;
    r.identity = j->id.spiffe;
    r.trust_domain = j->id.trust_domain;
    r.certificate = (ProtobufCBinaryData){j->pem.len, j->pem.data};
    r.ca = (ProtobufCBinaryData){t->bundle.len, t->bundle.data};
    r.port = quic_udp_port(t->c->udp);
    r.now_us = clock_wall_us(t->c->clock);
    r.expires_us = j->id.not_after_us;
    r.pool = j->pool;
    rpc_reply(j->call, &r.base);
}

static void join_stored(void *arg, int rc, const struct err *e)
{
    struct joining *j = arg;
    if (rc == ST_OK) {
        Strata__V1__Certificate *r = j->record;
        j->record = NULL;
        LOG_I(&j->t->c->log, "enroll", "enrolled principal=%s serial=%s", j->id.principal, j->id.serial);
        if (trust_keep(j->t->certs, j->id.principal, r ? &r->base : NULL) < 0)
            LOG_E(&j->t->c->log, "enroll", "no memory for the record of %s", j->id.principal);
    }
    if (j->call && rc == ST_OK)
        answer(j);
    else if (j->call)
        rpc_fail(j->call, e);
    joining_free(j);
}

static int sign(struct trust *t, const Strata__V1__JoinRequest *q, const Strata__V1__Token *tok,
                const char *name, struct joining *j, struct err *e)
{
    int64_t now = clock_wall_us(t->c->clock);
    bool user = !strcmp(tok->kind, "user");
    char principal[80];
    snprintf(principal, sizeof principal, "%s/%s", tok->kind, name);
    int rc = check_free(t, tok, principal, e);
    if (rc < 0)
        return rc;
    const struct tls_issue w = {.kind = user ? TLS_USER : TLS_NODE,
                                .name = name,
                                .not_before_us = now - trust_backdate_us(t->c),
                                .not_after_us = now + t->c->cfg.leaf_ttl_us};
    rc = tls_ca_sign(t->ca, &w, q->csr.data, q->csr.len, &j->pem, &j->id, e);
    return rc < 0 || !t->c->tls ? rc : tls_rules_check(t->rules, &j->id, e);
}

static int submit(struct joining *j, Strata__V1__Token *tok)
{
    struct trust *t = j->t;
    struct coord *c = t->c;
    struct store_txn *txn = store_txn_new();
    if (!txn || !(j->record = trust_certificate(t, &j->id, tok->pool))) {
        store_txn_free(txn);
        return ST_ENOMEM;
    }
    char addr[64], spki[65];
    bool node = j->id.kind == TLS_NODE;
    quic_addr_str(quic_conn_remote(rpc_session_conn(rpc_call_session(j->call))), addr);
    hex_encode(spki, j->id.spki_sha256, 32);
    /* Taken at once: while the disk works nobody else may have this use. A failure leaves it used. */
    tok->uses--;
    str_copy(j->pool, sizeof j->pool, tok->pool);
    trust_put(txn, "token", tok->id, &tok->base, clock_wall_us(c->clock));
    trust_put(txn, "cert", j->id.principal, &j->record->base, clock_wall_us(c->clock));
    struct event_meta m = {0}, m2 = {0};
    event_meta_str(&m, "serial", j->id.serial);
    event_meta_str(&m, "subject", j->id.principal);
    event_meta_i64(&m, "expires_us", j->id.not_after_us);
    trust_event(txn, c, EV_CERTIFICATE_ISSUED, EVENT_SUCCESS, j->id.principal, node ? j->id.name : NULL, &m,
                NULL);
    event_meta_str(&m2, "address", addr);
    event_meta_str(&m2, "spki", spki);
    event_meta_str(&m2, "token", tok->id);
    trust_event(txn, c, node ? EV_NODE_ENROLLED : EV_SECURITY_USER_ENROLLED, EVENT_SUCCESS, j->id.principal,
                node ? j->id.name : NULL, &m2, NULL);
    return store_submit(c->store, txn, join_stored, j);
}

void enroll_join_handler(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = arg;
    const Strata__V1__JoinRequest *q = (const Strata__V1__JoinRequest *)req;
    Strata__V1__Token *tok = NULL;
    const char *name = "";
    char id[2 * ENROLL_ID_LEN + 1] = "";
    struct err e = {0};
    struct joining *j = calloc(1, sizeof *j);
    int rc = admit(t, call, &e);
    if (rc == ST_OK && !j)
        rc = err_set(&e, ST_ENOMEM, "no memory");
    if (rc == ST_OK && q->token_id.len != ENROLL_ID_LEN)
        rc = err_reason(&e, ST_EINVAL, "BAD_TOKEN", "a token's id has %d bytes", ENROLL_ID_LEN);
    if (rc == ST_OK)
        hex_encode(id, q->token_id.data, ENROLL_ID_LEN);
    if (rc == ST_OK && (rc = check_token(t, q, id, &tok, &e)) == ST_OK &&
        (rc = check_name(q, tok, &name, &e)) == ST_OK)
        rc = sign(t, q, tok, name, j, &e);
    if (rc < 0) {
        free(j ? j->pem.data : NULL);
        free(j);
        refuse(call, t, id, &e);
        return;
    }
    j->t = t;
    j->call = call;
    rpc_on_cancel(call, join_cancelled, j);
    if ((rc = submit(j, tok)) < 0) {
        rpc_on_cancel(call, NULL, NULL);
        joining_free(j);
        rpc_finish(call, status_to_rpc(rc), "BUSY", "the coordinator cannot write this down now: try again");
    }
}
