/*
 * gpu alloc|put|get|copy|exec|free|stat|show: device sessions from the command line. A session must outlive
 * the command that began it, so its ticket is kept in DIR/sessions/NODE (0600) and the session lingers
 * between commands: for five minutes, or what --linger says. There is one for each node and identity; `gpu
 * free NODE` ends it.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/fs.h"
#include "common/base/str.h"
#include "coordinator/ctl/ctl.h"
#include "strata/devices.h"
#include "strata/v1/devices.pb-c.h"

#define LINGER_DEFAULT_NS (300 * NS_PER_S)
#define RENEW_BELOW_US (60ll * 1000000)

/* ---- names ---- */

/* "node/rest" into node[64]; *rest points behind the slash. Without a slash rest is NULL. */
static int split(const char *word, char node[64], const char **rest)
{
    const char *slash = strchr(word, '/');
    size_t n = slash ? (size_t)(slash - word) : strlen(word);
    if (n == 0 || n > 63 || (slash && !slash[1]))
        return -1;
    memcpy(node, word, n);
    node[n] = 0;
    *rest = slash ? slash + 1 : NULL;
    return str_ident_ok(node, 63) ? 0 : -1;
}

static int handle_arg(const char *word, char node[64], uint8_t handle[STRATA_HANDLE_LEN])
{
    const char *hex;
    size_t n = 0;
    if (split(word, node, &hex) < 0 || !hex || hex_decode(handle, STRATA_HANDLE_LEN, hex, &n) < 0 ||
        n != STRATA_HANDLE_LEN)
        return ctl_usage("'%s' is no handle: NODE/ and 32 hex digits, as gpu alloc prints it", word);
    return 0;
}

static void handle_text(char out[128], const char *node, const uint8_t *handle)
{
    char hex[2 * STRATA_HANDLE_LEN + 1];
    hex_encode(hex, handle, STRATA_HANDLE_LEN);
    snprintf(out, 128, "%s/%s", node, hex);
}

static int bytes_arg(const char *word, const char *name, uint64_t *out)
{
    if (word && parse_bytes(word, out) < 0)
        return ctl_usage("%s: '%s' is no number of bytes; 4096, 512MiB and 2G are", name, word);
    return 0;
}

static int duration_arg(const char *word, const char *name, uint64_t *out)
{
    if (word && parse_duration_ns(word, out) < 0)
        return ctl_usage("%s: '%s' is no time; 30s, 5m and 1h are", name, word);
    return 0;
}

/* ---- the kept session ---- */

static int saved_path(const struct ctl *c, const char *node, char out[4096])
{
    char dir[4096];
    if (fs_join(dir, sizeof dir, c->dir, "sessions") < 0 || fs_join(out, 4096, dir, node) < 0)
        return ctl_fail(c, &(struct err){.code = ST_ELIMIT, .text = "the path of --dir is too long"});
    return 0;
}

static int keep(const struct ctl *c, const struct strata_devices *d)
{
    char path[4096], dir[4096], text[STRATA_SAVED_MAX];
    struct err e = {0};
    int x = saved_path(c, strata_devices_node(d), path);
    if (x)
        return x;
    if (fs_join(dir, sizeof dir, c->dir, "sessions") < 0 || fs_mkdirs(dir, 0700, &e) < 0 ||
        (strata_devices_save(d, text, sizeof text) < 0 &&
         err_set(&e, ST_EINTERNAL, "the session cannot be kept") < 0) ||
        fs_write_atomic(path, text, strlen(text), 0600, &e) < 0)
        return ctl_fail(c, &e);
    return 0;
}

static void forget(const struct ctl *c, const char *node)
{
    char path[4096];
    if (saved_path(c, node, path) == 0)
        unlink(path);
}

