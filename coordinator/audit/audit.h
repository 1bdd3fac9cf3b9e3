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

/* A signed head: the hash of all rows up to `size`. Whoever keeps one can show that they were rewritten. */
struct audit_head {
    int64_t size, ts_us; /* size 0: none yet */
    uint8_t head[32];
    char key_id[33];
    uint8_t sig[64];
    size_t sig_len; /* 0: unsigned */
};

struct audit_config {
    const char *path;           /* of audit.db; its directory must exist */
    uint64_t flush_ns;          /* 0 = 50 ms */
    unsigned flush_rows;        /* 0 = 1000 */
    unsigned ring_rows;         /* rounded up to a power of two; 0 = 32768, of 384 bytes each */
    unsigned max_pages;         /* size limit in 4 KiB pages; 0 = none */
    uint64_t checkpoint_ns;     /* 0 = 10 s */
    unsigned checkpoint_rows;   /* 0 = 100,000 */
    unsigned segment_rows;      /* rows a segment; 0 = 1,000,000 */
    int64_t segment_us;         /* age of a segment; 0 = 24 h */
    unsigned hot_segments;      /* closed segments that stay in audit.db, older ones are sealed; 0 = 10 */
    int64_t keep_us;            /* sealed segments older than this are removed; 0 = never */
    int echo_fd;                /* each row as a JSON line there as well; ≤ 0 = no */
    const char *lines_path;     /* each row as a JSON line appended to this file; NULL = no */
    bool syslog;                /* each row as a JSON line to syslog (the journal takes it from there) */
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
 * Must-class events belong in a store transaction: ST_EINVAL here. Makes no system call and wakes nobody: the
 * writer looks by itself, at the latest after flush_ns. Any thread.
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
    uint64_t segments; /* closed ones that are still in audit.db */
    uint64_t wal_pages;
    bool failing; /* the latest write failed; must-class mutations are refused until one works */
    uint8_t head[32];
    struct audit_head signed_head; /* the latest checkpoint, for witnesses */
};
void audit_stats(struct audit *a, struct audit_stats *out); /* any thread */

/* fn runs on port's loop after rows were committed; once for several commits when the loop is slow. */
struct audit_watch;
int audit_watch_new(struct audit_watch **out, struct audit *a, struct port *port, void (*fn)(void *arg),
                    void *arg) ST_CHECK;
/* On the loop. fn never runs again. Before audit_close. NULL is fine. */
void audit_watch_free(struct audit_watch *w);

/* ---- keys ---- */

struct audit_key; /* the coordinator's Ed25519 key for checkpoints */
#define AUDIT_PUBLIC 32u
/* Loads the key at path (PEM, 0600), making it and its public half ("<path>" with .key replaced by .pub, hex)
 * when there is none. ST_EDENIED when others can read it; ST_ETRUST when it is no Ed25519 key. */
int audit_key_open(struct audit_key **out, const char *path, struct err *e) ST_CHECK;
void audit_key_free(struct audit_key *k); /* NULL is fine */
/* What audit_config.signer wants; borrows k. */
struct audit_signer audit_key_signer(struct audit_key *k);
void audit_key_public(const struct audit_key *k, uint8_t out[AUDIT_PUBLIC]);
/* Reads a .pub file. */
int audit_public_read(const char *path, uint8_t out[AUDIT_PUBLIC], struct err *e) ST_CHECK;
/* Was the head signed by the holder of this key? Any thread. */
bool audit_head_ok(const uint8_t pub[AUDIT_PUBLIC], const struct audit_head *h);

/* ---- reading: any thread, own read-only connection a call, works beside a live writer and on a copy ---- */

struct audit_filter {
    int64_t since_us, until_us;                            /* since ≤ time < until; 0 = open */
    const char *principal, *node, *device, *job, *session; /* exact; NULL = any */
    const char *type; /* exact type, or a prefix ending in '.' or '*': "job." "security.*" */
    const char *text; /* free text: in the metadata or the error sentence, case-insensitive for ASCII */
    int severity_min; /* enum event_severity; 0 = all */
    int result;       /* enum event_result, or -1 = any. Mind: zero-initialised asks for successes */
    int64_t after_id; /* paging: ids beyond it in the direction read; 0 = from the start */
    bool descending;
    unsigned limit; /* 0 = 1000; at most 100,000 */
};
#define AUDIT_FILTER_ALL ((struct audit_filter){.result = -1})

/* fn per row in id order, through the live file and the sealed ones beside it; a non-zero from fn ends the
 * query and is returned. A sealed file is read alone when it is the one named. */
int audit_query(const char *path, const struct audit_filter *f,
                int (*fn)(void *arg, const struct audit_event *e), void *arg, struct err *e) ST_CHECK;

/* The same on a connection that stays open: for whoever asks often. One thread at a time. */
struct audit_reader;
int audit_reader_open(struct audit_reader **out, const char *path, struct err *e) ST_CHECK;
void audit_reader_close(struct audit_reader *r); /* NULL is fine */
int audit_reader_query(struct audit_reader *r, const struct audit_filter *f,
                       int (*fn)(void *arg, const struct audit_event *e), void *arg, struct err *e) ST_CHECK;

struct audit_verdict {
    uint64_t batches, rows, checkpoints, files; /* files: sealed ones, beside the one named */
    int64_t first;                              /* id of the first row looked at */
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
struct audit_verify_opts {
    const struct audit_checker *checker; /* NULL: see there */
    int64_t since_us;                    /* from the batch that holds this time on; 0 = from the first */
    bool alone;                          /* only this file, not the sealed segments beside it */
    const struct audit_head *witnessed;  /* heads kept elsewhere that must be in the chain */
    size_t n_witnessed;
};
/* A checker for one public key; `pub` is borrowed while it is used. */
struct audit_checker audit_checker_public(const uint8_t pub[AUDIT_PUBLIC]);
/* Recomputes the whole chain. ST_OK: whole; ST_ECORRUPT: *v and *e name the first bad batch; other: could not
 * read. opts may be NULL. */
int audit_verify(const char *path, const struct audit_verify_opts *opts, struct audit_verdict *v,
                 struct err *e) ST_CHECK;

#endif
