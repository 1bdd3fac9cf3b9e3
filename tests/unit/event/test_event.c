/* The event table, its encoding, JSON. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "common/event/event.h"

static void table_is_sound(void **state)
{
    (void)state;
    const struct event_info *e;
    int last = 0;
    size_t n = 0;
    for (; (e = event_at(n)); n++) {
        assert_true(e->type > last); /* ascending: unique, and the binary search works */
        last = e->type;
        assert_ptr_equal(event_info(e->type), e);
        assert_ptr_equal(event_by_name(e->name), e); /* names unique */
        assert_non_null(strchr(e->name, '.'));
        if (strncmp(e->name, "security.", 9) == 0 || strncmp(e->name, "certificate.", 12) == 0)
            assert_int_equal(e->cls, EVENT_MUST);
        assert_true((e->cls == EVENT_SHED) == (e->severity == EVENT_DEBUG));
    }
    assert_true(n > 80);
    assert_null(event_info(0));
    assert_null(event_info(-5));
    assert_null(event_info(65535));
    assert_null(event_by_name("job.nonsense"));
    assert_null(event_by_name(NULL));
}

static void mission_types_are_there(void **state)
{
    (void)state;
    static const char *const names[] = {"device.list",
                                        "device.info",
                                        "device.allocate",
                                        "memory.allocate",
                                        "memory.deallocate",
                                        "memory.copy_to_device",
                                        "memory.copy_from_device",
                                        "memory.copy_device_to_device",
                                        "compute.execute",
                                        "compute.synchronize",
                                        "monitor.memory",
                                        "monitor.temperature",
                                        "monitor.power",
                                        "monitor.clock",
                                        "security.access_denied",
                                        "security.quota_exceeded",
                                        "security.policy_added",
                                        "security.policy_removed",
                                        "security.policy_updated",
                                        "system.backend_initialized",
                                        "system.backend_shutdown",
                                        "system.discovery_started",
                                        "system.discovery_completed",
                                        "plan.created",
                                        "layer.loaded",
                                        "layer.verified",
                                        "layer.released",
                                        "layer.fetched",
                                        "layer.migrated",
                                        "node.enrolled",
                                        "node.connected",
                                        "node.disconnected",
                                        "node.dead",
                                        "node.drained",
                                        "node.forgotten",
                                        "certificate.issued",
                                        "certificate.renewed",
                                        "certificate.rotated",
                                        "certificate.revoked",
                                        "certificate.refused",
                                        "security.ticket_issued",
                                        "security.ticket_refused",
                                        "security.ticket_revoked",
                                        "security.session_opened",
                                        "security.session_closed",
                                        "job.submitted",
                                        "job.queued",
                                        "job.reserved",
                                        "job.loading",
                                        "job.ready",
                                        "job.migrating",
                                        "job.paused",
                                        "job.degraded",
                                        "job.preempted",
                                        "job.releasing",
                                        "job.released",
                                        "job.failed",
                                        "job.cancelled",
                                        "thermal.warned",
                                        "thermal.derated",
                                        "thermal.paused",
                                        "thermal.resumed",
                                        "thermal.moved",
                                        "net.measured",
                                        "system.config_changed",
                                        "audit.checkpoint",
                                        "audit.sealed",
                                        "audit.loss"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        assert_non_null(event_by_name(names[i]));
}

static void words(void **state)
{
    (void)state;
    for (int i = EVENT_DEBUG; i <= EVENT_CRITICAL; i++) {
        int back = -1;
        assert_int_equal(event_severity_parse(event_severity_name(i), &back), ST_OK);
        assert_int_equal(back, i);
    }
    for (int i = EVENT_SUCCESS; i <= EVENT_DENIED; i++) {
        int back = -1;
        assert_int_equal(event_result_parse(event_result_name(i), &back), ST_OK);
        assert_int_equal(back, i);
    }
    int x;
    assert_int_equal(event_severity_parse("loud", &x), ST_EINVAL);
    assert_int_equal(event_result_parse(NULL, &x), ST_EINVAL);
    assert_string_equal(event_severity_name(9), "?");
    assert_string_equal(event_result_name(-1), "?");
}

static void classes(void **state)
{
    (void)state;
    struct audit_event e = event_make(EV_JOB_SUBMITTED, EVENT_SUCCESS, 1);
    assert_int_equal(event_class(&e), EVENT_MUST);
    e = event_make(EV_DEVICE_LIST, EVENT_SUCCESS, 1);
    assert_int_equal(event_class(&e), EVENT_KEEP);
    e = event_make(EV_DEVICE_LIST, EVENT_DENIED, 1);
    assert_int_equal(event_class(&e), EVENT_MUST);
    assert_int_equal(e.severity, EVENT_WARNING);
    e = event_make(EV_MONITOR_POWER, EVENT_SUCCESS, 1);
    assert_int_equal(event_class(&e), EVENT_SHED);
    e = event_make(EV_MONITOR_POWER, EVENT_FAILURE, 1);
    assert_int_equal(event_class(&e), EVENT_KEEP);
    e = event_make(EV_JOB_FAILED, EVENT_FAILURE, 1);
    assert_int_equal(e.severity, EVENT_ERROR);
}

static void round_trip(void **state)
{
    (void)state;
    struct audit_event e = event_make(EV_LAYER_LOADED, EVENT_SUCCESS, -12345678901234), d;
    e.principal = "spiffe://corp/user/älice";
    e.device = "dione/cuda:0";
    e.job = "j-1";
    e.meta = "{\"layer\":\"blk.0\",\"bytes\":42}";
    struct buf b = {0};
    assert_int_equal(event_encode(&e, &b), ST_OK);
    assert_int_equal(event_decode(b.data, b.len, &d), ST_OK);
    assert_int_equal(d.time_us, e.time_us);
    assert_int_equal(d.type, EV_LAYER_LOADED);
    assert_string_equal(d.principal, e.principal);
    assert_string_equal(d.device, e.device);
    assert_string_equal(d.node, "");
    assert_string_equal(d.job, "j-1");
    assert_string_equal(d.meta, e.meta);
    for (size_t n = 0; n < b.len; n++) /* no prefix passes */
        assert_int_equal(event_decode(b.data, n, &d), ST_ECORRUPT);
    assert_int_equal(buf_append(&b, "", 1), ST_OK);
    assert_int_equal(event_decode(b.data, b.len, &d), ST_ECORRUPT);
    buf_fini(&b);
}

static void dirty_strings_are_cleaned(void **state)
{
    (void)state;
    char longer[2000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    memcpy(longer + 255, "\xc3\xa9", 2); /* é across the bound: must not be cut in half */
    struct audit_event e = event_make(EV_JOB_FAILED, EVENT_FAILURE, 1), d;
    e.principal = "a\nb\xff"
                  "c\xc0\xaf\xed\xa0\x80";
    e.node = longer;
    e.error = longer;
    struct buf b = {0};
    assert_int_equal(event_encode(&e, &b), ST_OK);
    assert_int_equal(event_decode(b.data, b.len, &d), ST_OK);
    assert_string_equal(d.principal, "a?b?c?????");
    assert_int_equal(strlen(d.node), 255);
    assert_int_equal(strlen(d.error), EVENT_ERROR_MAX);
    buf_fini(&b);
}

static void bad_events_are_refused(void **state)
{
    (void)state;
    struct buf b = {0};
    struct audit_event e = event_make(EV_JOB_FAILED, EVENT_FAILURE, 1);
    e.meta = "{\"a\":}";
    assert_int_equal(event_encode(&e, &b), ST_EINVAL);
    char *big = malloc(EVENT_META_MAX + 3);
    memset(big, ' ', EVENT_META_MAX + 1);
    memcpy(big, "{}", 2);
    big[EVENT_META_MAX + 1] = 0;
    e.meta = big;
    assert_int_equal(event_encode(&e, &b), ST_ELIMIT);
    big[EVENT_META_MAX] = 0;
    assert_int_equal(event_encode(&e, &b), ST_OK);
    b.len = 0;
    free(big);
    e.meta = NULL;
    e.type = 7777;
    assert_int_equal(event_encode(&e, &b), ST_EINVAL);
    e.type = EV_JOB_FAILED;
    e.result = 3;
    assert_int_equal(event_encode(&e, &b), ST_EINVAL);
    e.result = 0;
    e.severity = -1;
    assert_int_equal(event_encode(&e, &b), ST_EINVAL);
    assert_int_equal(b.len, 0);
    buf_fini(&b);
}

static void json_validator(void **state)
{
    (void)state;
    static const char *const good[] = {"{}",
                                       " { } ",
                                       "{\"a\":1}",
                                       "{\"a\":[1,2,{\"b\":null}],\"c\":true,\"d\":false}",
                                       "{\"a\":-0.5e-7,\"b\":\"\\u00e9\\n\"}",
                                       "{\"é\":\"\\\\\"}"};
    static const char *const bad[] = {"",
                                      "[]",
                                      "1",
                                      "{",
                                      "{}}",
                                      "{a:1}",
                                      "{\"a\":01}",
                                      "{\"a\":1,}",
                                      "{\"a\":.5}",
                                      "{\"a\":\"\n\"}",
                                      "{\"a\":\"\\x\"}",
                                      "{\"a\":\"\\u12g4\"}",
                                      "{\"a\":+1}",
                                      "{\"a\":1.}",
                                      "{\"a\":1e}",
                                      "{\"a\":nul}",
                                      "{\"a\" 1}",
                                      "{\"a\":\"\xff\"}",
                                      "{\"a\":\"",
                                      "{\"a\":\"\\"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(event_json_object_ok(good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(event_json_object_ok(bad[i], strlen(bad[i])));
    char deep[200] = "{\"a\":";
    for (int i = 0; i < 15; i++)
        strcat(deep, "[");
    for (int i = 0; i < 15; i++)
        strcat(deep, "]");
    strcat(deep, "}");
    assert_true(event_json_object_ok(deep, strlen(deep)));
    memmove(deep + 6, deep + 5, strlen(deep) - 4);
    deep[5] = '[';
    strcpy(strrchr(deep, '}'), "]}");
    assert_false(event_json_object_ok(deep, strlen(deep)));
}

static void json_line_and_meta(void **state)
{
    (void)state;
    struct event_meta m = {0};
    assert_null(event_meta_text(&m));
    event_meta_str(&m, "who", "a\"b\\\n");
    event_meta_u64(&m, "n", UINT64_MAX);
    assert_string_equal(event_meta_text(&m), "{\"who\":\"a\\\"b\\\\\\u000a\",\"n\":18446744073709551615}");
    event_meta_i64(&m, "i", -3);
    event_meta_f64(&m, "f", 0.5);
    event_meta_f64(&m, "nan", NAN);
    event_meta_bool(&m, "b", true);
    struct audit_event e = event_make(EV_DEVICE_LIST, EVENT_SUCCESS, 1700000000000001);
    e.id = 7;
    e.principal = "user/al\x01ice\xff";
    e.meta = event_meta_text(&m);
    assert_non_null(e.meta);
    struct buf b = {0};
    assert_int_equal(event_json(&e, &b), ST_OK);
    assert_string_equal(buf_cstr(&b),
                        "{\"id\":7,\"time\":\"2023-11-14T22:13:20.000001Z\",\"time_us\":1700000000000001,"
                        "\"type\":\"device.list\",\"severity\":\"info\",\"result\":\"success\","
                        "\"principal\":\"user/al\\u0001ice\\ufffd\",\"meta\":{\"who\":\"a\\\"b\\\\\\u000a\","
                        "\"n\":18446744073709551615,\"i\":-3,\"f\":0.5,\"nan\":null,\"b\":true}}");
    assert_true(event_json_object_ok((const char *)b.data, b.len));
    buf_fini(&b);
    char *big = calloc(1, EVENT_META_MAX);
    memset(big, 'x', EVENT_META_MAX - 1);
    event_meta_str(&m, "big", big);
    assert_null(event_meta_text(&m)); /* too long: no text rather than cut JSON */
    free(big);
    event_meta_fini(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(table_is_sound),
                                       cmocka_unit_test(mission_types_are_there),
                                       cmocka_unit_test(words),
                                       cmocka_unit_test(classes),
                                       cmocka_unit_test(round_trip),
                                       cmocka_unit_test(dirty_strings_are_cleaned),
                                       cmocka_unit_test(bad_events_are_refused),
                                       cmocka_unit_test(json_validator),
                                       cmocka_unit_test(json_line_and_meta)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
