/* Turns "host:port" into an address on a file thread, since asking a name server blocks. Loop thread only. */
#ifndef STRATA_LAYERS_RESOLVE_H
#define STRATA_LAYERS_RESOLVE_H

#include "agent/layers/files.h"
#include "common/quic/quic.h"

struct resolve;

/* Called once, never inline. addr is valid when rc is ST_OK, else *e says why. */
typedef void (*resolve_fn)(void *arg, int rc, const struct quic_addr *addr, const struct err *e);

/* ST_ENOMEM, ST_ELIMIT. *out is valid until fn is called. */
int resolve_start(struct resolve **out, struct files *f, const char *address, resolve_fn fn, void *arg,
                  struct err *e) ST_CHECK;
void resolve_cancel(struct resolve *r); /* fn will not be called; NULL is fine */

#endif
