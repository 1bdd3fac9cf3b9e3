/* SPIR-V: a walk over the instructions, each within the module, of which those are read that say what it
 * needs. */
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "agent/gpu/exec.h"
#include "agent/kernel/kernel.h"

#define MAGIC 0x07230203u
#define HEAD_WORDS 5u
#define BOUND_MAX (1u << 20) /* of ids: drivers allocate by it */

enum {
    OP_EXTENSION = 10,
    OP_EXT_INST_IMPORT = 11,
    OP_MEMORY_MODEL = 14,
    OP_ENTRY_POINT = 15,
    OP_EXECUTION_MODE = 16,
    OP_CAPABILITY = 17,
    OP_FUNCTION_END = 56,
    OP_VARIABLE = 59,
    OP_DECORATE = 71,
    OP_EXECUTION_MODE_ID = 331,
};
enum { CAP_MATRIX = 0, CAP_SHADER = 1, CAP_GROUP_NON_UNIFORM = 61 };
enum { MODEL_GL_COMPUTE = 5, MODE_LOCAL_SIZE = 17, ADDRESSING_LOGICAL = 0, MEMORY_GLSL450 = 1 };
enum { DECORATION_BINDING = 33, DECORATION_SET = 34 };
/* Input, Workgroup, Private, Function, PushConstant, StorageBuffer */
#define STORAGE_OK (1u << 1 | 1u << 4 | 1u << 6 | 1u << 7 | 1u << 9 | 1u << 12)

struct look {
    const struct kernel_call *call;
    uint32_t *threads, entry; /* entry: its id, 0 = not seen */
    bool model, sized;
    struct err *e;
};

