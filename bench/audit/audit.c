/*
 * The audit area. Every case beside the ceiling that SQLite alone reaches with the same rows on the same
 * disk; ours and the ceiling take turns, and figures are medians over the rounds.
 */
#include <errno.h>
#include <ftw.h>
#include <pthread.h>
#include <sched.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/audit/bare.h"
#include "bench/bench.h"
#include "coordinator/audit/audit.h"
#include "coordinator/store/store.h"

#define BASE_US 1700000000000000
#define ROUNDS 3
#define WAITERS 64

struct world {
    /* The store's clock in these runs tells the time of the row that is being written, so that its own rows
     * belong to the same week as the others. */
    struct clock clock;
    _Atomic uint64_t at_row;
    struct bench_run *run;
    struct err *e;
    char dir[300], audit[340];
    bool quick;
};

static uint64_t mono(void *arg)
{
    (void)arg;
    return clock_ns(clock_system());
}

static int64_t wall(void *arg)
{
    return BASE_US + (int64_t)((struct world *)arg)->at_row * ROW_STEP_US;
}

static double now_s(void)
{
    return (double)clock_ns(clock_system()) / 1e9;
}

static void put(struct world *w, const char *name, double ours, double peer)
{
    bench_put(w->run, "audit", name, ours, peer);
}

static int rm_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

/* TMPDIR, or the directory the bench runs in: /tmp is memory on many machines, and memory is no disk. */
static int world_dir(struct world *w, const char *what)
{
    const char *top = getenv("TMPDIR");
    if (w->dir[0])
        nftw(w->dir, rm_one, 8, FTW_DEPTH | FTW_PHYS);
    snprintf(w->dir, sizeof w->dir, "%s/strata-bench-%s-XXXXXX", top ? top : ".", what);
    if (!mkdtemp(w->dir)) {
        w->dir[0] = 0;
        return err_errno(w->e, errno, "cannot make a directory in %s", top ? top : ".");
    }
    snprintf(w->audit, sizeof w->audit, "%s/audit.db", w->dir);
    return ST_OK;
}

static int emit(struct world *w, struct audit *a, uint64_t i)
{
    struct row_text t;
    struct audit_event ev;
    bench_row(i, BASE_US, &t, &ev);
    w->at_row = i;
    int rc;
    while ((rc = audit_emit(a, &ev)) == ST_EAGAIN)
        usleep(500); /* as a session that is not read from */
    return rc;
}

static int emit_all(struct world *w, struct audit *a, uint64_t from, uint64_t n)
{
    int rc = ST_OK;
    for (uint64_t i = from; rc == ST_OK && i < from + n; i++)
        rc = emit(w, a, i);
    return rc;
}

/* n rows through the ring into the file, durable, chained; rows/s. */
static int ingest(struct world *w, struct audit *a, uint64_t from, uint64_t n, double *rate)
{
    w->at_row = from; /* segments have an age: the first must not begin before its rows */
    double start = now_s();
    int rc = emit_all(w, a, from, n);
    if (rc < 0)
        return err_set(w->e, rc, "audit: a row was not taken: %s", status_name(rc));
    rc = audit_flush_wait(a, w->e);
    *rate = (double)n / (now_s() - start);
    return rc;
}

static int ingest_case(struct world *w)
{
    double ours[ROUNDS], peer[ROUNDS];
    uint64_t n = w->quick ? 150000 : 1000000, bytes = 0;
    int rc = ST_OK;
    for (int i = 0; i < ROUNDS && rc == ST_OK; i++) {
        struct audit *a = NULL;
        rc = world_dir(w, "ingest");
        if (rc == ST_OK)
            rc = bare_ingest(w->dir, n, 1000, &peer[i], &bytes, w->e);
        if (rc == ST_OK)
            rc = audit_open(&a, &(struct audit_config){.path = w->audit, .clock = &w->clock}, NULL, w->e);
        if (rc == ST_OK)
            rc = ingest(w, a, 0, n, &ours[i]);
        audit_close(a);
    }
    if (rc == ST_OK) {
        double o = bench_median(ours, ROUNDS), p = bench_median(peer, ROUNDS);
        put(w, "ingest", o, p);
    }
    /* What the verifier reads is the last round's file. */
    struct audit_verdict v;
    double best[ROUNDS], scan[ROUNDS];
    for (int i = 0; i < ROUNDS && rc == ST_OK; i++) {
        double start = now_s();
        rc = audit_verify(w->audit, NULL, &v, w->e);
        best[i] = (double)v.rows / (now_s() - start);
        if (rc == ST_OK)
            rc = bare_scan(w->audit, &scan[i], w->e);
    }
    if (rc == ST_OK)
        put(w, "verify", bench_median(best, ROUNDS), bench_median(scan, ROUNDS));
    return rc;
}

