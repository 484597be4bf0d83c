/* polls.c - see polls.h.
 *
 * Futures stay pending for as long as we like because number 1 of each run is missing: numbers 2
 * and on are held behind the gap.  All are polled, each on a connection of its own; then the gap is
 * shut, and the answer to number n has to say that it was the run's n-th step.
 *
 * A poll is measured twice: as the first request of its connection, and, when each has been told
 * "try again" and asked again, as a later one, which is what clients have most of the time. */
#include "polls.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "client.h"
#include "figures.h"
#include "swarm.h"

#define SUBMITTERS  64
#define ID_MAX      256
#define BODY_MAX    512
#define SETTLE_MS   2000   /* of quiet, before memory is looked at */
#define PATIENCE_MS 300000 /* without any answer */
#define RUNS_MAX    64
#define POLL        "/api/v1/retrieve_future"

struct bench {
    const struct polls_conf *conf;
    struct client *clients[RUNS_MAX];
    struct swarm *swarm;
    char (*ids)[ID_MAX]; /* request ids, one a poll */
    int *told;           /* how often each was told to try again */
    bool *done;
    int next, submitted, settled, wrong, again, parked_again;
    int64_t answered_ms;
    struct err *e;
};

/* Kilobytes of the gateway's own memory: what is shared counts in parts. */
static double pss_kib(int64_t pid, struct err *e)
{
    char path[64], line[256];
    long kib = -1;
    snprintf(path, sizeof path, "/proc/%lld/smaps_rollup", (long long)pid);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "Pss: %ld kB", &kib) == 1) break;
    if (f) fclose(f);
    if (kib < 0) err_set(e, ERR_USER, "cannot read %s, expected the gateway's process id", path);
    return (double)kib;
}

static int run_of(const struct bench *b, int i)
{
    return i % (int)b->conf->runs;
}

static int seq_of(const struct bench *b, int i)
{
    return 2 + i / (int)b->conf->runs;
}

static void step_body(const struct bench *b, int run, int seq, char body[BODY_MAX])
{
    snprintf(body, BODY_MAX,
             "{\"model_id\":\"%s\",\"seq_id\":%d,\"type\":\"optim_step\",\"adam_params\":"
             "{\"learning_rate\":0.0001,\"beta1\":0.9,\"beta2\":0.95,\"eps\":1e-12,"
             "\"weight_decay\":0.0,\"grad_clip_norm\":0.0}}",
             client_run(b->clients[run]), seq);
}

/* ---------------------------------------------------------------- submitting */

static void submit_next(struct bench *b, int line)
{
    char body[BODY_MAX];
    if (b->next == b->conf->count || b->e->kind) return;
    step_body(b, run_of(b, b->next), seq_of(b, b->next), body);
    b->told[line] = b->next++; /* which one this line has sent */
    swarm_post(b->swarm, line, "/api/v1/optim_step", body, b->e);
}

static void on_submitted(void *arg, int line, int status, const char *body, size_t size)
{
    struct bench *b = arg;
    json_t *root = json_loadb(body, size, 0, NULL);
    const char *id = json_string_value(json_object_get(root, "request_id"));
    if (status != 200 || !id || strlen(id) >= ID_MAX)
        err_set(b->e, ERR_USER, "optim_step: status %d: %.200s", status, body);
    else
        snprintf(b->ids[b->told[line]], ID_MAX, "%s", id);
    json_decref(root);
    b->submitted++;
    submit_next(b, line);
}

static int open_runs(struct bench *b)
{
    for (int i = 0; i < b->conf->runs; i++) {
        b->clients[i] = client_create(b->conf->base_url, b->conf->api_key, b->e);
        if (!b->clients[i] || client_open(b->clients[i], b->conf->model, b->e) < 0) return -1;
    }
    return 0;
}

static int submit_all(struct bench *b)
{
    int lines = b->conf->count < SUBMITTERS ? (int)b->conf->count : SUBMITTERS;
    b->swarm = swarm_create(b->conf->base_url, b->conf->api_key, lines, on_submitted, b, b->e);
    for (int i = 0; b->swarm && i < lines; i++)
        submit_next(b, i);
    while (b->swarm && !b->e->kind && b->submitted < b->conf->count)
        if (swarm_step(b->swarm, 100, b->e) < 0) break;
    swarm_free(b->swarm);
    b->swarm = NULL;
    memset(b->told, 0, (size_t)b->conf->count * sizeof *b->told);
    return b->e->kind ? -1 : 0;
}

/* ---------------------------------------------------------------- polling */

static void poll(struct bench *b, int i)
{
    char body[ID_MAX + 64];
    snprintf(body, sizeof body, "{\"request_id\":\"%s\",\"allow_metadata_only\":true}", b->ids[i]);
    swarm_post(b->swarm, i, POLL, body, b->e);
}

