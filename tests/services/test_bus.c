/* test_bus.c - lib/bus against a real broker. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
#include "base/clock.h"
#include "bus/bus.h"

#define QUEUE_MAX (64u << 20)
#define NOWHERE   "127.0.0.1:1" /* nothing listens there */

static const char *brokers;
static const struct bus_producer_conf CONF = {.client_id = "test", .queue_bytes_max = QUEUE_MAX};
static char topic[64];
static struct bus_producer *producer;

static void check(int result, const struct err *e)
{
    if (result < 0) fail_msg("%s: %s", err_kind_name(e->kind), e->text);
}

/* A topic of its own for each test, two partitions. */
static int make_topic(void **state)
{
    static int number;
    struct err e = {0};
    snprintf(topic, sizeof topic, "test.%d.%lld.%d", (int)getpid(), (long long)clock_wall_ms(),
             number++);
    const struct bus_topic t = {topic, 2, 3600000};
    check(bus_topics_ensure(brokers, &t, 1, 1, 20000, &e), &e);
    producer = bus_producer_create(brokers, &CONF, &e);
    assert_non_null(producer);
    return 0;
}

static int drop_producer(void **state)
{
    bus_producer_free(producer);
    return 0;
}

static int64_t produce_size(int partition, const char *text, size_t size)
{
    struct err e = {0};
    const struct header headers[] = {{"ce_id", text}, {"empty", ""}};
    const struct bus_record r = {topic, partition, "key", headers, 2, text, size};
    int64_t offset = bus_produce_wait(producer, &r, 20000, &e);
    check(offset < 0 ? -1 : 0, &e);
    return offset;
}

static int64_t produce(int partition, const char *text)
{
    return produce_size(partition, text, strlen(text));
}

static struct bus_consumer *consume(int partition, int64_t offset)
{
    struct err e = {0};
    struct bus_consumer *c = bus_consumer_create(brokers, "test", &e);
    assert_non_null(c);
    check(bus_assign(c, topic, partition, offset, &e), &e);
    return c;
}

/* Polls until one record is there; fails after 20 s. */
static struct bus_message *next(struct bus_consumer *c)
{
    struct err e = {0};
    struct bus_message *m = NULL;
    int64_t deadline = clock_mono_ms() + 20000;
    while (!m) {
        if (clock_mono_ms() > deadline) fail_msg("no record came");
        int n = bus_poll(c, &m, 1, 200, &e);
        if (n < 0 && e.kind != ERR_RETRY) check(-1, &e);
    }
    return m;
}

static void expect(struct bus_consumer *c, int64_t offset, const char *text)
{
    struct bus_message *m = next(c);
    assert_int_equal(m->offset, offset);
    assert_string_equal(m->value, text);
    bus_message_free(m);
}

static void an_existing_topic_is_left_as_it_is(void **state)
{
    struct err e = {0};
    int64_t first, end;
    const struct bus_topic t[] = {{topic, 7, 1000}, {topic, 2, 1000}};
    produce(1, "kept");
    check(bus_topics_ensure(brokers, t, 1, 1, 20000, &e), &e);
    struct bus_consumer *c = consume(1, 0);
    expect(c, 0, "kept");
    assert_int_equal(bus_offsets(c, topic, 5, &first, &end, 2000, &e), -1); /* still two */
    bus_consumer_free(c);
}

static void a_record_arrives_whole(void **state)
{
    int64_t before = clock_wall_ms();
    assert_int_equal(produce(1, "hello"), 0);
    struct bus_consumer *c = consume(1, 0);
    struct bus_message *m = next(c);
    bus_consumer_free(c); /* the message stays */
    assert_string_equal(m->topic, topic);
    assert_int_equal(m->partition, 1);
    assert_int_equal(m->offset, 0);
    assert_string_equal(m->key, "key");
    assert_int_equal(m->size, 5);
    assert_memory_equal(m->value, "hello", 6);
    assert_int_equal(m->header_count, 2);
    assert_string_equal(m->headers[0].name, "ce_id");
    assert_string_equal(m->headers[0].value, "hello");
    assert_string_equal(m->headers[1].name, "empty");
    assert_string_equal(m->headers[1].value, "");
    assert_true(m->append_ms >= before - 60000);
    bus_message_free(m);
}

