/*
 * Service Policies. Changes go through a queue, one after the other: each is judged against what the one
 * before left, written with its audit rows in one transaction, and takes effect when the disk has it. Then
 * whoever lost a right loses sessions and jobs that stood on it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/base/str.h"
#include "coordinator/api/api.h"
#include "coordinator/api/policytext.h"

#define CHANGES_MAX 1000u /* policies in one request */
#define ENDED_MAX 1000u   /* named in an answer */
#define WORDS_MAX 2800u   /* of a policy in an audit row: two of them and the rest stay below its limit */

struct change {
    struct policy before, after;
    bool had, has;
};
struct policy_op {
    struct coord *c;
    struct rpc_call *call; /* NULL: the coordinator's own, or the caller is gone */
    char by[80];
    bool dry_run, allow_unknown, expiry;
    size_t n;
    struct change *v;
    struct policy_op *next;
};

static void op_free(struct policy_op *op)
{
    free(op->v);
    free(op);
}

/* ---- what a change would end ---- */

static bool job_lost(const struct job *j, const struct policy *p, int64_t now_us, char reason[40])
{
    static const enum permission need[] = {PERM_MEMORY_ALLOCATE, PERM_MEMORY_COPY_TO_DEVICE};
    const char *last = "";
    for (size_t i = 0; i < j->nlayers; i++) {
        const char *device = j->layers[i].device;
        if (!device || !strcmp(device, last))
            continue;
        last = device;
        for (unsigned k = 0; k < 2; k++) {
            const struct access_request rq = {.permission = need[k], .device = device, .now_us = now_us};
            const struct decision d = access_check(p, &rq);
            if (!d.allowed) {
                str_copy(reason, 40, access_reason_name(d.reason));
                return true;
            }
        }
    }
    return false;
}

static void on_job_stopped(void *arg, int rc, const struct err *e)
{
    struct coord *c = arg;
    if (rc == ST_EAGAIN || rc == ST_ENOMEM)
        c->recheck_jobs = true;
    else if (rc < 0)
        LOG_E(&c->log, "api", "a job that lost its right was not stopped: %s", e->text);
}

/* principal NULL: everybody's */
static void recheck_jobs(struct coord *c, const char *principal, const char *by)
{
    char reason[40];
    for (struct job *j = jobs_first(c->jobs), *next; j; j = next) {
        next = j->next;
        if (job_ended(j->state) || j->state == JOB_RELEASING ||
            (principal && strcmp(principal, j->principal)))
            continue;
        if (!job_lost(j, api_policy(c, j->principal), clock_wall_us(c->clock), reason))
            continue;
        LOG_W(&c->log, "api", "job=%s principal=%s lost its right reason=%s", j->id, j->principal, reason);
        jobs_cancel(c->jobs, j, by, on_job_stopped, c);
    }
}

/* ---- answers: allocated throughout, freed as one message ---- */

static char *dup_or_empty(const char *s)
{
    char *p = strdup(s);
    return p ? p : (char *)protobuf_c_empty_string;
}

static int grow(void *vec, size_t n)
{
    void **v = vec;
    if (n & (n - 1)) /* room is made at powers of two */
        return ST_OK;
    void *bigger = realloc(*v, (n ? n * 2 : 1) * sizeof(void *));
    if (!bigger)
        return ST_ENOMEM;
    *v = bigger;
    return ST_OK;
}

static int add_field(Strata__V1__PolicyChange *ch, unsigned i, const struct change *c)
{
    char before[600] = "", after[600] = "", none[64];
    const struct policy nobody = {.principal = "-"};
    policy_field_words(&nobody, i, none, sizeof none);
    policy_field_words(c->had ? &c->before : &nobody, i, before, sizeof before);
    policy_field_words(c->has ? &c->after : &nobody, i, after, sizeof after);
    if (!strcmp(before, after) || (!c->had && !strcmp(after, none)) || (!c->has && !strcmp(before, none)))
        return ST_OK;
    if (grow(&ch->fields, ch->n_fields) < 0)
        return ST_ENOMEM;
    Strata__V1__PolicyField *f = malloc(sizeof *f);
    if (!f)
        return ST_ENOMEM;
    strata__v1__policy_field__init(f);
    f->name = dup_or_empty(policy_field_name(i));
    f->before = dup_or_empty(before);
    f->after = dup_or_empty(after);
    ch->fields[ch->n_fields++] = f;
    return ST_OK;
}

