/* YAML through libcyaml into a raw struct, then validated into the one the program uses. */
#include "agent/config.h"

#include "agent/kernel/kernel.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/conf/conf.h"
#include "common/tls/tls.h"

#define MAX_CONFIG_BYTES (1u << 20)
#define MAX_MODEL_DIRS 64
#define SPOOL_MIN (64u << 10)
#define SPOOL_MAX (512u << 20)
#define KERNEL_BYTES_DEFAULT (256u << 10)
#define KERNEL_TIME_DEFAULT_NS (5ull * 1000000000)
#define KERNEL_TIME_MAX_NS (8ull * 1000000000)

struct raw_pin {
    char *peer, *sha256;
};
struct raw_tls {
    char *dir, *ca, *cert, *key, *trust_domain, *ciphers, *groups, *crl;
    struct raw_pin *pins;
    unsigned pins_count;
};
struct raw_state {
    char *dir, *spool;
};
struct raw_models {
    char **dirs;
    unsigned dirs_count;
};
struct raw_backends {
    char *cpu, *vulkan, *cuda;
};
struct raw_user_kernels {
    char *allow, *max_bytes, *time;
};
struct raw {
    int version;
    char *node, *coordinator, *listen, *advertise, *worker, *cpu_memory, *log;
    struct raw_tls *tls;
    struct raw_state *state;
    struct raw_models *models;
    struct raw_backends *backends;
    struct raw_user_kernels *user_kernels;
};

#define OPT CYAML_FLAG_OPTIONAL
#define STR(key, type, member, opt)                                                                          \
    CYAML_FIELD_STRING_PTR(key, CYAML_FLAG_POINTER | (opt), type, member, 1, 4000)
#define MAP(key, member, fields, opt)                                                                        \
    CYAML_FIELD_MAPPING_PTR(key, CYAML_FLAG_POINTER | (opt), struct raw, member, fields)

static const cyaml_schema_field_t pin_fields[] = {
    STR("peer", struct raw_pin, peer, 0),
    STR("sha256", struct raw_pin, sha256, 0),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t pin_value = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct raw_pin, pin_fields),
};
static const cyaml_schema_field_t tls_fields[] = {
    STR("dir", struct raw_tls, dir, OPT),
    STR("ca", struct raw_tls, ca, OPT),
    STR("cert", struct raw_tls, cert, OPT),
    STR("key", struct raw_tls, key, OPT),
    STR("trust_domain", struct raw_tls, trust_domain, 0),
    STR("ciphers", struct raw_tls, ciphers, OPT),
    STR("groups", struct raw_tls, groups, OPT),
    STR("crl", struct raw_tls, crl, OPT),
    CYAML_FIELD_SEQUENCE("pins", CYAML_FLAG_POINTER | OPT, struct raw_tls, pins, &pin_value, 0, 10000),
    CYAML_FIELD_END,
};
static const cyaml_schema_field_t state_fields[] = {
    STR("dir", struct raw_state, dir, 0), STR("spool", struct raw_state, spool, OPT), CYAML_FIELD_END};
static const cyaml_schema_value_t dir_value = {
    CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char *, 1, 4000),
};
static const cyaml_schema_field_t models_fields[] = {
    CYAML_FIELD_SEQUENCE("dirs", CYAML_FLAG_POINTER, struct raw_models, dirs, &dir_value, 1, MAX_MODEL_DIRS),
    CYAML_FIELD_END,
};
static const cyaml_schema_field_t backends_fields[] = {
    STR("cpu", struct raw_backends, cpu, OPT),
    STR("vulkan", struct raw_backends, vulkan, OPT),
    STR("cuda", struct raw_backends, cuda, OPT),
    CYAML_FIELD_END,
};
static const cyaml_schema_field_t user_kernels_fields[] = {
    STR("allow", struct raw_user_kernels, allow, 0),
    STR("max_bytes", struct raw_user_kernels, max_bytes, OPT),
    STR("time", struct raw_user_kernels, time, OPT),
    CYAML_FIELD_END,
};
static const cyaml_schema_field_t top_fields[] = {
    CYAML_FIELD_INT("version", CYAML_FLAG_DEFAULT, struct raw, version),
    STR("node", struct raw, node, 0),
    STR("coordinator", struct raw, coordinator, 0),
    STR("listen", struct raw, listen, OPT),
    STR("advertise", struct raw, advertise, OPT),
    STR("worker", struct raw, worker, OPT),
    STR("cpu_memory", struct raw, cpu_memory, OPT),
    STR("log", struct raw, log, OPT),
    MAP("tls", tls, tls_fields, 0),
    MAP("state", state, state_fields, 0),
    MAP("models", models, models_fields, 0),
    MAP("backends", backends, backends_fields, OPT),
    MAP("user_kernels", user_kernels, user_kernels_fields, OPT),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t top = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct raw, top_fields)};

