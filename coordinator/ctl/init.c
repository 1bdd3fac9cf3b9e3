/* strata init: a CA, the coordinator's certificate and configuration, the admin's identity, and nodes' on
 * request. */
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/tls/tls.h"
#include "coordinator/ctl/ctl.h"

#define DAY_US 86400000000ll

struct init {
    const char *root, *domain, *listen, *admin, *enroll, *leaf_ttl;
    bool ed25519, encrypted;
    const char *nodes[64], *users[64];
    size_t nnodes, nusers;
    struct tls_ca *ca;
    struct err e;
};

static int path(struct init *in, char out[1024], const char *a, const char *b)
{
    int k = snprintf(out, 1024, "%s/%s%s%s", in->root, a, b ? "/" : "", b ? b : "");
    return k < 0 || k >= 1024 ? err_set(&in->e, ST_ELIMIT, "path too long: %s", in->root) : ST_OK;
}

static int put(struct init *in, const char *dir, const char *name, const char *text)
{
    char p[1024];
    int rc = path(in, p, dir, name);
    return rc < 0 ? rc : fs_write_atomic(p, text, strlen(text), 0644, &in->e);
}

static int copy_ca(struct init *in, const char *dir)
{
    char from[1024], to[1024];
    struct buf b = {0};
    int rc;
    if ((rc = path(in, from, "ca", "ca.crt")) < 0 || (rc = path(in, to, dir, "ca.crt")) < 0)
        return rc;
    if ((rc = fs_read(from, 64 << 10, &b, &in->e)) == ST_OK)
        rc = fs_write_atomic(to, b.data, b.len, 0644, &in->e);
    buf_fini(&b);
    return rc;
}

static int identity(struct init *in, const char *dir, enum tls_kind kind, const char *name, const char *base)
{
    char d[1024], crt[1024], key[1024], file[128];
    int64_t now = clock_wall_us(clock_system());
    const struct tls_issue w = {
        .kind = kind, .name = name, .not_before_us = now - 300000000, .not_after_us = now + 365 * DAY_US};
    int rc;
    if ((rc = path(in, d, dir, NULL)) < 0 || (rc = fs_mkdirs(d, 0700, &in->e)) < 0 ||
        (rc = copy_ca(in, dir)) < 0)
        return rc;
    snprintf(file, sizeof file, "%s.crt", base);
    if ((rc = path(in, crt, dir, file)) < 0)
        return rc;
    snprintf(file, sizeof file, "%s.key", base);
    if ((rc = path(in, key, dir, file)) < 0)
        return rc;
    if (fs_exists(key))
        return err_set(&in->e, ST_EEXIST, "%s is already there: remove it first if it is to be replaced",
                       key);
    return tls_ca_issue(in->ca, &w, crt, key, &in->e);
}

static int make_coordinator(struct init *in)
{
    char text[8192], tls[1024], state[1024], ca[1024], enroll[300];
    int rc;
    if ((rc = identity(in, "coordinator/tls", TLS_COORDINATOR, NULL, "coordinator")) < 0 ||
        (rc = path(in, tls, "coordinator/tls", NULL)) < 0 ||
        (rc = path(in, state, "coordinator/state", NULL)) < 0 || (rc = path(in, ca, "ca", NULL)) < 0)
        return rc;
    const char *colon = strrchr(in->listen, ':');
    if (!colon)
        return err_set(&in->e, ST_EINVAL, "--listen: '%s' has no port; write host:port", in->listen);
    if (in->enroll)
        str_copy(enroll, sizeof enroll, in->enroll);
    else /* the gateway has the port in between */
        snprintf(enroll, sizeof enroll, "%.*s:%d", (int)(colon - in->listen), in->listen,
                 atoi(colon + 1) + 2);
    snprintf(text, sizeof text,
             "# strata-coordinator run --config THIS\n"
             "version: 1\nlisten: \"%s\"\nadmin: user/%s\ntls: {dir: \"%s\", trust_domain: %s}\nstate: {dir: "
             "\"%s\"}\n"
             "# The CA that signs; take it away when certificates come from elsewhere.\n"
             "ca: {dir: \"%s\", leaf_ttl: %s}\n"
             "# Where nodes and users with a token get their certificate, and nothing else.\n"
             "enroll: {listen: \"%s\"}\n"
             "# What the planner assumes between nodes until the links are measured.\n"
             "default_link: {bytes_per_s: 125MB, rtt: 500us}\n",
             in->listen, in->admin, tls, in->domain, state, ca, in->leaf_ttl, enroll);
    return put(in, "coordinator", "coordinator.yaml", text);
}

static int make_client(struct init *in, const char *dir, const char *name)
{
    char text[512];
    int rc = identity(in, dir, TLS_USER, name, "client");
    if (rc < 0)
        return rc;
    snprintf(text, sizeof text, "coordinator: \"%s\"\ntrust_domain: %s\n", in->listen, in->domain);
    return put(in, dir, "client.yaml", text);
}

