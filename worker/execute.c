/* execute.c - see execute.h. */
#include "execute.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "checkpoint.h"
#include "suspect.h"
#include "wire/answer.h"
#include "wire/payload.h"
#include "worker.h"

#define AGAIN_MS 2000 /* before a save that found no room is tried again */
#define CHANGE_MS                                                                                  \
    0.001 /* what a state change counts at least, so that it is never taken for none */

enum batch_class execute_class(enum job_kind kind)
{
    return kind == JOB_FORWARD || kind == JOB_FORWARD_BACKWARD ? CLASS_PASS : CLASS_STEP;
}

/* The task is decided: its run moves on. */
static void finish(struct worker *w, struct task *t)
{
    struct run *run = t->run;
    suspect_done(run, t);
    order_done(run->order, t->job->seq);
    run->used_ms = clock_mono_ms();
    schedule_done(w->schedule, t, clock_mono_us());
    worker_held(w, t->shard, -(int64_t)t->job->size);
    task_free(t);
}

/* Decided by the log with nothing to redo. */
static bool settled(const struct task *t)
{
    if (!t->known) return false;
    enum job_kind kind = t->job->kind;
    if (t->known->gave_up) return true;
    /* A step that failed on a gradient that is not finite has dropped it. */
    if (t->known->status != RESULT_OK) return kind != JOB_OPTIM_STEP;
    /* Files and rows of a save were there before its result was. */
    return kind == JOB_FORWARD || kind == JOB_SAVE || kind == JOB_SAVE_SAMPLER;
}

/* Why no job of this kind can do anything on this run now; ERR_USER. */
static int run_check(const struct task *t, struct err *e)
{
    const struct run *run = t->run;
    if (t->job->kind == JOB_CREATE) {
        if (run->made) return err_set(e, ERR_USER, "run \"%s\" exists already", run->id);
        return 0;
    }
    if (*run->tenant && strcmp(run->tenant, t->job->tenant))
        return err_set(e, ERR_USER, "run \"%s\" belongs to another account", run->id);
    if (!run->made) return err_set(e, ERR_USER, "run \"%s\" was not created", run->id);
    return 0;
}

/* ---------------------------------------------------------------- passes */

/* One job's share of a pass. */
struct share {
    struct task *task;
    struct train_request *request; /* owned */
    struct datum *datums;          /* owned; arrays borrowed from request */
    float *logprobs;               /* owned; of all datums */
    struct err refused;            /* ERR_USER: why the job fails */
    bool skip;                     /* the log has decided, nothing to redo */
    int item;                      /* in the pass */
};

static void share_clear(struct share *sh)
{
    train_request_free(sh->request);
    free(sh->datums);
    free(sh->logprobs);
}

/* Log-probabilities of a datum. */
static size_t cells_of(const struct train_datum *d)
{
    return (size_t)d->n * (size_t)(d->columns ? d->columns : 1);
}

static size_t request_cells(const struct train_request *rq)
{
    size_t cells = 0;
    for (int i = 0; i < rq->count; i++)
        cells += cells_of(&rq->datums[i]);
    return cells;
}

static int share_datums(struct share *sh, struct err *e)
{
    const struct train_request *rq = sh->request;
    sh->datums = calloc((size_t)rq->count, sizeof *sh->datums);
    sh->logprobs = calloc(request_cells(rq) + 1, sizeof *sh->logprobs);
    if (!sh->datums || !sh->logprobs)
        return err_set(e, ERR_RETRY, "out of memory for job \"%s\"", sh->task->job->id);
    float *at = sh->logprobs;
    for (int i = 0; i < rq->count; i++) {
        const struct train_datum *d = &rq->datums[i];
        sh->datums[i] = (struct datum){.n = d->n,
                                       .columns = d->columns,
                                       .tokens = d->tokens,
                                       .targets = d->targets,
                                       .weights = d->weights,
                                       .logprobs = d->logprobs,
                                       .advantages = d->advantages,
                                       .clip_low = d->clip_low,
                                       .clip_high = d->clip_high,
                                       .sequence_ratio_mask = d->sequence_ratio_mask,
                                       .out_logprobs = at};
        at += cells_of(d);
    }
    return 0;
}

