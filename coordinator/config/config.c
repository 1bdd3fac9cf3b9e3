/* YAML through libcyaml into a raw struct, then validated into the one the program uses. */
#include "coordinator/config/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/conf/conf.h"
#include "common/tls/tls.h"

#define MAX_CONFIG_BYTES (1u << 20)

struct raw_link {
    char *from, *to, *rate, *rtt;
};
struct raw_pin {
    char *peer, *sha256;
};
struct raw_tls {
    char *dir, *trust_domain, *mode, *ciphers, *groups, *crl;
    bool force;
    struct raw_pin *pins;
    unsigned pins_count;
};
struct raw_ca {
    char *dir, *leaf_ttl;
};
struct raw_enroll {
    char *listen;
    int rate;
};
struct raw_lease {
    char *interval, *suspect, *dead;
};
struct raw_default {
    char *rate, *rtt;
};
struct raw_network {
    char *refresh, *settle, *stream;
    unsigned probes;
};
struct raw_state {
    char *dir;
};
struct raw_audit {
    bool echo, syslog;
    char *lines, *flush, *checkpoint, *segment_age, *keep;
    unsigned flush_rows, ring_rows, segment_rows, hot_segments;
};
struct raw {
    int version;
    char *listen, *admin, *log;
    bool listen_any;
    struct raw_tls *tls;
    struct raw_ca *ca;
    struct raw_enroll *enroll;
    struct raw_state *state;
    struct raw_lease *lease;
    struct raw_audit *audit;
    struct raw_link *links;
    unsigned links_count;
    struct raw_default *default_link;
    struct raw_network *network;
};

#define STR(key, type, member, opt)                                                                          \
    CYAML_FIELD_STRING_PTR(key, CYAML_FLAG_POINTER | (opt), type, member, 1, 1024)
