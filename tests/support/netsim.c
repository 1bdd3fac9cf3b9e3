/*
 * A network with known truth between network namespaces, for tests and benchmarks: host i of the command line
 * gets the address 10.77.0.i on a TUN device `sim0` in its namespace, and every packet from one host to
 * another goes through this process, which delays, loses, reorders, doubles and paces it as told. The rates
 * count IP packets. Needs root, /dev/net/tun and named namespaces (ip netns add).
 *
 * usage: netsim NAMESPACE…
 * Reads commands, one a line, and answers each with "ok" when it is in force or "error: why":
 *   link FROM TO delay_us=N jitter_us=N loss_ppm=N reorder_ppm=N dup_ppm=N rate=BITS queue_us=N mtu=N
 *     FROM and TO are numbers of hosts, 0 = all; what is not named becomes 0, which is no delay, no loss, no
 *     limit; queue_us (100000 when 0) is how much a paced link holds before it drops.
 *   count FROM TO MIN MAX
 *     Answers "ok SEEN DROPPED BYTES" of the packets of MIN to MAX bytes (to 16 bytes) since the last `link`
 * of it. Ends at the end of its input.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define HOSTS 64
#define PACKET_MAX 2048
#define HELD_MAX 65536u
#define READS 64

struct link {
    uint64_t delay_ns, jitter_ns, rate, queue_ns;
    unsigned loss_ppm, reorder_ppm, dup_ppm, mtu;
    uint32_t seen[PACKET_MAX / 16], dropped[PACKET_MAX / 16];
    uint64_t bytes;
    uint64_t free_ns, last_ns; /* when the wire is free; when the latest packet arrives */
};
struct packet {
    uint64_t due_ns, order;
    unsigned to, len;
    uint8_t p[];
};

struct net {
    int fd[HOSTS + 1], n;
    struct link link[HOSTS + 1][HOSTS + 1];
    struct packet *heap[HELD_MAX + 1]; /* 1-based, by due time */
    unsigned held;
    uint64_t order, seed;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void fail(const char *what)
{
    fprintf(stderr, "netsim: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t rnd(struct net *n, uint64_t below)
{
    n->seed ^= n->seed << 13;
    n->seed ^= n->seed >> 7;
    n->seed ^= n->seed << 17;
    return below ? (n->seed >> 16) % below : 0;
}

/* ---- the devices ---- */

static void set_up(const char *ns, int i)
{
    struct ifreq r = {.ifr_name = "sim0"};
    struct sockaddr_in *a = (struct sockaddr_in *)(void *)&r.ifr_addr;
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    a->sin_family = AF_INET;
    a->sin_addr.s_addr = htonl(0x0a4d0000u | (uint32_t)i);
    if (s < 0 || ioctl(s, SIOCSIFADDR, &r) < 0)
        fail(ns);
    a->sin_addr.s_addr = htonl(0xffffff00u);
    if (ioctl(s, SIOCSIFNETMASK, &r) < 0)
        fail(ns);
    r.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(s, SIOCSIFFLAGS, &r) < 0)
        fail(ns);
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    if (ioctl(s, SIOCSIFFLAGS, &lo) < 0)
        fail(ns);
    close(s);
}

static int open_tun(const char *ns, int i)
{
    char path[300];
    struct ifreq r = {.ifr_name = "sim0", .ifr_flags = IFF_TUN | IFF_NO_PI};
    snprintf(path, sizeof path, "/var/run/netns/%s", ns);
    int at = open(path, O_RDONLY | O_CLOEXEC);
    if (at < 0 || setns(at, CLONE_NEWNET) < 0)
        fail(path);
    close(at);
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &r) < 0)
        fail("/dev/net/tun");
    set_up(ns, i);
    return fd;
}

/* ---- packets on their way ---- */

static bool before(const struct packet *a, const struct packet *b)
{
    return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->order < b->order;
}

static void hold(struct net *n, struct packet *k)
{
    unsigned i = ++n->held;
    for (; i > 1 && before(k, n->heap[i / 2]); i /= 2)
        n->heap[i] = n->heap[i / 2];
    n->heap[i] = k;
}

static struct packet *take(struct net *n)
{
    struct packet *top = n->heap[1], *last = n->heap[n->held--];
    unsigned i = 1;
    for (unsigned c; (c = 2 * i) <= n->held; i = c) {
        if (c < n->held && before(n->heap[c + 1], n->heap[c]))
            c++;
        if (!before(n->heap[c], last))
            break;
        n->heap[i] = n->heap[c];
    }
    if (n->held)
        n->heap[i] = last;
    return top;
}

static void send_on(struct net *n, const uint8_t *p, unsigned len, unsigned to, uint64_t due)
{
    struct packet *k = n->held < HELD_MAX ? malloc(sizeof *k + len) : NULL;
    if (!k)
        return; /* full: lost, as on any wire */
    k->due_ns = due;
    k->order = n->order++;
    k->to = to;
    k->len = len;
    memcpy(k->p, p, len);
    hold(n, k);
}

static void route(struct net *n, unsigned from, const uint8_t *p, unsigned len, uint64_t now)
{
    if (len < 20 || p[0] >> 4 != 4 || p[16] != 10 || p[17] != 77 || p[18] != 0)
        return;
    unsigned to = p[19];
    if (to == 0 || (int)to > n->n || to == from)
        return;
    struct link *l = &n->link[from][to];
    l->seen[len / 16]++;
    l->bytes += len;
    l->dropped[len / 16]++; /* taken back when it was not */
    if ((l->mtu && len > l->mtu) || rnd(n, 1000000) < l->loss_ppm)
        return;
    uint64_t start = l->free_ns > now ? l->free_ns : now;
    if (l->rate) {
        if (start - now > (l->queue_ns ? l->queue_ns : 100000000ull))
            return;
        start += (uint64_t)len * 8 * 1000000000ull / l->rate;
        l->free_ns = start;
    }
    l->dropped[len / 16]--;
    uint64_t due = start + l->delay_ns + rnd(n, l->jitter_ns);
    if (rnd(n, 1000000) < l->reorder_ppm)
        due = start; /* overtakes */
    else if (due < l->last_ns)
        due = l->last_ns;
    if (due > l->last_ns)
        l->last_ns = due;
    send_on(n, p, len, to, due);
    if (rnd(n, 1000000) < l->dup_ppm)
        send_on(n, p, len, to, due);
}