/* The first ten segments against those after the hundredth, with sealing beside the latter. */
static int segments_case(struct world *w)
{
    unsigned per = w->quick ? 8000 : 50000;
    struct audit *a = NULL;
    double first = 0, last = 0, middle;
    struct audit_config cfg = {.path = w->audit, .clock = &w->clock, .segment_rows = per};
    int rc = world_dir(w, "segments");
    if (rc == ST_OK)
        rc = audit_open(&a, &cfg, NULL, w->e);
    if (rc == ST_OK)
        rc = ingest(w, a, 0, 10ull * per, &first);
    if (rc == ST_OK)
        rc = ingest(w, a, 10ull * per, 92ull * per, &middle);
    if (rc == ST_OK)
        rc = ingest(w, a, 102ull * per, 10ull * per, &last);
    if (rc == ST_OK)
        put(w, "ingest-after-100-segments", last, first);
    audit_close(a);
    return rc;
}

static int emit_case(struct world *w)
{
    uint64_t n = w->quick ? 20000 : 100000;
    double *ns = calloc(n, sizeof *ns);
    struct audit *a = NULL;
    int rc = world_dir(w, "emit");
    if (rc == ST_OK)
        rc = audit_open(&a, &(struct audit_config){.path = w->audit, .clock = &w->clock}, NULL, w->e);
    struct row_text t;
    struct audit_event ev;
    for (uint64_t i = 0; rc == ST_OK && ns && i < n; i++) {
        bench_row(i, BASE_US, &t, &ev);
        uint64_t t0 = clock_ns(clock_system());
        int got = audit_emit(a, &ev);
        ns[i] = (double)(clock_ns(clock_system()) - t0);
        if (got < 0)
            rc = err_set(w->e, got, "audit: a row was not taken: %s", status_name(got));
        if (i % 100 == 99)
            usleep(1000); /* about 50,000 a second: what is measured is the call, not a full ring */
    }
    if (rc == ST_OK && ns)
        put(w, "emit-p99", bare_percentile(ns, n, 0.99) / 1000, bare_emit_p99(n) / 1000);
    free(ns);
    audit_close(a);
    return rc;
}

/* ---- acknowledgements: transactions with one must-class event each ---- */

struct acks {
    struct store *s;
    uint64_t done;
    bool stop;
    int rc;
};

static void submit_one(struct acks *k);

static void acked(void *arg, int rc, const struct err *e)
{
    struct acks *k = arg;
    (void)e;
    k->done++;
    if (rc < 0)
        k->rc = rc;
    if (!k->stop)
        submit_one(k);
}

static void submit_one(struct acks *k)
{
    struct store_txn *t = store_txn_new();
    struct audit_event ev = event_make(EV_MEMORY_ALLOCATE, EVENT_SUCCESS, BASE_US);
    ev.principal = "user/alice";
    ev.device = "dione/cuda:0";
    ev.operation = "memory.allocate";
    ev.meta = "{\"bytes\":1048576,\"handle\":17}";
    if (t)
        store_txn_event(t, &ev);
    int rc = t ? store_submit(k->s, t, acked, k) : ST_ENOMEM;
    if (rc < 0)
        k->rc = rc;
}

