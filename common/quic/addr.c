/* Addresses: text to socket address and back, and the key that limits per address are counted by. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

#include "common/base/str.h"
#include "common/quic/quic_priv.h"

/* "host:port", "[v6]:port" or ":port" into host and port. */
static int split(const char *s, char *host, size_t host_cap, char *port, size_t port_cap)
{
    const char *h = s, *colon;
    size_t n;
    if (*s == '[') {
        const char *end = strchr(s, ']');
        if (!end || end[1] != ':')
            return ST_EINVAL;
        h = s + 1;
        n = (size_t)(end - h);
        colon = end + 1;
    } else {
        colon = strrchr(s, ':');
        if (!colon || strchr(s, ':') != colon)
            return ST_EINVAL;
        n = (size_t)(colon - h);
    }
    if (n >= host_cap)
        return ST_EINVAL;
    memcpy(host, h, n);
    host[n] = '\0';
    if (!str_copy(port, port_cap, colon + 1) || !*port)
        return ST_EINVAL;
    for (const char *p = port; *p; p++)
        if (*p < '0' || *p > '9')
            return ST_EINVAL;
    return atol(port) <= 65535 ? ST_OK : ST_EINVAL;
}

int quic_addr_parse(const char *host_port, struct quic_addr *out, struct err *e)
{
    char host[256], port[8];
    struct addrinfo hints = {.ai_socktype = SOCK_DGRAM, .ai_flags = AI_NUMERICSERV}, *res = NULL;
    if (split(host_port, host, sizeof host, port, sizeof port) < 0)
        return err_set(e, ST_EINVAL,
                       "\"%s\" is not an address: write host:port, such as 10.0.0.5:7433 or [fd00::5]:7433",
                       host_port);
    int rc = getaddrinfo(*host ? host : "::", port, &hints, &res);
    if (rc != 0 || !res)
        return err_set(e, ST_EUNREACH, "cannot resolve \"%s\": %s; check the name or give a numeric address",
                       host, rc ? gai_strerror(rc) : "no address");
    quic_addr_set(out, res->ai_addr, res->ai_addrlen);
    freeaddrinfo(res);
    return ST_OK;
}

void quic_addr_set(struct quic_addr *out, const struct sockaddr *sa, socklen_t len)
{
    memset(out, 0, sizeof *out);
    if (len > sizeof out->ss)
        len = sizeof out->ss;
    memcpy(&out->ss, sa, len);
    out->len = len;
}

void quic_addr_str(const struct quic_addr *a, char out[64])
{
    char ip[INET6_ADDRSTRLEN] = "?";
    if (a->ss.ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)&a->ss;
        inet_ntop(AF_INET, &in->sin_addr, ip, sizeof ip);
        snprintf(out, 64, "%s:%u", ip, ntohs(in->sin_port));
    } else if (a->ss.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)&a->ss;
        if (IN6_IS_ADDR_V4MAPPED(&in->sin6_addr)) {
            inet_ntop(AF_INET, &in->sin6_addr.s6_addr[12], ip, sizeof ip);
            snprintf(out, 64, "%s:%u", ip, ntohs(in->sin6_port));
        } else {
            inet_ntop(AF_INET6, &in->sin6_addr, ip, sizeof ip);
            snprintf(out, 64, "[%s]:%u", ip, ntohs(in->sin6_port));
        }
    } else {
        snprintf(out, 64, "(none)");
    }
}

void quic_addr_map6(struct quic_addr *a)
{
    struct sockaddr_in in;
    struct sockaddr_in6 m = {.sin6_family = AF_INET6};
    if (a->ss.ss_family != AF_INET)
        return;
    memcpy(&in, &a->ss, sizeof in);
    m.sin6_port = in.sin_port;
    m.sin6_addr.s6_addr[10] = m.sin6_addr.s6_addr[11] = 0xff;
    memcpy(&m.sin6_addr.s6_addr[12], &in.sin_addr, 4);
    quic_addr_set(a, (const struct sockaddr *)&m, sizeof m);
}

void quic_addr_key(const struct quic_addr *a, uint8_t key[16])
{
    struct quic_addr m = *a;
    quic_addr_map6(&m);
    memcpy(key, &((const struct sockaddr_in6 *)&m.ss)->sin6_addr, 16);
}
