/* worker.c - see worker.h. */
#include "worker.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/stop.h"
#include "bus/bus.h"
#include "execute.h"
#include "engine/plan.h"
#include "folder.h"
#include "intake.h"
#include "memory.h"
#include "seal/seal.h"
#include "snapshot.h"
#include "suspect.h"

#define TOPICS_WAIT_MS  20000
#define IDLE_MS         50 /* the longest blocking read, so that new shards and signals are seen */
#define AGAIN_MS        200
#define ALARM_EVERY_MS  60000
#define DAY_MS          ((int64_t)24 * 3600 * 1000)
#define NUMBER_SIZE     24
#define PLAN_PARTITIONS SLOTS_MAX
#define DLQ_PARTITIONS  1

void worker_held(struct worker *w, struct shard *s, int64_t bytes)
{
    w->held_bytes += bytes;
    s->held_bytes += bytes;
}

bool worker_again(struct worker *w, int64_t *since_ms, const struct err *e)
{
    int64_t now = clock_mono_ms();
    if (e->kind != ERR_RETRY || stop_requested()) return false;
    if (!*since_ms) {
        *since_ms = now;
        w->away_told = 0;
        log_warn("worker.database_away", "why=\"%s\"", e->text);
    }
    if (lease_lost(w->lease)) return false;
    if (now - *since_ms >= (w->away_told + 1) * ALARM_EVERY_MS) {
        w->away_told++;
        log_error("worker.database_away", "s=%" PRId64 " why=\"%s\"", (now - *since_ms) / 1000,
                  e->text);
    }
    clock_sleep_ms(AGAIN_MS);
    return true;
}

/* ---------------------------------------------------------------- opening */

static int topic_names(struct worker *w, struct err *e)
{
    const char *prefix = w->conf->topic_prefix, *model = w->conf->model;
    for (int s = 0; s < STREAM_COUNT; s++)
        if (topic_jobs(w->jobs_topic[s], prefix, model, (enum stream)s, e) < 0 ||
            topic_results(w->results_topic[s], prefix, model, (enum stream)s, e) < 0)
            return -1;
    if (topic_batches(w->batches_topic, prefix, model, e) < 0) return -1;
    return topic_dlq(w->dlq_topic, prefix, e);
}

/* Without its logs a worker cannot begin; no shard is held meanwhile. */
static int topics_make(struct worker *w, struct err *e)
{
    int train = (int)w->conf->train_partitions, sample = (int)w->conf->sample_partitions;
    const struct bus_topic topics[] = {
        {w->jobs_topic[STREAM_TRAIN], train, 7 * DAY_MS},
        {w->jobs_topic[STREAM_SAMPLE], sample, 7 * DAY_MS},
        {w->results_topic[STREAM_TRAIN], train, 8 * DAY_MS},
        {w->results_topic[STREAM_SAMPLE], sample, 8 * DAY_MS},
        {w->batches_topic, PLAN_PARTITIONS, DAY_MS / 24},
        {w->dlq_topic, DLQ_PARTITIONS, 30 * DAY_MS},
    };
    int count = sizeof topics / sizeof *topics, rf = (int)w->conf->kafka_replication;
    for (bool told = false;; told = true) {
        if (bus_topics_ensure(w->conf->kafka_brokers, topics, count, rf, TOPICS_WAIT_MS, e) == 0)
            return 0;
        if (e->kind != ERR_RETRY || stop_requested()) return -1;
        if (!told) log_warn("worker.waits", "why=\"%s\"", e->text);
        err_clear(e);
    }
}

/* A name stands for the same weights and as many shards as before, or the runs of yesterday would
 * be wrong. */
