/* The CA in memory, for the files that sign with it. */
#ifndef STRATA_TLS_CA_PRIV_H
#define STRATA_TLS_CA_PRIV_H

#include "common/tls/tls_priv.h"

struct tls_ca {
    X509 *cert, *cross; /* cross: our key, signed by the CA before us; NULL outside of a rotation */
    EVP_PKEY *key;
    char trust_domain[128], serial[48];
};

int ca_openssl_failed(struct err *e, const char *what);
bool ca_add_ext(X509 *x, X509 *issuer, int nid, const char *value);
bool ca_set_serial(X509 *x);
bool ca_set_times(X509 *x, int64_t from_us, int64_t to_us);
bool ca_set_cn(X509_NAME *n, const char *cn);
int ca_sign(X509 *x, EVP_PKEY *key); /* with the digest that goes with the key; 0 = failed */
/* PEM of the key, encrypted when there is a passphrase, into path (0600). */
int ca_write_key(EVP_PKEY *key, const char *passphrase, const char *path, struct err *e) ST_CHECK;
int ca_write_certs(X509 *const *v, size_t n, const char *path, struct err *e) ST_CHECK;
int ca_append_cert(X509 *x, struct buf *pem, struct err *e) ST_CHECK;
/* A self-signed CA certificate for the key. NULL with *e. */
X509 *ca_self_signed(EVP_PKEY *key, const char *trust_domain, int64_t from_us, int64_t to_us, struct err *e);
EVP_PKEY *ca_read_key(const char *path, struct err *e); /* asks STRATA_CA_PASSPHRASE_FILE when encrypted */

#endif
