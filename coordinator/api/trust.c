/* Life of the trust room: its files, its socket, what live connections are held to, and telling the agents.
 */
#include "coordinator/api/trust.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/fs.h"
#include "common/base/map.h"
#include "common/base/str.h"
#include "common/ticket/ticket.h"
#include "strata/v1/enroll.pb-c.h"

#define TELL_NS (10 * NS_PER_S)
#define MAX_BUNDLE (256u << 10)
#define CHECK_NS (NS_PER_S / 2)
#define RENEWALS_PER_S 50 /* that we ask agents for */
#define DOOR_NS (5 * NS_PER_S)

struct files {
    char ca[1024], crt[1024], key[1024];
};

static int files_of(const struct coord *c, struct files *f, struct err *e)
{
    if (fs_join(f->ca, sizeof f->ca, c->cfg.tls_dir, "ca.crt") < 0 ||
        fs_join(f->crt, sizeof f->crt, c->cfg.tls_dir, "coordinator.crt") < 0 ||
        fs_join(f->key, sizeof f->key, c->cfg.tls_dir, "coordinator.key") < 0)
        return err_set(e, ST_ELIMIT, "path too long: %s", c->cfg.tls_dir);
    return ST_OK;
}

static struct tls_cfg tls_cfg_of(const struct trust *t, const struct files *f)
{
    const struct coord_config *cfg = &t->c->cfg;
    return (struct tls_cfg){.ca_file = f->ca,
                            .cert_file = f->crt,
                            .key_file = f->key,
                            .trust_domain = cfg->trust_domain,
                            .ciphers = cfg->tls_ciphers,
                            .groups = cfg->tls_groups,
                            .crl_file = cfg->tls_crl,
                            .rules = t->rules};
}

static int64_t newest(const struct trust *t)
{
    struct files f;
    struct stat st;
    int64_t at = 0;
    if (files_of(t->c, &f, NULL) < 0)
        return 0;
    const char *const v[] = {f.ca, f.crt, f.key, t->c->cfg.tls_crl};
    for (size_t i = 0; i < sizeof v / sizeof *v; i++)
        if (v[i] && stat(v[i], &st) == 0 && st.st_mtim.tv_sec * 1000000ll + st.st_mtim.tv_nsec / 1000 > at)
            at = st.st_mtim.tv_sec * 1000000ll + st.st_mtim.tv_nsec / 1000;
    return at;
}

static int make_context(struct trust *t, struct tls_ctx **out, struct err *e)
{
    struct files f;
    int rc = files_of(t->c, &f, e);
    if (rc < 0)
        return rc;
    const struct tls_cfg cfg = tls_cfg_of(t, &f);
    rc = tls_ctx_new(out, &cfg, t->c->clock, e);
    if (rc == ST_OK && tls_ctx_self(*out)->kind != TLS_COORDINATOR) {
        rc = err_set(e, ST_ETRUST, "%s is the certificate of %s, not of a coordinator", f.crt,
                     tls_ctx_self(*out)->principal);
        tls_ctx_unref(*out);
        *out = NULL;
    }
    return rc;
}

int64_t trust_backdate_us(const struct coord *c)
{
    return c->cfg.leaf_ttl_us / 10 < 300000000 ? c->cfg.leaf_ttl_us / 10 : 300000000;
}

/* When our certificate is to be replaced: at two thirds of its life, by jitter a little earlier. */
static void plan_renewal(struct trust *t)
{
    const struct tls_identity *self = tls_ctx_self(t->c->tls);
    int64_t now = clock_wall_us(t->c->clock), life = self->not_after_us - self->not_before_us;
    int64_t due = self->not_after_us - life / 3 - (int64_t)rng_below(t->c->rng, (uint64_t)(life / 20) + 1);
    t->renew_ns = clock_ns(t->c->clock) + (due > now ? (uint64_t)(due - now) * NS_PER_US : 0);
}

