/*
 * The UDP socket under an endpoint: GSO and GRO, ECN, the local address of each datagram (PKTINFO), path MTU
 * probing, and the libevent events. Knows nothing of QUIC.
 */
#include <errno.h>
#include <event2/event.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <unistd.h>

#include "common/quic/quic_priv.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum { RX_BUF = 65536, READS_PER_EVENT = 6, SOCKET_BUF = 4 << 20 };

struct quic_udp {
    int fd;
    int family;
    bool gso_ok;
    bool wildcard; /* bound to any address: replies name the one they were sent to */
    struct event *rd, *wr, *timer, *kick;
    struct quic_ep *ep;
    const struct clock *clock;
    uint64_t timer_at;
    struct quic_addr local;
    uint8_t *rx;
};

/* ---- sending ---- */

union cmsg_buf {
    struct cmsghdr align;
    uint8_t
        b[CMSG_SPACE(sizeof(struct in6_pktinfo)) + CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(uint16_t))];
};

static void add_cmsg(struct msghdr *m, int level, int type, const void *p, size_t n)
{
    struct cmsghdr *h = (struct cmsghdr *)(void *)((uint8_t *)m->msg_control + m->msg_controllen);
    h->cmsg_level = level;
    h->cmsg_type = type;
    h->cmsg_len = CMSG_LEN(n);
    memcpy(CMSG_DATA(h), p, n);
    m->msg_controllen += CMSG_SPACE(n);
}

static bool is_v4(const struct quic_addr *a)
{
    return a->ss.ss_family == AF_INET ||
           IN6_IS_ADDR_V4MAPPED(&((const struct sockaddr_in6 *)&a->ss)->sin6_addr);
}

static void add_source(struct quic_udp *u, struct msghdr *m, const struct quic_addr *local)
{
    if (!u->wildcard || local->ss.ss_family != u->family)
        return;
    if (u->family == AF_INET) {
        struct in_pktinfo pi = {.ipi_spec_dst = ((const struct sockaddr_in *)&local->ss)->sin_addr};
        if (pi.ipi_spec_dst.s_addr != htonl(INADDR_ANY))
            add_cmsg(m, IPPROTO_IP, IP_PKTINFO, &pi, sizeof pi);
    } else {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)&local->ss;
        struct in6_pktinfo pi = {.ipi6_addr = in->sin6_addr};
        if (IN6_IS_ADDR_LINKLOCAL(&in->sin6_addr))
            pi.ipi6_ifindex = in->sin6_scope_id;
        if (!IN6_IS_ADDR_UNSPECIFIED(&in->sin6_addr))
            add_cmsg(m, IPPROTO_IPV6, IPV6_PKTINFO, &pi, sizeof pi);
    }
}

