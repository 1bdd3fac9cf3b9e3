#include "coordinator/api/netcheck.h"

#include <math.h>

#define CHUNK 65536.0    /* what one end may have counted and the other not yet */
#define SLACK_NS 150e6   /* starting and ending a stream, on a host that is busy */
#define RTT_SLACK_NS 5e6 /* two probes at two times on hosts that are busy */

static bool possible_latency(const Strata__V1__NetLatency *l)
{
    return !l || (l->received <= l->sent && l->late <= l->sent && l->min_ns <= l->p50_ns &&
                  l->p50_ns <= l->p99_ns && l->p99_ns <= l->max_ns && l->min_ns <= l->mean_ns &&
                  l->mean_ns <= l->max_ns && l->max_ns < 3600000000000ull && (!l->received || l->min_ns > 0));
}

static double overall(const Strata__V1__NetRate *r)
{
    return r->ns ? (double)r->bytes * 1e9 / (double)r->ns : 0;
}

/* The steady part is at least a quarter of a stream, so it cannot be faster than four times the whole. */
static bool possible_rate(const Strata__V1__NetRate *r)
{
    return !r || (isfinite(r->bytes_per_s) && r->bytes_per_s >= 0 && r->bytes_per_s < 1e12 &&
                  isfinite(r->spread) && r->spread >= 0 && isfinite(r->wire_bytes_per_s) &&
                  (r->bytes_per_s <= 0 || r->bytes_per_s <= 4.1 * overall(r)) &&
                  (r->wire_bytes_per_s <= 0 || (r->wire_bytes_per_s >= r->bytes_per_s * 0.999 &&
                                                r->wire_bytes_per_s <= r->bytes_per_s * 4)));
}

static bool possible(const Strata__V1__ProbeReply *r)
{
    return !r || (r->latency && possible_latency(r->latency) && possible_rate(r->forth) &&
                  possible_rate(r->forth_peer) && possible_rate(r->back));
}

/* A sender sends a little longer than the receiver receives, and as much. */
static const char *compare(const Strata__V1__NetRate *sent, const Strata__V1__NetRate *got)
{
    if (!sent || !got)
        return NULL;
    if (fabs((double)sent->bytes - (double)got->bytes) > CHUNK + 0.001 * (double)sent->bytes)
        return "BYTES_DISAGREE";
    double s = (double)sent->ns, g = (double)got->ns;
    double slack = SLACK_NS + 0.3 * (s > g ? s : g);
    return fabs(s - g) > slack ? "RATE_DISAGREES" : NULL;
}

static bool same(const Strata__V1__NetRate *a, const Strata__V1__NetRate *b)
{
    return a->bytes == b->bytes && a->ns == b->ns &&
           fabs(a->bytes_per_s - b->bytes_per_s) <= 1e-6 * a->bytes_per_s;
}

static const char *streams(const struct net_story *s)
{
    const Strata__V1__ProbeReply *r = s->ab;
    const Strata__V1__SeenReply *k = s->ab_seen;
    const char *bad;
    if (r->forth_peer && k->received && !same(r->forth_peer, k->received))
        return "REPORT_ALTERED";
    if ((bad = compare(r->forth, k->received)))
        return bad;
    return compare(k->sent, r->back);
}

const char *net_contradiction(const struct net_story *s)
{
    if (!possible(s->ab) || !possible(s->ba) ||
        (s->ab_seen && (!possible_rate(s->ab_seen->received) || !possible_rate(s->ab_seen->sent))))
        return "IMPOSSIBLE_FIGURES";
    if (s->ab && s->ab_seen && s->ab_seen->known) {
        const Strata__V1__NetLatency *l = s->ab->latency;
        /* What came back must have come; what came must have been sent. */
        if (l->received > s->ab_seen->pings || s->ab_seen->pings > l->sent + l->duplicates)
            return "PROBES_DISAGREE";
        const char *bad = streams(s);
        if (bad)
            return bad;
    }
    if (s->ab && s->ba && s->ab->latency->received && s->ba->latency->received) {
        double x = (double)s->ab->latency->min_ns, y = (double)s->ba->latency->min_ns;
        if (fabs(x - y) > RTT_SLACK_NS + 0.5 * (x < y ? x : y))
            return "RTT_DISAGREES";
    }
    return NULL;
}