/* Development: a CA and a certificate made on the spot, for one machine. */
static int make_development(struct trust *t, struct err *e)
{
    struct coord *c = t->c;
    struct files f;
    struct tls_ca *ca = NULL;
    int rc = files_of(c, &f, e);
    if (rc < 0 || fs_exists(f.crt))
        return rc;
    if (!c->cfg.ca_dir)
        return err_set(e, ST_ECONFIG, "tls.mode development needs ca.dir, where the CA is to be made");
    int64_t now = clock_wall_us(c->clock);
    const struct tls_issue w = {.kind = TLS_COORDINATOR,
                                .not_before_us = now - trust_backdate_us(c),
                                .not_after_us = now + 30 * 86400000000ll};
    char crt[1024];
    struct buf b = {0};
    if ((rc = tls_ca_create(c->cfg.ca_dir, c->cfg.trust_domain, 30, c->clock, e)) < 0 && rc != ST_EEXIST)
        return rc;
    if ((rc = tls_ca_load(&ca, c->cfg.ca_dir, e)) == ST_OK &&
        (rc = fs_mkdirs(c->cfg.tls_dir, 0700, e)) == ST_OK &&
        (rc = tls_ca_issue(ca, &w, f.crt, f.key, e)) == ST_OK &&
        (rc = fs_join(crt, sizeof crt, c->cfg.ca_dir, "ca.crt")) == ST_OK &&
        (rc = fs_read(crt, MAX_BUNDLE, &b, e)) == ST_OK)
        rc = fs_write_atomic(f.ca, b.data, b.len, 0644, e);
    tls_ca_free(ca);
    buf_fini(&b);
    return rc;
}

int trust_new(struct coord *c, struct err *e)
{
    struct trust *t = calloc(1, sizeof *t);
    int rc;
    if (!t)
        return err_set(e, ST_ENOMEM, "no memory");
    c->trust = t;
    t->c = c;
    if (tls_rules_new(&t->rules, c->rng) < 0 || map_new(&t->tokens, c->rng) < 0 ||
        map_new(&t->certs, c->rng) < 0 || map_new(&t->revoked, c->rng) < 0 || map_new(&t->pins, c->rng) < 0 ||
        map_new(&t->sources, c->rng) < 0)
        return err_set(e, ST_ENOMEM, "no memory");
    tls_rules_pools(t->rules, trust_pool_of, t);
    if (c->cfg.development) {
        LOG_W(&c->log, "tls",
              "DEVELOPMENT MODE: a CA made on the spot, its key in the open; not for production");
        if ((rc = make_development(t, e)) < 0)
            return rc;
    }
    t->files_us = newest(t);
    if ((rc = make_context(t, &c->tls, e)) < 0)
        return rc;
    plan_renewal(t);
    return ST_OK;
}

static int read_bundle(struct trust *t, struct err *e)
{
    struct files f;
    int rc = files_of(t->c, &f, e);
    t->bundle.len = 0;
    return rc < 0 ? rc : fs_read(f.ca, MAX_BUNDLE, &t->bundle, e);
}

static int config_pins(struct trust *t, struct err *e)
{
    uint8_t sha[32];
    for (unsigned i = 0; i < t->c->cfg.npins; i++) {
        const struct config_pin *p = &t->c->cfg.pins[i];
        int rc = tls_pin_parse(p->sha256, sha, e);
        if (rc == ST_OK && tls_rules_pin(t->rules, p->peer, sha) < 0)
            rc = err_set(e, ST_ENOMEM, "no memory");
        if (rc < 0)
            return rc;
    }
    return ST_OK;
}

int trust_load(struct trust *t, struct err *e)
{
    int rc;
    if ((rc = trust_records_load(t, e)) < 0 || (rc = read_bundle(t, e)) < 0 || (rc = config_pins(t, e)) < 0)
        return rc;
    return t->c->cfg.ca_dir ? tls_ca_load_for(&t->ca, t->c->cfg.ca_dir, t->c->cfg.trust_domain, e) : ST_OK;
}

/* ---- the socket of service Enroll ---- */

static void enroll_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    (void)s, (void)why, (void)arg;
}

static void enroll_up(struct quic_conn *conn, void *arg)
{
    static const struct rpc_session_ops ops = {.on_closed = enroll_closed};
    struct trust *t = arg;
    struct rpc_session *s;
    const struct rpc_cfg rc = {.base = t->c->base,
                               .clock = t->c->clock,
                               .log = &t->c->log,
                               .table = t->enroll_table,
                               .max_inbound_calls = 1};
    if (rpc_accept(&s, &rc, conn, &ops, t) < 0)
        quic_conn_close(conn, 0x10d, "out of memory");
}

static void enroll_stream(struct quic_conn *conn, struct quic_stream *s, void *arg)
{
    (void)conn, (void)arg;
    quic_stream_reset(s, 0x10d);
}

static void enroll_refused(struct quic_conn *conn, const struct quic_close *why, void *arg)
{
    (void)conn, (void)why, (void)arg;
}

