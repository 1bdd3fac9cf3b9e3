/* net probe, estimate, history, doctor. */
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/str.h"
#include "coordinator/ctl/netcmd.h"

/* ---- probe ---- */

struct probing {
    struct ctl *c;
    struct table *t;
    json_t *links;
    bool over;
    uint32_t rounds, pairs, done, failed, sampled;
};

static const char *trouble(const Strata__V1__NetLink *l)
{
    return l->reason[0] ? l->reason : l->rate_reason;
}

static void add_row(struct table *t, const Strata__V1__NetLink *l)
{
    char rtt[16] = "-", p99[16] = "-", jit[16] = "-", rate[24] = "-", loss[16] = "-";
    bool ok = l->reached && !l->reason[0];
    if (ok && l->received) {
        fmt_seconds(rtt, l->rtt_p50_s);
        fmt_seconds(p99, l->rtt_p99_s);
        fmt_seconds(jit, l->jitter_s);
        snprintf(loss, sizeof loss, "%.2f %%", 100 * l->loss);
    }
    if (ok && l->bytes_per_s > 0)
        net_rate_text(rate, l->bytes_per_s);
    table_cell(t, "%s -> %s", l->from, l->to);
    table_cell(t, "%s", rtt);
    table_cell(t, "%s", p99);
    table_cell(t, "%s", jit);
    table_cell(t, "%s", loss);
    table_cell(t, "%s", rate);
    table_cell(t, "%s", trouble(l));
}

static int on_progress(const ProtobufCMessage *m, void *arg)
{
    struct probing *p = arg;
    const Strata__V1__NetProgress *g = (const Strata__V1__NetProgress *)m;
    p->rounds = g->rounds;
    p->pairs = g->pairs;
    p->done = g->done;
    p->failed = g->failed;
    p->sampled = g->sampled;
    p->over = g->over;
    if (g->link) {
        json_array_append_new(p->links, net_link_json(g->link));
        add_row(p->t, g->link);
    }
    if (p->c->tty && !p->c->quiet)
        fprintf(stderr, "\r\033[Kround %u/%u, %u of %u pairs%s", g->round + !g->over, g->rounds, g->done,
                g->pairs, g->over ? "\n" : "");
    return 0;
}

static int take_options(int *argc, char **argv, Strata__V1__NetMeasureRequest *q)
{
    const char *count = NULL, *size = NULL, *interval = NULL, *stream = NULL, *bytes = NULL;
    bool latency = false;
    const struct ctl_opt opt[] = {
        {.name = "count", .value = &count},       {.name = "size", .value = &size},
        {.name = "interval", .value = &interval}, {.name = "stream", .value = &stream},
        {.name = "bytes", .value = &bytes},       {.name = "latency-only", .flag = &latency},
    };
    uint64_t n = 0;
    if ((*argc = ctl_parse(*argc, argv, opt, sizeof opt / sizeof *opt)) < 0 ||
        ctl_number(count, "count", 100000, &n))
        return 2;
    q->count = (uint32_t)n;
    n = 0;
    if (ctl_number(size, "size", 1100, &n))
        return 2;
    q->size = (uint32_t)n;
    if (interval && parse_duration_ns(interval, &q->interval_ns) < 0)
        return ctl_usage("--interval: '%s' is no duration; write it as 10ms", interval);
    if (stream && parse_duration_ns(stream, &q->stream_ns) < 0)
        return ctl_usage("--stream: '%s' is no duration; write it as 2s", stream);
    if (bytes && parse_bytes(bytes, &q->stream_bytes) < 0)
        return ctl_usage("--bytes: '%s' is no size; write it as 100MB", bytes);
    q->latency_only = latency;
    return 0;
}

int ctl_net_probe(struct ctl *c, int argc, char **argv)
{
    static const char *const col[] = {"LINK", "RTT>", "P99>", "JITTER>", "LOSS>", "RATE>", "TROUBLE"};
    Strata__V1__NetMeasureRequest q = STRATA__V1__NET_MEASURE_REQUEST__INIT;
    struct probing p = {.c = c};
    struct strata_error e;
    int x = take_options(&argc, argv, &q);
    if (x)
        return x;
    if (argc == 1)
        return ctl_misuse(c, "net probe takes two nodes or more, or none for all pairs");
    q.nodes = argv;
    q.n_nodes = (size_t)argc;
    if ((x = ctl_connect(c)))
        return x;
    p.t = table_new(col, 7);
    p.links = json_array();
    int rc = strata_client_stream(c->client, &strata__v1__net__descriptor, "Measure", &q.base, UINT64_MAX,
                                  on_progress, &p, &e);
    if (rc < 0) {
        x = ctl_client_fail(c, &e);
    } else if (c->json) {
        x = ctl_print_json("strata.net.probe.v1",
                           json_pack("{s:O,s:I,s:I,s:I,s:I,s:I}", "links", p.links, "rounds",
                                     (json_int_t)p.rounds, "pairs", (json_int_t)p.pairs, "measured",
                                     (json_int_t)p.done, "failed", (json_int_t)p.failed, "predicted_pairs",
                                     (json_int_t)p.sampled));
    } else {
        table_print(p.t, stdout);
        if (p.sampled)
            printf("%u pairs were not measured and are predicted from these\n", p.sampled);
    }
    if (!x && (p.failed || !p.over))
        x = 11;
    json_decref(p.links);
    table_free(p.t);
    return x;
}

