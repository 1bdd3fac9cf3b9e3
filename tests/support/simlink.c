#include "tests/support/simlink.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/heap.h"

#define OWNER(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

struct packet {
    struct heap_node at;
    struct packet *next;
    struct quic_addr from, to;
    uint8_t ecn;
    size_t n;
    uint8_t p[];
};

struct sim_port {
    struct sim *sim;
    struct sim_port *next;
    struct quic_addr addr;
    struct quic_ep *ep;
    struct heap_node timer;
    bool kicked, blocked, cut, want_writable;
};

struct sim {
    struct sim_cfg cfg;
    uint64_t now, rand, last_at;
    struct clock clock;
    struct rng rng;
    struct heap packets, timers;
    struct sim_port *ports;
};

static uint64_t next_random(struct sim *s)
{
    uint64_t z = (s->rand += 0x9e3779b97f4a7c15ull); /* splitmix64: every run with this seed is the same */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static bool chance(struct sim *s, unsigned ppm)
{
    return ppm && next_random(s) % 1000000 < ppm;
}

static uint64_t mono(void *arg)
{
    return ((struct sim *)arg)->now;
}

static int64_t wall(void *arg)
{
    return (int64_t)(((struct sim *)arg)->now / 1000) + 1764000000000000ll;
}

static void fill(void *arg, void *out, size_t n)
{
    for (uint8_t *p = out; n--;)
        *p++ = (uint8_t)next_random(arg);
}

struct sim *sim_new(const struct sim_cfg *cfg)
{
    struct sim *s = calloc(1, sizeof *s);
    if (!s)
        abort();
    s->cfg = *cfg;
    if (s->cfg.mtu == 0)
        s->cfg.mtu = 1500;
    s->rand = cfg->seed;
    s->now = 1000 * NS_PER_S;
    s->clock = (struct clock){mono, wall, s};
    s->rng = (struct rng){fill, s};
    return s;
}

/* All, or those on their way to one address. */
static void drop_packets(struct sim *s, const struct quic_addr *to)
{
    for (size_t i = 1; i <= s->packets.n;) {
        struct packet *k = OWNER(s->packets.v[i], struct packet, at);
        if (to && memcmp(&k->to.ss, &to->ss, to->len) != 0) {
            i++;
            continue;
        }
        heap_del(&s->packets, &k->at);
        free(k);
        i = 1; /* the heap has moved its nodes */
    }
}

void sim_free(struct sim *s)
{
    while (s->ports)
        sim_port_free(s->ports);
    drop_packets(s, NULL);
    heap_fini(&s->packets);
    heap_fini(&s->timers);
    free(s);
}

void sim_set_loss(struct sim *s, unsigned loss_ppm)
{
    s->cfg.loss_ppm = loss_ppm;
}

const struct clock *sim_clock(struct sim *s)
{
    return &s->clock;
}

const struct rng *sim_rng(struct sim *s)
{
    return &s->rng;
}

uint64_t sim_now(const struct sim *s)
{
    return s->now;
}

void sim_addr(unsigned host, uint16_t port, struct quic_addr *out)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port)};
    in.sin_addr.s_addr = htonl(0x0a000000u + host);
    memset(out, 0, sizeof *out);
    memcpy(&out->ss, &in, sizeof in);
    out->len = sizeof in;
}

/* ---- the link ---- */

static void post(struct sim *s, const struct quic_addr *from, const struct quic_addr *to, uint8_t ecn,
                 const uint8_t *p, size_t n)
{
    struct packet *k = malloc(sizeof *k + n);
    if (!k)
        abort();
    k->at.pos = 0;
    k->from = *from;
    k->to = *to;
    k->ecn = ecn;
    k->n = n;
    memcpy(k->p, p, n);
    if (n && chance(s, s->cfg.corrupt_ppm))
        k->p[next_random(s) % n] ^= (uint8_t)(1 + next_random(s) % 255);
    uint64_t at = s->now + s->cfg.delay_ns;
    if (s->cfg.jitter_ns)
        at += next_random(s) % s->cfg.jitter_ns;
    else if (at <= s->last_at)
        at = s->last_at + 1; /* a heap does not keep the order of equal keys */
    s->last_at = at;
    if (heap_set(&s->packets, &k->at, at) < 0)
        abort();
}