static int ours_acks(struct world *w, double seconds, double *rate)
{
    char state[340];
    struct acks k = {0};
    struct audit *a = NULL;
    struct port *p = NULL;
    snprintf(state, sizeof state, "%s/state.db", w->dir);
    int rc = port_new(&p);
    if (rc == ST_OK)
        rc = store_open(&k.s, &(struct store_config){.path = state}, w->e);
    if (rc == ST_OK)
        rc = audit_open(&a, &(struct audit_config){.path = w->audit, .clock = &w->clock}, k.s, w->e);
    if (rc == ST_OK)
        rc = store_start(k.s, p, w->e);
    double start = now_s();
    for (int i = 0; i < WAITERS && rc == ST_OK; i++)
        submit_one(&k);
    while (rc == ST_OK && k.rc == ST_OK && now_s() - start < seconds)
        bare_port_wait(p, 20);
    *rate = (double)k.done / (now_s() - start);
    k.stop = true;
    if (rc == ST_OK && k.rc < 0)
        rc = err_set(w->e, k.rc, "audit: a transaction was refused: %s", status_name(k.rc));
    audit_close(a);
    store_close(k.s);
    if (p)
        port_drain(p);
    port_free(p);
    return rc;
}

static int acks_case(struct world *w)
{
    double ours[ROUNDS], peer[ROUNDS], seconds = w->quick ? 0.7 : 3;
    int rc = ST_OK;
    for (int i = 0; i < ROUNDS && rc == ST_OK; i++) {
        rc = world_dir(w, "acks");
        if (rc == ST_OK)
            rc = bare_acks(w->dir, WAITERS, 110, seconds, &peer[i], w->e);
        if (rc == ST_OK)
            rc = ours_acks(w, seconds, &ours[i]);
    }
    if (rc == ST_OK)
        put(w, "durable-acks-64-waiters", bench_median(ours, ROUNDS), bench_median(peer, ROUNDS));
    return rc;
}

/* ---- a large store: queries and panels while the writer runs ---- */

struct load {
    struct world *w;
    struct audit *a;
    uint64_t next;
    volatile bool stop;
};

static void *keep_writing(void *arg)
{
    struct load *l = arg;
    while (!l->stop) {
        for (int i = 0; i < 50; i++)
            (void)emit(l->w, l->a, l->next++);
        usleep(2500); /* 20,000 rows a second */
    }
    return NULL;
}

static int nothing(void *arg, const struct audit_event *e)
{
    (void)e;
    ++*(unsigned *)arg;
    return 0;
}

static void principal_of(unsigned i, char who[24])
{
    snprintf(who, 24, "user/u%04u", i * 7919 % 1600);
}

