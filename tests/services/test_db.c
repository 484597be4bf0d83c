/* test_db.c - lib/db against a real Postgres.  Tables live in a schema of this process, dropped at
 * the end. */
#include <arpa/inet.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <cmocka.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/stop.h"
#include "db/db.h"

static const char *conninfo;
static char schema[64], with_schema[1024];
static struct db *db;

static void check(int result, const struct err *e)
{
    if (result < 0) fail_msg("%s: %s", err_kind_name(e->kind), e->text);
}

static struct db *open_db(void)
{
    struct err e = {0};
    struct db *d = db_create(with_schema, "test", &e);
    if (!d) check(-1, &e);
    return d;
}

static int setup(void **state)
{
    struct err e = {0};
    char sql[256];
    snprintf(schema, sizeof schema, "test_%d_%lld", (int)getpid(), (long long)clock_wall_ms());
    snprintf(with_schema, sizeof with_schema, "%s options='-c search_path=%s'", conninfo, schema);
    db = open_db();
    snprintf(sql, sizeof sql,
             "CREATE SCHEMA %s; CREATE TABLE t (id bigint PRIMARY KEY, name text, good boolean, "
             "n bigint CHECK (n >= 0));",
             schema);
    check(db_script(db, sql, &e), &e);
    return 0;
}

static int teardown(void **state)
{
    struct err e = {0};
    char sql[128];
    snprintf(sql, sizeof sql, "DROP SCHEMA %s CASCADE", schema);
    db_rollback(db);
    check(db_script(db, sql, &e), &e);
    db_free(db);
    return 0;
}

/* The one number that sql selects. */
static int64_t number(struct db *d, const char *sql)
{
    struct err e = {0};
    struct db_result *r;
    check(db_query(d, sql, NULL, 0, &r, &e), &e);
    assert_int_equal(db_rows(r), 1);
    int64_t n = db_int(r, 0, 0);
    db_result_free(r);
    return n;
}

static void kill_backend(struct db *victim)
{
    struct err e = {0};
    char pid[24];
    snprintf(pid, sizeof pid, "%lld", (long long)number(victim, "SELECT pg_backend_pid()"));
    struct db *other = open_db();
    check(db_queryf(other, NULL, &e, "SELECT pg_terminate_backend($1::int, 5000)", pid, NULL), &e);
    db_free(other);
}

static void parameters_are_values_and_never_sql(void **state)
{
    struct err e = {0};
    struct db_result *r;
    const char *nasty = "'; DROP TABLE t; --";
    const char *params[] = {"1", nasty, NULL, "7"};
    assert_int_equal(db_query(db, "INSERT INTO t VALUES ($1, $2, $3, $4)", params, 4, NULL, &e), 1);
    assert_int_equal(
        db_queryf(db, &r, &e, "SELECT name, good, n, id = $1 FROM t WHERE id = $1", "1", NULL), 1);
    assert_string_equal(db_text(r, 0, 0), nasty);
    assert_true(db_is_null(r, 0, 1));
    assert_string_equal(db_text(r, 0, 1), "");
    assert_false(db_is_null(r, 0, 2));
    assert_int_equal(db_int(r, 0, 2), 7);
    assert_true(db_bool(r, 0, 3));
    db_result_free(r);
    assert_int_equal(db_query(db, "UPDATE t SET n = 1 WHERE id < 0", NULL, 0, NULL, &e), 0);
    assert_int_equal(db_query(db, "SELECT id FROM t WHERE id < 0", NULL, 0, &r, &e), 0);
    db_result_free(r);
}

static void errors_say_whose_fault(void **state)
{
    static const struct {
        const char *sql;
        enum err_kind kind;
        const char *text;
    } cases[] = {
        {"SELEKT 1", ERR_BUG, "syntax"},
        {"SELECT * FROM nothing_here", ERR_BUG, "nothing_here"},
        {"INSERT INTO t (id) VALUES (1), (1)", ERR_USER, "t_pkey"},
        {"INSERT INTO t (id, n) VALUES (2, -1)", ERR_USER, "t_n_check"},
        {"SELECT 'x'::bigint", ERR_USER, "x"},
        {"SET LOCAL lock_timeout = 0; SELECT 1", ERR_BUG, "multiple"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        struct db_result *r = (void *)&e;
        assert_int_equal(db_query(db, cases[i].sql, NULL, 0, &r, &e), -1);
        assert_int_equal(e.kind, cases[i].kind);
        assert_non_null(strstr(e.text, cases[i].text));
        assert_null(r);
    }
}

static void a_transaction_is_whole_or_not_at_all(void **state)
{
    struct err e = {0};
    bool unknown = true;
    check(db_begin(db, &e), &e);
    check(db_queryf(db, NULL, &e, "INSERT INTO t (id) VALUES ($1)", "1", NULL), &e);
    assert_int_equal(db_begin(db, &e), -1);
    assert_int_equal(e.kind, ERR_BUG);
    db_rollback(db);
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 0);
    check(db_begin(db, &e), &e);
    check(db_queryf(db, NULL, &e, "INSERT INTO t (id) VALUES ($1)", "1", NULL), &e);
    check(db_commit(db, &unknown, &e), &e);
    assert_false(unknown);
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 1);
    db_rollback(db); /* there is none: nothing happens */
    assert_int_equal(db_commit(db, &unknown, &e), -1);
    assert_int_equal(e.kind, ERR_BUG);
}

