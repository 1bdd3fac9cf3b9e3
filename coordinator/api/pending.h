/* An answer of the trust room that waits for the disk: what it decided counts, and is told, when it is there.
 * Loop thread. */
#ifndef STRATA_API_PENDING_H
#define STRATA_API_PENDING_H

#include "common/enroll/enroll.h"
#include "coordinator/api/trust.h"

struct trust_pending {
    struct trust *t;
    struct rpc_call *call;
    void (*apply)(struct trust_pending *p); /* once it is on disk; fills the answer in */
    ProtobufCMessage *record;
    struct map *map; /* where record goes, under id; record NULL: id is dropped from it */
    char id[160], text[ENROLL_TOKEN_TEXT];
    int revoked; /* kind of revocation, or -1 */
    bool remove;
    unsigned told; /* agents */
    struct buf pem;
};

/* NULL: no memory, and the call is answered. */
struct trust_pending *trust_pending_new(struct trust *t, struct rpc_call *call,
                                        void (*apply)(struct trust_pending *p));
/* Takes both; txn NULL = no memory for it. The call is answered later, or now when the store is busy. */
void trust_pending_submit(struct trust_pending *p, struct store_txn *txn);
/* Nothing was to be stored after all: answers and frees. */
void trust_pending_fail(struct trust_pending *p, const struct err *e);
/* From apply: answers, unless the caller is gone. */
void trust_pending_reply(struct trust_pending *p, const ProtobufCMessage *m);

#endif
