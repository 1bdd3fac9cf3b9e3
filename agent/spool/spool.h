/*
 * The node's audit spool: an append-only file that holds what happened here until the coordinator has it. A
 * record carries its sequence and SHA-256 over the hash before it, so damage and gaps show. One thread writes
 * and syncs groups of records; a must-class operation is answered only when its record is on disk. The file
 * is bounded: when it is full, emitting fails and whoever was about to act must refuse.
 *
 * Delivery is by sequence and in order: records stay until spool_delivered(), so a crash or a partition of
 * either side repeats some, and the coordinator takes each once.
 */
#ifndef STRATA_AGENT_SPOOL_H
#define STRATA_AGENT_SPOOL_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/port.h"
#include "common/spool/record.h"

struct spool;

struct spool_cfg {
    const char *path;          /* its directory must exist */
    uint64_t max_bytes;        /* of undelivered records; 0 = 64 MiB */
    struct port *port;         /* completions run there; borrowed, outlives the spool */
    const struct clock *clock; /* NULL = system */
    const struct log *log;     /* may be NULL */
};

/* Opens or makes the file (0600) and starts the thread. A torn end, as a crash leaves it, is cut off; a
 * record that is damaged further in ends the file there, and the rest is kept beside it as "<path>.damaged".
 */
int spool_open(struct spool **out, const struct spool_cfg *cfg, struct err *e) ST_CHECK;
/* Writes what was emitted, joins, closes. Completions may still lie in the port. NULL is fine. */
void spool_close(struct spool *s);

typedef void (*spool_done_fn)(void *arg, int rc, const struct err *e);

/*
 * Adds an event; copies. With `done`: it runs on the port's loop when the record is on disk, or with why it
 * is not; give one for every must-class event. Without: nobody waits, and a shed event is dropped when the
 * spool is nearly full. Must-class events of operations that began while there was room have a margin of an
 * eighth. ST_ERESOURCE with SPOOL_FULL, also as spool_room tells before. Loop thread.
 */
int spool_emit(struct spool *s, const struct audit_event *ev, spool_done_fn done, void *arg,
               struct err *e) ST_CHECK;
/* done when everything emitted so far is on disk, or with why it is not; rows that nobody waits for are kept
 * and tried again all the same. ST_ENOMEM. Loop thread. */
int spool_barrier(struct spool *s, spool_done_fn done, void *arg, struct err *e) ST_CHECK;
/* Would one more must-class event of usual size be taken? Ask before beginning the operation. Loop thread. */
bool spool_room(const struct spool *s);

/* Records from the first undelivered one, at most max_bytes (at least one record if there is any), whole and
 * in order, as they lie in the file. Only what is on disk is given. *first 0: none. `before` gets the hash
 * before the first. Loop thread; reads the file. */
int spool_peek(struct spool *s, size_t max_bytes, struct buf *out, uint64_t *first, uint64_t *last,
               uint8_t before[SPOOL_HASH], struct err *e) ST_CHECK;
/* The coordinator has everything up to seq. Loop thread. */
void spool_delivered(struct spool *s, uint64_t seq);
/* Runs on the loop when there is something new to deliver. */
void spool_on_ready(struct spool *s, void (*fn)(void *arg), void *arg);

struct spool_stats {
    uint64_t first, last; /* undelivered; first > last: none */
    uint64_t bytes, max_bytes, dropped;
    uint8_t id[SPOOL_ID]; /* of this spool: a new file has a new one */
};
void spool_stats(const struct spool *s, struct spool_stats *out); /* loop thread */

#endif
