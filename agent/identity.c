#include "agent/identity.h"

#include <event2/event.h>
#include <inttypes.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/fs.h"
#include "common/base/str.h"

#define MAX_TRUST (8u << 20)
#define MAX_BUNDLE (256u << 10)
#define CHECK_US 500000
#define RENEW_NS (30 * NS_PER_S)

struct identity {
    struct identity_cfg cfg;
    struct control *control;
    struct tls_rules *rules;
    struct tls_ctx *tls;
    struct event *timer;
    bool own_ca;               /* the coordinator renews; said by it */
    bool renewing;             /* a call is out */
    bool fresh_key;            /* the renewal to come makes a new key */
    bool want_move;            /* our certificate is newer than the connection */
    int64_t renew_us, move_us; /* wall time when each is due */
    int64_t files_us;
    unsigned failures;
};

static const struct agent_config *conf(const struct identity *id)
{
    return id->cfg.config;
}

static int64_t now_us(const struct identity *id)
{
    return clock_wall_us(id->cfg.clock);
}

int64_t identity_renewal_us(const struct rng *rng, int64_t life_us)
{
    return life_us / 3 * 2 - (int64_t)rng_below(rng, (uint64_t)(life_us / 20) + 1);
}

/* ---- files ---- */

static void next_of(const char *path, char out[4300])
{
    snprintf(out, 4300, "%s.next", path);
}

static int64_t newest(const struct identity *id)
{
    const char *const v[] = {conf(id)->ca_file, conf(id)->cert_file, conf(id)->key_file, conf(id)->crl_file};
    struct stat st;
    int64_t at = 0;
    for (size_t i = 0; i < sizeof v / sizeof *v; i++)
        if (v[i] && stat(v[i], &st) == 0) {
            int64_t t = st.st_mtim.tv_sec * 1000000ll + st.st_mtim.tv_nsec / 1000;
            at = t > at ? t : at;
        }
    return at;
}

static int make_context(struct identity *id, const char *ca_file, struct tls_ctx **out, struct err *e)
{
    const struct agent_config *c = conf(id);
    const struct tls_cfg cfg = {.ca_file = ca_file,
                                .cert_file = c->cert_file,
                                .key_file = c->key_file,
                                .trust_domain = c->trust_domain,
                                .ciphers = c->ciphers,
                                .groups = c->groups,
                                .crl_file = c->crl_file,
                                .rules = id->rules};
    int rc = tls_ctx_new(out, &cfg, id->cfg.clock, e);
    if (rc < 0)
        return rc;
    const struct tls_identity *self = tls_ctx_self(*out);
    if (self->kind == TLS_NODE && strcmp(self->name, c->node) == 0)
        return ST_OK;
    rc = err_reason(e, ST_ETRUST, "WRONG_IDENTITY",
                    "the certificate %s is for %s, but this node is configured as node/%s", c->cert_file,
                    self->principal, c->node);
    tls_ctx_unref(*out);
    *out = NULL;
    return rc;
}

/* A new key was put in place and then we died: its certificate lies beside it. */
static int load_context(struct identity *id, struct tls_ctx **out, struct err *e)
{
    char next[4300];
    int rc = make_context(id, conf(id)->ca_file, out, e);
    next_of(conf(id)->cert_file, next);
    if (rc == ST_OK || strcmp(e->reason, "KEY_MISMATCH") || !fs_exists(next))
        return rc;
    LOG_W(id->cfg.log, "identity", "finishing a replacement of key and certificate that was cut short");
    if (rename(next, conf(id)->cert_file) < 0)
        return rc;
    return make_context(id, conf(id)->ca_file, out, e);
}

static void use(struct identity *id, struct tls_ctx *fresh)
{
    const struct tls_identity *self = tls_ctx_self(fresh);
    tls_ctx_unref(id->tls);
    id->tls = fresh;
    id->files_us = newest(id);
    id->failures = 0;
    id->renew_us =
        self->not_before_us + identity_renewal_us(id->cfg.rng, self->not_after_us - self->not_before_us);
    if (id->control)
        id->cfg.on_context(fresh, id->cfg.arg);
}

/* ---- what the coordinator told ---- */

static int kind_of(const char *word)
{
    for (int k = TLS_REVOKED_SERIAL; k <= TLS_REVOKED_KEY; k++)
        if (!strcmp(word, tls_revoked_name((enum tls_revoked)k)))
            return k;
    return -1;
}

