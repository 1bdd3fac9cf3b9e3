/*
 * Transfers. Ours and memcpy take turns, sample by sample, so that both see the same machine; the ratio of
 * the medians is what counts. Every sample moves data that was changed since the last one, and what arrived
 * is checked by checksum, outside the timed part.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/gpu/gpu_bench.h"

struct bytes {
    uint64_t len, handle, other; /* two device buffers */
    uint8_t *host, *back, *copy; /* page-aligned */
    unsigned turn;
};

static int wrong(struct gb *b, const char *what)
{
    return err_set(b->e, ST_EIO, "%s: %s delivered other bytes than were sent",
                   gpu_set_info(b->set, b->index)->id, what);
}

/* Another word at another place, in host memory. */
static void change(struct bytes *m)
{
    uint64_t words = m->len / 4, at = (++m->turn * 0x9e3779b97f4a7c15ull >> 11) % words;
    uint32_t v = m->turn;
    memcpy(m->host + 4 * at, &v, 4);
}

static int device_sum(struct gb *b, uint64_t handle, uint64_t len, uint64_t *sum)
{
    struct gpu_exec x = {.kernel = "checksum", .spans = 1, .span = {{handle, 0, len}}};
    return gpu_exec(b->g, &x, sum, b->e);
}

/* `check`: whether what arrived is read back; a short run does so once for each series of a large size. */
static int once(struct gb *b, struct bytes *m, int kind, bool check, double *gbps)
{
    uint64_t sum = 0;
    change(m);
    int rc = kind == 0 ? ST_OK : gpu_copy_in(b->g, m->handle, 0, m->host, m->len, b->e);
    if (rc < 0)
        return rc;
    double t = gb_now();
    if (kind == 0)
        rc = gpu_copy_in(b->g, m->handle, 0, m->host, m->len, b->e);
    else if (kind == 1)
        rc = gpu_copy_out(b->g, m->handle, 0, m->back, m->len, b->e);
    else
        rc = gpu_copy(b->g, m->other, 0, b->g, m->handle, 0, m->len, b->e);
    *gbps = (double)m->len / (gb_now() - t) / 1e9;
    if (rc < 0 || !check)
        return rc;
    if (kind == 1)
        return memcmp(m->back, m->host, m->len) == 0 ? ST_OK : wrong(b, "a copy from the device");
    if ((rc = device_sum(b, kind == 0 ? m->handle : m->other, m->len, &sum)) < 0)
        return rc;
    return sum == gpu_checksum(m->host, m->len) ? ST_OK : wrong(b, "a copy to or within the device");
}

static int series(struct gb *b, struct bytes *m, const char *what, int kind, size_t n)
{
    char name[96];
    double ours[64], peer[64];
    for (size_t i = 0; i < n + 1; i++) { /* the first of each is the warm-up */
        size_t k = i ? i - 1 : 0;
        double t = gb_now();
        memcpy(m->copy, m->host, m->len);
        peer[k] = (double)m->len / (gb_now() - t) / 1e9;
        int rc = once(b, m, kind, i == n || !b->run->o.quick || m->len <= 10 * MB, &ours[k]);
        if (rc < 0)
            return rc;
    }
    bench_put_series(b->run, "gpu", gb_name(name, b, what), ours, n, bench_median(peer, n));
    return ST_OK;
}

static const char *const kinds[] = {"host_to_device", "device_to_host"};

static int size_run(struct gb *b, struct bytes *m, size_t n)
{
    char what[64];
    unsigned mb = (unsigned)(m->len / MB);
    int rc = ST_OK;
    for (int kind = 0; rc == ST_OK && kind < 2; kind++) {
        snprintf(what, sizeof what, "%s.pageable.%uMB", kinds[kind], mb);
        rc = series(b, m, what, kind, n);
    }
    int pin = rc < 0 ? rc : gpu_pin(b->g, m->host, m->len, b->e);
    if (pin == ST_OK && (pin = gpu_pin(b->g, m->back, m->len, b->e)) < 0)
        (void)!gpu_unpin(b->g, m->host, NULL);
    for (int kind = 0; rc == ST_OK && kind < 2; kind++) {
        snprintf(what, sizeof what, "%s.pinned.%uMB", kinds[kind], mb);
        if (pin < 0)
            gb_skip(b, what, b->e->text);
        else
            rc = series(b, m, what, kind, n);
    }
    if (pin == ST_OK) {
        (void)!gpu_unpin(b->g, m->host, NULL);
        (void)!gpu_unpin(b->g, m->back, NULL);
    }
    snprintf(what, sizeof what, "device_local_copy.%uMB", mb);
    return rc < 0 ? rc : series(b, m, what, 2, n);
}

int gb_copies(struct gb *b)
{
    static const uint64_t sizes[] = {1, 10, 100, 500};
    int rc = ST_OK;
    for (size_t i = 0; rc == ST_OK && i < sizeof sizes / sizeof sizes[0]; i++) {
        struct bytes m = {.len = sizes[i] * MB};
        uint8_t *all = aligned_alloc(4096, 3 * ((m.len + 4095) & ~4095ull));
        if (!all)
            return err_set(b->e, ST_ENOMEM, "no memory for copies of %llu MB", (unsigned long long)sizes[i]);
        m.host = all;
        m.back = all + ((m.len + 4095) & ~4095ull);
        m.copy = m.back + ((m.len + 4095) & ~4095ull);
        for (uint64_t k = 0; k < m.len / 8; k++) /* no zeros: some devices compress */
            memcpy(m.host + 8 * k, &(uint64_t){(k + 1) * 0x9e3779b97f4a7c15ull}, 8);
        memset(m.back, 1, m.len); /* touched */
        rc = gpu_alloc(b->g, m.len, &m.handle, b->e);
        if (rc == ST_OK && (rc = gpu_alloc(b->g, m.len, &m.other, b->e)) == ST_OK) {
            rc = size_run(b, &m, b->run->o.quick ? (sizes[i] > 10 ? 3 : 7) : sizes[i] > 10 ? 15 : 31);
            (void)!gpu_free(b->g, m.other, NULL);
        }
        if (m.handle)
            (void)!gpu_free(b->g, m.handle, NULL);
        free(all);
    }
    gb_skip(b, "host_to_device_bidirectional", "the copies of one device run one after another");
    return rc;
}
