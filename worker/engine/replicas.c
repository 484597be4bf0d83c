/* replicas.c - several sets of ranks as one engine: how they are held together, and which of them
 * serves a request.  What they do about gradients is deal.c's. */
#include <stdlib.h>
#include "engine/sample.h"

void engine_on_replicas(struct engine *en, team_fn *fn, void *arg)
{
    team_run(en->replica_team, fn, arg);
}

/* ------------------------------------------------------------------ opening and closing */

int replicas_check(int ranks, int replicas, struct err *e)
{
    if (ranks < 0 || ranks > ENGINE_RANKS_MAX)
        return err_set(e, ERR_USER, "ranks is %d, expected 1 to %d", ranks, ENGINE_RANKS_MAX);
    int most = ENGINE_RANKS_MAX / (ranks > 1 ? ranks : 1);
    if (replicas >= 0 && replicas <= most) return 0;
    if (ranks <= 1) return err_set(e, ERR_USER, "replicas is %d, expected 1 to %d", replicas, most);
    return err_set(e, ERR_USER, "replicas is %d, expected 1 to %d with ranks %d", replicas, most,
                   ranks);
}

int replicas_make(struct engine *en, const struct engine_conf *conf, struct err *e)
{
    int n = conf->replicas > 1 ? conf->replicas : 1;
    if (replicas_check(conf->ranks, conf->replicas, e) < 0) return -1;
    for (int d = 0; d < n; d++) {
        struct engine *one = en->replicas[d] = d ? calloc(1, sizeof *one) : en;
        if (!one) return err_set(e, ERR_RETRY, "out of memory");
        one->replica = d;
        en->replica_count = d + 1; /* so many are there to be closed */
    }
    return 0;
}

/* Those of each replica that have the same part of the model. */
static int join_rank(struct engine *en, int rank, struct err *e)
{
    struct device *devices[ENGINE_RANKS_MAX];
    struct comm *ends[ENGINE_RANKS_MAX];
    for (int d = 0; d < en->replica_count; d++)
        devices[d] = en->replicas[d]->ranks[rank]->dev;
    if (en->comm_ops->open(devices, en->replica_count, ends, e) < 0) return -1;
    for (int d = 0; d < en->replica_count; d++)
        en->replicas[d]->ranks[rank]->replica_comm = ends[d];
    return 0;
}

int replicas_join(struct engine *en, struct err *e)
{
    if (en->replica_count == 1) return 0;
    for (int r = 0; r < en->rank_count; r++)
        if (join_rank(en, r, e) < 0) return -1;
    en->replica_team = team_create(en->replica_count, e);
    return en->replica_team ? 0 : -1;
}

void replicas_part(struct engine *en)
{
    team_free(en->replica_team);
    for (int r = 0; r < en->rank_count; r++) {
        if (!en->ranks[r]->replica_comm) continue; /* one for all, or none */
        struct comm *ends[ENGINE_RANKS_MAX];
        for (int d = 0; d < en->replica_count; d++)
            ends[d] = en->replicas[d]->ranks[r]->replica_comm;
        en->comm_ops->close(ends, en->replica_count);
    }
}

/* ------------------------------------------------------------------ sampling */

/* The one with the most KV memory to spare.  A row's bits are the same on all of them. */
static struct engine *idlest(struct engine *en)
{
    struct engine *best = en;
    for (int d = 1; d < en->replica_count; d++)
        if (kv_blocks_busy(en->replicas[d]->kv) < kv_blocks_busy(best->kv)) best = en->replicas[d];
    return best;
}

struct sample *engine_sample_add(struct engine *en, struct adapter *adapter, const int32_t *prompt,
                                 int prompt_count, const struct sample_conf *conf, struct err *e)
{
    struct engine *one = idlest(en);
    return sampler_add(one, adapter_at(one, adapter), prompt, prompt_count, conf, e);
}

struct stepping {
    struct engine *en;
    struct err errors[ENGINE_RANKS_MAX];
    int left[ENGINE_RANKS_MAX];
};

static void step_replica(void *arg, int replica)
{
    struct stepping *s = arg;
    s->left[replica] = sampler_step(s->en->replicas[replica], &s->errors[replica]);
}

int engine_sample_step(struct engine *en, struct err *e)
{
    struct stepping s = {.en = en};
    int left = 0;
    engine_on_replicas(en, step_replica, &s);
    for (int d = 0; d < en->replica_count; d++) {
        if (s.left[d] < 0) {
            if (e) *e = s.errors[d];
            return -1;
        }
        left += s.left[d];
    }
    return left;
}

void engine_sample_free(struct engine *en, struct sample *s)
{
    if (s) sampler_remove(en->replicas[s->replica], s);
}

struct sample_stats engine_sample_stats(const struct engine *en)
{
    struct sample_stats all = {0};
    for (int d = 0; d < en->replica_count; d++) {
        struct sample_stats one = sampler_stats(en->replicas[d]);
        all.prompt_tokens += one.prompt_tokens;
        all.prompt_tokens_cached += one.prompt_tokens_cached;
        all.evictions += one.evictions;
        all.passes_replayed += one.passes_replayed;
        all.passes_plain += one.passes_plain;
    }
    return all;
}
