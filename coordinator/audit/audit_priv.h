/* Shared by the files of this room and its tests. */
#ifndef STRATA_AUDIT_PRIV_H
#define STRATA_AUDIT_PRIV_H

#include <pthread.h>

#include "common/base/map.h"
#include "coordinator/audit/audit.h"
#include "coordinator/audit/chain.h"
#include "coordinator/audit/ring.h"
#include "coordinator/store/db.h"
#include "coordinator/store/store.h"

extern const struct db_kind audit_db_kind;

/* ---- segment.c: rows lie in one table a segment; all but the newest few move to files of their own ---- */

#define SEGMENT_FILE 64u
#define SEGMENT_SLOTS_SINCE 3 /* the schema in which tables are used again */

struct segment {
    int64_t n, first, last; /* last 0: open, it takes the new rows */
    int64_t slot;           /* number of the table that holds its rows, while they are in this file */
    int64_t ts_min, ts_max, opened_us;
    uint8_t prev[CHAIN_HASH], head[CHAIN_HASH]; /* of the chain before its first and after its last row */
    char file[SEGMENT_FILE];                    /* "000042.db" in the directory beside; "" = in this file */
    uint8_t sha256[CHAIN_HASH];                 /* of that file */
    bool retired;                               /* its file is gone, on purpose */
};

/* All of a file in order of n; *out is the caller's. */
int segment_list(sqlite3 *db, struct segment **out, size_t *n, struct err *e) ST_CHECK;
/* Inside the caller's transaction: its row, and an empty table for it, whose number is put into s->slot. */
int segment_create(sqlite3 *db, struct segment *s, struct err *e) ST_CHECK;
/* A table for rows and its live indexes, in the schema ("main", "s"). */
int segment_table(sqlite3 *db, const char *schema, int64_t slot, struct err *e) ST_CHECK;
/* Inside the caller's transaction: the views over the tables of rows that are in this file. */
int segment_views(sqlite3 *db, struct err *e) ST_CHECK;
/* Where the file of a sealed segment of the audit.db at path lies. ST_ELIMIT. */
int segment_path(char out[1024], const char *path, const char *file) ST_CHECK;
/* Columns in the order in which every statement of this room names them. */
#define SEGMENT_COLUMNS                                                                                      \
    "id,ts_us,event,severity,result,principal,device,node,session,job,operation,error,meta"

/* ---- seal.c: a closed segment becomes a file that stands alone ---- */

struct seal_result {
    int64_t n, first, last, slot;
    char file[SEGMENT_FILE];
    uint8_t sha256[CHAIN_HASH];
    uint64_t bytes, us;
};
/* A read-only connection to the audit.db at path, for any number of segments. */
int seal_open(sqlite3 **db, const char *path, struct err *e) ST_CHECK;
/* Copies the segment out of it with full indexes and without a WAL, syncs the file and gives it its name.
 * `stop` is asked now and then; true from it ends the copy with ST_ECLOSED. After a failure the connection is
 * to be closed. One thread a connection. */
int seal_segment(sqlite3 *db, const char *path, const struct segment *s, bool (*stop)(void *arg), void *arg,
                 struct seal_result *out, struct err *e) ST_CHECK;
int file_sha256(const char *path, uint8_t out[CHAIN_HASH], uint64_t *bytes, struct err *e) ST_CHECK;

/* ---- batch.c: the writing half, audit thread only ---- */

struct batch_writer {
    sqlite3 *db;
    sqlite3_stmt *insert, *seal, *state, *checkpoint, *minute, *hour, *name_get, *name_put, *name_seen;
    /* Text → number of the names that the open segment uses; a cache of the name table, emptied with a new
     * segment, when it grows and when a batch fails. */
    struct map *names;
    struct chain chain;
    struct audit_event *events; /* the batch decoded; its strings lie in the records */
    size_t events_cap;
    int64_t size; /* id of the last row */
    uint8_t head[CHAIN_HASH];
    uint64_t drained;   /* outbox sequence that is in the file */
    struct segment seg; /* the open one */
    struct audit_head signed_head;
    int wal_pages;
    int64_t wal_inode;  /* of the WAL at the file's path; 0: not seen yet */
    int64_t tried_size; /* what the file holds if the batch that failed last is in it after all */
    uint8_t tried_head[CHAIN_HASH];
    unsigned live; /* closed segments in the file that wait to be sealed or are kept */
};

struct batch_item { /* one encoded event, borrowed */
    const uint8_t *p;
    size_t n;
    uint64_t seq; /* of the outbox; 0 = from the ring or our own */
};
struct batch_checkpoint {
    int64_t ts_us;
    const struct audit_signer *signer;
};

int batch_open(struct batch_writer *w, const char *path, unsigned max_pages, int64_t now_us,
               struct err *e) ST_CHECK;
