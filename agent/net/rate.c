#include "agent/net/rate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SLICES 20u

void rate_init(struct rate_meter *m, uint64_t bin_ns)
{
    memset(m, 0, sizeof *m);
    m->bin_ns = bin_ns ? bin_ns : 1;
}

static void widen(struct rate_meter *m)
{
    for (unsigned i = 0; i < RATE_BINS / 2; i++)
        m->bin[i] = m->bin[2 * i] + m->bin[2 * i + 1];
    memset(&m->bin[RATE_BINS / 2], 0, RATE_BINS / 2 * sizeof m->bin[0]);
    m->bin_ns *= 2;
}

void rate_add(struct rate_meter *m, uint64_t now_ns, uint64_t bytes)
{
    if (!m->bytes)
        m->start_ns = m->last_ns = now_ns;
    if (now_ns > m->last_ns)
        m->last_ns = now_ns;
    uint64_t at = m->last_ns - m->start_ns;
    while (at / m->bin_ns >= RATE_BINS)
        widen(m);
    m->bin[at / m->bin_ns] += bytes;
    m->bytes += bytes;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Where the stream had found its rate: the first slice that is like the second half's median. */
static unsigned settled(const double *slice, unsigned n)
{
    double tail[SLICES];
    unsigned half = n / 2, k = 0;
    memcpy(tail, slice + half, (n - half) * sizeof *tail);
    qsort(tail, n - half, sizeof *tail, by_value);
    double mid = tail[(n - half) / 2];
    while (k < half && !(slice[k] >= 0.85 * mid && slice[k] <= 1.15 * mid))
        k++;
    return k ? k : 1; /* the first slice always holds the beginning */
}

void rate_figures(const struct rate_meter *m, struct rate_figures *out)
{
    /* Only whole bins: the last one is still being filled. */
    unsigned bins = (unsigned)((m->last_ns - m->start_ns) / m->bin_ns);
    unsigned per = bins / SLICES, n = per ? SLICES : bins;
    double slice[SLICES] = {0}, sum = 0, dev = 0;
    *out = (struct rate_figures){.bytes = m->bytes, .ns = m->last_ns - m->start_ns};
    if (!per)
        per = 1;
    if (n < 4)
        return;
    for (unsigned i = 0; i < n * per; i++)
        slice[i / per] += (double)m->bin[i];
    unsigned from = settled(slice, n), k = n - from;
    for (unsigned i = from; i < n; i++)
        sum += slice[i];
    double mean = sum / k, width_s = (double)per * (double)m->bin_ns / 1e9;
    for (unsigned i = from; i < n; i++)
        dev += (slice[i] - mean) * (slice[i] - mean);
    out->steady_bytes = (uint64_t)sum;
    out->steady_ns = (uint64_t)k * per * m->bin_ns;
    out->bytes_per_s = mean / width_s;
    out->spread = mean > 0 && k > 1 ? 2.1 * sqrt(dev / (k - 1)) / sqrt(k) / mean : 1;
}
