/* model_load.c - the base model: from files that were checked to matrices that are packed.
 *
 * Files are read once from beginning to end, tensor by tensor: hashed, looked at for values that
 * are not finite, and packed straight from the mapped pages, which are given back at once.  So
 * beside what stays there is never more than one tensor's pages, and those belong to the file. */
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "engine/model.h"
#include "engine/model_config.h"
#include "engine/model_file.h"
#include "seal/seal.h"

#define PIECE        4096 /* values converted at once */
#define ALIGN_FLOATS 16
#define WORTH_A_LINE ((size_t)1 << 30) /* bytes of files from which progress is told */

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "matrices are packed as files hold them");

struct loader {
    struct model_weights *mw;
    struct model_files files;
    struct seal_hash *hash;
    size_t done;
    int told; /* tenths */
};

/* ------------------------------------------------------------------ memory */

static size_t aligned(int width)
{
    return ((size_t)width + ALIGN_FLOATS - 1) / ALIGN_FLOATS * ALIGN_FLOATS;
}

void model_weights_size(const struct model_conf *mc, enum ops_dtype dtype, size_t *parameters,
                        size_t *bytes)
{
    size_t layer = 2 * (size_t)mc->hidden + 2 * (size_t)mc->head_dim;
    size_t table = (size_t)mc->vocab * (size_t)mc->ranks * (size_t)mc->hidden;
    size_t layers = (size_t)mc->layers;
    size_t gains = layers * 2 * (aligned(mc->hidden) + aligned(mc->head_dim)) + aligned(mc->hidden);
    for (int s = 0; s < SITES_A_LAYER; s++) {
        int in, out;
        site_size(mc, (enum lora_site)s, &in, &out);
        layer += (size_t)in * (size_t)out;
    }
    *parameters = layers * layer + (size_t)mc->hidden + table * (mc->tied ? 1 : 2);
    *bytes = gains * sizeof(float) + table * (dtype == OPS_BF16 ? sizeof(uint16_t) : sizeof(float));
}

int model_room_make(const struct model_files *f, struct model_weights *mw, struct err *e)
{
    size_t gains = 0, table = (size_t)mw->whole.vocab * (size_t)mw->whole.hidden;
    for (int i = 0; i < f->slot_count; i++)
        if (f->slots[i].gain) gains += aligned((int)f->slots[i].rows);
    mw->gains = mw->ops->alloc(mw->dev, gains * sizeof *mw->gains, e);
    if (!mw->gains) return -1;
    float *at = mw->gains;
    for (int i = 0; i < f->slot_count; i++) {
        if (!f->slots[i].gain) continue;
        *f->slots[i].gain = at;
        at += aligned((int)f->slots[i].rows);
    }
    if (mw->dtype == OPS_BF16)
        mw->embed_bf16 = mw->ops->alloc(mw->dev, table * sizeof *mw->embed_bf16, e);
    else
        mw->embed = mw->ops->alloc(mw->dev, table * sizeof *mw->embed, e);
    return mw->embed || mw->embed_bf16 ? 0 : -1;
}

int model_dtype_of(const char *weights, enum ops_dtype automatic, enum ops_dtype *out,
                   struct err *e)
{
    *out = automatic;
    if (!weights || !strcmp(weights, "auto")) return 0;
    *out = strcmp(weights, "bf16") ? OPS_F32 : OPS_BF16;
    if (*out == OPS_BF16 || !strcmp(weights, "fp32")) return 0;
    return err_set(e, ERR_USER, "weights is \"%.40s\", expected auto, fp32 or bf16", weights);
}

static int choose(struct loader *l, const char *weights, struct err *e)
{
    bool all_bf16 = true;
    for (int i = 0; i < l->files.slot_count; i++) {
        const struct slot *s = &l->files.slots[i];
        if (s->kind != SLOT_GAIN && s->found && s->found->dtype != DTYPE_BF16) all_bf16 = false;
    }
    return model_dtype_of(weights, all_bf16 ? OPS_BF16 : OPS_F32, &l->mw->dtype, e);
}

/* ------------------------------------------------------------------ tensors */

