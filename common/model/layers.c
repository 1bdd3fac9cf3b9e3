/*
 * Tensors → layers, by name. GGUF says blk.N.attn_q.weight, other formats
 * model.layers.N.self_attn.q_proj.weight and the like; a name that fits nothing goes to the first layer, so
 * that no byte of a model is ever left out. Costs follow from the tensors' own shapes; the architecture's
 * figures add what shapes do not tell (experts used, heads, cache).
 */
#include "common/model/layers.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/model/model_priv.h"

enum section { SEC_EMBEDDING, SEC_TOWER, SEC_BLOCKS, SEC_NORM, SEC_OUTPUT };

struct slot {
    const struct tensor *t;
    const char *suffix; /* the name within the block, or the whole name */
    enum section section;
    uint32_t block;
    bool mlp;        /* the second half of a block */
    char prefix[72]; /* of a tower, such as "enc" */
};

static bool has(const char *s, const char *const *words)
{
    for (; *words; words++)
        if (strstr(s, *words))
            return true;
    return false;
}
#define HAS(s, ...) has((s), (const char *const[]){__VA_ARGS__, NULL})

/* "<prefix>.layers.12.<suffix>" and relatives. */
static bool parse_block(const char *name, struct slot *s)
{
    static const char *const words[] = {"blk.", "layers.", "h.", "blocks.", "block.", "layer.", NULL};
    static const char *const main_names[] = {"",
                                             "model",
                                             "transformer",
                                             "language_model.model",
                                             "model.language_model",
                                             "gpt_neox",
                                             "backbone",
                                             "decoder",
                                             "model.decoder",
                                             "bert.encoder",
                                             "encoder",
                                             "dec",
                                             "transformer.encoder",
                                             "language_model.transformer",
                                             NULL};
    for (const char *p = name; p; p = (p = strchr(p, '.')) ? p + 1 : NULL)
        for (const char *const *w = words; *w; w++) {
            size_t n = strlen(*w);
            if (strncmp(p, *w, n) || p[n] < '0' || p[n] > '9')
                continue;
            char *end;
            unsigned long b = strtoul(p + n, &end, 10);
            if (*end != '.' || b >= MODEL_MAX_LAYERS)
                continue;
            size_t len = p > name ? (size_t)(p - name) - 1 : 0;
            snprintf(s->prefix, sizeof s->prefix, "%.*s", (int)(len < 70 ? len : 70), name);
            for (const char *const *m = main_names; *m; m++)
                if (!strcmp(s->prefix, *m)) {
                    s->prefix[0] = 0;
                    break;
                }
            s->section = s->prefix[0] ? SEC_TOWER : SEC_BLOCKS;
            s->block = (uint32_t)b;
            s->suffix = end + 1;
            return true;
        }
    return false;
}

static bool is_output(const char *n)
{
    return !strncmp(n, "output.", 7) || !strncmp(n, "cls.", 4) ||
           HAS(n, "lm_head.", "embed_out.", "output_layer.") || !strncmp(n, "score.", 6);
}

static bool is_final_norm(const char *n)
{
    return HAS(n, "output_norm", "final_layernorm", "final_layer_norm", "ln_f.", "norm_f.") ||
           !strncmp(n, "norm.", 5) || !strncmp(n, "model.norm.", 11) ||
           HAS(n, "language_model.norm.", ".model.norm.");
}

static bool is_token_embedding(const char *n)
{
    return !strcmp(n, "token_embd.weight") ||
           HAS(n, "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight",
               "tok_embeddings.weight");
}

static void classify(const struct tensor *t, bool split, struct slot *s)
{
    *s = (struct slot){.t = t, .suffix = t->name};
    if (parse_block(t->name, s)) {
        s->mlp = split &&
                 HAS(s->suffix, "ffn", "mlp.", "feed_forward", "moe", "experts", "post_attention_layernorm",
                     "layer_output_norm", "fc1.", "fc2.", "ln_2.", "exp_probs");
        return;
    }
    if (is_final_norm(t->name))
        s->section = SEC_NORM;
    else if (is_output(t->name))
        s->section = SEC_OUTPUT;
}

static int by_slot(const void *a, const void *b)
{
    const struct slot *x = a, *y = b;
    int c;
    if (x->section != y->section)
        return x->section < y->section ? -1 : 1;
    if ((c = strcmp(x->prefix, y->prefix)))
        return c;
    if (x->block != y->block)
        return x->block < y->block ? -1 : 1;
    if (x->mlp != y->mlp)
        return x->mlp ? 1 : -1;
    if (x->t->file != y->t->file)
        return x->t->file < y->t->file ? -1 : 1;
    if (x->t->offset != y->t->offset)
        return x->t->offset < y->t->offset ? -1 : 1;
    return strcmp(x->t->name, y->t->name);
}

