/* speed.c - how fast the engine is on a model of random weights, from its config.json alone:
 * training, the optimizer's step, decoding, and what many adapters cost.
 *
 *   gpu-speed --model DIR [--device cuda:0] [--seconds 60] [--seq 2048] ...
 *
 * Prints a line of JSON for each case as it ends, so that whoever stops it has the lines before.  A
 * case that memory or time has no room for says so in "status".  Numbers are medians of rounds.
 *
 * Operations of a trained token, over N parameters of matrices (the embedding's table is looked up
 * and not counted), L of adapters, and sequences of T tokens:
 *   "lora"  4 N + 6 L + 6 T d   what this training needs: 2 N forward, 2 N for dx
 *   "full"  6 (N + L) + 6 T d   what is often quoted, as if all were trained
 * where d is heads * head_dim * layers, and causal attention is 2 T d forward and 4 T d back. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/conf.h"
#include "engine/inside.h"
#include "engine/sample.h"

#define ADAPTERS_MAX 64
#define BATCH_MAX    256
#define ROUNDS_MAX   64

struct settings {
    const char *model, *device, *weights;
    int64_t seconds, threads, seq, sequences, prompt, fresh, scratch_mb, kv_mb;
};

struct speed {
    struct settings set;
    struct engine *en;
    struct adapter *adapters[ADAPTERS_MAX];
    int adapter_count;
    double began;
    int32_t *tokens; /* [token_count] */
    int64_t *targets;
    float *weights, *logprobs;
    size_t token_count;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_size);
    return x[n / 2];
}

/* ------------------------------------------------------------------ adapters and data */

static void drop_adapters(struct speed *s)
{
    while (s->adapter_count)
        adapter_free(s->adapters[--s->adapter_count]);
}

/* A weight of an adapter that only samples: its numbers do not matter to the time. */
static void fill_tensor(struct adapter *ad, int site, int b, const float *room)
{
    int64_t rows, cols;
    adapter_tensor_size(ad, site, b, &rows, &cols);
    size_t count = (size_t)rows * (size_t)cols;
    for (size_t at = 0, n; at < count; at += n) {
        n = adapter_piece(count, at);
        adapter_tensor_put(ad, site, PART_WEIGHTS, b, at, room, n);
    }
}

static struct adapter *sampling_adapter(struct speed *s, const struct lora_conf *conf,
                                        struct err *e)
{
    float *room = adapter_room(e);
    struct adapter *ad = room ? adapter_alloc(s->en, conf, false, e) : NULL;
    if (ad) {
        philox_fill(room, ADAPTER_PIECE, 0, 0.01f, 1, "speed");
        for (int site = 0; site < ad->site_count - 1; site++)
            fill_tensor(ad, site, 0, room), fill_tensor(ad, site, 1, room);
    }
    free(room);
    return ad;
}

/* In place of those that were there. */
static int get_adapters(struct speed *s, int count, int rank, bool trainable, struct err *e)
{
    const struct lora_conf conf = {.rank = rank, .train_attn = true, .train_mlp = true};
    drop_adapters(s);
    for (; s->adapter_count < count; s->adapter_count++) {
        struct adapter *ad = trainable
                                 ? adapter_create(s->en, &conf, (uint64_t)s->adapter_count + 1, e)
                                 : sampling_adapter(s, &conf, e);
        if (!ad) return -1;
        s->adapters[s->adapter_count] = ad;
    }
    return 0;
}

static int make_data(struct speed *s, struct err *e)
{
    size_t n = (size_t)(s->set.seq * s->set.sequences), short_ones = (size_t)(64 * s->set.seq / 16);
    s->token_count = n = n > short_ones ? n : short_ones;
    s->tokens = malloc(n * sizeof *s->tokens);
    s->targets = malloc(n * sizeof *s->targets);
    s->weights = malloc(n * sizeof *s->weights);
    s->logprobs = malloc(n * sizeof *s->logprobs);
    if (!s->tokens || !s->targets || !s->weights || !s->logprobs)
        return err_set(e, ERR_RETRY, "out of memory for %zu tokens", n);
    uint64_t state = 1;
    for (size_t i = 0; i < n; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        s->tokens[i] = (int32_t)((state >> 33) % (uint64_t)s->en->info.vocab);
        s->targets[i] = (int64_t)((state >> 40) % (uint64_t)s->en->info.vocab);
        s->weights[i] = 1e-3f;
    }
    return 0;
}

/* ------------------------------------------------------------------ what work costs */

