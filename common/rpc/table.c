/* The dispatch table, checked both ways against the service blocks of the .proto files. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/rpc/rpc_priv.h"

static int compare(const void *a, const void *b)
{
    const struct rpc_entry *x = a, *y = b;
    int c = strcmp(x->m->service, y->m->service);
    return c ? c : strcmp(x->m->method, y->m->method);
}

static const ProtobufCMethodDescriptor *declared(const ProtobufCServiceDescriptor *const *services, size_t n,
                                                 const char *service, const char *method)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(services[i]->name, service))
            return protobuf_c_service_descriptor_get_method_by_name(services[i], method);
    return NULL;
}

static int check_all_served(const ProtobufCServiceDescriptor *const *services, size_t n,
                            const struct rpc_table *t, struct err *e)
{
    void *arg;
    for (size_t i = 0; i < n; i++)
        for (unsigned k = 0; k < services[i]->n_methods; k++)
            if (!rpc_table_find(t, services[i]->name, services[i]->methods[k].name, &arg))
                return err_set(e, ST_EINVAL, "%s.%s is declared and has no handler", services[i]->name,
                               services[i]->methods[k].name);
    return ST_OK;
}

int rpc_table_new(struct rpc_table **out, const ProtobufCServiceDescriptor *const *services, size_t nservices,
                  const struct rpc_method *methods, size_t nmethods, void *arg, struct err *e)
{
    struct rpc_table *t = calloc(1, sizeof *t);
    int rc = ST_OK;
    if (!t || !(t->v = calloc(nmethods + 1, sizeof *t->v)) ||
        !(t->methods = calloc(nmethods + 1, sizeof *t->methods))) {
        rpc_table_free(t);
        return err_set(e, ST_ENOMEM, "no memory for the dispatch table");
    }
    t->arg = arg;
    for (size_t i = 0; i < nmethods && rc == ST_OK; i++) {
        const ProtobufCMethodDescriptor *d =
            declared(services, nservices, methods[i].service, methods[i].method);
        t->methods[i] = methods[i];
        const char *dot = strrchr(methods[i].service, '.');
        struct rpc_entry *x = &t->v[t->n++];
        *x = (struct rpc_entry){.m = &t->methods[i], .in = d ? d->input : NULL, .out = d ? d->output : NULL};
        snprintf(x->name, sizeof x->name, "%s.%s", dot ? dot + 1 : methods[i].service, methods[i].method);
        if (!d)
            rc = err_set(e, ST_EINVAL, "%s.%s has a handler and is not declared", methods[i].service,
                         methods[i].method);
        else if (!methods[i].handler)
            rc = err_set(e, ST_EINVAL, "%s.%s has no handler", methods[i].service, methods[i].method);
    }
    qsort(t->v, t->n, sizeof *t->v, compare);
    for (size_t i = 1; i < t->n && rc == ST_OK; i++)
        if (!compare(&t->v[i - 1], &t->v[i]))
            rc = err_set(e, ST_EINVAL, "%s.%s has two handlers", t->v[i].m->service, t->v[i].m->method);
    if (rc == ST_OK)
        rc = check_all_served(services, nservices, t, e);
    if (rc < 0) {
        rpc_table_free(t);
        return rc;
    }
    *out = t;
    return ST_OK;
}

void rpc_table_free(struct rpc_table *t)
{
    if (!t)
        return;
    rpc_table_free(t->more);
    free(t->v);
    free(t->methods);
    free(t);
}

const struct rpc_entry *rpc_table_find(const struct rpc_table *t, const char *service, const char *method,
                                       void **arg)
{
    const struct rpc_method key = {.service = service, .method = method};
    const struct rpc_entry k = {.m = &key}, *found = NULL;
    for (; t && !found; t = t->more) {
        found = t->n ? bsearch(&k, t->v, t->n, sizeof *t->v, compare) : NULL;
        if (found)
            *arg = t->arg;
    }
    return found;
}

int rpc_table_join(struct rpc_table *t, struct rpc_table *more, struct err *e)
{
    void *arg;
    for (const struct rpc_table *m = more; m; m = m->more)
        for (size_t i = 0; i < m->n; i++)
            if (rpc_table_find(t, m->v[i].m->service, m->v[i].m->method, &arg))
                return err_set(e, ST_EINVAL, "%s.%s is served twice", m->v[i].m->service, m->v[i].m->method);
    while (t->more)
        t = t->more;
    t->more = more;
    return ST_OK;
}
