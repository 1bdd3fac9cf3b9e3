/* The keeper's threads. They are told and asked under a lock that nobody holds for longer than a few
 * assignments. */
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/base/str.h"
#include "coordinator/audit/audit_priv.h"

#define WAL_PAGES 4000 /* 16 MiB: a checkpoint of it takes some ten milliseconds */
#define SEAL_NICE 5    /* a third of the CPU where a writer wants the same one; rows wait in audit.db */

struct keeper {
    char path[1024];
    unsigned hot;
    const struct log *log;
    sqlite3 *db;      /* for checkpoints; its thread's */
    sqlite3 *seal_db; /* for sealing; its thread's, NULL after a failure */
    pthread_t checkpointer, sealer;
    unsigned threads;     /* how many of them run */
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;
    bool closing, checkpointed, has_sealed, seal_failed;
    bool handed; /* the writer has what was sealed and has not said what became of it */
    int wal_pages;
    unsigned closed;
    struct seal_result sealed;
};

static bool wal_due(const struct keeper *k)
{
    return k->wal_pages >= WAL_PAGES && !k->checkpointed;
}

static bool seal_due(const struct keeper *k)
{
    return k->closed > k->hot && !k->has_sealed && !k->handed && !k->seal_failed;
}

/* Called without the lock. */
static void checkpoint(struct keeper *k)
{
    int left = 0, done = 0;
    int rc = sqlite3_wal_checkpoint_v2(k->db, "main", SQLITE_CHECKPOINT_PASSIVE, &left, &done);
    pthread_mutex_lock(&k->lock);
    k->wal_pages = 0;
    k->checkpointed = rc == SQLITE_OK;
    pthread_mutex_unlock(&k->lock);
    if (rc != SQLITE_OK && rc != SQLITE_BUSY)
        LOG_E(k->log, "audit", "checkpoint of the WAL failed code=%d text=\"%s\"", rc, sqlite3_errmsg(k->db));
}

static bool stop_sealing(void *arg)
{
    struct keeper *k = arg;
    pthread_mutex_lock(&k->lock);
    bool closing = k->closing;
    pthread_mutex_unlock(&k->lock);
    return closing;
}

/* The oldest closed segment that is still in the file. ST_ENOENT: none. */
static int find(struct keeper *k, struct segment *out, struct err *e)
{
    struct segment *v = NULL;
    size_t n = 0, i = 0;
    int rc = k->seal_db ? ST_OK : seal_open(&k->seal_db, k->path, e);
    if (rc == ST_OK)
        rc = segment_list(k->seal_db, &v, &n, e);
    while (rc == ST_OK && i < n && v[i].file[0])
        i++;
    if (rc == ST_OK && (i == n || !v[i].last))
        rc = ST_ENOENT;
    if (rc == ST_OK)
        *out = v[i];
    free(v);
    return rc;
}

static void seal(struct keeper *k)
{
    struct segment s;
    struct seal_result r = {0};
    struct err e = {.code = ST_OK};
    int rc = find(k, &s, &e);
    if (rc == ST_OK)
        rc = seal_segment(k->seal_db, k->path, &s, stop_sealing, k, &r, &e);
    if (rc < 0) {
        db_close(k->seal_db);
        k->seal_db = NULL;
    }
    pthread_mutex_lock(&k->lock);
    k->has_sealed = rc == ST_OK;
    k->seal_failed = rc < 0; /* until more closed segments are told of, or the next start */
    k->sealed = r;
    bool closing = k->closing;
    pthread_mutex_unlock(&k->lock);
    if (rc < 0 && rc != ST_ENOENT && !closing)
        LOG_E(k->log, "audit", "sealing failed, its rows stay in audit.db status=%s text=\"%s\"",
              status_name(rc), e.text);
}

