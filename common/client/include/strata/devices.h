/*
 * libstrata: device sessions. A struct strata_devices is a session with the devices of one node: memory of
 * one's own there, copies, kernels, sensors. The coordinator grants it (a ticket, with so many bytes taken
 * from one's quota); everything else goes to the node's agent directly, over a mutual TLS 1.3 connection of
 * its own. Calls block; one thread at a time uses a client and all its sessions. strata_client_interrupt()
 * ends these calls too.
 *
 * A session ends with strata_devices_end(), when its ticket runs out (strata_devices_renew() makes it later),
 * when its last connection has been gone for longer than it may linger, or when the coordinator says so;
 * whatever it held is freed then. What strata_devices_save() gives lets another process of the same identity
 * take it up again while it lingers.
 */
#ifndef STRATA_DEVICES_H
#define STRATA_DEVICES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "strata/client.h"

#ifdef __cplusplus
extern "C" {
#endif

struct strata_devices;

#define STRATA_HANDLE_LEN 16
#define STRATA_SAVED_MAX 8192

struct strata_devices_opts {
    const char *const *devices; /* ids or patterns on that node, "cuda:0", "*" */
    size_t ndevices;            /* 0 = all one may use */
    uint64_t limit_bytes;       /* of device memory over the whole session */
    uint64_t ttl_ns;            /* of the ticket; 0 = the coordinator's default */
    uint64_t linger_ns;         /* at most ten minutes; 0 = it ends with its last connection */
};
int strata_devices_open(struct strata_devices **out, struct strata_client *c, const char *node,
                        const struct strata_devices_opts *o, struct strata_error *e);
/* Takes up a session that was saved. Reason TICKET_REVOKED, TICKET_EXPIRED …: it is over. */
int strata_devices_attach(struct strata_devices **out, struct strata_client *c, const char *saved, size_t n,
                          struct strata_error *e);
/* A NUL-terminated text of at most STRATA_SAVED_MAX bytes; holds the ticket, so keep it as private as the
 * key. */
int strata_devices_save(const struct strata_devices *d, char *out, size_t cap);
int strata_devices_renew(struct strata_devices *d, uint64_t ttl_ns, struct strata_error *e);
/* Leaves the session; it ends now or when it has lingered. NULL is fine. */
void strata_devices_leave(struct strata_devices *d);
/* Ends it; *freed is what it held. d is gone, also on failure. */
int strata_devices_end(struct strata_devices *d, uint64_t *freed, struct strata_error *e);

/* Any call of the services in devices.proto that is no transfer, such as Monitor.Temperature. *resp is the
 * caller's: protobuf_c_message_free_unpacked(). */
int strata_devices_call(struct strata_devices *d, const ProtobufCServiceDescriptor *svc, const char *method,
                        const ProtobufCMessage *req, uint64_t timeout_ns, ProtobufCMessage **resp,
                        struct strata_error *e);
int strata_devices_alloc(struct strata_devices *d, const char *device, uint64_t bytes,
                         uint8_t handle[STRATA_HANDLE_LEN], struct strata_error *e);
int strata_devices_free(struct strata_devices *d, const uint8_t handle[STRATA_HANDLE_LEN],
                        struct strata_error *e);

/* Transfers. read fills up to n bytes and returns how many, 0 only at the end of the bytes, negative to give
 * up; write takes n bytes, negative to give up. progress (may be NULL) after each piece. sha256 (may be NULL)
 * is the digest of all bytes; a success means that the other end has the same. */
struct strata_transfer {
    ssize_t (*read)(void *arg, void *p, size_t n);
    int (*write)(void *arg, const void *p, size_t n);
    void (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
    uint64_t timeout_ns; /* 0 = none */
    uint8_t *sha256;     /* 32 bytes */
};
/* The bytes are read back from the device and compared before this succeeds. */
int strata_devices_put(struct strata_devices *d, const uint8_t handle[STRATA_HANDLE_LEN], uint64_t offset,
                       uint64_t bytes, const struct strata_transfer *t, struct strata_error *e);
int strata_devices_get(struct strata_devices *d, const uint8_t handle[STRATA_HANDLE_LEN], uint64_t offset,
                       uint64_t bytes, const struct strata_transfer *t, struct strata_error *e);
/* Between two sessions' nodes; the bytes go from agent to agent and never through here. */
int strata_devices_copy(struct strata_devices *from, const uint8_t from_handle[STRATA_HANDLE_LEN],
                        uint64_t from_offset, struct strata_devices *to,
                        const uint8_t to_handle[STRATA_HANDLE_LEN], uint64_t to_offset, uint64_t bytes,
                        uint64_t timeout_ns, struct strata_error *e);

const char *strata_devices_session(const struct strata_devices *d); /* "s-…" */
const char *strata_devices_node(const struct strata_devices *d);
int64_t strata_devices_expires_us(const struct strata_devices *d);

#ifdef __cplusplus
}
#endif

#endif
