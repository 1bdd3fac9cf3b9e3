/* strata.plan.v1, written: fixed key order, shortest numbers that read back the same. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/plan.h"

/* Remembers the first failure, so that a plan is whole or an error. */
struct sink {
    struct buf *out;
    int rc;
};

static void put(struct sink *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(struct sink *b, const char *fmt, ...)
{
    char small[512], *s = small;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(small, sizeof small, fmt, ap);
    va_end(ap);
    if (n >= (int)sizeof small) {
        va_start(ap, fmt);
        n = vasprintf(&s, fmt, ap);
        va_end(ap);
    }
    if (n < 0)
        b->rc = ST_ENOMEM;
    else if (b->rc == ST_OK)
        b->rc = buf_append(b->out, s, (size_t)n);
    if (n >= 0 && s != small)
        free(s);
}

static void text(struct sink *b, const char *s)
{
    if (!s) {
        put(b, "null");
        return;
    }
    put(b, "\"");
    for (const unsigned char *p = (const unsigned char *)s; *p; p++) {
        if (*p == '"' || *p == '\\')
            put(b, "\\%c", *p);
        else if (*p < 0x20)
            put(b, "\\u%04x", *p);
        else
            put(b, "%c", *p);
    }
    put(b, "\"");
}

/* A number that is never a whole-byte count: whole values keep a ".0". */
static void real(struct sink *b, double v)
{
    char s[40];
    if (!isfinite(v)) { /* JSON has no infinity; the solvers never make one */
        put(b, "null");
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, v);
        if (strtod(s, NULL) == v)
            break;
    }
    put(b, strpbrk(s, ".e") ? "%s" : "%s.0", s);
}

static void bytes(struct sink *b, double v)
{
    if (v == floor(v) && fabs(v) < 9007199254740992.0)
        put(b, "%.0f", v);
    else
        real(b, v);
}

static void key_real(struct sink *b, const char *key, double v)
{
    put(b, "\"%s\": ", key);
    real(b, v);
}
static void key_text(struct sink *b, const char *key, const char *s)
{
    put(b, "\"%s\": ", key);
    text(b, s);
}
static void key_bytes(struct sink *b, const char *key, double v)
{
    put(b, "\"%s\": ", key);
    bytes(b, v);
}
static const char *yes(bool v)
{
    return v ? "true" : "false";
}

static void write_replicas(struct sink *b, const struct plan_stage *s)
{
    put(b, "\"replicas\": [");
    for (size_t k = 0; k < s->n_replicas; k++) {
        put(b, k ? ", {" : "{");
        key_text(b, "device", s->replicas[k].device);
        put(b, ", ");
        key_real(b, "share", s->replicas[k].share);
        put(b, ", ");
        key_real(b, "compute_s", s->replicas[k].compute_s);
        put(b, "}");
    }
    put(b, "]");
}

static void write_stages(struct sink *b, const struct plan *p)
{
    put(b, ",\n  \"stages\": [");
    for (size_t i = 0; i < p->n_stages; i++) {
        const struct plan_stage *s = &p->stages[i];
        put(b, "%s\n    {", i ? "," : "");
        if (s->n_replicas)
            write_replicas(b, s);
        else
            key_text(b, "device", s->device);
        put(b, ", \"layers\": [");
        for (size_t k = 0; k < s->n_layers; k++) {
            put(b, k ? ", " : "");
            text(b, s->layers[k]);
        }
        put(b, "], ");
        key_real(b, "compute_s", s->compute_s);
        put(b, ", ");
        key_real(b, "transfer_in_s", s->transfer_in_s);
        put(b, ", ");
        key_bytes(b, "memory_bytes", s->memory_bytes);
        put(b, "}");
    }
    put(b, "\n  ],\n  \"placements\": [");
    for (size_t i = 0; i < p->n_placements; i++) {
        const struct plan_placement *q = &p->placements[i];
        put(b, "%s\n    {", i ? "," : "");
        key_text(b, "layer", q->layer);
        put(b, ", ");
        key_text(b, "device", q->device);
        put(b, ", ");
        key_real(b, "latency_s", q->latency_s);
        put(b, ", ");
        key_bytes(b, "memory_bytes", q->memory_bytes);
        put(b, ", ");
        key_real(b, "transfer_s", q->transfer_s);
        put(b, "}");
    }
    put(b, "\n  ]");
}