struct cost {
    double frozen, lora; /* parameters of matrices */
    double attention;    /* heads * head_dim * layers */
};

static struct cost cost_of(const struct speed *s, int rank)
{
    const struct model_conf *mc = &s->en->mw->whole;
    struct cost c = {.frozen = (double)mc->vocab * mc->hidden,
                     .attention = (double)mc->heads * mc->head_dim * mc->layers};
    for (int site = 0; site < SITES_A_LAYER; site++) {
        int in, out;
        site_size(mc, (enum lora_site)site, &in, &out);
        c.frozen += (double)mc->layers * in * out;
        c.lora += (double)mc->layers * rank * (in + out);
    }
    return c;
}

/* What a decoding step must read: every weight once, its adapters, the keys and values of each
 * context.  A norm's gains and activations are not counted. */
static double step_bytes(const struct speed *s, int batch, int adapters, int rank, double context)
{
    struct cost c = cost_of(s, rank);
    double kv = (double)kv_block_bytes(s->en) / ENGINE_BLOCK_TOKENS * context * batch;
    return c.frozen * (s->en->mw->dtype == OPS_BF16 ? 2 : 4) + c.lora * 4 * adapters + kv;
}

/* ------------------------------------------------------------------ cases */

struct training {
    const char *name;
    int adapters, rank, sequences, seq; /* sequences: of all adapters together */
};

struct decoding {
    int batch, adapters, rank;
};

static void say(json_t *line)
{
    char *text = json_dumps(line, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6));
    printf("%s\n", text);
    fflush(stdout);
    free(text);
    json_decref(line);
}

static double time_left(const struct speed *s)
{
    return (double)s->set.seconds - (now() - s->began);
}

/* "passed", or why there are no numbers. */
static void set_status(json_t *line, int rc, const struct err *e)
{
    char text[ERR_TEXT_MAX + 32] = "passed";
    if (rc < 0)
        snprintf(text, sizeof text, "%s: %s", e->kind == ERR_RETRY ? "not run" : "failed", e->text);
    json_object_set_new(line, "status", json_string(text));
}

static void lay_items(struct speed *s, const struct training *t, struct train_item *items,
                      struct datum *datums)
{
    int each = t->sequences / t->adapters;
    for (int i = 0; i < t->sequences; i++) {
        size_t at = (size_t)i * (size_t)t->seq;
        datums[i] = (struct datum){.n = t->seq,
                                   .tokens = s->tokens + at,
                                   .targets = s->targets + at,
                                   .weights = s->weights + at,
                                   .out_logprobs = s->logprobs + at};
    }
    for (int a = 0; a < t->adapters; a++)
        items[a] = (struct train_item){.adapter = s->adapters[a],
                                       .loss = {.kind = LOSS_CROSS_ENTROPY},
                                       .datums = datums + a * each,
                                       .datum_count = each};
}

static int optim_all(struct speed *s, struct err *e)
{
    const struct adam_params p = {
        .learning_rate = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .grad_clip_norm = 1};
    double norm;
    for (int a = 0; a < s->adapter_count; a++)
        if (adapter_optim_step(s->en, s->adapters[a], &p, &norm, e) < 0) return -1;
    return engine_sync(s->en, e);
}

/* Median seconds of a pass and of the optimizer's steps; the first round warms up. */
static int time_training(struct speed *s, struct train_item *items, int adapters, double most,
                         double took[2], int *rounds, struct err *e)
{
    double pass[ROUNDS_MAX], optim[ROUNDS_MAX], began = now();
    int n = 0;
    for (int i = 0; n < 1 || (n < ROUNDS_MAX && now() - began < most); i++) {
        double at = now();
        if (engine_train(s->en, items, adapters, e) < 0) return -1;
        double middle = now();
        if (optim_all(s, e) < 0) return -1;
        if (i == 0) continue;
        pass[n] = middle - at;
        optim[n++] = now() - middle;
    }
    took[0] = median(pass, n);
    took[1] = median(optim, n);
    *rounds = n;
    return 0;
}

