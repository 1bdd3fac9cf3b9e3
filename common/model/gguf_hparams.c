/* GGUF metadata → figures of the architecture. Keys are "<arch>.<figure>"; unknown architectures work the
 * same. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/model/gguf.h"

/* Figures beyond this are nonsense and would only make products overflow. */
#define MAX_FIGURE (1ull << 40)

static void figure(const struct gguf *g, const char *arch, const char *name, uint64_t *out)
{
    char key[160];
    uint64_t v;
    snprintf(key, sizeof key, "%s.%s", arch, name);
    if (gguf_get_uint(g, key, &v) && v <= MAX_FIGURE)
        *out = v;
}

/* A figure that may differ by block: then *out is the largest and *each has them all. */
static int figures(const struct gguf *g, const char *arch, const char *name, uint64_t *out, uint64_t **each,
                   size_t *n)
{
    char key[160];
    snprintf(key, sizeof key, "%s.%s", arch, name);
    const struct gguf_kv *kv = gguf_get(g, key);
    figure(g, arch, name, out);
    if (!kv || kv->type != GGUF_ARRAY || !kv->each)
        return ST_OK;
    uint64_t *v = calloc((size_t)kv->count, sizeof *v);
    if (!v)
        return ST_ENOMEM;
    for (size_t i = 0; i < kv->count; i++) {
        v[i] = kv->each[i] <= MAX_FIGURE ? kv->each[i] : 0;
        if (v[i] > *out)
            *out = v[i];
    }
    free(*each); /* asked for one figure under two keys */
    *each = v;
    *n = (size_t)kv->count;
    return ST_OK;
}

int gguf_hparams(const struct gguf *g, struct hparams *h)
{
    const char *arch = gguf_get_string(g, "general.architecture"), *name = gguf_get_string(g, "general.name");
    str_copy(h->arch, sizeof h->arch, arch ? arch : "");
    str_copy(h->name, sizeof h->name, name ? name : "");
    arch = h->arch;
    uint64_t *ff_each = NULL, ignored_max = 0;
    size_t nff = 0;
    figure(g, arch, "block_count", &h->blocks);
    figure(g, arch, "embedding_length", &h->embedding);
    figure(g, arch, "context_length", &h->context);
    figure(g, arch, "attention.key_length", &h->key_length);
    figure(g, arch, "attention.value_length", &h->value_length);
    figure(g, arch, "expert_count", &h->experts);
    figure(g, arch, "expert_used_count", &h->experts_used);
    figure(g, arch, "vocab_size", &h->vocab);
    figure(g, arch, "attention.kv_lora_rank", &h->kv_lora_rank);
    figure(g, arch, "rope.dimension_count", &h->rope_dims);
    figure(g, arch, "ssm.state_size", &h->ssm_state);
    figure(g, arch, "ssm.inner_size", &h->ssm_inner);
    figure(g, arch, "ssm.conv_kernel", &h->ssm_conv);
    figure(g, arch, "attention.sliding_window", &h->window);
    int rc;
    if ((rc = figures(g, arch, "feed_forward_length", &h->ff, &ff_each, &nff)) < 0 ||
        (rc = figures(g, arch, "attention.head_count", &h->heads, &h->heads_each, &h->nheads_each)) < 0 ||
        (rc = figures(g, arch, "attention.head_count_kv", &h->heads_kv, &h->heads_kv_each,
                      &h->nheads_kv_each)) < 0 ||
        (rc = figures(g, arch, "attention.sliding_window_pattern", &ignored_max, &h->window_each,
                      &h->nwindow_each)) < 0)
        hparams_fini(h);
    free(ff_each);
    return rc;
}
