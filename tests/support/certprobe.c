/*
 * A QUIC peer that trusts everybody and shows what it is told to, for the end-to-end test of certificates.
 *
 *   certprobe hello HOST:PORT         one line of stdin each: NAME CERT-FILE KEY-FILE ("-" "-" for none)
 *   certprobe main-as-enroll HOST:PORT, enroll-as-main HOST:PORT   a handshake with the other socket's
 * protocol certprobe beyond HOST:PORT        an anonymous peer of the enrolment socket asks for what is not
 * there certprobe join HOST:PORT          one line each: NAME TOKEN-ID-HEX SECRET-HEX NODE-NAME CSR-FILE
 *   certprobe half HOST:PORT N        N handshakes that are begun and left
 *
 * Prints a JSON object for each: {"name", "up", "reason", "text"}.
 */
#include <event2/event.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/rpc/rpc.h"
#include "common/tls/tls_priv.h"
#include "strata/v1/enroll.pb-c.h"
#include "strata/v1/nodes.pb-c.h"

static const struct log silent = {.fd = -1};

struct probe {
    struct event_base *base;
    struct rpc_session *session;
    struct quic_addr to;
    bool up, closed, answered, confirm;
    struct quic_close why;
    struct rpc_status st;
    struct event *timer;
};

static int anything(X509_STORE_CTX *sc, void *arg)
{
    (void)arg;
    X509_STORE_CTX_set_error(sc, X509_V_OK);
    return 1;
}

/* No check at all, and no security level that would keep a weak key from being shown. */
static struct tls_ctx *careless(enum tls_role role, const char *cert, const char *key)
{
    struct tls_ctx *t = calloc(1, sizeof *t);
    unsigned n;
    if (!t)
        abort();
    t->role = role == TLS_MUTUAL ? TLS_MUTUAL : TLS_ENROLL_CLIENT;
    t->clock = clock_system();
    atomic_init(&t->refs, 1);
    t->client = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_security_level(t->client, 0);
    SSL_CTX_set_min_proto_version(t->client, TLS1_3_VERSION);
    const unsigned char *alpn = tls_ctx_alpn(t, &n);
    SSL_CTX_set_alpn_protos(t->client, alpn, n);
    SSL_CTX_set_verify(t->client, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_cert_verify_callback(t->client, anything, NULL);
    SSL_CTX_set1_sigalgs_list(t->client,
                              "ECDSA+SHA256:ECDSA+SHA384:ECDSA+SHA512:ed25519:RSA-PSS+SHA256:RSA+SHA256");
    if (cert && (SSL_CTX_use_certificate_chain_file(t->client, cert) != 1 ||
                 SSL_CTX_use_PrivateKey_file(t->client, key, SSL_FILETYPE_PEM) != 1)) {
        char why[128];
        fprintf(stderr, "certprobe: %s: %s\n", cert, tls_why(why, sizeof why));
        exit(2);
    }
    return t;
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    event_base_loopbreak(((struct probe *)arg)->base);
}

static void on_up(struct rpc_session *s, void *arg)
{
    (void)s;
    struct probe *p = arg;
    p->up = true;
    event_base_loopbreak(p->base);
}

static void on_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    (void)s;
    struct probe *p = arg;
    p->closed = true;
    p->session = NULL;
    p->why = *why;
    event_base_loopbreak(p->base);
}

static const struct rpc_session_ops ops = {on_up, on_closed};

static void print(const char *name, bool up, const char *reason, const char *text)
{
    printf("{\"name\": \"%s\", \"up\": %s, \"reason\": \"%s\", \"text\": \"", name, up ? "true" : "false",
           reason);
    for (const char *c = text; *c; c++)
        if (*c == '"' || *c == '\\')
            printf("\\%c", *c);
        else if (*c >= 0x20)
            putchar(*c);
    puts("\"}");
    fflush(stdout);
}

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    (void)call, (void)digest;
    struct probe *p = arg;
    p->answered = true;
    p->st = *st;
    event_base_loopbreak(p->base);
}

static const struct rpc_call_ops call_ops = {.on_done = on_done};

static struct quic_udp *dial(struct probe *p, struct tls_ctx *t)
{
    struct quic_udp *udp;
    struct quic_ep *ep;
    struct err e = {0};
    const char *from = getenv("CERTPROBE_FROM"); /* another source address */
    struct quic_ep_cfg cfg = {.clock = clock_system(), .rng = rng_system(), .log = &silent, .tls = t};
    const struct rpc_cfg rc = {.base = p->base, .clock = clock_system(), .log = &silent};
    quic_limits_control(&cfg.limits);
    p->up = p->closed = p->answered = false;
    if (quic_udp_new(&udp, &ep, p->base, 0, from ? from : "127.0.0.1:0", &cfg, &e) < 0 ||
        rpc_dial(&p->session, &rc, ep, &p->to, TLS_COORDINATOR, NULL, &ops, p, &e) < 0) {
        fprintf(stderr, "certprobe: %s\n", e.text);
        exit(2);
    }
    return udp;
}

static void spin(struct probe *p, const bool *until)
{
    const struct timeval tv = {10, 0};
    evtimer_add(p->timer, &tv);
    if (!*until && !p->closed)
        event_base_dispatch(p->base);
    evtimer_del(p->timer);
}

