/* The keeper's thread. It is told and asked under a lock that nobody holds for longer than a few assignments.
 */
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/audit/audit_priv.h"

#define WAL_PAGES 4000 /* 16 MiB: a checkpoint of it takes some ten milliseconds */

struct keeper {
    char path[1024];
    unsigned hot;
    const struct log *log;
    sqlite3 *db; /* for checkpoints */
    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;
    bool closing, checkpointed, has_sealed, seal_failed;
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
    return k->closed > k->hot && !k->has_sealed && !k->seal_failed;
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

/* Between the chunks of a copy. */
static int pause_sealing(void *arg)
{
    struct keeper *k = arg;
    pthread_mutex_lock(&k->lock);
    bool closing = k->closing, wal = wal_due(k);
    pthread_mutex_unlock(&k->lock);
    if (wal)
        checkpoint(k);
    return closing;
}

/* The oldest closed segment that is still in the file. ST_ENOENT: none. */
static int find(struct keeper *k, struct segment *out, struct err *e)
{
    sqlite3 *db = NULL;
    struct segment *v = NULL;
    size_t n = 0, i = 0;
    int rc = db_open_ro(&db, k->path, &audit_db_kind, e);
    if (rc == ST_OK)
        rc = segment_list(db, &v, &n, e);
    while (rc == ST_OK && i < n && v[i].file[0])
        i++;
    if (rc == ST_OK && (i == n || !v[i].last))
        rc = ST_ENOENT;
    if (rc == ST_OK)
        *out = v[i];
    free(v);
    db_close(db);
    return rc;
}

static void seal(struct keeper *k)
{
    struct segment s;
    struct seal_result r = {0};
    struct err e = {.code = ST_OK};
    int rc = find(k, &s, &e);
    if (rc == ST_OK)
        rc = seal_segment(k->path, &s, pause_sealing, k, &r, &e);
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

static void *run(void *arg)
{
    struct keeper *k = arg;
    pthread_mutex_lock(&k->lock);
    for (;;) {
        while (!k->closing && !wal_due(k) && !seal_due(k))
            pthread_cond_wait(&k->wake, &k->lock);
        if (k->closing)
            break;
        bool wal = wal_due(k);
        pthread_mutex_unlock(&k->lock);
        if (wal)
            checkpoint(k);
        else
            seal(k);
        pthread_mutex_lock(&k->lock);
    }
    pthread_mutex_unlock(&k->lock);
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
    int rc = sqlite3_open_v2(path, &k->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK) {
        rc = db_fail(k->db, rc, "opening for checkpoints", e);
        db_close(k->db);
        free(k);
        return rc;
    }
    int on = 1;
    sqlite3_file_control(k->db, "main", SQLITE_FCNTL_PERSIST_WAL, &on);
    pthread_mutex_init(&k->lock, NULL);
    pthread_cond_init(&k->wake, NULL);
    int err = pthread_create(&k->thread, NULL, run, k);
    if (err) {
        pthread_cond_destroy(&k->wake);
        pthread_mutex_destroy(&k->lock);
        db_close(k->db);
        free(k);
        return err_errno(e, err, "%s: cannot start its keeper's thread", path);
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
    pthread_cond_signal(&k->wake);
    pthread_mutex_unlock(&k->lock);
    pthread_join(k->thread, NULL);
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
        pthread_cond_signal(&k->wake);
    pthread_mutex_unlock(&k->lock);
}

bool keeper_sealed(struct keeper *k, struct seal_result *out)
{
    pthread_mutex_lock(&k->lock);
    bool yes = k->has_sealed;
    if (yes)
        *out = k->sealed;
    k->has_sealed = false;
    if (yes && k->closed)
        k->closed--; /* it is asked for once: the writer drops it before it tells again */
    pthread_mutex_unlock(&k->lock);
    return yes;
}

bool keeper_checkpointed(struct keeper *k)
{
    pthread_mutex_lock(&k->lock);
    bool yes = k->checkpointed;
    k->checkpointed = false;
    pthread_mutex_unlock(&k->lock);
    return yes;
}
