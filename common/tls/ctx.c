/* The TLS settings of every connection: files, suites, groups, and the two contexts made of them. */
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/str.h"
#include "common/tls/tls_priv.h"

static const unsigned char alpn_wire[] = "\x08" TLS_ALPN, alpn_enroll_wire[] = "\x0f" TLS_ALPN_ENROLL;

X509 *tls_read_cert(const char *path, struct err *e)
{
    char why[128];
    BIO *b = BIO_new_file(path, "r");
    if (!b) {
        err_set(e, ST_ENOENT, "cannot open the certificate %s (%s): make one with strata init", path,
                tls_why(why, sizeof why));
        return NULL;
    }
    X509 *x = PEM_read_bio_X509(b, NULL, NULL, NULL);
    BIO_free(b);
    if (!x)
        err_set(e, ST_ETRUST, "%s is no PEM certificate (%s)", path, tls_why(why, sizeof why));
    return x;
}

STACK_OF(X509) * tls_read_certs(const char *path, struct err *e)
{
    BIO *b = BIO_new_file(path, "r");
    STACK_OF(X509) *all = sk_X509_new_null();
    char why[128];
    X509 *x = NULL;
    while (b && all && sk_X509_num(all) < 64 && (x = PEM_read_bio_X509(b, NULL, NULL, NULL)))
        if (!sk_X509_push(all, x)) {
            X509_free(x);
            break;
        }
    /* The end of the file is told as a missing first line; anything else is a broken certificate. */
    bool broken =
        b && !x && ERR_peek_last_error() && ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE;
    if (!b)
        err_set(e, ST_ENOENT, "cannot open the certificate %s (%s): make one with strata init", path,
                tls_why(why, sizeof why));
    else if (broken || !all || !sk_X509_num(all))
        err_set(e, ST_ETRUST, "%s is no PEM certificate (%s)", path, tls_why(why, sizeof why));
    BIO_free(b);
    ERR_clear_error();
    if (b && !broken && all && sk_X509_num(all))
        return all;
    sk_X509_pop_free(all, X509_free);
    return NULL;
}

EVP_PKEY *tls_read_key(const char *path, struct err *e)
{
    char why[128];
    struct stat st;
    if (stat(path, &st)) {
        err_set(e, ST_ENOENT, "cannot open the key %s: make one with strata init", path);
        return NULL;
    }
    if (st.st_mode & (S_IRWXG | S_IRWXO)) {
        err_set(e, ST_EDENIED, "the key %s can be read by others (mode %03o): chmod 600 it", path,
                (unsigned)st.st_mode & 0777);
        return NULL;
    }
    BIO *b = BIO_new_file(path, "r");
    EVP_PKEY *k = b ? PEM_read_bio_PrivateKey(b, NULL, NULL, (void *)"") : NULL;
    BIO_free(b);
    if (!k)
        err_set(e, ST_ETRUST, "%s is no PEM private key without a passphrase (%s)", path,
                tls_why(why, sizeof why));
    return k;
}

static bool all_words_in(const char *list, const char *allowed, char bad[64])
{
    while (*list) {
        size_t n = strcspn(list, ":");
        char word[64], want[66];
        snprintf(word, sizeof word, "%.*s", (int)(n < 63 ? n : 63), list);
        snprintf(want, sizeof want, ":%s:", word);
        if (!n || !strstr(allowed, want)) {
            str_copy(bad, 64, word);
            return false;
        }
        list += n;
        if (*list == ':' && !*++list) {
            str_copy(bad, 64, "");
            return false;
        }
    }
    return true;
}

int tls_settings_check(const char *ciphers, const char *groups, struct err *e)
{
    static const char suites[] = ":" TLS_DEFAULT_CIPHERS ":", curves[] = ":X25519:P-256:X25519MLKEM768:";
    char bad[64];
    if (ciphers && (!*ciphers || !all_words_in(ciphers, suites, bad)))
        return err_reason(e, ST_ECONFIG, "BAD_CIPHERS",
                          "'%s' is none of the TLS 1.3 suites that strata allows: " TLS_DEFAULT_CIPHERS,
                          *ciphers ? bad : "");
    if (groups && (!*groups || !all_words_in(groups, curves, bad)))
        return err_reason(e, ST_ECONFIG, "BAD_GROUPS",
                          "'%s' is none of the key exchange groups that strata allows: "
                          "X25519:P-256:X25519MLKEM768",
                          *groups ? bad : "");
    return ST_OK;
}

