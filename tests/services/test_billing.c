/* test_billing.c - tinworks-billing against a real Kafka and a real Postgres.
 *
 * Results are made up and published here, and what they must cost is added up here as well, as they
 * are published; the program is started, killed and asked like any user would.  Topics and tables
 * are this process's own (a prefix, a schema) and the schema is dropped at the end. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/clock.h"
#include "bus/bus.h"
#include "db/db.h"
#include "wire/result.h"

#define MODEL      "test/billed"
#define PARTITIONS 2 /* of each stream */
#define ACCOUNTS   3
#define WAIT_MS    60000

/* The prices of the first migration, pico-dollars a token. */
#define PREFILL_PICO 70000
#define SAMPLE_PICO  220000
#define TRAIN_PICO   220000

static const char *brokers, *conninfo;
static char schema[64], prefix[72], with_schema[1024];
static struct db *db;
static struct bus_producer *producer;
static char accounts[ACCOUNTS][64];

/* What was published and must count. */
static struct {
    int64_t outcomes, tokens[3], amount;
} expected;
static int64_t next_job, train_price = TRAIN_PICO;

static void check(int64_t result, const struct err *e)
{
    if (result < 0) fail_msg("%s: %s", err_kind_name(e->kind), e->text);
}

/* ---------------------------------------------------------------- the program */

static pid_t start(int out, const char *const *words)
{
    const char *argv[24] = {BILLING_PROGRAM};
    int n = 1;
    for (; words[n - 1]; n++)
        argv[n] = words[n - 1];
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (out >= 0) dup2(out, STDOUT_FILENO);
        setenv("TINWORKS_POSTGRES", with_schema, 1);
        setenv("TINWORKS_KAFKA_BROKERS", brokers, 1);
        setenv("TINWORKS_TOPIC_PREFIX", prefix, 1);
        execv(BILLING_PROGRAM, (char *const *)argv);
        _exit(127);
    }
    return pid;
}

