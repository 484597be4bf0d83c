/* topics.c - making topics and waiting until they can be used; see bus.h. */
#include "bus/bus.h"

#include <stdio.h>
#include <stdlib.h>
#include "base/clock.h"
#include "conf.h"

#define TOPICS_MAX 64

static rd_kafka_NewTopic_t *describe(const struct bus_topic *t, int rf, struct err *e)
{
    char why[256], retention[32], record_max[32];
    rd_kafka_NewTopic_t *n = rd_kafka_NewTopic_new(t->name, t->partitions, rf, why, sizeof why);
    if (!n) {
        err_set(e, ERR_USER, "topic \"%s\" with %d partitions: %s", t->name, t->partitions, why);
        return NULL;
    }
    snprintf(retention, sizeof retention, "%lld", (long long)t->retention_ms);
    snprintf(record_max, sizeof record_max, "%u", BUS_RECORD_MAX + BUS_FRAME_MAX);
    rd_kafka_NewTopic_set_config(n, "cleanup.policy", "delete");
    rd_kafka_NewTopic_set_config(n, "message.timestamp.type", "LogAppendTime");
    rd_kafka_NewTopic_set_config(n, "retention.ms", retention);
    rd_kafka_NewTopic_set_config(n, "max.message.bytes", record_max);
    if (rf >= 3) rd_kafka_NewTopic_set_config(n, "min.insync.replicas", "2");
    return n;
}

static bool broker_is_away(rd_kafka_resp_err_t code)
{
    switch (code) {
    case RD_KAFKA_RESP_ERR__TIMED_OUT:
    case RD_KAFKA_RESP_ERR__TRANSPORT:
    case RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN:
    case RD_KAFKA_RESP_ERR__DESTROY:
    case RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT:
    case RD_KAFKA_RESP_ERR_NOT_CONTROLLER:
    case RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS:
        return true;
    default:
        return false;
    }
}

/* The answer to CreateTopics, one verdict a topic. */
static int read_verdicts(rd_kafka_event_t *event, struct err *e)
{
    rd_kafka_resp_err_t code = rd_kafka_event_error(event);
    size_t count = 0;
    if (code)
        return err_set(e, broker_is_away(code) ? ERR_RETRY : ERR_USER, "cannot create topics: %s",
                       rd_kafka_event_error_string(event));
    const rd_kafka_topic_result_t **results =
        rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(event), &count);
    for (size_t i = 0; i < count; i++) {
        code = rd_kafka_topic_result_error(results[i]);
        if (!code || code == RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS) continue;
        const char *text = rd_kafka_topic_result_error_string(results[i]);
        return err_set(e, broker_is_away(code) ? ERR_RETRY : ERR_USER,
                       "cannot create topic \"%s\": %s", rd_kafka_topic_result_name(results[i]),
                       text ? text : rd_kafka_err2str(code));
    }
    return 0;
}

static int create(rd_kafka_t *rk, rd_kafka_NewTopic_t **topics, int count, int64_t deadline,
                  struct err *e)
{
    char why[256];
    int result = -1;
    int left = (int)(deadline - clock_mono_ms());
    rd_kafka_event_t *event = NULL;
    rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
    rd_kafka_AdminOptions_t *options =
        rd_kafka_AdminOptions_new(rk, RD_KAFKA_ADMIN_OP_CREATETOPICS);
    if (left < 1) left = 1;
    if (rd_kafka_AdminOptions_set_request_timeout(options, left, why, sizeof why) ||
        rd_kafka_AdminOptions_set_operation_timeout(options, left, why, sizeof why)) {
        err_set(e, ERR_BUG, "timeout of %d ms: %s", left, why);
        goto out;
    }
    rd_kafka_CreateTopics(rk, topics, (size_t)count, options, queue);
    event = rd_kafka_queue_poll(queue, left + 1000); /* librdkafka's own timeout comes first */
    result = event ? read_verdicts(event, e)
                   : err_set(e, ERR_RETRY, "no answer from Kafka in %d ms", left);
out:
    if (event) rd_kafka_event_destroy(event);
    rd_kafka_AdminOptions_destroy(options);
    rd_kafka_queue_destroy(queue);
    return result;
}

/* True when the topic is known and each of its partitions has a leader. */
static bool has_leaders(rd_kafka_t *rk, const char *name)
{
    const struct rd_kafka_metadata *md = NULL;
    rd_kafka_topic_t *rkt = rd_kafka_topic_new(rk, name, NULL);
    bool good = false;
    if (!rkt) return false;
    if (!rd_kafka_metadata(rk, 0, rkt, &md, 1000)) {
        good = md->topic_cnt == 1 && !md->topics[0].err && md->topics[0].partition_cnt > 0;
        for (int i = 0; good && i < md->topics[0].partition_cnt; i++)
            good = !md->topics[0].partitions[i].err && md->topics[0].partitions[i].leader >= 0;
        rd_kafka_metadata_destroy(md);
    }
    rd_kafka_topic_destroy(rkt);
    return good;
}

static int wait_leaders(rd_kafka_t *rk, const struct bus_topic *topics, int count, int64_t deadline,
                        struct err *e)
{
    for (int i = 0; i < count; i++) {
        while (!has_leaders(rk, topics[i].name)) {
            if (clock_mono_ms() >= deadline)
                return err_set(e, ERR_RETRY, "topic \"%s\" has no leader yet", topics[i].name);
            clock_sleep_ms(50);
        }
    }
    return 0;
}

int bus_topics_ensure(const char *brokers, const struct bus_topic *topics, int count, int rf,
                      int timeout_ms, struct err *e)
{
    rd_kafka_NewTopic_t *described[TOPICS_MAX];
    rd_kafka_t *rk = NULL;
    int made = 0, result = -1;
    int64_t deadline = clock_mono_ms() + timeout_ms;
    if (count < 0 || count > TOPICS_MAX)
        return err_set(e, ERR_BUG, "%d topics at once, expected at most %d", count, TOPICS_MAX);
    if (!count) return 0;
    for (; made < count; made++)
        if (!(described[made] = describe(&topics[made], rf, e))) goto out;
    rd_kafka_conf_t *conf = bus_conf(brokers, "topics", e);
    rk = conf ? bus_client(RD_KAFKA_PRODUCER, conf, e) : NULL;
    if (!rk) goto out;
    if (create(rk, described, count, deadline, e) < 0) goto out;
    result = wait_leaders(rk, topics, count, deadline, e);
out:
    while (made)
        rd_kafka_NewTopic_destroy(described[--made]);
    if (rk) rd_kafka_destroy(rk);
    return result;
}
