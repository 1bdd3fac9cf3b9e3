/* Revocation, pins, signing requests, enrolment contexts, rotation of the CA, and the clock that all of them
 * use. */
#include <openssl/err.h>
#include <openssl/ssl.h>
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
    char dir[64], ca[96];
    int64_t now;
    struct clock clock;
    struct tls_ca *own;
    struct tls_rules *rules;
};

static uint64_t mono(void *arg)
{
    (void)arg;
    return 0;
}
static int64_t wall(void *arg)
{
    return ((struct env *)arg)->now;
}

static const char *path(struct env *v, char out[160], const char *name)
{
    assert_int_equal(fs_join(out, 160, v->dir, name), ST_OK);
    return out;
}

static int setup(void **st)
{
    struct env *v = calloc(1, sizeof *v);
    struct err e = {0};
    assert_non_null(v);
    strcpy(v->dir, "/tmp/strata-trust-XXXXXX");
    assert_non_null(mkdtemp(v->dir));
    snprintf(v->ca, sizeof v->ca, "%s/ca", v->dir);
    v->now = 4000000000ll * 1000000; /* 2096: nothing here may look at the system's clock */
    v->clock = (struct clock){mono, wall, v};
    assert_int_equal(tls_ca_create(v->ca, "lab.example", 365, &v->clock, &e), ST_OK);
    assert_int_equal(tls_ca_load(&v->own, v->ca, &e), ST_OK);
    assert_int_equal(tls_rules_new(&v->rules, rng_system()), ST_OK);
    *st = v;
    return 0;
}

static int teardown(void **st)
{
    struct env *v = *st;
    char cmd[128];
    tls_ca_free(v->own);
    tls_rules_unref(v->rules);
    snprintf(cmd, sizeof cmd, "rm -r '%s'", v->dir);
    assert_int_equal(system(cmd), 0);
    free(v);
    return 0;
}

static int try_ctx(struct env *v, const char *name, const char *ca, struct tls_ctx **out, struct err *e)
{
    char c[160], k[160], a[160], f[64];
    snprintf(f, sizeof f, "%s.crt", name);
    path(v, c, f);
    snprintf(f, sizeof f, "%s.key", name);
    path(v, k, f);
    struct tls_cfg cfg = {.ca_file = path(v, a, ca),
                          .cert_file = c,
                          .key_file = k,
                          .trust_domain = "lab.example",
                          .rules = v->rules};
    *e = (struct err){0};
    return tls_ctx_new(out, &cfg, &v->clock, e);
}

static struct tls_ctx *make(struct env *v, enum tls_kind kind, const char *name, const char *file,
                            int64_t life)
{
    char c[160], k[160], f[64];
    struct err e = {0};
    struct tls_ctx *t = NULL;
    struct tls_issue w = {
        .kind = kind, .name = name, .not_before_us = v->now - 60000000, .not_after_us = v->now + life};
    snprintf(f, sizeof f, "%s.crt", file);
    path(v, c, f);
    snprintf(f, sizeof f, "%s.key", file);
    path(v, k, f);
    if (tls_ca_issue(v->own, &w, c, k, &e) < 0 || try_ctx(v, file, "ca/ca.crt", &t, &e) < 0)
        fail_msg("%s", e.text);
    return t;
}

/* Handshakes in memory; what each side says of the other. */
static int meet(struct tls_ctx *server, struct tls_ctx *client, char reason[2][40], struct tls_identity id[2])
{
    BIO *a = NULL, *b = NULL;
    SSL *s = SSL_new(tls_ctx_server(server)), *c = SSL_new(tls_ctx_client(client));
    struct err e;
    int good = 0, ds = 0, dc = 0;
    assert_true(s && c && BIO_new_bio_pair(&a, 0, &b, 0) == 1);
    SSL_set_bio(s, a, a);
    SSL_set_bio(c, b, b);
    SSL_set_accept_state(s);
    SSL_set_connect_state(c);
    for (int i = 0; i < 20; i++) {
        dc = SSL_do_handshake(c) == 1;
        ds = SSL_do_handshake(s) == 1;
    }
    ERR_clear_error();
    for (int i = 0; i < 2; i++) {
        e = (struct err){0};
        int rc = i ? tls_peer_identity(client, c, &id[1], &e) : tls_peer_identity(server, s, &id[0], &e);
        str_copy(reason[i], 40, rc < 0 ? e.reason : "");
        good += rc == ST_OK;
    }
    SSL_free(s);
    SSL_free(c);
    return good == 2 && ds && dc;
}