static uint32_t word(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* A literal string in an instruction's operands: its length, or -1 when it does not end in there. */
static int64_t literal(const uint8_t *p, uint32_t words)
{
    const uint8_t *end = memchr(p, 0, (size_t)words * 4);
    return end ? end - p : -1;
}

static bool literal_is(const uint8_t *p, uint32_t words, const char *want)
{
    int64_t n = literal(p, words);
    return n >= 0 && (size_t)n == strlen(want) && memcmp(p, want, (size_t)n) == 0;
}

static int bad(struct look *l, const char *what)
{
    return err_reason(l->e, ST_EINVAL, "BAD_KERNEL", "the SPIR-V module %s", what);
}

static int entry_point(struct look *l, const uint8_t *p, uint32_t n)
{
    if (n < 3 || literal(p + 8, n - 2) < 0)
        return bad(l, "has an entry point that is cut off");
    if (word(p) != MODEL_GL_COMPUTE)
        return bad(l, "has an entry point that is no compute shader");
    if (!literal_is(p + 8, n - 2, l->call->entry))
        return ST_OK;
    if (l->entry || !word(p + 4))
        return bad(l, "has two entry points of one name");
    l->entry = word(p + 4);
    return ST_OK;
}

static int execution_mode(struct look *l, const uint8_t *p, uint32_t n)
{
    uint64_t threads = 1;
    if (n < 2)
        return bad(l, "has an execution mode that is cut off");
    if (word(p + 4) != MODE_LOCAL_SIZE || word(p) != l->entry || !l->entry)
        return ST_OK;
    if (n != 5)
        return bad(l, "has a local size that is cut off");
    for (int i = 0; i < 3; i++) {
        uint32_t v = word(p + 8 + 4 * i);
        l->threads[i] = v;
        threads = v > GPU_OWN_THREADS ? UINT64_MAX >> 11 : threads * v;
    }
    if (!threads || threads > GPU_OWN_THREADS)
        return bad(l, "has groups of no threads, or of more than 1024");
    l->sized = true;
    return ST_OK;
}

static int decorate(struct look *l, const uint8_t *p, uint32_t n)
{
    if (n < 2)
        return bad(l, "has a decoration that is cut off");
    uint32_t which = word(p + 4);
    if (which != DECORATION_BINDING && which != DECORATION_SET)
        return ST_OK;
    if (n != 3)
        return bad(l, "has a decoration that is cut off");
    if (which == DECORATION_SET && word(p + 8) != 0)
        return bad(l, "uses a descriptor set other than 0");
    if (which == DECORATION_BINDING && word(p + 8) >= l->call->spans)
        return err_reason(l->e, ST_EINVAL, "BAD_ARGUMENTS",
                          "the kernel uses the buffer of binding %" PRIu32 " and the call gives it %" PRIu32,
                          word(p + 8), l->call->spans);
    return ST_OK;
}

/* p, n: the operands. */
static int instruction(struct look *l, uint32_t op, const uint8_t *p, uint32_t n)
{
    switch (op) {
    case OP_CAPABILITY:
        if (n != 1 || (word(p) != CAP_MATRIX && word(p) != CAP_SHADER && word(p) != CAP_GROUP_NON_UNIFORM))
            return bad(l, "needs a capability other than Shader");
        return ST_OK;
    case OP_EXTENSION:
        return literal_is(p, n, "SPV_KHR_storage_buffer_storage_class")
                   ? ST_OK
                   : bad(l, "needs an extension that is not offered");
    case OP_EXT_INST_IMPORT:
        return n > 1 && literal_is(p + 4, n - 1, "GLSL.std.450")
                   ? ST_OK
                   : bad(l, "imports instructions other than GLSL.std.450");
    case OP_MEMORY_MODEL:
        if (n != 2 || word(p) != ADDRESSING_LOGICAL || word(p + 4) != MEMORY_GLSL450 || l->model)
            return bad(l, "is not of logical addressing and the memory model GLSL450");
        l->model = true;
        return ST_OK;
    case OP_ENTRY_POINT:
        return entry_point(l, p, n);
    case OP_EXECUTION_MODE:
        return execution_mode(l, p, n);
    case OP_EXECUTION_MODE_ID:
        return bad(l, "computes its group's size; give it as numbers");
    case OP_DECORATE:
        return decorate(l, p, n);
    case OP_VARIABLE:
        if (n < 3)
            return bad(l, "has a variable that is cut off");
        return word(p + 8) < 32 && STORAGE_OK >> word(p + 8) & 1
                   ? ST_OK
                   : bad(l, "uses resources other than storage buffers and push constants; compile it with "
                            "--target-env=vulkan1.1 or later");
    default:
        return ST_OK;
    }
}

int kernel_spirv(const uint8_t *code, size_t n, const struct kernel_call *c, uint32_t threads[3],
                 struct err *e)
{
    struct look l = {.call = c, .threads = threads, .e = e};
    size_t words = n / 4;
    uint32_t last = 0;
    int rc = ST_OK;
    if (n % 4 || words < HEAD_WORDS || words > KERNEL_MAX_BYTES / 4 || word(code) != MAGIC)
        return bad(&l, "is none: it begins with other bytes, or is cut off");
    if (word(code + 4) < 0x10000 || word(code + 4) > 0x10500 || word(code + 4) & 0xff)
        return bad(&l, "is of a version other than 1.0 to 1.5");
    if (!word(code + 12) || word(code + 12) > BOUND_MAX || word(code + 16))
        return bad(&l, "has a header that no compiler writes");
    for (size_t at = HEAD_WORDS; at < words && rc == ST_OK;) {
        uint32_t w = word(code + 4 * at), len = w >> 16;
        if (!len || len > words - at)
            return bad(&l, "has an instruction that reaches past its end");
        rc = instruction(&l, w & 0xffff, code + 4 * (at + 1), len - 1);
        at += len;
        last = w & 0xffff;
    }
    if (rc < 0)
        return rc;
    if (last != OP_FUNCTION_END)
        return bad(&l, "is cut off: it does not end with a function");
    if (!l.model)
        return bad(&l, "names no memory model");
    if (!l.entry)
        return err_reason(e, ST_EINVAL, "NO_ENTRY", "the module has no entry point '%s'", c->entry);
    return l.sized ? ST_OK : bad(&l, "does not say how many threads a group has");
}
