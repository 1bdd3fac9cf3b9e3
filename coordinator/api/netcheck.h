/*
 * Do both ends of a probe tell the same story? An agent that lies about a link must contradict the other end,
 * itself, or what is possible. Pure.
 */
#ifndef STRATA_API_NETCHECK_H
#define STRATA_API_NETCHECK_H

#include <stdbool.h>

#include "strata/v1/net.pb-c.h"

struct net_story { /* all borrowed; NULL = not told */
    /* What `a` said of its probe of `b`, and what `b` said that it saw of it. */
    const Strata__V1__ProbeReply *ab;
    const Strata__V1__SeenReply *ab_seen;
    /* The other way round. */
    const Strata__V1__ProbeReply *ba;
};
/* NULL when nothing contradicts, else a stable reason: IMPOSSIBLE_FIGURES, PROBES_DISAGREE, RTT_DISAGREES,
 * BYTES_DISAGREE, RATE_DISAGREES, REPORT_ALTERED. */
const char *net_contradiction(const struct net_story *s);

#endif
