#include <math.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/ctl/plan/plan_cmd.h"
#include "coordinator/plan/plan.h"

#define NAME_MAX_SHOWN 60u
#define STRIP 72u /* columns of the layer strip */
#define BAR 24u

/* A name from a file, safe on a terminal and of bounded width. */
static const char *safe(char out[NAME_MAX_SHOWN + 1], const char *s)
{
    size_t n = 0;
    for (; s[n] && n < NAME_MAX_SHOWN; n++)
        out[n] = (unsigned char)s[n] < 0x20 || s[n] == 0x7f ? '?' : s[n];
    out[n] = 0;
    return out;
}

static void print_bytes(char out[16], double v)
{
    fmt_bytes(out, (uint64_t)fmin(fmax(v, 0), 9e18));
}

static void seconds(char out[16], double s)
{
    if (s > 0)
        fmt_seconds(out, s);
    else
        str_copy(out, 16, "0");
}

static void print_stages(const struct plan *p, FILE *out)
{
    size_t wide = strlen("DEVICE"), span = strlen("LAYERS");
    char layers[2 * NAME_MAX_SHOWN + 40], a[NAME_MAX_SHOWN + 1], b[NAME_MAX_SHOWN + 1];
    for (int pass = 0; pass < 2; pass++) {
        if (pass)
            fprintf(out, "%-5s  %-*s  %-*s  %10s  %11s  %10s\n", "STAGE", (int)wide, "DEVICE", (int)span,
                    "LAYERS", "COMPUTE", "TRANSFER IN", "MEMORY");
        for (size_t i = 0; i < p->n_stages; i++) {
            const struct plan_stage *s = &p->stages[i];
            if (s->n_layers == 1)
                snprintf(layers, sizeof layers, "%s", safe(a, s->layers[0]));
            else
                snprintf(layers, sizeof layers, "%s .. %s (%zu)", safe(a, s->layers[0]),
                         safe(b, s->layers[s->n_layers - 1]), s->n_layers);
            if (!pass) {
                span = strlen(layers) > span ? strlen(layers) : span;
                wide = strlen(safe(a, s->device)) > wide ? strlen(a) : wide;
                continue;
            }
            char c[16], t[16], m[16];
            seconds(c, s->compute_s);
            seconds(t, s->transfer_in_s);
            print_bytes(m, s->memory_bytes);
            fprintf(out, "%-5zu  %-*s  %-*s  %10s  %11s  %10s\n", i, (int)wide, safe(a, s->device), (int)span,
                    layers, c, t, m);
        }
    }
}

static void print_devices(const struct plan *p, FILE *out)
{
    size_t wide = strlen("DEVICE");
    char a[NAME_MAX_SHOWN + 1];
    for (size_t i = 0; i < p->n_devices; i++)
        wide = strlen(safe(a, p->devices[i].id)) > wide ? strlen(a) : wide;
    fprintf(out, "\n%-*s  %6s  %6s  %-11s  %s\n", (int)wide, "DEVICE", "MEMORY", "BUSY", "CODE", "WHY");
    for (size_t i = 0; i < p->n_devices; i++) {
        const struct plan_device *d = &p->devices[i];
        char why[200];
        size_t n = 0;
        for (; d->reason[n] && n + 1 < sizeof why; n++)
            why[n] = (unsigned char)d->reason[n] < 0x20 || d->reason[n] == 0x7f ? '?' : d->reason[n];
        why[n] = 0;
        fprintf(out, "%-*s  %5.1f%%  %5.1f%%  %-11s  %s\n", (int)wide, safe(a, d->id), 100 * d->memory_ratio,
                100 * d->busy_ratio, plan_code_name(d->code), why);
    }
}

