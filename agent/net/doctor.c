/* What this node's network looks like from within: interfaces, offloads, buffers, and what to change. */
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/net/net_priv.h"
#include "common/base/str.h"

#define INTERFACES_MAX 32
#define ADVICE_MAX 8

struct report {
    Strata__V1__NetDoctor m;
    Strata__V1__NetInterface iface[INTERFACES_MAX], *iface_ptr[INTERFACES_MAX];
    char name[INTERFACES_MAX][IF_NAMESIZE], address[INTERFACES_MAX][INET6_ADDRSTRLEN];
    char advice[ADVICE_MAX][300], *advice_ptr[ADVICE_MAX];
};

static void advise(struct report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void advise(struct report *r, const char *fmt, ...)
{
    va_list ap;
    if (r->m.n_advice == ADVICE_MAX)
        return;
    va_start(ap, fmt);
    vsnprintf(r->advice[r->m.n_advice], sizeof r->advice[0], fmt, ap);
    va_end(ap);
    r->advice_ptr[r->m.n_advice] = r->advice[r->m.n_advice];
    r->m.n_advice++;
}

/* A small number in a file of the kernel; 0 when it does not tell. The files are in memory: nothing blocks.
 */
static int64_t sys_number(const char *iface, const char *what)
{
    char path[128], text[32] = "";
    snprintf(path, sizeof path, "/sys/class/net/%s/%s", iface, what);
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    int64_t v = fgets(text, sizeof text, f) ? strtoll(text, NULL, 10) : 0;
    fclose(f);
    return v > 0 ? v : 0;
}

/* The address from which this host reaches `to`, as the kernel would choose it: nothing is sent. */
static bool source_of(const struct quic_addr *to, char out[INET6_ADDRSTRLEN])
{
    struct sockaddr_storage ss;
    socklen_t n = sizeof ss;
    int fd = socket(to->ss.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool ok = fd >= 0 && connect(fd, (const struct sockaddr *)&to->ss, to->len) == 0 &&
              getsockname(fd, (struct sockaddr *)&ss, &n) == 0;
    if (fd >= 0)
        close(fd);
    if (!ok)
        return false;
    const void *a = ss.ss_family == AF_INET ? (const void *)&((struct sockaddr_in *)&ss)->sin_addr
                                            : (const void *)&((struct sockaddr_in6 *)&ss)->sin6_addr;
    return inet_ntop(ss.ss_family, a, out, INET6_ADDRSTRLEN) != NULL;
}

static void add_interface(struct report *r, const struct ifaddrs *i, const char *used)
{
    int family = i->ifa_addr ? i->ifa_addr->sa_family : 0;
    size_t k = r->m.n_interfaces;
    if ((family != AF_INET && family != AF_INET6) || k == INTERFACES_MAX)
        return;
    const void *a = family == AF_INET
                        ? (const void *)&((struct sockaddr_in *)(void *)i->ifa_addr)->sin_addr
                        : (const void *)&((struct sockaddr_in6 *)(void *)i->ifa_addr)->sin6_addr;
    if (!inet_ntop(family, a, r->address[k], sizeof r->address[k]))
        return;
    Strata__V1__NetInterface *m = &r->iface[k];
    strata__v1__net_interface__init(m);
    str_copy(r->name[k], sizeof r->name[k], i->ifa_name);
    m->name = r->name[k];
    m->address = r->address[k];
    m->mtu = (uint32_t)sys_number(i->ifa_name, "mtu");
    m->speed_mbit = sys_number(i->ifa_name, "speed");
    m->up = i->ifa_flags & IFF_RUNNING;
    m->carries = !strcmp(m->address, used);
    r->iface_ptr[r->m.n_interfaces++] = m;
    if (!m->carries)
        return;
    if (m->mtu && m->mtu < 1500)
        advise(r,
               "%s has an MTU of %u, below Ethernet's 1500: fewer bytes fit a packet; raise it if the "
               "path allows",
               m->name, m->mtu);
    else if (m->speed_mbit >= 10000 && m->mtu == 1500)
        advise(r,
               "%s could take jumbo frames: an MTU of 9000, if the switch allows it, about doubles what "
               "one core moves",
               m->name);
    if (!m->up)
        advise(r, "%s is down: bring it up, or listen on another interface", m->name);
}

static void interfaces(struct report *r, const struct net *n)
{
    char used[INET6_ADDRSTRLEN] = "";
    struct quic_addr a;
    struct ifaddrs *all = NULL;
    struct err e;
    /* Numeric alone: a name server is not asked on the loop. */
    const char *colon = strrchr(n->cfg.coordinator, ':');
    bool numeric =
        colon && strspn(n->cfg.coordinator, "0123456789abcdefABCDEF.:[]") == strlen(n->cfg.coordinator);
    if (!numeric || quic_addr_parse(n->cfg.coordinator, &a, &e) < 0 || !source_of(&a, used))
        used[0] = 0;
    const char *listen = n->cfg.listen, *end = strrchr(listen, ':');
    if (end && strncmp(listen, "0.0.0.0", 7) && strncmp(listen, "[::]", 4))
        snprintf(used, sizeof used, "%.*s", (int)(end - listen), listen);
    if (getifaddrs(&all) < 0) {
        advise(r, "the interfaces cannot be listed; is the process allowed netlink sockets (AF_NETLINK)?");
        return;
    }
    for (const struct ifaddrs *i = all; i; i = i->ifa_next)
        add_interface(r, i, used);
    freeifaddrs(all);
}

void doctor_answer(struct rpc_call *call, struct net *n)
{
    struct report *r = calloc(1, sizeof *r);
    struct quic_udp_info u;
    if (!r) {
        rpc_finish(call, 8, "NO_MEMORY", "the agent has no memory left for this call");
        return;
    }
    strata__v1__net_doctor__init(&r->m);
    r->m.interfaces = r->iface_ptr;
    r->m.advice = r->advice_ptr;
    r->m.node = (char *)n->cfg.node;
    r->m.listen = (char *)n->cfg.listen;
    r->m.advertised = (char *)n->cfg.advertised;
    interfaces(r, n);
    quic_udp_info(n->cfg.udp, &u);
    r->m.gso = u.gso;
    r->m.gro = u.gro;
    r->m.receive_buffer = u.rcvbuf;
    r->m.send_buffer = u.sndbuf;
    r->m.receive_buffer_wanted = u.wanted;
    if (u.rcvbuf < u.wanted)
        advise(r, "the UDP receive buffer is %llu KiB instead of %llu: sysctl -w net.core.rmem_max=%llu",
               (unsigned long long)u.rcvbuf >> 10, (unsigned long long)u.wanted >> 10,
               (unsigned long long)u.wanted);
    if (u.sndbuf < u.wanted)
        advise(r, "the UDP send buffer is %llu KiB instead of %llu: sysctl -w net.core.wmem_max=%llu",
               (unsigned long long)u.sndbuf >> 10, (unsigned long long)u.wanted >> 10,
               (unsigned long long)u.wanted);
    if (!u.gso)
        advise(r, "UDP segmentation (GSO) does not work here: each packet costs a system call, about six "
                  "times the work; use a kernel of 4.18 or later and a driver that takes it");
    if (!u.gro)
        advise(r, "UDP coalescing (GRO) does not work here: use a kernel of 5.0 or later");
    rpc_reply(call, &r->m.base);
    free(r);
}
