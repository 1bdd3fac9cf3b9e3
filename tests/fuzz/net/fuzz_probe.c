/* Probe datagrams from outside: whatever comes, a series stays consistent; what decodes encodes to itself. */
#include <stdlib.h>
#include <string.h>

#include "agent/net/probe.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void feed(struct probe_series *s, const uint8_t *p, size_t n, uint64_t rx_ns)
{
    struct probe d;
    uint8_t again[PROBE_MAX_BYTES];
    if (probe_decode(p, n, &d) < 0)
        return;
    probe_encode(&d, again, n);
    if (memcmp(again, p, PROBE_MIN_BYTES))
        abort();
    probe_series_got(s, &d, rx_ns);
}

/* A first byte n, then n + PROBE_MIN_BYTES bytes of a datagram, and so on. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct probe_series *s;
    struct probe_stats st;
    uint32_t seq;
    if (probe_series_new(&s, 1, 8, 1000) < 0)
        abort();
    while (probe_series_sent(s, 100, &seq) == ST_OK)
        ;
    for (size_t at = 0; at < size;) {
        size_t n = data[at++] + PROBE_MIN_BYTES;
        n = n < size - at ? n : size - at;
        uint8_t *copy = malloc(n ? n : 1); /* its own block, so that a read past the end is seen */
        if (!copy)
            abort();
        memcpy(copy, data + at, n);
        feed(s, copy, n, 100 + at);
        free(copy);
        at += n;
    }
    probe_series_stats(s, &st);
    if (st.received + st.late > st.sent || st.loss < 0 || st.loss > 1 || st.min_ns > st.max_ns)
        abort();
    probe_series_free(s);
    return 0;
}
