/*
 * state.db: what must survive the coordinator. One writer thread commits groups of transactions (SQLite WAL,
 * synchronous FULL); an answer comes back on the loop through a port only when its transaction is on disk. A
 * transaction's audit events are rows of its outbox, in the same commit; the audit room drains them.
 *
 * Life: store_open → store_load_* (synchronous, before the loop runs) → store_start → store_submit … →
 * store_close.
 */
#ifndef STRATA_STORE_STORE_H
#define STRATA_STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/port.h"
#include "common/event/event.h"
#include "coordinator/access/access.h"

struct store;
struct store_txn;

struct store_config {
    const char *path;      /* of state.db; its directory must exist */
    unsigned queue_max;    /* transactions waiting or being written; 0 = 4096 */
    unsigned group_max;    /* transactions a commit; 0 = 512 */
    unsigned max_pages;    /* size limit in 4 KiB pages; 0 = none */
    uint64_t outbox_max;   /* undrained audit rows before new ones are refused; 0 = 1,000,000 */
    const struct log *log; /* may be NULL */
};

/* ---- records: strings and blobs are borrowed for the call; NULL strings are stored as "" ---- */

struct store_job {
    const char *id, *principal, *name, *reason, *plan_id;
    int state; /* the jobs room's number */
    uint64_t bytes;
    const void *spec; /* opaque to the store: the submitted request */
    size_t spec_len;
    int64_t created_us, updated_us;
};
struct store_layer { /* key: job, layer, device: a layer on its way has two rows */
    const char *job, *layer, *device, *checksum;
    int state;
    uint64_t bytes;
    int64_t updated_us;
};
struct store_node {
    const char *id, *address, *spki; /* spki: hex SHA-256 of the key it enrolled with */
    int state;
    uint64_t incarnation;
    int64_t enrolled_us, seen_us;
    uint64_t spool_seq; /* last spooled audit event taken from it; moved by store_txn_spool */
    const void *info;   /* opaque: its last description */
    size_t info_len;
};
struct store_device {
    const char *id, *node; /* "dione/cuda:0", "dione" */
    int state;
    uint64_t total_bytes;
    const void *info; /* opaque: description and measured rates */
    size_t info_len;
    int64_t updated_us;
};
struct store_session {                                    /* a device session */
    const char *id, *principal, *node, *devices, *reason; /* devices: local ids, one a line */
    uint32_t permissions;
    uint64_t limit_bytes, generation;
    int state; /* the api room's number */
    int64_t opened_us, expires_us;
};
struct store_plan {
    const char *id, *job, *goal;
    const void *doc; /* plan JSON */
    size_t doc_len;
    const void *inputs; /* what it was made from; not read by store_load_plans */
    size_t inputs_len;
    int64_t created_us;
};
struct store_calibration { /* what an agent's rates of a device are multiplied with */
    const char *device;
    double memory, compute; /* kept in millionths */
    int64_t updated_us;
};
struct store_trust { /* tokens, certificates, revocations, pins: documents of the api room */
    const char *kind, *id;
    const void *doc;
    size_t doc_len;
    int64_t updated_us;
};
struct store_net { /* the latest figures of the network from one node to another: the api room's document */
    const char *from, *to;
    const void *doc;
    size_t doc_len;
    int64_t updated_us;
};
struct store_net_sample { /* one measurement, or the sum of those in a span of time */
    const char *from, *to;
    int64_t time_us, span_us; /* span 0 = one measurement */
    uint32_t samples, failures, rates;
    uint64_t rtt_min_ns, rtt_sum_ns, rtt_max_ns; /* over samples less failures */
    uint64_t loss_sum_ppm;
    uint64_t rate_min, rate_sum, rate_max; /* bytes a second, over `rates` */
};
struct store_request { /* idempotency: what a mutation with this id was answered */
    const char *principal, *request_id, *method;
    const void *response;
    size_t response_len;
    int64_t created_us;
};

/* ---- opening and loading ---- */

/* Creates or migrates the file and keeps others out of it ("<path>-lock"). ST_ECONFLICT: another process has
 * it; ST_ENOTSUP: written by a newer strata; ST_ECORRUPT, ST_EIO, ST_EDENIED (names
 * the file and the remedy). The file and its -wal are 0640. */
int store_open(struct store **out, const struct store_config *cfg, struct err *e) ST_CHECK;

/* Each calls fn for every row in key order; rows are valid during the call; a non-zero from fn stops the load
 * and is returned. Before store_start only. */
