/* The report: a table for people, or strata.bench.v1. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "bench/bench.h"
#include "common/base/str.h"

static void cpu_model(char out[128])
{
    char line[256];
    str_copy(out, 128, "unknown");
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (!str_starts(line, "model name") || !colon)
            continue;
        line[strcspn(line, "\n")] = 0;
        str_copy(out, 128, colon + (colon[1] == ' ' ? 2 : 1));
        break;
    }
    if (f)
        fclose(f);
}

static json_t *machine(void)
{
    struct utsname u;
    char cpu[128];
    double load[1] = {0};
    cpu_model(cpu);
    if (uname(&u))
        memset(&u, 0, sizeof u);
    if (getloadavg(load, 1) != 1)
        load[0] = -1;
    return json_pack("{s:s,s:I,s:I,s:s,s:s,s:f,s:s}", "cpu", cpu, "cpus",
                     (json_int_t)sysconf(_SC_NPROCESSORS_ONLN), "memory_bytes",
                     (json_int_t)sysconf(_SC_PHYS_PAGES) * (json_int_t)sysconf(_SC_PAGESIZE), "kernel",
                     u.release, "arch", u.machine, "load_1m", load[0], "strata", STRATA_VERSION);
}

static json_t *one(const struct bench_case *c, const struct bench_result *r)
{
    char aim[48];
    int met = bench_met(c, r);
    bench_aim_text(c, aim);
    json_t *j = json_pack("{s:s,s:s}", "name", c->name, "unit", c->unit);
    json_object_set_new(j, "ours", r->ran ? json_real(r->ours) : json_null());
    json_object_set_new(j, "peer_name", json_string(c->peer_name));
    json_object_set_new(j, "peer", r->ran ? json_real(r->peer) : json_null());
    json_object_set_new(j, "ratio", r->ran && r->peer > 0 ? json_real(r->ours / r->peer) : json_null());
    json_object_set_new(j, "aim", *aim ? json_string(aim) : json_null());
    json_object_set_new(j, "met", met < 0 ? json_null() : json_boolean(met));
    if (r->ran && r->spread.n)
        json_object_set_new(j, "spread",
                            json_pack("{s:I,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "samples", (json_int_t)r->spread.n,
                                      "min", r->spread.min, "p50", r->spread.p50, "mean", r->spread.mean,
                                      "p90", r->spread.p90, "p99", r->spread.p99, "max", r->spread.max, "mad",
                                      r->spread.mad));
    if (!r->ran)
        json_object_set_new(j, "why", json_string(*r->why ? r->why : "did not run"));
    return j;
}

static int print_json(const struct bench_run *run, const char *area)
{
    json_t *cases = json_array();
    for (size_t i = 0; i < bench_cases_n; i++)
        if (!strcmp(bench_cases[i].area, area))
            json_array_append_new(cases, one(&bench_cases[i], &run->results[i]));
    json_t *all = json_pack("{s:s,s:s,s:b,s:o,s:o}", "schema", "strata.bench.v1", "area", area, "quick",
                            (int)run->o.quick, "machine", machine(), "cases", cases);
    if (!all)
        return ST_ENOMEM;
    int bad = json_dumpf(all, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    json_decref(all);
    putchar('\n');
    return bad || fflush(stdout) ? ST_EIO : ST_OK;
}

int bench_print(const struct bench_run *run, const char *area, bool json)
{
    if (json)
        return print_json(run, area);
    char cpu[128];
    cpu_model(cpu);
    printf("strata-bench %s%s on %s, %ld CPUs\n\n%-44s %-5s %12s %12s  %-17s %7s  %-15s %s\n", area,
           run->o.quick ? " --quick" : "", cpu, sysconf(_SC_NPROCESSORS_ONLN), "case", "unit", "ours", "peer",
           "peer is", "ratio", "aim", "met");
    for (size_t i = 0; i < bench_cases_n; i++) {
        const struct bench_case *c = &bench_cases[i];
        const struct bench_result *r = &run->results[i];
        char aim[48];
        int met = bench_met(c, r);
        if (strcmp(c->area, area))
            continue;
        bench_aim_text(c, aim);
        if (r->ran)
            printf("%-44s %-5s %12.4g %12.4g  %-17s %7.2f  %-15s %s\n", c->name, c->unit, r->ours, r->peer,
                   c->peer_name, r->peer > 0 ? r->ours / r->peer : 0, aim,
                   met < 0 ? ""
                   : met   ? "yes"
                           : "NO");
        else
            printf("%-44s %-5s %12s %12s  %-17s %7s  %-15s %s\n", c->name, c->unit, "-", "-", c->peer_name,
                   "-", aim, *r->why ? r->why : "did not run");
    }
    return fflush(stdout) ? ST_EIO : ST_OK;
}
