/* main.c - tinworks-bench NAME: figures of the running system.  NAME is path or polls. */
#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

#include "base/conf.h"
#include "base/log.h"
#include "base/stop.h"
#include "path.h"
#include "polls.h"

static int run_path(int argc, char **argv, struct err *e)
{
    struct path_conf conf = {0};
    int rest;
    const char *url = getenv("TINKER_BASE_URL"), *key = getenv("TINKER_API_KEY");
    const struct conf_item items[] = {
        {"base_url", CONF_STR, &conf.base_url, url, 0, 0, "the gateway; also TINKER_BASE_URL"},
        {"api_key", CONF_STR, &conf.api_key, key, 0, 0, "also TINKER_API_KEY"},
        {"kafka_brokers", CONF_STR, &conf.kafka_brokers, NULL, 0, 0,
         "host:port, more after commas"},
        {"kafka_config", CONF_STR, &conf.kafka_config, "", 0, 0,
         "properties file of a cluster that asks who is there; empty: none"},
        {"topic_prefix", CONF_STR, &conf.topic_prefix, "tw.", 0, 0, "before every topic's name"},
        {"model", CONF_STR, &conf.model, "", 0, 0,
         "base model; empty: the first that can be trained"},
        {"count", CONF_INT, &conf.count, "500", 1, 1000000, "rounds that are measured"},
        {"warmup", CONF_INT, &conf.warmup, "50", 0, 100000, "rounds before them"},
        {"json", CONF_BOOL, &conf.json, "false", 0, 0, "one JSON object a line instead of a table"},
        {0}};
    if (conf_read(items, "POST to answer, beside the bare Kafka round trip", argc, argv, &rest, e) <
        0)
        return -1;
    if (rest < argc) return err_set(e, ERR_USER, "unexpected word \"%s\", see --help", argv[rest]);
    return path_run(&conf, e);
}

static int run_polls(int argc, char **argv, struct err *e)
{
    struct polls_conf conf = {0};
    int rest;
    const char *url = getenv("TINKER_BASE_URL"), *key = getenv("TINKER_API_KEY");
    const struct conf_item items[] = {
        {"base_url", CONF_STR, &conf.base_url, url, 0, 0, "the gateway; also TINKER_BASE_URL"},
        {"api_key", CONF_STR, &conf.api_key, key, 0, 0, "also TINKER_API_KEY"},
        {"gateway_pid", CONF_INT, &conf.gateway_pid, NULL, 1, INT32_MAX,
         "the gateway's process id, for its memory"},
        {"model", CONF_STR, &conf.model, "", 0, 0,
         "base model; empty: the first that can be trained"},
        {"count", CONF_INT, &conf.count, "10000", 1, 1000000, "polls that are parked"},
        {"runs", CONF_INT, &conf.runs, "8", 1, 64, "runs whose futures they wait for"},
        {"json", CONF_BOOL, &conf.json, "false", 0, 0, "one JSON object a line instead of a table"},
        {0}};
    if (conf_read(items, "long polls parked on one gateway, and its memory", argc, argv, &rest, e) <
        0)
        return -1;
    if (rest < argc) return err_set(e, ERR_USER, "unexpected word \"%s\", see --help", argv[rest]);
    return polls_run(&conf, e);
}

int main(int argc, char **argv)
{
    struct err e = {0};
    stop_on_signals();
    curl_global_init(CURL_GLOBAL_DEFAULT);
    if (argc > 1 && !strcmp(argv[1], "path"))
        run_path(argc - 1, argv + 1, &e);
    else if (argc > 1 && !strcmp(argv[1], "polls"))
        run_polls(argc - 1, argv + 1, &e);
    else
        err_set(&e, ERR_USER, "usage: tinworks-bench path|polls [--json] [--count N], not \"%s\"",
                argc > 1 ? argv[1] : "");
    log_err("bench.end", &e);
    curl_global_cleanup();
    return e.kind ? EXIT_FAILURE : EXIT_SUCCESS;
}
