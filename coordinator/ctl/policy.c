/* policy apply|get|list|diff|remove|test, quota show, user create|list|revoke. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/buf.h"
#include "common/base/clock.h"
#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/conf/conf.h"
#include "coordinator/ctl/ctl.h"
#include "strata/v1/policies.pb-c.h"

#define FILE_BYTES_MAX (4u << 20)
#define ROLES_MAX 4
#define DEVICES_MAX 32

/* ---- policies as YAML: every value is a word, the coordinator judges most of them ---- */

struct raw_policy {
    char *principal, *quota, *node_quota, *device_quota, *expires;
    char **roles, **extra, **denied, **devices;
    unsigned roles_count, extra_count, denied_count, devices_count;
};
struct raw_file {
    int version;
    struct raw_policy *policies;
    unsigned policies_count;
};

static const cyaml_schema_value_t word = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 1, 4096)};
#define WORD(name, flags)                                                                                    \
    CYAML_FIELD_STRING_PTR(#name, CYAML_FLAG_POINTER | (flags), struct raw_policy, name, 1, 4096)
#define WORDS(name)                                                                                          \
    CYAML_FIELD_SEQUENCE(#name, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct raw_policy, name, &word, 0, \
                         64)
static const cyaml_schema_field_t policy_fields[] = {
    WORD(principal, 0),
    WORDS(roles),
    WORDS(extra),
    WORDS(denied),
    WORDS(devices),
    WORD(quota, CYAML_FLAG_OPTIONAL),
    WORD(node_quota, CYAML_FLAG_OPTIONAL),
    WORD(device_quota, CYAML_FLAG_OPTIONAL),
    WORD(expires, CYAML_FLAG_OPTIONAL),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t policy_value = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct raw_policy, policy_fields)};
static const cyaml_schema_field_t file_fields[] = {
    CYAML_FIELD_INT("version", CYAML_FLAG_DEFAULT, struct raw_file, version),
    CYAML_FIELD_SEQUENCE("policies", CYAML_FLAG_POINTER, struct raw_file, policies, &policy_value, 0, 100000),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t file_value = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct raw_file, file_fields)};

/* "2027-01-31T00:00:00Z", or a time from now such as "30d"; "never". */
static int moment(const char *w, int64_t *us)
{
    struct tm tm = {0};
    uint64_t ns;
    char z = 0;
    int n = 0;
    if (!w || !strcmp(w, "never")) {
        *us = 0;
        return ST_OK;
    }
    if (parse_duration_ns(w, &ns) == ST_OK && ns / 1000 < INT64_MAX / 2) {
        *us = clock_wall_us(clock_system()) + (int64_t)(ns / 1000);
        return ST_OK;
    }
    if (sscanf(w, "%4d-%2d-%2dT%2d:%2d:%2d%c%n", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &tm.tm_hour,
               &tm.tm_min, &tm.tm_sec, &z, &n) != 7 ||
        z != 'Z' || w[n] || tm.tm_year < 1970 || tm.tm_year > 9999 || tm.tm_mon < 1 || tm.tm_mon > 12 ||
        tm.tm_mday < 1 || tm.tm_mday > 31 || tm.tm_hour > 23 || tm.tm_min > 59 || tm.tm_sec > 60)
        return ST_EINVAL;
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    *us = (int64_t)timegm(&tm) * 1000000;
    return ST_OK;
}

static int amount(const char *w, const char *key, const char *who, protobuf_c_boolean *has, uint64_t *out,
                  struct err *e)
{
    if (!w || !strcmp(w, "unlimited"))
        return ST_OK;
    *has = true;
    if (*w == '-' || parse_bytes(w, out) < 0)
        return err_reason(e, ST_EINVAL, "SIZE", "policy of %.80s: %s: '%.60s' is no size such as 40GiB", who,
                          key, w);
    return ST_OK;
}

