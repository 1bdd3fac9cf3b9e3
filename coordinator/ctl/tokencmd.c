/* strata node token, user token, login: how nodes and users come to a cluster. */
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/enroll/enroll.h"
#include "common/tls/tls.h"
#include "coordinator/ctl/ctl.h"
#include "strata/v1/certs.pb-c.h"

#define LOGIN_NS (20 * NS_PER_S)

static int ask(struct ctl *c, const char *method, const ProtobufCMessage *q, ProtobufCMessage **m)
{
    struct strata_error e = {0};
    int x = ctl_connect(c);
    if (x)
        return x;
    if (strata_client_call(c->client, &strata__v1__certs__descriptor, method, q, c->timeout_ns, NULL, m, &e) <
        0)
        return ctl_client_fail(c, &e);
    return 0;
}

static json_t *token_json(const Strata__V1__Token *t)
{
    char made[28], end[28];
    clock_rfc3339(t->created_us, made);
    clock_rfc3339(t->expires_us, end);
    return json_pack("{s:s,s:s,s:s,s:s,s:i,s:s,s:s,s:s}", "id", t->id, "kind", t->kind, "name", t->name,
                     "pool", t->pool, "uses", (int)t->uses, "created", made, "expires", end, "created_by",
                     t->created_by);
}

/* The address that was configured may be one that only the coordinator's own machine knows. */
static void join_address(const struct ctl *c, const char *configured, char out[300])
{
    const char *host = strata_client_coordinator(c->client), *colon = strrchr(host, ':'),
               *port = strrchr(configured, ':');
    snprintf(out, 300, "%.*s%s", colon ? (int)(colon - host) : (int)strlen(host), host, port ? port : "");
}

