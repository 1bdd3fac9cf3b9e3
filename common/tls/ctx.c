/* The TLS settings of every connection, and the check of who is at the other end. */
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

struct tls_ctx {
    atomic_uint refs;
    SSL_CTX *server, *client;
    struct tls_identity self;
    const struct clock *clock;
};

static const unsigned char alpn_wire[] = "\x08" TLS_ALPN;

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

static int select_alpn(SSL *ssl, const unsigned char **out, unsigned char *outlen, const unsigned char *in,
                       unsigned inlen, void *arg)
{
    (void)ssl;
    (void)arg;
    for (unsigned i = 0; i < inlen && i + in[i] + 1u <= inlen; i += in[i] + 1u)
        if (in[i] == sizeof alpn_wire - 2 && !memcmp(&in[i + 1], TLS_ALPN, sizeof alpn_wire - 2)) {
            *out = &in[i + 1];
            *outlen = in[i];
            return SSL_TLSEXT_ERR_OK;
        }
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

static SSL_CTX *make(const SSL_METHOD *method, X509_STORE *trust, X509 *cert, EVP_PKEY *key, bool server)
{
    SSL_CTX *c = SSL_CTX_new(method);
    if (!c || !SSL_CTX_set_min_proto_version(c, TLS1_3_VERSION) ||
        !SSL_CTX_set_max_proto_version(c, TLS1_3_VERSION) ||
        !SSL_CTX_set_ciphersuites(
            c, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256") ||
        !SSL_CTX_set1_groups_list(c, "X25519:P-256") || !SSL_CTX_use_certificate(c, cert) ||
        !SSL_CTX_use_PrivateKey(c, key) || !SSL_CTX_set_num_tickets(c, 0)) {
        SSL_CTX_free(c);
        return NULL;
    }
    SSL_CTX_set1_cert_store(c, trust);
    SSL_CTX_set_verify(c, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_verify_depth(c, 4);
    SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);
    /* Compressing certificates costs 18 % of the handshakes and saves a few hundred bytes. */
    SSL_CTX_set_options(c, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TX_CERTIFICATE_COMPRESSION |
                               SSL_OP_NO_RX_CERTIFICATE_COMPRESSION);
    SSL_CTX_set_purpose(c, server ? X509_PURPOSE_SSL_CLIENT : X509_PURPOSE_SSL_SERVER);
    if (server)
        SSL_CTX_set_alpn_select_cb(c, select_alpn, NULL);
    else
        SSL_CTX_set_alpn_protos(c, alpn_wire, sizeof alpn_wire - 1);
    return c;
}

static int load_trust(const char *path, X509_STORE *trust, struct err *e)
{
    char why[128];
    if (X509_STORE_load_file(trust, path) == 1)
        return ST_OK;
    return err_set(e, ST_ENOENT, "cannot read the CA certificate %s (%s)", path, tls_why(why, sizeof why));
}

/* Our own certificate must pass the test that peers will put it to: better to say so at start. */
static int check_own(X509_STORE *trust, X509 *cert, const char *path, struct err *e)
{
    X509_STORE_CTX *sc = X509_STORE_CTX_new();
    int ok = sc && X509_STORE_CTX_init(sc, trust, cert, NULL) && X509_verify_cert(sc) == 1;
    int rc = ST_OK;
    if (!ok)
        rc = err_reason(e, ST_ETRUST, "OWN_CERTIFICATE", "the certificate %s does not pass its own CA: %s",
                        path, sc ? X509_verify_cert_error_string(X509_STORE_CTX_get_error(sc)) : "no memory");
    X509_STORE_CTX_free(sc);
    ERR_clear_error();
    return rc;
}

static int build(struct tls_ctx *t, const struct tls_cfg *cfg, X509_STORE *trust, X509 *cert, EVP_PKEY *key,
                 struct err *e)
{
    char why[128];
    int rc;
    if ((rc = load_trust(cfg->ca_file, trust, e)) < 0 || (rc = tls_identity_of(cert, &t->self, e)) < 0 ||
        (rc = check_own(trust, cert, cfg->cert_file, e)) < 0)
        return rc;
    if (X509_check_private_key(cert, key) != 1) {
        ERR_clear_error();
        return err_set(e, ST_ETRUST, "the key %s does not belong to the certificate %s", cfg->key_file,
                       cfg->cert_file);
    }
    if (strcmp(t->self.trust_domain, cfg->trust_domain))
        return err_reason(e, ST_ETRUST, "FOREIGN_TRUST_DOMAIN",
                          "%s is of the trust domain %s, the configuration says %s", cfg->cert_file,
                          t->self.trust_domain, cfg->trust_domain);
    t->server = make(TLS_server_method(), trust, cert, key, true);
    t->client = make(TLS_client_method(), trust, cert, key, false);
    if (!t->server || !t->client)
        return err_set(e, ST_EINTERNAL, "OpenSSL refuses the settings of strata: %s",
                       tls_why(why, sizeof why));
    return ST_OK;
}

int tls_ctx_new(struct tls_ctx **out, const struct tls_cfg *cfg, const struct clock *clock, struct err *e)
{
    struct tls_ctx *t = calloc(1, sizeof *t);
    X509_STORE *trust = X509_STORE_new();
    X509 *cert = tls_read_cert(cfg->cert_file, e);
    EVP_PKEY *key = cert ? tls_read_key(cfg->key_file, e) : NULL;
    int rc = !t || !trust    ? err_set(e, ST_ENOMEM, "no memory")
             : !cert || !key ? (e ? e->code : ST_ETRUST)
                             : ST_OK;
    if (rc == ST_OK) {
        t->clock = clock;
        atomic_init(&t->refs, 1);
        rc = build(t, cfg, trust, cert, key, e);
    }
    X509_STORE_free(trust);
    X509_free(cert);
    EVP_PKEY_free(key);
    if (rc < 0) {
        if (t) {
            SSL_CTX_free(t->server);
            SSL_CTX_free(t->client);
        }
        free(t);
        return rc;
    }
    *out = t;
    return ST_OK;
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

static const char *reason_of(long verify)
{
    switch (verify) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
        return "EXPIRED";
    case X509_V_ERR_CERT_NOT_YET_VALID:
        return "NOT_YET_VALID";
    case X509_V_ERR_INVALID_PURPOSE:
        return "BAD_PURPOSE";
    default:
        return "UNKNOWN_CA";
    }
}

int tls_peer_identity(struct tls_ctx *t, struct ssl_st *ssl, struct tls_identity *out, struct err *e)
{
    X509 *cert = SSL_get0_peer_certificate(ssl);
    long v = SSL_get_verify_result(ssl);
    if (!cert && v == X509_V_OK)
        return err_reason(e, ST_ETRUST, "NO_CERTIFICATE", "the peer showed no certificate");
    if (v != X509_V_OK)
        return err_reason(e, ST_ETRUST, reason_of(v), "the peer's certificate is refused: %s",
                          X509_verify_cert_error_string(v));
    int rc = tls_identity_of(cert, out, e);
    if (rc < 0)
        return rc;
    if (strcmp(out->trust_domain, t->self.trust_domain))
        return err_reason(e, ST_ETRUST, "FOREIGN_TRUST_DOMAIN",
                          "the peer %s is of another trust domain than %s", out->spiffe,
                          t->self.trust_domain);
    int64_t now = clock_wall_us(t->clock);
    if (now > out->not_after_us)
        return err_reason(e, ST_ETRUST, "EXPIRED", "the certificate of %s has expired: renew it",
                          out->principal);
    if (now < out->not_before_us)
        return err_reason(e, ST_ETRUST, "NOT_YET_VALID",
                          "the certificate of %s is not valid yet: is this clock right?", out->principal);
    return ST_OK;
}
