/* Tables of tensors. */
#include "common/model/tensor.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int tensor_table_add(struct tensor_table *t, struct tensor **out)
{
    if (t->n >= TENSOR_MAX_COUNT)
        return ST_ELIMIT;
    if (t->n == t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 64;
        struct tensor *v = realloc(t->v, cap * sizeof *v);
        if (!v)
            return ST_ENOMEM;
        t->v = v;
        t->cap = cap;
    }
    *out = &t->v[t->n++];
    memset(*out, 0, sizeof **out);
    return ST_OK;
}

void tensor_table_fini(struct tensor_table *t)
{
    for (size_t i = 0; i < t->n; i++)
        free(t->v[i].name);
    free(t->v);
    *t = (struct tensor_table){0};
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

static int by_place(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    if (x->length != y->length) /* an empty tensor may share its place with the next */
        return x->length < y->length ? -1 : 1;
    return by_name(a, b);
}

int tensor_table_check(struct tensor_table *t, const char *what, struct err *e)
{
    if (!t->n)
        return ST_OK;
    qsort(t->v, t->n, sizeof *t->v, by_name);
    for (size_t i = 1; i < t->n; i++)
        if (!strcmp(t->v[i - 1].name, t->v[i].name))
            return err_set(e, ST_ECORRUPT, "%.200s: tensor %.100s is listed twice", what, t->v[i].name);
    qsort(t->v, t->n, sizeof *t->v, by_place);
    for (size_t i = 1; i < t->n; i++) {
        const struct tensor *a = &t->v[i - 1], *b = &t->v[i];
        if (a->file == b->file && b->length && a->offset + a->length > b->offset)
            return err_set(e, ST_ECORRUPT,
                           "%.200s: tensors %.80s and %.80s overlap at byte %" PRIu64
                           "; the file is damaged, get it again",
                           what, a->name, b->name, b->offset);
    }
    return ST_OK;
}

void hparams_fini(struct hparams *h)
{
    free(h->heads_each);
    free(h->heads_kv_each);
    free(h->window_each);
    memset(h, 0, sizeof *h);
}
