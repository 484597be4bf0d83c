/* plan.c - see plan.h.  An engine without weights and without a device is asked for its sizes. */
#include "engine/plan.h"

#include "engine/head.h"
#include "engine/kv.h"
#include "engine/model_config.h"
#include "engine/sample.h"
#include "engine/train.h"

/* What the sizes depend on. */
struct planned {
    struct engine en;
    struct model_weights mw;
    bool gpu;
};

static size_t both_ways(const struct planned *d, int out, int in)
{
    const struct engine *en = &d->en;
    enum ops_dtype keep = d->mw.dtype;
    size_t value = keep == OPS_BF16 ? sizeof(uint16_t) : sizeof(float);
    if (d->gpu) return (size_t)out * (size_t)in * value;
    return en->ops->packed_bytes(out, in, keep, false) + en->ops->packed_bytes(out, in, keep, true);
}

static size_t packed_total(const struct planned *d)
{
    const struct model_conf *mc = &d->mw.conf;
    size_t layer = 0;
    for (int s = 0; s < SITES_A_LAYER; s++) {
        int in, out;
        site_size(mc, (enum lora_site)s, &in, &out);
        layer += both_ways(d, out, in);
    }
    return layer * (size_t)mc->layers + both_ways(d, mc->vocab, mc->hidden);
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
    size_t full = train_bytes(en, en->pass_rows, en->pass_rows, ENGINE_RANK_MAX, true);
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

/* What kernels/cuda says of itself. */
static void gpu_shape(struct engine *en)
{
    size_t wide = ((size_t)en->shape.head_dim + 15) / 16 * 16; /* of each key and value, in bf16 */
    en->kv_floats =
        2 * (size_t)en->shape.kv_heads * OPS_KV_BLOCK * wide * sizeof(uint16_t) / sizeof(float);
    en->act_dtype = en->mw->dtype;
    en->pass_rows = OPS_CUDA_PASS_ROWS;
    en->logits_bytes = OPS_CUDA_LOGITS_BYTES;
}

static int read_shape(struct planned *d, const struct memory_plan_conf *conf, struct err *e)
{
    struct model_weights *mw = &d->mw;
    if (model_config_read(conf->model_dir, &mw->whole, e) < 0)
        return err_prefix(e, "could not read the configuration of model \"%s\"", conf->model_dir);
    if (replicas_check(conf->ranks, conf->replicas, e) < 0) return -1;
    if (model_config_part(&mw->whole, conf->ranks ? conf->ranks : 1, &mw->conf, e) < 0) return -1;
    enum ops_dtype said = mw->whole.says_bf16 ? OPS_BF16 : OPS_F32;
    if (model_dtype_of(conf->weights, said, &mw->dtype, e) < 0) return -1;
    d->en.mw = mw;
    d->en.replica_count = 1;
    d->en.ops = ops_cpu();
    d->gpu = conf->gpu;
    engine_shape(&d->en);
    if (d->gpu) gpu_shape(&d->en);
    return 0;
}

int memory_plan_make(const struct memory_plan_conf *conf, struct memory_plan *out, struct err *e)
{
    struct planned d = {0};
    struct memory_plan p = {0};
    size_t unused;
    if (lora_conf_check(&conf->lora, e) < 0 || read_shape(&d, conf, e) < 0) return -1;
    size_t ranks = (size_t)d.mw.conf.ranks;
    p.ranks = (int)ranks;
    p.replicas = conf->replicas ? conf->replicas : 1;
    p.bf16 = d.mw.dtype == OPS_BF16;
    model_weights_size(&d.mw.whole, d.mw.dtype, &p.parameters, &unused);
    model_weights_size(&d.mw.conf, d.mw.dtype, &unused, &p.weights);
    engine_limits(&d.en, conf->scratch_bytes_max, conf->kv_bytes_max, &p.kv);
    p.packed = packed_total(&d);
    p.rope = 2 * rope_bytes(&d.mw.conf);
    p.adapter = p.gradient = adapter_bytes(&d.en, &conf->lora, false) / ranks;
    p.optimizer = adapter_bytes(&d.en, &conf->lora, true) / ranks - p.adapter - p.gradient;
    p.kv_block = kv_block_bytes(&d.en);
    p.kv_token = p.kv_block / ENGINE_BLOCK_TOKENS;
    plan_pass(&d.en, conf->lora.rank, &p);
    *out = p;
    return 0;
}

static size_t base_bytes(const struct memory_plan *p)
{
    return p->weights + p->packed + p->rope;
}

static size_t devices_of(const struct memory_plan *p)
{
    return (size_t)p->ranks * (size_t)p->replicas;
}

size_t memory_plan_total(const struct memory_plan *p, int adapters)
{
    size_t tenant = p->adapter + p->gradient + p->optimizer;
    return (base_bytes(p) + tenant * (size_t)adapters + p->scratch + p->kv) * devices_of(p);
}

/* ------------------------------------------------------------------ what a GPU has room for */

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Tenants whose moments are on the host: as many as the device has room for the rest of, and the
 * host for the moments. */
static void plan_tenants(struct device_plan *p, size_t host_bytes)
{
    const struct memory_plan *m = &p->memory;
    size_t here = m->adapter + m->gradient, devices = devices_of(m);
    p->tenants_resident = p->tenants / (here + m->optimizer);
    p->tenants_paged = smaller(p->tenants / here, host_bytes / (m->optimizer * devices));
    p->tenants_on_host = host_bytes / ((here + m->optimizer) * devices);
}

int device_plan_make(const struct device_plan_conf *conf, struct device_plan *out, struct err *e)
{
    struct memory_plan_conf mc = conf->memory;
    struct device_plan p = {0};
    int rest = 100 - conf->scratch_percent - conf->kv_percent;
    if (conf->scratch_percent < 1 || conf->kv_percent < 1 || rest < 1)
        return err_set(e, ERR_USER,
                       "a pass gets %d and KV %d of 100 parts, expected at least 1 each and 1 left "
                       "for tenants",
                       conf->scratch_percent, conf->kv_percent);
    *out = p;
    mc.gpu = true;
    if (memory_plan_make(&mc, &p.memory, e) < 0) return -1;
    size_t base = base_bytes(&p.memory) + DEVICE_RESERVED;
    if (base < conf->device_bytes) p.left = conf->device_bytes - base;
    mc.scratch_bytes_max = p.left / 100 * (size_t)conf->scratch_percent;
    mc.kv_bytes_max = p.left / 100 * (size_t)conf->kv_percent;
    p.tenants = p.left / 100 * (size_t)rest;
    size_t chunk = p.memory.logits_chunk, tenant = p.memory.adapter + p.memory.gradient;
    if (mc.scratch_bytes_max > chunk + ENGINE_BLOCK_TOKENS * p.memory.token_training &&
        mc.kv_bytes_max >= p.memory.kv_block && p.tenants >= tenant) {
        if (memory_plan_make(&mc, &p.memory, e) < 0) return -1;
        p.fits = true;
        p.pass_tokens = (mc.scratch_bytes_max - chunk) / p.memory.token_training;
        p.kv_tokens = p.memory.kv / p.memory.kv_block * ENGINE_BLOCK_TOKENS;
        plan_tenants(&p, conf->host_bytes);
    }
    *out = p;
    return 0;
}