static bool same_layer(const struct slot *a, const struct slot *b)
{
    return a->section == b->section && a->block == b->block && a->mlp == b->mlp &&
           !strcmp(a->prefix, b->prefix);
}

struct costs {
    const struct hparams *h;
    const struct model_options *o;
    double tokens;    /* of one step, all sequences */
    double embedding; /* width of what goes between layers */
    double vocab;
};

static uint64_t of_block(const uint64_t *each, size_t n, uint32_t block, uint64_t all)
{
    return each && block < n ? each[block] : all;
}

/* Bytes an attention cache takes per token of one sequence in this block; 0 without attention. */
static double kv_per_token(const struct costs *c, const struct slot *s, size_t n)
{
    const struct hparams *h = c->h;
    double rows = 0;
    bool attention = false;
    for (size_t i = 0; i < n; i++) {
        const char *x = s[i].suffix;
        attention |= HAS(x, "attn_k", "attn_qkv", "attn_kv", "k_proj", "qkv", "c_attn", "query_key_value",
                         "kv_a", "kv_b", ".key.", "wk.");
        if (HAS(x, "attn_k.weight", "attn_v.weight", "k_proj.weight", "v_proj.weight") && s[i].t->ndims == 2)
            rows += (double)s[i].t->rows;
    }
    if (!attention || s->section != SEC_BLOCKS)
        return 0;
    if (h->kv_lora_rank)
        return (double)(h->kv_lora_rank + h->rope_dims) * c->o->kv_element_bytes;
    uint64_t heads = h->heads, kv = of_block(h->heads_kv_each, h->nheads_kv_each, s->block, h->heads_kv);
    if (!kv && !h->heads_kv)
        kv = of_block(h->heads_each, h->nheads_each, s->block, heads);
    uint64_t k = h->key_length ? h->key_length : heads ? h->embedding / heads : 0;
    uint64_t v = h->value_length ? h->value_length : k;
    if (h->heads_kv_each || (kv && k))
        rows = (double)kv * (double)(k + v);
    return rows * c->o->kv_element_bytes;
}

/* Tokens of context this block attends to. */
static double reach(const struct costs *c, uint32_t block)
{
    double ctx = (double)c->o->context;
    if (c->h->window && of_block(c->h->window_each, c->h->nwindow_each, block, 0) &&
        ctx > (double)c->h->window)
        ctx = (double)c->h->window;
    return ctx;
}

static double attention_flops(const struct costs *c, uint32_t block)
{
    const struct hparams *h = c->h;
    double heads = (double)of_block(h->heads_each, h->nheads_each, block, h->heads);
    double k = h->key_length ? (double)h->key_length : h->heads ? (double)h->embedding / (double)h->heads : 0;
    double v = h->value_length ? (double)h->value_length : k;
    double span =
        reach(c, block) - ((double)c->o->tokens - 1) / 2; /* causal: the mean over the step's tokens */
    return 2 * heads * (k + v) * c->tokens * (span > 1 ? span : 1);
}

static bool is_expert(const char *suffix)
{
    return HAS(suffix, "_exps", ".experts.");
}

static void block_costs(const struct costs *c, const struct slot *s, size_t n, struct model_layer *l)
{
    const struct hparams *h = c->h;
    double active = 1, touched = 1, widest = 0;
    if (h->experts && h->experts_used && h->experts_used < h->experts) {
        active = (double)h->experts_used / (double)h->experts;
        touched = 1 - pow(1 - active, c->tokens);
    }
    for (size_t i = 0; i < n; i++) {
        const struct tensor *t = s[i].t;
        bool expert = is_expert(s[i].suffix);
        l->read_bytes += (double)t->length * (expert ? touched : 1);
        if (t->ndims < 2)
            continue;
        l->flops += 2 * (double)t->elements * (expert ? active : 1) * c->tokens;
        double rows = (double)t->rows * (expert && t->ndims > 2 ? active : 1);
        widest = rows > widest ? rows : widest;
    }
    double kv = kv_per_token(c, s, n) * (double)c->o->sequences;
    if (kv > 0) {
        l->kv_bytes = kv * reach(c, s->block);
        l->read_bytes += l->kv_bytes;
        l->flops += attention_flops(c, s->block);
    }
    if (HAS(s->suffix, "ssm_") && h->ssm_inner) { /* a recurrent state in place of, or beside, a cache */
        double conv = h->ssm_conv ? (double)h->ssm_conv - 1 : 0;
        double state = (double)h->ssm_inner * ((double)h->ssm_state + conv) * 4 * (double)c->o->sequences;
        l->kv_bytes += state;
        l->read_bytes += state;
    }
    l->input_bytes = l->output_bytes = c->tokens * c->embedding * c->o->act_element_bytes;
    l->activation_bytes = c->tokens * 4 * (2 * c->embedding + 3 * widest);
}

