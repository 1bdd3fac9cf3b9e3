/* The TLS room: who is let in, who is refused and with which reason, over whole handshakes in memory. */
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/tls/tls.h"

#define DAY_US 86400000000ll

struct env {
    char dir[64], ca[96], other[96];
    struct tls_ca *own, *foreign;
    struct tls_ctx *ctx;
};

static const char *path(char out[160], const char *dir, const char *name)
{
    assert_int_equal(fs_join(out, 160, dir, name), ST_OK);
    return out;
}

static int64_t now_us(void)
{
    return clock_wall_us(clock_system());
}

static void issue(struct env *v, struct tls_ca *ca, enum tls_kind kind, const char *name, const char *file,
                  int64_t from, int64_t to)
{
    char c[160], k[160], f[96];
    struct err e = {0};
    struct tls_issue w = {.kind = kind, .name = name, .not_before_us = from, .not_after_us = to};
    snprintf(f, sizeof f, "%s.crt", file);
    path(c, v->dir, f);
    snprintf(f, sizeof f, "%s.key", file);
    path(k, v->dir, f);
    if (tls_ca_issue(ca, &w, c, k, &e) < 0)
        fail_msg("%s", e.text);
}

static int load(struct env *v, const char *cert, const char *key, const char *domain, struct tls_ctx **out,
                struct err *e)
{
    char c[160], k[160], a[160];
    struct tls_cfg cfg = {.ca_file = path(a, v->ca, "ca.crt"),
                          .cert_file = path(c, v->dir, cert),
                          .key_file = path(k, v->dir, key),
                          .trust_domain = domain};
    *e = (struct err){0};
    return tls_ctx_new(out, &cfg, clock_system(), e);
}

static int setup(void **st)
{
    struct env *v = calloc(1, sizeof *v);
    struct err e = {0};
    assert_non_null(v);
    strcpy(v->dir, "/tmp/strata-tls-XXXXXX");
    assert_non_null(mkdtemp(v->dir));
    snprintf(v->ca, sizeof v->ca, "%s/ca", v->dir);
    snprintf(v->other, sizeof v->other, "%s/other", v->dir);
    assert_int_equal(tls_ca_create(v->ca, "lab.example", 365, clock_system(), &e), ST_OK);
    assert_int_equal(tls_ca_create(v->other, "lab.example", 365, clock_system(), &e), ST_OK);
    assert_int_equal(tls_ca_load(&v->own, v->ca, &e), ST_OK);
    assert_int_equal(tls_ca_load(&v->foreign, v->other, &e), ST_OK);
    int64_t n = now_us();
    issue(v, v->own, TLS_COORDINATOR, NULL, "coord", n - DAY_US, n + DAY_US);
    issue(v, v->own, TLS_USER, "alice", "alice", n - DAY_US, n + DAY_US);
    issue(v, v->own, TLS_NODE, "dione", "dione", n - DAY_US, n + DAY_US);
    issue(v, v->own, TLS_NODE, "old", "old", n - 2 * DAY_US, n - DAY_US);
    issue(v, v->own, TLS_NODE, "young", "young", n + DAY_US, n + 2 * DAY_US);
    issue(v, v->foreign, TLS_NODE, "dione", "foreign", n - DAY_US, n + DAY_US);
    if (load(v, "coord.crt", "coord.key", "lab.example", &v->ctx, &e) < 0)
        fail_msg("%s", e.text);
    *st = v;
    return 0;
}

static int teardown(void **st)
{
    struct env *v = *st;
    char cmd[128];
    tls_ctx_unref(v->ctx);
    tls_ca_free(v->own);
    tls_ca_free(v->foreign);
    snprintf(cmd, sizeof cmd, "rm -r '%s'", v->dir);
    assert_int_equal(system(cmd), 0);
    free(v);
    return 0;
}

/* A certificate that the room itself would never make, signed with the cluster's CA. san or eku NULL: left
 * out. */
