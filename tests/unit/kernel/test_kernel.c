/* What a user's kernel may be: compiled ones pass, and each thing that is refused is refused for its reason.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "agent/kernel/kernel.h"

#define BASE 5u

/* The least module that passes: capability, memory model, entry point "main" of id 4, its size. */
static const uint32_t least[] = {
    0x07230203, 0x00010300, 0,  10,         0,    /* head */
    0x00020011, 1,                                /* OpCapability Shader */
    0x0003000e, 0,          1,                    /* OpMemoryModel Logical GLSL450 */
    0x0005000f, 5,          4,  0x6e69616d, 0,    /* OpEntryPoint GLCompute %4 "main" */
    0x00060010, 4,          17, 8,          4, 2, /* OpExecutionMode %4 LocalSize 8 4 2 */
    0x00010038,                                   /* OpFunctionEnd */
};
#define WORDS (sizeof least / sizeof least[0])

/* The least module with some words more at its end and one of its own changed (at 0: none is). */
static int with(size_t at, uint32_t word, const uint32_t *more, size_t n, const char *reason)
{
    uint32_t w[WORDS + 16], threads[3];
    struct err e = {0};
    const struct kernel_call c = {"main", 2, 0};
    assert_true(n <= 16);
    memcpy(w, least, sizeof least);
    if (n)
        memcpy(w + WORDS - 1, more, 4 * n);
    w[WORDS + n - 1] = least[WORDS - 1];
    if (at)
        w[at] = word;
    int rc = kernel_spirv((const uint8_t *)w, 4 * (WORDS + n), &c, threads, &e);
    if (rc < 0 && strcmp(e.reason, reason) != 0)
        fail_msg("%s instead of %s: %s", e.reason, reason, e.text);
    return rc;
}

#define MORE(reason, ...)                                                                                    \
    with(0, 0, (const uint32_t[]){__VA_ARGS__}, sizeof((const uint32_t[]){__VA_ARGS__}) / 4, reason)

static void test_spirv(void **state)
{
    uint32_t threads[3];
    struct err e = {0};
    const struct kernel_call c = {"main", 2, 0}, other = {"other", 2, 0};
    (void)state;
    assert_int_equal(kernel_spirv((const uint8_t *)least, sizeof least, &c, threads, &e), ST_OK);
    assert_true(threads[0] == 8 && threads[1] == 4 && threads[2] == 2);
    assert_int_equal(kernel_spirv((const uint8_t *)least, sizeof least, &other, threads, &e), ST_EINVAL);
    assert_string_equal(e.reason, "NO_ENTRY");
    for (size_t n = 0; n < sizeof least; n++) /* cut anywhere */
        assert_int_equal(kernel_spirv((const uint8_t *)least, n, &c, threads, &e), ST_EINVAL);
    assert_int_equal(with(1, 0x00010600, NULL, 0, "BAD_KERNEL"), ST_EINVAL);
    assert_int_equal(with(3, 0, NULL, 0, "BAD_KERNEL"), ST_EINVAL);
    assert_int_equal(with(3, 1u << 21, NULL, 0, "BAD_KERNEL"), ST_EINVAL);
    assert_int_equal(with(4, 1, NULL, 0, "BAD_KERNEL"), ST_EINVAL);
    assert_int_equal(with(5, 0x00000011, NULL, 0, "BAD_KERNEL"), ST_EINVAL); /* of no words */
    assert_int_equal(with(5, 0xffff0011, NULL, 0, "BAD_KERNEL"), ST_EINVAL);
    assert_int_equal(with(6, 5347, NULL, 0, "BAD_KERNEL"), ST_EINVAL); /* PhysicalStorageBufferAddresses */
    assert_int_equal(with(8, 5348, NULL, 0, "BAD_KERNEL"), ST_EINVAL);
    assert_int_equal(with(11, 0, NULL, 0, "BAD_KERNEL"), ST_EINVAL); /* a vertex shader */
    assert_int_equal(with(13, 0x6e69616e, NULL, 0, "NO_ENTRY"), ST_EINVAL);
    assert_int_equal(with(18, 1025, NULL, 0, "BAD_KERNEL"), ST_EINVAL);
    assert_int_equal(with(18, 0, NULL, 0, "BAD_KERNEL"), ST_EINVAL);
    assert_int_equal(with(18, 0xffffffff, NULL, 0, "BAD_KERNEL"), ST_EINVAL);
    assert_int_equal(with(16, 5, NULL, 0, "BAD_KERNEL"), ST_EINVAL); /* another's size */
}

