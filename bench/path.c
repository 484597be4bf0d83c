/* path.c - see path.h.
 *
 * One round does each case once, so that whatever disturbs the machine disturbs all of them alike;
 * the figure that travels between machines is the ratio. */
#include "path.h"

#include <stdio.h>
#include <stdlib.h>
#include "bus/bus.h"
#include "client.h"
#include "echo.h"
#include "figures.h"

enum path_case { OPTIM_STEP, OPTIM_STEP_ACK, FORWARD, FORWARD_ACK, KAFKA, CASE_COUNT };

static const char *const names[CASE_COUNT] = {
    [OPTIM_STEP] = "optim_step",        [OPTIM_STEP_ACK] = "optim_step, until its request id",
    [FORWARD] = "forward of one token", [FORWARD_ACK] = "forward, until its request id",
    [KAFKA] = "kafka round trip",
};

static int one_round(struct client *client, struct echo *echo, int64_t took_us[CASE_COUNT],
                     struct err *e)
{
    struct took took;
    if (client_optim_step(client, &took, e) < 0) return -1;
    took_us[OPTIM_STEP] = took.answer_us;
    took_us[OPTIM_STEP_ACK] = took.ack_us;
    if (echo_round_trip(echo, &took_us[KAFKA], e) < 0) return -1;
    if (client_forward(client, &took, e) < 0) return -1;
    took_us[FORWARD] = took.answer_us;
    took_us[FORWARD_ACK] = took.ack_us;
    return 0;
}

static void print_ratio(const struct times *times, enum path_case c, double share,
                        const char *figure)
{
    double kafka = figure_quantile_ms(&times[KAFKA], share);
    char name[64];
    snprintf(name, sizeof name, "%s / %s", names[c], names[KAFKA]);
    if (kafka > 0)
        figure_print("path", name, figure, figure_quantile_ms(&times[c], share) / kafka, "x");
}

static void print_all(struct times *times)
{
    for (int c = 0; c < CASE_COUNT; c++)
        figures_times("path", names[c], &times[c]);
    print_ratio(times, OPTIM_STEP, 0.50, "p50_ratio");
    print_ratio(times, OPTIM_STEP, 0.99, "p99_ratio");
}

int path_run(const struct path_conf *conf, struct err *e)
{
    struct times times[CASE_COUNT] = {{0}};
    int64_t took_us[CASE_COUNT];
    struct echo *echo = NULL;
    int rc = -1;
    struct client *client = client_create(conf->base_url, conf->api_key, e);
    if (!client) goto out;
    for (int c = 0; c < CASE_COUNT; c++) {
        times[c].us = calloc((size_t)conf->count, sizeof *times[c].us);
        if (times[c].us) continue;
        err_set(e, ERR_RETRY, "no memory for %lld times", (long long)conf->count);
        goto out;
    }
    if (client_open(client, conf->model, e) < 0) goto out;
    if (bus_security_read(conf->kafka_config, e) < 0) goto out;
    echo = echo_create(conf->kafka_brokers, conf->topic_prefix, e);
    if (!echo) goto out;
    for (int64_t i = -conf->warmup; i < conf->count; i++) {
        if (one_round(client, echo, took_us, e) < 0) goto out;
        for (int c = 0; c < CASE_COUNT && i >= 0; c++)
            times[c].us[times[c].count++] = took_us[c];
    }
    client_finish(client);
    figures_begin(conf->json);
    print_all(times);
    rc = 0;
out:
    echo_free(echo);
    client_free(client);
    for (int c = 0; c < CASE_COUNT; c++)
        free(times[c].us);
    return rc;
}
