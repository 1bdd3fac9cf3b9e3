/* See monitor.h. The thread samples into its own memory and publishes a device's round under the lock. */
#include "agent/gpu/monitor.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "agent/gpu/monitor_priv.h"
#include "common/base/clock.h"
#include "common/base/str.h"

#define JOIN_NS NS_PER_S

static const struct monitor_source *const sources[] = {&monitor_host, &monitor_nvml, &monitor_drm};

struct device {
    const struct monitor_source *source; /* NULL = none knows it */
    void *ctx;
    struct {
        double value;
        uint64_t at_ns; /* 0 = never told */
    } last[GPU_FIELDS];
    char name[16];
    bool asleep;
};

struct monitor {
    const struct gpu_set *set;
    struct monitor_cfg cfg;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t turn; /* a round is complete, the end is near, the thread has left */
    bool stop, left, sampled;
    struct device v[GPU_MAX_DEVICES]; /* source and ctx: the thread's; the rest under lock */
};

static uint64_t now(const struct monitor *m)
{
    return clock_ns(m->cfg.clock);
}

static void device_open(struct monitor *m, size_t i)
{
    const struct gpu_info *g = gpu_set_info(m->set, i);
    struct device *d = &m->v[i];
    for (size_t k = 0; g && k < sizeof sources / sizeof sources[0]; k++) {
        if (sources[k]->open(&d->ctx, g, &m->cfg) < 0)
            continue;
        d->source = sources[k];
        pthread_mutex_lock(&m->lock);
        str_copy(d->name, sizeof d->name, d->source->name(d->ctx));
        pthread_mutex_unlock(&m->lock);
        return;
    }
}

static void device_sample(struct monitor *m, struct device *d)
{
    struct sample s = {0};
    d->source->read(d->ctx, now(m), &s);
    uint64_t at = now(m);
    pthread_mutex_lock(&m->lock);
    for (int f = 0; f < GPU_FIELDS; f++)
        if (s.told & 1u << f) {
            d->last[f].value = s.value[f];
            d->last[f].at_ns = at ? at : 1;
        }
    d->asleep = s.asleep;
    pthread_mutex_unlock(&m->lock);
}

static void wait_until(struct monitor *m, uint64_t from_now_ns)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    uint64_t at = (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec + from_now_ns;
    ts.tv_sec = (time_t)(at / NS_PER_S);
    ts.tv_nsec = (long)(at % NS_PER_S);
    pthread_cond_timedwait(&m->turn, &m->lock, &ts);
}

static void *sample_all(void *arg)
{
    struct monitor *m = arg;
    size_t n = gpu_set_count(m->set);
    for (size_t i = 0; i < n; i++)
        device_open(m, i);
    for (bool stop = false; !stop;) {
        uint64_t start = now(m);
        for (size_t i = 0; i < n; i++)
            if (m->v[i].source)
                device_sample(m, &m->v[i]);
        pthread_mutex_lock(&m->lock);
        m->sampled = true;
        pthread_cond_broadcast(&m->turn);
        for (uint64_t took; !m->stop && (took = now(m) - start) < m->cfg.interval_ns;)
            wait_until(m, m->cfg.interval_ns - took);
        stop = m->stop;
        pthread_mutex_unlock(&m->lock);
    }
    for (size_t i = 0; i < n; i++)
        if (m->v[i].source)
            m->v[i].source->close(m->v[i].ctx);
    pthread_mutex_lock(&m->lock);
    m->left = true;
    pthread_cond_broadcast(&m->turn);
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

int monitor_new(struct monitor **out, const struct gpu_set *set, const struct monitor_cfg *cfg, struct err *e)
{
    pthread_condattr_t attr;
    struct monitor *m = calloc(1, sizeof *m);
    if (!m)
        return err_set(e, ST_ENOMEM, "no memory to read sensors");
    m->set = set;
    m->cfg = *cfg;
    m->cfg.root = cfg->root ? cfg->root : "";
    m->cfg.nvml = cfg->nvml ? cfg->nvml : "libnvidia-ml.so.1";
    m->cfg.interval_ns = cfg->interval_ns ? cfg->interval_ns : NS_PER_S;
    m->cfg.clock = cfg->clock ? cfg->clock : clock_system();
    pthread_mutex_init(&m->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&m->turn, &attr);
    pthread_condattr_destroy(&attr);
    int rc = pthread_create(&m->thread, NULL, sample_all, m);
    if (rc != 0) {
        pthread_cond_destroy(&m->turn);
        pthread_mutex_destroy(&m->lock);
        free(m);
        return err_errno(e, rc, "cannot start the thread that reads sensors");
    }
    *out = m;
    return ST_OK;
}

/* Waits for *flag, at most timeout_ns. Under the lock. */
static bool wait_for(struct monitor *m, const bool *flag, uint64_t timeout_ns)
{
    uint64_t start = now(m);
    for (uint64_t took; !*flag && (took = now(m) - start) < timeout_ns;)
        wait_until(m, timeout_ns - took);
    return *flag;
}

void monitor_free(struct monitor *m)
{
    if (!m)
        return;
    pthread_mutex_lock(&m->lock);
    m->stop = true;
    pthread_cond_broadcast(&m->turn);
    bool left = wait_for(m, &m->left, JOIN_NS);
    pthread_mutex_unlock(&m->lock);
    if (!left) { /* the thread may still come back and use it all */
        pthread_detach(m->thread);
        return;
    }
    pthread_join(m->thread, NULL);
    pthread_cond_destroy(&m->turn);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

bool monitor_wait(struct monitor *m, uint64_t timeout_ns)
{
    pthread_mutex_lock(&m->lock);
    bool done = wait_for(m, &m->sampled, timeout_ns);
    pthread_mutex_unlock(&m->lock);
    return done;
}

void monitor_read(struct monitor *m, size_t i, struct gpu_readings *out)
{
    *out = (struct gpu_readings){0};
    if (i >= GPU_MAX_DEVICES)
        return;
    const struct device *d = &m->v[i];
    pthread_mutex_lock(&m->lock);
    uint64_t at = now(m);
    for (int f = 0; f < GPU_FIELDS; f++)
        if (d->last[f].at_ns)
            out->field[f] = (struct gpu_reading){.value = d->last[f].value,
                                                 .age_ns = at > d->last[f].at_ns ? at - d->last[f].at_ns : 0,
                                                 .valid = true};
    memcpy(out->source, d->name, sizeof out->source);
    out->asleep = d->asleep;
    pthread_mutex_unlock(&m->lock);
}
