/* Service Net: what is known of the network, what follows from it, its history, and the nodes' own view. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/api/net.h"

#define NODES_SHOWN_MAX 256u /* a matrix of them is below a message's limit only without every figure */
#define HISTORY_MAX 1000u
#define DOCTOR_NS (10 * NS_PER_S)
#define DOCTORS_MAX 256u

int net_view_all(struct coord *c, struct net_view **v, const char ***names, size_t *n)
{
    *n = topo_count(c->topo);
    *names = calloc(*n + 1, sizeof(**names));
    if (!*names)
        return ST_ENOMEM;
    for (size_t i = 0; i < *n; i++)
        (*names)[i] = topo_at(c->topo, i)->name;
    int rc = net_view_new(v, c->net->map, *names, *n, clock_wall_us(c->clock));
    if (rc < 0)
        free(*names);
    return rc;
}

static int find(const char *const *names, size_t n, const char *name, size_t *at, struct err *e)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(names[i], name)) {
            *at = i;
            return ST_OK;
        }
    return err_reason(e, ST_ENOENT, "NO_NODE", "there is no node '%.64s'; see strata node list", name);
}

/* ---- links ---- */

static char *name_at(const char *const *names, size_t i)
{
    return (char *)(i == NET_NOBODY ? "" : names[i]);
}

static void fill_report(Strata__V1__NetReport *m, const struct net_report *r, const char *const *names)
{
    strata__v1__net_report__init(m);
    m->directions = r->pairs;
    m->measured = r->measured;
    m->unreachable = r->unreachable;
    m->disputed = r->disputed;
    m->rtt_mean_s = r->rtt_mean_s;
    m->rate_mean = r->rate_mean;
    m->far_from = name_at(names, r->far_from);
    m->far_to = name_at(names, r->far_to);
    m->diameter_s = r->diameter_s;
    m->slow_from = name_at(names, r->slow_from);
    m->slow_to = name_at(names, r->slow_to);
    m->slow_rate = r->slow_rate;
    m->typical_rate = r->typical_rate;
    m->slow_ratio = r->slow_ratio;
    m->slow_node = name_at(names, r->slow_node);
    m->slow_node_rate = r->slow_node_rate;
    m->uneven_from = name_at(names, r->uneven_from);
    m->uneven_to = name_at(names, r->uneven_to);
    m->uneven_ratio = r->uneven_ratio;
}

static int chosen(struct coord *c, const Strata__V1__NetLinksRequest *q, const char ***names, size_t *n,
                  struct err *e)
{
    *n = q->n_nodes ? q->n_nodes : topo_count(c->topo);
    if (*n > NODES_SHOWN_MAX)
        return err_reason(e, ST_ELIMIT, "TOO_MANY_NODES",
                          "%zu nodes make too large a matrix; name up to %u of them", *n, NODES_SHOWN_MAX);
    *names = calloc(*n + 1, sizeof(**names));
    if (!*names)
        return err_set(e, ST_ENOMEM, "no memory for the matrix");
    for (size_t i = 0; i < *n; i++) {
        const struct topo_node *t = q->n_nodes ? topo_node(c->topo, q->nodes[i]) : topo_at(c->topo, i);
        if (!t) {
            free(*names);
            return err_reason(e, ST_ENOENT, "NO_NODE", "there is no node '%.64s'; see strata node list",
                              q->nodes[i]);
        }
        (*names)[i] = t->name;
    }
    return ST_OK;
}

