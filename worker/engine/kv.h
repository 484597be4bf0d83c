/* kv.h - the memory of samples: blocks of 64 positions' keys and values, all layers; and the prefix
 * cache that is made of the same blocks.
 *
 * A block is held by whoever reads or writes it.  A full one may be named after what it holds: the
 * weights that computed it, the block before it and its own 64 tokens; by induction the name stands
 * for the whole beginning of a sequence.  A named block that nobody holds any more stays where it
 * is and can be found again, until its memory is needed: the one unused for longest goes first, a
 * block in use never.  So the cache has no memory of its own: it is what running samples leave of
 * the budget.
 *
 * Nobody takes a block that was not promised to him, and promises are kept: the store makes them
 * only for memory that exists and is idle or cached.  A request is promised the most it can ever
 * need when it is added, takes blocks as it grows and gives the rest of the promise back when a
 * sequence ends early.  So no step can run out.  (Promising less, and taking memory away from the
 * youngest in need, would admit more; it would also compute things twice just when there is most to
 * do.)
 *
 * A line is the blocks of one sequence in order.  Lines that begin alike share blocks. */
#ifndef ENGINE_KV_H
#define ENGINE_KV_H

#include "engine/inside.h"

struct kv_block {
    float *memory[ENGINE_RANKS_MAX]; /* on each rank, with its heads */
    int refs; /* lines that hold it */

    /* its name, when id is not 0 */
    uint64_t id;                  /* no two names ever have the same */
    uint64_t owner;               /* the weights; 0: the bare base model */
    uint64_t before;              /* id of the block before; 0: none */
    int32_t tokens[OPS_KV_BLOCK]; /* what it holds */

    struct kv_block *chain;         /* next idle one, or next of the same hash */
    struct kv_block *older, *newer; /* among named blocks that nobody holds */
};

struct kv_store;

/* bytes_max: on each rank. */
struct kv_store *kv_create(struct engine *en, size_t bytes_max, struct err *e);
void kv_free(struct kv_store *kv); /* NULL is fine; nothing may be held */
int kv_blocks_max(const struct kv_store *kv);
int kv_blocks_busy(const struct kv_store *kv); /* held or promised */
int64_t kv_evictions(const struct kv_store *kv); /* named blocks whose memory was taken */

/* Of one block on one rank, all layers. */
size_t kv_block_bytes(const struct engine *en);

/* Promises count blocks, or ERR_RETRY: not now. */
int kv_promise(struct kv_store *kv, int count, struct err *e) WARN_UNUSED;
void kv_unpromise(struct kv_store *kv, int count);

/* The block of that name, or NULL.  Not held yet. */
struct kv_block *kv_find(const struct kv_store *kv, uint64_t owner, uint64_t before,
                         const int32_t *tokens);

/* to = from, whole blocks */
void kv_copy(struct kv_store *kv, struct kv_block *to, const struct kv_block *from);

/* ------------------------------------------------------------------ lines */

struct kv_line {
    float **memory;           /* [ranks, apart] as attention wants them */
    size_t apart;             /* max + 1 */
    struct kv_block **blocks; /* beside memory */
    int count, max, ranks;
    int borrowed;  /* the first so many are held by another line, which lives longer */
    int promised;  /* blocks that it may still take */
    uint64_t name; /* id of the last full block, also when an equal block bears it: what comes next
                      is named after it; 0: there is none yet */
};

int kv_line_init(struct kv_line *l, int max, int ranks); /* -1: no memory */
void kv_line_clear(struct kv_line *l);        /* after kv_line_end() */

/* Appends: a block out of the promise; one that was found, in place of a promised one if there is
 * any; the first count blocks of another line. */
void kv_line_take(struct kv_store *kv, struct kv_line *l);
void kv_line_adopt(struct kv_store *kv, struct kv_line *l, struct kv_block *found);
void kv_line_borrow(struct kv_line *l, const struct kv_line *from, int count);

/* The line's block at index is filled by the pass that is being put together: names it, unless an
 * equal one has the name.  It may be adopted at once, for the same pass, because a pass writes the
 * keys of all its rows before any of them looks at keys. */
void kv_line_name(struct kv_store *kv, struct kv_line *l, int index, uint64_t owner,
                  const int32_t *tokens);

/* Gives up blocks and promise.  The last block counts as unused for longest: without those before
 * it, it cannot be found. */
void kv_line_end(struct kv_store *kv, struct kv_line *l);

#endif