/* 0 and *d, or *d NULL when none is kept or it is over; else an exit code after saying why. */
static int take_up(struct ctl *c, const char *node, struct strata_devices **d)
{
    char path[4096];
    struct buf b = {0};
    struct err e;
    struct strata_error se = {0};
    *d = NULL;
    int x = ctl_connect(c);
    if (x || (x = saved_path(c, node, path)))
        return x;
    if (!fs_exists(path))
        return 0;
    if (fs_read(path, STRATA_SAVED_MAX, &b, &e) < 0) {
        buf_fini(&b);
        return ctl_fail(c, &e);
    }
    int rc = strata_devices_attach(d, c->client, (const char *)b.data, b.len, &se);
    buf_fini(&b);
    if (rc == ST_EDENIED || rc == ST_ETRUST || rc == ST_ECLOSED || rc == ST_ECORRUPT) {
        forget(c, node); /* over: expired, revoked, or its agent restarted */
        *d = NULL;
        return 0;
    }
    if (rc < 0)
        return ctl_client_fail(c, &se);
    if (strata_devices_expires_us(*d) - clock_wall_us(clock_system()) < RENEW_BELOW_US &&
        strata_devices_renew(*d, 0, &se) == ST_OK)
        return keep(c, *d);
    return 0;
}

static int need(struct ctl *c, const char *node, struct strata_devices **d)
{
    struct err e;
    int x = take_up(c, node, d);
    if (x || *d)
        return x;
    err_reason(&e, ST_ENOENT, "NO_SESSION",
               "there is no device session on node %s, or it is over and what it held is free; "
               "'strata gpu alloc' begins one",
               node);
    return ctl_fail(c, &e);
}

static int done(struct strata_devices *d, int x)
{
    strata_devices_leave(d);
    return x;
}

static int failed(struct ctl *c, struct strata_devices *d, const struct strata_error *e)
{
    return done(d, ctl_client_fail(c, e));
}

/* ---- alloc, free ---- */

int ctl_gpu_alloc(struct ctl *c, int argc, char **argv)
{
    const char *limit_w = NULL, *ttl_w = NULL, *linger_w = NULL, *device;
    const struct ctl_opt opts[] = {{.name = "limit", .value = &limit_w},
                                   {.name = "ttl", .value = &ttl_w},
                                   {.name = "linger", .value = &linger_w}};
    uint64_t bytes = 0, limit = 0, ttl = 0, linger = LINGER_DEFAULT_NS;
    char node[64], text[128];
    uint8_t handle[STRATA_HANDLE_LEN];
    struct strata_devices *d;
    struct strata_error e;
    if (ctl_parse(argc, argv, opts, 3) != 2 || split(argv[0], node, &device) < 0 || !device)
        return ctl_misuse(c, "gpu alloc takes a device and a size");
    int x = bytes_arg(argv[1], "BYTES", &bytes);
    if (x || (x = bytes_arg(limit_w, "--limit", &limit)) || (x = duration_arg(ttl_w, "--ttl", &ttl)) ||
        (x = duration_arg(linger_w, "--linger", &linger)) || (x = take_up(c, node, &d)))
        return x;
    if (!d) {
        const struct strata_devices_opts o = {
            .limit_bytes = limit ? limit : bytes, .ttl_ns = ttl, .linger_ns = linger};
        if (strata_devices_open(&d, c->client, node, &o, &e) < 0)
            return ctl_client_fail(c, &e);
        if ((x = keep(c, d)))
            return done(d, x);
    }
    if (strata_devices_alloc(d, device, bytes, handle, &e) < 0)
        return failed(c, d, &e);
    handle_text(text, node, handle);
    if (c->json)
        x = ctl_print_json("strata.gpu.buffer.v1",
                           json_pack("{s:s,s:s,s:s,s:I,s:s,s:I}", "handle", text, "node", node, "device",
                                     device, "bytes", (json_int_t)bytes, "session", strata_devices_session(d),
                                     "expires_us", (json_int_t)strata_devices_expires_us(d)));
    else
        puts(text);
    return done(d, x);
}

int ctl_gpu_free(struct ctl *c, int argc, char **argv)
{
    char node[64];
    uint8_t handle[STRATA_HANDLE_LEN];
    const char *rest;
    struct strata_devices *d;
    struct strata_error e;
    uint64_t freed = 0;
    if (ctl_parse(argc, argv, NULL, 0) != 1 || split(argv[0], node, &rest) < 0)
        return ctl_misuse(c, "gpu free takes a handle, or a node to end the whole session there");
    int x = rest ? handle_arg(argv[0], node, handle) : 0;
    if (x || (x = need(c, node, &d)))
        return x;
    if (rest) {
        if (strata_devices_free(d, handle, &e) < 0)
            return failed(c, d, &e);
        strata_devices_leave(d);
        return c->json ? ctl_print_json("strata.gpu.freed.v1", json_pack("{s:s}", "handle", argv[0])) : 0;
    }
    if (strata_devices_end(d, &freed, &e) < 0)
        return ctl_client_fail(c, &e);
    forget(c, node);
    return c->json ? ctl_print_json("strata.gpu.freed.v1",
                                    json_pack("{s:s,s:I}", "node", node, "freed_bytes", (json_int_t)freed))
                   : 0;
}