static const cyaml_schema_field_t pin_fields[] = {
    STR("peer", struct raw_pin, peer, 0),
    STR("sha256", struct raw_pin, sha256, 0),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t pin_value = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct raw_pin, pin_fields),
};
static const cyaml_schema_field_t ca_fields[] = {
    STR("dir", struct raw_ca, dir, 0),
    STR("leaf_ttl", struct raw_ca, leaf_ttl, CYAML_FLAG_OPTIONAL),
    CYAML_FIELD_END,
};
static const cyaml_schema_field_t enroll_fields[] = {
    STR("listen", struct raw_enroll, listen, 0),
    CYAML_FIELD_INT("rate", CYAML_FLAG_OPTIONAL, struct raw_enroll, rate),
    CYAML_FIELD_END,
};
static const cyaml_schema_field_t tls_fields[] = {
    STR("dir", struct raw_tls, dir, 0),
    STR("trust_domain", struct raw_tls, trust_domain, 0),
    STR("mode", struct raw_tls, mode, CYAML_FLAG_OPTIONAL),
    STR("ciphers", struct raw_tls, ciphers, CYAML_FLAG_OPTIONAL),
    STR("groups", struct raw_tls, groups, CYAML_FLAG_OPTIONAL),
    STR("crl", struct raw_tls, crl, CYAML_FLAG_OPTIONAL),
    CYAML_FIELD_BOOL("force", CYAML_FLAG_OPTIONAL, struct raw_tls, force),
    CYAML_FIELD_SEQUENCE("pins", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct raw_tls, pins, &pin_value,
                         0, 10000),
    CYAML_FIELD_END,
};
static const cyaml_schema_field_t state_fields[] = {STR("dir", struct raw_state, dir, 0), CYAML_FIELD_END};
static const cyaml_schema_field_t lease_fields[] = {
    STR("interval", struct raw_lease, interval, CYAML_FLAG_OPTIONAL),
    STR("suspect", struct raw_lease, suspect, CYAML_FLAG_OPTIONAL),
    STR("dead", struct raw_lease, dead, CYAML_FLAG_OPTIONAL),
    CYAML_FIELD_END,
};
static const cyaml_schema_field_t audit_fields[] = {
    CYAML_FIELD_BOOL("echo", CYAML_FLAG_OPTIONAL, struct raw_audit, echo),
    CYAML_FIELD_BOOL("syslog", CYAML_FLAG_OPTIONAL, struct raw_audit, syslog),
    STR("lines", struct raw_audit, lines, CYAML_FLAG_OPTIONAL),
    STR("flush", struct raw_audit, flush, CYAML_FLAG_OPTIONAL),
    STR("checkpoint", struct raw_audit, checkpoint, CYAML_FLAG_OPTIONAL),
    STR("segment_age", struct raw_audit, segment_age, CYAML_FLAG_OPTIONAL),
    STR("keep", struct raw_audit, keep, CYAML_FLAG_OPTIONAL),
    CYAML_FIELD_UINT("flush_rows", CYAML_FLAG_OPTIONAL, struct raw_audit, flush_rows),
    CYAML_FIELD_UINT("ring_rows", CYAML_FLAG_OPTIONAL, struct raw_audit, ring_rows),
    CYAML_FIELD_UINT("segment_rows", CYAML_FLAG_OPTIONAL, struct raw_audit, segment_rows),
    CYAML_FIELD_UINT("hot_segments", CYAML_FLAG_OPTIONAL, struct raw_audit, hot_segments),
    CYAML_FIELD_END,
};
static const cyaml_schema_field_t network_fields[] = {
    STR("refresh", struct raw_network, refresh, CYAML_FLAG_OPTIONAL),
    STR("settle", struct raw_network, settle, CYAML_FLAG_OPTIONAL),
    STR("stream", struct raw_network, stream, CYAML_FLAG_OPTIONAL),
    CYAML_FIELD_UINT("probes", CYAML_FLAG_OPTIONAL, struct raw_network, probes),
    CYAML_FIELD_END,
};
static const cyaml_schema_field_t default_fields[] = {
    STR("bytes_per_s", struct raw_default, rate, 0),
    STR("rtt", struct raw_default, rtt, 0),
    CYAML_FIELD_END,
};
static const cyaml_schema_field_t link_fields[] = {
    STR("from", struct raw_link, from, 0),
    STR("to", struct raw_link, to, 0),
    STR("bytes_per_s", struct raw_link, rate, 0),
    STR("rtt", struct raw_link, rtt, 0),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t link_value = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct raw_link, link_fields),
};
static const cyaml_schema_field_t top_fields[] = {
    CYAML_FIELD_INT("version", CYAML_FLAG_DEFAULT, struct raw, version),
    STR("listen", struct raw, listen, 0),
    STR("admin", struct raw, admin, CYAML_FLAG_OPTIONAL),
    STR("log", struct raw, log, CYAML_FLAG_OPTIONAL),
    CYAML_FIELD_BOOL("listen_any", CYAML_FLAG_OPTIONAL, struct raw, listen_any),
    CYAML_FIELD_MAPPING_PTR("tls", CYAML_FLAG_POINTER, struct raw, tls, tls_fields),
    CYAML_FIELD_MAPPING_PTR("ca", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct raw, ca, ca_fields),
    CYAML_FIELD_MAPPING_PTR("enroll", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct raw, enroll,
                            enroll_fields),
    CYAML_FIELD_MAPPING_PTR("state", CYAML_FLAG_POINTER, struct raw, state, state_fields),
    CYAML_FIELD_MAPPING_PTR("lease", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct raw, lease,
                            lease_fields),
    CYAML_FIELD_MAPPING_PTR("audit", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct raw, audit,
                            audit_fields),
    CYAML_FIELD_SEQUENCE("links", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct raw, links, &link_value, 0,
                         65536),
    CYAML_FIELD_MAPPING_PTR("default_link", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct raw,
                            default_link, default_fields),
    CYAML_FIELD_MAPPING_PTR("network", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct raw, network,
                            network_fields),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t top = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct raw, top_fields)};

static int duration(const char *word, const char *key, const char *path, uint64_t lo, uint64_t *out,
                    struct err *e)
{
    if (!word)
        return ST_OK;
    if (parse_duration_ns(word, out) < 0 || *out < lo || *out > 3600 * NS_PER_S)
        return err_set(e, ST_ECONFIG,
                       "%s: %s: '%s' is no duration between %.3f s and 1 h; write it as 5s or 250ms", path,
                       key, word, (double)lo / 1e9);
    return ST_OK;
}

static int rate(const char *word, const char *key, const char *path, double *out, struct err *e)
{
    uint64_t v;
    if (parse_bytes(word, &v) < 0 || v == 0)
        return err_set(e, ST_ECONFIG,
                       "%s: %s: '%s' is no rate above zero; write bytes per second as 125MB or 1GiB", path,
                       key, word);
    *out = (double)v;
    return ST_OK;
}

