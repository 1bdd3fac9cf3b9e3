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

/* ---- batch.c: the writing half, audit thread only ---- */

struct batch_writer {
    sqlite3 *db;
    sqlite3_stmt *insert, *seal, *state, *checkpoint, *rate, *name_get, *name_put;
    struct map *names; /* text → number; a cache of the name table, emptied when it grows or a batch fails */
    struct chain chain;
    struct audit_event *events; /* the batch decoded; its strings lie in the records */
    size_t events_cap;
    int64_t size; /* id of the last row */
    uint8_t head[CHAIN_HASH];
    uint64_t drained; /* outbox sequence that is in the file */
};

int batch_open(struct batch_writer *w, const char *path, unsigned max_pages, struct err *e) ST_CHECK;
void batch_close(struct batch_writer *w);

struct batch_checkpoint {
    int64_t ts_us;
    const struct audit_signer *signer;
};
/*
 * Writes n > 0 records as one batch, with the outbox sequence reached, and a checkpoint if cp is not NULL.
 * Nothing is written on failure. A record that does not decode becomes an audit.loss row: one bad row must
 * not stop the rest.
 */
int batch_write(struct batch_writer *w, struct rec *const *recs, size_t n, const struct batch_checkpoint *cp,
                struct err *e) ST_CHECK;

/* The strings of an event in the chain's order. */
void batch_strings(const struct audit_event *e, const char *out[CHAIN_STRINGS]);

#endif
