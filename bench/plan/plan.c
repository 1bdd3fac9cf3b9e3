/*
 * The planner: seconds on one core, gaps within a budget, memory, and the value of its plans beside that of
 * simpler planners on the same problems. Every solve runs in a child process, whose CPU time is the clock
 * (a neighbour's load is not ours) and whose largest resident set is the memory; every plan is checked.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench/bench.h"
#include "bench/plan/world.h"
#include "common/base/clock.h"
#include "common/base/str.h"
#include "common/model/cluster.h"
#include "common/model/model.h"
#include "coordinator/plan/plan.h"

#define MAX_SEEDS 40u

static const char *const goals[] = {"latency", "throughput", "memory", "balanced"};

static uint64_t cpu_ns(void *arg)
{
    struct timespec t;
    (void)arg;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}
static int64_t no_wall(void *arg)
{
    (void)arg;
    return 0;
}
static const struct clock cpu_clock = {cpu_ns, no_wall, NULL};

struct answer {
    int rc;
    bool optimal;
    double seconds, megabytes; /* CPU; what the solve added to the resident set */
    double objective, gap;
    double moved, fresh; /* of a replan */
    bool fewest;
    struct err e;
};

static double resident_mb(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_maxrss / 1024;
}

/* `rounds` times over; seconds are the median. */
static void solve_here(const struct world *w, enum plan_goal goal, double budget_s, unsigned rounds,
                       struct answer *a)
{
    double v[16];
    struct plan_opts o = {.goal = goal, .clock = &cpu_clock, .time_limit_s = budget_s};
    struct plan *p = NULL;
    struct plan_check_report rep;
    for (unsigned k = 0; k < rounds; k++) {
        plan_free(p);
        uint64_t from = cpu_ns(NULL);
        a->rc = plan_solve(w->c, w->m, NULL, &o, &p, &a->e);
        v[k] = (double)(cpu_ns(NULL) - from) / 1e9;
    }
    a->seconds = bench_median(v, rounds);
    a->megabytes = resident_mb();
    if (a->rc == ST_OK && (a->rc = plan_check(w->c, w->m, NULL, p, &rep, &a->e)) == ST_OK) {
        a->optimal = p->optimal;
        a->objective = p->objective;
        a->gap = p->gap;
        plan_check_fini(&rep);
    }
}

static void replan_here(const struct world *w, enum plan_goal goal, size_t lost, struct answer *a)
{
    struct plan_replan_opts o = {.o = {.goal = goal}, .slack = 0.05};
    struct plan *old = NULL, *p = NULL;
    struct plan_case why;
    struct world left;
    a->rc = plan_solve(w->c, w->m, NULL, &o.o, &old, &a->e);
    if (a->rc < 0)
        return;
    uint32_t device = cluster_find_device(w->c, old->stages[lost % old->n_stages].device);
    if ((a->rc = world_without(w, device, &left, &a->e)) < 0)
        return;
    uint64_t from = cpu_ns(NULL);
    a->rc = plan_replan(left.c, left.m, NULL, old, &o, &p, &why, &a->e);
    a->seconds = (double)(cpu_ns(NULL) - from) / 1e9;
    if (a->rc == ST_OK) {
        a->moved = p->moved_bytes;
        a->fresh = why.fresh_bytes;
        a->fewest = why.fewest;
    }
}

/* Runs one of the two in a child; lost = SIZE_MAX for solves, of which there are `rounds`. */
static int child(const struct world *w, enum plan_goal goal, double budget_s, unsigned rounds, size_t lost,
                 struct answer *a)
{
    int fd[2];
    *a = (struct answer){.rc = ST_EINTERNAL};
    if (pipe(fd) < 0)
        return err_set(&a->e, ST_EIO, "no pipe");
    pid_t pid = fork();
    if (pid == 0) {
        close(fd[0]);
        if (lost == SIZE_MAX)
            solve_here(w, goal, budget_s, rounds, a);
        else
            replan_here(w, goal, lost, a);
        _exit(write(fd[1], a, sizeof *a) == (ssize_t)sizeof *a ? 0 : 1);
    }
    close(fd[1]);
    int rc = pid > 0 && read(fd[0], a, sizeof *a) == (ssize_t)sizeof *a
                 ? a->rc
                 : err_set(&a->e, ST_EINTERNAL, "the solver's process died");
    close(fd[0]);
    if (pid > 0)
        waitpid(pid, NULL, 0);
    return rc;
}

