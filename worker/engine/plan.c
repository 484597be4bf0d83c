/* plan.c - see plan.h.  An engine without weights and without a device is asked for its sizes. */
#include "engine/plan.h"

#include "engine/head.h"
#include "engine/kv.h"
#include "engine/model_config.h"
#include "engine/sample.h"
#include "engine/train.h"

static size_t both_ways(const struct engine *en, int out, int in)
{
    enum ops_dtype keep = en->mw->dtype;
    return en->ops->packed_bytes(out, in, keep, false) + en->ops->packed_bytes(out, in, keep, true);
}

static size_t packed_total(const struct engine *en)
{
    const struct model_conf *mc = &en->mw->conf;
    size_t layer = 0;
    for (int s = 0; s < SITES_A_LAYER; s++) {
        int in, out;
        site_size(mc, (enum lora_site)s, &in, &out);
        layer += both_ways(en, out, in);
    }
    return layer * (size_t)mc->layers + both_ways(en, mc->vocab, mc->hidden);
}

/* The longest sequence of which a training pass still fits. */
static int longest_training(const struct engine *en, int rank)
{
    int fits = 0, over = en->mw->conf.context_max + 1;
    while (over - fits > 1) {
        int n = fits + (over - fits) / 2;
        if (train_bytes(en, n, train_blocks(n), rank, true) <= en->scratch_bytes_max)
            fits = n;
        else
            over = n;
    }
    return fits;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* With the widest adapters: a full pass of sequences of one token, each with a key block of its
 * own; or one sequence as long as the context; or a step of sampling. */
static size_t most_needed(const struct engine *en)
{
    int context = en->mw->conf.context_max;
    size_t full = train_bytes(en, ENGINE_PASS_ROWS, ENGINE_PASS_ROWS, ENGINE_RANK_MAX, true);
    size_t longest = train_bytes(en, context, train_blocks(context), ENGINE_RANK_MAX, true);
    return larger(larger(full, longest), sample_bytes(en));
}

static void plan_pass(const struct engine *en, int rank, struct memory_plan *p)
{
    p->token_training = pass_bytes(en, ENGINE_BLOCK_TOKENS, 1, rank, true) / ENGINE_BLOCK_TOKENS;
    p->token_forward = pass_bytes(en, ENGINE_BLOCK_TOKENS, 1, rank, false) / ENGINE_BLOCK_TOKENS;
    p->logits_chunk = head_bytes(en, rank, true);
    p->logits_rows = head_rows_max(en);
    p->longest_training = longest_training(en, rank);
    p->scratch = most_needed(en);
    if (p->scratch > en->scratch_bytes_max) p->scratch = en->scratch_bytes_max;
}

int memory_plan_make(const struct memory_plan_conf *conf, struct memory_plan *out, struct err *e)
{
    struct model_weights mw = {0};
    struct engine en = {.mw = &mw, .ops = ops_cpu()};
    struct memory_plan p = {0};
    if (lora_conf_check(&conf->lora, e) < 0) return -1;
    if (model_config_read(conf->model_dir, &mw.conf, e) < 0)
        return err_prefix(e, "could not read the configuration of model \"%s\"", conf->model_dir);
    enum ops_dtype said = mw.conf.says_bf16 ? OPS_BF16 : OPS_F32;
    if (model_dtype_of(conf->weights, said, &mw.dtype, e) < 0) return -1;
    p.bf16 = mw.dtype == OPS_BF16;
    model_weights_size(&mw.conf, mw.dtype, &p.parameters, &p.weights);
    engine_shape(&en);
    engine_limits(&en, conf->scratch_bytes_max, conf->kv_bytes_max, &p.kv);
    p.packed = packed_total(&en);
    p.rope = 2 * rope_bytes(&mw.conf);
    p.adapter = p.gradient = adapter_bytes(&en, &conf->lora, false);
    p.optimizer = adapter_bytes(&en, &conf->lora, true) - p.adapter - p.gradient;
    p.kv_block = kv_block_bytes(&en);
    p.kv_token = p.kv_block / ENGINE_BLOCK_TOKENS;
    plan_pass(&en, conf->lora.rank, &p);
    *out = p;
    return 0;
}

size_t memory_plan_total(const struct memory_plan *p, int adapters)
{
    size_t tenant = p->adapter + p->gradient + p->optimizer;
    return p->weights + p->packed + p->rope + tenant * (size_t)adapters + p->scratch + p->kv;
}
