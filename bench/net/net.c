/*
 * strata-bench net: what real agents measure against a known truth. Delay and loss come from a simulated
 * network, rates from tc tbf on a veth pair; coordinates are judged on a synthetic matrix.
 */
#include <math.h>
#include <string.h>
#include <time.h>

#include "bench/bench.h"
#include "bench/net/coords.h"
#include "bench/net/lab.h"

#define REFRESH_S 900.0 /* the configuration's default */

static double real(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : (double)NAN;
}

static const json_t *link_of(const json_t *r, const char *from)
{
    size_t i;
    json_t *l;
    json_array_foreach(json_object_get(r, "links"), i, l)
    {
        const char *f = json_string_value(json_object_get(l, "from"));
        if (f && !strcmp(f, from))
            return l;
    }
    return NULL;
}

static void put(struct bench_run *run, const char *name, double v)
{
    if (isnan(v))
        bench_skip(run, "net", name, "the probe gave no figure");
    else
        bench_put(run, "net", name, v, 0);
}

/* ---- round trips and loss ---- */

static void rtt(struct bench_run *run, struct lab *l, unsigned ms)
{
    char name[32];
    double worst = 0;
    snprintf(name, sizeof name, "rtt-error-%ums", ms);
    if (lab_sim(l, NULL, "link 1 2 delay_us=%u", ms * 500) < 0 ||
        lab_sim(l, NULL, "link 2 1 delay_us=%u", ms * 500) < 0)
        return;
    json_t *r =
        lab_strata(l, "net probe n1 n2 --latency-only --count %u --interval 5ms", run->o.quick ? 100 : 400);
    for (unsigned i = 0; i < 2; i++) {
        double truth = ms * 1e-3, off = fabs(real(link_of(r, i ? "n2" : "n1"), "rtt_p50_s") - truth);
        double may = truth * 0.05 > 50e-6 ? truth * 0.05 : 50e-6;
        worst = isnan(off) ? off : fmax(worst, off / may);
    }
    json_decref(r);
    put(run, name, worst);
}

/* The truth is what the network dropped of the probes, which their size tells from everything else. */
static void loss(struct bench_run *run, struct lab *l)
{
    char there[128], back[128];
    double off = (double)NAN;
    if (lab_sim(l, NULL, "link 1 2 delay_us=1000 loss_ppm=20000") < 0 ||
        lab_sim(l, NULL, "link 2 1 delay_us=1000 loss_ppm=30000") < 0)
        return;
    json_t *r = lab_strata(l, "net probe n1 n2 --latency-only --count 1000 --size 600 --interval 2ms");
    unsigned seen, d1, d2;
    if (lab_sim(l, there, "count 1 2 620 720") == ST_OK && lab_sim(l, back, "count 2 1 620 720") == ST_OK &&
        sscanf(there, "%u %u", &seen, &d1) == 2 && sscanf(back, "%u %u", &seen, &d2) == 2) {
        /* Both ends probed, over the same two directions: together they lost what was dropped. */
        double a = real(link_of(r, "n1"), "loss"), b = real(link_of(r, "n2"), "loss");
        off = fabs((a + b) / 2 - (d1 + d2) / 2000.0) * 100;
    }
    json_decref(r);
    put(run, "loss-error-1000-probes", off);
}

/* ---- rates ---- */

static void rates(struct bench_run *run)
{
    static const struct {
        const char *name;
        double bits;
    } at[] = {{"rate-error-10Mbit", 10e6},
              {"rate-error-100Mbit", 100e6},
              {"rate-error-1Gbit", 1e9},
              {"rate-error-5Gbit", 5e9}};
    struct lab l;
    struct err e = {0};
    int rc = lab_open_veth(&l, &e);
    for (unsigned i = 0; i < sizeof at / sizeof *at; i++) {
        if (rc == ST_OK && lab_pace(&l, at[i].bits) == ST_OK) {
            json_t *r = lab_strata(&l, "net probe n1 n2 --stream %s", run->o.quick ? "1s" : "3s");
            double v[2];
            for (unsigned k = 0; k < 2; k++)
                v[k] = fabs(real(link_of(r, k ? "n2" : "n1"), "wire_bytes_per_s") * 8 / at[i].bits - 1) * 100;
            json_decref(r);
            put(run, at[i].name, isnan(v[0]) || isnan(v[1]) ? (double)NAN : fmax(v[0], v[1]));
        } else {
            bench_skip(run, "net", at[i].name, rc < 0 ? e.text : "tc refused the rate");
        }
    }
    lab_close(&l);
}

