/* plan calibrate JOB: what the plan predicted beside what the devices and links do. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/str.h"
#include "coordinator/ctl/ctl.h"
#include "strata/v1/jobs.pb-c.h"
#include "strata/v1/net.pb-c.h"
#include "strata/v1/plans.pb-c.h"

#define NODES_MAX 64u
#define PROBE_NS (600ull * NS_PER_S)

struct calibration {
    struct ctl *c;
    struct table *layers, *hops, *devices;
    json_t *jlayers, *jhops, *jdevices;
    double *off; /* |measured / predicted − 1| of the layers */
    size_t n, cap, nhops;
    bool corrected;
};

static json_t *known(double v)
{
    return v > 0 ? json_real(v) : json_null();
}

static void span(struct table *t, double s)
{
    char text[16];
    if (s > 0)
        fmt_seconds(text, s);
    table_cell(t, "%s", s > 0 ? text : "-");
}

static void error_of(struct table *t, double predicted, double measured)
{
    if (predicted > 0 && measured > 0)
        table_cell(t, "%+.1f%%", 100 * (predicted / measured - 1));
    else
        table_cell(t, "-");
}

static void take_layer(struct calibration *k, const Strata__V1__LayerTiming *l)
{
    json_array_append_new(k->jlayers,
                          json_pack("{s:s,s:s,s:o,s:o,s:s}", "layer", l->layer, "device", l->device,
                                    "predicted_s", known(l->predicted_s), "measured_s", known(l->measured_s),
                                    "bound", l->compute_bound ? "compute" : "memory"));
    table_cell(k->layers, "%s", l->layer);
    table_cell(k->layers, "%s", l->device);
    span(k->layers, l->predicted_s);
    span(k->layers, l->measured_s);
    error_of(k->layers, l->predicted_s, l->measured_s);
    table_cell(k->layers, "%s", l->compute_bound ? "compute" : "memory");
    if (!(l->predicted_s > 0 && l->measured_s > 0))
        return;
    if (k->n == k->cap) {
        size_t cap = k->cap ? 2 * k->cap : 64;
        double *v = realloc(k->off, cap * sizeof *v);
        if (!v)
            return;
        k->off = v;
        k->cap = cap;
    }
    k->off[k->n++] = fabs(l->predicted_s / l->measured_s - 1);
}

static void take_hop(struct calibration *k, const Strata__V1__HopTiming *h)
{
    char when[28], bytes[16];
    clock_rfc3339(h->measured_us, when);
    json_array_append_new(k->jhops,
                          json_pack("{s:s,s:s,s:s,s:f,s:o,s:o,s:o}", "from", h->from, "to", h->to, "layer",
                                    h->layer, "bytes", h->bytes, "predicted_s", known(h->predicted_s),
                                    "measured_s", known(h->measured_s), "measured",
                                    h->measured_us > 0 ? json_string(when) : json_null()));
    fmt_bytes(bytes, (uint64_t)fmin(fmax(h->bytes, 0), 9e18));
    table_cell(k->hops, "%s -> %s", h->from, h->to);
    table_cell(k->hops, "%s", h->layer);
    table_cell(k->hops, "%s", bytes);
    span(k->hops, h->predicted_s);
    span(k->hops, h->measured_s);
    error_of(k->hops, h->predicted_s, h->measured_s);
    k->nhops++;
}

static void rate(struct table *t, double was, double now)
{
    if (was > 0)
        table_cell(t, "%.4g -> %.4g G/s", was / 1e9, now / 1e9);
    else
        table_cell(t, "-");
}

static void take_device(struct calibration *k, const Strata__V1__DeviceTiming *d)
{
    json_array_append_new(k->jdevices,
                          json_pack("{s:s,s:i,s:o,s:o,s:o,s:o,s:o,s:o,s:b}", "device", d->device, "layers",
                                    (int)d->layers, "predicted_s", known(d->predicted_s), "measured_s",
                                    known(d->measured_s), "memory_bytes_per_s", known(d->memory_bytes_per_s),
                                    "compute_flops_per_s", known(d->compute_flops_per_s), "memory_was",
                                    known(d->memory_was), "compute_was", known(d->compute_was), "corrected",
                                    (int)d->corrected));
    table_cell(k->devices, "%s", d->device);
    table_cell(k->devices, "%u", d->layers);
    span(k->devices, d->predicted_s);
    span(k->devices, d->measured_s);
    error_of(k->devices, d->predicted_s, d->measured_s);
    rate(k->devices, d->memory_was, d->memory_bytes_per_s);
    rate(k->devices, d->compute_was, d->compute_flops_per_s);
    k->corrected |= d->corrected;
}

static int on_progress(const ProtobufCMessage *m, void *arg)
{
    struct calibration *k = arg;
    const Strata__V1__CalibrateProgress *p = (const Strata__V1__CalibrateProgress *)m;
    if (p->layer) {
        take_layer(k, p->layer);
        ctl_bar(k->c, "layers", p->done, p->layers, p->layer->layer);
    }
    for (size_t i = 0; i < p->n_hops; i++)
        take_hop(k, p->hops[i]);
    for (size_t i = 0; i < p->n_devices; i++)
        take_device(k, p->devices[i]);
    return 0;
}

/* ---- links first: fresh figures for the hops ---- */

static int on_link(const ProtobufCMessage *m, void *arg)
{
    const Strata__V1__NetProgress *p = (const Strata__V1__NetProgress *)m;
    ctl_bar(arg, "links", p->done, p->pairs, "");
    return 0;
}