static int backend(const char *word, const char *key, const char *path, enum agent_backend_use *out,
                   struct err *e)
{
    if (!word || strcmp(word, "auto") == 0)
        *out = AGENT_BACKEND_AUTO;
    else if (strcmp(word, "on") == 0)
        *out = AGENT_BACKEND_ON;
    else if (strcmp(word, "off") == 0)
        *out = AGENT_BACKEND_OFF;
    else
        return err_set(e, ST_ECONFIG, "%s: backends.%s: '%s' is none of auto, on, off", path, key, word);
    return ST_OK;
}

static int take_pins(struct agent_config *c, const struct raw_tls *t, const char *path, struct err *e)
{
    uint8_t sha[32];
    c->pins = calloc(t->pins_count ? t->pins_count : 1, sizeof *c->pins);
    if (!c->pins)
        return err_set(e, ST_ENOMEM, "no memory for the configuration of %s", path);
    for (unsigned i = 0; i < t->pins_count; i++) {
        if (tls_pin_parse(t->pins[i].sha256, sha, e) < 0) {
            err_prefix(e, "%s: tls.pins", path);
            return e->code = ST_ECONFIG;
        }
        c->npins++;
        c->pins[i].peer = strdup(t->pins[i].peer);
        c->pins[i].sha256 = strdup(t->pins[i].sha256);
        if (!c->pins[i].peer || !c->pins[i].sha256)
            return err_set(e, ST_ENOMEM, "no memory for the configuration of %s", path);
    }
    return ST_OK;
}

static int take_tls(struct agent_config *c, const struct raw_tls *t, const char *path, struct err *e)
{
    if (strlen(t->trust_domain) > 127)
        return err_set(e, ST_ECONFIG, "%s: tls.trust_domain must have 1 to 127 characters", path);
    bool files = t->ca && t->cert && t->key;
    if (t->dir ? t->ca || t->cert || t->key : !files)
        return err_set(
            e, ST_ECONFIG,
            "%s: tls: give either dir (holding ca.crt, node.crt, node.key) or all of ca, cert, key", path);
    char p[4200];
    if (t->dir) {
        snprintf(p, sizeof p, "%s/ca.crt", t->dir);
        c->ca_file = strdup(p);
        snprintf(p, sizeof p, "%s/node.crt", t->dir);
        c->cert_file = strdup(p);
        snprintf(p, sizeof p, "%s/node.key", t->dir);
        c->key_file = strdup(p);
    } else {
        c->ca_file = strdup(t->ca);
        c->cert_file = strdup(t->cert);
        c->key_file = strdup(t->key);
    }
    c->trust_domain = strdup(t->trust_domain);
    if (tls_settings_check(t->ciphers, t->groups, e) < 0)
        return err_prefix(e, "%s: tls", path);
    c->ciphers = t->ciphers ? strdup(t->ciphers) : NULL;
    c->groups = t->groups ? strdup(t->groups) : NULL;
    c->crl_file = t->crl ? strdup(t->crl) : NULL;
    if ((t->ciphers && !c->ciphers) || (t->groups && !c->groups) || (t->crl && !c->crl_file))
        return err_set(e, ST_ENOMEM, "no memory for the configuration of %s", path);
    return take_pins(c, t, path, e);
}

static int take_dirs(struct agent_config *c, const struct raw_models *m, const char *path, struct err *e)
{
    c->model_dirs = calloc(m->dirs_count ? m->dirs_count : 1, sizeof *c->model_dirs);
    if (!c->model_dirs)
        return err_set(e, ST_ENOMEM, "no memory for the configuration of %s", path);
    for (unsigned i = 0; i < m->dirs_count; i++) {
        if (m->dirs[i][0] != '/')
            return err_set(e, ST_ECONFIG, "%s: models.dirs: '%s' must be an absolute path", path, m->dirs[i]);
        c->model_dirs[i] = strdup(m->dirs[i]);
        c->nmodel_dirs++;
        if (!c->model_dirs[i])
            return err_set(e, ST_ENOMEM, "no memory for the configuration of %s", path);
    }
    return ST_OK;
}

/* A device counts as hung for everybody after 10 s: a user's kernel is over before. */
static int take_user_kernels(struct agent_config *c, const struct raw_user_kernels *u, const char *path,
                             struct err *e)
{
    uint64_t bytes = KERNEL_BYTES_DEFAULT;
    c->user_kernels.deadline_ns = KERNEL_TIME_DEFAULT_NS;
    if (u && strcmp(u->allow, "on") != 0 && strcmp(u->allow, "off") != 0)
        return err_set(e, ST_ECONFIG, "%s: user_kernels.allow: '%s' is neither on nor off", path, u->allow);
    if (u && u->max_bytes && (parse_bytes(u->max_bytes, &bytes) < 0 || !bytes || bytes > KERNEL_MAX_BYTES))
        return err_set(e, ST_ECONFIG, "%s: user_kernels.max_bytes: '%s' is no size up to %uKiB", path,
                       u->max_bytes, KERNEL_MAX_BYTES >> 10);
    if (u && u->time &&
        (parse_duration_ns(u->time, &c->user_kernels.deadline_ns) < 0 || !c->user_kernels.deadline_ns ||
         c->user_kernels.deadline_ns > KERNEL_TIME_MAX_NS))
        return err_set(e, ST_ECONFIG, "%s: user_kernels.time: '%s' is no time up to 8s", path, u->time);
    c->user_kernels.allow = u && strcmp(u->allow, "on") == 0;
    c->user_kernels.max_bytes = (uint32_t)bytes;
    return ST_OK;
}