int store_load_policies(struct store *s, int (*fn)(void *arg, const struct policy *p), void *arg,
                        struct err *e) ST_CHECK;
int store_load_nodes(struct store *s, int (*fn)(void *arg, const struct store_node *n), void *arg,
                     struct err *e) ST_CHECK;
int store_load_devices(struct store *s, int (*fn)(void *arg, const struct store_device *d), void *arg,
                       struct err *e) ST_CHECK;
int store_load_jobs(struct store *s, int (*fn)(void *arg, const struct store_job *j), void *arg,
                    struct err *e) ST_CHECK;
int store_load_layers(struct store *s, int (*fn)(void *arg, const struct store_layer *l), void *arg,
                      struct err *e) ST_CHECK;
int store_load_sessions(struct store *s, int (*fn)(void *arg, const struct store_session *r), void *arg,
                        struct err *e) ST_CHECK;
int store_load_plans(struct store *s, int (*fn)(void *arg, const struct store_plan *p), void *arg,
                     struct err *e) ST_CHECK;
int store_load_requests(struct store *s, int (*fn)(void *arg, const struct store_request *r), void *arg,
                        struct err *e) ST_CHECK;
int store_load_trust(struct store *s, int (*fn)(void *arg, const struct store_trust *d), void *arg,
                     struct err *e) ST_CHECK;
int store_load_net(struct store *s, int (*fn)(void *arg, const struct store_net *n), void *arg,
                   struct err *e) ST_CHECK;
int store_load_calibrations(struct store *s, int (*fn)(void *arg, const struct store_calibration *r),
                            void *arg, struct err *e) ST_CHECK;
/* A value of the meta table into out ("" when absent): ids, serial numbers, the cluster's name. */
int store_load_meta(struct store *s, const char *key, char *out, size_t cap, struct err *e) ST_CHECK;

/* Starts the writer; completions are posted to port (borrowed, must outlive the store). */
int store_start(struct store *s, struct port *port, struct err *e) ST_CHECK;

/* Writes what was submitted, posts the completions, joins the thread, closes. NULL is fine. Completions still
 * lie in the port afterwards: drain it once more. */
void store_close(struct store *s);

/* ---- transactions: built on one thread, then given away ---- */

struct store_txn *store_txn_new(void);    /* NULL: no memory */
void store_txn_free(struct store_txn *t); /* only one that was never submitted; NULL is fine */

/* Each copies its record. They return nothing: a failure (no memory, an event that does not encode) is
 * remembered, and store_submit refuses the transaction with it. Mutations apply in the order they were added,
 * all or none. */
void store_txn_job_insert(struct store_txn *t, const struct store_job *j); /* existing id: ST_EEXIST */
/* Fails with ST_ECONFLICT unless the job is in state `from` (from < 0: any state). plan_id NULL: as it is. */
void store_txn_job_state(struct store_txn *t, const char *id, int from, int to, const char *reason,
                         const char *plan_id, int64_t now_us);
void store_txn_job_delete(struct store_txn *t, const char *id); /* with its layers; absent is fine */
void store_txn_layer_put(struct store_txn *t, const struct store_layer *l);
void store_txn_layer_delete(struct store_txn *t, const char *job, const char *layer, const char *device);
void store_txn_node_put(struct store_txn *t, const struct store_node *n); /* leaves spool_seq alone */
void store_txn_node_delete(struct store_txn *t, const char *id);          /* with its devices */
void store_txn_device_put(struct store_txn *t, const struct store_device *d);
void store_txn_device_delete(struct store_txn *t, const char *id);
void store_txn_policy_put(struct store_txn *t, const struct policy *p);
void store_txn_policy_delete(struct store_txn *t, const char *principal); /* absent: ST_ENOENT */
void store_txn_session_put(struct store_txn *t, const struct store_session *r);
void store_txn_session_delete(struct store_txn *t, const char *id); /* absent is fine */
void store_txn_plan_put(struct store_txn *t, const struct store_plan *p);
void store_txn_calibration_put(struct store_txn *t, const struct store_calibration *r);
void store_txn_calibrations_forget(struct store_txn *t, const char *node);
void store_txn_request_put(struct store_txn *t, const struct store_request *r); /* existing id: ST_EEXIST */
void store_txn_requests_expire(struct store_txn *t, int64_t before_us);
void store_txn_trust_put(struct store_txn *t, const struct store_trust *d);
void store_txn_trust_delete(struct store_txn *t, const char *kind, const char *id); /* absent is fine */
void store_txn_net_put(struct store_txn *t, const struct store_net *n);
void store_txn_net_forget(struct store_txn *t, const char *node); /* latest figures and history */
/* A measurement (span 0), into the history as it is and into its hour and day. */
void store_txn_net_sample(struct store_txn *t, const struct store_net_sample *s);
/* Single measurements live a day, hours a month, days two years. */
void store_txn_net_expire(struct store_txn *t, int64_t now_us);
/* Makes store_submit refuse it: something it needs could not be built. */
void store_txn_fail(struct store_txn *t, int rc);
void store_txn_meta_put(struct store_txn *t, const char *key, const char *value);
/* The node's spool was taken up to seq; ST_ECONFLICT unless that is beyond what was taken before, so a batch
 * that arrives twice is written once; also when the node is unknown. */
