/* net matrix, topo, bottleneck: what is known of the network. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/str.h"
#include "coordinator/ctl/netcmd.h"

json_t *net_link_json(const Strata__V1__NetLink *l)
{
    char tried[28];
    json_t *o = json_pack("{s:s,s:s,s:b,s:s,s:b}", "from", l->from, "to", l->to, "reached", (int)l->reached,
                          "reason", l->reason, "disputed", (int)l->disputed);
    clock_rfc3339(l->tried_us, tried);
    json_object_set_new(o, "measured", l->tried_us ? json_string(tried) : json_null());
#define REAL(key, v) json_object_set_new(o, key, (v) > 0 ? json_real(v) : json_null())
    bool any = l->received > 0;
    json_object_set_new(o, "probes_sent", json_integer(l->sent));
    json_object_set_new(o, "probes_received", json_integer(l->received));
    json_object_set_new(o, "probes_late", json_integer(l->late));
    json_object_set_new(o, "duplicates", json_integer(l->duplicates));
    json_object_set_new(o, "reordered", json_integer(l->reordered));
    json_object_set_new(o, "loss", any ? json_real(l->loss) : json_null());
    REAL("rtt_min_s", l->rtt_min_s);
    REAL("rtt_mean_s", l->rtt_mean_s);
    REAL("rtt_p50_s", l->rtt_p50_s);
    REAL("rtt_p99_s", l->rtt_p99_s);
    json_object_set_new(o, "jitter_s", any ? json_real(l->jitter_s) : json_null());
    json_object_set_new(o, "stddev_s", any ? json_real(l->stddev_s) : json_null());
    json_object_set_new(o, "path_mtu", l->mtu ? json_integer(l->mtu) : json_null());
    REAL("bytes_per_s", l->bytes_per_s);
    REAL("wire_bytes_per_s", l->wire_bytes_per_s);
    REAL("bits_per_second", l->bytes_per_s * 8); /* as iperf3 names it */
    json_object_set_new(o, "rate_source", json_string(l->rate_source));
    json_object_set_new(o, "rate_reason", json_string(l->rate_reason));
    json_object_set_new(o, "rate_spread", l->bytes_per_s > 0 ? json_real(l->spread) : json_null());
    json_object_set_new(o, "retransmits", json_integer((json_int_t)l->retransmits));
    json_object_set_new(o, "path",
                        json_pack("{s:s,s:s,s:o,s:o,s:f,s:b}", "rtt_source", l->path_rtt_source,
                                  "rate_source", l->path_rate_source, "rtt_s",
                                  l->path_rtt_s > 0 ? json_real(l->path_rtt_s) : json_null(), "bytes_per_s",
                                  l->path_bytes_per_s > 0 ? json_real(l->path_bytes_per_s) : json_null(),
                                  "confidence", l->confidence, "unreachable", (int)l->unreachable));
#undef REAL
    return o;
}

void net_rate_text(char out[24], double bytes_per_s)
{
    double b = bytes_per_s * 8;
    static const char *const unit[] = {"bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"};
    unsigned u = 0;
    for (; b >= 1000 && u < 4; u++)
        b /= 1000;
    snprintf(out, 24, b >= 100 ? "%.0f %s" : b >= 10 ? "%.1f %s" : "%.2f %s", b, unit[u]);
}

int net_call(struct ctl *c, const char *method, const ProtobufCMessage *req, ProtobufCMessage **resp)
{
    struct strata_error e;
    int x = ctl_connect(c);
    if (x)
        return x;
    return strata_client_call(c->client, &strata__v1__net__descriptor, method, req, c->timeout_ns, NULL, resp,
                              &e) < 0
               ? ctl_client_fail(c, &e)
               : 0;
}