static void transmit(struct sim_port *from, const struct quic_addr *to, uint8_t ecn, const uint8_t *p,
                     size_t n)
{
    struct sim *s = from->sim;
    if (from->cut || n + 28 > s->cfg.mtu || chance(s, s->cfg.loss_ppm))
        return;
    post(s, &from->addr, to, ecn, p, n);
    if (chance(s, s->cfg.dup_ppm))
        post(s, &from->addr, to, ecn, p, n);
}

static int link_send(void *arg, const struct quic_addr *local, const struct quic_addr *remote, uint8_t ecn,
                     const uint8_t *data, size_t len, size_t gso)
{
    struct sim_port *p = arg;
    (void)local;
    if (p->blocked) {
        p->want_writable = true;
        return ST_EAGAIN;
    }
    for (size_t off = 0; off < len; off += gso)
        transmit(p, remote, ecn, data + off, len - off < gso ? len - off : gso);
    return ST_OK;
}

static void link_timer(void *arg, uint64_t at_ns)
{
    struct sim_port *p = arg;
    if (at_ns == UINT64_MAX)
        heap_del(&p->sim->timers, &p->timer);
    else if (heap_set(&p->sim->timers, &p->timer, at_ns) < 0)
        abort();
}

static void link_kick(void *arg)
{
    ((struct sim_port *)arg)->kicked = true;
}

static const struct quic_link_ops sim_link = {link_send, link_timer, link_kick};

struct sim_port *sim_port_new(struct sim *s, unsigned host, uint16_t port, struct quic_ep_cfg *cfg)
{
    struct sim_port *p = calloc(1, sizeof *p);
    if (!p)
        abort();
    p->sim = s;
    sim_addr(host, port, &p->addr);
    p->next = s->ports;
    s->ports = p;
    cfg->clock = &s->clock;
    cfg->rng = &s->rng;
    cfg->link = &sim_link;
    cfg->link_arg = p;
    cfg->local = p->addr;
    return p;
}

void sim_port_attach(struct sim_port *p, struct quic_ep *ep)
{
    p->ep = ep;
}

void sim_port_free(struct sim_port *p)
{
    struct sim_port **at = &p->sim->ports;
    while (*at != p)
        at = &(*at)->next;
    *at = p->next;
    heap_del(&p->sim->timers, &p->timer);
    drop_packets(p->sim, &p->addr);
    free(p);
}

void sim_port_block(struct sim_port *p, bool blocked)
{
    p->blocked = blocked;
    if (!blocked && p->want_writable) {
        p->want_writable = false;
        quic_ep_writable(p->ep);
    }
}

void sim_port_cut(struct sim_port *p, bool cut)
{
    p->cut = cut;
}

void sim_inject(struct sim_port *from, const struct quic_addr *to, const uint8_t *p, size_t n)
{
    transmit(from, to, 0, p, n);
}

/* ---- running ---- */

static struct sim_port *port_at(struct sim *s, const struct quic_addr *a)
{
    struct sim_port *p = s->ports;
    while (p && memcmp(&p->addr.ss, &a->ss, a->len) != 0)
        p = p->next;
    return p;
}

static bool run_kicks(struct sim *s)
{
    bool any = false;
    for (struct sim_port *p = s->ports; p; p = p->next)
        if (p->kicked) {
            p->kicked = false;
            any = true;
            if (p->ep)
                quic_ep_turn(p->ep);
        }
    return any;
}

static void deliver(struct sim *s, struct packet *k)
{
    struct sim_port *p = port_at(s, &k->to);
    if (p && p->ep && !p->cut) {
        quic_ep_input(p->ep, &p->addr, &k->from, k->ecn, k->p, k->n);
        quic_ep_turn(p->ep);
    }
    free(k);
}

bool sim_run(struct sim *s, uint64_t for_ns, bool (*done)(void *arg), void *arg)
{
    uint64_t end = s->now + for_ns;
    for (;;) {
        if (done && done(arg))
            return true;
        struct heap_node *k = heap_top(&s->packets), *t = heap_top(&s->timers);
        if (run_kicks(s))
            continue;
        uint64_t at = end + 1;
        if (k && k->key < at)
            at = k->key;
        if (t && t->key < at)
            at = t->key;
        if (at > end)
            break;
        if (at > s->now)
            s->now = at;
        if (k && k->key == at) {
            heap_del(&s->packets, k);
            deliver(s, OWNER(k, struct packet, at));
        } else {
            struct sim_port *p = OWNER(t, struct sim_port, timer);
            heap_del(&s->timers, t);
            quic_ep_turn(p->ep);
        }
    }
    s->now = end;
    return done && done(arg);
}