static int share_loss(const struct train_request *rq, struct loss_conf *loss, struct err *e)
{
    enum loss_kind kind = loss_kind_of(rq->loss);
    if (kind == LOSS_UNKNOWN)
        return err_set(e, ERR_USER, "loss_fn is \"%s\", expected one of %s", rq->loss,
                       loss_names());
    *loss = loss_defaults(kind);
    for (int i = 0; i < rq->setting_count; i++) {
        const struct loss_setting *s = &rq->settings[i];
        if (loss_set(loss, s->key, s->number, e) < 0) return -1;
        if (s->text)
            return err_set(e, ERR_USER, "loss_fn_config %s is a text, expected a number", s->key);
    }
    return 0;
}

/* Decodes and checks; ERR_USER: the job fails. */
static int share_prepare(struct worker *w, struct share *sh, struct train_item *item, struct err *e)
{
    const struct job *job = sh->task->job;
    bool malformed;
    if (run_check(sh->task, e) < 0) return -1;
    sh->request = train_request_decode(job->content, job->payload, job->size, &malformed, e);
    if (!sh->request) return -1;
    *item = (struct train_item){.adapter = sh->task->run->adapter,
                                .forward_only = job->kind == JOB_FORWARD,
                                .datum_count = sh->request->count};
    if (share_loss(sh->request, &item->loss, e) < 0) return -1;
    if (!sh->request->count) return err_set(e, ERR_USER, "data is empty, expected a datum");
    if (share_datums(sh, e) < 0) return -1;
    item->datums = sh->datums;
    return engine_train_check(w->engine, item, e);
}

static int share_answer(struct worker *w, const struct share *sh, const struct train_item *item,
                        struct err *e)
{
    const struct train_request *rq = sh->request;
    struct metric metrics[] = {{"loss:sum", item->out_loss}, {"tokens:sum", (double)rq->tokens}};
    size_t size = 0;
    struct train_output *outputs = calloc((size_t)rq->count, sizeof *outputs);
    if (!outputs) return err_set(e, ERR_RETRY, "out of memory for an answer");
    for (int i = 0; i < rq->count; i++)
        outputs[i] = (struct train_output){.n = rq->datums[i].n,
                                           .columns = rq->datums[i].columns,
                                           .logprobs = item->datums[i].out_logprobs};
    char *payload = train_output_encode(rq->count, outputs, metrics, 2, &size, e);
    free(outputs);
    if (!payload) return -1;
    struct usage usage = {0};
    *(sh->task->job->kind == JOB_FORWARD ? &usage.prefill : &usage.train) = rq->tokens;
    return publish_ok(w, sh->task, CONTENT_PROTOBUF, payload, size, usage, e);
}

static int share_decide(struct worker *w, struct share *sh, const struct train_item *items,
                        struct err *e)
{
    if (sh->skip) {
        counters_add(w->counters, COUNT_REPLAYED, 1);
        return 0;
    }
    if (sh->refused.kind != ERR_NONE) return publish_failed(w, sh->task, sh->refused.text, e);
    return share_answer(w, sh, &items[sh->item], e);
}

/* Memory may be short for all of them together; each alone has to fit. */
static int train(struct worker *w, struct train_item *items, int count, struct err *e)
{
    if (!count) return 0;
    if (engine_train(w->engine, items, count, e) == 0) return 0;
    if (e->kind != ERR_RETRY || count == 1) return -1;
    log_warn("batch.split", "items=%d why=\"%s\"", count, e->text);
    err_clear(e);
    int half = count / 2;
    if (train(w, items, half, e) < 0) return -1;
    return train(w, items + half, count - half, e);
}

/* The cost of a replay goes to those who changed something, by tokens. */
static void charge_replay(const struct share *shares, int count, double ms)
{
    int64_t tokens = 0;
    for (int i = 0; i < count; i++)
        if (shares[i].request) tokens += shares[i].request->tokens;
    for (int i = 0; i < count; i++) {
        const struct share *sh = &shares[i];
        if (sh->skip || sh->refused.kind || sh->task->job->kind == JOB_FORWARD) continue;
        sh->task->run->replay_ms += CHANGE_MS;
        if (tokens > 0)
            sh->task->run->replay_ms += ms * (double)sh->request->tokens / (double)tokens;
    }
}