static void forge(struct env *v, const char *file, const char *san, const char *eku)
{
    char p[160], f[96];
    FILE *in = fopen(path(p, v->ca, "ca.key"), "r");
    EVP_PKEY *ca_key = PEM_read_PrivateKey(in, NULL, NULL, NULL), *key = EVP_EC_gen("P-256");
    fclose(in);
    in = fopen(path(p, v->ca, "ca.crt"), "r");
    X509 *ca = PEM_read_X509(in, NULL, NULL, NULL), *x = X509_new();
    fclose(in);
    assert_true(ca_key && key && ca && x);
    X509_set_version(x, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 77);
    X509_gmtime_adj(X509_getm_notBefore(x), -3600);
    X509_gmtime_adj(X509_getm_notAfter(x), 3600);
    X509_set_issuer_name(x, X509_get_subject_name(ca));
    X509_set_pubkey(x, key);
    X509V3_CTX c;
    X509V3_set_ctx(&c, ca, x, NULL, NULL, 0);
    const struct {
        int nid;
        const char *value;
    } ext[] = {
        {NID_basic_constraints, "critical,CA:FALSE"}, {NID_subject_alt_name, san}, {NID_ext_key_usage, eku}};
    for (size_t i = 0; i < sizeof ext / sizeof *ext; i++) {
        if (!ext[i].value)
            continue;
        X509_EXTENSION *one = X509V3_EXT_conf_nid(NULL, &c, ext[i].nid, ext[i].value);
        assert_true(one && X509_add_ext(x, one, -1));
        X509_EXTENSION_free(one);
    }
    assert_true(X509_sign(x, ca_key, EVP_sha256()) > 0);
    snprintf(f, sizeof f, "%s.crt", file);
    FILE *out = fopen(path(p, v->dir, f), "w");
    assert_true(PEM_write_X509(out, x));
    fclose(out);
    snprintf(f, sizeof f, "%s.key", file);
    out = fopen(path(p, v->dir, f), "w");
    assert_true(PEM_write_PrivateKey(out, key, NULL, NULL, 0, NULL, NULL));
    fclose(out);
    EVP_PKEY_free(ca_key);
    EVP_PKEY_free(key);
    X509_free(ca);
    X509_free(x);
}

/* A peer that checks nothing and shows what it is told to (file NULL: nothing at all). */
static SSL_CTX *careless(struct env *v, const char *file)
{
    char p[160], f[96];
    SSL_CTX *c = SSL_CTX_new(TLS_method());
    assert_non_null(c);
    if (file) {
        snprintf(f, sizeof f, "%s.crt", file);
        assert_int_equal(SSL_CTX_use_certificate_file(c, path(p, v->dir, f), SSL_FILETYPE_PEM), 1);
        snprintf(f, sizeof f, "%s.key", file);
        assert_int_equal(SSL_CTX_use_PrivateKey_file(c, path(p, v->dir, f), SSL_FILETYPE_PEM), 1);
    }
    return c;
}

struct pair {
    SSL *server, *client;
    bool done[2];
};

static void pair_up(struct pair *p, SSL_CTX *server, SSL_CTX *client)
{
    BIO *a = NULL, *b = NULL;
    *p = (struct pair){SSL_new(server), SSL_new(client), {false, false}};
    assert_true(p->server && p->client && BIO_new_bio_pair(&a, 0, &b, 0) == 1);
    SSL_set_bio(p->server, a, a);
    SSL_set_bio(p->client, b, b);
    SSL_set_accept_state(p->server);
    SSL_set_connect_state(p->client);
}

static void shake(struct pair *p)
{
    for (int i = 0; i < 20; i++) {
        p->done[1] = SSL_do_handshake(p->client) == 1;
        p->done[0] = SSL_do_handshake(p->server) == 1;
    }
    ERR_clear_error();
}

static void pair_fini(struct pair *p)
{
    SSL_free(p->server);
    SSL_free(p->client);
}

