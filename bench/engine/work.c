/* work.c - see work.h. */
#include "work.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "engine/inside.h"

struct work {
    struct engine *en;
    struct adapter *adapters[WORK_ADAPTERS_MAX];
    int32_t *tokens; /* [tokens_max] */
    int64_t *targets;
    float *weights, *logprobs;
    size_t tokens_max;
};

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static struct span now(void)
{
    return (struct span){seconds(CLOCK_MONOTONIC), seconds(CLOCK_PROCESS_CPUTIME_ID)};
}

static void add_since(struct span *sum, struct span began)
{
    struct span end = now();
    sum->wall_s += end.wall_s - began.wall_s;
    sum->cpu_s += end.cpu_s - began.cpu_s;
}

/* ------------------------------------------------------------------ opening */

struct work *work_open(const char *model_dir, int threads, const char *weights, struct err *e)
{
    struct engine_conf conf = {
        .model_dir = model_dir, .device = "cpu", .threads = threads, .weights = weights};
    struct work *w = calloc(1, sizeof *w);
    if (!w) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    w->en = engine_open(&conf, e);
    if (w->en) return w;
    work_close(w);
    return NULL;
}

void work_close(struct work *w)
{
    if (!w) return;
    for (int i = 0; i < WORK_ADAPTERS_MAX; i++)
        adapter_free(w->adapters[i]);
    engine_close(w->en);
    free(w->tokens);
    free(w->targets);
    free(w->weights);
    free(w->logprobs);
    free(w);
}

struct engine *work_engine(struct work *w)
{
    return w->en;
}

static int need_adapters(struct work *w, int count, struct err *e)
{
    struct lora_conf conf = {.rank = WORK_RANK, .train_attn = true, .train_mlp = true};
    for (int i = 0; i < count; i++) {
        if (w->adapters[i]) continue;
        w->adapters[i] = adapter_create(w->en, &conf, (uint64_t)i + 1, e);
        if (!w->adapters[i]) return -1;
    }
    return 0;
}

static int need_tokens(struct work *w, size_t count, struct err *e)
{
    if (count <= w->tokens_max) return 0;
    w->tokens = realloc(w->tokens, count * sizeof *w->tokens);
    w->targets = realloc(w->targets, count * sizeof *w->targets);
    w->weights = realloc(w->weights, count * sizeof *w->weights);
    w->logprobs = realloc(w->logprobs, count * sizeof *w->logprobs);
    if (!w->tokens || !w->targets || !w->weights || !w->logprobs)
        return err_set(e, ERR_RETRY, "out of memory for %zu tokens", count);
    uint64_t state = 1;
    for (size_t i = 0; i < count; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        w->tokens[i] = (int32_t)((state >> 33) % (uint64_t)w->en->info.vocab);
        w->targets[i] = (int64_t)((state >> 40) % (uint64_t)w->en->info.vocab);
        w->weights[i] = 1;
    }
    w->tokens_max = count;
    return 0;
}

/* ------------------------------------------------------------------ training */

struct step {
    struct train_item items[WORK_ADAPTERS_MAX];
    struct datum datums[WORK_ADAPTERS_MAX * WORK_BATCH_MAX];
};

static void lay_items(const struct work *w, const struct train_shape *s, struct step *step)
{
    size_t at = 0;
    for (int a = 0; a < s->adapters; a++) {
        struct datum *first = &step->datums[a * s->batch];
        step->items[a] = (struct train_item){.adapter = w->adapters[a],
                                             .loss = {.kind = LOSS_CROSS_ENTROPY},
                                             .datums = first,
                                             .datum_count = s->batch};
        for (int b = 0; b < s->batch; b++, at += (size_t)s->seq)
            first[b] = (struct datum){.n = s->seq,
                                      .tokens = w->tokens + at,
                                      .targets = w->targets + at,
                                      .weights = w->weights + at,
                                      .out_logprobs = w->logprobs + at};
    }
}

static int optim_all(struct work *w, int adapters, struct err *e)
{
    const struct adam_params p = {
        .learning_rate = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8};
    double norm;
    for (int a = 0; a < adapters; a++)
        if (adapter_optim_step(w->en, w->adapters[a], &p, &norm, e) < 0) return -1;
    return 0;
}