static int prepare_all(struct worker *w, struct share *shares, int count, struct train_item *items,
                       struct err *e)
{
    int used = 0;
    for (int i = 0; i < count; i++) {
        struct share *sh = &shares[i];
        sh->skip = settled(sh->task);
        if (sh->skip) continue;
        if (runs_resident(w, sh->task->run, e) < 0) return -1;
        if (share_prepare(w, sh, &items[used], &sh->refused) == 0)
            sh->item = used++;
        else if (sh->refused.kind != ERR_USER)
            return err_set(e, sh->refused.kind, "%s", sh->refused.text);
    }
    return used;
}

static int run_pass(struct worker *w, struct task **tasks, int count, int64_t *tokens,
                    struct err *e)
{
    struct share *shares = calloc((size_t)count, sizeof *shares);
    struct train_item *items = calloc((size_t)count, sizeof *items);
    int rc = -1, decided = 0;
    if (!shares || !items) {
        err_set(e, ERR_RETRY, "out of memory for a batch of %d", count);
        goto out;
    }
    for (int i = 0; i < count; i++)
        shares[i].task = tasks[i];
    int used = prepare_all(w, shares, count, items, e);
    if (used < 0) goto out;
    int64_t began_us = clock_mono_us();
    for (int i = 0; i < count; i++)
        if (!shares[i].skip) failpoint_pass("wk.mid_batch", tasks[i]->job->id);
    if (train(w, items, used, e) < 0) goto out;
    for (int i = 0; i < count; i++)
        failpoint_pass("wk.after_exec", tasks[i]->job->id);
    int64_t took_us = clock_mono_us() - began_us;
    if (used) schedule_pass_took(w->schedule, took_us);
    charge_replay(shares, count, (double)took_us / 1000);
    for (; decided < count; decided++) {
        struct share *sh = &shares[decided];
        if (share_decide(w, sh, items, e) < 0) goto out;
        if (sh->request) *tokens += sh->request->tokens;
        finish(w, sh->task);
    }
    rc = 0;
out:
    for (int i = 0; shares && i < count; i++)
        share_clear(&shares[i]);
    free(shares);
    free(items);
    return rc;
}

/* ---------------------------------------------------------------- steps */

static int answer(struct worker *w, struct task *t, char *take_json, size_t size, struct err *e)
{
    if (!take_json) return -1;
    return publish_ok(w, t, CONTENT_JSON, take_json, size, (struct usage){0}, e);
}

/* The answer to a job whose effect is there already: it cannot be done again in this life. */
static int answer_done(struct worker *w, struct task *t, char *json, size_t size, struct err *e)
{
    int rc = answer(w, t, json, size, e);
    if (rc < 0 && e->kind == ERR_RETRY) e->kind = ERR_LOST;
    return rc;
}

static int create(struct worker *w, struct task *t, struct err *e)
{
    size_t size = 0;
    const struct job *job = t->job;
    struct adapter *ad = NULL;
    struct create_request *rq = create_request_decode(job->payload, job->size, e);
    if (!rq) return -1;
    struct lora_conf lora = {.rank = rq->rank,
                             .train_attn = rq->train_attn,
                             .train_mlp = rq->train_mlp,
                             .train_unembed = rq->train_unembed};
    if (rq->from_checkpoint)
        ad = checkpoint_load(w, t, &rq->checkpoint, rq->with_optimizer, e);
    else
        ad = adapter_create(w->engine, &lora, rq->has_seed ? rq->seed : seed_of(job->id), e);
    int rc = -1;
    if (ad) {
        if (!*t->run->tenant) memcpy(t->run->tenant, job->tenant, sizeof job->tenant);
        runs_adopt(w, t->run, ad);
        t->run->prefer_snapshot = rq->from_checkpoint;
        char *json = rq->from_checkpoint ? answer_loaded(t->run->id, rq->path, &size, e)
                                         : answer_created(t->run->id, &size, e);
        rc = answer_done(w, t, json, size, e);
    }
    free(rq);
    return rc;
}

