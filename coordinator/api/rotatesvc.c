/* Rotation for service Certs: of leaves, the coordinator's own, the CA and the key of tickets. */
#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/base/str.h"
#include "coordinator/api/pending.h"

#define PRINCIPAL_MAX 80 /* in trust_pending.id; the serial of the CA before is behind it */

struct cut { /* who would be cut off */
    struct trust *t;
    const char *ca;
    Strata__V1__CutOff *v, **pv;
    size_t n;
};

static int cut_one(const void *key, size_t n, void *value, void *arg)
{
    struct cut *k = arg;
    const Strata__V1__Certificate *r = value;
    (void)key, (void)n;
    if (r->not_after_us < clock_wall_us(k->t->c->clock))
        return 0;
    const char *why = strcmp(r->issuer, k->ca) ? "its certificate is of the old CA"
                      : !r->trusts_new_ca      ? "it has not been told of the new CA"
                                               : NULL;
    if (!why)
        return 0;
    Strata__V1__CutOff *o = &k->v[k->n];
    strata__v1__cut_off__init(o);
    o->principal = r->principal;
    o->reason = (char *)why;
    k->pv[k->n++] = o;
    return 0;
}

static void rotated(struct trust_pending *p)
{
    Strata__V1__RotateReply r = STRATA__V1__ROTATE_REPLY__INIT;
    r.serial = (char *)(p->t->ca ? tls_ca_serial(p->t->ca) : "");
    r.told = p->told;
    trust_pending_reply(p, &r.base);
}

/* Done, and answered when it is on record. */
static void recorded(struct trust_pending *p)
{
    struct trust *t = p->t;
    struct store_txn *txn = store_txn_new();
    struct event_meta m = {0};
    bool ca = !strncmp(p->text, "ca", 2);
    event_meta_str(&m, "serial", ca ? tls_ca_serial(t->ca) : tls_ctx_self(t->c->tls)->serial);
    event_meta_str(&m, ca ? "old" : "subject", ca ? p->id + PRINCIPAL_MAX : p->text);
    if (txn)
        trust_event(txn, t->c, ca ? EV_CERTIFICATE_CA_ROTATED : EV_CERTIFICATE_ROTATED, EVENT_SUCCESS, p->id,
                    NULL, &m, NULL);
    else
        event_meta_fini(&m);
    trust_pending_submit(p, txn);
}

static void changed(void *arg, int rc, const struct err *e)
{
    struct trust_pending *p = arg;
    bool begun = !strcmp(p->text, "ca");
    if (rc < 0) {
        trust_pending_fail(p, e);
        return;
    }
    if (!strcmp(p->text, "ticket"))
        p->told = trust_tell_all(p->t, NULL, false, false);
    else if (strcmp(p->text, "coordinator"))
        p->told = trust_tell_in_turn(p->t, NULL, begun, false);
    recorded(p);
}

static int rotate_leaf(struct trust_pending *p, const Strata__V1__RotateRequest *q, struct err *e)
{
    p->told = trust_tell_in_turn(p->t, q->principal, true, q->fresh_key);
    if (!p->told && q->principal[0])
        return err_reason(e, ST_ENOENT, "NOT_CONNECTED", "%s is not connected", q->principal);
    recorded(p);
    return ST_OK;
}

/* Takes p, unless it fails. */
static int begin(struct trust_pending *p, const Strata__V1__RotateRequest *q, struct err *e)
{
    static const struct {
        const char *what;
        enum trust_change change;
    } row[] = {
        {"coordinator", TRUST_OWN}, {"ca", TRUST_CA}, {"ca-end", TRUST_CA_END}, {"ticket", TRUST_TICKET}};
    if (q->dry_run)
        return err_reason(e, ST_EINVAL, "BAD_VALUE", "only a rotation of the CA can be tried dry");
    if (!strcmp(q->what, "leaf"))
        return rotate_leaf(p, q, e);
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        if (!strcmp(q->what, row[i].what))
            return trust_change(p->t, row[i].change, changed, p, e);
    return err_reason(e, ST_EINVAL, "BAD_VALUE", "rotate what? leaf, coordinator, ticket, ca or ca-end");
}

/* Who would be cut off, if that was asked for or stands in the way; ST_OK with *done when the call is
 * answered.
 */
static int check_cut_off(struct trust *t, struct rpc_call *call, const Strata__V1__RotateRequest *q,
                         bool *done, struct err *e)
{
    bool end = !strcmp(q->what, "ca-end");
    Strata__V1__RotateReply r = STRATA__V1__ROTATE_REPLY__INIT;
    size_t n = map_count(t->certs) + 1;
    if (!t->ca)
        return err_reason(e, ST_ECONFLICT, "NO_CA", "certificates of this cluster come from another CA");
    /* Before a rotation begins nobody has the new CA: all are listed. */
    struct cut cut = {.t = t,
                      .ca = end ? tls_ca_serial(t->ca) : "",
                      .v = calloc(n, sizeof *cut.v),
                      .pv = calloc(n, sizeof(*cut.pv))};
    int rc = cut.v && cut.pv ? ST_OK : err_set(e, ST_ENOMEM, "the coordinator is out of memory");
    if (rc == ST_OK)
        map_each(t->certs, cut_one, &cut);
    *done = rc == ST_OK && q->dry_run;
    if (*done) {
        r.serial = (char *)tls_ca_serial(t->ca);
        r.n_cut_off = cut.n;
        r.cut_off = cut.pv;
        rpc_reply(call, &r.base);
    } else if (rc == ST_OK && end && cut.n && !q->force) {
        rc = err_reason(
            e, ST_ECONFLICT, "CUT_OFF",
            "%zu would be cut off (strata cert rotate-ca --end --dry-run lists them): let them renew "
            "first, or force it",
            cut.n);
    }
    free(cut.v);
    free(cut.pv);
    return rc;
}

void trust_rotate_handler(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct trust *t = ((struct coord *)arg)->trust;
    const Strata__V1__RotateRequest *q = (const Strata__V1__RotateRequest *)req;
    struct err e = {0};
    bool done = false;
    if (!api_allow(call, t->c, PERM_ADMIN))
        return;
    if (!strcmp(q->what, "ca") || !strcmp(q->what, "ca-end")) {
        if (check_cut_off(t, call, q, &done, &e) < 0)
            rpc_fail(call, &e);
        if (done || e.code)
            return;
    }
    struct trust_pending *p = trust_pending_new(t, call, rotated);
    if (!p)
        return;
    str_copy(p->id, PRINCIPAL_MAX, rpc_peer(call)->principal);
    str_copy(p->id + PRINCIPAL_MAX, sizeof p->id - PRINCIPAL_MAX, t->ca ? tls_ca_serial(t->ca) : "");
    str_copy(p->text, sizeof p->text, q->what);
    if (begin(p, q, &e) < 0)
        trust_pending_fail(p, &e);
}
