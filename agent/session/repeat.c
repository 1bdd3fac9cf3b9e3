/*
 * Requests with an id: a repetition is answered with what the first was answered, and does nothing. The last
 * REPEATS of a session that succeeded are known, for as long as the session lives; one that failed may be
 * tried again under its id. A request whose caller left is carried out or undone as ever, and its answer is
 * kept if it has one.
 */
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "agent/session/session_priv.h"
#include "common/base/str.h"

struct repeat {
    char id[80]; /* "" = free place */
    uint8_t wish[32];
    const struct rpc_call *call; /* under way for it; NULL: answered, or its caller left */
    const struct work *work;     /* its caller left */
    ProtobufCMessage *reply;     /* NULL: none yet */
};

static void drop(struct repeat *p)
{
    if (p->reply)
        protobuf_c_message_free_unpacked(p->reply, NULL);
    *p = (struct repeat){0};
}

void repeats_free(struct session *s)
{
    for (unsigned i = 0; s->repeats && i < REPEATS; i++)
        drop(&s->repeats[i]);
    free(s->repeats);
    s->repeats = NULL;
}

static bool under_way(const struct repeat *p)
{
    return p->id[0] && !p->reply && (p->call || p->work);
}

/* Of the method and all that was asked. */
static int digest(const struct rpc_call *call, const ProtobufCMessage *m, uint8_t sha[32])
{
    const char *name = rpc_call_name(call);
    size_t k = strlen(name), n = protobuf_c_message_get_packed_size(m);
    uint8_t *p = malloc(k + n + 1);
    if (!p)
        return ST_ENOMEM;
    memcpy(p, name, k);
    protobuf_c_message_pack(m, p + k);
    int ok = EVP_Digest(p, k + n, sha, NULL, EVP_sha256(), NULL);
    free(p);
    return ok == 1 ? ST_OK : ST_EINTERNAL;
}

/* The place of the id, or one to use for it; NULL: all are under way. */
static struct repeat *place(struct session *s, const char *id)
{
    struct repeat *spare = NULL;
    for (unsigned i = 0; i < REPEATS; i++)
        if (!strcmp(s->repeats[i].id, id))
            return &s->repeats[i];
    for (unsigned i = 0; i < REPEATS && !spare; i++, s->next_repeat++)
        if (!under_way(&s->repeats[s->next_repeat % REPEATS]))
            spare = &s->repeats[s->next_repeat % REPEATS];
    return spare;
}

bool repeated(struct sessions *ss, struct rpc_call *call, const ProtobufCMessage *m)
{
    const char *id = rpc_request_id(call);
    struct session *s;
    struct err e = {0};
    uint8_t wish[32];
    if (!*id || session_of(call, &s, &e) < 0)
        return false; /* whoever goes on says why not */
    if (!s->repeats)
        s->repeats = calloc(REPEATS, sizeof *s->repeats);
    struct repeat *p = s->repeats && digest(call, m, wish) == ST_OK ? place(s, id) : NULL;
    if (p && strcmp(p->id, id) == 0 && (p->reply || under_way(p))) {
        if (memcmp(p->wish, wish, sizeof wish))
            err_reason(&e, ST_ECONFLICT, "REQUEST_ID_REUSED",
                       "session %s made another request under this id: use a new one", s->name);
        else if (!p->reply)
            err_reason(&e, ST_EAGAIN, "IN_PROGRESS", "this very request is being carried out: ask again");
        if (e.code)
            trail_fail(ss, call, &e);
        else
            trail_reply(ss, call, p->reply);
        return true;
    }
    if (!p) {
        err_reason(&e, ST_ERESOURCE, "BUSY", "session %s has %u requests with ids under way", s->name,
                   REPEATS);
        trail_fail(ss, call, &e);
        return true;
    }
    drop(p);
    str_copy(p->id, sizeof p->id, id);
    memcpy(p->wish, wish, sizeof wish);
    p->call = call;
    return false;
}

static struct repeat *of_call(const struct session *s, const struct rpc_call *call)
{
    for (unsigned i = 0; s && s->repeats && i < REPEATS; i++)
        if (call && s->repeats[i].call == call)
            return &s->repeats[i];
    return NULL;
}

static struct repeat *of_work(const struct work *w)
{
    for (unsigned i = 0; w->s->repeats && i < REPEATS; i++)
        if (w->s->repeats[i].work == w)
            return &w->s->repeats[i];
    return NULL;
}

static void keep(struct repeat *p, const ProtobufCMessage *reply)
{
    if (p && reply && (p->reply = trail_copy(reply))) {
        p->call = NULL;
        p->work = NULL;
    } else if (p) {
        drop(p);
    }
}

void repeat_answered(struct rpc_call *call, const ProtobufCMessage *reply)
{
    const struct session_link *l = rpc_session_user(rpc_call_session(call));
    keep(of_call(l ? l->s : NULL, call), reply);
}

void repeat_forget(struct session *s, const char *id)
{
    for (unsigned i = 0; s->repeats && *id && i < REPEATS; i++)
        if (!strcmp(s->repeats[i].id, id))
            drop(&s->repeats[i]);
}

void repeat_left(struct work *w, const struct rpc_call *call)
{
    struct repeat *p = of_call(w->s, call);
    if (p) {
        p->call = NULL;
        p->work = w;
    }
}

void repeat_late(const struct work *w, const ProtobufCMessage *reply)
{
    keep(of_work(w), reply);
}