static int links(struct ctl *c, int argc, char **argv, Strata__V1__NetLinksReply **out)
{
    Strata__V1__NetLinksRequest q = STRATA__V1__NET_LINKS_REQUEST__INIT;
    ProtobufCMessage *m;
    q.nodes = argv;
    q.n_nodes = (size_t)argc;
    int x = net_call(c, "Links", &q.base, &m);
    if (!x)
        *out = (Strata__V1__NetLinksReply *)m;
    return x;
}

/* ---- the report ---- */

static json_t *name_json(const char *s)
{
    return *s ? json_string(s) : json_null();
}

static json_t *report_json(const Strata__V1__NetReport *r)
{
    json_t *slow = *r->slow_from ? json_pack("{s:s,s:s,s:f,s:f,s:f}", "from", r->slow_from, "to", r->slow_to,
                                             "bytes_per_s", r->slow_rate, "typical_bytes_per_s",
                                             r->typical_rate, "times_slower", r->slow_ratio)
                                 : json_null();
    json_t *far = *r->far_from ? json_pack("{s:s,s:s,s:f}", "from", r->far_from, "to", r->far_to, "rtt_s",
                                           r->diameter_s)
                               : json_null();
    json_t *uneven = *r->uneven_from ? json_pack("{s:s,s:s,s:f}", "slower_from", r->uneven_from, "slower_to",
                                                 r->uneven_to, "ratio", r->uneven_ratio)
                                     : json_null();
    return json_pack(
        "{s:I,s:I,s:I,s:I,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "directions", (json_int_t)r->directions, "measured",
        (json_int_t)r->measured, "unreachable", (json_int_t)r->unreachable, "disputed",
        (json_int_t)r->disputed, "rtt_mean_s", r->rtt_mean_s > 0 ? json_real(r->rtt_mean_s) : json_null(),
        "bytes_per_s_mean", r->rate_mean > 0 ? json_real(r->rate_mean) : json_null(), "diameter", far,
        "bottleneck_link", slow, "bottleneck_node", name_json(r->slow_node), "bottleneck_node_bytes_per_s",
        *r->slow_node ? json_real(r->slow_node_rate) : json_null(), "asymmetry", uneven);
}

static void print_bottleneck(const Strata__V1__NetReport *r)
{
    char a[24], b[24];
    if (!*r->slow_from) {
        puts("bottleneck  not known: no bandwidth was measured; strata net probe");
        return;
    }
    net_rate_text(a, r->slow_rate);
    net_rate_text(b, r->typical_rate);
    if (*r->slow_node) {
        char n[24];
        net_rate_text(n, r->slow_node_rate);
        printf("bottleneck  node %s: none of its links is faster than %s, typical is %s\n", r->slow_node, n,
               b);
    }
    printf("bottleneck  link %s -> %s: %s, %.1f times slower than typical (%s)\n", r->slow_from, r->slow_to,
           a, r->slow_ratio, b);
}

int ctl_net_bottleneck(struct ctl *c, int argc, char **argv)
{
    Strata__V1__NetLinksReply *r;
    if ((argc = ctl_parse(argc, argv, NULL, 0)) < 0)
        return 2;
    int x = links(c, argc, argv, &r);
    if (x)
        return x;
    if (c->json)
        x = ctl_print_json("strata.net.bottleneck.v1", report_json(r->report));
    else
        print_bottleneck(r->report);
    strata__v1__net_links_reply__free_unpacked(r, NULL);
    return x;
}

static void print_sites(const Strata__V1__NetLinksReply *r)
{
    uint32_t most = 0;
    for (size_t i = 0; i < r->n_site; i++)
        most = r->site[i] > most ? r->site[i] : most;
    for (uint32_t s = 0; r->n_site && s <= most; s++) {
        printf("site %-6u", s + 1);
        for (size_t i = 0; i < r->n_site && i < r->n_nodes; i++)
            if (r->site[i] == s)
                printf(" %s", r->nodes[i]);
        putchar('\n');
    }
}