static int query_case(struct world *w, int64_t now_us)
{
    unsigned n = w->quick ? 300 : 2000, rows = 0;
    double *ours = calloc(n, sizeof *ours), *peer = calloc(n, sizeof *peer);
    sqlite3 *db = NULL;
    sqlite3_stmt *st = NULL;
    int rc = ours && peer ? ST_OK : err_set(w->e, ST_ENOMEM, "no memory for the queries");
    struct audit_reader *reader = NULL; /* as the coordinator keeps one */
    if (rc == ST_OK)
        rc = audit_reader_open(&reader, w->audit, w->e);
    /* The peer: the same question to the view, as a dashboard puts it. */
    if (rc == ST_OK &&
        (sqlite3_open_v2(w->audit, &db, SQLITE_OPEN_READONLY, NULL) != SQLITE_OK ||
         sqlite3_prepare_v2(db,
                            "SELECT id,time_us,type,result,device,meta FROM v_audit WHERE principal=?1 AND "
                            "time_us>=?2 ORDER BY id DESC LIMIT 100",
                            -1, &st, NULL) != SQLITE_OK))
        rc = err_set(w->e, ST_EIO, "the view cannot be queried: %s", sqlite3_errmsg(db));
    int64_t since_us = now_us - 3600ll * 1000000;
    for (unsigned i = 0; rc == ST_OK && i < n; i++) {
        char who[24];
        struct audit_filter f = AUDIT_FILTER_ALL;
        principal_of(i, who);
        f.principal = who;
        f.since_us = since_us;
        f.descending = true;
        f.limit = 100;
        uint64_t t0 = clock_ns(clock_system());
        rc = audit_reader_query(reader, &f, nothing, &rows, w->e);
        ours[i] = (double)(clock_ns(clock_system()) - t0) / 1000;
    }
    /* Afterwards, for it reads so much that the next of ours would find every cache cold. */
    for (unsigned i = 0; rc == ST_OK && i < n / 10; i++) {
        char who[24];
        principal_of(i, who);
        uint64_t t0 = clock_ns(clock_system());
        sqlite3_bind_text(st, 1, who, -1, SQLITE_STATIC);
        sqlite3_bind_int64(st, 2, since_us);
        while (sqlite3_step(st) == SQLITE_ROW)
            ;
        sqlite3_reset(st);
        peer[i] = (double)(clock_ns(clock_system()) - t0) / 1000;
    }
    if (rc == ST_OK && !rows)
        rc = err_set(w->e, ST_EINTERNAL, "the queries found nothing");
    if (rc == ST_OK)
        put(w, "query-principal-hour-p99", bare_percentile(ours, n, 0.99),
            bare_percentile(peer, n / 10, 0.99));
    audit_reader_close(reader);
    sqlite3_finalize(st);
    sqlite3_close(db);
    free(ours);
    free(peer);
    return rc;
}

/* What the shipped dashboard asks; the times are bound. */
static const char *const panels[] = {
    "SELECT time, type, sum(n) FROM v_rate_1m WHERE time_us BETWEEN ?1 AND ?2 GROUP BY time, type ORDER BY "
    "time",
    "SELECT time_us, time, principal, operation, error FROM v_denied WHERE time_us BETWEEN ?1 AND ?2 ORDER "
    "BY time_us "
    "DESC "
    "LIMIT 100",
    "SELECT time_us, time, type, error FROM v_critical WHERE time_us BETWEEN ?1 AND ?2 ORDER BY time_us DESC "
    "LIMIT "
    "100",
    "SELECT severity, sum(n) FROM v_rate_1h WHERE time_us BETWEEN ?1 AND ?2 GROUP BY severity",
    "SELECT time_us, time, device, type, result, principal FROM v_audit WHERE time_us BETWEEN ?1 AND ?2 "
    "ORDER BY "
    "time_us DESC "
    "LIMIT 1000",
    "SELECT principal, count(*) FROM (SELECT time_us, principal FROM v_audit WHERE time_us BETWEEN ?1 AND ?2 "
    "ORDER BY "
    "time_us "
    "DESC LIMIT 5000) GROUP BY principal ORDER BY 2 DESC LIMIT 10",
    "SELECT * FROM v_health",
};

static int panels_case(struct world *w, int64_t now_us)
{
    double worst = 0, raw = 0;
    sqlite3 *db = NULL;
    sqlite3_stmt *st = NULL;
    if (sqlite3_open_v2(w->audit, &db, SQLITE_OPEN_READONLY, NULL) != SQLITE_OK)
        return err_set(w->e, ST_EIO, "%s cannot be opened", w->audit);
    int rc = ST_OK;
    for (size_t i = 0; rc == ST_OK && i <= sizeof panels / sizeof *panels; i++) {
        double ms[5];
        /* The last is the peer: the first panel counted from the rows. */
        const char *sql =
            i < sizeof panels / sizeof *panels
                ? panels[i]
                : "SELECT time_us/60000000, type, count(*) FROM v_audit WHERE time_us BETWEEN ?1 AND ?2 "
                  "GROUP BY 1, 2";
        for (int k = 0; k < 5 && rc == ST_OK; k++) {
            uint64_t t0 = clock_ns(clock_system());
            if (sqlite3_prepare_v2(db, sql, -1, &st, NULL) != SQLITE_OK) {
                rc = err_set(w->e, ST_EIO, "a panel cannot be asked for: %s", sqlite3_errmsg(db));
                break;
            }
            sqlite3_bind_int64(st, 1, now_us - 24ll * 3600 * 1000000);
            sqlite3_bind_int64(st, 2, now_us);
            while (sqlite3_step(st) == SQLITE_ROW)
                ;
            sqlite3_finalize(st);
            ms[k] = (double)(clock_ns(clock_system()) - t0) / 1e6;
        }
        double m = bench_median(ms, 5);
        if (i == sizeof panels / sizeof *panels)
            raw = m;
        else if (m > worst)
            worst = m;
    }
    if (rc == ST_OK)
        put(w, "dashboard-panel-slowest", worst, raw);
    sqlite3_close(db);
    return rc;
}

