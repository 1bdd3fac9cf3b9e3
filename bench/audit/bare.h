/* The ceilings: what SQLite alone does with the same rows on the same disk, in the same run. */
#ifndef STRATA_BENCH_AUDIT_BARE_H
#define STRATA_BENCH_AUDIT_BARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/event/event.h"

/* The i-th event of every run: 1600 principals, 7 days per 10 M rows, about 220 bytes encoded. The texts lie
 * in buf. */
#define ROW_STEP_US 60480
struct row_text {
    char who[24], dev[24], job[24], meta[160];
};
void bench_row(uint64_t i, int64_t base_us, struct row_text *t, struct audit_event *e);

/* Inserts n such rows in batches into a fresh table with integer keys and two lean indexes, WAL, FULL.
 * rows/s. */
int bare_ingest(const char *dir, uint64_t n, unsigned batch, double *rate, uint64_t *bytes,
                struct err *e) ST_CHECK;
/* A group-commit loop: `waiters` at once, each a row of `size` bytes, for `seconds`. acknowledgements/s. */
int bare_acks(const char *dir, unsigned waiters, unsigned size, double seconds, double *rate,
              struct err *e) ST_CHECK;
/* p99 in ns of copying an encoded event into a ring under a mutex. */
double bare_emit_p99(uint64_t n);
/* rows/s of reading every column of the audit.db at path, and no more. */
int bare_scan(const char *path, double *rate, struct err *e) ST_CHECK;

/* The p-th fraction of v, which is sorted by it. */
double bare_percentile(double *v, size_t n, double p);
struct port;
void bare_port_wait(struct port *p, int ms); /* drains it, after waiting at most ms for something */

#endif