static int take_network(struct coord_config *c, const struct raw_network *r, const char *path, struct err *e)
{
    int rc = ST_OK;
    c->net_refresh_ns = 900 * NS_PER_S;
    c->net_settle_ns = 60 * NS_PER_S;
    c->net_stream_ns = 500 * NS_PER_MS;
    c->net_probes = 20;
    if (!r)
        return ST_OK;
    if (r->refresh && !strcmp(r->refresh, "off"))
        c->net_refresh_ns = 0;
    else
        rc = duration(r->refresh, "network.refresh", path, NS_PER_S, &c->net_refresh_ns, e);
    if (rc < 0 || (rc = duration(r->settle, "network.settle", path, 0, &c->net_settle_ns, e)) < 0 ||
        (rc = duration(r->stream, "network.stream", path, 20 * NS_PER_MS, &c->net_stream_ns, e)) < 0)
        return rc;
    if (c->net_stream_ns > 60 * NS_PER_S || r->probes > 100000)
        return err_set(e, ST_ECONFIG,
                       "%s: network: a bandwidth test takes at most 60s and there are at most "
                       "100000 probes",
                       path);
    if (r->probes)
        c->net_probes = r->probes;
    return ST_OK;
}

static int take_links(struct coord_config *c, const struct raw *r, const char *path, struct err *e)
{
    int rc;
    if (r->default_link &&
        ((rc = rate(r->default_link->rate, "default_link.bytes_per_s", path, &c->default_bytes_per_s, e)) <
             0 ||
         (rc = duration(r->default_link->rtt, "default_link.rtt", path, 0, &c->default_rtt_ns, e)) < 0))
        return rc;
    c->links = calloc(r->links_count ? r->links_count : 1, sizeof *c->links);
    if (!c->links)
        return err_set(e, ST_ENOMEM, "no memory for the links of %s", path);
    for (unsigned i = 0; i < r->links_count; i++) {
        const struct raw_link *l = &r->links[i];
        struct config_link *o = &c->links[i];
        c->nlinks++;
        if ((rc = rate(l->rate, "links[].bytes_per_s", path, &o->bytes_per_s, e)) < 0 ||
            (rc = duration(l->rtt, "links[].rtt", path, 0, &o->rtt_ns, e)) < 0)
            return rc;
        o->from = strdup(l->from);
        o->to = strdup(l->to);
        if (!o->from || !o->to)
            return err_set(e, ST_ENOMEM, "no memory for the links of %s", path);
    }
    return ST_OK;
}

static int long_duration(const char *word, const char *key, const char *path, uint64_t *out, struct err *e)
{
    if (word && (parse_duration_ns(word, out) < 0 || *out < 60 * NS_PER_S))
        return err_set(e, ST_ECONFIG,
                       "%s: %s: '%s' is no duration of a minute or more; write it as 24h or 90d", path, key,
                       word);
    return ST_OK;
}

static int in_range(unsigned v, unsigned lo, unsigned hi, const char *key, const char *path, struct err *e)
{
    if (v && (v < lo || v > hi))
        return err_set(e, ST_ECONFIG, "%s: %s: %u is not between %u and %u", path, key, v, lo, hi);
    return ST_OK;
}

static int take_audit(struct config_audit *a, const struct raw_audit *r, const char *path, struct err *e)
{
    int rc;
    if ((rc = duration(r->flush, "audit.flush", path, NS_PER_MS, &a->flush_ns, e)) < 0 ||
        (rc = duration(r->checkpoint, "audit.checkpoint", path, 100 * NS_PER_MS, &a->checkpoint_ns, e)) < 0 ||
        (rc = long_duration(r->segment_age, "audit.segment_age", path, &a->segment_ns, e)) < 0 ||
        (rc = long_duration(r->keep, "audit.keep", path, &a->keep_ns, e)) < 0 ||
        (rc = in_range(r->flush_rows, 1, 100000, "audit.flush_rows", path, e)) < 0 ||
        (rc = in_range(r->ring_rows, 256, 1u << 22, "audit.ring_rows", path, e)) < 0 ||
        (rc = in_range(r->segment_rows, 1000, 100000000, "audit.segment_rows", path, e)) < 0 ||
        (rc = in_range(r->hot_segments, 1, 100, "audit.hot_segments", path, e)) < 0)
        return rc;
    a->echo = r->echo;
    a->syslog = r->syslog;
    a->flush_rows = r->flush_rows;
    a->ring_rows = r->ring_rows;
    a->segment_rows = r->segment_rows;
    a->hot_segments = r->hot_segments;
    a->lines = r->lines ? strdup(r->lines) : NULL;
    return r->lines && !a->lines ? err_set(e, ST_ENOMEM, "no memory for the configuration of %s", path)
                                 : ST_OK;
}