static void deliver(struct net *n, uint64_t now)
{
    while (n->held && n->heap[1]->due_ns <= now) {
        struct packet *k = take(n);
        ssize_t rc = write(n->fd[k->to], k->p, k->len);
        (void)rc; /* a full queue loses it */
        free(k);
    }
}

/* ---- commands ---- */

static bool count(const struct net *n, const char *line)
{
    unsigned f, t, lo, hi, seen = 0, dropped = 0;
    if (sscanf(line, "count %u %u %u %u", &f, &t, &lo, &hi) != 4 || f < 1 || t < 1 || (int)f > n->n ||
        (int)t > n->n)
        return false;
    const struct link *l = &n->link[f][t];
    for (unsigned i = lo / 16; i <= hi / 16 && i < PACKET_MAX / 16; i++) {
        seen += l->seen[i];
        dropped += l->dropped[i];
    }
    printf("ok %u %u %llu\n", seen, dropped, (unsigned long long)l->bytes);
    return true;
}

static bool apply(struct net *n, char *line)
{
    struct link l = {0};
    char *save = NULL, *word = strtok_r(line, " \n", &save);
    char *from = strtok_r(NULL, " \n", &save), *to = strtok_r(NULL, " \n", &save);
    if (!word || strcmp(word, "link") || !from || !to)
        return false;
    while ((word = strtok_r(NULL, " \n", &save))) {
        char *eq = strchr(word, '=');
        if (!eq)
            return false;
        *eq = 0;
        uint64_t v = strtoull(eq + 1, NULL, 10);
        if (!strcmp(word, "delay_us"))
            l.delay_ns = v * 1000;
        else if (!strcmp(word, "jitter_us"))
            l.jitter_ns = v * 1000;
        else if (!strcmp(word, "queue_us"))
            l.queue_ns = v * 1000;
        else if (!strcmp(word, "rate"))
            l.rate = v;
        else if (!strcmp(word, "loss_ppm"))
            l.loss_ppm = (unsigned)v;
        else if (!strcmp(word, "reorder_ppm"))
            l.reorder_ppm = (unsigned)v;
        else if (!strcmp(word, "dup_ppm"))
            l.dup_ppm = (unsigned)v;
        else if (!strcmp(word, "mtu"))
            l.mtu = (unsigned)v;
        else
            return false;
    }
    int f = atoi(from), t = atoi(to);
    if (f < 0 || t < 0 || f > n->n || t > n->n)
        return false;
    for (int i = 1; i <= n->n; i++)
        for (int j = 1; j <= n->n; j++)
            if ((!f || f == i) && (!t || t == j))
                n->link[i][j] = l;
    return true;
}

/* False at the end of the input. */
static bool command(struct net *n)
{
    static char line[4096];
    static size_t have;
    ssize_t rc = read(0, line + have, sizeof line - 1 - have);
    if (rc <= 0)
        return false;
    have += (size_t)rc;
    line[have] = 0;
    for (char *nl; (nl = strchr(line, '\n'));) {
        *nl = 0;
        if (!count(n, line))
            puts(apply(n, line) ? "ok" : "error: link FROM TO key=value…");
        have -= (size_t)(nl + 1 - line);
        memmove(line, nl + 1, have + 1);
    }
    fflush(stdout);
    return have < sizeof line - 1;
}

static void run(struct net *n)
{
    static uint8_t buf[PACKET_MAX];
    struct pollfd p[HOSTS + 1];
    p[0] = (struct pollfd){.fd = 0, .events = POLLIN};
    for (int i = 1; i <= n->n; i++)
        p[i] = (struct pollfd){.fd = n->fd[i], .events = POLLIN};
    for (;;) {
        uint64_t now = now_ns();
        deliver(n, now);
        struct timespec t, *wait = NULL;
        if (n->held) {
            uint64_t left = n->heap[1]->due_ns > now ? n->heap[1]->due_ns - now : 0;
            t = (struct timespec){(time_t)(left / 1000000000ull), (long)(left % 1000000000ull)};
            wait = &t;
        }
        if (ppoll(p, (nfds_t)n->n + 1, wait, NULL) < 0 && errno != EINTR)
            fail("poll");
        if (p[0].revents && !command(n))
            return;
        now = now_ns();
        for (int i = 1; i <= n->n; i++)
            for (int k = 0; p[i].revents & POLLIN && k < READS; k++) {
                ssize_t len = read(n->fd[i], buf, sizeof buf);
                if (len <= 0)
                    break;
                route(n, (unsigned)i, buf, (unsigned)len, now);
            }
    }
}

int main(int argc, char **argv)
{
    static struct net n = {.seed = 0x9e3779b97f4a7c15ull};
    if (argc < 3 || argc > HOSTS + 1) {
        fprintf(stderr, "usage: netsim NAMESPACE… (2 to %d)\n", HOSTS);
        return 2;
    }
    for (int i = 1; i < argc; i++)
        n.fd[i] = open_tun(argv[i], i);
    n.n = argc - 1;
    puts("ok");
    fflush(stdout);
    run(&n);
    return 0;
}