/* ---- put, get, copy ---- */

struct file {
    struct ctl *c;
    int fd;
    const char *what;
    int error;
};

static ssize_t file_read(void *arg, void *p, size_t n)
{
    struct file *f = arg;
    ssize_t r;
    do
        r = read(f->fd, p, n);
    while (r < 0 && errno == EINTR);
    f->error = r < 0 ? errno : 0;
    return r;
}

static int file_write(void *arg, const void *p, size_t n)
{
    struct file *f = arg;
    for (size_t at = 0; at < n;) {
        ssize_t r = write(f->fd, (const char *)p + at, n - at);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0) {
            f->error = errno;
            return -1;
        }
        at += (size_t)r;
    }
    return 0;
}

static void file_progress(void *arg, uint64_t now, uint64_t total)
{
    struct file *f = arg;
    ctl_bar(f->c, f->what, now, total, "");
}

static int print_copy(struct ctl *c, const char *handle, uint64_t offset, uint64_t bytes,
                      const uint8_t sha[32])
{
    char hex[65] = "";
    if (!c->json)
        return 0;
    if (sha)
        hex_encode(hex, sha, 32);
    return ctl_print_json("strata.gpu.copy.v1",
                          json_pack("{s:s,s:I,s:I,s:s}", "handle", handle, "offset", (json_int_t)offset,
                                    "bytes", (json_int_t)bytes, "sha256", hex));
}

static int file_failed(struct ctl *c, const char *path, int error)
{
    struct err e;
    err_errno(&e, error, "%s", path);
    return ctl_fail(c, &e);
}

int ctl_gpu_put(struct ctl *c, int argc, char **argv)
{
    const char *offset_w = NULL;
    const struct ctl_opt opts[] = {{.name = "offset", .value = &offset_w}};
    uint64_t offset = 0;
    char node[64];
    uint8_t handle[STRATA_HANDLE_LEN], sha[32];
    struct strata_devices *d;
    struct strata_error e;
    struct stat sb;
    if (ctl_parse(argc, argv, opts, 1) != 2)
        return ctl_misuse(c, "gpu put takes a handle and a file");
    int x = handle_arg(argv[0], node, handle);
    if (x || (x = bytes_arg(offset_w, "--offset", &offset)))
        return x;
    struct file f = {.c = c, .fd = open(argv[1], O_RDONLY | O_CLOEXEC), .what = "put"};
    if (f.fd < 0 || fstat(f.fd, &sb) < 0)
        return file_failed(c, argv[1], errno);
    if ((x = need(c, node, &d))) {
        close(f.fd);
        return x;
    }
    const struct strata_transfer t = {.read = file_read, .progress = file_progress, .arg = &f, .sha256 = sha};
    int rc = strata_devices_put(d, handle, offset, (uint64_t)sb.st_size, &t, &e);
    ctl_bar_end(c);
    close(f.fd);
    if (rc < 0 && f.error)
        return done(d, file_failed(c, argv[1], f.error));
    if (rc < 0)
        return failed(c, d, &e);
    return done(d, print_copy(c, argv[0], offset, (uint64_t)sb.st_size, sha));
}

/* What the session holds, of which the caller frees the message. */
static int state(struct ctl *c, struct strata_devices *d, Strata__V1__DeviceSession **out)
{
    Strata__V1__SessionStateRequest q = STRATA__V1__SESSION_STATE_REQUEST__INIT;
    struct strata_error e;
    return strata_devices_call(d, &strata__v1__devices__descriptor, "Session", &q.base, c->timeout_ns,
                               (ProtobufCMessage **)out, &e) < 0
               ? ctl_client_fail(c, &e)
               : 0;
}