static void embedding_costs(const struct costs *c, const struct slot *s, size_t n, struct model_layer *l)
{
    for (size_t i = 0; i < n; i++) {
        const struct tensor *t = s[i].t;
        bool table = t->ndims == 2 && HAS(t->name, "embd", "embed", "wte", "wpe");
        double rows = c->tokens < (double)t->rows ? c->tokens : (double)t->rows;
        l->read_bytes += table && t->rows ? (double)t->length / (double)t->rows * rows : (double)t->length;
    }
    l->input_bytes = c->tokens * 4; /* token numbers */
    l->output_bytes = c->tokens * c->embedding * c->o->act_element_bytes;
    l->activation_bytes = c->tokens * 4 * c->embedding;
}

static void end_costs(const struct costs *c, const struct slot *s, size_t n, struct model_layer *l)
{
    double seqs = (double)c->o->sequences, wide = c->tokens * c->embedding;
    l->read_bytes = l->weight_bytes;
    l->input_bytes = wide * c->o->act_element_bytes;
    if (s->section == SEC_NORM) {
        l->flops = 4 * wide;
        l->output_bytes = l->input_bytes;
        l->activation_bytes = wide * 4;
        return;
    }
    for (size_t i = 0; i < n; i++)
        if (s[i].t->ndims >= 2)
            l->flops += 2 * (double)s[i].t->elements * seqs; /* only the last token of each sequence */
    l->output_bytes = seqs * c->vocab * 4;
    l->activation_bytes = seqs * c->vocab * 4 + wide * 4;
}

static int layer_id(const struct slot *s, bool split, char **out)
{
    static const char *const names[] = {"embedding", "", "", "normalization", "output"};
    const char *half = !split ? "" : s->mlp ? ".mlp" : ".attention";
    int n;
    if (s->section == SEC_TOWER)
        n = asprintf(out, "%s.block.%" PRIu32 "%s", s->prefix, s->block, half);
    else if (s->section == SEC_BLOCKS)
        n = asprintf(out, "block.%" PRIu32 "%s", s->block, half);
    else
        n = asprintf(out, "%s", names[s->section]);
    if (n < 0)
        *out = NULL;
    return n < 0 ? ST_ENOMEM : ST_OK;
}

static int fill_layer(const struct costs *c, const struct slot *s, size_t n, struct model_layer *l)
{
    static const enum layer_type types[] = {LAYER_EMBEDDING, LAYER_BLOCK, LAYER_BLOCK, LAYER_NORMALIZATION,
                                            LAYER_OUTPUT};
    bool split = c->o->split;
    l->type = types[s->section];
    if (l->type == LAYER_BLOCK && split)
        l->type = s->mlp ? LAYER_MLP : LAYER_ATTENTION;
    if (layer_id(s, split, &l->id) < 0 || !(l->pieces = calloc(n, sizeof *l->pieces)))
        return ST_ENOMEM;
    for (size_t i = 0; i < n; i++) {
        struct model_piece *p = &l->pieces[l->npieces];
        *p = (struct model_piece){.file = s[i].t->file, .offset = s[i].t->offset, .length = s[i].t->length};
        if (!(p->tensor = strdup(s[i].t->name)))
            return ST_ENOMEM;
        l->npieces++;
        l->weight_bytes += (double)p->length;
    }
    if (s->section == SEC_EMBEDDING)
        embedding_costs(c, s, n, l);
    else if (s->section == SEC_TOWER || s->section == SEC_BLOCKS)
        block_costs(c, s, n, l);
    else
        end_costs(c, s, n, l);
    return ST_OK;
}