static int reply_links(struct rpc_call *call, struct coord *c, const char **names, size_t n, struct err *e)
{
    Strata__V1__NetLinksReply rep = STRATA__V1__NET_LINKS_REPLY__INIT;
    Strata__V1__NetReport report;
    Strata__V1__NetLink *v = calloc(n * n + 1, sizeof *v), **pv = calloc(n * n + 1, sizeof(*pv));
    uint32_t *site = calloc(n + 1, sizeof *site);
    struct net_view *view = NULL;
    struct net_report r;
    int rc =
        v && pv && site ? net_view_new(&view, c->net->map, names, n, clock_wall_us(c->clock)) : ST_ENOMEM;
    if (rc == ST_OK)
        rc = net_view_report(view, &r);
    if (rc == ST_OK) {
        for (size_t i = 0; i < n; i++) {
            site[i] = net_view_site(view, i);
            for (size_t j = 0; j < n; j++) {
                struct net_path p;
                const struct net_link *l = net_view_link(view, i, j);
                if (i == j)
                    continue;
                net_view_path(view, i, j, &p);
                /* What nobody knows anything of takes no room. */
                if (!l && p.rtt_source == NET_UNKNOWN)
                    continue;
                net_fill_link(&v[rep.n_links], names[i], names[j], l, &p);
                pv[rep.n_links] = &v[rep.n_links];
                rep.n_links++;
            }
        }
        fill_report(&report, &r, names);
        rep.nodes = (char **)names;
        rep.n_nodes = rep.n_site = n;
        rep.site = site;
        rep.links = pv;
        rep.report = &report;
        rep.now_us = clock_wall_us(c->clock);
        if (strata__v1__net_links_reply__get_packed_size(&rep) > RPC_MAX_MESSAGE)
            rc = err_reason(e, ST_ELIMIT, "TOO_MANY_NODES",
                            "the links of %zu nodes are more than a message may hold; name fewer", n);
        else
            rpc_reply(call, &rep.base);
    } else {
        err_set(e, rc, "no memory for the matrix");
    }
    net_view_free(view);
    free(v);
    free(pv);
    free(site);
    return rc;
}

static void on_links(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const char **names = NULL;
    size_t n;
    struct err e = {0};
    if (!api_allow(call, c, PERM_DEVICE_LIST))
        return;
    int rc = chosen(c, (const Strata__V1__NetLinksRequest *)req, &names, &n, &e);
    if (rc == ST_OK) {
        rc = reply_links(call, c, names, n, &e);
        free(names);
    }
    if (rc < 0)
        rpc_fail(call, &e);
}

static void on_estimate(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__NetEstimateRequest *q = (const Strata__V1__NetEstimateRequest *)req;
    struct net_view *v = NULL;
    const char **names = NULL;
    struct net_estimate est;
    struct net_path p;
    struct err e = {0};
    size_t n, from = 0, to = 0;
    if (!api_allow(call, c, PERM_DEVICE_LIST))
        return;
    if (net_view_all(c, &v, &names, &n) < 0) {
        api_no_memory(call);
        return;
    }
    int rc = find(names, n, q->from, &from, &e);
    if (rc == ST_OK)
        rc = find(names, n, q->to, &to, &e);
    if (rc == ST_OK && from == to)
        rc = err_set(&e, ST_EINVAL, "%s to itself is no link", q->from);
    if (rc == ST_OK) {
        net_view_path(v, from, to, &p);
        rc = net_estimate(&p, (double)q->bytes, &est);
        if (p.unreachable)
            err_reason(&e, rc = ST_EUNREACH, "UNREACHABLE",
                       "%s did not reach %s when it was last tried: see strata net matrix", q->from, q->to);
        else if (rc < 0)
            err_reason(&e, rc, "NOT_MEASURED",
                       "the link from %s to %s was never measured, nor is enough known to predict it: strata "
                       "net probe %s %s",
                       q->from, q->to, q->from, q->to);
    }
    if (rc < 0) {
        rpc_fail(call, &e);
    } else {
        Strata__V1__NetEstimateReply rep = STRATA__V1__NET_ESTIMATE_REPLY__INIT;
        Strata__V1__NetLink l;
        net_fill_link(&l, q->from, q->to, net_view_link(v, from, to), &p);
        rep.seconds = est.seconds;
        rep.low_s = est.low_s;
        rep.high_s = est.high_s;
        rep.link = &l;
        rpc_reply(call, &rep.base);
    }
    net_view_free(v);
    free(names);
}

/* ---- history ---- */

struct history {
    struct offload_job job; /* first */
    struct coord *c;
    struct rpc_call *call; /* NULL once it was cancelled */
    char from[64], to[64];
    int64_t since_us, now_us;
    unsigned limit;
    Strata__V1__NetHistoryRow *row, **ptr;
    char (*name)[2][64];
    size_t n;
    int rc;
    struct err e;
};