static void *run_checkpoints(void *arg)
{
    struct keeper *k = arg;
    pthread_mutex_lock(&k->lock);
    while (!k->closing) {
        if (!wal_due(k)) {
            pthread_cond_wait(&k->wake, &k->lock);
            continue;
        }
        pthread_mutex_unlock(&k->lock);
        checkpoint(k);
        pthread_mutex_lock(&k->lock);
    }
    pthread_mutex_unlock(&k->lock);
    return NULL;
}

static void *run_sealing(void *arg)
{
    struct keeper *k = arg;
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), SEAL_NICE); /* of this thread; only a courtesy */
    pthread_mutex_lock(&k->lock);
    while (!k->closing) {
        if (!seal_due(k)) {
            pthread_cond_wait(&k->wake, &k->lock);
            continue;
        }
        pthread_mutex_unlock(&k->lock);
        seal(k);
        pthread_mutex_lock(&k->lock);
    }
    pthread_mutex_unlock(&k->lock);
    db_close(k->seal_db);
    return NULL;
}

int keeper_new(struct keeper **out, const char *path, unsigned hot, const struct log *log, struct err *e)
{
    struct keeper *k = calloc(1, sizeof *k);
    if (!k || !str_copy(k->path, sizeof k->path, path)) {
        free(k);
        return err_set(e, ST_ENOMEM, "%s: no memory for its keeper, or the path is too long", path);
    }
    k->hot = hot;
    k->log = log;
    pthread_mutex_init(&k->lock, NULL);
    pthread_cond_init(&k->wake, NULL);
    int rc = sqlite3_open_v2(path, &k->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK) {
        rc = db_fail(k->db, rc, "opening for checkpoints", e);
        keeper_free(k);
        return rc;
    }
    int on = 1;
    sqlite3_file_control(k->db, "main", SQLITE_FCNTL_PERSIST_WAL, &on);
    int err = pthread_create(&k->checkpointer, NULL, run_checkpoints, k);
    k->threads += !err;
    if (!err)
        err = pthread_create(&k->sealer, NULL, run_sealing, k);
    k->threads += !err;
    if (err) {
        keeper_free(k);
        return err_errno(e, err, "%s: cannot start its keeper's threads", path);
    }
    *out = k;
    return ST_OK;
}

void keeper_free(struct keeper *k)
{
    if (!k)
        return;
    pthread_mutex_lock(&k->lock);
    k->closing = true;
    pthread_cond_broadcast(&k->wake);
    pthread_mutex_unlock(&k->lock);
    if (k->threads > 0)
        pthread_join(k->checkpointer, NULL);
    if (k->threads > 1)
        pthread_join(k->sealer, NULL);
    pthread_cond_destroy(&k->wake);
    pthread_mutex_destroy(&k->lock);
    db_close(k->db);
    free(k);
}

void keeper_tell(struct keeper *k, int wal_pages, unsigned closed)
{
    pthread_mutex_lock(&k->lock);
    if (closed > k->closed)
        k->seal_failed = false;
    k->wal_pages = wal_pages;
    k->closed = closed;
    if (wal_due(k) || seal_due(k))
        pthread_cond_broadcast(&k->wake);
    pthread_mutex_unlock(&k->lock);
}

bool keeper_sealed(struct keeper *k, struct seal_result *out)
{
    pthread_mutex_lock(&k->lock);
    bool yes = k->has_sealed;
    if (yes)
        *out = k->sealed;
    k->handed = k->handed || yes;
    k->has_sealed = false;
    pthread_mutex_unlock(&k->lock);
    return yes;
}

void keeper_dropped(struct keeper *k)
{
    pthread_mutex_lock(&k->lock);
    k->handed = false;
    pthread_mutex_unlock(&k->lock);
}

bool keeper_checkpointed(struct keeper *k)
{
    pthread_mutex_lock(&k->lock);
    bool yes = k->checkpointed;
    k->checkpointed = false;
    pthread_mutex_unlock(&k->lock);
    return yes;
}