static int size_of(struct ctl *c, struct strata_devices *d, const uint8_t *handle, uint64_t *bytes)
{
    Strata__V1__DeviceSession *s;
    struct err e;
    int x = state(c, d, &s);
    if (x)
        return x;
    *bytes = 0;
    for (size_t i = 0; i < s->n_buffers; i++)
        if (s->buffers[i]->handle.len == STRATA_HANDLE_LEN &&
            memcmp(s->buffers[i]->handle.data, handle, STRATA_HANDLE_LEN) == 0)
            *bytes = s->buffers[i]->bytes;
    protobuf_c_message_free_unpacked(&s->base, NULL);
    if (*bytes)
        return 0;
    err_reason(&e, ST_ENOENT, "NO_HANDLE", "the session has no such handle: freed before, or never its own");
    return ctl_fail(c, &e);
}

int ctl_gpu_get(struct ctl *c, int argc, char **argv)
{
    const char *offset_w = NULL, *bytes_w = NULL;
    const struct ctl_opt opts[] = {{.name = "offset", .value = &offset_w},
                                   {.name = "bytes", .value = &bytes_w}};
    uint64_t offset = 0, bytes = 0, all = 0;
    char node[64];
    uint8_t handle[STRATA_HANDLE_LEN], sha[32];
    struct strata_devices *d;
    struct strata_error e;
    if (ctl_parse(argc, argv, opts, 2) != 2)
        return ctl_misuse(c, "gpu get takes a handle and a file");
    int x = handle_arg(argv[0], node, handle);
    if (x || (x = bytes_arg(offset_w, "--offset", &offset)) || (x = bytes_arg(bytes_w, "--bytes", &bytes)) ||
        (x = need(c, node, &d)))
        return x;
    if (!bytes && (x = size_of(c, d, handle, &all)))
        return done(d, x);
    if (!bytes)
        bytes = offset < all ? all - offset : 0;
    struct file f = {
        .c = c, .fd = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), .what = "get"};
    if (f.fd < 0)
        return done(d, file_failed(c, argv[1], errno));
    const struct strata_transfer t = {
        .write = file_write, .progress = file_progress, .arg = &f, .sha256 = sha};
    int rc = strata_devices_get(d, handle, offset, bytes, &t, &e);
    ctl_bar_end(c);
    if (close(f.fd) < 0 && rc == ST_OK)
        return done(d, file_failed(c, argv[1], errno));
    if (rc < 0) {
        unlink(argv[1]); /* a part of it is worse than nothing */
        return f.error ? done(d, file_failed(c, argv[1], f.error)) : failed(c, d, &e);
    }
    return done(d, print_copy(c, argv[0], offset, bytes, sha));
}

int ctl_gpu_copy(struct ctl *c, int argc, char **argv)
{
    const char *bytes_w = NULL, *from_w = NULL, *to_w = NULL;
    const struct ctl_opt opts[] = {{.name = "bytes", .value = &bytes_w},
                                   {.name = "from-offset", .value = &from_w},
                                   {.name = "to-offset", .value = &to_w}};
    uint64_t bytes = 0, from_off = 0, to_off = 0, all;
    char from_node[64], to_node[64];
    uint8_t from[STRATA_HANDLE_LEN], to[STRATA_HANDLE_LEN];
    struct strata_devices *a, *b = NULL;
    struct strata_error e;
    if (ctl_parse(argc, argv, opts, 3) != 2)
        return ctl_misuse(c, "gpu copy takes two handles");
    int x = handle_arg(argv[0], from_node, from);
    if (x || (x = handle_arg(argv[1], to_node, to)) || (x = bytes_arg(bytes_w, "--bytes", &bytes)) ||
        (x = bytes_arg(from_w, "--from-offset", &from_off)) ||
        (x = bytes_arg(to_w, "--to-offset", &to_off)) || (x = need(c, from_node, &a)))
        return x;
    bool same = strcmp(from_node, to_node) == 0;
    if (!same && (x = need(c, to_node, &b)))
        return done(a, x);
    if (!bytes && (x = size_of(c, a, from, &all)) == 0)
        bytes = from_off < all ? all - from_off : 0;
    if (x == 0 && strata_devices_copy(a, from, from_off, same ? a : b, to, to_off, bytes, UINT64_MAX, &e) < 0)
        x = ctl_client_fail(c, &e);
    else if (x == 0)
        x = print_copy(c, argv[1], to_off, bytes, NULL);
    strata_devices_leave(b);
    return done(a, x);
}

