/*
 * What the coordinator is told about device sessions, and what it says to them: reports of what is held and
 * what ended, until each was acknowledged; revocations. Loop thread only.
 */
#ifndef STRATA_AGENT_REPORTS_H
#define STRATA_AGENT_REPORTS_H

#include "agent/control.h"
#include "agent/session/session.h"

struct reports;

struct reports_cfg {
    struct event_base *base;
    const struct clock *clock;
    const struct log *log;
    struct sessions *const *sessions; /* read when needed: made after this */
    struct control *const *control;   /* likewise; NULL before there is one */
};

int reports_new(struct reports **out, const struct reports_cfg *cfg, struct err *e) ST_CHECK;
void reports_free(struct reports *r); /* after the endpoint is gone; NULL is fine */

/* Registered with the coordinator: tells it all. When that was answered, tickets are honoured. */
void reports_registered(struct reports *r);
/* Something changed. Urgent is sent at once, else within a second. */
void reports_changed(struct reports *r, bool urgent);

/* Service SessionControl, for the coordinator's connection. */
int reports_table(struct rpc_table **out, struct reports *r, struct err *e) ST_CHECK;

#endif
