/*
 * Brings the spool's records to the coordinator: one batch at a time, in order, repeated until it says that
 * it has them. Also keeps the signed heads of the coordinator's audit chain, as a witness that can later show
 * a chain that was rewritten. Loop thread.
 */
#ifndef STRATA_AGENT_SPOOL_DELIVER_H
#define STRATA_AGENT_SPOOL_DELIVER_H

#include "agent/spool/spool.h"
#include "common/rpc/rpc.h"

struct event_base;
struct deliver;

struct deliver_cfg {
    struct event_base *base;
    struct spool *spool;
    const struct log *log;
};
int deliver_new(struct deliver **out, const struct deliver_cfg *cfg) ST_CHECK;
void deliver_free(struct deliver *d); /* after the session is gone; NULL is fine */
/* Registered on this session, or NULL: no longer. */
void deliver_session(struct deliver *d, struct rpc_session *s);

/* ---- the witness: lines "size head-hex time_us key_id signature-hex" in a file of at most 2 × 64 KiB ----
 */

struct witness_head {
    int64_t size, time_us;
    uint8_t head[32], sig[64];
    size_t sig_len;
    char key_id[33];
};
struct witness {
    char path[1024];
    struct witness_head last;
    const struct log *log;
};
/* Reads the latest head kept at path; a missing file is an empty witness. */
int witness_open(struct witness *w, const char *path, const struct log *log, struct err *e) ST_CHECK;
/* Keeps a newer head. A chain that became shorter, or has another head at the same size, is said on the log
 * and kept as well: that is what a witness is for. */
void witness_take(struct witness *w, const struct witness_head *h);

#endif
