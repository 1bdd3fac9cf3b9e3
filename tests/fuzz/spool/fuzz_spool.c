/* Records of a spool from outside: whole ones that follow one another are given out, everything else is
 * refused. */
#include <stdlib.h>
#include <string.h>

#include "common/spool/record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int see(void *arg, const struct record *r)
{
    struct buf *b = arg;
    struct audit_event ev;
    (void)!event_decode(r->event, r->len, &ev);
    return buf_append(b, r->event, r->len);
}

/* Appends a record made of the bytes, then reads all of it back and with one byte changed. */
static void round_trip(const uint8_t *event, size_t n)
{
    struct buf b = {0}, out = {0};
    uint8_t hash[SPOOL_HASH] = {1}, from[SPOOL_HASH] = {1};
    if (n == 0 || n > EVENT_ENCODED_MAX)
        return;
    if (record_append(&b, hash, 7, event, n) < 0 || record_append(&b, hash, 8, event, n) < 0 ||
        records_each(b.data, b.len, from, see, &out) < 0 || out.len != 2 * n)
        abort();
    memset(from, 0, sizeof from);
    from[0] = 1;
    b.data[SPOOL_RECORD_HEAD + n / 2] ^= 1;
    if (records_each(b.data, b.len, from, see, &out) != ST_ECORRUPT)
        abort();
    buf_fini(&b);
    buf_fini(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf out = {0};
    uint8_t hash[SPOOL_HASH] = {0};
    uint8_t *copy = calloc(1, size ? size : 1); /* its own block, so that a read past the end is seen */
    if (!copy)
        return 0;
    if (size)
        memcpy(copy, data, size);
    (void)!records_each(copy, size, hash, see, &out);
    struct record r;
    (void)record_read(copy, size, NULL, &r);
    round_trip(copy, size);
    buf_fini(&out);
    free(copy);
    return 0;
}
