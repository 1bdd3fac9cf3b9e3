/* strata cert: what is valid until when, and changing it. */
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/tls/tls.h"
#include "coordinator/ctl/ctl.h"
#include "strata/v1/certs.pb-c.h"

static int ask(struct ctl *c, const char *method, const ProtobufCMessage *q, ProtobufCMessage **m)
{
    struct strata_error e = {0};
    int x = ctl_connect(c);
    if (x)
        return x;
    if (strata_client_call(c->client, &strata__v1__certs__descriptor, method, q, c->timeout_ns, NULL, m, &e) <
        0)
        return ctl_client_fail(c, &e);
    return 0;
}

static json_t *cert_json(const Strata__V1__Certificate *k)
{
    char from[28], to[28];
    clock_rfc3339(k->not_before_us, from);
    clock_rfc3339(k->not_after_us, to);
    return json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:b,s:b}", "principal", k->principal, "serial", k->serial,
                     "spki", k->spki, "not_before", from, "not_after", to, "issuer", k->issuer, "pool",
                     k->pool, "connected", (int)k->connected, "trusts_new_ca", (int)k->trusts_new_ca);
}

static json_t *status_json(const Strata__V1__CertStatusReply *r)
{
    json_t *certs = json_array(), *gone = json_array(), *pins = json_array();
    char end[28], spki[65] = "", hex[65];
    clock_rfc3339(r->ca_not_after_us, end);
    if (r->ca_spki.len == 32)
        hex_encode(spki, r->ca_spki.data, 32);
    for (size_t i = 0; i < r->n_certificates; i++)
        json_array_append_new(certs, cert_json(r->certificates[i]));
    for (size_t i = 0; i < r->n_revoked; i++) {
        char at[28];
        clock_rfc3339(r->revoked[i]->at_us, at);
        json_array_append_new(gone, json_pack("{s:s,s:s,s:s,s:s,s:s}", "kind", r->revoked[i]->kind, "value",
                                              r->revoked[i]->value, "reason", r->revoked[i]->reason, "by",
                                              r->revoked[i]->by, "at", at));
    }
    for (size_t i = 0; i < r->n_pins; i++) {
        if (r->pins[i]->sha256.len != 32)
            continue;
        hex_encode(hex, r->pins[i]->sha256.data, 32);
        json_array_append_new(pins, json_pack("{s:s,s:s,s:s}", "subject", r->pins[i]->subject, "sha256", hex,
                                              "by", r->pins[i]->by));
    }
    return json_pack("{s:o,s:b,s:s,s:s,s:o,s:b,s:o,s:o,s:o}", "coordinator", cert_json(r->self), "own_ca",
                     (int)r->own_ca, "ca_serial", r->ca_serial, "ca_spki", spki, "ca_not_after",
                     r->own_ca ? json_string(end) : json_null(), "rotating", (int)r->rotating, "certificates",
                     certs, "revoked", gone, "pins", pins);
}

static void cert_row(struct table *t, const Strata__V1__Certificate *k, int64_t now)
{
    char left[16], to[28];
    clock_rfc3339(k->not_after_us, to);
    fmt_seconds(left, (double)(k->not_after_us - now) / 1e6);
    table_cell(t, "%s", k->principal);
    table_cell(t, "%s", k->connected ? "yes" : "no");
    table_cell(t, "%.19sZ", to);
    table_cell(t, "%s", k->not_after_us > now ? left : "expired");
    table_cell(t, "%s", k->pool[0] ? k->pool : "-");
    table_cell(t, "%s", k->serial);
}