/* Into the device's memory, widened or rounded: float when to_float, else bf16. */
static void put(struct model_weights *mw, const struct safetensors_tensor *t, void *to,
                bool to_float)
{
    float wide[PIECE];
    uint16_t half[PIECE];
    for (size_t from = 0, n; from < t->count; from += n) {
        n = t->count - from < PIECE ? t->count - from : PIECE;
        if (to_float) {
            safetensors_read(t, from, n, wide);
            mw->ops->upload(mw->dev, (float *)to + from, wide, n * sizeof *wide);
        } else {
            safetensors_read_bf16(t, from, n, half);
            mw->ops->upload(mw->dev, (uint16_t *)to + from, half, n * sizeof *half);
        }
    }
}

/* This rank's columns of each row, side by side; the caller frees.  NULL: ERR_RETRY. */
static void *cut_columns(const struct model_weights *mw, const struct slot *s, struct err *e)
{
    size_t rows = (size_t)s->rows, row = (size_t)s->cols * safetensors_dtype_size(s->found->dtype);
    size_t part = row / (size_t)mw->conf.ranks;
    char *out = malloc(rows * part);
    if (!out) {
        err_set(e, ERR_RETRY, "out of memory: could not get %zu bytes", rows * part);
        return NULL;
    }
    const char *from = (const char *)s->found->data + (size_t)mw->rank * part;
    for (size_t r = 0; r < rows; r++)
        memcpy(out + r * part, from + r * row, part);
    return out;
}

/* This rank's part of the matrix.  *own is to be freed; it may stay NULL. */
static int part_of(const struct model_weights *mw, const struct slot *s, struct ops_matrix *m,
                   void **own, struct err *e)
{
    static const enum ops_dtype dtypes[] = {
        [DTYPE_F32] = OPS_F32, [DTYPE_BF16] = OPS_BF16, [DTYPE_F16] = OPS_F16};
    int ranks = mw->conf.ranks;
    *m = (struct ops_matrix){s->found->data, dtypes[s->found->dtype], (int)s->rows, (int)s->cols};
    if (ranks == 1) return 0;
    if (s->cut == CUT_OUT) {
        m->rows /= ranks;
        m->data = (const char *)m->data + s->found->size / (size_t)ranks * (size_t)mw->rank;
        return 0;
    }
    m->cols /= ranks;
    m->data = *own = cut_columns(mw, s, e);
    return *own ? 0 : -1;
}

static int pack_both(struct model_weights *mw, const struct slot *s, struct err *e)
{
    struct ops_matrix m;
    void *own = NULL;
    if (part_of(mw, s, &m, &own, e) < 0) return -1;
    *s->ahead = mw->ops->pack(mw->dev, &m, mw->dtype, false, e);
    if (*s->ahead) *s->back = mw->ops->pack_other_way(mw->dev, *s->ahead, &m, e);
    free(own);
    return *s->ahead && *s->back ? 0 : -1;
}

static int check_tied_copy(struct loader *l, const struct safetensors_tensor *copy, struct err *e)
{
    const struct safetensors_tensor *embed =
        model_slot_of(&l->files, "model.embed_tokens.weight")->found;
    if (embed->dtype == copy->dtype && !memcmp(embed->data, copy->data, copy->size)) return 0;
    return err_set(e, ERR_USER, "tensor \"%s\" differs from the embedding that it is tied to",
                   copy->name);
}

int model_slot_load(struct model_weights *mw, const struct slot *s, struct err *e)
{
    if (s->kind == SLOT_GAIN) put(mw, s->found, *s->gain, true);
    if (s->kind == SLOT_TABLE)
        put(mw, s->found, mw->embed ? (void *)mw->embed : mw->embed_bf16, mw->embed != NULL);
    return s->ahead ? pack_both(mw, s, e) : 0;
}

static int load_tensor(struct loader *l, const struct safetensors_tensor *t, struct err *e)
{
    struct model_weights *mw = l->mw;
    const struct slot *s = model_slot_of(&l->files, t->name);
    if (safetensors_check_values(t, mw->dtype == OPS_BF16 && s->kind != SLOT_GAIN, e) < 0)
        return -1;
    return s->kind == SLOT_TIED_COPY ? check_tied_copy(l, t, e) : model_slot_load(mw, s, e);
}

/* ------------------------------------------------------------------ files */

static void tell(struct loader *l, size_t size)
{
    l->done += size;
    int tenths = (int)(l->done * 10 / l->files.size);
    if (l->files.size < WORTH_A_LINE || tenths == l->told || l->mw->rank > 0) return;
    l->told = tenths;
    log_info("model.load", "percent=%d bytes=%zu", tenths * 10, l->files.size);
}