static int model_check(struct worker *w, struct err *e)
{
    const struct engine_info *info = engine_info(w->engine);
    struct db_result *r = NULL;
    int rc = 0;
    int n = db_queryf(w->db, &r, e,
                      "SELECT weights_sha256, train_partitions, sample_partitions FROM models"
                      " WHERE name = $1",
                      w->conf->model, NULL);
    if (n < 0) return -1;
    if (n && strcmp(db_text(r, 0, 0), info->weights_sha256) && !w->conf->replace_weights)
        rc = err_set(e, ERR_USER,
                     "model \"%s\" has had weights %.12s..., the folder \"%s\" has %.12s...; "
                     "--replace-weights accepts them",
                     w->conf->model, db_text(r, 0, 0), w->conf->model_dir, info->weights_sha256);
    else if (n && (db_int(r, 0, 1) > w->conf->train_partitions ||
                   db_int(r, 0, 2) > w->conf->sample_partitions))
        rc = err_set(e, ERR_USER,
                     "model \"%s\" has %s train and %s sample partitions, the settings say %" PRId64
                     " and %" PRId64,
                     w->conf->model, db_text(r, 0, 1), db_text(r, 0, 2), w->conf->train_partitions,
                     w->conf->sample_partitions);
    db_result_free(r);
    return rc;
}

/* Other arithmetic gives other bits: runs go on with the class that began them unless an operator
 * says otherwise. */
static int numerics_check(struct worker *w, struct err *e)
{
    const char *ours = engine_info(w->engine)->numerics;
    struct db_result *r = NULL;
    int n = db_queryf(w->db, &r, e,
                      "SELECT numerics, count(*) FROM shards WHERE model = $1 AND numerics <> $2"
                      " GROUP BY 1 ORDER BY 2 DESC LIMIT 1",
                      w->conf->model, ours, NULL);
    if (n > 0 && !w->conf->numerics_change)
        n = err_set(e, ERR_USER,
                    "%s shards of model \"%s\" were computed as \"%s\", this worker is \"%s\": "
                    "bits would change; --numerics-change accepts that",
                    db_text(r, 0, 1), w->conf->model, db_text(r, 0, 0), ours);
    db_result_free(r);
    return n < 0 ? -1 : 0;
}

static int model_row(struct worker *w, struct err *e)
{
    const struct engine_info *info = engine_info(w->engine);
    char train[NUMBER_SIZE], sample[NUMBER_SIZE], context[NUMBER_SIZE], vocab[NUMBER_SIZE],
        layers[NUMBER_SIZE], hidden[NUMBER_SIZE];
    snprintf(train, sizeof train, "%" PRId64, w->conf->train_partitions);
    snprintf(sample, sizeof sample, "%" PRId64, w->conf->sample_partitions);
    snprintf(context, sizeof context, "%d", info->context_max);
    snprintf(vocab, sizeof vocab, "%d", info->vocab);
    snprintf(layers, sizeof layers, "%d", info->layers);
    snprintf(hidden, sizeof hidden, "%d", info->hidden);
    int n = db_queryf(
        w->db, NULL, e,
        "INSERT INTO models (name, train_partitions, sample_partitions, context_max, vocab, layers,"
        " hidden, arch, model_dir, weights_sha256) VALUES ($1, $2::int, $3::int, $4::int, $5::int,"
        " $6::int, $7::int, $8, $9, $10) ON CONFLICT (name) DO UPDATE SET"
        " train_partitions = EXCLUDED.train_partitions,"
        " sample_partitions = EXCLUDED.sample_partitions, context_max = EXCLUDED.context_max,"
        " vocab = EXCLUDED.vocab, layers = EXCLUDED.layers, hidden = EXCLUDED.hidden,"
        " arch = EXCLUDED.arch, model_dir = EXCLUDED.model_dir,"
        " weights_sha256 = EXCLUDED.weights_sha256, updated_at = now()",
        w->conf->model, train, sample, context, vocab, layers, hidden, info->arch, info->model_dir,
        info->weights_sha256, NULL);
    return n < 0 ? -1 : 0;
}

static int shard_rows(struct worker *w, enum stream stream, int64_t count, struct err *e)
{
    char last[NUMBER_SIZE];
    snprintf(last, sizeof last, "%" PRId64, count - 1);
    int n = db_queryf(w->db, NULL, e,
                      "INSERT INTO shards (model, stream, partition)"
                      " SELECT $1, $2, p FROM generate_series(0, $3::int) p"
                      " ON CONFLICT (model, stream, partition) DO NOTHING",
                      w->conf->model, stream_name(stream), last, NULL);
    return n < 0 ? -1 : 0;
}