/* Ours against a careless peer, ours being the server or the client; returns the reason, "" = let in. */
static void meet(struct env *v, const char *file, bool we_serve, char reason[40])
{
    static const unsigned char alpn[] = "\x08strata/1";
    struct pair p;
    struct err e = {0};
    struct tls_identity id;
    SSL_CTX *peer = careless(v, file);
    if (we_serve) {
        SSL_CTX_set_alpn_protos(peer, alpn, sizeof alpn - 1);
        pair_up(&p, tls_ctx_server(v->ctx), peer);
    } else {
        /* Asking for our certificate keeps the two directions alike. */
        SSL_CTX_set_verify(peer, SSL_VERIFY_NONE, NULL);
        pair_up(&p, peer, tls_ctx_client(v->ctx));
    }
    shake(&p);
    SSL *mine = we_serve ? p.server : p.client;
    int rc = tls_peer_identity(v->ctx, mine, &id, &e);
    if (rc == ST_OK)
        assert_true(p.done[we_serve ? 0 : 1]);
    else
        assert_int_equal(rc, ST_ETRUST);
    assert_true(rc == ST_OK || strlen(e.text) > 10);
    str_copy(reason, 40, rc == ST_OK ? "" : e.reason);
    pair_fini(&p);
    SSL_CTX_free(peer);
}

static void test_refusals(void **st)
{
    struct env *v = *st;
    static const char both[] = "serverAuth,clientAuth";
    forge(v, "nosan", NULL, both);
    forge(v, "twosan", "URI:spiffe://lab.example/node/a,URI:spiffe://lab.example/node/b", both);
    forge(v, "domain", "URI:spiffe://elsewhere.example/node/a", both);
    forge(v, "nonsense", "URI:https://lab.example/node/a", both);
    forge(v, "purpose", "URI:spiffe://lab.example/node/a", "codeSigning");
    forge(v, "fine", "URI:spiffe://lab.example/node/a", both);
    static const struct {
        const char *file, *reason;
    } row[] = {
        {"dione", ""},
        {"fine", ""},
        {"foreign", "UNKNOWN_CA"},
        {"old", "EXPIRED"},
        {"young", "NOT_YET_VALID"},
        {"domain", "FOREIGN_TRUST_DOMAIN"},
        {"nosan", "NO_IDENTITY"},
        {"twosan", "NO_IDENTITY"},
        {"nonsense", "NO_IDENTITY"},
        {"purpose", "BAD_PURPOSE"},
    };
    char got[40];
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        for (int serve = 0; serve < 2; serve++) {
            meet(v, row[i].file, serve, got);
            if (strcmp(got, row[i].reason))
                fail_msg("%s (we %s): got '%s', want '%s'", row[i].file, serve ? "serve" : "dial", got,
                         row[i].reason);
        }
    meet(v, NULL, true, got);
    assert_string_equal(got, "NO_CERTIFICATE");
}

static void test_good(void **st)
{
    struct env *v = *st;
    struct tls_ctx *alice;
    struct err e;
    struct tls_identity id;
    struct pair p;
    assert_int_equal(load(v, "alice.crt", "alice.key", "lab.example", &alice, &e), ST_OK);
    pair_up(&p, tls_ctx_server(v->ctx), tls_ctx_client(alice));
    shake(&p);
    assert_true(p.done[0] && p.done[1]);
    assert_int_equal(SSL_version(p.server), TLS1_3_VERSION);
    const unsigned char *proto;
    unsigned n;
    SSL_get0_alpn_selected(p.client, &proto, &n);
    assert_int_equal(n, strlen(TLS_ALPN));
    assert_memory_equal(proto, TLS_ALPN, n);
    assert_int_equal(tls_peer_identity(v->ctx, p.server, &id, &e), ST_OK);
    assert_string_equal(id.principal, "user/alice");
    assert_string_equal(id.spiffe, "spiffe://lab.example/user/alice");
    assert_int_equal(strlen(id.serial), 32);
    assert_memory_equal(id.spki_sha256, tls_ctx_self(alice)->spki_sha256, 32);
    assert_int_equal(tls_peer_identity(alice, p.client, &id, &e), ST_OK);
    assert_int_equal(id.kind, TLS_COORDINATOR);
    /* No tickets: a client that reads after the handshake finds nothing. */
    char c;
    assert_int_equal(SSL_read(p.client, &c, 1), -1);
    assert_int_equal(SSL_SESSION_is_resumable(SSL_get0_session(p.client)), 0);
    pair_fini(&p);
    tls_ctx_unref(alice);
}

