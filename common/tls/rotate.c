/* Changing the CA while the cluster runs: the new one is trusted through the old until everybody has it. */
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/tls/ca_priv.h"

struct paths {
    char crt[4096], key[4096], cross[4096];
};

static int paths_of(struct paths *p, const char *dir, struct err *e)
{
    if (fs_join(p->crt, sizeof p->crt, dir, "ca.crt") < 0 ||
        fs_join(p->key, sizeof p->key, dir, "ca.key") < 0 ||
        fs_join(p->cross, sizeof p->cross, dir, "cross.crt") < 0)
        return err_set(e, ST_ELIMIT, "path too long: %s", dir);
    return ST_OK;
}

bool tls_ca_rotating(const char *dir)
{
    struct paths p;
    return paths_of(&p, dir, NULL) == ST_OK && fs_exists(p.cross);
}

/* `fresh`'s name and key, signed by the CA before it. */
static X509 *cross_sign(const struct tls_ca *old, X509 *fresh, EVP_PKEY *key, struct err *e)
{
    char id[256];
    X509 *x = X509_new();
    snprintf(id, sizeof id, "URI:spiffe://%s", old->trust_domain);
    if (x && X509_set_version(x, X509_VERSION_3) && ca_set_serial(x) &&
        X509_set1_notBefore(x, X509_get0_notBefore(fresh)) &&
        X509_set1_notAfter(x, X509_get0_notAfter(old->cert)) &&
        X509_set_subject_name(x, X509_get_subject_name(fresh)) &&
        X509_set_issuer_name(x, X509_get_subject_name(old->cert)) && X509_set_pubkey(x, key) &&
        ca_add_ext(x, old->cert, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
        ca_add_ext(x, old->cert, NID_key_usage, "critical,keyCertSign,cRLSign") &&
        ca_add_ext(x, old->cert, NID_subject_key_identifier, "hash") &&
        ca_add_ext(x, old->cert, NID_authority_key_identifier, "keyid") &&
        ca_add_ext(x, old->cert, NID_subject_alt_name, id) && ca_sign(x, old->key))
        return x;
    X509_free(x);
    (void)ca_openssl_failed(e, "the certificate that ties the new CA to the old one");
    return NULL;
}

/* The order on disk: first what makes the new key trusted, the key that signs last. A crash in between leaves
 * the old CA signing, with one more certificate trusted. */
static int write_rotation(const struct paths *p, X509 *fresh, X509 *cross, EVP_PKEY *key, struct err *e)
{
    STACK_OF(X509) *have = tls_read_certs(p->crt, e);
    X509 *all[65] = {fresh};
    size_t n = 1;
    char pass[256];
    if (!have)
        return e ? e->code : ST_ETRUST;
    for (int i = 0; i < sk_X509_num(have); i++)
        all[n++] = sk_X509_value(have, i);
    int rc = tls_ca_passphrase(pass, e);
    if (rc == ST_OK && (rc = ca_write_certs(&cross, 1, p->cross, e)) == ST_OK &&
        (rc = ca_write_certs(all, n, p->crt, e)) == ST_OK)
        rc = ca_write_key(key, pass[0] ? pass : NULL, p->key, e);
    OPENSSL_cleanse(pass, sizeof pass);
    sk_X509_pop_free(have, X509_free);
    return rc;
}

int tls_ca_rotate(const char *dir, unsigned days, const struct clock *clock, struct err *e)
{
    struct paths p;
    struct tls_ca *old = NULL;
    int rc = paths_of(&p, dir, e);
    if (rc < 0)
        return rc;
    if (fs_exists(p.cross))
        return err_reason(e, ST_ECONFLICT, "ROTATING", "%s: a rotation of the CA is under way: end it first",
                          dir);
    if ((rc = tls_ca_load(&old, dir, e)) < 0)
        return rc;
    long depth = X509_get_pathlen(old->cert);
    int64_t now = clock_wall_us(clock);
    EVP_PKEY *key =
        EVP_PKEY_is_a(old->key, "ED25519") ? EVP_PKEY_Q_keygen(NULL, NULL, "ED25519") : EVP_EC_gen("P-256");
    X509 *fresh = NULL, *cross = NULL;
    if (depth == 0 || !(X509_get_extension_flags(old->cert) & EXFLAG_SS))
        rc = err_reason(e, ST_EDENIED, "NOT_OURS_TO_ROTATE",
                        "%s is signed by another CA, or may not sign one: have its owner rotate it", p.crt);
    else if (!key ||
             !(fresh = ca_self_signed(key, old->trust_domain, now - 300000000,
                                      now + (int64_t)days * 86400000000, e)) ||
             !(cross = cross_sign(old, fresh, key, e)))
        rc = key ? e ? e->code : ST_EINTERNAL : ca_openssl_failed(e, "the CA's key");
    else
        rc = write_rotation(&p, fresh, cross, key, e);
    X509_free(fresh);
    X509_free(cross);
    EVP_PKEY_free(key);
    tls_ca_free(old);
    return rc;
}

int tls_ca_rotate_end(const char *dir, struct err *e)
{
    struct paths p;
    int rc = paths_of(&p, dir, e);
    if (rc < 0)
        return rc;
    if (!fs_exists(p.cross))
        return err_reason(e, ST_ECONFLICT, "NOT_ROTATING", "%s: no rotation of the CA is under way", dir);
    X509 *first = tls_read_cert(p.crt, e);
    if (!first)
        return e ? e->code : ST_ETRUST;
    rc = ca_write_certs(&first, 1, p.crt, e);
    X509_free(first);
    if (rc == ST_OK && unlink(p.cross) < 0)
        rc = err_set(e, ST_EIO, "cannot remove %s", p.cross);
    return rc;
}
