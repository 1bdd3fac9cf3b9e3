/*
 * Whom the cluster trusts: join tokens, the certificates it issued, revocations and pins, all kept in
 * state.db; the CA that signs, if it is ours; the socket of service Enroll. A change takes effect, in memory
 * and on live connections, when it is on disk. Loop thread.
 */
#ifndef STRATA_API_TRUST_H
#define STRATA_API_TRUST_H

#include "coordinator/api/api.h"
#include "strata/v1/certs.pb-c.h"

struct trust_source { /* one address that tries tokens */
    uint64_t since_ns;
    unsigned failures;
};

struct trust_door { /* what was last written down of handshakes that came to nothing at a socket */
    uint64_t refused, timed_out, broken;
    uint64_t at_ns;
};

struct trust {
    struct coord *c;
    struct tls_rules *rules;
    struct tls_ca *ca;                           /* NULL: certificates come from elsewhere */
    struct map *tokens, *certs, *revoked, *pins; /* records by id, owned */
    struct buf bundle;                           /* PEM of ca.crt, as peers are given it */
    struct quic_udp *enroll_udp;
    struct quic_ep *enroll_ep;
    struct tls_ctx *enroll_tls;
    struct rpc_table *enroll_table;
    struct map *sources;         /* address → trust_source, owned */
    uint64_t bucket_ns;          /* when the bucket was last looked at */
    double bucket;               /* requests that may come at once */
    uint64_t check_ns, renew_ns; /* when live connections, our own certificate are due */
    struct log_limit refusals;   /* of certificates; counted beyond it */
    struct trust_door main_door, enroll_door;
    int64_t files_us; /* newest mtime seen of the TLS files */
    bool changing;    /* a trust_change() is on its way */
};

/* Rules and the TLS context that uses them; before anything else. */
int trust_new(struct coord *c, struct err *e) ST_CHECK;
/* Records from state.db and the CA; then trust_listen(). */
int trust_load(struct trust *t, struct err *e) ST_CHECK;
int trust_listen(struct trust *t, struct err *e) ST_CHECK;
void trust_free(struct trust *t);
/* Every quarter of a heartbeat: ends connections whose certificate is no longer good, renews our own. */
void trust_tick(struct trust *t);

/* What an agent must know, over its session; `renew`, `fresh` ask it for a new certificate or key now. */
void trust_tell(struct trust *t, struct coord_session *s, bool renew, bool fresh);
unsigned trust_tell_all(struct trust *t, const char *principal, bool renew, bool fresh);
/* The same for what makes agents work, and us for them: fifty a second, so that calls in between need not
 * wait. Whoever connects meanwhile is told then. Returns how many it will be. */
unsigned trust_tell_in_turn(struct trust *t, const char *principal, bool renew, bool fresh);
/* May this identity take over from the other one of the same name? Its key, or the key that follows it. */
bool trust_succeeds(struct trust *t, const struct tls_identity *old, const struct tls_identity *id);
/* Closes what is no longer good. Returns how many. */
unsigned trust_close_bad(struct trust *t);
/* Our TLS files again, into new contexts, for connections to come. */
int trust_reload(struct trust *t, struct err *e) ST_CHECK;
/* Files of our own made anew: made and written on the offload thread, since the disk may be slow, and in use
 * when `done` is told so on the loop. One at a time: ST_ECONFLICT with BUSY, and no `done`. */
enum trust_change {
    TRUST_OWN,    /* the coordinator's certificate */
    TRUST_CA,     /* a new CA, and a certificate of it */
    TRUST_CA_END, /* the old CA is dropped */
    TRUST_TICKET, /* the key that signs tickets */
};
int trust_change(struct trust *t, enum trust_change what,
                 void (*done)(void *arg, int rc, const struct err *e), void *arg, struct err *e) ST_CHECK;

/* How far back a certificate's life begins: clocks differ, but a short life must stay short. */
int64_t trust_backdate_us(const struct coord *c);

/* ---- records (records.c) ---- */

void trust_put(struct store_txn *txn, const char *kind, const char *id, const ProtobufCMessage *m,
               int64_t now_us);
/* Takes m (unpacked, or a copy) into the map by id in the place of what was there. */
int trust_keep(struct map *map, const char *id, ProtobufCMessage *m) ST_CHECK;
void trust_drop(struct map *map, const char *id);
ProtobufCMessage *trust_copy(const ProtobufCMessage *m);
void trust_records_free(struct map *map);
/* All records of a map, in no order: an array to be freed; NULL = no memory. */
void **trust_all(struct map *map, size_t *n);
int trust_records_load(struct trust *t, struct err *e) ST_CHECK;
const char *trust_pool_of(void *trust, const char *principal);
void trust_pin_id(const char *subject, const uint8_t sha256[32], char out[160]);
/* Writes down the certificate that was issued to `id` and makes the record current. */
Strata__V1__Certificate *trust_certificate(struct trust *t, const struct tls_identity *id, const char *pool);

extern const struct rpc_method trust_methods[];
extern const size_t trust_methods_n;
void trust_create_token_handler(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void trust_list_tokens_handler(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void trust_revoke_token_handler(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void trust_rotate_handler(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void enroll_join_handler(struct rpc_call *call, const ProtobufCMessage *req, void *arg);

/* An audit event of these rooms in a transaction. */
void trust_event(struct store_txn *txn, struct coord *c, int type, int result, const char *principal,
                 const char *node, struct event_meta *meta, const char *error);

#endif
