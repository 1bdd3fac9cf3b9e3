/*
 * Is the file that is being written still the one at its path? SQLite writes on into a file that was removed
 * or replaced, and every row would be gone with it.
 */
#include <stdio.h>
#include <sys/stat.h>

#include "coordinator/audit/audit_priv.h"

static int64_t wal_inode(const char *path)
{
    char wal[1100];
    struct stat st;
    int n = snprintf(wal, sizeof wal, "%s-wal", path);
    return n > 0 && n < (int)sizeof wal && stat(wal, &st) == 0 ? (int64_t)st.st_ino : 0;
}

int place_check(struct batch_writer *w, const char *path, struct err *e)
{
    int moved = 0;
    int64_t wal = wal_inode(path);
    if (!w->wal_inode)
        w->wal_inode = wal;
    if (sqlite3_file_control(w->db, "main", SQLITE_FCNTL_HAS_MOVED, &moved) != SQLITE_OK)
        moved = 0; /* a VFS that cannot tell */
    if (!moved && wal == w->wal_inode)
        return ST_OK;
    return err_reason(
        e, ST_ECORRUPT, "FILE_REPLACED",
        "%s%s was removed or replaced while it was being written; put it, or a copy that holds "
        "the same %lld rows, back: it goes on by itself then. To give that chain up, restart the "
        "coordinator",
        path, moved ? "" : "-wal", (long long)w->size);
}
