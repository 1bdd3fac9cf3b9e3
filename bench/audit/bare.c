#include "bench/audit/bare.h"

#include <poll.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/bench.h"
#include "common/base/clock.h"
#include "common/base/port.h"

static double now_s(void)
{
    return (double)clock_ns(clock_system()) / 1e9;
}

void bench_row(uint64_t i, int64_t base_us, struct row_text *t, struct audit_event *e)
{
    static const int types[] = {
        EV_DEVICE_LIST,    EV_MEMORY_COPY_TO_DEVICE, EV_MEMORY_COPY_FROM_DEVICE,    EV_COMPUTE_EXECUTE,
        EV_LAYER_VERIFIED, EV_NODE_CONNECTED,        EV_SYSTEM_BACKEND_INITIALIZED, EV_LAYER_FETCHED};
    uint64_t h = i * 0x9E3779B97F4A7C15u;
    h ^= h >> 29;
    snprintf(t->who, sizeof t->who, "user/u%04u", (unsigned)(h % 1600));
    snprintf(t->dev, sizeof t->dev, "node%02u/cuda:%u", (unsigned)(h >> 16) % 40, (unsigned)(h >> 24) % 8);
    snprintf(t->job, sizeof t->job, "job-%06u", (unsigned)(i / 500 % 100000));
    snprintf(t->meta, sizeof t->meta,
             "{\"bytes\":%u,\"handle\":%u,\"us\":%u,\"kernel\":\"gemm_f16_tn\",\"digest\":\"%016llx\"}",
             (unsigned)(h >> 8) & 0xFFFFFF, (unsigned)i & 0xFFFF, (unsigned)(h >> 40) & 0xFFFF,
             (unsigned long long)h);
    *e = event_make(types[h % 8], h % 997 == 0 ? EVENT_FAILURE : EVENT_SUCCESS,
                    base_us + (int64_t)i * ROW_STEP_US);
    e->principal = t->who;
    e->device = t->dev;
    e->node = "node07";
    e->session = "s-0001";
    e->job = h % 4 == 0 ? t->job : "";
    e->operation = "memory.copy";
    e->meta = t->meta;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bare_percentile(double *v, size_t n, double p)
{
    if (!n)
        return 0;
    qsort(v, n, sizeof *v, compare);
    size_t i = (size_t)(p * (double)n);
    return v[i < n ? i : n - 1];
}

void bare_port_wait(struct port *p, int ms)
{
    struct pollfd fd = {.fd = port_fd(p), .events = POLLIN};
    if (poll(&fd, 1, ms) > 0)
        port_drain(p);
}

static int fail(sqlite3 *db, const char *what, struct err *e)
{
    return err_set(e, ST_EIO, "the bare %s loop: %s", what, db ? sqlite3_errmsg(db) : "no database");
}

static int open_fresh(const char *dir, const char *schema, sqlite3 **db, struct err *e)
{
    char path[300];
    snprintf(path, sizeof path, "%s/bare.db", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/bare.db-wal", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/bare.db-shm", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/bare.db", dir);
    if (sqlite3_open(path, db) != SQLITE_OK ||
        sqlite3_exec(*db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=16000",
                     NULL, NULL, NULL) != SQLITE_OK ||
        sqlite3_exec(*db, schema, NULL, NULL, NULL) != SQLITE_OK)
        return fail(*db, "SQLite", e);
    return ST_OK;
}

static void bind_row(sqlite3_stmt *st, uint64_t i, const struct audit_event *ev)
{
    sqlite3_bind_int64(st, 1, (int64_t)i + 1);
    sqlite3_bind_int64(st, 2, ev->time_us);
    sqlite3_bind_int(st, 3, ev->type);
    sqlite3_bind_int(st, 4, ev->severity);
    sqlite3_bind_int(st, 5, ev->result);
    for (int k = 0; k < 7; k++)
        sqlite3_bind_int64(st, 6 + k, (int64_t)((i * 2654435761u >> k) % 1600));
    sqlite3_bind_text(st, 13, ev->meta, -1, SQLITE_STATIC);
}

int bare_ingest(const char *dir, uint64_t n, unsigned batch, double *rate, uint64_t *bytes, struct err *e)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *st = NULL;
    int64_t pages = 0;
    int rc = open_fresh(
        dir,
        "CREATE TABLE t(id INTEGER PRIMARY KEY,ts_us INTEGER,event INTEGER,severity INTEGER,outcome "
        "INTEGER,principal INTEGER,role INTEGER,node INTEGER,device INTEGER,job INTEGER,src "
        "INTEGER,resource INTEGER,meta TEXT);"
        "CREATE INDEX tp ON t(principal); CREATE INDEX ts ON t(ts_us) WHERE severity>=3",
        &db, e);
    if (rc == ST_OK &&
        sqlite3_prepare_v2(db, "INSERT INTO t VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13)", -1, &st,
                           NULL) != SQLITE_OK)
        rc = fail(db, "insert", e);
    double start = now_s();
    for (uint64_t i = 0; rc == ST_OK && i < n; i++) {
        struct row_text t;
        struct audit_event ev;
        bench_row(i, 1700000000000000, &t, &ev);
        if (i % batch == 0)
            sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
        bind_row(st, i, &ev);
        if (sqlite3_step(st) != SQLITE_DONE)
            rc = fail(db, "insert", e);
        sqlite3_reset(st);
        if ((i % batch == batch - 1 || i + 1 == n) &&
            sqlite3_exec(db, "COMMIT", NULL, NULL, NULL) != SQLITE_OK)
            rc = fail(db, "insert", e);
    }
    *rate = (double)n / (now_s() - start);
    sqlite3_finalize(st);
    st = NULL;
    if (sqlite3_prepare_v2(db, "SELECT page_count*4096 FROM pragma_page_count", -1, &st, NULL) == SQLITE_OK &&
        sqlite3_step(st) == SQLITE_ROW)
        pages = sqlite3_column_int64(st, 0);
    *bytes = (uint64_t)pages;
    sqlite3_finalize(st);
    sqlite3_close(db);
    return rc;
}

/* ---- acknowledgements ---- */

#define WAITERS_MAX 256

struct acks {
    sqlite3 *db;
    struct port *port;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    unsigned waiting, size;
    bool end, bad;
    struct port_item done;
    unsigned done_n;
    uint64_t total;
};

static void acked(struct port_item *it)
{
    struct acks *a = (struct acks *)(void *)((char *)it - offsetof(struct acks, done));
    pthread_mutex_lock(&a->lock); /* each waiter comes again at once */
    a->total += a->done_n;
    a->waiting += a->done_n;
    a->done_n = 0;
    pthread_cond_signal(&a->wake);
    pthread_mutex_unlock(&a->lock);
}

static void *ack_thread(void *arg)
{
    struct acks *a = arg;
    sqlite3_stmt *st = NULL;
    uint8_t *blob = calloc(1, a->size);
    bool bad = sqlite3_prepare_v2(a->db, "INSERT INTO t(b) VALUES(?1)", -1, &st, NULL) != SQLITE_OK || !blob;
    pthread_mutex_lock(&a->lock);
    while (!a->end && !bad) {
        while (!a->waiting && !a->end)
            pthread_cond_wait(&a->wake, &a->lock);
        unsigned n = a->waiting;
        a->waiting = 0;
        pthread_mutex_unlock(&a->lock);
        sqlite3_exec(a->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
        for (unsigned i = 0; i < n && !bad; i++) {
            sqlite3_bind_blob(st, 1, blob, (int)a->size, SQLITE_STATIC);
            bad = sqlite3_step(st) != SQLITE_DONE;
            sqlite3_reset(st);
        }
        bad = sqlite3_exec(a->db, "COMMIT", NULL, NULL, NULL) != SQLITE_OK || bad;
        pthread_mutex_lock(&a->lock);
        a->done_n = n;
        if (n)
            port_post(a->port, &a->done);
    }
    a->bad = bad;
    pthread_mutex_unlock(&a->lock);
    sqlite3_finalize(st);
    free(blob);
    return NULL;
}

int bare_acks(const char *dir, unsigned waiters, unsigned size, double seconds, double *rate, struct err *e)
{
    struct acks a = {.waiting = waiters, .size = size, .done = {.run = acked}};
    pthread_t th;
    int rc =
        open_fresh(dir, "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT,b BLOB NOT NULL)", &a.db, e);
    if (rc == ST_OK && port_new(&a.port) < 0)
        rc = err_set(e, ST_ENOMEM, "no port for the bare loop");
    if (rc < 0) {
        sqlite3_close(a.db);
        return rc;
    }
    pthread_mutex_init(&a.lock, NULL);
    pthread_cond_init(&a.wake, NULL);
    double start = now_s();
    if (pthread_create(&th, NULL, ack_thread, &a)) {
        rc = err_set(e, ST_ERESOURCE, "no thread for the bare loop");
    } else {
        while (now_s() - start < seconds)
            bare_port_wait(a.port, 20);
        *rate = (double)a.total / (now_s() - start);
        pthread_mutex_lock(&a.lock);
        a.end = true;
        pthread_cond_signal(&a.wake);
        pthread_mutex_unlock(&a.lock);
        pthread_join(th, NULL);
        if (a.bad)
            rc = fail(a.db, "group commit", e);
    }
    port_free(a.port);
    pthread_cond_destroy(&a.wake);
    pthread_mutex_destroy(&a.lock);
    sqlite3_close(a.db);
    return rc;
}

double bare_emit_p99(uint64_t n)
{
    enum { SLOTS = 32768, SLOT = 384 };
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    uint8_t *ring = malloc((size_t)SLOTS * SLOT), enc[EVENT_ENCODED_MAX];
    double *ns = calloc(n, sizeof *ns), p99 = 0;
    size_t len = 0;
    struct row_text t;
    struct audit_event ev;
    bench_row(7, 1700000000000000, &t, &ev);
    if (ring && ns && event_encode_into(&ev, enc, &len) == ST_OK) {
        memset(ring, 0, (size_t)SLOTS * SLOT);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t t0 = clock_ns(clock_system());
            pthread_mutex_lock(&lock);
            memcpy(ring + i % SLOTS * SLOT, enc, len < SLOT ? len : SLOT);
            pthread_mutex_unlock(&lock);
            ns[i] = (double)(clock_ns(clock_system()) - t0);
        }
        p99 = bare_percentile(ns, n, 0.99);
    }
    free(ring);
    free(ns);
    return p99;
}

int bare_scan(const char *path, double *rate, struct err *e)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *st = NULL;
    uint64_t n = 0, sum = 0;
    int rc = ST_OK, step;
    double start = now_s();
    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL) != SQLITE_OK ||
        sqlite3_prepare_v2(
            db,
            "SELECT id,ts_us,event,severity,result,principal,device,node,session,job,operation,error,"
            "meta FROM audit_000001 ORDER BY id",
            -1, &st, NULL) != SQLITE_OK)
        rc = fail(db, "scan", e);
    while (rc == ST_OK && (step = sqlite3_step(st)) != SQLITE_DONE) {
        if (step != SQLITE_ROW) {
            rc = fail(db, "scan", e);
            break;
        }
        for (int i = 0; i < 11; i++)
            sum += (uint64_t)sqlite3_column_int64(st, i);
        sum += (uint64_t)sqlite3_column_bytes(st, 11) + (uint64_t)sqlite3_column_bytes(st, 12);
        n++;
    }
    *rate = sum ? (double)n / (now_s() - start) : 0;
    sqlite3_finalize(st);
    sqlite3_close(db);
    return rc;
}