static void test_settings(void **st)
{
    struct env *v = *st;
    struct pair p;
    static const struct {
        const char *what, *alpn;
        int max;
        const char *suites, *groups;
        bool ok;
    } row[] = {
        {"as it should be", "\x08strata/1", TLS1_3_VERSION, "TLS_AES_256_GCM_SHA384", "P-256", true},
        {"among others", "\x02h2\x08strata/1", TLS1_3_VERSION, "TLS_CHACHA20_POLY1305_SHA256", "X25519",
         true},
        {"other ALPN", "\x02h2\x08strata/2", TLS1_3_VERSION, "TLS_AES_128_GCM_SHA256", "X25519", false},
        {"TLS 1.2", "\x08strata/1", TLS1_2_VERSION, "TLS_AES_128_GCM_SHA256", "X25519", false},
        {"CCM", "\x08strata/1", TLS1_3_VERSION, "TLS_AES_128_CCM_SHA256", "X25519", false},
        {"other group", "\x08strata/1", TLS1_3_VERSION, "TLS_AES_128_GCM_SHA256", "P-384", false},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        SSL_CTX *c = careless(v, "alice");
        SSL_CTX_set_alpn_protos(c, (const unsigned char *)row[i].alpn, (unsigned)strlen(row[i].alpn));
        SSL_CTX_set_max_proto_version(c, row[i].max);
        assert_int_equal(SSL_CTX_set_ciphersuites(c, row[i].suites), 1);
        assert_int_equal(SSL_CTX_set1_groups_list(c, row[i].groups), 1);
        pair_up(&p, tls_ctx_server(v->ctx), c);
        shake(&p);
        if (p.done[0] != row[i].ok)
            fail_msg("%s: handshake %s", row[i].what, p.done[0] ? "succeeded" : "failed");
        pair_fini(&p);
        SSL_CTX_free(c);
    }
}

static void want(struct env *v, const char *cert, const char *key, const char *domain, int code,
                 const char *word)
{
    struct tls_ctx *t = NULL;
    struct err e;
    int rc = load(v, cert, key, domain, &t, &e);
    if (rc != code || !strstr(e.text, word))
        fail_msg("%s + %s: %s '%s', want %s with '%s'", cert, key, status_name(rc), e.text, status_name(code),
                 word);
    assert_null(t);
}

static void test_loading(void **st)
{
    struct env *v = *st;
    char p[160];
    static const char d[] = "lab.example";
    want(v, "alice.crt", "dione.key", d, ST_ETRUST, "dione.key");
    want(v, "none.crt", "alice.key", d, ST_ENOENT, "none.crt");
    want(v, "alice.crt", "none.key", d, ST_ENOENT, "none.key");
    want(v, "foreign.crt", "foreign.key", d, ST_ETRUST, "foreign.crt");
    want(v, "old.crt", "old.key", d, ST_ETRUST, "expired");
    want(v, "young.crt", "young.key", d, ST_ETRUST, "not yet valid");
    want(v, "alice.crt", "alice.key", "elsewhere.example", ST_ETRUST, "elsewhere.example");
    want(v, "alice.key", "alice.key", d, ST_ETRUST, "PEM certificate");
    chmod(path(p, v->dir, "alice.crt"), 0600);
    want(v, "alice.crt", "alice.crt", d, ST_ETRUST, "PEM private key");
    assert_int_equal(chmod(path(p, v->dir, "alice.key"), 0640), 0);
    want(v, "alice.crt", "alice.key", d, ST_EDENIED, "chmod 600");
    assert_int_equal(chmod(p, 0600), 0);
}