static int in_child(const struct world *w, enum plan_goal goal, double budget_s, size_t lost,
                    struct answer *a)
{
    return child(w, goal, budget_s, 1, lost, a);
}

static void skip(struct bench_run *run, const char *name, const struct answer *a)
{
    bench_skip(run, "plan", name, *a->e.text ? a->e.text : status_name(a->rc));
}

/* ---- exact: seconds ---- */

static int exact_times(struct bench_run *run, struct err *e)
{
    static const struct {
        size_t devices;
        unsigned goals; /* how many of the four, from the first */
        unsigned rounds;
    } sizes[] = {{10, 4, 9}, {12, 4, 5}, {14, 3, 5}, {16, 3, 3}};
    static const double rooms[] = {1.15, 2, 6};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (unsigned g = 0; g < sizes[i].goals; g++) {
            double worst = 0, largest = 0;
            char name[64];
            struct answer a = {.rc = ST_OK};
            if (sizes[i].devices == 12 && g < 3)
                continue;
            for (size_t r = 0; r < 3 && a.rc == ST_OK; r++) {
                struct world w;
                unsigned n = run->o.quick && sizes[i].devices > 12 ? 1 : sizes[i].rounds;
                int rc = world_mesh(&w, sizes[i].devices, 128, rooms[r], 11 + r, e);
                if (rc < 0)
                    return rc;
                if (child(&w, (enum plan_goal)g, 4, n, SIZE_MAX, &a) == ST_OK && !a.optimal)
                    a.rc = err_set(&a.e, ST_EINTERNAL, "room %g: not proven optimal", rooms[r]);
                worst = fmax(worst, a.seconds * 1e3);
                largest = fmax(largest, a.megabytes);
                world_free(&w);
            }
            snprintf(name, sizeof name, "%s.%zu.slowest", goals[g], sizes[i].devices);
            a.rc == ST_OK ? bench_put(run, "plan", name, worst, 0) : skip(run, name, &a);
            if (sizes[i].devices != 16)
                continue;
            snprintf(name, sizeof name, "%s.16.memory", goals[g]);
            a.rc == ST_OK ? bench_put(run, "plan", name, largest, 0) : skip(run, name, &a);
        }
    return ST_OK;
}

/* ---- sites, and named problems ---- */

static void put_time(struct bench_run *run, const char *name, const struct world *w, enum plan_goal g,
                     unsigned rounds)
{
    struct answer a;
    if (child(w, g, 2, rounds, SIZE_MAX, &a) == ST_OK && !a.optimal)
        a.rc = err_set(&a.e, ST_EINTERNAL, "not proven optimal: gap %.2f %%", 100 * a.gap);
    a.rc == ST_OK ? bench_put(run, "plan", name, a.seconds * 1e3, 0) : skip(run, name, &a);
}

