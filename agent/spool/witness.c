/* Heads of the coordinator's chain, kept where the coordinator cannot reach them. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/spool/deliver.h"
#include "common/base/fs.h"
#include "common/base/str.h"

#define MAX_BYTES (64u << 10)

/* The last whole line of text. */
static void take_last(struct witness *w, const char *text)
{
    const char *end = strrchr(text, '\n'), *p = end;
    while (p && p > text && p[-1] != '\n')
        p--;
    char head[65] = "", sig[129] = "", id[33] = "";
    long long size = 0, t = 0;
    size_t n = 0;
    if (!p || sscanf(p, "%lld %64[0-9a-f] %lld %32s %128[0-9a-f]", &size, head, &t, id, sig) < 3 ||
        hex_decode(w->last.head, 32, head, &n) < 0 || n != 32)
        return;
    w->last.size = size;
    w->last.time_us = t;
    str_copy(w->last.key_id, sizeof w->last.key_id, id);
}

int witness_open(struct witness *w, const char *path, const struct log *log, struct err *e)
{
    *w = (struct witness){.log = log};
    if (!str_copy(w->path, sizeof w->path, path))
        return err_set(e, ST_ELIMIT, "the path of the audit witness is too long");
    if (!fs_exists(path))
        return ST_OK;
    struct buf b = {0};
    int rc = fs_read(path, 2 * MAX_BYTES, &b, e);
    if (rc == ST_OK)
        take_last(w, buf_cstr(&b));
    buf_fini(&b);
    return rc;
}

static void append(struct witness *w, const struct witness_head *h)
{
    char line[400], head[65], sig[129], old[1100];
    struct stat st;
    hex_encode(head, h->head, 32);
    hex_encode(sig, h->sig, h->sig_len);
    int n = snprintf(line, sizeof line, "%lld %s %lld %s %s\n", (long long)h->size, head,
                     (long long)h->time_us, h->key_id[0] ? h->key_id : "-", sig[0] ? sig : "-");
    if (stat(w->path, &st) == 0 && st.st_size > MAX_BYTES) { /* the one before is kept too */
        snprintf(old, sizeof old, "%s.1", w->path);
        (void)!rename(w->path, old);
    }
    int fd = open(w->path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, line, (size_t)n) != n)
        LOG_E(w->log, "witness", "a head of the audit chain was not kept path=%s error=\"%s\"", w->path,
              strerror(errno));
    if (fd >= 0)
        close(fd);
}

void witness_take(struct witness *w, const struct witness_head *h)
{
    bool same = h->size == w->last.size;
    if (h->size <= 0 || h->sig_len > sizeof h->sig || (same && memcmp(h->head, w->last.head, 32) == 0))
        return;
    if (h->size < w->last.size || same)
        LOG_E(
            w->log, "witness",
            "the coordinator's audit chain was rewritten or set back: size=%lld was %lld; run 'strata audit "
            "verify --head %s'",
            (long long)h->size, (long long)w->last.size, w->path);
    append(w, h);
    w->last = *h;
}