static int announce(struct worker *w, struct err *e)
{
    if (model_check(w, e) < 0 || numerics_check(w, e) < 0 || suspect_forget_old(w, e) < 0)
        return -1;
    if (shard_rows(w, STREAM_TRAIN, w->conf->train_partitions, e) < 0) return -1;
    if (shard_rows(w, STREAM_SAMPLE, w->conf->sample_partitions, e) < 0) return -1;
    return model_row(w, e);
}

/* Everything at its largest. */
static int memory_bounds_of(const struct worker_conf *c, struct memory_bounds *b, struct err *e)
{
    bool gpu = strcmp(c->device, "cpu") != 0;
    const struct memory_plan_conf pc = {.model_dir = c->model_dir,
                                        .weights = c->weights,
                                        .lora = {1, true, true, true},
                                        .ranks = (int)c->ranks,
                                        .replicas = (int)c->replicas,
                                        .scratch_bytes_max = (size_t)c->scratch_mb << 20,
                                        .kv_bytes_max = (size_t)c->kv_mb << 20,
                                        .gpu = gpu};
    struct memory_plan p;
    if (memory_plan_make(&pc, &p, e) < 0) return -1;
    *b = (struct memory_bounds){.weights = (int64_t)(p.weights + p.packed + p.rope),
                                .scratch = (int64_t)p.scratch,
                                .kv = (int64_t)p.kv,
                                .adapters = c->adapters_mb << 20,
                                .sampler_cache = c->sampler_cache_mb << 20,
                                .held = c->held_mb << 20,
                                .devices = p.ranks * p.replicas,
                                .gpu = gpu,
                                .paged = c->paged_moments};
    return 0;
}

/* Before a weight is read. */
static int check_memory(const struct memory_bounds *b, struct err *e)
{
    struct memory_part parts[MEMORY_PARTS_MAX];
    int count = memory_of_host(b, parts);
    int64_t limit = memory_limit("");
    if (memory_check(parts, count, limit, e) < 0) return -1;
    log_info("worker.memory", "weights_mb=%" PRId64 " most_mb=%" PRId64 " machine_mb=%" PRId64,
             b->weights * b->devices >> 20, memory_sum(parts, count) >> 20, limit >> 20);
    return 0;
}

/* What a GPU has left is known once its libraries and the weights are there. */
static int check_device(struct worker *w, const struct memory_bounds *b, struct err *e)
{
    struct memory_part parts[MEMORY_PARTS_MAX];
    size_t left, total;
    if (engine_device_memory(w->engine, &left, &total, e) < 0) return -1;
    if (!total) return 0;
    int count = memory_of_gpu(b, (int64_t)(total - left), DEVICE_RESERVED, parts);
    if (memory_check(parts, count, (int64_t)total, e) < 0)
        return err_prefix(e, "device %s", w->conf->device);
    log_info("worker.device_memory", "most_mb=%" PRId64 " free_mb=%zu device_mb=%zu",
             memory_sum(parts, count) >> 20, left >> 20, total >> 20);
    return 0;
}

static int open_engine(struct worker *w, struct err *e)
{
    struct engine_conf ec = {.model_dir = w->conf->model_dir,
                             .device = w->conf->device,
                             .threads = (int)w->conf->threads,
                             .ranks = (int)w->conf->ranks,
                             .replicas = (int)w->conf->replicas,
                             .scratch_bytes_max = (size_t)w->conf->scratch_mb << 20,
                             .kv_bytes_max = (size_t)w->conf->kv_mb << 20,
                             .weights = w->conf->weights,
                             .paged_moments = w->conf->paged_moments};
    w->engine = engine_open(&ec, e);
    if (!w->engine) return -1;
    log_info("worker.device", "device=%s numerics=\"%s\"", w->conf->device,
             engine_info(w->engine)->numerics);
    return 0;
}

static int open_logs(struct worker *w, struct err *e)
{
    char id[48];
    int slot = (int)w->conf->slot;
    if (topic_names(w, e) < 0 || topics_make(w, e) < 0) return -1;
    w->out = publisher_create(w->conf->kafka_brokers, slot, e);
    if (!w->out) return -1;
    snprintf(id, sizeof id, "worker-%d-jobs", slot);
    w->in = bus_consumer_create(w->conf->kafka_brokers, id, e);
    if (!w->in) return -1;
    snprintf(id, sizeof id, "worker-%d-results", slot);
    w->scan = bus_consumer_create(w->conf->kafka_brokers, id, e);
    if (!w->scan) return -1;
    return bus_assign(w->in, w->batches_topic, slot, BUS_OFFSET_END, e);
}