static const struct quic_conn_ops enroll_ops = {
    .on_up = enroll_up, .on_stream = enroll_stream, .on_closed = enroll_refused};

static int enroll_context(struct trust *t, struct err *e)
{
    struct files f;
    struct tls_ctx *fresh;
    int rc = files_of(t->c, &f, e);
    if (rc < 0)
        return rc;
    struct tls_cfg cfg = tls_cfg_of(t, &f);
    cfg.rules = NULL;
    if ((rc = tls_enroll_server_new(&fresh, &cfg, t->c->clock, e)) < 0)
        return rc;
    tls_ctx_unref(t->enroll_tls);
    t->enroll_tls = fresh;
    if (t->enroll_ep)
        quic_ep_set_tls(t->enroll_ep, fresh);
    return ST_OK;
}

int trust_listen(struct trust *t, struct err *e)
{
    static const ProtobufCServiceDescriptor *const services[] = {&strata__v1__enroll__descriptor};
    static const struct rpc_method methods[] = {{"strata.v1.Enroll", "Join", RPC_UNARY, enroll_join_handler}};
    struct coord *c = t->c;
    int rc;
    if (!c->cfg.enroll_listen)
        return ST_OK;
    if ((rc = rpc_table_new(&t->enroll_table, services, 1, methods, 1, t, e)) < 0 ||
        (rc = enroll_context(t, e)) < 0)
        return rc;
    struct quic_ep_cfg ec = {.clock = c->clock,
                             .rng = c->rng,
                             .log = &c->log,
                             .tls = t->enroll_tls,
                             .accept = true,
                             .accept_ops = &enroll_ops,
                             .accept_arg = t};
    quic_limits_control(&ec.limits);
    /* Strangers: few, short, and never in the way of those who are known. */
    ec.limits.max_conns = 128;
    ec.limits.max_conns_per_addr = 32;
    ec.limits.max_handshakes = 16;
    ec.limits.max_streams = 1;
    ec.limits.idle_ns = 5 * NS_PER_S;
    c->rng->fill(c->rng->arg, ec.reset_secret, sizeof ec.reset_secret);
    t->bucket_ns = clock_ns(c->clock);
    t->bucket = 4.0 * c->cfg.enroll_rate;
    rc = quic_udp_new(&t->enroll_udp, &t->enroll_ep, c->base, 0, c->cfg.enroll_listen, &ec, e);
    if (rc == ST_OK)
        LOG_I(&c->log, "enroll", "listening port=%u", quic_udp_port(t->enroll_udp));
    return rc;
}

static int free_source(const void *key, size_t n, void *value, void *arg)
{
    (void)key, (void)n, (void)arg;
    free(value);
    return 0;
}

void trust_free(struct trust *t)
{
    if (!t)
        return;
    rpc_table_free(t->enroll_table);
    tls_ctx_unref(t->enroll_tls);
    tls_ca_free(t->ca);
    trust_records_free(t->tokens);
    trust_records_free(t->certs);
    trust_records_free(t->revoked);
    trust_records_free(t->pins);
    if (t->sources)
        map_each(t->sources, free_source, NULL);
    map_free(t->sources);
    buf_fini(&t->bundle);
    if (t->rules)
        tls_rules_pools(t->rules, NULL, NULL);
    tls_rules_unref(t->rules);
    free(t);
}

static void tell_due(struct trust *t, uint64_t now);

/* ---- our own files ---- */

int trust_reload(struct trust *t, struct err *e)
{
    struct tls_ctx *fresh = NULL;
    int rc = make_context(t, &fresh, e);
    if (rc < 0 || (rc = read_bundle(t, e)) < 0) {
        tls_ctx_unref(fresh);
        return rc;
    }
    tls_ctx_unref(t->c->tls);
    t->c->tls = fresh;
    if (t->c->ep)
        quic_ep_set_tls(t->c->ep, fresh);
    t->files_us = newest(t);
    plan_renewal(t);
    return t->enroll_ep ? enroll_context(t, e) : ST_OK;
}

/* ---- live connections ---- */

bool trust_succeeds(struct trust *t, const struct tls_identity *old, const struct tls_identity *id)
{
    char spki[65];
    if (!memcmp(old->spki_sha256, id->spki_sha256, 32))
        return true;
    hex_encode(spki, id->spki_sha256, 32);
    const Strata__V1__Certificate *r = map_get(t->certs, id->principal, strlen(id->principal));
    return r && !strcmp(r->spki, spki);
}

