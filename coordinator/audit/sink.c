/*
 * Sinks: the console, a file of JSON lines, syslog. Convenience copies: the rows are in audit.db already, so
 * nothing here may hold the writer up or fail it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include "coordinator/audit/audit_priv.h"

#define QUEUE_MAX (8u << 20)

struct sink {
    int echo_fd, lines_fd;
    bool syslog;
    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;
    struct buf queue; /* i64 id | u32 length | encoded event … */
    uint64_t dropped;
    bool closing;
};

static void write_all(int fd, const void *p, size_t n)
{
    const uint8_t *b = p;
    for (size_t at = 0; at < n;) {
        ssize_t w = write(fd, b + at, n - at);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return;
        at += (size_t)w;
    }
}

static int priority(int severity)
{
    static const int p[] = {LOG_DEBUG, LOG_INFO, LOG_WARNING, LOG_ERR, LOG_CRIT};
    return severity >= 0 && severity <= EVENT_CRITICAL ? p[severity] : LOG_NOTICE;
}

static void print(struct sink *s, const struct buf *q, uint64_t dropped)
{
    struct buf all = {0}, line = {0};
    bool files = s->echo_fd > 0 || s->lines_fd >= 0;
    if (dropped && files)
        (void)buf_printf(&all, "{\"dropped\":%llu,\"why\":\"this copy could not be written fast enough\"}\n",
                         (unsigned long long)dropped);
    for (size_t at = 0; at < q->len;) {
        int64_t id;
        uint32_t n;
        struct audit_event e;
        memcpy(&id, q->data + at, 8);
        memcpy(&n, q->data + at + 8, 4);
        line.len = 0;
        if (event_decode(q->data + at + 12, n, &e) == ST_OK) {
            e.id = id;
            if (event_json(&e, &line) == ST_OK && s->syslog)
                syslog(LOG_AUTHPRIV | priority(e.severity), "%s", buf_cstr(&line));
            if (files && buf_append(&line, "\n", 1) == ST_OK)
                (void)!buf_append(&all, line.data, line.len);
        }
        at += 12 + n;
    }
    if (s->echo_fd > 0)
        write_all(s->echo_fd, all.data, all.len);
    if (s->lines_fd >= 0)
        write_all(s->lines_fd, all.data, all.len);
    buf_fini(&all);
    buf_fini(&line);
}

static void *run(void *arg)
{
    struct sink *s = arg;
    struct buf mine = {0};
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->queue.len && !s->closing)
            pthread_cond_wait(&s->wake, &s->lock);
        if (!s->queue.len)
            break;
        struct buf full = s->queue;
        s->queue = mine; /* the emptied one comes back into use */
        uint64_t dropped = s->dropped;
        s->dropped = 0;
        pthread_mutex_unlock(&s->lock);
        print(s, &full, dropped);
        full.len = 0;
        mine = full;
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    buf_fini(&mine);
    return NULL;
}

int sink_new(struct sink **out, const struct audit_config *cfg, struct err *e)
{
    *out = NULL;
    if (cfg->echo_fd <= 0 && !cfg->lines_path && !cfg->syslog)
        return ST_OK;
    struct sink *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, ST_ENOMEM, "audit: no memory for its sinks");
    s->echo_fd = cfg->echo_fd;
    s->syslog = cfg->syslog;
    s->lines_fd = -1;
    s->queue.limit = QUEUE_MAX;
    int rc = ST_OK;
    if (cfg->lines_path) {
        s->lines_fd = open(cfg->lines_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
        if (s->lines_fd < 0)
            rc = err_errno(e, errno, "audit: the file of JSON lines %s cannot be opened", cfg->lines_path);
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    int err = rc == ST_OK ? pthread_create(&s->thread, NULL, run, s) : 0;
    if (err)
        rc = err_errno(e, err, "audit: cannot start the thread of its sinks");
    if (rc < 0) {
        if (s->lines_fd >= 0)
            close(s->lines_fd);
        free(s);
        return rc;
    }
    *out = s;
    return ST_OK;
}

void sink_free(struct sink *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    if (s->lines_fd >= 0)
        close(s->lines_fd);
    buf_fini(&s->queue);
    free(s);
}

void sink_rows(struct sink *s, int64_t first, const struct batch_item *items, size_t n)
{
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < n; i++) {
        int64_t id = first + (int64_t)i;
        uint32_t len = (uint32_t)items[i].n;
        s->queue.limit = QUEUE_MAX;
        if (buf_reserve(&s->queue, 12 + items[i].n) < 0) {
            s->dropped++;
            continue;
        }
        (void)!buf_append(&s->queue, &id, 8);
        (void)!buf_append(&s->queue, &len, 4);
        (void)!buf_append(&s->queue, items[i].p, items[i].n);
    }
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}
