/* strata.plan.v1, written: fixed key order, shortest numbers that read back the same. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/plan.h"

static void text(struct buf *b, const char *s)
{
    if (!s) {
        buf_printf(b, "null");
        return;
    }
    buf_printf(b, "\"");
    for (const unsigned char *p = (const unsigned char *)s; *p; p++) {
        if (*p == '"' || *p == '\\')
            buf_printf(b, "\\%c", *p);
        else if (*p < 0x20)
            buf_printf(b, "\\u%04x", *p);
        else
            buf_printf(b, "%c", *p);
    }
    buf_printf(b, "\"");
}

/* A number that is never a whole-byte count: whole values keep a ".0". */
static void real(struct buf *b, double v)
{
    char s[40];
    if (!isfinite(v)) { /* JSON has no infinity; the solvers never make one */
        buf_printf(b, "null");
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, v);
        if (strtod(s, NULL) == v)
            break;
    }
    buf_printf(b, strpbrk(s, ".e") ? "%s" : "%s.0", s);
}

static void bytes(struct buf *b, double v)
{
    if (v == floor(v) && fabs(v) < 9007199254740992.0)
        buf_printf(b, "%.0f", v);
    else
        real(b, v);
}

static void key_real(struct buf *b, const char *key, double v)
{
    buf_printf(b, "\"%s\": ", key);
    real(b, v);
}
static void key_text(struct buf *b, const char *key, const char *s)
{
    buf_printf(b, "\"%s\": ", key);
    text(b, s);
}
static void key_bytes(struct buf *b, const char *key, double v)
{
    buf_printf(b, "\"%s\": ", key);
    bytes(b, v);
}
static const char *yes(bool v)
{
    return v ? "true" : "false";
}

static void write_stages(struct buf *b, const struct plan *p)
{
    buf_printf(b, ",\n  \"stages\": [");
    for (size_t i = 0; i < p->n_stages; i++) {
        const struct plan_stage *s = &p->stages[i];
        buf_printf(b, "%s\n    {", i ? "," : "");
        key_text(b, "device", s->device);
        buf_printf(b, ", \"layers\": [");
        for (size_t k = 0; k < s->n_layers; k++) {
            buf_printf(b, k ? ", " : "");
            text(b, s->layers[k]);
        }
        buf_printf(b, "], ");
        key_real(b, "compute_s", s->compute_s);
        buf_printf(b, ", ");
        key_real(b, "transfer_in_s", s->transfer_in_s);
        buf_printf(b, ", ");
        key_bytes(b, "memory_bytes", s->memory_bytes);
        buf_printf(b, "}");
    }
    buf_printf(b, "\n  ],\n  \"placements\": [");
    for (size_t i = 0; i < p->n_placements; i++) {
        const struct plan_placement *q = &p->placements[i];
        buf_printf(b, "%s\n    {", i ? "," : "");
        key_text(b, "layer", q->layer);
        buf_printf(b, ", ");
        key_text(b, "device", q->device);
        buf_printf(b, ", ");
        key_real(b, "latency_s", q->latency_s);
        buf_printf(b, ", ");
        key_bytes(b, "memory_bytes", q->memory_bytes);
        buf_printf(b, ", ");
        key_real(b, "transfer_s", q->transfer_s);
        buf_printf(b, "}");
    }
    buf_printf(b, "\n  ]");
}

static void write_devices(struct buf *b, const struct plan *p)
{
    const struct plan_bottleneck *n = &p->bottleneck;
    buf_printf(b, ",\n  \"devices\": [");
    for (size_t i = 0; i < p->n_devices; i++) {
        const struct plan_device *d = &p->devices[i];
        buf_printf(b, "%s\n    {", i ? "," : "");
        key_text(b, "id", d->id);
        buf_printf(b, ", ");
        key_real(b, "memory_ratio", d->memory_ratio);
        buf_printf(b, ", ");
        key_real(b, "busy_ratio", d->busy_ratio);
        buf_printf(b, ", \"code\": \"%s\", ", plan_code_name(d->code));
        key_text(b, "reason", d->reason);
        buf_printf(b, "}");
    }
    buf_printf(b, "\n  ],\n  \"bottleneck\": {\"kind\": \"%s\", ", n->link ? "link" : "device");
    if (n->link) {
        key_text(b, "from", n->from);
        buf_printf(b, ", ");
        key_text(b, "to", n->to);
    } else {
        key_text(b, "device", n->device);
    }
    buf_printf(b, "},\n  ");
    key_text(b, "bottleneck_device", n->device);
}