/* ---- exec ---- */

#define MAX_SPANS 8u
#define MAX_SCALARS 16u
#define MAX_CODE (1u << 20)

/* "HANDLE", "HANDLE:OFFSET:BYTES"; without a range the whole buffer. */
static int span_arg(struct ctl *c, struct strata_devices *d, const char *word, Strata__V1__Span *s,
                    uint8_t handle[STRATA_HANDLE_LEN])
{
    char name[160], node[64];
    const char *colon = strchr(word, ':');
    int x = str_copy(name, sizeof name, word) ? 0 : ctl_usage("--span '%.40s…' is too long", word);
    if (colon && x == 0 && (size_t)(colon - word) < sizeof name)
        name[colon - word] = 0;
    if (x || (x = handle_arg(name, node, handle)))
        return x;
    if (strcmp(node, strata_devices_node(d)) != 0)
        return ctl_usage("--span %s lies on another node than the device", name);
    s->handle = (ProtobufCBinaryData){STRATA_HANDLE_LEN, handle};
    if (!colon)
        return size_of(c, d, handle, &s->bytes);
    const char *second = strchr(colon + 1, ':');
    if (!second || !str_copy(name, sizeof name, colon + 1))
        return ctl_usage("--span takes HANDLE or HANDLE:OFFSET:BYTES");
    name[second - colon - 1] = 0;
    x = bytes_arg(name, "--span OFFSET", &s->offset);
    return x ? x : bytes_arg(second + 1, "--span BYTES", &s->bytes);
}

/* "17" is an integer, "1.5f" a float by its bits. */
static int scalar_arg(const char *word, uint64_t *out)
{
    char *end;
    size_t n = strlen(word);
    errno = 0;
    if (n > 1 && word[n - 1] == 'f' && !str_starts(word, "0x")) {
        float f = strtof(word, &end);
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        *out = bits;
        if (end == word + n - 1 && !errno)
            return 0;
    } else {
        *out = strtoull(word, &end, 0);
        if (n && !*end && !errno && word[0] != '-')
            return 0;
    }
    return ctl_usage("--scalar '%s' is no number; 17, 0xff and 1.5f are", word);
}

/* "64", "64,2" or "64,2,1". */
static int three_arg(const char *word, const char *name, uint32_t out[3], size_t *n)
{
    *n = 0;
    for (const char *p = word; p && *n < 3;) {
        char *end;
        unsigned long v = strtoul(p, &end, 10);
        if (*p < '0' || *p > '9' || v == 0 || v > UINT32_MAX || (*end && *end != ','))
            break;
        out[(*n)++] = (uint32_t)v;
        if (!*end)
            return 0;
        p = end + 1;
    }
    return word ? ctl_usage("%s: '%s' is not up to three numbers above 0, as in 64,2,1", name, word) : 0;
}

/* All that gpu exec was told, and the request made of it. */
struct exec {
    const char *span_w[MAX_SPANS], *scalar_w[MAX_SCALARS], *code_w, *groups_w, *threads_w;
    size_t nspans, nscalars;
    uint8_t handle[MAX_SPANS][STRATA_HANDLE_LEN];
    uint64_t scalar[MAX_SCALARS];
    uint32_t groups[3], threads[3];
    Strata__V1__Span span[MAX_SPANS], *sp[MAX_SPANS];
    struct buf code;
    Strata__V1__ExecuteRequest q;
};

static int exec_fill(struct ctl *c, struct strata_devices *d, struct exec *x)
{
    int rc = 0;
    struct err e;
    for (size_t i = 0; i < x->nspans && rc == 0; i++) {
        strata__v1__span__init(&x->span[i]);
        x->sp[i] = &x->span[i];
        rc = span_arg(c, d, x->span_w[i], &x->span[i], x->handle[i]);
    }
    for (size_t i = 0; i < x->nscalars && rc == 0; i++)
        rc = scalar_arg(x->scalar_w[i], &x->scalar[i]);
    if (rc == 0 && x->code_w && fs_read(x->code_w, MAX_CODE, &x->code, &e) < 0)
        rc = ctl_fail(c, &e);
    if (rc == 0 && x->code_w && !x->code.len)
        rc = ctl_usage("--code %s is empty", x->code_w);
    x->q.spans = x->sp;
    x->q.n_spans = x->nspans;
    x->q.scalars = x->scalar;
    x->q.n_scalars = x->nscalars;
    x->q.groups = x->groups;
    x->q.threads = x->threads;
    x->q.code = (ProtobufCBinaryData){x->code.len, x->code.data};
    return rc;
}

