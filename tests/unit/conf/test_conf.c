/* That what a person got wrong is named with its line and its column. */
#include "common/conf/conf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

struct inner {
    int size;
    char *dir;
};
struct doc {
    char *name;
    struct inner *inner;
};

static const cyaml_schema_field_t inner_fields[] = {
    CYAML_FIELD_INT("size", CYAML_FLAG_OPTIONAL, struct inner, size),
    CYAML_FIELD_STRING_PTR("dir", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct inner, dir, 1, 100),
    CYAML_FIELD_END,
};
static const cyaml_schema_field_t doc_fields[] = {
    CYAML_FIELD_STRING_PTR("name", CYAML_FLAG_POINTER, struct doc, name, 1, 100),
    CYAML_FIELD_MAPPING_PTR("inner", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct doc, inner,
                            inner_fields),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct doc, doc_fields)};

static int parse(const char *text, struct doc **d, struct err *e)
{
    void *out;
    int rc = conf_parse("f.yaml", (const uint8_t *)text, strlen(text), &schema, &out, e);
    *d = out;
    return rc;
}

static void test_reads(void **st)
{
    (void)st;
    struct doc *d;
    struct err e = {0};
    assert_int_equal(parse("name: a\ninner:\n  size: 3\n  dir: /x\n", &d, &e), ST_OK);
    assert_string_equal(d->name, "a");
    assert_int_equal(d->inner->size, 3);
    assert_string_equal(d->inner->dir, "/x");
    conf_free(&schema, d);
    conf_free(&schema, NULL);
}

static void test_positions(void **st)
{
    (void)st;
    static const struct {
        const char *text, *says;
    } row[] = {
        {"name: a\nnmae: b\n", "f.yaml:2:1: unknown key 'nmae'"},
        {"nmae: b\n", "f.yaml:1:1: unknown key 'nmae'"},
        {"name: a\n\n# a remark\n\n\nbogus: 1\n", "f.yaml:6:1: unknown key 'bogus'"},
        {"name: frob\ninner:\n  dir: frob\n  frob: 1\n", "f.yaml:4:3: unknown key 'frob', in 'inner'"},
        {"name: a\ninner: {size: 1, dri: x}\n", "f.yaml:2:18: unknown key 'dri', in 'inner'"},
        {"name: a\ninner: {size: many}\n", "f.yaml:2:"},
        {"name: a\ninner: {size: many}\n", "in 'inner.size'"},
        {"name: a\nname\n", "f.yaml:"},
        {"inner: {size: 1}\n", "name"},
        {"name: [a\n", "f.yaml:1:"},
        {"name: &x a\ninner: *x\n", "f.yaml"},
        {"", "empty"},
        {"# nothing\n", "empty"},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct doc *d;
        struct err e = {0};
        assert_int_equal(parse(row[i].text, &d, &e), ST_ECONFIG);
        assert_null(d);
        if (!strstr(e.text, row[i].says))
            fail_msg("row %zu: '%s' does not say '%s'", i, e.text, row[i].says);
    }
}

static void test_files(void **st)
{
    (void)st;
    void *out;
    struct err e = {0};
    assert_int_equal(conf_read("/nonexistent/x.yaml", 100, &schema, &out, &e), ST_ENOENT);
    assert_null(out);
    char path[] = "/tmp/strata-yaml-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "name: abcdefgh\n", 15), 15);
    close(fd);
    assert_int_equal(conf_read(path, 10, &schema, &out, &e), ST_ELIMIT);
    assert_int_equal(conf_read(path, 100, &schema, &out, &e), ST_OK);
    conf_free(&schema, out);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest t[] = {cmocka_unit_test(test_reads), cmocka_unit_test(test_positions),
                                   cmocka_unit_test(test_files)};
    return cmocka_run_group_tests(t, NULL, NULL);
}