static int open_parts(struct worker *w, struct err *e)
{
    const struct worker_conf *c = w->conf;
    struct schedule_conf sc = {.jobs_max = (int)c->batch_jobs_max,
                               .tokens_max = c->batch_tokens_max,
                               .plan_wait_us = c->plan_wait_ms * 1000,
                               .company_us = c->company_ms * 1000};
    w->batch = calloc((size_t)c->batch_jobs_max, sizeof *w->batch);
    if (!w->batch) return err_set(e, ERR_RETRY, "out of memory for a batch");
    w->runs = runs_create(e);
    w->schedule = w->runs ? schedule_create(&sc, e) : NULL;
    w->sampling = w->schedule ? sampling_create(e) : NULL;
    w->sweep = w->sampling ? sweep_create(e) : NULL;
    w->counters = w->sweep ? counters_open(c->redis, c->redis_prefix, (int)c->slot, e) : NULL;
    return w->counters ? 0 : -1;
}

static int open_lease(struct worker *w, struct err *e)
{
    struct lease_conf lc = {.postgres = w->conf->postgres,
                            .model = w->conf->model,
                            .owner = w->owner,
                            .slot = (int)w->conf->slot,
                            .lease_ms = w->conf->lease_ms,
                            .numerics = engine_info(w->engine)->numerics,
                            .numerics_change = w->conf->numerics_change,
                            .shards =
                                (int)(w->conf->train_partitions + w->conf->sample_partitions)};
    w->lease = lease_open(&lc, e);
    return w->lease ? 0 : -1;
}

int worker_open(struct worker *w, const struct worker_conf *conf, struct err *e)
{
    uint8_t random[16];
    struct memory_bounds bounds;
    *w = (struct worker){.conf = conf};
    seal_random(random, sizeof random);
    seal_hex(random, sizeof random, w->owner);
    if (bus_security_read(conf->kafka_config, e) < 0) return -1;
    if (memory_bounds_of(conf, &bounds, e) < 0 || check_memory(&bounds, e) < 0) return -1;
    if (folder_make(conf->data, e) < 0 || open_engine(w, e) < 0 || check_device(w, &bounds, e) < 0)
        return -1;
    w->db = db_create(conf->postgres, "tinworks-worker", e);
    if (!w->db || open_logs(w, e) < 0 || announce(w, e) < 0) return -1;
    if (open_parts(w, e) < 0) return -1;
    return open_lease(w, e);
}

void worker_close(struct worker *w, enum lease_end how)
{
    sampling_forgive(w); /* while the shards are ours: a successor counts on */
    lease_close(w->lease, how);
    counters_close(w->counters);
    publisher_free(w->out); /* acks name shards, so it goes before them */
    while (w->fresh_count)
        task_free(w->fresh[--w->fresh_count]);
    sampling_free(w);
    sweep_free(w->sweep);
    schedule_free(w->schedule);
    runs_free(w);
    for (int i = 0; i < w->shard_count; i++)
        shard_free(w->shards[i]);
    free(w->batch);
    bus_consumer_free(w->scan);
    bus_consumer_free(w->in);
    db_free(w->db);
    engine_close(w->engine);
    *w = (struct worker){0};
}

/* ---------------------------------------------------------------- a turn */

/* Whoever has lost a shard takes none any more (lease.c), so it leaves, also when it had refused
 * that one: a fresh process takes what is free. */
static int shard_lost(struct worker *w, const struct lease_event *ev, struct err *e)
{
    struct shard *s = shard_find(w, ev->stream, ev->partition);
    if (s) return shard_fenced(w, s, "in the database", e);
    return err_set(e, ERR_LOST,
                   "shard %s/%d, which was refused here, was taken over by another worker",
                   stream_name(ev->stream), ev->partition);
}