static int named(struct bench_run *run, struct err *e)
{
    struct world w;
    int rc = world_sites(&w, 1000, 10, 126, 3, e);
    if (rc < 0)
        return rc;
    put_time(run, "latency.sites-1000", &w, PLAN_LATENCY, 7);
    put_time(run, "throughput.sites-1000", &w, PLAN_THROUGHPUT, 3);
    put_time(run, "memory.sites-1000", &w, PLAN_MEMORY, 3);
    world_free(&w);
    if ((rc = world_helix10(&w, e)) < 0)
        return rc;
    struct answer a;
    put_time(run, "helix10.proved", &w, PLAN_THROUGHPUT, 9);
    if (in_child(&w, PLAN_THROUGHPUT, 0, SIZE_MAX, &a) == ST_OK)
        bench_put(run, "plan", "helix10.rate", 1 / a.objective, 286.587);
    else
        skip(run, "helix10.rate", &a);
    world_free(&w);
    if ((rc = world_exo957(&w, e)) < 0)
        return rc;
    if (in_child(&w, PLAN_THROUGHPUT, 0, SIZE_MAX, &a) == ST_OK)
        bench_put(run, "plan", "exo957.bottleneck", a.objective * 1e3, 34.88);
    else
        skip(run, "exo957.bottleneck", &a);
    if (in_child(&w, PLAN_LATENCY, 0, SIZE_MAX, &a) == ST_OK)
        bench_put(run, "plan", "exo957.latency", a.objective * 1e3, 0);
    else
        skip(run, "exo957.latency", &a);
    world_free(&w);
    return ST_OK;
}

/* ---- no structure: gaps within budgets ---- */

