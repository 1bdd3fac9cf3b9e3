/*
 * Status codes. Every fallible function of strata returns 0 (ST_OK) or one of these negative values; foreign
 * codes (errno, SQLite, OpenSSL, ngtcp2, Vulkan, CUDA) are translated at the edge of the room that meets
 * them.
 */
#ifndef STRATA_BASE_STATUS_H
#define STRATA_BASE_STATUS_H

#define ST_CHECK __attribute__((warn_unused_result))

enum status {
    ST_OK = 0,
    ST_EINTERNAL = -1,    /* a bug or an unexpected answer of the system */
    ST_EINVAL = -2,       /* the caller's argument or the user's input is wrong */
    ST_ENOMEM = -3,       /* host memory */
    ST_EAGAIN = -4,       /* not now: wait for the event the function names */
    ST_ENOENT = -5,       /* not found */
    ST_EEXIST = -6,       /* already there */
    ST_EDENIED = -7,      /* permission denied */
    ST_ETRUST = -8,       /* certificate, signature or pin refused */
    ST_EUNREACH = -9,     /* peer unreachable or connection lost */
    ST_EDEADLINE = -10,   /* deadline passed */
    ST_ERESOURCE = -11,   /* quota, capacity or device memory exhausted */
    ST_ECONFLICT = -12,   /* state does not allow it, or somebody else was first */
    ST_EIO = -13,         /* file or device I/O failed */
    ST_EPROTO = -14,      /* the peer broke the protocol */
    ST_ECLOSED = -15,     /* closed by the peer or by us */
    ST_ECANCELED = -16,   /* cancelled by the caller */
    ST_ECORRUPT = -17,    /* data fails its checksum or is malformed */
    ST_ENOTSUP = -18,     /* not supported here */
    ST_ELIMIT = -19,      /* larger than a fixed bound */
    ST_EINFEASIBLE = -20, /* no plan exists */
    ST_ECONFIG = -21,     /* configuration file wrong */
};

/* Short stable name such as "ENOENT"; "E?" for an unknown code. Never NULL. Any thread. */
const char *status_name(int rc);

/* The status that stands for an errno value (EIO for those without one of their own). Any thread. */
int status_from_errno(int err);

/* google.rpc.Code for a status (0…16) and back; any thread. */
unsigned status_to_rpc(int rc);
int status_from_rpc(unsigned code);

/* The exit code of a command that ends with this status, as the manual lists them. */
int status_exit_code(int rc);

#endif