static int to_message(Strata__V1__Policy *m, const struct raw_policy *r, struct err *e)
{
    int rc;
    strata__v1__policy__init(m);
    m->principal = r->principal;
    m->roles = r->roles;
    m->n_roles = r->roles_count;
    m->extra = r->extra;
    m->n_extra = r->extra_count;
    m->denied = r->denied;
    m->n_denied = r->denied_count;
    m->devices = r->devices;
    m->n_devices = r->devices_count;
    if ((rc = amount(r->quota, "quota", r->principal, &m->has_quota, &m->quota_bytes, e)) < 0 ||
        (rc = amount(r->node_quota, "node_quota", r->principal, &m->has_node_quota, &m->node_quota_bytes,
                     e)) < 0 ||
        (rc = amount(r->device_quota, "device_quota", r->principal, &m->has_device_quota,
                     &m->device_quota_bytes, e)) < 0)
        return rc;
    if (moment(r->expires, &m->expires_us) < 0)
        return err_reason(
            e, ST_EINVAL, "EXPIRY",
            "policy of %.80s: expires: '%.60s' is neither 2027-01-31T00:00:00Z nor a time from now "
            "such as 30d",
            r->principal, r->expires);
    return ST_OK;
}

/* ---- printing ---- */

static json_t *strings(char *const *v, size_t n)
{
    json_t *a = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(a, json_string(v[i]));
    return a;
}

static json_t *bytes_json(bool has, uint64_t v)
{
    return has ? json_integer((json_int_t)v) : json_null();
}

static json_t *policy_json(const Strata__V1__Policy *p)
{
    char when[28] = "";
    if (p->expires_us)
        clock_rfc3339(p->expires_us, when);
    return json_pack("{s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:I,s:I,s:o,s:I}", "principal", p->principal, "roles",
                     strings(p->roles, p->n_roles), "extra", strings(p->extra, p->n_extra), "denied",
                     strings(p->denied, p->n_denied), "devices", strings(p->devices, p->n_devices),
                     "quota_bytes", bytes_json(p->has_quota, p->quota_bytes), "node_quota_bytes",
                     bytes_json(p->has_node_quota, p->node_quota_bytes), "device_quota_bytes",
                     bytes_json(p->has_device_quota, p->device_quota_bytes), "created_us",
                     (json_int_t)p->created_us, "expires_us", (json_int_t)p->expires_us, "expires",
                     p->expires_us ? json_string(when) : json_null(), "generation",
                     (json_int_t)p->generation);
}

static void join(char *const *v, size_t n, const char *none, struct buf *out)
{
    int rc = ST_OK;
    for (size_t i = 0; i < n && rc == ST_OK; i++)
        rc = buf_printf(out, "%s%s", i ? "," : "", v[i]);
    if (!n && rc == ST_OK)
        rc = buf_printf(out, "%s", none);
}

static void yaml_list(const char *key, char *const *v, size_t n)
{
    if (!n)
        return;
    printf("    %s: [", key);
    for (size_t i = 0; i < n; i++)
        printf("%s\"%s\"", i ? ", " : "", v[i]);
    puts("]");
}

static void yaml_bytes(const char *key, bool has, uint64_t v)
{
    if (has)
        printf("    %s: %llu\n", key, (unsigned long long)v);
}

/* What `policy apply -f` takes. */
static void policy_yaml(const Strata__V1__Policy *p)
{
    char when[28];
    printf("  - principal: %s\n", p->principal);
    yaml_list("roles", p->roles, p->n_roles);
    yaml_list("extra", p->extra, p->n_extra);
    yaml_list("denied", p->denied, p->n_denied);
    yaml_list("devices", p->devices, p->n_devices);
    yaml_bytes("quota", p->has_quota, p->quota_bytes);
    yaml_bytes("node_quota", p->has_node_quota, p->node_quota_bytes);
    yaml_bytes("device_quota", p->has_device_quota, p->device_quota_bytes);
    if (p->expires_us) {
        clock_rfc3339(p->expires_us, when);
        printf("    expires: \"%.19sZ\"\n", when);
    }
}