/* The result of number n is the run's n-th step. */
static bool is_right(const struct bench *b, int i, const char *body, size_t size)
{
    json_t *root = json_loadb(body, size, 0, NULL);
    const json_t *step = json_object_get(json_object_get(root, "metrics"), "step:max");
    bool right = json_is_number(step) && json_number_value(step) == seq_of(b, i);
    json_decref(root);
    return right;
}

static void on_polled(void *arg, int i, int status, const char *body, size_t size)
{
    struct bench *b = arg;
    b->answered_ms = clock_mono_ms();
    if (status == 408) {
        b->again++;
        if (!b->told[i]++) b->parked_again++;
        poll(b, i);
    } else if (status == 200 && !b->done[i]) {
        b->done[i] = true;
        b->settled++;
        b->wrong += !is_right(b, i, body, size);
    } else {
        err_set(b->e, ERR_USER, "retrieve_future: status %d: %.200s", status, body);
    }
}

/* Until nothing has been sent for a while. */
static int let_settle(struct bench *b)
{
    int64_t quiet_ms = clock_mono_ms();
    while (clock_mono_ms() - quiet_ms < SETTLE_MS) {
        if (swarm_step(b->swarm, 50, b->e) < 0 || b->e->kind) return -1;
        if (swarm_unsent(b->swarm)) quiet_ms = clock_mono_ms();
    }
    return 0;
}

static int park_all(struct bench *b, double *fresh_kib, double *kept_kib)
{
    int count = (int)b->conf->count;
    double before = pss_kib(b->conf->gateway_pid, b->e);
    b->swarm = swarm_create(b->conf->base_url, b->conf->api_key, count, on_polled, b, b->e);
    for (int i = 0; b->swarm && i < count; i++)
        poll(b, i);
    if (!b->swarm || let_settle(b) < 0) return -1;
    *fresh_kib = (pss_kib(b->conf->gateway_pid, b->e) - before) / count;
    b->answered_ms = clock_mono_ms();
    while (!b->e->kind && b->parked_again < count) {
        if (swarm_step(b->swarm, 100, b->e) < 0) return -1;
        if (clock_mono_ms() - b->answered_ms > PATIENCE_MS)
            return err_set(b->e, ERR_RETRY, "%d polls were never told to try again",
                           count - b->parked_again);
    }
    if (b->e->kind || let_settle(b) < 0) return -1;
    *kept_kib = (pss_kib(b->conf->gateway_pid, b->e) - before) / count;
    return b->e->kind ? -1 : 0;
}

static int settle_all(struct bench *b)
{
    for (int i = 0; i < b->conf->runs; i++)
        if (client_submit_step(b->clients[i], b->e) < 0) return -1;
    b->answered_ms = clock_mono_ms();
    while (!b->e->kind && b->settled < b->conf->count) {
        if (swarm_step(b->swarm, 100, b->e) < 0) return -1;
        if (clock_mono_ms() - b->answered_ms > PATIENCE_MS) break;
    }
    return b->e->kind ? -1 : 0;
}

/* ---------------------------------------------------------------- the bench */

static int measure(struct bench *b)
{
    double fresh_kib = 0, kept_kib = 0;
    char name[48];
    if (open_runs(b) < 0 || submit_all(b) < 0 || park_all(b, &fresh_kib, &kept_kib) < 0) return -1;
    int64_t began_ms = clock_mono_ms();
    if (settle_all(b) < 0) return -1;
    int lost = (int)b->conf->count - b->settled;
    snprintf(name, sizeof name, "%d parked polls", (int)b->conf->count);
    figure_print("polls", name, "first", fresh_kib, "KiB each, first on its connection");
    figure_print("polls", name, "kept", kept_kib, "KiB each, on a kept connection");
    figure_print("polls", name, "again", b->again, "times told to try again");
    figure_print("polls", name, "repeats", (double)swarm_repeats(b->swarm),
                 "connections made anew");
    figure_print("polls", name, "settled", (double)(clock_mono_ms() - began_ms) / 1000.0, "s");
    figure_print("polls", name, "wrong", b->wrong, "answers");
    figure_print("polls", name, "lost", lost, "polls");
    if (lost || b->wrong)
        return err_set(b->e, ERR_USER, "%d polls were lost, %d got a wrong answer", lost, b->wrong);
    return 0;
}

int polls_run(const struct polls_conf *conf, struct err *e)
{
    struct bench b = {.conf = conf, .e = e};
    size_t count = (size_t)conf->count;
    int rc = -1;
    b.ids = calloc(count, sizeof *b.ids);
    b.told = calloc(count > SUBMITTERS ? count : SUBMITTERS, sizeof *b.told);
    b.done = calloc(count, sizeof *b.done);
    figures_begin(conf->json);
    if (!b.ids || !b.told || !b.done)
        err_set(e, ERR_RETRY, "no memory for %zu polls", count);
    else
        rc = measure(&b);
    swarm_free(b.swarm);
    for (int i = 0; i < RUNS_MAX; i++) {
        if (b.clients[i]) client_finish(b.clients[i]);
        client_free(b.clients[i]);
    }
    free(b.ids);
    free(b.told);
    free(b.done);
    return rc;
}