static const char *kind_of(const struct change *c)
{
    return !c->had                              ? "added"
           : !c->has                            ? "removed"
           : policy_same(&c->before, &c->after) ? "unchanged"
                                                : "updated";
}

static int add_change(Strata__V1__PolicyChanges *m, const struct change *c)
{
    Strata__V1__PolicyChange *ch = malloc(sizeof *ch);
    if (!ch || grow(&m->changes, m->n_changes) < 0) {
        free(ch);
        return ST_ENOMEM;
    }
    strata__v1__policy_change__init(ch);
    m->changes[m->n_changes++] = ch;
    ch->principal = dup_or_empty(c->had ? c->before.principal : c->after.principal);
    ch->change = dup_or_empty(kind_of(c));
    int rc = ST_OK;
    for (unsigned i = 0; i < POLICY_FIELDS && rc == ST_OK; i++)
        rc = add_field(ch, i, c);
    return rc;
}

static int add_ended(Strata__V1__PolicyChanges *m, const char *kind, const char *id, const char *principal,
                     const char *reason)
{
    if (m->n_ended == ENDED_MAX)
        return ST_OK;
    Strata__V1__EndedByChange *x = malloc(sizeof *x);
    if (!x || grow(&m->ended, m->n_ended) < 0) {
        free(x);
        return ST_ENOMEM;
    }
    strata__v1__ended_by_change__init(x);
    x->kind = dup_or_empty(kind);
    x->id = dup_or_empty(id);
    x->principal = dup_or_empty(principal);
    x->reason = dup_or_empty(reason);
    m->ended[m->n_ended++] = x;
    return ST_OK;
}

static int add_note(Strata__V1__PolicyChanges *m, const struct coord *c, const struct change *ch)
{
    char text[300], held[16], limit[16];
    uint64_t used = ch->has ? quota_charged(c->quota, ch->after.principal, "") : 0;
    if (!ch->has || !ch->after.has_quota || used <= ch->after.quota_bytes)
        return ST_OK;
    fmt_bytes(held, used);
    fmt_bytes(limit, ch->after.quota_bytes);
    snprintf(text, sizeof text,
             "%.80s holds %s, above its quota of %s: nothing more is granted until it is below",
             ch->after.principal, held, limit);
    if (grow(&m->notes, m->n_notes) < 0)
        return ST_ENOMEM;
    m->notes[m->n_notes++] = dup_or_empty(text);
    return ST_OK;
}

static int add_losses(Strata__V1__PolicyChanges *m, struct coord *c, const struct change *ch)
{
    const char *who = ch->had ? ch->before.principal : ch->after.principal;
    const struct policy *p = ch->has ? &ch->after : NULL;
    int64_t now = clock_wall_us(c->clock);
    char reason[40];
    int rc = ST_OK;
    for (struct dsession *s = c->dsessions.head; s && rc == ST_OK; s = s->next)
        if (s->state == DSESSION_OPEN && !strcmp(s->principal, who) && dsession_lost(s, p, now, reason))
            rc = add_ended(m, "session", s->id, who, reason);
    for (struct job *j = jobs_first(c->jobs); j && rc == ST_OK; j = j->next)
        if (!job_ended(j->state) && j->state != JOB_RELEASING && !strcmp(j->principal, who) &&
            job_lost(j, p, now, reason))
            rc = add_ended(m, "job", j->id, who, reason);
    return rc;
}

static Strata__V1__PolicyChanges *describe(const struct policy_op *op)
{
    Strata__V1__PolicyChanges *m = malloc(sizeof *m);
    int rc = ST_OK;
    if (!m)
        return NULL;
    strata__v1__policy_changes__init(m);
    m->dry_run = op->dry_run;
    for (size_t i = 0; i < op->n && rc == ST_OK; i++)
        if ((rc = add_change(m, &op->v[i])) == ST_OK && (rc = add_note(m, op->c, &op->v[i])) == ST_OK)
            rc = add_losses(m, op->c, &op->v[i]);
    if (rc == ST_OK)
        return m;
    strata__v1__policy_changes__free_unpacked(m, NULL);
    return NULL;
}

/* ---- judging ---- */