static void test_clock(void **st)
{
    struct env *v = *st;
    char why[2][40];
    struct tls_identity id[2];
    struct err e;
    struct tls_ctx *coord = make(v, TLS_COORDINATOR, NULL, "co", 30 * DAY_US);
    struct tls_ctx *node = make(v, TLS_NODE, "dione", "dione", DAY_US);
    assert_true(meet(coord, node, why, id));
    assert_int_equal(tls_identity_still_good(coord, &id[0], &e), ST_OK);
    v->now += DAY_US + 1000000;
    assert_false(meet(coord, node, why, id));
    assert_string_equal(why[0], "EXPIRED");
    id[0].not_after_us = v->now - 1;
    assert_int_equal(tls_identity_still_good(coord, &id[0], &e), ST_ETRUST);
    assert_string_equal(e.reason, "EXPIRED");
    v->now -= 365 * DAY_US; /* a clock off by a year, before there was any CA */
    assert_false(meet(coord, node, why, id));
    assert_string_equal(why[1], "ISSUER_NOT_YET_VALID");
    v->now += 364 * DAY_US - 150 * 1000000ll; /* 2.5 minutes back: after the CA, before its first leaves */
    assert_false(meet(coord, node, why, id));
    assert_string_equal(why[1], "NOT_YET_VALID");
    struct tls_ctx *t = NULL;
    assert_int_equal(try_ctx(v, "dione", "ca/ca.crt", &t, &e), ST_ETRUST);
    assert_string_equal(e.reason, "NOT_YET_VALID");
    tls_ctx_unref(coord);
    tls_ctx_unref(node);
}

static void test_rules(void **st)
{
    struct env *v = *st;
    char why[2][40], hex[65], value[80];
    struct tls_identity id[2];
    struct err e;
    struct tls_ctx *coord = make(v, TLS_COORDINATOR, NULL, "co", DAY_US);
    struct tls_ctx *node = make(v, TLS_NODE, "dione", "dione", DAY_US);
    struct tls_identity self = *tls_ctx_self(node);
    hex_encode(hex, self.spki_sha256, 32);
    const struct {
        enum tls_revoked kind;
        const char *text;
    } row[] = {
        {TLS_REVOKED_SERIAL, self.serial}, {TLS_REVOKED_IDENTITY, "node/dione"}, {TLS_REVOKED_KEY, hex}};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(tls_revoked_parse(row[i].kind, row[i].text, value, &e), ST_OK);
        assert_int_equal(tls_rules_revoke(v->rules, row[i].kind, value), ST_OK);
        assert_false(meet(coord, node, why, id));
        assert_string_equal(why[0], "REVOKED");
        assert_int_equal(tls_identity_still_good(coord, &self, &e), ST_ETRUST);
        tls_rules_restore(v->rules, row[i].kind, value);
        assert_true(meet(coord, node, why, id));
    }
    assert_int_equal(tls_revoked_parse(TLS_REVOKED_SERIAL, "AB:CD:01", value, &e), ST_OK);
    assert_string_equal(value, "abcd01");
    static const char *const bad[] = {"", "0", "xyz", "abc", "node/", "node/a/b", "coordinator/x"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_true(tls_revoked_parse(i < 4 ? TLS_REVOKED_SERIAL : TLS_REVOKED_IDENTITY, bad[i], value, &e) <
                    0);

    uint8_t other[32] = {1}, pin[32];
    assert_int_equal(tls_rules_pin(v->rules, "node/*", other), ST_OK);
    assert_false(meet(coord, node, why, id));
    assert_string_equal(why[0], "PIN_MISMATCH");
    assert_int_equal(tls_rules_pin(v->rules, "node/dione", self.cert_sha256), ST_OK); /* several at once */
    assert_true(meet(coord, node, why, id));
    tls_rules_unpin(v->rules, "node/dione", self.cert_sha256);
    assert_false(meet(coord, node, why, id));
    assert_int_equal(tls_rules_pin(v->rules, "node/*", self.spki_sha256), ST_OK);
    assert_true(meet(coord, node, why, id));
    assert_int_equal(tls_rules_pin(v->rules, "coordinator", other), ST_OK);
    assert_false(meet(coord, node, why, id));
    assert_string_equal(why[1], "PIN_MISMATCH");
    tls_rules_clear(v->rules);
    assert_true(meet(coord, node, why, id));

    char text[80];
    snprintf(text, sizeof text, "sha256:%s", hex);
    assert_int_equal(tls_pin_parse(text, pin, &e), ST_OK);
    assert_memory_equal(pin, self.spki_sha256, 32);
    assert_int_equal(tls_pin_parse("sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", pin, &e), ST_OK);
    hex_encode(hex, pin, 32);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_true(tls_pin_parse("sha256/47DEQpj8HBSa", pin, &e) < 0);
    assert_true(tls_pin_parse("sha256:00", pin, &e) < 0);
    tls_ctx_unref(coord);
    tls_ctx_unref(node);
}

