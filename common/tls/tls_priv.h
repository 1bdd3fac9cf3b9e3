/* Shared by the files of the tls room alone. */
#ifndef STRATA_TLS_PRIV_H
#define STRATA_TLS_PRIV_H

#include <openssl/x509.h>

#include "common/tls/tls.h"

/* The certificate's one SPIFFE id, key hash, serial and validity. ST_ETRUST with NO_IDENTITY. */
int tls_identity_of(X509 *cert, struct tls_identity *out, struct err *e) ST_CHECK;
/* Takes OpenSSL's oldest queued error as a few words, and clears the queue. */
const char *tls_why(char *buf, size_t n);
/* One certificate from a PEM file; NULL with *e. */
X509 *tls_read_cert(const char *path, struct err *e);
EVP_PKEY *tls_read_key(const char *path, struct err *e);

#endif