static int training(struct speed *s, const struct training *t, json_t *line, struct err *e)
{
    struct train_item items[ADAPTERS_MAX];
    struct datum datums[ADAPTERS_MAX];
    double took[2], tokens = (double)t->sequences * t->seq;
    int rounds;
    if (get_adapters(s, t->adapters, t->rank, true, e) < 0) return -1;
    lay_items(s, t, items, datums);
    if (time_training(s, items, t->adapters, 4, took, &rounds, e) < 0) return -1;
    struct cost c = cost_of(s, t->rank);
    double attention = 6 * (double)t->seq * c.attention;
    json_object_set_new(line, "rounds", json_integer(rounds));
    json_object_set_new(line, "pass_seconds", json_real(took[0]));
    json_object_set_new(line, "optim_seconds", json_real(took[1]));
    json_object_set_new(line, "tokens_per_second", json_real(tokens / (took[0] + took[1])));
    json_object_set_new(line, "pass_tokens_per_second", json_real(tokens / took[0]));
    json_object_set_new(line, "flop_per_token_lora",
                        json_real(4 * c.frozen + 6 * c.lora + attention));
    json_object_set_new(line, "flop_per_token_full",
                        json_real(6 * (c.frozen + c.lora) + attention));
    return 0;
}

static void run_training(struct speed *s, const struct training *t)
{
    struct err e = {0};
    json_t *line = json_pack("{s:s,s:s,s:i,s:i,s:i,s:i}", "case", "train", "name", t->name,
                             "adapters", t->adapters, "rank", t->rank, "sequences", t->sequences,
                             "seq", t->seq);
    int rc = time_left(s) > 0 ? 0 : err_set(&e, ERR_RETRY, "the time is up");
    set_status(line, rc < 0 ? rc : training(s, t, line, &e), &e);
    say(line);
}

static int add_samples(struct speed *s, const struct decoding *d, int most, struct sample **samples,
                       struct err *e)
{
    const struct sample_conf conf = {.num_samples = 1,
                                     .max_tokens = most,
                                     .temperature = 1,
                                     .top_k = -1,
                                     .top_p = 1,
                                     .seed = 1};
    size_t n = (size_t)s->set.prompt;
    for (int i = 0; i < d->batch; i++) { /* no two prompts begin alike */
        size_t at = (size_t)i * 37 % (s->token_count - n);
        samples[i] = engine_sample_add(s->en, s->adapters[i % d->adapters], s->tokens + at, (int)n,
                                       &conf, e);
        if (!samples[i]) return -1;
    }
    return 0;
}

static bool all_under_way(struct sample *const *samples, int count)
{
    for (int i = 0; i < count; i++)
        if (samples[i]->sequences[0].n == 0) return false;
    return true;
}

/* Median seconds of a step in which every sequence moves on, after all prompts were read. */
static int time_steps(struct speed *s, struct sample *const *samples, int count, double *prompts,
                      double *step, struct err *e)
{
    double took[ROUNDS_MAX], began = now();
    int n = 0;
    while (!all_under_way(samples, count))
        if (engine_sample_step(s->en, e) < 0) return -1;
    *prompts = now() - began;
    for (int i = 0; i < s->set.fresh; i++) {
        double at = now();
        if (engine_sample_step(s->en, e) < 0) return -1;
        took[n++] = now() - at;
    }
    *step = median(took, n);
    return 0;
}

static int decoding(struct speed *s, const struct decoding *d, json_t *line, struct err *e)
{
    struct sample *samples[BATCH_MAX] = {NULL};
    double prompts, step;
    int rc = -1, before = d->batch * (int)s->set.prompt / SAMPLE_ROWS_MOST + d->batch + 2;
    if (get_adapters(s, d->adapters, d->rank, false, e) < 0) return -1;
    int most = before + (int)s->set.fresh;
    if (add_samples(s, d, most, samples, e) < 0) goto out;
    rc = time_steps(s, samples, d->batch, &prompts, &step, e);
    if (rc < 0) goto out;
    double context = (double)s->set.prompt + (double)s->set.fresh / 2;
    double bytes = step_bytes(s, d->batch, d->adapters, d->rank, context);
    json_object_set_new(line, "steps", json_integer(s->set.fresh));
    json_object_set_new(line, "prompt_seconds", json_real(prompts));
    json_object_set_new(line, "step_seconds", json_real(step));
    json_object_set_new(line, "tokens_per_second", json_real(d->batch / step));
    json_object_set_new(line, "step_bytes", json_real(bytes));
    json_object_set_new(line, "bytes_per_second", json_real(bytes / step));
out:
    for (int i = 0; i < d->batch; i++)
        engine_sample_free(s->en, samples[i]);
    return rc;
}

static void run_decoding(struct speed *s, const struct decoding *d)
{
    struct err e = {0};
    json_t *line = json_pack("{s:s,s:i,s:i,s:i,s:i}", "case", "decode", "batch", d->batch,
                             "adapters", d->adapters, "rank", d->rank, "prompt",
                             (int)s->set.prompt);
    int rc = time_left(s) > 0 ? 0 : err_set(&e, ERR_RETRY, "the time is up");
    set_status(line, rc < 0 ? rc : decoding(s, d, line, &e), &e);
    say(line);
}

