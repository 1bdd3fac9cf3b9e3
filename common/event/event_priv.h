/* Shared by the files of this room. */
#ifndef STRATA_EVENT_PRIV_H
#define STRATA_EVENT_PRIV_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of the well-formed UTF-8 sequence at p (no surrogates, nothing overlong), 0 if there is none. */
size_t event_utf8_len(const uint8_t *p, size_t n);

#endif