static bool any_address(const char *listen)
{
    return str_starts(listen, "0.0.0.0:") || str_starts(listen, "[::]:") || str_starts(listen, "*:") ||
           listen[0] == ':';
}

static int check_listen(const char *listen, const char *key, const struct raw *r, bool development,
                        const char *path, struct err *e)
{
    if (any_address(listen) && !r->listen_any)
        return err_set(e, ST_ECONFIG,
                       "%s: %s: '%s' takes connections on every address of this machine; name one, or say "
                       "listen_any: true",
                       path, key, listen);
    if (development && !r->tls->force && !str_starts(listen, "127.") && !str_starts(listen, "[::1]:") &&
        !str_starts(listen, "localhost:"))
        return err_set(e, ST_ECONFIG,
                       "%s: %s: '%s' is not this machine alone, which tls.mode development is for; use "
                       "production, or say tls.force: true",
                       path, key, listen);
    return ST_OK;
}

static int take_pins(struct coord_config *c, const struct raw_tls *r, const char *path, struct err *e)
{
    uint8_t sha[32];
    c->pins = calloc(r->pins_count ? r->pins_count : 1, sizeof *c->pins);
    if (!c->pins)
        return err_set(e, ST_ENOMEM, "no memory for the pins of %s", path);
    for (unsigned i = 0; i < r->pins_count; i++) {
        if (tls_pin_parse(r->pins[i].sha256, sha, e) < 0) {
            err_prefix(e, "%s: tls.pins", path);
            return e->code = ST_ECONFIG;
        }
        c->npins++;
        c->pins[i].peer = strdup(r->pins[i].peer);
        c->pins[i].sha256 = strdup(r->pins[i].sha256);
        if (!c->pins[i].peer || !c->pins[i].sha256)
            return err_set(e, ST_ENOMEM, "no memory for the pins of %s", path);
    }
    return ST_OK;
}

static int copy_word(const char *word, char **out, const char *path, struct err *e)
{
    *out = word ? strdup(word) : NULL;
    return word && !*out ? err_set(e, ST_ENOMEM, "no memory for the configuration of %s", path) : ST_OK;
}

#define LEAF_TTL_MIN_NS (5 * NS_PER_S)
#define LEAF_TTL_MAX_NS (398ull * 86400 * NS_PER_S)

static int take_trust(struct coord_config *c, const struct raw *r, const char *path, struct err *e)
{
    uint64_t ttl = 7ull * 86400 * NS_PER_S;
    int rc;
    if (r->tls->mode && strcmp(r->tls->mode, "production") && strcmp(r->tls->mode, "development"))
        return err_set(e, ST_ECONFIG, "%s: tls.mode: '%s' is neither production nor development", path,
                       r->tls->mode);
    c->development = r->tls->mode && !strcmp(r->tls->mode, "development");
    if (tls_settings_check(r->tls->ciphers, r->tls->groups, e) < 0)
        return err_prefix(e, "%s: tls", path);
    if (r->ca && r->ca->leaf_ttl &&
        (parse_duration_ns(r->ca->leaf_ttl, &ttl) < 0 || ttl < LEAF_TTL_MIN_NS || ttl > LEAF_TTL_MAX_NS))
        return err_set(e, ST_ECONFIG, "%s: ca.leaf_ttl: '%s' is no duration between 5 s and 398 days", path,
                       r->ca->leaf_ttl);
    c->leaf_ttl_us = (int64_t)(ttl / 1000);
    if (r->enroll && !r->ca)
        return err_set(e, ST_ECONFIG,
                       "%s: enroll needs ca.dir: whom it lets in gets a certificate from there", path);
    if (r->enroll && (r->enroll->rate < 0 || r->enroll->rate > 100000))
        return err_set(e, ST_ECONFIG, "%s: enroll.rate: want requests a second, up to 100000", path);
    c->enroll_rate = r->enroll && r->enroll->rate ? r->enroll->rate : 10;
    if ((rc = check_listen(r->listen, "listen", r, c->development, path, e)) < 0 ||
        (r->enroll &&
         (rc = check_listen(r->enroll->listen, "enroll.listen", r, c->development, path, e)) < 0))
        return rc;
    if ((rc = copy_word(r->tls->ciphers, &c->tls_ciphers, path, e)) < 0 ||
        (rc = copy_word(r->tls->groups, &c->tls_groups, path, e)) < 0 ||
        (rc = copy_word(r->tls->crl, &c->tls_crl, path, e)) < 0 ||
        (rc = copy_word(r->ca ? r->ca->dir : NULL, &c->ca_dir, path, e)) < 0 ||
        (rc = copy_word(r->enroll ? r->enroll->listen : NULL, &c->enroll_listen, path, e)) < 0)
        return rc;
    return take_pins(c, r->tls, path, e);
}