static int large_case(struct world *w)
{
    struct load l = {.w = w};
    pthread_t th;
    double rate;
    uint64_t n = w->quick ? 400000 : 10000000;
    unsigned per = w->quick ? 40000 : 1000000;
    int rc = world_dir(w, "large");
    if (rc == ST_OK)
        rc = audit_open(&l.a,
                        &(struct audit_config){.path = w->audit, .clock = &w->clock, .segment_rows = per},
                        NULL, w->e);
    if (rc == ST_OK)
        rc = ingest(w, l.a, 0, n, &rate);
    int64_t now_us = BASE_US + (int64_t)n * ROW_STEP_US;
    l.next = n;
    if (rc == ST_OK && pthread_create(&th, NULL, keep_writing, &l) == 0) {
        rc = query_case(w, now_us);
        if (rc == ST_OK)
            rc = panels_case(w, now_us);
        l.stop = true;
        pthread_join(th, NULL);
    }
    audit_close(l.a);
    return rc;
}

/* Bytes of a sealed segment by its rows. */
static int sealed_case(struct world *w)
{
    struct audit *a = NULL;
    unsigned per = w->quick ? 40000 : 500000;
    double rate, bare = 0;
    uint64_t bytes = 0;
    char path[400];
    struct stat st;
    int rc = world_dir(w, "sealed");
    if (rc == ST_OK)
        rc = bare_ingest(w->dir, per, 1000, &bare, &bytes, w->e);
    if (rc == ST_OK)
        rc = audit_open(&a,
                        &(struct audit_config){
                            .path = w->audit, .clock = &w->clock, .segment_rows = per, .hot_segments = 1},
                        NULL, w->e);
    if (rc == ST_OK)
        rc = ingest(w, a, 0, 2ull * per + 20000, &rate);
    snprintf(path, sizeof path, "%s/segments/000001.db", w->dir);
    for (int i = 0; rc == ST_OK && i < 6000 && stat(path, &st) < 0; i++)
        usleep(10000);
    audit_close(a);
    if (rc < 0)
        return rc;
    struct audit_verdict v;
    rc = audit_verify(path, NULL, &v, w->e);
    if (rc == ST_OK)
        put(w, "bytes-per-sealed-row", (double)st.st_size / (double)v.rows, (double)bytes / per);
    return rc;
}

int bench_audit(struct bench_run *run, struct err *e)
{
    struct world w = {.run = run, .e = e, .quick = run->o.quick};
    w.clock = (struct clock){mono, wall, &w};
    static const struct {
        int (*run)(struct world *);
        const char *names[3];
    } all[] = {
        {ingest_case, {"ingest", "verify"}},
        {segments_case, {"ingest-after-100-segments"}},
        {emit_case, {"emit-p99"}},
        {acks_case, {"durable-acks-64-waiters"}},
        {sealed_case, {"bytes-per-sealed-row"}},
        {large_case, {"query-principal-hour-p99", "dashboard-panel-slowest"}},
    };
    int rc = ST_OK;
    for (size_t i = 0; i < sizeof all / sizeof *all && rc == ST_OK; i++)
        if (bench_wants(run, "audit", all[i].names))
            rc = all[i].run(&w);
    if (w.dir[0])
        nftw(w.dir, rm_one, 8, FTW_DEPTH | FTW_PHYS);
    return rc;
}