static int devices_known(const struct coord *c, const struct policy *p, struct err *e)
{
    for (unsigned i = 0; i < p->n_devices; i++) {
        const char *s = p->devices[i], *slash = strchr(s, '/');
        if (slash && str_starts(s, "node/") && strchr(slash + 1, '/')) {
            s = slash + 1;
            slash = strchr(s, '/');
        }
        char node[POLICY_PATTERN_MAX];
        if (!slash)
            continue; /* on any node */
        snprintf(node, sizeof node, "%.*s", (int)(slash - s), s);
        if (strchr(node, '*'))
            continue;
        const struct topo_node *n = topo_node(c->topo, node);
        bool known = n && (n->ndevices == 0 || strchr(slash, '*')); /* a node that is away has none listed */
        for (size_t k = 0; n && k < n->ndevices && !known; k++)
            known = !strcmp(n->devices[k].local_id, slash + 1);
        if (!known)
            return err_reason(
                e, ST_EINVAL, "UNKNOWN_DEVICE",
                "policy of %.80s: there is no %s '%.100s'; strata gpu list shows what there is, and "
                "--allow-unknown-devices takes it all the same",
                p->principal, n ? "device" : "node", n ? s : node);
    }
    return ST_OK;
}

static bool lasting_admin(const struct policy *p)
{
    return (access_effective(p) & PERM_BIT(PERM_ADMIN)) && !p->expires_us;
}

struct admins {
    struct coord *c;
    const struct policy_op *op;
};

static int finds_admin(const char *principal, void *arg)
{
    const struct admins *a = arg;
    for (size_t i = 0; i < a->op->n; i++)
        if (!strcmp(a->op->v[i].before.principal, principal) ||
            !strcmp(a->op->v[i].after.principal, principal))
            return 0; /* counted as it will be */
    const struct policy *p = api_policy(a->c, principal);
    return p && lasting_admin(p);
}

/* A cluster without an admin could never get one again. */
static int admin_stays(struct policy_op *op, struct err *e)
{
    bool takes = false, gives = false;
    for (size_t i = 0; i < op->n; i++) {
        takes = takes || (op->v[i].had && lasting_admin(&op->v[i].before));
        gives = gives || (op->v[i].has && lasting_admin(&op->v[i].after));
    }
    struct admins a = {op->c, op};
    if (!takes || gives || access_set_each(op->c->access, finds_admin, &a))
        return ST_OK;
    return err_reason(
        e, ST_ECONFLICT, "LAST_ADMIN",
        "refused: no principal would have admin:full_access without an expiry any more; give it to "
        "another first");
}

static int judge(struct policy_op *op, struct err *e)
{
    struct coord *c = op->c;
    int64_t now = clock_wall_us(c->clock);
    for (size_t i = 0; i < op->n; i++) {
        struct change *ch = &op->v[i];
        const char *who = ch->has ? ch->after.principal : ch->before.principal;
        char name[POLICY_PRINCIPAL_MAX];
        str_copy(name, sizeof name, who);
        ch->had = access_set_get(c->access, name, &ch->before);
        if (op->expiry) {
            ch->had = ch->had && policy_expired(&ch->before, now);
            continue;
        }
        if (!ch->has && !ch->had)
            return err_reason(e, ST_ENOENT, "NO_POLICY", "there is no policy for %.80s; nothing was changed",
                              name);
        if (!ch->has)
            continue;
        int rc = policy_sensible(&ch->after, now, e);
        if (rc == ST_OK && !op->allow_unknown)
            rc = devices_known(c, &ch->after, e);
        if (rc < 0)
            return rc;
        ch->after.created_us = ch->had ? ch->before.created_us : now;
        ch->after.generation = (ch->had ? ch->before.generation : 0) + 1;
    }
    return op->expiry ? ST_OK : admin_stays(op, e);
}

/* ---- writing ---- */

static bool changes(const struct change *c)
{
    return c->has ? !c->had || !policy_same(&c->before, &c->after) : c->had;
}