static int validate(struct coord_config *c, const struct raw *r, const char *path, struct err *e)
{
    int rc;
    if (r->version != 1)
        return err_set(e, ST_ECONFIG, "%s: version %d is not known to this program, which reads version 1",
                       path, r->version);
    if (strlen(r->tls->trust_domain) > 127 || !*r->tls->trust_domain)
        return err_set(e, ST_ECONFIG, "%s: tls.trust_domain must have 1 to 127 characters", path);
    c->heartbeat_ns = NS_PER_S;
    c->suspect_ns = 3 * NS_PER_S;
    c->lost_ns = 5 * NS_PER_S;
    c->log_level = LOG_LV_INFO;
    if (r->lease &&
        ((rc = duration(r->lease->interval, "lease.interval", path, 10 * NS_PER_MS, &c->heartbeat_ns, e)) <
             0 ||
         (rc = duration(r->lease->suspect, "lease.suspect", path, 10 * NS_PER_MS, &c->suspect_ns, e)) < 0 ||
         (rc = duration(r->lease->dead, "lease.dead", path, 10 * NS_PER_MS, &c->lost_ns, e)) < 0))
        return rc;
    if (c->suspect_ns <= c->heartbeat_ns || c->lost_ns <= c->suspect_ns)
        return err_set(e, ST_ECONFIG, "%s: lease: need interval < suspect < dead", path);
    if (r->log && log_level_parse(r->log, &c->log_level) < 0)
        return err_set(e, ST_ECONFIG, "%s: log: '%s' is none of error, warn, info, debug", path, r->log);
    if (r->audit && (rc = take_audit(&c->audit, r->audit, path, e)) < 0)
        return rc;
    if (r->admin && !str_starts(r->admin, "user/"))
        return err_set(e, ST_ECONFIG, "%s: admin: '%s' is no user; write user/NAME", path, r->admin);
    c->listen = strdup(r->listen);
    c->tls_dir = strdup(r->tls->dir);
    c->trust_domain = strdup(r->tls->trust_domain);
    c->state_dir = strdup(r->state->dir);
    c->admin = strdup(r->admin ? r->admin : "user/admin");
    if (!c->listen || !c->tls_dir || !c->trust_domain || !c->state_dir || !c->admin)
        return err_set(e, ST_ENOMEM, "no memory for the configuration of %s", path);
    if ((rc = take_trust(c, r, path, e)) < 0 || (rc = take_network(c, r->network, path, e)) < 0)
        return rc;
    return take_links(c, r, path, e);
}

int coord_config_read(struct coord_config *out, const char *path, struct err *e)
{
    void *r;
    *out = (struct coord_config){0};
    int rc = conf_read(path, MAX_CONFIG_BYTES, &top, &r, e);
    if (rc == ST_ENOENT)
        return e->code = ST_ECONFIG;
    if (rc == ST_OK)
        rc = validate(out, r, path, e);
    conf_free(&top, r);
    if (rc < 0)
        coord_config_fini(out);
    return rc;
}

void coord_config_fini(struct coord_config *c)
{
    free(c->listen);
    free(c->tls_dir);
    free(c->trust_domain);
    free(c->state_dir);
    free(c->admin);
    free(c->audit.lines);
    for (unsigned i = 0; i < c->nlinks; i++) {
        free(c->links[i].from);
        free(c->links[i].to);
    }
    free(c->links);
    for (unsigned i = 0; i < c->npins; i++) {
        free(c->pins[i].peer);
        free(c->pins[i].sha256);
    }
    free(c->pins);
    free(c->tls_ciphers);
    free(c->tls_groups);
    free(c->tls_crl);
    free(c->ca_dir);
    free(c->enroll_listen);
    *c = (struct coord_config){0};
}