static json_t *changes_json(const Strata__V1__PolicyChanges *m)
{
    json_t *ch = json_array(), *en = json_array();
    for (size_t i = 0; i < m->n_changes; i++) {
        json_t *f = json_array();
        for (size_t k = 0; k < m->changes[i]->n_fields; k++)
            json_array_append_new(f, json_pack("{s:s,s:s,s:s}", "field", m->changes[i]->fields[k]->name,
                                               "before", m->changes[i]->fields[k]->before, "after",
                                               m->changes[i]->fields[k]->after));
        json_array_append_new(ch, json_pack("{s:s,s:s,s:o}", "principal", m->changes[i]->principal, "change",
                                            m->changes[i]->change, "fields", f));
    }
    for (size_t i = 0; i < m->n_ended; i++)
        json_array_append_new(en,
                              json_pack("{s:s,s:s,s:s,s:s}", "kind", m->ended[i]->kind, "id", m->ended[i]->id,
                                        "principal", m->ended[i]->principal, "reason", m->ended[i]->reason));
    return json_pack("{s:b,s:o,s:o,s:o}", "dry_run", (int)m->dry_run, "changes", ch, "ended", en, "notes",
                     strings(m->notes, m->n_notes));
}

static void print_changes(const struct ctl *c, const Strata__V1__PolicyChanges *m)
{
    static const struct {
        const char *word, *sign, *color;
    } kinds[] = {{"added", "+", "\033[32m"},
                 {"removed", "-", "\033[31m"},
                 {"updated", "~", "\033[33m"},
                 {"unchanged", "=", ""}};
    for (size_t i = 0; i < m->n_changes; i++) {
        const Strata__V1__PolicyChange *ch = m->changes[i];
        unsigned k = 0;
        while (k < 3 && strcmp(kinds[k].word, ch->change))
            k++;
        printf("%s%s %s %s%s\n", c->color ? kinds[k].color : "", kinds[k].sign, ch->principal, ch->change,
               c->color ? "\033[0m" : "");
        for (size_t f = 0; f < ch->n_fields; f++)
            printf("    %s: %s -> %s\n", ch->fields[f]->name,
                   *ch->fields[f]->before ? ch->fields[f]->before : "-",
                   *ch->fields[f]->after ? ch->fields[f]->after : "-");
    }
    for (size_t i = 0; i < m->n_ended; i++)
        printf("%s %s %s of %s [%s]\n", m->dry_run ? "would end" : "ends", m->ended[i]->kind, m->ended[i]->id,
               m->ended[i]->principal, m->ended[i]->reason);
    for (size_t i = 0; i < m->n_notes; i++)
        fprintf(stderr, "note: %s\n", m->notes[i]);
    if (m->dry_run)
        puts("nothing was changed");
}

static int call(struct ctl *c, const char *method, const ProtobufCMessage *q, ProtobufCMessage **out)
{
    struct strata_error e;
    int x = ctl_connect(c);
    if (x)
        return x;
    return strata_client_call(c->client, &strata__v1__policies__descriptor, method, q, c->timeout_ns, NULL,
                              out, &e) < 0
               ? ctl_client_fail(c, &e)
               : 0;
}