static void status_print(const Strata__V1__CertStatusReply *r)
{
    static const char *const col[] = {"IDENTITY", "LIVE", "ENDS", "LEFT>", "POOL", "SERIAL"};
    int64_t now = clock_wall_us(clock_system());
    char end[28], hex[65];
    struct table *t = table_new(col, 6);
    cert_row(t, r->self, now);
    for (size_t i = 0; i < r->n_certificates; i++)
        cert_row(t, r->certificates[i], now);
    table_print(t, stdout);
    table_free(t);
    clock_rfc3339(r->ca_not_after_us, end);
    if (r->own_ca)
        printf("\nCA %s until %.10s%s\n", r->ca_serial, end,
               r->rotating ? ", rotating: end it with strata cert rotate-ca --end" : "");
    else
        puts("\ncertificates come from another CA");
    for (size_t i = 0; i < r->n_revoked; i++)
        printf("revoked %s %s by %s%s%s\n", r->revoked[i]->kind, r->revoked[i]->value, r->revoked[i]->by,
               r->revoked[i]->reason[0] ? ": " : "", r->revoked[i]->reason);
    for (size_t i = 0; i < r->n_pins; i++)
        if (r->pins[i]->sha256.len == 32) {
            hex_encode(hex, r->pins[i]->sha256.data, 32);
            printf("pinned  %s sha256:%s\n", r->pins[i]->subject, hex);
        }
}

