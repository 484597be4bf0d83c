/* kv.c - see kv.h.
 *
 * Every block is in one of three places: held, idle (nothing worth keeping in it), or unused (named
 * and held by nobody).  made = used + idle + unused, and used + promised <= made, so that a promise
 * is kept by an idle block or by evicting an unused one. */
#include "engine/kv.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define BLOCKS_MAX  (1 << 24)
#define BUCKETS_MAX (1u << 16)

struct kv_store {
    struct engine *en;
    size_t block_bytes;
    int max, made, used, promised;
    struct kv_block *idle;
    struct kv_block *oldest, *newest; /* the unused */
    uint64_t last_id;
    struct kv_block **buckets; /* of named blocks, by hash */
    size_t bucket_count;       /* a power of two */
    int64_t evictions;
};

size_t kv_block_bytes(const struct engine *en)
{
    return en->kv_floats * (size_t)en->mw->conf.layers * sizeof(float);
}

struct kv_store *kv_create(struct engine *en, size_t bytes_max, struct err *e)
{
    struct kv_store *kv = calloc(1, sizeof *kv);
    if (!kv) goto fail;
    kv->en = en;
    kv->block_bytes = kv_block_bytes(en);
    size_t max = bytes_max / kv->block_bytes;
    kv->max = max > BLOCKS_MAX ? BLOCKS_MAX : (int)max;
    kv->bucket_count = 1;
    while (kv->bucket_count < max && kv->bucket_count < BUCKETS_MAX)
        kv->bucket_count *= 2;
    kv->buckets = calloc(kv->bucket_count, sizeof(struct kv_block *));
    if (!kv->buckets) goto fail;
    return kv;
fail:
    err_set(e, ERR_RETRY, "out of memory for the KV store");
    kv_free(kv);
    return NULL;
}

static void memory_release(const struct engine *en, struct kv_block *b)
{
    for (int r = 0; r < en->rank_count; r++)
        en->ranks[r]->ops->release(en->ranks[r]->dev, b->memory[r]);
}

static int memory_get(struct kv_store *kv, struct kv_block *b, struct err *e)
{
    const struct engine *en = kv->en;
    for (int r = 0; r < en->rank_count; r++) {
        b->memory[r] = en->ranks[r]->ops->alloc(en->ranks[r]->dev, kv->block_bytes, e);
        if (!b->memory[r]) return -1;
    }
    return 0;
}

static void block_free(struct kv_store *kv, struct kv_block *b)
{
    memory_release(kv->en, b);
    free(b);
    kv->made--;
}

void kv_free(struct kv_store *kv)
{
    if (!kv) return;
    assert(kv->used == 0 && kv->promised == 0); /* every sample is freed first */
    for (struct kv_block *b = kv->idle, *next; b; b = next) {
        next = b->chain;
        block_free(kv, b);
    }
    for (struct kv_block *b = kv->oldest, *next; b; b = next) {
        next = b->newer;
        block_free(kv, b);
    }
    assert(kv->made == 0);
    free(kv->buckets);
    free(kv);
}

int kv_blocks_max(const struct kv_store *kv)
{
    return kv->max;
}

int kv_blocks_busy(const struct kv_store *kv)
{
    return kv->used + kv->promised;
}

int64_t kv_evictions(const struct kv_store *kv)
{
    return kv->evictions;
}

/* ------------------------------------------------------------------ names */

/* FNV-1a over words of 32 bits. */
static uint64_t hash_of(uint64_t owner, uint64_t before, const int32_t *tokens)
{
    const uint32_t head[4] = {(uint32_t)owner, (uint32_t)(owner >> 32), (uint32_t)before,
                              (uint32_t)(before >> 32)};
    uint64_t h = 0xcbf29ce484222325u;
    for (int i = 0; i < 4; i++)
        h = (h ^ head[i]) * 0x100000001b3u;
    for (int i = 0; i < OPS_KV_BLOCK; i++)
        h = (h ^ (uint32_t)tokens[i]) * 0x100000001b3u;
    return h ^ h >> 32;
}

static struct kv_block **bucket_of(const struct kv_store *kv, uint64_t owner, uint64_t before,
                                   const int32_t *tokens)
{
    return &kv->buckets[hash_of(owner, before, tokens) & (kv->bucket_count - 1)];
}

struct kv_block *kv_find(const struct kv_store *kv, uint64_t owner, uint64_t before,
                         const int32_t *tokens)
{
    struct kv_block *b = *bucket_of(kv, owner, before, tokens);
    while (b && (b->owner != owner || b->before != before ||
                 memcmp(b->tokens, tokens, sizeof b->tokens)))
        b = b->chain;
    return b;
}

static void name_put(struct kv_store *kv, struct kv_block *b)
{
    struct kv_block **at = bucket_of(kv, b->owner, b->before, b->tokens);
    b->id = ++kv->last_id;
    b->chain = *at;
    *at = b;
}

static void name_drop(struct kv_store *kv, struct kv_block *b)
{
    struct kv_block **at = bucket_of(kv, b->owner, b->before, b->tokens);
    while (*at != b)
        at = &(*at)->chain;
    *at = b->chain;
    b->chain = NULL;
    b->id = 0;
}

/* ------------------------------------------------------------------ the unused */

static void unused_put(struct kv_store *kv, struct kv_block *b)
{
    b->older = kv->newest;
    b->newer = NULL;
    if (kv->newest)
        kv->newest->newer = b;
    else
        kv->oldest = b;
    kv->newest = b;
}

