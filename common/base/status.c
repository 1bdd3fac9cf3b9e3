/* Status codes and their translations. */
#include "common/base/status.h"

#include <errno.h>

static const struct {
    int rc;
    const char *name;
    unsigned rpc;
    int exit;
} table[] = {
    {ST_OK, "OK", 0, 0},
    {ST_EINTERNAL, "EINTERNAL", 13, 1},
    {ST_EINVAL, "EINVAL", 3, 2},
    {ST_ENOMEM, "ENOMEM", 13, 1},
    {ST_EAGAIN, "EAGAIN", 14, 6},
    {ST_ENOENT, "ENOENT", 5, 3},
    {ST_EEXIST, "EEXIST", 6, 9},
    {ST_EDENIED, "EDENIED", 7, 4},
    {ST_ETRUST, "ETRUST", 16, 5},
    {ST_EUNREACH, "EUNREACH", 14, 6},
    {ST_EDEADLINE, "EDEADLINE", 4, 7},
    {ST_ERESOURCE, "ERESOURCE", 8, 8},
    {ST_ECONFLICT, "ECONFLICT", 10, 9},
    {ST_EIO, "EIO", 13, 1},
    {ST_EPROTO, "EPROTO", 13, 1},
    {ST_ECLOSED, "ECLOSED", 14, 6},
    {ST_ECANCELED, "ECANCELED", 1, 1},
    {ST_ECORRUPT, "ECORRUPT", 15, 1},
    {ST_ENOTSUP, "ENOTSUP", 12, 2},
    {ST_ELIMIT, "ELIMIT", 11, 2},
    {ST_EINFEASIBLE, "EINFEASIBLE", 9, 8},
    {ST_ECONFIG, "ECONFIG", 3, 78},
};
#define N (sizeof table / sizeof *table)

const char *status_name(int rc)
{
    for (unsigned i = 0; i < N; i++)
        if (table[i].rc == rc)
            return table[i].name;
    return "E?";
}

int status_from_errno(int err)
{
    switch (err) {
    case 0:
        return ST_OK;
    case EINVAL:
        return ST_EINVAL;
    case ENOMEM:
        return ST_ENOMEM;
    case EAGAIN:
        return ST_EAGAIN;
    case ENOENT:
    case ENOTDIR:
        return ST_ENOENT;
    case EEXIST:
    case EADDRINUSE:
        return ST_EEXIST;
    case EACCES:
    case EPERM:
    case EROFS:
        return ST_EDENIED;
    case ENETUNREACH:
    case EHOSTUNREACH:
    case ECONNREFUSED:
        return ST_EUNREACH;
    case ETIMEDOUT:
        return ST_EDEADLINE;
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
        return ST_ERESOURCE;
    case EPIPE:
    case ECONNRESET:
        return ST_ECLOSED;
    case ENOSYS:
    case EOPNOTSUPP:
        return ST_ENOTSUP;
    case E2BIG:
    case ENAMETOOLONG:
    case EMSGSIZE:
    case EFBIG:
        return ST_ELIMIT;
    default:
        return ST_EIO;
    }
}

unsigned status_to_rpc(int rc)
{
    for (unsigned i = 0; i < N; i++)
        if (table[i].rc == rc)
            return table[i].rpc;
    return 2; /* UNKNOWN */
}

int status_from_rpc(unsigned code)
{
    static const int by_code[17] = {
        [0] = ST_OK,        [1] = ST_ECANCELED,   [2] = ST_EINTERNAL,  [3] = ST_EINVAL,
        [4] = ST_EDEADLINE, [5] = ST_ENOENT,      [6] = ST_EEXIST,     [7] = ST_EDENIED,
        [8] = ST_ERESOURCE, [9] = ST_EINFEASIBLE, [10] = ST_ECONFLICT, [11] = ST_ELIMIT,
        [12] = ST_ENOTSUP,  [13] = ST_EINTERNAL,  [14] = ST_EUNREACH,  [15] = ST_ECORRUPT,
        [16] = ST_ETRUST,
    };
    return code < 17 ? by_code[code] : ST_EINTERNAL;
}

int status_exit_code(int rc)
{
    for (unsigned i = 0; i < N; i++)
        if (table[i].rc == rc)
            return table[i].exit;
    return 1;
}