static void put_change(struct store_txn *t, const struct policy_op *op, const struct change *ch)
{
    char before[WORDS_MAX] = "", after[WORDS_MAX] = "";
    const int type = !ch->had  ? EV_SECURITY_POLICY_ADDED
                     : ch->has ? EV_SECURITY_POLICY_UPDATED
                               : EV_SECURITY_POLICY_REMOVED;
    struct event_meta m = {0};
    event_meta_str(&m, "subject", ch->has ? ch->after.principal : ch->before.principal);
    if (ch->had)
        policy_words(&ch->before, before, sizeof before);
    if (ch->has)
        policy_words(&ch->after, after, sizeof after);
    if (ch->had)
        event_meta_str(&m, "before", before);
    if (ch->has)
        event_meta_str(&m, "after", after);
    event_meta_u64(&m, "policy", ch->has ? ch->after.generation : ch->before.generation);
    if (!ch->has)
        event_meta_str(&m, "reason", op->expiry ? "EXPIRED" : "REMOVED");
    if (ch->has)
        store_txn_policy_put(t, &ch->after);
    else
        store_txn_policy_delete(t, ch->before.principal);
    struct audit_event ev = event_make(type, EVENT_SUCCESS, clock_wall_us(op->c->clock));
    ev.principal = op->by;
    ev.operation = event_info(type)->name;
    ev.meta = event_meta_text(&m);
    store_txn_event(t, &ev);
    event_meta_fini(&m);
}

static void op_next(struct coord *c);

static void take_effect(struct policy_op *op)
{
    struct coord *c = op->c;
    for (size_t i = 0; i < op->n; i++) {
        const struct change *ch = &op->v[i];
        struct err e;
        if (!changes(ch))
            continue;
        if (!ch->has)
            access_set_del(c->access, ch->before.principal);
        else if (access_set_put(c->access, &ch->after, &e) < 0) {
            LOG_E(&c->log, "api", "%s; it has no rights until the next start", e.text);
            access_set_del(c->access, ch->after.principal); /* the old rights must not live on */
        }
    }
    const char *one = op->n == 1 ? (op->v->has ? op->v->after.principal : op->v->before.principal) : NULL;
    dsessions_recheck(c, one, op->by);
    recheck_jobs(c, one, op->by);
}

/* Answers, frees, goes on with the next. */
static void op_end(struct policy_op *op, Strata__V1__PolicyChanges *m, const struct err *e)
{
    struct coord *c = op->c;
    if (op->call && m)
        rpc_reply(op->call, &m->base);
    else if (op->call && e)
        api_refuse(op->call, c, op->v && op->v->has ? EV_SECURITY_POLICY_UPDATED : EV_SECURITY_POLICY_REMOVED,
                   e);
    else if (op->call)
        api_no_memory(op->call);
    if (m)
        strata__v1__policy_changes__free_unpacked(m, NULL);
    c->policy_ops = op->next;
    op_free(op);
    op_next(c);
}

static void on_stored(void *arg, int rc, const struct err *e)
{
    struct policy_op *op = arg;
    struct coord *c = op->c;
    if (c->stopping)
        return; /* api_policies_fini frees it; its caller is gone */
    if (rc < 0) {
        /* An expired policy that could not be removed is named again, since putting it back arms its expiry.
         */
        if (op->expiry && access_set_put(c->access, &op->v->before, NULL) < 0)
            LOG_E(&c->log, "api", "the expired policy of %s stays until the next start",
                  op->v->before.principal);
        op_end(op, NULL, e);
        return;
    }
    Strata__V1__PolicyChanges *m = op->call ? describe(op) : NULL; /* before the sessions are gone */
    take_effect(op);
    op_end(op, m, NULL);
}

static void op_start(struct policy_op *op)
{
    struct err e;
    size_t n = 0;
    if (judge(op, &e) < 0) {
        op_end(op, NULL, &e);
        return;
    }
    for (size_t i = 0; i < op->n; i++)
        n += changes(&op->v[i]);
    if (op->dry_run || !n) {
        op_end(op, describe(op), NULL);
        return;
    }
    struct store_txn *t = store_txn_new();
    if (!t) {
        op_end(op, NULL, NULL);
        return;
    }
    for (size_t i = 0; i < op->n; i++)
        if (changes(&op->v[i]))
            put_change(t, op, &op->v[i]);
    int rc = store_submit(op->c->store, t, on_stored, op);
    if (rc < 0) {
        err_set(&e, rc, "state.db does not take the policies now (%s): nothing was changed, try again",
                status_name(rc));
        on_stored(op, rc, &e);
    }
}