static int exec_run(struct ctl *c, struct strata_devices *d, const struct exec *x, const char *device)
{
    struct strata_error e;
    ProtobufCMessage *m;
    char value[32];
    if (strata_devices_call(d, &strata__v1__compute__descriptor, "Execute", &x->q.base, c->timeout_ns, &m,
                            &e) < 0)
        return ctl_client_fail(c, &e);
    snprintf(value, sizeof value, "%016" PRIx64, ((const Strata__V1__ExecuteReply *)m)->value);
    protobuf_c_message_free_unpacked(m, NULL);
    if (c->json)
        return ctl_print_json("strata.gpu.exec.v1", json_pack("{s:s,s:s,s:s}", "device", device, "kernel",
                                                              x->q.kernel, "value", value));
    if (!x->code_w && !strcmp(x->q.kernel, "checksum"))
        puts(value);
    return 0;
}

int ctl_gpu_exec(struct ctl *c, int argc, char **argv)
{
    struct exec x = {.q = STRATA__V1__EXECUTE_REQUEST__INIT};
    const struct ctl_opt opts[] = {
        {.name = "span", .list = x.span_w, .n = &x.nspans, .list_max = MAX_SPANS},
        {.name = "scalar", .list = x.scalar_w, .n = &x.nscalars, .list_max = MAX_SCALARS},
        {.name = "code", .value = &x.code_w},
        {.name = "groups", .value = &x.groups_w},
        {.name = "threads", .value = &x.threads_w}};
    const char *device;
    char node[64];
    struct strata_devices *d;
    if (ctl_parse(argc, argv, opts, 5) != 2 || split(argv[0], node, &device) < 0 || !device)
        return ctl_misuse(c, "gpu exec takes a device and a kernel");
    if ((x.groups_w || x.threads_w) && !x.code_w)
        return ctl_usage("--groups and --threads are for a kernel of one's own: --code FILE");
    int rc = three_arg(x.groups_w, "--groups", x.groups, &x.q.n_groups);
    if (rc || (rc = three_arg(x.threads_w, "--threads", x.threads, &x.q.n_threads)) ||
        (rc = need(c, node, &d)))
        return rc;
    x.q.device = (char *)device;
    x.q.kernel = argv[1];
    rc = exec_fill(c, d, &x);
    if (rc == 0)
        rc = exec_run(c, d, &x, argv[0]);
    buf_fini(&x.code);
    return done(d, rc);
}

/* ---- stat, show ---- */

int ctl_gpu_stat(struct ctl *c, int argc, char **argv)
{
    static const char *const col[] = {"HANDLE", "DEVICE", "BYTES>"};
    char node[64], text[128], used[16], limit[16];
    const char *rest;
    struct strata_devices *d;
    Strata__V1__DeviceSession *s;
    if (ctl_parse(argc, argv, NULL, 0) != 1 || split(argv[0], node, &rest) < 0)
        return ctl_misuse(c, "gpu stat takes a node: what one's session there holds");
    int x = need(c, node, &d);
    if (x || (x = state(c, d, &s)))
        return x ? x : done(d, x);
    json_t *a = json_array();
    struct table *t = table_new(col, 3);
    for (size_t i = 0; i < s->n_buffers; i++) {
        const Strata__V1__Buffer *b = s->buffers[i];
        handle_text(text, node, b->handle.data);
        json_array_append_new(a, json_pack("{s:s,s:s,s:I}", "handle", text, "device", b->device, "bytes",
                                           (json_int_t)b->bytes));
        table_cell(t, "%s", text);
        table_cell(t, "%s", b->device);
        table_cell(t, "%" PRIu64, b->bytes);
    }
    if (c->json) {
        x = ctl_print_json("strata.gpu.session.v1",
                           json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:O}", "session", s->session, "node", s->node,
                                     "principal", s->principal, "limit_bytes", (json_int_t)s->limit_bytes,
                                     "used_bytes", (json_int_t)s->used_bytes, "expires_us",
                                     (json_int_t)s->expires_us, "buffers", a));
    } else {
        fmt_bytes(used, s->used_bytes);
        fmt_bytes(limit, s->limit_bytes);
        printf("session  %s of %s on %s, %s of %s used\n", s->session, s->principal, s->node, used, limit);
        table_print(t, stdout);
    }
    json_decref(a);
    table_free(t);
    protobuf_c_message_free_unpacked(&s->base, NULL);
    return done(d, x);
}

