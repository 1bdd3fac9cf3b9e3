/* Shared by the files of this room and its tests. */
#ifndef STRATA_STORE_PRIV_H
#define STRATA_STORE_PRIV_H

#include <pthread.h>

#include "common/base/buf.h"
#include "coordinator/store/db.h"
#include "coordinator/store/store.h"

/* Every statement a transaction can hold; the SQL is in txn.c. */
enum store_stmt {
    SQL_JOB_INSERT,
    SQL_JOB_STATE,
    SQL_JOB_DELETE,
    SQL_JOB_LAYERS_DELETE,
    SQL_LAYER_PUT,
    SQL_LAYER_DELETE,
    SQL_NODE_PUT,
    SQL_NODE_DELETE,
    SQL_NODE_DEVICES_DELETE,
    SQL_DEVICE_PUT,
    SQL_DEVICE_DELETE,
    SQL_POLICY_PUT,
    SQL_POLICY_DELETE,
    SQL_SESSION_PUT,
    SQL_SESSION_DELETE,
    SQL_PLAN_PUT,
    SQL_CALIBRATION_PUT,
    SQL_CALIBRATIONS_FORGET,
    SQL_REQUEST_PUT,
    SQL_REQUESTS_EXPIRE,
    SQL_META_PUT,
    SQL_SPOOL,
    SQL_TRUST_PUT,
    SQL_TRUST_DELETE,
    SQL_NET_PUT,
    SQL_NET_FORGET,
    SQL_NET_HISTORY_FORGET,
    SQL_NET_SAMPLE,
    SQL_NET_EXPIRE,
    SQL_EVENT,
    SQL_COUNT,
};

struct store_sql {
    const char *text;
    const char *doing; /* for error sentences */
    int when_none;     /* status when no row changed; ST_OK = that is fine */
};
const struct store_sql *store_sql(enum store_stmt s);

/*
 * A transaction is a byte string of operations: u8 statement, u8 parameter count, then per parameter a type
 * byte and an i64, or a u32 length and bytes. Text and blobs are bound from here without another copy.
 */
struct store_txn {
    struct port_item item; /* first: the completion */
    struct store_txn *next;
    struct buf ops;
    int rc;                    /* first failure while building */
    unsigned events;           /* how many outbox rows it adds */
    unsigned n_ops;            /* statements in ops */
    struct store_gate *closes; /* the last of its group: tells the writer that all of it was answered */
    store_done_fn done;
    void *arg;
    struct err err; /* the answer; code ST_OK when it is on disk */
};

/* Applies all operations of t on db with the prepared statements. A failure leaves what was done so far to
 * the caller's savepoint. */
int store_txn_apply(const struct store_txn *t, sqlite3 *db, sqlite3_stmt *const stmts[SQL_COUNT],
                    struct err *e) ST_CHECK;

/* ---- gate.c: the writer lets the loop answer a group before it commits the next ---- */

struct store_gate;
struct store_gate *store_gate_new(void);        /* NULL: no memory */
void store_gate_leave(struct store_gate *g);    /* the store goes; answers may still come. NULL is fine */
void store_gate_expect(struct store_gate *g);   /* before a group's completions are posted */
void store_gate_answered(struct store_gate *g); /* after the last of them ran; loop */
/* Until all that is expected was answered, at most ns and never longer than a millisecond. Writer. */
void store_gate_await(struct store_gate *g, uint64_t ns);

/* Statements of the writer's own. */
enum store_fixed {
    FIXED_BEGIN,
    FIXED_COMMIT,
    FIXED_SAVEPOINT,
    FIXED_RELEASE,
    FIXED_ROLLBACK_TO,
    FIXED_TRIM,
    FIXED_COUNT,
};

struct store {
    struct store_config cfg;
    char *path;
    int lock_fd; /* keeps a second coordinator out */
    sqlite3 *db; /* the loading thread's until store_start, then the writer's */
    sqlite3_stmt *stmts[SQL_COUNT], *fixed[FIXED_COUNT];
    struct store_gate *gate;
    struct port *port;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock; /* guards everything below */
    pthread_cond_t wake;
    void (*notify)(void *arg);
    void *notify_arg;
    struct store_txn *head, **tail;
    unsigned pending; /* queued or being written */
    bool closing;
    uint64_t trim_want, trimmed, last_seq;
    int audit_rc;
    char audit_why[200];
    struct store_stats stats;
};

#define STORE_NET_HOUR_US (3600ll * 1000000)
#define STORE_NET_DAY_US (24 * STORE_NET_HOUR_US)

extern const struct db_kind store_db_kind;

#endif