static int create(struct ctl *c, const char *kind, const char *name, const char *pool, uint64_t uses,
                  uint64_t ttl_ns)
{
    Strata__V1__CreateTokenRequest q = STRATA__V1__CREATE_TOKEN_REQUEST__INIT;
    ProtobufCMessage *m;
    char address[300], end[28];
    bool user = !strcmp(kind, "user");
    q.kind = (char *)kind;
    q.name = (char *)(name ? name : "");
    q.pool = (char *)(pool ? pool : "");
    q.uses = (uint32_t)uses;
    q.ttl_us = ttl_ns / NS_PER_US;
    int x = ask(c, "CreateToken", &q.base, &m);
    if (x)
        return x;
    const Strata__V1__CreateTokenReply *r = (const Strata__V1__CreateTokenReply *)m;
    join_address(c, r->address, address);
    clock_rfc3339(r->record->expires_us, end);
    if (c->json) {
        x = ctl_print_json("strata.token.v1", json_pack("{s:s,s:s,s:o}", "token", r->token, "address",
                                                        address, "record", token_json(r->record)));
    } else {
        printf("%s\n", r->token);
        fprintf(stderr, "%s until %.19sZ; it is not shown again. %s\n  %s %s TOKEN\n",
                r->record->uses > 1 ? "Usable several times" : "Usable once", end,
                user ? "The user runs" : "On the node run", user ? "strata login" : "strata-agent join",
                address);
    }
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

static int token_create(struct ctl *c, int argc, char **argv)
{
    const char *ttl = NULL, *uses = NULL, *name = NULL, *pool = NULL;
    const struct ctl_opt opts[] = {{.name = "ttl", .value = &ttl},
                                   {.name = "uses", .value = &uses},
                                   {.name = "name", .value = &name},
                                   {.name = "pool", .value = &pool}};
    uint64_t n = 1, ns = 0;
    int k = ctl_parse(argc, argv, opts, 4);
    if (k < 0)
        return 2;
    if (k)
        return ctl_misuse(c, "node token create takes no operand");
    if (uses && ctl_number(uses, "uses", 10000, &n))
        return 2;
    if (ttl && (parse_duration_ns(ttl, &ns) < 0 || !ns))
        return ctl_usage("--ttl: '%s' is no duration such as 24h", ttl);
    return create(c, "node", name, pool, n, ns);
}

static int token_list(struct ctl *c, int argc, char **argv)
{
    static const char *const col[] = {"TOKEN", "KIND", "NAME", "POOL", "USES>", "EXPIRES", "BY"};
    Strata__V1__ListTokensRequest q = STRATA__V1__LIST_TOKENS_REQUEST__INIT;
    ProtobufCMessage *m;
    if (ctl_parse(argc, argv, NULL, 0) != 0)
        return ctl_misuse(c, "node token list takes nothing");
    int x = ask(c, "ListTokens", &q.base, &m);
    if (x)
        return x;
    const Strata__V1__ListTokensReply *r = (const Strata__V1__ListTokensReply *)m;
    json_t *a = json_array();
    struct table *t = table_new(col, 7);
    for (size_t i = 0; i < r->n_tokens; i++) {
        const Strata__V1__Token *k = r->tokens[i];
        char end[28];
        clock_rfc3339(k->expires_us, end);
        json_array_append_new(a, token_json(k));
        table_cell(t, "%s", k->id);
        table_cell(t, "%s", k->kind);
        table_cell(t, "%s", k->name[0] ? k->name : "-");
        table_cell(t, "%s", k->pool[0] ? k->pool : "-");
        table_cell(t, "%u", k->uses);
        table_cell(t, "%.19sZ", end);
        table_cell(t, "%s", k->created_by);
    }
    if (c->json)
        x = ctl_print_json("strata.tokens.v1", json_pack("{s:O}", "tokens", a));
    else
        table_print(t, stdout);
    json_decref(a);
    table_free(t);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

static int token_revoke(struct ctl *c, int argc, char **argv)
{
    Strata__V1__RevokeTokenRequest q = STRATA__V1__REVOKE_TOKEN_REQUEST__INIT;
    ProtobufCMessage *m;
    if (ctl_parse(argc, argv, NULL, 0) != 1)
        return ctl_misuse(c, "node token revoke takes the token's id (strata node token list)");
    q.id = argv[0];
    int x = ask(c, "RevokeToken", &q.base, &m);
    if (x)
        return x;
    protobuf_c_message_free_unpacked(m, NULL);
    if (c->json)
        return ctl_print_json("strata.token.v1", json_pack("{s:s,s:b}", "id", argv[0], "revoked", 1));
    printf("token %s is revoked\n", argv[0]);
    return 0;
}

int ctl_node_token(struct ctl *c, int argc, char **argv)
{
    if (argc > 0 && !strcmp(argv[0], "create"))
        return token_create(c, argc - 1, argv + 1);
    if (argc > 0 && !strcmp(argv[0], "list"))
        return token_list(c, argc - 1, argv + 1);
    if (argc > 0 && !strcmp(argv[0], "revoke"))
        return token_revoke(c, argc - 1, argv + 1);
    return ctl_misuse(c, "node token takes create, list or revoke");
}

int ctl_user_token(struct ctl *c, int argc, char **argv)
{
    const char *ttl = NULL;
    const struct ctl_opt opts[] = {{.name = "ttl", .value = &ttl}};
    uint64_t ns = 0;
    int n = ctl_parse(argc, argv, opts, 1);
    if (n < 0)
        return 2;
    if (n != 1)
        return ctl_misuse(c, "user token takes one name");
    if (ttl && (parse_duration_ns(ttl, &ns) < 0 || !ns))
        return ctl_usage("--ttl: '%s' is no duration such as 24h", ttl);
    return create(c, "user", argv[0], NULL, 1, ns);
}

/* ---- login ---- */

static int write_identity(const char *dir, const struct enroll_result *r, const char *key, struct err *e)
{
    char crt[1024], ca[1024], yaml[1024], text[700];
    struct tls_ctx *ctx = NULL;
    int rc;
    if (fs_join(crt, sizeof crt, dir, "client.crt") < 0 || fs_join(ca, sizeof ca, dir, "ca.crt") < 0 ||
        fs_join(yaml, sizeof yaml, dir, "client.yaml") < 0)
        return err_set(e, ST_ELIMIT, "path too long: %s", dir);
    const struct tls_cfg cfg = {
        .ca_file = ca, .cert_file = crt, .key_file = key, .trust_domain = r->trust_domain};
    snprintf(text, sizeof text, "coordinator: \"%s\"\ntrust_domain: %s\n", r->coordinator, r->trust_domain);
    if ((rc = fs_write_atomic(ca, r->ca.data, r->ca.len, 0644, e)) < 0 ||
        (rc = fs_write_atomic(crt, r->certificate.data, r->certificate.len, 0644, e)) < 0 ||
        (rc = tls_ctx_new(&ctx, &cfg, clock_system(), e)) < 0)
        return rc;
    tls_ctx_unref(ctx);
    return fs_write_atomic(yaml, text, strlen(text), 0644, e);
}

static int login(struct ctl *c, const char *address, const struct enroll_token *t, bool force,
                 struct enroll_result *r, struct err *e)
{
    char key[1024];
    int rc;
    if (t->kind != ENROLL_USER)
        return err_reason(e, ST_EINVAL, "BAD_TOKEN", "this token is for a node: strata-agent join takes it");
    if (fs_join(key, sizeof key, c->dir, "client.key") < 0)
        return err_set(e, ST_ELIMIT, "path too long: %s", c->dir);
    if (fs_exists(key) && !force)
        return err_reason(
            e, ST_EEXIST, "ENROLLED",
            "%s is there: you have an identity in %s; --force replaces it, --dir D uses another place", key,
            c->dir);
    if ((rc = fs_mkdirs(c->dir, 0700, e)) < 0 || (rc = tls_key_make(key, true, e)) < 0)
        return rc;
    rc = enroll_join(address, t, NULL, NULL, key, c->timeout_ns ? c->timeout_ns : LOGIN_NS, r, e);
    if (rc < 0) {
        remove(key); /* or the next attempt would be told that there is an identity */
        return rc;
    }
    return write_identity(c->dir, r, key, e);
}

int ctl_login(struct ctl *c, int argc, char **argv)
{
    const char *file = NULL;
    bool force = false;
    const struct ctl_opt opts[] = {{.name = "token-file", .value = &file}, {.name = "force", .flag = &force}};
    struct enroll_token t;
    struct enroll_result r = {0};
    struct err e = {0};
    char end[28];
    int n = ctl_parse(argc, argv, opts, 2);
    if (n < 0)
        return 2;
    if (n != (file ? 1 : 2))
        return ctl_misuse(c, "login takes the enrolment address and a token");
    int rc = file ? enroll_token_file(file, &t, &e) : enroll_token_decode(argv[1], &t, &e);
    if (rc == ST_OK)
        rc = login(c, argv[0], &t, force, &r, &e);
    explicit_bzero(&t, sizeof t);
    if (rc < 0) {
        enroll_result_fini(&r);
        return ctl_fail(c, &e);
    }
    clock_rfc3339(r.expires_us, end);
    int x = 0;
    if (c->json)
        x = ctl_print_json("strata.login.v1",
                           json_pack("{s:s,s:s,s:s,s:s,s:f,s:f}", "identity", r.identity, "dir", c->dir,
                                     "coordinator", r.coordinator, "expires", end, "rtt_s", r.rtt_s,
                                     "clock_skew_s", r.skew_s));
    else
        printf("%s, until %.10s, in %s\n", r.identity, end, c->dir);
    enroll_result_fini(&r);
    return x;
}