void batch_close(struct batch_writer *w);
/* What goes with a batch, in its transaction, for each commit costs a sync. NULL: not this time. */
struct batch_extra {
    const struct seal_result *drop; /* first: as batch_drop */
    const struct batch_checkpoint
        *rotate; /* then: the open segment ends with a checkpoint, the next begins */
    const struct batch_checkpoint *checkpoint; /* last: of the rows of this batch */
};
/*
 * Writes n > 0 records as one batch, with the outbox sequence reached. Nothing is written on failure. A
 * record that does not decode becomes an audit.loss row: one bad row must not stop the rest.
 */
int batch_write(struct batch_writer *w, const struct batch_item *items, size_t n, const struct batch_extra *x,
                struct err *e) ST_CHECK;
/* A checkpoint alone, of what is there. */
int batch_checkpoint(struct batch_writer *w, const struct batch_checkpoint *cp, struct err *e) ST_CHECK;
/* The rows of the oldest segment, which was sealed, leave the file with the names that no later one uses. */
int batch_drop(struct batch_writer *w, const struct seal_result *r, struct err *e) ST_CHECK;
/* Marks the oldest sealed segment that ended before `before_us` as gone. ST_ENOENT: there is none. */
int batch_retire(struct batch_writer *w, int64_t before_us, struct segment *out, struct err *e) ST_CHECK;

/* The strings of an event in the chain's order. */
void batch_strings(const struct audit_event *e, const char *out[CHAIN_STRINGS]);

/* ---- place.c ---- */

/* ST_ECORRUPT with reason FILE_REPLACED: what w writes is not the file at path any more. */
int place_check(struct batch_writer *w, const char *path, struct err *e) ST_CHECK;

/* ---- keeper.c: two threads for what takes long beside the writer: checkpoints of the WAL, and sealing,
 * which yields to everything else ---- */

struct keeper;
int keeper_new(struct keeper **out, const char *path, unsigned hot, const struct log *log,
               struct err *e) ST_CHECK;
void keeper_free(struct keeper *k); /* NULL is fine; ends what it does */
/* The writer tells: pages in the WAL, closed segments in the file. */
void keeper_tell(struct keeper *k, int wal_pages, unsigned closed);
/* True once for each segment that was sealed; the writer drops it then, and says when it did or could not.
 * Until keeper_tell the next is not begun, for this one may still be found in the file. */
bool keeper_sealed(struct keeper *k, struct seal_result *out);
void keeper_dropped(struct keeper *k);
/* True once after a checkpoint of the WAL: what little came meanwhile is the writer's to finish, for only
 * then can the WAL begin anew. */
bool keeper_checkpointed(struct keeper *k);

/* ---- sink.c: copies of the rows for people and collectors, on a thread of their own ---- */

struct sink;
int sink_new(struct sink **out, const struct audit_config *cfg, struct err *e) ST_CHECK;
void sink_free(struct sink *s); /* writes what is queued; NULL is fine */
/* Rows that are in the file, ids from `first`. Never waits: what a slow reader makes too much is dropped and
 * told of on the next line. */
void sink_rows(struct sink *s, int64_t first, const struct batch_item *items, size_t n);

/* ---- audit.c and writer.c: one struct, two sides ---- */

#define OWN_MAX 8u

struct flush {
    struct port_item item; /* first */
    struct flush *next;
    struct port *port; /* NULL: somebody waits on `woken` */
    void (*done)(void *arg, int rc, const struct err *e);
    void *arg;
    bool finished;
    struct err err;
};

struct audit {
    struct audit_config cfg;
    struct store *store;
    struct store_outbox *outbox;
    struct keeper *keeper;
    struct sink *sink;
    struct ring ring;
    pthread_t thread;

    atomic_bool outbox_dirty; /* the store committed events since the last read */
    atomic_uint_fast64_t dropped;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake, woken;
    bool closing;
    struct flush *flushes, **flush_tail;
    struct audit_stats stats;
    struct audit_watch *watches;

    /* the audit thread's own */
    struct batch_writer w;
    struct batch_item *items;
    size_t n, cap, ring_n; /* gathered; how many of them lie in the ring */
    struct buf arena;      /* outbox rows of this batch */
    size_t *arena_at;      /* where each begins */
    struct buf own[OWN_MAX];
    size_t own_n, own_taken; /* our own rows; how many of them the batch holds */
    bool own_urgent;         /* one of them is written also when nothing else comes */
    struct buf loss;
    uint64_t read_seq; /* outbox rows up to it are in the batch or the file */
    uint64_t reported_drops, last_checkpoint_ns, last_write_ns, last_retire_ns, step_ns;
    int64_t checkpoint_size, drops_since_us;
    int64_t last_wall_us; /* at last_mono_ns, to see the clock step */
    uint64_t last_mono_ns;
    bool reopen;      /* after a failure that SQLite may not get out of by itself */
    int64_t moved_us; /* since when the file is not at its path; 0: it is */
    bool has_sealed;  /* a segment that lies in a file of its own now and leaves with the next batch */
    struct seal_result sealed;
};

void *audit_thread(void *arg);
void audit_notify(struct audit *a); /* tells the watches; without the lock */

#endif