static void an_empty_record_without_key_arrives(void **state)
{
    struct err e = {0};
    const struct bus_record r = {.topic = topic};
    assert_int_equal(bus_produce_wait(producer, &r, 20000, &e), 0);
    struct bus_consumer *c = consume(0, 0);
    struct bus_message *m = next(c);
    assert_null(m->key);
    assert_int_equal(m->size, 0);
    assert_int_equal(m->header_count, 0);
    bus_message_free(m);
    bus_consumer_free(c);
}

/* ---------------------------------------------------------------- many */

#define MANY    4000
#define THREADS 4

static atomic_int acked_good;
static _Atomic int64_t last_offset;

static void count_ack(void *arg, int64_t offset, const struct err *e)
{
    /* One thread calls, in the order of the partition. */
    if (offset == atomic_load(&last_offset) + 1 && e->kind == ERR_NONE)
        atomic_fetch_add(&acked_good, 1);
    atomic_store(&last_offset, offset);
}

static void acks_come_once_and_in_order(void **state)
{
    struct err e = {0};
    char text[16];
    atomic_store(&acked_good, 0);
    atomic_store(&last_offset, -1);
    for (int i = 0; i < MANY; i++) {
        snprintf(text, sizeof text, "%d", i);
        const struct bus_record r = {.topic = topic, .value = text, .size = strlen(text)};
        check(bus_produce(producer, &r, count_ack, NULL, &e), &e);
    }
    check(bus_flush(producer, 30000, &e), &e);
    assert_int_equal(atomic_load(&acked_good), MANY);
    struct bus_consumer *c = consume(0, 0);
    struct bus_message *batch[100];
    int64_t deadline = clock_mono_ms() + 30000;
    for (int seen = 0; seen < MANY;) {
        assert_true(clock_mono_ms() < deadline);
        int n = bus_poll(c, batch, 100, 200, &e);
        check(n, &e);
        for (int i = 0; i < n; i++, seen++) {
            assert_int_equal(batch[i]->offset, seen);
            assert_int_equal(atoi(batch[i]->value), seen);
            bus_message_free(batch[i]);
        }
    }
    bus_consumer_free(c);
}

static void *produce_some(void *arg)
{
    int *good = arg;
    for (int i = 0; i < 50; i++) {
        struct err e = {0};
        const struct bus_record r = {.topic = topic, .value = "x", .size = 1};
        if (bus_produce_wait(producer, &r, 20000, &e) >= 0) (*good)++;
    }
    return NULL;
}

static void threads_share_a_producer(void **state)
{
    pthread_t threads[THREADS];
    int good[THREADS] = {0};
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, produce_some, &good[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(good[i], 50);
    }
    struct err e = {0};
    int64_t first, end;
    struct bus_consumer *c = consume(0, 0);
    check(bus_offsets(c, topic, 0, &first, &end, 5000, &e), &e);
    assert_int_equal(end, 50 * THREADS);
    bus_consumer_free(c);
}