static void a_failed_transaction_does_not_commit(void **state)
{
    struct err e = {0};
    bool unknown = true;
    check(db_begin(db, &e), &e);
    check(db_queryf(db, NULL, &e, "INSERT INTO t (id) VALUES ($1)", "1", NULL), &e);
    assert_int_equal(db_queryf(db, NULL, &e, "INSERT INTO t (id) VALUES ($1)", "1", NULL), -1);
    assert_int_equal(e.kind, ERR_USER);
    assert_int_equal(db_commit(db, &unknown, &e), -1);
    assert_int_equal(e.kind, ERR_RETRY);
    assert_false(unknown);
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 0);
}

static void a_connection_that_died_while_idle_is_made_anew(void **state)
{
    struct err e = {0};
    check(db_queryf(db, NULL, &e, "INSERT INTO t (id) VALUES ($1)", "1", NULL), &e);
    kill_backend(db);
    /* The same text: it has to be prepared on the new connection too. */
    check(db_queryf(db, NULL, &e, "INSERT INTO t (id) VALUES ($1)", "2", NULL), &e);
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 2);
}

static void a_connection_lost_inside_a_transaction_loses_the_transaction(void **state)
{
    struct err e = {0};
    bool unknown = true;
    check(db_begin(db, &e), &e);
    check(db_queryf(db, NULL, &e, "INSERT INTO t (id) VALUES ($1)", "1", NULL), &e);
    kill_backend(db);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(db_queryf(db, NULL, &e, "INSERT INTO t (id) VALUES ($1)", "2", NULL), -1);
        assert_int_equal(e.kind, ERR_RETRY);
    }
    assert_int_equal(db_commit(db, &unknown, &e), -1);
    assert_int_equal(e.kind, ERR_RETRY);
    assert_false(unknown); /* COMMIT was never sent */
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 0);
}

static void a_lost_answer_to_commit_is_unknown(void **state)
{
    struct err e = {0};
    bool unknown = false;
    check(db_begin(db, &e), &e);
    check(db_queryf(db, NULL, &e, "INSERT INTO t (id) VALUES ($1)", "1", NULL), &e);
    kill_backend(db);
    assert_int_equal(db_commit(db, &unknown, &e), -1);
    assert_int_equal(e.kind, ERR_RETRY);
    assert_true(unknown);
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 0);
}

static void a_serialization_failure_is_try_again(void **state)
{
    struct err e = {0};
    struct db *other = open_db();
    check(db_queryf(db, NULL, &e, "INSERT INTO t (id, n) VALUES ($1, $1)", "1", NULL), &e);
    check(db_begin(db, &e), &e);
    check(db_script(db, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", &e), &e);
    assert_int_equal(number(db, "SELECT n FROM t WHERE id = 1"), 1);
    check(db_queryf(other, NULL, &e, "UPDATE t SET n = $1", "5", NULL), &e);
    assert_int_equal(db_queryf(db, NULL, &e, "UPDATE t SET n = $1", "6", NULL), -1);
    assert_int_equal(e.kind, ERR_RETRY);
    db_rollback(db);
    db_free(other);
    assert_int_equal(number(db, "SELECT n FROM t"), 5);
}

static void no_server_is_try_again(void **state)
{
    struct err e = {0};
    struct db *d = db_create("host=127.0.0.1 port=1 dbname=x user=x", "test", &e);
    assert_non_null(d);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(db_query(d, "SELECT 1", NULL, 0, NULL, &e), -1);
        assert_int_equal(e.kind, ERR_RETRY);
    }
    assert_int_equal(db_begin(d, &e), -1);
    db_rollback(d);
    db_free(d);
}

static struct db *impatient(const char *conninfo_of_it)
{
    struct err e = {0};
    struct db *d = db_create(conninfo_of_it, "test", &e);
    assert_non_null(d);
    db_set_patience(d, 300);
    return d;
}

static void check_fails(struct db *d, const char *sql, const char *text)
{
    struct err e = {0};
    assert_int_equal(db_query(d, sql, NULL, 0, NULL, &e), -1);
    assert_int_equal(e.kind, ERR_RETRY);
    if (!strstr(e.text, text)) fail_msg("\"%s\", expected \"%s\"", e.text, text);
}

/* Its process stands still; the kernel goes on taking what is sent to it. */
static void a_server_that_says_nothing_is_not_waited_for(void **state)
{
    struct db *d = impatient(conninfo);
    pid_t backend = (pid_t)number(d, "SELECT pg_backend_pid()");
    assert_int_equal(kill(backend, SIGSTOP), 0);
    check_fails(d, "SELECT 1", "it does not answer");
    check_fails(d, "SELECT 1", "did not answer a moment ago");
    assert_int_equal(kill(backend, SIGCONT), 0);
    clock_sleep_ms(300);
    assert_int_equal(number(d, "SELECT 7"), 7);
    db_free(d);
}

/* The kernel makes the connection, and nobody takes it. */
static void a_server_that_never_says_hello_is_not_waited_for(void **state)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    char deaf[80];
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(fd, 8), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &size), 0);
    snprintf(deaf, sizeof deaf, "host=127.0.0.1 port=%d dbname=x user=x", ntohs(at.sin_port));
    struct db *d = impatient(deaf);
    check_fails(d, "SELECT 1", "cannot connect");
    check_fails(d, "SELECT 1", "did not answer a moment ago");
    db_free(d);
    close(fd);
}