static void print_topo(const Strata__V1__NetLinksReply *r)
{
    const Strata__V1__NetReport *p = r->report;
    char a[24] = "-", b[16] = "-", d[16];
    if (p->rate_mean > 0)
        net_rate_text(a, p->rate_mean);
    if (p->rtt_mean_s > 0)
        fmt_seconds(b, p->rtt_mean_s);
    printf("nodes       %zu\ndirections  %llu, %llu measured, %llu unreachable, %llu disputed\n"
           "average     %s round trip, %s\n",
           r->n_nodes, (unsigned long long)p->directions, (unsigned long long)p->measured,
           (unsigned long long)p->unreachable, (unsigned long long)p->disputed, b, a);
    if (*p->far_from) {
        fmt_seconds(d, p->diameter_s);
        printf("diameter    %s, %s to %s\n", d, p->far_from, p->far_to);
    }
    if (*p->uneven_from && p->uneven_ratio > 1.25)
        printf("asymmetry   %s -> %s is %.1f times slower than the way back\n", p->uneven_from, p->uneven_to,
               p->uneven_ratio);
    print_bottleneck(p);
    print_sites(r);
}

int ctl_net_topo(struct ctl *c, int argc, char **argv)
{
    Strata__V1__NetLinksReply *r;
    if ((argc = ctl_parse(argc, argv, NULL, 0)) < 0)
        return 2;
    int x = links(c, argc, argv, &r);
    if (x)
        return x;
    if (c->json) {
        json_t *sites = json_object(), *all = json_array();
        for (size_t i = 0; i < r->n_nodes && i < r->n_site; i++)
            json_object_set_new(sites, r->nodes[i], json_integer(r->site[i]));
        for (size_t i = 0; i < r->n_links; i++)
            json_array_append_new(all, net_link_json(r->links[i]));
        x = ctl_print_json("strata.net.topology.v1", json_pack("{s:o,s:o,s:o}", "sites", sites, "report",
                                                               report_json(r->report), "links", all));
    } else {
        print_topo(r);
    }
    strata__v1__net_links_reply__free_unpacked(r, NULL);
    return x;
}

/* ---- matrix ---- */

enum metric { LATENCY, BANDWIDTH, LOSS, JITTER, AGE };
static const char *const metric_name[] = {"latency", "bandwidth", "loss", "jitter", "age"};
#define METRICS 5

/* The figure, NAN when there is none. */
static double value(const Strata__V1__NetLink *l, enum metric m, int64_t now_us)
{
    if (!l || l->unreachable)
        return (double)NAN;
    bool got = l->received > 0 && !l->disputed && l->reached;
    switch (m) {
    case LATENCY:
        return l->path_rtt_s > 0 ? l->path_rtt_s : (double)NAN;
    case BANDWIDTH:
        return l->path_bytes_per_s > 0 ? l->path_bytes_per_s : (double)NAN;
    case LOSS:
        return got ? l->loss : (double)NAN;
    case JITTER:
        return got ? l->jitter_s : (double)NAN;
    default:
        return l->tried_us ? (double)(now_us - l->tried_us) / 1e6 : (double)NAN;
    }
}

static void cell_text(char out[32], const Strata__V1__NetLink *l, enum metric m, double v)
{
    char t[24];
    if (l && l->disputed)
        snprintf(out, 32, "disputed");
    else if (l && l->unreachable)
        snprintf(out, 32, "no way");
    else if (isnan(v))
        snprintf(out, 32, "?");
    else if (m == LOSS)
        snprintf(out, 32, "%.2f %%", v * 100);
    else if (m == BANDWIDTH) {
        net_rate_text(t, v);
        snprintf(out, 32, "%s%s", strcmp(l->path_rate_source, "predicted") ? "" : "~", t);
    } else {
        fmt_seconds(t, v);
        snprintf(out, 32, "%s%s", m == LATENCY && !strcmp(l->path_rtt_source, "predicted") ? "~" : "", t);
    }
}