int ctl_cert_status(struct ctl *c, int argc, char **argv)
{
    Strata__V1__CertStatusRequest q = STRATA__V1__CERT_STATUS_REQUEST__INIT;
    ProtobufCMessage *m;
    if (ctl_parse(argc, argv, NULL, 0) != 0)
        return ctl_misuse(c, "cert status takes nothing");
    int x = ask(c, "Status", &q.base, &m);
    if (x)
        return x;
    const Strata__V1__CertStatusReply *r = (const Strata__V1__CertStatusReply *)m;
    if (c->json)
        x = ctl_print_json("strata.cert.v1", status_json(r));
    else
        status_print(r);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

/* ---- renew ---- */

int ctl_cert_renew(struct ctl *c, int argc, char **argv)
{
    struct strata_error e = {0};
    int64_t expires_us = 0;
    char end[28];
    if (ctl_parse(argc, argv, NULL, 0) != 0)
        return ctl_misuse(c, "cert renew takes nothing; strata cert rotate is for nodes");
    int x = ctl_connect(c);
    if (x)
        return x;
    if (strata_client_renew(c->client, &expires_us, &e) < 0)
        return ctl_client_fail(c, &e);
    const char *who = strata_client_identity(c->client);
    clock_rfc3339(expires_us, end);
    if (c->json)
        return ctl_print_json("strata.renew.v1", json_pack("{s:s,s:s}", "identity", who, "expires", end));
    printf("%s until %.19sZ\n", who, end);
    return 0;
}

/* ---- rotate ---- */

static int rotate(struct ctl *c, const Strata__V1__RotateRequest *q, const char *said)
{
    ProtobufCMessage *m;
    int x = ask(c, "Rotate", &q->base, &m);
    if (x)
        return x;
    const Strata__V1__RotateReply *r = (const Strata__V1__RotateReply *)m;
    json_t *cut = json_array();
    for (size_t i = 0; i < r->n_cut_off; i++)
        json_array_append_new(cut, json_pack("{s:s,s:s}", "principal", r->cut_off[i]->principal, "reason",
                                             r->cut_off[i]->reason));
    if (c->json) {
        x = ctl_print_json("strata.rotate.v1",
                           json_pack("{s:s,s:b,s:s,s:i,s:O}", "what", q->what, "dry_run", (int)q->dry_run,
                                     "ca_serial", r->serial, "told", (int)r->told, "cut_off", cut));
    } else {
        for (size_t i = 0; i < r->n_cut_off; i++)
            printf("%s would be cut off: %s\n", r->cut_off[i]->principal, r->cut_off[i]->reason);
        if (q->dry_run)
            printf("%zu would be cut off if the old CA were dropped now\n", r->n_cut_off);
        else
            printf("%s; %u nodes were told\n", said, r->told);
    }
    json_decref(cut);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

int ctl_cert_rotate(struct ctl *c, int argc, char **argv)
{
    const char *node = NULL;
    bool coordinator = false, ticket = false, fresh = false, all = false;
    const struct ctl_opt opts[] = {{.name = "node", .value = &node},
                                   {.name = "all", .flag = &all},
                                   {.name = "coordinator", .flag = &coordinator},
                                   {.name = "ticket-key", .flag = &ticket},
                                   {.name = "new-key", .flag = &fresh}};
    Strata__V1__RotateRequest q = STRATA__V1__ROTATE_REQUEST__INIT;
    char principal[80] = "";
    if (ctl_parse(argc, argv, opts, 5) != 0 || (node != NULL) + all + coordinator + ticket != 1)
        return ctl_misuse(c, "cert rotate takes one of node, coordinator and ticket key");
    if (node)
        snprintf(principal, sizeof principal, "node/%.70s", node);
    q.what = (char *)(coordinator ? "coordinator" : ticket ? "ticket" : "leaf");
    q.principal = principal;
    q.fresh_key = fresh;
    return rotate(c, &q, "rotated");
}

int ctl_cert_rotate_ca(struct ctl *c, int argc, char **argv)
{
    bool dry = false, end = false, force = false;
    const struct ctl_opt opts[] = {
        {.name = "dry-run", .flag = &dry}, {.name = "end", .flag = &end}, {.name = "force", .flag = &force}};
    Strata__V1__RotateRequest q = STRATA__V1__ROTATE_REQUEST__INIT;
    if (ctl_parse(argc, argv, opts, 3) != 0)
        return ctl_misuse(c, "a new CA first, its end later");
    q.what = (char *)(end ? "ca-end" : "ca");
    q.dry_run = dry;
    q.force = force;
    return rotate(
        c, &q,
        end ? "the old CA is no longer trusted"
            : "a new CA signs from now on and both are trusted; when all have renewed: cert rotate-ca --end");
}

/* ---- revoke, pin ---- */

int ctl_cert_revoke(struct ctl *c, int argc, char **argv)
{
    const char *serial = NULL, *identity = NULL, *key = NULL, *reason = NULL;
    bool restore = false;
    const struct ctl_opt opts[] = {{.name = "serial", .value = &serial},
                                   {.name = "identity", .value = &identity},
                                   {.name = "key", .value = &key},
                                   {.name = "reason", .value = &reason},
                                   {.name = "restore", .flag = &restore}};
    Strata__V1__RevokeRequest q = STRATA__V1__REVOKE_REQUEST__INIT;
    ProtobufCMessage *m;
    if (ctl_parse(argc, argv, opts, 5) != 0 || !serial + !identity + !key != 2)
        return ctl_misuse(c, "cert revoke takes one of a serial, an identity and a key");
    q.kind = (char *)(serial ? "serial" : identity ? "identity" : "key");
    q.value = (char *)(serial ? serial : identity ? identity : key);
    q.reason = (char *)(reason ? reason : "");
    q.restore = restore;
    int x = ask(c, "Revoke", &q.base, &m);
    if (x)
        return x;
    const Strata__V1__RevokeReply *r = (const Strata__V1__RevokeReply *)m;
    if (c->json)
        x = ctl_print_json("strata.revoke.v1",
                           json_pack("{s:s,s:s,s:b,s:i,s:i}", "kind", q.kind, "value", q.value, "restored",
                                     (int)restore, "closed", (int)r->closed, "told", (int)r->told));
    else
        printf("%s %s is %s; %u live connections closed, %u nodes told\n", q.kind, q.value,
               restore ? "good again" : "revoked", r->closed, r->told);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

int ctl_cert_pin(struct ctl *c, int argc, char **argv)
{
    bool removal = false;
    const struct ctl_opt opts[] = {{.name = "remove", .flag = &removal}};
    Strata__V1__PinRequest q = STRATA__V1__PIN_REQUEST__INIT;
    ProtobufCMessage *m;
    if (ctl_parse(argc, argv, opts, 1) != 2)
        return ctl_misuse(c, "cert pin takes a subject and a hash");
    q.subject = argv[0];
    q.sha256 = argv[1];
    q.remove = removal;
    int x = ask(c, "Pin", &q.base, &m);
    if (x)
        return x;
    const Strata__V1__PinReply *r = (const Strata__V1__PinReply *)m;
    if (c->json)
        x = ctl_print_json("strata.pin.v1",
                           json_pack("{s:s,s:s,s:b,s:i}", "subject", argv[0], "sha256", argv[1], "removed",
                                     (int)removal, "closed", (int)r->closed));
    else
        printf("%s %s; %u live connections closed\n", argv[0],
               removal ? "is no longer pinned to it" : "is pinned to it", r->closed);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}
