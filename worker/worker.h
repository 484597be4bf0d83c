/* worker.h - the worker itself: what is open, and the life of one turn of its loop.
 *
 * One thread, the main one, owns all of it and drives the engine.  Beside it run the lease thread (lease.h), the
 * counters' thread (counters.h) and librdkafka's own; they meet the main thread only in those modules. */
#ifndef WORKER_WORKER_H
#define WORKER_WORKER_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "bus/bus.h"
#include "conf.h"
#include "counters.h"
#include "db/db.h"
#include "engine/engine.h"
#include "intake.h"
#include "lease.h"
#include "publish.h"
#include "runs.h"
#include "sampling.h"
#include "schedule.h"
#include "shard.h"
#include "sweep.h"

#define WORKER_SHARDS_MAX (2 * PARTITIONS_MAX)
#define OWNER_SIZE        33

struct worker {
    const struct worker_conf *conf;
    char owner[OWNER_SIZE]; /* random, of this process */
    char jobs_topic[STREAM_COUNT][TOPIC_SIZE], results_topic[STREAM_COUNT][TOPIC_SIZE];
    char batches_topic[TOPIC_SIZE], dlq_topic[TOPIC_SIZE];
    struct engine *engine;
    struct db *db;
    struct bus_consumer *in;   /* jobs of our shards, and our slot's plans */
    struct bus_consumer *scan; /* results, at a take-over */
    struct publisher *out;
    struct lease *lease;
    struct counters *counters;
    struct shard *shards[WORKER_SHARDS_MAX];
    int shard_count;
    struct runs *runs;
    struct schedule *schedule;
    struct sampling *sampling;
    struct sweep *sweep;
    struct task **batch; /* the batch in hand, batch_jobs_max entries */
    struct task *fresh[INTAKE_MAX]; /* sampling jobs of this read that the books were not asked about yet */
    int fresh_count;
    int64_t away_told; /* alarms of the wait for the database that is going on */
    int64_t train_us, sample_us; /* time given to each while both had work */
    int64_t held_bytes;          /* payloads of jobs in hand */
    int wait_ms;                 /* how long the next turn may wait for records */
    int64_t snapshots_looked_ms, progress_written_ms;
    bool ready_told;
};

/* Opens the engine, the logs, the database; announces the model; starts to take shards. */
int worker_open(struct worker *w, const struct worker_conf *conf, struct err *e) WARN_UNUSED;

/* One turn: shards that came, records that came, a batch or a step of the samples, snapshots that are due.
 * Blocks on the logs while there is nothing to do.  -1: the process must leave. */
int worker_turn(struct worker *w, struct err *e) WARN_UNUSED;

/* Everything decided is acked, changed runs are in snapshots, the log positions are written. */
int worker_drain(struct worker *w, struct err *e) WARN_UNUSED;

/* Closes what was opened, in reverse, and gives the shards up. */
void worker_close(struct worker *w, enum lease_end how);

/* Payload bytes of that shard's jobs that came into our hands, or (negative) left them. */
void worker_held(struct worker *w, struct shard *s, int64_t bytes);

/* Repeats what a database that is away made fail, for as long as it is: the state in memory is worth more than the wait.
 * True: try again (a pause has been made); false: give up, it is another error, a shard is somebody else's or a stop was
 * asked for (*since is when the trouble began, 0 before the first call). */
bool worker_again(struct worker *w, int64_t *since_ms, const struct err *e);

#endif