static void test_settings(void **st)
{
    (void)st;
    struct err e;
    assert_int_equal(tls_settings_check(NULL, NULL, &e), ST_OK);
    assert_int_equal(tls_settings_check(TLS_DEFAULT_CIPHERS, "X25519:P-256:X25519MLKEM768", &e), ST_OK);
    assert_int_equal(tls_settings_check("TLS_CHACHA20_POLY1305_SHA256", "X25519", &e), ST_OK);
    static const char *const bad[] = {"",
                                      ":",
                                      "TLS_AES_128_GCM_SHA256:",
                                      ":TLS_AES_128_GCM_SHA256",
                                      "TLS_AES_128_CCM_SHA256",
                                      "ECDHE-RSA-AES128-GCM-SHA256",
                                      "DEFAULT",
                                      "TLS_AES_128_GCM",
                                      "TLS_AES_128_GCM_SHA256::TLS_AES_256_GCM_SHA384"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (tls_settings_check(bad[i], NULL, &e) != ST_ECONFIG)
            fail_msg("'%s' was taken", bad[i]);
        assert_int_equal(tls_settings_check(NULL, bad[i], &e), ST_ECONFIG);
    }
    assert_int_equal(tls_settings_check(NULL, "P-384", &e), ST_ECONFIG);
}

static void test_enroll(void **st)
{
    struct env *v = *st;
    char a[160], c[160], k[160], why[2][40];
    struct tls_identity id[2];
    struct err e = {0};
    uint8_t pin[32], wrong[32] = {9};
    struct tls_ctx *coord = make(v, TLS_COORDINATOR, NULL, "co", DAY_US);
    struct tls_ctx *server = NULL, *good = NULL, *bad = NULL;
    struct tls_cfg cfg = {.ca_file = path(v, a, "ca/ca.crt"),
                          .cert_file = path(v, c, "co.crt"),
                          .key_file = path(v, k, "co.key"),
                          .trust_domain = "lab.example"};
    assert_int_equal(tls_enroll_server_new(&server, &cfg, &v->clock, &e), ST_OK);
    tls_ca_spki(v->own, pin);
    assert_int_equal(tls_enroll_client_new(&good, pin, &v->clock, &e), ST_OK);
    assert_int_equal(tls_enroll_client_new(&bad, wrong, &v->clock, &e), ST_OK);
    assert_true(meet(server, good, why, id));
    assert_int_equal(id[0].kind, TLS_ANONYMOUS);
    assert_int_equal(id[1].kind, TLS_COORDINATOR);
    assert_false(meet(server, bad, why, id));
    assert_string_equal(why[1], "PIN_MISMATCH");
    /* Neither protocol is served by the other's socket. */
    assert_false(meet(coord, good, why, id));
    struct tls_ctx *node = make(v, TLS_NODE, "dione", "dione", DAY_US);
    assert_false(meet(server, node, why, id));
    /* A node's certificate does not make a coordinator of it. */
    struct tls_ctx *fake = NULL;
    cfg.cert_file = path(v, c, "dione.crt");
    cfg.key_file = path(v, k, "dione.key");
    assert_int_equal(tls_enroll_server_new(&fake, &cfg, &v->clock, &e), ST_OK);
    assert_false(meet(fake, good, why, id));
    assert_string_equal(why[1], "WRONG_PEER");
    v->now += 2 * DAY_US;
    assert_false(meet(server, good, why, id));
    assert_string_equal(why[1], "EXPIRED");
    struct tls_ctx *all[] = {coord, server, good, bad, node, fake};
    for (size_t i = 0; i < 6; i++)
        tls_ctx_unref(all[i]);
}