static int take_row(void *arg, const struct store_net_sample *s)
{
    struct history *h = arg;
    if (h->n == h->limit)
        return ST_OK;
    Strata__V1__NetHistoryRow *m = &h->row[h->n];
    uint32_t good = s->samples - s->failures;
    strata__v1__net_history_row__init(m);
    str_copy(h->name[h->n][0], 64, s->from);
    str_copy(h->name[h->n][1], 64, s->to);
    m->from = h->name[h->n][0];
    m->to = h->name[h->n][1];
    m->time_us = s->time_us;
    m->span_us = s->span_us;
    m->samples = s->samples;
    m->failures = s->failures;
    m->rtt_min_s = (double)s->rtt_min_ns / 1e9;
    m->rtt_mean_s = good ? (double)s->rtt_sum_ns / good / 1e9 : 0;
    m->rtt_max_s = (double)s->rtt_max_ns / 1e9;
    m->loss = s->samples ? (double)s->loss_sum_ppm / s->samples / 1e6 : 0;
    m->rate_min = (double)s->rate_min;
    m->rate_mean = s->rates ? (double)s->rate_sum / s->rates : 0;
    m->rate_max = (double)s->rate_max;
    h->ptr[h->n++] = m;
    return ST_OK;
}

static void history_work(struct offload_job *j)
{
    struct history *h = (struct history *)j;
    h->rc =
        store_net_history(h->c->store, h->from, h->to, h->since_us, h->now_us, h->limit, take_row, h, &h->e);
}

static void history_done(struct offload_job *j)
{
    struct history *h = (struct history *)j;
    if (h->call && h->rc < 0) {
        rpc_fail(h->call, &h->e);
    } else if (h->call) {
        Strata__V1__NetHistoryReply rep = STRATA__V1__NET_HISTORY_REPLY__INIT;
        rep.n_rows = h->n;
        rep.rows = h->ptr;
        rpc_reply(h->call, &rep.base);
    }
    free(h->row);
    free(h->ptr);
    free(h->name);
    free(h);
}

static void history_gone(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct history *)arg)->call = NULL;
}

static void on_history(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__NetHistoryRequest *q = (const Strata__V1__NetHistoryRequest *)req;
    if (!api_allow(call, c, PERM_DEVICE_LIST))
        return;
    for (int i = 0; i < 2; i++) {
        const char *name = i ? q->to : q->from;
        if (*name && !topo_node(c->topo, name)) {
            rpc_finish(call, 5, "NO_NODE", "there is no node '%.64s'; see strata node list", name);
            return;
        }
    }
    struct history *h = calloc(1, sizeof *h);
    if (h) {
        h->limit = q->limit && q->limit < HISTORY_MAX ? q->limit : HISTORY_MAX;
        h->row = calloc(h->limit, sizeof *h->row);
        h->ptr = calloc(h->limit, sizeof(*h->ptr));
        h->name = calloc(h->limit, sizeof *h->name);
    }
    if (!h || !h->row || !h->ptr || !h->name) {
        if (h) {
            free(h->row);
            free(h->ptr);
            free(h->name);
        }
        free(h);
        api_no_memory(call);
        return;
    }
    h->c = c;
    h->call = call;
    h->now_us = clock_wall_us(c->clock);
    h->since_us = q->since_us ? q->since_us : h->now_us - 86400ll * 1000000;
    str_copy(h->from, sizeof h->from, q->from);
    str_copy(h->to, sizeof h->to, q->to);
    h->job.work = history_work;
    h->job.done = history_done;
    rpc_on_cancel(call, history_gone, h);
    offload_run(c->offload, &h->job);
}

/* ---- doctor ---- */

struct doctor;

struct patient {
    struct doctor *d;
    char name[64], seen_as[64], error[300];
    char *advice[12]; /* ours, beside the agent's */
    size_t n_advice;
    Strata__V1__NetDoctor *m; /* what it answered */
};

struct doctor {
    struct coord *c;
    struct rpc_call *call; /* NULL once it was cancelled */
    struct patient *p;
    size_t n, waiting;
};

static void advise(struct patient *p, char *text)
{
    if (text && p->n_advice < sizeof p->advice / sizeof p->advice[0])
        p->advice[p->n_advice++] = text;
    else
        free(text);
}

static bool host_differs(const char *a, const char *b)
{
    const char *x = strrchr(a, ':'), *y = strrchr(b, ':');
    return x && y && (x - a != y - b || strncmp(a, b, (size_t)(x - a)));
}

