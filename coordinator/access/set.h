/*
 * All policies of a cluster, compiled: a principal is a handle, a device is a bit, a decision is a few loads
 * of one cache line and never allocates. A policy is swapped by access_set_put; whoever holds a handle sees
 * the new one with the next decision. A removed policy's handle answers NO_POLICY for ever, also when the
 * principal gets another policy: resolve the name again.
 *
 * Expiry is a heap on wall time: access_set_next_expiry says when to look, access_set_pop_expired what to
 * remove; nothing is scanned. An expired policy grants nothing from its microsecond on, removed or not.
 *
 * Pure: no I/O, the time comes in. One thread.
 */
#ifndef STRATA_ACCESS_SET_H
#define STRATA_ACCESS_SET_H

#include "common/base/clock.h"
#include "coordinator/access/access.h"

struct access_set;
struct access_handle {
    uint32_t slot, stamp; /* zero = nobody */
};
#define ACCESS_NO_DEVICE 0u              /* the act names no device */
#define ACCESS_UNKNOWN_DEVICE UINT32_MAX /* one that only policies without device restriction allow */
#define ACCESS_MAX_DEVICES (1u << 20)

int access_set_new(struct access_set **out, const struct rng *rng) ST_CHECK;
void access_set_free(struct access_set *s); /* NULL is fine */
size_t access_set_count(const struct access_set *s);

/* Adds or replaces, whole or not at all. ST_EINVAL as policy_validate, ST_ENOMEM. */
int access_set_put(struct access_set *s, const struct policy *p, struct err *e) ST_CHECK;
bool access_set_del(struct access_set *s, const char *principal); /* false: there was none */
/* The policy as it was put; false: none. */
bool access_set_get(const struct access_set *s, const char *principal, struct policy *out);
/* Every principal in no order; the callback must not change the set. Stops at the first non-zero. */
int access_set_each(const struct access_set *s, int (*fn)(const char *principal, void *arg), void *arg);

/* Slot 0 when there is no policy. n is the length of the name. */
struct access_handle access_set_find(const struct access_set *s, const char *principal, size_t n);
/* A device's number for decisions, made on first sight ("dione/cuda:0"); ACCESS_UNKNOWN_DEVICE when there are
 * more than ACCESS_MAX_DEVICES or no memory. */
uint32_t access_set_device(struct access_set *s, const char *id);

struct decision access_set_decide(const struct access_set *s, struct access_handle h, enum permission p,
                                  uint32_t device, int64_t now_us);
/* The same by names; a device that has no number is matched by its patterns. device NULL: none is named.
 * Quota: req->used_bytes and ask_bytes as for access_check. */
struct decision access_set_ask(const struct access_set *s, const char *principal,
                               const struct access_request *req);

/* When the next policy expires, INT64_MAX when none does. */
int64_t access_set_next_expiry(const struct access_set *s);
/* The principal of one policy that has expired by now, or NULL; it stays in the set until access_set_del, and
 * is not named again. Valid until the set changes. */
const char *access_set_pop_expired(struct access_set *s, int64_t now_us);

#endif
