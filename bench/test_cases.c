/* The table of cases and the judgement of results. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "bench/bench.h"

static void test_table(void **st)
{
    (void)st;
    for (size_t i = 0; i < bench_cases_n; i++) {
        const struct bench_case *c = &bench_cases[i];
        assert_true(*c->area && *c->name && *c->unit && *c->peer_name);
        assert_true((c->aim == AIM_NONE) == (c->bound == 0));
        for (size_t k = 0; k < i; k++)
            assert_true(strcmp(c->area, bench_cases[k].area) || strcmp(c->name, bench_cases[k].name));
    }
}

static void test_met(void **st)
{
    (void)st;
    struct bench_case c = {"a", "n", "u", "p", AIM_RATIO_MIN, 0.85};
    struct bench_result r = {.ours = 85, .peer = 100, .ran = true};
    assert_int_equal(bench_met(&c, &r), 1);
    r.ours = 84;
    assert_int_equal(bench_met(&c, &r), 0);
    r.peer = 0;
    assert_int_equal(bench_met(&c, &r), 0);
    c.aim = AIM_RATIO_MAX;
    assert_int_equal(bench_met(&c, &r), 0);
    r.peer = 100;
    assert_int_equal(bench_met(&c, &r), 1);
    c.aim = AIM_OURS_MIN;
    c.bound = 84;
    assert_int_equal(bench_met(&c, &r), 1);
    c.aim = AIM_OURS_MAX;
    c.bound = 83.9;
    assert_int_equal(bench_met(&c, &r), 0);
    r.ran = false;
    assert_int_equal(bench_met(&c, &r), -1);
    c.aim = AIM_NONE;
    r.ran = true;
    assert_int_equal(bench_met(&c, &r), -1);
}

static void test_median(void **st)
{
    (void)st;
    double odd[] = {5, 1, 9}, even[] = {4, 1, 2, 3};
    assert_true(fabs(bench_median(odd, 3) - 5) < 1e-9);
    assert_true(fabs(bench_median(even, 4) - 2.5) < 1e-9);
    assert_true(bench_median(odd, 0) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_met),
        cmocka_unit_test(test_median),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