static int optim_step(struct worker *w, struct task *t, struct err *e)
{
    struct optim_request rq;
    double norm = 0;
    size_t size = 0;
    if (optim_request_decode(t->job->payload, t->job->size, &rq, e) < 0) return -1;
    struct adam_params p = {.learning_rate = rq.learning_rate,
                            .beta1 = rq.beta1,
                            .beta2 = rq.beta2,
                            .eps = rq.eps,
                            .weight_decay = rq.weight_decay,
                            .grad_clip_norm = rq.grad_clip_norm};
    if (adam_params_check(&p, e) < 0) return -1;
    if (adapter_optim_step(w->engine, t->run->adapter, &p, &norm, e) < 0) return -1;
    struct metric metrics[] = {{"grad_norm:mean", norm},
                               {"lr:mean", rq.learning_rate},
                               {"step:max", (double)adapter_step(t->run->adapter)}};
    char *json = answer_metrics(metrics, 3, &size, e);
    return answer(w, t, json, size, e);
}

static int save(struct worker *w, struct task *t, struct err *e)
{
    struct save_request rq = {0};
    size_t size = 0;
    if (save_request_decode(t->job->payload, t->job->size, &rq, e) < 0) return -1;
    bool sampler = t->job->kind == JOB_SAVE_SAMPLER;
    int rc = checkpoint_save(w, t, &rq, e);
    if (rc == 0) {
        char *json = rq.external ? answer_saved_external(rq.path, &size, e)
                     : sampler   ? answer_saved_sampler(rq.path, rq.sampler, &size, e)
                                 : answer_saved(rq.path, &size, e);
        rc = answer(w, t, json, size, e);
    }
    save_request_clear(&rq);
    return rc;
}

static int load(struct worker *w, struct task *t, struct err *e)
{
    struct load_request rq;
    size_t size = 0;
    if (load_request_decode(t->job->payload, t->job->size, &rq, e) < 0) return -1;
    struct adapter *ad = checkpoint_load(w, t, &rq.checkpoint, rq.with_optimizer, e);
    if (!ad) return -1;
    runs_adopt(w, t->run, ad);
    t->run->prefer_snapshot =
        true; /* the checkpoint may be deleted, the run must not depend on it */
    char *json = answer_loaded(t->run->id, rq.path, &size, e);
    return answer_done(w, t, json, size, e);
}

static int reject(struct task *t, struct err *e)
{
    char *text = NULL;
    if (reject_decode(t->job->payload, t->job->size, &text, e) < 0) return -1;
    err_set(e, ERR_USER, "%s", text);
    free(text);
    return -1;
}

/* -1 with ERR_USER: the job fails. */
static int step(struct worker *w, struct task *t, struct err *e)
{
    switch (t->job->kind) {
    case JOB_CREATE:
        return create(w, t, e);
    case JOB_OPTIM_STEP:
        return optim_step(w, t, e);
    case JOB_SAVE:
    case JOB_SAVE_SAMPLER:
        return save(w, t, e);
    case JOB_LOAD:
        return load(w, t, e);
    case JOB_REJECT:
        return reject(t, e);
    default:
        return err_set(e, ERR_BUG, "job \"%s\" is no step", t->job->id);
    }
}

/* A save or a load whose files could not be written or kept: the disk is full, say.  Others can go
 * on. */
static bool no_room(const struct task *t, const struct err *why)
{
    enum job_kind kind = t->job->kind;
    bool files =
        kind == JOB_SAVE || kind == JOB_SAVE_SAMPLER || kind == JOB_LOAD || kind == JOB_CREATE;
    return files && why->kind == ERR_RETRY;
}

/* The job keeps its place, and its run waits a moment: 1. */
static int put_off(struct worker *w, struct task *t, const struct err *why)
{
    bool loads = t->job->kind == JOB_LOAD || t->job->kind == JOB_CREATE;
    log_error(loads ? "load.postponed" : "save.postponed", "job=%s why=\"%s\"", t->job->id, why->text);
    t->run->paused = true;
    t->run->step_again_ms = clock_mono_ms() + AGAIN_MS;
    schedule_put_back(w->schedule, t->run);
    return 1;
}