/* ---- estimate ---- */

int ctl_net_estimate(struct ctl *c, int argc, char **argv)
{
    Strata__V1__NetEstimateRequest q = STRATA__V1__NET_ESTIMATE_REQUEST__INIT;
    ProtobufCMessage *m;
    if ((argc = ctl_parse(argc, argv, NULL, 0)) < 0)
        return 2;
    if (argc != 3)
        return ctl_misuse(c, "net estimate takes two nodes and a size, such as atlas dione 10GiB");
    if (parse_bytes(argv[2], &q.bytes) < 0)
        return ctl_usage("'%s' is no size; write it as 512MiB", argv[2]);
    q.from = argv[0];
    q.to = argv[1];
    int x = net_call(c, "Estimate", &q.base, &m);
    if (x)
        return x;
    const Strata__V1__NetEstimateReply *r = (const Strata__V1__NetEstimateReply *)m;
    if (c->json) {
        x = ctl_print_json("strata.net.estimate.v1",
                           json_pack("{s:I,s:f,s:f,s:f,s:o}", "bytes", (json_int_t)q.bytes, "seconds",
                                     r->seconds, "low_s", r->low_s, "high_s", r->high_s, "link",
                                     net_link_json(r->link)));
    } else {
        char a[16], b[16], d[16], n[16], rate[24], rtt[16];
        fmt_seconds(a, r->seconds);
        fmt_seconds(b, r->low_s);
        fmt_seconds(d, r->high_s);
        fmt_bytes(n, q.bytes);
        fmt_seconds(rtt, r->link->path_rtt_s);
        net_rate_text(rate, r->link->path_bytes_per_s);
        printf("%s from %s to %s: %s (%s to %s)\nround trip %s (%s), rate %s (%s), confidence %.0f %%\n", n,
               q.from, q.to, a, b, d, rtt, r->link->path_rtt_source, rate, r->link->path_rate_source,
               100 * r->link->confidence);
    }
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

/* ---- history ---- */

static json_t *row_json(const Strata__V1__NetHistoryRow *h)
{
    char t[28];
    clock_rfc3339(h->time_us, t);
    bool rtt = h->rtt_mean_s > 0, rate = h->rate_mean > 0;
    return json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:o,s:o,s:o,s:f,s:o,s:o,s:o}", "from", h->from, "to", h->to,
                     "time", t, "span_s", (json_int_t)(h->span_us / 1000000), "samples",
                     (json_int_t)h->samples, "failures", (json_int_t)h->failures, "rtt_min_s",
                     rtt ? json_real(h->rtt_min_s) : json_null(), "rtt_mean_s",
                     rtt ? json_real(h->rtt_mean_s) : json_null(), "rtt_max_s",
                     rtt ? json_real(h->rtt_max_s) : json_null(), "loss", h->loss, "bytes_per_s_min",
                     rate ? json_real(h->rate_min) : json_null(), "bytes_per_s_mean",
                     rate ? json_real(h->rate_mean) : json_null(), "bytes_per_s_max",
                     rate ? json_real(h->rate_max) : json_null());
}

static void row_print(struct table *t, const Strata__V1__NetHistoryRow *h)
{
    char when[28], rtt[16] = "-", most[16] = "-", rate[24] = "-";
    clock_rfc3339(h->time_us, when);
    if (h->rtt_mean_s > 0) {
        fmt_seconds(rtt, h->rtt_mean_s);
        fmt_seconds(most, h->rtt_max_s);
    }
    if (h->rate_mean > 0)
        net_rate_text(rate, h->rate_mean);
    table_cell(t, "%.19sZ", when);
    table_cell(t, "%s -> %s", h->from, h->to);
    table_cell(t, "%u", h->samples);
    table_cell(t, "%u", h->failures);
    table_cell(t, "%s", rtt);
    table_cell(t, "%s", most);
    table_cell(t, "%.2f %%", 100 * h->loss);
    table_cell(t, "%s", rate);
}