static int apply_rules(struct identity *id, const Strata__V1__TrustUpdate *u)
{
    uint8_t sha[32];
    int rc = ST_OK;
    tls_rules_clear(id->rules);
    for (unsigned i = 0; i < conf(id)->npins && rc == ST_OK; i++)
        if (tls_pin_parse(conf(id)->pins[i].sha256, sha, NULL) == ST_OK)
            rc = tls_rules_pin(id->rules, conf(id)->pins[i].peer, sha);
    for (size_t i = 0; u && i < u->n_revoked && rc == ST_OK; i++) {
        int k = kind_of(u->revoked[i]->kind);
        if (k >= 0)
            rc = tls_rules_revoke(id->rules, (enum tls_revoked)k, u->revoked[i]->value);
    }
    for (size_t i = 0; u && i < u->n_pins && rc == ST_OK; i++)
        if (u->pins[i]->sha256.len == 32 && strlen(u->pins[i]->subject) < 80)
            rc = tls_rules_pin(id->rules, u->pins[i]->subject, u->pins[i]->sha256.data);
    return rc;
}

static int trust_path(const struct identity *id, char out[4300], struct err *e)
{
    if (fs_join(out, 4300, conf(id)->state_dir, "trust.pb") < 0)
        return err_set(e, ST_ELIMIT, "the path of state.dir is too long");
    return ST_OK;
}

static int load_trust(struct identity *id, struct err *e)
{
    char path[4300];
    struct buf b = {0};
    Strata__V1__TrustUpdate *u = NULL;
    int rc = trust_path(id, path, e);
    if (rc == ST_OK && fs_exists(path) && (rc = fs_read(path, MAX_TRUST, &b, e)) == ST_OK &&
        !(u = strata__v1__trust_update__unpack(NULL, b.len, b.data)))
        rc = err_set(e, ST_ECORRUPT,
                     "%s cannot be read: remove it, the coordinator tells anew what is revoked", path);
    if (rc == ST_OK && apply_rules(id, u) < 0)
        rc = err_set(e, ST_ENOMEM, "no memory for the revocations");
    if (u)
        strata__v1__trust_update__free_unpacked(u, NULL);
    buf_fini(&b);
    return rc;
}

static int save_trust(struct identity *id, const Strata__V1__TrustUpdate *u, struct err *e)
{
    char path[4300];
    struct buf b = {0};
    Strata__V1__TrustUpdate lean = *u; /* the rest has files of its own, or counts once */
    lean.ca = lean.ticket_public_key = (ProtobufCBinaryData){0};
    lean.renew = lean.fresh_key = false;
    size_t n = strata__v1__trust_update__get_packed_size(&lean);
    int rc = trust_path(id, path, e);
    if (rc == ST_OK && n > MAX_TRUST)
        rc = err_set(e, ST_ELIMIT, "the list of revocations is too long");
    if (rc == ST_OK && buf_reserve(&b, n + 1) < 0)
        rc = err_set(e, ST_ENOMEM, "no memory for the list of revocations");
    if (rc == ST_OK && (rc = fs_mkdirs(conf(id)->state_dir, 0700, e)) == ST_OK) {
        b.len = strata__v1__trust_update__pack(&lean, b.data);
        rc = fs_write_atomic(path, b.data, b.len, 0600, e);
    }
    buf_fini(&b);
    return rc;
}

/* Tried first: with a bundle that does not lead to our own certificate, or to the coordinator's, nobody would
 * hear from this node again. */
static int take_bundle(struct identity *id, const ProtobufCBinaryData *ca, struct err *e)
{
    char next[4300];
    struct buf b = {0};
    struct tls_ctx *fresh = NULL;
    int rc = fs_read(conf(id)->ca_file, MAX_BUNDLE, &b, e);
    bool same = rc == ST_OK && b.len == ca->len && !memcmp(b.data, ca->data, ca->len);
    buf_fini(&b);
    if (rc < 0 || same)
        return rc;
    if (ca->len > MAX_BUNDLE)
        return err_set(e, ST_ELIMIT, "the CA's bundle is too long");
    next_of(conf(id)->ca_file, next);
    if ((rc = fs_write_atomic(next, ca->data, ca->len, 0644, e)) < 0)
        return rc;
    if (make_context(id, next, &fresh, e) < 0) {
        unlink(next);
        char why[600];
        str_copy(why, sizeof why, e->text);
        return err_reason(e, ST_ECONFLICT, "CUT_OFF", "the new CA bundle would cut this node off: %.400s",
                          why);
    }
    if (rename(next, conf(id)->ca_file) < 0) {
        tls_ctx_unref(fresh);
        return err_set(e, ST_EIO, "cannot replace %s", conf(id)->ca_file);
    }
    LOG_I(id->cfg.log, "identity", "the CA bundle was replaced");
    int64_t due = id->renew_us;
    use(id, fresh);
    id->renew_us = due;
    return ST_OK;
}