/* A session that may only look: it takes nothing from the quota and ends with the command. */
static int looking(struct ctl *c, const char *node, struct strata_devices **d)
{
    struct strata_error e;
    const struct strata_devices_opts o = {.limit_bytes = 0};
    int x = take_up(c, node, d);
    if (x || *d)
        return x;
    return strata_devices_open(d, c->client, node, &o, &e) < 0 ? ctl_client_fail(c, &e) : 0;
}

/* null where the device has no such sensor, or one may not read it. */
static json_t *sensor(struct ctl *c, struct strata_devices *d, const char *device, const char *method)
{
    Strata__V1__MonitorRequest q = STRATA__V1__MONITOR_REQUEST__INIT;
    struct strata_error e;
    ProtobufCMessage *m;
    q.device = (char *)device;
    if (strata_devices_call(d, &strata__v1__monitor__descriptor, method, &q.base, c->timeout_ns, &m, &e) < 0)
        return json_null();
    const Strata__V1__SensorReading *r = (const Strata__V1__SensorReading *)m;
    json_t *v = r->valid ? json_real(r->value) : json_null();
    protobuf_c_message_free_unpacked(m, NULL);
    return v;
}

static void print_sensor(const char *name, const json_t *v, double scale, const char *unit)
{
    if (json_is_real(v))
        printf("%-12s %.1f %s\n", name, json_real_value(v) * scale, unit);
    else
        printf("%-12s -\n", name);
}

int ctl_gpu_show(struct ctl *c, int argc, char **argv)
{
    char node[64], all[16], free_[16];
    const char *device;
    struct strata_devices *d;
    struct strata_error e;
    Strata__V1__DeviceInfoRequest q = STRATA__V1__DEVICE_INFO_REQUEST__INIT;
    ProtobufCMessage *m;
    if (ctl_parse(argc, argv, NULL, 0) != 1 || split(argv[0], node, &device) < 0 || !device)
        return ctl_misuse(c, "gpu show takes a device");
    int x = looking(c, node, &d);
    if (x)
        return x;
    q.device = (char *)device;
    if (strata_devices_call(d, &strata__v1__devices__descriptor, "Info", &q.base, c->timeout_ns, &m, &e) < 0)
        return failed(c, d, &e);
    const Strata__V1__Device *v = (const Strata__V1__Device *)m;
    json_t *t = sensor(c, d, device, "Temperature"), *p = sensor(c, d, device, "Power"),
           *k = sensor(c, d, device, "Clock");
    if (c->json) {
        x = ctl_print_json(
            "strata.gpu.device.v1",
            json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:b,s:I,s:I,s:I,s:O,s:O,s:O}", "device", argv[0],
                      "backend", v->backend, "name", v->name, "vendor", v->vendor, "driver",
                      v->driver_version, "support", v->support_level, "uuid", v->uuid, "software",
                      (int)v->software, "memory_bytes", (json_int_t)v->memory_bytes, "available_bytes",
                      (json_int_t)v->available_bytes, "compute_units", (json_int_t)v->compute_units,
                      "temperature_c", t, "power_w", p, "clock_hz", k));
    } else {
        fmt_bytes(all, v->memory_bytes);
        fmt_bytes(free_, v->available_bytes);
        printf("%-12s %s (%s)\n%-12s %s, driver %s, %s\n%-12s %s, %s free\n", "device", argv[0], v->name,
               "backend", v->backend, v->driver_version, v->support_level, "memory", all, free_);
        print_sensor("temperature", t, 1, "°C");
        print_sensor("power", p, 1, "W");
        print_sensor("clock", k, 1e-6, "MHz");
    }
    json_decref(t);
    json_decref(p);
    json_decref(k);
    protobuf_c_message_free_unpacked(m, NULL);
    return done(d, x);
}
