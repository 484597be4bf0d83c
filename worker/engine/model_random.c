/* model_random.c - a base model of a configuration alone, for programs that measure: what a product
 * costs does not depend on its numbers, and a model of 16 GB need not be written to a disk to be
 * read again.
 *
 * Matrices of one size are the same numbers: they are drawn once and packed for each layer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "engine/model.h"
#include "engine/model_file.h"

#define PIECE     4096 /* numbers drawn at once; a multiple of philox_fill()'s 4 */
#define SIZES_MAX 16

struct drawn {
    struct model_weights *mw;
    struct model_files files;
    struct safetensors_tensor tensors[SIZES_MAX]; /* no two of one size */
    void *data[SIZES_MAX];
    int count;
};

/* The file format's bf16 of a finite number: the upper half, to the nearest, ties to even. */
static uint16_t bf16_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* Variance 1 / cols, as model_main.c's; a gain is 1. */
static void draw(void *to, const struct safetensors_tensor *t)
{
    float x[PIECE], bound = sqrtf(3.0f / (float)t->shape[1]);
    for (size_t at = 0, n; at < t->count; at += n) {
        n = t->count - at < PIECE ? t->count - at : PIECE;
        if (t->rank == 2) philox_fill(x, n, at, bound, 1, t->name);
        for (size_t i = 0; i < n; i++) {
            if (t->rank == 1) x[i] = 1;
            if (t->dtype == DTYPE_F32)
                ((float *)to)[at + i] = x[i];
            else
                ((uint16_t *)to)[at + i] = bf16_of(x[i]);
        }
    }
}

/* What a slot of this size is filled with.  NULL: ERR_RETRY. */
static const struct safetensors_tensor *tensor_of(struct drawn *d, const struct slot *s,
                                                  struct err *e)
{
    for (int i = 0; i < d->count; i++)
        if (d->tensors[i].shape[0] == s->rows && d->tensors[i].shape[1] == s->cols)
            return &d->tensors[i];
    if (d->count == SIZES_MAX) {
        err_set(e, ERR_BUG, "a model has matrices of more than %d sizes", SIZES_MAX);
        return NULL;
    }
    struct safetensors_tensor *t = &d->tensors[d->count];
    *t = (struct safetensors_tensor){.dtype = d->mw->dtype == OPS_BF16 ? DTYPE_BF16 : DTYPE_F32,
                                     .rank = s->cols ? 2 : 1,
                                     .shape = {s->rows, s->cols}};
    snprintf(t->name, sizeof t->name, "%s", s->name);
    t->count = (size_t)s->rows * (size_t)(s->cols ? s->cols : 1);
    t->size = t->count * safetensors_dtype_size(t->dtype);
    t->data = d->data[d->count] = malloc(t->size);
    if (!t->data) {
        err_set(e, ERR_RETRY, "out of memory: could not get %zu bytes", t->size);
        return NULL;
    }
    draw(d->data[d->count++], t);
    return t;
}

static int fill(struct drawn *d, const char *dir, const char *weights, int ranks, struct err *e)
{
    struct model_weights *mw = d->mw;
    if (model_weights_begin(mw, dir, ranks, e) < 0 || model_slots_make(&d->files, mw, e) < 0 ||
        model_dtype_of(weights, mw->whole.says_bf16 ? OPS_BF16 : OPS_F32, &mw->dtype, e) < 0 ||
        model_room_make(&d->files, mw, e) < 0)
        return -1;
    for (int i = 0; i < d->files.slot_count; i++) {
        struct slot *s = &d->files.slots[i];
        if (s->kind == SLOT_TIED_COPY) continue;
        s->found = tensor_of(d, s, e);
        if (!s->found || model_slot_load(mw, s, e) < 0) return -1;
    }
    return mw->ops->sync(mw->dev, e);
}

struct model_weights *model_weights_random(const char *dir, const char *weights, int rank,
                                           int ranks, const struct ops *ops, struct device *dev,
                                           struct err *e)
{
    struct model_weights *mw = calloc(1, sizeof *mw);
    if (!mw) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    mw->ops = ops;
    mw->dev = dev;
    mw->rank = rank;
    struct drawn d = {.mw = mw};
    memset(mw->sha256, '0', sizeof mw->sha256 - 1);
    int rc = fill(&d, dir, weights, ranks, e);
    for (int i = 0; i < d.count; i++)
        free(d.data[i]);
    model_files_clear(&d.files);
    if (rc == 0) return mw;
    model_weights_free(mw);
    return NULL;
}