static int select_alpn(SSL *ssl, const unsigned char **out, unsigned char *outlen, const unsigned char *in,
                       unsigned inlen, void *arg)
{
    unsigned n;
    const unsigned char *want = tls_ctx_alpn(arg, &n);
    (void)ssl;
    for (unsigned i = 0; i < inlen && i + in[i] + 1u <= inlen; i += in[i] + 1u)
        if (in[i] + 1u == n && !memcmp(&in[i], want, n)) {
            *out = &in[i + 1];
            *outlen = in[i];
            return SSL_TLSEXT_ERR_OK;
        }
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

/* What all contexts have in common. */
static SSL_CTX *plain(struct tls_ctx *t, bool server, const char *ciphers, const char *groups)
{
    SSL_CTX *c = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
    unsigned n;
    const unsigned char *alpn = tls_ctx_alpn(t, &n);
    if (!c || !SSL_CTX_set_min_proto_version(c, TLS1_3_VERSION) ||
        !SSL_CTX_set_max_proto_version(c, TLS1_3_VERSION) ||
        !SSL_CTX_set_ciphersuites(c, ciphers ? ciphers : TLS_DEFAULT_CIPHERS) ||
        !SSL_CTX_set1_groups_list(c, groups ? groups : TLS_DEFAULT_GROUPS) ||
        !SSL_CTX_set_num_tickets(c, 0)) {
        SSL_CTX_free(c);
        return NULL;
    }
    SSL_CTX_set_security_level(c, 2);
    SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);
    /* The whole chain is in the certificate's file; searching for it at each handshake would be waste. */
    SSL_CTX_set_mode(c, SSL_MODE_NO_AUTO_CHAIN);
    /* Compressing certificates costs 18 % of the handshakes and saves a few hundred bytes. */
    SSL_CTX_set_options(c, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TX_CERTIFICATE_COMPRESSION |
                               SSL_OP_NO_RX_CERTIFICATE_COMPRESSION);
    if (server)
        SSL_CTX_set_alpn_select_cb(c, select_alpn, t);
    else
        SSL_CTX_set_alpn_protos(c, alpn, n);
    return c;
}

struct files { /* read from disk */
    X509_STORE *trust;
    STACK_OF(X509) * anchors, *chain; /* chain: ours first */
    EVP_PKEY *key;
};

static void files_fini(struct files *f)
{
    X509_STORE_free(f->trust);
    sk_X509_pop_free(f->anchors, X509_free);
    sk_X509_pop_free(f->chain, X509_free);
    EVP_PKEY_free(f->key);
}

static bool use_chain(SSL_CTX *c, const struct files *f, bool with_anchors)
{
    bool ok = SSL_CTX_use_certificate(c, sk_X509_value(f->chain, 0)) && SSL_CTX_use_PrivateKey(c, f->key);
    for (int i = 1; ok && i < sk_X509_num(f->chain); i++)
        ok = SSL_CTX_add1_chain_cert(c, sk_X509_value(f->chain, i));
    for (int i = 0; ok && with_anchors && i < sk_X509_num(f->anchors); i++)
        ok = SSL_CTX_add1_chain_cert(c, sk_X509_value(f->anchors, i));
    return ok;
}