/* The most telling first, because time may be up. */
static void run_all(struct speed *s)
{
    int seq = (int)s->set.seq, sequences = (int)s->set.sequences, part = seq / 16;
    const struct training alone = {"one adapter", 1, 32, sequences, seq};
    const struct decoding decodings[] = {{1, 1, 32},   {64, 1, 32},  {256, 1, 32},
                                         {64, 16, 32}, {64, 64, 32}};
    /* At rank 8, because 64 times the state of rank 32 is more than a device has. */
    const struct training shared[] = {{"adapters", 1, 8, 64, part},
                                      {"adapters", 16, 8, 64, part},
                                      {"adapters", 64, 8, 64, part},
                                      {"adapters", 1, 32, 64, part},
                                      {"adapters", 16, 32, 64, part}};
    run_training(s, &alone);
    for (size_t i = 0; i < sizeof decodings / sizeof *decodings; i++)
        run_decoding(s, &decodings[i]);
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++)
        run_training(s, &shared[i]);
}

/* ------------------------------------------------------------------ the program */

static int settings_read(struct settings *s, int argc, char **argv, struct err *e)
{
    const struct conf_item items[] = {
        {"model", CONF_STR, &s->model, NULL, 0, 0, "folder with a config.json"},
        {"device", CONF_STR, &s->device, "cuda:0", 0, 0, "cuda:N or cpu"},
        {"weights", CONF_STR, &s->weights, "bf16", 0, 0, "bf16 or fp32"},
        {"seconds", CONF_INT, &s->seconds, "60", 1, 3600, "no case begins after so many"},
        {"threads", CONF_INT, &s->threads, "8", 1, 256, "of the host"},
        {"seq", CONF_INT, &s->seq, "2048", 16, 32768, "tokens of a sequence"},
        {"sequences", CONF_INT, &s->sequences, "4", 1, 64, "sequences of a training step"},
        {"prompt", CONF_INT, &s->prompt, "64", 1, 512, "tokens of a prompt"},
        {"fresh", CONF_INT, &s->fresh, "32", 1, ROUNDS_MAX, "decoding steps that are timed"},
        {"scratch_mb", CONF_INT, &s->scratch_mb, "24576", 1, 1 << 20, "most for activations"},
        {"kv_mb", CONF_INT, &s->kv_mb, "24576", 1, 1 << 20, "most for keys and values"},
        {NULL, 0, NULL, NULL, 0, 0, NULL},
    };
    return conf_read_flags(items, "measures the engine on random weights", argc, argv, NULL, e);
}

static int open_speed(struct speed *s, struct err *e)
{
    const struct engine_conf conf = {.model_dir = s->set.model,
                                     .device = s->set.device,
                                     .threads = (int)s->set.threads,
                                     .weights = s->set.weights,
                                     .scratch_bytes_max = (size_t)s->set.scratch_mb << 20,
                                     .kv_bytes_max = (size_t)s->set.kv_mb << 20};
    double began = now();
    s->began = began;
    s->en = engine_open_random(&conf, e);
    if (!s->en || make_data(s, e) < 0) return -1;
    struct cost c = cost_of(s, 32);
    say(json_pack("{s:s,s:s,s:s,s:s,s:f,s:f,s:f}", "case", "open", "status", "passed", "model",
                  s->set.model, "numerics", s->en->info.numerics, "seconds", now() - began,
                  "matrix_parameters", c.frozen, "lora_parameters_rank_32", c.lora));
    return 0;
}

static void close_speed(struct speed *s)
{
    drop_adapters(s);
    engine_close(s->en);
    free(s->tokens), free(s->targets), free(s->weights), free(s->logprobs);
}

int main(int argc, char **argv)
{
    struct speed s = {0};
    struct err e = {0};
    if (settings_read(&s.set, argc, argv, &e) < 0) {
        fprintf(stderr, "gpu-speed: %s\n", e.text);
        return 2;
    }
    int rc = open_speed(&s, &e);
    if (rc == 0) {
        run_all(&s);
    } else {
        json_t *line = json_pack("{s:s,s:s}", "case", "open", "model", s.set.model);
        set_status(line, rc, &e);
        say(line);
    }
    close_speed(&s);
    return rc == 0 || e.kind == ERR_RETRY ? EXIT_SUCCESS : EXIT_FAILURE; /* no room is no failure */
}
