/* The network in state.db: latest figures come back, the history rolls up into hours and days and thins. */
#include "tests/unit/store/store_rig.h"

#include "coordinator/store/db.h"
#include "coordinator/store/store_priv.h"

#include <string.h>

#define HOUR (3600ll * 1000000)
#define DAY (24 * HOUR)
#define T0 (20000 * DAY)

static void submit(struct rig *r, struct store_txn *t)
{
    assert_non_null(t);
    assert_int_equal(store_submit(r->s, t, NULL, NULL), ST_OK);
}

/* One measurement: a round trip and a rate, or a failure when rtt_ms is 0. */
static void sample(struct rig *r, int64_t at, uint64_t rtt_ms, uint64_t rate)
{
    struct store_txn *t = store_txn_new();
    store_txn_net_put(
        t, &(struct store_net){.from = "a", .to = "b", .doc = "x\0y", .doc_len = 3, .updated_us = at});
    store_txn_net_sample(t, &(struct store_net_sample){.from = "a",
                                                       .to = "b",
                                                       .time_us = at,
                                                       .failures = !rtt_ms,
                                                       .rates = rate != 0,
                                                       .rtt_sum_ns = rtt_ms * 1000000,
                                                       .loss_sum_ppm = rtt_ms ? 0 : 1000000,
                                                       .rate_sum = rate});
    submit(r, t);
}

struct seen {
    struct store_net_sample row[16];
    size_t n;
};

static int take(void *arg, const struct store_net_sample *s)
{
    struct seen *k = arg;
    assert_true(k->n < 16);
    assert_string_equal(s->from, "a");
    assert_string_equal(s->to, "b");
    k->row[k->n++] = *s;
    return 0;
}

static struct seen history(struct rig *r, int64_t since, int64_t now)
{
    struct seen k = {0};
    struct err e;
    if (store_net_history(r->s, "a", "", since, now, 100, take, &k, &e) != ST_OK)
        fail_msg("%s", e.text);
    return k;
}

static int see_link(void *arg, const struct store_net *n)
{
    assert_string_equal(n->from, "a");
    assert_string_equal(n->to, "b");
    assert_int_equal(n->doc_len, 3);
    assert_memory_equal(n->doc, "x\0y", 3);
    ++*(unsigned *)arg;
    return 0;
}

static unsigned links(struct rig *r)
{
    struct err e;
    unsigned n = 0;
    assert_int_equal(store_load_net(r->s, see_link, &n, &e), ST_OK);
    return n;
}

static void latest_figures_come_back(void **state)
{
    struct rig *r = *state;
    rig_start(r);
    sample(r, T0, 10, 100);
    sample(r, T0 + 1, 12, 100);
    rig_reopen(r);
    assert_int_equal(links(r), 1);
    rig_start(r);
    struct store_txn *t = store_txn_new();
    store_txn_net_forget(t, "b");
    submit(r, t);
    rig_reopen(r);
    assert_int_equal(links(r), 0);
    assert_int_equal(history(r, T0, T0 + HOUR).n, 0);
}

static void history_rolls_up(void **state)
{
    struct rig *r = *state;
    rig_start(r);
    sample(r, T0, 10, 1000);
    sample(r, T0 + HOUR / 2, 30, 0); /* round trips alone */
    sample(r, T0 + HOUR, 0, 0);      /* not reached */
    sample(r, T0 + HOUR + 1, 20, 3000);
    rig_reopen(r);
    struct seen k = history(r, T0, T0 + 2 * HOUR);
    assert_int_equal(k.n, 4); /* newest first */
    assert_int_equal(k.row[0].time_us, T0 + HOUR + 1);
    assert_int_equal(k.row[1].failures, 1);
    assert_int_equal(k.row[3].rtt_min_ns, 10000000);
    k = history(r, T0, T0 + 3 * DAY); /* hours */
    assert_int_equal(k.n, 2);
    assert_int_equal(k.row[1].time_us, T0);
    assert_int_equal(k.row[1].span_us, HOUR);
    assert_int_equal(k.row[1].samples, 2);
    assert_int_equal(k.row[1].rtt_min_ns, 10000000);
    assert_int_equal(k.row[1].rtt_max_ns, 30000000);
    assert_int_equal(k.row[1].rtt_sum_ns, 40000000);
    assert_int_equal(k.row[1].rates, 1);
    /* A failure is counted, and is no round trip of zero. */
    assert_int_equal(k.row[0].samples, 2);
    assert_int_equal(k.row[0].failures, 1);
    assert_int_equal(k.row[0].rtt_min_ns, 20000000);
    assert_int_equal(k.row[0].rate_min, 3000);
    k = history(r, T0, T0 + 60 * DAY); /* days */
    assert_int_equal(k.n, 1);
    assert_int_equal(k.row[0].samples, 4);
    assert_int_equal(k.row[0].rate_min, 1000);
    assert_int_equal(k.row[0].rate_max, 3000);
    assert_int_equal(k.row[0].loss_sum_ppm, 1000000);
}

static void history_thins(void **state)
{
    struct rig *r = *state;
    rig_start(r);
    sample(r, T0, 10, 1000);
    sample(r, T0 + 40 * DAY, 10, 1000);
    struct store_txn *t = store_txn_new();
    store_txn_net_expire(t, T0 + 40 * DAY + HOUR);
    submit(r, t);
    rig_reopen(r);
    assert_int_equal(history(r, T0 + 40 * DAY, T0 + 40 * DAY + HOUR).n, 1);
    assert_int_equal(history(r, T0 + 20 * DAY, T0 + 40 * DAY).n, 1);
    assert_int_equal(history(r, T0, T0 + 40 * DAY).n, 2); /* the days stay */
    int64_t v;
    struct err e;
    assert_int_equal(db_int(r->s->db, "SELECT count(*) FROM net_history", 0, &v, &e), ST_OK);
    assert_int_equal(v, 4); /* one single, one hour, two days */
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test_setup_teardown(latest_figures_come_back, setup, teardown),
        cmocka_unit_test_setup_teardown(history_rolls_up, setup, teardown),
        cmocka_unit_test_setup_teardown(history_thins, setup, teardown),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