static int send_msg(struct quic_udp *u, const struct quic_addr *local, const struct quic_addr *remote,
                    uint8_t ecn, const uint8_t *p, size_t n, size_t gso)
{
    union cmsg_buf cb;
    struct iovec iov = {(void *)(uintptr_t)p, n};
    struct msghdr m = {.msg_name = (void *)(uintptr_t)&remote->ss,
                       .msg_namelen = remote->len,
                       .msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = &cb};
    memset(&cb, 0, sizeof cb);
    add_source(u, &m, local);
    if (ecn) {
        int tos = ecn;
        if (is_v4(remote))
            add_cmsg(&m, IPPROTO_IP, IP_TOS, &tos, sizeof tos);
        else
            add_cmsg(&m, IPPROTO_IPV6, IPV6_TCLASS, &tos, sizeof tos);
    }
    if (n > gso) {
        uint16_t seg = (uint16_t)gso;
        add_cmsg(&m, IPPROTO_UDP, UDP_SEGMENT, &seg, sizeof seg);
    }
    if (m.msg_controllen == 0)
        m.msg_control = NULL;
    ssize_t rc;
    do
        rc = sendmsg(u->fd, &m, 0);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

static int link_send(void *arg, const struct quic_addr *local, const struct quic_addr *remote, uint8_t ecn,
                     const uint8_t *data, size_t len, size_t gso)
{
    struct quic_udp *u = arg;
    int rc = 0;
    if (len <= gso || u->gso_ok) {
        rc = send_msg(u, local, remote, ecn, data, len, gso);
        if (len > gso && (rc == -EIO || rc == -EINVAL || rc == -EOPNOTSUPP))
            u->gso_ok = false; /* no segmentation on this interface: datagram by datagram from here on */
    }
    if (len > gso && !u->gso_ok)
        for (size_t off = 0; off < len; off += gso) {
            rc = send_msg(u, local, remote, ecn, data + off, len - off < gso ? len - off : gso, gso);
            if (rc == -EAGAIN || rc == -EWOULDBLOCK)
                break; /* the endpoint repeats the whole; the peer discards doubles */
        }
    if (rc == 0)
        return ST_OK;
    if (rc == -EAGAIN || rc == -EWOULDBLOCK) {
        event_add(u->wr, NULL);
        return ST_EAGAIN;
    }
    return status_from_errno(-rc); /* EMSGSIZE of an MTU probe, unreachable, ENOBUFS: losses */
}

/* ---- receiving ---- */

struct rx_meta {
    struct quic_addr local, remote;
    uint8_t ecn;
    size_t gso;
};

static void read_cmsgs(struct msghdr *m, struct rx_meta *r)
{
    for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h; h = CMSG_NXTHDR(m, h)) {
        int v = 0;
        if (h->cmsg_level == IPPROTO_IP && h->cmsg_type == IP_PKTINFO && r->local.ss.ss_family == AF_INET) {
            struct in_pktinfo pi;
            memcpy(&pi, CMSG_DATA(h), sizeof pi);
            ((struct sockaddr_in *)&r->local.ss)->sin_addr = pi.ipi_addr;
        } else if (h->cmsg_level == IPPROTO_IPV6 && h->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo pi;
            struct sockaddr_in6 *in = (struct sockaddr_in6 *)&r->local.ss;
            memcpy(&pi, CMSG_DATA(h), sizeof pi);
            in->sin6_addr = pi.ipi6_addr;
            if (IN6_IS_ADDR_LINKLOCAL(&pi.ipi6_addr))
                in->sin6_scope_id = pi.ipi6_ifindex;
        } else if (h->cmsg_level == IPPROTO_IP && h->cmsg_type == IP_TOS) {
            r->ecn = *CMSG_DATA(h) & 3; /* one byte here, unlike everywhere else */
        } else if (h->cmsg_level == IPPROTO_IPV6 && h->cmsg_type == IPV6_TCLASS) {
            memcpy(&v, CMSG_DATA(h), sizeof v);
            r->ecn = (uint8_t)(v & 3);
        } else if (h->cmsg_level == IPPROTO_UDP && h->cmsg_type == UDP_GRO) {
            memcpy(&v, CMSG_DATA(h), sizeof v);
            r->gso = v > 0 ? (size_t)v : 0;
        }
    }
}

static void take(struct quic_udp *u, struct msghdr *m, size_t len, const uint8_t *p)
{
    struct rx_meta r = {.local = u->local};
    if (m->msg_flags & MSG_TRUNC || m->msg_namelen > sizeof r.remote.ss)
        return;
    memcpy(&r.remote.ss, m->msg_name, m->msg_namelen);
    r.remote.len = m->msg_namelen;
    read_cmsgs(m, &r);
    size_t seg = r.gso ? r.gso : len;
    for (size_t off = 0; off < len; off += seg)
        quic_ep_input(u->ep, &r.local, &r.remote, r.ecn, p + off, len - off < seg ? len - off : seg);
}

