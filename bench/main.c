/* strata-bench AREA [--quick] [--only CASE] [--json] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"

static const struct {
    const char *name;
    int (*run)(struct bench_run *, struct err *);
} areas[] = {
    {"gpu", bench_gpu}, {"rpc", bench_rpc},   {"access", bench_access}, {"audit", bench_audit},
    {"tls", bench_tls}, {"plan", bench_plan}, {"net", bench_net},
};

static int usage(FILE *to)
{
    fputs("usage: strata-bench AREA [--quick] [--only CASE] [--json]\n"
          "areas:",
          to);
    for (size_t i = 0; i < sizeof areas / sizeof *areas; i++)
        fprintf(to, " %s", areas[i].name);
    fputs("\n  --quick  shorter runs of the same cases\n"
          "  --only   this case and those measured with it, where the area can (audit)\n"
          "  --json   strata.bench.v1 on standard output\n",
          to);
    return to == stderr ? 2 : 0;
}

int main(int argc, char **argv)
{
    struct bench_run run = {0};
    const char *area = NULL;
    bool json = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--quick"))
            run.o.quick = true;
        else if (!strcmp(argv[i], "--only") && i + 1 < argc)
            run.o.only = argv[++i];
        else if (!strcmp(argv[i], "--json"))
            json = true;
        else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
            return usage(stdout);
        else if (argv[i][0] == '-' || area)
            return usage(stderr);
        else
            area = argv[i];
    }
    size_t k = 0, n = sizeof areas / sizeof *areas;
    while (area && k < n && strcmp(areas[k].name, area))
        k++;
    if (!area || k == n) {
        if (area)
            fprintf(stderr, "strata-bench: there is no area '%s'\n", area);
        return usage(stderr);
    }
    if (run.o.only && !bench_has(area, run.o.only)) {
        fprintf(stderr, "strata-bench: %s has no case '%s'\n", area, run.o.only);
        return usage(stderr);
    }
    struct err e = {0};
    run.results = calloc(bench_cases_n, sizeof *run.results);
    if (!run.results)
        return 1;
    int rc = areas[k].run(&run, &e);
    if (rc < 0)
        fprintf(stderr, "strata-bench: %s\n", *e.text ? e.text : status_name(rc));
    else
        rc = bench_print(&run, area, json);
    free(run.results);
    return status_exit_code(rc);
}
