/* deal.c - several jobs' datums over the replicas (data parallelism), and one gradient of it all.
 *
 * Who computes a datum, and in which order gradients are summed, is decided by its item alone: not
 * by what else is in the call, or what it was added to.  So bits repeat, in any company and after a
 * replay.
 *
 * An adapter's pending gradient is the same on all replicas.  For an item the first replica goes on
 * with it; the others begin their own copy from zero.  When the item's passes are through, the copies
 * are summed in the order of the replicas (comm.h), and the sum is the pending gradient on each:
 * ((pending + datums of the first) + sum of the second's) + ...  Nothing needs memory of its own,
 * and optimizer steps need no word between replicas.
 *
 * One replica goes straight through all items.  With several, an adapter's next item can only begin
 * when the one before is summed up: a call is worked off in turns, of which each has one item with a
 * gradient of every adapter that is left. */
#include "engine/loss.h"
#include "engine/train.h"

struct deal {
    struct engine *en;
    struct train_item *items;
    int count;
    int *turns; /* [count] when an item is worked off */
    int turn_count, turn;
    struct train_work *work[ENGINE_RANKS_MAX]; /* of each replica */
    struct err errors[ENGINE_RANKS_MAX];
    int rc[ENGINE_RANKS_MAX];
};

/* ------------------------------------------------------------------ who gets what */

/* Where an item's first datum goes: a hash of its tokens (FNV-1a), so that many small items meet all
 * replicas and a replayed one the same. */
static int home_of(const struct train_item *item, int replicas)
{
    uint64_t h = 0xcbf29ce484222325u;
    const struct datum *d = item->datums;
    for (int i = 0; i < d->n; i++)
        h = (h ^ (uint32_t)d->tokens[i]) * 0x100000001b3u;
    return (int)((h ^ h >> 32) % (uint64_t)replicas);
}

/* The datums go one by one to who has the fewest tokens of the item so far, the next in the ring
 * from its home on if some have equally few. */
static void deal_item(struct deal *l, struct train_item *item, int turn)
{
    int n = l->en->replica_count, home = home_of(item, n);
    int64_t tokens[ENGINE_RANKS_MAX] = {0};
    for (int i = 0; i < item->datum_count; i++) {
        struct datum *d = &item->datums[i];
        int best = home;
        for (int k = 1; k < n; k++)
            if (tokens[(home + k) % n] < tokens[best]) best = (home + k) % n;
        train_add(l->work[best], item, d, turn);
        tokens[best] += d->n;
    }
}

static bool together(const struct deal *l, int i, int j)
{
    const struct train_item *a = &l->items[i], *b = &l->items[j];
    return a->adapter == b->adapter && a->forward_only == b->forward_only &&
           l->turns[i] == l->turns[j];
}

static bool seen_before(const struct deal *l, int i)
{
    for (int j = 0; j < i; j++)
        if (together(l, j, i)) return true;
    return false;
}

/* Adapter by adapter, as they first appear. */
static void deal_turn(struct deal *l, int turn, bool forward_only)
{
    for (int i = 0; i < l->count; i++) {
        if (l->turns[i] != turn || l->items[i].forward_only != forward_only || seen_before(l, i))
            continue;
        for (int j = i; j < l->count; j++)
            if (together(l, i, j)) deal_item(l, &l->items[j], turn);
    }
}

/* An item's turn: how many gradients of its adapter are before it. */
static void take_turns(struct deal *l)
{
    l->turn_count = 1;
    for (int i = 0; i < l->count; i++) {
        l->turns[i] = 0;
        if (l->en->replica_count == 1 || l->items[i].forward_only) continue;
        for (int j = 0; j < i; j++)
            if (l->items[j].adapter == l->items[i].adapter && !l->items[j].forward_only)
                l->turns[i]++;
        if (l->turns[i] >= l->turn_count) l->turn_count = l->turns[i] + 1;
    }
}

