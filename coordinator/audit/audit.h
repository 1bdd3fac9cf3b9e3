/*
 * audit.db: one writer thread drains state.db's outbox (must-class events) and a ring (the rest) into chained
 * batches. Each batch is one transaction: rows, rollup, the batch's SHA-256 and the outbox sequence it
 * reached, so an event is in it exactly once whatever is killed when. The file is a public interface: see the
 * views.
 */
#ifndef STRATA_AUDIT_AUDIT_H
#define STRATA_AUDIT_AUDIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/clock.h"
#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/port.h"
#include "common/event/event.h"

struct audit;
struct store;

/* Signs a checkpoint (audit thread): up to 256 bytes into sig. */
struct audit_signer {
    int (*sign)(void *arg, const uint8_t *msg, size_t n, uint8_t sig[256], size_t *sig_len);
    void *arg;
    const char *key_id;
};

struct audit_config {
    const char *path;           /* of audit.db; its directory must exist */
    uint64_t flush_ns;          /* 0 = 50 ms */
    unsigned flush_rows;        /* 0 = 1000 */
    unsigned ring_rows;         /* rounded up to a power of two; 0 = 65536 */
    unsigned max_pages;         /* size limit in 4 KiB pages; 0 = none */
    uint64_t checkpoint_ns;     /* 0 = 10 s */
    unsigned checkpoint_rows;   /* 0 = 100,000 */
    int echo_fd;                /* each row as a JSON line there as well; ≤ 0 = no */
    struct audit_signer signer; /* sign NULL: checkpoints are unsigned */
    const struct clock *clock;  /* NULL = system */
    const struct log *log;      /* may be NULL */
};

/* Opens or creates the file and starts the thread. With a store (opened, not yet started) the outbox is
 * drained and its sequence made to fit; NULL = ring only. Errors as store_open's. */
int audit_open(struct audit **out, const struct audit_config *cfg, struct store *store,
               struct err *e) ST_CHECK;
/* Writes what was emitted and what lies in the outbox, joins, closes; before the store is closed. Events that
 * the store commits afterwards stay in the outbox for the next start. NULL is fine. */
void audit_close(struct audit *a);

/*
 * A keep or shed event onto the ring; copies. ST_EAGAIN: keep class and the ring is full, stop reading from
 * whoever causes these and come back; a shed event is then dropped and counted instead, with ST_OK.
 * Must-class events belong in a store transaction: ST_EINVAL here. No system call unless the writer is
 * asleep. Any thread.
 */
int audit_emit(struct audit *a, const struct audit_event *e) ST_CHECK;
/* Fraction of the ring in use, 0…1: readers slow down before it is full. Any thread. */
double audit_pressure(const struct audit *a);

/* done runs on port's loop when everything emitted or committed to the outbox before this call is in
 * audit.db, or with the error that prevents it. Any thread. */
int audit_flush(struct audit *a, struct port *port, void (*done)(void *arg, int rc, const struct err *e),
                void *arg) ST_CHECK;
/* The same, waiting; for shutdown, tests and threads that may block. */
int audit_flush_wait(struct audit *a, struct err *e) ST_CHECK;

struct audit_stats {
    uint64_t rows, batches, dropped, ring_used, outbox_seq;
    bool failing; /* the latest write failed; must-class mutations are refused until one works */
    uint8_t head[32];
};
void audit_stats(struct audit *a, struct audit_stats *out); /* any thread */

/* ---- reading: any thread, own read-only connection a call, works beside a live writer and on a copy ---- */

struct audit_filter {
    int64_t since_us, until_us;                            /* since ≤ time < until; 0 = open */
    const char *principal, *node, *device, *job, *session; /* exact; NULL = any */
    const char *type; /* exact type, or a prefix ending in '.' or '*': "job." "security.*" */
    int severity_min; /* enum event_severity; 0 = all */
    int result;       /* enum event_result, or -1 = any. Mind: zero-initialised asks for successes */
    int64_t after_id; /* paging: ids beyond it in the direction read; 0 = from the start */
    bool descending;
    unsigned limit; /* 0 = 1000; at most 100,000 */
};
#define AUDIT_FILTER_ALL ((struct audit_filter){.result = -1})

/* fn per row in id order; a non-zero from it ends the query and is returned. */
int audit_query(const char *path, const struct audit_filter *f,
                int (*fn)(void *arg, const struct audit_event *e), void *arg, struct err *e) ST_CHECK;

struct audit_verdict {
    uint64_t batches, rows, checkpoints;
    bool broken;
    int64_t bad_first, bad_last;        /* ids of the first bad batch */
    int64_t bad_since_us, bad_until_us; /* its times as its seal tells them */
    uint8_t head[32];
    char why[200];
};
/* Checks a checkpoint's signature; NULL: only that its head is in the chain. */
struct audit_checker {
    bool (*check)(void *arg, const char *key_id, const uint8_t *msg, size_t n, const uint8_t *sig,
                  size_t sig_len);
    void *arg;
};
/* Recomputes the whole chain. ST_OK: whole; ST_ECORRUPT: *v and *e name the first bad batch; other: could not
 * read. */
int audit_verify(const char *path, const struct audit_checker *checker, struct audit_verdict *v,
                 struct err *e) ST_CHECK;

#endif
