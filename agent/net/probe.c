#include "agent/net/probe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t magic[4] = {'S', 'N', 'P', '1'};

static void put(uint8_t **p, uint64_t v, unsigned bytes)
{
    for (unsigned i = bytes; i > 0; i--)
        *(*p)++ = (uint8_t)(v >> (8 * (i - 1)));
}

static uint64_t take(const uint8_t **p, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes; i++)
        v = v << 8 | *(*p)++;
    return v;
}

/* magic 4, kind 1, zeros 3, session 8, seq 4, order 4, held 8, zeros 8 */
void probe_encode(const struct probe *p, uint8_t *out, size_t size)
{
    memset(out, 0, size);
    memcpy(out, magic, sizeof magic);
    out[4] = (uint8_t)p->kind;
    uint8_t *at = out + 8;
    put(&at, p->session, 8);
    put(&at, p->seq, 4);
    put(&at, p->order, 4);
    put(&at, p->held_ns, 8);
}

int probe_decode(const uint8_t *p, size_t n, struct probe *out)
{
    static const uint8_t zero[8];
    if (n < PROBE_MIN_BYTES || n > PROBE_MAX_BYTES || memcmp(p, magic, sizeof magic) ||
        (p[4] != PROBE_PING && p[4] != PROBE_PONG) || memcmp(p + 5, zero, 3) || memcmp(p + 32, zero, 8))
        return ST_EPROTO;
    const uint8_t *at = p + 8;
    out->kind = (enum probe_kind)p[4];
    out->session = take(&at, 8);
    out->seq = (uint32_t)take(&at, 4);
    out->order = (uint32_t)take(&at, 4);
    out->held_ns = take(&at, 8);
    return out->kind == PROBE_PING && (out->order || out->held_ns) ? ST_EPROTO : ST_OK;
}

/* ---- a series ---- */

/* A peer may hold a ping this long: beyond it nothing is taken off, or a peer could talk its link short. */
#define HELD_MAX_NS 10000000ull

struct probe_series {
    uint64_t session, timeout_ns;
    uint32_t count, sent, got, highest;
    uint64_t *sent_ns; /* by sequence number; 0 = answered */
    uint64_t *rtt_ns;  /* in the order of the answers */
    uint64_t last_sent_ns;
    double jitter;
    struct probe_stats st; /* its counters */
};

int probe_series_new(struct probe_series **out, uint64_t session, uint32_t count, uint64_t timeout_ns)
{
    if (count == 0 || count > PROBE_MAX_COUNT || timeout_ns == 0)
        return ST_EINVAL;
    struct probe_series *s = calloc(1, sizeof *s);
    if (!s)
        return ST_ENOMEM;
    s->sent_ns = calloc(count, sizeof *s->sent_ns);
    s->rtt_ns = calloc(count, sizeof *s->rtt_ns);
    s->session = session;
    s->count = count;
    s->timeout_ns = timeout_ns;
    if (!s->sent_ns || !s->rtt_ns) {
        probe_series_free(s);
        return ST_ENOMEM;
    }
    *out = s;
    return ST_OK;
}

void probe_series_free(struct probe_series *s)
{
    if (!s)
        return;
    free(s->sent_ns);
    free(s->rtt_ns);
    free(s);
}

int probe_series_sent(struct probe_series *s, uint64_t now_ns, uint32_t *seq)
{
    if (s->sent == s->count)
        return ST_ELIMIT;
    *seq = s->sent;
    s->sent_ns[s->sent++] = now_ns ? now_ns : 1;
    s->last_sent_ns = now_ns;
    return ST_OK;
}

void probe_series_unsent(struct probe_series *s)
{
    s->sent_ns[--s->sent] = 0;
}

void probe_series_got(struct probe_series *s, const struct probe *p, uint64_t rx_ns)
{
    if (p->kind != PROBE_PONG || p->session != s->session || p->seq >= s->sent) {
        s->st.invalid++;
        return;
    }
    uint64_t sent = s->sent_ns[p->seq];
    if (!sent) {
        s->st.duplicates++;
        return;
    }
    uint64_t took = rx_ns > sent ? rx_ns - sent : 0;
    if (p->held_ns > took) {
        s->st.invalid++;
        return;
    }
    s->sent_ns[p->seq] = 0;
    if (p->order < s->count && p->order + 1 > s->st.peer_received)
        s->st.peer_received = p->order + 1;
    if (took > s->timeout_ns) {
        s->st.late++;
        return;
    }
    uint64_t rtt = took - (p->held_ns <= HELD_MAX_NS ? p->held_ns : 0);
    if (s->got && p->seq < s->highest)
        s->st.reordered++;
    if (!s->got || p->seq > s->highest)
        s->highest = p->seq;
    if (s->got) {
        double d = fabs((double)rtt - (double)s->rtt_ns[s->got - 1]);
        s->jitter += (d - s->jitter) / 16;
    }
    s->rtt_ns[s->got++] = rtt;
}

int probe_series_over(const struct probe_series *s, uint64_t now_ns)
{
    if (s->sent < s->count)
        return 0;
    return s->got + s->st.late == s->sent || now_ns > s->last_sent_ns + s->timeout_ns;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

void probe_series_stats(const struct probe_series *s, struct probe_stats *out)
{
    *out = s->st;
    out->sent = s->sent;
    out->received = s->got;
    out->loss = s->sent ? (double)(s->sent - s->got) / s->sent : 0;
    if (!s->got)
        return;
    double sum = 0, dev = 0, n = s->got;
    uint64_t *v = malloc(s->got * sizeof *v);
    for (uint32_t i = 0; i < s->got; i++)
        sum += (double)s->rtt_ns[i];
    for (uint32_t i = 0; i < s->got; i++)
        dev += ((double)s->rtt_ns[i] - sum / n) * ((double)s->rtt_ns[i] - sum / n);
    out->mean_ns = (uint64_t)(sum / n);
    out->stddev_ns = s->got > 1 ? (uint64_t)sqrt(dev / (n - 1)) : 0;
    out->jitter_ns = (uint64_t)s->jitter;
    if (!v) { /* the figures that need an order stay absent, and received says that nothing is whole */
        out->received = 0;
        return;
    }
    memcpy(v, s->rtt_ns, s->got * sizeof *v);
    qsort(v, s->got, sizeof *v, by_value);
    out->min_ns = v[0];
    out->p50_ns = v[(s->got - 1) / 2];
    out->p99_ns = v[(uint32_t)ceil(0.99 * n) - 1];
    out->max_ns = v[s->got - 1];
    free(v);
}