/* Good is green, bad is red, by where it lies between the best and the worst, on a logarithmic scale. */
static const char *heat(double v, double best, double worst)
{
    static const char *const shade[] = {"\033[38;5;40m", "\033[38;5;112m", "\033[38;5;220m", "\033[38;5;208m",
                                        "\033[38;5;196m"};
    if (isnan(v))
        return "\033[38;5;244m";
    double x = v > 0 ? log(v) : log(1e-9), b = best > 0 ? log(best) : log(1e-9),
           w = worst > 0 ? log(worst) : log(1e-9);
    double at = fabs(w - b) < 0.05 ? 0 : (x - b) / (w - b);
    return shade[at <= 0 ? 0 : at >= 1 ? 4 : (int)(at * 5)];
}

static const Strata__V1__NetLink *find(const Strata__V1__NetLinksReply *r, const char *from, const char *to)
{
    for (size_t i = 0; i < r->n_links; i++)
        if (!strcmp(r->links[i]->from, from) && !strcmp(r->links[i]->to, to))
            return r->links[i];
    return NULL;
}

static void print_matrix(const struct ctl *c, const Strata__V1__NetLinksReply *r, enum metric m)
{
    double lo = (double)INFINITY, hi = 0;
    size_t wide = 9, first = strlen("from \\ to");
    for (size_t i = 0; i < r->n_links; i++) {
        double v = value(r->links[i], m, r->now_us);
        lo = v < lo ? v : lo;
        hi = v > hi ? v : hi;
    }
    for (size_t i = 0; i < r->n_nodes; i++) {
        first = strlen(r->nodes[i]) > first ? strlen(r->nodes[i]) : first;
        wide = strlen(r->nodes[i]) > wide ? strlen(r->nodes[i]) : wide;
    }
    wide = wide < 12 ? 12 : wide;
    printf("%-*s", (int)first, "from \\ to");
    for (size_t j = 0; j < r->n_nodes; j++)
        printf("  %*s", (int)wide, r->nodes[j]);
    putchar('\n');
    for (size_t i = 0; i < r->n_nodes; i++) {
        printf("%-*s", (int)first, r->nodes[i]);
        for (size_t j = 0; j < r->n_nodes; j++) {
            char text[32] = "-";
            const Strata__V1__NetLink *l = i == j ? NULL : find(r, r->nodes[i], r->nodes[j]);
            double v = value(l, m, r->now_us);
            if (i != j)
                cell_text(text, l, m, v);
            /* Of a rate more is better. */
            const char *color =
                c->color && i != j ? heat(v, m == BANDWIDTH ? hi : lo, m == BANDWIDTH ? lo : hi) : "";
            printf("  %s%*s%s", color, (int)wide, text, *color ? "\033[0m" : "");
        }
        putchar('\n');
    }
}

int ctl_net_matrix(struct ctl *c, int argc, char **argv)
{
    const char *word = "latency";
    const struct ctl_opt opt[] = {{.name = "metric", .value = &word}};
    Strata__V1__NetLinksReply *r;
    unsigned m = 0;
    if ((argc = ctl_parse(argc, argv, opt, 1)) < 0)
        return 2;
    while (m < METRICS && strcmp(metric_name[m], word))
        m++;
    if (m == METRICS)
        return ctl_usage("--metric: '%s' is none of latency, bandwidth, loss, jitter, age", word);
    int x = links(c, argc, argv, &r);
    if (x)
        return x;
    if (c->json) {
        json_t *nodes = json_array(), *all = json_array();
        for (size_t i = 0; i < r->n_nodes; i++)
            json_array_append_new(nodes, json_string(r->nodes[i]));
        for (size_t i = 0; i < r->n_links; i++)
            json_array_append_new(all, net_link_json(r->links[i]));
        x = ctl_print_json("strata.net.matrix.v1", json_pack("{s:o,s:o}", "nodes", nodes, "links", all));
    } else {
        print_matrix(c, r, (enum metric)m);
    }
    strata__v1__net_links_reply__free_unpacked(r, NULL);
    return x;
}