unsigned trust_close_bad(struct trust *t)
{
    unsigned n = 0;
    struct err e;
    for (struct coord_session *s = t->c->sessions; s; s = s->next) {
        const struct tls_identity *id = s->rpc ? rpc_session_peer(s->rpc) : NULL;
        e = (struct err){0};
        if (!id || s->ending || tls_identity_still_good(t->c->tls, id, &e) == ST_OK)
            continue;
        char say[700];
        struct event_meta m = {0};
        event_meta_str(&m, "reason", e.reason);
        event_meta_str(&m, "serial", id->serial);
        api_event(t->c, EV_CERTIFICATE_REFUSED, EVENT_DENIED, id->principal,
                  id->kind == TLS_NODE ? id->name : NULL, event_meta_text(&m), e.text);
        event_meta_fini(&m);
        snprintf(say, sizeof say, "%s: %s", e.reason, e.text);
        LOG_W(&t->c->log, "tls", "closing principal=%s reason=%s", id->principal, e.reason);
        s->ending = true;
        rpc_session_close(s->rpc, 0x10e, say);
        n++;
    }
    return n;
}

static void door_event(struct trust *t, const char *reason, uint64_t count, const char *text)
{
    struct event_meta m = {0};
    event_meta_str(&m, "reason", reason);
    event_meta_u64(&m, "count", count);
    api_event(t->c, EV_SECURITY_HANDSHAKE_REFUSED, EVENT_DENIED, NULL, NULL, event_meta_text(&m), text);
    event_meta_fini(&m);
}

/* A flood must not become a flood of records: one of each kind at most in DOOR_NS, with the number. Who sends
 * first packets can write any address on them, so none is named. */
static void watch_door(struct trust *t, struct trust_door *d, const struct quic_ep *ep, uint64_t now)
{
    struct quic_ep_stats s;
    if (!ep || now < d->at_ns)
        return;
    quic_ep_stats(ep, &s);
    uint64_t refused = s.refused + s.retries;
    if (refused == d->refused && s.handshakes_timed_out == d->timed_out && s.handshakes_broken == d->broken)
        return;
    if (refused != d->refused)
        door_event(t, "HANDSHAKE_FLOOD", refused - d->refused,
                   "more connections were begun than are taken at once: their peers had to prove their "
                   "addresses, or were refused");
    if (s.handshakes_timed_out != d->timed_out)
        door_event(t, "HANDSHAKE_TIMEOUT", s.handshakes_timed_out - d->timed_out,
                   "connections were begun and left before their peers had proved who they are");
    if (s.handshakes_broken != d->broken)
        door_event(
            t, "HANDSHAKE_BROKEN", s.handshakes_broken - d->broken,
            "first packets came that belong to no handshake: damaged, forged, or recorded and sent again");
    *d = (struct trust_door){refused, s.handshakes_timed_out, s.handshakes_broken, now + DOOR_NS};
}

static void own_renewed(void *arg, int rc, const struct err *e)
{
    struct trust *t = arg;
    const struct tls_identity *self = tls_ctx_self(t->c->tls);
    if (rc == ST_OK) {
        LOG_I(&t->c->log, "tls", "renewed serial=%s", self->serial);
        return;
    }
    /* Again after a thirtieth of what is left, and an event each time: somebody has to look. */
    int64_t left = self->not_after_us - clock_wall_us(t->c->clock);
    t->renew_ns = clock_ns(t->c->clock) + (left > 30000000 ? (uint64_t)left / 30 : 1000000) * NS_PER_US;
    struct event_meta m = {0};
    event_meta_str(&m, "serial", self->serial);
    event_meta_i64(&m, "expires_us", self->not_after_us);
    api_event(t->c, EV_CERTIFICATE_EXPIRING, EVENT_FAILURE, "coordinator", NULL, event_meta_text(&m),
              e->text);
    event_meta_fini(&m);
}