static int sign(struct env *v, const struct buf *csr, const char *name, struct buf *pem, struct err *e)
{
    struct tls_issue w = {.kind = TLS_NODE,
                          .name = name,
                          .not_before_us = v->now - 60000000,
                          .not_after_us = v->now + 5000 * DAY_US};
    struct tls_identity who;
    int rc = tls_ca_sign(v->own, &w, csr->data, csr->len, pem, &who, e);
    if (rc == ST_OK)
        assert_true(who.not_after_us <= tls_ca_not_after_us(v->own));
    return rc;
}

static void test_csr(void **st)
{
    struct env *v = *st;
    char k[160], c[160];
    struct buf csr = {0}, pem = {0};
    struct err e = {0};
    struct stat sb;
    struct tls_ctx *t = NULL;
    struct tls_identity id;
    path(v, k, "mimas.key");
    assert_int_equal(tls_key_make(k, false, &e), ST_OK);
    assert_int_equal(stat(k, &sb), 0);
    assert_int_equal(sb.st_mode & 0777, 0600);
    assert_int_equal(tls_csr_make(k, "spiffe://lab.example/node/mimas", &csr, &e), ST_OK);
    assert_int_equal(sign(v, &csr, "mimas", &pem, &e), ST_OK);
    assert_int_equal(fs_write_atomic(path(v, c, "mimas.crt"), pem.data, pem.len, 0644, &e), ST_OK);
    assert_int_equal(try_ctx(v, "mimas", "ca/ca.crt", &t, &e), ST_OK);
    assert_string_equal(tls_ctx_self(t)->principal, "node/mimas");
    assert_int_equal(tls_cert_read(pem.data, pem.len, &id, &e), ST_OK);
    assert_memory_equal(id.spki_sha256, tls_ctx_self(t)->spki_sha256, 32);
    assert_int_equal(sign(v, &csr, "other", &pem, &e), ST_EDENIED); /* asks for another's name */
    assert_string_equal(e.reason, "BAD_NAME");
    csr.data[csr.len - 1] ^= 1;
    assert_int_equal(sign(v, &csr, "mimas", &pem, &e), ST_EDENIED);
    assert_string_equal(e.reason, "BAD_REQUEST");
    csr.len -= 7;
    assert_true(sign(v, &csr, "mimas", &pem, &e) < 0);
    assert_string_equal(e.reason, "BAD_REQUEST");
    csr.len = 0;
    assert_true(sign(v, &csr, "mimas", &pem, &e) < 0);
    tls_ctx_unref(t);
    buf_fini(&csr);
    buf_fini(&pem);
}