static void hello(struct probe *p, const char *name, struct tls_ctx *t)
{
    struct quic_udp *udp = dial(p, t);
    spin(p, &p->up);
    print(name, p->up,
          p->up       ? ""
          : p->closed ? p->why.reason_code
                      : "NO_ANSWER",
          p->closed ? p->why.reason : "");
    quic_udp_free(udp, 0, "bye");
    tls_ctx_unref(t);
}

static void beyond(struct probe *p)
{
    struct tls_ctx *t = careless(TLS_ENROLL_CLIENT, NULL, NULL);
    struct quic_udp *udp = dial(p, t);
    spin(p, &p->up);
    Strata__V1__StatusRequest q = STRATA__V1__STATUS_REQUEST__INIT;
    struct rpc_call *call;
    if (p->up && rpc_call(&call, p->session, &strata__v1__nodes__descriptor, "Status", RPC_UNARY, &q.base,
                          NULL, &call_ops, p, NULL) == ST_OK)
        spin(p, &p->answered);
    print("beyond", p->answered && p->st.code == 0, p->st.reason, p->st.text);
    quic_udp_free(udp, 0, "bye");
    tls_ctx_unref(t);
}

static void join(struct probe *p, char *line)
{
    char name[64], id[64], secret[64], node[128], file[1024];
    uint8_t raw_id[32], raw_secret[32];
    size_t n_id, n_secret;
    struct buf csr = {0};
    struct rpc_call *call;
    struct err e = {0};
    Strata__V1__JoinRequest q = STRATA__V1__JOIN_REQUEST__INIT;
    if (sscanf(line, "%63s %63s %63s %127s %1023s", name, id, secret, node, file) != 5 ||
        hex_decode(raw_id, 32, id, &n_id) < 0 || hex_decode(raw_secret, 32, secret, &n_secret) < 0 ||
        fs_read(file, 1 << 20, &csr, &e) < 0) {
        fprintf(stderr, "certprobe: bad line: %s %s\n", line, e.text);
        exit(2);
    }
    struct tls_ctx *t = careless(TLS_ENROLL_CLIENT, NULL, NULL);
    struct quic_udp *udp = dial(p, t);
    spin(p, &p->up);
    q.token_id = (ProtobufCBinaryData){n_id, raw_id};
    q.secret = (ProtobufCBinaryData){n_secret, raw_secret};
    q.name = strcmp(node, "-") ? node : (char *)"";
    q.csr = (ProtobufCBinaryData){csr.len, csr.data};
    if (p->up && rpc_call(&call, p->session, &strata__v1__enroll__descriptor, "Join", RPC_UNARY, &q.base,
                          NULL, &call_ops, p, &e) == ST_OK)
        spin(p, &p->answered);
    print(name, p->answered && p->st.code == 0, p->st.reason, p->st.text);
    quic_udp_free(udp, 0, "bye");
    tls_ctx_unref(t);
    buf_fini(&csr);
}

/* Many first packets, each of a connection of its own, and nothing after them. */
static void half(struct probe *p, unsigned n)
{
    struct quic_udp *udp[512];
    struct tls_ctx *t = careless(TLS_MUTUAL, NULL, NULL);
    const struct timeval tv = {0, 20000};
    if (n > 512)
        n = 512;
    for (unsigned i = 0; i < n; i++)
        udp[i] = dial(p, t);
    evtimer_add(p->timer, &tv);
    event_base_dispatch(p->base);
    printf("{\"name\": \"half\", \"up\": false, \"reason\": \"\", \"text\": \"%u begun\"}\n", n);
    fflush(stdout);
    (void)udp;
    _Exit(0); /* left as they are */
}

int main(int argc, char **argv)
{
    struct probe p = {.base = event_base_new()};
    struct err e = {0};
    char line[4096];
    if (argc < 3 || !p.base || quic_addr_parse(argv[2], &p.to, &e) < 0) {
        fprintf(stderr,
                "usage: certprobe hello|main-as-enroll|enroll-as-main|beyond|join|half HOST:PORT (%s)\n",
                e.text);
        return 2;
    }
    p.timer = evtimer_new(p.base, on_timer, &p);
    if (!strcmp(argv[1], "main-as-enroll"))
        hello(&p, argv[1], careless(TLS_ENROLL_CLIENT, NULL, NULL));
    else if (!strcmp(argv[1], "enroll-as-main"))
        hello(&p, argv[1], careless(TLS_MUTUAL, NULL, NULL));
    else if (!strcmp(argv[1], "beyond"))
        beyond(&p);
    else if (!strcmp(argv[1], "half"))
        half(&p, argc > 3 ? (unsigned)atoi(argv[3]) : 64);
    else
        while (fgets(line, sizeof line, stdin)) {
            char name[256], cert[1024], key[1024];
            line[strcspn(line, "\n")] = 0;
            if (!strcmp(argv[1], "join"))
                join(&p, line);
            else if (sscanf(line, "%255s %1023s %1023s", name, cert, key) == 3)
                hello(&p, name, careless(TLS_MUTUAL, strcmp(cert, "-") ? cert : NULL, key));
        }
    event_free(p.timer);
    event_base_free(p.base);
    return 0;
}
