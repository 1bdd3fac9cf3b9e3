#include "agent/spool/deliver.h"

#include <event2/event.h>
#include <stdlib.h>

#include "strata/v1/spool.pb-c.h"

#define BATCH_BYTES (192u << 10)
#define TIMEOUT_NS (15 * NS_PER_S)
#define RETRY_S 1

struct deliver {
    struct deliver_cfg cfg;
    struct event *retry;
    struct rpc_session *session;
    struct rpc_call *call;
    uint64_t taken; /* what the answer of this call said */
    bool failing;
};

static void next(struct deliver *d);

static void on_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)call;
    ((struct deliver *)arg)->taken = ((const Strata__V1__SpoolTaken *)msg)->seq;
}

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct deliver *d = arg;
    (void)call;
    (void)digest;
    d->call = NULL;
    if (st->code == 0) {
        if (d->failing)
            LOG_I(d->cfg.log, "spool", "the coordinator takes events again seq=%llu",
                  (unsigned long long)d->taken);
        d->failing = false;
        spool_delivered(d->cfg.spool, d->taken);
        next(d);
        return;
    }
    if (!d->failing)
        LOG_W(d->cfg.log, "spool", "not taken code=%u reason=%s text=\"%s\"", st->code, st->reason, st->text);
    d->failing = true;
    if (d->session) {
        const struct timeval tv = {RETRY_S, 0};
        evtimer_add(d->retry, &tv);
    }
}

static const struct rpc_call_ops ops = {.on_message = on_message, .on_done = on_done};

static void next(struct deliver *d)
{
    struct buf b = {0};
    struct err e;
    struct spool_stats st;
    uint64_t first, last;
    uint8_t before[SPOOL_HASH];
    if (!d->session || d->call)
        return;
    int rc = spool_peek(d->cfg.spool, BATCH_BYTES, &b, &first, &last, before, &e);
    if (rc == ST_OK && first) {
        Strata__V1__SpoolBatch m = STRATA__V1__SPOOL_BATCH__INIT;
        spool_stats(d->cfg.spool, &st);
        m.spool = (ProtobufCBinaryData){sizeof st.id, st.id};
        m.before = (ProtobufCBinaryData){sizeof before, before};
        m.records = (ProtobufCBinaryData){b.len, b.data};
        struct rpc_call_opts o = {.timeout_ns = TIMEOUT_NS};
        rc = rpc_call(&d->call, d->session, &strata__v1__spool__descriptor, "Push", RPC_UNARY, &m.base, &o,
                      &ops, d, &e);
        if (rc < 0)
            d->call = NULL;
    }
    if (rc < 0) {
        LOG_W(d->cfg.log, "spool", "nothing delivered text=\"%s\"", e.text);
        const struct timeval tv = {RETRY_S, 0};
        evtimer_add(d->retry, &tv);
    }
    buf_fini(&b);
}

static void on_retry(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    next(arg);
}

static void on_ready(void *arg)
{
    struct deliver *d = arg;
    if (!d->failing) /* the timer tries again then */
        next(d);
}

int deliver_new(struct deliver **out, const struct deliver_cfg *cfg)
{
    struct deliver *d = calloc(1, sizeof *d);
    if (!d)
        return ST_ENOMEM;
    d->cfg = *cfg;
    d->retry = evtimer_new(cfg->base, on_retry, d);
    if (!d->retry) {
        free(d);
        return ST_ENOMEM;
    }
    spool_on_ready(cfg->spool, on_ready, d);
    *out = d;
    return ST_OK;
}

void deliver_free(struct deliver *d)
{
    if (!d)
        return;
    spool_on_ready(d->cfg.spool, NULL, NULL);
    event_free(d->retry);
    free(d);
}

void deliver_session(struct deliver *d, struct rpc_session *s)
{
    d->session = s;
    evtimer_del(d->retry);
    d->failing = false;
    if (s)
        next(d);
}