static void op_next(struct coord *c)
{
    if (c->policy_ops)
        op_start(c->policy_ops);
}

static void on_op_gone(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct policy_op *)arg)->call = NULL;
}

static struct policy_op *op_new(struct rpc_call *call, struct coord *c, size_t n)
{
    struct policy_op *op = calloc(1, sizeof *op);
    if (op)
        op->v = calloc(n ? n : 1, sizeof *op->v);
    if (!op || !op->v) {
        free(op);
        if (call)
            api_no_memory(call);
        return NULL;
    }
    op->c = c;
    op->call = call;
    op->n = n;
    str_copy(op->by, sizeof op->by, call ? rpc_peer(call)->principal : "coordinator");
    return op;
}

static void op_queue(struct policy_op *op)
{
    struct policy_op **at = &op->c->policy_ops;
    if (op->call)
        rpc_on_cancel(op->call, on_op_gone, op);
    while (*at)
        at = &(*at)->next;
    *at = op;
    if (op->c->policy_ops == op)
        op_start(op);
}

void api_policies_fini(struct coord *c)
{
    while (c->policy_ops) {
        struct policy_op *op = c->policy_ops;
        c->policy_ops = op->next;
        op_free(op);
    }
}

/* ---- requests ---- */

static bool twice(struct coord *c, const struct policy_op *op, const char **who)
{
    struct map *seen;
    void *old = NULL;
    if (map_new(&seen, c->rng) < 0)
        return false;
    for (size_t i = 0; i < op->n && !old; i++) {
        *who = op->v[i].has ? op->v[i].after.principal : op->v[i].before.principal;
        if (map_put(seen, *who, strlen(*who), (void *)*who, &old) < 0)
            break;
    }
    map_free(seen);
    return old != NULL;
}

/* Refuses what is wrong with the request whatever the policies are now; true: the op is gone. */
static bool refused(struct policy_op *op, int rc, struct err *e)
{
    const char *who = "";
    if (rc == ST_OK && twice(op->c, op, &who))
        rc = err_reason(e, ST_EINVAL, "DUPLICATE_PRINCIPAL",
                        "%.80s is named more than once: say all of its policy in one place", who);
    if (rc == ST_OK)
        return false;
    api_refuse(op->call, op->c, EV_SECURITY_POLICY_UPDATED, e);
    op_free(op);
    return true;
}

static bool count_ok(struct rpc_call *call, struct coord *c, size_t n)
{
    struct err e;
    if (n && n <= CHANGES_MAX)
        return true;
    err_reason(&e, ST_EINVAL, "COUNT", "a request names from 1 to %u policies, not %zu", CHANGES_MAX, n);
    api_refuse(call, c, EV_SECURITY_POLICY_UPDATED, &e);
    return false;
}

void api_policies_apply(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__ApplyPoliciesRequest *q = (const Strata__V1__ApplyPoliciesRequest *)req;
    if (!api_allow(call, c, PERM_ADMIN) || !count_ok(call, c, q->n_policies))
        return;
    struct policy_op *op = op_new(call, c, q->n_policies);
    struct err e;
    int rc = ST_OK;
    if (!op)
        return;
    op->dry_run = q->dry_run;
    op->allow_unknown = q->allow_unknown_devices;
    for (size_t i = 0; i < op->n && rc == ST_OK; i++) {
        op->v[i].has = true;
        rc = policy_from_message(&op->v[i].after, q->policies[i], c->cfg.trust_domain, &e);
    }
    if (!refused(op, rc, &e))
        op_queue(op);
}

void api_policies_remove(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__RemovePoliciesRequest *q = (const Strata__V1__RemovePoliciesRequest *)req;
    if (!api_allow(call, c, PERM_ADMIN) || !count_ok(call, c, q->n_principals))
        return;
    struct policy_op *op = op_new(call, c, q->n_principals);
    struct err e;
    int rc = ST_OK;
    if (!op)
        return;
    op->dry_run = q->dry_run;
    for (size_t i = 0; i < op->n && rc == ST_OK; i++)
        if (policy_principal_short(op->v[i].before.principal, q->principals[i], c->cfg.trust_domain) < 0)
            rc = err_reason(&e, ST_EINVAL, "UNKNOWN_PRINCIPAL", "a principal is shorter than that");
    if (!refused(op, rc, &e))
        op_queue(op);
}