static int measure_links(struct ctl *c, const char *job)
{
    Strata__V1__GetJobRequest q = STRATA__V1__GET_JOB_REQUEST__INIT;
    Strata__V1__NetMeasureRequest r = STRATA__V1__NET_MEASURE_REQUEST__INIT;
    ProtobufCMessage *m;
    struct strata_error e;
    char name[NODES_MAX][64], *node[NODES_MAX];
    q.id = (char *)job;
    if (strata_client_call(c->client, &strata__v1__jobs__descriptor, "Get", &q.base, c->timeout_ns, NULL, &m,
                           &e) < 0)
        return ctl_client_fail(c, &e);
    const Strata__V1__Job *j = (const Strata__V1__Job *)m;
    for (size_t i = 0; i < j->n_layers && r.n_nodes < NODES_MAX; i++) {
        size_t n = strcspn(j->layers[i]->device, "/"), at = 0;
        if (!n || n >= sizeof name[0])
            continue;
        while (at < r.n_nodes && (strncmp(name[at], j->layers[i]->device, n) || name[at][n]))
            at++;
        if (at < r.n_nodes)
            continue;
        memcpy(name[at], j->layers[i]->device, n);
        name[at][n] = 0;
        node[at] = name[at];
        r.n_nodes++;
    }
    protobuf_c_message_free_unpacked(m, NULL);
    r.nodes = node;
    if (r.n_nodes < 2)
        return 0;
    int rc = strata_client_stream(c->client, &strata__v1__net__descriptor, "Measure", &r.base, PROBE_NS,
                                  on_link, c, &e);
    ctl_bar_end(c);
    return rc < 0 ? ctl_client_fail(c, &e) : 0;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int show(struct calibration *k, const char *job, bool keep)
{
    double median = 0, p95 = 0;
    if (k->n) {
        qsort(k->off, k->n, sizeof *k->off, by_size);
        median = k->off[(k->n - 1) / 2];
        p95 = k->off[(size_t)ceil(0.95 * (double)k->n) - 1];
    }
    if (k->c->json)
        return ctl_print_json("strata.plan-calibration.v1",
                              json_pack("{s:s,s:O,s:O,s:O,s:o,s:o}", "job", job, "layers", k->jlayers, "hops",
                                        k->jhops, "devices", k->jdevices, "median_error",
                                        k->n ? json_real(median) : json_null(), "p95_error",
                                        k->n ? json_real(p95) : json_null()));
    table_print(k->layers, stdout);
    if (k->nhops) {
        putchar('\n');
        table_print(k->hops, stdout);
    }
    putchar('\n');
    table_print(k->devices, stdout);
    if (k->n)
        printf("\n%zu layers, off by %.1f%% in the median, %.1f%% at the 95th percentile\n", k->n,
               100 * median, 100 * p95);
    if (!keep)
        puts("nothing was corrected: --correct makes the planner count with these rates");
    else
        puts(k->corrected ? "the planner counts with these rates from now on"
                          : "too little was measured to correct anything");
    return 0;
}

int ctl_plan_calibrate(struct ctl *c, int argc, char **argv)
{
    static const char *const lcol[] = {"LAYER", "DEVICE", "PREDICTED>", "MEASURED>", "OFF>", "BOUND BY"},
                             *const hcol[] = {"HOP", "LAYER", "BYTES>", "PREDICTED>", "MEASURED>", "OFF>"},
                             *const dcol[] = {"DEVICE", "LAYERS>",      "PREDICTED>",   "MEASURED>",
                                              "OFF>",   "MEMORY RATE>", "COMPUTE RATE>"};
    const char *rounds = NULL;
    bool correct = false, links = false;
    uint64_t n = 0;
    const struct ctl_opt opts[] = {{.name = "rounds", .value = &rounds},
                                   {.name = "correct", .flag = &correct},
                                   {.name = "links", .flag = &links}};
    if (ctl_parse(argc, argv, opts, 3) != 1)
        return ctl_misuse(c, "plan calibrate needs one job");
    if (ctl_number(rounds, "rounds", 100, &n))
        return 2;
    int x = ctl_connect(c);
    if (!x && links)
        x = measure_links(c, argv[0]);
    if (x)
        return x;
    struct calibration k = {.c = c,
                            .layers = table_new(lcol, 6),
                            .hops = table_new(hcol, 6),
                            .devices = table_new(dcol, 7),
                            .jlayers = json_array(),
                            .jhops = json_array(),
                            .jdevices = json_array()};
    Strata__V1__CalibrateRequest q = STRATA__V1__CALIBRATE_REQUEST__INIT;
    struct strata_error e;
    q.job = argv[0];
    q.rounds = (uint32_t)n;
    q.correct = correct;
    int rc = strata_client_stream(c->client, &strata__v1__plans__descriptor, "Calibrate", &q.base,
                                  c->timeout_ns ? c->timeout_ns : UINT64_MAX, on_progress, &k, &e);
    ctl_bar_end(c);
    x = rc < 0 ? ctl_client_fail(c, &e) : show(&k, argv[0], correct);
    json_decref(k.jlayers);
    json_decref(k.jhops);
    json_decref(k.jdevices);
    table_free(k.layers);
    table_free(k.hops);
    table_free(k.devices);
    free(k.off);
    return x;
}