/* 1: it was put off. */
static int run_step(struct worker *w, struct task *t, struct err *e)
{
    struct err why = {0};
    int64_t began_us = clock_mono_us();
    bool changes =
        t->job->kind == JOB_CREATE || t->job->kind == JOB_OPTIM_STEP || t->job->kind == JOB_LOAD;
    bool failed = t->known && t->known->status != RESULT_OK;
    int rc = 0;
    if (settled(t)) {
        counters_add(w->counters, COUNT_REPLAYED, 1);
    } else {
        if (runs_resident(w, t->run, e) < 0) return -1;
        failpoint_pass("wk.step", t->job->id);
        rc = t->job->kind == JOB_REJECT ? 0 : run_check(t, &why);
        if (rc == 0) rc = step(w, t, &why);
        failed = rc < 0 && why.kind == ERR_USER;
        if (rc < 0 && no_room(t, &why)) return put_off(w, t, &why);
        if (rc < 0 && !failed) return err_set(e, why.kind, "%s", why.text);
        if (failed && t->known && t->known->status == RESULT_OK)
            log_error("run.held", "run=%s job=%s why=\"%s\"", t->run->id, t->job->id, why.text);
        if (failed && publish_failed(w, t, why.text, e) < 0) return -1;
    }
    if (failed && t->job->seq == 0 && !t->run->made) t->run->never = true;
    if (changes && (!failed || t->job->kind == JOB_OPTIM_STEP))
        t->run->replay_ms += CHANGE_MS + (double)(clock_mono_us() - began_us) / 1000;
    finish(w, t);
    return 0;
}

/* ---------------------------------------------------------------- the batch */

static int runs_in(struct task **tasks, int count)
{
    int runs = 0;
    for (int i = 0; i < count; i++) {
        bool fresh = true;
        for (int j = 0; j < i && fresh; j++)
            fresh = tasks[j]->run != tasks[i]->run;
        runs += fresh;
    }
    return runs;
}

/* 1: something was put off. */
static int run_tasks(struct worker *w, struct task **tasks, int count, int64_t *tokens,
                     struct err *e)
{
    if (tasks[0]->cls == CLASS_PASS) return run_pass(w, tasks, count, tokens, e);
    int rc = 0;
    for (int i = 0; i < count; i++) {
        int one = run_step(w, tasks[i], e);
        if (one < 0) return -1;
        rc |= one;
    }
    return rc;
}

/* Alone, and counted before it begins. */
static int run_suspect(struct worker *w, struct task *t, int64_t *tokens, struct err *e)
{
    char id[ID_SIZE];
    memcpy(id, t->job->id, sizeof id);
    int given_up = suspect_begin(w, t, e);
    if (given_up < 0) return -1;
    if (given_up) {
        if (t->job->seq == 0 && !t->run->made) t->run->never = true;
        finish(w, t);
        return 0; /* the count stays until the verdict is old */
    }
    int rc = run_tasks(w, &t, 1, tokens, e);
    return rc == 0 ? suspect_end(w, id, e) : rc; /* what was put off goes on being counted */
}

int execute_batch(struct worker *w, struct task **tasks, int count, struct err *e)
{
    assert(count > 0);
    int64_t tokens = 0, began_us = clock_mono_us();
    int runs = runs_in(tasks, count);
    bool pass = tasks[0]->cls == CLASS_PASS, suspect = suspect_is(tasks[0]->run, tasks[0]);
    int rc = suspect ? run_suspect(w, tasks[0], &tokens, e)
                     : run_tasks(w, tasks, count, &tokens, e);
    if (rc < 0) return -1;
    counters_add(w->counters, COUNT_BATCHES, 1);
    if (runs > 1 && pass) counters_add(w->counters, COUNT_BATCHES_MULTI_RUN, 1);
    log_info("batch.done", "class=%s runs=%d jobs=%d tokens=%" PRId64 " ms=%.1f",
             pass ? "pass" : "step", runs, count, tokens,
             (double)(clock_mono_us() - began_us) / 1000);
    return 0;
}
