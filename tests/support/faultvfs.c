#include "tests/support/faultvfs.h"

#include <sqlite3.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* SQLite gives a VFS's methods no place for a context of ours but the VFS itself, and the allocator not even
 * that: this one struct is the process's, as the allocator is. */
static struct {
    sqlite3_vfs vfs;
    sqlite3_vfs *under;
    sqlite3_io_methods io;
    sqlite3_mem_methods mem;
    atomic_int kind;
    atomic_uint n, run, seen;
    atomic_bool hit;
    _Atomic(const char *) file;
} f;

struct file {
    sqlite3_file base; /* first */
    const char *name;
    sqlite3_file *real;
};

static sqlite3_file *real(sqlite3_file *p)
{
    return ((struct file *)p)->real;
}

static bool fails(enum fault_kind kind, const char *name)
{
    const char *only = atomic_load(&f.file);
    int armed = atomic_load(&f.kind);
    if (armed != (int)kind && !(armed == FAULT_FULL && kind == FAULT_WRITE))
        return false;
    if (kind != FAULT_ALLOC && only && (!name || !strstr(name, only)))
        return false;
    unsigned i = atomic_fetch_add(&f.seen, 1) + 1, n = atomic_load(&f.n);
    if (i < n || i >= n + atomic_load(&f.run))
        return false;
    atomic_store(&f.hit, true);
    return true;
}

static int f_close(sqlite3_file *p)
{
    struct file *x = (struct file *)p;
    int rc = x->real->pMethods ? x->real->pMethods->xClose(x->real) : SQLITE_OK;
    free(x->real);
    return rc;
}
static int f_read(sqlite3_file *p, void *b, int n, sqlite3_int64 at)
{
    return real(p)->pMethods->xRead(real(p), b, n, at);
}
static int f_write(sqlite3_file *p, const void *b, int n, sqlite3_int64 at)
{
    if (fails(FAULT_WRITE, ((struct file *)p)->name))
        return atomic_load(&f.kind) == FAULT_FULL ? SQLITE_FULL : SQLITE_IOERR_WRITE;
    return real(p)->pMethods->xWrite(real(p), b, n, at);
}
static int f_truncate(sqlite3_file *p, sqlite3_int64 n)
{
    if (fails(FAULT_WRITE, ((struct file *)p)->name))
        return SQLITE_IOERR_TRUNCATE;
    return real(p)->pMethods->xTruncate(real(p), n);
}
static int f_sync(sqlite3_file *p, int flags)
{
    if (fails(FAULT_SYNC, ((struct file *)p)->name))
        return SQLITE_IOERR_FSYNC;
    return real(p)->pMethods->xSync(real(p), flags);
}
static int f_size(sqlite3_file *p, sqlite3_int64 *n)
{
    return real(p)->pMethods->xFileSize(real(p), n);
}
static int f_lock(sqlite3_file *p, int l)
{
    return real(p)->pMethods->xLock(real(p), l);
}
static int f_unlock(sqlite3_file *p, int l)
{
    return real(p)->pMethods->xUnlock(real(p), l);
}
static int f_reserved(sqlite3_file *p, int *out)
{
    return real(p)->pMethods->xCheckReservedLock(real(p), out);
}
static int f_control(sqlite3_file *p, int op, void *arg)
{
    return real(p)->pMethods->xFileControl(real(p), op, arg);
}
static int f_sector(sqlite3_file *p)
{
    return real(p)->pMethods->xSectorSize(real(p));
}
static int f_traits(sqlite3_file *p)
{
    return real(p)->pMethods->xDeviceCharacteristics(real(p));
}
static int f_shm_map(sqlite3_file *p, int page, int size, int extend, void volatile **out)
{
    return real(p)->pMethods->xShmMap(real(p), page, size, extend, out);
}
static int f_shm_lock(sqlite3_file *p, int off, int n, int flags)
{
    return real(p)->pMethods->xShmLock(real(p), off, n, flags);
}
static void f_shm_barrier(sqlite3_file *p)
{
    real(p)->pMethods->xShmBarrier(real(p));
}
static int f_shm_unmap(sqlite3_file *p, int del)
{
    return real(p)->pMethods->xShmUnmap(real(p), del);
}

static int f_open(sqlite3_vfs *v, const char *name, sqlite3_file *p, int flags, int *out)
{
    struct file *x = (struct file *)p;
    (void)v;
    *x = (struct file){.name = name, .real = calloc(1, (size_t)f.under->szOsFile)};
    if (!x->real)
        return SQLITE_NOMEM;
    int rc = f.under->xOpen(f.under, name, x->real, flags, out);
    if (rc != SQLITE_OK) {
        free(x->real);
        return rc;
    }
    x->base.pMethods = &f.io;
    return SQLITE_OK;
}

static void *f_malloc(int n)
{
    return fails(FAULT_ALLOC, NULL) ? NULL : f.mem.xMalloc(n);
}
static void *f_realloc(void *p, int n)
{
    return fails(FAULT_ALLOC, NULL) ? NULL : f.mem.xRealloc(p, n);
}

bool faultvfs_install(void)
{
    if (sqlite3_config(SQLITE_CONFIG_GETMALLOC, &f.mem) != SQLITE_OK)
        return false;
    sqlite3_mem_methods m = f.mem;
    m.xMalloc = f_malloc;
    m.xRealloc = f_realloc;
    if (sqlite3_config(SQLITE_CONFIG_MALLOC, &m) != SQLITE_OK)
        return false;
    f.under = sqlite3_vfs_find(NULL);
    if (!f.under)
        return false;
    f.io = (sqlite3_io_methods){3,        f_close,   f_read,     f_write,       f_truncate,  f_sync,
                                f_size,   f_lock,    f_unlock,   f_reserved,    f_control,   f_sector,
                                f_traits, f_shm_map, f_shm_lock, f_shm_barrier, f_shm_unmap, NULL,
                                NULL};
    f.io.iVersion = 2; /* no mapped reads */
    f.vfs = *f.under;
    f.vfs.pNext = NULL;
    f.vfs.zName = "fault";
    f.vfs.szOsFile = (int)sizeof(struct file);
    f.vfs.xOpen = f_open;
    return sqlite3_vfs_register(&f.vfs, 1) == SQLITE_OK;
}

void faultvfs_arm(enum fault_kind kind, unsigned n, unsigned run, const char *file)
{
    atomic_store(&f.kind, FAULT_NONE);
    atomic_store(&f.n, n);
    atomic_store(&f.run, run);
    atomic_store(&f.seen, 0);
    atomic_store(&f.hit, false);
    atomic_store(&f.file, file);
    atomic_store(&f.kind, (int)kind);
}

unsigned faultvfs_seen(bool *hit)
{
    if (hit)
        *hit = atomic_load(&f.hit);
    return atomic_load(&f.seen);
}

void faultvfs_disarm(void)
{
    atomic_store(&f.kind, FAULT_NONE);
}