int identity_update(struct identity *id, const Strata__V1__TrustUpdate *u, uint8_t ca_sha256[32],
                    struct err *e)
{
    struct buf b = {0};
    int rc = save_trust(id, u, e);
    if (rc < 0)
        return rc;
    if (apply_rules(id, u) < 0)
        return err_set(e, ST_ENOMEM, "no memory for the revocations");
    id->own_ca = u->own_ca;
    if (u->ticket_public_key.len == TICKET_PUB_LEN)
        id->cfg.on_ticket_key(u->ticket_public_key.data, id->cfg.arg);
    if (u->own_ca && u->ca.len && (rc = take_bundle(id, &u->ca, e)) < 0)
        return rc;
    if (u->renew) { /* spread over a second or two: many are told at once */
        id->renew_us = now_us(id) + (int64_t)rng_below(id->cfg.rng, 1500000);
        id->fresh_key = u->fresh_key;
    }
    rc = fs_read(conf(id)->ca_file, MAX_BUNDLE, &b, e);
    if (rc == ST_OK)
        SHA256(b.data, b.len, ca_sha256);
    buf_fini(&b);
    return rc;
}

/* ---- renewal ---- */

static void later(struct identity *id, const char *why)
{
    int64_t left = tls_ctx_self(id->tls)->not_after_us - now_us(id);
    /* Sooner than what is left, sixteen times at least, and not all nodes at once. */
    int64_t wait = left > 0 ? left / 16 : 1000000;
    if (id->failures < 6 && wait > (1000000ll << id->failures))
        wait = 1000000ll << id->failures;
    if (wait > 3600 * 1000000ll)
        wait = 3600 * 1000000ll;
    id->failures++;
    id->renew_us = now_us(id) + wait / 2 + (int64_t)rng_below(id->cfg.rng, (uint64_t)wait / 2 + 1);
    LOG_W(id->cfg.log, "identity", "not renewed left_s=%" PRId64 " why=\"%s\"", left / 1000000, why);
}

static void move(struct identity *id)
{
    struct err e;
    if (control_move(id->control, &e) == ST_OK)
        id->want_move = false;
}

static int take_certificate(struct identity *id, const Strata__V1__RenewReply *r, bool fresh_key,
                            struct err *e)
{
    char key[4300], crt[4300];
    struct tls_ctx *fresh = NULL;
    int rc;
    next_of(conf(id)->key_file, key);
    next_of(conf(id)->cert_file, crt);
    if (fresh_key) {
        if ((rc = fs_write_atomic(crt, r->certificate.data, r->certificate.len, 0644, e)) < 0)
            return rc;
        if (rename(key, conf(id)->key_file) < 0 || rename(crt, conf(id)->cert_file) < 0)
            return err_set(e, ST_EIO, "cannot replace %s", conf(id)->key_file);
    } else if ((rc = fs_write_atomic(conf(id)->cert_file, r->certificate.data, r->certificate.len, 0644, e)) <
               0) {
        return rc;
    }
    if ((rc = load_context(id, &fresh, e)) < 0)
        return rc;
    use(id, fresh);
    LOG_I(id->cfg.log, "identity", "renewed serial=%s", tls_ctx_self(fresh)->serial);
    id->want_move = true;
    return ST_OK;
}

static void renew_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct identity *id = arg;
    struct err e = {0};
    (void)call;
    if (take_certificate(id, (const Strata__V1__RenewReply *)msg, id->fresh_key, &e) < 0)
        later(id, e.text);
    id->fresh_key = false;
}

static void renew_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct identity *id = arg;
    (void)call, (void)digest;
    id->renewing = false;
    if (st->code)
        later(id, st->text);
    else if (id->want_move)
        move(id);
}

static const struct rpc_call_ops renew_ops = {.on_message = renew_message, .on_done = renew_done};

static void renew(struct identity *id, struct rpc_session *s)
{
    char key[4300];
    struct buf csr = {0};
    struct err e = {0};
    struct rpc_call *call;
    const struct rpc_call_opts o = {.timeout_ns = RENEW_NS};
    Strata__V1__RenewRequest q = STRATA__V1__RENEW_REQUEST__INIT;
    next_of(conf(id)->key_file, key);
    const char *use_key = id->fresh_key ? key : conf(id)->key_file;
    int rc = id->fresh_key ? tls_key_make(key, true, &e) : ST_OK;
    if (rc == ST_OK)
        rc = tls_csr_make(use_key, tls_ctx_self(id->tls)->spiffe, &csr, &e);
    q.csr = (ProtobufCBinaryData){csr.len, csr.data};
    if (rc == ST_OK)
        rc = rpc_call(&call, s, &strata__v1__certs__descriptor, "Renew", RPC_UNARY, &q.base, &o, &renew_ops,
                      id, &e);
    buf_fini(&csr);
    if (rc < 0)
        later(id, e.text);
    else
        id->renewing = true;
}

/* ---- files of an external CA ---- */