static void write_moves(struct buf *b, const struct plan *p)
{
    buf_printf(b, ",\n  \"moves\": [");
    for (size_t i = 0; i < p->n_moves; i++) {
        const struct plan_move *m = &p->moves[i];
        buf_printf(b, "%s\n    {", i ? "," : "");
        key_text(b, "layer", m->layer);
        buf_printf(b, ", ");
        key_text(b, "from", m->from);
        buf_printf(b, ", ");
        key_text(b, "to", m->to);
        buf_printf(b, ", ");
        key_bytes(b, "bytes", m->bytes);
        buf_printf(b, "}");
    }
    buf_printf(b, "%s],\n  ", p->n_moves ? "\n  " : "");
    key_bytes(b, "moved_bytes", p->moved_bytes);
}

static void write_figures(struct buf *b, const struct plan *p)
{
    static const char *const keys[] = {"objective", "lower_bound",  "gap",
                                       "latency_s", "bottleneck_s", "max_memory_ratio"};
    const double v[] = {p->objective, p->lower_bound, p->gap, p->latency_s, p->bottleneck_s, p->max_memory_ratio};
    for (size_t i = 0; i < 6; i++) {
        buf_printf(b, ",\n  ");
        key_real(b, keys[i], v[i]);
    }
    if (p->has_optima) {
        buf_printf(b, ",\n  \"optima\": {");
        key_real(b, "latency_s", p->optima.latency_s);
        buf_printf(b, ", ");
        key_real(b, "bottleneck_s", p->optima.bottleneck_s);
        buf_printf(b, ", ");
        key_real(b, "max_memory_ratio", p->optima.max_memory_ratio);
        buf_printf(b, "}");
    }
}

int plan_to_json(const struct plan *p, struct buf *b)
{
    static const char *const feasible[] = {"false", "true", "null"};
    size_t at = b->len;
    buf_printf(b, "{\n  \"schema\": \"strata.plan.v1\",\n  \"goal\": \"%s\",\n  \"feasible\": %s,\n",
               plan_goal_name(p->goal), feasible[p->feasible]);
    buf_printf(b, "  \"optimal\": %s,\n  ", yes(p->optimal));
    key_text(b, "solver", p->solver);
    if (p->feasible == PLAN_YES) {
        write_figures(b, p);
        write_stages(b, p);
        write_devices(b, p);
        write_moves(b, p);
    }
    if (p->has_shortfall) {
        buf_printf(b, ",\n  \"shortfall\": {\"kind\": \"%s\", ", plan_shortfall_name(p->shortfall.kind));
        key_bytes(b, "bytes", p->shortfall.bytes);
        buf_printf(b, ", ");
        key_text(b, "where", p->shortfall.where);
        buf_printf(b, ", \"proven_minimum\": %s, ", yes(p->shortfall.proven_minimum));
        key_text(b, "hint", p->shortfall.hint);
        buf_printf(b, "}");
    }
    if (p->stopped) {
        buf_printf(b, ",\n  ");
        key_text(b, "stopped", p->stopped);
    }
    if (p->has_stats) {
        buf_printf(b, ",\n  \"stats\": {");
        key_real(b, "seconds", p->stats.seconds);
        buf_printf(b, ", \"states\": %llu, \"memory_bytes\": %llu}", (unsigned long long)p->stats.states,
                   (unsigned long long)p->stats.table_bytes);
    }
    buf_printf(b, ",\n  \"warnings\": [");
    for (size_t i = 0; i < p->n_warnings; i++) {
        buf_printf(b, i ? ", " : "");
        text(b, p->warnings[i]);
    }
    /* every append before this one may have failed for want of memory: then this one cannot make it whole */
    if (buf_printf(b, "]\n}\n") < 0 || b->data[at] != '{')
        return ST_ENOMEM;
    return ST_OK;
}