int ctl_net_history(struct ctl *c, int argc, char **argv)
{
    static const char *const col[] = {"TIME",      "LINK",     "MEASURED>", "FAILED>",
                                      "RTT MEAN>", "RTT MAX>", "LOSS>",     "RATE MEAN>"};
    const char *since = "24h", *limit = NULL;
    const struct ctl_opt opt[] = {{.name = "since", .value = &since}, {.name = "limit", .value = &limit}};
    Strata__V1__NetHistoryRequest q = STRATA__V1__NET_HISTORY_REQUEST__INIT;
    ProtobufCMessage *m;
    uint64_t back = 0, n = 0;
    if ((argc = ctl_parse(argc, argv, opt, 2)) < 0 || ctl_number(limit, "limit", 1000, &n))
        return 2;
    if (argc > 2)
        return ctl_misuse(c, "net history takes up to two nodes");
    if (parse_duration_ns(since, &back) < 0)
        return ctl_usage("--since: '%s' is no duration; write it as 24h or 30d", since);
    q.from = argc > 0 ? argv[0] : (char *)"";
    q.to = argc > 1 ? argv[1] : (char *)"";
    q.since_us = clock_wall_us(clock_system()) - (int64_t)(back / NS_PER_US);
    q.limit = (uint32_t)n;
    int x = net_call(c, "History", &q.base, &m);
    if (x)
        return x;
    const Strata__V1__NetHistoryReply *r = (const Strata__V1__NetHistoryReply *)m;
    json_t *rows = json_array();
    struct table *t = table_new(col, 8);
    for (size_t i = 0; i < r->n_rows; i++) {
        json_array_append_new(rows, row_json(r->rows[i]));
        row_print(t, r->rows[i]);
    }
    if (c->json)
        x = ctl_print_json("strata.net.history.v1", json_pack("{s:O}", "rows", rows));
    else
        table_print(t, stdout);
    json_decref(rows);
    table_free(t);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

/* ---- doctor ---- */

static json_t *doctor_json(const Strata__V1__NetDoctor *d)
{
    json_t *ifs = json_array(), *advice = json_array();
    for (size_t i = 0; i < d->n_interfaces; i++) {
        const Strata__V1__NetInterface *f = d->interfaces[i];
        json_array_append_new(ifs, json_pack("{s:s,s:s,s:I,s:o,s:b,s:b}", "name", f->name, "address",
                                             f->address, "mtu", (json_int_t)f->mtu, "speed_mbit",
                                             f->speed_mbit ? json_integer(f->speed_mbit) : json_null(), "up",
                                             (int)f->up, "carries_peers", (int)f->carries));
    }
    for (size_t i = 0; i < d->n_advice; i++)
        json_array_append_new(advice, json_string(d->advice[i]));
    return json_pack("{s:s,s:s,s:s,s:s,s:s,s:o,s:b,s:b,s:I,s:I,s:I,s:o}", "node", d->node, "error", d->error,
                     "listen", d->listen, "advertised", d->advertised, "seen_as", d->seen_as, "interfaces",
                     ifs, "gso", (int)d->gso, "gro", (int)d->gro, "receive_buffer_bytes",
                     (json_int_t)d->receive_buffer, "send_buffer_bytes", (json_int_t)d->send_buffer,
                     "wanted_buffer_bytes", (json_int_t)d->receive_buffer_wanted, "advice", advice);
}

static void doctor_print(const Strata__V1__NetDoctor *d)
{
    printf("%s\n", d->node);
    if (*d->error)
        printf("  no answer     %s\n", d->error);
    if (!*d->error) {
        printf("  address       listens at %s, peers come to %s, the coordinator sees %s\n", d->listen,
               d->advertised, d->seen_as);
        for (size_t i = 0; i < d->n_interfaces; i++) {
            const Strata__V1__NetInterface *f = d->interfaces[i];
            printf("  interface     %s %s, MTU %u%s%s", f->name, f->address, f->mtu, f->up ? "" : ", down",
                   f->carries ? ", carries peers" : "");
            if (f->speed_mbit)
                printf(", %lld Mbit/s", (long long)f->speed_mbit);
            putchar('\n');
        }
        printf("  UDP           segmentation %s, coalescing %s, buffers %llu and %llu KiB of %llu\n",
               d->gso ? "on" : "off", d->gro ? "on" : "off", (unsigned long long)d->receive_buffer >> 10,
               (unsigned long long)d->send_buffer >> 10, (unsigned long long)d->receive_buffer_wanted >> 10);
    }
    for (size_t i = 0; i < d->n_advice; i++)
        printf("  advice        %s\n", d->advice[i]);
}

int ctl_net_doctor(struct ctl *c, int argc, char **argv)
{
    Strata__V1__NetDoctorRequest q = STRATA__V1__NET_DOCTOR_REQUEST__INIT;
    ProtobufCMessage *m;
    if ((argc = ctl_parse(argc, argv, NULL, 0)) < 0)
        return 2;
    q.nodes = argv;
    q.n_nodes = (size_t)argc;
    int x = net_call(c, "Doctor", &q.base, &m);
    if (x)
        return x;
    const Strata__V1__NetDoctorReply *r = (const Strata__V1__NetDoctorReply *)m;
    json_t *nodes = json_array();
    bool silent = false;
    for (size_t i = 0; i < r->n_nodes; i++) {
        silent |= r->nodes[i]->error[0] != 0;
        if (c->json)
            json_array_append_new(nodes, doctor_json(r->nodes[i]));
        else
            doctor_print(r->nodes[i]);
    }
    if (c->json)
        x = ctl_print_json("strata.net.doctor.v1", json_pack("{s:O}", "nodes", nodes));
    json_decref(nodes);
    protobuf_c_message_free_unpacked(m, NULL);
    return x ? x : silent ? 11 : 0;
}
