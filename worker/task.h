/* task.h - a job in this worker's hands, and the run it belongs to.  Plain data of the main thread. */
#ifndef WORKER_TASK_H
#define WORKER_TASK_H

#include <stdbool.h>
#include <stdint.h>
#include "engine/engine.h"
#include "order.h"
#include "plan/batcher.h"
#include "wire/job.h"
#include "wire/result.h"

struct shard;

/* What the log has decided about a job already.  Found at take-over. */
struct official {
    char job_id[ID_SIZE];
    enum result_status status;
    bool gave_up; /* failed, of category server: the job itself may be what killed a worker */
    enum job_kind kind;
    char digest[65];
    int64_t offset; /* in the results log */
    int64_t epoch;  /* of the worker that decided it */
};

enum task_state {
    TASK_HELD,  /* in its run's order, not chosen by anybody */
    TASK_FED,   /* in our own batcher                        */
    TASK_TAKEN, /* in the batch that is being built or run   */
};

struct run;

struct task {
    struct job *job;            /* owned */
    struct official *known;     /* owned; NULL: nothing was decided yet */
    struct run *run;            /* train only */
    struct shard *shard;
    enum batch_class cls;
    enum task_state state;
    bool suspect;               /* sample only: the worker before us may have died of it (suspect.h) */
    int64_t arrived_us;
};

/* One adapter being trained. */
struct run {
    char id[ID_SIZE];
    char tenant[TENANT_SIZE];   /* "": not known yet */
    struct shard *shard;
    struct order *order;        /* of struct task */
    struct adapter *adapter;    /* NULL: not resident, or never made */
    bool made;                  /* its creation succeeded: there is a state, resident or in a snapshot */
    bool never;                 /* its creation failed: every job of it fails */
    int64_t snapshot_seq;       /* what the last snapshot covers; -2: there is none */
    char *snapshot_dir, *snapshot_sha256, *snapshot_digest; /* owned; "" dir: of a run that was never made */
    double replay_ms;           /* work since the last snapshot */
    bool refused;               /* a late or a second job of a seq failed since the last snapshot: the next one says so */
    bool prefer_snapshot;       /* it depends on a file that its owner may delete */
    int64_t used_ms;            /* when it did something last */
    int64_t answered_us;        /* when its last result went out */
    int64_t return_us;          /* how long its client usually takes from an answer to the next job; 0: not known */
    int fed;                    /* tasks in the batcher */
    int64_t suspect_below;      /* undecided jobs below this offset may have ended the last worker (suspect.h) */
    bool suspect_passes;        /* one of them was decided: only passes may have shared its batch */
    bool paused;                /* nothing of it runs now, because it is late or until step_again_ms */
    bool late;                  /* its changes wait for a snapshot for too long */
    bool broken;                /* a replay gave other bits than the log has: held until somebody looks */
    int64_t changed_ms;         /* since when they wait; 0: they do not */
    int64_t again_ms;           /* its last snapshot failed: when the next is tried; 0: it did not */
    int64_t step_again_ms;      /* a save of it found no room: when it is tried again */
    struct run *busy_prev, *busy_next; /* in the schedule's list of runs with something held */
    bool busy;
};

#endif