static int deal_out(struct deal *l, struct err *e)
{
    int datums = 0;
    for (int i = 0; i < l->count; i++)
        datums += l->items[i].datum_count;
    l->turns = arena_alloc(l->en->host, (size_t)l->count * sizeof *l->turns, e);
    if (!l->turns) return -1;
    for (int d = 0; d < l->en->replica_count; d++) {
        l->work[d] = train_begin(l->en->replicas[d], datums, e);
        if (!l->work[d]) return -1;
    }
    take_turns(l);
    for (int turn = 0; turn < l->turn_count; turn++) {
        deal_turn(l, turn, false);
        deal_turn(l, turn, true);
    }
    for (int d = 0; d < l->en->replica_count; d++)
        if (train_ready(l->work[d], e) < 0) return -1;
    return 0;
}

/* ------------------------------------------------------------------ a turn */

/* What the ranks of a replica do to the gradients of this turn: begin from zero, or sum up. */
struct told {
    const struct deal *deal;
    struct engine *en;
    bool sum;
};

static void do_gradients(void *arg, int rank)
{
    const struct told *t = arg;
    const struct deal *l = t->deal;
    const struct engine *en = t->en->ranks[rank];
    for (int i = 0; i < l->count; i++) {
        if (l->turns[i] != l->turn || l->items[i].forward_only) continue;
        const struct adapter *ad = adapter_at(en, l->items[i].adapter)->ranks[rank];
        float *gradient = adapter_gradient(ad);
        if (t->sum)
            en->comm_ops->all_reduce(en->replica_comm, gradient, ad->part_count);
        else
            en->ops->zero(en->dev, gradient, ad->part_count * sizeof(float));
    }
}

static void compute(void *arg, int replica)
{
    struct deal *l = arg;
    struct engine *en = l->en->replicas[replica];
    if (replica > 0) engine_on_ranks(en, do_gradients, &(struct told){l, en, false});
    l->rc[replica] = train_run(l->work[replica], l->turn, &l->errors[replica]);
}

static void sum_up(void *arg, int replica)
{
    struct deal *l = arg;
    struct engine *en = l->en->replicas[replica];
    engine_on_ranks(en, do_gradients, &(struct told){l, en, true});
    l->rc[replica] = engine_sync(en, &l->errors[replica]);
}

static int on_replicas(struct deal *l, team_fn *fn, struct err *e)
{
    engine_on_replicas(l->en, fn, l);
    for (int d = 0; d < l->en->replica_count; d++) {
        if (l->rc[d] == 0) continue;
        if (e) *e = l->errors[d];
        return -1;
    }
    return 0;
}

/* Nobody is waited for in a sum who did not come through the passes. */
static int run(struct deal *l, struct err *e)
{
    for (l->turn = 0; l->turn < l->turn_count; l->turn++) {
        if (on_replicas(l, compute, e) < 0) return -1;
        if (l->en->replica_count > 1 && on_replicas(l, sum_up, e) < 0) return -1;
    }
    return 0;
}

/* ------------------------------------------------------------------ a call */

static void settle(struct train_item *item)
{
    item->out_loss = 0;
    for (int k = 0; k < item->datum_count; k++) {
        const struct datum *d = &item->datums[k];
        double s = loss_sequence_ratio(&item->loss, d);
        for (int i = 0; i < d->n * datum_width(d); i++)
            item->out_loss += loss_value(&item->loss, d, i, (double)d->out_logprobs[i], s);
    }
    if (!item->forward_only) item->adapter->has_gradient = true;
}

int engine_train(struct engine *en, struct train_item *items, int count, struct err *e)
{
    struct deal l = {.en = en, .items = items, .count = count};
    if (count < 1) return 0;
    int rc = deal_out(&l, e) < 0 ? -1 : run(&l, e);
    for (int i = 0; i < count && rc == 0; i++)
        settle(&items[i]);
    for (int d = 0; d < en->replica_count; d++)
        arena_reset(en->replicas[d]->host);
    return rc;
}