static void a_payload_of_16_mib_passes_and_a_bigger_record_is_refused(void **state)
{
    struct err e = {0};
    size_t size = 16u << 20;
    char *big = malloc(BUS_RECORD_MAX + 2);
    assert_non_null(big);
    uint32_t noise = 1; /* does not compress */
    for (size_t i = 0; i < BUS_RECORD_MAX + 2; i++)
        big[i] = (char)((noise = noise * 1664525u + 1013904223u) >> 24);
    const struct bus_record r = {.topic = topic, .value = big, .size = size};
    assert_int_equal(bus_produce_wait(producer, &r, 20000, &e), 0);
    struct bus_consumer *c = consume(0, 0);
    struct bus_message *m = next(c);
    assert_int_equal(m->size, size);
    assert_memory_equal(m->value, big, size);
    bus_message_free(m);
    bus_consumer_free(c);
    const struct bus_record more = {.topic = topic, .value = big, .size = BUS_RECORD_MAX + 1};
    assert_int_equal(bus_produce(producer, &more, NULL, NULL, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    free(big);
}

/* ---------------------------------------------------------------- positions */

static void a_position_is_exact_and_can_be_replaced(void **state)
{
    struct err e = {0};
    struct bus_message *m;
    for (int i = 0; i < 6; i++)
        produce(i % 2, i % 2 ? "odd" : "even");
    struct bus_consumer *c = consume(0, 2);
    expect(c, 2, "even");
    check(bus_assign(c, topic, 0, 1, &e), &e);
    expect(c, 1, "even");
    expect(c, 2, "even");
    check(bus_assign(c, topic, 1, 0, &e), &e);
    expect(c, 0, "odd");
    check(bus_unassign(c, topic, 1, &e), &e);
    produce(1, "unseen");
    assert_int_equal(bus_poll(c, &m, 1, 500, &e), 0);
    assert_int_equal(bus_unassign(c, topic, 1, &e), -1);
    assert_int_equal(e.kind, ERR_BUG);
    bus_consumer_free(c);
}

static void the_end_means_what_is_written_from_now_on(void **state)
{
    produce(0, "before");
    struct bus_consumer *c = consume(0, BUS_OFFSET_END);
    produce(0, "after");
    expect(c, 1, "after");
    bus_consumer_free(c);
}

static void an_offset_out_of_range_is_an_error_and_no_jump(void **state)
{
    struct err e = {0};
    struct bus_message *m = NULL;
    produce(0, "only");
    struct bus_consumer *c = consume(0, 1000);
    int n = 0;
    for (int64_t deadline = clock_mono_ms() + 20000; !n && clock_mono_ms() < deadline;) {
        n = bus_poll(c, &m, 1, 200, &e);
        if (n < 0 && e.kind == ERR_RETRY) n = 0;
    }
    assert_int_equal(n, -1);
    assert_int_equal(e.kind, ERR_LOST);
    char place[80];
    snprintf(place, sizeof place, "%s/0", topic);
    assert_non_null(strstr(e.text, place));
    bus_consumer_free(c);
}

static void offsets_can_be_looked_up_by_number_and_time(void **state)
{
    struct err e = {0};
    int64_t first, end, at;
    struct bus_consumer *c = bus_consumer_create(brokers, "test", &e);
    produce(0, "a");
    produce(0, "b");
    check(bus_offsets(c, topic, 0, &first, &end, 5000, &e), &e);
    assert_int_equal(first, 0);
    assert_int_equal(end, 2);
    check(bus_offset_at(c, topic, 0, 0, &at, 5000, &e), &e);
    assert_int_equal(at, 0);
    check(bus_offset_at(c, topic, 0, clock_wall_ms() + 3600000, &at, 5000, &e), &e);
    assert_int_equal(at, 2);
    bus_consumer_free(c);
}

struct found {
    int count;
    char text[256]; /* "0=a 1=gone " */
};

static void on_found(void *arg, int i, const struct bus_message *m)
{
    struct found *f = arg;
    size_t at = strlen(f->text);
    snprintf(f->text + at, sizeof f->text - at, "%d=%s ", i, m ? (const char *)m->value : "gone");
    f->count++;
}

static void records_are_looked_up_by_their_offsets_in_one_pass(void **state)
{
    static const int64_t two[] = {1, 2}, later[] = {2, 3}, nowhere[] = {99};
    int64_t far[] = {0, 40, 200, 203};
    struct err e = {0};
    struct bus_consumer *c = bus_finder_create(brokers, "test", &e);
    for (int i = 0; i < 3; i++)
        produce(0, (char[]){(char)('a' + i), 0});
    for (int round = 0; round < 3; round++) {
        struct found f = {0};
        check(bus_read_each(c, topic, 0, two, 2, 20000, on_found, &f, &e), &e);
        assert_string_equal(f.text, "0=b 1=c ");
    }
    struct found f = {0};
    assert_int_equal(bus_read_each(c, topic, 0, later, 2, 500, on_found, &f, &e), -1);
    assert_int_equal(e.kind, ERR_RETRY); /* not written yet */
    assert_string_equal(f.text, "0=c ");
    assert_int_equal(bus_read_each(c, topic, 0, nowhere, 1, 20000, on_found, &f, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    for (int i = 3; i < 205; i++)
        produce(0, (char[]){(char)('a' + i % 26), 0});
    f = (struct found){0};
    check(bus_read_each(c, topic, 0, far, 4, 20000, on_found, &f, &e), &e);
    assert_string_equal(f.text, "0=a 1=o 2=s 3=v ");
    bus_consumer_free(c);
}

/* ---------------------------------------------------------------- broker away */

static void remember(void *arg, int64_t offset, const struct err *e)
{
    struct err *out = arg;
    assert_int_equal(offset, -1);
    *out = *e;
}

static void a_broker_that_is_away_is_try_again_and_every_ack_comes(void **state)
{
    struct err e = {0}, told = {0};
    const struct bus_topic t = {"nowhere", 1, 1000};
    const struct bus_record r = {.topic = "nowhere", .value = "x", .size = 1};
    struct bus_message *m;
    int64_t first, end;
    assert_int_equal(bus_topics_ensure(NOWHERE, &t, 1, 1, 500, &e), -1);
    assert_int_equal(e.kind, ERR_RETRY);
    struct bus_producer *p = bus_producer_create(NOWHERE, &CONF, &e);
    assert_non_null(p);
    assert_int_equal(bus_produce_wait(p, &r, 300, &e), -1);
    assert_int_equal(e.kind, ERR_RETRY);
    check(bus_produce(p, &r, remember, &told, &e), &e);
    assert_int_equal(bus_flush(p, 100, &e), -1);
    assert_int_equal(e.kind, ERR_RETRY);
    bus_producer_free(p);
    assert_int_equal(told.kind, ERR_RETRY);

    struct bus_consumer *c = bus_consumer_create(NOWHERE, "test", &e);
    assert_non_null(c);
    assert_int_equal(bus_assign(c, "nowhere", 0, BUS_OFFSET_END, &e), -1);
    assert_int_equal(e.kind, ERR_RETRY);
    assert_int_equal(bus_offsets(c, "nowhere", 0, &first, &end, 300, &e), -1);
    assert_int_equal(e.kind, ERR_RETRY);
    check(bus_assign(c, "nowhere", 0, 0, &e), &e);
    int n = 0;
    for (int64_t deadline = clock_mono_ms() + 20000; !n && clock_mono_ms() < deadline;)
        n = bus_poll(c, &m, 1, 200, &e);
    assert_int_equal(n, -1);
    assert_int_equal(e.kind, ERR_RETRY);
    bus_consumer_free(c);
}

static void a_full_queue_says_try_again(void **state)
{
    struct err e = {0};
    char *chunk = calloc(1, 64 << 10);
    const struct bus_record r = {.topic = "nowhere", .value = chunk, .size = 64 << 10};
    struct bus_producer *p = bus_producer_create(
        NOWHERE, &(struct bus_producer_conf){.client_id = "test", .queue_bytes_max = 1u << 20}, &e);
    int queued = 0;
    assert_non_null(p);
    while (queued < 100 && bus_produce(p, &r, NULL, NULL, &e) == 0)
        queued++;
    assert_true(queued >= 10 && queued <= 17);
    assert_int_equal(e.kind, ERR_RETRY);
    bus_producer_free(p);
    free(chunk);
}

static void a_paused_partition_is_silent_and_goes_on_where_it_was(void **state)
{
    struct err e = {0};
    struct bus_message *m = NULL;
    for (int i = 0; i < 3; i++)
        produce(0, "here");
    struct bus_consumer *c = consume(0, 0);
    expect(c, 0, "here");
    for (int twice = 0; twice < 2; twice++)
        check(bus_pause(c, topic, 0, &e), &e);
    check(bus_assign(c, topic, 1, 0, &e), &e);
    produce(0, "here");
    produce(1, "there");
    m = next(c); /* of the other one, though those of the first came before */
    assert_int_equal(m->partition, 1);
    bus_message_free(m);
    assert_int_equal(bus_poll(c, &m, 1, 300, &e), 0);
    for (int twice = 0; twice < 2; twice++)
        check(bus_resume(c, topic, 0, &e), &e);
    for (int i = 1; i < 4; i++)
        expect(c, i, "here");
    check(bus_pause(c, topic, 0, &e), &e);
    check(bus_assign(c, topic, 0, 2, &e), &e); /* another position is not paused */
    expect(c, 2, "here");
    check(bus_pause(c, topic, 0, &e), &e);
    check(bus_unassign(c, topic, 0, &e), &e);
    assert_int_equal(bus_pause(c, topic, 0, &e), -1);
    assert_int_equal(e.kind, ERR_BUG);
    bus_consumer_free(c);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

#define ZEROS_SIZE ((size_t)1 << 20)
#define ZEROS      300
#define AHEAD_MAX  ((size_t)100 << 20)

/* Memory of this process that is really there. */
static size_t resident(void)
{
    size_t all = 0, here = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f || fscanf(f, "%zu %zu", &all, &here) != 2) fail_msg("no /proc/self/statm");
    fclose(f);
    return here * (size_t)sysconf(_SC_PAGESIZE);
}

/* The most that is held while nothing is taken, once that has stopped to grow. */
static size_t held_at_rest(size_t before)
{
    size_t most = 0;
    for (int calm = 0; calm < 10; calm++) {
        clock_sleep_ms(100);
        size_t now = resident();
        if (now <= before + most) continue;
        most = now - before;
        calm = 0;
    }
    return most;
}

/* What no packer makes smaller, as ids and digests in the headers of ours: hex digits of h. */
static const char *noise(char out[513], uint64_t h)
{
    for (int i = 0; i < 512; i++) {
        h = h * 6364136223846793005u + 1442695040888963407u;
        out[i] = "0123456789abcdef"[h >> 60];
    }
    out[512] = '\0';
    return out;
}

/* 300 MiB that pack to 150 KiB, less than one large record: they would all come with one fetch. */
static void what_is_read_ahead_is_bounded_however_small_it_was_packed(void **state)
{
    if (SANITIZED) skip(); /* its allocator keeps what was freed */
    struct err e = {0};
    char *zeros = calloc(1, ZEROS_SIZE), text[513];
    for (int i = 0; i < ZEROS; i++) {
        const struct header headers[] = {{"ce_id", noise(text, (uint64_t)i)}};
        const struct bus_record r = {topic, 0, "key", headers, 1, zeros, ZEROS_SIZE};
        check(bus_produce_wait(producer, &r, 20000, &e) < 0 ? -1 : 0, &e);
    }
    size_t before = resident();
    struct bus_consumer *c = consume(0, 0);
    size_t held = held_at_rest(before);
    print_message("%zu KiB are held of %zu\n", held >> 10, ZEROS * (ZEROS_SIZE >> 10));
    assert_true(held > ZEROS_SIZE);
    assert_true(held < AHEAD_MAX);
    for (int i = 0; i < ZEROS; i++) {
        struct bus_message *m = next(c);
        assert_int_equal(m->offset, i);
        assert_int_equal(m->size, ZEROS_SIZE);
        bus_message_free(m);
        if (i % 50 == 0) assert_true(resident() < before + AHEAD_MAX);
    }
    bus_consumer_free(c);
    free(zeros);
}

int main(void)
{
    brokers = getenv("TINWORKS_KAFKA_BROKERS");
    if (!brokers) return 77;
#define WITH_TOPIC(f) cmocka_unit_test_setup_teardown(f, make_topic, drop_producer)
    const struct CMUnitTest tests[] = {
        WITH_TOPIC(an_existing_topic_is_left_as_it_is),
        WITH_TOPIC(a_record_arrives_whole),
        WITH_TOPIC(an_empty_record_without_key_arrives),
        WITH_TOPIC(acks_come_once_and_in_order),
        WITH_TOPIC(threads_share_a_producer),
        WITH_TOPIC(a_payload_of_16_mib_passes_and_a_bigger_record_is_refused),
        WITH_TOPIC(a_position_is_exact_and_can_be_replaced),
        WITH_TOPIC(the_end_means_what_is_written_from_now_on),
        WITH_TOPIC(an_offset_out_of_range_is_an_error_and_no_jump),
        WITH_TOPIC(offsets_can_be_looked_up_by_number_and_time),
        WITH_TOPIC(records_are_looked_up_by_their_offsets_in_one_pass),
        WITH_TOPIC(a_paused_partition_is_silent_and_goes_on_where_it_was),
        WITH_TOPIC(what_is_read_ahead_is_bounded_however_small_it_was_packed),
        cmocka_unit_test(a_broker_that_is_away_is_try_again_and_every_ack_comes),
        cmocka_unit_test(a_full_queue_says_try_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