/* What only the coordinator can see: where a node seems to be, and who reaches it. */
static void look_from_outside(struct coord *c, struct patient *p)
{
    const struct topo_node *n = topo_node(c->topo, p->name);
    size_t to = 0, to_failed = 0, from = 0, from_failed = 0;
    double best = 0; /* of its links, bits a second on the wire */
    char *text = NULL;
    if (!n)
        return;
    str_copy(p->seen_as, sizeof p->seen_as, n->address);
    if (host_differs(n->address, n->peer_address) &&
        asprintf(&text,
                 "it tells peers to come to %s but the coordinator sees it at %s: behind NAT, or "
                 "`advertise` is missing; set advertise to an address that the other nodes reach",
                 n->peer_address, n->address) > 0)
        advise(p, text);
    for (size_t i = 0; i < topo_count(c->topo); i++) {
        const char *other = topo_at(c->topo, i)->name;
        const struct net_link *in = netmap_find(c->net->map, other, p->name),
                              *out = netmap_find(c->net->map, p->name, other);
        if (in && in->wire_bytes_per_s * 8 > best)
            best = in->wire_bytes_per_s * 8;
        if (out && out->wire_bytes_per_s * 8 > best)
            best = out->wire_bytes_per_s * 8;
        if (in && in->tried_us) {
            to++;
            to_failed += !in->reached && (!strcmp(in->reason, "NO_ANSWER") || !strcmp(in->reason, "REFUSED"));
        }
        if (out && out->tried_us) {
            from++;
            from_failed += !out->reached && !strcmp(out->reason, "NO_ANSWER");
        }
        if (out && out->reached && out->mtu && out->mtu < 1400 &&
            asprintf(&text,
                     "packets to %s have at most %u bytes: a tunnel, or a path that drops larger ones "
                     "silently (an MTU black hole); let ICMP 'fragmentation needed' through or lower the MTU",
                     other, out->mtu) > 0)
            advise(p, text);
    }
    for (size_t i = 0; p->m && i < p->m->n_interfaces; i++) {
        const Strata__V1__NetInterface *f = p->m->interfaces[i];
        if (f->carries && f->speed_mbit > 0 && best > 0 && best < 0.7e6 * (double)f->speed_mbit &&
            asprintf(&text,
                     "%s negotiated %lld Mbit/s, but no link of this node is faster than %.0f: look at the "
                     "switch, the cable, what else uses it, and whether one core is enough for the packets",
                     f->name, (long long)f->speed_mbit, best / 1e6) > 0)
            advise(p, text);
    }
    if (to && to_failed == to && from_failed < from &&
        asprintf(&text,
                 "none of %zu nodes that tried reached it at %s, while it reaches others: a firewall drops "
                 "UDP that comes in; open that port",
                 to, n->peer_address) > 0)
        advise(p, text);
    else if (from && from_failed == from &&
             asprintf(&text, "it reached none of the %zu nodes it tried: a firewall drops UDP that goes out",
                      from) > 0)
        advise(p, text);
}

static void doctor_over(struct doctor *d)
{
    Strata__V1__NetDoctorReply rep = STRATA__V1__NET_DOCTOR_REPLY__INIT;
    Strata__V1__NetDoctor *v = calloc(d->n + 1, sizeof *v), **pv = calloc(d->n + 1, sizeof(*pv));
    char **advice = calloc(d->n * 24 + 1, sizeof(*advice));
    for (size_t i = 0; d->call && v && pv && advice && i < d->n; i++) {
        struct patient *p = &d->p[i];
        strata__v1__net_doctor__init(&v[i]);
        if (p->m)
            v[i] = *p->m;
        look_from_outside(d->c, p);
        char **mine = &advice[i * 24];
        size_t k = 0;
        for (size_t a = 0; p->m && a < p->m->n_advice && k < 12; a++)
            mine[k++] = p->m->advice[a];
        for (size_t a = 0; a < p->n_advice; a++)
            mine[k++] = p->advice[a];
        v[i].advice = mine;
        v[i].n_advice = k;
        v[i].node = p->name;
        v[i].error = p->error;
        v[i].seen_as = p->seen_as;
        pv[rep.n_nodes++] = &v[i];
    }
    rep.nodes = pv;
    if (d->call && v && pv && advice)
        rpc_reply(d->call, &rep.base);
    else if (d->call)
        api_no_memory(d->call);
    free(v);
    free(pv);
    free(advice);
    for (size_t i = 0; i < d->n; i++) {
        if (d->p[i].m)
            strata__v1__net_doctor__free_unpacked(d->p[i].m, NULL);
        for (size_t a = 0; a < d->p[i].n_advice; a++)
            free(d->p[i].advice[a]);
    }
    free(d->p);
    free(d);
}