static void test_rotate(void **st)
{
    struct env *v = *st;
    char why[2][40], old[160], ca[160];
    struct tls_identity id[2];
    struct err e = {0};
    struct buf b = {0};
    struct tls_ctx *was = make(v, TLS_NODE, "dione", "dione", 30 * DAY_US), *co = NULL, *t = NULL;
    path(v, ca, "ca/ca.crt");
    assert_int_equal(fs_read(ca, 65536, &b, &e), ST_OK);
    assert_int_equal(fs_write_atomic(path(v, old, "old.crt"), b.data, b.len, 0644, &e), ST_OK);
    uint8_t first[32], second[32];
    tls_ca_spki(v->own, first);
    assert_int_equal(tls_ca_rotate_end(v->ca, &e), ST_ECONFLICT);
    assert_int_equal(tls_ca_rotate(v->ca, 365, &v->clock, &e), ST_OK);
    assert_true(tls_ca_rotating(v->ca));
    assert_int_equal(tls_ca_rotate(v->ca, 365, &v->clock, &e), ST_ECONFLICT);
    tls_ca_free(v->own);
    assert_int_equal(tls_ca_load(&v->own, v->ca, &e), ST_OK);
    tls_ca_spki(v->own, second);
    assert_memory_not_equal(first, second, 32);
    b.len = 0;
    assert_int_equal(fs_read(ca, 65536, &b, &e), ST_OK);
    assert_true(tls_bundle_has(b.data, b.len, first) && tls_bundle_has(b.data, b.len, second));
    /* Who was certified and configured before talks to who was after, both ways round. */
    co = make(v, TLS_COORDINATOR, NULL, "co", DAY_US);
    assert_true(meet(co, was, why, id));
    assert_int_equal(tls_ca_rotate_end(v->ca, &e), ST_OK);
    assert_false(tls_ca_rotating(v->ca));
    tls_ctx_unref(co);
    co = NULL;
    assert_int_equal(try_ctx(v, "co", "ca/ca.crt", &co, &e), ST_OK);
    assert_false(meet(co, was, why, id)); /* the overlap is over */
    assert_string_equal(why[0], "UNKNOWN_CA");
    assert_int_equal(try_ctx(v, "dione", "ca/ca.crt", &t, &e), ST_ETRUST);
    tls_ctx_unref(co);
    tls_ctx_unref(was);
    buf_fini(&b);
}

static void test_ca_kinds(void **st)
{
    struct env *v = *st;
    char dir[160], f[160];
    struct err e = {0};
    struct tls_ca *ca = NULL;
    struct tls_ca_opts o = {
        .trust_domain = "lab.example", .days = 9, .ed25519 = true, .passphrase = "correct horse"};
    assert_int_equal(tls_ca_make(path(v, dir, "ed"), &o, &v->clock, &e), ST_OK);
    assert_true(tls_ca_load(&ca, dir, &e) < 0);
    assert_string_equal(e.reason, "PASSPHRASE");
    assert_int_equal(fs_write_atomic(path(v, f, "pass"), "wrong\n", 6, 0600, &e), ST_OK);
    setenv("STRATA_CA_PASSPHRASE_FILE", f, 1);
    assert_true(tls_ca_load(&ca, dir, &e) < 0);
    assert_int_equal(fs_write_atomic(f, "correct horse\n", 14, 0644, &e), ST_OK);
    assert_int_equal(tls_ca_load(&ca, dir, &e), ST_EDENIED);
    assert_int_equal(chmod(f, 0600), 0);
    assert_int_equal(tls_ca_load(&ca, dir, &e), ST_OK);
    assert_int_equal(tls_ca_rotate(dir, 9, &v->clock, &e), ST_OK); /* the new key is encrypted as well */
    tls_ca_free(ca);
    assert_int_equal(tls_ca_load(&ca, dir, &e), ST_OK);
    tls_ca_free(ca);
    unsetenv("STRATA_CA_PASSPHRASE_FILE");
    ca = NULL;
    assert_true(tls_ca_load(&ca, dir, &e) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_clock, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rules, setup, teardown),
        cmocka_unit_test(test_settings),
        cmocka_unit_test_setup_teardown(test_enroll, setup, teardown),
        cmocka_unit_test_setup_teardown(test_csr, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rotate, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ca_kinds, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