static void write_devices(struct sink *b, const struct plan *p)
{
    const struct plan_bottleneck *n = &p->bottleneck;
    put(b, ",\n  \"devices\": [");
    for (size_t i = 0; i < p->n_devices; i++) {
        const struct plan_device *d = &p->devices[i];
        put(b, "%s\n    {", i ? "," : "");
        key_text(b, "id", d->id);
        put(b, ", ");
        key_real(b, "memory_ratio", d->memory_ratio);
        put(b, ", ");
        key_real(b, "busy_ratio", d->busy_ratio);
        put(b, ", \"code\": \"%s\", ", plan_code_name(d->code));
        key_text(b, "reason", d->reason);
        put(b, "}");
    }
    put(b, "\n  ],\n  \"bottleneck\": {\"kind\": \"%s\", ", n->link ? "link" : "device");
    if (n->link) {
        key_text(b, "from", n->from);
        put(b, ", ");
        key_text(b, "to", n->to);
    } else {
        key_text(b, "device", n->device);
    }
    put(b, "},\n  ");
    key_text(b, "bottleneck_device", n->device);
}

static void write_moves(struct sink *b, const struct plan *p)
{
    put(b, ",\n  \"moves\": [");
    for (size_t i = 0; i < p->n_moves; i++) {
        const struct plan_move *m = &p->moves[i];
        put(b, "%s\n    {", i ? "," : "");
        key_text(b, "layer", m->layer);
        put(b, ", ");
        key_text(b, "from", m->from);
        put(b, ", ");
        key_text(b, "to", m->to);
        put(b, ", ");
        key_bytes(b, "bytes", m->bytes);
        put(b, "}");
    }
    put(b, "%s],\n  ", p->n_moves ? "\n  " : "");
    key_bytes(b, "moved_bytes", p->moved_bytes);
}

static void write_figures(struct sink *b, const struct plan *p)
{
    static const char *const keys[] = {"objective", "lower_bound",  "gap",
                                       "latency_s", "bottleneck_s", "max_memory_ratio"};
    const double v[] = {p->objective, p->lower_bound,  p->gap,
                        p->latency_s, p->bottleneck_s, p->max_memory_ratio};
    for (size_t i = 0; i < 6; i++) {
        put(b, ",\n  ");
        key_real(b, keys[i], v[i]);
    }
    if (p->has_optima) {
        put(b, ",\n  \"optima\": {");
        key_real(b, "latency_s", p->optima.latency_s);
        put(b, ", ");
        key_real(b, "bottleneck_s", p->optima.bottleneck_s);
        put(b, ", ");
        key_real(b, "max_memory_ratio", p->optima.max_memory_ratio);
        put(b, "}");
    }
}

int plan_to_json(const struct plan *p, struct buf *out)
{
    static const char *const feasible[] = {"false", "true", "null"};
    struct sink sink = {out, ST_OK}, *b = &sink;
    put(b, "{\n  \"schema\": \"strata.plan.v1\",\n  \"goal\": \"%s\",\n  \"feasible\": %s,\n",
        plan_goal_name(p->goal), feasible[p->feasible]);
    put(b, "  \"optimal\": %s,\n  ", yes(p->optimal));
    key_text(b, "solver", p->solver);
    if (p->feasible == PLAN_YES) {
        write_figures(b, p);
        write_stages(b, p);
        write_devices(b, p);
        write_moves(b, p);
    }
    if (p->has_shortfall) {
        put(b, ",\n  \"shortfall\": {\"kind\": \"%s\", ", plan_shortfall_name(p->shortfall.kind));
        key_bytes(b, "bytes", p->shortfall.bytes);
        put(b, ", ");
        key_text(b, "where", p->shortfall.where);
        put(b, ", \"proven_minimum\": %s, ", yes(p->shortfall.proven_minimum));
        key_text(b, "hint", p->shortfall.hint);
        put(b, "}");
    }
    if (p->stopped) {
        put(b, ",\n  ");
        key_text(b, "stopped", p->stopped);
    }
    if (p->has_stats) {
        put(b, ",\n  \"stats\": {");
        key_real(b, "seconds", p->stats.seconds);
        put(b, ", \"states\": %llu, \"memory_bytes\": %llu}", (unsigned long long)p->stats.states,
            (unsigned long long)p->stats.table_bytes);
    }
    put(b, ",\n  \"warnings\": [");
    for (size_t i = 0; i < p->n_warnings; i++) {
        put(b, i ? ", " : "");
        text(b, p->warnings[i]);
    }
    put(b, "]\n}\n");
    return sink.rc;
}
