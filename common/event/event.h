/*
 * Audit events: the type table, and the one binary encoding used by the outbox of state.db, the ring before
 * audit.db, the agents' spools and the wire. Pure; any thread.
 *
 * An event's strings are borrowed views. event_encode() cuts them to their bounds and replaces control
 * characters and broken UTF-8 with '?', so that nothing a peer sends can keep an audit row from being written
 * or a reader from reading it.
 */
#ifndef STRATA_EVENT_EVENT_H
#define STRATA_EVENT_EVENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/status.h"
#include "common/event/event_table.h"

enum event_severity { EVENT_DEBUG, EVENT_INFO, EVENT_WARNING, EVENT_ERROR, EVENT_CRITICAL };
enum event_result { EVENT_SUCCESS, EVENT_FAILURE, EVENT_DENIED };
enum event_class { EVENT_SHED, EVENT_KEEP, EVENT_MUST };

/* EV_JOB_SUBMITTED and so on; 0 is no event. */
enum event_type {
    EV_NONE = 0,
#define X(num, name, text, severity, cls, keys) EV_##name = num,
    EVENT_TABLE(X)
#undef X
};

struct event_info {
    int type;
    const char *name; /* "job.submitted" */
    enum event_severity severity;
    enum event_class cls;
    const char *keys; /* metadata keys, space separated, '?' after an optional one */
};

#define EVENT_TYPE_MAX 511    /* numbers in the table are at most this */
#define EVENT_NAME_MAX 256u   /* principal, device, node, session, job, operation */
#define EVENT_ERROR_MAX 1024u /* error sentence */
#define EVENT_META_MAX 8192u  /* JSON object text; larger is refused, for cut JSON is no JSON */
#define EVENT_ENCODED_MAX 12288u

struct audit_event {
    int64_t id;      /* row id in audit.db; 0 until it is stored */
    int64_t time_us; /* epoch microseconds, UTC */
    int type;        /* enum event_type */
    int severity;    /* enum event_severity */
    int result;      /* enum event_result */
    const char *principal, *device, *node, *session, *job, *operation, *error; /* NULL = absent, same as "" */
    const char *meta;                                                          /* a JSON object, or NULL */
};

/* NULL for an unknown number or name. */
const struct event_info *event_info(int type);
const struct event_info *event_by_name(const char *name);
/* The i-th row of the table, NULL past its end. */
const struct event_info *event_at(size_t i);

const char *event_severity_name(int severity); /* "?" when out of range; never NULL */
const char *event_result_name(int result);
int event_severity_parse(const char *word, int *out); /* ST_EINVAL */
int event_result_parse(const char *word, int *out);

/* An event of this type with its usual severity, raised to a warning when it failed or was denied; the rest
 * empty. */
struct audit_event event_make(int type, int result, int64_t time_us);

/* The class this very event has: every denial is must; debug of a keep type is shed, info of a shed type is
 * kept. */
enum event_class event_class(const struct audit_event *e);

/* Appends the encoding. ST_EINVAL: unknown type, severity or result out of range, meta not a JSON object;
 * ST_ELIMIT: meta too long; ST_ENOMEM. On failure *out is unchanged. */
int event_encode(const struct audit_event *e, struct buf *out) ST_CHECK;

/* The same into the caller's bytes, without allocating: for paths that may not take long. */
int event_encode_into(const struct audit_event *e, uint8_t out[EVENT_ENCODED_MAX], size_t *n) ST_CHECK;

/* Decodes exactly n bytes; the strings of *e point into p (they are NUL-terminated there) and absent ones are
 * "". Everything is checked: what this accepts, event_encode() gives back byte for byte. ST_ECORRUPT
 * otherwise. */
int event_decode(const uint8_t *p, size_t n, struct audit_event *e) ST_CHECK;

/* The same for bytes that event_encode() of this very process made and nobody else could touch: only lengths
 * are checked. */
int event_decode_ours(const uint8_t *p, size_t n, struct audit_event *e) ST_CHECK;

/* One JSON object without newline: id, time (RFC 3339), time_us, type, severity, result, the strings present,
 * meta. */
int event_json(const struct audit_event *e, struct buf *out) ST_CHECK;

/* Is s[0..n) one JSON value that is an object, UTF-8, nested at most 16 deep? */
bool event_json_object_ok(const char *s, size_t n);
/* Appends s as a JSON string, quotes included. */
int event_json_string(struct buf *out, const char *s) ST_CHECK;

/*
 * Metadata builder: zero-initialise, add, take the text with event_meta_text(), then event_meta_fini(). A
 * failed add (no memory, too long) is remembered and makes the text NULL.
 */
struct event_meta {
    struct buf b;
    int rc;
};
void event_meta_str(struct event_meta *m, const char *key, const char *value);
void event_meta_u64(struct event_meta *m, const char *key, uint64_t value);
void event_meta_i64(struct event_meta *m, const char *key, int64_t value);
void event_meta_f64(struct event_meta *m, const char *key, double value); /* not finite: null */
void event_meta_bool(struct event_meta *m, const char *key, bool value);
const char *event_meta_text(struct event_meta *m); /* borrowed from m; NULL when empty or failed */
void event_meta_fini(struct event_meta *m);

#endif