void trust_tick(struct trust *t)
{
    uint64_t now = clock_ns(t->c->clock);
    struct err e = {0};
    tell_due(t, now);
    if (now < t->check_ns)
        return;
    t->check_ns = now + CHECK_NS;
    (void)trust_close_bad(t);
    watch_door(t, &t->main_door, t->c->ep, now);
    watch_door(t, &t->enroll_door, t->enroll_ep, now);
    int64_t at = newest(t);
    if (at != t->files_us) {
        t->files_us = at;
        if (trust_reload(t, &e) < 0)
            LOG_E(&t->c->log, "tls", "the TLS files changed and are not right; the old ones stay in use: %s",
                  e.text);
        else
            LOG_I(&t->c->log, "tls", "the TLS files changed and are in use");
    }
    if (now < t->renew_ns)
        return;
    t->renew_ns = UINT64_MAX; /* until it is over */
    if (!t->ca)
        own_renewed(t, ST_ENOTSUP,
                    &(struct err){.text = "the coordinator has no CA of its own: renew at yours and replace "
                                          "the files in tls.dir, they are read again"});
    else if (trust_change(t, TRUST_OWN, own_renewed, t, &e) < 0)
        own_renewed(t, e.code, &e);
}

/* ---- telling the agents ---- */

struct told {
    struct coord *c;
    char principal[80];
    uint8_t ca[32];
};

static void tell_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct told *w = arg;
    (void)call, (void)digest;
    if (st->code && st->code != 12) /* UNIMPLEMENTED: an older agent */
        LOG_W(&w->c->log, "tls", "not told principal=%s code=%u why=\"%s\"", w->principal, st->code,
              st->text);
    free(w);
}

static void tell_answer(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct told *w = arg;
    struct trust *t = w->c->trust;
    (void)call, (void)msg;
    Strata__V1__Certificate *r = map_get(t->certs, w->principal, strlen(w->principal));
    if (r)
        r->trusts_new_ca = true;
}

static const struct rpc_call_ops tell_ops = {.on_message = tell_answer, .on_done = tell_done};

void trust_tell(struct trust *t, struct coord_session *s, bool renew, bool fresh)
{
    Strata__V1__TrustUpdate u = STRATA__V1__TRUST_UPDATE__INIT;
    const struct rpc_call_opts o = {.timeout_ns = TELL_NS};
    struct told *w = calloc(1, sizeof *w);
    struct rpc_call *call;
    struct err e;
    u.ca = (ProtobufCBinaryData){t->bundle.len, t->bundle.data};
    u.revoked = (Strata__V1__Revocation **)trust_all(t->revoked, &u.n_revoked);
    u.pins = (Strata__V1__Pin **)trust_all(t->pins, &u.n_pins);
    u.ticket_public_key = (ProtobufCBinaryData){TICKET_PUB_LEN, t->c->ticket_public};
    u.renew = renew;
    u.fresh_key = fresh;
    u.own_ca = t->ca != NULL;
    if (w && u.revoked && u.pins) {
        w->c = t->c;
        str_copy(w->principal, sizeof w->principal, rpc_session_peer(s->rpc)->principal);
        if (rpc_call(&call, s->rpc, &strata__v1__trust__descriptor, "Update", RPC_UNARY, &u.base, &o,
                     &tell_ops, w, &e) == ST_OK)
            w = NULL; /* tell_done has it */
        else
            LOG_W(&t->c->log, "tls", "not told principal=%s why=\"%s\"", w->principal, e.text);
    }
    free(w);
    free(u.revoked);
    free(u.pins);
}

static bool to_be_told(const struct coord_session *s, const char *principal)
{
    return s->rpc && s->node[0] && !s->ending &&
           (!principal || !*principal || !strcmp(principal, rpc_session_peer(s->rpc)->principal));
}

unsigned trust_tell_all(struct trust *t, const char *principal, bool renew, bool fresh)
{
    unsigned n = 0;
    for (struct coord_session *s = t->c->sessions; s; s = s->next)
        if (to_be_told(s, principal)) {
            trust_tell(t, s, renew, fresh);
            n++;
        }
    return n;
}

unsigned trust_tell_in_turn(struct trust *t, const char *principal, bool renew, bool fresh)
{
    unsigned n = 0;
    uint64_t now = clock_ns(t->c->clock);
    for (struct coord_session *s = t->c->sessions; s; s = s->next)
        if (to_be_told(s, principal)) {
            s->tell_ns = now + NS_PER_S / RENEWALS_PER_S * n++;
            s->tell_renew |= renew;
            s->tell_fresh |= fresh;
        }
    return n;
}

/* Those whose turn it is. */
static void tell_due(struct trust *t, uint64_t now)
{
    for (struct coord_session *s = t->c->sessions; s; s = s->next) {
        if (!s->tell_ns || s->tell_ns > now || !to_be_told(s, NULL))
            continue;
        trust_tell(t, s, s->tell_renew, s->tell_fresh);
        s->tell_ns = 0;
        s->tell_renew = s->tell_fresh = false;
    }
}