static void a_statement_that_takes_too_long_ends_and_its_connection_stays(void **state)
{
    struct db *d = impatient(conninfo);
    int64_t backend = number(d, "SELECT pg_backend_pid()");
    check_fails(d, "SELECT pg_sleep(30)", "statement timeout");
    assert_int_equal(number(d, "SELECT pg_backend_pid()"), backend);
    db_free(d);
}

static void more_statements_than_are_kept_still_work(void **state)
{
    struct db *d = open_db();
    for (int i = 0; i < 300; i++) {
        char sql[64];
        snprintf(sql, sizeof sql, "SELECT %d + 0", i);
        assert_int_equal(number(d, sql), i);
    }
    assert_int_equal(number(d, "SELECT 0 + 0"), 0);
    db_free(d);
}

static void a_plan_that_a_migration_made_stale_is_forgotten(void **state)
{
    struct err e = {0};
    const char *sql = "SELECT * FROM t";
    check(db_query(db, sql, NULL, 0, NULL, &e), &e);
    check(db_script(db, "ALTER TABLE t ADD COLUMN more text", &e), &e);
    if (db_query(db, sql, NULL, 0, NULL, &e) < 0) assert_int_equal(e.kind, ERR_RETRY);
    check(db_query(db, sql, NULL, 0, NULL, &e), &e);
    check(db_script(db, "ALTER TABLE t DROP COLUMN more", &e), &e);
}

static void copy_brings_rows_and_its_texts_are_escaped(void **state)
{
    struct err e = {0};
    struct db_result *r;
    char name[64], lines[256];
    const char *nasty = "tab\tline\nback\\slash\r\v\f\b";
    int n = db_copy_escape(nasty, name, sizeof name);
    assert_int_equal(n, (int)strlen(nasty) + 7);
    assert_int_equal(db_copy_escape(nasty, name, (size_t)n), -1);
    assert_int_equal(db_copy_escape(nasty, name, (size_t)n + 1), n);
    n = snprintf(lines, sizeof lines, "1\t%s\tt\t5\n2\t\\N\tf\t6\n", name);
    check(db_copy(db, "COPY t (id, name, good, n) FROM STDIN", lines, (size_t)n, &e), &e);
    check(db_query(db, "SELECT name FROM t ORDER BY id", NULL, 0, &r, &e), &e);
    assert_int_equal(db_rows(r), 2);
    assert_string_equal(db_text(r, 0, 0), nasty);
    assert_true(db_is_null(r, 1, 0));
    db_result_free(r);
    assert_int_equal(db_copy(db, "COPY t (id) FROM STDIN", "3\n3\n", 4, &e), -1);
    assert_int_equal(e.kind, ERR_USER);
    assert_int_equal(db_copy(db, "SELECT 1", "", 0, &e), -1);
    assert_int_equal(e.kind, ERR_BUG);
    assert_int_equal(db_copy(db, "COPY t TO STDOUT", "", 0, &e), -1);
    assert_int_equal(e.kind, ERR_BUG);
    assert_int_equal(number(db, "SELECT count(*) FROM t"), 2);
}

int main(void)
{
    conninfo = getenv("TINWORKS_POSTGRES");
    if (!conninfo) return 77;
    stop_on_signals();
#define WITH_DB(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_DB(parameters_are_values_and_never_sql),
        WITH_DB(errors_say_whose_fault),
        WITH_DB(a_transaction_is_whole_or_not_at_all),
        WITH_DB(a_failed_transaction_does_not_commit),
        WITH_DB(a_connection_that_died_while_idle_is_made_anew),
        WITH_DB(a_connection_lost_inside_a_transaction_loses_the_transaction),
        WITH_DB(a_lost_answer_to_commit_is_unknown),
        WITH_DB(a_serialization_failure_is_try_again),
        cmocka_unit_test(no_server_is_try_again),
        cmocka_unit_test(a_server_that_says_nothing_is_not_waited_for),
        cmocka_unit_test(a_server_that_never_says_hello_is_not_waited_for),
        cmocka_unit_test(a_statement_that_takes_too_long_ends_and_its_connection_stays),
        WITH_DB(more_statements_than_are_kept_still_work),
        WITH_DB(a_plan_that_a_migration_made_stale_is_forgotten),
        WITH_DB(copy_brings_rows_and_its_texts_are_escaped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
