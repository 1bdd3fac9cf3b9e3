/* Two endpoints on a simulated network. */
#include "tests/unit/quic/simnet.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

struct pki simnet_pki;
struct tls_ctx *simnet_coord, *simnet_node;
static const struct log silent = {.fd = -1};

int simnet_setup(void **state)
{
    (void)state;
    pki_open(&simnet_pki);
    simnet_coord = pki_ctx(&simnet_pki, TLS_COORDINATOR, NULL);
    simnet_node = pki_ctx(&simnet_pki, TLS_NODE, "dione");
    return 0;
}

int simnet_teardown(void **state)
{
    (void)state;
    tls_ctx_unref(simnet_coord);
    tls_ctx_unref(simnet_node);
    pki_close(&simnet_pki);
    return 0;
}

void side_start(struct net *n, struct side *d, unsigned host)
{
    struct err e = {0};
    d->port = sim_port_new(n->sim, host, 7433, &d->cfg);
    if (quic_ep_new(&d->ep, &d->cfg, &e) < 0)
        fail_msg("%s", e.text);
    sim_port_attach(d->port, d->ep);
}

void side_stop(struct side *d)
{
    quic_ep_free(d->ep, 0, "done");
    sim_port_free(d->port);
}

void net_prepare(struct net *n, const struct sim_cfg *cfg)
{
    memset(n, 0, sizeof *n);
    n->sim = sim_new(cfg);
    n->s.cfg = (struct quic_ep_cfg){.log = &silent,
                                    .tls = simnet_coord,
                                    .accept = true,
                                    .accept_ops = &peer_ops,
                                    .accept_arg = &n->s.app};
    n->c.cfg = (struct quic_ep_cfg){.log = &silent, .tls = simnet_node};
    quic_limits_control(&n->s.cfg.limits);
    quic_limits_control(&n->c.cfg.limits);
    memset(n->s.cfg.reset_secret, 0x51, 32);
    memset(n->c.cfg.reset_secret, 0x52, 32);
}

void net_start(struct net *n)
{
    side_start(n, &n->s, SRV);
    side_start(n, &n->c, CLI);
}

void net_stop(struct net *n)
{
    side_stop(&n->c);
    side_stop(&n->s);
    sim_free(n->sim);
}

int dial_as(struct net *n, enum tls_kind kind, const char *name)
{
    struct quic_addr to;
    struct err e = {0};
    sim_addr(SRV, 7433, &to);
    return quic_connect(&n->c.app.conn, n->c.ep, &to, kind, name, &peer_ops, &n->c.app, &e);
}

bool both_up(void *arg)
{
    struct net *n = arg;
    return n->c.app.ups && n->s.app.ups;
}

bool client_closed(void *arg)
{
    return ((struct net *)arg)->c.app.closes > 0;
}

bool server_closed(void *arg)
{
    return ((struct net *)arg)->s.app.closes > 0;
}

bool xfer_closed(void *arg)
{
    return ((struct xfer *)arg)->closed;
}

void up(struct net *n)
{
    assert_int_equal(dial_as(n, TLS_COORDINATOR, NULL), ST_OK);
    if (!sim_run(n->sim, 5 * SEC, both_up, n))
        fail_msg("not up: %s", n->c.app.why.reason);
}

const struct sim_cfg calm = {.seed = 1, .delay_ns = MS};