static SSL_CTX *mutual(struct tls_ctx *t, const struct tls_cfg *cfg, const struct files *f, bool server)
{
    SSL_CTX *c = plain(t, server, cfg->ciphers, cfg->groups);
    if (!c || !use_chain(c, f, false)) {
        SSL_CTX_free(c);
        return NULL;
    }
    SSL_CTX_set1_cert_store(c, f->trust);
    SSL_CTX_set_verify(c, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_verify_depth(c, 4);
    SSL_CTX_set_cert_verify_callback(c, tls_verify_chain, t);
    SSL_CTX_set_purpose(c, server ? X509_PURPOSE_SSL_CLIENT : X509_PURPOSE_SSL_SERVER);
    return c;
}

/* An external CA need not publish a list for each of its intermediates: what has none is not refused. */
static int crl_missing_is_fine(int ok, X509_STORE_CTX *sc)
{
    if (ok || X509_STORE_CTX_get_error(sc) != X509_V_ERR_UNABLE_TO_GET_CRL)
        return ok;
    X509_STORE_CTX_set_error(sc, X509_V_OK);
    return 1;
}

static int load_trust(const struct tls_cfg *cfg, struct files *f, STACK_OF(X509_CRL) * *crls, struct err *e)
{
    char why[128];
    if (!(f->trust = X509_STORE_new()))
        return err_set(e, ST_ENOMEM, "no memory");
    if (!(f->anchors = tls_read_certs(cfg->ca_file, e)))
        return err_set(e, ST_ENOENT,
                       "cannot read the CA certificate %s: is the path right, and the file whole?",
                       cfg->ca_file);
    for (int i = 0; i < sk_X509_num(f->anchors); i++)
        if (!X509_STORE_add_cert(f->trust, sk_X509_value(f->anchors, i)))
            return err_set(e, ST_ENOMEM, "no memory");
    /* What the operator put into the file is trusted as it stands, an intermediate alone included. */
    X509_STORE_set_flags(f->trust, X509_V_FLAG_PARTIAL_CHAIN);
    if (!cfg->crl_file)
        return ST_OK;
    BIO *b = BIO_new_file(cfg->crl_file, "r");
    X509_CRL *crl;
    *crls = sk_X509_CRL_new_null();
    while (b && *crls && (crl = PEM_read_bio_X509_CRL(b, NULL, NULL, NULL)))
        if (!sk_X509_CRL_push(*crls, crl) || !X509_STORE_add_crl(f->trust, crl))
            break;
    BIO_free(b);
    if (!b || !*crls || !sk_X509_CRL_num(*crls))
        return err_reason(e, ST_ENOENT, "CRL_INVALID", "cannot read the revocation list %s (%s)",
                          cfg->crl_file, tls_why(why, sizeof why));
    ERR_clear_error();
    X509_STORE_set_flags(f->trust, X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL);
    X509_STORE_set_verify_cb(f->trust, crl_missing_is_fine);
    return ST_OK;
}

/* Our own certificate must pass the test that peers will put it to: better to say so at start. */
static int check_own(const struct tls_ctx *t, const struct files *f, const char *path, int purpose,
                     struct err *e)
{
    X509_STORE_CTX *sc = X509_STORE_CTX_new();
    struct err why = {0};
    int rc = ST_OK;
    if (!sc || !X509_STORE_CTX_init(sc, f->trust, sk_X509_value(f->chain, 0), f->chain)) {
        rc = err_set(e, ST_ENOMEM, "no memory");
    } else {
        X509_STORE_CTX_set_purpose(sc, purpose);
        X509_VERIFY_PARAM_set_auth_level(X509_STORE_CTX_get0_param(sc), 2);
        tls_verify_time(sc, t->clock);
        if (X509_verify_cert(sc) != 1) {
            (void)tls_verify_error(sc, &why);
            rc =
                err_reason(e, ST_ETRUST, why.reason, "%s would be refused by every peer: %s", path, why.text);
        } else if (!tls_key_strong(f->key)) {
            rc = err_reason(e, ST_ETRUST, "WEAK_KEY",
                            "the key of %s is too weak: use P-256, Ed25519 or RSA of "
                            "2048 bits",
                            path);
        }
    }
    X509_STORE_CTX_free(sc);
    ERR_clear_error();
    return rc;
}

static int load_files(struct tls_ctx *t, const struct tls_cfg *cfg, struct files *f, struct err *e)
{
    int rc;
    if (!(f->chain = tls_read_certs(cfg->cert_file, e)) || !(f->key = tls_read_key(cfg->key_file, e)))
        return e ? e->code : ST_ETRUST;
    if ((rc = load_trust(cfg, f, &t->crls, e)) < 0)
        return rc;
    X509 *cert = sk_X509_value(f->chain, 0);
    if ((rc = tls_identity_of(cert, &t->self, e)) < 0)
        return err_prefix(e, "%s", cfg->cert_file);
    if ((t->self.kind != TLS_USER &&
         (rc = check_own(t, f, cfg->cert_file, X509_PURPOSE_SSL_SERVER, e)) < 0) ||
        (t->self.kind != TLS_COORDINATOR &&
         (rc = check_own(t, f, cfg->cert_file, X509_PURPOSE_SSL_CLIENT, e)) < 0))
        return rc;
    if (X509_check_private_key(cert, f->key) != 1) {
        ERR_clear_error();
        return err_reason(e, ST_ETRUST, "KEY_MISMATCH", "the key %s does not belong to the certificate %s",
                          cfg->key_file, cfg->cert_file);
    }
    if (strcmp(t->self.trust_domain, cfg->trust_domain))
        return err_reason(e, ST_ETRUST, "FOREIGN_TRUST_DOMAIN",
                          "%s is of the trust domain %s, the configuration says %s", cfg->cert_file,
                          t->self.trust_domain, cfg->trust_domain);
    return ST_OK;
}

static struct tls_ctx *ctx_alloc(enum tls_role role, const struct clock *clock)
{
    struct tls_ctx *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->role = role;
    t->clock = clock;
    atomic_init(&t->refs, 1);
    return t;
}

static int refuses_settings(struct err *e)
{
    char why[128];
    return err_set(e, ST_EINTERNAL, "OpenSSL refuses the settings of strata: %s", tls_why(why, sizeof why));
}

int tls_ctx_new(struct tls_ctx **out, const struct tls_cfg *cfg, const struct clock *clock, struct err *e)
{
    struct files f = {0};
    int rc = tls_settings_check(cfg->ciphers, cfg->groups, e);
    if (rc < 0)
        return rc;
    struct tls_ctx *t = ctx_alloc(TLS_MUTUAL, clock);
    rc = t ? load_files(t, cfg, &f, e) : err_set(e, ST_ENOMEM, "no memory");
    if (rc == ST_OK) {
        t->rules = tls_rules_ref(cfg->rules);
        t->server = mutual(t, cfg, &f, true);
        t->client = mutual(t, cfg, &f, false);
        if (!t->server || !t->client)
            rc = refuses_settings(e);
    }
    files_fini(&f);
    if (rc < 0) {
        tls_ctx_unref(t);
        return rc;
    }
    *out = t;
    return ST_OK;
}

int tls_enroll_server_new(struct tls_ctx **out, const struct tls_cfg *cfg, const struct clock *clock,
                          struct err *e)
{
    struct files f = {0};
    struct tls_ctx *t = ctx_alloc(TLS_ENROLL_SERVER, clock);
    int rc = t ? load_files(t, cfg, &f, e) : err_set(e, ST_ENOMEM, "no memory");
    if (rc == ST_OK &&
        (!(t->server = plain(t, true, cfg->ciphers, cfg->groups)) || !use_chain(t->server, &f, true)))
        rc = refuses_settings(e);
    files_fini(&f);
    if (rc < 0) {
        tls_ctx_unref(t);
        return rc;
    }
    SSL_CTX_set_verify(t->server, SSL_VERIFY_NONE, NULL);
    *out = t;
    return ST_OK;
}

int tls_enroll_client_new(struct tls_ctx **out, const uint8_t ca_spki[32], const struct clock *clock,
                          struct err *e)
{
    struct tls_ctx *t = ctx_alloc(TLS_ENROLL_CLIENT, clock);
    if (!t)
        return err_set(e, ST_ENOMEM, "no memory");
    memcpy(t->pin, ca_spki, 32);
    if (!(t->client = plain(t, false, NULL, NULL))) {
        tls_ctx_unref(t);
        return refuses_settings(e);
    }
    SSL_CTX_set_verify(t->client, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_cert_verify_callback(t->client, tls_verify_pinned, t);
    *out = t;
    return ST_OK;
}

const unsigned char *tls_ctx_alpn(const struct tls_ctx *t, unsigned *len)
{
    const unsigned char *w = t->role == TLS_MUTUAL ? alpn_wire : alpn_enroll_wire;
    *len = w[0] + 1u;
    return w;
}

struct tls_ctx *tls_ctx_ref(struct tls_ctx *t)
{
    atomic_fetch_add(&t->refs, 1);
    return t;
}

void tls_ctx_unref(struct tls_ctx *t)
{
    if (!t || atomic_fetch_sub(&t->refs, 1) != 1)
        return;
    SSL_CTX_free(t->server);
    SSL_CTX_free(t->client);
    tls_rules_unref(t->rules);
    sk_X509_CRL_pop_free(t->crls, X509_CRL_free);
    free(t);
}

const struct tls_identity *tls_ctx_self(const struct tls_ctx *t)
{
    return &t->self;
}

struct ssl_ctx_st *tls_ctx_server(struct tls_ctx *t)
{
    return t->server;
}

struct ssl_ctx_st *tls_ctx_client(struct tls_ctx *t)
{
    return t->client;
}
