/* model inspect, model synth: offline, on this machine's files. */
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/model/model.h"
#include "common/model/synth.h"
#include "coordinator/ctl/ctl.h"

static void print_model(const struct model *m)
{
    static const char *const col[] = {"LAYER", "TYPE", "WEIGHTS>", "KV>", "MFLOP>", "TENSORS>"};
    struct table *t = table_new(col, 6);
    double total = 0;
    for (size_t i = 0; i < m->nlayers; i++) {
        const struct model_layer *l = &m->layers[i];
        char w[16], kv[16];
        fmt_bytes(w, (uint64_t)l->weight_bytes);
        fmt_bytes(kv, (uint64_t)l->kv_bytes);
        total += l->weight_bytes;
        table_cell(t, "%s", l->id);
        table_cell(t, "%s", layer_type_name(l->type));
        table_cell(t, "%s", w);
        table_cell(t, "%s", kv);
        table_cell(t, "%.1f", l->flops / 1e6);
        table_cell(t, "%zu", l->npieces);
    }
    char all[16];
    fmt_bytes(all, (uint64_t)total);
    printf("%s (%s), %zu layers, %s of weights, header %.12s\n\n", m->name,
           *m->arch ? m->arch : "unknown architecture", m->nlayers, all, *m->digest ? m->digest : "-");
    table_print(t, stdout);
    table_free(t);
}

int ctl_model_inspect(struct ctl *c, int argc, char **argv)
{
    const char *ctx = NULL, *seqs = NULL, *tok = NULL;
    struct model_options o = {0};
    const struct ctl_opt opts[] = {{.name = "context", .value = &ctx},
                                   {.name = "sequences", .value = &seqs},
                                   {.name = "tokens", .value = &tok},
                                   {.name = "split", .flag = &o.split}};
    int n = ctl_parse(argc, argv, opts, 4);
    if (n < 0)
        return 2;
    if (n != 1)
        return ctl_misuse(c, "model inspect needs one file");
    if (ctl_number(ctx, "context", 1ull << 40, &o.context) ||
        ctl_number(seqs, "sequences", 1u << 20, &o.sequences) ||
        ctl_number(tok, "tokens", 1u << 30, &o.tokens))
        return 2;
    struct model *m;
    struct err e;
    if (model_open(argv[0], &o, &m, &e) < 0)
        return ctl_fail(c, &e);
    int x = 0;
    if (c->json) { /* the planner's own format, so that it can be piped on */
        struct buf b = {0};
        if (model_write_json(m, &b) < 0 || fwrite(b.data, 1, b.len, stdout) != b.len || putchar('\n') == EOF)
            x = 1;
        buf_fini(&b);
    } else {
        print_model(m);
    }
    model_free(m);
    return x;
}

struct progress {
    const struct ctl *c;
};

static int on_progress(void *arg, uint64_t done, uint64_t total)
{
    ctl_bar(((struct progress *)arg)->c, "writing", done, total, "");
    return 0;
}

int ctl_model_synth(struct ctl *c, int argc, char **argv)
{
    const char *layers = NULL, *emb = NULL, *ff = NULL, *vocab = NULL, *size = NULL, *type = "Q8_0",
               *seed = NULL;
    struct synth_options o = {0};
    uint64_t nl = 0, ne = 0, nf = 0, nv = 0;
    const struct ctl_opt opts[] = {{.name = "layers", .value = &layers}, {.name = "embedding", .value = &emb},
                                   {.name = "ff", .value = &ff},         {.name = "vocab", .value = &vocab},
                                   {.name = "size", .value = &size},     {.name = "type", .value = &type},
                                   {.name = "seed", .value = &seed},     {.name = "name", .value = &o.name}};
    int n = ctl_parse(argc, argv, opts, 8);
    if (n < 0)
        return 2;
    if (n != 1)
        return ctl_misuse(c, "model synth needs one file");
    if (ctl_number(layers, "layers", 10000, &nl) || ctl_number(emb, "embedding", 1u << 20, &ne) ||
        ctl_number(ff, "ff", 1u << 22, &nf) || ctl_number(vocab, "vocab", 1u << 22, &nv) ||
        ctl_number(seed, "seed", UINT64_MAX, &o.seed))
        return 2;
    if (synth_type_parse(type, &o.type) < 0)
        return ctl_usage("--type: '%s' is none of F32, F16, Q8_0, Q4_0", type);
    if (size && parse_bytes(size, &o.target_bytes) < 0)
        return ctl_usage("--size: '%s' is no size such as 256MiB", size);
    o.layers = (uint32_t)nl;
    o.embedding = (uint32_t)ne;
    o.ff = (uint32_t)nf;
    o.vocab = (uint32_t)nv;
    struct err e;
    struct progress p = {c};
    uint64_t bytes;
    if (synth_plan(&o, &bytes, &e) < 0 || synth_write(argv[0], &o, on_progress, &p, &e) < 0)
        return ctl_fail(c, &e);
    ctl_bar_end(c);
    if (c->json)
        return ctl_print_json("strata.model.synth.v1",
                              json_pack("{s:s,s:I,s:I}", "path", argv[0], "bytes", (json_int_t)bytes,
                                        "layers", (json_int_t)o.layers));
    char s[16];
    fmt_bytes(s, bytes);
    printf("%s: %s, %u blocks\n", argv[0], s, o.layers);
    return 0;
}
