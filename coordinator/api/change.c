/* Our own certificate, CA and ticket key made anew, off the loop. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/fs.h"
#include "common/base/map.h"
#include "common/ticket/ticket.h"
#include "coordinator/api/trust.h"

#define CA_DAYS 3650u
#define MAX_BUNDLE (256u << 10)

struct change {
    struct offload_job job;
    struct trust *t;
    const struct coord_config *cfg; /* immutable: the thread may read it */
    const struct clock *clock;
    int64_t backdate_us;
    enum trust_change what;
    void (*done)(void *arg, int rc, const struct err *e);
    void *arg;
    /* what the thread made */
    int rc;
    struct err e;
    struct tls_ca *ca;
    struct tls_identity id;
    struct ticket_key *ticket;
};

/* ---- on the thread ---- */

static int copy_bundle(const struct coord_config *cfg, struct err *e)
{
    char from[1024], to[1024];
    struct buf b = {0};
    if (fs_join(from, sizeof from, cfg->ca_dir, "ca.crt") < 0 ||
        fs_join(to, sizeof to, cfg->tls_dir, "ca.crt") < 0)
        return err_set(e, ST_ELIMIT, "path too long");
    int rc = fs_read(from, MAX_BUNDLE, &b, e);
    if (rc == ST_OK)
        rc = fs_write_atomic(to, b.data, b.len, 0644, e);
    buf_fini(&b);
    return rc;
}

static int certify(struct change *j)
{
    char crt[1024], key[1024];
    struct buf csr = {0}, pem = {0};
    int64_t now = clock_wall_us(j->clock);
    const struct tls_issue w = {.kind = TLS_COORDINATOR,
                                .not_before_us = now - j->backdate_us,
                                .not_after_us = now + j->cfg->leaf_ttl_us};
    if (fs_join(crt, sizeof crt, j->cfg->tls_dir, "coordinator.crt") < 0 ||
        fs_join(key, sizeof key, j->cfg->tls_dir, "coordinator.key") < 0)
        return err_set(&j->e, ST_ELIMIT, "path too long: %s", j->cfg->tls_dir);
    int rc = tls_csr_make(key, NULL, &csr, &j->e);
    if (rc == ST_OK && (rc = tls_ca_sign(j->ca, &w, csr.data, csr.len, &pem, &j->id, &j->e)) == ST_OK)
        rc = fs_write_atomic(crt, pem.data, pem.len, 0644, &j->e);
    buf_fini(&csr);
    buf_fini(&pem);
    return rc;
}

static int make_ticket_key(struct change *j)
{
    char path[1024], fresh[1040];
    int rc;
    if (fs_join(path, sizeof path, j->cfg->state_dir, "ticket.key") < 0)
        return err_set(&j->e, ST_ELIMIT, "path too long: %s", j->cfg->state_dir);
    snprintf(fresh, sizeof fresh, "%s.next", path);
    remove(fresh); /* of a rotation that did not get to its end */
    if ((rc = ticket_key_create(fresh, &j->e)) < 0 || (rc = ticket_key_load(&j->ticket, fresh, &j->e)) < 0)
        return rc;
    return rename(fresh, path) < 0 ? err_set(&j->e, ST_EIO, "cannot replace %s", path) : ST_OK;
}

static void work(struct offload_job *job)
{
    struct change *j = (struct change *)job;
    const struct coord_config *cfg = j->cfg;
    if (j->what == TRUST_TICKET) {
        j->rc = make_ticket_key(j);
        return;
    }
    j->rc = j->what == TRUST_CA       ? tls_ca_rotate(cfg->ca_dir, CA_DAYS, j->clock, &j->e)
            : j->what == TRUST_CA_END ? tls_ca_rotate_end(cfg->ca_dir, &j->e)
                                      : ST_OK;
    if (j->rc == ST_OK && (j->rc = tls_ca_load_for(&j->ca, cfg->ca_dir, cfg->trust_domain, &j->e)) == ST_OK &&
        (j->what == TRUST_OWN || (j->rc = copy_bundle(cfg, &j->e)) == ST_OK))
        j->rc = certify(j);
}

/* ---- on the loop ---- */

static int forget_ca(const void *key, size_t n, void *value, void *arg)
{
    (void)key, (void)n, (void)arg;
    ((Strata__V1__Certificate *)value)->trusts_new_ca = false;
    return 0;
}

static void use_ticket_key(struct coord *c, struct change *j)
{
    ticket_key_free(c->ticket_key);
    c->ticket_key = j->ticket;
    j->ticket = NULL;
    ticket_key_public(c->ticket_key, c->ticket_public);
}

/* What is on the disk is what we go by, also when a later step failed. */
static void use_ca(struct trust *t, struct change *j)
{
    tls_ca_free(t->ca);
    t->ca = j->ca;
    j->ca = NULL;
    if (j->what == TRUST_CA)
        map_each(t->certs, forget_ca, NULL);
}

static void renewed_event(struct coord *c, const struct tls_identity *id)
{
    struct event_meta m = {0};
    event_meta_str(&m, "serial", id->serial);
    event_meta_str(&m, "subject", id->principal);
    event_meta_i64(&m, "expires_us", id->not_after_us);
    api_event(c, EV_CERTIFICATE_RENEWED, EVENT_SUCCESS, "coordinator", NULL, event_meta_text(&m), NULL);
    event_meta_fini(&m);
}

static void finished(struct offload_job *job)
{
    struct change *j = (struct change *)job;
    struct trust *t = j->t;
    struct coord *c = t->c;
    t->changing = false;
    if (c->stopping) { /* the sockets are gone; the files are read at the next start */
        if (j->rc == ST_OK)
            j->rc = err_set(&j->e, ST_ECANCELED, "the coordinator stops");
    } else if (j->what == TRUST_TICKET) {
        if (j->rc == ST_OK)
            use_ticket_key(c, j);
    } else {
        if (j->ca && j->what != TRUST_OWN)
            use_ca(t, j);
        if (j->rc == ST_OK && (j->rc = trust_reload(t, &j->e)) == ST_OK)
            renewed_event(c, &j->id);
    }
    j->done(j->arg, j->rc, &j->e);
    tls_ca_free(j->ca);
    ticket_key_free(j->ticket);
    free(j);
}

int trust_change(struct trust *t, enum trust_change what,
                 void (*done)(void *arg, int rc, const struct err *e), void *arg, struct err *e)
{
    if (what != TRUST_TICKET && !t->ca)
        return err_reason(e, ST_ENOTSUP, "NO_CA",
                          "the coordinator has no CA of its own: renew at yours and replace the files in %s, "
                          "they are read again",
                          t->c->cfg.tls_dir);
    if (t->changing)
        return err_reason(e, ST_ECONFLICT, "BUSY", "another renewal or rotation is being written: try again");
    struct change *j = calloc(1, sizeof *j);
    if (!j)
        return err_set(e, ST_ENOMEM, "the coordinator is out of memory");
    *j = (struct change){.job = {.work = work, .done = finished},
                         .t = t,
                         .cfg = &t->c->cfg,
                         .clock = t->c->clock,
                         .backdate_us = trust_backdate_us(t->c),
                         .what = what,
                         .done = done,
                         .arg = arg};
    t->changing = true;
    offload_run(t->c->offload, &j->job);
    return ST_OK;
}