/* One column a layer, or a share of them; each stage its own mark. */
static void print_strip(const struct plan *p, FILE *out)
{
    static const char marks[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    size_t layers = 0, done = 0;
    for (size_t i = 0; i < p->n_stages; i++)
        layers += p->stages[i].n_layers;
    size_t wide = layers < STRIP ? layers : STRIP;
    fprintf(out, "\nlayers  |");
    for (size_t i = 0, at = 0; i < p->n_stages; i++) {
        done += p->stages[i].n_layers;
        for (; at < done * wide / layers; at++)
            fputc(marks[i % (sizeof marks - 1)], out);
    }
    fprintf(out, "|  %zu layers, marked by stage\n", layers);
}

static void print_bars(const struct plan *p, FILE *out)
{
    size_t wide = 0;
    char a[NAME_MAX_SHOWN + 1];
    for (size_t i = 0; i < p->n_devices; i++)
        if (p->devices[i].code == PLAN_CODE_CHOSEN)
            wide = strlen(safe(a, p->devices[i].id)) > wide ? strlen(a) : wide;
    fprintf(out, "\nmemory\n");
    for (size_t i = 0; i < p->n_devices; i++) {
        const struct plan_device *d = &p->devices[i];
        if (d->code != PLAN_CODE_CHOSEN)
            continue;
        size_t full = (size_t)lround(fmin(fmax(d->memory_ratio, 0), 1) * BAR);
        fprintf(out, "%-*s  ", (int)wide, safe(a, d->id));
        for (size_t k = 0; k < BAR; k++)
            fputs(k < full ? "▇" : "·", out);
        fprintf(out, "  %5.1f%%\n", 100 * d->memory_ratio);
    }
}

static void print_replicas(const struct plan *p, FILE *out)
{
    char a[NAME_MAX_SHOWN + 1], c[16];
    for (size_t i = 0; i < p->n_stages; i++)
        for (size_t k = 0; k < p->stages[i].n_replicas; k++) {
            const struct plan_replica *r = &p->stages[i].replicas[k];
            seconds(c, r->compute_s);
            fprintf(out, "%sstage %zu shared: %s does %.1f%% of it, alone it would take %s\n",
                    k || i ? "" : "\n", i, safe(a, r->device), 100 * r->share, c);
        }
}

static void print_headline(const struct plan *p, FILE *out)
{
    char a[NAME_MAX_SHOWN + 1], b[NAME_MAX_SHOWN + 1], s[16], t[16];
    fprintf(out, "goal %s, ", plan_goal_name(p->goal));
    if (p->optimal)
        fprintf(out, "proven optimal (%s)\n", safe(a, p->solver));
    else
        fprintf(out, "not proven optimal: at most %.2f%% above the best (%s%s%s)\n",
                p->lower_bound > 0 ? 100 * (p->objective / p->lower_bound - 1) : INFINITY, safe(a, p->solver),
                p->stopped ? ", stopped by the limit on " : "", p->stopped ? safe(b, p->stopped) : "");
    seconds(s, p->latency_s);
    seconds(t, p->bottleneck_s);
    fprintf(out, "latency %s, bottleneck %s", s, t);
    if (p->bottleneck_s > 0)
        fprintf(out, " (%.4g steps/s)", 1 / p->bottleneck_s);
    fprintf(out, ", fullest device %.1f%%\n", 100 * p->max_memory_ratio);
    if (p->bottleneck.link)
        fprintf(out, "slowest: the link %s to %s\n\n", safe(a, p->bottleneck.from),
                safe(b, p->bottleneck.to));
    else
        fprintf(out, "slowest: %s\n\n", safe(a, p->bottleneck.device));
}

void ctl_plan_print(const struct plan *p, FILE *out)
{
    char a[NAME_MAX_SHOWN + 1], bytes[16];
    if (p->feasible == PLAN_YES) {
        print_headline(p, out);
        print_stages(p, out);
        print_replicas(p, out);
        print_strip(p, out);
        print_bars(p, out);
        print_devices(p, out);
        if (p->n_moves) {
            print_bytes(bytes, p->moved_bytes);
            fprintf(out, "\n%zu layers move, %s\n", p->n_moves, bytes);
        }
    } else if (p->has_shortfall) {
        print_bytes(bytes, p->shortfall.bytes);
        fprintf(out, "no %s plan exists: %s at %s", plan_goal_name(p->goal),
                plan_shortfall_name(p->shortfall.kind), safe(a, p->shortfall.where));
        if (p->shortfall.bytes > 0)
            fprintf(out, ", short of %s%s", p->shortfall.proven_minimum ? "" : "at least ", bytes);
        fprintf(out, "\n");
    } else {
        fprintf(out, "no %s plan was found before the limit, and none was ruled out\n",
                plan_goal_name(p->goal));
    }
    for (size_t i = 0; i < p->n_warnings; i++) {
        fprintf(out, "warning: ");
        for (const char *c = p->warnings[i]; *c; c++)
            fputc((unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c, out);
        fputc('\n', out);
    }
}