/* One system call for all that waits, up to the bound of a turn: it says by itself that nothing is left. */
static void read_batch(struct quic_udp *u)
{
    union {
        struct cmsghdr align;
        uint8_t b[256];
    } cb[READS_PER_EVENT];
    struct sockaddr_storage from[READS_PER_EVENT];
    struct iovec iov[READS_PER_EVENT];
    struct mmsghdr m[READS_PER_EVENT];
    for (int i = 0; i < READS_PER_EVENT; i++) {
        iov[i] = (struct iovec){u->rx + (size_t)i * RX_BUF, RX_BUF};
        m[i].msg_hdr = (struct msghdr){.msg_name = &from[i],
                                       .msg_namelen = sizeof from[i],
                                       .msg_iov = &iov[i],
                                       .msg_iovlen = 1,
                                       .msg_control = &cb[i],
                                       .msg_controllen = sizeof cb[i]};
    }
    int n = -1, tries = 0; /* a queued ICMP error comes first; behind it there may be data */
    do
        n = recvmmsg(u->fd, m, READS_PER_EVENT, 0, NULL);
    while (n < 0 && (errno == EINTR || errno == ECONNREFUSED) && ++tries < READS_PER_EVENT);
    for (int i = 0; i < n; i++)
        take(u, &m[i].msg_hdr, m[i].msg_len, u->rx + (size_t)i * RX_BUF);
}

/* ---- events ---- */

static void on_read(evutil_socket_t fd, short what, void *arg)
{
    struct quic_udp *u = arg;
    (void)fd, (void)what;
    read_batch(u);
    quic_ep_turn(u->ep);
}

static void on_write(evutil_socket_t fd, short what, void *arg)
{
    struct quic_udp *u = arg;
    (void)fd, (void)what;
    quic_ep_writable(u->ep);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct quic_udp *u = arg;
    (void)fd, (void)what;
    quic_ep_turn(u->ep);
}

static void link_set_timer(void *arg, uint64_t at_ns)
{
    struct quic_udp *u = arg;
    if (at_ns == UINT64_MAX) {
        evtimer_del(u->timer);
        return;
    }
    if (at_ns == u->timer_at && evtimer_pending(u->timer, NULL))
        return;
    u->timer_at = at_ns;
    uint64_t now = clock_ns(u->clock);
    uint64_t us = at_ns > now ? (at_ns - now + 999) / 1000 : 0; /* up: an early timer would only fire again */
    struct timeval tv = {.tv_sec = (time_t)(us / 1000000), .tv_usec = (suseconds_t)(us % 1000000)};
    evtimer_add(u->timer, &tv);
}

static void link_kick(void *arg)
{
    struct quic_udp *u = arg;
    struct timeval zero = {0, 0};
    /* A zero timer, not event_active(): that would run again before sockets are looked at and starve them. */
    evtimer_add(u->kick, &zero);
}

static const struct quic_link_ops udp_link = {
    .send = link_send, .set_timer = link_set_timer, .kick = link_kick};

/* ---- making ---- */

static void set_opt(int fd, int level, int name, int v)
{
    (void)setsockopt(fd, level, name, &v, sizeof v); /* each is an improvement, none a necessity */
}