static int validate(struct agent_config *c, const struct raw *r, const char *path, struct err *e)
{
    int rc;
    if (r->version != 1)
        return err_set(e, ST_ECONFIG, "%s: version %d is not known to this program, which reads version 1",
                       path, r->version);
    if (!str_ident_ok(r->node, 63))
        return err_set(e, ST_ECONFIG,
                       "%s: node: '%s' is no node name; use up to 63 letters, digits, '.', '_', '-'", path,
                       r->node);
    if (!strrchr(r->coordinator, ':'))
        return err_set(e, ST_ECONFIG, "%s: coordinator: '%s' has no port; write host:port", path,
                       r->coordinator);
    if (r->listen && !strrchr(r->listen, ':'))
        return err_set(e, ST_ECONFIG, "%s: listen: '%s' has no port; write host:port", path, r->listen);
    if (!r->advertise && r->listen && (str_starts(r->listen, "0.0.0.0:") || str_starts(r->listen, "[::]:")))
        return err_set(
            e, ST_ECONFIG,
            "%s: advertise: listen is '%s', which others cannot dial; give the host they reach this node by",
            path, r->listen);
    if (r->cpu_memory && (parse_bytes(r->cpu_memory, &c->cpu_memory_bytes) < 0 || c->cpu_memory_bytes == 0))
        return err_set(e, ST_ECONFIG, "%s: cpu_memory: '%s' is no size above zero; write it as 8GiB", path,
                       r->cpu_memory);
    if (r->state->spool && (parse_bytes(r->state->spool, &c->spool_bytes) < 0 || c->spool_bytes < SPOOL_MIN ||
                            c->spool_bytes > SPOOL_MAX))
        return err_set(e, ST_ECONFIG, "%s: state.spool: '%s' is no size from 64KiB to 512MiB", path,
                       r->state->spool);
    c->log_level = LOG_LV_INFO;
    if (r->log && log_level_parse(r->log, &c->log_level) < 0)
        return err_set(e, ST_ECONFIG, "%s: log: '%s' is none of error, warn, info, debug", path, r->log);
    const struct raw_backends none = {0}, *b = r->backends ? r->backends : &none;
    if ((rc = backend(b->cpu, "cpu", path, &c->cpu, e)) < 0 ||
        (rc = backend(b->vulkan, "vulkan", path, &c->vulkan, e)) < 0 ||
        (rc = backend(b->cuda, "cuda", path, &c->cuda, e)) < 0 || (rc = take_tls(c, r->tls, path, e)) < 0 ||
        (rc = take_dirs(c, r->models, path, e)) < 0 ||
        (rc = take_user_kernels(c, r->user_kernels, path, e)) < 0)
        return rc;
    c->node = strdup(r->node);
    c->coordinator = strdup(r->coordinator);
    c->listen = strdup(r->listen ? r->listen : "127.0.0.1:0");
    c->state_dir = strdup(r->state->dir);
    c->advertise = r->advertise ? strdup(r->advertise) : NULL;
    c->worker = r->worker ? strdup(r->worker) : NULL;
    if (!c->node || !c->coordinator || !c->listen || !c->state_dir || (r->worker && !c->worker) ||
        (r->advertise && !c->advertise) || !c->ca_file || !c->cert_file || !c->key_file || !c->trust_domain)
        return err_set(e, ST_ENOMEM, "no memory for the configuration of %s", path);
    return ST_OK;
}

int agent_config_read(struct agent_config *out, const char *path, struct err *e)
{
    void *r;
    *out = (struct agent_config){0};
    int rc = conf_read(path, MAX_CONFIG_BYTES, &top, &r, e);
    if (rc == ST_ENOENT)
        return e->code = ST_ECONFIG;
    if (rc == ST_OK)
        rc = validate(out, r, path, e);
    conf_free(&top, r);
    if (rc < 0)
        agent_config_fini(out);
    return rc;
}

void agent_config_fini(struct agent_config *c)
{
    free(c->node);
    free(c->coordinator);
    free(c->ca_file);
    free(c->cert_file);
    free(c->key_file);
    free(c->trust_domain);
    free(c->ciphers);
    free(c->groups);
    free(c->crl_file);
    for (unsigned i = 0; i < c->npins; i++) {
        free(c->pins[i].peer);
        free(c->pins[i].sha256);
    }
    free(c->pins);
    free(c->listen);
    free(c->advertise);
    free(c->state_dir);
    free(c->worker);
    for (unsigned i = 0; i < c->nmodel_dirs; i++)
        free(c->model_dirs[i]);
    free(c->model_dirs);
    *c = (struct agent_config){0};
}