/* Slots of all tensors in layer order; a tied head gets the token embedding a second time. */
static int make_slots(const struct tensor_table *t, const struct hparams *h, bool split, struct slot **out,
                      size_t *n)
{
    struct slot *v = calloc(t->n + 1, sizeof *v);
    const struct tensor *embedding = NULL;
    bool head = strstr(h->arch, "bert") != NULL; /* encoders have none to tie */
    if (!v)
        return ST_ENOMEM;
    for (size_t i = 0; i < t->n; i++) {
        classify(&t->v[i], split, &v[i]);
        head |= v[i].section == SEC_OUTPUT && t->v[i].ndims >= 2;
        if (v[i].section == SEC_EMBEDDING && !embedding && is_token_embedding(t->v[i].name))
            embedding = &t->v[i];
    }
    *n = t->n;
    if (embedding && !head)
        v[(*n)++] = (struct slot){.t = embedding, .suffix = embedding->name, .section = SEC_OUTPUT};
    qsort(v, *n, sizeof *v, by_slot);
    *out = v;
    return ST_OK;
}

static void make_costs(const struct tensor_table *t, const struct hparams *h, const struct model_options *o,
                       struct costs *c)
{
    *c = (struct costs){.h = h, .o = o, .tokens = (double)o->tokens * (double)o->sequences};
    for (size_t i = 0; i < t->n; i++)
        if (t->v[i].ndims == 2 && t->v[i].rows && is_token_embedding(t->v[i].name)) {
            c->vocab = (double)t->v[i].rows;
            c->embedding = (double)(t->v[i].elements / t->v[i].rows);
        }
    if (h->embedding)
        c->embedding = (double)h->embedding;
    if (!(c->vocab > 0))
        c->vocab = (double)h->vocab;
}

/* A model that claims more blocks than it has tensors of would be planned and loaded wrongly. */
static int check_blocks(const struct slot *s, size_t n, const struct hparams *h, const char *what,
                        struct err *e)
{
    uint64_t found = 0;
    bool tower = false;
    for (size_t i = 0; i < n; i++) {
        tower |= s[i].section == SEC_TOWER;
        if (s[i].section != SEC_BLOCKS ||
            (i && s[i - 1].section == SEC_BLOCKS && s[i - 1].block == s[i].block))
            continue;
        if (s[i].block != found)
            return err_set(e, ST_ECORRUPT,
                           "%.200s: no tensor of block %" PRIu64 "; a file of the model is missing", what,
                           found);
        found++;
    }
    if (!tower && found < h->blocks)
        return err_set(e, ST_ECORRUPT,
                       "%.200s: holds %" PRIu64 " blocks but names %" PRIu64
                       "; a file of the model is missing",
                       what, found, h->blocks);
    return ST_OK;
}

static int build(const struct slot *s, size_t n, const struct costs *c, struct model **out)
{
    size_t layers = 0, at = 0;
    struct model *m;
    uint32_t on;
    int rc;
    for (size_t i = 0; i < n; i++)
        layers += !i || !same_layer(&s[i - 1], &s[i]);
    if (layers > MODEL_MAX_LAYERS)
        return ST_ELIMIT;
    if ((rc = model_alloc(&m, layers)) < 0)
        return rc;
    for (size_t i = 0; i < n; at++) {
        size_t k = 1;
        while (i + k < n && same_layer(&s[i], &s[i + k]))
            k++;
        if ((rc = fill_layer(c, s + i, k, &m->layers[at])) < 0 ||
            (rc = model_index_add(m, m->layers[at].id, (uint32_t)at)) < 0)
            goto fail;
        i += k;
    }
    if ((rc = model_set_chain(m)) < 0 || (rc = model_sort(m, &on)) < 0)
        goto fail;
    *out = m;
    return ST_OK;
fail:
    model_free(m);
    return rc;
}

int layers_build(const struct tensor_table *t, const struct hparams *h, const struct model_options *opt,
                 const char *what, struct model **out, struct err *e)
{
    struct costs c;
    struct slot *s;
    size_t n;
    if (!t->n)
        return err_set(e, ST_ECORRUPT, "%.200s: holds no tensors, so there is nothing to place", what);
    int rc = make_slots(t, h, opt->split, &s, &n);
    if (rc < 0)
        return err_set(e, rc, "%.200s: not enough memory for its layers", what);
    make_costs(t, h, opt, &c);
    if ((rc = check_blocks(s, n, h, what, e)) == ST_OK && (rc = build(s, n, &c, out)) < 0)
        err_set(e, rc, "%.200s: cannot make its layers (%s)", what, status_name(rc));
    free(s);
    return rc;
}