static int load_file(struct loader *l, struct safetensors *st, struct err *e)
{
    size_t size;
    const uint8_t *at = safetensors_bytes(st, &size), *end = at + size;
    for (int i = 0; i < safetensors_count(st); i++) {
        const struct safetensors_tensor *t = safetensors_at(st, i);
        const uint8_t *next = (const uint8_t *)t->data + t->size;
        seal_hash_add(l->hash, at, (size_t)(next - at)); /* the first brings the header along */
        if (load_tensor(l, t, e) < 0) return -1;
        safetensors_done(st, next);
        tell(l, (size_t)(next - at));
        at = next;
    }
    seal_hash_add(l->hash, at, (size_t)(end - at)); /* a file without tensors has a header yet */
    return safetensors_check(st, e);
}

static int load_files(struct loader *l, struct err *e)
{
    uint8_t digest[SEAL_SHA256_SIZE];
    int rc = 0;
    l->hash = seal_hash_begin(e);
    if (!l->hash) return -1;
    for (int i = 0; i < l->files.count && rc == 0; i++) {
        struct err changed = {0};
        rc = load_file(l, l->files.files[i], e);
        if (rc < 0 && e && e->kind == ERR_USER) err_prefix(e, "\"%s\"", l->files.paths[i]);
        /* what was found wrong may be zeros of a file that is gone: then that is the reason */
        if (rc < 0 && safetensors_check(l->files.files[i], &changed) < 0 && e) *e = changed;
    }
    seal_hash_end(l->hash, digest);
    seal_hex(digest, sizeof digest, l->mw->sha256);
    return rc;
}

int model_weights_begin(struct model_weights *mw, const char *dir, int ranks, struct err *e)
{
    if (model_config_read(dir, &mw->whole, e) < 0 ||
        model_config_part(&mw->whole, ranks, &mw->conf, e) < 0)
        return -1;
    mw->layers = calloc((size_t)mw->conf.layers, sizeof *mw->layers);
    mw->packed = calloc((size_t)mw->conf.layers, sizeof *mw->packed);
    return mw->layers && mw->packed ? 0 : err_set(e, ERR_RETRY, "out of memory");
}

static int load(struct loader *l, const char *dir, const char *weights, int ranks, struct err *e)
{
    struct model_weights *mw = l->mw;
    if (model_weights_begin(mw, dir, ranks, e) < 0) return -1;
    if (model_files_open(&l->files, mw, dir, e) < 0 || choose(l, weights, e) < 0) return -1;
    return model_room_make(&l->files, mw, e) < 0 ? -1 : load_files(l, e);
}

struct model_weights *model_weights_load(const char *dir, const char *weights, int rank, int ranks,
                                         const struct ops *ops, struct device *dev, struct err *e)
{
    struct model_weights *mw = calloc(1, sizeof *mw);
    struct loader *l = calloc(1, sizeof *l);
    int rc = -1;
    if (!mw || !l) {
        err_set(e, ERR_RETRY, "out of memory");
        goto out;
    }
    mw->ops = ops;
    mw->dev = dev;
    mw->rank = rank;
    l->mw = mw;
    rc = load(l, dir, weights, ranks, e);
    model_files_clear(&l->files);
out:
    free(l);
    if (rc == 0) return mw;
    model_weights_free(mw);
    return NULL;
}

void model_weights_free(struct model_weights *mw)
{
    if (!mw) return;
    for (int l = 0; mw->packed && l < mw->conf.layers; l++)
        for (int s = 0; s < SITES_A_LAYER; s++) {
            mw->ops->packed_free(mw->dev, mw->packed[l].back[s]);
            mw->ops->packed_free(mw->dev, mw->packed[l].ahead[s]);
        }
    if (mw->ops) {
        mw->ops->packed_free(mw->dev, mw->unembed_back);
        mw->ops->packed_free(mw->dev, mw->unembed);
        mw->ops->release(mw->dev, mw->embed);
        mw->ops->release(mw->dev, mw->embed_bf16);
        mw->ops->release(mw->dev, mw->gains);
    }
    free(mw->packed);
    free(mw->layers);
    free(mw);
}