static int open_socket(struct quic_udp *u, const char *text, struct err *e)
{
    u->family = u->local.ss.ss_family;
    u->fd = socket(u->family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (u->fd < 0)
        return err_errno(e, errno, "cannot make a UDP socket for %s", text);
    if (u->family == AF_INET6) {
        set_opt(u->fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
        set_opt(u->fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
        set_opt(u->fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
        set_opt(u->fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE);
    } else {
        set_opt(u->fd, IPPROTO_IP, IP_PKTINFO, 1);
    }
    set_opt(u->fd, IPPROTO_IP, IP_RECVTOS, 1);
    set_opt(u->fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE);
    set_opt(u->fd, IPPROTO_UDP, UDP_GRO, 1);
    set_opt(u->fd, SOL_SOCKET, SO_RCVBUF, SOCKET_BUF);
    set_opt(u->fd, SOL_SOCKET, SO_SNDBUF, SOCKET_BUF);
    if (bind(u->fd, (const struct sockaddr *)&u->local.ss, u->local.len) < 0) {
        if (errno == EADDRINUSE)
            return err_set(e, ST_EEXIST,
                           "UDP port of %s is in use by another program; stop it or choose another port",
                           text);
        return err_errno(e, errno, "cannot bind UDP %s", text);
    }
    u->local.len = sizeof u->local.ss;
    if (getsockname(u->fd, (struct sockaddr *)&u->local.ss, &u->local.len) < 0)
        return err_errno(e, errno, "cannot read the address of the socket for %s", text);
    if (u->family == AF_INET)
        u->wildcard = ((const struct sockaddr_in *)&u->local.ss)->sin_addr.s_addr == htonl(INADDR_ANY);
    else
        u->wildcard = IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)&u->local.ss)->sin6_addr);
    return ST_OK;
}

static void udp_release(struct quic_udp *u)
{
    struct event *ev[] = {u->rd, u->wr, u->timer, u->kick};
    for (size_t i = 0; i < 4; i++)
        if (ev[i])
            event_free(ev[i]);
    if (u->fd >= 0)
        close(u->fd);
    free(u->rx);
    free(u);
}

static int add_events(struct quic_udp *u, struct event_base *base, int priority)
{
    u->rd = event_new(base, u->fd, EV_READ | EV_PERSIST, on_read, u);
    u->wr = event_new(base, u->fd, EV_WRITE, on_write, u);
    u->timer = evtimer_new(base, on_timer, u);
    u->kick = evtimer_new(base, on_timer, u);
    if (!u->rd || !u->wr || !u->timer || !u->kick)
        return ST_ENOMEM;
    struct event *ev[] = {u->rd, u->wr, u->timer, u->kick};
    for (size_t i = 0; i < 4; i++)
        (void)event_priority_set(ev[i],
                                 priority); /* refused on a base without priorities: then all are equal */
    return event_add(u->rd, NULL) == 0 ? ST_OK : ST_ENOMEM;
}

int quic_udp_new(struct quic_udp **out, struct quic_ep **ep, struct event_base *base, int priority,
                 const char *bind_host_port, struct quic_ep_cfg *cfg, struct err *e)
{
    struct quic_udp *u = calloc(1, sizeof *u);
    if (!u)
        return err_set(e, ST_ENOMEM, "no memory for a UDP socket on %s", bind_host_port);
    u->fd = -1;
    u->gso_ok = true;
    u->clock = cfg->clock;
    u->rx = malloc((size_t)RX_BUF * READS_PER_EVENT); /* touched as far as datagrams fill it */
    int rc = u->rx ? quic_addr_parse(bind_host_port, &u->local, e)
                   : err_set(e, ST_ENOMEM, "no memory for a UDP socket");
    if (rc == ST_OK)
        rc = open_socket(u, bind_host_port, e);
    if (rc == ST_OK && (rc = add_events(u, base, priority)) < 0)
        err_set(e, rc, "no memory for the events of %s", bind_host_port);
    if (rc == ST_OK) {
        cfg->link = &udp_link;
        cfg->link_arg = u;
        cfg->local = u->local;
        rc = quic_ep_new(&u->ep, cfg, e);
    }
    if (rc < 0) {
        udp_release(u);
        return rc;
    }
    *out = u;
    *ep = u->ep;
    return ST_OK;
}

void quic_udp_free(struct quic_udp *u, uint64_t code, const char *reason)
{
    if (!u)
        return;
    quic_ep_free(u->ep, code, reason);
    udp_release(u);
}

uint16_t quic_udp_port(const struct quic_udp *u)
{
    return ntohs(u->family == AF_INET ? ((const struct sockaddr_in *)&u->local.ss)->sin_port
                                      : ((const struct sockaddr_in6 *)&u->local.ss)->sin6_port);
}

static int get_opt(int fd, int level, int name)
{
    int v = 0;
    socklen_t n = sizeof v;
    return getsockopt(fd, level, name, &v, &n) == 0 ? v : 0;
}

void quic_udp_info(const struct quic_udp *u, struct quic_udp_info *out)
{
    /* The kernel keeps twice what it grants, for its own bookkeeping. */
    *out = (struct quic_udp_info){.gso = u->gso_ok,
                                  .gro = get_opt(u->fd, IPPROTO_UDP, UDP_GRO) == 1,
                                  .rcvbuf = (uint64_t)get_opt(u->fd, SOL_SOCKET, SO_RCVBUF) / 2,
                                  .sndbuf = (uint64_t)get_opt(u->fd, SOL_SOCKET, SO_SNDBUF) / 2,
                                  .wanted = SOCKET_BUF};
}