static void unused_drop(struct kv_store *kv, struct kv_block *b)
{
    if (b->older)
        b->older->newer = b->newer;
    else
        kv->oldest = b->newer;
    if (b->newer)
        b->newer->older = b->older;
    else
        kv->newest = b->older;
}

static struct kv_block *evict(struct kv_store *kv)
{
    struct kv_block *b = kv->oldest;
    assert(b);
    unused_drop(kv, b);
    name_drop(kv, b);
    kv->evictions++;
    return b;
}

/* ------------------------------------------------------------------ taking and giving */

static void idle_put(struct kv_store *kv, struct kv_block *b)
{
    b->chain = kv->idle;
    kv->idle = b;
}

/* One more idle block. */
static int make(struct kv_store *kv, struct err *e)
{
    struct kv_block *b = calloc(1, sizeof *b);
    if (!b) return err_set(e, ERR_RETRY, "out of memory for a KV block");
    if (memory_get(kv, b, e) < 0) {
        memory_release(kv->en, b);
        free(b);
        return -1;
    }
    kv->made++;
    idle_put(kv, b);
    return 0;
}

int kv_promise(struct kv_store *kv, int count, struct err *e)
{
    int spoken_for = kv->used + kv->promised;
    if (count > kv->max - spoken_for)
        return err_set(e, ERR_RETRY, "%d KV blocks are needed, %d are free", count,
                       kv->max > spoken_for ? kv->max - spoken_for : 0);
    while (kv->made < spoken_for + count)
        if (make(kv, e) < 0) return -1;
    kv->promised += count;
    return 0;
}

void kv_unpromise(struct kv_store *kv, int count)
{
    kv->promised -= count;
    assert(kv->promised >= 0);
}

/* New memory rather than somebody's prefix, as long as the budget has some. */
static struct kv_block *take(struct kv_store *kv)
{
    assert(kv->promised > 0);
    if (!kv->idle && kv->made < kv->max) {
        struct err no_matter = {0};
        (void)!make(kv, &no_matter); /* then an unused one goes: it was promised */
    }
    struct kv_block *b = kv->idle;
    if (b)
        kv->idle = b->chain;
    else
        b = evict(kv);
    b->chain = NULL;
    b->refs = 1;
    kv->promised--;
    kv->used++;
    return b;
}

static void hold(struct kv_store *kv, struct kv_block *b)
{
    if (b->refs++ > 0) return;
    unused_drop(kv, b);
    kv->used++;
}

static void drop(struct kv_store *kv, struct kv_block *b)
{
    if (--b->refs > 0) return;
    kv->used--;
    if (b->id)
        unused_put(kv, b);
    else
        idle_put(kv, b);
}

struct copying {
    struct kv_store *kv;
    struct kv_block *to;
    const struct kv_block *from;
};

static void copy(void *arg, int rank)
{
    const struct copying *c = arg;
    const struct engine *en = c->kv->en->ranks[rank];
    en->ops->copy(en->dev, c->to->memory[rank], c->from->memory[rank], c->kv->block_bytes);
}

void kv_copy(struct kv_store *kv, struct kv_block *to, const struct kv_block *from)
{
    engine_on_ranks(kv->en, copy, &(struct copying){kv, to, from});
}

/* ------------------------------------------------------------------ lines */

int kv_line_init(struct kv_line *l, int max, int ranks)
{
    *l = (struct kv_line){.max = max, .apart = (size_t)max + 1, .ranks = ranks};
    l->memory = calloc(l->apart * (size_t)ranks, sizeof(float *));
    l->blocks = calloc((size_t)max + 1, sizeof(struct kv_block *));
    return l->memory && l->blocks ? 0 : -1;
}

void kv_line_clear(struct kv_line *l)
{
    assert(l->count == l->borrowed && !l->promised);
    free(l->memory);
    free(l->blocks);
    *l = (struct kv_line){0};
}

static void append(struct kv_line *l, struct kv_block *b)
{
    assert(l->count < l->max);
    for (int r = 0; r < l->ranks; r++)
        l->memory[(size_t)r * l->apart + (size_t)l->count] = b->memory[r];
    l->blocks[l->count++] = b;
}

void kv_line_take(struct kv_store *kv, struct kv_line *l)
{
    assert(l->promised > 0);
    l->promised--;
    append(l, take(kv));
}

void kv_line_adopt(struct kv_store *kv, struct kv_line *l, struct kv_block *found)
{
    assert(found->id);
    hold(kv, found);
    if (l->promised) {
        l->promised--;
        kv_unpromise(kv, 1);
    }
    append(l, found);
    l->name = found->id;
}

void kv_line_borrow(struct kv_line *l, const struct kv_line *from, int count)
{
    assert(l->count == 0 && count <= from->count);
    for (int i = 0; i < count; i++)
        append(l, from->blocks[i]);
    l->borrowed = count;
    l->name = from->name;
}

void kv_line_name(struct kv_store *kv, struct kv_line *l, int index, uint64_t owner,
                  const int32_t *tokens)
{
    struct kv_block *b = kv_find(kv, owner, l->name, tokens);
    if (!b) {
        b = l->blocks[index];
        assert(!b->id);
        b->owner = owner;
        b->before = l->name;
        memcpy(b->tokens, tokens, sizeof b->tokens);
        name_put(kv, b);
    }
    l->name = b->id;
}

void kv_line_end(struct kv_store *kv, struct kv_line *l)
{
    while (l->count > l->borrowed)
        drop(kv, l->blocks[--l->count]);
    kv_unpromise(kv, l->promised);
    l->promised = 0;
}
