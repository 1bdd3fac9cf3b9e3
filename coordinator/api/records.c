/* Records of tokens, certificates, revocations and pins: in maps while we run, as documents in state.db. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/base/str.h"
#include "coordinator/api/trust.h"

ProtobufCMessage *trust_copy(const ProtobufCMessage *m)
{
    size_t n = protobuf_c_message_get_packed_size(m);
    uint8_t *p = malloc(n ? n : 1);
    ProtobufCMessage *copy = NULL;
    if (p) {
        protobuf_c_message_pack(m, p);
        copy = protobuf_c_message_unpack(m->descriptor, NULL, n, p);
    }
    free(p);
    return copy;
}

void trust_put(struct store_txn *txn, const char *kind, const char *id, const ProtobufCMessage *m,
               int64_t now_us)
{
    struct buf b = {0};
    size_t n = protobuf_c_message_get_packed_size(m);
    if (buf_reserve(&b, n ? n : 1) == ST_OK) {
        b.len = protobuf_c_message_pack(m, b.data);
        store_txn_trust_put(txn, &(struct store_trust){kind, id, b.data, b.len, now_us});
    } else {
        store_txn_fail(txn, ST_ENOMEM);
    }
    buf_fini(&b);
}

int trust_keep(struct map *map, const char *id, ProtobufCMessage *m)
{
    void *old = NULL;
    int rc = m ? map_put(map, id, strlen(id), m, &old) : ST_ENOMEM;
    ProtobufCMessage *gone = rc < 0 ? m : old;
    if (gone)
        protobuf_c_message_free_unpacked(gone, NULL);
    return rc;
}

void trust_drop(struct map *map, const char *id)
{
    ProtobufCMessage *m = map_del(map, id, strlen(id));
    if (m)
        protobuf_c_message_free_unpacked(m, NULL);
}

static int free_record(const void *key, size_t n, void *value, void *arg)
{
    (void)key, (void)n, (void)arg;
    protobuf_c_message_free_unpacked(value, NULL);
    return 0;
}

void trust_records_free(struct map *map)
{
    if (map)
        map_each(map, free_record, NULL);
    map_free(map);
}

struct gather {
    void **v;
    size_t n;
};

static int gather(const void *key, size_t n, void *value, void *arg)
{
    struct gather *g = arg;
    (void)key, (void)n;
    g->v[g->n++] = value;
    return 0;
}

void **trust_all(struct map *map, size_t *n)
{
    struct gather g = {calloc(map_count(map) + 1, sizeof(void *)), 0};
    if (g.v)
        map_each(map, gather, &g);
    *n = g.n;
    return g.v;
}

void trust_pin_id(const char *subject, const uint8_t sha256[32], char out[160])
{
    char hex[65];
    hex_encode(hex, sha256, 32);
    snprintf(out, 160, "%s %.79s", hex, subject);
}

static int kind_of(const char *word)
{
    for (int k = TLS_REVOKED_SERIAL; k <= TLS_REVOKED_KEY; k++)
        if (!strcmp(word, tls_revoked_name((enum tls_revoked)k)))
            return k;
    return -1;
}

static int apply(struct trust *t, const char *kind, ProtobufCMessage *m)
{
    if (!strcmp(kind, "revoked")) {
        const Strata__V1__Revocation *r = (Strata__V1__Revocation *)m;
        int k = kind_of(r->kind);
        return k < 0 ? ST_ECORRUPT : tls_rules_revoke(t->rules, (enum tls_revoked)k, r->value);
    }
    if (!strcmp(kind, "pin")) {
        const Strata__V1__Pin *p = (Strata__V1__Pin *)m;
        return p->sha256.len != 32 ? ST_ECORRUPT : tls_rules_pin(t->rules, p->subject, p->sha256.data);
    }
    return ST_OK;
}

static int take(void *arg, const struct store_trust *d)
{
    struct trust *t = arg;
    const struct {
        const char *kind;
        struct map *map;
        const ProtobufCMessageDescriptor *desc;
    } row[] = {{"token", t->tokens, &strata__v1__token__descriptor},
               {"cert", t->certs, &strata__v1__certificate__descriptor},
               {"revoked", t->revoked, &strata__v1__revocation__descriptor},
               {"pin", t->pins, &strata__v1__pin__descriptor}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        if (!strcmp(d->kind, row[i].kind)) {
            ProtobufCMessage *m = protobuf_c_message_unpack(row[i].desc, NULL, d->doc_len, d->doc);
            if (!m)
                return ST_ECORRUPT;
            int rc = apply(t, d->kind, m);
            if (rc < 0) {
                protobuf_c_message_free_unpacked(m, NULL);
                return rc;
            }
            return trust_keep(row[i].map, d->id, m);
        }
    return ST_OK; /* of a newer version; it is left alone */
}

int trust_records_load(struct trust *t, struct err *e)
{
    int rc = store_load_trust(t->c->store, take, t, e);
    return rc == ST_ECORRUPT && !e->code
               ? err_reason(e, rc, "DAMAGED",
                            "state.db: a record of a token, certificate, revocation or pin cannot "
                            "be read; restore the file from a backup")
               : rc;
}

const char *trust_pool_of(void *trust, const char *principal)
{
    const struct trust *t = trust;
    const Strata__V1__Certificate *r = map_get(t->certs, principal, strlen(principal));
    return r ? r->pool : NULL;
}

Strata__V1__Certificate *trust_certificate(struct trust *t, const struct tls_identity *id, const char *pool)
{
    char spki[65];
    const Strata__V1__Certificate *was = map_get(t->certs, id->principal, strlen(id->principal));
    Strata__V1__Certificate r = STRATA__V1__CERTIFICATE__INIT;
    hex_encode(spki, id->spki_sha256, 32);
    r.principal = (char *)id->principal;
    r.serial = (char *)id->serial;
    r.spki = spki;
    r.not_before_us = id->not_before_us;
    r.not_after_us = id->not_after_us;
    r.issuer = (char *)(t->ca ? tls_ca_serial(t->ca) : "");
    r.pool = (char *)(pool ? pool : was ? was->pool : "");
    r.trusts_new_ca = t->ca != NULL;
    return (Strata__V1__Certificate *)trust_copy(&r.base);
}

void trust_event(struct store_txn *txn, struct coord *c, int type, int result, const char *principal,
                 const char *node, struct event_meta *meta, const char *error)
{
    struct audit_event ev = event_make(type, result, clock_wall_us(c->clock));
    ev.principal = principal;
    ev.node = node;
    ev.operation = event_info(type)->name;
    ev.meta = event_meta_text(meta);
    ev.error = error;
    store_txn_event(txn, &ev);
    event_meta_fini(meta);
}