static int end_of(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        assert_int_equal(errno, EINTR);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

/* Runs it to its end; its stdout, up to size, into text.  Returns the exit status. */
static int ask(char *text, size_t size, const char *const *words)
{
    int pipes[2];
    size_t at = 0;
    char rest[512];
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    pid_t pid = start(pipes[1], words);
    close(pipes[1]);
    for (ssize_t n; (n = read(pipes[0], at + 1 < size ? text + at : rest,
                              at + 1 < size ? size - 1 - at : sizeof rest)) > 0;)
        if (at + 1 < size) at += (size_t)n;
    if (size) text[at] = '\0';
    close(pipes[0]);
    return end_of(pid);
}
#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static int audit(void)
{
    char text[8192];
    int rc = ask(text, sizeof text, WORDS("audit", "--log"));
    if (rc) print_message("%s", text);
    return rc;
}

/* ---------------------------------------------------------------- the database */

static int64_t number(const char *sql)
{
    struct err e = {0};
    struct db_result *row = NULL;
    check(db_query(db, sql, NULL, 0, &row, &e), &e);
    assert_int_equal(db_rows(row), 1);
    int64_t n = db_int(row, 0, 0);
    db_result_free(row);
    return n;
}

static void script(const char *sql)
{
    struct err e = {0};
    check(db_script(db, sql, &e), &e);
}

/* ---------------------------------------------------------------- the log */

static void topic_of(enum stream s, char out[TOPIC_SIZE])
{
    struct err e = {0};
    check(topic_results(out, prefix, MODEL, s, &e), &e);
}

static void publish(enum stream s, int partition, const struct result *r)
{
    struct err e = {0};
    struct header headers[WIRE_HEADERS_MAX];
    struct result_scratch scratch;
    char topic[TOPIC_SIZE];
    topic_of(s, topic);
    struct bus_record record = {.topic = topic,
                                .partition = partition,
                                .key = r->job_id,
                                .headers = headers,
                                .header_count = result_headers(r, &scratch, headers),
                                .value = r->payload,
                                .size = r->size};
    while (bus_produce(producer, &record, NULL, NULL, &e) < 0) { /* its queue is full */
        assert_int_equal(e.kind, ERR_RETRY);
        err_clear(&e);
        clock_sleep_ms(10);
    }
}

static void flush(void)
{
    struct err e = {0};
    check(bus_flush(producer, WAIT_MS, &e), &e);
}

static void barrier(enum stream s, int partition, int64_t epoch)
{
    struct err e = {0};
    struct result *r = result_create_barrier(epoch, "test", "build", "numerics", &e);
    assert_non_null(r);
    publish(s, partition, r);
    result_free(r);
}

static struct result *make_result(int64_t n, enum job_kind kind, int64_t epoch, struct usage usage)
{
    struct err e = {0};
    char id[ID_SIZE], parent[64];
    snprintf(parent, sizeof parent, "stest:%s:%d", job_kind_is_train(kind) ? "train" : "sample",
             (int)(n % 5));
    snprintf(id, sizeof id, "%s:%s:%" PRId64 ":0123456789abcdef", parent, job_kind_name(kind), n);
    struct job *job =
        job_create(id, kind, accounts[n % ACCOUNTS], parent, n, CONTENT_JSON, "{}", 2, &e);
    if (!job) fail_msg("%s", e.text);
    struct result *r = result_create(job, MODEL, epoch, &e);
    assert_non_null(r);
    if (n % 10 == 9)
        check(result_set_failed(r, "user", "wrong on purpose", &e), &e);
    else
        result_set_ok(r, CONTENT_JSON, strdup("{}"), 2, usage);
    job_free(job);
    return r;
}

static void expect(const struct result *r)
{
    expected.outcomes++;
    expected.tokens[0] += r->usage.prefill;
    expected.tokens[1] += r->usage.sample;
    expected.tokens[2] += r->usage.train;
    expected.amount += r->usage.prefill * PREFILL_PICO + r->usage.sample * SAMPLE_PICO +
                       r->usage.train * train_price;
}

/* Job number next_job on the partition that follows from it. */
static void publish_job(int64_t epoch)
{
    static const enum job_kind kinds[] = {JOB_FORWARD_BACKWARD, JOB_SAMPLE, JOB_OPTIM_STEP,
                                          JOB_COMPUTE_LOGPROBS};
    int64_t n = next_job++;
    enum job_kind kind = kinds[n % 4];
    struct usage usage = {0};
    if (kind == JOB_FORWARD_BACKWARD) usage.train = 100 + n % 1000;
    if (kind == JOB_SAMPLE) usage = (struct usage){.prefill = 7 + n % 50, .sample = n % 300};
    if (kind == JOB_COMPUTE_LOGPROBS) usage.prefill = 1 + n % 20;
    struct result *r = make_result(n, kind, epoch, usage);
    publish(job_kind_is_train(kind) ? STREAM_TRAIN : STREAM_SAMPLE, (int)(n % 5 % PARTITIONS), r);
    expect(r);
    result_free(r);
}

/* ---------------------------------------------------------------- waiting */

static int64_t log_end(enum stream s, int partition)
{
    static struct bus_consumer *in;
    struct err e = {0};
    char topic[TOPIC_SIZE];
    int64_t first, next;
    topic_of(s, topic);
    if (!in) in = bus_consumer_create(brokers, "test", &e);
    check(bus_offsets(in, topic, partition, &first, &next, 10000, &e), &e);
    return next;
}

static bool is_folded(void)
{
    for (int s = 0; s < STREAM_COUNT; s++) {
        for (int p = 0; p < PARTITIONS; p++) {
            char sql[512], topic[TOPIC_SIZE];
            topic_of((enum stream)s, topic);
            snprintf(sql, sizeof sql,
                     "SELECT coalesce(max(next_offset), -1) FROM ingest_cursors "
                     "WHERE topic = '%s' AND partition = %d",
                     topic, p);
            if (number(sql) != log_end((enum stream)s, p)) return false;
        }
    }
    return true;
}

static void wait_folded(void)
{
    int64_t deadline = clock_mono_ms() + WAIT_MS;
    while (!is_folded()) {
        if (clock_mono_ms() > deadline) fail_msg("the log was not folded in %d ms", WAIT_MS);
        clock_sleep_ms(50);
    }
}

/* A consumer from now until everything is folded; it must then leave in good order. */
static void fold_all(void)
{
    pid_t pid = start(-1, WORDS("run"));
    wait_folded();
    kill(pid, SIGTERM);
    assert_int_equal(end_of(pid), 0);
}

static void check_books(void)
{
    assert_int_equal(number("SELECT count(*) FROM job_outcomes"), expected.outcomes);
    assert_int_equal(number("SELECT sum(prefill_tokens) FROM job_outcomes"), expected.tokens[0]);
    assert_int_equal(number("SELECT sum(sample_tokens) FROM job_outcomes"), expected.tokens[1]);
    assert_int_equal(number("SELECT sum(train_tokens) FROM job_outcomes"), expected.tokens[2]);
    assert_int_equal(number("SELECT sum(amount_pico) FROM job_outcomes"), expected.amount);
    assert_int_equal(number("SELECT sum(amount_pico) FROM usage_hours"), expected.amount);
    assert_int_equal(number("SELECT sum(tokens) FROM usage_hours"),
                     expected.tokens[0] + expected.tokens[1] + expected.tokens[2]);
    assert_int_equal(number("SELECT sum(amount_pico) FROM ledger_entries "
                            "WHERE account LIKE 'revenue:%'"),
                     expected.amount);
    assert_int_equal(number("SELECT sum(amount_pico) FROM ledger_entries"), 0);
    assert_int_equal(number("SELECT sum(balance_pico) FROM balances"),
                     ACCOUNTS * 1000000000000 - expected.amount);
    assert_int_equal(audit(), 0);
}

/* ---------------------------------------------------------------- setup */

static void make_accounts(void)
{
    for (int i = 0; i < ACCOUNTS; i++) {
        char name[16], id[128];
        snprintf(name, sizeof name, "customer %d", i);
        assert_int_equal(ask(id, sizeof id, WORDS("account", "create", name, "--credit-usd", "1")),
                         0);
        id[strcspn(id, "\n")] = '\0';
        assert_int_equal(strncmp(id, "acct_", 5), 0);
        memcpy(accounts[i], id, sizeof accounts[i]);
    }
}

static void make_model(void)
{
    struct err e = {0};
    char names[STREAM_COUNT][TOPIC_SIZE];
    struct bus_topic topics[STREAM_COUNT];
    for (int s = 0; s < STREAM_COUNT; s++) {
        topic_of((enum stream)s, names[s]);
        topics[s] = (struct bus_topic){names[s], PARTITIONS, 3600 * 1000};
    }
    check(bus_topics_ensure(brokers, topics, STREAM_COUNT, 1, WAIT_MS, &e), &e);
    script("INSERT INTO models (name, train_partitions, sample_partitions, context_max, vocab, "
           "layers, hidden, arch, model_dir, weights_sha256) "
           "VALUES ('" MODEL "', 2, 2, 1, 1, 1, 1, '', '', '')");
}

static int setup(void **state)
{
    struct err e = {0};
    char sql[128];
    snprintf(schema, sizeof schema, "test_%d_%lld", (int)getpid(), (long long)clock_wall_ms());
    snprintf(prefix, sizeof prefix, "%s.", schema);
    snprintf(with_schema, sizeof with_schema, "%s options='-c search_path=%s'", conninfo, schema);
    db = db_create(with_schema, "test", &e);
    assert_non_null(db);
    snprintf(sql, sizeof sql, "CREATE SCHEMA %s", schema);
    script(sql);
    producer = bus_producer_create(
        brokers, &(struct bus_producer_conf){.client_id = "test", .queue_bytes_max = 64 << 20}, &e);
    assert_non_null(producer);
    assert_int_equal(ask(NULL, 0, WORDS("migrate")), 0);
    make_accounts();
    make_model();
    return 0;
}

static int teardown(void **state)
{
    char sql[128];
    db_rollback(db);
    snprintf(sql, sizeof sql, "DROP SCHEMA %s CASCADE", schema);
    script(sql);
    db_free(db);
    bus_producer_free(producer);
    return 0;
}

/* ---------------------------------------------------------------- tests */

static void test_migrating_twice_changes_nothing(void **state)
{
    char text[256];
    int64_t before = number("SELECT count(*) FROM schema_migrations");
    assert_int_equal(ask(text, sizeof text, WORDS("migrate")), 0);
    assert_null(strstr(text, "applied"));
    assert_int_equal(number("SELECT count(*) FROM schema_migrations"), before);
}

static void test_a_changed_migration_is_refused(void **state)
{
    script("UPDATE schema_migrations SET sha256 = 'other' || sha256 WHERE version = 1");
    assert_int_equal(ask(NULL, 0, WORDS("migrate")), 1);
    script("UPDATE schema_migrations SET sha256 = substr(sha256, 6) WHERE version = 1");
    assert_int_equal(ask(NULL, 0, WORDS("migrate")), 0);
}

/* The head of the log: a take-over, a zombie of the epoch before, copies, and junk. */
static void test_fenced_copied_and_unreadable_records_are_not_billed(void **state)
{
    struct err e = {0};
    char topic[TOPIC_SIZE];
    for (int i = 0; i < 40; i++)
        publish_job(0);
    for (int p = 0; p < PARTITIONS; p++) {
        barrier(STREAM_TRAIN, p, 3);
        barrier(STREAM_SAMPLE, p, 3);
    }
    struct result *zombie =
        make_result(1000000, JOB_FORWARD_BACKWARD, 2, (struct usage){.train = 9});
    publish(STREAM_TRAIN, 0, zombie); /* below its partition's epoch */
    result_free(zombie);
    struct result *first =
        make_result(1000001, JOB_SAMPLE, 3, (struct usage){.prefill = 5, .sample = 6});
    struct result *copy =
        make_result(1000001, JOB_SAMPLE, 3, (struct usage){.prefill = 50, .sample = 60});
    publish(STREAM_SAMPLE, 1, first);
    publish(STREAM_SAMPLE, 1, copy);
    expect(first);
    struct result *elsewhere = make_result(1000002, JOB_SAMPLE, 3, (struct usage){.prefill = 5});
    publish(STREAM_TRAIN, 1, elsewhere); /* a sample among the train results */
    result_free(first);
    result_free(copy);
    result_free(elsewhere);
    topic_of(STREAM_TRAIN, topic);
    struct bus_record junk = {.topic = topic, .partition = 1, .value = "junk", .size = 4};
    check(bus_produce(producer, &junk, NULL, NULL, &e), &e);
    for (int i = 0; i < 40; i++)
        publish_job(3);
    flush();
    fold_all();
    check_books();
}

static void test_unreadable_records_are_kept_in_the_dlq_with_their_place(void **state)
{
    struct err e = {0};
    char topic[TOPIC_SIZE];
    int64_t first, next;
    check(topic_dlq(topic, prefix, &e), &e);
    struct bus_consumer *in = bus_consumer_create(brokers, "test", &e);
    assert_non_null(in);
    check(bus_offsets(in, topic, 0, &first, &next, 10000, &e), &e);
    assert_int_equal(next, 2);
    struct bus_message *m = NULL;
    check(bus_assign(in, topic, 0, 1, &e), &e);
    for (int64_t until = clock_mono_ms() + WAIT_MS; !m && clock_mono_ms() < until;)
        if (bus_poll(in, &m, 1, 100, &e) < 0) m = NULL;
    assert_non_null(m);
    assert_memory_equal(m->value, "junk", 4);
    int found = 0;
    for (int i = 0; i < m->header_count; i++)
        found +=
            !strcmp(m->headers[i].name, "tw_topic") || !strcmp(m->headers[i].name, "tw_offset") ||
            !strcmp(m->headers[i].name, "tw_partition") || !strcmp(m->headers[i].name, "tw_reason");
    assert_int_equal(found, 4);
    bus_message_free(m);
    bus_consumer_free(in);
}

static void test_a_log_read_again_from_its_beginning_bills_nothing_again(void **state)
{
    for (int i = 0; i < 2; i++) {
        script("UPDATE ingest_cursors SET next_offset = 0, max_epoch = 0");
        fold_all();
        check_books();
    }
}

/* Killed whenever it has made some way, with small batches so that there are many ways to be in the
 * middle. */
static void test_kills_in_the_middle_lose_and_double_nothing(void **state)
{
    for (int i = 0; i < 6000; i++)
        publish_job(3);
    flush();
    for (int kills = 0; kills < 6; kills++) {
        int64_t before = number("SELECT sum(next_offset) FROM ingest_cursors");
        pid_t pid = start(-1, WORDS("run", "--billing-batch-max", "97"));
        int64_t deadline = clock_mono_ms() + WAIT_MS;
        while (number("SELECT sum(next_offset) FROM ingest_cursors") < before + 300 &&
               clock_mono_ms() < deadline)
            clock_sleep_ms(kills);
        kill(pid, SIGKILL);
        assert_int_equal(end_of(pid), 256 + SIGKILL);
    }
    fold_all();
    check_books();
}

/* Ends the connections that hold a lock on one of our tables: those in the middle of a transaction.
 */
static int64_t end_transactions(void)
{
    return number("SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM ("
                  "SELECT DISTINCT l.pid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
                  "WHERE c.relnamespace = current_schema()::regnamespace "
                  "AND l.pid <> pg_backend_pid()) x");
}

static void test_lost_connections_to_postgres_lose_and_double_nothing(void **state)
{
    pid_t pid = start(-1, WORDS("run", "--billing-batch-max", "53"));
    int64_t ended = 0;
    for (int round = 0; round < 8; round++) {
        for (int i = 0; i < 300; i++)
            publish_job(3);
        flush();
        int64_t deadline = clock_mono_ms() + WAIT_MS;
        for (int64_t now = 0; !now && !is_folded() && clock_mono_ms() < deadline; ended += now)
            now = end_transactions();
    }
    assert_true(ended > 0);
    wait_folded();
    kill(pid, SIGTERM);
    assert_int_equal(end_of(pid), 0);
    check_books();
}

static void test_two_consumers_at_once_bill_once(void **state)
{
    pid_t one = start(-1, WORDS("run", "--billing-batch-max", "61"));
    pid_t two = start(-1, WORDS("run", "--billing-batch-max", "89"));
    for (int i = 0; i < 4000; i++)
        publish_job(3);
    flush();
    wait_folded();
    kill(one, SIGTERM);
    kill(two, SIGTERM);
    assert_int_equal(end_of(one), 0);
    assert_int_equal(end_of(two), 0);
    check_books();
}

static void test_a_result_costs_the_price_of_its_time_however_late_it_is_folded(void **state)
{
    for (int i = 0; i < 50; i++)
        publish_job(3);
    flush();
    clock_sleep_ms(5); /* the broker's times are whole milliseconds */
    assert_int_equal(ask(NULL, 0,
                         WORDS("price", "set", "--model", MODEL, "--kind", "train",
                               "--usd-per-million", "0.333333")),
                     0);
    clock_sleep_ms(5);
    train_price = 333333;
    for (int i = 0; i < 50; i++)
        publish_job(3);
    flush();
    fold_all();
    check_books();
}

static void test_prices_cannot_change_for_the_past(void **state)
{
    const char *const words[] = {
        "price", "set",    "--model",    "*", "--kind", "sample", "--usd-per-million",
        "9",     "--from", "2026-01-01", NULL};
    struct err e = {0};
    assert_int_equal(ask(NULL, 0, words), 1);
    assert_int_equal(db_script(db, "UPDATE prices SET pico_usd_per_token = 1", &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    check_books();
}

/* The last line of a CSV without the total, so summed here. */
static int64_t csv_sum(const char *text, int column)
{
    int64_t sum = 0;
    for (const char *line = strchr(text, '\n'); line && line[1]; line = strchr(line + 1, '\n')) {
        const char *at = line + 1;
        for (int c = 0; c < column; c++)
            at = strchr(at, ',') + 1;
        sum += strtoll(at, NULL, 10);
    }
    return sum;
}

static int64_t tokens_in(const char *from, const char *to)
{
    char text[4096];
    assert_int_equal(
        ask(text, sizeof text,
            WORDS("usage", "--by", "kind", "--format", "csv", "--from", from, "--to", to)),
        0);
    return csv_sum(text, 2);
}

/* The middle is the time of a result, so it cuts the hour in which the test runs. */
static void test_usage_of_cut_hours_adds_up_to_the_whole(void **state)
{
    struct err e = {0};
    struct db_result *row = NULL;
    check(db_queryf(db, &row, &e,
                    "SELECT to_char(decided_at AT TIME ZONE 'UTC', "
                    "'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') FROM job_outcomes "
                    "ORDER BY decided_at OFFSET 5000 LIMIT 1",
                    NULL),
          &e);
    const char *middle = db_text(row, 0, 0);
    int64_t before = tokens_in("2020-01-01", middle), after = tokens_in(middle, "2100-01-01");
    assert_true(before > 0 && after > 0);
    assert_int_equal(before + after, expected.tokens[0] + expected.tokens[1] + expected.tokens[2]);
    db_result_free(row);
}

static void test_the_audit_finds_what_was_changed_by_hand(void **state)
{
    static const char *const changes[][2] = {
        {"UPDATE balances SET balance_pico = balance_pico + 1 WHERE account_id = "
         "(SELECT min(account_id) FROM balances)",
         "UPDATE balances SET balance_pico = balance_pico - 1 WHERE account_id = "
         "(SELECT min(account_id) FROM balances)"},
        {"UPDATE usage_hours SET tokens = tokens + 1 WHERE kind = 'sample'",
         "UPDATE usage_hours SET tokens = tokens - 1 WHERE kind = 'sample'"},
        {"UPDATE ledger_entries SET amount_pico = amount_pico + 1 WHERE id = 9",
         "UPDATE ledger_entries SET amount_pico = amount_pico - 1 WHERE id = 9"},
        {"UPDATE job_outcomes SET amount_pico = amount_pico + 1 WHERE seq = 5",
         "UPDATE job_outcomes SET amount_pico = amount_pico - 1 WHERE seq = 5"},
        {"UPDATE job_outcomes SET kind = 'forward' WHERE seq = 4",
         "UPDATE job_outcomes SET kind = 'forward_backward' WHERE seq = 4"},
        {"UPDATE job_outcomes SET job_id = 'x' WHERE seq = 2",
         "UPDATE job_outcomes SET job_id = 'stest:train:2:optim_step:2:0123456789abcdef' "
         "WHERE seq = 2"},
    };
    struct err e = {0};
    char text[8192];
    assert_int_equal(db_script(db, "DELETE FROM ledger_entries", &e), -1); /* append-only */
    script("ALTER TABLE ledger_entries DISABLE TRIGGER append_only;"
           "ALTER TABLE job_outcomes DISABLE TRIGGER append_only");
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        script(changes[i][0]);
        if (ask(text, sizeof text, WORDS("audit", "--log")) != 1)
            fail_msg("not found by the audit: %s\n%s", changes[i][0], text);
        assert_non_null(strstr(text, "WRONG"));
        script(changes[i][1]);
        assert_int_equal(audit(), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_migrating_twice_changes_nothing),
        cmocka_unit_test(test_a_changed_migration_is_refused),
        cmocka_unit_test(test_fenced_copied_and_unreadable_records_are_not_billed),
        cmocka_unit_test(test_unreadable_records_are_kept_in_the_dlq_with_their_place),
        cmocka_unit_test(test_a_log_read_again_from_its_beginning_bills_nothing_again),
        cmocka_unit_test(test_kills_in_the_middle_lose_and_double_nothing),
        cmocka_unit_test(test_lost_connections_to_postgres_lose_and_double_nothing),
        cmocka_unit_test(test_two_consumers_at_once_bill_once),
        cmocka_unit_test(test_a_result_costs_the_price_of_its_time_however_late_it_is_folded),
        cmocka_unit_test(test_prices_cannot_change_for_the_past),
        cmocka_unit_test(test_usage_of_cut_hours_adds_up_to_the_whole),
        cmocka_unit_test(test_the_audit_finds_what_was_changed_by_hand),
    };
    brokers = getenv("TINWORKS_KAFKA_BROKERS");
    conninfo = getenv("TINWORKS_POSTGRES");
    if (!brokers || !conninfo) {
        printf("skipped: TINWORKS_KAFKA_BROKERS and TINWORKS_POSTGRES name no servers\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, setup, teardown);
}