static int gaps(struct bench_run *run, struct err *e)
{
    static const struct {
        size_t devices;
        double budget_s;
        const char *name;
    } cases[] = {{1000, 1, "1000.gap-1s"}, {1000, 0.1, "1000.gap-100ms"}, {5000, 5, "5000.gap-5s"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (unsigned g = PLAN_LATENCY; g <= PLAN_MEMORY; g++) {
            unsigned seeds = run->o.quick || cases[i].devices > 1000 ? 1 : 5;
            double worst = 0, largest = 0, slowest = 0;
            struct answer a = {.rc = ST_OK};
            char name[64];
            for (unsigned s = 0; s < seeds && a.rc == ST_OK; s++) {
                struct world w;
                int rc = world_flat(&w, cases[i].devices, 128, 1 + s, e);
                if (rc < 0)
                    return rc;
                if (in_child(&w, (enum plan_goal)g, cases[i].budget_s, SIZE_MAX, &a) == ST_OK) {
                    worst = fmax(worst, 100 * a.gap);
                    largest = fmax(largest, a.megabytes);
                    slowest = fmax(slowest, a.seconds);
                }
                world_free(&w);
            }
            snprintf(name, sizeof name, "%s.%s", goals[g], cases[i].name);
            a.rc == ST_OK ? bench_put(run, "plan", name, worst, 0) : skip(run, name, &a);
            snprintf(name, sizeof name, "%s.%s.seconds", goals[g], cases[i].name);
            a.rc == ST_OK ? bench_put(run, "plan", name, slowest, 0) : skip(run, name, &a);
            snprintf(name, sizeof name, "%s.%zu.memory", goals[g], cases[i].devices);
            if (i != 1)
                a.rc == ST_OK ? bench_put(run, "plan", name, largest, 0) : skip(run, name, &a);
        }
    return ST_OK;
}

/* ---- after a loss ---- */

static int replans(struct bench_run *run, struct err *e)
{
    unsigned seeds = run->o.quick ? 8 : MAX_SEEDS;
    for (unsigned g = PLAN_LATENCY; g <= PLAN_MEMORY; g++) {
        double ms[MAX_SEEDS], moved = 0, fresh = 0, proven = 0;
        struct answer a = {.rc = ST_OK};
        unsigned n = 0;
        char name[64];
        for (unsigned s = 0; s < seeds && a.rc == ST_OK; s++) {
            struct world w;
            int rc = world_mesh(&w, 8, 80, 2, 100 + s, e);
            if (rc < 0)
                return rc;
            if (in_child(&w, (enum plan_goal)g, 0, s, &a) == ST_OK) {
                ms[n++] = a.seconds * 1e3;
                moved += a.moved / 1e9;
                fresh += a.fresh / 1e9;
                proven += a.fewest;
            } else if (a.rc == ST_EINFEASIBLE) { /* what is left is too small */
                a.rc = ST_OK;
            }
            world_free(&w);
        }
        if (a.rc == ST_OK && !n)
            a.rc = err_set(&a.e, ST_EINTERNAL, "no problem had room after the loss");
        snprintf(name, sizeof name, "%s.8.replan", goals[g]);
        a.rc == ST_OK ? bench_put_series(run, "plan", name, ms, n, 0) : skip(run, name, &a);
        snprintf(name, sizeof name, "%s.8.replan-slowest", goals[g]);
        a.rc == ST_OK ? bench_put(run, "plan", name, ms[n - 1], 0) : skip(run, name, &a);
        snprintf(name, sizeof name, "%s.8.replan-moved", goals[g]);
        a.rc == ST_OK ? bench_put(run, "plan", name, moved / n, fresh / n) : skip(run, name, &a);
        snprintf(name, sizeof name, "%s.8.replan-proven-fewest", goals[g]);
        a.rc == ST_OK ? bench_put(run, "plan", name, 100 * proven / n, 0) : skip(run, name, &a);
    }
    return ST_OK;
}

/* ---- beside others ---- */

static double value_of(const struct world_figures *f, enum plan_goal g)
{
    return 1e3 * (g == PLAN_LATENCY ? f->latency : g == PLAN_THROUGHPUT ? f->bottleneck : f->ratio);
}

/* Geometric means over the problems of a kind where the rival's split fits. */
static int beside(struct bench_run *run, const char *kind, struct world *w, unsigned n)
{
    for (unsigned g = PLAN_LATENCY; g <= PLAN_MEMORY; g++) {
        double ours[16];
        struct answer a = {.rc = ST_OK};
        for (unsigned i = 0; i < n && a.rc == ST_OK; i++) {
            (void)in_child(&w[i], (enum plan_goal)g, 1, SIZE_MAX, &a);
            ours[i] = a.objective * 1e3;
        }
        for (unsigned r = 0; r < RIVALS; r++) {
            double x = 0, y = 0;
            unsigned fit = 0;
            char name[96], why[80];
            snprintf(name, sizeof name, "%s.%s, %s", goals[g], kind, rival_names[r]);
            for (unsigned i = 0; i < n && a.rc == ST_OK; i++) {
                struct world_figures f;
                if (rival_run(&w[i], (enum rival)r, &f) < 0)
                    continue;
                x += log(ours[i]);
                y += log(value_of(&f, (enum plan_goal)g));
                fit++;
            }
            snprintf(why, sizeof why, "its split fits in none of %u problems; ours in all", n);
            if (a.rc < 0)
                skip(run, name, &a);
            else if (!fit)
                bench_skip(run, "plan", name, why);
            else
                bench_put(run, "plan", name, exp(x / fit), exp(y / fit));
        }
    }
    return ST_OK;
}

static int quality(struct bench_run *run, struct err *e)
{
    struct world w[16] = {{0}};
    int rc = ST_OK;
    unsigned n = run->o.quick ? 4 : 16;
    for (unsigned i = 0; i < n && rc == ST_OK; i++)
        rc = world_mesh(&w[i], 10, 128, i % 2 ? 2 : 4, 500 + i, e);
    if (rc == ST_OK)
        rc = beside(run, "mesh-10", w, n);
    for (unsigned i = 0; i < n; i++)
        world_free(&w[i]);
    for (int k = 0; k < 4 && rc == ST_OK; k++) {
        static const char *const kinds[] = {"exo957", "helix10", "sites-1000", "flat-1000"};
        rc = k == 0   ? world_exo957(w, e)
             : k == 1 ? world_helix10(w, e)
             : k == 2 ? world_sites(w, 1000, 10, 126, 3, e)
                      : world_flat(w, 1000, 128, 1, e);
        if (rc == ST_OK)
            rc = beside(run, kinds[k], w, 1);
        world_free(w);
    }
    return rc;
}

int bench_plan(struct bench_run *run, struct err *e)
{
    int rc = exact_times(run, e);
    if (rc == ST_OK)
        rc = named(run, e);
    if (rc == ST_OK)
        rc = gaps(run, e);
    if (rc == ST_OK)
        rc = replans(run, e);
    return rc == ST_OK ? quality(run, e) : rc;
}