static int shards_changed(struct worker *w, struct err *e)
{
    struct lease_event ev;
    bool started = lease_started(w->lease);
    while (lease_next(w->lease, &ev)) {
        if (ev.lost) return shard_lost(w, &ev, e);
        if (shard_take(w, &ev, e) < 0) return -1;
    }
    if (started && !w->ready_told) {
        w->ready_told = true;
        log_info("worker.ready", "model=%s slot=%" PRId64 " device=%s shards=%d", w->conf->model,
                 w->conf->slot, w->conf->device, w->shard_count);
    }
    return 0;
}

static bool has_work(const struct worker *w, const struct shard *s)
{
    return s->stream == STREAM_TRAIN ? schedule_ready_of(w->schedule, s)
                                     : sampling_active_of(w, s);
}

/* Half of held_mb is for whoever comes first, the other half is shared evenly by the shards: together
 * they hold no more than all of it and a read, and one that holds a lot keeps no other one waiting.  A
 * shard with nothing to do is read on: what its jobs wait for lies further on. */
static bool held_enough(const struct worker *w, const struct shard *s)
{
    int64_t half = (w->conf->held_mb << 20) / 2, share = half / w->shard_count;
    if (s->waits) { /* not at every turn another way */
        half = half * 3 / 4;
        share = share * 3 / 4;
    }
    return w->held_bytes > half && s->held_bytes > share && has_work(w, s);
}

static int read_or_wait(struct worker *w, struct err *e)
{
    for (int i = 0; i < w->shard_count; i++) {
        struct shard *s = w->shards[i];
        bool waits = held_enough(w, s);
        if (waits == s->waits) continue;
        s->waits = waits;
        const char *topic = w->jobs_topic[s->stream];
        if ((waits ? bus_pause : bus_resume)(w->in, topic, s->partition, e) < 0) return -1;
    }
    return intake(w, w->wait_ms, e);
}

static int train_turn(struct worker *w, bool alone, int64_t *wait_us, struct err *e)
{
    int64_t began_us = clock_mono_us();
    int count = schedule_next(w->schedule, alone, began_us, w->batch, wait_us, e);
    if (count <= 0) return count;
    if (execute_batch(w, w->batch, count, e) < 0) return -1;
    w->train_us += clock_mono_us() - began_us;
    return 1;
}

static int sample_turn(struct worker *w, struct err *e)
{
    int64_t began_us = clock_mono_us();
    if (sampling_step(w, e) < 0) return -1;
    w->sample_us += clock_mono_us() - began_us;
    return 0;
}

/* Training and sampling share the device's time evenly while both have work. */
static int work(struct worker *w, struct err *e)
{
    bool sampling = sampling_active(w), training = schedule_ready(w->schedule);
    int64_t wait_us = -1;
    int trained = 0;
    w->wait_ms = IDLE_MS;
    if (!sampling || !training || sampling_alone(w)) w->train_us = w->sample_us = 0;
    if (training && !sampling_alone(w) && (!sampling || w->train_us <= w->sample_us))
        trained = train_turn(w, !sampling, &wait_us, e);
    if (trained < 0) return -1;
    if (sampling && !trained && sample_turn(w, e) < 0) return -1;
    if (trained || sampling)
        w->wait_ms = 0;
    else if (wait_us >= 0 && wait_us < IDLE_MS * 1000)
        w->wait_ms = (int)((wait_us + 999) / 1000);
    return 0;
}

static void count_plans(struct worker *w)
{
    const struct schedule_stats *st = schedule_stats(w->schedule);
    counters_set(w->counters, COUNT_PLANS_USED, st->plans_used);
    counters_set(w->counters, COUNT_PLANS_STALE, st->plans_stale);
    counters_set(w->counters, COUNT_SELF_PLANNED, st->self_planned);
}

int worker_turn(struct worker *w, struct err *e)
{
    if (shards_changed(w, e) < 0) return -1;
    if (read_or_wait(w, e) < 0) return -1;
    if (work(w, e) < 0) return -1;
    if (publish_collect(w, e) < 0) return -1;
    count_plans(w);
    sweep_look(w, clock_mono_ms());
    return snapshot_if_due(w, e);
}

int worker_drain(struct worker *w, struct err *e)
{
    if (publish_flush(w, e) < 0) return -1;
    return snapshot_all(w, e);
}