static void test_ca(void **st)
{
    struct env *v = *st;
    struct err e = {0};
    char p[160];
    struct stat sb;
    struct buf before = {0}, after = {0};
    assert_int_equal(fs_read(path(p, v->ca, "ca.key"), 65536, &before, &e), ST_OK);
    assert_int_equal(tls_ca_create(v->ca, "lab.example", 365, clock_system(), &e), ST_EEXIST);
    assert_int_equal(fs_read(p, 65536, &after, &e), ST_OK);
    assert_int_equal(before.len, after.len);
    assert_memory_equal(before.data, after.data, after.len);
    buf_fini(&before);
    buf_fini(&after);
    assert_int_equal(stat(p, &sb), 0);
    assert_int_equal(sb.st_mode & 0777, 0600);
    assert_int_equal(stat(path(p, v->ca, "ca.crt"), &sb), 0);
    assert_int_equal(sb.st_mode & 0777, 0644);
    assert_string_equal(tls_ca_trust_domain(v->own), "lab.example");
    assert_int_equal(tls_ca_create(path(p, v->dir, "bad"), "Lab Example", 1, clock_system(), &e), ST_EINVAL);
    char c[160], k[160];
    struct tls_issue w = {TLS_USER, "a/../b", NULL, NULL, 0, DAY_US};
    path(c, v->dir, "x.crt");
    path(k, v->dir, "x.key");
    assert_int_equal(tls_ca_issue(v->own, &w, c, k, &e), ST_EINVAL);
    w.name = "bob";
    w.dns_san = "a,URI:spiffe://lab.example/coordinator";
    assert_int_equal(tls_ca_issue(v->own, &w, c, k, &e), ST_EINVAL);
    assert_false(fs_exists(c) || fs_exists(k));
    w.dns_san = "bob.lab.example";
    w.ip_san = "192.0.2.7";
    assert_int_equal(tls_ca_issue(v->own, &w, c, k, &e), ST_OK);
    /* A missing key file is the same as no CA. */
    struct tls_ca *ca = NULL;
    assert_int_equal(tls_ca_load(&ca, v->dir, &e), ST_ENOENT);
    assert_null(ca);
}

static void test_identity_parse(void **st)
{
    (void)st;
    struct tls_identity id;
    static const char *const bad[] = {
        "",
        "spiffe://",
        "spiffe:///coordinator",
        "spiffe://lab.example",
        "spiffe://lab.example/",
        "spiffe://lab.example/user/",
        "spiffe://lab.example/user/a/b",
        "spiffe://lab.example/node/..",
        "spiffe://lab.example/admin/a",
        "spiffe://lab.example/coordinator/x",
        "spiffe://Lab.example/coordinator",
        "spiffe://lab.example:443/coordinator",
        "spiffe://u@lab.example/coordinator",
        "https://lab.example/coordinator",
        "spiffe://lab.example/user/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (tls_identity_parse(bad[i], &id, NULL) == ST_OK)
            fail_msg("'%s' was taken", bad[i]);
    assert_int_equal(tls_identity_parse("spiffe://lab.example/node/dione-2", &id, NULL), ST_OK);
    assert_int_equal(id.kind, TLS_NODE);
    assert_string_equal(id.name, "dione-2");
    assert_string_equal(id.principal, "node/dione-2");
    assert_string_equal(id.trust_domain, "lab.example");
    char longer[400];
    memset(longer, 'a', sizeof longer);
    memcpy(longer, "spiffe://", 9);
    memcpy(longer + 300, "/coordinator", 13);
    assert_int_equal(tls_identity_parse(longer, &id, NULL), ST_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_good, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_settings, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loading, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ca, setup, teardown),
        cmocka_unit_test(test_identity_parse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