static void on_patient(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct patient *p = arg;
    (void)call;
    size_t n = protobuf_c_message_get_packed_size(msg);
    uint8_t *b = malloc(n ? n : 1);
    if (b && !p->m) {
        protobuf_c_message_pack(msg, b);
        p->m = strata__v1__net_doctor__unpack(NULL, n, b);
    }
    free(b);
}

static void on_patient_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest,
                            void *arg)
{
    struct patient *p = arg;
    (void)call;
    (void)digest;
    if (st->code || !p->m)
        str_copy(p->error, sizeof p->error, st->text[0] ? st->text : "it did not answer");
    if (--p->d->waiting == 0)
        doctor_over(p->d);
}

static const struct rpc_call_ops patient_ops = {.on_message = on_patient, .on_done = on_patient_done};

static void doctor_gone(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct doctor *)arg)->call = NULL; /* the agents' answers free it */
}

static void on_doctor(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__NetDoctorRequest *q = (const Strata__V1__NetDoctorRequest *)req;
    size_t n = q->n_nodes ? q->n_nodes : topo_count(c->topo);
    Strata__V1__NetDoctorRequest ask = STRATA__V1__NET_DOCTOR_REQUEST__INIT;
    const struct rpc_call_opts o = {.timeout_ns = DOCTOR_NS};
    if (!api_allow(call, c, PERM_DEVICE_LIST))
        return;
    for (size_t i = 0; i < q->n_nodes; i++)
        if (!topo_node(c->topo, q->nodes[i])) {
            rpc_finish(call, 5, "NO_NODE", "there is no node '%.64s'; see strata node list", q->nodes[i]);
            return;
        }
    if (n > DOCTORS_MAX) {
        rpc_finish(call, 3, "TOO_MANY_NODES", "name at most %u nodes", DOCTORS_MAX);
        return;
    }
    struct doctor *d = calloc(1, sizeof *d);
    if (d && !(d->p = calloc(n + 1, sizeof *d->p))) {
        free(d);
        d = NULL;
    }
    if (!d) {
        api_no_memory(call);
        return;
    }
    d->c = c;
    d->call = call;
    d->n = n;
    d->waiting = n + 1;
    rpc_on_cancel(call, doctor_gone, d);
    for (size_t i = 0; i < n; i++) {
        struct patient *p = &d->p[i];
        struct topo_node *t = q->n_nodes ? topo_node(c->topo, q->nodes[i]) : topo_at(c->topo, i);
        struct rpc_session *s = api_node_rpc(t);
        struct rpc_call *out;
        struct err e = {0};
        p->d = d;
        str_copy(p->name, sizeof p->name, t->name);
        int rc = s ? rpc_call(&out, s, &strata__v1__net_agent__descriptor, "Doctor", 0, &ask.base, &o,
                              &patient_ops, p, &e)
                   : ST_EUNREACH;
        if (rc < 0) {
            snprintf(p->error, sizeof p->error, "the node is %s%s%.200s", topo_state_name(t->state),
                     e.text[0] ? ": " : "", e.text);
            d->waiting--;
        }
    }
    if (--d->waiting == 0)
        doctor_over(d);
}

const struct rpc_method net_methods[] = {
    {"strata.v1.Net", "Measure", RPC_SERVER_STREAM, api_net_measure},
    {"strata.v1.Net", "Links", RPC_UNARY, on_links},
    {"strata.v1.Net", "Estimate", RPC_UNARY, on_estimate},
    {"strata.v1.Net", "History", RPC_UNARY, on_history},
    {"strata.v1.Net", "Doctor", RPC_UNARY, on_doctor},
};
const size_t net_methods_n = sizeof net_methods / sizeof *net_methods;