static int change(struct ctl *c, const char *method, const ProtobufCMessage *q)
{
    ProtobufCMessage *m;
    int x = call(c, method, q, &m);
    if (x)
        return x;
    if (c->json)
        x = ctl_print_json("strata.policy_changes.v1", changes_json((Strata__V1__PolicyChanges *)m));
    else
        print_changes(c, (Strata__V1__PolicyChanges *)m);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

/* ---- apply, diff ---- */

static int send_file(struct ctl *c, const char *path, const struct raw_file *f, bool dry, bool unknown)
{
    struct err e = {0};
    Strata__V1__Policy *v = calloc(f->policies_count + 1u, sizeof *v);
    Strata__V1__Policy **pv = calloc(f->policies_count + 1u, sizeof(*pv));
    Strata__V1__ApplyPoliciesRequest q = STRATA__V1__APPLY_POLICIES_REQUEST__INIT;
    int rc = v && pv ? ST_OK : err_set(&e, ST_ENOMEM, "out of memory"), x;
    if (rc == ST_OK && f->version != 1)
        rc = err_set(&e, ST_ECONFIG, "%s: version %d is none that this program knows; it is 1", path,
                     f->version);
    for (unsigned i = 0; i < f->policies_count && rc == ST_OK; i++) {
        rc = to_message(&v[i], &f->policies[i], &e);
        pv[i] = &v[i];
    }
    q.policies = pv;
    q.n_policies = f->policies_count;
    q.dry_run = dry;
    q.allow_unknown_devices = unknown;
    x = rc < 0 ? ctl_fail(c, &e) : change(c, "Apply", &q.base);
    free(v);
    free(pv);
    return x;
}

static int apply(struct ctl *c, int argc, char **argv, bool diff)
{
    const char *file = NULL;
    bool dry = diff, unknown = false;
    const struct ctl_opt opts[] = {{.name = "file", .value = &file},
                                   {.name = "dry-run", .flag = &dry},
                                   {.name = "allow-unknown-devices", .flag = &unknown}};
    for (int i = 0; i < argc; i++)
        if (!strcmp(argv[i], "-f"))
            argv[i] = (char *)"--file";
    int n = ctl_parse(argc, argv, opts, 3);
    if (n < 0)
        return 2;
    if (n == 1 && !file)
        file = argv[0];
    else if (n || !file)
        return ctl_misuse(c, "policy %s needs a file", diff ? "diff" : "apply");
    struct raw_file *f = NULL;
    struct err e;
    if (conf_read(!strcmp(file, "-") ? "/dev/stdin" : file, FILE_BYTES_MAX, &file_value, (void **)&f, &e) < 0)
        return ctl_fail(c, &e);
    int x = send_file(c, file, f, dry, unknown);
    conf_free(&file_value, f);
    return x;
}

int ctl_policy_apply(struct ctl *c, int argc, char **argv)
{
    return apply(c, argc, argv, false);
}

int ctl_policy_diff(struct ctl *c, int argc, char **argv)
{
    return apply(c, argc, argv, true);
}

/* ---- get, list, remove, test ---- */

int ctl_policy_get(struct ctl *c, int argc, char **argv)
{
    int n = ctl_parse(argc, argv, NULL, 0);
    if (n < 0 || n > 1)
        return ctl_misuse(c, "policy get takes at most one principal");
    Strata__V1__GetPolicyRequest q = STRATA__V1__GET_POLICY_REQUEST__INIT;
    ProtobufCMessage *m;
    if (n)
        q.principal = argv[0];
    int x = call(c, "Get", &q.base, &m);
    if (x)
        return x;
    if (c->json) {
        x = ctl_print_json("strata.policy.v1", policy_json((Strata__V1__Policy *)m));
    } else {
        puts("version: 1\npolicies:");
        policy_yaml((Strata__V1__Policy *)m);
    }
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

static void policy_row(struct table *t, const Strata__V1__Policy *p)
{
    struct buf roles = {0}, devices = {0};
    char quota[16] = "-", when[28] = "never";
    join(p->roles, p->n_roles, "-", &roles);
    join(p->devices, p->n_devices, "all", &devices);
    if (p->has_quota)
        fmt_bytes(quota, p->quota_bytes);
    if (p->expires_us)
        clock_rfc3339(p->expires_us, when);
    table_cell(t, "%s", p->principal);
    table_cell(t, "%s", buf_cstr(&roles));
    table_cell(t, "%zu", p->n_extra);
    table_cell(t, "%zu", p->n_denied);
    table_cell(t, "%s", buf_cstr(&devices));
    table_cell(t, "%s", quota);
    table_cell(t, "%.19s", when);
    table_cell(t, "%llu", (unsigned long long)p->generation);
    buf_fini(&roles);
    buf_fini(&devices);
}

static int list(struct ctl *c, const char *prefix)
{
    static const char *const col[] = {"PRINCIPAL", "ROLES",  "EXTRA>",  "DENIED>",
                                      "DEVICES",   "QUOTA>", "EXPIRES", "GENERATION>"};
    json_t *a = json_array();
    struct table *t = table_new(col, 8);
    char token[256] = "";
    int x;
    do {
        Strata__V1__ListPoliciesRequest q = STRATA__V1__LIST_POLICIES_REQUEST__INIT;
        ProtobufCMessage *m;
        q.page_token = token;
        if ((x = call(c, "List", &q.base, &m)))
            break;
        const Strata__V1__ListPoliciesReply *r = (const Strata__V1__ListPoliciesReply *)m;
        for (size_t i = 0; i < r->n_policies; i++) {
            if (!str_starts(r->policies[i]->principal, prefix))
                continue;
            json_array_append_new(a, policy_json(r->policies[i]));
            policy_row(t, r->policies[i]);
        }
        str_copy(token, sizeof token, r->next_page_token);
        protobuf_c_message_free_unpacked(m, NULL);
    } while (*token);
    if (!x && c->json)
        x = ctl_print_json("strata.policies.v1", json_pack("{s:O}", "policies", a));
    else if (!x)
        table_print(t, stdout);
    json_decref(a);
    table_free(t);
    return x;
}

int ctl_policy_list(struct ctl *c, int argc, char **argv)
{
    return ctl_parse(argc, argv, NULL, 0) ? ctl_misuse(c, "policy list takes nothing") : list(c, "");
}

int ctl_policy_remove(struct ctl *c, int argc, char **argv)
{
    bool dry = false;
    const struct ctl_opt opts[] = {{.name = "dry-run", .flag = &dry}};
    int n = ctl_parse(argc, argv, opts, 1);
    if (n < 1)
        return ctl_misuse(c, "policy remove needs principals");
    Strata__V1__RemovePoliciesRequest q = STRATA__V1__REMOVE_POLICIES_REQUEST__INIT;
    q.principals = argv;
    q.n_principals = (size_t)n;
    q.dry_run = dry;
    return change(c, "Remove", &q.base);
}

int ctl_policy_test(struct ctl *c, int argc, char **argv)
{
    const char *device = NULL, *bytes = NULL;
    const struct ctl_opt opts[] = {{.name = "device", .value = &device}, {.name = "bytes", .value = &bytes}};
    int n = ctl_parse(argc, argv, opts, 2);
    if (n != 2)
        return ctl_misuse(c, "policy test needs a principal and a permission, such as memory:allocate");
    Strata__V1__TestPolicyRequest q = STRATA__V1__TEST_POLICY_REQUEST__INIT;
    if (bytes && (*bytes == '-' || parse_bytes(bytes, &q.bytes) < 0))
        return ctl_usage("--bytes: '%s' is no size such as 4096 or 2GiB", bytes);
    ProtobufCMessage *m;
    q.principal = argv[0];
    q.permission = argv[1];
    if (device)
        q.device = (char *)device;
    int x = call(c, "Test", &q.base, &m);
    if (x)
        return x;
    const Strata__V1__TestPolicyReply *r = (const Strata__V1__TestPolicyReply *)m;
    if (c->json)
        x = ctl_print_json("strata.decision.v1",
                           json_pack("{s:b,s:s,s:s,s:s,s:I}", "allowed", (int)r->allowed, "reason", r->reason,
                                     "rule", r->rule, "text", r->text, "generation",
                                     (json_int_t)r->generation));
    else
        printf("%s [%s] rule: %s\n%s\n", r->allowed ? "allowed" : "denied", r->reason, r->rule, r->text);
    if (!x && !r->allowed)
        x = !strcmp(r->reason, "QUOTA_EXCEEDED") ? 8 : 4;
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

/* ---- quota show ---- */

int ctl_quota_show(struct ctl *c, int argc, char **argv)
{
    static const char *const col[] = {"PRINCIPAL", "WHERE", "LIMIT>", "HELD>", "ALLOCATED>"};
    bool all = false;
    const struct ctl_opt opts[] = {{.name = "all", .flag = &all}};
    int n = ctl_parse(argc, argv, opts, 1);
    if (n < 0 || n > 1)
        return ctl_misuse(c, "quota show takes at most one principal");
    Strata__V1__QuotaRequest q = STRATA__V1__QUOTA_REQUEST__INIT;
    ProtobufCMessage *m;
    if (all || n)
        q.principal = all ? (char *)"*" : argv[0];
    int x = call(c, "Quota", &q.base, &m);
    if (x)
        return x;
    const Strata__V1__QuotaReply *r = (const Strata__V1__QuotaReply *)m;
    json_t *a = json_array();
    struct table *t = table_new(col, 5);
    for (size_t i = 0; i < r->n_uses; i++) {
        const Strata__V1__QuotaUse *u = r->uses[i];
        char limit[16] = "-", held[16], used[16];
        if (u->has_limit)
            fmt_bytes(limit, u->limit_bytes);
        fmt_bytes(held, u->reserved_bytes);
        fmt_bytes(used, u->allocated_bytes);
        table_cell(t, "%s", u->principal);
        table_cell(t, "%s", u->scope);
        table_cell(t, "%s", limit);
        table_cell(t, "%s", held);
        table_cell(t, "%s", strchr(u->scope, '/') ? "-" : used);
        json_array_append_new(a, json_pack("{s:s,s:s,s:o,s:I,s:o}", "principal", u->principal, "where",
                                           u->scope, "limit_bytes", bytes_json(u->has_limit, u->limit_bytes),
                                           "held_bytes", (json_int_t)u->reserved_bytes, "allocated_bytes",
                                           bytes_json(!strchr(u->scope, '/'), u->allocated_bytes)));
    }
    if (c->json)
        x = ctl_print_json("strata.quota.v1", json_pack("{s:O}", "uses", a));
    else
        table_print(t, stdout);
    json_decref(a);
    table_free(t);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

/* ---- users: principals user/NAME and their policies ---- */

static int user_name(const char *word_, char *out, size_t cap)
{
    const char *name = str_starts(word_, "user/") ? word_ + 5 : word_;
    if (!str_ident_ok(name, 63))
        return ctl_usage("'%.60s' is no user's name: letters, digits, '.', '-', '_'", word_);
    snprintf(out, cap, "user/%s", name);
    return 0;
}

int ctl_user_create(struct ctl *c, int argc, char **argv)
{
    const char *roles[ROLES_MAX], *devices[DEVICES_MAX], *quota = NULL, *expires = NULL;
    size_t nroles = 0, ndevices = 0;
    const struct ctl_opt opts[] = {
        {.name = "role", .list = roles, .n = &nroles, .list_max = ROLES_MAX},
        {.name = "device", .list = devices, .n = &ndevices, .list_max = DEVICES_MAX},
        {.name = "quota", .value = &quota},
        {.name = "expires", .value = &expires}};
    char name[80];
    struct err e = {0};
    int n = ctl_parse(argc, argv, opts, 4);
    if (n != 1 || !nroles)
        return ctl_misuse(c, "user create needs a name and a role");
    if (user_name(argv[0], name, sizeof name))
        return 2;
    const struct raw_policy r = {.principal = name,
                                 .quota = (char *)quota,
                                 .expires = (char *)expires,
                                 .roles = (char **)roles,
                                 .devices = (char **)devices,
                                 .roles_count = (unsigned)nroles,
                                 .devices_count = (unsigned)ndevices};
    Strata__V1__Policy p, *pv = &p;
    Strata__V1__ApplyPoliciesRequest q = STRATA__V1__APPLY_POLICIES_REQUEST__INIT;
    if (to_message(&p, &r, &e) < 0)
        return ctl_fail(c, &e);
    q.policies = &pv;
    q.n_policies = 1;
    int x = change(c, "Apply", &q.base);
    if (!x)
        fprintf(stderr,
                "strata: that is the policy; strata user token %s makes the token with which they log in\n",
                argv[0]);
    return x;
}

int ctl_user_list(struct ctl *c, int argc, char **argv)
{
    return ctl_parse(argc, argv, NULL, 0) ? ctl_misuse(c, "user list takes nothing") : list(c, "user/");
}

int ctl_user_revoke(struct ctl *c, int argc, char **argv)
{
    char name[80], *one = name;
    if (ctl_parse(argc, argv, NULL, 0) != 1)
        return ctl_misuse(c, "user revoke needs one name");
    if (user_name(argv[0], name, sizeof name))
        return 2;
    Strata__V1__RemovePoliciesRequest q = STRATA__V1__REMOVE_POLICIES_REQUEST__INIT;
    q.principals = &one;
    q.n_principals = 1;
    int x = change(c, "Remove", &q.base);
    if (!x)
        fprintf(stderr,
                "strata: %s has no rights any more; its certificate itself stays valid until it is revoked\n",
                name);
    return x;
}