void store_txn_spool(struct store_txn *t, const char *node, uint64_t seq);
void store_txn_event(struct store_txn *t, const struct audit_event *e);

typedef void (*store_done_fn)(void *arg, int rc, const struct err *e);

/*
 * Takes t in every case. ST_OK: done will run exactly once, on the loop, with ST_OK once the transaction is
 * on disk or with why it is not there: ST_EEXIST, ST_ECONFLICT, ST_ENOENT of its own mutations; ST_ERESOURCE
 * with reason DISK_FULL or AUDIT_UNAVAILABLE; ST_EIO. Otherwise done will not run: ST_EAGAIN, the queue is
 * full (a completion makes room; ask store_room before reading a request), or the failure remembered in t.
 * Loop thread.
 */
int store_submit(struct store *s, struct store_txn *t, store_done_fn done, void *arg) ST_CHECK;
/* How many more transactions would be accepted now. Any thread. */
unsigned store_room(struct store *s);

struct store_stats {
    uint64_t committed, refused, groups, outbox_rows; /* outbox_rows: not yet drained */
    uint64_t last_commit_us;                          /* duration of the latest commit */
};
void store_stats(struct store *s, struct store_stats *out); /* any thread */

/* ---- history of the network ---- */

/* Rows between two nodes ("" = any) since then, newest first, at most max, of one span: single measurements,
 * hours or days, the finest that is kept for so long. Opens a connection of its own and blocks on the disk:
 * any thread but the loop's. */
int store_net_history(struct store *s, const char *from, const char *to, int64_t since_us, int64_t now_us,
                      unsigned max, int (*fn)(void *arg, const struct store_net_sample *r), void *arg,
                      struct err *e) ST_CHECK;

/* ---- what a job's plan was made from ---- */

/* Appends at most max bytes of it from `offset` on. *total is all of it (0: it was not kept), *created_us
 * names the plan that it belongs to. ST_ENOENT: no plan of that job. Blocks on the disk as the history does.
 */
int store_plan_inputs(struct store *s, const char *job, uint64_t offset, size_t max, struct buf *out,
                      uint64_t *total, int64_t *created_us, struct err *e) ST_CHECK;

/* ---- the outbox, for the audit room ---- */

/* fn runs on the writer thread, under the store's lock, after each commit that added outbox rows: it may not
 * call the store. NULL takes it off; after that returns it is not running and never will. Any thread. */
void store_outbox_notify(struct store *s, void (*fn)(void *arg), void *arg);

struct store_outbox; /* a read-only connection of its own; one thread */
int store_outbox_open(struct store_outbox **out, struct store *s, struct err *e) ST_CHECK;
void store_outbox_close(struct store_outbox *o);
/* Rows with sequence > after, ascending, at most max: fn gets the encoded event. *n is how many. */
int store_outbox_read(struct store_outbox *o, uint64_t after, unsigned max,
                      int (*fn)(void *arg, uint64_t seq, const uint8_t *p, size_t len), void *arg,
                      unsigned *n, struct err *e) ST_CHECK;
/* Rows up to seq are in audit.db: the writer deletes them with its next commit, at the latest when 4096 wait
 * or at close. Any thread. */
void store_outbox_trim(struct store *s, uint64_t seq);
/* Makes the next sequence larger than seq: for a state.db older than the audit.db beside it. Before
 * store_start. */
int store_outbox_advance(struct store *s, uint64_t seq, struct err *e) ST_CHECK;
/* The audit room tells whether it can write (ST_OK) or not; while it cannot, transactions with events are
 * refused with AUDIT_UNAVAILABLE. `why` is copied. Any thread. */
void store_audit_health(struct store *s, int rc, const char *why);

#endif