static void test_spirv_resources(void **state)
{
    (void)state;
    assert_int_equal(MORE("", 0x00040047, 9, 33, 1), ST_OK); /* binding 1 of two */
    assert_int_equal(MORE("BAD_ARGUMENTS", 0x00040047, 9, 33, 2), ST_EINVAL);
    assert_int_equal(MORE("", 0x00040047, 9, 34, 0), ST_OK);
    assert_int_equal(MORE("BAD_KERNEL", 0x00040047, 9, 34, 1), ST_EINVAL); /* set 1 */
    assert_int_equal(MORE("", 0x0004003b, 7, 8, 12), ST_OK);               /* StorageBuffer */
    assert_int_equal(MORE("BAD_KERNEL", 0x0004003b, 7, 8, 0), ST_EINVAL);  /* an image, say */
    assert_int_equal(MORE("BAD_KERNEL", 0x0004003b, 7, 8, 2), ST_EINVAL);  /* Uniform */
    assert_int_equal(MORE("BAD_KERNEL", 0x0004003b, 7, 8, 5349), ST_EINVAL);
    assert_int_equal(MORE("BAD_KERNEL", 0x0003000a, 0x5f565053, 0x00000058), ST_EINVAL);
    assert_int_equal(MORE("BAD_KERNEL", 0x0005000f, 5, 5, 0x6e69616d, 0), ST_EINVAL); /* two of one name */
    assert_int_equal(MORE("BAD_KERNEL", 0x0004014b, 4, 38, 1), ST_EINVAL);            /* LocalSizeId */
    assert_int_equal(MORE("BAD_KERNEL", 0x0005000f, 5, 5, 0x41414141, 0x41414141),
                     ST_EINVAL); /* endless name */
}

static void test_compiled(void **state)
{
    (void)state;
#ifdef TEST_KERNELS
    static const uint32_t scale[] = {
#include "kernels/scale.spv.inc"
    };
    static const uint32_t wild[] = {
#include "kernels/wild.spv.inc"
    };
    uint32_t threads[3];
    struct err e = {0};
    struct kernel_call c = {"main", 2, 3};
    if (kernel_spirv((const uint8_t *)scale, sizeof scale, &c, threads, &e) < 0 ||
        kernel_spirv((const uint8_t *)wild, sizeof wild, &c, threads, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(threads[0], 64);
    c.spans = 1;
    assert_int_equal(kernel_spirv((const uint8_t *)scale, sizeof scale, &c, threads, &e), ST_EINVAL);
    assert_string_equal(e.reason, "BAD_ARGUMENTS");
#else
    skip();
#endif
}

static void ptx(const char *text, uint32_t spans, uint32_t scalars, const char *reason)
{
    struct err e = {0};
    const struct kernel_call c = {"k", spans, scalars};
    uint8_t *copy = malloc(strlen(text) + 1); /* its own block, so that a read past the end is seen */
    memcpy(copy, text, strlen(text));
    int rc = kernel_ptx(copy, strlen(text), &c, &e);
    free(copy);
    if (reason ? rc != ST_EINVAL || strcmp(e.reason, reason) != 0 : rc != ST_OK)
        fail_msg("%s: %s, %s", text, status_name(rc), e.text);
}

#define HEAD ".version 6.4\n.target sm_60\n.address_size 64\n"

static void test_ptx(void **state)
{
    (void)state;
    ptx(HEAD ".visible .entry k(.param .u64 a, .param .u64 .ptr .global .align 4 b,\n .param .f32 c)\n{ret;}",
        2, 1, NULL);
    ptx("// a comment\n/* .version 1 */" HEAD ".entry k ( .param .b64 a ) {}", 1, 0, NULL);
    ptx(HEAD ".entry j(.param .u32 x){} .entry k(.param .u64 a){}", 1, 0, NULL);
    ptx(HEAD ".entry k(.param .u64 a){}", 1, 1, "BAD_ARGUMENTS");
    ptx(HEAD ".entry k(.param .u64 a, .param .u32 b){}", 2, 0, "BAD_ARGUMENTS"); /* no place for an address */
    ptx(HEAD ".entry k(.param .align 8 .b8 a[64]){}", 1, 0, "BAD_ARGUMENTS");
    ptx(HEAD ".entry k(.param .u64 a[64]){}", 1, 0, "BAD_ARGUMENTS");
    ptx(HEAD ".entry k(.param .b8 a){}", 1, 0, "BAD_KERNEL");
    ptx(HEAD ".entry k(.param .u64 a", 1, 0, "BAD_KERNEL");
    ptx(HEAD ".entry k", 1, 0, "BAD_ARGUMENTS");
    ptx(HEAD ".entry kk(.param .u64 a){}", 1, 0, "NO_ENTRY");
    ptx(HEAD "// .entry k(.param .u64 a){}", 1, 0, "NO_ENTRY");
    ptx(HEAD "/* .entry k(.param .u64 a){}", 1, 0, "NO_ENTRY");
    ptx(HEAD ".entry k(.param .u64 a){} .entry k(.param .u64 a){}", 1, 0, "BAD_KERNEL");
    ptx(".target sm_60", 1, 0, "BAD_KERNEL");
    ptx("", 1, 0, "BAD_KERNEL");
    ptx(HEAD "\x01 .entry k(.param .u64 a){}", 1, 0, "BAD_KERNEL");
    ptx("\x7f"
        "ELF",
        1, 0, "BAD_KERNEL");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_spirv), cmocka_unit_test(test_spirv_resources),
                                       cmocka_unit_test(test_compiled), cmocka_unit_test(test_ptx)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