/* ---- estimate and overhead ---- */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* A buffer from one node to the other, as a session's user copies it. */
static double copy_seconds(struct lab *l, unsigned bytes)
{
    double t = (double)NAN;
    json_t *a = lab_strata(l, "gpu alloc n1/cpu:0 %u", bytes),
           *b = lab_strata(l, "gpu alloc n2/cpu:0 %u", bytes);
    const char *x = json_string_value(json_object_get(a, "handle")),
               *y = json_string_value(json_object_get(b, "handle"));
    if (x && y) {
        double begin = now_s();
        json_t *r = lab_strata(l, "gpu copy %s %s", x, y);
        if (r && !json_object_get(r, "exit"))
            t = now_s() - begin;
        json_decref(r);
    }
    json_decref(a);
    json_decref(b);
    return t;
}

static void estimate(struct bench_run *run, struct lab *l)
{
    unsigned bytes = run->o.quick ? 12000000 : 48000000;
    char there[128], back[128];
    double b1 = (double)NAN, b2 = (double)NAN;
    if (lab_sim(l, NULL, "link 1 2 delay_us=2500 rate=40000000") < 0 ||
        lab_sim(l, NULL, "link 2 1 delay_us=2500 rate=40000000") < 0)
        return;
    json_decref(lab_strata(l, "net probe n1 n2 --stream 2s"));
    json_t *r = lab_strata(l, "net estimate n1 n2 %u", bytes);
    double said = real(r, "seconds"), took = copy_seconds(l, bytes);
    json_decref(r);
    put(run, "estimate-error", fabs(said / took - 1) * 100);
    /* One measurement as it is made by itself, spread over the time to the next. */
    if (lab_sim(l, NULL, "link 1 2 delay_us=2500 rate=10000000") < 0 ||
        lab_sim(l, NULL, "link 2 1 delay_us=2500 rate=10000000") < 0)
        return;
    json_decref(lab_strata(l, "net probe n1 n2"));
    if (lab_sim(l, there, "count 1 2 0 2000") == ST_OK && lab_sim(l, back, "count 2 1 0 2000") == ST_OK) {
        (void)!sscanf(there, "%*u %*u %lf", &b1);
        (void)!sscanf(back, "%*u %*u %lf", &b2);
    }
    put(run, "overhead-10Mbit", fmax(b1, b2) * 8 / (10e6 * REFRESH_S) * 100);
}

static void all_pairs(struct bench_run *run)
{
    struct lab l;
    struct err e = {0};
    int rc = lab_open_sim(&l, 16, &e);
    if (rc == ST_OK)
        rc = lab_sim(&l, NULL, "link 0 0 delay_us=200 rate=50000000");
    if (rc == ST_OK) {
        json_t *r = lab_strata(&l, "net probe --stream %s --count 10", run->o.quick ? "50ms" : "300ms");
        bool all = real(r, "measured") >= 120 && real(r, "failed") <= 0;
        if (all)
            put(run, "all-pairs-of-16-rounds", real(r, "rounds"));
        else
            bench_put(run, "net", "all-pairs-of-16-rounds", 1e9, 0); /* not all of them: missed */
        json_decref(r);
    } else {
        bench_skip(run, "net", "all-pairs-of-16-rounds", e.text);
    }
    lab_close(&l);
}

int bench_net(struct bench_run *run, struct err *e)
{
    static const char *const need[] = {
        "rtt-error-1ms",     "rtt-error-10ms",     "rtt-error-50ms",        "loss-error-1000-probes",
        "rate-error-10Mbit", "rate-error-100Mbit", "rate-error-1Gbit",      "rate-error-5Gbit",
        "estimate-error",    "overhead-10Mbit",    "all-pairs-of-16-rounds"};
    const char *why = lab_cannot();
    double median = bench_coords_error();
    if (median < 0)
        return err_set(e, ST_ENOMEM, "no memory for a network of 1,000 nodes");
    put(run, "coordinates-1000-nodes-median-error", median * 100);
    for (unsigned i = 0; i < sizeof need / sizeof *need; i++)
        bench_skip(run, "net", need[i], why ? why : "the laboratory could not be made");
    if (why)
        return ST_OK;
    struct lab l;
    int rc = lab_open_sim(&l, 2, e);
    if (rc == ST_OK) {
        rtt(run, &l, 1);
        rtt(run, &l, 10);
        rtt(run, &l, 50);
        loss(run, &l);
        estimate(run, &l);
    }
    lab_close(&l);
    if (rc < 0)
        return rc;
    rates(run);
    all_pairs(run);
    return ST_OK;
}