static int make_users(struct init *in)
{
    for (size_t i = 0; i < in->nusers; i++) {
        char dir[128];
        if (!str_ident_ok(in->users[i], 63))
            return err_set(&in->e, ST_EINVAL, "'%s' is no user's name: letters, digits, '.', '-', '_'",
                           in->users[i]);
        snprintf(dir, sizeof dir, "users/%s", in->users[i]);
        int rc = make_client(in, dir, in->users[i]);
        if (rc < 0)
            return rc;
    }
    return ST_OK;
}

static int make_nodes(struct init *in)
{
    for (size_t i = 0; i < in->nnodes; i++) {
        char dir[128];
        if (!str_ident_ok(in->nodes[i], 63))
            return err_set(&in->e, ST_EINVAL, "'%s' is no node name: letters, digits, '.', '-', '_'",
                           in->nodes[i]);
        snprintf(dir, sizeof dir, "nodes/%s", in->nodes[i]);
        int rc = identity(in, dir, TLS_NODE, in->nodes[i], "node");
        if (rc < 0)
            return rc;
    }
    return ST_OK;
}

static int make_ca(struct init *in, const char *dir)
{
    char pass[256];
    struct tls_ca_opts o = {.trust_domain = in->domain, .days = 3650, .ed25519 = in->ed25519};
    int rc = ST_OK;
    if (in->encrypted) {
        if ((rc = tls_ca_passphrase(pass, &in->e)) < 0)
            return rc;
        if (strlen(pass) < 8)
            return err_set(&in->e, ST_EINVAL,
                           "--encrypt-ca: name a file with a passphrase of 8 characters or more in "
                           "STRATA_CA_PASSPHRASE_FILE");
        o.passphrase = pass;
    }
    rc = tls_ca_make(dir, &o, clock_system(), &in->e);
    explicit_bzero(pass, sizeof pass);
    return rc;
}

int ctl_init(struct ctl *c, int argc, char **argv)
{
    struct init in = {
        .domain = "strata.local", .listen = "127.0.0.1:7443", .admin = "admin", .leaf_ttl = "7d"};
    const struct ctl_opt opts[] = {
        {.name = "trust-domain", .value = &in.domain},
        {.name = "listen", .value = &in.listen},
        {.name = "admin", .value = &in.admin},
        {.name = "enroll", .value = &in.enroll},
        {.name = "leaf-ttl", .value = &in.leaf_ttl},
        {.name = "ed25519", .flag = &in.ed25519},
        {.name = "encrypt-ca", .flag = &in.encrypted},
        {.name = "node", .list = in.nodes, .n = &in.nnodes, .list_max = 64},
        {.name = "user", .list = in.users, .n = &in.nusers, .list_max = 64},
    };
    int n = ctl_parse(argc, argv, opts, sizeof opts / sizeof *opts);
    char ca[1024];
    if (n < 0)
        return 2;
    if (n != 1)
        return ctl_misuse(c, "init needs one directory");
    char *full = realpath(argv[0], NULL);
    if (!full && fs_mkdirs(argv[0], 0700, &in.e) == ST_OK)
        full = realpath(argv[0], NULL);
    if (!full) {
        err_set(&in.e, ST_EIO, "cannot make the directory %s", argv[0]);
        return ctl_fail(c, &in.e);
    }
    in.root = full;
    int rc = path(&in, ca, "ca", NULL);
    bool fresh = rc == ST_OK && !fs_exists(ca);
    if (rc == ST_OK && fresh)
        rc = make_ca(&in, ca);
    if (rc == ST_OK)
        rc = tls_ca_load(&in.ca, ca, &in.e);
    if (rc == ST_OK)
        in.domain = tls_ca_trust_domain(in.ca);
    if (rc == ST_OK && fresh && (rc = make_coordinator(&in)) == ST_OK)
        rc = make_client(&in, "admin", in.admin);
    if (rc == ST_OK)
        rc = make_nodes(&in);
    if (rc == ST_OK)
        rc = make_users(&in);
    if (rc == ST_OK && c->json)
        ctl_print_json("strata.init.v1",
                       json_pack("{s:s,s:s,s:b,s:I,s:I}", "dir", full, "trust_domain", in.domain, "created",
                                 fresh, "nodes", (json_int_t)in.nnodes, "users", (json_int_t)in.nusers));
    else if (rc == ST_OK)
        printf("%s %s, trust domain %s\ncoordinator  strata-coordinator run --config "
               "%s/coordinator/coordinator.yaml\n"
               "admin        strata --dir %s/admin status\nnodes        %zu identities under %s/nodes\n",
               fresh ? "made" : "extended", full, in.domain, full, full, in.nnodes, full);
    tls_ca_free(in.ca);
    free(full);
    return rc < 0 ? ctl_fail(c, &in.e) : 0;
}