static void announce_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest,
                          void *arg)
{
    struct identity *id = arg;
    (void)call, (void)digest;
    if (st->code)
        LOG_W(id->cfg.log, "identity", "the next key was not announced why=\"%s\"", st->text);
    move(id);
}

static const struct rpc_call_ops announce_ops = {.on_done = announce_done};

static void files_changed(struct identity *id)
{
    struct tls_ctx *fresh = NULL;
    struct err e = {0};
    struct rpc_call *call;
    const struct rpc_call_opts o = {.timeout_ns = RENEW_NS};
    Strata__V1__AnnounceRequest q = STRATA__V1__ANNOUNCE_REQUEST__INIT;
    id->files_us = newest(id);
    if (load_context(id, &fresh, &e) < 0) {
        LOG_W(id->cfg.log, "identity",
              "the TLS files changed and are not right; the old ones stay in use: %s", e.text);
        return;
    }
    bool other_key = memcmp(tls_ctx_self(fresh)->spki_sha256, tls_ctx_self(id->tls)->spki_sha256, 32) != 0;
    LOG_I(id->cfg.log, "identity", "the TLS files changed serial=%s", tls_ctx_self(fresh)->serial);
    use(id, fresh);
    id->want_move = true;
    q.spki_sha256 = (ProtobufCBinaryData){32, (uint8_t *)tls_ctx_self(fresh)->spki_sha256};
    struct rpc_session *s = control_session(id->control);
    if (!other_key || !s ||
        rpc_call(&call, s, &strata__v1__certs__descriptor, "Announce", RPC_UNARY, &q.base, &o, &announce_ops,
                 id, &e) < 0)
        move(id);
}

/* ---- the clock ---- */

static void check(struct identity *id)
{
    int64_t now = now_us(id);
    struct rpc_session *s = control_session(id->control);
    id->cfg.on_check(id->cfg.arg);
    if (newest(id) != id->files_us)
        files_changed(id);
    if (s && id->own_ca && !id->renewing && now >= id->renew_us)
        renew(id, s);
    else if (!id->own_ca && now >= id->renew_us && tls_ctx_self(id->tls)->not_after_us > now) {
        LOG_W(id->cfg.log, "identity", "the certificate ends in s=%" PRId64 " and is not ours to renew",
              (tls_ctx_self(id->tls)->not_after_us - now) / 1000000);
        id->renew_us = now + (tls_ctx_self(id->tls)->not_after_us - now) / 4 + 1000000;
    }
    if (s && (id->want_move || now >= id->move_us)) {
        const struct tls_identity *peer = rpc_session_peer(s);
        id->move_us = now + (peer->not_after_us - now) / 4 + 500000; /* if it shows the old one again */
        move(id);
    }
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    check(arg);
}

void identity_registered(struct identity *id)
{
    struct rpc_session *s = control_session(id->control);
    if (!s)
        return;
    /* The coordinator renews its own at two thirds too; we come back a little after that. */
    const struct tls_identity *peer = rpc_session_peer(s);
    int64_t life = peer->not_after_us - peer->not_before_us;
    int64_t due = peer->not_after_us - life / 3 + (int64_t)rng_below(id->cfg.rng, (uint64_t)(life / 10) + 1);
    if (due > now_us(id))
        id->move_us = due;
}

void identity_start(struct identity *id, struct control *c)
{
    const struct timeval tv = {0, CHECK_US};
    id->control = c;
    if (event_add(id->timer, &tv) < 0)
        LOG_E(id->cfg.log, "identity", "no timer; the certificate will not be renewed");
}

int identity_new(struct identity **out, const struct identity_cfg *cfg, struct err *e)
{
    struct identity *id = calloc(1, sizeof *id);
    if (!id)
        return err_set(e, ST_ENOMEM, "no memory for the node's identity");
    id->cfg = *cfg;
    id->move_us = INT64_MAX;
    struct tls_ctx *first = NULL;
    int rc = tls_rules_new(&id->rules, cfg->rng);
    if (rc == ST_OK && !(id->timer = event_new(cfg->base, -1, EV_PERSIST, on_timer, id)))
        rc = ST_ENOMEM;
    if (rc < 0)
        err_set(e, rc, "no memory for the node's identity");
    else if ((rc = load_trust(id, e)) == ST_OK && (rc = load_context(id, &first, e)) == ST_OK)
        use(id, first);
    if (rc < 0) {
        identity_free(id);
        return rc;
    }
    *out = id;
    return ST_OK;
}

void identity_free(struct identity *id)
{
    if (!id)
        return;
    if (id->timer)
        event_free(id->timer);
    tls_ctx_unref(id->tls);
    tls_rules_unref(id->rules);
    free(id);
}

struct tls_ctx *identity_tls(struct identity *id)
{
    return id->tls;
}
