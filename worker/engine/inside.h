/* inside.h - the engine's own struct, for the files that compute.
 *
 * An engine of n ranks (tensor parallelism) is n of these: each has a device with its part of the
 * model, a scratch and its end of the group that sums.  The first is the one that callers know.  It
 * leads: it alone plans passes, holds requests and KV blocks, chooses tokens and knows losses, so
 * there is nothing that ranks could disagree about.  What a pass computes runs on all ranks at once
 * (engine_on_ranks), each in its own thread; none of it can fail half way.
 *
 * An engine of n replicas (data parallelism) is n such sets, each of which could be an engine of its
 * own: it plans its passes and serves its requests.  Callers know the leader of the first.  Who deals
 * work out (replicas.c, deal.c, and what changes adapters) knows of all; what plans or computes a
 * pass, samples or keeps KV blocks is given the leader of one and knows of no other. */
#ifndef ENGINE_INSIDE_H
#define ENGINE_INSIDE_H

#include "base/arena.h"
#include "engine/engine.h"
#include "engine/model.h"
#include "engine/team.h"
#include "kernels/comm.h"
#include "kernels/ops.h"

struct kv_store;

struct engine {
    struct engine_info info;
    struct model_weights *mw;
    const struct ops *ops;
    struct device *dev;
    struct vocab *vocab;         /* NULL: the folder has no tokenizer */
    struct layer_packed *layers; /* [layers]; this and the next are the weights' */
    struct packed *unembed, *unembed_back;
    float *cosine, *sine; /* [context_max, head_dim / 2] */
    struct attn_shape shape;
    size_t kv_floats; /* of one block and layer */
    enum ops_dtype act_dtype; /* of activations between products */
    int pass_rows;      /* rows of one pass, unless one sequence alone has more */
    size_t logits_bytes; /* about what a chunk's logits may take */

    size_t scratch_bytes_max, scratch_bytes;
    char *scratch;      /* device memory of a pass's activations */
    struct arena *host; /* a pass's descriptors; reset by each call.  The leader's, on all ranks */

    bool paged_moments; /* as engine_conf's, on all ranks */

    int rank, rank_count;
    const struct comm_ops *comm_ops;
    struct comm *comm; /* NULL: one rank alone */
    int replica;               /* all ranks of one have its number */
    struct comm *replica_comm; /* with the same rank of the other replicas; NULL: one replica alone */
    int32_t *part_ids;    /* the head's room on the host (head.h), shared by all its chunks: */
    float *part_numbers;  /* only one is worked on at a time.  NULL: one rank alone */
    float *whole_row;     /* [whole.vocab] */

    /* of the leader only */
    struct engine *ranks[ENGINE_RANKS_MAX]; /* [rank_count]; the first is itself */
    struct team *team;                      /* NULL: one rank alone */
    struct kv_store *kv;
    struct sample *samples;   /* all that were added and not freed */
    uint64_t arrivals, serials; /* handed out so far: to requests, to weights */
    struct sample_stats stats;

    /* of the first replica's leader only */
    struct engine *replicas[ENGINE_RANKS_MAX]; /* [replica_count] leaders; the first is itself */
    int replica_count;
    struct team *replica_team; /* a thread for each leader; NULL: one replica alone */
    char numerics[160];        /* with more ranks or replicas than one */
};

/* engine_open() with random weights (model_weights_random()): of the folder only config.json need be there.  For
 * programs that measure. */
struct engine *engine_open_random(const struct engine_conf *conf, struct err *e);

/* Bytes of each of the two tables of rotary angles. */
size_t rope_bytes(const struct model_conf *mc);

/* Sets the bounds on memory, or their defaults for 0; *kv_bytes gets KV's. */
void engine_limits(struct engine *en, size_t scratch_max, size_t kv_max, size_t *kv_bytes);

/* What follows from the model's configuration and the device's table alone. */
void engine_shape(struct engine *en);

/* fn(arg, rank) on all ranks at once. */
void engine_on_ranks(struct engine *en, team_fn *fn, void *arg);
/* fn(arg, replica) for all replicas at once, each on its leader's thread. */
void engine_on_replicas(struct engine *en, team_fn *fn, void *arg);
/* Waits for the devices of all ranks of a replica. */
int engine_sync(struct engine *en, struct err *e) WARN_UNUSED;

/* x [count] becomes the sum over ranks, where there are several. */
static inline void engine_all_reduce(struct engine *en, float *x, size_t count)
{
    if (en->comm) en->comm_ops->all_reduce(en->comm, x, count);
}

/* Makes scratch at least this large on every rank (never beyond the maximum: ERR_USER). */
int engine_scratch(struct engine *en, size_t bytes, struct err *e) WARN_UNUSED;

/* ERR_USER for more devices than there may be. */
int replicas_check(int ranks, int replicas, struct err *e) WARN_UNUSED;
/* The leaders of conf's replicas, nothing in them yet but their number; ERR_USER as above. */
int replicas_make(struct engine *en, const struct engine_conf *conf, struct err *e) WARN_UNUSED;
/* Once all devices are open: the leaders' threads, and what sums over replicas. */
int replicas_join(struct engine *en, struct err *e) WARN_UNUSED;
/* While all devices are still open. */
void replicas_part(struct engine *en);

/* What the replica of leader en has of an adapter, whose first replica's is known to callers. */
static inline struct adapter *adapter_at(const struct engine *en, struct adapter *ad)
{
    return ad ? ad->replicas[en->replica] : NULL;
}

/* The samplers' share of closing: every sample must be gone. */
void engine_sampling_close(struct engine *en);
int engine_sampling_open(struct engine *en, size_t kv_bytes_max, struct err *e) WARN_UNUSED;

/* Does this replica have a request of this adapter, of which it is given its own, in flight? */
bool engine_sampling_uses(const struct engine *en, const struct adapter *ad);

#endif