int work_train(struct work *w, const struct train_shape *s, struct took *out, struct err *e)
{
    struct step *step = calloc(1, sizeof *step);
    int rc = -1;
    *out = (struct took){0};
    if (!step) return err_set(e, ERR_RETRY, "out of memory");
    if (need_adapters(w, s->adapters, e) < 0) goto out;
    if (need_tokens(w, (size_t)s->adapters * (size_t)s->batch * (size_t)s->seq, e) < 0) goto out;
    lay_items(w, s, step);
    for (int i = 0; i < s->repeat; i++) {
        struct span began = now();
        if (engine_train(w->en, step->items, s->adapters, e) < 0) goto out;
        add_since(&out->pass, began);
        began = now();
        if (optim_all(w, s->adapters, e) < 0) goto out;
        add_since(&out->optim, began);
    }
    rc = 0;
out:
    free(step);
    return rc;
}

/* ------------------------------------------------------------------ generating */

int work_generate(struct work *w, const struct generate_shape *s, struct took *out, struct err *e)
{
    struct sample *samples[WORK_BATCH_MAX] = {NULL};
    struct sample_conf conf = {.num_samples = 1,
                               .max_tokens = s->fresh,
                               .temperature = 1,
                               .top_k = -1,
                               .top_p = 1,
                               .seed = 1};
    int left = 1, rc = -1;
    *out = (struct took){0};
    if (need_adapters(w, 1, e) < 0) return -1;
    if (need_tokens(w, (size_t)s->batch * (size_t)s->prompt, e) < 0) return -1;
    struct span began = now();
    for (int i = 0; i < s->batch; i++) {
        samples[i] = engine_sample_add(w->en, w->adapters[0], w->tokens + i * s->prompt, s->prompt,
                                       &conf, e);
        if (!samples[i]) goto out;
    }
    while (left > 0)
        left = engine_sample_step(w->en, e);
    rc = left;
    add_since(&out->pass, began);
out:
    for (int i = 0; i < s->batch; i++)
        engine_sample_free(w->en, samples[i]);
    return rc;
}

/* ------------------------------------------------------------------ what it should cost */

double work_flop_per_token(const struct work *w, int seq)
{
    const struct model_conf *mc = &w->en->mw->conf;
    double frozen = (double)mc->vocab * mc->hidden, lora = 0;
    for (int s = 0; s < SITES_A_LAYER; s++) {
        int in, out;
        site_size(mc, (enum lora_site)s, &in, &out);
        frozen += (double)mc->layers * in * out;
        lora += (double)mc->layers * WORK_RANK * (in + out);
    }
    double attention = (double)seq * mc->heads * mc->head_dim * mc->layers;
    return 4 * frozen + 6 * lora + 6 * attention;
}

int work_gemm_peak(struct work *w, int n, double *gflop_per_s, struct err *e)
{
    const struct ops *ops = w->en->ops;
    size_t bytes = (size_t)n * (size_t)n * sizeof(float);
    float *x = ops->alloc(w->en->dev, bytes, e), *y = NULL;
    struct packed *p = NULL;
    int rc = -1;
    if (!x) goto out;
    y = ops->alloc(w->en->dev, bytes, e);
    if (!y) goto out;
    const struct ops_matrix square = {x, OPS_F32, n, n};
    p = ops->pack(w->en->dev, &square, OPS_F32, false, e);
    if (!p) goto out;
    ops->gemm(w->en->dev, act_f32(y), act_f32(x), n, p, false);
    struct span t = now(), took = {0};
    ops->gemm(w->en->dev, act_f32(y), act_f32(x), n, p, false);
    add_since(&took, t);
    *gflop_per_s = 2e-9 * n * n * n / took.wall_s;
    rc = ops->sync(w->en->dev, e);
out:
    if (p) ops->packed_free(w->en->dev, p);
    if (y) ops->release(w->en->dev, y);
    if (x) ops->release(w->en->dev, x);
    return rc;
}
