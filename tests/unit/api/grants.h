/*
 * A coordinator as a real process; its users and the agent of a node are ends of real connections in this
 * one, on one loop. The agent does what it is told, or not. Anything that goes wrong in here fails the test.
 */
#ifndef TESTS_API_GRANTS_H
#define TESTS_API_GRANTS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <event2/event.h>
#include <signal.h>
#include <sys/wait.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/rpc/rpc.h"
#include "common/ticket/ticket.h"
#include "strata/v1/agentctl.pb-c.h"
#include "strata/v1/audit.pb-c.h"
#include "strata/v1/nodes.pb-c.h"
#include "strata/v1/policies.pb-c.h"
#include "strata/v1/sessions.pb-c.h"

#define PATIENCE_NS (60 * NS_PER_S)
#define MB (1ull << 20)

enum who { ADMIN, ALICE, BOB, AGENT, PEERS };

struct peer {
    const char *name;
    enum tls_kind kind;
    struct tls_ctx *tls;
    struct quic_udp *udp;
    struct quic_ep *ep;
    struct rpc_session *rpc;
    bool up, closed;
};

struct grants {
    char dir[64];
    struct log log;
    struct event_base *base;
    unsigned port;
    pid_t daemon;
    struct peer p[PEERS];
    struct rpc_table *agent_table;
    uint8_t ticket_key[TICKET_PUB_LEN];
    uint64_t epoch;
    /* the agent's side of sessions */
    char revoked[64][40], reasons[64][40];
    unsigned nrevoked;
    uint64_t revoked_ns;
    bool stubborn;          /* does not answer Revoke */
    const char *request_id; /* of the calls from now on; NULL = none */
};
extern struct grants w; /* the one world of a test program */

#define OK(x)                                                                                                \
    do {                                                                                                     \
        if ((x) != ST_OK)                                                                                    \
            fail_msg("%s: %s", #x, e.text);                                                                  \
    } while (0)
#define WAIT(cond)                                                                                           \
    do {                                                                                                     \
        uint64_t since_ = clock_ns(clock_system());                                                          \
        while (!(cond)) {                                                                                    \
            if (clock_ns(clock_system()) - since_ > PATIENCE_NS)                                             \
                fail_msg("never: %s", #cond);                                                                \
            turn();                                                                                          \
        }                                                                                                    \
    } while (0)

struct answer {
    bool done;
    struct rpc_status st;
    ProtobufCMessage *m;
};

void turn(void);
void dial(struct peer *p);
void hang_up(struct peer *p);
void drop(struct answer *a);
void begin(enum who who, const ProtobufCServiceDescriptor *svc, const char *method, const ProtobufCMessage *q,
           struct answer *a);
struct answer ask(enum who who, const ProtobufCServiceDescriptor *svc, const char *method,
                  const ProtobufCMessage *q);
void expect(struct answer a, const char *reason);
void daemon_start(void);
void daemon_kill(int sig);
void hello(void);
struct answer report(bool complete, const char *held, uint64_t used, const char *ended);
void agent_says(bool complete, const char *held, uint64_t used, const char *ended);
bool was_revoked(const char *id, const char **reason);
struct answer give(const char *who, const char *role, const char *device, uint64_t quota, int64_t expires,
                   bool dry);
void given(const char *who, const char *role, const char *device, uint64_t quota);
struct answer apply(enum who by, Strata__V1__Policy *const *p, size_t n, bool dry);
void open_request(Strata__V1__OpenSessionRequest *q, uint64_t limit, uint64_t ttl_ns);
struct answer open_session(enum who who, uint64_t limit, uint64_t ttl_ns, char id[40]);
void opened(enum who who, uint64_t limit, uint64_t ttl_ns, char id[40]);
struct answer end_session(enum who who, const char *method, const char *id);
uint64_t held(uint64_t *allocated);
size_t audited(const char *type, const char *principal, const char *reason);
int grants_set_up(void **st);
int grants_tear_down(void **st);

#endif
