/*
 * The rate of a bulk stream from when its bytes arrived, without its beginning: slow start is slower than the
 * link and a filled token bucket faster, and neither is what a long transfer gets. Pure, one thread; constant
 * memory however long the stream.
 */
#ifndef STRATA_NET_RATE_H
#define STRATA_NET_RATE_H

#include <stddef.h>
#include <stdint.h>

#define RATE_BINS 512u

struct rate_meter {
    uint64_t start_ns, last_ns, bin_ns, bytes;
    uint64_t bin[RATE_BINS];
};

struct rate_figures {
    uint64_t bytes, ns;    /* of the whole stream, from first to last byte */
    uint64_t steady_bytes; /* of the part that the rate is from */
    uint64_t steady_ns;
    double bytes_per_s; /* of that part; 0 = too little came to say */
    double spread;      /* half width of the 95 % interval, as a share of the rate */
};

/* bin_ns: of the finest bin; doubled as the stream outgrows RATE_BINS of them. */
void rate_init(struct rate_meter *m, uint64_t bin_ns);
/* Bytes that arrived at now_ns, which never goes back. */
void rate_add(struct rate_meter *m, uint64_t now_ns, uint64_t bytes);
void rate_figures(const struct rate_meter *m, struct rate_figures *out);

#endif