void api_policies_get(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const char *who = rpc_peer(call)->principal, *of = ((const Strata__V1__GetPolicyRequest *)req)->principal;
    char name[POLICY_PRINCIPAL_MAX];
    if (policy_principal_short(name, *of ? of : who, c->cfg.trust_domain) < 0)
        name[0] = 0;
    if (strcmp(name, who) && !api_allow(call, c, PERM_ADMIN))
        return;
    const struct policy *p = api_policy(c, name);
    if (!p) {
        rpc_finish(call, 5, "NO_POLICY", "there is no policy for %.80s: without one everything is denied",
                   name);
        return;
    }
    struct policy_message m;
    policy_message_fill(&m, p);
    rpc_reply(call, &m.m.base);
}

/* ---- List: by name, a page at a time ---- */

struct listing {
    const char **v;
    size_t n, cap;
};

static int list_name(const char *principal, void *arg)
{
    struct listing *l = arg;
    if (l->n == l->cap)
        return 1;
    l->v[l->n++] = principal;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

void api_policies_list(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__ListPoliciesRequest *q = (const Strata__V1__ListPoliciesRequest *)req;
    enum { PAGE = 100 }; /* of at most 5 KiB each */
    if (!api_allow(call, c, PERM_ADMIN))
        return;
    size_t page = q->page_size && q->page_size < PAGE ? q->page_size : PAGE, from = 0, n = 0;
    struct listing l = {.cap = access_set_count(c->access)};
    l.v = calloc(l.cap + 1, sizeof(*l.v));
    struct policy *p = calloc(page, sizeof *p);
    struct policy_message *m = calloc(page, sizeof *m);
    Strata__V1__Policy **pv = calloc(page, sizeof(*pv));
    Strata__V1__ListPoliciesReply rep = STRATA__V1__LIST_POLICIES_REPLY__INIT;
    if (!l.v || !p || !m || !pv) {
        api_no_memory(call);
    } else {
        access_set_each(c->access, list_name, &l);
        qsort(l.v, l.n, sizeof(*l.v), by_name);
        while (from < l.n && *q->page_token && strcmp(l.v[from], q->page_token) <= 0)
            from++;
        for (; n < page && from + n < l.n; n++) {
            access_set_get(c->access, l.v[from + n], &p[n]);
            policy_message_fill(&m[n], &p[n]);
            pv[n] = &m[n].m;
        }
        rep.policies = pv;
        rep.n_policies = n;
        if (from + n < l.n)
            rep.next_page_token = pv[n - 1]->principal;
        rpc_reply(call, &rep.base);
    }
    free(l.v);
    free(p);
    free(m);
    free(pv);
}

/* ---- Test, Quota ---- */

void api_policies_test(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__TestPolicyRequest *q = (const Strata__V1__TestPolicyRequest *)req;
    char name[POLICY_PRINCIPAL_MAX];
    uint32_t set = 0;
    struct err e;
    if (policy_principal_short(name, q->principal, c->cfg.trust_domain) < 0)
        name[0] = 0;
    if (strcmp(name, rpc_peer(call)->principal) && !api_allow(call, c, PERM_ADMIN))
        return;
    if (permission_parse(q->permission, &set, &e) < 0) {
        rpc_fail(call, &e);
        return;
    }
    if (set & (set - 1)) {
        rpc_finish(call, 3, "ONE_PERMISSION", "'%.60s' is more than one permission: test one at a time",
                   q->permission);
        return;
    }
    const struct policy *p = api_policy(c, name);
    const struct access_request rq = {.permission = (enum permission)__builtin_ctz(set),
                                      .device = *q->device ? q->device : NULL,
                                      .used_bytes = quota_charged(c->quota, name, ""),
                                      .ask_bytes = q->bytes,
                                      .now_us = clock_wall_us(c->clock)};
    struct decision d = access_check(p, &rq);
    struct quota_refusal why;
    Strata__V1__TestPolicyReply r = STRATA__V1__TEST_POLICY_REPLY__INIT;
    char text[700];
    if (d.allowed && !quota_fits(c->quota, p, rq.device, q->bytes, &why)) {
        d = (struct decision){
            .reason = ACCESS_QUOTA_EXCEEDED, .rule = RULE_QUOTA, .generation = d.generation};
        snprintf(text, sizeof text, "%llu bytes more refused: %s holds %llu of its quota of %llu on %s",
                 (unsigned long long)why.asked, name, (unsigned long long)why.used,
                 (unsigned long long)why.limit, why.where);
    } else if (d.allowed) {
        snprintf(text, sizeof text, "%s%s%s is allowed to %s by %s", permission_name(rq.permission),
                 rq.device ? " on " : "", rq.device ? rq.device : "", name, access_rule_text(&d));
    } else {
        access_explain(&d, p, &rq, &e);
        str_copy(text, sizeof text, e.text);
    }
    r.allowed = d.allowed;
    r.reason = (char *)access_reason_name(d.reason);
    r.rule = (char *)access_rule_text(&d);
    r.text = text;
    r.generation = d.generation;
    rpc_reply(call, &r.base);
}

struct uses {
    struct coord *c;
    const char *who; /* NULL = all */
    Strata__V1__QuotaUse *v, **pv;
    size_t n, cap;
};

static void fill_use(struct uses *u, const char *principal, const char *where, const struct quota_usage *x)
{
    Strata__V1__QuotaUse *o = &u->v[u->n];
    const struct policy *p = api_policy(u->c, principal);
    bool device = strchr(where, '/') != NULL;
    strata__v1__quota_use__init(o);
    o->principal = dup_or_empty(principal);
    o->scope = dup_or_empty(*where ? where : "cluster");
    o->reserved_bytes = x->reserved + x->committed;
    o->allocated_bytes = x->allocated;
    o->has_limit = p && (!*where ? p->has_quota : device ? p->has_device_quota : p->has_node_quota);
    if (o->has_limit)
        o->limit_bytes = !*where ? p->quota_bytes : device ? p->device_quota_bytes : p->node_quota_bytes;
    u->pv[u->n++] = o;
}

static int add_use(const char *principal, const char *where, const struct quota_usage *x, void *arg)
{
    struct uses *u = arg;
    if (u->n < u->cap && (!u->who || !strcmp(u->who, principal)))
        fill_use(u, principal, where, x);
    return 0;
}

void api_policies_quota(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const char *who = rpc_peer(call)->principal, *of = ((const Strata__V1__QuotaRequest *)req)->principal;
    char name[POLICY_PRINCIPAL_MAX];
    bool all = !strcmp(of, "*");
    if (policy_principal_short(name, *of ? of : who, c->cfg.trust_domain) < 0)
        name[0] = 0;
    if (strcmp(name, who) && !api_allow(call, c, PERM_ADMIN))
        return;
    struct uses u = {.c = c, .who = all ? NULL : name, .cap = 4000};
    u.v = calloc(u.cap, sizeof *u.v);
    u.pv = calloc(u.cap, sizeof(*u.pv));
    Strata__V1__QuotaReply r = STRATA__V1__QUOTA_REPLY__INIT;
    if (u.v && u.pv) {
        quota_each(c->quota, add_use, &u);
        /* Who holds nothing still wants to know the limit. */
        if (!all && !u.n)
            fill_use(&u, name, "", &(struct quota_usage){0});
        r.uses = u.pv;
        r.n_uses = u.n;
        rpc_reply(call, &r.base);
    } else {
        api_no_memory(call);
    }
    for (size_t i = 0; i < u.n; i++) {
        if (u.v[i].principal != protobuf_c_empty_string)
            free(u.v[i].principal);
        if (u.v[i].scope != protobuf_c_empty_string)
            free(u.v[i].scope);
    }
    free(u.v);
    free(u.pv);
}

/* ---- time ---- */

void api_policies_tick(struct coord *c)
{
    const char *who;
    int64_t now = clock_wall_us(c->clock);
    while (access_set_next_expiry(c->access) <= now && (who = access_set_pop_expired(c->access, now))) {
        struct policy_op *op = op_new(NULL, c, 1);
        if (!op)
            return; /* it grants nothing; its row goes with the next start */
        op->expiry = true;
        str_copy(op->v->before.principal, sizeof op->v->before.principal, who);
        op_queue(op);
    }
    if (c->recheck_jobs) {
        c->recheck_jobs = false;
        recheck_jobs(c, NULL, "coordinator");
    }
}
