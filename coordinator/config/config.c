/* YAML through libcyaml into a raw struct, then validated into the one the program uses. */
#include "coordinator/config/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/conf/conf.h"

#define MAX_CONFIG_BYTES (1u << 20)

struct raw_link {
    char *from, *to, *rate, *rtt;
};
struct raw_tls {
    char *dir, *trust_domain;
};
struct raw_lease {
    char *interval, *suspect, *dead;
};
struct raw_default {
    char *rate, *rtt;
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
    struct raw_tls *tls;
    struct raw_state *state;
    struct raw_lease *lease;
    struct raw_audit *audit;
    struct raw_link *links;
    unsigned links_count;
    struct raw_default *default_link;
};

#define STR(key, type, member, opt)                                                                          \
    CYAML_FIELD_STRING_PTR(key, CYAML_FLAG_POINTER | (opt), type, member, 1, 1024)
static const cyaml_schema_field_t tls_fields[] = {
    STR("dir", struct raw_tls, dir, 0),
    STR("trust_domain", struct raw_tls, trust_domain, 0),
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
    CYAML_FIELD_MAPPING_PTR("tls", CYAML_FLAG_POINTER, struct raw, tls, tls_fields),
    CYAML_FIELD_MAPPING_PTR("state", CYAML_FLAG_POINTER, struct raw, state, state_fields),
    CYAML_FIELD_MAPPING_PTR("lease", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct raw, lease,
                            lease_fields),
    CYAML_FIELD_MAPPING_PTR("audit", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct raw, audit,
                            audit_fields),
    CYAML_FIELD_SEQUENCE("links", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct raw, links, &link_value, 0,
                         65536),
    CYAML_FIELD_MAPPING_PTR("default_link", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct raw,
                            default_link, default_fields),
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
    *c = (struct coord_config){0};
}
